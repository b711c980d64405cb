//! Documents and a fake master for tests.

pub(super) use crate::wire::testing::sync_progress as sync;

use crate::client::{ClientOptions, MasterClient};
use crate::wire::AbsPath;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::{DestinationProgress, SyncState};
use crate::wire::testing::worker_view;
use crate::wire::worker::WorkerView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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

/// A destination of 100 bytes in 10 files on the worker `id`, of which `percent` have arrived.
pub(super) fn destination(id: &str, state: SyncState, percent: u64) -> DestinationProgress {
    let percent = percent.min(100);
    DestinationProgress {
        request_id: format!("x.{id}").parse().unwrap(),
        storage_id: format!("s-{id}").parse().unwrap(),
        workers: vec![id.parse().unwrap()],
        state,
        outcome: None,
        transferred_bytes: percent,
        total_bytes: 100,
        bytes_skipped: 0,
        rate: (state == SyncState::Progress).then_some(1 << 20),
        files_total: 10,
        files_done: percent / 10,
        files_skipped: 0,
        failures: 0,
        integrity_errors: 0,
        reason: None,
    }
}

/// A worker that holds `/arch` (1 GiB free) and `/more`.
pub(super) fn worker(id: &str, active: bool) -> WorkerView {
    WorkerView {
        last_heartbeat: "2026-02-03T14:10:00Z".parse().unwrap(),
        storage_paths: vec![AbsPath::new("/arch").unwrap(), AbsPath::new("/more").unwrap()],
        data_plane_endpoints: vec![
            serde_json::from_str(r#"{"iface": "ib0", "address": "10.0.0.2"}"#).unwrap(),
        ],
        free_bytes: [("/arch".to_owned(), 1 << 30)].into(),
        slots: Some(4),
        reason: Some("no heartbeat".to_owned()),
        ..worker_view(id, active)
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
