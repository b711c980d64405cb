use super::super::filter::Filter;
use super::*;
use crate::wire::options::FilterSpec;
use crate::wire::{AbsPath, RelPath};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// What is asked about; a `/` at the end makes a directory, and what lies in it is there too.
const PATHS: &[&str] = &[
    "a",
    "A",
    "ab",
    "b",
    "]",
    "]a",
    "[",
    "^",
    "!",
    "-",
    "\\",
    "1",
    "1a",
    "z-",
    "aab",
    "x y",
    "x ",
    "x\t",
    "#x",
    "!x",
    "*",
    "?",
    "é",
    "éa",
    "e\u{301}",
    ".hidden",
    "a.o",
    "_",
    "~",
    "fq",
    "foo/bar",
    "foobar",
    "foo.bar",
    "q",
    "f/q",
    "fxx/q",
    "f/x/q",
    "f/x/y/q",
    "dir/a",
    "dir/a.o",
    "dir/sub/a",
    "dir/sub/b",
    "dir/sub/q",
    "build/",
    "sub/build/",
    "deep/er/still/q",
    ":",
    "a:",
    "alpha",
    "x/f/q",
    "a\nb",
    "tab\there",
];

/// A git repository of the paths above, with the rules of one file of the test only.
struct Git {
    dir: tempfile::TempDir,
    /// Each path and each directory above one, and whether it is a directory.
    paths: BTreeMap<String, bool>,
}

impl Git {
    fn new() -> Git {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = BTreeMap::new();
        for path in PATHS {
            let at = dir.path().join(path);
            match path.strip_suffix('/') {
                Some(path) => {
                    fs::create_dir_all(&at).unwrap();
                    paths.insert(path.to_owned(), true);
                }
                // Some names are those of a directory already.
                None if at.is_dir() => {}
                None => {
                    fs::create_dir_all(at.parent().unwrap()).unwrap();
                    fs::write(&at, "").unwrap();
                    paths.insert((*path).to_owned(), false);
                }
            }
            for (end, _) in path.trim_end_matches('/').match_indices('/') {
                paths.insert(path[..end].to_owned(), true);
            }
        }
        let git = Git { dir, paths };
        let init = git.command(&["init", "-q"]).output().expect(
            "git cannot be run, by which patterns are judged: run scripts/test.sh, it installs what it needs",
        );
        assert!(init.status.success(), "{init:?}");
        git
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        git.args(args).current_dir(self.dir.path());
        git.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        git.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", "/nonexistent");
        git
    }

    /// The paths that git ignores by `lines`.
    fn ignored(&self, lines: &[&str]) -> Vec<&str> {
        let excludes = self.dir.path().join(".git/info/exclude");
        fs::write(excludes, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
        let mut check = self.command(&["check-ignore", "--no-index", "-v", "-n", "-z", "--stdin"]);
        let mut check = check.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let asked = self.paths.keys().map(|path| format!("./{path}\0")).collect::<String>();
        check.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
        let output = String::from_utf8(check.wait_with_output().unwrap().stdout).unwrap();
        // Source, line, pattern and path of each; a path that begins with `:` would mean something else.
        let fields: Vec<&str> = output.split_terminator('\0').collect();
        assert_eq!(fields.len(), 4 * self.paths.len(), "{output:?}");
        let by: BTreeMap<&str, &str> =
            fields.chunks(4).map(|four| (four[3].trim_start_matches("./"), four[2])).collect();
        let out =
            |path: &&String| !by[path.as_str()].is_empty() && !by[path.as_str()].starts_with('!');
        self.paths.keys().filter(out).map(String::as_str).collect()
    }

    /// The same by our own reading; `None` where a line is refused.
    fn match_with_patterns(&self, lines: &[&str]) -> Option<Vec<&str>> {
        let rules = lines.iter().map(|line| (*line).to_owned()).collect();
        let filter = Filter::new(&FilterSpec { rules, ..FilterSpec::default() }).ok()?;
        let out = |(path, is_dir): &(&String, &bool)| {
            filter.excludes_with_parents(&RelPath::new(path.as_bytes()).unwrap(), **is_dir)
        };
        Some(self.paths.iter().filter(out).map(|(path, _)| path.as_str()).collect())
    }
}

#[test]
fn patterns_match_what_git_says() {
    let git = Git::new();
    let rules: &[&[&str]] = &[
        // Classes.
        &["[[:alpha:]]*"],
        &["[[:digit:]]"],
        &["[[:upper:][:digit:]]*"],
        &["[![:alnum:]]*"],
        &["[[:punct:]]"],
        &["x[[:space:]]"],
        &["x[[:blank:]]y"],
        &["[[:graph:]]"],
        &["[[:xdigit:]]?"],
        &["[[:cntrl:]]*"],
        &["[[:print:]]"],
        &["[[:lower:]]b"],
        &["[[:alpha:]-]*"],
        &["[a[:digit:]b]"],
        &["[[:alpha]*"],
        &["[:a]*"],
        &["[[:]*"],
        &["[\\]a]*"],
        &["[\\]]"],
        &["[]a]*"],
        &["[]]"],
        &["[!]a]*"],
        &["[^]a]*"],
        &["[\\[]"],
        &["[[]"],
        &["[a-]"],
        &["z[-a]"],
        &["[-]"],
        &["[!-]"],
        &["[--0]"],
        &["[\\-]"],
        &["[a\\-z]"],
        &["[\\a-\\c]*"],
        &["[+--]"],
        &["[!!]"],
        &["[\\!]"],
        &["[\\!^]"],
        &["[!^]"],
        &["[\\^]"],
        &["[\\!\\^-]"],
        &["[^!]"],
        &["[\\\\]"],
        &["[\\]-a]*"],
        &["[é]*"],
        &["[é]"],
        &["[!é]*"],
        &["?"],
        &["??"],
        &["é*"],
        &["e*"],
        &["[e]?*"],
        &["[*]"],
        &["[?]"],
        &["a[:]"],
        // What no class matches.
        &["foo[/]bar"],
        &["foo[/.]bar"],
        &["foo[!a]bar"],
        &["foo[^/]bar"],
        &["foo[.-0]bar"],
        &["foo?bar"],
        &["foo*bar"],
        &["dir[/]*"],
        &["[/]a"],
        &["a[/b]"],
        &["f[/x]q"],
        // Stars.
        &["f**/q"],
        &["f*/q"],
        &["f**"],
        &["foo/b**"],
        &["fo**/b"],
        &["f**/**/q"],
        &["f**/**"],
        &["f**/x/**"],
        &["f***/q"],
        &["f**\\/q"],
        &["f?**/q"],
        &["f/x**"],
        &["/f**/q"],
        &["[f]**/q"],
        &["d**/a"],
        &["dir/s**/*"],
        &["f/**/q"],
        &["**/q"],
        &["**q"],
        &["q**"],
        &["f/**"],
        &["f/*"],
        &["**"],
        &["*"],
        &["/**"],
        &["/*"],
        &["**/"],
        &["**/f/q"],
        &["/**/q"],
        &["f/**q"],
        &["f/**x/q"],
        &["f/x**/q"],
        &["f/***/q"],
        &["***/q"],
        &["f/**/**/q"],
        &["**/**/q"],
        &["f/**/*"],
        &["f/*/q"],
        &["*/*/q"],
        &["**/sub/*"],
        &["dir/**/"],
        &["/f/**/y/**"],
        &["**.o"],
        &["dir/**.o"],
        &["a**b"],
        &["**a**"],
        &["f\\/q"],
        &["f/**\\/q"],
        // Anchors, kinds, several.
        &["/a"],
        &["a"],
        &["dir/a"],
        &["/dir/a"],
        &["sub/a"],
        &["build/"],
        &["/build/"],
        &["a/"],
        &["dir/sub/"],
        &["//a"],
        &["a//"],
        &["**//"],
        &["**//q"],
        &["dir//a"],
        &["f/**//q"],
        &["f\\//q"],
        &["f**//q"],
        &["/"],
        &["!/"],
        &["*", "!dir/"],
        &["dir", "!dir/a"],
        &["*.o", "!a.o"],
        &["!a.o", "*.o"],
        &["/*", "!/f"],
        &["f/*", "!f/x"],
        &["**/sub", "!sub/a"],
        // Marks and blanks.
        &["#x"],
        &["\\#x"],
        &["!x"],
        &["\\!x"],
        &["# comment", "", "   "],
        &["x "],
        &["x\\ "],
        &["x\\  "],
        &["x   "],
        &["x\t"],
        &["x y "],
        &["\\*"],
        &["\\?"],
        &["\\a"],
        &["\\\\"],
        &[" a"],
        &["]"],
        &["a]"],
        &["a\u{feff}"],
        &["tab\there"],
        &["-"],
        &[".*"],
        &["~"],
        &["*~"],
        &["_"],
    ];
    let mut wrong = Vec::new();
    for lines in rules {
        let (ours, wanted) = (git.match_with_patterns(lines), git.ignored(lines));
        if ours.as_ref() != Some(&wanted) {
            wrong.push(format!("{lines:?}: {ours:?}, and git {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn patterns_that_match_nothing_in_git_are_rejected_with_a_reason() {
    let git = Git::new();
    for (line, why) in [
        ("[abc", "lacks its `]`"),
        ("[", "lacks its `]`"),
        ("[]", "lacks its `]`"),
        ("[!]", "lacks its `]`"),
        ("a[[:alpha:]", "lacks its `]`"),
        ("[[:letter:]]", "no class [:letter:]"),
        ("x\\", "a backslash ends it"),
        ("[z-a]", "write a-z"),
    ] {
        assert_eq!(git.ignored(&[line]), Vec::<&str>::new(), "{line}");
        let spec = FilterSpec { rules: vec![line.to_owned()], ..FilterSpec::default() };
        let error = Filter::new(&spec).unwrap_err().to_string();
        assert!(error.contains("filter rule 1") && error.contains(why), "{error}");
    }
}

#[test]
fn an_absolute_path_below_source_or_destination_is_reported_with_the_relative_pattern() {
    let abs = |path: &str| AbsPath::new(path).unwrap();
    let (source, destination, top) = (abs("/data/src"), abs("/backup"), abs("/"));
    // A pattern, and what is to be written instead.
    for (line, instead) in [
        ("/data/src/tmp", Some("/tmp")),
        ("/data/src/tmp/ ", Some("/tmp/")),
        ("!/data/src/a/*.o", Some("!/a/*.o")),
        ("/data/src", Some("/*")),
        ("/data/src/", Some("/*")),
        ("/backup/old", Some("/old")),
        ("/data/srcs/tmp", None),
        ("/data", None),
        ("data/src/tmp", None),
        ("/tmp", None),
        ("*.o", None),
        ("# /data/src/tmp", None),
    ] {
        let lines = ["x".to_owned(), line.to_owned()];
        let found = find_absolute_patterns(&lines, &[&source, &destination, &top]);
        let output: Vec<_> = found.iter().map(|(index, _)| *index).collect();
        assert_eq!(output, if instead.is_some() { vec![1] } else { vec![] }, "{line}: {found:?}");
        if let Some(instead) = instead {
            assert!(found[0].1.contains(&format!("write `{instead}`,")), "{found:?}");
        }
    }
}

#[test]
fn alternatives_in_braces_are_supported_beyond_git() {
    let rules = ["*.{o,a}", "{x,y/z}"].map(str::to_owned).to_vec();
    let patterns = Patterns::new(&rules).unwrap();
    for (path, out) in [("d/f.o", true), ("f.a", true), ("f.c", false), ("y/z", true), ("z", false)]
    {
        assert_eq!(patterns.excludes(path.as_bytes(), false), out, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn random_patterns_match_what_git_says(
        lines in prop::collection::vec("[!/]?([abfqx*?]|\\*\\*|/|dir|sub|\\[[!^]?[a-q\\]\\\\/!^:-]{1,4}\\]|\\\\[*a ]|[.o]){1,5}[/ ]?", 1..4),
    ) {
        thread_local!(static GIT: Git = Git::new());
        GIT.with(|git| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            if let Some(ours) = git.match_with_patterns(&lines) {
                prop_assert_eq!(ours, git.ignored(&lines), "{:?}", lines);
            }
            Ok(())
        })?;
    }
}
