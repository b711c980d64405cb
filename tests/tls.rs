//! The API over TLS, in a network namespace in which a master has a loopback address and another one. These tests need
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use std::fs;
use std::io::Read as _;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use support::await_true;
use support::lab::{ADDRESS, Lab, SECOND_ADDRESS, url};
use support::redis::RedisServer;
use support::tree::{
    assert_same, exact_comparison, make_dir, random_bytes, write_file, write_many_files,
};

/// All protocols, for a packet socket.
const ETH_P_ALL: u16 = 3;

#[test]
fn a_cluster_syncs_over_tls_and_clients_accept_only_its_authority() {
    let mut lab = Lab::new();
    let (src, dst) = (make_dir(lab.path("src")), make_dir(lab.path("dst")));
    write_file(src.join("large"), random_bytes(9 << 20, 1));
    write_file(src.join("dir/small"), "small");
    lab.start_master(&format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n"));
    let ca = lab.path("state/ca.pem");
    lab.join_agent("a", &src);
    lab.join_agent("b", &dst);
    lab.await_workers(&["a", "b"]);
    for secret in ["identity-a.json", "identity-b.json"] {
        let file = lab.path(&format!("state-{}/{secret}", &secret[9..10]));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    let [from, to] = [&src, &dst].map(|path| path.to_str().unwrap());
    let ran = lab.admin(&["sync", "submit", from, to, "--wait", "-o", "json"]);
    let sync: SyncProgress = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(sync.outcome, Some(SyncOutcome::Full));
    assert_same(&src, &dst, exact_comparison());
    // Plain HTTP on loopback, as without TLS.
    let local = lab.ctl(&["workers", "list", "-q"], "http://127.0.0.1:8888", None);
    assert_eq!(local.assert_exit_code(0).stdout_text(), "a\nb\n");

    let refused = |url: &str, ca: Option<&Path>, code: i32, expected: &str| {
        let ran = lab.ctl(&["workers", "list"], url, ca).assert_exit_code(code);
        let text = ran.stderr_text();
        assert!(text.contains(expected), "{url}: {text}");
    };
    let other = lab.make_other_authority();
    refused(&url(), Some(&other), 5, "the certificate of the server is of another authority");
    refused(&url(), None, 2, "--ca-file");
    refused(&url(), Some(&lab.path("none.pem")), 78, "none.pem");
    refused(&format!("http://{ADDRESS}:8888"), None, 2, "use https://");
    refused("https://127.0.0.1:8888", Some(&ca), 5, "does not speak TLS");
    // Without a token nobody has rights there, but probes work.
    let anyone = |args: &[&str]| lab.ctl_without_token(args, &ca);
    let refused = anyone(&["workers", "list"]).assert_exit_code(4);
    assert!(refused.stderr_text().contains("has no credentials"), "{}", refused.stderr_text());
    anyone(&["master", "status"]).assert_exit_code(0);
}

/// All that goes over the loopback interface of a network namespace.
struct Capture {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

/// What is sent there to show that it would be found.
const CONTROL: &[u8] = b"a datagram that everybody may read";

impl Capture {
    fn start(pid: u32) -> Capture {
        let stopped = Arc::new(AtomicBool::new(false));
        let (until, (ready, started)) = (Arc::clone(&stopped), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            let all = i32::from(ETH_P_ALL.to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all))).unwrap();
            socket.set_recv_buffer_size(64 << 20).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(CONTROL, "127.0.0.1:9").unwrap();
            ready.send(()).unwrap();
            let (mut captured, mut room) = (Vec::new(), vec![0; 128 << 10]);
            loop {
                match (&socket).read(&mut room) {
                    Ok(n) => captured.extend(&room[..n]),
                    // Nothing was left at the moment of the stop.
                    Err(_) if until.load(Ordering::Acquire) => return captured,
                    Err(_) => {}
                }
            }
        });
        started.recv().unwrap();
        Capture { stopped, thread }
    }

    fn finish(self) -> Vec<u8> {
        self.stopped.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

#[test]
fn agents_with_certificates_show_nothing_of_what_they_exchange() {
    let mut lab = Lab::new();
    let (src, dst) = (make_dir(lab.path("src")), make_dir(lab.path("dst")));
    let secret = b"these are the words that nobody may read";
    write_file(src.join("large"), secret.repeat(100_000));
    write_file(src.join("a-secret-name"), secret);
    lab.start_master(&format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n"));
    lab.join_agent("a", &src);
    lab.join_agent("b", &dst);
    lab.await_workers(&["a", "b"]);
    let capture = Capture::start(lab.namespace_pid());
    let [from, to] = [&src, &dst].map(|path| path.to_str().unwrap());
    let ran = lab.admin(&["sync", "submit", from, to, "--wait", "-o", "json"]);
    let sync: SyncProgress = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(sync.outcome, Some(SyncOutcome::Full));
    assert_same(&src, &dst, exact_comparison());
    let captured = capture.finish();
    let has = |text: &[u8]| captured.windows(text.len()).any(|window| window == text);
    assert!(captured.len() > secret.len() * 100_000 && has(CONTROL), "{}", captured.len());
    for text in [&secret[..], b"a-secret-name", b"longhaul-frames"] {
        assert!(!has(text), "{}", String::from_utf8_lossy(text));
    }
    // An agent without a certificate, which the kernel lets in as root over loopback, is refused by both of them.
    let other = make_dir(lab.path("other"));
    write_file(other.join("f"), "f");
    lab.start_agent_at("http://127.0.0.1:8888", "c", &other, "");
    lab.await_workers(&["a", "b", "c"]);
    let other = other.to_str().unwrap();
    for (id, from, to, sender, reason) in [
        ("from-plain", other, to, "c", "--join-token-file"),
        ("to-plain", from, other, "a", "does not use TLS"),
    ] {
        lab.admin(&["sync", "submit", from, to, "--id", id]);
        lab.await_agent_log(sender, reason);
        // A submitter does not learn what is at the address.
        let log = format!("see the log of agent {sender}");
        await_true(&format!("{id} names the log"), || {
            lab.admin(&["sync", "status", id, "-o", "json"]).stdout_text().contains(&log)
        });
        lab.admin(&["sync", "cancel", id]);
    }
}

#[test]
fn an_agent_of_another_installation_does_not_send_its_token() {
    let mut lab = Lab::new();
    lab.start_master(&format!("listen: {ADDRESS}:8888\n"));
    let storage = make_dir(lab.path("data"));
    let file = lab.create_join_token("a", &storage, &[]);
    let token = fs::read_to_string(&file).unwrap();
    let hash = token.split('.').nth(1).unwrap();
    fs::write(&file, token.replace(hash, &"0".repeat(64))).unwrap();
    let config = format!("join_token_file: {}\n", file.display());
    lab.start_agent("a", &storage, &config);
    lab.await_agent_log("a", "so the token was not sent");
    lab.kill_agent("a");
    let list = lab.admin(&["token", "list"]).stdout_text();
    let row = list.lines().find(|line| line.contains(token.split('.').nth(2).unwrap())).unwrap();
    assert!(row.contains("valid"), "{row}");
    // Nor does one with the certificate of another authority trust the master.
    let other = lab.make_other_authority();
    lab.start_agent("b", &storage, &format!("ca_file: {}\n", other.display()));
    lab.await_agent_log("b", "the certificate of the server is of another authority");
    assert_eq!(lab.admin(&["workers", "list", "-q"]).stdout_text(), "");
}

#[test]
fn a_join_token_is_good_for_one_agent_of_its_worker_until_it_expires() {
    let mut lab = Lab::new();
    lab.start_master(&format!("listen: {ADDRESS}:8888\n"));
    let storage = make_dir(lab.path("data"));
    let token = lab.create_join_token("a", &storage, &[]);
    let config = format!("join_token_file: {}\n", token.display());
    let refused = |lab: &Lab, worker: &str, config: &str, expected: &str| {
        let ran = lab.run_agent(worker, &storage, config).assert_exit_code(78);
        let text = ran.stderr_text() + &ran.stdout_text();
        assert!(text.contains(expected) && text.contains("ctl token create --join"), "{text}");
    };
    refused(&lab, "b", &config, "is for worker `a`, not for `b`");
    lab.start_agent("a", &storage, &config);
    lab.await_workers(&["a"]);
    lab.kill_agent("a");
    // Another agent under this name: it has the token and not the key.
    let (state, kept) = (lab.path("state-a"), lab.path("kept-a"));
    fs::rename(&state, &kept).unwrap();
    refused(&lab, "a", &config, "was used before, by another agent");
    // The own agent needs the token no more.
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&kept, &state).unwrap();
    fs::remove_file(&token).unwrap();
    lab.start_agent("a", &storage, &config);
    lab.await_agent_log("a", "connected to the master");
    let late = lab.create_join_token("c", &storage, &["--ttl", "1s"]);
    await_true("the token has expired", || {
        lab.admin(&["token", "list"]).stdout_text().contains("expired")
    });
    let config = format!("join_token_file: {}\n", late.display());
    refused(&lab, "c", &config, "has expired");
    // A storage path that the token does not grant is not used.
    let config =
        format!("join_token_file: {}\n", lab.create_join_token("d", &storage, &[]).display());
    let outside = make_dir(lab.path("outside"));
    lab.start_agent("d", &outside, &config);
    lab.await_agent_log("d", "did not grant these storage paths");
    let view = lab.admin(&["workers", "show", "d", "-o", "json"]);
    assert_eq!(view.json()["storage_paths"], serde_json::json!([]));
}

#[test]
fn a_certificate_is_renewed_before_it_expires() {
    let mut lab = Lab::new();
    lab.start_master(&format!("listen: {ADDRESS}:8888\nagent_certificate_lifetime: 30s\n"));
    let storage = make_dir(lab.path("data"));
    lab.join_agent("a", &storage);
    lab.await_workers(&["a"]);
    let file = lab.path("state-a/identity-a.json");
    let first = fs::read(&file).unwrap();
    lab.await_agent_log("a", "the certificate is renewed");
    assert_ne!(fs::read(&file).unwrap(), first);
    assert!(!lab.agent_log("a").contains("heartbeat failed"), "{}", lab.agent_log("a"));
}

#[test]
fn a_worker_that_is_revoked_during_a_sync_is_out_and_another_one_does_its_work() {
    let mut lab = Lab::new();
    let (src, dst) = (make_dir(lab.path("src")), make_dir(lab.path("dst")));
    write_many_files(&src, 300, 1 << 10);
    write_file(src.join("large"), random_bytes(24 << 20, 1));
    lab.start_master(&format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n"));
    for (name, storage) in [("a1", &src), ("a2", &src), ("b", &dst)] {
        lab.join_agent(name, storage);
    }
    lab.await_workers(&["a1", "a2", "b"]);
    let [from, to] = [&src, &dst].map(|path| path.to_str().unwrap());
    let limit = ["--bwlimit", "1MiB/s", "--chunk-size-mb", "1"];
    lab.admin(&[&["sync", "submit", from, to, "--id", "s"], &limit[..]].concat());
    await_true("a1 has tasks", || {
        lab.admin(&["workers", "show", "a1", "-o", "json"]).json()["in_flight"] != 0
    });
    lab.admin(&["workers", "revoke", "a1"]);
    lab.await_agent_log("a1", "was revoked");
    let list = lab.admin(&["workers", "list"]).stdout_text();
    let row = list.lines().find(|line| line.contains("a1")).unwrap();
    assert!(row.contains("REVOKED"), "{list}");
    lab.admin(&["sync", "set", "s", "--bwlimit", "none"]);
    let ended = lab.admin(&["sync", "wait", "s", "-o", "json"]);
    let sync: SyncProgress = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(sync.outcome, Some(SyncOutcome::Full));
    assert_same(&src, &dst, exact_comparison());
    assert_eq!(lab.admin(&["workers", "list", "-q"]).stdout_text(), "a2\nb\n");
    // It stays refused until it joins again, also after a restart.
    lab.kill_agent("a1");
    lab.start_agent("a1", &src, "");
    lab.await_agent_log("a1", "was revoked");
    lab.kill_agent("a1");
    lab.join_agent("a1", &src);
    lab.await_workers(&["a1", "a2", "b"]);
}

#[test]
fn an_agent_that_joined_one_master_works_for_the_next_one_with_the_same_authority() {
    let redis = RedisServer::start();
    let mut lab = Lab::new();
    let shared =
        format!("installation: site\nleadership_lease: 1s\nredis: {{url: '{}'}}\n", redis.url());
    lab.start_master(&format!("listen: {ADDRESS}:8888\n{shared}"));
    let second = format!("listen: {SECOND_ADDRESS}:8888\n{shared}");
    let (state, other) = (lab.path("state"), make_dir(lab.path("state-2")));
    fs::copy(state.join("secrets.key"), other.join("secrets.key")).unwrap();
    // Clients of one of them would refuse the other one.
    let foreign = lab.make_other_authority();
    for file in ["ca.pem", "ca.key"] {
        fs::copy(foreign.with_file_name(file), other.join(file)).unwrap();
    }
    let refused = lab.run_second_master(&second).assert_exit_code(78);
    let text = refused.stderr_text();
    assert!(text.contains("is another one than that of"), "{text}");
    for file in ["ca.pem", "ca.key"] {
        fs::remove_file(other.join(file)).unwrap();
    }
    // Without an authority it takes that of the store, where the key is sealed.
    lab.start_second_master(&second);
    for file in ["ca.pem", "ca.key"] {
        assert_eq!(fs::read(other.join(file)).unwrap(), fs::read(state.join(file)).unwrap());
    }
    let key = fs::read_to_string(state.join("ca.key")).unwrap();
    let secret = key.lines().nth(1).unwrap().as_bytes().to_owned();
    let aof = redis.save_aof();
    let has = |text: &[u8]| {
        let mut files = fs::read_dir(aof.path()).unwrap().map(|file| file.unwrap().path());
        files.any(|file| fs::read(file).unwrap().windows(text.len()).any(|part| part == text))
    };
    assert!(has(b"sealed_key") && !has(&secret));
    let storage = make_dir(lab.path("data"));
    lab.join_agent("a", &storage);
    lab.await_workers(&["a"]);
    lab.kill_first_master();
    let url = format!("https://{SECOND_ADDRESS}:8888");
    let ca = state.join("ca.pem");
    let ctl = |args: &[&str]| lab.ctl(args, &url, Some(&ca)).assert_exit_code(0);
    await_true("the second master has the worker", || {
        ctl(&["workers", "list", "-q"]).stdout_text() == "a\n"
    });
    ctl(&["workers", "revoke", "a"]);
    lab.await_agent_log("a", "was revoked");
}

#[test]
fn a_master_without_usable_tls_ends_with_78_unless_it_is_insecure() {
    let lab = Lab::new();
    let state = make_dir(lab.path("state"));
    fs::write(state.join("ca.pem"), "no certificate").unwrap();
    support::tree::chmod(state.join("ca.pem"), 0o600);
    let ran = lab.run_master(&format!("listen: {ADDRESS}:8888\n"), &[]).assert_exit_code(78);
    let text = ran.stderr_text();
    for expected in ["ca.pem", "listen on loopback only", "--insecure", ADDRESS] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let mut lab = lab;
    lab.start_master(&format!("listen: {ADDRESS}:8888\ninsecure: true\n"));
    let url = format!("http://{ADDRESS}:8888");
    let status = lab.ctl(&["master", "status", "-o", "json"], &url, None).assert_exit_code(0);
    let warning = status.json()[0]["warnings"][0].as_str().unwrap().to_owned();
    assert!(warning.contains(ADDRESS) && warning.contains("all rights"), "{warning}");
    assert!(lab.master_log().contains("INSECURE: "), "{}", lab.master_log());
}
