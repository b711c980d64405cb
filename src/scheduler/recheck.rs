//! Recheck after a host lost power or was rebooted before it flushed what a sync wrote through it,
//! or after its storage path was replaced by another directory. What was lost is not known: a file
//! may have its size and time but not its content. So the sync walks its source again, compares the
//! content with the disks, copies what differs, and flushes again.
//!
//! ```text
//! FlushBeforeDelete, Flush ──the writer's host rebooted──▶ Readback ──▶ (FlushBeforeDelete, DeleteExtraneous, CleanUp,) Flush
//! ```
//!
//! Deletions through such a host may be undone, which the recheck cannot detect: a mirror that has
//! begun to delete fails.

use super::boot_ids::is_different_root;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::{Now, State};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::FailedStep;
use crate::wire::{SyncNo, TaskId};

/// Maximum number of rechecks of a sync: a host that reboots repeatedly is no usable destination.
const MAX_RECHECKS: u32 = 3;

impl SyncJob {
    /// Whether a recheck can repair what a host lost.
    fn can_recheck(&self) -> bool {
        let options = &self.request.options;
        let left_alone = options.update || options.ignore_existing || options.existing;
        let deletes = options.delete.is_some() && self.phase > PhaseState::FlushBeforeDelete;
        let whole =
            !self.has_hard_failures && !self.source_root_failed && self.mirror_stop.is_none();
        self.recheck.count < MAX_RECHECKS && whole && !left_alone && !deletes
    }
}

impl State {
    /// Content of a sync was found damaged at its destination: all is compared again before it ends. False: that cannot
    /// help.
    pub(super) fn request_recheck(&mut self, no: SyncNo) -> bool {
        let Some(sync) = self.syncs.get_mut(no) else { return false };
        let can_help = sync.recheck.is_pending || sync.can_recheck();
        (sync.recheck.is_pending, sync.recheck.has_damage) = (can_help, true);
        self.outbox.mark_dirty(no);
        can_help
    }

    /// The host of a pending flush was rebooted: the sync is rechecked. False: a recheck cannot
    /// help.
    pub(super) fn recheck_after_reboot(&mut self, flush: TaskId, now: Now) -> bool {
        let Some(task) = self.tasks.get(flush) else { return false };
        let (no, bound) = (task.sync, task.pinned_to.clone());
        let Some(sync) = self.syncs.get_mut(no) else { return false };
        let Some(bound) = bound.filter(|_| sync.recheck.is_pending || sync.can_recheck()) else {
            return false;
        };
        tracing::warn!(
            sync = %sync.id,
            worker = %bound,
            "its host was rebooted, or its storage path replaced, before what it wrote was flushed: all is compared again"
        );
        sync.recheck.is_pending = true;
        // The worker may have written under its present boot too, and the recheck finds that
        // correct: it must also flush.
        let destination = &sync.request.destination_path;
        let writer = self.workers.get(&bound);
        sync.unflushed_writers.remove(&bound);
        // If its path leads to another storage now, it has nothing to flush there.
        if let Some(writer) = writer.filter(|w| self.workers.serves(w, sync.destination())) {
            let place = writer.boot_and_root(destination);
            sync.unflushed_writers.add(&bound, place.as_ref());
        }
        sync.possible_writers.remove(&bound);
        self.remove_task(flush);
        self.outbox.mark_dirty(no);
        self.mark_changed(no, now);
        true
    }

    /// The root that a worker wrote to and flushed was replaced before the sync ended: nothing is
    /// found under the path. The sync is rechecked, or the failure is recorded. False: nothing was
    /// replaced.
    pub(super) fn recheck_after_replacement(&mut self, no: SyncNo) -> bool {
        let Some(sync) = self.syncs.get(no) else { return false };
        let destination = &sync.request.destination_path;
        let replaced = sync.possible_writers.iter().find_map(|(id, then)| {
            let worker = self.workers.get(id).filter(|w| w.is_active)?;
            worker.available_root(destination)?;
            let now = worker.boot_and_root(destination)?;
            let flushes = self.workers.serves(worker, sync.destination());
            is_different_root(then.as_ref()?, &now).then(|| (id.clone(), flushes.then_some(now)))
        });
        let Some((id, place)) = replaced else { return false };
        let Some(sync) = self.syncs.get_mut(no) else { return false };
        let compare = sync.can_recheck();
        tracing::warn!(
            sync = %sync.id, worker = %id, compare, "its storage path was replaced after what it wrote was flushed"
        );
        sync.possible_writers.remove(&id);
        if compare {
            sync.recheck.is_pending = true;
            if let Some(place) = &place {
                sync.unflushed_writers.add(&id, Some(place));
            }
            return true;
        }
        let message = format!(
            "the storage path of worker {id} that holds {} was replaced while the sync ran, and what had been \
             written is not found there; submit the sync again",
            sync.request.destination_path
        );
        let error = EntryError {
            worker_id: Some(id),
            class: ErrorClass::Permanent,
            ..EntryError::new(b"", Side::Destination, "use storage path", message)
        };
        self.record_failed_step(no, FailedStep::Flush, error);
        true
    }
}
