//! The limits of the registry of workers. When it is full, workers make room that nothing depends on: silent ones first,
//! then those that were heard once. So a flood of heartbeats of made-up workers replaces its own workers, and does not
//! keep new agents out.

use super::worker_registry::Worker;
use super::{Now, State};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::WorkerId;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::worker::WorkerHeartbeat;
use std::collections::BTreeSet;
use std::io;

/// The mean length of the heartbeats, as JSON, of as many workers as the registry may have. A usual one has 1 KiB. In
/// memory a heartbeat and its storages are up to seven times as long.
const MEAN_HEARTBEAT_BYTES: usize = 2 << 10;
/// The length of all heartbeats, as JSON, that is kept in any case.
const MIN_BYTES: usize = 1 << 20;
/// This part of the registry makes room at once, because the search for it reads the whole registry.
const EVICTED_PART: usize = 64;
/// After a search without a result there is none for this time, in milliseconds.
const SEARCH_INTERVAL_MS: u64 = 1_000;

/// The length of a heartbeat as JSON, in bytes.
pub(super) fn kept_bytes(heartbeat: &WorkerHeartbeat) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // A heartbeat that came as JSON is written as JSON.
    let _ = serde_json::to_writer(&mut counter, heartbeat);
    counter.0
}

/// Removes what a heartbeat says of storage paths that it does not name.
pub(super) fn remove_unknown_paths(heartbeat: &mut WorkerHeartbeat) {
    if heartbeat.free_bytes.is_empty() && heartbeat.root_ids.is_empty() {
        return;
    }
    let lost = heartbeat.unavailable_paths.iter().map(|lost| &lost.path);
    let known = heartbeat.storage_paths.iter().chain(lost);
    let known: BTreeSet<String> = known.map(ToString::to_string).collect();
    heartbeat.free_bytes.retain(|path, _| known.contains(path));
    heartbeat.root_ids.retain(|path, _| known.contains(path));
}

impl State {
    /// Makes room for a heartbeat of so many bytes. Workers with a certificate, with tasks, with requests of others or
    /// with a waiting poll stay.
    ///
    /// # Errors
    /// 429 if there are as many workers, or as long heartbeats, as the limit allows, and none may go.
    pub(super) fn make_room_for_worker(
        &mut self,
        id: &WorkerId,
        kept_bytes: usize,
        now: Now,
    ) -> Result<(), Problem> {
        let max_workers = self.settings.max_workers;
        let max_bytes = max_workers.saturating_mul(MEAN_HEARTBEAT_BYTES).max(MIN_BYTES);
        let known = self.workers.get(id);
        let more_bytes = kept_bytes.saturating_sub(known.map_or(0, |known| known.kept_bytes));
        let more_workers = usize::from(known.is_none());
        let excess_workers = (self.workers.count() + more_workers).saturating_sub(max_workers);
        let all_bytes = self.workers.kept_bytes().saturating_add(more_bytes);
        let excess_bytes = all_bytes.saturating_sub(max_bytes);
        if (more_workers == 0 || excess_workers == 0) && (more_bytes == 0 || excess_bytes == 0) {
            return Ok(());
        }
        let has_joined = self.agents.agent(id).is_some();
        if known.is_some_and(|known| has_joined || self.is_needed(known)) {
            return Ok(());
        }
        let refusal = || {
            let detail = format!(
                "there are {} workers already, with heartbeats of {} bytes together; the limit is {max_workers} workers \
                 (`limits.max_workers` in the master's file) and {max_bytes} bytes",
                self.workers.count(),
                self.workers.kept_bytes(),
            );
            Problem::new(ProblemCode::TooManyWorkers, detail).with_hint(
                "remove workers that are not used any more: ctl workers forget ID; or give this one fewer storage paths",
            )
        };
        if !has_joined && self.workers.has_search_failed_since(now, SEARCH_INTERVAL_MS) {
            return Err(refusal());
        }
        // A worker with a certificate is not one of a flood: others that do nothing make room for it.
        let may_go = |worker: &&Worker| {
            (has_joined || !worker.is_active || worker.was_heard_once())
                && worker.last_heartbeat.worker_id != *id
                && self.agents.agent(&worker.last_heartbeat.worker_id).is_none()
                && !self.is_needed(worker)
        };
        let mut candidates: Vec<&Worker> = self.workers.all().filter(may_go).collect();
        candidates.sort_by_key(|worker| {
            (worker.is_active, !worker.was_heard_once(), worker.last_seen_ms)
        });
        let (mut count, mut bytes) = (0, 0);
        let at_least = excess_workers.max(max_workers / EVICTED_PART);
        let evicted = candidates.into_iter().take_while(|worker| {
            let goes = count < at_least || bytes < excess_bytes;
            (count, bytes) = (count + 1, bytes + worker.kept_bytes);
            goes
        });
        let evicted: Vec<WorkerId> =
            evicted.map(|worker| worker.last_heartbeat.worker_id.clone()).collect();
        let freed_bytes: usize =
            evicted.iter().filter_map(|id| self.workers.get(id)).map(|it| it.kept_bytes).sum();
        if evicted.len() < excess_workers || freed_bytes < excess_bytes {
            let refusal = refusal();
            self.workers.note_failed_search(now);
            return Err(refusal);
        }
        let what =
            "the registry of workers is full: those that are silent or were heard once are removed";
        warn_ratelimited!(what, workers = evicted.len(), "{what}");
        evicted.iter().for_each(|id| self.workers.remove(id));
        self.outbox.request_dispatch();
        Ok(())
    }

    /// Whether a worker has tasks, requests of others, or a waiting poll.
    fn is_needed(&self, worker: &Worker) -> bool {
        let id = &worker.last_heartbeat.worker_id;
        self.tasks.held_by(id).next().is_some()
            || self.poll_queue.callers_of(id).next().is_some()
            || worker.is_active && worker.last_heartbeat.incoming_requests > 0
    }
}
