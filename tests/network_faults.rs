//! Lines that flip bits under a TCP checksum that is right, and lines that break: all damage is found, counted,
//! reported and sent again, nothing is lost, and the tree is identical.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use support::MAX_WAIT;
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::faults::Fault;
use support::ports::free_port;
use support::process::User;
use support::relay::Relay;
use support::tree::{
    self, assert_same, census, exact_comparison, random_bytes, write_file, write_many_files,
    write_unusual_tree,
};

const MIB: usize = 1 << 20;

/// Agents `a` with the source `src` and `b` with the destination `dst`. All that `a` sends to `b` passes through a
/// line that does `harm`: the master gets the port of that line instead of the one on which `b` listens.
fn cluster_over_relays(harm: Fault) -> (Cluster, PathBuf, PathBuf, [Relay; 2]) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    cluster.add_agent("a", &[&src]);
    let port = free_port();
    let line = Relay::to_port(port, harm);
    let renamed = Fault::Rename(format!(":{port}"), format!(":{}", line.port()));
    let front = Relay::to_port(cluster.master.port(), renamed);
    cluster.add_agent_at("b", &[&dst], User::Same, "", (&front.url(), port));
    (cluster, src, dst, [line, front])
}

/// Large and small files, 40 MiB.
fn write_content(src: &Path) {
    write_file(src.join("large"), random_bytes(24 * MIB, 1));
    write_many_files(&src.join("small"), 800, 20_000);
    write_unusual_tree(&src.join("odd"));
}

/// Holds a sync to have brought all of the source, and what went over the line to nothing else.
#[track_caller]
fn assert_undamaged(cluster: &mut Cluster, id: &str, src: &Path, dst: &Path) -> SyncProgress {
    let sync = cluster.await_end(id);
    let there = census(src);
    assert_complete(&sync, there);
    assert_same(src, dst, exact_comparison());
    assert!(tree::part_files(dst).is_empty());
    assert_nothing_to_do(&cluster.run_sync(src, dst), there);
    for (name, agent) in &cluster.agents {
        assert!(!agent.process.log().contains("panicked"), "agent {name}");
    }
    assert!(!cluster.master.process.log().contains("panicked"), "master");
    sync
}

/// How often a log says that something of this sync was damaged.
fn warning_count(log: &str, id: &str) -> u64 {
    let of_it = |line: &&str| line.contains("was corrupted in transit") && line.contains(id);
    log.lines().filter(of_it).count() as u64
}

#[test]
fn bits_flipped_between_agents_are_detected_counted_reported_and_sent_again() {
    let (mut cluster, src, dst, [line, _front]) =
        cluster_over_relays(Fault::FlipContent(3 * MIB as u64 + 4321));
    write_content(&src);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let ended = cluster.await_end(&id);
    let flips = line.fault_count();
    assert!(flips >= 10, "{flips}");
    let sync = assert_undamaged(&mut cluster, &id, &src, &dst);
    assert_eq!((ended.integrity_errors, sync.integrity_errors), (flips, flips));
    let log = cluster.agents["a"].process.log();
    assert_eq!(warning_count(&log, &id), flips, "{log}");
    let shown = cluster.ctl(["sync", "status", &id]).run().stdout_text();
    assert!(shown.contains(&format!("arrived corrupted {flips} times")), "{shown}");
}

#[test]
fn bits_flipped_between_agents_and_the_master_are_reported_and_have_no_effect() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    // Not the same for both: a period must not meet the same request again and again.
    let [a, b] =
        [5, 7].map(|every| Relay::to_port(cluster.master.port(), Fault::FlipBodies(every)));
    cluster.add_agent_at("a", &[&src], User::Same, "", (&a.url(), 0));
    cluster.add_agent_at("b", &[&dst], User::Same, "", (&b.url(), 0));
    write_content(&src);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let sync = assert_undamaged(&mut cluster, &id, &src, &dst);
    assert!(
        a.fault_count() >= 10 && b.fault_count() >= 1,
        "{} {}",
        a.fault_count(),
        b.fault_count()
    );
    // Heartbeats and polls are of no sync; pages, manifests and results are.
    let log = cluster.agents["a"].process.log();
    assert!(warning_count(&log, "") >= 10, "{log}");
    let warnings =
        warning_count(&log, &id) + warning_count(&cluster.agents["b"].process.log(), &id);
    assert!(
        sync.integrity_errors >= 1 && sync.integrity_errors <= warnings,
        "{warnings} {sync:#?}"
    );
    assert!(cluster.master.process.log().contains("a request was corrupted in transit"));
}

#[test]
fn connections_reset_every_few_megabytes_only_delay() {
    let (mut cluster, src, dst, [line, _front]) = cluster_over_relays(Fault::Reset(3 * MIB as u64));
    write_content(&src);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let sync = assert_undamaged(&mut cluster, &id, &src, &dst);
    assert!(line.fault_count() >= 5, "{}", line.fault_count());
    assert_eq!(sync.integrity_errors, 0, "nothing was damaged: {sync:#?}");
}

#[test]
fn invalid_requests_to_an_agent_are_closed_and_do_not_fill_its_log() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    cluster.add_agent("a", &[&src]);
    let (port, urls) = (free_port(), cluster.urls());
    cluster.add_agent_at("b", &[&dst], User::Same, "", (&urls, port));
    let hello: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n";
    for words in
        [hello, b"SSH-2.0-x\r\n\r\n", b"POST /v1/pack HTTP/1.1\r\n\r\n", &[0; 5000]].repeat(5)
    {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(MAX_WAIT)).unwrap();
        stream.write_all(words).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        // One that is reset is closed as well.
        let ended = stream.read_to_end(&mut answer);
        assert!(!ended.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "it was not closed");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    let log = cluster.agents["b"].process.log();
    let warnings =
        log.lines().filter(|l| l.contains("WARN") && l.contains("data connection ended"));
    // One in ten seconds, however many there were.
    assert!((1..=3).contains(&warnings.count()), "{log}");
    write_unusual_tree(&src);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert!(!cluster.agents["b"].process.log().contains("panicked"));
}
