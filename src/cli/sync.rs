//! `ctl sync …`.

use super::Context;
use super::args::{
    Bwlimit, ExitCodeArgs, OutputFormat, StatusArgs, SyncCommand, WaitArgs, WaitLimitArgs,
};
use super::error::CliError;
use super::exit::Exit;
use super::flag_names::name_flags;
use super::options::to_cli_args;
use super::outcome_report::NextSteps;
use super::records::RecordOutputs;
use super::submit::quote_path;
use super::table_layout::terminal_width;
use super::wait::{SyncWaiter, WaitOutcome, WaitedSync};
use super::{console, outcome_report, progress, records, signals, submit, tables, verify, workers};
use crate::client::{ClientError, MasterClient};
use crate::util::{unique_id, units};
use crate::wire::sync::{RetryRequest, SyncPatch, SyncProgress, SyncState};
use crate::wire::{RequestId, WorkerId};
use bytes::Bytes;
use jiff::Timestamp;
use std::cell::RefCell;

/// Runs one of the commands.
///
/// # Errors
/// See [`Exit`].
pub(super) async fn run(ctx: &Context, command: SyncCommand) -> Result<Exit, CliError> {
    match command {
        SyncCommand::Submit(args) => submit::run(ctx, *args).await,
        SyncCommand::Status(args) => show_status(ctx, args).await,
        SyncCommand::Wait(args) => wait_for_syncs(ctx, args).await,
        SyncCommand::Set { ids, bwlimit } => set_bwlimit(ctx, ids, bwlimit).await,
        SyncCommand::Retry { ids, failed_only } => retry(ctx, ids, failed_only).await,
        SyncCommand::Pause { ids } => pause(ctx, ids, true).await,
        SyncCommand::Resume { ids } => pause(ctx, ids, false).await,
        SyncCommand::Reassign { ids, worker } => workers::reassign(ctx, ids, worker).await,
        SyncCommand::Cancel { ids } => cancel(ctx, ids).await,
        SyncCommand::Delete { ids, ignore_not_found } => delete(ctx, ids, ignore_not_found).await,
        SyncCommand::Files(args) => records::print_files(ctx, args).await,
        SyncCommand::Manifest { id, others } => records::print_manifest(ctx, id, others).await,
        SyncCommand::Verify(args) => verify::run(ctx, args).await,
    }
}

async fn wait_for_syncs(ctx: &Context, args: WaitArgs) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let mut ids: Vec<RequestId> = Vec::new();
    for given in args.ids {
        let id = match resolve_id(&client, &given).await {
            // Its end is that it is not there.
            Err(e) if e.is_not_found() => given,
            found => found?,
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    wait_and_report(ctx, &client, ids, &args.wait_limit, &WaitOptions::default()).await
}

/// What is known of syncs that are waited for, and what follows their end.
#[derive(Debug, Default)]
pub(super) struct WaitOptions {
    /// This process submitted them.
    pub(super) submitted_here: bool,
    /// What is done with the records.
    pub(super) record_outputs: RecordOutputs,
    /// What the exit code reports beside failures.
    pub(super) exit_code: ExitCodeArgs,
}

/// Waits with progress, then tells the end.
///
/// # Errors
/// No master for too long; standard output or the manifest can't be written.
pub(super) async fn wait_and_report(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<RequestId>,
    until: &WaitLimitArgs,
    after: &WaitOptions,
) -> Result<Exit, CliError> {
    let mut asks = signals::listen_for_signals()?;
    let mut monitor = progress::new_monitor(&ctx.global);
    let waiter = SyncWaiter::new(client, monitor.as_mut(), ids, after.submitted_here)
        .with_resume_hint(&ctx.ctl_command);
    let waited = waiter.run(until, &mut asks).await?.with_no_transfer_exit(after.exit_code);
    let items = after.record_outputs.print_items(ctx, client, &waited).await;
    print_wait_outcome(ctx, &waited, until)?;
    items?;
    after.record_outputs.write_manifests(ctx, client, &waited).await?;
    Ok(waited.exit())
}

/// Prints the documents (json) or the results (table), and what went wrong.
fn print_wait_outcome(
    ctx: &Context,
    waited: &WaitOutcome,
    until: &WaitLimitArgs,
) -> Result<(), CliError> {
    if ctx.global.output == OutputFormat::Json {
        let seen = waited.syncs.iter().filter(|s| !s.was_deleted).filter_map(|s| s.latest.as_ref());
        console::write_data(&join_documents(
            seen.map(|s| &s.body[..]).collect(),
            waited.syncs.len() == 1,
        ))?;
    }
    for sync in &waited.syncs {
        match (&sync.latest, sync.exit) {
            (None, Some(Exit::NotFound)) => {
                console::print_note(&format!("error: there is no sync {}   (exit 3)", sync.id));
            }
            (_, Some(exit)) if sync.was_deleted => {
                console::print_note(&format!(
                    "{}  was deleted while it was waited for   (exit {})",
                    sync.id,
                    exit.code()
                ));
            }
            (Some(seen), Some(exit)) => {
                print_sync_end(ctx, seen, exit, &next_steps(ctx, seen))?;
            }
            _ => {}
        }
    }
    if let Some(stopped) = waited.stopped_by {
        let open: Vec<&str> =
            waited.syncs.iter().filter(|s| s.exit.is_none()).map(|s| s.id.as_str()).collect();
        let open = open.join(" ");
        let why = match stopped {
            Exit::TimedOut(_) => {
                format!(
                    "timed out after {}",
                    units::format_duration(until.timeout.unwrap_or_default())
                )
            }
            _ => "stopped waiting".to_owned(),
        };
        let (ctl, code) = (&ctx.ctl_command, stopped.code());
        let still = waited.syncs.iter().filter(|s| s.exit.is_none()).map(describe_unended);
        let still = still.collect::<Vec<_>>().join("; ");
        console::print_note(&format!(
            "{why}; {still}\n  watch: {ctl} sync wait {open}     stop: {ctl} sync cancel {open}   (exit {code})"
        ));
    }
    Ok(())
}

/// What can be done about the failures of a sync.
fn next_steps(ctx: &Context, sync: &SyncProgress) -> NextSteps {
    let (ctl, id) = (&ctx.ctl_command, &sync.request_id);
    let (from, to) = (quote_path(&sync.source_path), quote_path(&sync.destination_path));
    let options = to_cli_args(&sync.options, None) + &submit::bwlimit_arg(sync.bwlimit);
    NextSteps {
        rerun: format!("{ctl} sync retry {id}"),
        preview_deletions: format!(
            "{ctl} sync submit {from} {to}{options} --dry-run --itemize --wait"
        ),
        list_failures: format!("{ctl} sync files {id} --state failed"),
    }
}

/// What a sync that was no longer waited for was doing.
fn describe_unended(sync: &WaitedSync) -> String {
    let Some(seen) = &sync.latest else { return format!("{} was not seen yet", sync.id) };
    let reason = seen.reason.as_deref().map(|why| format!(": {}", console::sanitize(why)));
    format!("{} is still {}{}", sync.id, seen.state.as_str(), reason.unwrap_or_default())
}

/// Prints the result (table), what went wrong, and what to do `next`.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_sync_end(
    ctx: &Context,
    sync: &SyncProgress,
    exit: Exit,
    next: &NextSteps,
) -> Result<(), CliError> {
    if ctx.global.output == OutputFormat::Table && !ctx.global.quiet {
        console::write_data(outcome_report::result_text(sync).as_bytes())?;
    }
    if !ctx.global.quiet {
        outcome_report::note_lines(sync).iter().for_each(|line| console::print_note(line));
    }
    outcome_report::problem_lines(sync, exit, next)
        .iter()
        .for_each(|line| console::print_note(line));
    Ok(())
}

/// One document as it is, several as an array.
fn join_documents(bodies: Vec<&[u8]>, single: bool) -> Vec<u8> {
    if single {
        return bodies.concat();
    }
    let mut all = b"[".to_vec();
    all.extend(bodies.join(&b","[..]));
    all.push(b']');
    all
}

async fn show_status(ctx: &Context, args: StatusArgs) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let chosen = |s: &SyncProgress| args.state.is_empty() || args.state.contains(&s.state);
    if args.ids.is_empty() {
        let listed = client.list_syncs(&args.state, args.limit.map(|limit| limit as usize)).await?;
        match ctx.global.output {
            OutputFormat::Json => console::write_data(&listed.body)?,
            OutputFormat::Table => show_list(ctx, &listed)?,
        }
        return Ok(Exit::Ok);
    }
    let single = args.ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut found = Vec::new();
    for (nth, id) in args.ids.iter().enumerate() {
        let look = async |id: &RequestId| client.get_sync(id).await;
        match with_resolved_id(&client, id, look).await {
            Ok(reply) if chosen(&reply) => found.push(reply),
            Ok(_) => {}
            Err(e) => {
                let away = e.is_unreachable();
                let failure = CliError::from(e).with_subject(id, single);
                if single {
                    return Err(failure);
                }
                exit = exit.worse(failure.exit);
                console::print_note(&failure.render());
                if away {
                    note_not_tried(&args.ids[nth + 1..]);
                    break;
                }
            }
        }
    }
    match ctx.global.output {
        OutputFormat::Json => {
            console::write_data(&join_documents(
                found.iter().map(|r| &r.body[..]).collect(),
                single,
            ))?;
        }
        OutputFormat::Table if single => {
            for sync in &found {
                show_detail(ctx, sync)?;
            }
        }
        OutputFormat::Table => {
            show_list(ctx, &found.into_iter().map(|r| r.value).collect::<Vec<_>>())?;
        }
    }
    Ok(exit)
}

fn show_list(ctx: &Context, syncs: &[SyncProgress]) -> Result<(), CliError> {
    if ctx.global.quiet {
        let ids: String = syncs.iter().map(|s| format!("{}\n", s.request_id)).collect();
        return console::write_data(ids.as_bytes());
    }
    console::write_data(tables::sync_table(syncs, terminal_width(), Timestamp::now()).as_bytes())
}

fn show_detail(ctx: &Context, sync: &SyncProgress) -> Result<(), CliError> {
    if ctx.global.quiet {
        return console::write_data(sync.state.as_str().as_bytes());
    }
    let mut text = tables::sync_details(sync, Timestamp::now());
    let notes = outcome_report::note_lines(sync);
    if !notes.is_empty() {
        text.push_str(&format!("Notes:\n{}\n", notes.join("\n")));
    }
    let failures = outcome_report::failure_lines(sync, &next_steps(ctx, sync).list_failures);
    if !failures.is_empty() {
        text.push_str(&format!("Failures:\n{}\n", failures.join("\n")));
    }
    console::write_data(text.as_bytes())
}

/// What an order is about, and the command that shows what became of it.
pub(super) trait NamedResource: std::fmt::Display + Sized {
    /// The command, without `ctl`.
    fn status_command(&self) -> String;

    /// What is meant where there is nothing of exactly this name; `None`: nothing.
    ///
    /// # Errors
    /// Several things are, or no master can be asked.
    async fn resolve_prefix(&self, _: &MasterClient) -> Result<Option<Self>, ClientError> {
        Ok(None)
    }
}

impl NamedResource for RequestId {
    fn status_command(&self) -> String {
        format!("sync status {self}")
    }

    async fn resolve_prefix(&self, client: &MasterClient) -> Result<Option<Self>, ClientError> {
        client.resolve_id_prefix(self).await
    }
}

/// Acts on what `id` names, or, where there is nothing of exactly this name, on the only thing whose name begins so. The
/// exact name is tried first, by the action itself: a sync that is deleted meanwhile is never taken for another one
/// before the master has refused its name.
///
/// # Errors
/// As the action; several names begin so.
pub(super) async fn with_resolved_id<T: NamedResource, R>(
    client: &MasterClient,
    id: &T,
    act: impl AsyncFn(&T) -> Result<R, ClientError>,
) -> Result<R, ClientError> {
    match act(id).await {
        Err(e) if e.is_not_found() => match id.resolve_prefix(client).await? {
            Some(id) => act(&id).await,
            None => Err(e),
        },
        done => done,
    }
}

/// The whole id of the sync that `id` or its beginning names.
///
/// # Errors
/// There is none, or more than one; any other [`ClientError`].
pub(super) async fn resolve_id(
    client: &MasterClient,
    id: &RequestId,
) -> Result<RequestId, ClientError> {
    let found =
        with_resolved_id(client, id, async |id: &RequestId| client.get_sync(id).await).await?;
    Ok(found.value.request_id)
}

impl NamedResource for WorkerId {
    fn status_command(&self) -> String {
        format!("workers show {self}")
    }
}

/// Acts on one sync (or worker) after the other, and prints the result of each. A failure does not keep the
/// others from their turn, unless no master can be reached: then those that are left are named. The exit code
/// is the worst one.
pub(super) async fn for_each_resource<T: NamedResource>(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<T>,
    act: impl AsyncFn(&T) -> Result<Option<(String, Bytes)>, ClientError>,
) -> Result<Exit, CliError> {
    let single = ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut bodies = Vec::new();
    for (nth, id) in ids.iter().enumerate() {
        match with_resolved_id(client, id, &act).await {
            Ok(Some((text, body))) => {
                if ctx.global.output == OutputFormat::Table && !ctx.global.quiet {
                    console::write_data(text.as_bytes())?;
                }
                bodies.push(body);
            }
            Ok(None) => {}
            Err(e) => {
                let (away, doubtful) = (e.is_unreachable(), e.is_unconfirmed());
                let mut failure = CliError::from(name_flags(e)).with_subject(id, single);
                if doubtful {
                    let show = id.status_command();
                    failure =
                        failure.with_hint(format!("see its state: {} {show}", ctx.ctl_command));
                }
                if single {
                    return Err(failure);
                }
                exit = exit.worse(failure.exit);
                console::print_note(&failure.render());
                if away {
                    note_not_tried(&ids[nth + 1..]);
                    break;
                }
            }
        }
    }
    if ctx.global.output == OutputFormat::Json {
        console::write_data(&join_documents(bodies.iter().map(|b| &b[..]).collect(), single))?;
    }
    Ok(exit)
}

/// Names what a command did not come to.
fn note_not_tried<T: std::fmt::Display>(ids: &[T]) {
    if !ids.is_empty() {
        let ids: Vec<String> = ids.iter().map(T::to_string).collect();
        console::print_note(&format!("not tried: {}", ids.join(" ")));
    }
}

async fn set_bwlimit(
    ctx: &Context,
    ids: Vec<RequestId>,
    bwlimit: Bwlimit,
) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let change = SyncPatch { bwlimit: bwlimit.0 };
    let set = async |id: &RequestId| {
        let reply = client.update_sync(id, &change).await?;
        let text = match reply.bwlimit.map(|limit| units::format_rate(limit as f64)) {
            Some(limit) => format!("Sync {id} sends at most {limit} from now on"),
            None => format!("Sync {id} has no limit of its own from now on"),
        };
        Ok(Some((text, reply.body)))
    };
    for_each_resource(ctx, &client, ids, set).await
}

async fn retry(ctx: &Context, ids: Vec<RequestId>, failed_only: bool) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let made = RefCell::new(Vec::new());
    let ctl = &ctx.ctl_command;
    let retry = async |id: &RequestId| {
        // Made here, so that it can be named where no reply arrives.
        let new = RequestId::from(unique_id::generate_id());
        let request = RetryRequest { request_id: Some(new.clone()), failed_only };
        let key = unique_id::generate_id().to_string();
        let reply = client.retry_sync(id, &request, &key).await.inspect_err(|e| {
            if e.is_unconfirmed() {
                console::print_note(&format!(
                    "sync {id} may have been retried as {new}: {ctl} sync status {new}"
                ));
            }
        })?;
        let new = &reply.request_id;
        for warning in &reply.warnings {
            console::print_note(&format!("warning: {}", console::sanitize(warning)));
        }
        let text =
            format!("Sync {id} is submitted again as {new}\n  follow: {ctl} sync wait {new}");
        made.borrow_mut().push(new.clone());
        Ok(Some((text, reply.body)))
    };
    let exit = for_each_resource(ctx, &client, ids, retry).await?;
    if ctx.global.quiet && ctx.global.output == OutputFormat::Table {
        for id in made.take() {
            console::write_data(id.as_str().as_bytes())?;
        }
    }
    Ok(exit)
}

async fn pause(ctx: &Context, ids: Vec<RequestId>, on: bool) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let pause = async |id: &RequestId| {
        let reply = client.set_paused(id, on).await?;
        let what = match on {
            true => "is paused: running tasks finish, no new ones start",
            false => "is resumed",
        };
        Ok(Some((format!("Sync {id} {what}"), reply.body)))
    };
    for_each_resource(ctx, &client, ids, pause).await
}

async fn cancel(ctx: &Context, ids: Vec<RequestId>) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let cancel = async |id: &RequestId| {
        let reply = client.cancel_sync(id).await?;
        let what = match reply.state {
            SyncState::Cancelled => "is cancelled".to_owned(),
            state if state.is_final() => format!("had ended already: {}", state.as_str()),
            _ => "is being cancelled".to_owned(),
        };
        Ok(Some((format!("Sync {id} {what}; copied files stay"), reply.body)))
    };
    for_each_resource(ctx, &client, ids, cancel).await
}

async fn delete(
    ctx: &Context,
    ids: Vec<RequestId>,
    ignore_not_found: bool,
) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let delete = async |id: &RequestId| match client.delete_sync(id).await {
        Ok(reply) => {
            let how = match reply["cancelled"].as_bool() {
                Some(true) => "had not ended: it is cancelled and deleted",
                _ => "is deleted",
            };
            let text = format!("Sync {id} {how}; copied files stay");
            Ok(Some((text, reply.body)))
        }
        Err(e) if e.is_not_found() && ignore_not_found => Ok(None),
        Err(e) => Err(e),
    };
    for_each_resource(ctx, &client, ids, delete).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_become_an_array_and_one_stays_itself() {
        assert_eq!(join_documents(vec![b"{}", b"1"], false), b"[{},1]");
        assert_eq!(join_documents(vec![], false), b"[]");
        assert_eq!(join_documents(vec![b"{ \"a\" : 1}"], true), b"{ \"a\" : 1}");
    }
}
