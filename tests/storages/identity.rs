//! How the master finds out which workers see one storage.

use super::*;
use longhaul::wire::storage::StorageEvidence;
use support::tree::differences;

/// The boot ids of hosts that are not this one.
const BOOTS: [&str; 3] = [
    "11111111-1111-4111-8111-111111111111",
    "22222222-2222-4222-8222-222222222222",
    "33333333-3333-4333-8333-333333333333",
];

fn host(cluster: &Cluster, at: usize) -> Arc<Host> {
    Host::start_with_boot_id(cluster.home(), &format!("h{at}"), BOOTS[at])
}

#[track_caller]
fn assert_evidence(storage: &StorageView, evidence: StorageEvidence) {
    let all = storage.workers.iter();
    assert!(all.into_iter().all(|worker| worker.evidence == evidence), "{storage:#?}");
}

/// Copies `src` to `dst`, slowly until each of the workers has written content.
fn copy_through_all(cluster: &Cluster, src: &Path, dst: &Path, workers: &[&str]) {
    let id = cluster.submit_and_await_partial(src, dst, (48, "16MiB/s"), json!({}));
    for name in workers {
        await_true(&format!("{name} writes"), || {
            cluster.agents[*name].process.file_bytes().1 > 1 << 20
        });
    }
    cluster.lift_bandwidth_limit(&id);
    assert_complete(&cluster.await_end(&id), census(src));
}

/// Waits until no probe file is left: an agent removes its own at its next heartbeat.
fn await_no_probes(dir: &Path) {
    await_true("no probe file is left", || part_files(dir).is_empty());
}

#[test]
fn a_bind_mount_under_another_name_is_the_same_storage() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    let mnt = make_dir(cluster.data_path("mnt"));
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("w1", &[&dst]);
    let other = Host::start(cluster.home(), "w2");
    other.mount(&["--bind".as_ref(), dst.as_os_str(), mnt.as_os_str()]);
    cluster.add_agent_on(&other, "w2", &json!([{"path": mnt, "as": dst}]), "");
    let storages = await_storages(&cluster, &dst, &[&["w1", "w2"]]);
    assert_eq!(storages[0].workers[1].evidence, StorageEvidence::Proved, "{storages:#?}");
    let local = storages[0].workers[1].local_path.as_ref().map(ToString::to_string);
    assert_eq!(local.as_deref(), mnt.to_str());
    assert!(storages_at(&cluster, &mnt).is_empty(), "requests do not know that name");
    copy_through_all(&cluster, &src, &dst, &["w1", "w2"]);
    assert_copied(&src, &dst);
    assert_empty(&mnt);
    cluster.assert_no_panic();
}

/// Three hosts: two that mount one directory by a file system that may be shared, and one that has it on its disk.
#[test]
fn one_storage_that_several_hosts_mount_is_found_to_be_one_by_probe_files() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, disk) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("disk")));
    let dst = make_dir(cluster.data_path("dst"));
    cluster.add_agent("a", &[&src]);
    let hosts = [host(&cluster, 0), host(&cluster, 1)];
    for (at, host) in hosts.iter().enumerate() {
        host.mount_fuse(&disk, &dst, &[]);
        cluster.add_agent_on(host, &format!("w{}", at + 1), &json!([dst]), "");
    }
    let server = host(&cluster, 2);
    cluster.add_agent_on(&server, "w3", &json!([{"path": disk, "as": dst}]), "");
    let storages = await_storages(&cluster, &dst, &[&["w1", "w2", "w3"]]);
    assert_evidence(&storages[0], StorageEvidence::Proved);
    await_no_probes(&disk);
    copy_through_all(&cluster, &src, &dst, &["w1", "w2", "w3"]);
    let mut found = differences(&src, &disk, exact_comparison());
    // bindfs ignores a modification time that is set without an access time; the sync warns of it.
    found.retain(|difference| !difference.contains("`: mtime "));
    assert!(found.is_empty(), "{found:#?}");
    assert_empty(&dst);
    // Known also after a restart of the master, without another look.
    cluster.master.restart();
    let storages = await_storages(&cluster, &dst, &[&["w1", "w2", "w3"]]);
    assert_evidence(&storages[0], StorageEvidence::Proved);
    // Remembered is what the path led to: another tree there is another storage.
    cluster.agents.get_mut("w2").unwrap().kill_9();
    hosts[1].mount_tmpfs(&dst);
    cluster.agents.get_mut("w2").unwrap().restart();
    await_storages(&cluster, &dst, &[&["w1", "w3"], &["w2"]]);
    await_no_probes(&disk);
    assert_empty(&hosts[1].path(&dst));
    cluster.assert_no_panic();
}

/// No probe file can be made there: what they look like decides, and that is what is shown.
#[test]
fn a_read_only_source_of_two_hosts_is_likely_one_storage_and_a_look_alike_is_another() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (real, fake) = (make_dir(cluster.data_path("real")), make_dir(cluster.data_path("fake")));
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    for tree in [&real, &fake] {
        write_many_files(tree, 200, 1_000);
    }
    write_file(fake.join("001/00100"), "other content");
    cluster.add_agent("d", &[&dst]);
    for (at, tree) in [&real, &real, &fake].into_iter().enumerate() {
        let host = host(&cluster, at);
        host.mount_fuse(tree, &src, &["-o", "ro"]);
        cluster.add_agent_on(&host, &format!("w{}", at + 1), &json!([src]), "");
    }
    let storages = await_storages(&cluster, &src, &[&["w1", "w2"], &["w3"]]);
    assert_eq!(storages[0].workers[1].evidence, StorageEvidence::Likely, "{storages:#?}");
    assert_eq!(storages[1].workers[0].evidence, StorageEvidence::Single, "{storages:#?}");
    let to = |name: &str| dst.join(name).to_str().unwrap().to_owned();
    assert_ambiguous(copy(&cluster, src.to_str().unwrap(), &to("none")), &storages);
    copy(&cluster, &address("w1,w2", &src), &to("real")).assert_exit_code(0);
    assert_copied(&real, &dst.join("real"));
    copy(&cluster, &address("w3", &src), &to("fake")).assert_exit_code(0);
    assert_copied(&fake, &dst.join("fake"));
    cluster.assert_no_panic();
}

#[test]
fn a_declaration_that_is_wrong_is_an_error_and_nothing_is_written() {
    let (mut cluster, src) = start_with_source();
    let dst = make_dir(cluster.data_path("dst"));
    let declared = json!([{"path": dst, "storage": "lustre-1"}]);
    let disks = ["w1", "w2"].map(|name| {
        let host = Host::start(cluster.home(), name);
        host.mount_tmpfs(&dst);
        cluster.add_agent_on(&host, name, &declared, "");
        host
    });
    for (name, other) in [("w1", "w2"), ("w2", "w1")] {
        let why =
            format!("declared as storage `lustre-1`, but worker {other} sees another file tree");
        await_true(&format!("{name} is in error"), || {
            let worker = cluster.master.get(&format!("/workers/{name}")).json();
            worker["status"] == "ERROR"
                && worker["reason"].as_str().is_some_and(|reason| reason.contains(&why))
        });
        let shown = cluster.ctl(["workers", "show", name]).run().assert_exit_code(0).stdout_text();
        let line = shown.lines().find(|line| line.starts_with("Unavailable:")).unwrap_or_default();
        assert!(line.contains(dst.to_str().unwrap()) && line.contains(&why), "{shown}");
    }
    let shown = cluster.ctl(["storage", "list"]).run().assert_exit_code(0).stdout_text();
    assert!(shown.contains("w1 is not used: declared as storage `lustre-1`"), "{shown}");
    // A sync waits with the reason, with and without workers.
    let ids = [("one", json!({})), ("other", json!({"destination_workers": ["w1"]}))]
        .map(|(name, more)| cluster.submit_with(&src, &dst.join(name), more));
    for id in &ids {
        let seen = cluster.await_progress(id, "waits with the reason", |s| {
            has_reason(s, "declared as storage `lustre-1`, but worker w2 sees another file tree")
        });
        assert_eq!(seen.state, SyncState::Queued);
    }
    for disk in &disks {
        await_no_probes(&disk.path(&dst));
        assert_empty(&disk.path(&dst));
    }
    assert_empty(&dst);
    cluster.assert_no_panic();
}
