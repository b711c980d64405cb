use super::*;
use crate::cli::fixtures;
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
        ..fixtures::sync("old")
    };
    let running = SyncProgress {
        state: SyncState::Progress,
        transferred_bytes: 60 << 20,
        total_bytes: 90 << 20,
        rate: Some(1 << 20),
        source_path: AbsPath::new(b"/new\nline").unwrap(),
        ..fixtures::sync("run")
    };
    let queued = SyncProgress { reason: Some("no worker".into()), ..fixtures::sync("wait") };
    let text = sync_table(&[ended, running, queued], None, now());
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

/// Syncs in each state, with the longest of each text.
fn syncs_in_each_state() -> Vec<SyncProgress> {
    let made = |id: &str, short: &str| SyncProgress {
        short_id: Some(short.into()),
        source_path: AbsPath::new("/lustre/project/scratch/run42").unwrap(),
        destination_path: AbsPath::new("/archive/2026/project/run42").unwrap(),
        ..fixtures::sync(id)
    };
    vec![
        SyncProgress {
            state: SyncState::Progress,
            rate: Some(12 << 30),
            eta_seconds: Some(245),
            scan_done: true,
            transferred_bytes: 700 << 30,
            total_bytes: 900 << 30,
            files_total: 150_331,
            files_done: 81_204,
            ..made("019ad26e-6f2c-7a10-8a52-1f3b5a7c9d01", "019ad26e-6")
        },
        SyncProgress {
            reason: Some(
                "no active worker serves the source path /lustre/project/scratch/run42; nearest storage \
                 paths: /arch (st-01), /arch2 (st-02)"
                    .into(),
            ),
            ..made("019ad26e-9999-7a10-8a52-1f3b5a7c9d02", "019ad26e-9")
        },
        SyncProgress { state: SyncState::Completed, ..made("nightly-0203", "nightly-0203") },
    ]
}

#[test]
fn a_list_of_syncs_is_as_wide_as_the_terminal_and_whole_in_a_pipe() {
    let of = |width| sync_table(&syncs_in_each_state(), width, now());
    let pipe = of(None);
    assert!(pipe.contains("019ad26e-6f2c-7a10-8a52-1f3b5a7c9d01") && pipe.contains("(st-02)"));
    for width in [40, 80, 100, 120, 160, 300] {
        let text = of(Some(width));
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        for part in ["019ad26e-6 ", "019ad26e-9 ", "nightly-0203", "QUEUED", "77%"] {
            assert!(text.contains(part), "{width}: {part} in\n{text}");
        }
        assert!(!text.contains("(st-0") && !text.contains("-7a10-"), "{width}:\n{text}");
        assert!(
            text.contains("\n    no active worker serves ") || width == 300,
            "{width}:\n{text}"
        );
    }
    // At 80 columns: what is left, what is in the way, and the reason in full.
    let text = of(Some(80));
    for part in ["ETA", "run42 → ", "the source path /lustre/project/scratch/run42\n"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // With 120 columns nothing is omitted, and ids of operators are complete.
    let header = of(Some(120)).lines().next().unwrap().to_owned();
    for part in ["SIZE", "RATE", "ETA", "FILES", "FAILED", "AGE"] {
        assert!(header.contains(part), "{part} in {header}");
    }
    assert!(of(Some(300)).contains("nightly-0203"), "{}", of(Some(300)));
}

#[test]
fn a_list_of_workers_is_as_wide_as_the_terminal() {
    let list = WorkerList {
        active: vec![fixtures::worker("storage-02", true)],
        inactive: vec![],
        revoked: vec![],
    };
    for width in [40, 80, 120] {
        let text = worker_table(&list, Some(width), now());
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        for part in ["storage-02", "no heartbeat", "/arch"] {
            assert!(text.contains(part), "{width}: {part} in\n{text}");
        }
    }
}

#[test]
fn skipped_files_count_as_done_and_the_eta_is_that_of_the_master() {
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
        ..fixtures::sync("run")
    };
    let text = sync_table(&[sync], None, now());
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[2..9], ["60%", "150.0", "MiB", "1.0", "MiB/s", "1m00s", "2/4"], "{text}");
}

#[test]
fn workers_show_their_storage_and_the_reason_of_their_state() {
    let w = fixtures::worker("st-02", false);
    let w = WorkerView { incoming_requests: 4, ..w };
    let text = worker_table(
        &WorkerList { active: vec![], inactive: vec![w], revoked: vec![] },
        None,
        now(),
    );
    assert!(text.lines().nth(1).unwrap().starts_with("st-02   INACTIVE  "), "{text}");
    let cells = |nth: usize| text.lines().nth(nth).unwrap().split_whitespace();
    let receiving = cells(0).position(|header| header == "RECEIVING").unwrap();
    assert_eq!(cells(1).nth(receiving), Some("4"), "{text}");
    assert!(text.contains("/arch (1.0 GiB), /more (-)"), "{text}");
    assert!(text.contains("10.0.0.2:8889%ib0") && text.contains("no heartbeat"), "{text}");
}

#[test]
fn the_wide_table_of_workers_has_their_labels() {
    let labels =
        [("rack".to_owned(), "3".to_owned()), ("gpu".to_owned(), "h100".to_owned())].into();
    let labelled = WorkerView { labels, ..fixtures::worker("st-01", true) };
    let plain = fixtures::worker("st-02", true);
    let list = WorkerList { active: vec![labelled, plain], inactive: vec![], revoked: vec![] };
    let text = wide_worker_table(&list, now());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("LABELS            VERSION  REASON"), "{text}");
    assert!(lines[1].contains("gpu=h100, rack=3  -        no heartbeat"), "{text}");
    assert!(!worker_table(&list, None, now()).contains("rack=3"));
}

#[test]
fn a_worker_with_an_unavailable_path_is_active() {
    let path = AbsPath::new("/arch").unwrap();
    let unavailable_paths =
        vec![crate::wire::worker::UnavailablePath { path, reason: "not there".into() }];
    let w = WorkerView { unavailable_paths, ..fixtures::worker("st-02", true) };
    let text = worker_table(
        &WorkerList { active: vec![w], inactive: vec![], revoked: vec![] },
        None,
        now(),
    );
    assert!(text.lines().nth(1).unwrap().starts_with("st-02   ACTIVE"), "{text}");
}

#[test]
fn ages_have_one_unit() {
    let shown = |s| age_text(Duration::from_secs(s));
    assert_eq!([shown(5), shown(300), shown(10_000), shown(900_000)], ["5s", "5m", "2h", "10d"]);
}
