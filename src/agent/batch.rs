//! Cutting what a walk finds into batches, large files and pages.

use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::options::EntryWarnings;
use crate::wire::sync::FileError;
use crate::wire::task::{Base64Bytes, WorkItem, range_length};
use crate::wire::{Digest, RelPath};
use std::collections::HashSet;

/// At most this many entries stand in a batch, and about as many in a page.
pub const BATCH_ENTRIES: usize = 2048;
/// At most this many pieces of work stand in a page (small chunks make small batches).
const PAGE_WORK: usize = 16;
/// A page, and a batch, is cut when its manifests are about this long, in bytes.
const PAGE_BYTES: usize = 1 << 20;
/// At most this many errors stand in a page.
const PAGE_ERRORS: usize = 1000;
/// At most this many subtrees are given away with a page.
pub const PAGE_SPAWN: usize = 1024;
/// Encoded, an entry is its path, its attributes and no more than this.
const ENTRY_COST: usize = 88;
/// … an attribute its name, its value and no more than this.
const XATTR_COST: usize = 12;

/// What goes into one page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Batches and large files.
    pub work: Vec<WorkItem>,
    /// Subtrees given away.
    pub spawn: Vec<RelPath>,
    /// What could not be read.
    pub errors: Vec<FileError>,
    /// How many of those are directories that could not be entered or listed.
    pub unlisted: u64,
    /// What was left out.
    pub notes: EntryWarnings,
}

/// Gathers entries in the order of the walk.
pub struct Cutter {
    chunk: u64,
    /// Files of any length stand in batches.
    uncut: bool,
    /// See [`Cutter::by_data`].
    by_data: bool,
    found: Found,
    batch: Manifest,
    /// The paths of `batch.dirs`.
    known: HashSet<RelPath>,
    /// Content bytes in the batch, without holes.
    bytes: u64,
    /// About how long the batch is, encoded.
    cost: usize,
    /// … all that is in `found`.
    page_cost: usize,
    page_entries: usize,
}

impl Cutter {
    /// Cuts batches of at most `chunk` bytes of content, and files longer than that into ranges.
    pub fn new(chunk: u64) -> Self {
        Cutter {
            chunk,
            uncut: false,
            by_data: false,
            found: Found::default(),
            batch: Manifest::default(),
            known: HashSet::new(),
            bytes: 0,
            cost: 0,
            page_cost: 0,
            page_entries: 0,
        }
    }

    /// The same, but no file is cut: none of them is going to be sent.
    pub fn uncut(chunk: u64) -> Self {
        Cutter { uncut: true, ..Cutter::new(chunk) }
    }

    /// The same; files with holes are cut by their data ([`Entry::stored_bytes`]), where that is to be: holes cost
    /// nothing unless they are hashed. A file of little data stands in a batch, the ranges of others are
    /// longer.
    pub fn by_data(self, by_data: bool) -> Self {
        Cutter { by_data, ..self }
    }

    /// Adds an entry below the directories `dirs`, the root first.
    pub fn add(&mut self, entry: Entry, dirs: &[ManifestDir]) {
        self.page_entries += 1;
        let size = entry.size();
        let stored = entry.stored_bytes.filter(|stored| self.by_data && *stored < size);
        let content = stored.unwrap_or(size);
        // Of the mean density, a range has a chunk of data.
        let times = size.checked_div(content.max(1)).unwrap_or(1).max(1);
        let range = range_length(size, self.chunk.saturating_mul(times));
        if size > range && !self.uncut {
            let group = entry.is_hardlinked.then(|| names_of(&entry));
            let manifest = Manifest { dirs: dirs.to_vec(), entries: vec![entry] }.encode();
            self.page_cost += manifest.len();
            self.found.work.push(WorkItem::Large {
                manifest: Base64Bytes(manifest),
                size,
                range_length: range,
                hardlink_group: group,
            });
            return;
        }
        if self.batch.entries.len() == BATCH_ENTRIES
            || self.bytes + content > self.chunk
            || self.cost >= PAGE_BYTES
        {
            self.close();
        }
        // The way down is mostly the one of the entry before; its last directory tells.
        if !dirs.last().is_none_or(|parent| self.known.contains(&parent.path)) {
            for dir in dirs {
                if self.known.insert(dir.path.clone()) {
                    self.cost += dir.path.as_bytes().len() + ENTRY_COST;
                    self.batch.dirs.push(dir.clone());
                }
            }
        }
        self.bytes += content;
        self.cost += cost(&entry);
        self.batch.entries.push(entry);
    }

    /// Adds an entry that could not be read.
    pub fn fail(&mut self, error: FileError) {
        self.found.errors.push(error);
    }

    /// Adds a directory that could not be entered or listed.
    pub fn fail_listing(&mut self, error: FileError) {
        self.found.unlisted += 1;
        self.fail(error);
    }

    /// Adds what was left out.
    pub fn note(&mut self, notes: EntryWarnings) {
        for (cause, note) in notes {
            self.found.notes.entry(cause).or_default().merge(note);
        }
    }

    /// Gives the contents of the directory `dir` away.
    pub fn give_away(&mut self, dir: RelPath) {
        self.found.spawn.push(dir);
    }

    /// Whether there is enough for a page.
    pub fn is_full(&self) -> bool {
        self.page_entries >= BATCH_ENTRIES
            || self.found.work.len() >= PAGE_WORK
            || self.page_cost + self.cost >= PAGE_BYTES
            || self.found.errors.len() >= PAGE_ERRORS
            || self.found.spawn.len() >= PAGE_SPAWN
    }

    /// Whether there is nothing to post.
    pub fn is_empty(&self) -> bool {
        self.page_entries == 0 && self.found == Found::default()
    }

    /// Everything since the last cut.
    pub fn cut(&mut self) -> Found {
        self.close();
        (self.page_cost, self.page_entries) = (0, 0);
        std::mem::take(&mut self.found)
    }

    fn close(&mut self) {
        self.known.clear();
        (self.bytes, self.cost) = (0, 0);
        let batch = std::mem::take(&mut self.batch);
        if !batch.entries.is_empty() {
            let item = copy_item(&batch);
            if let WorkItem::Copy { manifest, .. } = &item {
                self.page_cost += manifest.0.len();
            }
            self.found.work.push(item);
        }
    }
}

fn cost(entry: &Entry) -> usize {
    let text = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let real = entry.content_path.as_ref().map_or(0, |path| path.as_bytes().len());
    let xattrs = entry.xattrs.iter().map(|x| x.name.len() + x.value.len() + XATTR_COST);
    entry.path.as_bytes().len() + text + real + xattrs.sum::<usize>() + ENTRY_COST
}

/// What all names of the file of `entry` have in common.
fn names_of(entry: &Entry) -> Digest {
    let ident = minicbor::to_vec(entry.version).unwrap_or_default();
    blake3::hash(&ident).into()
}

/// A batch as work.
pub fn copy_item(batch: &Manifest) -> WorkItem {
    let dirs = batch.dir_count();
    WorkItem::Copy {
        manifest: Base64Bytes(batch.encode()),
        files: batch.entries.len() as u64 - dirs,
        dirs,
        bytes: batch.content_bytes(),
    }
}

/// One entry as work of its own: a batch, or a large file; see [`Cutter::by_data`].
pub fn single(entry: Entry, dirs: &[ManifestDir], chunk: u64, by_data: bool) -> Option<WorkItem> {
    let mut cutter = Cutter::new(chunk).by_data(by_data);
    cutter.add(entry, dirs);
    cutter.cut().work.pop()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::{EntryKind, FileVersion, Meta};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn meta() -> Meta {
        Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 1, mtime_nsec: 2 }
    }

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry::new(RelPath::new(path).unwrap(), kind, meta(), FileVersion::default())
    }

    fn file(path: &str, size: u64) -> Entry {
        entry(path, EntryKind::File { size })
    }

    fn chain(path: &str) -> Vec<ManifestDir> {
        let mut dirs = vec![ManifestDir { path: RelPath::root(), meta: meta() }];
        let path = RelPath::new(path).unwrap();
        let parts: Vec<&[u8]> = path.components().collect();
        for n in 1..parts.len() {
            let path = RelPath::new(parts[..n].join(&b'/')).unwrap();
            dirs.push(ManifestDir { path, meta: meta() });
        }
        dirs
    }

    fn add(cutter: &mut Cutter, e: Entry) {
        let dirs = chain(std::str::from_utf8(e.path.as_bytes()).unwrap());
        cutter.add(e, &dirs);
    }

    fn paths(manifest: &Manifest) -> Vec<String> {
        manifest.entries.iter().map(|e| e.path.to_string()).collect()
    }

    fn dirs(manifest: &Manifest) -> Vec<String> {
        manifest.dirs.iter().map(|d| d.path.to_string()).collect()
    }

    fn read(item: &WorkItem) -> Manifest {
        match item {
            WorkItem::Copy { manifest, .. } | WorkItem::Large { manifest, .. } => {
                Manifest::decode(&manifest.0).unwrap()
            }
        }
    }

    #[test]
    fn a_batch_ends_at_the_chunk_and_names_just_its_directories() {
        let mut cutter = Cutter::new(4 * MIB);
        for (path, size) in [("a/x", 2 * MIB), ("a/b/y", 2 * MIB), ("c/z", 1), ("w", 4 * MIB)] {
            add(&mut cutter, file(path, size));
        }
        add(&mut cutter, entry("zd", EntryKind::Dir));
        let found = cutter.cut();
        let manifests: Vec<Manifest> = found.work.iter().map(read).collect();
        assert_eq!(manifests.len(), 3);
        assert_eq!(paths(&manifests[0]), ["a/x", "a/b/y"]);
        assert_eq!(dirs(&manifests[0]), ["", "a", "a/b"]);
        assert_eq!(
            (paths(&manifests[1]), dirs(&manifests[1])),
            (vec!["c/z".into()], vec!["".into(), "c".into()])
        );
        assert_eq!(paths(&manifests[2]), ["w", "zd"]);
        let WorkItem::Copy { files, dirs, bytes, .. } = &found.work[2] else { panic!() };
        assert_eq!((*files, *dirs, *bytes), (1, 1, 4 * MIB));
        assert!(cutter.is_empty());
    }

    #[test]
    fn a_file_of_more_than_one_range_is_work_of_its_own() {
        let mut cutter = Cutter::new(3 * MIB);
        add(&mut cutter, file("small", 2 * MIB));
        add(&mut cutter, file("d/large", 2 * MIB + 1));
        add(&mut cutter, file("tail", 1));
        let found = cutter.cut();
        let WorkItem::Large { size, range_length, manifest, .. } = &found.work[0] else { panic!() };
        assert_eq!((*size, *range_length), (2 * MIB + 1, 2 * MIB));
        let manifest = Manifest::decode(&manifest.0).unwrap();
        assert_eq!(
            (paths(&manifest), dirs(&manifest)),
            (vec!["d/large".into()], vec!["".into(), "d".into()])
        );
        assert_eq!(paths(&read(&found.work[1])), ["small", "tail"]);
        assert_eq!(found.work.len(), 2);
    }

    #[test]
    fn a_file_with_holes_is_cut_by_its_data_unless_digests_are_wanted() {
        let sparse =
            |path: &str, stored| Entry { stored_bytes: Some(stored), ..file(path, 1 << 40) };
        let add_all = |mut cutter: Cutter| {
            for (path, stored) in [("none", 0), ("little", 3 * MIB), ("more", 9 * MIB)] {
                add(&mut cutter, sparse(path, stored));
            }
            cutter.cut().work
        };
        let work = add_all(Cutter::new(4 * MIB).by_data(true));
        let WorkItem::Large { range_length: range, .. } = &work[0] else { panic!() };
        // 9 MiB of data in a terabyte: a quarter of it has some 2 MiB, a half would have 4.5.
        assert_eq!(*range, 1 << 38);
        assert_eq!(paths(&read(&work[1])), ["none", "little"]);
        let lengths: Vec<u64> = add_all(Cutter::new(4 * MIB))
            .iter()
            .map(|item| match item {
                WorkItem::Large { range_length, .. } => *range_length,
                WorkItem::Copy { .. } => panic!("{item:?}"),
            })
            .collect();
        assert_eq!(lengths, [range_length(1 << 40, 4 * MIB); 3]);
    }

    #[test]
    fn a_page_is_full_after_enough_of_anything() {
        let mut many = Cutter::new(64 * MIB);
        for i in 0..BATCH_ENTRIES {
            assert!(!many.is_full(), "{i}");
            add(&mut many, file(&format!("f{i:05}"), 0));
        }
        assert!(many.is_full());
        let found = many.cut();
        assert_eq!(found.work.len(), 1);
        assert!(!many.is_full());

        let mut large = Cutter::new(MIB);
        for i in 0..PAGE_WORK {
            assert!(!large.is_full());
            add(&mut large, file(&format!("f{i}"), 2 * MIB));
        }
        assert!(large.is_full());

        let mut long = Cutter::new(MIB);
        let mut names = 0;
        while !long.is_full() {
            add(
                &mut long,
                entry(&format!("l{names}"), EntryKind::Symlink { target: vec![b'x'; 4000] }),
            );
            names += 1;
        }
        assert!(names < 300, "{names}");
        assert!(names * 4000 > PAGE_BYTES * 9 / 10, "{names}: it is full too early");
    }

    #[test]
    fn the_cost_of_an_entry_is_that_of_all_its_texts() {
        use crate::wire::manifest::Xattr;
        let mut all = entry("four", EntryKind::Symlink { target: vec![b'x'; 100] });
        assert_eq!(cost(&all), 4 + 100 + ENTRY_COST);
        let xattr = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        all.xattrs = vec![xattr("user.a", "0123456789"), xattr("user.bc", "")];
        assert_eq!(cost(&all), 4 + 100 + ENTRY_COST + 6 + 10 + 7 + 2 * XATTR_COST);
    }

    #[test]
    fn the_root_itself_stands_in_a_batch_without_directories() {
        let mut cutter = Cutter::new(MIB);
        cutter.add(file("", 5), &[]);
        let manifest = read(&cutter.cut().work[0]);
        assert_eq!((manifest.dirs.len(), manifest.entries.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn every_entry_is_in_exactly_one_piece_of_work(
            sizes in proptest::collection::vec(0u64..(3 * MIB), 0..200),
            cuts in proptest::collection::vec(any::<bool>(), 200),
        ) {
            let mut cutter = Cutter::new(2 * MIB);
            let mut all = Vec::new();
            let mut expected = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let e = if size % 7 == 0 {
                    entry(&format!("d{}/e{i:03}", i / 9), EntryKind::Dir)
                } else {
                    file(&format!("d{}/e{i:03}", i / 9), *size)
                };
                expected.push(e.path.clone());
                add(&mut cutter, e);
                if cuts[i] {
                    all.push(cutter.cut());
                }
            }
            all.push(cutter.cut());
            let mut got = Vec::new();
            for item in all.iter().flat_map(|found| &found.work) {
                let manifest = read(item);
                prop_assert!(!manifest.entries.is_empty() && manifest.entries.len() <= BATCH_ENTRIES);
                for e in &manifest.entries {
                    let parent = e.path.parent().unwrap();
                    prop_assert!(manifest.dirs.iter().any(|d| d.path == parent));
                }
                match item {
                    WorkItem::Copy { files, dirs, bytes, .. } => {
                        prop_assert_eq!(files + dirs, manifest.entries.len() as u64);
                        prop_assert_eq!(*bytes, manifest.content_bytes());
                        prop_assert!(*bytes <= 2 * MIB);
                    }
                    WorkItem::Large { size, range_length, .. } => prop_assert!(size > range_length),
                }
                got.extend(manifest.entries.into_iter().map(|e| e.path));
            }
            got.sort();
            expected.sort();
            prop_assert_eq!(got, expected);
        }
    }
}
