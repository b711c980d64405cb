//! `ctl sync …`: status (one sync, or the list of all), wait, set, retry, pause, resume, reassign, cancel, delete.

use super::args::{OutputFormat, StatusArgs, SyncChangeArgs, WaitArgs};
use super::error::Result;
use super::exit::Exit;
use super::follow::{WaitOptions, next_steps, wait_and_report};
use super::resource::{for_each_resource, join_documents, resolve_id, try_each};
use super::table_layout::terminal_width;
use super::{Context, console, details, outcome_report, tables};
use crate::client::MasterClient;
use crate::util::{unique_id, units};
use crate::wire::sync::{RetryRequest, SyncPatch, SyncProgress, SyncState};
use crate::wire::{RequestId, WorkerId};
use jiff::Timestamp;
use std::cell::RefCell;

pub(super) async fn wait_for_syncs(ctx: &Context, args: WaitArgs) -> Result<Exit> {
    let client = ctx.new_client()?;
    let mut ids: Vec<RequestId> = Vec::new();
    for given in args.syncs.ids {
        let id = match resolve_id(&client, &given).await {
            // Reported as the end of this one; the others are still waited for.
            Err(e) if e.is_not_found() => given,
            found => found?,
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    wait_and_report(ctx, &client, ids, &args.wait_limit, &WaitOptions::default()).await
}

pub(super) async fn show_status(ctx: &Context, args: StatusArgs) -> Result<Exit> {
    let client = ctx.new_client()?;
    if args.ids.is_empty() {
        let list = client.list_syncs(&args.state, args.limit.map(|limit| limit as usize)).await?;
        print_list(ctx, &list.body, &list.value)?;
        return Ok(Exit::Ok);
    }
    let single = args.ids.len() == 1;
    let mut found = Vec::new();
    let get = async |id: &RequestId| client.get_sync(id).await;
    let exit = try_each(ctx, &client, &args.ids, get, |reply| {
        if args.state.is_empty() || args.state.contains(&reply.state) {
            found.push(reply);
        }
        Ok(())
    })
    .await?;
    let bodies: Vec<_> = found.iter().map(|reply| reply.body.clone()).collect();
    let document = join_documents(&bodies, single);
    let syncs: Vec<SyncProgress> = found.into_iter().map(|reply| reply.value).collect();
    match syncs.as_slice() {
        [sync] if single => {
            ctx.print(&document, sync.state.as_str(), &details_text(ctx, sync))?;
        }
        [] if single => ctx.print(&document, "", "")?,
        syncs => print_list(ctx, &document, syncs)?,
    }
    Ok(exit)
}

fn print_list(ctx: &Context, document: &[u8], syncs: &[SyncProgress]) -> Result<()> {
    let ids: String = syncs.iter().map(|sync| format!("{}\n", sync.request_id)).collect();
    ctx.print(document, &ids, &tables::sync_table(syncs, terminal_width(), Timestamp::now()))
}

fn details_text(ctx: &Context, sync: &SyncProgress) -> String {
    let mut text = details::sync_details(sync, Timestamp::now());
    let failures = outcome_report::failure_lines(sync, &next_steps(ctx, sync).list_failures);
    for (title, lines) in [("Notes", outcome_report::note_lines(sync)), ("Failures", failures)] {
        if !lines.is_empty() {
            text.push_str(&format!("{title}:\n{}\n", lines.join("\n")));
        }
    }
    text
}

pub(super) async fn change(
    ctx: &Context,
    ids: Vec<RequestId>,
    change: SyncChangeArgs,
) -> Result<Exit> {
    let SyncChangeArgs { bwlimit, add_destination } = change;
    let patch =
        SyncPatch { bwlimit: bwlimit.map(|limit| limit.0), add_destinations: add_destination };
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &RequestId| {
        let reply = client.update_sync(id, &patch).await?;
        Ok(Some((changed_text(id, &patch, &reply), reply.body)))
    })
    .await
}

/// A line for each change that was asked for.
fn changed_text(id: &RequestId, patch: &SyncPatch, sync: &SyncProgress) -> String {
    let limit = patch.bwlimit.map(|_| match sync.bwlimit {
        Some(limit) => {
            let limit = units::format_rate(limit as f64);
            format!("Sync {id} sends at most {limit} from now on")
        }
        None => format!("Sync {id} has no limit of its own from now on"),
    });
    let added = (!patch.add_destinations.is_empty()).then(|| {
        let all = units::pluralize(sync.destinations.len() as u64, "destination", "destinations");
        format!("Sync {id} copies to {all} from now on")
    });
    limit.into_iter().chain(added).collect::<Vec<_>>().join("\n")
}

pub(super) async fn retry(ctx: &Context, ids: Vec<RequestId>, failed_only: bool) -> Result<Exit> {
    let new_ids = RefCell::new(String::new());
    let ctl = &ctx.ctl_command;
    let retry = async |client: &MasterClient, id: &RequestId| {
        // Generated here, so that it is known even if no reply arrives.
        let new = RequestId::from(unique_id::generate_id());
        let request = RetryRequest { request_id: Some(new.clone()), failed_only };
        let key = unique_id::generate_id().to_string();
        let reply = client.retry_sync(id, &request, &key).await.inspect_err(|e| {
            if e.is_unconfirmed() {
                console::print_note(&format!(
                    "sync {id} may have been retried as {new}: {ctl} sync status {new}"
                ));
            }
        })?;
        console::print_warnings(&reply.warnings);
        let new = &reply.request_id;
        new_ids.borrow_mut().push_str(&format!("{new}\n"));
        let text =
            format!("Sync {id} is submitted again as {new}\n  follow: {ctl} sync wait {new}");
        Ok(Some((text, reply.body)))
    };
    let exit = for_each_resource(ctx, ids, retry).await?;
    if ctx.global.quiet && ctx.global.output != OutputFormat::Json {
        console::write_data(new_ids.take().as_bytes())?;
    }
    Ok(exit)
}

pub(super) async fn set_paused(ctx: &Context, ids: Vec<RequestId>, paused: bool) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &RequestId| {
        let reply = client.set_paused(id, paused).await?;
        let state = match paused {
            true => "is paused: running tasks finish, no new ones start",
            false => "is resumed",
        };
        Ok(Some((format!("Sync {id} {state}"), reply.body)))
    })
    .await
}

pub(super) async fn reassign(ctx: &Context, ids: Vec<RequestId>, worker: WorkerId) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &RequestId| {
        let reply = client.reassign_tasks(id, &worker).await?;
        let text = match reply.tasks {
            0 => format!("Worker {worker} has no task of sync {id}"),
            n => {
                let tasks = units::pluralize(n, "task", "tasks");
                format!("Taken from worker {worker}, for others: {tasks} of sync {id}")
            }
        };
        Ok(Some((text, reply.body)))
    })
    .await
}

pub(super) async fn cancel(ctx: &Context, ids: Vec<RequestId>) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &RequestId| {
        let reply = client.cancel_sync(id).await?;
        let state = match reply.state {
            SyncState::Cancelled => "is cancelled".to_owned(),
            state if state.is_final() => format!("had ended already: {}", state.as_str()),
            _ => "is being cancelled".to_owned(),
        };
        Ok(Some((format!("Sync {id} {state}; copied files stay"), reply.body)))
    })
    .await
}

pub(super) async fn delete(
    ctx: &Context,
    ids: Vec<RequestId>,
    ignore_not_found: bool,
) -> Result<Exit> {
    for_each_resource(ctx, ids, async |client: &MasterClient, id: &RequestId| {
        let reply = match client.delete_sync(id).await {
            Err(e) if e.is_not_found() && ignore_not_found => return Ok(None),
            reply => reply?,
        };
        let state = match reply["cancelled"].as_bool() {
            Some(true) => "had not ended: it is cancelled and deleted",
            _ => "is deleted",
        };
        Ok(Some((format!("Sync {id} {state}; copied files stay"), reply.body)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixtures::{self, destination};

    #[test]
    fn a_change_is_confirmed_by_a_line_for_each_part_of_it() {
        let id: RequestId = "x".parse().unwrap();
        let limited = SyncProgress { bwlimit: Some(1 << 20), ..fixtures::sync("x") };
        let limit = SyncPatch { bwlimit: Some(Some(1 << 20)), ..SyncPatch::default() };
        assert_eq!(
            changed_text(&id, &limit, &limited),
            "Sync x sends at most 1.0 MiB/s from now on"
        );
        let destinations = vec![destination("w1", SyncState::Progress, 1)];
        let sync = SyncProgress { destinations, ..fixtures::sync("x") };
        let add_destinations = vec!["gpu-9".parse().unwrap()];
        let both = SyncPatch { bwlimit: Some(None), add_destinations };
        assert_eq!(
            changed_text(&id, &both, &sync),
            "Sync x has no limit of its own from now on\nSync x copies to 1 destination from now on"
        );
    }
}
