//! The agent: says that it is alive, asks for work, does it, and receives what others send.
//!
//! ```text
//! heart ──▶ master            every few seconds: what we have, what we work on; the ticket key back
//! slot 1…n ──▶ master         poll ─▶ execute ─▶ result
//!             └─▶ peers       offer, pack, range, digest, prune, sweep
//! data server ◀── peers
//! ```
//!
//! - [`hand`]: what is in hand, and until when; [`limits`]: how fast it may be sent; [`next_heartbeat`] (with [`storage_tree`]), [`slots`]: the loops; `reload`: what changes meanwhile
//! - [`execute`]: what executors share; [`scan`] (with [`batch`]), [`copy_batch`] (with [`fates`]), [`transfer_range`],
//!   [`publish`], [`prune`]
//!
//! A stop is in this order: take no more work and say so, hand scans back, end what is in hand or hand
//! it back when the time is up, then close the data server.

pub mod batch;
pub mod batch_outcome;
pub mod concurrency;
pub mod copy;
pub mod corruption_count;
#[cfg(test)]
mod fake_master_tests;
pub mod heartbeat;
pub mod job;
#[cfg(test)]
mod late_reply_tests;
pub mod lease_table;
pub mod limits;
mod preflight;
pub mod prune;
pub mod publish;
pub mod range;
mod reload;
pub mod scan;
pub mod slots;
pub mod storage;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::client::{ClientOptions, MasterClient};
use crate::config::AgentConfig;
use crate::data::{
    ActiveRequests, BufferPools, DataServer, Endpoints, Peers, Roots, ServerContext, TicketVerifier,
};
use crate::fs::DirtyJournal;
use crate::util::boot::boot_id;
use crate::util::shutdown::Shutdown;
use crate::util::units;
use crate::wire::worker::Endpoint;
use concurrency::ConcurrencyController;
use corruption_count::CorruptionCounts;
use heartbeat::Heartbeater;
use job::ExecutorContext;
use lease_table::LeaseTable;
use limits::SendLimits;
use slots::Slots;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// One task may be a scan: another one can always copy.
const MIN_TASKS: usize = 2;
/// Another agent that writes through this one is done once none of its requests came for this long: they follow each
/// other closely.
const REQUESTS_IDLE_TIME: Duration = Duration::from_millis(500);
/// After the drain, results that the master does not take are given up after this.
const RESULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// … and requests of other agents are cut off after this.
const REQUEST_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent that has opened its storage and listens, and does nothing yet.
pub struct Agent {
    config: AgentConfig,
    config_changes: watch::Receiver<AgentConfig>,
    roots: Arc<Roots>,
    server: DataServer,
}

impl Agent {
    /// Opens the storage paths and listens on the data-plane endpoints that are there; the others are taken up when
    /// they come.
    ///
    /// # Errors
    /// An endpoint whose address is there and can't be listened on.
    pub async fn bind(config: AgentConfig) -> anyhow::Result<Self> {
        let (paths, ledger) = (config.storage_paths.clone(), open_dirty_journal(&config));
        let open = move || Roots::open_available(&paths, ledger());
        let roots = tokio::task::spawn_blocking(open).await?;
        let server = DataServer::bind(&config.data_plane_endpoints).await?;
        let changes = watch::channel(config.clone()).1;
        Ok(Agent { config, config_changes: changes, roots: Arc::new(roots), server })
    }

    /// Of a configuration that changes, what [`Reload`](crate::config::Reload) applies takes effect at once.
    pub fn with_config_changes(self, changes: watch::Receiver<AgentConfig>) -> Self {
        Agent { config_changes: changes, ..self }
    }

    /// Where it listens, with the ports that the kernel chose.
    pub fn endpoints(&self) -> &Endpoints {
        self.server.endpoints()
    }

    /// Works until `shutdown`, then ends what is in hand (at most for the configured drain time).
    pub async fn serve(self, client: MasterClient, shutdown: Shutdown) {
        let endpoints = self.server.endpoints().clone();
        let buffers = BufferPools::new(self.config.buffer_memory);
        let (changes, nics) = (self.config_changes, self.server.nics().to_vec());
        let requests = self.server.requests().clone();
        let peers = Peers::new(self.server.nics(), buffers.sending.clone());
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        let gate = Arc::new(TicketVerifier::for_agent(&self.config.worker_id, &incarnation));
        let served = ServerContext { verifier: gate.clone(), roots: self.roots.clone() };
        let closed = Shutdown::new();
        let receiving = buffers.receiving.clone();
        let serving = tokio::spawn(self.server.serve(Arc::new(served), receiving, closed.clone()));
        // Dropped with this future, however it ends.
        let mut serving = AbortOnDropHandle::new(serving);

        let hand = Arc::new(LeaseTable::default());
        let client = Arc::new(client);
        let slots = self.config.slots.max(1);
        let start = crate::config::agent::initial_slots();
        let worker = self.config.worker_id.clone();
        tracing::info!(%worker, slots, endpoints = ?endpoint_authorities(&endpoints.available()), "agent started");
        warn_if_unusable(&self.roots, &endpoints);
        let limits = Arc::new(SendLimits::new(self.config.bwlimit));
        let cx = ExecutorContext {
            worker_id: worker,
            limits: limits.clone(),
            roots: self.roots.clone(),
            ticket_verifier: gate.clone(),
            peers: peers.clone(),
            direct_io: self.config.direct_io,
            corruption_counts: CorruptionCounts::default(),
        };
        let seen = (hand.clone(), limits.clone(), peers);
        let identity = (gate, incarnation);
        let heart =
            Heartbeater::new(self.config, endpoints, self.roots, identity, seen, requests.clone());
        let heart = Arc::new(heart);
        let shared = Arc::new(Slots {
            cx,
            client: client.clone(),
            heartbeater: heart.clone(),
            lease_table: hand.clone(),
            shutdown: shutdown.clone(),
            next_poll_number: AtomicU64::new(0),
            concurrency: ConcurrencyController::new(MIN_TASKS, start, slots),
        });
        // Dropped with this future, and all slots with it.
        let mut slots: JoinSet<()> = (0..slots).map(|slot| shared.clone().run_slot(slot)).collect();
        let work = async { while slots.join_next().await.is_some() {} };
        let applying = reload::apply_config_changes(changes.clone(), &limits, &nics, &heart);
        let beside = async {
            tokio::join!(
                heart.run(&client),
                hand.watch_expiry(),
                shared.adjust_concurrency(),
                applying
            )
        };
        tokio::select! {
            () = run_until_drained(work, &heart, &hand, &requests, &shutdown, &changes) => {}
            _ = beside => {}
        }
        // If it is lost the heartbeat time-out says the same.
        let _ = tokio::time::timeout(Duration::from_secs(2), heart.send_stopped(&client)).await;
        closed.cancel();
        let _ = tokio::time::timeout(REQUEST_DRAIN_TIMEOUT, &mut serving).await;
        tracing::info!(
            buffer_memory = units::format_bytes(buffers.peak_bytes() as u64),
            "agent stopped"
        );
    }
}

/// Binds and serves until `shutdown`.
///
/// # Errors
/// A master URL that can't be used, or see [`Agent::bind`].
pub async fn run(changes: watch::Receiver<AgentConfig>, shutdown: Shutdown) -> anyhow::Result<()> {
    let config = changes.borrow().clone();
    let client = MasterClient::new(config.master_urls.clone(), ClientOptions::default())?;
    Agent::bind(config).await?.with_config_changes(changes).serve(client, shutdown).await;
    Ok(())
}

/// Where it is remembered what was not flushed. An agent that can't remember works all the same.
fn open_dirty_journal(config: &AgentConfig) -> impl FnOnce() -> DirtyJournal + Send + use<> {
    let (dir, worker) = (config.data_dir.clone(), config.worker_id.clone());
    move || {
        let Some(dir) = dir else { return DirtyJournal::default() };
        let file = dir.join(format!("unflushed-{worker}.json"));
        DirtyJournal::open(&file, boot_id()).unwrap_or_else(|e| {
            tracing::warn!(
                "cannot use {}: {e}; after a crash of this host it is unknown what was not flushed; let the \
                 agent's user write there, set another data_dir, or remove what stands there",
                file.display()
            );
            DirtyJournal::default()
        })
    }
}

/// An agent that has no storage, or that nobody can send to, runs for what may come: that must not go unnoticed.
fn warn_if_unusable(roots: &Roots, endpoints: &Endpoints) {
    if roots.all().iter().all(|root| root.open().is_err()) {
        let paths: Vec<String> = roots.all().iter().map(|root| root.path().to_string()).collect();
        tracing::error!(
            "NONE of the storage paths is available ({}): this agent gets no work until one of them is there",
            paths.join(", ")
        );
    }
    if endpoints.available().is_empty() {
        tracing::error!(
            "NONE of the data-plane endpoints is available: no other agent can send to this one until the address \
             of one of them is there"
        );
    }
}

fn endpoint_authorities(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(Endpoint::authority).collect()
}

/// Runs the slots until `shutdown`, and then until they have ended or handed back what they have, and nobody writes
/// through this agent any more.
async fn run_until_drained(
    work: impl Future<Output = ()>,
    heart: &Heartbeater,
    hand: &LeaseTable,
    requests: &ActiveRequests,
    shutdown: &Shutdown,
    config: &watch::Receiver<AgentConfig>,
) {
    tokio::pin!(work);
    tokio::select! {
        _ = work.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    tracing::info!(
        "draining: {} running, {} of other agents",
        units::pluralize(hand.assignment_ids().len() as u64, "task", "tasks"),
        units::pluralize(requests.active() as u64, "request", "requests")
    );
    heart.start_draining();
    hand.return_assignments(true);
    let drain = config.borrow().drain_timeout;
    let all = async {
        tokio::join!(work.as_mut(), requests.wait_idle_for(REQUESTS_IDLE_TIME));
    };
    if tokio::time::timeout(drain, all).await.is_ok() {
        return;
    }
    if hand.is_empty() {
        let requests = units::pluralize(requests.active() as u64, "request", "requests");
        tracing::warn!(
            "{requests} of other agents cut off after {}",
            units::format_duration(drain)
        );
        return;
    }
    tracing::warn!(
        "{} returned unfinished",
        units::pluralize(hand.assignment_ids().len() as u64, "task is", "tasks are")
    );
    hand.return_assignments(false);
    let _ = tokio::time::timeout(RESULT_DRAIN_TIMEOUT, work).await;
}
