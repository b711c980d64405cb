//! What tickets allow, at which workers, for how long; renewals, and which syncs heartbeats report as ended.

use super::*;
use crate::identity::{Sealer, SealingError};
use crate::wire::ticket::{Signer, Verb, Verbs, lifetime_seconds};
use crate::wire::worker::{EndedSyncs, HeartbeatReply};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use std::time::Duration;

fn beat(world: &mut World, heartbeat: WorkerHeartbeat) -> HeartbeatReply {
    match world.apply(Event::Heartbeat(heartbeat)) {
        Some(Reply::Heartbeat(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

/// A heartbeat of `s`, which holds `held` and needs other `tickets`.
fn source_beat(held: &[AssignmentId], tickets: &[&str]) -> WorkerHeartbeat {
    let tickets = tickets.iter().map(|ticket| ticket.to_string().into()).collect();
    WorkerHeartbeat { tickets, ..heartbeat("s", Some("1"), &["/src"], held) }
}

#[test]
fn a_ticket_allows_what_its_task_needs_at_the_workers_of_the_destination() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let check = |world: &World, a: &Assignment, verbs: &[Verb]| {
        let claims = claims(world, a);
        assert_eq!(claims.verbs, Verbs::of(verbs), "{a:?}");
        let may = |worker: &str| claims.allows_receiver(&worker.parse().unwrap());
        assert_eq!((may("s"), may("d"), may("x")), (false, true, false), "{a:?}");
        let left = claims.expires - world.now.wall_ms.div_euclid(1000);
        assert_eq!(left, lifetime_seconds(Duration::from_secs(a.lease_seconds)));
    };
    check(&world, &scan, &[Verb::RootCheck]);
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    let copy = complete_kind(&mut world, "s", "copy");
    check(&world, &copy, &[Verb::Offer, Verb::Pack]);
    let count = poll_kind(&mut world, "s", "prune");
    check(&world, &count, &[Verb::Prune]);
    world.post_page(&count, prune_page(&count, 10, 1));
    let flush = complete_kind(&mut world, "d", "flush");
    check(&world, &flush, &[]);
}

#[test]
fn digests_are_read_only_for_ranges_and_nothing_is_written_for_comparisons() {
    let verbs = |compare| TaskSpec::Range { offset: 0, length: 1, compare }.verbs();
    assert_eq!(verbs(false), Verbs::of(&[Verb::Offer, Verb::Range, Verb::BlockDigests]));
    assert_eq!(verbs(true), Verbs::of(&[Verb::Offer, Verb::BlockDigests]));
    assert_eq!(TaskSpec::CleanUp.verbs(), Verbs::of(&[Verb::CleanUp]));
    assert_eq!(TaskSpec::Discard.verbs(), Verbs::default());
}

#[test]
fn tickets_of_held_assignments_are_renewed_with_the_same_rights() {
    let (mut world, scan) = scanning_with(SyncOptions::default());
    let (id, first) = (scan.assignment_id, claims(&world, &scan));
    world.advance(20_000);
    // The wall clock of the master has no part in it.
    world.now.wall_ms -= 1_000_000_000;
    let reply = beat(&mut world, source_beat(&[id], &[&scan.ticket, "0.AA.AA"]));
    let keys = Verifier::new(&reply.ticket_keys).unwrap();
    let renewed = keys.verify(&reply.tickets[&id], reply.time.unwrap()).unwrap();
    assert_eq!(renewed.expires, first.expires + 20);
    assert_eq!(Claims { expires: first.expires, ..renewed }, first);
    // Another worker has got hold of it; an assignment that is not held; a ticket of another master.
    let other = heartbeat("d", Some("1"), &["/dst"], &[id]);
    let stolen = WorkerHeartbeat { tickets: vec![scan.ticket.clone()], ..other };
    assert!(beat(&mut world, stolen).tickets.is_empty());
    assert!(beat(&mut world, source_beat(&[], &[&scan.ticket])).tickets.is_empty());
    let foreign = World::new();
    assert_eq!(foreign.state.keys.verify(&scan.ticket), None);
    // The next master, which has not heard from the destination yet, names the same receivers.
    let scan = Assignment { ticket: reply.tickets[&id].clone(), ..scan };
    world.restart();
    let reply = beat(&mut world, source_beat(&[id], &[&scan.ticket]));
    let keys = Verifier::new(&reply.ticket_keys).unwrap();
    let renewed = keys.verify_signature(&reply.tickets[&id]).unwrap();
    assert!(renewed.allows_receiver(&"d".parse().unwrap()));
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    assert!(beat(&mut world, source_beat(&[id], &[&scan.ticket])).tickets.is_empty());
}

#[test]
fn heartbeats_report_each_ended_sync_once_and_all_recent_ones_after_a_take_over() {
    let (mut world, scan) = scanning_with(SyncOptions::default());
    let number = SyncNo(claims(&world, &scan).sync);
    let mut seen = None;
    let mut ask = |world: &mut World| -> Option<EndedSyncs> {
        let at_d = heartbeat("d", Some("1"), &["/dst"], &[]);
        let reply = beat(world, WorkerHeartbeat { ended_seen: seen, ..at_d });
        seen = reply.ended_syncs.as_ref().map(|ended| ended.cursor).or(seen);
        reply.ended_syncs
    };
    assert_eq!(ask(&mut world).unwrap().syncs, []);
    assert_eq!(ask(&mut world), None);
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    assert_eq!(ask(&mut world).unwrap().syncs, [number]);
    assert_eq!(ask(&mut world), None);
    world.restart();
    assert_eq!(ask(&mut world).unwrap().syncs, [number]);
    assert_eq!(ask(&mut world), None);
}

#[test]
fn a_new_key_signs_when_all_agents_have_it_and_the_old_one_ends_with_its_last_ticket() {
    let (mut world, scan) = scanning_with(SyncOptions::default());
    let rotate = |world: &mut World| match world.apply(Event::RotateTicketKey) {
        Some(Reply::TicketKeyRotated(plan)) => plan,
        other => panic!("{other:?}"),
    };
    let old = world.state.ticket_keys();
    let plan = rotate(&mut world);
    assert_eq!((plan.signs_in_seconds, plan.previous_valid_seconds), (45, 45 + 960));
    assert!(scan.ticket.starts_with(&plan.previous_key_id) && plan.key_id != plan.previous_key_id);
    let both = world.state.ticket_keys();
    assert!(both.len() == 2 && both[0] == old[0], "agents get it with the next heartbeat");
    world.advance(20_000);
    let again = rotate(&mut world);
    assert_eq!((again.key_id, again.signs_in_seconds), (plan.key_id, 25));
    // The next master does not know which agents have it.
    world.restart();
    assert_eq!(world.state.ticket_keys(), both);
    world.advance(44_000);
    assert_eq!(world.state.ticket_keys(), both);
    world.advance(2_000);
    let swapped = [both[1].clone(), both[0].clone()];
    assert_eq!(world.state.ticket_keys(), swapped);
    assert!(world.state.keys.verify(&scan.ticket).is_some());
    world.restart();
    world.advance(959_000);
    assert_eq!(world.state.ticket_keys(), swapped);
    world.advance(2_000);
    assert_eq!(world.state.ticket_keys(), swapped[..1]);
    world.restart();
    assert_eq!(world.state.ticket_keys(), swapped[..1]);
    assert_eq!(world.state.keys.verify(&scan.ticket), None);
}

fn other_sealer() -> Settings {
    Settings::new(Sealer::for_this_process().unwrap())
}

#[test]
fn keys_are_sealed_in_the_store_and_only_the_same_key_opens_them() {
    let (world, _) = scanning_with(SyncOptions::default());
    let meta = String::from_utf8(world.records["meta"].clone()).unwrap();
    assert!(!meta.contains(&B64.encode(world.state.name_key().0)), "{meta}");
    assert!(!meta.contains("signer_key") && !meta.contains("\"name_key\""), "{meta}");
    let refused = State::load(other_sealer(), [1; 32], &world.records, START).err();
    assert!(matches!(
        refused,
        Some(LoadError::Keys(KeyError::Sealing(SealingError::OtherKey { .. })))
    ));
}

#[test]
fn unsealed_keys_of_an_older_store_are_sealed_at_the_first_write() {
    let pkcs8 = Signer::generate().unwrap();
    let meta = serde_json::json!({
        "version": 1, "next_sync": 5, "next_task": 6, "clock": null,
        "signer_key": B64.encode(&pkcs8), "name_key": B64.encode([3; 32]),
    });
    let records = BTreeMap::from([("meta".to_owned(), meta.to_string().into_bytes())]);
    let mut state = State::load(Settings::default(), [0; 32], &records, START).unwrap();
    let keys = [Signer::from_pkcs8(&pkcs8).unwrap().public_key()];
    let effects = state.apply(Event::Tick, None, START);
    let written = |e: &Effect| matches!(e, Effect::WriteRecord(key) if key == "meta");
    assert!(effects.iter().any(written), "{effects:?}");
    let sealed = String::from_utf8(state.record("meta").unwrap()).unwrap();
    assert!(!sealed.contains(&B64.encode(&pkcs8)) && !sealed.contains(&B64.encode([3; 32])));
    let records = BTreeMap::from([("meta".to_owned(), sealed.into_bytes())]);
    let again = State::load(Settings::default(), [1; 32], &records, START).unwrap();
    for state in [state, again] {
        assert_eq!((state.ticket_keys(), state.name_key().0), (keys.to_vec(), [3; 32]));
    }
}

#[test]
fn a_restored_backup_gets_a_new_ticket_key_and_needs_no_sealing_key() {
    let (world, _) = scanning_with(SyncOptions::default());
    let mut records = world.records.clone();
    records.insert("meta".to_owned(), without_secret(&records["meta"]).unwrap());
    let restored = State::load(Settings::default(), [1; 32], &records, START).unwrap();
    assert_ne!(restored.ticket_keys(), world.state.ticket_keys());
    assert_eq!(restored.name_key(), world.state.name_key());
    let elsewhere = State::load(other_sealer(), [1; 32], &records, START).unwrap();
    assert_ne!(elsewhere.name_key(), world.state.name_key());
}
