//! Groups what a walk finds into batches, large files and pages.

use crate::fs::Tree;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::outcome::EntryError;
use crate::wire::task::{Base64Bytes, ScanPage, WorkItem, range_length};
use crate::wire::{Digest, RelPath};
use std::collections::HashSet;

/// Bound of a batch; a page has about as many.
const MAX_BATCH_ENTRIES: usize = 2048;
/// Small chunks make small batches, and many of them.
const MAX_PAGE_WORK_ITEMS: usize = 16;
/// A page, and a batch, ends when its encoded manifests are about this long.
const MAX_PAGE_BYTES: usize = 1 << 20;
const MAX_PAGE_ERRORS: usize = 1000;
pub(super) const MAX_PAGE_SUBTREES: usize = 1024;
/// An encoded entry is at most this much longer than its path, its link target and its attributes.
const ENTRY_OVERHEAD_BYTES: usize = 88;
/// An encoded attribute is at most this much longer than its name and its value.
const XATTR_OVERHEAD_BYTES: usize = 12;

/// Collects entries in the order of a walk.
#[derive(Default)]
pub(super) struct BatchBuilder {
    chunk_bytes: u64,
    /// Files of any length are in batches, because their content is not sent.
    pub(super) without_ranges: bool,
    /// Sparse files are split by their data ([`Entry::stored_bytes`]): where digests are not requested, holes are not
    /// hashed and cost nothing. A file with little data is in a batch, and the ranges of others are longer.
    pub(super) ranges_by_data: bool,
    page: ScanPage,
    page_entries: usize,
    /// About how long the work items of `page` are.
    page_encoded_bytes: usize,
    batch: Manifest,
    /// The paths of `batch.dirs`.
    batch_dirs: HashSet<RelPath>,
    /// Without holes.
    batch_content_bytes: u64,
    /// About how long `batch` is, encoded.
    batch_encoded_bytes: usize,
}

impl BatchBuilder {
    /// Batches have at most `chunk_bytes` of content, and longer files are split into ranges.
    pub(super) fn new(chunk_bytes: u64) -> Self {
        BatchBuilder { chunk_bytes, ..BatchBuilder::default() }
    }

    /// Measures the data of a sparse file that is split by it.
    pub(super) fn measure_data(&self, source: &Tree, entry: &mut Entry) {
        if self.ranges_by_data {
            source.measure_stored_bytes(entry, self.chunk_bytes);
        }
    }

    /// Adds an entry below the directories `dirs`, which begin with the root.
    pub(super) fn add_entry(&mut self, entry: Entry, dirs: &[ManifestDir]) {
        self.page_entries += 1;
        let size = entry.size();
        let stored = entry.stored_bytes.filter(|stored| self.ranges_by_data && *stored < size);
        let content = stored.unwrap_or(size);
        // With the average density of the file, each range has a chunk of data.
        let times = size.checked_div(content.max(1)).unwrap_or(1).max(1);
        let range_length = range_length(size, self.chunk_bytes.saturating_mul(times));
        if size > range_length && !self.without_ranges {
            let hardlink_group = entry.is_hardlinked.then(|| hardlink_group(&entry));
            let manifest = Manifest { dirs: dirs.to_vec(), entries: vec![entry] }.encode();
            self.page_encoded_bytes += manifest.len();
            let manifest = Base64Bytes(manifest);
            let item = WorkItem::Large { manifest, size, range_length, hardlink_group };
            return self.page.work.push(item);
        }
        if self.batch.entries.len() == MAX_BATCH_ENTRIES
            || self.batch_content_bytes + content > self.chunk_bytes
            || self.batch_encoded_bytes >= MAX_PAGE_BYTES
        {
            self.close_batch();
        }
        // Where the last directory is in the batch, all of them are.
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

    /// `is_listing`: a directory could not be entered or listed.
    pub(super) fn add_error(&mut self, error: EntryError, is_listing: bool) {
        self.page.unlisted_dirs += u64::from(is_listing);
        self.page.errors.push(error);
    }

    pub(super) fn add_warnings(&mut self, warnings: EntryWarnings) {
        merge_warnings(&mut self.page.warnings, warnings);
    }

    /// Leaves the contents of the directory `dir` to a task of their own.
    pub(super) fn split_off(&mut self, dir: RelPath) {
        self.page.subtrees.push(dir);
    }

    pub(super) fn is_full(&self) -> bool {
        self.page_entries >= MAX_BATCH_ENTRIES
            || self.page.work.len() >= MAX_PAGE_WORK_ITEMS
            || self.page_encoded_bytes + self.batch_encoded_bytes >= MAX_PAGE_BYTES
            || self.page.errors.len() >= MAX_PAGE_ERRORS
            || self.page.subtrees.len() >= MAX_PAGE_SUBTREES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.page_entries == 0 && self.page == ScanPage::default()
    }

    /// A page with everything that was added since the last one.
    pub(super) fn take_page(&mut self) -> ScanPage {
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

pub(super) fn merge_warnings(into: &mut EntryWarnings, warnings: EntryWarnings) {
    for (cause, warning) in warnings {
        into.entry(cause).or_default().merge(warning);
    }
}

/// An upper bound.
fn encoded_size(entry: &Entry) -> usize {
    let target = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let content_path = entry.content_path.as_ref().map_or(0, |path| path.as_bytes().len());
    let xattrs = entry.xattrs.iter().map(|x| x.name.len() + x.value.len() + XATTR_OVERHEAD_BYTES);
    let xattrs: usize = xattrs.sum();
    entry.path.as_bytes().len() + target + content_path + xattrs + ENTRY_OVERHEAD_BYTES
}

/// The same value for all names of one file.
fn hardlink_group(entry: &Entry) -> Digest {
    let version = minicbor::to_vec(entry.version).unwrap_or_default();
    blake3::hash(&version).into()
}

pub(super) fn copy_item(batch: &Manifest) -> WorkItem {
    let dirs = batch.dir_count();
    WorkItem::Copy {
        manifest: Base64Bytes(batch.encode()),
        files: batch.entries.len() as u64 - dirs,
        dirs,
        bytes: batch.content_bytes(),
    }
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
        let work = add_all(BatchBuilder { ranges_by_data: true, ..BatchBuilder::new(4 * MIB) });
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
