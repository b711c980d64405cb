//! The command line as scripts and people meet it: exit codes (those of paths in `roots.rs`), what stands on which
//! stream, pipes and signals, `ctl copy`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod copy;
mod exit_codes;
mod output;
mod tokens;

use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::cluster::{Cluster, StoreKind};
use support::ctl::{Ctl, ctl};
use support::ports::free_port;
use support::process::{CommandOutput, User};
use support::tree::{
    ComparisonRules, assert_same, census, chmod, exact_comparison, make_dir, make_symlink,
    part_files, random_bytes, write_file, write_many_files, write_unusual_tree, written_bytes,
};
use support::{MAX_WAIT, await_true};

/// A directory for one test, which other users can look into.
fn home() -> tempfile::TempDir {
    let home = tempfile::Builder::new().prefix("longhaul-cli-").tempdir().unwrap();
    chmod(home.path(), 0o755);
    home
}

fn submit_command(cluster: &Cluster, source: &Path, destination: &Path) -> Ctl {
    cluster.ctl(["sync", "submit"]).arg(source).arg(destination)
}

/// Messages are whole lines, without anything that moves a cursor or colours.
#[track_caller]
fn assert_no_control_characters(ran: &CommandOutput) {
    for bytes in [&ran.stdout, &ran.stderr] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!bytes.contains(&0x1b) && !bytes.contains(&b'\r'), "escapes in {text:?}");
    }
    assert!(ran.stderr.is_empty() || ran.stderr.ends_with(b"\n"), "{:?}", ran.stderr_text());
}
