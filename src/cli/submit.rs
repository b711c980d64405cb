//! `ctl sync submit`: builds the request from the command line or a file, and sends it.

use super::args::{ExitCodeArgs, OutputFormat, SubmitArgs, TransferArgs};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::flag_names::name_flags;
use super::follow::{RecordOutputs, WaitOptions, wait_and_report};
use super::path_args::parse_address;
use super::sync_text::{address_text, mapping_example};
use super::{Context, console, files_from};
use crate::client::{ClientError, MasterClient, Reply};
use crate::fs::find_absolute_patterns;
use crate::util::{unique_id, units};
use crate::wire::options::SyncOptions;
use crate::wire::sync::SubmitReply;
use crate::wire::worker_selector::WorkerSelector;
use crate::wire::{AbsPath, BytePath, RequestId};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::time::{Duration, Instant};

/// The time between two attempts, if the master names none.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A `SyncRequest` in which the chunk size can be left to the master.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<RequestId>,
    pub(super) source_path: AbsPath,
    pub(super) destination_path: AbsPath,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) source_workers: Vec<WorkerSelector>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) destination_workers: Vec<WorkerSelector>,
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

/// In a request file: a number, or text with a unit.
fn deserialize_bwlimit<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = match serde_yaml::Value::deserialize(d)? {
        serde_yaml::Value::Null => return Ok(None),
        serde_yaml::Value::Number(number) => number.to_string(),
        serde_yaml::Value::String(text) => text,
        _ => return Err(de::Error::custom("must be bytes per second, such as 100MiB/s")),
    };
    units::parse_bwlimit(&text).map_err(de::Error::custom)
}

/// Submits a sync, and waits for it with `--wait`.
///
/// # Errors
/// Wrong usage, a request that the master refuses, no master.
pub(super) async fn run(ctx: &Context, args: SubmitArgs) -> Result<Exit> {
    check_wait_only_options(&args)?;
    let record_outputs = RecordOutputs::new(&args.options)?;
    let mut request = submission_from_args(&args)?;
    request.options.allow_overlap |= args.allow_overlap;
    request.options.no_queue |= args.no_queue;
    if has_empty_file_list(&request) {
        // Printed also with --quiet: a script that expects an id has to see why there is none.
        return Ok(end_without_submit(args.exit_code, !ctx.global.quiet || !args.wait));
    }
    // Generated here, so that the sync can be found if no reply arrives.
    let id = request.request_id.get_or_insert_with(|| unique_id::generate_id().into()).clone();
    let client = ctx.new_client()?;
    let reply = submit_with_retry(&client, &request, ctx.global.request_timeout)
        .await
        .map_err(|e| e.into_cli_error(ctx, &id, args.file.is_some()))?;
    console::print_warnings(&reply.warnings);
    let id = reply.request_id.clone();
    let text = submitted_text(&request, &reply);
    if !args.wait {
        let ctl = &ctx.ctl_command;
        let text = format!(
            "{text}\n  follow: {ctl} sync wait {id}     details: {ctl} sync status {id}     stop: {ctl} sync cancel {id}"
        );
        ctx.print(&reply.body, id.as_str(), &text)?;
        return Ok(Exit::Ok);
    }
    match ctx.global.output {
        _ if !ctx.global.quiet => console::print_note(&text),
        OutputFormat::Table | OutputFormat::Wide => console::write_data(id.as_str().as_bytes())?,
        OutputFormat::Json => {}
    }
    let options = WaitOptions { submitted_here: true, record_outputs, exit_code: args.exit_code };
    wait_and_report(ctx, &client, vec![id], &args.wait_limit, &options).await
}

fn check_wait_only_options(args: &SubmitArgs) -> Result<()> {
    let limited = args.wait_limit.timeout.is_some() || args.wait_limit.cancel_on_interrupt;
    let options = [
        (limited, "--timeout and --cancel-on-interrupt apply only while waiting", ""),
        (
            args.exit_code.error_on_no_transfer,
            "--error-on-no-transfer is only known when the sync has ended",
            "",
        ),
        (
            args.options.record.itemize,
            "--itemize prints when the sync has ended",
            ", or have it recorded with --record and print it later: ctl sync files ID",
        ),
        (
            args.options.verification.manifest.is_some(),
            "--manifest PATH is written when the sync has ended",
            ", or have the digests kept with --digests and write them later: ctl sync manifest ID",
        ),
    ];
    match options.into_iter().find(|(given, ..)| *given && !args.wait) {
        Some((_, message, alternative)) => {
            Err(CliError::usage(message).with_hint(format!("add --wait{alternative}")))
        }
        None => Ok(()),
    }
}

fn submission_from_args(args: &SubmitArgs) -> Result<Submission> {
    if let Some(file) = &args.file {
        let request = parse_request(&files_from::read_input(file, "the request")?)?;
        return Ok(Submission {
            request_id: args.id.clone().or(request.request_id),
            chunk_size_mb: args.transfer.chunk_size_mb.or(request.chunk_size_mb),
            options: args.options.merge_into_request(request.options)?,
            bwlimit: args.transfer.bwlimit.map_or(request.bwlimit, |limit| limit.0),
            ..request
        });
    }
    let (Some(source), Some(destination)) = (&args.source, &args.destination) else {
        return Err(CliError::usage("SRC and DST, or --file FILE, are needed"));
    };
    let source = parse_address("SRC", source)?;
    let destination = parse_address("DST", destination)?;
    let roots = std::slice::from_ref(&destination.path);
    let stdin_is_used = args.transfer.is_file_list_stdin();
    let options = args.options.to_sync_options(roots, stdin_is_used, Timestamp::now())?;
    let (id, transfer) = (args.id.clone(), &args.transfer);
    Ok(Submission {
        source_workers: source.workers,
        destination_workers: destination.workers,
        ..new_submission(&[source.path], destination.path, id, transfer, options)?
    })
}

/// Whether nothing is to be copied: then nothing is submitted.
pub(super) fn has_empty_file_list(request: &Submission) -> bool {
    request.file_list.as_ref().is_some_and(Vec::is_empty)
}

/// The end of a command with an empty file list.
pub(super) fn end_without_submit(args: ExitCodeArgs, with_note: bool) -> Exit {
    let exit = if args.error_on_no_transfer { Exit::NoTransfer } else { Exit::Ok };
    if with_note {
        let code = exit.code();
        console::print_note(&format!(
            "nothing to do: the file list is empty; to copy everything, leave --files-from out   (exit {code})"
        ));
    }
    exit
}

fn submitted_text(request: &Submission, reply: &SubmitReply) -> String {
    let (from, to) = (&request.source_path, &request.destination_path);
    let mapping = mapping_example(from, to);
    let from = address_text(&request.source_workers, from);
    let to = address_text(&request.destination_workers, to);
    let mut text = format!("Submitted sync {}: {from} → {to}\n  e.g. {mapping}", reply.request_id);
    if let Some(list) = &request.file_list {
        let names = units::pluralize(list.len() as u64, "listed name", "listed names");
        text.push_str(&format!("   only {names}"));
    }
    if request.options.dry_run {
        text.push_str("   a dry run: nothing will be changed");
    }
    if let Some(note) = &reply.note {
        text.push_str(&format!("\n  note: {note}"));
    }
    text
}

/// The request, with its file list read and checked. `sources` is the source, followed by other spellings of its path.
///
/// # Errors
/// Those of [`files_from::read_list`]; a pattern that is an absolute path below a source or the destination.
pub(super) fn new_submission(
    sources: &[AbsPath],
    destination_path: AbsPath,
    request_id: Option<RequestId>,
    args: &TransferArgs,
    options: SyncOptions,
) -> Result<Submission> {
    let roots: Vec<&AbsPath> = sources.iter().chain([&destination_path]).collect();
    if let Some((_, reason)) =
        find_absolute_patterns(&options.filter.rules, &roots).into_iter().next()
    {
        return Err(CliError::usage(format!("the pattern {reason}"))
            .with_hint("docs/filters.md has examples"));
    }
    let read_list = |file| files_from::read_list(file, args.from0, sources);
    Ok(Submission {
        request_id,
        source_path: sources[0].clone(),
        file_list: args.files_from.as_deref().map(read_list).transpose()?,
        destination_path,
        source_workers: Vec::new(),
        destination_workers: Vec::new(),
        chunk_size_mb: args.chunk_size_mb,
        options,
        bwlimit: args.bwlimit.and_then(|limit| limit.0),
    })
}

/// Parses a request as `POST /sync` accepts it, in YAML, which includes JSON.
///
/// # Errors
/// The text is not YAML, or a field is unknown, missing or wrong; the message names it.
fn parse_request(raw: &[u8]) -> Result<Submission> {
    let error = |reason: String| {
        CliError::usage(format!("the request cannot be read: {reason}")).with_hint(
            "it takes source_path, destination_path, source_workers, destination_workers, request_id, \
             chunk_size_mb, file_list, options, bwlimit",
        )
    };
    let text = std::str::from_utf8(raw).map_err(|e| error(e.to_string()))?;
    // Parsed as a value first: only that refuses duplicate keys.
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| error(e.to_string()))?;
    serde_path_to_error::deserialize(value).map_err(|e| error(e.to_string()))
}

pub(super) struct SubmitError {
    cause: ClientError,
    /// A reply was lost.
    may_be_accepted: bool,
}

impl From<SubmitError> for CliError {
    fn from(error: SubmitError) -> Self {
        CliError::from(name_flags(error.cause))
    }
}

impl SubmitError {
    /// `from_file`: the request was read from a file, so errors name its fields and not options.
    fn into_cli_error(self, ctx: &Context, id: &RequestId, from_file: bool) -> CliError {
        let ctl = &ctx.ctl_command;
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
        let exists = matches!(&self.cause, ClientError::Problem { problem, .. } if problem.existing.is_some());
        let error = CliError::from(if from_file { self.cause } else { name_flags(self.cause) });
        if !exists {
            return error;
        }
        error.with_hint(format!(
            "show it: {ctl} sync status {id}     remove it: {ctl} sync delete {id}     or give another --id"
        ))
    }
}

/// Submits with an idempotency key, and retries up to `timeout` while the master replies that it can't decide now.
///
/// # Errors
/// The id exists, the request is wrong, no master replied in time.
pub(super) async fn submit_with_retry(
    client: &MasterClient,
    request: &Submission,
    timeout: Duration,
) -> Result<Reply<SubmitReply>, SubmitError> {
    let key = unique_id::generate_id().to_string();
    let started = Instant::now();
    let mut may_be_accepted = false;
    loop {
        let cause = match client.submit(request, Some(&key)).await {
            Ok(reply) => return Ok(reply),
            Err(e) => e,
        };
        may_be_accepted |= cause.is_unconfirmed();
        let interval = cause.retry_after().unwrap_or(RETRY_INTERVAL);
        // A master that can't be reached is most often a wrong URL, which is reported at once.
        let is_busy = cause.is_retryable() && !cause.is_unreachable();
        if !is_busy || started.elapsed() + interval >= timeout {
            return Err(SubmitError { cause, may_be_accepted });
        }
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, SyncCommand};
    use clap::Parser;

    #[test]
    fn a_request_file_is_yaml_or_json_and_errors_name_the_field() {
        let json = br#"{"source_path": "/a", "destination_path": "/b", "chunk_size_mb": 8}"#;
        let yaml = b"source_path: /a\ndestination_path: /b\nchunk_size_mb: 8\n";
        assert_eq!(parse_request(json).unwrap(), parse_request(yaml).unwrap());
        for (bad, expected) in [
            ("source_path: /a\ndestination: /b\n", "unknown field `destination`"),
            ("source_path: /a\n", "missing field `destination_path`"),
            ("source_path: a\ndestination_path: /b\n", "source_path: must be absolute"),
            ("source_path: /a\nsource_path: /c\ndestination_path: /b\n", "duplicate"),
            ("source_path: [\n", "line 2"),
            ("\u{1}", "control characters"),
        ] {
            let failure = parse_request(bad.as_bytes()).unwrap_err().render();
            assert!(failure.contains(expected), "{bad:?}: {failure}");
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
    fn the_workers_of_an_address_are_sent_and_a_request_file_may_hold_them() {
        let line = ["ctl", "sync", "submit", "w1:/a", "gpu-*,@rack=3:/a"];
        let Command::Sync(SyncCommand::Submit(args)) = Cli::try_parse_from(line).unwrap().command
        else {
            panic!("a submit")
        };
        let sent = submission_from_args(&args).unwrap();
        let text = serde_json::to_string(&sent).unwrap();
        assert!(text.contains(r#""destination_workers":["gpu-*","@rack=3"]"#), "{text}");
        assert_eq!(parse_request(text.as_bytes()).unwrap(), sent);
        let reply = SubmitReply {
            status: "queued".into(),
            request_id: "x".parse().unwrap(),
            status_url: "sync/x".into(),
            note: None,
            warnings: Vec::new(),
        };
        let text = submitted_text(&sent, &reply);
        assert!(text.contains("w1:/a → gpu-*,@rack=3:/a\n  e.g. /a/NAME → /a/NAME"), "{text}");
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
}
