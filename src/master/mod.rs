//! The master: it decides, and remembers what it decided.
//!
//! - [`http`]: the API
//! - [`handle`]: the typed way from the API to the owner
//! - `reign`: following and leading, among several masters
//! - `seat`: which of the two it is at the moment
//! - `owner`: the loop that owns the state
//! - `listing`, `failures`: what became of each file, what failed, read back
//! - `submission`, `faults`: requests checked, with all that is wrong with them
//!
//! Order of a start: bind and answer, follow, lead, load. Order of a stop: the API answers what it has, then
//! the owner commits what it has and ends its reign.

mod failures;
mod faults;
pub mod handle;
pub mod http;
mod listing;
mod name_key;
mod owner;
mod reign;
mod seat;
mod submission;

pub use handle::Handle;

use crate::config::{MasterConfig, StoreConfig};
use crate::scheduler::Settings;
use crate::store::{EmbeddedStore, Installation, Location, RedisStore, Spool, Store, StoreError};
use crate::wire::options::PartNameKey;
use anyhow::Context as _;
use http::HttpLimits;
use name_key::NameKeyFile;
use reign::Reigns;
use seat::{Identity, Seat, Why};
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
const RECORDS: &str = "records";
/// Open files that are left for other things than connections.
const OTHER_FILES: usize = 64;
/// Connections that wait to be accepted; the system has a limit of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 8_192;

/// A master that serves.
pub struct Master {
    url: String,
    handle: Handle,
    running: JoinHandle<anyhow::Result<()>>,
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
        let spool = Spool::at(config.data_dir.join(RECORDS));
        let names = NameKeyFile::in_dir(&config.data_dir);
        let name_key = names.read();
        let begin = Begin { spool, secret: None, name_key, names, shutdown, lists_failures: true };
        match &config.store {
            StoreConfig::Redis { url, options: setup, namespace, allow_volatile } => {
                let installation =
                    Installation::of(config.installation.as_deref(), &config.data_dir)?;
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
                begin.with(open, changes).await
            }
            StoreConfig::Embedded { dir } => {
                // What is wrong with it is wrong for good.
                let store = Arc::new(EmbeddedStore::open(Location::File(dir.clone()))?);
                begin.with(move || ready(Ok(Arc::clone(&store))), changes).await
            }
        }
    }

    /// As [`FakeMaster::root_identity`], for this process only, on a store that nobody else has: it leads when this
    /// returns, keeps no file beyond its end, and [`FakeMaster::url`] has a random component, without which
    /// nothing is served. Other users of the host can reach its port, and could else have files copied
    /// with the rights of this process. The names of unfinished files are computed with `part_name_key`, as the
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
        let (spool, names) = (Spool::passing(), NameKeyFile::default());
        // Nobody can ask for them after its end, and its store is in memory.
        let lists_failures = false;
        let name_key = Some(name_key);
        let begin = Begin { spool, secret, name_key, names, shutdown, lists_failures };
        let config = watch::channel(config.clone()).1;
        let mut master = begin.with(move || ready(Ok(Arc::clone(&store))), config).await?;
        tokio::select! {
            led = master.handle.leads() => led,
            ended = &mut master.running => ended.context("the master's task")??,
        }
        Ok(master)
    }

    /// Where the API is, e.g. `http://127.0.0.1:8888`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The way to the owner without HTTP.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the end: after its shutdown, or because it must not go on.
    ///
    /// # Errors
    /// The store can't be used (any more), or another master has the name of this one.
    pub async fn stopped(self) -> anyhow::Result<()> {
        self.running.await.context("the master's task")?
    }
}

/// What a master begins with beside its configuration.
struct Begin {
    spool: Spool,
    secret: Option<String>,
    name_key: Option<PartNameKey>,
    names: NameKeyFile,
    shutdown: CancellationToken,
    /// Failures are listed by name.
    lists_failures: bool,
}

impl Begin {
    async fn with<S, F>(
        self,
        open: impl Fn() -> F + Send + Sync + 'static,
        changes: watch::Receiver<MasterConfig>,
    ) -> anyhow::Result<Master>
    where
        S: Store,
        F: Future<Output = Result<Arc<S>, StoreError>> + Send + 'static,
    {
        let Begin { spool, secret, name_key, names, shutdown, lists_failures } = self;
        let config = &changes.borrow().clone();
        let listener = listen(config.listen).with_context(|| {
            format!("listen on {}: choose another with --listen ADDR:PORT", config.listen)
        })?;
        let address = listener.local_addr().context("read the bound address")?;
        let advertised = config.advertise_url.clone().or_else(|| advertised(address));
        // Unique to this master: whoever has the address on this host is it, or its successor.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let place = advertised.clone().unwrap_or_else(|| format!("http://{address}"));
        let name = format!("{host} {place}");
        let (seat, seen) =
            watch::channel(Seat::Nobody(Why::Change("this master has just started")));
        let identity = Identity { name: name.clone(), store: config.store.location() };
        let handle = Handle::new(seen, identity, spool.clone());
        let limits = HttpLimits {
            // An agent counts its lease from before its poll was sent: most of it must be left.
            max_wait: config.poll_wait_max.min(config.lease / 3),
            secret: secret.clone(),
            advertise_url: config.advertise_url.clone(),
            connections: room_for(config.limits.max_connections),
            ..HttpLimits::default()
        };
        adjust(&limits, config);
        let mut first = Settings { name_key, ..settings(config) };
        if !lists_failures {
            first.max_failed_entries = 0;
        }
        let (tell_settings, settings) = watch::channel(first);
        let applying = tokio::spawn(apply_changes(changes, limits.clone(), tell_settings));
        let reigns = Reigns {
            name,
            url: advertised,
            lease: config.leadership_lease,
            settings,
            spool,
            names,
            seat,
            shutdown: shutdown.clone(),
            api_ended: CancellationToken::new(),
        };
        tracing::info!(%address, "API listening");
        let applying = AbortOnDropHandle::new(applying);
        let serving = serve(reigns, open, listener, handle.clone(), limits, shutdown);
        let running = tokio::spawn(async move {
            let _applying = applying;
            serving.await
        });
        let url = match secret {
            Some(secret) => format!("http://{address}/{secret}"),
            None => format!("http://{address}"),
        };
        Ok(Master { url, handle, running })
    }
}

/// Where others reach a master that listens there, if that can be said.
fn advertised(address: SocketAddr) -> Option<String> {
    (!address.ip().is_unspecified()).then(|| format!("http://{address}"))
}

/// Serves until `shutdown`.
///
/// # Errors
/// As [`FakeMaster::root_identity`] and [`FakeMaster::cancelled_error`].
pub async fn run(
    config: watch::Receiver<MasterConfig>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Master::start(config, shutdown).await?.stopped().await
}

/// Passes on what of the configuration changes.
async fn apply_changes(
    mut changes: watch::Receiver<MasterConfig>,
    limits: HttpLimits,
    tell: watch::Sender<Settings>,
) {
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        adjust(&limits, &config);
        // The key for names is of this process, not of the configuration.
        tell.send_modify(|now| {
            let name_key = now.name_key.take();
            *now = Settings { name_key, ..settings(&config) };
        });
    }
    // A task that waits for a change waits for ever.
    std::future::pending::<()>().await;
}

/// Sets what may be changed at any time.
fn adjust(limits: &HttpLimits, config: &MasterConfig) {
    let bytes = usize::try_from(config.limits.max_file_list_bytes).unwrap_or(usize::MAX);
    limits.submit_bytes.store(bytes, Ordering::Relaxed);
    limits.default_chunk_mb.store(config.defaults.chunk_size_mb, Ordering::Relaxed);
}

async fn serve<S, F>(
    reigns: Reigns,
    open: impl Fn() -> F + Send + Sync + 'static,
    listener: TcpListener,
    handle: Handle,
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
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How many connections there may be of those that are `wanted`: the limit of open files is raised as far
/// as the system lets us, and some are left for the store and for files.
fn room_for(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let enough = (wanted + OTHER_FILES) as u64;
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
    let room = usize::try_from(have).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(16);
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

fn settings(config: &MasterConfig) -> Settings {
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
