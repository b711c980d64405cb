//! The kernel confines this process to some directories (Landlock): what it opens, writes, creates, renames and removes
//! lies below them, whatever it is made to try. It starts no programs.
//!
//! A rule belongs to a directory, not to a path. Below such a directory file systems may be mounted at any time. One that
//! is mounted over it later, or that replaces it, is out of reach until the process is started again: the kernel lets a
//! process add no rules afterwards.

use crate::wire::AbsPath;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr,
};
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The rights that the kernel checks, as far as it knows them: opening, reading, writing, truncating, creating, removing,
/// renaming and linking, executing, and requests to devices.
const RIGHTS: ABI = ABI::V5;
/// Without the rights of this version of Landlock nothing could be renamed or linked into another directory.
const MIN_RIGHTS: ABI = ABI::V2;

/// O_PATH, for [`OpenOptionsExt::custom_flags`](std::os::unix::fs::OpenOptionsExt::custom_flags).
const OPEN_PATH_ONLY: i32 = OFlags::PATH.bits().cast_signed();

/// What this process did about its confinement.
static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();

/// What a process may open. Paths that cannot be opened get no rule: one of them is no reason to do without the others.
#[derive(Debug, Default)]
pub struct SandboxPaths {
    /// All is allowed below these directories, except to execute programs.
    pub full: Vec<PathBuf>,
    /// In these directories files may be created and written.
    pub create: Vec<PathBuf>,
    /// These are read.
    pub read: Vec<PathBuf>,
}

/// Whether a process is confined.
#[derive(Debug)]
pub enum Confinement {
    /// It is, to those of its [`full`](SandboxPaths::full) directories that could be opened.
    Confined {
        /// The directories that could not, with the error.
        missing: Vec<(PathBuf, io::Error)>,
        /// Device and inode of those that did.
        full: Vec<(u64, u64)>,
    },
    /// It is not: the kernel has no Landlock, or an early version.
    Unsupported {
        /// What the kernel lacks.
        reason: String,
    },
}

/// Confines this thread, and all that it starts, to `paths`. Call it before the process has other threads. It cannot be
/// undone.
///
/// # Errors
/// The kernel has Landlock and refused a rule.
pub fn confine(paths: &SandboxPaths) -> io::Result<()> {
    let ruleset = match create_ruleset() {
        Ok(ruleset) => ruleset,
        Err(error) => {
            let _ = CONFINEMENT.set(Confinement::Unsupported { reason: error.to_string() });
            return Ok(());
        }
    };
    let all = AccessFs::from_all(RIGHTS) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let create = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let (mut missing, mut full) = (Vec::new(), Vec::new());
    let mut ruleset = ruleset;
    for (dirs, rights, is_needed) in
        [(&paths.full, all, true), (&paths.create, create, false), (&paths.read, read, false)]
    {
        for dir in dirs {
            let found;
            (ruleset, found) = add_rule(ruleset, dir, rights)?;
            match found {
                Ok(identity) if is_needed => full.push(identity),
                Err(error) if is_needed => missing.push((dir.clone(), error)),
                _ => {}
            }
        }
    }
    ruleset.restrict_self().map_err(io::Error::other)?;
    let _ = CONFINEMENT.set(Confinement::Confined { missing, full });
    Ok(())
}

fn create_ruleset() -> Result<RulesetCreated, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(MIN_RIGHTS))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))?
        .create()
}

/// Device and inode of a directory that has a rule, or why it has none.
type Found = io::Result<(u64, u64)>;

/// Adds a rule for what is at `path`, if that can be opened.
///
/// # Errors
/// The kernel refuses the rule.
fn add_rule(
    ruleset: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> io::Result<(RulesetCreated, Found)> {
    let opened = OpenOptions::new().read(true).custom_flags(OPEN_PATH_ONLY).open(path);
    let opened = opened.and_then(|opened| Ok((identity_of(&opened.metadata()?), opened)));
    let (identity, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok((ruleset, Err(error))),
    };
    let ruleset = ruleset.add_rule(PathBeneath::new(opened, rights)).map_err(|e| {
        io::Error::other(format!("the sandbox cannot allow {}: {e}", path.display()))
    })?;
    Ok((ruleset, Ok(identity)))
}

/// What this process did about its confinement. `None`: nothing.
pub fn confinement() -> Option<&'static Confinement> {
    CONFINEMENT.get()
}

/// Whether the directory at `path`, which is open as `dir`, is out of reach because this process is confined: no directory
/// that has a rule for everything is there or above it.
pub(super) fn hides(path: &AbsPath, dir: BorrowedFd<'_>) -> bool {
    let Some(Confinement::Confined { full, .. }) = confinement() else { return false };
    let path = Path::new(OsStr::from_bytes(path.as_bytes()));
    let Ok(path) = path.canonicalize() else { return false };
    let has_rule = |at: &Path| at.metadata().is_ok_and(|meta| full.contains(&identity_of(&meta)));
    !path.ancestors().any(has_rule) || is_denied(dir)
}

/// Whether the kernel refuses to list a directory although its mode allows it: another one has the number now of one that
/// had a rule.
fn is_denied(dir: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(dir.as_fd(), ".", flags, Mode::empty());
    let may_list = || rustix::fs::accessat(dir, ".", Access::READ_OK, AtFlags::EACCESS).is_ok();
    matches!(listed, Err(rustix::io::Errno::ACCESS)) && may_list()
}

fn identity_of(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
