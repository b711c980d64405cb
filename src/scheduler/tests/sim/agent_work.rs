//! What a simulated agent does with its assignments to the model of the data.

use super::agent::Work;
use super::relay_work::Origin;
use super::storage_model::{
    Content, Damage, Id, Item, PRUNE_PAGES, Piece, RANGE, Row, StorageModel, Stored, WriteMark,
    ids, rows,
};
use super::storages::storage_gone;
use super::world::Sim;
use super::*;
use crate::wire::options::Compare;
use crate::wire::outcome::Side;

fn number(path: &RelPath) -> usize {
    String::from_utf8(path.as_bytes()[1..].to_vec()).unwrap().parse().unwrap()
}

fn place(at: usize) -> RelPath {
    RelPath::new(format!("n{at}")).unwrap()
}

fn cursor(at: usize) -> Option<Cursor> {
    Some(Cursor { after: place(at), skip_contents: false })
}

/// The name of a page in a list.
pub(super) fn names(pages: &[usize]) -> FileListPart {
    FileListPart { paths: pages.iter().map(|at| place(*at)).collect() }
}

/// All entries that a source does not have.
pub(super) const EXTRAS: Id = Id::MAX;

/// Where the destination of an assignment is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) disk: usize,
    pub(super) mark: WriteMark,
    /// It is the disk to which the sync is bound. Only an agent that is wrongly believed has another one.
    pub(super) is_bound: bool,
}

impl Sim {
    /// The pages that the walk of an assignment visits from its start.
    pub(super) fn walk(&self, a: &Assignment, manifest: &[u8]) -> Option<Vec<usize>> {
        let tree = self.tree_of(&a.source_path);
        let from = |cursor: &Option<Cursor>| cursor.as_ref().map(|c| number(&c.after));
        match &a.task {
            TaskSpec::Scan { dir, cursor } => {
                let (begin, end) = match dir.is_root() {
                    true => (0, self.trees[tree].pages.len()),
                    false => self.trees[tree].subtrees[number(dir)],
                };
                Some((from(cursor).unwrap_or(begin)..end).collect())
            }
            TaskSpec::List { start } => {
                let list = FileListPart::decode(manifest).expect("the list that was submitted");
                Some(list.paths[*start as usize..].iter().map(number).collect())
            }
            TaskSpec::Prune { cursor, .. } => {
                Some((from(cursor).unwrap_or(0)..PRUNE_PAGES).collect())
            }
            _ => None,
        }
    }

    /// The next page of an agent; `None` if it cannot continue.
    pub(super) fn next_page(&mut self, work: &mut Work) -> Option<ScanPage> {
        let tree = self.tree_of(&work.a.source_path);
        if !self.can_read(work) {
            return None;
        }
        let at = work.walk.pop_front();
        let mut found = page(&work.a, work.number, vec![], None);
        if let TaskSpec::Prune { apply, dir, .. } = &work.a.task {
            let (dir, apply) = (dir.clone(), *apply);
            found.pruned = Some(self.prune(work, tree, at?, apply)?);
            found.next =
                work.walk.front().map(|at| TaskSpec::Prune { dir, cursor: cursor(*at), apply });
            return Some(found);
        }
        if let Some(at) = at {
            let whole = matches!(&work.a.task, TaskSpec::Scan { dir, .. } if dir.is_root());
            found.root =
                (whole && at == 0).then(|| RootState { file_system: "fs".into(), empty: false });
            let items = self.trees[tree].pages[at].iter();
            found.work = items.map(|item| self.trees[tree].work(item)).collect();
            if whole {
                self.split_off(work, tree, &mut found);
            }
        }
        found.next = work.walk.front().map(|at| match &work.a.task {
            TaskSpec::List { .. } => {
                let names = FileListPart::decode(&work.manifest).unwrap().paths.len();
                TaskSpec::List { start: (names - work.walk.len()) as u64 }
            }
            TaskSpec::Scan { dir, .. } => TaskSpec::Scan { dir: dir.clone(), cursor: cursor(*at) },
            other => panic!("a {} does not walk", other.kind()),
        });
        Some(found)
    }

    /// The next subtrees are split off on request.
    fn split_off(&self, work: &mut Work, tree: usize, found: &mut ScanPage) {
        while let Some(next) = work.walk.front().copied().filter(|_| work.spawn > 0) {
            let subtrees = &self.trees[tree].subtrees;
            let Some(at) = subtrees.iter().position(|(begin, _)| *begin == next) else { return };
            work.spawn -= 1;
            work.walk.retain(|page| *page >= subtrees[at].1);
            found.subtrees.push(place(at));
        }
    }

    /// Looks at a page of the destination, and deletes what is too much.
    fn prune(
        &mut self,
        work: &mut Work,
        tree: usize,
        at: usize,
        apply: bool,
    ) -> Option<PruneReport> {
        let target = self.target(work, apply)?;
        self.judge.spoil(target, &[EXTRAS]);
        let mark = apply.then_some(target.mark);
        let extras = self.site(target, tree).extras.iter_mut().enumerate();
        let found = extras.filter(|(n, one)| n % PRUNE_PAGES == at && one.deleted.is_none());
        let mut extra = 0;
        for (_, one) in found {
            extra += 1;
            one.deleted = mark.map(|mark| BTreeSet::from([mark]));
        }
        if apply && extra > 0 {
            self.written(&work.a, target.disk);
        }
        Some(PruneReport { checked: 10 + extra, extraneous: extra, bytes: extra * 10 })
    }

    pub(super) fn number_of(&self, worker: &crate::wire::WorkerId) -> usize {
        worker.as_str()[1..].parse().unwrap()
    }

    /// Whether the holder of an assignment can read its source, or the copy that it sends on.
    fn can_read(&mut self, work: &mut Work) -> bool {
        if work.a.relay.is_some() {
            return self.relayed_disk(work).is_some();
        }
        let agent = self.number_of(&work.a.worker_id);
        let expected = work.a.source_root.as_ref();
        let is_expected = |_: &crate::wire::WorkerId, root: &str| {
            expected.is_none_or(|expected| expected == root)
        };
        let Some(disk) = self.usable_root(agent, &work.a.source_path, is_expected) else {
            work.gone = Some(storage_gone(Side::Source, &work.a.worker_id));
            return false;
        };
        let is_honest = !self.is_wrongly_believed(&work.a.worker_id);
        self.judge.uses(&work.a, Side::Source, disk, is_honest);
        true
    }

    /// Where the destination of an assignment is used; `None` if no worker can be used there.
    fn target(&mut self, work: &mut Work, writes: bool) -> Option<Target> {
        let (agent, incarnation) = work.through?;
        let through = &self.agents[agent];
        if through.down || through.incarnation != incarnation {
            work.unreachable = Some(through.name.clone());
            return None;
        }
        if through.frozen_until > self.time {
            return None;
        }
        let (name, host) = (through.name.clone(), through.host);
        let is_believed = self.is_wrongly_believed(&through.name);
        let claims = &work.claims;
        let is_expected = |name: &_, root: &_| claims.allows_root(name, root);
        let Some(disk) = self.usable_root(agent, &work.a.destination_path, is_expected) else {
            work.gone = Some(storage_gone(Side::Destination, &name));
            return None;
        };
        let is_bound = self.judge.uses(&work.a, Side::Destination, disk, !is_believed);
        if writes && !work.report.writers.contains(&name) {
            work.report.writers.push(name);
        }
        let (task, by) = (work.a.task_id, &work.a.worker_id);
        self.trace(|_| format!("       {by} uses disk {disk} through w{agent} for task {task}"));
        let mark = WriteMark { host, sync: self.judge.life(&work.a), by: work.a.assignment_id };
        Some(Target { disk, mark, is_bound })
    }

    pub(super) fn site(&mut self, target: Target, tree: usize) -> &mut StorageModel {
        &mut self.storages.disks[target.disk].sites[tree]
    }

    /// Does a half of a task. False: it cannot be done.
    pub(super) fn execute(&mut self, work: &mut Work, second: bool) -> bool {
        let tree = self.tree_of(&work.a.source_path);
        let reads = matches!(work.a.task, TaskSpec::Copy { .. } | TaskSpec::Range { .. });
        if reads && !self.can_read(work) {
            return false;
        }
        match work.a.task.clone() {
            TaskSpec::Copy { .. } => self.copy(work, tree, second),
            TaskSpec::Range { offset, compare, .. } if second => {
                self.range(work, tree, offset, compare)
            }
            TaskSpec::Commit { in_place, .. } if second => self.publish(work, tree, in_place),
            TaskSpec::Discard if second => {
                let Some(target) = self.target(work, false) else { return false };
                let id = ids(&work.manifest)[0];
                let now = self.time;
                let site = self.site(target, tree);
                if site.parts.remove(&(target.mark.sync, id)).is_some() {
                    site.lost_parts.insert(id, now);
                }
                self.trace(|_| format!("       {} discards entry {id}", work.a.worker_id));
                true
            }
            TaskSpec::CleanUp if second => {
                let Some(target) = self.target(work, false) else { return false };
                self.site(target, tree).kept.remove(&target.mark.sync);
                true
            }
            TaskSpec::Flush if second => {
                let Some(target) = self.target(work, false) else { return false };
                self.site(target, tree).flush(target.mark.host);
                true
            }
            _ => true,
        }
    }

    /// Whether an agent dies of an assignment.
    pub(super) fn is_poisoned(&self, work: &Work) -> bool {
        let tree = self.tree_of(&work.a.source_path);
        let bad = |id: &Id| self.poison.contains(&(tree, *id));
        matches!(work.a.task, TaskSpec::Copy { .. }) && ids(&work.manifest).iter().any(bad)
    }

    fn copy(&mut self, work: &mut Work, tree: usize, second: bool) -> bool {
        let all = rows(&work.manifest);
        let dry = work.a.options.dry_run;
        let (first, last) = all.split_at(all.len() / 2);
        let Some(origin) = self.origin(work) else { return false };
        let Some(target) = self.target(work, !dry) else { return false };
        self.judge.spoil(target, &ids(&work.manifest));
        let mut failed: Vec<Row> = vec![];
        let mut fault = self.random_fault(origin);
        for row in if second { last } else { first } {
            let kind = self.trees[tree].entries[row.id as usize];
            let copied = match fault.take() {
                Some(error) => Err(error),
                None => self.copy_entry(work, (tree, origin), target, *row),
            };
            let report = &mut work.report;
            match (kind.dir, copied) {
                (_, Err(error)) => {
                    report.failures.push(error);
                    failed.push(*row);
                }
                (true, Ok(_)) => report.dirs_done += 1,
                (false, Ok(true)) => {
                    report.files_done += 1;
                    report.bytes_done += kind.size;
                }
                (false, Ok(false)) => {
                    report.files_skipped += 1;
                    report.bytes_skipped += kind.size;
                }
            }
        }
        if !dry {
            self.written(&work.a, target.disk);
            if work.a.options.preserve.contains(crate::wire::preserve::Attribute::Hardlinks)
                && all.iter().any(|row| row.id % 3 == 0)
            {
                self.site(target, tree).kept.insert(target.mark.sync);
                work.report.needs_clean_up = true;
            }
        }
        self.retry_item(work, tree, &failed);
        if second && work.a.report_held && !dry {
            self.report_held(work, tree);
        }
        if second && work.a.options.record {
            let state = FileState::Done;
            work.report.records.push(record(&format!("{}", work.a.task_id), state));
        }
        true
    }

    /// A batch of what failed.
    fn retry_item(&mut self, work: &mut Work, tree: usize, failed: &[Row]) {
        let mut again = match &work.report.retry {
            Some(WorkItem::Copy { manifest, .. }) => rows(&manifest.0),
            _ => vec![],
        };
        again.extend(failed);
        if !again.is_empty() {
            work.report.retry = Some(self.trees[tree].batch_of(&again));
        }
    }

    fn range(&mut self, work: &mut Work, tree: usize, offset: u64, compare: bool) -> bool {
        let row = rows(&work.manifest)[0];
        let id = row.id;
        let Some(origin) = self.origin(work) else { return false };
        let Some(target) = self.target(work, !compare) else { return false };
        self.judge.spoil(target, &[id]);
        let there = self.site(target, tree).there.get(&id).map(|stored| stored.content_at(offset));
        if compare {
            let site = self.site(target, tree);
            site.read_back(id, target.mark.host);
            self.trace(|_| format!("       entry {id} at {offset} is compared: {there:?}"));
            work.report.differs = there != Some(Content::SOURCE);
            work.report.digest = there.map(|content| content.range_digest(id, offset));
            return true;
        }
        if there.is_some() && work.a.options.compare == Compare::SizeTime {
            work.report.unchanged = true;
            return true;
        }
        if let Some(error) = self.random_fault(origin) {
            work.report.failures.push(error);
            return true;
        }
        if origin == Origin::Source && self.chance.permille(if self.calm { 0 } else { 10 }) {
            let group = self.trees[tree].group_of(id);
            work.report.replacement = Some(self.trees[tree].work(&Item::Large { id, group }));
            return true;
        }
        let content = match self.read_range(work, (tree, origin), row, offset) {
            Ok(content) => content,
            Err(error) => {
                work.report.failures.push(error);
                return true;
            }
        };
        if content == relay_work::FORGED {
            self.judge.forge(target, id);
        }
        self.written(&work.a, target.disk);
        let (mark, damage) = (target.mark, self.damage_of(content, content == relay_work::FORGED));
        let part = self.site(target, tree).parts.entry((mark.sync, id)).or_default();
        part.insert(offset, Piece { mark, damage });
        self.damage_later(target.disk, tree, id, offset);
        self.trace(|_| format!("       {} writes of entry {id} at {offset}", work.a.worker_id));
        work.report.digest = Some(self.reported_range_digest(work, content, id, offset));
        true
    }

    fn publish(&mut self, work: &mut Work, tree: usize, in_place: bool) -> bool {
        let id = ids(&work.manifest)[0];
        let Some(target) = self.target(work, !in_place) else { return false };
        self.judge.spoil(target, &[id]);
        let name = self.trees[tree].group_of(id).map(|group| (target.mark.sync, group));
        let confirm =
            |site: &mut StorageModel| _ = name.map(|name| site.confirmed.insert(name, id));
        if in_place {
            let site = self.site(target, tree);
            work.report.differs = !site.there.contains_key(&id);
            confirm(site);
            return true;
        }
        self.check_chain(work, tree, id);
        let (mark, now) = (target.mark, self.time);
        let size = self.trees[tree].entries[id as usize].size;
        let site = self.site(target, tree);
        let part = site.parts.get(&(mark.sync, id));
        let whole = part.is_some_and(|part| part.len() as u64 == size.div_ceil(RANGE));
        if !whole {
            // An earlier try may have published it: then there is nothing to publish any more. What its size and time
            // do not show is compared.
            let compares = work.a.options.compare == Compare::Checksum;
            let is_right = |stored: &Stored| !compares || stored.damage.is_empty();
            if part.is_none() && site.there.get(&id).is_some_and(is_right) {
                return true;
            }
            work.report.part_lost = true;
            work.report.failures.push(error(ErrorClass::Transient));
            return true;
        }
        let part = site.parts.remove(&(mark.sync, id)).unwrap_or_default();
        let marks = part.values().map(|piece| piece.mark).chain([mark]).collect();
        let published = Some((mark.sync, now));
        let damage = |piece: Piece| Some(Damage { published, ..piece.damage? });
        let damaged = part.into_iter().filter_map(|(at, piece)| Some((at, damage(piece)?)));
        site.there.insert(id, Stored { marks, damage: damaged.collect() });
        confirm(site);
        self.written(&work.a, target.disk);
        true
    }

    /// What goes wrong with an entry, now and then.
    fn random_fault(&mut self, origin: Origin) -> Option<EntryError> {
        if self.calm || !self.chance.permille(self.faults) {
            return None;
        }
        let class = [ErrorClass::Transient, ErrorClass::Permanent, ErrorClass::Vanished];
        let class = class[self.chance.below(3) as usize];
        let full = self.chance.permille(200) && class == ErrorClass::Transient;
        let errno = Some(if full { "ENOSPC" } else { "EIO" }.to_owned());
        match origin {
            Origin::Source => Some(EntryError { errno, ..error(class) }),
            // What a relay lacks is reported as damaged, and nothing else of it vanishes.
            Origin::Relay { .. } if class == ErrorClass::Vanished => None,
            Origin::Relay { .. } => {
                let side = Some(if full { Side::Destination } else { Side::Relay });
                Some(EntryError { errno, side, ..error(class) })
            }
        }
    }
}
