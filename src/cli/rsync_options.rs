//! Hints for options of rsync that `ctl` does not have.

use clap::Error;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

const KEPT_BY_DEFAULT: &str = "this is kept by default: leave it out";
const DELETE_INSTEAD: &str = "--delete deletes, after everything was copied";

/// Options separated by blanks, with what to use instead.
const REPLACEMENTS: &[(&str, &str)] = &[
    ("-a --archive", "everything that -a keeps, and more, is kept by default: leave it out"),
    ("-r", "a directory is copied with its content: leave it out (with --files-from: --recursive)"),
    ("-z --compress", "content is sent as it is, without compression: leave it out"),
    (
        "-P --partial",
        "progress is shown anyway, and a repeated copy continues an interrupted one: leave it out",
    ),
    (
        "-e --rsh",
        "no remote shell is used: agents on the storage hosts copy, see ctl sync submit --help",
    ),
    ("-L --copy-links", "--links copy"),
    ("--no-l --no-links", "--links skip"),
    ("--no-o --no-g --no-group", "--no-owner keeps neither owner nor group"),
    ("--no-p --no-perms", "--preserve no-mode"),
    ("--no-t --no-times", "--preserve no-times"),
    ("--no-D", "--preserve no-devices,no-specials"),
    ("-I --ignore-times", "-c compares content"),
    ("-b --backup --backup-dir", "--delete --trash DIR keeps what a mirror deletes"),
    ("--del --delete-after --delete-before --delete-delay --delete-during", DELETE_INSTEAD),
    ("-l --perms -p -t --times -g --group --owner -D --devices --specials", KEPT_BY_DEFAULT),
    ("-H --hard-links -A --acls -X --xattrs -S --sparse", KEPT_BY_DEFAULT),
    ("--numeric-ids", "owner and group are always kept by number: leave it out"),
];

/// Adds a hint to an error about an option of rsync.
pub(super) fn suggest_replacement(e: &mut Error) {
    if e.kind() != ErrorKind::UnknownArgument {
        return;
    }
    let Some(ContextValue::String(given)) = e.get(ContextKind::InvalidArg) else { return };
    let found =
        REPLACEMENTS.iter().find(|(options, _)| options.split(' ').any(|option| option == given));
    if let Some((_, instead)) = found {
        let tip = StyledStr::from(format!("instead of rsync's {given}: {instead}"));
        e.remove(ContextKind::SuggestedArg);
        e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use clap::Parser;

    fn refused(line: &str) -> String {
        let mut e = Cli::try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(e.exit_code(), 2, "{line}");
        suggest_replacement(&mut e);
        e.to_string()
    }

    #[test]
    fn each_option_of_rsync_gets_a_hint_with_the_replacement() {
        for (options, instead) in REPLACEMENTS {
            for option in options.split(' ') {
                for command in ["copy", "sync submit"] {
                    let text = refused(&format!("ctl {command} {option} /a /b"));
                    let tip = format!("instead of rsync's {option}: {instead}");
                    assert!(text.contains(&tip), "{option}: {text}");
                    assert!(!text.contains("similar"), "{option}: {text}");
                }
            }
        }
        for (line, option) in
            [("-avz", "-a"), ("-rlt", "-r"), ("--rsh=ssh", "--rsh"), ("-vP", "-P")]
        {
            let text = refused(&format!("ctl copy {line} a b"));
            assert!(text.contains(&format!("rsync's {option}:")), "{line}: {text}");
        }
        assert!(!refused("ctl copy --chekcsum a b").contains("rsync"));
    }
}
