//! Almost valid documents, for the tests of parsers.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// One change to bytes.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    FlipBit(Index, u8),
    SetByte(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Duplicates bytes.
    Repeat(Index, usize),
    Truncate(Index),
}

/// One to five changes.
pub(crate) fn any_edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Edit::FlipBit(at, bit)),
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::SetByte(at, byte)),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, some)| Edit::Insert(at, some)),
        2 => (at(), 1usize..40).prop_map(|(at, n)| Edit::Remove(at, n)),
        2 => (at(), 1usize..40).prop_map(|(at, n)| Edit::Repeat(at, n)),
        1 => at().prop_map(Edit::Truncate),
    ];
    prop::collection::vec(edit, 1..6)
}

/// `bytes` with these changes, one after the other.
pub(crate) fn apply_edits(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits {
        let (Edit::FlipBit(at, _)
        | Edit::SetByte(at, _)
        | Edit::Insert(at, _)
        | Edit::Truncate(at)
        | Edit::Remove(at, _)
        | Edit::Repeat(at, _)) = edit;
        if bytes.is_empty() {
            return bytes;
        }
        let at = at.index(bytes.len());
        match edit {
            Edit::FlipBit(_, bit) => bytes[at] ^= 1 << bit,
            Edit::SetByte(_, byte) => bytes[at] = *byte,
            Edit::Insert(_, some) => drop(bytes.splice(at..at, some.iter().copied())),
            Edit::Remove(_, n) => drop(bytes.drain(at..(at + n).min(bytes.len()))),
            Edit::Repeat(_, n) => {
                let some = bytes[at..(at + n).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, some));
            }
            Edit::Truncate(_) => bytes.truncate(at),
        }
    }
    bytes
}

/// Unexpected values.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        "[ -~]{0,40}",
        prop::sample::select(vec![
            "",
            "/",
            "../x",
            "/a/../b",
            "\u{0}",
            "\u{1b}[2J",
            "1e999",
            "-0",
            "9:00",
            "*"
        ])
        .prop_map(str::to_owned),
        (1usize..9000).prop_map(|n| "x".repeat(n)),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![u64::MAX, u64::MAX - 1, 1 << 53, 1 << 63, 0, 1])
            .prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{1,12}", inner, 0..4)
                .prop_map(|map| Value::from(serde_json::Map::from_iter(map))),
        ]
    })
}

/// `document` with some of its values replaced, at any depth.
pub(crate) fn replace_values(document: &Value, with: &[(Index, Value)]) -> Value {
    let mut document = document.clone();
    for (at, value) in with {
        let mut places = Vec::new();
        collect_pointers(&document, &mut String::new(), &mut places);
        if let Some(place) = document.pointer_mut(&places[at.index(places.len())]) {
            *place = value.clone();
        }
    }
    document
}

/// The JSON pointers of all values.
fn collect_pointers(value: &Value, here: &mut String, places: &mut Vec<String>) {
    places.push(here.clone());
    let length = here.len();
    let keys: Vec<String> = match value {
        Value::Array(all) => (0..all.len()).map(|i| i.to_string()).collect(),
        Value::Object(all) => all.keys().cloned().collect(),
        _ => return,
    };
    for key in keys {
        here.push('/');
        here.push_str(&key.replace('~', "~0").replace('/', "~1"));
        let inner = value.pointer(&here[length..]).cloned().unwrap_or(json!(null));
        collect_pointers(&inner, here, places);
        here.truncate(length);
    }
}

#[test]
fn every_value_of_a_document_has_a_pointer() {
    let document = json!({"a": [1, {"b/c": 2}], "d~": null});
    let mut places = Vec::new();
    collect_pointers(&document, &mut String::new(), &mut places);
    assert_eq!(places, ["", "/a", "/a/0", "/a/1", "/a/1/b~1c", "/d~0"]);
    assert!(places.iter().all(|place| document.pointer(place).is_some()));
}
