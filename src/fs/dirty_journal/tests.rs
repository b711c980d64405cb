use super::super::target::Target;
use super::super::testing::*;
use super::super::{OfferDecision, ProbeRecord, RootDir, TargetOptions, Tree};
use super::*;
use crate::wire::SyncNo;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::Manifest;
use crate::wire::options::WriteRules;
use crate::wire::samples::Samples;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

fn boot(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn the_journals_of_an_agent_are_read_and_written_as_recorded() {
    let mut files = Samples::open("agent");
    let records = files.check_json::<Vec<JournalRecord>>("unflushed");
    assert_eq!(records.len(), 2);
    let probes = files.check_json::<Vec<ProbeRecord>>("probes");
    assert_eq!((probes.len(), probes[0].inode), (1, 2));
    files.finish();
}

/// A destination of `site` as an agent sees it that was started under this boot.
fn target_after_start(site: &TestSite, under: &str) -> Target {
    let ledger =
        Arc::new(DirtyJournal::open(&site.path("state/unflushed.json"), boot(under)).unwrap());
    let root = RootDir::open_with_journal(site.root.path(), ledger).unwrap();
    let options = TargetOptions::for_this_process(WriteRules::default());
    Target::new(Tree::new(root, rel("dst")), SyncNo(1), options)
}

fn send_batch(target: &Target, batch: &Manifest, content: &[u8]) {
    for entry in batch.entries.iter().filter(|e| e.size() > 0) {
        let mut new = target.create(entry, 1).unwrap();
        new.write(content).unwrap();
        new.publish(entry).unwrap();
    }
}

/// What becomes of the only file of `batch`.
fn verdict(target: &Target, batch: &Manifest) -> Decision {
    let at = batch.entries.iter().position(|e| e.size() > 0).unwrap();
    target.reconcile(batch).decisions[at].clone()
}

fn one_file() -> (TestSite, Manifest) {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    let batch = full_manifest(&site.source());
    (site, batch)
}

const SKIP: Decision = Ok(OfferDecision::Done(EntryAction::Skip));

#[test]
fn unflushed_files_are_compared_by_content_after_a_reboot_until_verified() {
    let (site, mut batch) = one_file();
    let target = target_after_start(&site, "first");
    target.reconcile(&batch);
    send_batch(&target, &batch, b"content");
    drop(target);
    // Its kernel still has what it wrote.
    assert_eq!(verdict(&target_after_start(&site, "first"), &batch), SKIP);
    let target = target_after_start(&site, "second");
    assert_eq!(verdict(&target, &batch), Ok(OfferDecision::NeedsDigest));
    // Also when it is started once more, under whatever boot.
    assert_eq!(
        verdict(&target_after_start(&site, "third"), &batch),
        Ok(OfferDecision::NeedsDigest)
    );
    let at = batch.entries.iter().position(|e| e.size() > 0).unwrap();
    batch.entries[at].digest = Some(blake3::hash(b"content").into());
    let before = std::fs::metadata(site.path("dst/f")).unwrap();
    assert_eq!(verdict(&target, &batch), SKIP);
    let after = std::fs::metadata(site.path("dst/f")).unwrap();
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    // The same length and time, and zeros: it is needed.
    site.write_file("dst/f", "\0\0\0\0\0\0\0");
    set_file_mtime(&site.path("dst/f"), before.mtime(), before.mtime_nsec());
    assert!(matches!(verdict(&target, &batch), Ok(OfferDecision::NeedsContent { .. })));
}

#[test]
fn flushed_files_are_trusted_after_a_reboot() {
    let (site, batch) = one_file();
    let target = target_after_start(&site, "first");
    target.reconcile(&batch);
    send_batch(&target, &batch, b"content");
    target.flush().unwrap();
    assert!(!site.path("state/unflushed.json").exists(), "there is nothing to note");
    assert_eq!(verdict(&target_after_start(&site, "second"), &batch), SKIP);
}

#[test]
fn a_failed_flush_makes_its_files_suspect() {
    let (site, batch) = one_file();
    let target = target_after_start(&site, "first");
    target.reconcile(&batch);
    send_batch(&target, &batch, b"content");
    let failed =
        target.record_flush_outcome(|| Err(target.error("flush", &rel(""), rustix::io::Errno::IO)));
    assert!(failed.is_err());
    for under in ["first", "second"] {
        assert_eq!(
            verdict(&target_after_start(&site, under), &batch),
            Ok(OfferDecision::NeedsDigest)
        );
    }
    // It names destinations: other users must not read it.
    use std::os::unix::fs::MetadataExt as _;
    let mode = |path: &str| std::fs::metadata(site.path(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/unflushed.json")), (0o700, 0o600));
    // Of other destinations nothing is known to be lost.
    let ledger = DirtyJournal::open(&site.path("state/unflushed.json"), boot("first")).unwrap();
    let below = |path: &str| site.root.path().join(&rel(path));
    assert_eq!(ledger.suspect_span(&below("elsewhere")), None);
    assert!(ledger.suspect_span(&below("dst/below")).is_some());
    assert!(ledger.suspect_span(site.root.path()).is_some());
}

#[test]
fn files_written_during_a_flush_stay_unflushed() {
    let (site, batch) = one_file();
    let target = target_after_start(&site, "first");
    target.reconcile(&batch);
    send_batch(&target, &batch, b"content");
    target
        .record_flush_outcome(|| {
            send_batch(&target, &batch, b"CONTENT");
            Ok(())
        })
        .unwrap();
    assert_eq!(
        verdict(&target_after_start(&site, "second"), &batch),
        Ok(OfferDecision::NeedsDigest)
    );
}

#[test]
fn a_suspect_span_ends_after_a_restart_unless_the_clock_went_back() {
    assert_eq!(SuspectSpan::with_skew(5_000, 6_000), SuspectSpan { from: 4_400, until: 6_600 });
    assert_eq!(SuspectSpan::with_skew(5_000, 0).until, i64::MAX);
    let merged =
        SuspectSpan::with_skew(5_000, 6_000).merge(Some(SuspectSpan::with_skew(9_000, 9_500)));
    assert_eq!(merged, SuspectSpan { from: 4_400, until: 10_100 });
}

#[test]
fn an_invalid_journal_is_an_error_and_is_kept() {
    let site = TestSite::new();
    let file = site.write_file("state/unflushed.json", "{\"half");
    assert!(DirtyJournal::open(&file, boot("first")).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"half");
}
