//! Holds the imports to the layers of the crate: each module may use those below it, siblings do not
//! use each other. File-system calls on data stand in `fs` alone.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use walkdir::WalkDir;

/// Lowest first; those in one line are siblings.
const LAYERS: [&[&str]; 8] = [
    &["wire"],
    &["util"],
    &["config"],
    &["store", "client", "fs"],
    &["scheduler", "data"],
    &["master", "agent"],
    &["cli"],
    &["main", "lib"],
];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|siblings| siblings.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` stands in no layer: add it to tests/layers.rs"))
}

/// Every source file with the module at the top of its path.
fn sources() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = WalkDir::new(&src).into_iter().map(|entry| entry.expect("a readable source tree"));
    files
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "rs"))
        .map(|entry| {
            let below = entry.path().strip_prefix(&src).expect("below src");
            let first = below.iter().next().expect("a name").to_string_lossy().into_owned();
            let module = first.trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(entry.path()).expect("readable source");
            (module, below.display().to_string(), text)
        })
        .collect()
}

/// The top modules that a text names as `crate::x`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: Vec<&str> = code.collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                let heads = group.split(',').map(|part| part.trim().split("::").next());
                found.extend(heads.flatten().map(str::to_owned));
            }
            None => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                found.push(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn imports_point_downwards_only() {
    let mut wrong = Vec::new();
    for (module, file, text) in sources() {
        for used in named(&text) {
            let known = LAYERS.iter().flat_map(|l| l.iter()).any(|m| *m == used);
            if known && used != module && layer(&used) >= layer(&module) {
                wrong.push(format!("{file} uses crate::{used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_itself_sees_an_import() {
    assert_eq!(
        named("use crate::fs::Root;\nlet x = crate::{wire::A, util};"),
        ["fs", "wire", "util"]
    );
    assert!(named("// crate::fs\n/// [`crate::fs`]").is_empty());
}

#[test]
fn only_fs_touches_files_of_users() {
    // The others may read their own configuration, state directories and /proc; they name it here.
    let allowed = ["config", "store", "cli", "util"];
    let calls = ["std::fs::", "tokio::fs::", "rustix::fs::", "File::open(", "File::create("];
    let mut wrong = Vec::new();
    for (module, file, text) in sources() {
        if module == "fs" || allowed.contains(&module.as_str()) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in calls {
            for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
                if line.contains(call) && !file.contains("tests") {
                    wrong.push(format!("{file}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "file-system calls outside fs:\n{}", wrong.join("\n"));
}
