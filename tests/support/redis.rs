//! A Redis server of its own for a test: on a unix socket in a temporary directory, with AOF, gone
//! when it is dropped. Included by path, from integration tests and from unit tests.
#![allow(dead_code)] // not every test uses all of it

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running `redis-server`.
pub(crate) struct RedisServer {
    dir: tempfile::TempDir,
    settings: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    child: Child,
}

impl RedisServer {
    /// With AOF and without snapshots.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further settings, such as `&["--appendonly", "no"]`: the last one counts.
    pub(crate) fn start_with(settings: &[&str]) -> Self {
        Self::start_with_environment(settings, &[])
    }

    /// … and with more in its environment.
    pub(crate) fn start_with_environment(
        settings: &[&str],
        environment: &[(&'static str, PathBuf)],
    ) -> Self {
        // A short path: a socket's is limited to 107 bytes.
        let dir =
            tempfile::Builder::new().prefix("rd").tempdir_in("/tmp").expect("temporary directory");
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let environment = environment.to_vec();
        let child = spawn(&dir, &settings, &environment);
        RedisServer { dir, settings, environment, child }
    }

    /// The URL for the `redis` crate.
    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    /// Whether it has no append-only file.
    pub(crate) fn is_volatile(&self) -> bool {
        self.settings.windows(2).any(|pair| pair == ["--appendonly", "no"])
    }

    /// Keeps what its append-only files hold now, for [`roll_back`](Self::roll_back).
    pub(crate) fn save_aof(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("temporary directory");
        for entry in std::fs::read_dir(self.dir.path().join("appendonlydir")).expect("it exists") {
            let entry = entry.expect("directory entry");
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copy");
        }
        copy
    }

    /// kill -9, and starts it again with what was remembered.
    pub(crate) fn restore_aof(&mut self, to: &tempfile::TempDir) {
        self.kill();
        let dir = self.dir.path().join("appendonlydir");
        std::fs::remove_dir_all(&dir).expect("remove");
        std::fs::create_dir(&dir).expect("make");
        for entry in std::fs::read_dir(to.path()).expect("it exists") {
            let entry = entry.expect("directory entry");
            std::fs::copy(entry.path(), dir.join(entry.file_name())).expect("copy");
        }
        self.restart();
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again (after [`kill`](Self::kill), if it was not killed before) with what it has on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.dir, &self.settings, &self.environment);
    }

    /// Sends it a signal, such as `STOP_TIMEOUT` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "kill -{name}");
    }

    /// The file at the end of its append-only log.
    pub(crate) fn last_aof_file(&self) -> PathBuf {
        let dir = self.dir.path().join("appendonlydir");
        let mut logs: Vec<PathBuf> = std::fs::read_dir(&dir)
            .expect("appendonlydir exists")
            .map(|entry| entry.expect("directory entry").path())
            .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
            .collect();
        logs.sort();
        logs.pop().expect("an incremental AOF")
    }

    /// One command over a connection of its own; the answer as the server sent it.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("connect to redis-server");
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        request.push_str("*1\r\n$4\r\nQUIT\r\n");
        stream.write_all(request.as_bytes()).expect("send to redis-server");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("read from redis-server");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.strip_suffix("+OK\r\n").map(str::to_owned).unwrap_or(answer)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the server and waits for the line with which it says that it is ready.
fn spawn(
    dir: &tempfile::TempDir,
    settings: &[String],
    environment: &[(&'static str, PathBuf)],
) -> Child {
    let mut child = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "yes", "--unixsocketperm", "700"])
        .args(["--daemonize", "no", "--logfile", ""])
        .arg("--unixsocket")
        .arg(dir.path().join("r.sock"))
        .arg("--dir")
        .arg(dir.path())
        .args(settings)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server cannot be started: run scripts/test.sh, it installs it");
    let mut log = BufReader::new(child.stdout.take().expect("piped"));
    let mut printed = String::new();
    // The lines "Ready to accept connections" of 7.0 and "... unix" of later versions.
    while !printed.contains("ready to accept connections at")
        && !printed.contains("Ready to accept connections unix")
    {
        if log.read_line(&mut printed).unwrap_or(0) == 0 {
            let _ = child.kill();
            let _ = child.wait();
            panic!("redis-server did not start:\n{printed}");
        }
    }
    // Read on, or the server would block once the pipe is full.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    child
}
