//! Reading a JSON object member by member, so that one answer names everything that is wrong with it:
//! members that are missing, unknown, of the wrong type or out of range.
//!
//! A *reader* is a function from a [`Value`] to a checked value or to [`ValidationErrors`] below it; readers are
//! put together from the ones here.

use super::json;
use crate::master::validation_errors::ValidationErrors;
use crate::util::suggest::closest_match;
use crate::util::units::parse_bwlimit;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object that is being read.
pub(super) struct ObjectReader {
    members: Map<String, Value>,
    known_members: Vec<&'static str>,
    errors: ValidationErrors,
}

impl ObjectReader {
    /// Starts to read `value`.
    ///
    /// # Errors
    /// It is no object.
    pub(super) fn new(value: Value) -> Result<Self, ValidationErrors> {
        match value {
            Value::Object(members) => Ok(ObjectReader {
                members,
                known_members: Vec::new(),
                errors: ValidationErrors::default(),
            }),
            other => Err(ValidationErrors::single(format!(
                "must be a JSON object, not {}",
                json_type_name(&other)
            ))),
        }
    }

    /// The member `name`. `None`: it is missing or wrong, which has been noted.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
    ) -> Option<T> {
        self.known_members.push(name);
        match self.members.remove(name) {
            Some(value) => self.record_result(name, read(value)),
            None => self.record_result(name, Err(ValidationErrors::single("is missing"))),
        }
    }

    /// The member `name`, if it is there and not `null`. `Some(None)`: it is not. `None`: it is wrong,
    /// which has been noted.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
    ) -> Option<Option<T>> {
        self.known_members.push(name);
        match self.members.remove(name) {
            None | Some(Value::Null) => Some(None),
            Some(value) => self.record_result(name, read(value).map(Some)),
        }
    }

    /// Notes that the member `name` is wrong together with others.
    pub(super) fn add_errors(&mut self, name: &str, faults: ValidationErrors) {
        self.errors.merge_at(&format!("/{name}"), faults);
    }

    /// Ends the reading: what has not been asked for is not known. `Ok` means that every call
    /// before returned `Some`.
    ///
    /// # Errors
    /// All that was noted.
    pub(super) fn finish(mut self) -> Result<(), ValidationErrors> {
        for key in self.members.keys() {
            let detail = match closest_match(key, self.known_members.iter().copied()) {
                Some(meant) => format!("is not known; did you mean `{meant}`?"),
                None => format!("is not known; known are {}", self.known_members.join(", ")),
            };
            let mut pointer = String::new();
            json::push_pointer_key(&mut pointer, key);
            self.errors.push(&pointer, detail);
        }
        self.errors.into_result(())
    }

    fn record_result<T>(&mut self, name: &str, read: Result<T, ValidationErrors>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(faults) => {
                self.add_errors(name, faults);
                None
            }
        }
    }
}

fn json_type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(what: &str, value: &Value) -> ValidationErrors {
    ValidationErrors::single(format!("must be {what}, not {}", json_type_name(value)))
}

/// `true` or `false`.
pub(super) fn boolean(value: Value) -> Result<bool, ValidationErrors> {
    value.as_bool().ok_or_else(|| wrong_type("true or false", &value))
}

/// A whole number within `bounds`.
pub(super) fn integer(
    bounds: RangeInclusive<u32>,
) -> impl FnOnce(Value) -> Result<u32, ValidationErrors> {
    move |value| {
        let rule = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match &value {
            Value::Number(n) => n
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| bounds.contains(n))
                .ok_or_else(|| ValidationErrors::single(format!("must be {rule}, not {n}"))),
            other => Err(wrong_type(&rule, other)),
        }
    }
}

/// Bytes per second, as a number or with a unit; `None` for `null`, 0 and `"none"`.
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
        let mut faults = ValidationErrors::default();
        let mut out = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            match item(value) {
                Ok(read) => out.push(read),
                Err(more) => faults.merge_at(&format!("/{index}"), more),
            }
        }
        faults.into_result(out)
    }
}

/// Whatever `T` reads; it names its first fault.
pub(super) fn deserialize<T: DeserializeOwned>(value: Value) -> Result<T, ValidationErrors> {
    if value.is_null() {
        return Err(ValidationErrors::single("must not be null"));
    }
    serde_path_to_error::deserialize(value).map_err(|e| {
        let mut faults = ValidationErrors::default();
        faults.push(&json::json_pointer(e.path()), json::serde_error_text(e.inner()));
        faults
    })
}

/// Puts a document together whose reading noted no fault, so no member can be missing.
pub(super) fn assemble<T>(build: impl FnOnce() -> Option<T>) -> Result<T, ValidationErrors> {
    build().ok_or_else(|| ValidationErrors::single("can't be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_errors(read: impl FnOnce(&mut ObjectReader), value: Value) -> Vec<(String, String)> {
        let mut document = ObjectReader::new(value).unwrap_or_else(|_| panic!("an object"));
        read(&mut document);
        let Err(faults) = document.finish() else { return Vec::new() };
        faults.into_problem().errors.into_iter().map(|e| (e.pointer, e.detail)).collect()
    }

    #[test]
    fn every_wrong_member_is_listed() {
        let found = read_errors(
            |d| {
                assert_eq!(d.required("name", string(3)), None);
                assert_eq!(d.required("gone", boolean), None);
                assert_eq!(d.optional("size", integer(1..=9)), None);
                assert_eq!(d.optional("list", array(5, boolean)), None);
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
                assert_eq!(d.optional("size", integer(1..=9)), Some(None));
                assert_eq!(d.required("name", string(3)), None);
                assert_eq!(d.required("worker", deserialize::<Option<u8>>), None);
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
