//! Whole files in, messages and values out.

mod hostile;
mod memory;

use super::*;
use std::path::PathBuf;
use std::time::Duration;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Writes `text` to a file and hands its path to `then`.
fn with_file<T>(text: impl AsRef<[u8]>, then: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.yml");
    std::fs::write(&path, text).unwrap();
    then(&path)
}

fn master(text: impl AsRef<[u8]>) -> Result<Loaded<MasterConfig>, ConfigErrors> {
    with_file(text, |path| load_master(Some(path), &Env::empty()))
}

fn agent(text: impl AsRef<[u8]>, id: Option<&str>) -> Result<Loaded<AgentConfig>, ConfigErrors> {
    with_file(text, |path| load_agent(path, id, &Env::empty()))
}

/// The problems as lines that start at the position: `3:9: error: …`.
fn format_problems(problems: &[ConfigProblem]) -> Vec<String> {
    let short = |p: &ConfigProblem| {
        let name = Path::new(&p.origin).file_name().unwrap().to_string_lossy().into_owned();
        ConfigProblem { origin: name, ..p.clone() }
            .to_string()
            .trim_start_matches("f.yml:")
            .trim()
            .to_owned()
    };
    problems.iter().map(short).collect()
}

fn assert_lines(text: &str, found: &[ConfigProblem], wanted: &[&str]) {
    assert_eq!(format_problems(found), wanted, "for\n{text}");
}

fn repo_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn every_shipped_config_loads_without_warnings() {
    let mut files = vec![repo_file("example_master.yml"), repo_file("example_agent.yml")];
    files.extend(std::fs::read_dir(repo_file("configs")).unwrap().map(|e| e.unwrap().path()));
    assert!(files.len() >= 6);
    for file in files {
        let report = check_file(&file, None, &Env::empty());
        assert_eq!(format_problems(&report.problems), Vec::<String>::new(), "{}", file.display());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let kind = if name.contains("master") { FileKind::Master } else { FileKind::Agents };
        assert_eq!(report.kind, Some(kind), "{name}");
        for id in &report.worker_ids {
            load_agent(&file, Some(id), &Env::empty()).unwrap();
        }
        if kind == FileKind::Master {
            load_master(Some(&file), &Env::empty()).unwrap();
        }
    }
}

/// The comments promise these defaults.
#[test]
fn commented_defaults_match_the_code() {
    for (name, block_starts) in [
        (
            "example_master.yml",
            &[
                "listen",
                "scheduler",
                "lease",
                "heartbeat_interval",
                "poll_wait_max",
                "retention",
                "limits",
                "bwlimit",
                "defaults",
                "log",
            ][..],
        ),
        (
            "example_agent.yml",
            &[
                "heartbeat_interval",
                "drain_timeout",
                "bwlimit",
                "buffer_memory",
                "direct_io",
                "log",
            ][..],
        ),
    ] {
        let text = std::fs::read_to_string(repo_file(name)).unwrap();
        let mut uncommented = String::new();
        let mut inside = false;
        let mut seen = Vec::new();
        for line in text.lines() {
            let bare = line.strip_prefix("# ").unwrap_or("");
            let key = bare.split_once(':').map_or("", |(key, _)| key);
            if block_starts.contains(&key) {
                inside = true;
                seen.push(key);
            } else if !bare.starts_with("  ") {
                inside = false;
            }
            uncommented.push_str(if inside { bare } else { line });
            uncommented.push('\n');
        }
        assert_eq!(seen, block_starts, "{name}");
        if name.contains("master") {
            let plain = load_master(Some(&repo_file(name)), &Env::empty()).unwrap();
            assert_eq!(master(&uncommented).unwrap(), plain);
            let mut without_file = load_master(None, &Env::empty()).unwrap().config;
            without_file.store = plain.config.store.clone();
            assert_eq!(plain.config, without_file);
        } else {
            let plain = load_agent(&repo_file(name), Some("worker-b"), &Env::empty()).unwrap();
            assert_eq!(agent(&uncommented, Some("worker-b")).unwrap(), plain);
        }
    }
}

#[test]
fn a_master_without_keys_serves_this_host_from_an_embedded_store() {
    let env = Env { state_dir: "/state".into(), ..Env::empty() };
    for text in ["{}", "# all defaults\n", "---\n", "\u{feff}{}"] {
        let loaded = with_file(text, |path| load_master(Some(path), &env)).unwrap();
        assert_eq!(loaded, load_master(None, &env).unwrap(), "{text:?}");
        assert_eq!(loaded.config.store, StoreConfig::Embedded { dir: "/state".into() });
        assert_eq!(loaded.config.listen, ([127, 0, 0, 1], 8888).into());
        assert_eq!(loaded.config.defaults.chunk_size_mb, 64);
    }
    let own = master("data_dir: /var/x\n").unwrap().config;
    assert_eq!(own.store, StoreConfig::Embedded { dir: "/var/x".into() });
}

#[test]
fn a_master_file_of_the_predecessor_loads() {
    let text = "scheduler: round_robin\nworker_heartbeat_timeout: 45.5\nnetwork:\n  control_plane_iface: eth0\n\
                redis:\n  host: db\n  port: 6380\n  db: 2\n  expiry_days: 7\n";
    let loaded = master(text).unwrap();
    assert_eq!(loaded.config.worker_heartbeat_timeout, Duration::from_millis(45_500));
    assert_eq!(loaded.config.retention, secs(7 * 86_400));
    let StoreConfig::Redis { url, namespace, allow_volatile, .. } = loaded.config.store else {
        panic!()
    };
    assert_eq!(
        (url.expose(), namespace.as_str(), allow_volatile),
        ("redis://db:6380/2", "default", false)
    );
    assert_lines(
        text,
        &loaded.warnings,
        &[
            "3:1: warning: `network` is outdated — it has no effect; `listen` says where the API is served",
            "9:3: warning: `expiry_days` in redis is outdated — write `retention: 7d` instead",
        ],
    );
}

#[test]
fn both_forms_of_an_agents_file_give_the_same_worker() {
    let list = "master_url: http://m:8888/\nslots: 3\nworkers:\n  - worker_id: worker-a\n    storage_paths: [/home/gpu1/, /home/cpu1]\n    \
                network:\n      control_plane_address: 192.168.65.4\n      data_plane_endpoints: [192.168.65.4, {address: 10.0.0.4, interface: ib0, port: 9000}, \"[fd00::1]:0\"]\n";
    let map = "master_url: [http://m:8888]\nworkers:\n  worker-a:\n    slots: 3\n    storage_paths: [/home/gpu1, /home/cpu1]\n    \
               network:\n      control_plane_address: 192.168.65.4\n      data_plane_endpoints: [{address: 192.168.65.4}, {address: \"10.0.0.4:9000\", iface: ib0}, \"[fd00::1]:0\"]\n";
    let top = "worker_id: worker-a\nmaster_url: http://m:8888\nslots: 3\nstorage_paths: [/home/gpu1, /home/cpu1]\n\
               network:\n  control_plane_address: 192.168.65.4\n  data_plane_endpoints: [192.168.65.4, {address: 10.0.0.4, iface: ib0, port: 9000}, \"[fd00::1]:0\"]\n";
    let wanted = agent(list, Some("worker-a")).unwrap();
    assert_eq!(wanted.config.master_urls, ["http://m:8888"]);
    assert_eq!(wanted.config.slots, 3);
    assert_eq!(wanted.config.heartbeat_interval, secs(5));
    assert_eq!(wanted.config.drain_timeout, secs(60));
    let authorities: Vec<String> =
        wanted.config.data_plane_endpoints.iter().map(|n| n.endpoint.authority()).collect();
    assert_eq!(authorities, ["192.168.65.4:8889", "10.0.0.4:9000", "[fd00::1]:0"]);
    for text in [map, top] {
        assert_eq!(agent(text, None).unwrap(), wanted, "{text}");
    }
}

#[test]
fn each_endpoint_has_separate_settings() {
    let text = "master_url: http://m\nworkers:\n  - worker_id: a\n    storage_paths: [/d]\n    network:\n      \
                data_plane_endpoints:\n        - 10.0.0.1\n        \
                - {address: 10.0.1.1, bwlimit: 100MiB/s, weight: 10, congestion: cubic, send_buffer: 4MiB, receive_buffer: 65536}\n";
    let nics = agent(text, None).unwrap().config.data_plane_endpoints;
    assert_eq!(nics[0].settings, crate::config::NicSettings::default());
    let tuning = &nics[1].settings;
    assert_eq!((tuning.bwlimit, tuning.weight), (Some(100 << 20), 10));
    assert_eq!(tuning.congestion.as_deref(), Some("cubic"));
    assert_eq!((tuning.send_buffer, tuning.receive_buffer), (Some(4 << 20), Some(65_536)));
    let wrong =
        text.replace("100MiB/s", "100Mb/s").replace("10, c", "0, c").replace("cubic", "../x");
    let problems = agent(&wrong, None).unwrap_err().to_string();
    for part in [
        "bwlimit: `100Mb/s` may mean bits or bytes",
        "weight: 0 is out of range",
        "congestion: `../x` is not a congestion",
    ] {
        assert!(problems.contains(part), "`{part}` in {problems}");
    }
}

#[test]
fn workers_inherit_shared_settings() {
    let text = "master_url: http://m\nworkers:\n  - &base\n    worker_id: a\n    storage_paths: [/d]\n    network: {control_plane_address: 10.0.0.1}\n  \
                - <<: *base\n    worker_id: b\n    network: {control_plane_address: 10.0.0.2}\n";
    let b = agent(text, Some("b")).unwrap();
    assert_eq!(b.config.storage_paths.len(), 1);
    assert_eq!(b.config.data_plane_endpoints[0].endpoint.address, "10.0.0.2");
    assert!(b.warnings.is_empty(), "{:?}", b.warnings);
}

#[test]
fn a_worker_without_endpoints_serves_its_own_host_and_warns() {
    let text = "master_url: http://m\nworkers:\n  - worker_id: a\n    storage_paths: [/d]\n";
    let loaded = agent(text, None).unwrap();
    assert_eq!(loaded.config.data_plane_endpoints[0].endpoint.authority(), "127.0.0.1:8889");
    assert_lines(
        text,
        &loaded.warnings,
        &[
            "3:16: warning: workers[0]: no `network.data_plane_endpoints`: it serves on 127.0.0.1:8889, which only agents on the same host reach",
        ],
    );
}

#[test]
fn all_errors_in_a_master_file_are_reported_together() {
    for (text, wanted) in [
        (
            "lisen: 0.0.0.0:8888\ndefaults:\n  chunk_size_mb: 2000\n  max_retries: many\nlease: 10GG\nlog: {level: inof, format: xml}\n",
            &[
                "1:1: error: unknown key `lisen` — did you mean `listen`?",
                "3:18: error: defaults.chunk_size_mb: 2000 is out of range: it must be from 1 to 1024",
                "4:16: error: defaults.max_retries: expected a whole number from 0 to 100, found `many`",
                "5:8: error: lease: `10GG` is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d",
                "6:14: error: log.level: `inof` is not a log level: use one of off, error, warn, info, debug, trace — did you mean `info`?",
                "6:28: error: log.format: expected `text` or `json`, found `xml`",
            ][..],
        ),
        (
            "listen: 8888\nlisten: 0.0.0.0:1\ndata_dir: state\nlimits: [1]\nretention:\n",
            &[
                "1:9: error: listen: `8888` is not an address with a port — write for example `0.0.0.0:8888` or `[::]:8888`",
                "2:1: error: duplicate key `listen` — first given on line 1",
                "3:11: error: data_dir: must be an absolute path (start with `/`)",
                "4:9: error: limits: expected keys and values (`key: value`), found a list",
                "5:1: error: retention: expected a time such as `45s`, `5m` or `2h`, found nothing",
            ],
        ),
        (
            "worker_heartbeat_timeout: 10\nheartbeat_interval: 11s\n",
            &[
                "1:27: error: worker_heartbeat_timeout: 10s is shorter than 3 heartbeats of 11s: it must be at least 33s, or your agents' `heartbeat_interval` be shorter",
                "2:21: error: lease: 30s is shorter than 3 heartbeats of 11s: it must be at least 33s, or your agents' `heartbeat_interval` be shorter",
            ],
        ),
        (
            "redis: {host: h, url: 'redis://h/0', port: 70000, db: -1, hots: x}\n",
            &[
                "1:23: error: redis.url: give either `url` or `host`, `port`, `db`, not both",
                "1:44: error: redis.port: 70000 is out of range: it must be from 1 to 65535",
                "1:55: error: redis.db: expected a whole number from 0 to 4294967295, found `-1`",
                "1:59: error: unknown key `hots` in redis — did you mean `host`?",
            ],
        ),
        (
            "redis:\n  url: rediss://me@h\n  namespace: '{x}'\n  allow_volatile: yes\n",
            &[
                "3:14: error: redis.namespace: must be 1 to 64 characters out of A-Z a-z 0-9 . _ -",
                "4:19: error: redis.allow_volatile: expected `true` or `false`, found `yes`",
            ],
        ),
        (
            "lease: -1\nworker_heartbeat_timeout: 1e3k\npoll_wait_max: nan\nscheduler: fifo\nretention: {finished: 1d}\nlimits: {max_file_list_bytes: 2TiB}\n",
            &[
                "1:8: error: lease: `-1` is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d",
                "2:27: error: worker_heartbeat_timeout: `1e3k` is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d",
                "3:16: error: poll_wait_max: `nan` is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d",
                "4:12: error: scheduler: expected `round_robin`, found `fifo`",
                "5:13: error: unknown key `finished` in retention",
                "6:31: error: limits.max_file_list_bytes: `2TiB` is out of range: it must be from 1.0 KiB to 1.0 GiB",
            ],
        ),
        ("- a\n- b\n", &["1:1: error: expected keys and values (`key: value`), found a list"]),
        ("hello\n", &["1:1: error: expected keys and values (`key: value`), found `hello`"]),
        ("", &["error: is empty — write `{}` if every setting shall have its default"]),
        (
            "workers: []\nmaster_url: http://m\n",
            &[
                "1:1: error: this is an agents file — `ctl master` needs a master's, see example_master.yml",
            ],
        ),
        (
            "listen:\n\t- x\n",
            &[
                "2:2: error: not valid YAML: tabs disallowed within this context (block indentation) — indent with spaces, not tabs",
            ],
        ),
    ] {
        assert_lines(text, &master(text).unwrap_err().problems, wanted);
    }
}

#[test]
fn limits_are_read_as_a_rate_or_a_timetable() {
    let text = "bwlimit: Mon-Fri 08:00-18:00 100MiB/s, Mon-Fri 18:00-08:00 none\n";
    let list = "bwlimit:\n  - Mon-Fri 08:00-18:00 100MiB/s\n  - Mon-Fri 18:00-08:00 none\n";
    let table = master(text).unwrap().config.bwlimit;
    assert_eq!(table, master(list).unwrap().config.bwlimit);
    let zone = jiff::tz::TimeZone::UTC;
    let at = |time: &str| table.limit_at(time.parse().unwrap(), &zone);
    assert_eq!(at("2026-06-01T09:00:00Z"), Some(100 << 20));
    assert_eq!((at("2026-06-01T19:00:00Z"), at("2026-06-06T09:00:00Z")), (None, None));
    let plain = master("bwlimit: 1G\n").unwrap().config.bwlimit;
    assert_eq!(plain.limit_at("2026-06-06T09:00:00Z".parse().unwrap(), &zone), Some(1 << 30));
    for (text, wanted) in [
        (
            "listen: 127.0.0.1:1\nbwlimit: 08:00-18:00 1M, 17:30-19:00 2M, Mon 25:00-26:00 1M\n",
            &[
                "2:10: error: bwlimit: `17:30-19:00 2M` overlaps `08:00-18:00 1M`: both set the limit on Mon 17:30; give each its own times",
                "2:10: error: bwlimit: `Mon 25:00-26:00 1M`: `25:00` is not a time; write times as 08:00, from 00:00 to 24:00",
            ][..],
        ),
        (
            "bwlimit:\n  - 08:00-18:00 100Mb/s\n  - {a: b}\n",
            &[
                "2:5: error: bwlimit[0]: `08:00-18:00 100Mb/s`: `100Mb/s` may mean bits or bytes: limits are in bytes per second; write for example 100MiB/s, 1.5G or none",
                "3:5: error: bwlimit[1]: expected a limit such as `100MiB/s`, or times with theirs: `08:00-18:00 100MiB/s`, found keys and values",
            ],
        ),
    ] {
        assert_lines(text, &master(text).unwrap_err().problems, wanted);
    }
    let text = "master_url: http://m\nbwlimit: 2G\nworkers:\n  - {worker_id: a, storage_paths: [/d], network: {data_plane_endpoints: [10.0.0.1]}}\n  \
                - {worker_id: b, storage_paths: [/d], bwlimit: none, network: {data_plane_endpoints: [10.0.0.2]}}\n";
    let of = |id| agent(text, Some(id)).unwrap().config.bwlimit;
    assert_eq!((of("a"), of("b")), (Some(2 << 30), None));
    let text = text.replace("none", "5");
    assert_lines(
        &text,
        &agent(&text, Some("a")).unwrap_err().problems,
        &[
            "5:50: error: workers[1].bwlimit: `5` is too slow for a copy: at least 64KiB/s; write for example 100MiB/s, 1.5G or none",
        ],
    );
}

#[test]
fn all_errors_in_an_agents_file_are_reported_together() {
    for (text, wanted) in [
        (
            "master_url: http://m:8888\nworkers:\n  - worker_id: worker-a\n    storage_path: [/d]\n  - worker_id: worker-a\n    storage_paths: [data, '', /]\n    \
             network:\n      data_plane_endpoints: [10.0.0.1]\n  - worker_id: worker b\n    storage_paths: []\n    heartbeat_interval: 5x\n",
            &[
                "3:5: error: missing key `storage_paths` in workers[0]: the directories that this worker may read and write",
                "3:16: warning: workers[0]: no `network.data_plane_endpoints`: it serves on 127.0.0.1:8889, which only agents on the same host reach",
                "4:5: error: unknown key `storage_path` in workers[0] — did you mean `storage_paths`?",
                "5:16: error: worker id `worker-a` is given twice — first on line 3",
                "6:21: error: workers[1].storage_paths[0]: `data` must be absolute (start with `/`)",
                "6:27: error: workers[1].storage_paths[1]: must not be empty",
                "6:31: error: workers[1].storage_paths[2]: `/` grants access to everything on the host — name the directories that hold the data, or set `allow_root_path: true`",
                "9:16: error: workers[2].worker_id: `worker b` must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
                "10:20: error: workers[2].storage_paths: must name at least one and at most 256 directories",
                "11:25: error: workers[2].heartbeat_interval: `5x` is not a duration; write for example 45s, 5m, 2h, 1h30m or 60d",
            ][..],
        ),
        (
            "master_url: [m:8888, 'https://m', 'http://u:p@m', 'http://m?x']\nworkers:\n  a:\n    worker_id: z\n    storage_paths: /d\n    slots: 0\n",
            &[
                "1:14: error: master_url[0]: `m:8888` has no `http://` in front — write for example `http://127.0.0.1:8888`",
                "1:22: error: master_url[1]: `https://m` is not an `http://` URL — write for example `http://127.0.0.1:8888`",
                "1:35: error: master_url[2]: must not carry a user name or password — write for example `http://127.0.0.1:8888`",
                "1:51: error: master_url[3]: `http://m?x` has a query or fragment — write for example `http://127.0.0.1:8888`",
                "3:3: warning: workers.a: no `network.data_plane_endpoints`: it serves on 127.0.0.1:8889, which only agents on the same host reach",
                "4:16: error: workers.a.worker_id: differs from the name of the entry, `a`",
                "5:20: error: workers.a.storage_paths: expected a list (`- one` lines, or `[one, two]`), found `/d`",
                "6:12: error: workers.a.slots: 0 is out of range: it must be from 1 to 256",
            ],
        ),
        (
            "master_url: http://m\nworkers:\n  - worker_id: a\n    storage_paths: [/d, /d/, /d/x]\n    network:\n      control_plane_iface: eth0\n      data_plane_endpoints:\n        \
             - 10.0.0.1\n        - 10.0.0.1:8889\n        - {address: 10.0.0.2, iface: ib0, interface: ib1}\n        - {adress: 10.0.0.3}\n        - 0.0.0.0\n        - a:b:c\n        - {address: 10.0.0.4, port: 65536, iface: ../x}\n  \
             - worker_id: b\n    storage_paths: [/e]\n    network: {data_plane_endpoints: ['10.0.0.1:08889', 10.0.0.1:8889]}\n",
            &[
                "4:25: warning: workers[0].storage_paths[1]: /d is given twice",
                "4:30: warning: workers[0].storage_paths[2]: /d/x lies inside /d, which is given too: one of them is enough",
                "6:7: warning: `control_plane_iface` in workers[0].network is outdated — it has no effect; remove it",
                "9:11: error: workers[0].network.data_plane_endpoints[1]: 10.0.0.1:8889 is given twice",
                "10:54: error: workers[0].network.data_plane_endpoints[2].interface: the same as `iface`, which is given too",
                "11:11: error: missing key `address` in workers[0].network.data_plane_endpoints[3]",
                "11:12: error: unknown key `adress` in workers[0].network.data_plane_endpoints[3] — did you mean `address`?",
                "12:11: error: workers[0].network.data_plane_endpoints[4]: other agents cannot connect to 0.0.0.0 — give the address of a network interface",
                "13:11: error: workers[0].network.data_plane_endpoints[5]: `a:b:c` is not an IP address",
                "14:37: error: workers[0].network.data_plane_endpoints[6].port: 65536 is out of range: it must be from 0 to 65535",
                "14:51: error: workers[0].network.data_plane_endpoints[6].iface: `../x` is not an interface name",
                "17:38: error: workers[1].network.data_plane_endpoints[0]: 10.0.0.1:8889 is also used by a — give each its own address or port",
                "17:56: error: workers[1].network.data_plane_endpoints[1]: 10.0.0.1:8889 is also used by a — give each its own address or port",
            ],
        ),
        (
            "master_url: http://m\nworkers:\n  - worker_id: heartbeat\n    storage_paths: [/d]\n    network: {data_plane_endpoints: [10.0.0.1]}\n  - worker_id: b\n    storage_paths: [/e]\n    network:\n      data_plane_endpoints:\n        \
             - fe80::1\n        - {address: fe80::2}\n        - {address: fe80::3, iface: ib0}\n        - \"fe80::4%ib0\"\n        - \"[fe80::5%2]:9000\"\n",
            &[
                "3:16: error: workers[0].worker_id: `heartbeat` is a path of the master's API (/workers/heartbeat, /workers/result): choose another worker id",
                "10:11: error: workers[1].network.data_plane_endpoints[0]: fe80::1 is a link-local address, which means nothing without its interface — write `{address: fe80::1, iface: NAME}`",
                "11:11: error: workers[1].network.data_plane_endpoints[1]: fe80::2 is a link-local address, which means nothing without its interface — write `{address: fe80::2, iface: NAME}`",
                "13:11: error: workers[1].network.data_plane_endpoints[3]: `fe80::4%ib0` names an interface — write it apart: `{address: fe80::4, iface: ib0}`",
                "14:11: error: workers[1].network.data_plane_endpoints[4]: `[fe80::5%2]:9000` names an interface — write it apart: `{address: fe80::5, iface: 2}`",
            ],
        ),
        (
            "wokers: []\nslots: 2\ndrain_timeout: 1s\n",
            &[
                "1:1: error: missing key `master_url`: where is the master? e.g. `master_url: http://127.0.0.1:8888` (or set CTL_MASTER_URL)",
                "1:1: error: missing key `workers`: a list of `- worker_id: …` entries",
                "1:1: error: unknown key `wokers` — did you mean `workers`?",
            ],
        ),
        (
            "master_url: http://m\nworkers: []\n",
            &["2:10: error: workers: must name at least one worker"],
        ),
        (
            "{}",
            &[
                "1:1: error: missing key `master_url`: where is the master? e.g. `master_url: http://127.0.0.1:8888` (or set CTL_MASTER_URL)",
                "1:1: error: missing key `workers`: a list of `- worker_id: …` entries",
            ],
        ),
        (
            "redis: {}\n",
            &[
                "1:1: error: this is a master's file — `ctl agent` needs an agents file, see example_agent.yml",
            ],
        ),
    ] {
        let found = agent(text, Some("a")).unwrap_err().problems;
        // Which worker is asked for is another test's business.
        let found: Vec<ConfigProblem> =
            found.into_iter().filter(|p| !p.message.starts_with("no worker `a`")).collect();
        assert_lines(text, &found, wanted);
    }
}

#[test]
fn an_unknown_worker_id_lists_the_known_ids() {
    let text = "master_url: http://m\nworkers:\n  worker-a: {storage_paths: [/d], network: {data_plane_endpoints: [10.0.0.1]}}\n  \
                worker-b: {storage_paths: [/d], network: {data_plane_endpoints: [10.0.0.2]}}\n";
    for (id, wanted) in [
        (
            Some("worker-x"),
            "error: no worker `worker-x` — did you mean `worker-a`?   worker ids in this file: worker-a worker-b",
        ),
        (
            None,
            "error: say which worker this is, with `--worker-id ID`   worker ids in this file: worker-a worker-b",
        ),
    ] {
        assert_lines(text, &agent(text, id).unwrap_err().problems, &[wanted]);
    }
    assert_eq!(agent(text, Some("worker-b")).unwrap().config.worker_id.as_str(), "worker-b");
}

#[test]
fn unreadable_files_are_rejected_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("utf16"), b"\xff\xfel\0i\0").unwrap();
    std::fs::write(at("latin1"), b"listen: x\ndata_dir: /\xc3\xa4\xe4\n").unwrap();
    std::fs::write(at("huge"), vec![b'#'; (4 << 20) + 1]).unwrap();
    for (path, wanted) in [
        (dir.path().to_owned(), ": error: is a directory — give the file in it"),
        (at("missing"), ": error: cannot be read: No such file or directory (os error 2)"),
        (at("utf16"), ": error: is UTF-16 text — save it as UTF-8"),
        (at("latin1"), ":2:13: error: not UTF-8 text — save the file as UTF-8"),
        (at("huge"), ": error: is larger than 4.0 MiB — this is hardly a configuration file"),
    ] {
        let wanted = format!("{}{wanted}", path.display());
        assert_eq!(load_master(Some(&path), &Env::empty()).unwrap_err().to_string(), wanted);
        assert_eq!(load_agent(&path, None, &Env::empty()).unwrap_err().to_string(), wanted);
        let report = check_file(&path, None, &Env::empty());
        assert_eq!((report.kind, report.to_string()), (None, format!("{wanted}\n1 error.")));
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let env = Env {
        redis_url: Some("redis://:s3cret@env:1/1".into()),
        master_url: Some("http://one:1, http://two:2/".into()),
        log_level: Some("WARNING".into()),
        ..Env::empty()
    };
    let text = "redis: {host: file, namespace: mine, allow_volatile: true}\nlog: {level: debug, format: json}\n";
    let loaded = with_file(text, |path| load_master(Some(path), &env)).unwrap().config;
    assert_eq!(loaded.log, LogConfig { level: "warn".into(), format: LogFormat::Json, file: None });
    assert!(!format!("{loaded:?}").contains("s3cret"));
    let StoreConfig::Redis { url, namespace, allow_volatile, .. } = loaded.store else { panic!() };
    assert_eq!(
        (url.expose(), namespace.as_str(), allow_volatile),
        ("redis://:s3cret@env:1/1", "mine", true)
    );
    let store = load_master(None, &env).unwrap().config.store;
    assert!(matches!(store, StoreConfig::Redis { allow_volatile: false, .. }), "{store:?}");

    let text = "workers: {a: {storage_paths: [/d]}}\nlog: {level: debug}\n";
    let load = |env: &Env| with_file(text, |path| load_agent(path, None, env));
    let loaded = load(&env).unwrap().config;
    assert_eq!(loaded.master_urls, ["http://one:1", "http://two:2"]);
    assert_eq!(loaded.log.level, "warn");
    let env = Env { agent_log_level: Some("trace".into()), ..env };
    assert_eq!(load(&env).unwrap().config.log.level, "trace");

    let bad = Env {
        redis_url: Some("http://:s3cret@x".into()),
        master_url: Some("m:1".into()),
        log_level: Some("loud".into()),
        ..Env::empty()
    };
    assert_eq!(
        load_master(None, &bad).unwrap_err().to_string(),
        "REDIS_URL: error: `http://` is not a scheme for Redis — write `redis://HOST:PORT/DB` or `unix:///PATH`\n\
         CTL_LOG_LEVEL: error: `loud` is not a log level: use one of off, error, warn, info, debug, trace"
    );
    let shown = load(&bad).unwrap_err().to_string();
    assert!(shown.contains("CTL_MASTER_URL: error: `m:1` has no `http://` in front"), "{shown}");
}

#[test]
fn a_world_readable_file_with_a_password_is_rejected() {
    use std::os::unix::fs::PermissionsExt as _;
    let secrets = [
        "redis: {password: hunter2}\n",
        "redis: {url: 'redis://:hunter2@localhost'}\n",
        "redis: {sentinel: {master: m, nodes: [a], password: hunter2}}\n",
        "redis: {cluster: [a], password: hunter2}\n",
    ];
    for (text, secret) in secrets.map(|text| (text, true)).into_iter().chain([
        ("redis: {url: 'redis://localhost'}\n", false),
        ("redis: {username: mover}\n", false),
    ]) {
        for mode in [0o600, 0o400, 0o640, 0o604, 0o644] {
            with_file(text, |path| {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
                let refused = secret && mode & 0o044 != 0;
                let report = check_file(path, None, &Env::empty());
                assert_eq!(report.is_usable(), !refused, "{text} {mode:o} {report:?}");
                match load_master(Some(path), &Env::empty()) {
                    Ok(loaded) => {
                        assert!(!refused && loaded.warnings.is_empty(), "{text} {mode:o}")
                    }
                    Err(errors) => {
                        let said = errors.to_string();
                        let fix = format!("chmod 600 {}", path.display());
                        assert!(
                            refused && said.contains(&fix) && !said.contains("hunter2"),
                            "{said}"
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn a_check_ends_with_a_summary() {
    let text = "master_url: http://m\nworkers:\n  - worker_id: a\n    storage_paths: [/d, x]\n";
    let report = with_file(text, |path| check_file(path, None, &Env::empty()));
    assert_eq!((report.error_count(), report.warning_count(), report.is_usable()), (1, 1, false));
    assert!(
        report.to_string().ends_with("\n1 error, 1 warning.   worker ids in this file: a"),
        "{report}"
    );
    let shown = with_file("{}", |path| check_file(path, None, &Env::empty())).to_string();
    assert!(shown.ends_with("f.yml: master configuration ok."), "{shown}");
}

#[test]
fn a_check_with_a_worker_id_examines_this_host() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    // 192.0.2.0/24 is reserved for documentation: nobody has such an address.
    let text = format!(
        "master_url: http://127.0.0.1:1\nworkers:\n  - worker_id: a\n    storage_paths:\n      - {here}\n      - {here}/no\n      - {here}/file\n      - {here}/link\n    \
         network:\n      data_plane_endpoints:\n        - 127.0.0.1\n        - {{address: 192.0.2.7, iface: nosuch0}}\n"
    );
    let report = |id: Option<&str>| with_file(&text, |path| check_file(path, id, &Env::empty()));
    let overlaps = |p: &ConfigProblem| p.message.contains("lies inside");
    let found: Vec<ConfigProblem> =
        report(Some("a")).problems.into_iter().filter(|p| !overlaps(p)).collect();
    let because = "(checked on this host for worker a)";
    let place = "workers[0].network.data_plane_endpoints";
    let wanted = [
        format!(
            "warning: master_url: http://127.0.0.1:1 cannot be reached: Connection refused (os error 111) {because}"
        ),
        format!(
            "6:9: warning: workers[0].storage_paths: {here}/no does not exist on this host {because}"
        ),
        format!("7:9: warning: workers[0].storage_paths: {here}/file is not a directory {because}"),
        format!(
            "8:9: warning: workers[0].storage_paths: {here}/link is a symbolic link — name its target {because}"
        ),
        format!("12:11: warning: {place}: this host has no interface nosuch0 {because}"),
        format!("12:11: warning: {place}: 192.0.2.7 is not an address of this host {because}"),
    ];
    assert_eq!(format_problems(&found), wanted);
    assert!(report(None).problems.iter().all(overlaps), "without a worker id nothing is looked up");
    // Where the agent is about to run, what is missing is an error.
    let here = with_file(&text, |path| check_file_on_host(path, None, &Env::empty()));
    assert_eq!((here.error_count(), here.is_usable()), (4, false), "{here}");
}
