use super::super::testing::*;
use super::super::{Cause, RootDir};
use super::*;
use crate::wire::AbsPath;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::options::FilterSpec;
use crate::wire::outcome::ErrorClass;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

fn collect_paths(walk: Walk) -> Vec<RelPath> {
    walk.map(|entry| entry.unwrap().path).collect()
}

fn walk_all(tree: &Tree) -> Vec<RelPath> {
    collect_paths(tree.walk(&RelPath::root(), None).unwrap())
}

fn cursor_after(after: &RelPath, skip_contents: bool) -> Cursor {
    Cursor { after: after.clone(), skip_contents }
}

#[test]
fn names_are_sorted_and_directories_precede_their_contents() {
    let site = TestSite::new();
    for path in ["src/a/c", "src/a-b", "src/b", "src/a/b/x"] {
        site.write_file(path, "");
    }
    let got = walk_all(&site.source());
    assert_eq!(got, ["", "a", "a/b", "a/b/x", "a/c", "a-b", "b"].map(rel));
    assert!(got.is_sorted());
}

#[test]
fn the_parent_directories_of_each_entry_are_returned() {
    let site = TestSite::new();
    site.write_file("src/a/b/x", "");
    site.write_file("src/c", "");
    let tree = site.source();
    for start in ["", "a"] {
        let mut walk = tree.walk(&rel(start), None).unwrap();
        while let Some(entry) = walk.next() {
            let path = entry.unwrap().path;
            assert_eq!(walk.dirs(), tree.parent_dirs(&path).unwrap(), "{path}");
        }
    }
    assert_eq!(tree.parent_dirs(&rel("")).unwrap(), []);
    let chain = tree.parent_dirs(&rel("a/b/x")).unwrap();
    assert_eq!(chain.iter().map(|d| d.path.clone()).collect::<Vec<_>>(), ["", "a", "a/b"].map(rel));
}

#[test]
fn skipped_contents_are_not_walked() {
    let site = TestSite::new();
    for path in ["src/a/x", "src/b/x", "src/c"] {
        site.write_file(path, "");
    }
    let mut got = Vec::new();
    let mut walk = site.source().walk(&RelPath::root(), None).unwrap();
    while let Some(entry) = walk.next() {
        let path = entry.unwrap().path;
        if path == rel("a") {
            walk.skip_contents();
            assert_eq!(walk.cursor(), Some(&cursor_after(&rel("a"), true)));
        }
        got.push(path);
    }
    assert_eq!(got, ["", "a", "b", "b/x", "c"].map(rel));
    assert_eq!(collect_paths(site.source().walk(&rel("a"), None).unwrap()), [rel("a/x")]);
}

#[test]
fn names_of_any_bytes_and_of_full_length_are_listed_but_our_own_unfinished_ones_are_not() {
    let site = TestSite::new();
    let full = [b'n'; 255];
    let ours = super::super::temp_names::part_file_name(&Default::default(), &rel("x"), 2);
    let names: [&[u8]; 6] = [b"new\nline", b"\xff\xfe", &full, b".ctl-notes", b"-rf", b" "];
    // A probe of the storage is skipped as well, and not counted.
    let probe = ProbeName::new([7; 16]);
    for name in names.iter().copied().chain([ours.as_slice(), probe.as_str().as_bytes()]) {
        fs::write(site.path("src").join(os_str(name)), "").unwrap();
    }
    let want: BTreeSet<RelPath> = names.iter().map(rel).chain([rel("")]).collect();
    assert_eq!(walk_all(&site.source()).into_iter().collect::<BTreeSet<_>>(), want);
    // They are counted and named, each once, also where the walk is resumed, unless a filter left them out.
    let filter = FilterSpec { rules: vec![".ctl-*".to_owned()], ..FilterSpec::default() };
    for (filter, count) in [(FilterSpec::default(), 1), (filter, 0)] {
        let options =
            || WalkOptions { filter: Filter::cached(&filter).unwrap(), ..WalkOptions::default() };
        let (mut notes, mut cursor) = (EntryWarnings::new(), None);
        loop {
            let mut walk = site.source().walk_with(&rel(""), cursor.as_ref(), options()).unwrap();
            let more = walk.next().is_some();
            for (cause, note) in walk.take_exclusions() {
                notes.entry(cause).or_default().merge(note);
            }
            cursor = walk.cursor().cloned();
            if !more {
                break;
            }
        }
        assert_eq!(notes.get(UNFINISHED_SKIPPED).map_or(0, |note| note.count), count);
        assert!(notes.values().all(|note| note.paths[0].0 == ours));
    }
}

#[test]
fn a_source_that_is_a_file_is_one_entry_without_a_name() {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    let tree = site.tree("src/f");
    let walk = tree.walk(&RelPath::root(), None).unwrap();
    let entries: Vec<_> = walk.map(Result::unwrap).collect();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].path.is_root());
    assert_eq!(entries[0].kind, EntryKind::File { size: 7 });
    assert_eq!(read_content(&tree.open_source(&entries[0]).unwrap()), b"content");
    let cursor = cursor_after(&RelPath::root(), false);
    assert_eq!(tree.walk(&RelPath::root(), Some(&cursor)).unwrap().count(), 0);
}

#[test]
fn links_are_entries_and_never_followed() {
    let site = TestSite::new();
    symlink("../canary", site.path("src/link")).unwrap();
    symlink("canary", site.path("root-link")).unwrap();
    let entries: Vec<_> =
        site.source().walk(&RelPath::root(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries[1].kind, EntryKind::Symlink { target: b"../canary".to_vec() });
    assert_eq!(entries.len(), 2);
    for (base, dir) in [("root-link", ""), ("src", "link"), ("root-link/sub", "")] {
        let error = site.tree(base).walk(&rel(dir), None).unwrap_err();
        assert_eq!(error.errno_name(), Some("ELOOP"), "{base}/{dir}");
    }
    assert_eq!(
        site.tree("src").parent_dirs(&rel("link/file")).unwrap_err().errno_name(),
        Some("ELOOP")
    );
    let beyond = Entry { path: rel("link/file"), ..entries[0].clone() };
    assert!(site.source().open_source(&beyond).is_err());
}

#[test]
fn a_tree_deeper_than_a_path_can_be_long_is_walked_with_few_descriptors() {
    let site = TestSite::new();
    let end = create_deep_path(&site.path("src"), 200);
    fs::write(site.path("src/z"), "").unwrap();
    assert!(end.as_bytes().len() > 8000);
    let tree = site.source();
    let mut walk = tree.walk(&RelPath::root(), None).unwrap();
    let mut got = Vec::new();
    while let Some(entry) = walk.next() {
        got.push(entry.unwrap().path);
        assert!(
            walk.levels.iter().filter(|level| level.fd.is_some()).count() <= MAX_OPEN_LEVELS + 1
        );
    }
    assert_eq!(got.len(), 203);
    assert_eq!(got[201..], [end.clone(), rel("z")]);
    assert_eq!(read_content(&tree.open_source(&tree.entry(&end).unwrap()).unwrap()), b"deep");
    let cursor = cursor_after(&got[199], false);
    assert_eq!(collect_paths(tree.walk(&RelPath::root(), Some(&cursor)).unwrap()), got[200..]);
}

#[test]
fn an_unreadable_directory_gives_its_entry_then_one_error_and_the_walk_goes_on() {
    let site = TestSite::new();
    for path in ["src/a", "src/locked/x", "src/z"] {
        site.write_file(path, "");
    }
    let lock = |mode| {
        fs::set_permissions(site.path("src/locked"), fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o311, 0] {
        lock(mode);
        site.run_with_all_owned_by_nobody(|| {
            let tree = site.source();
            let mut walk = tree.walk(&RelPath::root(), None).unwrap();
            let entry = walk.by_ref().take(3).map(Result::unwrap).last().unwrap();
            assert_eq!((&entry.path, entry.meta.mode), (&rel("locked"), mode));
            // The error follows the entry, also in a walk resumed there.
            let mut again = tree.walk(&RelPath::root(), walk.cursor()).unwrap();
            for walk in [&mut walk, &mut again] {
                let error = walk.next().unwrap().unwrap_err();
                assert_eq!(error.errno_name(), Some("EACCES"));
                assert_eq!(error.class(), ErrorClass::Permanent);
                assert_eq!(error.path.0, b"locked");
            }
            // Going on behind the error does not give it again.
            let rest = tree.walk(&RelPath::root(), walk.cursor()).unwrap();
            assert_eq!(collect_paths(rest), [rel("z")]);
            assert_eq!(
                (collect_paths(walk), collect_paths(again)),
                (vec![rel("z")], vec![rel("z")])
            );
            // Neither its contents given away nor a place in them make it readable.
            let inside =
                tree.walk(&RelPath::root(), Some(&cursor_after(&rel("locked/w"), false))).unwrap();
            let found: Vec<_> = inside.collect();
            assert_eq!((found[0].is_err(), found.len()), (true, 2));
            assert!(tree.walk(&rel("locked"), None).is_err());
        });
    }
    lock(0o700);
}

fn walk_options(rules: &[&str], links: Links) -> WalkOptions {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    let filter = Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).unwrap();
    WalkOptions { filter: Arc::new(filter), links, destination: None }
}

#[test]
fn excluded_directories_are_not_opened() {
    let site = TestSite::new();
    for path in ["src/a.o", "src/locked/x", "src/d/b.o", "src/d/c", "src/f"] {
        site.write_file(path, "");
    }
    symlink("nowhere", site.path("src/out")).unwrap();
    fs::set_permissions(site.path("src/locked"), fs::Permissions::from_mode(0o0)).unwrap();
    site.run_with_all_owned_by_nobody(|| {
        let some = walk_options(&["*.o", "locked/", "/out"], Links::Copy);
        let walk = site.source().walk_with(&RelPath::root(), None, some).unwrap();
        assert_eq!(collect_paths(walk), ["", "d", "d/c", "f"].map(rel));
    });
    fs::set_permissions(site.path("src/locked"), fs::Permissions::from_mode(0o700)).unwrap();
    // Limits are for files.
    site.write_file("src/d/long", "xxxx");
    let spec = FilterSpec { min_size: Some(1), ..FilterSpec::default() };
    let some = WalkOptions {
        filter: Arc::new(Filter::new(&spec).unwrap()),
        links: Links::Skip,
        destination: None,
    };
    let mut walk = site.source().walk_with(&RelPath::root(), None, some).unwrap();
    let got: Vec<_> = walk.by_ref().map(|entry| entry.unwrap().path).collect();
    assert_eq!(got, ["", "d", "d/long", "locked"].map(rel));
    let notes = walk.take_exclusions();
    assert_eq!(notes[LINKS_SKIPPED].paths[0].0, b"out");
    assert!(walk.take_exclusions().is_empty());
}

#[test]
fn skipped_links_are_counted_once_across_resumed_walks() {
    let site = TestSite::new();
    for name in ["a", "c", "e"] {
        site.write_file(format!("src/{name}"), "");
        symlink("x", site.path(&format!("src/{name}-link"))).unwrap();
    }
    let mut counted = 0;
    let mut cursor = None;
    loop {
        let some = walk_options(&[], Links::Skip);
        let mut walk = site.source().walk_with(&RelPath::root(), cursor.as_ref(), some).unwrap();
        let next = walk.next();
        counted += walk.take_exclusions().values().map(|note| note.count).sum::<u64>();
        match next {
            Some(entry) => drop(entry.unwrap()),
            None => break,
        }
        cursor = walk.cursor().cloned();
    }
    assert_eq!(counted, 3);
}

#[test]
fn a_directory_larger_than_the_name_limit_is_walked_in_parts() {
    let site = TestSite::new();
    let want: Vec<RelPath> = (100..200).map(|i| rel(format!("f{i}"))).collect();
    for path in want.iter().rev() {
        fs::write(site.path("src").join(os_str(path.as_bytes())), "").unwrap();
    }
    let cursor = cursor_after(&RelPath::root(), false);
    for keep in [1, 7, 50, 99, 100, 101] {
        let walk = site
            .source()
            .walk_with_limit(&RelPath::root(), Some(&cursor), WalkOptions::default(), keep)
            .unwrap();
        assert_eq!(collect_paths(walk), want, "{keep}");
    }
}

#[test]
fn a_tree_that_changes_during_the_walk_gives_sorted_distinct_entries() {
    let site = TestSite::new();
    for i in 0..30 {
        site.write_file(format!("src/d{i}/f"), "x");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let dir = site.path(&format!("src/d{}", i % 30));
                let other = site.path(&format!("src/moved{}", i % 7));
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
            assert!(!got.iter().any(|p| p.file_name() == Some(b"file")), "left the root");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_cursor_to_a_removed_entry_still_marks_the_position() {
    let site = TestSite::new();
    for path in ["src/b/x", "src/c/y"] {
        site.write_file(path, "");
    }
    let tree = site.source();
    let from = |dir: &str, after: &str, skip| {
        collect_paths(tree.walk(&rel(dir), Some(&cursor_after(&rel(after), skip))).unwrap())
    };
    assert_eq!(from("", "a/gone", false), ["b", "b/x", "c", "c/y"].map(rel));
    assert_eq!(from("", "b/x/was/a/directory", false), ["c", "c/y"].map(rel));
    assert_eq!(from("", "b/m", true), ["b/x", "c", "c/y"].map(rel));
    assert_eq!(from("b", "a", false), [rel("b/x")]);
    assert_eq!(from("b", "c", false), []);
    assert_eq!(from("b", "b", true), []);
    assert_eq!(from("b", "b", false), [rel("b/x")]);
}

fn any_link() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a".to_owned(), "a-".to_owned(), "b".to_owned()])
}

/// Names that sort differently as whole paths and by component.
fn any_tree() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
    let name = prop::sample::select(vec![&b"a"[..], b"a-", b"a\xff", b"b", b"\n", b"a.b"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'));
    prop::collection::btree_set(path, 0..14)
}

/// What a walk gives by the plainest of rules: everything that is there, each asked for alone.
fn plain_walk(site: &TestSite, some: &WalkOptions) -> Vec<RelPath> {
    let src = site.path("src");
    let all = walkdir::WalkDir::new(&src).follow_links(some.links == Links::Copy);
    let mut all: Vec<RelPath> = all
        .into_iter()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(&src).unwrap();
            let path = rel(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
            let skipped = entry.file_type().is_symlink() && some.links == Links::Skip;
            (!skipped && !some.filter.excludes_with_parents(&path, entry.file_type().is_dir()))
                .then_some(path)
        })
        .collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn with_any_filter_and_links_every_entry_is_returned_once_across_resumes(
        files in any_tree(),
        links in prop::collection::btree_map(any_link(), any_link(), 0..3),
        rules in prop::collection::vec(prop::sample::select(
            vec!["a", "b/", "!a", "/a", "*.b", "a/**", "!*", "**/a-", "a/b", "[b-z]"]), 0..4),
        mode in prop::sample::select(vec![Links::Keep, Links::Copy, Links::Skip]),
        keep in 1usize..4,
    ) {
        let site = TestSite::new();
        for path in &files {
            let path = site.path("src").join(os_str(path));
            if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                let _ = fs::write(path, "");
            }
        }
        // Links to directories beside the source: none of them leads in a circle.
        for (at, to) in &links {
            site.write_file(format!("beside/{to}/in/x"), "");
            let _ = symlink(site.path("beside").join(to), site.path("src").join(format!("{at}-l")));
        }
        let tree = site.source();
        let some = walk_options(&rules, mode);
        let want = plain_walk(&site, &some);
        let from = |cursor: Option<&Cursor>, keep| {
            collect_paths(tree.walk_with_limit(&RelPath::root(), cursor, some.clone(), keep).unwrap())
        };
        prop_assert_eq!(&from(None, MAX_NAMES_HELD), &want);
        for (i, after) in want.iter().enumerate() {
            let rest = want[i + 1..].to_vec();
            prop_assert_eq!(&from(Some(&cursor_after(after, false)), keep), &rest);
            let outside: Vec<_> = rest.into_iter().filter(|p| !after.contains(p)).collect();
            prop_assert_eq!(&from(Some(&cursor_after(after, true)), keep), &outside);
        }
    }

    #[test]
    fn resuming_after_any_entry_returns_exactly_the_remaining_entries(files in any_tree(), keep in 1usize..4) {
        let site = TestSite::new();
        for path in &files {
            let path = site.path("src").join(os_str(path));
            if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                let _ = fs::write(path, "");
            }
        }
        let tree = site.source();
        let all = walk_all(&tree);
        let from = |cursor: &Cursor, keep| {
            collect_paths(tree.walk_with_limit(&RelPath::root(), Some(cursor), WalkOptions::default(), keep).unwrap())
        };
        for (i, after) in all.iter().enumerate() {
            let rest = all[i + 1..].to_vec();
            prop_assert_eq!(&from(&cursor_after(after, false), MAX_NAMES_HELD), &rest);
            prop_assert_eq!(&from(&cursor_after(after, false), keep), &rest);
            let outside: Vec<_> = rest.into_iter().filter(|p| !after.contains(p)).collect();
            prop_assert_eq!(&from(&cursor_after(after, true), keep), &outside);
        }
    }
}

#[test]
fn a_pseudo_file_system_is_rejected_instead_of_copied_as_empty_files() {
    // All of them in one storage root, as an agent with `/` as its storage path has it.
    let root = RootDir::open(&AbsPath::new(b"/").unwrap()).unwrap();
    let tree = |base: &str| Tree::new(root.clone(), rel(base));
    for base in ["proc", "proc/1", "sys/kernel"] {
        let error = tree(base).walk(&RelPath::root(), None).unwrap_err();
        assert_eq!(
            (error.cause, error.class()),
            (Cause::PseudoFileSystem, ErrorClass::Permanent),
            "{base}"
        );
    }
    let error = tree("proc").entry(&rel("version")).unwrap_err();
    assert_eq!(error.cause, Cause::PseudoFileSystem);
    assert!(error.to_string().contains("leave it out"), "{error}");

    // Where it is mounted further down, there is one error, and the walk goes on behind it.
    let mut walk =
        tree("").walk(&RelPath::root(), Some(&cursor_after(&rel("proa"), true))).unwrap();
    assert_eq!(walk.next().unwrap().unwrap_err().path.0, b"proc");
    let next = walk.next().unwrap().unwrap();
    assert!(!rel("proc").contains(&next.path), "{next:?}");
}
