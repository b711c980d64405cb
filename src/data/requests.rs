//! The requests of other agents that are being executed here: so many at once, and when there are none.

use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

/// See the [module](self).
#[derive(Debug)]
pub struct Requests {
    permits: Semaphore,
    now: watch::Sender<Count>,
}

/// What is known of them at a time.
#[derive(Debug, Default)]
struct Count {
    /// How many are under way, those included that wait for a permit.
    under_way: usize,
    /// When the last one ended.
    ended: Option<Instant>,
}

/// One request, until it is dropped.
#[derive(Debug)]
pub struct UnderWay<'a> {
    all: &'a Requests,
    _permit: Option<SemaphorePermit<'a>>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.all.now.send_modify(|count| {
            count.under_way -= 1;
            count.ended = Some(Instant::now());
        });
    }
}

impl Requests {
    /// At most `most` are executed at once.
    pub fn new(most: usize) -> Self {
        Requests { permits: Semaphore::new(most), now: watch::Sender::default() }
    }

    /// Waits until one more may be executed.
    pub async fn begin(&self) -> UnderWay<'_> {
        self.now.send_modify(|count| count.under_way += 1);
        let mut request = UnderWay { all: self, _permit: None };
        // Never closed.
        request._permit = self.permits.acquire().await.ok();
        request
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.now.borrow().under_way
    }

    /// Resolves once none was under way for `time`; at once where none ever was.
    pub async fn are_over_for(&self, time: Duration) {
        let mut now = self.now.subscribe();
        loop {
            // The sender lives as long as `self`.
            let ended = now.wait_for(|count| count.under_way == 0).await.map(|count| count.ended);
            let Ok(Some(ended)) = ended else { return };
            let next = now.wait_for(|count| count.under_way > 0);
            if tokio::time::timeout_at(ended + time, next).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_none_ever_was_or_the_last_is_long_over_nothing_is_waited_for() {
        let (requests, begun) = (Requests::new(1), Instant::now());
        requests.are_over_for(Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(requests.begin().await);
        tokio::time::sleep(Duration::from_millis(700)).await;
        requests.are_over_for(Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        tokio::time::sleep(Duration::from_secs(9)).await;
        requests.are_over_for(Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_over_once_none_was_under_way_for_a_while() {
        let requests = Requests::new(1);
        let (one, two) = (requests.begin().await, async {
            let waited = requests.begin().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(waited);
            tokio::time::sleep(Duration::from_millis(900)).await;
            let last = requests.begin().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(last);
        });
        let begun = Instant::now();
        let first = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(requests.under_way(), 2, "one waits");
            drop(one);
        };
        let over = async {
            requests.are_over_for(Duration::from_secs(1)).await;
            begun.elapsed()
        };
        let ((), (), over) = tokio::join!(two, first, over);
        assert_eq!(over, Duration::from_millis(3_000 + 5_000 + 900 + 1_000 + 1_000));
        assert_eq!(requests.under_way(), 0);
    }
}
