//! Tables and records for people. One record a line, never wrapped: a line can be grepped.

use super::master::Told;
use super::out::clean;
use super::progress::percent;
use super::report::{failed_steps, moved, verified};
use crate::client::{ClientError, Reply};
use crate::util::units;
use crate::wire::leader::{Readiness, Role};
use crate::wire::options::Action;
use crate::wire::sync::{SyncProgress, SyncState};
use crate::wire::worker::{NicReport, WorkerList, WorkerView};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use std::time::Duration;

/// Lays out `rows` under `header`, two spaces between columns, lines without trailing spaces.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .force_no_tty()
        .set_header(header.to_vec())
        .add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Time from `from` to `to`, 0 where the clocks of two hosts disagree.
pub(super) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A single coarse unit, for ages: `5m`, `3h`, `12d`.
fn age(d: Duration) -> String {
    match d.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// When it may have copied the rest.
fn eta(sync: &SyncProgress) -> Option<String> {
    sync.eta_seconds.map(|seconds| units::duration(Duration::from_secs(seconds)))
}

fn dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// Syncs, those that run first, then by age.
pub(super) fn syncs(list: &[SyncProgress], now: Timestamp) -> String {
    let mut order: Vec<&SyncProgress> = list.iter().collect();
    order.sort_by_key(|s| (s.state.is_final(), std::cmp::Reverse(s.submitted_at)));
    let rows = order.into_iter().map(|sync| {
        let least = if sync.scan_done { "" } else { "≥" };
        let begun = sync.state != SyncState::Queued;
        vec![
            sync.request_id.to_string(),
            sync.state.as_str().to_owned(),
            // Cut, not rounded: 99.9 must not be shown as 100.
            dash(percent(sync).map(|p| format!("{:.0}%", p.floor())).filter(|_| begun)),
            dash(begun.then(|| format!("{least}{}", units::bytes(sync.total_bytes)))),
            dash(sync.rate.map(|rate| units::rate(rate as f64))),
            dash(eta(sync)),
            dash(begun.then(|| {
                let done = units::count(sync.files_done + sync.files_skipped);
                format!("{done}/{least}{}", units::count(sync.files_total))
            })),
            units::count(sync.failures()),
            age(between(sync.submitted_at, now)),
            format!("{} → {}", sync.source_path, sync.destination_path),
            sync.reason.as_deref().map(clean).unwrap_or_default(),
        ]
    });
    let header = [
        "ID",
        "STATE",
        "PROGRESS",
        "SIZE",
        "RATE",
        "ETA",
        "FILES",
        "FAILED",
        "AGE",
        "SOURCE → DESTINATION",
        "REASON",
    ];
    table(&header, rows.collect())
}

/// What a dry run found: an action a line, also those that would not be done.
pub(super) fn plan(sync: &SyncProgress) -> String {
    use Action::{Create, Delete, Metadata, Skip, Update};
    let rows = [Create, Update, Metadata, Delete, Skip].into_iter().map(|action| {
        let tally = sync.actions.get(&action).copied().unwrap_or_default();
        vec![action.as_str().to_owned(), units::count(tally.count), units::bytes(tally.bytes)]
    });
    table(&["WOULD", "ENTRIES", "SIZE"], rows.collect())
}

/// Workers, active ones first.
pub(super) fn workers(list: &WorkerList, now: Timestamp) -> String {
    let rows = list.active.iter().chain(&list.inactive).map(|w| worker(w, now));
    let header = [
        "WORKER",
        "STATE",
        "HEARTBEAT",
        "SYNCS",
        "IN-FLIGHT",
        "ENDPOINTS",
        "STORAGE (free)",
        "REASON",
    ];
    table(&header, rows.collect())
}

/// Masters, each as it sees itself and the one that leads.
pub(super) fn masters(list: &[Told], now: Timestamp) -> String {
    let rows = list.iter().map(|(url, told)| master(url, told, now));
    table(&["MASTER", "ROLE", "LEADER", "EPOCH", "SINCE", "STORE", "REASON"], rows.collect())
}

fn master(url: &str, told: &Result<Reply<Readiness>, ClientError>, now: Timestamp) -> Vec<String> {
    let told = match told {
        Ok(told) => told,
        Err(e) => {
            let mut row = vec![clean(url), "unreachable".to_owned()];
            row.extend(std::iter::repeat_n(dash(None), 4));
            row.push(clean(&e.to_string()));
            return row;
        }
    };
    let leader = told.leader.as_ref();
    let since = leader.and_then(|l| l.since).map(|since| age(between(since, now)));
    vec![
        clean(url),
        if told.role == Role::Leader { "leader" } else { "follower" }.to_owned(),
        dash(leader.map(|l| clean(l.url.as_ref().unwrap_or(&l.name)))),
        dash(leader.map(|l| l.epoch.to_string())),
        dash(since),
        format!("{} ({})", clean(&told.store.place), if told.store.ok { "ok" } else { "away" }),
        told.reason.as_deref().or(told.store.problem.as_deref()).map(clean).unwrap_or_default(),
    ]
}

fn worker(w: &WorkerView, now: Timestamp) -> Vec<String> {
    let storage = w.storage_paths.iter().map(|path| {
        // Keyed by the path as it is shown.
        let free = w.free_bytes.get(&path.to_string()).map(|n| units::bytes(*n));
        format!("{path} ({})", dash(free))
    });
    let endpoints = w.data_plane_endpoints.iter().map(|e| match &e.iface {
        Some(iface) => format!("{}%{}", clean(&e.authority()), clean(iface)),
        None => clean(&e.authority()),
    });
    vec![
        w.worker_id.to_string(),
        w.state.as_str().to_owned(),
        age(between(w.last_heartbeat, now)),
        w.syncs.to_string(),
        match w.slots {
            Some(slots) => format!("{}/{slots}", w.in_flight),
            None => w.in_flight.to_string(),
        },
        endpoints.collect::<Vec<_>>().join(", "),
        storage.collect::<Vec<_>>().join(", "),
        w.reason.as_deref().map(clean).unwrap_or_default(),
    ]
}

/// Everything about one worker, as `Key: value` lines and a table of its endpoints.
pub(super) fn worker_record(w: &WorkerView, now: Timestamp) -> String {
    let storage = w.storage_paths.iter().map(|path| {
        let free = w.free_bytes.get(&path.to_string()).map(|n| units::bytes(*n));
        format!("{path} ({})", dash(free))
    });
    let mut rows = vec![
        ("Worker", w.worker_id.to_string()),
        ("State", w.state.as_str().to_owned()),
        ("Heartbeat", format!("{} ago", age(between(w.last_heartbeat, now)))),
        (
            "In flight",
            format!(
                "{} of {}",
                units::counted(w.in_flight, "task", "tasks"),
                units::counted(w.syncs, "sync", "syncs")
            ),
        ),
        ("Receiving", units::counted(w.receiving.into(), "request", "requests")),
        ("Slots", dash(w.slots.map(|n| n.to_string()))),
        ("Storage", storage.collect::<Vec<_>>().join(", ")),
        ("Version", dash(w.agent_version.as_deref().map(clean))),
    ];
    if let Some(reason) = &w.reason {
        rows.push(("Reason", clean(reason)));
    }
    for lost in &w.unavailable_paths {
        rows.push(("Unavailable", format!("{}: {}", lost.path, clean(&lost.reason))));
    }
    for lost in &w.unavailable_endpoints {
        rows.push(("Unavailable", format!("{}: {}", clean(&lost.endpoint), clean(&lost.reason))));
    }
    if let Some(drained) = &w.drained {
        rows.push(("Drained", format!("{} ago", age(between(drained.since, now)))));
    }
    let mut text: String =
        rows.iter().map(|(k, v)| format!("{:<12} {v}\n", format!("{k}:"))).collect();
    if !w.nics.is_empty() {
        let header = [
            "ENDPOINT",
            "INTERFACE",
            "SENT",
            "RECEIVED",
            "CONNECTIONS",
            "GOODPUT",
            "RECEIVING",
            "STATE",
        ];
        text.push('\n');
        text.push_str(&table(&header, w.nics.iter().map(nic).collect()));
    }
    text
}

fn nic(nic: &NicReport) -> Vec<String> {
    vec![
        clean(&nic.endpoint),
        dash(nic.iface.as_deref().map(clean)),
        units::bytes(nic.sent),
        units::bytes(nic.received),
        nic.connections.to_string(),
        dash(nic.goodput.map(|n| units::rate(n as f64))),
        dash(nic.receive_rate.map(|n| units::rate(n as f64))),
        match &nic.aside {
            Some(why) => format!("aside: {}", clean(why)),
            None => "usable".to_owned(),
        },
    ]
}

/// Everything about one sync, as `Key: value` lines; failures are told by the caller.
pub(super) fn record(sync: &SyncProgress, now: Timestamp) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut add = |key: &'static str, value: String| rows.push((key, value));
    let least = if sync.scan_done { "" } else { "≥ " };
    add("Id", sync.request_id.to_string());
    add("State", state(sync));
    if let Some(reason) = &sync.reason {
        add("Reason", clean(reason));
    }
    if let Some(stalled) = &sync.stalled {
        let since = age(between(stalled.since, now));
        let who = stalled.worker_id.as_ref().map_or("nobody".to_owned(), ToString::to_string);
        let (task, of) = (clean(&stalled.task), age(Duration::from_secs(stalled.task_seconds)));
        add("Stalled", format!("for {since}; the oldest task is a {task} of {of}, at {who}"));
    }
    add("Source", sync.source_path.to_string());
    add("Destination", sync.destination_path.to_string());
    add("Mapping", mapping(sync));
    add("Submitted", time(sync.submitted_at));
    add("Started", dash(sync.started_at.map(time)));
    add("Updated", time(sync.updated_at));
    add("Ended", dash(sync.ended_at.map(time)));
    add("Progress", dash(percent(sync).map(|p| format!("{p:.1} %"))));
    add(
        "Bytes",
        format!(
            "{} sent, {} skipped, of {least}{}",
            units::bytes(sync.transferred_bytes),
            units::bytes(sync.bytes_skipped),
            units::bytes(sync.total_bytes)
        ),
    );
    let entries = |done, skipped: Option<u64>, failed, total| {
        let skipped = skipped.map(|n| format!("{} skipped, ", units::count(n))).unwrap_or_default();
        let (done, failed) = (units::count(done), units::count(failed));
        format!("{done} done, {skipped}{failed} failed, of {least}{}", units::count(total))
    };
    add(
        "Files",
        entries(sync.files_done, Some(sync.files_skipped), sync.files_failed, sync.files_total),
    );
    add("Directories", entries(sync.dirs_done, None, sync.dirs_failed, sync.dirs_total));
    if let Some(steps) = failed_steps(sync) {
        add("Steps", steps);
    }
    if !sync.actions.is_empty() {
        let each = sync.actions.iter().map(|(action, tally)| {
            let (count, bytes) = (units::count(tally.count), units::bytes(tally.bytes));
            format!("{} {count} ({bytes})", action.as_str())
        });
        let key = if sync.options.dry_run { "Would" } else { "Actions" };
        add(key, each.collect::<Vec<_>>().join(", "));
    }
    if let Some(moved) = moved(sync) {
        add("Wire", moved);
    }
    if let Some(verified) = verified(sync) {
        add("Verified", verified);
    }
    let options = super::options::again(&sync.options, None);
    if !options.is_empty() {
        add("Options", options.trim_start().to_owned());
    }
    if let Some(limit) = sync.bwlimit {
        add("Limit", units::rate(limit as f64));
    }
    add("Rate", dash(rate(sync)));
    add("Time left", dash(eta(sync)));
    add("Retried", units::counted(sync.retries, "task", "tasks"));
    if sync.unverified > 0 {
        let why = "reported done without evidence";
        add("Unverified", format!("{}, {why}", units::counted(sync.unverified, "task", "tasks")));
    }
    let mut text: String =
        rows.iter().map(|(key, value)| format!("{:<13}{value}\n", format!("{key}:"))).collect();
    if !sync.detail.is_empty() {
        text.push_str("Workers:\n");
        for (worker, doing) in &sync.detail {
            text.push_str(&format!("  {}  {}\n", clean(worker), clean(doing)));
        }
    }
    text
}

fn state(sync: &SyncProgress) -> String {
    use crate::wire::sync::{Outcome, Phase};
    let more = match (sync.outcome, sync.phase) {
        (Some(Outcome::Partial), _) => " (partial)",
        (Some(Outcome::VanishedOnly), _) => " (only vanished files failed)",
        (Some(Outcome::DeleteStopped), _) => " (everything copied, deletion stopped)",
        (Some(Outcome::CopyStopped), _) => " (stopped before everything was copied)",
        (Some(Outcome::Unverified), _) => " (unverified)",
        _ if sync.options.dry_run => " (dry run: nothing is changed)",
        (_, Phase::Scanning) => " (scanning and copying)",
        (_, Phase::Transferring) => " (copying)",
        (_, Phase::Verifying) => " (reading back)",
        (_, Phase::Pruning) => " (deleting)",
        (_, Phase::Flushing) => " (flushing)",
        _ => "",
    };
    format!("{}{more}", sync.state.as_str())
}

fn rate(sync: &SyncProgress) -> Option<String> {
    if let Some(rate) = sync.rate {
        return Some(units::rate(rate as f64));
    }
    effective(sync).map(|rate| format!("{} (effective)", units::rate(rate)))
}

/// Bytes over the whole time, once ended.
pub(super) fn effective(sync: &SyncProgress) -> Option<f64> {
    let seconds = between(sync.started_at?, sync.ended_at?).as_secs_f64();
    (seconds > 0.0 && sync.transferred_bytes > 0).then(|| sync.transferred_bytes as f64 / seconds)
}

fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn mapping(sync: &SyncProgress) -> String {
    super::submit::mapping(&sync.source_path, &sync.destination_path)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::wire::AbsPath;

    fn now() -> Timestamp {
        "2026-02-03T14:15:00Z".parse().unwrap()
    }

    #[test]
    fn running_syncs_come_first_and_every_line_is_one_record() {
        let ended = SyncProgress {
            state: SyncState::Completed,
            scan_done: true,
            total_bytes: 2 << 40,
            files_total: 80_000,
            files_done: 80_000,
            ..sample::sync("old")
        };
        let running = SyncProgress {
            state: SyncState::Progress,
            transferred_bytes: 60 << 20,
            total_bytes: 90 << 20,
            rate: Some(1 << 20),
            source_path: AbsPath::new(b"/new\nline").unwrap(),
            ..sample::sync("run")
        };
        let queued = SyncProgress { reason: Some("no worker".into()), ..sample::sync("wait") };
        let text = syncs(&[ended, running, queued], now());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("ID    STATE      PROGRESS  SIZE"), "{text}");
        assert!(
            lines[1].starts_with("run   PROGRESS   -         ≥90.0 MiB  1.0 MiB/s  -    "),
            "{text}"
        );
        assert!(lines[1].contains("/new\\#012line → /dst") && !lines[1].ends_with(' '));
        assert!(
            lines[2].starts_with("wait  QUEUED     -         -") && lines[2].ends_with("no worker")
        );
        assert!(lines[3].starts_with("old   COMPLETED  100%      2.0 TiB"), "{text}");
    }

    #[test]
    fn what_is_skipped_is_done_and_the_forecast_is_that_of_the_master() {
        let sync = SyncProgress {
            state: SyncState::Progress,
            rate: Some(1 << 20),
            eta_seconds: Some(60),
            scan_done: true,
            transferred_bytes: 60 << 20,
            bytes_skipped: 30 << 20,
            total_bytes: 150 << 20,
            files_total: 4,
            files_done: 1,
            files_skipped: 1,
            ..sample::sync("run")
        };
        let text = syncs(&[sync], now());
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[2..9], ["60%", "150.0", "MiB", "1.0", "MiB/s", "1m00s", "2/4"], "{text}");
    }

    #[test]
    fn workers_show_their_storage_and_why_they_get_nothing() {
        let w = sample::worker("st-02", false);
        let text = workers(&WorkerList { active: vec![], inactive: vec![w] }, now());
        assert!(text.lines().nth(1).unwrap().starts_with("st-02   INACTIVE  "), "{text}");
        assert!(text.contains("/arch (1.0 GiB), /more (-)"), "{text}");
        assert!(text.contains("10.0.0.2:8889%ib0") && text.contains("no heartbeat"), "{text}");
    }

    #[test]
    fn a_worker_that_lacks_something_or_is_drained_says_so() {
        use crate::wire::worker::{Drained, UnavailableEndpoint, UnavailablePath, WorkerState};
        let since = "2026-02-03T14:00:00Z".parse().unwrap();
        let drained = Some(Drained { by: Some("ann".into()), reason: None, since });
        let w =
            WorkerView { state: WorkerState::Draining, drained, ..sample::worker("st-02", true) };
        let text = worker_record(&w, now());
        assert!(text.contains("State:       DRAINING") && text.contains("Drained:     "), "{text}");
        let path = AbsPath::new("/arch").unwrap();
        let unavailable_paths = vec![UnavailablePath { path, reason: "not there".into() }];
        let unavailable_endpoints = vec![UnavailableEndpoint {
            endpoint: "10.0.0.9:1".into(),
            reason: "no address".into(),
        }];
        let w = WorkerView {
            unavailable_paths,
            unavailable_endpoints,
            ..sample::worker("st-02", true)
        };
        let record = worker_record(&w, now());
        for line in ["/arch: not there", "10.0.0.9:1: no address"] {
            let shown = record.lines().any(|l| l.starts_with("Unavailable:") && l.ends_with(line));
            assert!(shown, "{line} in {record}");
        }
        let text = workers(&WorkerList { active: vec![w], inactive: vec![] }, now());
        assert!(text.lines().nth(1).unwrap().starts_with("st-02   ACTIVE"), "{text}");
    }

    #[test]
    fn a_stalled_sync_says_which_task_is_oldest() {
        use crate::wire::sync::Stalled;
        let stalled = Some(Stalled {
            since: "2026-02-03T14:00:00Z".parse().unwrap(),
            task: "copy".into(),
            worker_id: Some("st-02".parse().unwrap()),
            task_seconds: 720,
        });
        let text = record(&SyncProgress { stalled, ..sample::sync("x") }, now());
        assert!(text.contains("the oldest task is a copy of 12m, at st-02"), "{text}");
    }

    #[test]
    fn a_record_has_one_key_a_line() {
        let text = record(&sample::sync("x"), now());
        for line in text.lines() {
            assert!(line.split_once(": ").is_some() || line.ends_with(':'), "{line}");
        }
        assert!(text.starts_with("Id:          x\nState:       QUEUED\n"), "{text}");
    }

    #[test]
    fn a_record_tells_actions_wire_and_options_where_there_are_some() {
        use crate::wire::options::{SyncOptions, Tally};
        use crate::wire::sync::{Outcome, Phase};
        let sync = SyncProgress {
            state: SyncState::Progress,
            phase: Phase::Verifying,
            sent_bytes: 5,
            verified_files: 2,
            actions: [(Action::Create, Tally { count: 3, bytes: 1024 })].into(),
            options: SyncOptions { update: true, ..SyncOptions::default() },
            bwlimit: Some(100 << 20),
            ..sample::sync("x")
        };
        let text = record(&sync, now());
        for line in [
            "State:       PROGRESS (reading back)",
            "Actions:     create 3 (1.0 KiB)",
            "Wire:        5 B sent",
            "Verified:    2 read back, 0 repaired",
            "Options:     --update",
            "Limit:       100.0 MiB/s",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let stopped = SyncProgress {
            state: SyncState::Failed,
            outcome: Some(Outcome::DeleteStopped),
            phase: Phase::Done,
            ..sample::sync("x")
        };
        let text = record(&stopped, now());
        assert!(text.contains("FAILED (everything copied, deletion stopped)"), "{text}");
        let plain = record(&sample::sync("x"), now());
        assert!(!plain.contains("Actions") && !plain.contains("Options"), "{plain}");
    }

    #[test]
    fn ages_have_one_unit() {
        let shown = |s| age(Duration::from_secs(s));
        assert_eq!(
            [shown(5), shown(300), shown(10_000), shown(900_000)],
            ["5s", "5m", "2h", "10d"]
        );
    }
}
