//! The syncs that have ended lately, for the agents: they refuse tickets of these.

use super::keys::MAX_TICKET_USE_MS;
use super::sync_job::SyncJob;
use super::{Now, State};
use crate::wire::SyncNo;
use crate::wire::worker::{EndedCursor, EndedSyncs};
use std::collections::VecDeque;

/// A reply names at most so many; the next one has more.
const MAX_REPORTED: usize = 4096;

/// The list that this term of the master has made.
#[derive(Debug, Default)]
pub(super) struct EndedSyncLog {
    term: u32,
    /// The number of entries that were removed at the front.
    removed: u64,
    /// With the time of the end, on the scheduler's clock.
    entries: VecDeque<(u64, SyncNo)>,
}

impl EndedSyncLog {
    /// `term` must be random.
    pub(super) fn new(term: u32) -> Self {
        EndedSyncLog { term, ..EndedSyncLog::default() }
    }

    /// Adds a sync that ended at `now_ms`, and removes those of which no ticket can be valid any more.
    pub(super) fn add(&mut self, sync: SyncNo, now_ms: u64) {
        while self
            .entries
            .front()
            .is_some_and(|(at, _)| at.saturating_add(MAX_TICKET_USE_MS) < now_ms)
        {
            self.entries.pop_front();
            self.removed += 1;
        }
        self.entries.push_back((now_ms, sync));
    }

    /// What an agent has not read yet that is at `cursor`.
    pub(super) fn since(&self, cursor: Option<EndedCursor>) -> Option<EndedSyncs> {
        let known = cursor.filter(|cursor| cursor.term == self.term);
        let position = known.map_or(0, |cursor| cursor.position).max(self.removed);
        let skip = usize::try_from(position - self.removed).unwrap_or(usize::MAX);
        let syncs: Vec<SyncNo> =
            self.entries.iter().skip(skip).take(MAX_REPORTED).map(|(_, sync)| *sync).collect();
        let position = position + syncs.len() as u64;
        let is_news = !syncs.is_empty() || known.is_none();
        is_news.then_some(EndedSyncs { cursor: EndedCursor { term: self.term, position }, syncs })
    }
}

impl State {
    /// Adds the stored syncs that ended lately: the master that led before may not have reported them to all agents.
    pub(super) fn load_ended_syncs(&mut self, now: Now) {
        let since = now.wall_ms.saturating_sub(MAX_TICKET_USE_MS as i64);
        let ended = |sync: &&SyncJob| sync.ended_ms.is_some_and(|at| at >= since);
        let ended: Vec<SyncNo> = self.syncs.values().filter(ended).map(|sync| sync.no).collect();
        ended.into_iter().for_each(|no| self.ended_syncs.add(no, now.mono_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(term: u32, position: u64) -> Option<EndedCursor> {
        Some(EndedCursor { term, position })
    }

    #[test]
    fn each_agent_gets_each_end_once_and_all_of_a_new_term() {
        let mut log = EndedSyncLog::new(7);
        let first = log.since(None).unwrap();
        assert_eq!((Some(first.cursor), first.syncs.len()), (cursor(7, 0), 0));
        assert_eq!(log.since(cursor(7, 0)), None);
        log.add(SyncNo(1), 10);
        log.add(SyncNo(2), 20);
        let all = EndedSyncs { cursor: cursor(7, 2).unwrap(), syncs: vec![SyncNo(1), SyncNo(2)] };
        assert_eq!(log.since(cursor(7, 0)), Some(all.clone()));
        // A repeat, because the reply was lost; an agent that followed another master.
        assert_eq!(log.since(cursor(7, 0)), Some(all.clone()));
        assert_eq!(log.since(cursor(8, 90)), Some(all));
        assert_eq!(log.since(cursor(7, 1)).unwrap().syncs, [SyncNo(2)]);
        assert_eq!(log.since(cursor(7, 2)), None);
        // A position that this master never gave.
        assert_eq!(log.since(cursor(7, u64::MAX)), None);
    }

    #[test]
    fn old_ends_are_removed_and_long_lists_are_divided() {
        let mut log = EndedSyncLog::new(7);
        log.add(SyncNo(0), 0);
        for no in 1..=MAX_REPORTED as u64 + 1 {
            log.add(SyncNo(no), MAX_TICKET_USE_MS + 1);
        }
        assert_eq!(log.removed, 1);
        let page = log.since(cursor(7, 0)).unwrap();
        assert_eq!((page.syncs[0], page.syncs.len()), (SyncNo(1), MAX_REPORTED));
        let rest = log.since(Some(page.cursor)).unwrap();
        assert_eq!(rest.syncs, [SyncNo(MAX_REPORTED as u64 + 1)]);
        assert_eq!(log.since(Some(rest.cursor)), None);
    }
}
