//! The options of a sync: preserved attributes, comparison, filter, deletion, verification. All have defaults, and
//! the default sync preserves all attributes, compares size and time, and deletes nothing.

use super::content::HashMode;
use super::preserve::Preserve;
use super::text_enum::text_enum;
use super::{RelPath, is_default};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The maximum of [`SyncOptions::mtime_tolerance_ns`]. No file system rounds times by more than some seconds.
pub const MAX_MTIME_TOLERANCE: Duration = Duration::from_secs(3600);

/// `options` of `POST /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncOptions {
    /// The preserved attributes of each entry.
    #[serde(skip_serializing_if = "Preserve::is_all")]
    pub preserve: Preserve,
    /// All entries get this owner, this group, or both.
    #[serde(skip_serializing_if = "is_default")]
    pub chown: Chown,
    /// The treatment of symbolic links.
    #[serde(skip_serializing_if = "is_default")]
    pub links: Links,
    /// Long runs of zeros become holes at the destination, also if the source has no holes there.
    #[serde(skip_serializing_if = "is_default")]
    pub punch_zeros: bool,
    /// An entry fails if the destination can't store its metadata; by default this is a warning.
    #[serde(skip_serializing_if = "is_default")]
    pub strict_metadata: bool,
    /// The criterion for an equal file at the destination.
    #[serde(skip_serializing_if = "is_default")]
    pub compare: Compare,
    /// The maximum difference of equal modification times, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub mtime_tolerance_ns: u64,
    /// Files that are newer at the destination are skipped.
    #[serde(skip_serializing_if = "is_default")]
    pub update: bool,
    /// Files that exist at the destination are skipped.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_existing: bool,
    /// Entries that do not exist at the destination are skipped.
    #[serde(skip_serializing_if = "is_default")]
    pub existing: bool,
    /// Changed large files are sent completely, without a comparison of blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub whole_file: bool,
    /// Content is copied even if source and destination could share it (`"clone": false`).
    #[serde(rename = "clone", with = "inverted_bool", skip_serializing_if = "is_default")]
    pub no_clone: bool,
    /// Excludes entries of the source.
    #[serde(skip_serializing_if = "is_default")]
    pub filter: FilterSpec,
    /// Directories in `file_list` are copied with their contents.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive: bool,
    /// Compare and report, change nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// Record the outcome of each file (`GET /sync/{id}/files`).
    #[serde(skip_serializing_if = "is_default")]
    pub record: bool,
    /// Record the BLAKE3 digest of each file (`GET /sync/{id}/manifest`).
    #[serde(skip_serializing_if = "is_default")]
    pub manifest: bool,
    /// The verification of content.
    #[serde(skip_serializing_if = "is_default")]
    pub verify: Verify,
    /// Make the destination a mirror: delete entries that the source lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete: Option<DeleteOptions>,
    /// Do not wait for earlier syncs that read or write the same paths and are not mirrors. Only the master uses it.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_overlap: bool,
    /// Reject the sync if no active worker serves its source or destination, instead of queueing it. It is not stored with
    /// the sync.
    #[serde(skip_serializing_if = "is_default")]
    pub no_queue: bool,
}

/// For a field with the opposite meaning on the wire.
mod inverted_bool {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(no: &bool, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bool(!no)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
        bool::deserialize(d).map(|yes| !yes)
    }
}

impl SyncOptions {
    /// Whether all options have their defaults.
    pub fn is_default(&self) -> bool {
        is_default(self)
    }

    /// The part of the options that the ticket carries to the destination.
    pub fn write_rules(&self) -> WriteRules {
        WriteRules {
            preserve: self.preserve,
            chown: self.chown,
            punch_zeros: self.punch_zeros,
            strict_metadata: self.strict_metadata,
            compare: self.compare,
            mtime_tolerance_ns: self.mtime_tolerance_ns,
            update: self.update,
            ignore_existing: self.ignore_existing,
            existing: self.existing,
            dry_run: self.dry_run,
            returns_digests: self.manifest,
            requires_digest: self.verify != Verify::None,
            readback: false,
            delete: self.delete.is_some(),
            trash: self.delete.as_ref().and_then(|d| d.trash.clone()),
            part_name_key: PartNameKey::default(),
            chunk_bytes: MAX_CHUNK_BYTES,
        }
    }
}

/// The part of the options that applies at the destination. It is signed with the ticket, so an agent can't
/// request more from another one (a deletion, for example) than the operator requested.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WriteRules {
    /// See [`SyncOptions::preserve`].
    #[n(0)]
    pub preserve: Preserve,
    /// See [`SyncOptions::chown`].
    #[n(1)]
    pub chown: Chown,
    /// See [`SyncOptions::punch_zeros`].
    #[n(2)]
    pub punch_zeros: bool,
    /// See [`SyncOptions::strict_metadata`].
    #[n(3)]
    pub strict_metadata: bool,
    /// See [`SyncOptions::compare`].
    #[n(4)]
    pub compare: Compare,
    /// See [`SyncOptions::mtime_tolerance_ns`].
    #[n(5)]
    pub mtime_tolerance_ns: u64,
    /// See [`SyncOptions::update`].
    #[n(6)]
    pub update: bool,
    /// See [`SyncOptions::ignore_existing`].
    #[n(7)]
    pub ignore_existing: bool,
    /// See [`SyncOptions::existing`].
    #[n(8)]
    pub existing: bool,
    /// No change is allowed.
    #[n(9)]
    pub dry_run: bool,
    /// Replies contain the digest of each file that exists already.
    #[n(10)]
    pub returns_digests: bool,
    /// Content without a digest is rejected.
    #[n(11)]
    pub requires_digest: bool,
    /// Content is read from the disk, not from the page cache (the second pass of [`Verify::Readback`]).
    #[n(12)]
    pub readback: bool,
    /// Deletions are allowed.
    #[n(13)]
    pub delete: bool,
    /// Entries are moved there instead of being deleted; below the destination root.
    #[n(14)]
    pub trash: Option<RelPath>,
    /// See [`PartNameKey`].
    #[n(15)]
    pub part_name_key: PartNameKey,
    /// The chunk size of the sync, in bytes. It limits the range without holes that one request writes and
    /// preallocates ([`range_length`](super::task::range_length)).
    #[n(16)]
    pub chunk_bytes: u64,
}

/// The maximum chunk size of a sync, in bytes.
const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// A secret of an installation. The names of unfinished files are derived from it: they are equal on all agents and in
/// all attempts, and not predictable for local users of a storage host.
#[derive(Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct PartNameKey(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl std::fmt::Debug for PartNameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PartNameKey(…)")
    }
}

impl WriteRules {
    /// The mode for comparison and verification. Zeros are hashed only if digests are returned.
    pub fn hash_mode(&self) -> HashMode {
        if self.returns_digests { HashMode::Full } else { HashMode::SkipZeros }
    }

    /// The mode of the sender, if the destination verifies content or the digest is returned.
    pub fn sender_hash_mode(&self) -> Option<HashMode> {
        (self.requires_digest || self.returns_digests).then(|| self.hash_mode())
    }

    /// The mode of the destination, if it verifies content.
    pub fn receiver_hash_mode(&self) -> Option<HashMode> {
        self.requires_digest.then(|| self.hash_mode())
    }
}

impl Default for WriteRules {
    fn default() -> Self {
        SyncOptions::default().write_rules()
    }
}

/// See [`SyncOptions::chown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(default, deny_unknown_fields)]
pub struct Chown {
    /// The numeric owner.
    #[n(0)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The numeric group.
    #[n(1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

text_enum! {
    /// See [`SyncOptions::links`].
    #[derive(Default)]
    pub enum Links {
        /// Links are copied unchanged.
        #[default]
        Keep = "keep",
        /// Their targets are copied instead; these must be below the storage path of the agent.
        Copy = "copy",
        /// Links are excluded, with a warning.
        Skip = "skip",
    }
}

/// See [`SyncOptions::compare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Equal size and modification time.
    #[default]
    #[n(0)]
    SizeTime,
    /// Equal size.
    #[n(1)]
    Size,
    /// Equal content: both sides read it. Differing metadata is repaired in place.
    #[n(2)]
    Checksum,
}

text_enum! {
    /// See [`SyncOptions::verify`].
    #[derive(Default)]
    pub enum Verify {
        /// BLAKE3 on both ends while copying.
        #[default]
        Transfer = "transfer",
        /// Also a second pass at the end that reads the destination from its disk.
        Readback = "readback",
        /// Only the checksums of TCP.
        None = "none",
    }
}

/// Excludes entries of the source. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSpec {
    /// Lines of gitignore syntax, anchored at the source root: a pattern excludes, a pattern after `!`
    /// includes; the last matching line applies. An excluded directory is not entered.
    #[n(0)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Shorter files are excluded, in bytes.
    #[n(1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<u64>,
    /// Longer files are excluded, in bytes.
    #[n(2)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Files modified at or before this time are excluded.
    #[n(3)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<i64>,
    /// Files modified at or after this time are excluded.
    #[n(4)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<i64>,
}

/// The maximum length of all filter rules, in bytes: each assignment carries them.
pub const MAX_FILTER_BYTES: usize = 256 << 10;

/// The default of [`DeleteOptions::max_percent`].
pub const DEFAULT_MAX_DELETE_PERCENT: u8 = 50;

/// The deletions of a mirror. They begin only after everything was copied without an error, and not at all
/// if one of the limits is exceeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeleteOptions {
    /// The maximum number of deletions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The maximum number of deletions, in per cent of the entries at the destination.
    pub max_percent: u8,
    /// Move entries there instead of deleting them; a directory below the destination root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash: Option<RelPath>,
    /// Also delete entries that the filter excludes.
    #[serde(skip_serializing_if = "is_default")]
    pub delete_excluded: bool,
    /// Continue with an empty source root.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_empty_source: bool,
    /// Continue if the source root is on another file system than in the last run (a snapshot that is
    /// mounted again for each run).
    #[serde(skip_serializing_if = "is_default")]
    pub allow_new_source_fs: bool,
}

impl Default for DeleteOptions {
    fn default() -> Self {
        DeleteOptions {
            max: None,
            max_percent: DEFAULT_MAX_DELETE_PERCENT,
            trash: None,
            delete_excluded: false,
            allow_empty_source: false,
            allow_new_source_fs: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn omitted_options_have_their_defaults_and_defaults_are_not_serialized() {
        let options: SyncOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(options, SyncOptions::default());
        assert_eq!(serde_json::to_string(&options).unwrap(), "{}");
        assert!(options.preserve.is_all());
        assert!(serde_json::from_str::<SyncOptions>(r#"{"chek": 1}"#).is_err());
        let delete: SyncOptions = serde_json::from_str(r#"{"delete": {}}"#).unwrap();
        assert_eq!(delete.delete.unwrap().max_percent, 50);
    }

    #[test]
    fn write_rules_round_trip_in_cbor() {
        let rules = WriteRules {
            chown: Chown { uid: Some(7), gid: None },
            trash: Some(RelPath::new("a/b").unwrap()),
            delete: true,
            ..WriteRules::default()
        };
        let bytes = minicbor::to_vec(&rules).unwrap();
        assert_eq!(minicbor::decode::<WriteRules>(&bytes).unwrap(), rules);
    }
}
