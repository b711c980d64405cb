//! Waits for syncs with progress, then prints how they ended and writes what was requested of their records.

use super::args::{ExitCodeArgs, OutputFormat, WaitLimitArgs};
use super::error::Result;
use super::exit::Exit;
use super::options::{SyncOptionArgs, bwlimit_arg, to_cli_args};
use super::outcome_report::{self, NextSteps};
use super::resource::join_documents;
use super::sanitize::sanitize;
use super::sync_text::quoted_addresses;
use super::wait::{SyncWaiter, WaitOutcome, WaitedSync};
use super::{Context, console, file_records, manifest, progress, signals};
use crate::client::MasterClient;
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::sync::SyncProgress;
use std::path::PathBuf;

#[derive(Debug, Default)]
pub(super) struct WaitOptions {
    /// This process submitted the syncs.
    pub(super) submitted_here: bool,
    pub(super) record_outputs: RecordOutputs,
    pub(super) exit_code: ExitCodeArgs,
}

/// What a command writes of the records of the syncs it waits for.
#[derive(Debug, Default)]
pub(super) struct RecordOutputs {
    itemize: bool,
    manifest: Option<PathBuf>,
}

impl RecordOutputs {
    /// # Errors
    /// The manifest could not be written at the end.
    pub(super) fn new(args: &SyncOptionArgs) -> Result<RecordOutputs> {
        let manifest = args.verification.manifest.clone();
        if let Some(path) = &manifest {
            manifest::check_manifest_writable(path)?;
        }
        Ok(RecordOutputs { itemize: args.record.itemize, manifest })
    }

    /// Prints the items, then calls `print_ends`, then writes the manifests.
    ///
    /// # Errors
    /// The master can't be reached; standard output or a manifest can't be written.
    pub(super) async fn write(
        &self,
        ctx: &Context,
        client: &MasterClient,
        waited: &WaitOutcome,
        print_ends: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let items = match self.itemize {
            true => file_records::print_items(ctx, client, waited).await,
            false => Ok(()),
        };
        // The ends are printed also after a failure to print the items.
        print_ends()?;
        items?;
        match &self.manifest {
            Some(path) => manifest::write_manifests(ctx, client, path, waited).await,
            None => Ok(()),
        }
    }
}

/// Waits for syncs with progress and prints how they ended.
///
/// # Errors
/// The master is unavailable for too long; standard output or the manifest can't be written.
pub(super) async fn wait_and_report(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<RequestId>,
    limit: &WaitLimitArgs,
    options: &WaitOptions,
) -> Result<Exit> {
    let mut signals = signals::listen_for_signals()?;
    let mut monitor = progress::new_monitor(&ctx.global);
    let waiter = SyncWaiter::new(client, monitor.as_mut(), ids, options.submitted_here)
        .with_resume_hint(&ctx.ctl_command);
    let waited = waiter.run(limit, &mut signals).await?.with_no_transfer_exit(options.exit_code);
    let print_ends = || print_wait_outcome(ctx, &waited, limit);
    options.record_outputs.write(ctx, client, &waited, print_ends).await?;
    Ok(waited.exit())
}

/// Prints the documents (json) or the results (table), failures and next steps.
fn print_wait_outcome(ctx: &Context, waited: &WaitOutcome, limit: &WaitLimitArgs) -> Result<()> {
    if ctx.global.output == OutputFormat::Json {
        let existing = waited.syncs.iter().filter(|sync| !sync.was_deleted);
        let bodies: Vec<_> =
            existing.filter_map(|sync| Some(sync.latest.as_ref()?.body.clone())).collect();
        console::write_data(&join_documents(&bodies, waited.syncs.len() == 1))?;
    }
    for sync in &waited.syncs {
        let (id, Some(exit)) = (&sync.id, sync.exit) else { continue };
        let code = exit.code();
        match &sync.latest {
            _ if sync.was_deleted => console::print_note(&format!(
                "{id}  was deleted while it was waited for   (exit {code})"
            )),
            Some(latest) => print_sync_end(ctx, latest, exit, &next_steps(ctx, latest))?,
            None => {
                console::print_note(&format!("error: there is no sync {id}   (exit {code})"));
            }
        }
    }
    if let Some(stopped_by) = waited.stopped_by {
        let open = || waited.syncs.iter().filter(|sync| sync.exit.is_none());
        let ids = open().map(|sync| sync.id.as_str()).collect::<Vec<_>>().join(" ");
        let states = open().map(describe_unended).collect::<Vec<_>>().join("; ");
        let reason = match (stopped_by, limit.timeout) {
            (Exit::TimedOut(_), Some(timeout)) => {
                format!("timed out after {}", units::format_duration(timeout))
            }
            _ => "stopped waiting".to_owned(),
        };
        let (ctl, code) = (&ctx.ctl_command, stopped_by.code());
        console::print_note(&format!(
            "{reason}; {states}\n  watch: {ctl} sync wait {ids}     stop: {ctl} sync cancel {ids}   (exit {code})"
        ));
    }
    Ok(())
}

/// The commands to use after failures of a sync.
pub(super) fn next_steps(ctx: &Context, sync: &SyncProgress) -> NextSteps {
    let (ctl, id) = (&ctx.ctl_command, &sync.request_id);
    let [from, to] = quoted_addresses(sync);
    let options = to_cli_args(&sync.options, None) + &bwlimit_arg(sync.bwlimit);
    NextSteps {
        rerun: match sync.destinations.is_empty() {
            true => format!("{ctl} sync retry {id}"),
            false => format!("{ctl} sync retry {id} --failed-only"),
        },
        preview_deletions: format!(
            "{ctl} sync submit {from} {to}{options} --dry-run --itemize --wait"
        ),
        list_failures: format!("{ctl} sync files {id} --state failed"),
    }
}

/// The state of a sync that has not ended, and the reason for it.
fn describe_unended(sync: &WaitedSync) -> String {
    let id = &sync.id;
    let Some(latest) = &sync.latest else { return format!("the state of {id} is not known yet") };
    let reason = latest.reason.as_deref().map(|reason| format!(": {}", sanitize(reason)));
    format!("{id} is still {}{}", latest.state.as_str(), reason.unwrap_or_default())
}

/// Prints the result (table), notes, failures and next steps of a sync that has ended.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_sync_end(
    ctx: &Context,
    sync: &SyncProgress,
    exit: Exit,
    next: &NextSteps,
) -> Result<()> {
    if ctx.global.is_text() {
        console::write_data(outcome_report::result_text(sync).as_bytes())?;
    }
    let notes = if ctx.global.quiet { Vec::new() } else { outcome_report::note_lines(sync) };
    let problems = outcome_report::problem_lines(sync, exit, next);
    notes.iter().chain(&problems).for_each(|line| console::print_note(line));
    Ok(())
}
