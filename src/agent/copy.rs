//! Copies a batch: offers it, sends the content that is needed, and accounts for every entry.
//!
//! ```text
//! first names ─▶ offer ─▶ done                       later names of the same files ─▶ the same again:
//!                   ├──▶ check ─▶ hash ─▶ offer      the destination links them to the first names
//!                   └──▶ needed ─▶ packs
//! ```

use super::batch_outcome::{BatchOutcome, subset};
use super::job::{Job, JobResult, TaskOutcome, run_blocking};
use crate::data::buffer_pool::SEND_BUFFER_BYTES;
use crate::data::outcome::OfferOutcome;
use crate::data::{Destination, SendError, WrittenFile, hash_source};
use crate::fs::{OfferDecision, Tree};
use crate::wire::Digest;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, Manifest};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::task::{Assignment, TaskReport};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// Of one batch.
const MAX_CONCURRENT_HASHES: usize = 4;

/// Transfers `manifest`, encoded as `encoded`, to one of the destination workers.
pub(super) async fn copy_batch(
    job: Job<'_>,
    manifest: Manifest,
    encoded: Bytes,
) -> JobResult<TaskOutcome> {
    let source = job.open_source().await?;
    let mut outcome = BatchOutcome::new(&manifest);
    let (first, later) = first_and_later_names(&manifest.entries);
    let mut picker = job.destination_picker();
    while let Some(to) = picker.pick_next() {
        outcome.start_attempt();
        let (manifest, encoded) = (&manifest, &encoded);
        let transfer = BatchTransfer { job, to: &to, source: &source, manifest, encoded };
        let transferred = async {
            transfer.transfer_entries(&first, &mut outcome).await?;
            if later.is_empty() {
                return Ok(());
            }
            transfer.transfer_entries(&later, &mut outcome).await
        };
        match transferred.await {
            Ok(()) => {
                let Assignment { options, relay, report_held, .. } = job.assignment;
                let reports_held = *report_held && !options.dry_run;
                let held = reports_held.then(|| outcome.held_batch(relay.is_some())).flatten();
                let report = TaskReport { held, ..outcome.into_report(options) };
                return Ok(TaskOutcome::succeeded(report));
            }
            Err(error) => picker.record_failure(to.worker(), &error),
        }
    }
    let mut failed = picker.fail_exhausted();
    // The entries do not count, but the bytes were sent.
    failed.report.bytes_sent = outcome.bytes_sent();
    Ok(failed)
}

/// The indices of the entries; apart those that are a further name of a file. A destination links these to the first
/// name, which must exist before.
fn first_and_later_names(entries: &[Entry]) -> (Vec<usize>, Vec<usize>) {
    let mut seen = HashSet::new();
    (0..entries.len()).partition(|i| {
        let entry = &entries[*i];
        !entry.is_hardlinked || seen.insert((entry.version.dev, entry.version.ino))
    })
}

/// The transfer of entries of a batch to one destination.
struct BatchTransfer<'a> {
    job: Job<'a>,
    to: &'a Destination,
    source: &'a Tree,
    manifest: &'a Manifest,
    /// The whole `manifest` as it was received.
    encoded: &'a Bytes,
}

/// What an offer leaves to do, by index in the batch.
#[derive(Default)]
struct RemainingWork {
    needed: BTreeMap<usize, EntryAction>,
    check: Vec<usize>,
}

impl BatchTransfer<'_> {
    async fn transfer_entries(
        &self,
        indices: &[usize],
        outcome: &mut BatchOutcome<'_>,
    ) -> Result<(), SendError> {
        let mut work = self.offer(indices, &BTreeMap::new(), outcome).await?;
        if !work.check.is_empty() {
            let digests = self.hash_entries(&work.check, &mut work.needed, outcome).await;
            let hashed: Vec<usize> = digests.keys().copied().collect();
            let second = self.offer(&hashed, &digests, outcome).await?;
            work.needed.extend(second.needed);
            // A request for a digest that was sent is a defect of the destination. Whole content is always right.
            work.needed.extend(second.check.into_iter().map(|i| (i, EntryAction::Update)));
        }
        self.send_content(&work.needed, outcome).await
    }

    fn set_failed(&self, outcome: &mut BatchOutcome<'_>, i: usize, error: EntryError) {
        outcome.set_failed(i, self.job.with_observer(error, self.to.worker()));
    }

    /// Offers the entries at `indices`, with the digests of their content in `digests`.
    async fn offer(
        &self,
        indices: &[usize],
        digests: &BTreeMap<usize, Digest>,
        outcome: &mut BatchOutcome<'_>,
    ) -> Result<RemainingWork, SendError> {
        let offered: OfferOutcome = match &self.select_entries(indices, digests) {
            Cow::Borrowed(all) => self.to.offer_encoded(all, || self.encoded.clone()).await?,
            Cow::Owned(some) => self.to.offer(some).await?,
        };
        self.job.mark_wrote(self.to.worker());
        outcome.add_warnings(offered.warnings, offered.needs_clean_up);
        outcome.add_created_dirs(offered.created_dirs);
        let mut work = RemainingWork::default();
        for ((i, result), found) in indices.iter().zip(offered.results).zip(offered.digests) {
            match result {
                Ok(OfferDecision::Done(action)) => {
                    let bytes = self.manifest.entries[*i].size();
                    let relay_digest = digests.get(i).copied();
                    let digest = found.or(relay_digest);
                    outcome.set_in_place(*i, action, WrittenFile { bytes, digest, relay_digest });
                }
                Ok(OfferDecision::NeedsContent { action, .. }) => {
                    work.needed.insert(*i, action);
                }
                Ok(OfferDecision::NeedsDigest) => work.check.push(*i),
                Err(error) => self.set_failed(outcome, *i, error),
            }
        }
        outcome.attribute_dir_errors(self.job, self.to, offered.dir_errors);
        Ok(work)
    }

    /// A batch of the entries at `indices`.
    fn select_entries(
        &self,
        indices: &[usize],
        digests: &BTreeMap<usize, Digest>,
    ) -> Cow<'_, Manifest> {
        let mut selected = if indices.len() == self.manifest.entries.len() {
            Cow::Borrowed(self.manifest)
        } else {
            Cow::Owned(subset(self.manifest, &indices.iter().copied().collect()))
        };
        if !digests.is_empty() {
            for (entry, i) in selected.to_mut().entries.iter_mut().zip(indices) {
                entry.digest = digests.get(i).copied();
            }
        }
        selected
    }

    /// Hashes the entries at `indices`, a few at a time. Those that changed since the scan are added to `needed`.
    async fn hash_entries(
        &self,
        indices: &[usize],
        needed: &mut BTreeMap<usize, EntryAction>,
        outcome: &mut BatchOutcome<'_>,
    ) -> BTreeMap<usize, Digest> {
        let hashes = indices.iter().copied().map(|i| async move { (i, self.hash_entry(i).await) });
        let hashes = futures_util::stream::iter(hashes).buffered(MAX_CONCURRENT_HASHES);
        let hashes: Vec<(usize, Result<Digest, EntryError>)> = hashes.collect().await;
        let mut digests = BTreeMap::new();
        for (i, hashed) in hashes {
            match hashed {
                Ok(digest) => drop(digests.insert(i, digest)),
                Err(error) if error.class == ErrorClass::Changed => {
                    needed.insert(i, EntryAction::Update);
                }
                Err(error) => self.set_failed(outcome, i, error),
            }
        }
        digests
    }

    async fn hash_entry(&self, i: usize) -> Result<Digest, EntryError> {
        let hash_mode = self.job.assignment.options.write_rules().hash_mode();
        let (source, entry) = (self.source.clone(), self.manifest.entries[i].clone());
        let [mut buffer] = self.job.cx.peers.pool.acquire([SEND_BUFFER_BYTES]).await;
        let identity = source.identity().clone();
        let hash = move || hash_source(&source, &entry, hash_mode, &mut buffer);
        let hashed = run_blocking(&identity, "hashing", hash).await.map_err(|failed| {
            let path = self.manifest.entries[i].path.as_bytes();
            EntryError::new(path, Side::Source, "read", failed.message.unwrap_or_default())
        })?;
        hashed.map_err(|e| e.to_entry_error())
    }

    /// In a dry run it only records that content would be sent.
    async fn send_content(
        &self,
        needed: &BTreeMap<usize, EntryAction>,
        outcome: &mut BatchOutcome<'_>,
    ) -> Result<(), SendError> {
        let BatchTransfer { job, to, manifest, .. } = self;
        if job.assignment.options.dry_run {
            for (i, action) in needed {
                let bytes = manifest.entries[*i].size();
                let file = WrittenFile { bytes, ..WrittenFile::default() };
                outcome.set_transferred(*i, *action, file);
            }
            return Ok(());
        }
        let indices: Vec<usize> = needed.keys().copied().collect();
        for pack in split_into_packs(&manifest.entries, &indices, job.chunk_bytes()) {
            let files = pack.iter().map(|i| manifest.entries[*i].clone()).collect();
            let packed = to.transfer_pack(self.source, manifest.dirs.clone(), files).await?;
            outcome.add_bytes(packed.sent, packed.cloned);
            outcome.add_warnings(packed.warnings, packed.needs_clean_up);
            for (i, file) in pack.into_iter().zip(packed.files) {
                match file {
                    Ok(written) => outcome.set_transferred(i, needed[&i], written),
                    Err(error) => self.set_failed(outcome, i, error),
                }
            }
            outcome.attribute_dir_errors(*job, to, packed.dir_errors);
        }
        Ok(())
    }
}

/// Packs of at most `chunk_bytes`, or of one longer file.
fn split_into_packs(entries: &[Entry], indices: &[usize], chunk_bytes: u64) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0u64;
    for i in indices {
        let size = entries[*i].size();
        match packs.last_mut() {
            Some(pack) if bytes.saturating_add(size) <= chunk_bytes => {
                bytes += size;
                pack.push(*i);
            }
            _ => {
                bytes = size;
                packs.push(vec![*i]);
            }
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::manifest::{EntryKind, FileVersion, Meta};

    fn file(path: &str, size: u64) -> Entry {
        let meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        Entry::new(
            RelPath::new(path).unwrap(),
            EntryKind::File { size },
            meta,
            FileVersion::default(),
        )
    }

    #[test]
    fn packs_hold_at_most_a_chunk_or_one_file() {
        let entries: Vec<Entry> =
            [3, 4, 5, 20, 1, 9].iter().map(|size| file(&format!("f{size}"), *size)).collect();
        assert_eq!(
            split_into_packs(&entries, &[0, 1, 2, 3, 4, 5], 10),
            [vec![0, 1], vec![2], vec![3], vec![4, 5]]
        );
        assert_eq!(split_into_packs(&entries, &[], 10), Vec::<Vec<usize>>::new());
        let small: Vec<Entry> = (0..12).map(|n| file(&format!("f{n}"), 1)).collect();
        let lengths = |sizes: &[Entry], chunk| -> Vec<usize> {
            let all: Vec<usize> = (0..sizes.len()).collect();
            split_into_packs(sizes, &all, chunk).iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(&small, 5), [5, 5, 2]);
        assert_eq!(lengths(&[file("a", 0), file("b", 0), file("c", 6), file("d", 0)], 10), [4]);
        assert_eq!(lengths(&[file("a", 0), file("b", 6), file("c", 6), file("d", 4)], 10), [2, 2]);
    }

    #[test]
    fn the_first_name_of_a_file_is_transferred_before_its_other_names() {
        let name = |path: &str, dev, ino, linked| Entry {
            version: FileVersion { dev, ino, ..FileVersion::default() },
            is_hardlinked: linked,
            ..file(path, 1)
        };
        let entries = [
            name("a", 1, 7, true),
            name("b", 1, 7, true),
            name("c", 2, 7, true),
            // Looked at when it had one name only.
            name("d", 1, 7, false),
            name("e", 2, 7, true),
        ];
        assert_eq!(first_and_later_names(&entries), (vec![0, 2, 3], vec![1, 4]));
    }
}
