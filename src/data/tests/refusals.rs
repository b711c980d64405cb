//! Every verb with every reason for a refusal, from one table. Nothing is written by any of them.

use super::*;
use crate::data::control_messages::{BlockDigestsRequest, CleanUpRequest, RootCheckRequest};
use crate::data::handlers::DOCUMENT_PATHS;
use crate::data::protocol::{BLOCK_DIGESTS, CLEAN_UP, OFFER, PRUNE, ROOT_CHECK};
use crate::data::prune_messages::PruneRequest;
use crate::fs::RootKind;
use crate::util::boot::boot_id;
use crate::wire::content::BLOCK_BYTES;
use crate::wire::options::FilterSpec;
use crate::wire::ticket::{CLOCK_LEEWAY_SECONDS, MAX_TICKET_SECONDS, Verb};
use crate::wire::worker::boot_and_root;
use crate::wire::worker::{EndedCursor, EndedSyncs};

/// Each verb with a body that does something where it is let in.
fn verbs() -> [(&'static str, Vec<u8>); 7] {
    let dir = Entry { kind: EntryKind::Dir, ..file_entry("planted", 3) };
    let offer = Manifest { dirs: vec![], entries: vec![dir] }.encode();
    let manifest = Manifest { dirs: vec![], entries: vec![file_entry("planted", BLOCK_BYTES)] };
    let digest =
        BlockDigestsRequest { manifest, offset: 0, length: BLOCK_BYTES, block_bytes: BLOCK_BYTES };
    let prune = PruneRequest {
        dir: RelPath::root(),
        after: None,
        through: None,
        names: vec![],
        replacing_dirs: vec![],
        filter: FilterSpec::default(),
        delete_excluded: false,
        apply: true,
        dirs: vec![],
        resume: None,
    };
    let (pack, range) = planted_bodies();
    [
        (OFFER, offer),
        (BLOCK_DIGESTS, minicbor::to_vec(&digest).unwrap()),
        (PRUNE, minicbor::to_vec(&prune).unwrap()),
        (CLEAN_UP, minicbor::to_vec(CleanUpRequest::default()).unwrap()),
        (
            ROOT_CHECK,
            minicbor::to_vec(RootCheckRequest { source_kind: RootKind::Directory }).unwrap(),
        ),
        (PACK, pack),
        (RANGE, range),
    ]
}

/// Status and code of a refusal, or nothing where the request is accepted.
type Refusal = Option<(u16, &'static str)>;

const TICKET_REFUSED: Refusal = Some((403, "ticket_refused"));
const NO_DELETION: Refusal = Some((403, "deletion_not_allowed"));

/// Of the seven verbs, in order.
fn all(refusal: Refusal) -> [Refusal; 7] {
    [refusal; 7]
}

#[tokio::test]
async fn every_refused_request_has_its_code_and_changes_nothing() {
    let documents: Vec<&str> =
        verbs().iter().map(|(verb, _)| *verb).take(DOCUMENT_PATHS.len()).collect();
    assert_eq!(documents, DOCUMENT_PATHS, "a verb without a row");
    let world = TestBed::new().await;
    fs::write(world.dst().join("kept"), b"k").unwrap();
    let stranger = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
    let mirror = WriteRules { delete: true, ..WriteRules::default() };
    let claims = world.claims_with(&mirror);
    let sign = |change: &dyn Fn(&mut Claims)| {
        let mut claims = claims.clone();
        change(&mut claims);
        world.signer.sign(&claims)
    };
    let root = |path: PathBuf| path.as_os_str().as_bytes().to_vec();
    let delete = |receiver: &str| {
        let receiver = receiver.to_owned();
        Some(PrunePermit::Delete(DeleteGrant {
            grant_id: 1,
            max_entries: 9,
            incarnation: receiver,
        }))
    };
    let dry = Some((403, "dry_run"));
    let too_long = Some((401, "no_ticket"));
    let forged = {
        let key = sign(&|_| ()).split_once('.').map(|(key, _)| key.to_owned()).unwrap();
        format!("{key}.{}", stranger.sign(&claims).split_once('.').unwrap().1)
    };
    let table: [(&str, String, [Refusal; 7]); 17] = [
        ("expired", sign(&|c| c.expires = NOW - 3_600), all(TICKET_REFUSED)),
        (
            "just expired",
            sign(&|c| c.expires = NOW - CLOCK_LEEWAY_SECONDS - 1),
            all(TICKET_REFUSED),
        ),
        ("from long ago", sign(&|c| c.expires = i64::MIN / 2), all(TICKET_REFUSED)),
        ("signed with an unknown key", stranger.sign(&claims), all(TICKET_REFUSED)),
        ("forged", forged, all(TICKET_REFUSED)),
        (
            "for longer than the master signs one",
            sign(&|c| c.expires = NOW + MAX_TICKET_SECONDS + 100),
            all(TICKET_REFUSED),
        ),
        ("for no request", sign(&|c| c.verbs = Verbs::default()), all(TICKET_REFUSED)),
        (
            "for other workers",
            sign(&|c| {
                c.receivers.clear();
                c.allow_receiver(&"c".parse().unwrap());
            }),
            all(TICKET_REFUSED),
        ),
        ("broken", "nonsense".to_owned(), all(TICKET_REFUSED)),
        ("empty", String::new(), all(TICKET_REFUSED)),
        (
            "longer than any",
            "x".repeat(100_000),
            [
                too_long,
                too_long,
                too_long,
                too_long,
                too_long,
                Some((400, "invalid_frame")),
                Some((400, "invalid_frame")),
            ],
        ),
        (
            "of another root",
            sign(&|c| c.destination = root(world.dir.path().join("other"))),
            all(TICKET_REFUSED),
        ),
        (
            "of a root that only begins alike",
            sign(&|c| c.destination = root(world.dir.path().join("dstx"))),
            all(TICKET_REFUSED),
        ),
        ("to delete elsewhere", sign(&|c| c.prune = delete("another process")), all(NO_DELETION)),
        (
            "of a task that does not prune",
            sign(&|c| c.prune = None),
            [None, None, NO_DELETION, None, None, None, None],
        ),
        (
            "of a task that only counts",
            sign(&|c| c.prune = Some(PrunePermit::Count)),
            [None, None, NO_DELETION, None, None, None, None],
        ),
        (
            "of a dry run",
            sign(&|c| (c.rules.dry_run, c.prune) = (true, Some(PrunePermit::Count))),
            [None, None, dry, dry, None, dry, dry],
        ),
    ];
    for (reason, ticket, refusals) in &table {
        for ((verb, body), refusal) in verbs().iter().zip(refusals) {
            // What is let in is tested elsewhere, and would change something.
            let Some((status, code)) = refusal else { continue };
            let reply = world.post(verb, ticket, body).await;
            let what = format!("{verb} with a ticket {reason}: {reply}");
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{what}");
            assert!(reply.contains(&format!("\"{code}\"")), "{what}");
        }
        assert_eq!(world.names(), ["kept"], "{reason}");
    }
    for (verb, body) in &verbs()[..DOCUMENT_PATHS.len()] {
        let head = format!("POST {verb} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        let mut stream = TcpStream::connect(world.endpoint.authority()).await.unwrap();
        let head = format!("{head}content-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        let reply = String::from_utf8_lossy(&reply);
        assert!(
            reply.starts_with("HTTP/1.1 401") && reply.contains("no_ticket"),
            "{verb}: {reply}"
        );
    }
    // Within the leeway for clocks and queues a ticket holds.
    let late = sign(&|c| c.expires = NOW - CLOCK_LEEWAY_SECONDS / 2);
    let (verb, body) = &verbs()[1];
    assert!(world.post(verb, &late, body).await.starts_with("HTTP/1.1 200"));
    assert_eq!(world.names(), ["kept"]);
    world.shut_down().await;
}

/// The requests of all tasks: what a ticket of one of them allows is refused to none, and every other request is.
#[tokio::test]
async fn a_ticket_allows_only_the_requests_that_its_task_needs() {
    use Verb::{BlockDigests, CleanUp, Offer, Pack, Prune, Range, RootCheck};
    // The body of an accepted range has no end: its outcome is of no interest here.
    let stall = Duration::from_secs(1);
    let world = TestBed::with_stall_timeout(stall, std::env::temp_dir(), test_pool()).await;
    let order = [Offer, BlockDigests, Prune, CleanUp, RootCheck, Pack, Range];
    let mirror = WriteRules { delete: true, ..WriteRules::default() };
    for allowed in order {
        let claims = Claims { verbs: Verbs::of(&[allowed]), ..world.claims_with(&mirror) };
        let ticket = world.signer.sign(&claims);
        for ((verb, body), other) in verbs().iter().zip(order) {
            let reply = world.post(verb, &ticket, body).await;
            let is_refused = reply.contains("its task needs no such request");
            assert_eq!(
                is_refused,
                other != allowed,
                "{verb} with a ticket for {allowed:?}: {reply}"
            );
            assert_eq!(reply.starts_with("HTTP/1.1 403"), is_refused, "{verb}: {reply}");
        }
    }
    world.shut_down().await;
}

/// Also what is being received ends: a peer could send on for ever.
#[tokio::test]
async fn requests_and_streams_of_an_ended_sync_are_refused() {
    let world = TestBed::new().await;
    let entry = file_entry("f", 3);
    let ask = ContentRequest { verb: PACK.to_owned(), ticket: world.ticket() };
    let mut stream = world.stream().await;
    let begin = [&frame::ask(&ask)[..], &frame::dirs(vec![]), &frame::file(&entry)].concat();
    stream.write_all(&begin).await.unwrap();
    // The file has been begun.
    while world.requests.active() == 0 {
        tokio::task::yield_now().await;
    }
    let cursor = EndedCursor { term: 1, position: 1 };
    world.gate.add_ended_syncs(&EndedSyncs { cursor, syncs: vec![SyncNo(7)] });
    let digest: Digest = blake3::hash(b"abc").into();
    let rest =
        [&frame::content_header(3)[..], b"abc", &frame::digest(&digest), &frame::end(1)].concat();
    stream.write_all(&rest).await.unwrap();
    let (kind, document) = streams::read_reply(&mut stream).await;
    let document = String::from_utf8_lossy(&document).into_owned();
    assert!(kind == frame::REFUSAL && document.contains("its sync has ended"), "{document}");
    for (verb, body) in verbs() {
        let reply = world.post(verb, &world.ticket(), &body).await;
        assert!(
            reply.starts_with("HTTP/1.1 403") && reply.contains("has ended"),
            "{verb}: {reply}"
        );
    }
    let clean_up = Claims { verbs: Verbs::of(&[Verb::CleanUp]), ..world.claims(&world.dst()) };
    let (verb, body) = &verbs()[3];
    let reply = world.post(verb, &world.signer.sign(&clean_up), body).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

#[tokio::test]
async fn every_request_is_refused_before_the_masters_key_is_known() {
    let world = TestBed::without_key().await;
    for (verb, body) in verbs() {
        let reply = world.post(verb, &world.ticket(), &body).await;
        assert!(
            reply.starts_with("HTTP/1.1 503") && reply.contains("not_ready"),
            "{verb}: {reply}"
        );
    }
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

#[tokio::test]
async fn requests_with_invalid_tickets_write_nothing() {
    let world = TestBed::new().await;
    let stranger = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
    let claims = world.claims(&world.dst());
    let outside = world.dir.path().join("dstx");
    let tickets = [
        (world.signer.sign(&world.claims(&world.dir.path().join("other"))), 403),
        (world.signer.sign(&world.claims(&outside)), 403),
        (world.signer.sign(&Claims { expires: NOW - 3_600, ..claims.clone() }), 403),
        (stranger.sign(&claims), 403),
        ("nonsense".to_owned(), 403),
        ("x".repeat(100_000), 401),
    ];
    let entry = file_entry("planted", 3);
    let manifest =
        Manifest { dirs: vec![], entries: vec![Entry { kind: EntryKind::Dir, ..entry.clone() }] };
    let mut pack = frame::dirs(vec![]);
    pack.extend(file_frames(&entry, b"abc", &blake3::hash(b"abc").into()));
    pack.extend(frame::end(1));
    for (ticket, status) in &tickets {
        for (path, body) in [("/v1/offer", manifest.encode()), ("/v1/pack", pack.clone())] {
            let reply = world.post(path, ticket, &body).await;
            // An ask that is longer than any ticket is not read.
            let status = if path == PACK && *status == 401 { 400 } else { *status };
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {reply}");
        }
    }
    let source = tree(&world.src());
    world.write("planted", b"abc");
    let refused = world.remote(&tickets[3].0).transfer_pack(&source, vec![], vec![entry]).await;
    assert!(matches!(refused, Err(SendError::Refused { status: 403, .. })), "{refused:?}");
    assert_eq!(names(world.dir.path()), ["dst", "other", "src", "src/planted"]);
    world.shut_down().await;
}

/// The agent has opened another directory since the master signed the ticket: nothing that is asked for is done there,
/// and nothing there counts as equal.
#[tokio::test]
async fn a_ticket_for_another_root_at_the_same_path_allows_nothing() {
    let world = TestBed::new().await;
    world.write("planted", b"abc");
    fs::write(world.dst().join("extra"), "x").unwrap();
    let mut claims = world.claims(&world.dst());
    claims.restrict_to_root(&"b".parse().unwrap(), "another root");
    claims.restrict_to_root(&"c".parse().unwrap(), &tree(&world.dst()).root_id());
    let to = world.remote(&world.signer.sign(&claims));
    let source = tree(&world.src());
    let entry = source.entry(&RelPath::new("planted").unwrap()).unwrap();
    let manifest = Manifest { dirs: vec![], entries: vec![entry.clone()] };
    let gone = |what: &str, error: &EntryError| {
        assert_eq!(error.class, ErrorClass::StorageGone, "{what}: {error:?}");
        assert!(error.message.contains("after the task was assigned"), "{what}: {error:?}");
    };
    let offered = to.offer(&manifest).await.unwrap();
    gone("offer", offered.results[0].as_ref().unwrap_err());
    let packed = to.transfer_pack(&source, vec![], vec![entry.clone()]).await.unwrap();
    gone("pack", packed.files[0].as_ref().unwrap_err());
    for mode in [RangeMode::Whole, RangeMode::Delta] {
        let sent = to.transfer_range(&source, &manifest, &entry, (0, 3), mode).await;
        gone("range", &range_error(sent));
    }
    gone("clean-up", &to.request(CleanUpRequest::default()).await.unwrap().unwrap_err());
    assert_eq!(names(world.dir.path()), ["dst", "dst/extra", "other", "src", "src/planted"]);
    world.shut_down().await;
}

/// Another kernel may have given the number of this root to another directory.
#[tokio::test]
async fn a_ticket_for_the_root_of_another_boot_allows_nothing() {
    let world = TestBed::new().await;
    world.write("planted", b"abc");
    let source = tree(&world.src());
    let entry = source.entry(&RelPath::new("planted").unwrap()).unwrap();
    let number = RootDir::open(&abs(&world.dst())).unwrap().id();
    let here = boot_and_root(boot_id().unwrap(), &number);
    for (root, allowed) in
        [(boot_and_root("an earlier boot", &number), false), (number, false), (here, true)]
    {
        let mut claims = world.claims(&world.dst());
        claims.restrict_to_root(&"b".parse().unwrap(), &root);
        let to = world.remote(&world.signer.sign(&claims));
        let packed = to.transfer_pack(&source, vec![], vec![entry.clone()]).await.unwrap();
        let class = packed.files[0].as_ref().err().map(|error| error.class);
        assert_eq!(class, (!allowed).then_some(ErrorClass::StorageGone), "{root}");
        assert_eq!(world.dst().join("planted").exists(), allowed, "{root}");
    }
    world.shut_down().await;
}
