//! Measures the storage paths, each on a thread of its own: a mount that hangs delays neither heartbeats nor the
//! other paths. Missing paths are looked for at each heartbeat.

use crate::data::Roots;
use crate::data::roots::StorageRoot;
use crate::fs::RootDir;
use crate::wire::AbsPath;
use crate::wire::worker::UnavailablePath;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A storage path is unavailable when its measurement takes longer. The measurement reads two numbers that the file system has in
/// memory, or across one network.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct StorageMonitor {
    roots: Arc<Roots>,
    /// In the order of [`Roots::all`].
    path_states: Vec<Mutex<PathState>>,
    /// Notified when another root was opened: the master assigns tasks there after the next heartbeat.
    reopened: Arc<Notify>,
}

#[derive(Default)]
struct PathState {
    /// Of the measurement in progress.
    measurement_started: Option<Instant>,
    free_bytes: Option<u64>,
    /// Why the path was unavailable in the last log entry.
    logged_reason: Option<String>,
}

/// The state as of the last measurements.
#[derive(Debug, Default)]
pub(super) struct StorageSnapshot {
    pub(super) available: Vec<AbsPath>,
    pub(super) unavailable: Vec<UnavailablePath>,
    /// By path, where it could be measured.
    pub(super) free_bytes: BTreeMap<String, u64>,
    /// By available path.
    pub(super) root_ids: BTreeMap<String, String>,
}

impl StorageMonitor {
    pub(super) fn new(roots: Arc<Roots>, reopened: Arc<Notify>) -> Arc<Self> {
        let path_states = roots.all.iter().map(|_| Mutex::default()).collect();
        Arc::new(StorageMonitor { roots, path_states, reopened })
    }

    pub(super) fn snapshot(&self) -> StorageSnapshot {
        let mut snapshot = StorageSnapshot::default();
        for (storage, state) in self.roots.all.iter().zip(&self.path_states) {
            let (path, state) = (&storage.path, state.lock());
            match state.available_root(storage) {
                Ok(root) => {
                    snapshot.available.push(path.clone());
                    snapshot.root_ids.insert(path.to_string(), root.id());
                    let free_bytes = state.free_bytes.map(|free| (path.to_string(), free));
                    snapshot.free_bytes.extend(free_bytes);
                }
                Err(reason) => {
                    snapshot.unavailable.push(UnavailablePath { path: path.clone(), reason });
                }
            }
        }
        snapshot
    }

    /// Starts a measurement of each path unless the last one is still in progress.
    pub(super) fn start_measurements(self: &Arc<Self>) {
        for (index, storage) in self.roots.all.iter().enumerate() {
            let mut state = self.path_states[index].lock();
            state.log_change(storage);
            if state.measurement_started.is_none() {
                state.measurement_started = Some(Instant::now());
                let monitor = self.clone();
                tokio::task::spawn_blocking(move || monitor.measure_path(index));
            }
        }
    }

    /// Blocks as long as the file system does.
    fn measure_path(&self, index: usize) {
        let storage = &self.roots.all[index];
        let is_there = storage.open().is_ok_and(|root| root.check_path().is_none());
        let reopened = if is_there { Ok(false) } else { self.roots.reopen(storage) };
        let free = reopened.clone().and_then(|_| storage.open()?.free_bytes());
        let free = free.inspect_err(|error| tracing::debug!("{error}")).ok();
        {
            let mut state = self.path_states[index].lock();
            (state.measurement_started, state.free_bytes) = (None, free);
            state.log_change(storage);
        }
        if reopened == Ok(true) {
            self.reopened.notify_one();
        }
    }
}

impl PathState {
    /// The error is the reason why the path is unavailable.
    fn available_root(&self, storage: &StorageRoot) -> Result<Arc<RootDir>, String> {
        if self.measurement_started.is_some_and(|start| start.elapsed() > HANG_TIMEOUT) {
            return Err("it does not answer".to_owned());
        }
        let root = storage.open().map_err(|error| error.to_string())?;
        root.unavailable().map_or(Ok(root), |loss| Err(format!("{loss}; {}", loss.hint())))
    }

    /// Logs once that the path became unavailable, and once that it is available again.
    fn log_change(&mut self, storage: &StorageRoot) {
        let (path, reason) = (&storage.path, self.available_root(storage).err());
        if reason == self.logged_reason {
            return;
        }
        match &reason {
            Some(reason) => tracing::error!(
                "storage path {path} is unavailable: {reason}; nothing is read or written there until it is \
                 back, which is checked at each heartbeat"
            ),
            None => tracing::info!("storage path {path} is available again"),
        }
        self.logged_reason = reason;
    }
}
