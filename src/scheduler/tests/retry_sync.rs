//! Syncs that are tried again.

use super::*;
use crate::wire::problem::Problem;

fn retry(world: &mut World, id: &str, only: Option<&[&str]>) -> Result<String, Problem> {
    let names = |only: &[&str]| {
        let names = only.iter().map(|n| RelPath::new(*n).unwrap()).collect();
        vec![FileListPart { paths: names }]
    };
    let event = Event::RetrySync {
        id: id.parse().unwrap(),
        new: None,
        only: only.map_or(RetryScope::All, |only| RetryScope::Names(names(only))),
        idempotency: None,
    };
    match world.apply(event) {
        Some(Reply::Submitted(made)) => Ok(made.request_id.to_string()),
        Some(Reply::Refused(problem)) => Err(*problem),
        other => panic!("{other:?}"),
    }
}

fn listed(world: &mut World, id: &str) {
    let names = |n: &str| FileListPart { paths: vec![RelPath::new(n).unwrap()] };
    let reply = world.apply(Event::Submit {
        request: request(Some(id), "/src/a", "/dst/b"),
        list: Some(vec![names("one"), names("two")]),
        idempotency: None,
    });
    assert!(matches!(reply, Some(Reply::Submitted(_))));
}

fn cancel(world: &mut World, id: &str) {
    world.apply(Event::CancelSync(id.parse().unwrap()));
}

#[test]
fn a_retry_repeats_the_request_under_another_name() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let mut first = request(Some("demo"), "/src/a", "/dst/b");
    first.bwlimit = Some(1 << 20);
    first.options.filter.rules = vec!["- *.tmp".parse().unwrap()];
    world.apply(Event::Submit { request: first.clone(), list: None, idempotency: None });
    assert_eq!(retry(&mut world, "demo", None).unwrap_err().code, "sync_active");
    cancel(&mut world, "demo");
    let id = retry(&mut world, "demo", None).unwrap();
    world.restart();
    let again = world.state.syncs.values().find(|s| s.id.as_str() == id).unwrap();
    let expected = SyncRequest { request_id: None, ..first };
    assert_eq!(again.as_submitted(), expected);
    assert_eq!(world.progress("demo").state, SyncState::Cancelled, "what has ended stays ended");
    assert_eq!(retry(&mut world, "other", None).unwrap_err().status, 404);
}

#[test]
fn of_a_whole_source_the_directories_that_failed_are_retried_with_all_that_is_in_them() {
    for (has_list, recursive) in [(false, true), (true, false)] {
        let mut world = World::new();
        if has_list {
            listed(&mut world, "demo");
        } else {
            world.submit("demo", "/src/a", "/dst/b");
        }
        cancel(&mut world, "demo");
        let id = retry(&mut world, "demo", Some(&["dir"])).unwrap();
        assert_eq!(world.progress(&id).options.recursive, recursive);
    }
}

#[test]
fn a_completed_sync_is_not_tried_again() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);
    assert_eq!(retry(&mut world, "demo", None).unwrap_err().code, "sync_completed");
}

/// Work without evidence may not have been done: it can be retried, with its list.
#[test]
fn an_unverified_sync_is_tried_again_though_it_is_completed() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    listed(&mut world, "demo");
    for _ in 0..2 {
        let list = poll_kind(&mut world, "s", "list");
        let start = None;
        world.post_page(&list, ScanPage { root_identity: start, ..page(&list, 0, vec![], None) });
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Unverified)));
    retry(&mut world, "demo", None).unwrap();
    poll_kind(&mut world, "s", "list");
}

#[test]
fn a_name_list_moves_to_the_retrying_sync_and_ends_with_it() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    listed(&mut world, "demo");
    cancel(&mut world, "demo");
    assert_eq!(world.blobs.len(), 2, "it may be tried again");
    let second = retry(&mut world, "demo", None).unwrap();
    assert_eq!(retry(&mut world, "demo", None).unwrap_err().code, "file_list_gone");
    cancel(&mut world, &second);
    let third = retry(&mut world, &second, None).unwrap();
    // The first sync does not own the list any more.
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    for _ in 0..2 {
        let list = poll_kind(&mut world, "s", "list");
        assert_eq!(list.request_id.as_str(), third);
        world.post_page(&list, page(&list, 0, vec![], None));
    }
    assert_eq!(world.progress(&third).state, SyncState::Completed);
    assert!(world.blobs.is_empty());
}

#[test]
fn the_name_list_of_a_deleted_sync_is_gone_and_a_selection_is_a_list_of_its_own() {
    let mut world = World::new();
    listed(&mut world, "demo");
    cancel(&mut world, "demo");
    let some = retry(&mut world, "demo", Some(&["two"])).unwrap();
    assert_eq!(world.blobs.len(), 3);
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    assert_eq!(world.blobs.len(), 1);
    world.apply(Event::DeleteSync(some.parse().unwrap()));
    assert!(world.blobs.is_empty());
}
