//! The next steps after a copy that failed. No master remembers it, so the same command is run again.

use super::paths::CopyPaths;
use crate::cli::args::CopyArgs;
use crate::cli::options::{bwlimit_arg, to_cli_args};
use crate::cli::outcome_report::NextSteps;
use crate::util::shell_quote::{quote_for_shell, quote_path};
use crate::wire::options::SyncOptions;

/// A longer command is not repeated in hints: it is in the history of the shell.
const MAX_COMMAND_CHARS: usize = 200;

/// The commands to use after failures of a copy with these `options`.
pub(super) fn next_steps(paths: &CopyPaths, args: &CopyArgs, options: &SyncOptions) -> NextSteps {
    let (from, to) = (quote_path(&paths.source), quote_path(&paths.destination));
    let mut typed = to_cli_args(options, Some(&args.options));
    typed.push_str(&bwlimit_arg(args.transfer.bwlimit.and_then(|limit| limit.0)));
    // Standard input can't be read again.
    let stdin = args.transfer.is_file_list_stdin();
    if let Some(list) = &args.transfer.files_from {
        let list = if stdin { b"LIST" } else { list.as_os_str().as_encoded_bytes() };
        let zero = if args.transfer.from0 { " -0" } else { "" };
        typed.push_str(&format!(" --files-from {}{zero}", quote_for_shell(list)));
    }
    if args.exit_code.error_on_no_transfer {
        typed.push_str(" --error-on-no-transfer");
    }
    let run = |more: &str| {
        let command = format!("ctl copy {from} {to}{typed}{more}");
        let command = match (command.chars().count() <= MAX_COMMAND_CHARS, more) {
            (true, _) => command,
            (false, "") => "run the same command".to_owned(),
            (false, more) => format!("run the same command with{more}"),
        };
        let list = if stdin { ", with the list of names in the file LIST" } else { "" };
        command + list
    };
    NextSteps {
        rerun: run(""),
        preview_deletions: run(" --dry-run --itemize"),
        list_failures: "run it again with --itemize".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::wire::AbsPath;
    use clap::Parser;
    use jiff::Timestamp;

    fn of(source: &[u8], more: &[&str]) -> NextSteps {
        let line = ["ctl", "copy", "s", "d"].iter().chain(more);
        let Command::Copy(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let options = args.options.to_sync_options(&[], false, Timestamp::UNIX_EPOCH).unwrap();
        let path = |path: &[u8]| AbsPath::new(path).unwrap();
        let paths = CopyPaths {
            source: path(source),
            source_is_dir: true,
            lexical_source: path(source),
            destination: path(b"/d"),
            lexical_destination: path(b"/d"),
            storage_paths: Vec::new(),
        };
        next_steps(&paths, &args, &options)
    }

    #[test]
    fn a_short_command_is_repeated_in_full_and_standard_input_is_replaced() {
        let next = of(b"/new\nline", &["--delete", "--exclude", "it's"]);
        assert_eq!(next.rerun, r"ctl copy $'/new\nline' /d --exclude $'it\'s' --delete");
        assert_eq!(
            next.preview_deletions,
            r"ctl copy $'/new\nline' /d --exclude $'it\'s' --delete --dry-run --itemize"
        );
        let list = ["--files-from", "-", "-0", "--bwlimit", "1000000", "--error-on-no-transfer"];
        let command = "ctl copy /s /d --bwlimit 1000000 --files-from LIST -0 --error-on-no-transfer, \
                       with the list of names in the file LIST";
        assert_eq!(of(b"/s", &list).rerun, command);
        assert_eq!(of(b"/s", &["--files-from", "a b"]).rerun, "ctl copy /s /d --files-from 'a b'");
        let long = "x".repeat(300);
        let next = of(b"/s", &["--exclude", &long, "--files-from", "-"]);
        assert_eq!(next.rerun, "run the same command, with the list of names in the file LIST");
        let next = of(b"/s", &["--exclude", &long]);
        assert_eq!(next.preview_deletions, "run the same command with --dry-run --itemize");
    }
}
