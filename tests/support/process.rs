//! One child process with a log file, killed on drop.

use super::await_some;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The user that a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// The user of the test.
    Same,
    /// A user without privileges: `nobody` for a test that runs as root, else the user of the test.
    Ordinary,
}

/// The ids of `nobody`.
pub(crate) const NOBODY: u32 = 65_534;

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl User {
    /// The user and group that must be switched to.
    pub(crate) fn ids(self) -> Option<(u32, u32)> {
        (self == User::Ordinary && is_root()).then_some((NOBODY, NOBODY))
    }

    /// Gives this user a file or directory (not what is in it).
    pub(crate) fn chown(self, path: &Path) {
        if let Some((uid, gid)) = self.ids() {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// … and all that is in it.
    pub(crate) fn chown_recursive(self, path: &Path) {
        for entry in walkdir::WalkDir::new(path) {
            self.chown(entry.expect("a readable tree").path());
        }
    }
}

/// The program under test. An ordinary user may not be able to reach it where it was built, so they
/// get a link to it (or a copy) in `dir`.
pub(crate) fn ctl_binary(user: User, dir: &Path) -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_ctl"));
    if user.ids().is_none() {
        return built;
    }
    let reachable = dir.join("ctl");
    if !reachable.exists() && std::fs::hard_link(&built, &reachable).is_err() {
        std::fs::copy(&built, &reachable).expect("copy the program");
    }
    reachable
}

/// A command that sees nothing of the environment of the test but where programs are.
pub(crate) fn clean_command(program: &Path, home: &Path, user: User) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home).env("LANG", "C.UTF-8").current_dir("/");
    // Root's default directory for state, /var/lib/longhaul, is none of a test's.
    command.env("XDG_STATE_HOME", home.join(".state"));
    // What coverage and the like need to pass on.
    for name in ["LLVM_PROFILE_FILE", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some((uid, gid)) = user.ids() {
        command.uid(uid).gid(gid);
    }
    command
}

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it prints is added to `log`.
    pub(crate) fn start(what: &str, mut command: Command, log: &Path) -> Self {
        let file: File =
            OpenOptions::new().create(true).append(true).open(log).expect("open the log");
        command.stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{what} cannot be started: {e}"));
        Process { what: what.to_owned(), child, log: log.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `Some` when it has ended.
    pub(crate) fn try_exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.what));
    }

    /// Suspends it (SIGSTOP) and waits until the kernel reports it as stopped.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.pid());
        await_some(&format!("{} is suspended", self.what), || {
            let text = std::fs::read_to_string(&stat).ok()?;
            // The state is the first word behind the name, which is in parentheses.
            text.rsplit_once(')')?.1.trim_start().starts_with('T').then_some(())
        });
    }

    /// Continues it (SIGCONT).
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill_9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it has ended by itself.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.await_end()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn await_end(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.what);
        await_some(&what, || self.try_exit_status())
    }

    /// How many bytes it has read from and written to files so far.
    pub(crate) fn file_bytes(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid())).expect("its io");
        let number = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key)).expect("a line of io");
            line.trim().parse().expect("a number")
        };
        (number("rchar:"), number("wchar:"))
    }

    /// What it printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it printed, for a test that fails.
    fn print_log_tail(&self) {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(120);
        eprintln!("--- {} (last {} lines) ---", self.what, lines.len() - from);
        for line in &lines[from..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_9();
        if std::thread::panicking() {
            self.print_log_tail();
        }
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl CommandOutput {
    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Its standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| {
            panic!("no JSON ({e}): {}\n{}", self.stdout_text(), self.stderr_text())
        })
    }

    /// Checks its exit code.
    #[track_caller]
    pub(crate) fn assert_exit_code(self, code: i32) -> Self {
        let (out, err) = (self.stdout_text(), self.stderr_text());
        assert_eq!(
            self.code,
            Some(code),
            "exit code\n--- stdout ---\n{out}\n--- stderr ---\n{err}"
        );
        self
    }
}

/// Killed when it is dropped, so that a test that fails leaves nothing behind.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running command. Its output is read continuously.
pub(crate) struct RunningCommand {
    child: KillOnDrop,
    stdout: std::thread::JoinHandle<Vec<u8>>,
    stderr: std::sync::Arc<parking_lot::Mutex<Vec<u8>>>,
    stderr_ended: std::thread::JoinHandle<()>,
}

impl RunningCommand {
    /// Starts a command with `input` on its standard input.
    pub(crate) fn start(mut command: Command, input: Option<&[u8]>) -> Self {
        use std::io::{Read, Write};
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command can be started");
        if let Some(bytes) = input {
            let mut pipe = child.stdin.take().expect("piped");
            let bytes = bytes.to_vec();
            // A command that ends before it has read everything closes the pipe, which is no error.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let mut out = child.stdout.take().expect("piped");
        let mut err = child.stderr.take().expect("piped");
        let stderr = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = std::sync::Arc::clone(&stderr);
        RunningCommand {
            child: KillOnDrop(child),
            stdout: std::thread::spawn(move || {
                let mut bytes = Vec::new();
                out.read_to_end(&mut bytes).expect("read standard output");
                bytes
            }),
            stderr,
            stderr_ended: std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = err.read(&mut piece) {
                    seen.lock().extend_from_slice(&piece[..n]);
                }
            }),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.0.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("signal the command");
    }

    /// Waits until `ask` is true while the command runs; that it ends before is a failure.
    #[track_caller]
    pub(crate) fn await_stderr(&mut self, what: &str, mut ask: impl FnMut(&str) -> bool) {
        await_some(what, || {
            // Looked at first: what it did before it ended counts.
            let ended = self.child.0.try_wait().expect("wait for the command");
            let said = self.stderr_so_far();
            match (ask(&said), ended) {
                (true, _) => Some(()),
                (false, None) => None,
                (false, Some(status)) => panic!("{what}: it ended before, with {status}:\n{said}"),
            }
        });
    }

    /// What it printed on standard error so far.
    pub(crate) fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock()).into_owned()
    }

    /// Waits until it has ended; after `limit` it is killed and the test fails.
    pub(crate) fn finish(mut self, limit: Duration) -> CommandOutput {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.0.try_wait().expect("wait for the command") {
                break status;
            }
            if Instant::now() > deadline {
                panic!("the command did not end within {limit:?}:\n{}", self.stderr_so_far());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout = self.stdout.join().expect("no panic there");
        self.stderr_ended.join().expect("no panic there");
        let stderr = std::mem::take(&mut *self.stderr.lock());
        CommandOutput { code: status.code(), stdout, stderr }
    }
}
