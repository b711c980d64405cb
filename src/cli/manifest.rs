//! The digest of each file of a sync: `ctl sync manifest` and `--manifest`. The list may be long, so it is written as it
//! arrives.

use super::b3sum::{DigestList, DigestListReader};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::file_records::{record_error, stream_to_stdout};
use super::pending_file::{PendingFile, parent_dir};
use super::resource::{resolve_id, with_resolved_id};
use super::sanitize::display_path;
use super::wait::WaitOutcome;
use super::{Context, console};
use crate::client::{Download, MasterClient};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::sync::SyncProgress;
use std::io::Write;
use std::path::{Path, PathBuf};

/// `ctl sync manifest`.
///
/// # Errors
/// The sync does not exist or has no digests; the master can't be reached.
pub(super) async fn print_manifest(ctx: &Context, id: RequestId, others: bool) -> Result<Exit> {
    let client = ctx.new_client()?;
    let id = resolve_id(&client, &id).await?;
    stream_to_stdout(&mut download(&client, &id, others).await?).await?;
    if !others
        && !ctx.global.quiet
        && download(&client, &id, true).await?.next_chunk().await?.is_some()
    {
        let ctl = &ctx.ctl_command;
        console::print_note(&format!(
            "b3sum refuses the names of other files, which are not listed here: {ctl} sync manifest {id} --others"
        ));
    }
    Ok(Exit::Ok)
}

async fn download(client: &MasterClient, id: &RequestId, others: bool) -> Result<Download> {
    client.download_manifest(id, others).await.map_err(record_error)
}

/// The file beside a manifest for the files with names that `b3sum` refuses.
pub(super) fn others_path(manifest: &Path) -> PathBuf {
    let mut path = manifest.as_os_str().to_owned();
    path.push(".others");
    path.into()
}

/// The digests of a sync's files.
///
/// # Errors
/// As [`print_manifest`]; the list can't be parsed.
pub(super) async fn fetch_digests(ctx: &Context, id: &RequestId) -> Result<DigestList> {
    let client = ctx.new_client()?;
    let mut reader = DigestListReader::default();
    for others in [false, true] {
        let mut body = download(&client, id, others).await?;
        while let Some(chunk) = body.next_chunk().await? {
            reader.push(&chunk)?;
        }
    }
    reader.finish("the master's list")
}

/// A sync that has ended, so that its list is complete.
///
/// # Errors
/// It does not exist, or has not ended.
pub(super) async fn fetch_ended_sync(ctx: &Context, id: &RequestId) -> Result<SyncProgress> {
    let client = ctx.new_client()?;
    let get = async |id: &RequestId| client.get_sync(id).await;
    let sync = with_resolved_id(&client, id, get).await?.value;
    if sync.state.is_final() {
        return Ok(sync);
    }
    Err(CliError::new(format!("sync {id} has not ended: its list is not complete"))
        .with_hint(format!("{} sync wait {id}", ctx.ctl_command)))
}

/// Writes the manifest of each sync that ended with copied files.
///
/// # Errors
/// The master can't be reached, the file can't be written.
pub(super) async fn write_manifests(
    ctx: &Context,
    client: &MasterClient,
    path: &Path,
    waited: &WaitOutcome,
) -> Result<()> {
    let shown = display_path(path);
    for sync in &waited.syncs {
        let (Some(Exit::Ok | Exit::NoTransfer | Exit::Partial)
        | Some(Exit::Vanished | Exit::DeleteStopped)) = sync.exit
        else {
            console::print_note(&format!(
                "  manifest: {shown} is not written, the sync is not done"
            ));
            continue;
        };
        let files = write_manifest(path, &mut download(client, &sync.id, false).await?).await?;
        let others = others_path(path);
        let other_files =
            write_others(&others, &mut download(client, &sync.id, true).await?).await?;
        if ctx.global.quiet {
            continue;
        }
        let [files, other] = [files, other_files].map(|n| units::pluralize(n, "file", "files"));
        console::print_note(&format!("  manifest: {files} in {shown}"));
        if other_files > 0 {
            let others = display_path(&others);
            let note = format!("  manifest: {other} with names that b3sum refuses, in {others}");
            console::print_note(&note);
        }
    }
    Ok(())
}

/// Checks before a sync starts that its manifest can be written to `path` at the end.
///
/// # Errors
/// `path` is not a regular file, its directory can't be written, or the file for the other names has other content.
pub(super) fn check_manifest_writable(path: &Path) -> Result<()> {
    let others = others_path(path);
    for path in [path, &others] {
        if std::fs::symlink_metadata(path).is_ok_and(|existing| !existing.is_file()) {
            return Err(CliError::usage(format!(
                "--manifest {} is not a regular file, and would be replaced by one",
                display_path(path)
            ))
            .with_hint("name another path; to standard output: ctl sync manifest ID"));
        }
    }
    if std::fs::read(&others).is_ok_and(|text| !text.is_empty() && !text.starts_with(b"# b3sum ")) {
        return Err(CliError::usage(format!(
            "{} is to list the files with names that b3sum refuses, and exists with other content",
            display_path(&others)
        ))
        .with_hint("rename it, or name another path"));
    }
    let shown = display_path(path);
    if path.file_name().is_none() {
        return Err(CliError::usage(format!("--manifest `{shown}` names no file")));
    }
    let dir_error = |e: std::io::Error| {
        CliError::usage(format!("--manifest {shown} can't be written in its directory: {e}"))
    };
    let dir = parent_dir(path);
    if !std::fs::metadata(dir).map_err(dir_error)?.is_dir() {
        return Err(dir_error(std::io::ErrorKind::NotADirectory.into()));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(dir, access).map_err(|e| dir_error(e.into()))
}

/// Writes the list of files with names that `b3sum` refuses, and returns their number. If there are none, the list of
/// an earlier sync is removed.
async fn write_others(path: &Path, body: &mut Download) -> Result<u64> {
    let lines = write_manifest(path, body).await?;
    if lines == 0 {
        std::fs::remove_file(path).map_err(|e| {
            let shown = display_path(path);
            CliError::new(format!("cannot remove {shown}, in which no file is listed: {e}"))
        })?;
    }
    // A line with the reason precedes each file.
    Ok(lines / 2)
}

/// Writes the reply to `path`, which is replaced when the new file is complete. Returns the number of lines.
async fn write_manifest(path: &Path, body: &mut Download) -> Result<u64> {
    let write_error = |e: std::io::Error| {
        CliError::new(format!("cannot write the manifest {}: {e}", display_path(path))).with_hint(
            "the sync itself ended as reported above; for the manifest: ctl sync manifest ID",
        )
    };
    let mut pending = PendingFile::create(path, 0o666).map_err(write_error)?;
    let mut lines = 0;
    while let Some(chunk) = body.next_chunk().await? {
        lines += chunk.iter().filter(|b| **b == b'\n').count() as u64;
        pending.file.write_all(&chunk).map_err(write_error)?;
    }
    pending.publish(path, true).map_err(write_error)?;
    Ok(lines)
}

#[cfg(test)]
mod tests;
