//! The arguments of `ctl audit`.

use super::time_arg::parse_time;
use crate::audit::Head;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Show changes by operators, and what was denied; `-o json` prints the lines as they are
    List(AuditListArgs),
    /// Check that no line was changed, removed or inserted; exit code 1 if the chain of digests is broken
    Verify {
        #[command(flatten)]
        log: AuditLogArgs,
        /// Check also that the log has this line, e.g. one that the log of the master names
        #[arg(long, value_name = "SEQ:DIGEST")]
        head: Option<Head>,
    },
}

impl AuditCommand {
    /// The options that say which log is meant.
    pub(super) fn log_args_mut(&mut self) -> &mut AuditLogArgs {
        match self {
            AuditCommand::List(args) => &mut args.log,
            AuditCommand::Verify { log, .. } => log,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct AuditLogArgs {
    /// The master's configuration, which names its data_dir [default: every setting has its default] [env: CTL_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The directory of the master's files
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(super) data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct AuditListArgs {
    #[command(flatten)]
    pub(super) log: AuditLogArgs,
    /// Only from this time on: 2h (ago), 2026-03-01, 2026-03-01T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(super) since: Option<Timestamp>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(super) until: Option<Timestamp>,
    /// Only of this sync
    #[arg(long, value_name = "ID")]
    pub(super) sync: Option<String>,
    /// Only of this principal
    #[arg(long, value_name = "NAME")]
    pub(super) principal: Option<String>,
}
