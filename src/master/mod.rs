//! The master: it decides, and remembers what it decided.
//!
//! - [`http`]: the API
//! - [`handle`]: the typed way from the API to the owner
//! - `owner`: the loop that owns the state
//! - `listing`: what became of each file, read back
//! - `submission`, `faults`: requests checked, with all that is wrong with them
//!
//! Order of a start: bind, lead, load, serve. Order of a stop: the API answers what it has, then the
//! owner commits what it has and ends its reign.

mod faults;
pub mod handle;
pub mod http;
mod listing;
mod owner;
mod submission;

pub use handle::Handle;

use crate::config::{MasterConfig, StoreConfig};
use crate::scheduler::{Settings, State};
use crate::store::{Acquired, EmbeddedStore, Fence, Location, RedisStore, Spool, Store};
use crate::util::backoff::Backoff;
use anyhow::Context as _;
use http::HttpLimits;
use owner::Owner;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between two tries to lead or to reach the store.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// Where lists of files are kept, below the data directory.
const RECORDS: &str = "records";
/// Open files that are left for other things than connections.
const OTHER_FILES: usize = 64;
/// Connections that wait to be accepted; the system has a limit of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 8_192;
/// Requests that wait for the owner.
const QUEUE: usize = 1024;

/// A master that serves.
pub struct Master {
    url: String,
    handle: Handle,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Master {
    /// Binds, leads, loads and serves; returns when the API answers.
    ///
    /// # Errors
    /// The address can't be bound, the store can't be used, or what it holds can't be read. While
    /// the store is away or another master leads it waits, until `shutdown`.
    pub async fn start(
        config: MasterConfig,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        match &config.store {
            StoreConfig::Redis { url, namespace, allow_volatile } => {
                let connect = || RedisStore::connect(url.expose(), namespace, *allow_volatile);
                let store = patiently("connect to the store", &shutdown, connect).await?;
                Self::start_on(store, &config, shutdown).await
            }
            StoreConfig::Embedded { dir } => {
                let store = EmbeddedStore::open(Location::File(dir.clone()))?;
                Self::start_on(store, &config, shutdown).await
            }
        }
    }

    /// As [`Master::start`], on a store that is given: for one run in one process.
    ///
    /// # Errors
    /// As there.
    pub async fn start_on<S: Store>(
        store: S,
        config: &MasterConfig,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let spool = Spool::at(config.data_dir.join(RECORDS));
        Self::begin(store, config, spool, None, shutdown).await
    }

    /// As [`Master::start_on`], for this process only: it keeps no file beyond its end, and
    /// [`Master::url`] has a random component, without which nothing is served. Other users of the host can reach its port, and could else have
    /// files copied with the rights of this process.
    ///
    /// # Errors
    /// As there.
    pub async fn start_private<S: Store>(
        store: S,
        config: &MasterConfig,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let secret = uuid::Uuid::new_v4().simple().to_string();
        Self::begin(store, config, Spool::passing(), Some(secret), shutdown).await
    }

    async fn begin<S: Store>(
        store: S,
        config: &MasterConfig,
        spool: Spool,
        secret: Option<String>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Master> {
        let listener = listen(config.listen).with_context(|| {
            format!("listen on {}: choose another with --listen ADDR:PORT", config.listen)
        })?;
        let address = listener.local_addr().context("read the bound address")?;
        let store = Arc::new(store);
        // Unique to this master: whoever has the address on this host is it, or its successor.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let holder = format!("{host} http://{address}");
        let fence = lead(store.as_ref(), &holder, &shutdown).await?;
        let records = patiently("read the store", &shutdown, || store.load()).await?;
        let seed = *blake3::hash(
            &[*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat(),
        )
        .as_bytes();
        let state = State::load(settings(config), seed, &records, owner::loading_time())?;
        drop(records);
        // Only now: before it led, another master on this host may have used them.
        if let Err(e) = spool.keep_only(|number| state.knows(number)) {
            tracing::warn!(error = %e, "old lists of files stay behind");
        }

        let (requests_in, requests) = mpsc::channel(QUEUE);
        let (health, seen) = watch::channel(Ok(()));
        let blobs = Arc::clone(&store);
        let read_blob: handle::BlobReader = Arc::new(move |key: String| {
            let blobs = Arc::clone(&blobs);
            Box::pin(async move { blobs.blob(&key).await.map_err(|e| e.to_string()) })
        });
        let handle = Handle::new(requests_in, seen, read_blob, spool.clone());
        let limits = HttpLimits {
            submit_bytes: usize::try_from(config.limits.max_file_list_bytes).unwrap_or(usize::MAX),
            // An agent counts its lease from before its poll was sent: most of it must be left.
            max_wait: config.poll_wait_max.min(config.lease / 3),
            default_chunk_mb: config.defaults.chunk_size_mb,
            secret: secret.clone(),
            connections: room_for(config.limits.max_connections),
            ..HttpLimits::default()
        };
        let owner = Owner::new(store, state, fence, requests, health, spool);
        tracing::info!(%address, epoch = fence.epoch, "the master serves");
        let running = tokio::spawn(serve(owner, listener, handle.clone(), limits, shutdown));
        let url = match secret {
            Some(secret) => format!("http://{address}/{secret}"),
            None => format!("http://{address}"),
        };
        Ok(Master { url, handle, running })
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
    /// Another master leads, or the store can't be used any more.
    pub async fn stopped(self) -> anyhow::Result<()> {
        self.running.await.context("the master's task")?
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// As [`Master::start`] and [`Master::stopped`].
pub async fn run(config: MasterConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    match Master::start(config, shutdown).await {
        // It was told to: that it had not begun to serve yet makes it no failure.
        Err(e) if e.is::<Stopped>() => {
            tracing::info!("{e}");
            Ok(())
        }
        started => started?.stopped().await,
    }
}

/// A master was told to stop while it still waited for something, which this names.
#[derive(Debug)]
struct Stopped(String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stopped before it served: {}", self.0)
    }
}

impl std::error::Error for Stopped {}

async fn serve<S: Store>(
    owner: Owner<S>,
    listener: TcpListener,
    handle: Handle,
    limits: HttpLimits,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let api_ended = CancellationToken::new();
    let mut owning = tokio::spawn(owner.run(api_ended.clone()));
    let mut serving = tokio::spawn(http::serve(listener, handle, limits, shutdown.clone()));
    let ended = tokio::select! {
        ended = &mut owning => ended,
        _ = &mut serving => {
            api_ended.cancel();
            owning.await
        }
    };
    if !serving.is_finished() {
        // The owner ended first: without it there is nothing to serve.
        shutdown.cancel();
        let _ = serving.await;
    }
    ended.context("the owner of the state")?.context("the master can't go on")
}

/// Waits until this master leads.
async fn lead<S: Store>(
    store: &S,
    holder: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<Fence> {
    let mut said = String::new();
    loop {
        let asked =
            patiently("ask for leadership", shutdown, || store.acquire(holder, owner::LEASE));
        match asked.await? {
            Acquired::Leader(fence) => return Ok(fence),
            Acquired::Held { by, for_ms } => {
                if said != by {
                    tracing::warn!(leader = by, "another master leads: waiting until it is gone");
                    said = by;
                }
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(for_ms.clamp(50, 2_000))) => {}
                    () = shutdown.cancelled() => {
                        return Err(Stopped(format!("another master leads ({said})")).into());
                    }
                }
            }
        }
    }
}

/// Repeats a call on the store while that is away.
async fn patiently<T, F>(
    what: &'static str,
    shutdown: &CancellationToken,
    call: impl Fn() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, crate::store::StoreError>>,
{
    let mut failures = 0;
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err(crate::store::StoreError::Unavailable(why)) => {
                if failures == 0 {
                    tracing::warn!(why, "the store is not available: waiting for it");
                }
                tokio::select! {
                    () = tokio::time::sleep(AGAIN.delay(failures)) => {}
                    () = shutdown.cancelled() => {
                        return Err(Stopped(format!("cannot {what}: {why}")).into());
                    }
                }
                failures += 1;
            }
            Err(other) => return Err(anyhow::Error::new(other).context(what)),
        }
    }
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
        no_space_ms: ms(config.limits.no_space_timeout),
        retention_ms: ms(config.retention),
        max_active_syncs: config.limits.max_active_syncs,
        bwlimit: config.bwlimit.clone(),
        zone: jiff::tz::TimeZone::system(),
        ..Settings::default()
    }
}
