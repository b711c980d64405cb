//! The contract on a real server, and broken connections, restarts and lost data.

use super::*;
use crate::store::contract::{self, LONG_LEASE, StoreFixture, acquire_leadership, put_batch};
use server::RedisServer;

#[path = "../../../tests/support/redis.rs"]
mod server;
mod staged;

/// A server per test.
struct InlineFixture(RedisServer);

impl StoreFixture for InlineFixture {
    type S = RedisStore;
    const HAS_LEASES: bool = true;

    async fn create() -> Self {
        InlineFixture(RedisServer::start())
    }

    async fn open_store(&self) -> RedisStore {
        connect(&self.0).await
    }
}

contract::suite!(InlineFixture);

#[test]
fn a_forbidden_command_is_recognized_by_the_server_error() {
    for (text, forbidden) in [
        ("NOPERM this user has no permissions to run the 'config|get' command", true),
        ("ERR unknown command 'CONFIG', with args beginning with: 'GET'", true),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", false),
        ("NOAUTH Authentication required.", false),
        ("", false),
    ] {
        assert_eq!(server_check::is_forbidden(text), forbidden, "{text}");
    }
}

#[tokio::test]
async fn a_server_error_names_the_fix() {
    use redis::{ErrorKind, RedisError, ServerErrorKind};
    let server = RedisServer::start();
    let store = connect(&server).await;
    for (kind, hint) in [
        (ServerErrorKind::Moved, "name its nodes in `redis.cluster`"),
        (ServerErrorKind::Ask, "name its nodes in `redis.cluster`"),
        (ServerErrorKind::NoPerm, "docs/operations.md"),
    ] {
        let error = RedisError::from((ErrorKind::Server(kind), "refused"));
        let text = store.client.store_error(&error).to_string();
        assert!(text.contains(hint) && text.contains(&store.client.address), "{text}");
    }
}

#[tokio::test]
async fn reconnects_are_delayed_by_a_backoff() {
    let mut server = RedisServer::start();
    let store = connect(&server).await;
    server.kill();
    let start = std::time::Instant::now();
    // Each call has three attempts. The first one uses the old connection, the second one connects without a delay.
    for _ in 0..2 {
        let refused = store.load().await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    let pauses = Duration::from_millis(50 + 100 + 200 + 400);
    assert!(start.elapsed() >= pauses, "{:?}", start.elapsed());
}

/// With the user that the documentation describes, with and without staging.
mod documented_permissions {
    use super::*;

    /// The words of the command in `docs/operations.md` that creates the user.
    pub(super) fn user() -> Vec<&'static str> {
        let text = include_str!("../../../docs/operations.md");
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("ACL SETUSER ")).collect();
        assert_eq!(lines.len(), 1, "the document has one such line: {lines:?}");
        lines[0].split_whitespace().collect()
    }

    /// The URL of that user, with the namespace `default`.
    pub(super) fn url(server: &RedisServer) -> String {
        let words = user();
        assert!(words.contains(&"~{longhaul:default}:*"), "{words:?}");
        let password = words.iter().find_map(|word| word.strip_prefix('>')).unwrap();
        format!("{}?user={}&pass={password}", server.url(), words[2])
    }

    struct DocumentedUserFixture<const STAGED: bool>(RedisServer);

    impl<const STAGED: bool> StoreFixture for DocumentedUserFixture<STAGED> {
        type S = RedisStore;
        const HAS_LEASES: bool = true;

        async fn create() -> Self {
            let server = RedisServer::start();
            assert_eq!(server.command(&user()), "+OK\r\n");
            // No other user has any permission.
            assert_eq!(server.command(&["ACL", "SETUSER", "default", "off"]), "+OK\r\n");
            DocumentedUserFixture(server)
        }

        async fn open_store(&self) -> RedisStore {
            let mut store = connect_to(&url(&self.0), "default", false).await.unwrap();
            assert!(store.settings_visible, "the user may read the settings");
            if STAGED {
                store.limits = BatchLimits { keys: 0, bytes: 0 };
            }
            store.check_admission().await.unwrap();
            store
        }
    }

    mod at_once {
        contract::suite!(super::DocumentedUserFixture<false>);
        use super::contract;
    }

    mod staged {
        contract::suite!(super::DocumentedUserFixture<true>);
        use super::contract;
    }
}

/// Every command that the scripts run.
fn commands_in_scripts() -> BTreeSet<String> {
    let scripts = [
        include_str!("prelude.lua"),
        include_str!("acquire.lua"),
        include_str!("renew.lua"),
        include_str!("release.lua"),
        include_str!("stage.lua"),
        include_str!("commit.lua"),
    ];
    scripts.iter().flat_map(|text| commands_of(text)).collect()
}

/// The commands that are the first argument of `call` or `write`.
fn commands_of(script: &str) -> BTreeSet<String> {
    let calls = script.split("call('").skip(1).chain(script.split("write('").skip(1));
    calls.filter_map(|rest| rest.split('\'').next()).map(str::to_lowercase).collect()
}

#[test]
fn the_permission_check_runs_every_command_of_the_scripts() {
    assert_eq!(commands_of(include_str!("check_permissions.lua")), commands_in_scripts());
    assert!(commands_in_scripts().len() >= 9, "{:?}", commands_in_scripts());
    for script in [include_str!("commit.lua"), include_str!("stage.lua")] {
        assert!(!script.contains("redis.call"), "its errors do not name the command");
    }
}

#[tokio::test]
async fn a_missing_permission_is_reported_at_the_start_and_while_leading() {
    let server = RedisServer::start();
    let direct = ["hget", "hgetall", "hkeys", "evalsha", "script|load"].map(str::to_owned);
    let deny = |command: &str| {
        assert_eq!(server.command(&["ACL", "DELUSER", "longhaul"]), ":1\r\n");
        assert_eq!(server.command(&documented_permissions::user()), "+OK\r\n");
        let denied = format!("-{command}");
        assert_eq!(server.command(&["ACL", "SETUSER", "longhaul", &denied]), "+OK\r\n");
    };
    assert_eq!(server.command(&documented_permissions::user()), "+OK\r\n");
    let url = documented_permissions::url(&server);
    for command in commands_in_scripts().into_iter().chain(direct) {
        server.command(&["SCRIPT", "FLUSH"]);
        deny(&command);
        let refused = unusable_reason(connect_to(&url, "default", false).await);
        assert!(refused.contains(&command), "{command}: {refused}");
        assert!(refused.contains("docs/operations.md"), "{command}: {refused}");
        assert_eq!(server.command(&["DBSIZE"]), ":0\r\n", "{command}: keys remain");
    }
    let whole = Batch { deletes: ["z".to_owned()].into(), ..put_batch("a", "1") };
    for command in ["time", "hdel", "hget"] {
        server.command(&["FLUSHALL"]);
        assert_eq!(server.command(&documented_permissions::user()), "+OK\r\n");
        let store = connect_to(&url, "default", false).await.unwrap();
        let fence = acquire_leadership(&store, "m1").await;
        let fence = store.commit(fence, &whole).await.unwrap();
        assert_eq!(store.check_admission().await.unwrap(), None);
        deny(command);
        let refused = match command {
            // No commit needs it.
            "hget" => unusable_reason(store.check_admission().await.map(drop)),
            _ => unusable_reason(store.commit(fence, &whole).await),
        };
        assert!(refused.contains(command), "{command}: {refused}");
    }
}

#[tokio::test]
async fn an_unsafe_setting_is_reported_while_leading_until_it_is_changed_back() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let allowed = connect_to(&server.url(), NAMESPACE, true).await.unwrap();
    for (setting, bad, good) in
        [("maxmemory-policy", "allkeys-lru", "noeviction"), ("appendonly", "no", "yes")]
    {
        assert_eq!(store.check_admission().await.unwrap(), None);
        server.command(&["CONFIG", "SET", setting, bad]);
        let Some(AdmissionBlock::Unsafe(reason)) = store.check_admission().await.unwrap() else {
            panic!()
        };
        assert!([setting, bad, good].iter().all(|part| reason.contains(part)), "{reason}");
        let volatile = allowed.check_admission().await.unwrap();
        assert_eq!(volatile.is_none(), setting == "appendonly", "{volatile:?}");
        server.command(&["CONFIG", "SET", setting, good]);
    }
    assert_eq!(store.check_admission().await.unwrap(), None);
}

#[tokio::test]
async fn a_master_of_another_installation_is_refused_with_the_fix() {
    let server = RedisServer::start();
    let master = |name: &str, former: &str| {
        let mut installation = Installation::named(name);
        installation.former_name = former.to_owned();
        let url = server.url();
        async move { connect_as(&url, NAMESPACE, false, installation).await.unwrap() }
    };
    let one = master("site-a", "").await;
    let fence = acquire_leadership(&one, "m1").await;
    let fence = one.commit(fence, &put_batch("a", "1")).await.unwrap();
    // Another master of the same installation follows.
    let held = master("site-a", "").await.acquire(&"m2".into(), LONG_LEASE).await.unwrap();
    assert!(matches!(held, AcquireOutcome::Held { .. }), "{held:?}");
    // A master of another installation is refused, whether or not a master leads.
    let other = master("site-b", "site-c").await;
    for leads in [true, false] {
        let refused = unusable_reason(other.acquire(&"m3".into(), LONG_LEASE).await);
        for part in ["`site-a`", "`site-b`", "m1", "redis.namespace", "`installation: site-a`"] {
            assert!(refused.contains(part), "{leads}: `{part}` in {refused}");
        }
        if leads {
            one.release(fence).await.unwrap();
        }
    }
    assert_eq!(one.load().await.unwrap(), put_batch("a", "1").puts);
    // A master with another former name renames the installation.
    let renamed = master("site-z", "site-a").await;
    let fence = acquire_leadership(&renamed, "m4").await;
    unusable_reason(one.acquire(&"m1".into(), LONG_LEASE).await);
    // The leader writes the name back to an emptied server.
    let fence = renamed.commit(fence, &put_batch("b", "2")).await.unwrap();
    server.command(&["FLUSHALL"]);
    let whole = Batch { replace: true, ..put_batch("b", "2") };
    renamed.commit(fence.after_loss(0), &whole).await.unwrap();
    unusable_reason(one.acquire(&"m1".into(), LONG_LEASE).await);
}

const NAMESPACE: &str = "test";
/// Longer than any test: the time for a large batch depends on the load of the machine.
const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(600), response: Duration::from_secs(600) };

async fn connect(server: &RedisServer) -> RedisStore {
    connect_to(&server.url(), NAMESPACE, false).await.unwrap()
}

async fn connect_to(url: &str, namespace: &str, volatile: bool) -> Result<RedisStore, StoreError> {
    connect_as(url, namespace, volatile, Installation::named("test")).await
}

async fn connect_as(
    url: &str,
    namespace: &str,
    allow_volatile: bool,
    installation: Installation,
) -> Result<RedisStore, StoreError> {
    let config = RedisStoreConfig {
        url: url.to_owned(),
        options: RedisOptions::default(),
        namespace: namespace.to_owned(),
        allow_volatile,
        installation,
    };
    RedisStore::connect_with(&config, TIMEOUTS).await
}

fn unusable_reason<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unusable(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[tokio::test]
async fn namespaces_are_isolated() {
    let server = RedisServer::start();
    let one = connect_to(&server.url(), "one", false).await.unwrap();
    let two = connect_to(&server.url(), "two", false).await.unwrap();
    let fence = acquire_leadership(&one, "m1").await;
    acquire_leadership(&two, "m2").await;
    one.commit(fence, &put_batch("a", "1")).await.unwrap();
    assert!(two.load().await.unwrap().is_empty());
    let keys = server.command(&["KEYS", "{longhaul:one}:*"]);
    assert!(keys.starts_with("*2\r\n"), "{keys}");
}

#[tokio::test]
async fn calls_succeed_after_a_killed_connection_or_flushed_scripts() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let mut fence = acquire_leadership(&store, "m1").await;
    for round in 0..20 {
        let (command, reply) = match round % 2 {
            0 => (&["CLIENT", "KILL", "TYPE", "normal"][..], ":1\r\n"),
            _ => (&["SCRIPT", "FLUSH"][..], "+OK\r\n"),
        };
        assert_eq!(server.command(command), reply);
        fence = store.commit(fence, &put_batch("a", &round.to_string())).await.unwrap();
    }
    assert_eq!((fence.seq, store.load().await.unwrap()), (20, put_batch("a", "19").puts));
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_and_has_everything_after_a_restart() {
    let mut server = RedisServer::start_with(&["--appendfsync", "always"]);
    let store = connect(&server).await;
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    server.kill();
    for _ in 0..2 {
        let refused = store.commit(fence, &put_batch("b", "2")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    let none = connect_to(&server.url(), NAMESPACE, false).await;
    assert!(matches!(none, Err(StoreError::Unavailable(_))), "{none:?}");
    server.restart();
    let fence = store.commit(fence, &put_batch("b", "2")).await.unwrap();
    assert_eq!(fence.seq, 2);
    server.restart();
    assert_eq!(store.load().await.unwrap().into_keys().collect::<String>(), "ab");
    store.renew(fence, LONG_LEASE).await.unwrap();
}

#[tokio::test]
async fn a_commit_with_a_timed_out_reply_is_written_once() {
    let server = RedisServer::start();
    let timeouts = Timeouts { response: Duration::from_millis(100), ..Timeouts::default() };
    let config = RedisStoreConfig {
        url: server.url(),
        options: RedisOptions::default(),
        namespace: NAMESPACE.to_owned(),
        allow_volatile: false,
        installation: Installation::named("test"),
    };
    let store = RedisStore::connect_with(&config, timeouts).await.unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    server.signal("STOP");
    let late = store.commit(fence, &put_batch("a", "1")).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    server.signal("CONT");
    // The server still reads the first commit from its socket, and runs it before or after the repeat.
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    assert_eq!(fence.seq, 1);
    let fence = store.commit(fence, &put_batch("a", "2")).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (2, put_batch("a", "2").puts));
}

#[tokio::test]
async fn a_truncated_log_loses_whole_commits_and_the_leader_writes_them_back() {
    let mut server = RedisServer::start_with(&["--appendfsync", "always"]);
    let store = connect(&server).await;
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    let second = Batch { blob_puts: put_batch("b", "blob").puts, ..put_batch("b", "2") };
    let fence = store.commit(fence, &second).await.unwrap();
    server.kill();
    let log = std::fs::OpenOptions::new().write(true).open(server.last_aof_file()).unwrap();
    log.set_len(log.metadata().unwrap().len() - 5).unwrap();
    server.restart();
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    assert!(store.blob_keys().await.unwrap().is_empty());
    let lost = StoreError::DataLost { expected: 2, found: 1 };
    assert_eq!(store.renew(fence, LONG_LEASE).await, Err(lost.clone()));
    assert_eq!(store.commit(fence, &put_batch("c", "3")).await, Err(lost));
    let mut whole = Batch { replace: true, ..second };
    whole.puts.extend(put_batch("a", "1").puts);
    let fence = store.commit(fence.after_loss(1), &whole).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (3, whole.puts));
    assert_eq!(store.blob("b").await.unwrap(), Some(b"blob".to_vec()));
}

#[tokio::test]
async fn the_leader_writes_an_emptied_server_back_and_its_lease_holds_again() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    assert_eq!(server.command(&["FLUSHALL"]), "+OK\r\n");
    let lost = StoreError::DataLost { expected: 1, found: 0 };
    assert_eq!(store.renew(fence, LONG_LEASE).await, Err(lost));
    let whole = Batch { replace: true, ..put_batch("a", "1") };
    let fence = store.commit(fence.after_loss(0), &whole).await.unwrap();
    let other = connect(&server).await;
    let held = other.acquire(&"m2".into(), LONG_LEASE).await.unwrap();
    assert!(matches!(&held, AcquireOutcome::Held { holder, .. } if holder == "m1"), "{held:?}");
    store.commit(fence, &put_batch("b", "2")).await.unwrap();
    assert_eq!(other.load().await.unwrap().len(), 2);
}

/// The clock of the server, in milliseconds since 1970.
fn server_millis(server: &RedisServer) -> u64 {
    let reply = server.command(&["TIME"]);
    let parts: Vec<u64> = reply.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(parts.len(), 2, "{reply}");
    parts[0] * 1000 + parts[1] / 1000
}

#[tokio::test]
async fn acquiring_after_the_server_was_emptied_deposes_the_old_leader() {
    let server = RedisServer::start();
    let (old, new) = (connect(&server).await, connect(&server).await);
    let before = acquire_leadership(&old, "m1").await;
    let before = old.commit(before, &put_batch("a", "1")).await.unwrap();
    server.command(&["FLUSHALL"]);
    // Within one millisecond both epochs would be equal, and only the session id would distinguish the two terms.
    while server_millis(&server) <= before.epoch {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let after = acquire_leadership(&new, "m2").await;
    assert!(after.epoch > before.epoch && after.seq == 0, "{before:?} {after:?}");
    let whole = Batch { replace: true, ..put_batch("a", "1") };
    for refused in [old.commit(before, &whole).await.map(drop), old.renew(before, LONG_LEASE).await]
    {
        assert!(
            matches!(&refused, Err(StoreError::Deposed { leader, .. }) if leader == "m2"),
            "{refused:?}"
        );
    }
    assert!(new.load().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_clock_set_back_delays_a_takeover_by_one_lease_at_most() {
    let server = RedisServer::start();
    let (one, two) = (connect(&server).await, connect(&server).await);
    one.acquire(&"m1".into(), Duration::from_millis(80)).await.unwrap();
    let far = "9000000000000";
    server.command(&["HSET", &one.keys[0], "lease_end_ms", far]);
    match two.acquire(&"m2".into(), LONG_LEASE).await.unwrap() {
        AcquireOutcome::Held { retry_after_ms, .. } => {
            assert!(retry_after_ms <= 80, "{retry_after_ms}");
        }
        leader => panic!("{leader:?}"),
    }
    assert!(!server.command(&["HGET", &one.keys[0], "lease_end_ms"]).contains(far));
}

#[tokio::test]
async fn a_key_of_another_type_is_refused_before_anything_is_written() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    server.command(&["SET", &store.keys[2], "a string"]);
    let batch = Batch {
        deletes: ["a".to_owned()].into(),
        blob_puts: put_batch("x", "blob").puts,
        ..put_batch("b", "2")
    };
    let refused = unusable_reason(store.commit(fence, &batch).await);
    assert!(refused.contains(":blobs") && refused.contains("string"), "{refused}");
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    server.command(&["DEL", &store.keys[2]]);
    assert_eq!(store.commit(fence, &batch).await.unwrap().seq, 2);
    assert_eq!(store.load().await.unwrap(), put_batch("b", "2").puts);
}

#[tokio::test]
async fn commits_succeed_while_memory_is_full() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = acquire_leadership(&store, "m1").await;
    server.command(&["CONFIG", "SET", "maxmemory", "1000"]);
    assert!(server.command(&["SET", "x", "y"]).starts_with("-OOM"));
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    store.stage_batch(&put_batch("b", "2")).await.unwrap();
    store.renew(fence, LONG_LEASE).await.unwrap();
    store.release(fence).await.unwrap();
    acquire_leadership(&store, "m1").await;
}

#[tokio::test]
async fn a_server_that_may_drop_state_is_refused() {
    let server = RedisServer::start();
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = unusable_reason(connect_to(&server.url(), NAMESPACE, true).await);
    assert!(refused.contains("allkeys-lru") && refused.contains("noeviction"), "{refused}");
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    connect(&server).await;
    server.command(&["CONFIG", "SET", "appendonly", "no"]);
    let refused = unusable_reason(connect_to(&server.url(), NAMESPACE, false).await);
    assert!(refused.contains("allow_volatile"), "{refused}");
    connect_to(&server.url(), NAMESPACE, true).await.unwrap();
}

#[tokio::test]
async fn another_schema_is_refused_at_the_start_and_by_an_election() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    acquire_leadership(&store, "m1").await;
    server.command(&["HSET", &store.keys[0], "schema", "2"]);
    for refused in [
        unusable_reason(store.acquire(&"m1".into(), LONG_LEASE).await),
        unusable_reason(connect_to(&server.url(), NAMESPACE, false).await),
    ] {
        assert!(refused.contains("version 2") && refused.contains("upgrade"), "{refused}");
    }
}

#[tokio::test]
async fn permissions_decide_and_passwords_stay_secret() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let url = |user: &str, password: &str| format!("{}?user={user}&pass={password}", server.url());
    let wrong = unusable_reason(connect_to(&url("default", "hunter3"), NAMESPACE, false).await);
    let none = unusable_reason(connect_to(&server.url(), NAMESPACE, false).await);
    for refused in [&wrong, &none] {
        assert!(!refused.contains("hunter") && refused.contains("r.sock"), "{refused}");
    }
    let admin = connect_to(&url("default", "hunter2"), NAMESPACE, false).await.unwrap();
    // A user without the permission to read settings and version is accepted.
    let acl = ["ACL", "SETUSER", "small", "on", ">pw", "~{longhaul:*", "+@all", "-config", "-info"];
    let () = admin.client.run_command(redis::cmd(acl[0]).arg(&acl[1..])).await.unwrap();
    let small = connect_to(&url("small", "pw"), NAMESPACE, false).await.unwrap();
    let fence = acquire_leadership(&small, "m1").await;
    small.commit(fence, &put_batch("a", "1")).await.unwrap();
    let () = admin
        .client
        .run_command(redis::cmd("ACL").arg(&["SETUSER", "small", "-evalsha"]))
        .await
        .unwrap();
    let refused = unusable_reason(small.renew(fence, LONG_LEASE).await);
    assert!(refused.contains("evalsha"), "{refused}");
}

#[tokio::test]
async fn a_url_or_namespace_that_cannot_work_is_refused() {
    for url in ["", "localhost", "http://localhost"] {
        let refused = unusable_reason(connect_to(url, NAMESPACE, false).await);
        assert!(refused.contains("redis://") && !refused.contains("secret"), "{refused}");
    }
    for namespace in ["", "a b", "{x}", "a\n", &"x".repeat(65)] {
        let refused = unusable_reason(connect_to("redis://127.0.0.1", namespace, false).await);
        assert!(refused.contains("namespace"), "{refused}");
    }
}
