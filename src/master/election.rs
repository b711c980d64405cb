//! Leader election: a master follows until the store grants it the lease, leads until another master does or until it
//! is stopped, and follows again. The API reads the current role from the [`LeadershipStatus`].
//!
//! A store that lost data (Redis was emptied, or a replica that was behind was promoted) may not know the leader any
//! more, which still holds the whole state in memory. So a follower that finds the store behind what it has seen waits
//! for the leader to write it back, before it leads with what is left.

use super::admin_token::AdminTokenFile;
use super::audit::AuditHandle;
use super::authority::{MasterAuthority, is_unavailable};
use super::channel::{ActorChannel, ActorRequest, BackupMaker, BlobReader};
use super::leader_lease::{LeaderLease, current_time};
use super::leadership::{LeadershipStatus, NoLeaderReason};
use super::name_key::NameKeyFile;
use super::state_actor::{Callers, StateActor};
use crate::identity::{SealedAuthority, SealingError};
use crate::scheduler::{
    AUTHORITY_KEY, Event, LoadError, SECRET_RECORD, Settings, State, parse_authority,
    without_secret,
};
use crate::store::{
    AcquireOutcome, AdmissionBlock, Candidate, Fence, Redaction, Spool, Store, StoreError,
};
use crate::util::backoff::Backoff;
use crate::wire::leader::Leader;
use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const STORE_RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// How often a follower requests the lease.
const ACQUIRE_INTERVAL: Duration = Duration::from_millis(250);
/// The time that the leader has to detect that the store lost data and to start to write it back. At least the lease.
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a follower reads the authority of the leader.
const AUTHORITY_INTERVAL: Duration = Duration::from_secs(1);
const ADMISSION_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The capacity of the queue of the state actor.
const MAX_QUEUED_REQUESTS: usize = 1024;

/// The entry of the leader in the store, for the followers.
#[derive(Debug, Serialize, Deserialize)]
struct LeaderInfo {
    url: Option<String>,
    since: Timestamp,
    /// The id of the key with which its master seals secrets in the store.
    #[serde(default)]
    sealed_with: String,
}

/// The parameters of a candidate.
pub(super) struct LeaderElection {
    /// Unique among the masters of the store.
    pub(super) name: String,
    /// The URL for clients, if known.
    pub(super) url: Option<String>,
    /// The authority for TLS; `None`: no address has TLS.
    pub(super) authority: Option<Arc<MasterAuthority>>,
    /// It replaces that of the store when this master leads for the first time.
    pub(super) replaces_authority: AtomicBool,
    pub(super) lease: Duration,
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) spool: Spool,
    pub(super) audit: AuditHandle,
    pub(super) name_key_file: NameKeyFile,
    pub(super) admin_token_file: AdminTokenFile,
    pub(super) status: watch::Sender<LeadershipStatus>,
    /// Ends the candidacy. A leader continues until `api_ended`.
    pub(super) shutdown: CancellationToken,
    /// The API has answered all requests that it accepted.
    pub(super) api_ended: CancellationToken,
}

impl LeaderElection {
    /// Follows and leads until shutdown. `open` connects to the store; it is repeated while the store is unavailable.
    ///
    /// # Errors
    /// The store cannot be used, its content cannot be read, or another master has the same name.
    pub(super) async fn run<S: Store, F>(self, open: impl Fn() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = Result<Arc<S>, StoreError>>,
    {
        let Some(store) = self.retry_until_available("connect to the store", open).await? else {
            return Ok(());
        };
        let result = self.follow_and_lead(&store).await;
        store.close().await;
        result
    }

    async fn follow_and_lead<S: Store>(&self, store: &Arc<S>) -> anyhow::Result<()> {
        // Before it requests the lease: while it had that, masters with the right authority would end.
        if let Some(authority) = &self.authority
            && !self.replaces_authority.load(Ordering::Relaxed)
        {
            let read = || store.record(AUTHORITY_KEY);
            let Some(record) = self.retry_until_available("read the store", read).await? else {
                return Ok(());
            };
            if let Some(record) = record {
                authority.adopt_off_runtime(Arc::new(parse_authority(&record)?)).await?;
            }
        }
        let mut last_seen = Fence::default();
        while let Some((lease, leader)) =
            self.wait_for_leadership(store.as_ref(), &mut last_seen).await?
        {
            let Err(e) = self.lead(store, lease, leader).await else { return Ok(()) };
            match e.downcast_ref() {
                Some(StoreError::Deposed { leader, .. }) if *leader == self.name => {
                    return Err(e.context(
                        "another master has the name of this one: give each its own `advertise_url`",
                    ));
                }
                Some(StoreError::Deposed { leader, epoch }) => {
                    tracing::warn!(leader, epoch, "another master leads: this one follows");
                }
                _ => return Err(e.context("the master can't continue")),
            }
        }
        Ok(())
    }

    /// Waits until the store grants the lease to this master. `None`: shutdown came first.
    async fn wait_for_leadership<S: Store>(
        &self,
        store: &S,
        last_seen: &mut Fence,
    ) -> anyhow::Result<Option<(LeaderLease, Leader)>> {
        let mut behind_since = None;
        let mut authority_read_at = None;
        loop {
            let (url, since) = (self.url.clone(), Timestamp::now());
            let sealed_with = self.settings.borrow().sealer.key_id();
            let info = LeaderInfo { url: url.clone(), since, sealed_with };
            let info = serde_json::to_string(&info)?;
            let candidate = Candidate { name: self.name.clone(), info, last_seen: *last_seen };
            let acquire = || async {
                let requested_at_ms = current_time().mono_ms;
                Ok((store.acquire(&candidate, self.lease).await?, requested_at_ms))
            };
            let Some((outcome, requested_at_ms)) =
                self.retry_until_available("request leadership", acquire).await?
            else {
                return Ok(None);
            };
            let pause = match outcome {
                AcquireOutcome::Leader(fence) => {
                    *last_seen = fence;
                    let lease = LeaderLease { fence, duration: self.lease, requested_at_ms };
                    let (name, epoch) = (self.name.clone(), fence.epoch);
                    return Ok(Some((lease, Leader { name, url, epoch, since: Some(since) })));
                }
                AcquireOutcome::Held { holder, holder_info, fence, retry_after_ms } => {
                    (*last_seen, behind_since) = (fence, None);
                    self.set_follower(holder, &holder_info, fence.epoch)?;
                    self.follow_authority(store, &mut authority_read_at).await?;
                    Duration::from_millis(retry_after_ms).min(ACQUIRE_INTERVAL)
                }
                AcquireOutcome::Behind(fence) => {
                    let since = *behind_since.get_or_insert_with(|| {
                        tracing::error!(
                            expected = last_seen.seq,
                            found = fence.seq,
                            "the store lost data: waiting for its leader to write it back"
                        );
                        self.set_no_leader(NoLeaderReason::Transition(
                            "the store lost data, which its leader may be writing back",
                        ));
                        Instant::now()
                    });
                    if since.elapsed() >= self.lease.max(WRITE_BACK_TIMEOUT) {
                        tracing::error!(
                            "no master wrote it back: this master leads with what is left"
                        );
                        *last_seen = fence;
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

    /// Another master leads. Changes the status only if it is not known yet.
    ///
    /// # Errors
    /// That master seals secrets with another key: this one could never lead.
    fn set_follower(&self, name: String, info: &str, epoch: u64) -> anyhow::Result<()> {
        // Empty while a new holder of a file lock has not written its info.
        let info = serde_json::from_str::<LeaderInfo>(info).ok();
        let sealed_with = info.as_ref().map_or("", |info| info.sealed_with.as_str()).to_owned();
        let own = self.settings.borrow().sealer.key_id();
        if !sealed_with.is_empty() && sealed_with != own {
            return Err(SealingError::OtherKey { sealed_with, own }.into());
        }
        let since = info.as_ref().map(|info| info.since);
        let leader = Leader { name, url: info.and_then(|info| info.url), epoch, since };
        self.status.send_if_modified(|status| {
            if matches!(status, LeadershipStatus::Follower(known) if *known == leader) {
                return false;
            }
            let Leader { name, url, .. } = &leader;
            let url = url.as_deref().unwrap_or("unknown");
            tracing::info!(leader = name, url, epoch, "another master leads: this one follows");
            *status = LeadershipStatus::Follower(leader.clone());
            true
        });
        Ok(())
    }

    /// Adopts the authority of the leader, which another one may have replaced, at most once in [`AUTHORITY_INTERVAL`].
    ///
    /// # Errors
    /// The leader has an authority of which this master knows nothing: the clients of one refuse the other.
    async fn follow_authority<S: Store>(
        &self,
        store: &S,
        read_at: &mut Option<Instant>,
    ) -> anyhow::Result<()> {
        let Some(authority) = &self.authority else { return Ok(()) };
        if read_at.is_some_and(|at| at.elapsed() < AUTHORITY_INTERVAL) {
            return Ok(());
        }
        match authority.refresh(store).await {
            // The request of the lease reports it.
            Err(error) if is_unavailable(&error) => Ok(()),
            read => {
                *read_at = Some(Instant::now());
                read
            }
        }
    }

    /// Adopts each authority that this leader stores. Returns if it cannot. `replaces`: the first one in the store is
    /// another one than that of this master, which replaces it.
    async fn adopt_rotations(
        &self,
        mut stored: watch::Receiver<Option<Arc<SealedAuthority>>>,
        replaces: bool,
    ) -> anyhow::Error {
        let Some(authority) = &self.authority else { return std::future::pending().await };
        loop {
            let current = stored.borrow_and_update().clone();
            let own = authority.sealed().hash;
            let current = current.filter(|current| !replaces || current.succeeds(own));
            if let Some(current) = current
                && let Err(error) = authority.adopt_off_runtime(current).await
            {
                return error;
            }
            if stored.changed().await.is_err() {
                // The state actor has ended, and with it this leadership.
                return std::future::pending().await;
            }
        }
    }

    fn set_no_leader(&self, reason: NoLeaderReason) {
        self.status.send_replace(LeadershipStatus::NoLeader(reason));
    }

    /// Leads until shutdown.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if another master leads; the state cannot be loaded, or the store cannot be used.
    async fn lead<S: Store>(
        &self,
        store: &Arc<S>,
        mut lease: LeaderLease,
        leader: Leader,
    ) -> anyhow::Result<()> {
        self.set_no_leader(NoLeaderReason::Transition("this master becomes the leader"));
        let mut settings = self.settings.clone();
        let initial = settings.borrow_and_update().clone();
        // Loading may take longer than the lease.
        let load = self.load_state(store.as_ref(), initial);
        let Some(state) = lease.renewing_while(store.as_ref(), load, || {}).await? else {
            return store.release(lease.fence).await.context("give up leadership");
        };

        let (requests_sender, requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
        if state.tokens().is_empty() {
            self.create_first_token(&requests_sender).await;
        }
        let replaces_authority = self.replaces_authority.swap(false, Ordering::Relaxed);
        if let Some(own) = &self.authority {
            let stored = state.authority();
            match stored.filter(|_| !replaces_authority) {
                Some(stored) => own.adopt_off_runtime(stored).await?,
                None => {
                    let event = Event::StoreAuthority(Box::new(own.sealed()));
                    // As the first token.
                    let reply = oneshot::channel().0;
                    let _ = requests_sender.try_send(ActorRequest { event, change: None, reply });
                }
            }
        }
        let (tokens, token_receiver) = watch::channel(state.tokens());
        let (agents, agent_receiver) = watch::channel(state.agents());
        // Not the present one: it may be about to be replaced by that of this master.
        let (authority, authority_receiver) = watch::channel(None);
        let (health, health_receiver) = watch::channel(Ok(()));
        let (admission, admission_block) = watch::channel(None);
        let channel = ActorChannel {
            requests: requests_sender,
            health: health_receiver,
            blobs: blob_reader(Arc::clone(store)),
            backup: backup_maker(Arc::clone(store)),
            tokens: token_receiver,
            agents: agent_receiver,
            admission_block,
        };
        let actor = StateActor {
            store: Arc::clone(store),
            state,
            lease,
            requests,
            health,
            spool: self.spool.clone(),
            audit: self.audit.clone(),
            settings,
            callers: Callers::default(),
            tokens,
            agents,
            authority,
            manifest_reads: Vec::new(),
            shutdown: self.api_ended.clone(),
        };
        let Leader { name, epoch, .. } = &leader;
        tracing::info!(name, epoch, "leader ready");
        self.status.send_replace(LeadershipStatus::Leader(leader, channel));
        let result = tokio::select! {
            result = actor.run() => result.map_err(anyhow::Error::from),
            unusable = watch_admission(store.as_ref(), admission) => Err(unusable.into()),
            unusable = self.adopt_rotations(authority_receiver, replaces_authority) => Err(unusable),
        };
        self.set_no_leader(NoLeaderReason::Transition("this master is no longer the leader"));
        result
    }

    /// Creates the token of the first administrator. Its file is written first: without the
    /// record it is replaced at the next start.
    async fn create_first_token(&self, requests: &mpsc::Sender<ActorRequest>) {
        let file = self.admin_token_file.clone();
        let made = tokio::task::spawn_blocking(move || file.create()).await;
        if let Ok(Some(record)) = made {
            let event = Event::CreateToken(Box::new(record));
            // The queue is empty; no caller waits for the reply.
            let _ = requests.try_send(ActorRequest {
                event,
                reply: oneshot::channel().0,
                change: None,
            });
        }
    }

    /// Reads the state from the store. `None`: shutdown came first.
    async fn load_state(
        &self,
        store: &impl Store,
        settings: Settings,
    ) -> anyhow::Result<Option<State>> {
        let Some(records) = self.retry_until_available("read the store", || store.load()).await?
        else {
            return Ok(None);
        };
        let (name_key_file, spool) = (self.name_key_file.clone(), self.spool.clone());
        let load = move || {
            let state = State::load(settings, random_seed(), &records, current_time())?;
            name_key_file.save(state.name_key());
            // Not before this master leads: another master on this host may have used the same directory.
            if let Err(e) = spool.remove_unless(|number| state.has_sync(number)) {
                tracing::warn!(error = %e, "file records of removed syncs could not be removed");
            }
            Ok::<_, LoadError>(state)
        };
        Ok(Some(tokio::task::spawn_blocking(load).await.context("load the state")??))
    }

    /// Repeats a call until the store is available. `action` completes "cannot …". `None`: shutdown came first.
    async fn retry_until_available<T, F>(
        &self,
        action: &'static str,
        call: impl Fn() -> F,
    ) -> anyhow::Result<Option<T>>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let attempts = async {
            let mut failures = 0;
            loop {
                match call().await {
                    Err(StoreError::Unavailable(reason)) => {
                        if failures == 0 {
                            tracing::warn!(
                                reason,
                                "cannot {action}: the store is not available; waiting for it"
                            );
                        }
                        self.set_no_leader(NoLeaderReason::StoreUnavailable(reason));
                        tokio::time::sleep(STORE_RETRY_BACKOFF.delay(failures)).await;
                        failures += 1;
                    }
                    reply => return reply.context(action),
                }
            }
        };
        tokio::select! {
            reply = attempts => reply.map(Some),
            () = self.shutdown.cancelled() => Ok(None),
        }
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

/// Checks in intervals whether the store accepts new syncs. Returns when the store cannot be used any more.
async fn watch_admission<S: Store>(
    store: &S,
    admission: watch::Sender<Option<AdmissionBlock>>,
) -> StoreError {
    loop {
        match store.check_admission().await {
            Ok(block) if block != *admission.borrow() => {
                match &block {
                    Some(block) => {
                        tracing::error!(reason = block.reason(), "new syncs are not accepted");
                    }
                    None => tracing::info!("new syncs are accepted again"),
                }
                admission.send_replace(block);
            }
            Ok(_) => {}
            Err(unusable @ StoreError::Unusable(_)) => return unusable,
            // A store that is unavailable is reported by the calls that need it.
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
