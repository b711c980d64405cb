//! What the operator's signals ask of a program that waits.

use super::error::CliError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// A signal, by what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalAction {
    /// SIGINT: stop.
    Interrupt,
    /// SIGTERM: stop.
    Terminate,
    /// SIGUSR1: show how it stands.
    Status,
}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail with `EFBIG`, where the kernel would end the process:
/// a signal that is caught ends nothing.
///
/// # Errors
/// The system takes no more handlers.
pub(super) fn catch_file_size_signal() -> Result<(), CliError> {
    // The handler stays installed when the stream is dropped.
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(kind).map(drop).map_err(|e| CliError::new(format!("cannot catch SIGXFSZ: {e}")))
}

/// Catches SIGINT, SIGTERM and SIGUSR1 from now on.
///
/// # Errors
/// The system takes no more handlers.
pub(super) fn listen_for_signals() -> Result<mpsc::UnboundedReceiver<SignalAction>, CliError> {
    let (asks, receiver) = mpsc::unbounded_channel();
    let kinds = [
        (SignalKind::interrupt(), SignalAction::Interrupt),
        (SignalKind::terminate(), SignalAction::Terminate),
        (SignalKind::user_defined1(), SignalAction::Status),
    ];
    for (kind, ask) in kinds {
        let mut stream =
            signal(kind).map_err(|e| CliError::new(format!("cannot catch signals: {e}")))?;
        let asks = asks.clone();
        tokio::spawn(
            async move { while stream.recv().await.is_some() && asks.send(ask).is_ok() {} },
        );
    }
    Ok(receiver)
}
