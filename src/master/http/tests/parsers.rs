//! Mutated documents and random JSON: each is accepted, or refused with a problem that names the reason.

use super::super::json;
use super::super::request_documents::{
    parse, parse_optional, read_drain_request, read_heartbeat, read_reassign, read_result,
    read_retry_request, read_sync_change, read_sync_request,
};
use crate::wire::fuzz::{any_edits, any_json, apply_edits, replace_values};
use crate::wire::problem::Problem;
use crate::wire::task::ScanPage;
use proptest::prelude::*;
use serde_json::{Value, json as object};

type Reader = fn(&[u8]) -> Result<(), Problem>;

/// A valid document with all fields for each route, and its reader.
fn api_documents() -> Vec<(Value, Reader)> {
    let digest = "07".repeat(32);
    let error = object!({
        "path": "d/x", "operation": "open source", "errno": "EACCES", "message": "permission denied", "worker_id": "a",
        "attempt": 2, "class": "permanent", "hint": "h"
    });
    let copy = object!({"kind": "copy", "manifest": "AAEC", "files": 1, "dirs": 0, "bytes": 9});
    vec![
        (
            object!({
                "request_id": "demo-1", "source_path": "/a", "destination_path": {"path_b64": "L2Iv/w=="},
                "chunk_size_mb": 64, "file_list": ["x", {"path_b64": "/3g="}], "bwlimit": 1048576,
                "options": {
                    "record": true, "compare": "checksum", "links": "skip", "recursive": true,
                    "filter": {"rules": ["*.o", "!b.o"], "min_size": 1, "older_than": 5}
                }
            }),
            |bytes| parse(bytes, |value| read_sync_request(value, 64)).map(drop),
        ),
        (
            object!({
                "source_path": "/a", "destination_path": "/b",
                "options": {"dry_run": true, "delete": {"max": 5, "allow_empty_source": true}}
            }),
            |bytes| parse(bytes, |value| read_sync_request(value, 64)).map(drop),
        ),
        (object!({"bwlimit": 1048576}), |bytes| parse(bytes, read_sync_change).map(drop)),
        (object!({"request_id": "r", "failed_only": true}), |bytes| {
            parse_optional(bytes, read_retry_request).map(drop)
        }),
        (object!({"worker_id": "worker-a"}), |bytes| parse(bytes, read_reassign).map(drop)),
        (object!({"by": "me", "reason": "a disk"}), |bytes| {
            parse_optional(bytes, read_drain_request).map(drop)
        }),
        (
            object!({
                "worker_id": "w", "status": "READY", "storage_paths": ["/a"], "data_plane_endpoints": ["10.0.0.1:9000"],
                "timestamp": "2026-01-01T00:00:00Z", "incarnation": "i", "boot_id": "b", "free_bytes": {"/a": 5},
                "assignments": ["00".repeat(16)], "slots": 4, "agent_version": "0.1.0", "protocol": 2,
                "usage": {"demo-1": {"sent_bytes": 5, "throttled_ms": 6}}, "root_ids": {"/a": "1-2"},
                "unavailable_paths": [{"path": "/b", "reason": "r"}],
                "unavailable_endpoints": [{"endpoint": "10.0.0.2:9000", "reason": "r"}],
                "nics": [{"endpoint": "10.0.0.1:9000", "iface": "ib0", "sent": 1, "received": 2, "connections": 3,
                          "requests": 4, "goodput": 5, "disabled_reason": "down"}]
            }),
            |bytes| parse(bytes, read_heartbeat).map(drop),
        ),
        (
            object!({
                "request_id": "demo-1", "worker_id": "a", "success": true, "message": "m", "attempt": 2,
                "assignment_id": "01".repeat(16), "task_digest": digest,
                "report": {
                    "files_done": 1, "files_skipped": 2, "dirs_done": 3, "bytes_done": 4, "writers": ["b"],
                    "failures": [error], "retry": copy, "integrity_errors": 2
                }
            }),
            |bytes| parse(bytes, read_result).map(drop),
        ),
        (
            object!({
                "task_digest": digest, "page": 3, "work": [copy], "subtrees": ["d"], "errors": [error],
                "root": {"file_system": "x", "empty": false}, "next": {"kind": "list", "start": 5}
            }),
            |bytes| json::parse_typed::<ScanPage>(bytes).map(drop),
        ),
    ]
}

/// Checks that a problem is complete, short and printable.
fn check_problem_text(result: Result<(), Problem>) -> Result<(), TestCaseError> {
    let Err(problem) = result else { return Ok(()) };
    prop_assert!([400, 413, 422].contains(&problem.status), "{problem:?}");
    prop_assert!(!problem.detail.is_empty() && !problem.code.is_empty());
    let texts = problem.errors.iter().flat_map(|e| [&e.pointer, &e.detail]);
    for text in texts.chain([&problem.detail]) {
        prop_assert!(text.len() < 2_000 && !text.chars().any(char::is_control), "{text:?}");
    }
    prop_assert!(serde_json::to_vec(&problem).unwrap().len() < 64 << 10, "{problem:?}");
    Ok(())
}

#[test]
fn the_unchanged_documents_are_valid() {
    for (document, read) in api_documents() {
        read(document.to_string().as_bytes()).unwrap_or_else(|e| panic!("{document}: {e:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn mutated_documents_are_accepted_or_refused_with_a_readable_problem(
        with in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
        edits in any_edits(),
    ) {
        for (document, read) in api_documents() {
            let other = replace_values(&document, &with).to_string();
            check_problem_text(read(other.as_bytes()))?;
            check_problem_text(read(&apply_edits(document.to_string().as_bytes(), &edits)))?;
            check_problem_text(read(&apply_edits(other.as_bytes(), &edits)))?;
        }
    }

    #[test]
    fn random_documents_are_refused_with_a_readable_problem(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        value in any_json(),
    ) {
        for (_, read) in api_documents() {
            check_problem_text(read(&bytes))?;
            check_problem_text(read(value.to_string().as_bytes()))?;
        }
    }
}
