//! The window of a sync: the maximum number of outstanding tasks.

use super::State;
use super::sync_job::SyncJob;
use crate::wire::SyncNo;

impl State {
    pub(super) fn has_window_for_scans(&self, sync: &SyncJob) -> bool {
        self.window_fill(sync) < 0.5
    }

    /// How full the window of a sync is: a scan is suspended at 1 and continues below 0.5. Waiting
    /// scans do not count: only they can empty a window that they fill.
    pub(super) fn window_fill(&self, sync: &SyncJob) -> f64 {
        let tasks = sync.tasks.len() - sync.scan_count + sync.large_files.len();
        let by_tasks = tasks as f64 / sync.window.max(1) as f64;
        let by_bytes = sync.manifest_bytes as f64 / self.settings.window_bytes as f64;
        by_tasks.max(by_bytes)
    }

    /// Recomputes the windows of syncs with tasks if the set of workers changed.
    pub(super) fn update_windows(&mut self) {
        let version = self.workers.version();
        if std::mem::replace(&mut self.windows_version, version) == version {
            return;
        }
        for no in self.syncs_with_tasks.clone() {
            self.update_window(no);
        }
    }

    /// Maximum number of outstanding tasks of a sync: enough for each slot to have the next ones
    /// ready. More would only use memory.
    pub(super) fn update_window(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let most = self.settings.window_tasks;
        let mut window = 0;
        for worker in self.workers.accepting(&sync.request.source_path) {
            window += 4 * worker.last_heartbeat.slots.unwrap_or(1) as usize;
            if window >= most {
                break;
            }
        }
        sync.window = window.clamp(64.min(most), most);
    }
}
