//! The receiving agent's HTTP server: one accept loop per endpoint, tickets checked before anything
//! else, bodies handed to blocking threads as they come.

use super::body::{STALL, arriving, drain, pump};
use super::frame::{FrameError, FrameReader};
use super::gate::{Refused, TicketGate};
use super::protocol::{MAX_TICKET, OFFER, PACK, PROBE, RANGE, TICKET_HEADER, VERSION};
use super::receive::{take_offer, take_pack, take_range};
use super::roots::Roots;
use crate::fs::Target;
use crate::util::shutdown::Shutdown;
use crate::wire::manifest::{MAX_BYTES, Manifest};
use crate::wire::problem::{CONTENT_TYPE, Problem};
use crate::wire::ticket::Claims;
use crate::wire::worker::{DEFAULT_DATA_PORT, Endpoint};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// At most this many connections per agent; more wait in the kernel's queue.
const CONNECTIONS: usize = 512;
/// At most this many requests are executed at once; more wait. Each holds a thread and at most
/// [`DEPTH`](super::body::DEPTH) pieces.
const ACTIVE: usize = 32;
/// A request's head must be complete within this; an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What hyper reads at once, in bytes; also the longest piece of a body.
const READ_BUFFER: usize = 512 << 10;
/// How much of a refused request is read so that the refusal arrives.
const DRAIN_BYTES: u64 = 8 << 20;
/// … and for how long.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Connections that end badly are logged at most this often, in seconds.
const LOG_EVERY: u64 = 10;

/// Why an endpoint can't be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on data-plane endpoint {endpoint}: {source}; check that the address belongs to this \
     host and that nothing else uses the port"
)]
pub struct BindError {
    /// `host:port`.
    pub endpoint: String,
    /// What the kernel (or the resolver) said.
    pub source: std::io::Error,
}

/// What requests are judged by and act on.
pub struct Served {
    /// Who may.
    pub gate: Arc<TicketGate>,
    /// Where.
    pub roots: Arc<Roots>,
}

/// A data plane that listens and does not answer yet.
pub struct DataServer {
    listeners: Vec<TcpListener>,
    endpoints: Vec<Endpoint>,
}

impl DataServer {
    /// Listens on every endpoint; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// The first endpoint that can't be listened on.
    pub async fn bind(endpoints: &[Endpoint]) -> Result<Self, BindError> {
        let mut server = DataServer { listeners: Vec::new(), endpoints: Vec::new() };
        for endpoint in endpoints {
            let fail = |source| BindError { endpoint: endpoint.authority(), source };
            let port = endpoint.port.unwrap_or(DEFAULT_DATA_PORT);
            let listener =
                TcpListener::bind((endpoint.address.as_str(), port)).await.map_err(fail)?;
            let bound = listener.local_addr().map_err(fail)?;
            server.listeners.push(listener);
            server.endpoints.push(Endpoint { port: Some(bound.port()), ..endpoint.clone() });
        }
        Ok(server)
    }

    /// The endpoints with the ports that they have.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Answers until `stop`; then takes no new connection, lets requests end, and closes the rest.
    /// Dropping the future ends everything at once.
    pub async fn serve(self, served: Arc<Served>, stop: Shutdown) {
        let shared = Arc::new(Shared {
            served,
            active: Semaphore::new(ACTIVE),
            logged: AtomicU64::new(0),
            stall: STALL,
        });
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let tracker = TaskTracker::new();
        let abort = Shutdown::new();
        let _guard = abort.clone().drop_guard();
        let loops = self.listeners.into_iter().map(|listener| {
            let (shared, connections) = (shared.clone(), connections.clone());
            accept_loop(listener, shared, connections, tracker.clone(), stop.clone(), abort.clone())
        });
        futures_util::future::join_all(loops).await;
        tracker.close();
        tracker.wait().await;
    }
}

struct Shared {
    served: Arc<Served>,
    active: Semaphore,
    logged: AtomicU64,
    stall: Duration,
}

async fn accept_loop(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: Shutdown,
    abort: Shutdown,
) {
    loop {
        let next = async {
            // Never closed, so there is always a permit in the end.
            let permit = connections.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (shared, stop, abort) = (shared.clone(), stop.clone(), abort.clone());
                tracker.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = connection(stream, peer, shared, stop) => (),
                        () = abort.cancelled() => (),
                    }
                });
            }
            Err(e) => {
                // Out of descriptors or memory: it passes, and a busy loop would not help it.
                tracing::warn!("cannot accept a data connection: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, stop: Shutdown) {
    let _ = stream.set_nodelay(true);
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, std::convert::Infallible>(answer(request, peer, &shared).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let end = tokio::select! {
        end = connection.as_mut() => end,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = end
        && !e.is_timeout()
    {
        shared.log(peer, &e.to_string());
    }
}

impl Shared {
    /// One line, and no more than one in a while: peers can make any number of mistakes.
    fn log(&self, peer: SocketAddr, what: &str) {
        let now = super::gate::boottime().as_secs().max(1);
        let last = self.logged.load(Ordering::Relaxed);
        if last + LOG_EVERY <= now || last == 0 {
            self.logged.store(now, Ordering::Relaxed);
            tracing::warn!(%peer, "data connection ended: {what}");
        } else {
            tracing::debug!(%peer, "data connection ended: {what}");
        }
    }
}

/// Why a request got no reply of its own.
enum Failure {
    Refused(Refused),
    Verb(String),
    Method,
    Bad(String),
    TooLong,
    Internal(String),
}

impl From<FrameError> for Failure {
    fn from(e: FrameError) -> Self {
        Failure::Bad(e.to_string())
    }
}

impl Failure {
    fn problem(self) -> Problem {
        match self {
            Failure::Refused(refused @ Refused::NoKey) => {
                Problem::new(503, "Service Unavailable", "not_ready", refused.to_string())
            }
            Failure::Refused(refused @ Refused::Absent) => {
                Problem::new(401, "Unauthorized", "no_ticket", refused.to_string())
            }
            Failure::Refused(refused) => {
                Problem::new(403, "Forbidden", "ticket_refused", refused.to_string())
            }
            Failure::Verb(path) => {
                let detail = format!("`{path}` is nothing that an agent answers");
                Problem::new(404, "Not Found", "unknown_verb", detail).hinted(format!(
                    "this agent speaks version {VERSION}: paths begin with /v{VERSION}/"
                ))
            }
            Failure::Method => Problem::new(
                405,
                "Method Not Allowed",
                "method_not_allowed",
                "offers, packs and ranges are POSTed; a probe is a GET",
            ),
            Failure::Bad(detail) => Problem::new(400, "Bad Request", "bad_frame", detail),
            Failure::TooLong => {
                let detail = format!("an offer is at most {MAX_BYTES} bytes");
                Problem::new(413, "Content Too Large", "too_long", detail)
            }
            Failure::Internal(detail) => {
                Problem::new(500, "Internal Server Error", "internal", detail)
            }
        }
    }
}

async fn answer(
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
        Ok(document) => reply(StatusCode::OK, "application/cbor", document.into()),
        Err(failure) => {
            let problem = failure.problem();
            tracing::debug!(%peer, path, status = problem.status, "{}", problem.detail);
            if problem.status < 500 {
                shared.log(peer, &format!("{path}: {}", problem.detail));
            }
            let status =
                StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = serde_json::to_vec(&problem).unwrap_or_default();
            let mut response = reply(status, CONTENT_TYPE, body.into());
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
    let verb = match request.uri().path() {
        OFFER => OFFER,
        PACK => PACK,
        RANGE => RANGE,
        other => {
            let shown = crate::wire::path::show(&other.as_bytes()[..other.len().min(100)]);
            return refuse(request, Failure::Verb(shown)).await;
        }
    };
    if request.method() != Method::POST {
        return refuse(request, Failure::Method).await;
    }
    let (claims, target) = match admit(&request, &shared.served) {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(request, Failure::Refused(refused)).await,
    };
    // Never closed.
    let _permit = shared.active.acquire().await;
    match verb {
        OFFER => offer(request, target).await,
        PACK => {
            let attempt = claims.attempt;
            streamed(request, shared, move |frames| take_pack(frames, &target, attempt)).await
        }
        _ => streamed(request, shared, move |frames| take_range(frames, &target)).await,
    }
}

async fn refuse(request: Request<Incoming>, failure: Failure) -> Result<Vec<u8>, Failure> {
    drain(request.into_body(), DRAIN_BYTES, DRAIN_TIME).await;
    Err(failure)
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

async fn offer(request: Request<Incoming>, target: Target) -> Result<Vec<u8>, Failure> {
    let whole = Limited::new(request.into_body(), MAX_BYTES).collect();
    let bytes = match tokio::time::timeout(STALL, whole).await {
        Ok(Ok(bytes)) => bytes.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => return Err(Failure::TooLong),
        Ok(Err(e)) => return Err(Failure::Bad(e.to_string())),
        Err(_) => return Err(Failure::Bad(format!("the offer did not arrive in {STALL:?}"))),
    };
    run(move || {
        let manifest = Manifest::decode(&bytes).map_err(|e| Failure::Bad(e.to_string()))?;
        Ok(take_offer(&target, &manifest))
    })
    .await
}

/// Runs `take` in a thread of its own on the frames of the body.
async fn streamed<T, F>(
    request: Request<Incoming>,
    shared: &Shared,
    take: F,
) -> Result<Vec<u8>, Failure>
where
    T: minicbor::Encode<()> + Send + 'static,
    F: FnOnce(FrameReader<super::body::Arriving>) -> Result<T, FrameError> + Send + 'static,
{
    let (to, from) = arriving();
    let work = run(move || Ok(take(FrameReader::new(from))?));
    let (body, done) = tokio::join!(pump(request.into_body(), to, shared.stall), work);
    if done.is_err() {
        drain(body, DRAIN_BYTES, DRAIN_TIME).await;
    }
    done
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
            tracing::error!("a data request failed inside: {e}");
            Err(Failure::Internal("the agent failed inside; its log says more".to_owned()))
        }
    }
}
