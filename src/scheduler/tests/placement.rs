//! What is found by files and indices is what a walk over everything finds.

use super::*;
use crate::scheduler::place::Place;
use crate::scheduler::task::Task;
use crate::scheduler::task::TaskState;
use crate::scheduler::worker_registry::Worker;
use crate::wire::options::FilterSpec;

/// How well a task fits a worker, as a walk judges it; the smallest is taken.
type Fit = (u8, TaskId);

/// The task of a sync that fits a worker best, found by looking at all.
fn choose_by_full_search(
    state: &State,
    sync: &SyncJob,
    worker: &Worker,
    now: Now,
) -> Option<TaskId> {
    let pool: Vec<&Worker> = state.workers.all().filter(|w| w.accepts_work()).collect();
    let able = |place: Place<'_>| -> Vec<&Worker> {
        let held = pool.iter().copied().filter(|w| state.workers.serves(w, place));
        held.filter(|w| w.supports_options() || !sync.has_nondefault_options()).collect()
    };
    let tasks = || state.tasks.values().filter(|task| task.sync == sync.no);
    let scan_is_out = tasks().any(|t| t.is_scan() && t.lease().is_some());
    let at_source =
        state.workers.serves(worker, sync.source()) && !able(sync.destination()).is_empty();
    let at_destination = state.workers.serves(worker, sync.destination());
    let me = &worker.last_heartbeat.worker_id;
    let fit = |t: &Task| -> Option<Fit> {
        let place = sync.place(t.runs_at_source());
        let elsewhere = able(place).iter().any(|o| {
            let id = &o.last_heartbeat.worker_id;
            id != me && !t.failed_or_lost_on(id)
        });
        let knows = worker.supports_options()
            || t.spec == TaskSpec::Flush
            || (!sync.has_nondefault_options() && t.spec != TaskSpec::CleanUp);
        let may = t.state == TaskState::Ready
            && t.unit.is_none()
            && knows
            && (worker.drained.is_none() || t.spec == TaskSpec::Flush)
            && (worker.supports_options() || sync.bwlimit.is_none() || !t.spec.sends_content())
            && if t.runs_at_source() { at_source } else { at_destination }
            && (!t.is_scan() || state.window_fill(sync) < 0.5)
            && (t.pinned_to.is_none() || state.can_flush(sync, t, worker))
            && !(state.workers.health.is_quarantined(me, now)
                && t.pinned_to.is_none()
                && able(place).iter().any(|o| {
                    let id = &o.last_heartbeat.worker_id;
                    id != me
                        && !state.workers.health.is_quarantined(id, now)
                        && !t.history.failed_on.contains(id)
                }))
            && !state.isolation.contains(t.id)
            && !(matches!(t.spec, TaskSpec::Prune { apply: true, .. })
                && state.must_wait_for_deletions(sync, me))
            && !(now.mono_ms < t.deprioritised_until_ms && t.failed_or_lost_on(me) && elsewhere);
        let rank = match (t.runs_at_source(), t.is_scan()) {
            (false, _) => 0,
            (true, true) if !scan_is_out => 1,
            (true, false) => 2,
            (true, true) => 3,
        };
        may.then_some((rank, t.id))
    };
    tasks().filter_map(fit).min().map(|(_, id)| id)
}

impl World {
    /// The files hold just what they shall, and lead to the choice that a walk makes.
    pub(super) fn check_indexes(&self) {
        let state = &self.state;
        let delayed = |t: &Task| match t.state {
            TaskState::Delayed { until_ms } => Some((until_ms, t.id)),
            _ => None,
        };
        let due: BTreeSet<(u64, TaskId)> = state.tasks.values().filter_map(delayed).collect();
        assert_eq!(*state.tasks.delayed(), due);
        let working: BTreeSet<SyncNo> = state.tasks.values().map(|task| task.sync).collect();
        assert_eq!(state.tasks.syncs().collect::<BTreeSet<_>>(), working);
        let (taking, all): (Vec<_>, Vec<_>) = (
            state.workers.all().filter(|w| w.accepts_work()).collect(),
            state.workers.all().collect(),
        );
        let in_unit = |task: &Task| Some((task.id, task.sync, task.unit?));
        state.relays.check(state.tasks.values().filter_map(in_unit).collect());
        let working = working.iter().map(|no| &state.syncs[no]);
        for sync in working.filter(|sync| !sync.is_group()) {
            for place in [sync.source(), sync.destination()] {
                let ids = |workers: Vec<&Worker>| -> Vec<WorkerId> {
                    let mut ids: Vec<_> =
                        workers.iter().map(|w| w.last_heartbeat.worker_id.clone()).collect();
                    ids.sort();
                    ids
                };
                let walked = taking.iter().copied();
                let walked = walked.filter(|w| state.workers.serves(w, place)).collect();
                assert_eq!(ids(state.workers.accepting(place).collect()), ids(walked));
            }
            for worker in all.iter().take(12) {
                let chosen = state.choose_task(sync.no, worker, self.now).map(|c| c.task);
                assert_eq!(
                    chosen,
                    choose_by_full_search(state, sync, worker, self.now),
                    "{:?}",
                    worker.last_heartbeat
                );
            }
        }
    }
}

/// Agents `s0` to `s9` at the source and `d0` to `d9` at the destination.
fn many_workers() -> World {
    let mut world = World::new();
    for n in 0..10 {
        world.heartbeat(&format!("s{n}"), "1", &["/src"], &[]);
        world.heartbeat(&format!("d{n}"), "1", &["/dst"], &[]);
    }
    world
}

#[test]
fn the_first_capable_waiting_poll_gets_the_task() {
    let mut world = many_workers();
    let idle: Vec<Caller> =
        ["d0", "d1", "s3", "s1"].iter().map(|w| start_poll(&mut world, w, 20_000)).collect();
    world.submit("demo", "/src/a", "/dst/a");
    let Some(Reply::Assignment(Some(scan))) = world.replies.remove(&idle[2]) else {
        panic!("the first of the source gets the scan: {:?}", world.replies)
    };
    assert!(world.replies.is_empty(), "no other poll is answered");
    let work = vec![copy_item(1, 0), copy_item(2, 0)];
    world.post_page(&scan, page(&scan, 0, work, None));
    assert!(matches!(world.replies.remove(&idle[3]), Some(Reply::Assignment(Some(_)))));
    assert!(world.replies.is_empty());
}

#[test]
fn a_waiting_poll_is_found_by_the_current_paths_of_its_worker() {
    let mut world = World::new();
    world.heartbeat("d", "1", &["/dst"], &[]);
    let early = start_poll(&mut world, "s", 20_000);
    world.heartbeat("s", "1", &["/other"], &[]);
    world.submit("demo", "/src/a", "/dst/a");
    assert!(world.replies.is_empty());
    world.heartbeat("s", "1", &["/other", "/src", "/src/a"], &[]);
    assert!(matches!(world.replies.remove(&early), Some(Reply::Assignment(Some(_)))));
    let late = start_poll(&mut world, "s", 20_000);
    world.heartbeat("s", "1", &["/other"], &[]);
    world.submit("more", "/src/b", "/dst/b");
    assert!(world.replies.is_empty());
    world.advance(30_000);
    assert_eq!(world.replies.remove(&late), Some(Reply::Assignment(None)));
}

#[test]
fn an_assignment_lists_a_bounded_number_of_workers_and_all_are_used() {
    let mut world = World::new();
    for n in 0..100 {
        world.heartbeat(&format!("s{n}"), "1", &["/src"], &[]);
        world.heartbeat(&format!("d{n}"), "1", &["/dst", "/dst/a"], &[]);
    }
    world.submit("demo", "/src/a", "/dst/a");
    let scan = world.poll("s0", "1").unwrap();
    world.post_page(&scan, page(&scan, 0, (0..60).map(|_| copy_item(1, 0)).collect(), None));
    let mut used = BTreeSet::new();
    for n in 0..60 {
        let copy = world.poll(&format!("s{n}"), "1").unwrap();
        let ids: BTreeSet<WorkerId> =
            copy.destination_workers.iter().map(|m| m.worker_id.clone()).collect();
        assert_eq!((ids.len(), copy.destination_workers.len()), (64, 64));
        assert_eq!(copy.source_workers.len(), 8);
        let sync = world.state.syncs.values().next().unwrap();
        assert!(
            ids.iter().all(|id| sync.possible_writers.get(id).is_some()),
            "they may be written through"
        );
        used.extend(ids);
    }
    assert_eq!(used.len(), 100);
}

#[test]
fn a_flush_finds_its_worker_among_many_that_wait() {
    let mut world = many_workers();
    world.submit("demo", "/src/a", "/dst/a");
    let scan = world.poll("s0", "1").unwrap();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    for n in 0..10 {
        let beat = heartbeat(&format!("d{n}"), Some("1"), &["/dst"], &[]);
        let boot_id = Some(format!("boot of d{n}"));
        world.apply(Event::Heartbeat(WorkerHeartbeat { boot_id, ..beat }));
    }
    let copy = world.poll("s0", "1").unwrap();
    let waiting: Vec<Caller> =
        (0..10).map(|n| start_poll(&mut world, &format!("d{n}"), 20_000)).collect();
    world.post_result(result(&copy, true, all_done(&copy, "d7")));
    let got: Vec<Caller> = world.replies.keys().copied().collect();
    assert_eq!(got, [waiting[7]]);
}

fn filtered() -> (World, Assignment, FilterSpec) {
    let rules = vec!["*.tmp".to_owned(), "/scratch/".to_owned()];
    let filter = FilterSpec { rules, ..FilterSpec::default() };
    let options = SyncOptions { filter: filter.clone(), ..SyncOptions::default() };
    let (world, scan) = scanning_with(options);
    (world, scan, filter)
}

#[test]
fn a_filter_is_written_once_and_sent_with_walks_only() {
    let (mut world, scan, filter) = filtered();
    assert_eq!(scan.options.filter, filter);
    let sync = String::from_utf8(world.records["s/1"].clone()).unwrap();
    assert!(!sync.contains("scratch"), "{sync}");
    world.restart();
    assert_eq!(world.progress("demo").options.filter, filter);
    world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    assert_eq!(copy.options, SyncOptions::default());
    let end = Event::Result(result(&copy, true, all_done(&copy, "d")));
    let effects = world.state.apply(end, None, world.now);
    let put = |key: &str| effects.contains(&Effect::WriteRecord(key.to_owned()));
    assert!(put("s/1") && !put("x/1"));
}

#[test]
fn the_record_of_a_filter_goes_with_its_sync() {
    let (mut world, ..) = filtered();
    assert!(world.records.contains_key("x/1"));
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    world.skip_days(61);
    world.advance(1_000);
    assert!(world.state.syncs.is_empty());
    assert_eq!(world.sync_records(), ["meta"]);
}

#[test]
fn records_of_a_later_version_are_refused() {
    let (world, ..) = filtered();
    let mut later = world.records.clone();
    let mut meta: serde_json::Value = serde_json::from_slice(&later["meta"]).unwrap();
    meta["version"] = 2.into();
    later.insert("meta".to_owned(), serde_json::to_vec(&meta).unwrap());
    let loaded = State::load(Settings::default(), [1; 32], &later, START);
    assert!(matches!(loaded, Err(LoadError::NewerVersion(2))));
}
