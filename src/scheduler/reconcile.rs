//! Repair on request of an operator: leases without a worker, and keys in the store without an
//! owner. In a healthy installation it finds nothing.

use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, Reply, State, StoredKeys, record_keys};
use crate::wire::SyncNo;
use crate::wire::admin::{ReconcileReply, RequeuedTask};
use std::collections::BTreeSet;

const MAX_LISTED_TASKS: usize = 100;

impl State {
    /// `stored` must be listed after all earlier decisions were written.
    pub(super) fn reconcile(&mut self, stored: &StoredKeys, now: Now) -> Reply {
        let mut done = ReconcileReply::default();
        self.free_lost_leases(&mut done, now);
        self.restart_syncs_without_manifests(&stored.blobs, &mut done, now);
        let known: BTreeSet<String> = self.record_keys().into_iter().collect();
        for key in stored.records.difference(&known) {
            self.outbox.write_record(key.clone());
            done.dropped_records += 1;
        }
        for key in known.difference(&stored.records) {
            self.outbox.write_record(key.clone());
            done.restored_records += 1;
        }
        let wanted = self.blob_keys();
        for key in stored.blobs.iter().filter(|key| !wanted.contains(*key)) {
            self.outbox.delete_blob(key.clone());
            done.dropped_blobs += 1;
        }
        if done != ReconcileReply::default() {
            tracing::warn!(?done, "reconciled");
        }
        Reply::Reconciled(Box::new(done))
    }

    /// Leases of unknown workers or of earlier processes. A new leader waits one heartbeat time-out
    /// before a worker counts as unknown.
    fn free_lost_leases(&mut self, done: &mut ReconcileReply, now: Now) {
        let settled =
            now.mono_ms.saturating_sub(self.leading_since_ms) > self.settings.heartbeat_timeout_ms;
        let why = |task: &Task| {
            let lease = task.lease()?;
            match self.workers.get(&lease.worker) {
                None if settled => Some((task.id, "no such worker is known".to_owned())),
                Some(known) if known.last_heartbeat.incarnation != lease.incarnation => {
                    Some((task.id, "its agent was restarted since".to_owned()))
                }
                _ => None,
            }
        };
        for (id, why) in self.tasks.leased().filter_map(why).collect::<Vec<_>>() {
            done.requeued_tasks += 1;
            let task = self.tasks.get(id).filter(|_| done.requeued.len() < MAX_LISTED_TASKS);
            let listed = task.and_then(|task| {
                Some(RequeuedTask {
                    request_id: self.syncs.get(task.sync)?.id.clone(),
                    task_id: id,
                    kind: task.spec.kind().to_owned(),
                    worker_id: task.lease()?.worker.clone(),
                    reason: why,
                })
            });
            done.requeued.extend(listed);
            self.requeue_lost(id, now);
        }
    }

    /// A task without its manifest can never be done: its sync restarts.
    fn restart_syncs_without_manifests(
        &mut self,
        stored: &BTreeSet<String>,
        done: &mut ReconcileReply,
        now: Now,
    ) {
        let mut broken = self.syncs.numbers();
        broken.retain(|no| self.manifest_keys(*no).any(|key| !stored.contains(key)));
        for no in broken {
            self.restart_sync(no, now);
            done.restarted_syncs.extend(self.syncs.get(no).map(|sync| sync.id.clone()));
        }
    }

    /// Keys of the manifests that tasks and large files of a sync need.
    fn manifest_keys(&self, no: SyncNo) -> impl Iterator<Item = &String> {
        let sync = self.syncs.get(no).into_iter();
        sync.flat_map(move |sync| {
            let tasks = self.tasks.of_sync(no).filter_map(|task| task.manifest_key.as_ref());
            tasks.chain(sync.large_files.values().map(|large| &large.manifest_key))
        })
    }

    /// Keys of all needed blobs.
    pub fn blob_keys(&self) -> BTreeSet<String> {
        let of_tasks = self.syncs.values().flat_map(|sync| self.manifest_keys(sync.no).cloned());
        let lists = self.syncs.values().flat_map(|sync| {
            let parts = 0..sync.name_list_parts.unwrap_or(0);
            parts.map(|part| record_keys::name_list_key(sync.name_list_owner(), part))
        });
        let failed = self.syncs.values().flat_map(SyncJob::failure_blob_keys);
        of_tasks.chain(lists).chain(failed).collect()
    }
}
