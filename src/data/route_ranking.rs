//! The choice of the route of the next request: a pure function over the state of the routes.
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
const IDLE_ROUTE_MAX_SECONDS: f64 = 1.0;
/// … or no more than this times what the best one would.
const IDLE_ROUTE_MAX_RATIO: f64 = 4.0;
/// Where nothing is known, ends are this fast, in bytes per second.
const DEFAULT_BYTES_PER_SECOND: f64 = 125e6;
/// A request that needs less than this longer is no crawler.
const SLOW_MIN_SECONDS: f64 = 5.0;
/// … nor one that another route would not do so many times sooner.
const SLOW_MIN_RATIO: f64 = 8.0;

/// What one end of a route has to do.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EndLoad {
    /// Requests that are under way.
    pub requests: usize,
    /// What is left of them, in bytes.
    pub left_bytes: u64,
    /// How fast it is, in bytes per second, weighted; where that is known.
    pub bytes_per_second: Option<f64>,
}

/// How well the ends of a route belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteAffinity {
    /// The n-th of this host and the n-th of the peer, or the only ones that are in one network.
    Rail,
    /// In one network.
    SameNetwork,
    /// In different ones: they may not reach each other.
    OtherNetwork,
}

/// A route that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// It does not work at the moment.
    pub is_disabled: bool,
    /// The end at this host.
    pub local: EndLoad,
    /// The peer's end.
    pub remote: EndLoad,
    /// How they belong together.
    pub affinity: RouteAffinity,
    /// The count at its last choice.
    pub last_used: u64,
}

/// The indices of `routes`, the best for a request of `size` bytes first, disabled ones last.
pub fn rank_routes(routes: &[Candidate], size: u64) -> Vec<usize> {
    let ends: Vec<f64> = estimate_seconds(routes, size);
    let usable = routes.iter().zip(&ends).filter(|(route, _)| !route.is_disabled);
    let best = usable.map(|(_, end)| *end).fold(f64::INFINITY, f64::min);
    let idle = |i: usize| {
        let Candidate { local, remote, .. } = &routes[i];
        local.requests == 0
            && remote.requests == 0
            && ends[i] <= IDLE_ROUTE_MAX_SECONDS.max(best * IDLE_ROUTE_MAX_RATIO)
    };
    let mut places: Vec<usize> = (0..routes.len()).collect();
    places.sort_by(|a, b| {
        let key = |i: usize| {
            let Candidate { is_disabled, local, remote, last_used, .. } = &routes[i];
            ((*is_disabled, !idle(i)), (local.requests + remote.requests, *last_used))
        };
        let ((first, then), (other_first, other_then)) = (key(*a), key(*b));
        first.cmp(&other_first).then(ends[*a].total_cmp(&ends[*b])).then(then.cmp(&other_then))
    });
    places
}

/// When a request of `size` bytes would end on each of `routes`, in seconds. A detour must be worth it:
/// measured speeds are never quite the same.
fn estimate_seconds(routes: &[Candidate], size: u64) -> Vec<f64> {
    let loads = || routes.iter().flat_map(|route| [route.local, route.remote]);
    // What was never seen at work may be as fast as the fastest.
    let fastest = loads().filter_map(|load| load.bytes_per_second).fold(0.0, f64::max);
    let guess = if fastest > 0.0 { fastest } else { DEFAULT_BYTES_PER_SECOND };
    let end = |load: EndLoad| {
        let speed = load.bytes_per_second.unwrap_or(guess).max(1.0);
        (load.left_bytes.saturating_add(size)) as f64 / speed
    };
    let detour = |affinity| match affinity {
        RouteAffinity::Rail => 1.0,
        RouteAffinity::SameNetwork => 1.1,
        RouteAffinity::OtherNetwork => 1.5,
    };
    routes.iter().map(|r| end(r.local).max(end(r.remote)) * detour(r.affinity)).collect()
}

/// Whether a request of which `left` bytes are still to be sent at `speed` bytes per second is better
/// restarted (`size` bytes) on one of the `others`.
pub fn is_slow(left: u64, speed: f64, size: u64, others: &[Candidate]) -> bool {
    let usable: Vec<Candidate> =
        others.iter().filter(|route| !route.is_disabled).copied().collect();
    // A guess is no reason to give something up.
    let known = |route: &Candidate| {
        route.local.bytes_per_second.or(route.remote.bytes_per_second).is_some()
    };
    let ends = estimate_seconds(&usable, size).into_iter().zip(&usable);
    let best = ends.filter(|(_, r)| known(r)).map(|(end, _)| end).fold(f64::INFINITY, f64::min);
    let needs = left as f64 / speed.max(1.0);
    needs > SLOW_MIN_SECONDS && needs > best * SLOW_MIN_RATIO
}

/// How often a request is looked at for [`is_slow`].
pub const SLOW_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Whether a connection from `local` to `remote` is possible.
pub fn can_connect(local: Option<IpAddr>, remote: Option<IpAddr>) -> bool {
    let like =
        |a: IpAddr, b: IpAddr| a.is_ipv4() == b.is_ipv4() && a.is_loopback() == b.is_loopback();
    local.is_some_and(|local| remote.is_none_or(|remote| like(local, remote)))
}

/// Whether two addresses are likely in one network: its real size is not known here.
fn is_same_network(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        // Of every network there is the same one.
        (Some(a), Some(_)) if is_link_local(a) => false,
        (Some(IpAddr::V4(a)), Some(IpAddr::V4(b))) => a.octets()[..3] == b.octets()[..3],
        (Some(IpAddr::V6(a)), Some(IpAddr::V6(b))) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

/// How the `i`-th address of this host and the peer's `j`-th address belong together. Where neither is in a network with any
/// of the other side, their places decide.
pub fn affinity(
    local: &[Option<IpAddr>],
    remote: &[Option<IpAddr>],
    i: usize,
    j: usize,
) -> RouteAffinity {
    let rail = i % remote.len().max(1) == j % local.len().max(1);
    let near_ours = remote.iter().filter(|their| is_same_network(local[i], **their)).count();
    let near_theirs = local.iter().filter(|our| is_same_network(**our, remote[j])).count();
    match (is_same_network(local[i], remote[j]), rail) {
        (true, _) if near_ours == 1 && near_theirs == 1 => RouteAffinity::Rail,
        (true, true) => RouteAffinity::Rail,
        (true, false) => RouteAffinity::SameNetwork,
        (false, true) if near_ours == 0 && near_theirs == 0 => RouteAffinity::Rail,
        (false, _) => RouteAffinity::OtherNetwork,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(requests: usize, left: u64, speed: f64) -> EndLoad {
        EndLoad { requests, left_bytes: left, bytes_per_second: Some(speed) }
    }

    fn rail(speed: f64) -> Candidate {
        let end = load(0, 0, speed);
        Candidate {
            is_disabled: false,
            local: end,
            remote: end,
            affinity: RouteAffinity::Rail,
            last_used: 0,
        }
    }

    /// Keeps `streams` requests of `size` bytes under way on rails of `speeds` for a simulated time;
    /// returns what each rail moved. Rails share their speed evenly among their requests.
    fn simulate(speeds: &[f64], streams: usize, size: u64, requests: usize) -> (Vec<f64>, f64) {
        let mut under_way: Vec<Vec<f64>> = vec![Vec::new(); speeds.len()];
        let mut progress = vec![0.0; speeds.len()];
        let (mut started, mut clock, mut counts) = (0, 0.0, vec![0; speeds.len()]);
        loop {
            while started < requests && under_way.iter().map(Vec::len).sum::<usize>() < streams {
                let routes: Vec<Candidate> = under_way
                    .iter()
                    .zip(speeds)
                    .zip(&counts)
                    .map(|((left, speed), last_used)| {
                        let sum = left.iter().sum::<f64>() as u64;
                        let end = load(left.len(), sum, *speed);
                        Candidate { local: end, remote: end, last_used: *last_used, ..rail(*speed) }
                    })
                    .collect();
                let chosen = rank_routes(&routes, size)[0];
                under_way[chosen].push(size as f64);
                started += 1;
                counts[chosen] = started as u64;
            }
            let next = under_way
                .iter()
                .zip(speeds)
                .flat_map(|(left, speed)| left.iter().map(move |l| l * left.len() as f64 / speed));
            let step = next.fold(f64::INFINITY, f64::min);
            if !step.is_finite() {
                return (progress, clock);
            }
            clock += step;
            for (i, left) in under_way.iter_mut().enumerate() {
                let each = speeds[i] * step / left.len().max(1) as f64;
                left.iter_mut().for_each(|l| *l -= each);
                progress[i] += each * left.len() as f64;
                left.retain(|l| *l > 0.5);
            }
        }
    }

    #[test]
    fn an_idle_rail_is_ranked_first_unless_it_would_delay_the_end() {
        let busy = |speed, requests, left| {
            let end = load(requests, left, speed);
            Candidate { local: end, remote: end, ..rail(speed) }
        };
        // 1 Gb/s idle beside 10 Gb/s at work.
        let mixed = [busy(1250e6, 2, 32 << 20), rail(125e6)];
        assert_eq!(rank_routes(&mixed, 16 << 20), [1, 0]);
        // At 10 Mb/s the same piece would take 13 seconds.
        let slow = [busy(1250e6, 2, 32 << 20), rail(1.25e6)];
        assert_eq!(rank_routes(&slow, 16 << 20), [0, 1]);
        // Small requests take what is free.
        assert_eq!(rank_routes(&slow, 1000), [1, 0]);
    }

    #[test]
    fn different_numbers_of_interfaces_are_paired_in_turn() {
        let strangers = |net: u8, count: u8| -> Vec<Option<IpAddr>> {
            (0..count).map(|n| Some(IpAddr::from([10, net, n, 1]))).collect()
        };
        let rails = |local: &[Option<IpAddr>], remote: &[Option<IpAddr>]| -> Vec<(usize, usize)> {
            let pairs = (0..local.len()).flat_map(|i| (0..remote.len()).map(move |j| (i, j)));
            pairs.filter(|(i, j)| affinity(local, remote, *i, *j) == RouteAffinity::Rail).collect()
        };
        let (two, four) = (strangers(1, 2), strangers(2, 4));
        assert_eq!(rails(&two, &four), [(0, 0), (0, 2), (1, 1), (1, 3)]);
        assert_eq!(rails(&four, &two), [(0, 0), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(rails(&two, &two), [(0, 0), (1, 1)]);
    }

    #[test]
    fn the_only_two_addresses_of_a_network_are_a_rail_in_any_order() {
        let at = |all: &[[u8; 2]]| -> Vec<Option<IpAddr>> {
            all.iter().map(|[net, host]| Some(IpAddr::from([10, 0, *net, *host]))).collect()
        };
        let (local, remote) = (at(&[[0, 1], [1, 1]]), at(&[[1, 2], [0, 2]]));
        let kins = |i| [affinity(&local, &remote, i, 0), affinity(&local, &remote, i, 1)];
        assert_eq!(
            [kins(0), kins(1)],
            [
                [RouteAffinity::OtherNetwork, RouteAffinity::Rail],
                [RouteAffinity::Rail, RouteAffinity::OtherNetwork]
            ]
        );
        // Among several of one network, their places decide.
        let (local, remote) = (at(&[[0, 1], [0, 2]]), at(&[[0, 3], [0, 4]]));
        let kins = |i| [affinity(&local, &remote, i, 0), affinity(&local, &remote, i, 1)];
        assert_eq!(
            [kins(0), kins(1)],
            [
                [RouteAffinity::Rail, RouteAffinity::SameNetwork],
                [RouteAffinity::SameNetwork, RouteAffinity::Rail]
            ]
        );
    }

    #[test]
    fn rails_of_mixed_speeds_are_used_in_proportion_and_end_together() {
        for speeds in [vec![1e9, 1e9], vec![1e9, 1e9, 2e9, 4e9], vec![1e9, 10e9]] {
            let streams = 2 * speeds.len();
            let (progress, clock) = simulate(&speeds, streams, 16 << 20, 400);
            let sum: f64 = speeds.iter().sum();
            let all: f64 = progress.iter().sum();
            assert!(all / clock > 0.93 * sum, "{speeds:?}: {progress:?} in {clock}");
            for (progress, speed) in progress.iter().zip(&speeds) {
                let share = progress / all / (speed / sum);
                assert!((0.85..1.15).contains(&share), "{speeds:?}: {progress}");
            }
        }
    }

    #[test]
    fn a_request_is_slow_when_restarting_it_on_another_route_would_end_much_sooner() {
        let others = [rail(100e6)];
        assert!(is_slow(60 << 20, 100e3, 64 << 20, &others));
        assert!(!is_slow(60 << 20, 30e6, 64 << 20, &others), "it is soon done");
        assert!(!is_slow(1 << 30, 20e6, 1 << 30, &others), "the other is not that much faster");
        assert!(!is_slow(60 << 20, 100e3, 64 << 20, &[]));
        assert!(!is_slow(
            60 << 20,
            100e3,
            64 << 20,
            &[Candidate { is_disabled: true, ..rail(1e9) }]
        ));
        let unknown = EndLoad::default();
        let guess = Candidate { local: unknown, remote: unknown, ..rail(1.0) };
        assert!(!is_slow(60 << 20, 100e3, 64 << 20, &[guess]), "nothing is known of the other");
    }

    fn any_load() -> impl Strategy<Value = EndLoad> {
        let speed = proptest::option::of(0.0..1e11f64);
        (0usize..5, 0u64..1 << 40, speed).prop_map(|(requests, left, speed)| EndLoad {
            requests,
            left_bytes: left,
            bytes_per_second: speed,
        })
    }

    fn any_route() -> impl Strategy<Value = Candidate> {
        let affinity = prop_oneof![
            Just(RouteAffinity::Rail),
            Just(RouteAffinity::SameNetwork),
            Just(RouteAffinity::OtherNetwork)
        ];
        (any::<bool>(), any_load(), any_load(), affinity, 0u64..9).prop_map(
            |(is_disabled, local, remote, affinity, last_used)| Candidate {
                is_disabled,
                local,
                remote,
                affinity,
                last_used,
            },
        )
    }

    proptest! {
        #[test]
        fn every_route_is_ranked_once_and_disabled_routes_come_last(
            routes in proptest::collection::vec(any_route(), 0..12), size: u64
        ) {
            let ranked = rank_routes(&routes, size);
            let mut places = ranked.clone();
            places.sort_unstable();
            prop_assert_eq!(places, (0..routes.len()).collect::<Vec<_>>());
            let is_disabled: Vec<bool> = ranked.iter().map(|i| routes[*i].is_disabled).collect();
            prop_assert!(is_disabled.is_sorted(), "{:?}", is_disabled);
        }

        #[test]
        fn every_rail_is_used_and_the_total_speed_is_nearly_the_sum(
            speeds in proptest::collection::vec(1e8..1e9f64, 2..6)
        ) {
            let (progress, clock) = simulate(&speeds, 2 * speeds.len(), 8 << 20, 60 * speeds.len());
            prop_assert!(progress.iter().all(|m| *m > 0.0));
            let sum: f64 = speeds.iter().sum();
            prop_assert!(progress.iter().sum::<f64>() / clock > 0.85 * sum);
        }
    }
}
