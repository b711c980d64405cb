//! Copying a batch: offer it, send what is needed, account for every entry.
//!
//! ```text
//! first names ─▶ offer ─▶ done                       later names of the same files ─▶ the same again:
//!                   ├──▶ check ─▶ hash ─▶ offer      the destination links them to what it has now
//!                   └──▶ needed ─▶ packs
//! ```

use super::batch_outcome::{BatchOutcome, EntryOutcome, subset};
use super::job::{Job, TaskOutcome, entry_error};
use crate::data::buffer_pool::{BufferPool, SEND_BUFFER_BYTES};
use crate::data::outcome::OfferOutcome;
use crate::data::{Destination, OfferDecision, SendError, hash_source};
use crate::fs::Tree;
use crate::wire::Digest;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, Manifest};
use crate::wire::options::EntryAction;
use crate::wire::sync::{ErrorClass, FileError};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// Files of a batch that are hashed at a time.
const MAX_CONCURRENT_HASHES: usize = 4;

/// Brings `manifest`, which is `encoded`, to one of the destination workers; when one fails, to the
/// next.
pub async fn copy_batch(job: Job<'_>, manifest: Manifest, encoded: Bytes) -> TaskOutcome {
    let source = match job.open_source().await {
        Ok(source) => source,
        Err(done) => return *done,
    };
    let mut fates = BatchOutcome::new(&manifest);
    let mut choice = job.destination_picker();
    while let Some(to) = choice.pick_next() {
        fates.start_attempt();
        match transfer_batch(job, &to, (&source, &encoded), &mut fates).await {
            Ok(()) => return TaskOutcome::succeeded(fates.into_report(&job.assignment.options)),
            Err(error) => choice.record_failure(to.worker(), &error),
        }
    }
    let mut done = choice.fail_exhausted();
    // Nothing of it counts, but it went over the wire.
    done.report.bytes_sent = fates.bytes_sent();
    done
}

async fn transfer_batch(
    job: Job<'_>,
    to: &Destination,
    (source, encoded): (&Tree, &Bytes),
    fates: &mut BatchOutcome<'_>,
) -> Result<(), SendError> {
    let (first, later) = first_and_later_names(&fates.manifest().entries);
    let round = BatchTransfer { job, to, source, manifest: fates.manifest(), encoded };
    round.transfer_entries(first, fates).await?;
    if !later.is_empty() {
        round.transfer_entries(later, fates).await?;
    }
    Ok(())
}

/// The places of the entries, those apart that are another name of a file before them: it must be
/// there before they can be linked to it.
fn first_and_later_names(entries: &[Entry]) -> (Vec<usize>, Vec<usize>) {
    let mut seen = HashSet::new();
    (0..entries.len()).partition(|i| {
        let entry = &entries[*i];
        !entry.is_hardlinked || seen.insert((entry.version.dev, entry.version.ino))
    })
}

/// Some entries of a batch on their way to one destination.
struct BatchTransfer<'a> {
    job: Job<'a>,
    to: &'a Destination,
    source: &'a Tree,
    manifest: &'a Manifest,
    /// All of it, as it came.
    encoded: &'a Bytes,
}

/// What is left to be done after an offer, by place in the batch.
#[derive(Default)]
struct RemainingWork {
    needed: BTreeMap<usize, EntryAction>,
    check: Vec<usize>,
}

impl BatchTransfer<'_> {
    async fn transfer_entries(
        &self,
        places: Vec<usize>,
        fates: &mut BatchOutcome<'_>,
    ) -> Result<(), SendError> {
        let mut wanted = self.offer(&places, &BTreeMap::new(), fates).await?;
        if !wanted.check.is_empty() {
            let digests = self.hash_entries(&wanted.check, &mut wanted.needed, fates).await;
            let places: Vec<usize> = digests.keys().copied().collect();
            let second = self.offer(&places, &digests, fates).await?;
            wanted.needed.extend(second.needed);
            // A digest was sent: it makes no sense to ask for it. Whole content is always right.
            wanted.needed.extend(second.check.into_iter().map(|i| (i, EntryAction::Update)));
        }
        self.send_content(&wanted.needed, fates).await
    }

    /// Offers the entries at `places`, those in `digests` with the digest of their content.
    async fn offer(
        &self,
        places: &[usize],
        digests: &BTreeMap<usize, Digest>,
        fates: &mut BatchOutcome<'_>,
    ) -> Result<RemainingWork, SendError> {
        let offer = self.select_entries(places, digests);
        let OfferOutcome {
            results: answers,
            digests: found,
            warnings: notes,
            dir_errors: unstamped,
            needs_clean_up: to_sweep,
            created_dirs: made,
        } = match &offer {
            Cow::Borrowed(all) => self.to.offer_encoded(all, || self.encoded.clone()).await?,
            Cow::Owned(some) => self.to.offer(some).await?,
        };
        self.job.mark_wrote(self.to.worker());
        fates.merge_notes(notes, to_sweep);
        fates.add_created_dirs(made);
        let mut wanted = RemainingWork::default();
        for ((i, answer), found) in places.iter().zip(answers).zip(found) {
            match answer {
                Ok(OfferDecision::Done(action)) => {
                    fates.set_in_place(*i, action, found.or(digests.get(i).copied()));
                }
                Ok(OfferDecision::NeedsContent { action, .. }) => {
                    wanted.needed.insert(*i, action);
                }
                Ok(OfferDecision::NeedsDigest) => wanted.check.push(*i),
                Err(error) => {
                    fates.set_outcome(
                        *i,
                        EntryOutcome::Failed(self.job.with_observer(error, self.to.worker())),
                    );
                }
            }
        }
        fates.attribute_dir_errors(self.job, self.to, unstamped);
        Ok(wanted)
    }

    /// The entries at `places` as a batch of their own.
    fn select_entries(
        &self,
        places: &[usize],
        digests: &BTreeMap<usize, Digest>,
    ) -> Cow<'_, Manifest> {
        let mut some = if places.len() == self.manifest.entries.len() {
            Cow::Borrowed(self.manifest)
        } else {
            Cow::Owned(subset(self.manifest, &places.iter().copied().collect()))
        };
        if !digests.is_empty() {
            for (entry, i) in some.to_mut().entries.iter_mut().zip(places) {
                entry.digest = digests.get(i).copied();
            }
        }
        some
    }

    /// Hashes the entries at `places`. One that is another version by now is needed.
    async fn hash_entries(
        &self,
        places: &[usize],
        needed: &mut BTreeMap<usize, EntryAction>,
        fates: &mut BatchOutcome<'_>,
    ) -> BTreeMap<usize, Digest> {
        let entries = places.iter().map(|i| self.manifest.entries[*i].clone());
        let hashing = self.job.assignment.options.write_rules().hash_mode();
        let pool = self.job.cx.peers.pool();
        let hashed = hash_all(self.source, entries.collect(), hashing, pool).await;
        let mut digests = BTreeMap::new();
        for (i, digest) in places.iter().zip(hashed) {
            match digest {
                Ok(digest) => drop(digests.insert(*i, digest)),
                Err(error) if error.class == ErrorClass::Changed => {
                    needed.insert(*i, EntryAction::Update);
                }
                Err(error) => {
                    fates.set_outcome(
                        *i,
                        EntryOutcome::Failed(self.job.with_observer(error, self.to.worker())),
                    );
                }
            }
        }
        digests
    }

    /// Sends the content of the entries in `needed`; in a dry run, says that it would.
    async fn send_content(
        &self,
        needed: &BTreeMap<usize, EntryAction>,
        fates: &mut BatchOutcome<'_>,
    ) -> Result<(), SendError> {
        let BatchTransfer { job, to, manifest, .. } = self;
        if job.assignment.options.dry_run {
            for (i, action) in needed {
                let bytes = manifest.entries[*i].size();
                fates.set_outcome(
                    *i,
                    EntryOutcome::Transferred { action: *action, bytes, digest: None },
                );
            }
            return Ok(());
        }
        let places: Vec<usize> = needed.keys().copied().collect();
        for pack in split_into_packs(&manifest.entries, &places, job.chunk_bytes()) {
            let files = pack.iter().map(|i| manifest.entries[*i].clone()).collect();
            let packed = to.transfer_pack(self.source, manifest.dirs.clone(), files).await?;
            fates.add_bytes_sent(packed.sent);
            fates.add_bytes_cloned(packed.cloned);
            fates.merge_notes(packed.warnings, packed.needs_clean_up);
            for (i, file) in pack.iter().zip(packed.files) {
                let fate = match file {
                    Ok(written) => EntryOutcome::Transferred {
                        action: needed[i],
                        bytes: written.bytes,
                        digest: written.digest,
                    },
                    Err(error) => EntryOutcome::Failed(job.with_observer(error, to.worker())),
                };
                fates.set_outcome(*i, fate);
            }
            fates.attribute_dir_errors(*job, to, packed.dir_errors);
        }
        Ok(())
    }
}

/// The digests of `entries`, a few of them hashed at a time.
async fn hash_all(
    source: &Tree,
    entries: Vec<Entry>,
    hashing: HashMode,
    pool: &BufferPool,
) -> Vec<Result<Digest, FileError>> {
    let each = entries.into_iter().map(|entry| async move {
        let (source, path) = (source.clone(), entry.path.clone());
        let [mut buffer] = pool.acquire([SEND_BUFFER_BYTES]).await;
        let hash = move || hash_source(&source, &entry, hashing, &mut buffer);
        match tokio::task::spawn_blocking(hash).await {
            Ok(hashed) => hashed.map_err(|e| e.to_file_error()),
            Err(e) => {
                let why = format!("hashing panicked: {e}");
                Err(entry_error(path.as_bytes(), "read source", why))
            }
        }
    });
    futures_util::stream::iter(each).buffered(MAX_CONCURRENT_HASHES).collect().await
}

/// Cuts the entries at `needed` into packs of at most `chunk` bytes (or one file).
fn split_into_packs(entries: &[Entry], needed: &[usize], chunk: u64) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0u64;
    for i in needed {
        let size = entries[*i].size();
        match packs.last_mut() {
            Some(pack) if bytes.saturating_add(size) <= chunk => {
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
