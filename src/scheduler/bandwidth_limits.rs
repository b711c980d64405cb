//! Limits on bytes per second: which syncs are limited, and when workers get their shares.

use super::worker_registry::Worker;
use super::{Now, State};
use crate::wire::worker::{BandwidthUsage, HeartbeatReply};
use crate::wire::{RequestId, SyncNo, TaskId, WorkerId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Heartbeat interval of a worker that sends under a limit.
const LIMITED_HEARTBEAT_MS: u64 = 1_000;

/// Heartbeat interval of a worker that works without a limit.
const BUSY_HEARTBEAT_MS: u64 = 1_500;

/// Added to the interval for each share, so that the master is not overloaded.
const HEARTBEAT_MS_PER_SHARE: u64 = 1;

const MAX_HEARTBEAT_MS: u64 = 5_000;

impl State {
    /// The current limit of the whole installation.
    pub(super) fn total_limit(&self, now: Now) -> Option<u64> {
        let time = Timestamp::from_millisecond(now.wall_ms).unwrap_or_default();
        self.settings.bwlimit.limit_at(time, &self.settings.zone)
    }

    /// Registers a worker that was assigned a sending task, so that it gets a share of the limits.
    pub(super) fn ensure_share(&mut self, no: SyncNo, id: &WorkerId, now: Now) {
        self.bandwidth.set_total_limit(self.total_limit(now));
        let Some(sync) = self.syncs.get(no) else { return };
        let own = sync.bwlimit;
        let is_able = self.workers.get(id).is_some_and(Worker::supports_options);
        if is_able && self.bandwidth.set_own_limit(no, own) {
            // Only a new share is compared with those of other workers.
            let peers = match self.bandwidth.granted_to(no, id) {
                Some(_) => 1,
                None => self.capable_workers(sync, sync.source()).count(),
            };
            self.bandwidth.register(no, own, id, peers as u64, now.mono_ms);
        }
    }

    /// Records what a worker sent, and replies with its shares.
    pub(super) fn update_limits(
        &mut self,
        id: &WorkerId,
        usage: BTreeMap<RequestId, BandwidthUsage>,
        reply: &mut HeartbeatReply,
        now: Now,
    ) {
        if !self.workers.get(id).is_some_and(Worker::supports_options) {
            return;
        }
        let held: Vec<TaskId> = self.tasks.held_by(id).map(|task| task.id).collect();
        let sending = self.tasks.held_by(id).filter(|task| task.spec.sends_content());
        let syncs: BTreeSet<SyncNo> = sending.map(|task| task.sync).collect();
        for no in syncs {
            self.ensure_share(no, id, now);
        }
        for (name, usage) in usage {
            let sync = self.syncs.find(&name).map(|s| (s.no, s.bwlimit));
            match sync.filter(|(no, own)| self.bandwidth.set_own_limit(*no, *own)) {
                Some((no, _)) => {
                    if self.bandwidth.report_usage(no, id, usage, now.mono_ms) {
                        self.mark_progress(no, now);
                    }
                }
                None => drop(reply.bwlimits.insert(name, None)),
            }
        }
        for no in self.bandwidth.syncs_of(id) {
            let share = self.bandwidth.grant(no, id, now.mono_ms);
            if let Some(sync) = self.syncs.get(no) {
                reply.bwlimits.insert(sync.id.clone(), share);
                let beat = HEARTBEAT_MS_PER_SHARE * self.bandwidth.share_count() as u64;
                reply.next_heartbeat_ms = Some(beat.clamp(LIMITED_HEARTBEAT_MS, MAX_HEARTBEAT_MS));
            }
        }
        if reply.next_heartbeat_ms.is_none() && !held.is_empty() {
            // A busy worker reports often, so that it learns soon of a cancel.
            let beat = HEARTBEAT_MS_PER_SHARE * self.tasks.worker_count() as u64;
            let soonest =
                if self.is_watched(&held, now) { LIMITED_HEARTBEAT_MS } else { BUSY_HEARTBEAT_MS };
            reply.next_heartbeat_ms = Some(beat.clamp(soonest, MAX_HEARTBEAT_MS));
        }
    }

    /// Applies the timetable and frees the shares of idle workers.
    pub(super) fn tick_limits(&mut self, now: Now) {
        self.bandwidth.set_total_limit(self.total_limit(now));
        if self.bandwidth.share_count() == 0 {
            return;
        }
        let sending = self.tasks.leased().filter(|task| task.spec.sends_content());
        let busy = sending.filter_map(|task| Some((task.sync, task.lease()?.worker.clone())));
        let busy = busy.collect();
        self.bandwidth.expire_idle_shares(&busy, now.mono_ms);
    }
}
