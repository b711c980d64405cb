//! What goes through a connection, a NIC or a peer's endpoint, counted at the socket; and how fast it
//! goes where the network is what limits it.

use std::io::{IoSlice, Result};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Goodput is measured over at least this.
const MIN_SAMPLE_TIME: Duration = Duration::from_millis(200);
/// Old goodput counts for half after this.
const AVERAGE_HALF_LIFE: Duration = Duration::from_millis(700);
/// Goodput that was not measured again for this long is unknown.
const MAX_AVERAGE_AGE: Duration = Duration::from_secs(10);

/// Counts of bytes.
#[derive(Debug, Default)]
pub struct TrafficCounter {
    sent: AtomicU64,
    received: AtomicU64,
    /// Whether a write had to wait since the last call.
    was_blocked: AtomicBool,
    /// Whether the connection is to be closed without sending what is left.
    reset: AtomicBool,
}

impl TrafficCounter {
    /// Bytes that the kernel accepted for sending.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that came.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts `n` bytes that came.
    pub fn add_received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts `n` bytes that the kernel accepted for sending.
    pub fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }

    /// A write has to wait.
    pub fn mark_blocked(&self) {
        self.was_blocked.store(true, Ordering::Relaxed);
    }

    /// Both: it changes while anything moves.
    pub fn total(&self) -> u64 {
        self.sent().wrapping_add(self.received())
    }

    /// Makes the close of the connection drop what the kernel has not sent yet: it is of no use, and it
    /// would be sent as soon as the way is free.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// See [`TrafficCounter::reset_on_close`].
    pub fn resets_on_close(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// A connection that counts its bytes in several places.
#[derive(Debug)]
pub struct CountedStream {
    stream: TcpStream,
    counters: Vec<Arc<TrafficCounter>>,
}

impl CountedStream {
    /// Counts what goes over `stream` in each of `counters`.
    pub fn new(stream: TcpStream, counters: Vec<Arc<TrafficCounter>>) -> Self {
        CountedStream { stream, counters }
    }

    /// The same socket for a thread, and what counts its bytes.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn to_socket(&self) -> Result<(std::net::TcpStream, Vec<Arc<TrafficCounter>>)> {
        let socket = self.stream.as_fd().try_clone_to_owned()?;
        Ok((socket.into(), self.counters.clone()))
    }

    /// The first byte that comes, which stays to be read. `None` at the end.
    ///
    /// # Errors
    /// The error of the kernel.
    pub async fn peek_byte(&self) -> Result<Option<u8>> {
        let mut byte = [0];
        let found = self.stream.peek(&mut byte).await?;
        Ok((found > 0).then_some(byte[0]))
    }

    fn record_write(&self, result: Poll<Result<usize>>) -> Poll<Result<usize>> {
        for counter in &self.counters {
            match &result {
                Poll::Ready(Ok(n)) => counter.add_sent(*n as u64),
                Poll::Ready(Err(_)) => {}
                Poll::Pending => counter.mark_blocked(),
            }
        }
        result
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        if self.counters.iter().any(|counter| counter.resets_on_close()) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = (buf.filled().len() - before) as u64;
        for counter in &self.counters {
            counter.add_received(came);
        }
        result
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The goodput of one end of routes: a moving average of what it sends while it has content to send.
#[derive(Debug)]
pub struct GoodputMeter {
    /// What it measures.
    pub counter: Arc<TrafficCounter>,
    /// The sample that is being taken: since when, and what was sent then.
    sample: Option<(Instant, u64)>,
    /// The average in bytes per second, and when it was true.
    average: Option<(f64, Instant)>,
}

impl GoodputMeter {
    /// Measures what `counter` counts.
    pub fn new(counter: Arc<TrafficCounter>) -> Self {
        GoodputMeter { counter, sample: None, average: None }
    }

    /// To be called whenever content starts or stops to flow, and regularly: `busy` is whether any
    /// flows (or did up to now).
    pub fn sample_now(&mut self, busy: bool, now: Instant) {
        let sent = self.counter.sent();
        let Some((since, before)) = self.sample else {
            if busy {
                self.counter.was_blocked.store(false, Ordering::Relaxed);
                self.sample = Some((now, sent));
            }
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= MIN_SAMPLE_TIME {
            let pressed = self.counter.was_blocked.swap(false, Ordering::Relaxed);
            let speed = sent.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.update_average(speed, elapsed, pressed, now);
            self.sample = Some((now, sent));
        }
        if !busy {
            self.sample = None;
        }
    }

    /// What was never held up by the network is a lower bound only.
    fn update_average(&mut self, speed: f64, elapsed: Duration, pressed: bool, now: Instant) {
        let average = match self.average {
            Some((average, at)) if now.saturating_duration_since(at) < MAX_AVERAGE_AGE => {
                let keep = 0.5f64.powf(elapsed.as_secs_f64() / AVERAGE_HALF_LIFE.as_secs_f64());
                let mixed = average * keep + speed * (1.0 - keep);
                if pressed { mixed } else { mixed.max(average) }
            }
            _ if pressed => speed,
            _ => return,
        };
        self.average = Some((average, now));
    }

    /// The goodput in bytes per second, if it is known.
    pub fn goodput(&self, now: Instant) -> Option<f64> {
        let (average, at) = self.average?;
        (now.saturating_duration_since(at) < MAX_AVERAGE_AGE).then_some(average)
    }

    /// Drops what was measured.
    pub fn reset(&mut self) {
        (self.average, self.sample) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn record_sent(meter: &GoodputMeter, bytes: u64, pressed: bool) {
        meter.counter.sent.fetch_add(bytes, Ordering::Relaxed);
        meter.counter.was_blocked.store(pressed, Ordering::Relaxed);
    }

    #[test]
    fn goodput_follows_what_is_sent_while_the_network_is_the_limit() {
        let (mut meter, start) = (GoodputMeter::new(Arc::default()), Instant::now());
        assert_eq!(meter.goodput(start), None);
        meter.sample_now(true, start);
        record_sent(&meter, 10_000_000, true);
        meter.sample_now(true, after(start, 100));
        assert_eq!(meter.goodput(after(start, 100)), None, "too short");
        meter.sample_now(true, after(start, 1000));
        assert_eq!(meter.goodput(after(start, 1000)), Some(10e6));
        // A slower second counts for more than half.
        record_sent(&meter, 1_000_000, true);
        meter.sample_now(true, after(start, 2000));
        let slower = meter.goodput(after(start, 2000)).unwrap();
        assert!((1e6..5.5e6).contains(&slower), "{slower}");
        // A pause is no sample, and what had to wait for nothing is a lower bound.
        meter.sample_now(false, after(start, 2000));
        meter.sample_now(true, after(start, 5000));
        record_sent(&meter, 1, false);
        meter.sample_now(true, after(start, 6000));
        assert_eq!(meter.goodput(after(start, 6000)), Some(slower));
        assert_eq!(meter.goodput(after(start, 17_000)), None, "it is old");
    }

    #[test]
    fn a_reset_meter_measures_again_from_nothing() {
        let (mut meter, start) = (GoodputMeter::new(Arc::default()), Instant::now());
        meter.sample_now(true, start);
        record_sent(&meter, 10_000_000, true);
        meter.sample_now(true, after(start, 1000));
        meter.reset();
        assert_eq!(meter.goodput(after(start, 1000)), None);
        meter.sample_now(true, after(start, 2000));
        record_sent(&meter, 3_000_000, true);
        meter.sample_now(true, after(start, 3000));
        assert_eq!(meter.goodput(after(start, 3000)), Some(3e6), "nothing of the time before");
    }
}
