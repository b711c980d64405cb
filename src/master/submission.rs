//! What a sync request must satisfy beyond its shape, and the cutting of its file list into parts.

use super::faults::Faults;
use crate::wire::manifest::NameList;
use crate::wire::path::PathError;
use crate::wire::problem::Problem;
use crate::wire::sync::{CHUNK_MB, SyncRequest};
use crate::wire::{AbsPath, BytePath, RelPath};
use std::collections::HashSet;

/// A part of a file list has at most this many names, so that a part is a task of some seconds.
pub(super) const PART_NAMES: usize = 10_000;
/// … and at most this many bytes of names: a part travels and is stored in one piece.
pub(super) const PART_BYTES: usize = 4 << 20;

/// Checks `request` and moves its file list out of it, in parts.
///
/// # Errors
/// A 422 problem that lists every field at fault.
pub(super) fn checked(request: &mut SyncRequest) -> Result<Option<Vec<NameList>>, Problem> {
    let mut faults = Faults::default();
    if let Err(detail) = path_rule(&request.source_path, &request.destination_path) {
        faults.push("/destination_path", detail);
    }
    if !CHUNK_MB.contains(&request.chunk_size_mb) {
        faults.push(
            "/chunk_size_mb",
            format!("must be from {} to {}", CHUNK_MB.start(), CHUNK_MB.end()),
        );
    }
    let list = match request.file_list.take().map(|l| name_lists(&request.source_path, l)) {
        None => None,
        Some(Ok(parts)) => Some(parts),
        Some(Err(more)) => {
            faults.absorb("/file_list", more);
            None
        }
    };
    faults.or(list).map_err(Faults::into_problem)
}

/// A tree can't be copied onto or into itself, nor over one that holds it.
///
/// # Errors
/// What is wrong with `destination`.
pub(super) fn path_rule(source: &AbsPath, destination: &AbsPath) -> Result<(), String> {
    if source == destination {
        Err("must not be the same as source_path".to_owned())
    } else if source.holds(destination) {
        Err(format!("must not lie inside source_path ({source}): the copy would copy itself"))
    } else if destination.holds(source) {
        Err(format!("must not hold source_path ({source}): the copy could overwrite its source"))
    } else {
        Ok(())
    }
}

/// The names of a file list, relative to `source`, without duplicates, in the order given, in parts.
/// A name is relative, or absolute at or below `source`; `.` (or `source`) is the source root itself.
///
/// # Errors
/// Every name at fault, by its index.
pub(super) fn name_lists(source: &AbsPath, list: Vec<BytePath>) -> Result<Vec<NameList>, Faults> {
    if list.is_empty() {
        return Err(Faults::one("must name at least one entry; leave it out to copy everything"));
    }
    let mut faults = Faults::default();
    let mut names = Vec::with_capacity(list.len());
    for (index, entry) in list.into_iter().enumerate() {
        match below(source, &entry.0) {
            Ok(name) => names.push(name),
            Err(detail) => faults.push(&format!("/{index}"), detail),
        }
    }
    faults.or(names).map(|names| parts(without_duplicates(names)))
}

fn below(source: &AbsPath, name: &[u8]) -> Result<RelPath, String> {
    match name.first() {
        None => Err(PathError::Empty.to_string()),
        Some(b'/') => {
            let name = AbsPath::new(name).map_err(|e| e.to_string())?;
            source.strip(&name).ok_or_else(|| format!("{name} does not lie below source_path"))
        }
        Some(_) => RelPath::new(name).map_err(|e| e.to_string()),
    }
}

fn without_duplicates(mut names: Vec<RelPath>) -> Vec<RelPath> {
    let mut seen = HashSet::with_capacity(names.len());
    let keep: Vec<bool> = names.iter().map(|n| seen.insert(n.as_bytes())).collect();
    let mut keep = keep.into_iter();
    names.retain(|_| keep.next().unwrap_or(true));
    names
}

fn parts(names: Vec<RelPath>) -> Vec<NameList> {
    let mut out = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for name in names {
        let len = name.as_bytes().len();
        if part.len() >= PART_NAMES || (bytes + len > PART_BYTES && !part.is_empty()) {
            out.push(NameList { names: std::mem::take(&mut part) });
            bytes = 0;
        }
        bytes += len;
        part.push(name);
    }
    if !part.is_empty() {
        out.push(NameList { names: part });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abs(s: &str) -> AbsPath {
        AbsPath::new(s).unwrap()
    }

    fn list(names: &[&str]) -> Vec<BytePath> {
        names.iter().map(|n| BytePath(n.as_bytes().to_vec())).collect()
    }

    fn request(source: &str, destination: &str) -> SyncRequest {
        SyncRequest {
            request_id: None,
            source_path: abs(source),
            destination_path: abs(destination),
            chunk_size_mb: 64,
            file_list: None,
            options: Default::default(),
        }
    }

    #[test]
    fn a_tree_is_not_copied_onto_itself_in_any_of_the_ways() {
        for (src, dst) in
            [("/a", "/a"), ("/a", "/a/"), ("/a", "/a/b"), ("/a/b", "/a"), ("/", "/a"), ("/a", "/")]
        {
            let problem = checked(&mut request(src, dst)).unwrap_err();
            assert_eq!(problem.errors[0].pointer, "/destination_path", "{src} {dst}");
        }
        assert_eq!(checked(&mut request("/a", "/ab")), Ok(None));
    }

    #[test]
    fn every_fault_is_listed_at_once() {
        let mut bad = request("/a", "/a/b");
        bad.chunk_size_mb = 0;
        bad.file_list = Some(list(&["ok", "../x", "", "/b/c", "a\0b"]));
        let problem = checked(&mut bad).unwrap_err();
        let pointers: Vec<&str> = problem.errors.iter().map(|e| e.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/destination_path",
                "/chunk_size_mb",
                "/file_list/1",
                "/file_list/2",
                "/file_list/3",
                "/file_list/4"
            ]
        );
        assert!(problem.detail.starts_with("6 fields"), "{}", problem.detail);
    }

    #[test]
    fn names_become_relative_and_unique_in_their_order() {
        let names = list(&["z", "/src/a/b", "a//b", "./z/", "/src", ".", "-rf"]);
        let parts = name_lists(&abs("/src"), names).unwrap();
        let shown: Vec<String> = parts[0].names.iter().map(ToString::to_string).collect();
        assert_eq!(
            (parts.len(), shown),
            (1, vec!["z".into(), "a/b".into(), String::new(), "-rf".into()])
        );
        assert!(name_lists(&abs("/src"), list(&["/srcfoo/x"])).is_err(), "by component");
        assert!(name_lists(&abs("/src"), vec![]).is_err());
    }

    #[test]
    fn long_lists_are_cut_by_names_and_by_bytes() {
        let many: Vec<BytePath> =
            (0..25_000).map(|i| BytePath(format!("{i}").into_bytes())).collect();
        let sizes: Vec<usize> =
            name_lists(&abs("/s"), many).unwrap().iter().map(|p| p.names.len()).collect();
        assert_eq!(sizes, [10_000, 10_000, 5_000]);
        let deep = vec!["x".repeat(250); 4_000].join("/");
        let long: Vec<BytePath> =
            (0..9).map(|i| BytePath(format!("{i}/{deep}").into_bytes())).collect();
        let parts = name_lists(&abs("/s"), long).unwrap();
        assert!(parts.len() > 1 && parts.iter().all(|p| p.encode().len() <= PART_BYTES + 1024));
        assert_eq!(parts.iter().map(|p| p.names.len()).sum::<usize>(), 9);
    }
}
