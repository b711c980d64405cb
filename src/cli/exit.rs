//! Exit codes. Codes 0 to 9 have the meaning they have in rclone (8: a limit stopped it), 20 to 25 that of rsync, so
//! that scripts that test `$?` keep working.

use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use rustix::io::Errno;

/// The code of [`Exit::TimedOut`] by default: that of coreutils' `timeout`.
pub const DEFAULT_TIMEOUT_EXIT_CODE: u8 = 124;

/// Defines [`Exit`]: each code with its meaning for `--help`, in order of severity.
macro_rules! exit_codes {
    ($($(#[$doc:meta])* $name:ident $(($payload:ty))? = $code:expr, $meaning:literal;)+) => {
        /// How the program ends, in order of severity. With several syncs the most severe one is used: a sync that
        /// ended badly, before one that has not ended, before one that ended well.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Exit {
            $($(#[$doc])* $name $(($payload))?,)+
        }

        /// All codes with their meanings.
        const MEANINGS: &[(u8, &str)] = &[$(($code, $meaning)),+];

        #[cfg(test)]
        const ALL: &[Exit] = &[$(Exit::$name $((<$payload>::MAX))?),+];

        impl Exit {
            fn default_code(self) -> u8 {
                match self {
                    $(Exit::$name { .. } => $code,)+
                }
            }
        }
    };
}

exit_codes! {
    /// Accepted, or (with `--wait`) completed: everything is copied and verified.
    Ok = 0, "accepted; with --wait: completed, everything copied and verified";
    /// Nothing was transferred, with `--error-on-no-transfer`.
    NoTransfer = 9, "nothing was transferred (with --error-on-no-transfer)";
    /// `--timeout` passed and the sync continues. Holds the code of `--timeout-exit-code`.
    TimedOut(u8) = DEFAULT_TIMEOUT_EXIT_CODE, "--timeout passed, the sync continues (--timeout-exit-code)";
    /// SIGINT during the wait; the sync continues.
    Interrupted = 130, "SIGINT during the wait; the sync continues";
    /// SIGTERM during the wait; the sync continues.
    Terminated = 143, "SIGTERM during the wait; the sync continues";
    /// The only failures are source files that vanished or changed.
    Vanished = 24, "only source files that vanished or kept changing failed";
    /// Everything was copied, and a guard stopped the deletion of extraneous entries.
    DeleteStopped = 25, "all was copied, a guard stopped the deletion (--max-delete …)";
    /// Some entries failed and the rest was copied, or tasks were reported done without evidence.
    Partial = 23, "some files failed, the rest was copied; or tasks are unverified";
    /// A guard stopped a mirror before everything was copied.
    CopyStopped = 8, "a guard stopped a mirror before it copied (empty source …)";
    /// The sync was cancelled or deleted during the wait.
    Cancelled = 20, "the sync was cancelled or deleted during the wait";
    /// The sync, worker, storage or path does not exist.
    NotFound = 3, "the sync, worker, storage or path (SRC) does not exist";
    /// The id is taken, the state of the sync does not allow the command, or a path is another storage on different
    /// workers.
    Conflict = 6, "the id is taken, the sync's state does not allow it, or a path is ambiguous";
    /// No master can be reached, or it can't answer now; a later attempt may succeed.
    Unreachable = 5, "the master can't be reached or can't answer now; try later";
    /// The sync failed as a whole or copied nothing, and a retry without a change fails again.
    Failed = 7, "the sync failed as a whole or copied nothing; a retry won't help";
    /// The master or (for SRC or DST itself) the file system denies permission.
    Denied = 4, "permission denied: for SRC or DST itself, or by the master";
    /// An error without a code of its own.
    Error = 1, "another error";
    /// Wrong usage, or paths that can't be used as SRC and DST.
    Usage = 2, "wrong usage, also of paths: a file as SRC with a directory as DST";
    /// The configuration can't be used.
    Config = 78, "the configuration can't be used";
}

impl Exit {
    /// The exit status of the process.
    pub fn code(self) -> u8 {
        if let Exit::TimedOut(code) = self { code } else { self.default_code() }
    }

    /// The exit code of a sync, `None` until it has ended. A sync with a failure is never [`Exit::Ok`], whatever its
    /// state is.
    pub fn of_sync(sync: &SyncProgress) -> Option<Exit> {
        match (sync.state, sync.outcome) {
            (SyncState::Queued | SyncState::Progress | SyncState::Paused, _) => None,
            (SyncState::Cancelled, _) => Some(Exit::Cancelled),
            (SyncState::Completed | SyncState::Failed, Some(SyncOutcome::VanishedOnly)) => {
                Some(Exit::Vanished)
            }
            (SyncState::Completed, Some(SyncOutcome::Full) | None)
                if sync.failure_count() == 0 && sync.unverified == 0 =>
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

    /// The exit code of a sync where SRC or DST itself can't be used, because of `error`.
    pub fn of_root_error(error: &EntryError) -> Exit {
        match error.os_error() {
            _ if error.class == ErrorClass::InvalidRequest => Exit::Usage,
            Some(Errno::NOENT) => Exit::NotFound,
            Some(Errno::ACCESS | Errno::PERM) => Exit::Denied,
            // A path through a link that leads out of the storage path, or through a file.
            Some(Errno::LOOP | Errno::NOTDIR) => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}

/// Why SRC or DST itself can't be used, if that ended the sync. Only the agents can check them.
pub fn root_error(sync: &SyncProgress) -> Option<&EntryError> {
    let nothing_listed = sync.files_total + sync.dirs_total == 0;
    let failed = sync.state == SyncState::Failed && sync.outcome.is_none() && nothing_listed;
    sync.errors.iter().find(|error| failed && error.path.0.is_empty())
}

/// The list of codes for `--help`.
pub fn help_text() -> String {
    let mut codes = MEANINGS.to_vec();
    codes.sort_unstable();
    let lines = codes.iter().map(|(code, meaning)| format!("  {code:>3}  {meaning}\n"));
    format!("Exit codes:\n{}", lines.collect::<String>())
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
        // A single task without evidence is enough, whatever the outcome is.
        let unverified = SyncProgress {
            state: Completed,
            outcome: Some(Full),
            unverified: 1,
            ..fixtures::sync("x")
        };
        assert_eq!(Exit::of_sync(&unverified), Some(Exit::Partial));
        let mut failed =
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
            failed.errors = vec![fixtures::error(path, operation, errno, "no")];
            assert_eq!(Exit::of_sync(&failed), Some(exit), "{operation} {errno:?}");
        }
        failed.errors = vec![fixtures::error("", "use destination", None, "it is a directory")];
        failed.errors[0].class = ErrorClass::InvalidRequest;
        assert_eq!(Exit::of_sync(&failed), Some(Exit::Usage));
        failed.files_total = 1;
        assert_eq!(Exit::of_sync(&failed), Some(Exit::Failed), "the root could be listed");
        let dirs = SyncProgress { state: Completed, dirs_failed: 1, ..fixtures::sync("x") };
        assert_eq!(Exit::of_sync(&dirs), Some(Exit::Partial));
    }

    #[test]
    fn no_two_codes_have_the_same_severity() {
        // Otherwise the code of several syncs would depend on their order.
        let mut all = ALL.to_vec();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALL.len());
        let codes: std::collections::BTreeSet<u8> = ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes.len(), ALL.len());
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
            assert_eq!((a.max(b), b.max(a)), (worse, worse));
        }
    }

    #[test]
    fn the_help_lists_each_code_once() {
        let help = help_text();
        let words = help.lines().skip(1).map(|line| line.split_whitespace().next().unwrap());
        let codes: Vec<u8> = words.map(|word| word.parse().unwrap()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 23, 24, 25, 78, 124, 130, 143]);
        assert!(help.contains("\n   23  some files failed"));
        assert_eq!(Exit::TimedOut(9).code(), 9);
    }
}
