//! How a sync is to be done: a random choice of options, and what the filters among them mean.

use crate::tree::Node;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The options of one sync.
#[derive(Debug, Clone)]
pub(crate) struct SyncChoice {
    /// What is not preserved.
    pub(crate) not_preserved: Vec<&'static str>,
    pub(crate) chown: Option<(u32, u32)>,
    pub(crate) skip_links: bool,
    pub(crate) compare: Compare,
    pub(crate) update_rule: UpdateRule,
    pub(crate) rules: Vec<Rule>,
    pub(crate) min_size: Option<u64>,
    pub(crate) max_size: Option<u64>,
    /// Seconds since 1970.
    pub(crate) newer_than: Option<i64>,
    pub(crate) older_than: Option<i64>,
    /// Times that differ by so many seconds are equal.
    pub(crate) tolerance: i64,
    pub(crate) strict_metadata: bool,
    pub(crate) delete: Option<Delete>,
    pub(crate) dry_run: bool,
    pub(crate) verify: &'static str,
    pub(crate) record: bool,
    pub(crate) manifest: bool,
    pub(crate) whole_file: bool,
    pub(crate) punch_zeros: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    SizeTime,
    Size,
    Checksum,
}

/// Which files are brought up to date at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpdateRule {
    All,
    Update,
    IgnoreExisting,
    Existing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Delete {
    pub(crate) excluded: bool,
    pub(crate) max: Option<usize>,
    pub(crate) trash: bool,
}

/// The directory for what is deleted, where that is chosen.
pub(crate) const TRASH: &[u8] = b"the trash";

/// A line of the filter: the gitignore patterns that need no library.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// It takes in again.
    pub(crate) includes: bool,
    pub(crate) pattern: RulePattern,
    /// It is about directories only.
    pub(crate) dirs: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum RulePattern {
    /// A name anywhere.
    Name(&'static str),
    /// A path from the root.
    Path(&'static str),
    /// Every name.
    Any,
}

impl Rule {
    fn to_line(&self) -> String {
        let mark = if self.includes { "!" } else { "" };
        let end = if self.dirs { "/" } else { "" };
        match self.pattern {
            RulePattern::Name(name) => format!("{mark}{name}{end}"),
            RulePattern::Path(path) => format!("{mark}/{path}{end}"),
            RulePattern::Any => format!("{mark}*{end}"),
        }
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        let is = match self.pattern {
            RulePattern::Name(name) => path.rsplit(|b| *b == b'/').next() == Some(name.as_bytes()),
            RulePattern::Path(whole) => path == whole.as_bytes(),
            RulePattern::Any => true,
        };
        is && (is_dir || !self.dirs)
    }
}

impl SyncChoice {
    pub(crate) fn preserves(&self, word: &str) -> bool {
        !self.not_preserved.contains(&word)
    }

    /// Whether the rules leave out a path, or a directory above it.
    pub(crate) fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        let above = ends.map(|end| (&path[..end], true));
        let all = above.chain(std::iter::once((path, is_dir)));
        all.filter(|(path, _)| !path.is_empty()).any(|(path, is_dir)| {
            let last = self.rules.iter().rev().find(|rule| rule.matches(path, is_dir));
            last.is_some_and(|rule| !rule.includes)
        })
    }

    /// Whether its length or its age leaves out a file.
    pub(crate) fn is_outside_limits(&self, node: &Node) -> bool {
        let Some(size) = node.size() else { return false };
        self.min_size.is_some_and(|min| size < min)
            || self.max_size.is_some_and(|max| size > max)
            || self.newer_than.is_some_and(|limit| node.mtime <= (limit, 0))
            || self.older_than.is_some_and(|limit| node.mtime >= (limit, 0))
    }

    /// Whether two times count as equal.
    pub(crate) fn same_time(&self, one: (i64, i64), other: (i64, i64)) -> bool {
        let ns = |(s, ns): (i64, i64)| i128::from(s) * 1_000_000_000 + i128::from(ns);
        (ns(one) - ns(other)).abs() <= i128::from(self.tolerance) * 1_000_000_000
    }

    /// As the API takes it.
    pub(crate) fn options(&self) -> Value {
        let mut preserve = vec!["all".to_owned()];
        preserve.extend(self.not_preserved.iter().map(|word| format!("no-{word}")));
        let mut filter = json!({"rules": self.rules.iter().map(Rule::to_line).collect::<Vec<_>>()});
        for (name, size) in [("min_size", self.min_size), ("max_size", self.max_size)] {
            if let Some(size) = size {
                filter[name] = json!(size);
            }
        }
        for (name, time) in [("newer_than", self.newer_than), ("older_than", self.older_than)] {
            if let Some(time) = time {
                filter[name] = json!(time);
            }
        }
        let mut options = json!({
            "strict_metadata": self.strict_metadata,
            "mtime_tolerance_ns": self.tolerance * 1_000_000_000,
            "preserve": preserve,
            "links": if self.skip_links { "skip" } else { "keep" },
            "compare": match self.compare {
                Compare::SizeTime => "size_time",
                Compare::Size => "size",
                Compare::Checksum => "checksum",
            },
            "update": self.update_rule == UpdateRule::Update,
            "ignore_existing": self.update_rule == UpdateRule::IgnoreExisting,
            "existing": self.update_rule == UpdateRule::Existing,
            "filter": filter,
            "dry_run": self.dry_run,
            "verify": self.verify,
            "record": self.record,
            "manifest": self.manifest,
            "whole_file": self.whole_file,
            "punch_zeros": self.punch_zeros,
        });
        if let Some((uid, gid)) = self.chown {
            options["chown"] = json!({"uid": uid, "gid": gid});
        }
        if let Some(delete) = &self.delete {
            options["delete"] = json!({
                "max_percent": 100,
                "allow_empty_source": true,
                "delete_excluded": delete.excluded,
            });
            if let Some(max) = delete.max {
                options["delete"]["max"] = json!(max);
            }
            if delete.trash {
                options["delete"]["trash"] = json!(String::from_utf8_lossy(TRASH));
            }
        }
        options
    }

    /// Without what has no plain meaning together.
    fn without_contradictions(mut self) -> Self {
        if self.delete.is_some_and(|delete| delete.excluded) {
            self.skip_links = false;
            self.not_preserved.retain(|word| *word != "specials");
        }
        if self.verify == "readback" && (self.update_rule != UpdateRule::All || self.dry_run) {
            self.verify = "transfer";
        }
        // Without hashing there are no digests.
        self.manifest &= self.verify != "none";
        if let (Some(min), Some(max)) = (self.min_size, self.max_size) {
            (self.min_size, self.max_size) = (Some(min.min(max)), Some(min.max(max)));
        }
        self
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let what = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "dir", "x", "deeper", "d d", "A", "\u{e9}"]).prop_map(RulePattern::Name),
        3 => prop::sample::select(vec!["a", "dir", "dir/a", "a/dir", "b/x", "dir/b"])
            .prop_map(RulePattern::Path),
        1 => Just(RulePattern::Any),
    ];
    let dirs = prop::bool::weighted(0.3);
    (what, dirs, prop::bool::weighted(0.4)).prop_map(|(what, dirs, takes_in)| Rule {
        includes: takes_in,
        pattern: what,
        dirs,
    })
}

/// Any sync. Each option is left alone more often than not, so that the others show.
pub(crate) fn any_choice() -> impl Strategy<Value = SyncChoice> {
    let words =
        vec!["mode", "owner", "group", "times", "xattrs", "hardlinks", "sparse", "specials"];
    let most = words.len();
    let without = prop_oneof![
        5 => Just(Vec::new()),
        2 => prop::sample::subsequence(words, 1..=most),
    ];
    let compare = prop_oneof![
        4 => Just(Compare::SizeTime),
        1 => Just(Compare::Size),
        3 => Just(Compare::Checksum),
    ];
    let which = prop_oneof![
        6 => Just(UpdateRule::All),
        1 => Just(UpdateRule::Update),
        1 => Just(UpdateRule::IgnoreExisting),
        1 => Just(UpdateRule::Existing),
    ];
    let rules = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(any_rule(), 1..4)];
    let size =
        || prop::option::weighted(0.1, prop::sample::select(vec![1u64, 100, 65_000, 2 << 20]));
    let time = || prop::option::weighted(0.1, 1_600_000_000..1_600_000_020i64);
    let times = (time(), time()).prop_map(|(newer, older)| match (newer, older) {
        (Some(newer), Some(older)) if newer >= older => (Some(newer), None),
        both => both,
    });
    let tolerance = prop_oneof![5 => Just(0), 1 => 1..4i64];
    let max = prop::option::weighted(0.2, 0..6usize);
    let delete = (prop::bool::weighted(0.3), max, prop::bool::weighted(0.2))
        .prop_map(|(excluded, max, trash)| Delete { excluded, max, trash });
    let verify = prop_oneof![
        6 => Just("transfer"),
        1 => Just("none"),
        2 => Just("readback"),
    ];
    let rare = || prop::bool::weighted(0.2);
    let chown = prop::option::weighted(0.1, Just((1234, 4321)));
    let first = (without, chown, rare(), compare, which, rules, size(), size());
    let second =
        (prop::option::weighted(0.5, delete), rare(), verify, rare(), rare(), rare(), rare());
    let third = (times, tolerance, rare());
    (first, second, third).prop_map(|(first, second, third)| {
        let (without, chown, skip_links, compare, which, rules, min_size, max_size) = first;
        let (delete, dry_run, verify, record, manifest, whole_file, punch_zeros) = second;
        let ((newer_than, older_than), tolerance, strict) = third;
        // Root can hold everything that is made here.
        let strict = strict && rustix::process::geteuid().is_root();
        let chown = chown.filter(|_| rustix::process::geteuid().is_root());
        let choice = SyncChoice {
            not_preserved: without,
            chown,
            skip_links,
            compare,
            update_rule: which,
            rules,
            min_size,
            max_size,
            newer_than,
            older_than,
            tolerance,
            strict_metadata: strict,
            delete,
            dry_run,
            verify,
            record,
            manifest,
            whole_file,
            punch_zeros,
        };
        choice.without_contradictions()
    })
}
