//! Files of a master.

use super::*;

#[test]
fn a_master_without_keys_serves_this_host_from_an_embedded_store() {
    let env = Env { state_dir: "/state".into(), ..Env::empty() };
    for text in ["{}", "# all defaults\n", "---\n", "\u{feff}{}"] {
        let loaded = with_file(text, |path| load_master(Some(path), &env)).unwrap();
        assert_eq!(loaded, load_master(None, &env).unwrap(), "{text:?}");
        assert_eq!(loaded.config.store, StoreConfig::Embedded { dir: "/state".into() });
        assert_eq!(loaded.config.listen, [([127, 0, 0, 1], 8888).into()]);
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
            "3:1: warning: `network` is outdated — it has no effect; `listen` is the address of the API",
            "9:3: warning: `expiry_days` in redis is outdated — write `retention: 7d` instead",
        ],
    );
}

#[test]
fn a_master_file_may_declare_storages() {
    let text = "storages:\n  - {id: lustre-1, paths: [/lustre, /mnt/l/], workers: [gpu-1, 'gpu-*', '@rack=3']}\n  \
                - id: home\n    paths: [/lustre]\n    workers:\n      - login\n";
    let storages = master(text).unwrap().config.storages;
    assert_eq!((storages[0].id.as_str(), storages[1].id.as_str()), ("lustre-1", "home"));
    let paths: Vec<String> = storages[0].paths.iter().map(ToString::to_string).collect();
    let workers: Vec<String> = storages[0].workers.iter().map(ToString::to_string).collect();
    assert_eq!(
        (paths, workers),
        (
            vec!["/lustre".to_owned(), "/mnt/l".to_owned()],
            vec!["gpu-1".to_owned(), "gpu-*".to_owned(), "@rack=3".to_owned()],
        )
    );
}

#[test]
fn errors_of_declared_storages_name_their_place() {
    for (text, wanted) in [
        (
            "storages:\n  - {id: a, paths: [], workers: []}\n  - {paths: [/d]}\n  - {id: a b, path: /d}\n",
            &[
                "2:20: error: storages[0].paths: must name at least one storage path and at most 1024",
                "2:33: error: storages[0].workers: must name at least one worker and at most 16384",
                "3:5: error: missing key `id` in storages[1]: a name for the storage, e.g. `lustre-1`",
                "3:5: error: missing key `workers` in storages[1]: the workers that see it, e.g. [gpu-1, \"gpu-*\", \"@rack=3\"]",
                "4:5: error: missing key `paths` in storages[2]: the storage paths under which requests name it",
                "4:5: error: missing key `workers` in storages[2]: the workers that see it, e.g. [gpu-1, \"gpu-*\", \"@rack=3\"]",
                "4:10: error: storages[2].id: `a b` must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
                "4:15: error: unknown key `path` in storages[2] — did you mean `paths`?",
            ][..],
        ),
        (
            "storages:\n  - {id: a, paths: [d, /e], workers: [w, '@rack', '']}\n  - {id: a, paths: [/d], workers: [w]}\n",
            &[
                "2:21: error: storages[0].paths[0]: `d` must be absolute (start with `/`)",
                "2:42: error: storages[0].workers[1]: `@rack` has no value: write @rack=VALUE, or @rack=* for any value",
                "2:51: error: storages[0].workers[2]: `` is no worker id: it must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
                "3:10: error: storages[1].id: `a` is the id of the storage on line 2 already: give another one, or add the paths and workers there",
            ],
        ),
        (
            "storages:\n  - {id: a, paths: [/d], workers: [w, v]}\n  - {id: b, paths: [/d], workers: [v]}\n",
            &["3:5: error: storages[1]: /d for worker v is declared as storage `a` already"],
        ),
        (
            "storages: {id: a}\n",
            &[
                "1:11: error: storages: expected a list (`- one` lines, or `[one, two]`), found keys and values",
            ],
        ),
    ] {
        assert_lines(text, &master(text).unwrap_err().problems, wanted);
    }
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
