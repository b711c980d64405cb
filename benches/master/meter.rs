//! Latencies of requests, and CPU and memory of processes.

use anyhow::Context as _;
use parking_lot::Mutex;
use std::time::Duration;

/// The latencies of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Vec<Duration>>);

impl Meter {
    pub(crate) fn record(&self, took: Duration) {
        self.0.lock().push(took);
    }

    fn drain(&self) -> Vec<Duration> {
        std::mem::take(&mut self.0.lock())
    }

    fn print(&self, name: &str, over: Duration) {
        let mut all = self.drain();
        all.sort_unstable();
        let Some(last) = all.len().checked_sub(1) else { return };
        let ms = |share: usize| all[last * share / 1000].as_secs_f64() * 1000.0;
        println!(
            "  {name:<34} {:>9} {:>9.0} /s   p50 {:>8.2}  p99 {:>8.2}  max {:>8.2} ms",
            all.len(),
            all.len() as f64 / over.as_secs_f64(),
            ms(500),
            ms(990),
            ms(1000),
        );
    }
}

/// The latencies of each kind of request.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) heartbeat: Meter,
    /// From a submit to the assignment of its scan.
    pub(crate) submit_to_assignment: Meter,
    /// Polls that got work, including the wait.
    pub(crate) poll: Meter,
    pub(crate) manifest: Meter,
    pub(crate) page: Meter,
    pub(crate) result: Meter,
    pub(crate) progress: Meter,
    pub(crate) failed: Meter,
}

impl Meters {
    fn all(&self) -> [(&'static str, &Meter); 8] {
        [
            ("heartbeats", &self.heartbeat),
            ("submit to the scan's assignment", &self.submit_to_assignment),
            ("assignments (polls that got work)", &self.poll),
            ("manifests", &self.manifest),
            ("pages", &self.page),
            ("results", &self.result),
            ("progress", &self.progress),
            ("FAILED requests", &self.failed),
        ]
    }

    /// Prints the latencies of the last `over`, and clears them.
    pub(crate) fn print(&self, over: Duration) {
        self.all().iter().for_each(|(name, meter)| meter.print(name, over));
    }

    pub(crate) fn clear(&self) {
        self.all().iter().for_each(|(_, meter)| drop(meter.drain()));
    }
}

/// Clock ticks per second in the interfaces of the kernel (`USER_HZ`): 100 on all supported platforms.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// A process on this host.
#[derive(Debug)]
pub(crate) struct Process(u32);

/// CPU and memory of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResourceUsage {
    /// User and system time, in seconds.
    pub(crate) cpu_seconds: f64,
    /// The resident size.
    pub(crate) rss_bytes: u64,
    /// The maximum of the resident size.
    pub(crate) peak_rss_bytes: u64,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        Process(pid)
    }

    /// Since its start (`proc(5)`).
    ///
    /// # Errors
    /// The process has ended.
    pub(crate) fn usage(&self) -> anyhow::Result<ResourceUsage> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.0);
            std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        // The name in brackets may contain any character; the third field follows it.
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.unwrap_or(0) << 10
        };
        let cpu = (ticks(11) + ticks(12)) as f64 / CLOCK_TICKS_PER_SECOND;
        Ok(ResourceUsage {
            cpu_seconds: cpu,
            rss_bytes: kib("VmRSS:"),
            peak_rss_bytes: kib("VmHWM:"),
        })
    }
}
