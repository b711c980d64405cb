//! What a simulated agent does: heartbeats on time, and in each slot a poll, what it got, its result.
//!
//! Connections are bounded, whatever the master does: each slot has one of its own, on which its requests
//! follow each other, and all heartbeats share a number of *lanes*. A request that waits for its lane
//! counts from when it was due. Without that bound every request that is late opens one more
//! connection, until the kernel looks for a free port among none.

use super::meter::Meters;
use super::tree::Tree;
use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use longhaul::client::{ClientError, ClientOptions, MasterClient};
use longhaul::util::corruption::CorruptionCounter;
use longhaul::wire::task::{
    Assignment, PageAction, RootIdentity, ScanPage, TaskReport, TaskResult, TaskSpec,
};
use longhaul::wire::worker::{PROTOCOL_VERSION, WorkerHeartbeat, WorkerStatus};
use longhaul::wire::{AbsPath, AssignmentId, RequestId, WorkerId};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two heartbeats, and how long a poll waits: as real agents do.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
const POLL_WAIT: Duration = Duration::from_secs(20);
/// Connections that all heartbeats share.
const HEARTBEAT_CONNECTIONS: usize = 512;
/// All slots have begun to poll after this.
const RAMP_UP_TIME: Duration = Duration::from_secs(2);
/// After a request that failed.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Workers that share a storage path that has no part in the sync.
const WORKERS_PER_SITE: usize = 50;

/// What an agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentRole {
    /// The source of the sync.
    Source,
    /// Its destination.
    Destination,
    /// Something else.
    Other(usize),
}

impl AgentRole {
    /// Its storage path.
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
    /// For heartbeats: one request at a time on each.
    heartbeat_clients: Vec<tokio::sync::Mutex<MasterClient>>,
    /// What they measure.
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
    in_hand: Mutex<Vec<AssignmentId>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Agent {
    fn new(number: usize, members: usize) -> Option<Self> {
        let kind = match number {
            n if n >= members => AgentRole::Other((n - members) / WORKERS_PER_SITE),
            n if n % 2 == 0 => AgentRole::Source,
            _ => AgentRole::Destination,
        };
        Some(Agent {
            id: format!("agent-{number:05}.rack-{:03}", number / 40).parse().ok()?,
            path: AbsPath::new(kind.storage_path()).ok()?,
            number,
            in_hand: Mutex::new(Vec::new()),
        })
    }

    fn incarnation(&self) -> String {
        format!("incarnation-{:08}", self.number)
    }

    fn heartbeat(&self, slots: usize) -> WorkerHeartbeat {
        let ip =
            |net: usize| format!("10.{net}.{}.{}:8889", self.number / 250, self.number % 250 + 1);
        let in_hand = locked(&self.in_hand).clone();
        WorkerHeartbeat {
            moved_bytes: Default::default(),
            incoming_requests: 0,
            worker_id: self.id.clone(),
            status: if in_hand.is_empty() {
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
            assignments: in_hand,
            slots: u32::try_from(slots).ok(),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            protocol: Some(PROTOCOL_VERSION),
            usage: Default::default(),
            nics: Vec::new(),
            unavailable_paths: Vec::new(),
            unavailable_endpoints: Vec::new(),
            root_ids: Default::default(),
        }
    }
}

/// A client that is used for one request at a time, and so has one connection.
fn single_connection_client(url: &str) -> Result<MasterClient, ClientError> {
    let options =
        ClientOptions { request_timeout: Duration::from_secs(60), ..ClientOptions::default() };
    MasterClient::new(vec![url.to_owned()], options)
}

impl Fleet {
    /// Agents that have not spoken yet.
    ///
    /// # Errors
    /// A URL that is none.
    pub(crate) fn new(
        url: &str,
        workers: usize,
        members: usize,
        slots: usize,
        tree: Tree,
    ) -> Result<Arc<Self>, ClientError> {
        let lane = |_| single_connection_client(url).map(tokio::sync::Mutex::new);
        Ok(Arc::new(Fleet {
            client: single_connection_client(url)?,
            url: url.to_owned(),
            heartbeat_clients: (0..HEARTBEAT_CONNECTIONS).map(lane).collect::<Result<_, _>>()?,
            meters: Meters::default(),
            agents: (0..workers).filter_map(|number| Agent::new(number, members)).collect(),
            slots,
            tree,
            poll_count: AtomicU64::new(0),
            submitted_at: Mutex::new(HashMap::new()),
        }))
    }

    /// The first heartbeat of each.
    ///
    /// # Errors
    /// One that the master did not take.
    pub(crate) async fn register(self: &Arc<Self>) -> anyhow::Result<()> {
        let beats = stream::iter(&self.agents).map(|agent| async move {
            let beat = agent.heartbeat(self.slots);
            self.heartbeat_client(agent)
                .lock()
                .await
                .send_heartbeat(&beat)
                .await
                .map(drop)
                .context("register")
        });
        beats.buffer_unordered(HEARTBEAT_CONNECTIONS).try_collect().await
    }

    fn heartbeat_client(&self, agent: &Agent) -> &tokio::sync::Mutex<MasterClient> {
        &self.heartbeat_clients[agent.number % HEARTBEAT_CONNECTIONS]
    }

    /// From now on they send heartbeats, and poll; both evenly over time, as agents do that were started
    /// one by one.
    ///
    /// # Errors
    /// A client that can't be made.
    pub(crate) fn start_polling(self: &Arc<Self>) -> Result<(), ClientError> {
        for n in 0..self.agents.len() {
            let place = n as f64 / self.agents.len() as f64;
            let fleet = Arc::clone(self);
            tokio::spawn(async move {
                fleet.send_heartbeats(n, HEARTBEAT_INTERVAL.mul_f64(place)).await
            });
            for _ in 0..self.slots {
                let (fleet, client) = (Arc::clone(self), single_connection_client(&self.url)?);
                tokio::spawn(async move { fleet.run_slot(n, client, place).await });
            }
        }
        Ok(())
    }

    /// Notes that a sync is being submitted: how long it takes to wake an agent is measured.
    pub(crate) fn note_submitted(&self, id: &RequestId) {
        locked(&self.submitted_at).insert(id.clone(), Instant::now());
    }

    async fn send_heartbeats(&self, n: usize, first: Duration) {
        let agent = &self.agents[n];
        let mut beats =
            tokio::time::interval_at(tokio::time::Instant::now() + first, HEARTBEAT_INTERVAL);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let due = Instant::now();
            let lane = self.heartbeat_client(agent).lock().await;
            match lane.send_heartbeat(&agent.heartbeat(self.slots)).await {
                Ok(_) => self.meters.heartbeat.record(due.elapsed()),
                Err(_) => self.meters.failed.record(due.elapsed()),
            }
        }
    }

    /// The life of a slot on its connection. `place` is its share of the time in which the first polls end.
    async fn run_slot(&self, n: usize, client: MasterClient, place: f64) {
        let agent = &self.agents[n];
        let incarnation = agent.incarnation();
        tokio::time::sleep(RAMP_UP_TIME.mul_f64(place)).await;
        let mut wait = Duration::from_secs(1) + POLL_WAIT.mul_f64(place);
        loop {
            let poll = format!("{n}-{}", self.poll_count.fetch_add(1, Ordering::Relaxed));
            let asked = Instant::now();
            let answer =
                client.poll_assignment(&agent.id, wait, Some(&poll), Some(&incarnation)).await;
            wait = POLL_WAIT;
            match answer {
                Ok(None) => {}
                Ok(Some(assignment)) => {
                    self.meters.poll.record(asked.elapsed());
                    locked(&agent.in_hand).push(assignment.assignment_id);
                    self.run_assignment(&client, agent, &assignment).await;
                    locked(&agent.in_hand).retain(|held| *held != assignment.assignment_id);
                }
                Err(_) => {
                    self.meters.failed.record(asked.elapsed());
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn run_assignment(&self, client: &MasterClient, agent: &Agent, assignment: &Assignment) {
        if let Some(at) = locked(&self.submitted_at).remove(&assignment.request_id) {
            self.meters.submit_to_assignment.record(at.elapsed());
        }
        let report = match &assignment.task {
            TaskSpec::Scan { .. } => return self.run_scan(client, agent, assignment).await,
            TaskSpec::Copy { files, dirs, bytes } => {
                let asked = Instant::now();
                match client
                    .fetch_manifest(
                        &agent.id,
                        assignment.assignment_id,
                        &CorruptionCounter::default(),
                    )
                    .await
                {
                    Ok(_) => self.meters.manifest.record(asked.elapsed()),
                    Err(_) => return self.meters.failed.record(asked.elapsed()),
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
        let asked = Instant::now();
        match client.send_result(&result, &CorruptionCounter::default()).await {
            Ok(_) => self.meters.result.record(asked.elapsed()),
            Err(_) => self.meters.failed.record(asked.elapsed()),
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
            let sent = ScanPage {
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
            let asked = Instant::now();
            let reply = client
                .send_scan_page(
                    &agent.id,
                    assignment.assignment_id,
                    &sent,
                    &CorruptionCounter::default(),
                )
                .await;
            let Ok(reply) = reply else { return self.meters.failed.record(asked.elapsed()) };
            self.meters.page.record(asked.elapsed());
            if reply.action != PageAction::Continue {
                return;
            }
            (at, spawn, number) = (page.next, reply.max_subtrees, number + 1);
        }
    }
}
