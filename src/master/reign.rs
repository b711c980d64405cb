//! The life of a master among others: it follows until it may lead, leads until another one does or it is
//! told to stop, and follows again. Whoever answers requests sees in the [`Seat`] what it is at the moment.
//!
//! A store that lost data (Redis was emptied, or a replica took over that was behind) may not know of the
//! leader any more, whose memory holds everything. So a follower that finds the store behind what it has
//! seen gives the leader time to write it back, before it takes the lead of what is left.

use super::handle::{BackupMaker, BlobReader, Desk};
use super::name_key::NameKeyFile;
use super::owner::{self, Owner, Tenure};
use super::seat::{Seat, Why};
use crate::scheduler::{LoadError, SECRET_RECORD, Settings, State, without_secret};
use crate::store::{Acquired, Candidate, Fence, Redaction, Shortage, Spool, Store, StoreError};
use crate::util::backoff::Backoff;
use crate::wire::leader::Leader;
use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Between two tries to reach the store.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// A follower asks so often whether it may lead, and who does.
const ASK: Duration = Duration::from_millis(250);
/// A leader that lives is given so long to find that the store lost data, and to begin to write it back;
/// longer where its lease is longer.
const WRITE_BACK: Duration = Duration::from_secs(5);
/// Between two looks whether the store has room.
const ROOM: Duration = Duration::from_secs(1);
/// Requests that wait for the owner.
const QUEUE: usize = 1024;

/// What a master tells the others of itself, in the store.
#[derive(Debug, Default, Serialize, Deserialize)]
struct About {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

/// What a master needs to lead and to follow.
pub(super) struct Reigns {
    /// Its name.
    pub(super) name: String,
    /// Where clients reach it, if it knows.
    pub(super) url: Option<String>,
    pub(super) lease: Duration,
    /// As they are now.
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) spool: Spool,
    /// Keeps the key of the store's names of unfinished files.
    pub(super) names: NameKeyFile,
    pub(super) seat: watch::Sender<Seat>,
    /// It wants no lead any more.
    pub(super) shutdown: CancellationToken,
    /// Its API has given the answers that it owed.
    pub(super) api_ended: CancellationToken,
}

/// A lead that was given.
struct Lead {
    tenure: Tenure,
    leader: Leader,
}

impl Reigns {
    /// Follows and leads until it is told to stop. `open` opens the store; it is tried again while that is
    /// away.
    ///
    /// # Errors
    /// The store can't be used, what it holds can't be read, or another master has the name of this one.
    pub(super) async fn run<S: Store, F>(self, open: impl Fn() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = Result<Arc<S>, StoreError>>,
    {
        let Some(store) = self.patiently("connect to the store", open).await? else {
            return Ok(());
        };
        let ended = self.follow_and_lead(&store).await;
        store.close().await;
        ended
    }

    async fn follow_and_lead<S: Store>(&self, store: &Arc<S>) -> anyhow::Result<()> {
        let mut saw = Fence::default();
        while let Some(lead) = self.follow(store.as_ref(), &mut saw).await? {
            match self.lead(store, lead).await {
                Err(e) => match e.downcast_ref() {
                    Some(StoreError::Deposed { by, .. }) if *by == self.name => {
                        return Err(e.context(
                            "another master has the name of this one: give each its own `advertise_url`",
                        ));
                    }
                    Some(StoreError::Deposed { by, epoch }) => {
                        tracing::warn!(
                            leader = by,
                            epoch,
                            "another master leads: this one follows"
                        );
                    }
                    _ => return Err(e.context("the master can't continue")),
                },
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits until this master leads. `None`: it was told to stop first.
    async fn follow<S: Store>(&self, store: &S, saw: &mut Fence) -> anyhow::Result<Option<Lead>> {
        let mut behind = None;
        loop {
            let since = Timestamp::now();
            let about =
                serde_json::to_string(&About { url: self.url.clone(), since: Some(since) })?;
            let candidate = Candidate { name: self.name.clone(), about, saw: *saw };
            let ask = || async {
                let asked_ms = owner::loading_time().mono_ms;
                store.acquire(&candidate, self.lease).await.map(|answer| (answer, asked_ms))
            };
            let Some((answer, asked_ms)) = self.patiently("ask for leadership", ask).await? else {
                return Ok(None);
            };
            let pause = match answer {
                Acquired::Leader(fence) => {
                    *saw = fence;
                    let (name, url) = (self.name.clone(), self.url.clone());
                    let leader = Leader { name, url, epoch: fence.epoch, since: Some(since) };
                    let tenure = Tenure { fence, lease: self.lease, asked_ms };
                    return Ok(Some(Lead { tenure, leader }));
                }
                Acquired::Held { by, about, at, for_ms } => {
                    (*saw, behind) = (at, None);
                    self.acknowledge(by, &about, at);
                    Duration::from_millis(for_ms).min(ASK)
                }
                Acquired::Behind(at) => {
                    let found = *behind.get_or_insert_with(|| {
                        tracing::error!(
                            saw = saw.seq,
                            found = at.seq,
                            "the store lost data: its leader is given time to write it back"
                        );
                        self.take(Seat::Nobody(Why::Change(
                            "the store lost data, which its leader may be writing back",
                        )));
                        Instant::now()
                    });
                    if found.elapsed() >= self.lease.max(WRITE_BACK) {
                        tracing::error!(
                            "no master wrote it back: this master leads with what is left"
                        );
                        *saw = at;
                    }
                    ASK
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Another master leads: says so, where that is news.
    fn acknowledge(&self, name: String, about: &str, at: Fence) {
        // A master of an older version says nothing of itself.
        let About { url, since } = serde_json::from_str(about).unwrap_or_default();
        let leader = Leader { name, url, epoch: at.epoch, since };
        self.seat.send_if_modified(|seat| {
            if matches!(seat, Seat::Follows(known) if *known == leader) {
                return false;
            }
            let Leader { name, url, epoch, .. } = &leader;
            let url = url.as_deref().unwrap_or("unknown");
            tracing::info!(leader = name, url, epoch, "another master leads: this one follows");
            *seat = Seat::Follows(leader.clone());
            true
        });
    }

    fn take(&self, seat: Seat) {
        self.seat.send_replace(seat);
    }

    /// Leads until it is told to stop, which is `Ok`.
    async fn lead<S: Store>(&self, store: &Arc<S>, lead: Lead) -> anyhow::Result<()> {
        self.take(Seat::Nobody(Why::Change("this master becomes the leader")));
        let Lead { mut tenure, leader } = lead;
        let keeper = Keeper::start(Arc::clone(store), tenure);
        let Some(records) = self.patiently("read the store", || store.load()).await? else {
            return store.release(tenure.fence).await.context("end the reign");
        };
        let mut changes = self.settings.clone();
        let (settings, seed) = (changes.borrow_and_update().clone(), seed());
        let names = self.names.clone();
        let loading = move || {
            let state = State::load(settings, seed, &records, owner::loading_time())?;
            names.keep(state.name_key());
            Ok::<_, LoadError>(state)
        };
        let state = tokio::task::spawn_blocking(loading).await.context("load the state")??;
        // Only now: before it led, another master on this host may have used them.
        if let Err(e) = self.spool.keep_only(|number| state.knows(number)) {
            tracing::warn!(error = %e, "old lists of files could not be removed");
        }
        tenure.asked_ms = keeper.end();

        let (requests, queue) = mpsc::channel(QUEUE);
        let (tell_health, health) = watch::channel(Ok(()));
        let (tell_shortage, shortage) = watch::channel(None);
        let (blobs, backup) = (blobs(Arc::clone(store)), backup(Arc::clone(store)));
        let desk = Desk { requests, health, blobs, backup, shortage };
        let spool = self.spool.clone();
        let owner =
            Owner::new(Arc::clone(store), state, tenure, queue, tell_health, spool, changes);
        let Leader { name, epoch, .. } = &leader;
        tracing::info!(name, epoch, "leader ready");
        self.take(Seat::Leads(leader, desk));
        let ended = tokio::select! {
            ended = owner.run(self.api_ended.clone()) => ended,
            unusable = watch_shortage(store.as_ref(), tell_shortage) => Err(unusable),
        };
        self.take(Seat::Nobody(Why::Change("this master is no longer the leader")));
        Ok(ended?)
    }

    /// Repeats a call on the store while that is away. `None`: the master was told to stop first.
    async fn patiently<T, F>(
        &self,
        what: &'static str,
        call: impl Fn() -> F,
    ) -> anyhow::Result<Option<T>>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut failures = 0;
        loop {
            let answer = tokio::select! {
                answer = call() => answer,
                () = self.shutdown.cancelled() => return Ok(None),
            };
            match answer {
                Ok(value) => return Ok(Some(value)),
                Err(StoreError::Unavailable(why)) => {
                    if failures == 0 {
                        tracing::warn!(
                            why,
                            "cannot {what}: the store is not available; waiting for it"
                        );
                    }
                    self.take(Seat::Nobody(Why::Store(why)));
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN.delay(failures)) => {}
                        () = self.shutdown.cancelled() => return Ok(None),
                    }
                    failures += 1;
                }
                Err(other) => return Err(anyhow::Error::new(other).context(what)),
            }
        }
    }
}

/// Renews a lead while the state is loaded, which may take longer than a lease.
struct Keeper {
    asked_ms: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Keeper {
    fn start<S: Store>(store: Arc<S>, tenure: Tenure) -> Keeper {
        let asked_ms = Arc::new(AtomicU64::new(tenure.asked_ms));
        let granted = Arc::clone(&asked_ms);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(tenure.renewal()).await;
                let asked_ms = owner::loading_time().mono_ms;
                // What is wrong shows in the first commit.
                if store.renew(tenure.fence, tenure.lease).await.is_ok() {
                    granted.store(asked_ms, Ordering::Relaxed);
                }
            }
        });
        Keeper { asked_ms, _task: AbortOnDropHandle::new(renewing) }
    }

    /// Stops; returns when it was asked for what was last granted.
    fn end(self) -> u64 {
        self.asked_ms.load(Ordering::Relaxed)
    }
}

fn blobs<S: Store>(store: Arc<S>) -> BlobReader {
    Arc::new(move |key: String| {
        let store = Arc::clone(&store);
        Box::pin(async move { store.blob(&key).await.map_err(|e| e.to_string()) })
    })
}

fn backup<S: Store>(store: Arc<S>) -> BackupMaker {
    Arc::new(move || {
        let store = Arc::clone(&store);
        let redaction = Redaction { key: SECRET_RECORD, remove: without_secret };
        Box::pin(async move { store.backup(redaction).await.map_err(|e| e.to_string()) })
    })
}

/// Asks again and again what keeps the store from accepting more, until it cannot be used at all: returns why.
async fn watch_shortage<S: Store>(store: &S, tell: watch::Sender<Option<Shortage>>) -> StoreError {
    loop {
        match store.shortage().await {
            Ok(now) => {
                tell.send_if_modified(|known: &mut Option<Shortage>| {
                    let news = *known != now;
                    match &now {
                        Some(shortage) if news => {
                            tracing::error!(why = shortage.why(), "new syncs are not accepted");
                        }
                        None if news => tracing::info!("new syncs are accepted again"),
                        _ => {}
                    }
                    *known = now;
                    news
                });
            }
            Err(unusable @ StoreError::Unusable(_)) => return unusable,
            // A store that is unavailable is reported by those who need it.
            Err(_) => {}
        }
        tokio::time::sleep(ROOM).await;
    }
}

fn seed() -> [u8; 32] {
    let random = [*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat();
    *blake3::hash(&random).as_bytes()
}

#[cfg(test)]
mod tests;
