//! Hosts on one machine: each has mounts of its own, and what agents take for a kernel of its own. They need root.

use super::await_some;
use super::process::{Process, User, clean_command, is_root};
use super::tree;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A host. Its mounts stay while its agents are started again, and end with it.
pub(crate) struct Host {
    // Dropped in this order: file systems before the namespace in which they are mounted.
    file_systems: std::sync::Mutex<Vec<Process>>,
    /// Keeps the namespace, and does nothing else.
    namespace: Process,
    name: String,
    dir: PathBuf,
}

impl Host {
    /// A host that has the files of this machine until something is mounted there, with its logs in `dir`.
    #[track_caller]
    pub(crate) fn start(dir: &Path, name: &str) -> Arc<Host> {
        assert!(is_root(), "this test needs root, for mounts of its own: run it as root");
        let own = std::fs::read_link("/proc/self/ns/mnt").expect("the namespace of the test");
        let mut command = clean_command(Path::new("unshare"), dir, User::Same);
        command.args(["--mount", "sleep", "infinity"]);
        let log = dir.join(format!("{name}.host.log"));
        let namespace = Process::start(&format!("host {name}"), command, &log);
        let link = format!("/proc/{}/ns/mnt", namespace.pid());
        let program = format!("/proc/{}/comm", namespace.pid());
        await_some(&format!("{name} has mounts of its own"), || {
            let is_separate = std::fs::read_link(&link).is_ok_and(|space| space != own);
            // Only then the mounts are private.
            let is_ready = std::fs::read_to_string(&program).is_ok_and(|name| name == "sleep\n");
            (is_separate && is_ready).then_some(())
        });
        let (name, dir) = (name.to_owned(), dir.to_owned());
        Arc::new(Host { file_systems: Default::default(), namespace, name, dir })
    }

    /// … whose kernel reports this boot id.
    #[track_caller]
    pub(crate) fn start_with_boot_id(dir: &Path, name: &str, boot: &str) -> Arc<Host> {
        let host = Self::start(dir, name);
        let file = dir.join(format!("{name}.boot"));
        std::fs::write(&file, format!("{boot}\n")).expect("write the boot id");
        host.mount(&["--bind".as_ref(), file.as_ref(), "/proc/sys/kernel/random/boot_id".as_ref()]);
        host
    }

    /// A command that runs on this host.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = clean_command(Path::new("nsenter"), &self.dir, User::Same);
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.namespace.pid()));
        command.arg("--").arg(program);
        command
    }

    /// What this host has at a path, for the test.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.namespace.pid())).join(below)
    }

    /// `mount ARGS…`
    #[track_caller]
    pub(crate) fn mount(&self, args: &[&OsStr]) {
        let mut command = self.command(Path::new("mount"));
        let ran = command.args(args).output().expect("nsenter can be run");
        let error = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "mount {args:?} on {}: {error}", self.name);
    }

    /// An empty file system at a directory.
    #[track_caller]
    pub(crate) fn mount_tmpfs(&self, at: &Path) {
        self.mount(&["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), at.as_os_str()]);
    }

    /// The directory `tree` at another place, by a file system in user space: to the kernel it is one that hosts may
    /// share, like NFS.
    #[track_caller]
    pub(crate) fn mount_fuse(&self, tree: &Path, at: &Path, options: &[&str]) {
        let mut command = self.command(Path::new("bindfs"));
        command.arg("-f").args(options).args([tree, at]);
        let log = self.dir.join(format!("{}.bindfs.log", self.name));
        let mut process = Process::start(&format!("bindfs on {}", self.name), command, &log);
        let mounts = format!("/proc/{}/mountinfo", self.namespace.pid());
        let place = format!(" {} ", at.to_str().expect("a plain path"));
        await_some(&format!("{place}is mounted on {}", self.name), || {
            if let Some(status) = process.try_exit_status() {
                panic!(
                    "bindfs ended with {status}: {}(scripts/test.sh installs it; it needs /dev/fuse)",
                    process.log()
                );
            }
            let text = std::fs::read_to_string(&mounts).expect("the mounts of the host");
            text.lines().any(|line| line.contains(&place) && line.contains("fuse")).then_some(())
        });
        self.file_systems.lock().expect("no panic there").push(process);
    }

    /// An empty directory on a file system of its own, at the same path as on other hosts.
    #[track_caller]
    pub(crate) fn make_local_disk(&self, at: &Path) -> PathBuf {
        self.mount_tmpfs(&tree::make_dir(at));
        self.path(at)
    }
}
