//! Peers with a suspended process: the kernel accepts connections for them, and no request is answered. Time is
//! virtual here.

use super::*;
use crate::data::routes::Routes;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// The longest that an offer to such a peer may take, with the second try of the same task.
const MAX_OFFER_TIME: Duration = Duration::from_secs(25);

/// What listens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnresponsiveKind {
    /// Connections stay in the kernel's backlog.
    NeverAccepts,
    /// Connections are accepted, and nothing is ever answered.
    NeverAnswers,
    /// Probes are answered, and nothing else.
    AnswersProbes,
}

/// A peer of that kind, as a pool lists it. It ends with the runtime.
async fn member(kind: UnresponsiveKind) -> PoolMember {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        if kind == UnresponsiveKind::NeverAccepts {
            return std::future::pending().await;
        }
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            match kind {
                UnresponsiveKind::AnswersProbes => drop(tokio::spawn(answer_probes(stream))),
                _ => kept.push(stream),
            }
        }
    });
    PoolMember {
        worker_id: "frozen".parse().unwrap(),
        status: WorkerStatus::Idle,
        storage_paths: vec![],
        data_plane_endpoints: vec![endpoint],
    }
}

async fn answer_probes(mut stream: TcpStream) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            if !head.starts_with(b"GET ") {
                return std::future::pending().await;
            }
            head.clear();
            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(ok).await.unwrap();
        }
    }
}

/// Whether every route that was tried is marked as one that does not work.
fn all_are_disabled(routes: &Routes) -> bool {
    let state = routes.state();
    !state.routes.is_empty() && state.routes.values().all(|route| route.outage.is_some())
}

#[tokio::test(start_paused = true)]
async fn an_offer_to_an_unresponsive_peer_fails_in_time_and_its_route_stays_disabled() {
    for kind in [UnresponsiveKind::NeverAccepts, UnresponsiveKind::NeverAnswers] {
        let (member, peers) = (member(kind).await, Peers::new(&[], test_pool()));
        let rules = WriteRules::default();
        let peer = || Destination::Remote(peers.peer(&member, "ticket", &rules));
        let started = Instant::now();
        let error = peer().offer(&Manifest::default()).await.unwrap_err();
        assert!(matches!(error, SendError::ConnectionFailed { .. }), "{kind:?}: {error}");
        assert!(all_are_disabled(&peers.routes), "{kind:?}");
        // The second try of the same task: a connection that is only accepted proves nothing.
        let error = peer().offer(&Manifest::default()).await.unwrap_err();
        assert!(matches!(error, SendError::Unreachable { .. }), "{kind:?}: {error}");
        assert!(all_are_disabled(&peers.routes), "{kind:?}");
        assert!(started.elapsed() <= MAX_OFFER_TIME, "{kind:?}: {:?}", started.elapsed());
        // Content asks first.
        let source = tempfile::tempdir().unwrap();
        let error = peer().transfer_pack(&tree(source.path()), vec![], vec![]).await.unwrap_err();
        assert!(matches!(error, SendError::Unreachable { .. }), "{kind:?}: {error}");
        assert!(all_are_disabled(&peers.routes), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_the_master_reports_silent_fails_at_once_unless_it_answers_probes() {
    for (kind, silent, within) in [
        (UnresponsiveKind::NeverAnswers, true, Some(3)),
        (UnresponsiveKind::NeverAccepts, true, Some(3)),
        // A receiver may be busy for long; the master may be the one that is cut off.
        (UnresponsiveKind::AnswersProbes, true, None),
        (UnresponsiveKind::AnswersProbes, false, None),
    ] {
        let (member, peers) = (member(kind).await, Peers::new(&[], test_pool()));
        let rules = WriteRules::default();
        let peer = Destination::Remote(peers.peer(&member, "ticket", &rules));
        let (manifest, started) = (Manifest::default(), Instant::now());
        let offer = async { peer.offer(&manifest).await.unwrap_err() };
        let news = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            peers.set_silent(Vec::from_iter(silent.then(|| member.worker_id.clone())));
            std::future::pending::<()>().await
        };
        let ended = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! {
                error = offer => error,
                () = news => unreachable!("it never ends"),
            }
        });
        match (ended.await, within) {
            (Ok(error), Some(seconds)) => {
                assert!(matches!(error, SendError::ConnectionFailed { .. }), "{kind:?}: {error}");
                let limit = Duration::from_secs(1 + seconds);
                assert!(started.elapsed() <= limit, "{kind:?}: {:?}", started.elapsed());
            }
            (Err(_), None) => {}
            (ended, _) => panic!("{kind:?}, silent {silent}: {ended:?}"),
        }
    }
}

#[tokio::test]
async fn an_answered_request_enables_its_route() {
    let world = TestBed::new().await;
    let peers = Peers::new(&[], test_pool());
    let rules = WriteRules::default();
    let ticket = world.ticket();
    let peer = || Destination::Remote(peers.peer(&world.member(), &ticket, &rules));
    peer().offer(&Manifest::default()).await.unwrap();
    let key = peers.routes.state().routes.keys().next().unwrap().clone();
    peers.routes.disable_until_probed(&key, "for the test".to_owned());
    assert!(all_are_disabled(&peers.routes));
    peer().offer(&Manifest::default()).await.unwrap();
    assert!(!all_are_disabled(&peers.routes));
    // A refusal is an answer too.
    peers.routes.disable_until_probed(&key, "for the test".to_owned());
    let refused = Destination::Remote(peers.peer(&world.member(), "no ticket", &rules));
    assert!(matches!(refused.offer(&Manifest::default()).await, Err(SendError::Refused { .. })));
    assert!(!all_are_disabled(&peers.routes));
    world.shut_down().await;
}
