//! One token tells every task to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Cancelled when the process (or, in a test, one part of it) is to stop. Clones are the same token.
pub type Shutdown = tokio_util::sync::CancellationToken;

/// Waits for SIGTERM or SIGINT and then cancels `token`; a second signal ends the process at once
/// with 143 or 130, the codes that a shell shows for the two. It returns only when the signals cannot be
/// listened to (with the error); run it beside the work, in a task of its own or a `select!`.
pub async fn cancel_on_signals(token: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (name, _) = next_signal(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = name, "stopping; a second signal stops at once");
    token.cancel();
    let (name, code) = next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = name, "stopped at once by a second signal");
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
        // Registered before the signal is sent, or it would end the test process.
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
