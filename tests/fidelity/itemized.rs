//! `-i` and `-n -i`: each path that is created, updated, repaired or deleted, of every kind.

use crate::as_root;
use crate::support::cluster::{Cluster, On};
use crate::support::ctl::ctl;
use crate::support::tools::must;
use crate::support::tree::{chmod, dir, file, link, noise};
use std::collections::BTreeSet;
use std::path::Path;

/// The lines of `ctl copy -i`, sorted.
fn items(src: &Path, dst: &Path, args: &[&str]) -> BTreeSet<String> {
    let ran = ctl(["copy", "-i"]).arg(src).arg(dst).more(args).run().exits(0);
    // The summary of a dry run has the same words.
    let words = ["create  ", "update  ", "metadata", "delete  "];
    let all: Vec<String> = ran
        .out()
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

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn every_path_of_every_kind_is_named_by_what_is_done_and_by_what_would_be() {
    as_root("device nodes");
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (dir(home.path().join("src")), home.path().join("dst"));
    dir(src.join("empty"));
    file(src.join("d/e/f"), "f");
    // Larger than a range, so it goes apart from the entry of its directory.
    file(src.join("large/file"), noise(3 << 20, 1));
    link(src.join("link"), "d/e/f");
    must("mkfifo", [src.join("fifo")]);
    must("mknod", [src.join("node").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    let created = set(&[
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
    assert_eq!(items(&src, &dst, &[&small[..], &["-n"]].concat()), created);
    assert_eq!(items(&src, &dst, &small), created);
    assert_eq!(items(&src, &dst, &small), set(&[]));

    chmod(src.join("d"), 0o700);
    chmod(src.join("empty"), 0o711);
    must("chown", ["-h".as_ref(), "7:7".as_ref(), src.join("link").as_os_str()]);
    must("chown", ["7:7".as_ref(), src.join("node").as_os_str()]);
    file(src.join("d/e/f"), "another length");
    file(dst.join("old/inside"), "x");
    link(dst.join("old/link"), "nowhere");
    must("mknod", [dst.join("old/node").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    must("touch", ["-r".as_ref(), src.as_os_str(), dst.as_os_str()]);
    let changed = set(&[
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
    assert_eq!(items(&src, &dst, &[&mirror[..], &["-n"]].concat()), changed);
    assert_eq!(items(&src, &dst, &mirror), changed);
    assert_eq!(items(&src, &dst, &mirror), set(&[]));
}

/// The kinds that an entry can have; `full` is a directory that is not empty.
const KINDS: [&str; 6] = ["file", "nothing in it", "link", "fifo", "empty", "full"];

fn make(kind: &str, path: &Path) {
    match kind {
        "file" => drop(file(path, "content")),
        "nothing in it" => drop(file(path, "")),
        "link" => drop(link(path, "nowhere")),
        "fifo" => must("mkfifo", [path]),
        "empty" => drop(dir(path)),
        _ => {
            file(path.join("inside"), "x");
            file(path.join("deeper/inside"), "y");
        }
    }
}

#[test]
fn a_dry_run_of_a_mirror_names_what_the_mirror_does_whatever_takes_the_place_of_whatever() {
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (dir(home.path().join("src")), dir(home.path().join("dst")));
    for from in KINDS {
        for to in KINDS.into_iter().filter(|to| *to != from) {
            let name = format!("{from}-becomes-{to}").replace(' ', "_");
            make(from, &dst.join(&name));
            make(to, &src.join(&name));
        }
        let name = format!("{from}-goes").replace(' ', "_");
        make(from, &dst.join(name));
    }
    let mirror = ["--delete", "--max-delete-percent", "100"];
    let tried = items(&src, &dst, &[&mirror[..], &["-n"]].concat());
    let did = items(&src, &dst, &mirror);
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
    assert_eq!(items(&src, &dst, &mirror), set(&[]));
}

#[test]
fn the_records_of_a_sync_name_directories_also_those_that_came_to_be_on_the_way() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    for n in 0..6 {
        file(src.join(format!("d{n}/e/large")), noise((2 << 20) + 1, n));
        // Attributes are in a directory's own entry only: another agent than the one that made it may set them.
        for path in [format!("d{n}"), format!("d{n}/e")] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(src.join(path), "user.of_dir", b"1", flags).unwrap();
        }
    }
    let ran =
        cluster.ctl(["sync", "submit", "--id", "x", "--record", "--wait", "--chunk-size-mb", "1"]);
    ran.arg(&src).arg(&dst).run().exits(0);
    let ran = cluster.ctl(["sync", "files", "x", "-0"]).run().exits(0);
    let named: Vec<String> =
        ran.out().split('\0').filter(|n| !n.is_empty()).map(str::to_owned).collect();
    for n in 0..6 {
        for path in [format!("d{n}"), format!("d{n}/e"), format!("d{n}/e/large")] {
            let times = named.iter().filter(|name| **name == path).count();
            assert_eq!(times, 1, "{path} in {named:?}");
        }
    }
}
