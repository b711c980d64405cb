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
const SAMPLE: Duration = Duration::from_millis(200);
/// Old goodput counts for half after this.
const HALF_LIFE: Duration = Duration::from_millis(700);
/// Goodput that was not measured again for this long says nothing any more.
const STALE: Duration = Duration::from_secs(10);

/// Counts of bytes.
#[derive(Debug, Default)]
pub struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    /// Whether a write had to wait since this was asked last.
    pressed: AtomicBool,
    /// Whether the connection is to be closed without sending what is left.
    reset: AtomicBool,
}

impl Flow {
    /// Bytes that the kernel took to be sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that came.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts `n` bytes that came.
    pub fn came(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts `n` bytes that the kernel took to be sent.
    pub fn went(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }

    /// A write has to wait.
    pub fn waits(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }

    /// Both: it changes while anything moves.
    pub fn moved(&self) -> u64 {
        self.sent().wrapping_add(self.received())
    }

    /// Makes the close of the connection drop what the kernel has not sent yet: nobody wants it, and it
    /// would be sent as soon as the way is free.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// See [`Flow::reset_on_close`].
    pub fn is_reset_on_close(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }
}

/// A connection whose bytes are counted in several places.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    flows: Vec<Arc<Flow>>,
}

impl Counted {
    /// Counts what goes over `stream` in each of `flows`.
    pub fn new(stream: TcpStream, flows: Vec<Arc<Flow>>) -> Self {
        Counted { stream, flows }
    }

    /// The socket, for who reads it in a thread, and what its bytes are counted in from now on.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn into_parts(self) -> Result<(std::net::TcpStream, Vec<Arc<Flow>>)> {
        let socket = self.stream.as_fd().try_clone_to_owned()?;
        Ok((socket.into(), self.flows.clone()))
    }

    fn wrote(&self, result: Poll<Result<usize>>) -> Poll<Result<usize>> {
        for flow in &self.flows {
            match &result {
                Poll::Ready(Ok(n)) => flow.went(*n as u64),
                Poll::Ready(Err(_)) => {}
                Poll::Pending => flow.waits(),
            }
        }
        result
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.flows.iter().any(|flow| flow.is_reset_on_close()) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = (buf.filled().len() - before) as u64;
        for flow in &self.flows {
            flow.came(came);
        }
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(result)
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
pub struct Meter {
    flow: Arc<Flow>,
    /// The sample that is being taken: since when, and what was sent then.
    sample: Option<(Instant, u64)>,
    /// The average in bytes per second, and when it was true.
    average: Option<(f64, Instant)>,
}

impl Meter {
    /// Measures what `flow` counts.
    pub fn new(flow: Arc<Flow>) -> Self {
        Meter { flow, sample: None, average: None }
    }

    /// What it measures.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// To be called whenever content begins or ends to flow, and now and then: `busy` says whether any
    /// flows (or did up to now).
    pub fn look(&mut self, busy: bool, now: Instant) {
        let sent = self.flow.sent();
        let Some((since, before)) = self.sample else {
            if busy {
                self.flow.pressed.store(false, Ordering::Relaxed);
                self.sample = Some((now, sent));
            }
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= SAMPLE {
            let pressed = self.flow.pressed.swap(false, Ordering::Relaxed);
            let speed = sent.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.learn(speed, elapsed, pressed, now);
            self.sample = Some((now, sent));
        }
        if !busy {
            self.sample = None;
        }
    }

    /// What was never held up by the network is a lower bound only.
    fn learn(&mut self, speed: f64, elapsed: Duration, pressed: bool, now: Instant) {
        let average = match self.average {
            Some((average, at)) if now.saturating_duration_since(at) < STALE => {
                let keep = 0.5f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64());
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
        (now.saturating_duration_since(at) < STALE).then_some(average)
    }

    /// What was measured says nothing about what comes.
    pub fn forget(&mut self) {
        (self.average, self.sample) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn sends(meter: &Meter, bytes: u64, pressed: bool) {
        meter.flow.sent.fetch_add(bytes, Ordering::Relaxed);
        meter.flow.pressed.store(pressed, Ordering::Relaxed);
    }

    #[test]
    fn goodput_follows_what_is_sent_while_the_network_is_the_limit() {
        let (mut meter, start) = (Meter::new(Arc::default()), Instant::now());
        assert_eq!(meter.goodput(start), None);
        meter.look(true, start);
        sends(&meter, 10_000_000, true);
        meter.look(true, after(start, 100));
        assert_eq!(meter.goodput(after(start, 100)), None, "too short");
        meter.look(true, after(start, 1000));
        assert_eq!(meter.goodput(after(start, 1000)), Some(10e6));
        // A slower second counts for more than half.
        sends(&meter, 1_000_000, true);
        meter.look(true, after(start, 2000));
        let slower = meter.goodput(after(start, 2000)).unwrap();
        assert!((1e6..5.5e6).contains(&slower), "{slower}");
        // A pause is no sample, and what had to wait for nothing is a lower bound.
        meter.look(false, after(start, 2000));
        meter.look(true, after(start, 5000));
        sends(&meter, 1, false);
        meter.look(true, after(start, 6000));
        assert_eq!(meter.goodput(after(start, 6000)), Some(slower));
        assert_eq!(meter.goodput(after(start, 17_000)), None, "it is old");
    }

    #[test]
    fn what_is_forgotten_is_measured_anew() {
        let (mut meter, start) = (Meter::new(Arc::default()), Instant::now());
        meter.look(true, start);
        sends(&meter, 10_000_000, true);
        meter.look(true, after(start, 1000));
        meter.forget();
        assert_eq!(meter.goodput(after(start, 1000)), None);
        meter.look(true, after(start, 2000));
        sends(&meter, 3_000_000, true);
        meter.look(true, after(start, 3000));
        assert_eq!(meter.goodput(after(start, 3000)), Some(3e6), "nothing of the time before");
    }
}
