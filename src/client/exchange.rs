//! One request and its answer, among several masters: the one that answered last is asked first, then the
//! others; redirects are followed; who waits at a master that leads no more moves on.

use super::text::{explain, printable};
use super::{ClientError, MasterClient, refusal};
use crate::util::checksum;
use crate::util::corruption::CorruptionCounter;
use crate::wire::problem::{self, Problem};
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
const MAX_REPLY: usize = 256 << 20;
/// At most this many redirects are followed for one request.
pub(super) const MAX_HOPS: u32 = 4;
/// Where there are several masters, one that gives no answer for so long is passed over. It may be stopped:
/// its system accepts connections for it. Only for questions that are answered at once.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// Between two rounds of questions to all masters.
const PAUSE: Duration = Duration::from_millis(500);
/// A request that was damaged, or whose answer was, is sent at most so many times more at once.
const DAMAGED_TRIES: u32 = 3;
/// What each master answers of itself: it tells nothing of who leads.
const OF_EACH: &str = "/readyz";

/// Carries the token of the next page of a list.
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

/// One HTTP exchange's outcome.
pub(super) struct Answer {
    pub(super) url: String,
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    /// The token of the next page of a list.
    pub(super) next: Option<String>,
    pub(super) body: Bytes,
    /// The body of a 200 to a request whose reply is [streamed](Request::streamed).
    pub(super) stream: Option<reqwest::Response>,
    /// An earlier attempt at the same request broke off: the master may have acted on it.
    pub(super) repeated: bool,
}

/// One request, kept so that it can be sent again.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Path and query, starting with `/`.
    pub(super) target: &'a str,
    pub(super) body: Option<Bytes>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) timeout: Duration,
    /// The reply may be of any length, and is not read here.
    pub(super) streamed: bool,
    /// There are several masters to ask.
    pub(super) several: bool,
    /// An operator changes something by it: the sender needs to learn whether it was carried out.
    pub(super) command: bool,
    /// Where damage to it and to its answer is counted.
    pub(super) damage: CorruptionCounter,
}

impl MasterClient {
    /// Asks all masters until one leads, or the time for a [takeover](ClientOptions::takeover) is over. An
    /// order of which no reply came is sent again for [some time](ClientOptions::resend): only a reply shows
    /// whether it was carried out.
    pub(super) async fn exchange(&self, request: Request<'_>) -> Result<Answer, ClientError> {
        let begun = Instant::now();
        let takeover = if request.several { self.options.takeover } else { Duration::ZERO };
        let mut repeated = false;
        loop {
            let answer = self.round(&request, &mut repeated).await;
            let leads = match &answer {
                Ok(answer) => !matches!(answer.status, 502..=504),
                Err(e) => !e.is_temporary(),
            };
            let lost = request.command && repeated;
            let patience = if lost { takeover.max(self.options.resend) } else { takeover };
            if leads || begun.elapsed() + PAUSE >= patience {
                return if request.command { confirmed(answer, repeated) } else { answer };
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends `request` to the master that answered last, then to the others in turn, until one
    /// gives an answer that is not "not me" or "not now".
    async fn round(
        &self,
        request: &Request<'_>,
        repeated: &mut bool,
    ) -> Result<Answer, ClientError> {
        let mut tried: Vec<(String, String)> = Vec::new();
        let mut busy = None;
        let mut order = VecDeque::from(self.order());
        while let Some(base) = order.pop_front() {
            match self.ask(&base, request, repeated, &tried).await {
                Ok(mut answer) => {
                    answer.repeated = *repeated;
                    if matches!(answer.status, 502..=504) {
                        busy = Some(answer);
                        continue;
                    }
                    return Ok(answer);
                }
                Err(why) => {
                    self.forget(&base);
                    // One that was not among them, or was asked before it led.
                    if let Failure::Moved(leader) = &why
                        && !order.contains(leader)
                        && !tried.iter().any(|(base, _)| base == leader)
                    {
                        order.push_front(leader.clone());
                    }
                    tried.push((base, why.to_string()));
                }
            }
        }
        busy.ok_or(ClientError::Unreachable { tried })
    }

    /// One master, with its redirects, but for those to masters that were tried in vain. `Err` is why it
    /// can't be reached.
    pub(super) async fn ask(
        &self,
        base: &str,
        request: &Request<'_>,
        repeated: &mut bool,
        tried: &[(String, String)],
    ) -> Result<Answer, Failure> {
        let mut url = format!("{base}{}", request.target);
        let mut again = true;
        let (mut hops, mut damaged) = (0, 0);
        // Only what is learned from here on counts.
        let mut leader = self.leader.subscribe();
        loop {
            let here = url.strip_suffix(request.target).unwrap_or(base).to_owned();
            // The master that failed is not the one that was asked first.
            let silent = |why: String| match hops {
                0 => Failure::Silent(why),
                _ => Failure::Silent(format!(
                    "sent the request on to {}, which the leader advertises as its address (advertise_url) \
                     and which does not answer: {why}",
                    printable(url.strip_suffix(request.target).unwrap_or(&url))
                )),
            };
            let sent = tokio::select! {
                sent = self.send(&url, request) => sent,
                moved = moved(&mut leader, &here) => {
                    *repeated = true;
                    return Err(Failure::Moved(moved));
                }
            };
            let answer = match sent {
                Ok(answer) => answer,
                Err(Unsent::Damaged { what, acted }) => {
                    let about = format!("{what} of {} {}", request.method, request.target);
                    request.damage.record(&about, &here);
                    *repeated |= acted;
                    damaged += 1;
                    if damaged <= DAMAGED_TRIES {
                        continue;
                    }
                    return Err(silent(format!("{what}: {}", checksum::CHECKSUM_MISMATCH)));
                }
                Err(Unsent::Http(e)) => {
                    let why = silent(explain(&e, request.timeout));
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
                (Some(location), 307 | 308) if hops < MAX_HOPS => {
                    hops += 1;
                    url = Url::parse(&url)
                        .and_then(|here| here.join(location))
                        .map_err(|e| {
                            Failure::Silent(format!(
                                "sent the request on to `{}`: {e}",
                                printable(location)
                            ))
                        })?
                        .to_string();
                    let next = url.strip_suffix(request.target);
                    if let Some((next, _)) =
                        tried.iter().find(|(base, _)| Some(base.as_str()) == next)
                    {
                        let why = format!("sent the request on to {next}, which does not answer");
                        return Err(Failure::Silent(why));
                    }
                }
                (Some(_), 307 | 308) => {
                    let why = format!("sent the request on {MAX_HOPS} times without an answer");
                    return Err(Failure::Silent(why));
                }
                _ => {
                    if answer.status < 500 && !request.target.starts_with(OF_EACH) {
                        self.leader.send_if_modified(|leader| {
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

    async fn send(&self, url: &str, request: &Request<'_>) -> Result<Answer, Unsent> {
        let mut builder = if request.streamed {
            self.streams.request(request.method.clone(), url)
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
        if request.streamed && status == 200 {
            let (body, stream, repeated) = (Bytes::new(), Some(response), false);
            return Ok(Answer { url, status, retry_after, location, next, body, stream, repeated });
        }
        let body = match whole(&mut response).await? {
            Some(body)
                if !checksum::matches_header(
                    check.as_ref().map(|check| check.as_bytes()),
                    &body,
                ) =>
            {
                return Err(Unsent::Damaged { what: "the answer", acted: true });
            }
            Some(body) if status == 400 && is_damaged(&body) => {
                return Err(Unsent::Damaged { what: "the body", acted: false });
            }
            Some(body) => body,
            // Not JSON any more: whoever reads it says so.
            None => Bytes::new(),
        };
        Ok(Answer { url, status, retry_after, location, next, body, stream: None, repeated: false })
    }

    /// The bases to ask, the one that answered last first.
    pub(super) fn order(&self) -> Vec<String> {
        let leader = self.leader.borrow().clone();
        let others = self.bases.iter().filter(|base| Some(*base) != leader.as_ref()).cloned();
        leader.clone().into_iter().chain(others).collect()
    }

    /// Waits `at_most`, but no longer than until a master answers that was not the one to ask before: whoever
    /// failed and would wait before the next try need not.
    pub async fn rest(&self, at_most: Duration) {
        let mut leader = self.leader.subscribe();
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

    fn forget(&self, base: &str) {
        self.leader.send_if_modified(|leader| {
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
fn confirmed(answer: Result<Answer, ClientError>, repeated: bool) -> Result<Answer, ClientError> {
    match answer {
        Err(e) if repeated => Err(ClientError::Unconfirmed(Box::new(e))),
        Ok(answer) if matches!(answer.status, 502..=504) => {
            let e = refusal(answer);
            // A gateway answers so after it passed a request on, or before.
            let doubtful = repeated
                || matches!(e.status(), Some(502 | 504))
                || e.code() == Some(problem::LATE_CODE);
            Err(if doubtful { ClientError::Unconfirmed(Box::new(e)) } else { e })
        }
        other => other,
    }
}

/// Why one attempt brought no answer.
enum Unsent {
    Http(reqwest::Error),
    /// It or its answer is not what was sent.
    Damaged {
        what: &'static str,
        /// The master may have done what was asked.
        acted: bool,
    },
}

impl From<reqwest::Error> for Unsent {
    fn from(e: reqwest::Error) -> Self {
        Unsent::Http(e)
    }
}

/// The body of a response; `None` where it is over the [limit](MAX_REPLY).
async fn whole(response: &mut reqwest::Response) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_REPLY {
            return Ok(None);
        }
    }
    Ok(Some(body.freeze()))
}

/// Whether an answer says that its request came damaged.
fn is_damaged(body: &[u8]) -> bool {
    serde_json::from_slice::<Problem>(body)
        .is_ok_and(|problem| problem.code == checksum::CORRUPTED_CODE)
}

/// Why a master gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// In words.
    Silent(String),
    /// Another request found that this base leads meanwhile.
    Moved(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Silent(why) => f.write_str(why),
            Failure::Moved(leader) => write!(f, "{leader} leads now"),
        }
    }
}

/// Resolves when another base than `here` is found to lead.
async fn moved(leader: &mut watch::Receiver<Option<String>>, here: &str) -> String {
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
    pub(super) fn brief(mut self) -> Self {
        if self.several {
            self.timeout = self.timeout.min(SILENCE);
        }
        self
    }

    /// Damage to it and to its answer is counted there.
    pub(super) fn counted(self, damage: &CorruptionCounter) -> Self {
        Request { damage: damage.clone(), ..self }
    }

    pub(super) fn json<T: Serialize>(mut self, document: &T) -> Result<Self, ClientError> {
        let text = serde_json::to_vec(document).map_err(|e| ClientError::Broken {
            url: "this program".to_owned(),
            status: None,
            message: format!("cannot write the request as JSON: {e}"),
        })?;
        self.body = Some(Bytes::from(text));
        Ok(self)
    }
}
