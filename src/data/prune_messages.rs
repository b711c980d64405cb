//! The request to prune a page of names, and the reply.

pub use crate::fs::PruneRequest;
use crate::fs::{PruneOutcome, PruneResume};
use crate::wire::entry_report::EntryWarning;
use crate::wire::outcome::EntryError;
use crate::wire::path::strip_base;
use crate::wire::task::PruneReport;
use crate::wire::{BytePath, RelPath};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// Maximum number of names in one page of a prune.
pub const MAX_PRUNE_NAMES: usize = 65_536;
/// A reply to a prune names removed entries in about so many bytes; of more it gives the counts.
const MAX_REMOVED_BYTES: usize = 8 << 20;

impl PruneRequest {
    /// Whether the request is valid.
    ///
    /// # Errors
    /// A message.
    pub fn validate(&self) -> Result<(), String> {
        if self.names.len() > MAX_PRUNE_NAMES {
            return Err(format!(
                "{} names are over the limit of {MAX_PRUNE_NAMES}",
                self.names.len()
            ));
        }
        let names = || self.names.iter().chain(&self.after).chain(&self.through);
        for name in names() {
            RelPath::root().child(name).map_err(|e| format!("a name {e}"))?;
        }
        if !self.names.is_sorted_by(|a, b| a < b) {
            return Err("the names are not sorted".to_owned());
        }
        let places = |at: &u32| (*at as usize) < self.names.len();
        if !self.replacing_dirs.is_sorted_by(|a, b| a < b)
            || !self.replacing_dirs.iter().all(places)
        {
            return Err("an entry that replaces directories is not in the list of names".to_owned());
        }
        let inside = |name: &ByteVec| {
            self.after.as_ref().is_none_or(|after| name > after)
                && self.through.as_ref().is_none_or(|upto| name <= upto)
        };
        if !self.names.iter().all(inside) {
            return Err("a name lies out of the interval".to_owned());
        }
        if let Some(other) =
            self.dirs.iter().find(|d| d.path != self.dir && !d.path.contains(&self.dir))
        {
            return Err(format!("`{}` is not above the directory", other.path));
        }
        match &self.resume {
            Some(resume) if !self.covers(&resume.after) => {
                Err(format!("`{}` is not of this page", resume.after))
            }
            _ => Ok(()),
        }
    }
}

impl PruneRequest {
    /// Whether `path`, below the root of the sync, is (in) something of this page.
    fn covers(&self, path: &RelPath) -> bool {
        let Some(below) = relative_to(&self.dir, path.as_bytes()) else { return false };
        let first = below.components().next().unwrap_or_default();
        !first.is_empty()
            && self.after.as_ref().is_none_or(|after| first > after.as_slice())
            && self.through.as_ref().is_none_or(|upto| first <= upto.as_slice())
    }
}

/// An entry that a prune has removed (or would).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RemovedEntry {
    /// Below the directory of the page.
    #[n(0)]
    pub path: RelPath,
    /// The length of its content.
    #[n(1)]
    pub bytes: u64,
}

/// Something that a prune could not list or remove.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PruneError {
    /// Below the directory of the page; empty for that directory.
    #[n(0)]
    pub path: RelPath,
    /// Why.
    #[n(1)]
    pub error: EntryError,
}

/// The reply to [`PruneRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct PruneReply {
    /// Entries that were looked at.
    #[n(0)]
    pub examined: u64,
    /// … that are extra.
    #[n(1)]
    pub extraneous: u64,
    /// Content of those, in bytes.
    #[n(2)]
    pub bytes: u64,
    /// Those, or the first of very many.
    #[n(3)]
    pub removed: Vec<RemovedEntry>,
    /// What went wrong.
    #[n(4)]
    pub errors: Vec<PruneError>,
    /// There is more.
    #[n(5)]
    pub resume: Option<PruneResume>,
    /// More is extraneous than the ticket allows to be deleted.
    #[n(6)]
    pub allowance_exhausted: bool,
    /// Trashes of earlier mirrors that were left as they are …
    #[n(7)]
    pub old_trash: u64,
    /// … and the first of them, at most [`EntryWarning::MAX_PATHS`], below the directory of the page.
    #[n(8)]
    pub old_trash_paths: Vec<RelPath>,
}

impl PruneReply {
    /// The reply for `page`, which is of the directory `dir`.
    pub fn from_outcome(dir: &RelPath, page: PruneOutcome) -> Self {
        let PruneReport { checked: seen, extraneous, bytes } = page.pruned;
        let mut room = MAX_REMOVED_BYTES;
        let fits = |(path, bytes): (RelPath, u64)| {
            let path = relative_to(dir, path.as_bytes())?;
            room = room.checked_sub(path.as_bytes().len() + 16)?;
            Some(RemovedEntry { path, bytes })
        };
        let removed = page.removed.into_iter().map_while(fits).collect();
        let mut room = MAX_REMOVED_BYTES / 2;
        let errors = page.errors.into_iter().map_while(|error| {
            let path = relative_to(dir, &error.path.0).unwrap_or_default();
            let texts = error.message.len() + error.hint.as_ref().map_or(0, String::len);
            room = room.checked_sub(path.as_bytes().len() + texts + 64)?;
            Some(PruneError { path, error })
        });
        let EntryWarning { count, paths } = page.old_trash;
        let paths = paths.iter().take(EntryWarning::MAX_PATHS);
        PruneReply {
            examined: seen,
            extraneous,
            bytes,
            removed,
            errors: errors.collect(),
            resume: page.resume,
            allowance_exhausted: page.allowance_exhausted,
            old_trash: count,
            old_trash_paths: paths.filter_map(|path| relative_to(dir, &path.0)).collect(),
        }
    }

    /// Reads a reply to `request`.
    ///
    /// # Errors
    /// A reply about entries that were not requested.
    pub fn into_outcome(self, request: &PruneRequest) -> Result<PruneOutcome, String> {
        let mut old_trash = EntryWarning { count: self.old_trash, paths: Vec::new() };
        if self.old_trash_paths.len() as u64 > old_trash.count.min(EntryWarning::MAX_PATHS as u64) {
            return Err(
                "it lists more entries for the trash than it counts or is allowed to".to_owned()
            );
        }
        for path in &self.old_trash_paths {
            let path = request.dir.join(path);
            if path != request.dir && !request.covers(&path) {
                return Err(not_requested(&path));
            }
            old_trash.paths.push(BytePath(path.as_bytes().to_vec()));
        }
        if self.removed.len() as u64 > self.extraneous {
            return Err(format!("{} removed of {}", self.removed.len(), self.extraneous));
        }
        let removed = self.removed.into_iter().map(|one| {
            let path = request.dir.join(&one.path);
            if request.covers(&path) { Ok((path, one.bytes)) } else { Err(not_requested(&path)) }
        });
        let removed = removed.collect::<Result<_, _>>()?;
        if let Some(resume) = self.resume.as_ref().filter(|resume| !request.covers(&resume.after)) {
            return Err(not_requested(&resume.after));
        }
        let errors = self.errors.into_iter();
        Ok(PruneOutcome {
            pruned: PruneReport {
                checked: self.examined,
                extraneous: self.extraneous,
                bytes: self.bytes,
            },
            removed,
            errors: errors.map(|one| one.error.received(&request.dir.join(&one.path))).collect(),
            old_trash,
            resume: self.resume,
            allowance_exhausted: self.allowance_exhausted,
        })
    }
}

fn not_requested(path: &RelPath) -> String {
    format!("`{path}` was not requested")
}

/// `path` seen from `dir`; `None` where it is neither `dir` nor below it.
fn relative_to(dir: &RelPath, path: &[u8]) -> Option<RelPath> {
    RelPath::new(strip_base(dir.as_bytes(), path)?).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::manifest::ManifestDir;
    use crate::wire::manifest::Meta;
    use crate::wire::options::FilterSpec;
    use crate::wire::outcome::Side;

    fn rel(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    fn name(text: &str) -> ByteVec {
        text.as_bytes().to_vec().into()
    }

    const META: Meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };

    pub(in crate::data) fn prune_request(names: &[&str]) -> PruneRequest {
        PruneRequest {
            dir: rel("d/e"),
            after: Some(name("b")),
            through: Some(name("m")),
            names: names.iter().map(|n| name(n)).collect(),
            filter: FilterSpec { rules: vec!["*.o".into()], ..FilterSpec::default() },
            delete_excluded: false,
            apply: true,
            dirs: ["", "d", "d/e"].map(|d| ManifestDir { path: rel(d), meta: META }).into(),
            resume: None,
            replacing_dirs: names.first().map(|_| 0).into_iter().collect(),
        }
    }

    #[test]
    fn a_prune_request_round_trips_and_is_validated() {
        let good = prune_request(&["c", "d\n", "m"]);
        assert_eq!(good.validate(), Ok(()));
        let bytes = minicbor::to_vec(&good).unwrap();
        assert_eq!(minicbor::decode::<PruneRequest>(&bytes).unwrap(), good);
        for replacing in [vec![3], vec![1, 0], vec![1, 1]] {
            assert!(PruneRequest { replacing_dirs: replacing, ..good.clone() }.validate().is_err());
        }
        let elsewhere = |dir: &str| PruneRequest {
            dirs: vec![ManifestDir { path: rel(dir), meta: META }],
            ..prune_request(&[])
        };
        let resumed = |at: &str| PruneRequest {
            resume: Some(PruneResume { after: rel(at), kept_dirs: 0 }),
            ..prune_request(&[])
        };
        assert_eq!(resumed("d/e/c/x").validate(), Ok(()));
        let unsorted = [prune_request(&["d", "c"]), prune_request(&["c", "c"])];
        let outside =
            [prune_request(&["b"]), prune_request(&["n"]), elsewhere("x"), elsewhere("d/e/c")];
        let no_names = [
            prune_request(&[".."]),
            prune_request(&["c/d"]),
            prune_request(&["c\0"]),
            prune_request(&[""]),
        ];
        let not_here = ["d/e", "d/e/b/x", "d/ex/c", "x"].map(resumed);
        for bad in unsorted.iter().chain(&outside).chain(&no_names).chain(&not_here) {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_prune_reply_with_entries_outside_the_request_is_refused() {
        let request = prune_request(&["c"]);
        let fault = EntryError {
            path: crate::wire::BytePath(b"d/e/k/l".to_vec()),
            ..EntryError::new(b"x", Side::Destination, "remove", "busy")
        };
        let page = PruneOutcome {
            pruned: PruneReport { checked: 9, extraneous: 2, bytes: 5 },
            removed: vec![(rel("d/e/f/g"), 5), (rel("d/e/f"), 0)],
            errors: vec![fault],
            resume: Some(PruneResume { after: rel("d/e/f"), kept_dirs: 0 }),
            allowance_exhausted: true,
            old_trash: EntryWarning {
                count: 3,
                paths: ["d/e", "d/e/g/bin"].map(|path| BytePath(path.into())).into(),
            },
        };
        let reply = PruneReply::from_outcome(&request.dir, page.clone());
        assert_eq!(reply.removed[0].path, rel("f/g"));
        let bytes = minicbor::to_vec(&reply).unwrap();
        assert_eq!(
            minicbor::decode::<PruneReply>(&bytes).unwrap().into_outcome(&request),
            Ok(page)
        );
        let removed = |path: &str, extraneous| PruneReply {
            examined: 1,
            extraneous,
            removed: vec![RemovedEntry { path: rel(path), bytes: 0 }],
            ..PruneReply::default()
        };
        assert!(removed("f", 1).into_outcome(&request).is_ok());
        for (path, extraneous) in [("b", 1), ("n/x", 1), ("", 1), ("f", 0)] {
            assert!(removed(path, extraneous).into_outcome(&request).is_err(), "{path}");
        }
        let trash = |path: &str, count| PruneReply {
            old_trash: count,
            old_trash_paths: vec![rel(path)],
            ..PruneReply::default()
        };
        assert!(
            trash("f/bin", 1).into_outcome(&request).is_ok()
                && trash("", 2).into_outcome(&request).is_ok()
        );
        for (path, count) in [("b/bin", 1), ("n", 1), ("f/bin", 0)] {
            assert!(trash(path, count).into_outcome(&request).is_err(), "{path}");
        }
        let resume = Some(PruneResume { after: rel("elsewhere"), kept_dirs: 0 });
        assert!(PruneReply { resume, ..PruneReply::default() }.into_outcome(&request).is_err());
    }

    #[test]
    fn a_removed_name_outside_its_directory_does_not_decode() {
        let reply = PruneReply {
            extraneous: 1,
            removed: vec![RemovedEntry { path: rel("ab"), bytes: 0 }],
            ..PruneReply::default()
        };
        let mut bytes = minicbor::to_vec(&reply).unwrap();
        let at = bytes.windows(2).position(|w| w == b"ab").unwrap();
        bytes[at..at + 2].copy_from_slice(b"..");
        assert!(minicbor::decode::<PruneReply>(&bytes).is_err());
    }

    #[test]
    fn a_prune_reply_lists_removed_entries_up_to_its_size_limit() {
        let long = "x".repeat(200);
        let removed: Vec<_> = (0..60_000).map(|i| (rel(&format!("d/e/f/{long}{i}")), 1)).collect();
        let pruned = PruneReport { checked: 60_000, extraneous: 60_000, bytes: 60_000 };
        let page = PruneOutcome { pruned, removed, ..PruneOutcome::default() };
        let reply = PruneReply::from_outcome(&rel("d/e"), page);
        assert!(!reply.removed.is_empty() && reply.removed.len() < 60_000);
        assert!(minicbor::to_vec(&reply).unwrap().len() < super::super::protocol::MAX_REPLY_BYTES);
        assert_eq!(reply.into_outcome(&prune_request(&[])).unwrap().pruned, pruned);
    }
}
