//! The storage roots of an agent: every path that it is asked for must lie below (or at) one.

use super::gate::{Refused, TicketGate};
use crate::fs::{FsError, Ledger, Root, Target, TargetOptions, Tree};
use crate::wire::ticket::{Claims, TicketError};
use crate::wire::{AbsPath, SyncNo};
use std::sync::Arc;

/// The open storage roots.
pub struct Roots {
    /// The longest path first, so that the innermost of nested roots is found.
    roots: Vec<Arc<Root>>,
}

impl Roots {
    /// Opens all of them.
    ///
    /// # Errors
    /// The first that can't be opened.
    pub fn open(paths: &[AbsPath]) -> Result<Self, FsError> {
        Self::open_noting(paths, Ledger::default())
    }

    /// The same, and what is written below them and not flushed is noted in `ledger`.
    ///
    /// # Errors
    /// Like [`Roots::open`].
    pub fn open_noting(paths: &[AbsPath], ledger: Ledger) -> Result<Self, FsError> {
        let ledger = Arc::new(ledger);
        let open = |path| Root::open_noting(path, ledger.clone());
        let mut roots = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        roots.sort_by_key(|root| std::cmp::Reverse(root.path().as_bytes().len()));
        Ok(Roots { roots })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Root>> {
        self.roots.iter()
    }

    /// The tree at `path`; `None` where no root holds it.
    pub fn tree(&self, path: &AbsPath) -> Option<Tree> {
        self.roots.iter().find_map(|root| Some(Tree::new(root.clone(), root.path().strip(path)?)))
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
        let options = TargetOptions::of_this_process(claims.rules.clone());
        let target = Target::new(tree, SyncNo(claims.sync), options);
        Ok((claims, target))
    }
}
