//! `options` of `POST /sync`, read member by member.

use super::object_reader::{ObjectReader, array, assemble, boolean, deserialize, integer};
use crate::master::validation_errors::ValidationErrors;
use crate::wire::options::{
    Chown, DEFAULT_MAX_DELETE_PERCENT, DeleteOptions, FilterSpec, MAX_FILTER_BYTES, SyncOptions,
};
use serde_json::Value;

/// Reads the options; what they mean together is judged with the rest of the request.
///
/// # Errors
/// All that is wrong with them, below their own place.
pub(super) fn read_options(value: Value) -> Result<SyncOptions, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let preserve = doc.optional("preserve", deserialize);
    let chown = doc.optional("chown", read_chown);
    let links = doc.optional("links", deserialize);
    let punch_zeros = doc.optional("punch_zeros", boolean);
    let strict_metadata = doc.optional("strict_metadata", boolean);
    let compare = doc.optional("compare", deserialize);
    let mtime_tolerance_ns = doc.optional("mtime_tolerance_ns", deserialize);
    let update = doc.optional("update", boolean);
    let ignore_existing = doc.optional("ignore_existing", boolean);
    let existing = doc.optional("existing", boolean);
    let whole_file = doc.optional("whole_file", boolean);
    let clone = doc.optional("clone", boolean);
    let allow_overlap = doc.optional("allow_overlap", boolean);
    let no_queue = doc.optional("no_queue", boolean);
    let filter = doc.optional("filter", read_filter);
    let recursive = doc.optional("recursive", boolean);
    let dry_run = doc.optional("dry_run", boolean);
    let record = doc.optional("record", boolean);
    let manifest = doc.optional("manifest", boolean);
    let verify = doc.optional("verify", deserialize);
    let delete = doc.optional("delete", read_delete);
    doc.finish()?;
    assemble(|| {
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

fn read_chown(value: Value) -> Result<Chown, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let uid = doc.optional("uid", integer(0..=u32::MAX - 1));
    let gid = doc.optional("gid", integer(0..=u32::MAX - 1));
    doc.finish()?;
    assemble(|| Some(Chown { uid: uid?, gid: gid? }))
}

fn read_filter(value: Value) -> Result<FilterSpec, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    // Each rule takes at least a byte.
    let rules = doc.optional("rules", array(MAX_FILTER_BYTES, deserialize::<String>));
    let min_size = doc.optional("min_size", deserialize);
    let max_size = doc.optional("max_size", deserialize);
    let newer_than = doc.optional("newer_than", deserialize);
    let older_than = doc.optional("older_than", deserialize);
    doc.finish()?;
    assemble(|| {
        Some(FilterSpec {
            rules: rules?.unwrap_or_default(),
            min_size: min_size?,
            max_size: max_size?,
            newer_than: newer_than?,
            older_than: older_than?,
        })
    })
}

fn read_delete(value: Value) -> Result<DeleteOptions, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let max = doc.optional("max", deserialize);
    let max_percent = doc.optional("max_percent", percentage);
    let trash = doc.optional("trash", deserialize);
    let delete_excluded = doc.optional("delete_excluded", boolean);
    let allow_empty_source = doc.optional("allow_empty_source", boolean);
    let allow_new_source_fs = doc.optional("allow_new_source_fs", boolean);
    doc.finish()?;
    assemble(|| {
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

fn percentage(value: Value) -> Result<u8, ValidationErrors> {
    let percent = integer(0..=100)(value)?;
    u8::try_from(percent)
        .map_err(|_| ValidationErrors::single("must be a whole number from 0 to 100"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::options::{Compare, Links, Verify};
    use crate::wire::preserve::Preserve;
    use serde_json::json;

    // An option that is added must be added to its reader as well.
    #[test]
    fn every_option_is_read_back_as_it_was_written() {
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
        assert_eq!(read_options(written).unwrap(), all);
        assert_eq!(read_options(json!({})).unwrap(), SyncOptions::default());
        assert_eq!(
            read_options(json!({"delete": {}})).unwrap().delete,
            Some(DeleteOptions::default())
        );
    }

    #[test]
    fn every_invalid_option_is_listed_with_its_pointer() {
        let faults = read_options(json!({
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
