//! What is shown of syncs while the program waits for them. The waiting reports [`Event`]s to a
//! [`Monitor`]; only the live view knows of terminals.
//!
//! What is shown is honest: no share and no remaining time before the scan is done, never 100 % and
//! never "0 s left" before the sync has ended.

mod live;
mod pace;
mod plain;

pub use pace::{Pace, percent};
#[cfg(test)]
pub(super) use plain::line as plain_line;

use super::args::{Global, ProgressMode};
use super::out;
use crate::wire::sync::SyncProgress;
use jiff::Timestamp;
use std::io::IsTerminal;

/// Something that a watcher may want to see.
#[derive(Debug)]
pub enum Event<'a> {
    /// A sync was looked at; its [`Limiters`] has seen it.
    Seen(&'a SyncProgress, &'a Pace),
    /// Somebody wants to see a line now (SIGUSR1).
    Asked(&'a SyncProgress, &'a Pace),
    /// Something to tell besides.
    Note(&'a str),
    /// There is nothing more to watch: whatever is drawn in place goes away.
    Finished,
}

/// Shows events.
pub trait Monitor: Send {
    /// Takes one event; `now` stamps lines.
    fn event(&mut self, event: Event<'_>, now: Timestamp);
}

/// Shows nothing but notes.
struct Silent;

impl Monitor for Silent {
    fn event(&mut self, event: Event<'_>, _: Timestamp) {
        if let Event::Note(text) = event {
            out::note(&out::clean(text));
        }
    }
}

/// The monitor that the operator asked for.
pub(super) fn monitor(global: &Global) -> Box<dyn Monitor> {
    let terminal =
        std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    match global.progress {
        _ if global.quiet => Box::new(Silent),
        ProgressMode::None => Box::new(Silent),
        ProgressMode::Auto | ProgressMode::Tty if terminal => Box::new(live::Live::new()),
        _ => Box::new(plain::Plain::new(Box::new(out::note))),
    }
}
