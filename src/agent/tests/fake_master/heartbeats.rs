//! What heartbeats report, and what their replies bring: tickets, and ended syncs.

use super::*;
use crate::wire::SyncNo;
use crate::wire::worker::EndedCursor;

#[tokio::test]
async fn a_heartbeat_reports_the_resources_of_the_agent_and_polls_follow_it() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let query = master.wait_until("a poll", |s| s.polls.first().cloned()).await;
    let first = master.lock_script().heartbeats[0].clone();
    assert_eq!((first.status, first.slots), (WorkerStatus::Idle, Some(2)));
    assert_eq!(first.data_plane_endpoints[0].port, Some(play.port));
    assert_eq!(first.storage_paths.len(), 2);
    assert_eq!(first.boot_id.as_deref(), crate::util::boot::boot_id());
    assert_eq!(first.control_plane_address.as_deref(), Some("10.0.0.1"));
    let incarnation = first.incarnation.unwrap();
    assert!(query.contains("wait=20s") && query.contains(&format!("incarnation={incarnation}")));
    let endpoint = format!("127.0.0.1:{}", play.port);
    next_heartbeat(master, "its interface", |h| h.nics.iter().any(|n| n.endpoint == endpoint))
        .await;
    next_heartbeat(master, "free bytes", |h| h.free_bytes.values().all(|n| *n > 0)).await;
    play.shut_down().await;
}

/// Half of the life of the first ticket is over: the agent sends it until it has another one. The end of a sync reaches
/// the data port with the next heartbeat.
#[tokio::test]
async fn tickets_are_renewed_by_heartbeats_and_those_of_ended_syncs_refused() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let master = &play.master;
    let sign = |life: i64| {
        let mut claims = master.claims_to("dst", 4);
        claims.expires = NOW + life;
        master.signer.sign(&claims)
    };
    let (old, new) = (sign(20), sign(600));
    let scan = Assignment { ticket: old.clone().into(), ..master.assignment(4, root_scan()) };
    let id = scan.assignment_id;
    master.update_script(|script| script.queue.push_back(scan));
    next_heartbeat(master, "the old ticket", |h| h.tickets == [old.clone().into()]).await;
    master.update_script(|script| drop(script.tickets.insert(id, new.clone().into())));
    next_heartbeat(master, "the new one is used", |h| {
        h.assignments == [id] && h.tickets.is_empty()
    })
    .await;
    // A client that trusts nobody needs a crypto provider all the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::new();
    let offer = async || {
        let url = format!("http://127.0.0.1:{}/v1/offer", play.port);
        let body = Manifest::default().encode();
        let sent = client.post(url).header("x-longhaul-ticket", &new).body(body).send().await;
        let reply = sent.unwrap();
        (
            reply.status().as_u16(),
            String::from_utf8_lossy(&reply.bytes().await.unwrap()).into_owned(),
        )
    };
    assert_eq!(offer().await.0, 200);
    let cursor = EndedCursor { term: 1, position: 1 };
    let ended = EndedSyncs { cursor, syncs: vec![SyncNo(7)] };
    master.update_script(|script| script.ended_syncs = Some(ended));
    next_heartbeat(master, "it is read", |h| h.ended_seen == Some(cursor)).await;
    let (status, problem) = offer().await;
    assert!(status == 403 && problem.contains("has ended"), "{status} {problem}");
    play.shut_down().await;
}
