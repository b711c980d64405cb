//! Progress as complete lines of `key=value`, for pipes and logs.

use super::tracker::percent_done;
use super::{ProgressEvent, ProgressMonitor, ProgressTracker};
use crate::cli::destinations::complete_count;
use crate::cli::sanitize::sanitize;
use crate::cli::sync_text::{format_time, or_dash};
use crate::wire::RequestId;
use crate::wire::sync::{SyncPhase, SyncProgress, SyncState};
use jiff::Timestamp;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A line is printed at least this often,
const MAX_LINE_INTERVAL: Duration = Duration::from_secs(10);
/// after this progress in per cent, and at every change of the state.
const MIN_PERCENT_STEP: f64 = 5.0;

/// The values in the last line of a sync.
struct LastLine {
    at: Instant,
    state: SyncState,
    phase: SyncPhase,
    reason: Option<String>,
    percent: f64,
}

pub(super) struct PlainLines {
    last_lines: HashMap<RequestId, LastLine>,
    write_line: Box<dyn FnMut(&str) + Send>,
}

impl PlainLines {
    pub(super) fn new(sink: Box<dyn FnMut(&str) + Send>) -> Self {
        PlainLines { last_lines: HashMap::new(), write_line: sink }
    }

    fn is_due(&self, sync: &SyncProgress, tracker: &ProgressTracker, now: Instant) -> bool {
        let Some(last) = self.last_lines.get(&sync.request_id) else { return true };
        last.state != sync.state
            || last.phase != sync.phase
            || last.reason.as_deref() != tracker.wait_reason(sync, now)
            || percent_done(sync).is_some_and(|p| p - last.percent >= MIN_PERCENT_STEP)
            || now.saturating_duration_since(last.at) >= MAX_LINE_INTERVAL
    }

    fn print_progress(&mut self, sync: &SyncProgress, tracker: &ProgressTracker, now: Timestamp) {
        let at = Instant::now();
        let last = LastLine {
            at,
            state: sync.state,
            phase: sync.phase,
            reason: tracker.wait_reason(sync, at).map(str::to_owned),
            percent: percent_done(sync).unwrap_or(0.0),
        };
        self.last_lines.insert(sync.request_id.clone(), last);
        (self.write_line)(&progress_line(sync, tracker, at, now));
    }
}

impl ProgressMonitor for PlainLines {
    fn handle_event(&mut self, event: ProgressEvent<'_>, now: Timestamp) {
        match event {
            ProgressEvent::Updated(sync, tracker) if self.is_due(sync, tracker, Instant::now()) => {
                self.print_progress(sync, tracker, now);
            }
            ProgressEvent::StatusRequested(sync, tracker) => {
                self.print_progress(sync, tracker, now)
            }
            ProgressEvent::Note(text) => {
                (self.write_line)(&format!("{} {}", format_time(now), sanitize(text)))
            }
            ProgressEvent::Updated(..) | ProgressEvent::Finished => {}
        }
    }
}

/// One line about `sync`. Unknown values are `-`; totals during the scan, which are lower bounds, begin with `≥`.
pub(in crate::cli) fn progress_line(
    sync: &SyncProgress,
    tracker: &ProgressTracker,
    at: Instant,
    now: Timestamp,
) -> String {
    let bound = if sync.scan_done { "" } else { "≥" };
    let mut line = format!(
        "{} sync={} state={} phase={} pct={} bytes={}/{bound}{} rate_bps={} eta_s={} files={}/{bound}{} skipped={} failed={} retried={}",
        format_time(now),
        sync.request_id,
        sync.state.as_str(),
        sync.phase.as_str(),
        or_dash(percent_done(sync).map(|p| format!("{p:.1}"))),
        sync.transferred_bytes + sync.bytes_skipped,
        sync.total_bytes,
        or_dash(sync.rate.map(|rate| rate.to_string())),
        or_dash(sync.eta_seconds.map(|seconds| seconds.to_string())),
        sync.files_done + sync.files_skipped,
        sync.files_total,
        sync.files_skipped,
        sync.failure_count(),
        sync.retries,
    );
    if let Some((complete, all)) = complete_count(sync) {
        line.push_str(&format!(" destinations={complete}/{all}"));
    }
    if let Some(stalled) = tracker.stalled_for(sync, at) {
        line.push_str(&format!(" stalled_s={}", stalled.as_secs()));
    }
    if let Some(reason) = tracker.wait_reason(sync, at) {
        line.push_str(&format!(" reason=\"{}\"", sanitize(reason).replace('"', "'")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures;
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    fn now() -> Timestamp {
        "2026-02-03T14:10:52.9Z".parse().unwrap()
    }

    fn scanning() -> SyncProgress {
        SyncProgress {
            state: SyncState::Progress,
            phase: SyncPhase::Scanning,
            transferred_bytes: 10,
            bytes_skipped: 5,
            total_bytes: 90,
            files_done: 2,
            files_skipped: 1,
            files_failed: 1,
            files_total: 7,
            ..fixtures::sync("run42")
        }
    }

    #[test]
    fn a_line_marks_totals_as_lower_bounds_during_the_scan() {
        let sync = scanning();
        let tracker = ProgressTracker::new(&sync, Instant::now());
        assert_eq!(
            progress_line(&sync, &tracker, Instant::now(), now()),
            "2026-02-03T14:10:52Z sync=run42 state=PROGRESS phase=SCANNING pct=- bytes=15/≥90 \
             rate_bps=- eta_s=- files=3/≥7 skipped=1 failed=1 retried=0"
        );
    }

    #[test]
    fn a_line_counts_the_destinations_that_are_complete() {
        let of = |id, state, percent| fixtures::destination(id, state, percent);
        let destinations = vec![
            of("w1", SyncState::Progress, 5),
            of("w2", SyncState::Completed, 100),
            of("w3", SyncState::Completed, 100),
        ];
        let sync = SyncProgress { destinations, ..scanning() };
        let tracker = ProgressTracker::new(&sync, Instant::now());
        let line = progress_line(&sync, &tracker, Instant::now(), now());
        assert!(line.ends_with(" retried=0 destinations=2/3"), "{line}");
    }

    #[test]
    fn lines_are_complete_and_contain_no_control_characters() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let mut plain = PlainLines::new(Box::new(move |line| sink.lock().push(line.to_owned())));
        let sync = SyncProgress { reason: Some("no \"w\"\r\x1b[2K\n".to_owned()), ..scanning() };
        let tracker = ProgressTracker::new(&sync, Instant::now());
        plain.handle_event(ProgressEvent::Updated(&sync, &tracker), now());
        plain.handle_event(ProgressEvent::Note("the master is\r away"), now());
        let lines = lines.lock();
        assert_eq!(lines.len(), 2);
        for line in lines.iter() {
            assert!(!line.contains(['\x1b', '\r', '\n']), "{line:?}");
        }
        assert!(lines[0].ends_with(r#"reason="no 'w'\#015\#033[2K\#012""#), "{}", lines[0]);
    }

    #[test]
    fn each_of_two_syncs_has_its_own_last_line() {
        let count = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&count);
        let id = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
        let mut plain = PlainLines::new(Box::new(move |line| sink.lock().push(id(line))));
        let one = SyncProgress { scan_done: true, total_bytes: 1000, ..scanning() };
        let two = SyncProgress { phase: SyncPhase::Flushing, ..fixtures::sync("two") };
        let tracker = ProgressTracker::new(&one, Instant::now());
        for _ in 0..3 {
            plain.handle_event(ProgressEvent::Updated(&one, &tracker), now());
            plain.handle_event(ProgressEvent::Updated(&two, &tracker), now());
        }
        let more = SyncProgress { transferred_bytes: 60, ..one };
        plain.handle_event(ProgressEvent::Updated(&more, &tracker), now());
        plain.handle_event(ProgressEvent::Updated(&more, &tracker), now());
        // Another reason is news, the same one is not.
        for reason in ["full", "full", "slow"] {
            let (state, reason) = (SyncState::Paused, Some(reason.to_owned()));
            let two = SyncProgress { state, reason, ..two.clone() };
            plain.handle_event(ProgressEvent::Updated(&two, &tracker), now());
        }
        let printed = count.lock().clone();
        assert_eq!(printed, ["sync=run42", "sync=two", "sync=run42", "sync=two", "sync=two"]);
    }

    #[test]
    fn a_line_is_printed_at_every_change_of_state_and_every_5_percent() {
        let count = Arc::new(Mutex::new(0));
        let sink = Arc::clone(&count);
        let mut plain = PlainLines::new(Box::new(move |_| *sink.lock() += 1));
        let sync = SyncProgress { scan_done: true, total_bytes: 1000, ..scanning() };
        let tracker = ProgressTracker::new(&sync, Instant::now());
        let mut see = |sync: &SyncProgress| {
            plain.handle_event(ProgressEvent::Updated(sync, &tracker), now());
            *count.lock()
        };
        assert_eq!(see(&sync), 1);
        assert_eq!(see(&sync), 1);
        assert_eq!(see(&SyncProgress { transferred_bytes: 50, ..sync.clone() }), 1);
        assert_eq!(see(&SyncProgress { transferred_bytes: 60, ..sync.clone() }), 2);
        assert_eq!(see(&SyncProgress { phase: SyncPhase::Flushing, ..sync.clone() }), 3);
        assert_eq!(see(&SyncProgress { state: SyncState::Completed, ..sync }), 4);
    }
}
