//! The recorded samples of the documents of the HTTP API and of tickets (`tests/formats`).

use super::admin::{
    AuthorityView, ConfirmClockReply, FinishRotationRequest, ReconcileReply, RequeuedTask,
    RotateTicketKeyReply,
};
use super::entry_report::{EntryAction, EntryWarning, FileRecord, FileState, Tally};
use super::join::{
    CreatedJoinToken, IssuedCertificate, JoinRequest, JoinTokenRequest, RevokeWorkerReply,
};
use super::leader::{Leader, MasterRole, Readiness, ReadinessStatus, StoreStatus};
use super::manifest::{
    Entry, EntryKind, FileListPart, FileVersion, Manifest, ManifestDir, Meta, Xattr,
};
use super::options::{
    Chown, Compare, DeleteOptions, FilterSpec, Links, PartNameKey, SyncOptions, Verify, WriteRules,
};
use super::outcome::{EntryError, ErrorClass};
use super::preserve::Preserve;
use super::problem::{FieldError, Problem};
use super::samples::Samples;
use super::storage::{
    StorageCheck, StorageCheckReport, StorageEvidence, StorageFingerprint, StorageList,
    StorageReport, StorageView, StorageWorker,
};
use super::sync::{
    DestinationProgress, FailedStep, ReassignReply, ReassignRequest, RetryRequest, StallInfo,
    SubmitReply, SyncOutcome, SyncPatch, SyncPhase, SyncProgress, SyncRequest, SyncState,
};
use super::task::{
    Assignment, Cursor, PageAction, PageReply, PoolMember, PruneReport, Relay, ResultOutcome,
    ResultReply, RootIdentity, RootState, ScanPage, TaskReport, TaskResult, TaskSpec, WorkItem,
};
use super::ticket::{Claims, DeleteGrant, PrunePermit, Verb, Verbs};
use super::token::{AuthStatus, CreatedToken, Right, Role, TokenList, TokenRequest};
use super::worker::{
    BandwidthUsage, DrainInfo, DrainReply, DrainRequest, Endpoint, ForgetWorkerReply,
    HeartbeatReply, NicReport, UnavailableEndpoint, UnavailablePath, WorkerHeartbeat, WorkerList,
    WorkerState, WorkerStatus, WorkerView,
};
use super::{Digest, RelPath};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_document_of_the_api_is_read_and_written_as_recorded() {
    let mut http = Samples::open("http");
    http.check_json::<SyncRequest>("sync_request");
    http.check_json::<SyncOptions>("sync_options");
    http.check_json::<Chown>("chown");
    http.check_json::<FilterSpec>("filter");
    http.check_json::<DeleteOptions>("delete_options");
    http.check_json::<SubmitReply>("submit_reply");
    http.check_json::<SyncProgress>("sync_progress");
    http.check_json::<StallInfo>("stall");
    http.check_json::<EntryError>("entry_error");
    http.check_json::<FileRecord>("file_record");
    http.check_json::<Tally>("tally");
    http.check_json::<EntryWarning>("entry_warning");
    http.check_json::<ReassignRequest>("reassign_request");
    http.check_json::<ReassignReply>("reassign_reply");
    http.check_json::<TokenRequest>("token_request");
    http.check_json::<CreatedToken>("created_token");
    http.check_json::<TokenList>("token_list");
    http.check_json::<JoinTokenRequest>("join_token_request");
    http.check_json::<CreatedJoinToken>("created_join_token");
    http.check_json::<JoinRequest>("join_request");
    http.check_json::<IssuedCertificate>("issued_certificate");
    http.check_json::<RevokeWorkerReply>("revoke_worker_reply");
    http.check_json::<AuthStatus>("auth_status");
    http.check_words::<Role>("words_role");
    http.check_words::<Right>("words_right");
    http.check_json::<WorkerHeartbeat>("heartbeat");
    http.check_json::<HeartbeatReply>("heartbeat_reply");
    http.check_json::<BandwidthUsage>("bandwidth_usage");
    http.check_json::<NicReport>("nic");
    http.check_json::<UnavailablePath>("unavailable_path");
    http.check_json::<UnavailableEndpoint>("unavailable_endpoint");
    http.check_json::<Endpoint>("endpoint");
    http.check_json::<WorkerView>("worker_view");
    http.check_json::<StorageReport>("storage_report");
    http.check_json::<StorageFingerprint>("storage_fingerprint");
    http.check_json::<StorageCheck>("storage_check");
    http.check_json::<StorageCheckReport>("storage_check_report");
    http.check_json::<StorageView>("storage_view");
    http.check_json::<StorageWorker>("storage_worker");
    http.check_json::<StorageList>("storage_list");
    http.check_json::<DestinationProgress>("destination");
    http.check_json::<WorkerList>("worker_list");
    http.check_json::<DrainRequest>("drain_request");
    http.check_json::<DrainInfo>("drain_info");
    http.check_json::<DrainReply>("drain_reply");
    http.check_json::<ForgetWorkerReply>("forget_worker_reply");
    http.check_json::<PoolMember>("pool_member");
    http.check_json::<Assignment>("assignment");
    http.check_json::<Relay>("relay");
    http.check_json::<Cursor>("cursor");
    http.check_json::<ScanPage>("scan_page");
    http.check_json::<RootState>("root_state");
    http.check_json::<RootIdentity>("root_identity");
    http.check_json::<PruneReport>("prune_report");
    http.check_json::<PageReply>("page_reply");
    http.check_json::<TaskResult>("task_result");
    http.check_json::<TaskReport>("task_report");
    http.check_json::<ResultReply>("result_reply");
    http.check_json::<WorkItem>("work_item_copy");
    http.check_json::<WorkItem>("work_item_large");
    http.check_json::<Leader>("leader");
    http.check_json::<StoreStatus>("store_status");
    http.check_json::<Readiness>("readiness");
    http.check_json::<Problem>("problem");
    http.check_json::<FieldError>("field_error");
    http.check_json::<ConfirmClockReply>("confirm_clock_reply");
    http.check_json::<RotateTicketKeyReply>("rotate_ticket_key_reply");
    http.check_json::<AuthorityView>("authority_view");
    http.check_json::<FinishRotationRequest>("finish_rotation_request");
    http.check_json::<RequeuedTask>("requeued_task");
    http.check_json::<ReconcileReply>("reconcile_reply");
    for kind in ["scan", "list", "copy", "range", "commit", "discard", "prune", "clean_up", "flush"]
    {
        let task = http.check_json::<TaskSpec>(&format!("task_{kind}"));
        assert_eq!(task.kind(), kind);
    }
    http.check_words::<SyncState>("words_sync_state");
    http.check_words::<SyncPhase>("words_sync_phase");
    http.check_words::<SyncOutcome>("words_sync_outcome");
    http.check_words::<FailedStep>("words_failed_step");
    http.check_words::<ErrorClass>("words_error_class");
    http.check_words::<WorkerStatus>("words_worker_status");
    http.check_words::<WorkerState>("words_worker_state");
    http.check_words::<EntryAction>("words_entry_action");
    http.check_words::<FileState>("words_file_state");
    http.check_words::<PageAction>("words_page_action");
    http.check_words::<ResultOutcome>("words_result_outcome");
    http.check_words::<StorageEvidence>("words_storage_evidence");
    http.check_words::<Links>("words_links");
    http.check_words::<Compare>("words_compare");
    http.check_words::<Verify>("words_verify");
    http.check_words::<MasterRole>("words_master_role");
    http.check_words::<ReadinessStatus>("words_readiness_status");
    // These are read by the API only (see `master::http`), so writing them is checked here.
    let retry = RetryRequest { request_id: Some("demo-2".parse().unwrap()), failed_only: true };
    http.check_written("retry_request", &retry);
    http.check_written(
        "sync_patch",
        &SyncPatch { bwlimit: Some(Some(1024)), add_destinations: vec!["gpu-9".parse().unwrap()] },
    );
    http.finish();
}

fn path(text: &[u8]) -> RelPath {
    RelPath::new(text).unwrap()
}

/// An entry of each kind, with every field set.
pub(crate) fn manifest() -> Manifest {
    let meta = Meta { mode: 0o640, uid: 1, gid: 2, mtime_sec: -5, mtime_nsec: 999_999_999 };
    let version = FileVersion { dev: 8, ino: 9, ctime_sec: 10, ctime_nsec: 11 };
    let entry = |name: &[u8], kind| Entry::new(path(name), kind, meta, version);
    Manifest {
        dirs: vec![ManifestDir { path: RelPath::root(), meta }],
        entries: vec![
            Entry {
                path: path(b"a\xff\n"),
                kind: EntryKind::File { size: 1 << 40 },
                meta,
                version,
                xattrs: vec![Xattr { name: b"user.a".to_vec(), value: b"\0b".to_vec() }],
                is_hardlinked: true,
                digest: Some(Digest([7; 32])),
                content_path: Some(path(b"first")),
                stored_bytes: None,
            },
            entry(b"d", EntryKind::Dir),
            entry(b"l", EntryKind::Symlink { target: b"../../etc".to_vec() }),
            entry(b"f", EntryKind::Special { format: 0o010_000, rdev: 7 }),
        ],
    }
}

#[test]
fn manifests_and_file_lists_are_read_and_written_as_recorded() {
    let mut blobs = Samples::open("blobs");
    blobs.check_bytes("manifest", &manifest(), Manifest::encode, |b| Manifest::decode(b).unwrap());
    let list = FileListPart { paths: vec![path(b"a"), path(b"b/\xff")] };
    blobs.check_bytes("file_list", &list, FileListPart::encode, |b| {
        FileListPart::decode(b).unwrap()
    });
    blobs.finish();
}

#[test]
fn claims_of_tickets_are_read_and_written_as_recorded() {
    let mut tickets = Samples::open("tickets");
    let rules = WriteRules {
        preserve: Preserve::parse_names(["mode", "acls"]).unwrap(),
        chown: Chown { uid: Some(0), gid: Some(7) },
        punch_zeros: true,
        strict_metadata: true,
        compare: Compare::Checksum,
        mtime_tolerance_ns: 5,
        update: true,
        ignore_existing: true,
        existing: true,
        dry_run: true,
        returns_digests: true,
        requires_digest: true,
        readback: true,
        delete: true,
        trash: Some(path(b"old/trash")),
        part_name_key: PartNameKey([3; 32]),
        chunk_bytes: 1 << 26,
    };
    let grant = DeleteGrant { grant_id: 4, max_entries: 5, incarnation: "i-1".to_owned() };
    let claims = |prune| Claims {
        sync: 7,
        request_id: "demo-1".to_owned(),
        assignment: [9; 16],
        attempt: 1,
        worker: "worker-a".to_owned(),
        destination: b"/data/\xff".to_vec(),
        expires: 1_793_588_645,
        rules: rules.clone(),
        prune,
        roots: BTreeMap::from([(1, 2)]),
        verbs: Verbs::of(&[Verb::Offer, Verb::Pack]),
        receivers: BTreeSet::from([3, 4]),
        run_as: Some("1000:100,27".parse().unwrap()),
    };
    tickets.check_cbor("write", &claims(None));
    tickets.check_cbor("count", &claims(Some(PrunePermit::Count)));
    tickets.check_cbor("delete", &claims(Some(PrunePermit::Delete(grant))));
    for (index, compare) in [Compare::SizeTime, Compare::Size].into_iter().enumerate() {
        let rules = WriteRules { compare, ..WriteRules::default() };
        tickets.check_cbor(&format!("rules_{index}"), &rules);
    }
    tickets.finish();
}
