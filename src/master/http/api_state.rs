//! What all routes share: the state actor, the limits, and the reading of bodies.

use super::bearer::FailureCounter;
use super::body::{self, BufferedBody};
use super::body_budget::BodyBudget;
use super::principal::ConnectionAddresses;
use super::{HttpLimits, request_documents};
use crate::identity::AuthoritySet;
use crate::master::handle::MasterHandle;
use crate::master::validation_errors::ValidationErrors;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::problem::{Problem, ProblemCode};
use axum::extract::Request as HttpRequest;
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// The limit for other bodies, except those of `POST /sync`.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub(super) struct ApiState {
    pub(super) handle: MasterHandle,
    pub(super) limits: Arc<HttpLimits>,
    pub(super) budget: BodyBudget,
    /// Cancelled when the server stops: polls end at once.
    pub(super) stopping: CancellationToken,
    /// Tokens that were refused.
    pub(super) failures: Arc<FailureCounter>,
}

impl ApiState {
    /// Reads and validates a JSON document.
    pub(super) async fn read_document<T: Send + 'static>(
        &self,
        request: HttpRequest,
        limit: usize,
        read: impl FnOnce(Value) -> Result<T, ValidationErrors> + Send + 'static,
    ) -> Result<T, Problem> {
        let body = self.read_request_body(request, limit).await?;
        body::decode_body(body, move |bytes| request_documents::parse(bytes, read)).await
    }

    /// The authorities of certificates. `None`: this master serves no TLS.
    pub(super) fn authorities(&self) -> Option<Arc<AuthoritySet>> {
        self.limits.authority.as_ref().map(|authority| authority.authorities.current())
    }

    /// Counts the refused token of a request; after several of one address the problem is 429 instead of `problem`.
    pub(super) fn count_failure(
        &self,
        addresses: ConnectionAddresses,
        problem: Problem,
    ) -> Problem {
        let client = addresses.client.map(|client| client.ip());
        self.failures.count(client, Instant::now(), problem)
    }

    pub(super) async fn read_request_body(
        &self,
        request: HttpRequest,
        limit: usize,
    ) -> Result<BufferedBody, Problem> {
        let (head, body) = request.into_parts();
        let client = head.extensions.get::<ConnectionAddresses>().and_then(|it| it.client);
        let reservation = self.budget.open(client.map(|client| client.ip()));
        let read = body::read_body(&head.headers, body, limit, reservation).await;
        read.inspect_err(|problem| {
            if problem.is(ProblemCode::ChecksumMismatch) {
                let (method, path) = (&head.method, head.uri.path());
                let text = "a request was corrupted in transit; the client sends it again";
                warn_ratelimited!(text, %method, path, "{text}");
            }
        })
    }
}
