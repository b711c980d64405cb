//! Telling the master that we are alive, what we have and what we work on; learning the ticket key and
//! what is not ours any more.

use super::lease_table::LeaseTable;
use super::limits::SendLimits;
use super::storage::StorageMonitor;
use crate::client::MasterClient;
use crate::config::AgentConfig;
use crate::data::gate::boottime;
use crate::data::{ActiveRequests, Endpoints, Peers, Roots, TicketVerifier};
use crate::util::backoff::Backoff;
use crate::util::boot::boot_id;
use crate::util::rlimits;
use crate::wire::worker::{NicReport, PROTOCOL_VERSION, WorkerHeartbeat, WorkerStatus};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How soon a heartbeat that failed is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Heartbeats follow each other no faster than this, whatever the master asks for.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// With work in hand they follow each other no slower than this, unless the master asks for less.
const MAX_BUSY_INTERVAL: Duration = Duration::from_millis(1_500);
/// Why an endpoint is not used is told in so many characters.
const MAX_REASON_CHARS: usize = 200;

/// Bytes that came through an endpoint, and how fast.
#[derive(Debug, Default)]
struct ReceiveRate {
    /// All of them, and when they were looked at.
    last_sample: Option<(u64, Instant)>,
    /// In bytes per second.
    bytes_per_second: Option<u64>,
}

impl ReceiveRate {
    /// Takes in that so many came until `now`; bytes per second since the look before.
    fn update(&mut self, received: u64, now: Instant) -> Option<u64> {
        let Some((before, at)) = self.last_sample else {
            self.last_sample = Some((received, now));
            return None;
        };
        let time = now.saturating_duration_since(at);
        if time >= MIN_INTERVAL {
            let came = received.saturating_sub(before);
            self.bytes_per_second = Some((came as f64 / time.as_secs_f64()) as u64);
            self.last_sample = Some((received, now));
        }
        self.bytes_per_second
    }
}

/// The agent's heart.
pub struct Heartbeater {
    config: AgentConfig,
    /// Between two heartbeats, in milliseconds.
    interval_ms: AtomicU64,
    endpoints: Arc<Endpoints>,
    /// Random per process start.
    pub incarnation: String,
    boot_id: Option<String>,
    lease_table: Arc<LeaseTable>,
    ticket_verifier: Arc<TicketVerifier>,
    limits: Arc<SendLimits>,
    peers: Arc<Peers>,
    requests: Arc<ActiveRequests>,
    storage: Arc<StorageMonitor>,
    draining: AtomicBool,
    stopped: AtomicBool,
    /// What came through each endpoint.
    receive_rates: Mutex<BTreeMap<String, ReceiveRate>>,
    /// Whether this process could open nothing more when it was last tried.
    has_shortage: AtomicBool,
    /// What the master understands.
    master_protocol: AtomicU32,
    send_request: Arc<Notify>,
    /// Whether a heartbeat was ever answered.
    is_registered: watch::Sender<bool>,
}

impl Heartbeater {
    /// A heart for an agent that serves `endpoints`.
    pub fn new(
        config: AgentConfig,
        endpoints: Arc<Endpoints>,
        roots: Arc<Roots>,
        (gate, incarnation): (Arc<TicketVerifier>, String),
        (hand, limits, peers): (Arc<LeaseTable>, Arc<SendLimits>, Arc<Peers>),
        requests: Arc<ActiveRequests>,
    ) -> Self {
        let now = Arc::new(Notify::new());
        let storage = StorageMonitor::new(roots, now.clone());
        let interval = u64::try_from(config.heartbeat_interval.as_millis()).unwrap_or(u64::MAX);
        Heartbeater {
            config,
            interval_ms: AtomicU64::new(interval),
            endpoints,
            incarnation,
            boot_id: boot_id(),
            lease_table: hand,
            ticket_verifier: gate,
            limits,
            peers,
            requests,
            storage,
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            receive_rates: Mutex::default(),
            has_shortage: AtomicBool::new(false),
            master_protocol: AtomicU32::new(0),
            send_request: now,
            is_registered: watch::Sender::new(false),
        }
    }

    /// Beats so often from now on.
    pub fn set_interval(&self, interval: Duration) {
        let ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        if self.interval_ms.swap(ms, Ordering::Relaxed) != ms {
            self.send_soon();
        }
    }

    /// Says from now on that the agent takes no more work, and says so at once.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.send_soon();
    }

    /// Says for the last time how the agent stands: nothing in hand, gone.
    ///
    /// # Errors
    /// A sentence.
    pub async fn send_stopped(&self, client: &MasterClient) -> Result<(), String> {
        self.stopped.store(true, Ordering::Relaxed);
        self.send(client).await.map(|_| ())
    }

    /// Beats without waiting for the interval.
    pub fn send_soon(&self) {
        self.send_request.notify_one();
    }

    /// Resolves when a heartbeat was answered.
    pub async fn wait_registered(&self) {
        let mut known = self.is_registered.subscribe();
        // The sender lives as long as `self`.
        let _ = known.wait_for(|known| *known).await;
    }

    /// Beats for as long as it is polled.
    pub async fn run(&self, client: &MasterClient) {
        let mut failures = 0u32;
        let mut busy = MAX_BUSY_INTERVAL;
        let mut master: Option<String> = None;
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        loop {
            self.storage.start_measurements();
            let mut wait = Duration::from_millis(self.interval_ms.load(Ordering::Relaxed));
            match self.send(client).await {
                Ok(sooner) => {
                    wait = wait.min(sooner.unwrap_or(wait));
                    // A master with many to hear of asks for less.
                    busy = sooner.unwrap_or(MAX_BUSY_INTERVAL);
                    let answers = client.last_answering_url();
                    if answers != master {
                        tracing::info!(master = answers, "connected to the master");
                        master = answers;
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
                }
            }
            if failures > 0 {
                // Everybody else here waits until this one is answered; and where leaders come and go, whoever
                // asks too seldom may miss one after the other.
                let again = Backoff::new(RETRY_DELAY, busy.max(MAX_BUSY_INTERVAL) / 2);
                wait = wait.min(again.jittered_delay(failures, seed));
            }
            tokio::select! {
                () = self.wait_for_next(wait, busy) => {}
                // The master answered somebody else of this agent.
                () = client.back_off(wait), if failures > 0 => {}
            }
        }
    }

    /// Waits until the next heartbeat: for `wait`, but no longer than `busy` with work in hand,
    /// because only a heartbeat's reply tells that it is not wanted any more.
    async fn wait_for_next(&self, wait: Duration, busy: Duration) {
        let end = tokio::time::Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            let woken =
                tokio::time::timeout(left.min(busy), self.send_request.notified()).await.is_ok();
            let works = !self.lease_table.is_empty() || self.requests.active() > 0;
            if woken || left <= busy || works {
                return;
            }
        }
    }

    /// One heartbeat; tells when the master wants the next one, if that is soon.
    ///
    /// # Errors
    /// A sentence.
    pub async fn send(&self, client: &MasterClient) -> Result<Option<Duration>, String> {
        let document = self.build_heartbeat();
        let listed = document.assignments.clone();
        let sent = boottime();
        let reply = match client.send_heartbeat(&document).await {
            Ok(reply) => reply,
            Err(error) => {
                if error.code() == Some("worker_id_taken") {
                    // Whatever we have is the other agent's.
                    self.lease_table.apply_renewal(&listed, sent, &listed);
                }
                return Err(error.to_string());
            }
        };
        self.lease_table.apply_renewal(&listed, sent, &reply.revoked_assignments);
        if let (Some(key), Some(time)) = (&reply.ticket_key, reply.time) {
            self.ticket_verifier
                .update(key, time)
                .map_err(|e| format!("the master's ticket key: {e}"))?;
        }
        self.limits.apply_heartbeat_limits(&reply.bwlimits);
        self.peers.set_silent(reply.unresponsive_workers);
        self.master_protocol.store(reply.protocol.unwrap_or(0), Ordering::Relaxed);
        self.is_registered.send_replace(true);
        Ok(reply.next_heartbeat_ms.map(|ms| Duration::from_millis(ms).max(MIN_INTERVAL)))
    }

    fn build_heartbeat(&self) -> WorkerHeartbeat {
        let in_hand = self.lease_table.assignment_ids();
        let seen = self.storage.snapshot();
        let master = self.master_protocol.load(Ordering::Relaxed);
        let stopped = self.stopped.load(Ordering::Relaxed);
        let status = if stopped && master >= 5 {
            WorkerStatus::Stopped
        } else if seen.available.is_empty() || self.check_shortage() {
            WorkerStatus::Error
        } else if self.draining.load(Ordering::Relaxed) {
            WorkerStatus::Draining
        } else if in_hand.is_empty() {
            WorkerStatus::Idle
        } else {
            WorkerStatus::Transferring
        };
        WorkerHeartbeat {
            worker_id: self.config.worker_id.clone(),
            status,
            storage_paths: seen.available,
            data_plane_endpoints: self.endpoints.available(),
            timestamp: None,
            control_plane_address: self.config.control_plane_address.clone(),
            incarnation: Some(self.incarnation.clone()),
            boot_id: self.boot_id.clone(),
            free_bytes: seen.free_bytes,
            assignments: in_hand,
            moved_bytes: if master >= 5 { self.lease_table.moved_bytes() } else { BTreeMap::new() },
            incoming_requests: match u32::try_from(self.requests.active()) {
                Ok(n) if master >= 5 => n,
                _ => 0,
            },
            slots: Some(u32::try_from(self.config.slots).unwrap_or(u32::MAX)),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            protocol: Some(PROTOCOL_VERSION),
            usage: self.limits.usage_by_sync(),
            nics: if master >= 3 { self.nic_reports(master) } else { Vec::new() },
            unavailable_paths: seen.unavailable,
            unavailable_endpoints: self.endpoints.unavailable(),
            root_ids: seen.root_ids,
        }
    }

    /// Whether this process can open nothing more: then it is given nothing until it can.
    fn check_shortage(&self) -> bool {
        let shortage = rlimits::detect_resource_exhaustion();
        let was = self.has_shortage.swap(shortage.is_some(), Ordering::Relaxed);
        match &shortage {
            Some((_, why)) if !was => tracing::error!("{why}; it accepts no work until it can"),
            None if was => tracing::info!("this agent can open files again"),
            _ => {}
        }
        shortage.is_some()
    }

    fn nic_reports(&self, master: u32) -> Vec<NicReport> {
        let mut incoming = self.receive_rates.lock();
        let now = Instant::now();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let all = self.peers.nics().into_iter();
        let unavailable = self.endpoints.unavailable();
        let why_unavailable = |endpoint: &str| {
            let lost = unavailable.iter().find(|lost| lost.endpoint == endpoint)?;
            Some(format!("unavailable, {}", lost.reason))
        };
        let report = all.map(|(nic, state)| NicReport {
            receive_rate: {
                let before = incoming.entry(nic.endpoint.authority());
                let rate = before.or_default().update(nic.counter.received(), now);
                rate.filter(|_| master >= 5)
            },
            endpoint: nic.endpoint.authority(),
            iface: nic.endpoint.iface.clone(),
            sent: nic.counter.sent(),
            received: nic.counter.received(),
            connections: count(nic.open_connections()),
            requests: count(state.requests),
            goodput: state.goodput.map(|bytes| bytes as u64),
            disabled_reason: why_unavailable(&nic.endpoint.authority())
                .or(state.unavailable_reason)
                .map(|why| why.chars().take(MAX_REASON_CHARS).collect()),
        });
        report.collect()
    }
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
