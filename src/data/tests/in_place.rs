//! A source file that is overwritten in place, with as many bytes, while it is read: what arrives is no
//! mixture, whatever its modification time is. A limit of 0 holds the reader behind its first piece.

use super::*;
use crate::data::TransferControl;
use crate::util::rate::{Limiters, RateLimiter};
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

const MIB: u64 = 1 << 20;

/// A destination, and the limit that holds back what goes to it.
fn transfer_with_rate(world: &TestBed, remote: bool) -> (Destination, Arc<RateLimiter>) {
    let (rules, rate) = (WriteRules::default(), Arc::new(RateLimiter::new(Some(0))));
    let limiters = Limiters::new(vec![rate.clone()]);
    let control = TransferControl { limiters, ..TransferControl::default() };
    let to = if remote {
        let peers = Peers::new(&[], test_pool());
        Destination::Remote(
            peers.peer(&world.member(), &world.ticket(), &rules).with_control(control),
        )
    } else {
        let local = Local::new(world.target(), world.claims_with(&rules), test_pool());
        Destination::Local { worker: "b".parse().unwrap(), local: local.with_control(control) }
    };
    (to, rate)
}

/// Writes other content of the same length over that of `path`.
fn overwrite(path: &Path, length: u64, keeps_time: bool) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&content(length, 99), 0).unwrap();
    let time = if keeps_time { before } else { before + Duration::from_secs(7) };
    file.set_modified(time).unwrap();
    assert_eq!(file.metadata().unwrap().len(), length);
}

/// Waits until each has read something, overwrites the source, and lets all go on.
async fn overwrite_under(rates: &[Arc<RateLimiter>], path: &Path, length: u64, keeps_time: bool) {
    damage::wait_until("all have begun to read", || {
        rates.iter().all(|rate| rate.reserved_bytes() > 0)
    })
    .await;
    overwrite(path, length, keeps_time);
    rates.iter().for_each(|rate| rate.set_limit(None, Instant::now()));
}

const CASES: [(bool, bool); 4] = [(false, true), (false, false), (true, true), (true, false)];

#[tokio::test]
async fn a_file_that_is_overwritten_in_place_while_it_is_copied_is_reported_as_changed() {
    for (remote, keeps_time) in CASES {
        let world = TestBed::new().await;
        world.write("f", &content(4 * MIB, 1));
        let source = tree(&world.src());
        let (manifest, entry) = world.only_file();
        let (to, rate) = transfer_with_rate(&world, remote);
        let copying =
            tokio::spawn(
                async move { to.transfer_pack(&source, manifest.dirs, vec![entry]).await },
            );
        overwrite_under(&[rate], &world.src().join("f"), 4 * MIB, keeps_time).await;
        let packed = copying.await.unwrap().unwrap();
        let [Err(error)] = packed.files.as_slice() else {
            panic!("remote {remote}, keeps its time {keeps_time}: {packed:?}")
        };
        assert_eq!(error.class, ErrorClass::Changed, "remote {remote}, {keeps_time}");
        assert_eq!(world.names(), Vec::<String>::new(), "remote {remote}, {keeps_time}");
        world.shut_down().await;
    }
}

#[tokio::test]
async fn a_file_that_is_overwritten_in_place_while_all_its_ranges_are_open_is_reported_as_changed()
{
    for (remote, keeps_time) in CASES {
        let world = TestBed::new().await;
        world.write("f", &content(12 * MIB, 1));
        let (manifest, entry) = world.only_file();
        let mut rates = Vec::new();
        let ranges: Vec<_> = (0..3)
            .map(|n| {
                let (to, rate) = transfer_with_rate(&world, remote);
                rates.push(rate);
                let (source, manifest, entry) =
                    (tree(&world.src()), manifest.clone(), entry.clone());
                tokio::spawn(async move {
                    let range = (4 * n * MIB, 4 * MIB);
                    to.transfer_range(&source, &manifest, &entry, range, RangeMode::Whole).await
                })
            })
            .collect();
        overwrite_under(&rates, &world.src().join("f"), 12 * MIB, keeps_time).await;
        for range in ranges {
            let error = range_error(range.await.unwrap());
            assert!(is_source_change(&error), "remote {remote}, {keeps_time}: {error:?}");
        }
        assert!(!world.dst().join("f").exists());
        world.shut_down().await;
    }
}
