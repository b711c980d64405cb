//! Signals of a command that waits for syncs.

use super::error::{CliError, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalAction {
    /// SIGINT: stop.
    Interrupt,
    /// SIGTERM: stop.
    Terminate,
    /// SIGUSR1: print the progress.
    Status,
}

/// Catches SIGXFSZ, so that a write beyond the limit of file sizes (`ulimit -f`) fails with `EFBIG` and does not end the
/// process.
///
/// # Errors
/// The signal handler can't be installed.
pub(super) fn catch_file_size_signal() -> Result<()> {
    // The handler stays installed when the stream is dropped.
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(kind).map(drop).map_err(|e| CliError::new(format!("cannot catch SIGXFSZ: {e}")))
}

/// Catches SIGINT, SIGTERM and SIGUSR1 from now on.
///
/// # Errors
/// The signal handler can't be installed.
pub(super) fn listen_for_signals() -> Result<mpsc::UnboundedReceiver<SignalAction>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let kinds = [
        (SignalKind::interrupt(), SignalAction::Interrupt),
        (SignalKind::terminate(), SignalAction::Terminate),
        (SignalKind::user_defined1(), SignalAction::Status),
    ];
    for (kind, action) in kinds {
        let mut stream =
            signal(kind).map_err(|e| CliError::new(format!("cannot catch signals: {e}")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(action).is_ok() {}
        });
    }
    Ok(receiver)
}
