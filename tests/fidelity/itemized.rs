//! `-i` and `-n -i`: each path that is created, updated, repaired or deleted, of every kind.

use crate::assert_root;
use crate::support::cluster::{Cluster, StoreKind};
use crate::support::ctl::ctl;
use crate::support::tools::run_or_panic;
use crate::support::tree::{chmod, make_dir, make_symlink, random_bytes, write_file};
use std::collections::BTreeSet;
use std::path::Path;

/// The lines of `ctl copy -i`, sorted.
fn itemized_lines(src: &Path, dst: &Path, args: &[&str]) -> BTreeSet<String> {
    let ran = ctl(["copy", "-i"]).arg(src).arg(dst).args(args).run().assert_exit_code(0);
    // The summary of a dry run has the same words.
    let words = ["create  ", "update  ", "metadata", "delete  "];
    let all: Vec<String> = ran
        .stdout_text()
        .lines()
        .filter(|line| {
            words.iter().any(|word| line.starts_with(word)) && line.split_whitespace().count() == 2
        })
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let set: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(set.len(), all.len(), "each path once: {all:?}");
    set
}

fn line_set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn every_path_of_every_type_is_itemized_in_a_real_and_in_a_dry_run() {
    assert_root("device nodes");
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (make_dir(home.path().join("src")), home.path().join("dst"));
    make_dir(src.join("empty"));
    write_file(src.join("d/e/f"), "f");
    // Larger than a range, so it goes apart from the entry of its directory.
    write_file(src.join("large/file"), random_bytes(3 << 20, 1));
    make_symlink(src.join("link"), "d/e/f");
    run_or_panic("mkfifo", [src.join("fifo")]);
    run_or_panic("mknod", [src.join("node").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    let created = line_set(&[
        "create .",
        "create d",
        "create d/e",
        "create d/e/f",
        "create empty",
        "create fifo",
        "create large",
        "create large/file",
        "create link",
        "create node",
    ]);
    let small = ["--chunk-size-mb", "1"];
    assert_eq!(itemized_lines(&src, &dst, &[&small[..], &["-n"]].concat()), created);
    assert_eq!(itemized_lines(&src, &dst, &small), created);
    assert_eq!(itemized_lines(&src, &dst, &small), line_set(&[]));

    chmod(src.join("d"), 0o700);
    chmod(src.join("empty"), 0o711);
    run_or_panic("chown", ["-h".as_ref(), "7:7".as_ref(), src.join("link").as_os_str()]);
    run_or_panic("chown", ["7:7".as_ref(), src.join("node").as_os_str()]);
    write_file(src.join("d/e/f"), "another length");
    write_file(dst.join("old/inside"), "x");
    make_symlink(dst.join("old/link"), "nowhere");
    run_or_panic(
        "mknod",
        [dst.join("old/node").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()],
    );
    run_or_panic("touch", ["-r".as_ref(), src.as_os_str(), dst.as_os_str()]);
    let changed = line_set(&[
        "metadata d",
        "metadata empty",
        "metadata link",
        "metadata node",
        "update d/e/f",
        "delete old",
        "delete old/inside",
        "delete old/link",
        "delete old/node",
    ]);
    let mirror = ["--delete", "--chunk-size-mb", "1"];
    assert_eq!(itemized_lines(&src, &dst, &[&mirror[..], &["-n"]].concat()), changed);
    assert_eq!(itemized_lines(&src, &dst, &mirror), changed);
    assert_eq!(itemized_lines(&src, &dst, &mirror), line_set(&[]));
}

/// The kinds that an entry can have; `full` is a directory that is not empty.
const KINDS: [&str; 6] = ["file", "nothing in it", "link", "fifo", "empty", "full"];

fn make_entry(kind: &str, path: &Path) {
    match kind {
        "file" => drop(write_file(path, "content")),
        "nothing in it" => drop(write_file(path, "")),
        "link" => drop(make_symlink(path, "nowhere")),
        "fifo" => run_or_panic("mkfifo", [path]),
        "empty" => drop(make_dir(path)),
        _ => {
            write_file(path.join("inside"), "x");
            write_file(path.join("deeper/inside"), "y");
        }
    }
}

#[test]
fn a_dry_run_of_a_mirror_lists_what_the_mirror_does_for_every_pair_of_types() {
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (make_dir(home.path().join("src")), make_dir(home.path().join("dst")));
    for from in KINDS {
        for to in KINDS.into_iter().filter(|to| *to != from) {
            let name = format!("{from}-becomes-{to}").replace(' ', "_");
            make_entry(from, &dst.join(&name));
            make_entry(to, &src.join(&name));
        }
        let name = format!("{from}-goes").replace(' ', "_");
        make_entry(from, &dst.join(name));
    }
    let mirror = ["--delete", "--max-delete-percent", "100"];
    let tried = itemized_lines(&src, &dst, &[&mirror[..], &["-n"]].concat());
    let did = itemized_lines(&src, &dst, &mirror);
    let differing: Vec<_> = tried.symmetric_difference(&did).collect();
    assert!(differing.is_empty(), "{differing:?}\ntried {tried:#?}\ndid {did:#?}");
    for line in [
        "create full-becomes-file",
        "delete full-becomes-file",
        "delete full-becomes-file/deeper/inside",
        "update empty-becomes-link",
        "update file-becomes-full",
        "create file-becomes-full/inside",
    ] {
        assert!(did.contains(line), "{line}: {did:#?}");
    }
    assert_eq!(itemized_lines(&src, &dst, &mirror), line_set(&[]));
}

#[test]
fn the_records_of_a_sync_include_implicitly_created_directories() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    for n in 0..6 {
        write_file(src.join(format!("d{n}/e/large")), random_bytes((2 << 20) + 1, n));
        // Attributes are in a directory's own entry only: another agent than the one that made it may set them.
        for path in [format!("d{n}"), format!("d{n}/e")] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(src.join(path), "user.of_dir", b"1", flags).unwrap();
        }
    }
    let ran =
        cluster.ctl(["sync", "submit", "--id", "x", "--record", "--wait", "--chunk-size-mb", "1"]);
    ran.arg(&src).arg(&dst).run().assert_exit_code(0);
    let ran = cluster.ctl(["sync", "files", "x", "-0"]).run().assert_exit_code(0);
    let named: Vec<String> =
        ran.stdout_text().split('\0').filter(|n| !n.is_empty()).map(str::to_owned).collect();
    for n in 0..6 {
        for path in [format!("d{n}"), format!("d{n}/e"), format!("d{n}/e/large")] {
            let times = named.iter().filter(|name| **name == path).count();
            assert_eq!(times, 1, "{path} in {named:?}");
        }
    }
}
