//! `ctl version`, `ctl completion`, and the last line of a failure for programs.

use super::Context;
use super::args::{Cli, Output, Shell};
use super::exit::Exit;
use super::failure::Failure;
use super::out;
use clap::CommandFactory;
use clap_complete::{Shell as Target, generate};

/// The version of this program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints the version of this program; no master is asked.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn version(ctx: &Context) -> Result<Exit, Failure> {
    let text = match ctx.global.output {
        Output::Json => serde_json::json!({ "name": "longhaul", "version": VERSION }).to_string(),
        Output::Table if ctx.global.quiet => VERSION.to_owned(),
        Output::Table => format!("ctl {VERSION} (longhaul)"),
    };
    out::data(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// Prints the completion script for `shell`.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn completion(shell: Shell) -> Result<Exit, Failure> {
    let target = match shell {
        Shell::Bash => Target::Bash,
        Shell::Zsh => Target::Zsh,
        Shell::Fish => Target::Fish,
    };
    let mut script = Vec::new();
    generate(target, &mut Cli::command(), "ctl", &mut script);
    out::data(&script)?;
    Ok(Exit::Ok)
}

/// With `-o json` the last line on standard error: the failure as a document.
pub(super) fn exit_error(failure: &Failure) -> String {
    serde_json::json!({
        "message_type": "exit_error",
        "code": failure.exit.code(),
        "message": failure.message,
    })
    .to_string()
}
