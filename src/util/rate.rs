//! Limits on bytes per second: what moves content takes from a [`Rate`] and waits until time has paid
//! for it.
//!
//! A buffer may be larger than a second's worth, so it is taken whole, as a debt, and its taker waits
//! until its place in the queue of debts is paid: takers get their turns in the order in which they
//! came, and a rate that changes meanwhile changes the wait of all of them.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much time may be saved up while nothing is taken: enough to make good a thread that came late,
/// too little to be seen as a burst.
const BURST: Duration = Duration::from_millis(125);
/// Waiting is done in pieces of this, so that cancelling and a changed rate take effect at once.
const NAP: Duration = Duration::from_millis(100);
/// Content goes on in so many pieces a second, so that slow streams are even …
const PIECES: u64 = 32;
/// … of no less than this, in bytes.
const LEAST_PIECE: u64 = 16 << 10;
/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;

/// A limit on bytes per second that several threads share; it can be changed while they use it. Without
/// a limit, taking is one addition.
#[derive(Debug)]
pub struct Rate {
    /// Bytes per second; [`UNLIMITED`] for none.
    limit: AtomicU64,
    /// All bytes that were ever taken. A place in this count is a place in the queue.
    taken: AtomicU64,
    paid: Mutex<Paid>,
}

/// Up to where takers may go on.
#[derive(Debug)]
struct Paid {
    /// As a place in [`Rate::taken`].
    upto: u64,
    /// When it was so.
    at: Instant,
    /// For how long altogether there was something that waited.
    held: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Rate::new(None)
    }
}

impl Rate {
    /// At most `limit` bytes per second; `None`: as many as there are.
    pub fn new(limit: Option<u64>) -> Self {
        Rate {
            limit: AtomicU64::new(limit.unwrap_or(UNLIMITED)),
            taken: AtomicU64::new(0),
            paid: Mutex::new(Paid { upto: 0, at: Instant::now(), held: Duration::ZERO }),
        }
    }

    /// The limit, in bytes per second.
    pub fn rate(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
    }

    /// All bytes that were ever taken.
    pub fn moved(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// For how long altogether, as of `now`, this limit has kept somebody waiting.
    pub fn held(&self, now: Instant) -> Duration {
        self.paid(now).held
    }

    /// Another limit from `now` on, also for who waits already. With a limit of 0 all wait until there
    /// is another one.
    pub fn set(&self, limit: Option<u64>, now: Instant) {
        let mut paid = self.paid(now);
        if self.rate().is_none() {
            (paid.upto, paid.at) = (self.moved(), now);
        }
        self.limit.store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// Takes `bytes`; returns the place in the queue whose [`Rate::wait`] is to be waited for.
    pub fn take(&self, bytes: u64, now: Instant) -> u64 {
        if self.rate().is_some() {
            // What was not taken until now is saved up to [`BURST`] only.
            drop(self.paid(now));
        }
        self.taken.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes)
    }

    /// How long, as of `now`, who has this `place` still waits.
    pub fn wait(&self, place: u64, now: Instant) -> Duration {
        if self.rate().is_none() {
            return Duration::ZERO;
        }
        let paid = self.paid(now);
        let owed = place.saturating_sub(paid.upto);
        match self.limit.load(Ordering::Relaxed) {
            _ if owed == 0 => Duration::ZERO,
            0 => Duration::MAX,
            limit => nanos(u128::from(owed), limit).saturating_sub(now.duration_since(paid.at)),
        }
    }

    /// What is paid as of `now`.
    fn paid(&self, now: Instant) -> MutexGuard<'_, Paid> {
        let mut paid = self.paid.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        let elapsed = now.saturating_duration_since(paid.at);
        let bytes = elapsed.as_nanos() * u128::from(limit) / NANOS;
        let owed = self.moved().saturating_sub(paid.upto);
        if limit == 0 || limit == UNLIMITED {
            if limit == 0 && owed > 0 {
                paid.held += elapsed;
            }
            paid.at = paid.at.max(now);
        } else if bytes > 0 {
            paid.held += nanos(u128::from(owed), limit).min(elapsed);
            let most = self.moved().saturating_add(part(limit, BURST));
            paid.upto = paid.upto.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            if paid.upto >= most {
                (paid.upto, paid.at) = (most, now);
            } else {
                // The fraction of a byte that is left is paid with the next one.
                paid.at += nanos(bytes, limit).min(elapsed);
            }
        }
        paid
    }
}

const NANOS: u128 = 1_000_000_000;

/// How long `bytes` take, rounded up.
fn nanos(bytes: u128, limit: u64) -> Duration {
    let nanos = bytes.saturating_mul(NANOS).div_ceil(u128::from(limit.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What goes through in `time`.
fn part(limit: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(limit) * time.as_nanos() / NANOS).unwrap_or(u64::MAX)
}

/// All the limits that one stream of content is under; without any it costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Pace(Vec<Arc<Rate>>);

impl Pace {
    /// These limits.
    pub fn new(rates: Vec<Arc<Rate>>) -> Self {
        Pace(rates)
    }

    /// The same, and `rate` as well.
    pub fn and(mut self, rate: Arc<Rate>) -> Self {
        self.0.push(rate);
        self
    }

    /// How much content should go on at once at most, in bytes: little where the limits are low, so that
    /// no stream stands still for long; `None`: any.
    pub fn piece(&self) -> Option<u64> {
        let least = self.0.iter().filter_map(|rate| rate.rate()).min()?;
        Some((least / PIECES).max(LEAST_PIECE))
    }

    /// Takes `bytes` from all the limits, and blocks until the slowest of them lets go on. Asks `go_on`
    /// while it waits.
    ///
    /// # Errors
    /// What `go_on` says; the bytes count as taken.
    pub fn take<E>(&self, bytes: u64, go_on: impl Fn() -> Result<(), E>) -> Result<(), E> {
        let begun = Instant::now();
        let limited = self.0.iter().map(|rate| (rate, rate.take(bytes, begun)));
        // Where nothing is limited, this allocates nothing.
        let places: Vec<_> = limited.filter(|(rate, _)| rate.rate().is_some()).collect();
        loop {
            let now = Instant::now();
            let waits = places.iter().map(|(rate, place)| rate.wait(*place, now));
            match waits.max() {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(wait) => std::thread::sleep(wait.min(NAP)),
            }
            go_on()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A decimal megabyte, so that times come out even.
    const MB: u64 = 1_000_000;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A limit that has existed since the returned instant, with nothing saved up.
    fn limited(limit: u64) -> (Rate, Instant) {
        let rate = Rate::new(None);
        let now = Instant::now();
        rate.set(Some(limit), now);
        (rate, now)
    }

    #[test]
    fn a_buffer_waits_until_time_has_paid_for_it() {
        let (rate, t) = limited(MB);
        let place = rate.take(MB / 2, t);
        assert_eq!(rate.wait(place, t), ms(500));
        assert_eq!(rate.wait(place, t + ms(200)), ms(300));
        assert_eq!(rate.wait(place, t + ms(500)), Duration::ZERO);
        // One that is much more than a second's worth, and one behind it.
        let (large, behind) = (rate.take(4 * MB, t + ms(500)), rate.take(MB, t + ms(500)));
        assert_eq!(rate.wait(large, t + ms(500)), ms(4000));
        assert_eq!(rate.wait(behind, t + ms(500)), ms(5000));
        assert_eq!(rate.moved(), 5 * MB + MB / 2);
    }

    #[test]
    fn who_came_first_goes_on_first() {
        let (rate, t) = limited(10 * MB);
        let places: Vec<u64> = (0..10).map(|_| rate.take(MB, t)).collect();
        for (i, place) in places.into_iter().enumerate() {
            assert_eq!(rate.wait(place, t), ms(100 * (i as u64 + 1)));
        }
    }

    #[test]
    fn a_changed_limit_changes_the_wait_of_who_waits_already() {
        let (rate, t) = limited(MB);
        let place = rate.take(10 * MB, t);
        rate.set(Some(4 * MB), t + ms(2000));
        assert_eq!(rate.wait(place, t + ms(2000)), ms(2000));
        rate.set(Some(0), t + ms(3000));
        assert_eq!(rate.wait(place, t + ms(60_000)), Duration::MAX);
        rate.set(Some(8 * MB), t + ms(60_000));
        assert_eq!(rate.wait(place, t + ms(60_000)), ms(500), "time at nought pays nothing");
        rate.set(None, t + ms(60_100));
        assert_eq!((rate.wait(place, t + ms(60_100)), rate.rate()), (Duration::ZERO, None));
        // What went through without a limit is not owed afterwards.
        rate.take(1000 * MB, t + ms(60_150));
        rate.set(Some(MB), t + ms(60_200));
        let place = rate.take(MB, t + ms(60_200));
        assert_eq!(rate.wait(place, t + ms(60_200)), ms(1000));
    }

    #[test]
    fn a_long_rest_saves_up_no_more_than_a_moment() {
        let (rate, t) = limited(8 * MB);
        let later = t + Duration::from_secs(3600);
        let (first, second) = (rate.take(MB, later), rate.take(MB, later));
        assert_eq!(rate.wait(first, later), Duration::ZERO);
        assert_eq!(rate.wait(second, later), ms(125));
        // Also where nobody looked in between.
        let later = later + Duration::from_secs(3600);
        let place = rate.take(8 * MB, later);
        assert_eq!(rate.wait(place, later), ms(875));
    }

    #[test]
    fn the_time_in_which_somebody_waited_is_counted() {
        let (rate, t) = limited(MB);
        rate.take(MB / 2, t + ms(1000));
        assert_eq!(rate.held(t + ms(3000)), ms(375), "half a second, an eighth was saved up");
        rate.take(5 * MB, t + ms(3000));
        assert_eq!(rate.held(t + ms(4000)), ms(1375));
        rate.set(Some(0), t + ms(4000));
        assert_eq!(rate.held(t + ms(6000)), ms(3375));
        rate.set(None, t + ms(6000));
        assert_eq!(rate.held(t + ms(9000)), ms(3375));
    }

    #[test]
    fn the_slowest_limit_of_a_pace_rules_and_all_of_them_count() {
        let (slow, fast) = (Arc::new(Rate::new(Some(MB))), Arc::new(Rate::new(Some(64 * MB))));
        let free = Arc::new(Rate::default());
        let pace = Pace::new(vec![slow.clone(), free.clone()]).and(fast.clone());
        assert_eq!(pace.piece(), Some(MB / 32));
        assert_eq!(Pace::new(vec![free.clone()]).piece(), None);
        let since = Instant::now();
        pace.take(MB / 4, || Ok::<(), ()>(())).unwrap();
        assert!(since.elapsed() >= ms(100), "{:?}", since.elapsed());
        assert_eq!([slow.moved(), free.moved(), fast.moved()], [MB / 4; 3]);
        assert_eq!(pace.take(1000 * MB, || Err("cancelled")), Err("cancelled"));
    }

    proptest! {
        /// Several takers that wait for their places and take again at once, but come late at times.
        #[test]
        fn all_of_the_limit_goes_through_and_no_more_while_there_is_demand(
            limit in 1000u64..(4 << 30),
            thousandths in proptest::collection::vec(1u64..2000, 1..5),
            late in proptest::collection::vec(0u64..60_000_000, 50..200),
        ) {
            let (rate, t) = limited(limit);
            let sizes: Vec<u64> = thousandths.iter().map(|n| (limit * n / 1000).max(1)).collect();
            let mut places: Vec<u64> = sizes.iter().map(|size| rate.take(*size, t)).collect();
            let (mut now, mut through) = (t, 0);
            for late in late {
                now += Duration::from_nanos(late);
                for (size, place) in sizes.iter().zip(&mut places) {
                    while rate.wait(*place, now).is_zero() {
                        through += size;
                        *place = rate.take(*size, now);
                    }
                }
                let (all, most) = (part(limit, now - t), part(limit, BURST) + 1);
                prop_assert!(through <= all + most, "{} of {}", through, all);
                // What waits may lack no more than its last byte.
                let waiting: u64 = sizes.iter().sum();
                prop_assert!(through + waiting + 1 >= all, "{} of {}", through, all);
            }
        }
    }
}
