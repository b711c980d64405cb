//! The master: it decides what is copied, and stores each decision before it replies.
//!
//! - `http`: the API
//! - `listeners`, `authority`: its addresses, TLS, and the certificate authority
//! - `handle`, `requests`, `channel`: from the API to the state actor
//! - `election`, `leadership`, `leader_lease`: leader election among several masters
//! - `state_actor`, `pending_commit`: the loop that applies events to the state and commits the effects
//! - `file_records`, `failure_reader`: reading recorded outcomes and failures
//! - `audit`: the log of changes and denials
//! - `submit_validation`, `validation_errors`: validation of requests
//!
//! Order of a start: bind the address and answer, follow, lead, load the state. Order of a stop: the API completes
//! accepted requests, then the state actor commits and releases the lease.

mod admin_token;
mod audit;
mod authority;
mod channel;
mod election;
mod failure_reader;
mod file_records;
mod handle;
mod http;
mod leader_lease;
mod leadership;
mod listeners;
mod name_key;
mod pending_commit;
mod requests;
mod state_actor;
mod submit_validation;
#[cfg(test)]
mod testing;
mod validation_errors;

use crate::audit::Origin;
use crate::config::{MasterConfig, StoreConfig};
use crate::identity::Sealer;
use crate::scheduler::Settings;
use crate::store::{
    EmbeddedStore, Installation, RedisStore, RedisStoreConfig, Spool, Store, StoreError,
};
use crate::util::heap::release_free_memory;
use crate::util::rlimits;
use crate::wire::options::PartNameKey;
use admin_token::AdminTokenFile;
use anyhow::Context as _;
use audit::AuditHandle;
use authority::{MasterAuthority, fetch_authority};
use election::LeaderElection;
use handle::MasterHandle;
use http::HttpLimits;
use leadership::{LeadershipStatus, MasterIdentity, NoLeaderReason};
use listeners::Listeners;
use name_key::NameKeyFile;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The directory of file records in the data directory.
const RECORDS_DIR: &str = "records";
/// File descriptors that are not used for connections.
const RESERVED_FILE_DESCRIPTORS: usize = 64;
const MIN_CONNECTIONS: usize = 16;

/// A running master.
pub struct Master {
    url: String,
    handle: MasterHandle,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Master {
    /// Binds the addresses and answers requests from then on: with the URL of the leader while another master leads, with
    /// 503 while none does. The changes to the configuration that [`Reload`](crate::config::Reload) applies take effect
    /// at once.
    ///
    /// # Errors
    /// An address cannot be bound, TLS cannot be set up, the embedded store cannot be used, or the key that seals secrets
    /// cannot be read.
    pub async fn start(
        config: watch::Receiver<MasterConfig>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let current = config.borrow().clone();
        let name_key_file = NameKeyFile::in_dir(&current.data_dir);
        let load_installation =
            || Installation::load(current.installation.as_deref(), &current.data_dir);
        let changes = config.clone();
        let open_audit = |installation: &Installation| {
            let origin = Origin { installation: installation.name().to_owned(), host: host_name() };
            AuditHandle::start(&current.data_dir, origin, changes)
                .context("start the thread of the audit log")
        };
        let mut startup = MasterStartup {
            spool: Spool::in_dir(current.data_dir.join(RECORDS_DIR)),
            audit: AuditHandle::default(),
            path_secret: None,
            name_key: name_key_file.load(),
            sealer: Sealer::load(
                current.secrets_file.as_deref(),
                current.credentials_dir.as_deref(),
                &current.data_dir,
            )?,
            name_key_file,
            admin_token_file: AdminTokenFile::in_dir(&current.data_dir),
            max_failed_entries: None,
            config,
            shutdown,
        };
        match current.store.clone() {
            StoreConfig::Redis { url, options, namespace, allow_volatile } => {
                let installation = load_installation()?;
                startup.audit = open_audit(&installation)?;
                let redis = Arc::new(RedisStoreConfig {
                    url: url.expose().to_owned(),
                    options,
                    namespace,
                    allow_volatile,
                    installation,
                });
                let open = move || {
                    let redis = Arc::clone(&redis);
                    async move { RedisStore::connect(&redis).await.map(Arc::new) }
                };
                startup.start(open).await
            }
            StoreConfig::Embedded { dir } => {
                // Not repeated: only an operator can correct an error here.
                let store = Arc::new(EmbeddedStore::open(&dir)?);
                startup.audit = open_audit(&load_installation()?)?;
                startup.start(move || ready(Ok(Arc::clone(&store)))).await
            }
        }
    }

    /// Starts a master for this process only, on a store that no other process uses. It leads when this returns, and
    /// stores nothing outside of `store`. Its URL has a random path component, without which every request gets 404:
    /// other users of the host can connect to the port, and could have files copied with the rights of this process.
    /// `name_key` derives the names of part files, because the key in `store` ends with this process.
    ///
    /// # Errors
    /// As [`Master::start`], or leadership cannot be acquired.
    pub async fn start_private<S: Store>(
        store: S,
        config: &MasterConfig,
        name_key: PartNameKey,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let startup = MasterStartup {
            spool: Spool::temporary(),
            audit: AuditHandle::default(),
            path_secret: Some(uuid::Uuid::new_v4().simple().to_string()),
            name_key: Some(name_key),
            sealer: Sealer::for_this_process()?,
            name_key_file: NameKeyFile::default(),
            admin_token_file: AdminTokenFile::default(),
            // They would need memory, and cannot be read after this process.
            max_failed_entries: Some(0),
            config: watch::channel(config.clone()).1,
            shutdown,
        };
        let store = Arc::new(store);
        let mut master = startup.start(move || ready(Ok(Arc::clone(&store)))).await?;
        tokio::select! {
            () = master.handle.wait_until_leader() => {}
            ended = &mut master.task => ended.context("the master's task")??,
        }
        Ok(master)
    }

    /// The URL of the first listener of the API, e.g. `http://127.0.0.1:8888`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits until the master has stopped: after its shutdown, or after an error.
    ///
    /// # Errors
    /// The store cannot be used any more, or another master has the same name.
    pub async fn wait_until_stopped(self) -> anyhow::Result<()> {
        self.task.await.context("the master's task")?
    }
}

/// The parameters of a start.
struct MasterStartup {
    config: watch::Receiver<MasterConfig>,
    spool: Spool,
    audit: AuditHandle,
    path_secret: Option<String>,
    name_key: Option<PartNameKey>,
    sealer: Sealer,
    name_key_file: NameKeyFile,
    admin_token_file: AdminTokenFile,
    /// `None`: the default of the scheduler.
    max_failed_entries: Option<u64>,
    shutdown: CancellationToken,
}

impl MasterStartup {
    async fn start<S, F>(
        self,
        open: impl Fn() -> F + Send + Sync + 'static,
    ) -> anyhow::Result<Master>
    where
        S: Store,
        F: Future<Output = Result<Arc<S>, StoreError>> + Send + 'static,
    {
        let config = &self.config.borrow().clone();
        if Listeners::need_tls(config) {
            fetch_authority(config, &self.sealer, &open, &self.shutdown).await?;
        }
        let listeners = Listeners::bind(config, &self.sealer)?;
        let advertised = config.advertise_url.clone().or_else(|| listeners.advertised_url());
        // Unique among masters: only one process of a host can be bound to the address.
        let host = host_name();
        let local_url = listeners.url(0);
        let url = advertised.clone().unwrap_or_else(|| local_url.clone());
        let name = format!("{host} {url}");
        let (status, status_receiver) = watch::channel(LeadershipStatus::NoLeader(
            NoLeaderReason::Transition("this master has just started"),
        ));
        let identity = MasterIdentity {
            name: name.clone(),
            store_location: config.store.location(),
            warnings: listeners.warnings,
        };
        let handle = MasterHandle::new(status_receiver, identity, self.spool.clone())
            .with_audit(self.audit.clone());
        let authority = listeners.authority.as_ref().map(|authority| {
            let authorities = Arc::clone(&authority.authorities);
            MasterAuthority::new(authorities, self.sealer.clone(), &config.data_dir).map(Arc::new)
        });
        let authority = authority.transpose()?;
        let limits = HttpLimits {
            max_connections: raise_connection_limit(config.limits.max_connections),
            max_unverified_connections: config.limits.max_unverified_connections,
            max_total_body_bytes: body_budget(config),
            // A lease counts from before the poll was sent: most of it must remain after the poll.
            max_poll_wait: config.poll_wait_max.min(config.lease / 3),
            path_secret: self.path_secret.clone(),
            advertise_url: config.advertise_url.clone(),
            drain_timeout: Duration::from_secs(10),
            config: self.config.clone(),
            authority: listeners.authority,
        };
        let sealer = self.sealer.clone();
        let mut settings =
            Settings { name_key: self.name_key, ..scheduler_settings(config, sealer) };
        if let Some(max) = self.max_failed_entries {
            settings.max_failed_entries = max;
        }
        let (settings, settings_receiver) = watch::channel(settings);
        let apply_changes = apply_config_changes(self.config, settings);
        let apply_changes = AbortOnDropHandle::new(tokio::spawn(apply_changes));
        let election = LeaderElection {
            name,
            url: advertised,
            authority,
            replaces_authority: config.replace_authority.into(),
            lease: config.leadership_lease,
            settings: settings_receiver,
            spool: self.spool,
            audit: self.audit.clone(),
            name_key_file: self.name_key_file,
            admin_token_file: self.admin_token_file,
            status,
            shutdown: self.shutdown.clone(),
            api_ended: CancellationToken::new(),
        };
        let api_ended = election.api_ended.clone();
        let election = election.run(open);
        let api = http::serve(listeners.all, handle.clone(), limits, self.shutdown.clone());
        let shutdown = self.shutdown;
        let release_memory = AbortOnDropHandle::new(tokio::spawn(release_free_memory()));
        let task = tokio::spawn(async move {
            let _background = (apply_changes, release_memory);
            let result = serve_and_lead(election, api, api_ended, shutdown).await;
            self.audit.close().await;
            result
        });
        let url = match self.path_secret {
            Some(secret) => format!("{local_url}/{secret}"),
            None => local_url,
        };
        Ok(Master { url, handle, task })
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Serves until `shutdown`.
///
/// # Errors
/// As [`Master::start`] and [`Master::wait_until_stopped`].
pub async fn run(
    config: watch::Receiver<MasterConfig>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Master::start(config, shutdown).await?.wait_until_stopped().await
}

/// Applies configuration changes to the scheduler.
async fn apply_config_changes(
    mut config: watch::Receiver<MasterConfig>,
    settings: watch::Sender<Settings>,
) {
    while config.changed().await.is_ok() {
        let config = config.borrow_and_update().clone();
        // The keys are not in the configuration.
        settings.send_modify(|current| {
            let (name_key, sealer) = (current.name_key.take(), current.sealer.clone());
            *current = Settings { name_key, ..scheduler_settings(&config, sealer) };
        });
    }
    // Keeps `settings` open: the state actor waits for its changes.
    std::future::pending::<()>().await;
}

/// Runs the election and the API until both have ended. The end of one ends the other.
async fn serve_and_lead(
    election: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    api: impl Future<Output = ()> + Send + 'static,
    api_ended: CancellationToken,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut election = tokio::spawn(election);
    let mut api = tokio::spawn(api);
    let result = tokio::select! {
        result = &mut election => result,
        _ = &mut api => {
            api_ended.cancel();
            election.await
        }
    };
    if !api.is_finished() {
        shutdown.cancel();
        let _ = api.await;
    }
    result.context("the task of the leader election")?
}

/// Raises the limit of open files. Returns how many of the `wanted` connections fit.
fn raise_connection_limit(wanted: usize) -> usize {
    let Some(files) = rlimits::raise_open_files_limit() else { return wanted };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let possible = files.saturating_sub(RESERVED_FILE_DESCRIPTORS).max(MIN_CONNECTIONS);
    if possible < wanted {
        tracing::info!(
            connections = possible,
            wanted,
            "the limit of open files allows fewer connections than limits.max_connections; \
             raise it (LimitNOFILE) for more than that"
        );
    }
    possible.min(wanted)
}

/// The memory for request bodies, in bytes: the longest one fits.
fn body_budget(config: &MasterConfig) -> usize {
    let limits = &config.limits;
    let bytes = limits.max_total_body_bytes.max(limits.max_file_list_bytes);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn scheduler_settings(config: &MasterConfig, sealer: Sealer) -> Settings {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Settings {
        lease_ms: ms(config.lease),
        heartbeat_timeout_ms: ms(config.worker_heartbeat_timeout),
        window_tasks: config.limits.window_tasks,
        max_retries: config.defaults.max_retries,
        max_worker_losses: config.defaults.max_worker_losses,
        no_space_ms: ms(config.limits.no_space_timeout),
        retention_ms: ms(config.retention),
        max_active_syncs: config.limits.max_active_syncs,
        max_queued_syncs: config.limits.max_queued_syncs,
        max_workers: config.limits.max_workers,
        bwlimit: config.bwlimit.clone(),
        zone: jiff::tz::TimeZone::system(),
        storages: config.storages.clone(),
        ..Settings::new(sealer)
    }
}
