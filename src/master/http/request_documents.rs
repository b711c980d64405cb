//! The documents of the public API, each read so that all its faults are found at once.

use super::json;
use super::object_reader::{
    ObjectReader, array, assemble, boolean, deserialize, integer, rate_limit, string,
};
use crate::master::submit_validation;
use crate::master::validation_errors::ValidationErrors;
use crate::wire::manifest::FileListPart;
use crate::wire::problem::Problem;
use crate::wire::sync::{CHUNK_MIB_RANGE, ReassignRequest, RetryRequest, SyncPatch, SyncRequest};
use crate::wire::task::TaskResult;
use crate::wire::worker::{
    DrainRequest, Endpoint, NicReport, UnavailableEndpoint, UnavailablePath, WorkerHeartbeat,
};
use crate::wire::{AbsPath, BytePath};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A worker that has more storage paths than this is one by mistake.
const MAX_STORAGE_PATHS: usize = 1_024;
const MAX_ENDPOINTS: usize = 256;
const MAX_HELD_ASSIGNMENTS: usize = 65_536;
const MAX_SLOTS: u32 = 4_096;
/// Names and versions that are only shown or compared.
const MAX_LABEL_BYTES: usize = 256;
/// The longest reason of an operator, in bytes.
const MAX_REASON_BYTES: usize = 1_024;
/// The longest text about an endpoint, in bytes.
const MAX_NIC_TEXT_BYTES: usize = 1_024;
/// What an agent says about a result; longer ones are no sentence.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Reads `POST /sync`; the file list comes out checked, in parts.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_sync_request(
    body: &[u8],
    default_chunk_mb: u32,
) -> Result<(SyncRequest, Option<Vec<FileListPart>>), Problem> {
    read_sync_request(json::parse_json(body)?, default_chunk_mb)
        .map_err(ValidationErrors::into_problem)
}

/// Reads `PATCH /sync/{id}`.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_sync_change(body: &[u8]) -> Result<SyncPatch, Problem> {
    read_sync_change(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// Reads `POST /sync/{id}/retry`; an empty body asks for all of it.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_retry_request(body: &[u8]) -> Result<RetryRequest, Problem> {
    if body.is_empty() {
        return Ok(RetryRequest::default());
    }
    read_retry_request(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// Reads `POST /sync/{id}/reassign`.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_reassign(body: &[u8]) -> Result<ReassignRequest, Problem> {
    read_reassign(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// Reads `POST /workers/{id}/drain`; an empty body says nothing.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_drain_order(body: &[u8]) -> Result<DrainRequest, Problem> {
    if body.is_empty() {
        return Ok(DrainRequest::default());
    }
    read_drain_order(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// Reads `POST /workers/heartbeat`.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_heartbeat(body: &[u8]) -> Result<WorkerHeartbeat, Problem> {
    read_heartbeat(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// Reads `POST /workers/result`.
///
/// # Errors
/// 400 for no JSON, 422 for wrong fields.
pub(super) fn parse_result(body: &[u8]) -> Result<TaskResult, Problem> {
    read_result(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

fn read_retry_request(value: Value) -> Result<RetryRequest, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let request_id = doc.optional("request_id", deserialize);
    let failed_only = doc.optional("failed_only", boolean);
    doc.finish()?;
    assemble(|| {
        Some(RetryRequest { request_id: request_id?, failed_only: failed_only?.unwrap_or(false) })
    })
}

fn read_sync_request(
    value: Value,
    default_chunk_mb: u32,
) -> Result<(SyncRequest, Option<Vec<FileListPart>>), ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let request_id = doc.optional("request_id", deserialize);
    let source: Option<AbsPath> = doc.required("source_path", deserialize);
    let destination: Option<AbsPath> = doc.required("destination_path", deserialize);
    let chunk = doc.optional("chunk_size_mb", integer(CHUNK_MIB_RANGE));
    let options = doc.optional("options", super::sync_options::read_options);
    let names = doc.optional("file_list", array(usize::MAX, deserialize::<BytePath>));
    let bwlimit = doc.optional("bwlimit", rate_limit);
    let listed = !matches!(names, Some(None));

    if let (Some(source), Some(destination)) = (&source, &destination)
        && let Err(detail) = submit_validation::validate_paths(source, destination)
    {
        doc.add_errors("destination_path", ValidationErrors::single(detail));
    }
    let mut parts = None;
    if let (Some(source), Some(Some(names))) = (&source, names) {
        match submit_validation::file_list_parts(source, names) {
            Ok(list) => parts = Some(list),
            Err(faults) => doc.add_errors("file_list", faults),
        }
    }
    if let Some(Some(options)) = &options {
        let roots: Vec<&AbsPath> = [&source, &destination].into_iter().flatten().collect();
        doc.add_errors("options", submit_validation::validate_options(options, listed, &roots));
    }
    doc.finish()?;
    let request = assemble(|| {
        Some(SyncRequest {
            request_id: request_id?,
            source_path: source?,
            destination_path: destination?,
            chunk_size_mb: chunk?.unwrap_or(default_chunk_mb),
            file_list: None,
            options: options?.unwrap_or_default(),
            bwlimit: bwlimit?.flatten(),
        })
    })?;
    Ok((request, parts))
}

fn read_sync_change(value: Value) -> Result<SyncPatch, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let bwlimit = doc.required("bwlimit", rate_limit);
    doc.finish()?;
    assemble(|| Some(SyncPatch { bwlimit: bwlimit? }))
}

fn read_reassign(value: Value) -> Result<ReassignRequest, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let worker_id = doc.required("worker_id", deserialize);
    doc.finish()?;
    assemble(|| Some(ReassignRequest { worker_id: worker_id? }))
}

fn read_drain_order(value: Value) -> Result<DrainRequest, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let by = doc.optional("by", string(MAX_LABEL_BYTES));
    let reason = doc.optional("reason", string(MAX_REASON_BYTES));
    doc.finish()?;
    assemble(|| Some(DrainRequest { by: by?, reason: reason? }))
}

fn read_heartbeat(value: Value) -> Result<WorkerHeartbeat, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let worker_id = doc.required("worker_id", deserialize);
    let status = doc.required("status", deserialize);
    let storage_paths = doc.optional("storage_paths", array(MAX_STORAGE_PATHS, deserialize));
    let data_plane_endpoints = doc.optional("data_plane_endpoints", array(MAX_ENDPOINTS, endpoint));
    let timestamp = doc.optional("timestamp", timestamp);
    let control_plane_address = doc.optional("control_plane_address", string(1_024));
    let incarnation = doc.optional("incarnation", string(MAX_LABEL_BYTES));
    let boot_id = doc.optional("boot_id", string(MAX_LABEL_BYTES));
    let free_bytes = doc.optional("free_bytes", deserialize);
    let assignments = doc.optional("assignments", array(MAX_HELD_ASSIGNMENTS, deserialize));
    let moved_bytes = doc.optional("moved_bytes", deserialize);
    let incoming_requests = doc.optional("incoming_requests", integer(0..=u32::MAX));
    let slots = doc.optional("slots", integer(0..=MAX_SLOTS));
    let agent_version = doc.optional("agent_version", string(MAX_LABEL_BYTES));
    let protocol = doc.optional("protocol", integer(0..=u32::MAX));
    let usage = doc.optional("usage", deserialize);
    let nics = doc.optional("nics", array(MAX_ENDPOINTS, nic_report));
    let unavailable_paths =
        doc.optional("unavailable_paths", array(MAX_STORAGE_PATHS, unavailable_path));
    let unavailable_endpoints =
        doc.optional("unavailable_endpoints", array(MAX_ENDPOINTS, unavailable_endpoint));
    let root_ids = doc.optional("root_ids", root_ids);
    doc.finish()?;
    assemble(|| {
        Some(WorkerHeartbeat {
            worker_id: worker_id?,
            status: status?,
            storage_paths: storage_paths?.unwrap_or_default(),
            data_plane_endpoints: data_plane_endpoints?.unwrap_or_default(),
            timestamp: timestamp?,
            control_plane_address: control_plane_address?,
            incarnation: incarnation?,
            boot_id: boot_id?,
            free_bytes: free_bytes?.unwrap_or_default(),
            assignments: assignments?.unwrap_or_default(),
            moved_bytes: moved_bytes?.unwrap_or_default(),
            incoming_requests: incoming_requests?.unwrap_or_default(),
            slots: slots?,
            agent_version: agent_version?,
            protocol: protocol?,
            usage: usage?.unwrap_or_default(),
            nics: nics?.unwrap_or_default(),
            unavailable_paths: unavailable_paths?.unwrap_or_default(),
            unavailable_endpoints: unavailable_endpoints?.unwrap_or_default(),
            root_ids: root_ids?.unwrap_or_default(),
        })
    })
}

fn read_result(value: Value) -> Result<TaskResult, ValidationErrors> {
    let mut doc = ObjectReader::new(value)?;
    let request_id = doc.required("request_id", deserialize);
    let worker_id = doc.required("worker_id", deserialize);
    let success = doc.required("success", boolean);
    let message = doc.optional("message", string(MAX_MESSAGE_BYTES));
    let assignment_id = doc.optional("assignment_id", deserialize);
    let attempt = doc.optional("attempt", integer(0..=u32::MAX));
    let task_digest = doc.optional("task_digest", deserialize);
    let report = doc.optional("report", deserialize);
    doc.finish()?;
    assemble(|| {
        Some(TaskResult {
            request_id: request_id?,
            worker_id: worker_id?,
            success: success?,
            message: message?,
            assignment_id: assignment_id?,
            attempt: attempt?,
            task_digest: task_digest?,
            report: report?,
        })
    })
}

/// An endpoint that another agent can connect to. Loopback is one: all on one host is a set-up.
/// How an endpoint does; its texts are shown to people.
fn nic_report(value: Value) -> Result<NicReport, ValidationErrors> {
    let nic: NicReport = deserialize(value)?;
    let texts = [Some(&nic.endpoint), nic.iface.as_ref(), nic.disabled_reason.as_ref()];
    if texts.into_iter().flatten().any(|text| text.len() > MAX_NIC_TEXT_BYTES) {
        return Err(ValidationErrors::single(format!(
            "a text of more than {MAX_NIC_TEXT_BYTES} bytes"
        )));
    }
    Ok(nic)
}

fn unavailable_path(value: Value) -> Result<UnavailablePath, ValidationErrors> {
    let mut one: UnavailablePath = deserialize(value)?;
    one.reason = one.reason.chars().take(MAX_REASON_BYTES).collect();
    Ok(one)
}

fn unavailable_endpoint(value: Value) -> Result<UnavailableEndpoint, ValidationErrors> {
    let mut one: UnavailableEndpoint = deserialize(value)?;
    if one.endpoint.len() > MAX_NIC_TEXT_BYTES {
        return Err(ValidationErrors::single(format!(
            "a text of more than {MAX_NIC_TEXT_BYTES} bytes"
        )));
    }
    one.reason = one.reason.chars().take(MAX_REASON_BYTES).collect();
    Ok(one)
}

fn root_ids(value: Value) -> Result<BTreeMap<String, String>, ValidationErrors> {
    let ids: BTreeMap<String, String> = deserialize(value)?;
    if ids.len() > MAX_STORAGE_PATHS || ids.values().any(|id| id.len() > MAX_LABEL_BYTES) {
        let limits = format!("{MAX_STORAGE_PATHS} ids of {MAX_LABEL_BYTES} bytes");
        return Err(ValidationErrors::single(format!("more than {limits}")));
    }
    Ok(ids)
}

fn endpoint(value: Value) -> Result<Endpoint, ValidationErrors> {
    let endpoint: Endpoint = deserialize(value)?;
    let Ok(address) = endpoint.address.parse::<IpAddr>() else { return Ok(endpoint) };
    let useless = match address.to_canonical() {
        // 169.254.169.254 is where clouds serve machine credentials: no agent shall be sent there.
        IpAddr::V4(v4) => {
            v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets() == [169, 254, 169, 254]
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    };
    if useless {
        return Err(ValidationErrors::single(format!(
            "another agent cannot connect to the address {address}"
        )));
    }
    Ok(endpoint)
}

/// A time in whatever form the predecessor's agents send it; it is only shown.
fn timestamp(value: Value) -> Result<Value, ValidationErrors> {
    match value {
        Value::Number(_) => Ok(value),
        other => string(MAX_LABEL_BYTES)(other).map(Value::String),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sync::DEFAULT_CHUNK_MIB;
    use crate::wire::task::{TaskReport, WorkItem};
    use crate::wire::worker::{BandwidthUsage, WorkerStatus};
    use crate::wire::{AssignmentId, Digest};
    use serde_json::json;

    fn error_pointers(problem: Problem) -> Vec<String> {
        assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_fields"));
        problem.errors.into_iter().map(|e| e.pointer).collect()
    }

    fn parse_request(value: Value) -> Result<(SyncRequest, Option<Vec<FileListPart>>), Problem> {
        parse_sync_request(value.to_string().as_bytes(), DEFAULT_CHUNK_MIB)
    }

    #[test]
    fn every_invalid_field_of_a_request_is_listed() {
        let problem = parse_request(json!({
            "request_id": "no spaces", "source_path": "data/../x", "chunk_size_mb": 0,
            "file_list": ["a", 5], "chunk_size": 64
        }))
        .unwrap_err();
        assert_eq!(
            error_pointers(problem),
            [
                "/request_id",
                "/source_path",
                "/destination_path",
                "/chunk_size_mb",
                "/file_list/1",
                "/chunk_size"
            ]
        );
    }

    #[test]
    fn an_unknown_field_gets_a_suggestion() {
        let problem =
            parse_request(json!({"source_path": "/a", "destination_path": "/b", "chunk_size": 64}))
                .unwrap_err();
        assert_eq!(problem.errors[0].detail, "is not known; did you mean `chunk_size_mb`?");
        assert_eq!(problem.detail, "/chunk_size: is not known; did you mean `chunk_size_mb`?");
    }

    #[test]
    fn paths_and_file_lists_are_validated_together_with_other_fields() {
        let problem = parse_request(json!({
            "source_path": "/a", "destination_path": "/a/b", "file_list": ["../x", "/c", "ok"], "chunk_size_mb": "64"
        }))
        .unwrap_err();
        assert_eq!(
            error_pointers(problem),
            ["/chunk_size_mb", "/destination_path", "/file_list/0", "/file_list/1"]
        );
        for (field, value) in [
            ("source_path", json!("")),
            ("source_path", json!("rel")),
            ("source_path", json!("/a/..")),
            ("source_path", json!("/a\0b")),
            ("source_path", json!(5)),
            ("source_path", json!(null)),
            ("destination_path", json!(format!("/{}", "x/".repeat(2_100)))),
            ("chunk_size_mb", json!(1025)),
            ("chunk_size_mb", json!(-1)),
            ("chunk_size_mb", json!(1.5)),
            ("request_id", json!("{x}")),
            ("request_id", json!("a\nb")),
            ("request_id", json!("x".repeat(1 << 20))),
            ("file_list", json!([])),
            ("file_list", json!("a")),
            ("file_list", json!([[]])),
        ] {
            let mut doc = json!({"source_path": "/a", "destination_path": "/b"});
            doc[field] = value;
            let problem = parse_request(doc).unwrap_err();
            assert!(problem.detail.len() < 300, "{}", problem.detail.len());
            assert!(error_pointers(problem)[0].starts_with(&format!("/{field}")));
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_read_from_base64() {
        let doc = json!({
            "source_path": {"path_b64": "L2Ev/w=="}, "destination_path": "/b", "file_list": [{"path_b64": "/3g="}]
        });
        let (request, list) = parse_request(doc).unwrap();
        assert_eq!(request.source_path.as_bytes(), b"/a/\xff");
        assert_eq!(list.unwrap()[0].paths[0].as_bytes(), b"\xffx");
    }

    // A field that is added to a document must be added to its reader as well.
    #[test]
    fn the_readers_know_every_field_of_the_documents() {
        let request = SyncRequest {
            request_id: Some("demo-1".parse().unwrap()),
            source_path: AbsPath::new("/a").unwrap(),
            destination_path: AbsPath::new("/b").unwrap(),
            chunk_size_mb: 7,
            file_list: Some(vec![BytePath(b"x".to_vec())]),
            options: Default::default(),
            bwlimit: Some(1 << 20),
        };
        let (read, list) =
            parse_sync_request(&serde_json::to_vec(&request).unwrap(), DEFAULT_CHUNK_MIB).unwrap();
        assert_eq!(list.unwrap()[0].paths.len(), 1);
        assert_eq!(SyncRequest { file_list: None, ..request }, read);

        let beat = WorkerHeartbeat {
            worker_id: "worker-a".parse().unwrap(),
            status: WorkerStatus::Transferring,
            storage_paths: vec![AbsPath::new("/a").unwrap()],
            data_plane_endpoints: vec!["10.0.0.1:9000".parse().unwrap()],
            timestamp: Some(json!("2026-01-01T00:00:00Z")),
            control_plane_address: Some("10.0.0.1".into()),
            incarnation: Some("i".into()),
            boot_id: Some("b".into()),
            free_bytes: [("/a".to_owned(), 5)].into(),
            assignments: vec![AssignmentId([1; 16])],
            moved_bytes: [(AssignmentId([1; 16]), 1 << 20)].into(),
            incoming_requests: 3,
            slots: Some(4),
            agent_version: Some("0.1.0".into()),
            protocol: Some(1),
            usage: [("demo-1".parse().unwrap(), BandwidthUsage { sent_bytes: 5, throttled_ms: 6 })]
                .into(),
            unavailable_paths: vec![UnavailablePath {
                path: AbsPath::new("/b").unwrap(),
                reason: "r".into(),
            }],
            unavailable_endpoints: vec![UnavailableEndpoint {
                endpoint: "10.0.0.2:9000".into(),
                reason: "r".into(),
            }],
            root_ids: [("/a".to_owned(), "1-2".to_owned())].into(),
            nics: vec![NicReport {
                endpoint: "10.0.0.1:9000".into(),
                iface: Some("ib0".into()),
                sent: 1,
                received: 2,
                connections: 3,
                requests: 4,
                goodput: Some(5),
                receive_rate: Some(6),
                disabled_reason: Some("down".into()),
            }],
        };
        assert_eq!(parse_heartbeat(&serde_json::to_vec(&beat).unwrap()).unwrap(), beat);

        let outcome = TaskResult {
            request_id: "demo-1".parse().unwrap(),
            worker_id: "worker-a".parse().unwrap(),
            success: true,
            message: Some("m".into()),
            assignment_id: Some(AssignmentId([1; 16])),
            attempt: Some(2),
            task_digest: Some(Digest([3; 32])),
            report: Some(TaskReport {
                retry: Some(WorkItem::Copy {
                    manifest: Default::default(),
                    files: 1,
                    dirs: 0,
                    bytes: 9,
                }),
                ..TaskReport::default()
            }),
        };
        assert_eq!(parse_result(&serde_json::to_vec(&outcome).unwrap()).unwrap(), outcome);
    }

    #[test]
    fn a_heartbeat_is_bounded_and_unreachable_endpoints_are_refused() {
        let beat = |field: &str, value: Value| {
            let mut doc = json!({"worker_id": "w", "status": "READY"});
            doc[field] = value;
            parse_heartbeat(doc.to_string().as_bytes())
        };
        for address in ["127.0.0.1", "192.168.100.10", "fe80::1", "storage-1.lan", "10.0.0.1:9000"]
        {
            assert!(beat("data_plane_endpoints", json!([address])).is_ok(), "{address}");
        }
        for address in [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "[fe80::1%eth0]",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1\r\nX",
            "",
        ] {
            let problem = beat("data_plane_endpoints", json!(["10.0.0.1", address])).unwrap_err();
            assert_eq!(error_pointers(problem), ["/data_plane_endpoints/1"], "{address}");
        }
        assert!(beat("storage_paths", json!(vec!["/a"; MAX_STORAGE_PATHS])).is_ok());
        for (field, value) in [
            ("storage_paths", json!(vec!["/a"; MAX_STORAGE_PATHS + 1])),
            ("data_plane_endpoints", json!(vec!["10.0.0.1"; MAX_ENDPOINTS + 1])),
            ("assignments", json!(vec!["0".repeat(32); MAX_HELD_ASSIGNMENTS + 1])),
            ("incarnation", json!("x".repeat(300))),
            ("slots", json!(1_000_000)),
            ("timestamp", json!([])),
            ("free_bytes", json!({"/a": -1})),
            ("status", json!("ready?")),
        ] {
            assert!(
                error_pointers(beat(field, value).unwrap_err())[0]
                    .starts_with(&format!("/{field}"))
            );
        }
    }

    #[test]
    fn negative_and_overflowing_counters_are_refused() {
        for n in [json!(-1), json!(1.5), json!(18_446_744_073_709_551_616.0), json!("5")] {
            let doc = json!({"request_id": "r", "worker_id": "w", "success": true, "report": {"bytes_done": n}});
            let problem = parse_result(doc.to_string().as_bytes()).unwrap_err();
            assert_eq!(error_pointers(problem), ["/report/bytes_done"], "{n}");
        }
    }
}
