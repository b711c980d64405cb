//! Which route the next request takes: a pure function over the state of the routes.
//!
//! Routes share their ends: two requests that leave through one NIC share its speed, wherever they go.
//! So a request is ranked by when it would end: what is under way at the busier end, and the request
//! itself, by what that end moves. A pair of ends at which nothing is under way goes first all the
//! same, though faster ones might end the request sooner: that is how a NIC of 1 Gb/s beside one of 10
//! adds its tenth. Only where it would hold up the end of everything does it wait.

use crate::util::iface::is_link_local;
use std::net::IpAddr;
use std::time::Duration;

/// An idle pair that would need no more than this is used.
const SOON: f64 = 1.0;
/// … or no more than this times what the best one would.
const WORTH: f64 = 4.0;
/// Where nothing is known, ends are this fast, in bytes per second.
const GUESS: f64 = 125e6;
/// A request that needs less than this longer is no crawler.
const LONG: f64 = 5.0;
/// … nor one that another route would not do so many times sooner.
const CRAWL: f64 = 8.0;

/// What one end of a route has to do.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Requests that are under way.
    pub requests: usize,
    /// What is left of them, in bytes.
    pub left: u64,
    /// How fast it is, in bytes per second, weighted; where that is known.
    pub speed: Option<f64>,
}

/// How well the ends of a route belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kin {
    /// The n-th of ours and the n-th of theirs, or the only ones that are in one network.
    Rail,
    /// In one network.
    Near,
    /// In different ones: they may not reach each other.
    Crossed,
}

/// A route that may be taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// It does not work at the moment.
    pub aside: bool,
    /// Our end.
    pub ours: Load,
    /// The peer's end.
    pub theirs: Load,
    /// How they belong together.
    pub kin: Kin,
    /// When it was taken last, as a count.
    pub taken: u64,
}

/// The places of `routes`, the best for a request of `size` bytes first; those set aside last.
pub fn rank(routes: &[Candidate], size: u64) -> Vec<usize> {
    let ends: Vec<f64> = finishes(routes, size);
    let usable = routes.iter().zip(&ends).filter(|(route, _)| !route.aside);
    let best = usable.map(|(_, end)| *end).fold(f64::INFINITY, f64::min);
    let idle = |i: usize| {
        let Candidate { ours, theirs, .. } = &routes[i];
        ours.requests == 0 && theirs.requests == 0 && ends[i] <= SOON.max(best * WORTH)
    };
    let mut places: Vec<usize> = (0..routes.len()).collect();
    places.sort_by(|a, b| {
        let key = |i: usize| {
            let Candidate { aside, ours, theirs, taken, .. } = &routes[i];
            ((*aside, !idle(i)), (ours.requests + theirs.requests, *taken))
        };
        let ((first, then), (other_first, other_then)) = (key(*a), key(*b));
        first.cmp(&other_first).then(ends[*a].total_cmp(&ends[*b])).then(then.cmp(&other_then))
    });
    places
}

/// When a request of `size` bytes would end on each of `routes`, in seconds. A detour must be worth it:
/// measured speeds are never quite the same.
fn finishes(routes: &[Candidate], size: u64) -> Vec<f64> {
    let loads = || routes.iter().flat_map(|route| [route.ours, route.theirs]);
    // What was never seen at work may be as fast as the fastest.
    let fastest = loads().filter_map(|load| load.speed).fold(0.0, f64::max);
    let guess = if fastest > 0.0 { fastest } else { GUESS };
    let end = |load: Load| {
        let speed = load.speed.unwrap_or(guess).max(1.0);
        (load.left.saturating_add(size)) as f64 / speed
    };
    let detour = |kin| match kin {
        Kin::Rail => 1.0,
        Kin::Near => 1.1,
        Kin::Crossed => 1.5,
    };
    routes.iter().map(|r| end(r.ours).max(end(r.theirs)) * detour(r.kin)).collect()
}

/// Whether a request of which `left` bytes are still to be sent at `speed` bytes per second is better
/// begun anew (`size` bytes) on one of the `others`.
pub fn crawls(left: u64, speed: f64, size: u64, others: &[Candidate]) -> bool {
    let usable: Vec<Candidate> = others.iter().filter(|route| !route.aside).copied().collect();
    // A guess is no reason to give something up.
    let known = |route: &Candidate| route.ours.speed.or(route.theirs.speed).is_some();
    let ends = finishes(&usable, size).into_iter().zip(&usable);
    let best = ends.filter(|(_, r)| known(r)).map(|(end, _)| end).fold(f64::INFINITY, f64::min);
    let needs = left as f64 / speed.max(1.0);
    needs > LONG && needs > best * CRAWL
}

/// How often a request is looked at for [`crawls`].
pub const CRAWL_LOOK: Duration = Duration::from_secs(2);

/// Whether a connection from `ours` to `theirs` can be.
pub fn fits(ours: Option<IpAddr>, theirs: Option<IpAddr>) -> bool {
    let like =
        |a: IpAddr, b: IpAddr| a.is_ipv4() == b.is_ipv4() && a.is_loopback() == b.is_loopback();
    ours.is_some_and(|ours| theirs.is_none_or(|theirs| like(ours, theirs)))
}

/// Whether two addresses are likely in one network: its real size is not known here.
fn same_network(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        // Of every network there is the same one.
        (Some(a), Some(_)) if is_link_local(a) => false,
        (Some(IpAddr::V4(a)), Some(IpAddr::V4(b))) => a.octets()[..3] == b.octets()[..3],
        (Some(IpAddr::V6(a)), Some(IpAddr::V6(b))) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

/// How our `i`-th and the peer's `j`-th address belong together. Where neither is in a network with any
/// of the other side, their places decide.
pub fn kin(ours: &[Option<IpAddr>], theirs: &[Option<IpAddr>], i: usize, j: usize) -> Kin {
    let rail = i % theirs.len().max(1) == j % ours.len().max(1);
    let near_ours = theirs.iter().filter(|their| same_network(ours[i], **their)).count();
    let near_theirs = ours.iter().filter(|our| same_network(**our, theirs[j])).count();
    match (same_network(ours[i], theirs[j]), rail) {
        (true, _) if near_ours == 1 && near_theirs == 1 => Kin::Rail,
        (true, true) => Kin::Rail,
        (true, false) => Kin::Near,
        (false, true) if near_ours == 0 && near_theirs == 0 => Kin::Rail,
        (false, _) => Kin::Crossed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(requests: usize, left: u64, speed: f64) -> Load {
        Load { requests, left, speed: Some(speed) }
    }

    fn rail(speed: f64) -> Candidate {
        let end = load(0, 0, speed);
        Candidate { aside: false, ours: end, theirs: end, kin: Kin::Rail, taken: 0 }
    }

    /// Keeps `streams` requests of `size` bytes under way on rails of `speeds` for a simulated time;
    /// returns what each rail moved. Rails share their speed evenly among their requests.
    fn simulate(speeds: &[f64], streams: usize, size: u64, requests: usize) -> (Vec<f64>, f64) {
        let mut under_way: Vec<Vec<f64>> = vec![Vec::new(); speeds.len()];
        let mut moved = vec![0.0; speeds.len()];
        let (mut begun, mut clock, mut counts) = (0, 0.0, vec![0; speeds.len()]);
        loop {
            while begun < requests && under_way.iter().map(Vec::len).sum::<usize>() < streams {
                let routes: Vec<Candidate> = under_way
                    .iter()
                    .zip(speeds)
                    .zip(&counts)
                    .map(|((left, speed), taken)| {
                        let sum = left.iter().sum::<f64>() as u64;
                        let end = load(left.len(), sum, *speed);
                        Candidate { ours: end, theirs: end, taken: *taken, ..rail(*speed) }
                    })
                    .collect();
                let chosen = rank(&routes, size)[0];
                under_way[chosen].push(size as f64);
                begun += 1;
                counts[chosen] = begun as u64;
            }
            let next = under_way
                .iter()
                .zip(speeds)
                .flat_map(|(left, speed)| left.iter().map(move |l| l * left.len() as f64 / speed));
            let step = next.fold(f64::INFINITY, f64::min);
            if !step.is_finite() {
                return (moved, clock);
            }
            clock += step;
            for (i, left) in under_way.iter_mut().enumerate() {
                let each = speeds[i] * step / left.len().max(1) as f64;
                left.iter_mut().for_each(|l| *l -= each);
                moved[i] += each * left.len() as f64;
                left.retain(|l| *l > 0.5);
            }
        }
    }

    #[test]
    fn an_idle_rail_goes_first_unless_it_would_hold_up_the_end() {
        let busy = |speed, requests, left| {
            let end = load(requests, left, speed);
            Candidate { ours: end, theirs: end, ..rail(speed) }
        };
        // 1 Gb/s idle beside 10 Gb/s at work.
        let mixed = [busy(1250e6, 2, 32 << 20), rail(125e6)];
        assert_eq!(rank(&mixed, 16 << 20), [1, 0]);
        // At 10 Mb/s the same piece would take 13 seconds.
        let slow = [busy(1250e6, 2, 32 << 20), rail(1.25e6)];
        assert_eq!(rank(&slow, 16 << 20), [0, 1]);
        // Small requests take what is free.
        assert_eq!(rank(&slow, 1000), [1, 0]);
    }

    #[test]
    fn unlike_numbers_of_interfaces_belong_together_in_turn() {
        let strangers = |net: u8, count: u8| -> Vec<Option<IpAddr>> {
            (0..count).map(|n| Some(IpAddr::from([10, net, n, 1]))).collect()
        };
        let rails = |ours: &[Option<IpAddr>], theirs: &[Option<IpAddr>]| -> Vec<(usize, usize)> {
            let pairs = (0..ours.len()).flat_map(|i| (0..theirs.len()).map(move |j| (i, j)));
            pairs.filter(|(i, j)| kin(ours, theirs, *i, *j) == Kin::Rail).collect()
        };
        let (two, four) = (strangers(1, 2), strangers(2, 4));
        assert_eq!(rails(&two, &four), [(0, 0), (0, 2), (1, 1), (1, 3)]);
        assert_eq!(rails(&four, &two), [(0, 0), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(rails(&two, &two), [(0, 0), (1, 1)]);
    }

    #[test]
    fn the_only_two_of_a_network_are_a_rail_wherever_they_stand() {
        let at = |all: &[[u8; 2]]| -> Vec<Option<IpAddr>> {
            all.iter().map(|[net, host]| Some(IpAddr::from([10, 0, *net, *host]))).collect()
        };
        let (ours, theirs) = (at(&[[0, 1], [1, 1]]), at(&[[1, 2], [0, 2]]));
        let kins = |i| [kin(&ours, &theirs, i, 0), kin(&ours, &theirs, i, 1)];
        assert_eq!([kins(0), kins(1)], [[Kin::Crossed, Kin::Rail], [Kin::Rail, Kin::Crossed]]);
        // Among several of one network, their places decide.
        let (ours, theirs) = (at(&[[0, 1], [0, 2]]), at(&[[0, 3], [0, 4]]));
        let kins = |i| [kin(&ours, &theirs, i, 0), kin(&ours, &theirs, i, 1)];
        assert_eq!([kins(0), kins(1)], [[Kin::Rail, Kin::Near], [Kin::Near, Kin::Rail]]);
    }

    #[test]
    fn rails_of_mixed_speeds_are_used_in_proportion_and_end_together() {
        for speeds in [vec![1e9, 1e9], vec![1e9, 1e9, 2e9, 4e9], vec![1e9, 10e9]] {
            let streams = 2 * speeds.len();
            let (moved, clock) = simulate(&speeds, streams, 16 << 20, 400);
            let sum: f64 = speeds.iter().sum();
            let all: f64 = moved.iter().sum();
            assert!(all / clock > 0.93 * sum, "{speeds:?}: {moved:?} in {clock}");
            for (moved, speed) in moved.iter().zip(&speeds) {
                let share = moved / all / (speed / sum);
                assert!((0.85..1.15).contains(&share), "{speeds:?}: {moved}");
            }
        }
    }

    #[test]
    fn a_request_crawls_when_another_route_would_do_it_anew_much_sooner() {
        let others = [rail(100e6)];
        assert!(crawls(60 << 20, 100e3, 64 << 20, &others));
        assert!(!crawls(60 << 20, 30e6, 64 << 20, &others), "it is soon done");
        assert!(!crawls(1 << 30, 20e6, 1 << 30, &others), "the other is not that much faster");
        assert!(!crawls(60 << 20, 100e3, 64 << 20, &[]));
        assert!(!crawls(60 << 20, 100e3, 64 << 20, &[Candidate { aside: true, ..rail(1e9) }]));
        let unknown = Load::default();
        let guess = Candidate { ours: unknown, theirs: unknown, ..rail(1.0) };
        assert!(!crawls(60 << 20, 100e3, 64 << 20, &[guess]), "nothing is known of the other");
    }

    fn any_load() -> impl Strategy<Value = Load> {
        let speed = proptest::option::of(0.0..1e11f64);
        (0usize..5, 0u64..1 << 40, speed).prop_map(|(requests, left, speed)| Load {
            requests,
            left,
            speed,
        })
    }

    fn any_route() -> impl Strategy<Value = Candidate> {
        let kin = prop_oneof![Just(Kin::Rail), Just(Kin::Near), Just(Kin::Crossed)];
        (any::<bool>(), any_load(), any_load(), kin, 0u64..9).prop_map(
            |(aside, ours, theirs, kin, taken)| Candidate { aside, ours, theirs, kin, taken },
        )
    }

    proptest! {
        #[test]
        fn every_route_is_ranked_once_and_those_aside_come_last(
            routes in proptest::collection::vec(any_route(), 0..12), size: u64
        ) {
            let ranked = rank(&routes, size);
            let mut places = ranked.clone();
            places.sort_unstable();
            prop_assert_eq!(places, (0..routes.len()).collect::<Vec<_>>());
            let aside: Vec<bool> = ranked.iter().map(|i| routes[*i].aside).collect();
            prop_assert!(aside.is_sorted(), "{:?}", aside);
        }

        #[test]
        fn no_rail_starves_and_the_whole_is_nearly_as_fast_as_the_sum(
            speeds in proptest::collection::vec(1e8..1e9f64, 2..6)
        ) {
            let (moved, clock) = simulate(&speeds, 2 * speeds.len(), 8 << 20, 60 * speeds.len());
            prop_assert!(moved.iter().all(|m| *m > 0.0));
            let sum: f64 = speeds.iter().sum();
            prop_assert!(moved.iter().sum::<f64>() / clock > 0.85 * sum);
        }
    }
}
