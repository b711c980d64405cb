//! A simulated agent: it polls, works and reports as the real one does. Requests are repeated until
//! they are answered; work stops before its lease ends, counted from before the request.

use super::storage_model::Row;
use super::storages::{Honesty, Mount, Storages};
use super::*;
use crate::wire::ticket::Claims;

/// Work stops this long before its lease ends.
const MARGIN_MS: u64 = 5_000;
/// A request without an answer is repeated after this; a poll may wait for longer.
pub(super) const REPEAT_MS: u64 = 3_000;
/// A poll waits for this long.
pub(super) const POLL_MS: u64 = 10_000;

/// What a slot is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// Idle: it polls soon.
    Rest,
    Poll,
    Manifest,
    /// The first half of the work is under way, the second.
    Begun,
    Half,
    /// A page is posted.
    Page,
    Report,
}

/// An assignment in hand.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) a: Box<Assignment>,
    pub(super) manifest: Vec<u8>,
    pub(super) deadline: u64,
    /// The number of the next page, and the pages of the source that it goes through.
    pub(super) number: u64,
    pub(super) walk: std::collections::VecDeque<usize>,
    pub(super) spawn: u32,
    pub(super) report: TaskReport,
    /// The entries that did not fail, with the digests that relays need.
    pub(super) held: Vec<Row>,
    /// The agent through which it writes, and that one's incarnation.
    pub(super) through: Option<(usize, u64)>,
    pub(super) claims: Claims,
    /// A storage path does not lead to the expected directory.
    pub(super) gone: Option<EntryError>,
    /// The process through which it writes has ended.
    pub(super) unreachable: Option<WorkerId>,
}

/// A slot of an agent.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) doing: Activity,
    pub(super) work: Option<Work>,
    /// The request to repeat; replies to others are ignored.
    pub(super) request: Option<(u64, Event)>,
    pub(super) since: u64,
    /// Only the timer of this number counts.
    pub(super) timer: u64,
}

/// An agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: WorkerId,
    pub(super) host: usize,
    pub(super) mounts: Vec<Mount>,
    pub(super) honesty: Honesty,
    /// It reports entries as copied, and digests, that are not so.
    pub(super) forges: bool,
    pub(super) incarnation: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) polls: u64,
    /// Stopped, as by SIGSTOP, until then.
    pub(super) frozen_until: u64,
    /// Nothing gets through to or from the master until then.
    pub(super) cut_until: u64,
    pub(super) draining: bool,
    pub(super) down: bool,
    pub(super) beat: u64,
    /// The request of the last heartbeat, when it was sent, and what it listed.
    pub(super) beats: BTreeMap<u64, (u64, Vec<AssignmentId>)>,
    /// The last heartbeat of which the reply was obeyed.
    pub(super) last_reply: u64,
}

impl Work {
    /// Whether it may still be worked on.
    pub(super) fn holds_valid_lease(&self, now: u64) -> bool {
        now + MARGIN_MS < self.deadline
    }
}

impl Agent {
    pub(super) fn new(number: usize, host: usize, paths: &[&str], slots: u64) -> Agent {
        let slot = || Slot { doing: Activity::Rest, work: None, request: None, since: 0, timer: 0 };
        Agent {
            name: format!("w{number}").parse().unwrap(),
            host,
            mounts: paths.iter().map(|path| Mount::new(path)).collect(),
            honesty: Honesty::Honest,
            forges: false,
            incarnation: 0,
            slots: (0..slots).map(|_| slot()).collect(),
            polls: 0,
            frozen_until: 0,
            cut_until: 0,
            draining: false,
            down: false,
            beat: 0,
            beats: BTreeMap::new(),
            last_reply: 0,
        }
    }

    /// What it is, for the trace.
    pub(super) fn describe(&self) -> String {
        let mounts = self.mounts.iter().map(|m| format!("{} on {:?}", m.path, m.now));
        let mounts: Vec<String> = mounts.collect();
        let Agent { name, host, incarnation, honesty, .. } = self;
        format!(
            "{name}.{incarnation} begins on host {host}, {honesty:?}, with {}",
            mounts.join(", ")
        )
    }

    /// A new process: nothing is in hand.
    pub(super) fn restart(&mut self) {
        self.incarnation += 1;
        self.draining = false;
        self.frozen_until = 0;
        self.beats.clear();
        self.mounts.iter_mut().for_each(Mount::restart);
        for slot in &mut self.slots {
            (slot.doing, slot.work, slot.request) = (Activity::Rest, None, None);
        }
    }

    pub(super) fn in_hand(&self) -> Vec<AssignmentId> {
        let held = self.slots.iter().filter_map(|slot| slot.work.as_ref());
        held.map(|work| work.a.assignment_id).collect()
    }

    pub(super) fn heartbeat(&self, storages: &Storages) -> WorkerHeartbeat {
        let status = match (self.draining, self.slots.iter().any(|s| s.work.is_some())) {
            (true, _) => WorkerStatus::Draining,
            (false, true) => WorkerStatus::Transferring,
            (false, false) => WorkerStatus::Idle,
        };
        let mut heartbeat = WorkerHeartbeat {
            unavailable_paths: Default::default(),
            unavailable_endpoints: Default::default(),
            root_ids: Default::default(),
            storages: Vec::new(),
            storage_checks: Vec::new(),
            labels: [("rack".to_owned(), (self.host % 2).to_string())].into(),
            worker_id: self.name.clone(),
            status,
            storage_paths: Vec::new(),
            data_plane_endpoints: vec!["127.0.0.1:1".parse().unwrap()],
            timestamp: None,
            control_plane_address: None,
            incarnation: Some(format!("{}-{}", self.name, self.incarnation)),
            boot_id: None,
            free_bytes: BTreeMap::new(),
            assignments: self.in_hand(),
            moved_bytes: Default::default(),
            incoming_requests: 0,
            slots: Some(self.slots.len() as u32),
            agent_version: None,
            protocol: Some(PROTOCOL_VERSION),
            usage: BTreeMap::new(),
            nics: Vec::new(),
            tickets: Vec::new(),
            ended_seen: None,
        };
        storages.describe(self, &mut heartbeat);
        heartbeat
    }

    /// A heartbeat was answered.
    pub(super) fn handle_heartbeat_reply(
        &mut self,
        request: u64,
        reply: &HeartbeatReply,
        lease_ms: u64,
    ) {
        let Some((sent, listed)) = self.beats.remove(&request) else { return };
        for slot in &mut self.slots {
            let Some(work) = &mut slot.work else { continue };
            if reply.revoked_assignments.contains(&work.a.assignment_id) {
                slot.stop_work();
            } else if listed.contains(&work.a.assignment_id) {
                work.deadline = work.deadline.max(sent + lease_ms);
            }
        }
    }
}

impl Slot {
    /// It has nothing to do any more.
    pub(super) fn stop_work(&mut self) {
        (self.doing, self.work, self.request) = (Activity::Rest, None, None);
    }
}

/// What an agent reports of an assignment.
pub(super) fn result_of(work: &Work, success: bool) -> TaskResult {
    result(&work.a, success, work.report.clone())
}
