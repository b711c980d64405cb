//! The outcome of each file, if requested. Lines go to a file of the master; the scheduler only
//! counts their bytes. The offset of a line is fixed before it is written: a line that is written
//! twice is stored once, and a line whose decision was not committed is overwritten.

use super::failure_list::failure_record;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::{Effect, FailurePages, Now, State};
use crate::wire::entry_report::{FileRecord, FileState};
use crate::wire::sync::FileError;
use crate::wire::{AbsPath, RequestId, SyncNo};
use serde::{Deserialize, Serialize};

/// No valid path needs a longer line.
pub const MAX_LINE_BYTES: usize = 256 << 10;
const MAX_MESSAGE_CHARS: usize = 1_000;

/// The stored part of the record log of a sync.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RecordLog {
    /// Committed bytes; later bytes in the file are void.
    pub(super) length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub(super) readback_from: Option<u64>,
    /// Why it is incomplete.
    pub(super) error: Option<String>,
}

/// What is needed to read the record log of a sync.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordLogInfo {
    /// The sync.
    pub sync: SyncNo,
    /// Its id.
    pub id: RequestId,
    /// Committed bytes.
    pub length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub readback_from: Option<u64>,
    /// Why it is incomplete.
    pub error: Option<String>,
    /// Whether the sync records files.
    pub is_recorded: bool,
    /// Whether each line has the digest of the file.
    pub has_digests: bool,
    /// Whether the sync has ended.
    pub has_ended: bool,
    /// The root of its paths.
    pub destination: AbsPath,
    /// The failures, which every sync lists.
    pub failures: FailurePages,
}

impl SyncJob {
    fn records_files(&self) -> bool {
        let options = &self.request.options;
        (options.record || options.manifest) && self.record_log.error.is_none()
    }
}

impl State {
    pub(super) fn record_log_info(&self, id: &RequestId) -> Option<RecordLogInfo> {
        let sync = self.syncs.get(self.by_id.get(id)?)?;
        let options = &sync.request.options;
        Some(RecordLogInfo {
            sync: sync.no,
            id: sync.id.clone(),
            length: sync.record_log.length,
            readback_from: sync.record_log.readback_from,
            error: sync.record_log.error.clone(),
            is_recorded: options.record || options.manifest,
            has_digests: options.manifest,
            has_ended: !sync.is_active(),
            destination: sync.request.destination_path.clone(),
            failures: sync.failure_pages(),
        })
    }

    /// Records outcomes of files, except failures: an agent cannot know whether those are retried
    /// ([`State::record_failed_file`]). The read-back pass records only differences.
    pub(super) fn record_files(&mut self, no: SyncNo, files: Vec<FileRecord>) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.records_files()) else { return };
        let counts = !matches!(sync.phase, PhaseState::Readback | PhaseState::CopyBlocked);
        let wanted = |file: &FileRecord| counts || file.state != FileState::Skipped;
        self.append_file_records(
            no,
            files.into_iter().filter(|f| f.state != FileState::Failed && wanted(f)),
        );
    }

    pub(super) fn record_failed_file(&mut self, no: SyncNo, error: &FileError) {
        if self.syncs.get(&no).is_some_and(SyncJob::records_files) {
            self.append_file_records(no, [failure_record(error)].into_iter());
        }
    }

    /// The caller stores the record of the sync.
    fn append_file_records(&mut self, no: SyncNo, files: impl Iterator<Item = FileRecord>) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let mut bytes = Vec::new();
        for mut file in files {
            file.message = file.message.map(|text| text.chars().take(MAX_MESSAGE_CHARS).collect());
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
            self.effects.push(Effect::AppendFileRecords { sync: no, at, bytes });
        }
    }

    /// The file cannot be written: the sync continues without it and reports that.
    pub(super) fn fail_record_log(&mut self, no: SyncNo, why: String, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.record_log.error.get_or_insert(why);
            self.mark_changed(no, now);
        }
    }
}
