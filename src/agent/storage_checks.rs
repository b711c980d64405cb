//! Carries out the checks by which the master compares storages: makes probe files, looks for those of other workers,
//! and reads samples. Each storage path has its own thread for this: a mount that hangs delays nothing else.
//!
//! The last reply to a heartbeat is what counts. Each reply starts the work again, also where it is the same: a probe
//! file that somebody removed is made again, and an error of the last time may be over. A report that differs from the
//! last one is sent at once.

use crate::data::Roots;
use crate::data::roots::StorageRoot;
use crate::fs::{ProbeJournal, ProbeRecord, ProbeState, RootDir};
use crate::wire::storage::{ProbeName, ProbeSecret, StorageCheck, StorageCheckReport};
use crate::wire::{AbsPath, RelPath};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The time for the removal of probe files when the agent stops. Its next start removes what is left.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct StorageChecker {
    roots: Arc<Roots>,
    journal: ProbeJournal,
    /// In the order of [`Roots::all`].
    paths: Vec<PathChecks>,
    /// Notified when there is another report.
    reported: Arc<Notify>,
    running: watch::Sender<usize>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct PathChecks {
    state: Mutex<PathState>,
    /// The probe files of this process. Only the running thread of the path locks it.
    own_probes: Mutex<Vec<OwnProbe>>,
}

#[derive(Default)]
struct PathState {
    /// By the last reply.
    requested: Option<StorageCheck>,
    outcome: Option<Outcome>,
    is_running: bool,
    /// A reply arrived after the running thread read `requested`.
    is_outdated: bool,
    /// Probe files are still there, or could not be removed.
    has_own_probes: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    check: StorageCheck,
    /// Of the directory that was open.
    root_id: Option<String>,
    report: StorageCheckReport,
}

/// A probe file that this process made, in the directory in which it made it.
struct OwnProbe {
    root: Arc<RootDir>,
    record: ProbeRecord,
}

impl StorageChecker {
    pub(super) fn new(
        roots: Arc<Roots>,
        journal: ProbeJournal,
        reported: Arc<Notify>,
    ) -> Arc<Self> {
        let paths = roots.all.iter().map(|_| PathChecks::default()).collect();
        let (running, stopped) = (watch::Sender::new(0), AtomicBool::new(false));
        Arc::new(StorageChecker { roots, journal, paths, reported, running, stopped })
    }

    /// Carries out the checks of a reply, and undoes what it does not name.
    pub(super) fn apply(self: &Arc<Self>, checks: Vec<StorageCheck>) {
        if !self.stopped.load(Ordering::Relaxed) {
            self.request(checks);
        }
    }

    fn request(self: &Arc<Self>, mut checks: Vec<StorageCheck>) {
        for (index, storage) in self.roots.all.iter().enumerate() {
            let named = checks.iter().position(|check| check.path == *storage.name());
            let requested = named.map(|at| checks.swap_remove(at));
            let mut state = self.paths[index].state.lock();
            // What an earlier process left is removed as soon as the directory is there.
            let has_work = requested.is_some()
                || state.requested.is_some()
                || state.has_own_probes
                || !self.journal.records_of(&storage.config.local_path).is_empty();
            state.requested = requested;
            state.is_outdated = true;
            if has_work && !state.is_running {
                state.is_running = true;
                self.running.send_modify(|count| *count += 1);
                let checker = self.clone();
                tokio::task::spawn_blocking(move || checker.run(index));
            }
        }
    }

    /// The reports on the checks of the last reply that were carried out, for directories that are still open.
    pub(super) fn reports(&self) -> Vec<StorageCheckReport> {
        let mut reports = Vec::new();
        for (storage, path) in self.roots.all.iter().zip(&self.paths) {
            let state = path.state.lock();
            let open = storage.open().ok().map(|root| root.id());
            if let (Some(requested), Some(outcome)) = (&state.requested, &state.outcome)
                && outcome.root_id == open
            {
                reports.push(outcome.answer(requested));
            }
        }
        reports
    }

    /// Removes all probe files; what hangs is left to the next start.
    pub(super) async fn stop(self: &Arc<Self>) {
        self.stopped.store(true, Ordering::Relaxed);
        self.request(Vec::new());
        let mut running = self.running.subscribe();
        let _ = tokio::time::timeout(STOP_TIMEOUT, running.wait_for(|count| *count == 0)).await;
    }

    /// The thread of one path. It blocks as long as the file system does.
    fn run(&self, index: usize) {
        let (storage, path) = (&self.roots.all[index], &self.paths[index]);
        let mut own_probes = path.own_probes.lock();
        loop {
            let requested = {
                let mut state = path.state.lock();
                state.is_outdated = false;
                state.requested.clone()
            };
            let outcome = self.carry_out(storage, requested.as_ref(), &mut own_probes);
            let mut state = path.state.lock();
            if outcome.is_some() && outcome != state.outcome {
                self.reported.notify_one();
            }
            state.outcome = outcome;
            state.has_own_probes = !own_probes.is_empty();
            if !state.is_outdated {
                state.is_running = false;
                break;
            }
        }
        drop(own_probes);
        self.running.send_modify(|count| *count -= 1);
    }

    fn carry_out(
        &self,
        storage: &StorageRoot,
        requested: Option<&StorageCheck>,
        own_probes: &mut Vec<OwnProbe>,
    ) -> Option<Outcome> {
        let opened = storage.open();
        let open_id = opened.as_ref().ok().map(|root| root.id());
        let wanted = requested.and_then(|check| check.make.as_ref()).map(ProbeSecret::name);
        let wanted = wanted.as_ref();
        own_probes.retain(|probe| {
            let is_wanted =
                Some(&probe.record.name) == wanted && open_id.as_ref() == Some(&probe.root.id());
            is_wanted || !self.remove_probe(&probe.root, &probe.record)
        });
        if let Ok(root) = &opened {
            self.remove_leftovers(storage, root, wanted, own_probes);
        }
        let check = requested?;
        let mut findings = Findings::new(check);
        match &opened {
            Ok(root) if findings.check_path(root) => {
                if let Some(secret) = &check.make {
                    self.make_probe(storage, root, secret, own_probes, &mut findings);
                }
                findings.look(root, check);
                // What was found in a directory that is not at the path any more says nothing on the path.
                if !findings.check_path(root) {
                    findings.discard_findings();
                }
            }
            Ok(_) => {}
            Err(error) => findings.fail(error),
        }
        Some(Outcome { check: check.clone(), root_id: open_id, report: findings.report })
    }

    /// Removes the probe files that an earlier process made in this directory.
    fn remove_leftovers(
        &self,
        storage: &StorageRoot,
        root: &RootDir,
        wanted: Option<&ProbeName>,
        own_probes: &[OwnProbe],
    ) {
        for record in self.journal.records_of(&storage.config.local_path) {
            let is_own = own_probes.iter().any(|probe| probe.record == record);
            if !is_own && record.inode == root.inode() && Some(&record.name) != wanted {
                self.remove_probe(root, &record);
            }
        }
    }

    /// Whether it is removed.
    fn remove_probe(&self, root: &RootDir, record: &ProbeRecord) -> bool {
        match root.remove_probe(&record.name) {
            Ok(()) => {
                self.journal.remove(record);
                true
            }
            Err(error) => {
                tracing::warn!("{error}; it is tried again at each heartbeat");
                false
            }
        }
    }

    /// Sees to it that the probe file exists.
    fn make_probe(
        &self,
        storage: &StorageRoot,
        root: &Arc<RootDir>,
        secret: &ProbeSecret,
        own_probes: &mut Vec<OwnProbe>,
        findings: &mut Findings,
    ) {
        let name = &secret.name();
        let path = storage.config.local_path.clone();
        let record = ProbeRecord { path, inode: root.inode(), name: name.clone() };
        let is_own = own_probes.iter().any(|probe| probe.record == record)
            || self.journal.records_of(&record.path).contains(&record);
        match root.look_for_probe(name) {
            // The only one that makes it is this agent, maybe in an earlier process.
            Ok(ProbeState::Found) if is_own => {}
            Ok(ProbeState::Missing) => {
                self.journal.add(&record);
                if let Err(error) = root.make_probe(secret) {
                    // Where it could not be removed again, it is found at the next attempt.
                    if matches!(root.look_for_probe(name), Ok(ProbeState::Missing)) {
                        self.journal.remove(&record);
                    }
                    return findings.fail(&error);
                }
            }
            Ok(_) => {
                return findings.fail(&format!(
                    "{} exists, and this agent did not make it; remove it if it stays",
                    locate(&record.path, name)
                ));
            }
            Err(error) => return findings.fail(&error),
        }
        findings.report.made = Some(name.clone());
        if !own_probes.iter().any(|probe| probe.record == record) {
            own_probes.push(OwnProbe { root: root.clone(), record });
        }
    }
}

impl Outcome {
    /// The part of it that replies to `requested`, which may have come later.
    fn answer(&self, requested: &StorageCheck) -> StorageCheckReport {
        let requested_name = requested.make.as_ref().map(ProbeSecret::name);
        let is_requested = |name: &&ProbeName| requested.look_for.contains(name);
        let StorageCheckReport { path, made, found, missing, sample, error } = &self.report;
        StorageCheckReport {
            path: path.clone(),
            made: made.clone().filter(|name| requested_name.as_ref() == Some(name)),
            found: found.iter().filter(is_requested).cloned().collect(),
            missing: missing.iter().filter(is_requested).cloned().collect(),
            sample: sample.clone().filter(|_| requested.sample),
            // An error of other work would be taken for one of this.
            error: error.clone().filter(|_| self.check == *requested),
        }
    }
}

/// The place of a probe file, for messages.
fn locate(dir: &AbsPath, name: &ProbeName) -> AbsPath {
    RelPath::new(name.as_str()).map_or_else(|_| dir.clone(), |name| dir.join(&name))
}

/// A report that is being made.
struct Findings {
    report: StorageCheckReport,
}

impl Findings {
    fn new(check: &StorageCheck) -> Self {
        let report = StorageCheckReport {
            path: check.path.clone(),
            made: None,
            found: Vec::new(),
            missing: Vec::new(),
            sample: None,
            error: None,
        };
        Findings { report }
    }

    /// Records an error, unless there is one.
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.report.error.get_or_insert_with(|| error.to_string());
    }

    /// Whether the path leads to `root`; otherwise that is the error.
    fn check_path(&mut self, root: &RootDir) -> bool {
        let Some(loss) = root.check_path() else { return true };
        self.report.error = Some(format!("{}: {loss}; {}", root.path(), loss.hint()));
        false
    }

    fn look(&mut self, root: &RootDir, check: &StorageCheck) {
        for name in &check.look_for {
            match root.look_for_probe(name) {
                Ok(ProbeState::Found) => self.report.found.push(name.clone()),
                Ok(ProbeState::Missing) => self.report.missing.push(name.clone()),
                Ok(ProbeState::Other) => self.fail(&format!(
                    "{} is not the file that another agent made, but something else of this name; remove it",
                    locate(root.path(), name)
                )),
                Err(error) => self.fail(&error),
            }
        }
        if check.sample {
            match root.sample_entries() {
                Ok(sample) => self.report.sample = sample,
                Err(error) => self.fail(&error),
            }
        }
    }

    fn discard_findings(&mut self) {
        let StorageCheckReport { found, missing, sample, .. } = &mut self.report;
        (*found, *missing, *sample) = (Vec::new(), Vec::new(), None);
    }
}
