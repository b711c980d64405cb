use super::*;
use crate::cli::fixtures;
use crate::wire::AbsPath;
use crate::wire::entry_report::EntryAction;
use crate::wire::sync::SyncState;

fn now() -> Timestamp {
    "2026-02-03T14:15:00Z".parse().unwrap()
}

#[test]
fn unavailable_paths_and_a_drain_are_shown_with_the_worker() {
    use crate::wire::worker::{DrainInfo, UnavailableEndpoint, UnavailablePath, WorkerState};
    let since = "2026-02-03T14:00:00Z".parse().unwrap();
    let drained = Some(DrainInfo { by: Some("ann".into()), reason: None, since });
    let w = WorkerView { state: WorkerState::Draining, drained, ..fixtures::worker("st-02", true) };
    let text = worker_details(&w, now());
    assert!(text.contains("State:       DRAINING") && text.contains("Drained:     "), "{text}");
    let path = AbsPath::new("/arch").unwrap();
    let unavailable_paths = vec![UnavailablePath { path, reason: "not there".into() }];
    let unavailable_endpoints =
        vec![UnavailableEndpoint { endpoint: "10.0.0.9:1".into(), reason: "no address".into() }];
    let w =
        WorkerView { unavailable_paths, unavailable_endpoints, ..fixtures::worker("st-02", true) };
    let record = worker_details(&w, now());
    for line in ["/arch: not there", "10.0.0.9:1: no address"] {
        let shown = record.lines().any(|l| l.starts_with("Unavailable:") && l.ends_with(line));
        assert!(shown, "{line} in {record}");
    }
}

#[test]
fn a_stalled_sync_shows_its_oldest_task() {
    use crate::wire::sync::StallInfo;
    let stalled = Some(StallInfo {
        since: "2026-02-03T14:00:00Z".parse().unwrap(),
        task: "copy".into(),
        worker_id: Some("st-02".parse().unwrap()),
        task_seconds: 720,
    });
    let text = sync_details(&SyncProgress { stalled, ..fixtures::sync("x") }, now());
    assert!(text.contains("the oldest task is a copy of 12m, at st-02"), "{text}");
}

#[test]
fn the_sides_of_a_sync_are_shown_with_their_workers_and_storages() {
    let sync = SyncProgress {
        source_storage: Some("lustre-1".parse().unwrap()),
        destination_workers: vec!["gpu-*".parse().unwrap(), "@rack=3".parse().unwrap()],
        ..fixtures::sync("x")
    };
    let text = sync_details(&sync, now());
    for line in ["Source:      /src (storage lustre-1)", "Destination: gpu-*,@rack=3:/dst"] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[test]
fn the_destinations_of_a_sync_are_listed() {
    let destinations = vec![
        fixtures::destination("gpu-1", SyncState::Progress, 50),
        fixtures::destination("gpu-2", SyncState::Completed, 100),
    ];
    let text =
        sync_details(&SyncProgress { destinations, scan_done: true, ..fixtures::sync("x") }, now());
    assert!(text.contains("Complete:    1 of 2 destinations\n"), "{text}");
    assert!(text.contains("Destinations:\n  gpu-1  PROGRESS   50 %"), "{text}");
    assert!(!sync_details(&fixtures::sync("x"), now()).contains("Complete"));
}

#[test]
fn a_worker_is_shown_with_its_labels_and_the_storage_of_each_path() {
    let mut worker = fixtures::worker("st-02", true);
    worker.labels =
        [("rack".to_owned(), "3".to_owned()), ("gpu".to_owned(), "h100".to_owned())].into();
    worker.storage_ids = [("/arch".to_owned(), "lustre-1".parse().unwrap())].into();
    let text = worker_details(&worker, now());
    for line in [
        "Storage:     /arch (1.0 GiB), storage lustre-1",
        "Storage:     /more (-)",
        "Labels:      gpu=h100, rack=3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[test]
fn sync_details_have_one_key_per_line() {
    let text = sync_details(&fixtures::sync("x"), now());
    for line in text.lines() {
        assert!(line.split_once(": ").is_some() || line.ends_with(':'), "{line}");
    }
    assert!(text.starts_with("Id:          x\nState:       QUEUED\n"), "{text}");
}

#[test]
fn sync_details_show_actions_sent_bytes_and_options_if_there_are_any() {
    use crate::wire::entry_report::Tally;
    use crate::wire::options::SyncOptions;
    use crate::wire::sync::{SyncOutcome, SyncPhase};
    let sync = SyncProgress {
        state: SyncState::Progress,
        phase: SyncPhase::Verifying,
        sent_bytes: 5,
        verified_files: 2,
        actions: [(EntryAction::Create, Tally { count: 3, bytes: 1024 })].into(),
        options: SyncOptions { update: true, ..SyncOptions::default() },
        bwlimit: Some(100 << 20),
        ..fixtures::sync("x")
    };
    let text = sync_details(&sync, now());
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
        outcome: Some(SyncOutcome::DeleteStopped),
        phase: SyncPhase::Done,
        ..fixtures::sync("x")
    };
    let text = sync_details(&stopped, now());
    assert!(text.contains("FAILED (copied, deletion stopped)"), "{text}");
    let plain = sync_details(&fixtures::sync("x"), now());
    assert!(!plain.contains("Actions") && !plain.contains("Options"), "{plain}");
}
