//! Waiting for syncs: until each has ended in whatever way (deleted included), the time is up, or
//! the operator stops it. A master that is away for a while (a restart, a take-over) is waited for.

use super::args::{EndArgs, UntilArgs};
use super::exit::Exit;
use super::failure::Failure;
use super::progress::{Event, Monitor, Pace};
use super::signals::Ask;
use crate::client::{MasterClient, Reply};
use crate::util::units;
use crate::wire::RequestId;
use crate::wire::sync::SyncProgress;
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// A master away for longer than this ends the waiting: restarts and take-overs are done by then.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bounds of the time between two looks; it grows with the time waited.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// One sync that is waited for.
struct Watch {
    id: RequestId,
    /// The last document.
    seen: Option<Reply<SyncProgress>>,
    pace: Option<Pace>,
    end: Option<Exit>,
}

/// What became of one sync.
pub(super) struct Ended {
    /// Which.
    pub(super) id: RequestId,
    /// The last document seen; of a deleted sync the one before.
    pub(super) seen: Option<Reply<SyncProgress>>,
    /// How it ended, `None` while it goes on.
    pub(super) exit: Option<Exit>,
    /// It was deleted.
    pub(super) deleted: bool,
}

/// What became of the waiting.
pub(super) struct Waited {
    /// All syncs, in the order in which they were given.
    pub(super) syncs: Vec<Ended>,
    /// Why the waiting ended before the syncs did.
    pub(super) stopped: Option<Exit>,
    /// A signal had the syncs cancelled.
    pub(super) interrupted: Option<Exit>,
}

impl Waited {
    /// The same with an end of its own for each sync that completed and transferred nothing, where that is
    /// asked for.
    pub(super) fn judged(mut self, end: EndArgs) -> Waited {
        for sync in self.syncs.iter_mut().filter(|_| end.error_on_no_transfer) {
            let transferred = sync.seen.as_ref().is_none_or(|seen| seen.files_done > 0);
            if sync.exit == Some(Exit::Ok) && !transferred {
                sync.exit = Some(Exit::NoTransfer);
            }
        }
        self
    }

    /// The worst end of all.
    pub(super) fn exit(&self) -> Exit {
        let ends = self.syncs.iter().filter_map(|s| s.exit);
        ends.chain(self.stopped).fold(Exit::Ok, Exit::worst)
    }
}

/// Waits for syncs.
pub(super) struct Waiter<'a> {
    client: &'a MasterClient,
    monitor: &'a mut dyn Monitor,
    watches: Vec<Watch>,
    /// The syncs exist: one that the master does not know was deleted.
    accepted: bool,
    /// Since when the master has not answered.
    away: Option<Instant>,
    /// A signal (this one) says that the syncs are to be cancelled.
    cancel: Option<Exit>,
    patience: Duration,
    /// The program as it is called to wait again; `None`: the syncs end with it.
    resumed_by: Option<String>,
}

impl<'a> Waiter<'a> {
    /// Waits for `ids`; `accepted` when the master has just taken them.
    pub(super) fn new(
        client: &'a MasterClient,
        monitor: &'a mut dyn Monitor,
        ids: Vec<RequestId>,
        accepted: bool,
    ) -> Self {
        let watches =
            ids.into_iter().map(|id| Watch { id, seen: None, pace: None, end: None }).collect();
        Waiter {
            client,
            monitor,
            watches,
            accepted,
            away: None,
            cancel: None,
            patience: PATIENCE,
            resumed_by: None,
        }
    }

    /// Syncs that go on without this program, which is called as `ctl`.
    pub(super) fn resumed_by(self, ctl: &str) -> Self {
        Waiter { resumed_by: Some(ctl.to_owned()), ..self }
    }

    /// Waits until all have ended, `until` is reached or a signal says stop.
    ///
    /// # Errors
    /// The master is away for too long, or answers nonsense.
    pub(super) async fn run(
        mut self,
        until: &UntilArgs,
        signals: &mut UnboundedReceiver<Ask>,
    ) -> Result<Waited, Failure> {
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
                    if let Some(stop) = self.obey(ask, until) {
                        break Some(stop);
                    }
                }
                () = &mut time_up => break Some(Exit::TimedOut(until.timeout_exit_code)),
                done = self.look_and_rest(begun) => {
                    if done? {
                        break None;
                    }
                }
            }
        };
        self.monitor.event(Event::Finished, Timestamp::now());
        let syncs = self.watches.into_iter().map(|w| Ended {
            deleted: w.end == Some(Exit::Cancelled)
                && w.seen.as_ref().is_none_or(|s| Exit::of(s) != w.end),
            id: w.id,
            seen: w.seen,
            exit: w.end,
        });
        Ok(Waited { syncs: syncs.collect(), stopped, interrupted: self.cancel })
    }

    /// What a signal means now: `Some` stops the waiting.
    fn obey(&mut self, ask: Ask, until: &UntilArgs) -> Option<Exit> {
        let stop = match ask {
            Ask::Status => {
                for watch in &self.watches {
                    if let (Some(seen), Some(pace)) = (&watch.seen, &watch.pace) {
                        self.monitor.event(Event::Asked(seen, pace), Timestamp::now());
                    }
                }
                return None;
            }
            Ask::Interrupt => Exit::Interrupted,
            Ask::Terminate => Exit::Terminated,
        };
        if !until.cancel_on_interrupt || self.cancel.is_some() {
            return Some(stop);
        }
        self.cancel = Some(stop);
        let told = "cancelling… press ^C again to quit now";
        self.monitor.event(Event::Note(told), Timestamp::now());
        None
    }

    /// Looks at each sync that has not ended, then rests. True when all have ended.
    async fn look_and_rest(&mut self, begun: Instant) -> Result<bool, Failure> {
        let pause = self.round().await?;
        if self.watches.iter().all(|w| w.end.is_some()) {
            return Ok(true);
        }
        let usual = (begun.elapsed() / 10).clamp(PAUSE.0, PAUSE.1);
        tokio::time::sleep(pause.unwrap_or(usual)).await;
        Ok(false)
    }

    /// One look at each sync. A master that is away ends the round; the pause to make is returned.
    async fn round(&mut self) -> Result<Option<Duration>, Failure> {
        for i in 0..self.watches.len() {
            let watch = &self.watches[i];
            if watch.end.is_some() {
                continue;
            }
            let looked = match self.cancel.is_some() {
                // Cancelling twice is as good as once.
                true => self.client.cancel(&watch.id).await,
                false => self.client.progress(&watch.id).await,
            };
            match looked {
                Ok(reply) => {
                    self.back();
                    self.saw(i, reply);
                }
                Err(e) if e.is_not_found() => {
                    self.back();
                    let known = self.accepted || self.watches[i].seen.is_some();
                    self.watches[i].end =
                        Some(if known { Exit::Cancelled } else { Exit::NotFound });
                }
                // An ended sync can't be cancelled: look at it.
                Err(e) if self.cancel.is_some() && e.status() == Some(409) => {
                    let reply = self.client.progress(&self.watches[i].id).await?;
                    self.saw(i, reply);
                }
                Err(e) if e.is_temporary() && self.may_wait() => {
                    let pause = e.retry_after().unwrap_or(PAUSE.1).min(Duration::from_secs(5));
                    self.miss(&e.to_string());
                    return Ok(Some(pause));
                }
                Err(e) if e.is_temporary() => {
                    let failure = Failure::from(e);
                    let known = self.resumed_by.as_ref().filter(|_| self.knows_any());
                    return Err(match known {
                        Some(ctl) => failure.hinted(self.goes_on(ctl)),
                        None => failure,
                    });
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    /// That what is waited for goes on, and the command that waits for it again.
    fn goes_on(&self, ctl: &str) -> String {
        let open = self.watches.iter().filter(|watch| watch.end.is_none());
        let ids: Vec<&str> = open.map(|watch| watch.id.as_str()).collect();
        let it = if ids.len() == 1 { "the sync continues" } else { "the syncs continue" };
        format!("{it} without this program; to wait again: {ctl} sync wait {}", ids.join(" "))
    }

    fn knows_any(&self) -> bool {
        self.accepted || self.watches.iter().any(|w| w.seen.is_some())
    }

    /// A master that never answered is no master that is away for a moment.
    fn may_wait(&self) -> bool {
        self.knows_any() && self.away.is_none_or(|since| since.elapsed() < self.patience)
    }

    fn miss(&mut self, why: &str) {
        if self.away.is_none() {
            self.away = Some(Instant::now());
            let patience = units::format_duration(self.patience);
            let text = format!("the master does not answer ({why}); trying for {patience}");
            self.monitor.event(Event::Note(&text), Timestamp::now());
        }
    }

    fn back(&mut self) {
        if let Some(since) = self.away.take() {
            let gone =
                units::format_duration(Duration::from_secs(since.elapsed().as_secs().max(1)));
            let text = format!("the master answers again, after {gone}");
            self.monitor.event(Event::Note(&text), Timestamp::now());
        }
    }

    fn saw(&mut self, i: usize, reply: Reply<SyncProgress>) {
        let now = Instant::now();
        let watch = &mut self.watches[i];
        let another =
            watch.seen.as_ref().is_some_and(|seen| seen.submitted_at != reply.submitted_at);
        if another {
            // Deleted, and its id given to a new sync: that is not the one waited for.
            watch.end = Some(Exit::Cancelled);
            return;
        }
        let pace = watch.pace.get_or_insert_with(|| Pace::new(&reply, now));
        pace.see(&reply, now);
        self.monitor.event(Event::Seen(&reply, pace), Timestamp::now());
        watch.end = Exit::of(&reply);
        watch.seen = Some(reply);
    }
}

#[cfg(test)]
mod tests;
