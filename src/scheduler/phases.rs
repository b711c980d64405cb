//! What follows a failure: trying again and giving up; what is dropped with a sync.

use super::boots::{Boots, boot_of};
use super::hold::is_storage_gone;
use super::sync::Failed;
use super::task::{Course, Task, TaskState};
use super::worker::unavailable;
use super::{Effect, NewTask, Now, State, records};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::units;
use crate::wire::sync::{ErrorClass, FailedStep, FileError};
use crate::wire::task::TaskSpec;
use crate::wire::worker::UnavailablePath;
use crate::wire::{BytePath, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a sync waits for a worker that wrote and fell silent before it says that its writes may
/// be lost.
const FLUSH_PATIENCE_MS: u64 = 10 * 60 * 1000;
/// Between two tries of the same work.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// A task that failed as a whole.
pub(super) struct Failure {
    pub(super) worker: WorkerId,
    pub(super) why: String,
    /// The entry at fault, for a task about one file.
    pub(super) errors: Vec<FileError>,
}

impl State {
    /// A task failed as a whole: it is tried again, elsewhere where that is possible, or given up.
    pub(super) fn failed(&mut self, id: TaskId, failure: Failure, now: Now) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.tried.insert(failure.worker.clone());
        task.last_error = Some(failure.why.clone());
        let task = task.clone();
        if matches!(task.spec, TaskSpec::Prune { apply: true, .. })
            && let Some(deleter) = self.syncs.get_mut(&task.sync).and_then(|s| s.deleter.as_mut())
        {
            deleter.failed = true;
            self.changed(task.sync, now);
        }
        if self.waits_for_storage(&task, &failure.errors, now) {
            self.leases_end(id);
            self.delay(id, now);
            return;
        }
        if task.met_shortage(&failure.errors) {
            self.leases_end(id);
            if let Some(task) = self.tasks.get_mut(&id) {
                task.short += 1;
            }
            self.delay(id, now);
            return;
        }
        if task.spec == TaskSpec::Discard && task.failures >= 3 {
            let what = "a part file could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", task.sync), sync = %task.sync, why = failure.why, "{what}");
            self.drop_task(id);
            return;
        }
        // A flush that was tried and failed is final: the kernel tells of what it could not write once
        // only, and the next flush would succeed without it.
        // One that was refused because the storage is gone was not tried.
        let tried = |error: &FileError| !is_storage_gone(error);
        let final_flush = task.spec == TaskSpec::Flush && failure.errors.iter().any(tried);
        let in_vain = final_flush || self.is_found(&task);
        if in_vain || !self.worth_another_try(&task, &task.tried, &failure.errors) {
            let mut error = failure.errors.into_iter().next();
            if let Some(error) = &mut error {
                error.worker_id.get_or_insert(failure.worker);
                error.attempt = error.attempt.max(task.failures + 1);
            }
            self.give_up(id, &failure.why, error, now);
            return;
        }
        self.leases_end(id);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.failures += 1;
        }
        self.delay(id, now);
    }

    /// Nobody has a task any more.
    fn leases_end(&mut self, id: TaskId) {
        if let Some(lease) = self.tasks.get(&id).and_then(Task::lease) {
            self.leases.remove(lease);
        }
    }

    /// Whether trying again can help: what is permanent helps only on a worker that has not tried
    /// yet; what is transient a number of times. A whole task that fails (a peer is away) gets twice
    /// that.
    pub(super) fn worth_another_try(
        &self,
        task: &Task,
        tried: &BTreeSet<WorkerId>,
        errors: &[FileError],
    ) -> bool {
        let most = self.settings.max_retries;
        if errors.is_empty() {
            return task.failures < 2 * most;
        }
        let may_pass = |e: &FileError| {
            use ErrorClass::{Changed, StorageGone, Transient};
            matches!(e.class, Transient | Changed | StorageGone)
        };
        if errors.iter().any(may_pass) {
            return task.failures < most;
        }
        let blocked = errors.iter().any(|e| e.class == ErrorClass::Permanent);
        blocked && self.untried(task, tried)
    }

    /// Whether there is a worker that could do a task and has not tried.
    fn untried(&self, task: &Task, tried: &BTreeSet<WorkerId>) -> bool {
        let Some(sync) = self.syncs.get(&task.sync) else { return false };
        let request = &sync.request;
        let path = if task.at_source() { &request.source_path } else { &request.destination_path };
        self.able(sync, path).any(|w| !tried.contains(&w.said.worker_id))
    }

    /// Puts a failed task back: at once where another worker can take it, else after a while.
    pub(super) fn delay(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id) else { return };
        let elsewhere = self.untried(task, &task.tried);
        // Tasks that failed together do not come back together; the same one always after the same time.
        let seed = task.id.0 ^ task.sync.0.rotate_left(32);
        let wait = BACKOFF.jittered_delay((task.failures + task.short).saturating_sub(1), seed);
        let wait = u64::try_from(wait.as_millis());
        let until_ms = now.mono_ms.saturating_add(wait.unwrap_or(u64::MAX));
        if let Some(task) = self.tasks.get_mut(&id) {
            task.spared_until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            let (key, no) = (task.key(), task.sync);
            let state = if elsewhere { TaskState::Ready } else { TaskState::Delayed { until_ms } };
            self.set_state(id, state);
            self.put(key);
            self.touched.insert(no);
            self.wake = true;
        }
    }

    /// Records a task as failed for good.
    pub(super) fn give_up(&mut self, id: TaskId, why: &str, error: Option<FileError>, now: Now) {
        let Some(task) = self.tasks.get(&id).cloned() else { return };
        let worker = task.lease().map(|l| l.worker.clone());
        let what = match &task.spec {
            TaskSpec::Scan { dir, .. } => format!("list `{dir}`"),
            TaskSpec::Prune { dir, .. } => format!("delete in `{dir}`"),
            TaskSpec::CleanUp => "remove the anchors of hard links".to_owned(),
            TaskSpec::List { .. } => "look up listed names".to_owned(),
            TaskSpec::Copy { .. } if task.entry.is_some() => "copy".to_owned(),
            TaskSpec::Copy { files, dirs, .. } => {
                format!("copy {}", units::pluralize(files + dirs, "entry", "entries"))
            }
            other => other.kind().to_owned(),
        };
        let path = match &task.spec {
            TaskSpec::Scan { dir, .. } | TaskSpec::Prune { dir, .. } => {
                BytePath(dir.as_bytes().to_vec())
            }
            _ => task.entry.clone().or_else(|| self.name_of_large(&task)).unwrap_or_default(),
        };
        let untold = error.is_none();
        let error = error.unwrap_or(FileError {
            path,
            operation: what,
            errno: None,
            message: why.to_owned(),
            hint: None,
            worker_id: worker,
            attempt: task.attempt,
            class: ErrorClass::Transient,
        });
        let found = self.is_found(&task);
        if let Some(file) = task.large {
            let group = self.large(task.sync, file).and_then(|large| large.group);
            self.discard(task.sync, file, Some(id), now);
            self.next_of_group(task.sync, group);
        }
        let manifest = self.take_failed_manifest(id, &error);
        self.drop_task(id);
        if found {
            // It is there all the same, and counted as that.
            return;
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        if !sync.is_active() {
            let what = "a file of an ended sync could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", sync.id), sync = %sync.id, why, "{what}");
            return;
        }
        // Who had it last may have left something that nobody told of.
        sync.to_sweep |= untold && sync.keeps_links() && task.links();
        let occupied = sync.can_set_aside(std::slice::from_ref(&error));
        match &task.spec {
            TaskSpec::Copy { files, dirs, .. } => {
                let count = sync.count_failed_entries(*files, *dirs);
                self.note_given_up_as(task.sync, error, count, manifest);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } if occupied => {
                self.set_aside(task.sync, 1, vec![error]);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } => {
                let count = sync.count_failed_entries(1, 0);
                self.note_given_up(task.sync, error, count);
            }
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => {
                let counts = sync.counts();
                let step = if counts { FailedStep::List } else { FailedStep::ReadBack };
                let unfit = error.class == ErrorClass::InvalidRequest;
                let of_root = match &task.spec {
                    TaskSpec::Scan { dir, cursor } => dir.is_root() && cursor.is_none(),
                    // That a root can't be used is no error of a listed name.
                    _ => unfit || error.path.0.is_empty() && error.class == ErrorClass::Permanent,
                };
                sync.root_failed |= counts && of_root;
                // What was to be listed must be there: that it is not is no mere vanished file.
                let class = if unfit { error.class } else { ErrorClass::Permanent };
                let error = FileError { class, ..error };
                self.failed_for_good(task.sync, error, Failed::Step(step, 1));
            }
            TaskSpec::Flush | TaskSpec::Prune { .. } | TaskSpec::CleanUp => {
                if let Some(bound) = &task.bound {
                    sync.writers.remove(bound);
                }
                let step = match task.spec {
                    TaskSpec::Flush => FailedStep::Flush,
                    TaskSpec::CleanUp => FailedStep::CleanUp,
                    _ => FailedStep::Delete,
                };
                let error = FileError { class: ErrorClass::Permanent, ..error };
                self.failed_for_good(task.sync, error, Failed::Step(step, 1));
            }
            TaskSpec::Discard => {}
        }
        self.changed(task.sync, now);
    }

    /// The manifest of a batch that is about to be dropped with an error that names no entry of it, to be kept for its
    /// names.
    fn take_failed_manifest(&mut self, id: TaskId, error: &FileError) -> Option<String> {
        let task = self.tasks.get(&id).filter(|_| error.path.0.is_empty())?;
        let TaskSpec::Copy { files, dirs, .. } = task.spec else { return None };
        if !self.lists_batch(task.sync, files.saturating_add(dirs)) {
            return None;
        }
        self.tasks.get_mut(&id)?.blob.take()
    }

    /// Counts and notes what is given up.
    pub(super) fn failed_for_good(&mut self, no: SyncNo, error: FileError, failed: Failed) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.count_failed(failed);
        }
        self.note_given_up(no, error, failed.count());
    }

    /// Notes and lists the error of `count` failures that are counted already.
    pub(super) fn note_given_up(&mut self, no: SyncNo, error: FileError, count: u64) {
        self.note_given_up_as(no, error, count, None);
    }

    /// … of all entries of a batch, where its `manifest` is given.
    fn note_given_up_as(
        &mut self,
        no: SyncNo,
        error: FileError,
        count: u64,
        manifest: Option<String>,
    ) {
        self.list_failed(no, &error, count, manifest);
        self.record_failed(no, &error);
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.record_error(error, count);
        }
    }

    /// Forgets a large file that will not be published, and has its part file removed. `told` is the task of it
    /// whose holder has just told of it, where there is one.
    pub(super) fn discard(&mut self, no: SyncNo, file: TaskId, told: Option<TaskId>, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let ended = !sync.is_active();
        let Some(large) = sync.larges.get(&file).cloned() else { return };
        if matches!(large.course, Course::Comparing | Course::Waiting) {
            // Nothing was written yet.
            self.remove_large(no, file);
            return;
        }
        sync.unsend(&large);
        // Others may still be writing for as long as a lease: whoever holds another range of it, and
        // after a cancel anybody.
        let ranges = self.ranges_of(no, file);
        let mut others = ranges.iter().filter_map(|id| self.tasks.get(id));
        let others = others.any(|range| Some(range.id) != told && range.lease().is_some());
        let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let state =
            if ended || others { TaskState::Delayed { until_ms } } else { TaskState::Ready };
        let blob = Some(large.blob);
        self.add_task(NewTask { blob, state, ..NewTask::ready(no, TaskSpec::Discard) }, None);
        self.forget_large(no, file);
    }

    /// Drops all that a sync still had to do; part files are removed later, and so are the temporary files
    /// of batches that somebody has or had: who was killed over one leaves some, and nobody tries again.
    pub(super) fn abandon(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let writes = !sync.dry_run();
        let larges: Vec<TaskId> = sync.larges.keys().copied().collect();
        for id in sync.tasks.clone() {
            self.note_revoked(id, now);
        }
        for file in larges {
            self.discard(no, file, None, now);
        }
        let tasks: Vec<TaskId> =
            self.syncs.get(&no).map(|s| s.tasks.iter().copied().collect()).unwrap_or_default();
        for id in tasks {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            match task.spec {
                TaskSpec::Discard => {}
                TaskSpec::Copy { .. } if writes && task.attempt > 0 => {
                    let (blob, blob_bytes) = (task.blob.take(), task.blob_bytes);
                    self.drop_task(id);
                    let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
                    let state = TaskState::Delayed { until_ms };
                    let discard = NewTask::ready(no, TaskSpec::Discard);
                    self.add_task(NewTask { blob, blob_bytes, state, ..discard }, None);
                }
                _ => drop(self.drop_task(id)),
            }
        }
    }

    /// Restores what must hold after every event: a sync whose tasks are done moves on, and polls
    /// get what there is.
    pub(super) fn settle(&mut self, now: Now) {
        while let Some(no) = self.touched.pop_first() {
            self.advance(no, now);
        }
        if std::mem::take(&mut self.wake) {
            self.serve_parked(now);
            // Serving marks syncs as touched (their state changed), but ends none.
            self.touched.clear();
            self.wake = false;
        }
    }

    /// Flush tasks that can't be done any more: the writer's host rebooted (then all is compared again, where that can
    /// help), or nobody who could flush comes for long.
    pub(super) fn flushes_in_vain(&mut self, now: Now) {
        let mut vain: Vec<(TaskId, String)> = Vec::new();
        let mut gone: Vec<(SyncNo, WorkerId, UnavailablePath)> = Vec::new();
        let mut lost: Vec<(TaskId, String)> = Vec::new();
        let mut in_time: Vec<TaskId> = Vec::new();
        for task in self.working.iter().filter_map(|no| self.syncs.get(no)).flat_map(|s| &s.tasks) {
            let Some(task) = self.tasks.get(task) else { continue };
            let Some(bound) = &task.bound else { continue };
            let Some(sync) = self.syncs.get(&task.sync) else { continue };
            let destination = &sync.request.destination_path;
            let place = sync.writers.get(bound).and_then(Option::as_ref);
            let boot = place.map(|place| boot_of(place));
            let writer = self.workers.get(bound);
            let under = || boot.into_iter().flat_map(|boot| self.workers.of_boot(boot));
            let mut flushers =
                under().chain(writer).filter(|w| w.can_work() && w.holds(destination));
            let waits = !sync.goes_on(now);
            if waits
                || task.state != TaskState::Ready
                || flushers.any(|w| self.may_flush(sync, task, w))
            {
                in_time.push(task.id);
                continue;
            }
            let runs = under().any(|w| w.active);
            let here = writer.filter(|w| w.active);
            let rebooted = here.is_some_and(|w| w.said.boot_id.as_deref() != boot && !runs);
            let same_kernel = here.filter(|w| w.said.boot_id.as_deref() == boot);
            let replaced = same_kernel.is_some_and(|w| {
                w.holds(destination) && w.place_of_writes(destination).as_ref() != place
            });
            let lost_path = here.and_then(|w| unavailable(&w.said, destination));
            if let (Some(path), false) = (lost_path, rebooted) {
                in_time.push(task.id);
                gone.push((sync.no, bound.clone(), path.clone()));
            } else if replaced && !rebooted {
                lost.push((
                    task.id,
                    format!(
                        "the storage path of worker {bound} that holds {destination} leads to another directory \
                         than the one that it wrote to; submit the sync again"
                    ),
                ));
            } else if rebooted {
                lost.push((
                    task.id,
                    format!(
                        "the host of worker {bound} was rebooted before what it wrote was flushed; \
                     submit the sync again"
                    ),
                ));
            } else if now.mono_ms.saturating_sub(task.since_ms) > FLUSH_PATIENCE_MS {
                vain.push((
                    task.id,
                    format!(
                        "worker {bound} wrote to the destination and did not return to flush it; \
                     submit the sync again"
                    ),
                ));
            }
        }
        for id in in_time {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.since_ms = now.mono_ms;
            }
        }
        for (no, worker, path) in gone {
            self.hold_flush(no, &worker, &path, now);
        }
        lost.retain(|(id, _)| !self.recheck(*id, now));
        for (id, why) in vain.into_iter().chain(lost) {
            self.give_up(id, &why, None, now);
        }
    }

    /// Forgets through whom a sync wrote: it has ended, and nobody flushes any more.
    pub(super) fn forget_workers(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        // Also of those that were taken out and are still stored.
        self.effects.extend(sync.unwritten().map(Effect::Put));
        self.effects.extend(sync.worker_keys().map(Effect::Delete));
        (sync.writers, sync.reach) = (Boots::default(), Boots::default());
        sync.source_roots = Boots::default();
        self.failing.insert(no);
    }

    pub(super) fn remove_sync(&mut self, no: SyncNo, now: Now) {
        self.drop_list(no);
        self.drop_failed(no);
        self.forget_groups(no);
        self.forget_workers(no);
        if let Some(sync) = self.syncs.remove(&no) {
            if self.by_id.get(&sync.id) == Some(&no) {
                self.by_id.remove(&sync.id);
            }
            self.effects.push(Effect::Delete(sync.key()));
            self.effects.extend(sync.filter_key().map(Effect::Delete));
            self.effects.push(Effect::DropListing(no));
        }
        self.release_paths(no, now);
    }

    /// Drops the stored parts of a file list: nobody looks at them any more. A sync that did not bring
    /// all keeps them as long as it can be asked for: it may be tried again.
    pub(super) fn drop_list(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let (owner, parts) = (sync.list_owner(), sync.list_parts.take().unwrap_or(0));
        for index in 0..parts {
            self.effects.push(Effect::DeleteBlob(records::list_key(owner, index)));
        }
    }

    /// The store lost data while we lived: manifests that it held are gone, so everything that is
    /// not ended begins anew. What is at the destination already will be skipped.
    pub(super) fn start_anew(&mut self, now: Now) {
        let all: Vec<SyncNo> = self.syncs.keys().copied().collect();
        for no in all {
            self.sync_anew(no, now);
        }
    }

    /// Drops what a sync has to do; one that is not ended begins anew.
    pub(super) fn sync_anew(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let larges: Vec<TaskId> = sync.larges.keys().copied().collect();
        let tasks: Vec<TaskId> = sync.tasks.iter().copied().collect();
        let active = sync.is_active();
        tasks.iter().for_each(|id| self.note_revoked(*id, now));
        larges.into_iter().for_each(|file| drop(self.remove_large(no, file)));
        tasks.into_iter().for_each(|id| drop(self.drop_task(id)));
        if active {
            self.forget_groups(no);
            self.drop_failed(no);
            if let Some(sync) = self.syncs.get_mut(&no) {
                // Results of what is out now will match nothing.
                sync.suspect_all();
                sync.reset();
            }
            self.add_scans(no);
            self.changed(no, now);
        }
    }
}
