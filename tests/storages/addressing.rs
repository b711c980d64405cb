//! Which of several storages of one path a sync reads or writes.

use super::*;

#[test]
fn a_destination_with_two_storages_is_refused_until_workers_are_named() {
    let (mut cluster, src) = start_with_source();
    let dst = make_dir(cluster.data_path("dst"));
    cluster.add_agent("w1", &[&dst]);
    let second = add_local_disk(&mut cluster, "w2", &dst, "");
    let there = second.path(&dst);
    let storages = await_storages(&cluster, &dst, &[&["w1"], &["w2"]]);
    let from = src.to_str().unwrap();

    // Without workers: refused, on the command line and on the wire.
    let refused = copy(&cluster, from, dst.to_str().unwrap());
    let message = refused.stderr_text();
    assert_ambiguous(refused, &storages);
    for example in [address("w1", &dst), format!("'w*:{}'", dst.display())] {
        assert!(message.contains(&example), "{example} in {message}");
    }
    let request = json!({"source_path": src, "destination_path": dst});
    let reply = cluster.master.post("/sync", &request);
    assert_eq!((reply.status, &reply.json()["code"]), (409, &json!("ambiguous_storage")));
    assert_empty(&dst);
    assert_empty(&there);

    // One worker: that storage alone.
    copy(&cluster, from, &address("w1", &dst.join("one"))).assert_exit_code(0);
    assert_copied(&src, &dst.join("one"));
    assert_empty(&there);
    copy(&cluster, from, &address("w2", &dst.join("other"))).assert_exit_code(0);
    assert_copied_on(&second, &src, &dst.join("other"));
    assert!(!dst.join("other").exists());

    // A pattern: each has all of it.
    copy(&cluster, from, &address("w*", &dst.join("both"))).assert_exit_code(0);
    for root in [&dst, &there] {
        assert_eq!(census(&root.join("both")).files, FILES as u64);
    }
    assert_copied(&src, &dst.join("both"));
    assert_copied_on(&second, &src, &dst.join("both"));
    cluster.assert_no_panic();
}

#[test]
fn a_source_with_two_storages_is_read_from_the_named_one_only() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_many_files(&src, FILES, 3_000);
    cluster.add_agent("d", &[&dst]);
    cluster.add_agent("w1", &[&src]);
    let second = add_local_disk(&mut cluster, "w2", &src, "");
    write_many_files(&second.path(&src), 40, 500);
    write_file(second.path(&src).join("only here"), "x");
    let storages = await_storages(&cluster, &src, &[&["w1"], &["w2"]]);
    let to = |name: &str| dst.join(name).to_str().unwrap().to_owned();
    assert_ambiguous(copy(&cluster, src.to_str().unwrap(), &to("none")), &storages);
    // Two trees are not merged into one either.
    let merged = copy(&cluster, &address("w*", &src), &to("none")).assert_exit_code(6);
    let message = merged.stderr_text();
    assert!(message.contains("submit one sync for each"), "{message}");
    assert_empty(&dst);
    copy(&cluster, &address("w1", &src), &to("first")).assert_exit_code(0);
    assert_copied(&src, &dst.join("first"));
    copy(&cluster, &address("w2", &src), &to("second")).assert_exit_code(0);
    assert_copied_on(&second, &src, &dst.join("second"));
    cluster.assert_no_panic();
}

/// The other storage turns up while one sync runs and one waits behind it.
#[test]
fn a_storage_that_turns_up_during_a_sync_gets_nothing_of_it() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("w1", &[&dst]);
    let running = cluster.submit_and_await_partial(&src, &dst, (64, "16MiB/s"), json!({}));
    // It writes to the same paths, so it waits for the first.
    let waiting = cluster.submit(&src, &dst);
    let second = add_local_disk(&mut cluster, "w2", &dst, "");
    let storages = await_storages(&cluster, &dst, &[&["w1"], &["w2"]]);
    let why = "workers see different storages";
    let seen = cluster.await_progress(&waiting, "waits for a decision", |s| has_reason(s, why));
    assert_eq!(seen.state, SyncState::Queued);
    assert_names_all(seen.reason.as_deref().unwrap(), &storages);
    cluster.lift_bandwidth_limit(&running);
    assert_complete(&cluster.await_end(&running), census(&src));
    assert_copied(&src, &dst);
    assert_empty(&second.path(&dst));
    // Nothing is in its way now but the decision.
    let seen = cluster.progress(&waiting);
    assert!(seen.state == SyncState::Queued && has_reason(&seen, why), "{seen:#?}");
    assert_ambiguous(copy(&cluster, src.to_str().unwrap(), dst.to_str().unwrap()), &storages);
    // The other one is gone for good: the path means one storage again.
    cluster.agents.get_mut("w2").unwrap().terminate();
    cluster.ctl(["workers", "forget", "w2"]).run().assert_exit_code(0);
    assert_complete(&cluster.await_end(&waiting), census(&src));
    assert_empty(&second.path(&dst));
    cluster.assert_no_panic();
}

#[test]
fn a_tree_is_not_copied_onto_itself_but_to_another_storage_of_its_path() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = make_dir(cluster.data_path("data"));
    write_many_files(&data.join("tree"), 50, 1_000);
    cluster.add_agent_with("w1", &[&data], support::process::User::Same, "labels: {rack: 1}");
    cluster.add_agent_with("w2", &[&data], support::process::User::Same, "labels: {rack: 1}");
    let other = add_local_disk(&mut cluster, "w3", &data, "labels: {rack: 2}");
    await_storages(&cluster, &data, &[&["w1", "w2"], &["w3"]]);
    let tree = data.join("tree");
    for (from, to) in [("w1", "w2"), ("w1", "w*"), ("@rack=1", "w1"), ("w2", "@rack=*")] {
        for below in [tree.clone(), tree.join("000"), data.clone()] {
            let ran = copy(&cluster, &address(from, &tree), &address(to, &below));
            let message = ran.assert_exit_code(6).stderr_text();
            assert!(message.contains("it would be copied onto itself"), "{message}");
        }
    }
    assert_empty(&other.path(&data));
    // Where the paths do not overlap, one storage is both sides.
    copy(&cluster, &address("w1", &tree), &address("w2", &data.join("copy"))).assert_exit_code(0);
    assert_copied(&tree, &data.join("copy"));
    // The same path of another storage is another place, also for a worker that has both names.
    copy(&cluster, &address("w2", &tree), &address("w3", &data.join("to"))).assert_exit_code(0);
    assert_same(&tree, &other.path(&data.join("to")), exact_comparison());
    assert!(!data.join("to").exists(), "it was written to the worker's own storage");
    copy(&cluster, &address("@rack=1", &tree), &address("@rack=2", &tree)).assert_exit_code(0);
    assert_same(&tree, &other.path(&tree), exact_comparison());
    // Selectors without a match are refused with a list of the workers.
    for unknown in ["@rack=3", "@row=1", "w9", "x*"] {
        let ran = copy(&cluster, &address("w1", &tree), &address(unknown, &data.join("new")));
        let message = ran.assert_exit_code(2).stderr_text();
        assert!(message.contains("registered are: w1, w2, w3"), "{message}");
    }
    let wide = cluster.ctl(["workers", "list", "-o", "wide"]).run().assert_exit_code(0);
    assert!(wide.stdout_text().contains("rack=2"), "{}", wide.stdout_text());
    cluster.assert_no_panic();
}
