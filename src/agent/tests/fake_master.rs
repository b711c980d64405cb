//! The whole agent against a master that follows a script.

mod heartbeats;
mod storage_checks;

use crate::agent::Agent;
use crate::agent::storage::StorageMonitor;
use crate::agent::testing::{abs, agent_config, assignment};
use crate::client::{ClientOptions, MasterClient};
use crate::config::AgentConfig;
use crate::util::shutdown::Shutdown;
use crate::wire::AssignmentId;
use crate::wire::manifest::Manifest;
use crate::wire::outcome::ErrorClass;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::storage::StorageCheck;
use crate::wire::task::{Assignment, PoolMember, Relay, ScanPage, TaskResult, TaskSpec, WorkItem};
use crate::wire::ticket::{Claims, SignedTicket, Signer, Verbs};
use crate::wire::worker::{EndedSyncs, Endpoint, HeartbeatReply, WorkerHeartbeat, WorkerStatus};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

const NOW: i64 = 1_000_000;

/// What the master does, and what it saw.
#[derive(Default)]
struct FakeMasterScript {
    /// Given out in order.
    queue: VecDeque<Assignment>,
    manifest: Vec<u8>,
    /// Questions for the manifest are answered with this status.
    manifest_error: Option<StatusCode>,
    /// How many such questions there were.
    manifest_requests: usize,
    /// Named in the next heartbeat's reply.
    revoked: Vec<AssignmentId>,
    /// So many results are answered with 503.
    results_to_refuse: usize,
    /// Heartbeats are answered with 503.
    refuses_heartbeats: bool,
    /// In the reply to each heartbeat.
    storage_checks: Vec<StorageCheck>,
    /// Given only to a poll that comes a second time.
    second_poll_assignment: Option<Assignment>,
    tickets: BTreeMap<AssignmentId, SignedTicket>,
    ended_syncs: Option<EndedSyncs>,
    heartbeats: Vec<WorkerHeartbeat>,
    polls: Vec<String>,
    results: Vec<TaskResult>,
    pages: Vec<ScanPage>,
}

struct FakeMaster {
    dir: TempDir,
    signer: Signer,
    script: Mutex<FakeMasterScript>,
    /// Something was seen, or is there to be given.
    changed: Notify,
}

impl FakeMaster {
    fn lock_script(&self) -> MutexGuard<'_, FakeMasterScript> {
        self.script.lock()
    }

    /// Waits until the script says `done`.
    async fn wait_until<T>(&self, what: &str, done: impl Fn(&FakeMasterScript) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = done(&self.lock_script()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("still not: {what}"))
    }

    fn update_script(&self, change: impl FnOnce(&mut FakeMasterScript)) {
        change(&mut self.lock_script());
        self.changed.notify_waiters();
    }

    fn assignment(&self, n: u8, task: TaskSpec) -> Assignment {
        self.assignment_to("dst", n, task)
    }

    fn claims_to(&self, destination: &str, n: u8) -> Claims {
        let dst = self.dir.path().join(destination);
        let mut claims = Claims {
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
            verbs: Verbs::ALL,
            receivers: Default::default(),
            run_as: None,
        };
        claims.allow_receiver(&claims.worker.parse().unwrap());
        claims
    }

    fn assignment_to(&self, destination: &str, n: u8, task: TaskSpec) -> Assignment {
        let (src, dst) = (self.dir.path().join("src"), self.dir.path().join(destination));
        let claims = self.claims_to(destination, n);
        Assignment {
            assignment_id: AssignmentId([n; 16]),
            attempt: 3,
            source_path: abs(&src),
            destination_path: abs(&dst),
            ticket: self.signer.sign(&claims).into(),
            ..assignment(task)
        }
    }
}

async fn handle_request(
    State(master): State<Arc<FakeMaster>>,
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
                ticket_keys: vec![master.signer.public_key()],
                tickets: Default::default(),
                ended_syncs: None,
                time: Some(NOW),
                revoked_assignments: vec![],
                unresponsive_workers: Vec::new(),
                bwlimits: Default::default(),
                next_heartbeat_ms: None,
                storage_checks: Vec::new(),
                refused_paths: Vec::new(),
                authorities: Vec::new(),
                revoked_workers: Vec::new(),
            };
            let mut deaf = false;
            master.update_script(|script| {
                script.heartbeats.push(serde_json::from_slice(&body).unwrap());
                reply.revoked_assignments = std::mem::take(&mut script.revoked);
                reply.storage_checks = script.storage_checks.clone();
                reply.tickets = script.tickets.clone();
                reply.ended_syncs = script.ended_syncs.clone();
                deaf = script.refuses_heartbeats;
            });
            if deaf { away() } else { axum::Json(reply).into_response() }
        }
        ("POST", "assignment") => axum::Json(handle_poll(&master, &uri).await).into_response(),
        ("GET", "manifest") => {
            let mut reply = StatusCode::OK.into_response();
            master.update_script(|script| {
                script.manifest_requests += 1;
                reply = match script.manifest_error {
                    Some(status) => {
                        let problem = Problem::new(ProblemCode::NotFound, "no");
                        (status, axum::Json(problem)).into_response()
                    }
                    None => script.manifest.clone().into_response(),
                };
            });
            reply
        }
        ("POST", "page") => {
            master
                .update_script(|script| script.pages.push(serde_json::from_slice(&body).unwrap()));
            // Never answered: the scan stays at it until it is stopped.
            std::future::pending().await
        }
        ("POST", "result") => {
            let mut refused = false;
            master.update_script(|script| {
                script.results.push(serde_json::from_slice(&body).unwrap());
                refused = script.results_to_refuse > 0;
                script.results_to_refuse = script.results_to_refuse.saturating_sub(1);
            });
            let ack = serde_json::json!({"status": "ack", "outcome": "applied"});
            if refused { away() } else { axum::Json(ack).into_response() }
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn handle_poll(master: &FakeMaster, uri: &Uri) -> Option<Assignment> {
    let query = uri.query().unwrap_or_default().to_owned();
    let id =
        |q: &str| q.split('&').find_map(|p| p.strip_prefix("poll_id=").map(str::to_owned)).unwrap();
    let mut again = false;
    master.update_script(|script| {
        again = script.polls.iter().any(|q| id(q) == id(&query));
        script.polls.push(query.clone());
    });
    if query.contains("wait=0s") {
        return if again { master.lock_script().second_poll_assignment.take() } else { None };
    }
    Some(master.wait_without_timeout(|script| script.queue.pop_front()).await)
}

impl FakeMaster {
    async fn wait_without_timeout<T>(
        &self,
        mut take: impl FnMut(&mut FakeMasterScript) -> Option<T>,
    ) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = take(&mut self.lock_script()) {
                return found;
            }
            changed.await;
        }
    }
}

/// A scripted master with one agent, `a`, that holds both paths.
struct FakeMasterRun {
    master: Arc<FakeMaster>,
    stop: Shutdown,
    agent: JoinHandle<()>,
    serving: JoinHandle<()>,
    port: u16,
}

impl FakeMasterRun {
    async fn new(script: FakeMasterScript) -> Self {
        Self::with_paths(&["src", "dst"], script).await
    }

    async fn with_paths(names: &[&str], script: FakeMasterScript) -> Self {
        Self::with_config(names, script, |_, config| config).await
    }

    /// With another configuration of the agent; the given directory holds its paths.
    async fn with_config(
        names: &[&str],
        script: FakeMasterScript,
        change: impl FnOnce(&Path, AgentConfig) -> AgentConfig,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("src/f"), b"content").unwrap();
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let paths = names.iter().map(|n| abs(&dir.path().join(n))).collect();
        let endpoint = Endpoint { iface: None, address: "127.0.0.1".into(), port: Some(0) };
        let config = AgentConfig {
            control_plane_address: Some("10.0.0.1".into()),
            heartbeat_interval: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(10),
            slots: 2,
            ..agent_config(paths, vec![endpoint])
        };
        let config = change(dir.path(), config);
        let script = Mutex::new(script);
        let master = Arc::new(FakeMaster { dir, signer, script, changed: Notify::new() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(handle_request).with_state(master.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = MasterClient::new(vec![url], ClientOptions::default()).unwrap();
        let agent = Agent::bind(watch::channel(config).1).await.unwrap();
        let port = agent.endpoints().available()[0].port.unwrap();
        let stop = Shutdown::new();
        let agent = tokio::spawn(agent.serve(client, stop.clone()));
        FakeMasterRun { master, stop, agent, serving, port }
    }

    async fn shut_down(self) {
        self.stop.cancel();
        self.agent.await.unwrap();
        self.serving.abort();
    }
}

fn root_scan() -> TaskSpec {
    TaskSpec::Scan { dir: crate::wire::RelPath::root(), cursor: None }
}

fn nth_result(n: usize) -> impl Fn(&FakeMasterScript) -> Option<TaskResult> {
    move |script| script.results.get(n).cloned()
}

/// The next heartbeat, after those seen until now, of which `fits` is true.
async fn next_heartbeat(
    master: &FakeMaster,
    what: &str,
    fits: impl Fn(&WorkerHeartbeat) -> bool,
) -> WorkerHeartbeat {
    let seen = master.lock_script().heartbeats.len();
    master.wait_until(what, |s| s.heartbeats.iter().skip(seen).find(|h| fits(h)).cloned()).await
}

#[tokio::test]
async fn an_assignment_is_executed_and_its_result_resent_until_it_is_accepted() {
    let play = FakeMasterRun::new(FakeMasterScript {
        results_to_refuse: 2,
        ..FakeMasterScript::default()
    })
    .await;
    let master = &play.master;
    let source = crate::agent::testing::tree(&master.dir.path().join("src"));
    let entry = source.entry(&crate::wire::RelPath::new("f").unwrap()).unwrap();
    let manifest = Manifest { dirs: vec![], entries: vec![entry] };
    let task = TaskSpec::Copy { files: 1, dirs: 0, bytes: 7 };
    let assignment = master.assignment(9, task);
    master.update_script(|script| {
        script.manifest = manifest.encode();
        script.queue.push_back(assignment.clone());
    });
    let third = master.wait_until("the third try", nth_result(2)).await;
    assert_eq!(fs::read(master.dir.path().join("dst/f")).unwrap(), b"content");
    assert_eq!(third.assignment_id, Some(assignment.assignment_id));
    assert_eq!((third.attempt, third.task_digest), (Some(3), Some(assignment.task_digest)));
    let report = third.report.unwrap();
    assert_eq!((third.success, report.files_done, report.bytes_done), (true, 1, 7));
    assert_eq!(report.writers[0].as_str(), "a");
    next_heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    play.shut_down().await;
}

#[tokio::test]
async fn a_batch_is_sent_on_from_the_copy_with_the_manifest_that_its_report_returned() {
    let paths = ["src", "dst", "dst2"];
    let play = FakeMasterRun::with_paths(&paths, FakeMasterScript::default()).await;
    let (master, dir) = (&play.master, play.master.dir.path());
    let source = crate::agent::testing::tree(&dir.join("src"));
    let entry = source.entry(&crate::wire::RelPath::new("f").unwrap()).unwrap();
    let manifest = Manifest { dirs: vec![], entries: vec![entry] };
    let task = TaskSpec::Copy { files: 1, dirs: 0, bytes: 7 };
    let first = Assignment { report_held: true, ..master.assignment(1, task.clone()) };
    master.update_script(|script| {
        script.manifest = manifest.encode();
        script.queue.push_back(first);
    });
    let held = master.wait_until("the first result", nth_result(0)).await.report.unwrap().held;
    let Some(WorkItem::Copy { manifest, .. }) = held else { panic!("{held:?}") };
    fs::remove_file(dir.join("src/f")).unwrap();
    let relay = |n: u8, task: TaskSpec| Assignment {
        relay: Some(Relay { path: abs(&dir.join("dst")), root: None, digest: None }),
        // This agent under another name.
        destination_workers: vec![PoolMember {
            worker_id: "b".parse().unwrap(),
            status: WorkerStatus::Idle,
            storage_paths: vec![abs(&dir.join("dst2"))],
            data_plane_endpoints: vec![format!("127.0.0.1:{}", play.port).parse().unwrap()],
        }],
        ..master.assignment_to("dst2", n, task)
    };
    master.update_script(|script| {
        script.manifest = manifest.0;
        script.queue.push_back(relay(2, task));
    });
    let sent = master.wait_until("the second result", nth_result(1)).await;
    let report = sent.report.unwrap();
    assert_eq!((sent.success, report.files_done, report.bytes_sent), (true, 1, 7));
    assert_eq!(report.writers[0].as_str(), "b");
    assert_eq!(fs::read(dir.join("dst2/f")).unwrap(), b"content");
    // Nothing but content comes from a copy.
    master.update_script(|script| script.queue.push_back(relay(3, root_scan())));
    let refused = master.wait_until("the third result", nth_result(2)).await;
    let message = refused.message.unwrap();
    assert!(!refused.success && message.contains("no scan is done there"), "{message}");
    play.shut_down().await;
}

#[tokio::test]
async fn a_refused_manifest_fails_the_task_unless_the_task_does_not_exist() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let copy = TaskSpec::Copy { files: 0, dirs: 0, bytes: 0 };
    for (n, status) in [(1, StatusCode::NOT_FOUND), (2, StatusCode::BAD_REQUEST)] {
        let assignment = master.assignment(n, copy.clone());
        master.update_script(|script| {
            script.manifest_error = Some(status);
            script.queue.push_back(assignment.clone());
        });
        let id = assignment.assignment_id;
        master
            .wait_until("the question", |s| (s.manifest_requests == usize::from(n)).then_some(()))
            .await;
        if status == StatusCode::NOT_FOUND {
            continue;
        }
        let failed = master.wait_until("the result", nth_result(0)).await;
        assert_eq!((failed.assignment_id, failed.success), (Some(id), false));
        let message = failed.message.unwrap();
        assert!(message.contains("cannot get the manifest"), "{message}");
    }
    play.shut_down().await;
}

#[tokio::test]
async fn a_revoked_assignment_is_stopped_without_a_result() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let assignment = master.assignment(5, root_scan());
    master.update_script(|script| script.queue.push_back(assignment.clone()));
    master.wait_until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    let busy = next_heartbeat(master, "it is in hand", |h| !h.assignments.is_empty()).await;
    assert_eq!(
        (busy.status, busy.assignments),
        (WorkerStatus::Transferring, vec![assignment.assignment_id])
    );
    master.update_script(|script| script.revoked.push(assignment.assignment_id));
    next_heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    assert_eq!(master.lock_script().results, []);
    play.shut_down().await;
}

#[tokio::test]
async fn an_expired_lease_stops_the_work() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let assignment = Assignment { lease_seconds: 1, ..master.assignment(5, root_scan()) };
    master.update_script(|script| script.queue.push_back(assignment));
    master.wait_until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    master.update_script(|script| script.refuses_heartbeats = true);
    next_heartbeat(master, "nothing in hand", |h| h.assignments.is_empty()).await;
    assert_eq!(master.lock_script().results, []);
    master.update_script(|script| script.refuses_heartbeats = false);
    play.shut_down().await;
}

#[tokio::test]
async fn an_agent_that_shuts_down_returns_its_scan_and_reports_draining() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = play.master.clone();
    let assignment = master.assignment(5, root_scan());
    master.update_script(|script| script.queue.push_back(assignment));
    master.wait_until("a page", |s| (!s.pages.is_empty()).then_some(())).await;
    play.stop.cancel();
    let back = master.wait_until("the result", nth_result(0)).await;
    assert!(!back.success && back.report.unwrap().returned);
    master
        .wait_until("it drains", |s| {
            s.heartbeats.iter().find(|h| h.status == WorkerStatus::Draining).cloned()
        })
        .await;
    play.shut_down().await;
    let last = master.lock_script().heartbeats.last().cloned().unwrap();
    assert_eq!((last.status, last.assignments), (WorkerStatus::Stopped, vec![]));
}

#[tokio::test]
async fn a_lease_granted_during_shutdown_is_returned_unstarted() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = play.master.clone();
    master.wait_until("both slots poll", |s| (s.polls.len() == 2).then_some(())).await;
    let late = master.assignment(6, root_scan());
    master.update_script(|script| script.second_poll_assignment = Some(late.clone()));
    play.stop.cancel();
    let back = master.wait_until("the result", nth_result(0)).await;
    assert_eq!(back.assignment_id, Some(late.assignment_id));
    assert!(back.report.unwrap().returned);
    assert!(master.lock_script().pages.is_empty());
    play.shut_down().await;
}

#[tokio::test]
async fn a_scan_of_a_missing_source_fails_with_the_failed_entry() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let mut assignment = master.assignment(5, root_scan());
    assignment.source_path = abs(&master.dir.path().join("src/nowhere"));
    master.update_script(|script| script.queue.push_back(assignment));
    let failed = master.wait_until("the result", nth_result(0)).await;
    assert!(!failed.success);
    let error = &failed.report.unwrap().failures[0];
    assert_eq!((error.class, error.errno.as_deref()), (ErrorClass::Permanent, Some("ENOENT")));
    assert_eq!(error.worker_id.as_ref().unwrap().as_str(), "a");
    play.shut_down().await;
}

#[tokio::test]
async fn an_invalid_filter_fails_the_task_and_is_named_in_the_message() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let prune = TaskSpec::Prune { dir: crate::wire::RelPath::root(), cursor: None, apply: true };
    for (n, task) in [(0, root_scan()), (1, prune)] {
        let mut assignment = master.assignment(n, task);
        assignment.options.filter.rules = vec!["*.o".into(), "[z-a]".into()];
        master.update_script(|script| script.queue.push_back(assignment));
        let failed = master.wait_until("the result", nth_result(usize::from(n))).await;
        let message = failed.message.unwrap();
        assert!(!failed.success && message.contains("filter rule 2 (`[z-a]`)"), "{message}");
    }
    assert!(master.lock_script().pages.is_empty());
    play.shut_down().await;
}

#[tokio::test]
async fn a_dry_run_refuses_tasks_that_write() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    master.update_script(|script| script.manifest = Manifest::default().encode());
    let range = TaskSpec::Range { offset: 0, length: 7, compare: false };
    for (n, task) in [(0, TaskSpec::CleanUp), (1, TaskSpec::Discard), (2, range)] {
        let mut assignment = master.assignment(n, task);
        assignment.options.dry_run = true;
        master.update_script(|script| script.queue.push_back(assignment));
        let refused = master.wait_until("the result", nth_result(usize::from(n))).await;
        assert!(!refused.success && refused.message.unwrap().contains("dry run"));
        assert_eq!(refused.report.unwrap().writers, []);
    }
    play.shut_down().await;
}

#[tokio::test]
async fn a_prune_posts_the_source_root_before_it_deletes() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = play.master.clone();
    let extra = master.dir.path().join("dst/extra");
    fs::write(&extra, b"x").unwrap();
    let task = TaskSpec::Prune { dir: crate::wire::RelPath::root(), cursor: None, apply: true };
    let mut assignment = master.assignment(5, task.clone());
    assignment.options.delete = Some(Default::default());
    master.update_script(|script| script.queue.push_back(assignment));
    // Its page is never answered.
    let page = master.wait_until("a page", |s| s.pages.first().cloned()).await;
    assert_eq!((page.root.map(|root| root.empty), page.next), (Some(false), Some(task)));
    play.stop.cancel();
    // Like a scan it goes on anywhere, so it is handed back at once.
    let back = master.wait_until("the result", nth_result(0)).await;
    assert!(back.report.unwrap().returned && extra.exists());
    play.shut_down().await;
}

#[tokio::test]
async fn an_agent_starts_without_storage_or_address_and_uses_them_once_they_appear() {
    let dir = tempfile::tempdir().unwrap();
    let config = |path: &str, address: &str| {
        let endpoint = Endpoint { iface: None, address: address.into(), port: Some(0) };
        agent_config(vec![abs(&dir.path().join(path))], vec![endpoint])
    };
    let path = dir.path().join("late");
    let bind = |config| Agent::bind(watch::channel(config).1);
    // A documentation address (RFC 5737): no host has it.
    let agent = bind(config("late", "192.0.2.1")).await.expect("what may come is no error");
    assert_eq!(agent.endpoints().available(), []);
    let [endpoint] = &agent.endpoints().unavailable()[..] else { panic!("one endpoint") };
    assert!(endpoint.reason.contains("192.0.2.1"), "{endpoint:?}");
    let storage = StorageMonitor::new(agent.roots.clone(), Arc::default());
    let seen = storage.snapshot();
    assert_eq!(seen.available, []);
    let [lost] = &seen.unavailable[..] else { panic!("one path") };
    assert!(lost.path == abs(&path) && lost.reason.contains("(ENOENT)"), "{lost:?}");
    assert!(agent.roots.tree(&abs(&path.join("below"))).is_none());
    // Looked for at each heartbeat, and served when it is there.
    fs::create_dir(&path).unwrap();
    storage.start_measurements();
    tokio::time::timeout(Duration::from_secs(60), async {
        while storage.snapshot().available.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is taken up");
    assert_eq!(storage.snapshot().unavailable, []);
    assert!(agent.roots.tree(&abs(&path.join("below"))).is_some());
    // What waiting does not mend is an error.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bad = config("late", "127.0.0.1");
    bad.data_plane_endpoints[0].endpoint.port = Some(taken.local_addr().unwrap().port());
    let error = bind(bad).await.err().expect("the port is taken");
    assert!(format!("{error:#}").contains("nothing else uses the port"), "{error:#}");
}
