//! Pages of walks. A page's work is added and the walk's position moved in one step, so that it
//! counts once, whichever worker continues the walk.

use super::phase::PhaseState;
use super::task::{Task, TaskState};
use super::validate::validate_page;
use super::{Now, State};
use crate::wire::entry_report::{EntryAction, Tally};
use crate::wire::outcome::EntryError;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::FailedStep;
use crate::wire::task::{PageAction, PageReply, PruneReport, ScanPage, TaskSpec};
use crate::wire::{AssignmentId, RelPath, SyncNo, TaskId, WorkerId};

/// Maximum number of subtrees that a walk is asked to split off at a time.
const MAX_REQUESTED_SUBTREES: u32 = 16;

const STOP: PageReply = PageReply { action: PageAction::Stop, max_subtrees: 0 };

impl State {
    pub(super) fn handle_page(
        &mut self,
        worker: &WorkerId,
        assignment: AssignmentId,
        page: ScanPage,
        now: Now,
    ) -> Result<PageReply, Problem> {
        let Some(task) = self.leased_task(worker, assignment) else { return Ok(STOP) };
        let Some(lease) = task.lease() else { return Ok(STOP) };
        if task.digest != page.task_digest || !task.is_scan() {
            return Ok(STOP);
        }
        let (id, no, attempt, spec) = (task.id, task.sync, task.attempt, task.spec.clone());
        let is_proven = page.root_identity.is_some() && lease.incarnation.is_some();
        if page.page.checked_add(1) == Some(lease.next_page) {
            // The reply to this page was lost: the page is already counted.
            return Ok(self.continue_walk(id));
        }
        if page.page != lease.next_page {
            return Ok(STOP);
        }
        if let Err(why) = validate_page(&page, &spec) {
            let detail = format!("an invalid page of worker {worker}: {why}");
            return Err(Problem::new(ProblemCode::InvalidPage, detail));
        }
        for receiver in self.scan_receivers(no) {
            if let Some(stop_now) = self.check_source_root(receiver, &page) {
                self.stop_mirror(receiver, stop_now, now);
            }
        }
        let receivers = self.scan_receivers(no);
        if receivers.is_empty() || self.tasks.get(id).is_none() {
            return Ok(STOP);
        }
        // What the agent found before is of all its tasks.
        self.count_integrity_errors(receivers[0], page.integrity_errors);
        for receiver in &receivers {
            self.mark_progress(*receiver, now);
            // Later pages continue a walk that is already counted.
            if page.page == 0 && !is_proven {
                self.count_unverified(*receiver);
            }
        }
        let (next, used_up) = (page.next.clone(), page.allowance_used_up);
        self.apply_page(no, &receivers, &spec, page, |error| error.attribute(worker, attempt));
        receivers.iter().for_each(|receiver| self.mark_changed(*receiver, now));
        if let Some(stop_now) =
            self.syncs.get(no).and_then(|sync| sync.guard_excess_deletions(used_up))
        {
            self.stop_mirror(no, stop_now, now);
            return Ok(STOP);
        }
        let Some(next) = next else {
            self.remove_task(id);
            return Ok(PageReply { action: PageAction::Done, max_subtrees: 0 });
        };
        self.edit_task(id, |task| task.spec = next);
        self.detach_laggards(no, now);
        if let Some(lease) = self.tasks.lease_mut(id) {
            lease.next_page += 1;
            lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
        }
        Ok(self.continue_walk(id))
    }

    /// Applies a page of the walk `spec` of a sync to those that get what it finds.
    fn apply_page(
        &mut self,
        no: SyncNo,
        receivers: &[SyncNo],
        spec: &TaskSpec,
        mut page: ScanPage,
        sign: impl Fn(&mut EntryError),
    ) {
        for item in std::mem::take(&mut page.work) {
            self.add_found_item(no, receivers, item);
        }
        for dir in std::mem::take(&mut page.subtrees) {
            self.add_task(Task::new(no, subtree_spec(spec, dir)));
        }
        page.errors.iter_mut().for_each(sign);
        for receiver in receivers {
            self.record_page(*receiver, page.clone());
        }
    }

    /// Counts and records what a page reports, without the work.
    fn record_page(&mut self, no: SyncNo, page: ScanPage) {
        if let Some(pruned) = page.pruned {
            self.count_extraneous(no, pruned);
        }
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let (all, unlisted) = (page.errors.len() as u64, page.unlisted_dirs);
        match sync.phase {
            PhaseState::Copy => {
                let files = all.saturating_sub(unlisted);
                sync.counters.files_total = sync.counters.files_total.saturating_add(files);
                sync.counters.add_failed(files, 0);
                sync.counters.add_failed_steps(FailedStep::List, unlisted);
            }
            PhaseState::Readback | PhaseState::CopyBlocked => {
                sync.counters.add_failed_steps(FailedStep::ReadBack, all);
            }
            _ => sync.counters.add_failed_steps(FailedStep::Delete, all),
        }
        // Warnings of the read-back pass repeat those of the copy; counted entries are recorded
        // when they are deleted.
        let (noted, recorded) = match sync.phase {
            PhaseState::Readback | PhaseState::CopyBlocked => (false, false),
            PhaseState::CountExtraneous => (true, sync.is_dry_run()),
            _ => (true, true),
        };
        if noted {
            sync.add_metadata_warnings(page.warnings);
        }
        for error in page.errors {
            self.record_failure(no, error, 1, None);
        }
        if recorded {
            self.record_files(no, page.records);
        }
    }

    /// Counts extraneous entries, or deleted ones.
    fn count_extraneous(&mut self, no: SyncNo, pruned: PruneReport) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let tally = Tally { count: pruned.extraneous, bytes: pruned.bytes };
        let counted = sync.phase == PhaseState::CountExtraneous;
        if counted {
            let sum = &mut sync.counters.extraneous;
            sum.checked = sum.checked.saturating_add(pruned.checked);
            sum.extraneous = sum.extraneous.saturating_add(pruned.extraneous);
            sum.bytes = sum.bytes.saturating_add(pruned.bytes);
        }
        if tally.count > 0 && (!counted || sync.is_dry_run()) {
            sync.counters.actions.entry(EntryAction::Delete).or_default().merge(tally);
        }
        if tally.count > 0 && !counted {
            // They were deleted through any of the reachable workers.
            sync.mark_all_unflushed();
        }
    }

    /// Continues a walk, or suspends it while the window is full.
    fn continue_walk(&mut self, id: TaskId) -> PageReply {
        let Some(sync) = self.tasks.get(id).and_then(|t| self.syncs.get(t.sync)) else {
            return STOP;
        };
        if self.scan_window_fill(sync) < 1.0 {
            let ready = self.tasks.sync_tasks(sync.no).ready();
            let ready = ready.at_source.len() + ready.scans.len();
            let most = MAX_REQUESTED_SUBTREES as usize + ready;
            let idle = self.idle_polls(sync).take(most).count().saturating_sub(ready);
            let spawn = u32::try_from(idle).unwrap_or(MAX_REQUESTED_SUBTREES);
            return PageReply { action: PageAction::Continue, max_subtrees: spawn };
        }
        // The next lease is not another attempt.
        self.edit_task(id, |task| task.attempt = task.attempt.saturating_sub(1));
        self.set_task_state(id, TaskState::Ready);
        PageReply { action: PageAction::Pause, max_subtrees: 0 }
    }
}

/// The task for a subtree that the walk `spec` splits off.
fn subtree_spec(spec: &TaskSpec, dir: RelPath) -> TaskSpec {
    match spec {
        TaskSpec::Prune { apply, .. } => TaskSpec::Prune { dir, cursor: None, apply: *apply },
        _ => TaskSpec::Scan { dir, cursor: None },
    }
}
