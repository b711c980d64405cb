//! Nothing secret is where others can read it: in the store, in logs, in the environment and the arguments of
//! processes, in core dumps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use support::await_true;
use support::cluster::{Cluster, StoreKind, write_private};
use support::process::{Process, User, clean_command, ctl_binary, is_root};
use support::tree::write_many_files;
use walkdir::WalkDir;

const REDIS_PASSWORD: &str = "tr0ub4dor-and-3-horses";

/// A secret with the texts that would reveal it.
struct Secret {
    name: &'static str,
    texts: Vec<Vec<u8>>,
}

impl Secret {
    fn new(name: &'static str, bytes: &[u8]) -> Secret {
        assert!(bytes.len() >= 16, "{name}");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let texts = [
            bytes.to_vec(),
            hex.clone().into_bytes(),
            hex.to_uppercase().into_bytes(),
            STANDARD_NO_PAD.encode(bytes).into_bytes(),
            URL_SAFE_NO_PAD.encode(bytes).into_bytes(),
        ];
        Secret { name, texts: texts.into() }
    }

    #[track_caller]
    fn assert_not_in(&self, place: &str, content: &[u8]) {
        for text in &self.texts {
            let is_found = content.windows(text.len()).any(|part| part == text);
            assert!(!is_found, "the {} is in {place}", self.name);
        }
    }
}

/// The record of the keys, as the store has it.
fn read_key_record(cluster: &Cluster) -> Value {
    let text = match &cluster.redis {
        Some(redis) => redis.command(&["HGET", "{longhaul:default}:records", "meta"]),
        None => {
            let file = cluster.home().join("state/longhaul.db");
            let store = rusqlite::Connection::open(file).unwrap();
            let select = "SELECT value FROM records WHERE key = 'meta'";
            let meta: Vec<u8> = store.query_row(select, [], |row| row.get(0)).unwrap();
            String::from_utf8(meta).unwrap()
        }
    };
    let json = &text[text.find('{').unwrap()..=text.rfind('}').unwrap()];
    serde_json::from_str(json).unwrap()
}

/// Opens sealed text as the master does: format, id of the key, nonce, ciphertext.
fn unseal(key: &[u8], purpose: &str, sealed: &Value) -> Vec<u8> {
    let sealed = STANDARD.decode(sealed.as_str().unwrap()).unwrap();
    let nonce = Nonce::try_assume_unique_for_key(&sealed[9..21]).unwrap();
    let mut text = sealed[21..].to_vec();
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).unwrap();
    key.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut text).unwrap().to_vec()
}

fn set_log_level(config: &str) -> String {
    let (before, rest) = config.split_once("level: \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    format!("{before}level: \"trace\"{after}")
}

fn assert_no_secret_is_readable(on: StoreKind) {
    let mut cluster = Cluster::start(on);
    let config_file = cluster.home().join("master.yml");
    let mut config = set_log_level(&fs::read_to_string(&config_file).unwrap());
    let password_file = cluster.home().join("redis-password");
    if let Some(redis) = &cluster.redis {
        let rule = format!(">{REDIS_PASSWORD}");
        let made = redis.command(&["ACL", "SETUSER", "longhaul", "on", &rule, "~*", "&*", "+@all"]);
        assert!(made.contains("OK"), "{made}");
        write_private(&password_file, format!("{REDIS_PASSWORD}\n").as_bytes());
        let url = format!("url: \"{}", redis.url());
        assert!(config.contains(&url), "{config}");
        let file = format!("password_file: \"{}\", {url}?user=longhaul", password_file.display());
        config = config.replace(&url, &file);
    }
    fs::write(&config_file, config).unwrap();
    cluster.master.restart();
    let (src, dst) = cluster.add_source_and_destination();
    for agent in cluster.agents.values_mut() {
        agent.configure(set_log_level);
        agent.restart();
    }
    write_many_files(&src, 50, 1000);
    cluster.run_sync(&src, &dst);
    let rotated = cluster.ctl(["admin", "rotate", "ticket-key"]).run().assert_exit_code(0);
    assert!(rotated.stdout_text().contains("Tickets are signed with the key"));

    let own = match on {
        StoreKind::Redis => "shared-secrets.key",
        StoreKind::Embedded => "state/secrets.key",
    };
    let own = [own, "state/names.key"].map(|file| cluster.home().join(file));
    let mut contents = read_processes(&cluster);
    let mut places = ["state", "state-of-agents"].map(|dir| cluster.home().join(dir)).to_vec();
    if let Some(redis) = &cluster.redis {
        assert!(redis.command(&["SAVE"]).contains("OK"));
        places.push(redis.socket().parent().unwrap().to_owned());
    }
    for file in places.iter().flat_map(WalkDir::new).map(Result::unwrap) {
        let path = file.path();
        if file.file_type().is_file() && !own.iter().any(|own| own == path) {
            contents.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }
    if on == StoreKind::Embedded {
        // It has locked its database.
        cluster.master.kill_9();
    }
    let (secrets, key_ids) = collect_secrets(&cluster, &own);
    for (place, content) in &contents {
        secrets.iter().for_each(|secret| secret.assert_not_in(place, content));
        for id in &key_ids {
            // A ticket begins so.
            let ticket = Secret { name: "ticket", texts: vec![format!("{id}.").into_bytes()] };
            ticket.assert_not_in(place, content);
        }
    }
    cluster.assert_no_panic();
}

/// Logs, environments and arguments of all processes.
fn read_processes(cluster: &Cluster) -> Vec<(String, Vec<u8>)> {
    let mut contents = Vec::new();
    let agents = cluster.agents.values().map(|agent| &agent.process);
    for process in agents.chain([&cluster.master.process]) {
        let log = process.log();
        // The program itself has no lines of a finer level than this.
        assert!(log.contains("DEBUG"), "its log is not complete");
        contents.push(("a log".to_owned(), log.into_bytes()));
        for part in ["environ", "cmdline"] {
            let file = format!("/proc/{}/{part}", process.pid());
            contents.push((file.clone(), fs::read(&file).unwrap()));
        }
        assert!(writes_no_core_dump(process));
    }
    contents
}

fn writes_no_core_dump(process: &Process) -> bool {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    core.split_whitespace().skip(4).take(2).all(|number| number == "0")
}

/// It holds the token of its user.
#[test]
fn a_command_writes_no_core_dump() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let program = ctl_binary(User::Same, cluster.home());
    let mut command = clean_command(&program, cluster.home(), User::Same);
    command.args(["sync", "submit", "/nowhere", "/else", "--wait"]);
    command.env("CTL_MASTER_URL", cluster.master.url());
    let mut command = Process::start("a command", command, &cluster.home().join("command.log"));
    await_true("its sync is submitted", || command.log().contains("Submitted sync"));
    assert!(writes_no_core_dump(&command));
    assert!(command.try_exit_status().is_none(), "{}", command.log());
}

/// All secrets of the cluster, and the ids of its ticket keys.
fn collect_secrets(
    cluster: &Cluster,
    [sealing, name_key]: &[PathBuf; 2],
) -> (Vec<Secret>, Vec<String>) {
    let meta = read_key_record(cluster);
    assert_eq!(fs::metadata(sealing).unwrap().permissions().mode() & 0o7777, 0o600);
    let sealing_key = fs::read(sealing).unwrap();
    let keys = meta["ticket_keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2, "{meta}");
    let names = unseal(&sealing_key, "longhaul part name key", &meta["sealed_name_key"]);
    assert_eq!(names, fs::read(name_key).unwrap());
    let mut secrets = vec![
        Secret::new("key that seals", &sealing_key),
        Secret::new("key of part files", &names),
        Secret::new("password of Redis", REDIS_PASSWORD.as_bytes()),
    ];
    let mut key_ids = Vec::new();
    for key in keys {
        let pkcs8 = unseal(&sealing_key, "longhaul ticket key", &key["sealed"]);
        let at = pkcs8.windows(4).position(|part| part == [4, 0x22, 4, 0x20]).unwrap() + 4;
        secrets.push(Secret::new("key that signs tickets", &pkcs8[at..at + 32]));
        key_ids.push(key["id"].as_str().unwrap().to_owned());
    }
    (secrets, key_ids)
}

#[test]
fn no_secret_is_readable_in_redis_logs_or_proc() {
    assert_no_secret_is_readable(StoreKind::Redis);
}

#[test]
fn no_secret_is_readable_in_sqlite_logs_or_proc() {
    assert_no_secret_is_readable(StoreKind::Embedded);
}

/// The kernel gives the files of a process that must not be dumped to root: its user can neither read its memory nor
/// attach a debugger.
#[test]
fn the_memory_of_an_agent_is_closed_to_other_processes_of_its_user() {
    if !is_root() {
        eprintln!("skipped: root is needed to start an agent as another user");
        return;
    }
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = support::tree::make_dir(cluster.data_path("d"));
    let agent = cluster.add_agent_with("other", &[&data], User::Ordinary, "");
    let environ = format!("/proc/{}/environ", agent.process.pid());
    await_true("it is closed", || fs::metadata(&environ).unwrap().uid() == 0);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process.pid())).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(!uid.contains("\t0\t"), "{uid}");
}

/// The first master made the key in its own directory; another one has another key.
#[test]
fn a_master_with_another_sealing_key_is_refused() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let key = cluster.home().join("state/secrets.key");
    // The sealed keys are stored with the first change.
    let (src, dst) = cluster.add_source_and_destination();
    cluster.run_sync(&src, &dst);
    cluster.master.kill_9();
    let own = fs::read(&key).unwrap();
    write_private(&key, &[9; 32]);
    let started = start_refused(&cluster);
    assert!(started.contains("were sealed with the key"), "{started}");
    assert!(started.contains("secrets_file"), "{started}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(start_refused(&cluster).contains("0600"));
    write_private(&key, &own);
    cluster.master.restart();
}

#[test]
fn a_second_master_on_redis_with_another_sealing_key_is_refused_while_the_first_one_leads() {
    let cluster = Cluster::start(StoreKind::Redis);
    let home = support::tree::make_dir(cluster.home().join("second"));
    let config = fs::read_to_string(cluster.home().join("master.yml")).unwrap();
    let state = |dir: &Path| dir.join("state").display().to_string();
    let config = config
        .replace(&cluster.master.address(), "127.0.0.1:0")
        .replace(&state(cluster.home()), &state(&home));
    let config: String = config
        .lines()
        .filter(|l| !l.starts_with("secrets_file"))
        .map(|l| format!("{l}\n"))
        .collect();
    let file = home.join("master.yml");
    fs::write(&file, config).unwrap();
    let refused = support::ctl::ctl(["master", "--config"]).arg(&file).run().assert_exit_code(78);
    let printed = refused.stderr_text();
    assert!(printed.contains("were sealed with the key"), "{printed}");
    assert!(printed.contains("secrets_file"), "{printed}");
}

fn start_refused(cluster: &Cluster) -> String {
    let file = cluster.home().join("master.yml");
    let refused = support::ctl::ctl(["master", "--config"]).arg(&file).run().assert_exit_code(78);
    refused.stderr_text()
}
