//! One worker to send to: the verbs, sent again over another route where one fails. What comes damaged is counted
//! here, by the side that sends: it sees what is wrong with an answer, and is told what was wrong with a request.

use super::asking::{Answered, Asking, Gone, Outlet};
use super::asks::{
    BlockValue, BlocksAsk, BlocksReply, PruneAsk, PruneReply, PrunedPage, RootAsk, RootReply,
    SweepAsk, SweepReply, WINDOW,
};
use super::body::{STALL, STALL_BYTES, stalled};
use super::connect::Kind;
use super::delta::Ranged;
use super::lease::Leased;
use super::outcome::{Offered, Packed, RangeSent, SendError};
use super::peers::Peers;
use super::pool::Buffer;
use super::protocol::{
    DIGEST, MAX_REPLY, OFFER, OfferReply, PACK, PRUNE, PackReply, RANGE, ROOT, RangeHead,
    RangeReply, SWEEP, TICKET_HEADER, Taken,
};
use super::send::{Fed, FedRange, Feed, feed_pack, feed_range};
use super::stream::Ask;
use super::until::Until;
use crate::fs::{RootKind, Tree};
use crate::util::checksum::{self, CHECKSUM_MISMATCH, CORRUPTED_CODE};
use crate::util::corruption::CorruptionCounter;
use crate::util::rate::Limiters;
use crate::util::shutdown::Shutdown;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::options::WriteRules;
use crate::wire::problem::Problem;
use crate::wire::sync::FileError;
use crate::wire::task::PoolMember;
use crate::wire::ticket::TICKET_LIFETIME_SECONDS;
use crate::wire::worker::Endpoint;
use crate::wire::{RelPath, WorkerId};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A whole reply must come within this; twice the receiver's own patience, so that what it has to say
/// comes first.
const REPLY: Duration = Duration::from_secs(2 * STALL.as_secs());
/// … and later for each so many bytes of content that have to be read for it.
const SLOWEST: u64 = 1 << 20;
/// A prune or sweep says nothing before it is done; it may take as long as the ticket is good for.
const LONG: Duration = Duration::from_secs(TICKET_LIFETIME_SECONDS as u64);
/// A request is sent at most so many times more, over other routes, before its worker has failed.
const RESENT: usize = 4;
/// At most so many requests per pair of NICs are under way before ranges are sent in one piece at a time.
const WIDEST: usize = 4;

/// Why a request was not answered.
enum Lost {
    /// Its connection failed.
    Connection(String),
    /// It was given up: its route does not work, or others are better.
    Route(String),
}

/// An exchange that was ended by its peer: the stream, the answer, and what was fed.
type Ended<T> = (Asking, Answered, Result<T, Gone>);

/// One worker to send to.
pub struct Peer {
    worker: WorkerId,
    endpoints: Vec<Endpoint>,
    ticket: String,
    /// How content is compared …
    pub(super) hashing: HashMode,
    /// … and sent, where that is with its digest.
    sent_hashing: Option<HashMode>,
    pace: Limiters,
    damage: CorruptionCounter,
    until: Until,
    /// See [`REPLY`].
    reply: Duration,
    pub(super) peers: Arc<Peers>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.peers.left(&self.worker);
    }
}

impl Peer {
    /// `member`, to send to under `ticket`, which has these `rules`.
    pub(super) fn new(
        peers: Arc<Peers>,
        member: &PoolMember,
        ticket: &str,
        rules: &WriteRules,
    ) -> Self {
        Peer {
            worker: member.worker_id.clone(),
            endpoints: member.data_plane_endpoints.clone(),
            ticket: ticket.to_owned(),
            hashing: rules.hash_mode(),
            sent_hashing: rules.sender_hash_mode(),
            pace: Limiters::default(),
            damage: CorruptionCounter::default(),
            until: Until::default(),
            reply: REPLY,
            peers,
        }
    }

    /// The same, counting there what comes damaged.
    pub fn counted(mut self, damage: CorruptionCounter) -> Self {
        self.damage = damage;
        self
    }

    /// The same, giving up sooner.
    #[cfg(test)]
    pub fn giving_up_after(mut self, reply: Duration) -> Self {
        self.reply = reply;
        self
    }

    /// The same, sending no faster than `pace` lets it.
    pub fn at(mut self, pace: Limiters) -> Self {
        self.pace = pace;
        self
    }

    /// The same; nothing is sent any more once that is over.
    pub fn until(mut self, until: &Until) -> Self {
        self.until = until.clone();
        self
    }

    /// Who it is.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// Offers `manifest`, which is `encoded`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer(&self, manifest: &Manifest, encoded: Bytes) -> Result<Offered, SendError> {
        let reply: OfferReply =
            self.ask(OFFER, encoded, self.patience(manifest.content_bytes())).await?;
        Offered::of_reply(manifest, reply).map_err(|why| self.nonsense(why))
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`]. What the peer wrote before is there; an offer shows it.
    pub async fn pack(
        &self,
        source: &Tree,
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        let (source, hashing) = (source.clone(), self.sent_hashing);
        let size = files.iter().map(Entry::size).sum();
        let (dirs, files) = (Arc::new(dirs), Arc::new(files));
        let (table, sent) = (dirs.clone(), files.clone());
        let feed = move |feed: &mut Feed<'_>| {
            let fed = feed_pack(&source, &table, &sent, hashing, feed)?;
            Ok((fed, feed.sent()))
        };
        let (reply, fed): (PackReply, (Vec<Fed>, u64)) =
            self.stream(PACK, (size, false), feed).await?;
        let begun = files.iter().zip(&fed.0).filter(|(_, fed)| !matches!(fed, Fed::Unread(_)));
        for ((entry, _), taken) in begun.zip(&reply.files) {
            if *taken == Taken::Mismatch {
                self.damage.record(&format!("the content of {}", entry.path), &self.worker);
            }
        }
        Packed::of_reply(&dirs, &files, reply, fed).map_err(|why| self.nonsense(why))
    }

    /// Sends a range; with `there` only what differs from those blocks.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn range(
        &self,
        ranged: Ranged<'_>,
        there: Option<Vec<BlockValue>>,
    ) -> Result<RangeSent, SendError> {
        let Ranged { source, manifest, entry, span } = ranged;
        let head = RangeHead {
            manifest: manifest.clone(),
            offset: span.offset,
            length: span.length,
            dense: None,
        };
        let (source, file, hashing) = (source.clone(), entry.clone(), self.sent_hashing);
        let size = (span.length, there.is_some());
        let feed = move |feed: &mut Feed<'_>| {
            feed_range(&source, &head, &file, there.as_deref(), hashing, feed)
        };
        let (reply, fed): (RangeReply, FedRange) = self.stream(RANGE, size, feed).await?;
        if reply.range == Taken::Mismatch && matches!(fed, FedRange::Sent { .. }) {
            let (from, to) = (span.offset, span.end());
            let what = format!("bytes {from} to {to} of {}", entry.path);
            self.damage.record(&what, &self.worker);
        }
        Ok(RangeSent::of_reply(entry, reply, fed))
    }

    /// Asks for block values.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn blocks(
        &self,
        ask: BlocksAsk,
    ) -> Result<Result<Vec<BlockValue>, FileError>, SendError> {
        let entry = ask.checked().map_err(SendError::Internal)?;
        // The part file and the file that is there.
        let patience = self.patience(2 * ask.length.min(2 * WINDOW));
        match self.ask(DIGEST, encoded(&ask), patience).await? {
            BlocksReply::Values(values)
                if values.len() as u64 == ask.length.div_ceil(ask.block) =>
            {
                Ok(Ok(values))
            }
            BlocksReply::Values(values) => {
                Err(self.nonsense(format!("{} values of {} bytes", values.len(), ask.length)))
            }
            BlocksReply::Failed(fault) => Ok(Err(fault.into_error(&entry.path))),
        }
    }

    /// Finds (and removes) what is extra.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn prune(&self, ask: PruneAsk) -> Result<PrunedPage, SendError> {
        let reply: PruneReply = self.ask(PRUNE, encoded(&ask), LONG).await?;
        reply.into_page(&ask).map_err(|why| self.nonsense(why))
    }

    /// Removes what was kept to find the names of one file.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn sweep(
        &self,
        root: Option<ManifestDir>,
    ) -> Result<Result<(), FileError>, SendError> {
        let reply: SweepReply = self.ask(SWEEP, encoded(&SweepAsk { root }), LONG).await?;
        Ok(reply.fault.map_or(Ok(()), |fault| Err(fault.into_error(&RelPath::root()))))
    }

    /// Asks whether the root can be written.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn check_root(&self, source: RootKind) -> Result<Result<(), FileError>, SendError> {
        let reply: RootReply = self.ask(ROOT, encoded(&RootAsk { source }), self.reply).await?;
        Ok(reply.fault.map_or(Ok(()), |fault| Err(fault.into_error(&RelPath::root()))))
    }

    /// How many pieces of a range are best sent at a time: one for each pair of NICs, as long as not
    /// much is under way already.
    pub(super) fn width(&self) -> usize {
        let routes = &self.peers.routes;
        let rails = routes.rails(&self.endpoints);
        rails.min((WIDEST * rails).saturating_sub(routes.under_way())).max(1)
    }

    /// Whether there are several pairs of NICs to it.
    pub(super) fn is_wide(&self) -> bool {
        self.peers.routes.rails(&self.endpoints) > 1
    }

    /// How long a reply may take for which so much content is read.
    fn patience(&self, bytes: u64) -> Duration {
        self.reply.saturating_add(Duration::from_secs(bytes / SLOWEST)).min(LONG)
    }

    /// Sends a document, and reads the reply.
    async fn ask<R>(&self, path: &str, document: Bytes, patience: Duration) -> Result<R, SendError>
    where
        R: for<'b> minicbor::Decode<'b, ()>,
    {
        let (mut fresh, mut tries) = (false, 0);
        loop {
            let mut leased = self.lease(fresh, Kind::Documents, document.len() as u64).await?;
            let exchange = self.exchange(&mut leased, path, document.clone());
            let why = match tokio::time::timeout(patience, exchange).await {
                Ok(Ok(answered)) => return self.read(&self.accept(path, leased, answered)?),
                // The other side had closed a kept connection: nothing was lost with it.
                Ok(Err(Lost::Connection(_))) if leased.reused => {
                    fresh = true;
                    continue;
                }
                Ok(Err(lost)) => self.lost(leased, lost, tries),
                Err(_) => Err(self.broken(leased, format!("no reply in {patience:?}"))),
            };
            why?;
            tries += 1;
        }
    }

    /// Sends what `feed` makes, about `size` bytes, with room for it to compare blocks if they are
    /// `compared`, and reads the reply. It is made and sent again over another route where one fails.
    async fn stream<T, F, R>(
        &self,
        verb: &str,
        (size, compared): (u64, bool),
        feed: F,
    ) -> Result<(R, T), SendError>
    where
        T: Send + 'static,
        F: Fn(&mut Feed<'_>) -> Result<T, Gone> + Clone + Send + 'static,
        R: for<'b> minicbor::Decode<'b, ()>,
    {
        let (mut fresh, mut tries) = (false, 0);
        loop {
            // Before a connection: no peer is to wait for our memory.
            let buffers = self.peers.pool().to_send(compared).await;
            let mut leased = self.lease(fresh, Kind::Content, size).await?;
            // Dropped when it is settled what becomes of the connection: the thread closes it.
            let abandoned = Shutdown::new();
            let _guard = abandoned.clone().drop_guard();
            let (stream, answered, fed) = match self
                .exchange_content(&mut leased, verb, abandoned, (feed.clone(), buffers))
                .await
            {
                Ok(ended) => ended,
                // The other side had closed a kept connection: that shows only now.
                Err(Lost::Connection(_)) if leased.reused => {
                    fresh = true;
                    continue;
                }
                Err(lost) => {
                    self.lost(leased, lost, tries)?;
                    tries += 1;
                    continue;
                }
            };
            return match (answered, fed) {
                (Answered::Refused(problem), _) => Err(self.refused(verb, problem)),
                (Answered::Damaged, _) => {
                    self.damage.record(&format!("the answer to a {verb}"), &self.worker);
                    Err(self.broken(leased, format!("its answer: {CHECKSUM_MISMATCH}")))
                }
                (Answered::Reply(reply), Ok(fed)) => {
                    leased.give_back(stream);
                    self.keep(leased);
                    Ok((self.read(&reply)?, fed))
                }
                (Answered::Reply(_), Err(Gone)) => {
                    Err(self.nonsense("it answered before the end".to_owned()))
                }
            };
        }
    }

    /// Asks a stream to take what `feed` makes and awaits the answer, in a thread, with an eye on the
    /// route.
    async fn exchange_content<T, F>(
        &self,
        leased: &mut Leased,
        verb: &str,
        abandoned: Shutdown,
        (feed, buffers): (F, (Buffer, Option<Buffer>)),
    ) -> Result<Ended<T>, Lost>
    where
        T: Send + 'static,
        F: Fn(&mut Feed<'_>) -> Result<T, Gone> + Send + 'static,
    {
        let stream = leased.connection().and_then(|connection| connection.stream.take());
        let stream = stream.ok_or_else(|| Lost::Connection("it is gone".to_owned()))?;
        let ask = Ask { verb: verb.to_owned(), ticket: self.ticket.clone() };
        let nic = leased.nic().map(|nic| nic.rate.clone());
        let pace = nic.into_iter().fold(self.pace.clone(), Limiters::with);
        let moved = Arc::new(AtomicU64::new(0));
        let (counted, until) = (moved.clone(), self.until.clone());
        let work = tokio::task::spawn_blocking(move || {
            let feed =
                |to: &mut dyn Outlet| feed(&mut Feed::new(to, buffers, counted.clone()).at(pace));
            let ended = stream.exchange(&ask, &counted, (&abandoned, &until), feed);
            ended.map(|(answered, fed)| (stream, answered, fed))
        });
        tokio::select! {
            ended = work => match ended {
                Ok(ended) => ended.map_err(Lost::Connection),
                Err(e) => Err(Lost::Connection(format!("sending panicked: {e}"))),
            },
            why = self.given_up(leased) => Err(Lost::Route(why)),
            () = stalled(moved, self.reply) => {
                let why = format!("it accepted less than {STALL_BYTES} bytes in {:?}", self.reply);
                Err(Lost::Connection(why))
            }
        }
    }

    /// A request was lost with its route: it is to be sent again where there is another one.
    fn lost(&self, leased: Leased, lost: Lost, tries: usize) -> Result<(), SendError> {
        let (Lost::Connection(why) | Lost::Route(why)) = &lost;
        let why = why.clone();
        let another = match lost {
            Lost::Connection(_) => leased.broke(&self.endpoints, &why),
            Lost::Route(_) => leased.left(&self.endpoints, &why),
        };
        if another && tries < RESENT {
            tracing::info!(worker = %self.worker, "a request goes over another route: {why}");
            return Ok(());
        }
        self.peers.set_aside(&self.worker);
        Err(SendError::Broken { worker: self.worker.clone(), message: why })
    }

    async fn lease(&self, fresh: bool, kind: Kind, size: u64) -> Result<Leased, SendError> {
        match self.peers.routes.lease(&self.endpoints, fresh, kind, size).await {
            Ok(leased) => Ok(leased),
            Err(tried) => {
                self.peers.set_aside(&self.worker);
                Err(SendError::Unreachable { worker: self.worker.clone(), tried })
            }
        }
    }

    /// Sends a document and awaits the reply, with an eye on the route.
    async fn exchange(
        &self,
        leased: &mut Leased,
        path: &str,
        document: Bytes,
    ) -> Result<(StatusCode, Bytes), Lost> {
        let given_up = self.given_up(leased);
        tokio::select! {
            answered = self.converse(leased, path, document) => answered.map_err(Lost::Connection),
            why = given_up => Err(Lost::Route(why)),
        }
    }

    /// Why the route of a connection is given up, as soon as it is.
    fn given_up(&self, leased: &Leased) -> impl Future<Output = String> + use<'_> {
        let watch = leased.watch();
        async move {
            match watch {
                Some(watch) => {
                    let is_silent = || self.peers.is_silent(&self.worker);
                    watch.given_up(&self.endpoints, is_silent).await
                }
                None => std::future::pending().await,
            }
        }
    }

    async fn converse(
        &self,
        leased: &mut Leased,
        path: &str,
        document: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = Request::post(path)
            .header(HOST, leased.peer())
            .header(TICKET_HEADER, &self.ticket)
            .header(checksum::CHECKSUM_HEADER, checksum::header_value(&document))
            .body(Full::new(document))
            .map_err(|e| e.to_string())?;
        let send = &mut leased.connection().ok_or("the connection is gone")?.send;
        send.ready().await.map_err(|e| e.to_string())?;
        let response = send.send_request(request).await.map_err(|e| describe(&e))?;
        let status = response.status();
        let check = response.headers().get(checksum::CHECKSUM_HEADER).cloned();
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        if !checksum::matches_header(check.as_ref().map(|check| check.as_bytes()), &body) {
            self.damage.record(&format!("the answer to {path}"), &self.worker);
            return Err(format!("its reply: {CHECKSUM_MISMATCH}"));
        }
        Ok((status, body))
    }

    /// The body of a good reply, with its connection kept; a refusal as an error.
    fn accept(
        &self,
        path: &str,
        leased: Leased,
        answered: (StatusCode, Bytes),
    ) -> Result<Bytes, SendError> {
        let (status, body) = answered;
        if status == StatusCode::OK {
            self.keep(leased);
            return Ok(body);
        }
        leased.note_answered();
        let status = status.as_u16();
        let problem = serde_json::from_slice::<Problem>(&body)
            .unwrap_or_else(|_| Problem::new(status, "", "unknown", "it gave no reason"));
        Err(self.refused(path, Problem { status, ..problem }))
    }

    /// It answered: the connection can be used again.
    fn keep(&self, leased: Leased) {
        leased.note_answered();
        leased.keep();
        self.peers.welcome(&self.worker);
    }

    /// What a refusal of `what` means. One for damage is no refusal: the same is worth another try.
    fn refused(&self, what: &str, problem: Problem) -> SendError {
        let detail = super::protocol::plain(&problem.detail);
        let worker = self.worker.clone();
        if problem.code == CORRUPTED_CODE {
            self.damage.record(&format!("a {what} ({detail})"), &worker);
            return SendError::Broken { worker, message: format!("{what}: {detail}") };
        }
        let code = super::protocol::plain(&problem.code);
        SendError::Refused { worker, status: problem.status, code, detail }
    }

    fn read<R: for<'b> minicbor::Decode<'b, ()>>(&self, reply: &[u8]) -> Result<R, SendError> {
        minicbor::decode(reply).map_err(|e| self.nonsense(e.to_string()))
    }

    fn broken(&self, leased: Leased, why: String) -> SendError {
        leased.broke(&self.endpoints, &why);
        self.peers.set_aside(&self.worker);
        SendError::Broken { worker: self.worker.clone(), message: why }
    }

    fn nonsense(&self, why: String) -> SendError {
        let message = format!("its reply is invalid: {why}");
        SendError::Broken { worker: self.worker.clone(), message }
    }
}

fn encoded<T: minicbor::Encode<()>>(document: &T) -> Bytes {
    // Encoding into a Vec can't fail: its error type is `Infallible`.
    minicbor::to_vec(document).unwrap_or_default().into()
}

/// A hyper error with its causes.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
