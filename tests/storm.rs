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
use support::await_that;
use support::cluster::{Cluster, On, assert_complete};
use support::tree::{self, assert_same, census, file, many, noise, odd, strict};

/// How long it blows.
const STORM: Duration = Duration::from_secs(10);
/// More syncs than these are not submitted.
const MOST: usize = 10;
const AGENTS: [&str; 4] = ["a", "a2", "b", "b2"];

/// Numbers that look like chance; the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// What was acknowledged last of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Going,
    Paused,
    Cancelled,
    Deleted,
}

#[derive(Debug)]
struct Known {
    id: String,
    dst: PathBuf,
    told: Told,
    /// As it was seen to have ended.
    end: Option<SyncProgress>,
}

struct Storm {
    cluster: Cluster,
    src: PathBuf,
    root: PathBuf,
    chance: Chance,
    syncs: Vec<Known>,
    frozen: Option<&'static str>,
}

impl Storm {
    fn begin(seed: u64) -> Storm {
        let mut cluster = Cluster::start(On::Redis);
        cluster.shorten_leases(Duration::from_secs(2));
        let (src, root) = cluster.four();
        file(src.join("large"), noise(10 << 20, 1));
        many(&src, 200, 2_000);
        odd(&src.join("odd"));
        Storm { cluster, src, root, chance: Chance(seed), syncs: vec![], frozen: None }
    }

    fn step(&mut self) {
        match self.chance.below(12) {
            0..=2 => self.submit(),
            3 | 4 => self.order("pause", Told::Paused),
            5 | 6 => self.order("resume", Told::Going),
            7 => self.order("cancel", Told::Cancelled),
            8 => self.order("delete", Told::Deleted),
            9 => {
                let name = AGENTS[self.chance.below(AGENTS.len())];
                self.cluster.agents.get_mut(name).unwrap().restart();
            }
            10 => self.cluster.master.restart(),
            _ => self.freeze(),
        }
    }

    fn submit(&mut self) {
        if self.syncs.len() < MOST {
            let number = self.syncs.len();
            let (id, dst) = (format!("s{number}"), self.root.join(format!("{number}")));
            let more = json!({"request_id": id, "chunk_size_mb": 1, "bwlimit": "4MiB/s"});
            assert_eq!(self.cluster.submit_with(&self.src, &dst, more), id);
            self.syncs.push(Known { id, dst, told: Told::Going, end: None });
        }
    }

    /// Orders something of one that was not deleted. That it has ended before is the only excuse.
    fn order(&mut self, verb: &str, told: Told) {
        let there = self.syncs.iter_mut().filter(|s| s.told != Told::Deleted);
        let mut there: Vec<&mut Known> = there.collect();
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
            200..=204 if told == Told::Cancelled && sync.end.is_some() => {}
            200..=204 => sync.told = told,
            409 => assert_eq!(answer.json()["code"], "sync_ended", "{verb}: {}", answer.text()),
            status => panic!("{verb} {}: {status} {}", sync.id, answer.text()),
        }
    }

    /// One agent at a time stands still for a while.
    fn freeze(&mut self) {
        let next = AGENTS[self.chance.below(AGENTS.len())];
        if let Some(name) = self.frozen.take() {
            self.cluster.agents[name].process.thaw();
        } else {
            self.cluster.agents.get_mut(next).unwrap().process.freeze();
            self.frozen = Some(next);
        }
    }

    /// Everything is as it was acknowledged, and what has ended is as it ended.
    fn look(&mut self) {
        for sync in &mut self.syncs {
            let path = format!("/sync/{}", sync.id);
            let answer = self.cluster.master.get(&path);
            if sync.told == Told::Deleted {
                assert_eq!(answer.status, 404, "{sync:?} is there again: {}", answer.text());
                continue;
            }
            assert_eq!(answer.status, 200, "{sync:?}: {}", answer.text());
            let mut seen: SyncProgress = serde_json::from_slice(&answer.body).unwrap();
            // Part files of one that has ended are removed by somebody.
            seen.detail.clear();
            if let Some(end) = &sync.end {
                assert_eq!(&seen, end, "it had ended otherwise");
            }
            let state = seen.state;
            let may_be = match sync.told {
                Told::Going => state != SyncState::Paused && state != SyncState::Cancelled,
                Told::Paused => state == SyncState::Paused || state.is_final(),
                Told::Cancelled => state.is_final(),
                Told::Deleted => false,
            };
            assert!(may_be, "{sync:?} is {seen:#?}");
            sync.end = seen.state.is_final().then_some(seen);
        }
    }

    /// Everybody behaves from here on.
    fn calm(&mut self) {
        if let Some(name) = self.frozen.take() {
            self.cluster.agents[name].process.thaw();
        }
        for sync in self.syncs.iter_mut().filter(|s| s.told != Told::Deleted && s.end.is_none()) {
            let path = format!("/sync/{}/resume", sync.id);
            assert!(matches!(self.cluster.master.post(&path, &json!({})).status, 200 | 409));
            // One that is cancelled has no speed any more.
            self.cluster.ctl(["sync", "set", &sync.id, "--bwlimit", "none"]).run();
        }
    }
}

/// What there is below a directory, and when anything about its files was changed last. (Directories get
/// their times again when a part file is removed.)
fn stamps(dir: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
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
fn whatever_operators_do_while_agents_and_masters_die_what_was_acknowledged_holds() {
    let drawn = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("LONGHAUL_STORM_SEED").map_or(drawn, |seed| seed.parse().unwrap());
    eprintln!("LONGHAUL_STORM_SEED={seed}");
    let mut storm = Storm::begin(seed);
    storm.submit();
    let begun = Instant::now();
    while begun.elapsed() < STORM {
        storm.step();
        storm.look();
    }
    storm.calm();
    let there = census(&storm.src);
    for sync in storm.syncs.iter().filter(|s| s.told != Told::Deleted) {
        let end = storm.cluster.ended(&sync.id);
        if end.state == SyncState::Cancelled {
            assert_eq!(sync.told, Told::Cancelled, "{end:#?}");
            continue;
        }
        assert_complete(&end, there);
        assert_same(&storm.src, &sync.dst, strict());
    }
    // Nobody is at work any more.
    await_that("nobody has anything in hand", || {
        let list = storm.cluster.master.get("/sync").json();
        list.as_array()
            .unwrap()
            .iter()
            .all(|s| s["detail"].as_object().is_none_or(serde_json::Map::is_empty))
    });
    // Those of what was cancelled or deleted go after a lease, which begins anew with each master.
    await_that("no part file is left", || part_files(&storm.root).is_empty());
    // Of what was cancelled or deleted nothing is written any more, while others go on.
    let stopped =
        || storm.syncs.iter().filter(|s| matches!(s.told, Told::Cancelled | Told::Deleted));
    let before: Vec<_> = stopped().map(|s| stamps(&s.dst)).collect();
    let last = tree::dir(storm.root.join("last"));
    assert_complete(&storm.cluster.sync(&storm.src, &last), there);
    assert_eq!(stopped().map(|s| stamps(&s.dst)).collect::<Vec<_>>(), before);
    // The name of one that was deleted is free, and what it left is completed.
    for sync in stopped().filter(|s| s.told == Told::Deleted) {
        let more = json!({"request_id": sync.id});
        let id = storm.cluster.submit_with(&storm.src, &sync.dst, more);
        assert_complete(&storm.cluster.ended(&id), there);
        assert_same(&storm.src, &sync.dst, strict());
    }
    storm.cluster.assert_handed_out_once();
    storm.cluster.assert_no_panic();
}
