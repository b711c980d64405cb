//! One sync or one worker in full, as `Key: value` lines.

use super::destinations::{complete_count, destination_lines};
use super::options::to_cli_args;
use super::progress::percent_done;
use super::sanitize::sanitize;
use super::sync_text::{
    address_text, duration_between, effective_rate, eta_text, failed_steps_text, format_time,
    mapping_example, or_dash, outcome_label, readback_text, sent_text,
};
use super::table_layout::{Column, render_table};
use super::tables::{age_text, labels_text};
use crate::util::units;
use crate::wire::StorageId;
use crate::wire::sync::{SyncPhase, SyncProgress};
use crate::wire::worker::{NicReport, WorkerView};
use jiff::Timestamp;
use std::time::Duration;

/// The values of one key each, aligned.
#[derive(Default)]
pub(super) struct Details(Vec<(&'static str, String)>);

impl Details {
    pub(super) fn add(&mut self, key: &'static str, value: impl Into<String>) {
        self.0.push((key, value.into()));
    }

    pub(super) fn add_some(&mut self, key: &'static str, value: Option<String>) {
        self.0.extend(value.map(|value| (key, value)));
    }

    pub(super) fn render(&self) -> String {
        let line = |(key, value): &(&str, String)| format!("{:<13}{value}\n", format!("{key}:"));
        self.0.iter().map(line).collect()
    }
}

/// Everything about one worker, with a table of its endpoints.
pub(super) fn worker_details(worker: &WorkerView, now: Timestamp) -> String {
    let ago = |time| format!("{} ago", age_text(duration_between(time, now)));
    let mut details = Details::default();
    details.add("Worker", worker.worker_id.to_string());
    details.add("State", worker.state.as_str());
    details.add("Heartbeat", ago(worker.last_heartbeat));
    let tasks = units::pluralize(worker.in_flight, "task", "tasks");
    let syncs = units::pluralize(worker.syncs, "sync", "syncs");
    details.add("In flight", format!("{tasks} of {syncs}"));
    let receiving = units::pluralize(worker.incoming_requests.into(), "request", "requests");
    details.add("Receiving", receiving);
    details.add("Slots", or_dash(worker.slots.map(|n| n.to_string())));
    for path in &worker.storage_paths {
        // The keys are displayed paths.
        let key = path.to_string();
        let free = or_dash(worker.free_bytes.get(&key).map(|n| units::format_bytes(*n)));
        let storage = worker.storage_ids.get(&key).map(|id| format!(", storage {id}"));
        details.add("Storage", format!("{path} ({free}){}", storage.unwrap_or_default()));
    }
    details.add_some("Labels", labels_text(&worker.labels));
    details.add("Version", or_dash(worker.agent_version.as_deref().map(sanitize)));
    details.add_some("Reason", worker.reason.as_deref().map(sanitize));
    for path in &worker.unavailable_paths {
        details.add("Unavailable", format!("{}: {}", path.path, sanitize(&path.reason)));
    }
    for endpoint in &worker.unavailable_endpoints {
        let (name, reason) = (sanitize(&endpoint.endpoint), sanitize(&endpoint.reason));
        details.add("Unavailable", format!("{name}: {reason}"));
    }
    details.add_some("Drained", worker.drained.as_ref().map(|drained| ago(drained.since)));
    if worker.nics.is_empty() {
        return details.render();
    }
    let columns = [
        "ENDPOINT",
        "INTERFACE",
        "SENT",
        "RECEIVED",
        "CONNECTIONS",
        "GOODPUT",
        "RECEIVING",
        "STATE",
    ];
    let rows = worker.nics.iter().map(nic_row).collect();
    format!("{}\n{}", details.render(), render_table(&columns.map(Column::new), rows, None))
}

fn nic_row(nic: &NicReport) -> Vec<String> {
    let rate = |rate: Option<u64>| or_dash(rate.map(|n| units::format_rate(n as f64)));
    vec![
        sanitize(&nic.endpoint),
        or_dash(nic.iface.as_deref().map(sanitize)),
        units::format_bytes(nic.sent),
        units::format_bytes(nic.received),
        nic.connections.to_string(),
        rate(nic.goodput),
        rate(nic.receive_rate),
        match &nic.disabled_reason {
            Some(reason) => format!("disabled: {}", sanitize(reason)),
            None => "usable".to_owned(),
        },
    ]
}

/// Everything about one sync, except for its warnings and failures.
pub(super) fn sync_details(sync: &SyncProgress, now: Timestamp) -> String {
    let mut details = Details::default();
    let bound = if sync.scan_done { "" } else { "≥ " };
    details.add("Id", sync.request_id.to_string());
    let state = sync.state.as_str();
    let label = outcome_label(sync).or(phase_label(sync));
    details.add("State", label.map_or(state.to_owned(), |label| format!("{state} ({label})")));
    details.add_some("Reason", sync.reason.as_deref().map(sanitize));
    if let Some(stalled) = &sync.stalled {
        let since = age_text(duration_between(stalled.since, now));
        let (task, age) =
            (sanitize(&stalled.task), age_text(Duration::from_secs(stalled.task_seconds)));
        let worker =
            stalled.worker_id.as_ref().map_or("not assigned".to_owned(), |w| format!("at {w}"));
        let text = format!("for {since}; the oldest task is a {task} of {age}, {worker}");
        details.add("Stalled", text);
    }
    let side = |workers, path, storage: &Option<StorageId>| {
        let address = address_text(workers, path);
        storage.as_ref().map_or(address.clone(), |id| format!("{address} (storage {id})"))
    };
    let source = side(&sync.source_workers, &sync.source_path, &sync.source_storage);
    details.add("Source", source);
    let (workers, storage) = (&sync.destination_workers, &sync.destination_storage);
    details.add("Destination", side(workers, &sync.destination_path, storage));
    details.add_some("Run as", sync.run_as.as_ref().map(|user| user.to_string()));
    details.add("Mapping", mapping_example(&sync.source_path, &sync.destination_path));
    details.add("Submitted", format_time(sync.submitted_at));
    details.add("Started", or_dash(sync.started_at.map(format_time)));
    details.add("Updated", format_time(sync.updated_at));
    details.add("Ended", or_dash(sync.ended_at.map(format_time)));
    details.add_some(
        "Complete",
        complete_count(sync).map(|(complete, all)| format!("{complete} of {all} destinations")),
    );
    details.add("Progress", or_dash(percent_done(sync).map(|p| format!("{p:.1} %"))));
    let [sent, skipped, total] =
        [sync.transferred_bytes, sync.bytes_skipped, sync.total_bytes].map(units::format_bytes);
    details.add("Bytes", format!("{sent} sent, {skipped} skipped, of {bound}{total}"));
    let [done, skipped, failed, total] =
        [sync.files_done, sync.files_skipped, sync.files_failed, sync.files_total]
            .map(units::format_count);
    let files = format!("{done} done, {skipped} skipped, {failed} failed, of {bound}{total}");
    details.add("Files", files);
    let [done, failed, total] =
        [sync.dirs_done, sync.dirs_failed, sync.dirs_total].map(units::format_count);
    details.add("Directories", format!("{done} done, {failed} failed, of {bound}{total}"));
    details.add_some("Steps", failed_steps_text(sync));
    if !sync.actions.is_empty() {
        let actions = sync.actions.iter().map(|(action, tally)| {
            let (count, bytes) =
                (units::format_count(tally.count), units::format_bytes(tally.bytes));
            format!("{} {count} ({bytes})", action.as_str())
        });
        let key = if sync.options.dry_run { "Would" } else { "Actions" };
        details.add(key, actions.collect::<Vec<_>>().join(", "));
    }
    details.add_some("Wire", sent_text(sync));
    details.add_some("Verified", readback_text(sync));
    let options = to_cli_args(&sync.options, None);
    details.add_some("Options", options.strip_prefix(' ').map(str::to_owned));
    details.add_some("Limit", sync.bwlimit.map(|limit| units::format_rate(limit as f64)));
    let effective =
        || effective_rate(sync).map(|rate| format!("{} (effective)", units::format_rate(rate)));
    let rate = sync.rate.map(|rate| units::format_rate(rate as f64)).or_else(effective);
    details.add("Rate", or_dash(rate));
    details.add("Time left", or_dash(eta_text(sync)));
    details.add("Retried", units::pluralize(sync.retries, "task", "tasks"));
    if sync.unverified > 0 {
        let tasks = units::pluralize(sync.unverified, "task", "tasks");
        details.add("Unverified", format!("{tasks}, reported done without evidence"));
    }
    let mut text = details.render();
    if !sync.destinations.is_empty() {
        text.push_str("Destinations:\n");
        for line in destination_lines(sync) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    if !sync.detail.is_empty() {
        text.push_str("Workers:\n");
        for (worker, activity) in &sync.detail {
            text.push_str(&format!("  {}  {}\n", sanitize(worker), sanitize(activity)));
        }
    }
    text
}

fn phase_label(sync: &SyncProgress) -> Option<&'static str> {
    match sync.phase {
        _ if sync.options.dry_run => Some("dry run: nothing is changed"),
        SyncPhase::Scanning => Some("scanning and copying"),
        SyncPhase::Transferring => Some("copying"),
        SyncPhase::Verifying => Some("reading back"),
        SyncPhase::Pruning => Some("deleting"),
        SyncPhase::Flushing => Some("flushing"),
        SyncPhase::Waiting | SyncPhase::Done => None,
    }
}

#[cfg(test)]
mod tests;
