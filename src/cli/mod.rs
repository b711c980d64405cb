//! The command line: parses, runs one command, and turns whatever happened into text and an exit
//! code. The only layer that prints.
//!
//! - [`exit`]: the codes; `failure`: what ends a command early; `out`: all writing
//! - [`args`], `options`, `env`, `given`: commands and options; `flags`, `rsync`: how errors name them
//! - `submit`, `sync`, `records`, `verify`, `workers`, `admin` (with `backup`), `config`, `info`: the commands of operators
//! - `master`, `agent`, `copy`, on `service`: the commands that run something in this process
//! - `wait`, `signals`, [`progress`], `report`, `table`, `layout`, `names`, `b3sum`: what they are made of

mod admin;
mod agent;
pub mod args;
mod b3sum;
mod backup;
mod config;
mod copy;
mod env;
pub mod exit;
mod failure;
mod flags;
mod given;
mod info;
mod layout;
mod master;
mod names;
mod options;
mod out;
pub mod progress;
mod records;
mod report;
mod rsync;
mod service;
mod shell;
mod signals;
mod submit;
mod sync;
mod table;
mod verify;
mod wait;
mod workers;

use crate::client::{ClientOptions, MasterClient};
use args::{Cli, Command, Global, Output};
use clap::{CommandFactory, FromArgMatches};
use exit::Exit;
use failure::Failure;
use std::process::ExitCode;
use std::time::Duration;

/// How long a command that was told of several masters waits for one of them to lead.
const TAKEOVER: Duration = Duration::from_secs(15);

/// How long an order whose reply was lost is sent again, from its first attempt.
const RESEND: Duration = Duration::from_secs(10);

/// What every command needs.
struct Context {
    global: Global,
    /// How to call this program in a hint so that it talks to the same master.
    ctl: String,
}

impl Context {
    fn new(global: Global) -> Self {
        let given = global.master_url.join(",");
        let from_env = std::env::var("CTL_MASTER_URL").is_ok_and(|url| url == given);
        let ctl = match given.as_str() {
            "" => "ctl".to_owned(),
            _ if from_env => "ctl".to_owned(),
            url => format!("ctl --master-url {url}"),
        };
        Context { global, ctl }
    }

    /// A client of the master that the operator named, or of the default one.
    fn client(&self) -> Result<MasterClient, Failure> {
        let mut urls = self.global.master_url.clone();
        if urls.is_empty() {
            urls.push(args::DEFAULT_MASTER.to_owned());
        }
        let request_timeout = self.global.request_timeout;
        let options = ClientOptions { request_timeout, takeover: TAKEOVER, resend: RESEND };
        Ok(MasterClient::new(urls, options)?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(mut e) => {
            rsync::explain(&mut e);
            return refused(&e);
        }
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return refused(&e.format(&mut Cli::command())),
    };
    if let Err(failure) = env::fill(&mut cli, &matches, |name| std::env::var_os(name)) {
        out::note(&failure.render());
        return ExitCode::from(failure.exit.code());
    }
    let ctx = Context::new(cli.global);
    let json = ctx.global.output == Output::Json;
    let exit = run(ctx, cli.command).unwrap_or_else(|failure| {
        out::note(&failure.render());
        if json {
            out::note(&info::exit_error(&failure));
        }
        failure.exit
    });
    ExitCode::from(exit.code())
}

/// Prints what the parser answers: help and the version go to standard output and end with 0, errors end with 2.
fn refused(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
}

fn run(ctx: Context, command: Command) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start threads: {e}")))?;
    let exit = runtime.block_on(async {
        signals::survive_file_size_limit()?;
        match command {
            Command::Master(args) => master::run(&ctx, args).await,
            Command::Agent(args) => agent::run(&ctx, args).await,
            Command::Copy(args) => copy::run(&ctx, *args).await,
            Command::Admin(command) => admin::run(&ctx, command).await,
            Command::Config(command) => config::run(&ctx, command),
            Command::Sync(command) => sync::run(&ctx, command).await,
            Command::Workers(command) => workers::run(&ctx, command).await,
            Command::Completion { shell } => info::completion(shell),
            Command::Version => info::version(&ctx),
        }
    });
    // A thread blocked in a system call on a dead file system must not keep the program alive.
    runtime.shutdown_background();
    exit
}

#[cfg(test)]
mod outcomes;
#[cfg(test)]
mod sample;
