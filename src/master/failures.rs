//! The failures of a sync, read from the store page by page, to be listed or retried; and the list of what became of each
//! file, which a sync has where that was asked for.

use super::handle::{BlobReader, Handle, REPLY_TIME, misplaced};
use super::listing::{self, MAX_REPEATED_NAMES, Pieces, WAITING, Wanted, name};
use super::seat::store_down;
use super::submission::{not_retried, retried};
use crate::scheduler::{Event, IdempotencyKey, Listing, Reply, failed_entries};
use crate::util::units;
use crate::wire::manifest::NameList;
use crate::wire::options::{FileRecord, FileState};
use crate::wire::problem::Problem;
use crate::wire::sync::Submitted;
use crate::wire::{BytePath, RequestId};
use std::collections::HashSet;
use std::io;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Reads the failures of a sync: never more than a page is in memory, and of a sync that was read back the names.
struct Failures {
    id: RequestId,
    blobs: BlobReader,
    keys: std::vec::IntoIter<String>,
    left: u64,
    /// The names so far, where an entry may be listed twice: it failed again when it was read back.
    names: Option<HashSet<[u8; 16]>>,
}

impl Failures {
    fn of(listing: Listing, blobs: BlobReader) -> Self {
        let names = listing.readback_from.map(|_| HashSet::new());
        let (keys, left) = (listing.failed.keys.into_iter(), listing.failed.listed);
        Failures { id: listing.id, blobs, keys, left, names }
    }

    /// The failures of the next page; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Vec<FileRecord>>, Problem> {
        let Some(key) = self.keys.next() else {
            return if self.left == 0 { Ok(None) } else { Err(self.incomplete("pages end early")) };
        };
        let page = match timeout(REPLY_TIME, (self.blobs)(key)).await {
            Ok(Ok(Some(page))) => page,
            Ok(Ok(None)) => return Err(self.incomplete("a page is missing")),
            Ok(Err(why)) => return Err(store_down(&why)),
            Err(_) => return Err(store_down("it gives no answer")),
        };
        let mut entries = failed_entries(&page).map_err(|why| self.incomplete(&why))?;
        entries.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= entries.len() as u64;
        if let Some(names) = &mut self.names {
            entries.retain(|entry| names.len() >= MAX_REPEATED_NAMES || names.insert(name(entry)));
        }
        Ok(Some(entries))
    }

    /// The store does not hold what was written to it.
    fn incomplete(&self, why: &str) -> Problem {
        let id = &self.id;
        let detail = format!("the stored failures of sync `{id}` are not complete: {why}");
        Problem::new(409, "Conflict", "failures_lost", detail).hinted(format!(
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
    ) -> Result<Submitted, Problem> {
        let only = if failed_only { Some(self.failed_names(&id).await?) } else { None };
        match self.ask(Event::Retry { id, new, only, idempotency }).await? {
            Reply::Submitted(submitted) => Ok(submitted),
            other => Err(misplaced(other)),
        }
    }

    /// The names of all that failed in a sync.
    async fn failed_names(&self, id: &RequestId) -> Result<Vec<NameList>, Problem> {
        let sync = self.progress(id.clone()).await?;
        if sync.failures_unlisted > 0 {
            let (all, unlisted) = (sync.failures(), sync.failures_unlisted);
            let listed = units::count(all.saturating_sub(unlisted));
            let detail = format!(
                "of the {} of sync `{id}` only {listed} are known by name",
                units::counted(all, "failure", "failures")
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
