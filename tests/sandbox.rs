//! Agents that the kernel confines to their storage paths. These tests need root, and a kernel with Landlock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::host::Host;
use support::process::{Process, User, is_root};
use support::tree::{
    self, assert_same, census, exact_comparison, make_dir, random_bytes, write_file,
    write_many_files,
};

const CONFINED: &str = "the kernel confines this agent to its storage paths";
const SANDBOX: &str = "sandbox: required\n";

fn has_no_new_privileges(process: &Process) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    status.lines().any(|line| line == "NoNewPrivs:\t1")
}

#[test]
fn a_confined_agent_copies_and_deletes_and_opens_nothing_outside_of_its_storage_paths() {
    assert!(
        is_root(),
        "as another user the agent could not open these files anyway: run it as root"
    );
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let [src, dst] = ["src", "dst"].map(|name| make_dir(cluster.data_path(name)));
    let outside = make_dir(cluster.home().join("outside"));
    for (name, storage) in [("a", &src), ("b", &dst)] {
        let agent = cluster.add_agent_with(name, &[storage], User::Same, SANDBOX);
        assert!(agent.process.log().contains(CONFINED), "{}", agent.process.log());
        assert!(has_no_new_privileges(&agent.process));
    }
    assert!(has_no_new_privileges(&cluster.master.process));
    write_many_files(&src.join("many"), 200, 1 << 10);
    write_file(src.join("large"), random_bytes(9 << 20, 1));
    write_file(src.join("dir/one"), "one name of a file");
    make_dir(src.join("other"));
    fs::hard_link(src.join("dir/one"), src.join("other/name")).unwrap();
    symlink("../dir/one", src.join("other/link")).unwrap();
    tree::chmod(src.join("dir/one"), 0o4751);
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    // Into another directory: the trash.
    fs::remove_dir_all(src.join("many")).unwrap();
    fs::remove_file(src.join("large")).unwrap();
    let sync = cluster.run_sync_with(
        &src,
        &dst,
        json!({"delete": {"trash": ".trash", "max_percent": 100}}),
    );
    let kept = dst.join(".trash").join(sync.request_id.to_string());
    assert_eq!(fs::read(kept.join("large")).unwrap(), random_bytes(9 << 20, 1));
    assert!(!dst.join("large").exists() && !dst.join("many").exists(), "{sync:#?}");

    // What the agent opens by its file is refused by the kernel, although it is root.
    let agent = &cluster.agents["b"];
    let log = outside.join("b.log");
    agent.configure(|text| {
        let level = "log: {level";
        assert!(text.contains(level), "{text}");
        text.replace(level, &format!("log: {{file: '{}', level", log.display()))
    });
    agent.process.signal(Signal::HUP);
    await_true("the kernel refuses a file outside", || {
        agent.process.log().contains("ermission denied")
    });
    assert!(!log.exists());
    cluster.assert_no_panic();
}

#[test]
fn what_is_mounted_below_a_storage_path_is_used_and_what_hides_one_is_reported() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let [src, dst] = ["src", "dst"].map(|name| make_dir(cluster.data_path(name)));
    write_many_files(&src, 20, 1 << 10);
    cluster.add_agent("a", &[&src]);
    let host = Host::start(cluster.home(), "b");
    let below = make_dir(dst.join("below"));
    cluster.add_agent_on(&host, "b", &json!([dst]), SANDBOX);
    // Since the start of the agent.
    host.mount_tmpfs(&below);
    let sync = cluster.run_sync(&src, &below);
    assert_complete(&sync, census(&src));
    assert_same(&src, &host.path(&below), exact_comparison());

    host.mount_tmpfs(&dst);
    let show = ["workers", "show", "b", "-o", "json"];
    await_true("the agent reports the file system that is out of reach", || {
        let view = cluster.ctl(show).run().json();
        let reason = view["unavailable_paths"][0]["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("the `sandbox` of this agent") && reason.contains("start the agent again")
    });
    let agent = cluster.agents.get_mut("b").unwrap();
    agent.restart();
    await_true("the path is available", || {
        let view = cluster.ctl(show).run().json();
        view["storage_paths"] == json!([dst]) && view["active"] == true
    });
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_same(&src, &host.path(&dst), exact_comparison());
    cluster.assert_no_panic();
}

#[test]
fn without_the_option_an_agent_is_not_confined_and_a_missing_path_is_named_with_it() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let [here, later, endless] = ["here", "later", "endless"].map(|name| cluster.data_path(name));
    make_dir(&here);
    symlink(&endless, &endless).unwrap();
    let plain = cluster.add_agent("plain", &[&here]);
    assert!(!plain.process.log().contains(CONFINED));
    assert!(has_no_new_privileges(&plain.process));
    let more = "sandbox: auto\n";
    let agent = cluster.add_agent_with("b", &[&here, &later, &endless], User::Same, more);
    for hidden in ["later", "endless"] {
        let log = agent.process.log();
        assert!(log.contains(&format!("{hidden} could not be opened at the start")), "{log}");
    }
    make_dir(&later);
    await_true("it is hidden", || {
        let log = cluster.agents["b"].process.log();
        log.contains("hides what was made or mounted there since its start")
    });
}
