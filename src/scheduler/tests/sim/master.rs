//! A simulated master: it does with the state what the owner of the real one does. Writes of a batch of
//! events are committed as one, replies are given after that and not before.

use super::store::{Refusal, Store, Writes};
use super::*;

/// The sender of a request that waits for its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requester {
    /// A process of an agent: its number, its incarnation, and the request.
    Agent(usize, u64, u64),
    /// An operator: the request.
    Operator(u64),
}

/// Writes and replies of the events so far.
#[derive(Default)]
pub(super) struct Pending {
    touched: BTreeSet<String>,
    blobs: BTreeMap<String, Option<Vec<u8>>>,
    lines: Vec<(SyncNo, u64, Vec<u8>)>,
    dropped: Vec<SyncNo>,
    replies: Vec<(Caller, Reply)>,
    /// Manifests to be read.
    pub(super) reads: Vec<(TaskId, String)>,
}

/// See the module.
pub(super) struct Master {
    pub(super) state: State,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    /// It gives no more replies from then on: it learns that it was deposed.
    pub(super) until: u64,
    pub(super) asleep_until: u64,
    pub(super) waiting: BTreeMap<Caller, Requester>,
    pub(super) pending: Pending,
    /// A commit that the store did not answer; and whether it took effect.
    pub(super) stuck: Option<(Writes, bool)>,
    pub(super) callers: u64,
    /// Manifests to be read now.
    pub(super) reads: Vec<(TaskId, String)>,
}

/// How a commit ended.
pub(super) enum CommitEnd {
    /// These replies may be given.
    Done(Vec<(Requester, Reply)>),
    /// Another one rules.
    Deposed,
    /// The store is behind: nothing was written.
    Lost,
}

impl Master {
    pub(super) fn new(state: State, store: &Store) -> Master {
        Master {
            state,
            epoch: store.epoch,
            seq: store.seq,
            until: u64::MAX,
            asleep_until: 0,
            waiting: BTreeMap::new(),
            pending: Pending::default(),
            stuck: None,
            callers: 0,
            reads: vec![],
        }
    }

    pub(super) fn caller(&mut self, requester: Requester) -> Caller {
        self.callers += 1;
        let caller = Caller(self.callers);
        self.waiting.insert(caller, requester);
        caller
    }

    /// Collects the effects of an event.
    pub(super) fn queue_effects(&mut self, effects: Vec<Effect>) {
        let pending = &mut self.pending;
        for effect in effects {
            match effect {
                Effect::WriteRecord(key) => {
                    _ = pending.touched.insert(key);
                }
                Effect::PutBlob(key, value) => drop(pending.blobs.insert(key, Some(value))),
                Effect::DeleteBlob(key) => drop(pending.blobs.insert(key, None)),
                Effect::AppendFileRecords { sync, at, bytes } => {
                    pending.lines.push((sync, at, bytes))
                }
                Effect::DeleteFileRecords(sync) => {
                    pending.lines.retain(|(of, ..)| *of != sync);
                    pending.dropped.push(sync);
                }
                Effect::ReadEntries { task, key } => pending.reads.push((task, key)),
                Effect::Reply(caller, reply) => pending.replies.push((caller, reply)),
            }
        }
    }

    /// Writes the lines of lists, before anything that was decided with them. The lists that are gone.
    pub(super) fn write_lines(&mut self, lists: &mut BTreeMap<SyncNo, Vec<u8>>) -> Vec<SyncNo> {
        let mut gone = vec![];
        for (sync, at, bytes) in std::mem::take(&mut self.pending.lines) {
            let list = lists.entry(sync).or_default();
            if at as usize > list.len() {
                gone.push(sync);
                continue;
            }
            list.truncate(at as usize);
            list.extend(bytes);
        }
        gone
    }

    /// What is to be written.
    pub(super) fn writes(&self) -> Writes {
        let touched = &self.pending.touched;
        let records = touched.iter().map(|key| (key.clone(), self.state.record(key)));
        Writes { replace: false, records: records.collect(), blobs: self.pending.blobs.clone() }
    }

    /// Commits `writes`, and returns the replies that wait for them.
    pub(super) fn commit(
        &mut self,
        writes: &Writes,
        store: &mut Store,
        lists: &mut BTreeMap<SyncNo, Vec<u8>>,
    ) -> CommitEnd {
        if !writes.is_empty() {
            match store.commit(self.epoch, self.seq, writes) {
                Ok(seq) => self.seq = seq,
                Err(Refusal::Deposed) => return CommitEnd::Deposed,
                Err(Refusal::Lost) => return CommitEnd::Lost,
            }
        }
        CommitEnd::Done(self.replies(lists))
    }

    /// The decision is durable: the replies are due.
    pub(super) fn replies(
        &mut self,
        lists: &mut BTreeMap<SyncNo, Vec<u8>>,
    ) -> Vec<(Requester, Reply)> {
        let pending = std::mem::take(&mut self.pending);
        self.reads.extend(pending.reads);
        pending.dropped.iter().for_each(|sync| drop(lists.remove(sync)));
        let replies = pending.replies.into_iter();
        replies.filter_map(|(to, reply)| Some((self.waiting.remove(&to)?, reply))).collect()
    }

    /// The store lost data, and the state was informed: all is written back.
    pub(super) fn write_back(
        &mut self,
        store: &mut Store,
        lists: &mut BTreeMap<SyncNo, Vec<u8>>,
    ) -> CommitEnd {
        let keys = self.state.record_keys().into_iter();
        let records = keys.filter_map(|key| Some((key.clone(), Some(self.state.record(&key)?))));
        let mut writes =
            Writes { replace: true, records: records.collect(), blobs: BTreeMap::new() };
        let blobs = &self.pending.blobs;
        let dropped = |key: &String| matches!(blobs.get(key), Some(None));
        for key in store.blobs.keys().filter(|key| !key.starts_with("f/") || dropped(key)) {
            writes.blobs.insert(key.clone(), None);
        }
        let put = blobs.iter().filter(|(_, value)| value.is_some());
        writes.blobs.extend(put.map(|(key, value)| (key.clone(), value.clone())));
        self.seq = store.seq;
        self.commit(&writes, store, lists)
    }
}
