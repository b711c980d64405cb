//! Requests to one worker, sent again over another route where one fails. Damage in transit is counted
//! here, by the sender: it sees damaged replies, and the receiver reports damaged requests to it.

use super::buffer_pool::Buffer;
use super::connect::ConnectionKind;
use super::content_client::{ContentClient, ContentReply, Disconnected, FrameSink, parse_problem};
use super::control_messages::ControlRequest;
use super::current_ticket::CurrentTicket;
use super::deadline::TransferControl;
use super::outcome::{PackOutcome, RangeError, SendError, SentFile, WrittenRange};
use super::peers::Peers;
use super::pooled_connection::PooledConnection;
use super::protocol::{
    ContentRequest, MAX_REPLY_BYTES, MIN_PROGRESS_BYTES, PACK, PackReply, RANGE, RangeHead,
    RangeReply, STALL_TIMEOUT, TICKET_HEADER, WriteOutcome,
};
use super::send::{FrameWriter, SendHashing, send_pack, send_range};
use super::source_reader::RangeTransfer;
use super::tls::describe_error_chain;
use crate::fs::{BlockHashes, Tree};
use crate::util::checksum::{self, CHECKSUM_MISMATCH};
use crate::util::rate::Limiters;
use crate::wire::WorkerId;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, ManifestDir};
use crate::wire::options::WriteRules;
use crate::wire::outcome::sanitize_text;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::task::PoolMember;
use crate::wire::ticket::MAX_TICKET_SECONDS;
use crate::wire::worker::Endpoint;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A complete reply must arrive within this; twice the stall timeout of the receiver, so that its error
/// arrives first.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2 * STALL_TIMEOUT.as_secs());
/// … and later for each so many bytes of content that have to be read for it.
const MIN_READ_BYTES_PER_SECOND: u64 = 1 << 20;
/// A prune or clean-up is answered when it is done; it may take as long as a ticket can be valid.
const LONG_REPLY_TIMEOUT: Duration = Duration::from_secs(MAX_TICKET_SECONDS as u64);
/// A request is sent at most so many times more, over other routes, before its worker has failed.
const MAX_RESENDS: usize = 4;
/// At most so many requests per pair of NICs are under way before ranges are sent in one piece at a time.
const MAX_REQUESTS_PER_RAIL: usize = 4;

/// Why a request was not answered.
enum RequestError {
    /// Its connection failed.
    Connection(String),
    /// Its route does not work, or others are faster.
    Route(String),
}

/// The attempts of a request so far.
#[derive(Default)]
struct Attempts {
    /// A kept connection failed.
    needs_new_connection: bool,
    /// How often the request was sent again over another route.
    resends: usize,
}

/// An exchange that was ended by its peer: the stream, the answer, and what was fed.
type CompletedExchange<T> = (ContentClient, ContentReply, Result<T, Disconnected>);

/// One worker to send to.
pub struct Peer {
    pub(super) worker: WorkerId,
    endpoints: Vec<Endpoint>,
    ticket: CurrentTicket,
    /// How content is compared …
    pub(super) hashing: HashMode,
    /// … and sent, where that is with its digest.
    sent_hashing: Option<HashMode>,
    control: TransferControl,
    /// See [`REPLY_TIMEOUT`].
    reply_timeout: Duration,
    pub(super) peers: Arc<Peers>,
}

impl Peers {
    /// A peer for `member`, with `ticket`, which has these `rules`. It counts as busy until it is
    /// dropped.
    pub fn peer(
        self: &Arc<Self>,
        member: &PoolMember,
        ticket: impl Into<CurrentTicket>,
        rules: &WriteRules,
    ) -> Peer {
        self.acquire(&member.worker_id);
        Peer {
            worker: member.worker_id.clone(),
            endpoints: member.data_plane_endpoints.clone(),
            ticket: ticket.into(),
            hashing: rules.hash_mode(),
            sent_hashing: rules.sender_hash_mode(),
            control: TransferControl::default(),
            reply_timeout: REPLY_TIMEOUT,
            peers: self.clone(),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.peers.release(&self.worker);
    }
}

impl Peer {
    /// The same, giving up sooner.
    #[cfg(test)]
    pub fn with_reply_timeout(mut self, reply: Duration) -> Self {
        self.reply_timeout = reply;
        self
    }

    /// The same, with content that `control` ends and slows.
    pub fn with_control(mut self, control: TransferControl) -> Self {
        self.control = control;
        self
    }

    /// Sends a request, which is `document`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn request<R: ControlRequest>(
        &self,
        request: &R,
        document: Bytes,
    ) -> Result<R::Outcome, SendError> {
        let timeout = request.bytes_to_read().map_or(LONG_REPLY_TIMEOUT, |bytes| {
            let reading = Duration::from_secs(bytes / MIN_READ_BYTES_PER_SECOND);
            self.reply_timeout.saturating_add(reading).min(LONG_REPLY_TIMEOUT)
        });
        let mut attempts = Attempts::default();
        loop {
            let mut pooled =
                self.checkout(&attempts, ConnectionKind::Documents, document.len() as u64).await?;
            let route_failure = self.wait_for_route_failure(&pooled);
            let answered = tokio::select! {
                answered = self.post_document(&mut pooled, R::PATH, document.clone()) => answered.map_err(RequestError::Connection),
                reason = route_failure => Err(RequestError::Route(reason)),
                () = tokio::time::sleep(timeout) => {
                    let reason = format!("no reply in {timeout:?}");
                    return Err(self.connection_error(pooled, reason));
                }
            };
            match answered {
                Ok((StatusCode::OK, body)) => {
                    self.finish_exchange(pooled);
                    let reply = request.read_reply(self.decode_reply(&body)?);
                    return reply.map_err(|reason| self.protocol_error(reason));
                }
                Ok((status, body)) => {
                    pooled.record_success();
                    let problem = Problem { status: status.as_u16(), ..parse_problem(&body) };
                    return Err(self.refusal_error(R::PATH, problem));
                }
                Err(error) => self.handle_request_error(pooled, error, &mut attempts)?,
            }
        }
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`]. What the peer wrote before is there; an offer shows it.
    pub async fn transfer_pack(
        &self,
        source: &Tree,
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<PackOutcome, SendError> {
        let (source, hashing) = (source.clone(), self.send_hashing());
        let size = files.iter().map(Entry::size).sum();
        let (dirs, files) = (Arc::new(dirs), Arc::new(files));
        let (table, sent) = (dirs.clone(), files.clone());
        let feed = move |feed: &mut FrameWriter<'_>| {
            let send = || send_pack(&source, &table, &sent, hashing, feed);
            let sent_files = source.identity().run(send)?;
            Ok((sent_files, feed.sent))
        };
        let (reply, sent_files): (PackReply, (Vec<SentFile>, u64)) =
            self.request_content(PACK, (size, false), feed).await?;
        let record_mismatch = |entry: &Entry| {
            self.control.corruption.record(&format!("the content of {}", entry.path), &self.worker);
        };
        PackOutcome::from_reply(&dirs, &files, reply, sent_files, record_mismatch)
            .map_err(|reason| self.protocol_error(reason))
    }

    /// Sends a range; with `existing` only what differs from those blocks.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn transfer_range(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockHashes>>,
    ) -> Result<WrittenRange, RangeError> {
        let RangeTransfer { source, manifest, entry, span } = transfer;
        let head = RangeHead {
            manifest: manifest.clone(),
            offset: span.offset,
            length: span.length,
            is_dense: false,
        };
        let (source, file, hashing) = (source.clone(), entry.clone(), self.send_hashing().mode);
        let size = (span.length, existing.is_some());
        let feed = move |feed: &mut FrameWriter<'_>| {
            let existing = existing.as_deref();
            source.identity().run(|| send_range(&source, &head, &file, existing, hashing, feed))
        };
        let (reply, sent): (RangeReply, _) = self.request_content(RANGE, size, feed).await?;
        if reply.outcome == WriteOutcome::Mismatch && sent.is_ok() {
            let (from, to) = (span.offset, span.end());
            let what = format!("bytes {from} to {to} of {}", entry.path);
            self.control.corruption.record(&what, &self.worker);
        }
        Ok(WrittenRange::from_reply(entry, reply, sent)?)
    }

    fn send_hashing(&self) -> SendHashing {
        let for_relays = self.control.hashes_for_relays;
        let mode = self.sent_hashing.or(for_relays.then_some(self.hashing));
        SendHashing { mode, for_relays }
    }

    /// How many pieces of a range are best sent at a time: one for each pair of NICs, as long as not
    /// much is under way already.
    pub(super) fn parallel_stripes(&self) -> usize {
        let routes = &self.peers.routes;
        let rails = routes.count_rails(&self.endpoints);
        rails.min((MAX_REQUESTS_PER_RAIL * rails).saturating_sub(routes.count_in_flight())).max(1)
    }

    /// Whether there are several pairs of NICs to it.
    pub(super) fn is_multi_rail(&self) -> bool {
        self.peers.routes.count_rails(&self.endpoints) > 1
    }

    /// Sends what `feed` makes, about `size` bytes, with room for it to compare blocks if they are
    /// `compared`, and reads the reply. It is made and sent again over another route where one fails.
    async fn request_content<T, F, R>(
        &self,
        verb: &str,
        (size, compared): (u64, bool),
        feed: F,
    ) -> Result<(R, T), SendError>
    where
        T: Send + 'static,
        F: Fn(&mut FrameWriter<'_>) -> Result<T, Disconnected> + Clone + Send + 'static,
        R: for<'b> minicbor::Decode<'b, ()>,
    {
        let mut attempts = Attempts::default();
        loop {
            // Before a connection: no peer is to wait for memory of this host.
            let buffers = self.peers.pool.acquire_for_send(compared).await;
            let mut pooled = self.checkout(&attempts, ConnectionKind::Content, size).await?;
            // Dropped when it is settled what becomes of the connection: the thread closes it.
            let (control, _guard) = self.control.start_attempt();
            let (stream, answered, sent_files) = match self
                .exchange_content(&mut pooled, verb, control, (feed.clone(), buffers))
                .await
            {
                Ok(ended) => ended,
                Err(error) => {
                    self.handle_request_error(pooled, error, &mut attempts)?;
                    continue;
                }
            };
            return match (answered, sent_files) {
                (ContentReply::Refused(problem), _) => Err(self.refusal_error(verb, problem)),
                (ContentReply::Damaged, _) => {
                    self.control
                        .corruption
                        .record(&format!("the answer to a {verb}"), &self.worker);
                    Err(self.connection_error(pooled, format!("its answer: {CHECKSUM_MISMATCH}")))
                }
                (ContentReply::Reply(reply), Ok(sent_files)) => {
                    if let Some(connection) = &mut pooled.connection {
                        connection.stream = Some(stream);
                    }
                    self.finish_exchange(pooled);
                    Ok((self.decode_reply(&reply)?, sent_files))
                }
                (ContentReply::Reply(_), Err(Disconnected)) => {
                    Err(self.protocol_error("it answered before the end".to_owned()))
                }
            };
        }
    }

    /// Sends the content that `feed` makes on a stream and awaits the answer, in a thread, while the route is
    /// monitored.
    async fn exchange_content<T, F>(
        &self,
        pooled: &mut PooledConnection,
        verb: &str,
        control: TransferControl,
        (feed, buffers): (F, (Buffer, Option<Buffer>)),
    ) -> Result<CompletedExchange<T>, RequestError>
    where
        T: Send + 'static,
        F: Fn(&mut FrameWriter<'_>) -> Result<T, Disconnected> + Send + 'static,
    {
        let stream = pooled.connection.as_mut().and_then(|connection| connection.stream.take());
        let mut stream = stream.ok_or_else(|| RequestError::Connection("it is gone".to_owned()))?;
        let request =
            ContentRequest { verb: verb.to_owned(), ticket: self.ticket.text().to_string() };
        let nic = pooled.nic().map(|nic| nic.rate.clone());
        let limiters = nic.into_iter().fold(control.limiters.clone(), Limiters::with);
        let progress = Arc::new(AtomicU64::new(0));
        let counted = progress.clone();
        let work = tokio::task::spawn_blocking(move || {
            let feed = |to: &mut dyn FrameSink| {
                feed(&mut FrameWriter::new(to, buffers, counted.clone(), limiters))
            };
            let ended = stream.exchange(&request, &counted, &control, feed);
            ended.map(|(answered, sent_files)| (stream, answered, sent_files))
        });
        tokio::select! {
            ended = work => match ended {
                Ok(ended) => ended.map_err(RequestError::Connection),
                Err(e) => Err(RequestError::Connection(format!("sending panicked: {e}"))),
            },
            reason = self.wait_for_route_failure(pooled) => Err(RequestError::Route(reason)),
            () = wait_for_stall(progress, self.reply_timeout) => {
                let reason = format!("it accepted less than {MIN_PROGRESS_BYTES} bytes in {:?}", self.reply_timeout);
                Err(RequestError::Connection(reason))
            }
        }
    }

    /// A request was lost with its route: it is to be sent again where there is another one.
    fn handle_request_error(
        &self,
        pooled: PooledConnection,
        error: RequestError,
        attempts: &mut Attempts,
    ) -> Result<(), SendError> {
        // The other side had closed a kept connection, which shows only now: nothing was lost with it.
        if pooled.reused && matches!(error, RequestError::Connection(_)) {
            attempts.needs_new_connection = true;
            return Ok(());
        }
        let is_abandoned = matches!(error, RequestError::Route(_));
        let (RequestError::Connection(reason) | RequestError::Route(reason)) = error;
        let another = pooled.mark_failed(&self.endpoints, &reason, is_abandoned);
        if another && attempts.resends < MAX_RESENDS {
            attempts.resends += 1;
            tracing::info!(worker = %self.worker, "a request is sent over another route: {reason}");
            return Ok(());
        }
        self.peers.mark_unhealthy(&self.worker);
        Err(SendError::ConnectionFailed { worker: self.worker.clone(), message: reason })
    }

    async fn checkout(
        &self,
        attempts: &Attempts,
        kind: ConnectionKind,
        size: u64,
    ) -> Result<PooledConnection, SendError> {
        let fresh = attempts.needs_new_connection;
        let remote = (&self.worker, self.endpoints.as_slice());
        let pooled = self.peers.routes.checkout(remote, fresh, kind, size).await;
        pooled.map_err(|attempts| {
            self.peers.mark_unhealthy(&self.worker);
            SendError::Unreachable { worker: self.worker.clone(), attempts }
        })
    }

    /// Resolves with the reason when the route of a connection fails.
    fn wait_for_route_failure(
        &self,
        pooled: &PooledConnection,
    ) -> impl Future<Output = String> + use<'_> {
        let monitor = pooled.monitor();
        async move {
            match monitor {
                Some(monitor) => {
                    let is_silent = || self.peers.is_silent(&self.worker);
                    monitor.wait_for_failure(&self.endpoints, is_silent).await
                }
                None => std::future::pending().await,
            }
        }
    }

    async fn post_document(
        &self,
        pooled: &mut PooledConnection,
        path: &str,
        document: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = Request::post(path)
            .header(HOST, pooled.peer())
            .header(TICKET_HEADER, &*self.ticket.text())
            .header(checksum::CHECKSUM_HEADER, checksum::header_value(&document))
            .body(Full::new(document))
            .map_err(|e| e.to_string())?;
        let send = &mut pooled.connection.as_mut().ok_or("the connection is gone")?.sender;
        send.ready().await.map_err(|e| e.to_string())?;
        let response = send.send_request(request).await.map_err(describe_error_chain)?;
        let status = response.status();
        let check = response.headers().get(checksum::CHECKSUM_HEADER).cloned();
        let body = Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        if !checksum::matches_header(check.as_ref().map(|check| check.as_bytes()), &body) {
            self.control.corruption.record(&format!("the answer to {path}"), &self.worker);
            return Err(format!("its reply: {CHECKSUM_MISMATCH}"));
        }
        Ok((status, body))
    }

    /// It answered: the connection can be used again.
    fn finish_exchange(&self, pooled: PooledConnection) {
        pooled.record_success();
        pooled.return_to_pool();
        self.peers.mark_healthy(&self.worker);
    }

    /// What a refusal of `what` means. One for damage is no refusal: the same is worth another try.
    fn refusal_error(&self, what: &str, problem: Problem) -> SendError {
        let detail = sanitize_text(&problem.detail);
        let worker = self.worker.clone();
        if problem.is(ProblemCode::ChecksumMismatch) {
            self.control.corruption.record(&format!("a {what} ({detail})"), &worker);
            return SendError::ConnectionFailed { worker, message: format!("{what}: {detail}") };
        }
        let code = sanitize_text(&problem.code);
        SendError::Refused { worker, status: problem.status, code, detail }
    }

    fn decode_reply<R: for<'b> minicbor::Decode<'b, ()>>(
        &self,
        reply: &[u8],
    ) -> Result<R, SendError> {
        minicbor::decode(reply).map_err(|e| self.protocol_error(e.to_string()))
    }

    fn connection_error(&self, pooled: PooledConnection, reason: String) -> SendError {
        pooled.mark_failed(&self.endpoints, &reason, false);
        self.peers.mark_unhealthy(&self.worker);
        SendError::ConnectionFailed { worker: self.worker.clone(), message: reason }
    }

    fn protocol_error(&self, reason: String) -> SendError {
        let message = format!("its reply is invalid: {reason}");
        SendError::ConnectionFailed { worker: self.worker.clone(), message }
    }
}

/// Resolves when `progress` grows by less than [`MIN_PROGRESS_BYTES`] in `timeout`.
async fn wait_for_stall(progress: Arc<AtomicU64>, timeout: Duration) {
    let mut last = progress.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(timeout).await;
        let now = progress.load(Ordering::Relaxed);
        if now < last + MIN_PROGRESS_BYTES {
            return;
        }
        last = now;
    }
}
