//! How fast a sync goes, from how many of its bytes have arrived at different times. Nothing of it is stored.

use std::time::Duration;

/// What was seen longer ago than this has little weight, in milliseconds.
const MEMORY_MS: u64 = 10_000;
/// Bytes are looked at no more often than this, in milliseconds.
const STEP_MS: u64 = 900;
/// Where no byte came for so long the speed is unknown, in milliseconds: four times what agents take between two
/// heartbeats by default.
const STILL_MS: u64 = 20_000;

/// A moving average of bytes per second that starts with the first byte: an exponentially weighted one with
/// weights that add up to one from the first step on (D. P. Kingma, J. Ba, Adam, 2015, section 3).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Speed {
    /// When the bytes were looked at last, on the scheduler's clock, and how many there were.
    mark: Option<(u64, u64)>,
    /// When bytes came last, on the same clock.
    grew_ms: u64,
    /// The weighted sum of bytes per second, and of the weights; empty before the first byte.
    sum: Option<(f64, f64)>,
}

impl Speed {
    /// At `now_ms` so many bytes have arrived altogether. Fewer than before: an attempt failed, and how fast it
    /// was says nothing of the next one.
    pub(super) fn see(&mut self, bytes: u64, now_ms: u64) {
        let Some((at_ms, before)) = self.mark else {
            self.mark = Some((now_ms, bytes));
            return;
        };
        let step_ms = now_ms.saturating_sub(at_ms);
        if step_ms < STEP_MS {
            return;
        }
        self.mark = Some((now_ms, bytes));
        let moved = bytes.saturating_sub(before);
        if moved > 0 {
            self.grew_ms = now_ms;
        } else if bytes < before || now_ms.saturating_sub(self.grew_ms) >= STILL_MS {
            self.sum = None;
        }
        if self.sum.is_none() && moved == 0 {
            return;
        }
        let fresh = moved as f64 * 1000.0 / step_ms as f64;
        let keep = (-(step_ms as f64) / MEMORY_MS as f64).exp();
        let (sum, weight) = self.sum.unwrap_or_default();
        self.sum = Some((sum * keep + fresh * (1.0 - keep), weight * keep + (1.0 - keep)));
    }

    /// Forgets all: nothing is to move for a while.
    pub(super) fn rest(&mut self) {
        *self = Speed::default();
    }

    /// Bytes per second of late; `None` before the first byte, and where none came for a while.
    pub(super) fn rate(&self) -> Option<f64> {
        self.sum.map(|(sum, weight)| sum / weight)
    }

    /// How long `left` more bytes take, to the second and never none; `None` where that is no forecast.
    pub(super) fn time_for(&self, left: u64) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate >= 1.0 && left > 0)?;
        let seconds = (left as f64 / rate).ceil().max(1.0);
        // Longer than 100 years is no forecast.
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
            speed.see(per_second * s, s * 1000);
        }
        (speed, seconds * 1000)
    }

    #[test]
    fn a_steady_speed_is_seen_from_the_first_second_on() {
        for seconds in [1, 2, 30] {
            let (speed, _) = steady(MIB, seconds);
            assert!((speed.rate().unwrap() - MIB as f64).abs() < 1.0, "{seconds}: {speed:?}");
            assert_eq!(speed.time_for(60 * MIB), Some(Duration::from_secs(60)));
        }
    }

    #[test]
    fn the_time_before_the_first_byte_does_not_count() {
        let mut speed = Speed::default();
        for s in 0..60 {
            speed.see(0, s * 1000);
            assert_eq!((speed.rate(), speed.time_for(MIB)), (None, None));
        }
        speed.see(MIB, 60_000);
        assert_eq!(speed.rate(), Some(MIB as f64));
    }

    #[test]
    fn it_falls_where_nothing_moves_and_starts_again_after_a_failed_attempt() {
        let (mut speed, end_ms) = steady(MIB, 30);
        speed.see(30 * MIB, end_ms + 1_000);
        let rate = speed.rate().unwrap();
        assert!(rate > 0.5 * MIB as f64 && rate < MIB as f64, "{rate}");
        speed.see(30 * MIB, end_ms + 19_000);
        assert!(speed.rate().unwrap() < MIB as f64 / 5.0, "{speed:?}");
        speed.see(10 * MIB, end_ms + 20_000);
        assert_eq!(speed.rate(), None);
        speed.see(12 * MIB, end_ms + 21_000);
        assert_eq!(speed.rate(), Some(2.0 * MIB as f64));
    }

    #[test]
    fn it_is_unknown_where_nothing_came_for_a_while_and_starts_again_with_what_comes_then() {
        let (mut speed, end_ms) = steady(MIB, 30);
        for s in 1..STILL_MS / 1000 {
            speed.see(30 * MIB, end_ms + s * 1000);
            assert!(speed.rate().is_some(), "after {s} s");
        }
        speed.see(30 * MIB, end_ms + STILL_MS);
        assert_eq!((speed.rate(), speed.time_for(MIB)), (None, None));
        speed.see(40 * MIB, end_ms + STILL_MS + 1000);
        assert_eq!(speed.rate(), Some(10.0 * MIB as f64));
    }

    #[test]
    fn looks_that_follow_too_fast_are_one_and_a_rest_begins_anew() {
        let (mut speed, end_ms) = steady(MIB, 5);
        let before = speed.clone();
        speed.see(500 * MIB, end_ms + 100);
        assert_eq!(speed, before);
        speed.rest();
        assert_eq!(speed.rate(), None);
    }

    #[test]
    fn there_is_no_forecast_of_nothing_or_of_centuries_and_none_of_less_than_a_second() {
        let (speed, _) = steady(MIB, 5);
        assert_eq!(speed.time_for(0), None);
        assert_eq!(speed.time_for(1), Some(Duration::from_secs(1)));
        assert_eq!(steady(2, 5).0.time_for(u64::MAX), None);
    }
}
