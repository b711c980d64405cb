//! Records failures: in the counters, in the [failure list](super::failure_list) and in the file records.

use super::State;
use super::failure_list::{
    FailedBatch, FailureList, FailurePages, MAX_PAGE_BYTES, OpenPage, failure_page_key,
    failure_record,
};
use super::sync_job::SyncJob;
use crate::wire::SyncNo;
use crate::wire::outcome::EntryError;
use crate::wire::sync::FailedStep;

impl SyncJob {
    fn failure_page_keys(&self) -> impl Iterator<Item = String> + use<> {
        let no = self.no;
        (0..self.failure_list.page_count).map(move |page| failure_page_key(no, page))
    }

    /// Keys of the pages and of the kept manifests.
    pub(super) fn failure_blob_keys(&self) -> impl Iterator<Item = String> {
        self.failure_page_keys().chain(self.failure_list.batches.iter().cloned())
    }

    pub(super) fn failure_pages(&self) -> FailurePages {
        FailurePages {
            keys: self.failure_page_keys().collect(),
            listed: self.failure_list.listed_count,
        }
    }
}

impl State {
    /// Counts a task without evidence.
    pub(super) fn count_unverified(&mut self, no: SyncNo) {
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.counters.unverified = sync.counters.unverified.saturating_add(1);
        }
    }

    pub(super) fn count_integrity_errors(&mut self, no: SyncNo, found: u64) {
        if found > 0
            && let Some(sync) = self.syncs.get_mut(no)
        {
            let all = &mut sync.counters.integrity_errors;
            *all = all.saturating_add(found);
        }
    }

    /// Counts and records the failure of a step.
    pub(super) fn record_failed_step(&mut self, no: SyncNo, step: FailedStep, error: EntryError) {
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.counters.add_failed_steps(step, 1);
        }
        self.record_failure(no, error, 1, None);
    }

    /// Records an error that stands for `count` failures, which are already counted: of an entry, or with a `manifest`
    /// of a batch. The caller stores the record of the sync.
    pub(super) fn record_failure(
        &mut self,
        no: SyncNo,
        error: EntryError,
        count: u64,
        manifest: Option<String>,
    ) {
        let max_entries = self.settings.max_failed_entries;
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let (record, failed) = (failure_record(&error), &mut sync.failure_list);
        let batch = manifest.clone().map(|manifest| FailedBatch { manifest, entries: count });
        let entries = if batch.is_some() { count } else { 1 };
        let is_listed = failed.add(record.clone(), batch, max_entries);
        let listed = if is_listed { entries } else { 0 };
        let dropped = manifest.filter(|_| !is_listed);
        failed.unlisted_count = failed.unlisted_count.saturating_add(count.saturating_sub(listed));
        if failed.open_page.lines.len() >= MAX_PAGE_BYTES {
            let key = failure_page_key(no, failed.open_page_no());
            self.outbox.put_blob(key, std::mem::take(&mut failed.open_page).lines);
        }
        self.outbox.mark_failures_dirty(no);
        sync.record_error(error, count);
        if sync.records_files() {
            self.append_file_records(no, [record].into_iter());
        }
        if let Some(manifest) = dropped {
            self.release_manifest(no, manifest);
        }
    }

    /// Stores the pages that this event added to, and frees those of ended syncs.
    pub(super) fn store_failure_pages(&mut self) {
        for no in self.outbox.take_dirty_failures() {
            let Some(sync) = self.syncs.get_mut(no) else { continue };
            let (active, failed) = (sync.is_active(), &mut sync.failure_list);
            if std::mem::take(&mut failed.open_page.is_unsaved) {
                let key = failure_page_key(no, failed.open_page_no());
                self.outbox.put_blob(key, failed.open_page.lines.clone());
            }
            if !active {
                failed.open_page = OpenPage::default();
            }
        }
    }

    pub(super) fn delete_failure_list(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let keys: Vec<String> = sync.failure_blob_keys().collect();
        sync.failure_list = FailureList::default();
        keys.into_iter().for_each(|key| self.release_manifest(no, key));
    }
}
