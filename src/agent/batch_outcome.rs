//! What became of the entries of a batch: exactly one fate each, and the report that they make.

use super::batch::copy_item;
use super::job::{Job, entry_error};
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
pub enum EntryOutcome {
    /// It is as it shall be, and nothing was sent for it.
    InPlace {
        /// What the destination did.
        action: EntryAction,
        /// The digest of its content, where that is known.
        digest: Option<Digest>,
    },
    /// Its content was sent and is at its place (in a dry run: would be).
    Transferred {
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
pub struct BatchOutcome<'a> {
    manifest: &'a Manifest,
    outcomes: Vec<Option<EntryOutcome>>,
    notes: EntryWarnings,
    bytes_sent: u64,
    bytes_cloned: u64,
    needs_cleanup: bool,
    /// Directories that came to be on the way to the entries.
    created_dirs: Vec<RelPath>,
}

impl<'a> BatchOutcome<'a> {
    /// Nothing is known yet.
    pub fn new(manifest: &'a Manifest) -> Self {
        let fates = vec![None; manifest.entries.len()];
        let (notes, made) = (EntryWarnings::new(), Vec::new());
        BatchOutcome {
            manifest,
            outcomes: fates,
            notes,
            bytes_sent: 0,
            bytes_cloned: 0,
            needs_cleanup: false,
            created_dirs: made,
        }
    }

    /// The batch.
    pub fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    /// Another destination is asked from the start: it says again what it can't hold.
    pub fn start_attempt(&mut self) {
        self.notes.clear();
    }

    /// What a destination noted with a reply.
    pub fn merge_notes(&mut self, notes: EntryWarnings, to_sweep: bool) {
        for (cause, note) in notes {
            self.notes.entry(cause).or_default().merge(note);
        }
        self.needs_cleanup |= to_sweep;
    }

    /// A destination made these directories on the way to the entries.
    pub fn add_created_dirs(&mut self, dirs: Vec<RelPath>) {
        self.created_dirs.extend(dirs);
    }

    /// `bytes` of content went to a destination.
    pub fn add_bytes_sent(&mut self, bytes: u64) {
        self.bytes_sent = self.bytes_sent.saturating_add(bytes);
    }

    /// `bytes` of content are shared with a destination.
    pub fn add_bytes_cloned(&mut self, bytes: u64) {
        self.bytes_cloned = self.bytes_cloned.saturating_add(bytes);
    }

    /// All that went to destinations so far.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Entry `i` has this fate.
    pub fn set_outcome(&mut self, i: usize, fate: EntryOutcome) {
        self.outcomes[i] = Some(fate);
    }

    /// Entry `i` is as it shall be. Where an earlier destination of this assignment has brought it,
    /// it is not skipped.
    pub fn set_in_place(&mut self, i: usize, action: EntryAction, digest: Option<Digest>) {
        if counts_as_skipped(action)
            && let Some(EntryOutcome::InPlace { action: before, digest: known, .. })
            | Some(EntryOutcome::Transferred { action: before, digest: known, .. }) =
                &mut self.outcomes[i]
            && *before != EntryAction::Skip
        {
            *known = known.or(digest);
            return;
        }
        self.set_outcome(i, EntryOutcome::InPlace { action, digest });
    }

    /// A directory that did not get its metadata back is the failure of an entry in it: trying that
    /// one again stamps the directory again. Where trying can't help, the directory's own entry has
    /// failed for the same reason, and once is enough.
    pub fn attribute_dir_errors(
        &mut self,
        job: Job<'_>,
        to: &Destination,
        unstamped: Vec<DirMetadataError>,
    ) {
        for (dir, error) in unstamped {
            if error.class == ErrorClass::Permanent {
                tracing::debug!(sync = %job.assignment.request_id, "{error}");
                continue;
            }
            let error = job.with_observer(error, to.worker());
            let inside = |e: &Entry| dir == e.path || e.path.parent().is_some_and(|p| p == dir);
            let blamed = self
                .manifest
                .entries
                .iter()
                .position(inside)
                .or_else(|| self.manifest.entries.iter().position(|e| dir.contains(&e.path)));
            if let Some(i) = blamed {
                let path = self.manifest.entries[i].path.as_bytes().to_vec();
                self.set_outcome(
                    i,
                    EntryOutcome::Failed(FileError { path: BytePath(path), ..error }),
                );
            }
        }
    }

    /// Counts every entry once.
    pub fn into_report(self, options: &SyncOptions) -> TaskReport {
        let mut report = TaskReport {
            bytes_sent: self.bytes_sent,
            bytes_cloned: self.bytes_cloned,
            warnings: self.notes,
            needs_clean_up: self.needs_cleanup,
            records: created_dir_records(options, self.created_dirs),
            ..TaskReport::default()
        };
        let mut failed = HashSet::new();
        for (i, (entry, fate)) in self.manifest.entries.iter().zip(self.outcomes).enumerate() {
            let (action, bytes, digest) = match fate {
                Some(EntryOutcome::InPlace { action, digest }) => {
                    if !counts_as_skipped(action) {
                        report.bytes_kept += entry.size();
                    }
                    (action, entry.size(), digest)
                }
                Some(EntryOutcome::Transferred { action, bytes, digest }) => {
                    (action, bytes, digest)
                }
                Some(EntryOutcome::Failed(error)) => {
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
            report.records.extend(file_record(options, entry, action, bytes, digest));
            if entry.is_dir() {
                report.dirs_done += 1;
                continue;
            }
            if counts_as_skipped(action) {
                report.files_skipped += 1;
                report.bytes_skipped += bytes;
            } else {
                report.files_done += 1;
                report.bytes_done += bytes;
            }
        }
        if !failed.is_empty() {
            report.retry = Some(copy_item(&subset(self.manifest, &failed)));
        }
        report
    }
}

/// Whether an entry with this action counts as skipped.
pub fn counts_as_skipped(action: EntryAction) -> bool {
    matches!(action, EntryAction::Skip | EntryAction::Metadata)
}

/// What is kept of an entry that is at its place, where that is asked for. Entries that failed are
/// recorded by the master, which decides whether they are tried again. A directory that is as it shall be
/// is not recorded: it may have been made on the way to its contents, which has a record of its own
/// ([`created_dir_records`]).
pub fn file_record(
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
        state: if counts_as_skipped(action) { FileState::Skipped } else { FileState::Done },
        action: Some(action),
        bytes,
        // Without it, content may have been hashed without its zeros.
        digest: digest.filter(|_| is_file && options.manifest),
        message: None,
    })
}

/// What is kept of directories that were made on the way to something in them, where that is asked for.
pub fn created_dir_records(options: &SyncOptions, dirs: Vec<RelPath>) -> Vec<FileRecord> {
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
pub fn subset(manifest: &Manifest, places: &HashSet<usize>) -> Manifest {
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

    fn in_place(action: EntryAction) -> EntryOutcome {
        EntryOutcome::InPlace { action, digest: None }
    }

    #[test]
    fn an_entry_without_an_outcome_has_failed() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1), file("b", 2)] };
        let mut fates = BatchOutcome::new(&manifest);
        fates.set_in_place(0, EntryAction::Skip, None);
        let report = fates.into_report(&SyncOptions::default());
        assert_eq!((report.files_skipped, report.failures.len()), (1, 1));
        assert_eq!(report.failures[0].path.0, b"b");
    }

    #[test]
    fn an_entry_transferred_by_an_earlier_destination_is_not_counted_as_skipped() {
        let manifest = Manifest {
            dirs: vec![],
            entries: ["a", "b", "c", "d"].iter().map(|name| file(name, 5)).collect(),
        };
        let mut fates = BatchOutcome::new(&manifest);
        let digest = Some(Digest([1; 32]));
        fates.set_outcome(
            0,
            EntryOutcome::Transferred { action: EntryAction::Update, bytes: 5, digest: None },
        );
        fates.set_in_place(1, EntryAction::Create, None);
        fates.set_in_place(2, EntryAction::Metadata, None);
        fates.set_in_place(3, EntryAction::Skip, None);
        fates.start_attempt();
        (0..4).for_each(|i| fates.set_in_place(i, EntryAction::Skip, digest));
        assert_eq!(
            fates.outcomes[0],
            Some(EntryOutcome::Transferred { action: EntryAction::Update, bytes: 5, digest })
        );
        assert_eq!(
            fates.outcomes[3],
            Some(EntryOutcome::InPlace { action: EntryAction::Skip, digest })
        );
        let report = fates.into_report(&SyncOptions::default());
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
        let mut fates = BatchOutcome::new(&manifest);
        for _ in 0..2 {
            fates.start_attempt();
            let mut notes = EntryWarnings::new();
            notes.entry("owner".into()).or_default().add(b"a");
            fates.merge_notes(notes, false);
            fates.add_bytes_sent(1);
        }
        fates.set_outcome(0, in_place(EntryAction::Create));
        let report = fates.into_report(&SyncOptions::default());
        assert_eq!((report.warnings["owner"].count, report.bytes_sent), (1, 2));
        assert_eq!(report.actions[&EntryAction::Create], Tally { count: 1, bytes: 1 });
    }

    #[test]
    fn records_are_made_for_the_requested_kinds() {
        let dir =
            Entry::new(RelPath::new("d").unwrap(), EntryKind::Dir, meta(), FileVersion::default());
        let link = EntryKind::Symlink { target: b"x".to_vec() };
        let link = Entry::new(RelPath::new("l").unwrap(), link, meta(), FileVersion::default());
        let manifest = Manifest { dirs: vec![], entries: vec![dir, file("f", 3), link] };
        let names = |record, manifest_too| {
            let mut fates = BatchOutcome::new(&manifest);
            (0..3).for_each(|i| fates.set_outcome(i, in_place(EntryAction::Create)));
            let options = SyncOptions { record, manifest: manifest_too, ..SyncOptions::default() };
            let records = fates.into_report(&options).records;
            records.iter().map(|r| r.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(false, false), Vec::<String>::new());
        assert_eq!(names(true, false), ["d", "f", "l"]);
        assert_eq!(names(false, true), ["f"]);
    }

    #[test]
    fn directories_are_recorded_when_they_were_created_or_changed() {
        let dir = |path: &str| {
            Entry::new(RelPath::new(path).unwrap(), EntryKind::Dir, meta(), FileVersion::default())
        };
        let entries = ["new", "same", "touched"].map(dir).to_vec();
        let manifest = Manifest { dirs: vec![], entries };
        let records = |options: SyncOptions| {
            let mut fates = BatchOutcome::new(&manifest);
            for (i, action) in [EntryAction::Create, EntryAction::Skip, EntryAction::Metadata]
                .into_iter()
                .enumerate()
            {
                fates.set_outcome(i, in_place(action));
            }
            fates.add_created_dirs(vec![RelPath::new("on/the/way").unwrap()]);
            let records = fates.into_report(&options).records;
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
    fn a_retry_batch_holds_the_failed_entries_and_their_directories() {
        let dir = |p: &str| ManifestDir { path: RelPath::new(p).unwrap(), meta: meta() };
        let manifest = Manifest {
            dirs: vec![dir(""), dir("a"), dir("a/b"), dir("c")],
            entries: vec![file("a/b/x", 1), file("a/b/y", 2), file("c/z", 3)],
        };
        let some = subset(&manifest, &[1].into());
        assert_eq!(some.entries, [file("a/b/y", 2)]);
        assert_eq!(some.dirs, [dir(""), dir("a"), dir("a/b")]);
    }
}
