//! Agents files.

use super::*;
use crate::wire::storage::StorageDeclaration;

#[test]
fn both_forms_of_an_agents_file_give_the_same_worker() {
    let list = "master_url: http://m:8888/\nslots: 3\nworkers:\n  - worker_id: worker-a\n    storage_paths: [/home/gpu1/, /home/cpu1]\n    \
                network:\n      control_plane_address: 192.168.65.4\n      data_plane_endpoints: [192.168.65.4, {address: 10.0.0.4, interface: ib0, port: 9000}, \"[fd00::1]:0\"]\n";
    let map = "master_url: [http://m:8888]\nworkers:\n  worker-a:\n    slots: 3\n    storage_paths: [/home/gpu1, /home/cpu1]\n    \
               network:\n      control_plane_address: 192.168.65.4\n      data_plane_endpoints: [{address: 192.168.65.4}, {address: \"10.0.0.4:9000\", iface: ib0}, \"[fd00::1]:0\"]\n";
    let top = "worker_id: worker-a\nmaster_url: http://m:8888\nslots: 3\nstorage_paths: [/home/gpu1, /home/cpu1]\n\
               network:\n  control_plane_address: 192.168.65.4\n  data_plane_endpoints: [192.168.65.4, {address: 10.0.0.4, iface: ib0, port: 9000}, \"[fd00::1]:0\"]\n";
    let expected = agent(list, Some("worker-a")).unwrap();
    assert_eq!(expected.config.master_urls, ["http://m:8888"]);
    assert_eq!(expected.config.slots, 3);
    assert_eq!(expected.config.heartbeat_interval, secs(5));
    assert_eq!(expected.config.drain_timeout, secs(60));
    let authorities: Vec<String> =
        expected.config.data_plane_endpoints.iter().map(|n| n.endpoint.authority()).collect();
    assert_eq!(authorities, ["192.168.65.4:8889", "10.0.0.4:9000", "[fd00::1]:0"]);
    for text in [map, top] {
        assert_eq!(agent(text, None).unwrap(), expected, "{text}");
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
fn a_storage_path_may_have_a_declaration_and_another_name() {
    let text = "master_url: http://m\nworkers:\n  - worker_id: a\n    network: {data_plane_endpoints: [10.0.0.1]}\n    \
                storage_paths:\n      - /d\n      - {path: /scratch/, local: true}\n      - {path: /mnt/b, as: /lustre, storage: lustre-1}\n      \
                - {path: /mnt/c, as: /c, local: true}\n      - {path: /e, local: false}\n";
    let loaded = agent(text, None).unwrap();
    assert_eq!(format_problems(&loaded.warnings), Vec::<String>::new());
    let paths: Vec<_> = loaded
        .config
        .storage_paths
        .iter()
        .map(|path| (path.to_string(), path.other_local_path().is_some(), path.declared.clone()))
        .collect();
    let lustre = StorageDeclaration::Storage("lustre-1".parse().unwrap());
    assert_eq!(
        paths,
        [
            ("/d".to_owned(), false, None),
            ("/scratch".to_owned(), false, Some(StorageDeclaration::Local)),
            ("/lustre (/mnt/b on this host)".to_owned(), true, Some(lustre)),
            ("/c (/mnt/c on this host)".to_owned(), true, Some(StorageDeclaration::Local)),
            ("/e".to_owned(), false, None),
        ]
    );
}

#[test]
fn wrong_storage_paths_and_labels_are_reported_with_their_positions() {
    let head = "master_url: http://m\nworkers:\n  - worker_id: a\n    network: {data_plane_endpoints: [10.0.0.1]}\n";
    for (lines, expected) in [
        (
            "    storage_paths:\n      - {path: /d, local: true, storage: x}\n      - {as: /e}\n      - {path: f, storage: 'a b'}\n      \
             - {path: /g, as: g, lokal: true}\n      - {path: /h, local: perhaps}\n      - {path: /i, storage: }\n      - {path: /j, as: /}\n",
            &[
                "6:42: error: workers[0].storage_paths[0].storage: another host may see a storage that has an id, and `local: true` says that none does — give one of the two",
                "7:9: error: missing key `path` in workers[0].storage_paths[1], the directory on this host",
                "8:16: error: workers[0].storage_paths[2].path: `f` must be absolute (start with `/`)",
                "8:28: error: workers[0].storage_paths[2].storage: `a b` must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
                "9:24: error: workers[0].storage_paths[3].as: `g` must be absolute (start with `/`)",
                "9:27: error: unknown key `lokal` in workers[0].storage_paths[3] — did you mean `local`?",
                "10:27: error: workers[0].storage_paths[4].local: expected `true` or `false`, found `perhaps`",
                "11:20: error: workers[0].storage_paths[5].storage: expected the id of a storage, found nothing",
                "12:24: error: workers[0].storage_paths[6].as: `/` grants access to everything on the host — name the directories that hold the data, or set `allow_root_path: true`",
            ][..],
        ),
        (
            "    storage_paths:\n      - /d\n      - {path: /e, as: /d}\n      - {path: /d, local: true}\n      - {path: /d, as: /f}\n      \
             - {path: /g, as: /d/g}\n      - {path: /g/h, as: /h}\n",
            &[
                "7:9: error: workers[0].storage_paths[1]: requests call two directories /d — first on line 6; give one of them another name (`as: /NAME`)",
                "8:9: error: workers[0].storage_paths[2]: requests call two directories /d — first on line 6; give one of them another name (`as: /NAME`)",
                "9:9: warning: workers[0].storage_paths[3]: /d is given as /d and as /f: syncs of one name do not wait for those of the other",
                "10:9: warning: workers[0].storage_paths[4]: /d/g (/g on this host) has a name inside /d, which is given too: requests for /d/g reach the former",
                "11:9: warning: workers[0].storage_paths[5]: /h (/g/h on this host) lies inside /d/g (/g on this host), which is given too: one of them is enough",
            ],
        ),
        (
            "    storage_paths: [/d]\n    labels: {rack: 3, rack: 4, 'a b': c, zone: , room: 'x/y', list: [1]}\n",
            &[
                "6:23: error: workers[0].labels: duplicate key `rack` — first given on line 6",
                "6:32: error: workers[0].labels: label `a b` must be 1 to 63 characters out of A-Z a-z 0-9 . _ -",
                "6:42: error: workers[0].labels.zone: expected the value of a label, found nothing",
                "6:56: error: workers[0].labels.room: `x/y` must be 1 to 63 characters out of A-Z a-z 0-9 . _ -",
                "6:69: error: workers[0].labels.list: expected the value of a label, found a list",
            ],
        ),
        (
            "    storage_paths: [/d]\n    labels: [rack]\n",
            &[
                "6:13: error: workers[0].labels: expected keys and values (`key: value`), found a list",
            ],
        ),
    ] {
        let text = format!("{head}{lines}");
        assert_lines(&text, &agent(&text, None).unwrap_err().problems, expected);
    }
    let many: String = (0..65).map(|n| format!("      k{n}: v\n")).collect();
    let text = format!("{head}    storage_paths: [/d]\n    labels:\n{many}");
    let error = agent(&text, None).unwrap_err().to_string();
    assert!(error.contains("workers[0].labels: a worker has at most 64 labels, not 65"), "{error}");
}

#[test]
fn labels_of_a_worker_are_added_to_those_for_all() {
    let text = "master_url: http://m\nlabels: {rack: 3, site: north}\nworkers:\n  - worker_id: a\n    storage_paths: [/d]\n    \
                labels: {rack: 4, gpu: a100}\n    network: {data_plane_endpoints: [10.0.0.1]}\n";
    let labels = agent(text, None).unwrap().config.labels;
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["gpu=a100", "rack=4", "site=north"]);
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
fn all_errors_in_an_agents_file_are_reported_together() {
    for (text, expected) in [
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
            "master_url: [m:8888, 'ftps://m', 'http://u:p@m', 'http://m?x']\nworkers:\n  a:\n    worker_id: z\n    storage_paths: /d\n    slots: 0\n",
            &[
                "1:14: error: master_url[0]: `m:8888` has no `http://` or `https://` in front — write for example `http://127.0.0.1:8888`",
                "1:22: error: master_url[1]: `ftps://m` is not an `http://` or `https://` URL — write for example `http://127.0.0.1:8888`",
                "1:34: error: master_url[2]: must not carry a user name or password — write for example `http://127.0.0.1:8888`",
                "1:50: error: master_url[3]: `http://m?x` has a query or fragment — write for example `http://127.0.0.1:8888`",
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
        // The requested worker id is the subject of another test.
        let found: Vec<ConfigProblem> =
            found.into_iter().filter(|p| !p.message.starts_with("no worker `a`")).collect();
        assert_lines(text, &found, expected);
    }
}

#[test]
fn an_unknown_worker_id_lists_the_known_ids() {
    let text = "master_url: http://m\nworkers:\n  worker-a: {storage_paths: [/d], network: {data_plane_endpoints: [10.0.0.1]}}\n  \
                worker-b: {storage_paths: [/d], network: {data_plane_endpoints: [10.0.0.2]}}\n";
    for (id, expected) in [
        (
            Some("worker-x"),
            "error: no worker `worker-x` — did you mean `worker-a`?   worker ids in this file: worker-a worker-b",
        ),
        (
            None,
            "error: name the worker with `--worker-id ID`   worker ids in this file: worker-a worker-b",
        ),
    ] {
        assert_lines(text, &agent(text, id).unwrap_err().problems, &[expected]);
    }
    assert_eq!(agent(text, Some("worker-b")).unwrap().config.worker_id.as_str(), "worker-b");
}
