//! Messages between two agents, beside content: verbs, limits, and the replies in CBOR with
//! numbered fields (RFC 8949).
//!
//! Names never come from a reply: replies speak of entries by their place in the request.

use crate::fs::OfferDecision;
use crate::wire::entry_report::{EntryWarning, EntryWarnings};
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::outcome::{EntryError, sanitize_text};
use crate::wire::ticket::Verb;
use crate::wire::{BytePath, Digest, RelPath};
use minicbor::{Decode, Encode};
use std::fmt;
use std::time::Duration;

/// Compare a manifest with what is there, and make all that needs no content.
pub const OFFER: &str = "/v1/offer";
/// The upgrade to a stream ([`content_server`](super::content_server)); needs no ticket, requests on it do.
pub const STREAM: &str = "/v1/stream";
/// Many files with their content; requested on a stream.
pub const PACK: &str = "/v1/pack";
/// A byte range of one large file; requested on a stream.
pub const RANGE: &str = "/v1/range";
/// Block values of what is there of a file.
pub const BLOCK_DIGESTS: &str = "/v1/block-digests";
/// Find (and remove) what the source does not have.
pub const PRUNE: &str = "/v1/prune";
/// Remove what was kept to find the names of one file.
pub const CLEAN_UP: &str = "/v1/clean-up";
/// Whether the root of a destination can be written.
pub const ROOT_CHECK: &str = "/v1/root-check";
/// Whether an agent is there; needs no ticket.
pub const PROBE: &str = "/v1/probe";
/// The request with this path, if it needs a ticket.
pub fn verb_of(path: &str) -> Option<Verb> {
    Some(match path {
        OFFER => Verb::Offer,
        PACK => Verb::Pack,
        RANGE => Verb::Range,
        BLOCK_DIGESTS => Verb::BlockDigests,
        PRUNE => Verb::Prune,
        CLEAN_UP => Verb::CleanUp,
        ROOT_CHECK => Verb::RootCheck,
        _ => return None,
    })
}

/// What a connection is upgraded to.
pub const UPGRADE_PROTOCOL: &str = "longhaul-frames-1";
/// The header of a request for a stream, and of its response, where each side allows it: the content of large files is not
/// encrypted.
pub const CONTENT_HEADER: &str = "longhaul-content";
/// Its only value.
pub const CLEAR_CONTENT: &str = "clear";
/// The request header that carries the ticket.
pub const TICKET_HEADER: &str = "x-longhaul-ticket";

/// The kind and the length before the payload of a frame.
pub const FRAME_HEADER_BYTES: usize = 5;
/// The longest content frame, and the size of the pooled buffers, in bytes.
pub const MAX_CONTENT_FRAME_BYTES: usize = 1 << 20;
/// The longest reply that a sender accepts, in bytes: a fault for each of the entries of a manifest.
pub const MAX_REPLY_BYTES: usize = 16 << 20;
/// A transfer that moves less than [`MIN_PROGRESS_BYTES`] in this much waiting time fails.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(90);
/// See [`STALL_TIMEOUT`].
pub const MIN_PROGRESS_BYTES: u64 = 4096;

/// A directory that could not get its metadata back after a write into it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct IndexedDirError {
    /// Its place in the directory table of the request.
    #[n(0)]
    pub dir: u32,
    /// Why.
    #[n(1)]
    pub error: EntryError,
}

/// The digest of a file that is there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EntryDigest {
    /// The place of its entry in the request.
    #[n(0)]
    pub entry: u32,
    /// Of its content.
    #[n(1)]
    pub digest: Digest,
}

/// An [`EntryWarning`] without paths.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct IndexedWarning {
    /// What the destination could not hold, and why.
    #[n(0)]
    pub cause: String,
    /// Of how many entries.
    #[n(1)]
    pub count: u64,
    /// The places of some of them among the entries (the files of a pack) of the request …
    #[n(2)]
    pub entries: Vec<u32>,
    /// … and in its directory table; together at most [`EntryWarning::MAX_PATHS`].
    #[n(3)]
    pub dirs: Vec<u32>,
}

/// Maximum number of causes in a reply.
const MAX_WARNINGS: usize = 64;

/// Where `path` is in the directory table `dirs`.
pub fn dir_index(dirs: &[ManifestDir], path: &BytePath) -> Option<u32> {
    let place = dirs.iter().position(|dir| dir.path.as_bytes() == path.0)?;
    Some(place as u32)
}

/// Encodes `warnings` for the reply to a request for `entries` below `dirs`.
pub fn index_warnings<'a>(
    warnings: EntryWarnings,
    entries: impl Iterator<Item = &'a RelPath> + Clone,
    dirs: &[ManifestDir],
) -> Vec<IndexedWarning> {
    let indexed = warnings.into_iter().take(MAX_WARNINGS).map(|(cause, warning)| {
        let mut indexed =
            IndexedWarning { cause, count: warning.count, entries: Vec::new(), dirs: Vec::new() };
        for path in warning.paths.iter().take(EntryWarning::MAX_PATHS) {
            match entries.clone().position(|entry| entry.as_bytes() == path.0) {
                Some(place) => indexed.entries.push(place as u32),
                None => indexed.dirs.extend(dir_index(dirs, path)),
            }
        }
        indexed
    });
    indexed.collect()
}

/// Decodes the warnings of a reply to a request for `entries` below `dirs`.
///
/// # Errors
/// A message: an index of nothing that was sent, or too many.
pub fn resolve_warnings(
    all: Vec<IndexedWarning>,
    entries: &[&Entry],
    dirs: &[ManifestDir],
) -> Result<EntryWarnings, String> {
    if all.len() > MAX_WARNINGS {
        return Err(format!("{} causes are over the limit of {MAX_WARNINGS}", all.len()));
    }
    let mut warnings = EntryWarnings::new();
    for one in all {
        if one.entries.len() + one.dirs.len() > EntryWarning::MAX_PATHS {
            return Err("a note names more entries than it may".to_owned());
        }
        let mut warning = EntryWarning { count: one.count, paths: Vec::new() };
        for i in one.entries {
            let entry = entries.get(i as usize).ok_or("a note names an entry that was not sent")?;
            warning.paths.push(BytePath(entry.path.as_bytes().to_vec()));
        }
        for i in one.dirs {
            let dir = dirs.get(i as usize).ok_or("a note names a directory that was not sent")?;
            warning.paths.push(BytePath(dir.path.as_bytes().to_vec()));
        }
        warnings.entry(sanitize_text(&one.cause)).or_default().merge(warning);
    }
    Ok(warnings)
}

/// The reply to an offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct OfferReply {
    /// One for each entry, in order.
    #[n(0)]
    pub results: Vec<Result<OfferDecision, EntryError>>,
    /// Directories without their metadata.
    #[n(1)]
    pub dir_errors: Vec<IndexedDirError>,
    /// Of existing files, where the ticket requires it.
    #[n(2)]
    pub digests: Vec<EntryDigest>,
    /// What the destination could not hold.
    #[n(3)]
    pub warnings: Vec<IndexedWarning>,
    /// The destination keeps something for the names of one file.
    #[n(4)]
    pub needs_clean_up: bool,
    /// Directories of the batch, by their place in it, that are new and that no entry of it is about.
    #[n(5)]
    pub created_dirs: Vec<u32>,
}

/// The outcome of a file or range that was sent with content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum WriteOutcome {
    /// It is at its place, and its bytes were those that the sender hashed.
    #[n(0)]
    Written,
    /// The bytes that arrived are not those that the sender hashed; nothing was kept.
    #[n(1)]
    Mismatch,
    /// The sender cancelled it; nothing was kept.
    #[n(2)]
    Aborted,
    /// The destination could not keep it.
    #[n(3)]
    Failed(#[n(0)] EntryError),
}

/// The reply to a pack.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct PackReply {
    /// One for each file, in the order of their frames.
    #[n(0)]
    pub files: Vec<WriteOutcome>,
    /// Directories without their metadata.
    #[n(1)]
    pub dir_errors: Vec<IndexedDirError>,
    /// What the destination could not hold.
    #[n(2)]
    pub warnings: Vec<IndexedWarning>,
    /// The destination keeps something for the names of one file.
    #[n(3)]
    pub needs_clean_up: bool,
}

/// The reply to a range.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RangeReply {
    /// What became of it.
    #[n(0)]
    pub outcome: WriteOutcome,
}

/// What a range request begins with.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RangeHead {
    /// The directories above the file and the file, its only entry.
    #[n(0)]
    pub manifest: Manifest,
    /// Where the range starts; a multiple of 1 KiB.
    #[n(1)]
    pub offset: u64,
    /// Its length; not 0, and no more than the BLAKE3 subtree at `offset` holds.
    #[n(2)]
    pub length: u64,
    /// Whether all of it follows as content: then its space is reserved first.
    #[n(3)]
    pub is_dense: bool,
}

impl RangeHead {
    /// The file.
    ///
    /// # Errors
    /// A message: the range can't be hashed and written on its own.
    pub fn validate(&self) -> Result<&Entry, String> {
        entry_of_range(&self.manifest, self.offset, self.length)
    }
}

/// The only file of `manifest`, provided that it has this range.
///
/// # Errors
/// A message.
pub fn entry_of_range(manifest: &Manifest, offset: u64, length: u64) -> Result<&Entry, String> {
    let [entry] = manifest.entries.as_slice() else {
        return Err(format!("a range is of one file, not of {}", manifest.entries.len()));
    };
    let EntryKind::File { size } = entry.kind else {
        return Err("a range is of a regular file".to_owned());
    };
    validate_range(offset, length, size).map(|()| entry)
}

/// Whether `[offset, offset + length)` is a range of a file of `size` bytes that has a chaining value
/// (`blake3::hazmat` panics on others).
///
/// # Errors
/// A message.
pub fn validate_range(offset: u64, length: u64, size: u64) -> Result<(), String> {
    let fits = length > 0
        && offset.is_multiple_of(blake3::CHUNK_LEN as u64)
        && offset.checked_add(length).is_some_and(|end| end <= size)
        && blake3::hazmat::max_subtree_len(offset).is_none_or(|max| length <= max);
    if fits {
        return Ok(());
    }
    Err(format!("{length} bytes at {offset} are not within a file of {size} bytes"))
}

/// The next request on a stream.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct ContentRequest {
    /// [`PACK`] or [`RANGE`].
    #[n(0)]
    pub verb: String,
    /// The ticket that allows it.
    #[n(1)]
    pub ticket: String,
}

/// Without the ticket, which its holder may use.
impl fmt::Debug for ContentRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentRequest({:?})", self.verb)
    }
}

/// A directory table, as a pack begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct DirTable {
    /// Parents before children.
    #[n(0)]
    pub dirs: Vec<ManifestDir>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::entry_report::EntryAction;
    use crate::wire::outcome::Side;
    use crate::wire::worker::PROTOCOL_VERSION;
    use proptest::prelude::*;

    #[test]
    fn paths_and_upgrade_carry_the_protocol_version() {
        let prefix = format!("/v{PROTOCOL_VERSION}/");
        for path in [OFFER, STREAM, PACK, RANGE, BLOCK_DIGESTS, PRUNE, CLEAN_UP, ROOT_CHECK, PROBE]
        {
            assert!(path.starts_with(&prefix), "{path}");
        }
        let upgrade = format!("longhaul-frames-{PROTOCOL_VERSION}");
        assert_eq!(UPGRADE_PROTOCOL, upgrade);
    }

    #[test]
    fn replies_round_trip() {
        let fault = EntryError::new(b"", Side::Destination, "write", "no space");
        let offer = OfferReply {
            results: vec![
                Ok(OfferDecision::Done(EntryAction::Skip)),
                Ok(OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true }),
                Ok(OfferDecision::NeedsDigest),
                Err(fault.clone()),
            ],
            dir_errors: vec![IndexedDirError { dir: 3, error: fault.clone() }],
            digests: vec![EntryDigest { entry: 1, digest: Digest([1; 32]) }],
            warnings: vec![IndexedWarning {
                cause: "owner not set".into(),
                count: 12,
                entries: vec![2],
                dirs: vec![0],
            }],
            needs_clean_up: true,
            created_dirs: vec![0, 2],
        };
        let bytes = minicbor::to_vec(&offer).unwrap();
        assert_eq!(minicbor::decode::<OfferReply>(&bytes).unwrap(), offer);
        let pack = PackReply {
            files: vec![
                WriteOutcome::Written,
                WriteOutcome::Mismatch,
                WriteOutcome::Aborted,
                WriteOutcome::Failed(fault),
            ],
            ..PackReply::default()
        };
        let bytes = minicbor::to_vec(&pack).unwrap();
        assert_eq!(minicbor::decode::<PackReply>(&bytes).unwrap(), pack);
    }

    #[test]
    fn warnings_resolve_to_paths_of_the_request_only() {
        let meta =
            crate::wire::manifest::Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        let path = RelPath::new("d/f").unwrap();
        let entry = Entry::new(path, EntryKind::Dir, meta, Default::default());
        let dirs = [ManifestDir { path: RelPath::root(), meta }];
        let mut warnings = EntryWarnings::new();
        warnings.entry("owner not set".into()).or_default().add(b"d/f");
        warnings.entry("owner not set".into()).or_default().add(b"");
        warnings.entry("owner not set".into()).or_default().add(b"not sent");
        let indexed = index_warnings(warnings, [&entry.path].into_iter(), &dirs);
        let read = |indexed: Vec<IndexedWarning>| resolve_warnings(indexed, &[&entry], &dirs);
        let warning = read(indexed.clone()).unwrap().remove("owner not set").unwrap();
        assert_eq!(warning.count, 3);
        assert_eq!(warning.paths, [BytePath(b"d/f".to_vec()), BytePath(vec![])]);
        let with = |entries, dirs| vec![IndexedWarning { entries, dirs, ..indexed[0].clone() }];
        assert!(read(with(vec![1], vec![])).is_err());
        assert!(read(with(vec![], vec![1])).is_err());
        assert!(read(with(vec![0; EntryWarning::MAX_PATHS], vec![0])).is_err());
        assert!(read(vec![indexed[0].clone(); MAX_WARNINGS + 1]).is_err());
        let escape = IndexedWarning { cause: "\x1b[2J".into(), ..indexed[0].clone() };
        assert!(read(vec![escape]).unwrap().contains_key("\\#033[2J"));
    }

    #[test]
    fn indexed_warnings_count_all_and_list_a_limited_number_of_entries() {
        let meta =
            crate::wire::manifest::Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        let path = |i: usize| RelPath::new(format!("{i:02}")).unwrap();
        let entries: Vec<RelPath> = (0..20).map(path).collect();
        let dirs: Vec<_> = (20..40).map(|i| ManifestDir { path: path(i), meta }).collect();
        let indexed = |order: &[usize]| {
            let mut warnings = EntryWarnings::new();
            for i in order {
                warnings.entry("mode not set".into()).or_default().add(path(*i).as_bytes());
            }
            let indexed = index_warnings(warnings, entries.iter(), &dirs).remove(0);
            assert_eq!(indexed.count, order.len() as u64);
            (indexed.entries, indexed.dirs)
        };
        let first: Vec<u32> = (0..EntryWarning::MAX_PATHS as u32).collect();
        let all: Vec<usize> = (0..40).collect();
        assert_eq!(indexed(&all), (first.clone(), vec![]));
        assert_eq!(indexed(&all[20..]), (vec![], first));
        let mixed = [20, 21, 22, 23, 0, 1, 2, 3, 4, 24, 5, 25];
        assert_eq!(indexed(&mixed), (vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn only_ranges_that_can_be_hashed_alone_are_valid() {
        let mib = 1 << 20;
        assert!(validate_range(0, mib, 3 * mib).is_ok());
        assert!(validate_range(2 * mib, mib, 3 * mib).is_ok());
        assert!(validate_range(mib, 1, mib + 1).is_ok());
        for (offset, length, size) in [
            (0, 0, mib),
            (1, 10, mib),
            (mib, 2 * mib, 9 * mib),
            (2 * mib, mib + 1, 3 * mib),
            (u64::MAX - 1023, 1024, u64::MAX),
        ] {
            assert!(validate_range(offset, length, size).is_err(), "{offset} {length} {size}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = minicbor::decode::<OfferReply>(&bytes);
            let _ = minicbor::decode::<PackReply>(&bytes);
            let _ = minicbor::decode::<RangeReply>(&bytes);
            let _ = minicbor::decode::<RangeHead>(&bytes);
        }

        #[test]
        fn mutated_replies_decode_without_a_panic(edits in crate::wire::fuzz::any_edits()) {
            let other = |right: Vec<u8>| crate::wire::fuzz::apply_edits(&right, &edits);
            let failed = || EntryError::new(b"", Side::Destination, "write", "no room");
            let results = vec![Ok(OfferDecision::NeedsDigest), Err(failed())];
            let digests = vec![EntryDigest { entry: 0, digest: Digest([1; 32]) }];
            let unstamped = vec![IndexedDirError { dir: 0, error: failed() }];
            let offer = OfferReply { results, digests, dir_errors: unstamped, ..OfferReply::default() };
            let _ = minicbor::decode::<OfferReply>(&other(minicbor::to_vec(&offer).unwrap()));
            let files = vec![WriteOutcome::Written, WriteOutcome::Mismatch, WriteOutcome::Failed(failed())];
            let pack = PackReply { files, ..PackReply::default() };
            let _ = minicbor::decode::<PackReply>(&other(minicbor::to_vec(&pack).unwrap()));
            let manifest = Manifest::default();
            let head = RangeHead { manifest, offset: 0, length: 1024, is_dense: true };
            let bytes = other(minicbor::to_vec(&head).unwrap());
            let _ = minicbor::decode::<RangeHead>(&bytes).map(|head| head.validate().is_ok());
        }

        #[test]
        fn a_valid_range_can_be_hashed(offset: u64, length in 0u64..4096, size: u64) {
            use blake3::hazmat::HasherExt as _;
            if validate_range(offset, length, size).is_ok() {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(offset);
                hasher.update(&vec![0; length as usize]);
                hasher.finalize_non_root();
            }
        }
    }
}
