//! Storages: file trees that one or more workers see. What an agent reports of its storage paths, how the master has
//! two of them compared, and what operators see.

use super::text_enum::text_enum;
use super::worker_selector::WorkerSelector;
use super::{AbsPath, StorageId, WorkerId, is_default};
use serde::{Deserialize, Serialize};

/// What a heartbeat reports of one storage path that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageReport {
    /// The path that requests name.
    pub path: AbsPath,
    /// The path on the host, where it is another one (`as` in the agent's file).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path: Option<AbsPath>,
    /// What the agent's file says of the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<StorageDeclaration>,
    /// What the kernel says of it.
    pub fingerprint: StorageFingerprint,
}

/// What an agent's file says of a storage path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageDeclaration {
    /// `local: true`: no other host sees it.
    Local,
    /// `storage: ID`: it is the storage of this id, which other workers may see too.
    Storage(StorageId),
}

/// What identifies the directory of a storage path, as far as one host can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageFingerprint {
    /// The type of the file system, as in `/proc/self/mountinfo`, e.g. `ext4`, `nfs4`, `fuse.sshfs`.
    pub fs_type: String,
    /// The mount source, e.g. `/dev/sda1`, `server:/export`.
    pub mount_source: String,
    /// The path of the directory inside the mounted file system.
    pub path_in_mount: String,
    /// `f_fsid` of `statfs(2)`, in hexadecimal digits.
    pub fs_id: String,
    /// The inode of the directory.
    pub inode: u64,
    /// When the inode was made: seconds and nanoseconds since 1970, where the file system has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth_time: Option<(i64, u32)>,
    /// The device number. It identifies a file system under one kernel only.
    pub device: u64,
    /// Whether nothing can be written there: the mount is read-only, or the agent lacks the permission.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

/// Part of the reply to a heartbeat: what the agent does at a storage path, so that the master finds out whether
/// another worker sees the same. An agent keeps to the last reply: a probe file that is not named any more is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageCheck {
    /// The storage path.
    pub path: AbsPath,
    /// A probe file with this content must exist in the directory of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<ProbeSecret>,
    /// Probe files to look for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub look_for: Vec<ProbeName>,
    /// Whether to report a digest of a sample of the entries.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sample: bool,
}

/// What came of a [`StorageCheck`], in the next heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageCheckReport {
    /// The storage path.
    pub path: AbsPath,
    /// The probe file that exists there, made by this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<ProbeName>,
    /// Probe files of others that were found, with the right content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<ProbeName>,
    /// Probe files that are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<ProbeName>,
    /// A digest of the identity of the directory and of a sample of its entries; none where it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
    /// Why a probe file could not be made, or why nothing can be said: the storage is then not united with another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The name of a probe file: `.ctl-` and 32 hexadecimal digits, `.probe.part`. No walk copies or deletes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ProbeName(String);

const PROBE_PREFIX: &str = ".ctl-";
const PROBE_SUFFIX: &str = ".probe.part";

impl ProbeName {
    /// The name made of a random number.
    pub fn new(random: [u8; 16]) -> Self {
        ProbeName(format!("{PROBE_PREFIX}{:032x}{PROBE_SUFFIX}", u128::from_be_bytes(random)))
    }

    /// The file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a file name has the form of a probe.
    pub fn is_valid(name: &[u8]) -> bool {
        let random = name.strip_prefix(PROBE_PREFIX.as_bytes());
        let random = random.and_then(|rest| rest.strip_suffix(PROBE_SUFFIX.as_bytes()));
        random.is_some_and(|hex| {
            hex.len() == 32 && hex.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
        })
    }
}

/// The content of a probe file: 32 hexadecimal digits. Its name is computed from it, and not the other way round: a user that only
/// sees the name in one storage cannot make the file in another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ProbeSecret(String);

impl ProbeSecret {
    /// The length in bytes.
    pub const LENGTH: usize = 32;

    /// The content made of a random number.
    pub fn new(random: [u8; 16]) -> Self {
        ProbeSecret(format!("{:032x}", u128::from_be_bytes(random)))
    }

    /// The text of the content.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the file.
    pub fn name(&self) -> ProbeName {
        let digest = blake3::derive_key("longhaul 2026 name of a probe file", self.0.as_bytes());
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        ProbeName::new(first)
    }
}

impl TryFrom<String> for ProbeSecret {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() == Self::LENGTH && text.bytes().all(is_hex) {
            true => Ok(ProbeSecret(text)),
            false => Err("is not the content of a probe file"),
        }
    }
}

impl TryFrom<String> for ProbeName {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        match ProbeName::is_valid(name.as_bytes()) {
            true => Ok(ProbeName(name)),
            false => Err("is not the name of a probe file"),
        }
    }
}

/// A storage that the configuration of the master declares, for agents that report no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredStorage {
    /// The id.
    pub id: StorageId,
    /// The storage paths under which requests name it.
    pub paths: Vec<AbsPath>,
    /// The workers that see it.
    pub workers: Vec<WorkerSelector>,
}

text_enum! {
    /// How it is known that a worker sees a storage.
    pub enum StorageEvidence {
        /// It is the only worker that has named the path so far, or all others see another storage.
        Single = "single",
        /// A file that one worker made was found by the other, in both directions where both can write; or both run
        /// under one kernel and have the same directory open.
        Proved = "proved",
        /// Both only read it: the directory and a sample of its entries are the same.
        Likely = "likely",
        /// The configuration says so, and nothing contradicts it; nothing could be compared.
        Declared = "declared",
    }
}

/// `GET /storages`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StorageList {
    /// By path, then by id.
    pub storages: Vec<StorageView>,
}

/// One storage in the view of operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StorageView {
    /// The declared id, or one that the master made.
    pub storage_id: StorageId,
    /// The path that requests name.
    pub path: AbsPath,
    /// The type of its file system, if a worker reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<String>,
    /// The free bytes that the last heartbeat reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// The workers that see it, by id.
    pub workers: Vec<StorageWorker>,
    /// Storages of the same path that were not compared with this one yet: whether they are the same is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_compared_with: Vec<StorageId>,
}

/// A worker that sees a storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StorageWorker {
    /// The worker.
    pub worker_id: WorkerId,
    /// Whether a heartbeat arrived within the heartbeat timeout.
    pub active: bool,
    /// How it is known.
    pub evidence: StorageEvidence,
    /// The path on its host, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path: Option<AbsPath>,
    /// The mount source on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_source: Option<String>,
    /// Why the worker is not used there, if its declaration is contradicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_names_are_recognised_by_their_exact_form() {
        let name = ProbeName::new([0xab; 16]);
        assert_eq!(name.as_str(), ".ctl-abababababababababababababababab.probe.part");
        assert_eq!(ProbeName::try_from(name.as_str().to_owned()).as_ref(), Ok(&name));
        let secret = ProbeSecret::new([0xab; 16]);
        assert_ne!(secret.name(), name);
        assert_ne!(secret.name(), ProbeSecret::new([0xac; 16]).name());
        assert_eq!(ProbeSecret::try_from("ab".repeat(16)), Ok(secret));
        assert!(ProbeSecret::try_from("ab".repeat(15)).is_err());
        for bad in [
            "",
            "x",
            ".ctl-ab.probe.part",
            "../.ctl-abababababababababababababababab.probe.part",
            ".ctl-ABABABABABABABABABABABABABABABAB.probe.part",
            ".ctl-abababababababababababababababab.probe.part/",
        ] {
            assert!(ProbeName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
