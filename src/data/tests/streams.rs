//! Streams: one ask after another, and how they end.

use super::*;
use crate::data::TransferControl;
use crate::data::buffer_pool::RECEIVE_BUFFER_BYTES;
use crate::data::connect::ConnectionKind;
use crate::data::frame::{REFUSAL, REPLY};
use crate::data::protocol::{
    FRAME_HEADER_BYTES, PackReply, RangeHead, TICKET_HEADER, WriteOutcome,
};

fn pack_request(world: &TestBed) -> Vec<u8> {
    frame::ask(&ContentRequest { verb: PACK.to_owned(), ticket: world.ticket() })
}

/// A pack of one small file.
fn pack_of(name: &str) -> Vec<u8> {
    let mut pack = frame::dirs(vec![]);
    pack.extend(file_frames(&file_entry(name, 3), b"abc", &blake3::hash(b"abc").into()));
    pack.extend(frame::end(1));
    pack
}

/// The next answer: its kind, and its document.
pub(super) async fn read_reply(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut head).await.unwrap();
    let (kind, length) = frame::parse_header(head);
    let mut document = vec![0; length];
    stream.read_exact(&mut document).await.unwrap();
    (kind, document)
}

#[tokio::test]
async fn a_stream_accepts_packs_in_turn_in_chunks_of_any_size() {
    let world = TestBed::new().await;
    let mut stream = world.stream().await;
    for (i, cut) in [1, 7, 100_000].into_iter().enumerate() {
        let bytes = [pack_request(&world), pack_of(&format!("f{i}"))].concat();
        for piece in bytes.chunks(cut) {
            stream.write_all(piece).await.unwrap();
        }
        let (kind, document) = read_reply(&mut stream).await;
        assert_eq!(kind, REPLY);
        let reply: PackReply = minicbor::decode(&document).unwrap();
        assert_eq!(reply.files, [WriteOutcome::Written]);
    }
    assert_eq!(world.names(), ["f0", "f1", "f2"]);
    world.shut_down().await;
}

#[tokio::test]
async fn a_refusal_has_a_reason_and_ends_the_stream() {
    let world = TestBed::new().await;
    let other =
        frame::ask(&ContentRequest { verb: "/v1/offer".to_owned(), ticket: world.ticket() });
    let early = [pack_request(&world), pack_of("whole"), b"x".to_vec()].concat();
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "a request was expected"),
        (other, "this is an agent's data port, not a master: it does not serve `/v1/offer`"),
        (early, "bytes follow the last frame"),
    ];
    for (bytes, reason) in cases {
        let mut stream = world.stream().await;
        stream.write_all(&bytes).await.unwrap();
        let (kind, document) = read_reply(&mut stream).await;
        let document = String::from_utf8(document).unwrap();
        assert_eq!(kind, REFUSAL, "{document}");
        assert!(document.contains(reason), "{document}");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_stopping_server_closes_idle_streams_and_finishes_active_ones() {
    let world = TestBed::new().await;
    let mut idle = world.stream().await;
    let mut busy = world.stream().await;
    let content = vec![1; 100_000];
    let mut pack = frame::dirs(vec![]);
    let entry = file_entry("last", content.len() as u64);
    pack.extend(file_frames(&entry, &content, &blake3::hash(&content).into()));
    pack.extend(frame::end(1));
    let bytes = [pack_request(&world), pack].concat();
    // The end of the last file and of the pack is to come.
    let (first, rest) = bytes.split_at(bytes.len() - 50);
    busy.write_all(first).await.unwrap();
    damage::wait_until("it has begun", || !world.names().is_empty()).await;
    world.stop.cancel();
    assert_eq!(idle.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    busy.write_all(rest).await.unwrap();
    assert_eq!(read_reply(&mut busy).await.0, REPLY);
    assert_eq!(busy.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(world.names(), ["last"]);
    world.shut_down().await;
}

/// Sends `bytes` one at a time, with pauses, until the other side ends it; its reply.
async fn send_slowly(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = stream.split();
    let mut reply = Vec::new();
    let dripping = async {
        for byte in bytes {
            if to.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = dripping => panic!("it was taken to the end"),
        _ = from.read_to_end(&mut reply) => {}
    }
    reply
}

#[tokio::test]
async fn a_peer_that_sends_too_slowly_is_refused_and_leaves_no_file() {
    let stall_timeout = Duration::from_millis(300);
    // Memory for one exchange: all others wait for it.
    let pool = BufferPool::new(GATHER_BUFFER_BYTES + 2 * RECEIVE_BUFFER_BYTES);
    let world = TestBed::with_stall_timeout(stall_timeout, std::env::temp_dir(), pool).await;
    let content = vec![1; 3000];
    let mut pack = frame::dirs(vec![]);
    pack.extend(file_frames(&file_entry("slow", 3000), &content, &blake3::hash(&content).into()));
    let mut stream = world.stream().await;
    stream.write_all(&pack_request(&world)).await.unwrap();
    let reply = send_slowly(stream, &pack).await;
    assert_eq!(reply.first(), Some(&REFUSAL));
    let text = String::from_utf8_lossy(&reply).into_owned();
    assert!(text.contains("less than 4096 bytes came in 300ms"), "{text}");
    assert_eq!(world.names(), Vec::<String>::new());
    // A document has as long.
    let head = format!(
        "POST /v1/offer HTTP/1.1\r\nhost: x\r\n{TICKET_HEADER}: {}\r\ncontent-length: 5000\r\n\r\n",
        world.ticket()
    );
    let mut stream = TcpStream::connect(world.endpoint.authority()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = String::from_utf8(send_slowly(stream, &[0; 5000]).await).unwrap();
    assert!(
        reply.starts_with("HTTP/1.1 400") && reply.contains("did not arrive in 300ms"),
        "{reply}"
    );
    let mut stream = world.stream().await;
    stream.write_all(&[pack_request(&world), pack_of("next")].concat()).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.0, REPLY, "its place is free again");
    assert_eq!(world.names(), ["next"]);
    world.shut_down().await;
}

#[tokio::test]
async fn buffered_content_of_a_disconnected_peer_is_not_written() {
    let pool = BufferPool::new(GATHER_BUFFER_BYTES + 2 * RECEIVE_BUFFER_BYTES);
    let world = TestBed::with_pool(pool.clone()).await;
    world.write("f", b"abc");
    let (manifest, _) = world.only_file();
    let mut range = frame::range(&RangeHead { manifest, offset: 0, length: 3, is_dense: false });
    range.extend(frame::content_header(3));
    range.extend(b"abc");
    // The only place for content is taken.
    let busy = pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await;
    for (verb, body) in [(RANGE, range), (PACK, pack_of("small"))] {
        let mut stream = world.stream().await;
        let request = frame::ask(&ContentRequest { verb: verb.to_owned(), ticket: world.ticket() });
        stream.write_all(&[request, body].concat()).await.unwrap();
    }
    drop(busy);
    // The last request is served last.
    let mut stream = world.stream().await;
    stream.write_all(&[pack_request(&world), pack_of("next")].concat()).await.unwrap();
    assert_eq!(read_reply(&mut stream).await.0, REPLY);
    assert_eq!(world.names(), ["next"]);
    world.shut_down().await;
}

#[tokio::test]
async fn nothing_is_sent_or_written_after_the_deadline() {
    let world = TestBed::new().await;
    world.write("f", b"abc");
    let (manifest, entry) = world.only_file();
    let claims = world.claims(&world.dst());
    let rules = WriteRules::default();
    let now = crate::data::ticket_verifier::boottime();
    for (deadline, brought) in
        [(Deadline::new(now), false), (Deadline::new(now + STALL_TIMEOUT), true)]
    {
        let control = TransferControl { deadline, ..TransferControl::default() };
        let peer = Peers::new(&[], test_pool()).peer(&world.member(), &world.ticket(), &rules);
        let local = Local::new(world.target(), claims.clone(), test_pool());
        let local = local.with_control(control.clone());
        let worker = "b".parse().unwrap();
        let both =
            [Destination::Remote(peer.with_control(control)), Destination::Local { worker, local }];
        for to in both {
            let source = tree(&world.src());
            let packed = to.transfer_pack(&source, vec![], vec![entry.clone()]).await;
            assert_eq!(packed.is_ok(), brought, "{packed:?}");
            fs::remove_file(world.dst().join("f")).ok();
            let transfer =
                to.transfer_range(&source, &manifest, &entry, (0, 3), RangeMode::Whole).await;
            assert_eq!(transfer.is_ok(), brought, "{transfer:?}");
            assert_eq!(world.names().len(), usize::from(brought));
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn the_stream_of_a_completed_exchange_is_reused() {
    let world = TestBed::new().await;
    world.write("f", b"abc");
    let (manifest, entry) = world.only_file();
    let peers = Peers::new(&[], test_pool());
    let peer = peers.peer(&world.member(), &world.ticket(), &WriteRules::default());
    let to = Destination::Remote(peer);
    let packed = to.transfer_pack(&tree(&world.src()), manifest.dirs, vec![entry]).await.unwrap();
    assert!(packed.files[0].is_ok(), "{packed:?}");
    let endpoints = [world.endpoint.clone()];
    let next = peers
        .routes
        .checkout((&"b".parse().unwrap(), &endpoints), false, ConnectionKind::Content, 0)
        .await
        .unwrap();
    assert!(next.reused);
    drop(next);
    world.shut_down().await;
}
