//! The workers that an agent sends to, and the choice among them.

use super::buffer_pool::BufferPool;
use super::nics::Nic;
use super::routes::Routes;
use super::tls::DataTls;
use crate::util::backoff::Backoff;
use crate::wire::WorkerId;
use crate::wire::task::PoolMember;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a worker that could not be reached is chosen last.
const UNHEALTHY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Load and health of the workers that an agent sends to.
pub struct Peers {
    /// Over which NICs they are reached.
    pub routes: Arc<Routes>,
    /// The buffers, also for copies on this host.
    pub pool: BufferPool,
    table: Mutex<PeerTable>,
}

#[derive(Default)]
struct PeerTable {
    workers: BTreeMap<WorkerId, PeerLoad>,
    choices: u64,
    /// Those that the master has not heard from.
    silent: BTreeSet<WorkerId>,
}

#[derive(Default)]
struct PeerLoad {
    in_flight: usize,
    failures: u32,
    unhealthy_until: Option<Instant>,
    /// When it was chosen last, as a count.
    last_chosen: u64,
}

impl Peers {
    /// Peers reached without TLS.
    #[cfg(test)]
    pub fn new(nics: &[Arc<Nic>], pool: BufferPool) -> Arc<Self> {
        Peers::with_tls(nics, pool, None)
    }

    /// Peers reached from the `nics` of this host, where `tls` is given with nothing but TLS; content is sent from buffers
    /// of `pool`.
    pub fn with_tls(nics: &[Arc<Nic>], pool: BufferPool, tls: Option<Arc<DataTls>>) -> Arc<Self> {
        Arc::new(Peers { routes: Arc::new(Routes::new(nics, tls)), pool, table: Mutex::default() })
    }

    /// The member of `pool` that is not in `attempted` and has the fewest requests of this agent in flight;
    /// unhealthy, silent, draining and failed ones come last, ties in turn.
    pub fn choose<'a>(
        &self,
        pool: &'a [PoolMember],
        attempted: &BTreeSet<WorkerId>,
    ) -> Option<&'a PoolMember> {
        let mut loads = self.table.lock();
        let now = Instant::now();
        let rank = |member: &&PoolMember| {
            let load = loads.workers.get(&member.worker_id);
            let outage = load.and_then(|l| l.unhealthy_until).filter(|deadline| *deadline > now);
            let (in_flight, chosen) = load.map_or((0, 0), |l| (l.in_flight, l.last_chosen));
            let silent = loads.silent.contains(&member.worker_id);
            (silent, outage, !member.status.can_accept_work(), in_flight, chosen)
        };
        let best = pool.iter().filter(|m| !attempted.contains(&m.worker_id)).min_by_key(rank)?;
        loads.choices += 1;
        let count = loads.choices;
        loads.workers.entry(best.worker_id.clone()).or_default().last_chosen = count;
        Some(best)
    }

    /// Counts a peer as busy until [`Peers::release`].
    pub(super) fn acquire(&self, worker: &WorkerId) {
        self.table.lock().workers.entry(worker.clone()).or_default().in_flight += 1;
    }

    /// A peer was dropped.
    pub(super) fn release(&self, worker: &WorkerId) {
        if let Some(load) = self.table.lock().workers.get_mut(worker) {
            load.in_flight = load.in_flight.saturating_sub(1);
        }
    }

    /// It failed: it is chosen last for a while.
    pub(super) fn mark_unhealthy(&self, worker: &WorkerId) {
        let mut loads = self.table.lock();
        let load = loads.workers.entry(worker.clone()).or_default();
        load.failures = load.failures.saturating_add(1);
        load.unhealthy_until = Some(Instant::now() + UNHEALTHY_BACKOFF.delay(load.failures));
    }

    /// Sets the workers that the master reports silent.
    pub fn set_silent(&self, workers: Vec<WorkerId>) {
        self.table.lock().silent = workers.into_iter().collect();
    }

    /// Whether the master reports `worker` silent.
    pub fn is_silent(&self, worker: &WorkerId) -> bool {
        self.table.lock().silent.contains(worker)
    }

    /// It answered.
    pub(super) fn mark_healthy(&self, worker: &WorkerId) {
        if let Some(load) = self.table.lock().workers.get_mut(worker) {
            (load.failures, load.unhealthy_until) = (0, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer_pool::tests::test_pool;
    use super::*;
    use crate::wire::options::WriteRules;
    use crate::wire::worker::WorkerStatus;

    fn member(name: &str, status: WorkerStatus) -> PoolMember {
        PoolMember {
            worker_id: name.parse().unwrap(),
            status,
            storage_paths: vec![],
            data_plane_endpoints: vec![],
        }
    }

    fn choose_id(peers: &Peers, pool: &[PoolMember]) -> String {
        peers.choose(pool, &BTreeSet::new()).unwrap().worker_id.to_string()
    }

    #[test]
    fn the_least_busy_peer_is_chosen_and_ties_are_broken_in_turn() {
        let peers = Peers::new(&[], test_pool());
        let pool: Vec<_> = ["a", "b", "c"].map(|n| member(n, WorkerStatus::Idle)).into();
        let round: Vec<_> = (0..6).map(|_| choose_id(&peers, &pool)).collect();
        assert_eq!(round, ["a", "b", "c", "a", "b", "c"]);
        let rules = WriteRules::default();
        let busy = (peers.peer(&pool[0], "t", &rules), peers.peer(&pool[1], "t", &rules));
        assert_eq!([choose_id(&peers, &pool), choose_id(&peers, &pool)], ["c", "c"]);
        drop(busy);
        assert_eq!(choose_id(&peers, &pool), "a");
    }

    #[test]
    fn peers_that_failed_or_drain_are_chosen_last() {
        let peers = Peers::new(&[], test_pool());
        let pool = [
            member("a", WorkerStatus::Draining),
            member("b", WorkerStatus::Idle),
            member("c", WorkerStatus::Idle),
        ];
        peers.mark_unhealthy(&pool[1].worker_id);
        assert_eq!([choose_id(&peers, &pool), choose_id(&peers, &pool)], ["c", "c"]);
        let mut attempted: BTreeSet<_> = [pool[2].worker_id.clone()].into();
        assert_eq!(peers.choose(&pool, &attempted).unwrap().worker_id.as_str(), "a");
        attempted.insert(pool[0].worker_id.clone());
        assert_eq!(peers.choose(&pool, &attempted).unwrap().worker_id.as_str(), "b");
        // The master reports `c` silent, which failed no request here.
        peers.set_silent(vec![pool[2].worker_id.clone()]);
        assert_eq!(choose_id(&peers, &pool), "a");
        peers.set_silent(vec![]);
        peers.mark_healthy(&pool[1].worker_id);
        assert_eq!([choose_id(&peers, &pool), choose_id(&peers, &pool)], ["c", "b"]);
    }
}
