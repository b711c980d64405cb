//! Options as they are typed, for the advice to run the same sync once more. Without them it would
//! advise another one: one that copies what was left out, say, or deletes without a limit.

use super::{SyncOptionArgs, filter_rules};
use crate::cli::shell_quote::quote_for_shell;
use crate::wire::options::{
    Chown, Compare, DEFAULT_MAX_DELETE_PERCENT, Links, SyncOptions, Verify,
};
use crate::wire::preserve::Preserve;
use jiff::Timestamp;
use std::time::Duration;

/// The options behind SRC and DST, each after a blank; nothing where nothing was chosen. With `args`
/// (of this command) rules that came from files are named by their file, unless that was standard input.
pub(in crate::cli) fn to_cli_args(options: &SyncOptions, args: Option<&SyncOptionArgs>) -> String {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut add = |more: Vec<String>| words.extend(more.into_iter().map(String::into_bytes));
    add(metadata_args(options));
    add(comparison_args(options));
    match args.map(|args| &args.filter.rules).filter(|rules| !rules.uses_stdin()) {
        Some(rules) => words.extend(rules.to_words()),
        None => {
            let rules =
                options.filter.rules.iter().flat_map(|rule| filter_rules::rule_to_words(rule));
            words.extend(rules.map(String::into_bytes));
        }
    }
    words.extend(filter_and_delete_args(options));
    match args.filter(|args| args.record.itemize) {
        Some(_) => words.push(b"--itemize".to_vec()),
        None if options.record => words.push(b"--record".to_vec()),
        None => {}
    }
    match args.and_then(|args| args.verification.manifest.as_ref()) {
        Some(path) => {
            let path = path.as_os_str().as_encoded_bytes().to_vec();
            words.extend([b"--manifest".to_vec(), path]);
        }
        None if options.manifest => words.push(b"--digests".to_vec()),
        None => {}
    }
    words.iter().map(|word| format!(" {}", quote_for_shell(word))).collect()
}

fn enabled_flags(all: &[(bool, &str)]) -> Vec<String> {
    all.iter().filter(|(on, _)| *on).map(|(_, word)| (*word).to_owned()).collect()
}

fn metadata_args(options: &SyncOptions) -> Vec<String> {
    let mut words = Vec::new();
    if !options.preserve.is_all() {
        let kept = options.preserve.names();
        let list = if options.preserve == Preserve::NONE { "none".into() } else { kept.join(",") };
        words.extend(["--preserve".to_owned(), list]);
    }
    if options.chown != Chown::default() {
        let uid = options.chown.uid.map(|id| id.to_string()).unwrap_or_default();
        let gid = options.chown.gid.map(|id| format!(":{id}")).unwrap_or_default();
        words.extend(["--chown".to_owned(), uid + &gid]);
    }
    words.extend(enabled_flags(&[
        (options.links == Links::Copy, "--links=copy"),
        (options.links == Links::Skip, "--links=skip"),
        (options.punch_zeros, "--punch-zeros"),
        (options.strict_metadata, "--strict-metadata"),
    ]));
    words
}

fn comparison_args(options: &SyncOptions) -> Vec<String> {
    let mut words = enabled_flags(&[
        (options.compare == Compare::Size, "--size-only"),
        (options.compare == Compare::Checksum, "--checksum"),
        (options.update, "--update"),
        (options.ignore_existing, "--ignore-existing"),
        (options.existing, "--existing"),
        (options.whole_file, "--whole-file"),
        (options.no_clone, "--no-clone"),
    ]);
    if options.mtime_tolerance_ns > 0 {
        // The command line takes whole milliseconds; a request may hold less.
        let ms = Duration::from_nanos(options.mtime_tolerance_ns).as_millis().max(1);
        words.extend(["--modify-window".to_owned(), format!("{ms}ms")]);
    }
    words
}

fn filter_and_delete_args(options: &SyncOptions) -> Vec<Vec<u8>> {
    let filter = &options.filter;
    let time = |seconds: i64| {
        Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
    };
    let mut words = Vec::new();
    for (option, value) in [
        ("--min-size", filter.min_size.map(|n| n.to_string())),
        ("--max-size", filter.max_size.map(|n| n.to_string())),
        ("--newer-than", filter.newer_than.map(time)),
        ("--older-than", filter.older_than.map(time)),
    ] {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    words.extend(enabled_flags(&[
        (options.recursive, "--recursive"),
        (options.verify == Verify::Readback, "--verify=readback"),
        (options.verify == Verify::None, "--verify=none"),
        (options.dry_run, "--dry-run"),
        (options.allow_overlap, "--allow-overlap"),
    ]));
    let mut words: Vec<Vec<u8>> = words.into_iter().map(String::into_bytes).collect();
    let Some(delete) = &options.delete else { return words };
    let number = |n: u64| n.to_string().into_bytes();
    let percent = Some(delete.max_percent).filter(|p| *p != DEFAULT_MAX_DELETE_PERCENT);
    words.push(b"--delete".to_vec());
    for (option, value) in [
        ("--max-delete", delete.max.map(number)),
        ("--max-delete-percent", percent.map(|percent| number(percent.into()))),
        ("--trash", delete.trash.as_ref().map(|dir| dir.as_bytes().to_vec())),
    ] {
        words.extend(value.into_iter().flat_map(|value| [option.as_bytes().to_vec(), value]));
    }
    let more = enabled_flags(&[
        (delete.delete_excluded, "--delete-excluded"),
        (delete.allow_empty_source, "--allow-empty-source"),
        (delete.allow_new_source_fs, "--allow-new-source-fs"),
    ]);
    words.extend(more.into_iter().map(String::into_bytes));
    words
}
