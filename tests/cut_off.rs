//! Agents and their master do not reach each other for much longer than a lease, in both directions or in
//! one, while connections stay open. Work goes on where it can, and whoever is heard again does no harm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::await_that;
use support::cluster::{Cluster, On, assert_complete, assert_nothing_to_do};
use support::relay::Relay;
use support::tree::{assert_same, census, part_files, strict};

/// The lease of these tests, and the time for which an agent is cut off.
const LEASE: Duration = Duration::from_secs(2);
const CUT: Duration = Duration::from_secs(6);

/// A sync from `a` to `b`, one of which reaches the master over a link that can be cut.
struct Linked {
    cluster: Cluster,
    link: Relay,
    src: PathBuf,
    dst: PathBuf,
    id: String,
}

impl Linked {
    /// Caught when some of it is there; `name` is behind the link.
    fn in_the_middle(name: &str) -> Linked {
        let mut cluster = Cluster::start(On::Embedded);
        cluster.shorten_leases(LEASE);
        let (src, dst) = cluster.pair();
        let link = Relay::to_address(cluster.master.address());
        let path = cluster.home().join(name).with_extension("yml");
        let config = fs::read_to_string(&path).unwrap();
        let config = config.replace(&cluster.master.url(), &link.url());
        fs::write(&path, config).unwrap();
        cluster.agents.get_mut(name).unwrap().terminate();
        cluster.agents.get_mut(name).unwrap().restart();
        let id = cluster.in_the_middle(&src, &dst, (64, "12MiB/s"), json!({}));
        Linked { cluster, link, src, dst, id }
    }

    /// Waits for the end, and holds it to be as if nothing had been.
    #[track_caller]
    fn assert_unharmed(&self) -> SyncProgress {
        self.cluster.hurry(&self.id);
        let sync = self.cluster.ended(&self.id);
        let there = census(&self.src);
        assert_complete(&sync, there);
        assert_same(&self.src, &self.dst, strict());
        assert!(part_files(&self.dst).is_empty());
        assert_nothing_to_do(&self.cluster.sync(&self.src, &self.dst), there);
        self.cluster.assert_handed_out_once();
        self.cluster.assert_no_panic();
        sync
    }

    /// Waits until the link was cut for three leases.
    fn await_three_leases(&self, since: Instant) {
        await_that("three leases are over", || since.elapsed() >= CUT);
    }
}

#[test]
fn what_a_source_agent_that_is_cut_off_had_in_hand_is_done_by_another() {
    let mut linked = Linked::in_the_middle("a");
    linked.link.cut();
    let cut = Instant::now();
    let src = linked.src.clone();
    linked.cluster.agent("a2", &[&src]);
    linked.cluster.hurry(&linked.id);
    let sync = linked.cluster.ended(&linked.id);
    assert_complete(&sync, census(&linked.src));
    linked.await_three_leases(cut);
    linked.link.mend();
    // What it had in hand it has stopped by itself, or its results come now.
    await_that("it learns that it is late", || {
        let log = linked.cluster.agents["a"].process.log();
        log.contains("why=Expired") || log.contains("late result ignored")
    });
    await_that("it is heard again", || linked.cluster.master.active().contains(&"a".to_owned()));
    assert_eq!(linked.assert_unharmed(), sync, "what it had to say changes nothing");
}

#[test]
fn a_destination_agent_that_is_cut_off_is_missed_and_found_again() {
    let linked = Linked::in_the_middle("b");
    linked.link.cut();
    linked.await_three_leases(Instant::now());
    // A master that gets no time to tick waits longer.
    await_that("it is missed", || !linked.cluster.master.active().contains(&"b".to_owned()));
    linked.link.mend();
    linked.assert_unharmed();
}

#[test]
fn questions_whose_answers_get_lost_hand_nothing_out_twice() {
    let linked = Linked::in_the_middle("a");
    linked.link.lose_answers();
    // It asks again and again, is given work each time, and hears nothing.
    linked.await_three_leases(Instant::now());
    linked.link.mend();
    linked.assert_unharmed();
}
