use super::*;
use crate::agent::testing::{RecordingPageSink, page_reply, tree};
use crate::fs::{Filter, Tree};
use crate::wire::options::FilterSpec;
use crate::wire::task::{PageAction, WorkItem};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use tempfile::TempDir;

fn whole_source() -> Listing {
    Listing::Subtree { dir: RelPath::root(), cursor: None }
}

fn listing_of(next: TaskSpec) -> Listing {
    match next {
        TaskSpec::Scan { dir, cursor } => Listing::Subtree { dir, cursor },
        other => panic!("{other:?}"),
    }
}

/// `d0` to `d4` with 1000 empty files each.
fn tree_of_5000_files() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for d in 0..5 {
        let sub = dir.path().join(format!("d{d}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..1000 {
            fs::write(sub.join(format!("f{f:04}")), b"").unwrap();
        }
    }
    dir
}

async fn scan_tree(
    source: Tree,
    listing: Listing,
    options: ScanOptions,
    pages: &RecordingPageSink,
) -> ScanEnd {
    let builder = BatchBuilder::new(1 << 20);
    scan_source(source, listing, options, builder, Digest([3; 32]), pages).await
}

async fn scan_into(dir: &TempDir, listing: Listing, pages: &RecordingPageSink) -> ScanEnd {
    scan_source(
        tree(dir.path()),
        listing,
        ScanOptions::default(),
        BatchBuilder::new(64 << 20),
        Digest([3; 32]),
        pages,
    )
    .await
}

#[tokio::test]
async fn a_tree_is_paged_with_every_entry_once() {
    let dir = tree_of_5000_files();
    let pages = RecordingPageSink::default();
    assert_eq!(scan_into(&dir, whole_source(), &pages).await, ScanEnd::Reported);
    let entries = pages.entry_paths();
    assert_eq!(entries.len(), 1 + 5 + 5000);
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), entries.len());
    assert_eq!(entries[..3], ["", "d0", "d0/f0000"]);
    let pages = pages.pages.lock();
    assert!(pages.len() >= 3 && pages.iter().all(|p| p.task_digest == Digest([3; 32])));
    assert!(pages.iter().rev().skip(1).all(|p| p.next.is_some()));
    assert_eq!(pages.last().unwrap().next, None);
}

#[tokio::test]
async fn a_scan_on_hold_continues_after_its_last_page() {
    let dir = tree_of_5000_files();
    let mut listing = whole_source();
    let mut entries = Vec::new();
    let mut rounds = 0;
    loop {
        let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Pause, 0)]);
        assert_eq!(scan_into(&dir, listing, &pages).await, ScanEnd::Reported);
        assert_eq!(pages.pages.lock().len(), 1);
        entries.extend(pages.entry_paths());
        rounds += 1;
        match pages.last_page().next {
            Some(next) => listing = listing_of(next),
            None => break,
        }
    }
    assert!(rounds >= 3, "{rounds}");
    assert_eq!(entries.len(), 5006);
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), 5006);
}

#[tokio::test]
async fn directories_are_split_off_on_request_and_not_walked_twice() {
    let dir = tree_of_5000_files();
    let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Continue, 1)]);
    scan_into(&dir, whole_source(), &pages).await;
    let given: Vec<RelPath> = pages.pages.lock().iter().flat_map(|p| p.subtrees.clone()).collect();
    assert_eq!(given.len(), 1, "{given:?}");
    let mut entries = pages.entry_paths();
    assert_eq!(entries.len(), 1 + 5 + 4000);
    let rest = RecordingPageSink::default();
    let subtree = Listing::Subtree { dir: given[0].clone(), cursor: None };
    scan_into(&dir, subtree, &rest).await;
    assert_eq!(rest.entry_paths().len(), 1000);
    entries.extend(rest.entry_paths());
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), 5006);
}

#[tokio::test]
async fn a_stopped_scan_posts_no_more() {
    let dir = tree_of_5000_files();
    let pages = RecordingPageSink::with_replies(vec![page_reply(PageAction::Stop, 0)]);
    assert_eq!(scan_into(&dir, whole_source(), &pages).await, ScanEnd::Reported);
    assert_eq!(pages.pages.lock().len(), 1);
}

#[tokio::test]
async fn a_missing_root_fails_the_scan_and_a_missing_subtree_only_its_own_entry() {
    let dir = tempfile::tempdir().unwrap();
    let pages = RecordingPageSink::default();
    let gone = tree(dir.path());
    fs::create_dir(dir.path().join("src")).unwrap();
    let subtree = Listing::Subtree { dir: RelPath::new("nowhere").unwrap(), cursor: None };
    assert_eq!(scan_into(&dir, subtree, &pages).await, ScanEnd::Reported);
    let page = pages.last_page();
    assert_eq!((page.errors.len(), page.next.clone()), (1, None));
    assert_eq!(page.errors[0].path.0, b"nowhere");
    drop(gone);
    let below = Tree::new(
        crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap(),
        RelPath::new("missing").unwrap(),
    );
    let end =
        scan_tree(below, whole_source(), ScanOptions::default(), &RecordingPageSink::default())
            .await;
    let ScanEnd::Failed { error: Some(error), .. } = end else { panic!("{end:?}") };
    assert_eq!(error.errno.as_deref(), Some("ENOENT"));
}

#[tokio::test]
async fn a_list_yields_its_names_and_reports_missing_ones() {
    let dir = tempfile::tempdir().unwrap();
    for d in 0..3 {
        fs::create_dir(dir.path().join(format!("d{d}"))).unwrap();
        for f in ["f0000", "f0007"] {
            fs::write(dir.path().join(format!("d{d}/{f}")), b"").unwrap();
        }
    }
    let names = ["d1/f0007", "nope", "d2", "d0/f0000"].map(|n| RelPath::new(n).unwrap());
    let list = FileListPart { paths: names.to_vec() };
    let pages = RecordingPageSink::default();
    let listing = Listing::Names { list: list.clone(), start: 0 };
    assert_eq!(scan_into(&dir, listing, &pages).await, ScanEnd::Reported);
    assert_eq!(pages.entry_paths(), ["d1/f0007", "d2", "d0/f0000"]);
    let errors = pages.last_page().errors;
    assert_eq!((errors.len(), errors[0].path.0.as_slice()), (1, &b"nope"[..]));
    assert_eq!(errors[0].class, ErrorClass::Permanent);
    let rest = RecordingPageSink::default();
    scan_into(&dir, Listing::Names { list, start: 3 }, &rest).await;
    assert_eq!(rest.entry_paths(), ["d0/f0000"]);
}

#[tokio::test]
async fn a_source_that_is_a_file_is_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"abc").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = Tree::new(root, RelPath::new("f").unwrap());
    let pages = RecordingPageSink::default();
    assert_eq!(
        scan_tree(file, whole_source(), ScanOptions::default(), &pages).await,
        ScanEnd::Reported
    );
    assert_eq!(pages.entry_paths(), [""]);
}

#[tokio::test]
async fn a_source_that_is_a_file_is_filtered_by_name_size_and_age() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f.log"), b"abc").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let rules = |rules: &[&str]| {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        FilterSpec { rules, ..FilterSpec::default() }
    };
    for (spec, left_out) in [
        (FilterSpec { max_size: Some(2), ..FilterSpec::default() }, Some("--max-size")),
        (FilterSpec { max_size: Some(3), ..FilterSpec::default() }, None),
        (FilterSpec { min_size: Some(4), ..FilterSpec::default() }, Some("--min-size")),
        (FilterSpec { newer_than: Some(i64::MAX), ..FilterSpec::default() }, Some("--newer-than")),
        (FilterSpec { older_than: Some(1), ..FilterSpec::default() }, Some("--older-than")),
        (rules(&["*.log"]), Some("a pattern (--exclude)")),
        (rules(&["/f.log"]), Some("a pattern (--exclude)")),
        (rules(&["f.log/"]), None),
        (rules(&["d/f.log"]), None),
        (rules(&["*", "!*.log"]), None),
    ] {
        let source = Tree::new(root.clone(), RelPath::new("d/f.log").unwrap());
        let filter = Arc::new(Filter::new(&spec).unwrap());
        let (options, pages) = (options_with_filter(filter), RecordingPageSink::default());
        let end = scan_tree(source, whole_source(), options, &pages).await;
        assert_eq!(
            (end, pages.entry_paths().is_empty()),
            (ScanEnd::Reported, left_out.is_some()),
            "{spec:?}"
        );
        let warnings: Vec<String> = pages.last_page().warnings.keys().cloned().collect();
        let warning =
            left_out.map(|what| format!("nothing to do: SRC is a file, and {what} leaves it out"));
        assert_eq!(warnings, Vec::from_iter(warning), "{spec:?}");
    }
}

#[tokio::test]
async fn a_list_of_names_below_a_file_fails_permanently() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"abc").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = Tree::new(root, RelPath::new("f").unwrap());
    let list =
        FileListPart { paths: ["", "x"].map(|n| RelPath::new(n).unwrap_or_default()).to_vec() };
    let listing = Listing::Names { list, start: 0 };
    let end = scan_tree(file, listing, ScanOptions::default(), &RecordingPageSink::default()).await;
    let ScanEnd::Failed { error: Some(error), .. } = end else { panic!("{end:?}") };
    assert_eq!((error.path.0.len(), error.class), (0, ErrorClass::InvalidRequest));
}

#[tokio::test]
async fn a_listed_name_below_a_file_is_missing_and_not_changed() {
    let dir = small_tree();
    let list = FileListPart { paths: vec![RelPath::new("logs/x/y").unwrap()] };
    let pages = scan_with(&dir, Listing::Names { list, start: 0 }, ScanOptions::default()).await;
    let errors = pages.last_page().errors;
    assert_eq!((errors.len(), errors[0].errno.as_deref()), (1, Some("ENOTDIR")));
    assert_eq!((errors[0].class, pages.last_page().unlisted_dirs), (ErrorClass::Permanent, 0));
}

#[tokio::test]
async fn a_directory_that_cannot_be_entered_is_not_a_failed_file() {
    let proc = crate::fs::RootDir::open(&crate::agent::testing::abs("/".as_ref())).unwrap();
    let tree = Tree::new(proc, RelPath::root());
    let rules = vec!["/*".to_owned(), "!/proc/".to_owned()];
    let filter = Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).unwrap();
    let (options, pages) = (options_with_filter(Arc::new(filter)), RecordingPageSink::default());
    let end = scan_tree(tree, whole_source(), options, &pages).await;
    let page = pages.last_page();
    assert_eq!((end, page.errors.len(), page.unlisted_dirs), (ScanEnd::Reported, 1, 1), "{page:?}");
    assert_eq!(page.errors[0].path.0, b"proc");
}

async fn scan_with(dir: &TempDir, listing: Listing, options: ScanOptions) -> RecordingPageSink {
    let pages = RecordingPageSink::default();
    let end = scan_tree(tree(dir.path()), listing, options, &pages).await;
    assert_eq!(end, ScanEnd::Reported);
    pages
}

fn options_with_filter(filter: Arc<Filter>) -> ScanOptions {
    let walk = WalkOptions { filter, ..WalkOptions::default() };
    ScanOptions { walk, ..ScanOptions::default() }
}

fn options_without_links(rules: &[&str]) -> ScanOptions {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    let spec = FilterSpec { rules, min_size: Some(1), ..FilterSpec::default() };
    let mut options = options_with_filter(Arc::new(Filter::new(&spec).unwrap()));
    options.walk.links = Links::Skip;
    options
}

/// `a/b/c`, `a/b.tmp`, `a/empty`, `logs/x`, `to -> a`.
fn small_tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    for (name, content) in [("a/b/c", "c"), ("a/b.tmp", "t"), ("a/empty", ""), ("logs/x", "x")] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    std::os::unix::fs::symlink("a", dir.path().join("to")).unwrap();
    dir
}

#[tokio::test]
async fn filtered_entries_are_in_no_page_and_skipped_links_are_noted() {
    let dir = small_tree();
    let options = options_without_links(&["*.tmp", "logs/"]);
    let pages = scan_with(&dir, whole_source(), options).await;
    assert_eq!(pages.entry_paths(), ["", "a", "a/b", "a/b/c"]);
    let notes = pages.last_page().warnings;
    assert_eq!((notes.len(), notes[LINKS_SKIPPED].paths[0].0.as_slice()), (1, &b"to"[..]));
}

#[tokio::test]
async fn a_list_is_filtered_by_the_directories_above_its_names() {
    let dir = small_tree();
    let names = ["logs/x", "a/b.tmp", "a/b/c", "a/empty", "to"];
    let list = FileListPart { paths: names.map(|n| RelPath::new(n).unwrap()).to_vec() };
    let options = options_without_links(&["*.tmp", "logs/", "!logs/x"]);
    let pages = scan_with(&dir, Listing::Names { list, start: 0 }, options).await;
    assert_eq!(pages.entry_paths(), ["a/b/c"]);
    assert_eq!(
        (pages.last_page().errors, pages.last_page().warnings[LINKS_SKIPPED].count),
        (vec![], 1)
    );
}

#[tokio::test]
async fn a_listed_directory_is_split_off_with_its_contents_and_listed_once() {
    let dir = small_tree();
    let list = |names: &[&str]| {
        let names = names.iter().map(|n| RelPath::new(n).unwrap()).collect();
        Listing::Names { list: FileListPart { paths: names }, start: 0 }
    };
    let options = || ScanOptions { recursive: true, ..ScanOptions::default() };
    let pages = scan_with(&dir, list(&["a/b/c", "a", "logs/x", "to"]), options()).await;
    assert_eq!(pages.entry_paths(), ["a", "logs/x", "to"]);
    assert_eq!(pages.last_page().subtrees, [RelPath::new("a").unwrap()]);
    let root = scan_with(&dir, list(&["a/b/c", ""]), options()).await;
    assert_eq!((root.entry_paths().len(), root.last_page().subtrees), (0, vec![RelPath::root()]));
    let plain = scan_with(&dir, list(&["a", "a/b/c"]), ScanOptions::default()).await;
    assert_eq!(
        (plain.entry_paths(), plain.last_page().subtrees),
        (vec!["a".into(), "a/b/c".into()], vec![])
    );
}

#[tokio::test]
async fn the_first_page_of_the_whole_source_reports_the_root_state() {
    let dir = small_tree();
    let pages = scan_with(&dir, whole_source(), ScanOptions::default()).await;
    assert_eq!(pages.last_page().root.map(|root| root.empty), Some(false));
    let subtree = Listing::Subtree { dir: RelPath::new("a").unwrap(), cursor: None };
    assert_eq!(scan_with(&dir, subtree, ScanOptions::default()).await.last_page().root, None);
    let empty = tempfile::tempdir().unwrap();
    let pages = scan_with(&empty, whole_source(), ScanOptions::default()).await;
    assert_eq!(pages.last_page().root.map(|root| root.empty), Some(true));
}

#[tokio::test]
async fn files_of_a_dry_run_are_not_split_into_ranges() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![0; 3 << 20]).unwrap();
    let works = async |uncut| {
        let mut builder = BatchBuilder::new(1 << 20);
        builder.without_ranges = uncut;
        let pages = RecordingPageSink::default();
        let (source, options) = (tree(dir.path()), ScanOptions::default());
        let end =
            scan_source(source, whole_source(), options, builder, Digest([3; 32]), &pages).await;
        assert_eq!(end, ScanEnd::Reported);
        let work = pages.last_page().work;
        work.iter().filter(|item| matches!(item, WorkItem::Large { .. })).count()
    };
    assert_eq!((works(false).await, works(true).await), (1, 0));
}

#[tokio::test]
async fn page_0_of_each_walk_carries_the_identity_of_the_source_root() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, empty) = (small_tree(), tempfile::tempdir().unwrap());
    let stat = fs::metadata(dir.path()).unwrap();
    let identity = Some(RootIdentity { device: stat.dev(), inode: stat.ino() });
    let subtree = || Listing::Subtree { dir: RelPath::new("a").unwrap(), cursor: None };
    let list = FileListPart { paths: vec![RelPath::new("a").unwrap()] };
    for listing in [whole_source(), subtree(), Listing::Names { list, start: 0 }] {
        let pages = scan_with(&dir, listing, ScanOptions::default()).await;
        assert_eq!(pages.first_page().root_identity, identity);
    }
    assert!(
        scan_with(&empty, whole_source(), ScanOptions::default())
            .await
            .first_page()
            .root_identity
            .is_some()
    );
    // One file is a source too.
    fs::write(dir.path().join("file"), "x").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = Tree::new(root, RelPath::new("file").unwrap());
    let pages = RecordingPageSink::default();
    let end = scan_tree(file, whole_source(), ScanOptions::default(), &pages).await;
    assert_eq!(end, ScanEnd::Reported);
    let inode = fs::metadata(dir.path().join("file")).unwrap().ino();
    assert_eq!(pages.first_page().root_identity.map(|start| start.inode), Some(inode));
}
