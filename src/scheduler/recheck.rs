//! A host that lost power, or was rebooted, before it flushed what a sync wrote through it, or whose storage path
//! leads to another directory by now. What it lost is not known: a
//! file may have its length and time and not its content. So the sync walks its source a second time, compares by content
//! what the disks have, brings what differs, and flushes again.
//!
//! ```text
//! Secure, Flush ──the writer's host rebooted──▶ Readback ──▶ (Secure, Prune, Sweep,) Flush
//! ```
//!
//! What was deleted through such a host may be back, and nobody would see it: a mirror that has begun to delete fails.

use super::boots::is_other_root;
use super::stage::Stage;
use super::sync::{Failed, Sync};
use super::{Now, State};
use crate::wire::sync::{ErrorClass, FailedStep, FileError};
use crate::wire::{SyncNo, TaskId};
use serde::{Deserialize, Serialize};

/// A sync is compared again so often at most: hosts that reboot again and again are no place to write to.
const MOST: u32 = 3;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recheck {
    /// It is compared again as soon as nothing of it is out.
    wanted: bool,
    /// How often that was begun.
    times: u32,
}

impl Recheck {
    /// Whether there is nothing to remember.
    pub(super) fn is_none(&self) -> bool {
        *self == Recheck::default()
    }

    /// Whether it is to begin.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// Whether it has ever begun.
    pub(super) fn begun(&self) -> bool {
        self.times > 0
    }

    /// It begins.
    pub(super) fn begin(&mut self) {
        *self = Recheck { wanted: false, times: self.times + 1 };
    }
}

impl Sync {
    /// Whether comparing its destination with its source again can make up for what a host lost.
    fn can_recheck(&self) -> bool {
        let options = &self.request.options;
        let left_alone = options.update || options.ignore_existing || options.existing;
        let deletes = options.delete.is_some() && self.stage > Stage::Secure;
        let whole = !self.hard_failures && !self.root_failed && self.stopped.is_none();
        self.recheck.times < MOST && whole && !left_alone && !deletes
    }
}

impl State {
    /// The host of the worker that a flush is bound to was rebooted: the sync is compared again instead. False: that
    /// would not help.
    pub(super) fn recheck(&mut self, flush: TaskId, now: Now) -> bool {
        let Some(task) = self.tasks.get(&flush) else { return false };
        let (no, bound) = (task.sync, task.bound.clone());
        let Some(sync) = self.syncs.get_mut(&no) else { return false };
        let Some(bound) = bound.filter(|_| sync.recheck.wanted || sync.can_recheck()) else {
            return false;
        };
        tracing::warn!(
            sync = %sync.id,
            worker = %bound,
            "its host was rebooted, or its storage path replaced, before what it wrote was flushed: all is compared again"
        );
        sync.recheck.wanted = true;
        // It may have written under its present boot already, and who compares finds that as it should be: it is to be
        // flushed as well.
        let destination = &sync.request.destination_path;
        let place = self.workers.get(&bound).and_then(|worker| worker.place_of_writes(destination));
        sync.writers.remove(&bound);
        sync.writers.add(&bound, place.as_ref());
        sync.reach.remove(&bound);
        self.drop_task(flush);
        self.touched.insert(no);
        self.changed(no, now);
        true
    }

    /// The root that a worker wrote to and flushed was replaced before the sync ended: nothing of that is found under
    /// the path. The sync is compared again, or the failure is recorded. False: nothing was replaced.
    pub(super) fn recheck_replaced(&mut self, no: SyncNo) -> bool {
        let Some(sync) = self.syncs.get(&no) else { return false };
        let destination = &sync.request.destination_path;
        let replaced = sync.reach.iter().find_map(|(id, then)| {
            let worker = self.workers.get(id).filter(|w| w.active && w.holds(destination))?;
            let now = worker.place_of_writes(destination)?;
            is_other_root(then.as_ref()?, &now).then(|| (id.clone(), now))
        });
        let Some((id, place)) = replaced else { return false };
        let Some(sync) = self.syncs.get_mut(&no) else { return false };
        let compare = sync.can_recheck();
        tracing::warn!(
            sync = %sync.id, worker = %id, compare, "its storage path was replaced after what it wrote was flushed"
        );
        sync.reach.remove(&id);
        if compare {
            sync.recheck.wanted = true;
            sync.writers.add(&id, Some(&place));
            return true;
        }
        let message = format!(
            "the storage path of worker {id} that holds {} was replaced while the sync ran, and what had been \
             written is not found there; submit the sync again",
            sync.request.destination_path
        );
        let error = FileError {
            path: Default::default(),
            operation: "use storage path destination".to_owned(),
            errno: None,
            message,
            hint: None,
            worker_id: Some(id),
            attempt: 0,
            class: ErrorClass::Permanent,
        };
        self.failed_for_good(no, error, Failed::Step(FailedStep::Flush, 1));
        true
    }
}
