//! YAML text → a tree with the position of every key and value.
//!
//! One parser provides both values and positions (`saphyr-parser`, events only), so the two cannot
//! disagree. Scalars remain text, and the getters determine the type of a value,
//! so `no`, `012` and `12:30` are read as written. Aliases and `<<` merges work within
//! limits; duplicate keys are kept, so that they can be reported.

use super::report::Pos;
use crate::wire::path::quote;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use std::collections::{HashMap, HashSet};

/// Far deeper than any useful configuration.
const MAX_DEPTH: usize = 32;
/// The maximum number of values with expanded aliases: enough for thousands of workers, not for an alias bomb.
const MAX_NODES: usize = 200_000;

const TOO_MANY_VALUES: &str = "holds too many values (aliases written out)";
const KEY_IS_NOT_TEXT: &str = "a key must be plain text, not a list or map";

/// A value and its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Pos,
    pub(super) kind: NodeKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// Nothing, `~` or `null`.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Pos,
    pub(super) value: Node,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    pub(super) at: Pos,
    pub(super) message: String,
}

/// Parses the only document in `text`; `None` for a text with only comments.
pub(super) fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    let mut parser = Parser::new_from_str(text);
    let mut tree = TreeBuilder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| syntax_error(text, &error))?;
        tree.handle_event(event, to_pos(&span.start))?;
    }
    Ok(tree.root)
}

fn to_pos(mark: &Marker) -> Pos {
    Pos { line: mark.line().max(1), col: mark.col() + 1 }
}

fn yaml_error<T>(at: Pos, message: impl Into<String>) -> Result<T, YamlError> {
    Err(YamlError { at, message: message.into() })
}

fn syntax_error(text: &str, error: &saphyr_parser::ScanError) -> YamlError {
    let at = to_pos(error.marker());
    let line = text.lines().nth(at.line - 1).unwrap_or_default();
    let has_tab = line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let hint = if has_tab { " — indent with spaces, not tabs" } else { "" };
    YamlError { at, message: format!("not valid YAML: {}{hint}", error.info()) }
}

/// A list or map before its end.
struct OpenNode {
    node: Node,
    anchor: usize,
    /// The key in a map of which the value follows.
    key: Option<(String, Pos)>,
}

#[derive(Default)]
struct TreeBuilder {
    open: Vec<OpenNode>,
    anchors: HashMap<usize, Node>,
    node_count: usize,
    root: Option<Node>,
}

impl TreeBuilder {
    fn handle_event(&mut self, event: Event<'_>, at: Pos) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                yaml_error(at, "a second document starts here — a configuration file holds one")
            }
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), at)?;
                let is_null = style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let kind = match is_null && !self.expects_key() {
                    true => NodeKind::Null,
                    false => NodeKind::Scalar(text.into_owned()),
                };
                self.insert_node(Node { at, kind }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                self.start(Node { at, kind: NodeKind::List(Vec::new()) }, anchor, tag.as_deref())
            }
            Event::MappingStart(anchor, tag) => {
                self.start(Node { at, kind: NodeKind::Map(Vec::new()) }, anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return yaml_error(at, "an alias (`*`) to a value that it is part of");
                };
                let size = count_nodes(node);
                if self.node_count + size > MAX_NODES {
                    return yaml_error(at, TOO_MANY_VALUES);
                }
                let node = node.clone();
                let node = if self.expects_key() { Node { at, ..node } } else { node };
                self.insert_node(node, 0, size)
            }
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        let is_map = |open: &OpenNode| matches!(open.node.kind, NodeKind::Map(_));
        self.open.last().is_some_and(|open| is_map(open) && open.key.is_none())
    }

    fn start(&mut self, node: Node, anchor: usize, tag: Option<&Tag>) -> Result<(), YamlError> {
        check_tag(tag, node.at)?;
        if self.expects_key() {
            return yaml_error(node.at, KEY_IS_NOT_TEXT);
        }
        if self.open.len() >= MAX_DEPTH {
            return yaml_error(node.at, format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.open.push(OpenNode { node, anchor, key: None });
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlError> {
        let Some(OpenNode { mut node, anchor, .. }) = self.open.pop() else { return Ok(()) };
        if let NodeKind::Map(entries) = &mut node.kind {
            *entries = apply_merges(std::mem::take(entries))?;
        }
        self.insert_node(node, anchor, 1)
    }

    /// Adds a complete node of `size` values to the open list or map.
    fn insert_node(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), YamlError> {
        self.node_count += size;
        if self.node_count > MAX_NODES {
            return yaml_error(node.at, TOO_MANY_VALUES);
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.kind, open.key.take(), node) {
            (NodeKind::Map(entries), Some((key, at)), value) => {
                entries.push(Entry { key, at, value });
            }
            (NodeKind::Map(_), None, Node { at, kind: NodeKind::Scalar(text) }) => {
                open.key = Some((text, at));
            }
            (NodeKind::List(items), _, node) => items.push(node),
            (_, _, node) => return yaml_error(node.at, KEY_IS_NOT_TEXT),
        }
        Ok(())
    }
}

/// Expands `<<: *other` and `<<: [*one, *two]`: keys of the map override merged ones, and
/// earlier merged ones override later ones.
fn apply_merges(entries: Vec<Entry>) -> Result<Vec<Entry>, YamlError> {
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.key == "<<");
    let mut names: HashSet<String> = own.iter().map(|e| e.key.clone()).collect();
    for merge in merges {
        let sources = match merge.value.kind {
            NodeKind::List(items) => items,
            _ => vec![merge.value],
        };
        for source in sources {
            let NodeKind::Map(more) = source.kind else {
                return yaml_error(merge.at, "`<<` must be a map, as in `<<: *name`");
            };
            own.extend(more.into_iter().filter(|entry| names.insert(entry.key.clone())));
        }
    }
    Ok(own)
}

fn check_tag(tag: Option<&Tag>, at: Pos) -> Result<(), YamlError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            let message =
                format!("tag {} has no meaning here — remove it", quote(&tag.to_string()));
            yaml_error(at, message)
        }
        _ => Ok(()),
    }
}

fn count_nodes(node: &Node) -> usize {
    1 + match &node.kind {
        NodeKind::Null | NodeKind::Scalar(_) => 0,
        NodeKind::List(items) => items.iter().map(count_nodes).sum(),
        NodeKind::Map(entries) => entries.iter().map(|e| 1 + count_nodes(&e.value)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(node: &Node) -> String {
        let at = format!("@{}:{}", node.at.line, node.at.col);
        match &node.kind {
            NodeKind::Null => format!("null{at}"),
            NodeKind::Scalar(text) => format!("{text:?}{at}"),
            NodeKind::List(items) => {
                format!("[{}]{at}", items.iter().map(shape).collect::<Vec<_>>().join(" "))
            }
            NodeKind::Map(entries) => {
                let inner = entries
                    .iter()
                    .map(|e| format!("{}@{}:{}={}", e.key, e.at.line, e.at.col, shape(&e.value)));
                format!("{{{}}}{at}", inner.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn every_key_and_value_has_its_position() {
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
    fn alias_bombs_and_deep_nesting_are_rejected() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..30 {
            let below = format!("*a{}, ", i - 1).repeat(10);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", below.trim_end_matches(", ")));
        }
        assert_eq!(parse(&bomb).unwrap_err().message, TOO_MANY_VALUES);
        for deep in ["[".repeat(100_000), "a: {".repeat(50_000), "- ".repeat(100_000)] {
            let error = parse(&deep).unwrap_err();
            let expected = ["nested more than 32", "recursion limit"];
            assert!(expected.iter().any(|e| error.message.contains(e)), "{}", error.message);
        }
        assert!(parse("a: &a [*a]\n").unwrap_err().message.contains("part of"));
    }

    #[test]
    fn unsupported_yaml_is_rejected_with_its_position() {
        for (text, line, col, part) in [
            ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
            ("a: !secret x\n", 1, 4, "tag `!secret`"),
            ("? [a]\n: b\n", 1, 3, "a key must be plain text"),
            ("a: 1\n<<: 2\n", 2, 1, "`<<` must be a map"),
            ("a: 'x\n", 1, 4, "not valid YAML"),
            ("a:\n\t- b\n", 2, 2, "spaces, not tabs"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(part), "{text:?}: {}", error.message);
            assert_eq!(error.at, Pos { line, col }, "{text:?}: {}", error.message);
        }
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("# only comments\n"), Ok(None));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn yaml_like_text_is_parsed_without_a_panic(
            text in "([a-c&*!<?:,{}\\[\\]'\"|>%@#~-]|: |- |\n|  |\t|---|\\.\\.\\.){0,60}"
        ) {
            let _ = parse(&text);
        }
    }
}
