//! Waits for syncs until each has ended (also by deletion), the time limit has passed, or a signal stops the wait. An
//! outage of the master (a restart, a failover) is waited for.

use super::args::{ExitCodeArgs, WaitLimitArgs};
use super::error::{CliError, Result};
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

/// A longer outage of the master ends the wait: restarts and failovers take less.
const MAX_MASTER_OUTAGE: Duration = Duration::from_secs(300);
/// The time between two polls grows with the time waited, within these bounds.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The master's `Retry-After` is followed up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);

/// One sync that is waited for.
pub(super) struct WaitedSync {
    pub(super) id: RequestId,
    /// The last document received.
    pub(super) latest: Option<Reply<SyncProgress>>,
    tracker: Option<ProgressTracker>,
    /// `None` until it has ended.
    pub(super) exit: Option<Exit>,
    pub(super) was_deleted: bool,
}

/// The outcome of a wait.
pub(super) struct WaitOutcome {
    /// All syncs, in the order given.
    pub(super) syncs: Vec<WaitedSync>,
    /// Set if the wait ended before the syncs.
    pub(super) stopped_by: Option<Exit>,
    /// Set if a signal cancelled the syncs.
    pub(super) cancelled_by: Option<Exit>,
}

impl WaitOutcome {
    /// Applies `--error-on-no-transfer` to the syncs that completed.
    pub(super) fn with_no_transfer_exit(mut self, args: ExitCodeArgs) -> WaitOutcome {
        for sync in self.syncs.iter_mut().filter(|_| args.error_on_no_transfer) {
            let transferred = sync.latest.as_ref().is_none_or(|latest| latest.files_done > 0);
            if sync.exit == Some(Exit::Ok) && !transferred {
                sync.exit = Some(Exit::NoTransfer);
            }
        }
        self
    }

    /// The most severe exit code.
    pub(super) fn exit(&self) -> Exit {
        let exits = self.syncs.iter().filter_map(|sync| sync.exit);
        exits.chain(self.stopped_by).max().unwrap_or(Exit::Ok)
    }
}

pub(super) struct SyncWaiter<'a> {
    client: &'a MasterClient,
    monitor: &'a mut dyn ProgressMonitor,
    syncs: Vec<WaitedSync>,
    /// The syncs exist: a sync that the master does not find was deleted.
    submitted_here: bool,
    /// The begin of an outage of the master.
    unavailable_since: Option<Instant>,
    /// The signal that cancelled the syncs.
    cancelled_by: Option<Exit>,
    max_outage: Duration,
    /// How to call this program to wait again; `None` if the syncs end with it.
    ctl_command: Option<String>,
}

impl<'a> SyncWaiter<'a> {
    /// `submitted_here`: the master has just accepted the syncs.
    pub(super) fn new(
        client: &'a MasterClient,
        monitor: &'a mut dyn ProgressMonitor,
        ids: Vec<RequestId>,
        submitted_here: bool,
    ) -> Self {
        let sync =
            |id| WaitedSync { id, latest: None, tracker: None, exit: None, was_deleted: false };
        SyncWaiter {
            client,
            monitor,
            syncs: ids.into_iter().map(sync).collect(),
            submitted_here,
            unavailable_since: None,
            cancelled_by: None,
            max_outage: MAX_MASTER_OUTAGE,
            ctl_command: None,
        }
    }

    /// For syncs that continue without this program: errors name the command that waits again.
    pub(super) fn with_resume_hint(self, ctl_command: &str) -> Self {
        SyncWaiter { ctl_command: Some(ctl_command.to_owned()), ..self }
    }

    /// Waits until all syncs have ended, `limit` has passed or a signal stops the wait.
    ///
    /// # Errors
    /// The master is unavailable for too long, or its reply is not valid.
    pub(super) async fn run(
        mut self,
        limit: &WaitLimitArgs,
        signals: &mut UnboundedReceiver<SignalAction>,
    ) -> Result<WaitOutcome> {
        let started = Instant::now();
        let timeout = async {
            match limit.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timeout);
        let stopped_by = loop {
            // A poll that a signal interrupts can be repeated.
            tokio::select! {
                biased;
                Some(action) = signals.recv() => {
                    if let Some(exit) = self.apply_signal(action, limit) {
                        break Some(exit);
                    }
                }
                () = &mut timeout => break Some(Exit::TimedOut(limit.timeout_exit_code)),
                all_ended = self.poll_and_sleep(started) => {
                    if all_ended? {
                        break None;
                    }
                }
            }
        };
        self.emit(ProgressEvent::Finished);
        Ok(WaitOutcome { syncs: self.syncs, stopped_by, cancelled_by: self.cancelled_by })
    }

    fn emit(&mut self, event: ProgressEvent<'_>) {
        self.monitor.handle_event(event, Timestamp::now());
    }

    /// Returns the exit code if the signal stops the wait.
    fn apply_signal(&mut self, action: SignalAction, limit: &WaitLimitArgs) -> Option<Exit> {
        let exit = match action {
            SignalAction::Status => {
                for sync in &self.syncs {
                    if let (Some(latest), Some(tracker)) = (&sync.latest, &sync.tracker) {
                        let event = ProgressEvent::StatusRequested(latest, tracker);
                        self.monitor.handle_event(event, Timestamp::now());
                    }
                }
                return None;
            }
            SignalAction::Interrupt => Exit::Interrupted,
            SignalAction::Terminate => Exit::Terminated,
        };
        if !limit.cancel_on_interrupt || self.cancelled_by.is_some() {
            return Some(exit);
        }
        self.cancelled_by = Some(exit);
        self.emit(ProgressEvent::Note("cancelling… press ^C again to quit now"));
        None
    }

    /// Polls each sync that has not ended, then sleeps. Returns whether all have ended.
    async fn poll_and_sleep(&mut self, started: Instant) -> Result<bool> {
        let pause = self.poll_all().await?;
        if self.syncs.iter().all(|sync| sync.exit.is_some()) {
            return Ok(true);
        }
        let interval = (started.elapsed() / 10).clamp(MIN_POLL_INTERVAL, MAX_POLL_INTERVAL);
        tokio::time::sleep(pause.unwrap_or(interval)).await;
        Ok(false)
    }

    /// Polls each sync once. During an outage of the master it returns the time to wait before the next attempt.
    async fn poll_all(&mut self) -> Result<Option<Duration>> {
        for index in 0..self.syncs.len() {
            let sync = &self.syncs[index];
            if sync.exit.is_some() {
                continue;
            }
            let polled = match self.cancelled_by.is_some() {
                // A repeated cancel has no effect.
                true => self.client.cancel_sync(&sync.id).await,
                false => self.client.get_sync(&sync.id).await,
            };
            match polled {
                Ok(reply) => {
                    self.note_recovery();
                    self.record_progress(index, reply);
                }
                Err(e) if e.is_not_found() => {
                    self.note_recovery();
                    let sync = &mut self.syncs[index];
                    sync.was_deleted = self.submitted_here || sync.latest.is_some();
                    sync.exit =
                        Some(if sync.was_deleted { Exit::Cancelled } else { Exit::NotFound });
                }
                // A sync that has ended can't be cancelled.
                Err(e) if self.cancelled_by.is_some() && e.status() == Some(409) => {
                    let reply = self.client.get_sync(&self.syncs[index].id).await?;
                    self.record_progress(index, reply);
                }
                Err(e) if e.is_retryable() && self.can_keep_waiting() => {
                    let pause = e.retry_after().unwrap_or(MAX_POLL_INTERVAL).min(MAX_RETRY_AFTER);
                    self.note_outage(&e.to_string());
                    return Ok(Some(pause));
                }
                Err(e) => {
                    let hint = self.resume_hint().filter(|_| e.is_retryable());
                    let error = CliError::from(e);
                    return Err(CliError { hint: hint.or(error.hint), ..error });
                }
            }
        }
        Ok(None)
    }

    /// The command that waits again, for known syncs that continue without this program.
    fn resume_hint(&self) -> Option<String> {
        let ctl = self.ctl_command.as_ref().filter(|_| self.has_known_sync())?;
        let open = self.syncs.iter().filter(|sync| sync.exit.is_none());
        let ids: Vec<&str> = open.map(|sync| sync.id.as_str()).collect();
        let it = if ids.len() == 1 { "the sync continues" } else { "the syncs continue" };
        let ids = ids.join(" ");
        Some(format!("{it} without this program; to wait again: {ctl} sync wait {ids}"))
    }

    fn has_known_sync(&self) -> bool {
        self.submitted_here || self.syncs.iter().any(|sync| sync.latest.is_some())
    }

    /// An outage is waited for only after a first reply: before it, the URL may be wrong.
    fn can_keep_waiting(&self) -> bool {
        self.has_known_sync()
            && self.unavailable_since.is_none_or(|since| since.elapsed() < self.max_outage)
    }

    fn note_outage(&mut self, error: &str) {
        if self.unavailable_since.is_none() {
            self.unavailable_since = Some(Instant::now());
            let max = units::format_duration(self.max_outage);
            let text = format!("the master does not answer ({error}); trying for {max}");
            self.emit(ProgressEvent::Note(&text));
        }
    }

    fn note_recovery(&mut self) {
        if let Some(since) = self.unavailable_since.take() {
            let outage = Duration::from_secs(since.elapsed().as_secs().max(1));
            let text =
                format!("the master answers again, after {}", units::format_duration(outage));
            self.emit(ProgressEvent::Note(&text));
        }
    }

    fn record_progress(&mut self, index: usize, reply: Reply<SyncProgress>) {
        let now = Instant::now();
        let sync = &mut self.syncs[index];
        if sync.latest.as_ref().is_some_and(|latest| latest.submitted_at != reply.submitted_at) {
            // It was deleted and its id given to another sync, which is not waited for.
            (sync.exit, sync.was_deleted) = (Some(Exit::Cancelled), true);
            return;
        }
        let tracker = sync.tracker.get_or_insert_with(|| ProgressTracker::new(&reply, now));
        tracker.update(&reply, now);
        self.monitor.handle_event(ProgressEvent::Updated(&reply, tracker), Timestamp::now());
        sync.exit = Exit::of_sync(&reply);
        sync.latest = Some(reply);
    }
}

#[cfg(test)]
mod tests;
