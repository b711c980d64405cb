//! What agents found damaged on the way is counted once; records that are damaged are refused.

use super::*;
use crate::wire::mutate::{edited, edits, odd_values, replaced};
use proptest::prelude::*;
use std::sync::LazyLock;

#[test]
fn what_an_agent_found_damaged_counts_once_however_often_it_says_so() {
    let (mut world, scan) = scanning();
    let first = ScanPage { integrity_errors: 2, ..page(&scan, 0, vec![batch(2, 0)], at("m")) };
    world.post(&scan, first.clone());
    world.post(&scan, first);
    assert_eq!(world.progress("demo").integrity_errors, 2);
    world.post(&scan, page(&scan, 1, vec![], None));
    let copy = next(&mut world, "s", "copy");
    let failed = TaskReport { integrity_errors: 3, ..TaskReport::default() };
    // Also of a task that failed, and of nobody's.
    for _ in 0..2 {
        world.finish(result(&copy, false, failed.clone()));
    }
    assert_eq!(world.progress("demo").integrity_errors, 5);
    world.pass(60_000);
    world.beat("s", "1", &["/src"], &[]);
    world.beat("d", "1", &["/dst"], &[]);
    let copy = next(&mut world, "s", "copy");
    let report = TaskReport { integrity_errors: u64::MAX, ..all_done(&copy, "d") };
    world.finish(result(&copy, true, report.clone()));
    world.finish(result(&copy, true, report));
    assert_eq!(world.progress("demo").integrity_errors, u64::MAX, "and is bounded");
    world.restart();
    assert_eq!(world.progress("demo").integrity_errors, u64::MAX);
}

static RECORDS: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(some_records);

/// The records of a sync with a bit of everything.
fn some_records() -> BTreeMap<String, Vec<u8>> {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0), large(3), named(3, 1)], at("m")));
    for _ in 0..2 {
        next_of_any(&mut world);
    }
    world.records.clone()
}

fn next_of_any(world: &mut World) {
    let task = world.poll("s", "1").expect("work");
    world.finish(result(&task, true, all_done(&task, "d")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn records_that_were_damaged_are_refused_by_name_or_read_and_never_a_panic(
        which in any::<prop::sample::Index>(),
        edits in edits(),
        with in prop::collection::vec((any::<prop::sample::Index>(), odd_values()), 1..3),
    ) {
        let records = RECORDS.clone();
        let keys: Vec<&String> = records.keys().collect();
        let key = keys[which.index(keys.len())].clone();
        let mut others = vec![edited(&records[&key], &edits)];
        if let Ok(value) = serde_json::from_slice(&records[&key]) {
            others.push(replaced(&value, &with).to_string().into_bytes());
        }
        for other in others {
            let mut records = records.clone();
            records.insert(key.clone(), other);
            if let Err(error) = State::load(Settings::default(), [1; 32], &records, START) {
                prop_assert!(error.to_string().len() < 2_000, "{error}");
            }
        }
        let mut missing = records.clone();
        missing.remove(&key);
        drop(State::load(Settings::default(), [1; 32], &missing, START));
        let strange = String::from_utf8_lossy(&edited(key.as_bytes(), &edits)).into_owned();
        missing.insert(strange, records[&key].clone());
        drop(State::load(Settings::default(), [1; 32], &missing, START));
    }
}
