//! The log on files that are full, cut, moved or shared.

use super::*;
use crate::audit::{AuditRecord, Verification, verify};
use std::process::Command;

const LIMITS: AuditConfig = AuditConfig { max_file_size: 1 << 20, max_files: 3 };

fn log_in(dir: &Path) -> AuditLog {
    let origin = Origin { installation: "site-a".into(), host: "head".into() };
    AuditLog::new(dir, origin, LIMITS)
}

fn entry(sync: impl ToString) -> AuditEntry {
    AuditEntry { sync: Some(sync.to_string()), ..AuditEntry::of_log("sync.submit") }
}

fn current(dir: &Path) -> PathBuf {
    dir.join("audit.jsonl")
}

fn records(dir: &Path) -> Vec<AuditRecord> {
    let text = fs::read_to_string(current(dir)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn actions(dir: &Path) -> Vec<String> {
    records(dir).into_iter().map(|record| record.entry.action).collect()
}

#[track_caller]
fn assert_intact(dir: &Path) -> Verification {
    let found = verify(dir, None).unwrap();
    assert_eq!(found.first_break, None);
    found
}

#[test]
fn lines_continue_the_chain_over_a_restart_and_the_first_names_the_installation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("data");
    let mut log = log_in(dir);
    log.append(&[entry("a"), entry("b")]).unwrap();
    log.append(&[entry("c")]).unwrap();
    log.close();
    drop(log);
    let mut log = log_in(dir);
    log.append(&[entry("d")]).unwrap();
    let records = records(dir);
    let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    for start in [0, 4] {
        let AuditEntry { action, installation, host, version, .. } = &records[start].entry;
        assert_eq!(action, AuditAction::STARTED);
        assert_eq!((installation.as_deref(), host.as_deref()), (Some("site-a"), Some("head")));
        assert_eq!(version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
    let found = assert_intact(dir);
    assert_eq!((found.lines, found.head), (6, log.head()));
    let mode = fs::metadata(current(dir)).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o600);
}

#[test]
fn a_line_that_a_crash_cut_is_removed_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    log_in(dir).append(&[entry("a")]).unwrap();
    let whole = fs::read(current(dir)).unwrap();
    for cut in [&b"{\"seq\":3,\"tim"[..], b"\0\0\0", b"\x1b[31m{"] {
        fs::write(current(dir), [&whole, cut].concat()).unwrap();
        let before = verify(dir, None).unwrap();
        assert_eq!((before.first_break, before.lines), (None, 2));
        assert!(before.notes[0].contains("incomplete"), "{:?}", before.notes);
        log_in(dir).append(&[entry("b")]).unwrap();
        assert!(fs::read(current(dir)).unwrap().starts_with(&whole));
        let started = AuditAction::STARTED;
        assert_eq!(
            actions(dir),
            [started, "sync.submit", AuditAction::REPAIRED, started, "sync.submit"]
        );
        let detail = records(dir)[2].entry.detail.clone().unwrap();
        assert!(detail.contains(&format!("{} bytes", cut.len())), "{detail}");
        assert!(detail.contains(&cut.escape_ascii().to_string()), "{detail}");
        assert_eq!(assert_intact(dir).notes.len(), 1);
    }
}

#[test]
fn a_full_file_gets_a_number_and_the_oldest_ones_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut log = log_in(dir);
    log.set_limits(AuditConfig { max_file_size: 4_000, max_files: 2 });
    let mut heads = Vec::new();
    for n in 0..100 {
        log.append(&[entry(n)]).unwrap();
        heads.extend(log.head());
    }
    let names: Vec<_> = list_files(dir).unwrap();
    let numbers: Vec<_> = names.iter().map(|file| file.number).collect();
    let last = numbers[1].unwrap();
    assert_eq!(numbers, [Some(last - 1), Some(last), None]);
    for file in &names {
        let length = fs::metadata(&file.path).unwrap();
        assert!(length.len() <= 4_000, "{}", length.len());
        // Space that was allocated and not used is released.
        assert!(file.number.is_none() || length.blocks() * 512 <= 8_192, "{}", length.blocks());
    }
    let found = assert_intact(dir);
    assert_eq!(found.head, log.head());
    assert!(found.first_seq.unwrap() > 1 && found.lines < 100);
    assert_eq!(records(dir)[0].entry.action, AuditAction::CONTINUED);
    // A restart between a full file and the new one.
    drop(log);
    fs::remove_file(numbered_path(dir, last - 1)).unwrap();
    fs::rename(current(dir), numbered_path(dir, last + 1)).unwrap();
    log_in(dir).append(&[]).unwrap();
    assert_intact(dir);
    // Fewer files are kept after a change of the limit.
    let mut log = log_in(dir);
    log.set_limits(AuditConfig { max_file_size: 1, max_files: 1 });
    log.append(&[entry("x")]).unwrap();
    assert_eq!(list_files(dir).unwrap().len(), 2);
    let note = verify(dir, Some(heads[0])).unwrap();
    assert!(note.first_break.is_none() && note.notes[0].contains("older"), "{note:?}");
}

#[test]
fn a_file_that_was_moved_away_is_continued_in_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut log = log_in(dir);
    log.append(&[entry("a")]).unwrap();
    let moved = dir.join("audit.000001.jsonl");
    fs::rename(current(dir), &moved).unwrap();
    log.append(&[entry("b")]).unwrap();
    assert_eq!(actions(dir), [AuditAction::CONTINUED, "sync.submit"]);
    assert_eq!(assert_intact(dir).lines, 4);
    // Without the file that was moved away, the rest is intact and begins later.
    fs::rename(&moved, dir.join("archive")).unwrap();
    assert_eq!(assert_intact(dir).first_seq, Some(3));
    log.append(&[entry("c")]).unwrap();
    assert_eq!(assert_intact(dir).lines, 3);
}

#[test]
fn a_file_that_was_cut_or_changed_stays_broken_and_a_line_says_so() {
    for (kind, is_noticed) in
        [("cut", true), ("emptied", true), ("replaced", true), ("edited", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = log_in(dir);
        for n in 0..5 {
            log.append(&[entry(n)]).unwrap();
        }
        let text = fs::read_to_string(current(dir)).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        match kind {
            "cut" => fs::write(current(dir), lines[..3].concat()).unwrap(),
            "emptied" => fs::write(current(dir), "").unwrap(),
            "replaced" => {
                fs::write(dir.join("new"), lines[..3].concat()).unwrap();
                fs::rename(dir.join("new"), current(dir)).unwrap();
            }
            _ => {
                let edited = text.replacen("\"sync\":\"1\"", "\"sync\":\"9\"", 1);
                fs::write(dir.join("new"), edited).unwrap();
                fs::rename(dir.join("new"), current(dir)).unwrap();
            }
        }
        log.append(&[entry("later")]).unwrap();
        let found = verify(dir, None).unwrap();
        let expected = match kind {
            // Without a line before it, the line that says so is the first.
            "emptied" => Some(1),
            _ => Some(4),
        };
        assert_eq!(found.first_break.as_ref().map(|broken| broken.line), expected, "{kind}");
        let is_reported = actions(dir).iter().any(|action| action == AuditAction::DAMAGED);
        assert_eq!(is_reported, is_noticed, "{kind}: {:?}", actions(dir));
        assert_eq!(records(dir).last().unwrap().seq, if is_noticed { 8 } else { 7 }, "{kind}");
    }
}

#[test]
fn two_masters_with_one_directory_write_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let limits = AuditConfig { max_file_size: 8_000, max_files: 100 };
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let mut log = log_in(dir);
            log.set_limits(limits);
            std::thread::spawn(move || {
                for n in 0..100 {
                    log.append(&[entry(format!("{writer}-{n}"))]).unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let found = assert_intact(dir);
    assert!(found.lines >= 202 && found.files.len() > 3, "{found:?}");
    assert_eq!(found.notes, Vec::<String>::new());
}

#[test]
fn what_is_no_file_of_this_user_is_refused_and_a_mode_is_restricted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::os::unix::fs::symlink("/dev/null", current(dir)).unwrap();
    assert!(log_in(dir).append(&[entry("a")]).is_err());
    fs::remove_file(current(dir)).unwrap();
    assert!(Command::new("mkfifo").arg(current(dir)).status().unwrap().success());
    // It is not waited for a writer.
    let error = log_in(dir).append(&[entry("a")]).unwrap_err();
    assert!(error.to_string().contains("regular file"), "{error}");
    fs::remove_file(current(dir)).unwrap();
    fs::write(current(dir), "").unwrap();
    fs::set_permissions(current(dir), Permissions::from_mode(0o644)).unwrap();
    log_in(dir).append(&[entry("a")]).unwrap();
    assert_eq!(fs::metadata(current(dir)).unwrap().mode() & 0o7777, 0o600);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(current(dir), Some(65_534), None).unwrap();
        let error = log_in(dir).append(&[entry("a")]).unwrap_err();
        assert!(error.to_string().contains("65534"), "{error}");
    }
}

#[test]
fn a_failed_write_leaves_nothing_and_its_repeat_continues_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut log = log_in(dir);
    // The first lines cannot be written: the name of the file is taken by a directory.
    fs::create_dir(current(dir)).unwrap();
    for _ in 0..2 {
        assert!(log.append(&[entry("a")]).is_err());
    }
    fs::remove_dir(current(dir)).unwrap();
    log.append(&[entry("a")]).unwrap();
    assert_eq!(actions(dir), [AuditAction::STARTED, "sync.submit"]);
    // Neither can a later one.
    fs::rename(current(dir), dir.join("aside")).unwrap();
    fs::create_dir(current(dir)).unwrap();
    assert!(log.reserve(100).is_err() && log.append(&[entry("b")]).is_err());
    fs::remove_dir(current(dir)).unwrap();
    fs::rename(dir.join("aside"), current(dir)).unwrap();
    log.append(&[entry("b")]).unwrap();
    assert_eq!(assert_intact(dir).lines, 3);
}
