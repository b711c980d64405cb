//! What a master has recorded of a sync: what became of each path (`ctl sync files`, `--itemize`), and
//! the digest of each file (`ctl sync manifest`, `--manifest`). Both may be long: they are passed on as
//! they come.

use super::args::{FilesArgs, OutputFormat};
use super::b3sum::{DigestList, DigestListReader, LineSplitter};
use super::error::CliError;
use super::exit::Exit;
use super::options::{SyncOptionArgs, file_state_name};
use super::sync::{resolve_id, with_resolved_id};
use super::wait::{WaitOutcome, WaitedSync};
use super::{Context, console};
use crate::client::{ClientError, Download, MasterClient};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::entry_report::{EntryAction, FileRecord, FileState};
use crate::wire::path::escape_bytes;
use crate::wire::sync::SyncProgress;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `ctl sync files`.
///
/// # Errors
/// The sync is not there or has no records; the master can't be asked.
pub(super) async fn print_files(ctx: &Context, args: FilesArgs) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let ask = async |id: &RequestId| client.download_files(id, &args.state).await;
    let mut body = with_resolved_id(&client, &args.id, ask).await.map_err(to_cli_error)?;
    if ctx.global.output == OutputFormat::Json && !args.print0 {
        stream_to_stdout(&mut body).await?;
        return note_unlisted_failures(ctx, &client, &args).await;
    }
    if !args.print0 && !ctx.global.quiet {
        console::write_data(b"STATE    ACTION             BYTES  PATH\n")?;
    }
    let form = if args.print0 { write_name } else { write_row };
    print_records(&mut body, form).await?;
    note_unlisted_failures(ctx, &client, &args).await
}

/// Reports failures that the list leaves out.
async fn note_unlisted_failures(
    ctx: &Context,
    client: &MasterClient,
    args: &FilesArgs,
) -> Result<Exit, CliError> {
    if !args.state.is_empty() && !args.state.contains(&FileState::Failed) {
        return Ok(Exit::Ok);
    }
    let sync = with_resolved_id(client, &args.id, async |id: &RequestId| client.get_sync(id).await)
        .await?;
    if sync.failures_unlisted > 0 {
        let (all, ctl, id) = (sync.failure_count(), &ctx.ctl_command, &sync.request_id);
        console::print_note(&format!(
            "note: {} of {} {} not listed by name; to retry all of it: {ctl} sync retry {id}",
            units::format_count(sync.failures_unlisted),
            units::pluralize(all, "failure", "failures"),
            if sync.failures_unlisted == 1 { "is" } else { "are" },
        ));
    }
    Ok(Exit::Ok)
}

/// `ctl sync manifest`.
///
/// # Errors
/// The sync is not there or has no digests; the master can't be asked.
pub(super) async fn print_manifest(
    ctx: &Context,
    id: RequestId,
    others: bool,
) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let id = resolve_id(&client, &id).await?;
    let exit =
        stream_to_stdout(&mut client.download_manifest(&id, others).await.map_err(to_cli_error)?)
            .await?;
    if !others && !ctx.global.quiet {
        let mut rest = client.download_manifest(&id, true).await.map_err(to_cli_error)?;
        if rest.next_chunk().await?.is_some() {
            let ctl = &ctx.ctl_command;
            console::print_note(&format!(
                "b3sum refuses the names of other files, which are not listed here: {ctl} sync manifest {id} --others"
            ));
        }
    }
    Ok(exit)
}

/// Where the files of a manifest are listed whose names `b3sum` refuses.
pub(super) fn others_path(manifest: &Path) -> PathBuf {
    let mut path = manifest.as_os_str().to_owned();
    path.push(".others");
    path.into()
}

/// What is not recorded, or not yet, is no conflict about an id.
fn to_cli_error(e: ClientError) -> CliError {
    let failure = CliError::from(e);
    if failure.exit == Exit::Conflict { failure.with_exit(Exit::Error) } else { failure }
}

/// The digests of a sync's files.
///
/// # Errors
/// As [`manifest`]; a list that can't be read.
pub(super) async fn fetch_digests(ctx: &Context, id: &RequestId) -> Result<DigestList, CliError> {
    let client = ctx.new_client()?;
    let mut reader = DigestListReader::default();
    for others in [false, true] {
        let mut body = client.download_manifest(id, others).await.map_err(to_cli_error)?;
        while let Some(piece) = body.next_chunk().await? {
            reader.push(&piece)?;
        }
    }
    reader.finish("the master's list")
}

/// A sync that has ended, and with records.
///
/// # Errors
/// It is not there, or still runs.
pub(super) async fn fetch_ended_sync(
    ctx: &Context,
    id: &RequestId,
) -> Result<SyncProgress, CliError> {
    let client = ctx.new_client()?;
    let look = async |id: &RequestId| client.get_sync(id).await;
    let sync = with_resolved_id(&client, id, look).await?.value;
    if sync.state.is_final() {
        return Ok(sync);
    }
    Err(CliError::new(format!("sync {id} has not ended: its list is not complete"))
        .with_hint(format!("{} sync wait {id}", ctx.ctl_command)))
}

/// Writes a reply to standard output as it comes, until nobody reads any more.
async fn stream_to_stdout(body: &mut Download) -> Result<Exit, CliError> {
    while let Some(piece) = body.next_chunk().await? {
        if !console::write_chunk(&piece)? {
            break;
        }
    }
    Ok(Exit::Ok)
}

/// Writes each record in a form, until nobody reads any more.
async fn print_records(
    body: &mut Download,
    form: fn(&FileRecord, &mut Vec<u8>),
) -> Result<(), CliError> {
    let mut lines = LineSplitter::default();
    while let Some(piece) = body.next_chunk().await? {
        let mut text = Vec::new();
        lines.push(&piece, |line| {
            form(&parse_record(line)?, &mut text);
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

fn parse_record(line: &[u8]) -> Result<FileRecord, CliError> {
    serde_json::from_slice(line).map_err(|e| {
        let shown = escape_bytes(&line[..line.len().min(200)]);
        CliError::new(format!("cannot read the master's record of a file: {e}; it is `{shown}`"))
            .with_hint("is this program as new as the master? see ctl version")
    })
}

/// The path, `.` for the root: an empty name is none.
fn record_path(record: &FileRecord) -> &[u8] {
    if record.path.0.is_empty() { b"." } else { &record.path.0 }
}

fn write_row(record: &FileRecord, text: &mut Vec<u8>) {
    let action = record.action.map_or("-", |action| action.as_str());
    let (state, path) = (file_state_name(record.state), escape_bytes(record_path(record)));
    text.extend(format!("{state:<7}  {action:<8}  {:>14}  {path}\n", record.bytes).bytes());
}

fn write_name(record: &FileRecord, text: &mut Vec<u8>) {
    text.extend_from_slice(record_path(record));
    text.push(0);
}

/// What was done, for `--itemize`: what was left alone is no news.
fn write_item(record: &FileRecord, text: &mut Vec<u8>) {
    let word = match (record.state, record.action) {
        (FileState::Failed, _) => "failed",
        (_, Some(EntryAction::Skip)) | (FileState::Skipped, None) => return,
        (_, Some(action)) => action.as_str(),
        (state, None) => file_state_name(state),
    };
    text.extend(format!("{word:<8}  {}\n", escape_bytes(record_path(record))).bytes());
}

/// What an operator who waits for a sync wants of its records.
#[derive(Debug, Default)]
pub(super) struct RecordOutputs {
    itemize: bool,
    manifest: Option<PathBuf>,
}

impl RecordOutputs {
    /// As the command line says. Nothing is written yet.
    ///
    /// # Errors
    /// The manifest could not be written in the end: better said now than then.
    pub(super) fn new(args: &SyncOptionArgs) -> Result<RecordOutputs, CliError> {
        if let Some(path) = &args.verification.manifest {
            check_manifest_writable(path)?;
        }
        Ok(RecordOutputs {
            itemize: args.record.itemize,
            manifest: args.verification.manifest.clone(),
        })
    }

    /// Prints what was done with each path: lines, or (json) the records.
    ///
    /// # Errors
    /// The master can't be asked, standard output can't be written.
    pub(super) async fn print_items(
        &self,
        ctx: &Context,
        client: &MasterClient,
        waited: &WaitOutcome,
    ) -> Result<(), CliError> {
        for sync in waited.syncs.iter().filter(|sync| self.itemize && has_records(sync)) {
            let mut body = client.download_files(&sync.id, &[]).await.map_err(to_cli_error)?;
            match ctx.global.output {
                OutputFormat::Json => drop(stream_to_stdout(&mut body).await?),
                OutputFormat::Table => print_records(&mut body, write_item).await?,
            }
        }
        Ok(())
    }

    /// Writes the manifest, where the sync ended with something to list.
    ///
    /// # Errors
    /// The master can't be asked, the file can't be written.
    pub(super) async fn write_manifests(
        &self,
        ctx: &Context,
        client: &MasterClient,
        waited: &WaitOutcome,
    ) -> Result<(), CliError> {
        let Some(path) = &self.manifest else { return Ok(()) };
        let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
        for sync in &waited.syncs {
            match sync.exit {
                Some(
                    Exit::Ok
                    | Exit::NoTransfer
                    | Exit::Partial
                    | Exit::Vanished
                    | Exit::DeleteStopped,
                ) => {
                    let mut body =
                        client.download_manifest(&sync.id, false).await.map_err(to_cli_error)?;
                    let files = write_manifest(path, &mut body).await?;
                    let others = others_path(path);
                    let mut body =
                        client.download_manifest(&sync.id, true).await.map_err(to_cli_error)?;
                    let rest = write_others(&others, &mut body).await?;
                    if !ctx.global.quiet {
                        let files = units::pluralize(files, "file", "files");
                        console::print_note(&format!("  manifest: {files} in {shown}"));
                        if rest > 0 {
                            let others = escape_bytes(others.as_os_str().as_encoded_bytes());
                            let rest = units::pluralize(rest, "file", "files");
                            console::print_note(&format!(
                                "  manifest: {rest} with names that b3sum refuses, in {others}"
                            ));
                        }
                    }
                }
                _ => console::print_note(&format!(
                    "  manifest: {shown} is not written, the sync is not done"
                )),
            }
        }
        Ok(())
    }
}

/// Whether the master knows it, and it has ended.
fn has_records(sync: &WaitedSync) -> bool {
    sync.exit.is_some() && sync.latest.is_some() && !sync.was_deleted
}

/// Whether a manifest can be written to `path`, as far as that can be known before.
fn check_manifest_writable(path: &Path) -> Result<(), CliError> {
    let shown = escape_bytes(path.as_os_str().as_encoded_bytes()).to_string();
    for path in [path, &others_path(path)] {
        let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
        if let Ok(there) = std::fs::symlink_metadata(path)
            && !there.is_file()
        {
            return Err(CliError::usage(format!(
                "--manifest {shown} is not a regular file, and would be replaced by one"
            ))
            .with_hint("name another path; to standard output: ctl sync manifest ID"));
        }
    }
    let others = others_path(path);
    if std::fs::read(&others).is_ok_and(|text| !text.is_empty() && !text.starts_with(b"# b3sum ")) {
        let others = escape_bytes(others.as_os_str().as_encoded_bytes());
        return Err(CliError::usage(format!(
            "{others} is to list the files with names that b3sum refuses, and exists with other content"
        ))
        .with_hint("rename it, or name another path"));
    }
    if path.file_name().is_none() {
        return Err(CliError::usage(format!("--manifest `{shown}` names no file")));
    }
    let allowed = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let refused = |e: std::io::Error| {
        CliError::usage(format!("--manifest {shown} can't be written in its directory: {e}"))
    };
    let dir = parent_dir(path);
    let is_dir = std::fs::metadata(dir).map_err(refused)?.is_dir();
    if !is_dir {
        return Err(refused(std::io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(dir, allowed).map_err(|e| refused(e.into()))
}

fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the files whose names `b3sum` refuses to `path`; where there are none, one of an earlier sync is removed.
/// Returns how many they are.
async fn write_others(path: &Path, body: &mut Download) -> Result<u64, CliError> {
    let lines = write_manifest(path, body).await?;
    if lines == 0 {
        std::fs::remove_file(path).map_err(|e| {
            let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
            CliError::new(format!("cannot remove {shown}, in which no file is listed: {e}"))
        })?;
    }
    // A line with the reason stands before each.
    Ok(lines / 2)
}

/// Writes what comes to a file beside `path`, and gives it that name when it is complete and on
/// stable storage. Tells how many lines there were.
async fn write_manifest(path: &Path, body: &mut Download) -> Result<u64, CliError> {
    let beside = PendingManifest::new(path)?;
    let failed = |e: std::io::Error| {
        let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
        CliError::new(format!("cannot write the manifest {shown}: {e}")).with_hint(
            "the sync itself ended as reported above; for the manifest: ctl sync manifest ID",
        )
    };
    let mut files = 0;
    while let Some(piece) = body.next_chunk().await? {
        files += piece.iter().filter(|b| **b == b'\n').count() as u64;
        (&beside.file).write_all(&piece).map_err(failed)?;
    }
    beside.publish(path).map_err(failed)?;
    Ok(files)
}

/// A file that is removed unless it gets its final name.
struct PendingManifest {
    file: File,
    temp_path: PathBuf,
}

impl PendingManifest {
    fn new(path: &Path) -> Result<PendingManifest, CliError> {
        let name = parent_dir(path)
            .join(format!(".ctl-manifest-{}", crate::util::unique_id::generate_id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&name).map_err(|e| {
            let shown = escape_bytes(name.as_os_str().as_encoded_bytes());
            CliError::new(format!("cannot make {shown} for the manifest: {e}"))
        })?;
        Ok(PendingManifest { file, temp_path: name })
    }

    fn publish(&self, path: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temp_path, path)?;
        File::open(parent_dir(path))?.sync_all()
    }
}

impl Drop for PendingManifest {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = std::fs::remove_file(&self.temp_path);
    }
}

#[cfg(test)]
mod tests;
