//! Scans and lists: a thread walks (or looks up names) and cuts pages; each page is posted in order,
//! with the place to go on from, while the next one is made.

use super::batch::Cutter;
use crate::fs::{Filter, FsError, LINKS_LEFT_OUT, Near, Tree, Walk, WalkOptions};
use crate::wire::manifest::{Entry, Kind, NameList};
use crate::wire::options::{Links, Notes};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{Cursor, PageAction, PageReply, RootState, ScanPage, TaskSpec};
use crate::wire::{BytePath, Digest, RelPath};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A page is posted after this, full or not.
const PAGE_TIME: Duration = Duration::from_secs(1);
/// Only directories this close to where the scan began are given away: deeper ones are rarely worth
/// a task of their own.
const SPAWN_DEPTH: usize = 3;

/// Where pages go to.
pub trait Pages: Sync {
    /// Posts a page; tries again until it is answered.
    ///
    /// # Errors
    /// A sentence, when that is of no use.
    fn post(&self, page: &ScanPage) -> impl Future<Output = Result<PageReply, String>> + Send;
}

/// How a scan ended.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// The master knows all there is to know: no result is to be sent.
    Told,
    /// It could not begin, or not go on.
    Failed {
        /// A sentence.
        message: String,
        /// The entry at fault.
        error: Option<FileError>,
    },
}

/// What is walked.
pub enum Listing {
    /// A subtree.
    Subtree {
        /// Below the source root.
        dir: RelPath,
        /// Go on behind this.
        cursor: Option<Cursor>,
    },
    /// Names, from the one at `start`.
    Names {
        /// The part of the list.
        list: NameList,
        /// An index into it.
        start: u64,
    },
}

/// How it is listed.
#[derive(Clone, Default)]
pub struct Manner {
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What is done with symbolic links.
    pub links: Links,
    /// What the destination is here, see [`WalkOptions`].
    pub destination: Option<(u64, u64)>,
    /// Directories of a list stand for all that is in them.
    pub recursive: bool,
    /// Nothing is going to be sent: no file is cut into ranges.
    pub uncut: bool,
}

/// A page without its number.
struct Draft {
    found: super::batch::Found,
    root: Option<RootState>,
    next: Option<TaskSpec>,
}

/// The walking thread's side.
struct Walker {
    source: Tree,
    manner: Manner,
    cutter: Cutter,
    /// What the root of the whole source is, until it is said.
    root: Option<RootState>,
    since: Instant,
    /// How many subtrees may be given away.
    spawn: Arc<AtomicU32>,
    to: mpsc::Sender<Draft>,
}

/// Why the walker stopped.
enum Halt {
    /// Nobody wants more.
    Unwanted,
    Failed(FsError),
}

/// Lists `listing` of `source` into pages with batches of at most `chunk` bytes.
pub async fn scan(
    source: Tree,
    listing: Listing,
    manner: Manner,
    chunk: u64,
    task_digest: Digest,
    pages: &impl Pages,
) -> ScanEnd {
    let spawn = Arc::new(AtomicU32::new(0));
    let (to, mut drafts) = mpsc::channel(1);
    let walker = Walker {
        source,
        cutter: if manner.uncut { Cutter::uncut(chunk) } else { Cutter::new(chunk) },
        manner,
        root: None,
        since: Instant::now(),
        spawn: spawn.clone(),
        to,
    };
    let walking = tokio::task::spawn_blocking(move || match listing {
        Listing::Subtree { dir, cursor } => walker.subtree(&dir, cursor),
        Listing::Names { list, start } => walker.names(&list, start),
    });
    let mut number = 0;
    while let Some(Draft { found, root, next }) = drafts.recv().await {
        let page = ScanPage {
            task_digest,
            page: number,
            work: found.work,
            spawn: found.spawn,
            errors: found.errors,
            root,
            pruned: None,
            notes: found.notes,
            records: Vec::new(),
            integrity_errors: 0,
            next,
        };
        match pages.post(&page).await {
            Ok(PageReply { action: PageAction::Continue, spawn: budget }) => {
                spawn.store(budget, Ordering::Relaxed);
                number += 1;
            }
            Ok(_) => return ScanEnd::Told,
            Err(message) => return ScanEnd::Failed { message, error: None },
        }
    }
    match walking.await {
        Ok(Err(Halt::Failed(error))) => {
            let error = error.to_file_error();
            ScanEnd::Failed { message: error.message.clone(), error: Some(error) }
        }
        // The last page says that there is no more; whoever is asked to go on after it is confused.
        Ok(_) => ScanEnd::Told,
        Err(e) => {
            let message = format!("listing the source failed inside: {e}");
            ScanEnd::Failed { message, error: None }
        }
    }
}

impl Walker {
    fn subtree(mut self, dir: &RelPath, cursor: Option<Cursor>) -> Result<(), Halt> {
        let Manner { filter, links, destination, .. } = self.manner.clone();
        let options = WalkOptions { filter, links, destination };
        let _near = Near::begin();
        let mut walk = match self.source.walk_with(dir, cursor.as_ref(), options) {
            Ok(walk) => walk,
            // A subtree that can't be entered is one failed entry; without its root a sync is nothing.
            Err(error) if !dir.is_root() => {
                self.fail(error)?;
                return self.send(None);
            }
            Err(error) => return Err(Halt::Failed(error)),
        };
        if dir.is_root() && cursor.is_none() {
            self.root = Some(self.source.root_state().map_err(Halt::Failed)?);
        }
        while let Some(item) = walk.next() {
            match item {
                Ok(entry) => {
                    if entry.is_dir() && may_give_away(dir, &entry.path, &self.spawn) {
                        walk.skip_contents();
                        self.cutter.give_away(entry.path.clone());
                    }
                    self.cutter.add(entry, walk.dirs());
                }
                Err(error) => self.fail(error)?,
            }
            if self.is_due() {
                let cursor = walk.cursor().cloned();
                self.end_page(&mut walk, Some(TaskSpec::Scan { dir: dir.clone(), cursor }))?;
            }
        }
        self.end_page(&mut walk, None)
    }

    fn end_page(&mut self, walk: &mut Walk, next: Option<TaskSpec>) -> Result<(), Halt> {
        self.cutter.note(walk.notes());
        self.send(next)
    }

    fn names(mut self, list: &NameList, start: u64) -> Result<(), Halt> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        // With their contents, directories bring what is named below them.
        let recursive = self.manner.recursive;
        let all: HashSet<&RelPath> = list.names.iter().filter(|_| recursive).collect();
        for (index, name) in list.names.iter().enumerate().skip(start) {
            if !self.comes_with_another(name, &all) {
                self.name(name)?;
            }
            if self.is_due() {
                self.send(Some(TaskSpec::List { start: index as u64 + 1 }))?;
            }
        }
        self.send(None)
    }

    /// Whether a directory above `name` is one of `names`.
    fn comes_with_another(&self, name: &RelPath, names: &HashSet<&RelPath>) -> bool {
        let links = self.manner.links;
        let is_dir =
            |path: &RelPath| self.source.find(path, links).is_ok_and(|(entry, _)| entry.is_dir());
        let mut above = name.parent().filter(|_| !names.is_empty());
        while let Some(dir) = above {
            if names.contains::<RelPath>(&dir) && is_dir(&dir) {
                return true;
            }
            above = dir.parent();
        }
        false
    }

    /// An entry can't be read. Where that is because this host is out of descriptors or memory, nothing
    /// is said of it: whoever goes on from the last page finds it again.
    fn fail(&mut self, error: FsError) -> Result<(), Halt> {
        let told = error.to_file_error();
        if told.is_shortage() {
            return Err(Halt::Failed(error));
        }
        self.cutter.fail(told);
        Ok(())
    }

    fn name(&mut self, name: &RelPath) -> Result<(), Halt> {
        let Manner { filter, links, recursive, .. } = &self.manner;
        let (entry, dirs) = match self.source.find(name, *links) {
            Ok(found) => found,
            Err(failed) => {
                let mut error = failed.to_file_error();
                if error.is_shortage() {
                    return Err(Halt::Failed(failed));
                }
                // What was named, also where it is something above it that stands in the way.
                error.path = BytePath(name.as_bytes().to_vec());
                // It was never seen, so it did not vanish: somebody named what is not there.
                if error.class == ErrorClass::Vanished {
                    error.class = ErrorClass::Permanent;
                }
                self.cutter.fail(error);
                return Ok(());
            }
        };
        if filter.leaves_out_with_parents(name, entry.is_dir()) || filter.is_beyond(&entry) {
            return Ok(());
        }
        if *links == Links::Skip && matches!(entry.kind, Kind::Symlink { .. }) {
            self.leave_out(LINKS_LEFT_OUT, &entry);
            return Ok(());
        }
        if entry.is_dir() && *recursive {
            self.cutter.give_away(name.clone());
            if name.is_root() {
                // Whoever walks the root says what it is.
                return Ok(());
            }
        }
        self.cutter.add(entry, &dirs);
        Ok(())
    }

    fn leave_out(&mut self, cause: &str, entry: &Entry) {
        let mut notes = Notes::new();
        notes.entry(cause.to_owned()).or_default().add(entry.path.as_bytes());
        self.cutter.note(notes);
    }

    fn is_due(&self) -> bool {
        self.cutter.is_full() || (self.since.elapsed() >= PAGE_TIME && !self.cutter.is_empty())
    }

    fn send(&mut self, next: Option<TaskSpec>) -> Result<(), Halt> {
        self.source.check_root().map_err(Halt::Failed)?;
        let draft = Draft { found: self.cutter.cut(), root: self.root.take(), next };
        self.to.blocking_send(draft).map_err(|_| Halt::Unwanted)?;
        self.since = Instant::now();
        Ok(())
    }
}

/// Whether the contents of `dir`, found by a task that began at `from`, are given away; takes one of
/// `spawn`.
pub fn may_give_away(from: &RelPath, dir: &RelPath, spawn: &AtomicU32) -> bool {
    let depth = dir.components().count().saturating_sub(from.components().count());
    (1..=SPAWN_DEPTH).contains(&depth)
        && spawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
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
        assert_eq!(run(&dir, all(), &pages).await, ScanEnd::Told);
        let entries = pages.entries();
        assert_eq!(entries.len(), 1 + 5 + 5000);
        assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), entries.len());
        assert_eq!(entries[..3], ["", "d0", "d0/f0000"]);
        let pages = pages.pages.lock().unwrap();
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
            let pages = Kept::answering(vec![reply(PageAction::Hold, 0)]);
            assert_eq!(run(&dir, listing, &pages).await, ScanEnd::Told);
            assert_eq!(pages.pages.lock().unwrap().len(), 1);
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
        let given: Vec<RelPath> =
            pages.pages.lock().unwrap().iter().flat_map(|p| p.spawn.clone()).collect();
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
        assert_eq!(run(&dir, all(), &pages).await, ScanEnd::Told);
        assert_eq!(pages.pages.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_root_that_is_missing_fails_the_scan_and_a_subtree_that_is_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pages = Kept::default();
        let gone = tree(dir.path());
        fs::create_dir(dir.path().join("src")).unwrap();
        let subtree = Listing::Subtree { dir: RelPath::new("nowhere").unwrap(), cursor: None };
        assert_eq!(run(&dir, subtree, &pages).await, ScanEnd::Told);
        let page = pages.last();
        assert_eq!((page.errors.len(), page.next.clone()), (1, None));
        assert_eq!(page.errors[0].path.0, b"nowhere");
        drop(gone);
        let below = crate::fs::Tree::new(
            crate::fs::Root::open(&crate::agent::testing::abs(dir.path())).unwrap(),
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
        let list = NameList { names: names.to_vec() };
        let pages = Kept::default();
        let listing = Listing::Names { list: list.clone(), start: 0 };
        assert_eq!(run(&dir, listing, &pages).await, ScanEnd::Told);
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
        let root = crate::fs::Root::open(&crate::agent::testing::abs(dir.path())).unwrap();
        let file = crate::fs::Tree::new(root, RelPath::new("f").unwrap());
        let pages = Kept::default();
        assert_eq!(
            scan(file, all(), Manner::default(), 1 << 20, Digest([0; 32]), &pages).await,
            ScanEnd::Told
        );
        assert_eq!(pages.entries(), [""]);
    }

    async fn run_with(dir: &TempDir, listing: Listing, manner: Manner) -> Kept {
        let pages = Kept::default();
        let end = scan(tree(dir.path()), listing, manner, 1 << 20, Digest([3; 32]), &pages).await;
        assert_eq!(end, ScanEnd::Told);
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
        for (name, content) in [("a/b/c", "c"), ("a/b.tmp", "t"), ("a/empty", ""), ("logs/x", "x")]
        {
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
        let notes = pages.last().notes;
        assert_eq!((notes.len(), notes[LINKS_LEFT_OUT].paths[0].0.as_slice()), (1, &b"to"[..]));
    }

    #[tokio::test]
    async fn a_list_is_filtered_by_all_that_is_above_its_names() {
        let dir = small();
        let names = ["logs/x", "a/b.tmp", "a/b/c", "a/empty", "to"];
        let list = NameList { names: names.map(|n| RelPath::new(n).unwrap()).to_vec() };
        let manner = Manner { links: Links::Skip, ..but(&["*.tmp", "logs/", "!logs/x"]) };
        let pages = run_with(&dir, Listing::Names { list, start: 0 }, manner).await;
        assert_eq!(pages.entries(), ["a/b/c"]);
        assert_eq!((pages.last().errors, pages.last().notes[LINKS_LEFT_OUT].count), (vec![], 1));
    }

    #[tokio::test]
    async fn a_listed_directory_is_given_away_with_all_that_is_in_it_and_listed_once() {
        let dir = small();
        let list = |names: &[&str]| {
            let names = names.iter().map(|n| RelPath::new(n).unwrap()).collect();
            Listing::Names { list: NameList { names }, start: 0 }
        };
        let manner = || Manner { recursive: true, ..Manner::default() };
        let pages = run_with(&dir, list(&["a/b/c", "a", "logs/x", "to"]), manner()).await;
        assert_eq!(pages.entries(), ["a", "logs/x", "to"]);
        assert_eq!(pages.last().spawn, [RelPath::new("a").unwrap()]);
        let root = run_with(&dir, list(&["a/b/c", ""]), manner()).await;
        assert_eq!((root.entries().len(), root.last().spawn), (0, vec![RelPath::root()]));
        let plain = run_with(&dir, list(&["a", "a/b/c"]), Manner::default()).await;
        assert_eq!(
            (plain.entries(), plain.last().spawn),
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
}
