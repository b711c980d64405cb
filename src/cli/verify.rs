//! `ctl sync verify`: compares a destination with the digests of its files, on this machine and
//! without the source.
//!
//! One thread walks, all cores hash: small files whole, large ones in ranges whose values are merged,
//! so that one huge file keeps all of them busy as well. A file's content takes one buffer a thread,
//! whatever its length.

use super::args::{OutputFormat, VerifyArgs};
use super::b3sum::{DigestList, DigestListReader};
use super::error::CliError;
use super::exit::Exit;
use super::{Context, console, files_from, records};
use crate::fs::{Cause, FsError, RootDir, Side, SourceFile, TRASH_MARKER, Tree};
use crate::util::units;
use crate::wire::content::merge_ranges;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::path::escape_bytes;
use crate::wire::{AbsPath, BytePath, Digest, RelPath, RequestId};
use blake3::hazmat::HasherExt;
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Read at a time: enough for BLAKE3 to use the widest registers.
const READ_BUFFER_BYTES: usize = 1 << 20;
/// Longer files are hashed in ranges of this length, a power of two.
const RANGE_BYTES: u64 = 64 << 20;
/// Jobs that wait for each thread.
const QUEUED_JOBS_PER_THREAD: usize = 16;

/// Checks a destination.
///
/// # Errors
/// The list can't be had or read, PATH is not there. What the check finds is no error: then the exit
/// code is 23.
pub(super) async fn run(ctx: &Context, args: VerifyArgs) -> Result<Exit, CliError> {
    let begun = Instant::now();
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
        (None, [id, rest @ ..]) => {
            let id = id.to_string_lossy();
            let id: RequestId = id.parse().map_err(|e| {
                CliError::usage(format!("`{}` is not an id: {e}", escape_bytes(id.as_bytes())))
                    .with_hint("for a list in a file: ctl sync verify --manifest FILE PATH")
            })?;
            let sync = records::fetch_ended_sync(ctx, &id).await?;
            let there = std::ffi::OsStr::from_bytes(sync.destination_path.as_bytes());
            let path = rest.first().map_or(Path::new(there), Path::new).to_owned();
            let trash = sync.options.delete.and_then(|delete| delete.trash);
            (records::fetch_digests(ctx, &sync.request_id).await?, path, trash)
        }
        (None, []) => {
            return Err(CliError::usage("an ID, or --manifest FILE and a PATH, is needed"));
        }
    };
    let place = VerifyTarget { trash, ..VerifyTarget::open(&path)? };
    let report = VerifyReport::new(ctx, args.ignore_extra);
    let report = tokio::task::spawn_blocking(move || verify_tree(&place, &digests, report))
        .await
        .map_err(|e| CliError::new(format!("the check ended: {e}")))??;
    Ok(report.finish(begun.elapsed()))
}

/// The digests of a list and of the one beside it, and what is to be said where that one is missing: the list itself
/// can't hold whether there was one, because `b3sum` reads no comments.
fn read_digest_files(file: &Path) -> Result<(DigestList, Option<String>), CliError> {
    let mut reader = DigestListReader::default();
    reader.push(&files_from::read_input(file, "the list of digests")?)?;
    let others = records::others_path(file);
    let missing = if file.as_os_str() == "-" {
        Some("a list from standard input has no FILE.others beside it".to_owned())
    } else if others.exists() {
        reader.push_next_list(&files_from::read_input(&others, "the list of digests")?)?;
        None
    } else {
        Some(format!("{} is not there", escape_bytes(others.as_os_str().as_bytes())))
    };
    let note = missing.map(|why| {
        format!("note: {why}: files whose names b3sum refuses (not UTF-8) are not checked, if the sync had any")
    });
    Ok((reader.finish(&escape_bytes(file.as_os_str().as_bytes()).to_string())?, note))
}

/// What is checked.
struct VerifyTarget {
    tree: Tree,
    /// The name of PATH, where it is a file.
    file: Option<Vec<u8>>,
    /// What was deleted lies there.
    trash: Option<RelPath>,
}

impl VerifyTarget {
    fn open(path: &Path) -> Result<VerifyTarget, CliError> {
        let shown = escape_bytes(path.as_os_str().as_bytes()).to_string();
        let bad = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => {
                CliError::new(format!("{shown} does not exist on this machine"))
                    .with_exit(Exit::NotFound)
                    .with_hint("where it is mounted under another path: ctl sync verify ID PATH")
            }
            _ => CliError::new(format!("cannot access {shown}: {e}")),
        };
        // Links in PATH are followed, here; below it none is.
        let real = std::fs::canonicalize(path).map_err(bad)?;
        let is_dir = std::fs::metadata(&real).map_err(bad)?.is_dir();
        let (dir, name) = match (is_dir, real.parent(), real.file_name()) {
            (false, Some(parent), Some(name)) => (parent, Some(name.as_bytes().to_vec())),
            _ => (real.as_path(), None),
        };
        let failed = |e: String| CliError::new(format!("cannot open {shown}: {e}"));
        let root = AbsPath::new(dir.as_os_str().as_bytes()).map_err(|e| failed(e.to_string()))?;
        let root = RootDir::open(&root).map_err(|e| failed(cause_text(&e)))?;
        let base = RelPath::new(name.as_deref().unwrap_or_default());
        let tree = Tree::new(root, base.map_err(|e| failed(e.to_string()))?);
        Ok(VerifyTarget { tree, file: name, trash: None })
    }

    /// Where the list has `entry`. A single file is its single line, whatever name it has there.
    fn list_index(&self, digests: &DigestList, entry: &Entry) -> Option<usize> {
        match &self.file {
            Some(_) if digests.len() == 1 => Some(0),
            Some(name) => digests.position_of(name),
            None => digests.position_of(entry.path.as_bytes()),
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Difference {
    Changed,
    Missing,
    Extra,
    Unreadable,
}

impl Difference {
    const NAMES: [(Difference, &'static str); 4] = [
        (Difference::Changed, "changed"),
        (Difference::Missing, "missing"),
        (Difference::Extra, "extra"),
        (Difference::Unreadable, "unreadable"),
    ];

    fn name(self) -> &'static str {
        Difference::NAMES.iter().find(|(one, _)| *one == self).map_or("", |(_, word)| *word)
    }
}

/// A line of `-o json`.
#[derive(Debug, Serialize)]
struct Finding {
    path: BytePath,
    state: Difference,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Prints a line.
type LineSink = Box<dyn FnMut(&[u8]) -> Result<(), CliError> + Send>;

/// Tells what is found as it is found, and counts.
struct VerifyReport {
    json: bool,
    quiet: bool,
    ignore_extra: bool,
    counts: [u64; 4],
    files: u64,
    bytes: u64,
    /// Standard output can't be written.
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

    fn add_difference(&mut self, path: &[u8], state: Difference, message: Option<String>) {
        if state == Difference::Extra && self.ignore_extra {
            return;
        }
        self.counts[state as usize] += 1;
        let path = BytePath(if path.is_empty() { b".".to_vec() } else { path.to_vec() });
        let line = if self.json {
            serde_json::to_string(&Finding { path, state, message }).unwrap_or_default()
        } else {
            let message =
                message.map(|m| format!("  ({})", console::sanitize(&m))).unwrap_or_default();
            format!("{:<10}  {path}{message}", state.name())
        };
        if let Err(e) = (self.write_line)(line.as_bytes()) {
            self.write_error.get_or_insert(e);
        }
    }

    fn add_read_file(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    /// The line at the end, and how the program ends.
    fn finish(&self, took: Duration) -> Exit {
        let wrong = self.counts.iter().any(|n| *n > 0);
        let exit = if wrong { Exit::Partial } else { Exit::Ok };
        if !self.quiet {
            console::print_note(&self.summary(took, exit));
        }
        exit
    }

    fn summary(&self, took: Duration, exit: Exit) -> String {
        let took =
            if took < Duration::from_secs(10) { took } else { Duration::from_secs(took.as_secs()) };
        let head = format!(
            "read {}, {} in {}",
            units::pluralize(self.files, "file", "files"),
            units::format_bytes(self.bytes),
            units::format_duration(took)
        );
        if exit == Exit::Ok {
            return format!("{head}: all are as the list says");
        }
        let counts = Difference::NAMES.iter().zip(self.counts);
        let counts = counts.map(|((_, word), n)| format!("{} {word}", units::format_count(n)));
        let counts = counts.collect::<Vec<_>>().join(", ");
        format!("{head}: {counts}   (exit {})", exit.code())
    }
}

/// A large file whose ranges are hashed one by one.
struct LargeFile {
    file: SourceFile,
    list_index: usize,
    size: u64,
    /// The values of the ranges that are done.
    range_digests: Mutex<Vec<Digest>>,
    ranges_left: AtomicUsize,
    error: Mutex<Option<FsError>>,
}

enum Job {
    Whole { entry: Entry, at: usize },
    Range { large: Arc<LargeFile>, index: usize },
}

/// Walks and hashes; tells everything that is not as `digests` says.
fn verify_tree(
    place: &VerifyTarget,
    digests: &DigestList,
    report: VerifyReport,
) -> Result<VerifyReport, CliError> {
    let report = Mutex::new(report);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (send, jobs) = sync_channel(threads * QUEUED_JOBS_PER_THREAD);
    let jobs = Arc::new(Mutex::new(jobs));
    let left = std::thread::scope(|scope| {
        for _ in 0..threads {
            // Each thread holds the receiver: when the last of them is gone, sending fails and the
            // walk ends instead of waiting for ever.
            let (jobs, report) = (Arc::clone(&jobs), &report);
            scope.spawn(move || run_worker(place, digests, report, &jobs));
        }
        drop(jobs);
        walk_tree(place, digests, &report, send)
    })?;
    let mut report = report.into_inner();
    for (at, path) in digests.names() {
        if left.listed_seen[at] {
            continue;
        }
        let below = |dir: &RelPath| RelPath::new(path).is_ok_and(|path| dir.contains(&path));
        match left.unreadable.iter().any(below) {
            true => {
                let why = "its directory can't be read".to_owned();
                report.add_difference(path, Difference::Unreadable, Some(why));
            }
            false => report.add_difference(path, Difference::Missing, None),
        }
    }
    match report.write_error.take() {
        Some(failure) => Err(failure),
        None => Ok(report),
    }
}

/// What the walk leaves behind.
struct WalkResult {
    /// The places in the list whose names were met.
    listed_seen: Vec<bool>,
    /// Directories (or entries) that could not be read.
    unreadable: Vec<RelPath>,
}

fn walk_tree(
    place: &VerifyTarget,
    digests: &DigestList,
    report: &Mutex<VerifyReport>,
    jobs: SyncSender<Job>,
) -> Result<WalkResult, CliError> {
    let mut left = WalkResult { listed_seen: vec![false; digests.len()], unreadable: Vec::new() };
    let root = RelPath::root();
    let walk = place.tree.walk(&root, None).map_err(|e| {
        CliError::new(format!("cannot read {}: {}", place.tree.path(), cause_text(&e)))
    })?;
    // The directory for deleted entries that the walk is in. What the list has there is checked all the same.
    let mut trash: Option<RelPath> = None;
    for next in walk {
        let entry = match next {
            Ok(entry) => entry,
            Err(e) => {
                left.unreadable.extend(RelPath::new(&e.path.0));
                lock(report).add_difference(
                    &e.path.0,
                    Difference::Unreadable,
                    Some(cause_text(&e)),
                );
                continue;
            }
        };
        trash = trash.filter(|trash| trash.contains(&entry.path));
        if trash.is_none() && entry.is_dir() && is_trash(place, &entry) {
            trash = Some(entry.path.clone());
        }
        let at = place.list_index(digests, &entry);
        if let Some(at) = at {
            left.listed_seen[at] = true;
        }
        match (entry.kind.clone(), at) {
            (EntryKind::File { size }, Some(at)) => {
                queue_file(place, report, &jobs, entry, size, at)?
            }
            (EntryKind::File { .. }, None) if trash.is_some() => {}
            (EntryKind::File { .. }, None) => {
                lock(report).add_difference(entry.path.as_bytes(), Difference::Extra, None);
            }
            (_, Some(_)) => {
                let why = Some("it is not a regular file".to_owned());
                lock(report).add_difference(entry.path.as_bytes(), Difference::Changed, why);
            }
            (_, None) => {}
        }
    }
    Ok(left)
}

/// Whether a directory holds what a mirror deleted: it is no part of what was copied.
fn is_trash(place: &VerifyTarget, dir: &Entry) -> bool {
    let marked = || {
        let mark = dir.path.child(TRASH_MARKER).ok();
        mark.and_then(|mark| place.tree.entry(&mark).ok())
            .is_some_and(|mark| matches!(mark.kind, EntryKind::File { .. }))
    };
    place.trash.as_ref() == Some(&dir.path) || marked()
}

/// Hands a file to the threads, in one piece or in several.
fn queue_file(
    place: &VerifyTarget,
    report: &Mutex<VerifyReport>,
    jobs: &SyncSender<Job>,
    entry: Entry,
    size: u64,
    at: usize,
) -> Result<(), CliError> {
    let send = |job| {
        let ended = |_| CliError::new("the threads that hash have ended");
        jobs.send(job).map_err(ended)
    };
    if size <= RANGE_BYTES {
        return send(Job::Whole { entry, at });
    }
    let file = match place.tree.open_source(&entry) {
        Ok(file) => file,
        Err(e) => {
            add_error(&mut lock(report), entry.path.as_bytes(), &e);
            return Ok(());
        }
    };
    // It may have become another one since it was listed; ranges are made for what is open.
    let EntryKind::File { size } = file.entry().kind else { return Ok(()) };
    if size <= RANGE_BYTES {
        return send(Job::Whole { entry, at });
    }
    let count = usize::try_from(size.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX);
    let large = Arc::new(LargeFile {
        file,
        list_index: at,
        size,
        range_digests: Mutex::new(vec![Digest([0; 32]); count]),
        ranges_left: AtomicUsize::new(count),
        error: Mutex::new(None),
    });
    (0..count).try_for_each(|index| send(Job::Range { large: Arc::clone(&large), index }))
}

/// One thread: takes jobs until there are no more.
fn run_worker(
    place: &VerifyTarget,
    digests: &DigestList,
    report: &Mutex<VerifyReport>,
    jobs: &Mutex<Receiver<Job>>,
) {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        let job = jobs.lock().recv();
        match job {
            Err(_) => return,
            Ok(Job::Whole { entry, at }) => {
                let hashed = hash_file(place, &entry, &mut buffer);
                compare_digest(report, entry.path.as_bytes(), digests.digest_at(at), hashed);
            }
            Ok(Job::Range { large, index }) => {
                match hash_range(&large, index, &mut buffer) {
                    Ok(value) => lock(&large.range_digests)[index] = value,
                    Err(e) => drop(lock(&large.error).get_or_insert(e)),
                }
                if large.ranges_left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let path = large.file.entry().path.as_bytes();
                    compare_digest(
                        report,
                        path,
                        digests.digest_at(large.list_index),
                        large.merge_digest(),
                    );
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
    let mut report = lock(report);
    match hashed {
        Ok((digest, bytes)) => {
            report.add_read_file(bytes);
            if digest != expected {
                report.add_difference(path, Difference::Changed, None);
            }
        }
        Err(e) => add_error(&mut report, path, &e),
    }
}

/// A file that could not be hashed.
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
fn hash_file(
    place: &VerifyTarget,
    entry: &Entry,
    buffer: &mut [u8],
) -> Result<(Digest, u64), FsError> {
    let file = place.tree.open_source(entry)?;
    let mut hasher = blake3::Hasher::new();
    let mut done = 0;
    loop {
        let n = file.read_at(buffer, done)?;
        hasher.update(&buffer[..n]);
        done += n as u64;
        if n < buffer.len() {
            break;
        }
    }
    file.verify_unchanged()?;
    Ok((hasher.finalize().into(), done))
}

/// The chaining value of one range.
fn hash_range(large: &LargeFile, index: usize, buffer: &mut [u8]) -> Result<Digest, FsError> {
    let start = index as u64 * RANGE_BYTES;
    let end = large.size.min(start + RANGE_BYTES);
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start);
    let mut at = start;
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        if large.file.read_at(&mut buffer[..want], at)? < want {
            // Shorter than it was.
            let path = large.file.entry().path.as_bytes();
            return Err(FsError::new(Side::Destination, "read", path, Cause::Changed));
        }
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(Digest(hasher.finalize_non_root()))
}

impl LargeFile {
    fn merge_digest(&self) -> Result<(Digest, u64), FsError> {
        if let Some(e) = lock(&self.error).take() {
            return Err(e);
        }
        self.file.verify_unchanged()?;
        // Never `None`: a file that is longer than a range has at least two.
        let digest = merge_ranges(&lock(&self.range_digests)).unwrap_or(Digest([0; 32]));
        Ok((digest, self.size))
    }
}

/// The cause in words, without the advice that an agent would give.
fn cause_text(e: &FsError) -> String {
    match (e.errno(), e.cause) {
        (Some(errno), _) => {
            let text = std::io::Error::from(errno).to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            e.errno_name().map_or(text.clone(), |name| format!("{text} [{name}]"))
        }
        (None, Cause::Changed) => "it changed while it was read".to_owned(),
        (None, Cause::NotRegularFile) => "it is not a regular file".to_owned(),
        (None, Cause::PseudoFileSystem) => {
            "its file system generates its files, like /proc".to_owned()
        }
        (None, _) => e.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests;
