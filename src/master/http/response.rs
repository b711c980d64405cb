//! Responses: JSON, problem documents, and streams.

use crate::master::file_records::ChunkReceiver;
use crate::store::Backup;
use crate::util::checksum;
use crate::wire::problem::{self, Problem, ProblemCode};
use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// In seconds: when a request may be repeated after a 503.
const RETRY_AFTER_SECONDS: &str = "2";

/// The size of a chunk of a file.
const FILE_CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for a slow reader.
const MAX_QUEUED_CHUNKS: usize = 4;

pub(super) type RouteResult = Result<Response, ProblemResponse>;

/// The code of the problem that a response reports, as an extension of the response.
#[derive(Clone)]
pub(super) struct ResponseCode(pub(super) String);

/// A problem as a response.
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
        response.extensions_mut().insert(ResponseCode(problem.code));
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // The rest of the body is not read.
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

pub(super) fn binary_response(bytes: Vec<u8>) -> Response {
    checksummed_response(StatusCode::OK, "application/octet-stream", bytes)
}

/// A body in chunks. After an error the connection is closed without the last chunk, so that the client detects that
/// the body is incomplete.
pub(super) fn stream_response(content_type: &'static str, chunks: ChunkReceiver) -> Response {
    let next = |mut chunks: ChunkReceiver| async move {
        let chunk = chunks.recv().await?;
        if let Err(error) = &chunk {
            tracing::error!(%error, "a response ends early");
        }
        Some((chunk, chunks))
    };
    let body = Body::from_stream(futures_util::stream::unfold(chunks, next));
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}

/// The copy of a store, with its checksum.
pub(super) fn backup_response(backup: Backup) -> Response {
    let Backup { mut file, bytes, checksum, permit } = backup;
    let (chunks, receiver) = mpsc::channel(MAX_QUEUED_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        loop {
            let mut chunk = vec![0; FILE_CHUNK_BYTES];
            let read = match file.read(&mut chunk) {
                Ok(0) => return,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Fails if the client has disconnected.
                    let _ = chunks.blocking_send(Err(e));
                    return;
                }
            };
            chunk.truncate(read);
            if chunks.blocking_send(Ok(chunk.into())).is_err() {
                return;
            }
        }
    });
    let mut response = stream_response("application/vnd.sqlite3", receiver);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    insert_checksum(headers, &checksum);
    response
}

/// The 405; the header `Allow` is added by the caller.
pub(super) async fn method_not_allowed(method: Method) -> ProblemResponse {
    let detail = format!("{method} is not allowed here; see the Allow header");
    ProblemResponse(Problem::new(ProblemCode::MethodNotAllowed, detail))
}

fn serialize_response(
    status: StatusCode,
    content_type: &'static str,
    value: &impl Serialize,
) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => checksummed_response(status, content_type, text),
        Err(e) => {
            tracing::error!(error = %e, "a response cannot be serialized");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn checksummed_response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let checksum = checksum::header_value(&body);
    let content_type = [(CONTENT_TYPE, HeaderValue::from_static(content_type))];
    let mut response = (status, content_type, Body::from(body)).into_response();
    insert_checksum(response.headers_mut(), &checksum);
    response
}

fn insert_checksum(headers: &mut HeaderMap, checksum: &str) {
    let value = HeaderValue::from_str(checksum).ok();
    headers.extend(value.map(|v| (HeaderName::from_static(checksum::CHECKSUM_HEADER), v)));
}
