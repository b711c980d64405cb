//! The API over TLS, in a network namespace in which a master has a loopback address and another one. These tests need
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use std::fs;
use std::path::Path;
use support::lab::{ADDRESS, Lab};
use support::tree::{assert_same, exact_comparison, make_dir, random_bytes, write_file};

#[test]
fn a_cluster_syncs_over_tls_and_clients_accept_only_its_authority() {
    let mut lab = Lab::new();
    let (src, dst) = (make_dir(lab.path("src")), make_dir(lab.path("dst")));
    write_file(src.join("large"), random_bytes(9 << 20, 1));
    write_file(src.join("dir/small"), "small");
    lab.start_master(&format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n"));
    let ca = lab.path("state/ca.pem");
    lab.start_agent("a", &src, &format!("ca_file: {}\n", ca.display()));
    lab.start_agent("b", &dst, &format!("ca_file: {}\n", ca.display()));
    let url = format!("https://{ADDRESS}:8888");
    let ctl = |args: &[&str], url: &str, ca: &Path| lab.ctl(args, url, Some(ca));
    lab.await_workers(&["a", "b"]);
    let [from, to] = [&src, &dst].map(|path| path.to_str().unwrap());
    let ran = ctl(&["sync", "submit", from, to, "--wait", "-o", "json"], &url, &ca);
    let ran = ran.assert_exit_code(0);
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
    refused(&url, Some(&other), 5, "the certificate of the server is of another authority");
    refused(&url, None, 2, "--ca-file");
    refused(&url, Some(&lab.path("none.pem")), 78, "none.pem");
    refused(&format!("http://{ADDRESS}:8888"), None, 2, "use https://");
    refused("https://127.0.0.1:8888", Some(&ca), 5, "does not speak TLS");
}

#[test]
fn an_agent_refuses_a_master_of_another_authority_and_sends_it_nothing() {
    let mut lab = Lab::new();
    lab.start_master(&format!("listen: {ADDRESS}:8888\n"));
    let other = lab.make_other_authority();
    let storage = make_dir(lab.path("data"));
    lab.start_agent("a", &storage, &format!("ca_file: {}\n", other.display()));
    lab.await_agent_log("a", "the certificate of the server is of another authority");
    let url = format!("https://{ADDRESS}:8888");
    let ca = lab.path("state/ca.pem");
    let ran = lab.ctl(&["workers", "list", "-q"], &url, Some(&ca)).assert_exit_code(0);
    assert_eq!(ran.stdout_text(), "");
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
