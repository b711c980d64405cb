//! How many tasks an agent works on at once: as many as make it faster.
//!
//! More streams fill a long or striped path, hide a slow file system's answers, and only get in each
//! other's way where the cores or the disks are busy already. Nothing but a try tells which it is: a hill
//! is climbed (one step up is kept where goodput rises by it, one step down where it does not fall), with
//! longer and longer rests where neither helps. The optimizer of FTS (Ayllon et al., "FTS3: New Data
//! Movement Service For WLCG", 2014) does this for links between sites.

use parking_lot::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long one measurement takes.
pub const WINDOW: Duration = Duration::from_secs(1);
/// So many of them make a verdict, by their median.
const WINDOWS: usize = 3;
/// A step up must bring this much more to be kept …
const GAIN: f64 = 1.08;
/// … and a step down must leave this much.
const LEAVES: f64 = 0.97;
/// Verdicts without a try, after a try that was no use; twice as many after each further one.
const REST: u32 = 2;
const LONGEST_REST: u32 = 32;
/// A measurement counts where this share of the tasks that may be in hand were.
const BUSY: f64 = 0.8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Up,
    Down,
}

/// The climb, without clocks.
#[derive(Debug)]
struct Climb {
    lowest: usize,
    highest: usize,
    /// The best number known …
    home: usize,
    /// … what it brought …
    brought: f64,
    /// … and the step that is being tried from it.
    trying: Option<Step>,
    next: Step,
    samples: Vec<f64>,
    /// Verdicts before the next try.
    rest: u32,
    /// How long the next rest is.
    resting: u32,
}

impl Climb {
    fn new(lowest: usize, start: usize, highest: usize) -> Self {
        let highest = highest.max(1);
        let lowest = lowest.clamp(1, highest);
        Climb {
            lowest,
            highest,
            home: start.clamp(lowest, highest),
            brought: 0.0,
            trying: None,
            next: Step::Up,
            samples: Vec::new(),
            rest: 1,
            resting: REST,
        }
    }

    /// How many tasks may be in hand now.
    fn allowed(&self) -> usize {
        match self.trying {
            None => self.home,
            Some(Step::Up) => self.home + 1,
            Some(Step::Down) => self.home - 1,
        }
    }

    /// Takes the goodput of a window in which all that were allowed were in hand.
    fn learn(&mut self, goodput: f64) {
        self.samples.push(goodput);
        if self.samples.len() < WINDOWS {
            return;
        }
        self.samples.sort_by(f64::total_cmp);
        let median = self.samples[WINDOWS / 2];
        self.samples.clear();
        let allowed = self.allowed();
        let kept = match self.trying.take() {
            None => {
                self.brought = median;
                self.rest = self.rest.saturating_sub(1);
                self.rest == 0 && self.try_next()
            }
            Some(Step::Up) => median > self.brought * GAIN,
            Some(Step::Down) => median > self.brought * LEAVES,
        };
        if self.trying.is_some() {
            return;
        }
        if allowed != self.home && kept {
            (self.home, self.brought, self.resting) = (allowed, median, REST);
            self.try_next();
        } else if allowed != self.home {
            self.next = if allowed > self.home { Step::Down } else { Step::Up };
            self.rest = self.resting;
            self.resting = (2 * self.resting).min(LONGEST_REST);
        }
    }

    /// Begins a try in the direction that is next, or in the other one where there is no room.
    fn try_next(&mut self) -> bool {
        let room = |step| match step {
            Step::Up => self.home < self.highest,
            Step::Down => self.home > self.lowest,
        };
        let other = if self.next == Step::Up { Step::Down } else { Step::Up };
        self.trying = [self.next, other].into_iter().find(|step| room(*step));
        self.rest = self.resting;
        self.trying.is_some()
    }
}

/// What slots ask before they ask for work.
pub struct Tuning {
    state: Mutex<State>,
    allowed: watch::Sender<usize>,
}

struct State {
    climb: Climb,
    /// Tasks that move content now, and for how many task-seconds it was so since `since`.
    busy: usize,
    spent: f64,
    changed: Instant,
    since: Instant,
    moved: u64,
}

impl State {
    fn account(&mut self, now: Instant) {
        self.spent += self.busy as f64 * now.saturating_duration_since(self.changed).as_secs_f64();
        self.changed = now;
    }
}

/// A task that moves content, until it is dropped.
pub struct Busy<'a>(&'a Tuning);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.count(|busy| busy.saturating_sub(1));
    }
}

impl Tuning {
    /// Begins with `start` tasks in hand, never fewer than `lowest` nor more than `highest`.
    pub fn new(lowest: usize, start: usize, highest: usize) -> Self {
        let climb = Climb::new(lowest, start, highest);
        let allowed = watch::Sender::new(climb.allowed());
        let now = Instant::now();
        let state = State { climb, busy: 0, spent: 0.0, changed: now, since: now, moved: 0 };
        Tuning { state: Mutex::new(state), allowed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until the slot of this number (from 0) may ask for work.
    pub async fn turn(&self, slot: usize) {
        // The sender is ours: it does not go away.
        let _ = self.allowed.subscribe().wait_for(|allowed| slot < *allowed).await;
    }

    /// Counts a task as one that moves content.
    pub fn busy(&self) -> Busy<'_> {
        self.count(|busy| busy + 1);
        Busy(self)
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut state = self.state();
        state.account(Instant::now());
        state.busy = change(state.busy);
    }

    /// To be called about every [`REPEAT_WINDOW`] with all that was ever moved (bytes, or any measure of work
    /// done).
    pub fn look(&self, moved: u64, now: Instant) {
        let mut state = self.state();
        state.account(now);
        let elapsed = now.saturating_duration_since(state.since).as_secs_f64();
        let allowed = state.climb.allowed();
        let full = state.spent >= BUSY * allowed as f64 * elapsed && elapsed > 0.0;
        let goodput = moved.saturating_sub(state.moved) as f64 / elapsed.max(1e-3);
        (state.since, state.spent, state.moved) = (now, 0.0, moved);
        if full {
            state.climb.learn(goodput);
            let now = state.climb.allowed();
            if now != allowed {
                tracing::debug!(tasks = now, goodput, "tasks in hand");
                self.allowed.send_replace(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Climbs for so many windows on a path that gives `goodput` to so many tasks.
    fn climb(climb: &mut Climb, windows: usize, goodput: impl Fn(usize) -> f64) -> usize {
        for _ in 0..windows {
            climb.learn(goodput(climb.allowed()));
        }
        climb.home
    }

    #[test]
    fn it_rises_while_goodput_rises_and_stays_there() {
        let mut tasks = Climb::new(2, 2, 16);
        assert_eq!(climb(&mut tasks, 60, |n| n.min(7) as f64 * 100.0), 7);
        assert_eq!(climb(&mut tasks, 600, |n| n.min(7) as f64 * 100.0), 7);
    }

    #[test]
    fn it_falls_where_fewer_do_as_well() {
        let mut tasks = Climb::new(2, 8, 16);
        let path = |n: usize| 1_000.0 / (1.0 + 0.05 * n.saturating_sub(3) as f64);
        assert!(climb(&mut tasks, 60, path) <= 4);
        // The path has become another one.
        assert!(climb(&mut tasks, 400, |n| n as f64) >= 12);
    }

    #[test]
    fn where_nothing_helps_it_rests_longer_and_longer() {
        let mut tasks = Climb::new(2, 2, 3);
        let mut tried = 0;
        for _ in 0..(WINDOWS * 200) {
            tasks.learn(100.0);
            tried += usize::from(tasks.allowed() != 2);
        }
        assert!(tried > 0 && tried < WINDOWS * 15, "{tried}");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_whatever_it_learns(
            lowest in 0usize..4,
            start in 0usize..20,
            highest in 0usize..20,
            goodputs in proptest::collection::vec(0.0f64..1e9, 0..400),
        ) {
            let mut tasks = Climb::new(lowest, start, highest);
            for goodput in goodputs {
                tasks.learn(goodput);
                prop_assert!((1..=highest.max(1)).contains(&tasks.allowed()));
                prop_assert!(tasks.allowed() + 1 >= lowest.min(highest));
            }
        }
    }

    #[tokio::test]
    async fn slots_beyond_what_is_allowed_wait_and_idle_time_teaches_nothing() {
        let tuning = Tuning::new(1, 1, 2);
        tuning.turn(0).await;
        let begun = Instant::now();
        let at = |n: u64| begun + n as u32 * WINDOW;
        // Nothing was in hand.
        (0..20).for_each(|n| tuning.look(n, at(n)));
        let waiting = tuning.turn(1);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let busy = tuning.busy();
        tuning.state().changed = at(19);
        (20..24).for_each(|n| tuning.look(n * 1_000, at(n)));
        drop(busy);
        waiting.await;
    }

    #[tokio::test]
    async fn goodput_is_by_the_second_however_long_a_window_was() {
        let tuning = Tuning::new(1, 1, 8);
        let all: Vec<Busy<'_>> = (0..8).map(|_| tuning.busy()).collect();
        let (mut at, mut moved) = (Instant::now(), 0);
        for n in 0..(100 * WINDOWS as u32) {
            let window = WINDOW * (1 + n % 3);
            let allowed = tuning.state().climb.allowed();
            moved += (allowed.min(4) as f64 * 1e9 * window.as_secs_f64()) as u64;
            at += window;
            tuning.look(moved, at);
        }
        assert_eq!(tuning.state().climb.home, 4);
        drop(all);
    }
}
