//! `ctl workers …`.

use super::Context;
use super::args::{Output, WorkersCommand};
use super::exit::Exit;
use super::failure::Failure;
use super::{out, table};
use crate::wire::worker::{WorkerList, WorkerView};
use jiff::Timestamp;

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked, or knows no such worker.
pub(super) async fn run(ctx: &Context, command: WorkersCommand) -> Result<Exit, Failure> {
    let list = ctx.client()?.workers().await?;
    match command {
        WorkersCommand::List => show_all(ctx, &list.body, &list)?,
        WorkersCommand::Show { id } => show(ctx, find(&list, &id)?)?,
    }
    Ok(Exit::Ok)
}

fn show_all(ctx: &Context, body: &[u8], list: &WorkerList) -> Result<(), Failure> {
    match ctx.global.output {
        Output::Json => out::data(body)?,
        Output::Table if ctx.global.quiet => {
            let all = list.active.iter().chain(&list.inactive);
            let ids: String = all.map(|w| format!("{}\n", w.worker_id)).collect();
            out::data(ids.as_bytes())?;
        }
        Output::Table => out::data(table::workers(list, Timestamp::now()).as_bytes())?,
    }
    Ok(())
}

fn find<'a>(list: &'a WorkerList, id: &str) -> Result<&'a WorkerView, Failure> {
    let mut all = list.active.iter().chain(&list.inactive);
    all.find(|worker| worker.worker_id.as_str() == id).ok_or_else(|| {
        let id = crate::wire::path::show(id.as_bytes());
        Failure::new(format!("the master knows no worker {id}"))
            .hinted("`ctl workers list` shows those that it knows")
            .exits(Exit::NotFound)
    })
}

fn show(ctx: &Context, worker: &WorkerView) -> Result<(), Failure> {
    match ctx.global.output {
        Output::Json => {
            let json = serde_json::to_vec(worker)
                .map_err(|e| Failure::new(format!("the worker cannot be written as JSON: {e}")))?;
            out::data(&json)?;
        }
        Output::Table => {
            out::data(table::worker_record(worker, Timestamp::now()).as_bytes())?;
        }
    }
    Ok(())
}
