//! Tables of syncs, workers and masters. Each is one line, so that a line can be found with grep.

use super::progress::percent_done;
use super::sanitize::sanitize;
use super::sync_text::{address_text, display_id, duration_between, eta_text, or_dash};
use super::table_layout::{ARROW, Column, render_table, shorten_list, shorten_pair};
use crate::client::MasterStatus;
use crate::util::units;
use crate::wire::join::RevokedWorker;
use crate::wire::leader::MasterRole;
use crate::wire::sync::{SyncProgress, SyncState};
use crate::wire::worker::{WorkerList, WorkerView};
use crate::wire::worker_selector::Labels;
use jiff::Timestamp;
use std::time::Duration;

/// An age in a single unit: `5m`, `3h`, `12d`.
pub(super) fn age_text(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

const SYNC_COLUMNS: [Column; 11] = [
    Column::new("ID"),
    Column::new("STATE"),
    Column::new("PROGRESS"),
    Column { omit_order: Some(2), ..Column::new("SIZE") },
    Column { omit_order: Some(3), ..Column::new("RATE") },
    Column { omit_order: Some(5), ..Column::new("ETA") },
    Column { omit_order: Some(1), ..Column::new("FILES") },
    Column { omit_order: Some(6), ..Column::new("FAILED") },
    Column { omit_order: Some(4), ..Column::new("AGE") },
    Column { shortening: Some((22, shorten_pair)), ..Column::new("SOURCE → DESTINATION") },
    Column { is_below_row: true, ..Column::new("REASON") },
];

/// Running syncs first, then by age. On a terminal of `width` columns generated ids are short, and only the first clause
/// of a reason is shown.
pub(super) fn sync_table(list: &[SyncProgress], width: Option<usize>, now: Timestamp) -> String {
    let mut syncs: Vec<&SyncProgress> = list.iter().collect();
    syncs.sort_by_key(|s| (s.state.is_final(), std::cmp::Reverse(s.submitted_at)));
    let rows = syncs.into_iter().map(|sync| sync_row(sync, width.is_some(), now));
    render_table(&SYNC_COLUMNS, rows.collect(), width)
}

fn sync_row(sync: &SyncProgress, brief: bool, now: Timestamp) -> Vec<String> {
    let bound = if sync.scan_done { "" } else { "≥" };
    let started = sync.state != SyncState::Queued;
    let mut reason = sync.reason.as_deref().map(sanitize).unwrap_or_default();
    if brief && let Some(end) = reason.find("; ") {
        // Details follow, e.g. the existing storage paths; `ctl sync status ID` shows them.
        reason.truncate(end);
    }
    let done = units::format_count(sync.files_done + sync.files_skipped);
    let files = format!("{done}/{bound}{}", units::format_count(sync.files_total));
    vec![
        sanitize(if brief { display_id(sync) } else { sync.request_id.as_str() }),
        sync.state.as_str().to_owned(),
        // Rounded down: 99.9 must not be shown as 100.
        or_dash(percent_done(sync).map(|p| format!("{:.0}%", p.floor())).filter(|_| started)),
        or_dash(started.then(|| format!("{bound}{}", units::format_bytes(sync.total_bytes)))),
        or_dash(sync.rate.map(|rate| units::format_rate(rate as f64))),
        or_dash(eta_text(sync)),
        or_dash(Some(files).filter(|_| started)),
        units::format_count(sync.failure_count()),
        age_text(duration_between(sync.submitted_at, now)),
        format!(
            "{}{ARROW}{}",
            address_text(&sync.source_workers, &sync.source_path),
            address_text(&sync.destination_workers, &sync.destination_path)
        ),
        reason,
    ]
}

const WORKER_COLUMNS: [Column; 9] = [
    Column::new("WORKER"),
    Column::new("STATE"),
    Column { omit_order: Some(3), ..Column::new("HEARTBEAT") },
    Column { omit_order: Some(2), ..Column::new("SYNCS") },
    Column { omit_order: Some(5), ..Column::new("IN-FLIGHT") },
    Column { omit_order: Some(4), ..Column::new("RECEIVING") },
    Column {
        omit_order: Some(1),
        shortening: Some((24, shorten_list)),
        ..Column::new("ENDPOINTS")
    },
    Column { shortening: Some((20, shorten_list)), ..Column::new("STORAGE (free)") },
    Column { is_below_row: true, ..Column::new("REASON") },
];

/// Active workers first.
pub(super) fn worker_table(list: &WorkerList, width: Option<usize>, now: Timestamp) -> String {
    let rows = list.active.iter().chain(&list.inactive).map(|worker| worker_row(worker, now));
    let revoked = list.revoked.iter().map(|worker| revoked_row(worker, WORKER_COLUMNS.len()));
    render_table(&WORKER_COLUMNS, rows.chain(revoked).collect(), width)
}

/// As [`worker_table`], with labels and versions, and not fitted to a terminal.
pub(super) fn wide_worker_table(list: &WorkerList, now: Timestamp) -> String {
    let mut columns = WORKER_COLUMNS.to_vec();
    let reason = columns.len() - 1;
    columns.splice(reason..reason, [Column::new("LABELS"), Column::new("VERSION")]);
    let rows = list.active.iter().chain(&list.inactive).map(|worker| {
        let mut row = worker_row(worker, now);
        let labels = or_dash(labels_text(&worker.labels));
        let version = or_dash(worker.agent_version.as_deref().map(sanitize));
        row.splice(reason..reason, [labels, version]);
        row
    });
    let revoked = list.revoked.iter().map(|worker| revoked_row(worker, columns.len()));
    render_table(&columns, rows.chain(revoked).collect(), None)
}

/// `rack=3, zone=b`; `None` without labels.
pub(super) fn labels_text(labels: &Labels) -> Option<String> {
    let all = labels.iter().map(|(key, value)| format!("{}={}", sanitize(key), sanitize(value)));
    Some(all.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
}

fn worker_row(worker: &WorkerView, now: Timestamp) -> Vec<String> {
    let endpoints = worker.data_plane_endpoints.iter().map(|endpoint| match &endpoint.iface {
        Some(iface) => format!("{}%{}", sanitize(&endpoint.authority()), sanitize(iface)),
        None => sanitize(&endpoint.authority()),
    });
    vec![
        worker.worker_id.to_string(),
        worker.state.as_str().to_owned(),
        age_text(duration_between(worker.last_heartbeat, now)),
        worker.syncs.to_string(),
        match worker.slots {
            Some(slots) => format!("{}/{slots}", worker.in_flight),
            None => worker.in_flight.to_string(),
        },
        worker.incoming_requests.to_string(),
        endpoints.collect::<Vec<_>>().join(", "),
        storage_text(worker),
        worker.reason.as_deref().map(sanitize).unwrap_or_default(),
    ]
}

/// A worker with a certificate that is refused, in a table with this number of columns.
fn revoked_row(worker: &RevokedWorker, columns: usize) -> Vec<String> {
    let mut row = vec!["-".to_owned(); columns];
    row[0] = worker.worker_id.to_string();
    row[1] = "REVOKED".to_owned();
    row[columns - 1] = format!("revoked at {}; it can join with a new token", worker.revoked_at);
    row
}

/// The storage paths, each with its free bytes.
fn storage_text(worker: &WorkerView) -> String {
    let paths = worker.storage_paths.iter().map(|path| {
        // The keys are displayed paths.
        let free = worker.free_bytes.get(&path.to_string()).map(|n| units::format_bytes(*n));
        format!("{path} ({})", or_dash(free))
    });
    paths.collect::<Vec<_>>().join(", ")
}

/// Each master with the state that it reports.
pub(super) fn master_table(list: &[MasterStatus], width: Option<usize>, now: Timestamp) -> String {
    let columns = [
        Column::new("MASTER"),
        Column::new("ROLE"),
        Column::new("LEADER"),
        Column { omit_order: Some(1), ..Column::new("EPOCH") },
        Column { omit_order: Some(2), ..Column::new("SINCE") },
        Column { omit_order: Some(3), ..Column::new("STORE") },
        Column { is_below_row: true, ..Column::new("REASON") },
    ];
    render_table(&columns, list.iter().map(|master| master_row(master, now)).collect(), width)
}

fn master_row(master: &MasterStatus, now: Timestamp) -> Vec<String> {
    let url = sanitize(&master.url);
    let status = match &master.readiness {
        Ok(status) => status,
        Err(e) => {
            let (role, dash) = ("unreachable".to_owned(), || or_dash(None));
            let error = sanitize(&e.to_string());
            return vec![url, role, dash(), dash(), dash(), dash(), error];
        }
    };
    let leader = status.leader.as_ref();
    let since = leader.and_then(|leader| leader.since);
    let (store, reason) = (&status.store, status.reason.as_deref());
    vec![
        url,
        if status.role == MasterRole::Leader { "leader" } else { "follower" }.to_owned(),
        or_dash(leader.map(|leader| sanitize(leader.url.as_ref().unwrap_or(&leader.name)))),
        or_dash(leader.map(|leader| leader.epoch.to_string())),
        or_dash(since.map(|since| age_text(duration_between(since, now)))),
        format!("{} ({})", sanitize(&store.location), if store.ok { "ok" } else { "unavailable" }),
        reason.or(store.problem.as_deref()).map(sanitize).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests;
