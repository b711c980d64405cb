//! The agent: reports its resources, polls for work, executes it, and receives what other agents send.
//!
//! ```text
//! heartbeater ──▶ master      every few seconds: resources, assignments; the reply brings the ticket key
//! slot 1…n ──▶ master         poll ─▶ execute ─▶ result
//!             └─▶ peers       offer, pack, range, digest, prune, clean up
//! data server ◀── peers
//! ```
//!
//! - [`lease_table`]: assignments and their deadlines; [`limits`]: bandwidth; [`heartbeat`] (with [`storage`] and
//!   [`storage_checks`]),
//!   [`slots`] (with [`concurrency`]): the loops
//! - [`join`]: the certificate of the agent
//! - [`job`]: what executors share; [`scan`] and [`prune`] (with [`batch`] and [`pages`]), [`copy`] (with
//!   [`batch_outcome`]), [`range`], [`publish`]
//!
//! A shutdown has this order: accept no more work and report that, return scans, finish the other assignments or
//! return them after the drain timeout, then close the data server.

mod batch;
mod batch_outcome;
mod concurrency;
mod copy;
mod corruption_count;
mod heartbeat;
mod job;
mod join;
mod lease_table;
mod limits;
mod pages;
mod preflight;
mod prune;
mod publish;
mod range;
mod scan;
mod slots;
mod storage;
mod storage_checks;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::client::{ClientOptions, MasterClient};
use crate::config::agent::initial_slots;
use crate::config::{AgentConfig, NicConfig};
use crate::data::nics::Nic;
use crate::data::{BufferPools, DataServer, DataTls, Endpoints, Peers, Roots, TicketVerifier};
use crate::fs::sandbox::{self, Confinement};
use crate::fs::{DirtyJournal, ProbeJournal, ProbeRecord};
use crate::identity::{AgentIdentity, IdentityError, PeerConfigs, ServerTrust};
use crate::util::boot::boot_id;
use crate::util::shutdown::Shutdown;
use crate::util::units::{self, pluralize};
use crate::wire::worker::Endpoint;
use concurrency::ConcurrencyController;
use corruption_count::CorruptionCounts;
use heartbeat::Heartbeater;
use job::AgentContext;
use limits::SendLimits;
use slots::Slots;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// One task may be a scan; the other can still copy.
const MIN_TASKS: usize = 2;
/// Another agent has finished its writes through this one when it sent no request for this long: its requests follow
/// each other closely.
const REQUESTS_IDLE_TIME: Duration = Duration::from_millis(500);
/// For results after the drain timeout.
const RESULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// For requests of other agents when the data server closes.
const REQUEST_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const LAST_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// An agent that has opened its storage and listens, but does not work yet.
pub struct Agent {
    config: AgentConfig,
    config_changes: watch::Receiver<AgentConfig>,
    roots: Arc<Roots>,
    probes: ProbeJournal,
    server: DataServer,
    identity: Option<Arc<AgentIdentity>>,
    tls: Option<PeerConfigs>,
}

impl Agent {
    /// Opens the storage paths and listens on the data-plane endpoints that are available. The others are used when
    /// they become available.
    ///
    /// # Errors
    /// An available endpoint can't be listened on.
    pub async fn bind(config_changes: watch::Receiver<AgentConfig>) -> anyhow::Result<Self> {
        let config = config_changes.borrow().clone();
        let (paths, journal) = (config.storage_paths.clone(), open_dirty_journal(&config));
        let probes = open_probe_journal(&config);
        let open = move || (Roots::open_available(&paths, journal()), probes());
        let (roots, probes) = tokio::task::spawn_blocking(open).await?;
        let server = DataServer::bind(&config.data_plane_endpoints).await?;
        let roots = Arc::new(roots);
        Ok(Agent { config, config_changes, roots, probes, server, identity: None, tls: None })
    }

    /// The same, with TLS on the data plane if the agent has a certificate.
    ///
    /// # Errors
    /// TLS cannot be set up.
    fn with_identity(self, identity: Option<&Arc<AgentIdentity>>) -> Result<Self, IdentityError> {
        let tls = identity.map(PeerConfigs::new).transpose()?;
        Ok(Agent { identity: identity.cloned(), tls, ..self })
    }

    /// The endpoints with the ports that the kernel chose.
    #[cfg(test)]
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.server.endpoints
    }

    /// Works until `shutdown`, then finishes its assignments, at most for the drain timeout.
    pub async fn serve(self, client: MasterClient, shutdown: Shutdown) {
        let Agent { config, config_changes, roots, probes, server, identity, tls } = self;
        let (endpoints, nics) = (server.endpoints.clone(), server.nics.clone());
        let requests = server.requests.clone();
        let buffers = BufferPools::new(config.buffer_memory);
        let incarnation = uuid::Uuid::new_v4().simple().to_string();
        let ticket_verifier = TicketVerifier::for_agent(&config.worker_id, &incarnation);
        let ticket_verifier = Arc::new(ticket_verifier.with_run_as(config.run_as.clone()));
        let tls = tls
            .map(|configs| DataTls::new(configs, ticket_verifier.clone(), !config.encrypt_content));
        let peers = Peers::with_tls(&nics, buffers.sending.clone(), tls.clone());
        let close_server = Shutdown::new();
        let serving = server.with_tls(tls).serve(
            ticket_verifier.clone(),
            roots.clone(),
            buffers.receiving.clone(),
            close_server.clone(),
        );
        // Aborted when this future is dropped.
        let mut serving = AbortOnDropHandle::new(tokio::spawn(serving));

        let max_slots = config.slots.max(1);
        let worker_id = config.worker_id.clone();
        let authorities: Vec<String> =
            endpoints.available().iter().map(Endpoint::authority).collect();
        tracing::info!(worker = %worker_id, slots = max_slots, endpoints = ?authorities, "agent started");
        warn_if_unusable(&roots, &endpoints);
        let cx = Arc::new(AgentContext {
            worker_id,
            lease_table: Arc::default(),
            limits: SendLimits::new(config.bwlimit),
            roots,
            ticket_verifier,
            peers,
            endpoints,
            requests,
            direct_io: config.direct_io,
            corruption_counts: CorruptionCounts::default(),
        });
        let slots = Arc::new(Slots {
            heartbeater: Heartbeater::new(config, incarnation, cx.clone(), probes)
                .with_identity(identity),
            cx,
            client,
            shutdown: shutdown.clone(),
            next_poll_number: AtomicU64::new(0),
            concurrency: ConcurrencyController::new(MIN_TASKS, initial_slots(), max_slots),
        });
        let Slots { cx, client, heartbeater, .. } = &*slots;
        // Aborted when this future is dropped.
        let mut running: JoinSet<()> =
            (0..max_slots).map(|slot| slots.clone().run_slot(slot)).collect();
        let work = async { while running.join_next().await.is_some() {} };
        let drained = run_and_drain(work, &shutdown, heartbeater, cx, &config_changes);
        let background = async {
            tokio::join!(
                heartbeater.run(client),
                cx.lease_table.watch_expiry(),
                slots.adjust_concurrency(),
                apply_config_changes(config_changes.clone(), &cx.limits, &nics, heartbeater)
            )
        };
        tokio::select! {
            () = drained => {}
            _ = background => {}
        }
        heartbeater.remove_probes().await;
        // Where it is lost, the master detects the stop by its heartbeat timeout.
        let _ = timeout(LAST_HEARTBEAT_TIMEOUT, heartbeater.send_stopped(client)).await;
        close_server.cancel();
        let _ = timeout(REQUEST_DRAIN_TIMEOUT, &mut serving).await;
        let buffer_memory = units::format_bytes(buffers.peak_bytes() as u64);
        tracing::info!(buffer_memory, "agent stopped");
    }
}

/// Binds and serves until `shutdown`.
///
/// # Errors
/// See [`Agent::bind`]; an invalid master URL; [`IdentityError`].
pub async fn run(
    config_changes: watch::Receiver<AgentConfig>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let config = config_changes.borrow().clone();
    log_confinement();
    let trust = config.ca_file.as_deref().map(ServerTrust::from_file).transpose()?;
    let trust = trust.unwrap_or_default();
    let identity = tokio::select! {
        identity = join::obtain_identity(&config) => identity?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let options = ClientOptions { trust, identity: identity.clone(), ..ClientOptions::default() };
    let client = MasterClient::new(config.master_urls.clone(), options.clone())?;
    let renewals = match identity.clone() {
        None => None,
        Some(identity) => Some((identity, MasterClient::new(config.master_urls, options)?)),
    };
    let renewing = async {
        match renewals {
            Some((identity, client)) => join::renew_certificates(identity, client).await,
            None => std::future::pending().await,
        }
    };
    let agent = Agent::bind(config_changes).await?.with_identity(identity.as_ref())?;
    tokio::select! {
        () = agent.serve(client, shutdown) => {}
        () = renewing => {}
    }
    Ok(())
}

fn log_confinement() {
    match sandbox::confinement() {
        None => {}
        Some(Confinement::Unsupported { reason }) => tracing::warn!(
            "this kernel cannot confine the agent to its storage paths, as `sandbox: auto` in its file asks for: {reason}"
        ),
        Some(Confinement::Confined { missing, .. }) => {
            tracing::info!("the kernel confines this agent to its storage paths and its own files");
            for (dir, error) in missing {
                tracing::warn!(
                    "{} could not be opened at the start ({error}): the `sandbox` of this agent hides it until the agent is started again",
                    dir.display()
                );
            }
        }
    }
}

/// The agent also works without a journal.
fn open_dirty_journal(config: &AgentConfig) -> impl FnOnce() -> DirtyJournal + Send + use<> {
    let (dir, worker) = (config.data_dir.clone(), config.worker_id.clone());
    move || {
        let Some(dir) = dir else { return DirtyJournal::default() };
        let file = dir.join(format!("unflushed-{worker}.json"));
        DirtyJournal::open(&file, boot_id().map(str::to_owned)).unwrap_or_else(|e| {
            tracing::warn!(
                "cannot use {}: {e}; after a crash of this host it is unknown what was not flushed; let the \
                 agent's user write there, set another data_dir, or remove what stands there",
                file.display()
            );
            DirtyJournal::default()
        })
    }
}

/// The agent also works without a journal of its probe files.
fn open_probe_journal(config: &AgentConfig) -> impl FnOnce() -> ProbeJournal + Send + use<> {
    let (dir, worker) = (config.data_dir.clone(), config.worker_id.clone());
    let paths = config.storage_paths.clone();
    move || {
        let Some(dir) = dir else { return ProbeJournal::default() };
        let file = dir.join(format!("probes-{worker}.json"));
        let journal = ProbeJournal::open(&file).unwrap_or_else(|e| {
            tracing::warn!(
                "cannot use {}: {e}; files `.ctl-….probe.part` that this agent left in its storage paths when it was \
                 killed stay there; let the agent's user read it, or remove it",
                file.display()
            );
            ProbeJournal::default()
        });
        let paths: Vec<_> = paths.iter().map(|path| &path.local_path).collect();
        for ProbeRecord { path, name, .. } in journal.drop_other_paths(&paths) {
            tracing::warn!(
                "this agent was killed before it removed a file that it had made, and {path} is no storage path of \
                 it any more; remove {} there",
                name.as_str()
            );
        }
        journal
    }
}

/// An agent without storage or endpoints runs until they become available.
fn warn_if_unusable(roots: &Roots, endpoints: &Endpoints) {
    if roots.all.iter().all(|root| root.open().is_err()) {
        let paths: Vec<String> = roots.all.iter().map(|root| root.config.to_string()).collect();
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

/// Applies changes of the configuration while the agent runs. Returns when their sender is dropped.
async fn apply_config_changes(
    mut changes: watch::Receiver<AgentConfig>,
    limits: &SendLimits,
    nics: &[Arc<Nic>],
    heartbeater: &Heartbeater,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        limits.set_agent_limit(config.bwlimit);
        for nic in nics {
            let mut configs = config.data_plane_endpoints.iter();
            if let Some(config) = configs.find(|config| is_config_of(config, nic)) {
                nic.rate.set_limit(config.settings.bwlimit, Instant::now());
            }
        }
        heartbeater.set_interval(config.heartbeat_interval);
        heartbeater.set_labels(config.labels);
    }
}

/// The port of the NIC may have been chosen by the kernel.
fn is_config_of(config: &NicConfig, nic: &Nic) -> bool {
    let (configured, actual) = (&config.endpoint, &nic.endpoint);
    configured.address == actual.address
        && configured.iface == actual.iface
        && (configured.port == Some(0) || configured.authority() == actual.authority())
}

/// Runs the slots until `shutdown`, and then until all assignments have ended or were returned and no other agent
/// writes through this one.
async fn run_and_drain(
    work: impl Future<Output = ()>,
    shutdown: &Shutdown,
    heartbeater: &Heartbeater,
    cx: &AgentContext,
    config: &watch::Receiver<AgentConfig>,
) {
    let AgentContext { lease_table, requests, .. } = cx;
    let count_tasks = |one, many| pluralize(lease_table.assignment_ids().len() as u64, one, many);
    let count_requests = || pluralize(requests.active() as u64, "request", "requests");
    tokio::pin!(work);
    tokio::select! {
        () = work.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    let running = count_tasks("task", "tasks");
    tracing::info!("draining: {running} running, {} of other agents", count_requests());
    heartbeater.start_draining();
    lease_table.return_assignments(true);
    let drain_timeout = config.borrow().drain_timeout;
    let all = async { tokio::join!(work.as_mut(), requests.wait_idle_for(REQUESTS_IDLE_TIME)) };
    if timeout(drain_timeout, all).await.is_ok() {
        return;
    }
    if lease_table.is_empty() {
        let after = units::format_duration(drain_timeout);
        tracing::warn!("{} of other agents cut off after {after}", count_requests());
        return;
    }
    tracing::warn!("{} returned unfinished", count_tasks("task is", "tasks are"));
    lease_table.return_assignments(false);
    let _ = timeout(RESULT_DRAIN_TIMEOUT, work).await;
}
