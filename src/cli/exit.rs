//! Exit codes. 0 to 9 mean what they mean to rclone (8: a limit stopped it), 20 to 25 what they mean to rsync, so that
//! scripts that look at `$?` go on working.

use crate::wire::sync::{ErrorClass, FileError, SyncOutcome, SyncProgress, SyncState};

/// How the program ends. Of several syncs the worst one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Accepted, or (with `--wait`) completed: everything is there and checked.
    Ok,
    /// An error that none of the other codes describes.
    Error,
    /// The command line makes no sense, or asks for what its paths do not allow.
    Usage,
    /// The sync, worker or path does not exist.
    NotFound,
    /// The master does not allow it, or the file system does not allow it for SRC or DST itself.
    Denied,
    /// No master can be reached, or it can't answer now; trying again later may help.
    Unreachable,
    /// There is a sync of that id already.
    Conflict,
    /// The sync failed as a whole or nothing could be copied, and trying again as it is will not help.
    Failed,
    /// A guard stopped a mirror before everything was copied.
    CopyStopped,
    /// Nothing was transferred, and the exit code is to report that (`--error-on-no-transfer`).
    NoTransfer,
    /// The sync was cancelled or deleted while waiting.
    Cancelled,
    /// Some files failed and the rest was copied, or tasks were done without evidence.
    Partial,
    /// The only failures are source files that vanished.
    Vanished,
    /// Everything was copied, and a guard stopped the deletion of what the source does not have.
    DeleteStopped,
    /// A configuration that can't be used.
    Config,
    /// The time of `--timeout` passed and the sync still runs. Holds the code to end with, for
    /// `--timeout-exit-code`.
    TimedOut(u8),
    /// SIGINT while waiting; the sync continues.
    Interrupted,
    /// SIGTERM while waiting; the sync continues.
    Terminated,
}

/// The code of [`Exit::TimedOut`] unless another is asked for: that of coreutils' `timeout`.
pub const DEFAULT_TIMEOUT_EXIT_CODE: u8 = 124;

/// Every code with its meaning, for the help.
pub const EXIT_CODES: &[(Exit, &str)] = &[
    (Exit::Ok, "accepted; with --wait: completed, everything there and checked"),
    (Exit::Error, "another error"),
    (Exit::Usage, "wrong usage, also of paths: a file as SRC with a directory as DST"),
    (Exit::NotFound, "the sync, worker or path (SRC) does not exist"),
    (Exit::Denied, "permission denied: for SRC or DST itself, or by the master"),
    (Exit::Unreachable, "the master can't be reached or can't answer now; a later try may help"),
    (Exit::Conflict, "there is a sync of that id already"),
    (Exit::Failed, "the sync failed as a whole or copied nothing, and a later try will not help"),
    (Exit::CopyStopped, "a guard stopped a mirror before it copied (an empty source and others)"),
    (Exit::NoTransfer, "completed, and nothing was transferred (with --error-on-no-transfer)"),
    (Exit::Cancelled, "the sync was cancelled or deleted while waiting"),
    (Exit::Partial, "some files failed, the rest was copied; or tasks are unverified"),
    (Exit::Vanished, "only source files that vanished or kept changing failed"),
    (Exit::DeleteStopped, "all was copied, a guard stopped the deletion (--max-delete and others)"),
    (Exit::Config, "a configuration that can't be used"),
    (
        Exit::TimedOut(DEFAULT_TIMEOUT_EXIT_CODE),
        "--timeout passed, the sync still runs (see --timeout-exit-code)",
    ),
    (Exit::Interrupted, "SIGINT while waiting; the sync continues"),
    (Exit::Terminated, "SIGTERM while waiting; the sync continues"),
];

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Denied => 4,
            Exit::Unreachable => 5,
            Exit::Conflict => 6,
            Exit::Failed => 7,
            Exit::CopyStopped => 8,
            Exit::NoTransfer => 9,
            Exit::Cancelled => 20,
            Exit::Partial => 23,
            Exit::Vanished => 24,
            Exit::DeleteStopped => 25,
            Exit::Config => 78,
            Exit::TimedOut(code) => code,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }

    /// The worse of two. A sync that ended badly is worse than one of which the end is not known,
    /// and that worse than one that ended well.
    pub fn worse(self, other: Exit) -> Exit {
        if other.severity() > self.severity() { other } else { self }
    }

    fn severity(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::NoTransfer => 1,
            Exit::TimedOut(_) => 2,
            Exit::Interrupted => 3,
            Exit::Terminated => 4,
            Exit::Vanished => 5,
            Exit::DeleteStopped => 6,
            Exit::Partial => 7,
            Exit::CopyStopped => 8,
            Exit::Cancelled => 9,
            Exit::NotFound => 10,
            Exit::Conflict => 11,
            Exit::Unreachable => 12,
            Exit::Failed => 13,
            Exit::Denied => 14,
            Exit::Error => 15,
            Exit::Usage => 16,
            Exit::Config => 17,
        }
    }

    /// How a sync ended, `None` while it runs. Whatever the state says, a sync in which something failed
    /// is never [`Exit::Ok`].
    pub fn of_sync(sync: &SyncProgress) -> Option<Exit> {
        let failures = sync.failure_count() > 0;
        match (sync.state, sync.outcome) {
            (SyncState::Queued | SyncState::Progress | SyncState::Paused, _) => None,
            (SyncState::Cancelled, _) => Some(Exit::Cancelled),
            (SyncState::Completed | SyncState::Failed, Some(SyncOutcome::VanishedOnly)) => {
                Some(Exit::Vanished)
            }
            (SyncState::Completed, Some(SyncOutcome::Full) | None)
                if !failures && sync.unverified == 0 =>
            {
                Some(Exit::Ok)
            }
            (SyncState::Completed, _)
            | (SyncState::Failed, Some(SyncOutcome::Partial | SyncOutcome::Unverified)) => {
                Some(Exit::Partial)
            }
            (SyncState::Failed, Some(SyncOutcome::DeleteStopped)) => Some(Exit::DeleteStopped),
            (SyncState::Failed, Some(SyncOutcome::CopyStopped)) => Some(Exit::CopyStopped),
            (SyncState::Failed, Some(SyncOutcome::Cancelled)) => Some(Exit::Cancelled),
            (SyncState::Failed, Some(SyncOutcome::Full) | None) => {
                Some(root_error(sync).map_or(Exit::Failed, Exit::of_root_error))
            }
        }
    }

    /// The exit code of a sync of which SRC or DST itself can't be used, because of `error`.
    pub fn of_root_error(error: &FileError) -> Exit {
        match error.errno.as_deref() {
            _ if error.class == ErrorClass::InvalidRequest => Exit::Usage,
            Some("ENOENT") => Exit::NotFound,
            Some("EACCES" | "EPERM") => Exit::Denied,
            // A path through a link that leads out of the storage path, or through a file.
            Some("ELOOP" | "ENOTDIR") => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// Why SRC or DST itself can't be used, where that is how a sync ended. Only the agents see what they are.
pub fn root_error(sync: &SyncProgress) -> Option<&FileError> {
    let nothing_listed = sync.files_total + sync.dirs_total == 0;
    let failed = sync.state == SyncState::Failed && sync.outcome.is_none() && nothing_listed;
    sync.errors.iter().find(|error| failed && error.path.0.is_empty())
}

/// The table for `--help`.
pub fn help_text() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in EXIT_CODES {
        text.push_str(&format!("  {:>3}  {meaning}\n", exit.code()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn each_final_state_and_outcome_has_its_exit_code() {
        use SyncOutcome::{Full, Partial, VanishedOnly};
        use SyncState::*;
        let table = [
            (Queued, None, 0, None),
            (Progress, None, 3, None),
            (Completed, Some(Full), 0, Some(0)),
            (Completed, None, 0, Some(0)),
            (Completed, Some(Full), 1, Some(23)),
            (Completed, Some(Partial), 0, Some(23)),
            (Failed, Some(Partial), 2, Some(23)),
            (Failed, Some(VanishedOnly), 2, Some(24)),
            (Failed, Some(SyncOutcome::DeleteStopped), 0, Some(25)),
            (Failed, Some(SyncOutcome::CopyStopped), 0, Some(8)),
            (Completed, Some(SyncOutcome::Unverified), 0, Some(23)),
            (Failed, Some(SyncOutcome::Unverified), 0, Some(23)),
            (Failed, None, 0, Some(7)),
            (Cancelled, Some(SyncOutcome::Cancelled), 0, Some(20)),
            (Cancelled, None, 5, Some(20)),
        ];
        for (state, outcome, files_failed, code) in table {
            let sync = SyncProgress { state, outcome, files_failed, ..fixtures::sync("x") };
            assert_eq!(
                Exit::of_sync(&sync).map(Exit::code),
                code,
                "{state:?} {outcome:?} {files_failed}"
            );
        }
        // Whatever the outcome, one bare success is enough.
        let bare = SyncProgress {
            state: Completed,
            outcome: Some(Full),
            unverified: 1,
            ..fixtures::sync("x")
        };
        assert_eq!(Exit::of_sync(&bare), Some(Exit::Partial));
        let mut unfit =
            SyncProgress { state: Failed, files_total: 0, dirs_total: 0, ..fixtures::sync("x") };
        for (path, operation, errno, exit) in [
            ("", "list source", None, Exit::Failed),
            ("", "read source", Some("ENOENT"), Exit::NotFound),
            ("", "read source", Some("EACCES"), Exit::Denied),
            ("", "write to destination", Some("EPERM"), Exit::Denied),
            ("", "write to destination", Some("EROFS"), Exit::Failed),
            ("", "write to destination", Some("ENOTDIR"), Exit::Usage),
            ("", "read source", Some("ELOOP"), Exit::Usage),
            ("a", "open source", Some("EACCES"), Exit::Failed),
        ] {
            unfit.errors = vec![fixtures::error(path, operation, errno, "no")];
            assert_eq!(Exit::of_sync(&unfit), Some(exit), "{operation} {errno:?}");
        }
        unfit.errors = vec![fixtures::error("", "use destination", None, "it is a directory")];
        unfit.errors[0].class = ErrorClass::InvalidRequest;
        assert_eq!(Exit::of_sync(&unfit), Some(Exit::Usage));
        unfit.files_total = 1;
        assert_eq!(Exit::of_sync(&unfit), Some(Exit::Failed), "the root could be listed");
        let dirs = SyncProgress { state: Completed, dirs_failed: 1, ..fixtures::sync("x") };
        assert_eq!(Exit::of_sync(&dirs), Some(Exit::Partial));
    }

    #[test]
    fn no_two_codes_have_the_same_severity() {
        // Else the code of several syncs would depend on their order.
        let mut badness: Vec<u8> = EXIT_CODES.iter().map(|(exit, _)| exit.severity()).collect();
        badness.sort_unstable();
        badness.dedup();
        assert_eq!(badness.len(), EXIT_CODES.len());
    }

    #[test]
    fn the_worst_code_is_used_in_any_order() {
        for (a, b, worse) in [
            (Exit::Ok, Exit::Partial, Exit::Partial),
            (Exit::Failed, Exit::Partial, Exit::Failed),
            (Exit::Vanished, Exit::Partial, Exit::Partial),
            (Exit::DeleteStopped, Exit::Partial, Exit::Partial),
            (Exit::DeleteStopped, Exit::CopyStopped, Exit::CopyStopped),
            (Exit::Ok, Exit::NoTransfer, Exit::NoTransfer),
            (Exit::TimedOut(9), Exit::Ok, Exit::TimedOut(9)),
        ] {
            assert_eq!((a.worse(b), b.worse(a)), (worse, worse));
        }
    }

    #[test]
    fn the_help_lists_each_code_once() {
        let codes: Vec<u8> = EXIT_CODES.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 23, 24, 25, 78, 124, 130, 143]);
        assert!(help_text().contains("\n   23  some files failed"));
    }
}
