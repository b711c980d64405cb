//! Limits on bytes per second: what moves content takes from a [`RateLimiter`] and waits until time has paid
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
const MAX_BURST: Duration = Duration::from_millis(125);
/// Waiting is done in pieces of this, so that cancelling and a changed rate take effect at once.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Content goes on in so many pieces a second, so that slow streams are even …
const CHUNKS_PER_SECOND: u64 = 32;
/// … of no less than this, in bytes.
const MIN_CHUNK_BYTES: u64 = 16 << 10;
/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;

/// A limit on bytes per second that several threads share; it can be changed while they use it. Without
/// a limit, taking is one addition.
#[derive(Debug)]
pub struct RateLimiter {
    /// Bytes per second; [`UNLIMITED`] for none.
    limit: AtomicU64,
    /// All bytes that were ever taken. A place in this count is a place in the queue.
    reserved: AtomicU64,
    grants: Mutex<Grants>,
}

/// Up to where takers may go on.
#[derive(Debug)]
struct Grants {
    /// As a place in [`RateLimiter::reserved`].
    granted: u64,
    /// When it was so.
    updated_at: Instant,
    /// For how long altogether there was something that waited.
    throttled: Duration,
}

impl Default for RateLimiter {
    fn default() -> Self {
        RateLimiter::new(None)
    }
}

impl RateLimiter {
    /// At most `limit` bytes per second; `None`: as many as there are.
    pub fn new(limit: Option<u64>) -> Self {
        RateLimiter {
            limit: AtomicU64::new(limit.unwrap_or(UNLIMITED)),
            reserved: AtomicU64::new(0),
            grants: Mutex::new(Grants {
                granted: 0,
                updated_at: Instant::now(),
                throttled: Duration::ZERO,
            }),
        }
    }

    /// The limit, in bytes per second.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
    }

    /// All bytes that were ever taken.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// For how long altogether, as of `now`, this limit has kept somebody waiting.
    pub fn throttled_time(&self, now: Instant) -> Duration {
        self.refill(now).throttled
    }

    /// Another limit from `now` on, also for who waits already. With a limit of 0 all wait until there
    /// is another one.
    pub fn set_limit(&self, limit: Option<u64>, now: Instant) {
        let mut paid = self.refill(now);
        if self.limit().is_none() {
            (paid.granted, paid.updated_at) = (self.reserved_bytes(), now);
        }
        self.limit.store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// Takes `bytes`; returns the place in the queue whose [`RateLimiter::wait_time`] is to be waited for.
    pub fn reserve(&self, bytes: u64, now: Instant) -> u64 {
        if self.limit().is_some() {
            // What was not taken until now is saved up to [`MAX_BURST`] only.
            drop(self.refill(now));
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes)
    }

    /// How long, as of `now`, who has this `place` still waits.
    pub fn wait_time(&self, place: u64, now: Instant) -> Duration {
        if self.limit().is_none() {
            return Duration::ZERO;
        }
        let paid = self.refill(now);
        let owed = place.saturating_sub(paid.granted);
        match self.limit.load(Ordering::Relaxed) {
            _ if owed == 0 => Duration::ZERO,
            0 => Duration::MAX,
            limit => duration_for(u128::from(owed), limit)
                .saturating_sub(now.duration_since(paid.updated_at)),
        }
    }

    /// What is paid as of `now`.
    fn refill(&self, now: Instant) -> MutexGuard<'_, Grants> {
        let mut paid = self.grants.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        let elapsed = now.saturating_duration_since(paid.updated_at);
        let bytes = elapsed.as_nanos() * u128::from(limit) / NANOS_PER_SECOND;
        let owed = self.reserved_bytes().saturating_sub(paid.granted);
        if limit == 0 || limit == UNLIMITED {
            if limit == 0 && owed > 0 {
                paid.throttled += elapsed;
            }
            paid.updated_at = paid.updated_at.max(now);
        } else if bytes > 0 {
            paid.throttled += duration_for(u128::from(owed), limit).min(elapsed);
            let most = self.reserved_bytes().saturating_add(bytes_in(limit, MAX_BURST));
            paid.granted = paid.granted.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            if paid.granted >= most {
                (paid.granted, paid.updated_at) = (most, now);
            } else {
                // The fraction of a byte that is left is paid with the next one.
                paid.updated_at += duration_for(bytes, limit).min(elapsed);
            }
        }
        paid
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// How long `bytes` take, rounded up.
fn duration_for(bytes: u128, limit: u64) -> Duration {
    let nanos = bytes.saturating_mul(NANOS_PER_SECOND).div_ceil(u128::from(limit.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What goes through in `time`.
fn bytes_in(limit: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(limit) * time.as_nanos() / NANOS_PER_SECOND).unwrap_or(u64::MAX)
}

/// All the limits that one stream of content is under; without any it costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Limiters(Vec<Arc<RateLimiter>>);

impl Limiters {
    /// These limits.
    pub fn new(rates: Vec<Arc<RateLimiter>>) -> Self {
        Limiters(rates)
    }

    /// The same, and `rate` as well.
    pub fn with(mut self, rate: Arc<RateLimiter>) -> Self {
        self.0.push(rate);
        self
    }

    /// How much content should go on at once at most, in bytes: little where the limits are low, so that
    /// no stream stands still for long; `None`: any.
    pub fn max_chunk_bytes(&self) -> Option<u64> {
        let least = self.0.iter().filter_map(|rate| rate.limit()).min()?;
        Some((least / CHUNKS_PER_SECOND).max(MIN_CHUNK_BYTES))
    }

    /// Takes `bytes` from all the limits, and blocks until the slowest of them lets go on. Asks `go_on`
    /// while it waits.
    ///
    /// # Errors
    /// What `go_on` says; the bytes count as taken.
    pub fn acquire<E>(&self, bytes: u64, go_on: impl Fn() -> Result<(), E>) -> Result<(), E> {
        let begun = Instant::now();
        let limited = self.0.iter().map(|rate| (rate, rate.reserve(bytes, begun)));
        // Where nothing is limited, this allocates nothing.
        let places: Vec<_> = limited.filter(|(rate, _)| rate.limit().is_some()).collect();
        loop {
            let now = Instant::now();
            let waits = places.iter().map(|(rate, place)| rate.wait_time(*place, now));
            match waits.max() {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(wait) => std::thread::sleep(wait.min(POLL_INTERVAL)),
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
    fn new_limiter(limit: u64) -> (RateLimiter, Instant) {
        let rate = RateLimiter::new(None);
        let now = Instant::now();
        rate.set_limit(Some(limit), now);
        (rate, now)
    }

    #[test]
    fn a_buffer_waits_for_its_transmission_time() {
        let (rate, t) = new_limiter(MB);
        let place = rate.reserve(MB / 2, t);
        assert_eq!(rate.wait_time(place, t), ms(500));
        assert_eq!(rate.wait_time(place, t + ms(200)), ms(300));
        assert_eq!(rate.wait_time(place, t + ms(500)), Duration::ZERO);
        // One that is much more than a second's worth, and one behind it.
        let (large, behind) = (rate.reserve(4 * MB, t + ms(500)), rate.reserve(MB, t + ms(500)));
        assert_eq!(rate.wait_time(large, t + ms(500)), ms(4000));
        assert_eq!(rate.wait_time(behind, t + ms(500)), ms(5000));
        assert_eq!(rate.reserved_bytes(), 5 * MB + MB / 2);
    }

    #[test]
    fn reservations_are_granted_in_order() {
        let (rate, t) = new_limiter(10 * MB);
        let places: Vec<u64> = (0..10).map(|_| rate.reserve(MB, t)).collect();
        for (i, place) in places.into_iter().enumerate() {
            assert_eq!(rate.wait_time(place, t), ms(100 * (i as u64 + 1)));
        }
    }

    #[test]
    fn a_changed_limit_applies_to_waiting_reservations() {
        let (rate, t) = new_limiter(MB);
        let place = rate.reserve(10 * MB, t);
        rate.set_limit(Some(4 * MB), t + ms(2000));
        assert_eq!(rate.wait_time(place, t + ms(2000)), ms(2000));
        rate.set_limit(Some(0), t + ms(3000));
        assert_eq!(rate.wait_time(place, t + ms(60_000)), Duration::MAX);
        rate.set_limit(Some(8 * MB), t + ms(60_000));
        assert_eq!(rate.wait_time(place, t + ms(60_000)), ms(500), "time at nought pays nothing");
        rate.set_limit(None, t + ms(60_100));
        assert_eq!((rate.wait_time(place, t + ms(60_100)), rate.limit()), (Duration::ZERO, None));
        // What went through without a limit is not owed afterwards.
        rate.reserve(1000 * MB, t + ms(60_150));
        rate.set_limit(Some(MB), t + ms(60_200));
        let place = rate.reserve(MB, t + ms(60_200));
        assert_eq!(rate.wait_time(place, t + ms(60_200)), ms(1000));
    }

    #[test]
    fn an_idle_limiter_accumulates_at_most_one_burst() {
        let (rate, t) = new_limiter(8 * MB);
        let later = t + Duration::from_secs(3600);
        let (first, second) = (rate.reserve(MB, later), rate.reserve(MB, later));
        assert_eq!(rate.wait_time(first, later), Duration::ZERO);
        assert_eq!(rate.wait_time(second, later), ms(125));
        // Also where nobody looked in between.
        let later = later + Duration::from_secs(3600);
        let place = rate.reserve(8 * MB, later);
        assert_eq!(rate.wait_time(place, later), ms(875));
    }

    #[test]
    fn throttled_time_is_counted() {
        let (rate, t) = new_limiter(MB);
        rate.reserve(MB / 2, t + ms(1000));
        assert_eq!(
            rate.throttled_time(t + ms(3000)),
            ms(375),
            "half a second, an eighth was saved up"
        );
        rate.reserve(5 * MB, t + ms(3000));
        assert_eq!(rate.throttled_time(t + ms(4000)), ms(1375));
        rate.set_limit(Some(0), t + ms(4000));
        assert_eq!(rate.throttled_time(t + ms(6000)), ms(3375));
        rate.set_limit(None, t + ms(6000));
        assert_eq!(rate.throttled_time(t + ms(9000)), ms(3375));
    }

    #[test]
    fn the_slowest_limiter_applies_and_all_limiters_count() {
        let (slow, fast) =
            (Arc::new(RateLimiter::new(Some(MB))), Arc::new(RateLimiter::new(Some(64 * MB))));
        let free = Arc::new(RateLimiter::default());
        let pace = Limiters::new(vec![slow.clone(), free.clone()]).with(fast.clone());
        assert_eq!(pace.max_chunk_bytes(), Some(MB / 32));
        assert_eq!(Limiters::new(vec![free.clone()]).max_chunk_bytes(), None);
        let since = Instant::now();
        pace.acquire(MB / 4, || Ok::<(), ()>(())).unwrap();
        assert!(since.elapsed() >= ms(100), "{:?}", since.elapsed());
        assert_eq!(
            [slow.reserved_bytes(), free.reserved_bytes(), fast.reserved_bytes()],
            [MB / 4; 3]
        );
        assert_eq!(pace.acquire(1000 * MB, || Err("cancelled")), Err("cancelled"));
    }

    proptest! {
        /// Several takers that wait for their places and take again at once, but come late at times.
        #[test]
        fn throughput_equals_the_limit_while_there_is_demand(
            limit in 1000u64..(4 << 30),
            thousandths in proptest::collection::vec(1u64..2000, 1..5),
            late in proptest::collection::vec(0u64..60_000_000, 50..200),
        ) {
            let (rate, t) = new_limiter(limit);
            let sizes: Vec<u64> = thousandths.iter().map(|n| (limit * n / 1000).max(1)).collect();
            let mut places: Vec<u64> = sizes.iter().map(|size| rate.reserve(*size, t)).collect();
            let (mut now, mut through) = (t, 0);
            for late in late {
                now += Duration::from_nanos(late);
                for (size, place) in sizes.iter().zip(&mut places) {
                    while rate.wait_time(*place, now).is_zero() {
                        through += size;
                        *place = rate.reserve(*size, now);
                    }
                }
                let (all, most) = (bytes_in(limit, now - t), bytes_in(limit, MAX_BURST) + 1);
                prop_assert!(through <= all + most, "{} of {}", through, all);
                // What waits may lack no more than its last byte.
                let waiting: u64 = sizes.iter().sum();
                prop_assert!(through + waiting + 1 >= all, "{} of {}", through, all);
            }
        }
    }
}
