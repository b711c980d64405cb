//! Manifests, and destinations that are read again.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::tools::assert_trees_identical;
use crate::support::tree::{make_symlink, os_name, random_bytes, write_file, write_many_files};
use crate::{MIB, assert_full_outcome, flip_bit};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The lines that b3sum prints of all files below, by path.
fn b3sum_of(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| {
            let path = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            (path, blake3::hash(&fs::read(entry.path()).unwrap()).to_hex().to_string())
        })
        .collect()
}

/// Reads a manifest as `b3sum --check` does: `BLOCK_DIGESTS  PATH`, a backslash in front where the path is
/// escaped.
fn parse(manifest: &[u8]) -> BTreeMap<Vec<u8>, String> {
    assert!(manifest.is_empty() || manifest.ends_with(b"\n"), "whole lines");
    let lines = manifest.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (line, escaped) = match line.strip_prefix(b"\\") {
                Some(rest) => (rest, true),
                None => (line, false),
            };
            let (digest, path) = line.split_at(64);
            let path = path.strip_prefix(b"  ").expect("two spaces");
            let path = if escaped { unescape(path) } else { path.to_vec() };
            (path, String::from_utf8(digest.to_vec()).unwrap())
        })
        .collect()
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, byte == &b'\\') {
            (_, false) => *byte,
            _ => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'\\') => b'\\',
                // Ours, for names that are not UTF-8: b3sum can't name such files.
                Some(b'x') => {
                    let digits = [*bytes.next().unwrap(), *bytes.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => panic!("b3sum has no escape {other:?}"),
            },
        });
    }
    out
}

fn write_tree(src: &Path) {
    write_many_files(src, 120, 1_000);
    write_file(src.join("large"), random_bytes(9 * MIB + 4_321, 1));
    write_file(src.join("of whole ranges"), random_bytes(4 * MIB, 2));
    write_file(src.join("empty"), "");
    write_file(src.join("new\nline \\ and back"), "x");
    write_file(src.join("  spaces "), "y");
    fs::hard_link(src.join("large"), src.join("zz large too")).unwrap();
    fs::hard_link(src.join("000/00001"), src.join("zz small too")).unwrap();
    make_symlink(src.join("link"), "large");
    let sparse = fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(12 * MIB as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 5 * MIB as u64).unwrap();
}

fn sync_with_manifest() -> (Cluster, PathBuf, PathBuf, String) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_tree(&src);
    let manifest = cluster.home().join("manifest");
    let ran = cluster
        .ctl(["sync", "submit", "--wait", "--id", "listed", "--chunk-size-mb", "1", "--manifest"])
        .arg(&manifest)
        .arg(&src)
        .arg(&dst)
        .run()
        .assert_exit_code(0);
    assert!(
        ran.stderr_text().is_empty() || !ran.stderr_text().contains("rror"),
        "{}",
        ran.stderr_text()
    );
    (cluster, src, dst, "listed".to_owned())
}

#[test]
fn a_manifest_holds_the_digest_of_every_file_as_b3sum_has_it() {
    let (cluster, src, dst, id) = sync_with_manifest();
    let written = fs::read(cluster.home().join("manifest")).unwrap();
    assert_eq!(parse(&written), b3sum_of(&dst));
    assert_eq!(parse(&cluster.master.get(&format!("/sync/{id}/manifest")).body), b3sum_of(&src));
    let printed = cluster.ctl(["sync", "manifest", &id]).run().assert_exit_code(0).stdout;
    assert_eq!(parse(&printed), parse(&written));
    // What is there already is listed too.
    let again = cluster.run_sync_with(&src, &dst, json!({"manifest": true}));
    assert_full_outcome(&again);
    assert_eq!((again.files_done, again.sent_bytes), (0, 0), "{again:#?}");
    let answer = cluster.master.get(&format!("/sync/{}/manifest", again.request_id));
    assert_eq!(parse(&answer.body), b3sum_of(&src));
    // Also of a master that was started again.
    let mut cluster = cluster;
    cluster.master.restart();
    assert_eq!(parse(&cluster.master.get(&format!("/sync/{id}/manifest")).body), b3sum_of(&src));
}

#[test]
fn names_that_b3sum_rejects_are_listed_separately_and_still_checked() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let refused = [os_name(b"not utf-8 \xff"), os_name("d\u{fffd}".as_bytes())];
    for (number, name) in refused.iter().enumerate() {
        write_file(src.join(name), number.to_string());
    }
    for readable in ["plain", "-", "new\nline", "carriage\rreturn", "back\\slash", "e\u{301}"] {
        write_file(src.join(readable), readable);
    }
    let manifest = cluster.home().join("manifest");
    let others = cluster.home().join("manifest.others");
    let submit =
        cluster.ctl(["sync", "submit", "--wait", "--id", "odd", "--manifest"]).arg(&manifest);
    let ran = submit.arg(&src).arg(&dst).run().assert_exit_code(0);
    assert!(
        ran.stderr_text().contains("6 files in")
            && ran.stderr_text().contains("2 files with names"),
        "{}",
        ran.stderr_text()
    );
    let (listed, apart) = (fs::read(&manifest).unwrap(), fs::read(&others).unwrap());
    // What b3sum reads: text with its escapes only, no comment, and nothing that it takes for standard input.
    let text = std::str::from_utf8(&listed).unwrap();
    assert!(text.lines().all(|line| !line.contains("\\x") && !line.starts_with('#')), "{text}");
    assert!(!text.contains('\u{fffd}') && text.contains("  ./-\n"), "{text}");
    let mut read = parse(&listed);
    let dash = read.remove(&b"./-"[..]).unwrap();
    assert_eq!(dash, blake3::hash(b"-").to_hex().to_string());
    read.insert(b"-".to_vec(), dash);
    let digests: Vec<u8> = apart
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line[0] != b'#')
        .flatten()
        .copied()
        .collect();
    let mut all = parse(&digests);
    assert_eq!(all.len(), 2);
    all.extend(read);
    assert_eq!(all, b3sum_of(&src));
    let printed = cluster.ctl(["sync", "manifest", "odd"]).run().assert_exit_code(0);
    assert_eq!(printed.stdout, listed);
    assert!(
        printed.stderr_text().contains("ctl sync manifest odd --others"),
        "{}",
        printed.stderr_text()
    );
    assert_eq!(
        cluster.ctl(["sync", "manifest", "odd", "--others"]).run().assert_exit_code(0).stdout,
        apart
    );
    let by_id = || cluster.ctl(["sync", "verify", "odd"]).run();
    let by_file = || cluster.ctl(["sync", "verify", "--manifest"]).arg(&manifest).arg(&dst).run();
    for name in &refused {
        for ran in [by_id(), by_file()] {
            ran.assert_exit_code(0);
        }
        flip_bit(&dst.join(name), 0);
        for ran in [by_id(), by_file()] {
            let ran = ran.assert_exit_code(23);
            assert!(
                ran.stdout_text().contains("changed") && !ran.stdout_text().contains("plain"),
                "{}",
                ran.stdout_text()
            );
        }
        flip_bit(&dst.join(name), 0);
    }
    // A later manifest without such names leaves no list of them.
    for name in &refused {
        fs::remove_file(src.join(name)).unwrap();
        fs::remove_file(dst.join(name)).unwrap();
    }
    let submit = cluster.ctl(["sync", "submit", "--wait", "--manifest"]).arg(&manifest);
    submit.arg(&src).arg(&dst).run().assert_exit_code(0);
    assert!(!others.exists() && parse(&fs::read(&manifest).unwrap()).len() == 6);
}

#[test]
fn a_destination_is_verified_later_without_the_source() {
    let (cluster, src, dst, id) = sync_with_manifest();
    fs::rename(&src, cluster.data_path("away")).unwrap();
    let manifest = cluster.home().join("manifest");
    let by_id = || cluster.ctl(["sync", "verify", &id]).run();
    let by_file = || cluster.ctl(["sync", "verify", "--manifest"]).arg(&manifest).arg(&dst).run();
    for ran in [by_id(), by_file()] {
        ran.assert_exit_code(0);
    }
    flip_bit(&dst.join("large"), 5 * MIB as u64);
    let names = ["000/00003", "of whole ranges", "sparse", "empty", "zz small too"];
    for ran in [by_id(), by_file()] {
        assert_ne!(ran.code, Some(0));
        let said = format!("{}{}", ran.stdout_text(), ran.stderr_text());
        assert!(said.contains("large"), "{said}");
        assert!(said.contains("zz large too"), "it is the same file: {said}");
        for name in names {
            assert!(!said.contains(name), "{name} is right: {said}");
        }
    }
    flip_bit(&dst.join("large"), 5 * MIB as u64);
    fs::remove_file(dst.join("000/00003")).unwrap();
    write_file(dst.join("planted"), "x");
    for ran in [by_id(), by_file()] {
        assert_ne!(ran.code, Some(0));
        let said = format!("{}{}", ran.stdout_text(), ran.stderr_text());
        assert!(said.contains("000/00003") && said.contains("missing"), "{said}");
        assert!(said.contains("planted") && said.contains("extra"), "{said}");
        assert!(!said.contains("large"), "{said}");
    }
}

#[test]
fn readback_repairs_a_corrupt_range() {
    let (cluster, src, dst, _) = sync_with_manifest();
    let right = cluster.run_sync_with(&src, &dst, json!({"verify": "readback"}));
    assert_full_outcome(&right);
    let files = b3sum_of(&src).len() as u64;
    // A link counts as a file here as everywhere.
    assert_eq!((right.verified_files, right.repaired_files), (files + 1, 0), "{right:#?}");
    assert_eq!(right.sent_bytes, 0, "{right:#?}");
    let counted = (right.files_total, right.files_skipped);
    assert_eq!(counted, (files + 1, files + 1), "each is counted once: {right:#?}");

    flip_bit(&dst.join("of whole ranges"), 3 * MIB as u64 + 5);
    flip_bit(&dst.join("000/00003"), 3);
    let sync = cluster.run_sync_with(&src, &dst, json!({"verify": "readback"}));
    assert_full_outcome(&sync);
    assert_eq!((sync.verified_files, sync.repaired_files), (files - 1, 2), "{sync:#?}");
    assert!(sync.sent_bytes <= MIB as u64 + 1_000, "one range and one small file: {sync:#?}");
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_first_copy_is_also_read_back() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_tree(&src);
    let sync = cluster.run_sync_with(&src, &dst, json!({"verify": "readback", "manifest": true}));
    assert_full_outcome(&sync);
    let files = b3sum_of(&src);
    assert_eq!((sync.verified_files, sync.repaired_files), (sync.files_total, 0), "{sync:#?}");
    let body = cluster.master.get(&format!("/sync/{}/manifest", sync.request_id)).body;
    assert_eq!(parse(&body), files, "each file is listed once");
    assert_trees_identical(&src, &dst);
}

#[test]
fn content_is_copied_without_hashing_on_request() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_tree(&src);
    let sync = cluster.run_sync_with(&src, &dst, json!({"verify": "none"}));
    assert_full_outcome(&sync);
    assert_trees_identical(&src, &dst);
}
