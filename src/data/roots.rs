//! The storage roots of an agent: every path that it is asked for must lie below (or at) one. One that is missing, or
//! that another file system was mounted over, can be opened later.

use super::gate::{Refused, TicketGate};
use crate::fs::{FsError, Ledger, Root, Target, TargetOptions, Tree};
use crate::wire::ticket::{Claims, TicketError};
use crate::wire::{AbsPath, SyncNo};
use std::sync::{Arc, PoisonError, RwLock};

/// The storage roots, of which some may not be there.
pub struct Roots {
    /// The longest path first, so that the innermost of nested roots is found.
    all: Vec<StorageRoot>,
    ledger: Arc<Ledger>,
}

/// A configured storage path.
pub struct StorageRoot {
    path: AbsPath,
    open: RwLock<Result<Arc<Root>, FsError>>,
}

impl StorageRoot {
    /// As configured.
    pub fn path(&self) -> &AbsPath {
        &self.path
    }

    /// The root, or why it could not be opened.
    ///
    /// # Errors
    /// See [`Root::open`].
    pub fn open(&self) -> Result<Arc<Root>, FsError> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Roots {
    /// Opens all of them.
    ///
    /// # Errors
    /// The first that can't be opened.
    pub fn open(paths: &[AbsPath]) -> Result<Self, FsError> {
        let roots = Self::open_available(paths, Ledger::default());
        roots.all.iter().try_for_each(|root| root.open().map(drop))?;
        Ok(roots)
    }

    /// Opens those that are there. What is written below them and not flushed is noted in `ledger`.
    pub fn open_available(paths: &[AbsPath], ledger: Ledger) -> Self {
        let ledger = Arc::new(ledger);
        let open = |path: &AbsPath| StorageRoot {
            path: path.clone(),
            open: RwLock::new(Root::open_noting(path, ledger.clone())),
        };
        let mut all: Vec<StorageRoot> = paths.iter().map(open).collect();
        all.sort_by_key(|root| std::cmp::Reverse(root.path.as_bytes().len()));
        Roots { all, ledger }
    }

    /// Opens what `root`'s path leads to now, for all that begins from now on.
    ///
    /// # Errors
    /// It can't be opened; a root that was open stays so.
    pub fn reopen(&self, root: &StorageRoot) -> Result<Arc<Root>, FsError> {
        let opened = Root::open_noting(&root.path, self.ledger.clone());
        let mut open = root.open.write().unwrap_or_else(PoisonError::into_inner);
        if opened.is_ok() || open.is_err() {
            *open = opened.clone();
        }
        opened
    }

    /// All of them.
    pub fn all(&self) -> &[StorageRoot] {
        &self.all
    }

    /// The tree at `path`; `None` where no root holds it, or the innermost that does is not open: what is found at
    /// its path in an outer root is another directory.
    pub fn tree(&self, path: &AbsPath) -> Option<Tree> {
        let (root, below) =
            self.all.iter().find_map(|root| Some((root, root.path.strip(path)?)))?;
        Some(Tree::new(root.open().ok()?, below))
    }

    /// What a ticket allows: its claims and the destination that it names, which is written by the
    /// rules of the ticket whatever a peer asks for.
    ///
    /// # Errors
    /// A ticket that does not hold, or for a destination that is not ours.
    pub fn admit(&self, gate: &TicketGate, ticket: &str) -> Result<(Claims, Target), Refused> {
        let claims = gate.check(ticket)?;
        let path = AbsPath::new(&claims.destination).map_err(|_| TicketError::Broken)?;
        let tree = self.tree(&path).ok_or_else(|| Refused::NoRoot(path.to_string()))?;
        let deletion = gate.allowance(&claims)?;
        let options =
            TargetOptions { deletion, ..TargetOptions::of_this_process(claims.rules.clone()) };
        let target = Target::new(tree, SyncNo(claims.sync), options);
        Ok((claims, target))
    }
}
