//! The recorded outcome of each path of a sync: `ctl sync files` and `--itemize`. The list may be long, so it is
//! printed as it arrives.

use super::args::{FilesArgs, OutputFormat};
use super::b3sum::LineSplitter;
use super::error::{CliError, Result};
use super::exit::Exit;
use super::resource::with_resolved_id;
use super::wait::WaitOutcome;
use super::{Context, console};
use crate::client::{ClientError, Download, MasterClient};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::entry_report::{EntryAction, FileRecord, FileState};
use crate::wire::path::escape_bytes;

/// `ctl sync files`.
///
/// # Errors
/// The sync does not exist or has no records; the master can't be reached.
pub(super) async fn print_files(ctx: &Context, args: FilesArgs) -> Result<Exit> {
    let client = ctx.new_client()?;
    let download = async |id: &RequestId| client.download_files(id, &args.state).await;
    let mut body = with_resolved_id(&client, &args.id, download).await.map_err(record_error)?;
    if args.print0 {
        print_records(&mut body, write_name).await?;
    } else if ctx.global.output == OutputFormat::Json {
        stream_to_stdout(&mut body).await?;
    } else {
        if !ctx.global.quiet {
            console::write_data(b"STATE    ACTION             BYTES  PATH\n")?;
        }
        print_records(&mut body, write_row).await?;
    }
    if args.state.is_empty() || args.state.contains(&FileState::Failed) {
        note_unlisted_failures(ctx, &client, &args.id).await?;
    }
    Ok(Exit::Ok)
}

async fn note_unlisted_failures(
    ctx: &Context,
    client: &MasterClient,
    id: &RequestId,
) -> Result<()> {
    let get = async |id: &RequestId| client.get_sync(id).await;
    let sync = with_resolved_id(client, id, get).await?;
    if sync.failures_unlisted > 0 {
        let (ctl, id) = (&ctx.ctl_command, &sync.request_id);
        console::print_note(&format!(
            "note: {} of {} {} not listed by name; to retry all of it: {ctl} sync retry {id}",
            units::format_count(sync.failures_unlisted),
            units::pluralize(sync.failure_count(), "failure", "failures"),
            if sync.failures_unlisted == 1 { "is" } else { "are" },
        ));
    }
    Ok(())
}

/// Prints what was done with each path of the syncs: lines, or the records with `-o json`.
///
/// # Errors
/// The master can't be reached, standard output can't be written.
pub(super) async fn print_items(
    ctx: &Context,
    client: &MasterClient,
    waited: &WaitOutcome,
) -> Result<()> {
    for sync in &waited.syncs {
        if sync.exit.is_none() || sync.latest.is_none() || sync.was_deleted {
            continue;
        }
        let mut body = client.download_files(&sync.id, &[]).await.map_err(record_error)?;
        match ctx.global.output {
            OutputFormat::Json => stream_to_stdout(&mut body).await?,
            OutputFormat::Table | OutputFormat::Wide => {
                print_records(&mut body, write_item).await?
            }
        }
    }
    Ok(())
}

/// Records that do not exist (yet) are no conflict of ids.
pub(super) fn record_error(e: ClientError) -> CliError {
    let error = CliError::from(e);
    if error.exit == Exit::Conflict { error.with_exit(Exit::Error) } else { error }
}

/// Copies a reply to standard output as it arrives, until the reader closes the pipe.
pub(super) async fn stream_to_stdout(body: &mut Download) -> Result<()> {
    while let Some(chunk) = body.next_chunk().await? {
        if !console::write_chunk(&chunk)? {
            break;
        }
    }
    Ok(())
}

/// Prints each record as `write_record` formats it, until the reader closes the pipe.
async fn print_records(
    body: &mut Download,
    write_record: fn(&FileRecord, &mut Vec<u8>),
) -> Result<()> {
    let mut lines = LineSplitter::default();
    while let Some(chunk) = body.next_chunk().await? {
        let mut text = Vec::new();
        lines.push(&chunk, |line| {
            write_record(&parse_record(line)?, &mut text);
            Ok(())
        })?;
        if !console::write_chunk(&text)? {
            return Ok(());
        }
    }
    match lines.partial_line() {
        b"" => Ok(()),
        _ => Err(CliError::new("the master's list of files ends in the middle of a line")
            .with_hint("repeat the command; if that does not help, see the master's log")),
    }
}

fn parse_record(line: &[u8]) -> Result<FileRecord> {
    serde_json::from_slice(line).map_err(|e| {
        let shown = escape_bytes(&line[..line.len().min(200)]);
        CliError::new(format!("cannot read the master's record of a file: {e}; it is `{shown}`"))
            .with_hint("is this program as new as the master? see ctl version")
    })
}

/// The path; `.` for the root.
fn record_path(record: &FileRecord) -> &[u8] {
    if record.path.0.is_empty() { b"." } else { &record.path.0 }
}

fn write_row(record: &FileRecord, text: &mut Vec<u8>) {
    let action = record.action.map_or("-", |action| action.as_str());
    let (state, path) = (record.state.as_str(), escape_bytes(record_path(record)));
    text.extend(format!("{state:<7}  {action:<8}  {:>14}  {path}\n", record.bytes).bytes());
}

fn write_name(record: &FileRecord, text: &mut Vec<u8>) {
    text.extend_from_slice(record_path(record));
    text.push(0);
}

/// For `--itemize`: entries that were left unchanged are omitted.
fn write_item(record: &FileRecord, text: &mut Vec<u8>) {
    let word = match (record.state, record.action) {
        (FileState::Failed, _) => "failed",
        (_, Some(EntryAction::Skip)) | (FileState::Skipped, None) => return,
        (_, Some(action)) => action.as_str(),
        (state, None) => state.as_str(),
    };
    text.extend(format!("{word:<8}  {}\n", escape_bytes(record_path(record))).bytes());
}

#[cfg(test)]
mod tests;
