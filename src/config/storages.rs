//! `storages:` of a master's file: storages that agents which report no fingerprint see in common.

use super::reader::Item;
use super::report::Pos;
use crate::wire::path::quote;
use crate::wire::storage::ConfiguredStorage;
use crate::wire::worker_selector::{MAX_SELECTORS, WorkerSelector};
use crate::wire::{AbsPath, StorageId};
use std::collections::HashMap;

const MAX_STORAGES: usize = 10_000;
const MAX_PATHS: usize = 1_024;

/// A list of `{id, paths, workers}`. Storages with an error are left out.
pub(super) fn read_storages(list: &Item<'_>) -> Vec<ConfiguredStorage> {
    let items = list.items().unwrap_or_default();
    if items.len() > MAX_STORAGES {
        list.error(format!("has {} storages, at most {MAX_STORAGES} are allowed", items.len()));
        return Vec::new();
    }
    let mut reader = StorageReader::default();
    items.iter().filter_map(|item| reader.read(item)).collect()
}

/// What the storages so far have named, to find what two of them claim.
#[derive(Default)]
struct StorageReader {
    ids: HashMap<StorageId, Pos>,
    views: HashMap<(AbsPath, WorkerSelector), StorageId>,
}

impl StorageReader {
    fn read(&mut self, item: &Item<'_>) -> Option<ConfiguredStorage> {
        let fields = item.fields()?;
        let id = fields
            .require("id", ": a name for the storage, e.g. `lustre-1`")
            .and_then(|i| self.read_id(&i));
        let paths = fields
            .require("paths", ": the storage paths under which requests name it")
            .and_then(|i| read_list(&i, MAX_PATHS, "one storage path", read_path));
        let workers = fields
            .require("workers", ": the workers that see it, e.g. [gpu-1, \"gpu-*\", \"@rack=3\"]")
            .and_then(|i| read_list(&i, MAX_SELECTORS, "one worker", read_selector));
        fields.finish();
        let storage = ConfiguredStorage { id: id?, paths: paths?, workers: workers? };
        self.check_views(&storage, item);
        Some(storage)
    }

    fn read_id(&mut self, item: &Item<'_>) -> Option<StorageId> {
        let read = |text: &str| {
            text.parse::<StorageId>().map_err(|rule| format!("{} {rule}", quote(text)))
        };
        let id = item.parse("an id", read)?;
        if let Some(first) = self.ids.get(&id) {
            item.error(format!(
                "`{id}` is the id of the storage on line {} already: give another one, or add the paths and \
                 workers there",
                first.line
            ));
            return None;
        }
        self.ids.insert(id.clone(), item.at);
        Some(id)
    }

    /// Reports what is given twice. Patterns that overlap otherwise cannot be found before the workers are known.
    fn check_views(&mut self, storage: &ConfiguredStorage, item: &Item<'_>) {
        let id = &storage.id;
        for path in &storage.paths {
            for worker in &storage.workers {
                let view = (path.clone(), worker.clone());
                match self.views.insert(view, id.clone()) {
                    Some(other) if other == *id => {
                        item.warn(format!("{path} for worker {worker} is given twice"));
                    }
                    Some(other) => item.error(format!(
                        "{path} for worker {worker} is declared as storage `{other}` already"
                    )),
                    None => {}
                }
            }
        }
    }
}

/// The elements of a list with at least one, each read by `read`; `None` after any error.
fn read_list<T>(
    list: &Item<'_>,
    max: usize,
    least: &str,
    read: impl Fn(&Item<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let items = list.items()?;
    if items.is_empty() || items.len() > max {
        list.error(format!("must name at least {least} and at most {max}"));
        return None;
    }
    let read: Vec<Option<T>> = items.iter().map(read).collect();
    read.into_iter().collect()
}

fn read_path(item: &Item<'_>) -> Option<AbsPath> {
    item.parse("an absolute path", |text| {
        AbsPath::new(text).map_err(|e| format!("{} {e}", quote(text)))
    })
}

fn read_selector(item: &Item<'_>) -> Option<WorkerSelector> {
    item.parse(
        "a worker id, a pattern such as \"gpu-*\", or a label such as \"@rack=3\"",
        str::parse,
    )
}
