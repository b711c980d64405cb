//! Every way in which a sync ends, in each place that shows it: the exit code, the percentage, the
//! list, the result, the record and the line of progress agree.

use super::exit::Exit;
use super::progress::{ProgressTracker, percent_done, plain_line};
use super::{details, fixtures, outcome_report, tables};
use crate::wire::options::SyncOptions;
use crate::wire::sync::{FailedStep, SyncOutcome, SyncPhase, SyncProgress, SyncState};
use jiff::Timestamp;
use std::time::Instant;

/// Two files of 100 bytes together, in one directory, all of them copied.
fn ended_sync(state: SyncState, outcome: Option<SyncOutcome>) -> SyncProgress {
    let at = Some("2026-02-03T14:00:00Z".parse().unwrap());
    SyncProgress {
        state,
        outcome,
        phase: SyncPhase::Done,
        scan_done: true,
        started_at: at,
        ended_at: at,
        transferred_bytes: 100,
        total_bytes: 100,
        files_total: 2,
        files_done: 2,
        dirs_total: 1,
        dirs_done: 1,
        ..fixtures::sync("x")
    }
}

fn partial_sync() -> SyncProgress {
    ended_sync(SyncState::Failed, Some(SyncOutcome::Partial))
}

fn failed_step(step: FailedStep, count: u64) -> SyncProgress {
    SyncProgress { failed_steps: [(step, count)].into(), ..partial_sync() }
}

/// Each with its exit code and the number of failures.
fn end_cases() -> Vec<(&'static str, SyncProgress, u8, u64)> {
    let full = ended_sync(SyncState::Completed, Some(SyncOutcome::Full));
    let dry = SyncOptions { dry_run: true, ..SyncOptions::default() };
    let stopped = |outcome| ended_sync(SyncState::Failed, Some(outcome));
    vec![
        ("all copied", full.clone(), 0, 0),
        ("all equal", SyncProgress { files_done: 0, files_skipped: 2, ..full.clone() }, 0, 0),
        ("dry run", SyncProgress { options: dry, ..full.clone() }, 0, 0),
        (
            "an empty file failed",
            SyncProgress { files_done: 1, files_failed: 1, ..partial_sync() },
            23,
            1,
        ),
        (
            "a directory failed",
            SyncProgress { dirs_done: 0, dirs_failed: 1, ..partial_sync() },
            23,
            1,
        ),
        ("a mount was not entered", failed_step(FailedStep::List, 1), 23, 1),
        ("not all was read back", failed_step(FailedStep::ReadBack, 2), 23, 2),
        ("the trash is full", failed_step(FailedStep::Delete, 3), 23, 3),
        ("anchors stay", failed_step(FailedStep::CleanUp, 1), 23, 1),
        ("a flush failed", failed_step(FailedStep::Flush, 1), 23, 1),
        (
            "two kinds at once",
            SyncProgress { files_done: 1, files_failed: 1, ..failed_step(FailedStep::Delete, 2) },
            23,
            3,
        ),
        (
            "a file vanished",
            SyncProgress { files_done: 1, files_failed: 1, ..stopped(SyncOutcome::VanishedOnly) },
            24,
            1,
        ),
        ("the deletion stopped", stopped(SyncOutcome::DeleteStopped), 25, 0),
        (
            "nothing was copied",
            SyncProgress {
                transferred_bytes: 0,
                total_bytes: 0,
                files_total: 0,
                files_done: 0,
                dirs_total: 0,
                dirs_done: 0,
                ..stopped(SyncOutcome::CopyStopped)
            },
            8,
            0,
        ),
        (
            "the root can't be listed",
            SyncProgress { outcome: None, ..failed_step(FailedStep::List, 1) },
            7,
            1,
        ),
        ("cancelled", ended_sync(SyncState::Cancelled, Some(SyncOutcome::Cancelled)), 20, 0),
        // No master reports this. If one did, failed entries must not count as done.
        ("a failure beside full", SyncProgress { files_failed: 1, ..full.clone() }, 23, 1),
        (
            "a failed step beside full",
            SyncProgress { failed_steps: [(FailedStep::Flush, 1)].into(), ..full },
            23,
            1,
        ),
    ]
}

/// The sum of the failures in a line of result.
fn count_failed(result: &str) -> u64 {
    let parts = result.split(['\n', ';', ',']).map(str::trim);
    let failed = parts.filter(|part| part.ends_with(" failed"));
    failed.filter_map(|part| part.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn all_views_agree_on_how_a_sync_ended() {
    let now: Timestamp = "2026-02-03T14:15:00Z".parse().unwrap();
    for (name, sync, code, failures) in end_cases() {
        let exit = Exit::of_sync(&sync).unwrap();
        assert_eq!((exit.code(), sync.failure_count()), (code, failures), "{name}");
        let all_done = exit == Exit::Ok;
        assert_eq!(percent_done(&sync) == Some(100.0), all_done, "{name}");
        let list = tables::sync_table(std::slice::from_ref(&sync), None, now);
        let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[2] == "100%", all_done, "{name}: {list}");
        let files = format!("{}/{}", sync.files_done + sync.files_skipped, sync.files_total);
        let at = row.iter().position(|cell| *cell == files).unwrap();
        assert_eq!(row[at + 1], failures.to_string(), "{name}: {list}");
        if !sync.options.dry_run {
            let result = outcome_report::result_text(&sync);
            assert_eq!(count_failed(&result), failures, "{name}: {result}");
        }
        let record = details::sync_details(&sync, now);
        let lines = record.lines().filter(|line| {
            ["Files:", "Directories:", "Steps:"].iter().any(|key| line.starts_with(key))
        });
        let failed: u64 = lines
            .flat_map(|line| line.split_once(':').map(|(_, rest)| rest.split(',')).unwrap())
            .map(str::trim)
            .filter(|part| part.contains(" failed"))
            .filter_map(|part| part.split(' ').next()?.parse::<u64>().ok())
            .sum();
        assert_eq!(failed, failures, "{name}: {record}");
        assert_eq!(record.contains("100.0 %"), all_done, "{name}: {record}");
        let plain =
            plain_line(&sync, &ProgressTracker::new(&sync, Instant::now()), Instant::now(), now);
        assert!(plain.contains(&format!(" failed={failures} ")), "{name}: {plain}");
        assert_eq!(plain.contains(" pct=100.0 "), all_done, "{name}: {plain}");
        let next = outcome_report::NextSteps {
            rerun: "AGAIN".into(),
            preview_deletions: "PREVIEW".into(),
            list_failures: "FILES".into(),
        };
        let trouble = outcome_report::problem_lines(&sync, exit, &next).join("\n");
        assert_eq!(trouble.contains(&format!("(exit {code})")), !all_done, "{name}: {trouble}");
    }
}
