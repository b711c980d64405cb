//! What the results of units mean for other destinations: which of them can send the unit on, and which can't any more.
//! Whatever fails is repeated from the source.

use super::sync_job::{ScanOwner, SyncJob};
use super::task::Task;
use super::validate::validate_item;
use super::{Now, State};
use crate::wire::entry_report::{EntryWarning, EntryWarnings};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::FailedStep;
use crate::wire::task::{TaskReport, TaskSpec, WorkItem};
use crate::wire::{TaskId, WorkerId};

impl SyncJob {
    /// Whether what it reads is shared with other destinations of its group.
    pub(super) fn shares_source(&self) -> bool {
        self.group().is_some() && self.scan_owner != ScanOwner::Itself
    }
}

impl State {
    /// A batch of a unit was copied to its destination, which can send it on now. `task` is removed already.
    pub(super) fn share_copied_batch(&mut self, task: &Task, report: &TaskReport) {
        let Some(unit) = task.unit else { return };
        if task.lease().is_some_and(|lease| lease.relay.is_some()) {
            if report.failures.is_empty() {
                self.relays.add_holder(unit, task.sync);
            }
            return;
        }
        // What the destination had already was not read: others get it from the source, if they lack it.
        let has_read_all = report.files_skipped == 0 && report.bytes_cloned == 0;
        let Some(held) = held_part(task, report).filter(|_| has_read_all) else { return };
        let Some(group) = self.syncs.get(task.sync).and_then(SyncJob::group) else { return };
        let WorkItem::Copy { manifest, files, dirs, bytes } = held.copied else { return };
        let others = self.relays.tasks_of(unit);
        let others: Vec<TaskId> =
            others.into_iter().filter(|id| !self.tasks.is_leased(*id)).collect();
        if others.is_empty() {
            return;
        }
        let manifest = self.store_shared_manifest(group, manifest.0);
        let unit = self.relays.add_batch(group);
        for id in others {
            let Some(old) = self.remove_task(id) else { continue };
            let spec = TaskSpec::Copy { files, dirs, bytes };
            let (attempt, history) = (old.attempt, old.history.clone());
            let other = Task { attempt, history, ..Task::new(old.sync, spec) };
            let added = self.add_task_sharing(other, &manifest);
            self.join_unit(added, unit);
            if let Some(failed) = &held.failed {
                self.add_work_item(old.sync, failed.clone(), Some(old.history));
            }
        }
        self.relays.add_holder(unit, task.sync);
    }

    /// A lease ended without a result: the task is repeated from the source, and others do not wait for what its worker
    /// holds.
    pub(super) fn leave_unit_after_loss(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id).filter(|task| task.unit.is_some()) else { return };
        let group = self.syncs.get(task.sync).and_then(SyncJob::group);
        let relay = task.lease().and_then(|lease| lease.relay.as_ref());
        let holder = relay.map(|relay| relay.holder);
        self.leave_unit(id);
        if let (Some(group), Some(holder)) = (group, holder) {
            self.relays.remove_holder_everywhere(group, holder);
        }
    }

    /// Handles copies that were found damaged by the relay that should have sent them: their destination compares all it
    /// has with the source before it ends.
    pub(super) fn handle_damaged_copies(
        &mut self,
        id: TaskId,
        relay_worker: &WorkerId,
        errors: &[EntryError],
        now: Now,
    ) {
        let is_damaged =
            |e: &&EntryError| e.side == Some(Side::Relay) && e.class == ErrorClass::Damaged;
        let damaged: Vec<&EntryError> = errors.iter().filter(is_damaged).collect();
        let Some(first) = damaged.first() else { return };
        let Some(task) = self.tasks.get(id) else { return };
        let relay = task.lease().and_then(|lease| lease.relay.as_ref());
        let (unit, Some(holder)) = (task.unit, relay.map(|relay| relay.holder)) else { return };
        // Without a unit (a master took over) or when it holds it no more, its copy may be damaged as well. If it has
        // removed its part since, comparing costs a pass.
        if let Some(unit) = unit {
            self.relays.remove_holder(unit, holder);
        }
        let Some(sync) = self.syncs.get_mut(holder) else { return };
        tracing::warn!(
            sync = %sync.id, worker = %relay_worker, files = damaged.len(), path = %first.path,
            "content at a destination was damaged after it was verified"
        );
        // Others may have changed it since.
        if !sync.is_active() {
            return;
        }
        let mut warning = EntryWarning::default();
        damaged.iter().for_each(|error| warning.add(&error.path.0));
        sync.add_metadata_warnings(EntryWarnings::from([(
            format!("content was damaged at the destination after it was verified (read by worker {relay_worker})"),
            warning,
        )]));
        if !self.request_recheck(holder) {
            let message = "content was damaged at the destination after it was verified, and it is not compared \
                           again; submit the sync again with --checksum";
            let error = EntryError {
                worker_id: Some(relay_worker.clone()),
                class: ErrorClass::Permanent,
                ..EntryError::new(&first.path.0, Side::Destination, "verify", message)
            };
            self.record_failed_step(holder, FailedStep::ReadBack, error);
        }
        self.mark_changed(holder, now);
    }
}

/// A copied batch, divided.
struct HeldPart {
    /// What the destination has, with digests.
    copied: WorkItem,
    /// What failed.
    failed: Option<WorkItem>,
}

/// What a destination has of a batch; `None`: the report does not say it.
fn held_part(task: &Task, report: &TaskReport) -> Option<HeldPart> {
    let TaskSpec::Copy { files, dirs, .. } = task.spec else { return None };
    let held = report.held.clone().filter(|item| validate_item(item).is_ok())?;
    let done = (report.files_done, report.dirs_done);
    let counts = |item: &WorkItem| match item {
        WorkItem::Copy { files, dirs, .. } => Some((*files, *dirs)),
        WorkItem::Large { .. } => None,
    };
    if counts(&held) != Some(done) {
        return None;
    }
    if report.failures.is_empty() {
        return Some(HeldPart { copied: held, failed: None });
    }
    let failed = (files.checked_sub(done.0)?, dirs.checked_sub(done.1)?);
    let retry = report.retry.clone().filter(|item| counts(item) == Some(failed))?;
    validate_item(&retry).ok()?;
    Some(HeldPart { copied: held, failed: Some(retry) })
}
