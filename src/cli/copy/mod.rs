//! `ctl copy`: a master with its state in memory and one agent in this process, for one sync.

mod last_run;
mod name_key;
mod next;
mod paths;

use super::args::{CopyArgs, LogArgs, Output, UntilArgs};
use super::exit::Exit;
use super::failure::Failure;
use super::given::of_this_machine;
use super::records::Wanted;
use super::report::Next;
use super::shell::shell_word;
use super::submit::{Submission, mapping, names_nothing, nothing_to_do, request, send};
use super::sync::tell_end;
use super::wait::{Waited, Waiter};
use super::{Context, out, progress, service, signals};
use crate::client::{ClientOptions, MasterClient};
use crate::config::agent::{DEFAULT_BUFFER_MEMORY_BYTES, default_slots};
use crate::config::{AgentConfig, Env, LogConfig, load_master};
use crate::master::Master;
use crate::scheduler::pair_record;
use crate::store::{Acquired, Batch, Candidate, EmbeddedStore, Location, Store};
use crate::wire::RequestId;
use crate::wire::options::SyncOptions;
use crate::wire::path::escape_bytes;
use crate::wire::sync::SyncState;
use crate::wire::worker::Endpoint;
use jiff::Timestamp;
use last_run::LastRun;
use paths::Paths;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use tokio::sync::watch;
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
/// See [`collect_paths::resolve`]; a service that can't start; otherwise the exit code says how it ended.
pub(super) async fn run(ctx: &Context, args: CopyArgs) -> Result<Exit, Failure> {
    of_this_machine("SRC", args.source.as_os_str().as_bytes())?;
    of_this_machine("DST", args.destination.as_os_str().as_bytes())?;
    let paths = paths::resolve(&args.source, &args.destination)?;
    if args.what.files_from.is_some() && !paths.source_is_dir {
        return Err(Failure::usage(format!(
            "--files-from names what lies in a directory, and SRC {} is a file",
            paths.source
        ))
        .hinted("leave --files-from out, or name the directory as SRC"));
    }
    let id: RequestId = ID.parse().map_err(|e| Failure::new(format!("{e}")))?;
    let roots = [paths.source.clone(), paths.source_given.clone()];
    let wanted = Wanted::new(&args.options)?;
    let destinations = [paths.destination.clone(), paths.destination_given.clone()];
    let options = args.options.options(&destinations, args.what.names_stdin(), Timestamp::now())?;
    let request = request(&roots, paths.destination.clone(), Some(id), &args.what, options)?;
    if names_nothing(&request) {
        return Ok(nothing_to_do(args.end, !ctx.global.quiet));
    }
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
    let memory = Memory::of_pair(&paths, &request.options)?;
    let mut services = Services::start(&paths, memory.known.as_deref()).await?;
    let next = next::next(&paths, &args, &request.options);
    let exit = match services.copy(ctx, &request, &mut asks).await {
        // The records are with the master of this process: they are read before it stops.
        Ok(waited) => {
            let waited = waited.judged(args.end);
            memory.keep(&waited);
            finish(ctx, &services.client, &waited, &next, &wanted).await
        }
        // The usual hint is about a master that an operator runs.
        Err(failure) if failure.exit == Exit::Unreachable => Err(failure.hinted(
            "the copy uses a master of its own, over the loopback interface; fix the error above, then run it again",
        )),
        Err(failure) => Err(failure),
    };
    services.stop().await;
    exit
}

/// What is kept of the pair between runs, and how.
struct Memory {
    /// `None`: nothing is kept.
    last_run: Option<LastRun>,
    /// The file system of SRC at the last run.
    known: Option<String>,
    /// A mirror relies on it: an error that prevents writing it is reported.
    mirror: bool,
}

impl Memory {
    /// Reads it.
    ///
    /// # Errors
    /// A mirror whose record can't be read: it could delete what it must not.
    fn of_pair(paths: &Paths, options: &SyncOptions) -> Result<Memory, Failure> {
        let mirror = options.delete.is_some();
        if !paths.source_is_dir || options.dry_run && !mirror {
            return Ok(Memory { last_run: None, known: None, mirror });
        }
        let last_run = LastRun::of_pair(&paths.source, &paths.destination);
        let known = match last_run.file_system() {
            Ok(known) => known,
            Err(why) if mirror => {
                let file = last_run.path();
                let name = file.as_os_str().as_encoded_bytes();
                let shown = escape_bytes(name);
                return Err(Failure::new(format!(
                    "cannot read {shown}, the record of the file system of SRC at the last run: {why}"
                ))
                .hinted(format!(
                    "check that SRC is mounted; then remove the record: rm {}",
                    shell_word(name)
                )));
            }
            Err(_) => None,
        };
        let last_run = Some(last_run).filter(|_| !options.dry_run);
        Ok(Memory { last_run, known, mirror })
    }

    /// Keeps what a copy that completed found.
    fn keep(&self, waited: &Waited) {
        let Some(last_run) = &self.last_run else { return };
        let seen = waited.syncs.iter().filter_map(|sync| sync.seen.as_ref());
        let completed = seen.filter(|seen| seen.state == SyncState::Completed);
        for file_system in completed.filter_map(|seen| seen.source_file_system.as_deref()) {
            if let Err(e) = last_run.record(file_system) {
                let file = last_run.path();
                self.tell_lost(&format!(
                    "{}: {e}",
                    escape_bytes(file.as_os_str().as_encoded_bytes())
                ));
            }
        }
    }

    fn tell_lost(&self, why: &str) {
        if self.mirror {
            out::note(&format!(
                "note: on which file system SRC lies can't be recorded ({why}): the next mirror does not \
                 notice when it is another one; set XDG_STATE_HOME to a directory that can be written"
            ));
        }
    }
}

/// Prints what there is to say, and writes what was asked for.
async fn finish(
    ctx: &Context,
    client: &MasterClient,
    waited: &Waited,
    next: &Next,
    wanted: &Wanted,
) -> Result<Exit, Failure> {
    let items = wanted.items(ctx, client, waited).await;
    tell(ctx, waited, next)?;
    items?;
    wanted.manifests(ctx, client, waited).await?;
    // Cancelled because of a signal: that is what a shell wants to know.
    Ok(waited.interrupted.unwrap_or_else(|| waited.exit()))
}

fn tell(ctx: &Context, waited: &Waited, next: &Next) -> Result<(), Failure> {
    for sync in &waited.syncs {
        let Some(seen) = &sync.seen else { continue };
        if ctx.global.output == Output::Json {
            out::data(&seen.body)?;
        }
        if let Some(exit) = sync.exit {
            let exit = waited.interrupted.unwrap_or(exit);
            tell_end(ctx, seen, exit, next)?;
        }
    }
    if let Some(stopped) = waited.stopped {
        let (code, again) = (stopped.code(), &next.again);
        out::note(&format!("stopped; copied files stay; to continue: {again}   (exit {code})"));
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
    /// Starts both on loopback ports that the kernel chooses; `known` is the file system of SRC at the
    /// last run.
    async fn start(paths: &Paths, known: Option<&str>) -> Result<Services, Failure> {
        let failed = |e: anyhow::Error| service::failed(&e);
        let mut config = load_master(None, &Env::empty())?.config;
        config.listen.set_port(0);
        // Somebody sits before it and can make room and start it again.
        config.limits.no_space_timeout = Duration::ZERO;
        let store = EmbeddedStore::open(Location::Memory).map_err(|e| failed(e.into()))?;
        if let Some(known) = known {
            remember(&store, paths, known).await.map_err(failed)?;
        }
        let stop_master = CancellationToken::new();
        let master =
            Master::start_private(store, &config, name_key::read_or_make()?, stop_master.clone())
                .await
                .map_err(failed)?;
        let client = MasterClient::new(vec![master.url()], ClientOptions::default())?;
        let stop_agent = CancellationToken::new();
        let agent = {
            let config = watch::channel(agent_config(&master, paths)?).1;
            tokio::spawn(crate::agent::run(config, stop_agent.clone()))
        };
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
                Ok(Err(e)) => service::failed(&e.context("this copy ended early")),
                Ok(Ok(())) => Failure::new("this copy ended early"),
                Err(e) => Failure::new(format!("this copy ended early: {e}")),
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

/// Puts the file system of SRC at the last run into the store of the master that is about to begin.
async fn remember(store: &EmbeddedStore, paths: &Paths, known: &str) -> anyhow::Result<()> {
    let (key, value) = pair_record(&paths.source, &paths.destination, known)?;
    if let Acquired::Leader(fence) = store.acquire(&Candidate::from(WORKER), STOP).await? {
        let batch = Batch { puts: [(key, value)].into(), ..Batch::default() };
        let fence = store.commit(fence, &batch).await?;
        store.release(fence).await?;
    }
    Ok(())
}

fn agent_config(master: &Master, paths: &Paths) -> Result<AgentConfig, Failure> {
    let bad = |e: String| Failure::new(format!("cannot prepare this copy: {e}"));
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
        buffer_memory: DEFAULT_BUFFER_MEMORY_BYTES,
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
        let mut config = load_master(None, &Env::empty()).unwrap().config;
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
