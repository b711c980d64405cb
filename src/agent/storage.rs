//! What is measured of the storage paths, each in a thread of its own: a mount that hangs stops neither the
//! heart nor what is said of the others. One that is missing is looked for again at each heartbeat.

use crate::data::Roots;
use crate::data::roots::StorageRoot;
use crate::fs::RootDir;
use crate::wire::AbsPath;
use crate::wire::worker::UnavailablePath;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A storage path that has not answered for so long is unavailable. It is asked for two numbers that its file
/// system has in memory, or across one network.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub struct StorageMonitor {
    roots: Arc<Roots>,
    /// One for each storage path, in the order of [`Roots::lock_state`].
    path_states: Vec<Mutex<PathState>>,
    /// Notified when another root was opened: until the master has heard of it nothing is done there.
    reopened: Arc<Notify>,
}

/// What is known of a storage path.
#[derive(Default)]
struct PathState {
    /// When the measurement that is under way began.
    measurement_started: Option<Instant>,
    free_bytes: Option<u64>,
    /// The reason that was logged last why it is unavailable.
    logged_reason: Option<String>,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct StorageSnapshot {
    /// The storage paths that are served.
    pub available: Vec<AbsPath>,
    /// Those that are not.
    pub unavailable: Vec<UnavailablePath>,
    /// Free bytes of those that could be asked.
    pub free_bytes: BTreeMap<String, u64>,
    /// The id of the root of each that is served.
    pub root_ids: BTreeMap<String, String>,
}

impl StorageMonitor {
    /// Nothing is measured yet. `reopened` is notified when another root was opened.
    pub fn new(roots: Arc<Roots>, reopened: Arc<Notify>) -> Arc<Self> {
        let known = roots.all().iter().map(|_| Mutex::default()).collect();
        Arc::new(StorageMonitor { roots, path_states: known, reopened })
    }

    fn paths_with_state(&self) -> impl Iterator<Item = (&StorageRoot, MutexGuard<'_, PathState>)> {
        self.roots.all().iter().zip(self.path_states.iter().map(lock_state))
    }

    /// What was seen last.
    pub fn snapshot(&self) -> StorageSnapshot {
        let mut seen = StorageSnapshot::default();
        for (storage, known) in self.paths_with_state() {
            let path = storage.path();
            match available_root(storage, &known) {
                Ok(root) => {
                    seen.available.push(path.clone());
                    seen.root_ids.insert(path.to_string(), root.id());
                    seen.free_bytes.extend(known.free_bytes.map(|free| (path.to_string(), free)));
                }
                Err(reason) => {
                    seen.unavailable.push(UnavailablePath { path: path.clone(), reason });
                }
            }
        }
        seen
    }

    /// Begins to measure each, unless the last measurement of it is still under way.
    pub fn start_measurements(self: &Arc<Self>) {
        for (nth, (storage, mut known)) in self.paths_with_state().enumerate() {
            known.log_change(storage);
            if known.measurement_started.is_none() {
                known.measurement_started = Some(Instant::now());
                let storage = self.clone();
                tokio::task::spawn_blocking(move || storage.measure_path(nth));
            }
        }
    }

    /// Asks the file system, for as long as that takes.
    fn measure_path(&self, nth: usize) {
        let (Some(storage), Some(known)) = (self.roots.all().get(nth), self.path_states.get(nth))
        else {
            return;
        };
        let is_there = storage.open().is_ok_and(|root| root.check_path().is_none());
        let reopened = if is_there { Ok(false) } else { self.roots.reopen(storage) };
        let free = reopened.clone().and_then(|_| storage.open()?.free_bytes());
        let free = free.inspect_err(|error| tracing::debug!("{error}")).ok();
        {
            let mut known = lock_state(known);
            (known.measurement_started, known.free_bytes) = (None, free);
            known.log_change(storage);
        }
        if reopened == Ok(true) {
            self.reopened.notify_one();
        }
    }
}

fn lock_state(known: &Mutex<PathState>) -> MutexGuard<'_, PathState> {
    known.lock()
}

/// The root of a storage path that is served, or the reason why it is not.
fn available_root(storage: &StorageRoot, known: &PathState) -> Result<Arc<RootDir>, String> {
    if known.measurement_started.is_some_and(|began| began.elapsed() > HANG_TIMEOUT) {
        return Err("it does not answer".to_owned());
    }
    let root = storage.open().map_err(|error| error.to_string())?;
    root.unavailable().map_or(Ok(root), |loss| Err(format!("{loss}; {}", loss.hint())))
}

impl PathState {
    /// Logs that the path is unavailable, and that it is available again, once each.
    fn log_change(&mut self, storage: &StorageRoot) {
        let (path, reason) = (storage.path(), available_root(storage, self).err());
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
