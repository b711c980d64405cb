//! How many tasks an agent works on at once.
//!
//! More streams fill a long or striped path and hide the latency of a slow file system. Where the cores or the disks
//! are busy they only add contention. Only a trial shows which case it is, so the number is set by hill climbing: one
//! step up is kept where goodput rises by it, one step down where it does not fall. The pauses between trials double
//! while none helps. The optimizer of FTS (Ayllon et al., "FTS3: New Data Movement Service For WLCG", 2014) does this
//! for links between sites.

use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::watch;

pub(super) const MEASUREMENT_WINDOW: Duration = Duration::from_secs(1);
/// A verdict is the median of so many windows.
const WINDOWS_PER_VERDICT: usize = 3;
/// A step up is kept where goodput rises at least by this factor.
const MIN_GAIN_RATIO: f64 = 1.08;
/// A step down is kept where at least this share of the goodput remains.
const MIN_KEPT_RATIO: f64 = 0.97;
/// Verdicts between a failed trial and the next one; doubled after each further failure.
const INITIAL_REST_VERDICTS: u32 = 2;
const MAX_REST_VERDICTS: u32 = 32;
/// A window counts where at least this share of the allowed tasks was running.
const MIN_BUSY_SHARE: f64 = 0.8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// The algorithm, without clocks.
#[derive(Debug)]
struct HillClimber {
    min_tasks: usize,
    max_tasks: usize,
    best_tasks: usize,
    best_goodput: f64,
    /// The step from `best_tasks` that is being tried.
    trial: Option<Direction>,
    next_direction: Direction,
    samples: Vec<f64>,
    verdicts_until_trial: u32,
    /// The length of the next pause.
    rest_verdicts: u32,
}

impl HillClimber {
    fn new(min_tasks: usize, start: usize, max_tasks: usize) -> Self {
        let max_tasks = max_tasks.max(1);
        let min_tasks = min_tasks.clamp(1, max_tasks);
        HillClimber {
            min_tasks,
            max_tasks,
            best_tasks: start.clamp(min_tasks, max_tasks),
            best_goodput: 0.0,
            trial: None,
            next_direction: Direction::Up,
            samples: Vec::new(),
            verdicts_until_trial: 1,
            rest_verdicts: INITIAL_REST_VERDICTS,
        }
    }

    fn allowed_tasks(&self) -> usize {
        match self.trial {
            None => self.best_tasks,
            Some(Direction::Up) => self.best_tasks + 1,
            Some(Direction::Down) => self.best_tasks - 1,
        }
    }

    /// Adds the goodput of a window in which the allowed tasks were running.
    fn record_window(&mut self, goodput: f64) {
        self.samples.push(goodput);
        if self.samples.len() < WINDOWS_PER_VERDICT {
            return;
        }
        self.samples.sort_by(f64::total_cmp);
        let median = self.samples[WINDOWS_PER_VERDICT / 2];
        self.samples.clear();
        let tried = self.allowed_tasks();
        let is_better = match self.trial.take() {
            None => {
                self.best_goodput = median;
                self.verdicts_until_trial = self.verdicts_until_trial.saturating_sub(1);
                if self.verdicts_until_trial == 0 {
                    self.start_trial();
                }
                return;
            }
            Some(Direction::Up) => median > self.best_goodput * MIN_GAIN_RATIO,
            Some(Direction::Down) => median > self.best_goodput * MIN_KEPT_RATIO,
        };
        if is_better {
            (self.best_tasks, self.best_goodput) = (tried, median);
            self.rest_verdicts = INITIAL_REST_VERDICTS;
            self.start_trial();
        } else {
            let was_up = tried > self.best_tasks;
            self.next_direction = if was_up { Direction::Down } else { Direction::Up };
            self.verdicts_until_trial = self.rest_verdicts;
            self.rest_verdicts = (2 * self.rest_verdicts).min(MAX_REST_VERDICTS);
        }
    }

    /// Starts a trial in the next direction, or in the other one where a bound forbids it.
    fn start_trial(&mut self) {
        let is_allowed = |direction: &Direction| match direction {
            Direction::Up => self.best_tasks < self.max_tasks,
            Direction::Down => self.best_tasks > self.min_tasks,
        };
        let directions = match self.next_direction {
            Direction::Up => [Direction::Up, Direction::Down],
            Direction::Down => [Direction::Down, Direction::Up],
        };
        self.trial = directions.into_iter().find(is_allowed);
        self.verdicts_until_trial = self.rest_verdicts;
    }
}

/// Decides how many slots poll for work.
pub(super) struct ConcurrencyController {
    state: Mutex<ControllerState>,
    allowed: watch::Sender<usize>,
}

struct ControllerState {
    climber: HillClimber,
    /// Tasks that transfer content now.
    busy_tasks: usize,
    /// Since `window_start`, up to `last_change`.
    busy_task_seconds: f64,
    last_change: Instant,
    window_start: Instant,
    /// At `window_start`.
    moved_bytes: u64,
}

impl ControllerState {
    fn accrue_busy_time(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last_change).as_secs_f64();
        self.busy_task_seconds += self.busy_tasks as f64 * elapsed;
        self.last_change = now;
    }
}

/// Counts a task as one that transfers content until it is dropped.
pub(super) struct BusyTask<'a>(&'a ConcurrencyController);

impl Drop for BusyTask<'_> {
    fn drop(&mut self) {
        self.0.update_busy(|busy| busy.saturating_sub(1));
    }
}

impl ConcurrencyController {
    pub(super) fn new(min_tasks: usize, start: usize, max_tasks: usize) -> Self {
        let climber = HillClimber::new(min_tasks, start, max_tasks);
        let allowed = watch::Sender::new(climber.allowed_tasks());
        let now = Instant::now();
        let state = Mutex::new(ControllerState {
            climber,
            busy_tasks: 0,
            busy_task_seconds: 0.0,
            last_change: now,
            window_start: now,
            moved_bytes: 0,
        });
        ConcurrencyController { state, allowed }
    }

    /// Waits until the slot of this number (from 0) may poll for work.
    pub(super) async fn wait_allowed(&self, slot: usize) {
        // An error means that the sender was dropped, but `self` owns it.
        let _ = self.allowed.subscribe().wait_for(|allowed| slot < *allowed).await;
    }

    pub(super) fn mark_busy(&self) -> BusyTask<'_> {
        self.update_busy(|busy| busy + 1);
        BusyTask(self)
    }

    fn update_busy(&self, change: impl FnOnce(usize) -> usize) {
        let mut state = self.state.lock();
        state.accrue_busy_time(Instant::now());
        state.busy_tasks = change(state.busy_tasks);
    }

    /// Must be called about every [`MEASUREMENT_WINDOW`]. `moved_bytes`: all that were transferred since the start.
    pub(super) fn end_window(&self, moved_bytes: u64, now: Instant) {
        let mut state = self.state.lock();
        state.accrue_busy_time(now);
        let elapsed = now.saturating_duration_since(state.window_start).as_secs_f64();
        let allowed = state.climber.allowed_tasks();
        let min_busy = MIN_BUSY_SHARE * allowed as f64 * elapsed;
        let is_busy = state.busy_task_seconds >= min_busy && elapsed > 0.0;
        let goodput = moved_bytes.saturating_sub(state.moved_bytes) as f64 / elapsed.max(1e-3);
        (state.window_start, state.busy_task_seconds, state.moved_bytes) = (now, 0.0, moved_bytes);
        if is_busy {
            state.climber.record_window(goodput);
            let tasks = state.climber.allowed_tasks();
            if tasks != allowed {
                tracing::debug!(tasks, goodput, "number of tasks changed");
                self.allowed.send_replace(tasks);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Climbs for so many windows on a path that gives `goodput` to so many tasks.
    fn run_windows(
        climb: &mut HillClimber,
        windows: usize,
        goodput: impl Fn(usize) -> f64,
    ) -> usize {
        for _ in 0..windows {
            climb.record_window(goodput(climb.allowed_tasks()));
        }
        climb.best_tasks
    }

    #[test]
    fn concurrency_rises_while_goodput_rises_and_then_stays() {
        let mut tasks = HillClimber::new(2, 2, 16);
        assert_eq!(run_windows(&mut tasks, 60, |n| n.min(7) as f64 * 100.0), 7);
        assert_eq!(run_windows(&mut tasks, 600, |n| n.min(7) as f64 * 100.0), 7);
    }

    #[test]
    fn concurrency_falls_when_fewer_tasks_give_the_same_goodput() {
        let mut tasks = HillClimber::new(2, 8, 16);
        let path = |n: usize| 1_000.0 / (1.0 + 0.05 * n.saturating_sub(3) as f64);
        assert!(run_windows(&mut tasks, 60, path) <= 4);
        // The path has become another one.
        assert!(run_windows(&mut tasks, 400, |n| n as f64) >= 12);
    }

    #[test]
    fn the_pause_between_trials_grows_when_no_trial_helps() {
        let mut tasks = HillClimber::new(2, 2, 3);
        let mut tried = 0;
        for _ in 0..(WINDOWS_PER_VERDICT * 200) {
            tasks.record_window(100.0);
            tried += usize::from(tasks.allowed_tasks() != 2);
        }
        assert!(tried > 0 && tried < WINDOWS_PER_VERDICT * 15, "{tried}");
    }

    proptest! {
        #[test]
        fn concurrency_stays_within_its_bounds_for_any_goodput(
            lowest in 0usize..4,
            start in 0usize..20,
            highest in 0usize..20,
            goodputs in proptest::collection::vec(0.0f64..1e9, 0..400),
        ) {
            let mut tasks = HillClimber::new(lowest, start, highest);
            for goodput in goodputs {
                tasks.record_window(goodput);
                prop_assert!((1..=highest.max(1)).contains(&tasks.allowed_tasks()));
                prop_assert!(tasks.allowed_tasks() + 1 >= lowest.min(highest));
            }
        }
    }

    #[tokio::test]
    async fn slots_above_the_allowed_number_wait_and_idle_windows_are_ignored() {
        let tuning = ConcurrencyController::new(1, 1, 2);
        tuning.wait_allowed(0).await;
        let begun = Instant::now();
        let at = |n: u64| begun + n as u32 * MEASUREMENT_WINDOW;
        // Nothing was in hand.
        (0..20).for_each(|n| tuning.end_window(n, at(n)));
        let waiting = tuning.wait_allowed(1);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let busy = tuning.mark_busy();
        tuning.state.lock().last_change = at(19);
        (20..24).for_each(|n| tuning.end_window(n * 1_000, at(n)));
        drop(busy);
        waiting.await;
    }

    #[tokio::test]
    async fn goodput_is_per_second_for_any_window_length() {
        let tuning = ConcurrencyController::new(1, 1, 8);
        let all: Vec<BusyTask<'_>> = (0..8).map(|_| tuning.mark_busy()).collect();
        let (mut at, mut moved) = (Instant::now(), 0);
        for n in 0..(100 * WINDOWS_PER_VERDICT as u32) {
            let window = MEASUREMENT_WINDOW * (1 + n % 3);
            let allowed = tuning.state.lock().climber.allowed_tasks();
            moved += (allowed.min(4) as f64 * 1e9 * window.as_secs_f64()) as u64;
            at += window;
            tuning.end_window(moved, at);
        }
        assert_eq!(tuning.state.lock().climber.best_tasks, 4);
        drop(all);
    }
}
