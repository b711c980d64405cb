//! Limits on bytes per second. A sender reserves bytes from a [`RateLimiter`] and waits until they are granted.
//!
//! A buffer may be larger than the bytes of a second, so it is reserved as a whole, and its sender waits
//! until its position in the sequence of reserved bytes is granted: senders are granted in the order of their
//! reservations, and a change of the limit applies to all waiting ones.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The idle time that can be used later: long enough for a thread that is scheduled late, too short for a visible burst.
const MAX_BURST: Duration = Duration::from_millis(125);
/// The longest sleep, so that cancellation and a changed limit take effect immediately.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Content is sent in this number of chunks per second, so that slow streams are smooth.
const CHUNKS_PER_SECOND: u64 = 32;
/// The minimum size of such a chunk.
const MIN_CHUNK_BYTES: u64 = 16 << 10;
/// The value of [`RateLimiter::limit`] without a limit.
const UNLIMITED: u64 = u64::MAX;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A limit on bytes per second that several threads share; it can be changed while they use it. Without
/// a limit, a reservation is one addition.
#[derive(Debug)]
pub struct RateLimiter {
    /// Bytes per second; [`UNLIMITED`] for none.
    limit: AtomicU64,
    /// All bytes that were ever reserved. Positions in the queue are values of this counter.
    reserved: AtomicU64,
    grants: Mutex<Grants>,
}

#[derive(Debug)]
struct Grants {
    /// Bytes granted so far, comparable with [`RateLimiter::reserved`].
    granted: u64,
    updated_at: Instant,
    /// The total time in which a reservation waited.
    throttled: Duration,
}

impl Default for RateLimiter {
    fn default() -> Self {
        RateLimiter::new(None)
    }
}

impl RateLimiter {
    /// A limiter with `limit` bytes per second; `None`: unlimited.
    pub fn new(limit: Option<u64>) -> Self {
        let grants = Grants { granted: 0, updated_at: Instant::now(), throttled: Duration::ZERO };
        RateLimiter {
            limit: AtomicU64::new(limit.unwrap_or(UNLIMITED)),
            reserved: AtomicU64::new(0),
            grants: Mutex::new(grants),
        }
    }

    /// The limit, in bytes per second.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
    }

    /// All bytes that were ever reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// The total time up to `now` in which a reservation waited.
    pub fn throttled_time(&self, now: Instant) -> Duration {
        self.refill(now).throttled
    }

    /// Changes the limit at `now`, also for waiting reservations. With a limit of 0 all of them wait for the next change.
    pub fn set_limit(&self, limit: Option<u64>, now: Instant) {
        let mut grants = self.refill(now);
        if self.limit().is_none() {
            (grants.granted, grants.updated_at) = (self.reserved_bytes(), now);
        }
        self.limit.store(limit.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// Reserves `bytes` and returns their position in the queue, for `wait_time`.
    pub fn reserve(&self, bytes: u64, now: Instant) -> u64 {
        if self.limit().is_some() {
            // Limits unused grants to [`MAX_BURST`].
            drop(self.refill(now));
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes)
    }

    /// The time from `now` until `position` is granted.
    fn wait_time(&self, position: u64, now: Instant) -> Duration {
        if self.limit().is_none() {
            return Duration::ZERO;
        }
        let grants = self.refill(now);
        let missing = position.saturating_sub(grants.granted);
        match self.limit.load(Ordering::Relaxed) {
            _ if missing == 0 => Duration::ZERO,
            0 => Duration::MAX,
            limit => duration_for(u128::from(missing), limit)
                .saturating_sub(now.duration_since(grants.updated_at)),
        }
    }

    /// Grants the bytes of the time up to `now`.
    fn refill(&self, now: Instant) -> MutexGuard<'_, Grants> {
        let mut grants = self.grants.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        let elapsed = now.saturating_duration_since(grants.updated_at);
        let bytes = elapsed.as_nanos() * u128::from(limit) / NANOS_PER_SECOND;
        let waiting = self.reserved_bytes().saturating_sub(grants.granted);
        if limit == 0 || limit == UNLIMITED {
            if limit == 0 && waiting > 0 {
                grants.throttled += elapsed;
            }
            grants.updated_at = grants.updated_at.max(now);
        } else if bytes > 0 {
            grants.throttled += duration_for(u128::from(waiting), limit).min(elapsed);
            let max_granted = self.reserved_bytes().saturating_add(bytes_in(limit, MAX_BURST));
            grants.granted =
                grants.granted.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            if grants.granted >= max_granted {
                (grants.granted, grants.updated_at) = (max_granted, now);
            } else {
                // The remaining fraction of a byte is granted with the next one.
                grants.updated_at += duration_for(bytes, limit).min(elapsed);
            }
        }
        grants
    }
}

/// The transmission time of `bytes`, rounded up.
fn duration_for(bytes: u128, limit: u64) -> Duration {
    let nanos = bytes.saturating_mul(NANOS_PER_SECOND).div_ceil(u128::from(limit.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The bytes that can be sent in `time`.
fn bytes_in(limit: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(limit) * time.as_nanos() / NANOS_PER_SECOND).unwrap_or(u64::MAX)
}

/// All limiters of one stream of content. Without a limiter it has no cost.
#[derive(Debug, Clone, Default)]
pub struct Limiters(Vec<Arc<RateLimiter>>);

impl Limiters {
    /// Combines `limiters`.
    pub fn new(limiters: Vec<Arc<RateLimiter>>) -> Self {
        Limiters(limiters)
    }

    /// Adds `limiter`.
    pub fn with(mut self, limiter: Arc<RateLimiter>) -> Self {
        self.0.push(limiter);
        self
    }

    /// The maximum content of one write, in bytes: small for a low limit, so that
    /// no stream pauses for long; `None`: any size.
    pub fn max_chunk_bytes(&self) -> Option<u64> {
        let lowest = self.0.iter().filter_map(|limiter| limiter.limit()).min()?;
        Some((lowest / CHUNKS_PER_SECOND).max(MIN_CHUNK_BYTES))
    }

    /// Reserves `bytes` from all limiters, and blocks until all of them grant these. Calls `check_active` while it waits.
    ///
    /// # Errors
    /// The error of `check_active`; the bytes count as reserved.
    pub fn acquire<E>(
        &self,
        bytes: u64,
        check_active: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let start = Instant::now();
        let positions = self.0.iter().map(|limiter| (limiter, limiter.reserve(bytes, start)));
        // Without a limit this does not allocate.
        let limited: Vec<_> = positions.filter(|(limiter, _)| limiter.limit().is_some()).collect();
        loop {
            let now = Instant::now();
            let waits = limited.iter().map(|(limiter, position)| limiter.wait_time(*position, now));
            match waits.max() {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(wait) => std::thread::sleep(wait.min(POLL_INTERVAL)),
            }
            check_active()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A decimal megabyte, for round times.
    const MB: u64 = 1_000_000;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A limiter that was created at the returned instant, without unused grants.
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
        // A buffer that is much larger than the bytes of a second, and another one after it.
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
        assert_eq!(rate.wait_time(place, t + ms(60_000)), ms(500), "a limit of 0 grants nothing");
        rate.set_limit(None, t + ms(60_100));
        assert_eq!((rate.wait_time(place, t + ms(60_100)), rate.limit()), (Duration::ZERO, None));
        // Bytes that were sent without a limit do not delay later ones.
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
        // Also without a call in between.
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
            "half a second, without the burst of an eighth"
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
        /// Several senders that reserve again as soon as they are granted, with random delays.
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
                // Waiting bytes may lack at most the last one.
                let waiting: u64 = sizes.iter().sum();
                prop_assert!(through + waiting + 1 >= all, "{} of {}", through, all);
            }
        }
    }
}
