//! The storage roots of an agent: every requested path must be below (or at) one. One that is missing, or
//! that another file system was mounted over, can be opened later.

use super::ticket_verifier::{Refusal, TicketVerifier};
use crate::config::StoragePath;
use crate::fs::{DirtyJournal, FsError, RootDir, RootUnavailable, Target, TargetOptions, Tree};
use crate::wire::ticket::{Claims, TicketError};
use crate::wire::{AbsPath, SyncNo};
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock};

/// The storage roots, of which some may not be there.
pub struct Roots {
    /// The longest name first, so that the innermost of nested roots is found.
    pub all: Vec<StorageRoot>,
    ledger: Arc<DirtyJournal>,
}

/// A configured storage path.
pub struct StorageRoot {
    /// Its name, by which requests are found, and its place on this host.
    pub config: StoragePath,
    open: RwLock<Result<Arc<RootDir>, FsError>>,
    /// The id of the root that was opened first.
    first_id: OnceLock<String>,
}

impl StorageRoot {
    /// The root, or why it could not be opened.
    ///
    /// # Errors
    /// See [`RootDir::open`](crate::fs::RootDir::open).
    pub fn open(&self) -> Result<Arc<RootDir>, FsError> {
        self.open.read().clone()
    }

    /// Whether `now`, which `loss` brought to the path, is used instead of what was open there: a file system that was
    /// mounted over it, or the directory that was used first, which is back.
    fn should_adopt(&self, now: &RootDir, loss: RootUnavailable) -> bool {
        loss.is_new_storage() || self.first_id.get().is_some_and(|first| *first == now.id())
    }

    /// What requests call it.
    pub fn name(&self) -> &AbsPath {
        &self.config.name
    }

    fn from_opened(config: &StoragePath, open: Result<Arc<RootDir>, FsError>) -> Self {
        let first = OnceLock::new();
        if let Ok(root) = &open {
            first.get_or_init(|| root.id());
        }
        StorageRoot { config: config.clone(), open: RwLock::new(open), first_id: first }
    }
}

fn open_root(path: &StoragePath, ledger: &Arc<DirtyJournal>) -> Result<Arc<RootDir>, FsError> {
    RootDir::open_named(&path.name, &path.local_path, ledger.clone())
}

impl Roots {
    /// Opens all of them.
    ///
    /// # Errors
    /// The first that can't be opened.
    #[cfg(test)]
    pub fn open(paths: &[AbsPath]) -> Result<Self, FsError> {
        let paths: Vec<StoragePath> = paths.iter().cloned().map(StoragePath::from).collect();
        let roots = Self::open_available(&paths, DirtyJournal::default());
        roots.all.iter().try_for_each(|root| root.open().map(drop))?;
        Ok(roots)
    }

    /// Opens those that are there. What is written below them and not flushed is noted in `ledger`.
    pub fn open_available(paths: &[StoragePath], ledger: DirtyJournal) -> Self {
        let ledger = Arc::new(ledger);
        let open = |path: &StoragePath| StorageRoot::from_opened(path, open_root(path, &ledger));
        let mut all: Vec<StorageRoot> = paths.iter().map(open).collect();
        all.sort_by_key(|root| std::cmp::Reverse(root.name().as_bytes().len()));
        Roots { all, ledger }
    }

    /// Opens what `root`'s path leads to now, for all that begins from now on, where that may be used.
    ///
    /// # Errors
    /// It can't be opened; a root that was open stays so.
    pub fn reopen(&self, root: &StorageRoot) -> Result<(), FsError> {
        let opened = open_root(&root.config, &self.ledger);
        let mut open = root.open.write();
        let now = match (&*open, &opened) {
            (Ok(before), Ok(now)) => match before.compare_with_reopened(now) {
                Some(loss) if root.should_adopt(now, loss) => {
                    let path = &root.config;
                    let how = match loss.is_new_storage() {
                        true => loss.to_string(),
                        false => "the directory that was used first is back".to_owned(),
                    };
                    tracing::warn!("storage path {path}: {how}; it is used from now on");
                    now
                }
                _ => return Ok(()),
            },
            (Ok(_), Err(error)) => return Err(error.clone()),
            (Err(_), Err(error)) => {
                let error = error.clone();
                *open = opened;
                return Err(error);
            }
            (Err(_), Ok(now)) => now,
        };
        root.first_id.get_or_init(|| now.id());
        *open = opened;
        Ok(())
    }

    /// The tree at `path`; `None` where no root holds it, or the innermost that does is not open: what is found at
    /// its path in an outer root is another directory.
    pub fn tree(&self, path: &AbsPath) -> Option<Tree> {
        let (root, below) =
            self.all.iter().find_map(|root| Some((root, root.name().relativize(path)?)))?;
        Some(Tree::new(root.open().ok()?, below))
    }

    /// What a ticket allows: its claims and the destination that it names, which is written by the
    /// rules of the ticket whatever a peer requests.
    ///
    /// # Errors
    /// An invalid ticket, or one for a destination of another agent.
    pub fn authorize(
        &self,
        gate: &TicketVerifier,
        ticket: &str,
    ) -> Result<(Claims, Target), Refusal> {
        let claims = gate.admit(ticket)?;
        let path = AbsPath::new(&claims.destination).map_err(|_| TicketError::Malformed)?;
        let tree = self.tree(&path).ok_or_else(|| Refusal::NoRoot(path.to_string()))?;
        let assigned = gate.allows_root(&claims, &tree.root_id());
        let tree = tree.for_assigned_root(assigned).acting_as(gate.identity_for(&claims)?);
        let deletion = gate.deletion_allowance(&claims)?;
        let options = TargetOptions {
            deletion_budget: deletion,
            ..TargetOptions::for_this_process(claims.rules.clone())
        };
        let target = Target::new(tree, SyncNo(claims.sync), options);
        Ok((claims, target))
    }
}
