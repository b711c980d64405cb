//! Commands that lose their replies: the master has executed them and the client does not know it. Commands about
//! several things, one of which fails. And which of their requests go through a proxy of the environment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::cluster::{Cluster, StoreKind};
use support::ctl::{Ctl, ctl};
use support::http;
use support::ports::free_port;
use support::process::CommandOutput;
use support::tree::make_dir;

/// Passes each request on to a master, and closes the connection instead of passing the reply back: for the
/// next so many requests that may change something.
struct LossyProxy {
    url: String,
    replies_to_lose: Arc<AtomicUsize>,
}

impl LossyProxy {
    fn start(address: String) -> LossyProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let left = Arc::new(AtomicUsize::new(0));
        let lost = Arc::clone(&left);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (address, lost) = (address.clone(), Arc::clone(&lost));
                std::thread::spawn(move || relay_request(stream, &address, &lost));
            }
        });
        LossyProxy { url, replies_to_lose: left }
    }

    fn lose(&self, replies: usize) {
        self.replies_to_lose.store(replies, Ordering::SeqCst);
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

fn relay_request(mut stream: TcpStream, address: &str, left: &AtomicUsize) {
    let Some((head, body)) = read_request(&stream) else { return };
    // The answer ends with the connection.
    let sent = head.replacen("\r\n", "\r\nConnection: close\r\n", 1).into_bytes();
    let Some(answer) = http::send_raw(address, &[sent, body].concat()) else { return };
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

fn list_syncs(cluster: &Cluster) -> Vec<Value> {
    cluster.master.get("/sync").json().as_array().unwrap().clone()
}

fn send_heartbeat(cluster: &Cluster, worker: &str) {
    let beat = json!({"worker_id": worker, "status": "READY", "storage_paths": ["/nowhere"]});
    assert_eq!(cluster.master.post("/workers/heartbeat", &beat).status, 200);
}

#[test]
fn a_command_with_a_lost_reply_reports_the_result_of_the_retry() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let lossy = LossyProxy::start(cluster.master.address());
    send_heartbeat(&cluster, "w");
    // Lost once: sent again at once, on a new connection. Lost three times: sent again after a pause.
    for lost in [1, 3] {
        let run = |args: &[&str]| {
            lossy.lose(lost);
            let ran = lossy.ctl(args).run().assert_exit_code(0);
            assert_eq!(lossy.replies_to_lose.load(Ordering::SeqCst), 0, "{args:?}");
            ran
        };
        let id = run(&["sync", "submit", "/a", "/b", "-q"]).stdout_text().trim().to_owned();
        let listed = list_syncs(&cluster);
        assert_eq!((listed.len(), &listed[0]["request_id"]), (1, &json!(id)));
        assert!(run(&["sync", "pause", &id]).stdout_text().contains("is paused"));
        assert!(run(&["sync", "resume", &id]).stdout_text().contains("is resumed"));
        assert!(
            run(&["sync", "set", &id, "--bwlimit", "1MiB/s"]).stdout_text().contains("at most")
        );
        assert!(run(&["sync", "cancel", &id]).stdout_text().contains("cancelled"));
        let made = run(&["sync", "retry", &id, "-q"]).stdout_text().trim().to_owned();
        assert_eq!(list_syncs(&cluster).len(), 2, "retried once");
        assert!(list_syncs(&cluster).iter().any(|s| s["request_id"] == made[..]));
        assert!(run(&["sync", "delete", &id, &made]).stdout_text().contains("deleted"));
        assert!(list_syncs(&cluster).is_empty());
        assert!(run(&["workers", "drain", "w"]).stdout_text().contains("is drained"));
        assert!(run(&["workers", "undrain", "w"]).stdout_text().contains("is undrained"));
        run(&["admin", "reconcile"]);
    }
}

#[test]
fn a_command_that_loses_all_replies_names_the_command_that_shows_the_state() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let lossy = LossyProxy::start(cluster.master.address());
    send_heartbeat(&cluster, "w");
    for id in ["stopped", "removed", "slowed", "again"] {
        let request = json!({"request_id": id, "source_path": "/a", "destination_path": "/b"});
        assert_eq!(cluster.master.post("/sync", &request).status, 202);
    }
    lossy.ctl(&["sync", "cancel", "again"]).run().assert_exit_code(0);
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
    let ended: Vec<(&[&str], &str, CommandOutput)> = started
        .into_iter()
        .map(|(args, show, running)| {
            (args, show, running.finish(support::MAX_WAIT).assert_exit_code(5))
        })
        .collect();
    lossy.lose(0);
    for (args, show, ran) in &ended {
        let text = ran.stderr_text();
        assert!(text.contains("may have been") && text.contains(&lossy.url), "{args:?}: {text}");
        assert!(ran.stdout.is_empty() && text.contains(show), "{args:?}: {text}");
    }
    // What was submitted and retried was accepted once, under the id that is named.
    let listed = list_syncs(&cluster);
    assert_eq!(listed.len(), 5, "{listed:#?}");
    for nth in [0, 4] {
        let text = ended[nth].2.stderr_text();
        let (_, rest) = text.split_once("ctl sync status ").expect(&text);
        let id = rest.split_whitespace().next().unwrap();
        assert!(listed.iter().any(|sync| sync["request_id"] == id), "{id} in {text}");
        lossy.ctl(&["sync", "status", id]).run().assert_exit_code(0);
        if nth == 0 {
            assert!(text.contains(&format!("sync {id} may have been accepted")), "{text}");
            // Submitting it again as the message says makes no second one.
            lossy.ctl(&["sync", "submit", "/a", "/b", "--id", id]).run().assert_exit_code(6);
        }
    }
}

#[test]
fn a_command_that_reaches_no_master_ends_at_once_and_claims_nothing() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in
        [&["sync", "submit", "/a", "/b"][..], &["sync", "cancel", "x"], &["workers", "drain", "w"]]
    {
        let text = ctl(args).env("CTL_MASTER_URL", &url).run().assert_exit_code(5).stderr_text();
        assert!(text.contains("no master can be reached"), "{text}");
        assert!(!text.contains("may have been"), "{text}");
    }
}

/// A master that answers each request by the last component of its path.
fn serve_fake_master(answer: fn(&str) -> (u16, String)) -> String {
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
                // From here on there is no master.
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

fn respond_by_name(name: &str) -> (u16, String) {
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
            let all = json!({"status": status, "worker_id": name, "requeued": 0, "in_flight": 0, "state": "DRAINED", "incoming_requests": 0,
                             "drained": drained});
            (200, all.to_string())
        }
    }
}

#[test]
fn one_failure_does_not_stop_the_other_ids_and_the_worst_exit_code_wins() {
    let url = serve_fake_master(respond_by_name);
    let run = |args: &[&str]| ctl(args).env("CTL_MASTER_URL", &url).run();
    for verb in ["forget", "drain"] {
        for (ids, code) in [
            (["a", "wrong", "b"], 2),
            (["a", "alive", "b"], 6),
            (["unknown", "a", "b"], 3),
            (["a", "broken", "b"], 1),
        ] {
            let ran = run(&["workers", verb, ids[0], ids[1], ids[2]]).assert_exit_code(code);
            assert_eq!(ran.stdout_text().lines().count(), 2, "{}", ran.stdout_text());
            assert!(
                ran.stdout_text().contains("Worker a ") && ran.stdout_text().contains("Worker b ")
            );
            let failed = ids.iter().find(|id| id.len() > 1).unwrap();
            assert!(
                ran.stderr_text().contains(&format!("{failed}: it is {failed}"))
                    || ran.stderr_text().contains(failed)
            );
        }
        let worst = run(&["workers", verb, "alive", "broken", "unknown", "a"]).assert_exit_code(1);
        assert_eq!(worst.stderr_text().lines().filter(|line| line.contains("error: ")).count(), 3);
        let json = run(&["workers", verb, "a", "broken", "b", "-o", "json"]).assert_exit_code(1);
        assert_eq!(json.json().as_array().unwrap().len(), 2);
    }
}

#[test]
fn ids_that_were_not_tried_are_named_when_no_master_answers() {
    for args in
        [&["workers", "forget", "a", "away", "b", "c"][..], &["sync", "status", "away", "b", "c"]]
    {
        let url = serve_fake_master(respond_by_name);
        let ran = ctl(args).env("CTL_MASTER_URL", &url).run().assert_exit_code(5);
        assert!(
            ran.stderr_text().lines().any(|line| line == "not tried: b c"),
            "{}",
            ran.stderr_text()
        );
        assert_eq!(ran.stdout_text().contains("Worker a is forgotten"), args[0] == "workers");
    }
}

#[test]
fn the_other_syncs_are_shown_when_one_cannot_be_read() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let there = make_dir(cluster.data_path("src"));
    let id = cluster.submit(&there, &cluster.data_path("dst"));
    let ran = cluster.ctl(["sync", "status", "nothing", &id]).run().assert_exit_code(3);
    assert!(
        ran.stdout_text().contains(&id) && ran.stderr_text().contains("nothing"),
        "{}",
        ran.stdout_text()
    );
}

#[test]
fn proxy_variables_apply_only_to_masters_on_other_hosts() {
    let cluster = Cluster::start(StoreKind::Embedded);
    // The proxy gets the whole URL: `http:`, nothing, the host.
    let proxy = serve_fake_master(|host| match host {
        "192.0.2.7:8888" => (200, r#"{"active": [], "inactive": []}"#.to_owned()),
        other => problem(502, other),
    });
    let run = |url: &str| {
        let list = ctl(["workers", "list"]).env("CTL_MASTER_URL", url);
        list.env("http_proxy", &proxy).env("HTTP_PROXY", &proxy).run()
    };
    run(&cluster.master.url()).assert_exit_code(0);
    run("http://192.0.2.7:8888").assert_exit_code(0);
    // One of several that is elsewhere needs it.
    run(&format!("http://192.0.2.7:8888,http://127.0.0.1:{}", free_port())).assert_exit_code(0);
}
