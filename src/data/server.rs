//! The receiving agent's HTTP server: one accept loop per endpoint. What is answered stands in
//! [`handlers`].

use super::active_requests::ActiveRequests;
use super::buffer_pool::BufferPool;
use super::content_server;
use super::data_stream::DataStream;
use super::endpoints::{Endpoints, PendingEndpoint, is_address_missing};
use super::handlers;
use super::listen::Listener;
use super::meter::CountedStream;
use super::nics::Nic;
use super::protocol::STALL_TIMEOUT;
use super::roots::Roots;
use super::server_context::ConnectionContext;
use super::ticket_verifier::TicketVerifier;
use super::tls::{Accepted, DataTls};
use crate::config::NicConfig as Configured;
use crate::util::admission::{Admission, AdmissionLimits, AdmittedConnection};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::shutdown::Shutdown;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// At most this many requests are executed at once; more wait. Each holds a thread, and buffers while there is content.
const MAX_ACTIVE_REQUESTS: usize = 32;
/// The connections of an agent. More may close than requests are executed at a time, so that some of them end at once.
pub(super) const CONNECTIONS: AdmissionLimits = AdmissionLimits {
    max_peers: 512,
    max_unverified: 512,
    max_unverified_per_address: 64,
    max_closing: 64,
};
/// A request's head must be complete within this; an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What hyper gathers of a request, in bytes. Content does not go through it.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Why an endpoint can't be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on data-plane endpoint {endpoint}: {source}; check that the address belongs to this \
     host and that nothing else uses the port"
)]
pub struct BindError {
    /// `host:port`.
    pub endpoint: String,
    /// The error of the kernel or the resolver.
    pub source: std::io::Error,
}

/// A data plane that listens and does not answer yet.
pub struct DataServer {
    listeners: Vec<Listener>,
    pending: Vec<PendingEndpoint>,
    /// The NICs of this host, one per endpoint.
    pub nics: Vec<Arc<Nic>>,
    /// The state of the endpoints.
    pub endpoints: Arc<Endpoints>,
    /// The requests of other agents that are being executed.
    pub requests: Arc<ActiveRequests>,
    stall_timeout: Duration,
    tls: Option<Arc<DataTls>>,
}

impl DataServer {
    /// Listens on every endpoint with an address of this host; with port 0 the kernel chooses. The others are looked for
    /// while it serves.
    ///
    /// # Errors
    /// The first endpoint that can't be listened on though its address is there.
    pub async fn bind<E: Clone + Into<Configured>>(endpoints: &[E]) -> Result<Self, BindError> {
        let (mut listeners, mut pending, mut nics) = (Vec::new(), Vec::new(), Vec::new());
        let states = Endpoints::default();
        for endpoint in endpoints {
            let configured: Configured = endpoint.clone().into();
            match Listener::bind(configured.clone(), endpoints.len() > 1).await {
                Ok(listener) => {
                    states.add(listener.nic.endpoint.clone());
                    nics.push(listener.nic.clone());
                    listeners.push(listener);
                }
                Err(error) if is_address_missing(&error) => {
                    let missing = states.add_unavailable(configured, &error);
                    nics.push(missing.nic.clone());
                    pending.push(missing);
                }
                Err(source) => {
                    let endpoint = configured.endpoint.authority();
                    return Err(BindError { endpoint, source });
                }
            }
        }
        let (endpoints, requests) =
            (Arc::new(states), Arc::new(ActiveRequests::new(MAX_ACTIVE_REQUESTS)));
        Ok(DataServer {
            listeners,
            pending,
            nics,
            endpoints,
            requests,
            stall_timeout: STALL_TIMEOUT,
            tls: None,
        })
    }

    /// The same, where `tls` is given with nothing but TLS.
    pub fn with_tls(self, tls: Option<Arc<DataTls>>) -> Self {
        DataServer { tls, ..self }
    }

    /// The same with another time-out for peers that send next to nothing.
    #[cfg(test)]
    pub(super) fn with_stall_timeout(self, stall_timeout: Duration) -> Self {
        DataServer { stall_timeout, ..self }
    }

    /// Answers requests that `verifier` admits to `roots`, through buffers of `pool`, until `stop`; then accepts no new
    /// connection, waits for requests to end, and closes the rest. Dropping the future ends everything at once.
    pub async fn serve(
        self,
        verifier: Arc<TicketVerifier>,
        roots: Arc<Roots>,
        pool: BufferPool,
        stop: Shutdown,
    ) {
        let (requests, stall_timeout) = (self.requests.clone(), self.stall_timeout);
        let context = move |connection| ConnectionContext {
            verifier: verifier.clone(),
            roots: roots.clone(),
            requests: requests.clone(),
            pool: pool.clone(),
            stall_timeout,
            sender: None,
            allows_clear: false,
            connection,
        };
        let (tracker, abort) = (TaskTracker::new(), Shutdown::new());
        let _guard = abort.clone().drop_guard();
        let several = self.nics.len() > 1;
        let acceptor = Acceptor {
            context,
            tls: self.tls,
            connections: Arc::new(Admission::new(CONNECTIONS)),
            tracker: tracker.clone(),
            stop: stop.clone(),
            abort,
        };
        let accept = |listener| acceptor.accept_all(listener);
        let loops = self.listeners.into_iter().map(accept);
        let pending = self.pending.into_iter().map(|missing| async {
            let found = missing.listen_when_available(&self.endpoints, several);
            if let Some(listener) = stop.run_until_cancelled(found).await {
                accept(listener).await;
            }
        });
        let all = futures_util::future::join_all(loops);
        tokio::join!(all, futures_util::future::join_all(pending));
        tracker.close();
        tracker.wait().await;
    }
}

/// What accepts connections, for all endpoints.
struct Acceptor<F> {
    /// The context of a connection.
    context: F,
    tls: Option<Arc<DataTls>>,
    connections: Arc<Admission>,
    tracker: TaskTracker,
    stop: Shutdown,
    abort: Shutdown,
}

impl<F: Fn(Arc<AdmittedConnection>) -> ConnectionContext> Acceptor<F> {
    async fn accept_all(&self, mut listener: Listener) {
        loop {
            let next = async { (self.connections.wait_for_room().await, listener.accept().await) };
            let Some((room, accepted)) = self.stop.run_until_cancelled(next).await else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = self.connections.admit(peer.ip(), room);
                    let context = (self.context)(connection.clone());
                    let (stop, abort) = (self.stop.clone(), self.abort.clone());
                    let tls = self.tls.clone();
                    let (stream, open) =
                        (listener.nic.wrap_accepted(stream), listener.nic.count_open_connection());
                    self.tracker.spawn(async move {
                        let _open = open;
                        tokio::select! {
                            () = accept_connection(stream, peer, context, (tls, stop)) => (),
                            () = connection.closed() => (),
                            () = abort.cancelled() => (),
                        }
                    });
                }
                Err(e) => {
                    // Out of descriptors or memory: it passes, and a busy loop would not help it.
                    let what = format!("cannot accept a data connection: {e}");
                    warn_ratelimited!(what, "{what}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

/// Makes the TLS handshake where this agent has a certificate, and serves the connection.
async fn accept_connection(
    stream: CountedStream,
    peer: SocketAddr,
    mut context: ConnectionContext,
    (tls, stop): (Option<Arc<DataTls>>, Shutdown),
) {
    let Some(tls) = tls else {
        return serve_connection(DataStream::Plain(stream), peer, context, (true, stop)).await;
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)) => accepted,
        () = stop.cancelled() => return,
    };
    match accepted {
        Ok(Ok(Accepted::Tls(stream, worker))) => {
            (context.sender, context.allows_clear) = (Some(worker), tls.allows_clear());
            serve_connection(stream, peer, context, (true, stop)).await;
        }
        Ok(Ok(Accepted::Plain(stream))) => {
            serve_connection(stream, peer, context, (false, stop)).await;
        }
        Ok(Err(e)) if e.kind() == ErrorKind::UnexpectedEof => {}
        Ok(Err(e)) => context.log_failure(peer, &format!("no TLS: {e}")),
        Err(_) => {}
    }
}

/// Serves a connection, or refuses all requests where it is not `allowed` without TLS.
async fn serve_connection(
    stream: DataStream,
    peer: SocketAddr,
    context: ConnectionContext,
    (allowed, stop): (bool, Shutdown),
) {
    let context = Arc::new(context);
    let upgrade = Arc::new(Mutex::new(None));
    let service = {
        let (context, upgrade) = (context.clone(), upgrade.clone());
        service_fn(move |mut request| {
            let (context, upgrade) = (context.clone(), upgrade.clone());
            async move {
                if !allowed {
                    return Ok(handlers::refuse_plain(request, peer).await);
                }
                let response =
                    match content_server::accept_upgrade(&mut request, context.allows_clear) {
                        Some((stream, response)) => {
                            *upgrade.lock() = Some(stream);
                            response
                        }
                        None => handlers::handle_request(request, peer, &context).await,
                    };
                Ok::<_, std::convert::Infallible>(response)
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
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
        let hint = "; an agent with a certificate sends TLS, for which this agent has to join (--join-token-file)";
        let hint = if e.is_parse() { hint } else { "" };
        context.log_failure(peer, &format!("{e}{hint}"));
    }
    let upgrade = upgrade.lock().take();
    if let Some(stream) = upgrade {
        content_server::serve_stream(stream, peer, (&context, &stop)).await;
    }
}
