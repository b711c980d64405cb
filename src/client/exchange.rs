//! One request and its reply, with several masters: the one that replied last is tried first, then the others; redirects
//! are followed; a request that waits at a former leader moves to the new one.

use super::url_text::{describe_transport_error, sanitize};
use super::{ClientError, FailedAttempt, MasterClient, Result};
use crate::util::checksum;
use crate::util::corruption::CorruptionCounter;
use crate::wire::problem::{Problem, ProblemCode};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Method, Url};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Longer replies are refused; `GET /sync` of 100,000 remembered syncs is shorter.
const MAX_REPLY_BYTES: usize = 256 << 20;
/// The most redirects of one request.
pub(super) const MAX_REDIRECTS: u32 = 4;
/// With several masters: the timeout of requests that a master replies to at once. A master that is stopped sends no reply
/// although its system accepts connections.
pub(super) const FAILOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two rounds over all masters.
const ROUND_INTERVAL: Duration = Duration::from_millis(500);
/// The most immediate repeats of a request because it or its reply arrived corrupted.
const MAX_CORRUPTION_RETRIES: u32 = 3;
/// Every master replies to this one itself, so the reply does not show which one leads.
const READINESS_PATH: &str = "/readyz";

/// Holds the token of the next page of a list.
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

pub(super) struct RawReply {
    pub(super) url: String,
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    /// The token of the next page of a list.
    pub(super) next_page_token: Option<String>,
    pub(super) body: Bytes,
    /// The body of a 200 to a request with [`is_streamed`](Request::is_streamed).
    pub(super) streaming_response: Option<reqwest::Response>,
    /// The connection of an earlier attempt broke: the master may have acted on it.
    pub(super) is_repeat: bool,
}

impl RawReply {
    /// Whether the reply is that no master can handle the request now.
    fn is_gateway_error(&self) -> bool {
        matches!(self.status, 502..=504)
    }
}

/// One request, kept so that it can be sent again.
pub(super) struct Request {
    pub(super) method: Method,
    /// Starts with `/`.
    pub(super) path_and_query: String,
    pub(super) body: Option<Bytes>,
    pub(super) idempotency_key: Option<String>,
    pub(super) timeout: Duration,
    /// The reply may be of any length, and its body is not read here.
    pub(super) is_streamed: bool,
    /// It changes something for an operator, so the result has to show whether it was carried out.
    pub(super) is_command: bool,
    /// Counts how often the request or its reply arrived corrupted.
    pub(super) corruption_counter: CorruptionCounter,
}

impl MasterClient {
    /// Tries all masters until one leads, or [`takeover_timeout`](super::ClientOptions::takeover_timeout) is over. A
    /// command without a reply is sent again for [`resend_timeout`](super::ClientOptions::resend_timeout): only a reply
    /// shows whether it was carried out.
    pub(super) async fn send_with_failover(&self, request: Request) -> Result<RawReply> {
        let started = Instant::now();
        let several = self.base_urls.len() > 1;
        let takeover = if several { self.options.takeover_timeout } else { Duration::ZERO };
        let mut is_repeat = false;
        loop {
            let result = self.try_each_master(&request, &mut is_repeat).await;
            let is_final = match &result {
                Ok(reply) => !reply.is_gateway_error(),
                Err(e) => !e.is_retryable(),
            };
            let timeout = match request.is_command && is_repeat {
                true => takeover.max(self.options.resend_timeout),
                false => takeover,
            };
            if is_final || started.elapsed() + ROUND_INTERVAL >= timeout {
                return if request.is_command {
                    mark_unconfirmed(result, is_repeat)
                } else {
                    result
                };
            }
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    /// Sends `request` to the master that replied last, then to the others in turn, until one handles it.
    async fn try_each_master(&self, request: &Request, is_repeat: &mut bool) -> Result<RawReply> {
        let mut attempts: Vec<FailedAttempt> = Vec::new();
        let mut gateway_error = None;
        let mut queue = VecDeque::from(self.master_order());
        while let Some(base) = queue.pop_front() {
            match self.send_to_master(&base, request, is_repeat, &attempts).await {
                Ok(reply) if reply.is_gateway_error() => gateway_error = Some(reply),
                Ok(reply) => return Ok(RawReply { is_repeat: *is_repeat, ..reply }),
                Err(e) => {
                    self.forget_leader(&base);
                    // A URL that was not given, or one that was tried before it led.
                    if let AttemptError::LeaderChanged(leader) = &e
                        && !queue.contains(leader)
                        && !attempts.iter().any(|attempt| attempt.url == *leader)
                    {
                        queue.push_front(leader.clone());
                    }
                    attempts.push(FailedAttempt { url: base, error: e.to_string() });
                }
            }
        }
        gateway_error.ok_or(ClientError::Unreachable { attempts })
    }

    /// Sends `request` to one master and follows its redirects, except to masters that failed in `attempts`.
    pub(super) async fn send_to_master(
        &self,
        base: &str,
        request: &Request,
        is_repeat: &mut bool,
        attempts: &[FailedAttempt],
    ) -> Result<RawReply, AttemptError> {
        let path = request.path_and_query.as_str();
        let mut url = format!("{base}{path}");
        let (mut hops, mut corrupted, mut is_reconnect) = (0, 0, false);
        // Only a leader that is found from here on counts.
        let mut leader = self.last_answered.subscribe();
        loop {
            let here = url.strip_suffix(path).unwrap_or(base).to_owned();
            let no_reply = |cause: String| match hops {
                0 => AttemptError::NoReply(cause),
                // The master that failed is another one than `base`.
                _ => AttemptError::NoReply(format!(
                    "sent the request on to {}, which the leader advertises as its address (advertise_url) \
                     and which does not answer: {cause}",
                    sanitize(url.strip_suffix(path).unwrap_or(&url))
                )),
            };
            let sent = tokio::select! {
                sent = self.send_once(&url, request) => sent,
                new_leader = wait_for_other_leader(&mut leader, &here) => {
                    *is_repeat = true;
                    return Err(AttemptError::LeaderChanged(new_leader));
                }
            };
            let reply = match sent {
                Ok(reply) => reply,
                Err(SendError::Corrupted { subject, may_have_acted }) => {
                    let about = format!("{subject} of {} {path}", request.method);
                    request.corruption_counter.record(&about, &here);
                    *is_repeat |= may_have_acted;
                    corrupted += 1;
                    if corrupted <= MAX_CORRUPTION_RETRIES {
                        continue;
                    }
                    return Err(no_reply(format!("{subject}: {}", checksum::CHECKSUM_MISMATCH)));
                }
                Err(SendError::Http(e)) => {
                    let error = no_reply(describe_transport_error(&e, request.timeout));
                    if e.is_connect() {
                        return Err(error);
                    }
                    *is_repeat = true;
                    // A kept connection that a restarted master has closed: once more on a new one.
                    if is_reconnect || e.is_timeout() {
                        return Err(error);
                    }
                    is_reconnect = true;
                    continue;
                }
            };
            let Some(location) = &reply.location else {
                if reply.status < 500 && !path.starts_with(READINESS_PATH) {
                    self.last_answered
                        .send_if_modified(|leader| leader.replace(here.clone()) != Some(here));
                }
                return Ok(reply);
            };
            if hops == MAX_REDIRECTS {
                return Err(AttemptError::NoReply(format!(
                    "sent the request on {MAX_REDIRECTS} times without an answer"
                )));
            }
            hops += 1;
            let next = Url::parse(&url).and_then(|here| here.join(location)).map_err(|e| {
                AttemptError::NoReply(format!(
                    "sent the request on to `{}`: {e}",
                    sanitize(location)
                ))
            })?;
            if next.scheme() == "http" && url.starts_with("https:") {
                return Err(AttemptError::NoReply(format!(
                    "sent the request on to {}, which is not protected by TLS; set advertise_url of that master to \
                     an https:// URL",
                    sanitize(next.as_str().strip_suffix(path).unwrap_or(next.as_str()))
                )));
            }
            url = next.into();
            let next = url.strip_suffix(path);
            if attempts.iter().any(|attempt| Some(attempt.url.as_str()) == next) {
                return Err(AttemptError::NoReply(format!(
                    "sent the request on to {}, which does not answer",
                    next.unwrap_or_default()
                )));
            }
        }
    }

    async fn send_once(&self, url: &str, request: &Request) -> Result<RawReply, SendError> {
        let mut builder = if request.is_streamed {
            self.streaming_http.request(request.method.clone(), url)
        } else {
            let builder = self.http.request(request.method.clone(), url);
            builder.timeout(request.timeout).header(ACCEPT, "application/json")
        };
        if let Some(token) = self.token_for(url) {
            builder = builder.bearer_auth(token);
        }
        if let Some(key) = &request.idempotency_key {
            builder = builder.header("idempotency-key", key);
        }
        if let Some(body) = &request.body {
            builder = builder
                .header(CONTENT_TYPE, "application/json")
                .header(checksum::CHECKSUM_HEADER, checksum::header_value(body))
                .body(body.clone());
        }
        let mut response = builder.send().await.map_err(SendError::Http)?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        let status = response.status().as_u16();
        let mut reply = RawReply {
            url: url.to_owned(),
            status,
            retry_after: header(RETRY_AFTER).and_then(|v| v.parse().ok()).map(Duration::from_secs),
            location: header(LOCATION).filter(|_| matches!(status, 307 | 308)).map(str::to_owned),
            next_page_token: header(NEXT_TOKEN).map(str::to_owned),
            body: Bytes::new(),
            streaming_response: None,
            is_repeat: false,
        };
        if request.is_streamed && status == 200 {
            reply.streaming_response = Some(response);
            return Ok(reply);
        }
        let checksum = response.headers().get(checksum::CHECKSUM_HEADER).cloned();
        // The body of a reply that is too long stays empty, which is no valid document.
        let body = read_body(&mut response).await.map_err(SendError::Http)?;
        let Some(body) = body else { return Ok(reply) };
        if !checksum::matches_header(checksum.as_ref().map(|value| value.as_bytes()), &body) {
            return Err(SendError::Corrupted { subject: "the reply", may_have_acted: true });
        }
        let problem = || serde_json::from_slice::<Problem>(&body);
        if status == 400 && problem().is_ok_and(|p| p.is(ProblemCode::ChecksumMismatch)) {
            return Err(SendError::Corrupted { subject: "the body", may_have_acted: false });
        }
        reply.body = body;
        Ok(reply)
    }

    /// The token of the master that a request goes to.
    fn token_for(&self, url: &str) -> Option<&String> {
        let is_below = |base: &String| {
            url.strip_prefix(base.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.tokens.iter().find(|(base, _)| is_below(base)).map(|(_, token)| token)
    }

    /// The base URLs to try, that of the master that replied last first.
    pub(super) fn master_order(&self) -> Vec<String> {
        let leader = self.last_answered.borrow().clone();
        let others = self.base_urls.iter().filter(|base| Some(*base) != leader.as_ref()).cloned();
        leader.clone().into_iter().chain(others).collect()
    }

    /// Waits after a failure: `at_most` so long, and no longer than until another master than the one to try first
    /// replies to any request.
    pub async fn back_off(&self, at_most: Duration) {
        let mut leader = self.last_answered.subscribe();
        let reply = async {
            leader.changed().await.is_ok() && leader.wait_for(Option::is_some).await.is_ok()
        };
        let _ = tokio::time::timeout(at_most, reply).await;
    }

    fn forget_leader(&self, base: &str) {
        self.last_answered
            .send_if_modified(|leader| leader.take_if(|known| known.as_str() == base).is_some());
    }
}

/// Marks the error of a command that may have been carried out. `is_repeat`: the reply to an earlier attempt was lost.
fn mark_unconfirmed(result: Result<RawReply>, is_repeat: bool) -> Result<RawReply> {
    let (error, may_be_done) = match result {
        Ok(reply) if reply.is_gateway_error() => {
            let error = reply.into_error();
            // A gateway replies so before or after it passed a request on.
            let may_be_done = matches!(error.status(), Some(502 | 504))
                || error.code() == Some(ProblemCode::CommitTimeout.as_str());
            (error, may_be_done)
        }
        Ok(reply) => return Ok(reply),
        Err(error) => (error, false),
    };
    if is_repeat || may_be_done {
        return Err(ClientError::Unconfirmed(Box::new(error)));
    }
    Err(error)
}

/// Why one attempt has no reply.
enum SendError {
    Http(reqwest::Error),
    /// The request or its reply arrived corrupted.
    Corrupted {
        subject: &'static str,
        may_have_acted: bool,
    },
}

/// The body of a response; `None` if it is longer than [`MAX_REPLY_BYTES`].
async fn read_body(response: &mut reqwest::Response) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_REPLY_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(body.freeze()))
}

/// Why there is no reply from one master.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("{0}")]
    NoReply(String),
    /// Another request found that this base URL leads now.
    #[error("{0} leads now")]
    LeaderChanged(String),
}

/// Resolves when another base URL than `here` is found to lead.
async fn wait_for_other_leader(leader: &mut watch::Receiver<Option<String>>, here: &str) -> String {
    let is_other = |found: &Option<String>| found.as_deref().is_some_and(|found| found != here);
    if leader.changed().await.is_ok()
        && let Ok(found) = leader.wait_for(is_other).await
        && let Some(found) = found.as_ref()
    {
        return found.clone();
    }
    // Not reached: the sender lives as long as the client.
    std::future::pending().await
}

impl Request {
    pub(super) fn counting_corruption(self, counter: &CorruptionCounter) -> Self {
        Request { corruption_counter: counter.clone(), ..self }
    }

    pub(super) fn with_idempotency_key(self, key: Option<&str>) -> Self {
        Request { idempotency_key: key.map(str::to_owned), ..self }
    }

    pub(super) fn with_json<T: Serialize>(self, document: &T) -> Result<Self> {
        match serde_json::to_vec(document) {
            Ok(text) => Ok(Request { body: Some(text.into()), ..self }),
            Err(e) => Err(ClientError::InvalidReply {
                url: "this program".to_owned(),
                status: None,
                message: format!("cannot write the request as JSON: {e}"),
            }),
        }
    }
}
