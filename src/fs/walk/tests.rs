use super::super::testing::*;
use super::super::{Cause, Root};
use super::*;
use crate::wire::AbsPath;
use crate::wire::sync::ErrorClass;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

fn paths(walk: Walk) -> Vec<RelPath> {
    walk.map(|entry| entry.unwrap().path).collect()
}

fn walk_all(tree: &Tree) -> Vec<RelPath> {
    paths(tree.walk(&RelPath::root(), None).unwrap())
}

fn behind(after: &RelPath, skip_contents: bool) -> Cursor {
    Cursor { after: after.clone(), skip_contents }
}

#[test]
fn names_come_sorted_and_directories_before_their_contents() {
    let site = Site::new();
    for path in ["src/a/c", "src/a-b", "src/b", "src/a/b/x"] {
        site.write(path, "");
    }
    let got = walk_all(&site.source());
    assert_eq!(got, ["", "a", "a/b", "a/b/x", "a/c", "a-b", "b"].map(rel));
    assert!(got.is_sorted());
}

#[test]
fn the_directories_above_each_entry_are_told() {
    let site = Site::new();
    site.write("src/a/b/x", "");
    site.write("src/c", "");
    let tree = site.source();
    for start in ["", "a"] {
        let mut walk = tree.walk(&rel(start), None).unwrap();
        while let Some(entry) = walk.next() {
            let path = entry.unwrap().path;
            assert_eq!(walk.dirs(), tree.chain(&path).unwrap(), "{path}");
        }
    }
    assert_eq!(tree.chain(&rel("")).unwrap(), []);
    let chain = tree.chain(&rel("a/b/x")).unwrap();
    assert_eq!(chain.iter().map(|d| d.path.clone()).collect::<Vec<_>>(), ["", "a", "a/b"].map(rel));
}

#[test]
fn contents_that_are_skipped_are_not_walked() {
    let site = Site::new();
    for path in ["src/a/x", "src/b/x", "src/c"] {
        site.write(path, "");
    }
    let mut got = Vec::new();
    let mut walk = site.source().walk(&RelPath::root(), None).unwrap();
    while let Some(entry) = walk.next() {
        let path = entry.unwrap().path;
        if path == rel("a") {
            walk.skip_contents();
            assert_eq!(walk.cursor(), Some(&behind(&rel("a"), true)));
        }
        got.push(path);
    }
    assert_eq!(got, ["", "a", "b", "b/x", "c"].map(rel));
    assert_eq!(paths(site.source().walk(&rel("a"), None).unwrap()), [rel("a/x")]);
}

#[test]
fn names_of_any_bytes_and_of_full_length_are_listed_but_our_own_unfinished_ones_are_not() {
    let site = Site::new();
    let full = [b'n'; 255];
    let ours = super::super::names::part(crate::wire::SyncNo(1), &rel("x"), 2);
    let names: [&[u8]; 6] = [b"new\nline", b"\xff\xfe", &full, b".ctl-notes", b"-rf", b" "];
    for name in names.iter().copied().chain([ours.as_slice()]) {
        fs::write(site.at("src").join(os(name)), "").unwrap();
    }
    let want: BTreeSet<RelPath> = names.iter().map(rel).chain([rel("")]).collect();
    assert_eq!(walk_all(&site.source()).into_iter().collect::<BTreeSet<_>>(), want);
}

#[test]
fn a_source_that_is_a_file_is_one_entry_without_a_name() {
    let site = Site::new();
    site.write("src/f", "content");
    let tree = site.tree("src/f");
    let walk = tree.walk(&RelPath::root(), None).unwrap();
    let entries: Vec<_> = walk.map(Result::unwrap).collect();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].path.is_root());
    assert_eq!(entries[0].kind, Kind::File { size: 7 });
    assert_eq!(content_of(&tree.open_source(&entries[0]).unwrap()), b"content");
    let cursor = behind(&RelPath::root(), false);
    assert_eq!(tree.walk(&RelPath::root(), Some(&cursor)).unwrap().count(), 0);
}

#[test]
fn links_are_entries_and_never_followed() {
    let site = Site::new();
    symlink("../canary", site.at("src/link")).unwrap();
    symlink("canary", site.at("root-link")).unwrap();
    let entries: Vec<_> =
        site.source().walk(&RelPath::root(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries[1].kind, Kind::Symlink { target: b"../canary".to_vec() });
    assert_eq!(entries.len(), 2);
    for (base, dir) in [("root-link", ""), ("src", "link"), ("root-link/sub", "")] {
        let error = site.tree(base).walk(&rel(dir), None).unwrap_err();
        assert_eq!(error.errno_name(), Some("ELOOP"), "{base}/{dir}");
    }
    assert_eq!(site.tree("src").chain(&rel("link/file")).unwrap_err().errno_name(), Some("ELOOP"));
    let beyond = Entry { path: rel("link/file"), ..entries[0].clone() };
    assert!(site.source().open_source(&beyond).is_err());
}

#[test]
fn a_tree_deeper_than_a_path_can_be_long_is_walked_with_few_descriptors() {
    let site = Site::new();
    let end = dig(&site.at("src"), 200);
    fs::write(site.at("src/z"), "").unwrap();
    assert!(end.as_bytes().len() > 8000);
    let tree = site.source();
    let mut walk = tree.walk(&RelPath::root(), None).unwrap();
    let mut got = Vec::new();
    while let Some(entry) = walk.next() {
        got.push(entry.unwrap().path);
        assert!(walk.levels.iter().filter(|level| level.fd.is_some()).count() <= OPEN_LEVELS + 1);
    }
    assert_eq!(got.len(), 203);
    assert_eq!(got[201..], [end.clone(), rel("z")]);
    assert_eq!(content_of(&tree.open_source(&tree.entry(&end).unwrap()).unwrap()), b"deep");
    let cursor = behind(&got[199], false);
    assert_eq!(paths(tree.walk(&RelPath::root(), Some(&cursor)).unwrap()), got[200..]);
}

#[test]
fn an_unreadable_directory_is_reported_once_and_the_walk_goes_on() {
    let site = Site::new();
    for path in ["src/a", "src/locked/x", "src/z"] {
        site.write(path, "");
    }
    let lock = |mode| {
        fs::set_permissions(site.at("src/locked"), fs::Permissions::from_mode(mode)).unwrap();
    };
    lock(0o311);
    site.as_nobody(|| {
        let tree = site.source();
        let mut walk = tree.walk(&RelPath::root(), None).unwrap();
        assert_eq!(walk.by_ref().take(2).map(|e| e.unwrap().path).last(), Some(rel("a")));
        let error = walk.next().unwrap().unwrap_err();
        assert_eq!((error.errno_name(), error.class()), (Some("EACCES"), ErrorClass::Permanent));
        assert_eq!(error.path.0, b"locked");
        // Going on behind the error does not give it again.
        let rest = tree.walk(&RelPath::root(), walk.cursor()).unwrap();
        assert_eq!(paths(rest), [rel("z")]);
        assert_eq!(paths(walk), [rel("z")]);
    });
    lock(0o700);
}

#[test]
fn a_directory_larger_than_what_is_held_is_walked_in_parts() {
    let site = Site::new();
    let want: Vec<RelPath> = (100..200).map(|i| rel(format!("f{i}"))).collect();
    for path in want.iter().rev() {
        fs::write(site.at("src").join(os(path.as_bytes())), "").unwrap();
    }
    let cursor = behind(&RelPath::root(), false);
    for keep in [1, 7, 50, 99, 100, 101] {
        let walk = site
            .source()
            .walk_holding(&RelPath::root(), Some(&cursor), WalkOptions::default(), keep)
            .unwrap();
        assert_eq!(paths(walk), want, "{keep}");
    }
}

#[test]
fn a_tree_that_changes_under_the_walk_gives_sorted_distinct_entries() {
    let site = Site::new();
    for i in 0..30 {
        site.write(format!("src/d{i}/f"), "x");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let dir = site.at(&format!("src/d{}", i % 30));
                let other = site.at(&format!("src/moved{}", i % 7));
                match i % 4 {
                    0 => drop(fs::remove_dir_all(&dir)),
                    1 => drop(fs::rename(&dir, &other)),
                    2 => drop(fs::create_dir_all(dir.join("new/sub"))),
                    _ => drop(symlink("../canary", &dir)),
                }
            }
        });
        for _ in 0..150 {
            let walk = site.source().walk(&RelPath::root(), None).unwrap();
            let got: Vec<RelPath> = walk.filter_map(Result::ok).map(|e| e.path).collect();
            assert!(got.is_sorted_by(|a, b| a < b));
            assert!(!got.iter().any(|p| p.name() == Some(b"file")), "left the root");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_cursor_that_names_nothing_any_more_still_tells_the_place() {
    let site = Site::new();
    for path in ["src/b/x", "src/c/y"] {
        site.write(path, "");
    }
    let tree = site.source();
    let from = |dir: &str, after: &str, skip| {
        paths(tree.walk(&rel(dir), Some(&behind(&rel(after), skip))).unwrap())
    };
    assert_eq!(from("", "a/gone", false), ["b", "b/x", "c", "c/y"].map(rel));
    assert_eq!(from("", "b/x/was/a/directory", false), ["c", "c/y"].map(rel));
    assert_eq!(from("", "b/m", true), ["b/x", "c", "c/y"].map(rel));
    assert_eq!(from("b", "a", false), [rel("b/x")]);
    assert_eq!(from("b", "c", false), []);
    assert_eq!(from("b", "b", true), []);
    assert_eq!(from("b", "b", false), [rel("b/x")]);
}

/// Names that sort differently as whole paths and by component.
fn any_tree() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
    let name = prop::sample::select(vec![&b"a"[..], b"a-", b"a\xff", b"b", b"\n", b"a.b"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'));
    prop::collection::btree_set(path, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn going_on_behind_any_entry_gives_exactly_the_rest(files in any_tree(), keep in 1usize..4) {
        let site = Site::new();
        for path in &files {
            let path = site.at("src").join(os(path));
            if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                let _ = fs::write(path, "");
            }
        }
        let tree = site.source();
        let all = walk_all(&tree);
        let from = |cursor: &Cursor, keep| {
            paths(tree.walk_holding(&RelPath::root(), Some(cursor), WalkOptions::default(), keep).unwrap())
        };
        for (i, after) in all.iter().enumerate() {
            let rest = all[i + 1..].to_vec();
            prop_assert_eq!(&from(&behind(after, false), NAMES), &rest);
            prop_assert_eq!(&from(&behind(after, false), keep), &rest);
            let outside: Vec<_> = rest.into_iter().filter(|p| !after.holds(p)).collect();
            prop_assert_eq!(&from(&behind(after, true), keep), &outside);
        }
    }
}

#[test]
fn a_file_system_that_makes_its_files_up_is_refused_not_copied_as_empty_files() {
    // All of them in one storage root, as an agent with `/` as its storage path has it.
    let root = Root::open(&AbsPath::new(b"/").unwrap()).unwrap();
    let tree = |base: &str| Tree::new(root.clone(), rel(base));
    for base in ["proc", "proc/1", "sys/kernel"] {
        let error = tree(base).walk(&RelPath::root(), None).unwrap_err();
        assert_eq!((error.cause, error.class()), (Cause::MadeUp, ErrorClass::Permanent), "{base}");
    }
    let error = tree("proc").entry(&rel("version")).unwrap_err();
    assert_eq!(error.cause, Cause::MadeUp);
    assert!(error.to_string().contains("leave it out"), "{error}");

    // Where it is mounted further down, there is one error, and the walk goes on behind it.
    let mut walk = tree("").walk(&RelPath::root(), Some(&behind(&rel("proa"), true))).unwrap();
    assert_eq!(walk.next().unwrap().unwrap_err().path.0, b"proc");
    let next = walk.next().unwrap().unwrap();
    assert!(!rel("proc").holds(&next.path), "{next:?}");
}
