//! Nothing stays behind at a destination: part files, and what was kept for the names of one file.

use super::*;

/// As long as it takes until nobody can be writing any more, with a source worker of that incarnation.
fn a_lease_passes(world: &mut World, incarnation: &str) {
    for _ in 0..7 {
        world.pass(5_000);
        world.beat("s", incarnation, &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
}

#[test]
fn a_part_file_that_was_begun_again_is_removed_where_somebody_else_brought_the_file() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(2)], None));
    done(&mut world, "s", "range");
    done(&mut world, "s", "range");
    // One of both ranges is gone from the part file, the other may be there still.
    let commit = next(&mut world, "d", "commit");
    let failures = vec![error(ErrorClass::Transient)];
    let lost = TaskReport { part_lost: true, failures, ..TaskReport::default() };
    world.finish(result(&commit, true, lost));
    let range = next(&mut world, "s", "range");
    assert_eq!((range.attempt, world.progress("demo").transferred_bytes), (1, 0));
    world.finish(result(&range, true, TaskReport { unchanged: true, ..TaskReport::default() }));
    done(&mut world, "d", "discard");
    done(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped), (SyncState::Completed, 1));
    assert!(world.blobs.is_empty());
}

fn unchanged() -> TaskReport {
    TaskReport { unchanged: true, ..TaskReport::default() }
}

/// Two ranges of a file are out, and the second finds the whole file at the destination. The first.
fn found_while_another_is_out() -> (World, Assignment) {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(3)], None));
    let (first, second) = (next(&mut world, "s", "range"), next(&mut world, "s", "range"));
    world.finish(result(&second, true, unchanged()));
    let so_far = world.progress("demo");
    assert_eq!((so_far.state, so_far.files_skipped), (SyncState::Progress, 1));
    assert_eq!(world.poll("s", "1"), None, "nobody asks for the third range any more");
    (world, first)
}

/// Ends as it should: the file was there, and is counted once.
fn was_there(world: &mut World) {
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped, end.transferred_bytes), (SyncState::Completed, 1, 0));
    assert!(world.blobs.is_empty() && world.state.tasks.is_empty());
}

#[test]
fn what_one_range_wrote_is_removed_where_another_finds_the_file_there() {
    let (mut world, first) = found_while_another_is_out();
    let wrote = vec!["d".parse().unwrap()];
    let report =
        TaskReport { digest: Some(Digest([7; 32])), writers: wrote, ..TaskReport::default() };
    world.finish(result(&first, true, report));
    done(&mut world, "d", "discard");
    done(&mut world, "d", "flush");
    was_there(&mut world);
    // It may also fail, or be taken from an agent that hands it back after it wrote.
    let (mut world, first) = found_while_another_is_out();
    world.finish(result(&first, false, TaskReport::default()));
    done(&mut world, "d", "discard");
    was_there(&mut world);
    let (mut world, first) = found_while_another_is_out();
    let wrote = vec!["d".parse().unwrap()];
    let back = TaskReport { returned: true, writers: wrote, ..TaskReport::default() };
    world.finish(result(&first, false, back));
    let again = next(&mut world, "s", "range");
    world.finish(result(&again, true, unchanged()));
    done(&mut world, "d", "discard");
    done(&mut world, "d", "flush");
    was_there(&mut world);
}

#[test]
fn what_a_range_wrote_that_failed_is_removed_where_another_finds_the_file_there() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(3)], None));
    let (first, second) = (next(&mut world, "s", "range"), next(&mut world, "s", "range"));
    world.finish(result(&first, false, TaskReport::default()));
    world.finish(result(&second, true, unchanged()));
    done(&mut world, "d", "discard");
    was_there(&mut world);
}

#[test]
fn a_file_that_all_its_ranges_find_there_costs_no_more() {
    let (mut world, first) = found_while_another_is_out();
    world.finish(result(&first, true, unchanged()));
    was_there(&mut world);
}

#[test]
fn a_part_file_is_removed_late_where_a_mirror_stops_while_it_is_written() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let root = |name: &str| Some(RootState { file_system: name.into(), empty: false });
    let first = page(&scan, 0, vec![large(3)], at("m"));
    world.post(&scan, ScanPage { root: root("fs-1"), ..first });
    next(&mut world, "s", "range");
    let action = world.post(&scan, ScanPage { root: root("fs-2"), ..page(&scan, 1, vec![], None) });
    assert_eq!(action, PageAction::Stop);
    assert_eq!(world.poll("d", "1"), None, "the range is still written");
    a_lease_passes(&mut world, "1");
    done(&mut world, "d", "discard");
    let end = world.progress("demo");
    assert_eq!(end.outcome, Some(SyncOutcome::CopyStopped));
    assert!(end.reason.unwrap().contains("not everything was copied, nothing was deleted"));
}

#[test]
fn a_sweep_that_a_cancel_interrupts_is_done_again() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0)], None));
    let copy = next(&mut world, "s", "copy");
    world.finish(result(&copy, true, TaskReport { needs_clean_up: true, ..all_done(&copy, "d") }));
    let sweep = next(&mut world, "s", "sweep");
    assert!(claims(&world, &sweep).rules.preserve.is_all(), "the root gets its metadata back");
    world.play(Event::Cancel("demo".parse().unwrap()));
    // How far it came, nobody hears.
    assert_eq!(
        world.finish(result(&sweep, false, TaskReport::default())),
        Some(ResultOutcome::Stale)
    );
    a_lease_passes(&mut world, "1");
    let late = done(&mut world, "s", "sweep");
    // The next sync may use the root already.
    let none = crate::wire::options::Preserve::NONE;
    assert_eq!((claims(&world, &late).rules.preserve, late.options.preserve), (none, none));
    assert!(world.state.tasks.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn what_an_agent_kept_for_links_before_it_died_is_swept_after_a_cancel() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0)], None));
    next(&mut world, "s", "copy");
    // It begins anew: nobody has the batch now, and nobody tells what was kept for it.
    world.beat("s", "2", &["/src"], &[]);
    assert_eq!(world.state.leases.all().count(), 0);
    world.play(Event::Cancel("demo".parse().unwrap()));
    a_lease_passes(&mut world, "2");
    let sweep = world.poll("s", "2").expect("the sweep");
    assert_eq!(sweep.task, TaskSpec::CleanUp);
    world.finish(result(&sweep, true, TaskReport::default()));
    done(&mut world, "d", "discard");
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn temporary_files_of_a_batch_whose_agent_died_are_removed_after_a_cancel() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0), batch(3, 0)], None));
    let copy = next(&mut world, "s", "copy");
    let manifest = |world: &mut World, worker: &str, of: &Assignment| {
        let (worker, assignment) = (worker.parse().unwrap(), of.assignment_id);
        match world.play(Event::Manifest { worker, assignment }) {
            Some(Reply::Blob(key)) => key,
            other => panic!("{other:?}"),
        }
    };
    let key = manifest(&mut world, "s", &copy);
    // It begins anew: nobody has the batch now. The other one was never handed out.
    world.beat("s", "2", &["/src"], &[]);
    world.play(Event::Cancel("demo".parse().unwrap()));
    let ended = world.progress("demo");
    assert!(world.poll("d", "1").is_none(), "who had it may still be writing");
    a_lease_passes(&mut world, "2");
    let discard = next(&mut world, "d", "discard");
    assert_eq!(manifest(&mut world, "d", &discard), key);
    world.finish(result(&discard, true, TaskReport::default()));
    let sweep = world.poll("s", "2").expect("the sweep");
    world.finish(result(&sweep, true, TaskReport::default()));
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo"), ended, "what has ended stays as it ended");
}
