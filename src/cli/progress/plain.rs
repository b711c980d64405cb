//! Progress as whole lines of `key=value`, for pipes and logs.

use super::pace::percent;
use super::{Event, Monitor, Pace};
use crate::cli::out::clean;
use crate::wire::RequestId;
use crate::wire::sync::{SyncPhase, SyncProgress, SyncState};
use jiff::Timestamp;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A line at least this often …
const EVERY: Duration = Duration::from_secs(10);
/// … and at every further so many per cent, and whenever the state changes.
const SHARE: f64 = 5.0;

/// What a sync's last line said.
struct Said {
    at: Instant,
    state: SyncState,
    phase: SyncPhase,
    reason: Option<String>,
    percent: f64,
}

/// Writes lines to `sink`.
pub(super) struct Plain {
    said: HashMap<RequestId, Said>,
    sink: Box<dyn FnMut(&str) + Send>,
}

impl Plain {
    pub(super) fn new(sink: Box<dyn FnMut(&str) + Send>) -> Self {
        Plain { said: HashMap::new(), sink }
    }

    fn is_due(&self, sync: &SyncProgress, pace: &Pace, now: Instant) -> bool {
        let Some(said) = self.said.get(&sync.request_id) else { return true };
        said.state != sync.state
            || said.phase != sync.phase
            || said.reason.as_deref() != pace.reason(sync, now)
            || percent(sync).is_some_and(|p| p - said.percent >= SHARE)
            || now.saturating_duration_since(said.at) >= EVERY
    }

    fn say(&mut self, sync: &SyncProgress, pace: &Pace, now: Timestamp) {
        let at = Instant::now();
        let said = Said {
            at,
            state: sync.state,
            phase: sync.phase,
            reason: pace.reason(sync, at).map(str::to_owned),
            percent: percent(sync).unwrap_or(0.0),
        };
        self.said.insert(sync.request_id.clone(), said);
        (self.sink)(&line(sync, pace, at, now));
    }
}

impl Monitor for Plain {
    fn event(&mut self, event: Event<'_>, now: Timestamp) {
        match event {
            Event::Seen(sync, pace) if self.is_due(sync, pace, Instant::now()) => {
                self.say(sync, pace, now);
            }
            Event::Asked(sync, pace) => self.say(sync, pace, now),
            Event::Note(text) => (self.sink)(&format!("{} {}", stamp(now), clean(text))),
            Event::Seen(..) | Event::Finished => {}
        }
    }
}

fn stamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One line about `sync`. Values that are not known yet are `-`; totals that still grow have a `≥`.
pub(in crate::cli) fn line(
    sync: &SyncProgress,
    pace: &Pace,
    at: Instant,
    now: Timestamp,
) -> String {
    let phase = match sync.phase {
        SyncPhase::Waiting => "WAITING",
        SyncPhase::Scanning => "SCANNING",
        SyncPhase::Transferring => "TRANSFERRING",
        SyncPhase::Verifying => "VERIFYING",
        SyncPhase::Pruning => "PRUNING",
        SyncPhase::Flushing => "FLUSHING",
        SyncPhase::Done => "DONE",
    };
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let least = if sync.scan_done { "" } else { "≥" };
    let mut line = format!(
        "{} sync={} state={} phase={phase} pct={} bytes={}/{least}{} rate_bps={} eta_s={} files={}/{least}{} skipped={} failed={} retried={}",
        stamp(now),
        sync.request_id,
        sync.state.as_str(),
        or_dash(percent(sync).map(|p| format!("{p:.1}"))),
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
    if let Some(still) = pace.stalled(sync, at) {
        line.push_str(&format!(" stalled_s={}", still.as_secs()));
    }
    if let Some(reason) = pace.reason(sync, at) {
        line.push_str(&format!(" reason=\"{}\"", clean(reason).replace('"', "'")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
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
            ..sample::sync("run42")
        }
    }

    #[test]
    fn a_line_says_at_least_while_the_scan_goes_on() {
        let sync = scanning();
        let pace = Pace::new(&sync, Instant::now());
        assert_eq!(
            line(&sync, &pace, Instant::now(), now()),
            "2026-02-03T14:10:52Z sync=run42 state=PROGRESS phase=SCANNING pct=- bytes=15/≥90 \
             rate_bps=- eta_s=- files=3/≥7 skipped=1 failed=1 retried=0"
        );
    }

    #[test]
    fn lines_are_whole_and_hold_nothing_that_drives_a_terminal() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let mut plain = Plain::new(Box::new(move |line| sink.lock().push(line.to_owned())));
        let sync = SyncProgress { reason: Some("no \"w\"\r\x1b[2K\n".to_owned()), ..scanning() };
        let pace = Pace::new(&sync, Instant::now());
        plain.event(Event::Seen(&sync, &pace), now());
        plain.event(Event::Note("the master is\r away"), now());
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
        let mut plain = Plain::new(Box::new(move |line| sink.lock().push(id(line))));
        let one = SyncProgress { scan_done: true, total_bytes: 1000, ..scanning() };
        let two = SyncProgress { phase: SyncPhase::Flushing, ..sample::sync("two") };
        let pace = Pace::new(&one, Instant::now());
        for _ in 0..3 {
            plain.event(Event::Seen(&one, &pace), now());
            plain.event(Event::Seen(&two, &pace), now());
        }
        let more = SyncProgress { transferred_bytes: 60, ..one };
        plain.event(Event::Seen(&more, &pace), now());
        plain.event(Event::Seen(&more, &pace), now());
        // Another reason is news, the same one is not.
        for reason in ["full", "full", "slow"] {
            let (state, reason) = (SyncState::Paused, Some(reason.to_owned()));
            let two = SyncProgress { state, reason, ..two.clone() };
            plain.event(Event::Seen(&two, &pace), now());
        }
        let told = count.lock().clone();
        assert_eq!(told, ["sync=run42", "sync=two", "sync=run42", "sync=two", "sync=two"]);
    }

    #[test]
    fn a_line_comes_with_every_change_of_state_and_every_5_percent_and_not_between() {
        let count = Arc::new(Mutex::new(0));
        let sink = Arc::clone(&count);
        let mut plain = Plain::new(Box::new(move |_| *sink.lock() += 1));
        let sync = SyncProgress { scan_done: true, total_bytes: 1000, ..scanning() };
        let pace = Pace::new(&sync, Instant::now());
        let mut see = |sync: &SyncProgress| {
            plain.event(Event::Seen(sync, &pace), now());
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
