//! The outcome of each entry of a batch, and the report that they make.

use super::batch::{copy_item, merge_warnings};
use super::job::Job;
use crate::data::{Destination, WrittenFile};
use crate::wire::entry_report::{EntryAction, EntryWarnings, FileRecord, FileState};
use crate::wire::manifest::{Entry, EntryKind, Manifest};
use crate::wire::options::SyncOptions;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::task::{TaskReport, WorkItem};
use crate::wire::{BytePath, Digest, RelPath};
use std::collections::{HashMap, HashSet};

/// An entry that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryDone {
    action: EntryAction,
    file: WrittenFile,
    /// The destination was up to date. Otherwise the content was sent and published; in a dry run: would be.
    is_in_place: bool,
}

pub(super) struct BatchOutcome<'a> {
    manifest: &'a Manifest,
    /// One for each entry, in the order of the manifest.
    outcomes: Vec<Option<Result<EntryDone, EntryError>>>,
    warnings: EntryWarnings,
    bytes_sent: u64,
    bytes_cloned: u64,
    needs_clean_up: bool,
    /// Directories above the entries that a destination created.
    created_dirs: Vec<RelPath>,
}

impl<'a> BatchOutcome<'a> {
    pub(super) fn new(manifest: &'a Manifest) -> Self {
        BatchOutcome {
            manifest,
            outcomes: vec![None; manifest.entries.len()],
            warnings: EntryWarnings::new(),
            bytes_sent: 0,
            bytes_cloned: 0,
            needs_clean_up: false,
            created_dirs: Vec::new(),
        }
    }

    /// Starts with another destination, which reports all its warnings again.
    pub(super) fn start_attempt(&mut self) {
        self.warnings.clear();
    }

    pub(super) fn add_warnings(&mut self, warnings: EntryWarnings, needs_clean_up: bool) {
        merge_warnings(&mut self.warnings, warnings);
        self.needs_clean_up |= needs_clean_up;
    }

    pub(super) fn add_created_dirs(&mut self, dirs: Vec<RelPath>) {
        self.created_dirs.extend(dirs);
    }

    pub(super) fn add_bytes(&mut self, sent: u64, cloned: u64) {
        self.bytes_sent = self.bytes_sent.saturating_add(sent);
        self.bytes_cloned = self.bytes_cloned.saturating_add(cloned);
    }

    /// Content sent to all destinations so far.
    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    pub(super) fn set_transferred(&mut self, i: usize, action: EntryAction, file: WrittenFile) {
        self.outcomes[i] = Some(Ok(EntryDone { action, file, is_in_place: false }));
    }

    pub(super) fn set_failed(&mut self, i: usize, error: EntryError) {
        self.outcomes[i] = Some(Err(error));
    }

    /// Entry `i` is up to date. Where it was transferred in an earlier attempt of this assignment, it does not
    /// become a skipped one.
    pub(super) fn set_in_place(&mut self, i: usize, action: EntryAction, file: WrittenFile) {
        match &mut self.outcomes[i] {
            Some(Ok(before)) if counts_as_skipped(action) && before.action != EntryAction::Skip => {
                before.file.digest = before.file.digest.or(file.digest);
            }
            outcome => *outcome = Some(Ok(EntryDone { action, file, is_in_place: true })),
        }
    }

    /// Reports that the metadata of a directory could not be set as the failure of an entry in it: the retry of that
    /// entry sets the metadata again. A permanent error is reported by the entry of the directory itself.
    pub(super) fn attribute_dir_errors(
        &mut self,
        job: Job<'_>,
        to: &Destination,
        errors: Vec<EntryError>,
    ) {
        let entries = &self.manifest.entries;
        for error in errors {
            if error.class == ErrorClass::Permanent {
                tracing::debug!(sync = %job.assignment.request_id, "{error}");
                continue;
            }
            let Ok(dir) = RelPath::new(&error.path.0) else { continue };
            let is_child = |e: &Entry| dir == e.path || e.path.parent().is_some_and(|p| p == dir);
            let child = entries.iter().position(is_child);
            let below = || entries.iter().position(|e| dir.contains(&e.path));
            if let Some(i) = child.or_else(below) {
                let path = BytePath(entries[i].path.as_bytes().to_vec());
                let error = job.with_observer(error, to.worker());
                self.set_failed(i, EntryError { path, ..error });
            }
        }
    }

    /// A batch of the entries that did not fail, with the digests by which relays verify them; `None` if all failed.
    /// `is_relay`: the manifest has digests of the source already. Those of a batch that a relay failed to send are of
    /// an earlier read, so a copy from the source does not repeat them.
    pub(super) fn held_batch(&self, is_relay: bool) -> Option<WorkItem> {
        let is_held = |outcome: &Option<Result<_, _>>| matches!(outcome, Some(Ok(_)));
        let held = (0..self.outcomes.len()).filter(|i| is_held(&self.outcomes[*i])).collect();
        let mut batch = subset(self.manifest, &held);
        let done = self.outcomes.iter().flatten().flatten();
        for (entry, EntryDone { file, .. }) in batch.entries.iter_mut().zip(done) {
            entry.digest = file.relay_digest.or(entry.digest.filter(|_| is_relay));
        }
        // The first name of a file was read, and the others were linked to it.
        let linked = |entry: &Entry| {
            entry
                .digest
                .filter(|_| entry.is_hardlinked)
                .map(|digest| (entry.hardlink_key(), digest))
        };
        let digests: HashMap<u64, Digest> = batch.entries.iter().filter_map(linked).collect();
        for entry in batch.entries.iter_mut().filter(|entry| entry.is_hardlinked) {
            entry.digest = entry.digest.or(digests.get(&entry.hardlink_key()).copied());
        }
        (!batch.entries.is_empty()).then(|| copy_item(&batch))
    }

    /// Counts every entry once.
    pub(super) fn into_report(self, options: &SyncOptions) -> TaskReport {
        let mut report = TaskReport {
            bytes_sent: self.bytes_sent,
            bytes_cloned: self.bytes_cloned,
            warnings: self.warnings,
            needs_clean_up: self.needs_clean_up,
            records: created_dir_records(options, self.created_dirs),
            ..TaskReport::default()
        };
        let mut failed = HashSet::new();
        for (i, (entry, outcome)) in self.manifest.entries.iter().zip(self.outcomes).enumerate() {
            // A defect that leaves an entry without an outcome must not count as success.
            let missing = || {
                let why = "no result was reported for it";
                Err(EntryError::new(entry.path.as_bytes(), None, "copy", why))
            };
            let EntryDone { action, file, is_in_place } = match outcome.unwrap_or_else(missing) {
                Ok(done) => done,
                Err(error) => {
                    failed.insert(i);
                    report.failures.push(error);
                    continue;
                }
            };
            let is_skipped = counts_as_skipped(action);
            if is_in_place && !is_skipped {
                report.bytes_kept += file.bytes;
            }
            count_action(&mut report, options, entry, action, file);
            if entry.is_dir() {
                report.dirs_done += 1;
            } else if is_skipped {
                report.files_skipped += 1;
                report.bytes_skipped += file.bytes;
            } else {
                report.files_done += 1;
                report.bytes_done += file.bytes;
            }
        }
        if !failed.is_empty() {
            report.retry = Some(copy_item(&subset(self.manifest, &failed)));
        }
        report
    }
}

fn counts_as_skipped(action: EntryAction) -> bool {
    matches!(action, EntryAction::Skip | EntryAction::Metadata)
}

/// Adds an entry that did not fail to the counts per action and, where the options request it, to the records.
/// Failed entries are recorded by the master, which decides on retries. A skipped directory has no record: where it
/// was created for its contents, [`created_dir_records`] has one.
pub(super) fn count_action(
    report: &mut TaskReport,
    options: &SyncOptions,
    entry: &Entry,
    action: EntryAction,
    WrittenFile { bytes, digest, .. }: WrittenFile,
) {
    report.actions.entry(action).or_default().add(bytes);
    let is_file = matches!(entry.kind, EntryKind::File { .. });
    let is_skipped_dir = entry.is_dir() && action == EntryAction::Skip;
    if options.record && !is_skipped_dir || options.manifest && is_file {
        let state = if counts_as_skipped(action) { FileState::Skipped } else { FileState::Done };
        // Without a manifest the digest may cover the content without its zeros.
        let digest = digest.filter(|_| is_file && options.manifest);
        report.records.push(file_record(&entry.path, state, action, bytes, digest));
    }
}

/// Records of directories that were created above entries, where the options request records.
pub(super) fn created_dir_records(options: &SyncOptions, dirs: Vec<RelPath>) -> Vec<FileRecord> {
    let record = |dir: RelPath| file_record(&dir, FileState::Done, EntryAction::Create, 0, None);
    dirs.into_iter().filter(|_| options.record).map(record).collect()
}

pub(super) fn file_record(
    path: &RelPath,
    state: FileState,
    action: EntryAction,
    bytes: u64,
    digest: Option<Digest>,
) -> FileRecord {
    let path = BytePath(path.as_bytes().to_vec());
    FileRecord { path, state, action: Some(action), bytes, digest, error: None }
}

/// A batch of the entries at `indices`, with the directories above them.
pub(super) fn subset(manifest: &Manifest, indices: &HashSet<usize>) -> Manifest {
    let indexed = manifest.entries.iter().enumerate();
    let entries: Vec<Entry> =
        indexed.filter(|(i, _)| indices.contains(i)).map(|(_, e)| e.clone()).collect();
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
    use crate::wire::entry_report::Tally;
    use crate::wire::manifest::{FileVersion, ManifestDir, Meta};

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

    fn five_bytes() -> WrittenFile {
        WrittenFile { bytes: 5, ..WrittenFile::default() }
    }

    fn done(action: EntryAction, digest: Option<Digest>, is_in_place: bool) -> EntryDone {
        EntryDone { action, file: WrittenFile { digest, ..five_bytes() }, is_in_place }
    }

    #[test]
    fn an_entry_without_an_outcome_has_failed() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1), file("b", 2)] };
        let mut outcome = BatchOutcome::new(&manifest);
        outcome.set_in_place(0, EntryAction::Skip, five_bytes());
        let report = outcome.into_report(&SyncOptions::default());
        assert_eq!((report.files_skipped, report.failures.len()), (1, 1));
        assert_eq!(report.failures[0].path.0, b"b");
    }

    #[test]
    fn an_entry_transferred_by_an_earlier_destination_is_not_counted_as_skipped() {
        let manifest = Manifest {
            dirs: vec![],
            entries: ["a", "b", "c", "d"].iter().map(|name| file(name, 5)).collect(),
        };
        let mut outcome = BatchOutcome::new(&manifest);
        let digest = Some(Digest([1; 32]));
        outcome.set_transferred(0, EntryAction::Update, five_bytes());
        outcome.set_in_place(1, EntryAction::Create, five_bytes());
        outcome.set_in_place(2, EntryAction::Metadata, five_bytes());
        outcome.set_in_place(3, EntryAction::Skip, five_bytes());
        outcome.start_attempt();
        let found = WrittenFile { digest, ..five_bytes() };
        (0..4).for_each(|i| outcome.set_in_place(i, EntryAction::Skip, found));
        assert_eq!(outcome.outcomes[0], Some(Ok(done(EntryAction::Update, digest, false))));
        assert_eq!(outcome.outcomes[3], Some(Ok(done(EntryAction::Skip, digest, true))));
        let report = outcome.into_report(&SyncOptions::default());
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
    fn warnings_of_a_failed_destination_are_not_counted_twice() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1)] };
        let mut outcome = BatchOutcome::new(&manifest);
        for _ in 0..2 {
            outcome.start_attempt();
            let mut warnings = EntryWarnings::new();
            warnings.entry("owner".into()).or_default().add(b"a");
            outcome.add_warnings(warnings, false);
            outcome.add_bytes(1, 0);
        }
        outcome.set_in_place(0, EntryAction::Create, five_bytes());
        let report = outcome.into_report(&SyncOptions::default());
        assert_eq!((report.warnings["owner"].count, report.bytes_sent), (1, 2));
        assert_eq!(report.actions[&EntryAction::Create], Tally { count: 1, bytes: 5 });
    }

    #[test]
    fn a_held_batch_has_the_digests_of_what_was_read_for_all_names_of_a_file() {
        let name = |path: &str, ino| Entry {
            is_hardlinked: true,
            version: FileVersion { ino, ..FileVersion::default() },
            digest: Some(Digest([9; 32])),
            ..file(path, 5)
        };
        let entries = vec![name("a", 1), name("b", 1), name("c", 2), file("d", 5), file("e", 5)];
        let manifest = Manifest { dirs: vec![], entries };
        let mut outcome = BatchOutcome::new(&manifest);
        assert_eq!(outcome.held_batch(false), None);
        let read = WrittenFile { relay_digest: Some(Digest([1; 32])), ..five_bytes() };
        outcome.set_transferred(0, EntryAction::Create, read);
        outcome.set_in_place(1, EntryAction::Create, five_bytes());
        outcome.set_in_place(2, EntryAction::Skip, five_bytes());
        outcome.set_failed(3, EntryError::new(b"d", None, "copy", "no"));
        outcome.set_in_place(4, EntryAction::Skip, five_bytes());
        let digests = |is_relay| {
            let Some(WorkItem::Copy { manifest, .. }) = outcome.held_batch(is_relay) else {
                panic!("nothing is held")
            };
            let entries = Manifest::decode(&manifest.0).unwrap().entries.into_iter();
            entries
                .map(|entry| (entry.path.to_string(), entry.digest.map(|digest| digest.0[0])))
                .collect::<Vec<_>>()
        };
        let expect = |digests: [Option<u8>; 4]| {
            ["a", "b", "c", "e"].map(str::to_owned).into_iter().zip(digests).collect::<Vec<_>>()
        };
        // An earlier digest counts where it is compared with what is sent: at a relay.
        assert_eq!(digests(false), expect([Some(1), Some(1), None, None]));
        assert_eq!(digests(true), expect([Some(1), Some(9), Some(9), None]));
    }

    #[test]
    fn records_are_made_for_the_requested_kinds() {
        let dir =
            Entry::new(RelPath::new("d").unwrap(), EntryKind::Dir, meta(), FileVersion::default());
        let link = EntryKind::Symlink { target: b"x".to_vec() };
        let link = Entry::new(RelPath::new("l").unwrap(), link, meta(), FileVersion::default());
        let manifest = Manifest { dirs: vec![], entries: vec![dir, file("f", 3), link] };
        let names = |record, with_manifest| {
            let mut outcome = BatchOutcome::new(&manifest);
            (0..3).for_each(|i| outcome.set_in_place(i, EntryAction::Create, five_bytes()));
            let options = SyncOptions { record, manifest: with_manifest, ..SyncOptions::default() };
            let records = outcome.into_report(&options).records;
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
            let mut outcome = BatchOutcome::new(&manifest);
            for (i, action) in [EntryAction::Create, EntryAction::Skip, EntryAction::Metadata]
                .into_iter()
                .enumerate()
            {
                outcome.set_in_place(i, action, five_bytes());
            }
            outcome.add_created_dirs(vec![RelPath::new("implicit/dir").unwrap()]);
            let records = outcome.into_report(&options).records;
            let one = |r: FileRecord| (r.path.to_string(), r.state, r.action.unwrap());
            records.into_iter().map(one).collect::<Vec<_>>()
        };
        let options = SyncOptions { record: true, ..SyncOptions::default() };
        assert_eq!(
            records(options),
            [
                ("implicit/dir".to_owned(), FileState::Done, EntryAction::Create),
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
