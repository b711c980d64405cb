//! When ended syncs are dropped.

use super::*;

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// A world with a sync that was cancelled, and a retention of two hours.
fn ended() -> World {
    let mut world = World::new();
    world.submit("demo", "/src/a", "/dst/b");
    world.play(Event::Cancel("demo".parse().unwrap()));
    world.state.settings.retention_ms = 2 * HOUR_MS;
    world
}

fn live(world: &mut World, ms: u64) {
    for _ in 0..ms / 60_000 {
        world.now.mono_ms += 60_000;
        world.now.wall_ms += 60_000;
        world.play(Event::Tick);
    }
}

fn restart(world: &mut World) {
    let retention_ms = world.state.settings.retention_ms;
    world.restart();
    world.state.settings.retention_ms = retention_ms;
}

fn is_known(world: &World) -> bool {
    world.state.by_id.contains_key(&"demo".parse().unwrap())
}

#[test]
fn an_ended_sync_is_dropped_when_masters_have_lived_through_the_retention() {
    let mut world = ended();
    live(&mut world, HOUR_MS);
    restart(&mut world);
    // No master ran for three days: that time does not count.
    world.now.mono_ms += 7 * HOUR_MS;
    world.now.wall_ms += 3 * DAY_MS;
    restart(&mut world);
    live(&mut world, HOUR_MS - 60_000);
    assert!(is_known(&world));
    live(&mut world, 12 * 60_000);
    assert!(!is_known(&world), "and not much longer");
}

#[test]
fn a_wall_clock_that_jumps_drops_nothing_until_it_is_right_again_or_confirmed() {
    for days in [400, 20, -1, -400] {
        for restarts in [false, true] {
            for confirmed in [false, true] {
                let mut world = ended();
                live(&mut world, HOUR_MS);
                world.now.wall_ms += days * DAY_MS;
                if restarts {
                    restart(&mut world);
                }
                live(&mut world, 60_000);
                assert!(is_known(&world), "{days} days, restarted: {restarts}");
                live(&mut world, 4 * HOUR_MS);
                assert!(is_known(&world), "old enough, but the clock is not plausible");
                if confirmed {
                    let reply = world.play(Event::ConfirmClock);
                    let Some(Reply::ClockConfirmed(told)) = reply else { panic!("{reply:?}") };
                    let off = (told.ahead_seconds - days * DAY_MS / 1000).abs();
                    assert!(off < 1_000, "{told:?}");
                    restart(&mut world);
                } else {
                    world.now.wall_ms -= days * DAY_MS;
                }
                live(&mut world, 60_000);
                assert!(!is_known(&world), "{days} days, confirmed: {confirmed}");
            }
        }
    }
}

#[test]
fn a_clock_that_is_confirmed_makes_no_record_older() {
    let mut world = ended();
    world.now.wall_ms += 400 * DAY_MS;
    world.play(Event::Tick);
    world.play(Event::ConfirmClock);
    live(&mut world, HOUR_MS);
    assert!(is_known(&world));
}

#[test]
fn so_many_ended_syncs_are_dropped_in_an_hour_the_oldest_first() {
    let mut world = ended();
    for n in 0..149 {
        let id = format!("s{n}");
        world.submit(&id, "/src/a", "/dst/b");
        world.play(Event::Cancel(id.parse().unwrap()));
    }
    assert_eq!(world.state.syncs.len(), 150);
    live(&mut world, 2 * HOUR_MS + 120_000);
    assert_eq!(world.state.syncs.len(), 50, "a hundred");
    assert!(!is_known(&world), "the oldest of them");
    // Nor does a master that is started again begin to count anew.
    live(&mut world, 600_000);
    restart(&mut world);
    live(&mut world, 600_000);
    assert_eq!(world.state.syncs.len(), 50);
    live(&mut world, HOUR_MS);
    assert_eq!(world.state.syncs.len(), 0);
}
