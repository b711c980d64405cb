//! How a sync is to be done, as `ctl copy` and `ctl sync submit` take it on the command line, and how
//! that becomes the [`SyncOptions`] of the request. What contradicts itself is refused here, before
//! anything is submitted.

mod filter_rules;
mod to_cli_args;

pub(super) use to_cli_args::to_cli_args;

use super::error::CliError;
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
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use filter_rules::FilterRuleArgs;
use jiff::Timestamp;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What the help says below the options.
pub(super) const FILTER_HELP: &str = "\
Filters: patterns are those of gitignore, and the last one that matches decides:
  --exclude '*.o' --include keep.o     all but object files, and keep.o
  --exclude /tmp/                      the directory tmp at the top of SRC, with all in it
  --exclude '/*' --include /data/      nothing but data
  An excluded directory is not entered: what lies in it can't be taken in again.
";

/// All of them.
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
#[command(next_help_heading = "What is kept")]
struct PreserveArgs {
    /// Keep only these of each entry: mode, owner, group, times, xattrs, acls, hardlinks, sparse,
    /// specials, devices; `no-` and one of them takes it away [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    preserve: Vec<String>,
    /// Give everything this owner, this group or both, by number: UID, UID:GID or :GID
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_chown)]
    chown: Option<Chown>,
    /// Keep neither owner nor group: files get those of the agent's user (--preserve no-owner,no-group)
    #[arg(long)]
    no_owner: bool,
    /// Symbolic links: `copy` copies what they lead to, where that lies below the agent's storage path
    /// (with `ctl copy`: below SRC), `skip` leaves them out
    #[arg(long, value_name = "HOW", default_value = "keep", value_parser = choice_parser(LINK_CHOICES))]
    links: Links,
    /// Make long runs of zeros holes at the destination
    #[arg(long)]
    punch_zeros: bool,
    /// Metadata that the destination can't hold are failures [default: they are counted and named]
    #[arg(long)]
    strict_metadata: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What counts as equal")]
struct CompareArgs {
    /// Files of equal size are equal [default: equal size and modification time]
    #[arg(long, conflicts_with = "checksum")]
    size_only: bool,
    /// Files of equal content are equal: both sides read them
    #[arg(short, long)]
    checksum: bool,
    /// Leave files alone that are newer at the destination
    #[arg(short, long)]
    update: bool,
    /// Leave files alone that exist at the destination
    #[arg(long, conflicts_with = "existing")]
    ignore_existing: bool,
    /// Create nothing, only update what exists at the destination
    #[arg(long)]
    existing: bool,
    /// Times that differ by no more than this are equal, e.g. 2s or 500ms
    #[arg(long, value_name = "DURATION", value_parser = parse_modify_window)]
    modify_window: Option<Duration>,
    /// Send changed files whole, without comparing them with what the destination has
    #[arg(short = 'W', long)]
    whole_file: bool,
    /// Copy content also where both ends are in one file system that could share it
    #[arg(long)]
    no_clone: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is left out")]
struct FilterArgs {
    #[command(flatten)]
    rules: FilterRuleArgs,
    /// Leave out files below this size, e.g. 1MiB
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    min_size: Option<u64>,
    /// Leave out files above this size
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_size: Option<u64>,
    /// Only files modified after this: 2d (ago), 2026-01-31 (local midnight) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_time_bound)]
    newer_than: Option<TimeBound>,
    /// Only files modified before this
    #[arg(long, value_name = "WHEN", value_parser = parse_time_bound)]
    older_than: Option<TimeBound>,
    /// Copy directories that --files-from names with all that is in them
    #[arg(long, requires = "files_from")]
    recursive: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Dry run and records")]
pub(super) struct RecordArgs {
    /// Compare, and print what would be done; change nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// At the end print each path that was (in a dry run: would be) created, updated, repaired or
    /// deleted, or that failed
    #[arg(short, long)]
    pub(super) itemize: bool,
    /// Keep what becomes of each path, for `ctl sync files ID`
    #[arg(long)]
    pub(super) record: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mirror")]
struct MirrorArgs {
    /// Delete at the destination what the source does not have, after all was copied without an error
    #[arg(long, conflicts_with = "files_from")]
    delete: bool,
    /// Delete nothing if more than so many entries were to be deleted
    #[arg(long, value_name = "N", requires = "delete")]
    max_delete: Option<u64>,
    /// … or more than this part of the destination, in per cent [default: 50]
    #[arg(long, value_name = "P", requires = "delete")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    max_delete_percent: Option<u8>,
    /// Move to this directory instead of deleting; relative to DST, or absolute below it
    #[arg(long, value_name = "DIR", requires = "delete")]
    trash: Option<OsString>,
    /// Also delete what the filters leave out
    #[arg(long, requires = "delete")]
    delete_excluded: bool,
    /// Continue even if the source is empty
    #[arg(long, requires = "delete")]
    allow_empty_source: bool,
    /// Continue even if the source lies on another file system than at the last run, e.g. on a snapshot that
    /// is mounted again each time
    #[arg(long, requires = "delete")]
    allow_new_source_fs: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Verification")]
pub(super) struct VerificationArgs {
    /// `readback` reads all of it again from the destination's disks and repairs what is wrong; `none`
    /// trusts the network
    #[arg(long, value_name = "HOW", default_value = "transfer", value_parser = choice_parser(VERIFY_CHOICES))]
    verify: Verify,
    /// Keep the BLAKE3 digest of each file, for `ctl sync manifest ID` and `ctl sync verify ID`
    #[arg(long, conflicts_with = "dry_run")]
    digests: bool,
    /// The same, and at the end write them to PATH on this machine, for `b3sum --check`
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    pub(super) manifest: Option<PathBuf>,
}

const LINK_CHOICES: &[(&str, Links)] =
    &[("keep", Links::Keep), ("copy", Links::Copy), ("skip", Links::Skip)];
const VERIFY_CHOICES: &[(&str, Verify)] =
    &[("transfer", Verify::Transfer), ("readback", Verify::Readback), ("none", Verify::None)];
const FILE_STATES: &[(&str, FileState)] = &[
    ("done", FileState::Done),
    ("skipped", FileState::Skipped),
    ("failed", FileState::Failed),
    ("deleted", FileState::Deleted),
];

/// Reads how a file ended.
pub(super) fn file_state_parser() -> impl TypedValueParser<Value = FileState> {
    choice_parser(FILE_STATES)
}

/// The word for how a file ended.
pub(super) fn file_state_name(state: FileState) -> &'static str {
    FILE_STATES.iter().find(|(_, known)| *known == state).map_or("-", |(word, _)| *word)
}

/// Reads one of the words of `table`.
fn choice_parser<T: Copy + Send + Sync + 'static>(
    table: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(table.iter().map(|(word, _)| *word)).try_map(move |given| {
        let found = table.iter().find(|(word, _)| *word == given);
        found.map(|(_, value)| *value).ok_or_else(|| format!("`{given}` is not known"))
    })
}

/// By how much times may differ.
fn parse_modify_window(text: &str) -> Result<Duration, String> {
    let window = units::parse_duration(text)?;
    if window <= MAX_MTIME_TOLERANCE {
        return Ok(window);
    }
    let most = units::format_duration(MAX_MTIME_TOLERANCE);
    Err(format!("must be at most {most}; file systems round times to 2s at most"))
}

/// `UID`, `UID:GID` or `:GID`.
fn parse_chown(text: &str) -> Result<Chown, String> {
    let number = |part: &str| {
        // The kernel takes the highest number as "leave it as it is".
        let id = part.parse().ok().filter(|id| *id != u32::MAX);
        id.map(Some).ok_or_else(|| {
            format!(
                "`{}` is not a user or group number, e.g. 1000:100",
                escape_bytes(part.as_bytes())
            )
        })
    };
    match text.split_once(':') {
        None => Ok(Chown { uid: number(text)?, gid: None }),
        Some(("", gid)) => Ok(Chown { uid: None, gid: number(gid)? }),
        Some((uid, gid)) => Ok(Chown { uid: number(uid)?, gid: number(gid)? }),
    }
}

/// A point in time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeBound {
    Ago(Duration),
    At(Timestamp),
}

impl TimeBound {
    /// Seconds since 1970.
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
    /// What was chosen. `destinations` is DST and other names that it has; `is_file_list_stdin` tells that
    /// the list of names is on standard input.
    ///
    /// # Errors
    /// Options that contradict each other, a file of rules that can't be read.
    pub(super) fn to_sync_options(
        &self,
        destinations: &[AbsPath],
        names_stdin: bool,
        now: Timestamp,
    ) -> Result<SyncOptions, CliError> {
        let (compare, plan, check) = (&self.compare, &self.record, &self.verification);
        let mut options = SyncOptions {
            preserve: self.preserve.to_preserve()?,
            chown: self.preserve.chown.unwrap_or_default(),
            links: self.preserve.links,
            punch_zeros: self.preserve.punch_zeros,
            strict_metadata: self.preserve.strict_metadata,
            compare: match (compare.size_only, compare.checksum) {
                (true, _) => Compare::Size,
                (_, true) => Compare::Checksum,
                _ => Compare::SizeTime,
            },
            mtime_tolerance_ns: to_nanoseconds(compare.modify_window.unwrap_or_default()),
            update: compare.update,
            ignore_existing: compare.ignore_existing,
            existing: compare.existing,
            whole_file: compare.whole_file,
            no_clone: compare.no_clone,
            recursive: self.filter.recursive,
            dry_run: plan.dry_run,
            record: plan.record || plan.itemize,
            manifest: check.digests || check.manifest.is_some(),
            verify: check.verify,
            delete: self.mirror.to_delete_options(destinations)?,
            ..SyncOptions::default()
        };
        let filter = &mut options.filter;
        filter.rules = self.filter.rules.read_rules(names_stdin)?;
        filter.min_size = self.filter.min_size;
        filter.max_size = self.filter.max_size;
        filter.newer_than = self.filter.newer_than.map(|when| when.to_unix_seconds(now));
        filter.older_than = self.filter.older_than.map(|when| when.to_unix_seconds(now));
        check_consistency(&options)?;
        Ok(options)
    }

    /// Adds to what a request file says what can be added to any request: to try it only, and to
    /// have it recorded.
    ///
    /// # Errors
    /// Other options, which stand in the file.
    pub(super) fn merge_into_request(&self, told: SyncOptions) -> Result<SyncOptions, CliError> {
        let ours = self.to_sync_options(&[], false, Timestamp::UNIX_EPOCH)?;
        let (dry_run, record, manifest) = (ours.dry_run, ours.record, ours.manifest);
        if !(SyncOptions { dry_run: false, record: false, manifest: false, ..ours }).is_default() {
            return Err(CliError::usage(
                "with --file the options stand in the request, under `options`",
            )
            .with_hint(
                "only -n, -i, --record, --digests and --manifest may be added on the command line",
            ));
        }
        let options = SyncOptions {
            dry_run: told.dry_run || dry_run,
            record: told.record || record,
            manifest: told.manifest || manifest,
            ..told
        };
        check_consistency(&options)?;
        Ok(options)
    }
}

impl PreserveArgs {
    fn to_preserve(&self) -> Result<Preserve, CliError> {
        let given = self.preserve.iter().map(|word| word.trim());
        let less = ["no-owner", "no-group"].into_iter().filter(|_| self.no_owner);
        Preserve::parse_names(given.chain(less)).map_err(CliError::usage)
    }
}

impl MirrorArgs {
    fn to_delete_options(
        &self,
        destinations: &[AbsPath],
    ) -> Result<Option<DeleteOptions>, CliError> {
        if !self.delete {
            return Ok(None);
        }
        let trash = match &self.trash {
            Some(dir) => Some(parse_trash(dir.as_bytes(), destinations)?),
            None => None,
        };
        Ok(Some(DeleteOptions {
            max: self.max_delete,
            max_percent: self.max_delete_percent.unwrap_or(DEFAULT_MAX_DELETE_PERCENT),
            trash,
            delete_excluded: self.delete_excluded,
            allow_empty_source: self.allow_empty_source,
            allow_new_source_fs: self.allow_new_source_fs,
        }))
    }
}

/// The trash as seen from the destination root.
fn parse_trash(given: &[u8], destinations: &[AbsPath]) -> Result<RelPath, CliError> {
    let wrong = |why: &str| {
        CliError::usage(format!("--trash `{}` {why}", escape_bytes(given)))
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

/// Refuses what can't be meant.
fn check_consistency(options: &SyncOptions) -> Result<(), CliError> {
    let SyncOptions { preserve, chown, filter, .. } = options;
    let wrong = |text: &str| Err(CliError::usage(text));
    if chown.uid.is_some() && !preserve.contains(Attribute::Owner) {
        return wrong("--chown sets the owner, which --no-owner or --preserve leaves alone");
    }
    if chown.gid.is_some() && !preserve.contains(Attribute::Group) {
        return wrong("--chown sets the group, which --no-owner or --preserve leaves alone");
    }
    if options.manifest && options.verify == Verify::None {
        return wrong("--verify none computes no digests, which --digests and --manifest need");
    }
    if options.manifest && options.dry_run {
        return wrong(
            "--digests and --manifest list what was copied, and a dry run copies nothing",
        );
    }
    if matches!((filter.min_size, filter.max_size), (Some(min), Some(max)) if min > max) {
        return wrong("--min-size is above --max-size: every file would be left out");
    }
    if matches!((filter.newer_than, filter.older_than), (Some(from), Some(to)) if from >= to) {
        return wrong("--newer-than is not before --older-than: every file would be left out");
    }
    if let Err(e) = Filter::new(filter) {
        return Err(CliError::usage(e.to_string()).with_hint("docs/filters.md has examples"));
    }
    Ok(())
}

fn to_nanoseconds(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
