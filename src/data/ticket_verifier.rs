//! Verifies tickets by the keys and the clock of the master, and by the syncs of which it reported the end.

use super::protocol::{CLEAN_UP, PACK, PRUNE, RANGE, verb_of};
use crate::config::RunAsRules;
use crate::fs::{ActingUser, DeletionBudget, find_obstacle};
use crate::wire::ticket::{
    CLOCK_LEEWAY_SECONDS, Claims, MAX_TICKET_SECONDS, PrunePermit, TicketError, Verb, Verbs,
    Verifier,
};
use crate::wire::worker::{EndedCursor, EndedSyncs};
use crate::wire::{SyncNo, WorkerId};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Time since the machine booted, sleep included; it never jumps, whatever is done to the wall clock.
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec as u32)
}

/// Why a request was refused before anything was done for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No heartbeat was answered yet, so there is no key to verify with.
    #[error("this agent has not reached its master yet and cannot check tickets")]
    NoKey,
    /// There was none.
    #[error("the request carries no ticket")]
    NoTicket,
    /// It does not hold.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It allows what this agent does not have.
    #[error("no storage path of this agent holds the ticket's destination {0}")]
    NoRoot(String),
    /// It is of a dry run, and this verb writes.
    #[error("the ticket is of a dry run: nothing may be written, and `{0}` writes")]
    DryRun(String),
    /// It is of no task that prunes, or of one that only counts.
    #[error(
        "the ticket does not allow to delete: only that of a task that deletes does, in a sync with `--delete`"
    )]
    NoDeletion,
    /// Its task needs no such request.
    #[error("the ticket does not allow `{0}`: its task needs no such request")]
    OtherVerb(String),
    /// It is for other workers.
    #[error("the ticket is for other workers than {0}")]
    OtherWorker(WorkerId),
    /// Its sync has ended.
    #[error("the sync of the ticket, `{0}`, has ended")]
    Ended(String),
    /// The agent that holds its assignment was revoked.
    #[error("the worker of the ticket, `{0}`, was revoked")]
    Revoked(String),
    /// It was presented by another agent than the one that it was given to.
    #[error(
        "the ticket is of worker `{0}`, and the certificate of the agent that sent it is of worker `{1}`"
    )]
    OtherSender(String, WorkerId),
    /// Its deletions are for another agent.
    #[error("the ticket allows to delete through another agent, or before this one was restarted")]
    OtherReceiver,
    /// The configuration of the agent, or what the kernel lets it do, forbids to act as the user of the sync.
    #[error("{0}")]
    RunAs(String),
}

impl Refusal {
    /// What is wrong, without the parts that differ between requests.
    pub fn cause(&self) -> &'static str {
        use TicketError::{Expired, Forged, Malformed, TooLong, UnknownKey};
        match self {
            Refusal::NoKey => "ticket refused, the master was not reached yet",
            Refusal::NoTicket => "request without a ticket",
            Refusal::Ticket(Malformed) => "ticket refused, not readable",
            Refusal::Ticket(Forged) => "ticket refused, wrong signature",
            Refusal::Ticket(Expired(_)) => "ticket refused, expired",
            Refusal::Ticket(UnknownKey) => "ticket refused, unknown key",
            Refusal::Ticket(TooLong(_)) => "ticket refused, valid for too long",
            Refusal::NoRoot(_) => "ticket refused, other storage path",
            Refusal::DryRun(_) => "ticket refused, dry run",
            Refusal::NoDeletion => "ticket refused, no deletion",
            Refusal::OtherVerb(_) => "ticket refused, other request",
            Refusal::OtherWorker(_) => "ticket refused, other receiver",
            Refusal::Ended(_) => "ticket refused, its sync has ended",
            Refusal::Revoked(_) => "ticket refused, its worker was revoked",
            Refusal::OtherSender(..) => "ticket refused, sent by another agent",
            Refusal::OtherReceiver => "ticket refused, deletion through another agent",
            Refusal::RunAs(_) => "ticket refused, user of the sync",
        }
    }
}

/// Whether a ticket with these `claims` allows the request with this path at all.
///
/// # Errors
/// [`Refusal::DryRun`], [`Refusal::NoDeletion`] and [`Refusal::OtherVerb`].
pub fn check_permission(claims: &Claims, verb: &str) -> Result<(), Refusal> {
    match verb {
        PACK | RANGE | CLEAN_UP if claims.rules.dry_run => Err(Refusal::DryRun(verb.to_owned())),
        PRUNE if claims.prune.is_none() || !claims.rules.delete => Err(Refusal::NoDeletion),
        _ => match verb_of(verb) {
            Some(one) if !claims.verbs.allows(one) => Err(Refusal::OtherVerb(verb.to_owned())),
            _ => Ok(()),
        },
    }
}

/// Whether a ticket with these `claims` allows a prune (that is applied, or only counted).
///
/// # Errors
/// [`Refusal::DryRun`] and [`Refusal::NoDeletion`].
pub fn check_prune_permission(claims: &Claims, apply: bool) -> Result<(), Refusal> {
    check_permission(claims, PRUNE)?;
    match &claims.prune {
        _ if apply && claims.rules.dry_run => Err(Refusal::DryRun(PRUNE.to_owned())),
        Some(PrunePermit::Count) if apply => Err(Refusal::NoDeletion),
        _ => Ok(()),
    }
}

/// So many grants of deletions are remembered.
const MAX_GRANTS: usize = 1024;
/// A ticket of an ended sync is of no use after this time, and its end is forgotten. A stream that it began ends.
const MAX_USE: Duration = Duration::from_secs((MAX_TICKET_SECONDS + CLOCK_LEEWAY_SECONDS) as u64);
/// The clock of the master moved against that of this host by more than requests take, in seconds.
const CLOCK_JUMP_SECONDS: u64 = 5;
/// What the clean-up after a sync needs.
const AFTER_THE_END: Verbs = Verbs::of(&[Verb::CleanUp]);

/// What heartbeats teach an agent about tickets. Everything is refused until the first.
#[derive(Default)]
pub struct TicketVerifier {
    master: RwLock<Option<MasterState>>,
    /// This agent: its id and its incarnation.
    agent: Option<(WorkerId, String)>,
    /// What was deleted under each grant, the one that was used last at the end.
    deletions: Mutex<Vec<(u64, Arc<AtomicU64>)>>,
    ended: Arc<EndedList>,
    revoked: Arc<RevokedWorkers>,
    /// Up to where the master reported the ends of syncs.
    ended_seen: Mutex<Option<EndedCursor>>,
    run_as: RunAsRules,
}

struct MasterState {
    verifier: Verifier,
    /// The master's clock minus that of this host ([`boottime`]), in seconds.
    clock_offset_seconds: i64,
}

/// The syncs that have ended, with the time ([`boottime`]) at which that is forgotten.
#[derive(Default)]
struct EndedList {
    syncs: RwLock<BTreeMap<SyncNo, Duration>>,
    /// There is one. Streams check it at each frame.
    has_any: AtomicBool,
}

impl EndedList {
    fn contains(&self, sync: SyncNo) -> bool {
        self.has_any.load(Ordering::Acquire) && self.syncs.read().contains_key(&sync)
    }

    fn add(&self, ended: &[SyncNo], now: Duration) {
        let mut syncs = self.syncs.write();
        syncs.retain(|_, until| *until > now);
        syncs.extend(ended.iter().map(|sync| (*sync, now + MAX_USE)));
        self.has_any.store(!syncs.is_empty(), Ordering::Release);
    }

    fn clear(&self) {
        self.syncs.write().clear();
        self.has_any.store(false, Ordering::Release);
    }
}

/// The workers of which tickets are refused.
#[derive(Default)]
struct RevokedWorkers {
    workers: RwLock<BTreeSet<String>>,
    /// There is one. Streams check it at each frame.
    has_any: AtomicBool,
}

impl RevokedWorkers {
    fn contains(&self, worker: &str) -> bool {
        self.has_any.load(Ordering::Acquire) && self.workers.read().contains(worker)
    }
}

/// The permission of a stream, which lasts longer than the ticket that began it: the sender gets another ticket
/// meanwhile. It ends with the sync, and when the sender is revoked.
#[derive(Clone)]
pub struct StreamPermit {
    sync: SyncNo,
    worker: String,
    ended: Arc<EndedList>,
    revoked: Arc<RevokedWorkers>,
    /// When work ends that a few bytes can make long ([`boottime`]).
    pub(super) until: Duration,
}

#[cfg(test)]
impl StreamPermit {
    /// The same with another end.
    pub(super) fn ending_at(self, until: Duration) -> Self {
        StreamPermit { until, ..self }
    }
}

impl StreamPermit {
    /// Fails once the sync has ended, or the sender was revoked.
    ///
    /// # Errors
    /// A message.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.ended.contains(self.sync) {
            return Err("its sync has ended");
        }
        if self.revoked.contains(&self.worker) { Err("its worker was revoked") } else { Ok(()) }
    }
}

impl TicketVerifier {
    /// A verifier that refuses all tickets until the first update.
    #[cfg(test)]
    pub fn new() -> Self {
        TicketVerifier::default()
    }

    /// The same, of an agent.
    pub fn for_agent(worker: &WorkerId, incarnation: &str) -> Self {
        let agent = Some((worker.clone(), incarnation.to_owned()));
        TicketVerifier { agent, ..TicketVerifier::default() }
    }

    /// The same with the rules of its configuration.
    #[must_use]
    pub fn with_run_as(self, run_as: RunAsRules) -> Self {
        TicketVerifier { run_as, ..self }
    }

    /// As what the work of a ticket with these `claims` is done.
    ///
    /// # Errors
    /// [`Refusal::RunAs`].
    pub fn identity_for(&self, claims: &Claims) -> Result<ActingUser, Refusal> {
        let user = claims.run_as.as_ref();
        let checked = self.run_as.check(user);
        let obstacle = || user.and_then(find_obstacle).map_or(Ok(()), Err);
        checked.and_then(|()| obstacle()).map_err(|reason| {
            let worker = self.agent.as_ref().map_or("?", |(worker, _)| worker.as_str());
            let as_user = match user {
                Some(user) => format!("as uid {}", user.uid),
                None => "with its own rights".to_owned(),
            };
            Refusal::RunAs(format!("worker {worker} does no sync {as_user}: {reason}"))
        })?;
        Ok(ActingUser::new(claims.run_as.clone()))
    }

    /// Whether `claims` are for the storage root `root` ([`Tree::root_id`](crate::fs::Tree::root_id)) that this agent
    /// has open.
    pub fn allows_root(&self, claims: &Claims, root: &str) -> bool {
        self.agent.as_ref().is_none_or(|(worker, _)| claims.allows_root(worker, root))
    }

    /// What may still be deleted under `claims`.
    ///
    /// # Errors
    /// [`Refusal::OtherReceiver`].
    pub fn deletion_allowance(&self, claims: &Claims) -> Result<Option<DeletionBudget>, Refusal> {
        let Some(PrunePermit::Delete(deletion)) = &claims.prune else { return Ok(None) };
        let incarnation = self.agent.as_ref().map_or("", |(_, incarnation)| incarnation);
        if deletion.incarnation != incarnation {
            return Err(Refusal::OtherReceiver);
        }
        let mut grants = self.deletions.lock();
        let at = grants.iter().position(|(grant, _)| *grant == deletion.grant_id);
        let entry = at.map(|at| grants.remove(at));
        let entry = entry.unwrap_or_else(|| (deletion.grant_id, Arc::default()));
        let used = Arc::clone(&entry.1);
        grants.push(entry);
        if grants.len() > MAX_GRANTS {
            grants.remove(0);
        }
        Ok(Some(DeletionBudget::new(used, deletion.max_entries)))
    }

    /// Stores the public keys and the time (seconds since 1970) of a heartbeat's reply. Returns whether tickets that
    /// were valid may not be so now: the keys changed, or the clock jumped.
    ///
    /// # Errors
    /// A key that is none; what was known stays.
    pub fn update<T: AsRef<str>>(&self, keys: &[T], time: i64) -> Result<bool, TicketError> {
        let verifier = Verifier::new(keys)?;
        let clock_offset_seconds = time.saturating_sub(boottime().as_secs() as i64);
        let mut master = self.master.write();
        let is_news = master.as_ref().is_some_and(|known| {
            known.verifier != verifier
                || known.clock_offset_seconds.abs_diff(clock_offset_seconds) > CLOCK_JUMP_SECONDS
        });
        if master.as_ref().is_some_and(|known| !known.verifier.shares_key_with(&verifier)) {
            // Another store, which gives the numbers of syncs anew.
            self.ended.clear();
        }
        *master = Some(MasterState { verifier, clock_offset_seconds });
        Ok(is_news)
    }

    /// Stores which syncs a heartbeat's reply reports as ended.
    pub fn add_ended_syncs(&self, ended: &EndedSyncs) {
        self.ended.add(&ended.syncs, boottime());
        *self.ended_seen.lock() = Some(ended.cursor);
    }

    /// Stores all workers that a heartbeat's reply reports as revoked.
    pub fn set_revoked_workers(&self, workers: &[WorkerId]) {
        let mut known = self.revoked.workers.write();
        *known = workers.iter().map(ToString::to_string).collect();
        self.revoked.has_any.store(!known.is_empty(), Ordering::Release);
    }

    /// Whether the master reports `worker` as revoked.
    pub fn is_revoked(&self, worker: &WorkerId) -> bool {
        self.revoked.contains(worker.as_str())
    }

    /// What heartbeats say about the syncs that were reported as ended.
    pub fn ended_seen(&self) -> Option<EndedCursor> {
        *self.ended_seen.lock()
    }

    /// The permission of a stream that begins now with a ticket with these `claims`.
    pub(super) fn stream_permit(&self, claims: &Claims) -> StreamPermit {
        StreamPermit {
            sync: SyncNo(claims.sync),
            worker: claims.worker.clone(),
            ended: self.ended.clone(),
            revoked: self.revoked.clone(),
            until: boottime() + MAX_USE,
        }
    }

    /// What `ticket` allows.
    ///
    /// # Errors
    /// Anything but a ticket that the master signed and that has not expired.
    pub fn verify(&self, ticket: &str) -> Result<Claims, Refusal> {
        let master = self.master.read();
        let master = master.as_ref().ok_or(Refusal::NoKey)?;
        Ok(master.verifier.verify(ticket, master.now())?)
    }

    /// What `ticket` allows at this agent, now.
    ///
    /// # Errors
    /// As [`verify`](Self::verify); [`Refusal::OtherWorker`], [`Refusal::Revoked`], [`Refusal::Ended`].
    pub fn admit(&self, ticket: &str) -> Result<Claims, Refusal> {
        let claims = self.verify(ticket)?;
        if let Some((worker, _)) = &self.agent
            && !claims.allows_receiver(worker)
        {
            return Err(Refusal::OtherWorker(worker.clone()));
        }
        if self.revoked.contains(&claims.worker) {
            return Err(Refusal::Revoked(claims.worker));
        }
        // What an ended sync left is removed with tickets that allow no more than that.
        if !claims.verbs.are_within(AFTER_THE_END) && self.ended.contains(SyncNo(claims.sync)) {
            return Err(Refusal::Ended(claims.request_id));
        }
        Ok(claims)
    }

    /// Whether the holder of `ticket`, which lives for `lifetime_seconds` when it is new, needs another one: half of
    /// that is over, or it is not valid.
    pub fn needs_renewal(&self, ticket: &str, lifetime_seconds: i64) -> bool {
        let master = self.master.read();
        let Some(master) = master.as_ref() else { return false };
        let now = master.now();
        let claims = master.verifier.verify(ticket, now);
        claims.map_or(true, |claims| claims.expires.saturating_sub(now) <= lifetime_seconds / 2)
    }
}

impl MasterState {
    /// Seconds since 1970 by the clock of the master.
    fn now(&self) -> i64 {
        (boottime().as_secs() as i64).saturating_add(self.clock_offset_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ticket::Signer;

    fn claims(expires: i64) -> Claims {
        Claims {
            sync: 1,
            request_id: "r".into(),
            assignment: [1; 16],
            attempt: 1,
            worker: "w".into(),
            destination: b"/d".to_vec(),
            expires,
            rules: Default::default(),
            prune: None,
            roots: Default::default(),
            verbs: Verbs::ALL,
            receivers: Default::default(),
            run_as: None,
        }
    }

    fn new_signer() -> Signer {
        Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap()
    }

    #[test]
    fn ticket_expiry_is_checked_against_the_masters_clock() {
        let signer = new_signer();
        let gate = TicketVerifier::new();
        let good = signer.sign(&claims(5_000));
        assert_eq!(gate.verify(&good), Err(Refusal::NoKey));
        // The master's clock is in 1970; the clock of this host has no effect.
        gate.update(&[signer.public_key()], 4_999).unwrap();
        assert_eq!(gate.verify(&good), Ok(claims(5_000)));
        let late = 5_000 + CLOCK_LEEWAY_SECONDS + 10;
        gate.update(&[signer.public_key()], late).unwrap();
        assert!(matches!(gate.verify(&good), Err(Refusal::Ticket(TicketError::Expired(_)))));
    }

    #[test]
    fn an_invalid_key_does_not_replace_a_valid_one() {
        let signer = new_signer();
        let gate = TicketVerifier::new();
        gate.update(&[signer.public_key()], 0).unwrap();
        assert!(gate.update(&["nonsense"], 0).is_err());
        assert!(gate.verify(&signer.sign(&claims(10))).is_ok());
    }

    #[test]
    fn a_ticket_is_accepted_by_its_receivers_only() {
        let signer = new_signer();
        let [b, c] = ["b", "c"].map(|id| id.parse::<WorkerId>().unwrap());
        let mut claims = claims(500);
        claims.allow_receiver(&b);
        let ticket = signer.sign(&claims);
        let admit = |worker: &WorkerId| {
            let gate = TicketVerifier::for_agent(worker, "");
            gate.update(&[signer.public_key()], 0).unwrap();
            gate.admit(&ticket)
        };
        assert_eq!(admit(&b), Ok(claims));
        assert_eq!(admit(&c), Err(Refusal::OtherWorker(c)));
    }

    #[test]
    fn the_end_of_a_sync_ends_its_tickets_and_streams_but_not_its_clean_up() {
        let (signer, gate) = (new_signer(), TicketVerifier::new());
        gate.update(&[signer.public_key()], 0).unwrap();
        let (copy, other) = (claims(500), Claims { sync: 2, ..claims(500) });
        let clean_up = Claims { verbs: AFTER_THE_END, ..claims(500) };
        let streams = [&copy, &other].map(|claims| gate.stream_permit(claims));
        let of = |claims: &Claims| gate.admit(&signer.sign(claims)).is_ok();
        assert!(of(&copy) && of(&other) && streams.iter().all(|stream| stream.check().is_ok()));
        let cursor = EndedCursor { term: 5, position: 1 };
        gate.add_ended_syncs(&EndedSyncs { cursor, syncs: vec![SyncNo(1)] });
        assert_eq!(gate.ended_seen(), Some(cursor));
        assert_eq!(gate.admit(&signer.sign(&copy)), Err(Refusal::Ended("r".into())));
        assert!(of(&other) && of(&clean_up));
        assert!(streams[0].check().is_err() && streams[1].check().is_ok());
        // A key was added, then the first one removed: still the same numbers.
        let [second, third] = [new_signer(), new_signer()];
        assert!(gate.update(&[signer.public_key(), second.public_key()], 0).unwrap());
        assert!(gate.update(&[second.public_key()], 0).unwrap());
        assert!(gate.admit(&second.sign(&copy)).is_err());
        assert!(!gate.update(&[second.public_key()], 0).unwrap());
        // Another store: the number is that of another sync.
        gate.update(&[third.public_key()], 0).unwrap();
        assert!(gate.admit(&third.sign(&copy)).is_ok());
    }

    #[test]
    fn tickets_and_streams_of_a_revoked_worker_are_refused_until_it_joins_again() {
        let (signer, gate) = (new_signer(), TicketVerifier::new());
        gate.update(&[signer.public_key()], 0).unwrap();
        let (own, other) = (claims(500), Claims { worker: "v".into(), ..claims(500) });
        let clean_up = Claims { verbs: AFTER_THE_END, ..claims(500) };
        let streams = [&own, &other].map(|claims| gate.stream_permit(claims));
        gate.set_revoked_workers(&["w".parse().unwrap()]);
        for claims in [&own, &clean_up] {
            assert_eq!(gate.admit(&signer.sign(claims)), Err(Refusal::Revoked("w".into())));
        }
        assert!(gate.admit(&signer.sign(&other)).is_ok());
        assert!(streams[0].check().is_err() && streams[1].check().is_ok());
        gate.set_revoked_workers(&[]);
        assert!(gate.admit(&signer.sign(&own)).is_ok() && streams[0].check().is_ok());
    }

    #[test]
    fn ends_are_forgotten_when_no_ticket_of_the_sync_can_be_valid() {
        let list = EndedList::default();
        list.add(&[SyncNo(1)], Duration::ZERO);
        list.add(&[SyncNo(2)], MAX_USE - Duration::from_secs(1));
        assert!(list.contains(SyncNo(1)) && list.contains(SyncNo(2)));
        list.add(&[], MAX_USE);
        assert!(!list.contains(SyncNo(1)) && list.contains(SyncNo(2)));
        list.add(&[], 2 * MAX_USE);
        assert!(!list.contains(SyncNo(2)));
    }

    #[test]
    fn a_ticket_is_renewed_at_half_of_its_life_and_when_it_is_invalid() {
        let (signer, gate) = (new_signer(), TicketVerifier::new());
        let ticket = signer.sign(&claims(1_060));
        assert!(!gate.needs_renewal(&ticket, 60), "no master has answered yet");
        for (now, expected) in [(1_000, false), (1_020, false), (1_031, true), (5_000, true)] {
            gate.update(&[signer.public_key()], now).unwrap();
            assert_eq!(gate.needs_renewal(&ticket, 60), expected, "{now}");
        }
        gate.update(&[new_signer().public_key()], 1_000).unwrap();
        assert!(gate.needs_renewal(&ticket, 60), "of another key");
    }
}
