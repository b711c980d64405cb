//! A fake master replies over TCP: each request gets the next reply of a script.

use super::super::fixtures;
use super::*;
use crate::client::ClientOptions;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncOutcome, SyncState};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The n-th request's reply: a status and a body, or a broken connection.
type Script = Box<dyn Fn(usize, &str) -> Option<(u16, String)> + Send + Sync>;

struct FakeMaster {
    client: MasterClient,
    requests: Arc<Mutex<Vec<String>>>,
    master: tokio::task::JoinHandle<()>,
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.master.abort();
    }
}

impl FakeMaster {
    async fn start(script: Script) -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        // One connection a request: the replies say `connection: close`.
        let master = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut raw = Vec::new();
                while !raw.windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(&mut raw).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let text = String::from_utf8_lossy(&raw).into_owned();
                let line = text.lines().next().unwrap_or_default().to_owned();
                let n = {
                    let mut log = log.lock();
                    log.push(line.clone());
                    log.len() - 1
                };
                if let Some((status, body)) = script(n, &line) {
                    let reply = format!(
                        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(reply.as_bytes()).await;
                }
            }
        });
        let client = MasterClient::new(vec![url], ClientOptions::default()).unwrap();
        FakeMaster { client, requests, master }
    }

    async fn wait(
        &self,
        ids: &[&str],
        accepted: bool,
        until: &WaitLimitArgs,
        signals: &mut UnboundedReceiver<SignalAction>,
    ) -> (Result<WaitOutcome>, Vec<String>) {
        let mut notes = Notes::default();
        let ids = ids.iter().map(|id| id.parse().unwrap()).collect();
        let waited =
            SyncWaiter::new(&self.client, &mut notes, ids, accepted).run(until, signals).await;
        (waited, notes.0)
    }
}

/// Keeps the notes, shows nothing.
#[derive(Default)]
struct Notes(Vec<String>);

impl ProgressMonitor for Notes {
    fn handle_event(&mut self, event: ProgressEvent<'_>, _: Timestamp) {
        if let ProgressEvent::Note(text) = event {
            self.0.push(text.to_owned());
        }
    }
}

fn no_wait_limit() -> WaitLimitArgs {
    WaitLimitArgs { timeout: None, timeout_exit_code: 124, cancel_on_interrupt: false }
}

fn no_signals() -> UnboundedReceiver<SignalAction> {
    mpsc::unbounded_channel().1
}

fn sync_reply(sync: &SyncProgress) -> Option<(u16, String)> {
    Some((200, serde_json::to_string(sync).unwrap()))
}

fn not_found_reply() -> Option<(u16, String)> {
    let problem = Problem::new(ProblemCode::SyncNotFound, "no such sync");
    Some((404, serde_json::to_string(&problem).unwrap()))
}

fn running_sync(id: &str) -> SyncProgress {
    SyncProgress { state: SyncState::Progress, ..fixtures::sync(id) }
}

fn ended_sync(id: &str, state: SyncState, outcome: SyncOutcome) -> SyncProgress {
    SyncProgress { state, outcome: Some(outcome), ..fixtures::sync(id) }
}

#[tokio::test]
async fn waiting_ends_with_every_final_state_and_its_code() {
    for (state, outcome, code) in [
        (SyncState::Completed, SyncOutcome::Full, 0),
        (SyncState::Completed, SyncOutcome::Unverified, 23),
        (SyncState::Failed, SyncOutcome::Partial, 23),
        (SyncState::Failed, SyncOutcome::VanishedOnly, 24),
        (SyncState::Cancelled, SyncOutcome::Cancelled, 20),
    ] {
        let stage = FakeMaster::start(Box::new(move |n, _| match n {
            0 => sync_reply(&running_sync("x")),
            _ => sync_reply(&ended_sync("x", state, outcome)),
        }))
        .await;
        let (waited, _) = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await;
        let waited = waited.unwrap();
        assert_eq!(waited.exit().code(), code, "{state:?}");
        assert!(!waited.syncs[0].was_deleted, "{state:?}");
    }
}

#[tokio::test]
async fn a_sync_that_is_deleted_while_it_is_waited_for_ends_the_waiting() {
    let script =
        |n, _: &str| if n == 0 { sync_reply(&running_sync("x")) } else { not_found_reply() };
    let stage = FakeMaster::start(Box::new(script)).await;
    let waited = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].was_deleted), (Exit::Cancelled, true));
}

#[tokio::test]
async fn a_sync_that_was_deleted_and_resubmitted_is_not_the_one_waited_for() {
    let script = |n, _: &str| match n {
        0 => sync_reply(&running_sync("x")),
        _ => {
            let submitted_at = "2026-02-04T00:00:00Z".parse().unwrap();
            sync_reply(&SyncProgress { submitted_at, ..running_sync("x") })
        }
    };
    let stage = FakeMaster::start(Box::new(script)).await;
    let waited = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].was_deleted), (Exit::Cancelled, true));
}

#[tokio::test]
async fn an_id_that_never_existed_is_not_found_and_the_others_are_waited_for() {
    let script = |_, line: &str| match line.contains("/sync/no ") {
        true => not_found_reply(),
        false => sync_reply(&ended_sync("yes", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = FakeMaster::start(Box::new(script)).await;
    let waited =
        stage.wait(&["no", "yes"], false, &no_wait_limit(), &mut no_signals()).await.0.unwrap();
    assert_eq!(waited.exit(), Exit::NotFound);
    assert_eq!(waited.syncs[1].exit, Some(Exit::Ok));
}

#[tokio::test]
async fn a_short_outage_of_the_master_is_waited_for_and_reported() {
    let script = |n, _: &str| match n {
        0 => sync_reply(&running_sync("x")),
        // The client tries a broken connection once more by itself.
        1 | 2 => None,
        _ => sync_reply(&ended_sync("x", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = FakeMaster::start(Box::new(script)).await;
    let (waited, notes) = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await;
    assert_eq!(waited.unwrap().exit(), Exit::Ok);
    assert!(
        notes[0].contains("does not answer") && notes[1].contains("answers again"),
        "{notes:?}"
    );
}

#[tokio::test]
async fn a_master_that_never_replied_is_unreachable() {
    let stage = FakeMaster::start(Box::new(|_, _| None)).await;
    let e = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await.0.err().unwrap();
    assert_eq!(e.exit, Exit::Unreachable);
}

#[tokio::test]
async fn a_long_outage_ends_the_waiting_and_the_sync_continues() {
    let stage =
        FakeMaster::start(Box::new(
            |n, _| if n == 0 { sync_reply(&running_sync("x")) } else { None },
        ))
        .await;
    let mut notes = Notes::default();
    let ids = vec!["x".parse().unwrap()];
    let mut waiter = SyncWaiter::new(&stage.client, &mut notes, ids, true).with_resume_hint("ctl");
    waiter.max_outage = Duration::ZERO;
    let e = waiter.run(&no_wait_limit(), &mut no_signals()).await.err().unwrap();
    assert_eq!(e.exit, Exit::Unreachable);
    let printed = "the sync continues without this program; to wait again: ctl sync wait x";
    assert!(e.render().contains(printed), "{}", e.render());
}

#[tokio::test]
async fn the_first_interrupt_stops_the_waiting_and_not_the_sync() {
    for (action, code) in [(SignalAction::Interrupt, 130), (SignalAction::Terminate, 143)] {
        let (send, mut signals) = mpsc::unbounded_channel();
        // The signal arrives before the first reply.
        let stage = FakeMaster::start(Box::new(move |_, _| {
            let _ = send.send(action);
            sync_reply(&running_sync("x"))
        }))
        .await;
        let waited = stage.wait(&["x"], true, &no_wait_limit(), &mut signals).await.0.unwrap();
        assert_eq!(waited.exit().code(), code);
        assert!(waited.syncs[0].exit.is_none());
        assert!(stage.requests.lock().iter().all(|r| r.starts_with("GET ")));
    }
}

#[tokio::test]
async fn an_interrupt_cancels_the_sync_with_cancel_on_interrupt() {
    let (send, mut signals) = mpsc::unbounded_channel();
    let stage = FakeMaster::start(Box::new(move |n, line| {
        if n == 0 {
            let _ = send.send(SignalAction::Interrupt);
            return sync_reply(&running_sync("x"));
        }
        match line.starts_with("POST /sync/x/cancel ") {
            true => sync_reply(&ended_sync("x", SyncState::Cancelled, SyncOutcome::Cancelled)),
            false => sync_reply(&running_sync("x")),
        }
    }))
    .await;
    let until = WaitLimitArgs { cancel_on_interrupt: true, ..no_wait_limit() };
    let waited = stage.wait(&["x"], true, &until, &mut signals).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].was_deleted), (Exit::Cancelled, false));
}

#[tokio::test]
async fn a_timeout_ends_with_the_requested_exit_code() {
    let stage = FakeMaster::start(Box::new(|_, _| sync_reply(&running_sync("x")))).await;
    let until = WaitLimitArgs {
        timeout: Some(Duration::from_millis(1)),
        timeout_exit_code: 99,
        ..no_wait_limit()
    };
    let waited = stage.wait(&["x"], true, &until, &mut no_signals()).await.0.unwrap();
    assert_eq!(waited.exit().code(), 99);
}

#[tokio::test]
async fn a_second_interrupt_stops_the_waiting_while_the_first_still_cancels() {
    let (send, mut signals) = mpsc::unbounded_channel();
    let stage = FakeMaster::start(Box::new(move |_, _| {
        // One with the first answer, one more with each that says that it is not cancelled yet.
        let _ = send.send(SignalAction::Interrupt);
        sync_reply(&running_sync("x"))
    }))
    .await;
    let until = WaitLimitArgs { cancel_on_interrupt: true, ..no_wait_limit() };
    let waited = stage.wait(&["x"], true, &until, &mut signals).await.0.unwrap();
    assert_eq!(
        (waited.stopped_by, waited.cancelled_by),
        (Some(Exit::Interrupted), Some(Exit::Interrupted))
    );
    assert_eq!(waited.syncs[0].exit, None);
}

#[tokio::test]
async fn each_of_two_outages_of_the_master_is_waited_for() {
    let script = |n, _: &str| match n {
        0 | 3 => sync_reply(&running_sync("x")),
        1 | 2 | 4 | 5 => None,
        _ => sync_reply(&ended_sync("x", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = FakeMaster::start(Box::new(script)).await;
    let (waited, notes) = stage.wait(&["x"], false, &no_wait_limit(), &mut no_signals()).await;
    assert_eq!(waited.unwrap().exit(), Exit::Ok);
    let is_recovery: Vec<bool> = notes.iter().map(|note| note.contains("answers again")).collect();
    assert_eq!(is_recovery, [false, true, false, true], "{notes:?}");
}

#[tokio::test]
async fn the_worst_exit_code_is_used_in_any_order_of_the_syncs() {
    let script = |_, line: &str| match line.contains("/sync/good ") {
        true => sync_reply(&ended_sync("good", SyncState::Completed, SyncOutcome::Full)),
        false => sync_reply(&ended_sync("bad", SyncState::Failed, SyncOutcome::Partial)),
    };
    for ids in [["good", "bad"], ["bad", "good"]] {
        let stage = FakeMaster::start(Box::new(script)).await;
        let waited = stage.wait(&ids, false, &no_wait_limit(), &mut no_signals()).await.0.unwrap();
        assert_eq!(waited.exit(), Exit::Partial, "{ids:?}");
    }
}

#[tokio::test]
async fn only_completed_syncs_without_a_transfer_get_the_no_transfer_code() {
    let script = |_, line: &str| {
        let full = |id| ended_sync(id, SyncState::Completed, SyncOutcome::Full);
        match line.contains("/sync/some ") {
            true => sync_reply(&SyncProgress { files_done: 1, ..full("some") }),
            false if line.contains("/sync/none ") => {
                sync_reply(&SyncProgress { files_skipped: 1, ..full("none") })
            }
            false => sync_reply(&ended_sync("bad", SyncState::Failed, SyncOutcome::VanishedOnly)),
        }
    };
    let stage = FakeMaster::start(Box::new(script)).await;
    let all = ["some", "none", "bad"];
    let waited = stage.wait(&all, false, &no_wait_limit(), &mut no_signals()).await.0.unwrap();
    let waited = waited.with_no_transfer_exit(ExitCodeArgs { error_on_no_transfer: true });
    let ends: Vec<_> = waited.syncs.iter().map(|sync| sync.exit.unwrap().code()).collect();
    assert_eq!(ends, [0, 9, 24]);
}
