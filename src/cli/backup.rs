//! `ctl admin backup`: copies the embedded store of a running master into one file.

use super::Context;
use super::error::{CliError, Result};
use super::pending_file::PendingFile;
use super::sanitize::display_path;
use crate::util::{checksum, units};
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Copies the store into `file`, which appears complete or not at all.
///
/// # Errors
/// `file` exists or can't be written; the master can't be reached, or keeps its state in Redis.
pub(super) async fn run(ctx: &Context, file: &Path) -> Result<()> {
    let shown = display_path(file);
    let write_error = |e: std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => CliError::new(format!("{shown} exists and is not overwritten"))
            .with_hint("name a file that does not exist, or remove this one"),
        _ => CliError::new(format!("cannot write the backup {shown}: {e}")),
    };
    match file.symlink_metadata() {
        Ok(_) => return Err(write_error(ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(write_error(e)),
    }
    let mut pending = PendingFile::create(file, 0o600).map_err(write_error)?;
    let mut body = ctx.new_client()?.download_backup().await?;
    let (mut checksum, mut bytes) = (checksum::ChecksumHasher::default(), 0_u64);
    while let Some(chunk) = body.next_chunk().await? {
        checksum.update(&chunk);
        bytes += chunk.len() as u64;
        pending.file.write_all(&chunk).map_err(write_error)?;
    }
    if body.checksum() != Some(checksum.header_value()) {
        return Err(CliError::from(body.corruption_error()));
    }
    pending.publish(file, false).map_err(write_error)?;
    let text = format!("the store is copied to {shown} ({})", units::format_bytes(bytes));
    ctx.print(json!({"file": file, "bytes": bytes}).to_string().as_bytes(), "", &text)
}
