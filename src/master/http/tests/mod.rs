//! The routes over real sockets, with a scripted actor.

mod access;
mod addressing;
mod agents;
mod api;
mod documented_requests;
mod hostile;
mod parsers;
mod storages;
mod tokens;

use super::{ApiListener, HttpLimits, serve};
use crate::config::{Env, load_master};
use crate::master::channel::{ActorHealth, ActorRequest, BlobReader};
use crate::master::handle::MasterHandle;
use crate::scheduler::{Event, RecordLogInfo, Reply, SyncPage, SyncQuery};
use crate::store::Spool;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::storage::StorageList;
use crate::wire::sync::{ReassignReply, SubmitReply, SyncProgress, SyncState};
use crate::wire::task::{PageAction, PageReply, ResultOutcome, ResultReply};
use crate::wire::testing::{storage_view, sync_progress, worker_view};
use crate::wire::worker::{
    DrainReply, ForgetWorkerReply, HeartbeatReply, WorkerList, WorkerState, WorkerView,
};
use crate::wire::{AbsPath, RequestId, SyncNo};
use jiff::Timestamp;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server with an actor that sends scripted replies and records the events.
struct TestServer {
    addr: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
    /// Requests without a scripted reply.
    unanswered: mpsc::UnboundedReceiver<ActorRequest>,
    health: watch::Sender<ActorHealth>,
    spool: Spool,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            max_connections: 32_768,
            max_unverified_connections: 2_048,
            max_total_body_bytes: 256 << 20,
            max_poll_wait: Duration::from_secs(60),
            path_secret: None,
            advertise_url: None,
            drain_timeout: Duration::from_secs(10),
            config: watch::channel(load_master(None, &Env::empty()).unwrap().config).1,
            authority: None,
        }
    }
}

async fn start_server() -> TestServer {
    start_server_with(HttpLimits::default()).await
}

async fn start_server_with(limits: HttpLimits) -> TestServer {
    let (requests, mut queue) = mpsc::channel::<ActorRequest>(64);
    let (health, health_receiver) = watch::channel(Ok(()));
    let (record_event, events) = mpsc::unbounded_channel();
    let (leave_unanswered, unanswered) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = queue.recv().await {
            let _ = record_event.send(request.event.clone());
            match scripted_reply(&request.event) {
                Some(reply) => drop(request.reply.send(reply)),
                None => drop(leave_unanswered.send(request)),
            }
        }
    });
    let blobs: BlobReader = Arc::new(|key| {
        Box::pin(async move { Ok((key == "m/1").then(|| b"\xff manifest".to_vec())) })
    });
    let spool = Spool::temporary();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let listeners = vec![ApiListener { listener, tls: None }];
    let shutdown = CancellationToken::new();
    let handle = MasterHandle::for_actor(requests, health_receiver, blobs, spool.clone());
    let server = tokio::spawn(serve(listeners, handle, limits, shutdown.clone()));
    TestServer { addr, events, unanswered, health, spool, shutdown, server }
}

fn scripted_reply(event: &Event) -> Option<Reply> {
    let refused = |code| Some(Reply::Refused(Box::new(Problem::new(code, "no"))));
    let gone = |id: &RequestId| id.as_str() == "gone";
    Some(match event {
        Event::Submit { request, .. } => match &request.request_id {
            Some(id) if id.as_str() == "taken" => return refused(ProblemCode::SyncExists),
            id => {
                let id = id.clone().unwrap_or_else(|| "made".parse().unwrap());
                let status_url = format!("sync/{id}");
                Reply::Submitted(SubmitReply {
                    status: "queued".into(),
                    request_id: id,
                    status_url,
                    note: None,
                    warnings: Vec::new(),
                })
            }
        },
        Event::GetProgress(id)
        | Event::CancelSync(id)
        | Event::DeleteSync(id)
        | Event::PauseSync(id)
        | Event::ResumeSync(id)
        | Event::ChangeSync { id, .. }
            if gone(id) =>
        {
            return refused(ProblemCode::SyncNotFound);
        }
        Event::GetProgress(id) if id.as_str() == "held" => return None,
        Event::ChangeSync { id, change } => Reply::Progress(Box::new(SyncProgress {
            bwlimit: change.bwlimit.flatten(),
            ..progress(id.as_str(), SyncState::Progress)
        })),
        Event::RetrySync { id, .. } if gone(id) => return refused(ProblemCode::SyncNotFound),
        Event::RetrySync { .. } => Reply::Submitted(SubmitReply {
            status: "queued".into(),
            request_id: "again".parse().unwrap(),
            status_url: "sync/again".into(),
            note: None,
            warnings: Vec::new(),
        }),
        Event::PauseSync(id) => Reply::Progress(Box::new(progress(id.as_str(), SyncState::Paused))),
        Event::GetProgress(id) | Event::CancelSync(id) | Event::ResumeSync(id) => {
            Reply::Progress(Box::new(progress(id.as_str(), SyncState::Progress)))
        }
        Event::ListSyncs(query) => Reply::Syncs(sync_page(query)),
        Event::GetFileRecords(id) if gone(id) => return refused(ProblemCode::SyncNotFound),
        Event::GetFileRecords(id) => Reply::FileRecords(Box::new(RecordLogInfo {
            sync: SyncNo(1),
            id: id.clone(),
            // The id contains the committed length.
            length: id.as_str().trim_start_matches("list-").parse().unwrap_or(0),
            readback_from: None,
            error: None,
            is_recorded: id.as_str() != "plain",
            has_digests: id.as_str() != "plain",
            has_ended: id.as_str() != "running",
            destination: AbsPath::new("/data/dest").unwrap(),
            failures: Default::default(),
        })),
        Event::DeleteSync(_) => Reply::Deleted { cancelled: false },
        Event::Heartbeat(_) => Reply::Heartbeat(Box::new(HeartbeatReply {
            status: "ok".into(),
            ticket_keys: Vec::new(),
            tickets: Default::default(),
            ended_syncs: None,
            time: None,
            revoked_assignments: vec![],
            unresponsive_workers: Vec::new(),
            bwlimits: Default::default(),
            next_heartbeat_ms: None,
            storage_checks: Vec::new(),
            refused_paths: Vec::new(),
            authorities: Vec::new(),
            revoked_workers: Vec::new(),
        })),
        Event::ListWorkers => Reply::Workers(WorkerList {
            active: vec![worker("up")],
            inactive: vec![worker("down")],
            revoked: Vec::new(),
        }),
        Event::ListStorages => {
            Reply::Storages(StorageList { storages: vec![storage_view("s-1", "/data")] })
        }
        Event::GetStorage(id) if id.as_str() == "gone" => {
            return refused(ProblemCode::StorageNotFound);
        }
        Event::GetStorage(id) => Reply::Storage(Box::new(storage_view(id.as_str(), "/data"))),
        Event::DrainWorker { worker: id, .. }
        | Event::GetWorker(id)
        | Event::ListWorkerRequests(id)
            if id.as_str() == "gone" =>
        {
            return refused(ProblemCode::WorkerNotFound);
        }
        Event::GetWorker(id) => Reply::Worker(Box::new(worker(id.as_str()))),
        Event::ListWorkerRequests(_) => {
            Reply::RequestIds(vec!["demo-1".parse().unwrap(), "demo-2".parse().unwrap()])
        }
        Event::DrainWorker { worker, order } => Reply::DrainUpdated(Box::new(DrainReply {
            worker_id: worker.clone(),
            drained: order.clone().map(|order| crate::wire::worker::DrainInfo {
                by: order.by,
                reason: order.reason,
                since: Timestamp::UNIX_EPOCH,
            }),
            state: WorkerState::Drained,
            in_flight: 0,
            incoming_requests: 0,
        })),
        Event::ReassignTasks { id, worker } => Reply::Reassigned(ReassignReply {
            request_id: id.clone(),
            worker_id: worker.clone(),
            tasks: 2,
        }),
        Event::Reconcile(_) => Reply::Reconciled(Default::default()),
        Event::ConfirmClock => Reply::ClockConfirmed(crate::wire::admin::ConfirmClockReply {
            time: Timestamp::UNIX_EPOCH,
            ahead_seconds: -7,
        }),
        Event::RotateTicketKey => {
            Reply::TicketKeyRotated(crate::wire::admin::RotateTicketKeyReply {
                key_id: "b".into(),
                signs_in_seconds: 45,
                previous_key_id: "a".into(),
                previous_valid_seconds: 1005,
            })
        }
        Event::ForgetWorker(worker) if worker.as_str() == "up" => {
            return refused(ProblemCode::WorkerActive);
        }
        Event::ForgetWorker(worker) => Reply::Forgotten(ForgetWorkerReply {
            status: "forgotten".into(),
            worker_id: worker.clone(),
            requeued: 1,
        }),
        Event::Poll { poll_id: Some(id), .. } if id == "open" => return None,
        Event::Poll { .. } => Reply::Assignment(None),
        Event::GetManifest { worker, .. } if worker.as_str() == "a" => {
            Reply::ManifestKey("m/1".into())
        }
        Event::GetManifest { .. } => Reply::ManifestKey("m/2".into()),
        Event::Page { .. } => {
            Reply::Page(PageReply { action: PageAction::Continue, max_subtrees: 2 })
        }
        Event::Result(result) => Reply::Result(ResultReply {
            status: "ack".into(),
            outcome: result.assignment_id.map(|_| ResultOutcome::Applied),
        }),
        Event::OfAgent { event, .. } => return scripted_reply(event),
        // The tests of tokens use a real master.
        Event::CreateToken(_)
        | Event::ListTokens
        | Event::RevokeToken(_)
        | Event::CreateJoinToken(_)
        | Event::RevokeJoinToken(_)
        | Event::Join(_)
        | Event::RevokeWorker(_)
        | Event::StoreAuthority(_)
        | Event::RotateAuthority(_)
        | Event::FinishRotation { .. }
        | Event::GetAuthority
        | Event::Restricted { .. }
        | Event::CancelPoll(_)
        | Event::ManifestEntries { .. }
        | Event::StoreLost
        | Event::FileRecordsLost { .. }
        | Event::Configure(_)
        | Event::Tick => Reply::Done,
    })
}

/// Three syncs, of which the last one has the number 1.
fn sync_page(query: &SyncQuery) -> SyncPage {
    let all = [("c", SyncState::Queued), ("b", SyncState::Failed), ("a", SyncState::Queued)];
    let before = query.before.unwrap_or(SyncNo(u64::MAX));
    let matching: Vec<_> = (1..=3)
        .rev()
        .map(SyncNo)
        .zip(all)
        .filter(|(no, (_, state))| {
            *no < before && (query.states.is_empty() || query.states.contains(state))
        })
        .collect();
    let count = query.limit.unwrap_or(usize::MAX).min(matching.len());
    let page = &matching[..count];
    SyncPage {
        syncs: page.iter().map(|(_, (id, state))| progress(id, *state)).collect(),
        next: page.last().map(|(no, _)| *no).filter(|_| count < matching.len()),
    }
}

fn progress(id: &str, state: SyncState) -> SyncProgress {
    SyncProgress { state, ..sync_progress(id) }
}

fn worker(id: &str) -> WorkerView {
    worker_view(id, id == "up")
}

/// A raw response.
#[derive(Debug)]
struct TestResponse {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl TestResponse {
    fn parse(raw: &[u8]) -> TestResponse {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no response: {:?}", String::from_utf8_lossy(raw));
        });
        let head = std::str::from_utf8(&raw[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|l| l.split_once(": ").unwrap())
            .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
            .collect();
        TestResponse { status, headers, body: raw[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The body of a chunked response.
    fn dechunk(&self) -> String {
        assert_eq!(self.header("transfer-encoding"), Some("chunked"));
        let (mut text, mut rest) = (Vec::new(), self.body.as_slice());
        loop {
            let end = rest.windows(2).position(|w| w == b"\r\n").expect("the length of a chunk");
            let length = std::str::from_utf8(&rest[..end]).unwrap();
            let length = usize::from_str_radix(length, 16).unwrap();
            if length == 0 {
                return String::from_utf8(text).unwrap();
            }
            text.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest = &rest[end + 2 + length + 2..];
        }
    }

    /// Checks that this is a complete problem document, and returns its code.
    fn problem_code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((problem.kind.as_str(), problem.status), ("about:blank", self.status));
        assert!(!problem.title.is_empty() && !problem.detail.is_empty());
        problem.code
    }
}

impl TestServer {
    /// Sends `raw` and reads until the server closes.
    async fn send_raw(&self, raw: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // The server may respond and stop reading before everything is sent.
        let _ = stream.write_all(raw).await;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        response
    }

    async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> TestResponse {
        let mut raw =
            format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.addr);
        for header in headers {
            raw.push_str(&format!("{header}\r\n"));
        }
        if matches!(method, "POST" | "PATCH") {
            raw.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        raw.push_str("\r\n");
        TestResponse::parse(&self.send_raw(&[raw.as_bytes(), body].concat()).await)
    }

    async fn get(&self, target: &str) -> TestResponse {
        self.send("GET", target, &[], b"").await
    }

    async fn post(&self, target: &str, body: impl AsRef<[u8]>) -> TestResponse {
        self.send("POST", target, &["Content-Type: application/json"], body.as_ref()).await
    }

    /// Connects and sends `raw`.
    async fn connect_and_send(&self, raw: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        stream
    }

    fn has_no_event(&mut self) -> bool {
        self.events.try_recv().is_err()
    }
}

/// Ends a test that hangs earlier than its runner.
async fn with_deadline<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}
