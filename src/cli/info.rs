//! `ctl version` and `ctl completion`.

use super::args::Cli;
use super::error::Result;
use super::exit::Exit;
use super::{Context, console};
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use serde_json::json;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints the version of this program, without asking a master.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_version(ctx: &Context) -> Result<Exit> {
    let document = json!({ "name": "longhaul", "version": VERSION }).to_string();
    ctx.print(document.as_bytes(), VERSION, &format!("ctl {VERSION} (longhaul)"))?;
    Ok(Exit::Ok)
}

/// Prints the completion script for `shell`.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn print_completion(shell: Shell) -> Result<Exit> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "ctl", &mut script);
    console::write_data(&script)?;
    Ok(Exit::Ok)
}
