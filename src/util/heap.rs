//! Returns free memory to the kernel. The allocator of glibc keeps what is freed between blocks in use, and raises the
//! limits of what it keeps with each large block that is freed, so that a process would hold for good what it once
//! needed in a flood of requests.

use std::time::Duration;

/// How often the memory is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Free memory is returned when the process has grown by this many bytes, or by a quarter, since the last time.
const MIN_GROWTH_BYTES: u64 = 32 << 20;

/// Returns free memory whenever the process has grown. Ends only when it is dropped.
pub async fn release_free_memory() {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut bytes_before = resident_bytes();
    loop {
        interval.tick().await;
        let Some(bytes) = resident_bytes() else { continue };
        let before = bytes_before.unwrap_or(bytes);
        if !has_grown(before, bytes) {
            bytes_before = Some(before.min(bytes));
            continue;
        }
        // It takes the locks of the allocator, some milliseconds for each 100 MiB.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        bytes_before = resident_bytes();
        tracing::debug!(before = bytes, after = bytes_before, "returned free memory");
    }
}

fn has_grown(before: u64, now: u64) -> bool {
    now.saturating_sub(before) > MIN_GROWTH_BYTES.max(before / 4)
}

/// The memory of this process, in bytes. `None`: `/proc` cannot be read.
fn resident_bytes() -> Option<u64> {
    let sizes = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn trim() {
    // There is no safe function for it. SAFETY: `malloc_trim` may be called by any thread at any time, takes no pointer,
    // and touches free blocks only.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such function.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_a_quarter_or_32_mib() {
        let mib = |n: u64| n << 20;
        assert!(!has_grown(mib(10), mib(42)) && has_grown(mib(10), mib(43)));
        assert!(!has_grown(mib(400), mib(500)) && has_grown(mib(400), mib(501)));
        assert!(!has_grown(mib(500), mib(10)));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn blocks_that_were_freed_between_others_are_returned() {
        let block = |_| vec![1u8; 4 << 10];
        let mut blocks: Vec<Vec<u8>> = (0..32 << 10).map(block).collect();
        let full = resident_bytes().unwrap();
        let mut n = 0;
        // The last one stays, so that the allocator cannot cut the end of the heap.
        blocks.retain(|_| {
            n += 1;
            n == 32 << 10
        });
        trim();
        let after = resident_bytes().unwrap();
        assert!(after + (64 << 20) < full, "{full} {after}");
        drop(blocks);
    }
}
