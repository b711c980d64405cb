//! `ctl copy`: a master with its state in memory and one agent in this process, for one sync.

mod name_key;
mod paths;

use super::args::{CopyArgs, LogArgs, Output, UntilArgs};
use super::exit::Exit;
use super::failure::Failure;
use super::options::again;
use super::records::Wanted;
use super::submit::{Submission, listed, mapping, quoted, request, send};
use super::sync::tell_end;
use super::wait::{Waited, Waiter};
use super::{Context, out, progress, service, signals};
use crate::client::{ClientOptions, MasterClient};
use crate::config::agent::{DEFAULT_BUFFER_MEMORY, default_slots};
use crate::config::{AgentConfig, Env, LogConfig, load_master};
use crate::master::Master;
use crate::store::{EmbeddedStore, Location};
use crate::wire::RequestId;
use crate::wire::worker::Endpoint;
use jiff::Timestamp;
use paths::Paths;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The name of the only sync.
const ID: &str = "copy";
/// The name of the only agent.
const WORKER: &str = "local";
/// Frequent, because it costs nothing here and the first one lets the sync begin.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// At the end nothing is left to do: whatever does not stop by itself within this is left behind.
const STOP: Duration = Duration::from_secs(5);

/// Copies.
///
/// # Errors
/// See [`paths::resolve`]; a service that can't start; otherwise the exit code says how it ended.
pub(super) async fn run(ctx: &Context, args: CopyArgs) -> Result<Exit, Failure> {
    let paths = paths::resolve(&args.source, &args.destination)?;
    let id: RequestId = ID.parse().map_err(|e| Failure::new(format!("{e}")))?;
    let roots = [paths.source.clone(), paths.source_given.clone()];
    let wanted = Wanted::new(&args.options)?;
    let destinations = [paths.destination.clone(), paths.destination_given.clone()];
    let options = args.options.options(&destinations, args.what.names_stdin(), Timestamp::now())?;
    let request = request(&roots, paths.destination.clone(), Some(id), &args.what, options)?;
    if ctx.global.verbose > 0 {
        let quiet = LogArgs { log_level: None, log_format: None };
        let level = if ctx.global.verbose == 1 { "info" } else { "debug" };
        let config = LogConfig { level: level.to_owned(), ..LogConfig::default() };
        service::prepare(&config, &quiet, 0, &[])?;
    } else {
        service::claim_files()?;
    }
    let mut asks = signals::listen()?;
    if !ctx.global.quiet && ctx.global.output == Output::Table {
        let (from, to) = (&paths.source, &paths.destination);
        let each = if from == &paths.storage[0] {
            format!("   e.g. {}", mapping(from, to))
        } else {
            String::new()
        };
        let how = if request.options.dry_run { "Comparing" } else { "Copying" };
        out::note(&format!("{how} {from} → {to}{each}"));
    }
    let mut services = Services::start(&paths).await?;
    let typed = again(&request.options, Some(&args.options)) + &listed(&args.what);
    let exit = match services.copy(ctx, &request, &mut asks).await {
        // The records are with the master of this process: they are read before it stops.
        Ok(waited) => finish(ctx, &services.client, &waited, &paths, &typed, &wanted).await,
        Err(failure) => Err(failure),
    };
    services.stop().await;
    exit
}

/// Prints what there is to say, and writes what was asked for.
async fn finish(
    ctx: &Context,
    client: &MasterClient,
    waited: &Waited,
    paths: &Paths,
    typed: &str,
    wanted: &Wanted,
) -> Result<Exit, Failure> {
    let items = wanted.items(ctx, client, waited).await;
    tell(ctx, waited, paths, typed)?;
    items?;
    wanted.manifests(ctx, client, waited).await?;
    // Cancelled because of a signal: that is what a shell wants to know.
    Ok(waited.interrupted.unwrap_or_else(|| waited.exit()))
}

fn tell(ctx: &Context, waited: &Waited, paths: &Paths, typed: &str) -> Result<(), Failure> {
    let (from, to) = (quoted(&paths.source), quoted(&paths.destination));
    let again = format!("ctl copy {from} {to}{typed}");
    for sync in &waited.syncs {
        let Some(seen) = &sync.seen else { continue };
        if ctx.global.output == Output::Json {
            out::data(&seen.body)?;
        }
        if let Some(exit) = sync.exit {
            let exit = waited.interrupted.unwrap_or(exit);
            tell_end(ctx, seen, exit, &again)?;
        }
    }
    if let Some(stopped) = waited.stopped {
        let code = stopped.code();
        out::note(&format!("stopped; what arrived stays; to go on: {again}   (exit {code})"));
    }
    Ok(())
}

/// The master and the agent of this process.
struct Services {
    client: MasterClient,
    master: Option<Master>,
    agent: JoinHandle<anyhow::Result<()>>,
    stop_master: CancellationToken,
    stop_agent: CancellationToken,
}

impl Services {
    /// Starts both on loopback ports that the kernel chooses.
    async fn start(paths: &Paths) -> Result<Services, Failure> {
        let failed = |e: anyhow::Error| service::failed(&e);
        let mut config = load_master(None, &Env::none())?.config;
        config.listen.set_port(0);
        // Somebody sits before it and can make room and start it again.
        config.limits.no_space_timeout = Duration::ZERO;
        let store = EmbeddedStore::open(Location::Memory).map_err(|e| failed(e.into()))?;
        let stop_master = CancellationToken::new();
        let master =
            Master::start_private(store, &config, name_key::read_or_make()?, stop_master.clone())
                .await
                .map_err(failed)?;
        let client = MasterClient::new(vec![master.url()], ClientOptions::default())?;
        let stop_agent = CancellationToken::new();
        let agent =
            tokio::spawn(crate::agent::run(agent_config(&master, paths)?, stop_agent.clone()));
        Ok(Services { client, master: Some(master), agent, stop_master, stop_agent })
    }

    /// Submits the sync and waits for it, or for a service that ends before.
    async fn copy(
        &mut self,
        ctx: &Context,
        request: &Submission,
        asks: &mut tokio::sync::mpsc::UnboundedReceiver<signals::Ask>,
    ) -> Result<Waited, Failure> {
        send(&self.client, request, ctx.global.request_timeout).await?;
        let until = UntilArgs {
            timeout: None,
            timeout_exit_code: super::exit::TIMED_OUT,
            cancel_on_interrupt: true,
        };
        let mut monitor = progress::monitor(&ctx.global);
        let ids = request.request_id.clone().into_iter().collect();
        let waiting = Waiter::new(&self.client, monitor.as_mut(), ids, true).run(&until, asks);
        tokio::select! {
            waited = waiting => waited,
            ended = &mut self.agent => Err(match ended {
                Ok(Err(e)) => service::failed(&e.context("the agent of this copy ended")),
                Ok(Ok(())) => Failure::new("the agent of this copy ended before the copy did"),
                Err(e) => Failure::new(format!("the agent of this copy ended: {e}")),
            }),
        }
    }

    /// Stops the agent, then the master.
    async fn stop(mut self) {
        self.stop_agent.cancel();
        if !self.agent.is_finished() {
            let _ = tokio::time::timeout(STOP, &mut self.agent).await;
        }
        self.stop_master.cancel();
        if let Some(master) = self.master.take() {
            let _ = tokio::time::timeout(STOP, master.stopped()).await;
        }
    }
}

fn agent_config(master: &Master, paths: &Paths) -> Result<AgentConfig, Failure> {
    let bad = |e: String| Failure::new(format!("cannot set up the agent of this copy: {e}"));
    let loopback: Endpoint = "127.0.0.1".parse().map_err(bad)?;
    Ok(AgentConfig {
        worker_id: WORKER.parse().map_err(|e| bad(format!("{e}")))?,
        master_urls: vec![master.url()],
        storage_paths: paths.storage.clone(),
        control_plane_address: None,
        data_plane_endpoints: vec![Endpoint { port: Some(0), ..loopback }.into()],
        heartbeat_interval: HEARTBEAT,
        drain_timeout: STOP,
        slots: default_slots(),
        bwlimit: None,
        buffer_memory: DEFAULT_BUFFER_MEMORY,
        direct_io: false,
        data_dir: None,
        log: LogConfig::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_master_of_a_copy_serves_nobody_who_does_not_know_its_url() {
        let mut config = load_master(None, &Env::none()).unwrap().config;
        config.listen.set_port(0);
        let stop = CancellationToken::new();
        let store = EmbeddedStore::open(Location::Memory).unwrap();
        let master =
            Master::start_private(store, &config, Default::default(), stop.clone()).await.unwrap();
        let client =
            |url: &str| MasterClient::new(vec![url.to_owned()], ClientOptions::default()).unwrap();
        let (root, _) =
            master.url().rsplit_once('/').map(|(a, b)| (a.to_owned(), b.len())).unwrap();
        client(&master.url()).list(&[], None).await.unwrap();
        for url in [root.clone(), format!("{root}/v1")] {
            assert!(client(&url).list(&[], None).await.unwrap_err().is_not_found(), "{url}");
        }
        stop.cancel();
        master.stopped().await.unwrap();
    }
}
