//! Log lines of one cause: the first is written, those that follow are counted, and the count is written once a
//! minute. One agent that can't be reached fails hundreds of tasks a minute, all for the same reason.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Lines of one cause are counted for so long before the count is written.
const REPEAT_WINDOW: Duration = Duration::from_secs(60);
/// How often it is checked whose time is over.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The most causes that are counted separately; those beyond are counted as [`OTHER_CAUSES`].
const MAX_CAUSES: usize = 256;
/// The cause of all beyond [`MAX_CAUSES`].
const OTHER_CAUSES: &str = "warnings of other causes";

static CAUSES: Mutex<Causes> = Mutex::new(Causes { seen: BTreeMap::new(), is_counting: false });

/// Whether a warning of `cause` is to be logged now: the first is, the others of the next minute are counted and
/// logged as one line.
///
/// `cause` is what the warning says without what differs from one occurrence to the next (a task, an attempt).
pub(crate) fn is_first(cause: &dyn Display) -> bool {
    let mut causes = lock_causes();
    let is_first = causes.is_first(cause.to_string(), Instant::now());
    if !is_first && !causes.is_counting {
        let started = thread::Builder::new().name("log-repeats".to_owned()).spawn(run_count_logger);
        // Without the thread the counts are logged when the program ends.
        causes.is_counting = started.is_ok();
    }
    is_first
}

/// Logs a warning if it is the [first](is_first) of its cause, else with level debug.
macro_rules! warn_ratelimited {
    ($cause:expr, $($event:tt)+) => {
        match $crate::util::repeated_warnings::is_first(&$cause) {
            true => tracing::warn!($($event)+),
            false => tracing::debug!($($event)+),
        }
    };
}
pub(crate) use warn_ratelimited;

/// Logs all counts; to be called before a program ends.
pub(crate) fn log_all_counts() {
    let counts = lock_causes().take_due(None);
    log_repeats(counts);
}

/// Logs counts as their time comes, until nothing is counted.
fn run_count_logger() {
    let mut is_counting = true;
    while is_counting {
        thread::sleep(CHECK_INTERVAL);
        let counts = {
            let mut causes = lock_causes();
            let counts = causes.take_due(Some(Instant::now()));
            is_counting = causes.seen.values().any(|seen| seen.repeats > 0);
            causes.is_counting = is_counting;
            counts
        };
        log_repeats(counts);
    }
}

fn log_repeats(counts: Vec<(String, u64)>) {
    for (cause, repeats) in counts {
        tracing::warn!(repeats, "the same again: {cause}");
    }
}

fn lock_causes() -> MutexGuard<'static, Causes> {
    CAUSES.lock()
}

/// The causes of the last minute.
#[derive(Default)]
struct Causes {
    seen: BTreeMap<String, Seen>,
    /// A thread waits to log the counts.
    is_counting: bool,
}

/// What was seen of one cause.
struct Seen {
    /// When a line of it was logged last.
    logged: Instant,
    /// How many were not logged since.
    repeats: u64,
}

impl Causes {
    fn is_first(&mut self, cause: String, now: Instant) -> bool {
        let cause = match self.seen.len() >= MAX_CAUSES && !self.seen.contains_key(&cause) {
            true => OTHER_CAUSES.to_owned(),
            false => cause,
        };
        match self.seen.get_mut(&cause) {
            // The line itself is written again where its count was zero for a whole minute.
            Some(seen) if seen.repeats > 0 || now.duration_since(seen.logged) < REPEAT_WINDOW => {
                seen.repeats += 1;
                false
            }
            _ => {
                self.seen.insert(cause, Seen { logged: now, repeats: 0 });
                true
            }
        }
    }

    /// The counts whose minute is over at `now`; `None`: all of them. What did not repeat is forgotten.
    fn take_due(&mut self, now: Option<Instant>) -> Vec<(String, u64)> {
        let is_due =
            |seen: &Seen| now.is_none_or(|now| now.duration_since(seen.logged) >= REPEAT_WINDOW);
        self.seen.retain(|_, seen| seen.repeats > 0 || !is_due(seen));
        let due = self.seen.iter_mut().filter(|(_, seen)| is_due(seen));
        due.map(|(cause, seen)| {
            if let Some(now) = now {
                seen.logged = now;
            }
            (cause.clone(), std::mem::take(&mut seen.repeats))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_cause_is_logged_and_the_others_are_counted_for_a_minute() {
        let (mut causes, start) = (Causes::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(causes.is_first("b is away".to_owned(), at(0)));
        assert!(causes.is_first("c is away".to_owned(), at(1)), "another cause");
        for n in 1..=500 {
            assert!(!causes.is_first("b is away".to_owned(), at(1 + n / 10)));
        }
        assert_eq!(causes.take_due(Some(at(59))), []);
        assert_eq!(causes.take_due(Some(at(60))), [("b is away".to_owned(), 500)]);
        // It goes on: counts follow, not lines.
        assert!(!causes.is_first("b is away".to_owned(), at(61)));
        assert_eq!(causes.take_due(Some(at(119))), []);
        assert_eq!(causes.take_due(Some(at(120))), [("b is away".to_owned(), 1)]);
        // It is over, and comes again later.
        assert_eq!(causes.take_due(Some(at(180))), []);
        assert!(causes.seen.is_empty());
        assert!(causes.is_first("b is away".to_owned(), at(181)));
        assert!(!causes.is_first("b is away".to_owned(), at(182)));
        assert_eq!(causes.take_due(None), [("b is away".to_owned(), 1)], "at the end");
    }

    #[test]
    fn any_number_of_causes_uses_bounded_memory() {
        let (mut causes, now) = (Causes::default(), Instant::now());
        let logged = (0..10_000).filter(|n| causes.is_first(format!("cause {n}"), now)).count();
        assert_eq!((logged, causes.seen.len()), (MAX_CAUSES + 1, MAX_CAUSES + 1));
        let due = causes.take_due(None);
        assert_eq!(due, [(OTHER_CAUSES.to_owned(), 10_000 - MAX_CAUSES as u64 - 1)]);
    }
}
