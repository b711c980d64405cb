//! The report on a sync that has ended: one line of result (a table after a dry run), warnings, then the failures grouped
//! by cause, each with the next step.

use super::destinations::{complete_count, incomplete_lines};
use super::exit::{Exit, root_error};
use super::sanitize::sanitize;
use super::sync_text::{
    duration_between, effective_rate, failed_steps_text, outcome_label, readback_text, sent_text,
};
use super::table_layout::{Column, render_table};
use crate::util::units;
use crate::wire::BytePath;
use crate::wire::entry_report::{EntryAction, EntryWarning, Tally};
use crate::wire::errno::errno_text;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::path::escape_bytes;
use crate::wire::sync::SyncProgress;
use std::collections::BTreeMap;

/// Less frequent causes are only counted.
const MAX_FAILURE_GROUPS: usize = 10;
const MAX_PATHS_PER_GROUP: usize = 3;

/// The line of result, e.g.
/// `run42  COMPLETED  6.1 TiB in 9m01s, effective 11.6 GiB/s; 150,329 copied, 0 skipped, 0 failed`; for a dry run a table
/// of the actions.
pub(super) fn result_text(sync: &SyncProgress) -> String {
    let (id, state) = (&sync.request_id, sync.state.as_str());
    let state = outcome_label(sync).map_or(state.to_owned(), |label| format!("{state} ({label})"));
    let took = sync.started_at.zip(sync.ended_at).map(|(start, end)| duration_between(start, end));
    let took = took.map(|took| format!(" in {}", units::format_duration(took))).unwrap_or_default();
    if sync.options.dry_run {
        let actions = action_table(sync);
        return format!("{id}  DRY RUN, nothing was changed  {state}{took}\n{actions}");
    }
    let mut line = format!("{id}  {state}  {}{took}", units::format_bytes(sync.transferred_bytes));
    if let Some(rate) = effective_rate(sync) {
        line.push_str(&format!(", effective {}", units::format_rate(rate)));
    }
    if let Some(sent) = sent_text(sync) {
        line.push_str(&format!(" ({sent})"));
    }
    line.push_str(&format!("; {} copied", units::format_count(sync.files_done)));
    line.push_str(&format!(", {} skipped", units::format_count(sync.files_skipped)));
    let repaired = action_tally(sync, EntryAction::Metadata).count;
    if repaired > 0 {
        let entries = units::pluralize(repaired, "entry", "entries");
        line.push_str(&format!(" ({entries} with metadata repaired)"));
    }
    if let Some(delete) = &sync.options.delete {
        let count = units::format_count(action_tally(sync, EntryAction::Delete).count);
        line.push_str(&match &delete.trash {
            Some(trash) => format!(", {count} moved to {}", escape_bytes(trash.as_bytes())),
            None => format!(", {count} deleted"),
        });
    }
    line.push_str(&format!(
        ", {} failed",
        units::format_count(sync.files_failed + sync.dirs_failed)
    ));
    if let Some(steps) = failed_steps_text(sync) {
        line.push_str(&format!(", {steps}"));
    }
    if let Some(readback) = readback_text(sync) {
        line.push_str(&format!("; {readback}"));
    }
    if let Some((complete, all)) = complete_count(sync) {
        line.push_str(&format!("; {complete} of {all} destinations complete"));
    }
    if sync.unverified > 0 {
        let tasks = units::pluralize(sync.unverified, "task", "tasks");
        line.push_str(&format!(", {tasks} unverified"));
    }
    line
}

/// The actions of a dry run, including those that would not be taken.
fn action_table(sync: &SyncProgress) -> String {
    use EntryAction::{Create, Delete, Metadata, Skip, Update};
    let rows = [Create, Update, Metadata, Delete, Skip].into_iter().map(|action| {
        let tally = action_tally(sync, action);
        let (count, bytes) = (units::format_count(tally.count), units::format_bytes(tally.bytes));
        vec![action.as_str().to_owned(), count, bytes]
    });
    render_table(&["WOULD", "ENTRIES", "SIZE"].map(Column::new), rows.collect(), None)
}

fn action_tally(sync: &SyncProgress, action: EntryAction) -> Tally {
    sync.actions.get(&action).copied().unwrap_or_default()
}

/// The number of transfers that arrived corrupted, if any.
fn corruption_note(sync: &SyncProgress) -> Option<String> {
    let (times, each) = match sync.integrity_errors {
        0 => return None,
        1 => ("once".to_owned(), "it was"),
        n => (format!("{} times", units::format_count(n)), "each was"),
    };
    Some(format!(
        "  note: data arrived corrupted {times}; {each} detected and sent again (the log says where)"
    ))
}

/// Warnings, which are no failures, one line per cause.
pub(super) fn note_lines(sync: &SyncProgress) -> Vec<String> {
    let line = |(cause, warning): (&String, &EntryWarning)| {
        let entries = units::pluralize(warning.count, "entry", "entries");
        let example = match warning.paths.first() {
            Some(path) if path.0.is_empty() => "     e.g. .".to_owned(),
            Some(path) => format!("     e.g. {path}"),
            None => String::new(),
        };
        format!("  note: {entries}: {}{example}", sanitize(cause))
    };
    sync.warnings.iter().map(line).chain(corruption_note(sync)).collect()
}

/// Commands to type after failures.
#[derive(Debug)]
pub(super) struct NextSteps {
    /// Runs the same sync again.
    pub(super) rerun: String,
    /// Lists the deletions of a mirror without a change.
    pub(super) preview_deletions: String,
    pub(super) list_failures: String,
}

/// The failures and the next step; empty for a sync that ended well.
pub(super) fn problem_lines(sync: &SyncProgress, exit: Exit, next: &NextSteps) -> Vec<String> {
    let code = exit.code();
    if matches!(exit, Exit::Ok | Exit::NoTransfer) {
        // A dry run can have a reason that would stop the real run.
        let reason = sync.reason.iter().map(|reason| format!("  note: {}", sanitize(reason)));
        let no_transfer = (exit == Exit::NoTransfer)
            .then(|| format!("  nothing was transferred   (exit {code})"));
        return reason.chain(no_transfer).collect();
    }
    let mut lines = failure_lines(sync, &next.list_failures);
    let destinations = incomplete_lines(sync);
    if !destinations.is_empty() {
        lines.push("  destinations that are not complete:".to_owned());
        lines.extend(destinations.into_iter().map(|line| format!("    {line}")));
    }
    // An error of SRC or DST itself is printed already.
    let printed = root_error(sync).map(|error| &error.message);
    if let Some(reason) = sync.reason.as_ref().filter(|reason| printed != Some(*reason)) {
        lines.push(format!("  reason: {}", sanitize(reason)));
    }
    let advice = match exit {
        Exit::Cancelled => {
            format!("copied files stay; to continue: {} (they are skipped)", next.rerun)
        }
        // The reason says what was done and which option allows the rest.
        Exit::DeleteStopped | Exit::CopyStopped => {
            format!("to preview deletions: {}", next.preview_deletions)
        }
        _ => next_step_advice(group_failures(sync).last().map(|g| g.first.class), &next.rerun),
    };
    lines.push(format!("  {advice}   (exit {code})"));
    lines
}

/// The failures by cause with hints, the most frequent one last. If not all are listed, counts and the command
/// `list_failures` follow.
pub(super) fn failure_lines(sync: &SyncProgress, list_failures: &str) -> Vec<String> {
    let hint_of =
        |e: &EntryError| e.hint.as_ref().map(|hint| format!("    hint: {}", sanitize(hint)));
    if let Some(error) = root_error(sync) {
        let worker = error.worker_id.as_ref().map(|w| format!(" (worker {w})")).unwrap_or_default();
        let line = format!("  error: {}{worker}", sanitize(&error.message));
        return [line].into_iter().chain(hint_of(error)).collect();
    }
    let mut lines = Vec::new();
    let groups = group_failures(sync);
    let hidden = groups.len().saturating_sub(MAX_FAILURE_GROUPS);
    if hidden > 0 {
        let causes = units::pluralize(hidden as u64, "more cause", "more causes");
        lines.push(format!("  error: {causes}, less frequent than these:"));
    }
    for group in &groups[hidden..] {
        lines.push(group.to_line());
        lines.extend(hint_of(group.first));
    }
    let (listed, all) = (sync.errors.len() as u64, sync.error_counts.values().sum::<u64>());
    if all > listed {
        let [listed, all] = [listed, all].map(units::format_count);
        lines.push(format!("  listed: {listed} of {all} failures; all by cause:"));
        for (cause, n) in &sync.error_counts {
            lines.push(format!("    {:>10}  {}", units::format_count(*n), sanitize(cause)));
        }
        lines.push(format!("  all by name: {list_failures}"));
    }
    lines
}

/// Failures with the same cause, operation, worker and hint.
struct FailureGroup<'a> {
    first: &'a EntryError,
    cause: String,
    paths: Vec<String>,
    count: usize,
}

impl FailureGroup<'_> {
    fn to_line(&self) -> String {
        let worker = self.first.worker_id.as_ref().map(|w| format!("{w}, ")).unwrap_or_default();
        let more = match self.count - self.paths.len() {
            0 => String::new(),
            n => format!("  … {} more", units::format_count(n as u64)),
        };
        format!(
            "  error: {}: {} ({worker}{})     {}{more}",
            units::pluralize(self.count as u64, "entry", "entries"),
            self.cause,
            sanitize(&self.first.action()),
            self.paths.join("  "),
        )
    }
}

/// The most frequent cause last, where it is nearest to the prompt.
fn group_failures(sync: &SyncProgress) -> Vec<FailureGroup<'_>> {
    let mut groups = BTreeMap::new();
    for e in &sync.errors {
        let cause = cause_text(e);
        let key = (cause.clone(), e.action(), &e.worker_id, &e.hint);
        let group = groups.entry(key).or_insert_with(|| FailureGroup {
            first: e,
            cause,
            paths: Vec::new(),
            count: 0,
        });
        group.count += 1;
        if group.paths.len() < MAX_PATHS_PER_GROUP {
            group.paths.push(full_path(sync, e));
        }
    }
    let mut groups: Vec<FailureGroup<'_>> = groups.into_values().collect();
    groups.sort_by_key(|group| group.count);
    groups
}

/// The description of the errno, or the message.
fn cause_text(e: &EntryError) -> String {
    let text = match (&e.errno, e.os_error()) {
        (Some(name), Some(errno)) => format!("{} [{name}]", errno_text(errno)),
        (Some(name), None) => format!("{name}: {}", e.message),
        (None, _) => e.message.clone(),
    };
    sanitize(&text)
}

/// The absolute path on the side of the failure.
fn full_path(sync: &SyncProgress, e: &EntryError) -> String {
    let root = match e.side {
        Some(Side::Destination | Side::Relay) => &sync.destination_path,
        _ => &sync.source_path,
    };
    let mut path = root.as_bytes().to_vec();
    if !e.path.0.is_empty() {
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(&e.path.0);
    }
    BytePath(path).to_string()
}

/// How to continue after failures of which most have this class; their hints say what to do before.
fn next_step_advice(class: Option<ErrorClass>, rerun: &str) -> String {
    match class {
        Some(ErrorClass::Vanished) => format!(
            "only files that were removed or changed while the sync ran are missing; if that was not meant: {rerun}"
        ),
        Some(ErrorClass::Changed) => {
            format!("they changed each time they were copied; when they no longer change: {rerun}")
        }
        Some(ErrorClass::InvalidRequest) => {
            "the request can't be carried out as it is; correct it as the error says, and submit it again".to_owned()
        }
        Some(ErrorClass::Permanent | ErrorClass::StorageGone | ErrorClass::Damaged) => {
            format!("fix the error above, then: {rerun} (files already copied are skipped)")
        }
        Some(ErrorClass::Transient) | None => {
            format!("to try again: {rerun} (files already copied are skipped)")
        }
    }
}

#[cfg(test)]
mod tests;
