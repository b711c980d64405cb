//! How fast a sync goes and when it may end, from what is seen of it.

use crate::wire::sync::{SyncProgress, SyncState};
use std::time::{Duration, Instant};

/// The rate is an average in which what happened this long ago weighs 1/e.
const MEMORY: Duration = Duration::from_secs(10);
/// Rates are taken over at least this, so that one batch does not make a peak.
const STEP: Duration = Duration::from_millis(900);
/// A sync without any progress for so long is called stalled.
const STALL: Duration = Duration::from_secs(10);
/// The share shown before the end is never more than this.
const ALMOST: f64 = 99.9;

/// What was seen of one sync so far.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    /// When the rate was last brought up to date, and the bytes then.
    mark: Instant,
    bytes: u64,
    rate: Option<f64>,
    /// When any counter last moved.
    moved: Instant,
    counters: [u64; 7],
}

impl Pace {
    /// Begins with `sync` as it is at `now`.
    pub fn new(sync: &SyncProgress, now: Instant) -> Self {
        Pace {
            since: now,
            mark: now,
            bytes: sync.transferred_bytes,
            rate: None,
            moved: now,
            counters: counters(sync),
        }
    }

    /// Takes in `sync` as it is at `now`.
    pub fn see(&mut self, sync: &SyncProgress, now: Instant) {
        let counters = counters(sync);
        if counters != self.counters || sync.state != SyncState::Progress {
            self.counters = counters;
            self.moved = now;
        }
        let step = now.saturating_duration_since(self.mark);
        if step < STEP {
            return;
        }
        // Fewer bytes than before: the master began anew.
        let bytes = sync.transferred_bytes.saturating_sub(self.bytes) as f64;
        let fresh = bytes / step.as_secs_f64();
        self.rate = Some(match self.rate {
            None => fresh,
            Some(rate) => {
                let keep = (-step.as_secs_f64() / MEMORY.as_secs_f64()).exp();
                rate * keep + fresh * (1.0 - keep)
            }
        });
        self.mark = now;
        self.bytes = sync.transferred_bytes;
    }

    /// Bytes per second; `None` while too little was seen.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// How long this sync has been watched.
    pub fn watched(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// How long nothing has moved, where that is long enough to tell.
    pub fn stalled(&self, sync: &SyncProgress, now: Instant) -> Option<Duration> {
        let still = now.saturating_duration_since(self.moved);
        (sync.state == SyncState::Progress && still >= STALL).then_some(still)
    }

    /// The time left at this rate, at least a second; `None` while the total is not known, or
    /// nothing moves, or only the flush is left.
    pub fn eta(&self, sync: &SyncProgress) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate >= 1.0)?;
        if !sync.scan_done || sync.state != SyncState::Progress {
            return None;
        }
        let left = sync.total_bytes.checked_sub(sync.transferred_bytes + sync.bytes_skipped)?;
        if left == 0 {
            return None;
        }
        // Longer than 100 years is no forecast.
        let seconds = (left as f64 / rate).ceil().max(1.0);
        (seconds < 3.2e9).then(|| Duration::from_secs_f64(seconds))
    }
}

/// The share done in per cent: of the bytes, or where there are none of the files. `None` while the
/// scan goes on; below 100 until the sync is complete.
pub fn percent(sync: &SyncProgress) -> Option<f64> {
    if !sync.scan_done {
        return None;
    }
    if sync.state == SyncState::Completed && sync.failures() == 0 {
        return Some(100.0);
    }
    let (done, total) = if sync.total_bytes > 0 {
        (sync.transferred_bytes + sync.bytes_skipped, sync.total_bytes)
    } else {
        (sync.files_done + sync.files_skipped, sync.files_total)
    };
    if total == 0 {
        return Some(0.0);
    }
    // Cut, not rounded: 99.96 must not be shown as 100.0.
    let share = (done as f64 / total as f64 * 1000.0).floor() / 10.0;
    Some(share.min(ALMOST))
}

fn counters(sync: &SyncProgress) -> [u64; 7] {
    [
        sync.transferred_bytes,
        sync.files_done + sync.files_skipped,
        sync.dirs_done + sync.failures(),
        sync.files_total + sync.dirs_total,
        sync.retries,
        // A second pass that reads back, and a deletion, move nothing else.
        sync.verified_files + sync.repaired_files,
        sync.actions.values().map(|tally| tally.count).sum(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn running(transferred: u64, total: u64, scan_done: bool) -> SyncProgress {
        SyncProgress {
            state: SyncState::Progress,
            transferred_bytes: transferred,
            total_bytes: total,
            scan_done,
            ..sample::sync("x")
        }
    }

    /// A pace that saw `per_second` bytes a second for `seconds`.
    fn paced(per_second: u64, seconds: u64) -> Pace {
        let start = Instant::now();
        let mut pace = Pace::new(&running(0, u64::MAX, true), start);
        for s in 1..=seconds {
            pace.see(&running(per_second * s, u64::MAX, true), start + Duration::from_secs(s));
        }
        pace
    }

    #[test]
    fn a_steady_sync_has_its_rate_and_a_forecast() {
        let pace = paced(MIB, 30);
        assert!((pace.rate().unwrap() - MIB as f64).abs() < 1.0);
        let left = pace.eta(&running(40 * MIB, 100 * MIB, true)).unwrap();
        assert_eq!(left, Duration::from_secs(60));
    }

    #[test]
    fn what_is_skipped_is_done_in_the_share_and_in_the_forecast() {
        let sync = SyncProgress { bytes_skipped: 20 * MIB, ..running(20 * MIB, 100 * MIB, true) };
        assert_eq!(percent(&sync), Some(40.0));
        assert_eq!(paced(MIB, 30).eta(&sync).unwrap(), Duration::from_secs(60));
        let files =
            SyncProgress { files_total: 4, files_skipped: 1, files_done: 1, ..running(0, 0, true) };
        assert_eq!(percent(&files), Some(50.0));
        // More than was found: a file grew.
        let over = SyncProgress { bytes_skipped: MIB, ..running(100 * MIB, 100 * MIB, true) };
        assert_eq!((percent(&over), paced(MIB, 30).eta(&over)), (Some(99.9), None));
    }

    #[test]
    fn a_sync_that_was_paused_is_not_stalled_since_before() {
        let start = Instant::now();
        let sync = running(5, 9, true);
        let mut pace = Pace::new(&sync, start);
        let paused = SyncProgress { state: SyncState::Paused, ..sync.clone() };
        pace.see(&paused, start + Duration::from_secs(60));
        assert_eq!(pace.stalled(&paused, start + Duration::from_secs(60)), None);
        pace.see(&sync, start + Duration::from_secs(65));
        assert_eq!(pace.stalled(&sync, start + Duration::from_secs(65)), None);
        assert!(pace.stalled(&sync, start + Duration::from_secs(70)).is_some());
    }

    #[test]
    fn there_is_no_forecast_and_no_share_while_the_scan_goes_on() {
        let scanning = running(40 * MIB, 41 * MIB, false);
        assert_eq!((paced(MIB, 30).eta(&scanning), percent(&scanning)), (None, None));
    }

    #[test]
    fn it_is_never_100_percent_or_0_seconds_before_the_end() {
        let all_sent = running(100 * MIB, 100 * MIB, true);
        assert_eq!(percent(&all_sent), Some(99.9));
        assert_eq!(paced(MIB, 30).eta(&all_sent), None);
        let nearly = running(100_000 * MIB - 1, 100_000 * MIB, true);
        assert_eq!(percent(&nearly), Some(99.9));
        assert_eq!(paced(MIB, 30).eta(&nearly), Some(Duration::from_secs(1)));
        let failed = SyncProgress { state: SyncState::Failed, ..all_sent.clone() };
        assert_eq!(percent(&failed), Some(99.9));
        let complete = SyncProgress { state: SyncState::Completed, ..all_sent };
        assert_eq!(percent(&complete), Some(100.0));
    }

    #[test]
    fn a_tree_of_empty_files_is_weighed_by_files() {
        let sync = SyncProgress { files_total: 4, files_done: 1, ..running(0, 0, true) };
        assert_eq!(percent(&sync), Some(25.0));
    }

    #[test]
    fn a_stand_still_is_noticed_only_while_the_sync_runs() {
        let start = Instant::now();
        let sync = running(5, 9, true);
        let pace = Pace::new(&sync, start);
        assert_eq!(pace.stalled(&sync, start + Duration::from_secs(9)), None);
        let later = start + Duration::from_secs(12);
        assert_eq!(pace.stalled(&sync, later), Some(Duration::from_secs(12)));
        assert_eq!(pace.stalled(&sample::sync("x"), later), None);
    }

    #[test]
    fn a_rate_decays_when_nothing_moves_and_survives_a_counter_that_went_back() {
        let mut pace = paced(MIB, 30);
        let end = pace.mark;
        pace.see(&running(0, u64::MAX, true), end + Duration::from_secs(20));
        let rate = pace.rate().unwrap();
        assert!(rate > 0.0 && rate < MIB as f64 / 5.0, "{rate}");
    }
}
