//! What a receiving agent answers: tickets are checked before anything else, bodies handed to blocking
//! threads as they come.

use super::asks::{BlocksAsk, PruneAsk, PruneReply, RootAsk, SweepAsk};
use super::body::drain;
use super::frame::{FrameError, FrameReader};
use super::gate::{self, Refused};
use super::maintain::{take_blocks, take_prune, take_root, take_sweep};
use super::pool::{Buffer, SCRATCH};
use super::protocol::{
    DIGEST, MAX_TICKET, OFFER, PACK, PROBE, PRUNE, RANGE, ROOT, SWEEP, TICKET_HEADER, VERSION,
};
use super::receive::{take_offer, take_pack, take_range};
use super::server::{Served, Shared};
use super::stream::{Ask, Wire};
use crate::fs::Target;
use crate::util::checksum;
use crate::wire::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::wire::problem::{PROBLEM_CONTENT_TYPE, Problem};
use crate::wire::ticket::Claims;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::SocketAddr;
use std::time::Duration;

/// Documents that need a ticket.
pub(super) const VERBS: [&str; 5] = [OFFER, DIGEST, PRUNE, SWEEP, ROOT];
/// How much of a refused request is read so that the refusal arrives.
const DRAIN_BYTES: u64 = 8 << 20;
/// … and for how long.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Why a request got no reply of its own.
pub(super) enum Failure {
    Refused(Refused),
    Verb(String),
    Method,
    Bad(String),
    /// It is not what was sent; says what.
    Damaged(String),
    Unhashed,
    TooLong,
    Internal(String),
}

impl From<FrameError> for Failure {
    fn from(e: FrameError) -> Self {
        match e {
            FrameError::Unhashed => Failure::Unhashed,
            FrameError::Damaged(_) => Failure::Damaged(e.to_string()),
            e => Failure::Bad(e.to_string()),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Failure::Refused(refused)
    }
}

impl Failure {
    pub(super) fn problem(self) -> Problem {
        match self {
            Failure::Refused(refused) => {
                let (status, title, code) = match refused {
                    Refused::NoKey => (503, "Service Unavailable", "not_ready"),
                    Refused::Absent => (401, "Unauthorized", "no_ticket"),
                    Refused::DryRun(_) => (403, "Forbidden", "dry_run"),
                    Refused::NoDeletion | Refused::OtherReceiver => {
                        (403, "Forbidden", "deletion_not_allowed")
                    }
                    Refused::Ticket(_) | Refused::NoRoot(_) => (403, "Forbidden", "ticket_refused"),
                };
                Problem::new(status, title, code, refused.to_string())
            }
            Failure::Unhashed => {
                let detail = FrameError::Unhashed.to_string();
                Problem::new(403, "Forbidden", "digest_required", detail)
            }
            Failure::Verb(path) => {
                let detail = format!(
                    "this is an agent's data port, not a master: it does not serve `{path}`"
                );
                Problem::new(404, "Not Found", "unknown_verb", detail).with_hint(format!(
                    "this agent supports version {VERSION}: paths begin with /v{VERSION}/"
                ))
            }
            Failure::Method => Problem::new(
                405,
                "Method Not Allowed",
                "method_not_allowed",
                "requests are POST; a probe is GET",
            ),
            Failure::Bad(detail) => Problem::new(400, "Bad Request", "bad_frame", detail),
            Failure::Damaged(detail) => {
                Problem::new(400, "Bad Request", checksum::CORRUPTED_CODE, detail)
                    .with_hint("send the same again")
            }
            Failure::TooLong => {
                let detail = format!("a document is at most {MAX_MANIFEST_BYTES} bytes");
                Problem::new(413, "Content Too Large", "too_long", detail)
            }
            Failure::Internal(detail) => {
                Problem::new(500, "Internal Server Error", "internal", detail)
            }
        }
    }
}

/// Answers one request of `peer`.
pub(super) async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    shared: &Shared,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path == PROBE && request.method() == Method::GET {
        let text = format!("{{\"service\":\"longhaul-data\",\"protocol\":{VERSION}}}\n");
        return reply(StatusCode::OK, "application/json", text.into());
    }
    match act(request, shared).await {
        Ok(document) => {
            let check = HeaderValue::from_str(&checksum::header_value(&document));
            let mut response = reply(StatusCode::OK, "application/cbor", document.into());
            response.headers_mut().extend(
                check.ok().map(|c| (HeaderName::from_static(checksum::CHECKSUM_HEADER), c)),
            );
            response
        }
        Err(failure) => {
            let problem = failure.problem();
            tracing::debug!(%peer, path, status = problem.status, "{}", problem.detail);
            if problem.status < 500 {
                shared.log(peer, &format!("{path}: {}", problem.detail));
            }
            let status =
                StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = serde_json::to_vec(&problem).unwrap_or_default();
            let mut response = reply(status, PROBLEM_CONTENT_TYPE, body.into());
            // What is left of the body is not worth waiting for.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Checks the ticket, then does what is asked.
async fn act(request: Request<Incoming>, shared: &Shared) -> Result<Vec<u8>, Failure> {
    let path = request.uri().path();
    let Some(verb) = VERBS.into_iter().find(|verb| *verb == path) else {
        let shown = crate::wire::path::escape_bytes(&path.as_bytes()[..path.len().min(100)]);
        return refuse(request, Failure::Verb(shown)).await;
    };
    if request.method() != Method::POST {
        return refuse(request, Failure::Method).await;
    }
    let admitted = admit(&request, &shared.served).and_then(|(claims, target)| {
        gate::allows(&claims, verb)?;
        Ok((claims, target))
    });
    let (claims, target) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(request, Failure::Refused(refused)).await,
    };
    let _under_way = shared.requests.begin().await;
    let rules = claims.rules.clone();
    match verb {
        OFFER => {
            let take = move |bytes: &[u8]| {
                let manifest = Manifest::decode(bytes).map_err(|e| Failure::Bad(e.to_string()))?;
                Ok(take_offer(&target, &manifest, rules.dry_run))
            };
            document(request, shared, take).await
        }
        DIGEST => {
            let asked = whole(request, shared.stall).await?;
            let [mut scratch] = shared.pool.take([SCRATCH]).await;
            let take = move || {
                let ask: BlocksAsk = cbor(&asked)?;
                let entry = ask.checked().map_err(Failure::Bad)?;
                Ok(take_blocks(&target, entry, &ask, scratch.pages()))
            };
            run(take).await
        }
        PRUNE => {
            let take = move |bytes: &[u8]| {
                let ask: PruneAsk = cbor(bytes)?;
                gate::allows_prune(&claims, ask.apply)?;
                let page = take_prune(&target, &claims, &ask).map_err(Failure::Bad)?;
                Ok(PruneReply::of_page(&ask.dir, page))
            };
            document(request, shared, take).await
        }
        ROOT => {
            let take = move |bytes: &[u8]| Ok(take_root(&target, &cbor::<RootAsk>(bytes)?));
            document(request, shared, take).await
        }
        _ => {
            let take = move |bytes: &[u8]| Ok(take_sweep(&target, &cbor::<SweepAsk>(bytes)?));
            document(request, shared, take).await
        }
    }
}

async fn refuse(request: Request<Incoming>, failure: Failure) -> Result<Vec<u8>, Failure> {
    drain(request.into_body(), DRAIN_BYTES, DRAIN_TIME).await;
    Err(failure)
}

/// Takes what follows an ask, in a thread of its own and gathered in the buffer, and makes the reply.
pub(super) type Taking =
    Box<dyn FnOnce(&mut FrameReader<Wire>, Buffer) -> Result<Vec<u8>, FrameError> + Send>;

/// What an `ask` on a stream lets be done, once its ticket is checked.
pub(super) fn content_verb(ask: &Ask, served: &Served) -> Result<Taking, Failure> {
    let (claims, target) = served.roots.admit(&served.gate, &ask.ticket)?;
    gate::allows(&claims, &ask.verb)?;
    let end = served.gate.end_of(&claims);
    // Encoding into a Vec can't fail.
    match ask.verb.as_str() {
        PACK => Ok(Box::new(move |frames, mut buffer| {
            frames.end_at(end);
            let reply = take_pack(frames, &target, &claims, buffer.pages())?;
            Ok(minicbor::to_vec(&reply).unwrap_or_default())
        })),
        RANGE => Ok(Box::new(move |frames, mut buffer| {
            frames.end_at(end);
            let reply = take_range(frames, &target, buffer.pages())?;
            Ok(minicbor::to_vec(&reply).unwrap_or_default())
        })),
        other => Err(Failure::Verb(super::protocol::plain(other))),
    }
}

fn admit(request: &Request<Incoming>, served: &Served) -> Result<(Claims, Target), Refused> {
    let ticket = request
        .headers()
        .get(TICKET_HEADER)
        .filter(|value| value.len() <= MAX_TICKET)
        .and_then(|value| value.to_str().ok())
        .ok_or(Refused::Absent)?;
    served.roots.admit(&served.gate, ticket)
}

/// Runs `take` in a thread of its own on the document that the body is.
async fn document<T>(
    request: Request<Incoming>,
    shared: &Shared,
    take: impl FnOnce(&[u8]) -> Result<T, Failure> + Send + 'static,
) -> Result<Vec<u8>, Failure>
where
    T: minicbor::Encode<()> + Send + 'static,
{
    let bytes = whole(request, shared.stall).await?;
    run(move || take(&bytes)).await
}

/// The document that the body is, which has so long to come.
async fn whole(request: Request<Incoming>, patience: Duration) -> Result<Bytes, Failure> {
    let check = request.headers().get(checksum::CHECKSUM_HEADER).cloned();
    let whole = Limited::new(request.into_body(), MAX_MANIFEST_BYTES).collect();
    match tokio::time::timeout(patience, whole).await {
        Ok(Ok(bytes)) => {
            let bytes = bytes.to_bytes();
            if !checksum::matches_header(check.as_ref().map(HeaderValue::as_bytes), &bytes) {
                return Err(Failure::Damaged(format!(
                    "the document: {}",
                    checksum::CHECKSUM_MISMATCH
                )));
            }
            Ok(bytes)
        }
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => Err(Failure::TooLong),
        Ok(Err(e)) => Err(Failure::Bad(e.to_string())),
        Err(_) => Err(Failure::Bad(format!("the document did not arrive in {patience:?}"))),
    }
}

fn cbor<A: for<'b> minicbor::Decode<'b, ()>>(bytes: &[u8]) -> Result<A, Failure> {
    minicbor::decode(bytes).map_err(|e| Failure::Bad(e.to_string()))
}

/// Runs blocking work and encodes what it returns.
async fn run<T, F>(work: F) -> Result<Vec<u8>, Failure>
where
    T: minicbor::Encode<()> + Send + 'static,
    F: FnOnce() -> Result<T, Failure> + Send + 'static,
{
    let encoded = tokio::task::spawn_blocking(move || {
        let value = work()?;
        minicbor::to_vec(&value).map_err(|e| Failure::Internal(e.to_string()))
    });
    match encoded.await {
        Ok(done) => done,
        Err(e) => {
            tracing::error!("a data request panicked: {e}");
            Err(Failure::Internal("internal error of the agent; see its log".to_owned()))
        }
    }
}
