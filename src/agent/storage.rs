//! Measures and identifies the storage paths, each on a thread of its own: a mount that hangs delays neither heartbeats
//! nor the other paths. Missing paths are looked for at each heartbeat.

use crate::data::Roots;
use crate::data::roots::StorageRoot;
use crate::fs::RootDir;
use crate::wire::AbsPath;
use crate::wire::storage::{StorageFingerprint, StorageReport};
use crate::wire::worker::UnavailablePath;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// A storage path is unavailable when its measurement takes longer. The measurement reads two numbers that the file system has in
/// memory, or across one network.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);
/// The first heartbeat waits so long for the first measurement of all paths, which takes milliseconds. A path that is
/// not identified yet is unavailable: without its fingerprint the master would take it for another storage.
const FIRST_MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct StorageMonitor {
    roots: Arc<Roots>,
    /// In the order of [`Roots::all`].
    path_states: Vec<Mutex<PathState>>,
    /// Notified when another root was opened or identified: the master assigns tasks there after the next heartbeat.
    identified: Arc<Notify>,
    /// Paths that were not measured yet.
    unmeasured: watch::Sender<usize>,
    /// The first heartbeat waits no more.
    has_started: AtomicBool,
}

#[derive(Default)]
struct PathState {
    /// Of the measurement in progress.
    measurement_started: Option<Instant>,
    /// The last one that ended.
    measured: Option<Measurement>,
    /// Why the path was unavailable in the last log entry.
    logged_reason: Option<String>,
}

/// What one measurement found. Each part is missing where its call failed.
#[derive(Default)]
struct Measurement {
    /// Of the directory that was open then.
    root_id: Option<String>,
    free_bytes: Option<u64>,
    fingerprint: Option<StorageFingerprint>,
    is_hidden_by_sandbox: bool,
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
    /// Of available paths.
    pub(super) reports: Vec<StorageReport>,
}

impl StorageMonitor {
    pub(super) fn new(roots: Arc<Roots>, identified: Arc<Notify>) -> Arc<Self> {
        let path_states: Vec<_> = roots.all.iter().map(|_| Mutex::default()).collect();
        let unmeasured = watch::Sender::new(path_states.len());
        let has_started = AtomicBool::new(false);
        Arc::new(StorageMonitor { roots, path_states, identified, unmeasured, has_started })
    }

    pub(super) fn snapshot(&self) -> StorageSnapshot {
        let mut snapshot = StorageSnapshot::default();
        for (storage, state) in self.roots.all.iter().zip(&self.path_states) {
            let (path, state) = (storage.name(), state.lock());
            match state.identified_root(storage) {
                Ok((root, measured)) => {
                    snapshot.available.push(path.clone());
                    snapshot.root_ids.insert(path.to_string(), root.id());
                    let free_bytes = measured.free_bytes.map(|free| (path.to_string(), free));
                    snapshot.free_bytes.extend(free_bytes);
                    let config = &storage.config;
                    snapshot.reports.extend(measured.fingerprint.clone().map(|fingerprint| {
                        StorageReport {
                            path: path.clone(),
                            local_path: config.other_local_path().cloned(),
                            declared: config.declared.clone(),
                            fingerprint,
                        }
                    }));
                }
                Err(reason) => {
                    snapshot.unavailable.push(UnavailablePath { path: path.clone(), reason });
                }
            }
        }
        snapshot
    }

    /// Waits once, and not long, for the first measurements.
    pub(super) async fn wait_for_first_measurements(&self) {
        if self.has_started.load(Ordering::Relaxed) {
            return;
        }
        let mut unmeasured = self.unmeasured.subscribe();
        let all = unmeasured.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(FIRST_MEASUREMENT_TIMEOUT, all).await;
        self.has_started.store(true, Ordering::Relaxed);
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
        if !is_there && let Err(error) = self.roots.reopen(storage) {
            tracing::debug!("{error}");
        }
        let mut measured = Measurement::of(storage);
        {
            let mut state = self.path_states[index].lock();
            measured.keep_fingerprint_of(state.measured.as_ref());
            let before = state.measured.as_ref().map(|before| &before.root_id);
            let is_first = before.is_none();
            let is_other = before != Some(&measured.root_id);
            (state.measurement_started, state.measured) = (None, Some(measured));
            state.log_change(storage);
            drop(state);
            if is_other && self.has_started.load(Ordering::Relaxed) {
                self.identified.notify_one();
            }
            if is_first {
                self.unmeasured.send_modify(|count| *count -= 1);
            }
        }
    }
}

impl Measurement {
    fn of(storage: &StorageRoot) -> Self {
        let Ok(root) = storage.open() else { return Measurement::default() };
        let free_bytes = root.free_bytes().inspect_err(|error| tracing::debug!("{error}")).ok();
        let fingerprint = root.storage_fingerprint();
        let fingerprint = fingerprint.inspect_err(|error| tracing::debug!("{error}")).ok();
        let is_hidden_by_sandbox = root.is_hidden_by_sandbox();
        Measurement { root_id: Some(root.id()), free_bytes, fingerprint, is_hidden_by_sandbox }
    }

    /// A fingerprint that cannot be read now is as before if the directory is: its mount may be detached, or this process
    /// out of descriptors.
    fn keep_fingerprint_of(&mut self, before: Option<&Measurement>) {
        if let Some(before) = before.filter(|before| before.root_id == self.root_id)
            && self.fingerprint.is_none()
        {
            self.fingerprint.clone_from(&before.fingerprint);
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
        let measured = self.measured.as_ref().filter(|one| one.root_id == Some(root.id()));
        if measured.is_some_and(|measured| measured.is_hidden_by_sandbox) {
            return Err("the `sandbox` of this agent hides what was made or mounted there since its start; start the agent again, \
                        or set `sandbox: off` in its file"
                .to_owned());
        }
        root.unavailable().map_or(Ok(root), |loss| Err(format!("{loss}; {}", loss.hint())))
    }

    /// The root and its measurement; the error is the reason why the path is unavailable.
    fn identified_root(
        &self,
        storage: &StorageRoot,
    ) -> Result<(Arc<RootDir>, &Measurement), String> {
        let root = self.available_root(storage)?;
        let measured = self.measured.as_ref();
        match measured.filter(|measured| measured.root_id == Some(root.id())) {
            Some(measured) => Ok((root, measured)),
            None => Err("its file system is being identified".to_owned()),
        }
    }

    /// Logs once that the path became unavailable, and once that it is available again.
    fn log_change(&mut self, storage: &StorageRoot) {
        let (path, reason) = (&storage.config, self.available_root(storage).err());
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
