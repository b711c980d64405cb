//! Retry of an ended sync as a new sync: the record of the ended one stays unchanged.

use super::{IdempotencyKey, Now, Reply, State};
use crate::wire::RequestId;
use crate::wire::manifest::FileListPart;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncOutcome, SyncRequest, SyncState};

impl State {
    /// Submits the request of an ended sync under another id, with `only` just these names. Its
    /// name list moves to the new sync.
    pub(super) fn retry_sync(
        &mut self,
        id: &RequestId,
        new: Option<RequestId>,
        only: Option<Vec<FileListPart>>,
        idempotency: Option<IdempotencyKey>,
        now: Now,
    ) -> Result<Reply, Problem> {
        let sync = self.syncs.require(id)?;
        let mut request = SyncRequest { request_id: new, ..sync.as_submitted() };
        // A directory that could not be listed failed with all its entries. A sync with a name list
        // requested just those names.
        request.options.recursive |= only.is_some() && !sync.has_name_list;
        if let Some(again) = self.find_repeated_submit(&request, idempotency.as_ref())? {
            return Ok(again);
        }
        match sync.state {
            SyncState::Failed | SyncState::Cancelled => {}
            // Work without evidence may not have been done.
            SyncState::Completed if sync.outcome == Some(SyncOutcome::Unverified) => {}
            SyncState::Completed => {
                let detail = format!("sync `{id}` is completed: there is nothing to try again");
                let problem = Problem::new(ProblemCode::SyncCompleted, detail);
                return Err(problem.with_hint("to run it once more, submit it again"));
            }
            _ => {
                let detail = format!("sync `{id}` has not ended; what fails in it is tried again");
                let problem = Problem::new(ProblemCode::SyncActive, detail);
                return Err(problem.with_hint(format!("end it first: ctl sync cancel {id}")));
            }
        }
        let from = match sync.name_list_parts {
            Some(parts) if only.is_none() => Some((sync.name_list_owner(), parts)),
            None if only.is_none() && sync.has_name_list => {
                let detail = format!(
                    "sync `{id}` cannot be tried again: its list of names now belongs to the sync that retried it"
                );
                let problem = Problem::new(ProblemCode::FileListGone, detail);
                return Err(problem.with_hint("submit it again"));
            }
            _ => None,
        };
        let old = sync.no;
        let reply = self.create_sync(request, only, from, idempotency, now)?;
        if let (Some(_), Some(old_sync)) = (from, self.syncs.get_mut(old)) {
            old_sync.name_list_parts = None;
            self.mark_changed(old, now);
        }
        Ok(reply)
    }
}
