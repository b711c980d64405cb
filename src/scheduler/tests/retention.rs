//! When ended syncs are dropped.

use super::*;

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// A world with a cancelled sync and a retention of two hours.
fn ended() -> World {
    let mut world = World::new();
    world.submit("demo", "/src/a", "/dst/b");
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    world.state.settings.retention_ms = 2 * HOUR_MS;
    world
}

fn run_masters(world: &mut World, ms: u64) {
    for _ in 0..ms / 60_000 {
        world.now.mono_ms += 60_000;
        world.now.wall_ms += 60_000;
        world.apply(Event::Tick);
    }
}

fn restart(world: &mut World) {
    let retention_ms = world.state.settings.retention_ms;
    world.restart();
    world.state.settings.retention_ms = retention_ms;
}

fn has_sync(world: &World) -> bool {
    world.state.syncs.find(&"demo".parse().unwrap()).is_some()
}

#[test]
fn an_ended_sync_is_dropped_after_the_retention_in_master_uptime() {
    let mut world = ended();
    run_masters(&mut world, HOUR_MS);
    restart(&mut world);
    // No master ran for three days: that time does not count.
    world.now.mono_ms += 7 * HOUR_MS;
    world.now.wall_ms += 3 * DAY_MS;
    restart(&mut world);
    run_masters(&mut world, HOUR_MS - 60_000);
    assert!(has_sync(&world));
    run_masters(&mut world, 12 * 60_000);
    assert!(!has_sync(&world), "and not much longer");
}

#[test]
fn after_a_jump_of_the_wall_clock_nothing_is_dropped_until_it_is_plausible_or_confirmed() {
    for days in [400, 20, -1, -400] {
        for restarts in [false, true] {
            for confirmed in [false, true] {
                let mut world = ended();
                run_masters(&mut world, HOUR_MS);
                world.now.wall_ms += days * DAY_MS;
                if restarts {
                    restart(&mut world);
                }
                run_masters(&mut world, 60_000);
                assert!(has_sync(&world), "{days} days, restarted: {restarts}");
                run_masters(&mut world, 4 * HOUR_MS);
                assert!(has_sync(&world), "old enough, but the clock is not plausible");
                if confirmed {
                    let reply = world.apply(Event::ConfirmClock);
                    let Some(Reply::ClockConfirmed(confirmed)) = reply else { panic!("{reply:?}") };
                    let off = (confirmed.ahead_seconds - days * DAY_MS / 1000).abs();
                    assert!(off < 1_000, "{confirmed:?}");
                    restart(&mut world);
                } else {
                    world.now.wall_ms -= days * DAY_MS;
                }
                run_masters(&mut world, 60_000);
                assert!(!has_sync(&world), "{days} days, confirmed: {confirmed}");
            }
        }
    }
}

#[test]
fn a_clock_that_is_confirmed_makes_no_record_older() {
    let mut world = ended();
    world.now.wall_ms += 400 * DAY_MS;
    world.apply(Event::Tick);
    world.apply(Event::ConfirmClock);
    run_masters(&mut world, HOUR_MS);
    assert!(has_sync(&world));
}

#[test]
fn the_number_of_syncs_dropped_in_an_hour_is_bounded_and_the_oldest_go_first() {
    let mut world = ended();
    for n in 0..149 {
        let id = format!("s{n}");
        world.submit(&id, "/src/a", "/dst/b");
        world.apply(Event::CancelSync(id.parse().unwrap()));
    }
    assert_eq!(world.state.syncs.len(), 150);
    run_masters(&mut world, 2 * HOUR_MS + 120_000);
    assert_eq!(world.state.syncs.len(), 50, "a hundred");
    assert!(!has_sync(&world), "the oldest of them");
    // A restarted master does not count from zero.
    run_masters(&mut world, 600_000);
    restart(&mut world);
    run_masters(&mut world, 600_000);
    assert_eq!(world.state.syncs.len(), 50);
    run_masters(&mut world, HOUR_MS);
    assert_eq!(world.state.syncs.len(), 0);
}
