//! Documents and a fake master for tests.

use crate::client::{ClientOptions, MasterClient};
use crate::wire::AbsPath;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::{SyncPhase, SyncProgress, SyncState};
use crate::wire::worker::{WorkerState, WorkerStatus, WorkerView};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A queued sync from `/src` to `/dst`.
pub(super) fn sync(id: &str) -> SyncProgress {
    let at = "2026-02-03T14:10:00Z".parse().unwrap();
    SyncProgress {
        request_id: id.parse().unwrap(),
        short_id: None,
        state: SyncState::Queued,
        source_path: AbsPath::new("/src").unwrap(),
        destination_path: AbsPath::new("/dst").unwrap(),
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

/// A failed entry, seen by worker `w1`.
pub(super) fn error(path: &str, operation: &str, errno: Option<&str>, message: &str) -> EntryError {
    let (operation, side) = match operation.rsplit_once(' ') {
        Some((verb, "source")) => (verb, Some(Side::Source)),
        Some((verb, "destination")) => (verb, Some(Side::Destination)),
        _ => (operation, None),
    };
    EntryError {
        errno: errno.map(str::to_owned),
        worker_id: Some("w1".parse().unwrap()),
        attempt: 1,
        class: ErrorClass::Permanent,
        ..EntryError::new(path.as_bytes(), side, operation, message)
    }
}

/// A worker that holds `/arch` (1 GiB free) and `/more`.
pub(super) fn worker(id: &str, active: bool) -> WorkerView {
    WorkerView {
        worker_id: id.parse().unwrap(),
        status: WorkerStatus::Idle,
        state: if active { WorkerState::Active } else { WorkerState::Inactive },
        active,
        last_heartbeat: "2026-02-03T14:10:00Z".parse().unwrap(),
        storage_paths: vec![AbsPath::new("/arch").unwrap(), AbsPath::new("/more").unwrap()],
        data_plane_endpoints: vec![
            serde_json::from_str(r#"{"iface": "ib0", "address": "10.0.0.2"}"#).unwrap(),
        ],
        control_plane_address: None,
        free_bytes: [("/arch".to_owned(), 1 << 30)].into(),
        in_flight: 0,
        incoming_requests: 0,
        syncs: 0,
        slots: Some(4),
        agent_version: None,
        reason: Some("no heartbeat".to_owned()),
        nics: vec![],
        unavailable_paths: vec![],
        unavailable_endpoints: vec![],
        drained: None,
    }
}

/// A master that answers one request with `body`, in small chunks. The task returns the request line.
pub(super) async fn fake_master(
    status: u16,
    body: &'static [u8],
) -> (MasterClient, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let request = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut raw = Vec::new();
        while !raw.windows(4).any(|w| w == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut raw).await.unwrap() > 0);
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for piece in body.chunks(7) {
            let size = format!("{:x}\r\n", piece.len());
            stream.write_all(&[size.as_bytes(), piece, b"\r\n"].concat()).await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&raw).lines().next().unwrap_or_default().to_owned()
    });
    (MasterClient::new(vec![url], ClientOptions::default()).unwrap(), request)
}
