//! What a master has recorded of a sync: what became of each path (`ctl sync files`, `--itemize`), and
//! the digest of each file (`ctl sync manifest`, `--manifest`). Both may be long: they are passed on as
//! they come.

use super::args::{FilesArgs, Output};
use super::b3sum::{Digests, Lines, Reader};
use super::exit::Exit;
use super::failure::Failure;
use super::options::{OptionArgs, state_word};
use super::sync::{full_id, on_named};
use super::wait::{Ended, Waited};
use super::{Context, out};
use crate::client::{ClientError, Download, MasterClient};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::options::{EntryAction, FileRecord, FileState};
use crate::wire::path::escape_bytes;
use crate::wire::sync::SyncProgress;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `ctl sync files`.
///
/// # Errors
/// The sync is not there or has no records; the master can't be asked.
pub(super) async fn files(ctx: &Context, args: FilesArgs) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let ask = async |id: &RequestId| client.files(id, &args.state).await;
    let mut body = on_named(&client, &args.id, ask).await.map_err(refused)?;
    if ctx.global.output == Output::Json && !args.print0 {
        pass_on(&mut body).await?;
        return note_unlisted(ctx, &client, &args).await;
    }
    if !args.print0 && !ctx.global.quiet {
        out::data(b"STATE    ACTION             BYTES  PATH\n")?;
    }
    let form = if args.print0 { name } else { row };
    each_record(&mut body, form).await?;
    note_unlisted(ctx, &client, &args).await
}

/// Reports failures that the list leaves out.
async fn note_unlisted(
    ctx: &Context,
    client: &MasterClient,
    args: &FilesArgs,
) -> Result<Exit, Failure> {
    if !args.state.is_empty() && !args.state.contains(&FileState::Failed) {
        return Ok(Exit::Ok);
    }
    let sync = on_named(client, &args.id, async |id: &RequestId| client.progress(id).await).await?;
    if sync.failures_unlisted > 0 {
        let (all, ctl, id) = (sync.failure_count(), &ctx.ctl, &sync.request_id);
        out::note(&format!(
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
pub(super) async fn manifest(ctx: &Context, id: RequestId, others: bool) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let id = full_id(&client, &id).await?;
    let exit = pass_on(&mut client.digests(&id, others).await.map_err(refused)?).await?;
    if !others && !ctx.global.quiet {
        let mut rest = client.digests(&id, true).await.map_err(refused)?;
        if rest.next().await?.is_some() {
            let ctl = &ctx.ctl;
            out::note(&format!(
                "b3sum refuses the names of other files, which are not listed here: {ctl} sync manifest {id} --others"
            ));
        }
    }
    Ok(exit)
}

/// Where the files of a manifest are listed whose names `b3sum` refuses.
pub(super) fn others_of(manifest: &Path) -> PathBuf {
    let mut path = manifest.as_os_str().to_owned();
    path.push(".others");
    path.into()
}

/// What is not recorded, or not yet, is no conflict about an id.
fn refused(e: ClientError) -> Failure {
    let failure = Failure::from(e);
    if failure.exit == Exit::Conflict { failure.exits(Exit::Error) } else { failure }
}

/// The digests of a sync's files.
///
/// # Errors
/// As [`full_manifest`]; a list that can't be read.
pub(super) async fn digests(ctx: &Context, id: &RequestId) -> Result<Digests, Failure> {
    let client = ctx.client()?;
    let mut reader = Reader::default();
    for others in [false, true] {
        let mut body = client.digests(id, others).await.map_err(refused)?;
        while let Some(piece) = body.next().await? {
            reader.push(&piece)?;
        }
    }
    reader.end("the master's list")
}

/// A sync that has ended, and with records.
///
/// # Errors
/// It is not there, or still runs.
pub(super) async fn ended(ctx: &Context, id: &RequestId) -> Result<SyncProgress, Failure> {
    let client = ctx.client()?;
    let look = async |id: &RequestId| client.progress(id).await;
    let sync = on_named(&client, id, look).await?.value;
    if sync.state.is_final() {
        return Ok(sync);
    }
    Err(Failure::new(format!("sync {id} has not ended: its list is not complete"))
        .hinted(format!("{} sync wait {id}", ctx.ctl)))
}

/// Writes a reply to standard output as it comes, until nobody reads any more.
async fn pass_on(body: &mut Download) -> Result<Exit, Failure> {
    while let Some(piece) = body.next().await? {
        if !out::raw(&piece)? {
            break;
        }
    }
    Ok(Exit::Ok)
}

/// Writes each record in a form, until nobody reads any more.
async fn each_record(
    body: &mut Download,
    form: fn(&FileRecord, &mut Vec<u8>),
) -> Result<(), Failure> {
    let mut lines = Lines::default();
    while let Some(piece) = body.next().await? {
        let mut text = Vec::new();
        lines.push(&piece, |line| {
            form(&record(line)?, &mut text);
            Ok(())
        })?;
        if !out::raw(&text)? {
            return Ok(());
        }
    }
    match lines.rest() {
        b"" => Ok(()),
        _ => Err(Failure::new("the master's list of files ends in the middle of a line")
            .hinted("repeat the command; if that does not help, see the master's log")),
    }
}

fn record(line: &[u8]) -> Result<FileRecord, Failure> {
    serde_json::from_slice(line).map_err(|e| {
        let shown = escape_bytes(&line[..line.len().min(200)]);
        Failure::new(format!("cannot read the master's record of a file: {e}; it is `{shown}`"))
            .hinted("is this program as new as the master? see ctl version")
    })
}

/// The path, `.` for the root: an empty name is none.
fn path(record: &FileRecord) -> &[u8] {
    if record.path.0.is_empty() { b"." } else { &record.path.0 }
}

fn row(record: &FileRecord, text: &mut Vec<u8>) {
    let action = record.action.map_or("-", |action| action.as_str());
    let (state, path) = (state_word(record.state), escape_bytes(path(record)));
    text.extend(format!("{state:<7}  {action:<8}  {:>14}  {path}\n", record.bytes).bytes());
}

fn name(record: &FileRecord, text: &mut Vec<u8>) {
    text.extend_from_slice(path(record));
    text.push(0);
}

/// What was done, for `--itemize`: what was left alone is no news.
fn item(record: &FileRecord, text: &mut Vec<u8>) {
    let word = match (record.state, record.action) {
        (FileState::Failed, _) => "failed",
        (_, Some(EntryAction::Skip)) | (FileState::Skipped, None) => return,
        (_, Some(action)) => action.as_str(),
        (state, None) => state_word(state),
    };
    text.extend(format!("{word:<8}  {}\n", escape_bytes(path(record))).bytes());
}

/// What an operator who waits for a sync wants of its records.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    itemize: bool,
    manifest: Option<PathBuf>,
}

impl Wanted {
    /// As the command line says. Nothing is written yet.
    ///
    /// # Errors
    /// The manifest could not be written in the end: better said now than then.
    pub(super) fn new(args: &OptionArgs) -> Result<Wanted, Failure> {
        if let Some(path) = &args.check.manifest {
            writable(path)?;
        }
        Ok(Wanted { itemize: args.plan.itemize, manifest: args.check.manifest.clone() })
    }

    /// Prints what was done with each path: lines, or (json) the records.
    ///
    /// # Errors
    /// The master can't be asked, standard output can't be written.
    pub(super) async fn items(
        &self,
        ctx: &Context,
        client: &MasterClient,
        waited: &Waited,
    ) -> Result<(), Failure> {
        for sync in waited.syncs.iter().filter(|sync| self.itemize && is_known(sync)) {
            let mut body = client.files(&sync.id, &[]).await.map_err(refused)?;
            match ctx.global.output {
                Output::Json => drop(pass_on(&mut body).await?),
                Output::Table => each_record(&mut body, item).await?,
            }
        }
        Ok(())
    }

    /// Writes the manifest, where the sync ended with something to list.
    ///
    /// # Errors
    /// The master can't be asked, the file can't be written.
    pub(super) async fn manifests(
        &self,
        ctx: &Context,
        client: &MasterClient,
        waited: &Waited,
    ) -> Result<(), Failure> {
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
                    let mut body = client.digests(&sync.id, false).await.map_err(refused)?;
                    let files = write(path, &mut body).await?;
                    let others = others_of(path);
                    let mut body = client.digests(&sync.id, true).await.map_err(refused)?;
                    let rest = write_others(&others, &mut body).await?;
                    if !ctx.global.quiet {
                        let files = units::pluralize(files, "file", "files");
                        out::note(&format!("  manifest: {files} in {shown}"));
                        if rest > 0 {
                            let others = escape_bytes(others.as_os_str().as_encoded_bytes());
                            let rest = units::pluralize(rest, "file", "files");
                            out::note(&format!(
                                "  manifest: {rest} with names that b3sum refuses, in {others}"
                            ));
                        }
                    }
                }
                _ => {
                    out::note(&format!("  manifest: {shown} is not written, the sync is not done"))
                }
            }
        }
        Ok(())
    }
}

/// Whether the master knows it, and it has ended.
fn is_known(sync: &Ended) -> bool {
    sync.exit.is_some() && sync.seen.is_some() && !sync.deleted
}

/// Whether a manifest can be written to `path`, as far as that can be known before.
fn writable(path: &Path) -> Result<(), Failure> {
    let shown = escape_bytes(path.as_os_str().as_encoded_bytes()).to_string();
    for path in [path, &others_of(path)] {
        let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
        if let Ok(there) = std::fs::symlink_metadata(path)
            && !there.is_file()
        {
            return Err(Failure::usage(format!(
                "--manifest {shown} is not a regular file, and would be replaced by one"
            ))
            .hinted("name another path; to standard output: ctl sync manifest ID"));
        }
    }
    let others = others_of(path);
    if std::fs::read(&others).is_ok_and(|text| !text.is_empty() && !text.starts_with(b"# b3sum ")) {
        let others = escape_bytes(others.as_os_str().as_encoded_bytes());
        return Err(Failure::usage(format!(
            "{others} is to list the files with names that b3sum refuses, and exists with other content"
        ))
        .hinted("rename it, or name another path"));
    }
    if path.file_name().is_none() {
        return Err(Failure::usage(format!("--manifest `{shown}` names no file")));
    }
    let allowed = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let refused = |e: std::io::Error| {
        Failure::usage(format!("--manifest {shown} can't be written in its directory: {e}"))
    };
    let dir = directory(path);
    let is_dir = std::fs::metadata(dir).map_err(refused)?.is_dir();
    if !is_dir {
        return Err(refused(std::io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(dir, allowed).map_err(|e| refused(e.into()))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the files whose names `b3sum` refuses to `path`; where there are none, one of an earlier sync is removed.
/// Returns how many they are.
async fn write_others(path: &Path, body: &mut Download) -> Result<u64, Failure> {
    let lines = write(path, body).await?;
    if lines == 0 {
        std::fs::remove_file(path).map_err(|e| {
            let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
            Failure::new(format!("cannot remove {shown}, in which no file is listed: {e}"))
        })?;
    }
    // A line with the reason stands before each.
    Ok(lines / 2)
}

/// Writes what comes to a file beside `path`, and gives it that name when it is complete and on
/// stable storage. Tells how many lines there were.
async fn write(path: &Path, body: &mut Download) -> Result<u64, Failure> {
    let beside = Beside::new(path)?;
    let failed = |e: std::io::Error| {
        let shown = escape_bytes(path.as_os_str().as_encoded_bytes());
        Failure::new(format!("cannot write the manifest {shown}: {e}")).hinted(
            "the sync itself ended as reported above; for the manifest: ctl sync manifest ID",
        )
    };
    let mut files = 0;
    while let Some(piece) = body.next().await? {
        files += piece.iter().filter(|b| **b == b'\n').count() as u64;
        (&beside.file).write_all(&piece).map_err(failed)?;
    }
    beside.publish(path).map_err(failed)?;
    Ok(files)
}

/// A file that is removed unless it gets its final name.
struct Beside {
    file: File,
    name: PathBuf,
}

impl Beside {
    fn new(path: &Path) -> Result<Beside, Failure> {
        let name = directory(path)
            .join(format!(".ctl-manifest-{}", crate::util::unique_id::generate_id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&name).map_err(|e| {
            let shown = escape_bytes(name.as_os_str().as_encoded_bytes());
            Failure::new(format!("cannot make {shown} for the manifest: {e}"))
        })?;
        Ok(Beside { file, name })
    }

    fn publish(&self, path: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.name, path)?;
        File::open(directory(path))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = std::fs::remove_file(&self.name);
    }
}

#[cfg(test)]
mod tests;
