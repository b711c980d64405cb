//! `ctl workers …`.

use super::args::{OutputFormat, WorkersCommand};
use super::error::Result;
use super::exit::Exit;
use super::resource::for_each_resource;
use super::table_layout::terminal_width;
use super::{Context, details, tables};
use crate::client::MasterClient;
use crate::util::units;
use crate::wire::WorkerId;
use crate::wire::worker::{DrainReply, DrainRequest, WorkerState, WorkerView};
use jiff::Timestamp;
use std::time::Duration;

const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// # Errors
/// The master can't be reached, or there is no such worker.
pub(super) async fn run(ctx: &Context, command: WorkersCommand) -> Result<Exit> {
    match command {
        WorkersCommand::List => {
            let list = ctx.new_client()?.list_workers().await?;
            let all = list.active.iter().chain(&list.inactive);
            let ids: String = all.map(|worker| format!("{}\n", worker.worker_id)).collect();
            let table = match ctx.global.output {
                OutputFormat::Wide => tables::wide_worker_table(&list, Timestamp::now()),
                _ => tables::worker_table(&list, terminal_width(), Timestamp::now()),
            };
            ctx.print(&list.body, &ids, &table)?;
        }
        WorkersCommand::Show { id } => {
            let worker = ctx.new_client()?.get_worker(&id).await?;
            let details = details::worker_details(&worker, Timestamp::now());
            ctx.print(&worker.body, &details, &details)?;
        }
        WorkersCommand::Drain { workers, reason, wait } => {
            let request = DrainRequest { by: operator_name(), reason };
            return drain(ctx, workers.ids, Some(request), wait).await;
        }
        WorkersCommand::Undrain(workers) => return drain(ctx, workers.ids, None, false).await,
        WorkersCommand::Forget(workers) => return forget(ctx, workers.ids).await,
        WorkersCommand::Revoke(workers) => return revoke(ctx, workers.ids).await,
    }
    Ok(Exit::Ok)
}

/// The name of the operator, from the environment.
fn operator_name() -> Option<String> {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|v| std::env::var(v).ok());
    names.into_iter().find(|name| !name.is_empty())
}

/// Drains the workers, or (`None`) undrains them.
async fn drain(
    ctx: &Context,
    ids: Vec<WorkerId>,
    request: Option<DrainRequest>,
    wait: bool,
) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &WorkerId| {
        let mut reply = client.set_drained(id, request.as_ref()).await?;
        while wait && reply.state == WorkerState::Draining {
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
            // Polled without another drain request: an undrain by another operator stays in effect.
            let WorkerView { drained, state, in_flight, incoming_requests, .. } =
                client.get_worker(id).await?.value;
            let worker_id = id.clone();
            reply.value = DrainReply { worker_id, drained, state, in_flight, incoming_requests };
            reply.body = serde_json::to_vec(&reply.value).unwrap_or_default().into();
        }
        Ok(Some((drain_text(&reply), reply.body)))
    })
    .await
}

fn drain_text(reply: &DrainReply) -> String {
    let id = &reply.worker_id;
    if reply.drained.is_none() {
        return format!("Worker {id} is undrained");
    }
    let tasks = units::pluralize(reply.in_flight, "task", "tasks");
    let requests = units::pluralize(reply.incoming_requests.into(), "request", "requests");
    match (reply.state, reply.in_flight, reply.incoming_requests) {
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

async fn revoke(ctx: &Context, ids: Vec<WorkerId>) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &WorkerId| {
        let reply = client.revoke_worker(id).await?;
        let tasks = units::pluralize(reply.requeued, "task", "tasks");
        let text = format!("Worker {id} is revoked; {tasks} of it are requeued");
        Ok(Some((text, reply.body)))
    })
    .await
}

async fn forget(ctx: &Context, ids: Vec<WorkerId>) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &WorkerId| {
        let reply = client.forget_worker(id).await?;
        let text = match reply.requeued {
            0 => format!("Worker {id} is forgotten"),
            n => {
                let tasks = units::pluralize(n, "task", "tasks");
                format!("Worker {id} is forgotten; {tasks} of it are requeued")
            }
        };
        Ok(Some((text, reply.body)))
    })
    .await
}
