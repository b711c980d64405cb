//! What a slot of a simulated agent does next.

use super::agent::{Activity, POLL_MS, REPEAT_MS, result_of};
use super::world::Sim;
use super::*;
use crate::wire::task::PageReply;

impl Sim {
    /// The timer of a slot ran out.
    pub(super) fn run_slot(&mut self, agent: usize, slot: usize) {
        let doing = self.agents[agent].slots[slot].doing;
        if doing != Activity::Report && self.is_too_late(agent, slot) {
            return;
        }
        let a = &mut self.agents[agent];
        match doing {
            Activity::Rest if a.draining => self.timer_in(agent, slot, 1_000),
            Activity::Rest => {
                a.polls += 1;
                let incarnation = format!("{}-{}", a.name, a.incarnation);
                let poll = Event::Poll {
                    worker: a.name.clone(),
                    poll_id: Some(format!("{incarnation}-{}", a.polls)),
                    incarnation: Some(incarnation),
                    wait_ms: POLL_MS,
                };
                self.send_request(agent, slot, Activity::Poll, poll);
            }
            Activity::Poll | Activity::Manifest | Activity::Page | Activity::Report => {
                match a.slots[slot].request.take() {
                    Some((_, event)) => self.send_request(agent, slot, doing, event),
                    None => {
                        a.slots[slot].stop_work();
                        self.timer_in(agent, slot, REPEAT_MS);
                    }
                }
            }
            Activity::Begun | Activity::Half => self.work_on(agent, slot, doing == Activity::Half),
        }
    }

    /// A half of the work is done; then it is reported.
    fn work_on(&mut self, agent: usize, slot: usize, second: bool) {
        let Some(mut work) = self.agents[agent].slots[slot].work.take() else { return };
        if self.is_poisoned(&work) {
            self.trace(|sim| format!("{} dies of what it copies", sim.agents[agent].name));
            let ms = self.work_duration_ms();
            return self.kill(agent, ms);
        }
        let back = self.agents[agent].draining && self.chance.permille(500);
        let writes = matches!(work.a.task, TaskSpec::Range { compare: false, .. }) && second;
        let fails = !self.calm && !self.chance.permille(990);
        // One that stops in the middle of a range has written of it.
        let ran = (!back && !fails || writes) && self.execute(&mut work, second);
        let done = ran && !back && !fails;
        work.report.returned = back;
        if !done {
            // A task that failed as a whole reports only its writers.
            let wrote = std::mem::take(&mut work.report.writers);
            work.report = TaskReport { returned: back, writers: wrote, ..TaskReport::default() };
            work.report.failures.extend(work.gone.take());
            work.report.unreachable.extend(work.unreachable.take());
        }
        let result = result_of(&work, done);
        self.agents[agent].slots[slot].work = Some(work);
        if done && !second {
            self.agents[agent].slots[slot].doing = Activity::Half;
            let ms = self.work_duration_ms();
            return self.timer_in(agent, slot, ms);
        }
        self.send_request(agent, slot, Activity::Report, Event::Result(result));
    }

    /// How long a half of a task takes.
    fn work_duration_ms(&mut self) -> u64 {
        match self.chance.below(if self.calm { 20 } else { 40 }) {
            39 => self.chance.within(10_000, 50_000),
            30.. => self.chance.within(500, 3_000),
            _ => self.chance.within(1, 300),
        }
    }

    /// An assignment came.
    pub(super) fn prepare(&mut self, agent: usize, slot: usize) {
        let worker = self.agents[agent].name.clone();
        let Some(work) = &self.agents[agent].slots[slot].work else { return };
        if work.a.task.has_manifest() {
            let assignment = work.a.assignment_id;
            return self.send_request(
                agent,
                slot,
                Activity::Manifest,
                Event::GetManifest { worker, assignment },
            );
        }
        self.begin_work(agent, slot);
    }

    /// Whether a slot must drop its work: a reply came after the end of its lease.
    fn is_too_late(&mut self, agent: usize, slot: usize) -> bool {
        let now = self.time;
        let s = &mut self.agents[agent].slots[slot];
        let late = s.work.as_ref().is_some_and(|work| !work.holds_valid_lease(now));
        if late {
            s.stop_work();
            self.timer_in(agent, slot, 100);
        }
        late
    }

    fn begin_work(&mut self, agent: usize, slot: usize) {
        if self.is_too_late(agent, slot) {
            return;
        }
        let Some(mut work) = self.agents[agent].slots[slot].work.take() else { return };
        let itself = (agent, self.agents[agent].incarnation);
        let relays_same_path =
            work.a.relay.as_ref().is_some_and(|relay| relay.path == work.a.destination_path);
        let mut members = work.a.destination_workers.clone();
        if relays_same_path {
            // There it has the copy, and not the destination.
            members.retain(|member| member.worker_id != self.agents[agent].name);
        }
        let at = self.chance.below(members.len() as u64) as usize;
        let other = members.get(at).map(|m| m.worker_id.clone());
        let other = self.agents.iter().position(|a| Some(&a.name) == other.as_ref());
        let here = members.iter().any(|member| member.worker_id == self.agents[agent].name);
        let alone =
            matches!(work.a.task, TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::Flush);
        work.through = match other {
            Some(other) if !(here && (alone || self.chance.permille(500))) => {
                Some((other, self.agents[other].incarnation))
            }
            _ => here.then_some(itself),
        };
        let walk = self.walk(&work.a, &work.manifest);
        let walks = walk.is_some();
        work.walk = walk.unwrap_or_default().into();
        self.agents[agent].slots[slot].work = Some(work);
        if walks {
            return self.post(agent, slot);
        }
        self.agents[agent].slots[slot].doing = Activity::Begun;
        let ms = self.work_duration_ms();
        self.timer_in(agent, slot, ms);
    }

    fn post(&mut self, agent: usize, slot: usize) {
        if self.is_too_late(agent, slot) {
            return;
        }
        let worker = self.agents[agent].name.clone();
        let Some(mut work) = self.agents[agent].slots[slot].work.take() else { return };
        let assignment = work.a.assignment_id;
        let page = self.next_page(&mut work);
        work.report.failures.extend(work.gone.take());
        work.report.unreachable.extend(work.unreachable.take());
        let result = result_of(&work, false);
        self.agents[agent].slots[slot].work = Some(work);
        match page {
            Some(page) => {
                self.send_request(
                    agent,
                    slot,
                    Activity::Page,
                    Event::Page { worker, assignment, page },
                );
            }
            None => self.send_request(agent, slot, Activity::Report, Event::Result(result)),
        }
    }

    /// The reply to a request of a slot.
    pub(super) fn handle_slot_reply(&mut self, agent: usize, slot: usize, reply: Reply) {
        let s = &mut self.agents[agent].slots[slot];
        match (s.doing, reply) {
            (Activity::Poll, Reply::Assignment(Some(a))) => return self.start_work(agent, slot, a),
            (Activity::Manifest, Reply::ManifestKey(key)) => {
                let manifest = self.store.blobs.get(&key).cloned();
                if let (Some(work), Some(manifest)) = (&mut s.work, manifest) {
                    work.manifest = manifest;
                    return self.begin_work(agent, slot);
                }
                s.stop_work();
            }
            (
                Activity::Page,
                Reply::Page(PageReply { action: PageAction::Continue, max_subtrees: spawn }),
            ) => {
                if let Some(work) = &mut s.work {
                    work.number += 1;
                    work.spawn = spawn;
                    return self.post(agent, slot);
                }
            }
            (Activity::Report, Reply::Result(reply)) => {
                let is_applied = reply.outcome == Some(ResultOutcome::Applied);
                if let Some(work) = s.work.take().filter(|_| is_applied) {
                    self.judge.note_held(&work, self.time);
                }
                self.agents[agent].slots[slot].stop_work();
            }
            (Activity::Page, Reply::Refused(problem)) => {
                panic!("I6: an honest page was refused: {}", problem.detail);
            }
            _ => s.stop_work(),
        }
        let ms = self.chance.within(1, 100);
        self.timer_in(agent, slot, ms);
    }
}
