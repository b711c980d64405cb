//! Independent checks: rsync, and the scripts of this repository.

use super::host::Host;
use super::process::{User, clean_command};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

fn run_command(mut command: Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|e| {
        panic!("{program} cannot be run ({e}); scripts/test.sh installs what the tests need")
    })
}

fn utf8_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Creates at `dir` the tree of everything that is easily lost, at a scale for tests: a sparse file of 64 MiB,
/// a hard-linked one of 5 MiB, 1,500 entries in one folder. `home` must be readable by `user`.
#[track_caller]
pub(crate) fn make_torture(dir: &Path, user: User, home: &Path) {
    let there = home.join("make-torture.sh");
    std::fs::copy(script("make-torture.sh"), &there).expect("copy the script");
    let mut command = clean_command(&there, home, user);
    command.arg(dir).arg("0").env("SPARSE_MIB", "64").env("ENTRIES", "1500");
    let ran = run_command(command);
    assert!(ran.status.success(), "make-torture.sh: {}", utf8_text(&ran.stderr));
}

/// What rsync would do to make the second tree like the first: nothing, where they are equal. It
/// takes no path of 4,096 bytes: what lies there is for [`compare_trees`].
#[track_caller]
pub(crate) fn rsync_differences(source: &Path, destination: &Path) -> String {
    differences_by(|| Command::new("rsync"), source, destination)
}

/// … of two trees as `host` has them.
#[track_caller]
pub(crate) fn rsync_differences_on(host: &Host, source: &Path, destination: &Path) -> String {
    differences_by(|| host.command(Path::new("rsync")), source, destination)
}

#[track_caller]
fn differences_by(rsync: impl Fn() -> Command, source: &Path, destination: &Path) -> String {
    let mut found = String::new();
    // Whole seconds, as it compares by itself, and to the nanosecond.
    for window in ["0", "-1"] {
        let mut command = rsync();
        command.args(["-aHAXSn", "--checksum", "--delete", "-i", "--exclude=level 08*"]);
        command.arg(format!("--modify-window={window}"));
        command.args([with_trailing_slash(source), with_trailing_slash(destination)]);
        let ran = run_command(command);
        assert!(ran.status.success(), "rsync: {}", utf8_text(&ran.stderr));
        found.push_str(&utf8_text(&ran.stdout));
    }
    found
}

/// The paths that `rsync -a --delete` would delete, in order, without a slash at their ends.
#[track_caller]
pub(crate) fn rsync_would_delete(source: &Path, destination: &Path) -> Vec<String> {
    let mut command = Command::new("rsync");
    command
        .args(["-an", "--delete", "-i"])
        .args([with_trailing_slash(source), with_trailing_slash(destination)]);
    let ran = run_command(command);
    assert!(ran.status.success(), "rsync: {}", utf8_text(&ran.stderr));
    let mut paths: Vec<String> = utf8_text(&ran.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("*deleting"))
        .map(|path| path.trim_start().trim_end_matches('/').to_owned())
        .collect();
    paths.sort();
    paths
}

/// A path that means the contents.
fn with_trailing_slash(path: &Path) -> PathBuf {
    path.join("")
}

/// A difference that compare-trees.py found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Of what kind, e.g. `mode`.
    pub(crate) what: String,
    /// What it was and became.
    pub(crate) how: String,
    /// Where, as Python writes bytes.
    pub(crate) path: String,
}

/// Every difference between two trees, also in attributes, holes and which names are one file.
#[track_caller]
pub(crate) fn compare_trees(source: &Path, destination: &Path) -> Vec<Difference> {
    let mut command = Command::new(script("compare-trees.py"));
    let ran = run_command({
        command.args([source, destination]);
        command
    });
    let failed = !ran.stderr.is_empty() || !matches!(ran.status.code(), Some(0 | 1));
    assert!(!failed, "compare-trees.py: {}", utf8_text(&ran.stderr));
    utf8_text(&ran.stdout)
        .lines()
        .map(|line| {
            let mut parts = line.splitn(3, '\t').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Difference { what: next(), how: next(), path: next() }
        })
        .collect()
}

/// Checks that two trees are equal in all visible attributes.
#[track_caller]
pub(crate) fn assert_trees_identical(source: &Path, destination: &Path) {
    let found = compare_trees(source, destination);
    let first: Vec<&Difference> = found.iter().take(30).collect();
    assert!(found.is_empty(), "{} differences: {first:#?}", found.len());
}

/// Runs a program of the system that has to succeed.
#[track_caller]
pub(crate) fn run_or_panic<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) {
    let mut command = Command::new(program);
    command.args(args);
    let ran = run_command(command);
    assert!(ran.status.success(), "{program}: {}", utf8_text(&ran.stderr));
}
