//! A cluster in a network namespace of its own, in which the loopback interface has another address as well: a master
//! there is not on loopback. It needs root.

use super::await_true;
use super::process::{
    CommandOutput, Process, RunningCommand, User, clean_command, ctl_binary, is_root,
};
use super::{MAX_WAIT, tree};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The address of the namespace that is not loopback.
pub(crate) const ADDRESS: &str = "10.99.0.1";

/// Another one.
pub(crate) const SECOND_ADDRESS: &str = "10.99.0.2";

/// The URL of a master at this address.
pub(crate) fn url() -> String {
    format!("https://{ADDRESS}:8888")
}

/// Those of both masters, in a configuration.
fn urls() -> String {
    format!("'https://{ADDRESS}:8888', 'https://{SECOND_ADDRESS}:8888'")
}

pub(crate) struct Lab {
    // Dropped in this order: processes before their namespace and their files.
    master: Option<Process>,
    second_master: Option<Process>,
    agents: Vec<(String, Process)>,
    /// Keeps the namespace, and does nothing else.
    namespace: Process,
    dir: tempfile::TempDir,
}

impl Lab {
    /// A namespace in which nothing runs.
    #[track_caller]
    pub(crate) fn new() -> Lab {
        assert!(is_root(), "this test needs root, for a network namespace: run it as root");
        let dir = tempfile::Builder::new().prefix("longhaul-").tempdir().expect("a directory");
        let mut command = clean_command(Path::new("unshare"), dir.path(), User::Same);
        let set_up = format!(
            "ip link set lo up && ip address add {ADDRESS}/32 dev lo && ip address add {SECOND_ADDRESS}/32 dev lo && exec sleep infinity"
        );
        command.args(["--net", "sh", "-c", &set_up]);
        let namespace = Process::start("the namespace", command, &dir.path().join("namespace.log"));
        let program = format!("/proc/{}/comm", namespace.pid());
        await_true("the namespace has its address", || {
            std::fs::read_to_string(&program).is_ok_and(|name| name == "sleep\n")
        });
        Lab { master: None, second_master: None, agents: Vec::new(), namespace, dir }
    }

    /// The process whose network namespace it is.
    pub(crate) fn namespace_pid(&self) -> u32 {
        self.namespace.pid()
    }

    /// A path below the directory of the lab.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("a real path").join(below)
    }

    /// `ctl`, in the namespace.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = clean_command(Path::new("nsenter"), self.dir.path(), User::Same);
        command.arg(format!("--net=/proc/{}/ns/net", self.namespace.pid())).arg("--");
        command.arg(ctl_binary(User::Same, self.dir.path())).args(args);
        command
    }

    /// `ctl ARGS…` with a master and the certificate of its authority, to its end.
    pub(crate) fn ctl(&self, args: &[&str], url: &str, ca: Option<&Path>) -> CommandOutput {
        let mut command = self.command(args);
        command.env("CTL_MASTER_URL", url);
        if let Some(ca) = ca {
            command.env("CTL_CA_FILE", ca);
            command.env("CTL_TOKEN_FILE", self.path("state/admin.token"));
        }
        RunningCommand::start(command, None).finish(MAX_WAIT)
    }

    fn master_command(&self, config: &str, args: &[&str]) -> Command {
        self.master_command_in("state", config, args)
    }

    fn master_command_in(&self, state: &str, config: &str, args: &[&str]) -> Command {
        let file = self.path(&format!("{state}.yml"));
        let state = tree::make_dir(self.path(state));
        let text = format!(
            "data_dir: {}\nheartbeat_interval: 300ms\nworker_heartbeat_timeout: 3s\nlease: 5s\n{config}",
            state.display()
        );
        let file = tree::write_file(file, text);
        let mut command = self.command(&["master", "--config"]);
        command.arg(file).args(args);
        command
    }

    /// A master to its end.
    pub(crate) fn run_master(&self, config: &str, args: &[&str]) -> CommandOutput {
        RunningCommand::start(self.master_command(config, args), None).finish(MAX_WAIT)
    }

    /// Starts a master with its state in `state`, and waits until it listens.
    #[track_caller]
    pub(crate) fn start_master(&mut self, config: &str) {
        let command = self.master_command(config, &[]);
        let log = self.path("master.log");
        let _ = std::fs::remove_file(&log);
        let mut master = Process::start("master", command, &log);
        await_true("the master leads", || {
            if let Some(status) = master.try_exit_status() {
                panic!("the master ended with {status}:\n{}", master.log());
            }
            master.log().contains("leader ready")
        });
        self.master = Some(master);
    }

    /// Kills the master.
    #[track_caller]
    pub(crate) fn kill_master(&mut self) {
        self.master.as_mut().expect("a master").kill_9();
    }

    /// Kills the master, and starts it again.
    #[track_caller]
    pub(crate) fn restart_master(&mut self, config: &str) {
        self.kill_master();
        self.start_master(config);
    }

    /// A second master at [`SECOND_ADDRESS`], with its state in `state-2`, to its end.
    pub(crate) fn run_second_master(&self, config: &str) -> CommandOutput {
        let command = self.master_command_in("state-2", config, &[]);
        RunningCommand::start(command, None).finish(MAX_WAIT)
    }

    /// Starts that master, and waits until it follows.
    #[track_caller]
    pub(crate) fn start_second_master(&mut self, config: &str) {
        let command = self.master_command_in("state-2", config, &[]);
        let master = Process::start("second master", command, &self.path("master-2.log"));
        await_true("the second master follows", || master.log().contains("this one follows"));
        self.second_master = Some(master);
    }

    /// Kills the first master, and waits until the second one leads.
    #[track_caller]
    pub(crate) fn kill_first_master(&mut self) {
        self.kill_master();
        let second = self.second_master.as_ref().expect("a second master");
        await_true("the second master leads", || second.log().contains("leader ready"));
    }

    pub(crate) fn master_log(&self) -> String {
        self.master.as_ref().map_or_else(String::new, Process::log)
    }

    /// `ctl ARGS…` at the address of the master that has TLS, as its administrator, with success.
    #[track_caller]
    pub(crate) fn admin(&self, args: &[&str]) -> CommandOutput {
        self.ctl(args, &url(), Some(&self.path("state/ca.pem"))).assert_exit_code(0)
    }

    /// `ctl ARGS…` there without credentials.
    pub(crate) fn ctl_without_token(&self, args: &[&str], ca: &Path) -> CommandOutput {
        let mut command = self.command(args);
        command.env("CTL_MASTER_URL", url()).env("CTL_CA_FILE", ca);
        RunningCommand::start(command, None).finish(MAX_WAIT)
    }

    /// A file with a new join token.
    #[track_caller]
    pub(crate) fn create_join_token(&self, worker: &str, storage: &Path, more: &[&str]) -> PathBuf {
        let storage = storage.to_str().expect("a path in UTF-8");
        let args = ["token", "create", "--join", "--worker", worker, "--path", storage];
        let token = self.admin(&[&args, more].concat()).stdout_text();
        let id = token.split('.').nth(2).expect("a join token");
        let file = tree::write_file(self.path(&format!("{id}.token")), &token);
        tree::chmod(&file, 0o600);
        file
    }

    /// Starts an agent with one storage path that joins with a token of its own.
    #[track_caller]
    pub(crate) fn join_agent(&mut self, name: &str, storage: &Path) {
        let token = self.create_join_token(name, storage, &[]);
        self.start_agent(name, storage, &format!("join_token_file: {}\n", token.display()));
    }

    /// An agent to its end.
    pub(crate) fn run_agent(&self, name: &str, storage: &Path, config: &str) -> CommandOutput {
        let urls = urls();
        RunningCommand::start(self.agent_command(&urls, name, storage, config), None)
            .finish(MAX_WAIT)
    }

    /// Kills an agent.
    pub(crate) fn kill_agent(&mut self, name: &str) {
        self.agents.retain(|(known, _)| known != name);
    }

    /// Starts an agent with one storage path.
    pub(crate) fn start_agent(&mut self, name: &str, storage: &Path, config: &str) {
        let urls = urls();
        self.start_agent_of(&urls, name, storage, config);
    }

    /// The same, with another master.
    pub(crate) fn start_agent_at(&mut self, url: &str, name: &str, storage: &Path, config: &str) {
        self.start_agent_of(&format!("'{url}'"), name, storage, config);
    }

    fn start_agent_of(&mut self, urls: &str, name: &str, storage: &Path, config: &str) {
        let command = self.agent_command(urls, name, storage, config);
        let log = self.path(&format!("{name}.log"));
        let _ = std::fs::remove_file(&log);
        let process = Process::start(&format!("agent {name}"), command, &log);
        self.agents.push((name.to_owned(), process));
    }

    fn agent_command(&self, urls: &str, name: &str, storage: &Path, config: &str) -> Command {
        let text = format!(
            "master_url: [{urls}]\nheartbeat_interval: 300ms\ndata_dir: {}\n{config}\
             workers:\n  - worker_id: {name}\n    storage_paths: ['{}']\n    network:\n      \
             data_plane_endpoints: [{{address: 127.0.0.1, port: 0}}]\n",
            self.path(&format!("state-{name}")).display(),
            storage.display()
        );
        let file = tree::write_file(self.path(&format!("{name}.yml")), text);
        let mut command = self.command(&["agent", "--config"]);
        command.arg(file);
        command
    }

    /// Waits until the master has these active workers, in this order.
    #[track_caller]
    pub(crate) fn await_workers(&self, names: &[&str]) {
        let all: String = names.iter().map(|name| format!("{name}\n")).collect();
        let args = ["workers", "list", "-q"];
        await_true(&format!("the workers are {names:?}"), || {
            self.admin(&args).stdout_text() == all
        });
    }

    /// Waits until the log of an agent has a text.
    #[track_caller]
    pub(crate) fn await_agent_log(&self, name: &str, text: &str) {
        await_true(&format!("the log of {name} has `{text}`"), || {
            self.agent_log(name).contains(text)
        });
    }

    /// What an agent has logged since its last start.
    pub(crate) fn agent_log(&self, name: &str) -> String {
        let (_, agent) = self.agents.iter().find(|(known, _)| known == name).expect("its agent");
        agent.log()
    }

    /// The certificate of another installation's authority.
    pub(crate) fn make_other_authority(&self) -> PathBuf {
        let other = tree::make_dir(self.path("other"));
        let mut command = self.command(&["master", "--listen"]);
        command.arg(format!("{ADDRESS}:0")).arg("--data-dir").arg(&other);
        let mut master = Process::start("another master", command, &self.path("other.log"));
        await_true("the other master has its authority", || {
            if let Some(status) = master.try_exit_status() {
                panic!("the master ended with {status}:\n{}", master.log());
            }
            master.log().contains("API listening")
        });
        other.join("ca.pem")
    }
}
