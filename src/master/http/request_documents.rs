//! The readers of the JSON documents of the API. Each lists all invalid fields of its document.

use super::json;
use super::object_reader::{
    ObjectReader, array, boolean, deserialize, integer, object_reader, optional, or_default,
    rate_limit, required, string,
};
use super::sync_options::read_options;
use crate::master::requests::SubmitSync;
use crate::master::submit_validation;
use crate::master::validation_errors::ValidationErrors;
use crate::wire::AbsPath;
use crate::wire::path::quote;
use crate::wire::problem::Problem;
use crate::wire::storage::{StorageCheckReport, StorageReport};
use crate::wire::sync::{CHUNK_MIB_RANGE, ReassignRequest, RetryRequest, SyncPatch, SyncRequest};
use crate::wire::task::TaskResult;
use crate::wire::ticket::{MAX_TICKET_BYTES, SignedTicket};
use crate::wire::worker::{
    DrainRequest, Endpoint, NicReport, UnavailableEndpoint, UnavailablePath, WorkerHeartbeat,
};
use crate::wire::worker_selector::{Labels, MAX_SELECTORS, WorkerSelector, is_label_part};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// More storage paths of a worker are a configuration error.
const MAX_STORAGE_PATHS: usize = 1_024;
const MAX_ENDPOINTS: usize = 256;
const MAX_HELD_ASSIGNMENTS: usize = 65_536;
const MAX_SLOTS: u32 = 4_096;
const MAX_LABELS: usize = 64;
/// The maximum number of probe files in a report: what the master asks for at once.
const MAX_PROBES: usize = 1_024;
const MAX_MOUNT_TEXT_BYTES: usize = 8_192;
/// The maximum length of names and versions.
const MAX_LABEL_BYTES: usize = 256;
/// The maximum length of a reason.
const MAX_REASON_BYTES: usize = 1_024;
/// The maximum length of each text of an endpoint.
const MAX_NIC_TEXT_BYTES: usize = 1_024;
/// The maximum length of the message of a result.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Parses a body as JSON and reads it by `read`.
///
/// # Errors
/// 400 for invalid JSON, 422 with all invalid fields.
pub(super) fn parse<T>(
    body: &[u8],
    read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
) -> Result<T, Problem> {
    read(json::parse_json(body)?).map_err(ValidationErrors::into_problem)
}

/// As [`parse`]; an empty body stands for an object without members.
///
/// # Errors
/// As [`parse`].
pub(super) fn parse_optional<T>(
    body: &[u8],
    read: impl FnOnce(Value) -> Result<T, ValidationErrors>,
) -> Result<T, Problem> {
    parse(if body.is_empty() { b"{}" } else { body }, read)
}

object_reader! {
    /// `POST /sync/{id}/retry`.
    pub(super) fn read_retry_request -> RetryRequest {
        request_id: optional(deserialize),
        failed_only: or_default(boolean),
    }
}

/// `POST /sync`, without its idempotency key. Its fields are validated one by one and against each other.
pub(in crate::master) fn read_sync_request(
    value: Value,
    default_chunk_mb: u32,
) -> Result<SubmitSync, ValidationErrors> {
    let mut object = ObjectReader::new(value)?;
    let request_id = object.member("request_id", optional(deserialize));
    let source_path = object.member("source_path", required(deserialize));
    let destination_path = object.member("destination_path", required(deserialize));
    let selectors = || or_default(array(MAX_SELECTORS, deserialize));
    let source_workers: Option<Vec<WorkerSelector>> = object.member("source_workers", selectors());
    let destination_workers: Option<Vec<WorkerSelector>> =
        object.member("destination_workers", selectors());
    let chunk_size_mb = object.member("chunk_size_mb", optional(integer(CHUNK_MIB_RANGE)));
    let options = object.member("options", or_default(read_options));
    let has_list = object.contains("file_list");
    let names = object.member("file_list", optional(array(usize::MAX, deserialize)));
    let bwlimit = object.member("bwlimit", or_default(rate_limit));

    let (source, destination) = (source_path.as_ref(), destination_path.as_ref());
    let selects_workers =
        [&source_workers, &destination_workers].into_iter().flatten().any(|all| !all.is_empty());
    if let (Some(source), Some(destination)) = (source, destination)
        && !selects_workers
        && let Err(detail) = submit_validation::validate_paths(source, destination)
    {
        object.add_errors("destination_path", ValidationErrors::single(detail));
    }
    let list = match (source, names.flatten()) {
        (Some(source), Some(names)) => {
            let parts = submit_validation::file_list_parts(source, names);
            parts.map_err(|errors| object.add_errors("file_list", errors)).ok()
        }
        _ => None,
    };
    if let Some(options) = &options {
        let roots: Vec<&AbsPath> = [source, destination].into_iter().flatten().collect();
        object
            .add_errors("options", submit_validation::validate_options(options, has_list, &roots));
    }
    object.finish(|| {
        let request = SyncRequest {
            request_id: request_id?,
            source_path: source_path?,
            destination_path: destination_path?,
            source_workers: source_workers?,
            destination_workers: destination_workers?,
            chunk_size_mb: chunk_size_mb?.unwrap_or(default_chunk_mb),
            file_list: None,
            options: options?,
            bwlimit: bwlimit?,
            // From the token.
            run_as: None,
        };
        Some(SubmitSync { request, list, idempotency: None })
    })
}

/// `PATCH /sync/{id}`. A `bwlimit` of `null` removes the limit, and a missing one leaves it as it is.
pub(super) fn read_sync_change(value: Value) -> Result<SyncPatch, ValidationErrors> {
    let mut object = ObjectReader::new(value)?;
    let bwlimit = object.member("bwlimit", |member| member.map(rate_limit).transpose());
    let destinations = or_default(array(MAX_SELECTORS, deserialize));
    let add_destinations: Option<Vec<WorkerSelector>> =
        object.member("add_destinations", destinations);
    let patch = object
        .finish(|| Some(SyncPatch { bwlimit: bwlimit?, add_destinations: add_destinations? }))?;
    if patch == SyncPatch::default() {
        let detail = "changes nothing: give bwlimit, add_destinations, or both";
        return Err(ValidationErrors::single(detail));
    }
    Ok(patch)
}

object_reader! {
    /// `POST /sync/{id}/reassign`.
    pub(super) fn read_reassign -> ReassignRequest {
        worker_id: required(deserialize),
    }
}

object_reader! {
    /// `POST /workers/{id}/drain`.
    pub(super) fn read_drain_request -> DrainRequest {
        by: optional(string(MAX_LABEL_BYTES)),
        reason: optional(string(MAX_REASON_BYTES)),
    }
}

/// A ticket that is to be renewed.
fn read_ticket(value: Value) -> Result<SignedTicket, ValidationErrors> {
    string(MAX_TICKET_BYTES)(value).map(SignedTicket::from)
}

object_reader! {
    /// `POST /workers/heartbeat`.
    pub(super) fn read_heartbeat -> WorkerHeartbeat {
        worker_id: required(deserialize),
        status: required(deserialize),
        storage_paths: or_default(array(MAX_STORAGE_PATHS, deserialize)),
        data_plane_endpoints: or_default(array(MAX_ENDPOINTS, read_endpoint)),
        timestamp: optional(read_timestamp),
        control_plane_address: optional(string(1_024)),
        incarnation: optional(string(MAX_LABEL_BYTES)),
        boot_id: optional(string(MAX_LABEL_BYTES)),
        free_bytes: or_default(deserialize),
        assignments: or_default(array(MAX_HELD_ASSIGNMENTS, deserialize)),
        moved_bytes: or_default(deserialize),
        incoming_requests: or_default(integer(0..=u32::MAX)),
        slots: optional(integer(0..=MAX_SLOTS)),
        agent_version: optional(string(MAX_LABEL_BYTES)),
        protocol: optional(integer(0..=u32::MAX)),
        usage: or_default(deserialize),
        nics: or_default(array(MAX_ENDPOINTS, read_nic_report)),
        unavailable_paths: or_default(array(MAX_STORAGE_PATHS, read_unavailable_path)),
        unavailable_endpoints: or_default(array(MAX_ENDPOINTS, read_unavailable_endpoint)),
        root_ids: or_default(read_root_ids),
        storages: or_default(array(MAX_STORAGE_PATHS, read_storage_report)),
        storage_checks: or_default(array(MAX_STORAGE_PATHS, read_storage_check)),
        labels: or_default(read_labels),
        tickets: or_default(array(MAX_HELD_ASSIGNMENTS, read_ticket)),
        ended_seen: optional(deserialize),
    }
}

object_reader! {
    /// `POST /workers/result`.
    pub(super) fn read_result -> TaskResult {
        request_id: required(deserialize),
        worker_id: required(deserialize),
        success: required(boolean),
        message: optional(string(MAX_MESSAGE_BYTES)),
        assignment_id: optional(deserialize),
        attempt: optional(integer(0..=u32::MAX)),
        task_digest: optional(deserialize),
        report: optional(deserialize),
    }
}

fn read_nic_report(value: Value) -> Result<NicReport, ValidationErrors> {
    let nic: NicReport = deserialize(value)?;
    let texts = [Some(&nic.endpoint), nic.iface.as_ref(), nic.disabled_reason.as_ref()];
    check_text_length(texts.into_iter().flatten())?;
    Ok(nic)
}

fn read_unavailable_path(value: Value) -> Result<UnavailablePath, ValidationErrors> {
    let mut path: UnavailablePath = deserialize(value)?;
    path.reason = path.reason.chars().take(MAX_REASON_BYTES).collect();
    Ok(path)
}

fn read_unavailable_endpoint(value: Value) -> Result<UnavailableEndpoint, ValidationErrors> {
    let mut endpoint: UnavailableEndpoint = deserialize(value)?;
    check_text_length([&endpoint.endpoint])?;
    endpoint.reason = endpoint.reason.chars().take(MAX_REASON_BYTES).collect();
    Ok(endpoint)
}

fn check_text_length<'a>(
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<(), ValidationErrors> {
    if texts.into_iter().any(|text| text.len() > MAX_NIC_TEXT_BYTES) {
        let detail = format!("a text of more than {MAX_NIC_TEXT_BYTES} bytes");
        return Err(ValidationErrors::single(detail));
    }
    Ok(())
}

fn read_root_ids(value: Value) -> Result<BTreeMap<String, String>, ValidationErrors> {
    let ids: BTreeMap<String, String> = deserialize(value)?;
    if ids.len() > MAX_STORAGE_PATHS || ids.values().any(|id| id.len() > MAX_LABEL_BYTES) {
        let limits = format!("{MAX_STORAGE_PATHS} ids of {MAX_LABEL_BYTES} bytes");
        return Err(ValidationErrors::single(format!("more than {limits}")));
    }
    Ok(ids)
}

fn read_storage_report(value: Value) -> Result<StorageReport, ValidationErrors> {
    let report: StorageReport = deserialize(value)?;
    let found = &report.fingerprint;
    check_text_length([&found.fs_type, &found.fs_id])?;
    // Of paths, which may be longer.
    if found.mount_source.len().max(found.path_in_mount.len()) > MAX_MOUNT_TEXT_BYTES {
        let detail = format!("a mount of more than {MAX_MOUNT_TEXT_BYTES} bytes");
        return Err(ValidationErrors::single(detail));
    }
    Ok(report)
}

fn read_storage_check(value: Value) -> Result<StorageCheckReport, ValidationErrors> {
    let mut report: StorageCheckReport = deserialize(value)?;
    if report.found.len().max(report.missing.len()) > MAX_PROBES {
        return Err(ValidationErrors::single(format!("more than {MAX_PROBES} probes")));
    }
    check_text_length(&report.sample)?;
    if let Some(error) = &mut report.error {
        *error = error.chars().take(MAX_REASON_BYTES).collect();
    }
    Ok(report)
}

fn read_labels(value: Value) -> Result<Labels, ValidationErrors> {
    let labels: Labels = deserialize(value)?;
    if labels.len() > MAX_LABELS {
        return Err(ValidationErrors::single(format!("more than {MAX_LABELS} labels")));
    }
    for part in labels.iter().flat_map(|(key, value)| [key, value]) {
        if !is_label_part(part) {
            return Err(ValidationErrors::single(format!(
                "{}: keys and values of labels are 1 to 63 characters out of A-Z a-z 0-9 . _ -",
                quote(part)
            )));
        }
    }
    Ok(labels)
}

/// Refuses addresses that another agent cannot connect to. Loopback is accepted: all agents may run on one host.
fn read_endpoint(value: Value) -> Result<Endpoint, ValidationErrors> {
    let endpoint: Endpoint = deserialize(value)?;
    // A name could lead agents to any host, and to another one each time.
    let Ok(address) = endpoint.address.parse::<IpAddr>() else {
        let detail = format!("{} is not an IP address", quote(&endpoint.address));
        return Err(ValidationErrors::single(detail));
    };
    let unreachable = match address.to_canonical() {
        // 169.254.169.254 serves the credentials of cloud machines: no agent may be directed to it.
        IpAddr::V4(v4) => {
            v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets() == [169, 254, 169, 254]
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    };
    if unreachable {
        let detail = format!("another agent cannot connect to the address {address}");
        return Err(ValidationErrors::single(detail));
    }
    Ok(endpoint)
}

/// The time of an agent, in any format: it is displayed only.
fn read_timestamp(value: Value) -> Result<Value, ValidationErrors> {
    match value {
        Value::Number(_) => Ok(value),
        other => string(MAX_LABEL_BYTES)(other).map(Value::String),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::storage::ProbeName;
    use crate::wire::sync::DEFAULT_CHUNK_MIB;
    use crate::wire::task::{TaskReport, WorkItem};
    use crate::wire::testing::storage_report;
    use crate::wire::worker::EndedCursor;
    use crate::wire::worker::{BandwidthUsage, WorkerStatus};
    use crate::wire::{AssignmentId, BytePath, Digest};
    use serde_json::json;

    fn error_pointers(problem: Problem) -> Vec<String> {
        assert_eq!((problem.status, problem.code.as_str()), (422, "invalid_fields"));
        problem.errors.into_iter().map(|e| e.pointer).collect()
    }

    fn parse_request(value: Value) -> Result<SubmitSync, Problem> {
        let read = |value| read_sync_request(value, DEFAULT_CHUNK_MIB);
        parse(value.to_string().as_bytes(), read)
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
        let SubmitSync { request, list, .. } = parse_request(doc).unwrap();
        assert_eq!(request.source_path.as_bytes(), b"/a/\xff");
        assert_eq!(list.unwrap()[0].paths[0].as_bytes(), b"\xffx");
    }

    #[test]
    fn every_validation_error_is_listed_at_once() {
        let problem = parse_request(json!({
            "source_path": "/a", "destination_path": "/a/b", "chunk_size_mb": 0,
            "file_list": ["ok", "../x", "", "/b/c", "a\0b"]
        }))
        .unwrap_err();
        assert!(problem.detail.starts_with("6 fields"), "{}", problem.detail);
        assert_eq!(
            error_pointers(problem),
            [
                "/chunk_size_mb",
                "/destination_path",
                "/file_list/1",
                "/file_list/2",
                "/file_list/3",
                "/file_list/4"
            ]
        );
    }

    // A field that is added to a document must be added to its reader as well.
    #[test]
    fn the_readers_know_every_field_of_the_documents() {
        let request = SyncRequest {
            request_id: Some("demo-1".parse().unwrap()),
            source_path: AbsPath::new("/a").unwrap(),
            destination_path: AbsPath::new("/b").unwrap(),
            source_workers: vec!["gpu-1".parse().unwrap()],
            destination_workers: vec!["gpu-*".parse().unwrap(), "@rack=3".parse().unwrap()],
            chunk_size_mb: 7,
            file_list: Some(vec![BytePath(b"x".to_vec())]),
            options: Default::default(),
            bwlimit: Some(1 << 20),
            run_as: None,
        };
        let read = parse_request(serde_json::to_value(&request).unwrap()).unwrap();
        assert_eq!(read.list.unwrap()[0].paths.len(), 1);
        assert_eq!(SyncRequest { file_list: None, ..request }, read.request);

        let heartbeat = WorkerHeartbeat {
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
            storages: vec![storage_report("/a", "nfs4", 7)],
            storage_checks: vec![StorageCheckReport {
                path: AbsPath::new("/a").unwrap(),
                made: Some(ProbeName::new([1; 16])),
                found: vec![ProbeName::new([2; 16])],
                missing: vec![ProbeName::new([3; 16])],
                sample: Some("5".into()),
                error: Some("e".into()),
            }],
            labels: [("rack".to_owned(), "3".to_owned())].into(),
            tickets: vec!["0.AA.AA".to_owned().into()],
            ended_seen: Some(EndedCursor { term: 5, position: 6 }),
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
        assert_eq!(read_heartbeat(serde_json::to_value(&heartbeat).unwrap()).unwrap(), heartbeat);

        let result = TaskResult {
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
        assert_eq!(read_result(serde_json::to_value(&result).unwrap()).unwrap(), result);
    }

    #[test]
    fn a_heartbeat_is_bounded_and_unreachable_endpoints_are_refused() {
        let parse_with = |field: &str, value: Value| {
            let mut doc = json!({"worker_id": "w", "status": "READY"});
            doc[field] = value;
            parse(doc.to_string().as_bytes(), read_heartbeat)
        };
        for address in ["127.0.0.1", "192.168.100.10", "fe80::1", "10.0.0.1:9000"] {
            assert!(parse_with("data_plane_endpoints", json!([address])).is_ok(), "{address}");
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
            "storage-1.lan",
            "localhost",
            "2852039166",
            "0xa9fea9fe",
            "169.254.43518",
            "127.1",
            "0",
        ] {
            let problem =
                parse_with("data_plane_endpoints", json!(["10.0.0.1", address])).unwrap_err();
            assert_eq!(error_pointers(problem), ["/data_plane_endpoints/1"], "{address}");
        }
        assert!(parse_with("storage_paths", json!(vec!["/a"; MAX_STORAGE_PATHS])).is_ok());
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
                error_pointers(parse_with(field, value).unwrap_err())[0]
                    .starts_with(&format!("/{field}"))
            );
        }
    }

    #[test]
    fn negative_and_overflowing_counters_are_refused() {
        for n in [json!(-1), json!(1.5), json!(18_446_744_073_709_551_616.0), json!("5")] {
            let doc = json!({"request_id": "r", "worker_id": "w", "success": true, "report": {"bytes_done": n}});
            let problem = parse(doc.to_string().as_bytes(), read_result).unwrap_err();
            assert_eq!(error_pointers(problem), ["/report/bytes_done"], "{n}");
        }
    }
}
