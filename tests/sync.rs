//! Whole syncs through real processes: what arrives, what is skipped, what is said of what fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::outcome::{ErrorClass, Side};
use longhaul::wire::sync::{SyncOutcome, SyncState};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde_json::json;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::process::User;
use support::tree::{
    self, Census, ComparisonRules, assert_same, census, chmod, differences, exact_comparison,
    make_dir, make_symlink, os_name, random_bytes, set_mtime, write_file, write_many_files,
    write_unusual_tree,
};
use support::{await_some, await_true};

const MIB: usize = 1 << 20;

/// A tree of everything: odd names, many small files, a file of several ranges.
fn write_everything(root: &Path) -> Census {
    write_unusual_tree(root);
    write_many_files(&root.join("many"), 500, 3_000);
    write_file(root.join("large"), random_bytes(9 * MIB + 12_345, 99));
    write_file(root.join("exactly two ranges"), random_bytes(2 * MIB, 98));
    set_mtime(root.join("large"), 1_300_000_000, 987_654_321);
    set_mtime(root, 1_222_222_222, 22);
    census(root)
}

fn check_copy_then_skip(on: StoreKind) {
    let mut cluster = Cluster::start(on);
    let (src, dst) = cluster.add_source_and_destination();
    let there = write_everything(&src);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let first = cluster.await_end(&id);
    assert_same(&src, &dst, exact_comparison());
    assert_complete(&first, there);
    assert_eq!((first.files_skipped, first.bytes_skipped), (0, 0), "{first:#?}");
    assert!(first.started_at.is_some() && first.ended_at >= first.started_at);

    let inode = fs::metadata(dst.join("plain")).unwrap().ino();
    let second = cluster.run_sync(&src, &dst);
    assert_nothing_to_do(&second, there);
    assert_same(&src, &dst, exact_comparison());
    assert_eq!(inode, fs::metadata(dst.join("plain")).unwrap().ino(), "left as it was");
}

#[test]
fn a_tree_is_copied_identically_and_then_skipped_on_the_embedded_store() {
    check_copy_then_skip(StoreKind::Embedded);
}

#[test]
fn a_tree_is_copied_identically_and_then_skipped_on_redis() {
    check_copy_then_skip(StoreKind::Redis);
}

#[test]
fn one_worker_that_holds_both_paths_copies_alone() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = cluster.data_path("");
    cluster.add_agent("only", &[&data]);
    let there = write_everything(&cluster.data_path("src"));
    let (src, dst) = (cluster.data_path("src"), cluster.data_path("dst"));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    assert_complete(&cluster.await_end(&id), there);
    assert_same(&src, &dst, exact_comparison());
    assert_nothing_to_do(&cluster.run_sync(&src, &dst), there);
}

#[test]
fn a_source_that_is_a_file_becomes_the_destination_itself() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for (what, length) in [("small", 5), ("empty", 0), ("large", 3 * MIB + 1)] {
        let from = write_file(src.join(what), random_bytes(length, 1));
        set_mtime(&from, 1_000_000_000, 123);
        let to = dst.join("new dir").join(what);
        let id = cluster.submit_with(&from, &to, json!({"chunk_size_mb": 1}));
        let sync = cluster.await_end(&id);
        assert_eq!((sync.state, sync.files_done), (SyncState::Completed, 1), "{what}: {sync:#?}");
        assert_same(&from, &to, exact_comparison());
        let again = cluster.run_sync(&from, &to);
        assert_eq!((again.files_done, again.files_skipped), (0, 1), "{what}: {again:#?}");
    }
}

#[test]
fn a_trailing_slash_changes_nothing() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("tree/a/b"), "b");
    write_file(src.join("tree/c"), "c");
    let shapes =
        [("tree", "1"), ("tree/", "2"), ("tree", "3/"), ("tree//", "4/."), ("./tree/", "5")];
    for (from, to) in shapes {
        let id = cluster.submit(
            Path::new(&format!("{}/{from}", src.display())),
            Path::new(&format!("{}/{to}", dst.display())),
        );
        assert_eq!(cluster.await_end(&id).state, SyncState::Completed, "{from} {to}");
        let to = dst.join(to.trim_end_matches(['/', '.']));
        assert_same(&src.join("tree"), &to, exact_comparison());
    }
}

#[test]
fn missing_directories_above_the_destination_are_created() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("x"), "x");
    let deep = dst.join("not/yet/there");
    assert_complete(&cluster.run_sync(&src, &deep), census(&src));
    assert_same(&src, &deep, exact_comparison());
    let empty = make_dir(src.join("e"));
    assert_complete(&cluster.run_sync(&empty, &dst.join("also/not")), census(&empty));
    assert_same(&empty, &dst.join("also/not"), exact_comparison());
}

#[test]
fn changed_entries_are_updated_and_the_others_skipped() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 50, 2_000);
    write_file(src.join("grows"), "short");
    write_file(src.join("shrinks"), random_bytes(4 * MIB, 3));
    write_file(src.join("same length"), "before");
    make_symlink(src.join("link"), "grows");
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));

    write_file(src.join("grows"), random_bytes(3 * MIB, 4));
    write_file(src.join("shrinks"), "short now");
    set_mtime(write_file(src.join("same length"), "after!"), 1_700_000_000, 1);
    fs::remove_file(src.join("link")).unwrap();
    make_symlink(src.join("link"), "shrinks");
    write_file(src.join("new"), "new");
    let there = census(&src);
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, there);
    assert_same(&src, &dst, exact_comparison());
    assert_eq!((sync.files_done, sync.files_skipped), (5, 50), "{sync:#?}");
}

#[test]
fn changed_modes_and_times_are_repaired_without_sending_content() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 1_000);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));

    chmod(src.join("000/00003"), 0o751);
    chmod(dst.join("000/00004"), 0o600);
    chmod(src.join("000"), 0o750);
    set_mtime(dst.join("000"), 5, 5);
    let sync = cluster.run_sync(&src, &dst);
    assert_nothing_to_do(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());

    // Another time means that the content may be another: it is sent.
    set_mtime(dst.join("000/00005"), 77, 7);
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_eq!((sync.files_done, sync.transferred_bytes), (1, 1_000), "{sync:#?}");
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn conflicting_entries_are_replaced_except_non_empty_directories() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("dir over file/inside"), "in");
    write_file(src.join("dir over link/inside"), "in");
    write_file(src.join("file over link"), "f");
    write_file(src.join("file over empty dir"), "f");
    make_symlink(src.join("link over file"), "x");
    make_symlink(src.join("link over link"), "right");
    write_file(src.join("file over full dir"), "f");
    write_file(src.join("large over link"), random_bytes(3 * MIB, 5));
    let outside = write_file(cluster.data_path("outside/kept"), "kept");

    write_file(dst.join("dir over file"), "in the way");
    make_symlink(dst.join("dir over link"), outside.parent().unwrap());
    make_symlink(dst.join("file over link"), &outside);
    make_dir(dst.join("file over empty dir"));
    write_file(dst.join("link over file"), "in the way");
    make_symlink(dst.join("link over link"), "wrong");
    write_file(dst.join("file over full dir/precious"), "precious");
    make_symlink(dst.join("large over link"), &outside);

    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let sync = cluster.await_end(&id);
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    assert_eq!((sync.files_failed, sync.dirs_failed), (1, 0), "{sync:#?}");
    assert_eq!(sync.errors[0].path.0, b"file over full dir", "{sync:#?}");
    assert_eq!(sync.errors[0].errno.as_deref(), Some("EISDIR"), "{sync:#?}");
    assert_eq!(sync.errors[0].class, ErrorClass::Permanent, "{sync:#?}");
    assert_eq!(fs::read(dst.join("file over full dir/precious")).unwrap(), b"precious");
    assert_eq!(fs::read(&outside).unwrap(), b"kept", "nothing is written through a link");
    let rest: Vec<String> =
        differences(&src, &dst, ComparisonRules { extra: true, ..exact_comparison() })
            .into_iter()
            .filter(|d| !d.starts_with("`file over full dir`"))
            .collect();
    assert!(rest.is_empty(), "{rest:#?}");
    assert_eq!(fs::read_dir(outside.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_link_above_the_destination_is_not_followed() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("x"), "x");
    let outside = make_dir(cluster.data_path("outside"));
    make_symlink(dst.join("planted"), &outside);
    let sync = cluster.run_sync(&src, &dst.join("planted/below"));
    assert_ne!(sync.state, SyncState::Completed, "{sync:#?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was written outside");
}

#[test]
fn a_list_of_names_copies_only_those() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_source_and_destination();
    write_unusual_tree(&src);
    write_many_files(&src.join("many"), 30, 100);
    let chosen: [&[u8]; 8] = [
        b"new\nline",
        b"not utf-8 \xff\xfe\x80",
        b"-rf",
        b"#comment",
        b" leading and trailing ",
        b"many/000/00007",
        b"dangling",
        b"times/dir",
    ];
    let mut input: Vec<u8> = chosen.join(&b"\0"[..]);
    // The same once more, absolute; it counts once.
    input.push(0);
    input.extend_from_slice(src.join("-rf").as_os_str().as_bytes());
    let ran = cluster
        .ctl(["sync", "submit"])
        .arg(&src)
        .arg(&dst)
        .args(["--files-from", "-", "-0", "--wait", "-o", "json"])
        .input(input)
        .run()
        .assert_exit_code(0);
    assert_eq!(ran.json()["state"], "COMPLETED");
    assert_eq!(ran.json()["files_done"], 7);
    let mut arrived: Vec<Vec<u8>> = walkdir::WalkDir::new(&dst)
        .min_depth(1)
        .into_iter()
        .map(|e| e.unwrap().path().strip_prefix(&dst).unwrap().as_os_str().as_bytes().to_vec())
        .collect();
    let mut wanted: Vec<Vec<u8>> = chosen.iter().map(|n| n.to_vec()).collect();
    wanted.extend([b"many".to_vec(), b"many/000".to_vec(), b"times".to_vec()]);
    arrived.sort();
    wanted.sort();
    assert_eq!(arrived, wanted);
    for below in chosen {
        assert_same(&src.join(os_name(below)), &dst.join(os_name(below)), exact_comparison());
    }
    for above in ["many", "many/000", "times"] {
        let (a, b) =
            (fs::metadata(src.join(above)).unwrap(), fs::metadata(dst.join(above)).unwrap());
        assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()));
    }
}

#[test]
fn a_listed_directory_is_copied_without_its_contents() {
    // `find … -print0` names directories too; what of them is wanted it names as well.
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src.join("wanted"), 12, 50);
    let list = json!({"file_list": ["wanted", "wanted/000/00003", "."]});
    let id = cluster.submit_with(&src, &dst, list);
    let sync = cluster.await_end(&id);
    let counted = (sync.state, sync.files_done, sync.dirs_done);
    assert_eq!(counted, (SyncState::Completed, 1, 2), "{sync:#?}");
    assert_eq!(census(&dst), Census { files: 1, dirs: 3, bytes: 50 });
    for same in ["wanted/000/00003", ""] {
        let (a, b) = (fs::metadata(src.join(same)).unwrap(), fs::metadata(dst.join(same)).unwrap());
        assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()));
    }
}

#[test]
fn a_listed_name_that_does_not_exist_is_a_failed_file() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("there"), "t");
    write_file(src.join("a file"), "t");
    let ran = cluster
        .ctl(["sync", "submit"])
        .arg(&src)
        .arg(&dst)
        .args(["--files-from", "-", "--wait", "-o", "json"])
        .input("there\nnot there\na file/below\n")
        .run()
        .assert_exit_code(23);
    let sync = ran.json();
    assert_eq!(
        (&sync["state"], &sync["outcome"]),
        (&json!("FAILED"), &json!("partial")),
        "{sync:#}"
    );
    assert_eq!(
        (&sync["files_done"], &sync["files_failed"], &sync["files_total"]),
        (&json!(1), &json!(2), &json!(3)),
        "{sync:#}"
    );
    let mut failed: Vec<(String, String)> = sync["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["path"].to_string(), e["errno"].to_string()))
        .collect();
    failed.sort();
    assert_eq!(
        failed,
        [
            ("\"a file/below\"".into(), "\"ENOTDIR\"".into()),
            ("\"not there\"".into(), "\"ENOENT\"".into())
        ]
    );
    assert!(ran.stderr_text().contains("not there"), "{}", ran.stderr_text());
    assert_eq!(fs::read(dst.join("there")).unwrap(), b"t");
}

#[test]
fn an_unreadable_file_fails_by_name_and_no_other_file_fails() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_many_files(&src, 40, 500);
    let secret = write_file(src.join("000/secret\n"), "secret");
    let large = write_file(src.join("large secret"), random_bytes(3 * MIB, 6));
    write_file(src.join("closed dir/inside"), "inside");
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    for closed in [&secret, &large, &src.join("closed dir")] {
        chmod(closed, 0o000);
    }
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    let ran = cluster
        .ctl(["sync", "submit"])
        .arg(&src)
        .arg(&dst)
        .args(["--chunk-size-mb", "1", "--wait", "-o", "json"])
        .run()
        .assert_exit_code(23);
    let sync = ran.json();
    chmod(src.join("closed dir"), 0o755);
    assert_eq!(
        (&sync["state"], &sync["outcome"]),
        (&json!("FAILED"), &json!("partial")),
        "{sync:#}"
    );
    assert_eq!((&sync["files_done"], &sync["files_skipped"]), (&json!(40), &json!(0)), "{sync:#}");
    let errors = sync["errors"].as_array().unwrap();
    let mut named: Vec<&str> = errors.iter().map(|e| e["path"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, ["000/secret\n", "closed dir", "large secret"], "{sync:#}");
    for error in errors {
        assert_eq!(error["errno"], "EACCES", "{error:#}");
        assert_eq!(error["worker_id"], "a", "{error:#}");
        assert_eq!(error["side"], "source", "{error:#}");
        assert!(error["attempt"].as_u64().unwrap() >= 1, "{error:#}");
    }
    let counts = sync["error_counts"].as_object().unwrap();
    assert_eq!(counts.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 3, "{sync:#}");
    for part in ["EACCES", "large secret", "secret\\#012", "exit 23"] {
        assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
    }
    for i in 0..40 {
        let below = format!("000/{i:05}");
        assert_same(
            &src.join(&below),
            &dst.join(&below),
            ComparisonRules { owners: false, extra: false },
        );
    }
    assert!(!dst.join("large secret").exists() && tree::part_files(&dst).is_empty());

    // The cause is gone: the next run brings the rest.
    chmod(&secret, 0o600);
    chmod(&large, 0o600);
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_eq!((sync.files_done, sync.files_skipped), (3, 40), "{sync:#?}");
    assert_same(&src, &dst, ComparisonRules { owners: false, extra: false });
}

#[test]
fn an_unwritable_destination_fails_by_name_and_read_only_directories_are_copied() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_many_files(&src.join("read only"), 150, 100);
    chmod(src.join("read only/000"), 0o555);
    chmod(src.join("read only"), 0o500);
    write_file(src.join("foreign/file"), "f");
    write_file(src.join("fine"), "f");
    User::Ordinary.chown_recursive(&src);
    let foreign = make_dir(dst.join("foreign"));
    chmod(&foreign, 0o555);
    User::Ordinary.chown(&dst);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    let sync = cluster.run_sync(&src, &dst);
    assert_same(
        &src.join("read only"),
        &dst.join("read only"),
        ComparisonRules { owners: false, extra: false },
    );
    assert_eq!(fs::read(dst.join("fine")).unwrap(), b"f");
    if support::process::is_root() {
        // `foreign` belongs to root there: its agent can neither write into it nor change it.
        assert_eq!(sync.outcome, Some(SyncOutcome::Partial), "{sync:#?}");
        let file = sync.errors.iter().find(|e| e.path.0 == b"foreign/file").expect("it is named");
        assert_eq!(file.errno.as_deref(), Some("EACCES"), "{file:#?}");
        assert_eq!(file.side, Some(Side::Destination), "{file:#?}");
        assert_eq!(file.worker_id.as_ref().map(|w| w.as_str()), Some("b"), "{file:#?}");
    } else {
        assert_eq!(sync.state, SyncState::Completed, "{sync:#?}");
    }
    // So that any user can remove the temporary directory.
    for closed in ["src/read only", "src/read only/000", "dst/read only", "dst/read only/000"] {
        chmod(cluster.data_path(closed), 0o755);
    }
}

#[test]
fn a_source_that_changes_during_the_copy_never_arrives_in_mixed_versions() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    // Every version is of one letter: a mixture of two shows.
    let write = |letter: u8| {
        let next = src.join("next");
        fs::write(&next, vec![letter; 24 * MIB]).unwrap();
        fs::rename(&next, src.join("changes")).unwrap();
    };
    write(b'a');
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1, "file_list": ["changes"]}));
    let mut letter = b'a';
    let sync = await_some("the sync ends while its source changes", || {
        let now = cluster.progress(&id);
        if letter < b'd' && now.transferred_bytes > 0 {
            letter += 1;
            write(letter);
        }
        now.state.is_final().then_some(now)
    });
    let arrived = fs::read(dst.join("changes"));
    match sync.state {
        SyncState::Completed => {
            let arrived = arrived.unwrap();
            assert_eq!(arrived.len(), 24 * MIB);
            assert!(arrived.iter().all(|b| *b == arrived[0]), "a mixture of versions");
        }
        _ => {
            assert_eq!(sync.errors[0].class, ErrorClass::Changed, "{sync:#?}");
            assert!(arrived.is_err(), "no version was published");
        }
    }
    await_true("no part file is left", || tree::part_files(&dst).is_empty());
    assert_eq!(cluster.run_sync(&src, &dst).state, SyncState::Completed);
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn special_files_are_copied_and_never_opened() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("beside"), "b");
    let made = std::process::Command::new("mkfifo").arg(src.join("pipe")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(src.join("socket")).unwrap();
    // A pipe that was opened would wait for a writer for ever.
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_tree_deeper_than_a_path_can_be_arrives() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    // Made from inside: no path could name the lowest.
    let name = "d".repeat(40);
    let open = |at: &std::os::fd::OwnedFd, name: &str| {
        rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    };
    let mut at: std::os::fd::OwnedFd = fs::File::open(&src).unwrap().into();
    for _ in 0..120 {
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = open(&at, &name).unwrap();
    }
    let bottom = rustix::fs::openat(&at, "bottom", OFlags::CREATE | OFlags::WRONLY, 0o644.into());
    rustix::io::write(bottom.unwrap(), b"deep").unwrap();

    let sync = cluster.run_sync(&src, &dst);
    assert_eq!(
        (sync.state, sync.files_done, sync.dirs_done),
        (SyncState::Completed, 1, 121),
        "{sync:#?}"
    );
    let mut at: std::os::fd::OwnedFd = fs::File::open(&dst).unwrap().into();
    for _ in 0..120 {
        at = open(&at, &name).unwrap();
    }
    let stat = rustix::fs::statat(&at, "bottom", AtFlags::empty()).unwrap();
    assert_eq!(stat.st_size, 4);
    let again = cluster.run_sync(&src, &dst);
    assert_eq!((again.files_done, again.files_skipped), (0, 1), "{again:#?}");
}

#[test]
fn wide_trees_are_listed_in_pages_without_gaps() {
    let mut cluster = Cluster::start_with(StoreKind::Redis, "limits: {window_tasks: 4}\n");
    let (src, dst) = cluster.add_source_and_destination();
    // More entries than a batch may have, in one directory and in many, under a small window.
    for i in 0..5_000 {
        fs::write(src.join(format!("f{i:05}")), "").unwrap();
    }
    for i in 0..300 {
        write_file(src.join(format!("dirs/{i:03}/x")), [0; 10]);
    }
    let there = census(&src);
    assert_complete(&cluster.run_sync(&src, &dst), there);
    assert_same(&src, &dst, exact_comparison());
    assert_nothing_to_do(&cluster.run_sync(&src, &dst), there);
}
