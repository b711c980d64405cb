//! What became of each file, where that is asked for. It is not kept here: lines go to a file of the
//! master, and the scheduler only counts their bytes. A line is written at a place that is certain
//! before it is written, so one that is written twice stands there once, and what was written without
//! its decision being committed is written over.

use super::failure_list::failure_record;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::{Effect, FailurePages, Now, State};
use crate::wire::options::{FileRecord, FileState};
use crate::wire::sync::FileError;
use crate::wire::{AbsPath, RequestId, SyncNo};
use serde::{Deserialize, Serialize};

/// A line is shorter than this, in bytes: no path that can exist needs more.
pub const MAX_LINE_BYTES: usize = 256 << 10;
/// A reason for a failure of more characters is cut.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// What a sync remembers of its list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RecordLog {
    /// Its bytes; what stands behind them was never decided.
    pub(super) length: u64,
    /// Where the lines of the second pass begin: a file that is named there is not as it is named
    /// before.
    pub(super) readback_from: Option<u64>,
    /// Why it is not whole.
    pub(super) error: Option<String>,
}

/// What there is to know of a sync's list, to read it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordLogInfo {
    /// Whose it is.
    pub sync: SyncNo,
    /// … by name.
    pub id: RequestId,
    /// Its bytes.
    pub length: u64,
    /// Where the lines of the second pass begin. A file that is named there is not to be taken from
    /// before.
    pub readback_from: Option<u64>,
    /// Why it is not whole.
    pub error: Option<String>,
    /// Whether there is to be one.
    pub is_recorded: bool,
    /// Whether it has the digest of each file.
    pub has_digests: bool,
    /// Whether the sync has ended.
    pub has_ended: bool,
    /// The root that its paths lie below.
    pub destination: AbsPath,
    /// The list of its failures, which every sync has.
    pub failures: FailurePages,
}

impl SyncJob {
    /// Whether what becomes of each file is recorded.
    fn records_files(&self) -> bool {
        let options = &self.request.options;
        (options.record || options.manifest) && self.record_log.error.is_none()
    }
}

impl State {
    /// The list of a sync; `None` for one that is not known.
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

    /// Records what became of files. Entries that failed are recorded by [`TargetState::record_failed_file`]:
    /// an agent can't know whether they are tried again. The second pass records only what it found
    /// to be otherwise.
    pub(super) fn record_files(&mut self, no: SyncNo, files: Vec<FileRecord>) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.records_files()) else { return };
        let counts = !matches!(sync.phase, PhaseState::Readback | PhaseState::CopyBlocked);
        let wanted = |file: &FileRecord| counts || file.state != FileState::Skipped;
        self.append_file_records(
            no,
            files.into_iter().filter(|f| f.state != FileState::Failed && wanted(f)),
        );
    }

    /// Records an entry that is given up.
    pub(super) fn record_failed_file(&mut self, no: SyncNo, error: &FileError) {
        if self.syncs.get(&no).is_some_and(SyncJob::records_files) {
            self.append_file_records(no, [failure_record(error)].into_iter());
        }
    }

    /// The caller stores the sync's record.
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

    /// The file of a list can't be written: the sync goes on without it, and says so.
    pub(super) fn fail_record_log(&mut self, no: SyncNo, why: String, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.record_log.error.get_or_insert(why);
            self.mark_changed(no, now);
        }
    }
}
