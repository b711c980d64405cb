//! The actor on a store that fails and loses data on demand.

use super::super::channel::BlobReader;
use super::super::file_records::FileRecordQuery;
use super::super::handle::MasterHandle;
use super::super::requests::{GetSync, ListSyncs, PostPage, PostResult, SendHeartbeat};
use super::super::testing::{audit_entries, audit_log, submit, sync_request as request};
use super::*;
use crate::scheduler::{Settings, SyncQuery};
use crate::store::{AcquireOutcome, Candidate, Fence, MemoryStore};
use crate::wire::sync::{SyncRequest, SyncState};
use crate::wire::worker::WorkerHeartbeat;
use crate::wire::{RequestId, WorkerId};
use std::sync::atomic::{AtomicU64, Ordering};

const LEASE: Duration = Duration::from_secs(15);

struct TestActor {
    store: MemoryStore,
    handle: MasterHandle,
    task: tokio::task::JoinHandle<Result<(), StoreError>>,
    stop: CancellationToken,
}

async fn start() -> TestActor {
    start_with(Spool::temporary()).await
}

/// An actor that leads on an empty store.
fn actor_on<S: Store>(store: Arc<S>, fence: Fence) -> (StateActor<S>, mpsc::Sender<ActorRequest>) {
    let (sender, requests) = mpsc::channel(16);
    let state =
        State::load(Settings::default(), [1; 32], &BTreeMap::new(), current_time()).unwrap();
    let requested_at_ms = current_time().mono_ms;
    let actor = StateActor {
        store,
        state,
        lease: LeaderLease { fence, duration: LEASE, requested_at_ms },
        requests,
        health: watch::channel(Ok(())).0,
        spool: Spool::temporary(),
        audit: AuditHandle::default(),
        settings: watch::channel(Settings::default()).1,
        callers: Callers::default(),
        tokens: watch::channel(Default::default()).0,
        agents: watch::channel(Default::default()).0,
        authority: watch::channel(None).0,
        manifest_reads: Vec::new(),
        shutdown: CancellationToken::new(),
    };
    (actor, sender)
}

async fn acquire_leadership(store: &MemoryStore) -> Fence {
    match store.acquire(&"m".into(), LEASE).await {
        Ok(AcquireOutcome::Leader(fence)) => fence,
        other => panic!("{other:?}"),
    }
}

async fn start_with(spool: Spool) -> TestActor {
    let store = MemoryStore::new();
    let own_handle = store.another_handle();
    let fence = acquire_leadership(&own_handle).await;
    let (actor, requests) = actor_on(Arc::new(own_handle), fence);
    let actor = StateActor { spool: spool.clone(), ..actor };
    let blobs: BlobReader = Arc::new(|_| Box::pin(async { Ok(None) }));
    let handle = MasterHandle::for_actor(requests, actor.health.subscribe(), blobs, spool);
    let stop = actor.shutdown.clone();
    let task = tokio::spawn(actor.run());
    TestActor { store, handle, task, stop }
}

fn heartbeat() -> WorkerHeartbeat {
    serde_json::from_value(serde_json::json!({
        "worker_id": "w", "status": "READY", "storage_paths": ["/src", "/dst"],
        "incarnation": "1", "protocol": 1,
    }))
    .unwrap()
}

fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_reply_is_sent_after_its_decision_is_stored() {
    let actor = start().await;
    submit(&actor.handle, request("demo")).await.unwrap();
    let records = actor.store.load().await.unwrap();
    let state = State::load(Settings::default(), [2; 32], &records, current_time()).unwrap();
    assert!(state.record("s/1").is_some());
    actor.stop.cancel();
    actor.task.await.unwrap().unwrap();
    assert_eq!(actor.store.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_commit_is_retried_until_the_store_is_available() {
    let actor = start().await;
    actor.store.fail_next(StoreError::Unavailable("down".into()));
    submit(&actor.handle, request("demo")).await.unwrap();
    actor.store.lose_next_reply(StoreError::Unavailable("lost reply".into()));
    submit(&actor.handle, request("other")).await.unwrap();
    assert_eq!(
        actor.handle.send(ListSyncs { query: SyncQuery::default() }).await.unwrap().syncs.len(),
        2
    );
    assert_eq!(actor.store.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_was_rolled_back_gets_the_whole_state_again() {
    let actor = start().await;
    submit(&actor.handle, request("first")).await.unwrap();
    submit(&actor.handle, request("second")).await.unwrap();
    actor.store.roll_back_to(0);
    submit(&actor.handle, request("third")).await.unwrap();
    let records = actor.store.load().await.unwrap();
    for key in ["meta", "s/1", "s/2", "s/3"] {
        assert!(records.contains_key(key), "{key} of {:?}", records.keys());
    }
    assert_eq!(
        actor.handle.send(GetSync { id: id("first") }).await.unwrap().state,
        SyncState::Queued
    );
}

#[tokio::test]
async fn a_deposed_master_stops_and_sends_no_reply() {
    let actor = start().await;
    let other = actor.store.another_handle();
    assert!(matches!(other.acquire(&"m".into(), LEASE).await, Ok(AcquireOutcome::Leader(_))));
    let problem = submit(&actor.handle, request("demo")).await.unwrap_err();
    assert_eq!(problem.status, 503);
    let ended = actor.task.await.unwrap();
    assert!(matches!(ended, Err(StoreError::Deposed { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_change_is_recorded_before_its_commit_and_again_if_the_store_does_not_confirm_it() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, _config) = audit_log(dir.path());
    let store = MemoryStore::new();
    let own_handle = store.another_handle();
    let fence = acquire_leadership(&own_handle).await;
    let (actor, requests) = actor_on(Arc::new(own_handle), fence);
    let actor = StateActor { audit, ..actor };
    let blobs: BlobReader = Arc::new(|_| Box::pin(async { Ok(None) }));
    let health = actor.health.subscribe();
    let handle = MasterHandle::for_actor(requests, health, blobs, Spool::temporary());
    let task = tokio::spawn(actor.run());
    let submit = async |id: &str| {
        let entry = AuditEntry { action: "sync.submit".into(), ..AuditEntry::default() };
        audit::record_while(entry, true, submit(&handle, request(id))).await.0
    };
    submit("first").await.unwrap();
    // A request that is refused has no line of the actor, and neither has one that only reads.
    assert_eq!(submit("first").await.unwrap_err().status, 409);
    handle.send(ListSyncs { query: SyncQuery::default() }).await.unwrap();
    let other = store.another_handle();
    assert!(matches!(other.acquire(&"m".into(), LEASE).await, Ok(AcquireOutcome::Leader(_))));
    assert_eq!(submit("second").await.unwrap_err().status, 503);
    assert!(matches!(task.await.unwrap(), Err(StoreError::Deposed { .. })));
    let entries = audit_entries(dir.path());
    let outcomes: Vec<_> =
        entries.iter().skip(1).map(|e| (e.sync.as_deref().unwrap(), e.status.unwrap())).collect();
    assert_eq!(outcomes, [("first", 202), ("second", 202), ("second", 503)]);
    assert!(entries[3].detail.is_some() && entries[2].detail.is_none());
}

#[tokio::test]
async fn an_assignment_for_a_disconnected_poll_is_returned_to_the_queue() {
    let actor = start().await;
    actor.handle.send(SendHeartbeat { heartbeat: heartbeat() }).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let poll = |wait| actor.handle.poll(worker.clone(), Some("1".into()), None, wait);
    let early = tokio::time::timeout(Duration::from_millis(50), poll(Duration::from_secs(20)));
    assert!(early.await.is_err(), "there is no work yet");
    submit(&actor.handle, request("demo")).await.unwrap();
    let assignment = poll(Duration::from_secs(5)).await.unwrap();
    assert_eq!(assignment.expect("the scan").request_id, id("demo"));
}

#[tokio::test(start_paused = true)]
async fn a_poll_gets_its_reply_after_a_renewal_detects_data_loss() {
    let actor = start().await;
    actor.handle.send(SendHeartbeat { heartbeat: heartbeat() }).await.unwrap();
    submit(&actor.handle, request("demo")).await.unwrap();
    let poll = || {
        let worker: WorkerId = "w".parse().unwrap();
        actor.handle.poll(worker, Some("1".into()), None, Duration::from_secs(20))
    };
    let first = poll().await.unwrap().expect("the scan");
    actor.store.roll_back_to(1);
    let again = poll().await.unwrap().expect("the scan restarts");
    assert_ne!(again.task_id, first.task_id);
}

#[tokio::test(start_paused = true)]
async fn a_master_stops_while_the_store_that_lost_data_is_unavailable() {
    let actor = start().await;
    submit(&actor.handle, request("demo")).await.unwrap();
    actor.store.fail_next(StoreError::DataLost { expected: 1, found: 0 });
    for _ in 0..1_000 {
        actor.store.fail_next(StoreError::Unavailable("down".into()));
    }
    assert_eq!(submit(&actor.handle, request("other")).await.unwrap_err().status, 503);
    actor.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(60), actor.task).await;
    assert!(matches!(ended, Ok(Ok(Err(StoreError::Unavailable(_))))), "{ended:?}");
}

#[tokio::test]
async fn a_write_error_of_the_file_records_is_reported_and_the_sync_continues() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // The directory cannot be created: its parent is a file.
    let actor = start_with(Spool::in_dir(file.path().join("records"))).await;
    actor.handle.send(SendHeartbeat { heartbeat: heartbeat() }).await.unwrap();
    let mut recorded = request("demo");
    recorded.options.record = true;
    submit(&actor.handle, recorded).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let wait = Duration::from_secs(5);
    let scan = actor.handle.poll(worker.clone(), Some("1".into()), None, wait).await;
    let scan = scan.unwrap().expect("the scan");
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null,
        "errors": [{"path": "x", "operation": "open source", "message": "no"}],
    }));
    actor
        .handle
        .send(PostPage { worker, assignment: scan.assignment_id, page: page.unwrap() })
        .await
        .unwrap();
    let progress = actor.handle.send(GetSync { id: id("demo") }).await.unwrap();
    assert_eq!(progress.files_failed, 1);
    let query = FileRecordQuery::Records(vec![]);
    let problem = actor.handle.stream_file_records(id("demo"), query).await.unwrap_err();
    assert_eq!(problem.code, "records_lost");
}

#[tokio::test]
async fn large_file_lists_are_split_over_several_commits() {
    let actor = start().await;
    let submit = |n: u32| {
        let names = (0..9_000).map(|i| format!("{i:0>250}"));
        let list = names.map(|name| crate::wire::BytePath(name.into_bytes()));
        let request =
            SyncRequest { file_list: Some(list.collect()), ..request(&format!("sync-{n}")) };
        submit(&actor.handle, request)
    };
    let all = futures_util::future::join_all((0..16).map(submit)).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(actor.store.commits() >= 2, "{} commits", actor.store.commits());
}

/// A store with delayed replies. It records the time of the last request and counts renewals.
struct SlowStore {
    inner: MemoryStore,
    requested_at_ms: AtomicU64,
    renewals: AtomicU64,
}

impl SlowStore {
    async fn delay(&self) {
        self.requested_at_ms.store(current_time().mono_ms, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

impl Store for SlowStore {
    async fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> Result<AcquireOutcome, StoreError> {
        self.inner.acquire(candidate, ttl).await
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        self.delay().await;
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.inner.renew(fence, ttl).await
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        self.inner.release(fence).await
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.inner.load().await
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        self.delay().await;
        self.inner.commit(fence, batch).await
    }

    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.record(key).await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.blob(key).await
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.inner.blob_keys().await
    }
}

#[tokio::test]
async fn the_lease_starts_when_the_renewal_is_sent_and_not_when_its_reply_arrives() {
    let inner = MemoryStore::new();
    let fence = acquire_leadership(&inner).await;
    let (requested_at_ms, renewals) = (AtomicU64::new(0), AtomicU64::new(0));
    let store = Arc::new(SlowStore { inner, requested_at_ms, renewals });
    let (mut actor, _requests) = actor_on(Arc::clone(&store), fence);
    let last_request_ms = || store.requested_at_ms.load(Ordering::SeqCst);
    for operation in ["renew", "confirm", "commit", "renewals during a call"] {
        actor.lease.requested_at_ms = 0;
        let mut pending = PendingCommit::default();
        match operation {
            "renew" => actor.renew_lease().await.unwrap(),
            "confirm" => assert!(actor.confirm_leadership(&mut pending).await.unwrap()),
            "commit" => {
                pending.dirty_keys.insert("meta".to_owned());
                assert!(actor.commit_and_reply(pending).await.unwrap());
            }
            _ => {
                actor.lease.duration = Duration::from_millis(40);
                let awaited = store.renewals.load(Ordering::SeqCst) + 2;
                let store = Arc::clone(&store);
                let call = async move {
                    while store.renewals.load(Ordering::SeqCst) < awaited {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                };
                actor.renewing_while(call).await;
            }
        }
        let start = actor.lease.requested_at_ms;
        let sent = last_request_ms();
        assert!(start > 0 && start <= sent, "{operation}: {start}, requested at {sent}");
    }
}

#[tokio::test]
async fn a_batch_that_was_lost_with_its_workers_is_split_into_its_entries() {
    let actor = start().await;
    let worker: WorkerId = "w".parse().unwrap();
    let send_heartbeat = |incarnation: u32| {
        let mut heartbeat = heartbeat();
        heartbeat.incarnation = Some(incarnation.to_string());
        actor.handle.send(SendHeartbeat { heartbeat })
    };
    let poll = |incarnation: u32| {
        let wait = Duration::from_secs(20);
        actor.handle.poll(worker.clone(), Some(incarnation.to_string()), None, wait)
    };
    send_heartbeat(1).await.unwrap();
    submit(&actor.handle, request("demo")).await.unwrap();
    let scan = poll(1).await.unwrap().expect("the scan");
    let manifest =
        crate::wire::manifest::Manifest { dirs: vec![], entries: ["a", "b"].map(entry).to_vec() };
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null,
        "work": [crate::wire::task::WorkItem::Copy {
            manifest: crate::wire::task::Base64Bytes(manifest.encode()), files: 2, dirs: 0, bytes: 2,
        }],
    }));
    actor
        .handle
        .send(PostPage {
            worker: worker.clone(),
            assignment: scan.assignment_id,
            page: page.unwrap(),
        })
        .await
        .unwrap();
    for incarnation in 1..=3 {
        let copy = poll(incarnation).await.unwrap().expect("the batch");
        assert!(format!("{:?}", copy.task).contains("files: 2"), "{:?}", copy.task);
        // A heartbeat in the same millisecond would count as one before the assignment.
        tokio::time::sleep(Duration::from_millis(10)).await;
        send_heartbeat(incarnation + 1).await.unwrap();
    }
    for _ in 0..2 {
        let single = poll(4).await.unwrap().expect("an entry");
        assert!(format!("{:?}", single.task).contains("files: 1"), "{:?}", single.task);
        let report = TaskReport { files_done: 1, bytes_done: 1, ..TaskReport::default() };
        let result = TaskResult { success: true, report: Some(report), ..returned_result(&single) };
        actor.handle.send(PostResult { result }).await.unwrap();
    }
    assert_eq!(actor.handle.send(GetSync { id: id("demo") }).await.unwrap().files_done, 2);
    actor.stop.cancel();
    actor.task.await.unwrap().unwrap();
}

fn entry(name: &str) -> crate::wire::manifest::Entry {
    use crate::wire::manifest::{Entry, EntryKind, FileVersion, Meta};
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let path = crate::wire::RelPath::new(name).unwrap();
    Entry::new(path, EntryKind::File { size: 1 }, meta, FileVersion::default())
}

#[tokio::test]
async fn a_rolled_back_store_keeps_the_failures_of_ended_syncs() {
    let actor = start().await;
    actor.handle.send(SendHeartbeat { heartbeat: heartbeat() }).await.unwrap();
    submit(&actor.handle, request("demo")).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let wait = Duration::from_secs(20);
    let scan = actor.handle.poll(worker.clone(), Some("1".into()), None, wait).await.unwrap();
    let scan = scan.expect("the scan");
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null, "work": [],
        "errors": [{
            "path": "x", "operation": "open source", "message": "no", "attempt": 1, "class": "permanent",
        }],
    }));
    actor
        .handle
        .send(PostPage { worker, assignment: scan.assignment_id, page: page.unwrap() })
        .await
        .unwrap();
    assert_eq!(
        actor.handle.send(GetSync { id: id("demo") }).await.unwrap().state,
        SyncState::Failed
    );
    let commits = actor.store.commits();
    submit(&actor.handle, request("second")).await.unwrap();
    actor.store.roll_back_to(commits);
    submit(&actor.handle, request("third")).await.unwrap();
    assert!(actor.store.load().await.unwrap().contains_key("s/3"), "all is written back");
    assert!(actor.store.blob("e/1/0").await.unwrap().is_some());
}
