//! A destination sends on what it holds: the source is not read again.

use super::*;
use crate::fs::RootDir;
use crate::util::boot::boot_id;
use crate::wire::content::BLOCK_BYTES;
use crate::wire::manifest::Entry;
use crate::wire::options::{Compare, Verify};
use crate::wire::outcome::{EntryError, Side};
use crate::wire::task::Relay;
use crate::wire::worker::boot_and_root;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

/// One file of everything: hard links, a link, a FIFO, an attribute, a mode, an empty file, an old time.
fn write_varied_tree(fleet: &AgentFleet) {
    write_sample_tree(fleet);
    let src = fleet.src();
    fs::hard_link(src.join("a"), src.join("d/same")).unwrap();
    rustix::fs::mknodat(CWD, src.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    rustix::fs::setxattr(src.join("a"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    fs::set_permissions(src.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    set_mtime(&src.join("d/big"), 1_000_000);
}

fn set_mtime(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Copies from the source as the first of several destinations; what it holds then.
async fn copy_first(fleet: &AgentFleet, manifest: &Manifest) -> Manifest {
    let cx = fleet.context(&["src"]);
    let task = copy_task(manifest);
    let assignment = Assignment { report_held: true, ..fleet.assignment(task) };
    let (done, _) = execute_copy(&cx, &assignment, manifest).await;
    assert!(done.success && done.report.failures.is_empty(), "{done:?}");
    held_manifest(&done.report)
}

fn held_manifest(report: &TaskReport) -> Manifest {
    let Some(WorkItem::Copy { manifest, files, dirs, bytes }) = &report.held else {
        panic!("{report:?}")
    };
    let manifest = Manifest::decode(&manifest.0).unwrap();
    let counted = TaskSpec::Copy { files: *files, dirs: *dirs, bytes: *bytes };
    assert_eq!(counted, copy_task(&manifest));
    manifest
}

/// The copy in the first destination.
fn first_copy(fleet: &AgentFleet, digest: Option<Digest>) -> Option<Relay> {
    Some(Relay { path: abs(&fleet.dir.path().join("dst")), root: None, digest })
}

/// Sends `held` on from the first destination to the current one. The worker can't read the source.
async fn relay_batch(fleet: &AgentFleet, held: &Manifest) -> TaskOutcome {
    let assignment =
        Assignment { relay: first_copy(fleet, None), ..fleet.assignment(copy_task(held)) };
    let holds = if fleet.members.iter().any(|member| member.worker_id.as_str() == "a") {
        ["dst", fleet.destination].to_vec()
    } else {
        ["dst"].to_vec()
    };
    execute_copy(&fleet.context(&holds), &assignment, held).await.0
}

/// Adds a second destination: behind another agent, or a storage of the worker that relays.
async fn add_second(fleet: &mut AgentFleet, receivers: usize) {
    fleet.add_destination("dst2", receivers).await;
    if receivers == 0 {
        fleet.add_member("a", vec![]);
    }
}

/// Entries below `root` with everything that is preserved, without what differs between copies.
fn entries(root: &Path) -> Vec<Entry> {
    let tree = tree(root).preserving(Preserve::all());
    let walk = tree.walk(&RelPath::root(), None).unwrap();
    walk.map(|entry| Entry { version: Default::default(), stored_bytes: None, ..entry.unwrap() })
        .collect()
}

/// Each failed entry: its path, class, side, operation and worker.
fn failures(report: &TaskReport) -> Vec<(String, ErrorClass, Option<Side>, String, String)> {
    let one = |e: &EntryError| {
        let worker = e.worker_id.as_ref().map(ToString::to_string).unwrap_or_default();
        (e.path.to_string(), e.class, e.side, e.operation.clone(), worker)
    };
    report.failures.iter().map(one).collect()
}

/// Names of unfinished files below the current destination.
fn unfinished(fleet: &AgentFleet) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(fleet.dst()).into_iter().map(Result::unwrap);
    let is_left = |e: &walkdir::DirEntry| {
        is_internal_name(e.file_name().as_bytes()) && !e.path().to_string_lossy().contains("links")
    };
    all.filter(is_left).map(|e| e.path().to_owned()).collect()
}

#[tokio::test]
async fn a_relayed_batch_is_equal_to_the_source_in_content_and_metadata() {
    for receivers in [0, 1] {
        for verify in [Verify::Transfer, Verify::None] {
            let mut fleet = AgentFleet::new(1).await;
            fleet.options.verify = verify;
            write_varied_tree(&fleet);
            let held = copy_first(&fleet, &fleet.manifest(None)).await;
            let first = fleet.dst();
            // What the file system of the relay has lost.
            rustix::fs::removexattr(first.join("a"), "user.note").unwrap();
            fs::set_permissions(first.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
            set_mtime(&first.join("d/big"), 5);
            fs::remove_file(first.join("fifo")).unwrap();
            fs::remove_file(first.join("d/link")).unwrap();
            add_second(&mut fleet, receivers).await;
            let done = relay_batch(&fleet, &held).await;
            assert!(done.success && done.report.failures.is_empty(), "{done:?}");
            let bytes = 2 * 12 + 3 * MIB as u64 / 2;
            assert_eq!(report_counts(&done.report), [6, 0, 3, 0, bytes, 0]);
            assert_eq!((fleet.differences(), done.report.held), (vec![], None));
            let there: Vec<Entry> = entries(&fleet.dst())
                .into_iter()
                .filter(|entry| !is_internal_name(entry.path.as_bytes()))
                .collect();
            assert_eq!(there, entries(&fleet.src()));
            let again = relay_batch(&fleet, &held).await;
            assert_eq!(report_counts(&again.report), [0, 6, 3, 0, 0, bytes]);
            fleet.shut_down().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_file_at_the_relay_is_reported_and_not_published() {
    for receivers in [0, 1] {
        let mut fleet = AgentFleet::new(1).await;
        let bad = ["dir", "flipped", "gone", "link", "long", "p/f", "short"];
        for name in bad {
            fleet.write(name, b"content of a file");
        }
        fleet.write("good", b"a good file");
        let held = copy_first(&fleet, &fleet.manifest(None)).await;
        let first = fleet.dst();
        fs::remove_file(first.join("dir")).unwrap();
        fs::create_dir(first.join("dir")).unwrap();
        fs::write(first.join("flipped"), b"content of a fi1e").unwrap();
        fs::remove_file(first.join("gone")).unwrap();
        // The same content behind a link.
        fs::rename(first.join("link"), first.join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", first.join("link")).unwrap();
        fs::write(first.join("long"), b"content of a file!").unwrap();
        fs::remove_dir_all(first.join("p")).unwrap();
        fs::write(first.join("p"), b"no directory").unwrap();
        fs::write(first.join("short"), b"content of").unwrap();
        add_second(&mut fleet, receivers).await;
        let done = relay_batch(&fleet, &held).await;
        let expected: Vec<_> = bad
            .iter()
            .map(|name| {
                let operation = if *name == "flipped" { "verify" } else { "open" };
                let side = Some(Side::Relay);
                let (name, worker) = ((*name).to_owned(), "a".to_owned());
                (name, ErrorClass::Damaged, side, operation.to_owned(), worker)
            })
            .collect();
        assert_eq!(failures(&done.report), expected);
        let text = done.report.failures[1].to_string();
        assert!(text.starts_with("cannot verify `flipped` at the relay: its content"), "{text}");
        assert_eq!(fs::read(fleet.dst().join("good")).unwrap(), b"a good file");
        assert!(bad.iter().all(|name| fs::symlink_metadata(fleet.dst().join(name)).is_err()));
        assert_eq!(unfinished(&fleet), Vec::<PathBuf>::new());
        // Exactly these are sent again: by another relay, or from the source.
        let Some(WorkItem::Copy { manifest, files: 7, dirs: 0, .. }) = done.report.retry else {
            panic!("{:?}", done.report)
        };
        let rest = Manifest::decode(&manifest.0).unwrap();
        let (done, _) = copy_entries(&fleet, &fleet.context(&["src", "dst2"]), &rest).await;
        assert_eq!((done.report.files_done, fleet.differences()), (7, vec![]));
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn what_one_relay_sent_is_sent_on_by_the_next_one() {
    let mut fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let held = copy_first(&fleet, &fleet.manifest(None)).await;
    fs::write(fleet.dst().join("a"), b"twelve BYTES").unwrap();
    fleet.add_destination("dst2", 1).await;
    let assignment = Assignment {
        relay: first_copy(&fleet, None),
        report_held: true,
        ..fleet.assignment(copy_task(&held))
    };
    let (done, _) = execute_copy(&fleet.context(&["dst"]), &assignment, &held).await;
    let next = held_manifest(&done.report);
    assert_eq!(next, held.subset(|entry| entry.path.as_bytes() != b"a"));
    fleet.add_destination("dst3", 1).await;
    let path = abs(&fleet.dir.path().join("dst2"));
    let relay = Some(Relay { path, root: None, digest: None });
    let assignment = Assignment { relay, ..fleet.assignment(copy_task(&next)) };
    let (done, _) = execute_copy(&fleet.context(&["dst2"]), &assignment, &next).await;
    assert_eq!(report_counts(&done.report), [3, 0, 3, 0, 3 * MIB as u64 / 2, 0]);
    assert_eq!(fs::read(fleet.dst().join("d/big")).unwrap(), vec![5; 3 * MIB / 2]);
    fleet.shut_down().await;
}

#[tokio::test]
async fn files_without_a_digest_of_the_source_are_skipped_or_reported_by_a_relay() {
    let mut fleet = AgentFleet::new(1).await;
    for name in ["changed", "known", "new", "there"] {
        fleet.write(name, b"some content");
    }
    let manifest = fleet.manifest(None);
    // The destination has it already, so it is not read at the source.
    let known = manifest.subset(|entry| ["known", "there"].contains(&&*entry.path.to_string()));
    copy_first(&fleet, &known).await;
    fleet.write("changed", b"other content");
    let held = copy_first(&fleet, &manifest).await;
    let digests: Vec<(String, bool)> = held
        .entries
        .iter()
        .filter(|entry| !entry.is_dir())
        .map(|entry| (entry.path.to_string(), entry.digest.is_some()))
        .collect();
    let expected = [("changed", false), ("known", false), ("new", true), ("there", false)];
    assert_eq!(digests, expected.map(|(name, has_digest)| (name.to_owned(), has_digest)));
    fleet.add_destination("dst2", 1).await;
    let (done, _) = copy_entries(
        &fleet,
        &fleet.context(&["src"]),
        &manifest.subset(|entry| entry.path.as_bytes() == b"there"),
    )
    .await;
    assert_eq!(done.report.files_done, 1);
    let done = relay_batch(&fleet, &held).await;
    let refused = |name: &str| {
        let (side, operation) = (Some(Side::Relay), "verify".to_owned());
        (name.to_owned(), ErrorClass::Permanent, side, operation, "a".to_owned())
    };
    assert_eq!(failures(&done.report), [refused("changed"), refused("known")]);
    assert_eq!((done.report.files_done, done.report.files_skipped), (1, 1));
    // Where content is compared, the destination asks for the missing digests, and a relay does not make them.
    fleet.options.compare = Compare::Checksum;
    fs::write(fleet.dst().join("known"), b"some CONTENT").unwrap();
    let done = relay_batch(&fleet, &held).await;
    let paths = failures(&done.report).into_iter().map(|failure| failure.0).collect::<Vec<_>>();
    assert_eq!(paths, ["changed", "known", "there"]);
    assert_eq!(done.report.files_skipped, 1, "the digest of `new` is known");
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_relay_does_not_take_its_own_storage_for_the_destination_of_the_same_path() {
    let fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let held = copy_first(&fleet, &fleet.manifest(None)).await;
    let task = copy_task(&held);
    let assignment = Assignment { relay: first_copy(&fleet, None), ..fleet.assignment(task) };
    let (done, wrote) = execute_copy(&fleet.context(&["dst"]), &assignment, &held).await;
    assert_eq!((done.report.files_skipped, wrote), (4, vec!["r0".to_owned()]));
    let alone = Assignment { destination_workers: vec![], ..assignment };
    let (done, wrote) = execute_copy(&fleet.context(&["dst"]), &alone, &held).await;
    assert!(!done.success && done.report.returned && wrote.is_empty(), "{done:?}");
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_copy_below_another_storage_root_than_the_assigned_one_is_not_read() {
    let mut fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let held = copy_first(&fleet, &fleet.manifest(None)).await;
    fleet.add_destination("dst2", 1).await;
    let number = RootDir::open(&abs(&fleet.dir.path().join("dst"))).unwrap().id();
    let cx = fleet.context(&["dst"]);
    for (root, is_assigned) in [
        (boot_and_root(boot_id().unwrap(), "1-2"), false),
        (boot_and_root("an earlier boot", &number), false),
        (boot_and_root(boot_id().unwrap(), &number), true),
    ] {
        let relay = first_copy(&fleet, None).map(|r| Relay { root: Some(root.clone()), ..r });
        let assignment = Assignment { relay, ..fleet.assignment(copy_task(&held)) };
        let job = Job {
            cx: &cx,
            assignment: &assignment,
            writers: &Writers::default(),
            deadline: &Deadline::default(),
            ticket: &(&*assignment.ticket).into(),
            byte_counter: &Arc::default(),
        };
        let checked = job.check_source_root().await;
        assert_eq!(checked.is_ok(), is_assigned, "{root}: {checked:?}");
        let Err(refused) = checked else { continue };
        let error = &refused.report.failures[0];
        assert_eq!((error.class, error.side), (ErrorClass::StorageGone, Some(Side::Relay)));
        assert_eq!(error.worker_id.as_ref().unwrap().as_str(), "a");
    }
    fleet.shut_down().await;
}

/// A large file of several ranges, with a hole and a run of zeros.
fn write_large_file(fleet: &AgentFleet) -> Vec<u8> {
    let mut content: Vec<u8> = (0..(4 * MIB + 77)).map(|i| (i / 7) as u8).collect();
    content[MIB..2 * MIB].fill(0);
    content[3 * MIB..3 * MIB + BLOCK_BYTES as usize].fill(0);
    fleet.write("big", &content[..MIB]);
    let file = fs::File::options().write(true).open(fleet.src().join("big")).unwrap();
    file.set_len(content.len() as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &content[2 * MIB..], 2 * MIB as u64).unwrap();
    content
}

/// The ranges of a large file of `size` bytes.
fn ranges(size: usize) -> Vec<(u64, u64)> {
    (0..size).step_by(MIB).map(|at| (at as u64, MIB.min(size - at) as u64)).collect()
}

/// Copies all ranges from the source to the first destination, unpublished; their digests.
async fn copy_ranges_first(fleet: &AgentFleet, manifest: &Manifest) -> Vec<Digest> {
    let cx = fleet.context(&["src"]);
    let mut digests = Vec::new();
    for (offset, length) in ranges(manifest.entries[0].size() as usize) {
        let task = TaskSpec::Range { offset, length, compare: false };
        let assignment = Assignment { report_held: true, ..fleet.assignment(task) };
        let (done, _) = execute_range(&cx, &assignment, manifest).await;
        digests.push(done.report.digest.unwrap_or_else(|| panic!("{:?}", done.report)));
    }
    digests
}

async fn relay_range(
    fleet: &AgentFleet,
    manifest: &Manifest,
    (offset, length): (u64, u64),
    digest: Option<Digest>,
) -> TaskOutcome {
    let task = TaskSpec::Range { offset, length, compare: false };
    let assignment = Assignment { relay: first_copy(fleet, digest), ..fleet.assignment(task) };
    execute_range(&fleet.context(&["dst", fleet.destination]), &assignment, manifest).await.0
}

async fn commit(fleet: &AgentFleet, manifest: &Manifest, digests: &[Digest]) {
    let chain = Base64Bytes(digests.iter().flat_map(|digest| digest.0).collect());
    let task = TaskSpec::Commit { range_length: MIB as u64, chain, in_place: false };
    let done = run_destination_task(fleet, task, manifest.clone()).await;
    assert!(done.success && done.report.failures.is_empty(), "{done:?}");
}

#[tokio::test]
async fn ranges_are_relayed_from_the_part_file_and_from_the_published_file() {
    for receivers in [0, 1] {
        for (verify, with_manifest) in
            [(Verify::Transfer, false), (Verify::None, false), (Verify::Transfer, true)]
        {
            let mut fleet = AgentFleet::new(1).await;
            (fleet.options.verify, fleet.options.manifest) = (verify, with_manifest);
            let content = write_large_file(&fleet);
            let manifest = fleet.manifest(Some("big"));
            let digests = copy_ranges_first(&fleet, &manifest).await;
            add_second(&mut fleet, receivers).await;
            for (i, at) in ranges(content.len()).into_iter().enumerate() {
                if i == 2 {
                    // The first destination publishes it meanwhile.
                    fleet.destination = "dst";
                    commit(&fleet, &manifest, &digests).await;
                    fleet.destination = "dst2";
                }
                let published = fleet.dir.path().join("dst/big").exists();
                assert_eq!(published, i >= 2);
                let done = relay_range(&fleet, &manifest, at, Some(digests[i])).await;
                assert!(done.success && done.report.failures.is_empty(), "{done:?}");
                assert_eq!((done.report.digest, done.report.bytes_done), (Some(digests[i]), at.1));
                let holes = if i == 1 { at.1 } else { 0 };
                assert!(done.report.bytes_sent <= at.1 - holes, "{:?}", done.report);
            }
            commit(&fleet, &manifest, &digests).await;
            assert_eq!(fs::read(fleet.dst().join("big")).unwrap(), content);
            assert_eq!(fleet.differences(), Vec::<String>::new());
            fleet.shut_down().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_range_at_the_relay_is_reported_and_replaced_later() {
    for receivers in [0, 1] {
        let mut fleet = AgentFleet::new(1).await;
        let content = write_large_file(&fleet);
        let manifest = fleet.manifest(Some("big"));
        let digests = copy_ranges_first(&fleet, &manifest).await;
        let mut names = fs::read_dir(fleet.dst()).unwrap().map(|entry| entry.unwrap().path());
        let part = names.next().unwrap();
        add_second(&mut fleet, receivers).await;
        let all = ranges(content.len());
        let damage = |done: &TaskOutcome| {
            assert!(done.success && done.report.digest.is_none(), "{done:?}");
            assert_eq!((done.report.bytes_done, done.report.replacement.as_ref()), (0, None));
            let [(path, class, side, operation, worker)] = &failures(&done.report)[..] else {
                panic!("{done:?}")
            };
            assert_eq!((path.as_str(), *side, worker.as_str()), ("big", Some(Side::Relay), "a"));
            (*class, operation.clone())
        };
        let verify = (ErrorClass::Damaged, "verify".to_owned());
        let open = (ErrorClass::Damaged, "open".to_owned());
        // One byte of data, and one where zeros were.
        let file = fs::File::options().write(true).open(&part).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"!", 17).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"!", MIB as u64 + 17).unwrap();
        for i in [0, 1] {
            let done = relay_range(&fleet, &manifest, all[i], Some(digests[i])).await;
            assert_eq!(damage(&done), verify);
        }
        let done = relay_range(&fleet, &manifest, all[2], None).await;
        assert_eq!(damage(&done), (ErrorClass::Permanent, "verify".to_owned()));
        file.set_len(3 * MIB as u64).unwrap();
        let done = relay_range(&fleet, &manifest, all[2], Some(digests[2])).await;
        assert_eq!(damage(&done), open);
        fs::remove_file(&part).unwrap();
        std::os::unix::fs::symlink(fleet.src().join("big"), &part).unwrap();
        let done = relay_range(&fleet, &manifest, all[2], Some(digests[2])).await;
        assert_eq!(damage(&done), open);
        fs::remove_file(&part).unwrap();
        let done = relay_range(&fleet, &manifest, all[2], Some(digests[2])).await;
        assert_eq!(damage(&done), open);
        assert!(!fleet.dst().join("big").exists());
        // All ranges come from the source: what was written of the damaged ones is replaced.
        let cx = fleet.context(&["src", fleet.destination]);
        let cx = if receivers == 0 { cx } else { fleet.context(&["src"]) };
        for (i, at) in all.into_iter().enumerate() {
            let (done, _) = transfer_ranges(&fleet, &cx, &manifest, at).await;
            assert_eq!(done.report.digest, Some(digests[i]), "{:?}", done.report);
        }
        commit(&fleet, &manifest, &digests).await;
        assert_eq!(fs::read(fleet.dst().join("big")).unwrap(), content);
        fleet.shut_down().await;
    }
}
