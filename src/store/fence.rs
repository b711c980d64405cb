//! The rule by which a commit is let through. Redis keeps to the same rule in `commit.lua`.

use super::StoreError;

/// What a commit must find in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fence {
    /// The reign that writes.
    pub epoch: u64,
    /// The number of the last commit that this leader knows of; 0 before the first.
    pub seq: u64,
}

impl Fence {
    /// The fence with which a leader writes everything back after
    /// [`StoreError::DataLost`]`{ found, .. }`, in a batch with `replace`. That batch must hold the whole
    /// state of the leader, including what the refused batch would have written.
    #[must_use]
    pub fn after_loss(self, found: u64) -> Fence {
        Fence { seq: self.seq.max(found), ..self }
    }
}

/// Who asks for leadership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, which one master only may use.
    pub name: String,
    /// What it has the others know of itself. The store keeps it with the name, and does not read it.
    pub info: String,
    /// Where the store stood when the candidate looked last. It is not given the lead of a store that
    /// has gone back behind that: the leader of then may live, and write back what was lost.
    pub last_seen: Fence,
}

impl From<&str> for Candidate {
    /// One of this name that has nothing to say and saw nothing.
    fn from(name: &str) -> Self {
        Candidate { name: name.to_owned(), ..Candidate::default() }
    }
}

/// The answer to [`Store::acquire`](super::Store::acquire).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcquireOutcome {
    /// The caller leads now; load, then commit with this fence.
    Leader(Fence),
    /// Another one leads.
    Held {
        /// Its name.
        holder: String,
        /// What it says of itself.
        holder_info: String,
        /// Where the store stands now.
        fence: Fence,
        /// The time in milliseconds after which asking again is worth it, at least 1.
        retry_after_ms: u64,
    },
    /// The store stands there, behind what the candidate [saw](Candidate::last_seen).
    Behind(Fence),
}

/// What a store keeps of leadership and of its last commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LeaderRecord {
    pub(super) epoch: u64,
    /// The handle that acquired.
    pub(super) session_id: String,
    /// The name under which it did.
    pub(super) holder: String,
    /// What the holder says of itself.
    pub(super) holder_info: String,
    /// The number of the last commit.
    pub(super) seq: u64,
    /// The digest of its batch; empty when this reign has not committed yet.
    pub(super) last_digest: String,
}

/// What to do with a commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CommitDecision {
    /// Write it, under this number.
    Write(u64),
    /// It was written before, under this number.
    Repeated(u64),
}

impl LeaderRecord {
    /// Where the store stands.
    pub(super) fn fence(&self) -> Fence {
        Fence { epoch: self.epoch, seq: self.seq }
    }

    /// Whether `owner` may still write under `epoch`. An epoch that is ahead of the store's is no
    /// reason to refuse: the store was rolled back to before that reign began.
    pub(super) fn check_epoch(&self, epoch: u64, owner: &str) -> Result<(), StoreError> {
        if self.epoch > epoch || (self.epoch == epoch && self.session_id != owner) {
            return Err(StoreError::Deposed { leader: self.holder.clone(), epoch: self.epoch });
        }
        Ok(())
    }

    /// The rule for [`renew`](super::Store::renew).
    pub(super) fn check_renewal(&self, fence: Fence, owner: &str) -> Result<(), StoreError> {
        self.check_epoch(fence.epoch, owner)?;
        if self.epoch != fence.epoch || self.seq < fence.seq {
            return Err(StoreError::DataLost { expected: fence.seq, found: self.seq });
        }
        Ok(())
    }

    /// The rule for [`commit`](super::Store::commit) of a batch with this digest.
    pub(super) fn check_commit(
        &self,
        fence: Fence,
        owner: &str,
        digest: &str,
        replace: bool,
    ) -> Result<CommitDecision, StoreError> {
        self.check_epoch(fence.epoch, owner)?;
        let same_reign = self.epoch == fence.epoch;
        let next = fence.seq.saturating_add(1);
        if same_reign && self.seq == next && self.last_digest == digest {
            return Ok(CommitDecision::Repeated(next));
        }
        // A store that is ahead is refused even to a replacement: that is how a late copy of an
        // earlier replacement looks.
        let fits =
            if replace { self.seq <= fence.seq } else { same_reign && self.seq == fence.seq };
        if fits {
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

    fn check_stored(epoch: u64, seq: u64, owner: &str, digest: &str, replace: bool) -> String {
        match leader_record().check_commit(Fence { epoch, seq }, owner, digest, replace) {
            Ok(verdict) => format!("{verdict:?}"),
            Err(StoreError::Deposed { epoch, .. }) => format!("Deposed by {epoch}"),
            Err(StoreError::DataLost { expected, found }) => format!("Lost {expected} {found}"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_the_next_commit_of_the_leader_is_written() {
        for (epoch, seq, owner, digest, replace, verdict) in [
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
            let found = check_stored(epoch, seq, owner, digest, replace);
            assert_eq!(found, verdict, "{epoch} {seq} {owner} {digest} {replace}");
        }
    }

    #[test]
    fn a_renewal_detects_a_rollback() {
        let renew = |epoch, seq| leader_record().check_renewal(Fence { epoch, seq }, "me");
        assert_eq!(renew(5, 9), Ok(()));
        // A commit of ours may be under way and be written already.
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
