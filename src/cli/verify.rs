//! `ctl sync verify`: compares a destination that is mounted here with the digests of its files, without the source.
//!
//! One thread walks the tree, one thread per core hashes: small files whole, large ones in ranges, the values of which
//! are merged, so that a single large file uses all cores. Memory does not depend on the length of the files.

use super::args::{OutputFormat, VerifyArgs};
use super::b3sum::{DigestList, DigestListReader};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::files_from::{is_stdin, read_input};
use super::manifest::{fetch_digests, fetch_ended_sync, others_path};
use super::path_args::{LocalCommand, check_local_path};
use super::sanitize::{display_path, sanitize};
use super::sync_text::address_text;
use super::{Context, console};
use crate::fs::{Cause, FsError, RootDir, SourceFile, TRASH_MARKER, Tree};
use crate::util::units;
use crate::wire::content::{ZERO_DIGEST, merge_ranges};
use crate::wire::errno::errno_text;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::path::escape_bytes;
use crate::wire::sync::SyncProgress;
use crate::wire::{AbsPath, BytePath, Digest, RelPath, RequestId};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Longer files are hashed in ranges of this length, which must be a power of two.
const RANGE_BYTES: u64 = 64 << 20;
const QUEUED_JOBS_PER_THREAD: usize = 16;

/// Verifies a destination.
///
/// # Errors
/// The list can't be read, or PATH does not exist. Differences are no error, but set the exit code.
pub(super) async fn run(ctx: &Context, args: VerifyArgs) -> Result<Exit> {
    let started = Instant::now();
    // The last argument is the PATH, unless it is the only one and an id.
    if let Some(path) =
        args.id_or_path.iter().skip(usize::from(args.manifest.is_none())).next_back()
    {
        check_local_path(LocalCommand::Verify, "PATH", path.as_bytes())?;
    }
    let (digests, path, trash) = match (&args.manifest, args.id_or_path.as_slice()) {
        (Some(file), [path]) => {
            let (digests, note) = read_digest_files(file)?;
            if let Some(note) = note.filter(|_| !ctx.global.quiet) {
                console::print_note(&note);
            }
            (digests, Path::new(path).to_owned(), None)
        }
        (Some(_), _) => {
            return Err(CliError::usage(
                "with --manifest only the PATH of the destination is given",
            ));
        }
        (None, [id, path @ ..]) => {
            let id = id.to_string_lossy();
            let id: RequestId = id.parse().map_err(|e| {
                CliError::usage(format!("`{}` is not an id: {e}", escape_bytes(id.as_bytes())))
                    .with_hint("for a list in a file: ctl sync verify --manifest FILE PATH")
            })?;
            let sync = fetch_ended_sync(ctx, &id).await?;
            if path.is_empty() && !sync.destination_workers.is_empty() && !ctx.global.quiet {
                console::print_note(&selected_workers_note(&sync));
            }
            let destination = OsStr::from_bytes(sync.destination_path.as_bytes());
            let path =
                Path::new(path.first().map_or(destination, |path| path.as_os_str())).to_owned();
            let trash = sync.options.delete.and_then(|delete| delete.trash);
            (fetch_digests(ctx, &sync.request_id).await?, path, trash)
        }
        (None, []) => {
            return Err(CliError::usage("an ID, or --manifest FILE and a PATH, is needed"));
        }
    };
    let target = VerifyTarget { trash, ..VerifyTarget::open(&path)? };
    let report = VerifyReport::new(ctx, args.ignore_extra);
    let report = tokio::task::spawn_blocking(move || verify_tree(&target, &digests, report))
        .await
        .map_err(|e| CliError::new(format!("the verification ended: {e}")))??;
    Ok(report.finish(started.elapsed()))
}

/// The path is known, but not whether it leads to one of the storages that the sync wrote: only the operator can say.
fn selected_workers_note(sync: &SyncProgress) -> String {
    let (path, written) = (&sync.destination_path, &sync.destination_workers);
    let written = address_text(written, path);
    format!("note: {path} is read as it is mounted on this machine; the sync wrote to {written}")
}

/// The digests of a list and of its `.others` file, and a note if that is missing. The list can't say whether there was
/// one, because `b3sum` does not accept comments.
fn read_digest_files(file: &Path) -> Result<(DigestList, Option<String>)> {
    let mut reader = DigestListReader::default();
    reader.push(&read_input(file, "the list of digests")?)?;
    let others = others_path(file);
    let missing = if is_stdin(file) {
        Some("a list from standard input has no FILE.others beside it".to_owned())
    } else if others.exists() {
        reader.end_list()?;
        reader.push(&read_input(&others, "the list of digests")?)?;
        None
    } else {
        Some(format!("{} is not there", display_path(&others)))
    };
    let note = missing.map(|reason| {
        format!("note: {reason}: files with names that b3sum refuses (not UTF-8) are not checked, if the sync had any")
    });
    Ok((reader.finish(&display_path(file))?, note))
}

struct VerifyTarget {
    tree: Tree,
    /// The name of PATH if it is a file.
    file: Option<Vec<u8>>,
    /// The directory for deleted entries.
    trash: Option<RelPath>,
}

impl VerifyTarget {
    fn open(path: &Path) -> Result<VerifyTarget> {
        let shown = display_path(path);
        let access_error = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => {
                CliError::new(format!("{shown} does not exist on this machine"))
                    .with_exit(Exit::NotFound)
                    .with_hint("where it is mounted under another path: ctl sync verify ID PATH")
            }
            _ => CliError::new(format!("cannot access {shown}: {e}")),
        };
        // Symbolic links are followed in PATH only, not below it.
        let real = std::fs::canonicalize(path).map_err(access_error)?;
        let is_dir = std::fs::metadata(&real).map_err(access_error)?.is_dir();
        let (dir, name) = match (is_dir, real.parent(), real.file_name()) {
            (false, Some(parent), Some(name)) => (parent, Some(name.as_bytes().to_vec())),
            _ => (real.as_path(), None),
        };
        let open_error = |e: String| CliError::new(format!("cannot open {shown}: {e}"));
        let root =
            AbsPath::new(dir.as_os_str().as_bytes()).map_err(|e| open_error(e.to_string()))?;
        let root = RootDir::open(&root).map_err(|e| open_error(cause_text(&e)))?;
        let base = RelPath::new(name.as_deref().unwrap_or_default());
        let tree = Tree::new(root, base.map_err(|e| open_error(e.to_string()))?);
        Ok(VerifyTarget { tree, file: name, trash: None })
    }

    /// The index of `entry` in the list. A single file is compared with a single line whatever its name is.
    fn list_index(&self, digests: &DigestList, entry: &Entry) -> Option<usize> {
        match &self.file {
            Some(_) if digests.len() == 1 => Some(0),
            Some(name) => digests.position_of(name),
            None => digests.position_of(entry.path.as_bytes()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    Changed,
    Missing,
    Extra,
    Unreadable,
}

/// The names of the [`Difference`]s, in their order.
const DIFFERENCE_NAMES: [&str; 4] = ["changed", "missing", "extra", "unreadable"];

/// A line of `-o json`.
#[derive(Debug, Serialize)]
struct Finding {
    path: BytePath,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

type LineSink = Box<dyn FnMut(&[u8]) -> Result<()> + Send>;

/// Prints differences as they are found, and counts them.
struct VerifyReport {
    json: bool,
    quiet: bool,
    ignore_extra: bool,
    /// The number of each difference, in the order of [`DIFFERENCE_NAMES`].
    counts: [u64; 4],
    files: u64,
    bytes: u64,
    /// The first error of standard output.
    write_error: Option<CliError>,
    write_line: LineSink,
}

impl VerifyReport {
    fn new(ctx: &Context, ignore_extra: bool) -> VerifyReport {
        VerifyReport {
            json: ctx.global.output == OutputFormat::Json,
            quiet: ctx.global.quiet,
            ignore_extra,
            counts: [0; 4],
            files: 0,
            bytes: 0,
            write_error: None,
            write_line: Box::new(console::write_data),
        }
    }

    fn add_difference(&mut self, path: &[u8], difference: Difference, message: Option<String>) {
        if difference == Difference::Extra && self.ignore_extra {
            return;
        }
        self.counts[difference as usize] += 1;
        let state = DIFFERENCE_NAMES[difference as usize];
        let path = BytePath(if path.is_empty() { b".".to_vec() } else { path.to_vec() });
        let line = if self.json {
            serde_json::to_string(&Finding { path, state, message }).unwrap_or_default()
        } else {
            let message = message.map(|m| format!("  ({})", sanitize(&m))).unwrap_or_default();
            format!("{state:<10}  {path}{message}")
        };
        if let Err(e) = (self.write_line)(line.as_bytes()) {
            self.write_error.get_or_insert(e);
        }
    }

    /// Prints the summary and returns the exit code.
    fn finish(&self, took: Duration) -> Exit {
        let wrong = self.counts.iter().any(|n| *n > 0);
        let exit = if wrong { Exit::Partial } else { Exit::Ok };
        if !self.quiet {
            console::print_note(&self.summary(took, exit));
        }
        exit
    }

    fn summary(&self, took: Duration, exit: Exit) -> String {
        let head = format!(
            "read {}, {} in {}",
            units::pluralize(self.files, "file", "files"),
            units::format_bytes(self.bytes),
            units::format_duration(took)
        );
        if exit == Exit::Ok {
            return format!("{head}: all match the list");
        }
        let counts = DIFFERENCE_NAMES.iter().zip(self.counts);
        let counts = counts.map(|(word, n)| format!("{} {word}", units::format_count(n)));
        let counts = counts.collect::<Vec<_>>().join(", ");
        format!("{head}: {counts}   (exit {})", exit.code())
    }
}

/// A large file, which is hashed in ranges.
struct LargeFile {
    file: SourceFile,
    list_index: usize,
    range_count: usize,
    /// The chaining value of each range that was read.
    ranges: Mutex<BTreeMap<usize, Result<Digest, FsError>>>,
}

enum Job {
    Whole { entry: Entry, at: usize },
    Range { large: Arc<LargeFile>, index: usize },
}

/// Walks the tree, hashes its files and reports all differences from `digests`.
fn verify_tree(
    target: &VerifyTarget,
    digests: &DigestList,
    report: VerifyReport,
) -> Result<VerifyReport> {
    let report = Mutex::new(report);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (send, jobs) = sync_channel(threads * QUEUED_JOBS_PER_THREAD);
    let jobs = Arc::new(Mutex::new(jobs));
    let walked = std::thread::scope(|scope| {
        for _ in 0..threads {
            // Only the threads hold the receiver: if all of them panic, sending fails and the walk ends.
            let (jobs, report) = (Arc::clone(&jobs), &report);
            scope.spawn(move || run_worker(target, digests, report, &jobs));
        }
        drop(jobs);
        walk_tree(target, digests, &report, send)
    })?;
    let mut report = report.into_inner();
    for (at, path) in digests.names() {
        if walked.listed_seen[at] {
            continue;
        }
        let below = |dir: &RelPath| RelPath::new(path).is_ok_and(|path| dir.contains(&path));
        match walked.unreadable.iter().any(below) {
            true => {
                let reason = "its directory can't be read".to_owned();
                report.add_difference(path, Difference::Unreadable, Some(reason));
            }
            false => report.add_difference(path, Difference::Missing, None),
        }
    }
    match report.write_error.take() {
        Some(failure) => Err(failure),
        None => Ok(report),
    }
}

struct WalkResult {
    /// For each index of the list whether the walk found the name.
    listed_seen: Vec<bool>,
    /// Directories (or entries) that could not be read.
    unreadable: Vec<RelPath>,
}

fn walk_tree(
    target: &VerifyTarget,
    digests: &DigestList,
    report: &Mutex<VerifyReport>,
    jobs: SyncSender<Job>,
) -> Result<WalkResult> {
    let mut walked = WalkResult { listed_seen: vec![false; digests.len()], unreadable: Vec::new() };
    let root = RelPath::root();
    let walk = target.tree.walk(&root, None).map_err(|e| {
        CliError::new(format!("cannot read {}: {}", target.tree.path(), cause_text(&e)))
    })?;
    // The directory for deleted entries that the walk is in. Files in it are verified if they are listed.
    let mut trash: Option<RelPath> = None;
    for next in walk {
        let entry = match next {
            Ok(entry) => entry,
            Err(e) => {
                walked.unreadable.extend(RelPath::new(&e.path.0));
                report.lock().add_difference(
                    &e.path.0,
                    Difference::Unreadable,
                    Some(cause_text(&e)),
                );
                continue;
            }
        };
        trash = trash.filter(|trash| trash.contains(&entry.path));
        if trash.is_none() && entry.is_dir() && is_trash(target, &entry) {
            trash = Some(entry.path.clone());
        }
        let at = target.list_index(digests, &entry);
        if let Some(at) = at {
            walked.listed_seen[at] = true;
        }
        match (entry.kind.clone(), at) {
            (EntryKind::File { size }, Some(at)) => {
                queue_file(target, report, &jobs, entry, size, at)?
            }
            (EntryKind::File { .. }, None) if trash.is_some() => {}
            (EntryKind::File { .. }, None) => {
                report.lock().add_difference(entry.path.as_bytes(), Difference::Extra, None);
            }
            (_, Some(_)) => {
                let reason = Some("it is not a regular file".to_owned());
                report.lock().add_difference(entry.path.as_bytes(), Difference::Changed, reason);
            }
            (_, None) => {}
        }
    }
    Ok(walked)
}

/// Whether a directory holds entries that a mirror deleted, which are not part of the copy.
fn is_trash(target: &VerifyTarget, dir: &Entry) -> bool {
    let marked = || {
        let mark = dir.path.child(TRASH_MARKER).ok();
        mark.and_then(|mark| target.tree.entry(&mark).ok())
            .is_some_and(|mark| matches!(mark.kind, EntryKind::File { .. }))
    };
    target.trash.as_ref() == Some(&dir.path) || marked()
}

/// Queues a file as one job, or as one job per range.
fn queue_file(
    target: &VerifyTarget,
    report: &Mutex<VerifyReport>,
    jobs: &SyncSender<Job>,
    entry: Entry,
    size: u64,
    at: usize,
) -> Result<()> {
    let send = |job| {
        let ended = |_| CliError::new("the threads that hash have ended");
        jobs.send(job).map_err(ended)
    };
    if size <= RANGE_BYTES {
        return send(Job::Whole { entry, at });
    }
    let file = match target.tree.open_source(&entry) {
        Ok(file) => file,
        Err(e) => {
            add_error(&mut report.lock(), entry.path.as_bytes(), &e);
            return Ok(());
        }
    };
    // The file may have been replaced since it was listed: the ranges are those of the open one.
    let size = file.size();
    if size <= RANGE_BYTES {
        return send(Job::Whole { entry, at });
    }
    let count = usize::try_from(size.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX);
    let large =
        Arc::new(LargeFile { file, list_index: at, range_count: count, ranges: Mutex::default() });
    (0..count).try_for_each(|index| send(Job::Range { large: Arc::clone(&large), index }))
}

/// Runs jobs until there are no more.
fn run_worker(
    target: &VerifyTarget,
    digests: &DigestList,
    report: &Mutex<VerifyReport>,
    jobs: &Mutex<Receiver<Job>>,
) {
    loop {
        let job = jobs.lock().recv();
        match job {
            Err(_) => return,
            Ok(Job::Whole { entry, at }) => {
                let hashed = hash_file(target, &entry);
                compare_digest(report, entry.path.as_bytes(), digests.digest_at(at), hashed);
            }
            Ok(Job::Range { large, index }) => {
                let value = hash_range(&large, index);
                let mut ranges = large.ranges.lock();
                ranges.insert(index, value);
                if ranges.len() == large.range_count {
                    let hashed = merge_digest(&large.file, std::mem::take(&mut ranges));
                    let expected = digests.digest_at(large.list_index);
                    compare_digest(report, large.file.entry().path.as_bytes(), expected, hashed);
                }
            }
        }
    }
}

fn compare_digest(
    report: &Mutex<VerifyReport>,
    path: &[u8],
    expected: Digest,
    hashed: Result<(Digest, u64), FsError>,
) {
    let mut report = report.lock();
    match hashed {
        Ok((digest, bytes)) => {
            report.files += 1;
            report.bytes += bytes;
            if digest != expected {
                report.add_difference(path, Difference::Changed, None);
            }
        }
        Err(e) => add_error(&mut report, path, &e),
    }
}

/// Reports a file that could not be hashed.
fn add_error(report: &mut VerifyReport, path: &[u8], e: &FsError) {
    match e.cause {
        Cause::Os(Errno::NOENT) => report.add_difference(path, Difference::Missing, None),
        Cause::Changed | Cause::NotRegularFile => {
            report.add_difference(path, Difference::Changed, Some(cause_text(e)))
        }
        _ => report.add_difference(path, Difference::Unreadable, Some(cause_text(e))),
    }
}

/// The digest and length of a small file.
fn hash_file(target: &VerifyTarget, entry: &Entry) -> Result<(Digest, u64), FsError> {
    let file = target.tree.open_source(entry)?;
    let digest = file.hash_range(0..file.size())?.digest();
    file.verify_unchanged()?;
    Ok((digest, file.size()))
}

/// The chaining value of one range.
fn hash_range(large: &LargeFile, index: usize) -> Result<Digest, FsError> {
    let start = index as u64 * RANGE_BYTES;
    let hasher = large.file.hash_range(start..large.file.size().min(start + RANGE_BYTES))?;
    // Never `None`: no range is empty.
    Ok(hasher.chaining_value().unwrap_or(ZERO_DIGEST))
}

/// The digest and length of a large file of which all ranges were read.
fn merge_digest(
    file: &SourceFile,
    ranges: BTreeMap<usize, Result<Digest, FsError>>,
) -> Result<(Digest, u64), FsError> {
    let ranges = ranges.into_values().collect::<Result<Vec<_>, _>>()?;
    file.verify_unchanged()?;
    // Never `None`: a file longer than a range has at least two ranges.
    Ok((merge_ranges(&ranges).unwrap_or(ZERO_DIGEST), file.size()))
}

/// The cause without the hint, which is for the sync of an agent.
fn cause_text(e: &FsError) -> String {
    match (e.errno(), e.errno_name(), e.cause) {
        (Some(errno), Some(name), _) => format!("{} [{name}]", errno_text(errno)),
        (Some(errno), None, _) => errno_text(errno),
        (None, _, Cause::Changed) => "it changed while it was read".to_owned(),
        (None, _, Cause::NotRegularFile) => "it is not a regular file".to_owned(),
        (None, _, Cause::PseudoFileSystem) => {
            "its file system generates its files, like /proc".to_owned()
        }
        (None, _, _) => e.to_string(),
    }
}

#[cfg(test)]
mod tests;
