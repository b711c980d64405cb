//! What is said when a sync has ended: one line of result (of a dry run a table), then notes, then the
//! failures grouped by cause, each with what to do next.

use super::console::sanitize;
use super::exit::{Exit, root_error};
use super::tables::{dry_run_table, duration_between, effective_rate};
use crate::util::units;
use crate::wire::BytePath;
use crate::wire::entry_report::{EntryAction, Tally};
use crate::wire::path::escape_bytes;
use crate::wire::sync::{ErrorClass, FailedStep, FileError, SyncOutcome, SyncProgress, SyncState};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many causes are told in full …
const MAX_FAILURE_GROUPS: usize = 10;
/// … each with so many paths.
const MAX_PATHS_PER_GROUP: usize = 3;

/// The line of result, e.g.
/// `run42  COMPLETED  6.1 TiB in 9m01s, effective 11.6 GiB/s; 150,329 copied, 0 skipped, 0 failed`. Of
/// a dry run the table of what would be done, under a line that nobody takes for a copy's.
pub(super) fn result_text(sync: &SyncProgress) -> String {
    if sync.options.dry_run {
        let took = elapsed_text(sync).map(|took| format!(" in {took}")).unwrap_or_default();
        let head =
            format!("{}  DRY RUN, nothing was changed  {}{took}", sync.request_id, end_label(sync));
        return format!("{head}\n{}", dry_run_table(sync));
    }
    let mut line = format!(
        "{}  {}  {}",
        sync.request_id,
        end_label(sync),
        units::format_bytes(sync.transferred_bytes)
    );
    if let Some(took) = elapsed_text(sync) {
        line.push_str(&format!(" in {took}"));
    }
    if let Some(rate) = effective_rate(sync) {
        line.push_str(&format!(", effective {}", units::format_rate(rate)));
    }
    if let Some(moved) = sent_text(sync) {
        line.push_str(&format!(" ({moved})"));
    }
    line.push_str(&format!(
        "; {} copied, {}",
        units::format_count(sync.files_done),
        skipped_text(sync)
    ));
    if sync.options.delete.is_some() {
        line.push_str(&format!(", {}", deleted_text(sync)));
    }
    let failed = units::format_count(sync.files_failed + sync.dirs_failed);
    line.push_str(&format!(", {failed} failed"));
    if let Some(steps) = failed_steps_text(sync) {
        line.push_str(&format!(", {steps}"));
    }
    if let Some(verified) = readback_text(sync) {
        line.push_str(&format!("; {verified}"));
    }
    if sync.unverified > 0 {
        line.push_str(&format!(
            ", {} unverified",
            units::pluralize(sync.unverified, "task", "tasks")
        ));
    }
    line
}

fn end_label(sync: &SyncProgress) -> &'static str {
    match (sync.state, sync.outcome) {
        (SyncState::Failed, Some(SyncOutcome::Partial)) => "FAILED (partial)",
        (SyncState::Failed, Some(SyncOutcome::VanishedOnly)) => {
            "FAILED (files vanished or kept changing)"
        }
        (SyncState::Failed, Some(SyncOutcome::DeleteStopped)) => {
            "FAILED (copied, deletion stopped)"
        }
        (SyncState::Failed, Some(SyncOutcome::CopyStopped)) => "FAILED (stopped before copying)",
        (SyncState::Failed, Some(SyncOutcome::Unverified)) => "FAILED (unverified)",
        (SyncState::Completed, Some(SyncOutcome::Unverified)) => "COMPLETED (unverified)",
        (state, _) => state.as_str(),
    }
}

fn elapsed_text(sync: &SyncProgress) -> Option<String> {
    let took = duration_between(sync.started_at?, sync.ended_at?);
    let took = if took > Duration::from_secs(9) {
        Duration::from_secs(took.as_secs())
    } else {
        Duration::from_millis(took.as_millis() as u64)
    };
    Some(units::format_duration(took))
}

fn action_tally(sync: &SyncProgress, action: EntryAction) -> Tally {
    sync.actions.get(&action).copied().unwrap_or_default()
}

/// What of the copied bytes went over the wire, where that is not just all of them.
pub(super) fn sent_text(sync: &SyncProgress) -> Option<String> {
    // Agents that do not count what they send say 0 of both.
    let counted = sync.sent_bytes + sync.kept_bytes + sync.cloned_bytes > 0;
    (counted && sync.sent_bytes != sync.transferred_bytes).then(|| {
        let kept = match sync.kept_bytes {
            0 => String::new(),
            kept => format!(", {} the destination had", units::format_bytes(kept)),
        };
        let cloned = match sync.cloned_bytes {
            0 => String::new(),
            cloned => format!(", {} cloned", units::format_bytes(cloned)),
        };
        format!("{} sent{kept}{cloned}", units::format_bytes(sync.sent_bytes))
    })
}

fn skipped_text(sync: &SyncProgress) -> String {
    let repaired = match action_tally(sync, EntryAction::Metadata).count {
        0 => String::new(),
        n => format!(" ({} with metadata repaired)", units::pluralize(n, "entry", "entries")),
    };
    format!("{} skipped{repaired}", units::format_count(sync.files_skipped))
}

fn deleted_text(sync: &SyncProgress) -> String {
    let count = units::format_count(action_tally(sync, EntryAction::Delete).count);
    match sync.options.delete.as_ref().and_then(|delete| delete.trash.as_ref()) {
        Some(trash) => format!("{count} moved to {}", escape_bytes(trash.as_bytes())),
        None => format!("{count} deleted"),
    }
}

/// What failed beside entries, e.g. `1 listing failed, 2 deletions failed`.
pub(super) fn failed_steps_text(sync: &SyncProgress) -> Option<String> {
    let each = sync.failed_steps.iter().filter(|(_, count)| **count > 0).map(|(step, count)| {
        let [one, many] = match step {
            FailedStep::List => ["listing", "listings"],
            FailedStep::ReadBack => ["read-back", "read-backs"],
            FailedStep::Delete => ["deletion", "deletions"],
            FailedStep::CleanUp => ["clean-up", "clean-ups"],
            FailedStep::Flush => ["flush", "flushes"],
        };
        format!("{} failed", units::pluralize(*count, one, many))
    });
    Some(each.collect::<Vec<_>>().join(", ")).filter(|steps| !steps.is_empty())
}

/// What reading the destination again brought.
pub(super) fn readback_text(sync: &SyncProgress) -> Option<String> {
    let (right, repaired) = (sync.verified_files, sync.repaired_files);
    (right + repaired > 0).then(|| {
        format!(
            "{} read back, {} repaired",
            units::format_count(right + repaired),
            units::format_count(repaired)
        )
    })
}

/// What came damaged over the network, where something did.
fn corruption_note(sync: &SyncProgress) -> Option<String> {
    let (times, it) = match sync.integrity_errors {
        0 => return None,
        1 => ("once".to_owned(), "it was"),
        n => (format!("{} times", units::format_count(n)), "each was"),
    };
    Some(format!(
        "  note: damaged on the way {times}; {it} found and sent again (the log says where)"
    ))
}

/// What was not as asked for but failed nothing, a cause a line.
pub(super) fn note_lines(sync: &SyncProgress) -> Vec<String> {
    let line = |(cause, note): (&String, &crate::wire::entry_report::EntryWarning)| {
        let first = note.paths.first().map(|path| match path.0.as_slice() {
            b"" => ".".to_owned(),
            _ => path.to_string(),
        });
        let first = first.map(|path| format!("     e.g. {path}")).unwrap_or_default();
        let entries = units::pluralize(note.count, "entry", "entries");
        format!("  note: {entries}: {}{first}", sanitize(cause))
    };
    sync.warnings.iter().map(line).chain(corruption_note(sync)).collect()
}

/// What can be done about failures, as it is typed.
#[derive(Debug)]
pub(super) struct NextSteps {
    /// Runs the same once more.
    pub(super) rerun: String,
    /// Lists the deletions of a mirror without doing anything.
    pub(super) preview_deletions: String,
    /// Lists all failures by name.
    pub(super) list_failures: String,
}

/// Why it did not end well, line by line, and what to do next; empty for one that did.
pub(super) fn problem_lines(sync: &SyncProgress, exit: Exit, next: &NextSteps) -> Vec<String> {
    if matches!(exit, Exit::Ok | Exit::NoTransfer) {
        // What a dry run found that would stop the real one.
        let notes = sync.reason.iter().map(|why| format!("  note: {}", sanitize(why)));
        let nothing = (exit == Exit::NoTransfer)
            .then(|| format!("  nothing was transferred   (exit {})", exit.code()));
        return notes.chain(nothing).collect();
    }
    let mut lines = failure_lines(sync, &next.list_failures);
    // What is wrong with SRC or DST itself stands in the error already.
    let said = root_error(sync).map(|error| error.message.as_str());
    if let Some(reason) = sync.reason.as_ref().filter(|reason| said != Some(reason.as_str())) {
        lines.push(format!("  reason: {}", sanitize(reason)));
    }
    let advice = match exit {
        Exit::Cancelled => {
            format!("copied files stay; to continue: {} (they are skipped)", next.rerun)
        }
        // The reason says what was done and what allows it.
        Exit::DeleteStopped | Exit::CopyStopped => {
            format!("to preview deletions: {}", next.preview_deletions)
        }
        _ => {
            next_step_advice(group_failures(sync).last().map(|main| main.first.class), &next.rerun)
        }
    };
    lines.push(format!("  {advice}   (exit {})", exit.code()));
    lines
}

/// The failures, grouped by cause with what to do about it, most frequent last; then counts, where not all are
/// listed, and `files`, the command that lists them.
pub(super) fn failure_lines(sync: &SyncProgress, files: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(error) = root_error(sync) {
        let worker = error.worker_id.as_ref().map(|w| format!(" (worker {w})")).unwrap_or_default();
        lines.push(format!("  error: {}{worker}", sanitize(&error.message)));
        lines.extend(error.hint.as_ref().map(|hint| format!("    hint: {}", sanitize(hint))));
        return lines;
    }
    let groups = group_failures(sync);
    let hidden = groups.len().saturating_sub(MAX_FAILURE_GROUPS);
    if hidden > 0 {
        lines.push(format!(
            "  error: {}, less frequent than these:",
            units::pluralize(hidden as u64, "more cause", "more causes")
        ));
    }
    for group in &groups[hidden..] {
        lines.push(group.to_line());
        lines.extend(group.first.hint.as_ref().map(|hint| format!("    hint: {}", sanitize(hint))));
    }
    let counted: u64 = sync.error_counts.values().sum();
    if counted > sync.errors.len() as u64 {
        lines.push(format!(
            "  listed: {} of {} failures; all by cause:",
            units::format_count(sync.errors.len() as u64),
            units::format_count(counted)
        ));
        for (cause, n) in &sync.error_counts {
            lines.push(format!("    {:>10}  {}", units::format_count(*n), sanitize(cause)));
        }
        lines.push(format!("  all by name: {files}"));
    }
    lines
}

/// Failures with the same cause.
struct FailureGroup<'a> {
    first: &'a FileError,
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
            sanitize(&self.first.operation),
            self.paths.join("  "),
        )
    }
}

/// Cause, operation, worker and hint: failures that share all of them are one group.
type FailureKey<'a> = (String, &'a str, Option<&'a str>, Option<&'a str>);

fn group_failures(sync: &SyncProgress) -> Vec<FailureGroup<'_>> {
    let mut groups: BTreeMap<FailureKey<'_>, FailureGroup<'_>> = BTreeMap::new();
    for e in &sync.errors {
        let cause = cause_text(e);
        let worker = e.worker_id.as_ref().map(|w| w.as_str());
        let group = groups
            .entry((cause.clone(), &e.operation, worker, e.hint.as_deref()))
            .or_insert_with(|| FailureGroup { first: e, cause, paths: Vec::new(), count: 0 });
        group.count += 1;
        if group.paths.len() < MAX_PATHS_PER_GROUP {
            group.paths.push(full_path(sync, e));
        }
    }
    let mut groups: Vec<FailureGroup<'_>> = groups.into_values().collect();
    // The most frequent cause last: nearest to the prompt.
    groups.sort_by_key(|g| g.count);
    groups
}

/// The errno in words, or the message.
fn cause_text(e: &FileError) -> String {
    let Some(errno) = &e.errno else { return sanitize(&e.message) };
    let words = match errno.as_str() {
        "EACCES" => "Permission denied",
        "EPERM" => "Operation not permitted",
        "ENOENT" => "No such file or directory",
        "ENOSPC" => "No space left on device",
        "EDQUOT" => "Disk quota exceeded",
        "EROFS" => "Read-only file system",
        "EIO" => "Input/output error",
        "ESTALE" => "Stale file handle",
        "ENAMETOOLONG" => "File name too long",
        "EISDIR" => "Is a directory",
        "ENOTDIR" => "Not a directory",
        "EFBIG" => "File too large",
        "ELOOP" => "A symbolic link in the path, which is not followed",
        "ENOTEMPTY" => "Directory not empty",
        "EEXIST" => "File exists",
        "EINVAL" => "Invalid argument",
        "EOPNOTSUPP" => "Operation not supported",
        "EBUSY" => "Device or resource busy",
        "EMFILE" | "ENFILE" => "Too many open files",
        _ => return sanitize(&format!("{errno}: {}", e.message)),
    };
    format!("{words} [{}]", sanitize(errno))
}

/// The whole path on the side where it failed.
fn full_path(sync: &SyncProgress, e: &FileError) -> String {
    let root = if e.operation.contains("destination") {
        &sync.destination_path
    } else {
        &sync.source_path
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

/// How to go on; what to do before that is in the hints of the failures.
fn next_step_advice(main: Option<ErrorClass>, again: &str) -> String {
    match main {
        Some(ErrorClass::Vanished) => format!(
            "only files that were removed or changed while the sync ran are missing; if that was not meant: {again}"
        ),
        Some(ErrorClass::Changed) => {
            format!("they changed each time they were copied; when they no longer change: {again}")
        }
        Some(ErrorClass::InvalidRequest) => {
            "the request can't be carried out as it is; correct it as the error says, and submit it again".to_owned()
        }
        Some(ErrorClass::Permanent | ErrorClass::StorageGone) => {
            format!("fix the error above, then: {again} (files already copied are skipped)")
        }
        Some(ErrorClass::Transient) | None => {
            format!("to try again: {again} (files already copied are skipped)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

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
            options: SyncOptions {
                delete: Some(DeleteOptions::default()),
                ..SyncOptions::default()
            },
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
            result_text(&SyncProgress { options, ..sync })
                .contains("4 moved to old\\#012, 0 failed")
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
        let note =
            |count, path: &[u8]| EntryWarning { count, paths: vec![BytePath(path.to_vec())] };
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
        // What was copied and deleted until then stands in the reason, once.
        assert!(!lines[1].contains("was copied") && !lines[1].contains("deleted"), "{lines:?}");
        let sync = SyncProgress { outcome: Some(SyncOutcome::CopyStopped), ..sync };
        assert!(result_text(&sync).starts_with("run42  FAILED (stopped before copying)  "));
        let lines = problem_lines(&sync, Exit::of_sync(&sync).unwrap(), &next());
        assert!(lines[1].contains("(exit 8)") && !lines[1].contains("was copied"), "{lines:?}");
    }

    #[test]
    fn vanished_and_changed_files_get_advice_of_their_own() {
        for (class, told) in [
            (ErrorClass::Vanished, "removed or changed"),
            (ErrorClass::Changed, "changed each time"),
        ] {
            let error = FileError { class, ..fixtures::error("a", "open source", None, "gone") };
            let sync = SyncProgress {
                outcome: Some(SyncOutcome::VanishedOnly),
                errors: vec![error],
                ..partial()
            };
            let lines = problem_lines(&sync, Exit::of_sync(&sync).unwrap(), &next());
            let last = lines.last().unwrap();
            assert!(last.contains(told) && last.contains("(exit 24)"), "{last}");
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
        let of = |path: &str, operation: &str, errno: &str, hint: &str| FileError {
            hint: Some(hint.to_owned()),
            ..fixtures::error(path, operation, Some(errno), "no")
        };
        let table = [
            ("replace destination", "EISDIR", "a mirror (`--delete`) replaces it"),
            (
                "make special file destination",
                "EPERM",
                "leave devices out (`--preserve no-devices`)",
            ),
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
            let error =
                |path: &str| fixtures::error(path, "make", Some(errno), &format!("at {path}"));
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
        let at = |path: &str, operation: &str, worker: &str| FileError {
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
        let told = failure_lines(&sync, "FILES").join("\n");
        for part in [
            "(w1, read source)     /a",
            "(w1, write destination)     /dst/b",
            "(w2, read source)     /c",
            "(w2, flush destination)     /dst",
        ] {
            assert!(told.lines().any(|line| line.ends_with(part)), "{part} in {told}");
        }
    }

    #[test]
    fn a_completed_sync_has_no_problem_lines() {
        let sync = SyncProgress { state: SyncState::Completed, ..fixtures::sync("x") };
        assert!(problem_lines(&sync, Exit::Ok, &next()).is_empty());
    }
}
