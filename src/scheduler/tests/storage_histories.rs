//! Random histories of agents, mounts and masters against the table of storages.

use super::storage_world::{StorageWorld, id_of, path, storage_id};
use crate::scheduler::storage_table::StorageTable;
use crate::wire::storage::StorageDeclaration;
use proptest::prelude::*;
use serde_json::{Value, json};

const AGENTS: usize = 6;

/// Three trees that any host may mount, two of them with one fingerprint; and for each of three hosts one that no other
/// host mounts.
fn world() -> StorageWorld {
    let mut world = StorageWorld::new(&["nfs4", "nfs4", "lustre", "ext4", "ext4", "ext4"]);
    world.trees[1].look = 8;
    world.trees[4].look = 9;
    for at in 0..AGENTS {
        world.add(at % 3);
        world.agents[at].host = at % 3;
    }
    world
}

fn step(world: &mut StorageWorld, action: u8, at: usize, with: usize) {
    let host = world.agents[at].host;
    match action {
        0..=7 => drop(world.heartbeat(at)),
        8 => (0..AGENTS).for_each(|at| drop(world.heartbeat(at))),
        9 => world.silence(at),
        10 => world.restart(at),
        11 => world.reboot(host),
        12..=13 => match with {
            0..=2 => world.mount(at, with, with % 2),
            3..=5 => world.mount(at, with % 3, 1),
            _ => world.mount(at, 3 + host, 0),
        },
        14 => world.agents[at].read_only = with.is_multiple_of(2),
        15 => world.agents[at].is_unavailable = with.is_multiple_of(2),
        16 => world.agents[at].is_unreported = with.is_multiple_of(2),
        17 => world.agents[at].fails_to_make = with.is_multiple_of(2),
        18 => world.agents[at].fails_to_look = with.is_multiple_of(2),
        19 => world.forget(at),
        20 => world.stop(at),
        21 => {
            world.agents[at].declared = match with {
                0..=2 => Some(StorageDeclaration::Storage(storage_id("x"))),
                3 => Some(StorageDeclaration::Storage(storage_id("y"))),
                4 => Some(StorageDeclaration::Local),
                _ => None,
            }
        }
        _ => restart_master(world),
    }
}

/// The answers of the table that must be the same after a restart of the master.
fn answers(world: &StorageWorld) -> Vec<String> {
    let table = &world.table;
    let of_workers = (0..world.agents.len()).map(|at| {
        let id = id_of(at);
        let unreported = world.view(at).is_some_and(|view| view.is_unreported);
        let no = table.storage_of(&id, &path()).filter(|_| !unreported);
        format!("{at}: {no:?} {:?}", table.contradiction(&id, &path()))
    });
    let of_storages = table.numbers().map(|no| {
        let id = table.id(no).unwrap();
        format!("{no:?} {id} {} {:?}", table.path(no).unwrap(), table.find(id))
    });
    of_workers.chain(of_storages).collect()
}

fn restart_master(world: &mut StorageWorld) {
    // A view that is not reported yet is unknown only to the running master.
    let is_pending = |at: usize| world.view(at).is_some_and(|view| view.is_unreported);
    let has_pending = (0..world.agents.len()).any(is_pending);
    let before = answers(world);
    world.restart_master();
    if !has_pending {
        assert_eq!(before, answers(world));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn views_are_one_storage_at_the_end_if_their_trees_are_the_same_and_at_no_time_if_they_differ(
        steps in prop::collection::vec((0..24u8, 0..AGENTS, 0..8usize), 0..120),
    ) {
        let mut world = world();
        for (action, at, with) in steps {
            step(&mut world, action, at, with);
            world.check_invariants();
        }
        for agent in &mut world.agents {
            agent.is_unavailable = false;
            agent.is_unreported = false;
            agent.fails_to_look = false;
        }
        world.pump();
        world.check_invariants();
        for (a, b) in (0..AGENTS).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let is_one = world.view(a).unwrap().storage == world.view(b).unwrap().storage;
            prop_assert_eq!(is_one, world.agents[a].tree == world.agents[b].tree, "{} {}", a, b);
        }
        restart_master(&mut world);
        let before = answers(&world);
        world.pump();
        prop_assert_eq!(before, answers(&world));
    }
}

/// Each value in a document, replaced by another one.
fn with_one_value_replaced(document: &Value, by: &Value) -> Vec<Value> {
    let mut found = vec![by.clone()];
    match document {
        Value::Object(members) => {
            for (name, value) in members {
                for other in with_one_value_replaced(value, by) {
                    let mut copy = members.clone();
                    copy[name] = other;
                    found.push(Value::Object(copy));
                }
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                for other in with_one_value_replaced(value, by) {
                    let mut copy = items.clone();
                    copy[at] = other;
                    found.push(Value::Array(copy));
                }
            }
        }
        _ => {}
    }
    found
}

#[test]
fn a_damaged_record_is_refused_or_read_and_the_views_are_compared_again() {
    let mut world = world();
    for at in [0, 1, 3] {
        world.agents[at].declared = Some(StorageDeclaration::Storage(storage_id("x")));
    }
    world.pump();
    let records = world.records.clone();
    for (key, value) in &records {
        let document = serde_json::from_slice(value).unwrap();
        for by in
            [Value::Null, json!(true), json!(0), json!(2), json!(u64::MAX), json!("x"), json!([2])]
        {
            for damaged in with_one_value_replaced(&document, &by) {
                let mut table = StorageTable::default();
                let mut is_refused = false;
                for (other, value) in &records {
                    let text = if other == key { damaged.to_string() } else { String::new() };
                    let value = if other == key { text.as_bytes() } else { value };
                    is_refused |= table.load(other, value).is_err();
                }
                if !is_refused {
                    world.table = table;
                    (0..AGENTS).for_each(|at| world.restart(at));
                    world.pump();
                }
            }
        }
    }
    for key in ["n/", "n/x", "n/18446744073709551615", "y/w0", "y//", "y/w0/x", "z/1", ""] {
        assert!(StorageTable::default().load(key, b"{}").is_err(), "{key}");
    }
}
