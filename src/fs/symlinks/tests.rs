use super::super::WalkOptions;
use super::super::testing::*;
use super::*;
use crate::fs::FsError;
use crate::wire::manifest::EntryKind;
use crate::wire::outcome::ErrorClass;
use crate::wire::task::Cursor;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

fn follow_links_options() -> WalkOptions {
    WalkOptions { links: Links::Copy, ..WalkOptions::default() }
}

/// Paths, each with where it really is.
type RealPaths = BTreeMap<String, Option<String>>;

/// Everything that is found, with where it really is; and the causes of errors.
fn walk_following_links(site: &TestSite, dir: &str) -> (RealPaths, Vec<(String, Cause)>) {
    let (mut entries, mut errors) = (BTreeMap::new(), Vec::new());
    for item in site.source().walk_with(&rel(dir), None, follow_links_options()).unwrap() {
        match item {
            Ok(entry) => {
                assert!(!matches!(entry.kind, EntryKind::Symlink { .. }));
                let real = entry.content_path.map(|real| real.to_string());
                assert!(entries.insert(entry.path.to_string(), real).is_none());
            }
            Err(error) => errors.push((error.path.to_string(), error.cause)),
        }
    }
    (entries, errors)
}

fn expected_paths(all: &[(&str, &str)]) -> RealPaths {
    let real = |real: &str| (!real.is_empty()).then(|| real.to_owned());
    all.iter().map(|(path, at)| ((*path).to_owned(), real(at))).collect()
}

#[test]
fn followed_links_are_copied_as_their_target_with_its_content() {
    let site = TestSite::new();
    site.write_file("other/deep/file", "content");
    site.write_file("src/plain", "");
    symlink("../other/deep/file", site.path("src/to-file")).unwrap();
    symlink(site.path("other"), site.path("src/to-dir")).unwrap();
    symlink("to-dir/deep", site.path("src/through")).unwrap();
    let (entries, errors) = walk_following_links(&site, "");
    assert_eq!(errors, []);
    let want = [
        ("", ""),
        ("plain", ""),
        ("through", "other/deep"),
        ("through/file", "other/deep/file"),
        ("to-dir", "other"),
        ("to-dir/deep", "other/deep"),
        ("to-dir/deep/file", "other/deep/file"),
        ("to-file", "other/deep/file"),
    ];
    assert_eq!(entries, expected_paths(&want));
    let source = site.source();
    for item in source.walk_with(&RelPath::root(), None, follow_links_options()).unwrap() {
        let entry = item.unwrap();
        if entry.size() > 0 {
            assert_eq!(read_content(&source.open_source(&entry).unwrap()), b"content");
            let (found, dirs) = source.find_entry(&entry.path, Links::Copy).unwrap();
            assert_eq!(found, entry);
            assert_eq!(dirs.last().map(|d| d.path.clone()), entry.path.parent());
        }
    }
    // Also from a directory that only a link leads to.
    let (below, _) = walk_following_links(&site, "to-dir/deep");
    assert_eq!(below, expected_paths(&[("to-dir/deep/file", "other/deep/file")]));
    let names = source.storage_tree().list_names(&rel("other/deep"), None, 9).unwrap();
    assert_eq!(names.names, [(b"file".as_slice().into(), false)]);
}

#[test]
fn dangling_outside_and_circular_links_are_errors_at_their_position() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let site = TestSite::new();
    let link = |to: &str, at: &str| symlink(to, site.path(at)).unwrap();
    site.write_file("src/d/f", "x");
    site.write_file("src/z", "x");
    link("nowhere", "src/a-dangling");
    link("z/below-a-file", "src/a-file");
    link(outside.path().to_str().unwrap(), "src/b-outside");
    link(&format!("{}/secret", outside.path().display()), "src/b-secret");
    link("/", "src/b-top");
    link(".", "src/d/circle");
    link("../..", "src/d/up");
    link("self", "src/self");
    // A name that begins like the storage root's.
    let beside = format!("{}-beside", site.dir.path().display());
    fs::write(&beside, "x").unwrap();
    link(&beside, "src/c-beside");
    let (entries, errors) = walk_following_links(&site, "");
    fs::remove_file(&beside).unwrap();
    let errors: Vec<_> = errors.iter().map(|(path, cause)| (path.as_str(), *cause)).collect();
    assert_eq!(
        errors,
        [
            ("a-dangling", Cause::DanglingLink),
            ("a-file", Cause::DanglingLink),
            ("b-outside", Cause::LinkOutsideRoot),
            ("b-secret", Cause::LinkOutsideRoot),
            ("b-top", Cause::LinkOutsideRoot),
            ("c-beside", Cause::LinkOutsideRoot),
            ("d/circle", Cause::LinkCycle),
            ("d/up/src", Cause::LinkCycle),
            ("self", Cause::LinkCycle),
        ]
    );
    // The storage root itself is no circle: what lies beside the source is copied.
    assert_eq!(entries["d/up/canary/file"].as_deref(), Some("canary/file"));
    assert!(entries.contains_key("z"));
    let error = FsError::new(super::super::Side::Source, "follow", b"l", Cause::DanglingLink);
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("leads to nothing; exclude it"), "{error}");
    assert!(site.source().find_entry(&rel("b-outside/secret"), Links::Copy).is_err());
    assert!(site.source().walk_with(&rel("b-outside"), None, follow_links_options()).is_err());
}

#[test]
fn a_walk_through_links_resumes_after_any_entry_or_error() {
    let site = TestSite::new();
    for path in ["other/a/x", "other/b", "src/m", "src/z"] {
        site.write_file(path, "");
    }
    symlink("../other", site.path("src/l1")).unwrap();
    symlink("a", site.path("other/again")).unwrap();
    symlink("nowhere", site.path("other/broken")).unwrap();
    symlink("../other/a", site.path("src/y")).unwrap();
    let tree = site.source();
    type Step = (String, bool);
    let step = |item: std::result::Result<Entry, FsError>| -> Step {
        match item {
            Ok(entry) => (entry.path.to_string(), true),
            Err(error) => (error.path.to_string(), false),
        }
    };
    let all: Vec<Step> =
        tree.walk_with(&RelPath::root(), None, follow_links_options()).unwrap().map(step).collect();
    assert_eq!(all.iter().filter(|(_, fine)| !fine).count(), 1);
    let mut walk = tree.walk_with(&RelPath::root(), None, follow_links_options()).unwrap();
    let mut done = 0;
    while walk.next().is_some() {
        done += 1;
        let cursor: Cursor = walk.cursor().unwrap().clone();
        let rest = tree.walk_with(&RelPath::root(), Some(&cursor), follow_links_options()).unwrap();
        assert_eq!(rest.map(step).collect::<Vec<_>>(), all[done..]);
    }
    assert_eq!(done, all.len());
}

#[test]
fn a_link_swapped_during_the_read_never_returns_content_from_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("d")).unwrap();
    fs::write(outside.path().join("d/secret"), "secret").unwrap();
    let site = TestSite::new();
    site.write_file("other/d/fine", "x");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for to in [outside.path(), &site.path("other")] {
                    let _ = fs::remove_file(site.path("new"));
                    let _ = symlink(to, site.path("new"));
                    let _ = fs::rename(site.path("new"), site.path("src/link"));
                }
            }
        });
        for _ in 0..2000 {
            let tree = site.source();
            let walk = tree.walk_with(&RelPath::root(), None, follow_links_options()).unwrap();
            for entry in walk.flatten() {
                assert_ne!(entry.path.file_name(), Some(&b"secret"[..]));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
