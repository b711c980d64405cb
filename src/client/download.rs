//! Replies of any length: the records of the entries of a sync, its manifest, a backup of the store.

use super::url_text::{error_chain, with_query};
use super::{ClientError, MasterClient, Request, Result};
use crate::util::checksum::{CHECKSUM_HEADER, CHECKSUM_MISMATCH};
use crate::wire::RequestId;
use crate::wire::entry_report::FileState;
use bytes::Bytes;

/// A reply of any length, read in chunks.
#[derive(Debug)]
pub struct Download {
    url: String,
    response: reqwest::Response,
}

impl Download {
    /// The checksum of the whole reply from its header; see [`ChecksumHasher`](crate::util::checksum::ChecksumHasher).
    pub fn checksum(&self) -> Option<String> {
        self.response.headers().get(CHECKSUM_HEADER)?.to_str().ok().map(str::to_owned)
    }

    fn invalid(&self, message: String) -> ClientError {
        let status = Some(self.response.status().as_u16());
        ClientError::InvalidReply { url: self.url.clone(), status, message }
    }

    /// The error of a reply that does not match its checksum.
    pub(crate) fn corruption_error(&self) -> ClientError {
        self.invalid(CHECKSUM_MISMATCH.to_owned())
    }

    /// The next chunk; `None` after the last one. The reply is complete only then.
    ///
    /// # Errors
    /// The connection broke, or no byte arrived for the request timeout.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|e| self.invalid(format!("its reply broke off: {}", error_chain(&e))))
    }
}

impl MasterClient {
    /// `GET /sync/{id}/files`: the outcome of each entry, one [`FileRecord`](crate::wire::entry_report::FileRecord) per
    /// line; with `states` only those in one of them.
    ///
    /// # Errors
    /// Problems 404 for an unknown id and 409 for a sync without records, any [`ClientError`].
    pub async fn download_files(&self, id: &RequestId, states: &[FileState]) -> Result<Download> {
        let names = states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(",");
        let names = Some(names.as_str()).filter(|names| !names.is_empty());
        self.start_download(with_query(&format!("/sync/{id}/files"), &[("state", names)])).await
    }

    /// `GET /sync/{id}/manifest`: the digest and name of each file, as `b3sum --check` reads them; with `others` those
    /// of the files with names that it refuses, with the reasons. Names are relative to the destination root.
    ///
    /// # Errors
    /// Problems 404 for an unknown id and 409 for a sync without a manifest or that has not ended, any
    /// [`ClientError`].
    pub async fn download_manifest(&self, id: &RequestId, others: bool) -> Result<Download> {
        let query = if others { "?lines=others" } else { "" };
        self.start_download(format!("/sync/{id}/manifest{query}")).await
    }

    /// `GET /admin/backup`: the embedded store as one SQLite file, as of one instant.
    ///
    /// # Errors
    /// Problem 501 if the master keeps its state in Redis, any [`ClientError`].
    pub async fn download_backup(&self) -> Result<Download> {
        self.start_download("/admin/backup").await
    }

    async fn start_download(&self, target: impl Into<String>) -> Result<Download> {
        let request = Request { is_streamed: true, ..self.new_query(target) };
        let mut reply = self.send_with_failover(request).await?;
        match reply.streaming_response.take() {
            Some(response) => Ok(Download { url: reply.url, response }),
            None => Err(reply.into_error()),
        }
    }
}
