//! The whole agent against a master that follows a script.

use super::Agent;
use super::storage::Storage;
use super::testing::{abs, assignment, config};
use crate::client::{ClientOptions, MasterClient};
use crate::config::AgentConfig;
use crate::util::shutdown::Shutdown;
use crate::wire::AssignmentId;
use crate::wire::manifest::Manifest;
use crate::wire::problem::Problem;
use crate::wire::sync::ErrorClass;
use crate::wire::task::{Assignment, ScanPage, TaskResult, TaskSpec};
use crate::wire::ticket::{Claims, Signer};
use crate::wire::worker::{Endpoint, HeartbeatReply, WorkerHeartbeat, WorkerStatus};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const NOW: i64 = 1_000_000;

/// What the master does, and what it saw.
#[derive(Default)]
struct Script {
    /// Given out in order.
    queue: VecDeque<Assignment>,
    manifest: Vec<u8>,
    /// Questions for the manifest are answered with this status.
    no_manifest: Option<StatusCode>,
    /// How many such questions there were.
    manifests: usize,
    /// Named in the next heartbeat's reply.
    drop: Vec<AssignmentId>,
    /// So many results are answered with 503.
    refuse_results: usize,
    /// Heartbeats are answered with 503.
    deaf: bool,
    /// Given only to a poll that comes a second time.
    second_try: Option<Assignment>,
    heartbeats: Vec<WorkerHeartbeat>,
    polls: Vec<String>,
    results: Vec<TaskResult>,
    pages: Vec<ScanPage>,
}

struct Master {
    dir: TempDir,
    signer: Signer,
    script: Mutex<Script>,
    /// Something was seen, or is there to be given.
    changed: Notify,
}

impl Master {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock()
    }

    /// Waits until the script says `done`.
    async fn until<T>(&self, what: &str, done: impl Fn(&Script) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = done(&self.script()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("still not: {what}"))
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script());
        self.changed.notify_waiters();
    }

    fn assignment(&self, n: u8, task: TaskSpec) -> Assignment {
        let (src, dst) = (self.dir.path().join("src"), self.dir.path().join("dst"));
        let claims = Claims {
            sync: 7,
            request_id: "demo-1".into(),
            assignment: [n; 16],
            attempt: 3,
            worker: "a".into(),
            destination: dst.as_os_str().as_bytes().to_vec(),
            expires: NOW + 900,
            rules: Default::default(),
            prune: None,
            roots: Default::default(),
        };
        Assignment {
            assignment_id: AssignmentId([n; 16]),
            attempt: 3,
            source_path: abs(&src),
            destination_path: abs(&dst),
            ticket: self.signer.sign(&claims),
            ..assignment(task)
        }
    }
}

async fn answer(
    State(master): State<Arc<Master>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let away = || StatusCode::SERVICE_UNAVAILABLE.into_response();
    match (method.as_str(), path.rsplit('/').next().unwrap_or_default()) {
        ("POST", "heartbeat") => {
            let mut reply = HeartbeatReply {
                status: "ok".into(),
                ticket_key: Some(master.signer.public_key()),
                time: Some(NOW),
                revoked_assignments: vec![],
                unresponsive_workers: Vec::new(),
                bwlimits: Default::default(),
                next_heartbeat_ms: None,
                protocol: Some(crate::wire::worker::PROTOCOL_VERSION),
            };
            let mut deaf = false;
            master.change(|script| {
                script.heartbeats.push(serde_json::from_slice(&body).unwrap());
                reply.revoked_assignments = std::mem::take(&mut script.drop);
                deaf = script.deaf;
            });
            if deaf { away() } else { axum::Json(reply).into_response() }
        }
        ("POST", "assignment") => axum::Json(poll(&master, &uri).await).into_response(),
        ("GET", "manifest") => {
            let mut reply = StatusCode::OK.into_response();
            master.change(|script| {
                script.manifests += 1;
                reply = match script.no_manifest {
                    Some(status) => {
                        let problem = Problem::new(status.as_u16(), "Refused", "not_found", "no");
                        (status, axum::Json(problem)).into_response()
                    }
                    None => script.manifest.clone().into_response(),
                };
            });
            reply
        }
        ("POST", "page") => {
            master.change(|script| script.pages.push(serde_json::from_slice(&body).unwrap()));
            // Never answered: the scan stays at it until it is stopped.
            std::future::pending().await
        }
        ("POST", "result") => {
            let mut refused = false;
            master.change(|script| {
                script.results.push(serde_json::from_slice(&body).unwrap());
                refused = script.refuse_results > 0;
                script.refuse_results = script.refuse_results.saturating_sub(1);
            });
            let ack = serde_json::json!({"status": "ack", "outcome": "applied"});
            if refused { away() } else { axum::Json(ack).into_response() }
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn poll(master: &Master, uri: &Uri) -> Option<Assignment> {
    let query = uri.query().unwrap_or_default().to_owned();
    let id =
        |q: &str| q.split('&').find_map(|p| p.strip_prefix("poll_id=").map(str::to_owned)).unwrap();
    let mut again = false;
    master.change(|script| {
        again = script.polls.iter().any(|q| id(q) == id(&query));
        script.polls.push(query.clone());
    });
    if query.contains("wait=0s") {
        return if again { master.script().second_try.take() } else { None };
    }
    Some(master.until_forever(|script| script.queue.pop_front()).await)
}

impl Master {
    async fn until_forever<T>(&self, mut take: impl FnMut(&mut Script) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = take(&mut self.script()) {
                return found;
            }
            changed.await;
        }
    }
}

/// A scripted master with one agent, `a`, that holds both paths.
struct Play {
    master: Arc<Master>,
    stop: Shutdown,
    agent: JoinHandle<()>,
    serving: JoinHandle<()>,
    port: u16,
}

impl Play {
    async fn new(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["src", "dst"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("src/f"), b"content").unwrap();
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let paths = ["src", "dst"].map(|n| abs(&dir.path().join(n))).to_vec();
        let endpoint = Endpoint { iface: None, address: "127.0.0.1".into(), port: Some(0) };
        let config = AgentConfig {
            control_plane_address: Some("10.0.0.1".into()),
            heartbeat_interval: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(10),
            slots: 2,
            ..config(paths, vec![endpoint])
        };
        let script = Mutex::new(script);
        let master = Arc::new(Master { dir, signer, script, changed: Notify::new() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(answer).with_state(master.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = MasterClient::new(vec![url], ClientOptions::default()).unwrap();
        let agent = Agent::bind(config).await.unwrap();
        let port = agent.endpoints().available()[0].port.unwrap();
        let stop = Shutdown::new();
        let agent = tokio::spawn(agent.serve(client, stop.clone()));
        Play { master, stop, agent, serving, port }
    }

    async fn end(self) {
        self.stop.cancel();
        self.agent.await.unwrap();
        self.serving.abort();
    }
}

fn scan() -> TaskSpec {
    TaskSpec::Scan { dir: crate::wire::RelPath::root(), cursor: None }
}

fn result(n: usize) -> impl Fn(&Script) -> Option<TaskResult> {
    move |script| script.results.get(n).cloned()
}

/// The next heartbeat, after those seen until now, of which `fits` is true.
async fn heartbeat(
    master: &Master,
    what: &str,
    fits: impl Fn(&WorkerHeartbeat) -> bool,
) -> WorkerHeartbeat {
    let seen = master.script().heartbeats.len();
    master.until(what, |s| s.heartbeats.iter().skip(seen).find(|h| fits(h)).cloned()).await
}

#[tokio::test]
async fn a_heartbeat_says_what_the_agent_has_and_polls_come_after_it() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let query = master.until("a poll", |s| s.polls.first().cloned()).await;
    let first = master.script().heartbeats[0].clone();
    assert_eq!((first.status, first.slots), (WorkerStatus::Idle, Some(2)));
    assert_eq!(first.data_plane_endpoints[0].port, Some(play.port));
    assert_eq!(first.storage_paths.len(), 2);
    assert_eq!(first.boot_id, crate::util::boot::boot_id());
    assert_eq!(first.control_plane_address.as_deref(), Some("10.0.0.1"));
    let incarnation = first.incarnation.unwrap();
    assert!(query.contains("wait=20s") && query.contains(&format!("incarnation={incarnation}")));
    let endpoint = format!("127.0.0.1:{}", play.port);
    heartbeat(master, "its interface", |h| h.nics.iter().any(|n| n.endpoint == endpoint)).await;
    heartbeat(master, "free bytes", |h| h.free_bytes.values().all(|n| *n > 0)).await;
    play.end().await;
}

#[tokio::test]
async fn an_assignment_is_executed_and_its_result_sent_until_it_is_taken() {
    let play = Play::new(Script { refuse_results: 2, ..Script::default() }).await;
    let master = &play.master;
    let source = super::testing::tree(&master.dir.path().join("src"));
    let entry = source.entry(&crate::wire::RelPath::new("f").unwrap()).unwrap();
    let manifest = Manifest { dirs: vec![], entries: vec![entry] };
    let task = TaskSpec::Copy { files: 1, dirs: 0, bytes: 7 };
    let assignment = master.assignment(9, task);
    master.change(|script| {
        script.manifest = manifest.encode();
        script.queue.push_back(assignment.clone());
    });
    let third = master.until("the third try", result(2)).await;
    assert_eq!(fs::read(master.dir.path().join("dst/f")).unwrap(), b"content");
    assert_eq!(third.assignment_id, Some(assignment.assignment_id));
    assert_eq!((third.attempt, third.task_digest), (Some(3), Some(assignment.task_digest)));
    let report = third.report.unwrap();
    assert_eq!((third.success, report.files_done, report.bytes_done), (true, 1, 7));
    assert_eq!(report.writers[0].as_str(), "a");
    heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    play.end().await;
}

#[tokio::test]
async fn a_manifest_that_is_refused_fails_the_task_unless_the_task_is_gone() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let copy = TaskSpec::Copy { files: 0, dirs: 0, bytes: 0 };
    for (n, status) in [(1, StatusCode::NOT_FOUND), (2, StatusCode::BAD_REQUEST)] {
        let assignment = master.assignment(n, copy.clone());
        master.change(|script| {
            script.no_manifest = Some(status);
            script.queue.push_back(assignment.clone());
        });
        let id = assignment.assignment_id;
        master.until("the question", |s| (s.manifests == usize::from(n)).then_some(())).await;
        if status == StatusCode::NOT_FOUND {
            continue;
        }
        let failed = master.until("the result", result(0)).await;
        assert_eq!((failed.assignment_id, failed.success), (Some(id), false));
        let message = failed.message.unwrap();
        assert!(message.contains("cannot get the manifest"), "{message}");
    }
    play.end().await;
}

#[tokio::test]
async fn what_the_master_drops_is_stopped_without_a_result() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let assignment = master.assignment(5, scan());
    master.change(|script| script.queue.push_back(assignment.clone()));
    master.until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    let busy = heartbeat(master, "it is in hand", |h| !h.assignments.is_empty()).await;
    assert_eq!(
        (busy.status, busy.assignments),
        (WorkerStatus::Transferring, vec![assignment.assignment_id])
    );
    master.change(|script| script.drop.push(assignment.assignment_id));
    heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    assert_eq!(master.script().results, []);
    play.end().await;
}

#[tokio::test]
async fn a_lease_that_nobody_renews_ends_the_work() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let assignment = Assignment { lease_seconds: 1, ..master.assignment(5, scan()) };
    master.change(|script| script.queue.push_back(assignment));
    master.until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    master.change(|script| script.deaf = true);
    heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    assert_eq!(master.script().results, []);
    master.change(|script| script.deaf = false);
    play.end().await;
}

#[tokio::test]
async fn an_agent_that_stops_hands_its_scan_back_and_says_that_it_drains() {
    let play = Play::new(Script::default()).await;
    let master = play.master.clone();
    let assignment = master.assignment(5, scan());
    master.change(|script| script.queue.push_back(assignment));
    master.until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    play.stop.cancel();
    let back = master.until("the result", result(0)).await;
    assert!(!back.success && back.report.unwrap().returned);
    master
        .until("it drains", |s| {
            s.heartbeats.iter().find(|h| h.status == WorkerStatus::Draining).cloned()
        })
        .await;
    play.end().await;
    let last = master.script().heartbeats.last().cloned().unwrap();
    assert_eq!((last.status, last.assignments), (WorkerStatus::Stopped, vec![]));
}

#[tokio::test]
async fn a_lease_given_while_the_agent_stops_is_handed_back_unbegun() {
    let play = Play::new(Script::default()).await;
    let master = play.master.clone();
    master.until("both slots poll", |s| (s.polls.len() == 2).then_some(())).await;
    let late = master.assignment(6, scan());
    master.change(|script| script.second_try = Some(late.clone()));
    play.stop.cancel();
    let back = master.until("the result", result(0)).await;
    assert_eq!(back.assignment_id, Some(late.assignment_id));
    assert!(back.report.unwrap().returned);
    assert!(master.script().pages.is_empty());
    play.end().await;
}

#[tokio::test]
async fn a_scan_of_what_is_not_there_fails_with_the_entry_at_fault() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let mut assignment = master.assignment(5, scan());
    assignment.source_path = abs(&master.dir.path().join("src/nowhere"));
    master.change(|script| script.queue.push_back(assignment));
    let failed = master.until("the result", result(0)).await;
    assert!(!failed.success);
    let error = &failed.report.unwrap().failures[0];
    assert_eq!((error.class, error.errno.as_deref()), (ErrorClass::Permanent, Some("ENOENT")));
    assert_eq!(error.worker_id.as_ref().unwrap().as_str(), "a");
    play.end().await;
}

#[tokio::test]
async fn a_filter_that_cannot_be_read_fails_the_task_and_is_named() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    let prune = TaskSpec::Prune { dir: crate::wire::RelPath::root(), cursor: None, apply: true };
    for (n, task) in [(0, scan()), (1, prune)] {
        let mut assignment = master.assignment(n, task);
        assignment.options.filter.rules = vec!["*.o".into(), "[z-a]".into()];
        master.change(|script| script.queue.push_back(assignment));
        let failed = master.until("the result", result(usize::from(n))).await;
        let message = failed.message.unwrap();
        assert!(!failed.success && message.contains("filter rule 2 (`[z-a]`)"), "{message}");
    }
    assert!(master.script().pages.is_empty());
    play.end().await;
}

#[tokio::test]
async fn a_dry_run_does_no_task_that_could_write() {
    let play = Play::new(Script::default()).await;
    let master = &play.master;
    master.change(|script| script.manifest = Manifest::default().encode());
    let range = TaskSpec::Range { offset: 0, length: 7, compare: false };
    for (n, task) in [(0, TaskSpec::CleanUp), (1, TaskSpec::Discard), (2, range)] {
        let mut assignment = master.assignment(n, task);
        assignment.options.dry_run = true;
        master.change(|script| script.queue.push_back(assignment));
        let refused = master.until("the result", result(usize::from(n))).await;
        assert!(!refused.success && refused.message.unwrap().contains("dry run"));
        assert_eq!(refused.report.unwrap().writers, []);
    }
    play.end().await;
}

#[tokio::test]
async fn a_prune_asks_the_master_about_the_source_before_it_deletes() {
    let play = Play::new(Script::default()).await;
    let master = play.master.clone();
    let extra = master.dir.path().join("dst/extra");
    fs::write(&extra, b"x").unwrap();
    let task = TaskSpec::Prune { dir: crate::wire::RelPath::root(), cursor: None, apply: true };
    let mut assignment = master.assignment(5, task.clone());
    assignment.options.delete = Some(Default::default());
    master.change(|script| script.queue.push_back(assignment));
    // Its page is never answered.
    let page = master.until("a page", |s| s.pages.first().cloned()).await;
    assert_eq!((page.root.map(|root| root.empty), page.next), (Some(false), Some(task)));
    play.stop.cancel();
    // Like a scan it goes on anywhere, so it is handed back at once.
    let back = master.until("the result", result(0)).await;
    assert!(back.report.unwrap().returned && extra.exists());
    play.end().await;
}

#[tokio::test]
async fn an_agent_starts_without_its_storage_and_its_address_and_takes_up_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let config = |path: &str, address: &str| {
        let endpoint = Endpoint { iface: None, address: address.into(), port: Some(0) };
        config(vec![abs(&dir.path().join(path))], vec![endpoint])
    };
    let path = dir.path().join("late");
    // A documentation address (RFC 5737): no host has it.
    let agent = Agent::bind(config("late", "192.0.2.1")).await.expect("what may come is no error");
    assert_eq!(agent.endpoints().available(), []);
    let [endpoint] = &agent.endpoints().unavailable()[..] else { panic!("one endpoint") };
    assert!(endpoint.reason.contains("192.0.2.1"), "{endpoint:?}");
    let storage = Storage::of(agent.roots.clone(), Arc::default());
    let seen = storage.seen();
    assert_eq!(seen.available, []);
    let [lost] = &seen.unavailable[..] else { panic!("one path") };
    assert!(lost.path == abs(&path) && lost.reason.contains("(ENOENT)"), "{lost:?}");
    assert!(agent.roots.tree(&abs(&path.join("below"))).is_none());
    // Looked for at each heartbeat, and served when it is there.
    fs::create_dir(&path).unwrap();
    storage.measure();
    tokio::time::timeout(Duration::from_secs(60), async {
        while storage.seen().available.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is taken up");
    assert_eq!(storage.seen().unavailable, []);
    assert!(agent.roots.tree(&abs(&path.join("below"))).is_some());
    // What waiting does not mend is an error.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bad = config("late", "127.0.0.1");
    bad.data_plane_endpoints[0].endpoint.port = Some(taken.local_addr().unwrap().port());
    let error = Agent::bind(bad).await.err().expect("the port is taken");
    assert!(format!("{error:#}").contains("nothing else uses the port"), "{error:#}");
}
