//! `ctl sync …`.

use super::Context;
use super::args::{Bwlimit, EndArgs, Output, StatusArgs, SyncCommand, UntilArgs, WaitArgs};
use super::exit::Exit;
use super::failure::Failure;
use super::flags::about_flags;
use super::layout::width;
use super::options::again;
use super::records::Wanted;
use super::report::Next;
use super::submit::quoted;
use super::wait::{Ended, Waited, Waiter};
use super::{out, progress, records, report, signals, submit, table, verify, workers};
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
pub(super) async fn run(ctx: &Context, command: SyncCommand) -> Result<Exit, Failure> {
    match command {
        SyncCommand::Submit(args) => submit::run(ctx, *args).await,
        SyncCommand::Status(args) => status(ctx, args).await,
        SyncCommand::Wait(args) => wait(ctx, args).await,
        SyncCommand::Set { ids, bwlimit } => set(ctx, ids, bwlimit).await,
        SyncCommand::Retry { ids, failed_only } => retry(ctx, ids, failed_only).await,
        SyncCommand::Pause { ids } => pause(ctx, ids, true).await,
        SyncCommand::Resume { ids } => pause(ctx, ids, false).await,
        SyncCommand::Reassign { ids, worker } => workers::reassign(ctx, ids, worker).await,
        SyncCommand::Cancel { ids } => cancel(ctx, ids).await,
        SyncCommand::Delete { ids, ignore_not_found } => delete(ctx, ids, ignore_not_found).await,
        SyncCommand::Files(args) => records::files(ctx, args).await,
        SyncCommand::Manifest { id, others } => records::manifest(ctx, id, others).await,
        SyncCommand::Verify(args) => verify::run(ctx, args).await,
    }
}

async fn wait(ctx: &Context, args: WaitArgs) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let mut ids: Vec<RequestId> = Vec::new();
    for given in args.ids {
        let id = match full_id(&client, &given).await {
            // Its end is that it is not there.
            Err(e) if e.is_not_found() => given,
            found => found?,
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    watch(ctx, &client, ids, &args.until, &After::default()).await
}

/// What is known of syncs that are waited for, and what follows their end.
#[derive(Debug, Default)]
pub(super) struct After {
    /// This process submitted them.
    pub(super) accepted: bool,
    /// What is done with the records.
    pub(super) wanted: Wanted,
    /// What the exit code reports beside failures.
    pub(super) end: EndArgs,
}

/// Waits with progress, then tells the end.
///
/// # Errors
/// No master for too long; standard output or the manifest can't be written.
pub(super) async fn watch(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<RequestId>,
    until: &UntilArgs,
    after: &After,
) -> Result<Exit, Failure> {
    let mut asks = signals::listen()?;
    let mut monitor = progress::monitor(&ctx.global);
    let waiter = Waiter::new(client, monitor.as_mut(), ids, after.accepted).resumed_by(&ctx.ctl);
    let waited = waiter.run(until, &mut asks).await?.judged(after.end);
    let items = after.wanted.items(ctx, client, &waited).await;
    tell(ctx, &waited, until)?;
    items?;
    after.wanted.manifests(ctx, client, &waited).await?;
    Ok(waited.exit())
}

/// Prints the documents (json) or the results (table), and what went wrong.
fn tell(ctx: &Context, waited: &Waited, until: &UntilArgs) -> Result<(), Failure> {
    if ctx.global.output == Output::Json {
        let seen = waited.syncs.iter().filter(|s| !s.deleted).filter_map(|s| s.seen.as_ref());
        out::data(&documents(seen.map(|s| &s.body[..]).collect(), waited.syncs.len() == 1))?;
    }
    for sync in &waited.syncs {
        match (&sync.seen, sync.exit) {
            (None, Some(Exit::NotFound)) => {
                out::note(&format!("error: there is no sync {}   (exit 3)", sync.id));
            }
            (_, Some(exit)) if sync.deleted => {
                out::note(&format!(
                    "{}  was deleted while it was waited for   (exit {})",
                    sync.id,
                    exit.code()
                ));
            }
            (Some(seen), Some(exit)) => {
                tell_end(ctx, seen, exit, &next(ctx, seen))?;
            }
            _ => {}
        }
    }
    if let Some(stopped) = waited.stopped {
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
        let (ctl, code) = (&ctx.ctl, stopped.code());
        let still = waited.syncs.iter().filter(|s| s.exit.is_none()).map(still);
        let still = still.collect::<Vec<_>>().join("; ");
        out::note(&format!(
            "{why}; {still}\n  watch: {ctl} sync wait {open}     stop: {ctl} sync cancel {open}   (exit {code})"
        ));
    }
    Ok(())
}

/// What can be done about the failures of a sync.
fn next(ctx: &Context, sync: &SyncProgress) -> Next {
    let (ctl, id) = (&ctx.ctl, &sync.request_id);
    let (from, to) = (quoted(&sync.source_path), quoted(&sync.destination_path));
    let options = again(&sync.options, None) + &submit::limited(sync.bwlimit);
    Next {
        again: format!("{ctl} sync retry {id}"),
        preview: format!("{ctl} sync submit {from} {to}{options} --dry-run --itemize --wait"),
        files: format!("{ctl} sync files {id} --state failed"),
    }
}

/// What a sync that was no longer waited for was doing.
fn still(sync: &Ended) -> String {
    let Some(seen) = &sync.seen else { return format!("{} was not seen yet", sync.id) };
    let reason = seen.reason.as_deref().map(|why| format!(": {}", out::clean(why)));
    format!("{} is still {}{}", sync.id, seen.state.as_str(), reason.unwrap_or_default())
}

/// Prints the result (table), what went wrong, and what to do `next`.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn tell_end(
    ctx: &Context,
    sync: &SyncProgress,
    exit: Exit,
    next: &Next,
) -> Result<(), Failure> {
    if ctx.global.output == Output::Table && !ctx.global.quiet {
        out::data(report::result(sync).as_bytes())?;
    }
    if !ctx.global.quiet {
        report::notes(sync).iter().for_each(|line| out::note(line));
    }
    report::trouble(sync, exit, next).iter().for_each(|line| out::note(line));
    Ok(())
}

/// One document as it is, several as an array.
fn documents(bodies: Vec<&[u8]>, single: bool) -> Vec<u8> {
    if single {
        return bodies.concat();
    }
    let mut all = b"[".to_vec();
    all.extend(bodies.join(&b","[..]));
    all.push(b']');
    all
}

async fn status(ctx: &Context, args: StatusArgs) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let chosen = |s: &SyncProgress| args.state.is_empty() || args.state.contains(&s.state);
    if args.ids.is_empty() {
        let listed = client.list(&args.state, args.limit.map(|limit| limit as usize)).await?;
        match ctx.global.output {
            Output::Json => out::data(&listed.body)?,
            Output::Table => show_list(ctx, &listed)?,
        }
        return Ok(Exit::Ok);
    }
    let single = args.ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut found = Vec::new();
    for (nth, id) in args.ids.iter().enumerate() {
        let look = async |id: &RequestId| client.progress(id).await;
        match on_named(&client, id, look).await {
            Ok(reply) if chosen(&reply) => found.push(reply),
            Ok(_) => {}
            Err(e) => {
                let away = e.is_unreachable();
                let failure = Failure::from(e).about(id, single);
                if single {
                    return Err(failure);
                }
                exit = exit.worst(failure.exit);
                out::note(&failure.render());
                if away {
                    note_untried(&args.ids[nth + 1..]);
                    break;
                }
            }
        }
    }
    match ctx.global.output {
        Output::Json => {
            out::data(&documents(found.iter().map(|r| &r.body[..]).collect(), single))?;
        }
        Output::Table if single => {
            for sync in &found {
                show_detail(ctx, sync)?;
            }
        }
        Output::Table => {
            show_list(ctx, &found.into_iter().map(|r| r.value).collect::<Vec<_>>())?;
        }
    }
    Ok(exit)
}

fn show_list(ctx: &Context, syncs: &[SyncProgress]) -> Result<(), Failure> {
    if ctx.global.quiet {
        let ids: String = syncs.iter().map(|s| format!("{}\n", s.request_id)).collect();
        return out::data(ids.as_bytes());
    }
    out::data(table::syncs(syncs, width(), Timestamp::now()).as_bytes())
}

fn show_detail(ctx: &Context, sync: &SyncProgress) -> Result<(), Failure> {
    if ctx.global.quiet {
        return out::data(sync.state.as_str().as_bytes());
    }
    let mut text = table::record(sync, Timestamp::now());
    let notes = report::notes(sync);
    if !notes.is_empty() {
        text.push_str(&format!("Notes:\n{}\n", notes.join("\n")));
    }
    let failures = report::failures(sync, &next(ctx, sync).files);
    if !failures.is_empty() {
        text.push_str(&format!("Failures:\n{}\n", failures.join("\n")));
    }
    out::data(text.as_bytes())
}

/// What an order is about, and the command that shows what became of it.
pub(super) trait Target: std::fmt::Display + Sized {
    /// The command, without `ctl`.
    fn show(&self) -> String;

    /// What is meant where there is nothing of exactly this name; `None`: nothing.
    ///
    /// # Errors
    /// Several things are, or no master can be asked.
    async fn complete(&self, _: &MasterClient) -> Result<Option<Self>, ClientError> {
        Ok(None)
    }
}

impl Target for RequestId {
    fn show(&self) -> String {
        format!("sync status {self}")
    }

    async fn complete(&self, client: &MasterClient) -> Result<Option<Self>, ClientError> {
        client.complete_id(self).await
    }
}

/// Acts on what `id` names, or, where there is nothing of exactly this name, on the only thing whose name begins so. The
/// exact name is tried first, by the action itself: a sync that is deleted meanwhile is never taken for another one
/// before the master has refused its name.
///
/// # Errors
/// As the action; several names begin so.
pub(super) async fn on_named<T: Target, R>(
    client: &MasterClient,
    id: &T,
    act: impl AsyncFn(&T) -> Result<R, ClientError>,
) -> Result<R, ClientError> {
    match act(id).await {
        Err(e) if e.is_not_found() => match id.complete(client).await? {
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
pub(super) async fn full_id(
    client: &MasterClient,
    id: &RequestId,
) -> Result<RequestId, ClientError> {
    let found = on_named(client, id, async |id: &RequestId| client.progress(id).await).await?;
    Ok(found.value.request_id)
}

impl Target for WorkerId {
    fn show(&self) -> String {
        format!("workers show {self}")
    }
}

/// Acts on one sync (or worker) after the other, and prints the result of each. A failure does not keep the
/// others from their turn, unless no master can be reached: then those that are left are named. The exit code
/// is the worst one.
pub(super) async fn for_each<T: Target>(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<T>,
    act: impl AsyncFn(&T) -> Result<Option<(String, Bytes)>, ClientError>,
) -> Result<Exit, Failure> {
    let single = ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut bodies = Vec::new();
    for (nth, id) in ids.iter().enumerate() {
        match on_named(client, id, &act).await {
            Ok(Some((text, body))) => {
                if ctx.global.output == Output::Table && !ctx.global.quiet {
                    out::data(text.as_bytes())?;
                }
                bodies.push(body);
            }
            Ok(None) => {}
            Err(e) => {
                let (away, doubtful) = (e.is_unreachable(), e.is_unconfirmed());
                let mut failure = Failure::from(about_flags(e)).about(id, single);
                if doubtful {
                    let show = id.show();
                    failure = failure.hinted(format!("see its state: {} {show}", ctx.ctl));
                }
                if single {
                    return Err(failure);
                }
                exit = exit.worst(failure.exit);
                out::note(&failure.render());
                if away {
                    note_untried(&ids[nth + 1..]);
                    break;
                }
            }
        }
    }
    if ctx.global.output == Output::Json {
        out::data(&documents(bodies.iter().map(|b| &b[..]).collect(), single))?;
    }
    Ok(exit)
}

/// Names what a command did not come to.
fn note_untried<T: std::fmt::Display>(ids: &[T]) {
    if !ids.is_empty() {
        let ids: Vec<String> = ids.iter().map(T::to_string).collect();
        out::note(&format!("not tried: {}", ids.join(" ")));
    }
}

async fn set(ctx: &Context, ids: Vec<RequestId>, bwlimit: Bwlimit) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let change = SyncPatch { bwlimit: bwlimit.0 };
    let set = async |id: &RequestId| {
        let reply = client.change(id, &change).await?;
        let text = match reply.bwlimit.map(|limit| units::format_rate(limit as f64)) {
            Some(limit) => format!("Sync {id} sends at most {limit} from now on"),
            None => format!("Sync {id} has no limit of its own from now on"),
        };
        Ok(Some((text, reply.body)))
    };
    for_each(ctx, &client, ids, set).await
}

async fn retry(ctx: &Context, ids: Vec<RequestId>, failed_only: bool) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let made = RefCell::new(Vec::new());
    let ctl = &ctx.ctl;
    let retry = async |id: &RequestId| {
        // Made here, so that it can be named where no reply arrives.
        let new = RequestId::from(unique_id::generate_id());
        let request = RetryRequest { request_id: Some(new.clone()), failed_only };
        let key = unique_id::generate_id().to_string();
        let reply = client.retry(id, &request, &key).await.inspect_err(|e| {
            if e.is_unconfirmed() {
                out::note(&format!(
                    "sync {id} may have been retried as {new}: {ctl} sync status {new}"
                ));
            }
        })?;
        let new = &reply.request_id;
        for warning in &reply.warnings {
            out::note(&format!("warning: {}", out::clean(warning)));
        }
        let text =
            format!("Sync {id} is submitted again as {new}\n  follow: {ctl} sync wait {new}");
        made.borrow_mut().push(new.clone());
        Ok(Some((text, reply.body)))
    };
    let exit = for_each(ctx, &client, ids, retry).await?;
    if ctx.global.quiet && ctx.global.output == Output::Table {
        for id in made.take() {
            out::data(id.as_str().as_bytes())?;
        }
    }
    Ok(exit)
}

async fn pause(ctx: &Context, ids: Vec<RequestId>, on: bool) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let pause = async |id: &RequestId| {
        let reply = client.pause(id, on).await?;
        let what = match on {
            true => "is paused: running tasks finish, no new ones start",
            false => "is resumed",
        };
        Ok(Some((format!("Sync {id} {what}"), reply.body)))
    };
    for_each(ctx, &client, ids, pause).await
}

async fn cancel(ctx: &Context, ids: Vec<RequestId>) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let cancel = async |id: &RequestId| {
        let reply = client.cancel(id).await?;
        let what = match reply.state {
            SyncState::Cancelled => "is cancelled".to_owned(),
            state if state.is_final() => format!("had ended already: {}", state.as_str()),
            _ => "is being cancelled".to_owned(),
        };
        Ok(Some((format!("Sync {id} {what}; copied files stay"), reply.body)))
    };
    for_each(ctx, &client, ids, cancel).await
}

async fn delete(
    ctx: &Context,
    ids: Vec<RequestId>,
    ignore_not_found: bool,
) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let delete = async |id: &RequestId| match client.delete(id).await {
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
    for_each(ctx, &client, ids, delete).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_are_an_array_and_one_is_itself() {
        assert_eq!(documents(vec![b"{}", b"1"], false), b"[{},1]");
        assert_eq!(documents(vec![], false), b"[]");
        assert_eq!(documents(vec![b"{ \"a\" : 1}"], true), b"{ \"a\" : 1}");
    }
}
