//! The outcome of each file, if requested. Lines go to a file of the master; the scheduler only counts their bytes. The
//! offset of a line is fixed before it is written: a line that is written twice is stored once, and a line of a
//! decision that was not committed is overwritten.

use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::{Effect, Now, State};
use crate::wire::SyncNo;
use crate::wire::entry_report::{FileRecord, FileState};

/// No valid path needs a longer line.
pub const MAX_LINE_BYTES: usize = 256 << 10;

impl SyncJob {
    pub(super) fn records_files(&self) -> bool {
        let options = &self.request.options;
        (options.record || options.manifest) && self.record_log.error.is_none()
    }
}

impl State {
    /// Records outcomes of files, except failures: an agent cannot know whether those are retried
    /// ([`State::record_failure`]). The read-back pass records only differences.
    pub(super) fn record_files(&mut self, no: SyncNo, files: Vec<FileRecord>) {
        let Some(sync) = self.syncs.get(no).filter(|s| s.records_files()) else { return };
        let counts = !matches!(sync.phase, PhaseState::Readback | PhaseState::CopyBlocked);
        let is_wanted = |file: &FileRecord| match file.state {
            FileState::Failed => false,
            FileState::Skipped => counts,
            FileState::Done | FileState::Deleted => true,
        };
        self.append_file_records(no, files.into_iter().filter(is_wanted));
    }

    /// The caller stores the record of the sync.
    pub(super) fn append_file_records(
        &mut self,
        no: SyncNo,
        files: impl Iterator<Item = FileRecord>,
    ) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let mut bytes = Vec::new();
        for mut file in files {
            file.error = file.error.map(|error| error.without_path());
            if let Ok(line) = serde_json::to_vec(&file)
                && line.len() < MAX_LINE_BYTES
            {
                bytes.extend_from_slice(&line);
                bytes.push(b'\n');
            }
        }
        if !bytes.is_empty() {
            let at = sync.record_log.length;
            sync.record_log.length += bytes.len() as u64;
            self.outbox.push(Effect::AppendFileRecords { sync: no, at, bytes });
        }
    }

    /// The file cannot be written: the sync continues without it and reports that.
    pub(super) fn fail_record_log(&mut self, no: SyncNo, why: String, now: Now) {
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.record_log.error.get_or_insert(why);
            self.mark_changed(no, now);
        }
    }
}
