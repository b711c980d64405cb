//! The thread of the log, and entries of requests.

use super::*;
use crate::audit::AuditAction;
use crate::master::testing::{audit_entries, audit_log, sync_request};
use crate::wire::sync::SubmitReply;
use std::fs;

fn entry(action: &str) -> AuditEntry {
    AuditEntry { action: action.into(), ..AuditEntry::default() }
}

fn actions(dir: &Path) -> Vec<String> {
    let name = |entry: AuditEntry| match entry.repeats {
        None => entry.action,
        Some(n) => format!("{} x{n}", entry.action),
    };
    audit_entries(dir).into_iter().map(name).collect()
}

#[tokio::test]
async fn lines_are_in_the_file_when_the_call_returns_and_counts_when_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, _config) = audit_log(dir.path());
    audit.reserve(1_000).await.unwrap();
    audit.append(vec![entry("sync.submit")]).await.unwrap();
    assert_eq!(actions(dir.path()), [AuditAction::STARTED, "sync.submit"]);
    for _ in 0..3 {
        audit.record_refusal(entry("request"));
    }
    audit.close().await;
    assert_eq!(actions(dir.path()), [AuditAction::STARTED, "sync.submit", "request", "request x2"]);
    assert!(audit.append(vec![entry("late")]).await.is_err());
}

#[tokio::test]
async fn an_error_names_the_file_and_ends_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.jsonl");
    fs::create_dir(&file).unwrap();
    let (audit, config) = audit_log(dir.path());
    let reason = audit.reserve(10).await.unwrap_err();
    assert!(reason.contains("audit.jsonl"), "{reason}");
    audit.record_refusal(entry("request"));
    assert!(audit.append(vec![entry("sync.submit")]).await.is_err());
    fs::remove_dir(&file).unwrap();
    // The limits of a reload are in effect for the next line: each file has one line of a request.
    config.send_modify(|config| config.audit.max_file_size = 1);
    audit.append(vec![entry("sync.submit")]).await.unwrap();
    audit.append(vec![entry("sync.cancel")]).await.unwrap();
    audit.close().await;
    assert_eq!(actions(dir.path()), [AuditAction::CONTINUED, "sync.cancel"]);
    let first = fs::read_to_string(dir.path().join("audit.000001.jsonl")).unwrap();
    assert!(first.contains("sync.submit") && first.contains("\"request\""), "{first}");
}

#[tokio::test]
async fn only_what_changes_something_has_an_entry_with_what_is_known_of_the_request() {
    let submit = |id| Event::Submit { request: sync_request(id), list: None, idempotency: None };
    let event = submit("demo");
    assert_eq!(entry_of_change(&event), None, "outside of a request");
    for is_change in [false, true] {
        let handle = async {
            describe_request(|entry| entry.request = Some("r1".into()));
            (entry_of_change(&event), entry_of_change(&Event::ListWorkers))
        };
        let ((change, read), known) = record_while(entry("sync.submit"), is_change, handle).await;
        assert_eq!(known.request.as_deref(), Some("r1"));
        assert_eq!(read, None);
        let expected = AuditEntry {
            request: Some("r1".into()),
            sync: Some("demo".into()),
            source: Some("/src".into()),
            destination: Some("/dst".into()),
            ..entry("sync.submit")
        };
        assert_eq!(change, is_change.then(|| Box::new(expected)));
    }
}

#[test]
fn a_change_has_its_outcome_and_a_refused_one_no_line() {
    let submitted = || {
        Reply::Submitted(SubmitReply {
            status: "queued".into(),
            request_id: "new".parse().unwrap(),
            status_url: "sync/new".into(),
            note: None,
            warnings: Vec::new(),
        })
    };
    let submit = with_outcome(entry("sync.submit"), &submitted()).unwrap();
    assert_eq!((submit.status, submit.sync.as_deref()), (Some(202), Some("new")));
    let retry = AuditEntry { sync: Some("old".into()), ..entry("sync.retry") };
    let retry = with_outcome(retry, &submitted()).unwrap();
    assert_eq!((retry.sync.as_deref(), retry.new_sync.as_deref()), (Some("old"), Some("new")));
    let deleted = with_outcome(entry("sync.delete"), &Reply::Deleted { cancelled: false });
    assert_eq!(deleted.unwrap().status, Some(200));
    let refused = Reply::Refused(Box::new(audit_unavailable("full")));
    assert_eq!(with_outcome(entry("sync.submit"), &refused), None);
}
