//! The model of the data: the contents of the sources, and which of it is at the destinations, on
//! the disk or in the cache of a host, and with which content. The scheduler is checked against it.

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
        // The names of one file have one size.
        let mut sizes = BTreeMap::new();
        for _ in 0..chance.within(1, 8) {
            let items = chance.below(4);
            let page = (0..items).map(|_| tree.item(chance, &mut sizes)).collect();
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

    /// Batches of small files, and large files of so many ranges: a page for each.
    pub(super) fn of_sizes(batches: u32, files: u32, ranges: &[u64]) -> Tree {
        let mut tree = Tree { entries: vec![], pages: vec![], subtrees: vec![] };
        for _ in 0..batches {
            let batch = (0..files).map(|_| tree.entry(false, 10)).collect();
            tree.pages.push(vec![Item::Batch(batch)]);
        }
        for ranges in ranges {
            let id = tree.entry(false, ranges * RANGE - 5);
            tree.pages.push(vec![Item::Large { id, group: None }]);
        }
        tree
    }

    fn item(&mut self, chance: &mut SimRng, sizes: &mut BTreeMap<Digest, u64>) -> Item {
        if chance.permille(300) {
            let size = chance.within(1, 6) * RANGE - 5;
            let group = chance.permille(500).then(|| Digest([chance.below(2) as u8; 32]));
            let size = group.map_or(size, |group| *sizes.entry(group).or_insert(size));
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
                manifest: manifest(&[Row { id: *id, digest: None }]),
                size: self.entries[*id as usize].size,
                range_length: RANGE,
                hardlink_group: *group,
            },
        }
    }

    fn batch(&self, ids: &[Id]) -> WorkItem {
        let rows: Vec<Row> = ids.iter().map(|id| Row { id: *id, digest: None }).collect();
        self.batch_of(&rows)
    }

    pub(super) fn batch_of(&self, rows: &[Row]) -> WorkItem {
        let ids: Vec<Id> = rows.iter().map(|row| row.id).collect();
        let (files, dirs, bytes) = self.sum(&ids);
        WorkItem::Copy { manifest: manifest(rows), files, dirs, bytes }
    }

    /// The names of one large file with several names.
    pub(super) fn names_of(&self, id: Id) -> Vec<Id> {
        let Some(group) = self.group_of(id) else { return vec![] };
        let names = self.pages.iter().flatten().filter_map(|item| match item {
            Item::Large { id, group: Some(of) } if *of == group => Some(*id),
            _ => None,
        });
        names.collect()
    }

    pub(super) fn group_of(&self, wanted: Id) -> Option<Digest> {
        self.pages.iter().flatten().find_map(|item| match item {
            Item::Large { id, group } if *id == wanted => *group,
            _ => None,
        })
    }

    /// The offsets of the ranges of a file.
    pub(super) fn range_offsets(&self, id: Id) -> impl Iterator<Item = u64> {
        (0..self.entries[id as usize].size).step_by(RANGE as usize)
    }
}

/// The content of a file, or of a range of it, as far as it is not that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content(pub(super) u32);

impl Content {
    pub(super) const SOURCE: Content = Content(0);

    /// The digest of the range of a file that has this content.
    pub(super) fn range_digest(self, id: Id, offset: u64) -> Digest {
        let mut digest = [7; 32];
        digest[..4].copy_from_slice(&self.0.to_le_bytes());
        digest[4..8].copy_from_slice(&id.to_le_bytes());
        digest[8..16].copy_from_slice(&offset.to_le_bytes());
        Digest(digest)
    }
}

/// An entry of a manifest, with the content of which it has the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: Id,
    pub(super) digest: Option<Content>,
}

/// A manifest of this model: the scheduler does not look into it.
fn manifest(rows: &[Row]) -> Base64Bytes {
    let words = rows.iter().flat_map(|row| [row.id, row.digest.map_or(0, |c| c.0 + 1)]);
    Base64Bytes(words.flat_map(u32::to_le_bytes).collect())
}

/// … and back.
pub(super) fn rows(manifest: &[u8]) -> Vec<Row> {
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let row = |bytes: &[u8]| Row {
        id: word(&bytes[..4]),
        digest: word(&bytes[4..]).checked_sub(1).map(Content),
    };
    manifest.chunks_exact(8).map(row).collect()
}

/// The entries of a manifest.
pub(super) fn ids(manifest: &[u8]) -> Vec<Id> {
    rows(manifest).into_iter().map(|row| row.id).collect()
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

/// Content at a destination that is not that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) content: Content,
    /// It was right when it was written, and the disk changed it later; or it is of an agent that reports what it has
    /// not done. No sync is to blame that did not compare it later.
    pub(super) is_excused: bool,
    pub(super) since: u64,
    /// The life of the sync that published it, and when; of one with a part file.
    pub(super) published: Option<(u32, u64)>,
}

impl Damage {
    /// Since when a sync can find it: what another one publishes comes to its name then.
    pub(super) fn since_for(&self, life: u32) -> u64 {
        self.published.filter(|(by, _)| *by != life).map_or(self.since, |(_, at)| at)
    }
}

/// A complete entry under its own name.
#[derive(Debug, Default, Clone)]
pub(super) struct Stored {
    /// What of it is not on the disk yet.
    pub(super) marks: BTreeSet<WriteMark>,
    /// By the offsets of its ranges; 0 for a small file.
    pub(super) damage: BTreeMap<u64, Damage>,
}

impl Stored {
    pub(super) fn content_at(&self, offset: u64) -> Content {
        self.damage.get(&offset).map_or(Content::SOURCE, |damage| damage.content)
    }
}

/// A range in a part file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) mark: WriteMark,
    pub(super) damage: Option<Damage>,
}

/// A destination.
#[derive(Debug, Default, Clone)]
pub(super) struct StorageModel {
    pub(super) there: BTreeMap<Id, Stored>,
    /// Part files by the life of the sync and the entry: ranges by their offsets.
    pub(super) parts: BTreeMap<(u32, Id), BTreeMap<u64, Piece>>,
    /// Files of which a part was removed, or lost when a host lost power, and when.
    pub(super) lost_parts: BTreeMap<Id, u64>,
    pub(super) extras: Vec<Extra>,
    /// By the life of the sync and the file: the name that it published or found complete last.
    pub(super) confirmed: BTreeMap<(u32, Digest), Id>,
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

    /// Writes a small file or a directory.
    pub(super) fn write(&mut self, id: Id, mark: WriteMark, damage: Option<Damage>) {
        let damage = damage.into_iter().map(|damage| (0, damage)).collect();
        self.there.insert(id, Stored { marks: BTreeSet::from([mark]), damage });
    }

    /// A host compared an entry: what it sees of the writes of others was written back.
    pub(super) fn read_back(&mut self, id: Id, host: usize) {
        if let Some(stored) = self.there.get_mut(&id) {
            stored.marks.retain(|mark| mark.host == host);
        }
    }

    /// What a relay reads of an entry at an offset: from the part file, if there is one.
    pub(super) fn read(&self, id: Id, offset: u64, may_be_part: bool) -> Option<Content> {
        let mut parts = self.parts.iter().filter(|((_, of), _)| may_be_part && *of == id);
        let piece = parts.find_map(|(_, part)| part.get(&offset));
        let content = |damage: Damage| damage.content;
        let in_part = piece.map(|piece| piece.damage.map_or(Content::SOURCE, content));
        in_part.or_else(|| Some(self.there.get(&id)?.content_at(offset)))
    }

    /// The disk changes what it has of an entry at an offset. False: it has nothing of it.
    pub(super) fn spoil(&mut self, id: Id, offset: u64, damage: Damage) -> bool {
        let parts = self.parts.iter_mut().filter(|((_, of), _)| *of == id);
        let pieces: Vec<&mut Piece> = parts.filter_map(|(_, part)| part.get_mut(&offset)).collect();
        let stored = self.there.get_mut(&id);
        let has_it = stored.is_some() || !pieces.is_empty();
        pieces.into_iter().for_each(|piece| piece.damage = Some(damage));
        if let Some(stored) = stored {
            stored.damage.insert(offset, damage);
        }
        has_it
    }

    /// What a host wrote is on the disk now.
    pub(super) fn flush(&mut self, host: usize) {
        let elsewhere = |mark: &WriteMark| mark.host != host;
        self.there.values_mut().for_each(|stored| stored.marks.retain(elsewhere));
        for extra in &mut self.extras {
            extra.deleted.iter_mut().for_each(|marks| marks.retain(elsewhere));
        }
        // A range keeps its mark: the commit that publishes it comes first, or it is of no use.
    }

    /// A host lost power: what it had not flushed is gone, or was written back in time.
    pub(super) fn lose_unflushed(&mut self, host: usize, now: u64, chance: &mut SimRng) {
        let ids: Vec<Id> = self.there.keys().copied().collect();
        for id in ids {
            let Some(Stored { marks, .. }) = self.there.get_mut(&id) else { continue };
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
        for ((_, id), part) in &mut self.parts {
            let before = part.len();
            part.retain(|_, piece| piece.mark.host != host);
            if part.len() < before {
                self.lost_parts.insert(*id, now);
            }
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
