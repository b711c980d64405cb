//! The results of calls while the actor refuses, is slow, or has ended.

use super::super::channel::{ActorHealth, BlobReader};
use super::super::requests::{DeleteSync, GetSync, ListSyncs, ListWorkers};
use super::*;
use crate::scheduler::{Event, SyncQuery};
use crate::wire::RequestId;
use std::str::FromStr;

struct FakeActor {
    requests: mpsc::Receiver<ActorRequest>,
    health: watch::Sender<ActorHealth>,
}

fn handle_and_actor(queue: usize) -> (MasterHandle, FakeActor) {
    let (sender, requests) = mpsc::channel(queue);
    let (health, receiver) = watch::channel(Ok(()));
    let blobs: BlobReader = Arc::new(|key| {
        Box::pin(async move {
            match key.as_str() {
                "exists" => Ok(Some(b"manifest".to_vec())),
                "broken" => Err("connection refused".to_owned()),
                _ => Ok(None),
            }
        })
    });
    (
        MasterHandle::for_actor(sender, receiver, blobs, Spool::temporary()),
        FakeActor { requests, health },
    )
}

fn id(s: &str) -> RequestId {
    RequestId::from_str(s).unwrap()
}

#[tokio::test]
async fn the_caller_gets_the_problem_of_the_actor_unchanged() {
    let (handle, mut actor) = handle_and_actor(4);
    let reply = async {
        let request = actor.requests.recv().await.unwrap();
        assert_eq!(request.event, Event::GetProgress(id("demo-1")));
        let problem = Problem::new(ProblemCode::SyncNotFound, "no");
        request.reply.send(Reply::Refused(Box::new(problem))).unwrap();
    };
    let (result, ()) = tokio::join!(handle.send(GetSync { id: id("demo-1") }), reply);
    assert_eq!(result.unwrap_err().code, "sync_not_found");
}

#[tokio::test]
async fn no_request_reaches_the_actor_while_the_store_is_unavailable() {
    let (handle, mut actor) = handle_and_actor(4);
    actor.health.send(Err("Redis at a:1 refused the connection".into())).unwrap();
    let problem = handle.send(DeleteSync { id: id("demo-1") }).await.unwrap_err();
    assert_eq!((problem.status, problem.code.as_str()), (503, "store_unavailable"));
    assert!(problem.detail.contains("a:1"), "{}", problem.detail);
    assert!(actor.requests.try_recv().is_err());
    actor.health.send(Ok(())).unwrap();
    assert!(handle.channel().is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_reply_or_for_the_queue_times_out() {
    let (handle, mut actor) = handle_and_actor(1);
    let first = tokio::spawn({
        let handle = handle.clone();
        async move { handle.send(ListSyncs { query: SyncQuery::default() }).await }
    });
    let held = actor.requests.recv().await.unwrap();
    let second = handle.send(ListWorkers {});
    let third = async {
        tokio::task::yield_now().await;
        handle.send(ListSyncs { query: SyncQuery::default() }).await
    };
    let (second, third) = tokio::join!(second, third);
    assert_eq!(first.await.unwrap().unwrap_err().code, "commit_timeout");
    assert_eq!(second.unwrap_err().code, "commit_timeout");
    assert_eq!(third.unwrap_err().code, "overloaded");
    assert!(held.reply.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_for_its_wait_time_plus_the_reply_timeout() {
    let (handle, mut actor) = handle_and_actor(1);
    let start = Instant::now();
    let poll = handle.poll(
        WorkerId::from_str("w").unwrap(),
        None,
        Some("p".into()),
        Duration::from_secs(20),
    );
    let actor = async {
        let mut request = actor.requests.recv().await.unwrap();
        assert!(matches!(&request.event, Event::Poll { wait_ms: 20_000, .. }));
        request.reply.closed().await;
    };
    let (result, ()) = tokio::join!(poll, actor);
    assert_eq!(result.unwrap_err().status, 503);
    assert_eq!(start.elapsed(), Duration::from_secs(30));
}

#[tokio::test]
async fn a_manifest_is_read_from_the_blobs() {
    let (handle, mut actor) = handle_and_actor(1);
    let replies = tokio::spawn(async move {
        for key in ["exists", "gone", "broken"] {
            let request = actor.requests.recv().await.unwrap();
            request.reply.send(Reply::ManifestKey(key.into())).unwrap();
        }
    });
    let manifest = || handle.manifest(WorkerId::from_str("w").unwrap(), AssignmentId([0; 16]));
    assert_eq!(manifest().await.unwrap(), b"manifest");
    assert_eq!(manifest().await.unwrap_err().status, 404);
    assert_eq!(manifest().await.unwrap_err().status, 503);
    replies.await.unwrap();
    assert_eq!(manifest().await.unwrap_err().code, "store_unavailable", "the actor has ended");
}
