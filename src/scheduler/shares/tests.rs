use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn worker(n: usize) -> WorkerId {
    format!("w{n}").parse().unwrap()
}

fn any(wants: u64) -> Claim {
    Claim { wants, most: u64::MAX }
}

#[test]
fn who_wants_little_gets_it_and_the_others_equal_parts_of_the_rest() {
    assert_eq!(split(90, &[any(u64::MAX), any(10), any(u64::MAX)]), [40, 10, 40]);
    assert_eq!(split(10, &[any(u64::MAX), any(10), any(8)]), [4, 3, 3]);
    let capped = Claim { wants: u64::MAX, most: 20 };
    assert_eq!(split(90, &[capped, any(u64::MAX)]), [20, 70]);
    // What nobody wants is handed out, but not beyond what somebody may have.
    assert_eq!(split(90, &[any(10), any(20)]), [40, 50]);
    assert_eq!(split(90, &[Claim { wants: 5, most: 20 }]), [20]);
    assert_eq!(split(90, &[]), [0; 0]);
}

proptest! {
    #[test]
    fn a_split_is_within_the_limit_uses_it_up_and_is_fair(
        total in prop_oneof![0u64..1000, 0u64..(1 << 50), Just(u64::MAX)],
        claims in proptest::collection::vec(
            (prop_oneof![0u64..1000, 0u64..(1 << 45), Just(u64::MAX)],
             prop_oneof![0u64..1000, 0u64..(1 << 45), Just(u64::MAX)]), 0..20),
    ) {
        let claims: Vec<Claim> =
            claims.into_iter().map(|(wants, most)| Claim { wants, most }).collect();
        let shares = split(total, &claims);
        let sum: u128 = shares.iter().map(|s| u128::from(*s)).sum();
        let most: u128 = claims.iter().map(|c| u128::from(c.most)).sum();
        prop_assert_eq!(sum, u128::from(total).min(most), "all of it is handed out, and no more");
        for (claim, share) in claims.iter().zip(&shares) {
            prop_assert!(*share <= claim.most);
            let content = *share >= claim.wants.min(claim.most);
            for (other, theirs) in claims.iter().zip(&shares) {
                // Who lacks something has no less than anybody who has what he did not ask for, or
                // more than he (to the byte that can't be divided).
                prop_assert!(content || *theirs <= share + 1, "{claim:?} {share}, {other:?} {theirs}");
            }
        }
    }
}

/// Workers that send what they need, or what they may.
struct Play {
    shares: Shares,
    now_ms: u64,
    sync: SyncNo,
    own: Option<u64>,
    /// What each needs in bytes per second, what it was told, and what it has said.
    workers: BTreeMap<usize, (u64, u64, BandwidthUsage)>,
}

impl Play {
    fn new(own: u64) -> Self {
        let workers = BTreeMap::new();
        Play { shares: Shares::default(), now_ms: 1000, sync: SyncNo(1), own: Some(own), workers }
    }

    fn join(&mut self, n: usize, peers: u64, needs: u64) {
        self.shares.join(self.sync, self.own, &worker(n), peers, self.now_ms);
        let told = self.shares.told_to(self.sync, &worker(n)).unwrap();
        self.workers.insert(n, (needs, told, BandwidthUsage::default()));
    }

    /// A second, in which each beats once.
    fn second(&mut self) {
        let step = 1000 / (self.workers.len() as u64).max(1);
        let busy: BTreeSet<_> = self.workers.keys().map(|n| (self.sync, worker(*n))).collect();
        for (n, (needs, told, usage)) in &mut self.workers {
            self.now_ms += step;
            usage.sent_bytes += (*needs).min(*told);
            usage.throttled_ms += if needs > told { 990 } else { 10 };
            self.shares.set_own(self.sync, self.own);
            self.shares.report(self.sync, &worker(*n), *usage, self.now_ms);
            *told = self.shares.tell(self.sync, &worker(*n), self.now_ms).unwrap();
        }
        self.shares.keep(&busy, self.now_ms);
    }

    fn told(&self) -> Vec<u64> {
        self.workers.values().map(|(_, told, _)| *told).collect()
    }

    fn sent(&self) -> u64 {
        self.workers.values().map(|(needs, told, _)| *needs.min(told)).sum()
    }
}

#[test]
fn three_that_want_all_have_a_third_each_from_the_beginning() {
    let mut play = Play::new(30 * MIB);
    (0..3).for_each(|n| play.join(n, 3, u64::MAX));
    assert_eq!(play.told(), [10 * MIB; 3]);
    (0..5).for_each(|_| play.second());
    assert_eq!(play.told(), [10 * MIB; 3]);
}

#[test]
fn what_one_does_not_need_goes_to_those_who_do() {
    let mut play = Play::new(100 * MIB);
    for (n, needs) in [40 * MIB, u64::MAX, 0].into_iter().enumerate() {
        play.join(n, 3, needs);
    }
    (0..4).for_each(|_| play.second());
    let told = play.told();
    assert!(told[0] >= 40 * MIB && play.sent() >= 96 * MIB, "{told:?}");
    assert!(told[2] > 0 && told[2] < MIB, "{told:?}");
    // Now it needs something after all.
    play.workers.get_mut(&2).unwrap().0 = u64::MAX;
    (0..4).for_each(|_| play.second());
    let told = play.told();
    assert!(told.iter().all(|told| *told >= 33 * MIB), "{told:?}");
}

#[test]
fn who_comes_late_gets_a_share_and_who_is_gone_gives_it_back() {
    let mut play = Play::new(64 * MIB);
    play.join(0, 1, u64::MAX);
    assert_eq!(play.told(), [64 * MIB]);
    play.second();
    play.join(1, 2, u64::MAX);
    assert_eq!(play.told(), [64 * MIB, 2 * MIB], "a foot in the door");
    play.second();
    play.second();
    assert_eq!(play.told(), [32 * MIB; 2]);
    play.workers.remove(&0);
    (0..5).for_each(|_| play.second());
    assert_eq!((play.told(), play.shares.count()), (vec![64 * MIB], 1));
}

#[test]
fn a_changed_limit_is_heard_with_the_next_beat() {
    let mut play = Play::new(80 * MIB);
    (0..4).for_each(|n| play.join(n, 4, u64::MAX));
    play.second();
    play.own = Some(8 * MIB);
    play.second();
    assert_eq!(play.told(), [2 * MIB; 4]);
    play.own = Some(40 * MIB);
    play.second();
    assert_eq!(play.told(), [10 * MIB; 4]);
    assert!(!play.shares.set_own(play.sync, None));
    assert_eq!(play.shares.tell(play.sync, &worker(0), play.now_ms), None);
}

#[test]
fn the_limit_of_all_is_split_over_syncs_before_it_is_over_workers() {
    let mut shares = Shares::default();
    shares.set_whole(Some(90 * MIB));
    let (one, two) = (SyncNo(1), SyncNo(2));
    for n in 0..3 {
        shares.join(one, None, &worker(n), 3, 1000);
    }
    // Its own limit is below what would be its part.
    shares.join(two, Some(10 * MIB), &worker(0), 1, 1000);
    for round in 0..4 {
        for n in 0..3 {
            shares.tell(one, &worker(n), 2000 + round * 1000);
        }
        shares.tell(two, &worker(0), 2000 + round * 1000);
    }
    let told = |shares: &Shares, no, n| shares.told_to(no, &worker(n)).unwrap();
    assert_eq!(told(&shares, two, 0), 10 * MIB);
    // Indivisible bytes apart.
    assert!((0..3).all(|n| told(&shares, one, n).abs_diff(80 * MIB / 3) <= 1));
    assert_eq!(shares.of(&worker(0)), [one, two]);
    shares.set_whole(None);
    assert!(shares.set_own(two, Some(10 * MIB)) && !shares.set_own(one, None));
    assert_eq!(shares.of(&worker(0)), [two]);
}

proptest! {
    #[test]
    fn all_together_are_never_told_more_than_the_limit_and_soon_use_it_up(
        limit in (1u64 << 20)..(1 << 36),
        steps in proptest::collection::vec((0usize..6, 0u64..2000), 1..40),
    ) {
        let mut play = Play::new(limit);
        for (n, needs) in steps {
            // Needs in thousandths of the limit; some want all.
            let needs = if needs > 1000 { u64::MAX } else { limit / 1000 * needs };
            match play.workers.get_mut(&n) {
                Some(known) if needs == 0 => {
                    known.0 = 0;
                }
                Some(known) => known.0 = needs,
                None => play.join(n, 6, needs),
            }
            let told: u64 = play.told().iter().sum();
            prop_assert!(told <= limit + limit / FOOT, "{} of {}", told, limit);
            play.second();
        }
        (0..6).for_each(|_| play.second());
        let told: u64 = play.told().iter().sum();
        prop_assert!(told <= limit + 6, "{} of {}", told, limit);
        let needed = play.workers.values().fold(0, |sum: u64, w| sum.saturating_add(w.0));
        let least = needed.min(limit / 100 * 95);
        prop_assert!(play.sent() >= least, "{} of {} ({:?})", play.sent(), least, play.workers);
    }
}

#[test]
fn a_report_moves_its_sync_only_with_bytes_that_were_not_reported_before() {
    let mut shares = Shares::default();
    let no = SyncNo(1);
    shares.join(no, Some(MIB), &worker(0), 1, 0);
    for (second, moved, moves) in
        [(1, 0, false), (2, 0, false), (3, 1, true), (4, 1, false), (5, 9, true), (6, 2, true)]
    {
        let usage = BandwidthUsage { sent_bytes: moved, throttled_ms: 0 };
        assert_eq!(shares.report(no, &worker(0), usage, second * 1000), moves, "second {second}");
    }
    let usage = BandwidthUsage { sent_bytes: 1, throttled_ms: 0 };
    shares.join(no, Some(MIB), &worker(1), 2, 0);
    assert!(shares.report(no, &worker(1), usage, 1000), "the first report");
}
