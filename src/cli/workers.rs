//! `ctl workers …`.

use super::Context;
use super::args::{Output, WorkersCommand};
use super::exit::Exit;
use super::failure::Failure;
use super::{out, table};
use jiff::Timestamp;

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked.
pub(super) async fn run(ctx: &Context, command: WorkersCommand) -> Result<Exit, Failure> {
    let WorkersCommand::List = command;
    let list = ctx.client()?.workers().await?;
    match ctx.global.output {
        Output::Json => out::data(&list.body)?,
        Output::Table if ctx.global.quiet => {
            let all = list.active.iter().chain(&list.inactive);
            let ids: String = all.map(|w| format!("{}\n", w.worker_id)).collect();
            out::data(ids.as_bytes())?;
        }
        Output::Table => out::data(table::workers(&list, Timestamp::now()).as_bytes())?,
    }
    Ok(Exit::Ok)
}
