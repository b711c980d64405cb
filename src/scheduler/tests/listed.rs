//! The list of all syncs.

use super::*;

#[test]
fn pages_of_a_list_hold_each_sync_once_though_others_come_and_go() {
    let mut world = World::new();
    for id in ["a", "b", "c", "d", "e"] {
        world.submit(id, "/src", "/dst");
    }
    world.play(Event::Cancel("b".parse().unwrap()));
    world.play(Event::Delete("d".parse().unwrap()));
    let mut page = |select: Select| match world.play(Event::List(select)) {
        Some(Reply::List(Selected { syncs, next })) => {
            (syncs.iter().map(|s| s.request_id.to_string()).collect::<String>(), next)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(page(Select::default()), ("ecba".into(), None));
    let of = |before, limit| Select { before, limit: Some(limit), states: vec![] };
    let (first, next) = page(of(None, 2));
    assert_eq!(first, "ec");
    assert_eq!(
        page(of(next, 2)),
        ("ba".into(), None),
        "nothing comes behind a page that is the last"
    );
    let queued = Select { states: vec![SyncState::Queued], ..of(None, 2) };
    let (first, next) = page(queued.clone());
    assert_eq!((&first[..], next.is_some()), ("ec", true));
    world.submit("f", "/src", "/dst");
    world.play(Event::Delete("c".parse().unwrap()));
    let mut page = |select: Select| match world.play(Event::List(select)) {
        Some(Reply::List(selected)) => selected,
        other => panic!("{other:?}"),
    };
    let rest = page(Select { before: next, ..queued });
    assert_eq!((rest.syncs.len(), rest.next), (1, None));
    assert_eq!(rest.syncs[0].request_id.as_str(), "a", "a new one does not shift the pages");
}
