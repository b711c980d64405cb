//! What became of the entries of a batch: exactly one fate each, and the report that they make.

use super::batch::copy_item;
use super::execute::{Job, entry_error};
use crate::data::Destination;
use crate::data::outcome::DirMetadataError;
use crate::wire::manifest::{Entry, EntryKind, Manifest};
use crate::wire::options::{EntryAction, EntryWarnings, FileRecord, FileState, SyncOptions};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::TaskReport;
use crate::wire::{BytePath, Digest, RelPath};
use std::collections::HashSet;

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is as it shall be, and nothing was sent for it.
    Settled {
        /// What the destination did.
        action: EntryAction,
        /// The digest of its content, where that is known.
        digest: Option<Digest>,
    },
    /// Its content was sent and is at its place (in a dry run: would be).
    Brought {
        /// What the destination did.
        action: EntryAction,
        /// The length of the content.
        bytes: u64,
        /// Its digest, where it was hashed.
        digest: Option<Digest>,
    },
    /// It is not there.
    Failed(FileError),
}

/// The fates of all entries of a batch, in its order, and what came up beside them.
pub struct Fates<'a> {
    manifest: &'a Manifest,
    fates: Vec<Option<Fate>>,
    notes: EntryWarnings,
    sent: u64,
    cloned: u64,
    to_sweep: bool,
    /// Directories that came to be on the way to the entries.
    made: Vec<RelPath>,
}

impl<'a> Fates<'a> {
    /// Nothing is known yet.
    pub fn new(manifest: &'a Manifest) -> Self {
        let fates = vec![None; manifest.entries.len()];
        let (notes, made) = (EntryWarnings::new(), Vec::new());
        Fates { manifest, fates, notes, sent: 0, cloned: 0, to_sweep: false, made }
    }

    /// The batch.
    pub fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    /// Another destination is asked from the start: it says again what it can't hold.
    pub fn begin(&mut self) {
        self.notes.clear();
    }

    /// What a destination noted with a reply.
    pub fn note(&mut self, notes: EntryWarnings, to_sweep: bool) {
        for (cause, note) in notes {
            self.notes.entry(cause).or_default().merge(note);
        }
        self.to_sweep |= to_sweep;
    }

    /// A destination made these directories on the way to the entries.
    pub fn made(&mut self, dirs: Vec<RelPath>) {
        self.made.extend(dirs);
    }

    /// `bytes` of content went to a destination.
    pub fn sent(&mut self, bytes: u64) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// `bytes` of content are shared with a destination.
    pub fn cloned(&mut self, bytes: u64) {
        self.cloned = self.cloned.saturating_add(bytes);
    }

    /// All that went to destinations so far.
    pub fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Entry `i` has this fate.
    pub fn set(&mut self, i: usize, fate: Fate) {
        self.fates[i] = Some(fate);
    }

    /// Entry `i` is as it shall be. Where an earlier destination of this assignment has brought it,
    /// it is not skipped.
    pub fn settle(&mut self, i: usize, action: EntryAction, digest: Option<Digest>) {
        if is_skip(action)
            && let Some(Fate::Settled { action: before, digest: known, .. })
            | Some(Fate::Brought { action: before, digest: known, .. }) = &mut self.fates[i]
            && *before != EntryAction::Skip
        {
            *known = known.or(digest);
            return;
        }
        self.set(i, Fate::Settled { action, digest });
    }

    /// A directory that did not get its metadata back is the failure of an entry in it: trying that
    /// one again stamps the directory again. Where trying can't help, the directory's own entry has
    /// failed for the same reason, and once is enough.
    pub fn blame(&mut self, job: Job<'_>, to: &Destination, unstamped: Vec<DirMetadataError>) {
        for (dir, error) in unstamped {
            if error.class == ErrorClass::Permanent {
                tracing::debug!(sync = %job.assignment.request_id, "{error}");
                continue;
            }
            let error = job.seen(error, to.worker());
            let inside = |e: &Entry| dir == e.path || e.path.parent().is_some_and(|p| p == dir);
            let blamed = self
                .manifest
                .entries
                .iter()
                .position(inside)
                .or_else(|| self.manifest.entries.iter().position(|e| dir.contains(&e.path)));
            if let Some(i) = blamed {
                let path = self.manifest.entries[i].path.as_bytes().to_vec();
                self.set(i, Fate::Failed(FileError { path: BytePath(path), ..error }));
            }
        }
    }

    /// Counts every entry once.
    pub fn report(self, options: &SyncOptions) -> TaskReport {
        let mut report = TaskReport {
            bytes_sent: self.sent,
            bytes_cloned: self.cloned,
            warnings: self.notes,
            needs_clean_up: self.to_sweep,
            records: made_records(options, self.made),
            ..TaskReport::default()
        };
        let mut failed = HashSet::new();
        for (i, (entry, fate)) in self.manifest.entries.iter().zip(self.fates).enumerate() {
            let (action, bytes, digest) = match fate {
                Some(Fate::Settled { action, digest }) => {
                    if !is_skip(action) {
                        report.bytes_kept += entry.size();
                    }
                    (action, entry.size(), digest)
                }
                Some(Fate::Brought { action, bytes, digest }) => (action, bytes, digest),
                Some(Fate::Failed(error)) => {
                    failed.insert(i);
                    report.failures.push(error);
                    continue;
                }
                // Every entry was answered, or the batch has failed as a whole: a defect must not
                // pass for a file that is there.
                None => {
                    let why = "no result was reported for it";
                    failed.insert(i);
                    report.failures.push(entry_error(entry.path.as_bytes(), "copy", why));
                    continue;
                }
            };
            report.actions.entry(action).or_default().add(bytes);
            report.records.extend(record(options, entry, action, bytes, digest));
            if entry.is_dir() {
                report.dirs_done += 1;
                continue;
            }
            if is_skip(action) {
                report.files_skipped += 1;
                report.bytes_skipped += bytes;
            } else {
                report.files_done += 1;
                report.bytes_done += bytes;
            }
        }
        if !failed.is_empty() {
            report.retry = Some(copy_item(&some_of(self.manifest, &failed)));
        }
        report
    }
}

/// Whether an entry with this action counts as skipped.
pub fn is_skip(action: EntryAction) -> bool {
    matches!(action, EntryAction::Skip | EntryAction::Metadata)
}

/// What is kept of an entry that is at its place, where that is asked for. Entries that failed are
/// recorded by the master, which decides whether they are tried again. A directory that is as it shall be
/// is not recorded: it may have been made on the way to its contents, which has a record of its own
/// ([`made_records`]).
pub fn record(
    options: &SyncOptions,
    entry: &Entry,
    action: EntryAction,
    bytes: u64,
    digest: Option<Digest>,
) -> Option<FileRecord> {
    let is_file = matches!(entry.kind, EntryKind::File { .. });
    let news = !entry.is_dir() || action != EntryAction::Skip;
    let wanted = options.record && news || options.manifest && is_file;
    wanted.then(|| FileRecord {
        path: BytePath(entry.path.as_bytes().to_vec()),
        state: if is_skip(action) { FileState::Skipped } else { FileState::Done },
        action: Some(action),
        bytes,
        // Without it, content may have been hashed without its zeros.
        digest: digest.filter(|_| is_file && options.manifest),
        message: None,
    })
}

/// What is kept of directories that were made on the way to something in them, where that is asked for.
pub fn made_records(options: &SyncOptions, dirs: Vec<RelPath>) -> Vec<FileRecord> {
    let dirs = dirs.into_iter().filter(|_| options.record);
    let record = |dir: RelPath| FileRecord {
        path: BytePath(dir.as_bytes().to_vec()),
        state: FileState::Done,
        action: Some(EntryAction::Create),
        bytes: 0,
        digest: None,
        message: None,
    };
    dirs.map(record).collect()
}

/// A batch of just the entries at `places`, with the directories above them.
pub fn some_of(manifest: &Manifest, places: &HashSet<usize>) -> Manifest {
    let indexed = manifest.entries.iter().enumerate();
    let entries: Vec<Entry> =
        indexed.filter(|(i, _)| places.contains(i)).map(|(_, e)| e.clone()).collect();
    let mut above: HashSet<RelPath> = HashSet::new();
    for entry in &entries {
        let mut dir = entry.path.parent();
        while let Some(path) = dir {
            dir = path.parent();
            if !above.insert(path) {
                break;
            }
        }
    }
    let dirs = manifest.dirs.iter().filter(|d| above.contains(&d.path)).cloned().collect();
    Manifest { dirs, entries }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::{FileVersion, ManifestDir, Meta};
    use crate::wire::options::Tally;

    fn meta() -> Meta {
        Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 }
    }

    fn file(path: &str, size: u64) -> Entry {
        Entry::new(
            RelPath::new(path).unwrap(),
            EntryKind::File { size },
            meta(),
            FileVersion::default(),
        )
    }

    fn settled(action: EntryAction) -> Fate {
        Fate::Settled { action, digest: None }
    }

    #[test]
    fn an_entry_of_which_nothing_is_known_has_failed() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1), file("b", 2)] };
        let mut fates = Fates::new(&manifest);
        fates.settle(0, EntryAction::Skip, None);
        let report = fates.report(&SyncOptions::default());
        assert_eq!((report.files_skipped, report.failures.len()), (1, 1));
        assert_eq!(report.failures[0].path.0, b"b");
    }

    #[test]
    fn what_an_earlier_destination_brought_is_not_skipped_by_the_next() {
        let manifest = Manifest {
            dirs: vec![],
            entries: ["a", "b", "c", "d"].iter().map(|name| file(name, 5)).collect(),
        };
        let mut fates = Fates::new(&manifest);
        let digest = Some(Digest([1; 32]));
        fates.set(0, Fate::Brought { action: EntryAction::Update, bytes: 5, digest: None });
        fates.settle(1, EntryAction::Create, None);
        fates.settle(2, EntryAction::Metadata, None);
        fates.settle(3, EntryAction::Skip, None);
        fates.begin();
        (0..4).for_each(|i| fates.settle(i, EntryAction::Skip, digest));
        assert_eq!(
            fates.fates[0],
            Some(Fate::Brought { action: EntryAction::Update, bytes: 5, digest })
        );
        assert_eq!(fates.fates[3], Some(Fate::Settled { action: EntryAction::Skip, digest }));
        let report = fates.report(&SyncOptions::default());
        assert_eq!((report.files_done, report.files_skipped), (2, 2));
        // One was sent, one was linked.
        assert_eq!((report.bytes_done, report.bytes_kept, report.bytes_skipped), (10, 5, 10));
        let actions: Vec<(EntryAction, u64)> =
            report.actions.iter().map(|(action, tally)| (*action, tally.count)).collect();
        let each =
            [EntryAction::Create, EntryAction::Update, EntryAction::Metadata, EntryAction::Skip];
        assert_eq!(actions, each.map(|action| (action, 1)));
    }

    #[test]
    fn notes_of_a_destination_that_failed_are_not_counted_twice() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1)] };
        let mut fates = Fates::new(&manifest);
        for _ in 0..2 {
            fates.begin();
            let mut notes = EntryWarnings::new();
            notes.entry("owner".into()).or_default().add(b"a");
            fates.note(notes, false);
            fates.sent(1);
        }
        fates.set(0, settled(EntryAction::Create));
        let report = fates.report(&SyncOptions::default());
        assert_eq!((report.warnings["owner"].count, report.bytes_sent), (1, 2));
        assert_eq!(report.actions[&EntryAction::Create], Tally { count: 1, bytes: 1 });
    }

    #[test]
    fn records_are_kept_of_what_is_asked_for() {
        let dir =
            Entry::new(RelPath::new("d").unwrap(), EntryKind::Dir, meta(), FileVersion::default());
        let link = EntryKind::Symlink { target: b"x".to_vec() };
        let link = Entry::new(RelPath::new("l").unwrap(), link, meta(), FileVersion::default());
        let manifest = Manifest { dirs: vec![], entries: vec![dir, file("f", 3), link] };
        let names = |record, manifest_too| {
            let mut fates = Fates::new(&manifest);
            (0..3).for_each(|i| fates.set(i, settled(EntryAction::Create)));
            let options = SyncOptions { record, manifest: manifest_too, ..SyncOptions::default() };
            let records = fates.report(&options).records;
            records.iter().map(|r| r.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(false, false), Vec::<String>::new());
        assert_eq!(names(true, false), ["d", "f", "l"]);
        assert_eq!(names(false, true), ["f"]);
    }

    #[test]
    fn directories_are_recorded_where_something_was_done_with_them() {
        let dir = |path: &str| {
            Entry::new(RelPath::new(path).unwrap(), EntryKind::Dir, meta(), FileVersion::default())
        };
        let entries = ["new", "same", "touched"].map(dir).to_vec();
        let manifest = Manifest { dirs: vec![], entries };
        let records = |options: SyncOptions| {
            let mut fates = Fates::new(&manifest);
            for (i, action) in [EntryAction::Create, EntryAction::Skip, EntryAction::Metadata]
                .into_iter()
                .enumerate()
            {
                fates.set(i, settled(action));
            }
            fates.made(vec![RelPath::new("on/the/way").unwrap()]);
            let records = fates.report(&options).records;
            let one = |r: FileRecord| (r.path.to_string(), r.state, r.action.unwrap());
            records.into_iter().map(one).collect::<Vec<_>>()
        };
        let options = SyncOptions { record: true, ..SyncOptions::default() };
        assert_eq!(
            records(options),
            [
                ("on/the/way".to_owned(), FileState::Done, EntryAction::Create),
                ("new".to_owned(), FileState::Done, EntryAction::Create),
                ("touched".to_owned(), FileState::Skipped, EntryAction::Metadata),
            ]
        );
        assert_eq!(records(SyncOptions { manifest: true, ..SyncOptions::default() }), []);
    }

    #[test]
    fn a_batch_to_try_again_holds_just_what_failed_with_its_directories() {
        let dir = |p: &str| ManifestDir { path: RelPath::new(p).unwrap(), meta: meta() };
        let manifest = Manifest {
            dirs: vec![dir(""), dir("a"), dir("a/b"), dir("c")],
            entries: vec![file("a/b/x", 1), file("a/b/y", 2), file("c/z", 3)],
        };
        let some = some_of(&manifest, &[1].into());
        assert_eq!(some.entries, [file("a/b/y", 2)]);
        assert_eq!(some.dirs, [dir(""), dir("a"), dir("a/b")]);
    }
}
