//! Whole files in, messages and values out.

mod agents;
mod hostile;
mod master;
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

fn assert_lines(text: &str, found: &[ConfigProblem], expected: &[&str]) {
    assert_eq!(format_problems(found), expected, "for\n{text}");
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
        let report = check_file(&file, None, &Env::empty(), None);
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
                "encrypt_content",
                "run_as",
                "root_syncs",
                "sandbox",
                "labels",
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
fn unreadable_files_are_rejected_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("utf16"), b"\xff\xfel\0i\0").unwrap();
    std::fs::write(at("latin1"), b"listen: x\ndata_dir: /\xc3\xa4\xe4\n").unwrap();
    std::fs::write(at("huge"), vec![b'#'; (4 << 20) + 1]).unwrap();
    for (path, expected) in [
        (dir.path().to_owned(), ": error: is a directory — give the file in it"),
        (at("missing"), ": error: cannot be read: No such file or directory (os error 2)"),
        (at("utf16"), ": error: is UTF-16 text — save it as UTF-8"),
        (at("latin1"), ":2:13: error: not UTF-8 text — save the file as UTF-8"),
        (at("huge"), ": error: is larger than 4.0 MiB — this is hardly a configuration file"),
    ] {
        let expected = format!("{}{expected}", path.display());
        assert_eq!(load_master(Some(&path), &Env::empty()).unwrap_err().to_string(), expected);
        assert_eq!(load_agent(&path, None, &Env::empty()).unwrap_err().to_string(), expected);
        let report = check_file(&path, None, &Env::empty(), None);
        assert_eq!((report.kind, report.to_string()), (None, format!("{expected}\n1 error.")));
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
    assert!(
        shown.contains("CTL_MASTER_URL: error: `m:1` has no `http://` or `https://` in front"),
        "{shown}"
    );
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
                let report = check_file(path, None, &Env::empty(), None);
                assert_eq!(report.is_usable(), !refused, "{text} {mode:o} {report:?}");
                match load_master(Some(path), &Env::empty()) {
                    Ok(loaded) => {
                        assert!(!refused && loaded.warnings.is_empty(), "{text} {mode:o}")
                    }
                    Err(errors) => {
                        let printed = errors.to_string();
                        let fix = format!("chmod 600 {}", path.display());
                        assert!(
                            refused && printed.contains(&fix) && !printed.contains("hunter2"),
                            "{printed}"
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
    let report = with_file(text, |path| check_file(path, None, &Env::empty(), None));
    assert_eq!((report.error_count(), report.warning_count(), report.is_usable()), (1, 1, false));
    assert!(
        report.to_string().ends_with("\n1 error, 1 warning.   worker ids in this file: a"),
        "{report}"
    );
    let shown = with_file("{}", |path| check_file(path, None, &Env::empty(), None)).to_string();
    assert!(shown.ends_with("f.yml: master configuration ok."), "{shown}");
}

#[test]
fn a_check_with_a_worker_id_examines_this_host() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    // 192.0.2.0/24 is reserved for documentation: no host has such an address.
    let text = format!(
        "master_url: http://127.0.0.1:1\nworkers:\n  - worker_id: a\n    storage_paths:\n      - {here}\n      - {here}/no\n      - {here}/file\n      - {here}/link\n    \
         network:\n      data_plane_endpoints:\n        - 127.0.0.1\n        - {{address: 192.0.2.7, iface: nosuch0}}\n"
    );
    let report = |id: Option<&str>| {
        let host = id.map(|_| Severity::Warning);
        with_file(&text, |path| check_file(path, id, &Env::empty(), host))
    };
    let overlaps = |p: &ConfigProblem| p.message.contains("lies inside");
    let found: Vec<ConfigProblem> =
        report(Some("a")).problems.into_iter().filter(|p| !overlaps(p)).collect();
    let because = "(checked on this host for worker a)";
    let place = "workers[0].network.data_plane_endpoints";
    let expected = [
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
    assert_eq!(format_problems(&found), expected);
    assert!(report(None).problems.iter().all(overlaps), "without a worker id nothing is looked up");
    // Where the agent is about to run, what is missing is an error.
    let here =
        with_file(&text, |path| check_file(path, None, &Env::empty(), Some(Severity::Error)));
    assert_eq!((here.error_count(), here.is_usable()), (4, false), "{here}");
}
