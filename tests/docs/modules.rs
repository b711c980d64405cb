//! `docs/modules.md`: every module with the first paragraph of its own documentation.

use crate::{project, read};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use walkdir::WalkDir;

/// The layers with their contents, lowest first, as in `src/lib.rs`.
const LAYERS: [(&str, &str); 13] = [
    ("util", "Helpers of all layers"),
    ("wire", "Documents that cross a process boundary"),
    ("identity", "Certificates, TLS, sealed secrets"),
    ("config", "Configuration files"),
    ("store", "Where the master keeps its state"),
    ("audit", "The log of changes and denials"),
    ("scheduler", "Decisions of the master, without input and output"),
    ("master", "The process that owns the state, and its HTTP API"),
    ("client", "The client of the API"),
    ("fs", "File-system calls on users' data"),
    ("data", "Transfers between agents"),
    ("agent", "The process on a storage host"),
    ("cli", "Commands and their output"),
];

/// The first paragraph of a file's `//!` comment, as one line. Links keep their text only.
fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<&str> = lines
        .map(str::trim)
        .skip_while(|line| line.is_empty())
        .take_while(|l| !l.is_empty())
        .collect();
    without_links(&lines.join(" "))
}

/// `[text](target)` and `[text]` become `text`.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let (label, after) = after.split_once(']').expect("a closed link");
        plain += before;
        plain += label;
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').expect("a closed target").1,
            None => after,
        };
    }
    plain + rest
}

/// Whether a file of `src` consists of tests.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn modules_document() -> String {
    let entries = WalkDir::new(project("src")).into_iter();
    let paths = entries.map(|entry| entry.expect("a readable source tree").into_path());
    let rust = paths.filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let below = |path: &Path| path.strip_prefix(project("")).expect("below").display().to_string();
    let texts: BTreeMap<String, String> = rust.map(|path| (below(&path), read(&path))).collect();
    let mut document = "\
# Modules

Each file of the program and what it is for, lowest layer first. [tour.md](tour.md) follows one sync through them;
[CONTRIBUTING.md](../CONTRIBUTING.md#what-to-open-for-a-change) lists functions by question.

This page is generated from the head of each file: `UPDATE_DOCS=1 cargo test modules_document`.
"
    .to_owned();
    for (layer, contents) in LAYERS {
        write!(document, "\n## {layer}: {contents}\n\n").expect("a string");
        let is_inside = |path: &str| {
            path == format!("src/{layer}.rs") || path.starts_with(&format!("src/{layer}/"))
        };
        let files = texts.iter().filter(|(path, _)| is_inside(path) && !is_test_file(path));
        for (path, text) in files {
            let about = first_paragraph(text);
            assert!(!about.is_empty(), "{path} does not begin with a `//!` comment");
            writeln!(document, "- `{path}`: {about}").expect("a string");
        }
    }
    document
}

#[test]
fn the_modules_document_lists_every_module() {
    let path = project("docs/modules.md");
    let expected = modules_document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).expect("a writable document");
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == expected,
        "docs/modules.md is out of date: UPDATE_DOCS=1 cargo test modules_document"
    );
}

#[test]
fn the_first_paragraph_of_a_module_has_no_links() {
    let text = "//! A [`b`](super::c)\n//! and [`d`].\n//!\n//! More.\nuse x;\n";
    assert_eq!(first_paragraph(text), "A `b` and `d`.");
    assert_eq!(first_paragraph("use x;\n"), "");
}
