//! What is compared, linked, kept and recorded on the way.

use super::*;
use crate::wire::content::BLOCK_BYTES;
use crate::wire::entry_report::{EntryAction, FileState, Tally};
use crate::wire::options::Compare;
use crate::wire::preserve::Attribute;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The actions of a report with their counts.
fn actions(report: &TaskReport) -> Vec<(EntryAction, u64)> {
    report.actions.iter().map(|(action, tally)| (*action, tally.count)).collect()
}

fn touch(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn ino(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Everything below `root`, with all that `lstat` says but when it was read.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<i64>> {
    let mut seen = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_dir() {
            rest.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let numbers = [m.ino(), u64::from(m.mode()), m.nlink(), m.size(), m.blocks()];
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        let all = numbers.map(|n| n as i64).into_iter().chain(times);
        seen.insert(path, all.collect());
    }
    seen
}

#[tokio::test]
async fn equal_content_is_not_sent_and_its_mtime_is_repaired() {
    for receivers in [0, 1] {
        let mut fleet = AgentFleet::new(receivers).await;
        write_sample_tree(&fleet);
        let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
        let cx = fleet.context(holds);
        fleet.write("d/same", b"0123456789");
        copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
        fleet.options.compare = Compare::Checksum;
        touch(&fleet.src().join("a"), 1_000);
        touch(&fleet.src().join("d/big"), 2_000);
        let (done, _) = copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
        let report = done.report;
        assert_eq!((report.files_done, report.files_skipped, report.bytes_sent), (0, 5, 0));
        let bytes = 12 + 3 * MIB as u64 / 2;
        assert_eq!(report.actions[&EntryAction::Metadata], Tally { count: 2, bytes });
        assert_eq!(fleet.differences(), Vec::<String>::new());
        // As long as before, and as old: only its content differs.
        fleet.write("d/same", b"0123456780");
        touch(&fleet.src().join("d/same"), 3_000);
        touch(&fleet.dst().join("d/same"), 3_000);
        let (done, _) = copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
        let report = done.report;
        assert_eq!((report.files_done, report.bytes_done, report.bytes_sent), (1, 10, 10));
        assert_eq!(report.actions[&EntryAction::Update], Tally { count: 1, bytes: 10 });
        assert_eq!((report.failures, report.retry), (vec![], None));
        assert_eq!(fleet.differences(), Vec::<String>::new());
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn hard_links_are_kept_within_one_batch_and_across_batches() {
    for receivers in [0, 1] {
        let fleet = AgentFleet::new(receivers).await;
        fleet.write("a", b"shared content");
        fleet.write("b", b"b's own");
        fs::create_dir(fleet.src().join("d")).unwrap();
        for name in ["d/a2", "z"] {
            fs::hard_link(fleet.src().join("a"), fleet.src().join(name)).unwrap();
        }
        let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
        let cx = fleet.context(holds);
        let all = fleet.manifest(None);
        let batch = |names: &[&str]| all.subset(|e| names.contains(&e.path.to_string().as_str()));
        let (one, _) = copy_entries(&fleet, &cx, &batch(&["a", "b", "d/a2"])).await;
        assert_eq!(one.report.failures, []);
        assert_eq!((one.report.files_done, one.report.bytes_sent), (3, 21));
        assert_eq!((one.report.bytes_done, one.report.bytes_kept), (35, 14));
        assert_eq!(actions(&one.report), [(EntryAction::Create, 3)]);
        assert!(one.report.needs_clean_up);
        let (other, _) = copy_entries(&fleet, &cx, &batch(&["z"])).await;
        assert_eq!(
            (other.report.bytes_sent, actions(&other.report)),
            (0, vec![(EntryAction::Create, 1)])
        );
        let there = |name: &str| ino(fleet.dst().join(name));
        assert_eq!([there("d/a2"), there("z")], [there("a"); 2]);
        assert_ne!(there("b"), there("a"));
        let root = all.subset(|e| e.path.is_root());
        copy_entries(&fleet, &cx, &root).await;
        let assignment = fleet.assignment(TaskSpec::CleanUp);
        let writers = Writers::default();
        let job = Job {
            cx: &cx,
            assignment: &assignment,
            writers: &writers,
            deadline: &Deadline::default(),
            ticket: &(&*assignment.ticket).into(),
            byte_counter: &Arc::default(),
        };
        let cleaned = publish::clean_up(job).await;
        assert!(
            cleaned.as_ref().is_ok_and(|outcome| outcome.success)
                && writers.worker_ids().len() == 1,
            "{cleaned:?}"
        );
        let mut names: Vec<_> =
            fs::read_dir(fleet.dst()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "d", "z"]);
        assert_eq!(fs::metadata(fleet.dst().join("a")).unwrap().nlink(), 3);
        assert_eq!(fleet.differences(), Vec::<String>::new());
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn of_a_changed_file_only_the_changed_blocks_are_sent() {
    let mut fleet = AgentFleet::new(1).await;
    let mut content: Vec<u8> = (0..(4 * MIB + 77)).map(|i| (i / 9) as u8).collect();
    fleet.write("big", &content);
    let cx = fleet.context(&["src"]);
    transfer_large_file(&fleet, &cx, "big").await;
    content[MIB + 5] ^= 1;
    fleet.write("big", &content);
    touch(&fleet.src().join("big"), 5_000);
    let ranges = transfer_large_file(&fleet, &cx, "big").await;
    let sum = |of: fn(&TaskReport) -> u64| ranges.iter().map(of).sum::<u64>();
    assert_eq!((sum(|r| r.bytes_sent), sum(|r| r.bytes_done)), (BLOCK_BYTES, content.len() as u64));
    assert_eq!(sum(|r| r.bytes_kept), content.len() as u64 - BLOCK_BYTES);
    assert_eq!(fs::read(fleet.dst().join("big")).unwrap(), content);
    // … and all of it, where that is asked for.
    fleet.options.whole_file = true;
    touch(&fleet.src().join("big"), 6_000);
    let ranges = transfer_large_file(&fleet, &cx, "big").await;
    assert_eq!(ranges.iter().map(|r| r.bytes_sent).sum::<u64>(), content.len() as u64);
    assert_eq!(fleet.differences(), Vec::<String>::new());
    fleet.shut_down().await;
}

/// Brings a large file by ranges of a MiB, and publishes it; the reports of its ranges.
async fn transfer_large_file(fleet: &AgentFleet, cx: &AgentContext, name: &str) -> Vec<TaskReport> {
    let manifest = fleet.manifest(Some(name));
    let size = manifest.entries[0].size();
    let mut reports = Vec::new();
    for offset in (0..size).step_by(MIB) {
        let at = (offset, (MIB as u64).min(size - offset));
        let (done, _) = transfer_ranges(fleet, cx, &manifest, at).await;
        assert!(done.success && done.report.failures.is_empty(), "{done:?}");
        reports.push(done.report);
    }
    let chain = reports.iter().flat_map(|r| r.digest.unwrap().0).collect();
    let commit =
        TaskSpec::Commit { range_length: MIB as u64, chain: Base64Bytes(chain), in_place: false };
    let done = run_destination_task(fleet, commit, manifest).await;
    assert!(done.report.files_done == 1, "{done:?}");
    reports
}

#[tokio::test]
async fn a_large_file_is_compared_by_ranges_and_repaired_in_place() {
    let mut fleet = AgentFleet::new(1).await;
    let mut content: Vec<u8> = (0..(2 * MIB + 9)).map(|i| (i / 11) as u8).collect();
    fleet.write("big", &content);
    let cx = fleet.context(&["src"]);
    transfer_large_file(&fleet, &cx, "big").await;
    let before = ino(fleet.dst().join("big"));
    fleet.options.compare = Compare::Checksum;
    fleet.options.manifest = true;
    touch(&fleet.src().join("big"), 5_000);
    let manifest = fleet.manifest(Some("big"));
    let mut chain = Vec::new();
    for at in [(0, MIB as u64), (MIB as u64, MIB as u64), (2 * MIB as u64, 9)] {
        let (done, _) = transfer_or_compare_ranges(&fleet, &cx, &manifest, at, true).await;
        assert!(!done.report.differs && done.report.bytes_sent == 0, "{done:?}");
        chain.extend(done.report.digest.unwrap().0);
    }
    let commit =
        TaskSpec::Commit { range_length: MIB as u64, chain: Base64Bytes(chain), in_place: true };
    let report = run_destination_task(&fleet, commit, manifest).await.report;
    assert_eq!((report.files_done, report.files_skipped), (0, 1));
    assert_eq!(actions(&report), [(EntryAction::Metadata, 1)]);
    let digest = Some(blake3::hash(&content).into());
    assert_eq!((report.digest, report.records[0].digest), (digest, digest));
    assert_eq!(ino(fleet.dst().join("big")), before);
    assert_eq!(fleet.differences(), Vec::<String>::new());
    content[MIB + 1] ^= 1;
    fleet.write("big", &content);
    let manifest = fleet.manifest(Some("big"));
    let at = |n: usize| ((n * MIB) as u64, MIB as u64);
    let (same, _) = transfer_or_compare_ranges(&fleet, &cx, &manifest, at(0), true).await;
    let (other, _) = transfer_or_compare_ranges(&fleet, &cx, &manifest, at(1), true).await;
    assert_eq!((same.report.differs, other.report.differs), (false, true));
    assert_eq!(other.report.digest, None);
    fs::remove_file(fleet.dst().join("big")).unwrap();
    let (gone, _) = transfer_or_compare_ranges(&fleet, &cx, &manifest, at(0), true).await;
    assert!(gone.report.differs);
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_dry_run_reports_the_planned_actions_and_changes_nothing() {
    for receivers in [0, 1] {
        let mut fleet = AgentFleet::new(receivers).await;
        write_sample_tree(&fleet);
        let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
        let cx = fleet.context(holds);
        copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
        fleet.write("a", b"other content");
        fleet.write("new/file", b"new");
        std::os::unix::fs::symlink("file", fleet.src().join("new/link")).unwrap();
        fs::hard_link(fleet.src().join("new/file"), fleet.src().join("new/same")).unwrap();
        fs::set_permissions(
            fleet.src().join("d/big"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        fleet.options.dry_run = true;
        fleet.options.record = true;
        let before = snapshot(&fleet.dst());
        let (done, wrote) = copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
        assert_eq!(snapshot(&fleet.dst()), before);
        let report = done.report;
        assert_eq!((report.failures, wrote), (vec![], vec![]));
        assert_eq!((report.bytes_sent, report.needs_clean_up), (0, false));
        // `new` with three names in it.
        assert_eq!(report.actions[&EntryAction::Create].count, 4);
        assert_eq!(report.actions[&EntryAction::Update], Tally { count: 1, bytes: 13 });
        assert_eq!(report.actions[&EntryAction::Metadata].bytes, 3 * MIB as u64 / 2);
        let all: u64 = report.actions.values().map(|tally| tally.count).sum();
        assert_eq!(all, report.files_done + report.files_skipped + report.dirs_done);
        let records: Vec<_> =
            report.records.iter().map(|r| (r.path.to_string(), r.action.unwrap())).collect();
        assert!(records.contains(&("a".into(), EntryAction::Update)), "{records:?}");
        assert!(records.contains(&("d/link".into(), EntryAction::Skip)), "{records:?}");
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn each_file_is_recorded_with_the_digest_of_its_destination_content() {
    for (receivers, compare) in
        [(0, Compare::SizeTime), (1, Compare::SizeTime), (1, Compare::Checksum)]
    {
        let mut fleet = AgentFleet::new(receivers).await;
        write_sample_tree(&fleet);
        // Both roots were made within one tick of the clock: their times may be equal.
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(fleet.src()).unwrap().set_modified(long_ago).unwrap();
        (fleet.options.record, fleet.options.manifest) = (true, true);
        fleet.options.compare = compare;
        let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
        let cx = fleet.context(holds);
        for state in [FileState::Done, FileState::Skipped] {
            let (done, _) = copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
            let of = |name: &str| {
                let records = &done.report.records;
                records.iter().find(|r| r.path.0 == name.as_bytes()).cloned().unwrap()
            };
            let dirs: Vec<String> = ["", "d", "d/e"].map(str::to_owned).to_vec();
            let recorded = done.report.records.iter().map(|r| r.path.to_string());
            let recorded: Vec<String> = recorded.filter(|path| dirs.contains(path)).collect();
            // A directory is news only where something was done with it.
            assert_eq!(recorded, if state == FileState::Done { dirs } else { vec![] });
            assert_eq!(done.report.records.len(), 4 + recorded.len());
            for name in ["a", "d/big", "d/e/empty"] {
                let content = fs::read(fleet.dst().join(name)).unwrap();
                let record = of(name);
                assert_eq!(record.digest, Some(blake3::hash(&content).into()), "{name} {state:?}");
                assert_eq!((record.state, record.bytes), (state, content.len() as u64));
            }
            assert_eq!((of("d/link").digest, of("d/link").state), (None, state));
        }
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn attributes_that_are_not_preserved_are_not_read() {
    let mut fleet = AgentFleet::new(0).await;
    fleet.write("a", b"x");
    fs::hard_link(fleet.src().join("a"), fleet.src().join("b")).unwrap();
    fleet.options.preserve = Preserve::all().without(Attribute::Hardlinks);
    let cx = fleet.context(&["src", "dst"]);
    let assignment = fleet.assignment(TaskSpec::Flush);
    let writers = Writers::default();
    let job = Job {
        cx: &cx,
        assignment: &assignment,
        writers: &writers,
        deadline: &Deadline::default(),
        ticket: &(&*assignment.ticket).into(),
        byte_counter: &Arc::default(),
    };
    let source = job.open_source().await.unwrap();
    assert!(!source.entry(&RelPath::new("a").unwrap()).unwrap().is_hardlinked);
    let (done, _) = copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
    assert!(done.success);
    assert_ne!(ino(fleet.dst().join("a")), ino(fleet.dst().join("b")));
}
