//! Documents for the tests of the master and of the command line.

use super::AbsPath;
use super::storage::{
    StorageEvidence, StorageFingerprint, StorageReport, StorageView, StorageWorker,
};
use super::sync::{SyncPhase, SyncProgress, SyncState};
use super::worker::{WorkerState, WorkerStatus, WorkerView};
use jiff::Timestamp;

/// A queued sync from `/src` to `/dst`.
pub(crate) fn sync_progress(id: &str) -> SyncProgress {
    let at = "2026-02-03T14:10:00Z".parse().unwrap();
    SyncProgress {
        request_id: id.parse().unwrap(),
        short_id: None,
        state: SyncState::Queued,
        source_path: AbsPath::new("/src").unwrap(),
        destination_path: AbsPath::new("/dst").unwrap(),
        run_as: None,
        source_workers: Vec::new(),
        destination_workers: Vec::new(),
        source_storage: None,
        destination_storage: None,
        destinations: Vec::new(),
        transferred_bytes: 0,
        sent_bytes: 0,
        kept_bytes: 0,
        cloned_bytes: 0,
        actions: Default::default(),
        warnings: Default::default(),
        verified_files: 0,
        repaired_files: 0,
        integrity_errors: 0,
        options: Default::default(),
        bwlimit: None,
        total_bytes: 0,
        submitted_at: at,
        started_at: None,
        updated_at: at,
        ended_at: None,
        detail: Default::default(),
        phase: SyncPhase::Waiting,
        source_file_system: None,
        outcome: None,
        files_total: 0,
        files_done: 0,
        files_skipped: 0,
        files_failed: 0,
        dirs_total: 0,
        dirs_done: 0,
        dirs_failed: 0,
        failed_steps: Default::default(),
        bytes_skipped: 0,
        scan_done: false,
        unverified: 0,
        retries: 0,
        reason: None,
        stalled: None,
        rate: None,
        eta_seconds: None,
        errors: Vec::new(),
        error_counts: Default::default(),
        failures_unlisted: 0,
    }
}

/// A storage path on a file system of type `fs_type`; its directory has the inode `inode`.
pub(crate) fn storage_report(path: &str, fs_type: &str, inode: u64) -> StorageReport {
    StorageReport {
        path: AbsPath::new(path).unwrap(),
        local_path: None,
        declared: None,
        fingerprint: StorageFingerprint {
            fs_type: fs_type.to_owned(),
            mount_source: "server:/export".to_owned(),
            path_in_mount: "/".to_owned(),
            fs_id: "66d23c179d24472f".to_owned(),
            inode,
            birth_time: Some((1_600_000_000, 5)),
            device: 40,
            read_only: false,
        },
    }
}

/// A storage that only the worker `w1` sees.
pub(crate) fn storage_view(id: &str, path: &str) -> StorageView {
    StorageView {
        storage_id: id.parse().unwrap(),
        path: AbsPath::new(path).unwrap(),
        fs_type: Some("ext4".to_owned()),
        free_bytes: Some(1 << 40),
        workers: vec![StorageWorker {
            worker_id: "w1".parse().unwrap(),
            active: true,
            evidence: StorageEvidence::Single,
            local_path: None,
            mount_source: Some("/dev/sda1".to_owned()),
            error: None,
        }],
        not_compared_with: Vec::new(),
    }
}

/// A worker without storage paths.
pub(crate) fn worker_view(id: &str, active: bool) -> WorkerView {
    WorkerView {
        worker_id: id.parse().unwrap(),
        status: WorkerStatus::Idle,
        state: if active { WorkerState::Active } else { WorkerState::Inactive },
        active,
        last_heartbeat: Timestamp::UNIX_EPOCH,
        storage_paths: vec![],
        data_plane_endpoints: vec![],
        control_plane_address: None,
        labels: Default::default(),
        storage_ids: Default::default(),
        free_bytes: Default::default(),
        in_flight: 0,
        incoming_requests: 0,
        syncs: 0,
        slots: None,
        agent_version: None,
        reason: None,
        nics: vec![],
        unavailable_paths: vec![],
        unavailable_endpoints: vec![],
        drained: None,
    }
}
