//! Deleting into a trash.

use super::*;

#[test]
fn deleted_entries_move_to_the_trash_with_their_metadata_and_the_trash_is_kept() {
    let site = TestSite::new();
    for path in ["f", "d/e/g", "bin/before", "keep/h"] {
        site.write_file(format!("dst/{path}"), path);
    }
    symlink("t", site.path("dst/d/link")).unwrap();
    fs::set_permissions(site.path("dst/d/e"), fs::Permissions::from_mode(0o751)).unwrap();
    set_file_mtime(&site.path("dst/d/e"), 1000, 5);
    set_file_mtime(&site.path("dst/d"), 2000, 6);
    set_file_mtime(&site.path("dst/keep"), 3000, 7);
    let d = snapshot(&site.path("dst/d"));
    for trash in ["bin", "keep/new/bin"] {
        let target = site.target_with_rules(WriteRules { trash: Some(rel(trash)), ..rules() });
        let names: &[&str] = if trash == "bin" { &["keep"] } else { &["bin", "keep"] };
        let count = target.prune_page(&count_only(&prune_page("", names))).unwrap();
        let done = target.prune_page(&prune_page("", names)).unwrap();
        assert_eq!(done, count);
        assert_eq!(sorted_names(&site.path("dst")), [&b"bin"[..], b"keep"]);
        if trash == "bin" {
            assert_eq!(removed_paths(&done), ["d/e/g", "d/e", "d/link", "d", "f"]);
            assert_eq!(snapshot(&site.path("dst/bin/req/d")), d);
            // Once more, with other things of the same names.
            site.write_file("dst/f", "second");
            site.write_file("dst/d/e/g", "second");
            target.prune_page(&prune_page("", names)).unwrap();
            assert_eq!(fs::read(site.path("dst/bin/req/f")).unwrap(), b"f");
            assert_eq!(fs::read(site.path("dst/bin/req~1/f")).unwrap(), b"second");
            assert_eq!(fs::read(site.path("dst/bin/req~1/d/e/g")).unwrap(), b"second");
            site.write_file("dst/f", "third");
        } else {
            assert_eq!(fs::read(site.path("dst/keep/new/bin/req/f")).unwrap(), b"third");
            assert_eq!(fs::metadata(site.path("dst/keep")).unwrap().mtime(), 3000);
        }
    }
    // The directories above the trash stay, though the source does not have them.
    let target = site.target_with_rules(WriteRules { trash: Some(rel("keep/new/bin")), ..rules() });
    let done = target.prune_page(&prune_page("", &["bin"])).unwrap();
    assert_eq!(removed_paths(&done), ["keep/h"]);
    // Also when it is only made by the deletion itself.
    fs::remove_dir_all(site.path("dst/keep/new")).unwrap();
    site.write_file("dst/keep/h", "");
    let count = target.prune_page(&count_only(&prune_page("", &["bin"]))).unwrap();
    assert_eq!(removed_paths(&count), ["keep/h"]);
    assert_eq!(target.prune_page(&prune_page("", &["bin"])).unwrap(), count);
}

#[test]
fn a_trash_that_is_no_directory_is_reported_and_nothing_is_deleted() {
    let site = TestSite::new();
    fs::create_dir_all(site.path("dst/d")).unwrap();
    for path in ["dst/file", "dst/victim", "dst/d/victim"] {
        site.write_file(path, "x");
    }
    symlink("d", site.path("dst/link")).unwrap();
    for (trash, named, kind) in [
        ("file", "`file`", "a file is there"),
        ("file/bin", "`file`", "a file is there"),
        ("link", "`link`", "a symbolic link is there"),
        ("link/bin", "`link`", "a symbolic link is there"),
    ] {
        let target = site.target_with_rules(WriteRules { trash: Some(rel(trash)), ..rules() });
        for asked in [prune_page("", &[]), count_only(&prune_page("", &[])), prune_page("d", &[])] {
            let error = target.prune_page(&asked).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(named) && text.contains(kind), "{trash}: {text}");
            assert!(text.contains("--trash") && !text.contains("victim"), "{trash}: {text}");
            assert_eq!(error.class(), crate::wire::outcome::ErrorClass::InvalidRequest);
        }
        assert_eq!(sorted_names(&site.path("dst")), [&b"d"[..], b"file", b"link", b"victim"]);
        assert_eq!(sorted_names(&site.path("dst/d")), [b"victim"]);
    }
}

#[test]
fn an_entry_with_a_name_that_is_in_the_trash_gets_a_free_place() {
    let long = "n".repeat(255);
    let under = format!("{long}/{long}");
    // What is deleted, one after the other, each by a mirror of the same id; `/` at the end: a directory.
    let cases: [&[&str]; 6] = [
        &[&long, &long, &long],
        &[&under, &under, &long],
        &["a", "a/", "a/b"],
        &["a/b", "a", "a/b"],
        &["a/", "a/", "a"],
        &["a/b/c", "a/b", "a"],
    ];
    for paths in cases {
        let site = TestSite::new();
        let target = site.target_with_rules(WriteRules { trash: Some(rel("bin")), ..rules() });
        let mut files = 0;
        for (number, path) in paths.iter().enumerate() {
            match path.strip_suffix('/') {
                Some(dir) => fs::create_dir_all(site.path("dst").join(dir)).unwrap(),
                None => drop(site.write_file(format!("dst/{path}"), number.to_string())),
            }
            files += usize::from(!path.ends_with('/'));
            let done = target.prune_page(&prune_page("", &[])).unwrap();
            assert_eq!(done.errors, [], "{paths:?} at {number}");
            assert_eq!(sorted_names(&site.path("dst")), [b"bin"], "{paths:?} at {number}");
        }
        let kept = read_model(&site.path("dst/bin"));
        let kept = kept
            .iter()
            .filter(|(path, size)| path.file_name() != Some(TRASH_MARKER) && size.is_some());
        assert_eq!(kept.count(), files, "{paths:?}");
    }
}

#[test]
fn the_trash_of_an_earlier_mirror_is_kept_and_not_counted() {
    let made = |bin: &str| {
        let site = TestSite::new();
        site.write_file("dst/extra/f", "x");
        let target = site.target_with_rules(WriteRules { trash: Some(rel(bin)), ..rules() });
        assert_eq!(target.prune_page(&prune_page("", &[])).unwrap().pruned.extraneous, 2);
        // By the next run there is more to delete.
        site.write_file("dst/gone", "12");
        site
    };
    let all = PruneRequest { filter: filter(&["*"]), delete_excluded: true, ..prune_page("", &[]) };
    // The trash, that of the next mirror, a page, how many entries it deletes, and whether it names the trash.
    let cases = [
        ("bin", None, prune_page("", &[]), 1, true),
        ("bin", Some("other"), prune_page("", &[]), 1, true),
        ("bin", Some("bin/new"), prune_page("", &[]), 1, true),
        ("bin", Some("bin"), prune_page("", &[]), 1, false),
        ("bin", None, all, 1, true),
        ("deep/in/bin", None, prune_page("", &[]), 1, true),
        // The source has directories of these names, which have pages of their own.
        ("bin", None, prune_page("", &["bin"]), 1, false),
        ("bin", None, prune_page("bin", &[]), 0, true),
        ("bin", None, prune_page("bin/req", &[]), 0, false),
        ("bin", None, prune_page("bin/req/extra", &[]), 0, false),
        ("deep/in/bin", None, prune_page("deep/in", &["bin"]), 0, false),
        ("deep/in/bin", None, prune_page("deep/in/bin/req", &[]), 0, false),
    ];
    for (bin, other, page, extra, named) in cases {
        let site = made(bin);
        let case = format!("{bin}, then {other:?}, {:?} of {:?}", page.names, page.dir);
        let mut before = snapshot(&site.path("dst").join(bin));
        // Directories get other times, where more is moved to the same trash.
        before.retain(|path, _| site.path("dst").join(bin).join(path).is_file());
        let target = site.target_with_rules(WriteRules { trash: other.map(rel), ..rules() });
        for page in [count_only(&page), page] {
            let done = prune_all(&target, &page, 1);
            assert_eq!((done.pruned.extraneous, done.errors), (extra, vec![]), "{case}");
            let names: Vec<_> = done.old_trash.paths.iter().map(ToString::to_string).collect();
            assert_eq!(names, if named { vec![bin] } else { vec![] }, "{case}");
            assert_eq!(done.old_trash.count, u64::from(named), "{case}");
        }
        let after = snapshot(&site.path("dst").join(bin));
        assert!(before.len() >= 2, "{before:?}");
        for (path, seen) in &before {
            assert_eq!(after.get(path), Some(seen), "{case}");
        }
    }
    // Without its mark it is a directory like any other.
    let site = made("bin");
    fs::remove_file(site.path("dst/bin").join(os_str(TRASH_MARKER))).unwrap();
    site.target_with_rules(rules()).prune_page(&prune_page("", &[])).unwrap();
    assert_eq!(sorted_names(&site.path("dst")), Vec::<Vec<u8>>::new());
}

#[test]
fn the_trash_is_kept_even_when_the_source_has_a_directory_of_its_name() {
    let site = TestSite::new();
    for file in ["bin/old/deleted", "bin/req/d/deleted", "bin/own"] {
        site.write_file(format!("dst/{file}"), "x");
    }
    let before = snapshot(&site.path("dst"));
    let target = site.target_with_rules(WriteRules { trash: Some(rel("bin")), ..rules() });
    for page in [prune_page("bin", &["own"]), prune_page("bin/req", &[]), prune_page("", &["bin"])]
    {
        let done = prune_all(&target, &page, 3);
        assert_eq!((done.removed, done.errors), (vec![], vec![]));
    }
    assert_eq!(snapshot(&site.path("dst")), before);
}
