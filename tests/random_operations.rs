//! Operators submit, pause, resume, cancel and delete at random while agents and the master are killed and
//! stand still, all from one number. What was acknowledged holds, what has ended stays as it ended, and in the
//! end everything that was not cancelled is complete.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tree::{
    self, assert_same, census, exact_comparison, random_bytes, write_file, write_many_files,
    write_unusual_tree,
};

const STORM_DURATION: Duration = Duration::from_secs(10);
const MAX_SYNCS: usize = 10;
const AGENTS: [&str; 4] = ["a", "a2", "b", "b2"];

/// Pseudo-random numbers; the same for the same seed.
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// What was acknowledged last of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledged {
    Running,
    Paused,
    Cancelled,
    Deleted,
}

#[derive(Debug)]
struct KnownSync {
    id: String,
    dst: PathBuf,
    acknowledged: Acknowledged,
    /// As it was seen to have ended.
    end: Option<SyncProgress>,
}

struct Storm {
    cluster: Cluster,
    src: PathBuf,
    root: PathBuf,
    chance: SeededRandom,
    syncs: Vec<KnownSync>,
    frozen: Option<&'static str>,
}

impl Storm {
    fn start(seed: u64) -> Storm {
        let mut cluster = Cluster::start(StoreKind::Redis);
        cluster.shorten_leases(Duration::from_secs(2));
        let (src, root) = cluster.add_two_agents_per_side();
        write_file(src.join("large"), random_bytes(10 << 20, 1));
        write_many_files(&src, 200, 2_000);
        write_unusual_tree(&src.join("odd"));
        Storm { cluster, src, root, chance: SeededRandom(seed), syncs: vec![], frozen: None }
    }

    fn run_step(&mut self) {
        match self.chance.below(12) {
            0..=2 => self.submit_one(),
            3 | 4 => self.send_command("pause", Acknowledged::Paused),
            5 | 6 => self.send_command("resume", Acknowledged::Running),
            7 => self.send_command("cancel", Acknowledged::Cancelled),
            8 => self.send_command("delete", Acknowledged::Deleted),
            9 => {
                let name = AGENTS[self.chance.below(AGENTS.len())];
                self.cluster.agents.get_mut(name).unwrap().restart();
            }
            10 => self.cluster.master.restart(),
            _ => self.freeze_agent(),
        }
    }

    fn submit_one(&mut self) {
        if self.syncs.len() < MAX_SYNCS {
            let number = self.syncs.len();
            let (id, dst) = (format!("s{number}"), self.root.join(format!("{number}")));
            let more = json!({"request_id": id, "chunk_size_mb": 1, "bwlimit": "4MiB/s"});
            assert_eq!(self.cluster.submit_with(&self.src, &dst, more), id);
            self.syncs.push(KnownSync { id, dst, acknowledged: Acknowledged::Running, end: None });
        }
    }

    /// Sends a command about a sync that was not deleted. It may only be refused because the sync has ended.
    fn send_command(&mut self, verb: &str, acknowledged: Acknowledged) {
        let there = self.syncs.iter_mut().filter(|s| s.acknowledged != Acknowledged::Deleted);
        let mut there: Vec<&mut KnownSync> = there.collect();
        if there.is_empty() {
            return;
        }
        let sync = there.swap_remove(self.chance.below(there.len()));
        let path = format!("/sync/{}", sync.id);
        let answer = match verb {
            "delete" => self.cluster.master.delete(&path),
            verb => self.cluster.master.post(&format!("{path}/{verb}"), &json!({})),
        };
        match answer.status {
            200..=204 if acknowledged == Acknowledged::Cancelled && sync.end.is_some() => {}
            200..=204 => sync.acknowledged = acknowledged,
            409 => assert_eq!(answer.json()["code"], "sync_ended", "{verb}: {}", answer.text()),
            status => panic!("{verb} {}: {status} {}", sync.id, answer.text()),
        }
    }

    /// One agent at a time stands still for a while.
    fn freeze_agent(&mut self) {
        let next = AGENTS[self.chance.below(AGENTS.len())];
        if let Some(name) = self.frozen.take() {
            self.cluster.agents[name].process.thaw();
        } else {
            self.cluster.agents.get_mut(next).unwrap().process.freeze();
            self.frozen = Some(next);
        }
    }

    /// Everything is as it was acknowledged, and what has ended is as it ended.
    fn check_syncs(&mut self) {
        for sync in &mut self.syncs {
            let path = format!("/sync/{}", sync.id);
            let answer = self.cluster.master.get(&path);
            if sync.acknowledged == Acknowledged::Deleted {
                assert_eq!(answer.status, 404, "{sync:?} is there again: {}", answer.text());
                continue;
            }
            assert_eq!(answer.status, 200, "{sync:?}: {}", answer.text());
            let mut seen: SyncProgress = serde_json::from_slice(&answer.body).unwrap();
            // Part files of a sync that has ended are removed by a discard task.
            seen.detail.clear();
            if let Some(end) = &sync.end {
                assert_eq!(&seen, end, "it had ended otherwise");
            }
            let state = seen.state;
            let may_be = match sync.acknowledged {
                Acknowledged::Running => {
                    state != SyncState::Paused && state != SyncState::Cancelled
                }
                Acknowledged::Paused => state == SyncState::Paused || state.is_final(),
                Acknowledged::Cancelled => state.is_final(),
                Acknowledged::Deleted => false,
            };
            assert!(may_be, "{sync:?} is {seen:#?}");
            sync.end = seen.state.is_final().then_some(seen);
        }
    }

    /// Everybody behaves from here on.
    fn stop_faults(&mut self) {
        if let Some(name) = self.frozen.take() {
            self.cluster.agents[name].process.thaw();
        }
        for sync in self
            .syncs
            .iter_mut()
            .filter(|s| s.acknowledged != Acknowledged::Deleted && s.end.is_none())
        {
            let path = format!("/sync/{}/resume", sync.id);
            assert!(matches!(self.cluster.master.post(&path, &json!({})).status, 200 | 409));
            // One that is cancelled has no speed any more.
            self.cluster.ctl(["sync", "set", &sync.id, "--bwlimit", "none"]).run();
        }
    }
}

/// What there is below a directory, and when anything about its files was changed last. (Directories get
/// their times again when a part file is removed.)
fn file_stamps(dir: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let entries = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    let stamp = |e: walkdir::DirEntry| {
        let meta = e.metadata().unwrap();
        let changed = (meta.ctime(), meta.ctime_nsec());
        (e.into_path(), if meta.is_dir() { (0, 0) } else { changed })
    };
    entries.map(stamp).collect()
}

fn part_files(dir: &Path) -> Vec<PathBuf> {
    let paths = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    let paths = paths.map(walkdir::DirEntry::into_path);
    paths.filter(|path| path.to_string_lossy().ends_with(".part")).collect()
}

#[test]
fn acknowledged_commands_hold_while_agents_and_masters_are_killed() {
    let drawn = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("LONGHAUL_STORM_SEED").map_or(drawn, |seed| seed.parse().unwrap());
    eprintln!("LONGHAUL_STORM_SEED={seed}");
    let mut storm = Storm::start(seed);
    storm.submit_one();
    let begun = Instant::now();
    while begun.elapsed() < STORM_DURATION {
        storm.run_step();
        storm.check_syncs();
    }
    storm.stop_faults();
    let there = census(&storm.src);
    for sync in storm.syncs.iter().filter(|s| s.acknowledged != Acknowledged::Deleted) {
        let end = storm.cluster.await_end(&sync.id);
        if end.state == SyncState::Cancelled {
            assert_eq!(sync.acknowledged, Acknowledged::Cancelled, "{end:#?}");
            continue;
        }
        assert_complete(&end, there);
        assert_same(&storm.src, &sync.dst, exact_comparison());
    }
    // No agent works any more.
    await_true("no agent has an assignment", || {
        let list = storm.cluster.master.get("/sync").json();
        list.as_array()
            .unwrap()
            .iter()
            .all(|s| s["detail"].as_object().is_none_or(serde_json::Map::is_empty))
    });
    // Those of cancelled and deleted syncs are removed after a lease, which restarts with each master.
    await_true("no part file is left", || part_files(&storm.root).is_empty());
    // Of what was cancelled or deleted nothing is written any more, while others go on.
    let stopped = || {
        storm
            .syncs
            .iter()
            .filter(|s| matches!(s.acknowledged, Acknowledged::Cancelled | Acknowledged::Deleted))
    };
    let before: Vec<_> = stopped().map(|s| file_stamps(&s.dst)).collect();
    let last = tree::make_dir(storm.root.join("last"));
    assert_complete(&storm.cluster.run_sync(&storm.src, &last), there);
    assert_eq!(stopped().map(|s| file_stamps(&s.dst)).collect::<Vec<_>>(), before);
    // The name of one that was deleted is free, and what it left is completed.
    for sync in stopped().filter(|s| s.acknowledged == Acknowledged::Deleted) {
        let more = json!({"request_id": sync.id});
        let id = storm.cluster.submit_with(&storm.src, &sync.dst, more);
        assert_complete(&storm.cluster.await_end(&id), there);
        assert_same(&storm.src, &sync.dst, exact_comparison());
    }
    storm.cluster.assert_assigned_once();
    storm.cluster.assert_no_panic();
}
