//! Documents: their form, their links, and the names of files, tests and modules in them.

use crate::{files_in, project, read};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use walkdir::WalkDir;

/// The README is read in one sitting.
const MAX_README_LINES: usize = 149;
/// A longer cell is a paragraph: it belongs in text or in a list.
const MAX_CELL_CHARS: usize = 200;

/// README.md, the other documents at the top, and those in `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = files_in("", "md");
    found.extend(files_in("docs", "md"));
    assert!(found.len() >= 10, "{found:?}");
    found
}

/// A path relative to the project, for messages.
fn shown(path: &Path) -> String {
    path.strip_prefix(project("")).unwrap_or(path).display().to_string()
}

/// The lines that are not inside a block of code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push((number, line));
        }
    }
    lines
}

/// What stands in backticks, with line numbers. A span may go over a line's end.
fn code_spans(text: &str) -> Vec<(usize, String)> {
    let lines = prose(text);
    let mut spans = Vec::new();
    let (mut open, mut span) = (None, String::new());
    for (number, line) in lines {
        if line.trim().is_empty() {
            open = None;
        }
        for part in line.split_inclusive('`') {
            let text = part.trim_end_matches('`');
            if open.is_some() {
                span.push_str(text);
            }
            if part.ends_with('`') {
                match open.take() {
                    Some(first) => spans.push((first, std::mem::take(&mut span))),
                    None => (open, span) = (Some(number), String::new()),
                }
            }
        }
        if open.is_some() {
            span.push(' ');
        }
    }
    spans
}

/// The targets of links and pictures, with line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
    }
    found
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in prose(text) {
        let Some(heading) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')) else {
            continue;
        };
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|n| format!("{slug}-{n}"));
        let mut free = std::iter::once(slug.clone()).chain(numbered);
        let name = free.find(|name| !found.contains(name));
        found.extend(name);
    }
    found
}

/// The cells of a row of a table. `\|` belongs to its cell.
fn row(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|');
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    inner.replace("\\|", "\u{1}").split('|').map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn the_readme_is_short() {
    let lines = read(&project("README.md")).lines().count();
    assert!(lines <= MAX_README_LINES, "README.md has {lines} lines");
}

#[test]
fn no_cell_of_a_table_is_a_paragraph() {
    let mut wrong = Vec::new();
    for path in documents() {
        for (number, line) in prose(&read(&path)) {
            let longest = row(line).iter().map(|cell| cell.chars().count()).max();
            if line.starts_with('|') && longest > Some(MAX_CELL_CHARS) {
                wrong.push(format!("{}:{number}: {longest:?} characters", shown(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "cells of more than {MAX_CELL_CHARS}:\n{}", wrong.join("\n"));
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for path in documents() {
        let text = read(&path);
        for (number, target) in links(&text) {
            if target.contains("://") {
                continue;
            }
            checked += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let parent = path.parent().expect("a directory");
            let led = if file.is_empty() { path.clone() } else { parent.join(file) };
            let is_there =
                led.exists() && (anchor.is_empty() || anchors(&read(&led)).contains(anchor));
            if !is_there {
                wrong.push(format!("{}:{number}: {target}", shown(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(checked >= 20, "only {checked} links were found");
}

#[test]
fn every_document_is_linked_from_another_one() {
    let mut linked = BTreeSet::new();
    for path in documents() {
        for (_, target) in links(&read(&path)) {
            let file = target.split('#').next().unwrap_or_default();
            let led = path.parent().expect("a directory").join(file);
            if !file.is_empty() && led != path {
                linked.extend(led.canonicalize().ok());
            }
        }
    }
    let alone: Vec<String> = files_in("docs", "md")
        .iter()
        .filter(|path| path.canonicalize().is_ok_and(|path| !linked.contains(&path)))
        .map(|path| shown(path))
        .collect();
    assert!(alone.is_empty(), "documents that nothing links: {alone:?}");
}

/// The paths of files in a text: `src/…`, `tests/…` and the like, without what follows the file's name.
fn file_paths(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let mut found = Vec::new();
    for word in text.split(|c: char| !is_part(c)) {
        let word = word.trim_end_matches(['.', '/']);
        let tops = ["src/", "tests/", "benches/", "scripts/", "docs/", "configs/"];
        if tops.iter().any(|top| word.starts_with(top)) {
            found.push(word.to_owned());
        }
    }
    found
}

#[test]
fn every_file_that_a_document_names_exists() {
    let mut wrong = Vec::new();
    for path in documents() {
        for (number, span) in code_spans(&read(&path)) {
            for file in file_paths(&span) {
                if !project(&file).exists() {
                    wrong.push(format!("{}:{number}: {file}", shown(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "files that do not exist:\n{}", wrong.join("\n"));
}

/// The words of every Rust file of the program and its tests, with the path of the file below the project.
fn words_of_sources() -> Vec<(PathBuf, HashSet<String>)> {
    let dirs = ["src", "tests", "benches"];
    let entries = dirs.iter().flat_map(|dir| WalkDir::new(project(dir)));
    let paths = entries.map(|entry| entry.expect("a readable source tree").into_path());
    let rust = paths.filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let words = |path: PathBuf| {
        let below = path.strip_prefix(project("")).expect("below the project").to_owned();
        let text = read(&path) + &format!(" {}", below.display());
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        (below, words.map(str::to_owned).collect())
    };
    rust.map(words).collect()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The names of a path such as `fs::part::tests::a_test`, `tests/x.rs::{single,two}` or `State::apply_writes(handle_event)`. One
/// that is cut short with `…` is left out.
fn names_of(path: &str) -> Vec<&str> {
    let path = path.split('(').next().unwrap_or_default();
    let parts = path.split([':', '{', '}', ',', ' ']);
    parts.filter(|part| is_word(part)).collect()
}

#[test]
fn every_module_and_test_that_a_document_names_exists() {
    let sources = words_of_sources();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for path in documents() {
        for (number, span) in code_spans(&read(&path)) {
            let Some((first, _)) = span.split_once("::") else { continue };
            // A name stands in the file or folder that its path begins with.
            let file = first.trim_end_matches("/main.rs").trim_end_matches(".rs");
            let folders = [file.to_owned(), format!("src/{file}")];
            let inside = |source: &Path| {
                folders
                    .iter()
                    .any(|f| source.starts_with(f) || source.with_extension("") == Path::new(f))
            };
            let known = !first.is_empty() && sources.iter().any(|(source, _)| inside(source));
            for name in names_of(&span) {
                checked += 1;
                let mut searched = sources.iter().filter(|(source, _)| !known || inside(source));
                if !searched.any(|(_, words)| words.contains(name)) {
                    wrong.push(format!("{}:{number}: `{name}` of `{span}`", shown(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "names that do not exist:\n{}", wrong.join("\n"));
    assert!(checked >= 500, "only {checked} names were found");
}

/// The functions that a text names as `src/a/b.rs::name`: file and name.
fn named_functions(text: &str) -> Vec<(String, String)> {
    let spans = code_spans(text).into_iter();
    let named = spans.filter_map(|(_, span)| {
        let (file, name) = span.split_once("::")?;
        let is_function = file.starts_with("src/") && file.ends_with(".rs") && is_word(name);
        is_function.then(|| (file.to_owned(), name.to_owned()))
    });
    named.collect()
}

#[test]
fn the_tour_is_short_and_every_function_named_with_its_file_exists() {
    let text = read(&project("docs/tour.md"));
    let lines = text.lines().count();
    assert!(lines < 200, "the tour has {lines} lines");
    let functions = named_functions(&(text + &read(&project("CONTRIBUTING.md"))));
    assert!(functions.len() >= 70, "only {} functions were found", functions.len());
    let is_defined = |(file, name): &(String, String)| {
        let file = project(file);
        file.is_file() && read(&file).lines().any(|line| defines_function(line, name))
    };
    let wrong: Vec<_> = functions.iter().filter(|function| !is_defined(function)).collect();
    assert!(wrong.is_empty(), "functions that do not exist: {wrong:?}");
}

/// Whether a line of Rust begins the definition of the function `name`.
fn defines_function(line: &str, name: &str) -> bool {
    let code = line.trim_start();
    let rest = code.split_once("fn ").and_then(|(_, rest)| rest.strip_prefix(name));
    !code.starts_with("//") && rest.is_some_and(|rest| rest.starts_with(['(', '<']))
}

/// The help of a command.
fn help(command: &[String]) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_ctl")).args(command).arg("--help").output();
    String::from_utf8(run.expect("ctl runs").stdout).expect("UTF-8")
}

/// The commands below a command, from its help.
fn subcommands(help: &str) -> Vec<String> {
    let after = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = after.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_documents_name_every_command_option_and_exit_code() {
    let cli = read(&project("docs/cli.md")) + &read(&project("docs/options.md"));
    let readme = read(&project("README.md"));
    let mut missing = BTreeSet::new();
    let mut to_do: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = to_do.pop() {
        let help = help(&command);
        for name in subcommands(&help) {
            for (document, text) in [("README.md", &readme), ("docs/cli.md", &cli)] {
                if !text.contains(&name) {
                    missing.insert(format!("{document}: command {command:?} {name}"));
                }
            }
            to_do.push([command.clone(), vec![name]].concat());
        }
        let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let words = options.flat_map(|line| line.split([' ', ',']));
        for option in words.filter(|word| word.starts_with("--")).map(|w| w.trim_end_matches('.')) {
            let named = ["--help", "--version"].contains(&option) || cli.contains(option);
            if !named {
                missing.insert(format!("{option} (first of {command:?})"));
            }
        }
    }
    let codes = read(&project("docs/exit-codes.md"));
    let rows: Vec<String> =
        codes.lines().filter(|l| l.starts_with('|')).map(|l| row(l)[0].clone()).collect();
    let top = help(&[]);
    let listed = top.split("Exit codes:\n").nth(1).unwrap_or_default();
    let listed: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(listed.len() > 10, "{top}");
    for code in listed {
        if !rows.iter().any(|cell| cell.split(", ").any(|one| one == code)) {
            missing.insert(format!("exit code {code}"));
        }
    }
    assert!(missing.is_empty(), "not in the documents: {missing:#?}");
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert_eq!(
        anchors("# A `b`: c, d_e\n# A b: c, d_e\n```\n# no\n```"),
        ["a-b-c-d_e".to_owned(), "a-b-c-d_e-1".to_owned()].into()
    );
    assert_eq!(
        links("[a](b.md#c) ![d](e.png)\n```\n[x](y)\n```"),
        [(1, "b.md#c".to_owned()), (1, "e.png".to_owned())]
    );
    assert_eq!(row("| a \\| b | c |").len(), 2);
    assert_eq!(code_spans("x `a b` `c\nd`"), [(1, "a b".to_owned()), (1, "c d".to_owned())]);
    assert_eq!(
        file_paths("see src/lib.rs, tests/x.rs::y and crate/src/no"),
        ["src/lib.rs", "tests/x.rs"]
    );
    assert_eq!(
        named_functions("`src/a/b.rs::run`, `a::b`, `src/a.rs` and `src/c.rs::x y`"),
        [("src/a/b.rs".to_owned(), "run".to_owned())]
    );
    assert!(defines_function("    pub(super) async fn run<T>(", "run"));
    assert!(!defines_function("// fn run()", "run") && !defines_function("fn run_all() {", "run"));
    assert_eq!(
        subcommands("x\n\nCommands:\n  a  does\n      more\n  help  z\n\nOptions:\n  -b"),
        ["a"]
    );
}
