//! One request and its answer, among several masters: the one that answered last is asked first, then the
//! others; redirects are followed; who waits at a master that leads no more moves on.

use super::url_text::{describe_transport_error, sanitize};
use super::{ClientError, MasterClient, error_of_answer};
use crate::util::checksum;
use crate::util::corruption::CorruptionCounter;
use crate::wire::problem::{Problem, ProblemCode};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Method, Url};
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Replies longer than this are refused; `GET /sync` of 100,000 remembered syncs stays below it.
const MAX_REPLY_BYTES: usize = 256 << 20;
/// At most this many redirects are followed for one request.
pub(super) const MAX_REDIRECTS: u32 = 4;
/// Where there are several masters, one that gives no answer for so long is passed over. It may be stopped:
/// its system accepts connections for it. Only for questions that are answered at once.
pub(super) const FAILOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two rounds of questions to all masters.
const ROUND_INTERVAL: Duration = Duration::from_millis(500);
/// A request that was damaged, or whose answer was, is sent at most so many times more at once.
const MAX_CORRUPTION_RETRIES: u32 = 3;
/// What each master answers of itself: it tells nothing of who leads.
const READINESS_PATH: &str = "/readyz";

/// Carries the token of the next page of a list.
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

/// One HTTP exchange's outcome.
pub(super) struct RawReply {
    pub(super) url: String,
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    /// The token of the next page of a list.
    pub(super) next_page_token: Option<String>,
    pub(super) body: Bytes,
    /// The body of a 200 to a request whose reply is [streamed](Request::streamed).
    pub(super) streaming_response: Option<reqwest::Response>,
    /// An earlier attempt at the same request broke off: the master may have acted on it.
    pub(super) is_repeat: bool,
}

/// One request, kept so that it can be sent again.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Path and query, starting with `/`.
    pub(super) path_and_query: &'a str,
    pub(super) body: Option<Bytes>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) timeout: Duration,
    /// The reply may be of any length, and is not read here.
    pub(super) is_streamed: bool,
    /// There are several masters to ask.
    pub(super) has_several_masters: bool,
    /// An operator changes something by it: the sender needs to learn whether it was carried out.
    pub(super) is_command: bool,
    /// Where damage to it and to its answer is counted.
    pub(super) corruption_counter: CorruptionCounter,
}

impl MasterClient {
    /// Asks all masters until one leads, or the time for a [takeover](ClientOptions::takeover) is over. An
    /// order of which no reply came is sent again for [some time](ClientOptions::resend): only a reply shows
    /// whether it was carried out.
    pub(super) async fn send_with_failover(
        &self,
        request: Request<'_>,
    ) -> Result<RawReply, ClientError> {
        let begun = Instant::now();
        let takeover = if request.has_several_masters {
            self.options.takeover_timeout
        } else {
            Duration::ZERO
        };
        let mut repeated = false;
        loop {
            let answer = self.try_each_master(&request, &mut repeated).await;
            let leads = match &answer {
                Ok(answer) => !matches!(answer.status, 502..=504),
                Err(e) => !e.is_retryable(),
            };
            let lost = request.is_command && repeated;
            let patience = if lost { takeover.max(self.options.resend_timeout) } else { takeover };
            if leads || begun.elapsed() + ROUND_INTERVAL >= patience {
                return if request.is_command {
                    mark_unconfirmed(answer, repeated)
                } else {
                    answer
                };
            }
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    /// Sends `request` to the master that answered last, then to the others in turn, until one
    /// gives an answer that is not "not me" or "not now".
    async fn try_each_master(
        &self,
        request: &Request<'_>,
        repeated: &mut bool,
    ) -> Result<RawReply, ClientError> {
        let mut tried: Vec<(String, String)> = Vec::new();
        let mut busy = None;
        let mut order = VecDeque::from(self.master_order());
        while let Some(base) = order.pop_front() {
            match self.send_to_master(&base, request, repeated, &tried).await {
                Ok(mut answer) => {
                    answer.is_repeat = *repeated;
                    if matches!(answer.status, 502..=504) {
                        busy = Some(answer);
                        continue;
                    }
                    return Ok(answer);
                }
                Err(why) => {
                    self.forget_leader(&base);
                    // One that was not among them, or was asked before it led.
                    if let AttemptError::LeaderChanged(leader) = &why
                        && !order.contains(leader)
                        && !tried.iter().any(|(base, _)| base == leader)
                    {
                        order.push_front(leader.clone());
                    }
                    tried.push((base, why.to_string()));
                }
            }
        }
        busy.ok_or(ClientError::Unreachable { attempts: tried })
    }

    /// One master, with its redirects, but for those to masters that were tried in vain. `Err` is why it
    /// can't be reached.
    pub(super) async fn send_to_master(
        &self,
        base: &str,
        request: &Request<'_>,
        repeated: &mut bool,
        tried: &[(String, String)],
    ) -> Result<RawReply, AttemptError> {
        let mut url = format!("{base}{}", request.path_and_query);
        let mut again = true;
        let (mut hops, mut damaged) = (0, 0);
        // Only what is learned from here on counts.
        let mut leader = self.last_answered.subscribe();
        loop {
            let here = url.strip_suffix(request.path_and_query).unwrap_or(base).to_owned();
            // The master that failed is not the one that was asked first.
            let silent = |why: String| match hops {
                0 => AttemptError::NoAnswer(why),
                _ => AttemptError::NoAnswer(format!(
                    "sent the request on to {}, which the leader advertises as its address (advertise_url) \
                     and which does not answer: {why}",
                    sanitize(url.strip_suffix(request.path_and_query).unwrap_or(&url))
                )),
            };
            let sent = tokio::select! {
                sent = self.send_once(&url, request) => sent,
                moved = wait_for_other_leader(&mut leader, &here) => {
                    *repeated = true;
                    return Err(AttemptError::LeaderChanged(moved));
                }
            };
            let answer = match sent {
                Ok(answer) => answer,
                Err(SendError::Corrupted { subject: what, may_have_acted: acted }) => {
                    let about = format!("{what} of {} {}", request.method, request.path_and_query);
                    request.corruption_counter.record(&about, &here);
                    *repeated |= acted;
                    damaged += 1;
                    if damaged <= MAX_CORRUPTION_RETRIES {
                        continue;
                    }
                    return Err(silent(format!("{what}: {}", checksum::CHECKSUM_MISMATCH)));
                }
                Err(SendError::Http(e)) => {
                    let why = silent(describe_transport_error(&e, request.timeout));
                    if e.is_connect() {
                        return Err(why);
                    }
                    *repeated = true;
                    // A kept connection that a restarted master has closed: once more on a new one.
                    if again && !e.is_timeout() {
                        again = false;
                        continue;
                    }
                    return Err(why);
                }
            };
            match (&answer.location, answer.status) {
                (Some(location), 307 | 308) if hops < MAX_REDIRECTS => {
                    hops += 1;
                    url = Url::parse(&url)
                        .and_then(|here| here.join(location))
                        .map_err(|e| {
                            AttemptError::NoAnswer(format!(
                                "sent the request on to `{}`: {e}",
                                sanitize(location)
                            ))
                        })?
                        .to_string();
                    let next = url.strip_suffix(request.path_and_query);
                    if let Some((next, _)) =
                        tried.iter().find(|(base, _)| Some(base.as_str()) == next)
                    {
                        let why = format!("sent the request on to {next}, which does not answer");
                        return Err(AttemptError::NoAnswer(why));
                    }
                }
                (Some(_), 307 | 308) => {
                    let why =
                        format!("sent the request on {MAX_REDIRECTS} times without an answer");
                    return Err(AttemptError::NoAnswer(why));
                }
                _ => {
                    if answer.status < 500 && !request.path_and_query.starts_with(READINESS_PATH) {
                        self.last_answered.send_if_modified(|leader| {
                            let news = leader.as_ref() != Some(&here);
                            *leader = Some(here);
                            news
                        });
                    }
                    return Ok(answer);
                }
            }
        }
    }

    async fn send_once(&self, url: &str, request: &Request<'_>) -> Result<RawReply, SendError> {
        let mut builder = if request.is_streamed {
            self.streaming_http.request(request.method.clone(), url)
        } else {
            let builder = self.http.request(request.method.clone(), url);
            builder.timeout(request.timeout).header(ACCEPT, "application/json")
        };
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(body) = &request.body {
            builder = builder
                .header(CONTENT_TYPE, "application/json")
                .header(checksum::CHECKSUM_HEADER, checksum::header_value(body))
                .body(body.clone());
        }
        let mut response = builder.send().await?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        let retry_after = header(RETRY_AFTER).and_then(|v| v.parse().ok()).map(Duration::from_secs);
        let location = header(LOCATION).map(str::to_owned);
        let next = header(NEXT_TOKEN).map(str::to_owned);
        let status = response.status().as_u16();
        let check = response.headers().get(checksum::CHECKSUM_HEADER).cloned();
        let url = url.to_owned();
        if request.is_streamed && status == 200 {
            let (body, stream, repeated) = (Bytes::new(), Some(response), false);
            return Ok(RawReply {
                url,
                status,
                retry_after,
                location,
                next_page_token: next,
                body,
                streaming_response: stream,
                is_repeat: repeated,
            });
        }
        let body = match read_body(&mut response).await? {
            Some(body)
                if !checksum::matches_header(
                    check.as_ref().map(|check| check.as_bytes()),
                    &body,
                ) =>
            {
                return Err(SendError::Corrupted { subject: "the answer", may_have_acted: true });
            }
            Some(body) if status == 400 && reports_corruption(&body) => {
                return Err(SendError::Corrupted { subject: "the body", may_have_acted: false });
            }
            Some(body) => body,
            // Not JSON any more: whoever reads it says so.
            None => Bytes::new(),
        };
        Ok(RawReply {
            url,
            status,
            retry_after,
            location,
            next_page_token: next,
            body,
            streaming_response: None,
            is_repeat: false,
        })
    }

    /// The bases to ask, the one that answered last first.
    pub(super) fn master_order(&self) -> Vec<String> {
        let leader = self.last_answered.borrow().clone();
        let others = self.base_urls.iter().filter(|base| Some(*base) != leader.as_ref()).cloned();
        leader.clone().into_iter().chain(others).collect()
    }

    /// Waits `at_most`, but no longer than until a master answers that was not the one to ask before: whoever
    /// failed and would wait before the next try need not.
    pub async fn back_off(&self, at_most: Duration) {
        let mut leader = self.last_answered.subscribe();
        // The sender lives as long as `self`.
        let answers = async {
            while leader.changed().await.is_ok() {
                if leader.borrow_and_update().is_some() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(at_most, answers).await;
    }

    fn forget_leader(&self, base: &str) {
        self.last_answered.send_if_modified(|leader| {
            let known = leader.as_deref() == Some(base);
            if known {
                *leader = None;
            }
            known
        });
    }
}

/// The answer to an order, as it is where it shows whether the order was carried out. `repeated`: the reply
/// to an earlier attempt was lost.
fn mark_unconfirmed(
    answer: Result<RawReply, ClientError>,
    repeated: bool,
) -> Result<RawReply, ClientError> {
    match answer {
        Err(e) if repeated => Err(ClientError::Unconfirmed(Box::new(e))),
        Ok(answer) if matches!(answer.status, 502..=504) => {
            let e = error_of_answer(answer);
            // A gateway answers so after it passed a request on, or before.
            let doubtful = repeated
                || matches!(e.status(), Some(502 | 504))
                || e.code() == Some(ProblemCode::CommitTimeout.as_str());
            Err(if doubtful { ClientError::Unconfirmed(Box::new(e)) } else { e })
        }
        other => other,
    }
}

/// Why one attempt brought no answer.
enum SendError {
    Http(reqwest::Error),
    /// It or its answer is not what was sent.
    Corrupted {
        subject: &'static str,
        /// The master may have done what was asked.
        may_have_acted: bool,
    },
}

impl From<reqwest::Error> for SendError {
    fn from(e: reqwest::Error) -> Self {
        SendError::Http(e)
    }
}

/// The body of a response; `None` where it is over the [limit](MAX_REPLY).
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

/// Whether an answer says that its request came damaged.
fn reports_corruption(body: &[u8]) -> bool {
    serde_json::from_slice::<Problem>(body)
        .is_ok_and(|problem| problem.is(ProblemCode::ChecksumMismatch))
}

/// Why a master gave no answer.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// In words.
    NoAnswer(String),
    /// Another request found that this base leads meanwhile.
    LeaderChanged(String),
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptError::NoAnswer(why) => f.write_str(why),
            AttemptError::LeaderChanged(leader) => write!(f, "{leader} leads now"),
        }
    }
}

/// Resolves when another base than `here` is found to lead.
async fn wait_for_other_leader(leader: &mut watch::Receiver<Option<String>>, here: &str) -> String {
    loop {
        if leader.changed().await.is_err() {
            // The sender lives as long as the client.
            std::future::pending::<()>().await;
        }
        let found = leader.borrow_and_update().clone();
        if let Some(found) = found
            && found != here
        {
            return found;
        }
    }
}

impl Request<'_> {
    /// It is answered at once, or there is nobody who could.
    pub(super) fn with_failover_timeout(mut self) -> Self {
        if self.has_several_masters {
            self.timeout = self.timeout.min(FAILOVER_TIMEOUT);
        }
        self
    }

    /// Damage to it and to its answer is counted there.
    pub(super) fn counting_corruption(self, damage: &CorruptionCounter) -> Self {
        Request { corruption_counter: damage.clone(), ..self }
    }

    pub(super) fn with_json<T: Serialize>(mut self, document: &T) -> Result<Self, ClientError> {
        let text = serde_json::to_vec(document).map_err(|e| ClientError::InvalidReply {
            url: "this program".to_owned(),
            status: None,
            message: format!("cannot write the request as JSON: {e}"),
        })?;
        self.body = Some(Bytes::from(text));
        Ok(self)
    }
}
