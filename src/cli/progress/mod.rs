//! Progress of syncs during a wait, which passes [`ProgressEvent`]s to a [`ProgressMonitor`].
//!
//! There is no percentage and no remaining time before the scan is done, and never 100 % before the sync has ended.

mod live;
mod plain;
mod tracker;

#[cfg(test)]
pub(super) use plain::progress_line as plain_line;
pub use tracker::{ProgressTracker, percent_done};

use super::args::{GlobalArgs, ProgressMode};
use super::console;
use super::sanitize::sanitize;
use crate::wire::sync::SyncProgress;
use jiff::Timestamp;
use std::io::IsTerminal;

/// An event of a wait.
#[derive(Debug)]
pub enum ProgressEvent<'a> {
    /// A sync was looked at; its [`ProgressTracker`] has seen it.
    Updated(&'a SyncProgress, &'a ProgressTracker),
    /// The progress is to be shown now (SIGUSR1).
    StatusRequested(&'a SyncProgress, &'a ProgressTracker),
    /// A message.
    Note(&'a str),
    /// The wait has ended: a view that is drawn in place is removed.
    Finished,
}

/// Shows events.
pub trait ProgressMonitor: Send {
    /// `now` is the timestamp of lines.
    fn handle_event(&mut self, event: ProgressEvent<'_>, now: Timestamp);
}

/// Shows only messages.
struct NotesOnly;

impl ProgressMonitor for NotesOnly {
    fn handle_event(&mut self, event: ProgressEvent<'_>, _: Timestamp) {
        if let ProgressEvent::Note(text) = event {
            console::print_note(&sanitize(text));
        }
    }
}

/// The monitor for `--progress` and `--quiet`.
pub(super) fn new_monitor(global: &GlobalArgs) -> Box<dyn ProgressMonitor> {
    let terminal =
        std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    match global.progress {
        _ if global.quiet => Box::new(NotesOnly),
        ProgressMode::None => Box::new(NotesOnly),
        ProgressMode::Auto | ProgressMode::Tty if terminal => Box::new(live::LiveView::new()),
        _ => Box::new(plain::PlainLines::new(Box::new(console::print_note))),
    }
}
