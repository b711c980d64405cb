//! Delays between retries.

use std::time::Duration;

/// Delays that double with each failure, up to a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first failure.
    pub first: Duration,
    /// The maximum delay.
    pub max: Duration,
}

impl Backoff {
    /// Delays from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Backoff { first, max }
    }

    /// The delay after `failures` consecutive failures: zero for none, `first` for one, doubled
    /// for each further one, at most `max`.
    pub fn delay(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }

    /// [`delay`](Self::delay) reduced by up to a quarter, so that clients that failed at the same time do not
    /// retry at the same time. The same `seed` and count give the same delay; each caller passes a different
    /// seed (a random number, or a hash of its name).
    pub fn jittered_delay(&self, failures: u32, seed: u64) -> Duration {
        let full = self.delay(failures);
        let share = (mix_bits(seed ^ u64::from(failures).rotate_left(32)) >> 40) as f64;
        full.mul_f64(1.0 - share / (1u64 << 24) as f64 / 4.0)
    }
}

/// Maps similar numbers to distant ones (the finalizer of SplitMix64).
fn mix_bits(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

    #[test]
    fn delays_double_up_to_the_limit() {
        let ms: Vec<u128> = (0..9).map(|n| BACKOFF.delay(n).as_millis()).collect();
        assert_eq!(ms, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(BACKOFF.delay(u32::MAX), BACKOFF.max);
    }

    #[test]
    fn jitter_stays_within_a_quarter_and_differs_between_callers() {
        let all: std::collections::BTreeSet<_> =
            (0..100).map(|s| BACKOFF.jittered_delay(4, s)).collect();
        assert!(all.len() > 90, "only {} different delays", all.len());
        for d in all {
            assert!(d <= BACKOFF.delay(4) && d >= BACKOFF.delay(4).mul_f64(0.7499), "{d:?}");
        }
        assert_eq!(BACKOFF.jittered_delay(4, 7), BACKOFF.jittered_delay(4, 7));
        assert_eq!(BACKOFF.jittered_delay(0, 7), Duration::ZERO);
    }
}
