//! The options of a sync as they are typed, for hints that name the command to run again. Without them the command would
//! do something else: copy what was excluded, or delete without a limit.

use super::{SyncOptionArgs, filter_rules};
use crate::util::shell_quote::quote_for_shell;
use crate::wire::options::{Compare, DEFAULT_MAX_DELETE_PERCENT, Links, SyncOptions, Verify};
use crate::wire::preserve::Preserve;
use jiff::Timestamp;
use std::time::Duration;

/// Quoted words, each after a blank.
#[derive(Default)]
struct CliArgs(String);

impl CliArgs {
    fn add_flag(&mut self, enabled: bool, flag: &str) {
        if enabled {
            self.0.push_str(&format!(" {flag}"));
        }
    }

    fn add_value(&mut self, option: &str, value: Option<impl AsRef<[u8]>>) {
        if let Some(value) = value {
            self.0.push_str(&format!(" {option} {}", quote_for_shell(value.as_ref())));
        }
    }
}

/// The options that differ from their defaults, each after a blank. With `args` (of this command) files of rules are
/// repeated by name, except for standard input.
pub(in crate::cli) fn to_cli_args(options: &SyncOptions, args: Option<&SyncOptionArgs>) -> String {
    let mut out = CliArgs::default();
    add_metadata(&mut out, options);
    add_comparison(&mut out, options);
    match args.map(|args| &args.filter.rules).filter(|rules| !rules.uses_stdin()) {
        Some(rules) => rules.words().for_each(|(option, value)| out.add_value(option, Some(value))),
        None => options.filter.rules.iter().for_each(|rule| {
            let (option, pattern) = filter_rules::rule_words(rule);
            out.add_value(option, Some(pattern));
        }),
    }
    add_filter_and_delete(&mut out, options);
    let itemize = args.is_some_and(|args| args.record.itemize);
    out.add_flag(itemize, "--itemize");
    out.add_flag(options.record && !itemize, "--record");
    let manifest = args.and_then(|args| args.verification.manifest.as_ref());
    out.add_value("--manifest", manifest.map(|path| path.as_os_str().as_encoded_bytes()));
    out.add_flag(options.manifest && manifest.is_none(), "--digests");
    out.0
}

/// The option that sets this bandwidth limit, after a blank.
pub(in crate::cli) fn bwlimit_arg(bwlimit: Option<u64>) -> String {
    bwlimit.map(|limit| format!(" --bwlimit {limit}")).unwrap_or_default()
}

fn add_metadata(out: &mut CliArgs, options: &SyncOptions) {
    let preserve = match options.preserve == Preserve::NONE {
        true => "none".to_owned(),
        false => options.preserve.names().join(","),
    };
    out.add_value("--preserve", Some(preserve).filter(|_| !options.preserve.is_all()));
    let uid = options.chown.uid.map(|id| id.to_string()).unwrap_or_default();
    let gid = options.chown.gid.map(|id| format!(":{id}")).unwrap_or_default();
    out.add_value("--chown", Some(uid + &gid).filter(|ids| !ids.is_empty()));
    out.add_flag(options.links == Links::Copy, "--links=copy");
    out.add_flag(options.links == Links::Skip, "--links=skip");
    out.add_flag(options.punch_zeros, "--punch-zeros");
    out.add_flag(options.strict_metadata, "--strict-metadata");
}

fn add_comparison(out: &mut CliArgs, options: &SyncOptions) {
    out.add_flag(options.compare == Compare::Size, "--size-only");
    out.add_flag(options.compare == Compare::Checksum, "--checksum");
    out.add_flag(options.update, "--update");
    out.add_flag(options.ignore_existing, "--ignore-existing");
    out.add_flag(options.existing, "--existing");
    out.add_flag(options.whole_file, "--whole-file");
    out.add_flag(options.no_clone, "--no-clone");
    // The option has a resolution of milliseconds, a request may have less.
    let window = Duration::from_nanos(options.mtime_tolerance_ns);
    let window = (!window.is_zero()).then(|| format!("{}ms", window.as_millis().max(1)));
    out.add_value("--modify-window", window);
}

fn add_filter_and_delete(out: &mut CliArgs, options: &SyncOptions) {
    let filter = &options.filter;
    let time = |seconds: i64| {
        Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
    };
    out.add_value("--min-size", filter.min_size.map(|n| n.to_string()));
    out.add_value("--max-size", filter.max_size.map(|n| n.to_string()));
    out.add_value("--newer-than", filter.newer_than.map(time));
    out.add_value("--older-than", filter.older_than.map(time));
    out.add_flag(options.recursive, "--recursive");
    out.add_flag(options.verify == Verify::Readback, "--verify=readback");
    out.add_flag(options.verify == Verify::None, "--verify=none");
    out.add_flag(options.dry_run, "--dry-run");
    out.add_flag(options.allow_overlap, "--allow-overlap");
    let Some(delete) = &options.delete else { return };
    let percent = Some(delete.max_percent).filter(|p| *p != DEFAULT_MAX_DELETE_PERCENT);
    out.add_flag(true, "--delete");
    out.add_value("--max-delete", delete.max.map(|n| n.to_string()));
    out.add_value("--max-delete-percent", percent.map(|p| p.to_string()));
    out.add_value("--trash", delete.trash.as_ref().map(|dir| dir.as_bytes()));
    out.add_flag(delete.delete_excluded, "--delete-excluded");
    out.add_flag(delete.allow_empty_source, "--allow-empty-source");
    out.add_flag(delete.allow_new_source_fs, "--allow-new-source-fs");
}
