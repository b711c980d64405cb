//! Heartbeats: they report the resources and the work of this agent. The replies renew or revoke its leases and
//! bring ticket keys, tickets, ended syncs and limits.

use super::job::AgentContext;
use super::storage::StorageMonitor;
use super::storage_checks::StorageChecker;
use crate::client::MasterClient;
use crate::config::AgentConfig;
use crate::data::ticket_verifier::boottime;
use crate::fs::ProbeJournal;
use crate::identity::AgentIdentity;
use crate::util::backoff::Backoff;
use crate::util::boot::boot_id;
use crate::util::rlimits;
use crate::wire::AbsPath;
use crate::wire::problem::ProblemCode;
use crate::wire::worker::{NicReport, PROTOCOL_VERSION, WorkerHeartbeat, WorkerStatus};
use crate::wire::worker_selector::Labels;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The first delay after a failed heartbeat.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Lower bound of the interval, even where the master asks for less.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Upper bound of the interval during work, unless the master asks for more.
const MAX_BUSY_INTERVAL: Duration = Duration::from_millis(1_500);
const MAX_REASON_CHARS: usize = 200;

/// The receive rate of an endpoint, measured between heartbeats.
#[derive(Debug, Default)]
struct ReceiveRate {
    last_sample: Option<(u64, Instant)>,
    bytes_per_second: Option<u64>,
}

impl ReceiveRate {
    /// Adds the sample of all bytes `received` until `now`, and returns the rate since the last one.
    fn update(&mut self, received: u64, now: Instant) -> Option<u64> {
        if let Some((before, at)) = self.last_sample {
            let time = now.saturating_duration_since(at);
            if time < MIN_INTERVAL {
                return self.bytes_per_second;
            }
            let bytes = received.saturating_sub(before);
            self.bytes_per_second = Some((bytes as f64 / time.as_secs_f64()) as u64);
        }
        self.last_sample = Some((received, now));
        self.bytes_per_second
    }
}

pub(super) struct Heartbeater {
    config: AgentConfig,
    /// Its certificate, if it has joined with one.
    identity: Option<Arc<AgentIdentity>>,
    /// Random for each process.
    pub(super) incarnation: String,
    boot_id: Option<String>,
    cx: Arc<AgentContext>,
    storage: Arc<StorageMonitor>,
    storage_checks: Arc<StorageChecker>,
    labels: Mutex<Labels>,
    /// Storage paths that the master does not use.
    refused_paths: Mutex<Vec<AbsPath>>,
    interval_ms: AtomicU64,
    draining: AtomicBool,
    stopped: AtomicBool,
    /// By endpoint.
    receive_rates: Mutex<BTreeMap<String, ReceiveRate>>,
    /// As of the last check.
    has_shortage: AtomicBool,
    send_request: Arc<Notify>,
    /// A master has accepted a heartbeat.
    is_registered: watch::Sender<bool>,
}

impl Heartbeater {
    pub(super) fn new(
        config: AgentConfig,
        incarnation: String,
        cx: Arc<AgentContext>,
        probes: ProbeJournal,
    ) -> Self {
        let send_request = Arc::new(Notify::new());
        let roots = &cx.roots;
        Heartbeater {
            interval_ms: AtomicU64::new(millis(config.heartbeat_interval)),
            labels: Mutex::new(config.labels.clone()),
            refused_paths: Mutex::default(),
            config,
            identity: None,
            incarnation,
            boot_id: boot_id().map(str::to_owned),
            storage: StorageMonitor::new(roots.clone(), send_request.clone()),
            storage_checks: StorageChecker::new(roots.clone(), probes, send_request.clone()),
            cx,
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            receive_rates: Mutex::default(),
            has_shortage: AtomicBool::new(false),
            send_request,
            is_registered: watch::Sender::new(false),
        }
    }

    /// The same; replies say by which authorities its certificate may be issued.
    pub(super) fn with_identity(self, identity: Option<Arc<AgentIdentity>>) -> Self {
        Heartbeater { identity, ..self }
    }

    pub(super) fn set_interval(&self, interval: Duration) {
        let ms = millis(interval);
        if self.interval_ms.swap(ms, Ordering::Relaxed) != ms {
            self.send_soon();
        }
    }

    pub(super) fn set_labels(&self, labels: Labels) {
        let mut current = self.labels.lock();
        if *current != labels {
            *current = labels;
            self.send_soon();
        }
    }

    /// Removes what this agent made to compare storages. From now on it makes no more of it.
    pub(super) async fn remove_probes(&self) {
        self.storage_checks.stop().await;
    }

    /// From now on heartbeats report that the agent accepts no work.
    pub(super) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.send_soon();
    }

    /// Sends the last heartbeat: the agent has no work and stops.
    pub(super) async fn send_stopped(&self, client: &MasterClient) -> Result<(), String> {
        self.stopped.store(true, Ordering::Relaxed);
        self.send(client).await.map(|_| ())
    }

    /// Ends the wait for the next heartbeat.
    pub(super) fn send_soon(&self) {
        self.send_request.notify_one();
    }

    pub(super) async fn wait_registered(&self) {
        // An error means that the sender was dropped, but `self` owns it.
        let _ = self.is_registered.subscribe().wait_for(|registered| *registered).await;
    }

    /// Sends heartbeats. Never returns.
    pub(super) async fn run(&self, client: &MasterClient) {
        let mut failures = 0u32;
        let mut busy_interval = MAX_BUSY_INTERVAL;
        let mut master: Option<String> = None;
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        loop {
            self.storage.start_measurements();
            self.storage.wait_for_first_measurements().await;
            let mut wait = Duration::from_millis(self.interval_ms.load(Ordering::Relaxed));
            match self.send(client).await {
                Ok(requested) => {
                    wait = wait.min(requested.unwrap_or(wait));
                    // A master with many workers asks for a longer interval.
                    busy_interval = requested.unwrap_or(MAX_BUSY_INTERVAL);
                    let connected = client.last_answering_url();
                    if connected != master {
                        tracing::info!(master = connected, "connected to the master");
                        master = connected;
                    } else if failures > 0 {
                        tracing::info!(master, "the master answers again");
                    }
                    failures = 0;
                }
                Err(why) => {
                    if failures == 0 {
                        tracing::warn!("heartbeat failed: {why}");
                    }
                    failures = failures.saturating_add(1);
                    // All other requests wait until a heartbeat succeeds. During repeated elections, an agent with
                    // a longer delay could miss one leader after the other.
                    let max_delay = busy_interval.max(MAX_BUSY_INTERVAL) / 2;
                    let backoff = Backoff::new(RETRY_DELAY, max_delay);
                    wait = wait.min(backoff.jittered_delay(failures, seed));
                }
            }
            tokio::select! {
                () = self.wait_for_next(wait, busy_interval) => {}
                // It also ends when the master answers another request of this agent.
                () = client.back_off(wait), if failures > 0 => {}
            }
        }
    }

    /// Waits for `wait`, but during work at most for `busy_interval`, because only the reply to a heartbeat revokes
    /// an assignment.
    async fn wait_for_next(&self, wait: Duration, busy_interval: Duration) {
        let AgentContext { lease_table, requests, .. } = &*self.cx;
        let end = tokio::time::Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let requested = self.send_request.notified();
            let is_requested =
                tokio::time::timeout(left.min(busy_interval), requested).await.is_ok();
            let works = !lease_table.is_empty() || requests.active() > 0;
            if is_requested || left <= busy_interval || works {
                return;
            }
        }
    }

    /// Sends one heartbeat. Returns the interval that the master asks for, if any; the error is a message.
    pub(super) async fn send(&self, client: &MasterClient) -> Result<Option<Duration>, String> {
        let AgentContext { lease_table, ticket_verifier, limits, peers, .. } = &*self.cx;
        let heartbeat = self.build_heartbeat();
        let sent = boottime();
        let reply = match client.send_heartbeat(&heartbeat).await {
            Ok(reply) => reply,
            Err(error) => {
                let is_lost = [ProblemCode::WorkerIdTaken, ProblemCode::WorkerRevoked]
                    .iter()
                    .any(|code| error.code() == Some(code.as_str()));
                if is_lost {
                    // The assignments belong to other agents.
                    let all = &heartbeat.assignments;
                    lease_table.apply_renewal(all, sent, all);
                }
                return Err(error.to_string());
            }
        };
        lease_table.apply_renewal(&heartbeat.assignments, sent, &reply.revoked_assignments);
        lease_table.replace_tickets(&reply.tickets);
        if let (Some(time), false) = (reply.time, reply.ticket_keys.is_empty()) {
            let updated = ticket_verifier.update(&reply.ticket_keys, time);
            if updated.map_err(|e| format!("the master's ticket keys: {e}"))? {
                // Tickets of running assignments may need to be renewed.
                self.send_soon();
            }
        }
        if let Some(ended) = &reply.ended_syncs {
            ticket_verifier.add_ended_syncs(ended);
        }
        limits.apply_heartbeat_limits(&reply.bwlimits);
        self.warn_of_refused_paths(reply.refused_paths);
        if let Some(identity) = &self.identity {
            identity.compare_authorities(&reply.authorities);
        }
        ticket_verifier.set_revoked_workers(&reply.revoked_workers);
        let mut silent = reply.unresponsive_workers;
        silent.extend(reply.revoked_workers);
        peers.set_silent(silent);
        self.storage_checks.apply(reply.storage_checks);
        self.is_registered.send_replace(true);
        Ok(reply.next_heartbeat_ms.map(|ms| Duration::from_millis(ms).max(MIN_INTERVAL)))
    }

    /// Logs storage paths that the master does not use, once for each change.
    fn warn_of_refused_paths(&self, refused: Vec<AbsPath>) {
        let mut known = self.refused_paths.lock();
        if *known == refused {
            return;
        }
        let paths: Vec<String> = refused.iter().map(ToString::to_string).collect();
        let (paths, worker) = (paths.join(", "), &self.cx.worker_id);
        if paths.is_empty() {
            tracing::info!("the master uses all storage paths of this agent");
        } else {
            tracing::warn!(
                "the join token of this agent did not grant these storage paths, so the master does not use them: \
                 {paths}; join again with: ctl token create --join --worker {worker} --path DIR"
            );
        }
        *known = refused;
    }

    fn build_heartbeat(&self) -> WorkerHeartbeat {
        let assignments = self.cx.lease_table.assignment_ids();
        let storage = self.storage.snapshot();
        let status = if self.stopped.load(Ordering::Relaxed) {
            WorkerStatus::Stopped
        } else if storage.available.is_empty() || self.check_shortage() {
            WorkerStatus::Error
        } else if self.draining.load(Ordering::Relaxed) {
            WorkerStatus::Draining
        } else if assignments.is_empty() {
            WorkerStatus::Idle
        } else {
            WorkerStatus::Transferring
        };
        WorkerHeartbeat {
            worker_id: self.cx.worker_id.clone(),
            status,
            storage_paths: storage.available,
            data_plane_endpoints: self.cx.endpoints.available(),
            timestamp: None,
            control_plane_address: self.config.control_plane_address.clone(),
            incarnation: Some(self.incarnation.clone()),
            boot_id: self.boot_id.clone(),
            free_bytes: storage.free_bytes,
            assignments,
            moved_bytes: self.cx.lease_table.moved_bytes(),
            incoming_requests: count(self.cx.requests.active()),
            slots: Some(count(self.config.slots)),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            protocol: Some(PROTOCOL_VERSION),
            usage: self.cx.limits.usage_by_sync(),
            nics: self.nic_reports(),
            unavailable_paths: storage.unavailable,
            unavailable_endpoints: self.cx.endpoints.unavailable(),
            root_ids: storage.root_ids,
            storages: storage.reports,
            storage_checks: self.storage_checks.reports(),
            labels: self.labels.lock().clone(),
            tickets: self.cx.lease_table.tickets_to_renew(&self.cx.ticket_verifier),
            ended_seen: self.cx.ticket_verifier.ended_seen(),
        }
    }

    /// Whether this process is out of descriptors or memory. It then accepts no work.
    fn check_shortage(&self) -> bool {
        let shortage = rlimits::detect_resource_exhaustion();
        let before = self.has_shortage.swap(shortage.is_some(), Ordering::Relaxed);
        match &shortage {
            Some((_, why)) if !before => tracing::error!("{why}; it accepts no work until it can"),
            None if before => tracing::info!("this agent can open files again"),
            _ => {}
        }
        shortage.is_some()
    }

    fn nic_reports(&self) -> Vec<NicReport> {
        let mut rates = self.receive_rates.lock();
        let now = Instant::now();
        let unavailable = self.cx.endpoints.unavailable();
        let unavailable_reason = |endpoint: &str| {
            let found = unavailable.iter().find(|unavailable| unavailable.endpoint == endpoint)?;
            Some(format!("unavailable, {}", found.reason))
        };
        let mut reports = self.cx.peers.routes.nic_reports();
        for report in &mut reports {
            let rate = rates.entry(report.endpoint.clone()).or_default();
            report.receive_rate = rate.update(report.received, now);
            let reason = unavailable_reason(&report.endpoint).or(report.disabled_reason.take());
            report.disabled_reason =
                reason.map(|reason| reason.chars().take(MAX_REASON_CHARS).collect());
        }
        reports
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receive_rate_is_measured_between_samples_at_least_the_minimum_interval_apart() {
        let (mut incoming, start) = (ReceiveRate::default(), Instant::now());
        let after = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(incoming.update(500, start), None);
        assert_eq!(incoming.update(2_500, after(2_000)), Some(1_000));
        assert_eq!(incoming.update(9_999, after(2_050)), Some(1_000), "too soon");
        assert_eq!(incoming.update(2_500, after(4_000)), Some(0));
    }
}
