//! The events of an operator that is not an administrator: each is checked here before it is handled. What is not listed is
//! refused, and a sync outside of the scopes does not exist for the operator.

use super::grant::Grant;
use super::sync_job::SyncJob;
use super::sync_table::unknown_sync;
use super::{Event, Reply, State, SyncQuery};
use crate::wire::RequestId;
use crate::wire::problem::{Problem, ProblemCode};
use std::sync::Arc;

impl State {
    /// # Errors
    /// 404 for a sync outside of the scopes; 403 for other paths, options and events that the grant does not allow.
    pub(super) fn check_grant(&self, grant: &Arc<Grant>, event: &mut Event) -> Result<(), Problem> {
        match event {
            Event::Submit { request, .. } => {
                grant.check_paths(&request.source_path, &request.destination_path)?;
                grant.check_options(&request.options)?;
                request.run_as.clone_from(&grant.run_as);
                Ok(())
            }
            Event::RetrySync { id, .. } => {
                let sync = self.find_granted(grant, id)?;
                grant.check_user(sync.request.run_as.as_ref())?;
                grant.check_options(&sync.request.options)
            }
            Event::ChangeSync { id, change } if !change.add_destinations.is_empty() => {
                grant.check_user(self.find_granted(grant, id)?.request.run_as.as_ref())
            }
            Event::GetProgress(id)
            | Event::GetFileRecords(id)
            | Event::ChangeSync { id, .. }
            | Event::PauseSync(id)
            | Event::ResumeSync(id)
            | Event::ReassignTasks { id, .. }
            | Event::CancelSync(id)
            | Event::DeleteSync(id) => self.find_granted(grant, id).map(drop),
            Event::ListSyncs(query) => {
                *query = SyncQuery { grant: Some(Arc::clone(grant)), ..query.clone() };
                Ok(())
            }
            Event::ListWorkers
            | Event::GetWorker(_)
            | Event::ListWorkerRequests(_)
            | Event::ListStorages
            | Event::GetStorage(_) => Ok(()),
            _ => Err(Problem::new(
                ProblemCode::RoleMissing,
                "the token is not one of an administrator",
            )),
        }
    }

    fn find_granted(&self, grant: &Grant, id: &RequestId) -> Result<&SyncJob, Problem> {
        let sync = self.syncs.require(id)?;
        if grant.contains(&sync.request.source_path, &sync.request.destination_path) {
            Ok(sync)
        } else {
            Err(unknown_sync(id))
        }
    }

    /// Removes from a reply what lies outside of the scopes.
    pub(super) fn restrict_reply(&self, grant: &Grant, reply: Reply) -> Reply {
        match reply {
            Reply::RequestIds(ids) => {
                let is_granted = |id: &RequestId| self.find_granted(grant, id).is_ok();
                Reply::RequestIds(ids.into_iter().filter(is_granted).collect())
            }
            other => other,
        }
    }
}
