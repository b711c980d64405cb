//! `ctl sync submit`: the request, from the command line or a file, and how it is sent.

use super::Context;
use super::args::{ExitCodeArgs, OutputFormat, SubmitArgs, TransferArgs};
use super::error::CliError;
use super::exit::Exit;
use super::flag_names::name_flags;
use super::path_args::extract_path;
use super::records::RecordOutputs;
use super::shell_quote::quote_for_shell;
use super::sync::{WaitOptions, wait_and_report};
use super::{console, files_from};
use crate::client::{ClientError, MasterClient, Reply};
use crate::fs::find_absolute_patterns;
use crate::util::{unique_id, units};
use crate::wire::options::SyncOptions;
use crate::wire::sync::SubmitReply;
use crate::wire::{AbsPath, BytePath, RequestId};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

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
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub(super) options: SyncOptions,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "deserialize_bwlimit"
    )]
    pub(super) bwlimit: Option<u64>,
}

/// A limit as a request file may have it: a number, or text with a unit.
fn deserialize_bwlimit<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = match serde_yaml::Value::deserialize(d)? {
        serde_yaml::Value::Null => return Ok(None),
        serde_yaml::Value::Number(number) => number.to_string(),
        serde_yaml::Value::String(text) => text,
        _ => return Err(de::Error::custom("must be bytes per second, such as 100MiB/s")),
    };
    units::parse_bwlimit(&text).map_err(de::Error::custom)
}

/// Submits, and waits where that is asked for.
///
/// # Errors
/// Wrong usage (2), a request that the master refuses, no master (5).
pub(super) async fn run(ctx: &Context, args: SubmitArgs) -> Result<Exit, CliError> {
    check_wait_only_options(&args)?;
    let wanted = RecordOutputs::new(&args.options)?;
    let mut request = submission_from_args(&args)?;
    request.options.allow_overlap |= args.allow_overlap;
    request.options.no_queue |= args.no_queue;
    if has_empty_file_list(&request) {
        // Also with --quiet: a script that waits for an id is to see why there is none.
        return Ok(end_without_submit(args.exit_code, !ctx.global.quiet || !args.wait));
    }
    // Made here, so that the sync can be asked for by its id where no reply arrives.
    let id = request.request_id.get_or_insert_with(|| unique_id::generate_id().into()).clone();
    let client = ctx.new_client()?;
    let submitted = match submit_with_retry(&client, &request, ctx.global.request_timeout).await {
        Ok(submitted) => submitted,
        Err(unsent) => return Err(unsent.into_cli_error(ctx, &id, args.file.is_some())),
    };
    let id = submitted.request_id.clone();
    for warning in &submitted.warnings {
        console::print_note(&format!("warning: {}", console::sanitize(warning)));
    }
    if args.wait {
        if ctx.global.quiet && ctx.global.output == OutputFormat::Table {
            console::write_data(id.to_string().as_bytes())?;
        } else if !ctx.global.quiet {
            console::print_note(&submitted_text(ctx, &request, &submitted, false));
        }
        let after =
            WaitOptions { submitted_here: true, record_outputs: wanted, exit_code: args.exit_code };
        return wait_and_report(ctx, &client, vec![id], &args.wait_limit, &after).await;
    }
    match ctx.global.output {
        OutputFormat::Json => console::write_data(&submitted.body)?,
        OutputFormat::Table if ctx.global.quiet => console::write_data(id.to_string().as_bytes())?,
        OutputFormat::Table => {
            console::write_data(submitted_text(ctx, &request, &submitted, true).as_bytes())?
        }
    }
    Ok(Exit::Ok)
}

/// Refuses options that only make sense with `--wait`.
fn check_wait_only_options(args: &SubmitArgs) -> Result<(), CliError> {
    if args.wait {
        return Ok(());
    }
    if args.wait_limit.timeout.is_some() || args.wait_limit.cancel_on_interrupt {
        return Err(CliError::usage(
            "--timeout and --cancel-on-interrupt apply only while waiting",
        )
        .with_hint("add --wait"));
    }
    if args.exit_code.error_on_no_transfer {
        return Err(CliError::usage(
            "--error-on-no-transfer is only known when the sync has ended",
        )
        .with_hint("add --wait"));
    }
    if args.options.record.itemize {
        return Err(CliError::usage("--itemize prints when the sync has ended").with_hint(
            "add --wait, or have it recorded with --record and print it later: ctl sync files ID",
        ));
    }
    if args.options.verification.manifest.is_some() {
        return Err(CliError::usage("--manifest PATH is written when the sync has ended").with_hint(
            "add --wait, or have the digests kept with --digests and write them later: ctl sync manifest ID",
        ));
    }
    Ok(())
}

fn submission_from_args(args: &SubmitArgs) -> Result<Submission, CliError> {
    match (&args.file, &args.source, &args.destination) {
        (Some(file), _, _) => {
            let told = parse_request(&files_from::read_input(file, "the request")?)?;
            Ok(Submission {
                request_id: args.id.clone().or(told.request_id),
                chunk_size_mb: args.transfer.chunk_size_mb.or(told.chunk_size_mb),
                options: args.options.merge_into_request(told.options)?,
                bwlimit: args.transfer.bwlimit.map_or(told.bwlimit, |limit| limit.0),
                ..told
            })
        }
        (None, Some(source), Some(destination)) => {
            let source = parse_storage_path("SRC", source)?;
            let destination = parse_storage_path("DST", destination)?;
            let roots = std::slice::from_ref(&destination);
            let options = args.options.to_sync_options(
                roots,
                args.transfer.is_file_list_stdin(),
                Timestamp::now(),
            )?;
            new_submission(&[source], destination, args.id.clone(), &args.transfer, options)
        }
        (None, _, _) => Err(CliError::usage("SRC and DST, or --file FILE, are needed")),
    }
}

/// Whether a request has a list, and that is empty: nothing is to be copied, so nothing is submitted.
pub(super) fn has_empty_file_list(request: &Submission) -> bool {
    request.file_list.as_ref().is_some_and(Vec::is_empty)
}

/// The end of a command whose list names nothing.
pub(super) fn end_without_submit(end: ExitCodeArgs, with_note: bool) -> Exit {
    let exit = if end.error_on_no_transfer { Exit::NoTransfer } else { Exit::Ok };
    if with_note {
        let code = exit.code();
        console::print_note(&format!(
            "nothing to do: the file list is empty; to copy everything, leave --files-from out   (exit {code})"
        ));
    }
    exit
}

/// The message of a submit; with `next`, what can be done next.
fn submitted_text(
    ctx: &Context,
    request: &Submission,
    submitted: &SubmitReply,
    next: bool,
) -> String {
    let id = &submitted.request_id;
    let (from, to) = (&request.source_path, &request.destination_path);
    let mut text =
        format!("Submitted sync {id}: {from} → {to}\n  e.g. {}", mapping_example(from, to));
    if let Some(list) = &request.file_list {
        text.push_str(&format!(
            "   only {}",
            units::pluralize(list.len() as u64, "listed name", "listed names")
        ));
    }
    if request.options.dry_run {
        text.push_str("   a dry run: nothing will be changed");
    }
    if let Some(note) = &submitted.note {
        text.push_str(&format!("\n  note: {note}"));
    }
    if next {
        let ctl = &ctx.ctl_command;
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
/// What [`names::read`] refuses; a pattern that is an absolute path below a source or the destination.
pub(super) fn new_submission(
    sources: &[AbsPath],
    destination_path: AbsPath,
    request_id: Option<RequestId>,
    what: &TransferArgs,
    options: SyncOptions,
) -> Result<Submission, CliError> {
    let roots: Vec<&AbsPath> = sources.iter().chain([&destination_path]).collect();
    if let Some((_, why)) = find_absolute_patterns(&options.filter.rules, &roots).into_iter().next()
    {
        return Err(
            CliError::usage(format!("the pattern {why}")).with_hint("docs/filters.md has examples")
        );
    }
    let file_list = match &what.files_from {
        Some(from) => Some(files_from::read_list(from, what.from0, sources)?),
        None => None,
    };
    Ok(Submission {
        request_id,
        source_path: sources[0].clone(),
        destination_path,
        chunk_size_mb: what.chunk_size_mb,
        file_list,
        options,
        bwlimit: what.bwlimit.and_then(|limit| limit.0),
    })
}

/// Reads a request as `POST /sync` takes it; YAML, of which JSON is a part.
///
/// # Errors
/// Text that is neither, or a field that is unknown, missing or wrong, with its place.
fn parse_request(raw: &[u8]) -> Result<Submission, CliError> {
    let failure = |why: String| {
        CliError::usage(format!("the request cannot be read: {why}")).with_hint(
            "it takes source_path, destination_path, request_id, chunk_size_mb, file_list, options, \
             bwlimit",
        )
    };
    let text = std::str::from_utf8(raw).map_err(|e| failure(e.to_string()))?;
    // Read as a value first: only that refuses a key that is there twice.
    let value: serde_yaml::Value =
        serde_yaml::from_str(text).map_err(|e| failure(e.to_string()))?;
    serde_path_to_error::deserialize(value).map_err(|e| failure(e.to_string()))
}

/// SRC and DST are paths of the storage hosts: what this host's working directory is says nothing.
fn parse_storage_path(what: &str, given: &OsStr) -> Result<AbsPath, CliError> {
    AbsPath::new(given.as_bytes()).map_err(|e| {
        let shown = crate::wire::path::escape_bytes(given.as_bytes());
        let failure = CliError::usage(format!("{what} `{shown}` {e}"));
        if given.as_bytes().first() == Some(&b'/') {
            return failure;
        }
        let hint = match extract_path(given.as_bytes()) {
            Some(path) => format!(
                "write the path alone, {}: the master chooses the hosts by their storage paths",
                quote_for_shell(path)
            ),
            None => "to copy on this host: ctl copy SRC DST".to_owned(),
        };
        failure
            .with_note("SRC and DST are paths on the storage hosts, not on this one")
            .with_hint(hint)
    })
}

/// Why a sync was not submitted.
pub(super) struct SubmitError {
    cause: ClientError,
    /// It may have been accepted, for a reply was lost.
    may_be_accepted: bool,
}

impl From<SubmitError> for CliError {
    fn from(unsent: SubmitError) -> Self {
        CliError::from(name_flags(unsent.cause))
    }
}

impl SubmitError {
    /// The failure of a submit under the id `id`; for a request of a file (`by_file`) it names its fields.
    fn into_cli_error(self, ctx: &Context, id: &RequestId, by_file: bool) -> CliError {
        let ctl = &ctx.ctl_command;
        let existing = match &self.cause {
            ClientError::Problem { problem, .. } => problem.existing.clone(),
            _ => None,
        };
        // A refusal decides about the earlier attempts too: they were the same request.
        let refused = self.cause.status().is_some_and(|status| (400..500).contains(&status));
        if self.may_be_accepted && !refused {
            let cause = match self.cause {
                ClientError::Unconfirmed(cause) => *cause,
                cause => cause,
            };
            return CliError::new(format!(
                "sync {id} may have been accepted, no reply arrived: {cause}"
            ))
            .with_hint(format!(
                "check: {ctl} sync status {id}     if there is none, submit it again with --id {id}"
            ))
            .with_exit(Exit::Unreachable);
        }
        let cause = if by_file { self.cause } else { name_flags(self.cause) };
        let failure = CliError::from(cause);
        match existing {
            Some(_) => failure.with_hint(format!(
                "show it: {ctl} sync status {id}     remove it: {ctl} sync delete {id}     or give another --id"
            )),
            None => failure,
        }
    }
}

/// Submits under a key of its own, so that sending it again is safe, and does that while the master
/// answers that it can't decide now.
///
/// # Errors
/// The id exists (6), the request is wrong (2), no master for `patience` (5).
pub(super) async fn submit_with_retry(
    client: &MasterClient,
    request: &Submission,
    patience: Duration,
) -> Result<Reply<SubmitReply>, SubmitError> {
    let key = unique_id::generate_id().to_string();
    let begun = Instant::now();
    let mut doubtful = false;
    loop {
        let cause = match client.submit(request, Some(&key)).await {
            Ok(submitted) => return Ok(submitted),
            Err(e) => e,
        };
        doubtful |= cause.is_unconfirmed();
        // A master that can't be reached at all is most often a wrong URL: report that at once.
        let pause = cause.retry_after().unwrap_or(Duration::from_secs(1));
        let busy = cause.is_retryable() && !cause.is_unreachable();
        if busy && begun.elapsed() + pause < patience {
            tokio::time::sleep(pause).await;
            continue;
        }
        return Err(SubmitError { cause, may_be_accepted: doubtful });
    }
}

/// What goes where, for people.
pub(super) fn mapping_example(source: &AbsPath, destination: &AbsPath) -> String {
    let name = crate::wire::RelPath::new("NAME").unwrap_or_default();
    format!("{} → {}", source.join(&name), destination.join(&name))
}

/// A path as a shell reads it back.
pub(super) fn quote_path(path: &AbsPath) -> String {
    quote_for_shell(path.as_bytes())
}

/// The option that sets a limit again, behind a blank; nothing without one.
pub(super) fn bwlimit_arg(bwlimit: Option<u64>) -> String {
    bwlimit.map(|limit| format!(" --bwlimit {limit}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_file_is_yaml_or_json_and_errors_name_the_field() {
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
    fn a_request_file_may_hold_options() {
        let yaml = b"source_path: /a\ndestination_path: /b\noptions:\n  compare: checksum\n  delete: {max: 3, trash: t}\n  filter: {rules: ['*.o']}\n";
        let options = parse_request(yaml).unwrap().options;
        assert_eq!(options.compare, crate::wire::options::Compare::Checksum);
        assert_eq!(
            (options.delete.unwrap().max, options.filter.rules),
            (Some(3), vec!["*.o".into()])
        );
        let e = parse_request(b"source_path: /a\ndestination_path: /b\noptions: {chek: 1}\n");
        let text = e.unwrap_err().render();
        assert!(text.contains("options") && text.contains("unknown field `chek`"), "{text}");
    }

    #[test]
    fn a_submission_is_a_sync_request() {
        for (chunk_size_mb, sent) in [(None, 64), (Some(7), 7)] {
            let what =
                TransferArgs { chunk_size_mb, bwlimit: None, files_from: None, from0: false };
            let root = AbsPath::new("/a").unwrap();
            let options = SyncOptions { update: true, ..SyncOptions::default() };
            let roots = std::slice::from_ref(&root);
            let ours = new_submission(roots, root.clone(), None, &what, options.clone()).unwrap();
            let text = serde_json::to_string(&ours).unwrap();
            assert_eq!(text.contains("chunk_size_mb"), chunk_size_mb.is_some());
            let read: crate::wire::sync::SyncRequest = serde_json::from_str(&text).unwrap();
            assert_eq!((read.chunk_size_mb, read.options), (sent, options));
        }
    }

    #[test]
    fn a_relative_path_is_refused_with_the_reason() {
        let e = parse_storage_path("SRC", OsStr::new("data/x")).unwrap_err();
        assert_eq!(e.exit, Exit::Usage);
        let text = e.render();
        assert!(text.contains("SRC `data/x` must be absolute"), "{text}");
        assert!(text.contains("paths on the storage hosts") && text.contains("ctl copy"), "{text}");
        for given in ["host:/b", "file:///b"] {
            let text = parse_storage_path("DST", OsStr::new(given)).unwrap_err().render();
            assert!(text.contains("write the path alone, /b: "), "{text}");
        }
        assert!(parse_storage_path("DST", OsStr::new("/a/../b")).is_err());
        assert_eq!(parse_storage_path("DST", OsStr::new("/a//b/")).unwrap().as_bytes(), b"/a/b");
    }

    #[test]
    fn a_path_in_a_hint_is_quoted_for_the_shell() {
        let of = |p: &str| quote_path(&AbsPath::new(p).unwrap());
        assert_eq!([of("/a/b-1"), of("/a b"), of("/it's")], ["/a/b-1", "'/a b'", "$'/it\\'s'"]);
    }
}
