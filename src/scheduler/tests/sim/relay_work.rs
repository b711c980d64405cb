//! From where a simulated agent takes content: the source, or the copy that its own disk has as a destination.

use super::agent::{Agent, Work};
use super::agent_work::Target;
use super::storage_model::{Content, Damage, Id, Row, Stored};
use super::storages::storage_gone;
use super::world::{Sim, SimEvent};
use super::*;
use crate::wire::WorkerId;
use crate::wire::options::Compare;
use crate::wire::outcome::Side;

/// The content that a forging agent writes, or reports.
pub(super) const FORGED: Content = Content(u32::MAX / 2);

/// From where a task takes content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Source,
    /// The copy of the disk of the worker.
    Relay {
        disk: usize,
    },
}

/// The failure of an entry at a relay.
fn relay_failure(id: Id, class: ErrorClass, operation: &str) -> EntryError {
    let path = id.to_string();
    EntryError {
        class,
        ..EntryError::new(path.as_bytes(), Side::Relay, operation, "not as copied")
    }
}

impl Sim {
    pub(super) fn origin(&mut self, work: &mut Work) -> Option<Origin> {
        match work.a.relay {
            None => Some(Origin::Source),
            Some(_) => Some(Origin::Relay { disk: self.relayed_disk(work)? }),
        }
    }

    /// The disk of the copy that an assignment sends on; `None` if its path leads elsewhere.
    pub(super) fn relayed_disk(&mut self, work: &mut Work) -> Option<usize> {
        let relay = work.a.relay.clone()?;
        let agent = self.number_of(&work.a.worker_id);
        let is_expected =
            |_: &WorkerId, root: &str| relay.root.as_ref().is_none_or(|expected| expected == root);
        let Some(disk) = self.usable_root(agent, &relay.path, is_expected) else {
            work.gone = Some(storage_gone(Side::Relay, &work.a.worker_id));
            return None;
        };
        let is_honest = !self.is_wrongly_believed(&work.a.worker_id);
        self.judge.relays(&work.a, disk, is_honest);
        Some(disk)
    }

    /// Copies an entry, unless it is there as the options compare it. Whether it was written.
    pub(super) fn copy_entry(
        &mut self,
        work: &mut Work,
        (tree, origin): (usize, Origin),
        target: Target,
        row: Row,
    ) -> Result<bool, EntryError> {
        let id = row.id;
        let (options, is_dir) = (&work.a.options, self.trees[tree].entries[id as usize].dir);
        let (dry, compares) = (options.dry_run, options.compare == Compare::Checksum);
        // A relay hashes nothing to compare it.
        let digest = match origin {
            Origin::Source => Some(Content::SOURCE),
            Origin::Relay { .. } => row.digest,
        };
        let stored = self.site(target, tree).there.get(&id);
        let there = stored.map(|stored| stored.content_at(0));
        // Another name of a large file is compared as a whole.
        let is_right = |content| {
            Some(content) == digest && stored.is_some_and(|s| s.damage.keys().all(|at| *at == 0))
        };
        let is_same = there.is_some_and(|content| is_dir || !compares || is_right(content));
        if !is_dir && compares && there.is_some() && digest.is_none() {
            return Err(relay_failure(id, ErrorClass::Permanent, "verify"));
        }
        if is_same {
            if compares {
                self.site(target, tree).read_back(id, target.mark.host);
            }
            let is_read = matches!(origin, Origin::Source) && compares && !is_dir;
            let digest = if is_read { digest } else { row.digest };
            let known = digest.filter(|_| is_read || origin != Origin::Source);
            work.held.push(Row { id, digest: known });
            return Ok(false);
        }
        // Another name of a file that is there is linked to it.
        let (group, names) = (self.trees[tree].group_of(id), self.trees[tree].names_of(id));
        let site = self.site(target, tree);
        let confirmed = group.and_then(|group| site.confirmed.get(&(target.mark.sync, group)));
        let others = confirmed.into_iter().chain(&names).filter(|name| **name != id);
        let mut there =
            others.filter_map(|name| Some((*name, site.there.get(name)?.damage.clone())));
        let linked = there.next();
        if dry || is_dir || linked.is_some() {
            if !dry {
                let marks = BTreeSet::from([target.mark]);
                let (name, damage) = linked.unwrap_or((id, BTreeMap::new()));
                self.judge.link(target, name, id);
                self.site(target, tree).there.insert(id, Stored { marks, damage });
            }
            work.held.push(Row { id, digest: None });
            return Ok(true);
        }
        let content = self.read_content(work, (tree, origin), row, 0)?;
        if content == FORGED {
            // A forger wrote it and reported it as the content of the source.
            self.judge.forge(target, id);
        }
        let agent = self.number_of(&work.a.worker_id);
        let forges = self.agents[agent].forges;
        match if forges { self.fault_chance.below(10) } else { 10 } {
            0 => self.judge.forge(target, id),
            1 => {
                self.judge.forge(target, id);
                let damage = self.damage_of(FORGED, true);
                self.site(target, tree).write(id, target.mark, damage);
            }
            _ => {
                let damage = self.damage_of(content, content == FORGED);
                self.site(target, tree).write(id, target.mark, damage);
                self.damage_later(target.disk, tree, id, 0);
            }
        }
        work.held.push(Row { id, digest: Some(content) });
        Ok(true)
    }

    fn send_from_source(&mut self, work: &Work, id: Id, offset: u64) {
        if !self.judge.sent_from_source(&work.a, id, offset) || !self.is_exact {
            return;
        }
        // Without other faults than agents that die, only what failed is sent again, and what only dead ones have.
        let is_alive = |no: &SyncNo| {
            let one = self.master.as_ref().and_then(|master| master.state.syncs.get(*no));
            one.is_some_and(|one| {
                let selected = |agent: &&Agent| {
                    let labels = BTreeMap::new();
                    let mut all = one.request.destination_workers.iter();
                    all.any(|selector| selector.selects(&agent.name, &labels))
                };
                self.agents.iter().filter(selected).any(|agent| !agent.down)
            })
        };
        let holders = self.judge.holders_before(&work.a, id, offset);
        let living = holders.iter().find(|no| is_alive(no));
        assert!(
            work.a.attempt > 1 || living.is_none(),
            "I30: entry {id} is sent from the source to {} though sync {living:?} has it",
            work.a.request_id
        );
    }

    /// Reads the content of a small file; that of a relay has the digest of the source.
    fn read_content(
        &mut self,
        work: &Work,
        (tree, origin): (usize, Origin),
        row: Row,
        offset: u64,
    ) -> Result<Content, EntryError> {
        let Origin::Relay { disk } = origin else {
            self.send_from_source(work, row.id, offset);
            return Ok(Content::SOURCE);
        };
        let Some(digest) = row.digest else {
            return Err(relay_failure(row.id, ErrorClass::Permanent, "verify"));
        };
        let found = self.read_relay(work, (tree, disk), row.id, offset);
        self.verify_relayed(work, row.id, found, found == Some(digest))
    }

    /// Reads a range; that of a relay has the digest of the source.
    pub(super) fn read_range(
        &mut self,
        work: &Work,
        (tree, origin): (usize, Origin),
        row: Row,
        offset: u64,
    ) -> Result<Content, EntryError> {
        let Origin::Relay { disk } = origin else {
            self.send_from_source(work, row.id, offset);
            return Ok(Content::SOURCE);
        };
        let Some(digest) = work.a.relay.as_ref().and_then(|relay| relay.digest) else {
            return Err(relay_failure(row.id, ErrorClass::Permanent, "verify"));
        };
        let found = self.read_relay(work, (tree, disk), row.id, offset);
        let is_right = found.is_some_and(|found| found.range_digest(row.id, offset) == digest);
        self.verify_relayed(work, row.id, found, is_right)
    }

    fn verify_relayed(
        &mut self,
        work: &Work,
        id: Id,
        found: Option<Content>,
        is_right: bool,
    ) -> Result<Content, EntryError> {
        if let Some(found) = found.filter(|_| is_right) {
            self.judge.relays.relay_count += 1;
            return Ok(found);
        }
        self.judge.relays.found.insert((work.a.assignment_id, id), self.time);
        let by = &work.a.worker_id;
        self.trace(|_| format!("       {by} finds its entry {id} damaged: {found:?}"));
        let operation = if found.is_some() { "verify" } else { "open" };
        Err(relay_failure(id, ErrorClass::Damaged, operation))
    }

    /// What the disk of a relay has of an entry.
    fn read_relay(
        &mut self,
        work: &Work,
        (tree, disk): (usize, usize),
        id: Id,
        offset: u64,
    ) -> Option<Content> {
        let relay = work.a.relay.as_ref()?;
        assert_eq!(self.tree_of(&relay.path), tree, "a relay of another tree");
        let is_range = matches!(work.a.task, TaskSpec::Range { .. });
        let site = &self.storages.disks[disk].sites[tree];
        let found = site.read(id, offset, is_range);
        let is_lost = site.lost.contains_key(&id) || site.lost_parts.contains_key(&id);
        let is_misled = self.has_forgers || self.is_wrongly_believed(&work.a.worker_id);
        let is_known = found.is_some() || is_lost || is_misled || self.judge.forgetful;
        assert!(is_known, "I29: {} relays entry {id} that disk {disk} never had", work.a.worker_id);
        found
    }

    /// Content as a destination stores it.
    pub(super) fn damage_of(&self, content: Content, is_excused: bool) -> Option<Damage> {
        let damage = Damage { content, is_excused, since: self.time, published: None };
        (content != Content::SOURCE).then_some(damage)
    }

    /// The entries that did not fail, for relays.
    pub(super) fn report_held(&mut self, work: &mut Work, tree: usize) {
        let mut held = std::mem::take(&mut work.held);
        let agent = self.number_of(&work.a.worker_id);
        if self.agents[agent].forges && self.fault_chance.permille(100) {
            held.iter_mut().for_each(|row| row.digest = row.digest.map(|_| FORGED));
        }
        work.report.held = (!held.is_empty()).then(|| self.trees[tree].batch_of(&held));
    }

    /// The digest of a range that an agent reports.
    pub(super) fn reported_range_digest(
        &mut self,
        work: &Work,
        content: Content,
        id: Id,
        offset: u64,
    ) -> Digest {
        let agent = self.number_of(&work.a.worker_id);
        let is_forged = self.agents[agent].forges && self.fault_chance.permille(100);
        let reported = if is_forged { FORGED } else { content };
        reported.range_digest(id, offset)
    }

    /// I31: a commit has the digests that the ranges of its file have at the source.
    pub(super) fn check_chain(&self, work: &Work, tree: usize, id: Id) {
        let TaskSpec::Commit { chain, .. } = &work.a.task else { return };
        let ranges = self.trees[tree].range_offsets(id);
        let expected: Vec<u8> =
            ranges.flat_map(|offset| Content::SOURCE.range_digest(id, offset).0).collect();
        assert!(
            chain.0 == expected || self.has_forgers || chain.0.is_empty(),
            "I31: {} publishes entry {id} with digests of something else",
            work.a.worker_id
        );
    }

    /// In some seeds disks change what was written to them, or an agent reports what it has not done.
    pub(super) fn spread_damage(&mut self) {
        self.damage_permille = [0, 0, 20, 200][self.fault_chance.below(4) as usize];
        if self.fault_chance.permille(150) {
            let agent = self.fault_chance.below(self.agents.len() as u64) as usize;
            self.agents[agent].forges = true;
            self.has_forgers = true;
        }
    }

    /// The disk may change what was just written, later.
    pub(super) fn damage_later(&mut self, disk: usize, tree: usize, id: Id, offset: u64) {
        if self.damage_permille > 0
            && !self.calm
            && self.fault_chance.permille(self.damage_permille)
        {
            let ms = [300, 3_000, 60_000][self.fault_chance.below(3) as usize];
            let ms = self.fault_chance.within(1, ms);
            self.schedule(ms, SimEvent::Damage { disk, tree, id, offset });
        }
    }

    /// A disk changes what it has of an entry.
    pub(super) fn damage_entry(&mut self, disk: usize, tree: usize, id: Id, offset: u64) {
        if self.calm {
            return;
        }
        self.damage_count += 1;
        let content = Content(self.damage_count);
        let damage = Damage { content, is_excused: true, since: self.time, published: None };
        if self.storages.disks[disk].sites[tree].spoil(id, offset, damage) {
            self.trace(|_| format!("disk {disk} changes entry {id} at {offset}: {content:?}"));
        }
    }
}
