//! What is measured of the storage paths, each in a thread of its own: a mount that hangs stops neither the
//! heart nor what is said of the others.

use crate::data::Roots;
use crate::fs::Root;
use crate::wire::AbsPath;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A storage path that has not answered for so long is stuck. It is asked for two numbers that its file
/// system has in memory, or across one network.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// See the module.
pub struct Storage(Vec<Arc<Path>>);

/// A storage path.
struct Path {
    root: Arc<Root>,
    known: Mutex<Known>,
}

/// What is known of it.
#[derive(Default)]
struct Known {
    /// When the measurement that is under way began.
    began: Option<Instant>,
    free: Option<u64>,
    /// The path leads elsewhere than to what we hold open.
    astray: bool,
    /// It was told that it does not answer.
    told: bool,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Seen {
    /// Free bytes of those that could be asked.
    pub free: BTreeMap<String, u64>,
    /// One of them leads elsewhere than to what we hold open.
    pub astray: bool,
    /// Those that do not answer.
    pub stuck: Vec<AbsPath>,
}

impl Storage {
    /// Nothing is measured yet.
    pub fn of(roots: &Roots) -> Self {
        let path = |root: &Arc<Root>| Path { root: root.clone(), known: Mutex::default() };
        Storage(roots.iter().map(|root| Arc::new(path(root))).collect())
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for path in &self.0 {
            let known = path.known();
            seen.astray |= known.astray;
            if known.is_stuck() {
                seen.stuck.push(path.root.path().clone());
            } else if let Some(free) = known.free {
                seen.free.insert(path.root.path().to_string(), free);
            }
        }
        seen
    }

    /// Begins to measure each, unless the last measurement of it is still under way.
    pub fn measure(&self) {
        for path in &self.0 {
            let mut known = path.known();
            if known.began.is_some() {
                if known.is_stuck() && !std::mem::replace(&mut known.told, true) {
                    tracing::error!(
                        "storage path {} has not answered for {} s: it gets no work until it does",
                        path.root.path(),
                        STUCK_AFTER.as_secs()
                    );
                }
                continue;
            }
            known.began = Some(Instant::now());
            let path = path.clone();
            tokio::task::spawn_blocking(move || path.measure());
        }
    }
}

impl Known {
    fn is_stuck(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() > STUCK_AFTER)
    }
}

impl Path {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the file system, for as long as that takes.
    fn measure(&self) {
        let free = self.root.free_bytes().inspect_err(|error| tracing::debug!("{error}")).ok();
        let astray = !self.root.is_current();
        let mut last = self.known();
        if astray && !last.astray {
            tracing::error!(
                "storage path {} was replaced, removed or mounted over since this agent started; it \
                 takes no work until that is undone or it is restarted",
                self.root.path()
            );
        }
        if last.told {
            tracing::info!("storage path {} answers again", self.root.path());
        }
        *last = Known { began: None, free, astray, told: false };
    }
}
