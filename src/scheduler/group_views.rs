//! The progress of syncs for operators. The document of a sync with several destinations has sums over all, and each of
//! them.

use super::sync_job::SyncJob;
use super::views::timestamp;
use super::{Reply, State, SyncPage, SyncQuery};
use crate::wire::problem::Problem;
use crate::wire::sync::{DestinationProgress, SyncPhase, SyncProgress, SyncState};
use crate::wire::{RequestId, SyncNo, WorkerId};

/// Maximum number of workers of a destination in the document.
const MAX_LISTED_WORKERS: usize = 8;

/// Maximum number of failures in the document.
const MAX_LISTED_ERRORS: usize = 100;

/// How far a destination is, from 0 to 1; of an empty source 1.
fn fraction(of: &SyncProgress) -> f64 {
    let moved = of.transferred_bytes.saturating_add(of.bytes_skipped);
    if of.total_bytes == 0 { 1.0 } else { moved as f64 / of.total_bytes as f64 }
}

/// Unfinished destinations before those that lack something, and complete ones last.
fn order(of: &SyncProgress) -> u8 {
    match of.state {
        SyncState::Queued | SyncState::Progress | SyncState::Paused => 0,
        SyncState::Failed | SyncState::Cancelled => 1,
        SyncState::Completed => 2,
    }
}

impl State {
    pub(super) fn progress_reply(&self, id: &RequestId) -> Result<Reply, Problem> {
        Ok(Reply::Progress(Box::new(self.progress_document(self.syncs.require(id)?))))
    }

    pub(super) fn list_syncs(&self, select: &SyncQuery) -> Reply {
        let states = &select.states;
        let before = select.before.unwrap_or(SyncNo(u64::MAX));
        let known = self.syncs.newest_before(before);
        let begins = |sync: &SyncJob| {
            let prefix = select.id_prefix.as_ref();
            prefix.is_none_or(|prefix| sync.id.as_str().starts_with(prefix.as_str()))
        };
        let mut wanted = known
            // The document of a group lists its destinations.
            .filter(|s| !s.is_deleted && s.group().is_none())
            .filter(|s| states.is_empty() || states.contains(&self.unpaused_state(s)))
            .filter(|s| begins(s))
            .filter(|s| {
                select.grant.as_ref().is_none_or(|grant| {
                    grant.contains(&s.request.source_path, &s.request.destination_path)
                })
            });
        let limit = select.limit.unwrap_or(usize::MAX);
        let page: Vec<&SyncJob> = wanted.by_ref().take(limit).collect();
        let next = page.last().map(|last| last.no).filter(|_| wanted.next().is_some());
        let syncs = page.into_iter().map(|sync| self.progress_document(sync)).collect();
        Reply::Syncs(SyncPage { syncs, next })
    }

    /// The document for operators.
    fn progress_document(&self, sync: &SyncJob) -> SyncProgress {
        match sync.is_group() {
            true => self.group_document(sync),
            false => self.sync_document(sync),
        }
    }

    pub(super) fn group_document(&self, group: &SyncJob) -> SyncProgress {
        let mut whole = self.sync_document(group);
        let mut parts: Vec<(&SyncJob, SyncProgress)> =
            self.destinations_of(group.no).map(|one| (one, self.sync_document(one))).collect();
        parts.sort_by(|(a, of_a), (b, of_b)| {
            let fractions = fraction(of_a).total_cmp(&fraction(of_b));
            order(of_a).cmp(&order(of_b)).then(fractions).then(a.no.cmp(&b.no))
        });
        if group.is_active() {
            whole.state = match group.is_paused() {
                true => SyncState::Paused,
                false => self.unpaused_state(group),
            };
        }
        let starts = parts.iter().filter_map(|(one, _)| one.started_ms);
        whole.started_at = starts.min().map(timestamp);
        let changes = parts.iter().map(|(one, _)| one.updated_ms).chain([group.updated_ms]);
        whole.updated_at = changes.max().map_or(whole.updated_at, timestamp);
        let slowest = parts.iter().map(|(_, of)| of).find(|of| order(of) == 0);
        whole.phase = match (slowest, parts.is_empty()) {
            (Some(slowest), _) => slowest.phase,
            (None, true) => whole.phase,
            (None, false) => SyncPhase::Done,
        };
        whole.scan_done = !parts.is_empty() && parts.iter().all(|(_, of)| of.scan_done);
        whole.rate = parts.iter().filter_map(|(_, of)| of.rate).reduce(u64::saturating_add);
        let running = || parts.iter().map(|(_, of)| of).filter(|of| order(of) == 0);
        let is_estimated = running().all(|of| of.eta_seconds.is_some());
        let slowest = running().filter_map(|of| of.eta_seconds).max();
        whole.eta_seconds = slowest.filter(|_| is_estimated);
        whole.stalled = parts.iter().find_map(|(_, of)| of.stalled.clone());
        for (_, part) in &parts {
            add_counters(&mut whole, part);
        }
        whole.destinations =
            parts.into_iter().filter_map(|(one, of)| self.destination_progress(one, of)).collect();
        whole
    }

    fn destination_progress(&self, one: &SyncJob, of: SyncProgress) -> Option<DestinationProgress> {
        let storage = one.destination_storage?;
        let members = self.workers.storages.members(storage);
        let mut workers: Vec<WorkerId> = members.iter().map(|(_, id)| id.clone()).collect();
        workers.sort_unstable();
        workers.truncate(MAX_LISTED_WORKERS);
        // A storage without workers is not known any more; its number remains.
        let storage_id = self.workers.storages.id(storage).cloned();
        let storage_id = storage_id.or_else(|| format!("s-{:08x}", storage.0).parse().ok())?;
        let failures = of.failure_count();
        Some(DestinationProgress {
            request_id: of.request_id,
            storage_id,
            workers,
            state: of.state,
            outcome: of.outcome,
            transferred_bytes: of.transferred_bytes,
            total_bytes: of.total_bytes,
            bytes_skipped: of.bytes_skipped,
            rate: of.rate,
            files_total: of.files_total,
            files_done: of.files_done,
            files_skipped: of.files_skipped,
            failures,
            integrity_errors: of.integrity_errors,
            reason: of.reason,
        })
    }
}

/// Adds the counters of a destination to those of the whole.
fn add_counters(whole: &mut SyncProgress, part: &SyncProgress) {
    let sums = [
        (&mut whole.transferred_bytes, part.transferred_bytes),
        (&mut whole.total_bytes, part.total_bytes),
        (&mut whole.files_total, part.files_total),
        (&mut whole.files_done, part.files_done),
        (&mut whole.files_skipped, part.files_skipped),
        (&mut whole.files_failed, part.files_failed),
        (&mut whole.dirs_total, part.dirs_total),
        (&mut whole.dirs_done, part.dirs_done),
        (&mut whole.dirs_failed, part.dirs_failed),
        (&mut whole.bytes_skipped, part.bytes_skipped),
        (&mut whole.sent_bytes, part.sent_bytes),
        (&mut whole.kept_bytes, part.kept_bytes),
        (&mut whole.cloned_bytes, part.cloned_bytes),
        (&mut whole.verified_files, part.verified_files),
        (&mut whole.repaired_files, part.repaired_files),
        (&mut whole.integrity_errors, part.integrity_errors),
        (&mut whole.unverified, part.unverified),
        (&mut whole.retries, part.retries),
        (&mut whole.failures_unlisted, part.failures_unlisted),
    ];
    for (sum, more) in sums {
        *sum = sum.saturating_add(more);
    }
    for (step, count) in &part.failed_steps {
        let known = whole.failed_steps.entry(*step).or_default();
        *known = known.saturating_add(*count);
    }
    for (action, tally) in &part.actions {
        whole.actions.entry(*action).or_default().merge(*tally);
    }
    for (cause, warning) in &part.warnings {
        whole.warnings.entry(cause.clone()).or_default().merge(warning.clone());
    }
    for (cause, count) in &part.error_counts {
        let known = whole.error_counts.entry(cause.clone()).or_default();
        *known = known.saturating_add(*count);
    }
    let room = MAX_LISTED_ERRORS.saturating_sub(whole.errors.len());
    whole.errors.extend(part.errors.iter().take(room).cloned());
    for (worker, activity) in &part.detail {
        let known = whole.detail.entry(worker.clone()).or_default();
        let separator = if known.is_empty() { "" } else { "; " };
        *known = format!("{known}{separator}{activity}");
    }
    if whole.source_file_system.is_none() {
        whole.source_file_system.clone_from(&part.source_file_system);
    }
}
