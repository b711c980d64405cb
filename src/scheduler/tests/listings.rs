//! What is shown of syncs: the list of all, and the times of each.

use super::*;

#[test]
fn pages_of_a_list_hold_each_sync_once_though_others_come_and_go() {
    let mut world = World::new();
    for id in ["a", "b", "c", "d", "e"] {
        world.submit(id, "/src", "/dst");
    }
    world.apply(Event::CancelSync("b".parse().unwrap()));
    world.apply(Event::DeleteSync("d".parse().unwrap()));
    let mut page = |select: SyncQuery| match world.apply(Event::ListSyncs(select)) {
        Some(Reply::Syncs(SyncPage { syncs, next })) => {
            (syncs.iter().map(|s| s.request_id.to_string()).collect::<String>(), next)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(page(SyncQuery::default()), ("ecba".into(), None));
    let of = |before, limit| SyncQuery { before, limit: Some(limit), ..SyncQuery::default() };
    let (first, next) = page(of(None, 2));
    assert_eq!(first, "ec");
    assert_eq!(
        page(of(next, 2)),
        ("ba".into(), None),
        "nothing comes behind a page that is the last"
    );
    let queued = SyncQuery { states: vec![SyncState::Queued], ..of(None, 2) };
    let (first, next) = page(queued.clone());
    assert_eq!((&first[..], next.is_some()), ("ec", true));
    world.submit("f", "/src", "/dst");
    world.apply(Event::DeleteSync("c".parse().unwrap()));
    let mut page = |select: SyncQuery| match world.apply(Event::ListSyncs(select)) {
        Some(Reply::Syncs(selected)) => selected,
        other => panic!("{other:?}"),
    };
    let rest = page(SyncQuery { before: next, ..queued });
    assert_eq!((rest.syncs.len(), rest.next), (1, None));
    assert_eq!(rest.syncs[0].request_id.as_str(), "a", "a new one does not shift the pages");
}

#[test]
fn short_ids_are_the_shortest_that_name_one_sync_and_a_list_of_a_prefix_holds_all_that_begin_so() {
    let mut world = World::new();
    let made = ["01a22a08-9479-7b34-adae-dd6a21c3b90e", "01a22a09-9479-7b34-adae-dd6a21c3b90e"];
    for id in ["a", "nightly-1", "nightly-10", "nightly-12", "weekly-2026-01", made[0], made[1]] {
        world.submit(id, "/src", "/dst");
    }
    let short = |world: &mut World, id: &str| world.progress(id).short_id.unwrap();
    for (id, short_id) in [
        ("a", "a"),
        ("nightly-1", "nightly-1"),
        ("weekly-2026-01", "weekly-2026-01"),
        (made[0], "01a22a08"),
        (made[1], "01a22a09"),
    ] {
        assert_eq!(short(&mut world, id), short_id);
    }
    let mut begin = |prefix: &str| {
        let id_prefix = Some(prefix.parse().unwrap());
        match world.apply(Event::ListSyncs(SyncQuery { id_prefix, ..SyncQuery::default() })) {
            Some(Reply::Syncs(found)) => {
                found.syncs.iter().map(|s| s.request_id.to_string()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(begin("nightly-1"), ["nightly-12", "nightly-10", "nightly-1"]);
    assert_eq!(begin("weekly-2"), ["weekly-2026-01"]);
    assert!(begin("weekly-3").is_empty());
    let near = "01a22a08-9479-7b34-adae-dd6a21c3b90f";
    world.submit(near, "/src", "/dst");
    assert_eq!(short(&mut world, made[0]), made[0]);
    world.apply(Event::DeleteSync(near.parse().unwrap()));
    assert_eq!(short(&mut world, made[0]), "01a22a08", "a deleted one does not count");
}

#[test]
fn a_sync_shows_when_it_was_submitted_started_updated_and_ended() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.submit("demo", "/src/a", "/dst/b");
    // In seconds after the start of the clock.
    let times = |world: &mut World| {
        let shown = world.progress("demo");
        let seconds = |at: jiff::Timestamp| (at.as_millisecond() - START.wall_ms) / 1000;
        let (started, ended) = (shown.started_at.map(seconds), shown.ended_at.map(seconds));
        (seconds(shown.submitted_at), started, seconds(shown.updated_at), ended)
    };
    assert_eq!(times(&mut world), (0, None, 0, None));
    world.advance(1_000);
    let scan = poll_kind(&mut world, "s", "scan");
    assert_eq!(times(&mut world), (0, Some(1), 1, None));
    world.advance(1_000);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    assert_eq!(times(&mut world), (0, Some(1), 2, None));
    world.advance(1_000);
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    assert_eq!(times(&mut world), (0, Some(1), 3, Some(3)));
    world.advance(1_000);
    assert_eq!(times(&mut world), (0, Some(1), 3, Some(3)), "nothing changes any more");
}
