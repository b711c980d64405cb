//! The sending agent's view of the others: whom to choose, and the verbs.

use super::asking::{Answered, Asking, Gone, Outlet};
use super::asks::{
    BLOCK, BlockValue, BlocksAsk, BlocksReply, PruneAsk, PruneReply, PrunedPage, SweepAsk,
    SweepReply,
};
use super::body::{STALL, stalled};
use super::connect::Kind;
use super::delta::Ranged;
use super::lease::Leased;
use super::nics::Nic;
use super::outcome::{Offered, Packed, RangeSent, SendError};
use super::pool::{Buffer, Pool};
use super::protocol::{
    DIGEST, MAX_REPLY, OFFER, OfferReply, PACK, PRUNE, PackReply, RANGE, RangeHead, RangeReply,
    SWEEP, TICKET_HEADER,
};
use super::routes::{NicState, Routes};
use super::seal;
use super::send::{FedRange, Feed, feed_pack, feed_range};
use super::stream::Ask;
use crate::fs::Tree;
use crate::util::backoff::Backoff;
use crate::util::rate::Pace;
use crate::util::shutdown::Shutdown;
use crate::wire::manifest::{DirRef, Entry, Manifest};
use crate::wire::options::WriteRules;
use crate::wire::problem::Problem;
use crate::wire::sync::FileError;
use crate::wire::task::PoolMember;
use crate::wire::ticket::LIFETIME_SECONDS;
use crate::wire::worker::Endpoint;
use crate::wire::{RelPath, WorkerId};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A whole reply must come within this; twice the receiver's own patience, so that what it has to say
/// comes first.
const REPLY: Duration = Duration::from_secs(2 * STALL.as_secs());
/// … and later for each so many bytes of content that have to be read for it.
const SLOWEST: u64 = 1 << 20;
/// A prune or sweep says nothing before it is done; it may take as long as the ticket is good for.
const LONG: Duration = Duration::from_secs(LIFETIME_SECONDS as u64);
/// How long a worker that could not be reached is chosen last.
const ASIDE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

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

/// What an agent knows of the workers that it sends to.
pub struct Peers {
    routes: Arc<Routes>,
    pool: Pool,
    load: Mutex<Loads>,
}

#[derive(Default)]
struct Loads {
    workers: BTreeMap<WorkerId, Load>,
    count: u64,
}

#[derive(Default)]
struct Load {
    in_flight: usize,
    failures: u32,
    aside_until: Option<Instant>,
    /// When it was chosen last, as a count.
    chosen: u64,
}

impl Peers {
    /// Peers reached from our own `nics`, to whom is sent out of `pool`.
    pub fn new(nics: &[Arc<Nic>], pool: Pool) -> Arc<Self> {
        Arc::new(Peers { routes: Arc::new(Routes::new(nics)), pool, load: Mutex::default() })
    }

    fn loads(&self) -> MutexGuard<'_, Loads> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each of our endpoints does.
    pub fn nics(&self) -> Vec<(Arc<Nic>, NicState)> {
        self.routes.nics()
    }

    /// The buffers, for others who read.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The member of `pool` that is not in `tried` and has the fewest requests of ours in flight;
    /// those set aside, draining or in error come last, ties in turn.
    pub fn choose<'a>(
        &self,
        pool: &'a [PoolMember],
        tried: &BTreeSet<WorkerId>,
    ) -> Option<&'a PoolMember> {
        let mut loads = self.loads();
        let now = Instant::now();
        let rank = |member: &&PoolMember| {
            let load = loads.workers.get(&member.worker_id);
            let aside = load.and_then(|l| l.aside_until).filter(|until| *until > now);
            let (in_flight, chosen) = load.map_or((0, 0), |l| (l.in_flight, l.chosen));
            (aside, !member.status.takes_work(), in_flight, chosen)
        };
        let best = pool.iter().filter(|m| !tried.contains(&m.worker_id)).min_by_key(rank)?;
        loads.count += 1;
        let count = loads.count;
        loads.workers.entry(best.worker_id.clone()).or_default().chosen = count;
        Some(best)
    }

    /// `member`, to send to under `ticket`, which has these `rules`. It counts as busy until it is
    /// dropped.
    pub fn peer(self: &Arc<Self>, member: &PoolMember, ticket: &str, rules: &WriteRules) -> Peer {
        self.loads().workers.entry(member.worker_id.clone()).or_default().in_flight += 1;
        Peer {
            worker: member.worker_id.clone(),
            endpoints: member.data_plane_endpoints.clone(),
            ticket: ticket.to_owned(),
            hashed: rules.wants_digests(),
            pace: Pace::default(),
            peers: self.clone(),
        }
    }

    fn set_aside(&self, worker: &WorkerId) {
        let mut loads = self.loads();
        let load = loads.workers.entry(worker.clone()).or_default();
        load.failures = load.failures.saturating_add(1);
        load.aside_until = Some(Instant::now() + ASIDE.delay(load.failures));
    }

    fn welcome(&self, worker: &WorkerId) {
        if let Some(load) = self.loads().workers.get_mut(worker) {
            (load.failures, load.aside_until) = (0, None);
        }
    }
}

/// One worker to send to.
pub struct Peer {
    worker: WorkerId,
    endpoints: Vec<Endpoint>,
    ticket: String,
    /// Content is sent with its digest.
    hashed: bool,
    pace: Pace,
    pub(super) peers: Arc<Peers>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(load) = self.peers.loads().workers.get_mut(&self.worker) {
            load.in_flight = load.in_flight.saturating_sub(1);
        }
    }
}

impl Peer {
    /// The same, sending no faster than `pace` lets it.
    pub fn at(mut self, pace: Pace) -> Self {
        self.pace = pace;
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
        let reply: OfferReply = self.ask(OFFER, encoded, patience(manifest.bytes())).await?;
        Offered::of_reply(manifest, reply).map_err(|why| self.nonsense(why))
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`]. What the peer wrote before is there; an offer shows it.
    pub async fn pack(
        &self,
        source: &Tree,
        dirs: Vec<DirRef>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        let (source, hashed) = (source.clone(), self.hashed);
        let size = files.iter().map(Entry::size).sum();
        let (dirs, files) = (Arc::new(dirs), Arc::new(files));
        let (table, sent) = (dirs.clone(), files.clone());
        let feed = move |feed: &mut Feed<'_>| {
            let fed = feed_pack(&source, &table, &sent, hashed, feed)?;
            Ok((fed, feed.sent()))
        };
        let (reply, fed): (PackReply, _) = self.stream(PACK, (size, false), feed).await?;
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
        let (source, file, hashed) = (source.clone(), entry.clone(), self.hashed);
        let size = (span.length, there.is_some());
        let feed = move |feed: &mut Feed<'_>| {
            feed_range(&source, &head, &file, there.as_deref(), hashed, feed)
        };
        let (reply, fed): (RangeReply, FedRange) = self.stream(RANGE, size, feed).await?;
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
        let patience = patience(2 * ask.length);
        match self.ask(DIGEST, encoded(&ask), patience).await? {
            BlocksReply::Values(values) if values.len() as u64 == ask.length.div_ceil(BLOCK) => {
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
    pub async fn sweep(&self, root: Option<DirRef>) -> Result<Result<(), FileError>, SendError> {
        let reply: SweepReply = self.ask(SWEEP, encoded(&SweepAsk { root }), LONG).await?;
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
                Ok(Ok(answered)) => return self.read(&self.accept(leased, answered)?),
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
                (Answered::Refused(problem), _) => Err(self.refused(problem)),
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
        let pace = nic.into_iter().fold(self.pace.clone(), Pace::and);
        let moved = Arc::new(AtomicU64::new(0));
        let counted = moved.clone();
        let work = tokio::task::spawn_blocking(move || {
            let feed =
                |to: &mut dyn Outlet| feed(&mut Feed::new(to, buffers, counted.clone()).at(pace));
            let ended = stream.exchange(&ask, (&counted, &abandoned), feed);
            ended.map(|(answered, fed)| (stream, answered, fed))
        });
        tokio::select! {
            ended = work => match ended {
                Ok(ended) => ended.map_err(Lost::Connection),
                Err(e) => Err(Lost::Connection(format!("sending failed inside: {e}"))),
            },
            why = self.given_up(leased) => Err(Lost::Route(why)),
            () = stalled(moved, REPLY) => {
                Err(Lost::Connection(format!("no byte moved in {REPLY:?}")))
            }
        }
    }

    /// A request was lost with its route: it is to be sent again where there is another one.
    fn lost(&self, leased: Leased, lost: Lost, tries: usize) -> Result<(), SendError> {
        let (Lost::Connection(why) | Lost::Route(why)) = &lost;
        let why = why.clone();
        let another = match lost {
            Lost::Connection(_) => leased.broke(&self.endpoints, &why),
            Lost::Route(_) => leased.left(&why),
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
                Some(watch) => watch.given_up(&self.endpoints).await,
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
            .header(seal::HEADER, seal::in_header(&document))
            .body(Full::new(document))
            .map_err(|e| e.to_string())?;
        let send = &mut leased.connection().ok_or("the connection is gone")?.send;
        send.ready().await.map_err(|e| e.to_string())?;
        let response = send.send_request(request).await.map_err(|e| describe(&e))?;
        let status = response.status();
        let check = response.headers().get(seal::HEADER).cloned();
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        if check.is_some_and(|check| check != seal::in_header(&body)) {
            return Err(format!("its reply: {}", seal::DAMAGED));
        }
        Ok((status, body))
    }

    /// The body of a good reply, with its connection kept; a refusal as an error.
    fn accept(&self, leased: Leased, answered: (StatusCode, Bytes)) -> Result<Bytes, SendError> {
        let (status, body) = answered;
        if status == StatusCode::OK {
            self.keep(leased);
            return Ok(body);
        }
        let status = status.as_u16();
        let problem = serde_json::from_slice::<Problem>(&body)
            .unwrap_or_else(|_| Problem::new(status, "", "unknown", "it did not say why"));
        Err(self.refused(Problem { status, ..problem }))
    }

    /// It answered: the connection can be used again.
    fn keep(&self, leased: Leased) {
        leased.keep();
        self.peers.welcome(&self.worker);
    }

    fn refused(&self, problem: Problem) -> SendError {
        SendError::Refused {
            worker: self.worker.clone(),
            status: problem.status,
            code: super::protocol::plain(&problem.code),
            detail: super::protocol::plain(&problem.detail),
        }
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
        let message = format!("its reply makes no sense: {why}");
        SendError::Broken { worker: self.worker.clone(), message }
    }
}

/// How long a reply may take for which so much content is read.
fn patience(bytes: u64) -> Duration {
    REPLY.saturating_add(Duration::from_secs(bytes / SLOWEST)).min(LONG)
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

#[cfg(test)]
mod tests {
    use super::super::pool::tests::plenty;
    use super::*;
    use crate::wire::worker::WorkerStatus;

    fn member(name: &str, status: WorkerStatus) -> PoolMember {
        PoolMember {
            worker_id: name.parse().unwrap(),
            status,
            storage_paths: vec![],
            data_plane_endpoints: vec![],
        }
    }

    fn chosen(peers: &Peers, pool: &[PoolMember]) -> String {
        peers.choose(pool, &BTreeSet::new()).unwrap().worker_id.to_string()
    }

    #[test]
    fn the_least_busy_peer_is_chosen_and_ties_go_round() {
        let peers = Peers::new(&[], plenty());
        let pool: Vec<_> = ["a", "b", "c"].map(|n| member(n, WorkerStatus::Idle)).into();
        let round: Vec<_> = (0..6).map(|_| chosen(&peers, &pool)).collect();
        assert_eq!(round, ["a", "b", "c", "a", "b", "c"]);
        let rules = WriteRules::default();
        let busy = (peers.peer(&pool[0], "t", &rules), peers.peer(&pool[1], "t", &rules));
        assert_eq!([chosen(&peers, &pool), chosen(&peers, &pool)], ["c", "c"]);
        drop(busy);
        assert_eq!(chosen(&peers, &pool), "a");
    }

    #[test]
    fn peers_that_failed_or_drain_are_chosen_last() {
        let peers = Peers::new(&[], plenty());
        let pool = [
            member("a", WorkerStatus::Draining),
            member("b", WorkerStatus::Idle),
            member("c", WorkerStatus::Idle),
        ];
        peers.set_aside(&pool[1].worker_id);
        assert_eq!([chosen(&peers, &pool), chosen(&peers, &pool)], ["c", "c"]);
        let mut tried: BTreeSet<_> = [pool[2].worker_id.clone()].into();
        assert_eq!(peers.choose(&pool, &tried).unwrap().worker_id.as_str(), "a");
        tried.insert(pool[0].worker_id.clone());
        assert_eq!(peers.choose(&pool, &tried).unwrap().worker_id.as_str(), "b");
        peers.welcome(&pool[1].worker_id);
        assert_eq!([chosen(&peers, &pool), chosen(&peers, &pool)], ["c", "b"]);
    }
}
