//! YAML text → a tree in which every key and value knows its place.
//!
//! One parser gives both values and positions (`saphyr-parser`, events only), so the two cannot
//! disagree. Scalars stay text: what type a value should have is the business of whoever asks for it,
//! so `no`, `012` and `12:30` are what the operator wrote. Aliases and `<<` merges work, within a
//! budget; duplicate keys are kept so that they can be reported.

use super::report::Pos;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use std::collections::{HashMap, HashSet};

/// Deeper than any shipped configuration by far.
const MAX_DEPTH: usize = 32;
/// Values in one file after its aliases are written out: thousands of workers, no alias bomb.
const MAX_NODES: usize = 200_000;

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Pos,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Pos,
    pub(super) value: Node,
}

/// What is wrong with the text as YAML, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) at: Pos,
    pub(super) message: String,
}

/// Parses the one document in `text`; `None` when there is none (nothing but comments).
pub(super) fn parse(text: &str) -> Result<Option<Node>, Flaw> {
    let mut parser = Parser::new_from_str(text);
    let mut tree = Tree::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|flaw| syntax(text, &flaw))?;
        tree.take(event, pos(&span.start))?;
    }
    Ok(tree.root)
}

fn pos(mark: &Marker) -> Pos {
    Pos { line: mark.line().max(1), col: mark.col() + 1 }
}

fn flaw<T>(at: Pos, message: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw { at, message: message.into() })
}

fn syntax(text: &str, error: &saphyr_parser::ScanError) -> Flaw {
    let at = pos(error.marker());
    let line = text.lines().nth(at.line - 1).unwrap_or_default();
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    let hint = if indent.contains('\t') { " — indent with spaces, not tabs" } else { "" };
    Flaw { at, message: format!("not valid YAML: {}{hint}", error.info()) }
}

/// A list or map whose end has not come yet.
struct Open {
    at: Pos,
    anchor: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Pos)> },
}

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, at: Pos) -> Result<(), Flaw> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                flaw(at, "a second document starts here — a configuration file holds one")
            }
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), at)?;
                if self.wants_key() {
                    self.note_anchor(anchor, || Node { at, kind: Kind::Scalar(text.to_string()) });
                    return self.set_key(text.into_owned(), at);
                }
                let null = style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let kind = if null { Kind::Null } else { Kind::Scalar(text.into_owned()) };
                self.put(Node { at, kind }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                self.start(Inside::List(Vec::new()), anchor, tag.as_deref(), at)
            }
            Event::MappingStart(anchor, tag) => self.start(
                Inside::Map { entries: Vec::new(), key: None },
                anchor,
                tag.as_deref(),
                at,
            ),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return flaw(at, "an alias (`*`) to a value that it is part of");
                };
                let cost = size(node);
                if self.nodes + cost > MAX_NODES {
                    return flaw(at, TOO_MANY);
                }
                let node = node.clone();
                if self.wants_key() {
                    return match node.kind {
                        Kind::Scalar(text) => self.set_key(text, at),
                        _ => flaw(at, NO_KEY),
                    };
                }
                self.put(node, 0, cost)
            }
            _ => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { inside: Inside::Map { key: None, .. }, .. }))
    }

    fn set_key(&mut self, text: String, at: Pos) -> Result<(), Flaw> {
        self.nodes += 1;
        if let Some(Open { inside: Inside::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((text, at));
        }
        Ok(())
    }

    fn note_anchor(&mut self, anchor: usize, node: impl FnOnce() -> Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, node());
        }
    }

    fn start(
        &mut self,
        inside: Inside,
        anchor: usize,
        tag: Option<&Tag>,
        at: Pos,
    ) -> Result<(), Flaw> {
        check_tag(tag, at)?;
        if self.wants_key() {
            return flaw(at, NO_KEY);
        }
        if self.open.len() >= MAX_DEPTH {
            return flaw(at, format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.open.push(Open { at, anchor, inside });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Flaw> {
        let Some(Open { at, anchor, inside }) = self.open.pop() else { return Ok(()) };
        let kind = match inside {
            Inside::List(items) => Kind::List(items),
            Inside::Map { entries, .. } => Kind::Map(self.merged(entries)?),
        };
        self.put(Node { at, kind }, anchor, 1)
    }

    /// Hangs a finished node into the list or map that is open.
    fn put(&mut self, node: Node, anchor: usize, cost: usize) -> Result<(), Flaw> {
        self.nodes += cost;
        if self.nodes > MAX_NODES {
            return flaw(node.at, TOO_MANY);
        }
        self.note_anchor(anchor, || node.clone());
        match self.open.last_mut().map(|open| &mut open.inside) {
            None => self.root = Some(node),
            Some(Inside::List(items)) => items.push(node),
            Some(Inside::Map { entries, key }) => {
                if let Some((key, at)) = key.take() {
                    entries.push(Entry { key, at, value: node });
                }
            }
        }
        Ok(())
    }

    /// Writes out `<<: *other` and `<<: [*one, *two]`: keys of its own go before merged ones, and
    /// earlier merged ones before later.
    fn merged(&mut self, entries: Vec<Entry>) -> Result<Vec<Entry>, Flaw> {
        if !entries.iter().any(|e| e.key == "<<") {
            return Ok(entries);
        }
        let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.key == "<<");
        let mut names: HashSet<String> = own.iter().map(|e| e.key.clone()).collect();
        for merge in merges {
            let sources = match merge.value.kind {
                Kind::List(items) => items,
                _ => vec![merge.value],
            };
            for source in sources {
                let Kind::Map(more) = source.kind else {
                    return flaw(merge.at, "`<<` takes a map, as in `<<: *name`");
                };
                own.extend(more.into_iter().filter(|entry| names.insert(entry.key.clone())));
            }
        }
        Ok(own)
    }
}

const TOO_MANY: &str = "holds too many values (aliases written out)";
const NO_KEY: &str = "a key must be plain text, not a list or map";

fn check_tag(tag: Option<&Tag>, at: Pos) -> Result<(), Flaw> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            let shown = crate::wire::path::show(tag.to_string().as_bytes());
            flaw(at, format!("tag `{shown}` has no meaning here — remove it"))
        }
        _ => Ok(()),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::Null | Kind::Scalar(_) => 0,
        Kind::List(items) => items.iter().map(size).sum(),
        Kind::Map(entries) => entries.iter().map(|e| 1 + size(&e.value)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(node: &Node) -> String {
        let at = format!("@{}:{}", node.at.line, node.at.col);
        match &node.kind {
            Kind::Null => format!("null{at}"),
            Kind::Scalar(text) => format!("{text:?}{at}"),
            Kind::List(items) => {
                format!("[{}]{at}", items.iter().map(shape).collect::<Vec<_>>().join(" "))
            }
            Kind::Map(entries) => {
                let inner = entries
                    .iter()
                    .map(|e| format!("{}@{}:{}={}", e.key, e.at.line, e.at.col, shape(&e.value)));
                format!("{{{}}}{at}", inner.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let text = "a: no\nb:\n  - 012\n  - {c: '8', d: }\ne: \"x\\ty\"\n";
        assert_eq!(
            shape(&parse(text).unwrap().unwrap()),
            r#"{a@1:1="no"@1:4 b@2:1=["012"@3:5 {c@4:6="8"@4:9 d@4:14=null@4:15}@4:5]@3:3 e@5:1="x\ty"@5:4}@1:1"#
        );
        let crlf = parse("a: 1\r\nb: 2\r\n").unwrap().unwrap();
        assert_eq!(shape(&crlf), r#"{a@1:1="1"@1:4 b@2:1="2"@2:4}@1:1"#);
    }

    #[test]
    fn aliases_and_merges_are_written_out() {
        let text = "base: &b {x: 1, y: 2}\none:\n  <<: *b\n  y: 3\ntwo: *b\n";
        assert_eq!(
            shape(&parse(text).unwrap().unwrap()),
            r#"{base@1:1={x@1:11="1"@1:14 y@1:17="2"@1:20}@1:7 one@2:1={y@4:3="3"@4:6 x@1:11="1"@1:14}@3:3 two@5:1={x@1:11="1"@1:14 y@1:17="2"@1:20}@1:7}@1:1"#
        );
    }

    #[test]
    fn bombs_are_defused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..30 {
            let below = format!("*a{}, ", i - 1).repeat(10);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", below.trim_end_matches(", ")));
        }
        assert_eq!(parse(&bomb).unwrap_err().message, TOO_MANY);
        for deep in ["[".repeat(100_000), "a: {".repeat(50_000), "- ".repeat(100_000)] {
            let flaw = parse(&deep).unwrap_err();
            let refused = ["nested more than 32", "recursion limit"];
            assert!(refused.iter().any(|r| flaw.message.contains(r)), "{}", flaw.message);
        }
        assert!(parse("a: &a [*a]\n").unwrap_err().message.contains("part of"));
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        for (text, line, col, part) in [
            ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
            ("a: !secret x\n", 1, 4, "tag `!secret`"),
            ("? [a]\n: b\n", 1, 3, "a key must be plain text"),
            ("a: 1\n<<: 2\n", 2, 1, "`<<` takes a map"),
            ("a: 'x\n", 1, 4, "not valid YAML"),
            ("a:\n\t- b\n", 2, 2, "spaces, not tabs"),
        ] {
            let flaw = parse(text).unwrap_err();
            assert!(flaw.message.contains(part), "{text:?}: {}", flaw.message);
            assert_eq!(flaw.at, Pos { line, col }, "{text:?}: {}", flaw.message);
        }
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("# only words\n"), Ok(None));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn nothing_like_yaml_makes_it_panic(
            text in "([a-c&*!<?:,{}\\[\\]'\"|>%@#~-]|: |- |\n|  |\t|---|\\.\\.\\.){0,60}"
        ) {
            let _ = parse(&text);
        }
    }
}
