//! What people run by hand still runs: the scripts, with the smallest of work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn run_bench(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench.sh");
    let mut command = Command::new(script);
    command.args(["--ctl", env!("CARGO_BIN_EXE_ctl")]).args(args);
    command
        .output()
        .expect("scripts/bench.sh cannot be run: run scripts/test.sh, it installs what it needs")
}

fn output_text(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_benchmark_measures_verifies_and_leaves_only_its_report() {
    let home = tempfile::tempdir().unwrap();
    let (dir, json) = (home.path().join("there"), home.path().join("numbers.json"));
    let run = run_bench(&[
        "--runs=1",
        "--scale=0.0005",
        "--sets=large,again,local-small",
        "--sides=longhaul,rsync,tar,cp",
        "--check",
        "--dir",
        dir.to_str().unwrap(),
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(run.status.success(), "{}", output_text(&run));
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let counted = |set: &str, side: &str| {
        let of = |run: &&Value| run["set"] == set && run["side"] == side && run["counted"] == true;
        result["runs"].as_array().unwrap().iter().find(of).cloned()
    };
    for (set, sides) in [
        ("large", &["longhaul", "rsync", "tar", "cp"][..]),
        ("again", &["longhaul", "rsync"]),
        ("local-small", &["longhaul", "cp"]),
    ] {
        for side in sides {
            let run = counted(set, side).unwrap_or_else(|| panic!("{side} took no part in {set}"));
            assert!(run["seconds"].as_f64().unwrap() > 0.0, "{run}");
            assert!(
                run["peak_kib"].as_object().unwrap().values().all(|peak| peak.as_u64() > Some(0))
            );
        }
    }
    assert!(counted("again", "tar").is_none() && counted("local-small", "rsync").is_none());
    assert_eq!(result["sets"]["again"]["files"], 50);
    let left: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["numbers.json"]);
}

#[test]
fn the_benchmark_marks_a_side_that_loses_content_as_failed() {
    let home = tempfile::tempdir().unwrap();
    // It takes the connection and keeps nothing of what comes.
    let program = home.path().join("forgets");
    let text = "#!/bin/sh\nexec python3 - \"$@\" <<'END'\n\
        import socket, sys\n\
        host, port = sys.argv[2].split(':')\n\
        if sys.argv[1] == 'send':\n    socket.create_connection((host, int(port)))\n\
        else:\n    socket.create_server((host, int(port))).accept()\n\
        END\n";
    std::fs::write(&program, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let dir = home.path().join("there");
    let run = run_bench(&[
        "--runs=1",
        "--scale=0.0005",
        "--sets=small",
        "--sides=cp,yardstick",
        "--yardstick",
        program.to_str().unwrap(),
        "--dir",
        dir.to_str().unwrap(),
    ]);
    assert_eq!(run.status.code(), Some(1), "{}", output_text(&run));
    assert!(
        output_text(&run).contains("0 files of 0 bytes arrived instead of 50"),
        "{}",
        output_text(&run)
    );
    assert!(!dir.exists());
}

/// The fields that jq expressions read: `.name`, not part of a file name.
fn jq_fields(line: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_/$}\"*".contains(c);
    let starts = line.match_indices('.').filter(|(at, _)| !line[..*at].ends_with(is_part));
    let names = starts.map(|(at, _)| {
        line[at + 1..]
            .split(|c: char| !c.is_ascii_lowercase() && c != '_')
            .next()
            .unwrap_or_default()
    });
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_fields_that_scripts_read_from_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let samples: String = std::fs::read_dir(root.join("tests/formats/http"))
        .unwrap()
        .map(|sample| std::fs::read_to_string(sample.unwrap().path()).unwrap())
        .collect();
    // What jq itself gives: `to_entries`.
    let is_known =
        |name: &str| ["key", "value"].contains(&name) || samples.contains(&format!("\"{name}\":"));
    let (mut checked, mut wrong) = (0, Vec::new());
    for script in
        std::fs::read_dir(root.join("scripts")).unwrap().map(|entry| entry.unwrap().path())
    {
        if script.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        let text = std::fs::read_to_string(&script).unwrap();
        let reads = text.lines().filter(|line| line.contains("jq ") || line.contains("last "));
        for name in reads.flat_map(jq_fields) {
            checked += 1;
            if !is_known(&name) {
                wrong.push(format!("{}: .{name}", script.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "no document has these fields: {wrong:#?}");
    assert!(checked > 20, "only {checked} fields were found");
    assert_eq!(jq_fields("x \"$a/last.json\" '.b | map(.c_d)' .e"), ["b", "c_d", "e"]);
}

#[test]
fn the_log_messages_that_scripts_search_for_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lab = std::fs::read_to_string(root.join("scripts/chaos/lab.py")).unwrap();
    let constants = lab.lines().filter(|line| line.starts_with("LOG_"));
    let messages = constants.filter_map(|line| line.split('"').nth(1));
    let sources = walkdir::WalkDir::new(root.join("src")).into_iter().map(|entry| entry.unwrap());
    let texts: Vec<String> = sources
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"))
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
        .collect();
    let mut checked = 0;
    for message in messages {
        checked += 1;
        assert!(texts.iter().any(|text| text.contains(message)), "`{message}` is not logged");
    }
    assert_eq!(checked, 2, "{lab}");
}
