use super::super::testing::*;
use super::*;
use crate::wire::options::WriteRules;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

const SKIP: Decision = Ok(OfferDecision::Done(EntryAction::Skip));
const METADATA: Decision = Ok(OfferDecision::Done(EntryAction::Metadata));
const CREATE: Decision = Ok(OfferDecision::Done(EntryAction::Create));
const UPDATE: Decision = Ok(OfferDecision::Done(EntryAction::Update));

fn needed(action: EntryAction, base: bool) -> Decision {
    Ok(OfferDecision::NeedsContent { action, has_basis: base })
}

/// The decisions by path, for a whole source.
fn decisions(site: &TestSite, rules: &WriteRules) -> BTreeMap<String, Decision> {
    let batch = full_manifest(&site.source());
    let done = site.target_with_rules(rules.clone()).reconcile(&batch);
    assert_eq!(done.digests.len(), batch.entries.len());
    batch.entries.iter().map(|e| e.path.to_string()).zip(done.decisions).collect()
}

/// The decisions of a dry run, after checks that it changes nothing and that a real run returns the same.
fn reconcile_dry_and_real(site: &TestSite, rules: &WriteRules) -> BTreeMap<String, Decision> {
    let there = site.path("dst");
    let before = there.exists().then(|| snapshot(&there));
    let dry = decisions(site, &WriteRules { dry_run: true, ..rules.clone() });
    assert_eq!(there.exists().then(|| snapshot(&there)), before, "a dry run changes nothing");
    assert_eq!(decisions(site, rules), dry);
    dry
}

fn changed_source(site: &TestSite) {
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
        site.write_file(format!("src/{path}"), content);
        set_file_mtime(&site.path("src").join(path), 1000, 1);
    }
    symlink("to", site.path("src/link")).unwrap();
    symlink("to", site.path("src/relinked")).unwrap();
    for path in ["src/link", "src/relinked", "src/sub", "src/instead", "src"] {
        set_file_mtime(&site.path(path), 1000, 1);
    }
    for (path, content) in
        [("same", "CONTENT"), ("longer", "contents"), ("touched", "content"), ("emptied", "full")]
    {
        site.write_file(format!("dst/{path}"), content);
        set_file_mtime(&site.path("dst").join(path), 1000, if path == "touched" { 2 } else { 1 });
    }
    symlink("to", site.path("dst/link")).unwrap();
    symlink("elsewhere", site.path("dst/relinked")).unwrap();
    site.write_file("dst/instead", "a file");
}

#[test]
fn each_entry_gets_the_verdict_of_its_action_and_a_dry_run_gives_the_same() {
    let site = TestSite::new();
    changed_source(&site);
    let decisions = reconcile_dry_and_real(&site, &WriteRules::default());
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
        assert_eq!(decisions[path], want, "{path}");
    }
    assert_eq!(fs::symlink_metadata(site.path("dst/link")).unwrap().mtime(), 1000);
    // Nothing at all is there.
    fs::remove_dir_all(site.path("dst")).unwrap();
    let decisions = reconcile_dry_and_real(&site, &WriteRules::default());
    assert!(
        decisions.values().all(|v| *v == CREATE || *v == needed(EntryAction::Create, false)),
        "{decisions:?}"
    );
}

#[test]
fn size_only_and_mtime_tolerance_are_respected() {
    let site = TestSite::new();
    changed_source(&site);
    let near = WriteRules { mtime_tolerance_ns: 1, ..WriteRules::default() };
    assert_eq!(reconcile_dry_and_real(&site, &near)["touched"], SKIP);
    assert_eq!(
        fs::metadata(site.path("dst/touched")).unwrap().mtime_nsec(),
        2,
        "it is near enough"
    );
    let size = WriteRules { compare: Compare::Size, ..WriteRules::default() };
    let decisions = reconcile_dry_and_real(&site, &size);
    assert_eq!((&decisions["touched"], &decisions["same"]), (&METADATA, &SKIP));
    assert_eq!(decisions["longer"], needed(EntryAction::Update, true));
}

#[test]
fn checksum_comparison_uses_the_digest_of_the_source() {
    let site = TestSite::new();
    changed_source(&site);
    for readback in [false, true] {
        let rules = WriteRules {
            compare: Compare::Checksum,
            returns_digests: true,
            readback,
            ..WriteRules::default()
        };
        let mut batch = full_manifest(&site.source());
        let first = site.target_with_rules(rules.clone()).reconcile(&batch);
        for (entry, verdict) in batch.entries.iter_mut().zip(&first.decisions) {
            let check = ["same", "touched"].contains(&entry.path.to_string().as_str());
            assert_eq!(*verdict == Ok(OfferDecision::NeedsDigest), check, "{}", entry.path);
            if check {
                entry.digest = Some(blake3::hash(b"content").into());
            }
        }
        set_file_mtime(&site.path("dst/touched"), 5, 5);
        for dry_run in [true, false] {
            let rules = WriteRules { dry_run, ..rules.clone() };
            let done = site.target_with_rules(rules).reconcile(&batch);
            let at = |path: &str| {
                let at = batch.entries.iter().position(|e| e.path == rel(path)).unwrap();
                (done.decisions[at].clone(), done.digests[at])
            };
            assert_eq!(at("same"), (needed(EntryAction::Update, true), None));
            assert_eq!(at("touched"), (METADATA, Some(blake3::hash(b"content").into())));
            assert_eq!(at("empty").1, Some(blake3::hash(b"").into()));
            assert_eq!(at("sub").1, None);
        }
        assert_eq!(fs::metadata(site.path("dst/touched")).unwrap().mtime(), 1000);
    }
}

#[test]
fn digests_are_those_of_the_destination_files() {
    let site = TestSite::new();
    changed_source(&site);
    let rules =
        WriteRules { returns_digests: true, ignore_existing: true, ..WriteRules::default() };
    let batch = single_entry_batch(&site.source(), "longer");
    let done = site.target_with_rules(rules).reconcile(&batch);
    assert_eq!(
        (done.decisions, done.digests),
        (vec![SKIP], vec![Some(blake3::hash(b"contents").into())])
    );
}

#[test]
fn update_and_ignore_existing_leave_files_unchanged() {
    let site = TestSite::new();
    changed_source(&site);
    set_file_mtime(&site.path("dst/longer"), 1000, 5);
    set_file_mtime(&site.path("dst/instead"), 2000, 0);
    let update = WriteRules { update: true, ..WriteRules::default() };
    let decisions =
        reconcile_dry_and_real(&site, &WriteRules { mtime_tolerance_ns: 4, ..update.clone() });
    assert_eq!(
        decisions["longer"],
        needed(EntryAction::Update, true),
        "not newer than the tolerance"
    );
    // A newer file is no newer version of a directory.
    assert_eq!(decisions["instead"], UPDATE);
    assert!(site.path("dst/instead").is_dir());
    let decisions = reconcile_dry_and_real(&site, &update);
    for path in ["longer", "touched"] {
        assert_eq!(decisions[path], SKIP, "{path}");
    }

    let site = TestSite::new();
    changed_source(&site);
    fs::remove_file(site.path("dst/longer")).unwrap();
    fs::create_dir(site.path("dst/longer")).unwrap();

    let before = fs::metadata(site.path("dst/longer")).unwrap();
    let decisions = reconcile_dry_and_real(
        &site,
        &WriteRules { ignore_existing: true, ..WriteRules::default() },
    );
    for path in ["longer", "touched", "link", "relinked", "instead", "instead/f"] {
        assert_eq!(decisions[path], SKIP, "{path}");
    }
    assert_eq!(decisions["new"], needed(EntryAction::Create, false));
    assert_eq!(fs::metadata(site.path("dst/longer")).unwrap().ctime_nsec(), before.ctime_nsec());
}

#[test]
fn existing_creates_nothing() {
    let site = TestSite::new();
    changed_source(&site);
    let rules = WriteRules { existing: true, ..WriteRules::default() };
    let decisions = reconcile_dry_and_real(&site, &rules);
    for path in ["new", "empty", "sub", "sub/f"] {
        assert_eq!(decisions[path], SKIP, "{path}");
        assert!(!site.path("dst").join(path).exists());
    }
    assert_eq!(decisions["longer"], needed(EntryAction::Update, true));
    assert_eq!((&decisions["emptied"], &decisions["instead"]), (&UPDATE, &UPDATE));
    // A destination that is not there stays so.
    fs::remove_dir_all(site.path("dst")).unwrap();
    assert!(reconcile_dry_and_real(&site, &rules).values().all(|v| *v == SKIP));
    assert!(!site.path("dst").exists());
    let file = site.tree("src/new");
    let target = Target::new(
        site.tree("x/y"),
        crate::wire::SyncNo(1),
        super::super::TargetOptions::for_this_process(rules),
    );
    assert_eq!(target.reconcile(&full_manifest(&file)).decisions, [SKIP]);
    assert!(!site.path("x").exists());
}

#[test]
fn a_dry_run_reports_an_obstructing_directory_like_a_real_run() {
    let site = TestSite::new();
    site.write_file("src/full", "x");
    site.write_file("src/hollow", "x");
    site.write_file("dst/full/kept", "x");
    fs::create_dir(site.path("dst/hollow")).unwrap();
    let decisions = reconcile_dry_and_real(&site, &WriteRules::default());
    let Err(error) = &decisions["full"] else { panic!("{decisions:?}") };
    assert_eq!(
        (error.action().as_str(), error.errno.as_deref()),
        ("replace destination", Some("EISDIR"))
    );
    assert_eq!(decisions["hollow"], needed(EntryAction::Update, false));
}

#[test]
fn a_part_file_of_this_version_counts_as_basis() {
    let site = TestSite::new();
    site.write_file("src/d/f", vec![1; 300 << 10]);
    let entry = site.source().entry(&rel("d/f")).unwrap();
    site.target().open_part_file(&entry).unwrap();
    assert_eq!(
        reconcile_dry_and_real(&site, &WriteRules::default())["d/f"],
        needed(EntryAction::Create, true)
    );
    site.write_file("src/d/f", vec![2; 300 << 10]);
    set_file_mtime(&site.path("src/d/f"), 77, 7);
    assert_eq!(
        reconcile_dry_and_real(&site, &WriteRules::default())["d/f"],
        needed(EntryAction::Create, false)
    );
}

#[test]
fn directories_below_one_that_another_batch_writes_into_are_compared_as_they_were() {
    let site = TestSite::new();
    site.write_file("src/d/sub/f", "x");
    for path in ["src/d/sub/f", "src/d/sub", "src/d", "src"] {
        set_file_mtime(&site.path(path), 500, 0);
    }
    let (source, target) = (site.source(), site.target());
    copy_batch(&source, &target, &full_manifest(&source));
    let again = reconcile_dry_and_real(&site, &WriteRules::default());
    assert!(again.values().all(|v| *v == SKIP), "{again:?}");
    // What this very batch makes in it does not make it differ.
    site.write_file("src/d/new/f", "x");
    set_file_mtime(&site.path("src/d"), 500, 0);
    let decisions = reconcile_dry_and_real(&site, &WriteRules::default());
    assert_eq!((&decisions["d"], &decisions["d/new"]), (&SKIP, &CREATE));
    assert_eq!(fs::metadata(site.path("dst/d")).unwrap().mtime(), 500);
}

#[test]
fn entries_below_a_directory_that_cannot_be_created_fail_with_its_errno() {
    let site = TestSite::new();
    site.write_file("src/d/f", "content");
    fs::create_dir(site.path("dst")).unwrap();
    site.chown_all_to_nobody();
    std::os::unix::fs::chown(site.path("dst"), Some(0), Some(0)).unwrap();
    site.run_as_nobody(|| {
        let decisions = decisions(&site, &WriteRules::default());
        for (path, operation) in [("d", "make directory"), ("d/f", "make directory above")] {
            let Err(error) = &decisions[path] else { panic!("{path}: {:?}", decisions[path]) };
            let message = error.to_string();
            let wanted =
                format!("cannot {operation} `{path}` at the destination: Permission denied");
            assert!(message.starts_with(&wanted), "{message}");
        }
    });
}
