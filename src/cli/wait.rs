//! Waiting for syncs: until each has ended in whatever way (deleted included), the time is up, or
//! the operator stops it. A master that is away for a while (a restart, a take-over) is waited for.

use super::args::{ExitCodeArgs, WaitLimitArgs};
use super::error::CliError;
use super::exit::Exit;
use super::progress::{ProgressEvent, ProgressMonitor, ProgressTracker};
use super::signals::SignalAction;
use crate::client::{MasterClient, Reply};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::sync::SyncProgress;
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// A master away for longer than this ends the waiting: restarts and take-overs are done by then.
const MAX_MASTER_OUTAGE: Duration = Duration::from_secs(300);
/// Bounds of the time between two looks; it grows with the time waited.
const POLL_INTERVAL_BOUNDS: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(500));

/// One sync that is waited for.
struct WatchedSync {
    id: RequestId,
    /// The last document.
    latest: Option<Reply<SyncProgress>>,
    tracker: Option<ProgressTracker>,
    exit: Option<Exit>,
}

/// What became of one sync.
pub(super) struct WaitedSync {
    /// Which.
    pub(super) id: RequestId,
    /// The last document seen; of a deleted sync the one before.
    pub(super) latest: Option<Reply<SyncProgress>>,
    /// How it ended, `None` while it goes on.
    pub(super) exit: Option<Exit>,
    /// It was deleted.
    pub(super) was_deleted: bool,
}

/// What became of the waiting.
pub(super) struct WaitOutcome {
    /// All syncs, in the order in which they were given.
    pub(super) syncs: Vec<WaitedSync>,
    /// Why the waiting ended before the syncs did.
    pub(super) stopped_by: Option<Exit>,
    /// A signal had the syncs cancelled.
    pub(super) cancelled_by: Option<Exit>,
}

impl WaitOutcome {
    /// The same with an end of its own for each sync that completed and transferred nothing, where that is
    /// asked for.
    pub(super) fn with_no_transfer_exit(mut self, end: ExitCodeArgs) -> WaitOutcome {
        for sync in self.syncs.iter_mut().filter(|_| end.error_on_no_transfer) {
            let transferred = sync.latest.as_ref().is_none_or(|seen| seen.files_done > 0);
            if sync.exit == Some(Exit::Ok) && !transferred {
                sync.exit = Some(Exit::NoTransfer);
            }
        }
        self
    }

    /// The worst end of all.
    pub(super) fn exit(&self) -> Exit {
        let ends = self.syncs.iter().filter_map(|s| s.exit);
        ends.chain(self.stopped_by).fold(Exit::Ok, Exit::worse)
    }
}

/// Waits for syncs.
pub(super) struct SyncWaiter<'a> {
    client: &'a MasterClient,
    monitor: &'a mut dyn ProgressMonitor,
    syncs: Vec<WatchedSync>,
    /// The syncs exist: one that the master does not know was deleted.
    submitted_here: bool,
    /// Since when the master has not answered.
    unavailable_since: Option<Instant>,
    /// A signal (this one) says that the syncs are to be cancelled.
    cancelled_by: Option<Exit>,
    max_outage: Duration,
    /// The program as it is called to wait again; `None`: the syncs end with it.
    ctl_command: Option<String>,
}

impl<'a> SyncWaiter<'a> {
    /// Waits for `ids`; `accepted` when the master has just taken them.
    pub(super) fn new(
        client: &'a MasterClient,
        monitor: &'a mut dyn ProgressMonitor,
        ids: Vec<RequestId>,
        accepted: bool,
    ) -> Self {
        let watches = ids
            .into_iter()
            .map(|id| WatchedSync { id, latest: None, tracker: None, exit: None })
            .collect();
        SyncWaiter {
            client,
            monitor,
            syncs: watches,
            submitted_here: accepted,
            unavailable_since: None,
            cancelled_by: None,
            max_outage: MAX_MASTER_OUTAGE,
            ctl_command: None,
        }
    }

    /// Syncs that go on without this program, which is called as `ctl`.
    pub(super) fn with_resume_hint(self, ctl: &str) -> Self {
        SyncWaiter { ctl_command: Some(ctl.to_owned()), ..self }
    }

    /// Waits until all have ended, `until` is reached or a signal says stop.
    ///
    /// # Errors
    /// The master is away for too long, or answers nonsense.
    pub(super) async fn run(
        mut self,
        until: &WaitLimitArgs,
        signals: &mut UnboundedReceiver<SignalAction>,
    ) -> Result<WaitOutcome, CliError> {
        let begun = Instant::now();
        let time_up = async {
            match until.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(time_up);
        let stopped = loop {
            // A look that a signal cuts short is only a GET: nothing is lost.
            tokio::select! {
                biased;
                Some(ask) = signals.recv() => {
                    if let Some(stop) = self.apply_signal(ask, until) {
                        break Some(stop);
                    }
                }
                () = &mut time_up => break Some(Exit::TimedOut(until.timeout_exit_code)),
                done = self.poll_and_sleep(begun) => {
                    if done? {
                        break None;
                    }
                }
            }
        };
        self.monitor.handle_event(ProgressEvent::Finished, Timestamp::now());
        let syncs = self.syncs.into_iter().map(|w| WaitedSync {
            was_deleted: w.exit == Some(Exit::Cancelled)
                && w.latest.as_ref().is_none_or(|s| Exit::of_sync(s) != w.exit),
            id: w.id,
            latest: w.latest,
            exit: w.exit,
        });
        Ok(WaitOutcome {
            syncs: syncs.collect(),
            stopped_by: stopped,
            cancelled_by: self.cancelled_by,
        })
    }

    /// What a signal means now: `Some` stops the waiting.
    fn apply_signal(&mut self, ask: SignalAction, until: &WaitLimitArgs) -> Option<Exit> {
        let stop = match ask {
            SignalAction::Status => {
                for watch in &self.syncs {
                    if let (Some(seen), Some(pace)) = (&watch.latest, &watch.tracker) {
                        self.monitor.handle_event(
                            ProgressEvent::StatusRequested(seen, pace),
                            Timestamp::now(),
                        );
                    }
                }
                return None;
            }
            SignalAction::Interrupt => Exit::Interrupted,
            SignalAction::Terminate => Exit::Terminated,
        };
        if !until.cancel_on_interrupt || self.cancelled_by.is_some() {
            return Some(stop);
        }
        self.cancelled_by = Some(stop);
        let told = "cancelling… press ^C again to quit now";
        self.monitor.handle_event(ProgressEvent::Note(told), Timestamp::now());
        None
    }

    /// Looks at each sync that has not ended, then rests. True when all have ended.
    async fn poll_and_sleep(&mut self, begun: Instant) -> Result<bool, CliError> {
        let pause = self.poll_all().await?;
        if self.syncs.iter().all(|w| w.exit.is_some()) {
            return Ok(true);
        }
        let usual = (begun.elapsed() / 10).clamp(POLL_INTERVAL_BOUNDS.0, POLL_INTERVAL_BOUNDS.1);
        tokio::time::sleep(pause.unwrap_or(usual)).await;
        Ok(false)
    }

    /// One look at each sync. A master that is away ends the round; the pause to make is returned.
    async fn poll_all(&mut self) -> Result<Option<Duration>, CliError> {
        for i in 0..self.syncs.len() {
            let watch = &self.syncs[i];
            if watch.exit.is_some() {
                continue;
            }
            let looked = match self.cancelled_by.is_some() {
                // Cancelling twice is as good as once.
                true => self.client.cancel_sync(&watch.id).await,
                false => self.client.get_sync(&watch.id).await,
            };
            match looked {
                Ok(reply) => {
                    self.note_recovery();
                    self.record_progress(i, reply);
                }
                Err(e) if e.is_not_found() => {
                    self.note_recovery();
                    let known = self.submitted_here || self.syncs[i].latest.is_some();
                    self.syncs[i].exit = Some(if known { Exit::Cancelled } else { Exit::NotFound });
                }
                // An ended sync can't be cancelled: look at it.
                Err(e) if self.cancelled_by.is_some() && e.status() == Some(409) => {
                    let reply = self.client.get_sync(&self.syncs[i].id).await?;
                    self.record_progress(i, reply);
                }
                Err(e) if e.is_retryable() && self.can_keep_waiting() => {
                    let pause = e
                        .retry_after()
                        .unwrap_or(POLL_INTERVAL_BOUNDS.1)
                        .min(Duration::from_secs(5));
                    self.note_outage(&e.to_string());
                    return Ok(Some(pause));
                }
                Err(e) if e.is_retryable() => {
                    let failure = CliError::from(e);
                    let known = self.ctl_command.as_ref().filter(|_| self.has_known_sync());
                    return Err(match known {
                        Some(ctl) => failure.with_hint(self.resume_hint(ctl)),
                        None => failure,
                    });
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    /// That what is waited for goes on, and the command that waits for it again.
    fn resume_hint(&self, ctl: &str) -> String {
        let open = self.syncs.iter().filter(|watch| watch.exit.is_none());
        let ids: Vec<&str> = open.map(|watch| watch.id.as_str()).collect();
        let it = if ids.len() == 1 { "the sync continues" } else { "the syncs continue" };
        format!("{it} without this program; to wait again: {ctl} sync wait {}", ids.join(" "))
    }

    fn has_known_sync(&self) -> bool {
        self.submitted_here || self.syncs.iter().any(|w| w.latest.is_some())
    }

    /// A master that never answered is no master that is away for a moment.
    fn can_keep_waiting(&self) -> bool {
        self.has_known_sync()
            && self.unavailable_since.is_none_or(|since| since.elapsed() < self.max_outage)
    }

    fn note_outage(&mut self, why: &str) {
        if self.unavailable_since.is_none() {
            self.unavailable_since = Some(Instant::now());
            let patience = units::format_duration(self.max_outage);
            let text = format!("the master does not answer ({why}); trying for {patience}");
            self.monitor.handle_event(ProgressEvent::Note(&text), Timestamp::now());
        }
    }

    fn note_recovery(&mut self) {
        if let Some(since) = self.unavailable_since.take() {
            let gone =
                units::format_duration(Duration::from_secs(since.elapsed().as_secs().max(1)));
            let text = format!("the master answers again, after {gone}");
            self.monitor.handle_event(ProgressEvent::Note(&text), Timestamp::now());
        }
    }

    fn record_progress(&mut self, i: usize, reply: Reply<SyncProgress>) {
        let now = Instant::now();
        let watch = &mut self.syncs[i];
        let another =
            watch.latest.as_ref().is_some_and(|seen| seen.submitted_at != reply.submitted_at);
        if another {
            // Deleted, and its id given to a new sync: that is not the one waited for.
            watch.exit = Some(Exit::Cancelled);
            return;
        }
        let pace = watch.tracker.get_or_insert_with(|| ProgressTracker::new(&reply, now));
        pace.update(&reply, now);
        self.monitor.handle_event(ProgressEvent::Updated(&reply, pace), Timestamp::now());
        watch.exit = Exit::of_sync(&reply);
        watch.latest = Some(reply);
    }
}

#[cfg(test)]
mod tests;
