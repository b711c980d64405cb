//! The requests of other agents that are executed here: their limit, and whether there are any.

use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

/// See the [module](self).
#[derive(Debug)]
pub struct ActiveRequests {
    permits: Semaphore,
    now: watch::Sender<Activity>,
}

/// How many there are.
#[derive(Debug, Default)]
struct Activity {
    /// How many are under way, those included that wait for a permit.
    active: usize,
    /// When the last one ended.
    last_ended: Option<Instant>,
}

/// One request, until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest<'a> {
    all: &'a ActiveRequests,
    _permit: Option<SemaphorePermit<'a>>,
}

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.all.now.send_modify(|count| {
            count.active -= 1;
            count.last_ended = Some(Instant::now());
        });
    }
}

impl ActiveRequests {
    /// At most `most` are executed at once.
    pub fn new(most: usize) -> Self {
        ActiveRequests { permits: Semaphore::new(most), now: watch::Sender::default() }
    }

    /// Waits until one more may be executed.
    pub async fn start(&self) -> ActiveRequest<'_> {
        self.now.send_modify(|count| count.active += 1);
        let mut request = ActiveRequest { all: self, _permit: None };
        // Never closed.
        request._permit = self.permits.acquire().await.ok();
        request
    }

    /// How many are under way.
    pub fn active(&self) -> usize {
        self.now.borrow().active
    }

    /// Resolves once none was under way for `time`; at once where none ever was.
    pub async fn wait_idle_for(&self, time: Duration) {
        let mut now = self.now.subscribe();
        loop {
            // The sender lives as long as `self`.
            let ended = now.wait_for(|count| count.active == 0).await.map(|count| count.last_ended);
            let Ok(Some(ended)) = ended else { return };
            let next = now.wait_for(|count| count.active > 0);
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
    async fn waiting_ends_at_once_without_requests_or_long_after_the_last_one() {
        let (requests, started) = (ActiveRequests::new(1), Instant::now());
        requests.wait_idle_for(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        drop(requests.start().await);
        tokio::time::sleep(Duration::from_millis(700)).await;
        requests.wait_idle_for(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        tokio::time::sleep(Duration::from_secs(9)).await;
        requests.wait_idle_for(Duration::from_secs(1)).await;
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_once_no_request_was_active_for_the_given_time() {
        let requests = ActiveRequests::new(1);
        let (one, two) = (requests.start().await, async {
            let waited = requests.start().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(waited);
            tokio::time::sleep(Duration::from_millis(900)).await;
            let last = requests.start().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(last);
        });
        let started = Instant::now();
        let first = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(requests.active(), 2, "one waits");
            drop(one);
        };
        let over = async {
            requests.wait_idle_for(Duration::from_secs(1)).await;
            started.elapsed()
        };
        let ((), (), over) = tokio::join!(two, first, over);
        assert_eq!(over, Duration::from_millis(3_000 + 5_000 + 900 + 1_000 + 1_000));
        assert_eq!(requests.active(), 0);
    }
}
