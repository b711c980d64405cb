//! The failures of a sync, read from the store page by page, to be listed or retried; and the list of what became of each
//! file, which a sync has where that was asked for.

use super::handle::{BlobReader, Handle, REPLY_TIME, misplaced};
use super::listing::{self, MAX_REPEATED_NAMES, Pieces, WAITING, Wanted, name};
use super::seat::store_down;
use super::submission::{not_retried, retried};
use crate::scheduler::{
    Event, FailedBatch, FailedLine, IdempotencyKey, Listing, Reply, failures_of,
};
use crate::util::units;
use crate::wire::manifest::{FileListPart, Manifest};
use crate::wire::options::{FileRecord, FileState};
use crate::wire::problem::Problem;
use crate::wire::sync::SubmitReply;
use crate::wire::{BytePath, RequestId};
use std::collections::{HashSet, VecDeque};
use std::io;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Reads the failures of a sync: never more than a page and a batch are in memory, and of a sync that was read back the names.
struct Failures {
    id: RequestId,
    blobs: BlobReader,
    keys: std::vec::IntoIter<String>,
    /// What is left of the page that was read last.
    page: VecDeque<FailedLine>,
    left: u64,
    /// The names so far, where an entry may be listed twice: it failed again when it was read back.
    names: Option<HashSet<[u8; 16]>>,
}

impl Failures {
    fn of(listing: Listing, blobs: BlobReader) -> Self {
        let names = listing.readback_from.map(|_| HashSet::new());
        let (keys, left) = (listing.failed.keys.into_iter(), listing.failed.listed);
        Failures { id: listing.id, blobs, keys, page: VecDeque::new(), left, names }
    }

    /// The next failures: those of a page up to the next batch, or those of a batch. `None` after the last ones.
    async fn next(&mut self) -> Result<Option<Vec<FileRecord>>, Problem> {
        if self.page.is_empty() {
            let Some(key) = self.keys.next().filter(|_| self.left > 0) else {
                return if self.left == 0 {
                    Ok(None)
                } else {
                    Err(self.incomplete("pages end early"))
                };
            };
            let page = self.blob(key).await?;
            self.page = failures_of(&page).map_err(|why| self.incomplete(&why))?.into();
        }
        let single = self.page.iter().take_while(|failure| failure.batch.is_none()).count();
        let mut entries: Vec<FileRecord> =
            self.page.drain(..single).map(|failure| failure.entry).collect();
        if single == 0
            && let Some(FailedLine { entry, batch: Some(batch) }) = self.page.pop_front()
        {
            entries = self.entries_of(entry, batch).await?;
        }
        entries.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= entries.len() as u64;
        if let Some(names) = &mut self.names {
            entries.retain(|entry| names.len() >= MAX_REPEATED_NAMES || names.insert(name(entry)));
        }
        Ok(Some(entries))
    }

    /// The entries of a batch, each with what they have in common.
    async fn entries_of(
        &self,
        common: FileRecord,
        batch: FailedBatch,
    ) -> Result<Vec<FileRecord>, Problem> {
        let manifest = self.blob(batch.manifest).await?;
        let manifest = Manifest::decode(&manifest).map_err(|e| self.incomplete(&e.to_string()))?;
        if manifest.entries.len() as u64 != batch.entries {
            return Err(self.incomplete("a manifest has other entries than were counted"));
        }
        let entry = |entry: crate::wire::manifest::Entry| {
            let path = BytePath(entry.path.as_bytes().to_vec());
            FileRecord { path, ..common.clone() }
        };
        Ok(manifest.entries.into_iter().map(entry).collect())
    }

    async fn blob(&self, key: String) -> Result<Vec<u8>, Problem> {
        match timeout(REPLY_TIME, (self.blobs)(key)).await {
            Ok(Ok(Some(blob))) => Ok(blob),
            Ok(Ok(None)) => Err(self.incomplete("a part is missing")),
            Ok(Err(why)) => Err(store_down(&why)),
            Err(_) => Err(store_down("it gives no answer")),
        }
    }

    /// The store does not hold what was written to it.
    fn incomplete(&self, why: &str) -> Problem {
        let id = &self.id;
        let detail = format!("the stored failures of sync `{id}` are not complete: {why}");
        Problem::new(409, "Conflict", "failures_lost", detail).with_hint(format!(
            "retry all of it: ctl sync retry {id} (files already copied are skipped)"
        ))
    }

    /// Starts to send them, a JSON document a line.
    async fn send(mut self) -> Result<Pieces, Problem> {
        let (pieces, receiver) = mpsc::channel(WAITING);
        // Read before the reply begins: what is missing as a whole is refused with its reason.
        let mut page = self.next().await?;
        tokio::spawn(async move {
            while let Some(entries) = page {
                let piece = lines(&entries);
                let reads = piece.as_ref().is_ok_and(Vec::is_empty)
                    || pieces.send(piece.map(Into::into)).await.is_ok();
                if !reads {
                    return;
                }
                page = match self.next().await {
                    Ok(page) => page,
                    Err(e) => return drop(pieces.send(Err(io::Error::other(e.detail))).await),
                };
            }
        });
        Ok(receiver)
    }
}

fn lines(entries: &[FileRecord]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Whether just failures are wanted, which every sync lists.
fn just_failures(wanted: &Wanted) -> bool {
    let failed = |states: &[FileState]| states.iter().all(|state| *state == FileState::Failed);
    matches!(wanted, Wanted::Records(states) if !states.is_empty() && failed(states))
}

impl Handle {
    /// What became of each file of a sync, in pieces.
    ///
    /// # Errors
    /// 404; 409 where it was not recorded, or not all of it is there; 503.
    pub(super) async fn listing(&self, id: RequestId, wanted: Wanted) -> Result<Pieces, Problem> {
        let found = self.find_listing(id).await?;
        let failures = just_failures(&wanted).then(|| found.clone());
        match (listing::read(self.spool.clone(), found, wanted).await, failures) {
            // It was not recorded, or by another master.
            (Err(_), Some(found)) => Failures::of(found, self.desk()?.blobs).send().await,
            (read, _) => read,
        }
    }

    async fn find_listing(&self, id: RequestId) -> Result<Listing, Problem> {
        match self.ask(Event::Listing(id)).await? {
            Reply::Listing(found) => Ok(*found),
            other => Err(misplaced(other)),
        }
    }

    /// Submits what an ended sync asked for again, under the id `new` (or one that is made); with
    /// `failed_only` just the entries that failed.
    ///
    /// # Errors
    /// 404; 409 where it has not ended, is completed, or its failures are not all known; 503.
    pub async fn retry(
        &self,
        id: RequestId,
        (new, failed_only): (Option<RequestId>, bool),
        idempotency: Option<IdempotencyKey>,
    ) -> Result<SubmitReply, Problem> {
        let only = if failed_only { Some(self.failed_names(&id).await?) } else { None };
        match self.ask(Event::Retry { id, new, only, idempotency }).await? {
            Reply::Submitted(submitted) => Ok(submitted),
            other => Err(misplaced(other)),
        }
    }

    /// The names of all that failed in a sync.
    async fn failed_names(&self, id: &RequestId) -> Result<Vec<FileListPart>, Problem> {
        let sync = self.progress(id.clone()).await?;
        if sync.failures_unlisted > 0 {
            let (all, unlisted) = (sync.failure_count(), sync.failures_unlisted);
            let listed = units::format_count(all.saturating_sub(unlisted));
            let detail = format!(
                "of the {} of sync `{id}` only {listed} are known by name",
                units::pluralize(all, "failure", "failures")
            );
            return Err(not_retried(id, detail));
        }
        let found = self.find_listing(id.clone()).await?;
        let mut failures = Failures::of(found, self.desk()?.blobs);
        let mut names: Vec<BytePath> = Vec::new();
        while let Some(entries) = failures.next().await? {
            names.extend(entries.into_iter().map(|entry| entry.path));
        }
        retried(id, &sync, names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::FailedPages;
    use crate::wire::manifest::{Entry, EntryKind, FileVersion, Meta};
    use crate::wire::{AbsPath, RelPath, SyncNo};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn manifest(names: &[&str]) -> Vec<u8> {
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        let file = |name: &&str| {
            let path = RelPath::new(*name).unwrap();
            Entry::new(path, EntryKind::File { size: 1 }, meta, FileVersion::default())
        };
        Manifest { dirs: vec![], entries: names.iter().map(file).collect() }.encode()
    }

    async fn read(
        blobs: &[(&str, Vec<u8>)],
        listed: u64,
        read_back: bool,
    ) -> Result<Vec<String>, String> {
        let blobs: BTreeMap<String, Vec<u8>> =
            blobs.iter().map(|(key, blob)| ((*key).to_owned(), blob.clone())).collect();
        let keys = vec!["e/1/0".to_owned(), "e/1/1".to_owned()];
        let reader: BlobReader =
            Arc::new(move |key| Box::pin(std::future::ready(Ok(blobs.get(&key).cloned()))));
        let listing = Listing {
            sync: SyncNo(1),
            id: "demo".parse().unwrap(),
            length: 0,
            readback_from: read_back.then_some(0),
            lost: None,
            recorded: false,
            digests: false,
            ended: true,
            destination: AbsPath::new("/d").unwrap(),
            failed: FailedPages { keys, listed },
        };
        let mut failures = Failures::of(listing, reader);
        let mut lines = Vec::new();
        while let Some(entries) = failures.next().await.map_err(|e| e.code)? {
            let line = |e: FileRecord| format!("{}: {}", e.path, e.message.unwrap_or_default());
            lines.extend(entries.into_iter().map(line));
        }
        Ok(lines)
    }

    #[tokio::test]
    async fn pages_and_batches_are_read_in_order_as_far_as_they_were_counted() {
        let first = br#"{"path":"a","message":"no"}
{"path":"b"}
{"path":"","message":"gone","batch":{"manifest":"m/1/9","entries":2}}
{"path":"c"}
"#;
        let second = b"{\"path\":\"a\",\"message\":\"late\"}\n{\"path\":\"not yet\"}\n";
        let blobs = [
            ("e/1/0", first.to_vec()),
            ("e/1/1", second.to_vec()),
            ("m/1/9", manifest(&["x", "y"])),
        ];
        let all = ["a: no", "b: no", "x: gone", "y: gone", "c: gone", "a: late"];
        assert_eq!(read(&blobs, 6, false).await.unwrap(), all);
        assert_eq!(read(&blobs, 6, true).await.unwrap(), all[..5], "a name is listed once");
        assert_eq!(read(&blobs, 3, false).await.unwrap(), all[..3]);
        assert_eq!(read(&blobs, 9, false).await, Err("failures_lost".to_owned()));
        assert_eq!(read(&blobs[..2], 6, false).await, Err("failures_lost".to_owned()));
        assert_eq!(read(&blobs[1..], 6, false).await, Err("failures_lost".to_owned()));
        let mut other = blobs;
        other[2].1 = manifest(&["x"]);
        assert_eq!(read(&other, 6, false).await, Err("failures_lost".to_owned()));
    }
}
