//! The entries of a batch, in CBOR with numbered fields (RFC 8949): written by the agent that scans,
//! stored by the master without a look inside, read by the agents that copy.

use super::content::merge_subtrees;
use super::{Digest, RelPath};
use blake3::hazmat::{Mode, merge_subtrees_root};
use minicbor::{Decode, Encode};

/// At most this many entries stand in one manifest.
pub const MAX_MANIFEST_ENTRIES: usize = 4096;
/// At most this many encoded bytes are accepted as a manifest.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// What an entry mostly takes, encoded, in bytes: a short name, no attributes.
const TYPICAL_ENTRY_BYTES: usize = 96;

/// A batch: its directories once, its entries by reference to them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Manifest {
    /// Every directory that holds an entry of this batch, and all directories above those up to the
    /// root, each with the metadata that it shall have in the end; parents before children. A batch
    /// re-stamps those that it wrote into.
    #[n(0)]
    pub dirs: Vec<ManifestDir>,
    /// In the order of the walk.
    #[n(1)]
    pub entries: Vec<Entry>,
}

/// A directory above the entries of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ManifestDir {
    /// Below the root of the sync; empty for the root.
    #[cbor(n(0), with = "cbor_path")]
    pub path: RelPath,
    /// What it shall have.
    #[n(1)]
    pub meta: Meta,
}

/// One file, directory, link or special file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Below the root of the sync; empty for the root itself (a source that is a file, or the root
    /// directory's own metadata).
    #[cbor(n(0), with = "cbor_path")]
    pub path: RelPath,
    /// What it is.
    #[n(1)]
    pub kind: EntryKind,
    /// Mode, owner, time.
    #[n(2)]
    pub meta: Meta,
    /// Which version of the source this is.
    #[n(3)]
    pub version: FileVersion,
    /// Extended attributes and ACLs that are to be kept, sorted by name.
    #[cbor(n(4), default)]
    pub xattrs: Vec<Xattr>,
    /// It has other names (of the same [`FileVersion`]) at the source: those are to be one file at the
    /// destination as well.
    #[cbor(n(5), default)]
    pub is_hardlinked: bool,
    /// The BLAKE3 digest of its content: sent where content is compared and this side has read it.
    #[cbor(n(6), default)]
    pub digest: Option<Digest>,
    /// Where the content is read, below the storage root of the source: for what was reached through
    /// a link that is followed.
    #[cbor(n(7), with = "cbor_path_option", default)]
    pub content_path: Option<RelPath>,
    /// Of a file with holes that are to be kept: what it takes on its disk, or how much of it is data, in
    /// bytes. It is not encoded.
    #[cbor(skip)]
    pub stored_bytes: Option<u64>,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Xattr {
    /// Its name with the namespace, e.g. `user.origin`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// Its value.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EntryKind {
    /// A regular file.
    #[n(0)]
    File {
        /// Its length in bytes.
        #[n(0)]
        size: u64,
    },
    /// A directory.
    #[n(1)]
    Dir,
    /// A symbolic link.
    #[n(2)]
    Symlink {
        /// Its text, never followed.
        #[cbor(n(0), with = "minicbor::bytes")]
        target: Vec<u8>,
    },
    /// A FIFO, socket or device.
    #[n(3)]
    Special {
        /// `S_IFMT` bits of its mode.
        #[n(0)]
        format: u32,
        /// Its device number, where it is a device.
        #[n(1)]
        rdev: u64,
    },
}

/// Metadata that is preserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Meta {
    /// Permission bits with set-uid, set-gid and sticky (`0o7777`).
    #[n(0)]
    pub mode: u32,
    /// Numeric owner.
    #[n(1)]
    pub uid: u32,
    /// Numeric group.
    #[n(2)]
    pub gid: u32,
    /// Modification time: seconds since 1970, may be negative.
    #[n(3)]
    pub mtime_sec: i64,
    /// … and nanoseconds, 0 to 999,999,999.
    #[n(4)]
    pub mtime_nsec: u32,
}

/// What tells one version of a source file from another, beside size and mtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct FileVersion {
    /// Device of the source file as the host that looked at it numbers them; 0: that of the source root.
    #[n(0)]
    pub dev: u64,
    /// Inode number.
    #[n(1)]
    pub ino: u64,
    /// Change time, seconds.
    #[n(2)]
    pub ctime_sec: i64,
    /// Change time, nanoseconds.
    #[n(3)]
    pub ctime_nsec: u32,
}

impl Entry {
    /// An entry without extended attributes, other names or a digest.
    pub fn new(path: RelPath, kind: EntryKind, meta: Meta, ident: FileVersion) -> Self {
        Entry {
            path,
            kind,
            meta,
            version: ident,
            xattrs: Vec::new(),
            is_hardlinked: false,
            digest: None,
            content_path: None,
            stored_bytes: None,
        }
    }

    /// Length of the content; 0 for all but regular files.
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == EntryKind::Dir
    }

    /// The generation of a part file: it changes whenever the identity of the source does, so ranges
    /// of two versions can never meet in one part file. Hosts may have other device numbers for one file
    /// system, so these are no part of it.
    pub fn part_generation(&self) -> u64 {
        self.hash_identity("longhaul 2026 part file generation", 0)
    }

    /// What all names of one file have in common, and no other file has: also not one of the same inode
    /// number, length and times on another file system (a clone of this one).
    pub fn hardlink_key(&self) -> u64 {
        self.hash_identity("longhaul 2026 names of one file", self.version.dev)
    }

    fn hash_identity(&self, context: &str, dev: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.size().to_le_bytes());
        hasher.update(&self.meta.mtime_sec.to_le_bytes());
        hasher.update(&self.meta.mtime_nsec.to_le_bytes());
        hasher.update(&dev.to_le_bytes());
        hasher.update(&self.version.ino.to_le_bytes());
        hasher.update(&self.version.ctime_sec.to_le_bytes());
        hasher.update(&self.version.ctime_nsec.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is over the limit of {MAX_MANIFEST_BYTES}")]
    TooManyBytes(usize),
    /// Over [`MAX_MANIFEST_ENTRIES`].
    #[error("manifest of {0} entries is over the limit of {MAX_MANIFEST_ENTRIES}")]
    TooManyEntries(usize),
    /// Not CBOR of the expected shape, or a path that leaves its root.
    #[error("manifest cannot be read: {0}")]
    Malformed(#[from] minicbor::decode::Error),
}

impl Manifest {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let rows = self.dirs.len() + self.entries.len();
        let mut out = Vec::with_capacity((rows * TYPICAL_ENTRY_BYTES).min(MAX_MANIFEST_BYTES));
        // Encoding into a Vec can't fail: its error type is `Infallible`.
        let _ = minicbor::encode(self, &mut out);
        out
    }

    /// Reads what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// Bytes over the limits or of another shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooManyBytes(bytes.len()));
        }
        let manifest: Manifest = minicbor::decode(bytes)?;
        if manifest.entries.len() > MAX_MANIFEST_ENTRIES {
            return Err(ManifestError::TooManyEntries(manifest.entries.len()));
        }
        Ok(manifest)
    }

    /// Content bytes of all entries.
    pub fn content_bytes(&self) -> u64 {
        self.entries.iter().map(Entry::size).sum()
    }

    /// Directories among the entries.
    pub fn dir_count(&self) -> u64 {
        self.entries.iter().filter(|e| e.is_dir()).count() as u64
    }

    /// A manifest of some of the entries, with just the directories that they need.
    pub fn subset(&self, keep: impl Fn(&Entry) -> bool) -> Manifest {
        let entries: Vec<Entry> = self.entries.iter().filter(|e| keep(e)).cloned().collect();
        let dirs = self
            .dirs
            .iter()
            .filter(|d| entries.iter().any(|e| d.path != e.path && d.path.contains(&e.path)))
            .cloned()
            .collect();
        Manifest { dirs, entries }
    }
}

/// A path; one that leaves its root is not read.
pub(crate) mod cbor_path {
    use super::RelPath;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        path: &RelPath,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(path.as_bytes())?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<RelPath, DecodeError> {
        let at = d.position();
        RelPath::new(d.bytes()?).map_err(|e| DecodeError::message(e.to_string()).at(at))
    }
}

/// A path that may be missing.
pub(super) mod cbor_path_option {
    use super::RelPath;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(in crate::wire) fn encode<C, W: Write>(
        path: &Option<RelPath>,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match path {
            Some(path) => super::cbor_path::encode(path, e, c),
            None => e.null()?.ok(),
        }
    }

    pub(in crate::wire) fn decode<C>(
        d: &mut Decoder<'_>,
        c: &mut C,
    ) -> Result<Option<RelPath>, DecodeError> {
        if d.datatype()? == minicbor::data::Type::Null {
            return d.null().map(|()| None);
        }
        super::cbor_path::decode(d, c).map(Some)
    }
}

/// A list of names given by the operator (`file_list`), one part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct FileListPart {
    /// Below the source root, in the order given.
    #[cbor(n(0), with = "cbor_paths")]
    pub paths: Vec<RelPath>,
}

impl FileListPart {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`FileListPart::encode`] wrote.
    ///
    /// # Errors
    /// Bytes of another shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        Ok(minicbor::decode(bytes)?)
    }
}

pub(crate) mod cbor_paths {
    use super::{RelPath, cbor_path};
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        names: &[RelPath],
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(names.len() as u64)?;
        names.iter().try_for_each(|n| cbor_path::encode(n, e, c))
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, c: &mut C) -> Result<Vec<RelPath>, DecodeError> {
        let len = d.array()?.ok_or_else(|| DecodeError::message("a list of known length"))?;
        // Grows as names arrive: a length that lies costs nothing.
        let mut names = Vec::new();
        for _ in 0..len {
            names.push(cbor_path::decode(d, c)?);
        }
        Ok(names)
    }
}

/// Merges the chaining values of equal, power-of-two ranges (the last one may be shorter) into the
/// BLAKE3 digest of the whole file: what `b3sum` prints. Ranges are in order; `None` where fewer than
/// two are given (a file of one range has no chaining value, only a digest).
///
/// Source: the BLAKE3 paper, section 2.1 (left subtrees are full), and `blake3::hazmat`.
pub fn merge_ranges(values: &[Digest]) -> Option<Digest> {
    if values.len() < 2 {
        return None;
    }
    let (left, right) = values.split_at(left_subtree_len(values.len()));
    let (left, right) = (merge_blocks(left)?, merge_blocks(right)?);
    Some(merge_subtrees_root(&left.0, &right.0, Mode::Hash).into())
}

/// Merges the chaining values of equal, power-of-two blocks (the last one may be shorter) into the
/// chaining value of the range that they make up; the same of values without zeros
/// ([`content`](super::content)). Blocks are in order; `None` where there is none.
pub fn merge_blocks(values: &[Digest]) -> Option<Digest> {
    if let [] | [_] = values {
        return values.first().copied();
    }
    let (left, right) = values.split_at(left_subtree_len(values.len()));
    Some(merge_subtrees(&merge_blocks(left)?, &merge_blocks(right)?))
}

/// The largest power of two that leaves something for the right.
fn left_subtree_len(n: usize) -> usize {
    n.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake3::hazmat::HasherExt as _;
    use proptest::prelude::*;

    fn meta() -> Meta {
        Meta { mode: 0o640, uid: 1, gid: 2, mtime_sec: -5, mtime_nsec: 999_999_999 }
    }

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry::new(RelPath::new(path).unwrap(), kind, meta(), FileVersion::default())
    }

    #[test]
    fn a_manifest_round_trips() {
        let manifest = Manifest {
            dirs: vec![ManifestDir { path: RelPath::root(), meta: meta() }],
            entries: vec![
                entry(b"a\xff\n", EntryKind::File { size: u64::MAX }),
                entry(b"d", EntryKind::Dir),
                entry(b"l", EntryKind::Symlink { target: b"../../etc".to_vec() }),
                entry(b"f", EntryKind::Special { format: 0o010000, rdev: 7 }),
            ],
        };
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_path_outside_its_root_is_rejected() {
        let mut bytes =
            Manifest { dirs: vec![], entries: vec![entry(b"ab", EntryKind::Dir)] }.encode();
        let at = bytes.windows(2).position(|w| w == b"ab").unwrap();
        bytes[at..at + 2].copy_from_slice(b"..");
        assert!(Manifest::decode(&bytes).is_err());
    }

    #[test]
    fn a_subset_keeps_the_parent_directories_of_its_entries() {
        let dir = |p: &str| ManifestDir { path: RelPath::new(p).unwrap(), meta: meta() };
        let manifest = Manifest {
            dirs: vec![dir(""), dir("a"), dir("a/b"), dir("c")],
            entries: vec![entry(b"a/b/x", EntryKind::Dir), entry(b"c/y", EntryKind::Dir)],
        };
        let some = manifest.subset(|e| e.path.as_bytes() == b"a/b/x");
        assert_eq!(some.dirs, [dir(""), dir("a"), dir("a/b")]);
        assert_eq!(some.entries.len(), 1);
    }

    proptest! {
        #[test]
        fn merged_ranges_give_the_blake3_digest(len in 2049usize..40_000, power in 0u32..3, seed: u8) {
            let range = 1024usize << power;
            prop_assume!(len > range);
            let content: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let values: Vec<Digest> = content.chunks(range).enumerate().map(|(i, part)| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset((i * range) as u64);
                hasher.update(part);
                Digest(hasher.finalize_non_root())
            }).collect();
            prop_assert_eq!(merge_ranges(&values), Some(blake3::hash(&content).into()));
        }

        #[test]
        fn merged_blocks_give_the_chaining_value_of_their_range(
            len in 1usize..40_000,
            power in 0u32..3,
            first in 0u64..5,
            seed: u8,
        ) {
            let block = 1024usize << power;
            let content: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let value = |offset: u64, part: &[u8]| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(offset);
                hasher.update(part);
                Digest(hasher.finalize_non_root())
            };
            // A range that begins where such a range of a file may.
            let offset = first << 16;
            let blocks = content.chunks(block).enumerate();
            let values: Vec<Digest> =
                blocks.map(|(i, part)| value(offset + (i * block) as u64, part)).collect();
            prop_assert_eq!(merge_blocks(&values), Some(value(offset, &content)));
        }

        #[test]
        fn an_edited_manifest_is_rejected_or_round_trips(edits in crate::wire::fuzz::any_edits()) {
            let real = Some(RelPath::new("real").unwrap());
            let manifest = Manifest {
                dirs: vec![ManifestDir { path: RelPath::new("a").unwrap(), meta: meta() }],
                entries: vec![
                    Entry { content_path: real, is_hardlinked: true, ..entry(b"a/f", EntryKind::File { size: 7 }) },
                    entry(b"l", EntryKind::Symlink { target: b"../x".to_vec() }),
                ],
            };
            let names = FileListPart { paths: vec![RelPath::new("a/f").unwrap(), RelPath::new("l").unwrap()] };
            if let Ok(read) = Manifest::decode(&crate::wire::fuzz::apply_edits(&manifest.encode(), &edits)) {
                prop_assert_eq!(Manifest::decode(&read.encode()).unwrap(), read);
            }
            if let Ok(read) = FileListPart::decode(&crate::wire::fuzz::apply_edits(&names.encode(), &edits)) {
                prop_assert_eq!(FileListPart::decode(&read.encode()).unwrap(), read);
            }
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = FileListPart::decode(&bytes);
            let _ = Manifest::decode(&bytes);
            let _ = FileListPart::decode(&bytes);
        }
    }
}
