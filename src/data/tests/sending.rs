//! What the sending end hands on, and what it does when its source changes meanwhile.

use super::*;

use crate::data::frame::{Frame, FrameReader};
use crate::data::nics::Nic;
use crate::data::send::{SendHashing, send_range};
use crate::fs::BlockHashes;
use crate::util::rate::Limiters;
use crate::wire::content::HashMode;
use crate::wire::preserve::Preserve;

fn hashing(mode: HashMode) -> SendHashing {
    SendHashing { mode: Some(mode), for_relays: false }
}

/// Hands on what is sent, piece by piece.
struct ChannelSink(mpsc::Sender<Bytes>);

impl FrameSink for ChannelSink {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| Disconnected)
    }

    fn check_active(&self) -> Result<(), Disconnected> {
        if self.0.is_closed() { Err(Disconnected) } else { Ok(()) }
    }
}

/// A source file being sent, of which the first piece has left.
fn start_sending(world: &TestBed, name: &str) -> (mpsc::Receiver<Bytes>, SendingThread) {
    let source = tree(&world.src());
    let entry = source.entry(&rel(name)).unwrap();
    start_sending_from(source, entry)
}

fn start_sending_from(source: Tree, entry: Entry) -> (mpsc::Receiver<Bytes>, SendingThread) {
    let (to, mut from) = mpsc::channel(1);
    let sending = std::thread::spawn(move || {
        let mut to = ChannelSink(to);
        let mut feed = FrameWriter::new(
            &mut to,
            (test_buffer(&test_pool()), None),
            Arc::default(),
            Limiters::default(),
        );
        send_pack(&source, &[], &[entry], hashing(HashMode::SkipZeros), &mut feed)
    });
    from.blocking_recv().unwrap();
    (from, sending)
}

type SendingThread = std::thread::JoinHandle<Result<Vec<SentFile>, Disconnected>>;

#[test]
fn a_source_that_changes_while_it_is_sent_is_aborted() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(TestBed::new());
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("grown", |p| {
            use std::io::Write as _;
            fs::OpenOptions::new().append(true).open(p).unwrap().write_all(b"x").unwrap();
        }),
        ("cut", |p| fs::OpenOptions::new().write(true).open(p).unwrap().set_len(10).unwrap()),
        ("rewritten", |p| {
            use std::os::unix::fs::FileExt as _;
            let file = fs::OpenOptions::new().write(true).open(p).unwrap();
            file.write_at(b"other", 7 << 20).unwrap();
        }),
    ];
    for (name, change) in changes {
        world.write(name, &vec![1; 8 << 20]);
        let (mut from, sending) = start_sending(&world, name);
        change(&world.src().join(name));
        let mut all = Vec::new();
        while let Some(piece) = from.blocking_recv() {
            all.extend(piece);
        }
        let sent_files = sending.join().unwrap().unwrap();
        let [SentFile::Aborted(error)] = sent_files.as_slice() else {
            panic!("{name}: {sent_files:?}")
        };
        assert_eq!(error.class, ErrorClass::Changed, "{name}");
        assert!(all.ends_with(&[&frame::abort()[..], &frame::end(1)].concat()), "{name}");
    }
    runtime.block_on(world.shut_down());
}

fn open_to_write(path: &Path) -> fs::File {
    fs::OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn a_copy_that_is_damaged_while_a_relay_sends_it_is_aborted() {
    use std::os::unix::fs::FileExt as _;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(TestBed::new());
    type Change = fn(&Path);
    let changes: [(&str, Change, bool); 4] = [
        ("cut", |p| open_to_write(p).set_len(10).unwrap(), true),
        ("rewritten", |p| open_to_write(p).write_all_at(b"other", 7 << 20).unwrap(), true),
        // The content is right all the same.
        ("grown", |p| open_to_write(p).write_all_at(b"x", 8 << 20).unwrap(), false),
        ("linked", |p| fs::hard_link(p, p.with_extension("2")).unwrap(), false),
    ];
    for (name, change, is_damage) in changes {
        let content = vec![1; 8 << 20];
        world.write(name, &content);
        let relay = tree(&world.src()).for_relay();
        let digest = Some(blake3::hash(&content).into());
        let entry = Entry { digest, ..relay.entry(&rel(name)).unwrap() };
        let (mut from, sending) = start_sending_from(relay, entry);
        change(&world.src().join(name));
        let mut all = Vec::new();
        while let Some(piece) = from.blocking_recv() {
            all.extend(piece);
        }
        let sent_files = sending.join().unwrap().unwrap();
        match sent_files.as_slice() {
            [SentFile::Aborted(error)] if is_damage => {
                assert_eq!(error.class, ErrorClass::Damaged, "{name}");
                assert!(all.ends_with(&[&frame::abort()[..], &frame::end(1)].concat()), "{name}");
            }
            [SentFile::Complete(_)] if !is_damage => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    runtime.block_on(world.shut_down());
}

#[test]
fn sending_any_amount_uses_one_buffer() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = runtime.block_on(TestBed::new());
    fs::write(world.src().join("long"), vec![3; 64 << 20]).unwrap();
    let (to, mut from) = mpsc::channel(1);
    let pool = test_pool();
    let (source, buffers) = (tree(&world.src()), pool.clone());
    let entry = source.entry(&rel("long")).unwrap();
    let sending = std::thread::spawn(move || {
        let mut to = ChannelSink(to);
        let mut feed = FrameWriter::new(
            &mut to,
            (test_buffer(&buffers), None),
            Arc::default(),
            Limiters::default(),
        );
        send_pack(&source, &[], &[entry], hashing(HashMode::Full), &mut feed).unwrap()
    });
    let mut bytes = 0;
    while let Some(piece) = from.blocking_recv() {
        bytes += piece.len();
    }
    assert_eq!(sending.join().unwrap(), [SentFile::Complete(written(&vec![3; 64 << 20], true))]);
    assert!(bytes > 64 << 20);
    assert!(pool.peak_bytes() < 2 * SEND_BUFFER_BYTES);
    runtime.block_on(world.shut_down());
}

/// Keeps all that is sent.
#[derive(Default)]
struct CollectingSink(Vec<u8>);

impl FrameSink for CollectingSink {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn check_active(&self) -> Result<(), Disconnected> {
        Ok(())
    }
}

#[test]
fn only_a_range_that_is_sent_whole_from_a_file_without_holes_is_announced_as_dense() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), vec![1; 8192]).unwrap();
    fs::File::create(dir.path().join("hole")).unwrap().set_len(8192).unwrap();
    let source = tree(dir.path()).preserving(Preserve::all());
    let unlike = [BlockHashes::default()];
    for (name, existing, is_dense) in
        [("data", None, true), ("data", Some(&unlike[..]), false), ("hole", None, false)]
    {
        let entry = Entry { stored_bytes: None, ..source.entry(&rel(name)).unwrap() };
        let manifest = Manifest { dirs: vec![], entries: vec![entry.clone()] };
        let head = RangeHead { manifest, offset: 0, length: 8192, is_dense: false };
        let mut sent = CollectingSink::default();
        let buffers = (test_buffer(&test_pool()), existing.map(|_| test_buffer(&test_pool())));
        let mut feed = FrameWriter::new(&mut sent, buffers, Arc::default(), Limiters::default());
        let hashing = Some(HashMode::SkipZeros);
        send_range(&source, &head, &entry, existing, hashing, &mut feed).unwrap().unwrap();
        let first = FrameReader::new(damage::ScriptedChunks::whole(sent.0)).next_frame();
        assert_eq!(first, Ok(Frame::Range(RangeHead { is_dense, ..head })), "{name} {existing:?}");
    }
}

#[tokio::test]
async fn a_long_range_is_sent_over_all_pairs_of_nics_at_a_time() {
    let world = TestBed::new().await;
    let length: u64 = 16 << 20;
    world.write("f", &content(length, 1));
    let (manifest, entry) = world.only_file();
    // Two networks, both ends in each.
    let ends = ["127.0.1.1", "127.0.2.1"].map(|address| Endpoint {
        iface: None,
        address: address.to_owned(),
        port: Some(0),
    });
    let gate = TicketVerifier::new();
    gate.update(&[world.signer.public_key()], NOW).unwrap();
    let roots = Roots::open(&[abs(&world.dst())]).unwrap();
    let (gate, roots) = (Arc::new(gate), Arc::new(roots));
    let server = DataServer::bind(&ends).await.unwrap();
    let data_plane_endpoints = server.endpoints.available();
    let serving = tokio::spawn(server.serve(gate, roots, test_pool(), world.stop.clone()));
    let member = PoolMember { data_plane_endpoints, ..world.member() };
    let nics = ends.map(|end| Nic::new(end.into()));
    let peers = Peers::new(&nics, test_pool());
    let to = Destination::Remote(peers.peer(&member, &world.ticket(), &WriteRules::default()));
    let source = tree(&world.src());
    let sent =
        to.transfer_range(&source, &manifest, &entry, (0, length), RangeMode::Whole).await.unwrap();
    assert_eq!((sent.sent, sent.kept), (length, 0));
    for nic in &nics {
        assert!(
            nic.counter.sent() > length / 2,
            "{}: {}",
            nic.endpoint.address,
            nic.counter.sent()
        );
    }
    world.target().publish_part_file(&entry, None).unwrap();
    assert!(fs::read(world.dst().join("f")).unwrap() == content(length, 1));
    world.shut_down().await;
    serving.await.unwrap();
}
