use super::*;
use crate::agent::testing::{Kept, reply, tree};
use crate::wire::options::FilterSpec;
use crate::wire::task::WorkItem;
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;

fn all() -> Listing {
    Listing::Subtree { dir: RelPath::root(), cursor: None }
}

fn go_on(next: TaskSpec) -> Listing {
    match next {
        TaskSpec::Scan { dir, cursor } => Listing::Subtree { dir, cursor },
        other => panic!("{other:?}"),
    }
}

/// `d0` to `d4` with 1000 empty files each.
fn five_thousand() -> TempDir {
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

async fn run(dir: &TempDir, listing: Listing, pages: &Kept) -> ScanEnd {
    scan(tree(dir.path()), listing, Manner::default(), 64 << 20, Digest([3; 32]), pages).await
}

#[tokio::test]
async fn a_tree_is_paged_with_every_entry_once() {
    let dir = five_thousand();
    let pages = Kept::default();
    assert_eq!(run(&dir, all(), &pages).await, ScanEnd::Reported);
    let entries = pages.entries();
    assert_eq!(entries.len(), 1 + 5 + 5000);
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), entries.len());
    assert_eq!(entries[..3], ["", "d0", "d0/f0000"]);
    let pages = pages.pages.lock();
    assert!(pages.len() >= 3 && pages.iter().all(|p| p.task_digest == Digest([3; 32])));
    assert!(pages.iter().rev().skip(1).all(|p| p.next.is_some()));
    assert_eq!(pages.last().unwrap().next, None);
}

#[tokio::test]
async fn a_scan_that_is_held_goes_on_where_its_last_page_ends() {
    let dir = five_thousand();
    let mut listing = all();
    let mut entries = Vec::new();
    let mut rounds = 0;
    loop {
        let pages = Kept::answering(vec![reply(PageAction::Pause, 0)]);
        assert_eq!(run(&dir, listing, &pages).await, ScanEnd::Reported);
        assert_eq!(pages.pages.lock().len(), 1);
        entries.extend(pages.entries());
        rounds += 1;
        match pages.last().next {
            Some(next) => listing = go_on(next),
            None => break,
        }
    }
    assert!(rounds >= 3, "{rounds}");
    assert_eq!(entries.len(), 5006);
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), 5006);
}

#[tokio::test]
async fn directories_are_given_away_when_asked_and_walked_by_nobody_else() {
    let dir = five_thousand();
    let pages = Kept::answering(vec![reply(PageAction::Continue, 1)]);
    run(&dir, all(), &pages).await;
    let given: Vec<RelPath> = pages.pages.lock().iter().flat_map(|p| p.subtrees.clone()).collect();
    assert_eq!(given.len(), 1, "{given:?}");
    let mut entries = pages.entries();
    assert_eq!(entries.len(), 1 + 5 + 4000);
    let rest = Kept::default();
    let subtree = Listing::Subtree { dir: given[0].clone(), cursor: None };
    run(&dir, subtree, &rest).await;
    assert_eq!(rest.entries().len(), 1000);
    entries.extend(rest.entries());
    assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), 5006);
}

#[tokio::test]
async fn a_stopped_scan_posts_no_more() {
    let dir = five_thousand();
    let pages = Kept::answering(vec![reply(PageAction::Stop, 0)]);
    assert_eq!(run(&dir, all(), &pages).await, ScanEnd::Reported);
    assert_eq!(pages.pages.lock().len(), 1);
}

#[tokio::test]
async fn a_root_that_is_missing_fails_the_scan_and_a_subtree_that_is_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pages = Kept::default();
    let gone = tree(dir.path());
    fs::create_dir(dir.path().join("src")).unwrap();
    let subtree = Listing::Subtree { dir: RelPath::new("nowhere").unwrap(), cursor: None };
    assert_eq!(run(&dir, subtree, &pages).await, ScanEnd::Reported);
    let page = pages.last();
    assert_eq!((page.errors.len(), page.next.clone()), (1, None));
    assert_eq!(page.errors[0].path.0, b"nowhere");
    drop(gone);
    let below = crate::fs::Tree::new(
        crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap(),
        RelPath::new("missing").unwrap(),
    );
    let end =
        scan(below, all(), Manner::default(), 1 << 20, Digest([0; 32]), &Kept::default()).await;
    let ScanEnd::Failed { error: Some(error), .. } = end else { panic!("{end:?}") };
    assert_eq!(error.errno.as_deref(), Some("ENOENT"));
}

#[tokio::test]
async fn a_list_gives_just_its_names_and_names_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    for d in 0..3 {
        fs::create_dir(dir.path().join(format!("d{d}"))).unwrap();
        for f in ["f0000", "f0007"] {
            fs::write(dir.path().join(format!("d{d}/{f}")), b"").unwrap();
        }
    }
    let names = ["d1/f0007", "nope", "d2", "d0/f0000"].map(|n| RelPath::new(n).unwrap());
    let list = FileListPart { paths: names.to_vec() };
    let pages = Kept::default();
    let listing = Listing::Names { list: list.clone(), start: 0 };
    assert_eq!(run(&dir, listing, &pages).await, ScanEnd::Reported);
    assert_eq!(pages.entries(), ["d1/f0007", "d2", "d0/f0000"]);
    let errors = pages.last().errors;
    assert_eq!((errors.len(), errors[0].path.0.as_slice()), (1, &b"nope"[..]));
    assert_eq!(errors[0].class, ErrorClass::Permanent);
    let rest = Kept::default();
    run(&dir, Listing::Names { list, start: 3 }, &rest).await;
    assert_eq!(rest.entries(), ["d0/f0000"]);
}

#[tokio::test]
async fn a_source_that_is_a_file_is_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"abc").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = crate::fs::Tree::new(root, RelPath::new("f").unwrap());
    let pages = Kept::default();
    assert_eq!(
        scan(file, all(), Manner::default(), 1 << 20, Digest([0; 32]), &pages).await,
        ScanEnd::Reported
    );
    assert_eq!(pages.entries(), [""]);
}

#[tokio::test]
async fn a_source_that_is_a_file_is_left_out_by_its_name_its_size_and_its_age() {
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
        let source = crate::fs::Tree::new(root.clone(), RelPath::new("d/f.log").unwrap());
        let filter = Arc::new(Filter::new(&spec).unwrap());
        let (manner, pages) = (Manner { filter, ..Manner::default() }, Kept::default());
        let end = scan(source, all(), manner, 1 << 20, Digest([0; 32]), &pages).await;
        assert_eq!(
            (end, pages.entries().is_empty()),
            (ScanEnd::Reported, left_out.is_some()),
            "{spec:?}"
        );
        let notes: Vec<String> = pages.last().warnings.keys().cloned().collect();
        let note =
            left_out.map(|what| format!("nothing to do: SRC is a file, and {what} leaves it out"));
        assert_eq!(notes, Vec::from_iter(note), "{spec:?}");
    }
}

#[tokio::test]
async fn a_list_of_names_in_a_file_fails_as_a_whole_and_for_good() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"abc").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = crate::fs::Tree::new(root, RelPath::new("f").unwrap());
    let list =
        FileListPart { paths: ["", "x"].map(|n| RelPath::new(n).unwrap_or_default()).to_vec() };
    let listing = Listing::Names { list, start: 0 };
    let end =
        scan(file, listing, Manner::default(), 1 << 20, Digest([0; 32]), &Kept::default()).await;
    let ScanEnd::Failed { error: Some(error), .. } = end else { panic!("{end:?}") };
    assert_eq!((error.path.0.len(), error.class), (0, ErrorClass::InvalidRequest));
}

#[tokio::test]
async fn a_listed_name_below_a_file_is_not_there_and_did_not_change() {
    let dir = small();
    let list = FileListPart { paths: vec![RelPath::new("logs/x/y").unwrap()] };
    let pages = run_with(&dir, Listing::Names { list, start: 0 }, Manner::default()).await;
    let errors = pages.last().errors;
    assert_eq!((errors.len(), errors[0].errno.as_deref()), (1, Some("ENOTDIR")));
    assert_eq!((errors[0].class, pages.last().unlisted_dirs), (ErrorClass::Permanent, 0));
}

#[tokio::test]
async fn a_directory_that_is_not_entered_is_no_failed_file() {
    let proc = crate::fs::RootDir::open(&crate::agent::testing::abs("/".as_ref())).unwrap();
    let tree = crate::fs::Tree::new(proc, RelPath::root());
    let rules = vec!["/*".to_owned(), "!/proc/".to_owned()];
    let filter = Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).unwrap();
    let (manner, pages) =
        (Manner { filter: Arc::new(filter), ..Manner::default() }, Kept::default());
    let end = scan(tree, all(), manner, 1 << 20, Digest([0; 32]), &pages).await;
    let page = pages.last();
    assert_eq!((end, page.errors.len(), page.unlisted_dirs), (ScanEnd::Reported, 1, 1), "{page:?}");
    assert_eq!(page.errors[0].path.0, b"proc");
}

async fn run_with(dir: &TempDir, listing: Listing, manner: Manner) -> Kept {
    let pages = Kept::default();
    let end = scan(tree(dir.path()), listing, manner, 1 << 20, Digest([3; 32]), &pages).await;
    assert_eq!(end, ScanEnd::Reported);
    pages
}

fn but(rules: &[&str]) -> Manner {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    let spec = FilterSpec { rules, min_size: Some(1), ..FilterSpec::default() };
    Manner { filter: Arc::new(Filter::new(&spec).unwrap()), ..Manner::default() }
}

/// `a/b/c`, `a/b.tmp`, `a/empty`, `logs/x`, `to -> a`.
fn small() -> TempDir {
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
async fn what_the_filter_leaves_out_is_in_no_page_and_links_left_out_are_noted() {
    let dir = small();
    let manner = Manner { links: Links::Skip, ..but(&["*.tmp", "logs/"]) };
    let pages = run_with(&dir, all(), manner).await;
    assert_eq!(pages.entries(), ["", "a", "a/b", "a/b/c"]);
    let notes = pages.last().warnings;
    assert_eq!((notes.len(), notes[LINKS_SKIPPED].paths[0].0.as_slice()), (1, &b"to"[..]));
}

#[tokio::test]
async fn a_list_is_filtered_by_all_that_is_above_its_names() {
    let dir = small();
    let names = ["logs/x", "a/b.tmp", "a/b/c", "a/empty", "to"];
    let list = FileListPart { paths: names.map(|n| RelPath::new(n).unwrap()).to_vec() };
    let manner = Manner { links: Links::Skip, ..but(&["*.tmp", "logs/", "!logs/x"]) };
    let pages = run_with(&dir, Listing::Names { list, start: 0 }, manner).await;
    assert_eq!(pages.entries(), ["a/b/c"]);
    assert_eq!((pages.last().errors, pages.last().warnings[LINKS_SKIPPED].count), (vec![], 1));
}

#[tokio::test]
async fn a_listed_directory_is_given_away_with_all_that_is_in_it_and_listed_once() {
    let dir = small();
    let list = |names: &[&str]| {
        let names = names.iter().map(|n| RelPath::new(n).unwrap()).collect();
        Listing::Names { list: FileListPart { paths: names }, start: 0 }
    };
    let manner = || Manner { recursive: true, ..Manner::default() };
    let pages = run_with(&dir, list(&["a/b/c", "a", "logs/x", "to"]), manner()).await;
    assert_eq!(pages.entries(), ["a", "logs/x", "to"]);
    assert_eq!(pages.last().subtrees, [RelPath::new("a").unwrap()]);
    let root = run_with(&dir, list(&["a/b/c", ""]), manner()).await;
    assert_eq!((root.entries().len(), root.last().subtrees), (0, vec![RelPath::root()]));
    let plain = run_with(&dir, list(&["a", "a/b/c"]), Manner::default()).await;
    assert_eq!(
        (plain.entries(), plain.last().subtrees),
        (vec!["a".into(), "a/b/c".into()], vec![])
    );
}

#[tokio::test]
async fn the_first_page_of_the_whole_source_says_what_its_root_is() {
    let dir = small();
    let pages = run_with(&dir, all(), Manner::default()).await;
    assert_eq!(pages.last().root.map(|root| root.empty), Some(false));
    let subtree = Listing::Subtree { dir: RelPath::new("a").unwrap(), cursor: None };
    assert_eq!(run_with(&dir, subtree, Manner::default()).await.last().root, None);
    let empty = tempfile::tempdir().unwrap();
    let pages = run_with(&empty, all(), Manner::default()).await;
    assert_eq!(pages.last().root.map(|root| root.empty), Some(true));
}

#[tokio::test]
async fn what_is_not_going_to_be_sent_is_not_cut_apart() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![0; 3 << 20]).unwrap();
    let works = async |uncut| {
        let pages = run_with(&dir, all(), Manner { uncut, ..Manner::default() }).await;
        let work = pages.last().work;
        work.iter().filter(|item| matches!(item, WorkItem::Large { .. })).count()
    };
    assert_eq!((works(false).await, works(true).await), (1, 0));
}

#[tokio::test]
async fn page_0_of_each_walk_carries_the_identity_of_the_source_root() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, empty) = (small(), tempfile::tempdir().unwrap());
    let stat = fs::metadata(dir.path()).unwrap();
    let identity = Some(RootIdentity { device: stat.dev(), inode: stat.ino() });
    let subtree = || Listing::Subtree { dir: RelPath::new("a").unwrap(), cursor: None };
    let list = FileListPart { paths: vec![RelPath::new("a").unwrap()] };
    for listing in [all(), subtree(), Listing::Names { list, start: 0 }] {
        let pages = run_with(&dir, listing, Manner::default()).await;
        assert_eq!(pages.first().root_identity, identity);
    }
    assert!(run_with(&empty, all(), Manner::default()).await.first().root_identity.is_some());
    // One file is a source too.
    fs::write(dir.path().join("file"), "x").unwrap();
    let root = crate::fs::RootDir::open(&crate::agent::testing::abs(dir.path())).unwrap();
    let file = crate::fs::Tree::new(root, RelPath::new("file").unwrap());
    let pages = Kept::default();
    let end = scan(file, all(), Manner::default(), 1 << 20, Digest([1; 32]), &pages).await;
    assert_eq!(end, ScanEnd::Reported);
    let inode = fs::metadata(dir.path().join("file")).unwrap().ino();
    assert_eq!(pages.first().root_identity.map(|start| start.inode), Some(inode));
}
