//! The command line: parses, runs one command, and turns whatever happened into text and an exit
//! code. The only layer that prints.
//!
//! - [`exit`]: the codes; `failure`: what ends a command early; `out`: all writing
//! - [`args`], `options`, `env_vars`, `path_args`: commands and options; `flag_names`, `rsync_options`: how errors name them
//! - `submit`, `sync`, `records`, `verify`, `workers`, `admin` (with `backup`), `config`, `info`: the commands of operators
//! - `master`, `agent`, `copy`, on `service`: the commands that run something in this process
//! - `wait`, `signals`, `console`, `outcome_report`, `tables`, `table_layout`, `files_from`, `b3sum`: what they are made of

mod admin;
mod agent;
pub mod args;
mod b3sum;
mod backup;
mod config;
mod console;
mod copy;
mod env_vars;
mod error;
pub mod exit;
mod files_from;
mod flag_names;
mod info;
mod master;
mod options;
mod outcome_report;
mod path_args;
pub mod progress;
mod records;
mod rsync_options;
mod service;
mod shell_quote;
mod signals;
mod submit;
mod sync;
mod table_layout;
mod tables;
mod verify;
mod wait;
mod workers;

use crate::client::{ClientOptions, MasterClient};
use args::{Cli, Command, GlobalArgs, OutputFormat};
use clap::{CommandFactory, FromArgMatches};
use error::CliError;
use exit::Exit;
use std::process::ExitCode;
use std::time::Duration;

/// How long a command that was told of several masters waits for one of them to lead.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an order whose reply was lost is sent again, from its first attempt.
const RESEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What every command needs.
struct Context {
    global: GlobalArgs,
    /// How to call this program in a hint so that it talks to the same master.
    ctl_command: String,
}

impl Context {
    fn new(global: GlobalArgs) -> Self {
        let given = global.master_url.join(",");
        let from_env = std::env::var("CTL_MASTER_URL").is_ok_and(|url| url == given);
        let ctl = match given.as_str() {
            "" => "ctl".to_owned(),
            _ if from_env => "ctl".to_owned(),
            url => format!("ctl --master-url {url}"),
        };
        Context { global, ctl_command: ctl }
    }

    /// A client of the master that the operator named, or of the default one.
    fn new_client(&self) -> Result<MasterClient, CliError> {
        let mut urls = self.global.master_url.clone();
        if urls.is_empty() {
            urls.push(args::DEFAULT_MASTER_URL.to_owned());
        }
        let request_timeout = self.global.request_timeout;
        let options = ClientOptions {
            request_timeout,
            takeover_timeout: TAKEOVER_TIMEOUT,
            resend_timeout: RESEND_TIMEOUT,
        };
        Ok(MasterClient::new(urls, options)?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
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
    if let Err(failure) =
        env_vars::apply_env_vars(&mut cli, &matches, |name| std::env::var_os(name))
    {
        console::print_note(&failure.render());
        return ExitCode::from(failure.exit.code());
    }
    let ctx = Context::new(cli.global);
    let json = ctx.global.output == OutputFormat::Json;
    let exit = run(ctx, cli.command).unwrap_or_else(|failure| {
        console::print_note(&failure.render());
        if json {
            console::print_note(&info::exit_error_document(&failure));
        }
        failure.exit
    });
    ExitCode::from(exit.code())
}

/// Prints what the parser answers: help and the version go to standard output and end with 0, errors end with 2.
fn print_parser_message(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
}

fn run(ctx: Context, command: Command) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(format!("cannot start threads: {e}")))?;
    let exit = runtime.block_on(async {
        signals::catch_file_size_signal()?;
        match command {
            Command::Master(args) => master::run(&ctx, args).await,
            Command::Agent(args) => agent::run(&ctx, args).await,
            Command::Copy(args) => copy::run(&ctx, *args).await,
            Command::Admin(command) => admin::run(&ctx, command).await,
            Command::Config(command) => config::run(&ctx, command),
            Command::Sync(command) => sync::run(&ctx, command).await,
            Command::Workers(command) => workers::run(&ctx, command).await,
            Command::Completion { shell } => info::print_completion(shell),
            Command::Version => info::print_version(&ctx),
        }
    });
    // A thread blocked in a system call on a dead file system must not keep the program alive.
    runtime.shutdown_background();
    exit
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
