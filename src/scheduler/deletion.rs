//! Choice of the agent that [deletes](super::sync_job::Deleter) for a mirror.

use super::sync_job::{Deleter, SyncJob};
use super::task::Task;
use super::worker_registry::Worker;
use super::{Now, State};
use crate::wire::task::TaskSpec;
use crate::wire::ticket::DeleteGrant;
use crate::wire::{SyncNo, WorkerId};

impl State {
    /// The next deleter for a task that is leased to `leased`, if the present one must be replaced:
    /// `leased` itself if it serves the destination, else another worker.
    fn next_deleter<'a>(&'a self, sync: &'a SyncJob, leased: &WorkerId) -> Option<&'a Worker> {
        let destination = sync.destination();
        let before = sync.deleter.as_ref();
        let stays = before.is_some_and(|deleter| {
            let worker = self.workers.get(&deleter.worker);
            let worker = worker.filter(|w| self.workers.serves(w, destination));
            !deleter.has_failed && worker.is_some_and(|worker| deleter.is_same_process(worker))
        });
        if stays {
            return None;
        }
        let itself = self.workers.get(leased).filter(|w| w.accepts_work());
        let itself = itself.filter(|w| self.workers.serves(w, destination));
        let reachable = itself.into_iter().chain(self.reachable_writers(sync, leased, 1));
        let reachable: Vec<&Worker> =
            reachable.filter(|w| w.last_heartbeat.incarnation.is_some()).collect();
        // Prefer another worker than the previous one.
        let is_other = |w: &&&Worker| before.is_none_or(|b| b.worker != w.last_heartbeat.worker_id);
        reachable.iter().find(is_other).or(reachable.first()).copied()
    }

    /// Whether a deletion must not be assigned yet: it would need a new grant while other tasks
    /// still delete under the old one, and the number that they will delete is not known.
    pub(super) fn must_wait_for_deletions(&self, sync: &SyncJob, leased: &WorkerId) -> bool {
        let Some(deleter) = &sync.deleter else { return false };
        let is_new = |next: &Worker| !deleter.is_same_process(next);
        let deletes = |task: &Task| {
            matches!(task.spec, TaskSpec::Prune { apply: true, .. }) && task.lease().is_some()
        };
        self.next_deleter(sync, leased).is_some_and(is_new)
            && self.tasks.of_sync(sync.no).any(deletes)
    }

    /// Chooses the deleter of a task that is leased to `leased`. The present one is kept while it
    /// can be reached and no task failed. A new grant allows what the reports so far leave of the
    /// limits.
    pub(super) fn choose_deleter(&mut self, no: SyncNo, leased: &WorkerId, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        let Some(chosen) = self.next_deleter(sync, leased) else { return };
        let Some(receiver) = chosen.last_heartbeat.incarnation.clone() else { return };
        let worker = chosen.last_heartbeat.worker_id.clone();
        let same = sync.deleter.as_ref().is_some_and(|deleter| deleter.is_same_process(chosen));
        let allowance = sync.max_deletions().saturating_sub(sync.deleted_entries());
        let grant_id = u64::from_le_bytes(self.keys.draw());
        let Some(sync) = self.syncs.get_mut(no) else { return };
        if let (true, Some(deleter)) = (same, &mut sync.deleter) {
            // There is no other worker: its count continues.
            deleter.has_failed = false;
        } else {
            let deletion = DeleteGrant { grant_id, max_entries: allowance, incarnation: receiver };
            sync.deleter = Some(Deleter { worker, deletion, has_failed: false });
        }
        self.mark_changed(no, now);
    }
}
