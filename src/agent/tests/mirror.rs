//! Pruning: what the destination has and the source does not.

use super::*;
use crate::agent::pages::ScanEnd;
use crate::agent::prune::{PruneSpec, can_replace_directories, prune_subtree};
use crate::agent::testing::{RecordingPageSink, page_reply};
use crate::wire::entry_report::FileState;
use crate::wire::options::{DeleteOptions, FilterSpec, Links, SyncOptions};
use crate::wire::preserve::Attribute;
use crate::wire::task::{Cursor, PageAction, PruneReport, ScanPage};

/// Executes a prune of `dir` with worker `a`; its end and its writers.
async fn run_prune(
    fleet: &AgentFleet,
    cx: &AgentContext,
    (dir, cursor, apply): (RelPath, Option<Cursor>, bool),
    pages: &RecordingPageSink,
) -> (ScanEnd, Vec<String>) {
    let task = TaskSpec::Prune { dir: dir.clone(), cursor: cursor.clone(), apply };
    let assignment = fleet.assignment(task);
    let writers = Writers::default();
    let job = Job {
        cx,
        assignment: &assignment,
        writers: &writers,
        deadline: &Deadline::default(),
        ticket: &(&*assignment.ticket).into(),
        byte_counter: &Arc::default(),
    };
    let filter = job.build_filter().unwrap();
    let what = PruneSpec { dir, cursor, apply, filter };
    let end = prune_subtree(job, job.open_source().await.unwrap(), what, pages).await;
    (end, writers.worker_ids().iter().map(ToString::to_string).collect())
}

fn whole_tree(apply: bool) -> (RelPath, Option<Cursor>, bool) {
    (RelPath::root(), None, apply)
}

fn total_pruned(pages: &RecordingPageSink) -> PruneReport {
    let pages = pages.pages.lock();
    pages.iter().filter_map(|page| page.pruned).fold(PruneReport::default(), |a, b| PruneReport {
        checked: a.checked + b.checked,
        extraneous: a.extraneous + b.extraneous,
        bytes: a.bytes + b.bytes,
    })
}

fn deleted_paths(pages: &RecordingPageSink) -> Vec<String> {
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
fn names(fleet: &AgentFleet) -> Vec<String> {
    let walk = tree(&fleet.dst()).walk(&RelPath::root(), None).unwrap();
    walk.map(|e| e.unwrap().path.to_string()).filter(|name| !name.is_empty()).collect()
}

fn write_at_destination(fleet: &AgentFleet, name: &str, content: &str) {
    let path = fleet.dst().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A source, the same at the destination, and a mirror with a filter.
async fn mirror(receivers: usize, rules: &[&str]) -> (AgentFleet, AgentContext) {
    let mut fleet = AgentFleet::new(receivers).await;
    write_sample_tree(&fleet);
    let holds: &[&str] = if receivers == 0 { &["src", "dst"] } else { &["src"] };
    let cx = fleet.context(holds);
    copy_entries(&fleet, &cx, &fleet.manifest(None)).await;
    fleet.options.delete = Some(DeleteOptions::default());
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    fleet.options.filter = FilterSpec { rules, ..FilterSpec::default() };
    fleet.options.record = true;
    (fleet, cx)
}

#[tokio::test]
async fn extra_entries_are_counted_first_and_then_deleted_with_their_contents() {
    for receivers in [0, 2] {
        let (fleet, cx) = mirror(receivers, &[]).await;
        let before = names(&fleet);
        write_at_destination(&fleet, "b", "12345");
        write_at_destination(&fleet, "d/e/extra", "678");
        write_at_destination(&fleet, "gone/deep/file", "90");
        let (with, pages) = (names(&fleet), RecordingPageSink::default());
        let (end, wrote) = run_prune(&fleet, &cx, whole_tree(false), &pages).await;
        assert_eq!((end, wrote), (ScanEnd::Reported, vec![]));
        let extra = PruneReport { checked: with.len() as u64, extraneous: 5, bytes: 10 };
        assert_eq!((total_pruned(&pages), deleted_paths(&pages)), (extra, vec![]));
        assert_eq!(names(&fleet), with);
        let root = pages.pages.lock()[0].root.clone();
        assert_eq!(root.map(|root| root.empty), Some(false));

        let pages = RecordingPageSink::default();
        let (end, wrote) = run_prune(&fleet, &cx, whole_tree(true), &pages).await;
        assert_eq!((end, wrote.len()), (ScanEnd::Reported, 1));
        assert_eq!((total_pruned(&pages).extraneous, total_pruned(&pages).bytes), (5, 10));
        assert_eq!(
            deleted_paths(&pages),
            ["b", "d/e/extra", "gone", "gone/deep", "gone/deep/file"]
        );
        assert_eq!((names(&fleet), fleet.differences()), (before, vec![]));
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn a_prune_ends_when_its_allowance_is_used_up_and_reports_it_on_every_retry() {
    for receivers in [0, 1] {
        let (mut fleet, cx) = mirror(receivers, &[]).await;
        for n in 0..5 {
            write_at_destination(&fleet, &format!("d/extra{n}"), "x");
        }
        fleet.allowance = 3;
        // What was deleted under a grant stays counted: a second task gets nothing more.
        for (extra, left) in [(3, 2), (0, 2)] {
            let stop = vec![page_reply(PageAction::Continue, 0), page_reply(PageAction::Stop, 0)];
            let pages = RecordingPageSink::with_replies(stop);
            let (end, _) = run_prune(&fleet, &cx, whole_tree(true), &pages).await;
            assert_eq!((end, total_pruned(&pages).extraneous), (ScanEnd::Reported, extra));
            assert!(pages.last_page().allowance_used_up);
            let there = names(&fleet).iter().filter(|name| name.contains("extra")).count();
            assert_eq!(there, left);
        }
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn filtered_entries_are_kept_unless_delete_excluded_is_set() {
    let (mut fleet, cx) = mirror(1, &["*.log", "kept/"]).await;
    fleet.write("at-source.log", b"");
    for name in ["at-source.log", "x.log", "kept/file", "d/y.log", "extra"] {
        write_at_destination(&fleet, name, "1");
    }
    let pages = RecordingPageSink::default();
    run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    assert_eq!(deleted_paths(&pages), ["extra"]);
    let delete = DeleteOptions { delete_excluded: true, ..DeleteOptions::default() };
    fleet.options.delete = Some(delete);
    let pages = RecordingPageSink::default();
    run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    assert_eq!(deleted_paths(&pages), ["at-source.log", "d/y.log", "kept", "kept/file", "x.log"]);
    fleet.shut_down().await;
}

#[tokio::test]
async fn files_outside_the_size_limits_do_not_count_as_missing() {
    let (mut fleet, cx) = mirror(1, &[]).await;
    fleet.options.filter.min_size = Some(1 << 40);
    let pages = RecordingPageSink::default();
    run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    assert_eq!(total_pruned(&pages).extraneous, 0);
    fleet.shut_down().await;
}

/// 30 directories with 10 files each; every third file is only at the destination, and so is every
/// tenth directory.
async fn tree_with_many_extra_entries() -> (AgentFleet, AgentContext) {
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

/// What is extra of [`tree_with_many_extra_entries`]: 27 directories with 4 files each, 3 directories with 10 files each.
const MANY_EXTRA: u64 = 27 * 4 + 3 * 11;

#[tokio::test]
async fn a_prune_that_is_interrupted_anywhere_resumes_without_counting_twice() {
    let (fleet, cx) = tree_with_many_extra_entries().await;
    let all = names(&fleet).len() as u64;
    let dirs = ["", "d", "d/e", "m", "m/d01", "m/d07", "m/d29"];
    let mut seen = Vec::new();
    for dir in dirs {
        let after = RelPath::new(dir).unwrap();
        // As if a page had ended there: what comes before, by counting all, less what comes behind.
        let cursor = Some(Cursor { after: after.clone(), skip_contents: false });
        let rest = RecordingPageSink::default();
        run_prune(&fleet, &cx, (RelPath::root(), cursor, false), &rest).await;
        seen.push(total_pruned(&rest).checked);
        if !after.is_root() {
            let (skip, inside) = (RecordingPageSink::default(), RecordingPageSink::default());
            let cursor = Some(Cursor { after: after.clone(), skip_contents: true });
            run_prune(&fleet, &cx, (RelPath::root(), cursor, false), &skip).await;
            let start = Some(Cursor { after: after.clone(), skip_contents: false });
            run_prune(&fleet, &cx, (after, start, false), &inside).await;
            assert_eq!(
                total_pruned(&rest).checked,
                total_pruned(&skip).checked + total_pruned(&inside).checked,
                "{dir}"
            );
        }
    }
    let one_run = RecordingPageSink::default();
    run_prune(&fleet, &cx, whole_tree(false), &one_run).await;
    assert_eq!(
        (total_pruned(&one_run).checked, total_pruned(&one_run).extraneous),
        (all, MANY_EXTRA)
    );
    // The root's own names are `a`, `d` and `m`; `m` has 30 of which 3 are extra, each with 10 files.
    assert_eq!(seen[0], all - 3);
    assert_eq!(seen[3], seen[2] - 30 - 30);
    assert_eq!((seen[4], seen[6]), (seen[3] - 10, 0));
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_prune_resumes_after_a_directory_that_was_replaced_or_removed() {
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
        let pages = RecordingPageSink::default();
        let (end, _) = run_prune(&fleet, &cx, cursor("d/e"), &pages).await;
        assert_eq!((end, deleted_paths(&pages)), (ScanEnd::Reported, vec!["f/extra".to_owned()]));
        let pages = pages.pages.into_inner();
        assert!(pages.iter().all(|page| page.errors.is_empty()), "{pages:?}");
        let left: Vec<String> = before.into_iter().filter(|name| name != "f/extra").collect();
        assert_eq!(names(&fleet), left, "the names of the root were compared before");
        fleet.shut_down().await;
    }
}

#[tokio::test]
async fn many_extra_entries_of_one_directory_are_reported_in_pages_and_counted_once() {
    let (fleet, cx) = mirror(1, &[]).await;
    let before = names(&fleet);
    for i in 0..5000 {
        write_at_destination(&fleet, &format!("d/extra/f{i}"), "");
    }
    let pages = RecordingPageSink::default();
    let (end, _) = run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    let seen = before.len() as u64 + 5001;
    assert_eq!(
        (end, total_pruned(&pages)),
        (ScanEnd::Reported, PruneReport { checked: seen, extraneous: 5001, bytes: 0 })
    );
    assert_eq!((deleted_paths(&pages).len(), names(&fleet)), (5001, before));
    let pages = pages.pages.into_inner();
    assert!(pages.len() >= 3 && pages.iter().all(|page| page.records.len() < 2 * 4096));
    // A task that continues from a page in the middle restarts the directory.
    for page in pages.iter().filter(|page| !page.records.is_empty() && page.next.is_some()) {
        let Some(TaskSpec::Prune { cursor, .. }) = &page.next else { panic!("{:?}", page.next) };
        let behind = cursor.as_ref().is_some_and(|c| c.after.as_bytes() == b"d");
        assert_eq!(page.pruned == Some(PruneReport::default()), !behind);
    }
    fleet.shut_down().await;
}

#[tokio::test]
async fn subtrees_are_split_off_on_request_and_pruned_by_their_own_task() {
    let (fleet, cx) = tree_with_many_extra_entries().await;
    let all = names(&fleet).len() as u64;
    let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Continue, 2)]);
    // Deleting begins with a page; its reply asks for subtrees.
    run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    let given: Vec<RelPath> =
        pages.pages.lock().iter().flat_map(|page| page.subtrees.clone()).collect();
    assert_eq!(given, ["d", "m"].map(|dir| RelPath::new(dir).unwrap()));
    let mut total = total_pruned(&pages);
    for dir in given {
        let rest = RecordingPageSink::default();
        run_prune(&fleet, &cx, (dir, None, true), &rest).await;
        total.checked += total_pruned(&rest).checked;
        total.extraneous += total_pruned(&rest).extraneous;
    }
    assert_eq!((total.checked, total.extraneous), (all, MANY_EXTRA));
    let at_source = fleet.manifest(None).entries;
    let at_source: Vec<String> = at_source.iter().skip(1).map(|e| e.path.to_string()).collect();
    assert_eq!(names(&fleet), at_source);
    fleet.shut_down().await;
}

#[tokio::test]
async fn nothing_is_deleted_before_the_source_root_was_posted() {
    let (fleet, cx) = tree_with_many_extra_entries().await;
    let before = names(&fleet);
    let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Stop, 0)]);
    let (end, _) = run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    let first: ScanPage = pages.last_page();
    assert_eq!((end, names(&fleet).len()), (ScanEnd::Reported, before.len()));
    assert!(first.root.is_some() && first.pruned == Some(PruneReport::default()));
    fs::remove_dir_all(fleet.src()).unwrap();
    fs::create_dir(fleet.src()).unwrap();
    let empty = fleet.context(&["src"]);
    let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Stop, 0)]);
    let (end, _) = run_prune(&fleet, &empty, whole_tree(true), &pages).await;
    assert_eq!(
        (end, pages.last_page().root.map(|root| root.empty)),
        (ScanEnd::Reported, Some(true))
    );
    assert_eq!(names(&fleet), before);
    run_prune(&fleet, &empty, whole_tree(true), &RecordingPageSink::default()).await;
    assert_eq!(names(&fleet), Vec::<String>::new());
    fleet.shut_down().await;
}

#[tokio::test]
async fn an_unlistable_source_directory_is_an_error_and_nothing_below_it_is_deleted() {
    let (fleet, cx) = mirror(1, &[]).await;
    // No way leads through a link.
    fs::remove_dir_all(fleet.src().join("d")).unwrap();
    std::os::unix::fs::symlink("e", fleet.src().join("d")).unwrap();
    let before = names(&fleet);
    let pages = RecordingPageSink::default();
    let (end, _) = run_prune(&fleet, &cx, (RelPath::new("d/e").unwrap(), None, true), &pages).await;
    assert_eq!((end, names(&fleet)), (ScanEnd::Reported, before));
    assert_eq!(
        (pages.last_page().errors.len(), pages.last_page().errors[0].path.0.as_slice()),
        (1, &b"d"[..])
    );
    fleet.shut_down().await;
}

#[tokio::test]
async fn an_unavailable_destination_is_skipped() {
    let (mut fleet, cx) = mirror(1, &[]).await;
    write_at_destination(&fleet, "extra", "1");
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let unused_address = closed.local_addr().unwrap().to_string().parse().unwrap();
    fleet.add_member("away", vec![unused_address]);
    fleet.members.reverse();
    let pages = RecordingPageSink::default();
    let (end, wrote) = run_prune(&fleet, &cx, whole_tree(true), &pages).await;
    assert_eq!(
        (end, wrote, deleted_paths(&pages)),
        (ScanEnd::Reported, vec!["r0".into()], vec!["extra".into()])
    );
    fleet.members.truncate(1);
    let (end, _) = run_prune(&fleet, &cx, whole_tree(false), &RecordingPageSink::default()).await;
    assert!(matches!(&end, ScanEnd::Failed { message, .. } if message.contains("worker away")));
    fleet.shut_down().await;
}

#[test]
fn only_a_sync_that_copies_every_entry_replaces_non_empty_directories() {
    let with = |change: &dyn Fn(&mut SyncOptions)| {
        let mut options = SyncOptions::default();
        change(&mut options);
        can_replace_directories(&options)
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
