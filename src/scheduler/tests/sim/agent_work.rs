//! What a simulated agent does with its assignments to the model of the data.

use super::agent::Work;
use super::storage_model::{Id, Item, PRUNE_PAGES, RANGE, WriteMark, ids};
use super::world::Sim;
use super::*;
use crate::wire::options::Compare;

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
        let mark = if apply { Some(self.write_mark(work)?) } else { None };
        let extras = self.sites[tree].extras.iter_mut().enumerate();
        let found = extras.filter(|(n, one)| n % PRUNE_PAGES == at && one.deleted.is_none());
        let mut extra = 0;
        for (_, one) in found {
            extra += 1;
            one.deleted = mark.map(|mark| BTreeSet::from([mark]));
        }
        if apply && extra > 0 {
            self.written(&work.a);
        }
        Some(PruneReport { checked: 10 + extra, extraneous: extra, bytes: extra * 10 })
    }

    /// The mark of a write; `None` if no worker can be written through.
    fn write_mark(&mut self, work: &mut Work) -> Option<WriteMark> {
        let (agent, incarnation) = work.through?;
        let through = &self.agents[agent];
        if through.down || through.incarnation != incarnation || through.frozen_until > self.time {
            return None;
        }
        let (name, host) = (through.name.clone(), through.host);
        if !work.report.writers.contains(&name) {
            work.report.writers.push(name);
        }
        Some(WriteMark { host, sync: self.judge.life(&work.a), by: work.a.assignment_id })
    }

    /// Does a half of a task. False: it cannot be done.
    pub(super) fn execute(&mut self, work: &mut Work, second: bool) -> bool {
        let tree = self.tree_of(&work.a.source_path);
        match work.a.task.clone() {
            TaskSpec::Copy { .. } => self.copy(work, tree, second),
            TaskSpec::Range { offset, compare, .. } if second => {
                self.range(work, tree, offset, compare)
            }
            TaskSpec::Commit { in_place, .. } if second => self.publish(work, tree, in_place),
            TaskSpec::Discard if second => {
                let sync = self.judge.life(&work.a);
                let id = ids(&work.manifest)[0];
                self.sites[tree].parts.remove(&(sync, id));
                self.trace(|_| format!("       {} discards entry {id}", work.a.worker_id));
                true
            }
            TaskSpec::CleanUp if second => {
                let sync = self.judge.life(&work.a);
                self.sites[tree].kept.remove(&sync);
                true
            }
            TaskSpec::Flush if second => true,
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
        let all = ids(&work.manifest);
        let dry = work.a.options.dry_run;
        let (first, last) = all.split_at(all.len() / 2);
        let mark = if dry { None } else { self.write_mark(work) };
        if mark.is_none() && !dry {
            return false;
        }
        let mut failed: Vec<Id> = vec![];
        let mut fault = self.random_fault();
        for id in if second { last } else { first } {
            let kind = self.trees[tree].entries[*id as usize];
            if let Some(error) = fault.take() {
                work.report.failures.push(error);
                failed.push(*id);
                continue;
            }
            let brought = match mark {
                Some(mark) => self.sites[tree].write(*id, mark),
                None => !self.sites[tree].there.contains_key(id),
            };
            let report = &mut work.report;
            match (kind.dir, brought) {
                (true, _) => report.dirs_done += 1,
                (false, true) => {
                    report.files_done += 1;
                    report.bytes_done += kind.size;
                }
                (false, false) => {
                    report.files_skipped += 1;
                    report.bytes_skipped += kind.size;
                }
            }
        }
        if let Some(mark) = mark {
            self.written(&work.a);
            if work.a.options.preserve.contains(crate::wire::preserve::Attribute::Hardlinks)
                && all.iter().any(|id| id % 3 == 0)
            {
                self.sites[tree].kept.insert(mark.sync);
                work.report.needs_clean_up = true;
            }
        }
        self.retry_item(work, tree, &failed);
        if second && work.a.options.record {
            let state = FileState::Done;
            work.report.records.push(record(&format!("{}", work.a.task_id), state));
        }
        true
    }

    /// A batch of what failed.
    fn retry_item(&mut self, work: &mut Work, tree: usize, failed: &[Id]) {
        let mut again = match &work.report.retry {
            Some(WorkItem::Copy { manifest, .. }) => ids(&manifest.0),
            _ => vec![],
        };
        again.extend(failed);
        if !again.is_empty() {
            work.report.retry = Some(self.trees[tree].batch(&again));
        }
    }

    fn range(&mut self, work: &mut Work, tree: usize, offset: u64, compare: bool) -> bool {
        let id = ids(&work.manifest)[0];
        let there = self.sites[tree].there.contains_key(&id);
        if compare {
            work.report.differs = !there;
            work.report.digest = there.then_some(Digest([7; 32]));
            return true;
        }
        if there && work.a.options.compare == Compare::SizeTime {
            work.report.unchanged = true;
            return true;
        }
        let Some(mark) = self.write_mark(work) else { return false };
        if let Some(error) = self.random_fault() {
            work.report.failures.push(error);
            return true;
        }
        if self.chance.permille(if self.calm { 0 } else { 10 }) {
            let group = self.group_of(tree, id);
            work.report.replacement = Some(self.trees[tree].work(&Item::Large { id, group }));
            return true;
        }
        self.written(&work.a);
        self.sites[tree].parts.entry((mark.sync, id)).or_default().insert(offset, mark);
        self.trace(|_| format!("       {} writes of entry {id} at {offset}", work.a.worker_id));
        work.report.digest = Some(Digest([7; 32]));
        true
    }

    fn publish(&mut self, work: &mut Work, tree: usize, in_place: bool) -> bool {
        let id = ids(&work.manifest)[0];
        if in_place {
            work.report.differs = !self.sites[tree].there.contains_key(&id);
            return true;
        }
        let Some(mark) = self.write_mark(work) else { return false };
        let size = self.trees[tree].entries[id as usize].size;
        let part = self.sites[tree].parts.get(&(mark.sync, id));
        let whole = part.is_some_and(|part| part.len() as u64 == size.div_ceil(RANGE));
        if !whole {
            // An earlier try may have published it: then there is nothing to publish any more.
            if part.is_none() && self.sites[tree].there.contains_key(&id) {
                return true;
            }
            work.report.part_lost = true;
            work.report.failures.push(error(ErrorClass::Transient));
            return true;
        }
        let part = self.sites[tree].parts.remove(&(mark.sync, id)).unwrap_or_default();
        let marks = part.into_values().chain([mark]);
        self.sites[tree].there.insert(id, marks.collect());
        self.written(&work.a);
        true
    }

    fn group_of(&self, tree: usize, wanted: Id) -> Option<Digest> {
        let items = self.trees[tree].pages.iter().flatten();
        items.into_iter().find_map(|item| match item {
            Item::Large { id, group } if *id == wanted => *group,
            _ => None,
        })
    }

    /// What goes wrong with an entry, now and then.
    fn random_fault(&mut self) -> Option<EntryError> {
        if self.calm || !self.chance.permille(self.faults) {
            return None;
        }
        let class = [ErrorClass::Transient, ErrorClass::Permanent, ErrorClass::Vanished];
        let class = class[self.chance.below(3) as usize];
        let full = self.chance.permille(200) && class == ErrorClass::Transient;
        let errno = if full { "ENOSPC" } else { "EIO" };
        Some(EntryError { errno: Some(errno.to_owned()), ..error(class) })
    }
}
