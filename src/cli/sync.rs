//! `ctl sync …`.

use super::Context;
use super::args::{Output, StatusArgs, SubmitArgs, SyncCommand, UntilArgs, WaitArgs, WhatArgs};
use super::exit::Exit;
use super::failure::Failure;
use super::wait::{Waited, Waiter};
use super::{names, out, progress, report, signals, table};
use crate::client::{ClientError, MasterClient, Reply};
use crate::util::units;
use crate::wire::sync::{Submitted, SyncProgress};
use crate::wire::{AbsPath, BytePath, RequestId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Runs one of the commands.
///
/// # Errors
/// See [`Exit`].
pub(super) async fn run(ctx: &Context, command: SyncCommand) -> Result<Exit, Failure> {
    match command {
        SyncCommand::Submit(args) => submit(ctx, args).await,
        SyncCommand::Status(args) => status(ctx, args).await,
        SyncCommand::Wait(args) => wait(ctx, args).await,
        SyncCommand::Cancel { ids } => cancel(ctx, ids).await,
        SyncCommand::Delete { ids, ignore_not_found } => delete(ctx, ids, ignore_not_found).await,
    }
}

/// A `SyncRequest` in which the chunk size may be left to the master.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<RequestId>,
    pub(super) source_path: AbsPath,
    pub(super) destination_path: AbsPath,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chunk_size_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_list: Option<Vec<BytePath>>,
}

/// What goes where, for people.
pub(super) fn mapping(source: &AbsPath, destination: &AbsPath) -> String {
    let name = crate::wire::RelPath::new("NAME").unwrap_or_default();
    format!("{} → {}", source.join(&name), destination.join(&name))
}

async fn submit(ctx: &Context, args: SubmitArgs) -> Result<Exit, Failure> {
    if !args.wait && (args.until.timeout.is_some() || args.until.cancel_on_interrupt) {
        return Err(Failure::usage("--timeout and --cancel-on-interrupt say how to wait")
            .hinted("add --wait"));
    }
    let request = match (&args.file, &args.source, &args.destination) {
        (Some(file), _, _) => {
            let told = parse_request(&names::raw(file, "the request")?)?;
            Submission {
                request_id: args.id.or(told.request_id),
                chunk_size_mb: args.what.chunk_size_mb.or(told.chunk_size_mb),
                ..told
            }
        }
        (None, Some(source), Some(destination)) => {
            let source = storage_path("SRC", source)?;
            let destination = storage_path("DST", destination)?;
            request(&[source], destination, args.id, &args.what)?
        }
        (None, _, _) => return Err(Failure::usage("SRC and DST, or --file FILE, are needed")),
    };
    let client = ctx.client()?;
    let submitted = send(&client, &request, ctx.global.request_timeout).await?;
    let id = submitted.request_id.clone();
    if args.wait {
        if ctx.global.quiet && ctx.global.output == Output::Table {
            out::data(id.to_string().as_bytes())?;
        } else if !ctx.global.quiet {
            out::note(&accepted(ctx, &request, &id, false));
        }
        return watch(ctx, &client, vec![id], true, &args.until, &listed(&args.what)).await;
    }
    match ctx.global.output {
        Output::Json => out::data(&submitted.body)?,
        Output::Table if ctx.global.quiet => out::data(id.to_string().as_bytes())?,
        Output::Table => out::data(accepted(ctx, &request, &id, true).as_bytes())?,
    }
    Ok(Exit::Ok)
}

/// The message of a submit; with `next`, what can be done next.
fn accepted(ctx: &Context, request: &Submission, id: &RequestId, next: bool) -> String {
    let (from, to) = (&request.source_path, &request.destination_path);
    let mut text = format!("Submitted sync {id}: {from} → {to}\n  e.g. {}", mapping(from, to));
    if let Some(list) = &request.file_list {
        text.push_str(&format!("   only {} listed names", units::count(list.len() as u64)));
    }
    if next {
        let ctl = &ctx.ctl;
        text.push_str(&format!(
            "\n  follow: {ctl} sync wait {id}     details: {ctl} sync status {id}     stop: {ctl} sync cancel {id}"
        ));
    }
    text
}

/// The request of the arguments, its file list read and checked. `sources` is the source, and other
/// names that it has.
///
/// # Errors
/// What [`names::read`] refuses.
pub(super) fn request(
    sources: &[AbsPath],
    destination_path: AbsPath,
    request_id: Option<RequestId>,
    what: &WhatArgs,
) -> Result<Submission, Failure> {
    let file_list = match &what.files_from {
        Some(from) => Some(names::read(from, what.from0, sources)?),
        None => None,
    };
    let chunk_size_mb = what.chunk_size_mb;
    let source_path = sources[0].clone();
    Ok(Submission { request_id, source_path, destination_path, chunk_size_mb, file_list })
}

/// Reads a request as `POST /sync` takes it; YAML, of which JSON is a part.
///
/// # Errors
/// Text that is neither, or a field that is unknown, missing or wrong, with its place.
fn parse_request(raw: &[u8]) -> Result<Submission, Failure> {
    let failure = |why: String| {
        Failure::usage(format!("the request cannot be read: {why}"))
            .hinted("it takes source_path, destination_path, request_id, chunk_size_mb, file_list")
    };
    let text = std::str::from_utf8(raw).map_err(|e| failure(e.to_string()))?;
    // Read as a value first: only that refuses a key that is there twice.
    let value: serde_yaml::Value =
        serde_yaml::from_str(text).map_err(|e| failure(e.to_string()))?;
    serde_path_to_error::deserialize(value).map_err(|e| failure(e.to_string()))
}

/// SRC and DST are paths of the storage hosts: what this host's working directory is says nothing.
fn storage_path(what: &str, given: &OsStr) -> Result<AbsPath, Failure> {
    AbsPath::new(given.as_bytes()).map_err(|e| {
        let shown = crate::wire::path::show(given.as_bytes());
        let failure = Failure::usage(format!("{what} `{shown}` {e}"));
        if given.as_bytes().first() == Some(&b'/') {
            return failure;
        }
        failure
            .noted("SRC and DST are paths on the storage hosts, not on this one")
            .hinted("to copy on this host: ctl copy SRC DST")
    })
}

/// Submits under a key of its own, so that sending it again is safe, and does that while the master
/// says "not now".
///
/// # Errors
/// The id exists (6), the request is wrong (2), no master for `patience` (5).
pub(super) async fn send(
    client: &MasterClient,
    request: &Submission,
    patience: Duration,
) -> Result<Reply<Submitted>, Failure> {
    let key = uuid::Uuid::now_v7().to_string();
    let begun = Instant::now();
    loop {
        let e = match client.submit(request, Some(&key)).await {
            Ok(submitted) => return Ok(submitted),
            Err(e) => e,
        };
        // A master that can't be reached at all is most often a wrong URL: say so at once.
        let pause = e.retry_after().unwrap_or(Duration::from_secs(1));
        let busy = e.is_temporary() && !matches!(e, ClientError::Unreachable { .. });
        if busy && begun.elapsed() + pause < patience {
            tokio::time::sleep(pause).await;
            continue;
        }
        return Err(refused(e, request));
    }
}

fn refused(e: ClientError, request: &Submission) -> Failure {
    let existing = match &e {
        ClientError::Problem { problem, .. } => problem.existing.clone(),
        _ => None,
    };
    let failure = Failure::from(e);
    match (existing, &request.request_id) {
        (Some(_), Some(id)) => failure.hinted(format!(
            "look at it: ctl sync status {id}     forget it: ctl sync delete {id}     or give another --id"
        )),
        _ => failure,
    }
}

async fn wait(ctx: &Context, args: WaitArgs) -> Result<Exit, Failure> {
    let mut ids: Vec<RequestId> = Vec::new();
    for id in args.ids {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    watch(ctx, &ctx.client()?, ids, false, &args.until, "").await
}

/// Waits with progress, then tells the end.
async fn watch(
    ctx: &Context,
    client: &MasterClient,
    ids: Vec<RequestId>,
    accepted: bool,
    until: &UntilArgs,
    listed: &str,
) -> Result<Exit, Failure> {
    let mut asks = signals::listen()?;
    let mut monitor = progress::monitor(&ctx.global);
    let waiter = Waiter::new(client, monitor.as_mut(), ids, accepted);
    let waited = waiter.run(until, &mut asks).await?;
    tell(ctx, &waited, until, listed)?;
    Ok(waited.exit())
}

/// Prints the documents (json) or the results (table), and what went wrong.
fn tell(ctx: &Context, waited: &Waited, until: &UntilArgs, listed: &str) -> Result<(), Failure> {
    if ctx.global.output == Output::Json {
        let seen = waited.syncs.iter().filter(|s| !s.deleted).filter_map(|s| s.seen.as_ref());
        out::data(&documents(seen.map(|s| &s.body[..]).collect(), waited.syncs.len() == 1))?;
    }
    for sync in &waited.syncs {
        match (&sync.seen, sync.exit) {
            (_, Some(Exit::NotFound)) => {
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
                let (from, to) = (quoted(&seen.source_path), quoted(&seen.destination_path));
                let again = format!("{} sync submit {from} {to}{listed} --wait", ctx.ctl);
                tell_end(ctx, seen, exit, &again)?;
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
                format!("the time of {} is up", units::duration(until.timeout.unwrap_or_default()))
            }
            _ => "stopped waiting".to_owned(),
        };
        let (ctl, code) = (&ctx.ctl, stopped.code());
        out::note(&format!(
            "{why}; still going on: {open}\n  watch: {ctl} sync wait {open}     stop: {ctl} sync cancel {open}   (exit {code})"
        ));
    }
    Ok(())
}

/// Prints the result (table), and what went wrong; `again` is how to run the same once more.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn tell_end(
    ctx: &Context,
    sync: &SyncProgress,
    exit: Exit,
    again: &str,
) -> Result<(), Failure> {
    if ctx.global.output == Output::Table && !ctx.global.quiet {
        out::data(report::result(sync).as_bytes())?;
    }
    for line in report::trouble(sync, exit, again) {
        out::note(&line);
    }
    Ok(())
}

/// A path as a shell takes it back; what can't be typed stays escaped.
pub(super) fn quoted(path: &AbsPath) -> String {
    shell_word(path.to_string())
}

/// The options that name the list again, behind a blank; nothing without a list. Without them the
/// advice to run it once more would have everything copied.
pub(super) fn listed(what: &WhatArgs) -> String {
    let Some(from) = &what.files_from else { return String::new() };
    let zero = if what.from0 { " -0" } else { "" };
    let name = crate::wire::path::show(from.as_os_str().as_bytes()).to_string();
    format!(" --files-from {}{zero}", shell_word(name))
}

fn shell_word(shown: String) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b);
    if shown.bytes().all(plain) { shown } else { format!("'{}'", shown.replace('\'', "'\\''")) }
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
        let all = client.list().await?;
        if ctx.global.output == Output::Json && args.state.is_empty() {
            out::data(&all.body)?;
            return Ok(Exit::Ok);
        }
        // The same documents, those that do not match left out.
        let raw: Vec<serde_json::Value> = serde_json::from_slice(&all.body)
            .map_err(|e| Failure::new(format!("cannot read the master's list: {e}")))?;
        let kept = all.value.iter().zip(raw).filter(|(sync, _)| chosen(sync));
        let (syncs, raw): (Vec<_>, Vec<_>) = kept.map(|(s, r)| (s.clone(), r)).unzip();
        match ctx.global.output {
            Output::Json => out::data(serde_json::Value::Array(raw).to_string().as_bytes())?,
            Output::Table => show_list(ctx, &syncs)?,
        }
        return Ok(Exit::Ok);
    }
    let single = args.ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut found = Vec::new();
    for id in &args.ids {
        match client.progress(id).await {
            Ok(reply) if chosen(&reply) => found.push(reply),
            Ok(_) => {}
            Err(e) if e.is_not_found() => exit = exit.worst(missing(e)),
            Err(e) => return Err(e.into()),
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

/// Tells that an id does not exist, and goes on with the others.
fn missing(e: ClientError) -> Exit {
    let failure = Failure::from(e);
    out::note(&failure.render());
    failure.exit
}

fn show_list(ctx: &Context, syncs: &[SyncProgress]) -> Result<(), Failure> {
    if ctx.global.quiet {
        let ids: String = syncs.iter().map(|s| format!("{}\n", s.request_id)).collect();
        return out::data(ids.as_bytes());
    }
    out::data(table::syncs(syncs, Timestamp::now()).as_bytes())
}

fn show_detail(ctx: &Context, sync: &SyncProgress) -> Result<(), Failure> {
    if ctx.global.quiet {
        return out::data(sync.state.as_str().as_bytes());
    }
    let mut text = table::record(sync, Timestamp::now());
    let failures = report::failures(sync);
    if !failures.is_empty() {
        text.push_str(&format!("Failures:\n{}\n", failures.join("\n")));
    }
    out::data(text.as_bytes())
}

async fn cancel(ctx: &Context, ids: Vec<RequestId>) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let single = ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut bodies = Vec::new();
    for id in ids {
        match client.cancel(&id).await {
            Ok(reply) => {
                if ctx.global.output == Output::Table && !ctx.global.quiet {
                    let what = match reply.state {
                        crate::wire::sync::SyncState::Cancelled => "is cancelled".to_owned(),
                        state if state.is_final() => {
                            format!("had ended already: {}", state.as_str())
                        }
                        _ => "is being cancelled".to_owned(),
                    };
                    out::data(format!("Sync {id} {what}; what arrived stays").as_bytes())?;
                }
                bodies.push(reply.body);
            }
            Err(e) if e.is_not_found() || e.status() == Some(409) => {
                exit = exit.worst(missing(e));
            }
            Err(e) => return Err(e.into()),
        }
    }
    if ctx.global.output == Output::Json {
        out::data(&documents(bodies.iter().map(|b| &b[..]).collect(), single))?;
    }
    Ok(exit)
}

async fn delete(
    ctx: &Context,
    ids: Vec<RequestId>,
    ignore_not_found: bool,
) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let single = ids.len() == 1;
    let mut exit = Exit::Ok;
    let mut bodies = Vec::new();
    for id in ids {
        match client.delete(&id).await {
            Ok(reply) => {
                if ctx.global.output == Output::Table && !ctx.global.quiet {
                    let text = format!("Sync {id} is forgotten; files that arrived stay");
                    out::data(text.as_bytes())?;
                }
                bodies.push(reply.body);
            }
            Err(e) if e.is_not_found() && ignore_not_found => {}
            Err(e) if e.is_not_found() => exit = exit.worst(missing(e)),
            Err(e) => return Err(e.into()),
        }
    }
    if ctx.global.output == Output::Json {
        out::data(&documents(bodies.iter().map(|b| &b[..]).collect(), single))?;
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_file_is_yaml_or_json_and_says_what_is_wrong() {
        let json = br#"{"source_path": "/a", "destination_path": "/b", "chunk_size_mb": 8}"#;
        let yaml = b"source_path: /a\ndestination_path: /b\nchunk_size_mb: 8\n";
        assert_eq!(parse_request(json).unwrap(), parse_request(yaml).unwrap());
        for (bad, told) in [
            ("source_path: /a\ndestination: /b\n", "unknown field `destination`"),
            ("source_path: /a\n", "missing field `destination_path`"),
            ("source_path: a\ndestination_path: /b\n", "source_path: must be absolute"),
            ("source_path: /a\nsource_path: /c\ndestination_path: /b\n", "duplicate"),
            ("source_path: [\n", "line 2"),
            ("\u{1}", "control characters"),
        ] {
            let failure = parse_request(bad.as_bytes()).unwrap_err().render();
            assert!(failure.contains(told), "{bad:?}: {failure}");
        }
    }

    #[test]
    fn a_submission_is_a_sync_request() {
        for (chunk_size_mb, sent) in [(None, 64), (Some(7), 7)] {
            let what = WhatArgs { chunk_size_mb, files_from: None, from0: false };
            let root = AbsPath::new("/a").unwrap();
            let ours = request(std::slice::from_ref(&root), root.clone(), None, &what).unwrap();
            let text = serde_json::to_string(&ours).unwrap();
            assert_eq!(text.contains("chunk_size_mb"), chunk_size_mb.is_some());
            let read: crate::wire::sync::SyncRequest = serde_json::from_str(&text).unwrap();
            assert_eq!(read.chunk_size_mb, sent);
        }
    }

    #[test]
    fn a_relative_path_is_refused_with_the_reason() {
        let e = storage_path("SRC", OsStr::new("data/x")).unwrap_err();
        assert_eq!(e.exit, Exit::Usage);
        let text = e.render();
        assert!(text.contains("SRC `data/x` must be absolute"), "{text}");
        assert!(text.contains("paths on the storage hosts") && text.contains("ctl copy"), "{text}");
        assert!(storage_path("DST", OsStr::new("/a/../b")).is_err());
        assert_eq!(storage_path("DST", OsStr::new("/a//b/")).unwrap().as_bytes(), b"/a/b");
    }

    #[test]
    fn several_documents_are_an_array_and_one_is_itself() {
        assert_eq!(documents(vec![b"{}", b"1"], false), b"[{},1]");
        assert_eq!(documents(vec![], false), b"[]");
        assert_eq!(documents(vec![b"{ \"a\" : 1}"], true), b"{ \"a\" : 1}");
    }

    #[test]
    fn a_path_in_a_hint_can_be_pasted() {
        let of = |p: &str| quoted(&AbsPath::new(p).unwrap());
        assert_eq!([of("/a/b-1"), of("/a b"), of("/it's")], ["/a/b-1", "'/a b'", "'/it'\\''s'"]);
    }
}
