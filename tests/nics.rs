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
use support::process::{Process, User, clean_command, ctl_binary, is_root};
use support::tree::{assert_same, exact_comparison, make_dir, random_bytes, write_file};
use support::{await_some, await_true};

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
        let _ = netlab_command().args(["down", "--name", &self.name]).status();
    }
}

fn netlab_command() -> Command {
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
        let _ = netlab_command().args(["down", "--name", &lab]).output();
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

    /// `netlab.sh COMMAND --name LAB INITIAL_REST_VERDICTS…`; its output.
    #[track_caller]
    fn netlab(&self, command: &[&str], rest: &[&str]) -> String {
        let ran = netlab_command()
            .args(command)
            .args(["--name", &self.name])
            .args(rest)
            .output()
            .unwrap();
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
    fn command_inside(&self, host: &str, args: &[&str]) -> Command {
        let mut command = clean_command(Path::new("ip"), self.dir.path(), User::Same);
        command.args(["netns", "exec", &format!("{}-{host}", self.name)]);
        command.arg(ctl_binary(User::Same, self.dir.path())).args(args);
        command.env("CTL_MASTER_URL", "http://10.77.0.254:8888").stdin(Stdio::null());
        command
    }

    fn start(&mut self, what: &str, host: &str, args: &[&str]) {
        let process = Process::start(
            what,
            self.command_inside(host, args),
            &self.path(&format!("{what}.log")),
        );
        self.processes.push(process);
    }

    /// Hosts 1 and 2 do not reach each other over their first NIC, without any error: frames go to an
    /// address that no host has. `false`: they do again.
    fn set_disconnected(&self, lost: bool) {
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
    fn start_second_destination(&mut self) {
        let config = self.path("agents.yml");
        let config = config.to_str().unwrap();
        self.start("beside", "mgmt", &["agent", "--worker-id", "beside", "--config", config]);
    }

    /// Starts the master and both agents, with `nics` endpoints each.
    fn start_services(&mut self, nics: usize) {
        self.start_services_at(nics, |nic, host| format!("10.77.{nic}.{host}"));
    }

    /// … at other addresses, by the number of the NIC and of the host.
    fn start_services_at(&mut self, nics: usize, address: impl Fn(usize, usize) -> String) {
        let (src, dst) = (make_dir(self.path("src")), make_dir(self.path("dst")));
        let master = self.path("master.yml");
        let text = format!(
            "listen: 10.77.0.254:8888\ninsecure: true\ndata_dir: {}\nheartbeat_interval: 300ms\n\
             worker_heartbeat_timeout: 3s\nlease: 5s\n",
            make_dir(self.path("state")).display()
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
            make_dir(self.path("state-of-agents")).display(),
            worker("a", 1, &src),
            worker("b", 2, &dst),
            // On the control net, for tests that start another one.
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
        await_true("both agents are known", || {
            let list = self.ctl(&["workers", "list", "--quiet"]);
            list.is_some_and(|list| list.split_whitespace().count() == 2)
        });
    }

    /// What `ctl ARGS…` prints, where it goes well.
    fn ctl(&self, args: &[&str]) -> Option<String> {
        let ran = self.command_inside("mgmt", args).output().unwrap();
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
    fn await_completed(&self, id: &str) -> SyncProgress {
        let sync = await_some("the sync ends", || self.progress(id).filter(|s| s.state.is_final()));
        assert_eq!(sync.outcome, Some(SyncOutcome::Full), "{sync:#?}\n{}", self.logs());
        assert_eq!(sync.retries, 0, "a task failed: {sync:#?}\n{}", self.logs());
        assert_same(&self.path("src"), &self.path("dst"), exact_comparison());
        sync
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log).collect()
    }

    /// What a NIC of host 1 has sent, in bytes.
    fn sent_bytes(&self, nic: usize) -> u64 {
        let counts = self.netlab(&["bytes"], &["1", &nic.to_string()]);
        counts.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// How long a sync worked.
fn duration_seconds(sync: &SyncProgress) -> f64 {
    let (start, end) = (sync.started_at.unwrap(), sync.ended_at.unwrap());
    end.duration_since(start).as_secs_f64()
}

/// A lab in which one file went over a slow and a fast NIC, with the bytes of the two when half of it was sent and at
/// the end.
fn send_over_both_nics() -> (Lab, [(f64, f64); 2]) {
    let mut lab = Lab::new("100m,200m");
    lab.start_services(2);
    write_file(lab.path("src/large"), random_bytes(192 * MIB, 1));
    let id = lab.submit();
    let sent = || (lab.sent_bytes(1) as f64, lab.sent_bytes(2) as f64);
    let half = await_some("half of it is sent", || {
        Some(sent()).filter(|(slow, fast)| slow + fast > 96.0 * MIB as f64)
    });
    lab.await_completed(&id);
    let all = sent();
    (lab, [half, all])
}

#[test]
fn one_file_goes_over_both_nics_in_proportion_to_their_speeds() {
    // A busy machine may stall one NIC for seconds: its requests then go over the other one, as they should, and that
    // run says nothing on the proportion.
    let is_undisturbed = |(lab, _): &(Lab, _)| !lab.logs().contains("route not used for now");
    let mut runs = (0..4).map(|_| send_over_both_nics());
    let (lab, [half, all]) = runs.find(is_undisturbed).expect("a run in which both NICs are used");
    // At the same time, not one after the other.
    assert!((1.2..3.5).contains(&(half.1 / half.0)), "{half:?} bytes\n{}", lab.logs());
    assert!((1.6..2.5).contains(&(all.1 / all.0)), "{all:?} bytes\n{}", lab.logs());
    // The counts are reported.
    let seen = await_some("the agent has reported what it sent", || {
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
        write_file(lab.path("src/large"), random_bytes(96 * MIB, 1));
        let port = |nic: usize| if nic == 1 { 8889 } else { 8890 };
        lab.start_services_at(nics, |nic, host| format!("[{}]:{}", address(nic, host), port(nic)));
        lab.await_completed(&lab.submit());
        for nic in 1..=nics {
            assert!(
                lab.sent_bytes(nic) > 2 * MIB as u64,
                "NIC {nic}: {}\n{}",
                lab.sent_bytes(nic),
                lab.logs()
            );
        }
    }
}

#[test]
fn a_nic_that_is_down_for_a_while_fails_no_task_and_is_used_again() {
    let mut lab = Lab::new("100m,100m");
    lab.start_services(2);
    write_file(lab.path("src/large"), random_bytes(160 * MIB, 2));
    let id = lab.submit();
    await_true("both are in use", || lab.sent_bytes(1).min(lab.sent_bytes(2)) > 4 * MIB as u64);
    lab.netlab(&["link"], &["1", "2", "down"]);
    let down = Instant::now();
    // The other one goes on.
    let mut longest = Duration::ZERO;
    let (mut last, mut since) = (lab.sent_bytes(1), Instant::now());
    while down.elapsed() < Duration::from_secs(3) {
        let sent = lab.sent_bytes(1);
        if sent > last + 100_000 {
            longest = longest.max(since.elapsed());
            (last, since) = (sent, Instant::now());
        }
    }
    longest = longest.max(since.elapsed());
    assert!(longest < Duration::from_secs(2), "{longest:?}\n{}", lab.logs());
    lab.netlab(&["link"], &["1", "2", "up"]);
    let before = lab.sent_bytes(2);
    await_true("it is used again", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent_bytes(2) > before + 4 * MIB as u64
    });
    lab.await_completed(&id);
}

#[test]
fn unreachable_pairs_of_nics_are_avoided() {
    let mut lab = Lab::new("200m,200m");
    // At the other side: ours looks well.
    lab.netlab(&["link"], &["2", "2", "down"]);
    lab.start_services(2);
    write_file(lab.path("src/large"), random_bytes(48 * MIB, 3));
    let sync = lab.await_completed(&lab.submit());
    assert!(lab.sent_bytes(2) < MIB as u64, "{} bytes", lab.sent_bytes(2));
    // Two seconds at the speed of the other NIC; a connection that gets no answer is waited for far longer.
    assert!(duration_seconds(&sync) < 12.0, "{} s\n{}", duration_seconds(&sync), lab.logs());
}

#[test]
fn a_nic_that_is_down_when_its_agent_starts_is_used_once_it_is_up() {
    let mut lab = Lab::new("100m,100m");
    lab.netlab(&["link"], &["1", "2", "down"]);
    lab.start_services(2);
    write_file(lab.path("src/large"), random_bytes(96 * MIB, 6));
    let id = lab.submit();
    await_true("the other is in use", || lab.sent_bytes(1) > 8 * MIB as u64);
    assert!(lab.sent_bytes(2) < MIB as u64, "{} bytes", lab.sent_bytes(2));
    lab.netlab(&["link"], &["1", "2", "up"]);
    await_true("both are in use", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent_bytes(2) > 4 * MIB as u64
    });
    lab.await_completed(&id);
}

#[test]
fn an_address_added_after_the_start_of_the_agent_is_used() {
    let mut lab = Lab::new("100m,100m");
    let address = |lab: &Lab, action: &str| {
        let (space, own) = (format!("{}-h2", lab.name), "10.77.2.2/24");
        let args = ["-n", &space, "addr", action, own, "dev", "nic2"];
        assert!(Command::new("ip").args(args).status().unwrap().success(), "{args:?}");
    };
    address(&lab, "del");
    lab.start_services(2);
    let shown = || lab.ctl(&["workers", "show", "b"]).unwrap();
    let missing = |text: &str| {
        text.lines().any(|line| line.starts_with("Unavailable:") && line.contains("10.77.2.2:8889"))
    };
    assert!(missing(&shown()), "{}", shown());
    // A worker with a task in hand sends to the endpoints that were known when it was given out.
    (0..8).for_each(|i| {
        drop(write_file(lab.path(&format!("src/large{i}")), random_bytes(32 * MIB, i)))
    });
    let id = lab.submit();
    await_true("the other is in use", || lab.sent_bytes(1) > 8 * MIB as u64);
    assert!(lab.sent_bytes(2) < MIB as u64, "{} bytes", lab.sent_bytes(2));
    address(&lab, "add");
    await_true("both are in use", || {
        assert!(!lab.progress(&id).is_some_and(|s| s.state.is_final()), "{}", lab.logs());
        lab.sent_bytes(2) > 4 * MIB as u64
    });
    assert!(!missing(&shown()), "{}", shown());
    lab.await_completed(&id);
    let warnings = lab.logs().lines().filter(|line| line.contains("is unavailable")).count();
    assert_eq!(warnings, 1, "{}", lab.logs());
}

#[test]
fn agents_resume_after_they_were_disconnected_for_a_while() {
    let mut lab = Lab::new("100m");
    lab.start_services(1);
    write_file(lab.path("src/large"), random_bytes(48 * MIB, 4));
    let id = lab.submit();
    await_true("it is in use", || lab.sent_bytes(1) > 8 * MIB as u64);
    lab.set_disconnected(true);
    // Longer than anything is on its way.
    let (mut last, mut since) = (lab.sent_bytes(1), Instant::now());
    await_true("nothing arrives any more", || {
        let now = lab.progress(&id).unwrap().sent_bytes;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(4)
    });
    lab.set_disconnected(false);
    // Without a task that failed.
    lab.await_completed(&id);
}

#[test]
fn the_tasks_of_a_vanished_host_are_given_to_another_worker() {
    let mut lab = Lab::new("100m");
    lab.start_services(1);
    write_file(lab.path("src/large"), random_bytes(48 * MIB, 5));
    let id = lab.submit();
    await_true("it is in use", || lab.sent_bytes(1) > 8 * MIB as u64);
    lab.set_disconnected(true);
    lab.processes[2].kill_9();
    lab.start_second_destination();
    let sync = await_some("the sync ends", || lab.progress(&id).filter(|s| s.state.is_final()));
    assert_eq!(sync.outcome, Some(SyncOutcome::Full), "{sync:#?}\n{}", lab.logs());
    assert_same(&lab.path("src"), &lab.path("dst"), exact_comparison());
}
