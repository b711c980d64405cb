//! Reads `options` of `POST /sync`.

use super::object_reader::{
    ObjectReader, array, boolean, deserialize, integer, object_reader, optional, or_default,
};
use crate::master::validation_errors::ValidationErrors;
use crate::wire::options::{
    Chown, DEFAULT_MAX_DELETE_PERCENT, DeleteOptions, FilterSpec, MAX_FILTER_BYTES, SyncOptions,
};
use serde_json::Value;

object_reader! {
    /// Reads the options. Conflicts among them are found by `submit_validation`.
    ///
    /// # Errors
    /// All errors, with pointers below the options.
    pub(super) fn read_options -> SyncOptions {
        preserve: or_default(deserialize),
        chown: or_default(read_chown),
        links: or_default(deserialize),
        punch_zeros: or_default(boolean),
        strict_metadata: or_default(boolean),
        compare: or_default(deserialize),
        mtime_tolerance_ns: or_default(deserialize),
        update: or_default(boolean),
        ignore_existing: or_default(boolean),
        existing: or_default(boolean),
        whole_file: or_default(boolean),
        no_clone as "clone": or_default(|value| boolean(value).map(|clone| !clone)),
        allow_overlap: or_default(boolean),
        no_queue: or_default(boolean),
        filter: or_default(read_filter),
        recursive: or_default(boolean),
        dry_run: or_default(boolean),
        record: or_default(boolean),
        manifest: or_default(boolean),
        verify: or_default(deserialize),
        delete: optional(read_delete),
    }
}

object_reader! {
    fn read_chown -> Chown {
        uid: optional(integer(0..=u32::MAX - 1)),
        gid: optional(integer(0..=u32::MAX - 1)),
    }
}

object_reader! {
    fn read_filter -> FilterSpec {
        // Each rule takes at least a byte.
        rules: or_default(array(MAX_FILTER_BYTES, deserialize::<String>)),
        min_size: optional(deserialize),
        max_size: optional(deserialize),
        newer_than: optional(deserialize),
        older_than: optional(deserialize),
    }
}

object_reader! {
    fn read_delete -> DeleteOptions {
        max: optional(deserialize),
        max_percent: read_max_percent,
        trash: optional(deserialize),
        delete_excluded: or_default(boolean),
        allow_empty_source: or_default(boolean),
        allow_new_source_fs: or_default(boolean),
    }
}

fn read_max_percent(member: Option<Value>) -> Result<u8, ValidationErrors> {
    let percent = optional(integer(0..=100))(member)?;
    Ok(percent.and_then(|p| u8::try_from(p).ok()).unwrap_or(DEFAULT_MAX_DELETE_PERCENT))
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
        let errors = read_options(json!({
            "preserve": ["mode", "tims"], "chown": {"uid": -1, "user": "x"}, "compare": "chekcsum",
            "update": 1, "filter": {"rules": ["a", 5], "min_size": "1k"}, "verfy": "none",
            "delete": {"max": -3, "max_percent": 101, "trash": "../x", "allow_empty": true}
        }))
        .unwrap_err();
        let pointers: Vec<String> =
            errors.into_problem().errors.into_iter().map(|e| e.pointer).collect();
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
