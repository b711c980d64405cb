//! The simulated store: atomic commits under a fence, as every store of the program makes them, and
//! failures on demand. It remembers how to go back.

use super::*;
use std::collections::VecDeque;

/// Number of commits that it can roll back.
const MAX_UNDO_COMMITS: usize = 60;

/// What a commit writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes {
    pub(super) replace: bool,
    pub(super) records: BTreeMap<String, Option<Vec<u8>>>,
    pub(super) blobs: BTreeMap<String, Option<Vec<u8>>>,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.blobs.is_empty()
    }
}

/// Why nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Deposed,
    Lost,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) records: BTreeMap<String, Vec<u8>>,
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    /// What each commit wrote over.
    undo: VecDeque<Writes>,
}

fn write(
    map: &mut BTreeMap<String, Vec<u8>>,
    key: &str,
    value: Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    }
}

impl Store {
    /// Writes what comes behind commit `seq` of the term `epoch`.
    pub(super) fn commit(&mut self, epoch: u64, seq: u64, writes: &Writes) -> Result<u64, Refusal> {
        if epoch != self.epoch {
            return Err(Refusal::Deposed);
        }
        if seq != self.seq {
            return Err(Refusal::Lost);
        }
        let mut undo = Writes::default();
        if writes.replace {
            let gone = self.records.keys().filter(|key| !writes.records.contains_key(*key));
            for key in gone.cloned().collect::<Vec<_>>() {
                undo.records.insert(key.clone(), self.records.remove(&key));
            }
        }
        for (key, value) in &writes.records {
            let old = write(&mut self.records, key, value.clone());
            undo.records.insert(key.clone(), old);
        }
        for (key, value) in &writes.blobs {
            undo.blobs.insert(key.clone(), write(&mut self.blobs, key, value.clone()));
        }
        self.undo.push_back(undo);
        if self.undo.len() > MAX_UNDO_COMMITS {
            self.undo.pop_front();
        }
        self.seq += 1;
        Ok(self.seq)
    }

    /// Forgets the last `count` commits, or as many as it can.
    pub(super) fn roll_back(&mut self, count: u64) {
        for _ in 0..count {
            let Some(undo) = self.undo.pop_back() else { return };
            for (key, value) in undo.records {
                write(&mut self.records, &key, value);
            }
            for (key, value) in undo.blobs {
                write(&mut self.blobs, &key, value);
            }
            self.seq -= 1;
        }
    }

    /// Forgets all.
    pub(super) fn lose(&mut self) {
        *self = Store { epoch: self.epoch, ..Store::default() };
    }
}
