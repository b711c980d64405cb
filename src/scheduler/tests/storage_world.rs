//! Agents with file trees, for the tests of the table of storages: they make and look for probe files in trees that the
//! test knows to be the same or not.

use crate::scheduler::storage_table::{Merge, StorageTable};
use crate::scheduler::storage_types::{StorageNo, View};
use crate::wire::storage::{
    ConfiguredStorage, ProbeName, StorageCheck, StorageCheckReport, StorageDeclaration,
    StorageReport,
};
use crate::wire::testing::storage_report;
use crate::wire::worker::{PROTOCOL_VERSION, UnavailablePath, WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, StorageId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const PATH: &str = "/p";

pub(super) fn path() -> AbsPath {
    AbsPath::new(PATH).unwrap()
}

pub(super) fn id_of(at: usize) -> WorkerId {
    format!("w{at}").parse().unwrap()
}

pub(super) fn storage_id(id: &str) -> StorageId {
    id.parse().unwrap()
}

/// A file tree. Two trees with the same `look` have the same fingerprint, but for the device.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    pub(super) fs_type: &'static str,
    pub(super) look: u64,
    pub(super) files: BTreeSet<ProbeName>,
    pub(super) is_empty: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) host: usize,
    pub(super) tree: usize,
    /// Which of several mounts of the tree on its host.
    pub(super) mount: usize,
    pub(super) read_only: bool,
    /// Another type than that of the tree: it is mounted over the network.
    pub(super) fs_type: Option<&'static str>,
    pub(super) declared: Option<StorageDeclaration>,
    pub(super) incarnation: u32,
    pub(super) is_guide: bool,
    pub(super) is_unavailable: bool,
    pub(super) is_unreported: bool,
    pub(super) fails_to_make: bool,
    pub(super) fails_to_look: bool,
    /// It reports each file as found.
    pub(super) is_liar: bool,
    made: Option<ProbeName>,
    done: Option<StorageCheckReport>,
    /// The tree in its last heartbeat.
    pub(super) reported_tree: Option<usize>,
}

#[derive(Default)]
pub(super) struct StorageWorld {
    pub(super) table: StorageTable,
    pub(super) configured: Vec<ConfiguredStorage>,
    pub(super) trees: Vec<Tree>,
    pub(super) agents: Vec<Agent>,
    pub(super) boots: BTreeMap<usize, u32>,
    pub(super) records: BTreeMap<String, Vec<u8>>,
    pub(super) files_made: usize,
    pub(super) looks: usize,
    drawn: u128,
}

impl StorageWorld {
    /// Trees of these types, all with the same fingerprint.
    pub(super) fn new(types: &[&'static str]) -> Self {
        let tree = |fs_type: &&'static str| Tree { fs_type, look: 7, ..Tree::default() };
        StorageWorld { trees: types.iter().map(tree).collect(), ..StorageWorld::default() }
    }

    /// Adds an agent on a host of its own. It has sent no heartbeat yet.
    pub(super) fn add(&mut self, tree: usize) -> usize {
        let host = self.agents.len();
        self.agents.push(Agent {
            host,
            tree,
            mount: 0,
            read_only: false,
            fs_type: None,
            declared: None,
            incarnation: 0,
            is_guide: false,
            is_unavailable: false,
            is_unreported: false,
            fails_to_make: false,
            fails_to_look: false,
            is_liar: false,
            made: None,
            done: None,
            reported_tree: None,
        });
        host
    }

    pub(super) fn add_declared(&mut self, tree: usize, id: &str) -> usize {
        let at = self.add(tree);
        self.agents[at].declared = Some(StorageDeclaration::Storage(storage_id(id)));
        at
    }

    pub(super) fn boot_id(&self, at: usize) -> String {
        let host = self.agents[at].host;
        format!("h{host}-{}", self.boots.get(&host).copied().unwrap_or(0))
    }

    fn report(&self, at: usize) -> StorageReport {
        let (agent, tree) = (&self.agents[at], &self.trees[self.agents[at].tree]);
        let mut report = storage_report(PATH, agent.fs_type.unwrap_or(tree.fs_type), tree.look);
        report.declared.clone_from(&agent.declared);
        report.fingerprint.device = (agent.tree * 10 + agent.mount) as u64;
        report.fingerprint.read_only = agent.read_only;
        report
    }

    fn heartbeat_of(&self, at: usize) -> WorkerHeartbeat {
        let agent = &self.agents[at];
        let mut heartbeat: WorkerHeartbeat = serde_json::from_value(
            serde_json::json!({ "worker_id": id_of(at), "status": "READY" }),
        )
        .unwrap();
        match agent.is_unavailable {
            true => heartbeat
                .unavailable_paths
                .push(UnavailablePath { path: path(), reason: "missing".to_owned() }),
            false => heartbeat.storage_paths.push(path()),
        }
        if agent.is_guide {
            return heartbeat;
        }
        heartbeat.protocol = Some(PROTOCOL_VERSION);
        heartbeat.incarnation = Some(agent.incarnation.to_string());
        heartbeat.boot_id = Some(self.boot_id(at));
        if !agent.is_unavailable && !agent.is_unreported {
            let root = format!("{}-{}", agent.tree, agent.mount);
            heartbeat.root_ids.insert(PATH.to_owned(), root);
            heartbeat.storages.push(self.report(at));
            heartbeat.storage_checks.extend(agent.done.clone());
        }
        heartbeat
    }

    fn observe(&mut self, heartbeat: &WorkerHeartbeat) -> Vec<Merge> {
        let drawn = &mut self.drawn;
        let mut draw = || {
            *drawn += 1;
            blake3::hash(&drawn.to_le_bytes()).as_bytes()[..16].try_into().unwrap()
        };
        let merges = self.table.observe(heartbeat, &self.configured, &mut draw);
        self.save();
        merges
    }

    fn save(&mut self) {
        for key in self.table.take_unsaved() {
            match self.table.record(&key) {
                Some(value) => drop(self.records.insert(key, value)),
                None => drop(self.records.remove(&key)),
            }
        }
    }

    /// Sends a heartbeat and does what the reply says.
    pub(super) fn heartbeat(&mut self, at: usize) -> Vec<Merge> {
        let heartbeat = self.heartbeat_of(at);
        let merges = self.observe(&heartbeat);
        let agent = &mut self.agents[at];
        if !agent.is_unavailable && !agent.is_unreported {
            agent.reported_tree = Some(agent.tree);
        }
        let mut checks = self.table.checks_for(&id_of(at));
        assert!(checks.len() <= 1, "one path");
        self.carry_out(at, checks.pop());
        merges
    }

    fn carry_out(&mut self, at: usize, check: Option<StorageCheck>) {
        let agent = &mut self.agents[at];
        let files = &mut self.trees[agent.tree].files;
        let make = check.as_ref().and_then(|check| Some(check.make.as_ref()?.name()));
        if let Some(old) = agent.made.take_if(|made| Some(&*made) != make.as_ref()) {
            files.remove(&old);
        }
        let Some(check) = check else {
            agent.done = None;
            return;
        };
        let mut report = StorageCheckReport {
            path: check.path,
            made: None,
            found: Vec::new(),
            missing: Vec::new(),
            sample: None,
            error: None,
        };
        match make {
            Some(_) if agent.fails_to_make || agent.read_only => {
                report.error = Some("no space".to_owned());
            }
            Some(name) => {
                self.files_made += usize::from(files.insert(name.clone()));
                agent.made = Some(name.clone());
                report.made = Some(name);
            }
            None => {}
        }
        if agent.fails_to_look {
            report.error = Some("stale handle".to_owned());
        } else {
            self.looks += check.look_for.len();
            let (found, missing) =
                check.look_for.into_iter().partition(|n| agent.is_liar || files.contains(n));
            (report.found, report.missing) = (found, missing);
            let is_empty = self.trees[agent.tree].is_empty;
            report.sample = (check.sample && !is_empty).then(|| agent.tree.to_string());
        }
        agent.done = Some(report);
    }

    /// Another process of the agent. It leaves its probe file behind.
    pub(super) fn restart(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        agent.incarnation += 1;
        (agent.made, agent.done) = (None, None);
    }

    pub(super) fn reboot(&mut self, host: usize) {
        *self.boots.entry(host).or_default() += 1;
        for at in
            (0..self.agents.len()).filter(|at| self.agents[*at].host == host).collect::<Vec<_>>()
        {
            self.restart(at);
        }
    }

    /// Another tree at the path. What the agent has done in the one before is still reported.
    pub(super) fn mount(&mut self, at: usize, tree: usize, mount: usize) {
        let agent = &mut self.agents[at];
        (agent.tree, agent.mount, agent.made) = (tree, mount, None);
    }

    pub(super) fn silence(&mut self, at: usize) {
        self.table.set_active(&id_of(at), false);
        self.save();
    }

    pub(super) fn forget(&mut self, at: usize) {
        self.table.forget(&id_of(at));
        self.save();
        self.agents[at].reported_tree = None;
    }

    /// Heartbeats of all agents until nothing is compared any more. Returns the number of rounds.
    pub(super) fn pump(&mut self) -> usize {
        for round in 1..500 {
            let before = self.table.version();
            (0..self.agents.len()).for_each(|at| drop(self.heartbeat(at)));
            let is_busy =
                (0..self.agents.len()).any(|at| !self.table.checks_for(&id_of(at)).is_empty());
            if !is_busy && self.table.version() == before {
                return round;
            }
        }
        panic!("comparisons do not end");
    }

    /// A master with the stored records.
    pub(super) fn restart_master(&mut self) {
        self.table = StorageTable::default();
        for (key, value) in &self.records {
            self.table.load(key, value).unwrap();
        }
        assert!(self.table.take_unsaved().is_empty(), "what was loaded is stored");
    }

    pub(super) fn view(&self, at: usize) -> Option<&View> {
        self.table.view(&id_of(at), &path())
    }

    pub(super) fn storage(&self, at: usize) -> Option<StorageNo> {
        self.table.storage_of(&id_of(at), &path())
    }

    pub(super) fn contradiction(&self, at: usize) -> Option<&str> {
        self.table.contradiction(&id_of(at), &path())
    }

    pub(super) fn id(&self, at: usize) -> Option<String> {
        Some(self.table.id(self.storage(at)?)?.to_string())
    }

    pub(super) fn stop(&mut self, at: usize) {
        let mut heartbeat = self.heartbeat_of(at);
        heartbeat.status = WorkerStatus::Stopped;
        self.observe(&heartbeat);
    }

    /// No storage has two views of different trees, members are in order, and the records are those of the table.
    pub(super) fn check_invariants(&self) {
        for no in self.table.numbers() {
            let mut seen = BTreeSet::new();
            for (worker, view) in self.table.views_of(no) {
                assert_eq!((view.storage, view.is_linked), (Some(no), true));
                let at: usize = worker.as_str()[1..].parse().unwrap();
                if self.table.is_present(worker, &path()) {
                    seen.insert(self.agents[at].reported_tree);
                }
            }
            assert!(seen.len() <= 1, "storage {no:?} has views of the trees {seen:?}");
            assert!(self.table.members(no).is_sorted());
            assert!(self.table.views_of(no).next().is_some(), "storage {no:?} has no view");
            for (_, worker) in self.table.members(no) {
                assert_eq!(self.table.storage_of(worker, &path()), Some(no));
            }
        }
        let keys: BTreeSet<String> = self.table.record_keys().into_iter().collect();
        assert_eq!(keys, self.records.keys().cloned().collect(), "records");
        for (key, value) in &self.records {
            let now = self.table.record(key).unwrap();
            assert_eq!(String::from_utf8_lossy(&now), String::from_utf8_lossy(value), "{key}");
        }
    }
}
