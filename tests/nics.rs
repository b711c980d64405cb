//! Hosts with several NICs, made of network namespaces (`scripts/netlab.sh`): every NIC is used, one that
//! fails fails no task, and ends that do not reach each other are avoided. These tests need root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::process::{Process, User, clean_command, is_root, program};
use support::tree::{assert_same, dir, file, noise, strict};
use support::{await_some, await_that};

const MIB: usize = 1 << 20;

/// A lab of two hosts with a master beside them; worker `a` on host 1 holds `src`, `b` on host 2 `dst`.
struct Lab {
    // Dropped in this order.
    processes: Vec<Process>,
    name: String,
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.processes.clear();
        let _ = netlab().args(["down", "--name", &self.name]).status();
    }
}

fn netlab() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/netlab.sh"))
}

/// Takes down the labs of tests that were killed and so left them.
fn remove_orphans() {
    let Ok(spaces) = std::fs::read_dir("/run/netns") else { return };
    let is_running = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    let orphans: BTreeSet<String> = spaces
        .filter_map(|space| {
            let space = space.ok()?.file_name().into_string().ok()?;
            let (lab, _) = space.rsplit_once('-')?;
            let (pid, _) = lab.strip_prefix('t')?.split_once('-')?;
            (!is_running(pid.parse().ok()?)).then(|| lab.to_owned())
        })
        .collect();
    for lab in orphans {
        let _ = netlab().args(["down", "--name", &lab]).output();
    }
}

impl Lab {
    /// Two hosts with NICs of these speeds. Nothing runs yet.
    fn new(nics: &str) -> Lab {
        static LABS: AtomicUsize = AtomicUsize::new(0);
        assert!(
            is_root(),
            "tests with network namespaces need root: run them as root, or leave them out \
                            (`cargo nextest run -E 'not binary(nics)'`)"
        );
        remove_orphans();
        let name = format!("t{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("longhaul-").tempdir().expect("a directory");
        let lab = Lab { processes: Vec::new(), name, dir };
        lab.netlab(&["up"], &["--hosts", "2", "--nics", nics]);
        lab
    }

    /// `netlab.sh COMMAND --name LAB REST…`; its output.
    #[track_caller]
    fn netlab(&self, command: &[&str], rest: &[&str]) -> String {
        let ran = netlab().args(command).args(["--name", &self.name]).args(rest).output().unwrap();
        assert!(
            ran.status.success(),
            "{command:?} {rest:?}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
        String::from_utf8(ran.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// A program on a host.
    fn inside(&self, host: &str, args: &[&str]) -> Command {
        let mut command = clean_command(Path::new("ip"), self.dir.path(), User::Same);
        command.args(["netns", "exec", &format!("{}-{host}", self.name)]);
        command.arg(program(User::Same, self.dir.path())).args(args);
        command.env("CTL_MASTER_URL", "http://10.77.0.254:8888").stdin(Stdio::null());
        command
    }

    fn start(&mut self, what: &str, host: &str, args: &[&str]) {
        let process =
            Process::start(what, self.inside(host, args), &self.path(&format!("{what}.log")));
        self.processes.push(process);
    }

    /// Hosts 1 and 2 do not reach each other over their first NIC, and nothing tells them: frames go to an
    /// address that nobody has. `false`: they do again.
    fn lose_each_other(&self, lost: bool) {
        for (host, peer) in [("h1", 2), ("h2", 1)] {
            let space = format!("{}-{host}", self.name);
            let address = format!("10.77.1.{peer}");
            let mut command = Command::new("ip");
            command.args(["-n", &space, "neigh"]);
            if lost {
                command.args([
                    "replace",
                    &address,
                    "lladdr",
                    "02:00:00:00:00:99",
                    "nud",
                    "permanent",
                ]);
            } else {
                command.args(["del", &address]);
            }
            assert!(command.args(["dev", "nic1"]).status().unwrap().success(), "{space}");
        }
    }

    /// Starts the worker `beside`, which holds the destination too, beside the master.
    fn serve_beside(&mut self) {
        let config = self.path("agents.yml");
        let config = config.to_str().unwrap();
        self.start("beside", "mgmt", &["agent", "--worker-id", "beside", "--config", config]);
    }

    /// Starts the master and both agents, with `nics` endpoints each.
    fn serve(&mut self, nics: usize) {
        self.serve_at(nics, |nic, host| format!("10.77.{nic}.{host}"));
    }

    /// … at other addresses, by the number of the NIC and of the host.
    fn serve_at(&mut self, nics: usize, address: impl Fn(usize, usize) -> String) {
        let (src, dst) = (dir(self.path("src")), dir(self.path("dst")));
        let master = self.path("master.yml");
        let text = format!(
            "listen: 10.77.0.254:8888\ndata_dir: {}\nheartbeat_interval: 300ms\n\
             worker_heartbeat_timeout: 3s\nlease: 5s\n",
            dir(self.path("state")).display()
        );
        std::fs::write(&master, text).unwrap();
        let worker = |name: &str, host: usize, storage: &Path| {
            let endpoints: Vec<String> = (1..=nics)
                .map(|n| format!("{{iface: nic{n}, address: \"{}\"}}", address(n, host)))
                .collect();
            format!(
                "  - worker_id: {name}\n    storage_paths: [{}]\n    network:\n      \
                 data_plane_endpoints: [{}]\n",
                storage.display(),
                endpoints.join(", ")
            )
        };
        let agents = self.path("agents.yml");
        let text = format!(
            "master_url: http://10.77.0.254:8888\nheartbeat_interval: 300ms\nslots: 2\ndata_dir: {}\nworkers:\n{}{}{}",
            dir(self.path("state-of-agents")).display(),
            worker("a", 1, &src),
            worker("b", 2, &dst),
            // On the control net, for those who want another one.
            worker("beside", 254, &dst)
                .replace("iface: nic1, ", "")
                .replace(&address(1, 254), "10.77.0.254"),
        );
        std::fs::write(&agents, text).unwrap();
        self.start("master", "mgmt", &["master", "--config", master.to_str().unwrap()]);
        for (name, host) in [("a", "h1"), ("b", "h2")] {
            let config = agents.to_str().unwrap();
            self.start(name, host, &["agent", "--worker-id", name, "--config", config]);
        }
        await_that("both agents are known", || {
            let list = self.ctl(&["workers", "list", "--quiet"]);
            list.is_some_and(|list| list.split_whitespace().count() == 2)
        });
    }

    /// What `ctl ARGS…` prints, where it goes well.
    fn ctl(&self, args: &[&str]) -> Option<String> {
        let ran = self.inside("mgmt", args).output().unwrap();
        ran.status.success().then(|| String::from_utf8(ran.stdout).unwrap())
    }

    fn submit(&self) -> String {
        let (src, dst) = (self.path("src"), self.path("dst"));
        let (src, dst) = (src.to_str().unwrap(), dst.to_str().unwrap());
        let ran = self.ctl(&["sync", "submit", src, dst, "--id", "copy", "--quiet"]);
        ran.expect("a submission").trim().to_owned()
    }

    fn progress(&self, id: &str) -> Option<SyncProgress> {
        let text = self.ctl(&["sync", "status", id, "-o", "json"])?;
        let value: Value = serde_json::from_str(&text).unwrap();
        // One sync is an object, several are a list.
        let one = value.as_array().map_or(&value, |all| &all[0]).clone();
        Some(serde_json::from_value(one).unwrap())
    }

    /// Waits for the end of a sync, and holds it to be complete with no task failed.
    #[track_caller]
    fn complete(&self, id: &str) -> SyncProgress {
        let sync = await_some("the sync ends", || self.progress(id).filter(|s| s.state.is_final()));
        assert_eq!(sync.outcome, Some(SyncOutcome::Full), "{sync:#?}\n{}", self.logs());
        assert_eq!(sync.retries, 0, "a task failed: {sync:#?}\n{}", self.logs());
        assert_same(&self.path("src"), &self.path("dst"), strict());
        sync
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log).collect()
    }

    /// What a NIC of host 1 has sent, in bytes.
    fn sent(&self, nic: usize) -> u64 {
        let counts = self.netlab(&["bytes"], &["1", &nic.to_string()]);
        counts.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// How long a sync worked.
fn took(sync: &SyncProgress) -> f64 {
    let (start, end) = (sync.started_at.unwrap(), sync.ended_at.unwrap());
    end.duration_since(start).as_secs_f64()
}

#[test]
fn one_file_goes_over_both_nics_in_proportion_to_their_speeds() {
    let mut lab = Lab::new("100m,200m");
    lab.serve(2);
    file(lab.path("src/large"), noise(192 * MIB, 1));
    let id = lab.submit();
    let sent = || (lab.sent(1) as f64, lab.sent(2) as f64);
    // At the same time, not one after the other.
    let (slow, fast) = await_some("half of it is sent", || {
        Some(sent()).filter(|(slow, fast)| slow + fast > 96.0 * MIB as f64)
    });
    assert!((1.2..3.5).contains(&(fast / slow)), "{slow} and {fast} bytes\n{}", lab.logs());
    lab.complete(&id);
    let (slow, fast) = sent();
    assert!((1.6..2.5).contains(&(fast / slow)), "{slow} and {fast} bytes\n{}", lab.logs());
    // What was counted is told.
    let seen = await_some("the agent has told what it sent", || {
        let shown = lab.ctl(&["workers", "show", "a", "-o", "json"])?;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let nics: Vec<u64> =
            shown["nics"].as_array()?.iter().map(|nic| nic["sent"].as_u64().unwrap()).collect();
        (nics.iter().sum::<u64>() >= 192 * MIB as u64).then_some(nics)
    });
    assert!(seen[1] > seen[0] && seen[0] > 10 * MIB as u64, "{seen:?}");
    let table = lab.ctl(&["workers", "show", "a"]).unwrap();
    assert!(table.contains("10.77.1.1:8889") && table.contains("usable"), "{table}");
}

#[test]
fn link_local_addresses_take_their_scope_from_the_interface() {
    for nics in [1, 2] {
        let mut lab = Lab::new("200m,200m");
        // The same addresses on both NICs: without a scope they are none.
        let address = |_: usize, host: usize| format!("fe80::77:{host}");
        for (host, nic) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let (space, nic) = (format!("{}-h{host}", lab.name), format!("nic{nic}"));
            let address = format!("{}/64", address(0, host));
            let add = ["-n", &space, "addr", "add", &address, "dev", &nic, "nodad"];
            assert!(Command::new("ip").args(add).status().unwrap().success(), "{space} {nic}");
        }
        file(lab.path("src/large"), noise(96 * MIB, 1));
        let port = |nic: usize| if nic == 1 { 8889 } else { 8890 };
        lab.serve_at(nics, |nic, host| format!("[{}]:{}", address(nic, host), port(nic)));
        lab.complete(&lab.submit());
        for nic in 1..=nics {
            assert!(lab.sent(nic) > 2 * MIB as u64, "NIC {nic}: {}\n{}", lab.sent(nic), lab.logs());
        }
    }
}

#[test]
fn a_nic_that_is_away_for_a_while_fails_no_task_and_is_used_again() {
    let mut lab = Lab::new("100m,100m");
    lab.serve(2);
    file(lab.path("src/large"), noise(160 * MIB, 2));
    let id = lab.submit();
    await_that("both are in use", || lab.sent(1).min(lab.sent(2)) > 4 * MIB as u64);
    lab.netlab(&["link"], &["1", "2", "down"]);
    let down = Instant::now();
    // The other one goes on.
    let mut longest = Duration::ZERO;
    let (mut last, mut since) = (lab.sent(1), Instant::now());
    while down.elapsed() < Duration::from_secs(3) {
        let sent = lab.sent(1);
        if sent > last + 100_000 {
            longest = longest.max(since.elapsed());
            (last, since) = (sent, Instant::now());
        }
    }
    longest = longest.max(since.elapsed());
    assert!(longest < Duration::from_secs(2), "{longest:?}\n{}", lab.logs());
    lab.netlab(&["link"], &["1", "2", "up"]);
    let before = lab.sent(2);
    await_that("it is used again", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent(2) > before + 4 * MIB as u64
    });
    lab.complete(&id);
}

#[test]
fn ends_that_do_not_reach_each_other_are_avoided() {
    let mut lab = Lab::new("200m,200m");
    // At the other side: ours looks well.
    lab.netlab(&["link"], &["2", "2", "down"]);
    lab.serve(2);
    file(lab.path("src/large"), noise(48 * MIB, 3));
    let sync = lab.complete(&lab.submit());
    assert!(lab.sent(2) < MIB as u64, "{} bytes", lab.sent(2));
    // Two seconds at the speed of the other NIC; a connection that gets no answer is waited for far longer.
    assert!(took(&sync) < 12.0, "{} s\n{}", took(&sync), lab.logs());
}

#[test]
fn a_nic_that_is_down_when_its_agent_starts_is_used_once_it_is_up() {
    let mut lab = Lab::new("100m,100m");
    lab.netlab(&["link"], &["1", "2", "down"]);
    lab.serve(2);
    file(lab.path("src/large"), noise(96 * MIB, 6));
    let id = lab.submit();
    await_that("the other is in use", || lab.sent(1) > 8 * MIB as u64);
    assert!(lab.sent(2) < MIB as u64, "{} bytes", lab.sent(2));
    lab.netlab(&["link"], &["1", "2", "up"]);
    await_that("both are in use", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent(2) > 4 * MIB as u64
    });
    lab.complete(&id);
}

#[test]
fn an_address_that_its_host_gets_after_the_agent_was_started_is_listened_on_then() {
    let mut lab = Lab::new("100m,100m");
    let address = |lab: &Lab, action: &str| {
        let (space, own) = (format!("{}-h2", lab.name), "10.77.2.2/24");
        let args = ["-n", &space, "addr", action, own, "dev", "nic2"];
        assert!(Command::new("ip").args(args).status().unwrap().success(), "{args:?}");
    };
    address(&lab, "del");
    lab.serve(2);
    let shown = || lab.ctl(&["workers", "show", "b"]).unwrap();
    let missing = |text: &str| {
        text.lines().any(|line| line.starts_with("Unavailable:") && line.contains("10.77.2.2:8889"))
    };
    assert!(missing(&shown()), "{}", shown());
    // A worker with a task in hand sends to the endpoints that were known when it was given out.
    (0..8).for_each(|i| drop(file(lab.path(&format!("src/large{i}")), noise(32 * MIB, i))));
    let id = lab.submit();
    await_that("the other is in use", || lab.sent(1) > 8 * MIB as u64);
    assert!(lab.sent(2) < MIB as u64, "{} bytes", lab.sent(2));
    address(&lab, "add");
    await_that("both are in use", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent(2) > 4 * MIB as u64
    });
    assert!(!missing(&shown()), "{}", shown());
    lab.complete(&id);
    let told = lab.logs().lines().filter(|line| line.contains("is unavailable")).count();
    assert_eq!(told, 1, "{}", lab.logs());
}

#[test]
fn agents_that_lose_each_other_for_a_while_go_on_where_they_were() {
    let mut lab = Lab::new("100m");
    lab.serve(1);
    file(lab.path("src/large"), noise(48 * MIB, 4));
    let id = lab.submit();
    await_that("it is in use", || lab.sent(1) > 8 * MIB as u64);
    lab.lose_each_other(true);
    // Longer than anything is on its way.
    let (mut last, mut since) = (lab.sent(1), Instant::now());
    await_that("nothing arrives any more", || {
        let now = lab.progress(&id).unwrap().sent_bytes;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(4)
    });
    lab.lose_each_other(false);
    // Without a task that failed.
    lab.complete(&id);
}

#[test]
fn a_peer_whose_host_is_gone_without_a_word_is_given_up_and_its_work_goes_to_another() {
    let mut lab = Lab::new("100m");
    lab.serve(1);
    file(lab.path("src/large"), noise(48 * MIB, 5));
    let id = lab.submit();
    await_that("it is in use", || lab.sent(1) > 8 * MIB as u64);
    lab.lose_each_other(true);
    lab.processes[2].kill_9();
    lab.serve_beside();
    let sync = await_some("the sync ends", || lab.progress(&id).filter(|s| s.state.is_final()));
    assert_eq!(sync.outcome, Some(SyncOutcome::Full), "{sync:#?}\n{}", lab.logs());
    assert_same(&lab.path("src"), &lab.path("dst"), strict());
}
