use super::super::testing::*;
use super::*;
use crate::wire::options::WriteRules;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

const SKIP: Verdict = Verdict::Done(EntryAction::Skip);
const METADATA: Verdict = Verdict::Done(EntryAction::Metadata);
const CREATE: Verdict = Verdict::Done(EntryAction::Create);
const UPDATE: Verdict = Verdict::Done(EntryAction::Update);

fn needed(action: EntryAction, base: bool) -> Verdict {
    Verdict::Needed { action, base }
}

/// The verdicts by path, for a whole source.
fn verdicts(site: &Site, rules: &WriteRules) -> BTreeMap<String, Verdict> {
    let batch = manifest(&site.source());
    let done = site.target_by(rules.clone()).reconcile(&batch);
    assert_eq!(done.digests.len(), batch.entries.len());
    batch.entries.iter().map(|e| e.path.to_string()).zip(done.verdicts).collect()
}

/// What a dry run says, after making sure that it changes nothing, and that a real run says the same.
fn both(site: &Site, rules: &WriteRules) -> BTreeMap<String, Verdict> {
    let there = site.at("dst");
    let before = there.exists().then(|| snapshot(&there));
    let dry = verdicts(site, &WriteRules { dry_run: true, ..rules.clone() });
    assert_eq!(there.exists().then(|| snapshot(&there)), before, "a dry run changes nothing");
    assert_eq!(verdicts(site, rules), dry);
    dry
}

fn changed_source(site: &Site) {
    for (path, content) in [
        ("same", "content"),
        ("longer", "content"),
        ("touched", "content"),
        ("new", "content"),
        ("empty", ""),
        ("emptied", ""),
        ("sub/f", "x"),
        ("instead/f", "x"),
    ] {
        site.write(format!("src/{path}"), content);
        touch(&site.at("src").join(path), 1000, 1);
    }
    symlink("to", site.at("src/link")).unwrap();
    symlink("to", site.at("src/relinked")).unwrap();
    for path in ["src/link", "src/relinked", "src/sub", "src/instead", "src"] {
        touch(&site.at(path), 1000, 1);
    }
    for (path, content) in
        [("same", "CONTENT"), ("longer", "contents"), ("touched", "content"), ("emptied", "full")]
    {
        site.write(format!("dst/{path}"), content);
        touch(&site.at("dst").join(path), 1000, if path == "touched" { 2 } else { 1 });
    }
    symlink("to", site.at("dst/link")).unwrap();
    symlink("elsewhere", site.at("dst/relinked")).unwrap();
    site.write("dst/instead", "a file");
}

#[test]
fn each_entry_is_told_by_what_is_done_with_it_and_a_dry_run_says_the_same() {
    let site = Site::new();
    changed_source(&site);
    let said = both(&site, &WriteRules::default());
    for (path, want) in [
        ("", METADATA),
        ("same", SKIP),
        ("longer", needed(EntryAction::Update, true)),
        ("touched", needed(EntryAction::Update, true)),
        ("new", needed(EntryAction::Create, false)),
        ("empty", CREATE),
        ("emptied", UPDATE),
        ("link", METADATA),
        ("relinked", UPDATE),
        ("sub", CREATE),
        ("sub/f", needed(EntryAction::Create, false)),
        ("instead", UPDATE),
        ("instead/f", needed(EntryAction::Create, false)),
    ] {
        assert_eq!(said[path], want, "{path}");
    }
    assert_eq!(fs::symlink_metadata(site.at("dst/link")).unwrap().mtime(), 1000);
    // Nothing at all is there.
    fs::remove_dir_all(site.at("dst")).unwrap();
    let said = both(&site, &WriteRules::default());
    assert!(
        said.values().all(|v| *v == CREATE || *v == needed(EntryAction::Create, false)),
        "{said:?}"
    );
}

#[test]
fn equal_size_or_a_time_within_the_tolerance_is_enough_where_that_is_asked_for() {
    let site = Site::new();
    changed_source(&site);
    let near = WriteRules { mtime_tolerance_ns: 1, ..WriteRules::default() };
    assert_eq!(both(&site, &near)["touched"], SKIP);
    assert_eq!(fs::metadata(site.at("dst/touched")).unwrap().mtime_nsec(), 2, "it is near enough");
    let size = WriteRules { compare: Compare::Size, ..WriteRules::default() };
    let said = both(&site, &size);
    assert_eq!((&said["touched"], &said["same"]), (&METADATA, &SKIP));
    assert_eq!(said["longer"], needed(EntryAction::Update, true));
}

#[test]
fn content_is_compared_by_the_digest_of_the_source() {
    let site = Site::new();
    changed_source(&site);
    for readback in [false, true] {
        let rules = WriteRules {
            compare: Compare::Checksum,
            returns_digests: true,
            readback,
            ..WriteRules::default()
        };
        let mut batch = manifest(&site.source());
        let first = site.target_by(rules.clone()).reconcile(&batch);
        for (entry, verdict) in batch.entries.iter_mut().zip(&first.verdicts) {
            let check = ["same", "touched"].contains(&entry.path.to_string().as_str());
            assert_eq!(*verdict == Verdict::Check, check, "{}", entry.path);
            if check {
                entry.digest = Some(blake3::hash(b"content").into());
            }
        }
        touch(&site.at("dst/touched"), 5, 5);
        for dry_run in [true, false] {
            let rules = WriteRules { dry_run, ..rules.clone() };
            let done = site.target_by(rules).reconcile(&batch);
            let at = |path: &str| {
                let at = batch.entries.iter().position(|e| e.path == rel(path)).unwrap();
                (done.verdicts[at].clone(), done.digests[at])
            };
            assert_eq!(at("same"), (needed(EntryAction::Update, true), None));
            assert_eq!(at("touched"), (METADATA, Some(blake3::hash(b"content").into())));
            assert_eq!(at("empty").1, Some(blake3::hash(b"").into()));
            assert_eq!(at("sub").1, None);
        }
        assert_eq!(fs::metadata(site.at("dst/touched")).unwrap().mtime(), 1000);
    }
}

#[test]
fn digests_are_of_what_the_destination_has() {
    let site = Site::new();
    changed_source(&site);
    let rules =
        WriteRules { returns_digests: true, ignore_existing: true, ..WriteRules::default() };
    let batch = batch_of(&site.source(), "longer");
    let done = site.target_by(rules).reconcile(&batch);
    assert_eq!(
        (done.verdicts, done.digests),
        (vec![SKIP], vec![Some(blake3::hash(b"contents").into())])
    );
}

#[test]
fn what_is_newer_or_exists_is_left_alone_where_that_is_asked_for() {
    let site = Site::new();
    changed_source(&site);
    touch(&site.at("dst/longer"), 1000, 5);
    touch(&site.at("dst/instead"), 2000, 0);
    let update = WriteRules { update: true, ..WriteRules::default() };
    let said = both(&site, &WriteRules { mtime_tolerance_ns: 4, ..update.clone() });
    assert_eq!(said["longer"], needed(EntryAction::Update, true), "not newer than the tolerance");
    // A newer file is no newer version of a directory.
    assert_eq!(said["instead"], UPDATE);
    assert!(site.at("dst/instead").is_dir());
    let said = both(&site, &update);
    for path in ["longer", "touched"] {
        assert_eq!(said[path], SKIP, "{path}");
    }

    let site = Site::new();
    changed_source(&site);
    fs::remove_file(site.at("dst/longer")).unwrap();
    fs::create_dir(site.at("dst/longer")).unwrap();

    let before = fs::metadata(site.at("dst/longer")).unwrap();
    let said = both(&site, &WriteRules { ignore_existing: true, ..WriteRules::default() });
    for path in ["longer", "touched", "link", "relinked", "instead", "instead/f"] {
        assert_eq!(said[path], SKIP, "{path}");
    }
    assert_eq!(said["new"], needed(EntryAction::Create, false));
    assert_eq!(fs::metadata(site.at("dst/longer")).unwrap().ctime_nsec(), before.ctime_nsec());
}

#[test]
fn nothing_is_created_where_only_what_exists_is_wanted() {
    let site = Site::new();
    changed_source(&site);
    let rules = WriteRules { existing: true, ..WriteRules::default() };
    let said = both(&site, &rules);
    for path in ["new", "empty", "sub", "sub/f"] {
        assert_eq!(said[path], SKIP, "{path}");
        assert!(!site.at("dst").join(path).exists());
    }
    assert_eq!(said["longer"], needed(EntryAction::Update, true));
    assert_eq!((&said["emptied"], &said["instead"]), (&UPDATE, &UPDATE));
    // A destination that is not there stays so.
    fs::remove_dir_all(site.at("dst")).unwrap();
    assert!(both(&site, &rules).values().all(|v| *v == SKIP));
    assert!(!site.at("dst").exists());
    let file = site.tree("src/new");
    let target = Target::new(
        site.tree("x/y"),
        crate::wire::SyncNo(1),
        super::super::TargetOptions::of_this_process(rules),
    );
    assert_eq!(target.reconcile(&manifest(&file)).verdicts, [SKIP]);
    assert!(!site.at("x").exists());
}

#[test]
fn a_directory_in_the_way_is_told_by_a_dry_run_as_by_a_real_one() {
    let site = Site::new();
    site.write("src/full", "x");
    site.write("src/hollow", "x");
    site.write("dst/full/kept", "x");
    fs::create_dir(site.at("dst/hollow")).unwrap();
    let said = both(&site, &WriteRules::default());
    let Verdict::Failed(error) = &said["full"] else { panic!("{said:?}") };
    assert_eq!(
        (error.operation.as_str(), error.errno.as_deref()),
        ("replace destination", Some("EISDIR"))
    );
    assert_eq!(said["hollow"], needed(EntryAction::Update, false));
}

#[test]
fn a_part_file_of_this_version_is_something_to_compare_with() {
    let site = Site::new();
    site.write("src/d/f", vec![1; 300 << 10]);
    let entry = site.source().entry(&rel("d/f")).unwrap();
    site.target().part(&entry).unwrap();
    assert_eq!(both(&site, &WriteRules::default())["d/f"], needed(EntryAction::Create, true));
    site.write("src/d/f", vec![2; 300 << 10]);
    touch(&site.at("src/d/f"), 77, 7);
    assert_eq!(both(&site, &WriteRules::default())["d/f"], needed(EntryAction::Create, false));
}

#[test]
fn directories_below_one_that_another_batch_writes_into_are_compared_as_they_were() {
    let site = Site::new();
    site.write("src/d/sub/f", "x");
    for path in ["src/d/sub/f", "src/d/sub", "src/d", "src"] {
        touch(&site.at(path), 500, 0);
    }
    let (source, target) = (site.source(), site.target());
    copy(&source, &target, &manifest(&source));
    let again = both(&site, &WriteRules::default());
    assert!(again.values().all(|v| *v == SKIP), "{again:?}");
    // What this very batch makes in it does not make it differ.
    site.write("src/d/new/f", "x");
    touch(&site.at("src/d"), 500, 0);
    let said = both(&site, &WriteRules::default());
    assert_eq!((&said["d"], &said["d/new"]), (&SKIP, &CREATE));
    assert_eq!(fs::metadata(site.at("dst/d")).unwrap().mtime(), 500);
}

#[test]
fn what_lies_below_a_directory_that_cannot_be_made_fails_for_that_reason() {
    let site = Site::new();
    site.write("src/d/f", "content");
    fs::create_dir(site.at("dst")).unwrap();
    site.give_to_nobody();
    std::os::unix::fs::chown(site.at("dst"), Some(0), Some(0)).unwrap();
    site.run_as_nobody(|| {
        let said = verdicts(&site, &WriteRules::default());
        for (path, operation) in [("d", "make directory"), ("d/f", "make directory above")] {
            let Verdict::Failed(error) = &said[path] else { panic!("{path}: {:?}", said[path]) };
            let message = error.to_string();
            let wanted =
                format!("cannot {operation} `{path}` at the destination: Permission denied");
            assert!(message.starts_with(&wanted), "{message}");
        }
    });
}
