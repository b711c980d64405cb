//! `ctl version`, `ctl completion`, and the last line of a failure for programs.

use super::Context;
use super::args::{Cli, OutputFormat, Shell};
use super::console;
use super::error::CliError;
use super::exit::Exit;
use clap::CommandFactory;
use clap_complete::{Shell as Target, generate};

/// The version of this program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints the version of this program; no master is asked.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_version(ctx: &Context) -> Result<Exit, CliError> {
    let text = match ctx.global.output {
        OutputFormat::Json => {
            serde_json::json!({ "name": "longhaul", "version": VERSION }).to_string()
        }
        OutputFormat::Table if ctx.global.quiet => VERSION.to_owned(),
        OutputFormat::Table => format!("ctl {VERSION} (longhaul)"),
    };
    console::write_data(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// Prints the completion script for `shell`.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_completion(shell: Shell) -> Result<Exit, CliError> {
    let target = match shell {
        Shell::Bash => Target::Bash,
        Shell::Zsh => Target::Zsh,
        Shell::Fish => Target::Fish,
    };
    let mut script = Vec::new();
    generate(target, &mut Cli::command(), "ctl", &mut script);
    console::write_data(&script)?;
    Ok(Exit::Ok)
}

/// With `-o json` the last line on standard error: the failure as a document.
pub(super) fn exit_error_document(failure: &CliError) -> String {
    serde_json::json!({
        "message_type": "exit_error",
        "code": failure.exit.code(),
        "message": failure.message,
    })
    .to_string()
}
