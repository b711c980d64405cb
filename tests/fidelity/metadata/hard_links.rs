//! Hard links among the files of a sync.

use super::*;

#[test]
fn thousands_of_hard_links_of_one_file_are_kept() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    // Links are counted in 16 bits in places.
    let names = 20_000;
    let first = write_file(src.join("first"), random_bytes(10_000, 1));
    for i in 0..names {
        let below = if i % 1000 == 0 {
            make_dir(src.join(format!("{}", i / 1000)))
        } else {
            src.join(format!("{}", i / 1000))
        };
        fs::hard_link(&first, below.join(format!("{i}"))).unwrap();
    }
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert!(sync.sent_bytes < 20 * 10_000, "names are made, not content sent: {sync:#?}");
    let there = fs::metadata(dst.join("first")).unwrap();
    assert_eq!(there.nlink(), names + 1);
    assert_eq!(rsync_differences(&src, &dst), "");
    assert!(part_files(&dst).is_empty());
}

/// Files with several names, large and small, in many folders.
fn write_hard_links(src: &Path) {
    for i in 0..200 {
        let first =
            write_file(src.join(format!("a/{}/{i}", i % 5)), random_bytes(2_000 + i, i as u64));
        let other = make_dir(src.join(format!("z/{}", i % 7))).join(format!("also {i}"));
        fs::hard_link(first, other).unwrap();
    }
    let large = write_file(src.join("m/large"), random_bytes(24 * MIB, 7));
    fs::hard_link(&large, src.join("a/0/large too")).unwrap();
    fs::hard_link(&large, src.join("z/large three")).unwrap();
}

#[test]
fn hard_links_follow_changes_of_the_source() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hard_links(&src);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_identical(&src, &dst);
    // One name becomes a file of its own, one gets another name, one group loses a name.
    fs::remove_file(src.join("z/0/also 0")).unwrap();
    write_file(src.join("z/0/also 0"), "on its own");
    fs::hard_link(src.join("a/1/1"), src.join("new name")).unwrap();
    fs::remove_file(src.join("a/2/2")).unwrap();
    fs::remove_file(dst.join("a/2/2")).unwrap();
    fs::remove_file(src.join("z/large three")).unwrap();
    fs::hard_link(src.join("a/3/3"), src.join("z/large three")).unwrap();
    // A group at the destination is separated, and two files that are none are joined.
    let parted = dst.join("a/4/4");
    let (content, meta) = (fs::read(&parted).unwrap(), fs::metadata(&parted).unwrap());
    fs::remove_file(&parted).unwrap();
    write_file(&parted, content);
    set_mtime(&parted, meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert_identical(&src, &dst);
    assert!(sync.sent_bytes < 20_000, "names are made, not content sent: {sync:#?}");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn hard_links_that_exist_only_at_the_destination_are_separated() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for name in ["one", "two"] {
        set_mtime(write_file(src.join(name), "equal"), 1_600_000_000, 5);
    }
    set_mtime(write_file(dst.join("one"), "equal"), 1_600_000_000, 5);
    fs::hard_link(dst.join("one"), dst.join("two")).unwrap();
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    // rsync leaves such names as they are; a later change of one must not reach the other.
    set_mtime(write_file(src.join("one"), "EQUAL!"), 1_600_000_001, 5);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_eq!(rsync_differences(&src, &dst), "");
    assert_eq!(fs::read(dst.join("two")).unwrap(), b"equal");
}

#[test]
fn hard_links_are_kept_when_an_agent_is_killed() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hard_links(&src);
    write_file(src.join("larger"), random_bytes(96 * MIB, 9));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    await_true("some has arrived", || dst.join("a").exists() || !part_files(&dst).is_empty());
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    assert_full_outcome(&cluster.await_end(&id));
    assert_identical(&src, &dst);
    assert!(part_files(&dst).is_empty());
}
