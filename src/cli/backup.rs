//! `ctl admin backup`: the store of a running master, in one file.

use super::args::OutputFormat;
use super::error::CliError;
use super::{Context, console};
use crate::util::{checksum, units};
use serde_json::json;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Copies the store into `file`, which appears complete or not at all.
///
/// # Errors
/// `file` exists or cannot be written; the master cannot be asked, or keeps its state in Redis.
pub(super) async fn run(ctx: &Context, file: &Path) -> Result<(), CliError> {
    let failed = |e: std::io::Error| {
        CliError::new(format!("cannot write the backup {}: {e}", file.display()))
    };
    match file.symlink_metadata() {
        Ok(_) => return Err(file_exists_error(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let mut target = PendingFile::create(file).map_err(failed)?;
    let mut body = ctx.new_client()?.download_backup().await?;
    let (mut check, mut bytes) = (checksum::ChecksumHasher::default(), 0_u64);
    while let Some(piece) = body.next_chunk().await? {
        check.update(&piece);
        bytes += piece.len() as u64;
        target.file.write_all(&piece).map_err(failed)?;
    }
    if body.checksum() != Some(check.header_value()) {
        return Err(CliError::from(body.corruption_error()));
    }
    target.file.sync_all().map_err(failed)?;
    target.publish(file).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => file_exists_error(file),
        _ => failed(e),
    })?;
    match ctx.global.output {
        OutputFormat::Json => {
            console::write_data(json!({"file": file, "bytes": bytes}).to_string().as_bytes())
        }
        OutputFormat::Table if ctx.global.quiet => Ok(()),
        OutputFormat::Table => {
            let size = units::format_bytes(bytes);
            console::write_data(
                format!("the store is copied to {} ({size})", file.display()).as_bytes(),
            )
        }
    }
}

fn file_exists_error(file: &Path) -> CliError {
    CliError::new(format!("{} exists and is not overwritten", file.display()))
        .with_hint("name a file that does not exist, or remove this one")
}

/// The file before it has its name; removed on drop.
struct PendingFile {
    file: File,
    path: PathBuf,
}

impl PendingFile {
    /// In the directory of `target`, readable by its owner only.
    fn create(target: &Path) -> std::io::Result<PendingFile> {
        let mut name = OsString::from(target);
        name.push(format!(".part-{}", uuid::Uuid::new_v4().simple()));
        let path = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(PendingFile { file, path })
    }

    /// Gives it the name `target`, unless that exists.
    fn publish(self, target: &Path) -> std::io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            // A file system that does not know the flag.
            Err(rustix::io::Errno::INVAL) => std::fs::hard_link(&self.path, target)?,
            renamed => renamed?,
        }
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // Gone already where it has its final name.
        let _ = std::fs::remove_file(&self.path);
    }
}
