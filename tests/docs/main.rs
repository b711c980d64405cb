//! Documents and sample configurations agree with the program.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod defaults;
mod documents;
mod modules;

use std::path::{Path, PathBuf};

/// A path below the root of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

/// The files with this extension directly in a directory of the project, sorted.
fn files_in(dir: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(project(dir)).expect("a readable directory");
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}
