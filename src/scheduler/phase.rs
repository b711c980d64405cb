//! The phase machine of a sync: which phase follows when it has no tasks left.

use crate::wire::is_default;
use serde::{Deserialize, Serialize};

/// The phase of an active sync. It ends when the sync has no tasks left; a phase that is not needed is skipped.
///
/// The table is walked by a test. A row has a phase, the [facts](PhaseFacts) that hold (all others do not), and what
/// follows.
///
/// ```text
/// Copy              |                                                 | End
/// Copy              | unflushed                                       | Flush
/// Copy              | verifies unflushed                              | Readback
/// Copy              | verifies mirrors                                | Readback
/// Copy              | verifies failed hard_failure unflushed          | Flush
/// Copy              | verifies dry_run                                | End
/// Copy              | mirrors unflushed                               | CountExtraneous
/// Copy              | mirrors dry_run                                 | CountExtraneous
/// Copy              | mirrors dry_run stopped                         | CountExtraneous
/// Copy              | mirrors failed anchors unflushed                | CleanUp
/// Copy              | mirrors stopped unflushed                       | Flush
/// Readback          | verifies                                        | End
/// Readback          | verifies mirrors                                | CountExtraneous
/// Readback          | mirrors rechecked extraneous unflushed          | FlushBeforeDelete
/// CountExtraneous   | mirrors                                         | End
/// CountExtraneous   | mirrors extraneous                              | DeleteExtraneous
/// CountExtraneous   | mirrors extraneous unflushed                    | FlushBeforeDelete
/// CountExtraneous   | mirrors extraneous dry_run                      | End
/// CountExtraneous   | mirrors extraneous stopped unflushed            | Flush
/// FlushBeforeDelete | mirrors extraneous                              | DeleteExtraneous
/// FlushBeforeDelete | mirrors extraneous failed hard_failure          | End
/// FlushBeforeDelete | mirrors extraneous recheck                      | Readback
/// DeleteExtraneous  | mirrors extraneous blocked anchors unflushed    | CopyBlocked
/// DeleteExtraneous  | mirrors extraneous blocked stopped anchors      | CleanUp
/// DeleteExtraneous  | mirrors extraneous unflushed                    | Flush
/// CopyBlocked       | mirrors extraneous anchors unflushed            | CleanUp
/// CopyBlocked       | mirrors extraneous unflushed                    | Flush
/// CleanUp           | unflushed                                       | Flush
/// CleanUp           |                                                 | End
/// Flush             | recheck                                         | Readback
/// Flush             |                                                 | End
/// ```
///
/// A dry run has `Copy` and `CountExtraneous` only. A cancelled sync is also cleaned up, by a task that waits until
/// no worker can be writing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PhaseState {
    /// The source is listed and copied.
    #[default]
    Copy,
    /// The source is listed again and compared with the destination's disks.
    Readback,
    /// Extraneous entries at the destination are counted.
    CountExtraneous,
    /// Copied data are flushed: a file that was renamed at the source must not be deleted before
    /// its new name is durable.
    FlushBeforeDelete,
    /// Extraneous entries are deleted.
    DeleteExtraneous,
    /// The source is listed again for entries that were blocked by deleted directories.
    CopyBlocked,
    /// Anchors of hard links are removed.
    CleanUp,
    /// All data are flushed.
    Flush,
}

/// What decides which phase follows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PhaseFacts {
    /// Nothing is to be changed.
    pub(super) dry_run: bool,
    /// What was copied is to be read back.
    pub(super) verifies: bool,
    /// Extraneous entries are to be deleted.
    pub(super) mirrors: bool,
    /// There is an error …
    pub(super) failed: bool,
    /// … that is not of a vanished or changed source file.
    pub(super) hard_failure: bool,
    /// A guard stopped the mirror.
    pub(super) stopped: bool,
    /// A recheck is pending …
    pub(super) recheck: bool,
    /// … or was made after extraneous entries were counted: the count is still valid.
    pub(super) rechecked: bool,
    /// Extraneous entries were counted.
    pub(super) extraneous: bool,
    /// Entries are deferred.
    pub(super) blocked: bool,
    /// The destination has anchors of hard links.
    pub(super) anchors: bool,
    /// Workers wrote and have not flushed.
    pub(super) unflushed: bool,
}

impl PhaseState {
    const ALL: [PhaseState; 8] = [
        PhaseState::Copy,
        PhaseState::Readback,
        PhaseState::CountExtraneous,
        PhaseState::FlushBeforeDelete,
        PhaseState::DeleteExtraneous,
        PhaseState::CopyBlocked,
        PhaseState::CleanUp,
        PhaseState::Flush,
    ];

    /// The phase that follows; `None`: the sync ends.
    pub(super) fn next(self, facts: &PhaseFacts) -> Option<PhaseState> {
        if facts.recheck {
            return Some(PhaseState::Readback);
        }
        PhaseState::ALL.into_iter().find(|phase| *phase > self && self.needs(*phase, facts))
    }

    fn needs(self, phase: PhaseState, facts: &PhaseFacts) -> bool {
        let changes = !facts.stopped && !facts.dry_run;
        let deletes = facts.mirrors && !facts.failed;
        match phase {
            PhaseState::Copy => false,
            PhaseState::Readback => facts.verifies && !facts.hard_failure && changes,
            PhaseState::CountExtraneous => {
                deletes && !facts.rechecked && (!facts.stopped || facts.dry_run)
            }
            PhaseState::FlushBeforeDelete => {
                facts.unflushed && self.needs(PhaseState::DeleteExtraneous, facts)
            }
            PhaseState::DeleteExtraneous => deletes && changes && facts.extraneous,
            // After an error extraneous entries may have been counted, but none was deleted.
            PhaseState::CopyBlocked => {
                facts.blocked && changes && self == PhaseState::DeleteExtraneous
            }
            PhaseState::CleanUp => facts.anchors && !facts.dry_run,
            PhaseState::Flush => facts.unflushed,
        }
    }
}

/// Rechecks of a sync after a host lost writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recheck {
    /// It starts as soon as the sync has no tasks.
    pub(super) is_pending: bool,
    pub(super) count: u32,
    /// Content at the destination was found damaged: the sync is compared again also if it restarts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) has_damage: bool,
    /// One began after extraneous entries were counted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) is_after_count: bool,
}

impl Recheck {
    pub(super) fn has_begun(&self) -> bool {
        self.count > 0
    }

    /// Begins a recheck after the phase `before`.
    pub(super) fn begin(&mut self, before: PhaseState) {
        self.is_pending = false;
        self.count += 1;
        self.is_after_count |= before >= PhaseState::CountExtraneous;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &str) -> PhaseFacts {
        let mut facts = PhaseFacts::default();
        for name in names.split_whitespace() {
            *match name {
                "dry_run" => &mut facts.dry_run,
                "verifies" => &mut facts.verifies,
                "mirrors" => &mut facts.mirrors,
                "failed" => &mut facts.failed,
                "hard_failure" => &mut facts.hard_failure,
                "stopped" => &mut facts.stopped,
                "recheck" => &mut facts.recheck,
                "rechecked" => &mut facts.rechecked,
                "extraneous" => &mut facts.extraneous,
                "blocked" => &mut facts.blocked,
                "anchors" => &mut facts.anchors,
                "unflushed" => &mut facts.unflushed,
                other => panic!("no such fact: {other}"),
            } = true;
        }
        facts
    }

    #[test]
    fn the_table_is_what_the_machine_does() {
        let name = |phase: Option<PhaseState>| phase.map_or("End".to_owned(), |p| format!("{p:?}"));
        let rows = include_str!("phase.rs").lines().filter_map(|line| line.strip_prefix("/// "));
        let rows: Vec<Vec<&str>> = rows
            .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
            .filter(|columns| columns.len() == 3)
            .collect();
        for row in &rows {
            let from = PhaseState::ALL.into_iter().find(|phase| format!("{phase:?}") == row[0]);
            assert_eq!(name(from.unwrap().next(&facts(row[1]))), row[2], "{row:?}");
        }
        for phase in PhaseState::ALL.map(|phase| format!("{phase:?}")) {
            assert!(rows.iter().any(|row| row[0] == phase), "{phase} is not left");
            let entered = phase == "Copy" || rows.iter().any(|row| row[2] == phase);
            assert!(entered, "{phase} is not entered");
        }
    }
}
