//! Another certificate authority, while masters, agents and syncs go on. These tests need root, for a network namespace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::admin::{AuthorityView, PreviousAuthorityView};
use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use std::fs;
use std::path::{Path, PathBuf};
use support::await_true;
use support::lab::{ADDRESS, Lab, SECOND_ADDRESS, url};
use support::redis::RedisServer;
use support::tree::{
    assert_same, chmod, exact_comparison, make_dir, random_bytes, write_file, write_many_files,
};
use walkdir::WalkDir;

/// `ctl admin rotate ca ARGS…`, with success.
fn rotate(lab: &Lab, args: &[&str]) -> AuthorityView {
    let ran = lab.admin(&[&["admin", "rotate", "ca", "-o", "json"], args].concat());
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn previous(lab: &Lab) -> PreviousAuthorityView {
    rotate(lab, &["--status"]).previous.expect("a rotation")
}

/// The secret part of a key in PEM, as a file would show it.
fn secret_line(key: &Path) -> Vec<u8> {
    fs::read_to_string(key).unwrap().lines().nth(1).unwrap().as_bytes().to_vec()
}

fn files_with(dir: &Path, text: &[u8]) -> Vec<PathBuf> {
    let files = WalkDir::new(dir).into_iter().map(Result::unwrap);
    let files = files.filter(|file| file.file_type().is_file()).map(walkdir::DirEntry::into_path);
    let has_text =
        |path: &PathBuf| fs::read(path).unwrap().windows(text.len()).any(|part| part == text);
    files.filter(has_text).collect()
}

#[test]
fn a_sync_runs_through_a_rotation_in_which_the_master_is_killed() {
    let mut lab = Lab::new();
    let (src, dst) = (make_dir(lab.path("src")), make_dir(lab.path("dst")));
    write_many_files(&src, 300, 1 << 10);
    write_file(src.join("large"), random_bytes(24 << 20, 1));
    let config = format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n");
    lab.start_master(&config);
    let (pem, key) = (lab.path("state/ca.pem"), lab.path("state/ca.key"));
    let (former, former_key) = (lab.path("former.pem"), secret_line(&key));
    fs::copy(&pem, &former).unwrap();
    for (name, storage) in [("a", &src), ("b", &dst), ("stopped", &dst)] {
        lab.join_agent(name, storage);
    }
    lab.await_workers(&["a", "b", "stopped"]);
    lab.kill_agent("stopped");
    let token = lab.create_join_token("late", &dst, &[]);
    let [from, to] = [&src, &dst].map(|path| path.to_str().unwrap());
    let limit = ["--bwlimit", "1MiB/s", "--chunk-size-mb", "1"];
    lab.admin(&[&["sync", "submit", from, to, "--id", "s"], &limit[..]].concat());
    await_true("a has tasks", || {
        lab.admin(&["workers", "show", "a", "-o", "json"]).json()["in_flight"] != 0
    });
    assert_eq!(rotate(&lab, &["--status"]).previous, None);
    let rotated = rotate(&lab, &[]);
    assert_eq!(rotated.agents, 3);
    // The files may be those of before: the next start takes the authority of the store.
    lab.restart_master(&config);
    assert_eq!(rotate(&lab, &[]).authority, rotated.authority, "a repeat changes nothing");
    await_true("both agents have certificates of the new authority", || {
        previous(&lab).workers_left == ["stopped".parse().unwrap()]
    });
    let text = lab.admin(&["admin", "rotate", "ca", "--status"]).stdout_text();
    assert!(text.contains("1 of 3 agents has not") && text.contains("yet: stopped;"), "{text}");
    assert!(fs::read(&pem).unwrap() != fs::read(&former).unwrap());
    let state = lab.path("state");
    assert_eq!(
        files_with(&state, &secret_line(&key)),
        std::slice::from_ref(&key),
        "it is sealed in the store"
    );
    assert_eq!(files_with(&state, &former_key), [] as [PathBuf; 0], "it is in no place any more");

    let early = ["admin", "rotate", "ca", "--finish"];
    let early = lab.ctl(&early, &url(), Some(&pem)).assert_exit_code(6).stderr_text();
    assert!(early.contains("(stopped)") && early.contains("--finish --force"), "{early}");
    let finished = rotate(&lab, &["--finish", "--force"]).previous.unwrap();
    assert!(finished.finished_at.is_some());
    lab.start_agent("stopped", &dst, "");
    lab.await_agent_log("stopped", "that the installation does not use any more");
    lab.await_agent_log("stopped", "ctl token create --join --worker ID --path DIR");
    lab.kill_agent("stopped");
    // A restarted agent trusts the present authority only, and a token of before is good.
    lab.start_agent("late", &dst, &format!("join_token_file: {}\n", token.display()));
    lab.await_agent_log("late", "connected to the master");
    for ca in [&former, &pem] {
        let list = lab.ctl(&["workers", "list", "-q"], &url(), Some(ca)).assert_exit_code(0);
        let list = list.stdout_text();
        assert!(list.contains("a\nb\n") && list.contains("late\n"), "{list}");
    }
    lab.admin(&["sync", "set", "s", "--bwlimit", "none"]);
    let ended = lab.admin(&["sync", "wait", "s", "-o", "json"]);
    let sync: SyncProgress = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(sync.outcome, Some(SyncOutcome::Full));
    assert_same(&src, &dst, exact_comparison());
    // After the rotation the same agents work on, also for another sync.
    write_file(src.join("after"), "after");
    lab.kill_agent("a");
    lab.start_agent("a", &src, "");
    lab.admin(&["sync", "submit", from, to, "--wait"]);
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_second_master_takes_over_in_the_middle_of_a_rotation_and_finishes_it() {
    let redis = RedisServer::start();
    let mut lab = Lab::new();
    let shared =
        format!("installation: site\nleadership_lease: 1s\nredis: {{url: '{}'}}\n", redis.url());
    lab.start_master(&format!("listen: {ADDRESS}:8888\n{shared}"));
    let (state, other) = (lab.path("state"), make_dir(lab.path("state-2")));
    fs::copy(state.join("secrets.key"), other.join("secrets.key")).unwrap();
    lab.start_second_master(&format!("listen: {SECOND_ADDRESS}:8888\n{shared}"));
    let former = lab.path("former.pem");
    fs::copy(state.join("ca.pem"), &former).unwrap();
    let storage = make_dir(lab.path("data"));
    lab.join_agent("a", &storage);
    lab.await_workers(&["a"]);
    rotate(&lab, &[]);
    let is_same = |file: &str| {
        let [one, two] = [&state, &other].map(|dir| fs::read(dir.join(file)).ok());
        one.is_some() && one == two
    };
    await_true("both masters have the files of the new authority", || {
        fs::read(state.join("ca.pem")).ok() != fs::read(&former).ok()
            && is_same("ca.pem")
            && is_same("ca.key")
    });
    lab.kill_first_master();
    let second = format!("https://{SECOND_ADDRESS}:8888");
    let ctl = |lab: &Lab, args: &[&str]| lab.ctl(args, &second, Some(&former)).assert_exit_code(0);
    await_true("the agent has a certificate of the new authority", || {
        let status = ctl(&lab, &["admin", "rotate", "ca", "--status", "-o", "json"]);
        let view: AuthorityView = serde_json::from_slice(&status.stdout).unwrap();
        view.previous.expect("a rotation").agents_left == 0
    });
    ctl(&lab, &["admin", "rotate", "ca", "--finish"]);
    lab.kill_agent("a");
    lab.start_agent("a", &storage, "");
    lab.await_agent_log("a", "connected to the master");
    // One more rotation replaces what the first one left.
    ctl(&lab, &["admin", "rotate", "ca"]);
    await_true("the former certificate is of no use", || {
        let args = ["workers", "list", "-q"];
        let refused = lab.ctl(&args, &second, Some(&former)).stderr_text();
        refused.contains("copy it from the master's data_dir")
    });
    let present = lab.ctl(&["workers", "list", "-q"], &second, Some(&other.join("ca.pem")));
    assert_eq!(present.assert_exit_code(0).stdout_text(), "a\n");
}

#[test]
fn a_master_that_was_killed_while_it_replaced_its_files_starts_with_the_authority_of_the_store() {
    let mut lab = Lab::new();
    let config = format!("listen: ['127.0.0.1:8888', '{ADDRESS}:8888']\n");
    lab.start_master(&config);
    let [pem, key] = ["state/ca.pem", "state/ca.key"].map(|file| lab.path(file));
    let read = || [&pem, &key].map(|file| fs::read(file).ok());
    let former = read();
    fs::write(lab.path("former.pem"), former[0].as_ref().unwrap()).unwrap();
    let rotated = rotate(&lab, &[]).authority;
    await_true("the master has both files of the new authority", || {
        let now = read();
        now.iter().all(Option::is_some) && now[0] != former[0] && now[1] != former[1]
    });
    let present = read();
    // The former files, then without the certificate, then with the other key.
    let left = [former.clone(), [None, former[1].clone()], [None, present[1].clone()]];
    for (at, left) in left.into_iter().enumerate() {
        lab.kill_master();
        for (file, bytes) in [&pem, &key].into_iter().zip(left) {
            let _ = fs::remove_file(file);
            if let Some(bytes) = bytes {
                chmod(write_file(file, bytes), 0o600);
            }
        }
        lab.start_master(&config);
        assert_eq!(read(), present, "state {at}");
        for ca in [&pem, &lab.path("former.pem")] {
            let status = ["admin", "rotate", "ca", "--status", "-o", "json"];
            let status = lab.ctl(&status, &url(), Some(ca)).assert_exit_code(0);
            let view: AuthorityView = serde_json::from_slice(&status.stdout).unwrap();
            assert_eq!(view.authority, rotated, "state {at}");
            assert!(view.previous.unwrap().finished_at.is_none());
        }
    }
}
