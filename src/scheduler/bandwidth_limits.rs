//! Limits on bytes per second: which syncs have one, who is told his share of it and when.

use super::sync_admin::{refuse, unknown_sync};
use super::sync_job::SyncJob;
use super::worker_registry::Worker;
use super::{Now, Reply, State};
use crate::wire::problem::Problem;
use crate::wire::sync::SyncPatch;
use crate::wire::worker::{BandwidthUsage, HeartbeatReply};
use crate::wire::{RequestId, SyncNo, TaskId, WorkerId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Who sends under a limit is heard about so often, in milliseconds …
const LIMITED_HEARTBEAT_MS: u64 = 1_000;
/// … who works without a limit so often …
const BUSY_HEARTBEAT_MS: u64 = 1_500;
/// … and so much less often for each share that there is, where there are more than that.
const HEARTBEAT_MS_PER_SHARE: u64 = 1;
/// … but at least so often.
const MAX_HEARTBEAT_MS: u64 = 5_000;

impl State {
    /// Changes a sync that has not ended.
    pub(super) fn change_sync(&mut self, id: &RequestId, change: SyncPatch, now: Now) -> Reply {
        let Some(sync) = self.by_id.get(id).and_then(|no| self.syncs.get_mut(no)) else {
            return unknown_sync(id);
        };
        if !sync.is_active() {
            let state = sync.state.as_str();
            let detail =
                format!("sync `{id}` has ended, in state {state}: its limit has no meaning");
            return refuse(Problem::new(409, "Conflict", "sync_ended", detail));
        }
        let no = sync.no;
        if sync.bwlimit != change.bwlimit {
            sync.bwlimit = change.bwlimit;
            self.bandwidth.set_own_limit(no, change.bwlimit);
            self.mark_changed(no, now);
            // Who could not take it, because he knows no limits, may be able to now.
            self.needs_dispatch = true;
        }
        self.progress_reply(id)
    }

    /// The limit of the whole installation now.
    fn total_limit(&self, now: Now) -> Option<u64> {
        let time = Timestamp::from_millisecond(now.wall_ms).unwrap_or_default();
        self.settings.bwlimit.limit_at(time, &self.settings.zone)
    }

    /// A worker was given a task that sends content: it needs a share of what limits that.
    pub(super) fn ensure_share(&mut self, no: SyncNo, id: &WorkerId, now: Now) {
        self.bandwidth.set_total_limit(self.total_limit(now));
        let Some(sync) = self.syncs.get(&no) else { return };
        let own = sync.bwlimit;
        let knows = self.workers.get(id).is_some_and(Worker::supports_limits);
        if knows && self.bandwidth.set_own_limit(no, own) {
            // Only who joins is to be compared with others.
            let joins = self.bandwidth.granted_to(no, id).is_none();
            let peers =
                joins.then(|| self.capable_workers(sync, &sync.request.source_path).count());
            let peers = peers.map_or(1, |n| n as u64);
            self.bandwidth.register(no, own, id, peers, now.mono_ms);
        }
    }

    /// Takes in what a worker sent, and tells it what it may send.
    pub(super) fn update_limits(
        &mut self,
        id: &WorkerId,
        usage: BTreeMap<RequestId, BandwidthUsage>,
        reply: &mut HeartbeatReply,
        now: Now,
    ) {
        if !self.workers.get(id).is_some_and(Worker::supports_limits) {
            return;
        }
        let held: Vec<TaskId> = self.lease_index.held_by(id).collect();
        let sending =
            held.iter().filter_map(|id| self.tasks.get(id)).filter(|t| t.spec.sends_content());
        let syncs: BTreeSet<SyncNo> = sending.map(|t| t.sync).collect();
        for no in syncs {
            self.ensure_share(no, id, now);
        }
        for (name, usage) in usage {
            let sync = self.by_id.get(&name).and_then(|no| self.syncs.get(no));
            let Some((no, own)) = sync.map(|s| (s.no, s.bwlimit)) else {
                reply.bwlimits.insert(name, None);
                continue;
            };
            if self.bandwidth.set_own_limit(no, own) {
                if self.bandwidth.report_usage(no, id, usage, now.mono_ms) {
                    self.mark_progress(no, now);
                }
            } else {
                reply.bwlimits.insert(name, None);
            }
        }
        for no in self.bandwidth.syncs_of(id) {
            let share = self.bandwidth.grant(no, id, now.mono_ms);
            if let Some(sync) = self.syncs.get(&no) {
                reply.bwlimits.insert(sync.id.clone(), share);
                let beat = HEARTBEAT_MS_PER_SHARE * self.bandwidth.share_count() as u64;
                reply.next_heartbeat_ms = Some(beat.clamp(LIMITED_HEARTBEAT_MS, MAX_HEARTBEAT_MS));
            }
        }
        if reply.next_heartbeat_ms.is_none() && !held.is_empty() {
            // Who works hears soon that he shall not: of a cancel, for example.
            let beat = HEARTBEAT_MS_PER_SHARE * self.lease_index.worker_count() as u64;
            let soonest =
                if self.is_watched(&held, now) { LIMITED_HEARTBEAT_MS } else { BUSY_HEARTBEAT_MS };
            reply.next_heartbeat_ms = Some(beat.clamp(soonest, MAX_HEARTBEAT_MS));
        }
    }

    /// Time passed: the timetable may say something else, and who sends no more gives his share back.
    pub(super) fn tick_limits(&mut self, now: Now) {
        self.bandwidth.set_total_limit(self.total_limit(now));
        if self.bandwidth.share_count() == 0 {
            return;
        }
        let leased = self.lease_index.leased_tasks().filter_map(|id| self.tasks.get(&id));
        let sending = leased.filter(|task| task.spec.sends_content());
        let busy = sending.filter_map(|task| Some((task.sync, task.lease()?.worker.clone())));
        let busy = busy.collect();
        self.bandwidth.expire_idle_shares(&busy, now.mono_ms);
    }
}

impl SyncJob {
    /// Whether only workers that know limits may send for it. A limit of the whole installation is no
    /// reason to leave an older agent idle.
    pub(super) fn is_limited(&self) -> bool {
        self.bwlimit.is_some()
    }
}
