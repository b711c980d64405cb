//! `ctl copy`: runs one sync with a master (its state in memory) and an agent in this process.

mod last_run;
mod name_key;
mod next_steps;
mod paths;

use super::args::{CopyArgs, LogArgs, OutputFormat, WaitLimitArgs};
use super::error::{CliError, Result};
use super::exit::{DEFAULT_TIMEOUT_EXIT_CODE, Exit};
use super::follow::{RecordOutputs, print_sync_end};
use super::outcome_report::NextSteps;
use super::path_args::{LocalCommand, check_local_path};
use super::sanitize::display_path;
use super::submit::{
    Submission, end_without_submit, has_empty_file_list, new_submission, submit_with_retry,
};
use super::sync_text::mapping_example;
use super::wait::{SyncWaiter, WaitOutcome};
use super::{Context, console, progress, service, signals};
use crate::client::{ClientOptions, MasterClient};
use crate::config::agent::{DEFAULT_BUFFER_MEMORY_BYTES, default_slots};
use crate::config::{AgentConfig, Env, LogConfig, load_master};
use crate::master::Master;
use crate::scheduler::source_history_record;
use crate::store::{AcquireOutcome, Batch, Candidate, EmbeddedStore, Store};
use crate::util::shell_quote::quote_for_shell;
use crate::wire::RequestId;
use crate::wire::options::SyncOptions;
use crate::wire::sync::SyncState;
use crate::wire::worker::Endpoint;
use jiff::Timestamp;
use last_run::LastRun;
use paths::CopyPaths;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SYNC_ID: &str = "copy";
const WORKER_ID: &str = "local";
/// Short, because heartbeats are cheap here and the sync starts after the first one.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// After the sync has ended nothing is left to do: a service that takes longer to stop is abandoned.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// # Errors
/// See [`paths::resolve_paths`]; a service that can't start. The exit code shows how the copy ended.
pub(super) async fn run(ctx: &Context, args: CopyArgs) -> Result<Exit> {
    check_local_path(LocalCommand::Copy, "SRC", args.source.as_os_str().as_bytes())?;
    check_local_path(LocalCommand::Copy, "DST", args.destination.as_os_str().as_bytes())?;
    let paths = paths::resolve_paths(&args.source, &args.destination)?;
    if args.transfer.files_from.is_some() && !paths.source_is_dir {
        return Err(CliError::usage(format!(
            "--files-from names what lies in a directory, and SRC {} is a file",
            paths.source
        ))
        .with_hint("leave --files-from out, or name the directory as SRC"));
    }
    let id: RequestId = SYNC_ID.parse().map_err(|e| CliError::new(format!("{e}")))?;
    let roots = [paths.source.clone(), paths.lexical_source.clone()];
    let outputs = RecordOutputs::new(&args.options)?;
    let destinations = [paths.destination.clone(), paths.lexical_destination.clone()];
    let stdin_is_used = args.transfer.is_file_list_stdin();
    let options = args.options.to_sync_options(&destinations, stdin_is_used, Timestamp::now())?;
    let request =
        new_submission(&roots, paths.destination.clone(), Some(id), &args.transfer, options)?;
    if has_empty_file_list(&request) {
        return Ok(end_without_submit(args.exit_code, !ctx.global.quiet));
    }
    if ctx.global.verbose > 0 {
        let level = if ctx.global.verbose == 1 { "info" } else { "debug" };
        let config = LogConfig { level: level.to_owned(), ..LogConfig::default() };
        service::init_process(&config, &LogArgs::default(), 0, &[])?;
    } else {
        service::raise_open_file_limit()?;
    }
    let mut signals = signals::listen_for_signals()?;
    if ctx.global.is_text() {
        let (from, to) = (&paths.source, &paths.destination);
        let verb = if request.options.dry_run { "Comparing" } else { "Copying" };
        let example = match paths.source_is_dir {
            true => format!("   e.g. {}", mapping_example(from, to)),
            false => String::new(),
        };
        console::print_note(&format!("{verb} {from} → {to}{example}"));
    }
    let source_record = SourceFsRecord::load(&paths, &request.options)?;
    let mut services =
        InProcessServices::start(&paths, source_record.last_file_system.as_deref()).await?;
    let next = next_steps::next_steps(&paths, &args, &request.options);
    let exit = match services.submit_and_wait(ctx, &request, &mut signals).await {
        // The master of this process holds the records, so they are read before it stops.
        Ok(waited) => {
            let waited = waited.with_no_transfer_exit(args.exit_code);
            source_record.save(&waited);
            let print_ends = || print_outcome(ctx, &waited, &next);
            let written = outputs.write(ctx, &services.client, &waited, print_ends).await;
            // The signal that cancelled the sync determines the exit code, as for any interrupted command.
            written.map(|()| waited.cancelled_by.unwrap_or_else(|| waited.exit()))
        }
        // The usual hint is about a separate master.
        Err(failure) if failure.exit == Exit::Unreachable => Err(failure.with_hint(
            "the copy uses a master of its own, over the loopback interface; fix the error above, then run it again",
        )),
        Err(failure) => Err(failure),
    };
    services.stop().await;
    exit
}

/// The recorded file system of SRC, to detect that another one is mounted there.
struct SourceFsRecord {
    last_run: LastRun,
    /// That of the last run.
    last_file_system: Option<String>,
    is_written: bool,
    /// A mirror depends on the record, so write errors are reported.
    is_mirror: bool,
}

impl SourceFsRecord {
    /// # Errors
    /// The record can't be read and the copy is a mirror, which could delete the wrong entries.
    fn load(paths: &CopyPaths, options: &SyncOptions) -> Result<SourceFsRecord> {
        let is_mirror = options.delete.is_some();
        let is_read = paths.source_is_dir && (is_mirror || !options.dry_run);
        let last_run = LastRun::for_pair(&paths.source, &paths.destination);
        let last_file_system = match last_run.read_file_system() {
            _ if !is_read => None,
            Err(reason) if is_mirror => {
                let file = last_run.record_path();
                let (shown, name) = (display_path(&file), file.as_os_str().as_bytes());
                return Err(CliError::new(format!(
                    "cannot read {shown}, the record of the file system of SRC at the last run: {reason}"
                ))
                .with_hint(format!(
                    "check that SRC is mounted; then remove the record: rm {}",
                    quote_for_shell(name)
                )));
            }
            read => read.unwrap_or_default(),
        };
        let is_written = is_read && !options.dry_run;
        Ok(SourceFsRecord { last_run, last_file_system, is_written, is_mirror })
    }

    /// Records the file system of a completed copy.
    fn save(&self, waited: &WaitOutcome) {
        let latest = waited.syncs.iter().filter_map(|sync| sync.latest.as_ref());
        let completed = latest.filter(|sync| sync.state == SyncState::Completed && self.is_written);
        for file_system in completed.filter_map(|sync| sync.source_file_system.as_deref()) {
            if let Err(e) = self.last_run.write_record(file_system)
                && self.is_mirror
            {
                let file = self.last_run.record_path();
                console::print_note(&format!(
                    "note: the file system of SRC can't be recorded ({}: {e}), so the next mirror does not detect \
                     another one; set XDG_STATE_HOME to a directory that can be written",
                    display_path(&file)
                ));
            }
        }
    }
}

/// Prints how the sync ended.
fn print_outcome(ctx: &Context, waited: &WaitOutcome, next: &NextSteps) -> Result<()> {
    for sync in &waited.syncs {
        let Some(latest) = &sync.latest else { continue };
        if ctx.global.output == OutputFormat::Json {
            console::write_data(&latest.body)?;
        }
        if let Some(exit) = sync.exit {
            let exit = waited.cancelled_by.unwrap_or(exit);
            print_sync_end(ctx, latest, exit, next)?;
        }
    }
    if let Some(stopped) = waited.stopped_by {
        let (code, again) = (stopped.code(), &next.rerun);
        console::print_note(&format!(
            "stopped; copied files stay; to continue: {again}   (exit {code})"
        ));
    }
    Ok(())
}

struct InProcessServices {
    client: MasterClient,
    master: Master,
    agent: JoinHandle<anyhow::Result<()>>,
    stop_master: CancellationToken,
    stop_agent: CancellationToken,
}

impl InProcessServices {
    /// Starts both on free loopback ports; `known` is the file system of SRC at the last run.
    async fn start(paths: &CopyPaths, known: Option<&str>) -> Result<InProcessServices> {
        let failed = |e: anyhow::Error| service::service_error(&e);
        let mut config = load_master(None, &Env::empty())?.config;
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        // The user of the command can free space and run it again.
        config.limits.no_space_timeout = Duration::ZERO;
        let store = EmbeddedStore::open_in_memory().map_err(|e| failed(e.into()))?;
        if let Some(known) = known {
            seed_pair_record(&store, paths, known).await.map_err(failed)?;
        }
        let stop_master = CancellationToken::new();
        let key = name_key::read_or_create_key()?;
        let master = Master::start_private(store, &config, key, stop_master.clone());
        let master = master.await.map_err(failed)?;
        let client = MasterClient::new(vec![master.url()], ClientOptions::default())?;
        let stop_agent = CancellationToken::new();
        let (_, config) = watch::channel(agent_config(&master, paths)?);
        let agent = tokio::spawn(crate::agent::run(config, stop_agent.clone()));
        Ok(InProcessServices { client, master, agent, stop_master, stop_agent })
    }

    /// Submits the sync and waits for its end, or for the agent to end before.
    async fn submit_and_wait(
        &mut self,
        ctx: &Context,
        request: &Submission,
        signals: &mut UnboundedReceiver<signals::SignalAction>,
    ) -> Result<WaitOutcome> {
        submit_with_retry(&self.client, request, ctx.global.request_timeout).await?;
        let until = WaitLimitArgs {
            timeout: None,
            timeout_exit_code: DEFAULT_TIMEOUT_EXIT_CODE,
            cancel_on_interrupt: true,
        };
        let mut monitor = progress::new_monitor(&ctx.global);
        let ids = request.request_id.clone().into_iter().collect();
        let waiting =
            SyncWaiter::new(&self.client, monitor.as_mut(), ids, true).run(&until, signals);
        tokio::select! {
            waited = waiting => waited,
            ended = &mut self.agent => Err(match ended {
                Ok(Err(e)) => service::service_error(&e.context("this copy ended early")),
                Ok(Ok(())) => CliError::new("this copy ended early"),
                Err(e) => CliError::new(format!("this copy ended early: {e}")),
            }),
        }
    }

    /// Stops the agent, then the master.
    async fn stop(mut self) {
        self.stop_agent.cancel();
        if !self.agent.is_finished() {
            let _ = tokio::time::timeout(STOP_TIMEOUT, &mut self.agent).await;
        }
        self.stop_master.cancel();
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.master.wait_until_stopped()).await;
    }
}

/// Writes the file system of SRC at the last run to the store before the master starts.
async fn seed_pair_record(
    store: &EmbeddedStore,
    paths: &CopyPaths,
    known: &str,
) -> anyhow::Result<()> {
    let (key, value) = source_history_record(&paths.source, &paths.destination, known)?;
    if let AcquireOutcome::Leader(fence) =
        store.acquire(&Candidate::from(WORKER_ID), STOP_TIMEOUT).await?
    {
        let batch = Batch { puts: [(key, value)].into(), ..Batch::default() };
        let fence = store.commit(fence, &batch).await?;
        store.release(fence).await?;
    }
    Ok(())
}

fn agent_config(master: &Master, paths: &CopyPaths) -> Result<AgentConfig> {
    let bad = |e: String| CliError::new(format!("cannot prepare this copy: {e}"));
    let loopback: Endpoint = "127.0.0.1".parse().map_err(bad)?;
    Ok(AgentConfig {
        worker_id: WORKER_ID.parse().map_err(|e| bad(format!("{e}")))?,
        master_urls: vec![master.url()],
        ca_file: None,
        join_token_file: None,
        storage_paths: paths.storage_paths.iter().cloned().map(Into::into).collect(),
        labels: Default::default(),
        control_plane_address: None,
        data_plane_endpoints: vec![Endpoint { port: Some(0), ..loopback }.into()],
        heartbeat_interval: HEARTBEAT_INTERVAL,
        drain_timeout: STOP_TIMEOUT,
        slots: default_slots(),
        bwlimit: None,
        buffer_memory: DEFAULT_BUFFER_MEMORY_BYTES,
        direct_io: false,
        encrypt_content: true,
        run_as: Default::default(),
        sandbox: Default::default(),
        data_dir: None,
        log: LogConfig::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_master_of_a_copy_only_answers_under_its_secret_url() {
        let mut config = load_master(None, &Env::empty()).unwrap().config;
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        let stop = CancellationToken::new();
        let store = EmbeddedStore::open_in_memory().unwrap();
        let master =
            Master::start_private(store, &config, Default::default(), stop.clone()).await.unwrap();
        let client =
            |url: &str| MasterClient::new(vec![url.to_owned()], ClientOptions::default()).unwrap();
        let (root, _) =
            master.url().rsplit_once('/').map(|(a, b)| (a.to_owned(), b.len())).unwrap();
        client(&master.url()).list_syncs(&[], None).await.unwrap();
        for url in [root.clone(), format!("{root}/v1")] {
            assert!(client(&url).list_syncs(&[], None).await.unwrap_err().is_not_found(), "{url}");
        }
        stop.cancel();
        master.wait_until_stopped().await.unwrap();
    }
}
