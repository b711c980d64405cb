//! Reads the values of a document with typed getters, and records all problems instead of
//! stopping at the first one. The calls of the getters are the schema: a key without a call is unknown.

use super::Loaded;
use super::document::{Entry, Node, NodeKind};
use super::report::{ConfigErrors, ConfigProblem, Pos, Severity};
use crate::util::{suggest, units};
use crate::wire::path::{escape_bytes, quote};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The maximum number of reported problems.
const MAX_PROBLEMS: usize = 100;

/// Collects the problems of one file.
pub(super) struct Diagnostics {
    origin: String,
    problems: RefCell<Vec<ConfigProblem>>,
    has_secret: Cell<bool>,
    /// The error of a file with a secret, if other users may read the file.
    pub(super) exposure_error: Cell<Option<String>>,
}

impl Diagnostics {
    pub(super) fn new(origin: String) -> Self {
        Diagnostics {
            origin,
            problems: RefCell::default(),
            has_secret: Cell::new(false),
            exposure_error: Cell::default(),
        }
    }

    pub(super) fn record(&self, at: Option<Pos>, severity: Severity, message: String) {
        self.push(self.origin.clone(), at, severity, message);
    }

    fn push(&self, origin: String, at: Option<Pos>, severity: Severity, message: String) {
        self.problems.borrow_mut().push(ConfigProblem { origin, at, severity, message });
    }

    pub(super) fn error(&self, at: impl Into<Option<Pos>>, message: impl Into<String>) {
        self.record(at.into(), Severity::Error, message.into());
    }

    pub(super) fn warn(&self, at: impl Into<Option<Pos>>, message: impl Into<String>) {
        self.record(at.into(), Severity::Warning, message.into());
    }

    /// Records an error of an environment variable.
    pub(super) fn env_error(&self, variable: &str, message: String) {
        self.push(variable.to_owned(), None, Severity::Error, message);
    }

    /// All problems, in the order of the file.
    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        if let Some(message) = self.exposure_error.take().filter(|_| self.has_secret.get()) {
            self.error(None, message);
        }
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| p.at);
        problems.dedup();
        if problems.len() > MAX_PROBLEMS {
            let rest = (problems.len() - MAX_PROBLEMS) as u64;
            let severity = problems.iter().map(|p| p.severity).min().unwrap_or(Severity::Error);
            problems.truncate(MAX_PROBLEMS);
            let message =
                format!("and {}", units::pluralize(rest, "more problem", "more problems"));
            problems.push(ConfigProblem { origin: self.origin, at: None, severity, message });
        }
        problems
    }

    /// `config` with the warnings, or all problems if one of them is an error.
    pub(super) fn finish<T>(self, config: Option<T>) -> Result<Loaded<T>, ConfigErrors> {
        let problems = self.into_problems();
        let has_error = problems.iter().any(|p| p.severity == Severity::Error);
        match config {
            Some(config) if !has_error => Ok(Loaded { config, warnings: problems }),
            _ => Err(ConfigErrors { problems }),
        }
    }
}

/// A value with its position and its path in the document.
#[derive(Clone)]
pub(super) struct Item<'a> {
    /// E.g. `workers[0].storage_paths`; empty for the whole document.
    pub(super) path: String,
    pub(super) at: Pos,
    node: &'a Node,
    pub(super) diagnostics: &'a Diagnostics,
}

impl<'a> Item<'a> {
    pub(super) fn root(node: &'a Node, diagnostics: &'a Diagnostics) -> Self {
        Item { path: String::new(), at: node.at, node, diagnostics }
    }

    pub(super) fn error(&self, message: impl AsRef<str>) {
        self.diagnostics.error(self.at, self.with_path(message.as_ref()));
    }

    pub(super) fn warn(&self, message: impl AsRef<str>) {
        self.diagnostics.warn(self.at, self.with_path(message.as_ref()));
    }

    /// Records an error at this position for the key `key` of the same map.
    pub(super) fn error_for_sibling(&self, key: &str, message: &str) {
        let parent =
            self.path.rsplit_once('.').map_or(String::new(), |(above, _)| format!("{above}."));
        self.diagnostics.error(self.at, format!("{parent}{key}: {message}"));
    }

    fn with_path(&self, message: &str) -> String {
        if self.path.is_empty() { message.to_owned() } else { format!("{}: {message}", self.path) }
    }

    fn unexpected<T>(&self, expected: &str) -> Option<T> {
        let found = match &self.node.kind {
            NodeKind::Null => "nothing".to_owned(),
            NodeKind::Scalar(text) => quote(text),
            NodeKind::List(_) => "a list".to_owned(),
            NodeKind::Map(_) => "keys and values".to_owned(),
        };
        self.error(format!("expected {expected}, found {found}"));
        None
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.kind, NodeKind::List(_))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.kind, NodeKind::Map(_))
    }

    /// The keys of a map; a missing value is an empty map.
    pub(super) fn fields(&self) -> Option<Fields<'a>> {
        let entries: &'a [Entry] = match &self.node.kind {
            NodeKind::Map(entries) => entries,
            NodeKind::Null => &[],
            _ => return self.unexpected("keys and values (`key: value`)"),
        };
        Some(Fields { item: self.clone(), entries, requested: RefCell::default() })
    }

    /// The elements of a list.
    pub(super) fn items(&self) -> Option<Vec<Item<'a>>> {
        let NodeKind::List(nodes) = &self.node.kind else {
            return self.unexpected("a list (`- one` lines, or `[one, two]`)");
        };
        let item = |(i, node): (usize, &'a Node)| {
            let path = format!("{}[{i}]", self.path);
            Item { path, at: node.at, node, diagnostics: self.diagnostics }
        };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// The elements of a list, or the item itself as the only element.
    pub(super) fn items_or_self(&self) -> Vec<Item<'a>> {
        if self.is_list() { self.items().unwrap_or_default() } else { vec![self.clone()] }
    }

    /// A scalar parsed by `parse`; `expected` describes a valid one.
    pub(super) fn parse<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Option<T> {
        let NodeKind::Scalar(text) = &self.node.kind else { return self.unexpected(expected) };
        parse(text).map_err(|message| self.error(message)).ok()
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.parse("text", |text| {
            let is_usable = !text.is_empty() && !text.contains(char::is_control);
            if is_usable { Ok(text) } else { Err(format!("{} is not usable text", quote(text))) }
        })
    }

    /// Text that no message repeats.
    pub(super) fn secret(&self) -> Option<&'a str> {
        let text = self.parse("text", Ok)?;
        self.mark_secret();
        Some(text)
    }

    /// Records that the file contains a secret.
    pub(super) fn mark_secret(&self) {
        self.diagnostics.has_secret.set(true);
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.parse("`true` or `false`", |text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(format!("expected `true` or `false`, found {}", quote(text))),
        })
    }

    pub(super) fn number<T: TryFrom<u64>>(&self, allowed: RangeInclusive<u64>) -> Option<T> {
        let expected = format!("a whole number from {} to {}", allowed.start(), allowed.end());
        let value = self.parse(&expected, |text| {
            let value =
                text.parse().map_err(|_| format!("expected {expected}, found {}", quote(text)))?;
            check_range(value, allowed, &value.to_string(), u64::to_string)
        })?;
        T::try_from(value).ok()
    }

    /// `45s`, `1h30m`, or a number of seconds, also with a fraction.
    pub(super) fn duration(&self, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        let format = |value: &Duration| units::format_duration(*value);
        self.parse("a time such as `45s`, `5m` or `2h`", |text| {
            check_range(parse_duration(text)?, allowed, &quote(text), format)
        })
    }

    /// A size in bytes: `64MiB`, `1GiB`.
    pub(super) fn size<T: TryFrom<u64>>(&self, allowed: RangeInclusive<u64>) -> Option<T> {
        let format = |value: &u64| units::format_bytes(*value);
        let value = self.parse("a size such as `64MiB`", |text| {
            check_range(units::parse_size(text)?, allowed, &quote(text), format)
        })?;
        T::try_from(value).ok()
    }

    /// Bytes per second: `100MiB/s`, or `none`.
    pub(super) fn limit(&self) -> Option<Option<u64>> {
        self.parse("a limit such as `100MiB/s`, or `none`", units::parse_bwlimit)
    }

    pub(super) fn absolute_path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.text()?);
        if !path.is_absolute() {
            self.error("must be an absolute path (start with `/`)");
            return None;
        }
        Some(path)
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let expected = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ");
        self.parse(&expected, |text| {
            let found = words.iter().find(|(name, _)| *name == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                format!("expected {expected}, found {}{}", quote(text), did_you_mean(text, &names))
            })
        })
    }
}

fn check_range<T: PartialOrd>(
    value: T,
    allowed: RangeInclusive<T>,
    text: &str,
    format: impl Fn(&T) -> String,
) -> Result<T, String> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (format(allowed.start()), format(allowed.end()));
    Err(format!("{text} is out of range: it must be from {low} to {high}"))
}

/// The keys of a map. [`Fields::finish`] must be called after all known keys were requested.
pub(super) struct Fields<'a> {
    /// The map itself.
    pub(super) item: Item<'a>,
    entries: &'a [Entry],
    requested: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The value of `key`, if it is present.
    pub(super) fn get(&self, key: &'static str) -> Option<Item<'a>> {
        self.requested.borrow_mut().push(key);
        self.entries.iter().find(|e| e.key == key).map(|e| self.to_item(e))
    }

    /// Assigns the value of `key` to `target`, if it is present and `read` accepts it.
    pub(super) fn set<T>(
        &self,
        key: &'static str,
        target: &mut T,
        read: impl FnOnce(&Item<'a>) -> Option<T>,
    ) {
        if let Some(value) = self.get(key).and_then(|item| read(&item)) {
            *target = value;
        }
    }

    /// Reads the map at `key`, if it is present, by `read`, which requests all known keys.
    pub(super) fn read_map(&self, key: &'static str, read: impl FnOnce(&Fields<'a>)) {
        if let Some(fields) = self.get(key).and_then(|item| item.fields()) {
            read(&fields);
            fields.finish();
        }
    }

    /// The value of `key`, which must be present.
    pub(super) fn require(&self, key: &'static str, hint: &str) -> Option<Item<'a>> {
        let found = self.get(key);
        if found.is_none() {
            self.report_missing(key, hint);
        }
        found
    }

    pub(super) fn report_missing(&self, key: &str, hint: &str) {
        let message = format!("missing key `{key}`{}{hint}", self.location_suffix());
        self.item.diagnostics.error(self.item.at, message);
    }

    /// All keys with their values, for keys that the operator chooses.
    pub(super) fn entries(&self) -> Vec<(&'a str, Pos, Item<'a>)> {
        self.entries.iter().map(|e| (e.key.as_str(), e.at, self.to_item(e))).collect()
    }

    /// Warns of `key`, if it is present: it is accepted, but replaced by another setting.
    pub(super) fn warn_outdated(&self, key: &'static str, advice: &str) {
        self.requested.borrow_mut().push(key);
        if let Some(entry) = self.entries.iter().find(|e| e.key == key) {
            let message = format!("`{key}`{} is outdated — {advice}", self.location_suffix());
            self.item.diagnostics.warn(entry.at, message);
        }
    }

    /// Reports duplicate keys and those that were not requested.
    pub(super) fn finish(self) {
        let requested = self.requested.borrow();
        let mut first_lines: HashMap<&str, usize> = HashMap::new();
        for entry in self.entries {
            let key = entry.key.as_str();
            let (name, suffix) = (quote(key), self.location_suffix());
            if let Some(line) = first_lines.get(key) {
                let message = format!("duplicate key {name}{suffix} — first given on line {line}");
                self.item.diagnostics.error(entry.at, message);
            } else if !requested.contains(&key) {
                let is_full = self.item.diagnostics.problems.borrow().len() > MAX_PROBLEMS;
                let hint = if is_full { String::new() } else { did_you_mean(key, &requested) };
                let message = format!("unknown key {name}{suffix}{hint}");
                self.item.diagnostics.error(entry.at, message);
            }
            first_lines.entry(key).or_insert(entry.at.line);
        }
    }

    fn location_suffix(&self) -> String {
        if self.item.path.is_empty() { String::new() } else { format!(" in {}", self.item.path) }
    }

    fn to_item(&self, entry: &'a Entry) -> Item<'a> {
        let key = escape_bytes(entry.key.as_bytes());
        let path = match self.item.path.as_str() {
            "" => key,
            above => format!("{above}.{key}"),
        };
        // A missing value has the position of its key.
        let at = if entry.value.kind == NodeKind::Null { entry.at } else { entry.value.at };
        Item { path, at, node: &entry.value, diagnostics: self.item.diagnostics }
    }
}

/// ` — did you mean …?`, or empty.
pub(super) fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    match suggest::closest_match(word, candidates.iter().copied()) {
        Some(near) => format!(" — did you mean `{near}`?"),
        None => String::new(),
    }
}

/// [`units::parse_duration`], or a number of seconds with a fraction as in files of the predecessor.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let is_decimal = text.contains('.') && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if is_decimal && let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("{} is too long a time", quote(text)));
    }
    units::parse_duration(text)
}
