//! The typed HTTP client of the master, for agents and for the command line.
//!
//! Every request may be sent twice without harm: a submit carries an idempotency key, a poll its
//! number, a page its position, a result its assignment. So a connection that breaks under a request
//! is tried again, and where several masters are given the next one is asked. A follower's `307` is
//! followed, and the leader it names is asked first from then on. Requests that wait at a master whose
//! place another one has taken are sent to that one.

mod download;
mod exchange;
mod list;
mod url_text;
mod workers;

pub use download::Download;

use crate::util::corruption::CorruptionCounter;
use crate::wire::leader::Readiness;
use crate::wire::problem::Problem;
use crate::wire::sync::{RetryRequest, SubmitReply, SyncPatch, SyncProgress};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::worker::{HeartbeatReply, WorkerHeartbeat};
use crate::wire::{AssignmentId, RequestId, WorkerId};
use bytes::Bytes;
use exchange::{RawReply, Request};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;
use tokio::sync::watch;
use url_text::{error_chain, excerpt, is_loopback, parse_master_url, percent_encode, with_port};

/// A host that does not answer SYN is given up after this, so that the next master gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A long poll may take this much longer than it asked to wait.
const POLL_REPLY_MARGIN: Duration = Duration::from_secs(10);

/// How a [`MasterClient`] behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// A request without a complete reply after this is given up.
    pub request_timeout: Duration,
    /// Where there are several masters and none of them leads, it is asked again for so long: one of them
    /// is about to take over.
    pub takeover_timeout: Duration,
    /// An operator's order whose reply was lost is sent again for so long, counted from the first attempt.
    pub resend_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            request_timeout: Duration::from_secs(30),
            takeover_timeout: Duration::ZERO,
            resend_timeout: Duration::ZERO,
        }
    }
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The master refused, and said why.
    #[error("{}", problem.detail)]
    Problem {
        /// What it said.
        problem: Box<Problem>,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or none that lasted until the reply was complete.
    #[error("no master can be reached: {}", join_attempts(.attempts))]
    Unreachable {
        /// Every URL that was asked, with what went wrong there.
        attempts: Vec<(String, String)>,
    },
    /// Something answered, but not as a master does.
    #[error("{} does not answer like a master: {message}", with_port(.url))]
    InvalidReply {
        /// Who answered.
        url: String,
        /// The HTTP status, where there was one.
        status: Option<u16>,
        /// What is wrong with the answer.
        message: String,
    },
    /// An operator's order was sent, and no answer shows whether it was carried out.
    #[error("{0}; the request may have been carried out")]
    Unconfirmed(Box<ClientError>),
    /// Several syncs have ids that begin so.
    #[error("several sync ids begin with `{prefix}`: {}", join_ids(.ids))]
    AmbiguousId {
        /// What was given.
        prefix: RequestId,
        /// Their ids.
        ids: Vec<RequestId>,
    },
    /// A master URL that can't be used.
    #[error("master URL `{url}`: {message}")]
    InvalidUrl {
        /// As it was given, without control characters.
        url: String,
        /// What is wrong with it.
        message: String,
    },
}

fn join_attempts(tried: &[(String, String)]) -> String {
    let each = |(url, why): &(String, String)| format!("{}: {why}", with_port(url));
    let each: Vec<String> = tried.iter().map(each).collect();
    each.join("; ")
}

/// The first of several ids.
fn join_ids(ids: &[RequestId]) -> String {
    const SHOWN: usize = 10;
    let mut shown: Vec<&str> = ids.iter().take(SHOWN).map(RequestId::as_str).collect();
    shown.extend((ids.len() > SHOWN).then_some("…"));
    shown.join(", ")
}

impl ClientError {
    /// The HTTP status of the reply, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Problem { problem, .. } => Some(problem.status),
            ClientError::InvalidReply { status, .. } => *status,
            ClientError::Unconfirmed(cause) => cause.status(),
            ClientError::Unreachable { .. }
            | ClientError::AmbiguousId { .. }
            | ClientError::InvalidUrl { .. } => None,
        }
    }

    /// The problem document's word for programs, e.g. `sync_exists`.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Problem { problem, .. } => Some(&problem.code),
            ClientError::Unconfirmed(cause) => cause.code(),
            _ => None,
        }
    }

    /// When the master wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Problem { retry_after, .. } => *retry_after,
            ClientError::Unconfirmed(cause) => cause.retry_after(),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Unconfirmed(cause) => cause.is_retryable(),
            ClientError::AmbiguousId { .. } | ClientError::InvalidUrl { .. } => false,
            // A proxy before the master answers 502, 503, 504 in its own words.
            _ => matches!(self.status(), Some(408 | 429 | 502 | 503 | 504)),
        }
    }

    /// Whether the master does not know what was asked for.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Problem { problem, .. } if problem.status == 404)
    }

    /// Whether no answer came from any master.
    pub fn is_unreachable(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Unconfirmed(cause) => cause.is_unreachable(),
            _ => false,
        }
    }

    /// Whether the master may have carried out an order although this is an error.
    pub fn is_unconfirmed(&self) -> bool {
        matches!(self, ClientError::Unconfirmed(_))
    }
}

/// A reply, read and as it came. It can be used like the document itself.
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
    /// The URL it was asked at.
    pub url: String,
    /// Its readiness, also if it is not ready.
    pub readiness: Result<Reply<Readiness>, ClientError>,
}

/// A client of one master, or of several of which one leads. Cheap to share behind an `Arc`.
pub struct MasterClient {
    http: reqwest::Client,
    /// For replies of any length: only their pauses are bounded.
    streaming_http: reqwest::Client,
    /// Without a trailing slash, in the order in which they are asked.
    base_urls: Vec<String>,
    /// The base that answered last; asked first.
    last_answered: watch::Sender<Option<String>>,
    options: ClientOptions,
}

impl fmt::Debug for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterClient").field("bases", &self.base_urls).finish_non_exhaustive()
    }
}

impl MasterClient {
    /// A client for `urls`: `http://host:port[/prefix]`, or just `host:port` or `host` (port 8888); one string may hold
    /// several, separated by commas. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`] for no URL at all, one that can't be read, a scheme other than
    /// `http`, or one with a user name or password in it.
    pub fn new(urls: Vec<String>, options: ClientOptions) -> Result<Self, ClientError> {
        let parts = urls.iter().flat_map(|u| u.split(',')).map(str::trim).filter(|u| !u.is_empty());
        let mut bases: Vec<String> = Vec::new();
        let mut all_local = true;
        for part in parts {
            let url = parse_master_url(part)?;
            all_local &= is_loopback(&url);
            let base = url.as_str().trim_end_matches('/').to_owned();
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        if bases.is_empty() {
            return Err(ClientError::InvalidUrl {
                url: String::new(),
                message: "is empty; give at least one, e.g. http://127.0.0.1:8888".to_owned(),
            });
        }
        let built = |pause: Option<Duration>| {
            let mut builder = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT.min(options.request_timeout))
                .tcp_nodelay(true)
                .user_agent(concat!("longhaul/", env!("CARGO_PKG_VERSION")));
            if let Some(pause) = pause {
                builder = builder.read_timeout(pause);
            }
            if all_local {
                // A proxy set for the outside world must not catch a master on this host.
                builder = builder.no_proxy();
            }
            builder.build().map_err(|e| ClientError::InvalidUrl {
                url: bases.join(","),
                message: format!("cannot set up an HTTP client: {}", error_chain(&e)),
            })
        };
        let (http, streams) = (built(None)?, built(Some(options.request_timeout))?);
        Ok(MasterClient {
            http,
            streaming_http: streams,
            base_urls: bases,
            last_answered: watch::Sender::new(None),
            options,
        })
    }

    /// The URLs, in the order in which they are asked.
    pub fn urls(&self) -> &[String] {
        &self.base_urls
    }

    /// The URL of the master that answered last, if it still does.
    pub fn last_answering_url(&self) -> Option<String> {
        self.last_answered.borrow().clone()
    }

    /// `POST /sync` with a [`SyncRequest`], or a document like it that leaves out what has a default.
    /// The same `idempotency` key with the same request brings the first reply again.
    ///
    /// [`SyncRequest`]: crate::wire::sync::SyncRequest
    ///
    /// # Errors
    /// Problems `sync_exists` (409), invalid fields (422, all of them), any [`ClientError`].
    pub async fn submit(
        &self,
        request: &impl Serialize,
        idempotency: Option<&str>,
    ) -> Result<Reply<SubmitReply>, ClientError> {
        let mut send = self.new_command(Method::POST, "/sync").with_json(request)?;
        if let Some(key) = idempotency {
            send.headers.push(("idempotency-key", key.to_owned()));
        }
        self.fetch_json(send).await
    }

    /// `GET /sync/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown (or deleted) id, any [`ClientError`].
    pub async fn get_sync(&self, id: &RequestId) -> Result<Reply<SyncProgress>, ClientError> {
        let target = format!("/sync/{id}");
        self.fetch_json(self.new_request(Method::GET, &target).with_failover_timeout()).await
    }

    /// `PATCH /sync/{id}`: changes a sync that runs. The same change twice is one.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 for one that has ended, any [`ClientError`].
    pub async fn update_sync(
        &self,
        id: &RequestId,
        change: &SyncPatch,
    ) -> Result<Reply<SyncProgress>, ClientError> {
        let target = format!("/sync/{id}");
        self.fetch_json(self.new_command(Method::PATCH, &target).with_json(change)?).await
    }

    /// `POST /sync/{id}/cancel`: ends it and keeps its record.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn cancel_sync(&self, id: &RequestId) -> Result<Reply<SyncProgress>, ClientError> {
        self.fetch_json(self.new_command(Method::POST, &format!("/sync/{id}/cancel"))).await
    }

    /// `POST /sync/{id}/retry`: submits what an ended sync asked for again. The same `idempotency` key
    /// brings the first reply again.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 where it cannot be tried again, any [`ClientError`].
    pub async fn retry_sync(
        &self,
        id: &RequestId,
        request: &RetryRequest,
        idempotency: &str,
    ) -> Result<Reply<SubmitReply>, ClientError> {
        let target = format!("/sync/{id}/retry");
        let mut send = self.new_command(Method::POST, &target).with_json(request)?;
        send.headers.push(("idempotency-key", idempotency.to_owned()));
        self.fetch_json(send).await
    }

    /// `POST /sync/{id}/pause` (`on`) or `…/resume`: hands out nothing more of it, or lets it go on.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 where it has ended, any [`ClientError`].
    pub async fn set_paused(
        &self,
        id: &RequestId,
        on: bool,
    ) -> Result<Reply<SyncProgress>, ClientError> {
        let verb = if on { "pause" } else { "resume" };
        self.fetch_json(self.new_command(Method::POST, &format!("/sync/{id}/{verb}"))).await
    }

    /// `DELETE /sync/{id}`: ends it where it still runs, and forgets it.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn delete_sync(
        &self,
        id: &RequestId,
    ) -> Result<Reply<serde_json::Value>, ClientError> {
        let target = format!("/sync/{id}");
        let command = self.new_command(Method::DELETE, &target);
        self.send_removal(command, || serde_json::json!({ "status": "deleted" })).await
    }

    /// `GET /version`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn get_version(&self) -> Result<Reply<serde_json::Value>, ClientError> {
        self.fetch_json(self.new_request(Method::GET, "/version")).await
    }

    /// `GET /readyz`: whether the master can take work now.
    ///
    /// # Errors
    /// The master's 503, any [`ClientError`].
    pub async fn check_readiness(&self) -> Result<(), ClientError> {
        let answer = self.send_with_failover(self.new_request(Method::GET, "/readyz")).await?;
        if (200..300).contains(&answer.status) { Ok(()) } else { Err(error_of_answer(answer)) }
    }

    /// `GET /readyz?verbose` of every master, concurrently, in the order of [`urls`](Self::urls).
    pub async fn fetch_each_readiness(&self) -> Vec<MasterStatus> {
        let requests = self.base_urls.iter().map(|base| async move {
            let request = self.new_request(Method::GET, "/readyz?verbose").with_failover_timeout();
            let readiness = match self.send_to_master(base, &request, &mut false, &[]).await {
                // A master that is not ready replies with 503 and the same document.
                Ok(mut reply) => {
                    if reply.status == 503
                        && serde_json::from_slice::<Readiness>(&reply.body).is_ok()
                    {
                        reply.status = 200;
                    }
                    parse_reply(reply)
                }
                Err(e) => {
                    Err(ClientError::Unreachable { attempts: vec![(base.clone(), e.to_string())] })
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
    pub async fn send_heartbeat(
        &self,
        heartbeat: &WorkerHeartbeat,
    ) -> Result<HeartbeatReply, ClientError> {
        let send = self
            .new_request(Method::POST, "/workers/heartbeat")
            .with_failover_timeout()
            .with_json(heartbeat)?;
        self.fetch_json(send).await.map(|reply| reply.value)
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
    ) -> Result<Option<Assignment>, ClientError> {
        let mut target = format!("/workers/{worker}/assignment?wait={}s", wait.as_secs());
        for (key, value) in [("poll_id", poll_id), ("incarnation", incarnation)] {
            if let Some(value) = value {
                target.push_str(&format!("&{key}={}", percent_encode(value)));
            }
        }
        let mut send = self.new_request(Method::POST, &target);
        send.timeout = wait.saturating_add(POLL_REPLY_MARGIN).max(self.options.request_timeout);
        self.fetch_json(send).await.map(|reply| reply.value)
    }

    /// `GET /workers/{id}/assignments/{assignment}/manifest`: the encoded manifest (or name list). What comes
    /// damaged is counted.
    ///
    /// # Errors
    /// A 404 problem when the worker does not hold the assignment (any more), any [`ClientError`].
    pub async fn fetch_manifest(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        damage: &CorruptionCounter,
    ) -> Result<Vec<u8>, ClientError> {
        let target = format!("/workers/{worker}/assignments/{assignment}/manifest");
        let answer = self
            .send_with_failover(self.new_request(Method::GET, &target).counting_corruption(damage))
            .await?;
        if answer.status == 200 { Ok(answer.body.into()) } else { Err(error_of_answer(answer)) }
    }

    /// `POST /workers/{id}/assignments/{assignment}/page`. A page sent twice counts once. What comes damaged
    /// is counted.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn send_scan_page(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        page: &ScanPage,
        damage: &CorruptionCounter,
    ) -> Result<PageReply, ClientError> {
        let target = format!("/workers/{worker}/assignments/{assignment}/page");
        let send =
            self.new_request(Method::POST, &target).counting_corruption(damage).with_json(page)?;
        self.fetch_json(send).await.map(|reply| reply.value)
    }

    /// `POST /workers/result`. What comes damaged is counted.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn send_result(
        &self,
        result: &TaskResult,
        damage: &CorruptionCounter,
    ) -> Result<ResultReply, ClientError> {
        let send = self
            .new_request(Method::POST, "/workers/result")
            .counting_corruption(damage)
            .with_json(result)?;
        self.fetch_json(send).await.map(|reply| reply.value)
    }

    fn new_request<'a>(&self, method: Method, target: &'a str) -> Request<'a> {
        Request {
            method,
            path_and_query: target,
            body: None,
            headers: Vec::new(),
            timeout: self.options.request_timeout,
            is_streamed: false,
            has_several_masters: self.base_urls.len() > 1,
            is_command: false,
            corruption_counter: CorruptionCounter::default(),
        }
    }

    /// A request by which an operator changes something.
    fn new_command<'a>(&self, method: Method, target: &'a str) -> Request<'a> {
        Request { is_command: true, ..self.new_request(method, target) }
    }

    /// Sends an order after which a repeat is answered with 404. Where the reply to an earlier attempt was
    /// lost, that 404 shows that it was carried out, and `done` is the reply to it.
    async fn send_removal<T: DeserializeOwned + Serialize>(
        &self,
        order: Request<'_>,
        done: impl FnOnce() -> T,
    ) -> Result<Reply<T>, ClientError> {
        let mut answer = self.send_with_failover(order).await?;
        if answer.status == 404 && answer.is_repeat {
            answer.status = 200;
            answer.body = serde_json::to_vec(&done()).unwrap_or_default().into();
        }
        parse_reply(answer)
    }

    async fn fetch_json<T: DeserializeOwned>(
        &self,
        request: Request<'_>,
    ) -> Result<Reply<T>, ClientError> {
        parse_reply(self.send_with_failover(request).await?)
    }
}

/// The document of a 2xx answer.
fn parse_reply<T: DeserializeOwned>(answer: RawReply) -> Result<Reply<T>, ClientError> {
    if !(200..300).contains(&answer.status) {
        return Err(error_of_answer(answer));
    }
    match serde_json::from_slice(&answer.body) {
        Ok(value) => Ok(Reply { value, body: answer.body }),
        Err(e) => Err(ClientError::InvalidReply {
            message: format!("cannot read its reply: {e}; it begins `{}`", excerpt(&answer.body)),
            url: answer.url,
            status: Some(answer.status),
        }),
    }
}

/// The error of an answer that is not 2xx.
fn error_of_answer(answer: RawReply) -> ClientError {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(mut problem) => {
            // The status line rules: a document that says otherwise was copied from elsewhere.
            problem.status = answer.status;
            ClientError::Problem { problem: Box::new(problem), retry_after: answer.retry_after }
        }
        Err(_) => ClientError::InvalidReply {
            message: format!("status {}: `{}`", answer.status, excerpt(&answer.body)),
            url: answer.url,
            status: Some(answer.status),
        },
    }
}

#[cfg(test)]
mod tests;
