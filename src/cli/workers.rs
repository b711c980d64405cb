//! `ctl workers …`.

use super::Context;
use super::args::{OutputFormat, WorkersCommand};
use super::error::CliError;
use super::exit::Exit;
use super::sync::for_each_resource;
use super::table_layout::terminal_width;
use super::{console, tables};
use crate::client::Reply;
use crate::util::units;
use crate::wire::worker::{DrainReply, DrainRequest, WorkerList, WorkerState, WorkerView};
use crate::wire::{RequestId, WorkerId};
use jiff::Timestamp;
use std::time::Duration;

/// How often the master is asked how far a drain is.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Runs one of the commands.
///
/// # Errors
/// The master can't be asked, or knows no such worker.
pub(super) async fn run(ctx: &Context, command: WorkersCommand) -> Result<Exit, CliError> {
    match command {
        WorkersCommand::List => {
            let list = ctx.new_client()?.list_workers().await?;
            show_workers(ctx, &list.body, &list)?;
        }
        WorkersCommand::Show { id } => {
            let worker = ctx.new_client()?.get_worker(&id).await?;
            show_worker(ctx, &worker)?;
        }
        WorkersCommand::Drain { ids, reason, wait } => {
            let order = DrainRequest { by: operator_name(), reason };
            return drain(ctx, ids, Some(order), wait).await;
        }
        WorkersCommand::Undrain { ids } => return drain(ctx, ids, None, false).await,
        WorkersCommand::Forget { ids } => return forget(ctx, ids).await,
    }
    Ok(Exit::Ok)
}

/// Who runs this program, as far as he says so.
fn operator_name() -> Option<String> {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|v| std::env::var(v).ok());
    named.into_iter().find(|name| !name.is_empty())
}

async fn drain(
    ctx: &Context,
    ids: Vec<WorkerId>,
    order: Option<DrainRequest>,
    wait: bool,
) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let drain = async |id: &WorkerId| {
        let mut reply = client.set_drained(id, order.as_ref()).await?;
        while wait && reply.state == WorkerState::Draining {
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
            // It only looks: an undrain by another operator stands.
            let WorkerView { drained, state, in_flight, incoming_requests, .. } =
                client.get_worker(id).await?.value;
            let worker_id = id.clone();
            reply.value = DrainReply { worker_id, drained, state, in_flight, incoming_requests };
            reply.body = serde_json::to_vec(&reply.value).unwrap_or_default().into();
        }
        Ok(Some((drain_text(&reply), reply.body)))
    };
    for_each_resource(ctx, &client, ids, drain).await
}

/// How far the drain of a worker is.
fn drain_text(order: &DrainReply) -> String {
    let id = &order.worker_id;
    if order.drained.is_none() {
        return format!("Worker {id} is undrained");
    }
    let tasks = units::pluralize(order.in_flight, "task", "tasks");
    let requests = units::pluralize(order.incoming_requests.into(), "request", "requests");
    match (order.state, order.in_flight, order.incoming_requests) {
        (WorkerState::Inactive | WorkerState::Stopped, 0, _) => {
            format!("Worker {id} is drained: no agent runs under this id")
        }
        (WorkerState::Draining, 0, 0) => {
            format!("Worker {id} is draining: other agents may still write through it")
        }
        (_, 0, 0) => {
            format!("Worker {id} is drained: it has no tasks, and no other agent writes through it")
        }
        (_, 0, _) => format!("Worker {id} is draining: it receives {requests} of other agents"),
        (_, _, 0) => format!("Worker {id} is draining: it finishes {tasks}"),
        _ => format!(
            "Worker {id} is draining: it finishes {tasks} and receives {requests} of other agents"
        ),
    }
}

/// `ctl sync reassign`.
pub(super) async fn reassign(
    ctx: &Context,
    ids: Vec<RequestId>,
    worker: WorkerId,
) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let reassign = async |id: &RequestId| {
        let reply = client.reassign_tasks(id, &worker).await?;
        let text = match reply.tasks {
            0 => format!("Worker {worker} has no task of sync {id}"),
            n => {
                let tasks = units::pluralize(n, "task", "tasks");
                format!("Taken from worker {worker}, for others: {tasks} of sync {id}")
            }
        };
        Ok(Some((text, reply.body)))
    };
    for_each_resource(ctx, &client, ids, reassign).await
}

async fn forget(ctx: &Context, ids: Vec<WorkerId>) -> Result<Exit, CliError> {
    let client = ctx.new_client()?;
    let forget = async |id: &WorkerId| {
        let reply = client.forget_worker(id).await?;
        let text = match reply.requeued {
            0 => format!("Worker {id} is forgotten"),
            n => {
                let tasks = units::pluralize(n, "task", "tasks");
                format!("Worker {id} is forgotten; {tasks} of it are requeued")
            }
        };
        Ok(Some((text, reply.body)))
    };
    for_each_resource(ctx, &client, ids, forget).await
}

fn show_workers(ctx: &Context, body: &[u8], list: &WorkerList) -> Result<(), CliError> {
    match ctx.global.output {
        OutputFormat::Json => console::write_data(body)?,
        OutputFormat::Table if ctx.global.quiet => {
            let all = list.active.iter().chain(&list.inactive);
            let ids: String = all.map(|w| format!("{}\n", w.worker_id)).collect();
            console::write_data(ids.as_bytes())?;
        }
        OutputFormat::Table => console::write_data(
            tables::worker_table(list, terminal_width(), Timestamp::now()).as_bytes(),
        )?,
    }
    Ok(())
}

fn show_worker(ctx: &Context, worker: &Reply<WorkerView>) -> Result<(), CliError> {
    match ctx.global.output {
        OutputFormat::Json => console::write_data(&worker.body),
        OutputFormat::Table => {
            console::write_data(tables::worker_details(worker, Timestamp::now()).as_bytes())
        }
    }
}
