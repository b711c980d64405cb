//! Units: what several destinations of one sync get, and which of them can send it on.
//!
//! A *unit* is a batch, or a range of a large file, with the task of each destination that lacks it. One destination gets
//! it from the source. Then it *holds* the unit, and sends it to others, which hold it in their turn. A holder sends one
//! copy of a unit at a time, so that each network interface sends each byte about once:
//!
//! ```text
//! unit 1:  source ─▶ a ─▶ b            unit 2:  source ─▶ b ─▶ c
//!                    └──▶ c ─▶ d                          └──▶ d ─▶ a
//! ```
//!
//! Nothing of it is stored. Without its unit a task is an ordinary one, and reads the source.

use crate::wire::{Digest, SyncNo, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// The number of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnitNo(u64);

/// The number of a large file that several destinations get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SharedFileNo(u64);

/// From where a unit is sent: `None` is the source, else a destination that holds it.
pub(super) type Sender = Option<SyncNo>;

/// The units of all syncs.
#[derive(Debug, Default)]
pub(super) struct RelayTable {
    units: BTreeMap<UnitNo, Unit>,
    groups: BTreeMap<SyncNo, GroupUnits>,
    files: BTreeMap<SharedFileNo, SharedFile>,
    last_no: u64,
}

/// The units of the destinations of one sync.
#[derive(Debug, Default)]
struct GroupUnits {
    units: BTreeSet<UnitNo>,
    /// What each sender can send now.
    sendable: BTreeMap<Sender, BTreeSet<UnitNo>>,
    /// Destinations that can't receive at present.
    closed: BTreeSet<SyncNo>,
    /// The number of copies on their way to each destination.
    in_flight: BTreeMap<SyncNo, usize>,
}

#[derive(Debug)]
struct Unit {
    group: SyncNo,
    /// The file and the index of the range; `None`: a batch.
    range: Option<(SharedFileNo, u64)>,
    /// Of a range that a destination holds: the digest that it has at the source.
    digest: Option<Digest>,
    holders: BTreeSet<SyncNo>,
    /// The tasks of the destinations that lack it.
    tasks: BTreeMap<SyncNo, UnitTask>,
    /// The destinations that can get it now.
    ready: BTreeSet<SyncNo>,
    /// Those that are sending it.
    senders: BTreeMap<Sender, usize>,
}

/// The state of a task of a unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnitTask {
    pub(super) id: TaskId,
    pub(super) is_ready: bool,
    /// It is leased, and the source sends (`Some(None)`), or a destination.
    pub(super) sender: Option<Sender>,
}

/// A large file that several destinations get, range by range.
#[derive(Debug)]
struct SharedFile {
    group: SyncNo,
    /// Of each range that a destination holds: the digest that it has at the source.
    digests: BTreeMap<u64, Digest>,
    /// The large file of each destination that does not have all of it.
    files: BTreeMap<SyncNo, TaskId>,
    /// The destinations that have it.
    complete: BTreeSet<SyncNo>,
    /// The ranges that are units.
    units: BTreeMap<u64, UnitNo>,
}

impl Unit {
    fn can_be_sent_by(&self, sender: Sender) -> bool {
        let is_sending = self.senders.contains_key(&sender);
        let has_it = match sender {
            // Once: whichever destination gets it first sends it on.
            None => self.holders.is_empty(),
            Some(holder) => self.holders.contains(&holder),
        };
        has_it && !is_sending && !self.ready.is_empty()
    }
}

impl RelayTable {
    fn next_no(&mut self) -> u64 {
        self.last_no += 1;
        self.last_no
    }

    /// Adds a unit without tasks: a batch, or a range of a file with the destinations that hold it.
    fn add_unit(
        &mut self,
        group: SyncNo,
        range: Option<(SharedFileNo, u64)>,
        (holders, digest): (BTreeSet<SyncNo>, Option<Digest>),
    ) -> UnitNo {
        let no = UnitNo(self.next_no());
        let (tasks, ready, senders) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        self.units.insert(no, Unit { group, range, digest, holders, tasks, ready, senders });
        self.groups.entry(group).or_default().units.insert(no);
        no
    }

    pub(super) fn add_batch(&mut self, group: SyncNo) -> UnitNo {
        self.add_unit(group, None, (BTreeSet::new(), None))
    }

    pub(super) fn add_file(&mut self, group: SyncNo) -> SharedFileNo {
        let no = SharedFileNo(self.next_no());
        let file = SharedFile {
            group,
            digests: BTreeMap::new(),
            files: BTreeMap::new(),
            complete: BTreeSet::new(),
            units: BTreeMap::new(),
        };
        self.files.insert(no, file);
        no
    }

    /// Removes a file that no destination has joined.
    pub(super) fn remove_unused_file(&mut self, no: SharedFileNo) {
        if self.files.get(&no).is_some_and(|file| file.files.is_empty()) {
            self.files.remove(&no);
        }
    }

    /// Adds the large file of one destination.
    pub(super) fn join_file(&mut self, no: SharedFileNo, destination: SyncNo, large: TaskId) {
        if let Some(file) = self.files.get_mut(&no) {
            file.files.insert(destination, large);
        }
    }

    /// The large files of the destinations that do not have all of a file, and those that have it.
    pub(super) fn members_of_file(
        &self,
        no: SharedFileNo,
    ) -> Option<(&BTreeMap<SyncNo, TaskId>, &BTreeSet<SyncNo>)> {
        self.files.get(&no).map(|file| (&file.files, &file.complete))
    }

    /// The unit of a range; a new one is held by `holders`. `None`: the file is shared no more.
    pub(super) fn range_unit(
        &mut self,
        no: SharedFileNo,
        index: u64,
        mut holders: BTreeSet<SyncNo>,
    ) -> Option<UnitNo> {
        let file = self.files.get(&no)?;
        if let Some(unit) = file.units.get(&index) {
            return Some(*unit);
        }
        let digest = file.digests.get(&index).copied();
        if digest.is_none() {
            holders.clear();
        }
        let unit = self.add_unit(file.group, Some((no, index)), (holders, digest));
        self.files.get_mut(&no)?.units.insert(index, unit);
        Some(unit)
    }

    /// A destination will not send ranges of a file: it has all of it and keeps it (`complete`), or removed its part.
    pub(super) fn leave_file(&mut self, no: SharedFileNo, destination: SyncNo, complete: bool) {
        let Some(file) = self.files.get_mut(&no) else { return };
        file.files.remove(&destination);
        let units: Vec<UnitNo> = file.units.values().copied().collect();
        if complete {
            file.complete.insert(destination);
        } else {
            file.complete.remove(&destination);
        }
        if file.files.is_empty() {
            self.files.remove(&no);
        }
        if !complete {
            units.into_iter().for_each(|unit| self.remove_holder(unit, destination));
        }
    }

    /// A destination got a range that has this digest at the source.
    pub(super) fn record_range(
        &mut self,
        no: SharedFileNo,
        index: u64,
        destination: SyncNo,
        digest: Option<Digest>,
    ) {
        let Some(file) = self.files.get_mut(&no) else { return };
        let Some(digest) = digest else { return };
        file.digests.insert(index, digest);
        let unit = file.units.get(&index).copied();
        if let Some(unit) = unit.filter(|_| file.files.contains_key(&destination)) {
            if let Some(unit) = self.units.get_mut(&unit) {
                unit.digest = Some(digest);
            }
            self.add_holder(unit, destination);
        }
    }

    /// Adds the task of a destination to a unit, or records its present state.
    pub(super) fn update_task(&mut self, no: UnitNo, destination: SyncNo, now: UnitTask) {
        let Some(unit) = self.units.get_mut(&no) else { return };
        let group = self.groups.entry(unit.group).or_default();
        let before = unit.tasks.insert(destination, now).and_then(|before| before.sender);
        change_sender(unit, group, destination, before, now.sender);
        if now.is_ready && !group.closed.contains(&destination) {
            unit.ready.insert(destination);
        } else {
            unit.ready.remove(&destination);
        }
        self.update_index(no);
    }

    /// Removes a task from its unit. A unit without tasks is removed.
    pub(super) fn remove_task(&mut self, no: UnitNo, destination: SyncNo) {
        let Some(unit) = self.units.get_mut(&no) else { return };
        let group = self.groups.entry(unit.group).or_default();
        let before = unit.tasks.remove(&destination).and_then(|before| before.sender);
        change_sender(unit, group, destination, before, None);
        unit.ready.remove(&destination);
        if unit.tasks.is_empty() {
            return self.remove_unit(no);
        }
        self.update_index(no);
    }

    fn remove_unit(&mut self, no: UnitNo) {
        let Some(unit) = self.units.remove(&no) else { return };
        if let Some((file, index)) = unit.range
            && let Some(file) = self.files.get_mut(&file)
        {
            file.units.remove(&index);
        }
        let Some(group) = self.groups.get_mut(&unit.group) else { return };
        for sender in unit.holders.into_iter().map(Some).chain([None]) {
            remove_sendable(group, sender, no);
        }
        group.units.remove(&no);
        if group.units.is_empty() {
            self.groups.remove(&unit.group);
        }
    }

    pub(super) fn add_holder(&mut self, no: UnitNo, destination: SyncNo) {
        if let Some(unit) = self.units.get_mut(&no) {
            unit.holders.insert(destination);
            self.update_index(no);
        }
    }

    pub(super) fn remove_holder(&mut self, no: UnitNo, destination: SyncNo) {
        let Some(unit) = self.units.get_mut(&no) else { return };
        if unit.holders.remove(&destination) {
            if let Some(group) = self.groups.get_mut(&unit.group) {
                remove_sendable(group, Some(destination), no);
            }
            self.update_index(no);
        }
    }

    /// A destination will send nothing of what it got so far.
    pub(super) fn remove_holder_everywhere(&mut self, group: SyncNo, destination: SyncNo) {
        let files: Vec<SharedFileNo> =
            self.files.iter().filter(|(_, f)| f.group == group).map(|(no, _)| *no).collect();
        files.into_iter().for_each(|file| self.leave_file(file, destination, false));
        let units = self.groups.get(&group).map(|group| group.units.clone()).unwrap_or_default();
        units.into_iter().for_each(|unit| self.remove_holder(unit, destination));
    }

    /// Sets whether a destination can receive.
    pub(super) fn set_open(&mut self, group: SyncNo, destination: SyncNo, is_open: bool) {
        let Some(units) = self.groups.get_mut(&group) else { return };
        let has_changed = match is_open {
            true => units.closed.remove(&destination),
            false => units.closed.insert(destination),
        };
        if !has_changed {
            return;
        }
        for no in units.units.clone() {
            let Some(unit) = self.units.get_mut(&no) else { continue };
            let Some(task) = unit.tasks.get(&destination) else { continue };
            if is_open && task.is_ready {
                unit.ready.insert(destination);
            } else {
                unit.ready.remove(&destination);
            }
            self.update_index(no);
        }
    }

    /// Adds a unit to what its possible senders can send now, or removes it there.
    fn update_index(&mut self, no: UnitNo) {
        let Some(unit) = self.units.get(&no) else { return };
        let group = self.groups.entry(unit.group).or_default();
        for sender in unit.holders.iter().copied().map(Some).chain([None]) {
            match unit.can_be_sent_by(sender) {
                true => drop(group.sendable.entry(sender).or_default().insert(no)),
                false => remove_sendable(group, sender, no),
            }
        }
    }

    /// The groups with units.
    pub(super) fn groups(&self) -> impl Iterator<Item = SyncNo> {
        self.groups.keys().copied()
    }

    pub(super) fn can_source_send(&self, group: SyncNo) -> bool {
        self.groups.get(&group).is_some_and(|units| units.sendable.contains_key(&None))
    }

    /// The destinations that can send a unit now.
    pub(super) fn possible_holders(&self, group: SyncNo) -> impl Iterator<Item = SyncNo> {
        let units = self.groups.get(&group).into_iter();
        units.flat_map(|units| units.sendable.keys().copied().flatten())
    }

    /// The units that `sender` can send now, the oldest first.
    pub(super) fn sendable(&self, group: SyncNo, sender: Sender) -> impl Iterator<Item = UnitNo> {
        let units = self.groups.get(&group).and_then(|units| units.sendable.get(&sender));
        units.into_iter().flatten().copied()
    }

    /// The destinations that can get a unit now, each with its task and the number of copies that are on their way to it.
    pub(super) fn receivers(&self, no: UnitNo) -> impl Iterator<Item = (SyncNo, TaskId, usize)> {
        let unit = self.units.get(&no);
        let group = unit.and_then(|unit| self.groups.get(&unit.group));
        unit.into_iter().flat_map(move |unit| {
            unit.ready.iter().filter_map(move |to| {
                let in_flight = group.and_then(|group| group.in_flight.get(to)).copied();
                Some((*to, unit.tasks.get(to)?.id, in_flight.unwrap_or(0)))
            })
        })
    }

    /// The tasks that a destination sends to others.
    pub(super) fn sent_by(&self, group: SyncNo, holder: SyncNo) -> Vec<TaskId> {
        let units = self.groups.get(&group).into_iter().flat_map(|group| &group.units);
        let tasks = units.filter_map(|no| self.units.get(no)).flat_map(|unit| unit.tasks.values());
        tasks.filter(|task| task.sender == Some(Some(holder))).map(|task| task.id).collect()
    }

    /// The digest of a range that a destination holds.
    pub(super) fn range_digest(&self, no: UnitNo) -> Option<Digest> {
        self.units.get(&no)?.digest
    }

    /// The tasks of a unit.
    pub(super) fn tasks_of(&self, no: UnitNo) -> Vec<TaskId> {
        let unit = self.units.get(&no);
        unit.into_iter().flat_map(|unit| unit.tasks.values().map(|task| task.id)).collect()
    }
}

/// A copy of `unit` to `destination` is on its way from `now`, and from `before` no more.
fn change_sender(
    unit: &mut Unit,
    group: &mut GroupUnits,
    destination: SyncNo,
    before: Option<Sender>,
    now: Option<Sender>,
) {
    if let Some(sender) = now {
        *unit.senders.entry(sender).or_default() += 1;
        *group.in_flight.entry(destination).or_default() += 1;
    }
    if let Some(sender) = before {
        decrement(&mut unit.senders, &sender);
        decrement(&mut group.in_flight, &destination);
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn remove_sendable(group: &mut GroupUnits, sender: Sender, no: UnitNo) {
    if let Some(units) = group.sendable.get_mut(&sender) {
        units.remove(&no);
        if units.is_empty() {
            group.sendable.remove(&sender);
        }
    }
}

#[cfg(test)]
impl RelayTable {
    pub(super) fn is_holder(&self, no: UnitNo, destination: SyncNo) -> bool {
        self.units.get(&no).is_some_and(|unit| unit.holders.contains(&destination))
    }

    /// Compares the indexes with what they are computed from; `known` are all tasks with a unit.
    pub(super) fn check(&self, known: BTreeSet<(TaskId, SyncNo, UnitNo)>) {
        assert!(!known.is_empty() || self.units.is_empty() && self.groups.is_empty());
        let mut listed = BTreeSet::new();
        for (no, unit) in &self.units {
            assert!(!unit.tasks.is_empty(), "{unit:?} has no task");
            let group = &self.groups[&unit.group];
            assert!(group.units.contains(no));
            listed.extend(unit.tasks.iter().map(|(to, task)| (task.id, *to, *no)));
            let open = |to: &SyncNo| !group.closed.contains(to);
            let ready = unit.tasks.iter().filter(|(to, task)| task.is_ready && open(to));
            assert_eq!(unit.ready, ready.map(|(to, _)| *to).collect());
            let all = unit.holders.iter().copied().map(Some).chain([None]);
            for sender in all.chain(group.sendable.keys().copied()) {
                let is_listed = group.sendable.get(&sender).is_some_and(|all| all.contains(no));
                assert_eq!(is_listed, unit.can_be_sent_by(sender), "{sender:?}: {unit:?}");
            }
        }
        assert_eq!(listed, known, "each task is in the unit that it names");
        for (no, group) in &self.groups {
            let sending = self.units.values().filter(|unit| unit.group == *no);
            let sending: usize = sending.map(|unit| unit.senders.values().sum::<usize>()).sum();
            assert_eq!(sending, group.in_flight.values().sum::<usize>());
        }
    }
}
