use super::super::names::TRASH_MARK;
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
const LATE: Duration = Duration::from_secs(1 << 40);

fn rules() -> WriteRules {
    WriteRules { delete: true, ..WriteRules::default() }
}

fn filter(rules: &[&str]) -> Arc<Filter> {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    Arc::new(Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).unwrap())
}

fn counting(page: &PrunePage) -> PrunePage {
    PrunePage { apply: false, ..page.clone() }
}

/// The same destination, where at most `most` entries may be deleted.
fn limited(target: &Target, most: u64) -> Target {
    Target { deletion: Some(Allowance::new(Arc::default(), most)), ..target.clone() }
}

#[test]
fn no_more_is_deleted_than_is_allowed_with_and_without_a_trash() {
    for trash in [None, Some("trash")] {
        // Four files and three directories.
        for most in 0..=7 {
            let site = Site::new();
            let rules = WriteRules { trash: trash.map(rel), ..rules() };
            let target = limited(&site.target_by(rules), most);
            for name in ["a/1", "a/2", "b/c/3", "z"] {
                site.write(format!("dst/{name}"), "x");
            }
            let done = target.prune(&page("", &[])).unwrap();
            assert_eq!(done.pruned.extraneous, most, "{trash:?} {most}");
            assert_eq!((done.used_up, done.errors), (most < 7, vec![]), "{trash:?} {most}");
            assert_eq!(done.removed.len() as u64, most);
            let again = target.prune(&page("", &[])).unwrap();
            assert_eq!(again.pruned.extraneous, 0, "{trash:?} {most}");
            // Counting needs no permission.
            let counted = target.prune(&counting(&page("", &[]))).unwrap();
            assert_eq!((counted.pruned.extraneous, counted.used_up), (7 - most, false));
        }
    }
}

/// Calls until nothing is left, with so many steps at a time.
fn prune_all(target: &Target, page: &PrunePage, steps: usize) -> PruneDone {
    let mut page = page.clone();
    let mut all = PruneDone::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    loop {
        let done = target.prune_at(&page, now, steps).unwrap();
        all.pruned.checked += done.pruned.checked;
        all.pruned.extraneous += done.pruned.extraneous;
        all.pruned.bytes += done.pruned.bytes;
        all.removed.extend(done.removed);
        all.errors.extend(done.errors);
        all.old_trash.merge(done.old_trash);
        match done.next {
            Some(next) => page.resume = Some(next),
            None => return all,
        }
    }
}

#[test]
fn a_call_ends_after_its_steps_and_the_next_one_goes_on() {
    let site = Site::new();
    (0..10).for_each(|n| drop(site.write(format!("dst/f{n}"), "x")));
    let target = site.target_by(rules());
    let mut page = page("", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for left in [7, 4, 1] {
        let done = target.prune_at(&page, now, 3).unwrap();
        assert_eq!((done.removed.len(), names_in(&site.at("dst")).len()), (3, left));
        page.resume = Some(done.next.expect("it is not done"));
    }
    let last = target.prune_at(&page, now, 3).unwrap();
    assert_eq!((last.removed.len(), last.next), (1, None));
}

fn removed(done: &PruneDone) -> Vec<String> {
    done.removed.iter().map(|(path, _)| path.to_string()).collect()
}

#[test]
fn what_the_source_does_not_have_is_counted_then_deleted() {
    let site = Site::new();
    for (path, content) in
        [("kept", "1"), ("gone", "22"), ("old/a", "333"), ("old/sub/b", "4444"), ("z", "x")]
    {
        site.write(format!("dst/{path}"), content);
    }
    // A link is removed, not what it leads to; and one kind in the place of another is not extra.
    symlink("../canary", site.at("dst/old/link")).unwrap();
    fs::create_dir(site.at("dst/kind")).unwrap();
    let target = site.target_by(rules());
    let page = page("", &["kept", "kind", "z"]);
    let before = snapshot(&site.at("dst"));
    let count = target.prune(&counting(&page)).unwrap();
    assert_eq!(snapshot(&site.at("dst")), before);
    assert_eq!(count.pruned, PruneReport { checked: 9, extraneous: 6, bytes: 9 });
    assert_eq!(removed(&count), ["gone", "old/a", "old/link", "old/sub/b", "old/sub", "old"]);
    assert_eq!(count.errors, []);
    let done = target.prune(&page).unwrap();
    assert_eq!(done, count);
    assert_eq!(names_in(&site.at("dst")), [&b"kept"[..], b"kind", b"z"]);
    let again = target.prune(&page).unwrap();
    assert_eq!((again.pruned.extraneous, again.removed), (0, vec![]));
    site.assert_canary();
}

#[test]
fn a_directory_in_the_way_of_what_the_source_has_is_deleted_with_all_that_is_in_it() {
    let site = Site::new();
    for path in ["dst/d/kept", "dst/file", "dst/log", "dst/x/a", "dst/x/b/c", "dst/z.keep/k"] {
        site.write(path, "1");
    }
    let target = site.target_by(rules());
    let mut page = page("", &["d", "file", "log", "x", "z.keep"]);
    assert_eq!(target.prune(&page).unwrap().pruned.extraneous, 0, "nothing is said to replace it");
    page.replacing = vec![1, 3, 4];
    page.filter = filter(&["*.keep"]);
    let count = target.prune(&counting(&page)).unwrap();
    assert_eq!(removed(&count), ["x/a", "x/b/c", "x/b", "x"]);
    assert!(site.at("dst/x/b/c").exists());
    let done = prune_all(&target, &page, 2);
    assert_eq!(removed(&done), removed(&count));
    assert_eq!(done.pruned.extraneous, 4);
    assert_eq!(names_in(&site.at("dst")), [&b"d"[..], b"file", b"log", b"z.keep"]);
    // Only in the directory of the page: another one's names are not of this one.
    site.write("dst/gone/x/y", "1");
    site.write("dst/x", "1");
    assert_eq!(removed(&prune_all(&target, &page, 9)), ["gone/x/y", "gone/x", "gone"]);
}

#[test]
fn only_names_of_the_interval_are_looked_at() {
    let site = Site::new();
    for name in ["a", "b", "c", "d"] {
        site.write(format!("dst/sub/{name}"), "");
    }
    let part = PrunePage {
        after: Some(b"a".as_slice().into()),
        upto: Some(b"c".as_slice().into()),
        ..page("sub", &["b"])
    };
    let done = site.target_by(rules()).prune(&part).unwrap();
    assert_eq!((done.pruned.checked, removed(&done)), (2, vec!["sub/c".to_owned()]));
    assert_eq!(names_in(&site.at("dst/sub")), [b"a", b"b", b"d"]);
}

#[test]
fn nothing_is_deleted_that_the_ticket_does_not_allow() {
    let site = Site::new();
    site.write("dst/extra", "x");
    for rules in [WriteRules::default(), WriteRules { dry_run: true, ..rules() }] {
        let done = site.target_by(rules).prune(&page("", &[])).unwrap();
        assert_eq!(done.pruned.extraneous, 1);
        assert_eq!(names_in(&site.at("dst")), [b"extra"]);
    }
}

#[test]
fn what_is_left_out_is_protected_with_the_directories_above_it_unless_it_is_to_go() {
    let site = Site::new();
    for path in ["x.keep", "d/x.keep", "d/y", "e/y", "logs/a", "f/logs/b"] {
        site.write(format!("dst/{path}"), "x");
    }
    let target = site.target_by(rules());
    let mut page = PrunePage { filter: filter(&["*.keep", "logs/"]), ..page("", &[]) };
    let count = target.prune(&counting(&page)).unwrap();
    assert_eq!(removed(&count), ["d/y", "e/y", "e"]);
    assert_eq!(removed(&target.prune(&page).unwrap()), ["d/y", "e/y", "e"]);
    assert!(site.at("dst/d/x.keep").exists() && site.at("dst/f/logs/b").exists());
    page.delete_excluded = true;
    // Also where the source has it.
    page.names = vec![b"x.keep".as_slice().into()];
    target.prune(&page).unwrap();
    assert_eq!(names_in(&site.at("dst")), Vec::<Vec<u8>>::new());
}

#[test]
fn limits_of_size_protect_nothing() {
    let site = Site::new();
    site.write("dst/big", "xxxx");
    let limits = FilterSpec { max_size: Some(1), ..FilterSpec::default() };
    let page = PrunePage { filter: Arc::new(Filter::new(&limits).unwrap()), ..page("", &[]) };
    assert_eq!(removed(&site.target_by(rules()).prune(&page).unwrap()), ["big"]);
}

#[test]
fn our_own_files_stay_while_they_are_young() {
    let site = Site::new();
    let temp = super::super::names::temp(&Default::default(), SyncNo(9), &rel("x"), 1, 0);
    let temp = String::from_utf8(temp).unwrap();
    site.write(format!("dst/{temp}"), "1");
    site.write(format!("dst/d/{temp}"), "2");
    let target = site.target_by(rules());
    let young = target.prune(&page("", &[])).unwrap();
    assert_eq!(young.pruned, PruneReport { checked: 1, extraneous: 0, bytes: 0 });
    assert!(site.at("dst/d").exists());
    let count = target.prune_at(&counting(&page("", &[])), LATE, STEPS).unwrap();
    assert_eq!(removed(&count), ["d"]);
    assert!(site.at("dst").join(&temp).exists());
    let old = target.prune_at(&page("", &[]), LATE, STEPS).unwrap();
    assert_eq!(
        (old.pruned, removed(&old)),
        (PruneReport { checked: 1, extraneous: 1, bytes: 0 }, vec!["d".to_owned()])
    );
    assert_eq!(names_in(&site.at("dst")), Vec::<Vec<u8>>::new());
}

#[test]
fn other_mounts_are_neither_entered_nor_removed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::new();
    site.write("dst/a/under/hidden", "");
    site.write("dst/bound/file", "");
    fs::create_dir_all(site.at("dst/a/same")).unwrap();
    let on = |point: &str, args: &[&str]| {
        let mut mount = std::process::Command::new("mount");
        mount.args(args).arg(site.at(point)).status().is_ok_and(|s| s.success())
    };
    // The second one is of the same file system.
    let bound = site.at("canary");
    if !on("dst/a/under", &["-t", "tmpfs", "none"]) {
        return; // Not allowed here.
    }
    let bound = on("dst/a/same", &["--bind", bound.to_str().unwrap()]);
    site.write("dst/a/under/precious", "x");
    let target = site.target_by(rules());
    let done = [target.prune(&counting(&page("", &[]))), target.prune(&page("", &[]))];
    let precious = site.at("dst/a/under/precious").exists();
    for point in ["dst/a/under", "dst/a/same"] {
        let _ = std::process::Command::new("umount").arg(site.at(point)).status();
    }
    assert!(precious && bound);
    for done in done {
        let done = done.unwrap();
        assert_eq!(removed(&done), ["bound/file", "bound"]);
        let paths: Vec<_> = done.errors.iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["a/same", "a/under"]);
        assert!(done.errors[0].message.contains("is mounted there"), "{}", done.errors[0].message);
    }
    site.assert_canary();
}

#[test]
fn directories_get_their_metadata_back_after_a_deletion() {
    let site = Site::new();
    site.write("src/d/kept", "x");
    touch(&site.at("src/d"), 4000, 9);
    touch(&site.at("src"), 5000, 9);
    let (source, target) = (site.source(), site.target_by(rules()));
    copy(&source, &target, &manifest(&source));
    site.write("dst/d/extra", "");
    let mut dirs = source.chain(&rel("d/kept")).unwrap();
    let page = PrunePage { dirs: dirs.clone(), ..page("d", &["kept"]) };
    assert_eq!(target.prune(&page).unwrap().errors, []);
    assert_eq!(snapshot(&site.at("dst")), snapshot(&site.at("src")));
    // Nothing to delete, nothing to stamp.
    dirs[1].meta.mtime_sec = 1;
    target.prune(&PrunePage { dirs, ..page }).unwrap();
    assert_eq!(snapshot(&site.at("dst")), snapshot(&site.at("src")));
}

#[test]
fn a_directory_that_is_not_there_has_nothing_to_prune() {
    let site = Site::new();
    site.write("dst/file", "x");
    symlink("../canary", site.at("dst/link")).unwrap();
    let target = site.target_by(rules());
    for dir in ["none", "file", "link", "none/below"] {
        assert_eq!(target.prune(&page(dir, &[])).unwrap(), PruneDone::default(), "{dir}");
    }
    assert_eq!(names_in(&site.at("dst")), [&b"file"[..], b"link"]);
    site.assert_canary();
}

#[test]
fn as_an_ordinary_user_own_directories_that_forbid_it_are_pruned_and_foreign_ones_told() {
    let site = Site::new();
    site.write("dst/shut/a/b", "x");
    site.write("dst/closed/c", "x");
    let mode = |path: &str, mode| {
        fs::set_permissions(site.at(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    site.as_nobody(|| {
        mode("dst/shut/a", 0o555);
        mode("dst/shut", 0o555);
        mode("dst/closed", 0);
        let target = site.target_by(rules());
        let count = target.prune(&counting(&page("", &[]))).unwrap();
        assert_eq!(removed(&count), ["shut/a/b", "shut/a", "shut"]);
        assert_eq!(count.errors.len(), 1);
        assert_eq!(count.errors[0].errno.as_deref(), Some("EACCES"));
        let done = target.prune(&page("", &[])).unwrap();
        assert_eq!(removed(&done), ["closed/c", "closed", "shut/a/b", "shut/a", "shut"]);
        assert_eq!(done.errors, []);
    });
}

#[test]
fn an_attacker_who_swaps_a_directory_for_a_link_gets_nothing_outside_deleted() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let site = Site::new();
    symlink("../canary", site.at("evil")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, link) = (site.at("dst/d/e"), site.at("evil"));
                let _ = renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..300 {
            site.write("dst/d/x", "");
            let _ = fs::create_dir_all(site.at("dst/d/e"));
            let target = site.target_by(rules());
            let _ = target.prune(&page("d", &[]));
            let _ = target.prune(&page("d/e", &[]));
            if !site.at("evil").is_symlink() {
                let _ = fs::remove_dir_all(site.at("evil"));
                let _ = symlink("../canary", site.at("evil"));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    site.assert_canary();
}

/// What a tree is in the model: the bytes of files, `None` for directories; by path.
type Model = BTreeMap<RelPath, Option<u64>>;

fn model_of(dir: &Path) -> Model {
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
fn extra_of(
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
    fn a_prune_is_what_the_plainest_rules_say_in_steps_of_any_size(
        files in any_files(),
        names in prop::collection::btree_set("[abkz]", 0..3),
        protect: bool,
        trash: bool,
        steps in prop::sample::select(vec![1usize, 2, 3, 7, STEPS]),
    ) {
        let site = Site::new();
        for (path, len) in &files {
            let path = site.at("dst").join(path);
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.is_dir() {
                fs::write(path, vec![0; *len]).unwrap();
            }
        }
        fs::create_dir_all(site.at("dst")).unwrap();
        let before = model_of(&site.at("dst"));
        let keep = |path: &RelPath| protect && path.file_name() == Some(b"k");
        let extra = extra_of(&before, &names, &keep);
        let listed: Vec<&str> = names.iter().map(String::as_str).collect();
        let page = PrunePage {
            filter: filter(if protect { &["k"] } else { &[] }),
            ..page("", &listed)
        };
        let bin = trash.then(|| rel("trash"));
        let target = site.target_by(WriteRules { trash: bin, ..rules() });
        let count = prune_all(&target, &counting(&page), steps);
        prop_assert_eq!(&model_of(&site.at("dst")), &before);
        prop_assert_eq!(count.removed.iter().map(|(p, _)| p.clone()).collect::<BTreeSet<_>>(), extra.clone());
        prop_assert_eq!(count.pruned.extraneous as usize, extra.len());
        prop_assert_eq!(count.pruned.bytes, extra.iter().filter_map(|p| before[p]).sum::<u64>());
        let done = prune_all(&target, &page, steps);
        prop_assert_eq!(&done, &count);
        let mut after = model_of(&site.at("dst"));
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
fn a_directory_that_is_not_there_is_given_no_metadata() {
    let site = Site::new();
    site.write("src/gone/f", "x");
    site.write("src/closed/f", "x");
    site.write("dst/closed/extra", "x");
    fs::set_permissions(site.at("dst/closed"), fs::Permissions::from_mode(0o500)).unwrap();
    site.as_nobody(|| {
        let target = site.target_by(rules());
        // The mode of a directory is widened, so that those of every later page are set again.
        let dirs = |path: &str| site.source().chain(&rel(path)).unwrap();
        let closed = PrunePage { dirs: dirs("closed/f"), ..page("closed", &["f"]) };
        assert_eq!(removed(&target.prune(&closed).unwrap()), ["closed/extra"]);
        assert!(target.has_widened());
        let gone = PrunePage { dirs: dirs("gone/f"), ..page("gone", &["f"]) };
        assert_eq!(target.prune(&gone).unwrap(), PruneDone::default());
    });
}
