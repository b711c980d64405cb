//! Agents and their master do not reach each other for much longer than a lease, in both directions or in
//! one, while connections stay open. Work continues where possible, and an agent that reconnects does no damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::relay::Relay;
use support::tree::{assert_same, census, exact_comparison, part_files};

/// The lease of these tests, and the time for which an agent is cut off.
const LEASE: Duration = Duration::from_secs(2);
const CUT_DURATION: Duration = Duration::from_secs(6);

/// A sync from `a` to `b`, one of which reaches the master over a link that can be cut.
struct RelayedCluster {
    cluster: Cluster,
    relay: Relay,
    src: PathBuf,
    dst: PathBuf,
    id: String,
}

impl RelayedCluster {
    /// Caught when some of it is there; `name` is behind the link.
    fn start_partial(name: &str) -> RelayedCluster {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        cluster.shorten_leases(LEASE);
        let (src, dst) = cluster.add_source_and_destination();
        let link = Relay::to_address(cluster.master.address());
        let path = cluster.home().join(name).with_extension("yml");
        let config = fs::read_to_string(&path).unwrap();
        let config = config.replace(&cluster.master.url(), &link.url());
        fs::write(&path, config).unwrap();
        cluster.agents.get_mut(name).unwrap().terminate();
        cluster.agents.get_mut(name).unwrap().restart();
        let id = cluster.submit_and_await_partial(&src, &dst, (64, "12MiB/s"), json!({}));
        RelayedCluster { cluster, relay: link, src, dst, id }
    }

    /// Waits for the end and checks that the fault had no effect.
    #[track_caller]
    fn assert_undamaged(&self) -> SyncProgress {
        self.cluster.lift_bandwidth_limit(&self.id);
        let sync = self.cluster.await_end(&self.id);
        let there = census(&self.src);
        assert_complete(&sync, there);
        assert_same(&self.src, &self.dst, exact_comparison());
        assert!(part_files(&self.dst).is_empty());
        assert_nothing_to_do(&self.cluster.run_sync(&self.src, &self.dst), there);
        self.cluster.assert_assigned_once();
        self.cluster.assert_no_panic();
        sync
    }

    /// Waits until the link was cut for three leases.
    fn wait_three_leases(&self, since: Instant) {
        await_true("three leases are over", || since.elapsed() >= CUT_DURATION);
    }
}

#[test]
fn tasks_of_a_disconnected_source_agent_are_done_by_another() {
    let mut linked = RelayedCluster::start_partial("a");
    linked.relay.cut();
    let cut = Instant::now();
    let src = linked.src.clone();
    linked.cluster.add_agent("a2", &[&src]);
    linked.cluster.lift_bandwidth_limit(&linked.id);
    let sync = linked.cluster.await_end(&linked.id);
    assert_complete(&sync, census(&linked.src));
    linked.wait_three_leases(cut);
    linked.relay.restore();
    // What it had in hand it has stopped by itself, or its results come now.
    await_true("it learns that it is late", || {
        let log = linked.cluster.agents["a"].process.log();
        log.contains("why=Expired") || log.contains("late result ignored")
    });
    await_true("it is active again", || {
        linked.cluster.master.active_workers().contains(&"a".to_owned())
    });
    assert_eq!(linked.assert_undamaged(), sync, "what it had to say changes nothing");
}

#[test]
fn a_disconnected_destination_agent_is_marked_lost_and_used_again() {
    let linked = RelayedCluster::start_partial("b");
    linked.relay.cut();
    linked.wait_three_leases(Instant::now());
    // A master that gets no time to tick waits longer.
    await_true("it is missed", || {
        !linked.cluster.master.active_workers().contains(&"b".to_owned())
    });
    linked.relay.restore();
    linked.assert_undamaged();
}

#[test]
fn polls_whose_replies_are_lost_assign_nothing_twice() {
    let linked = RelayedCluster::start_partial("a");
    linked.relay.drop_replies();
    // It polls repeatedly, is assigned work each time, and gets no reply.
    linked.wait_three_leases(Instant::now());
    linked.relay.restore();
    linked.assert_undamaged();
}
