//! What agents report falsely of storages.

use super::storage_world::StorageWorld;

/// An honest agent and one that reports falsely, on one directory of tree 1, and a writer of tree 0.
fn world_with_liar() -> (StorageWorld, [usize; 3]) {
    let mut world = StorageWorld::new(&["nfs4", "nfs4"]);
    let [writer, honest, liar] = [world.add(0), world.add(1), world.add(1)];
    world.agents[liar].host = world.agents[honest].host;
    (world.agents[liar].read_only, world.agents[liar].is_liar) = (true, true);
    (world, [writer, honest, liar])
}

#[test]
fn what_only_the_own_agent_could_report_joins_no_other_view_of_the_storage() {
    let (mut world, [writer, honest, liar]) = world_with_liar();
    world.heartbeat(honest);
    world.heartbeat(liar);
    let own = world.storage(honest);
    assert_eq!(world.storage(liar), own, "one directory under one kernel");
    world.silence(honest);
    for _ in 0..6 {
        world.heartbeat(liar);
        world.heartbeat(writer);
    }
    assert_ne!(world.storage(writer), own);
    assert_eq!(world.storage(liar), world.storage(writer), "it is believed, for itself");
    world.pump();
    assert_eq!(world.storage(honest), own);
    world.restart_master();
    world.pump();
    assert_eq!(world.storage(honest), own);
}

#[test]
fn a_view_of_one_directory_does_not_follow_what_only_another_agent_reported() {
    let (mut world, [writer, honest, liar]) = world_with_liar();
    for _ in 0..6 {
        world.heartbeat(liar);
        world.heartbeat(writer);
    }
    assert_eq!(world.storage(liar), world.storage(writer));
    world.pump();
    assert_ne!(world.storage(honest), world.storage(writer));
    world.reboot(world.agents[liar].host);
    world.silence(writer);
    world.pump();
    assert_ne!(world.storage(honest), world.storage(writer));
}

#[test]
fn a_storage_is_not_compared_through_a_view_that_belongs_to_it_by_its_own_report() {
    let (mut world, [writer, honest, liar]) = world_with_liar();
    for _ in 0..6 {
        world.heartbeat(liar);
        world.heartbeat(writer);
    }
    let third = world.add(1);
    world.silence(writer);
    for _ in 0..6 {
        world.heartbeat(liar);
        world.heartbeat(third);
    }
    assert_ne!(world.storage(third), world.storage(writer));
    world.pump();
    assert_eq!(world.storage(third), world.storage(honest));
    assert_ne!(world.storage(third), world.storage(writer));
}
