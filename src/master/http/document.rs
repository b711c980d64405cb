//! Reading a JSON object member by member, so that one answer names everything that is wrong with it:
//! members that are missing, unknown, of the wrong type or out of range.
//!
//! A *reader* is a function from a [`Value`] to a checked value or to [`Faults`] below it; readers are
//! put together from the ones here.

use super::json;
use crate::master::faults::Faults;
use crate::util::suggest::closest_match;
use crate::util::units::parse_bwlimit;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object that is being read.
pub(super) struct Document {
    members: Map<String, Value>,
    known: Vec<&'static str>,
    faults: Faults,
}

impl Document {
    /// Starts to read `value`.
    ///
    /// # Errors
    /// It is no object.
    pub(super) fn of(value: Value) -> Result<Self, Faults> {
        match value {
            Value::Object(members) => {
                Ok(Document { members, known: Vec::new(), faults: Faults::default() })
            }
            other => Err(Faults::one(format!("must be a JSON object, not {}", kind(&other)))),
        }
    }

    /// The member `name`. `None`: it is missing or wrong, which has been noted.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, Faults>,
    ) -> Option<T> {
        self.known.push(name);
        match self.members.remove(name) {
            Some(value) => self.note(name, read(value)),
            None => self.note(name, Err(Faults::one("is missing"))),
        }
    }

    /// The member `name`, if it is there and not `null`. `Some(None)`: it is not. `None`: it is wrong,
    /// which has been noted.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, Faults>,
    ) -> Option<Option<T>> {
        self.known.push(name);
        match self.members.remove(name) {
            None | Some(Value::Null) => Some(None),
            Some(value) => self.note(name, read(value).map(Some)),
        }
    }

    /// Notes that the member `name` is wrong together with others.
    pub(super) fn refuse(&mut self, name: &str, faults: Faults) {
        self.faults.absorb(&format!("/{name}"), faults);
    }

    /// Ends the reading: what has not been asked for is not known. `Ok` means that every call
    /// before returned `Some`.
    ///
    /// # Errors
    /// All that was noted.
    pub(super) fn end(mut self) -> Result<(), Faults> {
        for key in self.members.keys() {
            let detail = match closest_match(key, self.known.iter().copied()) {
                Some(meant) => format!("is not known; did you mean `{meant}`?"),
                None => format!("is not known; known are {}", self.known.join(", ")),
            };
            let mut pointer = String::new();
            json::push_key(&mut pointer, key);
            self.faults.push(&pointer, detail);
        }
        self.faults.or(())
    }

    fn note<T>(&mut self, name: &str, read: Result<T, Faults>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(faults) => {
                self.refuse(name, faults);
                None
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn expected(what: &str, value: &Value) -> Faults {
    Faults::one(format!("must be {what}, not {}", kind(value)))
}

/// `true` or `false`.
pub(super) fn truth(value: Value) -> Result<bool, Faults> {
    value.as_bool().ok_or_else(|| expected("true or false", &value))
}

/// A whole number within `bounds`.
pub(super) fn whole(bounds: RangeInclusive<u32>) -> impl FnOnce(Value) -> Result<u32, Faults> {
    move |value| {
        let rule = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match &value {
            Value::Number(n) => n
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| bounds.contains(n))
                .ok_or_else(|| Faults::one(format!("must be {rule}, not {n}"))),
            other => Err(expected(&rule, other)),
        }
    }
}

/// Bytes per second, as a number or with a unit; `None` for `null`, 0 and `"none"`.
pub(super) fn limit(value: Value) -> Result<Option<u64>, Faults> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text,
        other => return Err(expected("bytes per second, as a number, `100MiB/s` or null", &other)),
    };
    parse_bwlimit(&text).map_err(Faults::one)
}

/// A string of at most `max` bytes.
pub(super) fn text(max: usize) -> impl FnOnce(Value) -> Result<String, Faults> {
    move |value| match value {
        Value::String(s) if s.len() <= max => Ok(s),
        Value::String(s) => {
            Err(Faults::one(format!("is {} bytes long, at most {max} are allowed", s.len())))
        }
        other => Err(expected("a string", &other)),
    }
}

/// A list of at most `max` items.
pub(super) fn list<T>(
    max: usize,
    item: impl Fn(Value) -> Result<T, Faults>,
) -> impl FnOnce(Value) -> Result<Vec<T>, Faults> {
    move |value| {
        let items = match value {
            Value::Array(items) => items,
            other => return Err(expected("a list", &other)),
        };
        if items.len() > max {
            return Err(Faults::one(format!(
                "has {} items, at most {max} are allowed",
                items.len()
            )));
        }
        let mut faults = Faults::default();
        let mut out = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            match item(value) {
                Ok(read) => out.push(read),
                Err(more) => faults.absorb(&format!("/{index}"), more),
            }
        }
        faults.or(out)
    }
}

/// Whatever `T` reads; it names its first fault.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Faults> {
    if value.is_null() {
        return Err(Faults::one("must not be null"));
    }
    serde_path_to_error::deserialize(value).map_err(|e| {
        let mut faults = Faults::default();
        faults.push(&json::pointer(e.path()), json::complaint(e.inner()));
        faults
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(read: impl FnOnce(&mut Document), value: Value) -> Vec<(String, String)> {
        let mut document = Document::of(value).unwrap_or_else(|_| panic!("an object"));
        read(&mut document);
        let Err(faults) = document.end() else { return Vec::new() };
        faults.into_problem().errors.into_iter().map(|e| (e.pointer, e.detail)).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_named() {
        let found = faults(
            |d| {
                assert_eq!(d.required("name", text(3)), None);
                assert_eq!(d.required("gone", truth), None);
                assert_eq!(d.optional("size", whole(1..=9)), None);
                assert_eq!(d.optional("list", list(5, truth)), None);
            },
            json!({"name": "long", "size": 10, "list": [true, 1, "x"], "nmae": 1, "a/b": 2}),
        );
        let pointers: Vec<&str> = found.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(pointers, ["/name", "/gone", "/size", "/list/1", "/list/2", "/a~1b", "/nmae"]);
        assert_eq!(found[6].1, "is not known; did you mean `name`?");
        assert!(found[5].1.ends_with("known are name, gone, size, list"));
    }

    #[test]
    fn null_stands_for_an_optional_member_that_is_not_there() {
        let found = faults(
            |d| {
                assert_eq!(d.optional("size", whole(1..=9)), Some(None));
                assert_eq!(d.required("name", text(3)), None);
                assert_eq!(d.required("worker", typed::<Option<u8>>), None);
            },
            json!({"size": null, "name": null, "worker": null}),
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn numbers_are_whole_and_in_range() {
        for bad in
            [json!(0), json!(-1), json!(1.5), json!("5"), json!(10), json!(1e300), json!(true)]
        {
            assert!(whole(1..=9)(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(whole(1..=9)(json!(9)), Ok(9));
        assert!(Document::of(json!([1])).is_err());
    }
}
