//! The tickets of assignments: what they allow, at which workers and roots, for how long, and how they are renewed.

use super::boot_ids::{is_only_root_under, names_root};
use super::keys::MAX_TICKET_USE_MS;
use super::record_keys::META_KEY;
use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, Reply, State};
use crate::wire::admin::RotateTicketKeyReply;
use crate::wire::options::{SyncOptions, WriteRules};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::task::{PoolMember, TaskSpec};
use crate::wire::ticket::{Claims, SignedTicket, lifetime_seconds};
use crate::wire::{AbsPath, AssignmentId, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// The clock by which tickets expire: the wall clock at the start of this term, and the time since then. A change of
/// the wall clock has no effect on tickets that are in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct TicketClock {
    wall_minus_mono_ms: i64,
}

impl TicketClock {
    pub(super) fn start(now: Now) -> Self {
        TicketClock { wall_minus_mono_ms: now.wall_ms.saturating_sub_unsigned(now.mono_ms) }
    }

    /// Seconds since 1970.
    pub(super) fn seconds(self, now: Now) -> i64 {
        self.wall_minus_mono_ms.saturating_add_unsigned(now.mono_ms).div_euclid(1000)
    }
}

impl State {
    /// The ticket of a leased task that writes through `members`.
    pub(super) fn build_ticket(
        &self,
        sync: &SyncJob,
        task: &Task,
        options: &SyncOptions,
        members: &[PoolMember],
        now: Now,
    ) -> Option<SignedTicket> {
        let lease = task.lease()?;
        let request = &sync.request;
        let mut claims = Claims {
            sync: sync.no.0,
            request_id: sync.id.to_string(),
            assignment: lease.assignment.0,
            attempt: task.attempt,
            worker: lease.worker.to_string(),
            destination: request.destination_path.as_bytes().to_vec(),
            expires: self.ticket_expiry(now),
            rules: WriteRules {
                part_name_key: self.keys.name_key(),
                chunk_bytes: u64::from(request.chunk_size_mb) << 20,
                ..sync.write_rules(&task.spec, options)
            },
            prune: sync.prune_permit(&task.spec),
            roots: BTreeMap::new(),
            verbs: task.spec.verbs(),
            receivers: BTreeSet::new(),
            run_as: request.run_as.clone(),
        };
        members.iter().for_each(|member| claims.allow_receiver(&member.worker_id));
        if !task.runs_at_source() {
            // It writes to its own storage.
            claims.allow_receiver(&lease.worker);
        }
        self.add_expected_roots(&mut claims, sync, task, members);
        Some(self.keys.sign(&claims).into())
    }

    /// Makes the next key that signs tickets. It signs when each agent that works has got its public key.
    pub(super) fn rotate_ticket_key(&mut self, now: Now) -> Result<Reply, Problem> {
        let signs_at_ms = now.mono_ms.saturating_add(self.settings.heartbeat_timeout_ms);
        let planned = self.keys.add_next(signs_at_ms, &self.settings.sealer);
        let (previous_key_id, key_id, signs_at_ms) =
            planned.map_err(|e| Problem::new(ProblemCode::Internal, e.to_string()))?;
        self.outbox.write_record(META_KEY.to_owned());
        let wait_ms = signs_at_ms.saturating_sub(now.mono_ms);
        Ok(Reply::TicketKeyRotated(RotateTicketKeyReply {
            key_id,
            signs_in_seconds: wait_ms.div_ceil(1000),
            previous_key_id,
            previous_valid_seconds: wait_ms.saturating_add(MAX_TICKET_USE_MS).div_ceil(1000),
        }))
    }

    fn ticket_expiry(&self, now: Now) -> i64 {
        let lease = Duration::from_millis(self.settings.lease_ms);
        self.ticket_clock.seconds(now).saturating_add(lifetime_seconds(lease))
    }

    /// Adds the roots for which the writes of a task count to its ticket.
    fn add_expected_roots(
        &self,
        claims: &mut Claims,
        sync: &SyncJob,
        task: &Task,
        members: &[PoolMember],
    ) {
        let Some(lease) = task.lease() else { return };
        let itself = std::iter::once(&lease.worker);
        for worker in members.iter().map(|member| &member.worker_id).chain(itself) {
            let root = match (&task.spec, &task.pinned_to) {
                // A flush of another root makes nothing safe that is here.
                (TaskSpec::Flush, Some(bound)) => {
                    let wrote = sync.unflushed_writers.get(bound).cloned().flatten();
                    wrote.filter(|place| names_root(place))
                }
                _ => {
                    let path = &sync.request.destination_path;
                    self.expected_root(worker, path, sync.possible_writers.get(worker))
                }
            };
            if let Some(root) = root {
                claims.restrict_to_root(worker, &root);
            }
        }
    }

    /// The root at which a worker may act for a sync: `recorded`, the only one that the sync used under the present
    /// boot of its kernel, else the one of the last heartbeat, by which the scheduler decided that the worker serves
    /// the storage. What was done at other roots is compared again ([`recheck`](super::recheck)); until a heartbeat
    /// reports another root, nothing is done there. `None`: the worker reports no roots.
    pub(super) fn expected_root(
        &self,
        worker: &WorkerId,
        path: &AbsPath,
        recorded: Option<&Option<String>>,
    ) -> Option<String> {
        let worker = self.workers.get(worker)?;
        let boot = worker.last_heartbeat.boot_id.as_ref()?;
        let recorded = recorded.and_then(Option::as_ref);
        let recorded = recorded.filter(|place| is_only_root_under(place, boot)).cloned();
        recorded.or_else(|| worker.boot_and_root(path).filter(|place| names_root(place)))
    }

    /// New tickets instead of `tickets`, with the same rights, for those of the assignments `valid` of `worker`. The
    /// agent sends what is to be renewed: a master that has just started does not know which workers it named.
    pub(super) fn renew_tickets(
        &self,
        worker: &WorkerId,
        tickets: &[SignedTicket],
        valid: &HashSet<AssignmentId>,
        now: Now,
    ) -> BTreeMap<AssignmentId, SignedTicket> {
        let renew = |ticket: &SignedTicket| {
            let claims = self.keys.verify(ticket)?;
            let id = AssignmentId(claims.assignment);
            let is_held = claims.worker == worker.as_str() && valid.contains(&id);
            let expires = self.ticket_expiry(now);
            is_held.then(|| (id, self.keys.sign(&Claims { expires, ..claims }).into()))
        };
        tickets.iter().filter_map(renew).collect()
    }
}
