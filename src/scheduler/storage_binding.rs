//! Which storages the two sides of a sync are.
//!
//! A queued sync follows what is known of storages: at each change its sides are resolved anew. With its first lease
//! they are fixed. It never starts as long as a side could be several storages.

use super::destinations::{MAX_DESTINATIONS, too_many_destinations};
use super::place::{Place, paths_overlap, relation};
use super::record_keys::META_KEY;
use super::storage_table::{Merge, Relation};
use super::storage_types::StorageNo;
use super::sync_job::SyncJob;
use super::worker_registry::{MAX_LISTED, Worker, list_some};
use super::{Effect, Now, State};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncRequest, SyncState};
use crate::wire::worker::HeartbeatReply;
use crate::wire::worker_selector::{Labels, WorkerSelector};
use crate::wire::{AbsPath, SyncNo, WorkerId};

/// The time between the heartbeats of a worker while its storages are compared: what another worker
/// did meanwhile is the next thing that it looks at.
const CHECK_HEARTBEAT_MS: u64 = 500;

/// What a path means on the selected workers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Resolution {
    /// No selected worker has a storage path that holds it.
    Unserved,
    /// Exactly this storage.
    One(StorageNo),
    /// These storages, which are different, oldest first.
    Several(Vec<StorageNo>),
    /// These may be the same: they were not compared yet.
    NotCompared(StorageNo, StorageNo),
}

impl Resolution {
    fn one(&self) -> Option<StorageNo> {
        match self {
            Resolution::One(storage) => Some(*storage),
            _ => None,
        }
    }

    /// The storages, if they are known to be different.
    fn all(&self) -> &[StorageNo] {
        match self {
            Resolution::One(storage) => std::slice::from_ref(storage),
            Resolution::Several(storages) => storages,
            Resolution::Unserved | Resolution::NotCompared(..) => &[],
        }
    }
}

/// A side of a request, for texts.
#[derive(Debug, Clone, Copy)]
struct RequestedSide<'a> {
    role: &'static str,
    path: &'a AbsPath,
    workers: &'a [WorkerSelector],
}

fn source_side(request: &SyncRequest) -> RequestedSide<'_> {
    let (path, workers) = (&request.source_path, &request.source_workers);
    RequestedSide { role: "source", path, workers }
}

fn destination_side(request: &SyncRequest) -> RequestedSide<'_> {
    let (path, workers) = (&request.destination_path, &request.destination_workers);
    RequestedSide { role: "destination", path, workers }
}

/// A pattern that selects exactly `ids` among `all`, or the list of them.
fn selector_of(ids: &[&WorkerId], all: &[&WorkerId]) -> String {
    let first = ids.first().map_or("", |id| id.as_str());
    let shared = ids.iter().fold(first.len(), |length, id| {
        let same = first.bytes().zip(id.as_str().bytes()).take_while(|(a, b)| a == b).count();
        length.min(same)
    });
    let prefix = &first[..shared];
    let selected = all.iter().filter(|id| id.as_str().starts_with(prefix)).count();
    if selected == ids.len() || ids.len() > MAX_LISTED {
        return format!("{prefix}*");
    }
    ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(",")
}

impl State {
    /// Takes over what the last heartbeat of a worker reports of its storages.
    pub(super) fn observe_storages(&mut self, id: &WorkerId, now: Now) {
        let Some(worker) = self.workers.get(id) else { return };
        let heartbeat = worker.last_heartbeat.clone();
        let keys = &mut self.keys;
        let merges =
            self.workers.storages.observe(&heartbeat, &self.settings.storages, &mut || keys.draw());
        for merge in merges {
            self.merge_storages(&merge, now);
        }
        let storages = self.workers.storages_of(id);
        self.poll_queue.update_storages(id, &storages);
    }

    /// Adds the checks that a worker shall make to the reply to its heartbeat.
    pub(super) fn request_storage_checks(&self, id: &WorkerId, reply: &mut HeartbeatReply) {
        reply.storage_checks = self.workers.storages.checks_for(id);
        if !reply.storage_checks.is_empty() {
            let soon = reply.next_heartbeat_ms.unwrap_or(u64::MAX).min(CHECK_HEARTBEAT_MS);
            reply.next_heartbeat_ms = Some(soon);
        }
    }

    /// Two storages were found to be one: the syncs of the one go on with the other.
    fn merge_storages(&mut self, merge: &Merge, now: Now) {
        self.poll_queue.merge_storages(merge.from, merge.into);
        let mut changed: Vec<SyncNo> = Vec::new();
        for sync in self.syncs.values_mut() {
            for side in [&mut sync.source_storage, &mut sync.destination_storage] {
                if *side == Some(merge.from) {
                    *side = Some(merge.into);
                    changed.push(sync.no);
                }
            }
        }
        changed.into_iter().for_each(|no| self.mark_changed(no, now));
    }

    /// Resolves the sides of queued syncs anew if something changed that decides on them.
    pub(super) fn update_places(&mut self, now: Now) {
        let unsaved = self.workers.storages.take_unsaved();
        if !unsaved.is_empty() {
            // It has the version of all records.
            self.outbox.write_record(META_KEY.to_owned());
        }
        self.outbox.extend(unsaved.into_iter().map(Effect::WriteRecord));
        let unsettled = std::mem::take(&mut self.workers.storages.unsettled);
        if !unsettled.is_empty() {
            self.update_blockers_at(&unsettled);
        }
        let version = Some((self.workers.storages.version(), self.workers.selection_version()));
        if std::mem::replace(&mut self.places_version, version) == version {
            return;
        }
        let groups = self.syncs.values().filter(|sync| sync.is_group() && sync.is_active());
        let with_tasks = self.tasks.syncs().filter_map(|no| self.syncs.get(no));
        let all = groups.chain(with_tasks).filter(|sync| self.needs_storages(sync));
        for no in all.map(|sync| sync.no).collect::<Vec<_>>() {
            self.bind_storages(no, now);
        }
        self.update_blockers();
    }

    fn is_known(&self, storage: Option<StorageNo>) -> bool {
        storage.is_some_and(|no| self.workers.storages.path(no).is_some())
    }

    /// Whether its sides may be other storages than before: it has not started, or no worker names one
    /// of them any more.
    fn needs_storages(&self, sync: &SyncJob) -> bool {
        let sides = [sync.source_storage, sync.destination_storage];
        sync.state == SyncState::Queued || !sides.iter().all(|storage| self.is_known(*storage))
    }

    /// Resolves the sides of a queued sync. A started one keeps what is still known; with another
    /// storage it restarts, so that all is compared there.
    pub(super) fn bind_storages(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        if sync.is_group() {
            return self.bind_group(no, now);
        }
        let request = &sync.request;
        let sides = [source_side(request), destination_side(request)];
        let mut found = sides.map(|side| self.resolve(side.path, side.workers));
        let has_started = sync.state != SyncState::Queued;
        let is_active = sync.is_active();
        let fixed = [
            // What others read may be sent on to it before it has a task.
            sync.source_storage.filter(|_| has_started || sync.shares_source()),
            sync.destination_storage.filter(|_| has_started || sync.group().is_some()),
        ];
        for (side, fixed) in found.iter_mut().zip(fixed) {
            if let Some(storage) = fixed.filter(|no| self.is_known(Some(*no))) {
                *side = Resolution::One(storage);
            }
        }
        let reasons = sides.iter().zip(&found).filter_map(|(side, found)| {
            self.explain_resolution(*side, found).map(|(reason, _)| reason)
        });
        let mut reason = reasons.into_iter().next();
        let mut bound = found.each_ref().map(Resolution::one);
        let same = bound[0].zip(bound[1]);
        let same = same.and_then(|(from, to)| self.explain_same_storage(request, from, to));
        if let Some(why) = same {
            (bound, reason) = ([None, None], Some(why));
        }
        let before = (sync.source_storage, sync.destination_storage, &sync.storage_reason);
        if before == (bound[0], bound[1], &reason) {
            return;
        }
        if let Some(sync) = self.syncs.get_mut(no) {
            [sync.source_storage, sync.destination_storage] = bound;
            sync.storage_reason = reason;
        }
        self.update_blocker(no);
        self.update_window(no);
        if has_started && is_active && bound.iter().all(Option::is_some) {
            self.restart_sync(no, now);
        }
        self.mark_changed(no, now);
        self.outbox.request_dispatch();
    }

    /// Adds the destinations of a group once both sides are known.
    fn bind_group(&mut self, no: SyncNo, now: Now) {
        if self.destinations_of(no).next().is_some() {
            return;
        }
        let Some(sync) = self.syncs.get(no) else { return };
        let request = &sync.request;
        let sides = [source_side(request), destination_side(request)];
        let found = sides.map(|side| self.resolve(side.path, side.workers));
        let reason = match (found[0].one(), found[1].all()) {
            (Some(source), storages @ [_, ..]) => {
                let overlaps =
                    storages.iter().find_map(|to| self.explain_same_storage(request, source, *to));
                match overlaps {
                    None => {
                        let storages = storages.to_vec();
                        if let Some(sync) = self.syncs.get_mut(no) {
                            (sync.source_storage, sync.storage_reason) = (Some(source), None);
                        }
                        self.mark_changed(no, now);
                        return self.expand_group(no, &storages, now);
                    }
                    reason => reason,
                }
            }
            _ => sides.iter().zip(&found).find_map(|(side, found)| {
                self.explain_resolution(*side, found).map(|(reason, _)| reason)
            }),
        };
        if sync.storage_reason != reason {
            if let Some(sync) = self.syncs.get_mut(no) {
                sync.storage_reason = reason;
            }
            self.mark_changed(no, now);
        }
    }

    /// The storages that `destination_workers` name for a request of which the source is known.
    ///
    /// # Errors
    /// They name none, or one of them cannot be used.
    pub(super) fn resolve_added(&self, request: &SyncRequest) -> Result<Vec<StorageNo>, Problem> {
        self.check_sides(request)?;
        let side = destination_side(request);
        match self.resolve(side.path, side.workers) {
            Resolution::One(storage) => Ok(vec![storage]),
            Resolution::Several(storages) => Ok(storages),
            Resolution::Unserved => {
                let place = Place { storage: None, path: side.path };
                let why = self.workers.explain_unserved(place, side.role, side.workers);
                Err(Problem::new(ProblemCode::NoWorker, why)
                    .with_hint("start an agent there that serves the path, then add it"))
            }
            ref found @ Resolution::NotCompared(..) => {
                let (why, hint) = self.explain_resolution(side, found).unwrap_or_default();
                Err(Problem::new(ProblemCode::AmbiguousStorage, why).with_hint(hint))
            }
        }
    }

    /// Refuses a request with sides that are known to be several storages, or one storage and path.
    ///
    /// # Errors
    /// The problem.
    pub(super) fn check_sides(&self, request: &SyncRequest) -> Result<(), Problem> {
        for side in [source_side(request), destination_side(request)] {
            self.check_selectors(side)?;
        }
        let sides = [source_side(request), destination_side(request)];
        let found = sides.map(|side| self.resolve(side.path, side.workers));
        for (side, found) in sides.iter().zip(&found) {
            let is_group = side.role == "destination" && !side.workers.is_empty();
            let explained = self.explain_resolution(*side, found);
            let (Some((reason, hint)), Resolution::Several(_), false) =
                (explained, found, is_group)
            else {
                continue;
            };
            let code = match side.workers.is_empty() {
                true => ProblemCode::AmbiguousStorage,
                false => ProblemCode::SeveralSources,
            };
            return Err(Problem::new(code, reason).with_hint(hint));
        }
        let destinations = found[1].all();
        if destinations.len() > MAX_DESTINATIONS {
            return Err(too_many_destinations(destinations.len()));
        }
        let Some(source) = found[0].one() else { return Ok(()) };
        let is_settled = |to: &StorageNo| {
            *to == source || relation(&self.workers.storages, source, *to) == Relation::Nested
        };
        let overlaps = |to: &StorageNo| {
            is_settled(to) && paths_overlap(&request.source_path, &request.destination_path)
        };
        match destinations.iter().find(|to| overlaps(to)) {
            Some(to) => {
                let why = self.explain_same_storage(request, source, *to).unwrap_or_default();
                Err(Problem::new(ProblemCode::SameStorage, why).with_hint(
                    "name another path, or destination workers that do not see this storage",
                ))
            }
            None => Ok(()),
        }
    }

    /// Refuses selectors of which one selects no registered worker.
    fn check_selectors(&self, side: RequestedSide<'_>) -> Result<(), Problem> {
        let selects = |selector: &WorkerSelector| {
            self.known_workers().any(|(id, labels)| selector.selects(id, labels))
        };
        let Some(selector) = side.workers.iter().find(|selector| !selects(selector)) else {
            return Ok(());
        };
        let known = list_some(self.known_workers().map(|(id, _)| id.to_string()));
        let known = if known.is_empty() { "none".to_owned() } else { known };
        let detail = format!(
            "no registered worker matches `{selector}` of the {}; registered are: {known}",
            side.role
        );
        let problem = Problem::new(ProblemCode::NoMatchingWorker, detail);
        Err(problem.with_hint("ctl workers list -o wide shows all workers with their labels"))
    }

    fn known_workers(&self) -> impl Iterator<Item = (&WorkerId, &Labels)> {
        self.workers.all().map(|w| (&w.last_heartbeat.worker_id, &w.last_heartbeat.labels))
    }

    /// The storages that a path means on the selected workers (on all without a selector).
    pub(super) fn resolve(&self, path: &AbsPath, selectors: &[WorkerSelector]) -> Resolution {
        let mut found = self.storages_at(path, selectors);
        self.drop_silent_lookalikes(&mut found);
        let (first, others) = match found.as_slice() {
            [] => return Resolution::Unserved,
            [one] => return Resolution::One(*one),
            [first, others @ ..] => (*first, others),
        };
        let unknown = |a: StorageNo, b: StorageNo| {
            // Nested ones never become known, so they count as several.
            let relation = relation(&self.workers.storages, a, b);
            matches!(relation, Relation::Unknown | Relation::LooksAlike)
        };
        if selectors.is_empty() {
            // Two different ones are enough for the decision.
            let all_unknown = others.iter().all(|other| unknown(first, *other));
            return match all_unknown {
                true => Resolution::NotCompared(first, others[0]),
                false => Resolution::Several(found),
            };
        }
        for (at, a) in found.iter().enumerate() {
            if let Some(b) = found[at + 1..].iter().find(|b| unknown(*a, **b)) {
                return Resolution::NotCompared(*a, *b);
            }
        }
        Resolution::Several(found)
    }

    /// The storages that selected workers use for a path, also silent workers.
    fn storages_at(&self, path: &AbsPath, selectors: &[WorkerSelector]) -> Vec<StorageNo> {
        let none = Labels::new();
        let is_selected = |id: &WorkerId, worker: Option<&Worker>| {
            let labels = worker.map_or(&none, |worker| &worker.last_heartbeat.labels);
            selectors.is_empty() || selectors.iter().any(|one| one.selects(id, labels))
        };
        let storages = &self.workers.storages;
        let mut found = Vec::new();
        for root in path.ancestors_from_root().filter_map(|root| AbsPath::new(root).ok()) {
            found.extend(storages.named(&root).filter(|no| {
                storages.members(*no).iter().any(|(_, id)| {
                    let worker = self.workers.get(id);
                    // A worker of which no heartbeat has arrived since the start of the master has
                    // the storage path that it had before.
                    worker.is_none_or(|worker| worker.root(path) == Some(&root))
                        && is_selected(id, worker)
                })
            }));
        }
        found
    }

    /// A storage without active workers that looks like another one is taken for that one.
    fn drop_silent_lookalikes(&self, found: &mut Vec<StorageNo>) {
        if found.len() < 2 {
            return;
        }
        let is_active = |no: StorageNo| {
            let members = self.workers.storages.members(no).iter();
            members.filter_map(|(_, id)| self.workers.get(id)).any(|worker| worker.is_active)
        };
        let active: Vec<StorageNo> = found.iter().copied().filter(|no| is_active(*no)).collect();
        found.retain(|no| {
            let looks_alike = |other: &StorageNo| {
                relation(&self.workers.storages, *no, *other) == Relation::LooksAlike
            };
            active.contains(no) || !active.iter().any(looks_alike)
        });
    }

    /// Why a sync with these sides would copy a directory onto itself.
    fn explain_same_storage(
        &self,
        request: &SyncRequest,
        source: StorageNo,
        destination: StorageNo,
    ) -> Option<String> {
        let (from, to) = (&request.source_path, &request.destination_path);
        if !paths_overlap(from, to) {
            return None;
        }
        if source == destination {
            return Some(format!(
                "{from} and {to} lie in one storage ({}), and one holds the other: it would be copied onto itself",
                self.workers.describe_storage(source)
            ));
        }
        let known = match relation(&self.workers.storages, source, destination) {
            Relation::Different => return None,
            Relation::Nested => "is not known: storage paths that hold each other are not compared",
            Relation::Unknown | Relation::LooksAlike => "is not known yet: they are being compared",
        };
        Some(format!(
            "{from} and {to} overlap, and whether {} and {} are one storage {known}",
            self.workers.describe_storage(source),
            self.workers.describe_storage(destination)
        ))
    }

    /// Why a side is not one storage, and what to do; `None` where it is, or where no worker serves
    /// it.
    fn explain_resolution(
        &self,
        side: RequestedSide<'_>,
        found: &Resolution,
    ) -> Option<(String, String)> {
        let RequestedSide { role, path, workers } = side;
        match found {
            Resolution::Unserved | Resolution::One(_) => None,
            Resolution::NotCompared(a, b) => {
                let reason = format!(
                    "it is not known yet whether {} and {} are one storage at the {role} path {path}: they are \
                     compared as soon as a worker of each is active",
                    self.workers.describe_storage(*a),
                    self.workers.describe_storage(*b)
                );
                let hint = "ctl storage list shows what is known".to_owned();
                Some((reason, hint))
            }
            Resolution::Several(_) if role == "destination" && !workers.is_empty() => None,
            Resolution::Several(storages) => {
                let named = list_some(storages.iter().map(|no| self.workers.describe_storage(*no)));
                let members = |no: &StorageNo| self.workers.storages.members(*no).iter();
                let first = storages.first().and_then(|no| members(no).map(|(_, id)| id).min());
                let first = first.map_or_else(|| "WORKER".to_owned(), ToString::to_string);
                if !workers.is_empty() {
                    let reason = format!(
                        "the workers of the {role} see {} storages at {path}: {named}",
                        storages.len()
                    );
                    let hint = format!("submit one sync for each, e.g. from {first}:{path}");
                    return Some((reason, hint));
                }
                let reason =
                    format!("workers see different storages at the {role} path {path}: {named}");
                let mut of: Vec<&WorkerId> =
                    storages.iter().flat_map(|no| members(no).map(|(_, id)| id)).collect();
                of.sort_unstable();
                let all: Vec<&WorkerId> = self.known_workers().map(|(id, _)| id).collect();
                let hint = match role {
                    "source" => format!("name the workers that are meant: {first}:{path}"),
                    _ => format!(
                        "name the workers that are meant: {first}:{path} for that one, '{}:{path}' for a copy on each",
                        selector_of(&of, &all)
                    ),
                };
                Some((reason, hint))
            }
        }
    }

    /// Why a request would wait for workers, for each side.
    pub(super) fn explain_unserved_request(&self, request: &SyncRequest) -> Vec<String> {
        let explain = |side: RequestedSide<'_>| {
            let found = self.resolve(side.path, side.workers);
            if let Some((reason, _)) = self.explain_resolution(side, &found) {
                return Some(reason);
            }
            let storages = match found.all() {
                [] => vec![None],
                all => all.iter().copied().map(Some).collect(),
            };
            let mut places = storages.into_iter().map(|storage| Place { storage, path: side.path });
            let unserved = places.find(|place| self.workers.accepting(*place).next().is_none());
            unserved.map(|place| self.workers.explain_unserved(place, side.role, side.workers))
        };
        [source_side(request), destination_side(request)].into_iter().filter_map(explain).collect()
    }

    /// Why a queued or running sync has no worker on a side, for each side.
    pub(super) fn explain_unserved_places(&self, sync: &SyncJob) -> Vec<String> {
        if let Some(reason) = &sync.storage_reason {
            return vec![reason.clone()];
        }
        if sync.is_group() && self.destinations_of(sync.no).next().is_none() {
            return self.explain_unserved_request(&sync.request);
        }
        if sync.is_group() {
            let mut all: Vec<String> = self
                .destinations_of(sync.no)
                .filter(|one| one.is_active())
                .flat_map(|one| self.explain_unserved_places(one))
                .collect();
            all.sort();
            all.dedup();
            return all;
        }
        let sides = [
            (sync.source(), source_side(&sync.request)),
            (sync.destination(), destination_side(&sync.request)),
        ];
        let unserved =
            sides.into_iter().filter(|(at, _)| self.workers.accepting(*at).next().is_none());
        let explain = |(at, side): (Place<'_>, RequestedSide<'_>)| {
            self.workers.explain_unserved(at, side.role, side.workers)
        };
        unserved.map(explain).collect()
    }
}
