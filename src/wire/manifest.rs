//! The entries of a batch, in CBOR with numbered fields (RFC 8949): written by the agent that scans,
//! stored by the master without decoding, read by the agents that copy.

use super::{Digest, RelPath};
use minicbor::{Decode, Encode};

/// The maximum number of entries of one manifest.
pub const MAX_MANIFEST_ENTRIES: usize = 4096;
/// The maximum length of an encoded manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// The typical length of an encoded entry, in bytes: a short name, no attributes.
const TYPICAL_ENTRY_BYTES: usize = 96;

/// A batch: its directories once, its entries by reference to them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Manifest {
    /// Every directory that contains an entry of this batch, and all directories above those up to the
    /// root, each with its final metadata; parents before children. A batch restores the metadata of the directories
    /// that it wrote into.
    #[n(0)]
    pub dirs: Vec<ManifestDir>,
    /// In the order of the scan.
    #[n(1)]
    pub entries: Vec<Entry>,
}

/// A directory above the entries of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ManifestDir {
    /// Below the root of the sync; empty for the root.
    #[n(0)]
    pub path: RelPath,
    /// The final metadata.
    #[n(1)]
    pub meta: Meta,
}

/// One file, directory, link or special file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Below the root of the sync; empty for the root itself (a source that is a file, or the root
    /// directory's own metadata).
    #[n(0)]
    pub path: RelPath,
    /// The file type.
    #[n(1)]
    pub kind: EntryKind,
    /// Mode, owner, time.
    #[n(2)]
    pub meta: Meta,
    /// The version of the source file.
    #[n(3)]
    pub version: FileVersion,
    /// Extended attributes and ACLs to preserve, sorted by name.
    #[n(4)]
    pub xattrs: Vec<Xattr>,
    /// The source file has several names (of the same [`FileVersion`]), which become hard links of one file at the
    /// destination.
    #[n(5)]
    pub is_hardlinked: bool,
    /// The BLAKE3 digest of the content; present if content is compared and the source was read.
    #[n(6)]
    pub digest: Option<Digest>,
    /// The path of the content below the storage root of the source, for an entry that was reached through a followed
    /// link.
    #[n(7)]
    pub content_path: Option<RelPath>,
    /// Of a file with holes to preserve: its allocated size or the length of its data, in bytes. Not encoded.
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

/// The file type of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EntryKind {
    /// A regular file.
    #[n(0)]
    File {
        /// Length in bytes.
        #[n(0)]
        size: u64,
    },
    /// A directory.
    #[n(1)]
    Dir,
    /// A symbolic link.
    #[n(2)]
    Symlink {
        /// The text of the link; it is never followed.
        #[cbor(n(0), with = "minicbor::bytes")]
        target: Vec<u8>,
    },
    /// A FIFO, socket or device.
    #[n(3)]
    Special {
        /// The `S_IFMT` bits of the mode.
        #[n(0)]
        format: u32,
        /// The device number of a device.
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

/// Distinguishes versions of a source file, in addition to size and mtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct FileVersion {
    /// Device number on the host that scanned the file; 0: the device of the source root.
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
    /// An entry without extended attributes, hard links or a digest.
    pub fn new(path: RelPath, kind: EntryKind, meta: Meta, version: FileVersion) -> Self {
        Entry {
            path,
            kind,
            meta,
            version,
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

    /// Whether the entry is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == EntryKind::Dir
    }

    /// The generation of a part file. It changes with the identity of the source, so one part file never contains ranges
    /// of two versions. Device numbers are excluded, because hosts may have different ones for one file system.
    pub fn part_generation(&self) -> u64 {
        self.hash_identity("longhaul 2026 part file generation", 0)
    }

    /// Equal for all names of one file, and different for every other file, including one with the same inode
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
        u64::from_le_bytes(Digest::from(hasher.finalize()).prefix())
    }
}

/// The reason why bytes are not a valid manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is over the limit of {MAX_MANIFEST_BYTES}")]
    TooManyBytes(usize),
    /// Over [`MAX_MANIFEST_ENTRIES`].
    #[error("manifest of {0} entries is over the limit of {MAX_MANIFEST_ENTRIES}")]
    TooManyEntries(usize),
    /// Invalid CBOR, or a path that leaves its root.
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

    /// Decodes the result of [`Manifest::encode`].
    ///
    /// # Errors
    /// Bytes over the limits or invalid CBOR.
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

    /// A manifest of some of the entries, with only the parent directories of these.
    #[cfg(test)]
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

/// One part of the list of files of a request (`file_list`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct FileListPart {
    /// Below the source root, in the order given.
    #[n(0)]
    pub paths: Vec<RelPath>,
}

impl FileListPart {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Decodes the result of [`FileListPart::encode`].
    ///
    /// # Errors
    /// Invalid CBOR, or a path that leaves its root.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        Ok(minicbor::decode(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
