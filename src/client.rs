//! The typed HTTP client of the master, for agents and for the command line.
//!
//! Every request may be sent twice without harm: a submit carries an idempotency key, a poll its number, a page its
//! position, a result its assignment. So a request is sent again after its connection broke, and, if several masters are
//! given, to the next one. A follower's `307` is followed, and the leader that it names is tried first from then on.
//! Requests that wait at a former leader are sent to its successor.

mod credentials;
mod download;
mod error;
mod exchange;
mod join;
mod list;
mod master_url;
mod tokens;
mod url_text;
mod workers;

pub use credentials::Credentials;
pub use download::Download;
pub use error::{ClientError, FailedAttempt, Result};
pub use master_url::parse_urls;

use crate::identity::{AgentIdentity, ServerTrust, client_config};
use crate::util::corruption::CorruptionCounter;
use crate::wire::leader::Readiness;
use crate::wire::problem::Problem;
use crate::wire::sync::{RetryRequest, SubmitReply, SyncPatch, SyncProgress};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::worker::{HeartbeatReply, WorkerHeartbeat};
use crate::wire::{AssignmentId, RequestId, WorkerId};
use bytes::Bytes;
use exchange::{FAILOVER_TIMEOUT, RawReply, Request};
use master_url::{parse_master_url, split_urls};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use url_text::{error_chain, excerpt, is_loopback, with_query};

/// A host that does not reply to SYN is given up after this, so that the next master is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The reply to a long poll may arrive this much later than the end of its wait.
const POLL_REPLY_MARGIN: Duration = Duration::from_secs(10);

/// Time limits of a [`MasterClient`].
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// A request without a complete reply after this fails.
    pub request_timeout: Duration,
    /// With several masters: how long a request is repeated while none of them leads, because one is about to take over.
    pub takeover_timeout: Duration,
    /// How long a command is sent again after its reply was lost, counted from the first attempt.
    pub resend_timeout: Duration,
    /// The servers that are accepted at `https` URLs.
    pub trust: ServerTrust,
    /// The tokens to send.
    pub credentials: Credentials,
    /// The certificate to present at `https` URLs: that of this agent. The masters that it has learned of are accepted.
    pub identity: Option<Arc<AgentIdentity>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            request_timeout: Duration::from_secs(30),
            takeover_timeout: Duration::ZERO,
            resend_timeout: Duration::ZERO,
            trust: ServerTrust::default(),
            credentials: Credentials::default(),
            identity: None,
        }
    }
}

/// The document of a reply, and its text. It can be used like the document itself.
#[derive(Debug, Clone)]
pub struct Reply<T> {
    /// The document.
    pub value: T,
    /// The JSON exactly as the master sent it.
    pub body: Bytes,
}

impl<T> Deref for Reply<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// What one of several masters reports of itself.
#[derive(Debug)]
pub struct MasterStatus {
    /// Its URL.
    pub url: String,
    /// Its readiness, also if it is not ready.
    pub readiness: Result<Reply<Readiness>>,
}

/// A client of one master, or of several of which one leads. Cheap to share behind an `Arc`.
pub struct MasterClient {
    http: reqwest::Client,
    /// For replies of any length: only their pauses are bounded.
    streaming_http: reqwest::Client,
    /// Without a trailing slash, in the given order.
    base_urls: Vec<String>,
    /// The tokens for base URLs. A redirect to another URL gets none.
    tokens: BTreeMap<String, String>,
    /// The base URL of the master that replied last, which is tried first.
    last_answered: watch::Sender<Option<String>>,
    options: ClientOptions,
}

impl fmt::Debug for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterClient").field("base_urls", &self.base_urls).finish_non_exhaustive()
    }
}

impl MasterClient {
    /// A client for `urls`: `http[s]://host:port[/prefix]`, or just `host:port` or `host` (port 8888); one string may hold
    /// several, separated by commas. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`] for no URL at all, one that can't be parsed, another scheme, one with a user
    /// name or password in it, or one with `https` if no server is trusted.
    pub fn new(urls: Vec<String>, options: ClientOptions) -> Result<Self> {
        let parts = split_urls(&urls);
        let mut base_urls: Vec<String> = Vec::new();
        let mut all_local = true;
        let mut tokens = BTreeMap::new();
        for part in parts {
            let url = parse_master_url(part)?;
            let trusts_none = options.trust.is_empty() && options.identity.is_none();
            if url.scheme() == "https" && trusts_none {
                return Err(ClientError::InvalidUrl {
                    url: url.to_string(),
                    message: "the certificate of its authority is not given; copy ca.pem of the master's data_dir, \
                              and name it by ca_file in the agent's file, --ca-file or CTL_CA_FILE"
                        .to_owned(),
                });
            }
            all_local &= is_loopback(&url);
            let base = url.as_str().trim_end_matches('/').to_owned();
            if let Some(token) = options.credentials.token_for(&url)? {
                tokens.insert(base.clone(), token);
            }
            if !base_urls.contains(&base) {
                base_urls.push(base);
            }
        }
        if base_urls.is_empty() {
            return Err(ClientError::InvalidUrl {
                url: String::new(),
                message: "is empty; give at least one, e.g. http://127.0.0.1:8888".to_owned(),
            });
        }
        let set_up_failed = |message: String| ClientError::InvalidUrl {
            url: base_urls.join(","),
            message: format!("cannot set up an HTTP client: {message}"),
        };
        let tls = client_config(&options.trust, options.identity.clone())
            .map_err(|e| set_up_failed(e.to_string()))?;
        let build = |read_timeout: Option<Duration>| {
            let mut builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT.min(options.request_timeout))
                .tcp_nodelay(true)
                .user_agent(concat!("longhaul/", env!("CARGO_PKG_VERSION")));
            if let Some(timeout) = read_timeout {
                builder = builder.read_timeout(timeout);
            }
            if all_local {
                // A proxy for other hosts must not get requests to this host.
                builder = builder.no_proxy();
            }
            builder.build().map_err(|e| set_up_failed(error_chain(&e)))
        };
        let (http, streaming_http) = (build(None)?, build(Some(options.request_timeout))?);
        let last_answered = watch::Sender::new(None);
        Ok(MasterClient { http, streaming_http, base_urls, tokens, last_answered, options })
    }

    /// The base URLs in the given order.
    pub fn urls(&self) -> &[String] {
        &self.base_urls
    }

    /// The URL of the master that replied last; `None` after it failed.
    pub fn last_answering_url(&self) -> Option<String> {
        self.last_answered.borrow().clone()
    }

    /// `POST /sync` with a [`SyncRequest`], or a document like it without the fields that have a default.
    /// The same `idempotency` key with the same request returns the first reply again.
    ///
    /// [`SyncRequest`]: crate::wire::sync::SyncRequest
    ///
    /// # Errors
    /// Problems `sync_exists` (409), invalid fields (422, all of them), any [`ClientError`].
    pub async fn submit(
        &self,
        request: &impl Serialize,
        idempotency: Option<&str>,
    ) -> Result<Reply<SubmitReply>> {
        let command = self.new_command(Method::POST, "/sync").with_json(request)?;
        self.fetch_json(command.with_idempotency_key(idempotency)).await
    }

    /// `GET /sync/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown (or deleted) id, any [`ClientError`].
    pub async fn get_sync(&self, id: &RequestId) -> Result<Reply<SyncProgress>> {
        self.fetch_json(self.new_short_request(Method::GET, format!("/sync/{id}"))).await
    }

    /// `PATCH /sync/{id}`: changes a sync that has not ended.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 for a sync that has ended, any [`ClientError`].
    pub async fn update_sync(
        &self,
        id: &RequestId,
        patch: &SyncPatch,
    ) -> Result<Reply<SyncProgress>> {
        let command = self.new_command(Method::PATCH, format!("/sync/{id}"));
        self.fetch_json(command.with_json(patch)?).await
    }

    /// `POST /sync/{id}/cancel`: ends a sync and keeps its record.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn cancel_sync(&self, id: &RequestId) -> Result<Reply<SyncProgress>> {
        self.fetch_json(self.new_command(Method::POST, format!("/sync/{id}/cancel"))).await
    }

    /// `POST /sync/{id}/retry`: submits the request of an ended sync again. The same `idempotency` key returns the first
    /// reply again.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 for a sync that can't be retried, any [`ClientError`].
    pub async fn retry_sync(
        &self,
        id: &RequestId,
        request: &RetryRequest,
        idempotency: &str,
    ) -> Result<Reply<SubmitReply>> {
        let command = self.new_command(Method::POST, format!("/sync/{id}/retry"));
        let command = command.with_json(request)?.with_idempotency_key(Some(idempotency));
        self.fetch_json(command).await
    }

    /// `POST /sync/{id}/pause` (`on`) or `…/resume`. A paused sync gets no new tasks.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 for a sync that has ended, any [`ClientError`].
    pub async fn set_paused(&self, id: &RequestId, on: bool) -> Result<Reply<SyncProgress>> {
        let verb = if on { "pause" } else { "resume" };
        self.fetch_json(self.new_command(Method::POST, format!("/sync/{id}/{verb}"))).await
    }

    /// `DELETE /sync/{id}`: cancels a sync that has not ended, and deletes its record.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn delete_sync(&self, id: &RequestId) -> Result<Reply<serde_json::Value>> {
        let command = self.new_command(Method::DELETE, format!("/sync/{id}"));
        self.send_removal(command, || serde_json::json!({ "status": "deleted" })).await
    }

    /// `GET /readyz?verbose` of every master, concurrently, in the order of [`urls`](Self::urls).
    pub async fn fetch_each_readiness(&self) -> Vec<MasterStatus> {
        let requests = self.base_urls.iter().map(|base| async move {
            let request = self.new_short_request(Method::GET, "/readyz?verbose");
            let readiness = match self.send_to_master(base, &request, &mut false, &[]).await {
                // A master that is not ready replies with 503 and the same document.
                Ok(reply) => {
                    let is_document = serde_json::from_slice::<Readiness>(&reply.body).is_ok();
                    let is_document = is_document && reply.status == 503;
                    let status = if is_document { 200 } else { reply.status };
                    parse_reply(RawReply { status, ..reply })
                }
                Err(e) => {
                    let attempt = FailedAttempt { url: base.clone(), error: e.to_string() };
                    Err(ClientError::Unreachable { attempts: vec![attempt] })
                }
            };
            MasterStatus { url: base.clone(), readiness }
        });
        futures_util::future::join_all(requests).await
    }

    /// `POST /workers/heartbeat`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn send_heartbeat(&self, heartbeat: &WorkerHeartbeat) -> Result<HeartbeatReply> {
        let request = self.new_short_request(Method::POST, "/workers/heartbeat");
        self.fetch_value(request.with_json(heartbeat)?).await
    }

    /// `POST /workers/{id}/assignment?wait=`: the next task, or `None` after `wait` (whole seconds).
    /// A poll repeated with the same `poll_id` gets the same lease. `incarnation` is the one of the
    /// heartbeats.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn poll_assignment(
        &self,
        worker: &WorkerId,
        wait: Duration,
        poll_id: Option<&str>,
        incarnation: Option<&str>,
    ) -> Result<Option<Assignment>> {
        let path = format!("/workers/{worker}/assignment?wait={}s", wait.as_secs());
        let target = with_query(&path, &[("poll_id", poll_id), ("incarnation", incarnation)]);
        let mut request = self.new_request(Method::POST, target);
        request.timeout = wait.saturating_add(POLL_REPLY_MARGIN).max(self.options.request_timeout);
        self.fetch_value(request).await
    }

    /// `GET /workers/{id}/assignments/{assignment}/manifest`: the encoded manifest (or name list). Corruption in transit
    /// is counted in `corruption`.
    ///
    /// # Errors
    /// A 404 problem if the worker does not hold the assignment (any more), any [`ClientError`].
    pub async fn fetch_manifest(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        corruption: &CorruptionCounter,
    ) -> Result<Vec<u8>> {
        let target = format!("/workers/{worker}/assignments/{assignment}/manifest");
        let request = self.new_query(target).counting_corruption(corruption);
        let reply = self.send_with_failover(request).await?;
        if reply.status == 200 { Ok(reply.body.into()) } else { Err(reply.into_error()) }
    }

    /// `POST /workers/{id}/assignments/{assignment}/page`. A page sent twice counts once. Corruption in transit is
    /// counted in `corruption`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn send_scan_page(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        page: &ScanPage,
        corruption: &CorruptionCounter,
    ) -> Result<PageReply> {
        let target = format!("/workers/{worker}/assignments/{assignment}/page");
        let request = self.new_request(Method::POST, target).counting_corruption(corruption);
        self.fetch_value(request.with_json(page)?).await
    }

    /// `POST /workers/result`. Corruption in transit is counted in `corruption`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn send_result(
        &self,
        result: &TaskResult,
        corruption: &CorruptionCounter,
    ) -> Result<ResultReply> {
        let request = self.new_request(Method::POST, "/workers/result");
        self.fetch_value(request.counting_corruption(corruption).with_json(result)?).await
    }

    fn new_request(&self, method: Method, path_and_query: impl Into<String>) -> Request {
        Request {
            method,
            path_and_query: path_and_query.into(),
            body: None,
            idempotency_key: None,
            timeout: self.options.request_timeout,
            is_streamed: false,
            is_command: false,
            corruption_counter: CorruptionCounter::default(),
        }
    }

    /// A request that a master replies to at once.
    fn new_short_request(&self, method: Method, path_and_query: impl Into<String>) -> Request {
        let mut request = self.new_request(method, path_and_query);
        if self.base_urls.len() > 1 {
            request.timeout = request.timeout.min(FAILOVER_TIMEOUT);
        }
        request
    }

    fn new_query(&self, path_and_query: impl Into<String>) -> Request {
        self.new_request(Method::GET, path_and_query)
    }

    /// A request by which an operator changes something.
    fn new_command(&self, method: Method, path: impl Into<String>) -> Request {
        Request { is_command: true, ..self.new_request(method, path) }
    }

    /// Sends a command that a repeat finds done already: the reply to the repeat is 404. If the reply to an earlier
    /// attempt was lost, that 404 shows that the attempt was carried out, and the result is `done`.
    async fn send_removal<T: DeserializeOwned + Serialize>(
        &self,
        command: Request,
        done: impl FnOnce() -> T,
    ) -> Result<Reply<T>> {
        let mut reply = self.send_with_failover(command).await?;
        if reply.status == 404 && reply.is_repeat {
            reply.status = 200;
            reply.body = serde_json::to_vec(&done()).unwrap_or_default().into();
        }
        parse_reply(reply)
    }

    async fn fetch_json<T: DeserializeOwned>(&self, request: Request) -> Result<Reply<T>> {
        parse_reply(self.send_with_failover(request).await?)
    }

    async fn fetch_value<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        self.fetch_json(request).await.map(|reply| reply.value)
    }
}

/// The document of a 2xx reply.
fn parse_reply<T: DeserializeOwned>(reply: RawReply) -> Result<Reply<T>> {
    if !(200..300).contains(&reply.status) {
        return Err(reply.into_error());
    }
    match serde_json::from_slice(&reply.body) {
        Ok(value) => Ok(Reply { value, body: reply.body }),
        Err(e) => {
            let start = excerpt(&reply.body);
            Err(reply.into_invalid(format!("cannot read its reply: {e}; it begins `{start}`")))
        }
    }
}

impl RawReply {
    /// The error of a reply with another status.
    fn into_error(self) -> ClientError {
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(mut problem) => {
                // The status line overrides the document.
                problem.status = self.status;
                ClientError::Problem { problem: Box::new(problem), retry_after: self.retry_after }
            }
            Err(_) => {
                let message = format!("status {}: `{}`", self.status, excerpt(&self.body));
                self.into_invalid(message)
            }
        }
    }

    fn into_invalid(self, message: String) -> ClientError {
        ClientError::InvalidReply { url: self.url, status: Some(self.status), message }
    }
}

#[cfg(test)]
mod tests;
