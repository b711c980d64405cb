//! The rules by which a commit is accepted. `commit.lua` has the same rules for Redis.

use super::StoreError;
use serde::{Deserialize, Serialize};

/// The term and the commit that a write expects in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fence {
    /// The epoch of the term that writes.
    pub epoch: u64,
    /// The number of the last commit that the leader knows; 0 before the first.
    pub seq: u64,
}

impl Fence {
    /// The fence for the batch that writes everything back after [`StoreError::DataLost`]`{ found, .. }`. That batch
    /// has `replace` set and contains the whole state of the leader, with the writes of the refused batch.
    #[must_use]
    pub(crate) fn after_loss(self, found: u64) -> Fence {
        Fence { seq: self.seq.max(found), ..self }
    }
}

/// A candidate for leadership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Unique among masters.
    pub name: String,
    /// Data for followers. The store keeps it with the name and does not interpret it.
    pub info: String,
    /// The fence of the store when the candidate saw it last. A store that is behind it was rolled back, and does not
    /// grant leadership: the previous leader may be alive and write the lost data back.
    pub last_seen: Fence,
}

impl From<&str> for Candidate {
    fn from(name: &str) -> Self {
        Candidate { name: name.to_owned(), ..Candidate::default() }
    }
}

/// The answer to [`Store::acquire`](super::Store::acquire).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcquireOutcome {
    /// The caller leads. It loads the records, then commits with this fence.
    Leader(Fence),
    /// Another master leads.
    Held {
        /// Its name.
        holder: String,
        /// Its [`Candidate::info`].
        holder_info: String,
        /// The current fence of the store.
        fence: Fence,
        /// The time after which a repeat may succeed, at least 1.
        retry_after_ms: u64,
    },
    /// The fence of the store is behind [`Candidate::last_seen`].
    Behind(Fence),
}

/// The leader and the last commit, as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaderRecord {
    pub(super) epoch: u64,
    /// The handle that acquired leadership.
    pub(super) session_id: String,
    pub(super) holder: String,
    pub(super) holder_info: String,
    /// The number of the last commit.
    pub(super) seq: u64,
    /// The digest of its batch; empty if this term has no commit yet.
    pub(super) last_digest: String,
}

/// The decision about a commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CommitDecision {
    /// Write it with this number.
    Write(u64),
    /// It was written before, with this number.
    Repeated(u64),
}

impl LeaderRecord {
    pub(super) fn fence(&self) -> Fence {
        Fence { epoch: self.epoch, seq: self.seq }
    }

    /// Refuses an older epoch, or another session of the same epoch. A newer epoch than that of the store is accepted:
    /// the store was rolled back to before that term.
    pub(super) fn check_epoch(&self, epoch: u64, session_id: &str) -> Result<(), StoreError> {
        if self.epoch > epoch || (self.epoch == epoch && self.session_id != session_id) {
            return Err(StoreError::Deposed { leader: self.holder.clone(), epoch: self.epoch });
        }
        Ok(())
    }

    /// The rule of [`renew`](super::Store::renew).
    pub(super) fn check_renewal(&self, fence: Fence, session_id: &str) -> Result<(), StoreError> {
        self.check_epoch(fence.epoch, session_id)?;
        if self.epoch != fence.epoch || self.seq < fence.seq {
            return Err(StoreError::DataLost { expected: fence.seq, found: self.seq });
        }
        Ok(())
    }

    /// The rule of [`commit`](super::Store::commit) for a batch with this digest.
    pub(super) fn check_commit(
        &self,
        fence: Fence,
        session_id: &str,
        digest: &str,
        replace: bool,
    ) -> Result<CommitDecision, StoreError> {
        self.check_epoch(fence.epoch, session_id)?;
        let same_term = self.epoch == fence.epoch;
        let next = fence.seq.saturating_add(1);
        if same_term && self.seq == next && self.last_digest == digest {
            return Ok(CommitDecision::Repeated(next));
        }
        // A store that is ahead refuses even a replacement: it may be a late copy of an earlier one.
        let is_next =
            if replace { self.seq <= fence.seq } else { same_term && self.seq == fence.seq };
        if is_next {
            Ok(CommitDecision::Write(next))
        } else {
            Err(StoreError::DataLost { expected: fence.seq, found: self.seq })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader_record() -> LeaderRecord {
        LeaderRecord {
            epoch: 5,
            session_id: "me".into(),
            holder: "m1".into(),
            holder_info: String::new(),
            seq: 9,
            last_digest: "d9".into(),
        }
    }

    fn check_stored(epoch: u64, seq: u64, session: &str, digest: &str, replace: bool) -> String {
        match leader_record().check_commit(Fence { epoch, seq }, session, digest, replace) {
            Ok(decision) => format!("{decision:?}"),
            Err(StoreError::Deposed { epoch, .. }) => format!("Deposed by {epoch}"),
            Err(StoreError::DataLost { expected, found }) => format!("Lost {expected} {found}"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_the_next_commit_of_the_leader_is_written() {
        for (epoch, seq, session, digest, replace, decision) in [
            (5, 9, "me", "d10", false, "Write(10)"),
            (5, 9, "other", "d10", false, "Deposed by 5"),
            (4, 9, "me", "d10", false, "Deposed by 5"),
            (4, 9, "me", "d10", true, "Deposed by 5"),
            (5, 8, "me", "d9", false, "Repeated(9)"),
            (5, 8, "me", "d9", true, "Repeated(9)"),
            (5, 8, "me", "else", false, "Lost 8 9"),
            (5, 8, "me", "else", true, "Lost 8 9"),
            (5, 7, "me", "d9", true, "Lost 7 9"),
            (5, 12, "me", "d13", false, "Lost 12 9"),
            (5, 12, "me", "d13", true, "Write(13)"),
            (6, 9, "new", "d10", false, "Lost 9 9"),
            (6, 9, "new", "d10", true, "Write(10)"),
        ] {
            let found = check_stored(epoch, seq, session, digest, replace);
            assert_eq!(found, decision, "{epoch} {seq} {session} {digest} {replace}");
        }
    }

    #[test]
    fn a_renewal_detects_a_rollback() {
        let renew = |epoch, seq| leader_record().check_renewal(Fence { epoch, seq }, "me");
        assert_eq!(renew(5, 9), Ok(()));
        // A commit of this leader may have been written while its reply is under way.
        assert_eq!(renew(5, 8), Ok(()));
        assert_eq!(renew(5, 10), Err(StoreError::DataLost { expected: 10, found: 9 }));
        assert_eq!(renew(6, 9), Err(StoreError::DataLost { expected: 9, found: 9 }));
        assert!(matches!(renew(4, 9), Err(StoreError::Deposed { epoch: 5, .. })));
    }

    #[test]
    fn after_data_loss_the_fence_is_never_behind_the_store() {
        let fence = Fence { epoch: 5, seq: 9 };
        assert_eq!(fence.after_loss(3), fence);
        assert_eq!(fence.after_loss(11), Fence { epoch: 5, seq: 11 });
    }
}
