//! Malicious and malformed files.

use super::*;
use proptest::prelude::*;

/// What this thread has used of a processor.
fn cpu_time() -> std::time::Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.try_into().unwrap()
}

#[test]
fn hostile_files_are_rejected_quickly_with_short_messages() {
    let many: String = (0..50_000).map(|i| format!("key{i}: 1\n")).collect();
    let problems = master(&many).unwrap_err().problems;
    assert_eq!(problems.len(), 101);
    assert!(problems[100].message.contains("49,900 more problems"), "{}", problems[100]);
    let deep_in_the_file: [fn(usize) -> String; 5] = [
        |n| "- ".repeat(n),
        |n| "a: b\n".repeat(n),
        |n| "? ".repeat(n),
        |n| "[a, ".repeat(n),
        |n| "a: |\n x\n".repeat(n),
    ];
    for make in deep_in_the_file {
        // Twice the text may take twice the time, not four times; seconds mean a loop within a loop. Other
        // processes take none of this time.
        let started = cpu_time();
        assert!(master(make(100_000)).is_err());
        assert!(cpu_time() - started < secs(20), "{:?}", make(3));
    }
    let long = master(format!("listen: {}\u{1b}[2J\n", "x".repeat(9000))).unwrap_err().to_string();
    assert!(long.len() < 600 && !long.contains('\u{1b}'), "{long}");
}

proptest! {
    #[test]
    fn any_bytes_load_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let findings = Diagnostics::new("f".into());
        if let Some(root) = source::parse(&bytes, &findings) {
            agent::read_agents(&root, &Env::empty(), &findings);
        }
    }

    /// Known keys with values of every kind, in every place.
    #[test]
    fn known_keys_with_unexpected_values_load_without_a_panic(
        lines in proptest::collection::vec((0usize..4, 0usize..32, 0usize..14), 0..40)
    ) {
        const KEYS: [&str; 32] = [
            "max_connections", "listen", "data_dir", "redis", "url", "host", "port", "db", "namespace", "expiry_days", "scheduler",
            "lease", "worker_heartbeat_timeout", "heartbeat_interval", "retention", "limits", "window_tasks",
            "max_file_list_bytes", "defaults", "chunk_size_mb", "log", "level", "master_url", "workers", "worker_id",
            "- worker_id", "storage_paths", "network", "data_plane_endpoints", "- address", "iface", "slots",
        ];
        const VALUES: [&str; 14] = [
            "", "1", "-1", "45.0", "99999999999999999999", "999999999999.5", "[]", "{}", "[a, {b: c}, [d]]", "/x", "redis://h/0",
            "'\u{1b}'", "http://[::1]:80", "0.0.0.0:0",
        ];
        let mut text = String::new();
        for (depth, key, value) in lines {
            text.push_str(&format!("{}{}: {}\n", "  ".repeat(depth), KEYS[key], VALUES[value]));
        }
        let findings = Diagnostics::new("f".into());
        if let Some(root) = source::parse(text.as_bytes(), &findings) {
            agent::read_agents(&root, &Env::empty(), &findings);
            MasterConfig::read(Some(&root), &Env::empty(), &findings);
        }
        // Secrets aside, what was found can always be shown on one line each.
        let shown: Vec<String> =
            findings.into_problems().iter().map(ToString::to_string).collect();
        let unsafe_line = |line: &String| line.contains(['\n', '\u{1b}']);
        prop_assert!(!shown.iter().any(unsafe_line), "{:?}", shown);
    }

    #[test]
    fn edited_shipped_files_are_loaded_or_rejected_with_one_line_messages(
        edits in crate::wire::fuzz::any_edits(),
    ) {
        for name in ["example_master.yml", "example_agent.yml"] {
            let shipped = std::fs::read(repo_file(name)).unwrap();
            let findings = Diagnostics::new("f".into());
            if let Some(root) = source::parse(&crate::wire::fuzz::apply_edits(&shipped, &edits), &findings) {
                agent::read_agents(&root, &Env::empty(), &findings);
                MasterConfig::read(Some(&root), &Env::empty(), &findings);
            }
            for problem in findings.into_problems() {
                let line = problem.to_string();
                prop_assert!(line.len() < 2_000 && !line.contains(['\n', '\u{1b}']), "{}", line);
            }
        }
    }
}
