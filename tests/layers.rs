//! Holds the imports to the layers of the crate: each module may use those below it, siblings do not
//! use each other. File-system calls on data stand in `fs` alone.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::visit::Visit;
use walkdir::WalkDir;

/// Lowest first; those in one line are siblings.
const LAYERS: [&[&str]; 9] = [
    &["wire"],
    &["util"],
    &["identity"],
    &["config"],
    &["store", "audit", "client", "fs"],
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
    let allowed = ["config", "store", "audit", "cli", "util"];
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

/// One module directly below a folder; its own subfolder belongs to it.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Collects every path that a file names, in `use` trees and in the code; test modules aside.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
    /// Names that the `use` items of this file bring into scope, with the path of each.
    bound: Vec<(String, Vec<String>)>,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|l| l.tokens.to_string().contains("test"))
    })
}

impl Paths {
    fn add_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(prefix, tree));
            }
            syn::UseTree::Glob(_) => self.found.push(prefix.to_vec()),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.bound.extend(prefix.last().map(|last| (last.clone(), prefix.to_vec())));
                self.found.push(prefix.to_vec());
            }
            syn::UseTree::Name(name) => {
                self.bound.push((name.ident.to_string(), with(&name.ident)));
                self.found.push(with(&name.ident));
            }
            syn::UseTree::Rename(name) => {
                self.bound.push((name.rename.to_string(), with(&name.ident)));
                self.found.push(with(&name.ident));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Fn(i) => &i.attrs,
            syn::Item::Impl(i) => &i.attrs,
            syn::Item::Mod(i) => &i.attrs,
            syn::Item::Struct(i) => &i.attrs,
            syn::Item::Use(i) => &i.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.found.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

/// The module path of a file below `src`: `fs/build_part_file/tests.rs` is `[fs, part, tests]`.
fn module_of(file: &str) -> Vec<String> {
    let parts = file.trim_end_matches(".rs").split('/').filter(|part| *part != "mod");
    parts.map(str::to_owned).collect()
}

/// `path` as named in `module`, from the top of the crate; `None` for other crates and local names.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut at = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module[..module.len().checked_sub(1)?].to_vec(),
        _ => return None,
    };
    for part in &path[1..] {
        match part.as_str() {
            "super" => _ = at.pop()?,
            _ => at.push(part.clone()),
        }
    }
    Some(at)
}

/// The imports among the modules of each folder. A name that a folder's `mod.rs` re-exports counts for the
/// module that defines it, so that a circle can't hide behind a re-export.
fn folder_graphs(files: &[(String, String)]) -> BTreeMap<String, Graph> {
    let mut modules = BTreeSet::new();
    let mut parsed = Vec::new();
    for (file, text) in files {
        let tree = syn::parse_file(text).unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut paths = Paths::default();
        paths.visit_file(&tree);
        modules.insert(module_of(file));
        parsed.push((module_of(file), paths));
    }
    let mut exports = BTreeMap::new();
    for (module, paths) in &parsed {
        for (name, path) in &paths.bound {
            let local = [&["self".to_owned()], path.as_slice()].concat();
            let target = absolute(module, path).or_else(|| absolute(module, &local));
            exports.insert([module.as_slice(), std::slice::from_ref(name)].concat(), target);
        }
    }
    let mut graphs: BTreeMap<String, Graph> = BTreeMap::new();
    for (module, paths) in &parsed {
        if module.iter().any(|part| part == "tests" || part == "testing") {
            continue;
        }
        for path in &paths.found {
            let Some(mut target) = absolute(module, path) else { continue };
            // Follow re-exports of the modules above, longest name first.
            for _ in 0..4 {
                let export = (1..=target.len()).rev().find_map(|n| {
                    let inside = modules.contains(&target[..n]);
                    let next = exports.get(&target[..n]).filter(|_| !inside)?.clone()?;
                    Some([next.as_slice(), &target[n..]].concat())
                });
                match export {
                    Some(next) => target = next,
                    None => break,
                }
            }
            for depth in 0..module.len().min(target.len()) {
                if module[depth] == target[depth] {
                    continue;
                }
                let known = modules.contains(&target[..=depth]);
                if known && target[depth] != "tests" {
                    let folder = graphs.entry(module[..depth].join("/")).or_default();
                    folder.entry(module[depth].clone()).or_default().insert(target[depth].clone());
                }
                break;
            }
        }
    }
    graphs
}

/// The modules of each circle: those that reach each other (Tarjan's components would be faster; a folder
/// has some dozens of files).
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reach = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            for next in graph.get(at).into_iter().flatten() {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        graph.keys().map(|m| (m, reach(m))).collect();
    let mut found = BTreeSet::new();
    for (module, seen) in &reached {
        let same = |other: &&&String| reached.get(**other).is_some_and(|r| r.contains(*module));
        if seen.contains(*module) {
            found.insert(seen.iter().filter(same).map(|m| (**m).clone()).collect::<Vec<_>>());
        }
    }
    found.into_iter().collect()
}

#[test]
fn files_of_one_folder_do_not_import_each_other_in_a_circle() {
    let files: Vec<_> = sources().into_iter().map(|(_, file, text)| (file, text)).collect();
    let mut wrong = Vec::new();
    for (folder, graph) in folder_graphs(&files) {
        for circle in circles(&graph) {
            let inside = |m: &String| {
                graph[m].iter().filter(|t| circle.contains(t)).cloned().collect::<Vec<_>>()
            };
            let edges = circle.iter().map(|m| format!("    {m} -> {}", inside(m).join(", ")));
            wrong.push(format!("src/{folder}:\n{}", edges.collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(wrong.is_empty(), "import circles:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_of_circles_follows_re_exports_and_leaves_parents_and_tests_aside() {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let files = [
        file("fs/mod.rs", "mod a; mod b; mod c; pub use b::Thing;"),
        file("fs/a.rs", "use super::{Thing, other}; fn f() { crate::fs::c::g() }"),
        file("fs/b.rs", "fn f(x: super::a::X) {} #[cfg(test)] mod tests { use super::super::c; }"),
        file("fs/c.rs", "use super::Root; mod deep;"),
        file("fs/c/deep.rs", "use super::Own; use super::super::d;"),
        file("fs/d.rs", ""),
    ];
    let graph = &folder_graphs(&files)["fs"];
    let names = |of: &str| graph.get(of).into_iter().flatten().cloned().collect::<Vec<_>>();
    assert_eq!(
        (names("a"), names("b"), names("c")),
        (vec!["b".to_owned(), "c".to_owned()], vec!["a".to_owned()], vec!["d".to_owned()],)
    );
    assert_eq!(circles(graph), [vec!["a".to_owned(), "b".to_owned()]]);
}

/// What an error is about stands in its fields: side, operation, errno, class. Its texts are for people.
#[test]
fn product_code_infers_nothing_from_the_text_of_an_error() {
    let tests = ["ends_with(", "starts_with(", "contains("];
    let texts = ["operation.", "error.message.", "e.message.", "failure.message."];
    let mut wrong = Vec::new();
    for (_, path, text) in sources() {
        if path.contains("tests") || path.contains("fixtures") {
            continue;
        }
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let compact: String = product.split_whitespace().collect();
        for found in texts.iter().flat_map(|text| tests.map(|test| format!("{text}{test}"))) {
            wrong.extend(compact.contains(&found).then(|| format!("{path}: {found}")));
        }
        if compact.contains("errno.as_deref()==Some(") {
            wrong.push(format!("{path}: compares the name of an errno"));
        }
    }
    assert!(wrong.is_empty(), "use the fields of the error:\n{}", wrong.join("\n"));
}

/// A longer file has more than one subject.
const MAX_FILE_LINES: usize = 600;

#[test]
fn no_source_file_is_longer_than_600_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = ["src", "tests", "benches"].map(|dir| WalkDir::new(root.join(dir)));
    let entries = dirs.into_iter().flatten().map(|entry| entry.expect("a readable source tree"));
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "rs"));
    let lengths = files.map(|entry| {
        let text = std::fs::read_to_string(entry.path()).expect("readable source");
        (text.lines().count(), entry.into_path())
    });
    let too_long: Vec<_> = lengths.filter(|(lines, _)| *lines > MAX_FILE_LINES).collect();
    assert!(too_long.is_empty(), "split these: {too_long:?}");
}

/// Words for persons, and metaphors that the code once used for its parts.
const REFUSED_WORDS: [&str; 18] = [
    "who", "whom", "whose", "whoever", "he", "his", "him", "tells", "told", "knock", "knocks",
    "purse", "vessel", "vessels", "newborn", "outfit", "reign", "reigns",
];

/// The words of [`REFUSED_WORDS`] in a text.
fn refused_words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words = words.map(str::to_lowercase);
    words.filter(|word| REFUSED_WORDS.contains(&word.as_str())).collect()
}

#[test]
fn parts_of_the_program_are_not_described_as_persons() {
    let texts = sources();
    let found: Vec<_> = texts
        .iter()
        .flat_map(|(_, file, text)| text.lines().enumerate().map(move |(i, line)| (file, i, line)))
        .filter_map(|(file, i, line)| {
            Some(format!("{file}:{}: {}", i + 1, refused_words(line).pop()?))
        })
        .collect();
    assert!(found.is_empty(), "say the mechanism instead:\n{}", found.join("\n"));
    assert_eq!(refused_words("A task Whose owner_he told_x, tells."), ["whose", "tells"]);
}
