//! The options of `ctl copy` and `ctl sync submit`, and the [`SyncOptions`] of the request that they set. Options that
//! contradict each other are refused here, before anything is submitted.

mod filter_rules;
mod to_cli_args;

pub(super) use to_cli_args::{bwlimit_arg, to_cli_args};

use super::error::{CliError, Result};
use crate::fs::Filter;
use crate::util::units;
use crate::wire::entry_report::FileState;
use crate::wire::options::{
    Chown, Compare, DEFAULT_MAX_DELETE_PERCENT, DeleteOptions, Links, MAX_MTIME_TOLERANCE,
    SyncOptions, Verify,
};
use crate::wire::path::escape_bytes;
use crate::wire::preserve::{Attribute, Preserve};
use crate::wire::{AbsPath, RelPath};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use filter_rules::FilterRuleArgs;
use jiff::Timestamp;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// Printed below the options by `--help`.
pub(super) const FILTER_HELP: &str = "\
Filters: patterns are those of gitignore, and the last one that matches decides:
  --exclude '*.o' --include keep.o     all except object files other than keep.o
  --exclude /tmp/                      all except the directory tmp at the top of SRC
  --exclude '/*' --include /data/      only data
  An excluded directory is not entered: entries in it can't be included again.
";

#[derive(Debug, Clone, Args)]
pub(super) struct SyncOptionArgs {
    #[command(flatten)]
    preserve: PreserveArgs,
    #[command(flatten)]
    compare: CompareArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    pub(super) record: RecordArgs,
    #[command(flatten)]
    mirror: MirrorArgs,
    #[command(flatten)]
    pub(super) verification: VerificationArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Metadata")]
struct PreserveArgs {
    /// Preserve only these: mode, owner, group, times, xattrs, acls, hardlinks, sparse, specials, devices; `no-`
    /// before one of them excludes it [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    preserve: Vec<String>,
    /// Set this owner, this group or both on all entries, by number: UID, UID:GID or :GID
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_chown)]
    chown: Option<Chown>,
    /// Preserve neither owner nor group: files get those of the agent's user (--preserve no-owner,no-group)
    #[arg(long)]
    no_owner: bool,
    /// Symbolic links: `copy` copies their targets, which must lie below the agent's storage path (with `ctl copy`:
    /// below SRC), `skip` omits them
    #[arg(long, value_name = "HOW", default_value = "keep")]
    links: Links,
    /// Write long runs of zeros as holes
    #[arg(long)]
    punch_zeros: bool,
    /// Fail entries with metadata that the destination can't store [default: they are counted and reported]
    #[arg(long)]
    strict_metadata: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Comparison")]
struct CompareArgs {
    /// Treat files of equal size as equal [default: equal size and modification time]
    #[arg(long, conflicts_with = "checksum")]
    size_only: bool,
    /// Treat files of equal content as equal: both sides read them
    #[arg(short, long)]
    checksum: bool,
    /// Skip files that are newer at the destination
    #[arg(short, long)]
    update: bool,
    /// Skip files that exist at the destination
    #[arg(long, conflicts_with = "existing")]
    ignore_existing: bool,
    /// Create nothing, only update files that exist at the destination
    #[arg(long)]
    existing: bool,
    /// Treat times that differ by no more than this as equal, e.g. 2s or 500ms
    #[arg(long, value_name = "DURATION", value_parser = parse_modify_window)]
    modify_window: Option<Duration>,
    /// Send changed files whole, without comparing them with those of the destination
    #[arg(short = 'W', long)]
    whole_file: bool,
    /// Copy content also if both ends are in one file system that could share it
    #[arg(long)]
    no_clone: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Filters")]
struct FilterArgs {
    #[command(flatten)]
    rules: FilterRuleArgs,
    /// Exclude files below this size, e.g. 1MiB
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    min_size: Option<u64>,
    /// Exclude files above this size
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_size: Option<u64>,
    /// Only files modified after this: 2d (ago), 2026-01-31 (local midnight) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_time_bound)]
    newer_than: Option<TimeBound>,
    /// Only files modified before this
    #[arg(long, value_name = "WHEN", value_parser = parse_time_bound)]
    older_than: Option<TimeBound>,
    /// Copy directories in the list of --files-from with all their entries
    #[arg(long, requires = "files_from")]
    recursive: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Dry run and records")]
pub(super) struct RecordArgs {
    /// Compare, and print what would be done; change nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// At the end print each path that was (in a dry run: would be) created, updated, repaired or deleted, or that
    /// failed
    #[arg(short, long)]
    pub(super) itemize: bool,
    /// Record the outcome of each path, for `ctl sync files ID`
    #[arg(long)]
    pub(super) record: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mirror")]
struct MirrorArgs {
    /// Delete entries that the source does not have, after everything was copied without an error
    #[arg(long, conflicts_with = "files_from")]
    delete: bool,
    /// Delete nothing if more than N entries would be deleted
    #[arg(long, value_name = "N", requires = "delete")]
    max_delete: Option<u64>,
    /// Delete nothing if more than P per cent of the destination would be deleted [default: 50]
    #[arg(long, value_name = "P", requires = "delete")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    max_delete_percent: Option<u8>,
    /// Move to this directory instead of deleting; relative to DST, or absolute below it
    #[arg(long, value_name = "DIR", requires = "delete")]
    trash: Option<OsString>,
    /// Also delete entries that the filters exclude
    #[arg(long, requires = "delete")]
    delete_excluded: bool,
    /// Continue even if the source is empty
    #[arg(long, requires = "delete")]
    allow_empty_source: bool,
    /// Continue even if the source is on another file system than at the last run, e.g. on a snapshot that is
    /// mounted again each time
    #[arg(long, requires = "delete")]
    allow_new_source_fs: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Verification")]
pub(super) struct VerificationArgs {
    /// `readback` reads everything again from the destination's disks and repairs differences; `none` relies on the
    /// network
    #[arg(long, value_name = "HOW", default_value = "transfer")]
    verify: Verify,
    /// Record the BLAKE3 digest of each file, for `ctl sync manifest ID` and `ctl sync verify ID`
    #[arg(long, conflicts_with = "dry_run")]
    digests: bool,
    /// Like --digests, and at the end write them to PATH on this machine, for `b3sum --check`
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    pub(super) manifest: Option<PathBuf>,
}

/// Makes the words of the API those of the command line.
macro_rules! impl_value_enum {
    ($($type:ident { $($variant:ident),+ })+) => { $(
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$($type::$variant),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(self.as_str()))
            }
        }
    )+ };
}

impl_value_enum! {
    Links { Keep, Copy, Skip }
    Verify { Transfer, Readback, None }
    FileState { Done, Skipped, Failed, Deleted }
}

fn parse_modify_window(text: &str) -> Result<Duration, String> {
    let window = units::parse_duration(text)?;
    if window <= MAX_MTIME_TOLERANCE {
        return Ok(window);
    }
    let max = units::format_duration(MAX_MTIME_TOLERANCE);
    Err(format!("must be at most {max}; file systems round times to 2s at most"))
}

/// `UID`, `UID:GID` or `:GID`.
fn parse_chown(text: &str) -> Result<Chown, String> {
    let parse_id = |part: &str| match part.parse() {
        // `chown(2)` takes the highest number as "unchanged".
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => {
            let part = escape_bytes(part.as_bytes());
            Err(format!("`{part}` is not a user or group number, e.g. 1000:100"))
        }
    };
    match text.split_once(':') {
        None => Ok(Chown { uid: parse_id(text)?, gid: None }),
        Some(("", gid)) => Ok(Chown { uid: None, gid: parse_id(gid)? }),
        Some((uid, gid)) => Ok(Chown { uid: parse_id(uid)?, gid: parse_id(gid)? }),
    }
}

/// A point in time, or an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeBound {
    Ago(Duration),
    At(Timestamp),
}

impl TimeBound {
    fn to_unix_seconds(self, now: Timestamp) -> i64 {
        match self {
            TimeBound::Ago(ago) => {
                let ago = i64::try_from(ago.as_secs()).unwrap_or(i64::MAX);
                now.as_second().saturating_sub(ago)
            }
            TimeBound::At(at) => at.as_second(),
        }
    }
}

fn parse_time_bound(text: &str) -> Result<TimeBound, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(TimeBound::At(at));
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let midnight = day.to_zoned(jiff::tz::TimeZone::system());
        return midnight.map(|at| TimeBound::At(at.timestamp())).map_err(|e| e.to_string());
    }
    units::parse_duration(text).map(TimeBound::Ago).map_err(|_| {
        format!(
            "`{}` is not a time; write for example 2d (ago), 2026-01-31 or 2026-01-31T12:00:00Z",
            escape_bytes(text.as_bytes())
        )
    })
}

impl SyncOptionArgs {
    /// `destinations` is DST and other spellings of its path; `stdin_is_used`: the list of names is on standard input.
    ///
    /// # Errors
    /// Options contradict each other, a file of rules can't be read.
    pub(super) fn to_sync_options(
        &self,
        destinations: &[AbsPath],
        stdin_is_used: bool,
        now: Timestamp,
    ) -> Result<SyncOptions> {
        let (compare, record, verification) = (&self.compare, &self.record, &self.verification);
        let preserved = self.preserve.preserve.iter().map(|name| name.trim());
        let excluded = ["no-owner", "no-group"].into_iter().filter(|_| self.preserve.no_owner);
        let mut options = SyncOptions {
            preserve: Preserve::parse_names(preserved.chain(excluded)).map_err(CliError::usage)?,
            chown: self.preserve.chown.unwrap_or_default(),
            links: self.preserve.links,
            punch_zeros: self.preserve.punch_zeros,
            strict_metadata: self.preserve.strict_metadata,
            compare: match (compare.size_only, compare.checksum) {
                (true, _) => Compare::Size,
                (_, true) => Compare::Checksum,
                _ => Compare::SizeTime,
            },
            mtime_tolerance_ns: compare.modify_window.unwrap_or_default().as_nanos() as u64,
            update: compare.update,
            ignore_existing: compare.ignore_existing,
            existing: compare.existing,
            whole_file: compare.whole_file,
            no_clone: compare.no_clone,
            recursive: self.filter.recursive,
            dry_run: record.dry_run,
            record: record.record || record.itemize,
            manifest: verification.digests || verification.manifest.is_some(),
            verify: verification.verify,
            delete: self.mirror.to_delete_options(destinations)?,
            ..SyncOptions::default()
        };
        let filter = &mut options.filter;
        filter.rules = self.filter.rules.read_rules(stdin_is_used)?;
        filter.min_size = self.filter.min_size;
        filter.max_size = self.filter.max_size;
        filter.newer_than = self.filter.newer_than.map(|bound| bound.to_unix_seconds(now));
        filter.older_than = self.filter.older_than.map(|bound| bound.to_unix_seconds(now));
        check_consistency(&options)?;
        Ok(options)
    }

    /// Adds the options that can be added to the request of a file: dry run and records.
    ///
    /// # Errors
    /// Other options were given, which belong into the file.
    pub(super) fn merge_into_request(&self, request: SyncOptions) -> Result<SyncOptions> {
        let added = self.to_sync_options(&[], false, Timestamp::UNIX_EPOCH)?;
        let options = SyncOptions {
            dry_run: request.dry_run || added.dry_run,
            record: request.record || added.record,
            manifest: request.manifest || added.manifest,
            ..request
        };
        if !(SyncOptions { dry_run: false, record: false, manifest: false, ..added }).is_default() {
            return Err(CliError::usage(
                "with --file the options stand in the request, under `options`",
            )
            .with_hint(
                "only -n, -i, --record, --digests and --manifest may be added on the command line",
            ));
        }
        check_consistency(&options)?;
        Ok(options)
    }
}

impl MirrorArgs {
    fn to_delete_options(&self, destinations: &[AbsPath]) -> Result<Option<DeleteOptions>> {
        if !self.delete {
            return Ok(None);
        }
        let parse = |dir: &OsString| parse_trash(dir.as_bytes(), destinations);
        Ok(Some(DeleteOptions {
            max: self.max_delete,
            max_percent: self.max_delete_percent.unwrap_or(DEFAULT_MAX_DELETE_PERCENT),
            trash: self.trash.as_ref().map(parse).transpose()?,
            delete_excluded: self.delete_excluded,
            allow_empty_source: self.allow_empty_source,
            allow_new_source_fs: self.allow_new_source_fs,
        }))
    }
}

/// The trash relative to the destination root.
fn parse_trash(given: &[u8], destinations: &[AbsPath]) -> Result<RelPath> {
    let wrong = |reason: &str| {
        CliError::usage(format!("--trash `{}` {reason}", escape_bytes(given)))
            .with_hint("name a directory below DST, e.g. --trash .trash")
    };
    let dir = match given.first() {
        Some(b'/') => {
            let dir = AbsPath::new(given).map_err(|e| wrong(&e.to_string()))?;
            let found = destinations.iter().find_map(|root| root.relativize(&dir));
            found.ok_or_else(|| wrong("does not lie below DST"))?
        }
        _ => RelPath::new(given).map_err(|e| wrong(&e.to_string()))?,
    };
    if dir.is_root() { Err(wrong("is DST itself")) } else { Ok(dir) }
}

fn check_consistency(options: &SyncOptions) -> Result<()> {
    let SyncOptions { preserve, chown, filter, .. } = options;
    let sizes = filter.min_size.zip(filter.max_size);
    let times = filter.newer_than.zip(filter.older_than);
    let contradictions = [
        (
            chown.uid.is_some() && !preserve.contains(Attribute::Owner),
            "--chown sets the owner, which --no-owner or --preserve leaves alone",
        ),
        (
            chown.gid.is_some() && !preserve.contains(Attribute::Group),
            "--chown sets the group, which --no-owner or --preserve leaves alone",
        ),
        (
            options.manifest && options.verify == Verify::None,
            "--verify none computes no digests, which --digests and --manifest need",
        ),
        (
            options.manifest && options.dry_run,
            "--digests and --manifest list what was copied, and a dry run copies nothing",
        ),
        (
            sizes.is_some_and(|(min, max)| min > max),
            "--min-size is above --max-size: every file would be excluded",
        ),
        (
            times.is_some_and(|(from, to)| from >= to),
            "--newer-than is not before --older-than: every file would be excluded",
        ),
    ];
    if let Some((_, message)) = contradictions.into_iter().find(|(applies, _)| *applies) {
        return Err(CliError::usage(message));
    }
    match Filter::new(filter) {
        Ok(_) => Ok(()),
        Err(e) => Err(CliError::usage(e.to_string()).with_hint("docs/filters.md has examples")),
    }
}

/// A duration above zero.
pub(super) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        some => Ok(some),
    }
}

#[cfg(test)]
mod tests;
