//! Parses JSON bodies: reports syntax errors with line and column, refuses duplicate keys, limits the size in memory.

use crate::master::validation_errors::ValidationErrors;
use crate::wire::path::escape_bytes;
use crate::wire::problem::{Problem, ProblemCode};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};
use std::fmt;

/// The maximum number of values in a document: each needs up to 100 bytes of memory, and its text only two.
const MAX_VALUES: usize = 4_000_000;
/// The maximum nesting. No document of the API is deeper than ten.
const MAX_DEPTH: usize = 64;

/// Parses a document.
///
/// # Errors
/// 400 for invalid JSON (with line and column), invalid UTF-8, a duplicate key, or too deep nesting.
pub(super) fn parse_json(body: &[u8]) -> Result<Value, Problem> {
    let text = check_utf8(body)?;
    let mut values = 0;
    let mut json = serde_json::Deserializer::from_str(text);
    let tree = StrictValue { depth: 0, values: &mut values }.deserialize(&mut json);
    tree.and_then(|value| json.end().map(|()| value)).map_err(|e| syntax_problem(text, &e))
}

/// Parses a document of an agent into its type. Such documents are large and usually valid, so only the first error is
/// reported.
///
/// # Errors
/// 400 as [`parse_json`], 422 for an invalid field.
pub(super) fn parse_typed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let text = check_utf8(body)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value =
        serde_path_to_error::deserialize(&mut json).map_err(|e| match e.inner().is_data() {
            true => field_error(&e).into_problem(),
            false => syntax_problem(text, e.inner()),
        })?;
    json.end().map_err(|e| syntax_problem(text, &e))?;
    Ok(value)
}

/// The JSON pointer (RFC 6901) of a path; empty for the document itself.
fn json_pointer(path: &Path) -> String {
    let mut out = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("/{index}")),
            Segment::Map { key } => push_pointer_key(&mut out, key),
            // A variant is no member of the document.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    out
}

/// Appends a key to a pointer, escaped and truncated because it comes from the client.
pub(super) fn push_pointer_key(pointer: &mut String, key: &str) {
    pointer.push('/');
    pointer.push_str(&display_key(key).replace('~', "~0").replace('/', "~1"));
}

/// A key for messages, escaped and truncated.
pub(super) fn display_key(key: &str) -> String {
    let short: String = key.chars().take(100).collect();
    escape_bytes(short.as_bytes())
}

/// The error of a field that `serde` refuses. Its message is escaped and truncated because it quotes the document.
pub(super) fn field_error(e: &serde_path_to_error::Error<serde_json::Error>) -> ValidationErrors {
    let short: String = e.inner().to_string().chars().take(300).collect();
    let mut errors = ValidationErrors::default();
    errors.push(&json_pointer(e.path()), escape_bytes(short.as_bytes()));
    errors
}

fn check_utf8(body: &[u8]) -> Result<&str, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid_json("the body is empty; a JSON document is expected"));
    }
    std::str::from_utf8(body).map_err(|e| {
        invalid_json(format!("the body is not UTF-8: byte {} can't be read", e.valid_up_to() + 1))
            .with_hint("send a path that is not UTF-8 as {\"path_b64\": \"…\"}, in base64")
    })
}

fn invalid_json(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::InvalidJson, detail)
}

fn syntax_problem(text: &str, error: &serde_json::Error) -> Problem {
    let (mut line, mut column) = (error.line(), error.column());
    let text_with_position = error.to_string();
    let mut reason = text_with_position.split(" at line ").next().unwrap_or_default().to_owned();
    if reason == "trailing comma" {
        // The parser reports the bracket after the comma.
        (line, column) = find_comma_before(text, line, column).unwrap_or((line, column));
        reason = "a trailing comma is not allowed in JSON; remove it".to_owned();
    }
    invalid_json(format!("the body is not valid JSON: line {line}, column {column}: {reason}"))
}

/// The line and column of the last comma before a position; both count from 1, columns in bytes.
fn find_comma_before(text: &str, line: usize, column: usize) -> Option<(usize, usize)> {
    let start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let before = text.as_bytes().get(..(start + column).min(text.len()))?;
    let comma = before.iter().rposition(|b| *b == b',')?;
    let line_start = before[..comma].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before[..comma].iter().filter(|b| **b == b'\n').count();
    Some((line, comma - line_start + 1))
}

/// Builds a [`Value`] as `serde_json` does, but refuses duplicate keys: `serde_json` uses the last one and other
/// parsers the first, so that a proxy may have checked another value.
struct StrictValue<'a> {
    depth: usize,
    values: &'a mut usize,
}

impl StrictValue<'_> {
    fn child(&mut self) -> StrictValue<'_> {
        StrictValue { depth: self.depth + 1, values: &mut *self.values }
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        *self.values += 1;
        if *self.values > MAX_VALUES {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values in one document")));
        }
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = seq.next_element_seed(self.child())? {
            out.push(value);
        }
        Ok(out.into())
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!(
                    "the key `{}` appears twice",
                    display_key(&key)
                )));
            }
            let value = map.next_value_seed(self.child())?;
            out.insert(key, value);
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_error_detail(body: &[u8]) -> String {
        let problem = parse_json(body).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_json"));
        problem.detail
    }

    #[test]
    fn a_trailing_comma_is_reported_with_line_and_column() {
        assert_eq!(
            parse_error_detail(b"{\n  \"a\": 1,\n  \"b\": [2],\n}"),
            "the body is not valid JSON: line 3, column 11: a trailing comma is not allowed in JSON; remove it"
        );
        assert!(parse_error_detail(b"[1,]").contains("line 1, column 3: a trailing comma"));
        assert!(
            parse_error_detail("{\"\u{e9}\":\",\" , }".as_bytes())
                .contains("line 1, column 11: a trailing")
        );
    }

    #[test]
    fn invalid_json_is_refused_with_line_and_column() {
        for bad in [
            &b"{"[..],
            b"{\"a\":NaN}",
            b"[1e400]",
            b"[01]",
            b"{'a':1}",
            b"nul",
            b"\"\\ud800\"",
            b"{} {}",
            b"\xef\xbb\xbf{}",
            b"[1 2]",
            b"\"\n\"",
        ] {
            assert!(
                parse_error_detail(bad).contains("line 1, column ") || bad.contains(&b'\n'),
                "{bad:?}"
            );
        }
        assert!(
            parse_error_detail(b"").contains("empty")
                && parse_error_detail(b" \r\n").contains("empty")
        );
        assert!(parse_error_detail(b"{\"a\":\"\xff\"}").contains("not UTF-8: byte 7"));
    }

    #[test]
    fn a_duplicate_key_is_reported() {
        let text = parse_error_detail(b"{\"a\":1,\n\"b\":{\"x\":1,\"x\":2}}");
        assert!(text.contains("line 2") && text.contains("the key `x` appears twice"), "{text}");
        assert!(parse_error_detail(br#"{"\u001b[2J":1,"\u001b[2J":1}"#).contains("\\#033[2J"));
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(parse_json(&nest(60)).is_ok());
        for n in [70, 200, 100_000] {
            assert!(!parse_error_detail(&nest(n)).is_empty());
        }
        assert!(!parse_error_detail(&vec![b'['; 100_000]).is_empty());
        let objects = "{\"a\":".repeat(100_000);
        assert!(!parse_error_detail(objects.as_bytes()).is_empty());
    }

    #[test]
    fn the_number_of_values_in_a_document_is_bounded() {
        let mut many = vec![b'['];
        for _ in 0..=MAX_VALUES {
            many.extend_from_slice(b"1,");
        }
        many.extend_from_slice(b"1]");
        assert!(parse_error_detail(&many).contains("more than 4000000 values"));
    }

    #[test]
    fn values_equal_those_of_serde_json() {
        let text = r#"{"a":[1,-2,2.5,18446744073709551616,"x",null,true],"":{}}"#;
        assert_eq!(
            parse_json(text.as_bytes()).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
    }

    #[test]
    fn a_typed_document_reports_the_invalid_field() {
        let parse = |s: &str| parse_typed::<crate::wire::task::ScanPage>(s.as_bytes()).unwrap_err();
        let digest = "0".repeat(64);
        let problem = parse(&format!(
            r#"{{"task_digest":"{digest}","page":0,"subtrees":["a","../b"],"next":null}}"#
        ));
        assert_eq!((problem.status, problem.errors[0].pointer.as_str()), (422, "/subtrees/1"));
        assert_eq!(parse("{\"page\":0,}").status, 400);
        assert_eq!(parse("{} x").status, 422);
    }
}
