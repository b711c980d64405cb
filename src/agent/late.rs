//! Replies of the master that are late: a lease counts from when its request was sent.

use super::damages::Damages;
use super::execute::Context;
use super::hand::{Hand, MARGIN};
use super::heartbeat::Heart;
use super::slots::Slots;
use super::testing::{abs, assignment, config};
use super::tune::Tuning;
use crate::client::{ClientOptions, MasterClient};
use crate::data::gate::boottime;
use crate::data::{BufferPools, Peers, Roots, TicketVerifier};
use crate::util::shutdown::Shutdown;
use crate::wire::task::{Assignment, TaskSpec};
use crate::wire::worker::HeartbeatReply;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How late each reply is.
const LATE: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_secs(30);

/// When each request arrived, by [`boottime`].
type Arrivals = Arc<Mutex<Vec<Duration>>>;

async fn answer(State(arrivals): State<Arrivals>, uri: Uri) -> Response {
    arrivals.lock().push(boottime());
    tokio::time::sleep(LATE).await;
    if uri.path().ends_with("/assignment") {
        let lease_seconds = LEASE.as_secs();
        return axum::Json(Assignment { lease_seconds, ..assignment(TaskSpec::Flush) })
            .into_response();
    }
    let reply = HeartbeatReply {
        status: "ok".into(),
        ticket_key: None,
        time: None,
        revoked_assignments: vec![],
        unresponsive_workers: vec![],
        bwlimits: Default::default(),
        next_heartbeat_ms: None,
        protocol: None,
    };
    axum::Json(reply).into_response()
}

/// The slots of an agent and its master, which answers late.
struct Late {
    slots: Slots,
    arrivals: Arrivals,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Late {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arrivals = Arrivals::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(answer).with_state(arrivals.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = config(vec![abs(dir.path())], vec![]);
        let roots = Arc::new(Roots::open(&config.storage_paths).unwrap());
        let peers = Peers::new(&[], BufferPools::new(64 << 20).sending);
        let (gate, hand) = (Arc::new(TicketVerifier::new()), Arc::new(Hand::default()));
        let cx = Context {
            worker: config.worker_id.clone(),
            limits: Default::default(),
            damages: Damages::default(),
            roots: roots.clone(),
            gate: gate.clone(),
            peers: peers.clone(),
            direct_io: false,
        };
        let seen = (hand.clone(), cx.limits.clone(), peers);
        let requests = Arc::new(crate::data::ActiveRequests::new(1));
        let heart = Heart::new(config, Arc::default(), roots, (gate, "1".into()), seen, requests);
        let slots = Slots {
            cx,
            client: Arc::new(MasterClient::new(vec![url], ClientOptions::default()).unwrap()),
            heart: Arc::new(heart),
            hand,
            stop: Shutdown::new(),
            polls: AtomicU64::new(0),
            tuning: Tuning::new(1, 1, 1),
        };
        Late { slots, arrivals, serving, _dir: dir }
    }

    /// When the only request arrived.
    fn arrived(&self) -> Duration {
        let arrivals = self.arrivals.lock();
        assert_eq!(arrivals.len(), 1, "one request");
        arrivals[0]
    }
}

#[tokio::test]
async fn a_renewal_that_is_answered_late_counts_from_when_it_was_sent() {
    let late = Late::new().await;
    let held = Assignment { lease_seconds: LEASE.as_secs(), ..assignment(TaskSpec::Flush) };
    // Some of it is over; enough is left for a reply that is later still.
    let taken = boottime().saturating_sub(MARGIN);
    let grip = late.slots.hand.take(&held, taken).unwrap();
    let before = boottime();
    late.slots.heart.beat(&late.slots.client).await.unwrap();
    // It was sent in between.
    let (first, last) = (before + LEASE - MARGIN, late.arrived() + LEASE - MARGIN);
    let instant = Duration::from_millis(1);
    assert!(!grip.until().is_over_at(first.saturating_sub(instant)), "it is renewed");
    assert!(grip.until().is_over_at(last), "it counts from the reply");
    late.serving.abort();
}

#[tokio::test]
async fn an_assignment_that_comes_late_counts_from_when_it_was_asked_for() {
    let late = Late::new().await;
    let before = boottime();
    let (_, since) = late.slots.poll("1-1").await.unwrap();
    assert!(before <= since && since <= late.arrived(), "it counts from the reply");
    late.serving.abort();
}
