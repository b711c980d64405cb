//! Syncs with several destinations. Such a sync is a *group*. For each destination storage there is one sync of its own,
//! with counters, phases, guards and outcome as any other; the group sums them up. The only tasks of the group are the
//! scans that its destinations share ([`shared_scan`](super::shared_scan)).
//!
//! ```text
//! no destination is known yet  | the sides are known        | one sync for each destination
//! destinations are copied to   | an operator adds one       | one more
//! destinations are copied to   | all of them ended          | ended
//! destinations are copied to   | an operator cancels it     | all are cancelled
//! ```

use super::storage_types::StorageNo;
use super::sync_job::{ScanOwner, SyncJob, SyncPart};
use super::{Now, State};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncOutcome, SyncRequest, SyncState};
use crate::wire::{RequestId, SyncNo, WorkerId};

/// Maximum number of destinations of a sync: each has its own tasks and counters.
pub(super) const MAX_DESTINATIONS: usize = 1_024;

/// Maximum number of destinations that the reason of a failure names.
const MAX_NAMED: usize = 5;

/// The maximum length of an id.
const MAX_ID_BYTES: usize = 128;

impl State {
    /// The syncs of the destinations of a group, in the order in which they were added.
    pub(super) fn destinations_of(&self, group: SyncNo) -> impl Iterator<Item = &SyncJob> {
        self.syncs.destinations_of(group).filter_map(|no| self.syncs.get(no))
    }

    /// The state of a sync, of a group from its destinations, whether it is paused or not.
    pub(super) fn unpaused_state(&self, sync: &SyncJob) -> SyncState {
        if !sync.is_group() || sync.state != SyncState::Queued {
            return sync.state;
        }
        let mut active = self.destinations_of(sync.no).filter(|one| one.is_active());
        let is_queued = |one: &SyncJob| one.state == SyncState::Queued;
        let none_ended = self.destinations_of(sync.no).all(SyncJob::is_active);
        match none_ended && active.all(is_queued) {
            true => SyncState::Queued,
            false => SyncState::Progress,
        }
    }

    /// Adds the syncs of the destinations of a group.
    pub(super) fn expand_group(&mut self, group: SyncNo, storages: &[StorageNo], now: Now) {
        let is_first = self.syncs.destinations_of(group).next().is_none();
        let whole = self.syncs.get(group);
        // Those that are added later need what was found before.
        let share = is_first && storages.len() > 1 && whole.is_some_and(SyncJob::can_share_scans);
        for storage in storages {
            self.add_destination(group, *storage, share, now);
        }
        if share {
            self.add_scans(group);
        }
        self.share_bandwidth(group, now);
    }

    fn add_destination(&mut self, group: SyncNo, storage: StorageNo, shares_scans: bool, now: Now) {
        let Some(whole) = self.syncs.get(group) else { return };
        let Some(id) = self.destination_id(whole, storage) else { return };
        let worker = self.first_worker(storage);
        let mut request = whole.as_submitted();
        request.destination_workers = worker.iter().map(|id| id.clone().into()).collect();
        let lists = (whole.name_list_owner(), whole.name_list_parts, whole.name_list_digest);
        let (pause, source) = (whole.pause.clone(), whole.source_storage);
        let no = self.syncs.allocate_no();
        self.outbox.write_record(super::record_keys::META_KEY.to_owned());
        let mut sync = SyncJob::new(no, id, request, now.wall_ms);
        sync.part = SyncPart::Destination { of: group };
        sync.source_storage = source;
        sync.destination_storage = Some(storage);
        sync.pause = pause;
        if shares_scans {
            sync.scan_owner = ScanOwner::Group;
        }
        if let (owner, Some(parts), digest) = lists {
            (sync.name_list_stored_under, sync.name_list_parts) = (Some(owner), Some(parts));
            (sync.name_list_digest, sync.has_name_list) = (digest, true);
        }
        self.syncs.insert(sync);
        self.reserve_paths(no, now);
        self.mark_changed(no, now);
        if !shares_scans {
            self.add_scans(no);
        }
    }

    /// The id of the sync of one destination: that of the whole, and the storage or its worker.
    fn destination_id(&self, whole: &SyncJob, storage: StorageNo) -> Option<RequestId> {
        let storages = &self.workers.storages;
        let declared = storages.id(storage).filter(|id| !id.as_str().starts_with("s-"));
        let name = match declared {
            Some(id) => id.to_string(),
            None => self.first_worker(storage)?.to_string(),
        };
        let id = format!("{}@{name}", whole.id);
        let is_free = |id: &String| {
            id.len() <= MAX_ID_BYTES
                && id.parse::<RequestId>().is_ok_and(|id| self.syncs.find(&id).is_none())
        };
        let numbered = |n: u64| Some(format!("{}@{n}", whole.id)).filter(is_free);
        let short = || (1..=MAX_DESTINATIONS as u64).find_map(numbered);
        Some(id).filter(is_free).or_else(short)?.parse().ok()
    }

    fn first_worker(&self, storage: StorageNo) -> Option<WorkerId> {
        let members = self.workers.storages.members(storage);
        members.iter().map(|(_, id)| id).min().cloned()
    }

    /// Divides the limit of a group among its active destinations.
    pub(super) fn share_bandwidth(&mut self, group: SyncNo, now: Now) {
        let Some(whole) = self.syncs.get(group) else { return };
        let limit = whole.bwlimit;
        let active: Vec<SyncNo> =
            self.destinations_of(group).filter(|one| one.is_active()).map(|one| one.no).collect();
        let share = limit.map(|limit| (limit / active.len().max(1) as u64).max(1));
        for no in active {
            let Some(sync) = self.syncs.get_mut(no).filter(|sync| sync.bwlimit != share) else {
                continue;
            };
            sync.bwlimit = share;
            self.bandwidth.set_own_limit(no, share);
            self.mark_changed(no, now);
            self.outbox.request_dispatch();
        }
    }

    /// A destination ended: the others get its share of the bandwidth, or the group ends as well.
    pub(super) fn update_group(&mut self, group: SyncNo, now: Now) {
        let Some(whole) = self.syncs.get(group).filter(|sync| sync.is_active()) else { return };
        let actives: Vec<bool> = self.destinations_of(whole.no).map(SyncJob::is_active).collect();
        if actives.is_empty() {
            return;
        }
        if actives.contains(&true) {
            return self.share_bandwidth(group, now);
        }
        let (state, outcome, reason) = self.group_outcome(group);
        let uptime_ms = self.retention_clock.uptime_ms(now);
        let Some(whole) = self.syncs.get_mut(group) else { return };
        (whole.ended_ms, whole.ended_uptime_ms) = (Some(now.wall_ms), Some(uptime_ms));
        (whole.state, whole.outcome, whole.reason) = (state, outcome, reason);
        tracing::info!(sync = %whole.id, state = whole.state.as_str(), "all destinations ended");
        if whole.is_complete() {
            self.delete_name_list(group);
        }
        self.mark_changed(group, now);
    }

    /// The outcome of a group of which all destinations ended.
    fn group_outcome(&self, group: SyncNo) -> (SyncState, Option<SyncOutcome>, Option<String>) {
        let all: Vec<&SyncJob> = self.destinations_of(group).collect();
        if all.iter().all(|one| one.state == SyncState::Completed) {
            let unverified = all.iter().find(|one| !one.is_complete());
            let outcome = match unverified {
                Some(_) => SyncOutcome::Unverified,
                None => SyncOutcome::Full,
            };
            let reason = unverified.and_then(|one| one.reason.clone());
            return (SyncState::Completed, Some(outcome), reason);
        }
        let copied = |one: &&SyncJob| one.state == SyncState::Completed || one.outcome.is_some();
        let outcome = all.iter().any(copied).then_some(SyncOutcome::Partial);
        let lacking: Vec<&&SyncJob> =
            all.iter().filter(|one| one.state != SyncState::Completed).collect();
        let named: Vec<String> = lacking
            .iter()
            .take(MAX_NAMED)
            .map(|one| match &one.reason {
                Some(reason) => format!("{} ({reason})", one.id),
                None => one.id.to_string(),
            })
            .collect();
        let more = lacking.len().saturating_sub(MAX_NAMED);
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        let reason = format!(
            "{} of {} destinations are not complete: {}{more}",
            lacking.len(),
            all.len(),
            named.join(", ")
        );
        (SyncState::Failed, outcome, Some(reason))
    }

    /// A request for the destinations of an ended group that are not complete.
    ///
    /// # Errors
    /// All are complete, or none of their workers is known any more.
    pub(super) fn request_for_incomplete(&self, whole: &SyncJob) -> Result<SyncRequest, Problem> {
        let lacking: Vec<&SyncJob> =
            self.destinations_of(whole.no).filter(|one| !one.is_complete()).collect();
        if lacking.is_empty() {
            let detail = format!("all destinations of sync `{}` are complete", whole.id);
            return Err(Problem::new(ProblemCode::SyncCompleted, detail)
                .with_hint("to run it once more, submit it again"));
        }
        let workers = lacking.iter().filter_map(|one| self.first_worker(one.destination_storage?));
        let workers: Vec<WorkerId> = workers.collect();
        if workers.len() < lacking.len() {
            let detail = format!(
                "of {} destinations of sync `{}` that lack something no worker is known any more",
                lacking.len() - workers.len(),
                whole.id
            );
            return Err(Problem::new(ProblemCode::NoWorker, detail)
                .with_hint(format!("retry all of it: ctl sync retry {}", whole.id)));
        }
        let destination_workers = workers.into_iter().map(Into::into).collect();
        Ok(SyncRequest { destination_workers, ..whole.as_submitted() })
    }
}

pub(super) fn too_many_destinations(count: usize) -> Problem {
    let detail = format!(
        "the workers of the destination see {count} storages, and a sync has at most {MAX_DESTINATIONS} destinations"
    );
    Problem::new(ProblemCode::TooManyDestinations, detail)
        .with_hint("submit several syncs, each for a part of the workers")
}
