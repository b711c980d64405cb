//! Verifies tickets by the key and the clock of the master.

use super::protocol::{CLEAN_UP, PACK, PRUNE, RANGE};
use crate::fs::DeletionBudget;
use crate::wire::WorkerId;
use crate::wire::ticket::{CLOCK_LEEWAY_SECONDS, Claims, PrunePermit, TicketError, Verifier};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
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
    /// Its deletions are for another agent.
    #[error("the ticket allows to delete through another agent, or before this one was restarted")]
    OtherReceiver,
}

/// Whether a ticket with these `claims` allows the verb at all.
///
/// # Errors
/// [`Refusal::DryRun`] and [`Refusal::NoDeletion`].
pub fn check_permission(claims: &Claims, verb: &str) -> Result<(), Refusal> {
    match verb {
        PACK | RANGE | CLEAN_UP if claims.rules.dry_run => Err(Refusal::DryRun(verb.to_owned())),
        PRUNE if claims.prune.is_none() || !claims.rules.delete => Err(Refusal::NoDeletion),
        _ => Ok(()),
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

/// What heartbeats teach an agent about tickets. Everything is refused until the first.
#[derive(Default)]
pub struct TicketVerifier {
    master: RwLock<Option<MasterState>>,
    /// This agent: its id and its incarnation.
    agent: Option<(WorkerId, String)>,
    /// What was deleted under each grant, the one that was used last at the end.
    deletions: Mutex<Vec<(u64, Arc<AtomicU64>)>>,
}

struct MasterState {
    verifier: Verifier,
    /// The master's clock minus that of this host ([`boottime`]), in seconds.
    clock_offset_seconds: i64,
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

    /// Stores the key and the time (seconds since 1970) of a heartbeat's reply.
    ///
    /// # Errors
    /// A key that is none; what was known stays.
    pub fn update(&self, key: &str, time: i64) -> Result<(), TicketError> {
        let verifier = Verifier::new(key)?;
        let clock_offset_seconds = time - boottime().as_secs() as i64;
        let mut master = self.master.write();
        *master = Some(MasterState { verifier, clock_offset_seconds });
        Ok(())
    }

    /// When a ticket with these `claims` ends ([`boottime`]).
    pub fn expires_at(&self, claims: &Claims) -> Duration {
        let master = self.master.read();
        let clock_offset_seconds = master.as_ref().map_or(0, |master| master.clock_offset_seconds);
        let end = claims
            .expires
            .saturating_add(CLOCK_LEEWAY_SECONDS)
            .saturating_sub(clock_offset_seconds);
        Duration::from_secs(u64::try_from(end).unwrap_or(0))
    }

    /// What `ticket` allows.
    ///
    /// # Errors
    /// Anything but a ticket that the master signed and that has not expired.
    pub fn verify(&self, ticket: &str) -> Result<Claims, Refusal> {
        let master = self.master.read();
        let master = master.as_ref().ok_or(Refusal::NoKey)?;
        let now = boottime().as_secs() as i64 + master.clock_offset_seconds;
        Ok(master.verifier.verify(ticket, now)?)
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
        }
    }

    #[test]
    fn ticket_expiry_is_checked_against_the_masters_clock() {
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let gate = TicketVerifier::new();
        let good = signer.sign(&claims(5_000));
        assert_eq!(gate.verify(&good), Err(Refusal::NoKey));
        // The master's clock is in 1970; the clock of this host has no effect.
        gate.update(&signer.public_key(), 4_999).unwrap();
        assert_eq!(gate.verify(&good), Ok(claims(5_000)));
        let late = 5_000 + CLOCK_LEEWAY_SECONDS + 10;
        gate.update(&signer.public_key(), late).unwrap();
        assert!(matches!(gate.verify(&good), Err(Refusal::Ticket(TicketError::Expired(_)))));
    }

    #[test]
    fn an_invalid_key_does_not_replace_a_valid_one() {
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let gate = TicketVerifier::new();
        gate.update(&signer.public_key(), 0).unwrap();
        assert!(gate.update("nonsense", 0).is_err());
        assert!(gate.verify(&signer.sign(&claims(10))).is_ok());
    }
}
