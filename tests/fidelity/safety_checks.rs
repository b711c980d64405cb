//! `ctl copy` between runs: a mirror with a source that is another one, and one that is mounted again on
//! purpose.

use crate::support::ctl::{Ctl, ctl};
use crate::support::process::CommandOutput;
use crate::support::tree::{make_dir, write_file};
use crate::{assert_root, metadata_by_path, paths_of};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `src` and `dst` with a place for what `ctl copy` keeps.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home { dir: tempfile::Builder::new().prefix("longhaul-").tempdir().unwrap() }
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self, args: &[&str]) -> Ctl {
        let copy = ctl(["copy", "--progress", "none"])
            .arg(self.path_of("src"))
            .arg(self.path_of("dst"))
            .args(args);
        copy.env("XDG_STATE_HOME", self.path_of("state"))
    }

    fn records(&self) -> Vec<PathBuf> {
        let dir = self.path_of("state/longhaul/copies");
        fs::read_dir(dir).map_or(Vec::new(), |all| all.map(|e| e.unwrap().path()).collect())
    }
}

/// A tmpfs that is unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: &Path) -> Tmpfs {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755", "none"]).arg(path);
        let ran = mount.output().expect("this test needs `mount`");
        assert!(ran.status.success(), "this test needs a tmpfs to be mounted: {ran:?}");
        Tmpfs(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[track_caller]
fn assert_stopped(ran: CommandOutput, words: &[&str]) {
    let ran = ran.assert_exit_code(8);
    let printed = format!("{}{}", ran.stdout_text(), ran.stderr_text());
    for word in ["nothing was copied", "(exit 8)"].iter().chain(words) {
        assert_eq!(printed.matches(word).count(), 1, "`{word}` once in {printed}");
    }
    assert!(!printed.contains("everything was copied"), "{printed}");
}

#[test]
fn a_mirror_copy_stops_when_its_source_is_on_another_file_system_than_in_the_last_run() {
    assert_root("mounts");
    let home = Home::new();
    let src = make_dir(home.path_of("src"));
    let mount = Tmpfs::at(&src);
    for name in ["a", "b", "c"] {
        write_file(src.join(name), name);
    }
    // Any copy of the pair counts, not only a mirror.
    home.copy(&[]).run().assert_exit_code(0);
    drop(mount);
    // Something lies where the mount should be.
    write_file(src.join("a"), "is it mounted?");
    let before = metadata_by_path(&home.path_of("dst"));
    let mirror = ["--delete", "--max-delete-percent", "100"];
    assert_stopped(home.copy(&mirror).run(), &["another file system", "allow it with"]);
    // A dry run says so and stops nothing; that the guard stopped a run changes no memory.
    let dry = home.copy(&mirror).arg("-n").run().assert_exit_code(0);
    assert!(dry.stderr_text().contains("a real run would"), "{}", dry.stderr_text());
    assert_stopped(
        home.copy(&mirror).arg("--allow-empty-source").run(),
        &["--allow-new-source-fs)"],
    );
    assert_eq!(metadata_by_path(&home.path_of("dst")), before, "nothing was written or deleted");
    home.copy(&mirror).arg("--allow-new-source-fs").run().assert_exit_code(0);
    assert_eq!(paths_of(&home.path_of("dst")), ["a"]);
    home.copy(&mirror).run().assert_exit_code(0);
}

#[test]
fn a_snapshot_mounted_for_each_run_is_mirrored_but_its_empty_mount_point_is_not() {
    assert_root("mounts");
    let home = Home::new();
    let src = make_dir(home.path_of("src"));
    let mirror = ["--delete", "--max-delete-percent", "100", "--allow-new-source-fs"];
    for night in ["one", "two"] {
        let mount = Tmpfs::at(&src);
        write_file(src.join(night), night);
        home.copy(&mirror).run().assert_exit_code(0);
        assert_eq!(paths_of(&home.path_of("dst")), [night]);
        drop(mount);
    }
    let before = metadata_by_path(&home.path_of("dst"));
    assert_stopped(home.copy(&mirror).run(), &["is empty", "--allow-empty-source)"]);
    assert_eq!(
        metadata_by_path(&home.path_of("dst")),
        before,
        "the root keeps its metadata as well"
    );
}

#[test]
fn the_run_records_of_copies_are_small_private_and_optional() {
    let home = Home::new();
    let src = make_dir(home.path_of("src"));
    write_file(src.join("a"), "a");
    home.copy(&["-n"]).run().assert_exit_code(0);
    assert!(home.records().is_empty(), "a dry run keeps nothing");
    for _ in 0..2 {
        home.copy(&["--delete"]).run().assert_exit_code(0);
        assert_eq!(home.records().len(), 1);
    }
    let record = home.records().remove(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&record), mode(record.parent().unwrap())), (0o600, 0o700));
    // A mirror does not pass over a record that can't be read; a copy has no use for it.
    fs::write(&record, "{").unwrap();
    let ran = home.copy(&["--delete"]).run().assert_exit_code(1);
    let rm = format!("rm {}", record.display());
    assert!(
        ran.stderr_text().contains("cannot read") && ran.stderr_text().contains(&rm),
        "{}",
        ran.stderr_text()
    );
    home.copy(&[]).run().assert_exit_code(0);
    home.copy(&["--delete"]).run().assert_exit_code(0);
    // Where nothing can be kept, a mirror says so and goes on; a copy has nothing to say.
    let nowhere = |args: &[&str]| {
        home.copy(args).env("XDG_STATE_HOME", "/dev/null/x").run().assert_exit_code(0)
    };
    assert!(nowhere(&["--delete"]).stderr_text().contains("can't be recorded"));
    assert_eq!(nowhere(&["-q"]).stderr_text(), "");
}
