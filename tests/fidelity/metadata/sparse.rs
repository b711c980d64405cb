//! Sparse files: holes are kept, also on file systems without them.

use super::*;

#[test]
fn holes_stay_holes_and_zeros_become_holes_only_on_request() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    // 2 MiB of zeros between data, 1 byte over a block; and a file that is nothing but a hole.
    let mut zeros = random_bytes(MIB + 1, 1);
    zeros.extend(vec![0; 2 * MIB]);
    zeros.extend(random_bytes(5_000, 2));
    write_file(src.join("zeros"), &zeros);
    let small = write_file(src.join("small zeros"), [vec![1; 10], vec![0; 900_000]].concat());
    fs::File::create(src.join("hole")).unwrap().set_len(40 * MIB as u64).unwrap();
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let (full, small_full) = (blocks(&src.join("zeros")), blocks(&small));

    let dst = all.join("kept");
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert_identical(&src, &dst);
    assert!(blocks(&dst.join("zeros")) >= full, "zeros stay zeros");
    assert_eq!(blocks(&dst.join("hole")), 0);
    assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");

    let dst = all.join("punched");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"punch_zeros": true})));
    assert!(blocks(&dst.join("zeros")) < full - MIB as u64, "{}", blocks(&dst.join("zeros")));
    assert!(blocks(&dst.join("small zeros")) < small_full, "{}", blocks(&dst.join("small zeros")));
    assert_eq!(rsync_differences(&src, &dst), "");

    let dst = all.join("filled");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"preserve": ["no-sparse"]})));
    assert!(blocks(&dst.join("hole")) >= 40 * MIB as u64, "{}", blocks(&dst.join("hole")));
    assert_eq!(rsync_differences(&src, &dst), "");
}

/// A file system of its own on a directory, until this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(kind: &str, at: std::path::PathBuf) -> Mounted {
        let mounted = Mounted(make_dir(at));
        run_or_panic(
            "mount",
            ["-t".as_ref(), kind.as_ref(), "none".as_ref(), mounted.0.as_os_str()],
        );
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Data at some places of a file of this length, and holes between them.
fn write_sparse(path: &Path, length: u64, at: &[u64]) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(path).unwrap();
    file.set_len(length).unwrap();
    for (i, at) in at.iter().enumerate() {
        file.write_all_at(&random_bytes(100_000, i as u64), *at).unwrap();
    }
}

#[test]
fn file_systems_without_holes_read_and_write_them_as_zeros() {
    assert_root("mounts");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    // One says of a file that all of it is data, and has no such thing as a hole to make.
    let _from = Mounted::new("ramfs", src.join("without"));
    let _to = Mounted::new("ramfs", dst.join("into"));
    let length = 24 * MIB as u64;
    for below in ["with", "without"] {
        let file = make_dir(src.join(below)).join("holes");
        write_sparse(&file, length, &[MIB as u64, length / 2 + 5, length - 100_000]);
        write_sparse(&src.join(below).join("nothing"), 3 * MIB as u64, &[]);
    }
    for from in ["with", "without"] {
        for to in ["into", "beside"] {
            let (src, dst) = (src.join(from), dst.join(to).join(from));
            for _ in 0..2 {
                let sync = cluster.run_sync_with(&src, &dst, json!({}));
                assert_full_outcome(&sync);
                assert_eq!(rsync_differences(&src, &dst), "", "{from} {to}");
            }
        }
    }
}

#[test]
fn terabytes_of_holes_are_copied_without_reading_or_allocating_them() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let length: u64 = 4 << 40;
    // One has less data than a batch holds, the other more: it is sent in ranges.
    let places = |n: u64| (0..n).map(|i| i * (length - 100_000) / (n - 1)).collect::<Vec<u64>>();
    let files = [("few", places(3)), ("more", places(16))];
    for (name, places) in &files {
        write_sparse(&src.join(name), length, places);
    }
    let chunks = |options| json!({"chunk_size_mb": 1, "options": options});
    let first = [("transfer", 2, 0), ("transfer", 0, 2), ("none", 0, 2)];
    for (verify, done, skipped) in first {
        let sync =
            cluster.await_end(&cluster.submit_with(&src, &dst, chunks(json!({"verify": verify}))));
        assert_full_outcome(&sync);
        assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");
        assert_eq!((sync.files_done, sync.files_skipped), (done, skipped), "{sync:#?}");
        assert_eq!(sync.total_bytes, 2 * length);
    }
    for (options, count) in
        [(json!({"compare": "checksum"}), 0), (json!({"verify": "readback"}), 2)]
    {
        let sync = cluster.await_end(&cluster.submit_with(&src, &dst, chunks(options)));
        assert_full_outcome(&sync);
        assert_eq!((sync.files_skipped, sync.verified_files), (2, count), "{sync:#?}");
        assert_eq!((sync.files_done, sync.sent_bytes), (0, 0), "{sync:#?}");
    }
    use std::os::unix::fs::FileExt as _;
    for (name, places) in &files {
        let there = fs::metadata(dst.join(name)).unwrap();
        assert_eq!(there.len(), length);
        assert!(there.blocks() * 512 < 5 * MIB as u64, "{}", there.blocks());
        for at in places {
            let mut read = [vec![0; 100_000], vec![0; 100_000]];
            for (root, read) in [&src, &dst].into_iter().zip(&mut read) {
                fs::File::open(root.join(name)).unwrap().read_exact_at(read, *at).unwrap();
            }
            assert!(read[0] == read[1], "at {at}");
        }
    }
    // Other content in a hole is found and sent, and nothing else.
    let changed = fs::File::options().write(true).open(src.join("more")).unwrap();
    changed.write_all_at(b"x", length / 2 + 7).unwrap();
    let sync = cluster.await_end(&cluster.submit_with(&src, &dst, chunks(json!({}))));
    assert_full_outcome(&sync);
    assert!((1..MIB as u64).contains(&sync.sent_bytes), "{sync:#?}");
    let mut read = [0];
    fs::File::open(dst.join("more")).unwrap().read_exact_at(&mut read, length / 2 + 7).unwrap();
    assert_eq!(read, *b"x");
    assert!(part_files(&dst).is_empty());
}
