//! The thread that writes the audit log: what several callers append at the same time is one write and one flush.

use super::refusals::Refusals;
use super::{AuditResult, Command};
use crate::audit::{AuditEntry, AuditLog, Origin};
use crate::config::MasterConfig;
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// The interval of checks for counted denials, and of attempts to write lines that wait.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often the end of the chain is logged: a user that changes the audit log cannot change what a log on another host
/// has.
const HEAD_LOG_INTERVAL: Duration = Duration::from_secs(3600);

struct Writer {
    log: AuditLog,
    config: watch::Receiver<MasterConfig>,
    refusals: Arc<Mutex<Refusals>>,
    is_failing: bool,
    head_logged: Instant,
}

/// Starts the thread, which ends with [`Command::Close`] or with the last sender.
pub(super) fn spawn(
    data_dir: &Path,
    origin: Origin,
    config: watch::Receiver<MasterConfig>,
    commands: Receiver<Command>,
    refusals: Arc<Mutex<Refusals>>,
) -> std::io::Result<()> {
    let log = AuditLog::new(data_dir, origin, config.borrow().audit);
    let head_logged = Instant::now();
    let mut writer = Writer { log, config, refusals, is_failing: false, head_logged };
    std::thread::Builder::new()
        .name("audit".to_owned())
        .spawn(move || {
            // The line of the start.
            if writer.append(Vec::new(), false).is_ok() {
                writer.log_head("audit log opened");
            }
            writer.run(&commands);
        })
        .map(drop)
}

impl Writer {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            let first = match commands.recv_timeout(CHECK_INTERVAL) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.close(None),
            };
            let limits = self.config.borrow().audit;
            self.log.set_limits(limits);
            let (mut entries, mut callers) = (Vec::new(), Vec::new());
            let mut closed = None;
            for command in first.into_iter().chain(commands.try_iter()) {
                match command {
                    Command::Reserve(bytes, reply) => {
                        let result = self.log.reserve(bytes);
                        // Fails if the caller has disconnected.
                        let _ = reply.send(self.report(result));
                    }
                    Command::Append(more, reply) => {
                        entries.extend(more);
                        callers.push(reply);
                    }
                    Command::WriteRefusals => {}
                    Command::Close(reply) => closed = Some(reply),
                }
            }
            let result = self.append(entries, false);
            for caller in callers {
                let _ = caller.send(result.clone());
            }
            if closed.is_some() {
                return self.close(closed);
            }
            if self.head_logged.elapsed() >= HEAD_LOG_INTERVAL {
                self.log_head("audit log");
            }
        }
    }

    /// Appends lines, and those of denials.
    fn append(&mut self, mut entries: Vec<AuditEntry>, is_last: bool) -> AuditResult {
        let count = entries.len();
        entries.append(&mut self.refusals.lock().take_due(Instant::now(), is_last));
        if entries.is_empty() && self.log.head().is_some() {
            return Ok(());
        }
        let result = self.log.append(&entries);
        if result.is_err() {
            self.refusals.lock().put_back(entries.split_off(count));
        }
        self.report(result)
    }

    /// Logs the first error, and its end.
    fn report(&mut self, result: std::io::Result<()>) -> AuditResult {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the audit log is written again");
                }
                Ok(())
            }
            Err(e) => {
                let cause = match e.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full: ",
                    _ => "",
                };
                let reason = format!("{cause}{}: {e}", self.log.path().display());
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(reason, "the audit log cannot be written: changes are refused");
                }
                Err(reason)
            }
        }
    }

    fn log_head(&mut self, message: &str) {
        if let Some(head) = self.log.head() {
            tracing::info!(%head, "{message}");
        }
        self.head_logged = Instant::now();
    }

    fn close(&mut self, caller: Option<oneshot::Sender<()>>) {
        // An error is logged.
        let _ = self.append(Vec::new(), true);
        self.log.close();
        self.log_head("audit log closed");
        if let Some(caller) = caller {
            let _ = caller.send(());
        }
    }
}
