//! Destinations that share scans, and send each other what they got.

use super::storage_binding::{addressed, reported, send, submit};
use super::*;
use crate::scheduler::sync_job::ScanOwner;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::options::Compare;
use crate::wire::sync::SyncPatch;
use crate::wire::task::Relay;

const NODES: [&str; 3] = ["gpu-1", "gpu-2", "gpu-3"];

fn beat_all(world: &mut World) {
    send(world, reported("s", &["/src"], "ext4"));
    NODES.iter().for_each(|node| drop(send(world, reported(node, &["/scratch"], "ext4"))));
}

/// A source `s`, and a sync `demo` to the disks of three nodes.
fn three_destinations(options: SyncOptions) -> World {
    let mut world = World::new();
    beat_all(&mut world);
    let request = addressed("demo", ("", "/src/a"), ("gpu-*", "/scratch/b"));
    submit(&mut world, SyncRequest { options, ..request }).unwrap();
    world
}

/// … of which the scan has found `work`.
fn found(work: Vec<WorkItem>) -> World {
    let mut world = three_destinations(SyncOptions::default());
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, work, None));
    world
}

/// Does a scan of a source with one file.
fn scan_one_file(world: &mut World, scan: &Assignment) {
    world.post_page(scan, page(scan, 0, vec![copy_item(1, 0)], None));
}

/// The node to which a task copies.
fn receiver(a: &Assignment) -> &str {
    a.request_id.as_str().strip_prefix("demo@").unwrap()
}

fn no_of(world: &World, node: &str) -> SyncNo {
    world.state.syncs.find(&format!("demo@{node}").parse().unwrap()).unwrap().no
}

/// The report of a task that was done completely, with digests if they were asked for.
fn copied(a: &Assignment) -> TaskReport {
    let report = all_done(a, receiver(a));
    let TaskSpec::Copy { files, dirs, .. } = &a.task else { return report };
    let held = a.report_held.then(|| held_item(*files, *dirs));
    TaskReport { held, ..report }
}

fn held_item(files: u64, dirs: u64) -> WorkItem {
    WorkItem::Copy { manifest: Base64Bytes(vec![3; 12]), files, dirs, bytes: files * 10 }
}

fn finish(world: &mut World, a: &Assignment) {
    world.post_result(result(a, true, copied(a)));
}

/// Does all tasks as good agents do; what each worker did.
fn run_all(world: &mut World) -> Vec<Assignment> {
    let mut done = Vec::new();
    for _ in 0..400 {
        let mut polls = ["s"].into_iter().chain(NODES);
        let Some(task) = polls.find_map(|worker| world.poll(worker, "1")) else { return done };
        match task.task.kind() {
            "scan" => scan_one_file(world, &task),
            _ => finish(world, &task),
        }
        done.push(task);
    }
    panic!("it does not end: {:?}", world.progress("demo"));
}

fn assert_all_completed(world: &mut World) {
    let whole = world.progress("demo");
    assert_eq!((whole.state, whole.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert!(whole.destinations.iter().all(|one| one.state == SyncState::Completed), "{whole:?}");
    assert!(world.blobs.is_empty(), "{:?}", world.blobs.keys());
}

fn content_tasks(done: &[Assignment]) -> Vec<&Assignment> {
    done.iter().filter(|a| a.task.sends_content()).collect()
}

fn damaged() -> EntryError {
    EntryError {
        class: ErrorClass::Damaged,
        ..EntryError::new(b"x", Side::Relay, "verify", "its content is not what was copied there")
    }
}

/// A batch of one file is copied to one destination, which finds its copy damaged when it is to send it on; its node.
fn report_damage(world: &mut World) -> String {
    let first = poll_kind(world, "s", "copy");
    finish(world, &first);
    let holder = receiver(&first).to_owned();
    let relay = poll_kind(world, &holder, "copy");
    let report = TaskReport {
        failures: vec![damaged()],
        retry: Some(held_item(1, 0)),
        ..TaskReport::default()
    };
    world.post_result(result(&relay, true, report));
    world.advance(60_000);
    beat_all(world);
    holder
}

#[test]
fn the_source_is_scanned_and_read_once_and_each_destination_gets_everything() {
    let mut world = found(vec![copy_item(3, 1), copy_item(2, 0), large_item(3), copy_item(1, 0)]);
    assert_eq!(world.poll("gpu-1", "1"), None, "nothing to send on yet");
    let done = run_all(&mut world);
    assert_all_completed(&mut world);
    assert!(done.iter().all(|a| !matches!(a.task, TaskSpec::Scan { .. })), "one scan");
    let sent = content_tasks(&done);
    let (relayed, read): (Vec<&Assignment>, Vec<&Assignment>) =
        sent.iter().partition(|a| a.relay.is_some());
    assert_eq!((read.len(), relayed.len()), (6, 12), "three batches and three ranges");
    assert!(read.iter().all(|a| a.worker_id.as_str() == "s" && a.report_held));
    for a in &relayed {
        let Relay { path, digest, .. } = a.relay.as_ref().unwrap();
        assert_eq!(path.to_string(), "/scratch/b");
        assert_ne!(a.worker_id.as_str(), receiver(a), "from another one");
        let expected = matches!(a.task, TaskSpec::Range { .. }).then_some(Digest([7; 32]));
        assert_eq!(*digest, expected);
        assert!(!a.report_held);
    }
    for node in NODES {
        let got = sent.iter().filter(|a| receiver(a) == node).count();
        assert_eq!(got, 6, "{node} gets each unit once");
        let first = read.iter().filter(|a| receiver(a) == node).count();
        assert_eq!(first, 2, "the first copies are spread");
        assert_eq!(world.progress(&format!("demo@{node}")).files_done, 7);
    }
}

#[test]
fn a_holder_sends_one_copy_of_a_unit_at_a_time_and_the_source_one_of_all() {
    let mut world = three_destinations(SyncOptions::default());
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], scan_at("x")));
    let first = poll_kind(&mut world, "s", "copy");
    assert_eq!(world.poll("s", "1"), None, "the others get it from the first one");
    finish(&mut world, &first);
    assert_eq!(world.poll("s", "1"), None);
    let holder = receiver(&first).to_owned();
    let second = poll_kind(&mut world, &holder, "copy");
    assert_eq!(world.poll(&holder, "1"), None, "one at a time");
    let next = receiver(&second).to_owned();
    finish(&mut world, &second);
    let third = poll_kind(&mut world, &next, "copy");
    assert_eq!(world.poll(&holder, "1"), None, "it is on its way");
    finish(&mut world, &third);
    world.post_page(&scan, page(&scan, 1, vec![], None));
    run_all(&mut world);
    assert_all_completed(&mut world);
}

#[test]
fn the_others_get_what_failed_at_the_first_one_from_the_source() {
    let mut world = found(vec![copy_item(3, 0)]);
    let first = poll_kind(&mut world, "s", "copy");
    let report = TaskReport {
        files_done: 2,
        failures: vec![error(ErrorClass::Permanent)],
        held: Some(held_item(2, 0)),
        retry: Some(copy_item(1, 0)),
        ..copied(&first)
    };
    world.post_result(result(&first, true, report));
    let done = run_all(&mut world);
    let from_source: Vec<_> =
        content_tasks(&done).into_iter().filter(|a| a.relay.is_none()).collect();
    assert_eq!(from_source.len(), 2, "one file for each of the others");
    let whole = world.progress("demo");
    assert_eq!((whole.files_total, whole.files_done, whole.files_failed), (9, 8, 1));
    assert_eq!(whole.outcome, Some(SyncOutcome::Partial));
}

#[test]
fn what_a_destination_had_already_is_not_sent_on() {
    let mut world = found(vec![copy_item(2, 0)]);
    for _ in 0..3 {
        let one = poll_kind(&mut world, "s", "copy");
        assert!(one.relay.is_none() && one.report_held);
        let had = TaskReport { files_done: 0, files_skipped: 2, ..copied(&one) };
        world.post_result(result(&one, true, had));
    }
    run_all(&mut world);
    assert_all_completed(&mut world);
}

#[test]
fn without_digests_each_destination_gets_a_batch_from_the_source() {
    let mut world = found(vec![copy_item(1, 0)]);
    for _ in 0..3 {
        let one = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&one, true, TaskReport { held: None, ..copied(&one) }));
    }
    run_all(&mut world);
    assert_all_completed(&mut world);
}

#[test]
fn a_unit_comes_from_the_source_again_if_nobody_that_holds_it_can_be_reached() {
    let mut world = found(vec![copy_item(1, 0)]);
    let first = poll_kind(&mut world, "s", "copy");
    finish(&mut world, &first);
    let holder = receiver(&first).to_owned();
    assert_eq!(world.poll("s", "1"), None);
    // All others report.
    for _ in 0..10 {
        world.advance(5_000);
        send(&mut world, reported("s", &["/src"], "ext4"));
        for node in NODES.iter().filter(|node| **node != holder) {
            send(&mut world, reported(node, &["/scratch"], "ext4"));
        }
    }
    let again = poll_kind(&mut world, "s", "copy");
    assert!(again.relay.is_none() && receiver(&again) != holder);
    beat_all(&mut world);
    finish(&mut world, &again);
    run_all(&mut world);
    assert_all_completed(&mut world);
}

#[test]
fn a_destination_that_could_not_be_reached_is_not_waited_for() {
    let mut world = found(vec![copy_item(1, 0), copy_item(1, 0)]);
    let first = poll_kind(&mut world, "s", "copy");
    finish(&mut world, &first);
    let holder = receiver(&first).to_owned();
    // The second unit goes to the others first, then also to the holder.
    let (second, third) = (poll_kind(&mut world, "s", "copy"), world.poll(&holder, "1").unwrap());
    finish(&mut world, &second);
    finish(&mut world, &third);
    let next = receiver(&second).to_owned();
    let to_holder = poll_kind(&mut world, &next, "copy");
    assert_eq!(receiver(&to_holder), holder);
    world.post_result(result(&to_holder, false, TaskReport::default()));
    let rest = std::iter::from_fn(|| world.poll("s", "1"));
    let from_source: Vec<Assignment> = rest.collect();
    assert!(from_source.iter().any(|a| receiver(a) == holder), "what failed: {from_source:?}");
    from_source.iter().for_each(|a| finish(&mut world, a));
    run_all(&mut world);
    assert_all_completed(&mut world);
}

#[test]
fn a_damaged_copy_is_replaced_from_the_source_and_its_destination_compared_again() {
    let mut world = found(vec![copy_item(1, 0)]);
    let holder = report_damage(&mut world);
    let mut kinds = Vec::new();
    for a in run_all(&mut world) {
        if a.task.sends_content() {
            assert!(a.relay.is_none() || a.worker_id.as_str() != holder, "{a:?}");
        }
        kinds.push(format!("{} {}", a.request_id, a.task.kind()));
    }
    assert!(kinds.contains(&format!("demo@{holder} scan")), "read back: {kinds:?}");
    assert_all_completed(&mut world);
    let warnings: EntryWarnings = world.progress(&format!("demo@{holder}")).warnings;
    let (cause, warning) = warnings.first_key_value().unwrap();
    assert!(cause.contains("damaged") && cause.contains(&holder), "{cause}");
    assert_eq!((warning.count, warning.paths.len()), (1, 1));
}

#[test]
fn damage_that_no_comparison_would_repair_is_a_failure() {
    let options = SyncOptions { ignore_existing: true, ..SyncOptions::default() };
    let mut world = three_destinations(options);
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let holder = report_damage(&mut world);
    run_all(&mut world);
    let of = world.progress(&format!("demo@{holder}"));
    assert_eq!((of.state, of.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)), "{of:?}");
    assert_eq!(world.progress("demo").state, SyncState::Failed);
}

#[test]
fn a_new_master_sends_what_is_left_from_the_source() {
    let mut world = found(vec![copy_item(1, 0), large_item(4), copy_item(2, 0)]);
    for _ in 0..2 {
        let one = world.poll("s", "1").unwrap();
        finish(&mut world, &one);
    }
    let relay = NODES.iter().find_map(|node| world.poll(node, "1")).unwrap();
    world.restart();
    beat_all(&mut world);
    finish(&mut world, &relay);
    let done = run_all(&mut world);
    assert!(content_tasks(&done).iter().all(|a| a.relay.is_none()));
    assert_all_completed(&mut world);
}

#[test]
fn a_destination_that_lags_scans_the_rest_on_its_own_and_holds_up_nobody() {
    let mut world = World::new();
    world.state.settings.window_tasks = 8;
    beat_all(&mut world);
    submit(&mut world, addressed("demo", ("", "/src/a"), ("gpu-*", "/scratch/b"))).unwrap();
    world.apply(Event::PauseSync("demo@gpu-3".parse().unwrap()));
    let mut scan = poll_kind(&mut world, "s", "scan");
    let mut pages = 0;
    let lagging = no_of(&world, "gpu-3");
    while world.state.syncs[&lagging].scan_owner == ScanOwner::Group {
        let at = format!("{pages:06}");
        let next = page(&scan, pages, vec![copy_item(1, 0); 4], scan_at(&at));
        let mut paused = world.post_page(&scan, next) == PageAction::Pause;
        pages += 1;
        for _ in 0..100 {
            let Some(a) = ["s", "gpu-1", "gpu-2"].iter().find_map(|w| world.poll(w, "1")) else {
                break;
            };
            if a.task.kind() == "scan" {
                (scan, pages, paused) = (a, 0, false);
            } else {
                finish(&mut world, &a);
            }
        }
        assert!(!paused, "the paused destination holds up the scan");
    }
    world.post_page(&scan, page(&scan, pages, vec![copy_item(5, 0)], None));
    world.apply(Event::ResumeSync("demo@gpu-3".parse().unwrap()));
    let mut scans = 0;
    for _ in 0..20_000 {
        let mut polls = ["s"].into_iter().chain(NODES);
        let Some(a) = polls.find_map(|worker| world.poll(worker, "1")) else { break };
        if a.task.kind() == "scan" {
            assert_eq!(receiver(&a), "gpu-3");
            scans += 1;
            world.post_page(&a, page(&a, 0, vec![copy_item(5, 0)], None));
        } else {
            finish(&mut world, &a);
        }
    }
    assert_eq!(scans, 1, "the rest of the scan");
    assert_all_completed(&mut world);
    let files: Vec<u64> =
        world.progress("demo").destinations.iter().map(|one| one.files_total).collect();
    assert!(files.windows(2).all(|two| two[0] == two[1]), "{files:?}");
}

#[test]
fn a_destination_that_is_added_later_scans_on_its_own() {
    let mut world = found(vec![copy_item(1, 0)]);
    send(&mut world, reported("new", &["/scratch"], "ext4"));
    let add_destinations = super::storage_binding::selectors("new");
    let change = SyncPatch { bwlimit: None, add_destinations };
    world.apply(Event::ChangeSync { id: "demo".parse().unwrap(), change });
    let scan = poll_kind(&mut world, "s", "scan");
    assert_eq!(receiver(&scan), "new");
}

#[test]
fn a_cancelled_whole_leaves_no_scan_and_a_cancelled_destination_leaves_the_others() {
    let mut world = three_destinations(SyncOptions::default());
    let scan = poll_kind(&mut world, "s", "scan");
    world.apply(Event::CancelSync("demo@gpu-2".parse().unwrap()));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], scan_at("a")));
    assert_eq!(world.progress("demo@gpu-2").files_total, 0);
    assert_eq!(world.progress("demo@gpu-1").files_total, 1);
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    let action = world.post_page(&scan, page(&scan, 1, vec![copy_item(1, 0)], None));
    assert_eq!(action, PageAction::Stop);
    assert!(world.state.tasks.values().all(|task| !task.is_scan()));
}

#[test]
fn where_content_is_compared_each_destination_scans_on_its_own() {
    for options in [
        SyncOptions { compare: Compare::Checksum, ..SyncOptions::default() },
        SyncOptions { dry_run: true, ..SyncOptions::default() },
        SyncOptions { manifest: true, ..SyncOptions::default() },
    ] {
        let mut world = three_destinations(options);
        let scans: BTreeSet<String> =
            (0..3).map(|_| receiver(&poll_kind(&mut world, "s", "scan")).to_owned()).collect();
        assert_eq!(scans.len(), 3);
    }
}

#[test]
fn a_replaced_source_restarts_all_that_got_something_of_it() {
    let mut world = found(vec![copy_item(1, 0), copy_item(1, 0)]);
    let first = poll_kind(&mut world, "s", "copy");
    finish(&mut world, &first);
    let relay = world.poll(receiver(&first), "1").unwrap();
    finish(&mut world, &relay);
    let mut other = reported("s", &["/src"], "ext4");
    other.root_ids = BTreeMap::from([("/src".to_owned(), "9-9".to_owned())]);
    send(&mut world, other);
    for node in NODES {
        let of = world.progress(&format!("demo@{node}"));
        assert_eq!((of.files_done, of.files_total), (0, 0), "{node} begins again");
    }
}
