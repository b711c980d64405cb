//! The passing of time: leases, delays and polls expire, workers become silent.

use super::record_keys::META_KEY;
use super::task::TaskState;
use super::{Now, Reply, State};
use crate::util::repeated_warnings::warn_ratelimited;

/// Minimum interval between two passes over all leases, workers and syncs.
const FULL_TICK_INTERVAL_MS: u64 = 250;

/// Time without heartbeats after which a worker is removed.
const WORKER_RETENTION_MS: u64 = 24 * 3600 * 1000;

impl State {
    /// Expires polls and ends delays. With thousands of polls one expires every few milliseconds,
    /// so the pass over all leases, workers and syncs is less frequent.
    pub(super) fn tick(&mut self, now: Now) {
        for id in self.tasks.due(now.mono_ms) {
            self.store_task_state(id, TaskState::Ready);
        }
        let gap = self.last_tick_ms.map(|at| now.mono_ms.saturating_sub(at));
        if gap.is_none_or(|gap| gap >= FULL_TICK_INTERVAL_MS) {
            self.last_tick_ms = Some(now.mono_ms);
            self.tick_all(gap.unwrap_or(0), now);
        }
        for caller in self.poll_queue.take_expired(now.mono_ms) {
            self.outbox.reply(caller, Reply::Assignment(None));
        }
    }

    /// Expires leases, marks silent workers, drops old syncs; `gap` is the time since the last pass
    /// in milliseconds.
    fn tick_all(&mut self, gap: u64, now: Now) {
        let slept = gap > self.settings.lease_ms / 2;
        let mut ran_out = Vec::new();
        for task in self.tasks.values_mut() {
            match &mut task.state {
                // The master was suspended: the agents could not renew. Renewals since then count
                // from their arrival.
                TaskState::Leased(lease) if slept => {
                    let whole = now.mono_ms.saturating_add(self.settings.lease_ms);
                    lease.deadline_ms = lease.deadline_ms.saturating_add(gap).min(whole);
                }
                TaskState::Leased(lease) if lease.deadline_ms <= now.mono_ms => {
                    ran_out.push((task.id, lease.worker.clone()));
                }
                _ => {}
            }
        }
        for (id, worker) in ran_out {
            let what = "a lease expired: the task is queued again";
            warn_ratelimited!(format_args!("worker {worker}: {what}"), task = %id, %worker, "{what}");
            self.judge_worker(id, &worker, true, now);
            match self.is_holder_silent(id, now) {
                true => self.handle_worker_loss(id, now),
                false => self.requeue_lost(id, now),
            }
        }
        let timeout = self.settings.heartbeat_timeout_ms;
        let slept_ms = if slept { gap } else { 0 };
        if self.keys.advance(now.mono_ms) {
            tracing::info!("the key that signs tickets changed, or an old one ended");
            self.outbox.write_record(META_KEY.to_owned());
        }
        let version = self.workers.version();
        self.workers.mark_silent(now, slept_ms, timeout, WORKER_RETENTION_MS);
        // What only a silent worker could send is sent from the source now.
        self.outbox.request_dispatch_if(self.workers.version() != version);
        self.tick_limits(now);
        self.check_pending_flushes(now);
        self.tick_pauses(now);
        self.tick_speeds(now);
        self.tick_stalls(slept_ms, now);
        self.outbox.request_dispatch_if(self.workers.tick_health(now));
        self.release_ended_syncs(now);
        self.tick_retention(now);
        // A reservation for an isolated task may have ended.
        self.outbox.request_dispatch_if(!self.isolation.is_empty());
    }
}
