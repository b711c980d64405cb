//! The parts of the [table of storages](super::storage_table): a view, and a storage with the workers that see it.

use crate::wire::storage::{
    ProbeName, ProbeSecret, StorageDeclaration, StorageEvidence, StorageFingerprint, StorageReport,
};
use crate::wire::{AbsPath, StorageId, WorkerId, is_default};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The number of a storage. It is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StorageNo(pub(super) u64);

/// Types of file systems that one kernel mounts and no other at the same time: under another boot it is another tree.
const NEVER_SHARED: [&str; 19] = [
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs",
    "ntfs", "overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
];

fn is_never_shared(fs_type: &str) -> bool {
    NEVER_SHARED.contains(&fs_type)
}

/// Whether two fingerprints differ in nothing that lasts: a kernel numbers devices anew at each mount, and a mount may
/// be made writable.
pub(super) fn looks_alike(a: &StorageFingerprint, b: &StorageFingerprint) -> bool {
    is_same_directory(a, b)
        && a.mount_source == b.mount_source
        && a.path_in_mount == b.path_in_mount
}

/// Whether two fingerprints agree in what a bind mount preserves.
pub(super) fn is_same_directory(a: &StorageFingerprint, b: &StorageFingerprint) -> bool {
    a.fs_type == b.fs_type
        && a.fs_id == b.fs_id
        && a.inode == b.inode
        && a.birth_time == b.birth_time
}

/// The probe file of a view, and what its agent can do.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Probe {
    /// A new one for each period in which the file exists: a client of a network file system may remember for a while
    /// that a name is missing.
    pub(super) name: Option<ProbeName>,
    /// Its content.
    pub(super) secret: Option<ProbeSecret>,
    /// The last reply to a heartbeat named the file.
    pub(super) is_requested: bool,
    /// It exists: its agent reported it after it was requested.
    pub(super) is_made: bool,
    /// The agent could not make it.
    pub(super) has_failed: bool,
    /// The last reply requested a sample.
    pub(super) is_sampled: bool,
}

/// The first and the last report of a view under one kernel, in numbers of placements at its path
/// ([`SamePath::placements`](super::storage_table::SamePath::placements)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Period {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// A storage path of a worker. Serialized, it is the record of the view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct View {
    pub(super) path: AbsPath,
    /// Its storage, or the last one.
    pub(super) storage: Option<StorageNo>,
    /// Whether it belongs to `storage`. Otherwise it may return to it if no other view is there.
    pub(super) is_linked: bool,
    /// It came back to a storage with other views under another boot, with nothing but a fingerprint that looks alike.
    #[serde(default)]
    pub(super) is_unproved: bool,
    /// It belongs to its storage by a result that only its own agent could report: it could not make a probe file itself.
    /// So it stands for no other view there.
    #[serde(default)]
    pub(super) is_self_reported: bool,
    pub(super) evidence: StorageEvidence,
    /// The last one; none from agents of the predecessor.
    pub(super) report: Option<StorageReport>,
    pub(super) boot_id: Option<String>,
    pub(super) root_id: Option<String>,
    /// By the agent, else by the configuration of the master.
    pub(super) declared: Option<StorageDeclaration>,
    /// When it was reported in its storage, by kernel, the last ones. Empty where several kernels may have its file system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) periods: Vec<Period>,
    /// A worker that reported the same kernel has reported another one since: this one may have ended, and what is still
    /// reported of it may have been late.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) is_kernel_left: bool,
    /// Why it is not used: its declaration is contradicted.
    pub(super) contradiction: Option<String>,
    /// The agent names the path as available but has not reported yet what it is.
    #[serde(skip)]
    pub(super) is_unreported: bool,
    /// The last heartbeat reported it, and as available.
    #[serde(skip)]
    pub(super) is_available: bool,
    #[serde(skip)]
    pub(super) probe: Probe,
    /// The comparisons in which it takes part, by the newer storage.
    #[serde(skip)]
    pub(super) comparisons: BTreeSet<StorageNo>,
}

impl View {
    pub(super) fn new(path: AbsPath) -> Self {
        View {
            path,
            storage: None,
            is_linked: false,
            is_unproved: false,
            is_self_reported: false,
            evidence: StorageEvidence::Single,
            report: None,
            boot_id: None,
            root_id: None,
            declared: None,
            periods: Vec::new(),
            is_kernel_left: false,
            contradiction: None,
            is_unreported: false,
            is_available: false,
            probe: Probe::default(),
            comparisons: BTreeSet::new(),
        }
    }

    pub(super) fn fingerprint(&self) -> Option<&StorageFingerprint> {
        self.report.as_ref().map(|report| &report.fingerprint)
    }

    /// The kernel and the number that it has for the directory. Views with the same one have the same directory open.
    pub(super) fn root(&self) -> Option<(&str, &str)> {
        Some((self.boot_id.as_deref()?, self.root_id.as_deref()?))
    }

    /// [`root`](Self::root), if no other kernel can have the same file system.
    pub(super) fn exclusive_root(&self) -> Option<(&str, &str)> {
        self.root().filter(|_| self.fingerprint().is_some_and(|f| is_never_shared(&f.fs_type)))
    }

    /// Whether the kernels of both views ran at the same time.
    pub(super) fn was_seen_beside(&self, other: &View) -> bool {
        let overlaps = |a: &Period, b: &Period| a.first <= b.last && b.first <= a.last;
        self.periods.iter().any(|own| other.periods.iter().any(|period| overlaps(own, period)))
    }

    pub(super) fn declared_id(&self) -> Option<&StorageId> {
        match &self.declared {
            Some(StorageDeclaration::Storage(id)) => Some(id),
            _ => None,
        }
    }

    pub(super) fn can_make_probe(&self) -> bool {
        !self.probe.has_failed && self.fingerprint().is_some_and(|f| !f.read_only)
    }

    /// Whether the scheduler may use it as a view of its storage.
    pub(super) fn is_member(&self) -> bool {
        self.is_linked && !self.is_unreported && self.contradiction.is_none()
    }
}

/// The comparison of a storage with an older one of its path, each through one of its views.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    pub(super) old: StorageNo,
    pub(super) old_worker: WorkerId,
    pub(super) new_worker: WorkerId,
    /// The worker of the new storage found the probe file of the other one.
    pub(super) has_found_old: bool,
    /// … and the other way round.
    pub(super) has_found_new: bool,
    /// What was sampled through the old and the new storage; inside, `None` is an empty directory.
    pub(super) samples: [Option<Option<String>>; 2],
}

/// A storage. Its views are those of its path.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub(super) path: AbsPath,
    pub(super) generated_id: StorageId,
    /// The id that views declare, while no other storage keeps it.
    pub(super) declared_id: Option<StorageId>,
    /// The workers with a view, by rank …
    pub(super) linked: BTreeSet<(u64, WorkerId)>,
    /// … of these, those with a view that can be used.
    pub(super) members: Vec<(u64, WorkerId)>,
    /// Workers with an [exclusive root](View::exclusive_root) there.
    pub(super) exclusive: BTreeSet<WorkerId>,
    /// Declared ids, each with the workers that declare it.
    pub(super) claims: BTreeMap<StorageId, BTreeSet<WorkerId>>,
    /// Workers that declare it as local.
    pub(super) locals: BTreeSet<WorkerId>,
    /// Workers with a declaration that is contradicted.
    pub(super) contradicted: BTreeSet<WorkerId>,
    /// Storages of the path of which a comparison has shown that they are others.
    pub(super) different: BTreeSet<StorageNo>,
    /// See [`View::is_unproved`]. None of the views that were there before is active.
    pub(super) unproved: Option<WorkerId>,
}

impl Storage {
    pub(super) fn new(path: AbsPath, generated_id: StorageId) -> Self {
        Storage {
            path,
            generated_id,
            declared_id: None,
            linked: BTreeSet::new(),
            members: Vec::new(),
            exclusive: BTreeSet::new(),
            claims: BTreeMap::new(),
            locals: BTreeSet::new(),
            contradicted: BTreeSet::new(),
            different: BTreeSet::new(),
            unproved: None,
        }
    }

    pub(super) fn id(&self) -> &StorageId {
        self.declared_id.as_ref().unwrap_or(&self.generated_id)
    }

    pub(super) fn shares_claim(&self, other: &Storage) -> bool {
        self.claims.keys().any(|id| other.claims.contains_key(id))
    }
}
