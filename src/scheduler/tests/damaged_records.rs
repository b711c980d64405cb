//! What agents found damaged on the way is counted once; records that are damaged are refused.

use super::*;
use crate::wire::fuzz::{any_edits, any_json, apply_edits, replace_values};
use proptest::prelude::*;
use std::sync::LazyLock;

#[test]
fn corruption_counts_once_however_often_it_is_reported() {
    let (mut world, scan) = scanning();
    let first =
        ScanPage { integrity_errors: 2, ..page(&scan, 0, vec![copy_item(2, 0)], scan_at("m")) };
    world.post_page(&scan, first.clone());
    world.post_page(&scan, first);
    assert_eq!(world.progress("demo").integrity_errors, 2);
    world.post_page(&scan, page(&scan, 1, vec![], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let failed = TaskReport { integrity_errors: 3, ..TaskReport::default() };
    // Also of a task that failed, and of one that is not leased.
    for _ in 0..2 {
        world.post_result(result(&copy, false, failed.clone()));
    }
    assert_eq!(world.progress("demo").integrity_errors, 5);
    world.advance(60_000);
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let copy = poll_kind(&mut world, "s", "copy");
    let report = TaskReport { integrity_errors: u64::MAX, ..all_done(&copy, "d") };
    world.post_result(result(&copy, true, report.clone()));
    world.post_result(result(&copy, true, report));
    assert_eq!(world.progress("demo").integrity_errors, u64::MAX, "and is bounded");
    world.restart();
    assert_eq!(world.progress("demo").integrity_errors, u64::MAX);
}

static RECORDS: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(some_records);

/// The records of a sync with a bit of everything.
fn some_records() -> BTreeMap<String, Vec<u8>> {
    let (mut world, scan) = scanning();
    world.post_page(
        &scan,
        page(&scan, 0, vec![copy_item(2, 0), large_item(3), large_in_group(3, 1)], scan_at("m")),
    );
    for _ in 0..2 {
        poll_any(&mut world);
    }
    world.records.clone()
}

fn poll_any(world: &mut World) {
    let task = world.poll("s", "1").expect("work");
    world.post_result(result(&task, true, all_done(&task, "d")));
}

/// Sets each number of a document that has this name, and collects the names of all numbers.
fn set_numbers(value: &mut serde_json::Value, name: &str, to: u64, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, field) in fields {
                if field.is_number() {
                    names.insert(key.clone());
                    if key == name {
                        *field = to.into();
                    }
                }
                set_numbers(field, name, to, names);
            }
        }
        serde_json::Value::Array(items) => {
            items.iter_mut().for_each(|item| set_numbers(item, name, to, names));
        }
        _ => {}
    }
}

/// The records with every number of one name set, and the names of all numbers.
fn with_numbers(name: &str, to: u64) -> (BTreeMap<String, Vec<u8>>, BTreeSet<String>) {
    let (mut records, mut names) = (RECORDS.clone(), BTreeSet::new());
    for record in records.values_mut() {
        if let Ok(mut value) = serde_json::from_slice(record) {
            set_numbers(&mut value, name, to, &mut names);
            *record = value.to_string().into_bytes();
        }
    }
    (records, names)
}

#[test]
fn records_with_the_least_and_the_largest_numbers_are_refused_or_read_and_never_a_panic() {
    let (_, names) = with_numbers("", 0);
    assert!(names.contains("manifest_bytes"), "{names:?}");
    for name in &names {
        for to in [0, 1, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX] {
            drop(State::load(Settings::default(), [1; 32], &with_numbers(name, to).0, START));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn records_that_were_damaged_are_refused_by_name_or_read_and_never_a_panic(
        which in any::<prop::sample::Index>(),
        edits in any_edits(),
        with in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..3),
    ) {
        let records = RECORDS.clone();
        let keys: Vec<&String> = records.keys().collect();
        let key = keys[which.index(keys.len())].clone();
        let mut others = vec![apply_edits(&records[&key], &edits)];
        if let Ok(value) = serde_json::from_slice(&records[&key]) {
            others.push(replace_values(&value, &with).to_string().into_bytes());
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
        let strange = String::from_utf8_lossy(&apply_edits(key.as_bytes(), &edits)).into_owned();
        missing.insert(strange, records[&key].clone());
        drop(State::load(Settings::default(), [1; 32], &missing, START));
    }
}

#[test]
fn a_large_file_of_as_many_ranges_as_may_be_is_read_again_and_one_of_more_is_refused() {
    use crate::wire::task::MAX_RANGES;
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(MAX_RANGES)], None));
    world.restart();
    let file =
        world.state.syncs.values().flat_map(|sync| sync.large_files.values()).next().unwrap();
    assert_eq!(file.range_digests.len() as u64, MAX_RANGES);
    let (key, mut value) = (file.record_key(), serde_json::to_value(file).unwrap());
    for (size, fits) in [(MAX_RANGES << 20, true), ((MAX_RANGES << 20) + 1, false)] {
        value["size"] = size.into();
        world.records.insert(key.clone(), value.to_string().into_bytes());
        let loaded = State::load(Settings::default(), [1; 32], &world.records, START);
        let why = loaded.err().map(|error| error.to_string());
        assert_eq!(why.is_none(), fits, "{why:?}");
        assert!(why.is_none_or(|why| why.contains(&key)));
    }
}
