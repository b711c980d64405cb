//! What an event leaves to be done after it: effects for the owner of the state, syncs that may advance, and whether a
//! waiting poll may get a task.

use super::event::{Caller, Effect, Reply};
use crate::wire::SyncNo;
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    effects: Vec<Effect>,
    /// Syncs that may have reached their next phase.
    dirty_syncs: BTreeSet<SyncNo>,
    /// Syncs that have ended or got a changed failure list.
    dirty_failure_lists: BTreeSet<SyncNo>,
    needs_dispatch: bool,
}

impl Outbox {
    /// The record of this key changed or was removed.
    pub(super) fn write_record(&mut self, key: String) {
        self.effects.push(Effect::WriteRecord(key));
    }

    pub(super) fn put_blob(&mut self, key: String, blob: Vec<u8>) {
        self.effects.push(Effect::PutBlob(key, blob));
    }

    pub(super) fn delete_blob(&mut self, key: String) {
        self.effects.push(Effect::DeleteBlob(key));
    }

    pub(super) fn reply(&mut self, caller: Caller, reply: Reply) {
        self.effects.push(Effect::Reply(caller, reply));
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn extend(&mut self, effects: impl IntoIterator<Item = Effect>) {
        self.effects.extend(effects);
    }

    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn mark_dirty(&mut self, no: SyncNo) {
        self.dirty_syncs.insert(no);
    }

    pub(super) fn unmark_dirty(&mut self, no: SyncNo) {
        self.dirty_syncs.remove(&no);
    }

    pub(super) fn next_dirty(&mut self) -> Option<SyncNo> {
        self.dirty_syncs.pop_first()
    }

    pub(super) fn mark_failures_dirty(&mut self, no: SyncNo) {
        self.dirty_failure_lists.insert(no);
    }

    pub(super) fn take_dirty_failures(&mut self) -> BTreeSet<SyncNo> {
        std::mem::take(&mut self.dirty_failure_lists)
    }

    pub(super) fn request_dispatch(&mut self) {
        self.needs_dispatch = true;
    }

    pub(super) fn request_dispatch_if(&mut self, is_needed: bool) {
        self.needs_dispatch |= is_needed;
    }

    pub(super) fn take_dispatch(&mut self) -> bool {
        std::mem::take(&mut self.needs_dispatch)
    }

    /// A dispatch marks syncs as dirty, because their state changes, but ends none.
    pub(super) fn end_dispatch(&mut self) {
        self.dirty_syncs.clear();
        self.needs_dispatch = false;
    }
}
