//! Every kind of change to a log is found, at its line.

use super::*;
use crate::audit::{AuditEntry, AuditLog, Origin};
use crate::config::AuditConfig;
use std::fs;

/// A log of six lines, which are returned without their ends.
fn written(dir: &Path) -> Vec<String> {
    let origin = Origin { installation: "site-a".into(), host: "head".into() };
    let limits = AuditConfig { max_file_size: 1 << 20, max_files: 3 };
    let mut log = AuditLog::new(dir, origin, limits);
    for n in 0..5 {
        let sync = Some(format!("sync-{n}"));
        let entry = AuditEntry { action: "sync.submit".into(), sync, ..AuditEntry::default() };
        log.append(&[entry]).unwrap();
    }
    lines(dir)
}

fn lines(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn write(dir: &Path, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("audit.jsonl"), text).unwrap();
}

#[test]
fn each_kind_of_change_is_found_at_its_line_with_its_meaning() {
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change, u64, &str); 9] = [
        ("changed", |l| l[2] = l[2].replace("sync-1", "sync-9"), 4, "record 3 was changed"),
        ("removed", |l| drop(l.remove(2)), 3, "record 3 is missing"),
        ("two removed", |l| drop(l.drain(2..4)), 3, "records 3 to 4 are missing"),
        ("first removed", |l| drop(l.remove(0)), 1, "lines before it were removed"),
        ("copied", |l| l.insert(3, l[1].clone()), 4, "inserted, copied or moved"),
        ("inserted", |l| l.insert(3, l[3].replace("sync-2", "x")), 5, "inserted"),
        ("swapped", |l| l.swap(2, 3), 3, "record 3 is missing, removed or moved"),
        ("cut", |l| l[2].truncate(40), 3, "not a record"),
        ("emptied", |l| l[2].clear(), 3, "not a record"),
    ];
    for (kind, change, line, meaning) in changes {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = written(dir.path());
        change(&mut lines);
        write(dir.path(), &lines);
        let found = verify(dir.path(), None).unwrap();
        let broken = found.first_break.unwrap_or_else(|| panic!("{kind} is found"));
        assert_eq!(broken.line, line, "{kind}: {}", broken.meaning);
        assert!(broken.meaning.contains(meaning), "{kind}: {}", broken.meaning);
        assert_eq!(found.lines, line - 1, "{kind}");
    }
}

#[test]
fn a_noted_head_shows_lines_removed_at_the_end_and_a_chain_that_was_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let before = written(dir);
    let head = verify(dir, None).unwrap().head.unwrap();
    assert_eq!(head.seq, 6);
    assert!(verify(dir, Some(head)).unwrap().first_break.is_none());
    write(dir, &before[..4]);
    // The shorter chain is intact.
    assert!(verify(dir, None).unwrap().first_break.is_none());
    let broken = verify(dir, Some(head)).unwrap().first_break.unwrap();
    assert!(broken.meaning.contains("records after 4 were removed"), "{}", broken.meaning);
    assert_eq!(broken.line, 4);

    // A line is changed, and the digests of all later lines are computed again.
    let mut lines = before;
    lines[2] = lines[2].replace("sync-1", "sync-9");
    for n in 3..6 {
        let mut record: AuditRecord = serde_json::from_str(&lines[n]).unwrap();
        record.prev = line_digest(lines[n - 1].as_bytes());
        lines[n] = serde_json::to_string(&record).unwrap();
    }
    write(dir, &lines);
    assert!(verify(dir, None).unwrap().first_break.is_none());
    let broken = verify(dir, Some(head)).unwrap().first_break.unwrap();
    assert!(broken.meaning.contains("computed again"), "{}", broken.meaning);
}

#[test]
fn lines_that_are_cut_or_too_long_are_found_in_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lines = written(dir);
    let full = dir.join("audit.000001.jsonl");
    fs::rename(dir.join("audit.jsonl"), &full).unwrap();
    assert!(verify(dir, None).unwrap().first_break.is_none());
    // A full file that was cut, beside the one that follows.
    fs::write(&full, lines.join("\n")).unwrap();
    fs::write(dir.join("audit.jsonl"), "").unwrap();
    let broken = verify(dir, None).unwrap().first_break.unwrap();
    assert!(broken.meaning.contains("full file") && broken.file == full, "{broken:?}");
    fs::remove_file(&full).unwrap();
    fs::write(dir.join("audit.jsonl"), lines.join("\n") + "\n" + &"x".repeat(1 << 20)).unwrap();
    let broken = verify(dir, None).unwrap().first_break.unwrap();
    assert!(broken.line == 7 && broken.meaning.contains("too long"), "{broken:?}");
    assert!(verify(&dir.join("none"), None).is_err());
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(verify(empty.path(), None).unwrap().files, Vec::<PathBuf>::new());
}

#[test]
fn the_recorded_format_is_read_and_its_chain_is_intact() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats/audit");
    let found = verify(Path::new(sample), None).unwrap();
    assert_eq!((found.first_break, found.lines), (None, 3));
    assert_eq!(found.installation.as_deref(), Some("site-a"));
    for line in lines(Path::new(sample)) {
        let record: AuditRecord = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
    }
}
