//! Commands whose replies are lost: the master has carried them out and nobody was informed. Commands about
//! several things, one of which fails. And which of their requests go through a proxy of the environment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::cluster::{Cluster, On, free_port};
use support::ctl::{Ctl, ctl};
use support::http;
use support::process::Ran;
use support::tree::dir;

/// Passes each request on to a master, and closes the connection instead of passing the reply back: for the
/// next so many requests that may change something.
struct Lossy {
    url: String,
    left: Arc<AtomicUsize>,
}

impl Lossy {
    fn before(address: String) -> Lossy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let left = Arc::new(AtomicUsize::new(0));
        let lost = Arc::clone(&left);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (address, lost) = (address.clone(), Arc::clone(&lost));
                std::thread::spawn(move || pass(stream, &address, &lost));
            }
        });
        Lossy { url, left }
    }

    fn lose(&self, replies: usize) {
        self.left.store(replies, Ordering::SeqCst);
    }

    fn ctl(&self, args: &[&str]) -> Ctl {
        ctl(args).env("CTL_MASTER_URL", &self.url)
    }
}

/// Reads one request, head and body.
fn read_request(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn pass(mut stream: TcpStream, address: &str, left: &AtomicUsize) {
    let Some((head, body)) = read_request(&stream) else { return };
    // The answer ends with the connection.
    let sent = head.replacen("\r\n", "\r\nConnection: close\r\n", 1).into_bytes();
    let Some(answer) = http::raw(address, &[sent, body].concat()) else { return };
    let changes = !head.starts_with("GET ");
    let take = |left: usize| left.checked_sub(1);
    if changes && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
        return;
    }
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    text.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    let keep = |name: &str| !["connection", "content-length"].contains(&name);
    for (name, value) in &answer.headers {
        if keep(&name.to_ascii_lowercase()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("\r\n");
    let _ = stream.write_all(&[text.into_bytes(), answer.body].concat());
}

fn syncs(cluster: &Cluster) -> Vec<Value> {
    cluster.master.get("/sync").json().as_array().unwrap().clone()
}

fn beat(cluster: &Cluster, worker: &str) {
    let beat = json!({"worker_id": worker, "status": "READY", "storage_paths": ["/nowhere"]});
    assert_eq!(cluster.master.post("/workers/heartbeat", &beat).status, 200);
}

#[test]
fn a_command_whose_reply_is_lost_reports_what_the_repeat_shows() {
    let cluster = Cluster::start(On::Embedded);
    let lossy = Lossy::before(cluster.master.address());
    beat(&cluster, "w");
    // Lost once: sent again at once, on a new connection. Lost three times: sent again after a pause.
    for lost in [1, 3] {
        let run = |args: &[&str]| {
            lossy.lose(lost);
            let ran = lossy.ctl(args).run().exits(0);
            assert_eq!(lossy.left.load(Ordering::SeqCst), 0, "{args:?}");
            ran
        };
        let id = run(&["sync", "submit", "/a", "/b", "-q"]).out().trim().to_owned();
        let listed = syncs(&cluster);
        assert_eq!((listed.len(), &listed[0]["request_id"]), (1, &json!(id)));
        assert!(run(&["sync", "pause", &id]).out().contains("is paused"));
        assert!(run(&["sync", "resume", &id]).out().contains("is resumed"));
        assert!(run(&["sync", "set", &id, "--bwlimit", "1MiB/s"]).out().contains("at most"));
        assert!(run(&["sync", "cancel", &id]).out().contains("cancelled"));
        let made = run(&["sync", "retry", &id, "-q"]).out().trim().to_owned();
        assert_eq!(syncs(&cluster).len(), 2, "retried once");
        assert!(syncs(&cluster).iter().any(|s| s["request_id"] == made[..]));
        assert!(run(&["sync", "delete", &id, &made]).out().contains("deleted"));
        assert!(syncs(&cluster).is_empty());
        assert!(run(&["workers", "drain", "w"]).out().contains("is drained"));
        assert!(run(&["workers", "undrain", "w"]).out().contains("is undrained"));
        run(&["admin", "reconcile"]);
    }
}

#[test]
fn a_command_whose_replies_are_all_lost_names_what_to_ask_for() {
    let cluster = Cluster::start(On::Embedded);
    let lossy = Lossy::before(cluster.master.address());
    beat(&cluster, "w");
    for id in ["stopped", "removed", "slowed", "again"] {
        let request = json!({"request_id": id, "source_path": "/a", "destination_path": "/b"});
        assert_eq!(cluster.master.post("/sync", &request).status, 202);
    }
    lossy.ctl(&["sync", "cancel", "again"]).run().exits(0);
    lossy.lose(usize::MAX);
    // Side by side: each of them tries for some seconds.
    let started = [
        (&["sync", "submit", "/a", "/b"][..], ""),
        (&["sync", "cancel", "stopped"], "ctl sync status stopped"),
        (&["sync", "delete", "removed"], "ctl sync status removed"),
        (&["sync", "set", "slowed", "--bwlimit", "none"], "ctl sync status slowed"),
        (&["sync", "retry", "again"], ""),
        (&["workers", "drain", "w"], "ctl workers show w"),
    ]
    .map(|(args, show)| (args, show, lossy.ctl(args).start()));
    let ended: Vec<(&[&str], &str, Ran)> = started
        .into_iter()
        .map(|(args, show, running)| (args, show, running.finish(support::PATIENCE).exits(5)))
        .collect();
    lossy.lose(0);
    for (args, show, ran) in &ended {
        let text = ran.err();
        assert!(text.contains("may have been") && text.contains(&lossy.url), "{args:?}: {text}");
        assert!(ran.stdout.is_empty() && text.contains(show), "{args:?}: {text}");
    }
    // What was submitted and retried was accepted once, under the id that is named.
    let listed = syncs(&cluster);
    assert_eq!(listed.len(), 5, "{listed:#?}");
    for nth in [0, 4] {
        let text = ended[nth].2.err();
        let (_, rest) = text.split_once("ctl sync status ").expect(&text);
        let id = rest.split_whitespace().next().unwrap();
        assert!(listed.iter().any(|sync| sync["request_id"] == id), "{id} in {text}");
        lossy.ctl(&["sync", "status", id]).run().exits(0);
        if nth == 0 {
            assert!(text.contains(&format!("sync {id} may have been accepted")), "{text}");
            // Submitting it again as the message says makes no second one.
            lossy.ctl(&["sync", "submit", "/a", "/b", "--id", id]).run().exits(6);
        }
    }
}

#[test]
fn a_command_that_reached_nobody_ends_at_once_and_promises_nothing() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in
        [&["sync", "submit", "/a", "/b"][..], &["sync", "cancel", "x"], &["workers", "drain", "w"]]
    {
        let text = ctl(args).env("CTL_MASTER_URL", &url).run().exits(5).err();
        assert!(text.contains("no master can be reached"), "{text}");
        assert!(!text.contains("may have been"), "{text}");
    }
}

/// A master that answers each request by the last component of its path.
fn played(answer: fn(&str) -> (u16, String)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Some((head, _)) = read_request(&stream) else { continue };
            let path = head.split(' ').nth(1).unwrap();
            let name = path.split('/').nth(2).unwrap();
            let (status, body) = answer(name);
            if status == 0 {
                // From here on nobody is there.
                return;
            }
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let _ = stream.write_all(text.as_bytes());
        }
    });
    url
}

fn problem(status: u16, code: &str) -> (u16, String) {
    let problem =
        json!({"title": "No", "status": status, "detail": format!("it is {code}"), "code": code});
    (status, problem.to_string())
}

fn by_name(name: &str) -> (u16, String) {
    match name {
        "wrong" => problem(422, "wrong"),
        "alive" => problem(409, "alive"),
        "unknown" => problem(404, "unknown"),
        "broken" => problem(500, "broken"),
        "away" => (0, String::new()),
        // Fits a worker that is drained and one that is forgotten.
        name => {
            let drained = json!({"since": "2026-01-01T00:00:00Z"});
            let status = "forgotten";
            let all = json!({"status": status, "worker_id": name, "requeued": 0, "in_flight": 0, "state": "DRAINED", "receiving": 0,
                             "drained": drained});
            (200, all.to_string())
        }
    }
}

#[test]
fn one_that_fails_does_not_keep_the_others_from_their_turn_and_the_worst_code_counts() {
    let url = played(by_name);
    let run = |args: &[&str]| ctl(args).env("CTL_MASTER_URL", &url).run();
    for verb in ["forget", "drain"] {
        for (ids, code) in [
            (["a", "wrong", "b"], 2),
            (["a", "alive", "b"], 6),
            (["unknown", "a", "b"], 3),
            (["a", "broken", "b"], 1),
        ] {
            let ran = run(&["workers", verb, ids[0], ids[1], ids[2]]).exits(code);
            assert_eq!(ran.out().lines().count(), 2, "{}", ran.out());
            assert!(ran.out().contains("Worker a ") && ran.out().contains("Worker b "));
            let failed = ids.iter().find(|id| id.len() > 1).unwrap();
            assert!(
                ran.err().contains(&format!("{failed}: it is {failed}"))
                    || ran.err().contains(failed)
            );
        }
        let worst = run(&["workers", verb, "alive", "broken", "unknown", "a"]).exits(1);
        assert_eq!(worst.err().lines().filter(|line| line.contains("error: ")).count(), 3);
        let json = run(&["workers", verb, "a", "broken", "b", "-o", "json"]).exits(1);
        assert_eq!(json.json().as_array().unwrap().len(), 2);
    }
}

#[test]
fn where_no_master_is_left_what_was_not_tried_is_named() {
    for args in
        [&["workers", "forget", "a", "away", "b", "c"][..], &["sync", "status", "away", "b", "c"]]
    {
        let url = played(by_name);
        let ran = ctl(args).env("CTL_MASTER_URL", &url).run().exits(5);
        assert!(ran.err().lines().any(|line| line == "not tried: b c"), "{}", ran.err());
        assert_eq!(ran.out().contains("Worker a is forgotten"), args[0] == "workers");
    }
}

#[test]
fn the_state_of_the_others_is_shown_where_one_can_not_be_asked_for() {
    let cluster = Cluster::start(On::Embedded);
    let there = dir(cluster.path("src"));
    let id = cluster.submit(&there, &cluster.path("dst"));
    let ran = cluster.ctl(["sync", "status", "nothing", &id]).run().exits(3);
    assert!(ran.out().contains(&id) && ran.err().contains("nothing"), "{}", ran.out());
}

#[test]
fn a_proxy_of_the_environment_is_for_masters_on_other_hosts_only() {
    let cluster = Cluster::start(On::Embedded);
    // The proxy gets the whole URL: `http:`, nothing, the host.
    let proxy = played(|host| match host {
        "192.0.2.7:8888" => (200, r#"{"active": [], "inactive": []}"#.to_owned()),
        other => problem(502, other),
    });
    let run = |url: &str| {
        let list = ctl(["workers", "list"]).env("CTL_MASTER_URL", url);
        list.env("http_proxy", &proxy).env("HTTP_PROXY", &proxy).run()
    };
    run(&cluster.master.url()).exits(0);
    run("http://192.0.2.7:8888").exits(0);
    // One of several that is elsewhere needs it.
    run(&format!("http://192.0.2.7:8888,http://127.0.0.1:{}", free_port())).exits(0);
}
