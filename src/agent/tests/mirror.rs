//! Pruning: what the destination has and the source does not.

use super::*;
use crate::agent::prune::{Prune, prune, replaces};
use crate::agent::scan::ScanEnd;
use crate::agent::testing::{Kept, reply};
use crate::wire::options::{Attribute, DeleteOptions, FileState, FilterSpec, Links, SyncOptions};
use crate::wire::task::{Cursor, PageAction, PruneReport, ScanPage};

/// Executes a prune of `dir` with worker `a`; how it ended and who wrote.
async fn pruned(
    fleet: &Fleet,
    cx: &Context,
    (dir, cursor, apply): (RelPath, Option<Cursor>, bool),
    pages: &Kept,
) -> (ScanEnd, Vec<String>) {
    let task = TaskSpec::Prune { dir: dir.clone(), cursor: cursor.clone(), apply };
    let assignment = fleet.assignment(task);
    let writers = Writers::default();
    let job = Job {
        cx,
        assignment: &assignment,
        writers: &writers,
        until: &Deadline::default(),
        moved: &Arc::default(),
    };
    let filter = job.filter().unwrap();
    let what = Prune { dir, cursor, apply, filter };
    let end = prune(job, job.source().await.unwrap(), what, pages).await;
    (end, writers.list().iter().map(ToString::to_string).collect())
}

fn whole(apply: bool) -> (RelPath, Option<Cursor>, bool) {
    (RelPath::root(), None, apply)
}

fn sum(pages: &Kept) -> PruneReport {
    let pages = pages.pages.lock();
    pages.iter().filter_map(|page| page.pruned).fold(PruneReport::default(), |a, b| PruneReport {
        checked: a.checked + b.checked,
        extraneous: a.extraneous + b.extraneous,
        bytes: a.bytes + b.bytes,
    })
}

fn deleted(pages: &Kept) -> Vec<String> {
    let pages = pages.pages.lock();
    let records = pages.iter().flat_map(|page| &page.records);
    let mut names: Vec<String> = records
        .map(|r| {
            assert_eq!(r.state, FileState::Deleted);
            r.path.to_string()
        })
        .collect();
    names.sort();
    names
}

/// All names below the destination, sorted.
fn names(fleet: &Fleet) -> Vec<String> {
    let walk = tree(&fleet.dst()).walk(&RelPath::root(), None).unwrap();
    walk.map(|e| e.unwrap().path.to_string()).filter(|name| !name.is_empty()).collect()
}

fn write_at_destination(fleet: &Fleet, name: &str, content: &str) {
    let path = fleet.dst().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A source, the same at the destination, and a mirror with a filter.
async fn mirror(receivers: usize, rules: &[&str]) -> (Fleet, Context) {
    let mut fleet = Fleet::new(receivers).await;
    a_tree(&fleet);
    let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
    let cx = fleet.context(holds);
    copied(&fleet, &cx, &fleet.manifest(None)).await;
    fleet.options.delete = Some(DeleteOptions::default());
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    fleet.options.filter = FilterSpec { rules, ..FilterSpec::default() };
    fleet.options.record = true;
    (fleet, cx)
}

#[tokio::test]
async fn extra_entries_are_counted_first_and_then_deleted_with_what_is_in_them() {
    for receivers in [0, 2] {
        let (fleet, cx) = mirror(receivers, &[]).await;
        let before = names(&fleet);
        write_at_destination(&fleet, "b", "12345");
        write_at_destination(&fleet, "d/e/extra", "678");
        write_at_destination(&fleet, "gone/deep/file", "90");
        let (with, pages) = (names(&fleet), Kept::default());
        let (end, wrote) = pruned(&fleet, &cx, whole(false), &pages).await;
        assert_eq!((end, wrote), (ScanEnd::Reported, vec![]));
        let extra = PruneReport { checked: with.len() as u64, extraneous: 5, bytes: 10 };
        assert_eq!((sum(&pages), deleted(&pages)), (extra, vec![]));
        assert_eq!(names(&fleet), with);
        let root = pages.pages.lock()[0].root.clone();
        assert_eq!(root.map(|root| root.empty), Some(false));

        let pages = Kept::default();
        let (end, wrote) = pruned(&fleet, &cx, whole(true), &pages).await;
        assert_eq!((end, wrote.len()), (ScanEnd::Reported, 1));
        assert_eq!((sum(&pages).extraneous, sum(&pages).bytes), (5, 10));
        assert_eq!(deleted(&pages), ["b", "d/e/extra", "gone", "gone/deep", "gone/deep/file"]);
        assert_eq!((names(&fleet), fleet.differences()), (before, vec![]));
        fleet.end().await;
    }
}

#[tokio::test]
async fn a_prune_ends_with_its_allowance_and_reports_it_whoever_asks_again() {
    for receivers in [0, 1] {
        let (mut fleet, cx) = mirror(receivers, &[]).await;
        for n in 0..5 {
            write_at_destination(&fleet, &format!("d/extra{n}"), "x");
        }
        fleet.allowance = 3;
        // What was deleted under a grant stays counted: a second task gets nothing more.
        for (extra, left) in [(3, 2), (0, 2)] {
            let stop = vec![reply(PageAction::Continue, 0), reply(PageAction::Stop, 0)];
            let pages = Kept::answering(stop);
            let (end, _) = pruned(&fleet, &cx, whole(true), &pages).await;
            assert_eq!((end, sum(&pages).extraneous), (ScanEnd::Reported, extra));
            assert!(pages.last().allowance_used_up);
            let there = names(&fleet).iter().filter(|name| name.contains("extra")).count();
            assert_eq!(there, left);
        }
        fleet.end().await;
    }
}

#[tokio::test]
async fn what_the_filter_leaves_out_is_safe_unless_it_is_to_go_too() {
    let (mut fleet, cx) = mirror(1, &["*.log", "kept/"]).await;
    fleet.write("at-source.log", b"");
    for name in ["at-source.log", "x.log", "kept/file", "d/y.log", "extra"] {
        write_at_destination(&fleet, name, "1");
    }
    let pages = Kept::default();
    pruned(&fleet, &cx, whole(true), &pages).await;
    assert_eq!(deleted(&pages), ["extra"]);
    let delete = DeleteOptions { delete_excluded: true, ..DeleteOptions::default() };
    fleet.options.delete = Some(delete);
    let pages = Kept::default();
    pruned(&fleet, &cx, whole(true), &pages).await;
    assert_eq!(deleted(&pages), ["at-source.log", "d/y.log", "kept", "kept/file", "x.log"]);
    fleet.end().await;
}

#[tokio::test]
async fn files_beyond_the_limits_of_size_are_not_missing() {
    let (mut fleet, cx) = mirror(1, &[]).await;
    fleet.options.filter.min_size = Some(1 << 40);
    let pages = Kept::default();
    pruned(&fleet, &cx, whole(true), &pages).await;
    assert_eq!(sum(&pages).extraneous, 0);
    fleet.end().await;
}

/// 30 directories with 10 files each; every third file is only at the destination, and so is every
/// tenth directory.
async fn many() -> (Fleet, Context) {
    let (fleet, cx) = mirror(1, &[]).await;
    for d in 0..30 {
        for f in 0..10 {
            let name = format!("m/d{d:02}/f{f}");
            if d % 10 != 0 && f % 3 != 0 {
                fleet.write(&name, b"");
            }
            write_at_destination(&fleet, &name, "x");
        }
    }
    (fleet, cx)
}

/// What is extra of [`many`]: 27 directories with 4 files each, 3 directories with 10 files each.
const MANY_EXTRA: u64 = 27 * 4 + 3 * 11;

#[tokio::test]
async fn a_prune_that_is_stopped_anywhere_goes_on_without_counting_twice() {
    let (fleet, cx) = many().await;
    let all = names(&fleet).len() as u64;
    let dirs = ["", "d", "d/e", "m", "m/d01", "m/d07", "m/d29"];
    let mut seen = Vec::new();
    for dir in dirs {
        let after = RelPath::new(dir).unwrap();
        // As if a page had ended there: what comes before, by counting all, less what comes behind.
        let cursor = Some(Cursor { after: after.clone(), skip_contents: false });
        let rest = Kept::default();
        pruned(&fleet, &cx, (RelPath::root(), cursor, false), &rest).await;
        seen.push(sum(&rest).checked);
        if !after.is_root() {
            let (skip, inside) = (Kept::default(), Kept::default());
            let cursor = Some(Cursor { after: after.clone(), skip_contents: true });
            pruned(&fleet, &cx, (RelPath::root(), cursor, false), &skip).await;
            let start = Some(Cursor { after: after.clone(), skip_contents: false });
            pruned(&fleet, &cx, (after, start, false), &inside).await;
            assert_eq!(sum(&rest).checked, sum(&skip).checked + sum(&inside).checked, "{dir}");
        }
    }
    let whole_tree = Kept::default();
    pruned(&fleet, &cx, whole(false), &whole_tree).await;
    assert_eq!((sum(&whole_tree).checked, sum(&whole_tree).extraneous), (all, MANY_EXTRA));
    // The root's own names are `a`, `d` and `m`; `m` has 30 of which 3 are extra, each with 10 files.
    assert_eq!(seen[0], all - 3);
    assert_eq!(seen[3], seen[2] - 30 - 30);
    assert_eq!((seen[4], seen[6]), (seen[3] - 10, 0));
    fleet.end().await;
}

#[tokio::test]
async fn a_prune_goes_on_behind_a_directory_that_became_a_file_or_went_since_its_last_page() {
    for gone in [false, true] {
        let (fleet, cx) = mirror(1, &[]).await;
        fleet.write("f/kept", b"1");
        write_at_destination(&fleet, "f/kept", "1");
        write_at_destination(&fleet, "f/extra", "1");
        let before = names(&fleet);
        fs::remove_dir_all(fleet.src().join("d")).unwrap();
        if !gone {
            fleet.write("d", b"now a file");
        }
        let cursor = |after: &str| {
            let after = RelPath::new(after).unwrap();
            (RelPath::root(), Some(Cursor { after, skip_contents: false }), true)
        };
        let pages = Kept::default();
        let (end, _) = pruned(&fleet, &cx, cursor("d/e"), &pages).await;
        assert_eq!((end, deleted(&pages)), (ScanEnd::Reported, vec!["f/extra".to_owned()]));
        let pages = pages.pages.into_inner();
        assert!(pages.iter().all(|page| page.errors.is_empty()), "{pages:?}");
        let left: Vec<String> = before.into_iter().filter(|name| name != "f/extra").collect();
        assert_eq!(names(&fleet), left, "the names of the root were compared before");
        fleet.end().await;
    }
}

#[tokio::test]
async fn very_much_that_is_extra_in_one_directory_is_told_page_by_page_and_counted_once() {
    let (fleet, cx) = mirror(1, &[]).await;
    let before = names(&fleet);
    for i in 0..5000 {
        write_at_destination(&fleet, &format!("d/extra/f{i}"), "");
    }
    let pages = Kept::default();
    let (end, _) = pruned(&fleet, &cx, whole(true), &pages).await;
    let seen = before.len() as u64 + 5001;
    assert_eq!(
        (end, sum(&pages)),
        (ScanEnd::Reported, PruneReport { checked: seen, extraneous: 5001, bytes: 0 })
    );
    assert_eq!((deleted(&pages).len(), names(&fleet)), (5001, before));
    let pages = pages.pages.into_inner();
    assert!(pages.len() >= 3 && pages.iter().all(|page| page.records.len() < 2 * 4096));
    // Whoever goes on from a page in the middle begins the directory anew.
    for page in pages.iter().filter(|page| !page.records.is_empty() && page.next.is_some()) {
        let Some(TaskSpec::Prune { cursor, .. }) = &page.next else { panic!("{:?}", page.next) };
        let behind = cursor.as_ref().is_some_and(|c| c.after.as_bytes() == b"d");
        assert_eq!(page.pruned == Some(PruneReport::default()), !behind);
    }
    fleet.end().await;
}

#[tokio::test]
async fn subtrees_are_given_away_when_asked_and_found_there() {
    let (fleet, cx) = many().await;
    let all = names(&fleet).len() as u64;
    let pages = Kept::answering(vec![reply(PageAction::Continue, 2)]);
    // Deleting begins with a page; its reply asks for subtrees.
    pruned(&fleet, &cx, whole(true), &pages).await;
    let given: Vec<RelPath> =
        pages.pages.lock().iter().flat_map(|page| page.subtrees.clone()).collect();
    assert_eq!(given, ["d", "m"].map(|dir| RelPath::new(dir).unwrap()));
    let mut total = sum(&pages);
    for dir in given {
        let rest = Kept::default();
        pruned(&fleet, &cx, (dir, None, true), &rest).await;
        total.checked += sum(&rest).checked;
        total.extraneous += sum(&rest).extraneous;
    }
    assert_eq!((total.checked, total.extraneous), (all, MANY_EXTRA));
    let at_source = fleet.manifest(None).entries;
    let at_source: Vec<String> = at_source.iter().skip(1).map(|e| e.path.to_string()).collect();
    assert_eq!(names(&fleet), at_source);
    fleet.end().await;
}

#[tokio::test]
async fn nothing_is_deleted_before_the_master_has_seen_what_the_source_root_is() {
    let (fleet, cx) = many().await;
    let before = names(&fleet);
    let pages = Kept::answering(vec![reply(PageAction::Stop, 0)]);
    let (end, _) = pruned(&fleet, &cx, whole(true), &pages).await;
    let first: ScanPage = pages.last();
    assert_eq!((end, names(&fleet).len()), (ScanEnd::Reported, before.len()));
    assert!(first.root.is_some() && first.pruned == Some(PruneReport::default()));
    fs::remove_dir_all(fleet.src()).unwrap();
    fs::create_dir(fleet.src()).unwrap();
    let empty = fleet.context(&["src"]);
    let pages = Kept::answering(vec![reply(PageAction::Stop, 0)]);
    let (end, _) = pruned(&fleet, &empty, whole(true), &pages).await;
    assert_eq!((end, pages.last().root.map(|root| root.empty)), (ScanEnd::Reported, Some(true)));
    assert_eq!(names(&fleet), before);
    pruned(&fleet, &empty, whole(true), &Kept::default()).await;
    assert_eq!(names(&fleet), Vec::<String>::new());
    fleet.end().await;
}

#[tokio::test]
async fn a_source_directory_that_cannot_be_listed_is_an_error_and_nothing_is_missing_there() {
    let (fleet, cx) = mirror(1, &[]).await;
    // No way leads through a link.
    fs::remove_dir_all(fleet.src().join("d")).unwrap();
    std::os::unix::fs::symlink("e", fleet.src().join("d")).unwrap();
    let before = names(&fleet);
    let pages = Kept::default();
    let (end, _) = pruned(&fleet, &cx, (RelPath::new("d/e").unwrap(), None, true), &pages).await;
    assert_eq!((end, names(&fleet)), (ScanEnd::Reported, before));
    assert_eq!(
        (pages.last().errors.len(), pages.last().errors[0].path.0.as_slice()),
        (1, &b"d"[..])
    );
    fleet.end().await;
}

#[tokio::test]
async fn a_destination_that_is_away_is_passed_over() {
    let (mut fleet, cx) = mirror(1, &[]).await;
    write_at_destination(&fleet, "extra", "1");
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = closed.local_addr().unwrap().to_string().parse().unwrap();
    fleet.add_member("away", vec![nobody]);
    fleet.members.reverse();
    let pages = Kept::default();
    let (end, wrote) = pruned(&fleet, &cx, whole(true), &pages).await;
    assert_eq!(
        (end, wrote, deleted(&pages)),
        (ScanEnd::Reported, vec!["r0".into()], vec!["extra".into()])
    );
    fleet.members.truncate(1);
    let (end, _) = pruned(&fleet, &cx, whole(false), &Kept::default()).await;
    assert!(matches!(&end, ScanEnd::Failed { message, .. } if message.contains("worker away")));
    fleet.end().await;
}

#[test]
fn only_a_sync_that_copies_every_entry_replaces_full_directories() {
    let with = |change: &dyn Fn(&mut SyncOptions)| {
        let mut options = SyncOptions::default();
        change(&mut options);
        replaces(&options)
    };
    assert!(with(&|_| ()));
    assert!(with(&|o| o.filter.rules = vec!["- x".to_owned()]));
    assert!(!with(&|o| o.filter.min_size = Some(1)));
    assert!(!with(&|o| o.filter.max_size = Some(1)));
    assert!(!with(&|o| o.filter.newer_than = Some(1)));
    assert!(!with(&|o| o.filter.older_than = Some(1)));
    assert!(!with(&|o| o.ignore_existing = true));
    assert!(!with(&|o| o.links = Links::Skip));
    assert!(!with(&|o| o.preserve = o.preserve.without(Attribute::Specials)));
    assert!(!with(&|o| o.preserve = o.preserve.without(Attribute::Devices)));
}
