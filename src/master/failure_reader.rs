//! The failures of a sync, read from the store page by page, to be listed or retried.

use super::channel::BlobReader;
use super::file_records::{
    self, ChunkReceiver, FileRecordQuery, MAX_QUEUED_CHUNKS, MAX_REPEATED_NAMES, path_hash,
};
use super::handle::{MasterHandle, REPLY_TIMEOUT};
use super::leadership::store_unavailable;
use super::requests::{GetFileRecords, GetSync, RetrySync};
use super::submit_validation::{failures_unknown, retry_all_hint, retry_name_lists};
use crate::scheduler::{
    FailedBatch, FailureLine, IdempotencyKey, RecordLogInfo, RetryScope, decode_failures,
    failed_file_record,
};
use crate::util::units;
use crate::wire::entry_report::{FileRecord, FileState};
use crate::wire::manifest::Manifest;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{RetryRequest, SubmitReply};
use crate::wire::{BytePath, RequestId};
use std::collections::{HashSet, VecDeque};
use std::io;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Reads the failures of a sync. In memory are a page, a batch, and after a read-back the digests of the names.
struct FailureReader {
    id: RequestId,
    blobs: BlobReader,
    keys: std::vec::IntoIter<String>,
    /// The remaining lines of the current page.
    page_lines: VecDeque<FailureLine>,
    remaining: u64,
    /// Digests of the names so far, after a read-back: an entry that failed again is listed twice.
    seen_names: Option<HashSet<[u8; 16]>>,
}

impl FailureReader {
    fn new(listing: RecordLogInfo, blobs: BlobReader) -> Self {
        FailureReader {
            id: listing.id,
            blobs,
            keys: listing.failures.keys.into_iter(),
            page_lines: VecDeque::new(),
            remaining: listing.failures.listed,
            seen_names: listing.readback_from.map(|_| HashSet::new()),
        }
    }

    /// The next failures of the page up to a batch, or those of a batch. `None` at the end.
    async fn next_entries(&mut self) -> Result<Option<Vec<FileRecord>>, Problem> {
        if self.page_lines.is_empty() {
            let Some(key) = self.keys.next().filter(|_| self.remaining > 0) else {
                return if self.remaining == 0 {
                    Ok(None)
                } else {
                    Err(self.failures_incomplete("pages end early"))
                };
            };
            let page = self.read_blob(key).await?;
            self.page_lines =
                decode_failures(&page).map_err(|reason| self.failures_incomplete(&reason))?.into();
        }
        let single = self.page_lines.iter().take_while(|failure| failure.batch.is_none()).count();
        let record = |failure: FailureLine| failed_file_record(failure.path, failure.error);
        let mut entries: Vec<FileRecord> = self.page_lines.drain(..single).map(record).collect();
        if single == 0
            && let Some(FailureLine { path, error, batch: Some(batch) }) =
                self.page_lines.pop_front()
        {
            entries = self.batch_entries(failed_file_record(path, error), batch).await?;
        }
        entries.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.remaining -= entries.len() as u64;
        if let Some(names) = &mut self.seen_names {
            entries.retain(|entry| {
                names.len() >= MAX_REPEATED_NAMES || names.insert(path_hash(entry))
            });
        }
        Ok(Some(entries))
    }

    /// The entries of a batch, each with the error of the batch.
    async fn batch_entries(
        &self,
        common: FileRecord,
        batch: FailedBatch,
    ) -> Result<Vec<FileRecord>, Problem> {
        let manifest = self.read_blob(batch.manifest).await?;
        let manifest =
            Manifest::decode(&manifest).map_err(|e| self.failures_incomplete(&e.to_string()))?;
        if manifest.entries.len() as u64 != batch.entries {
            return Err(self
                .failures_incomplete("a manifest has another number of entries than was counted"));
        }
        let entry = |entry: crate::wire::manifest::Entry| {
            let path = BytePath(entry.path.as_bytes().to_vec());
            FileRecord { path, ..common.clone() }
        };
        Ok(manifest.entries.into_iter().map(entry).collect())
    }

    async fn read_blob(&self, key: String) -> Result<Vec<u8>, Problem> {
        match timeout(REPLY_TIMEOUT, (self.blobs)(key)).await {
            Ok(Ok(Some(blob))) => Ok(blob),
            Ok(Ok(None)) => Err(self.failures_incomplete("a part is missing")),
            Ok(Err(reason)) => Err(store_unavailable(&reason)),
            Err(_) => Err(store_unavailable("the store does not answer in time")),
        }
    }

    fn failures_incomplete(&self, reason: &str) -> Problem {
        let id = &self.id;
        let detail = format!("the stored failures of sync `{id}` are not complete: {reason}");
        Problem::new(ProblemCode::FailuresIncomplete, detail).with_hint(retry_all_hint(id))
    }

    /// Starts to send the failures, each as a line of JSON.
    async fn stream(mut self) -> Result<ChunkReceiver, Problem> {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_CHUNKS);
        // The first page is read before the response starts, so that an error becomes its status.
        let mut page = self.next_entries().await?;
        tokio::spawn(async move {
            while let Some(entries) = page {
                let lines = to_json_lines(&entries);
                let is_connected = lines.as_ref().is_ok_and(Vec::is_empty)
                    || sender.send(lines.map(Into::into)).await.is_ok();
                if !is_connected {
                    return;
                }
                page = match self.next_entries().await {
                    Ok(page) => page,
                    Err(e) => return drop(sender.send(Err(io::Error::other(e.detail))).await),
                };
            }
        });
        Ok(receiver)
    }
}

fn to_json_lines(entries: &[FileRecord]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Whether a query asks for failures only, which every sync lists.
fn wants_only_failures(query: &FileRecordQuery) -> bool {
    let failed = |states: &[FileState]| states.iter().all(|state| *state == FileState::Failed);
    matches!(query, FileRecordQuery::Records(states) if !states.is_empty() && failed(states))
}

impl MasterHandle {
    /// The outcome of each file of a sync, in chunks.
    ///
    /// # Errors
    /// 404; 409 if it was not recorded, or the records are incomplete; 503.
    pub(super) async fn stream_file_records(
        &self,
        id: RequestId,
        query: FileRecordQuery,
    ) -> Result<ChunkReceiver, Problem> {
        let listing = self.send(GetFileRecords { id }).await?;
        let failures = wants_only_failures(&query).then(|| listing.clone());
        match (file_records::stream_records(self.spool.clone(), listing, query).await, failures) {
            // It was not recorded, or by another master.
            (Err(_), Some(listing)) => {
                FailureReader::new(listing, self.channel()?.blobs).stream().await
            }
            (result, _) => result,
        }
    }

    /// Submits the request of an ended sync again.
    ///
    /// # Errors
    /// 404; 409 if it has not ended, is completed, or its failures are not all known by name; 503.
    pub(super) async fn retry(
        &self,
        id: RequestId,
        retry: RetryRequest,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<SubmitReply, Problem> {
        let only = match retry.failed_only {
            true => self.read_failed(&id).await?,
            false => RetryScope::All,
        };
        self.send(RetrySync { id, new: retry.request_id, only, idempotency }).await
    }

    async fn read_failed(&self, id: &RequestId) -> Result<RetryScope, Problem> {
        let sync = self.send(GetSync { id: id.clone() }).await?;
        if !sync.destinations.is_empty() {
            return Ok(RetryScope::IncompleteDestinations);
        }
        if sync.failures_unlisted > 0 {
            let (all, unlisted) = (sync.failure_count(), sync.failures_unlisted);
            let listed = units::format_count(all.saturating_sub(unlisted));
            let detail = format!(
                "of the {} of sync `{id}` only {listed} are known by name",
                units::pluralize(all, "failure", "failures")
            );
            return Err(failures_unknown(id, detail));
        }
        let listing = self.send(GetFileRecords { id: id.clone() }).await?;
        let mut failures = FailureReader::new(listing, self.channel()?.blobs);
        let mut names: Vec<BytePath> = Vec::new();
        while let Some(entries) = failures.next_entries().await? {
            names.extend(entries.into_iter().map(|entry| entry.path));
        }
        retry_name_lists(id, &sync, names).map(RetryScope::Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::FailurePages;
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

    async fn read_failures(
        blobs: &[(&str, Vec<u8>)],
        listed: u64,
        read_back: bool,
    ) -> Result<Vec<String>, String> {
        let blobs: BTreeMap<String, Vec<u8>> =
            blobs.iter().map(|(key, blob)| ((*key).to_owned(), blob.clone())).collect();
        let keys = vec!["e/1/0".to_owned(), "e/1/1".to_owned()];
        let reader: BlobReader =
            Arc::new(move |key| Box::pin(std::future::ready(Ok(blobs.get(&key).cloned()))));
        let listing = RecordLogInfo {
            sync: SyncNo(1),
            id: "demo".parse().unwrap(),
            length: 0,
            readback_from: read_back.then_some(0),
            error: None,
            is_recorded: false,
            has_digests: false,
            has_ended: true,
            destination: AbsPath::new("/d").unwrap(),
            failures: FailurePages { keys, listed },
        };
        let mut failures = FailureReader::new(listing, reader);
        let mut lines = Vec::new();
        while let Some(entries) = failures.next_entries().await.map_err(|e| e.code)? {
            let line = |e: FileRecord| {
                format!("{}: {}", e.path, e.error.map_or_else(String::new, |error| error.message))
            };
            lines.extend(entries.into_iter().map(line));
        }
        Ok(lines)
    }

    #[tokio::test]
    async fn pages_and_batches_are_read_in_order_up_to_the_committed_count() {
        let first = br#"{"path":"a","error":{"operation":"open","message":"no"}}
{"path":"b"}
{"path":"","error":{"operation":"copy","message":"gone"},"batch":{"manifest":"m/1/9","entries":2}}
{"path":"c"}
"#;
        let second = br#"{"path":"a","error":{"operation":"open","message":"late"}}
{"path":"not yet"}
"#;
        let blobs = [
            ("e/1/0", first.to_vec()),
            ("e/1/1", second.to_vec()),
            ("m/1/9", manifest(&["x", "y"])),
        ];
        let all = ["a: no", "b: no", "x: gone", "y: gone", "c: gone", "a: late"];
        assert_eq!(read_failures(&blobs, 6, false).await.unwrap(), all);
        assert_eq!(
            read_failures(&blobs, 6, true).await.unwrap(),
            all[..5],
            "a name is listed once"
        );
        assert_eq!(read_failures(&blobs, 3, false).await.unwrap(), all[..3]);
        assert_eq!(read_failures(&blobs, 9, false).await, Err("failures_incomplete".to_owned()));
        assert_eq!(
            read_failures(&blobs[..2], 6, false).await,
            Err("failures_incomplete".to_owned())
        );
        assert_eq!(
            read_failures(&blobs[1..], 6, false).await,
            Err("failures_incomplete".to_owned())
        );
        let mut other = blobs;
        other[2].1 = manifest(&["x"]);
        assert_eq!(read_failures(&other, 6, false).await, Err("failures_incomplete".to_owned()));
    }
}
