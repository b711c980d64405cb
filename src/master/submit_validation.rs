//! The rules for the fields of a sync request together, and the division of its file list into parts.

use super::validation_errors::ValidationErrors;
use crate::fs::{Filter, FilterError, find_absolute_patterns};
use crate::wire::manifest::FileListPart;
use crate::wire::options::{FilterSpec, MAX_MTIME_TOLERANCE, SyncOptions, Verify};
use crate::wire::path::PathError;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncProgress, SyncState};
use crate::wire::{AbsPath, BytePath, RelPath, RequestId};
use std::collections::HashSet;

/// The maximum number of names in a part of a file list, so that a part is a task of some seconds.
const MAX_PART_NAMES: usize = 10_000;
/// The maximum size of the names in a part: a part is sent and stored as a whole.
const MAX_PART_BYTES: usize = 4 << 20;

/// The failed entries of a sync cannot be retried alone.
pub(super) fn failures_unknown(id: &RequestId, detail: String) -> Problem {
    Problem::new(ProblemCode::FailuresUnknown, detail).with_hint(retry_all_hint(id))
}

pub(super) fn retry_all_hint(id: &RequestId) -> String {
    format!("retry all of it: ctl sync retry {id} (files already copied are skipped)")
}

/// The names of the failed entries of a sync as a file list.
///
/// # Errors
/// 409: there are none, or the sync cannot be restricted to a file list.
pub(super) fn retry_name_lists(
    id: &RequestId,
    sync: &SyncProgress,
    mut names: Vec<BytePath>,
) -> Result<Vec<FileListPart>, Problem> {
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        let none = format!("sync `{id}` has no failed entries");
        if sync.state == SyncState::Completed {
            let problem = Problem::new(ProblemCode::SyncCompleted, none);
            return Err(problem.with_hint("to run it once more, submit it again"));
        }
        return Err(failures_unknown(id, none));
    }
    if names.iter().any(|name| name.0.is_empty()) {
        let detail = format!("sync `{id}` failed in more than single entries");
        return Err(failures_unknown(id, detail));
    }
    if sync.options.delete.is_some() {
        let detail =
            format!("sync `{id}` is a mirror: entries that are not in its list would be deleted");
        return Err(failures_unknown(id, detail));
    }
    file_list_parts(&sync.source_path, names).map_err(ValidationErrors::into_problem)
}

/// Refuses equal paths and paths that contain each other. For a request that selects workers only the scheduler can
/// judge: the paths may belong to different storages.
///
/// # Errors
/// The error of `destination_path`.
pub(super) fn validate_paths(source: &AbsPath, destination: &AbsPath) -> Result<(), String> {
    if source == destination {
        Err("must not be the same as source_path".to_owned())
    } else if source.contains(destination) {
        Err(format!("must not lie inside source_path ({source}): the copy would copy itself"))
    } else if destination.contains(source) {
        Err(format!("must not contain source_path ({source}): the copy could overwrite its source"))
    } else {
        Ok(())
    }
}

/// The invalid and the conflicting options. `has_list`: a file list was given; `roots`: the source and the destination,
/// without invalid ones.
pub(super) fn validate_options(
    options: &SyncOptions,
    has_list: bool,
    roots: &[&AbsPath],
) -> ValidationErrors {
    let mut errors = ValidationErrors::default();
    let mut refuse = |is_invalid: bool, pointer: &str, detail: &str| {
        if is_invalid {
            errors.push(pointer, detail.to_owned());
        }
    };
    refuse(
        u128::from(options.mtime_tolerance_ns) > MAX_MTIME_TOLERANCE.as_nanos(),
        "/mtime_tolerance_ns",
        "must be at most an hour (3600000000000): file systems round to 2 s at most",
    );
    refuse(
        options.recursive && !has_list,
        "/recursive",
        "requires a file_list: without one everything is copied anyway",
    );
    refuse(
        options.manifest && options.verify == Verify::None,
        "/manifest",
        "requires digests, which verify: none does not compute",
    );
    refuse(
        options.manifest && options.dry_run,
        "/manifest",
        "is not available in a dry run, which copies nothing",
    );
    let readback = options.verify == Verify::Readback;
    refuse(
        readback && options.dry_run,
        "/verify",
        "a dry run copies nothing that could be read back",
    );
    let skips_existing = options.update || options.ignore_existing || options.existing;
    refuse(
        readback && skips_existing,
        "/verify",
        "files that update, ignore_existing or existing skip can't be read back: they may differ \
         from the source",
    );
    refuse(
        options.allow_overlap && options.delete.is_some(),
        "/allow_overlap",
        "can't be combined with delete: a mirror would delete what another sync copies",
    );
    if let Some(delete) = &options.delete {
        refuse(
            has_list,
            "/delete",
            "can't be combined with a file_list: entries that are not in the list would be deleted",
        );
        refuse(
            delete.trash.as_ref().is_some_and(RelPath::is_root),
            "/delete/trash",
            "must name a directory below the destination, not the destination itself",
        );
    }
    errors.merge_at("/filter", validate_filter(&options.filter));
    for (index, detail) in find_absolute_patterns(&options.filter.rules, roots) {
        errors.push(&format!("/filter/rules/{index}"), detail);
    }
    errors
}

fn validate_filter(filter: &FilterSpec) -> ValidationErrors {
    let mut errors = ValidationErrors::default();
    if let (Some(min), Some(max)) = (filter.min_size, filter.max_size)
        && min > max
    {
        errors.push("/min_size", format!("must not be over max_size ({max}): no file would match"));
    }
    if let (Some(newer), Some(older)) = (filter.newer_than, filter.older_than)
        && newer >= older
    {
        let detail = format!("must be before older_than ({older}): no file would match");
        errors.push("/newer_than", detail);
    }
    match Filter::new(filter) {
        Ok(_) => {}
        Err(FilterError::InvalidRule { index, reason, .. }) => {
            errors.push(&format!("/rules/{index}"), format!("can't be read: {reason}"));
        }
        Err(other) => errors.push("/rules", other.to_string()),
    }
    errors
}

/// Divides a file list into parts. The names become relative to `source` and unique, and keep their order. A name is
/// relative, or absolute at or below `source`; `.` or `source` is the source root.
///
/// # Errors
/// Every invalid name, by its index.
pub(super) fn file_list_parts(
    source: &AbsPath,
    list: Vec<BytePath>,
) -> Result<Vec<FileListPart>, ValidationErrors> {
    if list.is_empty() {
        return Err(ValidationErrors::single(
            "the file list is empty; leave it out to copy everything",
        ));
    }
    let mut errors = ValidationErrors::default();
    let mut names = Vec::with_capacity(list.len());
    for (index, entry) in list.into_iter().enumerate() {
        match relative_to_source(source, &entry.0) {
            Ok(name) => names.push(name),
            Err(detail) => errors.push(&format!("/{index}"), detail),
        }
    }
    errors.into_result(names).map(|names| split_into_parts(dedup_names(names)))
}

fn relative_to_source(source: &AbsPath, name: &[u8]) -> Result<RelPath, String> {
    match name.first() {
        None => Err(PathError::Empty.to_string()),
        Some(b'/') => {
            let name = AbsPath::new(name).map_err(|e| e.to_string())?;
            source.relativize(&name).ok_or_else(|| format!("{name} does not lie below source_path"))
        }
        Some(_) => RelPath::new(name).map_err(|e| e.to_string()),
    }
}

fn dedup_names(mut names: Vec<RelPath>) -> Vec<RelPath> {
    let mut seen = HashSet::with_capacity(names.len());
    let is_new: Vec<bool> = names.iter().map(|name| seen.insert(name.as_bytes())).collect();
    let mut is_new = is_new.into_iter();
    names.retain(|_| is_new.next().unwrap_or(true));
    names
}

fn split_into_parts(names: Vec<RelPath>) -> Vec<FileListPart> {
    let mut out = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for name in names {
        let len = name.as_bytes().len();
        if part.len() >= MAX_PART_NAMES || (bytes + len > MAX_PART_BYTES && !part.is_empty()) {
            out.push(FileListPart { paths: std::mem::take(&mut part) });
            bytes = 0;
        }
        bytes += len;
        part.push(name);
    }
    if !part.is_empty() {
        out.push(FileListPart { paths: part });
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

    #[test]
    fn source_and_destination_must_not_contain_each_other() {
        for (src, dst) in
            [("/a", "/a"), ("/a", "/a/"), ("/a", "/a/b"), ("/a/b", "/a"), ("/", "/a"), ("/a", "/")]
        {
            assert!(validate_paths(&abs(src), &abs(dst)).is_err(), "{src} {dst}");
        }
        assert_eq!(validate_paths(&abs("/a"), &abs("/ab")), Ok(()));
    }

    #[test]
    fn incompatible_options_are_refused_with_their_pointer() {
        use crate::wire::options::{Compare, DeleteOptions};
        let pointers = |change: &dyn Fn(&mut SyncOptions), has_list: bool| -> Vec<String> {
            let mut options = SyncOptions::default();
            change(&mut options);
            let Err(errors) =
                validate_options(&options, has_list, &[&abs("/data/src")]).into_result(())
            else {
                return Vec::new();
            };
            errors.into_problem().errors.into_iter().map(|e| e.pointer).collect()
        };
        let trash = |dir: &str| {
            let trash = Some(RelPath::new(dir).unwrap());
            Some(DeleteOptions { trash, ..DeleteOptions::default() })
        };
        let rules = |rules: &[&str]| rules.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        type Change<'a> = &'a dyn Fn(&mut SyncOptions);
        let bad: [(Change<'_>, bool, &str); 15] = [
            (&|o| o.mtime_tolerance_ns = 3_600_000_000_001, false, "/mtime_tolerance_ns"),
            (&|o| o.recursive = true, false, "/recursive"),
            (&|o| (o.manifest, o.verify) = (true, Verify::None), false, "/manifest"),
            (&|o| (o.manifest, o.dry_run) = (true, true), false, "/manifest"),
            (&|o| (o.verify, o.dry_run) = (Verify::Readback, true), false, "/verify"),
            (&|o| (o.verify, o.update) = (Verify::Readback, true), false, "/verify"),
            (&|o| o.delete = Some(DeleteOptions::default()), true, "/delete"),
            (&|o| o.delete = trash("."), false, "/delete/trash"),
            (&|o| (o.allow_overlap, o.delete) = (true, trash("t")), false, "/allow_overlap"),
            (
                &|o| (o.filter.min_size, o.filter.max_size) = (Some(2), Some(1)),
                false,
                "/filter/min_size",
            ),
            (
                &|o| (o.filter.newer_than, o.filter.older_than) = (Some(5), Some(5)),
                false,
                "/filter/newer_than",
            ),
            (&|o| o.filter.rules = rules(&["ok", "a[z-a]"]), false, "/filter/rules/1"),
            (&|o| o.filter.rules = rules(&["ok", "/data/src/x"]), false, "/filter/rules/1"),
            (&|o| o.filter.rules = vec!["x".repeat(300 << 10)], false, "/filter/rules"),
            (&|o| o.filter.rules = vec!["xy".to_owned(); 200_000], false, "/filter/rules"),
        ];
        for (change, has_list, pointer) in bad {
            assert_eq!(pointers(change, has_list), [pointer]);
        }
        let good: [(Change<'_>, bool); 8] = [
            (&|_| {}, false),
            (&|o| (o.ignore_existing, o.existing) = (true, true), false),
            (&|o| (o.update, o.compare) = (true, Compare::Checksum), false),
            (&|o| (o.existing, o.delete) = (true, trash("a/b")), false),
            (&|o| (o.dry_run, o.delete) = (true, trash("a")), false),
            (&|o| (o.verify, o.manifest) = (Verify::Readback, true), false),
            (&|o| o.recursive = true, true),
            (&|o| o.filter.rules = rules(&["*.o", "!/keep/", "a/**/b", ""]), false),
        ];
        for (index, (change, has_list)) in good.into_iter().enumerate() {
            assert_eq!(pointers(change, has_list), Vec::<String>::new(), "{index}");
        }
    }

    #[test]
    fn file_list_names_become_relative_and_unique_and_keep_their_order() {
        let names = list(&["z", "/src/a/b", "a//b", "./z/", "/src", ".", "-rf"]);
        let parts = file_list_parts(&abs("/src"), names).unwrap();
        let shown: Vec<String> = parts[0].paths.iter().map(ToString::to_string).collect();
        assert_eq!(
            (parts.len(), shown),
            (1, vec!["z".into(), "a/b".into(), String::new(), "-rf".into()])
        );
        assert!(file_list_parts(&abs("/src"), list(&["/srcfoo/x"])).is_err(), "not a component");
        assert!(file_list_parts(&abs("/src"), vec![]).is_err());
    }

    #[test]
    fn long_file_lists_are_split_by_count_and_by_bytes() {
        let many: Vec<BytePath> =
            (0..25_000).map(|i| BytePath(format!("{i}").into_bytes())).collect();
        let sizes: Vec<usize> =
            file_list_parts(&abs("/s"), many).unwrap().iter().map(|p| p.paths.len()).collect();
        assert_eq!(sizes, [10_000, 10_000, 5_000]);
        let deep = vec!["x".repeat(250); 4_000].join("/");
        let long: Vec<BytePath> =
            (0..9).map(|i| BytePath(format!("{i}/{deep}").into_bytes())).collect();
        let parts = file_list_parts(&abs("/s"), long).unwrap();
        assert!(parts.len() > 1 && parts.iter().all(|p| p.encode().len() <= MAX_PART_BYTES + 1024));
        assert_eq!(parts.iter().map(|p| p.paths.len()).sum::<usize>(), 9);
    }
}
