//! How a sync is to be done: what of an entry is kept, how the two sides are compared, what is left
//! out, what is deleted, what is checked again. Everything has a default, and the default is "keep all,
//! compare size and time, delete nothing".

use super::content::HashMode;
use super::{BytePath, RelPath};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::time::Duration;

/// No file system rounds times by more than some seconds; [`SyncOptions::mtime_tolerance_ns`] is at most this.
pub const MAX_MTIME_TOLERANCE: Duration = Duration::from_secs(3600);

/// Everything that an operator can choose for a sync (`options` of `POST /sync`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncOptions {
    /// What of each entry is kept, beside its content.
    #[serde(skip_serializing_if = "Preserve::is_all")]
    pub preserve: Preserve,
    /// Everything gets this owner, this group, or both, instead of its own.
    #[serde(skip_serializing_if = "Chown::is_none")]
    pub chown: Chown,
    /// What is done with symbolic links.
    #[serde(skip_serializing_if = "is_default")]
    pub links: Links,
    /// Long runs of zeros become holes at the destination, where the source has none.
    #[serde(skip_serializing_if = "is_default")]
    pub punch_zeros: bool,
    /// Metadata that the destination can't hold fail their entry, instead of being counted.
    #[serde(skip_serializing_if = "is_default")]
    pub strict_metadata: bool,
    /// When a file at the destination counts as equal.
    #[serde(skip_serializing_if = "is_default")]
    pub compare: Compare,
    /// Modification times that differ by no more than this count as equal, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub mtime_tolerance_ns: u64,
    /// Files that are newer at the destination are left alone.
    #[serde(skip_serializing_if = "is_default")]
    pub update: bool,
    /// Files that exist at the destination are left alone.
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_existing: bool,
    /// Only what exists at the destination is brought up to date; nothing is created.
    #[serde(skip_serializing_if = "is_default")]
    pub existing: bool,
    /// Changed large files are sent whole: what the destination has of them is not compared.
    #[serde(skip_serializing_if = "is_default")]
    pub whole_file: bool,
    /// Content is copied also where source and destination could share it (`"clone": false`).
    #[serde(rename = "clone", with = "inverted_bool", skip_serializing_if = "is_default")]
    pub no_clone: bool,
    /// What of the source is left out.
    #[serde(skip_serializing_if = "is_default")]
    pub filter: FilterSpec,
    /// Directories in `file_list` are copied with all that is in them.
    #[serde(skip_serializing_if = "is_default")]
    pub recursive: bool,
    /// Compare and report, change nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// Keep what became of each file (`GET /sync/{id}/files`).
    #[serde(skip_serializing_if = "is_default")]
    pub record: bool,
    /// Keep the BLAKE3 digest of each file (`GET /sync/{id}/manifest`).
    #[serde(skip_serializing_if = "is_default")]
    pub manifest: bool,
    /// How content is checked.
    #[serde(skip_serializing_if = "is_default")]
    pub verify: Verify,
    /// Make the destination a mirror: delete what the source does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete: Option<DeleteOptions>,
    /// Do not wait for earlier syncs that read or write the same paths and are not mirrors. The master decides by it; no
    /// agent needs it.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_overlap: bool,
    /// Refuse the sync where no active worker serves its source or destination, instead of queueing it. It is about
    /// the submit alone and not kept with the sync.
    #[serde(skip_serializing_if = "is_default")]
    pub no_queue: bool,
}

/// A field that is called by its opposite.
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl SyncOptions {
    /// Whether nothing was chosen.
    pub fn is_default(&self) -> bool {
        *self == SyncOptions::default()
    }

    /// What the destination needs to know; it stands in the ticket.
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

/// The part of the options by which a destination writes. It is signed with the ticket: an agent can't
/// ask another one for more (a deletion, say) than the operator did.
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
    /// Nothing may be changed.
    #[n(9)]
    pub dry_run: bool,
    /// The digest of each file that is there already is wanted.
    #[n(10)]
    pub returns_digests: bool,
    /// Content that comes without a digest is refused.
    #[n(11)]
    pub requires_digest: bool,
    /// Content is compared as it is on the disk, not in the page cache (the second pass of
    /// [`Verify::Readback`]).
    #[n(12)]
    pub readback: bool,
    /// Entries may be deleted.
    #[n(13)]
    pub delete: bool,
    /// … by moving them there, below the destination root.
    #[cbor(n(14), with = "super::manifest::cbor_path_option")]
    pub trash: Option<RelPath>,
    /// The names of unfinished files at the destination are computed with it.
    #[n(15)]
    pub part_name_key: PartNameKey,
    /// The chunk size of the sync, in bytes: it bounds the range without holes that one request writes and
    /// reserves ([`range_length`](super::task::range_length)).
    #[n(16)]
    pub chunk_bytes: u64,
}

/// The longest chunk that a sync can ask for, in bytes.
pub const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// A secret of an installation, with which the names of unfinished files are computed: it makes them
/// equal on all agents and at every attempt, and unpredictable to local users of a storage host.
#[derive(Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct PartNameKey(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl std::fmt::Debug for PartNameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameKey(…)")
    }
}

impl WriteRules {
    /// How content is hashed where it is compared or checked: its zeros only where its digest is wanted.
    pub fn hash_mode(&self) -> HashMode {
        if self.returns_digests { HashMode::Full } else { HashMode::SkipZeros }
    }

    /// How whoever sends content hashes it, where the destination checks it or its digest is wanted.
    pub fn sender_hash_mode(&self) -> Option<HashMode> {
        (self.requires_digest || self.returns_digests).then(|| self.hash_mode())
    }

    /// How a destination hashes what it is sent, where it checks it.
    pub fn receiver_hash_mode(&self) -> Option<HashMode> {
        self.requires_digest.then(|| self.hash_mode())
    }
}

impl Default for WriteRules {
    fn default() -> Self {
        SyncOptions::default().write_rules()
    }
}

/// What of an entry is kept; a set of [`Attribute`]s, in JSON a list of their words. The default is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Preserve(#[n(0)] u16);

/// Something of an entry that can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Attribute {
    /// Permission bits with set-uid, set-gid and sticky.
    Mode = 1,
    /// The numeric owner.
    Owner = 2,
    /// The numeric group.
    Group = 4,
    /// The modification time.
    Times = 8,
    /// Extended attributes (`user.*`, `trusted.*`, `security.*`).
    Xattrs = 16,
    /// POSIX access control lists.
    Acls = 32,
    /// Names of one file stay names of one file.
    Hardlinks = 64,
    /// Holes.
    Sparse = 128,
    /// FIFOs and sockets.
    Specials = 256,
    /// Device nodes.
    Devices = 512,
}

impl Attribute {
    /// All of them with their words.
    pub const ALL: [(Attribute, &'static str); 10] = [
        (Attribute::Mode, "mode"),
        (Attribute::Owner, "owner"),
        (Attribute::Group, "group"),
        (Attribute::Times, "times"),
        (Attribute::Xattrs, "xattrs"),
        (Attribute::Acls, "acls"),
        (Attribute::Hardlinks, "hardlinks"),
        (Attribute::Sparse, "sparse"),
        (Attribute::Specials, "specials"),
        (Attribute::Devices, "devices"),
    ];
}

impl Preserve {
    /// Nothing but content and type.
    pub const NONE: Preserve = Preserve(0);

    /// Everything.
    pub fn all() -> Self {
        Attribute::ALL.iter().fold(Preserve::NONE, |set, (one, _)| set.with(*one))
    }

    /// Whether it is [`Preserve::all`].
    pub fn is_all(&self) -> bool {
        *self == Preserve::all()
    }

    /// Whether `one` is kept.
    pub fn contains(self, one: Attribute) -> bool {
        self.0 & one as u16 != 0
    }

    /// The same and `one`.
    #[must_use]
    pub fn with(self, one: Attribute) -> Self {
        Preserve(self.0 | one as u16)
    }

    /// The same without `one`.
    #[must_use]
    pub fn without(self, one: Attribute) -> Self {
        Preserve(self.0 & !(one as u16))
    }

    /// The words of what is kept.
    pub fn names(self) -> Vec<&'static str> {
        Attribute::ALL
            .iter()
            .filter(|(one, _)| self.contains(*one))
            .map(|(_, word)| *word)
            .collect()
    }

    /// Reads a list of words; `all` and `none` stand for what they say, `no-WORD` takes one away. The
    /// order counts; a list that begins with a `no-` begins with all.
    ///
    /// # Errors
    /// A sentence that names the word.
    pub fn parse_names<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set: Option<Preserve> = None;
        for word in words {
            let (without, name) = match word.strip_prefix("no-") {
                Some(name) => (true, name),
                None => (false, word),
            };
            let start = if without { Preserve::all() } else { Preserve::NONE };
            let so_far = set.unwrap_or(start);
            let known = Attribute::ALL.iter().find(|(_, w)| *w == name).map(|(one, _)| *one);
            set = Some(match (name, known) {
                ("all", None) if !without => Preserve::all(),
                ("none", None) if !without => Preserve::NONE,
                (_, Some(one)) if without => so_far.without(one),
                (_, Some(one)) => so_far.with(one),
                _ => {
                    let all: Vec<&str> = Attribute::ALL.iter().map(|(_, w)| *w).collect();
                    return Err(format!(
                        "unknown --preserve item `{}`; valid: all, none, {}, or one of them after `no-`",
                        super::path::escape_bytes(word.as_bytes()),
                        all.join(", ")
                    ));
                }
            });
        }
        Ok(set.unwrap_or_else(Preserve::all))
    }
}

impl Default for Preserve {
    fn default() -> Self {
        Preserve::all()
    }
}

impl Serialize for Preserve {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let words = self.names();
        if words.is_empty() { ["none"].serialize(s) } else { words.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Preserve {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let words = Vec::<String>::deserialize(d)?;
        Preserve::parse_names(words.iter().map(String::as_str)).map_err(de::Error::custom)
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

impl Chown {
    /// Whether owners are left as they are.
    pub fn is_none(&self) -> bool {
        *self == Chown::default()
    }
}

/// See [`SyncOptions::links`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Links {
    /// They stay links, with their text as it is.
    #[default]
    Keep,
    /// What they lead to is copied in their place; it must lie below the agent's storage path.
    Copy,
    /// They are left out, and counted.
    Skip,
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
    /// Equal content: both sides read it. Metadata that differ are repaired in place.
    #[n(2)]
    Checksum,
}

/// See [`SyncOptions::verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// BLAKE3 on both ends while copying.
    #[default]
    Transfer,
    /// … and a second pass at the end that reads the destination from its disk.
    Readback,
    /// TCP's checksums only.
    None,
}

/// What of the source is left out. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSpec {
    /// Lines of gitignore syntax, anchored at the source root: a pattern leaves out, `!` and a pattern
    /// takes in again; the last line that matches decides. A directory that is left out is not entered.
    #[n(0)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Files shorter than this are left out, in bytes.
    #[n(1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<u64>,
    /// Files longer than this are left out, in bytes.
    #[n(2)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Files modified before this (or at it) are left out.
    #[n(3)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<i64>,
    /// Files modified after this (or at it) are left out.
    #[n(4)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<i64>,
}

/// At most this many bytes of filter rules are taken: they travel with each assignment.
pub const MAX_FILTER_BYTES: usize = 256 << 10;

/// The default of [`DeleteOptions::max_percent`].
pub const DEFAULT_MAX_DELETE_PERCENT: u8 = 50;

/// How a mirror deletes. Nothing is deleted before everything was copied without an error, and nothing
/// when one of the limits is passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeleteOptions {
    /// At most so many entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// At most this part of the entries at the destination, in per cent.
    pub max_percent: u8,
    /// Move there instead of deleting: a directory below the destination root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash: Option<RelPath>,
    /// Also delete what the filter leaves out.
    #[serde(skip_serializing_if = "is_default")]
    pub delete_excluded: bool,
    /// Go on when the source root is empty.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_empty_source: bool,
    /// Go on when the source root lies on another file system than at the last run (a snapshot that is
    /// mounted again each time).
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

/// What is (or, in a dry run, would be) done with an entry.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(rename_all = "snake_case")]
pub enum EntryAction {
    /// It was not there.
    #[n(0)]
    Create,
    /// It was there with other content, or as something else.
    #[n(1)]
    Update,
    /// Its content was right, its metadata were not.
    #[n(2)]
    Metadata,
    /// It is as it should be, or is left alone by an option.
    #[n(3)]
    Skip,
    /// The source does not have it.
    #[n(4)]
    Delete,
}

impl EntryAction {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryAction::Create => "create",
            EntryAction::Update => "update",
            EntryAction::Metadata => "metadata",
            EntryAction::Skip => "skip",
            EntryAction::Delete => "delete",
        }
    }
}

/// How many entries, and how many bytes of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Entries of any kind.
    pub count: u64,
    /// Content of the regular files among them, in bytes.
    pub bytes: u64,
}

impl Tally {
    /// Adds `bytes` of one more entry.
    pub fn add(&mut self, bytes: u64) {
        self.merge(Tally { count: 1, bytes });
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: Tally) {
        self.count = self.count.saturating_add(other.count);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Something about metadata that was not as asked for, but failed no entry; by cause.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntryWarning {
    /// How many entries.
    pub count: u64,
    /// The first of them, at most `EntryWarning::MAX_STORAGE_PATHS`.
    pub paths: Vec<BytePath>,
}

impl EntryWarning {
    /// Paths that are kept.
    pub const MAX_PATHS: usize = 10;

    /// Adds an entry.
    pub fn add(&mut self, path: &[u8]) {
        self.count += 1;
        if self.paths.len() < EntryWarning::MAX_PATHS {
            self.paths.push(BytePath(path.to_vec()));
        }
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: EntryWarning) {
        self.count = self.count.saturating_add(other.count);
        let room = EntryWarning::MAX_PATHS.saturating_sub(self.paths.len());
        self.paths.extend(other.paths.into_iter().take(room));
    }
}

/// Notes by cause, e.g. `owner not set (EPERM): the agent is not root`.
pub type EntryWarnings = std::collections::BTreeMap<String, EntryWarning>;

/// What became of one file, where that is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Below the root of the sync.
    pub path: BytePath,
    /// How it ended.
    pub state: FileState,
    /// What was done, or would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<EntryAction>,
    /// The length of its content.
    #[serde(default)]
    pub bytes: u64,
    /// The digest of its content, for regular files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<super::Digest>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// See [`FileRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// Brought over.
    Done,
    /// Equal already, or left alone.
    Skipped,
    /// Given up.
    Failed,
    /// Deleted (or moved to the trash).
    Deleted,
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
    fn preserve_is_a_list_of_attribute_names() {
        let of = |text: &str| Preserve::parse_names(text.split(','));
        assert_eq!(of("all"), Ok(Preserve::all()));
        assert_eq!(of("none"), Ok(Preserve::NONE));
        assert_eq!(of("mode,times").unwrap().names(), ["mode", "times"]);
        assert_eq!(of("no-owner,no-group"), of("all,no-owner,no-group"));
        assert!(!of("no-owner").unwrap().contains(Attribute::Owner));
        assert!(of("mode,tims").unwrap_err().contains("`tims`"));
        assert!(of("no-all").is_err());
        for set in [Preserve::NONE, of("mode,acls").unwrap()] {
            let text = serde_json::to_string(&set).unwrap();
            assert_eq!(serde_json::from_str::<Preserve>(&text).unwrap(), set, "{text}");
        }
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
