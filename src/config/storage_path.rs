//! The storage paths of a worker, and its labels.

use super::reader::{Fields, Item};
use super::report::Pos;
use crate::wire::path::quote;
use crate::wire::storage::StorageDeclaration;
use crate::wire::worker_selector::{Labels, is_label_part};
use crate::wire::{AbsPath, StorageId};
use std::collections::BTreeMap;
use std::fmt;

/// Every heartbeat contains all storage paths.
const MAX_STORAGE_PATHS: usize = 256;
/// Every heartbeat contains all labels.
const MAX_LABELS: usize = 64;

/// A directory that a worker may read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoragePath {
    /// What requests call it: `as`, otherwise the path on this host.
    pub name: AbsPath,
    /// Where it is on this host.
    pub local_path: AbsPath,
    /// What the file says of the storage there.
    pub declared: Option<StorageDeclaration>,
}

impl StoragePath {
    /// The path on this host, where it is not the name.
    pub fn other_local_path(&self) -> Option<&AbsPath> {
        Some(&self.local_path).filter(|local| **local != self.name)
    }
}

impl From<AbsPath> for StoragePath {
    fn from(path: AbsPath) -> Self {
        StoragePath { name: path.clone(), local_path: path, declared: None }
    }
}

/// The name, and the path on this host where it is another one.
impl fmt::Display for StoragePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        self.other_local_path().map_or(Ok(()), |local| write!(f, " ({local} on this host)"))
    }
}

/// Reads `storage_paths` with the position of each.
pub(super) fn read_storage_paths(item: &Item<'_>, allow_root: bool) -> Vec<(StoragePath, Pos)> {
    let mut paths: Vec<(StoragePath, Pos)> = Vec::new();
    let Some(items) = item.items() else { return paths };
    if items.is_empty() || items.len() > MAX_STORAGE_PATHS {
        item.error(format!("must name at least one and at most {MAX_STORAGE_PATHS} directories"));
        return paths;
    }
    for item in items {
        let Some(path) = read_storage_path(&item, allow_root) else { continue };
        if is_accepted_beside(&path, &paths, &item) {
            paths.push((path, item.at));
        }
    }
    paths
}

/// One entry: a path, or a map of `path` with `as`, and `local` or `storage`.
fn read_storage_path(item: &Item<'_>, allow_root: bool) -> Option<StoragePath> {
    if !item.is_map() {
        return read_path(item, allow_root).map(StoragePath::from);
    }
    let fields = item.fields()?;
    let local_path = fields.require("path", ", the directory on this host");
    let local_path = local_path.and_then(|item| read_path(&item, allow_root));
    let alias = fields.get("as");
    let name = alias.as_ref().map(|item| read_path(item, allow_root));
    let local = fields.get("local").and_then(|item| item.flag()).unwrap_or(false);
    let storage = fields.get("storage");
    if let Some(storage) = storage.as_ref().filter(|_| local) {
        storage.error(
            "another host may see a storage that has an id, and `local: true` says that none does — give one of \
             the two",
        );
    }
    let id = storage.map(|item| read_storage_id(&item));
    fields.finish();
    let local_path = local_path?;
    let declared = match id {
        Some(id) => Some(StorageDeclaration::Storage(id?)),
        None => local.then_some(StorageDeclaration::Local),
    };
    // A name that can't be read is an error already.
    let name = name.unwrap_or_else(|| Some(local_path.clone()))?;
    Some(StoragePath { name, local_path, declared })
}

fn read_path(item: &Item<'_>, allow_root: bool) -> Option<AbsPath> {
    let read = |text: &str| {
        AbsPath::new(text).map_err(|e| match text {
            "" => format!("{e}"),
            _ => format!("{} {e}", quote(text)),
        })
    };
    let path = item.parse("an absolute path", read)?;
    if path.as_bytes() == b"/" && !allow_root {
        item.error(
            "`/` grants access to everything on the host — name the directories that hold the data, or set \
             `allow_root_path: true`",
        );
        return None;
    }
    Some(path)
}

fn read_storage_id(item: &Item<'_>) -> Option<StorageId> {
    item.parse("the id of a storage", |text| {
        text.parse().map_err(|e| format!("{} {e}", quote(text)))
    })
}

/// Compares a storage path with those before it, and reports what is wrong with both.
fn is_accepted_beside(path: &StoragePath, others: &[(StoragePath, Pos)], item: &Item<'_>) -> bool {
    let nests = |a: &AbsPath, b: &AbsPath| a.contains(b) || b.contains(a);
    for (other, at) in others {
        if other == path {
            item.warn(format!("{path} is given twice"));
            return false;
        }
        if other.name == path.name {
            item.error(format!(
                "requests call two directories {} — first on line {}; give one of them another name (`as: /NAME`)",
                path.name, at.line
            ));
            return false;
        }
        if other.local_path == path.local_path {
            item.warn(format!(
                "{} is given as {} and as {}: syncs of one name do not wait for those of the other",
                path.local_path, other.name, path.name
            ));
        } else if nests(&other.local_path, &path.local_path) {
            let (inner, outer) = match other.local_path.contains(&path.local_path) {
                true => (path, other),
                false => (other, path),
            };
            item.warn(format!(
                "{inner} lies inside {outer}, which is given too: one of them is enough"
            ));
        } else if nests(&other.name, &path.name) {
            let (inner, outer) = match other.name.contains(&path.name) {
                true => (path, other),
                false => (other, path),
            };
            item.warn(format!(
                "{inner} has a name inside {outer}, which is given too: requests for {} reach the former",
                inner.name
            ));
        }
    }
    true
}

/// Reads `labels` of a map into `labels`: a value replaces the one of the same key.
pub(super) fn read_labels(fields: &Fields<'_>, labels: &mut Labels) {
    let Some(item) = fields.get("labels") else { return };
    let Some(entries) = item.fields() else { return };
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, at, value) in entries.entries() {
        if let Some(line) = lines.insert(key, at.line) {
            let message =
                format!("{}: duplicate key {} — first given on line {line}", item.path, quote(key));
            item.diagnostics.error(at, message);
            continue;
        }
        let rule = "must be 1 to 63 characters out of A-Z a-z 0-9 . _ -";
        if !is_label_part(key) {
            item.diagnostics.error(at, format!("{}: label {} {rule}", item.path, quote(key)));
            continue;
        }
        let value = value.parse("the value of a label", |text| match is_label_part(text) {
            true => Ok(text.to_owned()),
            false => Err(format!("{} {rule}", quote(text))),
        });
        labels.extend(value.map(|value| (key.to_owned(), value)));
    }
    if labels.len() > MAX_LABELS {
        item.error(format!("a worker has at most {MAX_LABELS} labels, not {}", labels.len()));
    }
}
