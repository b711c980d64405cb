//! Redis in all the ways in which it is set up: with a password, an ACL user, TLS, sentinels, as a
//! cluster. Each with real servers, and with what the master says when something of it is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::await_true;
use support::ports::free_port;
use support::process::{Process, User, clean_command, ctl_binary};

/// A server on a port of its own, killed on drop.
struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
    /// What `redis-cli` needs to get in.
    access: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(dir: &Path, port: u16, args: &[&str], access: &[&str]) -> Server {
        let dir = dir.join(format!("redis-{port}"));
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("redis-server");
        if let Some(config) = args.first().filter(|a| a.starts_with('/')) {
            command.arg(config).args(&args[1..]);
        } else {
            command.args(["--save", "", "--appendonly", "yes"]).args(args);
        }
        let child = command
            .arg("--dir")
            .arg(&dir)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let access = access.iter().map(|a| (*a).to_owned()).collect();
        let server = Server { child, port, dir, access };
        await_true("redis answers", || server.run_redis_cli(&["PING"]).contains("PONG"));
        server
    }

    fn run_redis_cli(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let run = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &port, "--no-auth-warning"])
            .args(&self.access)
            .args(words)
            .current_dir(&self.dir)
            .output();
        String::from_utf8_lossy(&run.unwrap().stdout).into_owned()
    }
}

/// A master with files of its own.
struct Master {
    process: Process,
    address: String,
    home: PathBuf,
}

/// … with this `redis:` block.
fn start_master(dir: &Path, redis: &str) -> Master {
    Master::start_with_config(dir, &format!("redis:\n{redis}"))
}

impl Master {
    /// … with these lines in its configuration.
    fn start_with_config(dir: &Path, more: &str) -> Master {
        let port = free_port();
        let home = dir.join(format!("master-{port}"));
        std::fs::create_dir(&home).unwrap();
        let address = format!("127.0.0.1:{port}");
        let secrets = dir.join("secrets.key");
        support::cluster::write_private(&secrets, &[5; 32]);
        let (data, secrets) = (home.display(), secrets.display());
        let text = format!("listen: {address}\ndata_dir: {data}\nsecrets_file: {secrets}\n{more}");
        std::fs::write(home.join("master.yml"), text).unwrap();
        // With a password it is refused else.
        support::tree::chmod(home.join("master.yml"), 0o600);
        Master { process: Master::spawn(&home), address, home }
    }

    fn spawn(home: &Path) -> Process {
        let mut command = clean_command(&ctl_binary(User::Same, home), home, User::Same);
        command.args(["master", "--config"]).arg(home.join("master.yml"));
        Process::start("master", command, &home.join("log"))
    }

    /// Starts it again, on the same files.
    fn restart(&mut self) {
        self.process.kill_9();
        self.process = Master::spawn(&self.home);
    }

    /// Puts a line at the head of its configuration.
    fn configure(&self, line: &str) {
        let file = self.home.join("master.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{line}\n{text}")).unwrap();
    }

    #[track_caller]
    fn await_following(&mut self) {
        await_true("it follows", || {
            if let Some(status) = self.process.try_exit_status() {
                panic!("the master ended with {status}:\n{}", self.process.log());
            }
            let target = "/readyz?verbose";
            let answer = support::http::try_request(&self.address, "GET", target, &[], None);
            answer.is_some_and(|answer| answer.text().contains("\"following\""))
        });
    }

    fn try_submit(&self, id: &str) -> Option<u16> {
        let body =
            format!(r#"{{"request_id": "{id}", "source_path": "/a", "destination_path": "/b"}}"#);
        let headers = [];
        let answer = support::http::try_request(
            &self.address,
            "POST",
            "/sync",
            &headers,
            Some(body.as_bytes()),
        );
        answer.map(|answer| answer.status)
    }

    /// Waits until a sync is accepted: it leads, and what it decides is stored.
    #[track_caller]
    fn assert_serves(&mut self, id: &str) {
        await_true("a sync is accepted", || {
            if let Some(status) = self.process.try_exit_status() {
                panic!("the master ended with {status}:\n{}", self.process.log());
            }
            // The repetition of a submit with a lost reply finds the sync.
            matches!(self.try_submit(id), Some(202 | 409))
        });
    }

    /// Waits until it ends because of its configuration; returns what it says.
    #[track_caller]
    fn assert_refuses_to_start(mut self) -> String {
        assert_eq!(self.process.await_end().code(), Some(78), "{}", self.process.log());
        self.process.log()
    }
}

#[test]
fn password_and_acl_user_are_used_and_wrong_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = port.to_string();
    let args = [
        "--port",
        &text,
        "--requirepass",
        "s3cret",
        "--user",
        "mover",
        "on",
        ">pa55",
        "~*",
        "+@all",
    ];
    let _server = Server::start(dir.path(), port, &args, &["-a", "s3cret"]);
    let at = format!("  host: 127.0.0.1\n  port: {port}\n");
    start_master(dir.path(), &format!("{at}  password: s3cret\n")).assert_serves("one");
    start_master(dir.path(), &format!("{at}  namespace: b\n  username: mover\n  password: pa55\n"))
        .assert_serves("two");
    for wrong in ["", "  password: nope\n", "  username: mover\n  password: nope\n"] {
        let printed = start_master(dir.path(), &format!("{at}{wrong}")).assert_refuses_to_start();
        assert!(printed.contains("Password") || printed.contains("AUTH"), "{printed}");
        assert!(!printed.contains("nope"), "{printed}");
    }
}

/// Makes a CA, and a certificate for 127.0.0.1 that it signed.
fn make_certificates(dir: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca \
        -addext basicConstraints=critical,CA:TRUE && \
        openssl req -newkey rsa:2048 -nodes -keyout r.key -out r.csr -subj /CN=localhost && \
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > ext && \
        openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out r.pem -days 2 -extfile ext";
    let done = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn tls_accepts_only_servers_signed_by_the_configured_authority() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("r.pem"), file("r.key"));
    let port = free_port();
    let text = port.to_string();
    let args = [
        "--port",
        "0",
        "--tls-port",
        &text,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "s3cret",
    ];
    let _server =
        Server::start(dir.path(), port, &args, &["--tls", "--cacert", &ca, "-a", "s3cret"]);
    let by_url = format!("  url: rediss://:s3cret@127.0.0.1:{port}/0\n  ca_file: {ca}\n");
    start_master(dir.path(), &by_url).assert_serves("one");
    let parts = format!(
        "  host: localhost\n  port: {port}\n  namespace: b\n  password: s3cret\n  tls: true\n  ca_file: {ca}\n"
    );
    start_master(dir.path(), &parts).assert_serves("two");
    // Signed by no authority that this host trusts: it waits, reports the reason, and sends no password.
    let distrusts =
        start_master(dir.path(), &format!("  url: rediss://:s3cret@127.0.0.1:{port}/0\n"));
    await_true("it says why", || distrusts.process.log().to_lowercase().contains("certificate"));
    let missing = format!("  url: rediss://127.0.0.1:{port}/0\n  ca_file: {ca}.no\n");
    let printed = start_master(dir.path(), &missing).assert_refuses_to_start();
    assert!(printed.contains("ca_file") && printed.contains("No such file"), "{printed}");
}

/// The words of the command in the documentation that makes the master's user.
fn documented_user() -> Vec<String> {
    let text = include_str!("../docs/operations.md");
    let line = text.lines().find(|line| line.starts_with("ACL SETUSER ")).expect("it is there");
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_documented_user_suffices_and_a_missing_permission_stops_the_master_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(dir.path(), port, &["--port", &port.to_string()], &[]);
    let user = documented_user();
    let words: Vec<&str> = user.iter().map(String::as_str).collect();
    assert!(server.run_redis_cli(&words).contains("OK"));
    let block = format!("  port: {port}\n  username: longhaul\n  password: PASSWORD\n");
    let mut serving = start_master(dir.path(), &block);
    serving.assert_serves("one");
    // Taken away while the master leads …
    assert!(server.run_redis_cli(&["ACL", "SETUSER", "longhaul", "-hset"]).contains("OK"));
    let printed = serving.assert_refuses_to_start();
    assert!(printed.contains("`hset`") && printed.contains("docs/operations.md"), "{printed}");
    // … and before it starts.
    assert!(server.run_redis_cli(&["ACL", "SETUSER", "longhaul", "+hset", "-time"]).contains("OK"));
    let printed = start_master(dir.path(), &block).assert_refuses_to_start();
    assert!(printed.contains("`time`"), "{printed}");
}

#[test]
fn a_second_installation_on_the_same_redis_is_refused_and_masters_of_one_follow() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(dir.path(), port, &["--port", &port.to_string()], &[]);
    let block = format!("  port: {port}\n");
    let mut first = start_master(dir.path(), &block);
    first.assert_serves("one");
    let name = server
        .run_redis_cli(&["HGET", "{longhaul:default}:meta", "installation"])
        .trim()
        .to_owned();
    // Neither a follower while the first one leads, nor a leader after it.
    for leads in [true, false] {
        let printed = start_master(dir.path(), &block).assert_refuses_to_start();
        let fix = format!("`installation: {name}`");
        for part in ["redis.namespace", fix.as_str()] {
            assert!(printed.contains(part), "{leads}: `{part}` in {printed}");
        }
        if leads {
            assert!(first.process.try_exit_status().is_none());
            first.process.terminate();
        }
    }
    // The first one, started again with its own files, and with a name that another one has as well.
    first.restart();
    first.assert_serves("two");
    first.process.terminate();
    first.configure("installation: site-a");
    first.restart();
    first.assert_serves("three");
    let mut second =
        Master::start_with_config(dir.path(), &format!("installation: site-a\nredis:\n{block}"));
    second.await_following();
    first.process.terminate();
    second.assert_serves("four");
    let printed =
        Master::start_with_config(dir.path(), &format!("installation: site-b\nredis:\n{block}"))
            .assert_refuses_to_start();
    assert!(printed.contains("`site-a`") && printed.contains("`site-b`"), "{printed}");
}

#[test]
fn a_changed_eviction_policy_is_reported_until_it_is_changed_back() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(dir.path(), port, &["--port", &port.to_string()], &[]);
    let mut serving = start_master(dir.path(), &format!("  port: {port}\n"));
    serving.assert_serves("one");
    let readiness = |serving: &Master| {
        let answer = support::http::try_request(&serving.address, "GET", "/readyz", &[], None);
        answer.map(|answer| (answer.status, answer.text())).unwrap_or_default()
    };
    assert!(
        server.run_redis_cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).contains("OK")
    );
    await_true("it is reported", || readiness(&serving).1.contains("allkeys-lru"));
    assert_eq!(readiness(&serving).0, 200, "accepted syncs continue");
    assert_eq!(serving.try_submit("two"), Some(503));
    let log = serving.process.log();
    let line = log.lines().find(|line| line.contains("ERROR") && line.contains("allkeys-lru"));
    assert!(line.is_some(), "{log}");
    let status = support::ctl::ctl(["master", "status", "--master-url", &serving.address]).run();
    assert!(status.stdout_text().contains("allkeys-lru"), "{}", status.stdout_text());
    assert!(
        server.run_redis_cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).contains("OK")
    );
    await_true("nothing is reported any more", || !readiness(&serving).1.contains("problem"));
    serving.assert_serves("three");
}

#[test]
fn an_eviction_policy_that_drops_keys_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let args = ["--port", &port.to_string(), "--maxmemory-policy", "allkeys-lru"];
    let _server = Server::start(dir.path(), port, &args, &[]);
    let printed = start_master(dir.path(), &format!("  port: {port}\n")).assert_refuses_to_start();
    assert!(printed.contains("allkeys-lru") && printed.contains("noeviction"), "{printed}");
}

#[test]
fn the_primary_is_looked_up_at_the_sentinels_also_after_a_failover() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, watch) = (free_port(), free_port(), free_port());
    let server = |port: u16, more: &[&str]| {
        let text = port.to_string();
        let args = [&["--port", &text, "--repl-diskless-sync-delay", "0"][..], more].concat();
        Server::start(dir.path(), port, &args, &[])
    };
    let one = server(first, &[]);
    let leading = first.to_string();
    let two = server(second, &["--replicaof", "127.0.0.1", &leading]);
    let config = dir.path().join("sentinel.conf");
    let text = format!(
        "port {watch}\nsentinel monitor moves 127.0.0.1 {first} 1\nsentinel down-after-milliseconds moves 1000\n\
         sentinel failover-timeout moves 5000\n"
    );
    std::fs::write(&config, text).unwrap();
    let path = config.to_str().unwrap();
    let sentinel = Server::start(dir.path(), watch, &[path, "--sentinel"], &[]);
    let block = |name: &str| {
        format!("  sentinel: {{master: {name}, nodes: [127.0.0.1:1, 127.0.0.1:{watch}]}}\n")
    };
    let mut serving = start_master(dir.path(), &block("moves"));
    serving.assert_serves("before");
    let printed = start_master(dir.path(), &block("others")).assert_refuses_to_start();
    assert!(printed.contains("others") && printed.contains("redis.sentinel.master"), "{printed}");
    await_true("the replica follows", || {
        two.run_redis_cli(&["INFO", "replication"]).contains("link_status:up")
    });
    await_true("the sentinel has found it", || {
        sentinel.run_redis_cli(&["SENTINEL", "replicas", "moves"]).contains(&second.to_string())
    });
    drop(one);
    await_true("the replica leads", || two.run_redis_cli(&["ROLE"]).starts_with("master"));
    serving.assert_serves("after");
    let keys = two.run_redis_cli(&["HKEYS", "{longhaul:default}:records"]);
    assert!(keys.contains("s/1") && keys.contains("s/2"), "{keys}");
}

#[test]
fn a_redis_cluster_keeps_all_keys_on_one_node_and_other_servers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ports: Vec<u16> = std::iter::repeat_with(free_port).take(3).collect();
    let nodes: Vec<Server> = ports
        .iter()
        .map(|port| {
            let (text, bus) = (port.to_string(), free_port().to_string());
            let args = ["--port", &text, "--cluster-enabled", "yes", "--cluster-port", &bus];
            Server::start(dir.path(), *port, &args, &[])
        })
        .collect();
    let at: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    // With the user that the documentation describes.
    let user = documented_user();
    let words: Vec<&str> = user.iter().map(String::as_str).collect();
    nodes.iter().for_each(|node| assert!(node.run_redis_cli(&words).contains("OK")));
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&at)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    for node in &nodes {
        await_true("the cluster works", || {
            node.run_redis_cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
    }
    let as_user = "  username: longhaul\n  password: PASSWORD\n";
    let mut serving =
        start_master(dir.path(), &format!("  cluster: [{}]\n{as_user}", at.join(", ")));
    serving.assert_serves("one");
    serving.assert_serves("two");
    let holding = nodes.iter().filter(|node| node.run_redis_cli(&["DBSIZE"]).trim() != "0").count();
    assert_eq!(holding, 1, "all keys are in one slot");
    // A node that was asked as if it were alone, and a server that is alone asked as a cluster.
    let refused: Vec<String> = ports
        .iter()
        .map(|port| {
            let mut alone = start_master(dir.path(), &format!("  port: {port}\n"));
            await_true("it ends or serves", || {
                alone.process.try_exit_status().is_some()
                    || matches!(alone.try_submit("three"), Some(202 | 307))
            });
            alone.process.log()
        })
        .collect();
    let named = refused.iter().filter(|printed| printed.contains("`redis.cluster`")).count();
    assert_eq!(named, 2, "{refused:#?}");
    let port = free_port();
    let _plain = Server::start(dir.path(), port, &["--port", &port.to_string()], &[]);
    let printed = start_master(dir.path(), &format!("  cluster: [127.0.0.1:{port}]\n"))
        .assert_refuses_to_start();
    assert!(printed.contains("not a cluster"), "{printed}");
}
