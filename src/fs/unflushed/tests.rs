use super::super::testing::*;
use super::super::{Root, TargetOptions, Tree, Verdict};
use super::*;
use crate::wire::SyncNo;
use crate::wire::manifest::Manifest;
use crate::wire::options::{EntryAction, WriteRules};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

fn boot(name: &str) -> Option<String> {
    Some(name.to_owned())
}

/// A destination of `site` as an agent sees it that was started under this boot.
fn started(site: &Site, under: &str) -> Target {
    let ledger = Arc::new(Ledger::open(&site.at("state/unflushed.json"), boot(under)).unwrap());
    let root = Root::open_noting(site.root.path(), ledger).unwrap();
    let options = TargetOptions::of_this_process(WriteRules::default());
    Target::new(Tree::new(root, rel("dst")), SyncNo(1), options)
}

fn send(target: &Target, batch: &Manifest, content: &[u8]) {
    for entry in batch.entries.iter().filter(|e| e.size() > 0) {
        let mut new = target.create(entry, 1).unwrap();
        new.write(content).unwrap();
        new.publish(entry).unwrap();
    }
}

/// What becomes of the only file of `batch`.
fn verdict(target: &Target, batch: &Manifest) -> Verdict {
    let at = batch.entries.iter().position(|e| e.size() > 0).unwrap();
    target.reconcile(batch).verdicts[at].clone()
}

fn one_file() -> (Site, Manifest) {
    let site = Site::new();
    site.write("src/f", "content");
    let batch = manifest(&site.source());
    (site, batch)
}

const SKIP: Verdict = Verdict::Done(EntryAction::Skip);

#[test]
fn what_was_not_flushed_before_a_reboot_is_compared_by_content_until_it_was_found_right() {
    let (site, mut batch) = one_file();
    let target = started(&site, "first");
    target.reconcile(&batch);
    send(&target, &batch, b"content");
    drop(target);
    // Its kernel still has what it wrote.
    assert_eq!(verdict(&started(&site, "first"), &batch), SKIP);
    let target = started(&site, "second");
    assert_eq!(verdict(&target, &batch), Verdict::Check);
    // Also when it is started once more, under whatever boot.
    assert_eq!(verdict(&started(&site, "third"), &batch), Verdict::Check);
    let at = batch.entries.iter().position(|e| e.size() > 0).unwrap();
    batch.entries[at].digest = Some(blake3::hash(b"content").into());
    let before = std::fs::metadata(site.at("dst/f")).unwrap();
    assert_eq!(verdict(&target, &batch), SKIP);
    let after = std::fs::metadata(site.at("dst/f")).unwrap();
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    // The same length and time, and zeros: it is needed.
    site.write("dst/f", "\0\0\0\0\0\0\0");
    touch(&site.at("dst/f"), before.mtime(), before.mtime_nsec());
    assert!(matches!(verdict(&target, &batch), Verdict::Needed { .. }));
}

#[test]
fn what_was_flushed_is_trusted_after_a_reboot() {
    let (site, batch) = one_file();
    let target = started(&site, "first");
    target.reconcile(&batch);
    send(&target, &batch, b"content");
    target.flush().unwrap();
    assert!(!site.at("state/unflushed.json").exists(), "there is nothing to note");
    assert_eq!(verdict(&started(&site, "second"), &batch), SKIP);
}

#[test]
fn a_flush_that_failed_makes_suspect_what_it_was_to_flush() {
    let (site, batch) = one_file();
    let target = started(&site, "first");
    target.reconcile(&batch);
    send(&target, &batch, b"content");
    let failed = target.noting(|| Err(target.error("flush", &rel(""), rustix::io::Errno::IO)));
    assert!(failed.is_err());
    for under in ["first", "second"] {
        assert_eq!(verdict(&started(&site, under), &batch), Verdict::Check);
    }
    // It names destinations: nobody else may read it.
    use std::os::unix::fs::MetadataExt as _;
    let mode = |path: &str| std::fs::metadata(site.at(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/unflushed.json")), (0o700, 0o600));
    // Of other destinations nothing is known to be lost.
    let ledger = Ledger::open(&site.at("state/unflushed.json"), boot("first")).unwrap();
    let below = |path: &str| site.root.path().join(&rel(path));
    assert_eq!(ledger.suspects(&below("elsewhere")), None);
    assert!(ledger.suspects(&below("dst/below")).is_some());
    assert!(ledger.suspects(site.root.path()).is_some());
}

#[test]
fn what_is_written_while_a_flush_runs_is_not_flushed_by_it() {
    let (site, batch) = one_file();
    let target = started(&site, "first");
    target.reconcile(&batch);
    send(&target, &batch, b"content");
    target
        .noting(|| {
            send(&target, &batch, b"CONTENT");
            Ok(())
        })
        .unwrap();
    assert_eq!(verdict(&started(&site, "second"), &batch), Verdict::Check);
}

#[test]
fn a_span_ends_soon_after_a_restart_unless_the_clock_is_behind() {
    assert_eq!(Span::around(5_000, 6_000), Span { from: 4_400, until: 6_600 });
    assert_eq!(Span::around(5_000, 0).until, i64::MAX);
    let merged = Span::around(5_000, 6_000).merge(Some(Span::around(9_000, 9_500)));
    assert_eq!(merged, Span { from: 4_400, until: 10_100 });
}

#[test]
fn a_ledger_that_makes_no_sense_is_an_error_and_stays() {
    let site = Site::new();
    let file = site.write("state/unflushed.json", "{\"half");
    assert!(Ledger::open(&file, boot("first")).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"half");
}
