//! Commands of operators to workers, storages and the master.

use super::{MasterClient, Reply, Result};
use crate::wire::admin::{
    AuthorityView, ConfirmClockReply, FinishRotationRequest, ReconcileReply, RotateTicketKeyReply,
};
use crate::wire::storage::{StorageList, StorageView};
use crate::wire::sync::{ReassignReply, ReassignRequest};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, WorkerList, WorkerState, WorkerView,
};
use crate::wire::{RequestId, StorageId, WorkerId};
use reqwest::Method;

impl MasterClient {
    /// `GET /workers`.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn list_workers(&self) -> Result<Reply<WorkerList>> {
        self.fetch_json(self.new_query("/workers")).await
    }

    /// `POST /workers/{id}/drain` or (`None`) `…/undrain`. A drained worker gets no new tasks.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, any [`ClientError`](super::ClientError).
    pub async fn set_drained(
        &self,
        worker: &WorkerId,
        request: Option<&DrainRequest>,
    ) -> Result<Reply<DrainReply>> {
        let Some(request) = request else {
            let command = self.new_command(Method::POST, format!("/workers/{worker}/undrain"));
            // A worker without heartbeats is unknown after its drain has ended.
            let done = || DrainReply {
                worker_id: worker.clone(),
                drained: None,
                state: WorkerState::Inactive,
                in_flight: 0,
                incoming_requests: 0,
            };
            return self.send_removal(command, done).await;
        };
        let command = self.new_command(Method::POST, format!("/workers/{worker}/drain"));
        self.fetch_json(command.with_json(request)?).await
    }

    /// `GET /workers/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, any [`ClientError`](super::ClientError).
    pub async fn get_worker(&self, worker: &WorkerId) -> Result<Reply<WorkerView>> {
        self.fetch_json(self.new_query(format!("/workers/{worker}"))).await
    }

    /// `GET /storages`.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn list_storages(&self) -> Result<Reply<StorageList>> {
        self.fetch_json(self.new_query("/storages")).await
    }

    /// `GET /storages/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown storage, any [`ClientError`](super::ClientError).
    pub async fn get_storage(&self, storage: &StorageId) -> Result<Reply<StorageView>> {
        self.fetch_json(self.new_query(format!("/storages/{storage}"))).await
    }

    /// `POST /sync/{id}/reassign`: requeues the tasks of a sync that a worker holds, for other workers.
    ///
    /// # Errors
    /// A 404 problem for an unknown sync or worker, 409 for a sync that has ended, any [`ClientError`](super::ClientError).
    pub async fn reassign_tasks(
        &self,
        id: &RequestId,
        worker: &WorkerId,
    ) -> Result<Reply<ReassignReply>> {
        let body = ReassignRequest { worker_id: worker.clone() };
        let command = self.new_command(Method::POST, format!("/sync/{id}/reassign"));
        self.fetch_json(command.with_json(&body)?).await
    }

    /// `POST /admin/reconcile`: corrects inconsistent records.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn reconcile(&self) -> Result<Reply<ReconcileReply>> {
        self.fetch_json(self.new_command(Method::POST, "/admin/reconcile")).await
    }

    /// `GET /admin/ca`: the certificate authority of the installation.
    ///
    /// # Errors
    /// A 409 problem where no master serves TLS; any [`ClientError`](super::ClientError).
    pub async fn get_authority(&self) -> Result<Reply<AuthorityView>> {
        self.fetch_json(self.new_short_request(Method::GET, "/admin/ca")).await
    }

    /// `POST /admin/rotate-ca`: replaces the certificate authority, unless a rotation is in progress.
    ///
    /// # Errors
    /// As [`get_authority`](Self::get_authority).
    pub async fn rotate_authority(&self) -> Result<Reply<AuthorityView>> {
        self.fetch_json(self.new_command(Method::POST, "/admin/rotate-ca")).await
    }

    /// `POST /admin/rotate-ca/finish`: certificates of the former authority are refused from now on.
    ///
    /// # Errors
    /// A 409 problem while agents have such certificates, unless `force`; as [`get_authority`](Self::get_authority).
    pub async fn finish_rotation(&self, force: bool) -> Result<Reply<AuthorityView>> {
        let command = self.new_command(Method::POST, "/admin/rotate-ca/finish");
        self.fetch_json(command.with_json(&FinishRotationRequest { force })?).await
    }

    /// `POST /admin/rotate-ticket-key`: replaces the key that signs tickets.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn rotate_ticket_key(&self) -> Result<Reply<RotateTicketKeyReply>> {
        self.fetch_json(self.new_command(Method::POST, "/admin/rotate-ticket-key")).await
    }

    /// `POST /admin/confirm-clock`: confirms that the wall clock of the leader is right.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn confirm_clock(&self) -> Result<Reply<ConfirmClockReply>> {
        self.fetch_json(self.new_request(Method::POST, "/admin/confirm-clock")).await
    }

    /// `DELETE /workers/{id}`: forgets a worker that sends no heartbeats.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, 409 for an active one, any [`ClientError`](super::ClientError).
    pub async fn forget_worker(&self, worker: &WorkerId) -> Result<Reply<ForgetWorkerReply>> {
        let (status, worker_id) = ("forgotten".to_owned(), worker.clone());
        let done = || ForgetWorkerReply { status, worker_id, requeued: 0 };
        let command = self.new_command(Method::DELETE, format!("/workers/{worker}"));
        self.send_removal(command, done).await
    }
}
