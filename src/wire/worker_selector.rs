//! The selection of workers by an operator: `gpu-1`, `gpu-*`, `@rack=3`.

use super::WorkerId;
use super::path::quote;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The labels of a worker: key to value.
pub type Labels = BTreeMap<String, String>;

/// The maximum number of selectors in a request.
pub const MAX_SELECTORS: usize = 16_384;

const MAX_SELECTOR_CHARS: usize = 256;

/// One selector: a worker id, a pattern of ids with `*` (any characters) and `?` (one character), or `@KEY=VALUE` for
/// a label, where VALUE may be such a pattern too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerSelector(Kind);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Id(WorkerId),
    Pattern(String),
    Label { key: String, value: String },
}

/// Whether `text` can be the key or the value of a label: 1 to 63 of `A-Z a-z 0-9 . _ -`.
pub fn is_label_part(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(is_label_byte)
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters and `?` for one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // The position after the last `*`, and how much of the text it takes: only the last one is ever moved.
    let (mut p, mut t, mut last) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last = Some((p + 1, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match last {
                Some((after, taken)) => {
                    last = Some((after, taken + 1));
                    (p, t) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl WorkerSelector {
    /// Whether it selects the worker with this id and these labels.
    pub fn selects(&self, id: &WorkerId, labels: &Labels) -> bool {
        match &self.0 {
            Kind::Id(wanted) => wanted == id,
            Kind::Pattern(pattern) => matches(pattern.as_bytes(), id.as_str().as_bytes()),
            Kind::Label { key, value } => {
                labels.get(key).is_some_and(|found| matches(value.as_bytes(), found.as_bytes()))
            }
        }
    }

    /// The worker that it names, if it is no pattern.
    pub fn id(&self) -> Option<&WorkerId> {
        match &self.0 {
            Kind::Id(id) => Some(id),
            _ => None,
        }
    }

    /// Reads a list separated by commas, e.g. `gpu-1,gpu-2`.
    ///
    /// # Errors
    /// The first that is no selector.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(str::parse).collect()
    }
}

impl FromStr for WorkerSelector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_SELECTOR_CHARS {
            return Err(format!("must be at most {MAX_SELECTOR_CHARS} characters"));
        }
        if let Some(label) = text.strip_prefix('@') {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            if !is_label_part(key) {
                return Err(format!("{} is no label: write @KEY=VALUE, e.g. @rack=3", quote(text)));
            }
            if value.is_empty() {
                return Err(format!(
                    "{} has no value: write @{key}=VALUE, or @{key}=* for any value",
                    quote(text)
                ));
            }
            if !value.bytes().all(|byte| is_label_byte(byte) || b"*?".contains(&byte)) {
                return Err(format!(
                    "{} has a value with other characters than A-Z a-z 0-9 . _ - * ?",
                    quote(text)
                ));
            }
            return Ok(WorkerSelector(Kind::Label {
                key: key.to_owned(),
                value: value.to_owned(),
            }));
        }
        if !text.contains(['*', '?']) {
            let id = text.parse::<WorkerId>();
            let id = id.map_err(|e| format!("{} is no worker id: it {e}", quote(text)))?;
            return Ok(WorkerSelector(Kind::Id(id)));
        }
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:@-*?".contains(&b);
        match text.bytes().all(is_allowed) {
            true => Ok(WorkerSelector(Kind::Pattern(text.to_owned()))),
            false => Err(format!(
                "{} is no pattern of worker ids: only A-Z a-z 0-9 . _ : @ - * ? may occur",
                quote(text)
            )),
        }
    }
}

impl TryFrom<String> for WorkerSelector {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WorkerId> for WorkerSelector {
    fn from(id: WorkerId) -> Self {
        WorkerSelector(Kind::Id(id))
    }
}

impl From<WorkerSelector> for String {
    fn from(selector: WorkerSelector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for WorkerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Id(id) => id.fmt(f),
            Kind::Pattern(pattern) => f.write_str(pattern),
            Kind::Label { key, value } => write!(f, "@{key}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, id: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        selector.parse::<WorkerSelector>().unwrap().selects(&id.parse().unwrap(), &labels)
    }

    #[test]
    fn ids_patterns_and_labels_select_workers() {
        assert!(selects("gpu-1", "gpu-1", &[]) && !selects("gpu-1", "gpu-11", &[]));
        assert!(selects("gpu-*", "gpu-11", &[]) && !selects("gpu-*", "cpu-1", &[]));
        assert!(selects("gpu-?", "gpu-1", &[]) && !selects("gpu-?", "gpu-11", &[]));
        assert!(selects("*-a*b", "x-aab-ab", &[]) && !selects("*-a*b", "x-aab-a", &[]));
        assert!(selects("*", "any", &[]));
        assert!(selects("@rack=3", "a", &[("rack", "3")]) && !selects("@rack=3", "a", &[]));
        assert!(
            selects("@rack=*", "a", &[("rack", "7")])
                && !selects("@rack=3", "a", &[("rack", "33")])
        );
    }

    #[test]
    fn a_pattern_with_many_stars_is_matched_in_reasonable_time() {
        assert!(!matches(
            &b"*a".repeat(60),
            &[b'a'; 128][..].iter().map(|_| b'b').collect::<Vec<_>>()
        ));
        assert!(!matches(&[&b"a*".repeat(60)[..], b"c"].concat(), &[b'a'; 128]));
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_reason() {
        for (bad, why) in [
            ("", "is no worker id"),
            ("@rack", "has no value"),
            ("@rack=", "has no value"),
            ("@=3", "is no label"),
            ("@", "is no label"),
            ("@rack=a b", "other characters"),
            ("a b", "is no worker id"),
            ("-x", "is no worker id"),
            ("a/*", "no pattern"),
        ] {
            let error = bad.parse::<WorkerSelector>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(WorkerSelector::parse_list("a,,b").is_err());
        assert_eq!(WorkerSelector::parse_list("a,b-*,@x=1").unwrap().len(), 3);
    }
}
