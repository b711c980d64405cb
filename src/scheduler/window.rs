//! The window of a sync: the maximum number of outstanding tasks.

use super::State;
use super::sync_job::SyncJob;
use crate::wire::SyncNo;

impl State {
    pub(super) fn has_window_for_scans(&self, sync: &SyncJob) -> bool {
        self.window_fill(sync) < 0.5
    }

    /// How full the window of a sync is: a scan is suspended at 1 and continues below 0.5.
    pub(super) fn window_fill(&self, sync: &SyncJob) -> f64 {
        let tasks = self.tasks.sync_tasks(sync.no);
        tasks.window_fill(sync.large_files.len(), self.settings.window_bytes)
    }

    /// Recomputes the windows of syncs with tasks if the set of workers changed.
    pub(super) fn update_windows(&mut self) {
        let version = self.workers.version();
        if std::mem::replace(&mut self.windows_version, version) == version {
            return;
        }
        self.update_all_windows();
    }

    pub(super) fn update_all_windows(&mut self) {
        for no in self.tasks.syncs().collect::<Vec<_>>() {
            self.update_window(no);
        }
    }

    /// Maximum number of outstanding tasks of a sync: enough for each slot to have the next ones
    /// ready. More would only use memory.
    pub(super) fn update_window(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get(no) else { return };
        let most = self.settings.window_tasks;
        let mut window = 0;
        for worker in self.workers.accepting(&sync.request.source_path) {
            window += 4 * worker.last_heartbeat.slots.unwrap_or(1) as usize;
            if window >= most {
                break;
            }
        }
        self.tasks.set_window(no, window.clamp(64.min(most), most));
    }
}
