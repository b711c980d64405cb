//! Floods from one address, 127.0.0.2, while clients of another one, 127.0.0.1, work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::http::try_request;
use support::tree::{assert_same, census, exact_comparison, write_many_files};
use support::{MAX_WAIT, await_some, await_true};

/// A connection from the address of the flood.
fn connect(address: &str, begin: &[u8]) -> TcpStream {
    let flood: SocketAddr = "127.0.0.2:0".parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(flood)).unwrap();
    socket.connect(&SockAddr::from(address.parse::<SocketAddr>().unwrap())).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
    stream.set_write_timeout(Some(MAX_WAIT)).unwrap();
    // It may be closed already.
    let _ = stream.write_all(begin);
    stream
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    read.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_sync_runs_while_another_address_holds_all_the_connections_that_it_gets() {
    let limits = "limits: {max_connections: 256, max_unverified_connections: 32}\n";
    let mut cluster = Cluster::start_with(StoreKind::Embedded, limits);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 200, 10);
    let address = cluster.master.address();
    let begins: [&[u8]; 3] = [b"", b"GET /sync HTTP/1.1\r\nX: ", b"\x16\x03\x01"];
    let flood = |count: usize| -> Vec<TcpStream> {
        begins.iter().cycle().take(count).map(|begin| connect(&address, begin)).collect()
    };
    let mut first = flood(400);
    // The oldest are closed for newer ones, of which none can wait for the time-out of the others.
    let newest = first.split_off(400 - 32);
    for mut closed in first {
        // A request that is none has a reply. What fails is a reset; a time-out would be none.
        let ended = closed.read_to_end(&mut Vec::new());
        assert!(!ended.is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
    }
    // A third begins with a byte that is no HTTP.
    assert!(newest.iter().filter(|stream| is_open(stream)).count() >= 16);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    drop(newest);
}

#[test]
fn the_address_that_holds_all_memory_for_bodies_gives_it_up_for_another_one() {
    let limits = "limits: {max_total_body_bytes: 1MiB, max_file_list_bytes: 1MiB}\n";
    let cluster = Cluster::start_with(StoreKind::Embedded, limits);
    let address = cluster.master.address();
    let head = format!("POST /sync HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1048576\r\n\r\n");
    let begin = [head.as_bytes(), &vec![b' '; 1_000_000]].concat();
    let mut held = connect(&address, &begin);
    let submit = |id: String| {
        let names: Vec<String> = (0..5_000).map(|n| format!("file-{n:08}")).collect();
        let body = serde_json::json!({
            "request_id": id, "source_path": "/a", "destination_path": format!("/{id}"), "file_list": names,
        });
        try_request(&address, "POST", "/sync", &[], Some(body.to_string().as_bytes()))
            .unwrap()
            .status
    };
    // Until the body that is held has arrived there is memory for both.
    let mut count = 0;
    held.set_nonblocking(true).unwrap();
    await_true("the body that is held is given up", || {
        count += 1;
        assert_eq!(submit(format!("sync-{count}")), 202);
        held.peek(&mut [0]).is_ok()
    });
    held.set_nonblocking(false).unwrap();
    let mut reply = String::new();
    let _ = held.read_to_string(&mut reply);
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("overloaded"), "{reply}");
}

#[test]
fn heartbeats_of_made_up_workers_keep_no_agent_out() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "limits: {max_workers: 64}\n");
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 50, 10);
    let address = cluster.master.address();
    let beat = |n: usize| {
        let body = serde_json::json!({
            "worker_id": format!("fake-{n}"), "status": "IDLE", "storage_paths": ["/nowhere"],
        });
        let body = body.to_string();
        format!(
            "POST /workers/heartbeat HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut flood = connect(&address, b"");
    let mut answer = |n: usize| {
        flood.write_all(beat(n).as_bytes()).unwrap();
        let mut reply = vec![0; 64 << 10];
        let read = flood.read(&mut reply).unwrap();
        String::from_utf8_lossy(&reply[..read]).into_owned()
    };
    for n in 0..1_000 {
        let reply = answer(n);
        assert!(reply.starts_with("HTTP/1.1 200"), "{n}: {reply}");
    }
    // Agents that came before and after the flood.
    let third = support::tree::make_dir(cluster.data_path("third"));
    cluster.add_agent("late", &[&third]);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_complete(&cluster.run_sync(&src, &third), census(&src));
    let known = cluster.master.get("/workers").json();
    let count = ["active", "inactive"].map(|key| known[key].as_array().unwrap().len());
    assert!(count.iter().sum::<usize>() <= 64, "{count:?}");
}

#[test]
fn a_body_that_trickles_is_ended_and_a_slow_one_is_read() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let address = cluster.master.address();
    let head = |length: usize| {
        format!("POST /sync HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut trickled = connect(&address, head(256 << 10).as_bytes());
    let document = br#"{"request_id": "slow", "source_path": "/a", "destination_path": "/b"}"#;
    let document = [document.as_slice(), &[b' '; 40 << 10]].concat();
    let mut slow = connect(&address, head(document.len()).as_bytes());
    // The time between the parts is what is tested, and not a wait for something.
    let mut parts = document.chunks(1 << 10);
    await_some("the body that trickles is ended", || {
        std::thread::sleep(Duration::from_secs(1));
        if let Some(part) = parts.next() {
            slow.write_all(part).unwrap();
        }
        let _ = trickled.write_all(b" ");
        (!is_open(&trickled)).then_some(())
    });
    for part in parts {
        slow.write_all(part).unwrap();
    }
    let status = |stream: &mut TcpStream| {
        let mut reply = vec![0; 4096];
        let read = stream.read(&mut reply).unwrap();
        String::from_utf8_lossy(&reply[..read]).lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(status(&mut trickled), "HTTP/1.1 408 Request Timeout");
    assert_eq!(status(&mut slow), "HTTP/1.1 202 Accepted");
}

/// The memory of a process, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn memory_goes_back_after_a_flood() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let address = cluster.master.address();
    let pid = cluster.master.process.pid();
    let before = resident_mib(pid);
    let head = [b"GET /workers HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 50_000]].concat();
    let body =
        format!("POST /sync HTTP/1.1\r\nHost: {address}\r\nContent-Length: 60000000\r\n\r\n");
    // Bodies between heads: what remains of one keeps the other.
    let body = [body.as_bytes(), &vec![b' '; 3 << 20]].concat();
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..60 {
        held.extend((0..20).map(|_| connect(&address, &head)));
        held.push(connect(&address, &body));
    }
    await_true("the flood is held", || resident_mib(pid) > before + 180);
    // What is in use then is returned later.
    await_true("a part is returned", || {
        cluster.master.process.log().contains("returned free memory")
    });
    drop(held);
    await_true("the memory goes back", || resident_mib(pid) < before + 50);
}
