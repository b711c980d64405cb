//! File systems that share blocks: what is copied within one is cloned, neither read nor written.

use super::*;
use rustix::fs::statvfs;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use support::ctl::ctl;

/// Such a file system on a disk of its own, with a source and room for destinations.
fn mount_reflink_disk(cluster: &Cluster, kind: &str) -> (LoopDisk, PathBuf, PathBuf) {
    let (image, at) =
        (cluster.home().join(format!("{kind}.image")), make_dir(cluster.data_path(kind)));
    File::create(&image).unwrap().set_len(512 << 20).unwrap();
    run_or_panic(&format!("mkfs.{kind}"), ["-q".as_ref(), image.as_os_str()]);
    let disk = LoopDisk::mount(&image, at.clone());
    let src = make_dir(at.join("src"));
    write_file(src.join("large"), random_bytes(20 * MIB, 1));
    write_file(src.join("below/middle"), random_bytes(3 * MIB + 5, 2));
    write_file(src.join("below/small"), random_bytes(1000, 3));
    std::fs::hard_link(src.join("large"), src.join("below/second name")).unwrap();
    let holes = File::create(src.join("holes")).unwrap();
    holes.set_len(1 << 40).unwrap();
    holes.write_all_at(&random_bytes(2 * MIB, 4), 1 << 39).unwrap();
    (disk, src, at)
}

/// What is in use on a disk, with what is not written yet.
fn used_bytes(at: &Path) -> u64 {
    rustix::fs::syncfs(File::open(at).unwrap()).unwrap();
    let stat = statvfs(at).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

const DATA_BYTES: u64 = (20 + 3 + 2) * MIB as u64;

#[test]
fn a_copy_within_a_file_system_with_reflinks_is_cloned() {
    for kind in ["xfs", "btrfs"] {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        let (_disk, src, at) = mount_reflink_disk(&cluster, kind);
        cluster.add_agent("a", &[&at]);
        let (dst, before) = (at.join("dst"), used_bytes(&at));
        // A limit is for what moves.
        let how = json!({"chunk_size_mb": 1, "bwlimit": 65536, "options": {"verify": "readback"}});
        let sync = cluster.await_end(&cluster.submit_with(&src, &dst, how));
        assert_complete(&sync, census(&src));
        assert!(
            sync.cloned_bytes >= DATA_BYTES && sync.cloned_bytes < DATA_BYTES + MIB as u64,
            "{sync:#?}"
        );
        assert_eq!((sync.sent_bytes, sync.verified_files), (1000, 5), "{sync:#?}");
        let more = used_bytes(&at).saturating_sub(before);
        assert!(
            more < DATA_BYTES / 4,
            "{kind}: {more} bytes are in use for a copy of {DATA_BYTES}"
        );
        let stored = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(path).unwrap().blocks() * 512
        };
        assert!(stored(&dst.join("holes")) < 4 * MIB as u64, "holes stay holes");
        let [mut ours, mut theirs] = [vec![0; 2 * MIB], vec![0; 2 * MIB]];
        File::open(src.join("holes")).unwrap().read_exact_at(&mut ours, 1 << 39).unwrap();
        File::open(dst.join("holes")).unwrap().read_exact_at(&mut theirs, 1 << 39).unwrap();
        assert!(ours == theirs);
        for root in [&src, &dst] {
            std::fs::remove_file(root.join("holes")).unwrap();
            support::tree::set_mtime(root, 1_700_000_000, 0);
        }
        assert_same(&src, &dst, exact_comparison());
        // Other content takes the place of what was there, which may not be written to.
        let second = File::open(dst.join("large")).unwrap();
        write_file(src.join("large"), random_bytes(20 * MIB, 9));
        let sync = cluster.run_sync_with(&src, &dst, json!({"manifest": true}));
        assert_complete(&sync, census(&src));
        assert_eq!((sync.sent_bytes, sync.cloned_bytes), (0, 20 * MIB as u64), "{sync:#?}");
        assert_same(&src, &dst, exact_comparison());
        let mut there = vec![0; 20 * MIB];
        second.read_exact_at(&mut there, 0).unwrap();
        assert!(there == random_bytes(20 * MIB, 1));
        let list = cluster
            .ctl(["sync", "manifest", sync.request_id.as_str()])
            .run()
            .assert_exit_code(0)
            .stdout;
        let list = String::from_utf8(list).unwrap();
        let digest = blake3::hash(&random_bytes(20 * MIB, 9)).to_string();
        assert!(list.lines().any(|line| line.starts_with(&digest)), "{kind}: {list}");
        assert!(part_files(&dst).is_empty());
        // As one that may not.
        let plain = at.join("plain");
        let sync = cluster.run_sync_with(&src, &plain, json!({"clone": false}));
        assert_complete(&sync, census(&src));
        assert_eq!(sync.cloned_bytes, 0, "{sync:#?}");
        assert!(sync.sent_bytes > DATA_BYTES - 2 * MIB as u64, "{sync:#?}");
        assert_same(&src, &plain, exact_comparison());
        // To another file system.
        let away = make_dir(cluster.data_path("away"));
        cluster.add_agent("b", &[&at, &away]);
        assert_eq!(cluster.agents.get_mut("a").unwrap().terminate().code(), Some(0));
        let sync = cluster.run_sync_with(&src, &away, json!({}));
        assert_complete(&sync, census(&src));
        assert_eq!(sync.cloned_bytes, 0, "{sync:#?}");
        assert_same(&src, &away, exact_comparison());
    }
}

#[test]
fn ctl_copy_clones_and_reports_it() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let (_disk, src, at) = mount_reflink_disk(&cluster, "xfs");
    let copy = |to: &str, more: &[&str]| {
        let ran = ctl(["copy"]).args(more).arg(&src).arg(at.join(to)).run().assert_exit_code(0);
        assert_same(&src.join("below"), &at.join(to).join("below"), exact_comparison());
        String::from_utf8([ran.stderr, ran.stdout].concat()).unwrap()
    };
    let cloned = copy("one", &[]);
    assert!(cloned.contains("25.0 MiB cloned"), "{cloned}");
    let sent = copy("two", &["--no-clone"]);
    assert!(!sent.contains("cloned"), "{sent}");
}
