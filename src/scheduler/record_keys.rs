//! Keys of records and blobs in the store; [`records`](super::records) lists them.

use crate::wire::{Digest, SyncNo, WorkerId};

/// The key of the record of numbers and keys.
pub const META_KEY: &str = "meta";

pub(super) fn name_list_key(no: SyncNo, part: u64) -> String {
    format!("f/{no}/{part}")
}

pub(super) fn possible_writer_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("r/{no}/{worker}")
}

pub(super) fn writer_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("w/{no}/{worker}")
}

pub(super) fn source_reader_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("o/{no}/{worker}")
}

pub(super) fn drain_key(worker: &WorkerId) -> String {
    format!("d/{worker}")
}

pub(super) fn group_key(no: SyncNo, group: &Digest) -> String {
    format!("g/{no}/{group}")
}

pub(super) fn parse_group_key(key: &str) -> Option<(SyncNo, Digest)> {
    let (no, group) = key.strip_prefix("g/")?.split_once('/')?;
    Some((SyncNo(no.parse().ok()?), group.parse().ok()?))
}
