//! What must hold of the state alone, and of the store beside it: the invariants by their numbers in the design.

use super::store::Store;
use super::world::Sim;
use super::*;
use crate::scheduler::large_file::LargeFileState;
use crate::scheduler::phase::PhaseState;
use crate::scheduler::place::Place;
use crate::scheduler::sync_job::ScanOwner;

/// I1: every entry is waiting, leased, done or failed; I2: and counted once.
pub(super) fn entries_add_up(sync: &SyncJob, state: &State) {
    let c = &sync.counters;
    assert!(c.bytes_done + c.bytes_skipped <= c.bytes_total, "I2: too many bytes: {c:?}");
    if !sync.is_active() || sync.mirror_stop.is_some() || sync.source_root_failed {
        return;
    }
    let (mut files, mut dirs) = (c.files_done + c.files_skipped + c.files_failed, 0);
    dirs += c.dirs_done + c.dirs_failed;
    if sync.phase == PhaseState::Copy {
        // One that was found there is counted.
        files += sync
            .large_files
            .values()
            .filter(|large| large.state != LargeFileState::AlreadyPresent)
            .count() as u64;
        for task in state.tasks.of_sync(sync.no) {
            if let TaskSpec::Copy { files: f, dirs: d, .. } = task.spec {
                files += f;
                dirs += d;
            }
        }
    }
    let sums = (c.files_total, c.dirs_total);
    assert_eq!((files, dirs), sums, "I1: entries of {} are nowhere or twice: {c:?}", sync.id);
}

/// I26: a worker that has an isolated task has no other, and only one of them runs.
pub(super) fn runs_alone(state: &State) {
    for task in state.tasks.leased().filter(|task| state.isolation.contains(task.id)) {
        let Some(lease) = task.lease() else { continue };
        // One that was taken for dead may have become one of the worker's others.
        let alone = state.tasks.held_by(&lease.worker).count() == 1;
        assert!(alone, "I26: {} runs beside others on {}", task.id, lease.worker);
    }
}

/// Whether two syncs with one disk conflict, by the rules of the documentation.
pub(super) fn conflicts_by_path(earlier: &SyncJob, later: &SyncJob) -> bool {
    let overlap = |a: &AbsPath, b: &AbsPath| a.contains(b) || b.contains(a);
    let mirrors = [earlier, later].iter().any(|sync| sync.request.options.delete.is_some());
    if earlier.is_dry_run() || later.request.options.allow_overlap && !mirrors {
        return false;
    }
    let (held, wanted) = (&earlier.request, &later.request);
    let reads = earlier.is_active() && !later.is_dry_run();
    overlap(&held.destination_path, &wanted.source_path)
        || overlap(&held.destination_path, &wanted.destination_path)
        || reads && overlap(&held.source_path, &wanted.destination_path)
}

/// The disk of the active workers that the scheduler has for a place.
pub(super) fn disk_of(state: &State, place: Place<'_>, sim: &Sim) -> Option<usize> {
    state.workers.storages.views_of(place.storage?).find_map(|(worker, view)| {
        let is_active = state.workers.get(worker).is_some_and(|worker| worker.is_active);
        let is_used = is_active && view.is_member() && !sim.is_wrongly_believed(worker);
        is_used.then(|| sim.storages.disk_of(view)).flatten()
    })
}

/// I27: the views of a storage are views of one disk, as far as their agents say the truth.
pub(super) fn storages_are_true(state: &State, sim: &Sim) {
    let storages = &state.workers.storages;
    for no in storages.numbers() {
        let Some(path) = storages.path(no) else { continue };
        let mut seen: Option<(usize, &crate::wire::WorkerId)> = None;
        for (worker, view) in storages.views_of(no) {
            let is_used = view.is_member() && storages.is_present(worker, path);
            if !is_used || sim.is_wrongly_believed(worker) {
                continue;
            }
            let Some(disk) = sim.storages.disk_of(view) else { continue };
            let (before, other) = *seen.get_or_insert((disk, worker));
            assert_eq!(before, disk, "I27: {other} and {worker} are taken for one storage");
        }
    }
}

/// I3: a task is in one place; I7: and there are not too many.
pub(super) fn tasks_are_in_one_place(state: &State) {
    let (mut ready, mut leased, mut queued) = (0, 0, 0);
    for task in state.tasks.values() {
        match &task.state {
            crate::scheduler::task::TaskState::Ready => ready += 1,
            crate::scheduler::task::TaskState::Leased(lease) => {
                leased += 1;
                let filed = state.tasks.by_assignment(lease.assignment).map(|task| task.id);
                assert_eq!(filed, Some(task.id), "I3: a lease that is not filed");
            }
            crate::scheduler::task::TaskState::Delayed { .. } => {}
        }
    }
    runs_alone(state);
    for sync in state.syncs.values() {
        let queue = state.tasks.sync_tasks(sync.no).ready();
        queued += queue.scans.len() + queue.at_source.len() + queue.at_destination.len();
        queued += queue.in_units.len();
        queued += queue.pinned.values().map(BTreeSet::len).sum::<usize>();
        // What is isolated is not counted: a batch of it is one task for each of its entries.
        let copies = state.tasks.of_sync(sync.no).filter(|t| !state.isolation.contains(t.id));
        let copies = copies.filter(|task| task.spec.kind() == "copy").count();
        // A destination that follows the scans of its group gets work for several windows.
        let windows = if sync.scan_owner == ScanOwner::Itself { 1 } else { 4 };
        let most = windows * state.settings.window_tasks + 3 * 18;
        assert!(copies + sync.large_files.len() <= most, "I7: {} has too much out", sync.id);
    }
    let in_unit = |task: &crate::scheduler::task::Task| Some((task.id, task.sync, task.unit?));
    state.relays.check(state.tasks.values().filter_map(in_unit).collect());
    assert_eq!(queued, ready, "I3: what is ready is queued, once");
    assert_eq!(state.tasks.lease_count(), leased, "I3: what is leased is filed, once");
}

/// The store holds the state of the master.
pub(super) fn same_as_stored(state: &State, store: &Store) {
    let keys: BTreeSet<String> = state.record_keys().into_iter().collect();
    let stored: BTreeSet<String> = store.records.keys().cloned().collect();
    assert!(
        stored.is_empty() || keys == stored,
        "I18: the store holds other records than there are"
    );
    for (key, value) in &store.records {
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        let (now, stored) = (state.record(key), text(value));
        assert!(
            now.as_ref() == Some(value),
            "I18: {key} is not stored as it is: {:?}, and not {stored:?}",
            now.as_ref().map(text)
        );
    }
    for task in state.tasks.values().filter(|task| task.spec.kind() != "list") {
        let there = task.manifest_key.iter().all(|key| store.blobs.contains_key(key));
        assert!(there, "I18: {} {} has no manifest", task.spec.kind(), task.id);
    }
}
