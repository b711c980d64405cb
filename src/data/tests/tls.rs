//! TLS between agents of an authority, and what is refused.

use super::damage::wait_until;
use super::*;
use crate::data::nics::Nic;
use crate::identity::testing::TestAuthority;
use crate::identity::{AgentIdentity, PeerConfigs};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::tcp::OwnedReadHalf;

fn tls_with(
    identity: &Arc<AgentIdentity>,
    verifier: &Arc<TicketVerifier>,
    allows_clear: bool,
) -> Option<Arc<DataTls>> {
    Some(DataTls::new(PeerConfigs::new(identity).unwrap(), verifier.clone(), allows_clear))
}

fn tls(identity: &Arc<AgentIdentity>, verifier: &Arc<TicketVerifier>) -> Option<Arc<DataTls>> {
    tls_with(identity, verifier, false)
}

/// A test bed of which the server has this identity, and may allow clear content.
async fn test_bed_with(identity: &Arc<AgentIdentity>, allows_clear: bool) -> TestBed {
    let place = (std::env::temp_dir(), test_pool());
    let tls = |verifier: &_| tls_with(identity, verifier, allows_clear);
    TestBed::with_tls(true, STALL_TIMEOUT, place, tls).await
}

async fn test_bed(identity: &Arc<AgentIdentity>) -> TestBed {
    test_bed_with(identity, false).await
}

/// What an agent with this identity sends by; it may allow clear content.
fn peers_with(identity: &Arc<AgentIdentity>, allows_clear: bool) -> Arc<Peers> {
    let tls = tls_with(identity, &Arc::new(TicketVerifier::new()), allows_clear);
    Peers::with_tls(&[], test_pool(), tls)
}

fn peers(identity: &Arc<AgentIdentity>) -> Arc<Peers> {
    peers_with(identity, false)
}

fn destination(world: &TestBed, peers: &Arc<Peers>) -> Destination {
    Destination::Remote(peers.peer(&world.member(), &world.ticket(), &WriteRules::default()))
}

/// Both kinds of requests: the error of a document, and that of content.
async fn errors_of(world: &TestBed, to: &Destination) -> [SendError; 2] {
    world.write("f", b"secret");
    let (manifest, entry) = world.only_file();
    let offered = to.offer(&manifest).await.unwrap_err();
    let sent = to.transfer_pack(&tree(&world.src()), manifest.dirs, vec![entry]).await.unwrap_err();
    assert_eq!(world.names(), Vec::<String>::new());
    [offered, sent]
}

/// Whether the connection was made, and then refused by this code.
fn is_refused(error: &SendError, expected: &str) -> bool {
    matches!(error, SendError::Refused { status: 400..=403, code, .. } if code == expected)
}

#[tokio::test]
async fn agents_with_certificates_exchange_everything_in_tls() {
    let site = TestAuthority::new();
    let sender = peers(&site.agent("a"));
    let world = test_bed(&site.agent("b")).await;
    a_batch_arrives(&world, destination(&world, &sender)).await;
    world.shut_down().await;
    let world = test_bed(&site.agent("b")).await;
    ranges_make_a_file(&world, destination(&world, &sender)).await;
    world.shut_down().await;
}

#[tokio::test]
async fn bytes_in_tls_are_counted_by_nic_and_use_all_of_them() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    let length: u64 = 16 << 20;
    world.write("f", &content(length, 1));
    let (manifest, entry) = world.only_file();
    let ends = ["127.0.1.1", "127.0.2.1"].map(|address| Endpoint {
        iface: None,
        address: address.to_owned(),
        port: Some(0),
    });
    let roots = Arc::new(Roots::open(&[abs(&world.dst())]).unwrap());
    let server = DataServer::bind(&ends).await.unwrap();
    let (data_plane_endpoints, there) = (server.endpoints.available(), server.nics.clone());
    let server = server.with_tls(tls(&site.agent("b"), &world.gate));
    let serving = server.serve(world.gate.clone(), roots, test_pool(), world.stop.clone());
    let serving = tokio::spawn(serving);
    let member = PoolMember { data_plane_endpoints, ..world.member() };
    let nics = ends.map(|end| Nic::new(end.into()));
    let sender = tls(&site.agent("a"), &Arc::new(TicketVerifier::new()));
    let peers = Peers::with_tls(&nics, test_pool(), sender);
    let to = Destination::Remote(peers.peer(&member, &world.ticket(), &WriteRules::default()));
    let range = (0, length);
    let source = tree(&world.src());
    to.transfer_range(&source, &manifest, &entry, range, RangeMode::Whole).await.unwrap();
    // Records are a little longer than their content.
    for nic in &nics {
        assert!(nic.counter.sent() > length / 2, "{}", nic.counter.sent());
    }
    let received: u64 = there.iter().map(|nic| nic.counter.received()).sum();
    assert!(received > length, "{received}");
    world.target().publish_part_file(&entry, None).unwrap();
    assert!(fs::read(world.dst().join("f")).unwrap() == content(length, 1));
    world.shut_down().await;
    serving.await.unwrap();
}

#[tokio::test]
async fn a_ticket_is_refused_from_an_agent_that_it_was_not_given_to() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    let thief = peers(&site.agent("c"));
    for error in errors_of(&world, &destination(&world, &thief)).await {
        assert!(is_refused(&error, "worker_mismatch"), "{error:?}");
        assert!(error.to_string().contains("of worker `a`") && error.to_string().contains("`c`"));
    }
    // The worker of the ticket is not refused, until it is revoked.
    let owner = peers(&site.agent("a"));
    destination(&world, &owner).offer(&Manifest::default()).await.unwrap();
    world.gate.set_revoked_workers(&["a".parse().unwrap()]);
    let refused = destination(&world, &owner).offer(&Manifest::default()).await.unwrap_err();
    assert!(is_refused(&refused, "ticket_refused"), "{refused:?}");
    world.shut_down().await;
}

#[tokio::test]
async fn nothing_is_sent_to_another_worker_than_the_receiver_or_to_a_revoked_one() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("x")).await;
    let sender = site.agent("a");
    for error in errors_of(&world, &destination(&world, &peers(&sender))).await {
        let expected = "the certificate there is of worker `x`, and not of worker `b`";
        assert!(matches!(&error, SendError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    // A connection that is kept is not used for another worker either.
    let both = peers(&sender);
    let as_x = PoolMember { worker_id: "x".parse().unwrap(), ..world.member() };
    let to_x = Destination::Remote(both.peer(&as_x, &world.ticket(), &WriteRules::default()));
    to_x.offer(&Manifest::default()).await.unwrap();
    let error = destination(&world, &both).offer(&Manifest::default()).await.unwrap_err();
    assert!(error.to_string().contains("not of worker `b`"), "{error}");
    world.shut_down().await;

    let world = test_bed(&site.agent("b")).await;
    let verifier = Arc::new(TicketVerifier::new());
    verifier.set_revoked_workers(&["b".parse().unwrap()]);
    let careful = Peers::with_tls(&[], test_pool(), tls(&sender, &verifier));
    for error in errors_of(&world, &destination(&world, &careful)).await {
        assert!(error.to_string().contains("worker `b` was revoked"), "{error}");
    }
    world.shut_down().await;
}

#[tokio::test]
async fn agents_of_different_authorities_refuse_each_other() {
    let (site, other) = (TestAuthority::new(), TestAuthority::new());
    let world = test_bed(&site.agent("b")).await;
    for error in errors_of(&world, &destination(&world, &peers(&other.agent("a")))).await {
        assert!(error.to_string().contains("the certificate there is"), "{error}");
    }
    // One that trusts the server is refused by it.
    let both = other.agent_that_trusts("a", Some(site.authority.certificate()));
    errors_of(&world, &destination(&world, &peers(&both))).await;
    world.shut_down().await;
}

#[tokio::test]
async fn an_agent_without_a_certificate_and_one_with_tls_report_the_next_command() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    let [offered, sent] = errors_of(&world, &world.remote(&world.ticket())).await;
    assert!(is_refused(&offered, "tls_required"), "{offered:?}");
    assert!(matches!(&sent, SendError::Unreachable { .. }), "{sent:?}");
    for error in [offered, sent] {
        let error = error.to_string();
        assert!(error.contains("ctl token create --join") && error.contains("--join-token-file"));
    }
    world.shut_down().await;

    let world = TestBed::new().await;
    let encrypted = peers(&site.agent("a"));
    for error in errors_of(&world, &destination(&world, &encrypted)).await {
        let error = error.to_string();
        assert!(error.contains("the agent there does not use TLS"), "{error}");
        assert!(error.contains("ctl token create --join") && error.contains("--join-token-file"));
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_connection_outlives_its_certificate_and_new_ones_have_the_next() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    let identity = site.agent("a");
    let sender = peers(&identity);
    let to = destination(&world, &sender);
    world.write("f", b"abc");
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let send = async |to: &Destination| {
        to.transfer_pack(&source, manifest.dirs.clone(), vec![entry.clone()]).await
    };
    assert!(send(&to).await.unwrap().files[0].is_ok());
    site.issue(&identity, 61, None);
    assert!(send(&to).await.unwrap().files[0].is_ok(), "the kept connection");
    let new = peers(&identity);
    send(&destination(&world, &new)).await.unwrap_err();
    site.issue(&identity, 0, None);
    let new = peers(&identity);
    assert!(send(&destination(&world, &new)).await.unwrap().files[0].is_ok());
    world.shut_down().await;
}

/// A link to a server, which records all that goes over it, and may end one direction early, or change a text.
struct Link {
    endpoint: Endpoint,
    recorded: Arc<Mutex<Vec<u8>>>,
    changed: ChangedText,
}

/// Its first byte is replaced, as often as it comes.
type ChangedText = Arc<Mutex<Option<Vec<u8>>>>;

impl Link {
    /// So many bytes go to the server, and come from it, over each connection.
    async fn to(server: &Endpoint, (up, down): (usize, usize)) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (server, recorded) = (server.authority(), Arc::<Mutex<Vec<u8>>>::default());
        let changed = ChangedText::default();
        let (record, change) = (recorded.clone(), changed.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (log, change) = (|| record.clone(), || change.clone());
                tokio::spawn(relay(from_client, to_server, up, (log(), change())));
                tokio::spawn(relay(from_server, to_client, down, (log(), change())));
            }
        });
        Link { endpoint, recorded, changed }
    }

    fn has_seen(&self, text: &[u8]) -> bool {
        self.recorded.lock().windows(text.len()).any(|window| window == text)
    }

    fn member(&self, world: &TestBed) -> PoolMember {
        PoolMember { data_plane_endpoints: vec![self.endpoint.clone()], ..world.member() }
    }
}

/// Copies up to `left` bytes, and then ends the stream properly: as one that is complete.
async fn relay(
    mut from: OwnedReadHalf,
    mut to: impl AsyncWrite + Unpin,
    mut left: usize,
    (recorded, changed): (Arc<Mutex<Vec<u8>>>, ChangedText),
) {
    let mut room = vec![0; 64 << 10];
    while left > 0
        && let Ok(n @ 1..) = from.read(&mut room).await
    {
        let piece = &mut room[..n.min(left)];
        if let Some(text) = &*changed.lock()
            && let Some(at) = piece.windows(text.len()).position(|window| window == text)
        {
            piece[at] ^= 1;
        }
        let piece = &*piece;
        recorded.lock().extend(piece);
        if to.write_all(piece).await.is_err() {
            break;
        }
        left -= piece.len();
    }
    let _ = to.shutdown().await;
}

#[tokio::test]
async fn neither_content_nor_names_nor_tickets_are_readable_on_the_way() {
    let site = TestAuthority::new();
    let secret = b"these are the words that nobody may read";
    for encrypted in [false, true] {
        let (world, sender) = match encrypted {
            true => (test_bed(&site.agent("b")).await, peers(&site.agent("a"))),
            false => (TestBed::new().await, Peers::new(&[], test_pool())),
        };
        let link = Link::to(&world.endpoint, (usize::MAX, usize::MAX)).await;
        world.write("a-secret-name", &secret.repeat(10_000));
        let (manifest, entry) = world.only_file();
        let to = sender.peer(&link.member(&world), &world.ticket(), &WriteRules::default());
        let to = Destination::Remote(to);
        to.offer(&manifest).await.unwrap();
        to.transfer_pack(&tree(&world.src()), manifest.dirs, vec![entry]).await.unwrap();
        assert_eq!(world.names(), ["a-secret-name"]);
        assert!(link.recorded.lock().len() > secret.len() * 10_000);
        for text in [&secret[..], b"a-secret-name", world.ticket().as_bytes(), b"HTTP/1.1"] {
            // Without TLS all of it is found: the search works.
            assert_eq!(link.has_seen(text), !encrypted, "{}", String::from_utf8_lossy(text));
        }
        world.shut_down().await;
    }
}

/// Sends a large file and its range over a link between agents of which each may allow clear content.
async fn send_over_link(allows: [bool; 2], change: Option<&[u8]>) -> (TestBed, Link, bool) {
    let site = TestAuthority::new();
    let [sender, receiver] = allows;
    let world = test_bed_with(&site.agent("b"), receiver).await;
    let sender = peers_with(&site.agent("a"), sender);
    let link = Link::to(&world.endpoint, (usize::MAX, usize::MAX)).await;
    *link.changed.lock() = change.map(<[u8]>::to_vec);
    world.write("a-secret-name", &CLEAR_TEXT.repeat(20_000));
    let (manifest, entry) = world.only_file();
    let to = sender.peer(&link.member(&world), &world.ticket(), &WriteRules::default());
    let to = Destination::Remote(to);
    let source = tree(&world.src());
    let sent = to.transfer_pack(&source, manifest.dirs.clone(), vec![entry.clone()]).await;
    let is_sent = sent.is_ok_and(|report| report.files.iter().all(Result::is_ok));
    // The stream goes on with documents and further content.
    let range = (0, 1 << 20);
    let written = to.transfer_range(&source, &manifest, &entry, range, RangeMode::Whole).await;
    assert_eq!(written.is_ok(), is_sent, "{written:?}");
    (world, link, is_sent)
}

const CLEAR_TEXT: &[u8] = b"these are words that the network may read, if both ends allow that";

#[tokio::test]
async fn content_is_clear_where_both_agents_allow_it_and_nothing_else_is() {
    for allows in [[true, true], [true, false], [false, true], [false, false]] {
        let (world, link, is_sent) = send_over_link(allows, None).await;
        assert!(is_sent);
        let file = world.dst().join("a-secret-name");
        assert!(fs::read(file).unwrap() == CLEAR_TEXT.repeat(20_000));
        assert_eq!(link.has_seen(CLEAR_TEXT), allows == [true, true], "{allows:?}");
        for text in [&b"a-secret-name"[..], world.ticket().as_bytes(), b"HTTP/1.1"] {
            assert!(!link.has_seen(text), "{}", String::from_utf8_lossy(text));
        }
        world.shut_down().await;
    }
}

#[tokio::test]
async fn clear_content_that_is_changed_on_the_way_is_not_published() {
    let (world, link, is_sent) = send_over_link([true, true], Some(b"words that")).await;
    assert!(!is_sent && link.has_seen(b"vords that"));
    assert!(!world.dst().join("a-secret-name").exists());
    world.shut_down().await;
}

#[tokio::test]
async fn content_without_a_digest_and_short_content_are_always_encrypted() {
    let site = TestAuthority::new();
    let rules = WriteRules { requires_digest: false, ..WriteRules::default() };
    for (times, rules) in [(20_000, rules), (500, WriteRules::default())] {
        let world = test_bed_with(&site.agent("b"), true).await;
        let sender = peers_with(&site.agent("a"), true);
        let link = Link::to(&world.endpoint, (usize::MAX, usize::MAX)).await;
        world.write("f", &CLEAR_TEXT.repeat(times));
        let (manifest, entry) = world.only_file();
        let ticket = world.ticket_with(&rules);
        let to = Destination::Remote(sender.peer(&link.member(&world), &ticket, &rules));
        to.transfer_pack(&tree(&world.src()), manifest.dirs, vec![entry]).await.unwrap();
        assert!(fs::read(world.dst().join("f")).unwrap() == CLEAR_TEXT.repeat(times));
        assert!(!link.has_seen(CLEAR_TEXT));
        world.shut_down().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_leaves_no_short_file_and_no_success() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    world.write("f", &content(1 << 20, 1));
    let (manifest, entry) = world.only_file();
    let identity = site.agent("a");
    for cut in [2_000, 20_000, 16_406 * 20, 16_406 * 40 + 1, 1_000_000] {
        let link = Link::to(&world.endpoint, (cut, usize::MAX)).await;
        let sender = peers(&identity);
        let to = sender.peer(&link.member(&world), &world.ticket(), &WriteRules::default());
        let sent = Destination::Remote(to)
            .transfer_pack(&tree(&world.src()), manifest.dirs.clone(), vec![entry.clone()])
            .await;
        sent.unwrap_err();
        wait_until("nothing is left of it", || world.names().is_empty()).await;
    }
    world.shut_down().await;
}

#[tokio::test]
async fn connections_without_a_handshake_are_closed_or_refused() {
    let site = TestAuthority::new();
    let world = test_bed(&site.agent("b")).await;
    for bytes in [&b"\x16\x03\x01\x02\x00garbage that is no handshake"[..], b"\x16", b""] {
        let mut stream = TcpStream::connect(world.endpoint.authority()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        assert!(!reply.starts_with(b"HTTP"));
    }
    let plain = world.post("/v1/offer", &world.ticket(), b"").await;
    assert!(plain.starts_with("HTTP/1.1 400") && plain.contains("tls_required"), "{plain}");
    world.shut_down().await;
}
