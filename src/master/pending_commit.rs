//! The effects of a batch of events, collected until they are committed.

use crate::scheduler::{Caller, Effect, Reply, State};
use crate::store::Batch;
use crate::wire::{SyncNo, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// Lines for the file records of a sync.
#[derive(Debug)]
pub(super) struct RecordLines {
    pub(super) sync: SyncNo,
    /// The byte offset in the file.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// The writes and the replies of a batch of events. Replies are sent after the writes are durable.
#[derive(Default)]
pub(super) struct PendingCommit {
    /// Keys of records to write or delete, with the value that the state has at the commit.
    pub(super) dirty_keys: BTreeSet<String>,
    pub(super) blob_puts: BTreeMap<String, Vec<u8>>,
    pub(super) blob_deletes: BTreeSet<String>,
    pub(super) replies: Vec<(Caller, Reply)>,
    /// Keys of manifests to read after the commit, each with its task.
    pub(super) manifest_reads: Vec<(TaskId, String)>,
    /// Written before the commit, in this order.
    pub(super) record_lines: Vec<RecordLines>,
    /// The file records of these syncs are deleted after the commit.
    pub(super) dropped_records: Vec<SyncNo>,
    /// The size of blobs and lines.
    pub(super) bytes: usize,
}

impl PendingCommit {
    pub(super) fn add_effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::WriteRecord(key) => {
                    _ = self.dirty_keys.insert(key);
                }
                Effect::PutBlob(key, value) => {
                    self.blob_deletes.remove(&key);
                    self.bytes += value.len();
                    let replaced = self.blob_puts.insert(key, value);
                    self.bytes -= replaced.map_or(0, |value| value.len());
                }
                Effect::DeleteBlob(key) => {
                    self.blob_puts.remove(&key);
                    self.blob_deletes.insert(key);
                }
                Effect::AppendFileRecords { sync, at, bytes } => self.append_lines(sync, at, bytes),
                Effect::DeleteFileRecords(sync) => {
                    self.record_lines.retain(|lines| lines.sync != sync);
                    self.dropped_records.push(sync);
                }
                Effect::ReadEntries { task, key } => self.manifest_reads.push((task, key)),
                Effect::Reply(caller, reply) => self.replies.push((caller, reply)),
            }
        }
    }

    fn append_lines(&mut self, sync: SyncNo, offset: u64, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        match self.record_lines.last_mut() {
            Some(last) if last.sync == sync && last.offset + last.bytes.len() as u64 == offset => {
                last.bytes.extend_from_slice(&bytes);
            }
            _ => self.record_lines.push(RecordLines { sync, offset, bytes }),
        }
    }

    /// The writes, with the current values of the records.
    pub(super) fn to_batch(&self, state: &State) -> Batch {
        let mut batch = Batch {
            blob_puts: self.blob_puts.clone(),
            blob_deletes: self.blob_deletes.clone(),
            ..Batch::default()
        };
        for key in &self.dirty_keys {
            match state.record(key) {
                Some(value) => drop(batch.puts.insert(key.clone(), value)),
                None => drop(batch.deletes.insert(key.clone())),
            }
        }
        batch
    }
}
