use super::*;
use crate::cli::fixtures;
use crate::wire::sync::{SyncOutcome, SyncState};

fn next() -> NextSteps {
    NextSteps {
        rerun: "AGAIN".into(),
        preview_deletions: "PREVIEW".into(),
        list_failures: "FILES".into(),
    }
}

fn partial() -> SyncProgress {
    SyncProgress {
        state: SyncState::Failed,
        outcome: Some(SyncOutcome::Partial),
        started_at: Some("2026-02-03T14:00:00Z".parse().unwrap()),
        ended_at: Some("2026-02-03T14:09:01.5Z".parse().unwrap()),
        transferred_bytes: 541 << 20,
        files_done: 150_329,
        files_failed: 5,
        errors: vec![
            fixtures::error("logs/a\n.err", "open source", Some("EACCES"), "no"),
            fixtures::error("x", "write destination", Some("ENOSPC"), "no"),
            fixtures::error("b", "open source", Some("EACCES"), "no"),
            fixtures::error("c", "open source", Some("EACCES"), "no"),
            fixtures::error("d", "open source", Some("EACCES"), "no"),
        ],
        ..fixtures::sync("run42")
    }
}

#[test]
fn the_result_has_bytes_duration_and_rate() {
    assert_eq!(
        result_text(&partial()),
        "run42  FAILED (partial)  541.0 MiB in 9m01s, effective 1023.1 KiB/s; \
         150,329 copied, 0 skipped, 5 failed"
    );
}

#[test]
fn the_result_lists_repairs_deletions_and_read_backs() {
    use crate::wire::options::{DeleteOptions, SyncOptions};
    let tally = |count| Tally { count, bytes: 0 };
    let sync = SyncProgress {
        state: SyncState::Completed,
        outcome: Some(SyncOutcome::Full),
        files_failed: 0,
        files_skipped: 9,
        sent_bytes: 41 << 20,
        kept_bytes: 500 << 20,
        verified_files: 12,
        repaired_files: 1,
        integrity_errors: 2,
        actions: [(EntryAction::Metadata, tally(3)), (EntryAction::Delete, tally(4))].into(),
        options: SyncOptions { delete: Some(DeleteOptions::default()), ..SyncOptions::default() },
        errors: Vec::new(),
        ..partial()
    };
    assert_eq!(
        result_text(&sync),
        "run42  COMPLETED  541.0 MiB in 9m01s, effective 1023.1 KiB/s (41.0 MiB sent, 500.0 MiB \
         the destination had); 150,329 copied, 9 skipped (3 entries with metadata repaired), \
         4 deleted, 0 failed; 13 read back, 1 repaired"
    );
    let trash = Some(crate::wire::RelPath::new("old\n").unwrap());
    let delete = Some(DeleteOptions { trash, ..DeleteOptions::default() });
    let options = SyncOptions { delete, ..SyncOptions::default() };
    assert!(
        result_text(&SyncProgress { options, ..sync }).contains("4 moved to old\\#012, 0 failed")
    );
}

#[test]
fn the_result_of_a_dry_run_is_a_labelled_table() {
    use crate::wire::options::SyncOptions;
    let sync = SyncProgress {
        state: SyncState::Completed,
        outcome: Some(SyncOutcome::Full),
        options: SyncOptions { dry_run: true, ..SyncOptions::default() },
        actions: [
            (EntryAction::Create, Tally { count: 1204, bytes: 3 << 30 }),
            (EntryAction::Skip, Tally { count: 7, bytes: 5 }),
        ]
        .into(),
        ..partial()
    };
    assert_eq!(
        result_text(&sync),
        "run42  DRY RUN, nothing was changed  COMPLETED in 9m01s\n\
         WOULD     ENTRIES  SIZE\n\
         create    1,204    3.0 GiB\n\
         update    0        0 B\n\
         metadata  0        0 B\n\
         delete    0        0 B\n\
         skip      7        5 B\n"
    );
}

#[test]
fn notes_are_printed_once_per_cause_with_a_count_and_a_path() {
    use crate::wire::entry_report::EntryWarning;
    let note = |count, path: &[u8]| EntryWarning { count, paths: vec![BytePath(path.to_vec())] };
    let sync = SyncProgress {
        warnings: [
            ("owner not set (EPERM): \x1b".to_owned(), note(81_204, b"a\nb")),
            ("setuid dropped".to_owned(), note(1, b"")),
        ]
        .into(),
        ..partial()
    };
    assert_eq!(
        note_lines(&sync),
        [
            "  note: 81,204 entries: owner not set (EPERM): \\#033     e.g. a\\#012b",
            "  note: 1 entry: setuid dropped     e.g. .",
        ]
    );
    assert!(note_lines(&partial()).is_empty());
}

#[test]
fn a_stopped_deletion_shows_the_reason_and_how_to_continue() {
    let sync = SyncProgress {
        outcome: Some(SyncOutcome::DeleteStopped),
        reason: Some("4 entries were to be deleted, --max-delete allows 3".to_owned()),
        files_failed: 0,
        errors: Vec::new(),
        ..partial()
    };
    assert!(
        result_text(&sync).starts_with("run42  FAILED (copied, deletion stopped)  "),
        "{}",
        result_text(&sync)
    );
    let lines = problem_lines(&sync, Exit::of_sync(&sync).unwrap(), &next());
    assert_eq!(lines[0], "  reason: 4 entries were to be deleted, --max-delete allows 3");
    for part in ["to preview deletions: PREVIEW", "(exit 25)"] {
        assert!(lines[1].contains(part), "{part} in {lines:?}");
    }
    // The reason has the counts of copied and deleted entries, once.
    assert!(!lines[1].contains("was copied") && !lines[1].contains("deleted"), "{lines:?}");
    let sync = SyncProgress { outcome: Some(SyncOutcome::CopyStopped), ..sync };
    assert!(result_text(&sync).starts_with("run42  FAILED (stopped before copying)  "));
    let lines = problem_lines(&sync, Exit::of_sync(&sync).unwrap(), &next());
    assert!(lines[1].contains("(exit 8)") && !lines[1].contains("was copied"), "{lines:?}");
}

#[test]
fn vanished_and_changed_files_get_advice_of_their_own() {
    for (class, expected) in
        [(ErrorClass::Vanished, "removed or changed"), (ErrorClass::Changed, "changed each time")]
    {
        let error = EntryError { class, ..fixtures::error("a", "open source", None, "gone") };
        let sync = SyncProgress {
            outcome: Some(SyncOutcome::VanishedOnly),
            errors: vec![error],
            ..partial()
        };
        let lines = problem_lines(&sync, Exit::of_sync(&sync).unwrap(), &next());
        let last = lines.last().unwrap();
        assert!(last.contains(expected) && last.contains("(exit 24)"), "{last}");
    }
}

#[test]
fn failures_are_grouped_by_cause_with_paths_and_advice() {
    assert_eq!(
        problem_lines(&partial(), Exit::Partial, &next()),
        [
            "  error: 1 entry: No space left on device [ENOSPC] (w1, write destination)     /dst/x",
            "  error: 4 entries: Permission denied [EACCES] (w1, open source)     \
             /src/logs/a\\#012.err  /src/b  /src/c  … 1 more",
            "  fix the error above, then: AGAIN (files already copied are skipped)   (exit 23)",
        ]
    );
}

/// The errno of some differs in nothing, but what to do about them does.
#[test]
fn each_cause_is_followed_by_its_hint() {
    let of = |path: &str, operation: &str, errno: &str, hint: &str| EntryError {
        hint: Some(hint.to_owned()),
        ..fixtures::error(path, operation, Some(errno), "no")
    };
    let table = [
        ("replace destination", "EISDIR", "a mirror (`--delete`) replaces it"),
        ("make special file destination", "EPERM", "leave devices out (`--preserve no-devices`)"),
        ("make special file destination", "EPERM", "`--preserve no-specials`"),
        ("open source", "EACCES", "let user 7 read it, or copy as root"),
        ("read source", "EWHATEVER", "look at it\x1b"),
    ];
    let errors = table.iter().map(|(operation, errno, hint)| of("x", operation, errno, hint));
    let sync = SyncProgress { errors: errors.collect(), ..partial() };
    let lines = failure_lines(&sync, "FILES");
    assert_eq!(lines.len(), 2 * table.len(), "{lines:?}");
    for (operation, errno, hint) in table {
        let hint = format!("    hint: {}", sanitize(hint));
        let pair = lines.chunks(2).find(|pair| pair[1] == hint).unwrap();
        assert!(pair[0].contains(operation) && pair[0].contains(errno), "{pair:?}");
    }
    assert!(!lines.concat().contains("the agent") && !lines.concat().contains('\x1b'));
}

#[test]
fn failures_with_one_cause_are_one_group() {
    for errno in ["ELOOP", "ENOTEMPTY", "EEXIST", "EINVAL", "EOPNOTSUPP", "EBUSY"] {
        let error = |path: &str| fixtures::error(path, "make", Some(errno), &format!("at {path}"));
        let sync = SyncProgress { errors: vec![error("a"), error("b")], ..partial() };
        let lines = failure_lines(&sync, "FILES");
        assert!(lines[0].contains("2 entries: "), "{lines:?}");
        assert!(lines[0].contains(&format!("[{errno}]")), "{lines:?}");
    }
}

#[test]
fn more_failures_than_are_listed_are_counted_by_cause() {
    let sync = SyncProgress {
        error_counts: [("EACCES open source".to_owned(), 12_000)].into(),
        ..partial()
    };
    let text = problem_lines(&sync, Exit::Partial, &next()).join("\n");
    assert!(text.contains("listed: 5 of 12,000 failures; all by cause:"), "{text}");
    assert!(text.contains("    12,000  EACCES open source\n  all by name: FILES\n"), "{text}");
}

#[test]
fn of_many_causes_the_most_frequent_are_printed_and_the_others_counted() {
    // The nth cause hits n entries.
    let causes = 1..=MAX_FAILURE_GROUPS + 2;
    let errors = causes.flat_map(|n| {
        (0..n).map(move |i| {
            fixtures::error(&format!("{i}"), "read source", None, &format!("cause {n}"))
        })
    });
    let sync = SyncProgress { errors: errors.collect(), ..partial() };
    let lines = failure_lines(&sync, "FILES");
    assert_eq!(lines.len(), MAX_FAILURE_GROUPS + 1);
    assert!(lines[0].contains("2 more causes"), "{}", lines[0]);
    assert!(lines[1].contains("3 entries: cause 3 "), "{}", lines[1]);
    let last = lines.last().unwrap();
    assert!(last.contains("12 entries: cause 12 ") && last.ends_with("… 9 more"), "{last}");
}

#[test]
fn one_cause_on_two_sides_or_workers_is_separate_groups() {
    let at = |path: &str, operation: &str, worker: &str| EntryError {
        worker_id: Some(worker.parse().unwrap()),
        ..fixtures::error(path, operation, Some("EIO"), "no")
    };
    let errors = vec![
        at("a", "read source", "w1"),
        at("b", "write destination", "w1"),
        at("c", "read source", "w2"),
        at("", "flush destination", "w2"),
    ];
    let root = crate::wire::AbsPath::new("/").unwrap();
    let sync = SyncProgress { errors, source_path: root, ..partial() };
    let expected = failure_lines(&sync, "FILES").join("\n");
    for part in [
        "(w1, read source)     /a",
        "(w1, write destination)     /dst/b",
        "(w2, read source)     /c",
        "(w2, flush destination)     /dst",
    ] {
        assert!(expected.lines().any(|line| line.ends_with(part)), "{part} in {expected}");
    }
}

#[test]
fn a_completed_sync_has_no_problem_lines() {
    let sync = SyncProgress { state: SyncState::Completed, ..fixtures::sync("x") };
    assert!(problem_lines(&sync, Exit::Ok, &next()).is_empty());
}

#[test]
fn the_destinations_that_lack_something_are_listed_at_the_end() {
    let destinations = vec![
        fixtures::destination("gpu-1", SyncState::Failed, 50),
        fixtures::destination("gpu-2", SyncState::Completed, 100),
    ];
    let sync = SyncProgress { destinations, scan_done: true, ..partial() };
    assert!(
        result_text(&sync).contains("; 1 of 2 destinations complete"),
        "{}",
        result_text(&sync)
    );
    let lines = problem_lines(&sync, Exit::Partial, &next());
    let at = lines.iter().position(|line| line == "  destinations that are not complete:").unwrap();
    assert!(lines[at + 1].starts_with("    gpu-1  FAILED  50 %"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("gpu-2")), "{lines:?}");
}
