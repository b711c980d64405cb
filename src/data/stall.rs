//! Bodies: how long a transfer may stall, and what is left of refused requests.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A transfer that moves less than [`MIN_PROGRESS_BYTES`] in this much waiting time fails.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(90);
/// See [`STALL_TIMEOUT`].
pub const MIN_PROGRESS_BYTES: u64 = 4096;

/// Resolves when `moved` does not change for `patience`.
pub async fn wait_for_stall(progress: Arc<AtomicU64>, timeout: Duration) {
    let mut last = progress.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(timeout).await;
        let now = progress.load(Ordering::Relaxed);
        if now < last + MIN_PROGRESS_BYTES {
            return;
        }
        last = now;
    }
}

/// Reads and drops what is left of a refused body, so that the refusal can be read before the
/// connection ends: at most `limit` bytes and `patience`.
pub async fn drain_body(mut body: Incoming, limit: u64, timeout: Duration) {
    let mut left = limit;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let n = frame.data_ref().map_or(0, |d| d.len() as u64);
            if n > left {
                return;
            }
            left -= n;
        }
    };
    let _ = tokio::time::timeout(timeout, all).await;
}
