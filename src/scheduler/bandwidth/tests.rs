use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn worker(n: usize) -> WorkerId {
    format!("w{n}").parse().unwrap()
}

fn uncapped(wants: u64) -> Demand {
    Demand { desired: wants, cap: u64::MAX }
}

#[test]
fn small_demands_are_met_and_the_others_split_the_rest_equally() {
    assert_eq!(
        split_fairly(90, &[uncapped(u64::MAX), uncapped(10), uncapped(u64::MAX)]),
        [40, 10, 40]
    );
    assert_eq!(split_fairly(10, &[uncapped(u64::MAX), uncapped(10), uncapped(8)]), [4, 3, 3]);
    let capped = Demand { desired: u64::MAX, cap: 20 };
    assert_eq!(split_fairly(90, &[capped, uncapped(u64::MAX)]), [20, 70]);
    // What exceeds the demands is split too, but within the caps.
    assert_eq!(split_fairly(90, &[uncapped(10), uncapped(20)]), [40, 50]);
    assert_eq!(split_fairly(90, &[Demand { desired: 5, cap: 20 }]), [20]);
    assert_eq!(split_fairly(90, &[]), [0; 0]);
}

proptest! {
    #[test]
    fn a_split_is_within_the_limit_uses_it_up_and_is_fair(
        total in prop_oneof![0u64..1000, 0u64..(1 << 50), Just(u64::MAX)],
        claims in proptest::collection::vec(
            (prop_oneof![0u64..1000, 0u64..(1 << 45), Just(u64::MAX)],
             prop_oneof![0u64..1000, 0u64..(1 << 45), Just(u64::MAX)]), 0..20),
    ) {
        let claims: Vec<Demand> =
            claims.into_iter().map(|(wants, most)| Demand { desired: wants, cap: most }).collect();
        let shares = split_fairly(total, &claims);
        let sum: u128 = shares.iter().map(|s| u128::from(*s)).sum();
        let most: u128 = claims.iter().map(|c| u128::from(c.cap)).sum();
        prop_assert_eq!(sum, u128::from(total).min(most), "all of it is handed out, and no more");
        for (claim, share) in claims.iter().zip(&shares) {
            prop_assert!(*share <= claim.cap);
            let content = *share >= claim.desired.min(claim.cap);
            for (other, theirs) in claims.iter().zip(&shares) {
                // A demand that is not met gets no less than any share above its demand, and no
                // less than a larger unmet one (up to the byte that cannot be divided).
                prop_assert!(content || *theirs <= share + 1, "{claim:?} {share}, {other:?} {theirs}");
            }
        }
    }
}

/// Workers that send what they need, or what they may.
struct Play {
    shares: BandwidthAllocator,
    now_ms: u64,
    sync: SyncNo,
    own: Option<u64>,
    /// Need of each worker in bytes per second, its granted share, and its reported usage.
    workers: BTreeMap<usize, (u64, u64, BandwidthUsage)>,
}

impl Play {
    fn new(own: u64) -> Self {
        let workers = BTreeMap::new();
        Play {
            shares: BandwidthAllocator::default(),
            now_ms: 1000,
            sync: SyncNo(1),
            own: Some(own),
            workers,
        }
    }

    fn join(&mut self, n: usize, peers: u64, needs: u64) {
        self.shares.register(self.sync, self.own, &worker(n), peers, self.now_ms);
        let granted = self.shares.granted_to(self.sync, &worker(n)).unwrap();
        self.workers.insert(n, (needs, granted, BandwidthUsage::default()));
    }

    /// A second, in which each beats once.
    fn run_second(&mut self) {
        let step = 1000 / (self.workers.len() as u64).max(1);
        let busy: BTreeSet<_> = self.workers.keys().map(|n| (self.sync, worker(*n))).collect();
        for (n, (needs, granted, usage)) in &mut self.workers {
            self.now_ms += step;
            usage.sent_bytes += (*needs).min(*granted);
            usage.throttled_ms += if needs > granted { 990 } else { 10 };
            self.shares.set_own_limit(self.sync, self.own);
            self.shares.report_usage(self.sync, &worker(*n), *usage, self.now_ms);
            *granted = self.shares.grant(self.sync, &worker(*n), self.now_ms).unwrap();
        }
        self.shares.expire_idle_shares(&busy, self.now_ms);
    }

    fn granted_shares(&self) -> Vec<u64> {
        self.workers.values().map(|(_, granted, _)| *granted).collect()
    }

    fn sent_bytes(&self) -> u64 {
        self.workers.values().map(|(needs, granted, _)| *needs.min(granted)).sum()
    }
}

#[test]
fn three_unlimited_demands_have_a_third_each_from_the_start() {
    let mut play = Play::new(30 * MIB);
    (0..3).for_each(|n| play.join(n, 3, u64::MAX));
    assert_eq!(play.granted_shares(), [10 * MIB; 3]);
    (0..5).for_each(|_| play.run_second());
    assert_eq!(play.granted_shares(), [10 * MIB; 3]);
}

#[test]
fn unused_share_goes_to_workers_with_demand() {
    let mut play = Play::new(100 * MIB);
    for (n, needs) in [40 * MIB, u64::MAX, 0].into_iter().enumerate() {
        play.join(n, 3, needs);
    }
    (0..4).for_each(|_| play.run_second());
    let granted = play.granted_shares();
    assert!(granted[0] >= 40 * MIB && play.sent_bytes() >= 96 * MIB, "{granted:?}");
    assert!(granted[2] > 0 && granted[2] < MIB, "{granted:?}");
    // Now it needs something after all.
    play.workers.get_mut(&2).unwrap().0 = u64::MAX;
    (0..4).for_each(|_| play.run_second());
    let granted = play.granted_shares();
    assert!(granted.iter().all(|granted| *granted >= 33 * MIB), "{granted:?}");
}

#[test]
fn a_late_worker_gets_a_share_and_a_removed_one_returns_it() {
    let mut play = Play::new(64 * MIB);
    play.join(0, 1, u64::MAX);
    assert_eq!(play.granted_shares(), [64 * MIB]);
    play.run_second();
    play.join(1, 2, u64::MAX);
    assert_eq!(play.granted_shares(), [64 * MIB, 2 * MIB], "a foot in the door");
    play.run_second();
    play.run_second();
    assert_eq!(play.granted_shares(), [32 * MIB; 2]);
    play.workers.remove(&0);
    (0..5).for_each(|_| play.run_second());
    assert_eq!((play.granted_shares(), play.shares.share_count()), (vec![64 * MIB], 1));
}

#[test]
fn a_changed_limit_arrives_with_the_next_heartbeat() {
    let mut play = Play::new(80 * MIB);
    (0..4).for_each(|n| play.join(n, 4, u64::MAX));
    play.run_second();
    play.own = Some(8 * MIB);
    play.run_second();
    assert_eq!(play.granted_shares(), [2 * MIB; 4]);
    play.own = Some(40 * MIB);
    play.run_second();
    assert_eq!(play.granted_shares(), [10 * MIB; 4]);
    assert!(!play.shares.set_own_limit(play.sync, None));
    assert_eq!(play.shares.grant(play.sync, &worker(0), play.now_ms), None);
}

#[test]
fn the_limit_of_all_is_split_over_syncs_before_it_is_over_workers() {
    let mut shares = BandwidthAllocator::default();
    shares.set_total_limit(Some(90 * MIB));
    let (one, two) = (SyncNo(1), SyncNo(2));
    for n in 0..3 {
        shares.register(one, None, &worker(n), 3, 1000);
    }
    // Its own limit is below what would be its part.
    shares.register(two, Some(10 * MIB), &worker(0), 1, 1000);
    for round in 0..4 {
        for n in 0..3 {
            shares.grant(one, &worker(n), 2000 + round * 1000);
        }
        shares.grant(two, &worker(0), 2000 + round * 1000);
    }
    let granted = |shares: &BandwidthAllocator, no, n| shares.granted_to(no, &worker(n)).unwrap();
    assert_eq!(granted(&shares, two, 0), 10 * MIB);
    // Indivisible bytes apart.
    assert!((0..3).all(|n| granted(&shares, one, n).abs_diff(80 * MIB / 3) <= 1));
    assert_eq!(shares.syncs_of(&worker(0)), [one, two]);
    shares.set_total_limit(None);
    assert!(shares.set_own_limit(two, Some(10 * MIB)) && !shares.set_own_limit(one, None));
    assert_eq!(shares.syncs_of(&worker(0)), [two]);
}

proptest! {
    #[test]
    fn the_sum_of_shares_never_exceeds_the_limit_and_soon_reaches_it(
        limit in (1u64 << 20)..(1 << 36),
        steps in proptest::collection::vec((0usize..6, 0u64..2000), 1..40),
    ) {
        let mut play = Play::new(limit);
        for (n, needs) in steps {
            // Needs in thousandths of the limit; some are unbounded.
            let needs = if needs > 1000 { u64::MAX } else { limit / 1000 * needs };
            match play.workers.get_mut(&n) {
                Some(known) if needs == 0 => {
                    known.0 = 0;
                }
                Some(known) => known.0 = needs,
                None => play.join(n, 6, needs),
            }
            let granted: u64 = play.granted_shares().iter().sum();
            prop_assert!(granted <= limit + limit / INITIAL_SHARE_DIVISOR, "{} of {}", granted, limit);
            play.run_second();
        }
        (0..6).for_each(|_| play.run_second());
        let granted: u64 = play.granted_shares().iter().sum();
        prop_assert!(granted <= limit + 6, "{} of {}", granted, limit);
        let needed = play.workers.values().fold(0, |sum: u64, w| sum.saturating_add(w.0));
        let least = needed.min(limit / 100 * 95);
        prop_assert!(play.sent_bytes() >= least, "{} of {} ({:?})", play.sent_bytes(), least, play.workers);
    }
}

#[test]
fn a_report_moves_its_sync_only_with_bytes_that_were_not_reported_before() {
    let mut shares = BandwidthAllocator::default();
    let no = SyncNo(1);
    shares.register(no, Some(MIB), &worker(0), 1, 0);
    for (second, moved, moves) in
        [(1, 0, false), (2, 0, false), (3, 1, true), (4, 1, false), (5, 9, true), (6, 2, true)]
    {
        let usage = BandwidthUsage { sent_bytes: moved, throttled_ms: 0 };
        assert_eq!(
            shares.report_usage(no, &worker(0), usage, second * 1000),
            moves,
            "second {second}"
        );
    }
    let usage = BandwidthUsage { sent_bytes: 1, throttled_ms: 0 };
    shares.register(no, Some(MIB), &worker(1), 2, 0);
    assert!(shares.report_usage(no, &worker(1), usage, 1000), "the first report");
}
