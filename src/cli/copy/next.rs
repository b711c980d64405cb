//! What to do after a copy that failed: nothing of it is kept, so the same command is run again.

use super::paths::Paths;
use crate::cli::args::CopyArgs;
use crate::cli::options::again;
use crate::cli::report::Next;
use crate::cli::shell::shell_word;
use crate::cli::submit::{limited, quoted};
use crate::wire::options::SyncOptions;

/// A longer command is not repeated: the shell has it in its history.
const MAX_COMMAND_CHARS: usize = 200;

/// What can be done about the failures of a copy with these `options`.
pub(super) fn next(paths: &Paths, args: &CopyArgs, options: &SyncOptions) -> Next {
    let (from, to) = (quoted(&paths.source), quoted(&paths.destination));
    let mut typed = again(options, Some(&args.options));
    typed.push_str(&limited(args.what.bwlimit.and_then(|limit| limit.0)));
    // Standard input can't be read again.
    let stdin = args.what.names_stdin();
    if let Some(list) = &args.what.files_from {
        let list = if stdin { b"LIST" } else { list.as_os_str().as_encoded_bytes() };
        let zero = if args.what.from0 { " -0" } else { "" };
        typed.push_str(&format!(" --files-from {}{zero}", shell_word(list)));
    }
    if args.end.error_on_no_transfer {
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
    Next {
        again: run(""),
        preview: run(" --dry-run --itemize"),
        files: "run it again with --itemize".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::wire::AbsPath;
    use clap::Parser;
    use jiff::Timestamp;

    fn of(source: &[u8], more: &[&str]) -> Next {
        let line = ["ctl", "copy", "s", "d"].iter().chain(more);
        let Command::Copy(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let options = args.options.options(&[], false, Timestamp::UNIX_EPOCH).unwrap();
        let path = |path: &[u8]| AbsPath::new(path).unwrap();
        let paths = Paths {
            source: path(source),
            source_is_dir: true,
            source_given: path(source),
            destination: path(b"/d"),
            destination_given: path(b"/d"),
            storage: Vec::new(),
        };
        next(&paths, &args, &options)
    }

    #[test]
    fn the_command_is_repeated_where_that_is_short_and_standard_input_never_is() {
        let next = of(b"/new\nline", &["--delete", "--exclude", "it's"]);
        assert_eq!(next.again, r"ctl copy $'/new\nline' /d --exclude $'it\'s' --delete");
        assert_eq!(
            next.preview,
            r"ctl copy $'/new\nline' /d --exclude $'it\'s' --delete --dry-run --itemize"
        );
        let list = ["--files-from", "-", "-0", "--bwlimit", "1000000", "--error-on-no-transfer"];
        let command = "ctl copy /s /d --bwlimit 1000000 --files-from LIST -0 --error-on-no-transfer, \
                       with the list of names in the file LIST";
        assert_eq!(of(b"/s", &list).again, command);
        assert_eq!(of(b"/s", &["--files-from", "a b"]).again, "ctl copy /s /d --files-from 'a b'");
        let long = "x".repeat(300);
        let next = of(b"/s", &["--exclude", &long, "--files-from", "-"]);
        assert_eq!(next.again, "run the same command, with the list of names in the file LIST");
        let next = of(b"/s", &["--exclude", &long]);
        assert_eq!(next.preview, "run the same command with --dry-run --itemize");
    }
}
