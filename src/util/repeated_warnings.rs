//! Rate-limited warnings: the first warning of a cause is logged, further ones are counted, and the count is logged once
//! per minute. One unreachable agent fails hundreds of tasks per minute, all for the same cause.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// The time until the count of a cause is logged.
const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// The interval of checks for due counts.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of separately counted causes; others are counted as [`OTHER_CAUSES`].
const MAX_CAUSES: usize = 256;
const OTHER_CAUSES: &str = "warnings of other causes";

static CAUSES: Mutex<Causes> = Mutex::new(Causes { by_text: BTreeMap::new(), is_counting: false });

/// Whether a warning of `cause` is the first one, which is logged. Further ones are counted and logged as one line per
/// minute.
///
/// `cause` is the warning without the parts that differ between occurrences (a task, an attempt).
pub(crate) fn is_first(cause: &dyn Display) -> bool {
    let mut causes = CAUSES.lock();
    let is_first = causes.is_first(cause.to_string(), Instant::now());
    if !is_first && !causes.is_counting {
        let started = thread::Builder::new().name("log-repeats".to_owned()).spawn(run_count_logger);
        // Without the thread the counts are logged at the end of the program.
        causes.is_counting = started.is_ok();
    }
    is_first
}

/// Logs a warning if it is the [first](is_first) of its cause, otherwise with level debug.
macro_rules! warn_ratelimited {
    ($cause:expr, $($event:tt)+) => {
        match $crate::util::repeated_warnings::is_first(&$cause) {
            true => tracing::warn!($($event)+),
            false => tracing::debug!($($event)+),
        }
    };
}
pub(crate) use warn_ratelimited;

/// Logs all counts, at the end of the program.
pub(crate) fn log_all_counts() {
    let counts = CAUSES.lock().take_due(None);
    log_repeats(counts);
}

/// Logs due counts until all counts are 0.
fn run_count_logger() {
    let mut is_counting = true;
    while is_counting {
        thread::sleep(CHECK_INTERVAL);
        let counts = {
            let mut causes = CAUSES.lock();
            let counts = causes.take_due(Some(Instant::now()));
            is_counting = causes.by_text.values().any(|seen| seen.repeats > 0);
            causes.is_counting = is_counting;
            counts
        };
        log_repeats(counts);
    }
}

fn log_repeats(counts: Vec<(String, u64)>) {
    for (cause, repeats) in counts {
        tracing::warn!(repeats, "repeated: {cause}");
    }
}

/// Causes with a warning in the last minute.
#[derive(Default)]
struct Causes {
    by_text: BTreeMap<String, Cause>,
    /// The thread that logs the counts is running.
    is_counting: bool,
}

struct Cause {
    logged_at: Instant,
    /// Warnings since then.
    repeats: u64,
}

impl Causes {
    fn is_first(&mut self, text: String, now: Instant) -> bool {
        let text = match self.by_text.len() >= MAX_CAUSES && !self.by_text.contains_key(&text) {
            true => OTHER_CAUSES.to_owned(),
            false => text,
        };
        match self.by_text.get_mut(&text) {
            // The warning itself is logged again after a minute without a repeat.
            Some(cause) if cause.repeats > 0 || !cause.is_due(now) => {
                cause.repeats += 1;
                false
            }
            _ => {
                self.by_text.insert(text, Cause { logged_at: now, repeats: 0 });
                true
            }
        }
    }

    /// Returns and resets the counts that are due at `now`; `None`: all of them. Causes without repeats are removed.
    fn take_due(&mut self, now: Option<Instant>) -> Vec<(String, u64)> {
        let is_due = |cause: &Cause| now.is_none_or(|now| cause.is_due(now));
        self.by_text.retain(|_, cause| cause.repeats > 0 || !is_due(cause));
        let due = self.by_text.iter_mut().filter(|(_, cause)| is_due(cause));
        due.map(|(text, cause)| {
            cause.logged_at = now.unwrap_or(cause.logged_at);
            (text.clone(), std::mem::take(&mut cause.repeats))
        })
        .collect()
    }
}

impl Cause {
    fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.logged_at) >= REPEAT_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_cause_is_logged_and_the_others_are_counted_for_a_minute() {
        let (mut causes, start) = (Causes::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(causes.is_first("b is unavailable".to_owned(), at(0)));
        assert!(causes.is_first("c is unavailable".to_owned(), at(1)), "another cause");
        for n in 1..=500 {
            assert!(!causes.is_first("b is unavailable".to_owned(), at(1 + n / 10)));
        }
        assert_eq!(causes.take_due(Some(at(59))), []);
        assert_eq!(causes.take_due(Some(at(60))), [("b is unavailable".to_owned(), 500)]);
        // Further repeats are counted.
        assert!(!causes.is_first("b is unavailable".to_owned(), at(61)));
        assert_eq!(causes.take_due(Some(at(119))), []);
        assert_eq!(causes.take_due(Some(at(120))), [("b is unavailable".to_owned(), 1)]);
        // After a minute without repeats the next warning is the first one again.
        assert_eq!(causes.take_due(Some(at(180))), []);
        assert!(causes.by_text.is_empty());
        assert!(causes.is_first("b is unavailable".to_owned(), at(181)));
        assert!(!causes.is_first("b is unavailable".to_owned(), at(182)));
        assert_eq!(causes.take_due(None), [("b is unavailable".to_owned(), 1)], "at the end");
    }

    #[test]
    fn any_number_of_causes_uses_bounded_memory() {
        let (mut causes, now) = (Causes::default(), Instant::now());
        let logged = (0..10_000).filter(|n| causes.is_first(format!("cause {n}"), now)).count();
        assert_eq!((logged, causes.by_text.len()), (MAX_CAUSES + 1, MAX_CAUSES + 1));
        let due = causes.take_due(None);
        assert_eq!(due, [(OTHER_CAUSES.to_owned(), 10_000 - MAX_CAUSES as u64 - 1)]);
    }
}
