//! Cutting what a walk finds into batches, large files and pages.

use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::options::EntryWarnings;
use crate::wire::sync::FileError;
use crate::wire::task::{Base64Bytes, WorkItem, range_length};
use crate::wire::{Digest, RelPath};
use std::collections::HashSet;

/// At most this many entries stand in a batch, and about as many in a page.
pub const MAX_BATCH_ENTRIES: usize = 2048;
/// At most this many pieces of work stand in a page (small chunks make small batches).
const MAX_PAGE_WORK_ITEMS: usize = 16;
/// A page, and a batch, is cut when its manifests are about this long, in bytes.
const MAX_PAGE_BYTES: usize = 1 << 20;
/// At most this many errors stand in a page.
const MAX_PAGE_ERRORS: usize = 1000;
/// At most this many subtrees are given away with a page.
pub const MAX_PAGE_SUBTREES: usize = 1024;
/// Encoded, an entry is its path, its attributes and no more than this.
const ENTRY_OVERHEAD_BYTES: usize = 88;
/// … an attribute its name, its value and no more than this.
const XATTR_OVERHEAD_BYTES: usize = 12;

/// What goes into one page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PageContent {
    /// Batches and large files.
    pub work: Vec<WorkItem>,
    /// Subtrees given away.
    pub subtrees: Vec<RelPath>,
    /// What could not be read.
    pub errors: Vec<FileError>,
    /// How many of those are directories that could not be entered or listed.
    pub unlisted_dirs: u64,
    /// What was left out.
    pub notes: EntryWarnings,
}

/// Gathers entries in the order of the walk.
pub struct BatchBuilder {
    chunk_bytes: u64,
    /// Files of any length stand in batches.
    without_ranges: bool,
    /// See [`BatchBuilder::ranges_by_data`].
    ranges_by_data: bool,
    page: PageContent,
    batch: Manifest,
    /// The paths of `batch.dirs`.
    batch_dirs: HashSet<RelPath>,
    /// Content bytes in the batch, without holes.
    batch_content_bytes: u64,
    /// About how long the batch is, encoded.
    batch_encoded_bytes: usize,
    /// … all that is in `found`.
    page_encoded_bytes: usize,
    page_entries: usize,
}

impl BatchBuilder {
    /// Cuts batches of at most `chunk` bytes of content, and files longer than that into ranges.
    pub fn new(chunk: u64) -> Self {
        BatchBuilder {
            chunk_bytes: chunk,
            without_ranges: false,
            ranges_by_data: false,
            page: PageContent::default(),
            batch: Manifest::default(),
            batch_dirs: HashSet::new(),
            batch_content_bytes: 0,
            batch_encoded_bytes: 0,
            page_encoded_bytes: 0,
            page_entries: 0,
        }
    }

    /// The same, but no file is cut: none of them is going to be sent.
    pub fn without_ranges(chunk: u64) -> Self {
        BatchBuilder { without_ranges: true, ..BatchBuilder::new(chunk) }
    }

    /// The same; files with holes are cut by their data ([`Entry::stored`]), where that is to be: holes cost
    /// nothing unless they are hashed. A file of little data stands in a batch, the ranges of others are
    /// longer.
    pub fn ranges_by_data(self, by_data: bool) -> Self {
        BatchBuilder { ranges_by_data: by_data, ..self }
    }

    /// Adds an entry below the directories `dirs`, the root first.
    pub fn add_entry(&mut self, entry: Entry, dirs: &[ManifestDir]) {
        self.page_entries += 1;
        let size = entry.size();
        let stored = entry.stored_bytes.filter(|stored| self.ranges_by_data && *stored < size);
        let content = stored.unwrap_or(size);
        // Of the mean density, a range has a chunk of data.
        let times = size.checked_div(content.max(1)).unwrap_or(1).max(1);
        let range = range_length(size, self.chunk_bytes.saturating_mul(times));
        if size > range && !self.without_ranges {
            let group = entry.is_hardlinked.then(|| hardlink_group(&entry));
            let manifest = Manifest { dirs: dirs.to_vec(), entries: vec![entry] }.encode();
            self.page_encoded_bytes += manifest.len();
            self.page.work.push(WorkItem::Large {
                manifest: Base64Bytes(manifest),
                size,
                range_length: range,
                hardlink_group: group,
            });
            return;
        }
        if self.batch.entries.len() == MAX_BATCH_ENTRIES
            || self.batch_content_bytes + content > self.chunk_bytes
            || self.batch_encoded_bytes >= MAX_PAGE_BYTES
        {
            self.close_batch();
        }
        // The way down is mostly the one of the entry before; its last directory tells.
        if !dirs.last().is_none_or(|parent| self.batch_dirs.contains(&parent.path)) {
            for dir in dirs {
                if self.batch_dirs.insert(dir.path.clone()) {
                    self.batch_encoded_bytes += dir.path.as_bytes().len() + ENTRY_OVERHEAD_BYTES;
                    self.batch.dirs.push(dir.clone());
                }
            }
        }
        self.batch_content_bytes += content;
        self.batch_encoded_bytes += encoded_size(&entry);
        self.batch.entries.push(entry);
    }

    /// Adds an entry that could not be read.
    pub fn add_error(&mut self, error: FileError) {
        self.page.errors.push(error);
    }

    /// Adds a directory that could not be entered or listed.
    pub fn add_listing_error(&mut self, error: FileError) {
        self.page.unlisted_dirs += 1;
        self.add_error(error);
    }

    /// Adds what was left out.
    pub fn merge_notes(&mut self, notes: EntryWarnings) {
        for (cause, note) in notes {
            self.page.notes.entry(cause).or_default().merge(note);
        }
    }

    /// Gives the contents of the directory `dir` away.
    pub fn split_off(&mut self, dir: RelPath) {
        self.page.subtrees.push(dir);
    }

    /// Whether there is enough for a page.
    pub fn is_full(&self) -> bool {
        self.page_entries >= MAX_BATCH_ENTRIES
            || self.page.work.len() >= MAX_PAGE_WORK_ITEMS
            || self.page_encoded_bytes + self.batch_encoded_bytes >= MAX_PAGE_BYTES
            || self.page.errors.len() >= MAX_PAGE_ERRORS
            || self.page.subtrees.len() >= MAX_PAGE_SUBTREES
    }

    /// Whether there is nothing to post.
    pub fn is_empty(&self) -> bool {
        self.page_entries == 0 && self.page == PageContent::default()
    }

    /// Everything since the last cut.
    pub fn take_page(&mut self) -> PageContent {
        self.close_batch();
        (self.page_encoded_bytes, self.page_entries) = (0, 0);
        std::mem::take(&mut self.page)
    }

    fn close_batch(&mut self) {
        self.batch_dirs.clear();
        (self.batch_content_bytes, self.batch_encoded_bytes) = (0, 0);
        let batch = std::mem::take(&mut self.batch);
        if !batch.entries.is_empty() {
            let item = copy_item(&batch);
            if let WorkItem::Copy { manifest, .. } = &item {
                self.page_encoded_bytes += manifest.0.len();
            }
            self.page.work.push(item);
        }
    }
}

fn encoded_size(entry: &Entry) -> usize {
    let text = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let real = entry.content_path.as_ref().map_or(0, |path| path.as_bytes().len());
    let xattrs = entry.xattrs.iter().map(|x| x.name.len() + x.value.len() + XATTR_OVERHEAD_BYTES);
    entry.path.as_bytes().len() + text + real + xattrs.sum::<usize>() + ENTRY_OVERHEAD_BYTES
}

/// What all names of the file of `entry` have in common.
fn hardlink_group(entry: &Entry) -> Digest {
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

/// One entry as work of its own: a batch, or a large file; see [`BatchBuilder::ranges_by_data`].
pub fn single_item(
    entry: Entry,
    dirs: &[ManifestDir],
    chunk: u64,
    by_data: bool,
) -> Option<WorkItem> {
    let mut cutter = BatchBuilder::new(chunk).ranges_by_data(by_data);
    cutter.add_entry(entry, dirs);
    cutter.take_page().work.pop()
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

    fn add(cutter: &mut BatchBuilder, e: Entry) {
        let dirs = chain(std::str::from_utf8(e.path.as_bytes()).unwrap());
        cutter.add_entry(e, &dirs);
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
    fn a_batch_ends_at_the_chunk_size_and_holds_only_its_own_directories() {
        let mut cutter = BatchBuilder::new(4 * MIB);
        for (path, size) in [("a/x", 2 * MIB), ("a/b/y", 2 * MIB), ("c/z", 1), ("w", 4 * MIB)] {
            add(&mut cutter, file(path, size));
        }
        add(&mut cutter, entry("zd", EntryKind::Dir));
        let found = cutter.take_page();
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
    fn a_file_of_more_than_one_range_is_a_work_item_of_its_own() {
        let mut cutter = BatchBuilder::new(3 * MIB);
        add(&mut cutter, file("small", 2 * MIB));
        add(&mut cutter, file("d/large", 2 * MIB + 1));
        add(&mut cutter, file("tail", 1));
        let found = cutter.take_page();
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
    fn a_sparse_file_is_split_by_its_data_unless_digests_are_requested() {
        let sparse =
            |path: &str, stored| Entry { stored_bytes: Some(stored), ..file(path, 1 << 40) };
        let add_all = |mut cutter: BatchBuilder| {
            for (path, stored) in [("none", 0), ("little", 3 * MIB), ("more", 9 * MIB)] {
                add(&mut cutter, sparse(path, stored));
            }
            cutter.take_page().work
        };
        let work = add_all(BatchBuilder::new(4 * MIB).ranges_by_data(true));
        let WorkItem::Large { range_length: range, .. } = &work[0] else { panic!() };
        // 9 MiB of data in a terabyte: a quarter of it has some 2 MiB, a half would have 4.5.
        assert_eq!(*range, 1 << 38);
        assert_eq!(paths(&read(&work[1])), ["none", "little"]);
        let lengths: Vec<u64> = add_all(BatchBuilder::new(4 * MIB))
            .iter()
            .map(|item| match item {
                WorkItem::Large { range_length, .. } => *range_length,
                WorkItem::Copy { .. } => panic!("{item:?}"),
            })
            .collect();
        assert_eq!(lengths, [range_length(1 << 40, 4 * MIB); 3]);
    }

    #[test]
    fn a_page_is_full_when_any_of_its_bounds_is_reached() {
        let mut many = BatchBuilder::new(64 * MIB);
        for i in 0..MAX_BATCH_ENTRIES {
            assert!(!many.is_full(), "{i}");
            add(&mut many, file(&format!("f{i:05}"), 0));
        }
        assert!(many.is_full());
        let found = many.take_page();
        assert_eq!(found.work.len(), 1);
        assert!(!many.is_full());

        let mut large = BatchBuilder::new(MIB);
        for i in 0..MAX_PAGE_WORK_ITEMS {
            assert!(!large.is_full());
            add(&mut large, file(&format!("f{i}"), 2 * MIB));
        }
        assert!(large.is_full());

        let mut long = BatchBuilder::new(MIB);
        let mut names = 0;
        while !long.is_full() {
            add(
                &mut long,
                entry(&format!("l{names}"), EntryKind::Symlink { target: vec![b'x'; 4000] }),
            );
            names += 1;
        }
        assert!(names < 300, "{names}");
        assert!(names * 4000 > MAX_PAGE_BYTES * 9 / 10, "{names}: it is full too early");
    }

    #[test]
    fn the_encoded_size_of_an_entry_counts_all_its_variable_parts() {
        use crate::wire::manifest::Xattr;
        let mut all = entry("four", EntryKind::Symlink { target: vec![b'x'; 100] });
        assert_eq!(encoded_size(&all), 4 + 100 + ENTRY_OVERHEAD_BYTES);
        let xattr = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        all.xattrs = vec![xattr("user.a", "0123456789"), xattr("user.bc", "")];
        assert_eq!(
            encoded_size(&all),
            4 + 100 + ENTRY_OVERHEAD_BYTES + 6 + 10 + 7 + 2 * XATTR_OVERHEAD_BYTES
        );
    }

    #[test]
    fn a_batch_with_the_root_itself_has_no_directories() {
        let mut cutter = BatchBuilder::new(MIB);
        cutter.add_entry(file("", 5), &[]);
        let manifest = read(&cutter.take_page().work[0]);
        assert_eq!((manifest.dirs.len(), manifest.entries.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn every_entry_is_in_exactly_one_work_item(
            sizes in proptest::collection::vec(0u64..(3 * MIB), 0..200),
            cuts in proptest::collection::vec(any::<bool>(), 200),
        ) {
            let mut cutter = BatchBuilder::new(2 * MIB);
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
                    all.push(cutter.take_page());
                }
            }
            all.push(cutter.take_page());
            let mut got = Vec::new();
            for item in all.iter().flat_map(|found| &found.work) {
                let manifest = read(item);
                prop_assert!(!manifest.entries.is_empty() && manifest.entries.len() <= MAX_BATCH_ENTRIES);
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
