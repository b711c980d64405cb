//! The command line: parses the arguments, runs one command, and turns the result into text and an exit code. The only
//! layer that prints.
//!
//! - Arguments: [`args`], `audit_args`, `token_args`, `options`, `env_vars`, `files_from`, `path_args`, `time_arg`; `flag_names` and `rsync_options` explain errors
//! - Commands: `sync`, `submit`, `file_records`, `manifest`, `verify`, `workers`, `storages`, `tokens`, `admin`, `audit`, `config`, `info`
//! - Processes: `master`, `agent` and `copy`, on `service`
//! - Tokens of this user: `credentials`
//! - Several ids: `resource`; waiting: `follow`, `wait`, `signals`, [`progress`]
//! - Text: `tables`, `details`, `destinations` and `outcome_report`, on `sync_text`, `table_layout` and `sanitize`
//! - Results: `console` writes them, `error` holds what ends a command early, [`exit`] the codes

mod admin;
mod agent;
pub mod args;
mod audit;
mod audit_args;
mod b3sum;
mod config;
mod console;
mod copy;
mod credentials;
mod destinations;
mod details;
mod env_vars;
mod error;
pub mod exit;
mod file_records;
mod files_from;
mod flag_names;
mod follow;
mod info;
mod manifest;
mod master;
mod options;
mod outcome_report;
mod path_args;
mod pending_file;
pub mod progress;
mod resource;
mod rsync_options;
mod sanitize;
mod service;
mod signals;
mod storages;
mod submit;
mod sync;
mod sync_text;
mod table_layout;
mod tables;
mod time_arg;
mod token_args;
mod tokens;
mod verify;
mod wait;
mod workers;

use crate::client::{ClientOptions, Credentials, MasterClient};
use crate::identity::ServerTrust;
use crate::util::shell_quote::quote_for_shell;
use args::{Cli, Command, GlobalArgs, OutputFormat, SyncCommand};
use clap::{CommandFactory, FromArgMatches};
use error::{CliError, Result};
use exit::Exit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long a command waits for one of several masters to become the leader.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a command is resent, counted from its first attempt, if its reply was lost.
const RESEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The global options.
struct Context {
    global: GlobalArgs,
    /// How hints call this program so that it uses the same master.
    ctl_command: String,
}

impl Context {
    fn new(global: GlobalArgs) -> Self {
        let urls = global.master_url.join(",");
        let is_default =
            urls.is_empty() || std::env::var("CTL_MASTER_URL").is_ok_and(|url| url == urls);
        let mut ctl_command = match is_default {
            true => "ctl".to_owned(),
            false => format!("ctl --master-url {urls}"),
        };
        let ca_file = global.ca_file.as_ref().map(|file| file.as_os_str());
        if let Some(file) =
            ca_file.filter(|file| std::env::var_os("CTL_CA_FILE").as_deref() != Some(*file))
        {
            ctl_command += &format!(" --ca-file {}", quote_for_shell(file.as_bytes()));
        }
        Context { global, ctl_command }
    }

    /// A client of the given masters, or of the default one, with the tokens of this user.
    fn new_client(&self) -> Result<MasterClient> {
        self.new_client_with(credentials::load_credentials()?)
    }

    /// … with other tokens.
    fn new_client_with(&self, credentials: Credentials) -> Result<MasterClient> {
        let mut urls = self.global.master_url.clone();
        if urls.is_empty() {
            urls.push(args::DEFAULT_MASTER_URL.to_owned());
        }
        let options = ClientOptions {
            request_timeout: self.global.request_timeout,
            takeover_timeout: TAKEOVER_TIMEOUT,
            resend_timeout: RESEND_TIMEOUT,
            trust: load_trust(self.global.ca_file.as_deref())?,
            credentials,
            identity: None,
        };
        Ok(MasterClient::new(urls, options)?)
    }

    /// Prints a result: the document with `-o json`, otherwise `quiet` with `--quiet`, otherwise `text`.
    fn print(&self, document: &[u8], quiet: &str, text: &str) -> Result<()> {
        console::write_data(match self.global.output {
            OutputFormat::Json => document,
            _ if self.global.quiet => quiet.as_bytes(),
            OutputFormat::Table | OutputFormat::Wide => text.as_bytes(),
        })
    }
}

/// The servers that are accepted at `https` URLs: those of the authorities in this file.
///
/// # Errors
/// The file cannot be used.
fn load_trust(ca_file: Option<&Path>) -> Result<ServerTrust> {
    let trust = ca_file.map(ServerTrust::from_file).transpose();
    let trust = trust.map_err(|e| CliError::new(e.to_string()).with_exit(Exit::Config))?;
    Ok(trust.unwrap_or_default())
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Commands hold tokens, services keys. Services log it where the kernel refuses this.
    let _ = crate::util::core_dumps::disable();
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(mut e) => {
            rsync_options::suggest_replacement(&mut e);
            return print_parser_message(&e);
        }
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return print_parser_message(&e.format(&mut Cli::command())),
    };
    if let Err(e) = env_vars::apply_env_vars(&mut cli, &matches, |name| std::env::var_os(name)) {
        console::print_note(&e.render());
        return ExitCode::from(e.exit.code());
    }
    let ctx = Context::new(cli.global);
    let exit = run(&ctx, cli.command).unwrap_or_else(|e| {
        console::print_note(&e.render());
        if ctx.global.output == OutputFormat::Json {
            console::print_note(&e.document());
        }
        e.exit
    });
    ExitCode::from(exit.code())
}

/// Prints help or version (exit code 0) or an error (2) of the parser.
fn print_parser_message(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
}

fn run(ctx: &Context, command: Command) -> Result<Exit> {
    // Both hold for the threads that this one starts. The first has no effect here, because no program is executed; it
    // has one on what an intruder executes.
    let _ = rustix::thread::set_no_new_privs(true);
    if let Command::Agent(args) = &command {
        agent::confine(ctx, args)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(crate::fs::begin_thread)
        .build()
        .map_err(|e| CliError::new(format!("cannot start threads: {e}")))?;
    let exit = runtime.block_on(async {
        signals::catch_file_size_signal()?;
        match command {
            Command::Master(args) => master::run(ctx, args).await,
            Command::Agent(args) => agent::run(ctx, args).await,
            Command::Copy(args) => copy::run(ctx, *args).await,
            Command::Admin(command) => admin::run(ctx, command).await,
            Command::Token(command) => tokens::run_token_command(ctx, command).await,
            Command::Auth(command) => tokens::run_auth_command(ctx, command).await,
            Command::Audit(command) => audit::run(ctx, command),
            Command::Config(command) => config::run(ctx, command),
            Command::Sync(command) => run_sync_command(ctx, command).await,
            Command::Storage(command) => storages::run(ctx, command).await,
            Command::Workers(command) => workers::run(ctx, command).await,
            Command::Completion { shell } => info::print_completion(shell),
            Command::Version => info::print_version(ctx),
        }
    });
    // A thread that is blocked in a system call on a dead file system must not delay the exit.
    runtime.shutdown_background();
    exit
}

async fn run_sync_command(ctx: &Context, command: SyncCommand) -> Result<Exit> {
    match command {
        SyncCommand::Submit(args) => submit::run(ctx, *args).await,
        SyncCommand::Status(args) => sync::show_status(ctx, args).await,
        SyncCommand::Wait(args) => sync::wait_for_syncs(ctx, args).await,
        SyncCommand::Set { syncs, change } => sync::change(ctx, syncs.ids, change).await,
        SyncCommand::Retry { syncs, failed_only } => sync::retry(ctx, syncs.ids, failed_only).await,
        SyncCommand::Pause(syncs) => sync::set_paused(ctx, syncs.ids, true).await,
        SyncCommand::Resume(syncs) => sync::set_paused(ctx, syncs.ids, false).await,
        SyncCommand::Reassign { syncs, worker } => sync::reassign(ctx, syncs.ids, worker).await,
        SyncCommand::Cancel(syncs) => sync::cancel(ctx, syncs.ids).await,
        SyncCommand::Delete { syncs, ignore_not_found } => {
            sync::delete(ctx, syncs.ids, ignore_not_found).await
        }
        SyncCommand::Files(args) => file_records::print_files(ctx, args).await,
        SyncCommand::Manifest { id, others } => manifest::print_manifest(ctx, id, others).await,
        SyncCommand::Verify(args) => verify::run(ctx, args).await,
    }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
