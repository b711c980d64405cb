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
mod text;
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
use exchange::{Answer, Request};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;
use text::{causes, check_url, encode, excerpt, is_loopback, with_port};
use tokio::sync::watch;

/// A host that does not answer SYN is given up after this, so that the next master gets its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A long poll may take this much longer than it asked to wait.
const POLL_SLACK: Duration = Duration::from_secs(10);

/// How a [`MasterClient`] behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// A request without a complete reply after this is given up.
    pub request_timeout: Duration,
    /// Where there are several masters and none of them leads, it is asked again for so long: one of them
    /// is about to take over.
    pub takeover: Duration,
    /// An operator's order whose reply was lost is sent again for so long, counted from the first attempt.
    pub resend: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            request_timeout: Duration::from_secs(30),
            takeover: Duration::ZERO,
            resend: Duration::ZERO,
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
    #[error("no master can be reached: {}", list(.tried))]
    Unreachable {
        /// Every URL that was asked, with what went wrong there.
        tried: Vec<(String, String)>,
    },
    /// Something answered, but not as a master does.
    #[error("{} does not answer like a master: {message}", with_port(.url))]
    Broken {
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
    #[error("several sync ids begin with `{prefix}`: {}", some(.ids))]
    Ambiguous {
        /// What was given.
        prefix: RequestId,
        /// Their ids.
        ids: Vec<RequestId>,
    },
    /// A master URL that can't be used.
    #[error("master URL `{url}`: {message}")]
    BadUrl {
        /// As it was given, without control characters.
        url: String,
        /// What is wrong with it.
        message: String,
    },
}

fn list(tried: &[(String, String)]) -> String {
    let each = |(url, why): &(String, String)| format!("{}: {why}", with_port(url));
    let each: Vec<String> = tried.iter().map(each).collect();
    each.join("; ")
}

/// The first of several ids.
fn some(ids: &[RequestId]) -> String {
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
            ClientError::Broken { status, .. } => *status,
            ClientError::Unconfirmed(cause) => cause.status(),
            ClientError::Unreachable { .. }
            | ClientError::Ambiguous { .. }
            | ClientError::BadUrl { .. } => None,
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
    pub fn is_temporary(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Unconfirmed(cause) => cause.is_temporary(),
            ClientError::Ambiguous { .. } | ClientError::BadUrl { .. } => false,
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

/// A client of one master, or of several of which one leads. Cheap to share behind an `Arc`.
pub struct MasterClient {
    http: reqwest::Client,
    /// For replies of any length: only their pauses are bounded.
    streams: reqwest::Client,
    /// Without a trailing slash, in the order in which they are asked.
    bases: Vec<String>,
    /// The base that answered last; asked first.
    leader: watch::Sender<Option<String>>,
    options: ClientOptions,
}

impl fmt::Debug for MasterClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterClient").field("bases", &self.bases).finish_non_exhaustive()
    }
}

impl MasterClient {
    /// A client for `urls`: `http://host:port[/prefix]`, or just `host:port` or `host` (port 8888); one string may hold
    /// several, separated by commas. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::BadUrl`] for no URL at all, one that can't be read, a scheme other than
    /// `http`, or one with a user name or password in it.
    pub fn new(urls: Vec<String>, options: ClientOptions) -> Result<Self, ClientError> {
        let parts = urls.iter().flat_map(|u| u.split(',')).map(str::trim).filter(|u| !u.is_empty());
        let mut bases: Vec<String> = Vec::new();
        let mut all_local = true;
        for part in parts {
            let url = check_url(part)?;
            all_local &= is_loopback(&url);
            let base = url.as_str().trim_end_matches('/').to_owned();
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        if bases.is_empty() {
            return Err(ClientError::BadUrl {
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
            builder.build().map_err(|e| ClientError::BadUrl {
                url: bases.join(","),
                message: format!("cannot set up an HTTP client: {}", causes(&e)),
            })
        };
        let (http, streams) = (built(None)?, built(Some(options.request_timeout))?);
        Ok(MasterClient { http, streams, bases, leader: watch::Sender::new(None), options })
    }

    /// The URLs, in the order in which they are asked.
    pub fn urls(&self) -> &[String] {
        &self.bases
    }

    /// The URL of the master that answered last, if it still does.
    pub fn answering(&self) -> Option<String> {
        self.leader.borrow().clone()
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
        let mut send = self.command(Method::POST, "/sync").json(request)?;
        if let Some(key) = idempotency {
            send.headers.push(("idempotency-key", key.to_owned()));
        }
        self.fetch(send).await
    }

    /// `GET /sync/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown (or deleted) id, any [`ClientError`].
    pub async fn progress(&self, id: &RequestId) -> Result<Reply<SyncProgress>, ClientError> {
        let target = format!("/sync/{id}");
        self.fetch(self.request(Method::GET, &target).brief()).await
    }

    /// `PATCH /sync/{id}`: changes a sync that runs. The same change twice is one.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 for one that has ended, any [`ClientError`].
    pub async fn change(
        &self,
        id: &RequestId,
        change: &SyncPatch,
    ) -> Result<Reply<SyncProgress>, ClientError> {
        let target = format!("/sync/{id}");
        self.fetch(self.command(Method::PATCH, &target).json(change)?).await
    }

    /// `POST /sync/{id}/cancel`: ends it and keeps its record.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn cancel(&self, id: &RequestId) -> Result<Reply<SyncProgress>, ClientError> {
        self.fetch(self.command(Method::POST, &format!("/sync/{id}/cancel"))).await
    }

    /// `POST /sync/{id}/retry`: submits what an ended sync asked for again. The same `idempotency` key
    /// brings the first reply again.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 where it cannot be tried again, any [`ClientError`].
    pub async fn retry(
        &self,
        id: &RequestId,
        request: &RetryRequest,
        idempotency: &str,
    ) -> Result<Reply<SubmitReply>, ClientError> {
        let target = format!("/sync/{id}/retry");
        let mut send = self.command(Method::POST, &target).json(request)?;
        send.headers.push(("idempotency-key", idempotency.to_owned()));
        self.fetch(send).await
    }

    /// `POST /sync/{id}/pause` (`on`) or `…/resume`: hands out nothing more of it, or lets it go on.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, 409 where it has ended, any [`ClientError`].
    pub async fn pause(
        &self,
        id: &RequestId,
        on: bool,
    ) -> Result<Reply<SyncProgress>, ClientError> {
        let verb = if on { "pause" } else { "resume" };
        self.fetch(self.command(Method::POST, &format!("/sync/{id}/{verb}"))).await
    }

    /// `DELETE /sync/{id}`: ends it where it still runs, and forgets it.
    ///
    /// # Errors
    /// A 404 problem for an unknown id, any [`ClientError`].
    pub async fn delete(&self, id: &RequestId) -> Result<Reply<serde_json::Value>, ClientError> {
        let target = format!("/sync/{id}");
        let command = self.command(Method::DELETE, &target);
        self.remove(command, || serde_json::json!({ "status": "deleted" })).await
    }

    /// `GET /version`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn version(&self) -> Result<Reply<serde_json::Value>, ClientError> {
        self.fetch(self.request(Method::GET, "/version")).await
    }

    /// `GET /readyz`: whether the master can take work now.
    ///
    /// # Errors
    /// The master's 503, any [`ClientError`].
    pub async fn ready(&self) -> Result<(), ClientError> {
        let answer = self.exchange(self.request(Method::GET, "/readyz")).await?;
        if (200..300).contains(&answer.status) { Ok(()) } else { Err(refusal(answer)) }
    }

    /// `GET /readyz?verbose` of each master by itself, all at once, in the order of [`urls`](Self::urls).
    ///
    /// # Errors
    /// For each: any [`ClientError`].
    pub async fn each_readiness(&self) -> Vec<(String, Result<Reply<Readiness>, ClientError>)> {
        let asked = self.bases.iter().map(|base| async move {
            let send = self.request(Method::GET, "/readyz?verbose").brief();
            let answer = match self.ask(base, &send, &mut false, &[]).await {
                Ok(mut answer) => {
                    // A master that can't decide says as much as one that can.
                    if answer.status == 503
                        && serde_json::from_slice::<Readiness>(&answer.body).is_ok()
                    {
                        answer.status = 200;
                    }
                    read(answer)
                }
                Err(why) => {
                    let tried = vec![(base.clone(), why.to_string())];
                    Err(ClientError::Unreachable { tried })
                }
            };
            (base.clone(), answer)
        });
        futures_util::future::join_all(asked).await
    }

    /// `POST /workers/heartbeat`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn heartbeat(
        &self,
        heartbeat: &WorkerHeartbeat,
    ) -> Result<HeartbeatReply, ClientError> {
        let send = self.request(Method::POST, "/workers/heartbeat").brief().json(heartbeat)?;
        self.fetch(send).await.map(|reply| reply.value)
    }

    /// `POST /workers/{id}/assignment?wait=`: the next task, or `None` after `wait` (whole seconds).
    /// A poll repeated with the same `poll_id` gets the same lease. `incarnation` is the one of the
    /// heartbeats.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn poll(
        &self,
        worker: &WorkerId,
        wait: Duration,
        poll_id: Option<&str>,
        incarnation: Option<&str>,
    ) -> Result<Option<Assignment>, ClientError> {
        let mut target = format!("/workers/{worker}/assignment?wait={}s", wait.as_secs());
        for (key, value) in [("poll_id", poll_id), ("incarnation", incarnation)] {
            if let Some(value) = value {
                target.push_str(&format!("&{key}={}", encode(value)));
            }
        }
        let mut send = self.request(Method::POST, &target);
        send.timeout = wait.saturating_add(POLL_SLACK).max(self.options.request_timeout);
        self.fetch(send).await.map(|reply| reply.value)
    }

    /// `GET /workers/{id}/assignments/{assignment}/manifest`: the encoded manifest (or name list). What comes
    /// damaged is counted.
    ///
    /// # Errors
    /// A 404 problem when the worker does not hold the assignment (any more), any [`ClientError`].
    pub async fn manifest(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        damage: &CorruptionCounter,
    ) -> Result<Vec<u8>, ClientError> {
        let target = format!("/workers/{worker}/assignments/{assignment}/manifest");
        let answer = self.exchange(self.request(Method::GET, &target).counted(damage)).await?;
        if answer.status == 200 { Ok(answer.body.into()) } else { Err(refusal(answer)) }
    }

    /// `POST /workers/{id}/assignments/{assignment}/page`. A page sent twice counts once. What comes damaged
    /// is counted.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn page(
        &self,
        worker: &WorkerId,
        assignment: AssignmentId,
        page: &ScanPage,
        damage: &CorruptionCounter,
    ) -> Result<PageReply, ClientError> {
        let target = format!("/workers/{worker}/assignments/{assignment}/page");
        let send = self.request(Method::POST, &target).counted(damage).json(page)?;
        self.fetch(send).await.map(|reply| reply.value)
    }

    /// `POST /workers/result`. What comes damaged is counted.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn result(
        &self,
        result: &TaskResult,
        damage: &CorruptionCounter,
    ) -> Result<ResultReply, ClientError> {
        let send = self.request(Method::POST, "/workers/result").counted(damage).json(result)?;
        self.fetch(send).await.map(|reply| reply.value)
    }

    fn request<'a>(&self, method: Method, target: &'a str) -> Request<'a> {
        Request {
            method,
            target,
            body: None,
            headers: Vec::new(),
            timeout: self.options.request_timeout,
            streamed: false,
            several: self.bases.len() > 1,
            command: false,
            damage: CorruptionCounter::default(),
        }
    }

    /// A request by which an operator changes something.
    fn command<'a>(&self, method: Method, target: &'a str) -> Request<'a> {
        Request { command: true, ..self.request(method, target) }
    }

    /// Sends an order after which a repeat is answered with 404. Where the reply to an earlier attempt was
    /// lost, that 404 shows that it was carried out, and `done` is the reply to it.
    async fn remove<T: DeserializeOwned + Serialize>(
        &self,
        order: Request<'_>,
        done: impl FnOnce() -> T,
    ) -> Result<Reply<T>, ClientError> {
        let mut answer = self.exchange(order).await?;
        if answer.status == 404 && answer.repeated {
            answer.status = 200;
            answer.body = serde_json::to_vec(&done()).unwrap_or_default().into();
        }
        read(answer)
    }

    async fn fetch<T: DeserializeOwned>(
        &self,
        request: Request<'_>,
    ) -> Result<Reply<T>, ClientError> {
        read(self.exchange(request).await?)
    }
}

/// The document of a 2xx answer.
fn read<T: DeserializeOwned>(answer: Answer) -> Result<Reply<T>, ClientError> {
    if !(200..300).contains(&answer.status) {
        return Err(refusal(answer));
    }
    match serde_json::from_slice(&answer.body) {
        Ok(value) => Ok(Reply { value, body: answer.body }),
        Err(e) => Err(ClientError::Broken {
            message: format!("cannot read its reply: {e}; it begins `{}`", excerpt(&answer.body)),
            url: answer.url,
            status: Some(answer.status),
        }),
    }
}

/// The error of an answer that is not 2xx.
fn refusal(answer: Answer) -> ClientError {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(mut problem) => {
            // The status line rules: a document that says otherwise was copied from elsewhere.
            problem.status = answer.status;
            ClientError::Problem { problem: Box::new(problem), retry_after: answer.retry_after }
        }
        Err(_) => ClientError::Broken {
            message: format!("status {}: `{}`", answer.status, excerpt(&answer.body)),
            url: answer.url,
            status: Some(answer.status),
        },
    }
}

#[cfg(test)]
mod tests;
