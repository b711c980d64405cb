//! Tables of syncs, workers and masters, and records of one, for people.
//! Tables and records for people. One record a line, never wrapped: a line can be grepped.

use super::console::sanitize;
use super::master::MasterStatus;
use super::outcome_report::{failed_steps_text, readback_text, sent_text};
use super::progress::percent_done;
use super::table_layout::{ARROW, Column, render_table, shorten_list, shorten_pair};
use crate::client::{ClientError, Reply};
use crate::util::units;
use crate::wire::entry_report::EntryAction;
use crate::wire::leader::{MasterRole, Readiness};
use crate::wire::sync::{SyncProgress, SyncState};
use crate::wire::worker::{NicReport, WorkerList, WorkerView};
use jiff::Timestamp;
use std::time::Duration;

/// Time from `from` to `to`, 0 where the clocks of two hosts disagree.
pub(super) fn duration_between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A single coarse unit, for ages: `5m`, `3h`, `12d`.
fn age_text(d: Duration) -> String {
    match d.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// When it may have copied the rest.
fn eta_text(sync: &SyncProgress) -> Option<String> {
    sync.eta_seconds.map(|seconds| units::format_duration(Duration::from_secs(seconds)))
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// What matters least on a narrow terminal goes first.
const SYNC_COLUMNS: [Column; 11] = [
    Column::new("ID"),
    Column::new("STATE"),
    Column::new("PROGRESS"),
    Column::new("SIZE").with_omit_order(2),
    Column::new("RATE").with_omit_order(3),
    Column::new("ETA").with_omit_order(5),
    Column::new("FILES").with_omit_order(1),
    Column::new("FAILED").with_omit_order(6),
    Column::new("AGE").with_omit_order(4),
    Column::new("SOURCE → DESTINATION").with_shortening(22, shorten_pair),
    Column::new("REASON").below_row(),
];

/// Syncs, those that run first, then by age. On a terminal of `width` columns ids that the master made are short, and
/// a reason is its first clause.
pub(super) fn sync_table(list: &[SyncProgress], width: Option<usize>, now: Timestamp) -> String {
    let mut order: Vec<&SyncProgress> = list.iter().collect();
    order.sort_by_key(|s| (s.state.is_final(), std::cmp::Reverse(s.submitted_at)));
    let id = |sync: &SyncProgress| match width {
        Some(_) => display_id(sync).to_owned(),
        None => sync.request_id.to_string(),
    };
    let rows = order.into_iter().map(|sync| sync_row(sync, &id(sync), width.is_some(), now));
    render_table(&SYNC_COLUMNS, rows.collect(), width)
}

/// The id of a sync on a terminal.
pub(super) fn display_id(sync: &SyncProgress) -> &str {
    sync.short_id.as_deref().unwrap_or(sync.request_id.as_str())
}

fn sync_row(sync: &SyncProgress, id: &str, brief: bool, now: Timestamp) -> Vec<String> {
    let least = if sync.scan_done { "" } else { "≥" };
    let begun = sync.state != SyncState::Queued;
    let reason = sync.reason.as_deref().map(sanitize).unwrap_or_default();
    // What follows are particulars, e.g. the storage paths that there are: `status ID` shows them.
    let clause = reason.split("; ").next().filter(|_| brief).map(str::to_owned);
    vec![
        sanitize(id),
        sync.state.as_str().to_owned(),
        // Cut, not rounded: 99.9 must not be shown as 100.
        or_dash(percent_done(sync).map(|p| format!("{:.0}%", p.floor())).filter(|_| begun)),
        or_dash(begun.then(|| format!("{least}{}", units::format_bytes(sync.total_bytes)))),
        or_dash(sync.rate.map(|rate| units::format_rate(rate as f64))),
        or_dash(eta_text(sync)),
        or_dash(begun.then(|| {
            let done = units::format_count(sync.files_done + sync.files_skipped);
            format!("{done}/{least}{}", units::format_count(sync.files_total))
        })),
        units::format_count(sync.failure_count()),
        age_text(duration_between(sync.submitted_at, now)),
        format!("{}{ARROW}{}", sync.source_path, sync.destination_path),
        clause.unwrap_or(reason),
    ]
}

/// What a dry run found: an action a line, also those that would not be done.
pub(super) fn dry_run_table(sync: &SyncProgress) -> String {
    use EntryAction::{Create, Delete, Metadata, Skip, Update};
    let rows = [Create, Update, Metadata, Delete, Skip].into_iter().map(|action| {
        let tally = sync.actions.get(&action).copied().unwrap_or_default();
        vec![
            action.as_str().to_owned(),
            units::format_count(tally.count),
            units::format_bytes(tally.bytes),
        ]
    });
    render_table(&["WOULD", "ENTRIES", "SIZE"].map(Column::new), rows.collect(), None)
}

const WORKER_COLUMNS: [Column; 9] = [
    Column::new("WORKER"),
    Column::new("STATE"),
    Column::new("HEARTBEAT").with_omit_order(3),
    Column::new("SYNCS").with_omit_order(2),
    Column::new("IN-FLIGHT").with_omit_order(5),
    Column::new("RECEIVING").with_omit_order(4),
    Column::new("ENDPOINTS").with_omit_order(1).with_shortening(24, shorten_list),
    Column::new("STORAGE (free)").with_shortening(20, shorten_list),
    Column::new("REASON").below_row(),
];

/// Workers, active ones first.
pub(super) fn worker_table(list: &WorkerList, width: Option<usize>, now: Timestamp) -> String {
    let rows = list.active.iter().chain(&list.inactive).map(|w| worker_row(w, now));
    render_table(&WORKER_COLUMNS, rows.collect(), width)
}

/// Masters, each as it sees itself and the one that leads.
pub(super) fn master_table(list: &[MasterStatus], width: Option<usize>, now: Timestamp) -> String {
    let rows = list.iter().map(|(url, told)| master_row(url, told, now));
    let columns = [
        Column::new("MASTER"),
        Column::new("ROLE"),
        Column::new("LEADER"),
        Column::new("EPOCH").with_omit_order(1),
        Column::new("SINCE").with_omit_order(2),
        Column::new("STORE").with_omit_order(3),
        Column::new("REASON").below_row(),
    ];
    render_table(&columns, rows.collect(), width)
}

fn master_row(
    url: &str,
    told: &Result<Reply<Readiness>, ClientError>,
    now: Timestamp,
) -> Vec<String> {
    let told = match told {
        Ok(told) => told,
        Err(e) => {
            let mut row = vec![sanitize(url), "unreachable".to_owned()];
            row.extend(std::iter::repeat_n(or_dash(None), 4));
            row.push(sanitize(&e.to_string()));
            return row;
        }
    };
    let leader = told.leader.as_ref();
    let since = leader.and_then(|l| l.since).map(|since| age_text(duration_between(since, now)));
    vec![
        sanitize(url),
        if told.role == MasterRole::Leader { "leader" } else { "follower" }.to_owned(),
        or_dash(leader.map(|l| sanitize(l.url.as_ref().unwrap_or(&l.name)))),
        or_dash(leader.map(|l| l.epoch.to_string())),
        or_dash(since),
        format!(
            "{} ({})",
            sanitize(&told.store.location),
            if told.store.ok { "ok" } else { "away" }
        ),
        told.reason.as_deref().or(told.store.problem.as_deref()).map(sanitize).unwrap_or_default(),
    ]
}

fn worker_row(w: &WorkerView, now: Timestamp) -> Vec<String> {
    let storage = w.storage_paths.iter().map(|path| {
        // Keyed by the path as it is shown.
        let free = w.free_bytes.get(&path.to_string()).map(|n| units::format_bytes(*n));
        format!("{path} ({})", or_dash(free))
    });
    let endpoints = w.data_plane_endpoints.iter().map(|e| match &e.iface {
        Some(iface) => format!("{}%{}", sanitize(&e.authority()), sanitize(iface)),
        None => sanitize(&e.authority()),
    });
    vec![
        w.worker_id.to_string(),
        w.state.as_str().to_owned(),
        age_text(duration_between(w.last_heartbeat, now)),
        w.syncs.to_string(),
        match w.slots {
            Some(slots) => format!("{}/{slots}", w.in_flight),
            None => w.in_flight.to_string(),
        },
        w.incoming_requests.to_string(),
        endpoints.collect::<Vec<_>>().join(", "),
        storage.collect::<Vec<_>>().join(", "),
        w.reason.as_deref().map(sanitize).unwrap_or_default(),
    ]
}

/// Everything about one worker, as `Key: value` lines and a table of its endpoints.
pub(super) fn worker_details(w: &WorkerView, now: Timestamp) -> String {
    let storage = w.storage_paths.iter().map(|path| {
        let free = w.free_bytes.get(&path.to_string()).map(|n| units::format_bytes(*n));
        format!("{path} ({})", or_dash(free))
    });
    let mut rows = vec![
        ("Worker", w.worker_id.to_string()),
        ("State", w.state.as_str().to_owned()),
        ("Heartbeat", format!("{} ago", age_text(duration_between(w.last_heartbeat, now)))),
        (
            "In flight",
            format!(
                "{} of {}",
                units::pluralize(w.in_flight, "task", "tasks"),
                units::pluralize(w.syncs, "sync", "syncs")
            ),
        ),
        ("Receiving", units::pluralize(w.incoming_requests.into(), "request", "requests")),
        ("Slots", or_dash(w.slots.map(|n| n.to_string()))),
        ("Storage", storage.collect::<Vec<_>>().join(", ")),
        ("Version", or_dash(w.agent_version.as_deref().map(sanitize))),
    ];
    if let Some(reason) = &w.reason {
        rows.push(("Reason", sanitize(reason)));
    }
    for lost in &w.unavailable_paths {
        rows.push(("Unavailable", format!("{}: {}", lost.path, sanitize(&lost.reason))));
    }
    for lost in &w.unavailable_endpoints {
        rows.push((
            "Unavailable",
            format!("{}: {}", sanitize(&lost.endpoint), sanitize(&lost.reason)),
        ));
    }
    if let Some(drained) = &w.drained {
        rows.push(("Drained", format!("{} ago", age_text(duration_between(drained.since, now)))));
    }
    let mut text: String =
        rows.iter().map(|(k, v)| format!("{:<12} {v}\n", format!("{k}:"))).collect();
    if !w.nics.is_empty() {
        let columns = [
            "ENDPOINT",
            "INTERFACE",
            "SENT",
            "RECEIVED",
            "CONNECTIONS",
            "GOODPUT",
            "RECEIVING",
            "STATE",
        ]
        .map(Column::new);
        text.push('\n');
        text.push_str(&render_table(&columns, w.nics.iter().map(nic_row).collect(), None));
    }
    text
}

fn nic_row(nic: &NicReport) -> Vec<String> {
    vec![
        sanitize(&nic.endpoint),
        or_dash(nic.iface.as_deref().map(sanitize)),
        units::format_bytes(nic.sent),
        units::format_bytes(nic.received),
        nic.connections.to_string(),
        or_dash(nic.goodput.map(|n| units::format_rate(n as f64))),
        or_dash(nic.receive_rate.map(|n| units::format_rate(n as f64))),
        match &nic.disabled_reason {
            Some(why) => format!("aside: {}", sanitize(why)),
            None => "usable".to_owned(),
        },
    ]
}

/// Everything about one sync, as `Key: value` lines; failures are told by the caller.
pub(super) fn sync_details(sync: &SyncProgress, now: Timestamp) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut add = |key: &'static str, value: String| rows.push((key, value));
    let least = if sync.scan_done { "" } else { "≥ " };
    add("Id", sync.request_id.to_string());
    add("State", state_text(sync));
    if let Some(reason) = &sync.reason {
        add("Reason", sanitize(reason));
    }
    if let Some(stalled) = &sync.stalled {
        let since = age_text(duration_between(stalled.since, now));
        let who = stalled.worker_id.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        let (task, of) =
            (sanitize(&stalled.task), age_text(Duration::from_secs(stalled.task_seconds)));
        add("Stalled", format!("for {since}; the oldest task is a {task} of {of}, at {who}"));
    }
    add("Source", sync.source_path.to_string());
    add("Destination", sync.destination_path.to_string());
    add("Mapping", mapping_text(sync));
    add("Submitted", format_time(sync.submitted_at));
    add("Started", or_dash(sync.started_at.map(format_time)));
    add("Updated", format_time(sync.updated_at));
    add("Ended", or_dash(sync.ended_at.map(format_time)));
    add("Progress", or_dash(percent_done(sync).map(|p| format!("{p:.1} %"))));
    add(
        "Bytes",
        format!(
            "{} sent, {} skipped, of {least}{}",
            units::format_bytes(sync.transferred_bytes),
            units::format_bytes(sync.bytes_skipped),
            units::format_bytes(sync.total_bytes)
        ),
    );
    let entries = |done, skipped: Option<u64>, failed, total| {
        let skipped =
            skipped.map(|n| format!("{} skipped, ", units::format_count(n))).unwrap_or_default();
        let (done, failed) = (units::format_count(done), units::format_count(failed));
        format!("{done} done, {skipped}{failed} failed, of {least}{}", units::format_count(total))
    };
    add(
        "Files",
        entries(sync.files_done, Some(sync.files_skipped), sync.files_failed, sync.files_total),
    );
    add("Directories", entries(sync.dirs_done, None, sync.dirs_failed, sync.dirs_total));
    if let Some(steps) = failed_steps_text(sync) {
        add("Steps", steps);
    }
    if !sync.actions.is_empty() {
        let each = sync.actions.iter().map(|(action, tally)| {
            let (count, bytes) =
                (units::format_count(tally.count), units::format_bytes(tally.bytes));
            format!("{} {count} ({bytes})", action.as_str())
        });
        let key = if sync.options.dry_run { "Would" } else { "Actions" };
        add(key, each.collect::<Vec<_>>().join(", "));
    }
    if let Some(moved) = sent_text(sync) {
        add("Wire", moved);
    }
    if let Some(verified) = readback_text(sync) {
        add("Verified", verified);
    }
    let options = super::options::to_cli_args(&sync.options, None);
    if !options.is_empty() {
        add("Options", options.trim_start().to_owned());
    }
    if let Some(limit) = sync.bwlimit {
        add("Limit", units::format_rate(limit as f64));
    }
    add("Rate", or_dash(rate_text(sync)));
    add("Time left", or_dash(eta_text(sync)));
    add("Retried", units::pluralize(sync.retries, "task", "tasks"));
    if sync.unverified > 0 {
        let why = "reported done without evidence";
        add("Unverified", format!("{}, {why}", units::pluralize(sync.unverified, "task", "tasks")));
    }
    let mut text: String =
        rows.iter().map(|(key, value)| format!("{:<13}{value}\n", format!("{key}:"))).collect();
    if !sync.detail.is_empty() {
        text.push_str("Workers:\n");
        for (worker, doing) in &sync.detail {
            text.push_str(&format!("  {}  {}\n", sanitize(worker), sanitize(doing)));
        }
    }
    text
}

fn state_text(sync: &SyncProgress) -> String {
    use crate::wire::sync::{SyncOutcome, SyncPhase};
    let more = match (sync.outcome, sync.phase) {
        (Some(SyncOutcome::Partial), _) => " (partial)",
        (Some(SyncOutcome::VanishedOnly), _) => " (only vanished files failed)",
        (Some(SyncOutcome::DeleteStopped), _) => " (everything copied, deletion stopped)",
        (Some(SyncOutcome::CopyStopped), _) => " (stopped before everything was copied)",
        (Some(SyncOutcome::Unverified), _) => " (unverified)",
        _ if sync.options.dry_run => " (dry run: nothing is changed)",
        (_, SyncPhase::Scanning) => " (scanning and copying)",
        (_, SyncPhase::Transferring) => " (copying)",
        (_, SyncPhase::Verifying) => " (reading back)",
        (_, SyncPhase::Pruning) => " (deleting)",
        (_, SyncPhase::Flushing) => " (flushing)",
        _ => "",
    };
    format!("{}{more}", sync.state.as_str())
}

fn rate_text(sync: &SyncProgress) -> Option<String> {
    if let Some(rate) = sync.rate {
        return Some(units::format_rate(rate as f64));
    }
    effective_rate(sync).map(|rate| format!("{} (effective)", units::format_rate(rate)))
}

/// Bytes over the whole time, once ended.
pub(super) fn effective_rate(sync: &SyncProgress) -> Option<f64> {
    let seconds = duration_between(sync.started_at?, sync.ended_at?).as_secs_f64();
    (seconds > 0.0 && sync.transferred_bytes > 0).then(|| sync.transferred_bytes as f64 / seconds)
}

fn format_time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn mapping_text(sync: &SyncProgress) -> String {
    super::submit::mapping_example(&sync.source_path, &sync.destination_path)
}

#[cfg(test)]
mod tests;
