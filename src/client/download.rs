//! Replies of any length: what became of each file of a sync, a copy of the store.

use super::url_text::error_chain;
use super::{ClientError, MasterClient, Request, error_of_answer};
use crate::wire::RequestId;
use crate::wire::entry_report::FileState;
use bytes::Bytes;
use reqwest::Method;

/// A reply of any length, read piece by piece.
#[derive(Debug)]
pub struct Download {
    url: String,
    response: reqwest::Response,
}

impl Download {
    /// The check of the whole reply that came with it; see [`seal::Running`](crate::util::checksum::ChecksumHasher).
    pub fn checksum(&self) -> Option<String> {
        let check = self.response.headers().get(crate::util::checksum::CHECKSUM_HEADER)?;
        check.to_str().ok().map(str::to_owned)
    }

    /// An error of this reply, where what came is not what was sent.
    pub(crate) fn corruption_error(&self) -> ClientError {
        ClientError::InvalidReply {
            url: self.url.clone(),
            status: Some(self.response.status().as_u16()),
            message: crate::util::checksum::CHECKSUM_MISMATCH.to_owned(),
        }
    }

    /// The next piece; `None` after the last one. Nothing may be taken for whole before that.
    ///
    /// # Errors
    /// The reply broke off, or no byte came for the request time-out.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response.chunk().await.map_err(|e| ClientError::InvalidReply {
            url: self.url.clone(),
            status: Some(self.response.status().as_u16()),
            message: format!("its reply broke off: {}", error_chain(&e)),
        })
    }
}

impl MasterClient {
    /// `GET /sync/{id}/files`: what became of each file, one JSON document
    /// ([`FileRecord`](crate::wire::entry_report::FileRecord)) a line; those that ended as one of `states`,
    /// or all where none is named.
    ///
    /// # Errors
    /// Problems 404 for an unknown id and 409 where it was not recorded, any [`ClientError`].
    pub async fn download_files(
        &self,
        id: &RequestId,
        states: &[FileState],
    ) -> Result<Download, ClientError> {
        let words: Vec<String> = states
            .iter()
            .filter_map(|state| Some(serde_json::to_value(state).ok()?.as_str()?.to_owned()))
            .collect();
        let query =
            if words.is_empty() { String::new() } else { format!("?state={}", words.join(",")) };
        self.start_download(&format!("/sync/{id}/files{query}")).await
    }

    /// `GET /sync/{id}/manifest`: the digest and name of each file, as `b3sum --check` reads them; with `others` those
    /// of the files whose names it refuses, with the reasons. Names are relative to the destination root.
    ///
    /// # Errors
    /// Problems 404 for an unknown id and 409 where it was not asked for or the sync goes on, any
    /// [`ClientError`].
    pub async fn download_manifest(
        &self,
        id: &RequestId,
        others: bool,
    ) -> Result<Download, ClientError> {
        let query = if others { "?lines=others" } else { "" };
        self.start_download(&format!("/sync/{id}/manifest{query}")).await
    }

    /// `GET /admin/backup`: the embedded store as one SQLite file, as of one instant.
    ///
    /// # Errors
    /// Problem 501 where the master keeps its state in Redis, any [`ClientError`].
    pub async fn download_backup(&self) -> Result<Download, ClientError> {
        self.start_download("/admin/backup").await
    }

    async fn start_download(&self, target: &str) -> Result<Download, ClientError> {
        let request = Request { is_streamed: true, ..self.new_request(Method::GET, target) };
        let mut answer = self.send_with_failover(request).await?;
        match answer.streaming_response.take() {
            Some(response) => Ok(Download { url: answer.url, response }),
            None => Err(error_of_answer(answer)),
        }
    }
}
