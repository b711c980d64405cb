//! Several masters on one store in memory, which fails and loses data on demand.

use super::super::handle::MasterHandle;
use super::super::leadership::MasterIdentity;
use super::super::name_key::NameKeyFile;
use super::super::requests::{FinishRotation, ListSyncs, RotateAuthority};
use super::super::testing::{submit, sync_request};
use super::*;
use crate::identity::{AuthoritySet, CertificateAuthority, Sealer, SharedAuthorities};
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
    fn start(name: &str, store: &MemoryStore) -> TestMaster {
        Self::start_with_authority(name, store, None)
    }

    fn start_with_authority(
        name: &str,
        store: &MemoryStore,
        authority: Option<Arc<MasterAuthority>>,
    ) -> TestMaster {
        let store = store.another_handle();
        let (status, receiver) =
            watch::channel(LeadershipStatus::NoLeader(NoLeaderReason::Transition("start")));
        let handle = MasterHandle::new(receiver, MasterIdentity::default(), Spool::temporary());
        let stop = CancellationToken::new();
        let election = LeaderElection {
            name: name.to_owned(),
            url: Some(format!("http://{name}")),
            authority,
            replaces_authority: false.into(),
            lease: LEASE,
            settings: watch::channel(Settings::default()).1,
            spool: Spool::temporary(),
            audit: AuditHandle::default(),
            name_key_file: NameKeyFile::default(),
            admin_token_file: AdminTokenFile::default(),
            status,
            shutdown: stop.clone(),
            api_ended: stop.clone(),
        };
        let store = Arc::new(store);
        let running =
            tokio::spawn(election.run(move || std::future::ready(Ok(Arc::clone(&store)))));
        TestMaster { handle, stop, running }
    }

    async fn wait_for_status(&self, status: ReadinessStatus) {
        let reached = self.handle.wait_for_readiness(|readiness| readiness.status == status);
        let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
        assert!(reached.is_ok(), "{status:?}: {:?}", self.handle.readiness());
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

/// A leader with one sync, and a follower.
async fn start_leader_and_follower() -> (MemoryStore, TestMaster, TestMaster) {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.submit("demo").await;
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Following).await;
    (store, one, two)
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_at_once_from_a_master_that_stops() {
    let (_, one, two) = start_leader_and_follower().await;
    let readiness = two.handle.readiness();
    let leader = readiness.leader.expect("it knows the leader");
    assert_eq!((readiness.role, leader.url.as_deref()), (MasterRole::Follower, Some("http://one")));
    assert_eq!(leader, one.handle.readiness().leader.unwrap());
    assert_eq!(two.list_syncs().await.unwrap_err().status, 307);
    let start = Instant::now();
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    two.wait_for_status(ReadinessStatus::Ready).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(two.count_syncs().await, 1);
    assert!(two.handle.readiness().leader.unwrap().epoch > leader.epoch);
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_while_the_leader_writes_back_what_the_store_lost() {
    let (store, one, two) = start_leader_and_follower().await;
    for _ in 0..3 {
        store.roll_back_to(0);
        // The follower requests the lease many times meanwhile.
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
    let (_, one, two) = start_leader_and_follower().await;
    let start = Instant::now();
    one.running.abort();
    two.wait_for_status(ReadinessStatus::Ready).await;
    assert!(start.elapsed() <= LEASE + ACQUIRE_INTERVAL, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_follower_leads_a_store_that_lost_data_once_the_leader_had_time_to_write_back() {
    let (store, one, two) = start_leader_and_follower().await;
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
    const DELAY: Duration = Duration::from_millis(100);
    let delay_ms = DELAY.as_millis() as u64;
    let store = MemoryStore::new();
    store.delay_replies(DELAY);
    let (status, _receiver) =
        watch::channel(LeadershipStatus::NoLeader(NoLeaderReason::Transition("start")));
    let stop = CancellationToken::new();
    let election = LeaderElection {
        name: "one".to_owned(),
        url: None,
        authority: None,
        replaces_authority: false.into(),
        lease: Duration::from_millis(400),
        settings: watch::channel(Settings::default()).1,
        spool: Spool::temporary(),
        audit: AuditHandle::default(),
        name_key_file: NameKeyFile::default(),
        admin_token_file: AdminTokenFile::default(),
        status,
        shutdown: stop.clone(),
        api_ended: stop,
    };
    let won = election.wait_for_leadership(&store, &mut Fence::default()).await.unwrap();
    let (mut lease, _) = won.unwrap();
    let granted_at_ms = lease.requested_at_ms;
    let now_ms = || current_time().mono_ms;
    assert!(granted_at_ms + delay_ms <= now_ms(), "the lease counts from the reply");
    // The lease is renewed while the state is loaded.
    let renewed = async {
        while lease.requested_at_ms == granted_at_ms {
            let load = tokio::time::sleep(Duration::from_secs(1));
            lease.renewing_while(&store, load, || {}).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    assert!(lease.requested_at_ms + delay_ms <= now_ms(), "the lease counts from the reply");
}

#[tokio::test(start_paused = true)]
async fn a_follower_reports_that_the_store_is_unavailable() {
    let store = MemoryStore::new();
    let one = TestMaster::start("one", &store);
    one.wait_for_status(ReadinessStatus::Ready).await;
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    for _ in 0..3 {
        store.fail_next(crate::store::StoreError::Unavailable("connection refused".into()));
    }
    let two = TestMaster::start("two", &store);
    two.wait_for_status(ReadinessStatus::Unavailable).await;
    two.handle.wait_for_readiness(|readiness| !readiness.store.ok).await;
    let problem = two.list_syncs().await.unwrap_err();
    assert_eq!(problem.code, "store_unavailable");
    assert!(problem.detail.contains("connection refused"), "{}", problem.detail);
    two.wait_for_status(ReadinessStatus::Ready).await;
}

/// The authority of the master with this directory, with which it starts.
fn authority_in(dir: &std::path::Path) -> Arc<MasterAuthority> {
    let made = CertificateAuthority::load_or_create(dir, Some("site")).unwrap();
    let authorities = SharedAuthorities::new(AuthoritySet::of_issuer(Arc::new(made)));
    Arc::new(MasterAuthority::new(authorities, Sealer::for_tests(), dir).unwrap())
}

async fn wait_for_authority(authority: &MasterAuthority, hash: crate::wire::Digest) {
    let adopted = async {
        while authority.sealed().hash != hash {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), adopted).await.expect("it is adopted");
}

#[tokio::test(start_paused = true)]
async fn each_master_adopts_the_authority_that_replaces_its_own_also_after_it_was_stopped() {
    let store = MemoryStore::new();
    let home = tempfile::tempdir().unwrap();
    let dir = |name: &str| home.path().join(name);
    let first = authority_in(&dir("one"));
    for name in ["two", "three"] {
        std::fs::create_dir(dir(name)).unwrap();
        for file in ["ca.pem", "ca.key"] {
            std::fs::copy(dir("one").join(file), dir(name).join(file)).unwrap();
        }
    }
    let one = TestMaster::start_with_authority("one", &store, Some(first.clone()));
    one.wait_for_status(ReadinessStatus::Ready).await;
    let second = authority_in(&dir("two"));
    let two = TestMaster::start_with_authority("two", &store, Some(second.clone()));
    two.wait_for_status(ReadinessStatus::Following).await;
    let rotate = async |master: &TestMaster, authority: &MasterAuthority| {
        let current = authority.authorities().current();
        let lifetime = Duration::from_secs(60);
        let next =
            SealedAuthority::replacing(current.issuer(), &Sealer::for_tests(), lifetime).unwrap();
        master.handle.send(RotateAuthority { next: Box::new(next) }).await.unwrap().authority
    };
    let next = rotate(&one, &first).await;
    assert_eq!(rotate(&one, &first).await, next, "a repeat changes nothing");
    for authority in [&first, &second] {
        wait_for_authority(authority, next).await;
        assert!(authority.authorities().current().accepted_previous().is_some());
    }
    // In the middle of the rotation the second master takes over, and finishes it.
    one.stop.cancel();
    one.running.await.unwrap().unwrap();
    two.wait_for_status(ReadinessStatus::Ready).await;
    let finished = two.handle.send(FinishRotation { force: false }).await.unwrap();
    assert!(finished.previous.unwrap().finished_at.is_some());
    let refuses_former = async || {
        while second.authorities().current().accepted_previous().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refuses_former()).await.unwrap();
    // One that was stopped all the time has the former authority, and its files are replaced.
    let late = authority_in(&dir("three"));
    assert_ne!(late.sealed().hash, next);
    let three = TestMaster::start_with_authority("three", &store, Some(late.clone()));
    wait_for_authority(&late, next).await;
    three.wait_for_status(ReadinessStatus::Following).await;
    for name in ["one", "two", "three"] {
        let files = CertificateAuthority::load_or_create(&dir(name), None).unwrap();
        assert_eq!(crate::wire::Digest::from(files.hash()), next, "{name}");
    }
    for master in [three, two] {
        master.stop.cancel();
        master.running.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_with_another_authority_than_the_leader_ends() {
    let store = MemoryStore::new();
    let dir = tempfile::tempdir().unwrap();
    let authority = |name: &str| Some(authority_in(&dir.path().join(name)));
    let one = TestMaster::start_with_authority("one", &store, authority("a"));
    one.wait_for_status(ReadinessStatus::Ready).await;
    let same = TestMaster::start_with_authority("two", &store, authority("a"));
    same.wait_for_status(ReadinessStatus::Following).await;
    let plain = TestMaster::start("three", &store);
    plain.wait_for_status(ReadinessStatus::Following).await;
    let other = TestMaster::start_with_authority("four", &store, authority("b"));
    let refused = other.running.await.unwrap().unwrap_err();
    assert!(refused.chain().any(|cause| cause.is::<crate::identity::IdentityError>()));
    assert!(
        format!("{refused:#}").contains("is another one than that of the store"),
        "{refused:#}"
    );
    // Nor may it lead alone, unless its authority replaces that of the store.
    for master in [same, plain, one] {
        master.stop.cancel();
        master.running.await.unwrap().unwrap();
    }
    let other = TestMaster::start_with_authority("four", &store, authority("b"));
    let refused = other.running.await.unwrap().unwrap_err();
    assert!(format!("{refused:#}").contains("that of the store"), "{refused:#}");
    let same = TestMaster::start_with_authority("two", &store, authority("a"));
    same.wait_for_status(ReadinessStatus::Ready).await;
}
