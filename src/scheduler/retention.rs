//! The age of ended syncs is measured in the total uptime of leading masters, not by the wall
//! clock, which may be wrong by years after a restart or on another host.
//!
//! The time without a running master does not count, so a record is kept for at least the
//! retention. A wall clock that differs much from the expected one is a sign of a fault: nothing is
//! dropped until it is plausible again or an operator confirms it. The number of syncs that are
//! dropped in an hour is bounded.

use super::{Now, Reply, State, record_keys};
use crate::wire::SyncNo;
use crate::wire::admin::ConfirmClockReply;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Maximum lead of the wall clock over the expected one: no master may have run for as long.
const MAX_AHEAD_MS: i64 = 14 * 24 * 3600 * 1000;

/// Maximum lag of the wall clock.
const MAX_BEHIND_MS: i64 = 3600 * 1000;

/// Interval at which the uptime is stored: a crash loses at most this much of it.
const STORE_INTERVAL_MS: u64 = 10 * 60 * 1000;

/// Maximum number of ended syncs dropped in an hour; or this fraction of them, if that is more.
const MAX_DROPS_PER_HOUR: usize = 100;

const MAX_DROPPED_FRACTION: usize = 20;

/// Maximum number of dropped syncs named in one log line.
const MAX_LOGGED_NAMES: usize = 20;

pub(super) const HOUR_MS: u64 = 3600 * 1000;

/// The stored part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredClock {
    /// Total uptime of leading masters.
    uptime_ms: u64,
    /// The expected wall clock at that uptime, in milliseconds since 1970.
    wall_ms: i64,
    /// The hour of uptime in which syncs were last dropped, and their number.
    hour: u64,
    dropped: u64,
}

#[derive(Debug)]
pub(super) struct RetentionClock {
    stored: StoredClock,
    /// Time on the scheduler's clock at which `stored` was exact.
    stored_at_ms: u64,
    /// The last plausible wall clock, and its time on the scheduler's clock.
    anchor: (i64, u64),
    is_implausible: bool,
}

impl RetentionClock {
    /// The clock of a new leader, from what the previous one `stored`.
    pub(super) fn start(stored: Option<StoredClock>, now: Now) -> RetentionClock {
        let stored =
            stored.unwrap_or(StoredClock { wall_ms: now.wall_ms, ..StoredClock::default() });
        let anchor = (stored.wall_ms, now.mono_ms);
        RetentionClock { stored, stored_at_ms: now.mono_ms, anchor, is_implausible: false }
    }

    pub(super) fn stored(&self) -> &StoredClock {
        &self.stored
    }

    /// Total uptime of leading masters.
    pub(super) fn uptime_ms(&self, now: Now) -> u64 {
        self.stored.uptime_ms.saturating_add(now.mono_ms.saturating_sub(self.stored_at_ms))
    }

    fn expected_wall_ms(&self, now: Now) -> i64 {
        let since = now.mono_ms.saturating_sub(self.anchor.1);
        self.anchor.0.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }

    /// Lead of the wall clock over the expected one, in milliseconds.
    fn ahead_ms(&self, now: Now) -> i64 {
        now.wall_ms.saturating_sub(self.expected_wall_ms(now))
    }

    /// Accepts the wall clock if it is plausible.
    fn check_wall_clock(&mut self, now: Now) {
        let ahead = self.ahead_ms(now);
        let plausible = (-MAX_BEHIND_MS..=MAX_AHEAD_MS).contains(&ahead);
        if plausible {
            self.anchor = (now.wall_ms, now.mono_ms);
        }
        if std::mem::replace(&mut self.is_implausible, !plausible) != plausible {
            return;
        }
        match plausible {
            true => tracing::info!("the wall clock is plausible again"),
            false => tracing::warn!(
                "the wall clock is {}: no ended sync is dropped until it is right, or until it is confirmed: \
                 ctl admin confirm-clock",
                describe_offset(ahead)
            ),
        }
    }

    fn checkpoint(&mut self, now: Now) {
        let (lived_ms, wall_ms) = (self.uptime_ms(now), self.expected_wall_ms(now));
        self.stored = StoredClock { uptime_ms: lived_ms, wall_ms, ..self.stored };
        self.stored_at_ms = now.mono_ms;
    }

    /// How many of `ended` syncs may still be dropped in this hour.
    fn drop_allowance(&self, ended: usize, now: Now) -> usize {
        let hour = self.uptime_ms(now) / HOUR_MS;
        let dropped = if self.stored.hour == hour { self.stored.dropped } else { 0 };
        let most = MAX_DROPS_PER_HOUR.max(ended / MAX_DROPPED_FRACTION);
        most.saturating_sub(usize::try_from(dropped).unwrap_or(usize::MAX))
    }

    fn count_dropped(&mut self, count: u64, now: Now) {
        let hour = self.uptime_ms(now) / HOUR_MS;
        if std::mem::replace(&mut self.stored.hour, hour) != hour {
            self.stored.dropped = 0;
        }
        self.stored.dropped = self.stored.dropped.saturating_add(count);
    }
}

fn describe_offset(ahead_ms: i64) -> String {
    let by =
        crate::util::units::format_duration(Duration::from_secs(ahead_ms.unsigned_abs() / 1000));
    format!("{by} {} of what is expected", if ahead_ms < 0 { "behind" } else { "ahead" })
}

impl State {
    /// Stores the uptime from time to time and drops expired syncs.
    pub(super) fn tick_retention(&mut self, now: Now) {
        self.retention_clock.check_wall_clock(now);
        if now.mono_ms.saturating_sub(self.retention_clock.stored_at_ms) >= STORE_INTERVAL_MS {
            self.retention_clock.checkpoint(now);
            self.outbox.write_record(record_keys::META_KEY.to_owned());
        }
        self.drop_expired_syncs(now);
    }

    /// Accepts the wall clock as it is.
    pub(super) fn confirm_clock(&mut self, now: Now) -> Reply {
        let ahead_ms = self.retention_clock.ahead_ms(now);
        self.retention_clock.anchor = (now.wall_ms, now.mono_ms);
        self.retention_clock.check_wall_clock(now);
        self.retention_clock.checkpoint(now);
        self.outbox.write_record(record_keys::META_KEY.to_owned());
        tracing::warn!(
            "an operator confirms the wall clock, which is {}",
            describe_offset(ahead_ms)
        );
        Reply::ClockConfirmed(ConfirmClockReply {
            time: Timestamp::from_millisecond(now.wall_ms).unwrap_or_default(),
            ahead_seconds: ahead_ms / 1000,
        })
    }

    /// Drops ended syncs after the retention, the oldest first.
    fn drop_expired_syncs(&mut self, now: Now) {
        if self.retention_clock.is_implausible {
            return;
        }
        let uptime_ms = self.retention_clock.uptime_ms(now);
        let mut old: Vec<(u64, SyncNo)> = Vec::new();
        let mut ended = 0;
        for sync in self.syncs.values() {
            // Those of destinations are dropped with their group.
            let ended_ms = sync.ended_uptime_ms.filter(|_| sync.group().is_none());
            let Some(ended_ms) = ended_ms else { continue };
            ended += 1;
            let age_ms = uptime_ms.saturating_sub(ended_ms);
            if age_ms > self.settings.retention_ms && sync.revoked_leases.is_none() {
                old.push((ended_ms, sync.no));
            }
        }
        old.sort_unstable();
        old.truncate(self.retention_clock.drop_allowance(ended, now));
        if old.is_empty() {
            return;
        }
        let names: Vec<String> = old
            .iter()
            .take(MAX_LOGGED_NAMES)
            .filter_map(|(_, no)| Some(self.syncs.get(*no)?.id.to_string()))
            .collect();
        let kept =
            crate::util::units::format_duration(Duration::from_millis(self.settings.retention_ms));
        tracing::info!(
            count = old.len(),
            syncs = names.join(", "),
            "ended syncs are dropped: they were kept for {kept}"
        );
        self.retention_clock.count_dropped(old.len() as u64, now);
        self.outbox.write_record(record_keys::META_KEY.to_owned());
        let parts = old.iter().flat_map(|(_, no)| self.syncs.destinations_of(*no));
        let all: Vec<SyncNo> = parts.chain(old.iter().map(|(_, no)| *no)).collect();
        for no in all {
            let tasks = self.tasks.ids_of_sync(no);
            tasks.into_iter().for_each(|id| drop(self.remove_task(id)));
            self.remove_sync(no, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_twentieth_of_many_ended_syncs_is_dropped_in_an_hour() {
        let at = |mono_ms: u64| Now { mono_ms, wall_ms: mono_ms as i64 };
        let mut clock = RetentionClock::start(None, at(0));
        for (ended, most) in [(1, 100), (1_999, 100), (2_019, 100), (2_020, 101), (4_000, 200)] {
            assert_eq!(clock.drop_allowance(ended, at(0)), most, "of {ended}");
        }
        clock.count_dropped(150, at(0));
        assert_eq!(clock.drop_allowance(4_000, at(HOUR_MS - 1)), 50);
        assert_eq!(clock.drop_allowance(1, at(HOUR_MS - 1)), 0);
        assert_eq!(clock.drop_allowance(4_000, at(HOUR_MS)), 200);
    }
}
