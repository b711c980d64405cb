//! The owner on a store that fails and forgets on demand.

use super::super::handle::{BlobReader, Handle};
use super::super::listing::Wanted;
use super::*;
use crate::scheduler::{Select, Settings};
use crate::store::{Acquired, Candidate, MemoryStore};
use crate::wire::sync::{SyncRequest, SyncState};
use crate::wire::worker::WorkerHeartbeat;
use crate::wire::{RequestId, WorkerId};
use std::sync::atomic::{AtomicU64, Ordering};

const LEASE: Duration = Duration::from_secs(15);

struct World {
    store: MemoryStore,
    handle: Handle,
    owning: tokio::task::JoinHandle<Result<(), StoreError>>,
    stop: CancellationToken,
}

async fn start() -> World {
    start_with(Spool::passing()).await
}

async fn start_with(spool: Spool) -> World {
    let store = MemoryStore::new();
    let mine = store.another_handle();
    let Ok(Acquired::Leader(fence)) = mine.acquire(&"m".into(), LEASE).await else {
        panic!("no lead")
    };
    let records = mine.load().await.unwrap();
    let state = State::load(Settings::default(), [1; 32], &records, now()).unwrap();
    let tenure = Tenure { fence, lease: LEASE, asked_ms: now().mono_ms };
    let (tx, requests) = mpsc::channel(16);
    let (health, seen) = watch::channel(Ok(()));
    let blobs: BlobReader = Arc::new(|_| Box::pin(async { Ok(None) }));
    let stop = CancellationToken::new();
    let settings = watch::channel(Settings::default()).1;
    let owner =
        Owner::new(Arc::new(mine), state, tenure, requests, health, spool.clone(), settings);
    let owning = tokio::spawn(owner.run(stop.clone()));
    World { store, handle: Handle::of_owner(tx, seen, blobs, spool), owning, stop }
}

fn request(id: &str) -> SyncRequest {
    serde_json::from_value(serde_json::json!({
        "request_id": id, "source_path": "/src", "destination_path": "/dst"
    }))
    .unwrap()
}

fn heartbeat() -> WorkerHeartbeat {
    serde_json::from_value(serde_json::json!({
        "worker_id": "w", "status": "READY", "storage_paths": ["/src", "/dst"],
        "incarnation": "1", "protocol": 2,
    }))
    .unwrap()
}

fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

#[tokio::test]
async fn what_was_answered_is_in_the_store() {
    let world = start().await;
    world.handle.submit(request("demo"), None).await.unwrap();
    let records = world.store.load().await.unwrap();
    let state = State::load(Settings::default(), [2; 32], &records, now()).unwrap();
    assert!(state.record("s/1").is_some());
    world.stop.cancel();
    world.owning.await.unwrap().unwrap();
    assert_eq!(world.store.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_is_away_for_a_moment_is_written_to_when_it_is_back() {
    let world = start().await;
    world.store.fail_next(StoreError::Unavailable("away".into()));
    world.handle.submit(request("demo"), None).await.unwrap();
    world.store.lose_next_reply(StoreError::Unavailable("lost reply".into()));
    world.handle.submit(request("other"), None).await.unwrap();
    assert_eq!(world.handle.list(Select::default()).await.unwrap().syncs.len(), 2);
    assert_eq!(world.store.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_was_rolled_back_gets_everything_back() {
    let world = start().await;
    world.handle.submit(request("first"), None).await.unwrap();
    world.handle.submit(request("second"), None).await.unwrap();
    world.store.roll_back_to(0);
    world.handle.submit(request("third"), None).await.unwrap();
    let records = world.store.load().await.unwrap();
    for key in ["meta", "s/1", "s/2", "s/3"] {
        assert!(records.contains_key(key), "{key} of {:?}", records.keys());
    }
    assert_eq!(world.handle.progress(id("first")).await.unwrap().state, SyncState::Queued);
}

#[tokio::test]
async fn a_deposed_master_stops_and_answers_nobody() {
    let world = start().await;
    let other = world.store.another_handle();
    assert!(matches!(other.acquire(&"m".into(), LEASE).await, Ok(Acquired::Leader(_))));
    let problem = world.handle.submit(request("demo"), None).await.unwrap_err();
    assert_eq!(problem.status, 503);
    let ended = world.owning.await.unwrap();
    assert!(matches!(ended, Err(StoreError::Deposed { .. })), "{ended:?}");
}

#[tokio::test]
async fn an_assignment_whose_caller_went_away_is_not_lost() {
    let world = start().await;
    world.handle.heartbeat(heartbeat()).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let poll = |wait| world.handle.poll(worker.clone(), Some("1".into()), None, wait);
    let gone = tokio::time::timeout(Duration::from_millis(50), poll(Duration::from_secs(20)));
    assert!(gone.await.is_err(), "there is no work yet");
    world.handle.submit(request("demo"), None).await.unwrap();
    let got = poll(Duration::from_secs(5)).await.unwrap();
    assert_eq!(got.expect("the scan").request_id, id("demo"));
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_a_loss_found_by_a_renewal_gives_work_to_is_answered() {
    let world = start().await;
    world.handle.heartbeat(heartbeat()).await.unwrap();
    world.handle.submit(request("demo"), None).await.unwrap();
    let poll = || {
        let worker: WorkerId = "w".parse().unwrap();
        world.handle.poll(worker, Some("1".into()), None, Duration::from_secs(20))
    };
    let first = poll().await.unwrap().expect("the scan");
    world.store.roll_back_to(1);
    let again = poll().await.unwrap().expect("it begins anew");
    assert_ne!(again.task_id, first.task_id);
}

#[tokio::test(start_paused = true)]
async fn a_master_can_be_stopped_while_a_store_that_lost_data_is_away() {
    let world = start().await;
    world.handle.submit(request("demo"), None).await.unwrap();
    world.store.fail_next(StoreError::Lost { expected: 1, found: 0 });
    for _ in 0..1_000 {
        world.store.fail_next(StoreError::Unavailable("away".into()));
    }
    assert_eq!(world.handle.submit(request("other"), None).await.unwrap_err().status, 503);
    world.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(60), world.owning).await;
    assert!(matches!(ended, Ok(Ok(Err(StoreError::Unavailable(_))))), "{ended:?}");
}

#[tokio::test]
async fn a_list_that_cannot_be_written_is_told_of_and_the_sync_goes_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // A file stands where the directory would be made.
    let world = start_with(Spool::at(file.path().join("records"))).await;
    world.handle.heartbeat(heartbeat()).await.unwrap();
    let mut recorded = request("demo");
    recorded.options.record = true;
    world.handle.submit(recorded, None).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let wait = Duration::from_secs(5);
    let scan = world.handle.poll(worker.clone(), Some("1".into()), None, wait).await;
    let scan = scan.unwrap().expect("the scan");
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null,
        "errors": [{"path": "x", "operation": "open source", "message": "no"}],
    }));
    world.handle.page(worker, scan.assignment_id, page.unwrap()).await.unwrap();
    let end = world.handle.progress(id("demo")).await.unwrap();
    assert_eq!(end.files_failed, 1);
    let wanted = Wanted::Records(vec![]);
    let problem = world.handle.listing(id("demo"), wanted).await.unwrap_err();
    assert_eq!(problem.code, "records_lost");
}

#[tokio::test]
async fn large_lists_are_not_all_stored_in_one_commit() {
    let world = start().await;
    let submit = |n: u32| {
        let names = (0..9_000).map(|i| format!("{i:0>250}"));
        let list = names.map(|name| crate::wire::BytePath(name.into_bytes()));
        let request =
            SyncRequest { file_list: Some(list.collect()), ..request(&format!("sync-{n}")) };
        world.handle.submit(request, None)
    };
    let all = futures_util::future::join_all((0..16).map(submit)).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(world.store.commits() >= 2, "{} commits", world.store.commits());
}

/// A store whose answers come late. It notes when it was asked last, and counts its answers to renewals.
struct Late {
    inner: MemoryStore,
    asked_ms: AtomicU64,
    renewals: AtomicU64,
}

impl Late {
    async fn late(&self) {
        self.asked_ms.store(now().mono_ms, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

impl Store for Late {
    async fn acquire(&self, who: &Candidate, ttl: Duration) -> Result<Acquired, StoreError> {
        self.inner.acquire(who, ttl).await
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        self.late().await;
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
        self.late().await;
        self.inner.commit(fence, batch).await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.blob(key).await
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.inner.blob_keys().await
    }
}

#[tokio::test]
async fn leadership_lasts_from_when_the_store_was_asked_however_late_it_answers() {
    let inner = MemoryStore::new();
    let Ok(Acquired::Leader(fence)) = inner.acquire(&"m".into(), LEASE).await else {
        panic!("no lead")
    };
    let (asked_ms, renewals) = (AtomicU64::new(0), AtomicU64::new(0));
    let store = Arc::new(Late { inner, asked_ms, renewals });
    let state = State::load(Settings::default(), [1; 32], &BTreeMap::new(), now()).unwrap();
    let lease = Duration::from_secs(15);
    let tenure = Tenure { fence, lease, asked_ms: 0 };
    let (_tx, requests) = mpsc::channel(16);
    let (health, _seen) = watch::channel(Ok(()));
    let settings = watch::channel(Settings::default()).1;
    let mut owner =
        Owner::new(Arc::clone(&store), state, tenure, requests, health, Spool::passing(), settings);
    let stop = CancellationToken::new();
    let asked = || store.asked_ms.load(Ordering::SeqCst);
    for way in ["renew", "prove", "commit", "renewals beside a call"] {
        owner.tenure.asked_ms = 0;
        let mut pending = Pending::default();
        match way {
            "renew" => owner.renew(&stop).await.unwrap(),
            "prove" => assert!(owner.prove(&mut pending, &stop).await.unwrap()),
            "commit" => {
                pending.touched.insert("meta".to_owned());
                assert!(owner.settle(pending, &stop).await.unwrap());
            }
            _ => {
                owner.tenure.lease = Duration::from_millis(40);
                let wanted = store.renewals.load(Ordering::SeqCst) + 2;
                let store = Arc::clone(&store);
                let call = async move {
                    while store.renewals.load(Ordering::SeqCst) < wanted {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                };
                owner.guarded(call).await;
            }
        }
        let counted = owner.tenure.asked_ms;
        assert!(counted > 0 && counted <= asked(), "{way}: {counted}, asked at {}", asked());
    }
}

#[tokio::test]
async fn a_batch_that_was_lost_with_its_workers_is_read_from_the_store_and_split() {
    let world = start().await;
    let worker: WorkerId = "w".parse().unwrap();
    let beat = |incarnation: u32| {
        let mut beat = heartbeat();
        beat.incarnation = Some(incarnation.to_string());
        world.handle.heartbeat(beat)
    };
    let poll = |incarnation: u32| {
        let wait = Duration::from_secs(20);
        world.handle.poll(worker.clone(), Some(incarnation.to_string()), None, wait)
    };
    beat(1).await.unwrap();
    world.handle.submit(request("demo"), None).await.unwrap();
    let scan = poll(1).await.unwrap().expect("the scan");
    let manifest =
        crate::wire::manifest::Manifest { dirs: vec![], entries: ["a", "b"].map(entry).to_vec() };
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null,
        "work": [crate::wire::task::WorkItem::Copy {
            manifest: crate::wire::task::Base64Bytes(manifest.encode()), files: 2, dirs: 0, bytes: 2,
        }],
    }));
    world.handle.page(worker.clone(), scan.assignment_id, page.unwrap()).await.unwrap();
    for incarnation in 1..=3 {
        let copy = poll(incarnation).await.unwrap().expect("the batch");
        assert!(format!("{:?}", copy.task).contains("files: 2"), "{:?}", copy.task);
        // A process that is heard of sooner was there before the task was given.
        tokio::time::sleep(Duration::from_millis(10)).await;
        beat(incarnation + 1).await.unwrap();
    }
    for _ in 0..2 {
        let one = poll(4).await.unwrap().expect("an entry");
        assert!(format!("{:?}", one.task).contains("files: 1"), "{:?}", one.task);
        let report = TaskReport { files_done: 1, bytes_done: 1, ..TaskReport::default() };
        let result = TaskResult { success: true, report: Some(report), ..handed_back(&one) };
        world.handle.result(result).await.unwrap();
    }
    assert_eq!(world.handle.progress(id("demo")).await.unwrap().files_done, 2);
    world.stop.cancel();
    world.owning.await.unwrap().unwrap();
}

fn entry(name: &str) -> crate::wire::manifest::Entry {
    use crate::wire::manifest::{Entry, EntryKind, FileVersion, Meta};
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let path = crate::wire::RelPath::new(name).unwrap();
    Entry::new(path, EntryKind::File { size: 1 }, meta, FileVersion::default())
}

#[tokio::test]
async fn a_store_that_was_rolled_back_keeps_the_failures_of_syncs_that_have_ended() {
    let world = start().await;
    world.handle.heartbeat(heartbeat()).await.unwrap();
    world.handle.submit(request("demo"), None).await.unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let wait = Duration::from_secs(20);
    let scan = world.handle.poll(worker.clone(), Some("1".into()), None, wait).await.unwrap();
    let scan = scan.expect("the scan");
    let page = serde_json::from_value(serde_json::json!({
        "task_digest": scan.task_digest, "page": 0, "next": null, "work": [],
        "errors": [{
            "path": "x", "operation": "open source", "message": "no", "attempt": 1, "class": "permanent",
        }],
    }));
    world.handle.page(worker, scan.assignment_id, page.unwrap()).await.unwrap();
    assert_eq!(world.handle.progress(id("demo")).await.unwrap().state, SyncState::Failed);
    let ended = world.store.commits();
    world.handle.submit(request("second"), None).await.unwrap();
    world.store.roll_back_to(ended);
    world.handle.submit(request("third"), None).await.unwrap();
    assert!(world.store.load().await.unwrap().contains_key("s/3"), "all is written back");
    assert!(world.store.blob("e/1/0").await.unwrap().is_some());
}
