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
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// See the module.
pub struct Storage {
    roots: Arc<Roots>,
    /// One for each storage path, in the order of [`Roots::lock`].
    known: Vec<Mutex<Known>>,
    /// Notified when another root was opened: until the master has heard of it nothing is done there.
    reopened: Arc<Notify>,
}

/// What is known of a storage path.
#[derive(Default)]
struct Known {
    /// When the measurement that is under way began.
    began: Option<Instant>,
    free: Option<u64>,
    /// The reason that was logged last why it is unavailable.
    logged: Option<String>,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Seen {
    /// The storage paths that are served.
    pub available: Vec<AbsPath>,
    /// Those that are not.
    pub unavailable: Vec<UnavailablePath>,
    /// Free bytes of those that could be asked.
    pub free: BTreeMap<String, u64>,
    /// The id of the root of each that is served.
    pub root_ids: BTreeMap<String, String>,
}

impl Storage {
    /// Nothing is measured yet. `reopened` is notified when another root was opened.
    pub fn of(roots: Arc<Roots>, reopened: Arc<Notify>) -> Arc<Self> {
        let known = roots.all().iter().map(|_| Mutex::default()).collect();
        Arc::new(Storage { roots, known, reopened })
    }

    fn each(&self) -> impl Iterator<Item = (&StorageRoot, MutexGuard<'_, Known>)> {
        self.roots.all().iter().zip(self.known.iter().map(lock))
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for (storage, known) in self.each() {
            let path = storage.path();
            match available(storage, &known) {
                Ok(root) => {
                    seen.available.push(path.clone());
                    seen.root_ids.insert(path.to_string(), root.id());
                    seen.free.extend(known.free.map(|free| (path.to_string(), free)));
                }
                Err(reason) => {
                    seen.unavailable.push(UnavailablePath { path: path.clone(), reason });
                }
            }
        }
        seen
    }

    /// Begins to measure each, unless the last measurement of it is still under way.
    pub fn measure(self: &Arc<Self>) {
        for (nth, (storage, mut known)) in self.each().enumerate() {
            known.log(storage);
            if known.began.is_none() {
                known.began = Some(Instant::now());
                let storage = self.clone();
                tokio::task::spawn_blocking(move || storage.measure_one(nth));
            }
        }
    }

    /// Asks the file system, for as long as that takes.
    fn measure_one(&self, nth: usize) {
        let (Some(storage), Some(known)) = (self.roots.all().get(nth), self.known.get(nth)) else {
            return;
        };
        let is_there = storage.open().is_ok_and(|root| root.check_path().is_none());
        let reopened = if is_there { Ok(false) } else { self.roots.reopen(storage) };
        let free = reopened.clone().and_then(|_| storage.open()?.free_bytes());
        let free = free.inspect_err(|error| tracing::debug!("{error}")).ok();
        {
            let mut known = lock(known);
            (known.began, known.free) = (None, free);
            known.log(storage);
        }
        if reopened == Ok(true) {
            self.reopened.notify_one();
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock()
}

/// The root of a storage path that is served, or the reason why it is not.
fn available(storage: &StorageRoot, known: &Known) -> Result<Arc<RootDir>, String> {
    if known.began.is_some_and(|began| began.elapsed() > STUCK_AFTER) {
        return Err("it does not answer".to_owned());
    }
    let root = storage.open().map_err(|error| error.to_string())?;
    root.unavailable().map_or(Ok(root), |loss| Err(format!("{loss}; {}", loss.hint())))
}

impl Known {
    /// Logs that the path is unavailable, and that it is available again, once each.
    fn log(&mut self, storage: &StorageRoot) {
        let (path, reason) = (storage.path(), available(storage, self).err());
        if reason == self.logged {
            return;
        }
        match &reason {
            Some(reason) => tracing::error!(
                "storage path {path} is unavailable: {reason}; nothing is read or written there until it is \
                 back, which is checked at each heartbeat"
            ),
            None => tracing::info!("storage path {path} is available again"),
        }
        self.logged = reason;
    }
}
