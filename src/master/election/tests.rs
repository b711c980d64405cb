//! Masters on one store in memory, which fails and forgets on demand.

use super::super::handle::MasterHandle;
use super::super::leadership::MasterIdentity;
use super::super::name_key::NameKeyFile;
use super::super::requests::ListSyncs;
use super::super::testing::{submit, sync_request};
use super::*;
use crate::scheduler::{SyncPage, SyncQuery};
use crate::store::MemoryStore;
use crate::wire::leader::{MasterRole, ReadinessStatus};
use crate::wire::problem::Problem;
use tokio::task::JoinHandle;

const LEASE: Duration = Duration::from_secs(5);

struct TestMaster {
    handle: MasterHandle,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl TestMaster {
    /// One of this name, which has not been heard of yet.
    fn start(name: &str, store: &MemoryStore) -> TestMaster {
        let store = store.another_handle();
        let (seat, seen) =
            watch::channel(LeadershipStatus::NoLeader(NoLeaderReason::Transition("begins")));
        let handle = MasterHandle::new(seen, MasterIdentity::default(), Spool::temporary());
        let stop = CancellationToken::new();
        let reigns = LeaderElection {
            name: name.to_owned(),
            url: Some(format!("http://{name}")),
            lease: LEASE,
            settings: watch::channel(Settings::default()).1,
            spool: Spool::temporary(),
            name_key_file: NameKeyFile::default(),
            status: seat,
            shutdown: stop.clone(),
            api_ended: stop.clone(),
        };
        let opened = Arc::new(store);
        let running = tokio::spawn(reigns.run(move || std::future::ready(Ok(Arc::clone(&opened)))));
        TestMaster { handle, stop, running }
    }

    async fn wait_for_status(&self, status: ReadinessStatus) {
        let seen = self.handle.wait_for_readiness(|told| told.status == status);
        let waited = tokio::time::timeout(Duration::from_secs(60), seen).await;
        assert!(waited.is_ok(), "{status:?}: {:?}", self.handle.readiness());
    }

    async fn submit(&self, id: &str) {
        submit(&self.handle, sync_request(id)).await.unwrap();
    }

    async fn list_syncs(&self) -> Result<SyncPage, Problem> {
        self.handle.send(ListSyncs { query: SyncQuery::default() }).await
    }

    async fn count_syncs(&self) -> usize {
        self.list_syncs().await.unwrap().syncs.len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_at_once_from_a_master_that_stops() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Following).await;
    let seen = two.handle.readiness();
    let leader = seen.leader.expect("it knows who leads");
    assert_eq!((seen.role, leader.url.as_deref()), (MasterRole::Follower, Some("http://one")));
    assert_eq!(leader, one.handle.readiness().leader.unwrap());
    assert_eq!(two.list_syncs().await.unwrap_err().status, 307);
    let begun = Instant::now();
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    two.wait_for_status(ReadinessStatus::Ready).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(two.count_syncs().await, 1);
    assert!(two.handle.readiness().leader.unwrap().epoch > leader.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_while_the_leader_writes_back_what_the_store_lost() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Following).await;
    for _ in 0..3 {
        store.roll_back_to(0);
        // Long enough for the follower to ask many times.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(one.handle.readiness().status, ReadinessStatus::Ready);
        assert_eq!(
            (one.count_syncs().await, store.load().await.unwrap().contains_key("s/1")),
            (1, true)
        );
    }
    assert_eq!(two.handle.readiness().leader, one.handle.readiness().leader);
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_when_the_lease_of_a_crashed_leader_expires() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Following).await;
    let begun = Instant::now();
    one.running.abort();
    two.wait_for_status(ReadinessStatus::Ready).await;
    assert!(begun.elapsed() <= LEASE + ACQUIRE_INTERVAL, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_follower_leads_a_store_that_lost_data_once_the_leader_had_time_to_write_back() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Following).await;
    one.running.abort();
    store.roll_back_to(0);
    two.wait_for_status(ReadinessStatus::Unavailable).await;
    assert_eq!(two.list_syncs().await.unwrap_err().code, "no_leader");
    two.wait_for_status(ReadinessStatus::Ready).await;
    assert_eq!(two.count_syncs().await, 0);
}

#[tokio::test(start_paused = true)]
async fn of_two_masters_with_one_name_the_older_one_stops_with_a_hint() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    let other = TestMaster::start("one", &store);
    let refused = one.running.await.unwrap().unwrap_err();
    assert!(format!("{refused:#}").contains("advertise_url"), "{refused:#}");
    other.wait_for_status(ReadinessStatus::Ready).await;
}

#[tokio::test]
async fn the_lease_starts_when_leadership_is_requested_and_not_when_it_is_granted() {
    const LATE: Duration = Duration::from_millis(100);
    let late_ms = LATE.as_millis() as u64;
    let store = MemoryStore::new();
    store.delay_replies(LATE);
    let (seat, _seen) =
        watch::channel(LeadershipStatus::NoLeader(NoLeaderReason::Transition("begins")));
    let stop = CancellationToken::new();
    let reigns = LeaderElection {
        name: "one".to_owned(),
        url: None,
        lease: Duration::from_millis(400),
        settings: watch::channel(Settings::default()).1,
        spool: Spool::temporary(),
        name_key_file: NameKeyFile::default(),
        status: seat,
        shutdown: stop.clone(),
        api_ended: stop,
    };
    let lead = reigns.wait_for_leadership(&store, &mut Fence::default()).await.unwrap().unwrap();
    let now_ms = || state_actor::loading_time().mono_ms;
    assert!(lead.lease.requested_at_ms + late_ms <= now_ms(), "it counts from the answer");
    // While the state is loaded it is renewed.
    let keeper = LeaseKeepAlive::start(Arc::new(store), lead.lease);
    let renewed = async {
        while keeper.requested_at_ms.load(Ordering::Relaxed) == lead.lease.requested_at_ms {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    assert!(keeper.stop() + late_ms <= now_ms(), "it counts from the answer");
}

#[tokio::test(start_paused = true)]
async fn a_follower_reports_that_the_store_is_unavailable() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    for _ in 0..3 {
        store.fail_next(crate::store::StoreError::Unavailable("gone fishing".into()));
    }
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Unavailable).await;
    two.handle.wait_for_readiness(|told| !told.store.ok).await;
    let problem = two.list_syncs().await.unwrap_err();
    assert_eq!(problem.code, "store_unavailable");
    assert!(problem.detail.contains("gone fishing"), "{}", problem.detail);
    two.wait_for_status(ReadinessStatus::Ready).await;
}
