//! Reads request bodies, with limits for each body, for all bodies together, and in time.

use super::body_budget::Reservation;
use crate::util::{checksum, units};
use crate::wire::problem::{Problem, ProblemCode};
use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A body must come at a rate of its floor, after this time in which it may be slower (else 408).
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// The floor, in bytes per second, for the first part of a body: also the slowest links have it.
const MIN_RATE: u32 = 512;
/// The length of that part; it needs little memory.
const SMALL_BODY_BYTES: usize = 64 << 10;
/// The floor for the rest of a body, in bytes per second.
const MIN_LARGE_RATE: u32 = 16 << 10;
/// The maximum time for a whole body (else 408).
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// A larger body is decoded on a separate thread, so that it does not delay other requests.
const MAX_INLINE_DECODE_BYTES: usize = 256 << 10;

/// A body and its part of the budget.
pub(super) struct BufferedBody {
    pub(super) bytes: Bytes,
    reservation: Reservation,
}

/// Until when the next part of a body must arrive.
struct Patience {
    /// … if nothing more arrives.
    until: Instant,
    end: Instant,
}

impl Patience {
    fn new() -> Self {
        let now = Instant::now();
        Patience { until: now + BODY_PATIENCE, end: now + BODY_TIMEOUT }
    }

    fn deadline(&self) -> Instant {
        self.until.min(self.end)
    }

    /// A part has arrived, with which the body has `len` bytes. What came fast gives no more than the patience at the
    /// start: otherwise the memory of a large body could be held with a few bytes now and then.
    fn extend(&mut self, part: usize, len: usize) {
        let rate = if len <= SMALL_BODY_BYTES { MIN_RATE } else { MIN_LARGE_RATE };
        let earned = Duration::from_secs_f64(part as f64 / f64::from(rate));
        self.until = (self.until + earned).min(Instant::now() + BODY_PATIENCE);
    }
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 over the limit, 415 for an encoded or multipart body, 408 for a body that is sent too slowly, 503 if the budget
/// is used up or another address needs it, 400 for a broken body or a wrong checksum.
pub(super) async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    reservation: Reservation,
) -> Result<BufferedBody, Problem> {
    check_content_type(headers)?;
    if body.size_hint().lower() > limit as u64 {
        return Err(body_too_large(limit));
    }
    let mut patience = Patience::new();
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = timeout_at(patience.deadline(), body.frame()) => frame,
            problem = reservation.given_up() => return Err(problem),
        };
        let frame = match frame {
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
        reservation.grow(len)?;
        patience.extend(data.len(), len);
        bytes.extend_from_slice(&data);
    }
    reservation.complete()?;
    if !checksum::matches_header(
        headers.get(checksum::CHECKSUM_HEADER).map(HeaderValue::as_bytes),
        &bytes,
    ) {
        return Err(checksum_mismatch());
    }
    Ok(BufferedBody { bytes: bytes.into(), reservation })
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
    let BufferedBody { bytes, reservation } = body;
    let decoder = reservation.decoder().await;
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes)).await;
    drop(decoder);
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
    let detail = format!(
        "the body did not arrive in time: after {} s it must come at {MIN_RATE} bytes per second, beyond {} at {} per second",
        BODY_PATIENCE.as_secs(),
        units::format_bytes(SMALL_BODY_BYTES as u64),
        units::format_bytes(u64::from(MIN_LARGE_RATE))
    );
    Problem::new(ProblemCode::BodyTimeout, detail)
}

fn body_read_failed(error: &axum::Error) -> Problem {
    Problem::new(ProblemCode::BodyReadFailed, format!("the body could not be read: {error}"))
}
