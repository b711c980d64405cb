//! The life of a master among others: it follows until it may lead, leads until another one does or it is
//! told to stop, and follows again. Whoever answers requests sees in the [`LeadershipStatus`] what it is at the moment.
//!
//! A store that lost data (Redis was emptied, or a replica took over that was behind) may not know of the
//! leader any more, whose memory holds everything. So a follower that finds the store behind what it has
//! seen gives the leader time to write it back, before it takes the lead of what is left.

use super::channel::{ActorChannel, BackupMaker, BlobReader};
use super::leadership::{LeadershipStatus, NoLeaderReason};
use super::name_key::NameKeyFile;
use super::state_actor::{self, LeaderLease, StateActor};
use crate::scheduler::{LoadError, SECRET_RECORD, Settings, State, without_secret};
use crate::store::{
    AcquireOutcome, AdmissionBlock, Candidate, Fence, Redaction, Spool, Store, StoreError,
};
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
const STORE_RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// A follower asks so often whether it may lead, and who does.
const ACQUIRE_INTERVAL: Duration = Duration::from_millis(250);
/// A leader that lives is given so long to find that the store lost data, and to begin to write it back;
/// longer where its lease is longer.
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks whether the store has room.
const ADMISSION_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Requests that wait for the owner.
const MAX_QUEUED_REQUESTS: usize = 1024;

/// What a master tells the others of itself, in the store.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LeaderInfo {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

/// What a master needs to lead and to follow.
pub(super) struct LeaderElection {
    /// Its name.
    pub(super) name: String,
    /// Where clients reach it, if it knows.
    pub(super) url: Option<String>,
    pub(super) lease: Duration,
    /// As they are now.
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) spool: Spool,
    /// Keeps the key of the store's names of unfinished files.
    pub(super) name_key_file: NameKeyFile,
    pub(super) status: watch::Sender<LeadershipStatus>,
    /// It wants no lead any more.
    pub(super) shutdown: CancellationToken,
    /// Its API has given the answers that it owed.
    pub(super) api_ended: CancellationToken,
}

/// A lead that was given.
struct WonElection {
    lease: LeaderLease,
    leader: Leader,
}

impl LeaderElection {
    /// Follows and leads until it is told to stop. `open` opens the store; it is tried again while that is
    /// away.
    ///
    /// # Errors
    /// The store can't be used, what it holds can't be read, or another master has the name of this one.
    pub(super) async fn run<S: Store, F>(self, open: impl Fn() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = Result<Arc<S>, StoreError>>,
    {
        let Some(store) = self.retry_until_available("connect to the store", open).await? else {
            return Ok(());
        };
        let ended = self.follow_and_lead(&store).await;
        store.close().await;
        ended
    }

    async fn follow_and_lead<S: Store>(&self, store: &Arc<S>) -> anyhow::Result<()> {
        let mut saw = Fence::default();
        while let Some(lead) = self.wait_for_leadership(store.as_ref(), &mut saw).await? {
            match self.lead(store, lead).await {
                Err(e) => match e.downcast_ref() {
                    Some(StoreError::Deposed { leader: by, .. }) if *by == self.name => {
                        return Err(e.context(
                            "another master has the name of this one: give each its own `advertise_url`",
                        ));
                    }
                    Some(StoreError::Deposed { leader: by, epoch }) => {
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
    async fn wait_for_leadership<S: Store>(
        &self,
        store: &S,
        saw: &mut Fence,
    ) -> anyhow::Result<Option<WonElection>> {
        let mut behind = None;
        loop {
            let since = Timestamp::now();
            let about =
                serde_json::to_string(&LeaderInfo { url: self.url.clone(), since: Some(since) })?;
            let candidate = Candidate { name: self.name.clone(), info: about, last_seen: *saw };
            let ask = || async {
                let asked_ms = state_actor::loading_time().mono_ms;
                store.acquire(&candidate, self.lease).await.map(|answer| (answer, asked_ms))
            };
            let Some((answer, asked_ms)) =
                self.retry_until_available("ask for leadership", ask).await?
            else {
                return Ok(None);
            };
            let pause = match answer {
                AcquireOutcome::Leader(fence) => {
                    *saw = fence;
                    let (name, url) = (self.name.clone(), self.url.clone());
                    let leader = Leader { name, url, epoch: fence.epoch, since: Some(since) };
                    let tenure =
                        LeaderLease { fence, duration: self.lease, requested_at_ms: asked_ms };
                    return Ok(Some(WonElection { lease: tenure, leader }));
                }
                AcquireOutcome::Held {
                    holder: by,
                    holder_info: about,
                    fence: at,
                    retry_after_ms: for_ms,
                } => {
                    (*saw, behind) = (at, None);
                    self.set_follower(by, &about, at);
                    Duration::from_millis(for_ms).min(ACQUIRE_INTERVAL)
                }
                AcquireOutcome::Behind(at) => {
                    let found = *behind.get_or_insert_with(|| {
                        tracing::error!(
                            saw = saw.seq,
                            found = at.seq,
                            "the store lost data: its leader is given time to write it back"
                        );
                        self.set_status(LeadershipStatus::NoLeader(NoLeaderReason::Transition(
                            "the store lost data, which its leader may be writing back",
                        )));
                        Instant::now()
                    });
                    if found.elapsed() >= self.lease.max(WRITE_BACK_TIMEOUT) {
                        tracing::error!(
                            "no master wrote it back: this master leads with what is left"
                        );
                        *saw = at;
                    }
                    ACQUIRE_INTERVAL
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Another master leads: says so, where that is news.
    fn set_follower(&self, name: String, about: &str, at: Fence) {
        // A master of an older version says nothing of itself.
        let LeaderInfo { url, since } = serde_json::from_str(about).unwrap_or_default();
        let leader = Leader { name, url, epoch: at.epoch, since };
        self.status.send_if_modified(|seat| {
            if matches!(seat, LeadershipStatus::Follower(known) if *known == leader) {
                return false;
            }
            let Leader { name, url, epoch, .. } = &leader;
            let url = url.as_deref().unwrap_or("unknown");
            tracing::info!(leader = name, url, epoch, "another master leads: this one follows");
            *seat = LeadershipStatus::Follower(leader.clone());
            true
        });
    }

    fn set_status(&self, seat: LeadershipStatus) {
        self.status.send_replace(seat);
    }

    /// Leads until it is told to stop, which is `Ok`.
    async fn lead<S: Store>(&self, store: &Arc<S>, lead: WonElection) -> anyhow::Result<()> {
        self.set_status(LeadershipStatus::NoLeader(NoLeaderReason::Transition(
            "this master becomes the leader",
        )));
        let WonElection { lease: mut tenure, leader } = lead;
        let keeper = LeaseKeepAlive::start(Arc::clone(store), tenure);
        let Some(records) = self.retry_until_available("read the store", || store.load()).await?
        else {
            return store.release(tenure.fence).await.context("end the reign");
        };
        let mut changes = self.settings.clone();
        let (settings, seed) = (changes.borrow_and_update().clone(), random_seed());
        let names = self.name_key_file.clone();
        let loading = move || {
            let state = State::load(settings, seed, &records, state_actor::loading_time())?;
            names.save(state.name_key());
            Ok::<_, LoadError>(state)
        };
        let state = tokio::task::spawn_blocking(loading).await.context("load the state")??;
        // Only now: before it led, another master on this host may have used them.
        if let Err(e) = self.spool.remove_unless(|number| state.has_sync(number)) {
            tracing::warn!(error = %e, "old lists of files could not be removed");
        }
        tenure.requested_at_ms = keeper.stop();

        let (requests, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let (tell_health, health) = watch::channel(Ok(()));
        let (tell_shortage, shortage) = watch::channel(None);
        let (blobs, backup) = (blob_reader(Arc::clone(store)), backup_maker(Arc::clone(store)));
        let desk = ActorChannel { requests, health, blobs, backup, admission_block: shortage };
        let spool = self.spool.clone();
        let owner =
            StateActor::new(Arc::clone(store), state, tenure, queue, tell_health, spool, changes);
        let Leader { name, epoch, .. } = &leader;
        tracing::info!(name, epoch, "leader ready");
        self.set_status(LeadershipStatus::Leader(leader, desk));
        let ended = tokio::select! {
            ended = owner.run(self.api_ended.clone()) => ended,
            unusable = watch_admission(store.as_ref(), tell_shortage) => Err(unusable),
        };
        self.set_status(LeadershipStatus::NoLeader(NoLeaderReason::Transition(
            "this master is no longer the leader",
        )));
        Ok(ended?)
    }

    /// Repeats a call on the store while that is away. `None`: the master was told to stop first.
    async fn retry_until_available<T, F>(
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
                    self.set_status(LeadershipStatus::NoLeader(NoLeaderReason::StoreUnavailable(
                        why,
                    )));
                    tokio::select! {
                        () = tokio::time::sleep(STORE_RETRY_BACKOFF.delay(failures)) => {}
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
struct LeaseKeepAlive {
    requested_at_ms: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl LeaseKeepAlive {
    fn start<S: Store>(store: Arc<S>, tenure: LeaderLease) -> LeaseKeepAlive {
        let asked_ms = Arc::new(AtomicU64::new(tenure.requested_at_ms));
        let granted = Arc::clone(&asked_ms);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(tenure.renew_interval()).await;
                let asked_ms = state_actor::loading_time().mono_ms;
                // What is wrong shows in the first commit.
                if store.renew(tenure.fence, tenure.duration).await.is_ok() {
                    granted.store(asked_ms, Ordering::Relaxed);
                }
            }
        });
        LeaseKeepAlive { requested_at_ms: asked_ms, _task: AbortOnDropHandle::new(renewing) }
    }

    /// Stops; returns when it was asked for what was last granted.
    fn stop(self) -> u64 {
        self.requested_at_ms.load(Ordering::Relaxed)
    }
}

fn blob_reader<S: Store>(store: Arc<S>) -> BlobReader {
    Arc::new(move |key: String| {
        let store = Arc::clone(&store);
        Box::pin(async move { store.blob(&key).await.map_err(|e| e.to_string()) })
    })
}

fn backup_maker<S: Store>(store: Arc<S>) -> BackupMaker {
    Arc::new(move || {
        let store = Arc::clone(&store);
        let redaction = Redaction { key: SECRET_RECORD, remove: without_secret };
        Box::pin(async move { store.backup(redaction).await.map_err(|e| e.to_string()) })
    })
}

/// Asks again and again what keeps the store from accepting more, until it cannot be used at all: returns why.
async fn watch_admission<S: Store>(
    store: &S,
    tell: watch::Sender<Option<AdmissionBlock>>,
) -> StoreError {
    loop {
        match store.check_admission().await {
            Ok(now) => {
                tell.send_if_modified(|known: &mut Option<AdmissionBlock>| {
                    let news = *known != now;
                    match &now {
                        Some(shortage) if news => {
                            tracing::error!(why = shortage.reason(), "new syncs are not accepted");
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
        tokio::time::sleep(ADMISSION_CHECK_INTERVAL).await;
    }
}

fn random_seed() -> [u8; 32] {
    let random = [*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat();
    *blake3::hash(&random).as_bytes()
}

#[cfg(test)]
mod tests;
