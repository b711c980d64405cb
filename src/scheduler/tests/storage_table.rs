//! The table of storages, rule by rule.

use super::storage_world::{StorageWorld, id_of, path, storage_id};
use crate::scheduler::storage_compare::MAX_LOOKS;
use crate::scheduler::storage_table::Relation;
use crate::wire::storage::{ConfiguredStorage, StorageDeclaration, StorageEvidence};

fn evidence(world: &StorageWorld, at: usize) -> StorageEvidence {
    world.view(at).unwrap().evidence
}

#[test]
fn a_tree_that_two_hosts_mount_is_one_storage_after_a_proof_in_both_directions() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.heartbeat(a);
    let first = world.storage(a).unwrap();
    world.heartbeat(b);
    assert_ne!(world.storage(b), Some(first), "not yet known: separate");
    assert_eq!(world.table.relation(first, world.storage(b).unwrap()), Relation::Unknown);
    assert_eq!(evidence(&world, a), StorageEvidence::Single);
    world.pump();
    assert_eq!((world.storage(a), world.storage(b)), (Some(first), Some(first)));
    assert_eq!([a, b].map(|at| evidence(&world, at)), [StorageEvidence::Proved; 2]);
    assert_eq!((world.files_made, world.looks), (2, 2));
    assert!(world.trees[0].files.is_empty(), "probe files are removed");
    world.check_invariants();
}

#[test]
fn trees_that_look_alike_are_two_storages() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [a, b] = [world.add(0), world.add(1)];
    world.pump();
    let (first, second) = (world.storage(a).unwrap(), world.storage(b).unwrap());
    assert_eq!(world.table.relation(first, second), Relation::Different);
    assert_eq!(world.table.named(&path()).collect::<Vec<_>>(), [first, second]);
    assert_eq!(world.looks, 1, "one look is enough");
}

#[test]
fn local_disks_of_different_hosts_are_not_compared() {
    let mut world = StorageWorld::new(&["ext4", "ext4"]);
    let [a, b] = [world.add(0), world.add(1)];
    world.pump();
    let (first, second) = (world.storage(a).unwrap(), world.storage(b).unwrap());
    assert_eq!(world.table.relation(first, second), Relation::Different);
    assert_eq!(world.files_made, 0);
}

#[test]
fn an_export_of_a_local_disk_is_the_storage_of_the_disk() {
    let mut world = StorageWorld::new(&["ext4", "ext4"]);
    let [server, other, client] = [0, 1, 0].map(|tree| world.add(tree));
    world.agents[client].fs_type = Some("nfs4");
    world.pump();
    assert_eq!(world.storage(client), world.storage(server));
    assert_ne!(world.storage(client), world.storage(other));
}

#[test]
fn agents_on_one_host_with_the_same_directory_need_no_probe() {
    let mut world = StorageWorld::new(&["ext4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[b].host = world.agents[a].host;
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
    assert_eq!(evidence(&world, b), StorageEvidence::Proved);
    assert_eq!(world.files_made, 0);
}

#[test]
fn the_side_that_can_write_proves_it_to_the_one_that_cannot() {
    for read_only in [0, 1] {
        let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
        let [a, b, c] = [world.add(0), world.add(0), world.add(1)];
        world.agents[read_only].read_only = true;
        world.pump();
        assert_eq!(world.storage(a), world.storage(b));
        assert_ne!(world.storage(a), world.storage(c));
        assert_eq!([a, b].map(|at| evidence(&world, at)), [StorageEvidence::Proved; 2]);
    }
}

#[test]
fn what_nobody_can_write_is_compared_by_samples() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4", "nfs4"]);
    world.trees[2].is_empty = true;
    let agents = [0, 0, 1, 2, 2].map(|tree| world.add(tree));
    for at in agents {
        world.agents[at].read_only = true;
    }
    world.pump();
    let of = agents.map(|at| world.storage(at));
    assert_eq!(of[0], of[1]);
    assert_eq!(evidence(&world, 1), StorageEvidence::Likely);
    assert!(of[2] != of[0] && of[3] != of[0] && of[3] != of[4], "{of:?}");
    assert_eq!(world.files_made, 0);
}

#[test]
fn an_agent_that_cannot_make_its_probe_file_looks_for_the_other_one() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[a].fails_to_make = true;
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
    assert_eq!(evidence(&world, a), StorageEvidence::Proved);
}

#[test]
fn a_look_that_fails_is_repeated() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[b].fails_to_look = true;
    for _ in 0..5 {
        world.heartbeat(a);
        world.heartbeat(b);
    }
    let (first, second) = (world.storage(a).unwrap(), world.storage(b).unwrap());
    assert_eq!(world.table.relation(first, second), Relation::Unknown);
    world.agents[b].fails_to_look = false;
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
}

#[test]
fn a_silent_worker_is_compared_with_nothing_and_another_one_takes_its_place() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.heartbeat(a);
    world.heartbeat(b);
    world.silence(a);
    let (first, second) = (world.storage(a).unwrap(), world.storage(b).unwrap());
    assert_eq!(world.table.relation(first, second), Relation::LooksAlike);
    assert!(world.table.checks_for(&id_of(b)).is_empty());
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
    world.silence(a);
    let c = world.add(0);
    for _ in 0..8 {
        world.heartbeat(b);
        world.heartbeat(c);
    }
    assert_eq!(world.storage(c), world.storage(b), "through the other view");
}

#[test]
fn a_path_that_is_unavailable_keeps_its_storage_and_is_not_compared() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.heartbeat(a);
    let first = world.storage(a);
    world.agents[a].is_unavailable = true;
    world.pump();
    assert_eq!(world.storage(a), first);
    assert_ne!(world.storage(b), first);
    world.agents[a].is_unavailable = false;
    world.pump();
    assert_eq!(world.storage(b), first);
}

#[test]
fn another_directory_at_the_path_leaves_the_storage() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.pump();
    let both = world.storage(a);
    world.mount(b, 1, 0);
    world.heartbeat(b);
    assert_ne!(world.storage(b), both, "at once, whatever its fingerprint looks like");
    world.pump();
    assert_eq!(world.storage(a), both);
    world.mount(b, 0, 1);
    world.pump();
    assert_eq!(world.storage(b), both);
}

#[test]
fn a_host_that_reboots_alone_keeps_its_storage_and_is_compared_again() {
    let mut world = StorageWorld::new(&["ext4", "nfs4"]);
    let [a, b] = [world.add(0), world.add(1)];
    world.pump();
    let [disk, share] = [a, b].map(|at| world.storage(at).unwrap());
    let looks = world.looks;
    world.reboot(world.agents[a].host);
    world.heartbeat(a);
    assert_eq!(world.storage(a), Some(disk));
    assert_eq!(world.table.relation(disk, share), Relation::Unknown);
    world.pump();
    assert_eq!(world.table.relation(disk, share), Relation::Different);
    assert!(world.looks > looks);
    // With another fingerprint too: nothing else is left of the storage.
    world.trees[0].look = 99;
    world.reboot(world.agents[a].host);
    world.heartbeat(a);
    assert_eq!(world.storage(a), Some(disk));
    assert_eq!(world.table.relation(disk, share), Relation::Unknown);
    world.pump();
    assert_eq!(world.table.relation(disk, share), Relation::Different);
}

#[test]
fn a_disk_that_was_left_under_another_boot_is_not_known_to_be_another_one() {
    let mut world = StorageWorld::new(&["ext4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[b].host = a;
    world.pump();
    let old = world.storage(a).unwrap();
    assert_eq!(world.storage(b), Some(old));
    world.reboot(a);
    world.heartbeat(a);
    let new = world.storage(a).unwrap();
    assert_ne!(new, old, "the other one may have been on another host");
    assert_eq!(world.table.relation(old, new), Relation::Unknown, "it counts as active");
    world.silence(b);
    assert_eq!(world.table.relation(old, new), Relation::LooksAlike);
    world.restart_master();
    world.heartbeat(a);
    world.heartbeat(a);
    assert_eq!(world.table.relation(old, new), Relation::LooksAlike);
    assert_eq!(world.heartbeat(b).len(), 1, "it is the same disk");
    assert_eq!(world.storage(a), world.storage(b));
    world.check_invariants();
}

#[test]
fn disks_that_look_alike_are_different_once_both_kernels_were_seen() {
    let mut world = StorageWorld::new(&["ext4", "ext4"]);
    let [a, b] = [world.add(0), world.add(1)];
    world.heartbeat(a);
    world.heartbeat(b);
    let [old, new] = [a, b].map(|at| world.storage(at).unwrap());
    assert_eq!(world.table.relation(old, new), Relation::Unknown, "one host, or two");
    let version = world.table.version();
    world.heartbeat(a);
    assert_eq!(world.table.relation(old, new), Relation::Different);
    assert_ne!(world.table.version(), version, "syncs that waited for this go on");
    // It stays known when one of them is silent, and the other one is rebooted.
    world.silence(a);
    world.restart_master();
    world.reboot(b);
    world.heartbeat(b);
    assert_eq!(world.storage(b), Some(new));
    assert_eq!(world.table.relation(old, new), Relation::Different);
    world.check_invariants();
    // Without the same fingerprint there is nothing to wait for.
    let mut other = world.trees[0].clone();
    other.look = 8;
    world.trees.push(other);
    let c = world.add(2);
    world.heartbeat(c);
    assert_eq!(world.table.relation(old, world.storage(c).unwrap()), Relation::Different);
}

#[test]
fn kernels_that_ran_in_turn_do_not_make_two_storages_of_a_disk() {
    let mut world = StorageWorld::new(&["ext4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[b].host = a;
    world.pump();
    let old = world.storage(a).unwrap();
    world.reboot(a);
    world.heartbeat(b);
    let new = world.storage(b).unwrap();
    assert_ne!(new, old);
    // At the next boot the other one reports.
    world.restart_master();
    world.reboot(a);
    world.heartbeat(a);
    world.heartbeat(a);
    assert_eq!(world.storage(a), Some(old));
    assert_eq!(world.table.relation(old, new), Relation::LooksAlike);
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
    world.check_invariants();
}

#[test]
fn a_late_report_from_before_a_reboot_does_not_make_two_storages_of_a_disk() {
    let mut world = StorageWorld::new(&["ext4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[b].host = a;
    world.pump();
    world.reboot(a);
    world.pump();
    world.boots.insert(a, 0);
    world.heartbeat(a);
    world.boots.insert(a, 1);
    world.heartbeat(b);
    let [late, now] = [a, b].map(|at| world.storage(at).unwrap());
    assert_ne!(late, now);
    assert_ne!(world.table.relation(late, now), Relation::Different);
    world.pump();
    assert_eq!(world.storage(a), world.storage(b));
    world.check_invariants();
}

#[test]
fn a_shared_storage_keeps_its_number_when_all_hosts_and_the_master_restart() {
    let mut world = StorageWorld::new(&["nfs4"]);
    (0..20).for_each(|_| _ = world.add(0));
    world.pump();
    let before = world.storage(0);
    world.restart_master();
    (0..20).for_each(|host| world.reboot(host));
    world.pump();
    world.check_invariants();
    for at in 0..20 {
        assert_eq!(world.storage(at), before);
    }
}

#[test]
fn one_host_that_rebooted_does_not_take_the_storage_from_those_that_did_not() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    (0..10).for_each(|_| _ = world.add(0));
    world.pump();
    let before = world.storage(0);
    world.restart_master();
    world.reboot(3);
    world.mount(3, 1, 0);
    world.heartbeat(3);
    assert_eq!(world.storage(3), before, "nothing else is active");
    let made = world.files_made;
    world.heartbeat(4);
    assert_eq!(world.storage(4), before, "unchanged");
    assert_ne!(world.storage(3), before, "evicted until it is compared");
    world.pump();
    assert_ne!(world.storage(3), before);
    assert!((0..10).filter(|at| *at != 3).all(|at| world.storage(at) == before));
    assert!(world.files_made <= made + 2, "one comparison");
}

#[test]
fn one_host_that_rebooted_does_not_take_the_storage_by_a_view_that_others_confirm() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [moved, kept, late] = [world.add(0), world.add(0), world.add(0)];
    world.agents[late].host = world.agents[kept].host;
    world.pump();
    let before = world.storage(moved);
    world.reboot(world.agents[kept].host);
    world.silence(late);
    (0..8).for_each(|_| [moved, kept].into_iter().for_each(|at| _ = world.heartbeat(at)));
    assert_eq!(world.storage(kept), before);
    world.silence(kept);
    world.reboot(world.agents[moved].host);
    world.mount(moved, 1, 0);
    world.silence(moved);
    world.heartbeat(moved);
    assert_eq!(world.storage(moved), before, "nothing else is active");
    // It reports the kernel and the directory of one that has not changed, for the first time.
    world.heartbeat(late);
    assert_eq!(world.storage(late), before);
    assert_ne!(world.storage(moved), before, "evicted until it is compared");
    world.pump();
    world.check_invariants();
    assert!([kept, late].into_iter().all(|at| world.storage(at) == before));
    assert_ne!(world.storage(moved), before);
}

#[test]
fn a_probe_file_has_another_name_each_time_it_is_made() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [a, b] = [world.add(0), world.add(1)];
    let mut names = std::collections::BTreeSet::new();
    world.heartbeat(a);
    for mount in 0..3 {
        world.mount(b, 1, mount);
        for _ in 0..4 {
            world.heartbeat(b);
            world.heartbeat(a);
            names.extend(world.trees[0].files.iter().cloned());
        }
        assert!(world.trees[0].files.is_empty());
    }
    assert_eq!(names.len(), 3);
}

#[test]
fn agents_without_fingerprints_are_alone_unless_the_configuration_names_them() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let agents = [0; 4].map(|tree| world.add(tree));
    for at in agents {
        world.agents[at].is_guide = true;
    }
    world.pump();
    let [a, b, c, d] = agents.map(|at| world.storage(at).unwrap());
    assert!(a != b && c != d);
    assert_eq!(world.table.relation(a, b), Relation::Different);
    world.configured = vec![ConfiguredStorage {
        id: storage_id("x"),
        paths: vec![path()],
        workers: vec!["w0".parse().unwrap(), "w1".parse().unwrap()],
    }];
    world.pump();
    assert_eq!(world.storage(0), world.storage(1));
    assert_eq!(world.id(0).as_deref(), Some("x"));
    assert_eq!(evidence(&world, 1), StorageEvidence::Declared);
    assert_ne!(world.storage(2), world.storage(3));
    // An agent that reports joins what it declares.
    let e = world.add_declared(0, "x");
    world.pump();
    assert_eq!(world.storage(e), world.storage(0));
    world.check_invariants();
}

#[test]
fn a_declared_id_names_the_storage_and_wins_over_a_generated_one() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let a = world.add(0);
    world.pump();
    assert!(world.id(a).unwrap().starts_with("s-"));
    let no = world.storage(a).unwrap();
    let b = world.add_declared(0, "lustre-1");
    world.pump();
    assert_eq!(world.storage(b), Some(no));
    assert_eq!(world.id(a).as_deref(), Some("lustre-1"));
    assert_eq!(world.table.find(&storage_id("lustre-1")), Some(no));
}

#[test]
fn one_id_for_two_trees_is_refused_on_both_or_kept_by_the_majority() {
    let mut world = StorageWorld::new(&["xfs", "xfs"]);
    let [a, b] = [0, 1].map(|tree| world.add_declared(tree, "x"));
    world.pump();
    assert_eq!(
        world.contradiction(a),
        Some(
            "declared as storage `x`, but worker w1 sees another file tree at /p: correct `storage` in the agents' files"
        )
    );
    assert!(world.contradiction(b).unwrap().contains("worker w0 sees another file tree"));
    assert_eq!((world.storage(a), world.storage(b)), (None, None));
    assert_eq!(world.table.named(&path()).count(), 0);
    assert_eq!(world.table.find(&storage_id("x")), None);
    world.restart_master();
    assert!(world.contradiction(a).is_some());
    world.pump();
    assert!(world.contradiction(a).is_some());
    // Two workers for one tree.
    let c = world.add_declared(1, "x");
    world.agents[c].fs_type = Some("nfs4");
    world.pump();
    assert_eq!(world.contradiction(b).or(world.contradiction(c)), None);
    assert_eq!((world.id(b).as_deref(), world.id(c).as_deref()), (Some("x"), Some("x")));
    assert!(world.contradiction(a).is_some());
    // The declaration is corrected.
    world.agents[a].declared = None;
    world.pump();
    assert_eq!(world.contradiction(a), None);
    assert!(world.storage(a).is_some() && world.storage(a) != world.storage(b));
    world.check_invariants();
}

#[test]
fn a_contradiction_ends_when_the_other_worker_is_corrected() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [a, b] = [0, 1].map(|tree| world.add_declared(tree, "x"));
    world.pump();
    assert!(world.contradiction(a).is_some());
    world.mount(b, 0, 0);
    world.pump();
    assert_eq!(world.contradiction(a).or(world.contradiction(b)), None);
    assert_eq!(world.storage(a), world.storage(b));
    assert_eq!(world.id(a).as_deref(), Some("x"));
}

#[test]
fn one_tree_with_two_ids_is_refused() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = ["x", "y"].map(|id| world.add_declared(0, id));
    world.pump();
    assert!(world.contradiction(a).unwrap().contains("declares it as storage `y`"));
    assert!(world.contradiction(b).unwrap().contains("declares it as storage `x`"));
    let c = world.add_declared(0, "x");
    world.pump();
    assert_eq!(world.contradiction(a).or(world.contradiction(c)), None);
    assert!(world.contradiction(b).is_some());
    assert_eq!(world.id(c).as_deref(), Some("x"));
}

#[test]
fn local_is_contradicted_by_another_host_and_not_by_an_agent_on_the_same_one() {
    let mut world = StorageWorld::new(&["nfs4", "ext4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.agents[a].declared = Some(StorageDeclaration::Local);
    world.pump();
    assert_eq!(world.storage(a), None);
    assert!(world.contradiction(a).unwrap().contains("worker w1 on another host"));
    assert!(world.storage(b).is_some());
    let [c, d] = [world.add(1), world.add(1)];
    world.agents[d].host = world.agents[c].host;
    world.agents[c].declared = Some(StorageDeclaration::Local);
    world.pump();
    assert_eq!(world.contradiction(c), None);
    assert_eq!(world.storage(c), world.storage(d));
}

#[test]
fn what_the_master_declares_is_corrected_in_its_file() {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [a, _] = [world.add(0), world.add(1)];
    world.configured = vec![ConfiguredStorage {
        id: storage_id("x"),
        paths: vec![path()],
        workers: vec!["w*".parse().unwrap()],
    }];
    world.pump();
    let reason = world.contradiction(a).unwrap();
    assert!(reason.ends_with("correct `storages` in the master's file"), "{reason}");
}

#[test]
fn a_storage_goes_with_its_last_view_and_its_number_is_not_given_again() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let a = world.add(0);
    world.heartbeat(a);
    let first = world.storage(a).unwrap();
    world.forget(a);
    assert_eq!(world.table.numbers().count(), 0);
    assert_eq!(world.table.path(first), None);
    world.restart_master();
    world.heartbeat(a);
    assert!(world.storage(a).unwrap() > first);
    world.check_invariants();
}

#[test]
fn a_stopped_worker_is_compared_with_nothing() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.heartbeat(a);
    world.stop(a);
    (0..4).for_each(|_| drop(world.heartbeat(b)));
    assert_ne!(world.storage(a), world.storage(b));
    assert!(world.table.checks_for(&id_of(b)).is_empty());
}

#[test]
fn a_merge_is_returned_with_the_older_number_kept() {
    let mut world = StorageWorld::new(&["nfs4"]);
    let [a, b] = [world.add(0), world.add(0)];
    world.heartbeat(a);
    world.heartbeat(b);
    let (older, newer) = (world.storage(a).unwrap(), world.storage(b).unwrap());
    let mut merges = Vec::new();
    for _ in 0..6 {
        merges.extend(world.heartbeat(a));
        merges.extend(world.heartbeat(b));
    }
    let [merge] = merges[..] else { panic!("{merges:?}") };
    assert_eq!((merge.from, merge.into), (newer, older));
}

#[test]
fn heartbeats_that_say_nothing_new_change_nothing() {
    let mut world = StorageWorld::new(&["nfs4", "ext4"]);
    let agents = [0, 0, 1].map(|tree| world.add(tree));
    world.pump();
    let version = world.table.version();
    agents.iter().for_each(|at| drop(world.heartbeat(*at)));
    assert_eq!(world.table.version(), version);
}

#[test]
fn a_thousand_workers_on_one_mount_need_two_probe_files_and_two_looks_each() {
    let mut world = StorageWorld::new(&["nfs4"]);
    (0..1_000).for_each(|_| _ = world.add(0));
    let rounds = world.pump();
    let no = world.storage(0).unwrap();
    assert_eq!(world.table.members(no).len(), 1_000);
    assert!(
        world.files_made <= 2_000 && world.looks <= 2_000,
        "{} {}",
        world.files_made,
        world.looks
    );
    assert!(rounds <= 8 + 1_000 / MAX_LOOKS, "{rounds}");
}
