//! Join tokens, agents with certificates, and their revocation.

use super::*;
use crate::identity::SealedAuthority;
use crate::wire::join::JoinTokenView;
use crate::wire::problem::ProblemCode;

fn path(text: &str) -> AbsPath {
    AbsPath::new(text).unwrap()
}

fn digest(text: &str) -> Digest {
    blake3::hash(text.as_bytes()).into()
}

/// A token for worker `w` and `/data`, which expires a minute after the start of the world.
pub(super) fn join_token(id: &str, now_ms: i64) -> JoinTokenRecord {
    let at = |ms| jiff::Timestamp::from_millisecond(ms).unwrap();
    JoinTokenRecord {
        view: JoinTokenView {
            id: id.parse().unwrap(),
            worker_id: "w".parse().unwrap(),
            storage_paths: vec![path("/data")],
            created_at: at(now_ms),
            expires_at: at(now_ms + 60_000),
            used_at: None,
            revoked_at: None,
        },
        secret_digest: digest("secret"),
        used_by: None,
    }
}

fn code(reply: Option<Reply>) -> &'static str {
    match reply {
        Some(Reply::Refused(problem)) => {
            ProblemCode::ALL.iter().find(|code| problem.is(**code)).unwrap().as_str()
        }
        Some(_) => "ok",
        None => "waits",
    }
}

const TOKEN: &str = "0123456789ab";

fn agent(worker: &str, key: &str) -> AgentKey {
    AgentKey { worker: worker.parse().unwrap(), key: digest(key), authority: None }
}

pub(super) fn join(
    world: &mut World,
    token: &str,
    secret: &str,
    worker: &str,
    key: &str,
) -> &'static str {
    let join = Join {
        token: token.parse().unwrap(),
        secret_digest: digest(secret),
        agent: agent(worker, key),
    };
    code(world.apply(Event::Join(Box::new(join))))
}

fn create(world: &mut World, token: &str) {
    let record = join_token(token, world.now.wall_ms);
    world.apply(Event::CreateJoinToken(Box::new(record)));
}

fn of_agent(key: &str, event: Event) -> Event {
    Event::OfAgent { agent: Some(agent("w", key)), event: Box::new(event) }
}

#[test]
fn a_join_token_is_good_once_for_its_worker_until_it_expires() {
    let mut world = World::new();
    create(&mut world, TOKEN);
    assert_eq!(join(&mut world, TOKEN, "other", "w", "k"), "bad_credentials");
    assert_eq!(join(&mut world, "ba9876543210", "secret", "w", "k"), "bad_credentials");
    assert_eq!(join(&mut world, TOKEN, "secret", "v", "k"), "worker_mismatch");
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    // The reply was lost, and the agent that had it was killed.
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "stolen"), "join_token_used");
    assert_eq!(join(&mut world, TOKEN, "other", "w", "k"), "bad_credentials");
    world.restart();
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "stolen"), "join_token_used");
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    create(&mut world, "00000000000a");
    world.advance(60_000);
    assert_eq!(join(&mut world, "00000000000a", "secret", "w", "l"), "expired");
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "expired", "also for a repeat");
    create(&mut world, "00000000000b");
    world.apply(Event::RevokeJoinToken("00000000000b".parse().unwrap()));
    assert_eq!(join(&mut world, "00000000000b", "secret", "w", "l"), "revoked");
    assert!(world.state.agents().verify(&agent("w", "k")).is_ok());
    // Another join of the worker: the former certificates end.
    create(&mut world, "00000000000c");
    assert_eq!(join(&mut world, "00000000000c", "secret", "w", "l"), "ok");
    let former = world.state.agents().verify(&agent("w", "k")).unwrap_err();
    assert!(former.is(ProblemCode::CertificateUnknown), "{former:?}");
    let unknown = Event::RevokeJoinToken("ffffffffffff".parse().unwrap());
    assert_eq!(code(world.apply(unknown)), "token_not_found");
    let Some(Reply::Tokens(list)) = world.apply(Event::ListTokens) else { panic!() };
    assert_eq!(list.join_tokens.len(), 4);
    // Long after, when another one is created.
    world.skip_days(31);
    create(&mut world, "00000000000d");
    let Some(Reply::Tokens(list)) = world.apply(Event::ListTokens) else { panic!() };
    let ids: Vec<String> = list.join_tokens.iter().map(|token| token.id.to_string()).collect();
    assert_eq!(ids, ["00000000000d"]);
}

#[test]
fn an_agent_speaks_for_its_worker_only_and_within_its_paths() {
    let mut world = World::new();
    create(&mut world, TOKEN);
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    let mut beat = heartbeat("w", Some("1"), &["/data/a", "/data", "/etc", "/database"], &[]);
    beat.free_bytes = [("/etc".to_owned(), 1), ("/data".to_owned(), 2)].into();
    beat.root_ids = [("/etc".to_owned(), "1".to_owned())].into();
    beat.unavailable_paths = vec![UnavailablePath { path: path("/home"), reason: "x".into() }];
    let reply = world.apply(of_agent("k", Event::Heartbeat(beat)));
    let Some(Reply::Heartbeat(reply)) = reply else { panic!("{reply:?}") };
    let refused: Vec<String> = reply.refused_paths.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["/database", "/etc", "/home"]);
    let Some(Reply::Worker(view)) = world.apply(Event::GetWorker("w".parse().unwrap())) else {
        panic!()
    };
    assert_eq!(view.storage_paths, [path("/data/a"), path("/data")]);
    assert_eq!(view.free_bytes.keys().collect::<Vec<_>>(), ["/data"]);
    assert_eq!(view.unavailable_paths, []);

    let other = "v".parse::<WorkerId>().unwrap();
    let assignment = AssignmentId([1; 16]);
    let poll = |worker: &WorkerId| Event::Poll {
        worker: worker.clone(),
        incarnation: Some("1".into()),
        poll_id: None,
        wait_ms: 0,
    };
    let manifest = Event::GetManifest { worker: other.clone(), assignment };
    for event in [Event::Heartbeat(heartbeat("v", Some("1"), &[], &[])), poll(&other), manifest] {
        assert_eq!(code(world.apply(of_agent("k", event))), "worker_mismatch");
    }
    assert_eq!(code(world.apply(of_agent("k", poll(&"w".parse().unwrap())))), "ok");
    assert_eq!(
        code(world.apply(of_agent("other", poll(&"w".parse().unwrap())))),
        "certificate_unknown"
    );
    // An agent without a certificate, which is not an administrator, has another name.
    let local = |event| Event::OfAgent { agent: None, event: Box::new(event) };
    for (worker, expected) in [("w", "worker_mismatch"), ("local", "ok")] {
        let beat = Event::Heartbeat(heartbeat(worker, Some("1"), &["/any"], &[]));
        assert_eq!(code(world.apply(local(beat))), expected);
    }
    assert_eq!(code(world.apply(local(Event::ListWorkers))), "role_missing");
    for event in [Event::ListWorkers, Event::RevokeWorker(other), Event::ListTokens] {
        assert_eq!(code(world.apply(of_agent("k", event))), "role_missing");
    }
}

/// The revoked workers in the reply to another one.
fn revoked_for_others(world: &mut World) -> Vec<String> {
    let beat = heartbeat("s", Some("1"), &["/src"], &[]);
    let Some(Reply::Heartbeat(reply)) = world.apply(Event::Heartbeat(beat)) else { panic!() };
    reply.revoked_workers.iter().map(ToString::to_string).collect()
}

#[test]
fn a_revoked_worker_loses_its_tasks_at_once_and_stays_refused_until_it_joins_again() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    create(&mut world, TOKEN);
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    let beat = || Event::Heartbeat(heartbeat("w", Some("1"), &["/data"], &[]));
    assert_eq!(code(world.apply(of_agent("k", beat()))), "ok");
    world.submit("sync", "/data/a", "/data/b");
    let held = world.poll("w", "1").expect("a task");
    let worker: WorkerId = "w".parse().unwrap();
    let reply = world.apply(Event::RevokeWorker(worker));
    let Some(Reply::WorkerRevoked(reply)) = reply else { panic!("{reply:?}") };
    assert_eq!(reply.requeued, 1);
    for event in [beat(), Event::Result(result(&held, true, TaskReport::default()))] {
        assert_eq!(code(world.apply(of_agent("k", event))), "worker_revoked");
    }
    // Not over loopback either.
    assert_eq!(code(world.apply(beat())), "worker_revoked");
    assert_eq!(revoked_for_others(&mut world), ["w"]);
    let revoked = |world: &mut World| {
        let Some(Reply::Workers(list)) = world.apply(Event::ListWorkers) else { panic!() };
        assert_eq!(list.active.len() + list.inactive.len(), 1);
        list.revoked.len()
    };
    assert_eq!(revoked(&mut world), 1);
    world.restart();
    assert_eq!(code(world.apply(of_agent("k", beat()))), "worker_revoked");
    // A repeat of the join does not undo it.
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "join_token_used");
    create(&mut world, "00000000000b");
    assert_eq!(join(&mut world, "00000000000b", "secret", "w", "l"), "ok");
    assert_eq!(code(world.apply(of_agent("k", beat()))), "certificate_unknown");
    assert_eq!(code(world.apply(of_agent("l", beat()))), "ok");
    assert_eq!(revoked_for_others(&mut world), Vec::<String>::new());
    for (worker, expected) in [("s", "not_joined"), ("none", "worker_not_found")] {
        let reply = world.apply(Event::RevokeWorker(worker.parse().unwrap()));
        assert_eq!(code(reply), expected);
    }
}

/// An authority that replaced the one that was made from `former`.
fn sealed(name: &str, former: Option<&str>) -> SealedAuthority {
    let hash = |name: &str| serde_json::to_value(digest(name)).unwrap();
    let mut record = serde_json::json!({"hash": hash(name), "certificate": "", "sealed_key": ""});
    if let Some(former) = former {
        record["previous"] = serde_json::json!({
            "hash": hash(former),
            "certificate": "",
            "successor": "",
            "replaced_at": "1970-01-01T00:00:00Z",
            "certificates_end_at": jiff::Timestamp::from_millisecond(2_000_000_000_000).unwrap(),
        });
    }
    serde_json::from_value(record).unwrap()
}

#[test]
fn a_rotation_counts_the_agents_that_are_left_and_ends_when_there_are_none() {
    let mut world = World::new();
    assert_eq!(code(world.apply(Event::GetAuthority)), "no_authority");
    world.apply(Event::StoreAuthority(Box::new(sealed("one", None))));
    create(&mut world, TOKEN);
    assert_eq!(join(&mut world, TOKEN, "secret", "w", "k"), "ok");
    let beat_of = |world: &mut World, authority: &str| {
        let authority = Some(digest(authority));
        let agent = Some(AgentKey { authority, ..agent("w", "k") });
        let beat = Event::Heartbeat(heartbeat("w", Some("1"), &["/data"], &[]));
        let reply = world.apply(Event::OfAgent { agent, event: Box::new(beat) });
        let Some(Reply::Heartbeat(reply)) = reply else { panic!("{reply:?}") };
        reply.authorities
    };
    assert_eq!(beat_of(&mut world, "one"), [digest("one")]);
    let view = |world: &mut World, event| {
        let reply = world.apply(event);
        let Some(Reply::Authority(view)) = reply else { panic!("{reply:?}") };
        assert_eq!(view.agents, 1);
        let left = view.previous.as_ref().map(|previous| previous.agents_left);
        (view.authority, left, view.previous.is_some_and(|previous| previous.finished_at.is_some()))
    };
    let finish = |force| Event::FinishRotation { force };
    assert_eq!(view(&mut world, finish(false)), (digest("one"), None, false));
    let rotate = |name, former| Event::RotateAuthority(Box::new(sealed(name, former)));
    assert_eq!(code(world.apply(rotate("two", Some("other")))), "authority_in_use");
    assert_eq!(view(&mut world, rotate("two", Some("one"))), (digest("two"), Some(1), false));
    // A repeat has made another authority, which is of no use.
    assert_eq!(view(&mut world, rotate("three", Some("one"))), (digest("two"), Some(1), false));
    assert_eq!(beat_of(&mut world, "one"), [digest("two"), digest("one")]);
    assert_eq!(code(world.apply(finish(false))), "authority_in_use");
    world.restart();
    assert_eq!(view(&mut world, Event::GetAuthority), (digest("two"), Some(1), false));
    beat_of(&mut world, "two");
    world.restart();
    assert_eq!(view(&mut world, Event::GetAuthority), (digest("two"), Some(0), false));
    assert_eq!(view(&mut world, finish(false)), (digest("two"), Some(0), true));
    world.restart();
    assert_eq!(beat_of(&mut world, "two"), [digest("two")]);
    assert_eq!(view(&mut world, rotate("three", Some("two"))), (digest("three"), Some(1), false));
    assert_eq!(view(&mut world, finish(true)), (digest("three"), Some(1), true));
    // The certificates of the former authority have all expired.
    world.now.wall_ms = 2_000_000_000_000;
    assert_eq!(view(&mut world, rotate("four", Some("three"))), (digest("four"), Some(1), false));
    assert_eq!(view(&mut world, finish(false)), (digest("four"), Some(1), true));
}
