//! The shutdown of the process: one token stops all tasks.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Cancelled when the process (or, in a test, one part of it) shall stop. Clones are the same token.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// Waits for SIGTERM or SIGINT and then cancels `token`; a second signal ends the process immediately
/// with 143 or 130, the exit codes of a shell for these signals. It returns only the error of the registration; run it
/// in a separate task or a `select!`.
pub async fn cancel_on_signals(token: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (name, _) = next_signal(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = name, "stopping; a second signal stops immediately");
    token.cancel();
    let (name, code) = next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = name, "stopped immediately by a second signal");
    std::process::exit(code)
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", 143),
        _ = interrupt.recv() => ("SIGINT", 130),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        // Registered before the signal is sent, which would otherwise end the test process.
        let _guard = signal(SignalKind::interrupt()).unwrap();
        let token = Shutdown::new();
        let listening = tokio::spawn(cancel_on_signals(token.clone()));
        // The listener registers when it first runs.
        tokio::task::yield_now().await;
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::INT).unwrap();
        token.cancelled().await;
        listening.abort();
    }
}
