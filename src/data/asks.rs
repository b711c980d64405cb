//! Questions of one document each way: block values of a range, a prune, a sweep. Removed names are
//! the only names that a reply holds; they are read like those of any peer.

use super::protocol::{Fault, range_of};
use crate::wire::manifest::{DirRef, Entry, Manifest, cbor_path};
use crate::wire::options::FilterSpec;
use crate::wire::sync::FileError;
use crate::wire::task::Pruned;
use crate::wire::{Digest, RelPath};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// The length of the blocks that are compared, in bytes. Shorter ones find more that is equal, and
/// cost 34 bytes of reply each.
pub const BLOCK: u64 = 256 << 10;
/// Blocks are asked for, and sent, for so much of a range at a time: neither end works for long
/// without a word to the other.
pub const WINDOW: u64 = 64 << 20;
/// At most so many block values are given at a time.
const MAX_BLOCKS: u64 = 4096;
/// At most so many names are taken with one page of a prune.
const MAX_NAMES: usize = 65_536;
/// A reply to a prune names removed entries in about so many bytes; of more it gives the counts.
const MAX_REMOVED: usize = 8 << 20;

/// The request for block values.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BlocksAsk {
    /// The file, its only entry.
    #[n(0)]
    pub manifest: Manifest,
    /// Where the blocks start, a multiple of their length.
    #[n(1)]
    pub offset: u64,
    /// The length of all of them; the last one may be shorter.
    #[n(2)]
    pub length: u64,
    /// The length of one, a power of two.
    #[n(3)]
    pub block: u64,
}

impl BlocksAsk {
    /// The file.
    ///
    /// # Errors
    /// A sentence, where these are no blocks whose values can be had.
    pub fn checked(&self) -> Result<&Entry, String> {
        let BlocksAsk { offset, length, block, .. } = *self;
        let entry = range_of(&self.manifest, offset, length)?;
        let fits = block.is_power_of_two()
            && block >= blake3::CHUNK_LEN as u64
            && offset.is_multiple_of(block)
            && length.div_ceil(block) <= MAX_BLOCKS;
        if fits { Ok(entry) } else { Err(format!("{length} bytes at {offset} by {block}")) }
    }
}

/// What is there of one block: BLAKE3 chaining values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct BlockValue {
    /// In the part file of the entry's version.
    #[n(0)]
    pub part: Option<Digest>,
    /// In the file that has the name now.
    #[n(1)]
    pub base: Option<Digest>,
}

/// The reply to [`BlocksAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum BlocksReply {
    /// One for each block, in order.
    #[n(0)]
    Values(#[n(0)] Vec<BlockValue>),
    /// What is there cannot be read.
    #[n(1)]
    Failed(#[n(0)] Fault),
}

/// A page of a prune: the names that the source has in an interval of one directory. What the
/// destination has there beside them is extra.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PruneAsk {
    /// The directory, below the root of the sync.
    #[cbor(n(0), with = "cbor_path")]
    pub dir: RelPath,
    /// The interval begins behind this name; `None`: with the first one.
    #[n(1)]
    pub after: Option<ByteVec>,
    /// … and ends with this one; `None`: there is no end.
    #[n(2)]
    pub upto: Option<ByteVec>,
    /// All names of the source in the interval, sorted.
    #[n(3)]
    pub names: Vec<ByteVec>,
    /// What is not looked at.
    #[n(4)]
    pub filter: FilterSpec,
    /// … unless this is set.
    #[n(5)]
    pub delete_excluded: bool,
    /// Delete; otherwise only count.
    #[n(6)]
    pub apply: bool,
    /// The directory with all above it, parents first; they get their metadata back.
    #[n(7)]
    pub dirs: Vec<DirRef>,
}

impl PruneAsk {
    /// Whether this can be asked.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn checked(&self) -> Result<(), String> {
        if self.names.len() > MAX_NAMES {
            return Err(format!("{} names are over the limit of {MAX_NAMES}", self.names.len()));
        }
        let names = || self.names.iter().chain(&self.after).chain(&self.upto);
        for name in names() {
            RelPath::root().child(name).map_err(|e| format!("a name {e}"))?;
        }
        if !self.names.is_sorted_by(|a, b| a < b) {
            return Err("the names are not sorted".to_owned());
        }
        let inside = |name: &ByteVec| {
            self.after.as_ref().is_none_or(|after| name > after)
                && self.upto.as_ref().is_none_or(|upto| name <= upto)
        };
        if !self.names.iter().all(inside) {
            return Err("a name lies out of the interval".to_owned());
        }
        if let Some(other) =
            self.dirs.iter().find(|d| d.path != self.dir && !d.path.holds(&self.dir))
        {
            return Err(format!("`{}` is not above the directory", other.path));
        }
        Ok(())
    }
}

/// An entry that a prune has removed (or would).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Removed {
    /// Below the directory of the page.
    #[cbor(n(0), with = "cbor_path")]
    pub path: RelPath,
    /// The length of its content.
    #[n(1)]
    pub bytes: u64,
}

/// Something that a prune could not list or remove.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Stuck {
    /// Below the directory of the page; empty for that directory.
    #[cbor(n(0), with = "cbor_path")]
    pub path: RelPath,
    /// Why.
    #[n(1)]
    pub fault: Fault,
}

/// The reply to [`PruneAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct PruneReply {
    /// Entries that were looked at.
    #[n(0)]
    pub seen: u64,
    /// … that are extra.
    #[n(1)]
    pub extra: u64,
    /// Content of those, in bytes.
    #[n(2)]
    pub bytes: u64,
    /// Those, or the first of very many.
    #[n(3)]
    pub removed: Vec<Removed>,
    /// What went wrong.
    #[n(4)]
    pub errors: Vec<Stuck>,
}

/// What a destination made of a page of a prune. Paths are below the root of the sync.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrunedPage {
    /// The counts.
    pub pruned: Pruned,
    /// The extra entries with the bytes of their content; where there are very many, the first.
    pub removed: Vec<(RelPath, u64)>,
    /// What could not be listed or removed.
    pub errors: Vec<FileError>,
}

impl PruneReply {
    /// Says `page`, which is of the directory `dir`.
    pub fn of_page(dir: &RelPath, page: PrunedPage) -> Self {
        let Pruned { seen, extra, bytes } = page.pruned;
        let mut room = MAX_REMOVED;
        let fits = |(path, bytes): (RelPath, u64)| {
            let path = below(dir, path.as_bytes())?;
            room = room.checked_sub(path.as_bytes().len() + 16)?;
            Some(Removed { path, bytes })
        };
        let removed = page.removed.into_iter().map_while(fits).collect();
        let mut room = MAX_REMOVED / 2;
        let errors = page.errors.into_iter().map_while(|error| {
            let path = below(dir, &error.path.0).unwrap_or_default();
            let fault = Fault::from(error);
            room = room.checked_sub(path.as_bytes().len() + fault.message.len() + 64)?;
            Some(Stuck { path, fault })
        });
        PruneReply { seen, extra, bytes, removed, errors: errors.collect() }
    }

    /// Reads a reply to `ask`.
    ///
    /// # Errors
    /// A reply that speaks of what was not asked.
    pub fn into_page(self, ask: &PruneAsk) -> Result<PrunedPage, String> {
        let PruneReply { seen, extra, bytes, removed, errors } = self;
        if extra > seen || removed.len() as u64 > extra {
            return Err(format!("{} removed, {extra} extra of {seen}", removed.len()));
        }
        let removed = removed.into_iter().map(|one| {
            let first = one.path.components().next().unwrap_or_default();
            let inside = !first.is_empty()
                && ask.after.as_ref().is_none_or(|after| first > after.as_slice())
                && ask.upto.as_ref().is_none_or(|upto| first <= upto.as_slice());
            if inside {
                Ok((ask.dir.join(&one.path), one.bytes))
            } else {
                Err(format!("`{}` was not asked for", one.path))
            }
        });
        let removed = removed.collect::<Result<_, _>>()?;
        let errors =
            errors.into_iter().map(|one| one.fault.into_error(&ask.dir.join(&one.path))).collect();
        Ok(PrunedPage { pruned: Pruned { seen, extra, bytes }, removed, errors })
    }
}

/// `path` seen from `dir`; `None` where it is not below it.
fn below(dir: &RelPath, path: &[u8]) -> Option<RelPath> {
    let rest = match dir.as_bytes() {
        b"" => path,
        dir => path.strip_prefix(dir)?.strip_prefix(b"/")?,
    };
    RelPath::new(rest).ok()
}

/// The request for a sweep.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct SweepAsk {
    /// The root of the sync, which gets its metadata back.
    #[n(0)]
    pub root: Option<DirRef>,
}

/// The reply to [`SweepAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct SweepReply {
    /// Why not all is removed.
    #[n(0)]
    pub fault: Option<Fault>,
}
