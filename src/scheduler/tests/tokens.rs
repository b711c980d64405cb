//! Tokens, and the events of operators with rights.

use super::*;
use crate::wire::RequestId;
use crate::wire::options::{Chown, Links};
use crate::wire::problem::ProblemCode;
use crate::wire::sync::SyncPatch;
use crate::wire::token::{PathScope, Right, Role, TokenView};

pub(super) fn token_record(id: &str, role: Role) -> TokenRecord {
    let path = |text| AbsPath::new(text).unwrap();
    TokenRecord {
        view: TokenView {
            id: id.parse().unwrap(),
            role,
            scopes: vec![PathScope { from: path("/src"), to: path("/dst/a") }],
            may: vec![Right::Delete],
            run_as: None,
            label: Some("nightly".to_owned()),
            created_at: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
            expires_at: Some(jiff::Timestamp::from_second(4_000_000_000).unwrap()),
            revoked_at: None,
        },
        secret_digest: blake3::hash(b"secret").into(),
    }
}

fn refused(reply: Option<Reply>) -> &'static str {
    let Some(Reply::Refused(problem)) = reply else { panic!("{reply:?}") };
    ProblemCode::ALL.iter().find(|code| problem.is(**code)).unwrap().as_str()
}

/// An operator for syncs from `/src` to `/dst/a`.
fn restricted(may: &[Right], event: Event) -> Event {
    let scopes = token_record("000000000000", Role::Operator).view.scopes;
    let grant = Arc::new(Grant { scopes, may: may.to_vec(), run_as: None });
    Event::Restricted { grant, event: Box::new(event) }
}

fn submit_event(id: &str, source: &str, destination: &str, options: SyncOptions) -> Event {
    let request = SyncRequest { options, ..request(Some(id), source, destination) };
    Event::Submit { request, list: None, idempotency: None }
}

#[test]
fn a_token_is_valid_until_it_expires_or_is_revoked_and_only_with_its_secret() {
    let mut world = World::new();
    let before = world.state.tokens();
    world.apply(Event::CreateToken(Box::new(token_record("0123456789ab", Role::Viewer))));
    assert!(before.is_empty(), "the snapshot of the API does not change");
    let id = "0123456789ab".parse().unwrap();
    let (right, wrong) = (blake3::hash(b"secret"), blake3::hash(b"other"));
    let verify = |world: &World, digest, now_s: i64| {
        world.state.tokens().verify(&id, digest, now_s * 1000).map(|view| view.role)
    };
    assert_eq!(verify(&world, right, 3_999_999_999), Ok(Role::Viewer));
    assert_eq!(verify(&world, right, 4_000_000_000), Err(TokenRefusal::Expired));
    for now in [0, 4_000_000_000] {
        assert_eq!(verify(&world, wrong, now), Err(TokenRefusal::Unknown));
    }
    let unknown = "ba9876543210".parse().unwrap();
    assert_eq!(refused(world.apply(Event::RevokeToken(unknown))), "token_not_found");
    let Some(Reply::Token(first)) = world.apply(Event::RevokeToken(id.clone())) else { panic!() };
    world.advance(60_000);
    let Some(Reply::Token(again)) = world.apply(Event::RevokeToken(id.clone())) else { panic!() };
    assert_eq!((first.revoked_at.is_some(), &first), (true, &again), "a repeat changes nothing");
    assert_eq!(verify(&world, right, 0), Err(TokenRefusal::Revoked));
    assert_eq!(verify(&world, wrong, 0), Err(TokenRefusal::Unknown));
    // A month later it is removed, when another one is created.
    world.skip_days(31);
    world.apply(Event::CreateToken(Box::new(token_record("000000000001", Role::Admin))));
    let Some(Reply::Tokens(list)) = world.apply(Event::ListTokens) else { panic!() };
    let ids: Vec<String> = list.tokens.iter().map(|token| token.id.to_string()).collect();
    assert_eq!(ids, ["000000000001"]);
    assert!(!world.records.contains_key("k/0123456789ab"));
    assert!(world.records.contains_key("k/000000000001"));
}

#[test]
fn an_operator_submits_within_its_scopes_and_with_its_rights_only() {
    let mut world = World::new();
    let plain = SyncOptions::default;
    for (source, destination, code) in [
        ("/src/x", "/dst/b", "path_not_allowed"),
        ("/srcx", "/dst/a", "path_not_allowed"),
        ("/", "/dst/a", "path_not_allowed"),
        ("/src", "/dst/ab", "path_not_allowed"),
    ] {
        let event = submit_event("no", source, destination, plain());
        assert_eq!(refused(world.apply(restricted(&[], event))), code, "{source} {destination}");
    }
    let with = |right: Right| match right {
        Right::Delete => mirror(DeleteOptions::default()),
        Right::Chown => SyncOptions { chown: Chown { uid: Some(0), gid: None }, ..plain() },
        Right::FollowLinks => SyncOptions { links: Links::Copy, ..plain() },
    };
    for (index, right) in [Right::Delete, Right::Chown, Right::FollowLinks].into_iter().enumerate()
    {
        let id = format!("sync-{index}");
        let event = |id: &str| {
            submit_event(id, &format!("/src/{id}"), &format!("/dst/a/{id}"), with(right))
        };
        let others: Vec<Right> = [Right::Delete, Right::Chown, Right::FollowLinks]
            .into_iter()
            .filter(|other| *other != right)
            .collect();
        assert_eq!(refused(world.apply(restricted(&others, event(&id)))), "option_not_allowed");
        let reply = world.apply(restricted(&[right], event(&id)));
        assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
        // The retry of a sync has its options.
        let parsed: RequestId = id.parse().unwrap();
        world.apply(Event::CancelSync(parsed.clone()));
        let retry =
            Event::RetrySync { id: parsed, new: None, only: RetryScope::All, idempotency: None };
        assert_eq!(refused(world.apply(restricted(&others, retry.clone()))), "option_not_allowed");
        let reply = world.apply(restricted(&[right], retry));
        assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
    }
}

#[test]
fn a_sync_outside_of_the_scopes_does_not_exist_for_an_operator() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src", "/other"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.apply(submit_event("mine", "/src", "/dst/a", SyncOptions::default()));
    world.apply(submit_event("theirs", "/other", "/dst/b", SyncOptions::default()));
    for _ in 0..2 {
        assert!(world.poll("s", "1").is_some());
    }
    let worker: WorkerId = "s".parse().unwrap();
    let events = |id: &str| {
        let id: RequestId = id.parse().unwrap();
        let retry = Event::RetrySync {
            id: id.clone(),
            new: None,
            only: RetryScope::All,
            idempotency: None,
        };
        vec![
            Event::GetProgress(id.clone()),
            Event::GetFileRecords(id.clone()),
            Event::ChangeSync {
                id: id.clone(),
                change: SyncPatch { bwlimit: Some(None), ..SyncPatch::default() },
            },
            Event::PauseSync(id.clone()),
            Event::ResumeSync(id.clone()),
            Event::ReassignTasks { id: id.clone(), worker: worker.clone() },
            Event::CancelSync(id.clone()),
            retry,
            Event::DeleteSync(id),
        ]
    };
    let list = |world: &mut World| {
        let limit = Some(1);
        let query = SyncQuery { limit, ..SyncQuery::default() };
        let Some(Reply::Syncs(page)) = world.apply(restricted(&[], Event::ListSyncs(query))) else {
            panic!()
        };
        assert_eq!(page.next, None, "what is not visible is not counted");
        page.syncs.into_iter().map(|sync| sync.request_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list(&mut world), ["mine"]);
    let Some(Reply::RequestIds(ids)) =
        world.apply(restricted(&[], Event::ListWorkerRequests(worker.clone())))
    else {
        panic!()
    };
    assert_eq!(ids, ["mine".parse::<RequestId>().unwrap()]);
    let unknown = refused(world.apply(Event::GetProgress("unknown".parse().unwrap())));
    for event in events("theirs") {
        assert_eq!(refused(world.apply(restricted(&[], event.clone()))), unknown, "{event:?}");
    }
    assert_eq!(world.progress("theirs").state, SyncState::Progress, "nothing has changed it");
    for event in events("mine") {
        let reply = world.apply(restricted(&[], event.clone()));
        assert!(!matches!(reply, Some(Reply::Refused(_))), "{event:?}: {reply:?}");
    }
    // What is not for operators is refused, whatever its role was.
    for event in [
        Event::ListTokens,
        Event::ConfirmClock,
        Event::ForgetWorker(worker.clone()),
        Event::DrainWorker { worker, order: None },
        Event::Tick,
    ] {
        assert_eq!(refused(world.apply(restricted(&[], event))), "role_missing");
    }
}
