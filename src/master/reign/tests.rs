//! Masters on one store in memory, which fails and forgets on demand.

use super::super::handle::Handle;
use super::super::name_key::NameKeyFile;
use super::super::seat::Identity;
use super::*;
use crate::scheduler::Select;
use crate::store::MemoryStore;
use crate::wire::leader::{MasterRole, ReadinessStatus};
use crate::wire::sync::SyncRequest;
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(5);

struct Master {
    handle: Handle,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Master {
    /// One of this name, which has not been heard of yet.
    fn start(name: &str, store: &MemoryStore) -> Master {
        let store = store.another_handle();
        let (seat, seen) = watch::channel(Seat::Nobody(Why::Change("begins")));
        let handle = Handle::new(seen, Identity::default(), Spool::passing());
        let stop = CancellationToken::new();
        let reigns = Reigns {
            name: name.to_owned(),
            url: Some(format!("http://{name}")),
            lease: LEASE,
            settings: watch::channel(Settings::default()).1,
            spool: Spool::passing(),
            names: NameKeyFile::default(),
            seat,
            shutdown: stop.clone(),
            api_ended: stop.clone(),
        };
        let opened = Arc::new(store);
        let running = tokio::spawn(reigns.run(move || std::future::ready(Ok(Arc::clone(&opened)))));
        Master { handle, stop, running }
    }

    async fn is(&self, status: ReadinessStatus) {
        let seen = self.handle.told(|told| told.status == status);
        let waited = tokio::time::timeout(Duration::from_secs(60), seen).await;
        assert!(waited.is_ok(), "{status:?}: {:?}", self.handle.readiness());
    }

    async fn submit(&self, id: &str) {
        let request: SyncRequest = serde_json::from_value(serde_json::json!({
            "request_id": id, "source_path": "/src", "destination_path": "/dst"
        }))
        .unwrap();
        self.handle.submit(request, None).await.unwrap();
    }

    async fn syncs(&self) -> usize {
        self.handle.list(Select::default()).await.unwrap().syncs.len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_stopped_is_followed_at_once_by_one_that_knows_all() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = Master::start("two", &store);
    two.is(ReadinessStatus::Following).await;
    let seen = two.handle.readiness();
    let leader = seen.leader.expect("it knows who leads");
    assert_eq!((seen.role, leader.url.as_deref()), (MasterRole::Follower, Some("http://one")));
    assert_eq!(leader, one.handle.readiness().leader.unwrap());
    assert_eq!(two.handle.list(Select::default()).await.unwrap_err().status, 307);
    let begun = Instant::now();
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    two.is(ReadinessStatus::Ready).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(two.syncs().await, 1);
    assert!(two.handle.readiness().leader.unwrap().epoch > leader.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_follower_leaves_a_living_leader_the_time_to_write_back_what_the_store_lost() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = Master::start("two", &store);
    two.is(ReadinessStatus::Following).await;
    for _ in 0..3 {
        store.roll_back_to(0);
        // Long enough for the follower to ask many times.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(one.handle.readiness().status, ReadinessStatus::Ready);
        assert_eq!((one.syncs().await, store.load().await.unwrap().contains_key("s/1")), (1, true));
    }
    assert_eq!(two.handle.readiness().leader, one.handle.readiness().leader);
}

#[tokio::test(start_paused = true)]
async fn a_master_that_dies_is_followed_when_its_lease_ends() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    let two = Master::start("two", &store);
    two.is(ReadinessStatus::Following).await;
    let begun = Instant::now();
    one.running.abort();
    two.is(ReadinessStatus::Ready).await;
    assert!(begun.elapsed() <= LEASE + ASK, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_data_with_its_leader_is_led_all_the_same_in_the_end() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = Master::start("two", &store);
    two.is(ReadinessStatus::Following).await;
    one.running.abort();
    store.roll_back_to(0);
    two.is(ReadinessStatus::Unavailable).await;
    assert_eq!(two.handle.list(Select::default()).await.unwrap_err().code, "no_leader");
    two.is(ReadinessStatus::Ready).await;
    assert_eq!(two.syncs().await, 0);
}

#[tokio::test(start_paused = true)]
async fn of_two_masters_with_one_name_the_older_ends_and_says_what_to_do() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    let other = Master::start("one", &store);
    let refused = one.running.await.unwrap().unwrap_err();
    assert!(format!("{refused:#}").contains("advertise_url"), "{refused:#}");
    other.is(ReadinessStatus::Ready).await;
}

#[tokio::test]
async fn a_lead_counts_from_when_it_was_asked_for_however_late_the_store_answers() {
    const LATE: Duration = Duration::from_millis(100);
    let late_ms = LATE.as_millis() as u64;
    let store = MemoryStore::new();
    store.answer_after(LATE);
    let (seat, _seen) = watch::channel(Seat::Nobody(Why::Change("begins")));
    let stop = CancellationToken::new();
    let reigns = Reigns {
        name: "one".to_owned(),
        url: None,
        lease: Duration::from_millis(400),
        settings: watch::channel(Settings::default()).1,
        spool: Spool::passing(),
        names: NameKeyFile::default(),
        seat,
        shutdown: stop.clone(),
        api_ended: stop,
    };
    let lead = reigns.follow(&store, &mut Fence::default()).await.unwrap().unwrap();
    let now_ms = || owner::loading_time().mono_ms;
    assert!(lead.tenure.asked_ms + late_ms <= now_ms(), "it counts from the answer");
    // While the state is loaded it is renewed.
    let keeper = Keeper::start(Arc::new(store), lead.tenure);
    let renewed = async {
        while keeper.asked_ms.load(Ordering::Relaxed) == lead.tenure.asked_ms {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    assert!(keeper.end() + late_ms <= now_ms(), "it counts from the answer");
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_a_follower_says_so() {
    let store = MemoryStore::new();
    let one = Master::start("one", &store);
    one.is(ReadinessStatus::Ready).await;
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    for _ in 0..3 {
        store.fail_next(crate::store::StoreError::Unavailable("gone fishing".into()));
    }
    let two = Master::start("two", &store);
    two.is(ReadinessStatus::Unavailable).await;
    two.handle.told(|told| !told.store.ok).await;
    let problem = two.handle.list(Select::default()).await.unwrap_err();
    assert_eq!(problem.code, "store_unavailable");
    assert!(problem.detail.contains("gone fishing"), "{}", problem.detail);
    two.is(ReadinessStatus::Ready).await;
}
