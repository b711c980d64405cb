//! A simulated agent: heartbeats in intervals, and in each slot a poll, the requests of the assignment, and its result.
//!
//! The number of connections is limited: each slot has its own, which is used by one request at a time, and all
//! heartbeats share [`HEARTBEAT_CONNECTIONS`]. The latency of a heartbeat counts from when it was due, with the wait
//! for a connection. Without that limit each late request would open another connection, until no port is free.

use super::meter::Meters;
use super::tree::Tree;
use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use longhaul::client::{ClientError, ClientOptions, MasterClient};
use longhaul::util::corruption::CorruptionCounter;
use longhaul::wire::storage::{
    ProbeSecret, StorageCheck, StorageCheckReport, StorageFingerprint, StorageReport,
};
use longhaul::wire::task::{
    Assignment, PageAction, RootIdentity, ScanPage, TaskReport, TaskResult, TaskSpec,
};
use longhaul::wire::worker::{PROTOCOL_VERSION, WorkerHeartbeat, WorkerStatus};
use longhaul::wire::{AbsPath, AssignmentId, RequestId, WorkerId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
const POLL_WAIT: Duration = Duration::from_secs(20);
const HEARTBEAT_CONNECTIONS: usize = 512;
/// The first polls of all slots are distributed over this time.
const RAMP_UP_TIME: Duration = Duration::from_secs(2);
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Workers per storage path that is not used by the sync.
const WORKERS_PER_SITE: usize = 50;

/// The storage path of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentRole {
    /// The source of the sync.
    Source,
    /// Its destination.
    Destination,
    /// Another path.
    Other(usize),
}

impl AgentRole {
    pub(crate) fn storage_path(self) -> String {
        match self {
            AgentRole::Source => "/bench/source".to_owned(),
            AgentRole::Destination => "/bench/destination".to_owned(),
            AgentRole::Other(site) => format!("/bench/site-{site}"),
        }
    }
}

/// All agents.
pub(crate) struct Fleet {
    /// The operator's connection.
    pub(crate) client: MasterClient,
    url: String,
    /// Each is used by one request at a time.
    heartbeat_clients: Vec<tokio::sync::Mutex<MasterClient>>,
    pub(crate) meters: Meters,
    agents: Vec<Agent>,
    slots: usize,
    tree: Tree,
    poll_count: AtomicU64,
    submitted_at: Mutex<HashMap<RequestId, Instant>>,
}

struct Agent {
    id: WorkerId,
    path: AbsPath,
    number: usize,
    assignments: Mutex<Vec<AssignmentId>>,
    /// What the last reply to a heartbeat asked for, so that storages can be compared.
    checks: Mutex<Vec<StorageCheck>>,
}

impl Agent {
    fn new(number: usize, members: usize) -> Option<Self> {
        let role = match number {
            n if n >= members => AgentRole::Other((n - members) / WORKERS_PER_SITE),
            n if n % 2 == 0 => AgentRole::Source,
            _ => AgentRole::Destination,
        };
        Some(Agent {
            id: format!("agent-{number:05}.rack-{:03}", number / 40).parse().ok()?,
            path: AbsPath::new(role.storage_path()).ok()?,
            number,
            assignments: Mutex::new(Vec::new()),
            checks: Mutex::new(Vec::new()),
        })
    }

    fn incarnation(&self) -> String {
        format!("incarnation-{:08}", self.number)
    }

    /// Each path is a network file system that all its agents see.
    fn storage_report(&self) -> StorageReport {
        StorageReport {
            path: self.path.clone(),
            local_path: None,
            declared: None,
            fingerprint: StorageFingerprint {
                fs_type: "lustre".to_owned(),
                mount_source: "10.0.0.1@tcp:/scratch".to_owned(),
                path_in_mount: self.path.to_string(),
                fs_id: "66d23c179d24472f".to_owned(),
                inode: 2,
                birth_time: None,
                device: 40,
                read_only: false,
            },
        }
    }

    fn heartbeat(&self, slots: usize) -> WorkerHeartbeat {
        let ip =
            |net: usize| format!("10.{net}.{}.{}:8889", self.number / 250, self.number % 250 + 1);
        let assignments = self.assignments.lock().clone();
        WorkerHeartbeat {
            moved_bytes: Default::default(),
            incoming_requests: 0,
            worker_id: self.id.clone(),
            status: if assignments.is_empty() {
                WorkerStatus::Idle
            } else {
                WorkerStatus::Transferring
            },
            storage_paths: vec![self.path.clone()],
            data_plane_endpoints: (1..=2).filter_map(|net| ip(net).parse().ok()).collect(),
            timestamp: None,
            control_plane_address: None,
            incarnation: Some(self.incarnation()),
            boot_id: Some(format!("boot-{:08}", self.number)),
            free_bytes: BTreeMap::from([(self.path.to_string(), 1 << 40)]),
            assignments,
            slots: u32::try_from(slots).ok(),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            protocol: Some(PROTOCOL_VERSION),
            usage: Default::default(),
            nics: Vec::new(),
            unavailable_paths: Vec::new(),
            unavailable_endpoints: Vec::new(),
            root_ids: Default::default(),
            storages: vec![self.storage_report()],
            storage_checks: self.checks.lock().iter().map(carry_out).collect(),
            labels: Default::default(),
            tickets: Vec::new(),
            ended_seen: None,
        }
    }
}

/// The probe file is made, and those of the others are found.
fn carry_out(check: &StorageCheck) -> StorageCheckReport {
    StorageCheckReport {
        path: check.path.clone(),
        made: check.make.as_ref().map(ProbeSecret::name),
        found: check.look_for.clone(),
        missing: Vec::new(),
        sample: None,
        error: None,
    }
}

/// A client that is used for one request at a time, and so has one connection.
fn single_connection_client(url: &str) -> Result<MasterClient, ClientError> {
    let options =
        ClientOptions { request_timeout: Duration::from_secs(60), ..ClientOptions::default() };
    MasterClient::new(vec![url.to_owned()], options)
}

impl Fleet {
    /// # Errors
    /// The URL is not valid.
    pub(crate) fn new(
        url: &str,
        workers: usize,
        members: usize,
        slots: usize,
        tree: Tree,
    ) -> Result<Arc<Self>, ClientError> {
        let client = |_| single_connection_client(url).map(tokio::sync::Mutex::new);
        Ok(Arc::new(Fleet {
            client: single_connection_client(url)?,
            url: url.to_owned(),
            heartbeat_clients: (0..HEARTBEAT_CONNECTIONS).map(client).collect::<Result<_, _>>()?,
            meters: Meters::default(),
            agents: (0..workers).filter_map(|number| Agent::new(number, members)).collect(),
            slots,
            tree,
            poll_count: AtomicU64::new(0),
            submitted_at: Mutex::new(HashMap::new()),
        }))
    }

    /// Sends the first heartbeats of each agent, until their storages are compared.
    ///
    /// # Errors
    /// A heartbeat is refused.
    pub(crate) async fn register(self: &Arc<Self>) -> anyhow::Result<()> {
        loop {
            let heartbeats = stream::iter(&self.agents).map(|agent| async move {
                let heartbeat = agent.heartbeat(self.slots);
                let client = self.heartbeat_client(agent).lock().await;
                let reply = client.send_heartbeat(&heartbeat).await.context("register")?;
                let is_compared = reply.storage_checks.is_empty();
                *agent.checks.lock() = reply.storage_checks;
                anyhow::Ok(is_compared)
            });
            let compared: Vec<bool> =
                heartbeats.buffer_unordered(HEARTBEAT_CONNECTIONS).try_collect().await?;
            if !compared.contains(&false) {
                return Ok(());
            }
        }
    }

    fn heartbeat_client(&self, agent: &Agent) -> &tokio::sync::Mutex<MasterClient> {
        &self.heartbeat_clients[agent.number % HEARTBEAT_CONNECTIONS]
    }

    /// Starts the heartbeats and polls, distributed evenly over time, as of agents that were started one by one.
    ///
    /// # Errors
    /// A client cannot be created.
    pub(crate) fn start_polling(self: &Arc<Self>) -> Result<(), ClientError> {
        for n in 0..self.agents.len() {
            let phase = n as f64 / self.agents.len() as f64;
            let fleet = Arc::clone(self);
            tokio::spawn(async move {
                fleet.send_heartbeats(n, HEARTBEAT_INTERVAL.mul_f64(phase)).await
            });
            for _ in 0..self.slots {
                let (fleet, client) = (Arc::clone(self), single_connection_client(&self.url)?);
                tokio::spawn(async move { fleet.run_slot(n, client, phase).await });
            }
        }
        Ok(())
    }

    /// Records the time of a submit, from which the time to the first assignment is measured.
    pub(crate) fn record_submit(&self, id: &RequestId) {
        self.submitted_at.lock().insert(id.clone(), Instant::now());
    }

    async fn send_heartbeats(&self, n: usize, first: Duration) {
        let agent = &self.agents[n];
        let mut interval =
            tokio::time::interval_at(tokio::time::Instant::now() + first, HEARTBEAT_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let due = Instant::now();
            let client = self.heartbeat_client(agent).lock().await;
            match client.send_heartbeat(&agent.heartbeat(self.slots)).await {
                Ok(reply) => {
                    *agent.checks.lock() = reply.storage_checks;
                    self.meters.heartbeat.record(due.elapsed());
                }
                Err(_) => self.meters.failed.record(due.elapsed()),
            }
        }
    }

    /// Runs a slot on its connection. `phase` is from 0 to 1: its position in the time over which the first polls are
    /// distributed.
    async fn run_slot(&self, n: usize, client: MasterClient, phase: f64) {
        let agent = &self.agents[n];
        let incarnation = agent.incarnation();
        tokio::time::sleep(RAMP_UP_TIME.mul_f64(phase)).await;
        let mut wait = Duration::from_secs(1) + POLL_WAIT.mul_f64(phase);
        loop {
            let poll = format!("{n}-{}", self.poll_count.fetch_add(1, Ordering::Relaxed));
            let start = Instant::now();
            let reply =
                client.poll_assignment(&agent.id, wait, Some(&poll), Some(&incarnation)).await;
            wait = POLL_WAIT;
            match reply {
                Ok(None) => {}
                Ok(Some(assignment)) => {
                    self.meters.poll.record(start.elapsed());
                    agent.assignments.lock().push(assignment.assignment_id);
                    self.run_assignment(&client, agent, &assignment).await;
                    agent.assignments.lock().retain(|held| *held != assignment.assignment_id);
                }
                Err(_) => {
                    self.meters.failed.record(start.elapsed());
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn run_assignment(&self, client: &MasterClient, agent: &Agent, assignment: &Assignment) {
        if let Some(start) = self.submitted_at.lock().remove(&assignment.request_id) {
            self.meters.submit_to_assignment.record(start.elapsed());
        }
        let report = match &assignment.task {
            TaskSpec::Scan { .. } => return self.run_scan(client, agent, assignment).await,
            TaskSpec::Copy { files, dirs, bytes } => {
                let start = Instant::now();
                match client
                    .fetch_manifest(
                        &agent.id,
                        assignment.assignment_id,
                        &CorruptionCounter::default(),
                    )
                    .await
                {
                    Ok(_) => self.meters.manifest.record(start.elapsed()),
                    Err(_) => return self.meters.failed.record(start.elapsed()),
                }
                let writers = &assignment.destination_workers;
                let writer = writers.get(agent.number / 2 % writers.len().max(1));
                TaskReport {
                    files_done: *files,
                    dirs_done: *dirs,
                    bytes_done: *bytes,
                    bytes_sent: *bytes,
                    writers: writer.map(|member| member.worker_id.clone()).into_iter().collect(),
                    ..TaskReport::default()
                }
            }
            _ => TaskReport::default(),
        };
        let result = TaskResult {
            request_id: assignment.request_id.clone(),
            worker_id: agent.id.clone(),
            success: true,
            message: None,
            assignment_id: Some(assignment.assignment_id),
            attempt: Some(assignment.attempt),
            task_digest: Some(assignment.task_digest),
            report: Some(report),
        };
        let start = Instant::now();
        match client.send_result(&result, &CorruptionCounter::default()).await {
            Ok(_) => self.meters.result.record(start.elapsed()),
            Err(_) => self.meters.failed.record(start.elapsed()),
        }
    }

    async fn run_scan(&self, client: &MasterClient, agent: &Agent, assignment: &Assignment) {
        let single = assignment.request_id.as_str().starts_with("wake");
        let (mut at, mut spawn, mut number) = (Some(assignment.task.clone()), 0, 0);
        while let Some(spec) = at {
            let page = if single {
                Some(self.tree.single_batch_page())
            } else {
                self.tree.page(&spec, spawn)
            };
            let Some(page) = page else { return };
            let scan_page = ScanPage {
                task_digest: assignment.task_digest,
                page: number,
                work: page.work,
                subtrees: page.spawn,
                errors: Vec::new(),
                unlisted_dirs: 0,
                root: None,
                root_identity: (number == 0).then_some(RootIdentity { device: 1, inode: 1 }),
                pruned: None,
                allowance_used_up: false,
                warnings: BTreeMap::new(),
                records: Vec::new(),
                integrity_errors: 0,
                next: page.next.clone(),
            };
            let start = Instant::now();
            let reply = client
                .send_scan_page(
                    &agent.id,
                    assignment.assignment_id,
                    &scan_page,
                    &CorruptionCounter::default(),
                )
                .await;
            let Ok(reply) = reply else { return self.meters.failed.record(start.elapsed()) };
            self.meters.page.record(start.elapsed());
            if reply.action != PageAction::Continue {
                return;
            }
            (at, spawn, number) = (page.next, reply.max_subtrees, number + 1);
        }
    }
}
