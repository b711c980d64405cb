//! Returns free memory to the kernel. The allocator of glibc keeps what is freed between blocks in use, and raises the
//! limits of what it keeps with each large block that is freed, so that a process would hold for good what it once
//! needed in a flood of requests.

use std::time::Duration;

/// How often the memory is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Free memory is returned when the process has grown or shrunk by this many bytes, or by a quarter, …
const MIN_CHANGE_BYTES: u64 = 32 << 20;
/// … so many times: what a flood used becomes free until the last of its connections have ended …
const REPETITIONS: u32 = 6;
/// … and after so many intervals in any case.
const MAX_IDLE_INTERVALS: u32 = 30;

/// When free memory is returned.
#[derive(Debug, Default)]
struct Trigger {
    /// After the last time.
    bytes_before: u64,
    repetitions: u32,
    idle_intervals: u32,
}

impl Trigger {
    /// Whether it is returned now that the process has this size.
    fn is_due(&mut self, bytes: u64) -> bool {
        if bytes.abs_diff(self.bytes_before) > MIN_CHANGE_BYTES.max(self.bytes_before / 4) {
            self.repetitions = REPETITIONS;
        }
        self.idle_intervals += 1;
        if self.repetitions == 0 && self.idle_intervals < MAX_IDLE_INTERVALS {
            return false;
        }
        self.repetitions = self.repetitions.saturating_sub(1);
        self.idle_intervals = 0;
        true
    }
}

/// Returns free memory when the size of the process has changed, and now and then. Ends only when it is dropped.
pub async fn release_free_memory() {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut trigger =
        Trigger { bytes_before: resident_bytes().unwrap_or_default(), ..Trigger::default() };
    loop {
        interval.tick().await;
        let Some(bytes) = resident_bytes() else { continue };
        if !trigger.is_due(bytes) {
            continue;
        }
        // It takes the locks of the allocator, some milliseconds for each 100 MiB.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        trigger.bytes_before = resident_bytes().unwrap_or(bytes);
        tracing::debug!(before = bytes, after = trigger.bytes_before, "returned free memory");
    }
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
    fn memory_is_returned_for_a_minute_after_a_change_and_every_five_minutes() {
        let mut trigger = Trigger { bytes_before: 100 << 20, ..Trigger::default() };
        let mut due =
            |mib: u64, times: u32| (0..times).filter(|_| trigger.is_due(mib << 20)).count() as u32;
        assert_eq!(due(132, 29), 0);
        assert_eq!(due(132, 31), 2, "now and then");
        assert_eq!(due(133, 1), 1, "32 MiB more");
        let mut trigger = Trigger { bytes_before: 400 << 20, ..Trigger::default() };
        assert!(!trigger.is_due(500 << 20) && trigger.is_due(501 << 20), "a quarter");
        trigger.bytes_before = 480 << 20;
        let again = (0..20).filter(|_| trigger.is_due(480 << 20)).count() as u32;
        assert_eq!(again, REPETITIONS - 1, "what is in use now may be free in a minute");
        assert!(trigger.is_due(300 << 20), "the flood has ended");
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
