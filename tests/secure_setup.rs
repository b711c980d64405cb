//! "Set up a cluster in five commands" of `docs/security.md`, as it is written there, on three hosts: network and mount
//! namespaces. This test needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::process::{
    CommandOutput, Process, RunningCommand, User, clean_command, ctl_binary, is_root,
};
use support::tree::{
    assert_same, chmod, exact_comparison, make_dir, make_symlink, random_bytes, write_file,
};
use support::{MAX_WAIT, await_true};

/// A host with a `/srv`, a `/var/lib` and an `/etc` of its own: root keeps its state and its configuration there.
struct Host {
    // Dropped in this order: processes before their namespaces.
    running: Vec<Process>,
    namespaces: Process,
    dir: PathBuf,
    ctl_dir: PathBuf,
}

impl Host {
    fn start(dir: &Path, ctl_dir: &Path, name: &str) -> Host {
        assert!(is_root(), "this test needs root, for namespaces: run it as root");
        let dir = make_dir(dir.join(name));
        make_dir(dir.join("home"));
        let [srv, var, etc] = ["srv", "var", "etc"].map(|name| make_dir(dir.join(name)));
        let mut command = clean_command(Path::new("unshare"), &dir, User::Same);
        let set_up = format!(
            "mount --bind '{}' /srv && mount --bind '{}' /var/lib && ip link set lo up && mount --bind '{}' /etc && \
             exec sleep infinity",
            srv.display(),
            var.display(),
            etc.display()
        );
        command.args(["--net", "--mount", "sh", "-c", &set_up]);
        let namespaces = Process::start(name, command, &dir.join("namespaces.log"));
        let program = format!("/proc/{}/comm", namespaces.pid());
        await_true("the namespaces are set up", || {
            fs::read_to_string(&program).is_ok_and(|name| name == "sleep\n")
        });
        Host { running: Vec::new(), namespaces, dir, ctl_dir: ctl_dir.to_owned() }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// A line of the shell, in the home of its user.
    fn shell(&self, line: &str) -> Command {
        let mut command = clean_command(Path::new("nsenter"), &self.dir, User::Same);
        let pid = self.namespaces.pid();
        command.arg(format!("--net=/proc/{pid}/ns/net"));
        command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.ctl_dir.display());
        command.args(["--", "env", &format!("PATH={path}"), "sh", "-c"]);
        command.arg(format!("cd '{}' && {line}", self.path("home").display()));
        command
    }

    #[track_caller]
    fn run(&self, line: &str) -> CommandOutput {
        RunningCommand::start(self.shell(line), None).finish(MAX_WAIT).assert_exit_code(0)
    }

    /// Starts a line that ends with `&`, and waits until its log has `text`.
    #[track_caller]
    fn start_line(&mut self, line: &str, text: &str) {
        let line = line.strip_suffix('&').expect("a command in the background");
        let log = self.path(&format!("{}.log", self.running.len()));
        let process = Process::start(line, self.shell(&format!("exec {line}")), &log);
        await_true(&format!("the log of `{line}` has `{text}`"), || process.log().contains(text));
        self.running.push(process);
    }
}

/// Links the hosts: the first one routes between the others.
fn connect([head, a, b]: [&Host; 3]) {
    for (host, name, address) in [(a, "to-a", "10.0.0.2"), (b, "to-b", "10.0.0.3")] {
        let pid = host.namespaces.pid();
        head.run(&format!(
            "ip link add {name} type veth peer name eth0 netns {pid} && ip link set {name} up && \
             ip address add 10.0.0.1/32 dev {name} && ip route add {address}/32 dev {name}"
        ));
        host.run(&format!(
            "ip address add {address}/32 dev eth0 && ip link set eth0 up && ip route add 10.0.0.1/32 dev eth0 && \
             ip route add default via 10.0.0.1 dev eth0"
        ));
    }
    head.run("echo 1 > /proc/sys/net/ipv4/ip_forward");
}

/// The lines of the shell in a section of a document, by block.
fn shell_blocks(document: &str, title: &str) -> Vec<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(file).unwrap();
    let section = text.split(&format!("## {title}\n")).nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    let lines = |block: &str| {
        block.split("```").next().unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    blocks.map(lines).collect()
}

/// The hosts `head`, `a` and `b`, connected, with the directory `/srv/data` on the latter two.
fn start_hosts(home: &Path) -> ([Host; 3], [PathBuf; 2]) {
    let ctl_dir = make_dir(home.join("bin"));
    make_symlink(ctl_dir.join("ctl"), ctl_binary(User::Same, home));
    let hosts = ["head", "a", "b"].map(|name| Host::start(home, &ctl_dir, name));
    let [head, a, b] = &hosts;
    connect([head, a, b]);
    let data = [a, b].map(|host| make_dir(host.path("srv/data")));
    (hosts, data)
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

/// Copies a file that is for one user from the home of a host to that of another one.
fn hand_over(from: &Host, to: &Host, name: &str) {
    let file = to.path("home").join(name);
    fs::copy(from.path("home").join(name), &file).unwrap();
    chmod(file, 0o600);
}

#[test]
fn a_cluster_is_set_up_by_the_five_commands_of_the_document() {
    let dir = tempfile::Builder::new().prefix("longhaul-").tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let ([mut head, mut a, mut b], [source, destination]) = start_hosts(&home);
    write_file(source.join("large"), random_bytes(9 << 20, 1));
    write_file(source.join("dir/small"), "small");

    let blocks = shell_blocks("docs/security.md", "Set up a cluster in five commands");
    let [on_head, on_a, on_b, sync] = &blocks[..] else { panic!("{blocks:?}") };
    let commands =
        [on_head, on_a, on_b].into_iter().flatten().filter(|line| line.starts_with("ctl"));
    assert_eq!(commands.count(), 5);
    let umask = &on_head[0];
    assert_eq!(umask, "umask 077");
    for line in &on_head[1..] {
        match line.ends_with('&') {
            true => head.start_line(line, "leader ready"),
            false => drop(head.run(&format!("{umask} && {line}"))),
        }
    }
    for (host, name, lines) in [(&mut a, "a", on_a), (&mut b, "b", on_b)] {
        fs::copy(shipped("secure-agents.yml"), host.path("home/agents.yml")).unwrap();
        hand_over(&head, host, &format!("{name}.token"));
        lines.iter().for_each(|line| host.start_line(line, "connected to the master"));
    }
    let [sync] = &sync[..] else { panic!("{sync:?}") };
    let ran = head.run(&format!("{sync} -o json"));
    let sync: SyncProgress = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(sync.outcome, Some(SyncOutcome::Full));
    assert_same(&source, &destination, exact_comparison());
    // What the hosts keep of it is for its user only, and no secret is in a log or a command line.
    let secret = fs::read_to_string(head.path("home/a.token")).unwrap();
    let secret = secret.trim().rsplit('.').next().unwrap().to_owned();
    let key = fs::read_to_string(a.path("var/longhaul/identity-a.json")).unwrap();
    let key =
        key.split("PRIVATE KEY-----").nth(1).unwrap().trim_start_matches("\\n")[..40].to_owned();
    for host in [&head, &a, &b] {
        for process in &host.running {
            let command = fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap();
            let texts = [process.log(), String::from_utf8_lossy(&command).into_owned()];
            for text in texts {
                assert!(!text.contains(&secret) && !text.contains(&key), "{text}");
            }
        }
    }
}

#[test]
fn the_shipped_configurations_are_used_as_they_are() {
    let dir = tempfile::Builder::new().prefix("longhaul-").tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let ([mut head, mut a, mut b], [source, destination]) = start_hosts(&home);
    write_file(source.join("large"), random_bytes(9 << 20, 1));
    chown(&destination, Some(1000), Some(1000)).unwrap();
    fs::copy(shipped("secure-master.yml"), head.path("home/secure-master.yml")).unwrap();
    // The commands in the head of the file.
    let text = fs::read_to_string(shipped("secure-master.yml")).unwrap();
    let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    let [make_key, master] = commands[..] else { panic!("{commands:?}") };
    head.run(make_key);
    head.start_line(&format!("{master} &"), "leader ready");
    for (host, name) in [(&mut a, "a"), (&mut b, "b")] {
        fs::copy(shipped("secure-agents.yml"), host.path("home/agents.yml")).unwrap();
        let token = format!("{name}.token");
        head.run(&format!(
            "umask 077 && ctl token create --join --worker {name} --path /srv/data > {token}"
        ));
        hand_over(&head, host, &token);
        let agent =
            format!("ctl agent --config agents.yml --worker-id {name} --join-token-file {token} &");
        host.start_line(&agent, "connected to the master");
    }
    // An operator on another host uses the name of the master, and acts as a user.
    head.run(
        "umask 077 && ctl token create --role operator --scope /srv/data /srv/data --run-as 1000 > user.token",
    );
    hand_over(&head, &b, "user.token");
    fs::copy(head.path("var/longhaul/ca.pem"), b.path("home/ca.pem")).unwrap();
    write_file(b.path("etc/hosts"), "10.0.0.1 longhaul.example.org\n");
    let operator = |line: &str| {
        let set_up = "CTL_MASTER_URL=https://longhaul.example.org:8888 CTL_CA_FILE=ca.pem CTL_TOKEN_FILE=user.token";
        RunningCommand::start(b.shell(&format!("{set_up} {line}")), None).finish(MAX_WAIT)
    };
    let ran =
        operator("ctl sync submit a:/srv/data b:/srv/data --wait -o json").assert_exit_code(0);
    let sync: SyncProgress = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((sync.outcome, sync.files_failed), (Some(SyncOutcome::Full), 0));
    assert_eq!(fs::metadata(destination.join("large")).unwrap().uid(), 1000);
    let audit = head.run("ctl audit list -o json").stdout_text();
    assert!(audit.contains("\"sync.submit\"") && audit.contains("\"site-a\""), "{audit}");
    // Programs with another implementation of TLS accept the certificate as well.
    let health = b.run("curl -sS --cacert ca.pem https://longhaul.example.org:8888/healthz");
    assert!(health.stdout_text().contains("ok"), "{}", health.stdout_text());
    // Other names, endpoints in other networks and users whom the agents refuse.
    let other = head.run("curl -sS -H 'Host: other.example' http://127.0.0.1:8888/sync");
    assert!(other.stdout_text().contains("foreign_host"), "{}", other.stdout_text());
    let beat = r#"{"worker_id":"c","status":"IDLE","storage_paths":["/srv/c"],"data_plane_endpoints":["10.0.1.2"]}"#;
    let beat = head.run(&format!("curl -sS http://127.0.0.1:8888/workers/heartbeat -d '{beat}'"));
    assert!(beat.stdout_text().contains("allowed_networks"), "{}", beat.stdout_text());
    head.run(
        "umask 077 && ctl token create --role operator --scope /srv/data /srv/data --run-as 999 > user.token",
    );
    hand_over(&head, &b, "user.token");
    let refused = operator("ctl sync submit a:/srv/data b:/srv/data --wait");
    assert!(refused.stderr_text().contains("uid 999 is below 1000"), "{}", refused.stderr_text());
}
