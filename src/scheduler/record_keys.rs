//! Keys of records and blobs in the store; [`records`](super::records) lists them.

use crate::wire::{Digest, SyncNo, WorkerId};

/// The key of the record of numbers and keys.
pub const META_KEY: &str = "meta";

/// The key of the record of the certificate authority.
pub const AUTHORITY_KEY: &str = "c/authority";

pub(super) fn name_list_key(no: SyncNo, part: u64) -> String {
    format!("f/{no}/{part}")
}

pub(super) fn drain_key(worker: &WorkerId) -> String {
    format!("d/{worker}")
}

pub(super) fn group_key(no: SyncNo, group: &Digest) -> String {
    format!("g/{no}/{group}")
}
