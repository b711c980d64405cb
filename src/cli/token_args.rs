//! The arguments of `ctl token` and `ctl auth`.

use super::options::parse_positive_duration;
use crate::wire::run_as::RunAs;
use crate::wire::token::{Right, Role, TokenId};
use crate::wire::{AbsPath, WorkerId};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it; it cannot be shown again
    Create(TokenArgs),
    /// Show all tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke tokens: they are refused from the next request on
    Revoke {
        /// Token ids
        #[arg(value_name = "TOKEN", required = true)]
        ids: Vec<TokenId>,
    },
}

#[derive(Debug, Args)]
#[command(before_long_help = "Examples:
  ctl token create --role viewer --scope / /
  ctl token create --role operator --scope /lustre/proj /arch/proj --may delete --expires 30d --label nightly
  ctl token create --join --worker gpu-1 --path /scratch > join.token      for: ctl agent --join-token-file join.token
  ctl token create --role operator --scope /home/alice /arch/alice --run-as 1000:1000,27
")]
pub(super) struct TokenArgs {
    /// viewer: read; operator: submit and change syncs; admin: everything, on all paths
    #[arg(long, value_parser = parse_role, required_unless_present = "join", conflicts_with = "join")]
    pub(super) role: Option<Role>,
    /// Create a join token instead, with which an agent gets its certificate; it is good once
    #[arg(long, requires_all = ["worker", "path"], conflicts_with_all = ["scope", "may", "expires", "label"])]
    pub(super) join: bool,
    /// The worker that joins
    #[arg(long, value_name = "ID", requires = "join")]
    pub(super) worker: Option<WorkerId>,
    /// Directories of the worker: its storage paths must lie at or below one of them
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "join", value_parser = parse_scope_path)]
    pub(super) path: Vec<AbsPath>,
    /// The join token ends after this time [default: 15m]
    #[arg(long, value_name = "DURATION", requires = "join", value_parser = parse_positive_duration)]
    pub(super) ttl: Option<Duration>,
    /// Syncs with a source at or below FROM and a destination at or below TO; may be repeated
    #[arg(long, value_names = ["FROM", "TO"], num_args = 2, value_parser = parse_scope_path)]
    pub(super) scope: Vec<AbsPath>,
    /// Allow an operator these options: delete, chown, follow_links (--links copy)
    #[arg(long, value_name = "RIGHTS", value_delimiter = ',', value_parser = parse_right)]
    pub(super) may: Vec<Right>,
    /// Agents act as this user for the syncs of an operator: UID[:GID[,GROUP…]], numbers [GID: the number of UID]
    #[arg(long, value_name = "UID[:GID[,GROUP…]]")]
    pub(super) run_as: Option<RunAs>,
    /// The token ends after this time, e.g. 30d [default: it does not end]
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub(super) expires: Option<Duration>,
    /// Its purpose or user, for lists
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
}

/// A word of the API as the value of an option.
fn parse_word<T: serde::de::DeserializeOwned>(text: &str, all: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("must be one of {all}"))
}

fn parse_role(text: &str) -> Result<Role, String> {
    parse_word(text, "viewer, operator, admin")
}

fn parse_right(text: &str) -> Result<Right, String> {
    parse_word(text, "delete, chown, follow_links")
}

fn parse_scope_path(text: &str) -> Result<AbsPath, String> {
    AbsPath::new(text).map_err(|e| e.to_string())
}

#[derive(Debug, Subcommand)]
pub(super) enum AuthCommand {
    /// Store a token for the master, after the master has accepted it
    Login {
        /// Read the token from this file instead of standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Show as what the master serves this user
    Status,
    /// Remove the stored token for the master
    Logout,
}
