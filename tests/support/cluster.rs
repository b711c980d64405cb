//! A whole installation of real processes: a store, a master, agents.

use super::clock::Clock;
use super::ctl::{Ctl, ctl};
use super::host::Host;
use super::http::{self, Response};
use super::ports::free_port;
use super::process::{NOBODY, Process, User, clean_command, ctl_binary};
use super::redis::RedisServer;
use super::tree::{self, Census};
use super::{await_some, await_true};
use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

/// The store of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Embedded,
    Redis,
}

/// An installation.
pub(crate) struct Cluster {
    // Dropped in this order: processes before their store and their files.
    pub(crate) agents: BTreeMap<String, Agent>,
    pub(crate) master: Master,
    /// Further masters on the same Redis.
    pub(crate) other_masters: Vec<Master>,
    pub(crate) redis: Option<RedisServer>,
    /// Of agents that are started from now on.
    heartbeat_interval: Duration,
    dir: tempfile::TempDir,
}

/// A `ctl master`.
pub(crate) struct Master {
    pub(crate) process: Process,
    port: u16,
    dir: PathBuf,
}

/// A `ctl agent`.
pub(crate) struct Agent {
    pub(crate) process: Process,
    name: String,
    dir: PathBuf,
    user: User,
    /// Where it runs, if not on the host of the test.
    host: Option<Arc<Host>>,
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(file: &Path, content: &[u8]) {
    std::fs::write(file, content).expect("write the file");
    tree::chmod(file, 0o600);
}

impl Cluster {
    /// A master that serves, and no agents.
    pub(crate) fn start(on: StoreKind) -> Cluster {
        Self::start_with(on, "")
    }

    /// … with further lines in its configuration.
    pub(crate) fn start_with(on: StoreKind, more: &str) -> Cluster {
        Self::start_with_redis((on == StoreKind::Redis).then(RedisServer::start), more)
    }

    /// … in which these directories of the data are one storage on all workers: agents without
    /// fingerprints cannot be compared with others.
    pub(crate) fn start_with_shared(on: StoreKind, shared: &[&str]) -> Cluster {
        let declare =
            |below: &&str| format!("  - {{id: {below}, paths: [DATA/{below}], workers: ['*']}}\n");
        let lines: String = shared.iter().map(declare).collect();
        Self::start_with(on, &format!("storages:\n{lines}"))
    }

    /// … with its state in that Redis. `DATA` in `more` stands for the directory of the data.
    pub(crate) fn start_with_redis(redis: Option<RedisServer>, more: &str) -> Cluster {
        let dir = tempfile::Builder::new().prefix("longhaul-").tempdir().expect("a directory");
        tree::chmod(dir.path(), 0o755);
        let home = dir.path().canonicalize().expect("a real path");
        let more = more.replace("DATA", home.join("data").to_str().expect("UTF-8"));
        let port = free_port();
        let mut config = format!(
            "listen: 127.0.0.1:{port}\nlocal_agent_uids: [{NOBODY}]\ndata_dir: {}\nheartbeat_interval: 300ms\n\
             worker_heartbeat_timeout: 3s\nlease: 5s\nlog: {{level: \"info,longhaul=debug,longhaul::master::http=info\"}}\n{more}",
            quoted(&tree::make_dir(home.join("state")))
        );
        if let Some(redis) = &redis {
            let volatile = if redis.is_volatile() { ", allow_volatile: true" } else { "" };
            let url = json!(redis.url());
            let secrets = home.join("shared-secrets.key");
            write_private(&secrets, &[5; 32]);
            let secrets = quoted(&secrets);
            config.push_str(&format!("secrets_file: {secrets}\n"));
            config.push_str(&format!("installation: test\nredis: {{url: {url}{volatile}}}\n"));
        }
        std::fs::write(home.join("master.yml"), config).expect("write the configuration");
        tree::make_dir(home.join("data"));
        let process = Master::spawn(&home);
        let mut master = Master { process, port, dir: home };
        master.await_ready();
        let heartbeat = Duration::from_millis(300);
        Cluster {
            agents: BTreeMap::new(),
            master,
            other_masters: Vec::new(),
            redis,
            heartbeat_interval: heartbeat,
            dir,
        }
    }

    /// Starts another master on the same Redis, and waits until it follows. Agents that are started from
    /// then on have its URL.
    pub(crate) fn add_master(&mut self) -> &mut Master {
        let home =
            tree::make_dir(self.home().join(format!("master-{}", self.other_masters.len() + 2)));
        let port = free_port();
        let config = std::fs::read_to_string(self.home().join("master.yml")).expect("its file");
        let state = quoted(&self.home().join("state"));
        let config = config
            .replace(&self.master.address(), &format!("127.0.0.1:{port}"))
            .replace(&state, &quoted(&tree::make_dir(home.join("state"))));
        std::fs::write(home.join("master.yml"), config).expect("write the configuration");
        let mut master = Master { process: Master::spawn(&home), port, dir: home };
        master.await_ready();
        self.other_masters.push(master);
        self.other_masters.last_mut().expect("just added")
    }

    /// Starts the master again with leases of so many seconds, which are 5 else.
    pub(crate) fn shorten_leases(&mut self, lease: Duration) {
        let path = self.home().join("master.yml");
        let config = std::fs::read_to_string(&path).expect("its file");
        let config = config.replace("lease: 5s", &format!("lease: {}s", lease.as_secs()));
        std::fs::write(&path, config).expect("write the configuration");
        self.master.restart();
    }

    /// Sets the interval of agents that are started from now on, and a heartbeat timeout of the master that fits.
    pub(crate) fn set_heartbeat_interval(&mut self, interval: Duration) {
        self.heartbeat_interval = interval;
        self.set_heartbeat_timeout(10 * interval);
    }

    /// Starts the master again with this heartbeat timeout.
    pub(crate) fn set_heartbeat_timeout(&mut self, timeout: Duration) {
        let path = self.home().join("master.yml");
        let config = std::fs::read_to_string(&path).expect("its file");
        let timeout = format!("worker_heartbeat_timeout: {}s", timeout.as_secs());
        std::fs::write(&path, config.replace("worker_heartbeat_timeout: 3s", &timeout))
            .expect("write it");
        self.master.restart();
    }

    /// Every master.
    pub(crate) fn masters(&self) -> impl Iterator<Item = &Master> {
        std::iter::once(&self.master).chain(&self.other_masters)
    }

    /// The URLs of all masters, by commas.
    pub(crate) fn urls(&self) -> String {
        self.masters().map(Master::url).collect::<Vec<_>>().join(",")
    }

    /// A path below the directory for data.
    pub(crate) fn data_path(&self, below: &str) -> PathBuf {
        let data = self.master.dir.join("data");
        if below.is_empty() { data } else { data.join(below) }
    }

    /// The directory of the installation.
    pub(crate) fn home(&self) -> &Path {
        &self.master.dir
    }

    /// Starts an agent that holds `storage`, and waits until the master lists it.
    pub(crate) fn add_agent(&mut self, name: &str, storage: &[&Path]) -> &mut Agent {
        self.add_agent_with(name, storage, User::Same, "")
    }

    /// … as another user, with further lines in its configuration.
    pub(crate) fn add_agent_with(
        &mut self,
        name: &str,
        storage: &[&Path],
        user: User,
        more: &str,
    ) -> &mut Agent {
        let urls = self.urls();
        self.add_agent_at(name, storage, user, more, (&urls, 0))
    }

    /// … that asks for work at these URLs, and listens on that port.
    pub(crate) fn add_agent_at(
        &mut self,
        name: &str,
        storage: &[&Path],
        user: User,
        more: &str,
        at: (&str, u16),
    ) -> &mut Agent {
        self.start_agent(name, &json!(storage), (user, None), more, at)
    }

    /// … on that host, with entries of `storage_paths`.
    pub(crate) fn add_agent_on(
        &mut self,
        host: &Arc<Host>,
        name: &str,
        storage: &Value,
        more: &str,
    ) -> &mut Agent {
        let urls = self.urls();
        self.start_agent(name, storage, (User::Same, Some(host.clone())), more, (&urls, 0))
    }

    fn start_agent(
        &mut self,
        name: &str,
        storage: &Value,
        (user, host): (User, Option<Arc<Host>>),
        more: &str,
        (urls, port): (&str, u16),
    ) -> &mut Agent {
        let state = tree::make_dir(self.home().join("state-of-agents"));
        tree::chmod(&state, 0o777);
        let config = format!(
            "master_url: [{urls}]\nheartbeat_interval: {}ms\nlog: {{level: \"info,longhaul=debug\"}}\n\
             data_dir: {}\n{more}\n\
             workers:\n  - worker_id: {name}\n    storage_paths: {storage}\n    network:\n      \
             data_plane_endpoints: [{{address: 127.0.0.1, port: {port}}}]\n",
            self.heartbeat_interval.as_millis(),
            quoted(&state)
        );
        let dir = self.master.dir.clone();
        std::fs::write(dir.join(format!("{name}.yml")), config).expect("write the configuration");
        let mut agent = Agent {
            process: Agent::spawn(name, &dir, user, host.as_deref()),
            name: name.to_owned(),
            dir,
            user,
            host,
        };
        let master = &self.master;
        await_true(&format!("the master lists {name}"), || {
            if let Some(status) = agent.process.try_exit_status() {
                panic!("agent {name} ended with {status}:\n{}", agent.process.log());
            }
            master.active_workers().iter().any(|worker| worker == name)
        });
        self.agents.insert(name.to_owned(), agent);
        self.agents.get_mut(name).expect("just inserted")
    }

    /// Two agents, `a` with the source `src` and `b` with the destination `dst`, which are made.
    pub(crate) fn add_source_and_destination(&mut self) -> (PathBuf, PathBuf) {
        let (src, dst) =
            (tree::make_dir(self.data_path("src")), tree::make_dir(self.data_path("dst")));
        self.add_agent("a", &[&src]);
        self.add_agent("b", &[&dst]);
        (src, dst)
    }

    /// Two agents for the source `src` and two for the destination `dst`, which are made.
    pub(crate) fn add_two_agents_per_side(&mut self) -> (PathBuf, PathBuf) {
        let (src, dst) = self.add_source_and_destination();
        self.add_agent("a2", &[&src]);
        self.add_agent("b2", &[&dst]);
        (src, dst)
    }

    /// Every assignment that an agent began, as the logs have it.
    pub(crate) fn started_assignments(&self) -> Vec<String> {
        let logs = self.agents.values().map(|agent| agent.process.log());
        let ids = |log: String| -> Vec<String> {
            let begun = log.lines().filter(|line| line.contains(": begun "));
            let id =
                |line: &str| line.split("assignment=").nth(1)?.split(' ').next().map(str::to_owned);
            begun.map(|line| id(line).expect("it names the assignment")).collect()
        };
        logs.flat_map(ids).collect()
    }

    /// Checks that no assignment was started twice, whatever the store has lost.
    #[track_caller]
    pub(crate) fn assert_assigned_once(&self) {
        let mut begun = self.started_assignments();
        assert!(!begun.is_empty(), "the agents log what they begin");
        begun.sort();
        let twice: Vec<_> = begun.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    /// `ctl ARGS…` with the URLs of these masters.
    pub(crate) fn ctl<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ctl {
        ctl(args).env("CTL_MASTER_URL", self.urls())
    }

    /// Submits a sync and returns its id.
    #[track_caller]
    pub(crate) fn submit(&self, source: &Path, destination: &Path) -> String {
        self.submit_with(source, destination, json!({}))
    }

    /// … with further fields.
    #[track_caller]
    pub(crate) fn submit_with(&self, source: &Path, destination: &Path, more: Value) -> String {
        let mut request = json!({"source_path": source, "destination_path": destination});
        let fields = request.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let answer = self.master.post("/sync", &request);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["request_id"].as_str().expect("an id").to_owned()
    }

    /// The progress of a sync.
    #[track_caller]
    pub(crate) fn progress(&self, id: &str) -> SyncProgress {
        self.masters().find_map(|m| m.progress(id)).unwrap_or_else(|| panic!("the master has {id}"))
    }

    /// Fills `source` with a large file of so many MiB and with some of everything else, submits it at a speed
    /// at which it takes some seconds, and waits until a part of it is there.
    #[track_caller]
    pub(crate) fn submit_and_await_partial(
        &self,
        source: &Path,
        destination: &Path,
        (mib, bwlimit): (usize, &str),
        options: Value,
    ) -> String {
        tree::write_file(source.join("large"), tree::random_bytes(mib << 20, 1));
        tree::write_many_files(source, 400, 3_000);
        tree::write_unusual_tree(&source.join("odd"));
        let more = json!({"chunk_size_mb": 4, "bwlimit": bwlimit, "options": options});
        let id = self.submit_with(source, destination, more);
        self.await_progress(&id, "has some ranges", |s| s.transferred_bytes > 8 << 20);
        id
    }

    /// Removes the bandwidth limit of a sync unless it has ended.
    pub(crate) fn lift_bandwidth_limit(&self, id: &str) {
        let set = self.ctl(["sync", "set", id, "--bwlimit", "none"]);
        await_true("the limit is lifted", || {
            let ended = || self.masters().find_map(|m| m.progress(id));
            set.run().code == Some(0) || ended().is_some_and(|sync| sync.state.is_final())
        });
    }

    /// Checks that no process has panicked.
    #[track_caller]
    pub(crate) fn assert_no_panic(&self) {
        let agents = self.agents.values().map(|agent| &agent.process);
        for process in agents.chain(self.masters().map(|master| &master.process)) {
            let log = process.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    /// Waits until a sync has ended.
    #[track_caller]
    pub(crate) fn await_end(&self, id: &str) -> SyncProgress {
        self.await_progress(id, "ends", |sync| sync.state.is_final())
    }

    /// Waits until the progress of a sync (which may end before) is as wanted.
    #[track_caller]
    pub(crate) fn await_progress(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&SyncProgress) -> bool,
    ) -> SyncProgress {
        let mut last = None;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            await_some(&format!("sync {id} {what}"), || {
                // A master may be unavailable for a moment.
                let seen = self.masters().find_map(|m| m.progress(id))?;
                last = Some(seen.clone());
                wanted(&seen).then_some(seen)
            })
        }));
        found.unwrap_or_else(|_| panic!("sync {id} never {what}; last seen: {last:#?}"))
    }

    /// Submits, and waits until it has ended.
    #[track_caller]
    pub(crate) fn run_sync(&self, source: &Path, destination: &Path) -> SyncProgress {
        let id = self.submit(source, destination);
        self.await_end(&id)
    }

    /// … with options, in ranges and batches of at most 1 MiB.
    #[track_caller]
    pub(crate) fn run_sync_with(
        &self,
        source: &Path,
        destination: &Path,
        options: Value,
    ) -> SyncProgress {
        let more = json!({"options": options, "chunk_size_mb": 1});
        let id = self.submit_with(source, destination, more);
        self.await_end(&id)
    }
}

/// A path as YAML (and JSON) takes it.
fn quoted(path: &Path) -> String {
    json!(path.to_str().expect("a plain path")).to_string()
}

impl Master {
    fn spawn(dir: &Path) -> Process {
        let mut command = clean_command(&ctl_binary(User::Same, dir), dir, User::Same);
        command.args(["master", "--config"]).arg(dir.join("master.yml"));
        Clock::apply_to(&mut command, dir, "master");
        Process::start("master", command, &dir.join("master.log"))
    }

    fn await_ready(&mut self) {
        let address = self.address();
        await_true("the master is ready", || {
            if let Some(status) = self.process.try_exit_status() {
                panic!("the master ended with {status}:\n{}", self.process.log());
            }
            http::try_request(&address, "GET", "/readyz", &[], None)
                .is_some_and(|answer| answer.status == 200)
        });
    }

    /// Its own readiness and the leader; `None` without a reply.
    pub(crate) fn readiness(&self) -> Option<Value> {
        let path = "/readyz?verbose";
        Some(http::try_request(&self.address(), "GET", path, &[], None)?.json())
    }

    /// Waits until it is `ready` (it leads) or `following`.
    #[track_caller]
    pub(crate) fn await_status(&self, status: &str) -> Value {
        await_some(&format!("{} is {status}", self.url()), || {
            self.readiness().filter(|reported| reported["status"] == status)
        })
    }

    pub(crate) fn kill_9(&mut self) {
        self.process.kill_9();
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.process.terminate()
    }

    /// Starts it again, on the same port and state.
    pub(crate) fn restart(&mut self) {
        self.process.kill_9();
        self.process = Self::spawn(&self.dir);
        self.await_ready();
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        http::try_request(&self.address(), "GET", path, &[], None).expect("the master answers")
    }

    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Response {
        http::try_request(&self.address(), "DELETE", path, &[], None).expect("the master answers")
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        let body = body.to_string();
        http::try_request(&self.address(), "POST", path, &[], Some(body.as_bytes()))
            .expect("the master answers")
    }

    /// The progress of a sync; `None` while the master has no answer.
    pub(crate) fn progress(&self, id: &str) -> Option<SyncProgress> {
        let path = format!("/sync/{id}");
        let answer = http::try_request(&self.address(), "GET", &path, &[], None)?;
        match answer.status {
            200 => Some(serde_json::from_slice(&answer.body).expect("a SyncProgress")),
            307 | 503 => None,
            _ => panic!("GET {path}: {} {}", answer.status, answer.text()),
        }
    }

    /// The names of the active workers.
    pub(crate) fn active_workers(&self) -> Vec<String> {
        let list = self.get("/workers").json();
        let all = list["active"].as_array().expect("a list").iter();
        all.map(|w| w["worker_id"].as_str().expect("an id").to_owned()).collect()
    }
}

impl Agent {
    fn spawn(name: &str, dir: &Path, user: User, host: Option<&Host>) -> Process {
        let program = ctl_binary(user, dir);
        let mut command: Command = match host {
            None => clean_command(&program, dir, user),
            Some(host) => host.command(&program),
        };
        command.args(["agent", "--worker-id", name, "--config"]);
        command.arg(dir.join(format!("{name}.yml")));
        Clock::apply_to(&mut command, dir, name);
        Process::start(&format!("agent {name}"), command, &dir.join(format!("{name}.log")))
    }

    pub(crate) fn kill_9(&mut self) {
        self.process.kill_9();
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.process.terminate()
    }

    /// Starts it again, without waiting for it to be listed.
    pub(crate) fn restart(&mut self) {
        self.process.kill_9();
        self.process = Self::spawn(&self.name, &self.dir, self.user, self.host.as_deref());
    }

    /// Changes its configuration file, which it reads when it is started again.
    pub(crate) fn configure(&self, change: impl FnOnce(&str) -> String) {
        let path = self.dir.join(format!("{}.yml", self.name));
        let text = std::fs::read_to_string(&path).expect("its file");
        std::fs::write(path, change(&text)).expect("write the configuration");
    }

    /// … as after a restart of its host: under another boot of the kernel.
    pub(crate) fn restart_with_boot_id(&mut self, boot: &str) {
        self.process.kill_9();
        self.host = Some(Host::start_with_boot_id(&self.dir, &self.name, boot));
        self.restart();
    }
}

/// Checks that a sync has copied all of `source` and counted each entry once.
#[track_caller]
pub(crate) fn assert_complete(sync: &SyncProgress, source: Census) {
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Completed, Some(SyncOutcome::Full)),
        "{sync:#?}"
    );
    assert!(sync.scan_done && sync.errors.is_empty() && sync.error_counts.is_empty(), "{sync:#?}");
    let counted =
        Census { files: sync.files_total, dirs: sync.dirs_total, bytes: sync.total_bytes };
    assert_eq!(counted, source, "the totals are those of the source: {sync:#?}");
    assert_eq!(sync.files_done + sync.files_skipped, sync.files_total, "{sync:#?}");
    assert_eq!((sync.failure_count(), sync.unverified), (0, 0), "{sync:#?}");
    assert_eq!(sync.dirs_done, sync.dirs_total, "{sync:#?}");
    assert_eq!(sync.transferred_bytes + sync.bytes_skipped, sync.total_bytes, "{sync:#?}");
}

/// Checks that a sync has found everything in place.
#[track_caller]
pub(crate) fn assert_nothing_to_do(sync: &SyncProgress, source: Census) {
    assert_complete(sync, source);
    assert_eq!((sync.files_done, sync.transferred_bytes), (0, 0), "{sync:#?}");
}
