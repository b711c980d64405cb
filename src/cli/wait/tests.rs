//! Against a master played over TCP: each request gets the next reply of a script.

use super::super::sample;
use super::*;
use crate::client::ClientOptions;
use crate::wire::problem::Problem;
use crate::wire::sync::{SyncOutcome, SyncState};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The n-th request's reply: a status and a body, or a broken connection.
type Script = Box<dyn Fn(usize, &str) -> Option<(u16, String)> + Send + Sync>;

struct Stage {
    client: MasterClient,
    requests: Arc<Mutex<Vec<String>>>,
    master: tokio::task::JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.master.abort();
    }
}

impl Stage {
    async fn set(script: Script) -> Stage {
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
        Stage { client, requests, master }
    }

    async fn wait(
        &self,
        ids: &[&str],
        accepted: bool,
        until: &UntilArgs,
        asks: &mut UnboundedReceiver<Ask>,
    ) -> (Result<Waited, Failure>, Vec<String>) {
        let mut notes = Notes::default();
        let ids = ids.iter().map(|id| id.parse().unwrap()).collect();
        let waited = Waiter::new(&self.client, &mut notes, ids, accepted).run(until, asks).await;
        (waited, notes.0)
    }
}

/// Keeps the notes, shows nothing.
#[derive(Default)]
struct Notes(Vec<String>);

impl Monitor for Notes {
    fn event(&mut self, event: Event<'_>, _: Timestamp) {
        if let Event::Note(text) = event {
            self.0.push(text.to_owned());
        }
    }
}

fn until() -> UntilArgs {
    UntilArgs { timeout: None, timeout_exit_code: 124, cancel_on_interrupt: false }
}

fn quiet() -> UnboundedReceiver<Ask> {
    mpsc::unbounded_channel().1
}

fn body(sync: &SyncProgress) -> Option<(u16, String)> {
    Some((200, serde_json::to_string(sync).unwrap()))
}

fn gone() -> Option<(u16, String)> {
    let problem = Problem::new(404, "Not Found", "sync_not_found", "no such sync");
    Some((404, serde_json::to_string(&problem).unwrap()))
}

fn running(id: &str) -> SyncProgress {
    SyncProgress { state: SyncState::Progress, ..sample::sync(id) }
}

fn ended(id: &str, state: SyncState, outcome: SyncOutcome) -> SyncProgress {
    SyncProgress { state, outcome: Some(outcome), ..sample::sync(id) }
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
        let stage = Stage::set(Box::new(move |n, _| match n {
            0 => body(&running("x")),
            _ => body(&ended("x", state, outcome)),
        }))
        .await;
        let (waited, _) = stage.wait(&["x"], false, &until(), &mut quiet()).await;
        let waited = waited.unwrap();
        assert_eq!(waited.exit().code(), code, "{state:?}");
        assert!(!waited.syncs[0].deleted, "{state:?}");
    }
}

#[tokio::test]
async fn a_sync_that_is_deleted_while_it_is_waited_for_ends_the_waiting() {
    let script = |n, _: &str| if n == 0 { body(&running("x")) } else { gone() };
    let stage = Stage::set(Box::new(script)).await;
    let waited = stage.wait(&["x"], false, &until(), &mut quiet()).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].deleted), (Exit::Cancelled, true));
}

#[tokio::test]
async fn a_sync_that_was_deleted_and_made_anew_is_not_the_one_waited_for() {
    let script = |n, _: &str| match n {
        0 => body(&running("x")),
        _ => {
            let submitted_at = "2026-02-04T00:00:00Z".parse().unwrap();
            body(&SyncProgress { submitted_at, ..running("x") })
        }
    };
    let stage = Stage::set(Box::new(script)).await;
    let waited = stage.wait(&["x"], false, &until(), &mut quiet()).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].deleted), (Exit::Cancelled, true));
}

#[tokio::test]
async fn an_id_that_never_existed_is_not_found_and_the_others_are_waited_for() {
    let script = |_, line: &str| match line.contains("/sync/no ") {
        true => gone(),
        false => body(&ended("yes", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = Stage::set(Box::new(script)).await;
    let waited = stage.wait(&["no", "yes"], false, &until(), &mut quiet()).await.0.unwrap();
    assert_eq!(waited.exit(), Exit::NotFound);
    assert_eq!(waited.syncs[1].exit, Some(Exit::Ok));
}

#[tokio::test]
async fn a_master_that_is_away_for_a_moment_is_waited_for_and_that_is_told() {
    let script = |n, _: &str| match n {
        0 => body(&running("x")),
        // The client tries a broken connection once more by itself.
        1 | 2 => None,
        _ => body(&ended("x", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = Stage::set(Box::new(script)).await;
    let (waited, notes) = stage.wait(&["x"], false, &until(), &mut quiet()).await;
    assert_eq!(waited.unwrap().exit(), Exit::Ok);
    assert!(
        notes[0].contains("does not answer") && notes[1].contains("answers again"),
        "{notes:?}"
    );
}

#[tokio::test]
async fn a_master_that_never_answered_is_no_master() {
    let stage = Stage::set(Box::new(|_, _| None)).await;
    let e = stage.wait(&["x"], false, &until(), &mut quiet()).await.0.err().unwrap();
    assert_eq!(e.exit, Exit::Unreachable);
}

#[tokio::test]
async fn a_master_that_stays_away_ends_the_waiting_and_the_sync_goes_on() {
    let stage = Stage::set(Box::new(|n, _| if n == 0 { body(&running("x")) } else { None })).await;
    let mut notes = Notes::default();
    let ids = vec!["x".parse().unwrap()];
    let mut waiter = Waiter::new(&stage.client, &mut notes, ids, true).resumed_by("ctl");
    waiter.patience = Duration::ZERO;
    let e = waiter.run(&until(), &mut quiet()).await.err().unwrap();
    assert_eq!(e.exit, Exit::Unreachable);
    let said = "the sync continues without this program; to wait again: ctl sync wait x";
    assert!(e.render().contains(said), "{}", e.render());
}

#[tokio::test]
async fn the_first_interrupt_stops_the_waiting_and_not_the_sync() {
    for (ask, code) in [(Ask::Interrupt, 130), (Ask::Terminate, 143)] {
        let (send, mut asks) = mpsc::unbounded_channel();
        // The signal comes while the first answer is on its way.
        let stage = Stage::set(Box::new(move |_, _| {
            let _ = send.send(ask);
            body(&running("x"))
        }))
        .await;
        let waited = stage.wait(&["x"], true, &until(), &mut asks).await.0.unwrap();
        assert_eq!(waited.exit().code(), code);
        assert!(waited.syncs[0].exit.is_none());
        assert!(stage.requests.lock().iter().all(|r| r.starts_with("GET ")));
    }
}

#[tokio::test]
async fn an_interrupt_cancels_where_that_is_asked_for() {
    let (send, mut asks) = mpsc::unbounded_channel();
    let stage = Stage::set(Box::new(move |n, line| {
        if n == 0 {
            let _ = send.send(Ask::Interrupt);
            return body(&running("x"));
        }
        match line.starts_with("POST /sync/x/cancel ") {
            true => body(&ended("x", SyncState::Cancelled, SyncOutcome::Cancelled)),
            false => body(&running("x")),
        }
    }))
    .await;
    let until = UntilArgs { cancel_on_interrupt: true, ..until() };
    let waited = stage.wait(&["x"], true, &until, &mut asks).await.0.unwrap();
    assert_eq!((waited.exit(), waited.syncs[0].deleted), (Exit::Cancelled, false));
}

#[tokio::test]
async fn a_timeout_has_the_code_that_was_asked_for() {
    let stage = Stage::set(Box::new(|_, _| body(&running("x")))).await;
    let until =
        UntilArgs { timeout: Some(Duration::from_millis(1)), timeout_exit_code: 99, ..until() };
    let waited = stage.wait(&["x"], true, &until, &mut quiet()).await.0.unwrap();
    assert_eq!(waited.exit().code(), 99);
}

#[tokio::test]
async fn a_second_interrupt_stops_the_waiting_while_the_first_still_cancels() {
    let (send, mut asks) = mpsc::unbounded_channel();
    let stage = Stage::set(Box::new(move |_, _| {
        // One with the first answer, one more with each that says that it is not cancelled yet.
        let _ = send.send(Ask::Interrupt);
        body(&running("x"))
    }))
    .await;
    let until = UntilArgs { cancel_on_interrupt: true, ..until() };
    let waited = stage.wait(&["x"], true, &until, &mut asks).await.0.unwrap();
    assert_eq!(
        (waited.stopped, waited.interrupted),
        (Some(Exit::Interrupted), Some(Exit::Interrupted))
    );
    assert_eq!(waited.syncs[0].exit, None);
}

#[tokio::test]
async fn a_master_that_is_away_twice_is_waited_for_twice() {
    let script = |n, _: &str| match n {
        0 | 3 => body(&running("x")),
        1 | 2 | 4 | 5 => None,
        _ => body(&ended("x", SyncState::Completed, SyncOutcome::Full)),
    };
    let stage = Stage::set(Box::new(script)).await;
    let (waited, notes) = stage.wait(&["x"], false, &until(), &mut quiet()).await;
    assert_eq!(waited.unwrap().exit(), Exit::Ok);
    let told: Vec<bool> = notes.iter().map(|note| note.contains("answers again")).collect();
    assert_eq!(told, [false, true, false, true], "{notes:?}");
}

#[tokio::test]
async fn the_worst_end_counts_also_where_the_first_sync_ended_well() {
    let script = |_, line: &str| match line.contains("/sync/good ") {
        true => body(&ended("good", SyncState::Completed, SyncOutcome::Full)),
        false => body(&ended("bad", SyncState::Failed, SyncOutcome::Partial)),
    };
    for ids in [["good", "bad"], ["bad", "good"]] {
        let stage = Stage::set(Box::new(script)).await;
        let waited = stage.wait(&ids, false, &until(), &mut quiet()).await.0.unwrap();
        assert_eq!(waited.exit(), Exit::Partial, "{ids:?}");
    }
}

#[tokio::test]
async fn of_several_syncs_each_that_transferred_nothing_is_told_and_none_that_failed() {
    let script = |_, line: &str| {
        let full = |id| ended(id, SyncState::Completed, SyncOutcome::Full);
        match line.contains("/sync/some ") {
            true => body(&SyncProgress { files_done: 1, ..full("some") }),
            false if line.contains("/sync/none ") => {
                body(&SyncProgress { files_skipped: 1, ..full("none") })
            }
            false => body(&ended("bad", SyncState::Failed, SyncOutcome::VanishedOnly)),
        }
    };
    let stage = Stage::set(Box::new(script)).await;
    let all = ["some", "none", "bad"];
    let waited = stage.wait(&all, false, &until(), &mut quiet()).await.0.unwrap();
    let waited = waited.judged(EndArgs { error_on_no_transfer: true });
    let ends: Vec<_> = waited.syncs.iter().map(|sync| sync.exit.unwrap().code()).collect();
    assert_eq!(ends, [0, 9, 24]);
}
