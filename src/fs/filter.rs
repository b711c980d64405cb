//! Exclusion of source entries: patterns of gitignore, limits of size and age.

use super::pattern::{FilterError, Patterns};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, EntryKind, Meta};
use crate::wire::options::{FilterSpec, MAX_FILTER_BYTES};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// A compiled [`FilterSpec`]. Paths are relative to the source root, which is never excluded; names may have any
/// bytes.
#[derive(Debug)]
pub struct Filter {
    rules: Patterns,
    size_range: (u64, u64),
    /// See [`FilterSpec::newer_than`] and [`FilterSpec::older_than`].
    newer_than: Option<i64>,
    older_than: Option<i64>,
}

/// The filters compiled last. Compiling a thousand rules takes tens of milliseconds, and a mirror needs the filter
/// for every directory.
static FILTER_CACHE: Mutex<VecDeque<(FilterSpec, Arc<Filter>)>> = Mutex::new(VecDeque::new());
/// So many are kept.
const MAX_CACHED_FILTERS: usize = 4;

impl Default for Filter {
    /// Excludes nothing.
    fn default() -> Self {
        let sizes = (0, u64::MAX);
        Filter { rules: Patterns::default(), size_range: sizes, newer_than: None, older_than: None }
    }
}

impl Filter {
    /// Compiles the rules.
    ///
    /// # Errors
    /// They are too long, or one is invalid: the error has its number and text.
    pub fn new(spec: &FilterSpec) -> Result<Filter, FilterError> {
        let bytes: usize = spec.rules.iter().map(|rule| rule.len() + 1).sum();
        if bytes > MAX_FILTER_BYTES {
            return Err(FilterError::RulesTooLong(bytes));
        }
        Ok(Filter {
            rules: Patterns::new(&spec.rules)?,
            size_range: (spec.min_size.unwrap_or(0), spec.max_size.unwrap_or(u64::MAX)),
            newer_than: spec.newer_than,
            older_than: spec.older_than,
        })
    }

    /// Like [`Filter::new`], from a cache.
    ///
    /// # Errors
    /// See [`Filter::new`].
    pub fn cached(spec: &FilterSpec) -> Result<Arc<Filter>, FilterError> {
        let made = || FILTER_CACHE.lock();
        if let Some((_, filter)) = made().iter().find(|(of, _)| of == spec) {
            return Ok(filter.clone());
        }
        let filter = Arc::new(Filter::new(spec)?);
        let mut made = made();
        made.truncate(MAX_CACHED_FILTERS - 1);
        made.push_front((spec.clone(), filter.clone()));
        Ok(filter)
    }

    /// Whether the rules exclude `path`, given that its parents are not excluded.
    pub fn excludes(&self, path: &RelPath, is_dir: bool) -> bool {
        !path.is_root() && self.rules.excludes(path.as_bytes(), is_dir)
    }

    /// Like [`Filter::excludes`] for a path that was not reached from above, e.g. one of a list: everything below an
    /// excluded directory is excluded, whatever a later rule matches.
    pub fn excludes_with_parents(&self, path: &RelPath, is_dir: bool) -> bool {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        !self.rules.is_empty()
            && (ends.into_iter().any(|end| self.rules.excludes(&bytes[..end], true))
                || self.excludes(path, is_dir))
    }

    /// The option that excludes a source that is no directory, given its entry `root` and its name. The rules see the
    /// name as if its directory was the source.
    pub fn option_that_excludes_source(&self, root: &Entry, name: &[u8]) -> Option<&'static str> {
        let excluded = self.rules.excludes(name, false);
        excluded.then_some("a pattern (--exclude)").or_else(|| self.exceeded_limit(root))
    }

    /// Whether `entry` is a regular file beyond the limits of size and age.
    pub fn exceeds_limits(&self, entry: &Entry) -> bool {
        self.exceeded_limit(entry).is_some()
    }

    /// The option of the limit that `entry`, a regular file, exceeds.
    fn exceeded_limit(&self, entry: &Entry) -> Option<&'static str> {
        let EntryKind::File { size } = entry.kind else { return None };
        let Meta { mtime_sec, mtime_nsec, .. } = entry.meta;
        let time = (mtime_sec, mtime_nsec);
        let limits = [
            (size < self.size_range.0, "--min-size"),
            (size > self.size_range.1, "--max-size"),
            (self.newer_than.is_some_and(|limit| time <= (limit, 0)), "--newer-than"),
            (self.older_than.is_some_and(|limit| time >= (limit, 0)), "--older-than"),
        ];
        limits.into_iter().find(|(passed, _)| *passed).map(|(_, option)| option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::FileVersion;

    fn filter(rules: &[&str]) -> Filter {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).unwrap()
    }

    fn rel(path: impl AsRef<[u8]>) -> RelPath {
        RelPath::new(path).unwrap()
    }

    fn file(size: u64, mtime: (i64, u32)) -> Entry {
        let (mtime_sec, mtime_nsec) = mtime;
        let meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec, mtime_nsec };
        Entry::new(rel("f"), EntryKind::File { size }, meta, FileVersion::default())
    }

    #[test]
    fn rules_are_those_of_gitignore() {
        let cases: &[(&[&str], &str, bool, bool)] = &[
            (&["*.o"], "a.o", false, true),
            (&["*.o"], "a/b/c.o", false, true),
            (&["*.o", "!keep.o"], "a/keep.o", false, false),
            (&["!keep.o", "*.o"], "a/keep.o", false, true),
            (&["/top"], "top", false, true),
            (&["/top"], "a/top", false, false),
            (&["build/"], "build", true, true),
            (&["build/"], "build", false, false),
            (&["build/"], "a/build", true, true),
            (&["a/b"], "a/b", false, true),
            (&["a/b"], "x/a/b", false, false),
            (&["**/a/b"], "x/a/b", false, true),
            (&["a/**"], "a", true, false),
            (&["a/**"], "a/x", false, true),
            (&["a/**/b"], "a/b", false, true),
            (&["a/**/b"], "a/x/y/b", false, true),
            (&["a/*"], "a/x/y", false, true),
            (&["?"], "x", false, true),
            (&["[a-c]x"], "bx", false, true),
            (&["[!a-c]x"], "bx", false, false),
            (&["# comment", "", "   "], "# comment", false, false),
            (&["\\#x"], "#x", false, true),
            (&["\\!x"], "!x", false, true),
            (&["x   "], "x", false, true),
            (&["x\\ "], "x ", false, true),
            (&["-rf"], "-rf", false, true),
            (&["*"], "anything", true, true),
        ];
        for (rules, path, is_dir, out) in cases {
            let left_out = filter(rules).excludes_with_parents(&rel(path), *is_dir);
            assert_eq!(left_out, *out, "{rules:?} {path}");
        }
        assert!(!filter(&["*"]).excludes(&RelPath::root(), true), "never the root");
    }

    #[test]
    fn names_of_any_bytes_are_matched() {
        let some = filter(&["*.tmp", "new?line"]);
        assert!(some.excludes(&rel(b"\xff\xfe.tmp"), false));
        assert!(some.excludes(&rel(b"d\xff/new\nline"), false));
        assert!(!some.excludes(&rel(b"\xff\xfe"), false));
    }

    #[test]
    fn nothing_in_an_excluded_directory_can_be_included_again() {
        let some = filter(&["logs/", "!logs/keep", "*.o", "!b.o"]);
        for (path, out) in [
            ("logs/keep", true),
            ("x/logs/y/z", true),
            ("logs", false),
            ("a/b.o", false),
            ("", false),
        ] {
            assert_eq!(some.excludes_with_parents(&rel(path), false), out, "{path}");
        }
        assert!(some.excludes_with_parents(&rel("logs"), true));
    }

    #[test]
    fn size_and_age_limits_apply_to_regular_files_only_with_nanosecond_precision() {
        let limits = FilterSpec {
            min_size: Some(10),
            max_size: Some(20),
            newer_than: Some(100),
            older_than: Some(200),
            ..FilterSpec::default()
        };
        let some = Filter::new(&limits).unwrap();
        for (size, time, out) in [
            (10, (150, 0), false),
            (20, (100, 1), false),
            (9, (150, 0), true),
            (21, (150, 0), true),
            (10, (100, 0), true),
            (10, (199, 999_999_999), false),
            (10, (200, 0), true),
            (10, (-5, 0), true),
        ] {
            assert_eq!(some.exceeds_limits(&file(size, time)), out, "{size} {time:?}");
        }
        let dir = Entry { kind: EntryKind::Dir, ..file(0, (0, 0)) };
        assert!(!some.exceeds_limits(&dir));
        assert!(!Filter::default().exceeds_limits(&file(u64::MAX, (i64::MIN, 0))));
    }

    #[test]
    fn an_invalid_rule_is_named_in_the_error() {
        let spec = |rules: &[&str]| FilterSpec {
            rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
            ..FilterSpec::default()
        };
        let error = Filter::new(&spec(&["fine", "[z-a]\x1b"])).unwrap_err();
        assert!(
            matches!(&error, FilterError::InvalidRule { index: 1, rule, .. } if rule == "[z-a]\x1b")
        );
        let text = error.to_string();
        assert!(text.starts_with("filter rule 2 (`[z-a]\\#033`) cannot be read: "), "{text}");
        let long = "x".repeat(MAX_FILTER_BYTES);
        assert_eq!(
            Filter::new(&spec(&[&long])).unwrap_err(),
            FilterError::RulesTooLong(MAX_FILTER_BYTES + 1)
        );
    }

    #[test]
    fn many_rules_and_rules_with_many_wildcards_match_in_bounded_time() {
        // A backtracking matcher would not finish.
        let nested = format!("{}b", "*a".repeat(300));
        let deep = format!("{}x", "**/".repeat(200));
        let either = format!("{{{}}}", vec!["aa*"; 200].join(","));
        let many: Vec<String> = (0..100).map(|i| format!("*name-{i:05}*.tmp")).collect();
        let path = rel(["a".repeat(255), "a".repeat(255)].join("/"));
        let one = |rule: &String| vec![rule.clone()];
        for rules in [one(&nested), one(&deep), one(&either), many] {
            let shown: String = rules[0].chars().take(40).collect();
            let begun = std::time::Instant::now();
            match Filter::new(&FilterSpec { rules, ..FilterSpec::default() }) {
                Ok(some) => {
                    assert!(!some.excludes_with_parents(&path, false) || shown.starts_with('{'))
                }
                Err(error) => assert!(error.to_string().len() < 10_000, "{shown}"),
            }
            assert!(begun.elapsed().as_secs() < 20, "{shown}: {:?}", begun.elapsed());
        }
        // The filter is not compiled again for each directory.
        let spec = |i| FilterSpec {
            rules: (0..300).map(|n| format!("*name-{i}-{n:05}*.tmp")).collect(),
            ..FilterSpec::default()
        };
        let first = Filter::cached(&spec(0)).unwrap();
        let begun = std::time::Instant::now();
        for _ in 0..1_000 {
            assert!(Arc::ptr_eq(&first, &Filter::cached(&spec(0)).unwrap()));
        }
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        let others: Vec<_> =
            (1..=MAX_CACHED_FILTERS).map(|i| Filter::cached(&spec(i)).unwrap()).collect();
        assert!(others.iter().all(|other| !Arc::ptr_eq(&first, other)));
        assert!(others[1].excludes(&rel("x-name-2-00299-.tmp"), false));
        assert!(!others[1].excludes(&rel("x-name-1-00299-.tmp"), false));
        // The rest is bounded by the length of all rules together, which is refused before it is read.
        let rules = vec!["*a".repeat(MAX_FILTER_BYTES)];
        let begun = std::time::Instant::now();
        assert!(Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).is_err());
        assert!(begun.elapsed().as_secs() < 5);
    }

    proptest::proptest! {
        #[test]
        fn any_rules_are_compiled_or_named_in_an_error_and_match_any_name(
            rules in proptest::collection::vec(
                proptest::prop_oneof!["[]\\[*?!{},/a\\\\ #^-]{0,30}", "\\PC{0,20}"], 0..5
            ),
            name in proptest::collection::vec(proptest::num::u8::ANY, 1..40),
        ) {
            let some = Filter::new(&FilterSpec { rules, ..FilterSpec::default() });
            if let (Ok(some), Ok(name)) = (some, RelPath::new(&name)) {
                some.excludes_with_parents(&name, false);
                some.excludes_with_parents(&name, true);
            }
        }
    }
}
