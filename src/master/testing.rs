//! Fixtures of the tests of the master.

use super::handle::MasterHandle;
use super::http::read_sync_request;
use crate::wire::problem::Problem;
use crate::wire::sync::{DEFAULT_CHUNK_MIB, SubmitReply, SyncRequest};

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
