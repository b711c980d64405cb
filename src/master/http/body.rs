//! Reads request bodies, with limits for each body, for all bodies together, and in time.

use crate::util::{checksum, units};
use crate::wire::problem::{Problem, ProblemCode};
use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The maximum time between two parts of a body (else 408).
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum time for a whole body (else 408).
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// Bodies up to this size do not count in the budget: the limit of connections limits their memory.
const UNBUDGETED_BODY_BYTES: usize = 4 << 10;
/// The size of a permit of the budget.
const BUDGET_UNIT_BYTES: usize = 4 << 10;
/// A larger body is decoded on a separate thread, so that it does not delay other requests.
const MAX_INLINE_DECODE_BYTES: usize = 256 << 10;

/// The memory for all bodies.
#[derive(Clone)]
pub(super) struct BodyBudget(Arc<Semaphore>);

impl BodyBudget {
    pub(super) fn new(bytes: usize) -> Self {
        BodyBudget(Arc::new(Semaphore::new(
            (bytes / BUDGET_UNIT_BYTES).min(Semaphore::MAX_PERMITS),
        )))
    }
}

/// A body and its part of the budget.
pub(super) struct BufferedBody {
    pub(super) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 over the limit, 415 for an encoded or multipart body, 408 for a body that is sent too slowly, 503 if the budget
/// is used up, 400 for a broken body or a wrong checksum.
pub(super) async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    budget: &BodyBudget,
) -> Result<BufferedBody, Problem> {
    check_content_type(headers)?;
    if body.size_hint().lower() > limit as u64 {
        return Err(body_too_large(limit));
    }
    let deadline = Instant::now() + BODY_TIMEOUT;
    let mut bytes = Vec::new();
    let mut permit: Option<OwnedSemaphorePermit> = None;
    loop {
        let frame_deadline = (Instant::now() + BODY_IDLE_TIMEOUT).min(deadline);
        let frame = match timeout_at(frame_deadline, body.frame()).await {
            Err(_) => return Err(body_timeout()),
            Ok(None) => break,
            Ok(Some(Err(e))) => return Err(body_read_failed(&e)),
            Ok(Some(Ok(frame))) => frame,
        };
        // Other frames are trailers, which are ignored.
        let Ok(data) = frame.into_data() else { continue };
        let len = bytes.len() + data.len();
        if len > limit {
            return Err(body_too_large(limit));
        }
        let have = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let need = len.saturating_sub(UNBUDGETED_BODY_BYTES).div_ceil(BUDGET_UNIT_BYTES);
        if need > have {
            let more = u32::try_from(need - have).unwrap_or(u32::MAX);
            // Without waiting: several bodies that each wait for more of the budget would be a deadlock.
            let more = Arc::clone(&budget.0)
                .try_acquire_many_owned(more)
                .map_err(|_| body_budget_exhausted())?;
            match &mut permit {
                Some(permit) => permit.merge(more),
                None => permit = Some(more),
            }
        }
        bytes.extend_from_slice(&data);
    }
    if !checksum::matches_header(
        headers.get(checksum::CHECKSUM_HEADER).map(HeaderValue::as_bytes),
        &bytes,
    ) {
        return Err(checksum_mismatch());
    }
    Ok(BufferedBody { bytes: bytes.into(), _permit: permit })
}

/// Decodes a body, then returns its part of the budget.
///
/// # Errors
/// Those of `decode`.
pub(super) async fn decode_body<T: Send + 'static>(
    body: BufferedBody,
    decode: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if body.bytes.len() <= MAX_INLINE_DECODE_BYTES {
        return decode(&body.bytes);
    }
    let decoded = tokio::task::spawn_blocking(move || decode(&body.bytes)).await;
    decoded.unwrap_or_else(|e| {
        tracing::error!(error = %e, "decoding a body failed");
        Err(Problem::new(ProblemCode::Internal, "the body could not be decoded"))
    })
}

/// Every content type except multipart is read as JSON, because `curl -d` declares a form.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: String| Problem::new(ProblemCode::UnsupportedMediaType, detail);
    for encoding in headers.get_all(CONTENT_ENCODING) {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
            return Err(refused("an encoded body is not accepted".to_owned())
                .with_hint("send it without Content-Encoding"));
        }
    }
    let content_type = headers.get(CONTENT_TYPE).map(|v| v.as_bytes().to_ascii_lowercase());
    if content_type.is_some_and(|value| value.starts_with(b"multipart/")) {
        return Err(refused("a multipart body is not accepted".to_owned())
            .with_hint("send the JSON document itself, with Content-Type: application/json"));
    }
    Ok(())
}

fn checksum_mismatch() -> Problem {
    let detail = format!("the body: {}; nothing was changed", checksum::CHECKSUM_MISMATCH);
    Problem::new(ProblemCode::ChecksumMismatch, detail).with_hint("send the same request again")
}

fn body_too_large(limit: usize) -> Problem {
    let limit = units::format_bytes(limit as u64);
    Problem::new(ProblemCode::BodyTooLarge, format!("the body is over the limit of {limit}"))
}

fn body_timeout() -> Problem {
    Problem::new(ProblemCode::BodyTimeout, "the body was not received in time")
}

fn body_budget_exhausted() -> Problem {
    Problem::new(
        ProblemCode::Overloaded,
        "too many large requests at once; this one changed nothing",
    )
    .with_hint("repeat the request after the time in Retry-After")
}

fn body_read_failed(error: &axum::Error) -> Problem {
    Problem::new(ProblemCode::BodyReadFailed, format!("the body could not be read: {error}"))
}
