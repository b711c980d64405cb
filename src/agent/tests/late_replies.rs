//! Replies of the master that are late: a lease counts from when its request was sent.

use crate::agent::concurrency::ConcurrencyController;
use crate::agent::corruption_count::CorruptionCounts;
use crate::agent::heartbeat::Heartbeater;
use crate::agent::job::AgentContext;
use crate::agent::lease_table::LEASE_MARGIN;
use crate::agent::slots::Slots;
use crate::agent::testing::{abs, agent_config, assignment};
use crate::client::{ClientOptions, MasterClient};
use crate::data::ticket_verifier::boottime;
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
const REPLY_DELAY: Duration = Duration::from_millis(200);
const LEASE: Duration = Duration::from_secs(30);

/// When each request arrived, by [`boottime`].
type Arrivals = Arc<Mutex<Vec<Duration>>>;

async fn reply_late(State(arrivals): State<Arrivals>, uri: Uri) -> Response {
    arrivals.lock().push(boottime());
    tokio::time::sleep(REPLY_DELAY).await;
    if uri.path().ends_with("/assignment") {
        let lease_seconds = LEASE.as_secs();
        return axum::Json(Assignment { lease_seconds, ..assignment(TaskSpec::Flush) })
            .into_response();
    }
    let reply = HeartbeatReply {
        status: "ok".into(),
        ticket_keys: Vec::new(),
        tickets: Default::default(),
        ended_syncs: None,
        time: None,
        revoked_assignments: vec![],
        unresponsive_workers: vec![],
        bwlimits: Default::default(),
        next_heartbeat_ms: None,
        storage_checks: Vec::new(),
        refused_paths: Vec::new(),
        authorities: Vec::new(),
        revoked_workers: Vec::new(),
    };
    axum::Json(reply).into_response()
}

/// The slots of an agent and its master, which answers late.
struct LateReplyFixture {
    slots: Slots,
    arrivals: Arrivals,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl LateReplyFixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arrivals = Arrivals::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(reply_late).with_state(arrivals.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = agent_config(vec![abs(dir.path())], vec![]);
        let cx = Arc::new(AgentContext {
            worker_id: config.worker_id.clone(),
            lease_table: Arc::default(),
            limits: Default::default(),
            corruption_counts: CorruptionCounts::default(),
            roots: Arc::new(Roots::open(&[abs(dir.path())]).unwrap()),
            ticket_verifier: Arc::new(TicketVerifier::new()),
            peers: Peers::new(&[], BufferPools::new(64 << 20).sending),
            endpoints: Arc::default(),
            requests: Arc::new(crate::data::ActiveRequests::new(1)),
            direct_io: false,
        });
        let slots = Slots {
            cx: cx.clone(),
            client: MasterClient::new(vec![url], ClientOptions::default()).unwrap(),
            heartbeater: Heartbeater::new(config, "1".into(), cx, Default::default()),
            shutdown: Shutdown::new(),
            next_poll_number: AtomicU64::new(0),
            concurrency: ConcurrencyController::new(1, 1, 1),
        };
        LateReplyFixture { slots, arrivals, serving, _dir: dir }
    }

    /// When the only request arrived.
    fn arrival_time(&self) -> Duration {
        let arrivals = self.arrivals.lock();
        assert_eq!(arrivals.len(), 1, "one request");
        arrivals[0]
    }
}

#[tokio::test]
async fn a_late_renewal_counts_from_when_the_heartbeat_was_sent() {
    let late = LateReplyFixture::new().await;
    let held = Assignment { lease_seconds: LEASE.as_secs(), ..assignment(TaskSpec::Flush) };
    // Some of it is over; enough is left for a reply that is later still.
    let taken = boottime().saturating_sub(LEASE_MARGIN);
    let grip = late.slots.cx.lease_table.insert(&held, taken).unwrap();
    let before = boottime();
    late.slots.heartbeater.send(&late.slots.client).await.unwrap();
    // It was sent in between.
    let (first, last) = (before + LEASE - LEASE_MARGIN, late.arrival_time() + LEASE - LEASE_MARGIN);
    let instant = Duration::from_millis(1);
    assert!(!grip.deadline().is_over_at(first.saturating_sub(instant)), "it is renewed");
    assert!(grip.deadline().is_over_at(last), "it counts from the reply");
    late.serving.abort();
}

#[tokio::test]
async fn a_late_assignment_counts_from_when_the_poll_was_sent() {
    let late = LateReplyFixture::new().await;
    let before = boottime();
    let (_, since) = late.slots.poll_for_work("1-1").await.unwrap();
    assert!(before <= since && since <= late.arrival_time(), "it counts from the reply");
    late.serving.abort();
}
