//! On real trees. What is expected is computed with `blake3` itself, not with the code under test.

use super::*;
use crate::fs::Side;
use std::fs;
use std::os::unix::fs::symlink;

struct TestTree {
    dir: tempfile::TempDir,
}

impl TestTree {
    /// A tree with odd names, an empty file and one that is hashed in ranges.
    fn new() -> TestTree {
        let stage = TestTree { dir: tempfile::tempdir().unwrap() };
        for (name, content) in [
            (&b"plain"[..], &b"x"[..]),
            (b"empty", b""),
            (b"new\nline", b"1"),
            (b"back\\slash\r", b"2"),
            (b"\xff\xfe not utf-8", b"3"),
            (b"-rf", b"4"),
            (b"deep/er/file", b"5"),
        ] {
            stage.write(name, content);
        }
        let large = fs::File::create(stage.path(b"large")).unwrap();
        large.set_len(2 * RANGE_BYTES + 12_345).unwrap();
        symlink("nowhere", stage.path(b"link")).unwrap();
        stage
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().to_owned()
    }

    fn path(&self, name: &[u8]) -> std::path::PathBuf {
        self.dir.path().join(OsStr::from_bytes(name))
    }

    fn write(&self, name: &[u8], content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The output of `b3sum` for all regular files.
    fn b3sum_list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for found in walkdir::WalkDir::new(self.dir.path()) {
            let found = found.unwrap();
            if found.file_type().is_file() {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&fs::read(found.path()).unwrap());
                let name = found.path().strip_prefix(self.dir.path()).unwrap();
                list.extend(list_line(name.as_os_str().as_bytes(), &hasher.finalize()));
            }
        }
        list
    }
}

fn list_line(name: &[u8], hash: &blake3::Hash) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in name {
        match byte {
            b'\\' => escaped.extend(b"\\\\"),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            byte => escaped.push(*byte),
        }
    }
    let mark = if escaped == name { "" } else { "\\" };
    [mark.as_bytes(), hash.to_hex().as_bytes(), b"  ", &escaped, b"\n"].concat()
}

fn digests(list: &[u8]) -> DigestList {
    let mut reader = DigestListReader::default();
    reader.push(list).unwrap();
    reader.finish("the list").unwrap()
}

/// Verifies and returns the printed lines.
fn verify_lines(
    place: &VerifyTarget,
    list: &[u8],
    json: bool,
    ignore_extra: bool,
) -> (Vec<String>, VerifyReport) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let collect = move |line: &[u8]| {
        sink.lock().push(String::from_utf8(line.to_vec()).unwrap());
        Ok(())
    };
    let report = VerifyReport {
        json,
        quiet: true,
        ignore_extra,
        counts: [0; 4],
        files: 0,
        bytes: 0,
        write_error: None,
        write_line: Box::new(collect),
    };
    let report =
        verify_tree(place, &digests(list), report).unwrap_or_else(|e| panic!("{}", e.render()));
    let mut lines = lines.lock().clone();
    lines.sort();
    (lines, report)
}

fn differences(stage: &TestTree, list: &[u8]) -> Vec<String> {
    verify_lines(&VerifyTarget::open(&stage.root()).unwrap(), list, false, false).0
}

#[test]
fn a_tree_that_matches_the_list_is_read_completely_and_nothing_is_reported() {
    let stage = TestTree::new();
    // Our own unfinished files, links and directories are not in a list and not extra.
    let part = format!(".ctl-{:016x}-{:016x}-{:016x}.part", 1, 2, 3);
    stage.write(part.as_bytes(), b"half");
    let part_line = format!("  {part}");
    let list = stage.b3sum_list();
    let list: Vec<u8> = list
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| !line.windows(part_line.len()).any(|w| w == part_line.as_bytes()))
        .flatten()
        .copied()
        .collect();
    let (lines, report) =
        verify_lines(&VerifyTarget::open(&stage.root()).unwrap(), &list, false, false);
    assert_eq!(lines, Vec::<String>::new());
    assert_eq!((report.files, report.bytes), (8, 2 * RANGE_BYTES + 12_345 + 6));
    assert_eq!(report.finish(Duration::ZERO), Exit::Ok);
}

#[test]
fn every_file_that_differs_is_named_and_no_other() {
    let stage = TestTree::new();
    let list = stage.b3sum_list();
    stage.write(b"new\nline", b"!");
    stage.write(b"extra\x1b", b"");
    fs::remove_file(stage.path(b"\xff\xfe not utf-8")).unwrap();
    fs::remove_dir_all(stage.path(b"deep")).unwrap();
    fs::remove_file(stage.path(b"-rf")).unwrap();
    fs::create_dir(stage.path(b"-rf")).unwrap();
    fs::remove_file(stage.path(b"plain")).unwrap();
    symlink("empty", stage.path(b"plain")).unwrap();
    assert_eq!(
        differences(&stage, &list),
        [
            "changed     -rf  (it is not a regular file)",
            "changed     new\\#012line",
            "changed     plain  (it is not a regular file)",
            "extra       extra\\#033",
            "missing     \\#377\\#376 not utf-8",
            "missing     deep/er/file",
        ]
    );
    let (lines, report) =
        verify_lines(&VerifyTarget::open(&stage.root()).unwrap(), &list, true, true);
    assert_eq!(lines.len(), 5, "extra files are not reported: {lines:?}");
    for line in &lines {
        let document: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(document["state"] != "extra" && document["path"] != serde_json::Value::Null);
    }
    assert!(lines.iter().any(|line| line.contains("path_b64")), "{lines:?}");
    assert_eq!(report.finish(Duration::ZERO).code(), 23);
}

#[test]
fn one_flipped_bit_is_found_in_any_range_of_a_large_file() {
    let stage = TestTree::new();
    let list = stage.b3sum_list();
    for at in [0, RANGE_BYTES - 1, RANGE_BYTES, 2 * RANGE_BYTES + 12_344] {
        use std::os::unix::fs::FileExt;
        let large = fs::OpenOptions::new().write(true).open(stage.path(b"large")).unwrap();
        large.write_at(&[1], at).unwrap();
        assert_eq!(differences(&stage, &list), ["changed     large"], "{at}");
        large.write_at(&[0], at).unwrap();
    }
    assert_eq!(differences(&stage, &list), Vec::<String>::new());
    let large = fs::OpenOptions::new().write(true).open(stage.path(b"large")).unwrap();
    large.set_len(RANGE_BYTES).unwrap();
    assert_eq!(differences(&stage, &list), ["changed     large"]);
}

#[test]
fn a_single_file_is_checked_against_its_line_or_its_name() {
    let stage = TestTree::new();
    let place = VerifyTarget::open(&stage.path(b"new\nline")).unwrap();
    assert_eq!(
        verify_lines(&place, &list_line(b"another name", &blake3::hash(b"1")), false, false)
            .0
            .len(),
        0
    );
    let list = [list_line(b"new\nline", &blake3::hash(b"2")), list_line(b"z", &blake3::hash(b""))]
        .concat();
    assert_eq!(verify_lines(&place, &list, false, false).0, ["changed     .", "missing     z"]);
}

#[test]
fn files_in_the_trash_are_not_extra() {
    let stage = TestTree::new();
    let list = stage.b3sum_list();
    stage.write(b"old/trash/run/x", b"deleted");
    let trash = Some(RelPath::new("old/trash").unwrap());
    let place = VerifyTarget { trash, ..VerifyTarget::open(&stage.root()).unwrap() };
    assert_eq!(verify_lines(&place, &list, false, false).0, Vec::<String>::new());
    assert_eq!(differences(&stage, &list), ["extra       old/trash/run/x"]);
    // That of an earlier mirror has a mark; what the list has there is checked all the same.
    stage.write(b"old/trash/.ctl-trash", b"");
    assert_eq!(differences(&stage, &list), Vec::<String>::new());
    let also = [&list[..], &list_line(b"old/trash/run/x", &blake3::hash(b"another"))].concat();
    assert_eq!(differences(&stage, &also), ["changed     old/trash/run/x"]);
    stage.write(b"z after it", b"x");
    assert_eq!(differences(&stage, &list), ["extra       z after it"]);
}

#[test]
fn a_path_longer_than_path_max_is_verified_like_any_other() {
    let stage = TestTree { dir: tempfile::tempdir().unwrap() };
    let mut dir = rustix::fs::open(
        stage.dir.path(),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let name = "d".repeat(200);
    let mut path = String::new();
    for _ in 0..25 {
        rustix::fs::mkdirat(&dir, name.as_str(), rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        dir = rustix::fs::openat(&dir, name.as_str(), flags, rustix::fs::Mode::empty()).unwrap();
        path = format!("{path}{name}/");
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&dir, "f", flags, rustix::fs::Mode::RUSR).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    let list = list_line(format!("{path}f").as_bytes(), &blake3::hash(b"deep"));
    assert_eq!(differences(&stage, &list), Vec::<String>::new());
    let list = list_line(format!("{path}f").as_bytes(), &blake3::hash(b"shallow"));
    assert_eq!(differences(&stage, &list), [format!("changed     {path}f")]);
}

#[test]
fn read_errors_are_reported_by_their_cause() {
    let report = Mutex::new(VerifyReport {
        json: false,
        quiet: true,
        ignore_extra: false,
        counts: [0; 4],
        files: 0,
        bytes: 0,
        write_error: None,
        write_line: Box::new(|_| Ok(())),
    });
    for (cause, index) in [
        (Cause::Os(Errno::ACCESS), Difference::Unreadable),
        (Cause::Os(Errno::IO), Difference::Unreadable),
        (Cause::Os(Errno::NOENT), Difference::Missing),
        (Cause::Changed, Difference::Changed),
        (Cause::NotRegularFile, Difference::Changed),
    ] {
        let before = report.lock().counts;
        add_error(&mut report.lock(), b"x", &FsError::new(Side::Source, "open", b"x", cause));
        let after = report.lock().counts;
        let rise: BTreeMap<usize, u64> =
            (0..4).map(|i| (i, after[i] - before[i])).filter(|(_, n)| *n > 0).collect();
        assert_eq!(rise, BTreeMap::from([(index as usize, 1)]), "{cause:?}");
    }
    let e = FsError::new(Side::Source, "open", b"x", Errno::ACCESS);
    assert_eq!(cause_text(&e), "Permission denied [EACCES]");
}

#[test]
fn the_summary_is_one_line_with_all_counts() {
    let report = VerifyReport {
        json: false,
        quiet: false,
        ignore_extra: false,
        counts: [1, 2, 0, 1234],
        files: 81_204,
        bytes: 3 << 30,
        write_error: None,
        write_line: Box::new(|_| Ok(())),
    };
    assert_eq!(
        report.summary(Duration::from_millis(65_400), Exit::Partial),
        "read 81,204 files, 3.0 GiB in 1m05s: 1 changed, 2 missing, 0 extra, 1,234 unreadable   (exit 23)"
    );
    assert_eq!(
        report.summary(Duration::from_secs(1), Exit::Ok),
        "read 81,204 files, 3.0 GiB in 1s: all match the list"
    );
}

#[test]
fn a_destination_that_does_not_exist_here_is_not_found() {
    let stage = TestTree::new();
    let e = VerifyTarget::open(&stage.path(b"none")).err().unwrap();
    assert!(e.exit == Exit::NotFound && e.render().contains("on this machine"), "{}", e.render());
}

#[test]
fn a_list_without_its_others_file_notes_which_files_are_not_checked() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    let line = |name: &str| list_line(name.as_bytes(), &blake3::hash(b"x"));
    fs::write(&list, line("plain")).unwrap();
    let (digests, note) = read_digest_files(&list).unwrap();
    assert_eq!(digests.len(), 1);
    let note = note.unwrap();
    for part in ["list.others is not there", "names that b3sum refuses", "are not checked"] {
        assert!(note.contains(part), "{part} in {note}");
    }
    fs::write(dir.path().join("list.others"), line("other")).unwrap();
    let (digests, note) = read_digest_files(&list).unwrap();
    assert_eq!((digests.len(), note), (2, None));
}

#[test]
fn without_a_path_it_is_named_that_the_tree_of_this_machine_is_read() {
    let sync = SyncProgress {
        destination_workers: vec!["gpu-*".parse().unwrap()],
        ..crate::cli::fixtures::sync("x")
    };
    assert_eq!(
        selected_workers_note(&sync),
        "note: /dst is read as it is mounted on this machine; the sync wrote to gpu-*:/dst"
    );
}
