//! The audit log of this master: a thread that appends the lines, and what a request is recorded with.
//!
//! The line of a change is on the disk before its decision is committed to the store, so each change that was made has
//! a line. (After a crash in between, the last lines may be of changes that were not made and that nobody got a reply
//! to.) Space for the line is allocated before the decision: without space the change is refused. Lines of denials
//! follow within moments, without a wait; [`refusals`] counts repeats.

pub(super) mod refusals;
mod thread;

use crate::audit::{AuditEntry, Origin};
use crate::config::MasterConfig;
use crate::scheduler::{Event, Reply};
use crate::wire::problem::{Problem, ProblemCode};
use parking_lot::Mutex;
use refusals::Refusals;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, mpsc};
use tokio::sync::{oneshot, watch};

/// The outcome of a call: an error message that names the file.
pub(super) type AuditResult = Result<(), String>;

/// The interface to the thread of the audit log. The default, of the master of `ctl copy`, records nothing.
#[derive(Clone, Default)]
pub(super) struct AuditHandle(Option<Arc<Channel>>);

struct Channel {
    commands: mpsc::Sender<Command>,
    refusals: Arc<Mutex<Refusals>>,
}

/// A call to the thread.
enum Command {
    /// Allocate space for entries of so many bytes.
    Reserve(u64, oneshot::Sender<AuditResult>),
    Append(Vec<AuditEntry>, oneshot::Sender<AuditResult>),
    /// Write what [`Refusals`] has.
    WriteRefusals,
    /// Write all, and end.
    Close(oneshot::Sender<()>),
}

impl AuditHandle {
    /// Starts the thread for the log in `data_dir`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        data_dir: &Path,
        origin: Origin,
        config: watch::Receiver<MasterConfig>,
    ) -> std::io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let refusals = Arc::new(Mutex::new(Refusals::default()));
        thread::spawn(data_dir, origin, config, receiver, Arc::clone(&refusals))?;
        Ok(AuditHandle(Some(Arc::new(Channel { commands, refusals }))))
    }

    /// Whether requests are recorded.
    pub(super) fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Allocates space for the lines of changes that are about to be decided.
    ///
    /// # Errors
    /// There is no space, or the file cannot be used.
    pub(super) async fn reserve(&self, bytes: u64) -> AuditResult {
        self.call(|reply| Command::Reserve(bytes, reply)).await
    }

    /// Appends lines, and waits until they are on the disk.
    ///
    /// # Errors
    /// They are not; the call may be repeated.
    pub(super) async fn append(&self, entries: Vec<AuditEntry>) -> AuditResult {
        self.call(|reply| Command::Append(entries, reply)).await
    }

    /// Records a denial, or counts it if an equal one was recorded within the last minute. Does not wait.
    pub(super) fn record_refusal(&self, entry: AuditEntry) {
        let Some(channel) = &self.0 else { return };
        if channel.refusals.lock().add(entry, std::time::Instant::now()) {
            // Fails if the thread has ended: this process stops.
            let _ = channel.commands.send(Command::WriteRefusals);
        }
    }

    /// Writes what is counted, and ends the thread.
    pub(super) async fn close(&self) {
        let Some(channel) = &self.0 else { return };
        let (reply_to, reply) = oneshot::channel();
        if channel.commands.send(Command::Close(reply_to)).is_ok() {
            // Fails if the thread has ended.
            let _ = reply.await;
        }
    }

    async fn call(
        &self,
        command: impl FnOnce(oneshot::Sender<AuditResult>) -> Command,
    ) -> AuditResult {
        let Some(channel) = &self.0 else { return Ok(()) };
        let (reply_to, reply) = oneshot::channel();
        let ended = || "the thread of the audit log has ended".to_owned();
        channel.commands.send(command(reply_to)).map_err(|_| ended())?;
        reply.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// The 503 for a change, or a backup, that cannot be recorded.
pub(super) fn audit_unavailable(reason: &str) -> Problem {
    Problem::new(
        ProblemCode::AuditUnavailable,
        format!("the audit log cannot be written, so nothing was changed: {reason}"),
    )
    .with_hint("free space in the data_dir of the master, or mend the file (docs/security.md), and repeat the request")
}

/// What is known of the request that this task handles.
struct RequestRecord {
    entry: AuditEntry,
    is_change: bool,
}

tokio::task_local! {
    static CURRENT: Mutex<RequestRecord>;
}

/// Handles a request; `entry` is what is known of it so far. Returns the response with what is known after it.
pub(super) async fn record_while<T>(
    entry: AuditEntry,
    is_change: bool,
    handle: impl Future<Output = T>,
) -> (T, AuditEntry) {
    let record = Mutex::new(RequestRecord { entry, is_change });
    let handle = async {
        let response = handle.await;
        (response, CURRENT.with(|current| std::mem::take(&mut current.lock().entry)))
    };
    CURRENT.scope(record, handle).await
}

/// Adds what a layer learns of the request of this task.
pub(super) fn describe_request(describe: impl FnOnce(&mut AuditEntry)) {
    // Fails where nothing is recorded.
    let _ = CURRENT.try_with(|current| describe(&mut current.lock().entry));
}

/// The entry for `event`, if the request of this task changes something.
pub(super) fn entry_of_change(event: &Event) -> Option<Box<AuditEntry>> {
    let change = CURRENT.try_with(|current| {
        let current = current.lock();
        current.is_change.then(|| Box::new(current.entry.clone()))
    });
    let mut entry = change.ok().flatten().filter(|_| !is_read(event))?;
    match event {
        Event::Submit { request, .. } => {
            entry.sync = request.request_id.as_ref().map(ToString::to_string);
            entry.source = Some(request.source_path.to_string());
            entry.destination = Some(request.destination_path.to_string());
        }
        Event::CreateToken(record) => {
            entry.token = Some(record.view.id.to_string());
            entry.detail = Some(format!("role {}", record.view.role.as_str()));
        }
        Event::CreateJoinToken(record) => {
            entry.token = Some(record.view.id.to_string());
            entry.worker = Some(record.view.worker_id.to_string());
        }
        Event::Join(join) => {
            entry.token = Some(join.token.to_string());
            entry.worker = Some(join.agent.worker.to_string());
        }
        _ => {}
    }
    Some(entry)
}

/// Whether a request that changes something only reads with this event.
fn is_read(event: &Event) -> bool {
    matches!(
        event,
        Event::GetProgress(_) | Event::GetFileRecords(_) | Event::ListSyncs(_) | Event::ListWorkers
    )
}

/// The entry of a change with its outcome. `None`: it was refused and changed nothing.
pub(super) fn with_outcome(mut entry: AuditEntry, reply: &Reply) -> Option<AuditEntry> {
    entry.status = Some(match reply {
        Reply::Refused(_) => return None,
        Reply::Submitted(submitted) => {
            let id = submitted.request_id.to_string();
            match (&entry.sync, entry.action.as_str()) {
                (Some(_), "sync.retry") => entry.new_sync = Some(id),
                _ => entry.sync = Some(id),
            }
            202
        }
        Reply::Token(_) | Reply::JoinToken(_) if entry.action.ends_with("token.create") => 201,
        _ => 200,
    });
    Some(entry)
}

/// The entry of a change that the store did not confirm, after a line says that it was made.
pub(super) fn unconfirmed(entry: &AuditEntry) -> AuditEntry {
    AuditEntry {
        status: Some(503),
        detail: Some(
            "the store did not confirm the change of the line with this request before: it may not have been made"
                .to_owned(),
        ),
        ..entry.clone()
    }
}

#[cfg(test)]
mod tests;
