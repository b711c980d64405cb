//! The model of the data: the contents of the sources, and which of it is at the destinations, on
//! the disk or in the cache of a host. The scheduler is checked against it.

use super::rng::SimRng;
use super::*;

/// Pages of a walk over extraneous entries.
pub(super) const PRUNE_PAGES: usize = 3;
/// The length of a range of a large file.
pub(super) const RANGE: u64 = 1 << 20;

/// An entry of a source, by its place in [`Tree::entries`].
pub(super) type Id = u32;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) dir: bool,
    pub(super) size: u64,
}

/// What a page of a walk contains.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Batch(Vec<Id>),
    Large { id: Id, group: Option<Digest> },
}

/// A source. It never changes.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) entries: Vec<Kind>,
    pub(super) pages: Vec<Vec<Item>>,
    /// Subtrees, each a range of pages, that a walk of the whole tree may split off.
    pub(super) subtrees: Vec<(usize, usize)>,
}

impl Tree {
    pub(super) fn generate(chance: &mut SimRng) -> Tree {
        let mut tree = Tree { entries: vec![], pages: vec![], subtrees: vec![] };
        for _ in 0..chance.within(1, 8) {
            let items = chance.below(4);
            let page = (0..items).map(|_| tree.item(chance)).collect();
            tree.pages.push(page);
        }
        let mut at = 1;
        while at < tree.pages.len() {
            let end = (at + chance.within(1, 3) as usize).min(tree.pages.len());
            if chance.permille(600) {
                tree.subtrees.push((at, end));
            }
            at = end;
        }
        tree
    }

    fn item(&mut self, chance: &mut SimRng) -> Item {
        if chance.permille(300) {
            let size = chance.within(1, 6) * RANGE - 5;
            let group = chance.permille(500).then(|| Digest([chance.below(2) as u8; 32]));
            return Item::Large { id: self.entry(false, size), group };
        }
        let files = chance.within(0, 5);
        let mut batch: Vec<Id> = (0..files).map(|_| self.entry(false, 10)).collect();
        batch.extend((0..chance.below(3)).map(|_| self.entry(true, 0)));
        if batch.is_empty() {
            batch.push(self.entry(false, 10));
        }
        Item::Batch(batch)
    }

    fn entry(&mut self, dir: bool, size: u64) -> Id {
        self.entries.push(Kind { dir, size });
        (self.entries.len() - 1) as Id
    }

    /// Files, directories and bytes of some entries.
    pub(super) fn sum(&self, ids: &[Id]) -> (u64, u64, u64) {
        let mut sum = (0, 0, 0);
        for kind in ids.iter().filter_map(|id| self.entries.get(*id as usize)) {
            sum.0 += u64::from(!kind.dir);
            sum.1 += u64::from(kind.dir);
            sum.2 += kind.size;
        }
        sum
    }

    /// All entries of some pages, each as often as it is found.
    pub(super) fn of_pages(&self, pages: impl Iterator<Item = usize>) -> Vec<Id> {
        let items = pages.flat_map(|at| &self.pages[at]);
        let ids = items.flat_map(|item| match item {
            Item::Batch(ids) => ids.clone(),
            Item::Large { id, .. } => vec![*id],
        });
        ids.collect()
    }

    /// What an agent sends for an item.
    pub(super) fn work(&self, item: &Item) -> WorkItem {
        match item {
            Item::Batch(ids) => self.batch(ids),
            Item::Large { id, group } => WorkItem::Large {
                manifest: manifest(&[*id]),
                size: self.entries[*id as usize].size,
                range_length: RANGE,
                hardlink_group: *group,
            },
        }
    }

    pub(super) fn batch(&self, ids: &[Id]) -> WorkItem {
        let (files, dirs, bytes) = self.sum(ids);
        WorkItem::Copy { manifest: manifest(ids), files, dirs, bytes }
    }
}

/// A manifest of this model: the scheduler does not look into it.
fn manifest(ids: &[Id]) -> Base64Bytes {
    Base64Bytes(ids.iter().flat_map(|id| id.to_le_bytes()).collect())
}

/// … and back.
pub(super) fn ids(manifest: &[u8]) -> Vec<Id> {
    manifest.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

/// Something that is in the cache of a host only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WriteMark {
    pub(super) host: usize,
    /// The sync that wrote it …
    pub(super) sync: u32,
    /// … and under which assignment.
    pub(super) by: AssignmentId,
}

/// An entry that the source does not have.
#[derive(Debug, Clone, Default)]
pub(super) struct Extra {
    /// Deleted, and not there again unless this is lost.
    pub(super) deleted: Option<BTreeSet<WriteMark>>,
    /// The writer of a deletion that a reboot undid.
    pub(super) lost: BTreeSet<WriteMark>,
}

/// A destination.
#[derive(Debug, Default, Clone)]
pub(super) struct StorageModel {
    /// Complete entries under their own names, each with what of it is not on the disk yet.
    pub(super) there: BTreeMap<Id, BTreeSet<WriteMark>>,
    /// Part files by the life of the sync and the entry: ranges by their offsets.
    pub(super) parts: BTreeMap<(u32, Id), BTreeMap<u64, WriteMark>>,
    pub(super) extras: Vec<Extra>,
    /// Syncs that keep something for the names of one file.
    pub(super) kept: BTreeSet<u32>,
    /// The writer of what a reboot undid.
    pub(super) lost: BTreeMap<Id, BTreeSet<WriteMark>>,
}

impl StorageModel {
    pub(super) fn generate(chance: &mut SimRng) -> StorageModel {
        let extras = vec![Extra::default(); chance.below(3 * PRUNE_PAGES as u64) as usize];
        StorageModel { extras, ..StorageModel::default() }
    }

    /// Writes an entry unless it is there. Whether it was written.
    pub(super) fn write(&mut self, id: Id, mark: WriteMark) -> bool {
        if self.there.contains_key(&id) {
            return false;
        }
        self.there.insert(id, BTreeSet::from([mark]));
        true
    }

    /// What a host wrote is on the disk now.
    pub(super) fn flush(&mut self, host: usize) {
        let elsewhere = |mark: &WriteMark| mark.host != host;
        self.there.values_mut().for_each(|marks| marks.retain(elsewhere));
        for extra in &mut self.extras {
            extra.deleted.iter_mut().for_each(|marks| marks.retain(elsewhere));
        }
        // A range keeps its mark: the commit that publishes it comes first, or it is of no use.
    }

    /// A host lost power: what it had not flushed is gone, or was written back in time.
    pub(super) fn lose_unflushed(&mut self, host: usize, chance: &mut SimRng) {
        let ids: Vec<Id> = self.there.keys().copied().collect();
        for id in ids {
            let Some(marks) = self.there.get_mut(&id) else { continue };
            let hit: BTreeSet<WriteMark> =
                marks.iter().filter(|m| m.host == host).copied().collect();
            if hit.is_empty() {
                continue;
            }
            if chance.permille(600) {
                self.there.remove(&id);
                self.lost.insert(id, hit);
            } else {
                marks.retain(|m| m.host != host);
            }
        }
        for part in self.parts.values_mut() {
            part.retain(|_, mark| mark.host != host);
        }
        for extra in &mut self.extras {
            let Some(marks) = &mut extra.deleted else { continue };
            let hit: BTreeSet<WriteMark> =
                marks.iter().filter(|m| m.host == host).copied().collect();
            if !hit.is_empty() && chance.permille(600) {
                (extra.lost, extra.deleted) = (hit, None);
            } else {
                marks.retain(|m| m.host != host);
            }
        }
    }
}
