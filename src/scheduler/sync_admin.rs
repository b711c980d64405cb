//! Operations on syncs: submit, show, list, cancel, delete.

use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::task::{Task, TaskState};
use super::{Effect, IdempotencyKey, NewTask, Now, Reply, State, SyncPage, SyncQuery, records};
use crate::wire::ids::MIN_ID_PREFIX_CHARS;
use crate::wire::manifest::FileListPart;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{
    SubmitReply, SyncOutcome, SyncPhase, SyncProgress, SyncRequest, SyncState,
};
use crate::wire::task::TaskSpec;
use crate::wire::{Digest, RelPath, RequestId, SyncNo, WorkerId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::Bound;

pub(super) fn refuse(problem: Problem) -> Reply {
    Reply::Refused(Box::new(problem))
}

pub(super) fn unknown_sync(id: &RequestId) -> Reply {
    let problem = Problem::new(ProblemCode::SyncNotFound, format!("there is no sync `{id}`"));
    refuse(problem.with_hint("list the syncs with: ctl sync list"))
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

impl State {
    pub(super) fn submit(
        &mut self,
        request: SyncRequest,
        list: Option<Vec<FileListPart>>,
        idempotency: Option<IdempotencyKey>,
        now: Now,
    ) -> Reply {
        if let Some(again) = self.find_repeated_submit(&request, idempotency.as_ref()) {
            return again;
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
    ) -> Reply {
        let id = match request.request_id.take() {
            Some(id) => id,
            None => match self.generate_request_id(now) {
                Some(id) => id,
                None => {
                    let detail = "no name could be made for the sync";
                    return refuse(Problem::new(ProblemCode::Internal, detail));
                }
            },
        };
        if let Some(existing) = self.by_id.get(&id).and_then(|no| self.syncs.get(no)) {
            return refuse(sync_exists(existing));
        }
        let unserved = self.explain_unserved_paths(&request);
        if std::mem::take(&mut request.options.no_queue)
            && let Some(why) = unserved.first()
        {
            let problem = Problem::new(ProblemCode::NoWorker, why);
            return refuse(problem.with_hint(
                "start an agent that serves it, correct the path, or submit without --no-queue (options.no_queue)",
            ));
        }
        request.file_list = None;
        let no = SyncNo(self.next_sync);
        self.next_sync += 1;
        self.put_record(records::META_KEY.to_owned());
        let mut sync = SyncJob::new(no, id.clone(), request, now.wall_ms);
        sync.idempotency = idempotency.map(|key| (key.key, key.body));
        let parts: Option<Vec<Vec<u8>>> =
            list.map(|parts| parts.iter().map(FileListPart::encode).collect());
        sync.name_list_parts = parts.as_ref().map(|parts| parts.len() as u64);
        sync.name_list_digest = parts.as_ref().map(|parts| digest_name_list(parts));
        if let Some((owner, parts)) = from {
            (sync.name_list_stored_under, sync.name_list_parts) = (Some(owner), Some(parts));
            sync.name_list_digest = self.syncs.get(&owner).and_then(|owner| owner.name_list_digest);
        }
        sync.has_name_list = Some(sync.name_list_parts.is_some());
        self.syncs.insert(no, sync);
        self.by_id.insert(id.clone(), no);
        self.reserve_paths(no);
        self.mark_changed(no, now);
        for (index, part) in parts.into_iter().flatten().enumerate() {
            self.effects.push(Effect::PutBlob(records::name_list_key(no, index as u64), part));
        }
        self.add_scans(no);
        let note = self.describe_overlap(no);
        Reply::Submitted(SubmitReply { note, warnings: unserved, ..submitted_reply(&id) })
    }

    /// For each path that no active worker serves: the reason, with the nearest storage paths.
    fn explain_unserved_paths(&self, request: &SyncRequest) -> Vec<String> {
        let paths = [(&request.source_path, "source"), (&request.destination_path, "destination")];
        let unserved =
            paths.into_iter().filter(|(path, _)| self.workers.accepting(path).next().is_none());
        unserved.map(|(path, role)| self.workers.explain_unserved(path, role)).collect()
    }

    /// The first tasks of a sync: a scan of the source, or the parts of its name list.
    pub(super) fn add_scans(&mut self, no: SyncNo) {
        let list =
            self.syncs.get(&no).and_then(|s| Some((s.name_list_owner(), s.name_list_parts?)));
        match list {
            None => {
                let spec = TaskSpec::Scan { dir: RelPath::root(), cursor: None };
                self.add_task(NewTask::ready(no, spec), None);
            }
            Some((owner, parts)) => {
                for index in 0..parts {
                    let blob = Some(records::name_list_key(owner, index));
                    let spec = TaskSpec::List { start: 0 };
                    self.add_task(NewTask { manifest_key: blob, ..NewTask::ready(no, spec) }, None);
                }
            }
        }
    }

    /// The reply to an earlier submit with the same key.
    pub(super) fn find_repeated_submit(
        &self,
        request: &SyncRequest,
        key: Option<&IdempotencyKey>,
    ) -> Option<Reply> {
        let key = key?;
        let known = self.syncs.values().find(|sync| {
            !sync.is_deleted && sync.idempotency.as_ref().is_some_and(|(k, _)| *k == key.key)
        })?;
        let same = known.idempotency.as_ref().is_some_and(|(_, body)| *body == key.body);
        if same && request.request_id.as_ref().is_none_or(|id| *id == known.id) {
            let warnings = self.explain_unserved_paths(request);
            return Some(Reply::Submitted(SubmitReply { warnings, ..submitted_reply(&known.id) }));
        }
        let detail = format!(
            "the Idempotency-Key was used before, for sync `{}` with another body",
            known.id
        );
        Some(refuse(Problem::new(ProblemCode::IdempotencyKeyReused, detail)))
    }

    /// A UUID of version 7 (RFC 9562), which sorts by time.
    fn generate_request_id(&mut self, now: Now) -> Option<RequestId> {
        let drawn = self.draw_random();
        let mut random = [0; 10];
        random.copy_from_slice(&drawn[..10]);
        let millis = u64::try_from(now.wall_ms).unwrap_or(0);
        let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        uuid.to_string().parse().ok()
    }

    pub(super) fn progress_reply(&self, id: &RequestId) -> Reply {
        match self.find_sync(id) {
            Some(sync) => Reply::Progress(Box::new(self.progress_document(sync))),
            None => unknown_sync(id),
        }
    }

    pub(super) fn list_syncs(&self, select: &SyncQuery) -> Reply {
        let states = &select.states;
        let before = select.before.unwrap_or(SyncNo(u64::MAX));
        let known = self.syncs.range(..before).rev().map(|(_, sync)| sync);
        let begins = |sync: &SyncJob| {
            let prefix = select.id_prefix.as_ref();
            prefix.is_none_or(|prefix| sync.id.as_str().starts_with(prefix.as_str()))
        };
        let mut wanted = known
            .filter(|s| !s.is_deleted && (states.is_empty() || states.contains(&s.state)))
            .filter(|s| begins(s))
            .peekable();
        let limit = select.limit.unwrap_or(usize::MAX);
        let mut syncs = Vec::new();
        let mut last = None;
        while syncs.len() < limit
            && let Some(sync) = wanted.next()
        {
            syncs.push(self.progress_document(sync));
            last = Some(sync.no);
        }
        let next = last.filter(|_| wanted.peek().is_some());
        Reply::Syncs(SyncPage { syncs, next })
    }

    fn find_sync(&self, id: &RequestId) -> Option<&SyncJob> {
        self.by_id.get(id).and_then(|no| self.syncs.get(no))
    }

    /// See [`SyncProgress::short_id`].
    fn short_id(&self, id: &RequestId) -> String {
        if !id.is_generated() {
            return id.to_string();
        }
        let before = self.by_id.range::<RequestId, _>(..id).next_back();
        let after = self.by_id.range((Bound::Excluded(id), Bound::Unbounded)).next();
        let shared = |(other, _): (&RequestId, &SyncNo)| {
            let pairs = id.as_str().bytes().zip(other.as_str().bytes());
            pairs.take_while(|(a, b)| a == b).count()
        };
        let unique = before.into_iter().chain(after).map(shared).max().map_or(0, |n| n + 1);
        id.as_str().chars().take(unique.max(MIN_ID_PREFIX_CHARS)).collect()
    }

    pub(super) fn cancel_sync(&mut self, id: &RequestId, now: Now) -> Reply {
        let Some(no) = self.find_sync(id).map(|s| s.no) else { return unknown_sync(id) };
        self.cancel_active(no, now);
        self.progress_reply(id)
    }

    pub(super) fn delete_sync(&mut self, id: &RequestId, now: Now) -> Reply {
        let Some(sync) = self.find_sync(id) else { return unknown_sync(id) };
        let (no, cancelled) = (sync.no, sync.is_active());
        self.cancel_active(no, now);
        self.by_id.remove(id);
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.is_deleted = true;
        }
        self.mark_changed(no, now);
        Reply::Deleted { cancelled }
    }

    /// Cancels an active sync.
    fn cancel_active(&mut self, no: SyncNo, now: Now) {
        let lived = self.retention_clock.uptime_ms(now);
        let Some(sync) = self.syncs.get_mut(&no).filter(|s| s.is_active()) else { return };
        sync.state = SyncState::Cancelled;
        sync.outcome = Some(SyncOutcome::Cancelled);
        (sync.ended_ms, sync.ended_uptime_ms) = (Some(now.wall_ms), Some(lived));
        sync.reason = Some("cancelled by an operator".to_owned());
        // A worker with such a task never reports what it left or how far a clean-up came.
        let keeps = sync.keeps_hard_links();
        let leaves = |task: &Task| {
            task.spec == TaskSpec::CleanUp
                || (keeps && task.may_leave_link_anchors() && task.attempt > 0)
        };
        let mut tasks = sync.tasks.iter().filter_map(|id| self.tasks.get(id));
        let to_sweep = sync.needs_clean_up || tasks.any(leaves);
        sync.needs_clean_up = to_sweep;
        self.abandon_tasks(no, now);
        self.schedule_clean_up(no, now);
        self.clear_hardlink_groups(no);
        self.mark_changed(no, now);
    }

    /// The document for operators.
    fn progress_document(&self, sync: &SyncJob) -> SyncProgress {
        let counters = &sync.counters;
        let listed = sync.phase > PhaseState::Copy || !self.is_scanning(sync);
        let phase = match (sync.state, sync.phase) {
            (SyncState::Queued, _) => SyncPhase::Waiting,
            (SyncState::Progress, PhaseState::Copy) if listed => SyncPhase::Transferring,
            (SyncState::Progress, PhaseState::Copy) => SyncPhase::Scanning,
            (SyncState::Progress, PhaseState::CopyBlocked) => SyncPhase::Transferring,
            (SyncState::Progress, PhaseState::Readback) => SyncPhase::Verifying,
            (SyncState::Progress, PhaseState::CountExtraneous | PhaseState::DeleteExtraneous) => {
                SyncPhase::Pruning
            }
            (
                SyncState::Progress,
                PhaseState::FlushBeforeDelete | PhaseState::CleanUp | PhaseState::Flush,
            ) => SyncPhase::Flushing,
            _ => SyncPhase::Done,
        };
        let scan_done =
            listed && (sync.phase > PhaseState::Copy || sync.state != SyncState::Cancelled);
        let transferred_bytes = counters.bytes_done.saturating_add(self.bytes_in_flight(sync));
        let left = counters.bytes_total.saturating_sub(transferred_bytes);
        let left = left.saturating_sub(counters.bytes_skipped);
        let runs = sync.displayed_state() == SyncState::Progress;
        let eta_seconds =
            self.estimate_time_left(sync, left).filter(|_| scan_done).map(|time| time.as_secs());
        let rate = sync.speed.rate().filter(|_| runs).map(|rate| rate as u64);
        SyncProgress {
            request_id: sync.id.clone(),
            short_id: Some(self.short_id(&sync.id)),
            state: sync.displayed_state(),
            source_path: sync.request.source_path.clone(),
            destination_path: sync.request.destination_path.clone(),
            transferred_bytes,
            total_bytes: counters.bytes_total,
            rate,
            eta_seconds,
            submitted_at: timestamp(sync.submitted_ms),
            started_at: sync.started_ms.map(timestamp),
            updated_at: timestamp(sync.updated_ms),
            ended_at: sync.ended_ms.map(timestamp),
            detail: self.worker_details(sync),
            phase,
            source_file_system: sync.source_root.as_ref().map(|root| root.file_system.clone()),
            outcome: sync.outcome,
            files_total: counters.files_total,
            files_done: counters.files_done,
            files_skipped: counters.files_skipped,
            files_failed: counters.files_failed,
            dirs_total: counters.dirs_total,
            dirs_done: counters.dirs_done,
            dirs_failed: counters.dirs_failed,
            failed_steps: counters.failed_steps.clone(),
            bytes_skipped: counters.bytes_skipped,
            sent_bytes: counters.sent_bytes,
            kept_bytes: counters.kept_bytes,
            cloned_bytes: counters.cloned_bytes,
            actions: counters.actions.clone(),
            warnings: sync.metadata_warnings.clone(),
            verified_files: counters.verified_files,
            repaired_files: counters.repaired_files,
            integrity_errors: counters.integrity_errors,
            options: sync.requested_options(),
            bwlimit: sync.bwlimit,
            scan_done,
            unverified: counters.unverified,
            retries: counters.retries,
            reason: sync.reason.clone().or_else(|| self.wait_reason(sync)),
            stalled: self.stall_report(sync),
            errors: sync.errors.clone(),
            error_counts: sync.error_counts.clone(),
            failures_unlisted: sync.failure_list.unlisted_count,
        }
    }

    pub(super) fn is_scanning(&self, sync: &SyncJob) -> bool {
        sync.scan_count > 0
    }

    /// The number of leased tasks by worker and kind.
    fn worker_details(&self, sync: &SyncJob) -> BTreeMap<String, String> {
        let mut kinds: BTreeMap<&WorkerId, BTreeMap<&str, u64>> = BTreeMap::new();
        for task in sync.tasks.iter().filter_map(|id| self.tasks.get(id)) {
            if let Some(lease) = task.lease() {
                *kinds.entry(&lease.worker).or_default().entry(task.spec.kind()).or_default() += 1;
            }
        }
        let words = |kinds: BTreeMap<&str, u64>| {
            let parts: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            parts.join(", ")
        };
        kinds.into_iter().map(|(worker, kinds)| (worker.to_string(), words(kinds))).collect()
    }

    /// What an active sync waits for, if anything.
    fn wait_reason(&self, sync: &SyncJob) -> Option<String> {
        if !sync.is_active() {
            return None;
        }
        if let Some(hold) = &sync.pause {
            return Some(hold.reason());
        }
        if let Some(reason) = self.overlap_reason(sync).or_else(|| self.loss_reason(sync)) {
            return Some(reason);
        }
        let request = &sync.request;
        if self.workers.accepting(&request.source_path).next().is_none() {
            return Some(self.workers.explain_unserved(&request.source_path, "source"));
        }
        if self.workers.accepting(&request.destination_path).next().is_none() {
            return Some(self.workers.explain_unserved(&request.destination_path, "destination"));
        }
        for (path, role) in
            [(&request.source_path, "source"), (&request.destination_path, "destination")]
        {
            let mut able = self.capable_workers(sync, path);
            let source = role == "source" && sync.is_limited();
            if !able.any(|w| w.supports_options() || !source) {
                return Some(format!(
                    "no worker that holds the {role} path {path} is new enough for the options of \
                     this sync: install this version there"
                ));
            }
        }
        let tasks = || sync.tasks.iter().filter_map(|id| self.tasks.get(id));
        if tasks().any(|t| t.lease().is_some()) {
            return self.silence_reason(sync);
        }
        let delayed = tasks().find(|t| matches!(t.state, TaskState::Delayed { .. }));
        if let Some(error) = delayed.and_then(|t| t.last_error.as_ref()) {
            return Some(format!("waits to try again: {error}"));
        }
        if let Some(worker) = tasks().find_map(|t| t.pinned_to.as_ref()) {
            return Some(format!(
                "waits for worker {worker} to put what it wrote on stable storage"
            ));
        }
        Some("waits for a free worker".to_owned())
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
