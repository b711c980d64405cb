//! Answers: JSON, or a problem document.

use crate::master::file_records::ChunkReceiver;
use crate::store::Backup;
use crate::util::checksum;
use crate::wire::problem::{self, Problem};
use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Seconds after which a request that was refused with 503 is worth another try.
const RETRY_AFTER_SECONDS: &str = "2";

/// Bytes of a file that are sent at a time.
const FILE_CHUNK_BYTES: usize = 256 << 10;
/// Pieces that wait for a slow reader.
const MAX_QUEUED_CHUNKS: usize = 4;

/// What a route gives.
pub(super) type RouteResult = Result<Response, ProblemResponse>;

/// A problem that is sent.
pub(super) struct ProblemResponse(pub(super) Problem);

impl From<Problem> for ProblemResponse {
    fn from(problem: Problem) -> Self {
        ProblemResponse(problem)
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let ProblemResponse(problem) = self;
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = serialize_response(status, problem::PROBLEM_CONTENT_TYPE, &problem);
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        // What remains of the body is not read.
        if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// `value` with status 200.
pub(super) fn ok_json(value: &impl Serialize) -> Response {
    json_response(StatusCode::OK, value)
}

/// `value` with `status`.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    serialize_response(status, "application/json", value)
}

/// Bytes that only an agent understands.
pub(super) fn binary_response(bytes: Vec<u8>) -> Response {
    checksummed_response(StatusCode::OK, "application/octet-stream", bytes)
}

/// Pieces as they come. One that can't be had breaks the connection off, so that nobody takes what
/// arrived for all.
pub(super) fn stream_response(kind: &'static str, pieces: ChunkReceiver) -> Response {
    let next = |mut pieces: ChunkReceiver| async move {
        let piece = pieces.recv().await?;
        if let Err(error) = &piece {
            tracing::error!(%error, "an answer can't be read to its end");
        }
        Some((piece, pieces))
    };
    let body = Body::from_stream(futures_util::stream::unfold(pieces, next));
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

/// The copy of a store, with its check.
pub(super) fn backup_response(backup: Backup) -> Response {
    let Backup { mut file, bytes, checksum: check, permit } = backup;
    let (pieces, receiver) = mpsc::channel(MAX_QUEUED_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let _until_sent = permit;
        loop {
            let mut piece = vec![0; FILE_CHUNK_BYTES];
            let read = match file.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // A client that is gone needs no error.
                    let _ = pieces.blocking_send(Err(e));
                    return;
                }
            };
            piece.truncate(read);
            if pieces.blocking_send(Ok(piece.into())).is_err() {
                return;
            }
        }
    });
    let mut response = stream_response("application/vnd.sqlite3", receiver);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.extend(
        HeaderValue::from_str(&check)
            .ok()
            .map(|c| (HeaderName::from_static(checksum::CHECKSUM_HEADER), c)),
    );
    response
}

fn serialize_response(status: StatusCode, kind: &'static str, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => checksummed_response(status, kind, text),
        Err(e) => {
            tracing::error!(error = %e, "an answer can't be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A body with its check.
fn checksummed_response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response {
    let check = HeaderValue::from_str(&checksum::header_value(&body));
    let kind = [(CONTENT_TYPE, HeaderValue::from_static(kind))];
    let mut response = (status, kind, Body::from(body)).into_response();
    response
        .headers_mut()
        .extend(check.ok().map(|c| (HeaderName::from_static(checksum::CHECKSUM_HEADER), c)));
    response
}
