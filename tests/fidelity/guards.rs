//! `ctl copy` between runs: a mirror whose source is not what it was, and one that is mounted anew on
//! purpose.

use crate::support::ctl::{Ctl, ctl};
use crate::support::process::Ran;
use crate::support::tree::{dir, file};
use crate::{as_root, paths_of, state_of};
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

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self, args: &[&str]) -> Ctl {
        let copy =
            ctl(["copy", "--progress", "none"]).arg(self.at("src")).arg(self.at("dst")).more(args);
        copy.env("XDG_STATE_HOME", self.at("state"))
    }

    fn records(&self) -> Vec<PathBuf> {
        let dir = self.at("state/longhaul/copies");
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
fn stopped(ran: Ran, words: &[&str]) {
    let ran = ran.exits(8);
    let said = format!("{}{}", ran.out(), ran.err());
    for word in ["nothing was copied", "(exit 8)"].iter().chain(words) {
        assert_eq!(said.matches(word).count(), 1, "`{word}` once in {said}");
    }
    assert!(!said.contains("everything was copied"), "{said}");
}

#[test]
fn a_copy_stops_where_its_source_lies_on_another_file_system_than_at_the_last_run() {
    as_root("mounts");
    let home = Home::new();
    let src = dir(home.at("src"));
    let mount = Tmpfs::at(&src);
    for name in ["a", "b", "c"] {
        file(src.join(name), name);
    }
    // Any copy of the pair counts, not only a mirror.
    home.copy(&[]).run().exits(0);
    drop(mount);
    // Something lies where the mount should be.
    file(src.join("a"), "is it mounted?");
    let before = state_of(&home.at("dst"));
    let mirror = ["--delete", "--max-delete-percent", "100"];
    stopped(home.copy(&mirror).run(), &["another file system", "allow it with"]);
    // A dry run says so and stops nothing; that the guard stopped a run changes no memory.
    let dry = home.copy(&mirror).arg("-n").run().exits(0);
    assert!(dry.err().contains("a real run would"), "{}", dry.err());
    stopped(home.copy(&mirror).arg("--allow-empty-source").run(), &["--allow-new-source-fs)"]);
    assert_eq!(state_of(&home.at("dst")), before, "nothing was written or deleted");
    home.copy(&mirror).arg("--allow-new-source-fs").run().exits(0);
    assert_eq!(paths_of(&home.at("dst")), ["a"]);
    home.copy(&mirror).run().exits(0);
}

#[test]
fn a_snapshot_that_is_mounted_anew_each_night_is_mirrored_but_not_its_empty_mount_point() {
    as_root("mounts");
    let home = Home::new();
    let src = dir(home.at("src"));
    let mirror = ["--delete", "--max-delete-percent", "100", "--allow-new-source-fs"];
    for night in ["one", "two"] {
        let mount = Tmpfs::at(&src);
        file(src.join(night), night);
        home.copy(&mirror).run().exits(0);
        assert_eq!(paths_of(&home.at("dst")), [night]);
        drop(mount);
    }
    let before = state_of(&home.at("dst"));
    stopped(home.copy(&mirror).run(), &["is empty", "--allow-empty-source)"]);
    assert_eq!(state_of(&home.at("dst")), before, "the root keeps its metadata as well");
}

#[test]
fn what_a_copy_keeps_is_small_private_and_no_condition_for_a_copy() {
    let home = Home::new();
    let src = dir(home.at("src"));
    file(src.join("a"), "a");
    home.copy(&["-n"]).run().exits(0);
    assert!(home.records().is_empty(), "a dry run keeps nothing");
    for _ in 0..2 {
        home.copy(&["--delete"]).run().exits(0);
        assert_eq!(home.records().len(), 1);
    }
    let record = home.records().remove(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&record), mode(record.parent().unwrap())), (0o600, 0o700));
    // A mirror does not pass over a record that can't be read; a copy has no use for it.
    fs::write(&record, "{").unwrap();
    let ran = home.copy(&["--delete"]).run().exits(1);
    let rm = format!("rm {}", record.display());
    assert!(ran.err().contains("cannot read") && ran.err().contains(&rm), "{}", ran.err());
    home.copy(&[]).run().exits(0);
    home.copy(&["--delete"]).run().exits(0);
    // Where nothing can be kept, a mirror says so and goes on; a copy has nothing to say.
    let nowhere =
        |args: &[&str]| home.copy(args).env("XDG_STATE_HOME", "/dev/null/x").run().exits(0);
    assert!(nowhere(&["--delete"]).err().contains("can't be recorded"));
    assert_eq!(nowhere(&["-q"]).err(), "");
}
