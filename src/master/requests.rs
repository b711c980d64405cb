//! The requests that a [`MasterHandle`](super::handle::MasterHandle) sends to the state actor, each with the type of
//! its reply.

use crate::identity::SealedAuthority;
use crate::scheduler::{
    AgentRecord, Event, IdempotencyKey, Join, JoinTokenRecord, RecordLogInfo, Reply, RetryScope,
    StoredKeys, SyncPage, SyncQuery, TokenRecord,
};
use crate::wire::admin::{AuthorityView, ConfirmClockReply, ReconcileReply, RotateTicketKeyReply};
use crate::wire::join::{JoinTokenView, RevokeWorkerReply};
use crate::wire::manifest::FileListPart;
use crate::wire::storage::{StorageList, StorageView};
use crate::wire::sync::{ReassignReply, SubmitReply, SyncPatch, SyncProgress, SyncRequest};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::token::{TokenId, TokenList, TokenView};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, HeartbeatReply, WorkerHeartbeat, WorkerList,
    WorkerView,
};
use crate::wire::{AssignmentId, RequestId, StorageId, WorkerId};

/// A request to the state actor.
pub(super) trait Request {
    /// The reply to an accepted request.
    type Reply;
    /// The event of the scheduler that carries this request.
    fn into_event(self) -> Event;
    /// # Errors
    /// The reply, if it is of another request.
    fn parse_reply(reply: Reply) -> Result<Self::Reply, Box<Reply>>;
}

/// Defines requests: `Name { fields } => event => variant of the reply => value: type`.
macro_rules! requests {
    ($($name:ident { $($field:ident: $field_type:ty),* } => $event:expr =>
        $variant:pat => $value:expr, $reply:ty;)*) => {$(
        #[derive(Debug, Clone)]
        pub(super) struct $name { $(pub(super) $field: $field_type),* }

        impl Request for $name {
            type Reply = $reply;
            fn into_event(self) -> Event {
                let $name { $($field),* } = self;
                $event
            }
            fn parse_reply(reply: Reply) -> Result<$reply, Box<Reply>> {
                match reply {
                    $variant => Ok($value),
                    other => Err(Box::new(other)),
                }
            }
        }
    )*};
}

requests! {
    GetSync { id: RequestId }
        => Event::GetProgress(id) => Reply::Progress(reply) => *reply, SyncProgress;
    PauseSync { id: RequestId }
        => Event::PauseSync(id) => Reply::Progress(reply) => *reply, SyncProgress;
    ResumeSync { id: RequestId }
        => Event::ResumeSync(id) => Reply::Progress(reply) => *reply, SyncProgress;
    CancelSync { id: RequestId }
        => Event::CancelSync(id) => Reply::Progress(reply) => *reply, SyncProgress;
    DeleteSync { id: RequestId }
        => Event::DeleteSync(id) => Reply::Deleted { cancelled } => cancelled, bool;
    GetFileRecords { id: RequestId }
        => Event::GetFileRecords(id) => Reply::FileRecords(reply) => *reply, RecordLogInfo;
    GetWorker { id: WorkerId }
        => Event::GetWorker(id) => Reply::Worker(reply) => *reply, WorkerView;
    ListWorkerSyncs { id: WorkerId }
        => Event::ListWorkerRequests(id) => Reply::RequestIds(reply) => reply, Vec<RequestId>;
    ForgetWorker { id: WorkerId }
        => Event::ForgetWorker(id) => Reply::Forgotten(reply) => reply, ForgetWorkerReply;
    SubmitSync { request: SyncRequest, list: Option<Vec<FileListPart>>, idempotency: Option<IdempotencyKey> }
        => Event::Submit { request, list, idempotency } => Reply::Submitted(reply) => reply, SubmitReply;
    RetrySync {
        id: RequestId, new: Option<RequestId>, only: RetryScope, idempotency: Option<IdempotencyKey>
    }
        => Event::RetrySync { id, new, only, idempotency } => Reply::Submitted(reply) => reply, SubmitReply;
    ListSyncs { query: SyncQuery }
        => Event::ListSyncs(query) => Reply::Syncs(reply) => reply, SyncPage;
    ChangeSync { id: RequestId, change: SyncPatch }
        => Event::ChangeSync { id, change } => Reply::Progress(reply) => *reply, SyncProgress;
    ReassignTasks { id: RequestId, worker: WorkerId }
        => Event::ReassignTasks { id, worker } => Reply::Reassigned(reply) => reply, ReassignReply;
    SendHeartbeat { heartbeat: WorkerHeartbeat }
        => Event::Heartbeat(heartbeat) => Reply::Heartbeat(reply) => *reply, HeartbeatReply;
    ListWorkers {}
        => Event::ListWorkers => Reply::Workers(reply) => reply, WorkerList;
    DrainWorker { worker: WorkerId, order: Option<DrainRequest> }
        => Event::DrainWorker { worker, order } => Reply::DrainUpdated(reply) => *reply, DrainReply;
    PollAssignment {
        worker: WorkerId, incarnation: Option<String>, poll_id: Option<String>, wait_ms: u64
    }
        => Event::Poll { worker, incarnation, poll_id, wait_ms }
        => Reply::Assignment(reply) => reply, Option<Box<Assignment>>;
    GetManifestKey { worker: WorkerId, assignment: AssignmentId }
        => Event::GetManifest { worker, assignment } => Reply::ManifestKey(reply) => reply, String;
    PostPage { worker: WorkerId, assignment: AssignmentId, page: ScanPage }
        => Event::Page { worker, assignment, page } => Reply::Page(reply) => reply, PageReply;
    PostResult { result: TaskResult }
        => Event::Result(result) => Reply::Result(reply) => reply, ResultReply;
    ListStorages {}
        => Event::ListStorages => Reply::Storages(reply) => reply, StorageList;
    GetStorage { id: StorageId }
        => Event::GetStorage(id) => Reply::Storage(reply) => *reply, StorageView;
    CreateToken { record: TokenRecord }
        => Event::CreateToken(Box::new(record)) => Reply::Token(reply) => *reply, TokenView;
    ListTokens {}
        => Event::ListTokens => Reply::Tokens(reply) => reply, TokenList;
    RevokeToken { id: TokenId }
        => Event::RevokeToken(id) => Reply::Token(reply) => *reply, TokenView;
    CreateJoinToken { record: JoinTokenRecord }
        => Event::CreateJoinToken(Box::new(record)) => Reply::JoinToken(reply) => *reply, JoinTokenView;
    RevokeJoinToken { id: TokenId }
        => Event::RevokeJoinToken(id) => Reply::JoinToken(reply) => *reply, JoinTokenView;
    JoinAgent { join: Join }
        => Event::Join(Box::new(join)) => Reply::Joined(reply) => *reply, AgentRecord;
    RevokeWorker { worker: WorkerId }
        => Event::RevokeWorker(worker) => Reply::WorkerRevoked(reply) => reply, RevokeWorkerReply;
    Reconcile {}
        => Event::Reconcile(StoredKeys::default()) => Reply::Reconciled(reply) => *reply, ReconcileReply;
    RotateTicketKey {}
        => Event::RotateTicketKey => Reply::TicketKeyRotated(reply) => reply, RotateTicketKeyReply;
    RotateAuthority { next: Box<SealedAuthority> }
        => Event::RotateAuthority(next) => Reply::Authority(reply) => *reply, AuthorityView;
    FinishRotation { force: bool }
        => Event::FinishRotation { force } => Reply::Authority(reply) => *reply, AuthorityView;
    GetAuthority {}
        => Event::GetAuthority => Reply::Authority(reply) => *reply, AuthorityView;
    ConfirmClock {}
        => Event::ConfirmClock => Reply::ClockConfirmed(reply) => reply, ConfirmClockReply;
}
