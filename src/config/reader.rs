//! Reads a document as its schema asks for it, and notes every problem on the way instead of
//! stopping at the first. The code that asks *is* the schema: a key that nobody asked for is unknown.

use super::Loaded;
use super::document::{Entry, Kind, Node};
use super::report::{ConfigErrors, ConfigProblem, Pos, Severity};
use crate::util::{suggest, units};
use crate::wire::path::escape_bytes;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

/// More lines than these help nobody.
const MAX_PROBLEMS: usize = 100;

/// Collects what is wrong with one file.
pub(super) struct Diagnostics {
    origin: String,
    problems: RefCell<Vec<ConfigProblem>>,
    secret: Cell<bool>,
}

impl Diagnostics {
    pub(super) fn new(origin: String) -> Self {
        Diagnostics { origin, problems: RefCell::default(), secret: Cell::new(false) }
    }

    /// Whether the file holds something that other users must not read.
    pub(super) fn has_secret(&self) -> bool {
        self.secret.get()
    }

    pub(super) fn record(&self, at: Option<Pos>, severity: Severity, message: String) {
        let origin = self.origin.clone();
        self.problems.borrow_mut().push(ConfigProblem { origin, at, severity, message });
    }

    pub(super) fn error(&self, at: impl Into<Option<Pos>>, message: impl Into<String>) {
        self.record(at.into(), Severity::Error, message.into());
    }

    pub(super) fn warn(&self, at: impl Into<Option<Pos>>, message: impl Into<String>) {
        self.record(at.into(), Severity::Warning, message.into());
    }

    /// Notes what is wrong with an environment variable.
    pub(super) fn env_error(&self, variable: &str, message: String) {
        let origin = variable.to_owned();
        self.problems.borrow_mut().push(ConfigProblem {
            origin,
            at: None,
            severity: Severity::Error,
            message,
        });
    }

    /// Everything found, in the order of the file.
    pub(super) fn into_problems(self) -> Vec<ConfigProblem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| p.at);
        problems.dedup();
        if problems.len() > MAX_PROBLEMS {
            let rest = problems.len() - MAX_PROBLEMS;
            let severity = problems.iter().map(|p| p.severity).min().unwrap_or(Severity::Error);
            problems.truncate(MAX_PROBLEMS);
            let message =
                format!("and {}", units::pluralize(rest as u64, "more problem", "more problems"));
            problems.push(ConfigProblem { origin: self.origin, at: None, severity, message });
        }
        problems
    }

    /// `config` if nothing is wrong with it.
    pub(super) fn finish<T>(self, config: Option<T>) -> Result<Loaded<T>, ConfigErrors> {
        let failed = self.problems.borrow().iter().any(|p| p.severity == Severity::Error);
        match config {
            Some(config) if !failed => Ok(Loaded { config, warnings: self.into_problems() }),
            _ => Err(ConfigErrors { problems: self.into_problems() }),
        }
    }
}

/// A value, where it is and how it is called.
#[derive(Clone)]
pub(super) struct Item<'a> {
    /// E.g. `workers[0].storage_paths`; empty for the whole document.
    pub(super) path: String,
    pub(super) at: Pos,
    node: &'a Node,
    findings: &'a Diagnostics,
}

impl<'a> Item<'a> {
    pub(super) fn root(node: &'a Node, findings: &'a Diagnostics) -> Self {
        Item { path: String::new(), at: node.at, node, findings }
    }

    pub(super) fn error(&self, message: impl AsRef<str>) {
        self.findings.error(self.at, self.named(message.as_ref()));
    }

    pub(super) fn warn(&self, message: impl AsRef<str>) {
        self.findings.warn(self.at, self.named(message.as_ref()));
    }

    /// An error that shows up here and is about the neighbouring `key`.
    pub(super) fn error_for_sibling(&self, key: &str, message: &str) {
        let parent =
            self.path.rsplit_once('.').map_or(String::new(), |(above, _)| format!("{above}."));
        self.findings.error(self.at, format!("{parent}{key}: {message}"));
    }

    fn named(&self, message: &str) -> String {
        if self.path.is_empty() { message.to_owned() } else { format!("{}: {message}", self.path) }
    }

    fn unexpected<T>(&self, wanted: &str) -> Option<T> {
        let found = match &self.node.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Scalar(text) => quoted(text),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "keys and values".to_owned(),
        };
        self.error(format!("expected {wanted}, found {found}"));
        None
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.kind, Kind::List(_))
    }

    pub(super) fn is_empty(&self) -> bool {
        match &self.node.kind {
            Kind::Null => true,
            Kind::Scalar(text) => text.is_empty(),
            Kind::List(items) => items.is_empty(),
            Kind::Map(entries) => entries.is_empty(),
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.kind, Kind::Map(_))
    }

    /// Its keys; nothing at all counts as no keys.
    pub(super) fn fields(&self) -> Option<Fields<'a>> {
        let entries: &'a [Entry] = match &self.node.kind {
            Kind::Map(entries) => entries,
            Kind::Null => &[],
            _ => return self.unexpected("keys and values (`key: value`)"),
        };
        Some(Fields { item: self.clone(), entries, requested: RefCell::default() })
    }

    /// Its elements.
    pub(super) fn items(&self) -> Option<Vec<Item<'a>>> {
        let Kind::List(nodes) = &self.node.kind else {
            return self.unexpected("a list (`- one` lines, or `[one, two]`)");
        };
        let item = |(i, node): (usize, &'a Node)| {
            let path = format!("{}[{i}]", self.path);
            Item { path, at: node.at, node, findings: self.findings }
        };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// Its text as `parse` understands it; `wanted` says in words what that is.
    pub(super) fn parse<T>(
        &self,
        wanted: &str,
        parse: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Option<T> {
        let Kind::Scalar(text) = &self.node.kind else { return self.unexpected(wanted) };
        parse(text).map_err(|message| self.error(message)).ok()
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.parse("text", |text| {
            let bad = text.is_empty() || text.contains(char::is_control);
            if bad { Err(format!("{} is not usable text", quoted(text))) } else { Ok(text) }
        })
    }

    /// Text that must not be repeated in a message.
    pub(super) fn secret(&self) -> Option<&'a str> {
        let Kind::Scalar(text) = &self.node.kind else {
            self.error("expected text");
            return None;
        };
        self.mark_secret();
        Some(text)
    }

    /// Notes that other users must not read the file.
    pub(super) fn mark_secret(&self) {
        self.findings.secret.set(true);
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.parse("`true` or `false`", |text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(format!("expected `true` or `false`, found {}", quoted(text))),
        })
    }

    pub(super) fn number(&self, allowed: RangeInclusive<u64>) -> Option<u64> {
        let (low, high) = (*allowed.start(), *allowed.end());
        let wanted = format!("a whole number from {low} to {high}");
        self.parse(&wanted, |text| {
            let value =
                text.parse().map_err(|_| format!("expected {wanted}, found {}", quoted(text)))?;
            if allowed.contains(&value) {
                Ok(value)
            } else {
                Err(format!("{value} is out of range: it must be from {low} to {high}"))
            }
        })
    }

    /// A time: `45s`, `1h30m`, or a bare number of seconds, whole or not.
    pub(super) fn duration(&self, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        self.parse("a time such as `45s`, `5m` or `2h`", |text| {
            let value = parse_duration(text)?;
            if allowed.contains(&value) {
                return Ok(value);
            }
            let (low, high) =
                (units::format_duration(*allowed.start()), units::format_duration(*allowed.end()));
            Err(format!("{} is out of range: it must be from {low} to {high}", quoted(text)))
        })
    }

    /// A size in bytes: `64MiB`, `1GiB`.
    pub(super) fn size(&self, allowed: RangeInclusive<u64>) -> Option<u64> {
        self.parse("a size such as `64MiB`", |text| {
            let value = units::parse_size(text)?;
            if allowed.contains(&value) {
                return Ok(value);
            }
            let (low, high) =
                (units::format_bytes(*allowed.start()), units::format_bytes(*allowed.end()));
            Err(format!("{} is out of range: it must be from {low} to {high}", quoted(text)))
        })
    }

    /// Bytes per second: `100MiB/s`, or `none`.
    pub(super) fn limit(&self) -> Option<Option<u64>> {
        self.parse("a limit such as `100MiB/s`, or `none`", units::parse_bwlimit)
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let wanted = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ");
        self.parse(&wanted, |text| {
            let found = words.iter().find(|(name, _)| *name == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                format!("expected {wanted}, found {}{}", quoted(text), did_you_mean(text, &names))
            })
        })
    }
}

/// The keys of a map. Call [`Fields::finish`] after asking for all that may be there.
pub(super) struct Fields<'a> {
    /// The map itself.
    pub(super) item: Item<'a>,
    entries: &'a [Entry],
    requested: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The value of `key`, if it is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Item<'a>> {
        self.requested.borrow_mut().push(key);
        self.entries.iter().find(|e| e.key == key).map(|e| self.to_item(e))
    }

    /// The value of `key`, which must be there.
    pub(super) fn require(&self, key: &'static str, hint: &str) -> Option<Item<'a>> {
        let found = self.get(key);
        if found.is_none() {
            self.report_missing(key, hint);
        }
        found
    }

    pub(super) fn report_missing(&self, key: &str, hint: &str) {
        let message = format!("missing key `{key}`{}{hint}", self.location_suffix());
        self.item.findings.error(self.item.at, message);
    }

    pub(super) fn error_at(&self, at: Pos, message: &str) {
        self.item.findings.error(at, message);
    }

    pub(super) fn warn_at(&self, at: Pos, message: &str) {
        self.item.findings.warn(at, message);
    }

    /// Where a key itself stands.
    fn key_at(&self, key: &str) -> Pos {
        self.entries.iter().find(|e| e.key == key).map_or(self.item.at, |e| e.at)
    }

    /// Every key with its value, where the keys are names that the operator chooses.
    pub(super) fn entries(&self) -> Vec<(&'a str, Pos, Item<'a>)> {
        self.entries.iter().map(|e| (e.key.as_str(), e.at, self.to_item(e))).collect()
    }

    /// Warns of `key`, if it is there: it is accepted, and something else takes its place.
    pub(super) fn warn_outdated(&self, key: &'static str, advice: &str) {
        if self.get(key).is_some() {
            let message = format!("`{key}`{} is outdated — {advice}", self.location_suffix());
            self.item.findings.warn(self.key_at(key), message);
        }
    }

    /// Reports the keys given twice and those that nobody asked for.
    pub(super) fn finish(self) {
        let asked = self.requested.borrow();
        let mut lines: HashMap<&str, usize> = HashMap::new();
        for entry in self.entries {
            let name = quoted(&entry.key);
            if let Some(line) = lines.get(entry.key.as_str()) {
                self.item.findings.error(
                    entry.at,
                    format!(
                        "duplicate key {name}{} — first given on line {line}",
                        self.location_suffix()
                    ),
                );
            } else if !asked.contains(&entry.key.as_str()) {
                let crowded = self.item.findings.problems.borrow().len() > MAX_PROBLEMS;
                let hint = if crowded { String::new() } else { did_you_mean(&entry.key, &asked) };
                self.item
                    .findings
                    .error(entry.at, format!("unknown key {name}{}{hint}", self.location_suffix()));
            }
            lines.entry(&entry.key).or_insert(entry.at.line);
        }
    }

    fn location_suffix(&self) -> String {
        if self.item.path.is_empty() { String::new() } else { format!(" in {}", self.item.path) }
    }

    fn to_item(&self, entry: &'a Entry) -> Item<'a> {
        let path = match self.item.path.as_str() {
            "" => escape_bytes(entry.key.as_bytes()),
            above => format!("{above}.{}", escape_bytes(entry.key.as_bytes())),
        };
        // A value that is not there has no place of its own.
        let at = if entry.value.kind == Kind::Null { entry.at } else { entry.value.at };
        Item { path, at, node: &entry.value, findings: self.item.findings }
    }
}

/// Text between backticks, safe to print and not too long.
pub(super) fn quoted(text: &str) -> String {
    const MAX_QUOTED_CHARS: usize = 80;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        None => format!("`{}`", escape_bytes(text.as_bytes())),
        Some((end, _)) => format!("`{}…`", escape_bytes(&text.as_bytes()[..end])),
    }
}

/// ` — did you mean …?`, or nothing.
pub(super) fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    match suggest::closest_match(word, candidates.iter().copied()) {
        Some(near) => format!(" — did you mean `{near}`?"),
        None => String::new(),
    }
}

/// [`units::parse_duration`], and the predecessor's `45.0`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let decimal = text.contains('.') && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if decimal && let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("{} is too long a time", quoted(text)));
    }
    units::parse_duration(text)
}
