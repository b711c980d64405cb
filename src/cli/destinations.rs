//! The destinations of a sync with several of them: one line for each, the slowest first, the rest folded into one.

use super::sanitize::sanitize;
use super::sync_text::{first_names, or_dash, outcome_text, percent_of};
use super::table_layout::{Column, render_table};
use crate::util::units;
use crate::wire::sync::{DestinationProgress, SyncOutcome, SyncProgress, SyncState};
use std::collections::BTreeMap;

/// More destinations are folded into one line.
const MAX_LISTED: usize = 8;
/// More workers of one storage are only counted.
const MAX_WORKERS: usize = 2;

/// How many destinations are complete, and how many there are; `None` for a sync with a single one.
pub(super) fn complete_count(sync: &SyncProgress) -> Option<(usize, usize)> {
    let complete = sync.destinations.iter().filter(|one| is_complete(one)).count();
    (!sync.destinations.is_empty()).then_some((complete, sync.destinations.len()))
}

fn is_complete(one: &DestinationProgress) -> bool {
    let is_full = matches!(one.outcome, None | Some(SyncOutcome::Full));
    one.state == SyncState::Completed && is_full && one.failures == 0
}

/// The destinations that lack something; all of them until the sync has ended.
pub(super) fn incomplete_lines(sync: &SyncProgress) -> Vec<String> {
    let rest: Vec<&DestinationProgress> =
        sync.destinations.iter().filter(|one| !is_complete(one)).collect();
    lines_of(&rest, sync.scan_done)
}

/// A line for each destination, in the order of the document (the slowest first).
pub(super) fn destination_lines(sync: &SyncProgress) -> Vec<String> {
    lines_of(&sync.destinations.iter().collect::<Vec<_>>(), sync.scan_done)
}

fn lines_of(all: &[&DestinationProgress], scan_done: bool) -> Vec<String> {
    let (listed, folded) = all.split_at(all.len().min(MAX_LISTED));
    // Aligned as a table without its header.
    let rows = listed.iter().map(|one| destination_row(one, scan_done)).collect();
    let table = render_table(&[""; 7].map(Column::new), rows, None);
    let mut lines: Vec<String> = table.lines().skip(1).map(str::to_owned).collect();
    lines.extend((!folded.is_empty()).then(|| folded_line(folded, scan_done)));
    lines
}

fn destination_row(one: &DestinationProgress, scan_done: bool) -> Vec<String> {
    let bound = if scan_done { "" } else { "≥" };
    let state = one.state.as_str();
    let outcome = one.outcome.and_then(outcome_text);
    let [done, total] =
        [one.transferred_bytes + one.bytes_skipped, one.total_bytes].map(units::format_bytes);
    let [files, files_total] =
        [one.files_done + one.files_skipped, one.files_total].map(units::format_count);
    let failed = match one.failures {
        0 => String::new(),
        n => format!(", {} failed", units::format_count(n)),
    };
    vec![
        destination_name(one),
        outcome.map_or(state.to_owned(), |outcome| format!("{state} ({outcome})")),
        or_dash(percent(one, scan_done).map(|percent| format!("{percent:.0} %"))),
        format!("{done} / {bound}{total}"),
        or_dash(one.rate.map(|rate| units::format_rate(rate as f64))),
        format!("files {files} / {bound}{files_total}{failed}"),
        one.reason.as_deref().map(sanitize).unwrap_or_default(),
    ]
}

/// The worker, or the storage where several workers see it.
fn destination_name(one: &DestinationProgress) -> String {
    match one.workers.as_slice() {
        [worker] => worker.to_string(),
        [] => one.storage_id.to_string(),
        workers => format!("{} ({})", one.storage_id, first_names(workers, MAX_WORKERS, ",")),
    }
}

/// Rounded down: 99.9 must not be shown as 100.
fn percent(one: &DestinationProgress, scan_done: bool) -> Option<f64> {
    let bytes = (one.transferred_bytes + one.bytes_skipped, one.total_bytes);
    let files = (one.files_done + one.files_skipped, one.files_total);
    percent_of(scan_done, is_complete(one), bytes, files).map(f64::floor)
}

/// E.g. `and 56 more: 50 PROGRESS 61 %…, 6 COMPLETED`, with the least progress of each state that has not ended.
fn folded_line(folded: &[&DestinationProgress], scan_done: bool) -> String {
    let mut states: BTreeMap<(bool, &str), Vec<&DestinationProgress>> = BTreeMap::new();
    for one in folded {
        states.entry((one.state.is_final(), one.state.as_str())).or_default().push(one);
    }
    let describe = |((is_final, state), of_state): ((bool, &str), Vec<&DestinationProgress>)| {
        let count = units::format_count(of_state.len() as u64);
        let least = of_state.iter().filter_map(|one| percent(one, scan_done)).reduce(f64::min);
        match least.filter(|_| !is_final) {
            Some(least) => format!("{count} {state} {least:.0} %…"),
            None => format!("{count} {state}"),
        }
    };
    let states: Vec<String> = states.into_iter().map(describe).collect();
    let count = units::format_count(folded.len() as u64);
    format!("and {count} more: {}", states.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixtures::{self, destination};

    fn sync(destinations: Vec<DestinationProgress>) -> SyncProgress {
        let state = SyncState::Progress;
        SyncProgress { state, scan_done: true, destinations, ..fixtures::sync("x") }
    }

    #[test]
    fn each_destination_has_a_line_with_the_worker_or_the_storage() {
        let mut shared = destination("gpu-1", SyncState::Progress, 50);
        shared.workers = ["a", "b", "c"].map(|id| id.parse().unwrap()).to_vec();
        let mut failed = destination("gpu-2", SyncState::Failed, 99);
        failed.outcome = Some(SyncOutcome::Partial);
        failed.failures = 2;
        failed.reason = Some("no\x1b space".into());
        let done = destination("gpu-3", SyncState::Completed, 100);
        let found = sync(vec![shared, failed, done]);
        assert_eq!(
            destination_lines(&found),
            [
                "s-gpu-1 (a,b,+1)  PROGRESS          50 %   50 B / 100 B   1.0 MiB/s  files 5 / 10",
                "gpu-2             FAILED (partial)  99 %   99 B / 100 B   -          files 9 / 10, 2 failed  no\\#033 space",
                "gpu-3             COMPLETED         100 %  100 B / 100 B  -          files 10 / 10",
            ]
        );
        assert_eq!(complete_count(&found), Some((1, 3)));
        assert_eq!(incomplete_lines(&found).len(), 2);
        assert_eq!(complete_count(&fixtures::sync("x")), None);
    }

    #[test]
    fn more_than_eight_destinations_are_folded_by_state() {
        let of = |state, percent, n: usize| {
            (0..n).map(move |i| destination(&format!("w{i}"), state, percent + i as u64))
        };
        let slow = of(SyncState::Progress, 20, 8);
        let all: Vec<_> = slow
            .chain(of(SyncState::Progress, 61, 30))
            .chain(of(SyncState::Completed, 100, 6))
            .collect();
        let lines = destination_lines(&sync(all));
        assert_eq!(lines.len(), 9);
        assert!(lines[0].starts_with("w0  PROGRESS  20 %"), "{}", lines[0]);
        assert_eq!(lines[8], "and 36 more: 30 PROGRESS 61 %…, 6 COMPLETED");
    }

    #[test]
    fn there_is_no_percentage_during_the_scan() {
        let scanning = SyncProgress {
            scan_done: false,
            ..sync((0..9).map(|i| destination(&format!("w{i}"), SyncState::Progress, 50)).collect())
        };
        let text = destination_lines(&scanning).join("\n");
        assert!(!text.contains('%') && text.contains("50 B / ≥100 B"), "{text}");
        assert!(text.ends_with("and 1 more: 1 PROGRESS"), "{text}");
    }
}
