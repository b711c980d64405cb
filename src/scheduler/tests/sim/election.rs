//! What the simulated masters do with what reaches them: they take in events, commit what was decided,
//! answer, fall, and follow each other.

use super::master::{CommitEnd, Master, Requester};
use super::storage_model::{Row, rows};
use super::store::Writes;
use super::world::{Sim, SimEvent};
use super::*;

/// An event in a few words.
fn describe_event(requester: &Option<Requester>, event: &Event) -> String {
    let from = match requester {
        Some(Requester::Agent(agent, incarnation, request)) => {
            format!("w{agent}.{incarnation} #{request}")
        }
        Some(Requester::Operator(request)) => format!("operator #{request}"),
        None => "no caller".to_owned(),
    };
    let what = match event {
        Event::Submit { request, .. } => format!("submit {:?}", request.request_id),
        Event::Heartbeat(beat) => format!("beat with {} in hand", beat.assignments.len()),
        Event::Poll { poll_id, .. } => format!("poll {poll_id:?}"),
        Event::Page { assignment, page, .. } => format!("page {} of {assignment}", page.page),
        Event::GetManifest { assignment, .. } => format!("manifest of {assignment}"),
        Event::Result(result) => format!(
            "result of {:?} attempt {:?}, {}",
            result.assignment_id, result.attempt, result.success
        ),
        other => format!("{other:?}"),
    };
    format!("{from}: {what}")
}

/// A reply in a few words.
fn describe_reply(reply: &Reply) -> String {
    match reply {
        Reply::Assignment(Some(a)) => format!(
            "{} of {} for {}: {}, task {} attempt {}",
            a.assignment_id,
            a.request_id,
            a.worker_id,
            a.task.kind(),
            a.task_id,
            a.attempt
        ),
        Reply::Heartbeat(reply) => format!("drop {:?}", reply.revoked_assignments),
        Reply::Progress(progress) => format!("{} is {:?}", progress.request_id, progress.state),
        Reply::Syncs(_) | Reply::Workers(_) => "a list".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Sums up what was decided: the same seed must give the same.
fn fold_effects(digest: u64, effects: &[Effect]) -> u64 {
    let mut sum = digest;
    for effect in effects {
        let word = match effect {
            Effect::WriteRecord(key) => blake3::hash(key.as_bytes()),
            Effect::Reply(_, Reply::Assignment(Some(a))) => blake3::hash(&a.assignment_id.0),
            Effect::Reply(_, Reply::Result(reply)) => {
                blake3::hash(format!("{:?}", reply.outcome).as_bytes())
            }
            _ => continue,
        };
        let word = u64::from_le_bytes(word.as_bytes()[..8].try_into().unwrap());
        sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
    sum
}

impl Sim {
    /// A request reaches a master: the one that rules or the one that ruled.
    pub(super) fn deliver(&mut self, requester: Requester, event: Event) {
        let to_old = self.deposed.is_some() && self.chance.permille(300);
        let master = if to_old { self.deposed.take() } else { self.master.take() };
        let Some(mut master) = master else { return };
        if master.asleep_until > self.time {
            // It is read when the master wakes.
            let after = master.asleep_until - self.time + 1;
            self.schedule(after, SimEvent::Request(requester, event));
        } else if master.stuck.is_none() {
            self.apply(&mut master, Some(requester), event, to_old);
            // Several events may share a commit; the next tick ends it at the latest.
            if self.calm || self.chance.permille(800) {
                return self.settle(master, to_old);
            }
        }
        self.return_master(master, to_old);
    }

    fn return_master(&mut self, master: Master, old: bool) {
        if old { self.deposed = Some(master) } else { self.master = Some(master) }
    }

    /// A master takes in an event.
    fn apply(
        &mut self,
        master: &mut Master,
        requester: Option<Requester>,
        event: Event,
        old: bool,
    ) {
        let before = self.judge.before(&master.state, &event);
        self.trace(|_| {
            format!("{}{}", if old { "deposed: " } else { "" }, describe_event(&requester, &event))
        });
        let caller = requester.map(|requester| master.caller(requester));
        let now = self.now();
        let effects = master.state.apply(event, caller, now);
        self.digest = fold_effects(self.digest, &effects);
        for effect in &effects {
            if let Effect::Reply(_, reply) = effect {
                self.trace(|_| format!("       decides {}", describe_reply(reply)));
            }
        }
        let mut judge = std::mem::take(&mut self.judge);
        judge.after(before, &effects, &master.state, self, old);
        self.judge = judge;
        master.queue_effects(effects);
    }

    /// A master commits what it decided, and answers.
    pub(super) fn settle(&mut self, mut master: Master, old: bool) {
        if self.store_down {
            return self.return_master(master, old);
        }
        self.write_lines(&mut master, old);
        let writes = master.writes();
        if !self.calm && !old && !writes.is_empty() {
            match self.chance.below(1000) {
                0 => return self.crash("before its commit"),
                1 => {
                    let ended = master.commit(&writes, &mut self.store, &mut self.lists);
                    if matches!(ended, CommitEnd::Done(_)) {
                        self.judge.stored(&master.state, &self.store);
                    }
                    return self.crash("behind its commit");
                }
                2..5 => return self.store_stuck(master, writes),
                _ => {}
            }
        }
        let ended = master.commit(&writes, &mut self.store, &mut self.lists);
        self.ended(master, ended, old);
    }

    /// Writes file records; if a file is gone, the state is informed.
    fn write_lines(&mut self, master: &mut Master, old: bool) {
        // A deposed master writes to a spool of its own.
        let mut own = if old { self.lists.clone() } else { BTreeMap::new() };
        for sync in master.write_lines(if old { &mut own } else { &mut self.lists }) {
            assert!(old || self.judge.forgetful, "I13: a gap in the list of sync {sync}");
            self.apply(
                master,
                None,
                Event::FileRecordsLost { sync, reason: "gone".to_owned() },
                old,
            );
        }
    }

    fn ended(&mut self, mut master: Master, ended: CommitEnd, old: bool) {
        let replies = match ended {
            CommitEnd::Done(replies) => replies,
            CommitEnd::Deposed => {
                assert!(old, "the one that rules was refused");
                return self.trace(|_| "the deposed master learns that it is".to_owned());
            }
            CommitEnd::Lost => {
                self.trace(|_| "the store lost data: all is written back".to_owned());
                self.judge.restarted();
                self.apply(&mut master, None, Event::StoreLost, old);
                self.write_lines(&mut master, old);
                let ended = master.write_back(&mut self.store, &mut self.lists);
                return self.ended(master, ended, old);
            }
        };
        if !old && !master.reads.is_empty() {
            self.schedule(1, SimEvent::Read(master.epoch));
        }
        if !old && master.seq == self.store.seq {
            self.judge.stored(&master.state, &self.store);
        }
        for (requester, reply) in replies {
            if !old {
                self.judge.check_reply(&reply, &master.state, &self.store);
                if let Reply::Submitted(submitted) = &reply {
                    let number = self.number(&submitted.request_id) as usize;
                    self.wishes[number].acknowledged = true;
                }
            }
            self.reply(requester, reply);
        }
        self.return_master(master, old);
    }

    /// A commit stays without an answer: it may have taken effect or not.
    fn store_stuck(&mut self, mut master: Master, writes: Writes) {
        let applied = self.chance.permille(500);
        if applied {
            self.store.commit(master.epoch, master.seq, &writes).ok();
        }
        self.trace(|_| format!("the store falls silent, commit applied: {applied}"));
        master.stuck = Some((writes, applied));
        self.store_down = true;
        self.master = Some(master);
        let ms = self.chance.within(10, 20_000);
        self.schedule(ms, SimEvent::StoreUp);
    }

    /// The store answers again.
    pub(super) fn restore_store(&mut self) {
        if !std::mem::take(&mut self.store_down) {
            return;
        }
        self.trace(|_| "the store is back".to_owned());
        let Some(mut master) = self.master.take() else { return };
        let Some((writes, applied)) = master.stuck.take() else {
            return self.settle(master, false);
        };
        let known = applied && self.store.epoch == master.epoch && self.store.seq == master.seq + 1;
        let ended = if known {
            master.seq = self.store.seq;
            CommitEnd::Done(master.replies(&mut self.lists))
        } else {
            master.commit(&writes, &mut self.store, &mut self.lists)
        };
        self.ended(master, ended, false);
    }

    /// The master dies. Another one comes.
    pub(super) fn crash(&mut self, when: &str) {
        self.trace(|_| format!("the master dies {when}"));
        self.master = None;
        // What it wrote last to its lists may be anything.
        self.lists.values_mut().for_each(|list| list.extend(b"{\"path"));
        let ms = self.chance.within(10, 15_000);
        self.schedule(ms, SimEvent::Term);
    }

    /// A new master loads the store.
    pub(super) fn elect_master(&mut self) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.chance.next().to_le_bytes());
        self.store.epoch += 1;
        let (settings, now) = (self.settings.clone(), self.now());
        let state = State::load(settings, seed, &self.store.records, now).expect("what was stored");
        let master = Master::new(state, &self.store);
        self.trace(|sim| format!("a master begins with commit {}", sim.store.seq));
        if self.judge.check_loaded(&master.state, &self.store) {
            self.wishes.iter_mut().for_each(|wish| wish.acknowledged = false);
        }
        self.acknowledged_are_known(&master.state);
        self.master = Some(master);
        self.apply_event(Event::Tick);
    }

    /// The leader applies an event without a caller.
    pub(super) fn apply_event(&mut self, event: Event) {
        let Some(mut master) = self.master.take() else { return };
        if master.stuck.is_some() || master.asleep_until > self.time {
            return self.master = Some(master);
        }
        self.apply(&mut master, None, event, false);
        self.settle(master, false);
    }

    /// The master of an epoch reads the manifests that its state requested.
    pub(super) fn answer_entry_reads(&mut self, epoch: u64) {
        let Some(mut master) = self.master.take() else { return };
        let busy = master.stuck.is_some() || master.asleep_until > self.time || self.store_down;
        if master.epoch != epoch || busy {
            if master.epoch == epoch {
                self.schedule(1_000, SimEvent::Read(epoch));
            }
            return self.master = Some(master);
        }
        for (task, key) in std::mem::take(&mut master.reads) {
            let entries = self.entries(&master.state, task, &key);
            self.apply(&mut master, None, Event::ManifestEntries { task, entries }, false);
        }
        self.settle(master, false);
    }

    /// The entries of a manifest of the model.
    fn entries(&self, state: &State, task: TaskId, key: &str) -> Vec<SingleEntry> {
        let Some(sync) = state.tasks.get(task).map(|task| &state.syncs[&task.sync]) else {
            return vec![];
        };
        let tree = self.tree_of(&sync.request.source_path);
        let manifest = self.store.blobs.get(key).map_or(&[][..], Vec::as_slice);
        let single = |row: Row| SingleEntry {
            path: BytePath(format!("{}", row.id).into_bytes()),
            item: self.trees[tree].batch_of(&[row]),
        };
        rows(manifest).into_iter().map(single).collect()
    }

    pub(super) fn tick(&mut self) {
        self.schedule(1_000, SimEvent::Tick);
        if let Some(mut old) = self.deposed.take() {
            if old.until > self.time {
                self.apply(&mut old, None, Event::Tick, true);
                self.settle(old, true);
            } else {
                self.trace(|_| "the deposed master stops".to_owned());
            }
        }
        self.apply_event(Event::Tick);
        self.renew();
    }

    /// A master without work looks whether the store is where it left it.
    fn renew(&mut self) {
        let behind = |m: &Master| m.asleep_until <= self.time && m.seq != self.store.seq;
        if self.store_down || !self.master.as_ref().is_some_and(behind) {
            return;
        }
        if self.master.as_ref().is_some_and(|m| m.stuck.is_some()) {
            return;
        }
        let Some(mut master) = self.master.take() else { return };
        let all = master.state.record_keys().into_iter().map(Effect::WriteRecord).collect();
        master.queue_effects(all);
        self.settle(master, false);
    }
}
