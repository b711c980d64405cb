//! What operators ask of workers, and of the master for their sake.

use super::{ClientError, MasterClient, Reply};
use crate::wire::admin::{ConfirmClockReply, ReconcileReply};
use crate::wire::sync::{ReassignReply, ReassignRequest};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, WorkerList, WorkerState, WorkerView,
};
use crate::wire::{RequestId, WorkerId};
use reqwest::Method;

impl MasterClient {
    /// `GET /workers`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn list_workers(&self) -> Result<Reply<WorkerList>, ClientError> {
        self.fetch_json(self.new_request(Method::GET, "/workers")).await
    }

    /// `POST /workers/{id}/drain` or (`None`) `…/undrain`: keeps a worker from new work, or lets it work
    /// again.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, any [`ClientError`].
    pub async fn set_drained(
        &self,
        worker: &WorkerId,
        order: Option<&DrainRequest>,
    ) -> Result<Reply<DrainReply>, ClientError> {
        let verb = if order.is_some() { "drain" } else { "undrain" };
        let target = format!("/workers/{worker}/{verb}");
        let send = self.new_command(Method::POST, &target);
        match order {
            Some(order) => self.fetch_json(send.with_json(order)?).await,
            // A worker that sends no heartbeats is known by its drain only.
            None => {
                let worker_id = worker.clone();
                let state = WorkerState::Inactive;
                let gone = || DrainReply {
                    worker_id,
                    drained: None,
                    state,
                    in_flight: 0,
                    incoming_requests: 0,
                };
                self.send_removal(send, gone).await
            }
        }
    }

    /// `GET /workers/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, any [`ClientError`].
    pub async fn get_worker(&self, worker: &WorkerId) -> Result<Reply<WorkerView>, ClientError> {
        self.fetch_json(self.new_request(Method::GET, &format!("/workers/{worker}"))).await
    }

    /// `POST /sync/{id}/reassign`: takes the tasks of a sync away from a worker and leaves them to others.
    ///
    /// # Errors
    /// A 404 problem for an unknown sync or worker, 409 where it has ended, any [`ClientError`].
    pub async fn reassign_tasks(
        &self,
        id: &RequestId,
        worker: &WorkerId,
    ) -> Result<Reply<ReassignReply>, ClientError> {
        let body = ReassignRequest { worker_id: worker.clone() };
        let target = format!("/sync/{id}/reassign");
        self.fetch_json(self.new_command(Method::POST, &target).with_json(&body)?).await
    }

    /// `POST /admin/reconcile`: puts right what does not fit together.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn reconcile(&self) -> Result<Reply<ReconcileReply>, ClientError> {
        self.fetch_json(self.new_command(Method::POST, "/admin/reconcile")).await
    }

    /// `POST /admin/confirm-clock`: the wall clock of the leader is right.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn confirm_clock(&self) -> Result<Reply<ConfirmClockReply>, ClientError> {
        self.fetch_json(self.new_request(Method::POST, "/admin/confirm-clock")).await
    }

    /// `DELETE /workers/{id}`: forgets a worker that has fallen silent.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, 409 for one that is alive, any [`ClientError`].
    pub async fn forget_worker(
        &self,
        worker: &WorkerId,
    ) -> Result<Reply<ForgetWorkerReply>, ClientError> {
        let target = format!("/workers/{worker}");
        let (status, worker_id) = ("forgotten".to_owned(), worker.clone());
        let done = || ForgetWorkerReply { status, worker_id, requeued: 0 };
        self.send_removal(self.new_command(Method::DELETE, &target), done).await
    }
}
