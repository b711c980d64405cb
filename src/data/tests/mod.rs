//! Real sockets on loopback, real trees in temporary directories.

mod buffers;
mod damage;
mod delta;
mod floods;
mod in_place;
mod refusals;
mod rules;
mod sending;
mod slow_peers;
mod sparse;
mod streams;
mod tls;
mod unresponsive_peers;

use super::buffer_pool::tests::{test_buffer, test_pool};
use super::buffer_pool::{BufferPool, GATHER_BUFFER_BYTES, SEND_BUFFER_BYTES};
use super::content_client::{Disconnected, FrameSink};
use super::frame;
use super::outcome::{RangeError, RangeMode, SendError, SentFile, WrittenFile, WrittenRange};
use super::protocol::{ContentRequest, PACK, RANGE, RangeHead, STALL_TIMEOUT, UPGRADE_PROTOCOL};
use super::send::{FrameWriter, send_pack};
use super::{
    ActiveRequests, DataServer, DataTls, Deadline, Destination, Local, Peers, Roots, TicketVerifier,
};
use crate::fs::{DeletionBudget, OfferDecision, RootDir, Target, TargetOptions, Tree};
use crate::util::shutdown::Shutdown;
use crate::wire::content::merge_ranges;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, EntryKind, Manifest};
use crate::wire::options::WriteRules;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::problem::Problem;
use crate::wire::task::PoolMember;
use crate::wire::ticket::{Claims, DeleteGrant, PrunePermit, Signer, Verbs};
use crate::wire::worker::{Endpoint, WorkerStatus};
use crate::wire::{AbsPath, Digest, RelPath, SyncNo};
use bytes::Bytes;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Room to gather content in.
fn gather_buffer() -> Vec<u8> {
    vec![0; GATHER_BUFFER_BYTES]
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

fn abs(path: &Path) -> AbsPath {
    AbsPath::new(path.as_os_str().as_bytes()).unwrap()
}

fn tree(path: &Path) -> Tree {
    Tree::new(RootDir::open(&abs(path)).unwrap(), RelPath::root())
}

/// A source, a destination, and a data server that serves the destination.
struct TestBed {
    dir: TempDir,
    signer: Signer,
    gate: Arc<TicketVerifier>,
    requests: Arc<ActiveRequests>,
    endpoint: Endpoint,
    stop: Shutdown,
    server_task: JoinHandle<()>,
}

/// The master's clock.
const NOW: i64 = 1_000_000;

impl TestBed {
    async fn new() -> Self {
        TestBed::with_pool(test_pool()).await
    }

    /// The same, with a server that receives through buffers of `pool`.
    async fn with_pool(pool: BufferPool) -> Self {
        TestBed::in_dir(std::env::temp_dir(), pool).await
    }

    async fn in_dir(dir: impl AsRef<Path>, pool: BufferPool) -> Self {
        TestBed::with_stall_timeout(STALL_TIMEOUT, dir, pool).await
    }

    /// The same, with another time-out for peers that send next to nothing.
    async fn with_stall_timeout(
        stall_timeout: Duration,
        dir: impl AsRef<Path>,
        pool: BufferPool,
    ) -> Self {
        TestBed::with_options(true, stall_timeout, dir, pool).await
    }

    /// The same, with a server that has not heard from its master.
    async fn without_key() -> Self {
        TestBed::with_options(false, STALL_TIMEOUT, std::env::temp_dir(), test_pool()).await
    }

    async fn with_options(
        key: bool,
        stall_timeout: Duration,
        dir: impl AsRef<Path>,
        pool: BufferPool,
    ) -> Self {
        TestBed::with_tls(key, stall_timeout, (dir, pool), |_| None).await
    }

    /// The same, with a server with what `tls` makes.
    async fn with_tls(
        key: bool,
        stall_timeout: Duration,
        (dir, pool): (impl AsRef<Path>, BufferPool),
        tls: impl FnOnce(&Arc<TicketVerifier>) -> Option<Arc<DataTls>>,
    ) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        for name in ["src", "dst", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let gate = TicketVerifier::for_agent(&"b".parse().unwrap(), "");
        if key {
            gate.update(&[signer.public_key()], NOW).unwrap();
        }
        let roots = Roots::open(&[abs(&dir.path().join("dst"))]).unwrap();
        let (gate, roots) = (Arc::new(gate), Arc::new(roots));
        let any = Endpoint { iface: None, address: "127.0.0.1".into(), port: Some(0) };
        let server = DataServer::bind(&[any]).await.unwrap().with_stall_timeout(stall_timeout);
        let server = server.with_tls(tls(&gate));
        let endpoint = server.endpoints.available()[0].clone();
        let requests = server.requests.clone();
        let stop = Shutdown::new();
        let serving = tokio::spawn(server.serve(gate.clone(), roots, pool, stop.clone()));
        TestBed { dir, signer, gate, requests, endpoint, stop, server_task: serving }
    }

    fn src(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    fn dst(&self) -> PathBuf {
        self.dir.path().join("dst")
    }

    fn claims(&self, destination: &Path) -> Claims {
        let mut claims = Claims {
            sync: 7,
            request_id: "demo-1".into(),
            assignment: [1; 16],
            attempt: 1,
            worker: "a".into(),
            destination: destination.as_os_str().as_bytes().to_vec(),
            expires: NOW + 900,
            rules: Default::default(),
            prune: None,
            roots: Default::default(),
            verbs: Verbs::ALL,
            receivers: Default::default(),
            run_as: None,
        };
        claims.allow_receiver(&"b".parse().unwrap());
        claims
    }

    /// Those of a task with these `rules`, which prunes where they are of a mirror.
    fn claims_with(&self, rules: &WriteRules) -> Claims {
        let deletion =
            DeleteGrant { grant_id: 1, max_entries: u64::MAX, incarnation: String::new() };
        let prune = rules.delete.then_some(PrunePermit::Delete(deletion));
        Claims { rules: rules.clone(), prune, ..self.claims(&self.dst()) }
    }

    fn ticket(&self) -> String {
        self.ticket_with(&WriteRules::default())
    }

    fn ticket_with(&self, rules: &WriteRules) -> String {
        self.signer.sign(&self.claims_with(rules))
    }

    fn member(&self) -> PoolMember {
        PoolMember {
            worker_id: "b".parse().unwrap(),
            status: WorkerStatus::Idle,
            storage_paths: vec![abs(&self.dst())],
            data_plane_endpoints: vec![self.endpoint.clone()],
        }
    }

    fn remote(&self, ticket: &str) -> Destination {
        let rules = WriteRules::default();
        Destination::Remote(Peers::new(&[], test_pool()).peer(&self.member(), ticket, &rules))
    }

    fn remote_with(&self, rules: &WriteRules) -> Destination {
        let ticket = self.ticket_with(rules);
        Destination::Remote(Peers::new(&[], test_pool()).peer(&self.member(), &ticket, rules))
    }

    fn target(&self) -> Target {
        self.target_with(&WriteRules::default())
    }

    fn target_with(&self, rules: &WriteRules) -> Target {
        let deletion = Some(DeletionBudget::new(Default::default(), u64::MAX));
        let options = TargetOptions {
            deletion_budget: deletion,
            ..TargetOptions::for_this_process(rules.clone())
        };
        Target::new(tree(&self.dst()), SyncNo(7), options)
    }

    fn local(&self) -> Destination {
        self.local_with(&WriteRules::default())
    }

    fn local_with(&self, rules: &WriteRules) -> Destination {
        let local = Local::new(self.target_with(rules), self.claims_with(rules), test_pool());
        Destination::Local { worker: "b".parse().unwrap(), local }
    }

    /// Both kinds of destination.
    fn both_destinations(&self, rules: &WriteRules) -> [Destination; 2] {
        [self.remote_with(rules), self.local_with(rules)]
    }

    /// The only file at the source, with a manifest of just it.
    fn only_file(&self) -> (Manifest, Entry) {
        let mut manifest = self.manifest();
        manifest.entries.retain(|e| !e.is_dir());
        assert_eq!(manifest.entries.len(), 1);
        let entry = manifest.entries[0].clone();
        (manifest, entry)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.src().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A manifest of everything at the source.
    fn manifest(&self) -> Manifest {
        let source = tree(&self.src());
        let mut walk = source.walk(&RelPath::root(), None).unwrap();
        let mut manifest = Manifest::default();
        while let Some(entry) = walk.next() {
            let entry = entry.unwrap();
            for dir in walk.dirs() {
                if !manifest.dirs.contains(dir) {
                    manifest.dirs.push(dir.clone());
                }
            }
            manifest.entries.push(entry);
        }
        manifest
    }

    /// Asks `path` with `body` in the raw (content on a stream), and returns the whole reply with the
    /// status that it has, or stands for.
    async fn post(&self, path: &str, ticket: &str, body: &[u8]) -> String {
        if [PACK, RANGE].contains(&path) {
            let (kind, document) = self.ask(path, ticket, body).await;
            let document = String::from_utf8_lossy(&document).into_owned();
            if kind == frame::REPLY {
                return format!("HTTP/1.1 200 \r\n\r\n{document}");
            }
            let problem: Problem = serde_json::from_str(&document).unwrap();
            return format!("HTTP/1.1 {} \r\n\r\n{document}", problem.status);
        }
        let mut stream = TcpStream::connect(self.endpoint.authority()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-longhaul-ticket: {ticket}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// A connection that was upgraded to a stream.
    async fn stream(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.endpoint.authority()).await.unwrap();
        let head = format!(
            "GET /v1/stream HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n\r\n") {
            reply.push(stream.read_u8().await.unwrap());
        }
        assert!(reply.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&reply));
        stream
    }

    /// Asks a new stream for `verb`, sends `body`, and waits: a peer that is gone is not served.
    async fn ask(&self, verb: &str, ticket: &str, body: &[u8]) -> (u8, Vec<u8>) {
        let mut stream = self.stream().await;
        let request = ContentRequest { verb: verb.to_owned(), ticket: ticket.to_owned() };
        stream.write_all(&[&frame::ask(&request), body].concat()).await.unwrap();
        streams::read_reply(&mut stream).await
    }

    /// The names at the destination, with part files.
    fn names(&self) -> Vec<String> {
        names(&self.dst())
    }

    async fn shut_down(self) {
        self.stop.cancel();
        self.server_task.await.unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> = walkdir::WalkDir::new(dir)
        .min_depth(1)
        .into_iter()
        .map(|e| e.unwrap().path().strip_prefix(dir).unwrap().to_string_lossy().into_owned())
        .collect();
    all.sort();
    all
}

fn entries_needing_content(
    manifest: &Manifest,
    results: &[Result<OfferDecision, EntryError>],
) -> Vec<Entry> {
    manifest
        .entries
        .iter()
        .zip(results)
        .filter(|(_, a)| matches!(a, Ok(OfferDecision::NeedsContent { .. })))
        .map(|(e, _)| e.clone())
        .collect()
}

fn file_entry(name: &str, size: u64) -> Entry {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x"), vec![0; 1]).unwrap();
    let like = tree(dir.path()).entry(&rel("x")).unwrap();
    Entry { path: rel(name), kind: EntryKind::File { size }, ..like }
}

/// Content that repeats itself nowhere.
fn content(length: u64, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// What a file of this content gives when it is there.
fn written(content: &[u8], hashed: bool) -> WrittenFile {
    let digest = hashed.then(|| blake3::hash(content).into());
    WrittenFile { bytes: content.len() as u64, digest, relay_digest: None }
}

/// The frames of one file.
fn file_frames(entry: &Entry, content: &[u8], digest: &Digest) -> Vec<u8> {
    let mut out = frame::file(entry);
    for piece in content.chunks(1000) {
        out.extend(frame::content_header(piece.len()));
        out.extend(piece);
    }
    out.extend(frame::digest(digest));
    out
}

/// The body of a pack, and that of a range, that write the file `planted`.
fn planted_bodies() -> (Vec<u8>, Vec<u8>) {
    let entry = file_entry("planted", 3);
    let mut pack = frame::dirs(vec![]);
    pack.extend(file_frames(&entry, b"abc", &blake3::hash(b"abc").into()));
    pack.extend(frame::end(1));
    let manifest = Manifest { dirs: vec![], entries: vec![entry] };
    let head = RangeHead { manifest, offset: 0, length: 3, is_dense: false };
    let mut range = frame::range(&head);
    range.extend(frame::content_header(3));
    range.extend(b"abc");
    (pack, range)
}

async fn a_batch_arrives(world: &TestBed, to: Destination) {
    world.write("a", b"alpha");
    world.write("sub/deep/b", &vec![7; 3 << 20]);
    world.write("sub/empty", b"");
    std::os::unix::fs::symlink("../nowhere", world.src().join("sub/link")).unwrap();
    let source = tree(&world.src());
    let manifest = world.manifest();
    let offered = to.offer(&manifest).await.unwrap();
    let wanted = entries_needing_content(&manifest, &offered.results);
    let paths: Vec<&[u8]> = wanted.iter().map(|e| e.path.as_bytes()).collect();
    assert_eq!(paths, [&b"a"[..], b"sub/deep/b"]);
    let packed = to.transfer_pack(&source, manifest.dirs.clone(), wanted).await.unwrap();
    // Also where content is hashed on its way: no digests were asked for.
    let expected = [&b"alpha"[..], &vec![7; 3 << 20]].map(|c| Ok(written(c, false)));
    assert_eq!(packed.files, expected);
    assert_eq!((packed.sent, packed.dir_errors), ((3 << 20) + 5, vec![]));
    assert!(packed.warnings.is_empty() && !packed.needs_clean_up);
    assert_eq!(names(&world.src()), world.names());
    let after = tree(&world.dst());
    for entry in &manifest.entries {
        let existing = after.entry(&entry.path).unwrap();
        assert_eq!((&existing.kind, existing.meta), (&entry.kind, entry.meta), "{}", entry.path);
    }
    assert_eq!(fs::read(world.dst().join("sub/deep/b")).unwrap(), vec![7; 3 << 20]);
    let again = to.offer(&manifest).await.unwrap();
    assert!(
        again.results.iter().all(|a| *a == Ok(OfferDecision::Done(EntryAction::Skip))),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_batch_arrives_over_the_network() {
    let world = TestBed::new().await;
    a_batch_arrives(&world, world.remote(&world.ticket())).await;
    world.shut_down().await;
}

#[tokio::test]
async fn a_batch_arrives_without_the_network() {
    let world = TestBed::new().await;
    a_batch_arrives(&world, world.local()).await;
    world.shut_down().await;
}

/// The error of the file.
fn range_error<T: std::fmt::Debug>(result: Result<T, RangeError>) -> EntryError {
    match result {
        Err(RangeError::Entry(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// Whether the source is another version than that of the manifest.
fn is_source_change(error: &EntryError) -> bool {
    error.class == ErrorClass::Changed && error.is_source_error()
}

async fn ranges_make_a_file(world: &TestBed, to: Destination) {
    const LENGTH: u64 = 1 << 20;
    let content: Vec<u8> = (0..(2 * LENGTH + 12_345)).map(|i| (i % 251) as u8).collect();
    world.write("big", &content);
    let source = tree(&world.src());
    let (manifest, entry) = world.only_file();
    let mut chain = Vec::new();
    for offset in [2 * LENGTH, 0, LENGTH] {
        let length = LENGTH.min(entry.size() - offset);
        let range = (offset, length);
        let written = to.transfer_range(&source, &manifest, &entry, range, RangeMode::Whole).await;
        let WrittenRange { value, sent, kept } = written.unwrap();
        assert_eq!((sent, kept), (length, 0));
        chain.push((offset, value.unwrap()));
        assert!(!world.dst().join("big").exists());
    }
    chain.sort_by_key(|(offset, _)| *offset);
    let values: Vec<Digest> = chain.into_iter().map(|(_, v)| v).collect();
    assert_eq!(merge_ranges(&values), Some(blake3::hash(&content).into()));
    world.target().publish_part_file(&entry, None).unwrap();
    assert_eq!(fs::read(world.dst().join("big")).unwrap(), content);
}

#[tokio::test]
async fn ranges_make_a_file_over_the_network() {
    let world = TestBed::new().await;
    ranges_make_a_file(&world, world.remote(&world.ticket())).await;
    world.shut_down().await;
}

#[tokio::test]
async fn ranges_make_a_file_without_the_network() {
    let world = TestBed::new().await;
    ranges_make_a_file(&world, world.local()).await;
    world.shut_down().await;
}

#[tokio::test]
async fn unknown_versions_and_paths_are_refused() {
    let world = TestBed::new().await;
    let reply = world.post("/v2/offer", &world.ticket(), b"").await;
    assert!(reply.starts_with("HTTP/1.1 404") && reply.contains("route_not_found"), "{reply}");
    assert!(reply.contains("supports version 1"), "{reply}");
    let reply = world.post("/v1/offer", &world.ticket(), b"\xff\xff").await;
    assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
    // What is no HTTP at all is hung up on.
    let mut stream = TcpStream::connect(world.endpoint.authority()).await.unwrap();
    stream.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n").await.unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply).await;
    assert!(!reply.starts_with(b"HTTP/1.1 200"));
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

#[tokio::test]
async fn a_range_of_another_version_is_not_sent() {
    let world = TestBed::new().await;
    world.write("big", &vec![1; 4096]);
    let source = tree(&world.src());
    let (manifest, entry) = world.only_file();
    world.write("big", &vec![2; 5000]);
    for to in [world.remote(&world.ticket()), world.local()] {
        for mode in [RangeMode::Whole, RangeMode::Delta] {
            let sent = to.transfer_range(&source, &manifest, &entry, (0, 1024), mode).await;
            let error = range_error(sent);
            assert!(is_source_change(&error), "{error:?}");
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_file_that_changed_before_it_is_sent_arrives_in_its_new_version() {
    let world = TestBed::new().await;
    world.write("f", b"old");
    world.write("gone", b"old");
    let source = tree(&world.src());
    let mut manifest = world.manifest();
    manifest.entries.retain(|e| !e.is_dir());
    world.write("f", b"newer");
    fs::remove_file(world.src().join("gone")).unwrap();
    for to in [world.remote(&world.ticket()), world.local()] {
        let files = manifest.entries.clone();
        let packed = to.transfer_pack(&source, manifest.dirs.clone(), files).await.unwrap();
        assert_eq!(packed.files[0].clone().unwrap().bytes, 5);
        let error = packed.files[1].clone().unwrap_err();
        assert_eq!((error.class, error.errno.as_deref()), (ErrorClass::Vanished, Some("ENOENT")));
        assert_eq!(fs::read(world.dst().join("f")).unwrap(), b"newer");
    }
    assert_eq!(world.names(), ["f"]);
    world.shut_down().await;
}

#[tokio::test]
async fn an_unreachable_peer_is_reported_with_its_endpoints() {
    let world = TestBed::new().await;
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut member = world.member();
    member.data_plane_endpoints = vec![closed.local_addr().unwrap().to_string().parse().unwrap()];
    let peer = Peers::new(&[], test_pool()).peer(&member, &world.ticket(), &WriteRules::default());
    let error = Destination::Remote(peer).offer(&Manifest::default()).await.unwrap_err();
    let SendError::Unreachable { worker, attempts: attempted } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((worker.as_str(), attempted.len()), ("b", 1));
    assert!(error.to_string().contains("refused"), "{error}");
    world.shut_down().await;
}

#[tokio::test]
async fn a_request_over_a_pooled_connection_survives_the_peers_restart() {
    let world = TestBed::new().await;
    let peers = Peers::new(&[], test_pool());
    let peer =
        Destination::Remote(peers.peer(&world.member(), &world.ticket(), &WriteRules::default()));
    peer.offer(&Manifest::default()).await.unwrap();
    // The same port again, another server behind it.
    let endpoint = world.endpoint.clone();
    world.stop.cancel();
    let TestBed { dir, signer, server_task: serving, .. } = world;
    serving.await.unwrap();
    let gate = TicketVerifier::new();
    gate.update(&[signer.public_key()], NOW).unwrap();
    let roots = Roots::open(&[abs(&dir.path().join("dst"))]).unwrap();
    let (gate, roots) = (Arc::new(gate), Arc::new(roots));
    let server = DataServer::bind(&[endpoint]).await.unwrap();
    let stop = Shutdown::new();
    let serving = tokio::spawn(server.serve(gate, roots, test_pool(), stop.clone()));
    peer.offer(&Manifest::default()).await.unwrap();
    stop.cancel();
    serving.await.unwrap();
}
