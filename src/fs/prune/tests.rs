use super::super::temp_names::TRASH_MARKER;
mod trash;

use super::super::testing::*;
use super::*;
use crate::wire::SyncNo;
use crate::wire::options::{FilterSpec, WriteRules};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

/// Long after anything that a test makes.
const FAR_FUTURE: Duration = Duration::from_secs(1 << 40);

fn rules() -> WriteRules {
    WriteRules { delete: true, ..WriteRules::default() }
}

fn filter(rules: &[&str]) -> FilterSpec {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    FilterSpec { rules, ..FilterSpec::default() }
}

fn count_only(page: &PruneRequest) -> PruneRequest {
    PruneRequest { apply: false, ..page.clone() }
}

/// The same destination, where at most `most` entries may be deleted.
fn with_budget(target: &Target, most: u64) -> Target {
    Target { deletion_budget: Some(DeletionBudget::new(Arc::default(), most)), ..target.clone() }
}

#[test]
fn no_more_is_deleted_than_is_allowed_with_and_without_a_trash() {
    for trash in [None, Some("trash")] {
        // Four files and three directories.
        for most in 0..=7 {
            let site = TestSite::new();
            let rules = WriteRules { trash: trash.map(rel), ..rules() };
            let target = with_budget(&site.target_with_rules(rules), most);
            for name in ["a/1", "a/2", "b/c/3", "z"] {
                site.write_file(format!("dst/{name}"), "x");
            }
            let done = target.prune_page(&prune_page("", &[])).unwrap();
            assert_eq!(done.pruned.extraneous, most, "{trash:?} {most}");
            assert_eq!(
                (done.allowance_exhausted, done.errors),
                (most < 7, vec![]),
                "{trash:?} {most}"
            );
            assert_eq!(done.removed.len() as u64, most);
            let again = target.prune_page(&prune_page("", &[])).unwrap();
            assert_eq!(again.pruned.extraneous, 0, "{trash:?} {most}");
            // Counting needs no permission.
            let counted = target.prune_page(&count_only(&prune_page("", &[]))).unwrap();
            assert_eq!((counted.pruned.extraneous, counted.allowance_exhausted), (7 - most, false));
        }
    }
}

/// Calls until nothing is left, with so many steps at a time.
fn prune_all(target: &Target, page: &PruneRequest, steps: usize) -> PruneOutcome {
    let mut page = page.clone();
    let mut all = PruneOutcome::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    loop {
        let done = target.prune_page_at(&page, now, steps).unwrap();
        all.pruned.checked += done.pruned.checked;
        all.pruned.extraneous += done.pruned.extraneous;
        all.pruned.bytes += done.pruned.bytes;
        all.removed.extend(done.removed);
        all.errors.extend(done.errors);
        all.old_trash.merge(done.old_trash);
        match done.resume {
            Some(next) => page.resume = Some(next),
            None => return all,
        }
    }
}

#[test]
fn a_call_stops_at_its_limit_and_the_next_call_resumes() {
    let site = TestSite::new();
    (0..10).for_each(|n| drop(site.write_file(format!("dst/f{n}"), "x")));
    let target = site.target_with_rules(rules());
    let mut page = prune_page("", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for left in [7, 4, 1] {
        let done = target.prune_page_at(&page, now, 3).unwrap();
        assert_eq!((done.removed.len(), sorted_names(&site.path("dst")).len()), (3, left));
        page.resume = Some(done.resume.expect("it is not done"));
    }
    let last = target.prune_page_at(&page, now, 3).unwrap();
    assert_eq!((last.removed.len(), last.resume), (1, None));
}

fn removed_paths(done: &PruneOutcome) -> Vec<String> {
    done.removed.iter().map(|(path, _)| path.to_string()).collect()
}

#[test]
fn extraneous_entries_are_counted_then_deleted() {
    let site = TestSite::new();
    for (path, content) in
        [("kept", "1"), ("gone", "22"), ("old/a", "333"), ("old/sub/b", "4444"), ("z", "x")]
    {
        site.write_file(format!("dst/{path}"), content);
    }
    // A link is removed, not what it leads to; and one kind in the place of another is not extra.
    symlink("../canary", site.path("dst/old/link")).unwrap();
    fs::create_dir(site.path("dst/kind")).unwrap();
    let target = site.target_with_rules(rules());
    let page = prune_page("", &["kept", "kind", "z"]);
    let before = snapshot(&site.path("dst"));
    let count = target.prune_page(&count_only(&page)).unwrap();
    assert_eq!(snapshot(&site.path("dst")), before);
    assert_eq!(count.pruned, PruneReport { checked: 9, extraneous: 6, bytes: 9 });
    assert_eq!(removed_paths(&count), ["gone", "old/a", "old/link", "old/sub/b", "old/sub", "old"]);
    assert_eq!(count.errors, []);
    let done = target.prune_page(&page).unwrap();
    assert_eq!(done, count);
    assert_eq!(sorted_names(&site.path("dst")), [&b"kept"[..], b"kind", b"z"]);
    let again = target.prune_page(&page).unwrap();
    assert_eq!((again.pruned.extraneous, again.removed), (0, vec![]));
    site.assert_canary_unchanged();
}

#[test]
fn a_directory_in_place_of_a_source_file_is_deleted_with_its_contents() {
    let site = TestSite::new();
    for path in ["dst/d/kept", "dst/file", "dst/log", "dst/x/a", "dst/x/b/c", "dst/z.keep/k"] {
        site.write_file(path, "1");
    }
    let target = site.target_with_rules(rules());
    let mut page = prune_page("", &["d", "file", "log", "x", "z.keep"]);
    assert_eq!(target.prune_page(&page).unwrap().pruned.extraneous, 0, "nothing replaces it");
    page.replacing_dirs = vec![1, 3, 4];
    page.filter = filter(&["*.keep"]);
    let count = target.prune_page(&count_only(&page)).unwrap();
    assert_eq!(removed_paths(&count), ["x/a", "x/b/c", "x/b", "x"]);
    assert!(site.path("dst/x/b/c").exists());
    let done = prune_all(&target, &page, 2);
    assert_eq!(removed_paths(&done), removed_paths(&count));
    assert_eq!(done.pruned.extraneous, 4);
    assert_eq!(sorted_names(&site.path("dst")), [&b"d"[..], b"file", b"log", b"z.keep"]);
    // Only in the directory of the page: another one's names are not of this one.
    site.write_file("dst/gone/x/y", "1");
    site.write_file("dst/x", "1");
    assert_eq!(removed_paths(&prune_all(&target, &page, 9)), ["gone/x/y", "gone/x", "gone"]);
}

#[test]
fn only_names_in_the_interval_are_visited() {
    let site = TestSite::new();
    for name in ["a", "b", "c", "d"] {
        site.write_file(format!("dst/sub/{name}"), "");
    }
    let part = PruneRequest {
        after: Some(b"a".to_vec().into()),
        through: Some(b"c".to_vec().into()),
        ..prune_page("sub", &["b"])
    };
    let done = site.target_with_rules(rules()).prune_page(&part).unwrap();
    assert_eq!((done.pruned.checked, removed_paths(&done)), (2, vec!["sub/c".to_owned()]));
    assert_eq!(sorted_names(&site.path("dst/sub")), [b"a", b"b", b"d"]);
}

#[test]
fn nothing_is_deleted_without_permission_in_the_ticket() {
    let site = TestSite::new();
    site.write_file("dst/extra", "x");
    for rules in [WriteRules::default(), WriteRules { dry_run: true, ..rules() }] {
        let done = site.target_with_rules(rules).prune_page(&prune_page("", &[])).unwrap();
        assert_eq!(done.pruned.extraneous, 1);
        assert_eq!(sorted_names(&site.path("dst")), [b"extra"]);
    }
}

#[test]
fn excluded_entries_and_their_parents_are_protected_unless_delete_excluded() {
    let site = TestSite::new();
    for path in ["x.keep", "d/x.keep", "d/y", "e/y", "logs/a", "f/logs/b"] {
        site.write_file(format!("dst/{path}"), "x");
    }
    let target = site.target_with_rules(rules());
    let mut page = PruneRequest { filter: filter(&["*.keep", "logs/"]), ..prune_page("", &[]) };
    let count = target.prune_page(&count_only(&page)).unwrap();
    assert_eq!(removed_paths(&count), ["d/y", "e/y", "e"]);
    assert_eq!(removed_paths(&target.prune_page(&page).unwrap()), ["d/y", "e/y", "e"]);
    assert!(site.path("dst/d/x.keep").exists() && site.path("dst/f/logs/b").exists());
    page.delete_excluded = true;
    // Also where the source has it.
    page.names = vec![b"x.keep".to_vec().into()];
    target.prune_page(&page).unwrap();
    assert_eq!(sorted_names(&site.path("dst")), Vec::<Vec<u8>>::new());
}

#[test]
fn size_limits_protect_nothing_from_deletion() {
    let site = TestSite::new();
    site.write_file("dst/big", "xxxx");
    let limits = FilterSpec { max_size: Some(1), ..FilterSpec::default() };
    let page = PruneRequest { filter: limits, ..prune_page("", &[]) };
    assert_eq!(removed_paths(&site.target_with_rules(rules()).prune_page(&page).unwrap()), ["big"]);
}

#[test]
fn recent_internal_files_are_kept() {
    let site = TestSite::new();
    let temp =
        super::super::temp_names::temp_file_name(&Default::default(), SyncNo(9), &rel("x"), 1, 0);
    let temp = String::from_utf8(temp).unwrap();
    site.write_file(format!("dst/{temp}"), "1");
    site.write_file(format!("dst/d/{temp}"), "2");
    let target = site.target_with_rules(rules());
    let young = target.prune_page(&prune_page("", &[])).unwrap();
    assert_eq!(young.pruned, PruneReport { checked: 1, extraneous: 0, bytes: 0 });
    assert!(site.path("dst/d").exists());
    let count = target
        .prune_page_at(&count_only(&prune_page("", &[])), FAR_FUTURE, MAX_ENTRIES_PER_CALL)
        .unwrap();
    assert_eq!(removed_paths(&count), ["d"]);
    assert!(site.path("dst").join(&temp).exists());
    let old = target.prune_page_at(&prune_page("", &[]), FAR_FUTURE, MAX_ENTRIES_PER_CALL).unwrap();
    assert_eq!(
        (old.pruned, removed_paths(&old)),
        (PruneReport { checked: 1, extraneous: 1, bytes: 0 }, vec!["d".to_owned()])
    );
    assert_eq!(sorted_names(&site.path("dst")), Vec::<Vec<u8>>::new());
}

#[test]
fn a_probe_of_the_storage_is_kept_by_a_mirror_and_counted_nowhere() {
    let site = TestSite::new();
    let probe = crate::wire::storage::ProbeName::new([7; 16]);
    site.write_file(format!("dst/{}", probe.as_str()), probe.as_str());
    let page = PruneRequest { delete_excluded: true, ..prune_page("", &[]) };
    for request in [page, prune_page("", &[]), count_only(&prune_page("", &[]))] {
        let done = site.target_with_rules(rules()).prune_page(&request).unwrap();
        assert_eq!((done.pruned, done.errors.len()), (PruneReport::default(), 0));
        assert_eq!(sorted_names(&site.path("dst")), [probe.as_str().as_bytes()]);
    }
}

#[test]
fn other_mounts_are_neither_entered_nor_removed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = TestSite::new();
    site.write_file("dst/a/under/hidden", "");
    site.write_file("dst/bound/file", "");
    fs::create_dir_all(site.path("dst/a/same")).unwrap();
    let on = |point: &str, args: &[&str]| {
        let mut mount = std::process::Command::new("mount");
        mount.args(args).arg(site.path(point)).status().is_ok_and(|s| s.success())
    };
    // The second one is of the same file system.
    let bound = site.path("canary");
    if !on("dst/a/under", &["-t", "tmpfs", "none"]) {
        return; // Not allowed here.
    }
    let bound = on("dst/a/same", &["--bind", bound.to_str().unwrap()]);
    site.write_file("dst/a/under/precious", "x");
    let target = site.target_with_rules(rules());
    let done = [
        target.prune_page(&count_only(&prune_page("", &[]))),
        target.prune_page(&prune_page("", &[])),
    ];
    let precious = site.path("dst/a/under/precious").exists();
    for point in ["dst/a/under", "dst/a/same"] {
        let _ = std::process::Command::new("umount").arg(site.path(point)).status();
    }
    assert!(precious && bound);
    for done in done {
        let done = done.unwrap();
        assert_eq!(removed_paths(&done), ["bound/file", "bound"]);
        let paths: Vec<_> = done.errors.iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["a/same", "a/under"]);
        assert!(done.errors[0].message.contains("is mounted there"), "{}", done.errors[0].message);
    }
    site.assert_canary_unchanged();
}

#[test]
fn directories_get_their_metadata_again_after_a_deletion() {
    let site = TestSite::new();
    site.write_file("src/d/kept", "x");
    set_file_mtime(&site.path("src/d"), 4000, 9);
    set_file_mtime(&site.path("src"), 5000, 9);
    let (source, target) = (site.source(), site.target_with_rules(rules()));
    copy_batch(&source, &target, &full_manifest(&source));
    site.write_file("dst/d/extra", "");
    let mut dirs = source.parent_dirs(&rel("d/kept")).unwrap();
    let page = PruneRequest { dirs: dirs.clone(), ..prune_page("d", &["kept"]) };
    assert_eq!(target.prune_page(&page).unwrap().errors, []);
    assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
    // Nothing to delete, nothing to stamp.
    dirs[1].meta.mtime_sec = 1;
    target.prune_page(&PruneRequest { dirs, ..page }).unwrap();
    assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
}

#[test]
fn a_missing_directory_has_nothing_to_prune() {
    let site = TestSite::new();
    site.write_file("dst/file", "x");
    symlink("../canary", site.path("dst/link")).unwrap();
    let target = site.target_with_rules(rules());
    for dir in ["none", "file", "link", "none/below"] {
        assert_eq!(
            target.prune_page(&prune_page(dir, &[])).unwrap(),
            PruneOutcome::default(),
            "{dir}"
        );
    }
    assert_eq!(sorted_names(&site.path("dst")), [&b"file"[..], b"link"]);
    site.assert_canary_unchanged();
}

#[test]
fn without_root_own_unreadable_directories_are_pruned_and_foreign_ones_reported() {
    let site = TestSite::new();
    site.write_file("dst/shut/a/b", "x");
    site.write_file("dst/closed/c", "x");
    let mode = |path: &str, mode| {
        fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    site.run_with_all_owned_by_nobody(|| {
        mode("dst/shut/a", 0o555);
        mode("dst/shut", 0o555);
        mode("dst/closed", 0);
        let target = site.target_with_rules(rules());
        let count = target.prune_page(&count_only(&prune_page("", &[]))).unwrap();
        assert_eq!(removed_paths(&count), ["shut/a/b", "shut/a", "shut"]);
        assert_eq!(count.errors.len(), 1);
        assert_eq!(count.errors[0].errno.as_deref(), Some("EACCES"));
        let done = target.prune_page(&prune_page("", &[])).unwrap();
        assert_eq!(removed_paths(&done), ["closed/c", "closed", "shut/a/b", "shut/a", "shut"]);
        assert_eq!(done.errors, []);
    });
}

#[test]
fn swapping_a_directory_for_a_symlink_deletes_nothing_outside() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let site = TestSite::new();
    symlink("../canary", site.path("evil")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, link) = (site.path("dst/d/e"), site.path("evil"));
                let _ = renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..300 {
            site.write_file("dst/d/x", "");
            let _ = fs::create_dir_all(site.path("dst/d/e"));
            let target = site.target_with_rules(rules());
            let _ = target.prune_page(&prune_page("d", &[]));
            let _ = target.prune_page(&prune_page("d/e", &[]));
            if !site.path("evil").is_symlink() {
                let _ = fs::remove_dir_all(site.path("evil"));
                let _ = symlink("../canary", site.path("evil"));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    site.assert_canary_unchanged();
}

/// What a tree is in the model: the bytes of files, `None` for directories; by path.
type Model = BTreeMap<RelPath, Option<u64>>;

fn read_model(dir: &Path) -> Model {
    let all = walkdir::WalkDir::new(dir).min_depth(1).into_iter();
    all.map(|entry| {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let path = entry.path().strip_prefix(dir).unwrap();
        let path = rel(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        (path, (!meta.is_dir()).then(|| meta.size()))
    })
    .collect()
}

/// What is to go, by the plainest of rules: everything below a name that the source does not have, but
/// not what is protected, and no directory with something protected below.
fn expected_extraneous(
    model: &Model,
    names: &BTreeSet<String>,
    keep: &dyn Fn(&RelPath) -> bool,
) -> BTreeSet<RelPath> {
    let protected = |path: &RelPath| {
        let mut up = Some(path.clone());
        while let Some(at) = up {
            if !at.is_root() && keep(&at) {
                return true;
            }
            up = at.parent();
        }
        false
    };
    let goes = |path: &RelPath| {
        let first = path.components().next().unwrap();
        !names.iter().any(|name| name.as_bytes() == first) && !protected(path)
    };
    model
        .keys()
        .filter(|path| goes(path) && !model.keys().any(|p| path.contains(p) && protected(p)))
        .cloned()
        .collect()
}

fn any_files() -> impl Strategy<Value = BTreeMap<String, usize>> {
    let name = prop::sample::select(vec!["a", "b", "c-", "k", "z"]);
    let path = prop::collection::vec(name, 1..5).prop_map(|parts| parts.join("/"));
    prop::collection::btree_map(path, 0usize..50, 0..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn pruning_in_steps_of_any_size_matches_the_reference_model(
        files in any_files(),
        names in prop::collection::btree_set("[abkz]", 0..3),
        protect: bool,
        trash: bool,
        steps in prop::sample::select(vec![1usize, 2, 3, 7, MAX_ENTRIES_PER_CALL]),
    ) {
        let site = TestSite::new();
        for (path, len) in &files {
            let path = site.path("dst").join(path);
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.is_dir() {
                fs::write(path, vec![0; *len]).unwrap();
            }
        }
        fs::create_dir_all(site.path("dst")).unwrap();
        let before = read_model(&site.path("dst"));
        let keep = |path: &RelPath| protect && path.file_name() == Some(b"k");
        let extra = expected_extraneous(&before, &names, &keep);
        let listed: Vec<&str> = names.iter().map(String::as_str).collect();
        let page = PruneRequest {
            filter: filter(if protect { &["k"] } else { &[] }),
            ..prune_page("", &listed)
        };
        let bin = trash.then(|| rel("trash"));
        let target = site.target_with_rules(WriteRules { trash: bin, ..rules() });
        let count = prune_all(&target, &count_only(&page), steps);
        prop_assert_eq!(&read_model(&site.path("dst")), &before);
        prop_assert_eq!(count.removed.iter().map(|(p, _)| p.clone()).collect::<BTreeSet<_>>(), extra.clone());
        prop_assert_eq!(count.pruned.extraneous as usize, extra.len());
        prop_assert_eq!(count.pruned.bytes, extra.iter().filter_map(|p| before[p]).sum::<u64>());
        let done = prune_all(&target, &page, steps);
        prop_assert_eq!(&done, &count);
        let mut after = read_model(&site.path("dst"));
        let binned: Model = after
            .iter()
            .filter_map(|(p, len)| Some((RelPath::new(p.as_bytes().strip_prefix(b"trash/req/")?).unwrap(), *len)))
            .collect();
        after.retain(|p, _| p.components().next() != Some(b"trash"));
        let mut want = before.clone();
        want.retain(|p, _| !extra.contains(p));
        prop_assert_eq!(&after, &want);
        if trash {
            for path in &extra {
                prop_assert_eq!(binned.get(path), before.get(path));
            }
        }
    }
}

#[test]
fn a_missing_directory_gets_no_metadata() {
    let site = TestSite::new();
    site.write_file("src/gone/f", "x");
    site.write_file("src/closed/f", "x");
    site.write_file("dst/closed/extra", "x");
    fs::set_permissions(site.path("dst/closed"), fs::Permissions::from_mode(0o500)).unwrap();
    site.run_with_all_owned_by_nobody(|| {
        let target = site.target_with_rules(rules());
        // The mode of a directory is widened, so that those of every later page are set again.
        let dirs = |path: &str| site.source().parent_dirs(&rel(path)).unwrap();
        let closed = PruneRequest { dirs: dirs("closed/f"), ..prune_page("closed", &["f"]) };
        assert_eq!(removed_paths(&target.prune_page(&closed).unwrap()), ["closed/extra"]);
        assert!(target.has_widened_dirs());
        let gone = PruneRequest { dirs: dirs("gone/f"), ..prune_page("gone", &["f"]) };
        assert_eq!(target.prune_page(&gone).unwrap(), PruneOutcome::default());
    });
}
