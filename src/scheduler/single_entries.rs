//! Batches of one entry each, split from a manifest.

use crate::wire::BytePath;
use crate::wire::manifest::Manifest;
use crate::wire::task::{Base64Bytes, WorkItem};

/// An entry of a batch, as a batch of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct SingleEntry {
    /// Its name.
    pub path: BytePath,
    /// The batch.
    pub item: WorkItem,
}

/// The entries of a manifest, each as a batch of its own; empty if it cannot be decoded.
pub fn single_entries(manifest: &[u8]) -> Vec<SingleEntry> {
    let Ok(Manifest { dirs, entries }) = Manifest::decode(manifest) else { return Vec::new() };
    let single = |entry: crate::wire::manifest::Entry| {
        let above = dirs.iter().filter(|d| d.path != entry.path && d.path.contains(&entry.path));
        let is_dir = u64::from(entry.is_dir());
        let (path, bytes) = (BytePath(entry.path.as_bytes().to_vec()), entry.size());
        let manifest = Manifest { dirs: above.cloned().collect(), entries: vec![entry] };
        let manifest = Base64Bytes(manifest.encode());
        let item = WorkItem::Copy { manifest, files: 1 - is_dir, dirs: is_dir, bytes };
        SingleEntry { path, item }
    };
    entries.into_iter().map(single).collect()
}
