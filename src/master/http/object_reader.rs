//! Reads JSON objects member by member, so that all errors are reported together: members that are missing, unknown, of
//! the wrong type or out of range.
//!
//! A *reader* is a function from a [`Value`] to a validated value or to its [`ValidationErrors`]. A reader of a member
//! gets `None` for a missing member.

use super::json;
use crate::master::validation_errors::ValidationErrors;
use crate::util::suggest::closest_match;
use crate::util::units::parse_bwlimit;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

pub(super) struct ObjectReader {
    members: Map<String, Value>,
    known_members: Vec<&'static str>,
    errors: ValidationErrors,
}

impl ObjectReader {
    /// # Errors
    /// The value is not an object.
    pub(super) fn new(value: Value) -> Result<Self, ValidationErrors> {
        match value {
            Value::Object(members) => Ok(ObjectReader {
                members,
                known_members: Vec::new(),
                errors: ValidationErrors::default(),
            }),
            other => Err(wrong_type("a JSON object", &other)),
        }
    }

    /// Reads the member `name`: `read` gets `None` if there is none. Returns `None` after an error, which is recorded.
    pub(super) fn member<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Option<Value>) -> Result<T, ValidationErrors>,
    ) -> Option<T> {
        self.known_members.push(name);
        match read(self.members.remove(name)) {
            Ok(value) => Some(value),
            Err(errors) => {
                self.add_errors(name, errors);
                None
            }
        }
    }

    /// Adds errors of the member `name` that depend on other members.
    pub(super) fn add_errors(&mut self, name: &str, errors: ValidationErrors) {
        self.errors.merge_at(&format!("/{name}"), errors);
    }

    /// Whether the member `name` has a value and was not read yet.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !value.is_null())
    }

    /// Ends the reading. `build` creates the value from the members, of which each is `Some`.
    ///
    /// # Errors
    /// All errors of members, and the members that were not read: they are unknown.
    pub(super) fn finish<T>(
        mut self,
        build: impl FnOnce() -> Option<T>,
    ) -> Result<T, ValidationErrors> {
        for key in self.members.keys() {
            let detail = match closest_match(key, self.known_members.iter().copied()) {
                Some(meant) => format!("is not known; did you mean `{meant}`?"),
                None => format!("is not known; known are {}", self.known_members.join(", ")),
            };
            let mut pointer = String::new();
            json::push_pointer_key(&mut pointer, key);
            self.errors.push(&pointer, detail);
        }
        self.errors.into_result(())?;
        build().ok_or_else(|| ValidationErrors::single("can't be read"))
    }
}

/// Defines a function that reads a JSON object into a struct: the member of each field has the name of the field, or
/// the name after `as`. All errors of the object are collected.
macro_rules! object_reader {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident -> $type:ident {
        $($field:ident $(as $member:literal)?: $read:expr),* $(,)?
    }) => {
        $(#[$doc])*
        $visibility fn $name(value: Value) -> Result<$type, ValidationErrors> {
            let mut object = ObjectReader::new(value)?;
            $(let $field = object.member([$($member,)? stringify!($field)][0], $read);)*
            object.finish(|| Some($type { $($field: $field?),* }))
        }
    };
}
pub(super) use object_reader;

/// A member that must be there.
pub(super) fn required<T>(
    read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
) -> impl FnOnce(Option<Value>) -> Result<T, ValidationErrors> {
    move |member| match member {
        Some(value) => read(value),
        None => Err(ValidationErrors::single("is missing")),
    }
}

/// A member that may be missing or `null`.
pub(super) fn optional<T>(
    read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
) -> impl FnOnce(Option<Value>) -> Result<Option<T>, ValidationErrors> {
    move |member| match member {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some),
    }
}

/// A member that has a default.
pub(super) fn or_default<T: Default>(
    read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
) -> impl FnOnce(Option<Value>) -> Result<T, ValidationErrors> {
    move |member| optional(read)(member).map(Option::unwrap_or_default)
}

fn json_type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(expected: &str, value: &Value) -> ValidationErrors {
    ValidationErrors::single(format!("must be {expected}, not {}", json_type_name(value)))
}

/// `true` or `false`.
pub(super) fn boolean(value: Value) -> Result<bool, ValidationErrors> {
    value.as_bool().ok_or_else(|| wrong_type("true or false", &value))
}

/// An integer within `bounds`.
pub(super) fn integer(
    bounds: RangeInclusive<u32>,
) -> impl FnOnce(Value) -> Result<u32, ValidationErrors> {
    move |value| {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match &value {
            Value::Number(n) => n
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| bounds.contains(n))
                .ok_or_else(|| ValidationErrors::single(format!("must be {expected}, not {n}"))),
            other => Err(wrong_type(&expected, other)),
        }
    }
}

/// Bytes per second, as a number or a text with a unit; `None` for `null`, 0 and `"none"`.
pub(super) fn rate_limit(value: Value) -> Result<Option<u64>, ValidationErrors> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text,
        other => {
            return Err(wrong_type("bytes per second, as a number, `100MiB/s` or null", &other));
        }
    };
    parse_bwlimit(&text).map_err(ValidationErrors::single)
}

/// A string of at most `max` bytes.
pub(super) fn string(max: usize) -> impl FnOnce(Value) -> Result<String, ValidationErrors> {
    move |value| match value {
        Value::String(s) if s.len() <= max => Ok(s),
        Value::String(s) => Err(ValidationErrors::single(format!(
            "is {} bytes long, at most {max} are allowed",
            s.len()
        ))),
        other => Err(wrong_type("a string", &other)),
    }
}

/// A list of at most `max` items.
pub(super) fn array<T>(
    max: usize,
    item: impl Fn(Value) -> Result<T, ValidationErrors>,
) -> impl FnOnce(Value) -> Result<Vec<T>, ValidationErrors> {
    move |value| {
        let items = match value {
            Value::Array(items) => items,
            other => return Err(wrong_type("a list", &other)),
        };
        if items.len() > max {
            return Err(ValidationErrors::single(format!(
                "has {} items, at most {max} are allowed",
                items.len()
            )));
        }
        let mut errors = ValidationErrors::default();
        let mut out = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            match item(value) {
                Ok(read) => out.push(read),
                Err(item_errors) => errors.merge_at(&format!("/{index}"), item_errors),
            }
        }
        errors.into_result(out)
    }
}

/// Reads a value by its [`serde::Deserialize`]; reports the first error only.
pub(super) fn deserialize<T: DeserializeOwned>(value: Value) -> Result<T, ValidationErrors> {
    if value.is_null() {
        return Err(ValidationErrors::single("must not be null"));
    }
    serde_path_to_error::deserialize(value).map_err(|e| json::field_error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_errors(read: impl FnOnce(&mut ObjectReader), value: Value) -> Vec<(String, String)> {
        let mut object = ObjectReader::new(value).unwrap_or_else(|_| panic!("an object"));
        read(&mut object);
        let Err(errors) = object.finish(|| Some(())) else { return Vec::new() };
        errors.into_problem().errors.into_iter().map(|e| (e.pointer, e.detail)).collect()
    }

    #[test]
    fn every_wrong_member_is_listed() {
        let found = read_errors(
            |d| {
                assert_eq!(d.member("name", required(string(3))), None);
                assert_eq!(d.member("gone", required(boolean)), None);
                assert_eq!(d.member("size", optional(integer(1..=9))), None);
                assert_eq!(d.member("list", optional(array(5, boolean))), None);
            },
            json!({"name": "long", "size": 10, "list": [true, 1, "x"], "nmae": 1, "a/b": 2}),
        );
        let pointers: Vec<&str> = found.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(pointers, ["/name", "/gone", "/size", "/list/1", "/list/2", "/a~1b", "/nmae"]);
        assert_eq!(found[6].1, "is not known; did you mean `name`?");
        assert!(found[5].1.ends_with("known are name, gone, size, list"));
    }

    #[test]
    fn null_means_that_an_optional_member_is_absent() {
        let found = read_errors(
            |d| {
                assert_eq!(d.member("size", optional(integer(1..=9))), Some(None));
                assert_eq!(d.member("name", required(string(3))), None);
                assert_eq!(d.member("worker", required(deserialize::<Option<u8>>)), None);
            },
            json!({"size": null, "name": null, "worker": null}),
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn integers_are_whole_and_in_range() {
        for bad in
            [json!(0), json!(-1), json!(1.5), json!("5"), json!(10), json!(1e300), json!(true)]
        {
            assert!(integer(1..=9)(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(integer(1..=9)(json!(9)), Ok(9));
        assert!(ObjectReader::new(json!([1])).is_err());
    }
}
