//! Fixtures of the tests of the master.

use super::audit::AuditHandle;
use super::handle::MasterHandle;
use super::http::read_sync_request;
use crate::audit::{AuditEntry, AuditRecord, Origin};
use crate::config::{Env, MasterConfig, load_master};
use crate::wire::problem::Problem;
use crate::wire::sync::{DEFAULT_CHUNK_MIB, SubmitReply, SyncRequest};
use std::path::Path;
use tokio::sync::watch;

/// An audit log in `dir`, with its configuration.
pub(super) fn audit_log(dir: &Path) -> (AuditHandle, watch::Sender<MasterConfig>) {
    let origin = Origin { installation: "site-a".into(), host: "head".into() };
    let (sender, config) = watch::channel(load_master(None, &Env::empty()).unwrap().config);
    (AuditHandle::start(dir, origin, config).unwrap(), sender)
}

/// The lines of the audit log in `dir`.
pub(super) fn audit_entries(dir: &Path) -> Vec<AuditEntry> {
    let (mut entries, files) = (Vec::new(), crate::audit::open_files(dir).unwrap());
    let (_, current) = files.last().unwrap();
    crate::audit::read_lines::<std::io::Error>(current, |line, _| {
        entries.push(serde_json::from_slice::<AuditRecord>(line)?.entry);
        Ok(())
    })
    .unwrap();
    entries
}

/// Submits a request as `POST /sync` does: through the reader of the document.
pub(super) async fn submit(
    handle: &MasterHandle,
    request: SyncRequest,
) -> Result<SubmitReply, Problem> {
    let document = serde_json::to_value(&request).unwrap();
    handle.submit(read_sync_request(document, DEFAULT_CHUNK_MIB).unwrap()).await
}

/// A request to copy `/src` to `/dst`.
pub(super) fn sync_request(id: &str) -> SyncRequest {
    serde_json::from_value(serde_json::json!({
        "request_id": id, "source_path": "/src", "destination_path": "/dst"
    }))
    .unwrap()
}
