//! Copying a batch: offer it, send what is needed, account for every entry.

use super::batch::copy_item;
use super::execute::{Done, Job, entry_error};
use crate::data::outcome::UnstampedDir;
use crate::data::{Destination, Found, SendError};
use crate::fs::Tree;
use crate::wire::manifest::{Entry, Manifest};
use crate::wire::options::Action;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::TaskReport;
use crate::wire::{BytePath, RelPath};
use std::collections::HashSet;

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Equal already.
    Skipped,
    /// It needed no content.
    Made,
    /// Its content is at its place: so many bytes.
    Written(u64),
    Failed(FileError),
}

/// The fates of all entries of a batch, in its order.
struct Fates<'a> {
    manifest: &'a Manifest,
    fates: Vec<Option<Fate>>,
}

/// Brings `manifest` to one of the destination workers; when one fails, to the next.
pub async fn copy(job: Job<'_>, manifest: Manifest) -> Done {
    let source = match job.source() {
        Ok(source) => source,
        Err(done) => return *done,
    };
    let mut fates = Fates { fates: vec![None; manifest.entries.len()], manifest: &manifest };
    let mut choice = job.destinations();
    while let Some(to) = choice.pick() {
        match bring(job, &to, &source, &mut fates).await {
            Ok(()) => return Done::well(fates.report()),
            Err(error) => choice.failed(to.worker(), &error),
        }
    }
    choice.exhausted()
}

async fn bring(
    job: Job<'_>,
    to: &Destination,
    source: &Tree,
    fates: &mut Fates<'_>,
) -> Result<(), SendError> {
    let manifest = fates.manifest;
    let offered = to.offer(manifest).await?;
    job.writers.wrote(to.worker());
    let mut needed = Vec::new();
    for (i, answer) in offered.answers.into_iter().enumerate() {
        match answer {
            Ok(Found::Needed { .. } | Found::Check) => needed.push(i),
            // An earlier destination of this assignment may have brought it: then it is not skipped.
            Ok(Found::Done(Action::Skip | Action::Metadata)) => fates.keep_or(i, Fate::Skipped),
            Ok(Found::Done(_)) => fates.set(i, Fate::Made),
            Err(error) => fates.set(i, Fate::Failed(job.seen(error, to.worker()))),
        }
    }
    fates.blame(job, to, offered.unstamped);
    for pack in packs(&manifest.entries, &needed, job.chunk()) {
        let files = pack.iter().map(|i| manifest.entries[*i].clone()).collect();
        let packed = to.pack(source, manifest.dirs.clone(), files).await?;
        for (i, file) in pack.iter().zip(packed.files) {
            fates.set(
                *i,
                match file {
                    Ok(written) => Fate::Written(written.bytes),
                    Err(error) => Fate::Failed(job.seen(error, to.worker())),
                },
            );
        }
        fates.blame(job, to, packed.unstamped);
    }
    Ok(())
}

/// Cuts the entries at `needed` into packs of at most `chunk` bytes (or one file).
fn packs(entries: &[Entry], needed: &[usize], chunk: u64) -> Vec<Vec<usize>> {
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

/// A batch of just the entries at `places`, with the directories above them.
fn some_of(manifest: &Manifest, places: &HashSet<usize>) -> Manifest {
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

impl Fates<'_> {
    fn set(&mut self, i: usize, fate: Fate) {
        self.fates[i] = Some(fate);
    }

    fn keep_or(&mut self, i: usize, fate: Fate) {
        if !matches!(self.fates[i], Some(Fate::Made | Fate::Written(_))) {
            self.fates[i] = Some(fate);
        }
    }

    /// A directory that did not get its metadata back is the failure of an entry in it: trying that
    /// one again stamps the directory again. Where trying can't help, the directory's own entry has
    /// failed for the same reason, and once is enough.
    fn blame(&mut self, job: Job<'_>, to: &Destination, unstamped: Vec<UnstampedDir>) {
        for (dir, error) in unstamped {
            if error.class == ErrorClass::Permanent {
                tracing::debug!(sync = %job.assignment.request_id, "{}", error.message);
                continue;
            }
            let error = job.seen(error, to.worker());
            let inside = |e: &Entry| dir == e.path || e.path.parent().is_some_and(|p| p == dir);
            let blamed = self
                .manifest
                .entries
                .iter()
                .position(inside)
                .or_else(|| self.manifest.entries.iter().position(|e| dir.holds(&e.path)));
            if let Some(i) = blamed {
                let path = self.manifest.entries[i].path.as_bytes().to_vec();
                self.set(i, Fate::Failed(FileError { path: BytePath(path), ..error }));
            }
        }
    }

    /// Counts every entry once.
    fn report(&self) -> TaskReport {
        let mut report = TaskReport::default();
        let mut failed = HashSet::new();
        for (i, (entry, fate)) in self.manifest.entries.iter().zip(&self.fates).enumerate() {
            match fate {
                Some(Fate::Failed(error)) => {
                    failed.insert(i);
                    report.failures.push(error.clone());
                }
                Some(_) if entry.is_dir() => report.dirs_done += 1,
                Some(Fate::Made) => report.files_done += 1,
                Some(Fate::Written(bytes)) => {
                    report.files_done += 1;
                    report.bytes_done += bytes;
                }
                Some(Fate::Skipped) => {
                    report.files_skipped += 1;
                    report.bytes_skipped += entry.size();
                }
                // Every entry was answered, or the batch has failed as a whole: a defect must not
                // pass for a file that is there.
                None => {
                    let why = "nobody said what became of it";
                    failed.insert(i);
                    report.failures.push(entry_error(entry.path.as_bytes(), "copy", why));
                }
            }
        }
        if !failed.is_empty() {
            report.retry = Some(copy_item(&some_of(self.manifest, &failed)));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::{DirRef, Ident, Kind, Meta};

    fn meta() -> Meta {
        Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 }
    }

    fn file(path: &str, size: u64) -> Entry {
        Entry::new(RelPath::new(path).unwrap(), Kind::File { size }, meta(), Ident::default())
    }

    #[test]
    fn an_entry_of_which_nothing_is_known_has_failed() {
        let manifest = Manifest { dirs: vec![], entries: vec![file("a", 1), file("b", 2)] };
        let fates = Fates { manifest: &manifest, fates: vec![Some(Fate::Skipped), None] };
        let report = fates.report();
        assert_eq!((report.files_skipped, report.failures.len()), (1, 1));
        assert_eq!(report.failures[0].path.0, b"b");
    }

    #[test]
    fn packs_hold_at_most_a_chunk_or_one_file() {
        let entries: Vec<Entry> =
            [3, 4, 5, 20, 1, 9].iter().map(|size| file(&format!("f{size}"), *size)).collect();
        assert_eq!(
            packs(&entries, &[0, 1, 2, 3, 4, 5], 10),
            [vec![0, 1], vec![2], vec![3], vec![4, 5]]
        );
        assert_eq!(packs(&entries, &[], 10), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_batch_to_try_again_holds_just_what_failed_with_its_directories() {
        let dir = |p: &str| DirRef { path: RelPath::new(p).unwrap(), meta: meta() };
        let manifest = Manifest {
            dirs: vec![dir(""), dir("a"), dir("a/b"), dir("c")],
            entries: vec![file("a/b/x", 1), file("a/b/y", 2), file("c/z", 3)],
        };
        let some = some_of(&manifest, &[1].into());
        assert_eq!(some.entries, [file("a/b/y", 2)]);
        assert_eq!(some.dirs, [dir(""), dir("a"), dir("a/b")]);
    }
}
