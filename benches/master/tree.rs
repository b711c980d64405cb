//! The simulated source: files only, in batches of one size, in directories of one level.

use longhaul::wire::RelPath;
use longhaul::wire::manifest::{Entry, EntryKind, FileVersion, Manifest, Meta};
use longhaul::wire::task::{Base64Bytes, Cursor, TaskSpec, WorkItem};

/// The maximum of a real agent.
const MAX_BATCHES_PER_PAGE: u64 = 16;
const BATCHES_PER_DIR: u64 = 160;
const FILE_BYTES: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Tree {
    batches: u64,
    entries_per_batch: u64,
    /// An encoded batch. All are equal: no component reads them.
    manifest: Vec<u8>,
}

/// A page of a scan.
pub(crate) struct Page {
    pub(crate) work: Vec<WorkItem>,
    /// Directories that other workers scan.
    pub(crate) spawn: Vec<RelPath>,
    /// The rest of the scan.
    pub(crate) next: Option<TaskSpec>,
}

impl Tree {
    /// A tree of about `entries` files.
    pub(crate) fn new(entries: u64, per_batch: u64) -> Self {
        let meta = Meta { mode: 0o644, uid: 1000, gid: 1000, mtime_sec: 1 << 30, mtime_nsec: 5 };
        let version = FileVersion { dev: 0, ino: 1 << 40, ctime_sec: 1 << 30, ctime_nsec: 5 };
        let path = |n: u64| RelPath::new(format!("d00000/some-file-of-a-data-set-{n:08}.dat"));
        let entry = |n| {
            path(n)
                .ok()
                .map(|path| Entry::new(path, EntryKind::File { size: FILE_BYTES }, meta, version))
        };
        let entries_of_one = (0..per_batch).filter_map(entry).collect();
        let manifest = Manifest { dirs: Vec::new(), entries: entries_of_one }.encode();
        Tree { batches: entries.div_ceil(per_batch.max(1)), entries_per_batch: per_batch, manifest }
    }

    fn work_item(&self) -> WorkItem {
        WorkItem::Copy {
            manifest: Base64Bytes(self.manifest.clone()),
            files: self.entries_per_batch,
            dirs: 0,
            bytes: self.entries_per_batch * FILE_BYTES,
        }
    }

    /// A source of one batch.
    pub(crate) fn single_batch_page(&self) -> Page {
        Page { work: vec![self.work_item()], spawn: Vec::new(), next: None }
    }

    /// The next page of a scan, with at most `spawn` directories for other workers. `None` if it is no scan of this
    /// tree.
    pub(crate) fn page(&self, at: &TaskSpec, spawn: u32) -> Option<Page> {
        let TaskSpec::Scan { dir, cursor } = at else { return None };
        let dirs = self.batches.div_ceil(BATCHES_PER_DIR);
        // Batches are numbered over all directories; a directory is a range of them.
        let range = number_in_name(dir).map_or(0..self.batches, |d| {
            d * BATCHES_PER_DIR..((d + 1) * BATCHES_PER_DIR).min(self.batches)
        });
        let mut batch = match cursor {
            None => range.start,
            Some(cursor) => number_in_name(&cursor.after)?,
        };
        let mut subtrees = Vec::new();
        while dir.is_root()
            && batch < range.end
            && batch % BATCHES_PER_DIR == 0
            && subtrees.len() < spawn as usize
        {
            let d = batch / BATCHES_PER_DIR;
            subtrees.push(RelPath::new(format!("d{d}")).ok()?);
            batch = ((d + 1).min(dirs) * BATCHES_PER_DIR).min(range.end);
        }
        // A page ends with its directory, so that the next directory can be given to another worker.
        let edge = (batch / BATCHES_PER_DIR + 1) * BATCHES_PER_DIR;
        let until = (batch + MAX_BATCHES_PER_PAGE).min(range.end).min(edge);
        let work = (batch..until).map(|_| self.work_item()).collect();
        let after = RelPath::new(format!("b{until}")).ok()?;
        let cursor = Some(Cursor { after, skip_contents: false });
        let next = (until < range.end).then(|| TaskSpec::Scan { dir: dir.clone(), cursor });
        Some(Page { work, spawn: subtrees, next })
    }
}

/// The number in a name of one letter and digits.
fn number_in_name(path: &RelPath) -> Option<u64> {
    std::str::from_utf8(path.as_bytes()).ok()?.get(1..)?.parse().ok()
}
