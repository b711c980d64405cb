//! The master: it decides, and remembers what it decided.
//!
//! - [`http`]: the API
//! - `handle`: the typed way from the API to the owner
//! - `election`: following and leading, among several masters
//! - `leadership`: which of the two it is at the moment
//! - `state_actor`: the loop that owns the state
//! - `file_records`, `failure_reader`: what became of each file, what failed, read back
//! - `submission`, `faults`: requests checked, with all that is wrong with them
//!
//! Order of a start: bind and answer, follow, lead, load. Order of a stop: the API answers what it has, then
//! the owner commits what it has and ends its reign.

mod channel;
mod election;
mod failure_reader;
mod file_records;
pub mod handle;
pub mod http;
mod leadership;
mod name_key;
mod requests;
mod state_actor;
mod submit_validation;
#[cfg(test)]
mod testing;
mod validation_errors;

pub use handle::MasterHandle;

use crate::config::{MasterConfig, StoreConfig};
use crate::scheduler::Settings;
use crate::store::{EmbeddedStore, Installation, Location, RedisStore, Spool, Store, StoreError};
use crate::wire::options::PartNameKey;
use anyhow::Context as _;
use election::LeaderElection;
use http::HttpLimits;
use leadership::{LeadershipStatus, MasterIdentity, NoLeaderReason};
use name_key::NameKeyFile;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Where lists of files are kept, below the data directory.
const RECORDS_DIR: &str = "records";
/// Open files that are left for other things than connections.
const RESERVED_FILE_DESCRIPTORS: usize = 64;
/// Connections that wait to be accepted; the system has a limit of its own (`net.core.somaxconn`).
const LISTEN_BACKLOG: u32 = 8_192;

/// A master that serves.
pub struct Master {
    url: String,
    handle: MasterHandle,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Master {
    /// Binds, and answers from then on: while it follows another master with the way to that one, while
    /// nobody leads with 503. It leads as soon as it may. Of a configuration that changes, what
    /// [`Reload`](crate::config::Reload) applies takes effect at once.
    ///
    /// # Errors
    /// The address can't be bound, or the embedded store can't be used.
    pub async fn start(
        changes: watch::Receiver<MasterConfig>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let config = changes.borrow().clone();
        let spool = Spool::in_dir(config.data_dir.join(RECORDS_DIR));
        let names = NameKeyFile::in_dir(&config.data_dir);
        let name_key = names.load();
        let begin = MasterStartup {
            spool,
            secret: None,
            name_key,
            name_key_file: names,
            shutdown,
            lists_failures: true,
        };
        match &config.store {
            StoreConfig::Redis { url, options: setup, namespace, allow_volatile } => {
                let installation =
                    Installation::load(config.installation.as_deref(), &config.data_dir)?;
                let setup = Arc::new(setup.clone());
                let (at, namespace, volatile) = (url.clone(), namespace.clone(), *allow_volatile);
                let open = move || {
                    let (url, setup, namespace) =
                        (at.clone(), Arc::clone(&setup), namespace.clone());
                    let of = installation.clone();
                    async move {
                        RedisStore::connect(url.expose(), &setup, &namespace, volatile, of)
                            .await
                            .map(Arc::new)
                    }
                };
                begin.start(open, changes).await
            }
            StoreConfig::Embedded { dir } => {
                // What is wrong with it is wrong for good.
                let store = Arc::new(EmbeddedStore::open(Location::Directory(dir.clone()))?);
                begin.start(move || ready(Ok(Arc::clone(&store))), changes).await
            }
        }
    }

    /// As [`Master::start`], for this process only, on a store that nobody else has: it leads when this
    /// returns, keeps no file beyond its end, and [`Master::url`] has a random component, without which
    /// nothing is served. Other users of the host can reach its port, and could else have files copied
    /// with the rights of this process. The names of unfinished files are computed with `name_key`, as the
    /// store ends with this process.
    ///
    /// # Errors
    /// As there, and what it is that kept it from leading.
    pub async fn start_private<S: Store>(
        store: S,
        config: &MasterConfig,
        name_key: PartNameKey,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let secret = Some(uuid::Uuid::new_v4().simple().to_string());
        let store = Arc::new(store);
        let (spool, names) = (Spool::temporary(), NameKeyFile::default());
        // Nobody can ask for them after its end, and its store is in memory.
        let lists_failures = false;
        let name_key = Some(name_key);
        let begin = MasterStartup {
            spool,
            secret,
            name_key,
            name_key_file: names,
            shutdown,
            lists_failures,
        };
        let config = watch::channel(config.clone()).1;
        let mut master = begin.start(move || ready(Ok(Arc::clone(&store))), config).await?;
        tokio::select! {
            led = master.handle.wait_until_leader() => led,
            ended = &mut master.task => ended.context("the master's task")??,
        }
        Ok(master)
    }

    /// Where the API is, e.g. `http://127.0.0.1:8888`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits for the end: after its shutdown, or because it must not go on.
    ///
    /// # Errors
    /// The store can't be used (any more), or another master has the name of this one.
    pub async fn wait_until_stopped(self) -> anyhow::Result<()> {
        self.task.await.context("the master's task")?
    }
}

/// What a master begins with beside its configuration.
struct MasterStartup {
    spool: Spool,
    secret: Option<String>,
    name_key: Option<PartNameKey>,
    name_key_file: NameKeyFile,
    shutdown: CancellationToken,
    /// Failures are listed by name.
    lists_failures: bool,
}

impl MasterStartup {
    async fn start<S, F>(
        self,
        open: impl Fn() -> F + Send + Sync + 'static,
        changes: watch::Receiver<MasterConfig>,
    ) -> anyhow::Result<Master>
    where
        S: Store,
        F: Future<Output = Result<Arc<S>, StoreError>> + Send + 'static,
    {
        let MasterStartup {
            spool,
            secret,
            name_key,
            name_key_file: names,
            shutdown,
            lists_failures,
        } = self;
        let config = &changes.borrow().clone();
        let listener = bind_listener(config.listen).with_context(|| {
            format!("listen on {}: choose another with --listen ADDR:PORT", config.listen)
        })?;
        let address = listener.local_addr().context("read the bound address")?;
        let advertised = config.advertise_url.clone().or_else(|| advertised_url(address));
        // Unique to this master: whoever has the address on this host is it, or its successor.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let place = advertised.clone().unwrap_or_else(|| format!("http://{address}"));
        let name = format!("{host} {place}");
        let (seat, seen) = watch::channel(LeadershipStatus::NoLeader(NoLeaderReason::Transition(
            "this master has just started",
        )));
        let identity =
            MasterIdentity { name: name.clone(), store_location: config.store.location() };
        let handle = MasterHandle::new(seen, identity, spool.clone());
        let limits = HttpLimits {
            // An agent counts its lease from before its poll was sent: most of it must be left.
            max_poll_wait: config.poll_wait_max.min(config.lease / 3),
            path_secret: secret.clone(),
            advertise_url: config.advertise_url.clone(),
            max_connections: raise_connection_limit(config.limits.max_connections),
            ..HttpLimits::default()
        };
        update_http_limits(&limits, config);
        let mut first = Settings { name_key, ..scheduler_settings(config) };
        if !lists_failures {
            first.max_failed_entries = 0;
        }
        let (tell_settings, settings) = watch::channel(first);
        let applying = tokio::spawn(apply_config_changes(changes, limits.clone(), tell_settings));
        let reigns = LeaderElection {
            name,
            url: advertised,
            lease: config.leadership_lease,
            settings,
            spool,
            name_key_file: names,
            status: seat,
            shutdown: shutdown.clone(),
            api_ended: CancellationToken::new(),
        };
        tracing::info!(%address, "API listening");
        let applying = AbortOnDropHandle::new(applying);
        let serving = serve_api_and_lead(reigns, open, listener, handle.clone(), limits, shutdown);
        let running = tokio::spawn(async move {
            let _applying = applying;
            serving.await
        });
        let url = match secret {
            Some(secret) => format!("http://{address}/{secret}"),
            None => format!("http://{address}"),
        };
        Ok(Master { url, handle, task: running })
    }
}

/// Where others reach a master that listens there, if that can be said.
fn advertised_url(address: SocketAddr) -> Option<String> {
    (!address.ip().is_unspecified()).then(|| format!("http://{address}"))
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

/// Passes on what of the configuration changes.
async fn apply_config_changes(
    mut changes: watch::Receiver<MasterConfig>,
    limits: HttpLimits,
    tell: watch::Sender<Settings>,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        update_http_limits(&limits, &config);
        // The key for names is of this process, not of the configuration.
        tell.send_modify(|now| {
            let name_key = now.name_key.take();
            *now = Settings { name_key, ..scheduler_settings(&config) };
        });
    }
    // A task that waits for a change waits for ever.
    std::future::pending::<()>().await;
}

/// Sets what may be changed at any time.
fn update_http_limits(limits: &HttpLimits, config: &MasterConfig) {
    let bytes = usize::try_from(config.limits.max_file_list_bytes).unwrap_or(usize::MAX);
    limits.max_submit_bytes.store(bytes, Ordering::Relaxed);
    limits.default_chunk_mb.store(config.defaults.chunk_size_mb, Ordering::Relaxed);
}

async fn serve_api_and_lead<S, F>(
    reigns: LeaderElection,
    open: impl Fn() -> F + Send + Sync + 'static,
    listener: TcpListener,
    handle: MasterHandle,
    limits: HttpLimits,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    S: Store,
    F: Future<Output = Result<Arc<S>, StoreError>> + Send + 'static,
{
    let api_ended = reigns.api_ended.clone();
    let mut ruling = tokio::spawn(reigns.run(open));
    let mut serving = tokio::spawn(http::serve(listener, handle, limits, shutdown.clone()));
    let ended = tokio::select! {
        ended = &mut ruling => ended,
        _ = &mut serving => {
            api_ended.cancel();
            ruling.await
        }
    };
    if !serving.is_finished() {
        // There is nothing to serve any more.
        shutdown.cancel();
        let _ = serving.await;
    }
    ended.context("the task that leads")?
}

/// Listens, with room for the agents that all come at once when a master starts: with the usual 128 most of
/// them would have to knock again and again, seconds apart.
fn bind_listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// How many connections there may be of those that are `wanted`: the limit of open files is raised as far
/// as the system lets us, and some are left for the store and for files.
fn raise_connection_limit(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let enough = (wanted + RESERVED_FILE_DESCRIPTORS) as u64;
    let raised = limit.maximum.map_or(enough, |most| most.min(enough));
    let have = match limit.current {
        Some(now) if now < raised => {
            let asked = Rlimit { current: Some(raised), maximum: limit.maximum };
            match setrlimit(Resource::Nofile, asked) {
                Ok(()) => raised,
                Err(_) => now,
            }
        }
        Some(now) => now,
        None => enough,
    };
    let room = usize::try_from(have)
        .unwrap_or(usize::MAX)
        .saturating_sub(RESERVED_FILE_DESCRIPTORS)
        .max(16);
    if room < wanted {
        tracing::info!(
            connections = room,
            wanted,
            "the limit of open files allows fewer connections than limits.max_connections; \
             raise it (LimitNOFILE) for more than that"
        );
    }
    room.min(wanted)
}

fn scheduler_settings(config: &MasterConfig) -> Settings {
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
        bwlimit: config.bwlimit.clone(),
        zone: jiff::tz::TimeZone::system(),
        ..Settings::default()
    }
}
