//! What is shown of syncs while the program waits for them. The waiting reports [`ProgressEvent`]s to a
//! [`ProgressMonitor`]; only the live view knows of terminals.
//!
//! What is shown is honest: no share and no remaining time before the scan is done, never 100 % and
//! never "0 s left" before the sync has ended.

mod live;
mod plain;
mod tracker;

#[cfg(test)]
pub(super) use plain::progress_line as plain_line;
pub use tracker::{ProgressTracker, percent_done};

use super::args::{GlobalArgs, ProgressMode};
use super::console;
use crate::wire::sync::SyncProgress;
use jiff::Timestamp;
use std::io::IsTerminal;

/// Something that a watcher may want to see.
#[derive(Debug)]
pub enum ProgressEvent<'a> {
    /// A sync was looked at; its [`ProgressTracker`] has seen it.
    Updated(&'a SyncProgress, &'a ProgressTracker),
    /// Somebody wants to see a line now (SIGUSR1).
    StatusRequested(&'a SyncProgress, &'a ProgressTracker),
    /// Something to tell besides.
    Note(&'a str),
    /// There is nothing more to watch: whatever is drawn in place goes away.
    Finished,
}

/// Shows events.
pub trait ProgressMonitor: Send {
    /// Takes one event; `now` stamps lines.
    fn handle_event(&mut self, event: ProgressEvent<'_>, now: Timestamp);
}

/// Shows nothing but notes.
struct NotesOnly;

impl ProgressMonitor for NotesOnly {
    fn handle_event(&mut self, event: ProgressEvent<'_>, _: Timestamp) {
        if let ProgressEvent::Note(text) = event {
            console::print_note(&console::sanitize(text));
        }
    }
}

/// The monitor that the operator asked for.
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
