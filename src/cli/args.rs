//! The commands, options and defaults of the command line, with their help.

use super::audit_args::AuditCommand;
use super::exit;
use super::options::{self, SyncOptionArgs, parse_positive_duration};
use super::token_args::{AuthCommand, TokenCommand};
use crate::config::LogFormat;
use crate::util::units;
use crate::wire::entry_report::FileState;
use crate::wire::sync::SyncState;
use crate::wire::worker_selector::WorkerSelector;
use crate::wire::{RequestId, StorageId, WorkerId};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The master where none is named.
pub const DEFAULT_MASTER_URL: &str = "http://127.0.0.1:8888";

const EXAMPLES: &str = "\
Examples:
  ctl copy /scratch/run42 /backup/run42                copy a tree on this machine, nothing to set up
  ctl sync submit /scratch/run42 /arch/run42 --wait    copy between storage hosts and wait for the end
  find /data -name '*.h5' -print0 | ctl sync submit /data /bk --files-from - -0 --wait
  ctl sync list                                        what runs, what waits and why, what ended
";

/// Moves bulk data between storage hosts: one master, many agents, every byte checked.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, propagate_version = false, infer_subcommands = false)]
#[command(args_override_self = true)]
#[command(before_long_help = EXAMPLES, after_long_help = exit::help_text())]
pub struct Cli {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(super) struct GlobalArgs {
    /// The master; several (for fail-over) by commas or by repeating it. HOST alone means port 8888 [default:
    /// http://127.0.0.1:8888] [env: CTL_MASTER_URL]
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',')]
    #[arg(help_heading = "Global options")]
    pub(super) master_url: Vec<String>,
    /// The certificate of the master's authority, for https:// URLs: ca.pem of its data_dir [env: CTL_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) ca_file: Option<PathBuf>,
    /// Print text, or exactly the JSON of the API [env: CTL_OUTPUT]
    #[arg(short, long, global = true, value_name = "FORMAT")]
    #[arg(default_value = "table", help_heading = "Global options")]
    pub(super) output: OutputFormat,
    /// Print ids only, and no progress
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(super) quiet: bool,
    /// Log more; given twice: even more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub(super) verbose: u8,
    /// How progress is shown, on standard error: `auto` is a live view on a terminal, else lines [env:
    /// CTL_PROGRESS]
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    #[arg(help_heading = "Global options")]
    pub(super) progress: ProgressMode,
    /// Give up a request that has no complete answer after this, e.g. 30s
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s")]
    #[arg(value_parser = parse_positive_duration, help_heading = "Global options")]
    pub(super) request_timeout: Duration,
}

impl GlobalArgs {
    /// Whether results are text for people, which is neither JSON nor just ids.
    pub(super) fn is_text(&self) -> bool {
        self.output != OutputFormat::Json && !self.quiet
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Table,
    /// As `table`, with more columns, and not fitted to the terminal.
    Wide,
    /// The API's documents, unchanged.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressMode {
    /// A live view on a terminal, else lines.
    Auto,
    /// A live view; lines where standard error is not a terminal.
    Tty,
    /// Whole lines of `key=value`.
    Plain,
    /// Nothing.
    None,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a master, which accepts syncs and assigns tasks; `master status` shows which of several leads
    Master(MasterArgs),
    /// Run an agent on a storage host, which reads, sends and writes files
    Agent(AgentArgs),
    /// Copy the contents of SRC into DST on this machine, with nothing to set up
    Copy(Box<CopyArgs>),
    /// Submit, list, wait for, change, cancel and delete syncs
    #[command(subcommand)]
    Sync(SyncCommand),
    /// List, drain and forget workers
    #[command(subcommand, visible_alias = "worker")]
    Workers(WorkersCommand),
    /// Show the storages that workers see, and how it is known which are the same
    #[command(subcommand, visible_alias = "storages")]
    Storage(StorageCommand),
    /// Create, list and revoke tokens of operators
    #[command(subcommand)]
    Token(TokenCommand),
    /// Store a token for commands of this user, show as what the master serves it
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Repair and maintenance commands
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Show and check the log of changes and denials that the master of this host keeps
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Check configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script
    Completion {
        /// The shell
        #[arg(value_parser = PossibleValuesParser::new(["bash", "zsh", "fish"]).try_map(|name| name.parse::<Shell>()))]
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(super) struct MasterArgs {
    #[command(subcommand)]
    pub(super) command: Option<MasterCommand>,
    /// The configuration, e.g. example_master.yml [default: every setting has its default] [env: CTL_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The API's address and port [default: as configured]; may be given several times. Addresses other than loopback
    /// are served with TLS
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["host", "port"])]
    pub(super) listen: Vec<SocketAddr>,
    /// Serve the API on this address
    #[arg(long, value_name = "ADDR")]
    pub(super) host: Option<IpAddr>,
    /// Serve the API on this port; 0: any that is free
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// Serve plain HTTP on all addresses: every host that reaches them has all rights
    #[arg(long)]
    pub(super) insecure: bool,
    /// Let the certificate authority of this master replace the one in the store: all agents must then join again
    #[arg(long)]
    pub(super) replace_authority: bool,
    /// The directory of the master's files
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    pub(super) check: bool,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum MasterCommand {
    /// Show which of the masters leads (name all of them with --master-url A,B,C)
    Status,
}

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Which of the workers in the configuration this is [default: the only one in it] [env: CTL_WORKER_ID]
    #[arg(long, value_name = "ID")]
    pub(super) worker_id: Option<WorkerId>,
    /// The configuration, e.g. example_agent.yml; one file can serve all agents [env: CTL_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The join token for the first start at a master with TLS [default: as configured]
    #[arg(long, value_name = "FILE")]
    pub(super) join_token_file: Option<PathBuf>,
    /// The time between heartbeats [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub(super) heartbeat_interval: Option<Duration>,
    /// How long running tasks may take to finish after SIGTERM [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub(super) drain_timeout: Option<Duration>,
    /// Check the configuration and exit
    #[arg(long)]
    pub(super) check: bool,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Debug, Default, Args)]
pub(super) struct LogArgs {
    /// off, error, warn, info, debug, trace, or filters [env: CTL_LOG_LEVEL, for an agent also AGENT_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log lines as text or JSON [env: CTL_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
#[command(before_long_help = "Examples:
  ctl copy /scratch/run42 /backup/run42
  ctl copy src mirror --delete --dry-run               what a mirror would change and delete
  find . -name '*.h5' -print0 | ctl copy . /backup --files-from - -0
", after_long_help = options::FILTER_HELP)]
pub(super) struct CopyArgs {
    /// A directory, the contents of which are copied, or a file
    #[arg(value_name = "SRC")]
    pub(super) source: PathBuf,
    /// The new path of the contents (or of the file); created if it does not exist
    #[arg(value_name = "DST")]
    pub(super) destination: PathBuf,
    #[command(flatten)]
    pub(super) transfer: TransferArgs,
    #[command(flatten)]
    pub(super) options: SyncOptionArgs,
    #[command(flatten)]
    pub(super) exit_code: ExitCodeArgs,
}

/// What the exit code reports beside failures.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct ExitCodeArgs {
    /// End with 9 instead of 0 where not a single file was transferred
    #[arg(long)]
    pub(super) error_on_no_transfer: bool,
}

/// What of the source, in which pieces, how fast.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// The size of batches and ranges in MiB, 1 to 1024 [default: as the master is configured, usually 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) chunk_size_mb: Option<u32>,
    /// Send no more than this, all agents together, e.g. 100MiB/s; `none` or 0: as much as they can [default:
    /// none]
    #[arg(long, value_name = "RATE", value_parser = parse_bwlimit)]
    pub(super) bwlimit: Option<Bwlimit>,
    /// Copy only what this file names, one name a line, relative to SRC or absolute below it; `-`:
    /// standard input
    #[arg(long, value_name = "FILE")]
    pub(super) files_from: Option<PathBuf>,
    /// The names are separated by NUL bytes (find -print0)
    #[arg(short = '0', long, requires = "files_from")]
    pub(super) from0: bool,
}

impl TransferArgs {
    /// Whether the list of names is standard input.
    pub(super) fn is_file_list_stdin(&self) -> bool {
        self.files_from.as_ref().is_some_and(|from| from.as_os_str() == "-")
    }
}

/// A limit on bytes per second, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bwlimit(pub(super) Option<u64>);

fn parse_bwlimit(text: &str) -> Result<Bwlimit, String> {
    units::parse_bwlimit(text).map(Bwlimit)
}

#[derive(Debug, Args)]
pub(super) struct SyncIdArgs {
    /// Sync ids, or their first 8 or more characters
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<RequestId>,
}

#[derive(Debug, Args)]
pub(super) struct WorkerIdArgs {
    /// Worker ids
    #[arg(value_name = "WORKER", required = true)]
    pub(super) ids: Vec<WorkerId>,
}

#[derive(Debug, Subcommand)]
pub(super) enum SyncCommand {
    /// Make DST hold what SRC holds
    Submit(Box<SubmitArgs>),
    /// Show all syncs, one in detail, or some
    #[command(visible_aliases = ["list", "ls"])]
    Status(StatusArgs),
    /// Wait until syncs have ended, whatever the outcome
    Wait(WaitArgs),
    /// Change syncs that run
    Set {
        #[command(flatten)]
        syncs: SyncIdArgs,
        #[command(flatten)]
        change: SyncChangeArgs,
    },
    /// Submit failed or cancelled syncs again, each under a new id; files already copied are skipped
    Retry {
        #[command(flatten)]
        syncs: SyncIdArgs,
        /// Only the entries that failed; of a sync with several destinations only those that are not complete
        #[arg(long)]
        failed_only: bool,
    },
    /// Pause syncs: running tasks finish, no new ones start
    Pause(SyncIdArgs),
    /// Resume paused syncs, also those that wait for space at the destination
    Resume(SyncIdArgs),
    /// Take the tasks of syncs from one worker and assign them to others
    Reassign {
        #[command(flatten)]
        syncs: SyncIdArgs,
        /// The worker that holds the tasks
        #[arg(long, value_name = "WORKER")]
        worker: WorkerId,
    },
    /// Cancel syncs and keep their records; copied files stay
    Cancel(SyncIdArgs),
    /// Delete the records of syncs; one that has not ended is cancelled first. Copied files are never touched
    Delete {
        #[command(flatten)]
        syncs: SyncIdArgs,
        /// Ignore ids that do not exist; ids must be given in full
        #[arg(long)]
        ignore_not_found: bool,
    },
    /// Print what failed in a sync; the outcome of each path where it was submitted with --record
    Files(FilesArgs),
    /// Print the BLAKE3 digest of each file of a sync that was submitted with --digests or --manifest, as b3sum does
    Manifest {
        /// The sync id, or its first 8 or more characters
        #[arg(value_name = "ID")]
        id: RequestId,
        /// Print the files with names that b3sum refuses (not UTF-8) instead, with the reason
        #[arg(long)]
        others: bool,
    },
    /// Compare a destination, mounted here, with the digests of its files; the source is not needed
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct SyncChangeArgs {
    /// Send no more than this from now on, all agents together, e.g. 100MiB/s; `none` or 0: as much as
    /// they can
    #[arg(long, value_name = "RATE", value_parser = parse_bwlimit)]
    pub(super) bwlimit: Option<Bwlimit>,
    /// Copy to what these workers see at the destination path as well: ids, patterns and labels, e.g.
    /// gpu-9,'gpu-1*',@rack=3
    #[arg(long, value_name = "WORKERS", value_delimiter = ',')]
    pub(super) add_destination: Vec<WorkerSelector>,
}

#[derive(Debug, Args)]
#[command(before_long_help = "Examples:
  ctl sync files run42 --state failed
  ctl sync files run42 --state failed -0 | ctl sync submit /data /bk --files-from - -0
")]
pub(super) struct FilesArgs {
    /// The sync id, or its first 8 or more characters
    #[arg(value_name = "ID")]
    pub(super) id: RequestId,
    /// Only those that ended so: done, skipped, failed, deleted
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub(super) state: Vec<FileState>,
    /// Print only the names, unescaped, each followed by a NUL byte
    #[arg(short = '0', long)]
    pub(super) print0: bool,
}

#[derive(Debug, Args)]
#[command(
    before_long_help = "Examples:
  ctl sync verify run42                    the destination, mounted here under its own path
  ctl sync verify run42 /mnt/arch/run42    … under another path
  ctl sync verify --manifest run42.b3 /arch/run42
",
    after_long_help = "\
Every regular file that is missing, extra, changed or unreadable is printed, and the exit code is then 23.
The list of digests is held in memory: about 100 bytes and its name for each file. Files that a sync
without --delete found at the destination, and its filters left alone, are extra: see --ignore-extra.
"
)]
pub(super) struct VerifyArgs {
    /// The sync, submitted with --digests or --manifest (then a PATH may follow); with --manifest FILE: the PATH
    #[arg(value_name = "ID|PATH", required = true, num_args = 1..=2)]
    pub(super) id_or_path: Vec<OsString>,
    /// Take the digests from this file, as b3sum writes it, and from FILE.others where it exists; `-`: standard input
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: Option<PathBuf>,
    /// Do not report files that have no digest in the list
    #[arg(long)]
    pub(super) ignore_extra: bool,
}

#[derive(Debug, Args)]
#[command(before_long_help = "Examples:
  ctl sync submit /scratch/run42 /arch/run42 --id run42 --wait && rm -rf /scratch/run42
  id=$(ctl sync submit /lustre/a /nvme/a -q)
  ctl sync submit /a /b --delete --max-delete 100 --trash .trash --wait
  find /data -name '*.h5' -print0 | ctl sync submit /data /bk --files-from - -0 --wait
  ctl sync submit /lustre/model 'gpu-*:/nvme/model'     to the local disks of many nodes, read once

WORKERS are needed where a path is another storage on different workers (ctl storage list): ids, patterns and labels
separated by commas, e.g. gpu-1,gpu-2 or 'gpu-*' or @rack=3
", after_long_help = options::FILTER_HELP)]
pub(super) struct SubmitArgs {
    /// A directory, the contents of which are copied, or a file: `[WORKERS:]/path` on the storage hosts
    #[arg(value_name = "SRC", required_unless_present = "file")]
    pub(super) source: Option<OsString>,
    /// The new path of the contents (or of the file): `[WORKERS:]/path`; each storage that these workers see there gets a copy
    #[arg(value_name = "DST", required_unless_present = "file")]
    pub(super) destination: Option<OsString>,
    /// Submit the request in this file, YAML or JSON as POST /sync accepts it; `-`: standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["source", "files_from"])]
    pub(super) file: Option<PathBuf>,
    /// Name the sync [default: the master makes a name]
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<RequestId>,
    #[command(flatten)]
    pub(super) transfer: TransferArgs,
    #[command(flatten)]
    pub(super) options: SyncOptionArgs,
    /// Do not wait for earlier syncs that read or write the same paths and are not mirrors
    #[arg(long, conflicts_with = "delete")]
    pub(super) allow_overlap: bool,
    /// Refuse the sync (exit 7) where no active worker serves SRC or DST now, instead of queueing it
    #[arg(long)]
    pub(super) no_queue: bool,
    /// Wait until it has ended; the exit code shows how it ended
    #[arg(short, long)]
    pub(super) wait: bool,
    #[command(flatten)]
    pub(super) wait_limit: WaitLimitArgs,
    #[command(flatten)]
    pub(super) exit_code: ExitCodeArgs,
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    pub(super) syncs: SyncIdArgs,
    #[command(flatten)]
    pub(super) wait_limit: WaitLimitArgs,
}

/// When waiting ends before the sync does.
#[derive(Debug, Clone, Args)]
pub(super) struct WaitLimitArgs {
    /// Stop waiting after this; the sync continues
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// The exit code when --timeout passed
    #[arg(long, value_name = "N", default_value_t = exit::DEFAULT_TIMEOUT_EXIT_CODE)]
    pub(super) timeout_exit_code: u8,
    /// ^C cancels the sync (otherwise it only stops the waiting)
    #[arg(long)]
    pub(super) cancel_on_interrupt: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Sync ids, or their first 8 or more characters [default: all syncs]
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<RequestId>,
    /// Only those in one of these states, e.g. QUEUED,PROGRESS
    #[arg(long, value_name = "STATE", value_delimiter = ',', ignore_case = true)]
    pub(super) state: Vec<SyncState>,
    /// The newest of them only, at most this many
    #[arg(long, value_name = "N", conflicts_with = "ids")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum WorkersCommand {
    /// Show all workers
    #[command(visible_alias = "ls")]
    List,
    /// Show one worker with its network interfaces
    Show {
        /// The worker's id
        id: WorkerId,
    },
    /// Drain workers: they finish and flush their tasks, and get no new ones
    Drain {
        #[command(flatten)]
        workers: WorkerIdArgs,
        /// The reason, shown with the worker
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Wait until they have no tasks and no other agent writes through them
        #[arg(long)]
        wait: bool,
    },
    /// Undrain workers: they get tasks again
    Undrain(WorkerIdArgs),
    /// Forget workers that have stopped or send no heartbeats: their tasks go to others
    Forget(WorkerIdArgs),
    /// Revoke the certificates of workers: the next request of their agents is refused, and their tasks go to others.
    /// They can join again with a new token (ctl token create --join)
    Revoke(WorkerIdArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// Show all storages; `-o wide` names all workers
    #[command(visible_alias = "ls")]
    List,
    /// Show one storage with its workers
    Show {
        /// The storage's id
        id: StorageId,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RotateCommand {
    /// The key that signs tickets, by which agents accept data from each other
    TicketKey,
    /// The certificate authority (ca.pem, ca.key); certificates of both are accepted until the rotation is finished
    #[command(
        after_help = "Agents get certificates of the new authority within moments. See with --status that all have one, then run --finish.\n\
        See docs/security.md."
    )]
    Ca {
        /// Print the authority and how many agents still have certificates of the former one; changes nothing
        #[arg(long, conflicts_with_all = ["finish", "force"])]
        status: bool,
        /// Refuse certificates of the former authority from now on
        #[arg(long)]
        finish: bool,
        /// Finish also while agents have certificates of the former authority: they must then join again
        #[arg(long, requires = "finish")]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// Requeue tasks that no worker holds; removes orphaned records from the store
    Reconcile,
    /// Accept the leading master's wall clock, so that ended syncs are removed again after their retention
    ConfirmClock,
    /// Replace a key of the installation, without a stop
    Rotate {
        #[command(subcommand)]
        key: RotateCommand,
    },
    /// Copy the embedded store of a running master into FILE, which must not exist yet
    #[command(
        after_help = "FILE is made readable for its owner only. It does not contain the key that signs tickets: a restored store creates a new one.\n\
        To restore: stop the master, copy FILE to longhaul.db in its data_dir, start it (docs/operations.md)."
    )]
    Backup {
        /// The file to create, on this host
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Report everything that is wrong with a master's or the agents' configuration
    Check {
        /// The file
        file: PathBuf,
        /// Check as this worker, on its host: whether its storage paths exist
        #[arg(long, value_name = "ID")]
        worker_id: Option<WorkerId>,
        /// End with 1 if there are warnings, e.g. of something that is not reachable from this host
        #[arg(long)]
        strict: bool,
    },
}

#[cfg(test)]
mod tests;
