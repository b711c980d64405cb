//! The transfer rate of a sync, from samples of its byte count. Nothing is stored.

use std::time::Duration;

/// Time constant of the average.
const AVERAGING_MS: u64 = 10_000;

pub(super) const MIN_SAMPLE_MS: u64 = 900;

/// Time without bytes after which the rate is unknown: four default heartbeat intervals.
const STALE_RATE_MS: u64 = 20_000;

/// Exponentially weighted moving average of bytes per second, starting with the first byte; its
/// weights add up to one from the first step (D. P. Kingma, J. Ba, Adam, 2015, section 3).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Speed {
    /// Time on the scheduler's clock and byte count.
    last_sample: Option<(u64, u64)>,
    /// On the same clock.
    last_growth_ms: u64,
    /// Weighted sum of rates, and sum of weights; `None` before the first byte.
    weighted_sum: Option<(f64, f64)>,
}

impl Speed {
    /// Adds a sample. Fewer bytes than before: an attempt failed, and its rate is not
    /// representative.
    pub(super) fn sample(&mut self, bytes: u64, now_ms: u64) {
        let Some((at_ms, before)) = self.last_sample else {
            self.last_sample = Some((now_ms, bytes));
            return;
        };
        let step_ms = now_ms.saturating_sub(at_ms);
        if step_ms < MIN_SAMPLE_MS {
            return;
        }
        self.last_sample = Some((now_ms, bytes));
        let moved = bytes.saturating_sub(before);
        if moved > 0 {
            self.last_growth_ms = now_ms;
        } else if bytes < before || now_ms.saturating_sub(self.last_growth_ms) >= STALE_RATE_MS {
            self.weighted_sum = None;
        }
        if self.weighted_sum.is_none() && moved == 0 {
            return;
        }
        let fresh = moved as f64 * 1000.0 / step_ms as f64;
        let keep = (-(step_ms as f64) / AVERAGING_MS as f64).exp();
        let (sum, weight) = self.weighted_sum.unwrap_or_default();
        self.weighted_sum = Some((sum * keep + fresh * (1.0 - keep), weight * keep + (1.0 - keep)));
    }

    /// Bytes per second; `None` before the first byte and after a long time without bytes.
    pub(super) fn rate(&self) -> Option<f64> {
        self.weighted_sum.map(|(sum, weight)| sum / weight)
    }

    /// Time for `left` more bytes, at least a second; `None` if there is no useful estimate.
    pub(super) fn estimate_time(&self, left: u64) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate >= 1.0 && left > 0)?;
        let seconds = (left as f64 / rate).ceil().max(1.0);
        // More than 100 years is no useful estimate.
        (seconds < 3.2e9).then(|| Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn steady(per_second: u64, seconds: u64) -> (Speed, u64) {
        let mut speed = Speed::default();
        for s in 0..=seconds {
            speed.sample(per_second * s, s * 1000);
        }
        (speed, seconds * 1000)
    }

    #[test]
    fn a_steady_rate_is_measured_from_the_first_second() {
        for seconds in [1, 2, 30] {
            let (speed, _) = steady(MIB, seconds);
            assert!((speed.rate().unwrap() - MIB as f64).abs() < 1.0, "{seconds}: {speed:?}");
            assert_eq!(speed.estimate_time(60 * MIB), Some(Duration::from_secs(60)));
        }
    }

    #[test]
    fn the_time_before_the_first_byte_does_not_count() {
        let mut speed = Speed::default();
        for s in 0..60 {
            speed.sample(0, s * 1000);
            assert_eq!((speed.rate(), speed.estimate_time(MIB)), (None, None));
        }
        speed.sample(MIB, 60_000);
        assert_eq!(speed.rate(), Some(MIB as f64));
    }

    #[test]
    fn the_rate_falls_without_progress_and_restarts_after_a_failed_attempt() {
        let (mut speed, end_ms) = steady(MIB, 30);
        speed.sample(30 * MIB, end_ms + 1_000);
        let rate = speed.rate().unwrap();
        assert!(rate > 0.5 * MIB as f64 && rate < MIB as f64, "{rate}");
        speed.sample(30 * MIB, end_ms + 19_000);
        assert!(speed.rate().unwrap() < MIB as f64 / 5.0, "{speed:?}");
        speed.sample(10 * MIB, end_ms + 20_000);
        assert_eq!(speed.rate(), None);
        speed.sample(12 * MIB, end_ms + 21_000);
        assert_eq!(speed.rate(), Some(2.0 * MIB as f64));
    }

    #[test]
    fn the_rate_is_unknown_after_a_long_idle_time_and_restarts_with_the_next_bytes() {
        let (mut speed, end_ms) = steady(MIB, 30);
        for s in 1..STALE_RATE_MS / 1000 {
            speed.sample(30 * MIB, end_ms + s * 1000);
            assert!(speed.rate().is_some(), "after {s} s");
        }
        speed.sample(30 * MIB, end_ms + STALE_RATE_MS);
        assert_eq!((speed.rate(), speed.estimate_time(MIB)), (None, None));
        speed.sample(40 * MIB, end_ms + STALE_RATE_MS + 1000);
        assert_eq!(speed.rate(), Some(10.0 * MIB as f64));
    }

    #[test]
    fn samples_in_quick_succession_count_as_one_and_a_reset_clears_the_rate() {
        let (mut speed, end_ms) = steady(MIB, 5);
        let before = speed.clone();
        speed.sample(500 * MIB, end_ms + 100);
        assert_eq!(speed, before);
        assert_eq!(Speed::default().rate(), None);
    }

    #[test]
    fn no_time_is_estimated_for_zero_bytes_or_centuries_and_the_minimum_is_a_second() {
        let (speed, _) = steady(MIB, 5);
        assert_eq!(speed.estimate_time(0), None);
        assert_eq!(speed.estimate_time(1), Some(Duration::from_secs(1)));
        assert_eq!(steady(2, 5).0.estimate_time(u64::MAX), None);
    }
}
