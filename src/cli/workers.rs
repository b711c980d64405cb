//! `ctl workers …`.

use super::Context;
use super::args::{Output, WorkersCommand};
use super::exit::Exit;
use super::failure::Failure;
use super::sync::for_each;
use super::{out, table};
use crate::client::Reply;
use crate::util::units;
use crate::wire::worker::{DrainOrder, WorkerList, WorkerView};
use crate::wire::{RequestId, WorkerId};
use jiff::Timestamp;

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked, or knows no such worker.
pub(super) async fn run(ctx: &Context, command: WorkersCommand) -> Result<Exit, Failure> {
    match command {
        WorkersCommand::List => {
            let list = ctx.client()?.workers().await?;
            show_all(ctx, &list.body, &list)?;
        }
        WorkersCommand::Show { id } => {
            let worker = ctx.client()?.worker(&id).await?;
            show(ctx, &worker)?;
        }
        WorkersCommand::Drain { ids, reason } => {
            return drain(ctx, ids, Some(DrainOrder { by: operator(), reason })).await;
        }
        WorkersCommand::Undrain { ids } => return drain(ctx, ids, None).await,
        WorkersCommand::Forget { ids } => return forget(ctx, ids).await,
    }
    Ok(Exit::Ok)
}

/// Who runs this program, as far as he says so.
fn operator() -> Option<String> {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|v| std::env::var(v).ok());
    named.into_iter().find(|name| !name.is_empty())
}

async fn drain(
    ctx: &Context,
    ids: Vec<WorkerId>,
    order: Option<DrainOrder>,
) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let drain = async |id: &WorkerId| {
        let reply = client.drain(id, order.as_ref()).await?;
        let text = match (&reply.drained, reply.in_flight) {
            (None, _) => format!("Worker {id} works again"),
            (Some(_), 0) => format!("Worker {id} is drained: it has nothing in hand"),
            (Some(_), n) => {
                format!(
                    "Worker {id} is drained: it finishes {}",
                    units::counted(n, "task", "tasks")
                )
            }
        };
        Ok(Some((text, reply.body)))
    };
    for_each(ctx, ids, drain).await
}

/// `ctl sync reassign`.
pub(super) async fn reassign(
    ctx: &Context,
    ids: Vec<RequestId>,
    worker: WorkerId,
) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let reassign = async |id: &RequestId| {
        let reply = client.reassign(id, &worker).await?;
        let text = match reply.tasks {
            0 => format!("Worker {worker} has no task of sync {id}"),
            n => {
                let tasks = units::counted(n, "task", "tasks");
                format!("Taken from worker {worker}, for others: {tasks} of sync {id}")
            }
        };
        Ok(Some((text, reply.body)))
    };
    for_each(ctx, ids, reassign).await
}

async fn forget(ctx: &Context, ids: Vec<WorkerId>) -> Result<Exit, Failure> {
    let client = ctx.client()?;
    let forget = async |id: &WorkerId| {
        let reply = client.forget_worker(id).await?;
        let text = match reply.requeued {
            0 => format!("Worker {id} is forgotten"),
            n => {
                let tasks = units::counted(n, "task", "tasks");
                format!("Worker {id} is forgotten; free for others: {tasks} that it had")
            }
        };
        Ok(Some((text, reply.body)))
    };
    for_each(ctx, ids, forget).await
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

fn show(ctx: &Context, worker: &Reply<WorkerView>) -> Result<(), Failure> {
    match ctx.global.output {
        Output::Json => out::data(&worker.body),
        Output::Table => out::data(table::worker_record(worker, Timestamp::now()).as_bytes()),
    }
}
