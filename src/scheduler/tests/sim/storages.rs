//! What is behind the storage paths of simulated agents. A *disk* is a true storage: one file tree, which the scheduler
//! knows only by what agents report. Disks of one path may look alike; a path may lead to another disk after a reboot or
//! in the middle; an agent may declare, and report, what is not so.

use super::agent::Agent;
use super::rng::SimRng;
use super::storage_model::StorageModel;
use super::world::{Sim, SimEvent};
use super::*;
use crate::scheduler::storage_types::View;
use crate::wire::WorkerId;
use crate::wire::outcome::Side;
use crate::wire::storage::{
    ProbeName, StorageCheck, StorageCheckReport, StorageDeclaration, StorageReport,
};
use crate::wire::testing::storage_report;
use crate::wire::ticket::Claims;
use crate::wire::worker::boot_and_root;
use std::collections::HashMap;

pub(super) const SOURCE: &str = "/src";
pub(super) const DESTINATION: &str = "/dst";

/// A true storage.
#[derive(Debug)]
pub(super) struct Disk {
    path: &'static str,
    fs_type: &'static str,
    /// Disks with the same one have the same fingerprint, but for the device.
    look: u64,
    /// The only host that can mount it.
    host: Option<usize>,
    probes: BTreeSet<ProbeName>,
    /// What a destination has of each tree. A source has all of them.
    pub(super) sites: Vec<StorageModel>,
}

/// A mounted disk: with its number under the kernel of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) disk: usize,
    number: u64,
}

impl Root {
    fn id(self) -> String {
        format!("8:{}-2", self.number)
    }
}

/// How far the reports of an agent are true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Honesty {
    Honest,
    /// It does not answer checks before all is calm.
    Mute,
    /// It reports each probe file as found. It makes probe files, which others do not find.
    Liar,
    /// The same, and it reports that it cannot write: nobody can look for a file of it, and it is believed.
    ReadOnlyLiar,
}

/// A storage path of an agent.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) path: AbsPath,
    /// What it leads to.
    pub(super) now: Option<Root>,
    /// What the process has open, and reports.
    pub(super) open: Option<Root>,
    read_only: bool,
    declared: Option<StorageDeclaration>,
    /// The probe file that the process made.
    made: Option<(usize, ProbeName)>,
    /// The check to carry out, and the last one that was.
    check: Option<StorageCheck>,
    done: Option<StorageCheckReport>,
}

impl Mount {
    pub(super) fn new(path: &str) -> Mount {
        Mount {
            path: AbsPath::new(path).unwrap(),
            now: None,
            open: None,
            read_only: false,
            declared: None,
            made: None,
            check: None,
            done: None,
        }
    }

    /// A new process opens what is there. Probe files of the last one stay.
    pub(super) fn restart(&mut self) {
        self.open = self.now;
        (self.made, self.check, self.done) = (None, None, None);
    }
}

/// A host: how often it booted, and the numbers of its mounts.
#[derive(Debug, Default)]
pub(super) struct Host {
    boots: u64,
    mounts: BTreeMap<usize, u64>,
}

/// All true storages, and which of them heartbeats mean.
#[derive(Debug, Default)]
pub(super) struct Storages {
    pub(super) disks: Vec<Disk>,
    pub(super) hosts: Vec<Host>,
    /// Disks by boot id and root id.
    truth: HashMap<(String, String), usize>,
    /// Disks of a path look alike.
    is_alike: bool,
    /// Paths lead to other disks now and then.
    pub(super) has_moves: bool,
    /// All agents say the truth, and answer.
    pub(super) is_honest: bool,
}

impl Storages {
    pub(super) fn generate(chance: &mut SimRng, hosts: u64) -> Storages {
        Storages {
            hosts: (0..hosts).map(|_| Host::default()).collect(),
            is_alike: chance.permille(500),
            has_moves: chance.permille(300),
            is_honest: true,
            ..Storages::default()
        }
    }

    pub(super) fn boot_id(&self, host: usize) -> String {
        format!("host{host}-{}", self.hosts[host].boots)
    }

    /// The disk that a view of the scheduler is.
    pub(super) fn disk_of(&self, view: &View) -> Option<usize> {
        let (boot, root) = view.root()?;
        self.truth.get(&(boot.to_owned(), root.to_owned())).copied()
    }

    fn mount(&mut self, host: usize, disk: usize) -> Root {
        let boot = self.boot_id(host);
        // Each kernel begins with 1: after a reboot another disk may have the number of this one.
        let mounts = &mut self.hosts[host].mounts;
        let next = mounts.len() as u64 + 1;
        let root = Root { disk, number: *mounts.entry(disk).or_insert(next) };
        self.truth.insert((boot, root.id()), disk);
        root
    }

    /// Adds a disk; without a host it is shared.
    pub(super) fn add(&mut self, path: &'static str, host: Option<usize>, trees: &[StorageModel]) {
        let look = if self.is_alike { 7 } else { self.disks.len() as u64 };
        let fs_type = if host.is_some() { "ext4" } else { "nfs4" };
        let probes = BTreeSet::new();
        let sites = trees.to_vec();
        self.disks.push(Disk { path, fs_type, look, host, probes, sites });
    }

    /// A disk that a host can mount at a path.
    fn choose(&self, chance: &mut SimRng, path: &AbsPath, host: usize) -> usize {
        let fits = |disk: &Disk| {
            path.as_bytes() == disk.path.as_bytes() && disk.host.is_none_or(|own| own == host)
        };
        let fitting: Vec<usize> = (0..self.disks.len()).filter(|n| fits(&self.disks[*n])).collect();
        *chance.pick(&fitting).expect("each path has a shared disk or one of each host")
    }

    /// The report of an agent on one of its paths.
    fn report(&self, agent: &Agent, mount: &Mount) -> Option<(String, StorageReport)> {
        let root = mount.open?;
        let disk = &self.disks[root.disk];
        let mut report = storage_report(disk.path, disk.fs_type, disk.look);
        report.declared.clone_from(&mount.declared);
        report.fingerprint.device = root.number;
        report.fingerprint.read_only = mount.read_only || agent.honesty == Honesty::ReadOnlyLiar;
        Some((root.id(), report))
    }

    /// Adds what an agent reports of its storage paths to a heartbeat.
    pub(super) fn describe(&self, agent: &Agent, heartbeat: &mut WorkerHeartbeat) {
        heartbeat.boot_id = Some(self.boot_id(agent.host));
        for mount in &agent.mounts {
            let Some((root, report)) = self.report(agent, mount) else {
                let reason = "missing".to_owned();
                heartbeat
                    .unavailable_paths
                    .push(UnavailablePath { path: mount.path.clone(), reason });
                continue;
            };
            heartbeat.storage_paths.push(mount.path.clone());
            heartbeat.root_ids.insert(mount.path.to_string(), root);
            heartbeat.storages.push(report);
            heartbeat.storage_checks.extend(mount.done.clone());
        }
    }
}

/// The claims of a ticket, without a check of its signature.
pub(super) fn claims_of(ticket: &str) -> Claims {
    use base64::Engine as _;
    let body = ticket.split('.').nth(1).unwrap_or_default();
    let body = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).expect("a ticket");
    minicbor::decode(&body).expect("claims")
}

/// The failure of a storage path that does not lead to the expected directory.
pub(super) fn storage_gone(side: Side, worker: &WorkerId) -> EntryError {
    EntryError {
        worker_id: Some(worker.clone()),
        class: ErrorClass::StorageGone,
        ..EntryError::new(b"", side, "use storage path", "it leads elsewhere")
    }
}

impl Sim {
    /// Adds the disks of all paths, and mounts one at each path of each agent.
    pub(super) fn mount_all(&mut self, shared_sources: u64, shared_destinations: u64) {
        let sites = self.sites_at_start.clone();
        for (path, shared) in [(SOURCE, shared_sources), (DESTINATION, shared_destinations)] {
            (0..shared).for_each(|_| self.storages.add(path, None, &sites));
            // Otherwise each host has its own.
            let hosts = if shared == 0 { self.storages.hosts.len() } else { 0 };
            (0..hosts).for_each(|host| self.storages.add(path, Some(host), &sites));
            if shared == 1 && self.chance.permille(300) {
                (0..self.storages.hosts.len())
                    .for_each(|host| self.storages.add(path, Some(host), &sites));
            }
        }
        self.mount_agents();
    }

    /// Mounts a disk at each path of each agent.
    pub(super) fn mount_agents(&mut self) {
        for agent in 0..self.agents.len() {
            let host = self.agents[agent].host;
            for at in 0..self.agents[agent].mounts.len() {
                let path = self.agents[agent].mounts[at].path.clone();
                let disk = self.storages.choose(&mut self.chance, &path, host);
                let root = self.storages.mount(host, disk);
                let mount = &mut self.agents[agent].mounts[at];
                mount.now = Some(root);
                let is_source = path.as_bytes() == SOURCE.as_bytes();
                mount.read_only = is_source && self.chance.permille(300);
            }
        }
    }

    /// Gives some agents a false declaration, or false reports.
    pub(super) fn spread_lies(&mut self) {
        if self.chance.permille(700) {
            return;
        }
        self.storages.is_honest = false;
        let agent = self.chance.below(self.agents.len() as u64) as usize;
        let agent = &mut self.agents[agent];
        let kinds = [Honesty::Mute, Honesty::Liar, Honesty::ReadOnlyLiar, Honesty::Honest];
        agent.honesty = kinds[self.chance.below(4) as usize];
        for agent in &mut self.agents {
            for mount in &mut agent.mounts {
                if self.chance.permille(200) {
                    let id = if self.chance.permille(500) { "one" } else { "two" };
                    mount.declared = match self.chance.permille(300) {
                        true => Some(StorageDeclaration::Local),
                        false => Some(StorageDeclaration::Storage(id.parse().unwrap())),
                    };
                }
            }
        }
    }

    /// Declarations are corrected, all agents answer, and each path leads somewhere.
    pub(super) fn calm_storages(&mut self) {
        for agent in 0..self.agents.len() {
            if self.agents[agent].honesty == Honesty::Mute {
                self.agents[agent].honesty = Honesty::Honest;
            }
            for at in 0..self.agents[agent].mounts.len() {
                self.agents[agent].mounts[at].declared = None;
                if self.agents[agent].mounts[at].now.is_none() {
                    self.remount(agent, at);
                }
            }
        }
    }

    /// Another disk, or the same one, is mounted at a path of an agent.
    fn remount(&mut self, agent: usize, at: usize) {
        let (host, path) = (self.agents[agent].host, self.agents[agent].mounts[at].path.clone());
        let disk = self.storages.choose(&mut self.chance, &path, host);
        let root = self.storages.mount(host, disk);
        self.agents[agent].mounts[at].now = Some(root);
        self.trace(|sim| format!("{} has disk {root:?} at {path}", sim.agents[agent].name));
    }

    /// A path of an agent leads elsewhere, or nowhere.
    pub(super) fn move_path(&mut self, agent: usize) {
        if !self.storages.has_moves {
            return;
        }
        let at = self.chance.below(self.agents[agent].mounts.len() as u64) as usize;
        if self.chance.permille(300) {
            self.trace(|sim| format!("a path of {} is unmounted", sim.agents[agent].name));
            self.agents[agent].mounts[at].now = None;
        } else {
            self.remount(agent, at);
        }
    }

    /// A host loses power, and starts again: what was not flushed is lost, and its mounts have other numbers.
    pub(super) fn reboot(&mut self, host: usize, ms: u64) {
        for disk in &mut self.storages.disks {
            for site in &mut disk.sites {
                site.lose_unflushed(host, self.time, &mut self.chance);
            }
        }
        self.storages.hosts[host].boots += 1;
        self.storages.hosts[host].mounts.clear();
        for agent in 0..self.agents.len() {
            if self.agents[agent].host != host {
                continue;
            }
            for at in 0..self.agents[agent].mounts.len() {
                let before = self.agents[agent].mounts[at].now;
                match before {
                    Some(root) if !(self.storages.has_moves && self.chance.permille(300)) => {
                        let root = self.storages.mount(host, root.disk);
                        self.agents[agent].mounts[at].now = Some(root);
                    }
                    _ => self.remount(agent, at),
                }
            }
            self.kill(agent, ms);
        }
    }

    /// The reply to a heartbeat names what to do for comparisons. Only the reply to the last one counts.
    pub(super) fn receive_checks(&mut self, agent: usize, request: u64, checks: &[StorageCheck]) {
        let a = &mut self.agents[agent];
        if request < a.last_reply {
            return;
        }
        a.last_reply = request;
        for mount in &mut a.mounts {
            let check = checks.iter().find(|check| check.path == mount.path).cloned();
            let make = check.as_ref().and_then(|check| Some(check.make.as_ref()?.name()));
            let make = make.as_ref();
            if let Some((disk, name)) = mount.made.take_if(|(_, made)| Some(&*made) != make) {
                self.storages.disks[disk].probes.remove(&name);
            }
            if check.is_none() {
                mount.done = None;
            }
            mount.check = check;
        }
        if !checks.is_empty() && a.honesty != Honesty::Mute {
            let incarnation = a.incarnation;
            let ms = if self.calm { 10 } else { self.chance.within(1, 3_000) };
            self.schedule(ms, SimEvent::Check(agent, incarnation));
        }
    }

    /// An agent carries out the checks, and reports at once.
    pub(super) fn carry_out_checks(&mut self, agent: usize, incarnation: u64) {
        let a = &mut self.agents[agent];
        if a.down || a.incarnation != incarnation {
            return;
        }
        if a.frozen_until > self.time {
            let after = a.frozen_until - self.time;
            return self.schedule(after, SimEvent::Check(agent, incarnation));
        }
        let honesty = a.honesty;
        let mut is_done = false;
        for mount in &mut a.mounts {
            let Some(check) = mount.check.take() else { continue };
            is_done = true;
            let mut report = StorageCheckReport {
                path: check.path,
                made: None,
                found: Vec::new(),
                missing: Vec::new(),
                sample: None,
                error: None,
            };
            let root = mount.open.filter(|root| mount.now == Some(*root));
            let Some(root) = root else {
                report.error = Some("it leads elsewhere".to_owned());
                mount.done = Some(report);
                continue;
            };
            let probes = &mut self.storages.disks[root.disk].probes;
            match check.make {
                Some(_) if mount.read_only || honesty == Honesty::ReadOnlyLiar => {
                    report.error = Some("read-only".to_owned());
                }
                Some(secret) => {
                    let name = secret.name();
                    probes.insert(name.clone());
                    mount.made = Some((root.disk, name.clone()));
                    report.made = Some(name);
                }
                None => {}
            }
            let lies = matches!(honesty, Honesty::Liar | Honesty::ReadOnlyLiar);
            let looks = check.look_for.into_iter();
            (report.found, report.missing) = looks.partition(|name| lies || probes.contains(name));
            report.sample = check.sample.then(|| format!("disk {}", root.disk));
            mount.done = Some(report);
        }
        if is_done {
            self.send_one_heartbeat(agent);
        }
    }

    /// The disk that an agent may use for an assignment at a path: it is mounted, open, and the expected one.
    pub(super) fn usable_root(
        &self,
        agent: usize,
        path: &AbsPath,
        is_expected: impl Fn(&WorkerId, &str) -> bool,
    ) -> Option<usize> {
        let a = &self.agents[agent];
        let mount = a.mounts.iter().find(|mount| mount.path.contains(path))?;
        let root = mount.open.filter(|root| mount.now == Some(*root))?;
        let here = boot_and_root(&self.storages.boot_id(a.host), &root.id());
        is_expected(&a.name, &here).then_some(root.disk)
    }

    /// Whether reports of an agent are believed that are not true: where it cannot write, nobody else can check them.
    pub(super) fn is_wrongly_believed(&self, worker: &WorkerId) -> bool {
        let agent = self.agents.iter().find(|agent| agent.name == *worker);
        agent.is_some_and(|agent| match agent.honesty {
            Honesty::ReadOnlyLiar => true,
            Honesty::Liar => agent.mounts.iter().any(|mount| mount.read_only),
            Honesty::Honest | Honesty::Mute => false,
        })
    }
}
