//! The files of the scheduler use each other in one direction: a file imports from, and calls methods of the state and of
//! a sync in, only files that the list in `scheduler/mod.rs` names before it.

use std::collections::BTreeMap;
use std::path::Path;

const LIST: &str = include_str!("../mod.rs");

/// The files in the order of the list, lowest first; `mod` is the last one.
fn order() -> Vec<&'static str> {
    let lines = LIST.lines().filter_map(|line| line.strip_prefix("//! "));
    let list = lines.skip_while(|line| !line.starts_with("1. "));
    list.flat_map(|line| line.split('`').skip(1).step_by(2)).chain(["mod"]).collect()
}

/// The product code of each file without comments and white space.
fn sources() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scheduler");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines();
        let code: Vec<&str> = code.filter(|line| !line.trim_start().starts_with("//")).collect();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), code.join("\n"))
    };
    files.map(read).collect()
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The methods of `State` and `SyncJob` in a file.
fn methods(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in code.lines() {
        match line {
            "impl State {" | "impl SyncJob {" => inside = true,
            "}" => inside = false,
            _ => {}
        }
        let item = line.strip_prefix("    ").filter(|_| inside);
        let item = item.map(|l| l.trim_start_matches("pub(super) ").trim_start_matches("pub "));
        found.extend(item.and_then(|l| l.strip_prefix("fn ")).map(first_word));
    }
    found
}

/// The files that a file imports from.
fn imports(compact: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for path in compact.split("super::").skip(1) {
        match path.strip_prefix('{') {
            Some(group) => {
                let group = group.split(';').next().unwrap_or_default();
                found.extend(group.split(['{', ',']).map(first_word));
            }
            None => found.push(first_word(path)),
        }
    }
    found
}

#[test]
fn the_files_of_the_scheduler_use_each_other_in_one_direction() {
    let (sources, order) = (sources(), order());
    let place = |file: &str| order.iter().position(|known| *known == file);
    let mut defined: BTreeMap<&str, &str> = BTreeMap::new();
    for (file, code) in &sources {
        assert!(place(file).is_some(), "{file} is not listed");
        for method in methods(code).into_iter().filter(|method| *method != "new") {
            assert!(defined.insert(method, file).is_none(), "{method} is defined twice");
        }
    }
    let mut wrong = Vec::new();
    for (file, code) in &sources {
        let compact: String = code.split_whitespace().collect();
        for used in imports(&compact).into_iter().filter(|_| file != "mod") {
            if place(used) > place(file) {
                wrong.push(format!("{file} imports from {used}"));
            }
        }
        for call in compact.split('.').skip(1) {
            let name = first_word(call);
            let called = call[name.len()..].starts_with('(');
            let at = defined.get(name).filter(|_| called);
            if at.is_some_and(|at| place(at) > place(file)) {
                wrong.push(format!("{file} calls {name} in {}", defined[name]));
            }
        }
    }
    assert!(wrong.is_empty(), "uses against the direction:\n{}", wrong.join("\n"));
}
