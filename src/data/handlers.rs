//! What a receiving agent answers: tickets are checked before anything else, bodies passed to blocking
//! threads as they come.

use super::buffer_pool::Buffer;
use super::control_messages::{
    BlockDigestsRequest, CleanUpRequest, ControlRequest, RootCheckRequest,
};
use super::frame::{FrameError, FrameReader};
use super::protocol::{
    BLOCK_DIGESTS, CLEAN_UP, ContentRequest, OFFER, PACK, PROBE, PRUNE, RANGE, ROOT_CHECK,
    TICKET_HEADER,
};
use super::prune_messages::PruneRequest;
use super::receive::{receive_pack, receive_range};
use super::server_context::ConnectionContext;
use super::socket_reader::SocketReader;
use super::ticket_verifier::{self, Refusal};
use super::tls::TLS_REQUIRED;
use crate::fs::{ActingUser, Target, spawn_blocking};
use crate::util::checksum;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::wire::outcome::sanitize_text;
use crate::wire::problem::{PROBLEM_CONTENT_TYPE, Problem, ProblemCode};
use crate::wire::ticket::{Claims, MAX_TICKET_BYTES};
use crate::wire::worker::PROTOCOL_VERSION;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::SocketAddr;
use std::time::Duration;

/// Documents that need a ticket.
pub(super) const DOCUMENT_PATHS: [&str; 5] = [OFFER, BLOCK_DIGESTS, PRUNE, CLEAN_UP, ROOT_CHECK];
/// How much of a refused request is read so that the refusal arrives.
pub(super) const DRAIN_BYTES: u64 = 8 << 20;
/// … and for how long.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request got no reply of its own.
pub(super) struct RequestFailure {
    code: ProblemCode,
    detail: String,
    /// The cause by which repeated lines of the log are counted.
    cause: &'static str,
}

impl RequestFailure {
    pub(super) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        RequestFailure { code, detail: detail.into(), cause: "a data connection ended" }
    }

    /// A request that is not valid.
    pub(super) fn invalid(reason: impl ToString) -> Self {
        RequestFailure::new(ProblemCode::InvalidFrame, reason.to_string())
    }

    /// `what` does not match its checksum.
    pub(super) fn damaged(what: &str) -> Self {
        let detail = format!("{what}: {}", checksum::CHECKSUM_MISMATCH);
        RequestFailure::new(ProblemCode::ChecksumMismatch, detail)
    }

    /// Logs it, unless it is a fault of this host, which has been logged.
    pub(super) fn log(&self, peer: SocketAddr, what: &str) {
        let RequestFailure { code, detail, cause } = self;
        tracing::debug!(%peer, what, code = code.as_str(), "{detail}");
        if code.status() < 500 {
            // One line a minute for each cause: peers can make any number of mistakes.
            warn_ratelimited!(cause, %peer, "{cause}: {what}: {detail}");
        }
    }

    fn unknown_path(path: &str) -> Self {
        let detail =
            format!("this is an agent's data port, not a master: it does not serve `{path}`");
        RequestFailure::new(ProblemCode::RouteNotFound, detail)
    }

    pub(super) fn into_problem(self) -> Problem {
        let problem = Problem::new(self.code, self.detail);
        match self.code {
            ProblemCode::ChecksumMismatch => problem.with_hint("send the same again"),
            ProblemCode::RouteNotFound => problem.with_hint(format!(
                "this agent supports version {PROTOCOL_VERSION}: paths begin with /v{PROTOCOL_VERSION}/"
            )),
            _ => problem,
        }
    }
}

impl From<FrameError> for RequestFailure {
    fn from(error: FrameError) -> Self {
        let code = match error {
            FrameError::MissingDigest => ProblemCode::DigestRequired,
            FrameError::Damaged(_) => ProblemCode::ChecksumMismatch,
            _ => ProblemCode::InvalidFrame,
        };
        RequestFailure::new(code, error.to_string())
    }
}

impl From<Refusal> for RequestFailure {
    fn from(refused: Refusal) -> Self {
        let code = match refused {
            Refusal::NoKey => ProblemCode::NotReady,
            Refusal::NoTicket => ProblemCode::NoTicket,
            Refusal::RunAs(_) => ProblemCode::RunAsRefused,
            Refusal::DryRun(_) => ProblemCode::DryRun,
            Refusal::NoDeletion | Refusal::OtherReceiver => ProblemCode::DeletionNotAllowed,
            Refusal::OtherSender(..) => ProblemCode::WorkerMismatch,
            Refusal::Ticket(_)
            | Refusal::NoRoot(_)
            | Refusal::OtherVerb(_)
            | Refusal::OtherWorker(_)
            | Refusal::Revoked(_)
            | Refusal::Ended(_) => ProblemCode::TicketRefused,
        };
        RequestFailure { cause: refused.cause(), ..RequestFailure::new(code, refused.to_string()) }
    }
}

/// Answers one request of `peer`.
pub(super) async fn handle_request(
    request: Request<Incoming>,
    peer: SocketAddr,
    context: &ConnectionContext,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path == PROBE && request.method() == Method::GET {
        let text = format!("{{\"service\":\"longhaul-data\",\"protocol\":{PROTOCOL_VERSION}}}\n");
        return build_response(StatusCode::OK, "application/json", text.into());
    }
    match dispatch(request, context).await {
        Ok(document) => {
            let check = HeaderValue::from_str(&checksum::header_value(&document));
            let mut response = build_response(StatusCode::OK, "application/cbor", document.into());
            response.headers_mut().extend(
                check.ok().map(|c| (HeaderName::from_static(checksum::CHECKSUM_HEADER), c)),
            );
            response
        }
        Err(failure) => refuse(failure, peer, &path),
    }
}

/// Refuses a request that came without TLS.
pub(super) async fn refuse_plain(
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    drain_body(request.into_body()).await;
    refuse(RequestFailure::new(ProblemCode::TlsRequired, TLS_REQUIRED), peer, &path)
}

fn refuse(failure: RequestFailure, peer: SocketAddr, path: &str) -> Response<Full<Bytes>> {
    failure.log(peer, path);
    let problem = failure.into_problem();
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = build_response(status, PROBLEM_CONTENT_TYPE, body.into());
    // What is left of the body is not worth waiting for.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn build_response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Checks the ticket, then executes the request.
async fn dispatch(
    request: Request<Incoming>,
    context: &ConnectionContext,
) -> Result<Vec<u8>, RequestFailure> {
    let (verb, claims, target) = match admit(&request, context) {
        Ok(admitted) => admitted,
        Err(failure) => {
            drain_body(request.into_body()).await;
            return Err(failure);
        }
    };
    let _under_way = context.requests.start().await;
    match verb {
        OFFER => handle_control::<Manifest>(request, context, claims, target).await,
        BLOCK_DIGESTS => {
            handle_control::<BlockDigestsRequest>(request, context, claims, target).await
        }
        PRUNE => handle_control::<PruneRequest>(request, context, claims, target).await,
        ROOT_CHECK => handle_control::<RootCheckRequest>(request, context, claims, target).await,
        _ => handle_control::<CleanUpRequest>(request, context, claims, target).await,
    }
}

/// Reads the request, executes it in a thread of its own, and encodes the reply.
async fn handle_control<R: ControlRequest>(
    request: Request<Incoming>,
    context: &ConnectionContext,
    claims: Claims,
    target: Target,
) -> Result<Vec<u8>, RequestFailure> {
    let document = read_body(request, context.stall_timeout).await?;
    let mut buffer = context.pool.acquire_block(R::NEEDS_BUFFER).await;
    let identity = target.identity().clone();
    let reply = spawn_blocking(&identity, move || {
        let request = R::from_document(&document).map_err(RequestFailure::invalid)?;
        request.check_permission(&claims)?;
        let buffer = buffer.as_mut().map_or(&mut [][..], Buffer::content_mut);
        let reply = request.handle(&target, &claims, buffer).map_err(RequestFailure::invalid)?;
        minicbor::to_vec(&reply)
            .map_err(|e| RequestFailure::new(ProblemCode::Internal, e.to_string()))
    });
    reply.await.unwrap_or_else(|e| {
        tracing::error!("a data request panicked: {e}");
        let detail = "internal error of the agent; see its log";
        Err(RequestFailure::new(ProblemCode::Internal, detail))
    })
}

/// Receives the content after a request, in a thread of its own and collected in the buffer, and makes the reply.
pub(super) type ContentHandler =
    Box<dyn FnOnce(&mut FrameReader<SocketReader>, Buffer) -> Result<Vec<u8>, FrameError> + Send>;

/// A [`ContentHandler`], and as what it is to be run.
pub(super) type ContentWork = (ActingUser, ContentHandler);

/// The permitted write of a request on a stream, after its ticket is checked.
pub(super) fn content_handler(
    request: &ContentRequest,
    context: &ConnectionContext,
) -> Result<ContentWork, RequestFailure> {
    let (claims, target) = context.authorize(&request.ticket)?;
    ticket_verifier::check_permission(&claims, &request.verb)?;
    let permit = context.verifier.stream_permit(&claims);
    let is_pack = match request.verb.as_str() {
        PACK => true,
        RANGE => false,
        other => return Err(RequestFailure::unknown_path(&sanitize_text(other))),
    };
    let identity = target.identity().clone();
    let handler: ContentHandler = Box::new(move |frames, mut buffer| {
        frames.permit = Some(permit);
        let buffer = buffer.content_mut();
        let reply = match is_pack {
            true => minicbor::to_vec(receive_pack(frames, &target, &claims, buffer)?),
            false => minicbor::to_vec(receive_range(frames, &target, buffer)?),
        };
        // Encoding into a Vec can't fail.
        Ok(reply.unwrap_or_default())
    });
    Ok((identity, handler))
}

/// The verb of a request, and what its ticket allows.
fn admit(
    request: &Request<Incoming>,
    context: &ConnectionContext,
) -> Result<(&'static str, Claims, Target), RequestFailure> {
    let path = request.uri().path();
    let Some(verb) = DOCUMENT_PATHS.into_iter().find(|verb| *verb == path) else {
        let shown = crate::wire::path::escape_bytes(&path.as_bytes()[..path.len().min(100)]);
        return Err(RequestFailure::unknown_path(&shown));
    };
    if request.method() != Method::POST {
        let rule = "requests are POST; a probe is GET";
        return Err(RequestFailure::new(ProblemCode::MethodNotAllowed, rule));
    }
    let ticket = request
        .headers()
        .get(TICKET_HEADER)
        .filter(|value| value.len() <= MAX_TICKET_BYTES)
        .and_then(|value| value.to_str().ok())
        .ok_or(Refusal::NoTicket)?;
    let (claims, target) = context.authorize(ticket)?;
    ticket_verifier::check_permission(&claims, verb)?;
    Ok((verb, claims, target))
}

/// The document that the body is, which has so long to come.
async fn read_body(request: Request<Incoming>, timeout: Duration) -> Result<Bytes, RequestFailure> {
    let check = request.headers().get(checksum::CHECKSUM_HEADER).cloned();
    let whole = Limited::new(request.into_body(), MAX_MANIFEST_BYTES).collect();
    match tokio::time::timeout(timeout, whole).await {
        Ok(Ok(bytes)) => {
            let bytes = bytes.to_bytes();
            if !checksum::matches_header(check.as_ref().map(HeaderValue::as_bytes), &bytes) {
                return Err(RequestFailure::damaged("the document"));
            }
            Ok(bytes)
        }
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let detail = format!("a document is at most {MAX_MANIFEST_BYTES} bytes");
            Err(RequestFailure::new(ProblemCode::BodyTooLarge, detail))
        }
        Ok(Err(e)) => Err(RequestFailure::invalid(e)),
        Err(_) => {
            Err(RequestFailure::invalid(format!("the document did not arrive in {timeout:?}")))
        }
    }
}

/// Reads and drops what is left of a refused body, so that the refusal can be read before the
/// connection ends.
async fn drain_body(mut body: Incoming) {
    let mut left = DRAIN_BYTES;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let n = frame.data_ref().map_or(0, |d| d.len() as u64);
            if n > left {
                return;
            }
            left -= n;
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
}
