use super::super::testing::*;
use super::super::{Filter, Target, Verdict, WalkOptions};
use super::*;
use crate::wire::manifest::Manifest;
use crate::wire::options::{FilterSpec, WriteRules};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// A mirror's only page: the source has nothing but its root.
fn deletes_all(target: &Target) -> Vec<String> {
    let done = target.prune(&page("", &[])).unwrap();
    assert_eq!(done.errors, []);
    done.old_trash.paths.iter().map(ToString::to_string).collect()
}

#[test]
fn a_copy_of_a_trash_is_a_trash_also_where_limits_leave_small_files_out() {
    let all = FilterSpec::default();
    let large = FilterSpec { min_size: Some(1000), ..FilterSpec::default() };
    let unmarked = FilterSpec { rules: vec![".ctl-*".to_owned()], ..FilterSpec::default() };
    for (filter, is_trash) in [(all, true), (large, true), (unmarked, false)] {
        let site = Site::new();
        site.write("src/bin/req/deleted", [7; 2000]);
        let trash = Arc::new(fs::File::open(site.at("src/bin")).unwrap().into());
        mark(&trash).unwrap();
        let options =
            WalkOptions { filter: Filter::made(&filter).unwrap(), ..WalkOptions::default() };
        let source = site.source();
        let mut walk = source.walk_with(&RelPath::root(), None, options).unwrap();
        let entries: Vec<_> = walk.by_ref().map(Result::unwrap).collect();
        assert_eq!(walk.notes(), Default::default(), "{filter:?}");
        let dirs = source.chain(&rel("bin/req/deleted")).unwrap();
        let target = site.target_by(WriteRules { delete: true, ..WriteRules::default() });
        let verdicts = copy(&source, &target, &Manifest { dirs, entries });
        assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::Needed { .. })));
        let noted = deletes_all(&target);
        let kept: Vec<PathBuf> = snapshot(&site.at("dst")).into_keys().collect();
        match is_trash {
            true => {
                assert_eq!(noted, ["bin"], "{filter:?}");
                assert_eq!(fs::read(site.at("dst/bin/req/deleted")).unwrap(), [7; 2000]);
            }
            false => assert_eq!((noted, kept), (vec![], vec![PathBuf::new()]), "{filter:?}"),
        }
    }
}
