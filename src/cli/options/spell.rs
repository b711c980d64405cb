//! Options as they are typed, for the advice to run the same sync once more. Without them it would
//! advise another one: one that copies what was left out, say, or deletes without a limit.

use super::{OptionArgs, rules};
use crate::wire::options::{
    Compare, DEFAULT_MAX_DELETE_PERCENT, Links, Preserve, SyncOptions, Verify,
};
use crate::wire::path::show;
use jiff::Timestamp;
use std::time::Duration;

/// The options behind SRC and DST, each after a blank; nothing where nothing was chosen. With `args`
/// (of this command) rules that came from files are named by their file.
pub(in crate::cli) fn again(options: &SyncOptions, args: Option<&OptionArgs>) -> String {
    let mut words = metadata(options);
    words.extend(comparison(options));
    match args {
        Some(args) => words.extend(args.filter.rules.words()),
        None => words.extend(options.filter.rules.iter().flat_map(|rule| rules::to_words(rule))),
    }
    words.extend(rest(options));
    match args.filter(|args| args.plan.itemize) {
        Some(_) => words.push("--itemize".to_owned()),
        None if options.record => words.push("--record".to_owned()),
        None => {}
    }
    match args.and_then(|args| args.check.manifest.as_ref()) {
        Some(path) => {
            let path = show(path.as_os_str().as_encoded_bytes()).to_string();
            words.extend(["--manifest".to_owned(), path]);
        }
        None if options.manifest => words.push("--digests".to_owned()),
        None => {}
    }
    words.into_iter().map(|word| format!(" {}", shell_word(word))).collect()
}

/// A word as a shell takes it back.
pub(in crate::cli) fn shell_word(shown: String) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b);
    let bare = !shown.is_empty() && shown.bytes().all(plain);
    if bare { shown } else { format!("'{}'", shown.replace('\'', "'\\''")) }
}

fn flags(all: &[(bool, &str)]) -> Vec<String> {
    all.iter().filter(|(on, _)| *on).map(|(_, word)| (*word).to_owned()).collect()
}

fn metadata(options: &SyncOptions) -> Vec<String> {
    let mut words = Vec::new();
    if !options.preserve.is_all() {
        let kept = options.preserve.words();
        let list = if options.preserve == Preserve::NONE { "none".into() } else { kept.join(",") };
        words.extend(["--preserve".to_owned(), list]);
    }
    if !options.chown.is_none() {
        let uid = options.chown.uid.map(|id| id.to_string()).unwrap_or_default();
        let gid = options.chown.gid.map(|id| format!(":{id}")).unwrap_or_default();
        words.extend(["--chown".to_owned(), uid + &gid]);
    }
    words.extend(flags(&[
        (options.links == Links::Copy, "--links=copy"),
        (options.links == Links::Skip, "--links=skip"),
        (options.punch_zeros, "--punch-zeros"),
        (options.strict_metadata, "--strict-metadata"),
    ]));
    words
}

fn comparison(options: &SyncOptions) -> Vec<String> {
    let mut words = flags(&[
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

fn rest(options: &SyncOptions) -> Vec<String> {
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
    words.extend(flags(&[
        (options.recursive, "--recursive"),
        (options.verify == Verify::Readback, "--verify=readback"),
        (options.verify == Verify::None, "--verify=none"),
        (options.dry_run, "--dry-run"),
        (options.allow_overlap, "--allow-overlap"),
    ]));
    let Some(delete) = &options.delete else { return words };
    words.push("--delete".to_owned());
    let percent = Some(delete.max_percent).filter(|p| *p != DEFAULT_MAX_DELETE_PERCENT);
    for (option, value) in [
        ("--max-delete", delete.max.map(|n| n.to_string())),
        ("--max-delete-percent", percent.map(|n| n.to_string())),
        ("--trash", delete.trash.as_ref().map(|dir| show(dir.as_bytes()).to_string())),
    ] {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    words.extend(flags(&[
        (delete.delete_excluded, "--delete-excluded"),
        (delete.allow_empty_source, "--allow-empty-source"),
        (delete.allow_new_source_fs, "--allow-new-source-fs"),
    ]));
    words
}
