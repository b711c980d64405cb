//! Derives from successive documents of a sync whether it makes progress and how much is done.

use crate::cli::sync_text::percent_of;
use crate::wire::sync::{SyncProgress, SyncState};
use std::time::{Duration, Instant};

/// A sync without progress for this long is shown as stalled.
const STALL_AFTER: Duration = Duration::from_secs(10);
/// The reason why a sync waits is shown after this: workers need time to register, also that of `ctl copy`.
const REASON_DELAY: Duration = Duration::from_secs(2);

/// Detects changes between successive documents of one sync.
#[derive(Debug)]
pub struct ProgressTracker {
    watched_since: Instant,
    /// The last change of a counter.
    last_change: Instant,
    counters: [u64; 7],
}

impl ProgressTracker {
    /// Starts with the document received at `now`.
    pub fn new(sync: &SyncProgress, now: Instant) -> Self {
        ProgressTracker { watched_since: now, last_change: now, counters: progress_counters(sync) }
    }

    /// Adds the document received at `now`.
    pub fn update(&mut self, sync: &SyncProgress, now: Instant) {
        let counters = progress_counters(sync);
        if counters != self.counters || sync.state != SyncState::Progress {
            self.counters = counters;
            self.last_change = now;
        }
    }

    /// The reason why the sync waits, unless it was queued just now.
    pub fn wait_reason<'a>(&self, sync: &'a SyncProgress, now: Instant) -> Option<&'a str> {
        let early = sync.state == SyncState::Queued && self.watched_for(now) < REASON_DELAY;
        sync.reason.as_deref().filter(|_| !early)
    }

    /// The time since the first document.
    pub fn watched_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.watched_since)
    }

    /// The time since the last change, if the sync is stalled.
    pub fn stalled_for(&self, sync: &SyncProgress, now: Instant) -> Option<Duration> {
        let still = now.saturating_duration_since(self.last_change);
        (sync.state == SyncState::Progress && still >= STALL_AFTER).then_some(still)
    }
}

/// The percentage of the bytes, or without bytes of the files, that are done. `None` during the scan; below 100 until
/// the sync has completed.
pub fn percent_done(sync: &SyncProgress) -> Option<f64> {
    let is_complete = sync.state == SyncState::Completed && sync.failure_count() == 0;
    let bytes = (sync.transferred_bytes + sync.bytes_skipped, sync.total_bytes);
    let files = (sync.files_done + sync.files_skipped, sync.files_total);
    percent_of(sync.scan_done, is_complete, bytes, files)
}

fn progress_counters(sync: &SyncProgress) -> [u64; 7] {
    [
        sync.transferred_bytes,
        sync.files_done + sync.files_skipped,
        sync.dirs_done + sync.failure_count(),
        sync.files_total + sync.dirs_total,
        sync.retries,
        // Reading back and deleting change nothing else.
        sync.verified_files + sync.repaired_files,
        sync.actions.values().map(|tally| tally.count).sum(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn running(transferred: u64, total: u64, scan_done: bool) -> SyncProgress {
        SyncProgress {
            state: SyncState::Progress,
            transferred_bytes: transferred,
            total_bytes: total,
            scan_done,
            ..fixtures::sync("x")
        }
    }

    #[test]
    fn skipped_bytes_count_as_done() {
        let sync = SyncProgress { bytes_skipped: 20 * MIB, ..running(20 * MIB, 100 * MIB, true) };
        assert_eq!(percent_done(&sync), Some(40.0));
        let files =
            SyncProgress { files_total: 4, files_skipped: 1, files_done: 1, ..running(0, 0, true) };
        assert_eq!(percent_done(&files), Some(50.0));
        // More than was found: a file grew.
        let over = SyncProgress { bytes_skipped: MIB, ..running(100 * MIB, 100 * MIB, true) };
        assert_eq!(percent_done(&over), Some(99.9));
    }

    #[test]
    fn the_time_of_a_pause_does_not_count_as_stalled() {
        let start = Instant::now();
        let sync = running(5, 9, true);
        let mut pace = ProgressTracker::new(&sync, start);
        let paused = SyncProgress { state: SyncState::Paused, ..sync.clone() };
        pace.update(&paused, start + Duration::from_secs(60));
        assert_eq!(pace.stalled_for(&paused, start + Duration::from_secs(60)), None);
        pace.update(&sync, start + Duration::from_secs(65));
        assert_eq!(pace.stalled_for(&sync, start + Duration::from_secs(65)), None);
        assert!(pace.stalled_for(&sync, start + Duration::from_secs(70)).is_some());
    }

    #[test]
    fn there_is_no_percentage_during_the_scan() {
        assert_eq!(percent_done(&running(40 * MIB, 41 * MIB, false)), None);
    }

    #[test]
    fn it_is_never_100_percent_before_the_end() {
        let all_sent = running(100 * MIB, 100 * MIB, true);
        assert_eq!(percent_done(&all_sent), Some(99.9));
        let nearly = running(100_000 * MIB - 1, 100_000 * MIB, true);
        assert_eq!(percent_done(&nearly), Some(99.9));
        let failed = SyncProgress { state: SyncState::Failed, ..all_sent.clone() };
        assert_eq!(percent_done(&failed), Some(99.9));
        let complete = SyncProgress { state: SyncState::Completed, ..all_sent };
        assert_eq!(percent_done(&complete), Some(100.0));
    }

    #[test]
    fn a_tree_of_empty_files_is_measured_by_files() {
        let sync = SyncProgress { files_total: 4, files_done: 1, ..running(0, 0, true) };
        assert_eq!(percent_done(&sync), Some(25.0));
    }

    #[test]
    fn a_sync_is_stalled_only_while_it_runs_and_no_counter_changes() {
        let start = Instant::now();
        let sync = running(5, 9, true);
        let mut pace = ProgressTracker::new(&sync, start);
        assert_eq!(pace.stalled_for(&sync, start + Duration::from_secs(9)), None);
        let later = start + Duration::from_secs(12);
        assert_eq!(pace.stalled_for(&sync, later), Some(Duration::from_secs(12)));
        assert_eq!(pace.stalled_for(&fixtures::sync("x"), later), None);
        // One more byte of a task under way.
        let sync = running(6, 9, true);
        pace.update(&sync, later);
        assert_eq!(pace.stalled_for(&sync, later), None);
    }

    #[test]
    fn the_reason_of_a_queued_sync_is_shown_after_a_delay_and_that_of_a_paused_one_at_once() {
        let start = Instant::now();
        let reason = Some("no active worker serves /src".to_owned());
        let queued = SyncProgress { reason, ..fixtures::sync("x") };
        let pace = ProgressTracker::new(&queued, start);
        assert_eq!(pace.wait_reason(&queued, start + Duration::from_millis(1_900)), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(pace.wait_reason(&queued, later), Some("no active worker serves /src"));
        let paused = SyncProgress { state: SyncState::Paused, ..queued };
        assert!(pace.wait_reason(&paused, start).is_some());
        assert_eq!(pace.wait_reason(&running(0, 1, true), later), None);
    }
}
