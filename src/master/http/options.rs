//! `options` of `POST /sync`, read member by member.

use super::document::{Document, list, truth, typed, whole};
use crate::master::faults::Faults;
use crate::wire::options::{
    Chown, DEFAULT_MAX_DELETE_PERCENT, DeleteOptions, FilterSpec, MAX_FILTER_BYTES, SyncOptions,
};
use serde_json::Value;

/// Reads the options; what they mean together is judged with the rest of the request.
///
/// # Errors
/// All that is wrong with them, below their own place.
pub(super) fn options(value: Value) -> Result<SyncOptions, Faults> {
    let mut doc = Document::of(value)?;
    let preserve = doc.optional("preserve", typed);
    let chown = doc.optional("chown", chown);
    let links = doc.optional("links", typed);
    let punch_zeros = doc.optional("punch_zeros", truth);
    let strict_metadata = doc.optional("strict_metadata", truth);
    let compare = doc.optional("compare", typed);
    let mtime_tolerance_ns = doc.optional("mtime_tolerance_ns", typed);
    let update = doc.optional("update", truth);
    let ignore_existing = doc.optional("ignore_existing", truth);
    let existing = doc.optional("existing", truth);
    let whole_file = doc.optional("whole_file", truth);
    let clone = doc.optional("clone", truth);
    let allow_overlap = doc.optional("allow_overlap", truth);
    let no_queue = doc.optional("no_queue", truth);
    let filter = doc.optional("filter", filter);
    let recursive = doc.optional("recursive", truth);
    let dry_run = doc.optional("dry_run", truth);
    let record = doc.optional("record", truth);
    let manifest = doc.optional("manifest", truth);
    let verify = doc.optional("verify", typed);
    let delete = doc.optional("delete", delete);
    doc.end()?;
    super::documents::whole_or_nothing(|| {
        Some(SyncOptions {
            preserve: preserve?.unwrap_or_default(),
            chown: chown?.unwrap_or_default(),
            links: links?.unwrap_or_default(),
            punch_zeros: punch_zeros?.unwrap_or_default(),
            strict_metadata: strict_metadata?.unwrap_or_default(),
            compare: compare?.unwrap_or_default(),
            mtime_tolerance_ns: mtime_tolerance_ns?.unwrap_or_default(),
            update: update?.unwrap_or_default(),
            ignore_existing: ignore_existing?.unwrap_or_default(),
            existing: existing?.unwrap_or_default(),
            whole_file: whole_file?.unwrap_or_default(),
            no_clone: !clone?.unwrap_or(true),
            allow_overlap: allow_overlap?.unwrap_or_default(),
            no_queue: no_queue?.unwrap_or_default(),
            filter: filter?.unwrap_or_default(),
            recursive: recursive?.unwrap_or_default(),
            dry_run: dry_run?.unwrap_or_default(),
            record: record?.unwrap_or_default(),
            manifest: manifest?.unwrap_or_default(),
            verify: verify?.unwrap_or_default(),
            delete: delete?,
        })
    })
}

fn chown(value: Value) -> Result<Chown, Faults> {
    let mut doc = Document::of(value)?;
    let uid = doc.optional("uid", whole(0..=u32::MAX - 1));
    let gid = doc.optional("gid", whole(0..=u32::MAX - 1));
    doc.end()?;
    super::documents::whole_or_nothing(|| Some(Chown { uid: uid?, gid: gid? }))
}

fn filter(value: Value) -> Result<FilterSpec, Faults> {
    let mut doc = Document::of(value)?;
    // Each rule takes at least a byte.
    let rules = doc.optional("rules", list(MAX_FILTER_BYTES, typed::<String>));
    let min_size = doc.optional("min_size", typed);
    let max_size = doc.optional("max_size", typed);
    let newer_than = doc.optional("newer_than", typed);
    let older_than = doc.optional("older_than", typed);
    doc.end()?;
    super::documents::whole_or_nothing(|| {
        Some(FilterSpec {
            rules: rules?.unwrap_or_default(),
            min_size: min_size?,
            max_size: max_size?,
            newer_than: newer_than?,
            older_than: older_than?,
        })
    })
}

fn delete(value: Value) -> Result<DeleteOptions, Faults> {
    let mut doc = Document::of(value)?;
    let max = doc.optional("max", typed);
    let max_percent = doc.optional("max_percent", percent);
    let trash = doc.optional("trash", typed);
    let delete_excluded = doc.optional("delete_excluded", truth);
    let allow_empty_source = doc.optional("allow_empty_source", truth);
    let allow_new_source_fs = doc.optional("allow_new_source_fs", truth);
    doc.end()?;
    super::documents::whole_or_nothing(|| {
        Some(DeleteOptions {
            max: max?,
            max_percent: max_percent?.unwrap_or(DEFAULT_MAX_DELETE_PERCENT),
            trash: trash?,
            delete_excluded: delete_excluded?.unwrap_or_default(),
            allow_empty_source: allow_empty_source?.unwrap_or_default(),
            allow_new_source_fs: allow_new_source_fs?.unwrap_or_default(),
        })
    })
}

fn percent(value: Value) -> Result<u8, Faults> {
    let percent = whole(0..=100)(value)?;
    u8::try_from(percent).map_err(|_| Faults::one("must be a whole number from 0 to 100"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::options::{Compare, Links, Preserve, Verify};
    use serde_json::json;

    // An option that is added must be added to its reader as well.
    #[test]
    fn the_reader_knows_every_option() {
        let all = SyncOptions {
            preserve: Preserve::parse_names(["mode", "acls"]).unwrap(),
            chown: Chown { uid: Some(0), gid: Some(7) },
            links: Links::Copy,
            punch_zeros: true,
            strict_metadata: true,
            compare: Compare::Size,
            mtime_tolerance_ns: 2_000_000_000,
            update: true,
            ignore_existing: true,
            existing: true,
            whole_file: true,
            no_clone: true,
            allow_overlap: true,
            no_queue: true,
            filter: FilterSpec {
                rules: vec!["*.tmp".into(), "!a.tmp".into()],
                min_size: Some(1),
                max_size: Some(2),
                newer_than: Some(-5),
                older_than: Some(5),
            },
            recursive: true,
            dry_run: true,
            record: true,
            manifest: true,
            verify: Verify::Readback,
            delete: Some(DeleteOptions {
                max: Some(3),
                max_percent: 20,
                trash: Some(RelPath::new("a/b").unwrap()),
                delete_excluded: true,
                allow_empty_source: true,
                allow_new_source_fs: true,
            }),
        };
        let written = serde_json::to_value(&all).unwrap();
        assert_eq!(written.as_object().unwrap().len(), 21, "an option is at its default");
        assert_eq!(options(written).unwrap(), all);
        assert_eq!(options(json!({})).unwrap(), SyncOptions::default());
        assert_eq!(options(json!({"delete": {}})).unwrap().delete, Some(DeleteOptions::default()));
    }

    #[test]
    fn every_bad_option_is_listed_at_its_place() {
        let faults = options(json!({
            "preserve": ["mode", "tims"], "chown": {"uid": -1, "user": "x"}, "compare": "chekcsum",
            "update": 1, "filter": {"rules": ["a", 5], "min_size": "1k"}, "verfy": "none",
            "delete": {"max": -3, "max_percent": 101, "trash": "../x", "allow_empty": true}
        }))
        .unwrap_err();
        let pointers: Vec<String> =
            faults.into_problem().errors.into_iter().map(|e| e.pointer).collect();
        assert_eq!(
            pointers,
            [
                "/preserve",
                "/chown/uid",
                "/chown/user",
                "/compare",
                "/update",
                "/filter/rules/1",
                "/filter/min_size",
                "/delete/max",
                "/delete/max_percent",
                "/delete/trash",
                "/delete/allow_empty",
                "/verfy"
            ]
        );
    }
}
