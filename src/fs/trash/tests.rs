use super::super::testing::*;
use super::super::{Filter, OfferDecision, Target, WalkOptions};
use super::*;
use crate::wire::manifest::Manifest;
use crate::wire::options::{FilterSpec, WriteRules};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// A mirror's only page: the source has nothing but its root.
fn delete_all(target: &Target) -> Vec<String> {
    let done = target.prune_page(&prune_page("", &[])).unwrap();
    assert_eq!(done.errors, []);
    done.old_trash.paths.iter().map(ToString::to_string).collect()
}

#[test]
fn a_copy_of_a_trash_is_a_trash_even_when_small_files_are_excluded() {
    let all = FilterSpec::default();
    let large = FilterSpec { min_size: Some(1000), ..FilterSpec::default() };
    let unmarked = FilterSpec { rules: vec![".ctl-*".to_owned()], ..FilterSpec::default() };
    for (filter, is_trash) in [(all, true), (large, true), (unmarked, false)] {
        let site = TestSite::new();
        site.write_file("src/bin/req/deleted", [7; 2000]);
        let trash = Arc::new(fs::File::open(site.path("src/bin")).unwrap().into());
        create_marker(&trash).unwrap();
        let options =
            WalkOptions { filter: Filter::cached(&filter).unwrap(), ..WalkOptions::default() };
        let source = site.source();
        let mut walk = source.walk_with(&RelPath::root(), None, options).unwrap();
        let entries: Vec<_> = walk.by_ref().map(Result::unwrap).collect();
        assert_eq!(walk.take_exclusions(), Default::default(), "{filter:?}");
        let dirs = source.parent_dirs(&rel("bin/req/deleted")).unwrap();
        let target = site.target_with_rules(WriteRules { delete: true, ..WriteRules::default() });
        let decisions = copy_batch(&source, &target, &Manifest { dirs, entries });
        assert!(
            decisions
                .iter()
                .any(|verdict| matches!(verdict, Ok(OfferDecision::NeedsContent { .. })))
        );
        let noted = delete_all(&target);
        let kept: Vec<PathBuf> = snapshot(&site.path("dst")).into_keys().collect();
        match is_trash {
            true => {
                assert_eq!(noted, ["bin"], "{filter:?}");
                assert_eq!(fs::read(site.path("dst/bin/req/deleted")).unwrap(), [7; 2000]);
            }
            false => assert_eq!((noted, kept), (vec![], vec![PathBuf::new()]), "{filter:?}"),
        }
    }
}
