//! Operations on syncs: submit, retry, change, pause, cancel, delete.

use super::destinations::{MAX_DESTINATIONS, too_many_destinations};
use super::pause::Pause;
use super::storage_types::StorageNo;
use super::sync_job::SyncJob;
use super::task::Task;
use super::{IdempotencyKey, Now, Reply, RetryScope, State, record_keys};
use crate::util::shell_quote::quote_path;
use crate::wire::manifest::FileListPart;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SubmitReply, SyncOutcome, SyncPatch, SyncRequest, SyncState};
use crate::wire::task::TaskSpec;
use crate::wire::worker_selector::WorkerSelector;
use crate::wire::{Digest, RequestId, SyncNo};

impl State {
    pub(super) fn submit(
        &mut self,
        request: SyncRequest,
        list: Option<Vec<FileListPart>>,
        idempotency: Option<IdempotencyKey>,
        now: Now,
    ) -> Result<Reply, Problem> {
        if let Some(again) = self.find_repeated_submit(&request, idempotency.as_ref())? {
            return Ok(again);
        }
        self.create_sync(request, list, None, idempotency, now)
    }

    /// Creates a sync with a `list` of its own, or with the parts of the list of another sync.
    pub(super) fn create_sync(
        &mut self,
        mut request: SyncRequest,
        list: Option<Vec<FileListPart>>,
        from: Option<(SyncNo, u64)>,
        idempotency: Option<IdempotencyKey>,
        now: Now,
    ) -> Result<Reply, Problem> {
        let id = request.request_id.take().or_else(|| self.generate_request_id(now));
        let id = id.ok_or_else(|| {
            Problem::new(ProblemCode::Internal, "no name could be made for the sync")
        })?;
        if let Some(existing) = self.syncs.find(&id) {
            return Err(sync_exists(existing));
        }
        self.check_queue()?;
        self.check_sides(&request)?;
        if std::mem::take(&mut request.options.no_queue)
            && let Some(why) = self.explain_unserved_request(&request).first()
        {
            let problem = Problem::new(ProblemCode::NoWorker, why);
            return Err(problem.with_hint(
                "start an agent that serves it, correct the path, or submit without --no-queue (options.no_queue)",
            ));
        }
        request.file_list = None;
        let no = self.syncs.allocate_no();
        self.outbox.write_record(record_keys::META_KEY.to_owned());
        let mut sync = SyncJob::new(no, id.clone(), request, now.wall_ms);
        sync.idempotency = idempotency.map(|key| (key.key, key.body));
        let parts: Option<Vec<Vec<u8>>> =
            list.map(|parts| parts.iter().map(FileListPart::encode).collect());
        sync.name_list_parts = parts.as_ref().map(|parts| parts.len() as u64);
        sync.name_list_digest = parts.as_ref().map(|parts| digest_name_list(parts));
        if let Some((owner, parts)) = from {
            (sync.name_list_stored_under, sync.name_list_parts) = (Some(owner), Some(parts));
            sync.name_list_digest = self.syncs.get(owner).and_then(|owner| owner.name_list_digest);
        }
        sync.has_name_list = sync.name_list_parts.is_some();
        self.syncs.insert(sync);
        let is_group = self.syncs.get(no).is_some_and(SyncJob::is_group);
        self.bind_storages(no, now);
        self.mark_changed(no, now);
        for (index, part) in parts.into_iter().flatten().enumerate() {
            self.outbox.put_blob(record_keys::name_list_key(no, index as u64), part);
        }
        if !is_group {
            self.reserve_paths(no, now);
            self.add_scans(no);
        }
        let note = self.describe_overlap(no);
        let sync = self.syncs.get(no);
        let warnings = sync.map(|sync| self.explain_unserved_places(sync)).unwrap_or_default();
        Ok(Reply::Submitted(SubmitReply { note, warnings, ..submitted_reply(&id) }))
    }

    /// # Errors
    /// 507 `queue_full`.
    fn check_queue(&self) -> Result<(), Problem> {
        let most = self.settings.max_queued_syncs;
        // A sync that waits has a task, its scan.
        let waiting = self.tasks.syncs().filter_map(|no| self.syncs.get(no));
        let waiting = waiting.filter(|sync| sync.is_active() && sync.state == SyncState::Queued);
        let count = waiting.count();
        if count < most {
            return Ok(());
        }
        let detail = format!(
            "{count} syncs wait already, and the limit is {most} (`limits.max_queued_syncs` in the master's file)"
        );
        Err(Problem::new(ProblemCode::QueueFull, detail).with_hint(
            "submit it again when syncs have begun, cancel queued ones (ctl sync cancel ID), or have an administrator \
             raise the limit and reload the file (kill -HUP)",
        ))
    }

    /// The reply to an earlier submit with the same key.
    pub(super) fn find_repeated_submit(
        &self,
        request: &SyncRequest,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<Reply>, Problem> {
        let Some(IdempotencyKey { key, body }) = key else { return Ok(None) };
        let mut keys = self.syncs.values().filter(|sync| !sync.is_deleted);
        let known = keys.find_map(|sync| {
            Some((sync, sync.idempotency.as_ref().filter(|(known, _)| known == key)?))
        });
        let Some((known, (_, first_body))) = known else { return Ok(None) };
        if first_body == body && request.request_id.as_ref().is_none_or(|id| *id == known.id) {
            let warnings = self.explain_unserved_places(known);
            let reply = SubmitReply { warnings, ..submitted_reply(&known.id) };
            return Ok(Some(Reply::Submitted(reply)));
        }
        let detail = format!(
            "the Idempotency-Key was used before, for sync `{}` with another body",
            known.id
        );
        Err(Problem::new(ProblemCode::IdempotencyKeyReused, detail))
    }

    /// A UUID of version 7 (RFC 9562), which sorts by time.
    fn generate_request_id(&mut self, now: Now) -> Option<RequestId> {
        let random = self.keys.draw();
        let millis = u64::try_from(now.wall_ms).unwrap_or(0);
        let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        uuid.to_string().parse().ok()
    }

    /// Submits the request of an ended sync (its record stays unchanged) under another id, with `only` just these
    /// names. Its name list moves to the new sync.
    pub(super) fn retry_sync(
        &mut self,
        id: &RequestId,
        new: Option<RequestId>,
        only: RetryScope,
        idempotency: Option<IdempotencyKey>,
        now: Now,
    ) -> Result<Reply, Problem> {
        let sync = self.syncs.require(id)?;
        let request = match only {
            RetryScope::IncompleteDestinations => self.request_for_incomplete(sync)?,
            RetryScope::All | RetryScope::Names(_) => sync.as_submitted(),
        };
        let only = match only {
            RetryScope::Names(names) => Some(names),
            RetryScope::All | RetryScope::IncompleteDestinations => None,
        };
        let mut request = SyncRequest { request_id: new, ..request };
        // A directory that could not be listed failed with all its entries. A sync with a name list
        // requested just those names.
        request.options.recursive |= only.is_some() && !sync.has_name_list;
        if let Some(again) = self.find_repeated_submit(&request, idempotency.as_ref())? {
            return Ok(again);
        }
        match sync.state {
            SyncState::Failed | SyncState::Cancelled => {}
            // Work without evidence may not have been done.
            SyncState::Completed if sync.outcome == Some(SyncOutcome::Unverified) => {}
            SyncState::Completed => {
                let detail = format!("sync `{id}` is completed: there is nothing to try again");
                let problem = Problem::new(ProblemCode::SyncCompleted, detail);
                return Err(problem.with_hint("to run it once more, submit it again"));
            }
            _ => {
                let detail = format!("sync `{id}` has not ended; what fails in it is tried again");
                let problem = Problem::new(ProblemCode::SyncActive, detail);
                return Err(problem.with_hint(format!("end it first: ctl sync cancel {id}")));
            }
        }
        if let (Some(group), true) = (sync.group(), sync.has_name_list && only.is_none()) {
            let group =
                self.syncs.get(group).map_or_else(String::new, |group| group.id.to_string());
            let detail = format!(
                "sync `{id}` shares its list of names with the other destinations of `{group}`"
            );
            return Err(Problem::new(ProblemCode::PartOfSync, detail)
                .with_hint(format!("retry the whole: ctl sync retry {group} --failed-only")));
        }
        let from = match sync.name_list_parts {
            Some(parts) if only.is_none() => Some((sync.name_list_owner(), parts)),
            None if only.is_none() && sync.has_name_list => {
                let detail = format!(
                    "sync `{id}` cannot be tried again: its list of names now belongs to the sync that retried it"
                );
                let problem = Problem::new(ProblemCode::FileListGone, detail);
                return Err(problem.with_hint("submit it again"));
            }
            _ => None,
        };
        let old = sync.no;
        let reply = self.create_sync(request, only, from, idempotency, now)?;
        if let (Some(_), Some(old_sync)) = (from, self.syncs.get_mut(old)) {
            old_sync.name_list_parts = None;
            self.mark_changed(old, now);
        }
        Ok(reply)
    }

    pub(super) fn cancel_sync(&mut self, id: &RequestId, now: Now) -> Result<Reply, Problem> {
        self.cancel_all(self.syncs.require(id)?.no, now);
        self.progress_reply(id)
    }

    pub(super) fn delete_sync(&mut self, id: &RequestId, now: Now) -> Result<Reply, Problem> {
        let sync = self.syncs.require(id)?;
        if let Some(group) = sync.group().and_then(|group| self.syncs.get(group)) {
            let detail = format!("sync `{id}` is one of the destinations of sync `{}`", group.id);
            return Err(Problem::new(ProblemCode::PartOfSync, detail).with_hint(format!(
                "delete the whole: ctl sync delete {}, or stop this destination: ctl sync cancel {id}",
                group.id
            )));
        }
        let (no, cancelled) = (sync.no, sync.is_active());
        self.cancel_all(no, now);
        let parts = self.destinations_of(no).map(|one| one.id.clone());
        for id in parts.chain([id.clone()]).collect::<Vec<_>>() {
            self.syncs.hide(&id);
        }
        let parts: Vec<SyncNo> = self.syncs.destinations_of(no).collect();
        parts.into_iter().chain([no]).for_each(|no| self.mark_changed(no, now));
        Ok(Reply::Deleted { cancelled })
    }

    /// Cancels a sync with its destinations.
    fn cancel_all(&mut self, no: SyncNo, now: Now) {
        let parts: Vec<SyncNo> = self.syncs.destinations_of(no).collect();
        // First the whole, so that it does not end because all destinations ended.
        self.cancel_active(no, now);
        parts.into_iter().for_each(|part| self.cancel_active(part, now));
    }

    /// Cancels an active sync.
    fn cancel_active(&mut self, no: SyncNo, now: Now) {
        let uptime_ms = self.retention_clock.uptime_ms(now);
        let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { return };
        sync.state = SyncState::Cancelled;
        sync.outcome = Some(SyncOutcome::Cancelled);
        (sync.ended_ms, sync.ended_uptime_ms) = (Some(now.wall_ms), Some(uptime_ms));
        sync.reason = Some("cancelled by an operator".to_owned());
        self.ended_syncs.add(no, now.mono_ms);
        // A worker with such a task never reports what it left or how far a clean-up came.
        let keeps = sync.keeps_hard_links();
        let leaves = |task: &Task| {
            task.spec == TaskSpec::CleanUp
                || (keeps && task.may_leave_link_anchors() && task.attempt > 0)
        };
        let needs_clean_up =
            std::mem::take(&mut sync.needs_clean_up) || self.tasks.of_sync(no).any(leaves);
        self.abandon_tasks(no, now);
        if needs_clean_up {
            // When no worker can write any more.
            let state = self.delayed_by_lease(now);
            self.add_task(Task { state, ..Task::new(no, TaskSpec::CleanUp) });
        }
        self.clear_hardlink_groups(no);
        self.mark_changed(no, now);
    }

    /// Changes an active sync.
    pub(super) fn change_sync(
        &mut self,
        id: &RequestId,
        change: SyncPatch,
        now: Now,
    ) -> Result<Reply, Problem> {
        let sync = self.syncs.require_active(id, "it cannot be changed")?;
        let no = sync.no;
        if !change.add_destinations.is_empty() {
            self.add_destinations(id, &change.add_destinations, now)?;
        }
        let sync = self.syncs.get_mut(no);
        if let (Some(sync), Some(bwlimit)) = (sync, change.bwlimit)
            && sync.bwlimit != bwlimit
        {
            sync.bwlimit = bwlimit;
            match sync.is_group() {
                true => self.share_bandwidth(no, now),
                false => drop(self.bandwidth.set_own_limit(no, bwlimit)),
            }
            self.mark_changed(no, now);
            // A worker without support for limits may be able to take its tasks now.
            self.outbox.request_dispatch();
        }
        self.progress_reply(id)
    }

    /// Adds destinations to a running group.
    ///
    /// # Errors
    /// It is no active group, or the workers see no storage there that can be added.
    fn add_destinations(
        &mut self,
        id: &RequestId,
        workers: &[WorkerSelector],
        now: Now,
    ) -> Result<(), Problem> {
        let sync = self.syncs.require_active(id, "no destination can be added")?;
        let group = sync.no;
        if !sync.is_group() {
            let detail = format!("sync `{id}` has a single destination");
            return Err(Problem::new(ProblemCode::NotSeveralDestinations, detail).with_hint(
                format!(
                    "copy to the other storage by a sync of its own: ctl sync submit {} WORKERS:{}",
                    quote_path(&sync.request.source_path),
                    quote_path(&sync.request.destination_path)
                ),
            ));
        }
        let request = SyncRequest { destination_workers: workers.to_vec(), ..sync.request.clone() };
        let storages = self.resolve_added(&request)?;
        let known: Vec<StorageNo> =
            self.destinations_of(group).filter_map(|one| one.destination_storage).collect();
        if let Some(storage) = storages.iter().find(|storage| known.contains(storage)) {
            let detail = format!(
                "{} is a destination of sync `{id}` already",
                self.workers.describe_storage(*storage)
            );
            return Err(Problem::new(ProblemCode::SameStorage, detail)
                .with_hint(format!("ctl sync status {id} lists its destinations")));
        }
        if known.len() + storages.len() > MAX_DESTINATIONS {
            return Err(too_many_destinations(known.len() + storages.len()));
        }
        self.expand_group(group, &storages, now);
        self.mark_changed(group, now);
        Ok(())
    }

    /// Pauses a sync, or resumes it, whatever paused it.
    pub(super) fn set_operator_pause(
        &mut self,
        id: &RequestId,
        hold: Option<Pause>,
        now: Now,
    ) -> Result<Reply, Problem> {
        let refusal = if hold.is_some() { "it cannot be paused" } else { "it cannot be resumed" };
        let sync = self.syncs.require_active(id, refusal)?;
        let no = sync.no;
        let parts: Vec<SyncNo> = self.syncs.destinations_of(no).collect();
        for no in parts.into_iter().chain([no]) {
            let sync = self.syncs.get_mut(no).filter(|sync| sync.is_active());
            let Some(sync) = sync.filter(|sync| sync.pause != hold) else { continue };
            sync.pause.clone_from(&hold);
            self.mark_changed(no, now);
            self.outbox.request_dispatch();
        }
        self.progress_reply(id)
    }
}

fn submitted_reply(id: &RequestId) -> SubmitReply {
    SubmitReply {
        status: "queued".to_owned(),
        request_id: id.clone(),
        status_url: format!("sync/{id}"),
        note: None,
        warnings: Vec::new(),
    }
}

fn digest_name_list(parts: &[Vec<u8>]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn sync_exists(sync: &SyncJob) -> Problem {
    let state = sync.state.as_str();
    let detail = format!("there is a sync `{}` already, in state {state}", sync.id);
    let mut problem = Problem::new(ProblemCode::SyncExists, detail).with_hint(format!(
        "choose another request_id, or delete it first: ctl sync delete {}",
        sync.id
    ));
    problem.existing = Some(state.to_owned());
    problem
}
