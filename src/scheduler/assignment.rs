//! The document of a leased task: workers, ticket, expected root of the source; and through which workers it may write.

use super::sync_job::SyncJob;
use super::task::{Lease, LeasedRelay, Task};
use super::worker_registry::Worker;
use super::{Now, Reply, State};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::task::{Assignment, PoolMember, Relay, TaskSpec};
use crate::wire::{AssignmentId, TaskId, WorkerId};

/// Maximum number of source workers in an assignment: agents contact the destination's.
const MAX_SOURCE_MEMBERS: usize = 8;

/// Workers as an assignment lists them, in the order of their ids.
fn pool_members<'a>(workers: impl Iterator<Item = &'a Worker>) -> Vec<PoolMember> {
    let mut members: Vec<PoolMember> = workers.map(Worker::pool_member).collect();
    members.sort_unstable_by(|a, b| a.worker_id.cmp(&b.worker_id));
    members
}

fn worker_ids(members: &[PoolMember]) -> Vec<WorkerId> {
    members.iter().map(|member| member.worker_id.clone()).collect()
}

impl State {
    /// The document for a leased task.
    pub(super) fn build_assignment(&self, task: &Task, now: Now) -> Option<Assignment> {
        let sync = self.syncs.get(task.sync)?;
        let lease = task.lease()?;
        let request = &sync.request;
        let sources = self.workers.reachable(sync.source(), &lease.worker, task.attempt);
        let sources = sources
            .filter(|w| {
                w.accepts_work() && (w.supports_options() || !sync.has_nondefault_options())
            })
            .take(MAX_SOURCE_MEMBERS);
        let options = sync.task_options(&task.spec);
        let large = task.large_file.and_then(|file| sync.large_files.get(&file));
        let (chunk_offset, chunk_size) = task.spec.content_extent(large.map(|file| file.size));
        let source_workers = pool_members(sources);
        let destination_workers = match task.spec {
            // Deletions go through one worker.
            TaskSpec::Prune { apply: true, .. } => {
                let deleter = sync.deleter.as_ref().and_then(|d| self.workers.get(&d.worker));
                pool_members(deleter.into_iter())
            }
            _ => pool_members(self.reachable_writers(sync, &lease.worker, task.attempt)),
        };
        let ticket = self.build_ticket(sync, task, &options, &destination_workers, now)?;
        let source_root = self.expected_root(
            &lease.worker,
            &request.source_path,
            sync.source_roots.get(&lease.worker),
        );
        Some(Assignment {
            assignment_id: lease.assignment,
            request_id: sync.id.clone(),
            worker_id: lease.worker.clone(),
            task_id: task.id,
            task_digest: task.digest,
            attempt: task.attempt,
            lease_seconds: self.settings.lease_ms / 1000,
            source_path: request.source_path.clone(),
            destination_path: request.destination_path.clone(),
            chunk_size_mb: match sync.is_group() {
                true => self.shared_chunk_mib(sync),
                false => request.chunk_size_mb,
            },
            chunk_offset,
            chunk_size,
            task: task.spec.clone(),
            options,
            source_worker_pool: worker_ids(&source_workers),
            destination_worker_pool: worker_ids(&destination_workers),
            source_workers,
            destination_workers,
            ticket,
            source_root,
            relay: self.relay_of(lease),
            report_held: task.unit.is_some() && lease.relay.is_none(),
            bwlimit: task
                .spec
                .sends_content()
                .then(|| self.bandwidth.granted_to(sync.no, &lease.worker))
                .flatten(),
        })
    }

    /// The copy that the worker of a lease sends.
    fn relay_of(&self, lease: &Lease) -> Option<Relay> {
        let LeasedRelay { holder, digest } = lease.relay.as_ref()?;
        let holder = self.syncs.get(*holder)?;
        let path = holder.request.destination_path.clone();
        let recorded = holder.possible_writers.get(&lease.worker);
        let root = self.expected_root(&lease.worker, &path, recorded);
        Some(Relay { path, root, digest: *digest })
    }

    pub(super) fn get_manifest(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
    ) -> Result<Reply, Problem> {
        let task = self.leased_task(worker, assignment);
        task.and_then(|t| t.manifest_key.clone()).map(Reply::ManifestKey).ok_or_else(|| {
            let detail =
                format!("worker {worker} holds no assignment {assignment} with a manifest");
            Problem::new(ProblemCode::AssignmentNotHeld, detail)
        })
    }

    /// Records the root from which a worker reads the source.
    pub(super) fn record_source_reader(&mut self, id: TaskId, worker: &WorkerId, now: Now) {
        let Some(task) = self.tasks.get(id).filter(|task| task.runs_at_source()) else { return };
        if task.spec == TaskSpec::CleanUp || task.lease().is_some_and(|l| l.relay.is_some()) {
            return;
        }
        // What it reads may be sent on to other destinations.
        let sync = self.syncs.get(task.sync);
        let group = sync.filter(|sync| sync.shares_source()).and_then(SyncJob::group);
        for no in [Some(task.sync), group].into_iter().flatten() {
            let Some(sync) = self.syncs.get_mut(no) else { continue };
            if sync.source_roots.get(worker).is_some() {
                continue;
            }
            let known = self.workers.get(worker);
            if let Some(place) = known.and_then(|w| w.boot_and_root(&sync.request.source_path)) {
                sync.source_roots.add(worker, Some(&place));
                self.mark_changed(no, now);
            }
        }
    }

    /// Records the workers through which a task may write that is being assigned.
    pub(super) fn record_possible_writers(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(id).filter(|task| task.writes_destination()) else {
            return;
        };
        let Some(lease) = task.lease() else { return };
        let Some(sync) = self.syncs.get(task.sync).filter(|sync| !sync.is_dry_run()) else {
            return;
        };
        let destination = &sync.request.destination_path;
        let itself = self.workers.get(&lease.worker);
        let itself = itself.filter(|w| self.workers.serves(w, sync.destination()));
        let reached = self.reachable_writers(sync, &lease.worker, task.attempt).chain(itself);
        let reached = reached.filter(|w| w.last_heartbeat.incarnation.is_some());
        let reached: Vec<_> = reached
            .map(|w| (w.last_heartbeat.worker_id.clone(), w.boot_and_root(destination)))
            .collect();
        let no = task.sync;
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let mut changed = false;
        for (id, place) in &reached {
            changed |= sync.possible_writers.add(id, place.as_ref());
            // The first root may be open again at the end: then nothing else shows that some writes
            // went to another one.
            if let Some(place) = place {
                changed |= sync.possible_writers.record_root_change(id, place)
                    | sync.unflushed_writers.record_root_change(id, place);
            }
        }
        if changed {
            self.mark_changed(no, now);
        }
    }
}
