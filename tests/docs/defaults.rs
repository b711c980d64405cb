//! Comments of the sample configurations name the defaults that the program has. Three forms are read:
//!
//! - `# key: value`: the value is the default, unless the comment says "no default";
//! - `(default: value)` and `Default: value`: of the key that is named before it in the same line, else of the
//!   next key that is set;
//! - "4 for each core, at least 8, at most 24": the default of `slots`.
//!
//! A comment that uses the word "default" in another way fails the test, so that no default is left unchecked.

use crate::{files_in, project, read};
use longhaul::config::agent::default_slots;
use longhaul::config::{Env, load_agent, load_master};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Master,
    Agent,
}

/// What a sample says of one key.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    line: usize,
    /// The keys from the top of the file to the one that is meant.
    path: Vec<String>,
    value: String,
    /// Whether `value` is said to be the default; otherwise the key has none.
    is_default: bool,
}

/// A line that sets a key: the column of the key, the key, and its value without a comment behind it.
fn key_line(line: &str) -> Option<(usize, &str, &str)> {
    let text = line.trim_start_matches([' ', '-']);
    let (key, value) = text.split_once(':')?;
    let is_key =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-');
    let value = value.split(" #").next().unwrap_or_default();
    (is_key && (value.is_empty() || value.starts_with(' ')))
        .then(|| (line.len() - text.len(), key, value.trim()))
}

/// The key that a comment names before a note, as in "`lease` (default: 30s)" or "- weight (default: 1)".
fn key_before(text: &str) -> Option<&str> {
    let word =
        text.trim_end_matches([' ', '(']).rsplit([' ', '`']).find(|word| !word.is_empty())?;
    let named = text.contains(&format!("`{word}`")) || text.trim_start().starts_with("- ");
    named.then_some(word)
}

/// Every claim of a sample, and every comment that uses the word "default" in another way.
fn claims(text: &str) -> (Vec<Claim>, Vec<String>) {
    let (mut claims, mut unknown) = (Vec::new(), Vec::new());
    let mut parents: Vec<(usize, String)> = Vec::new();
    // Defaults that comments name above the key that they are about, and whether "no default" was said.
    let (mut pending, mut none): (Vec<(usize, String)>, bool) = (Vec::new(), false);
    let inside = |parents: &mut Vec<(usize, String)>, column: usize, key: &str| {
        parents.retain(|(parent, _)| *parent < column);
        let path = parents.iter().map(|(_, key)| key.clone()).chain([key.to_owned()]).collect();
        parents.push((column, key.to_owned()));
        path
    };
    for (number, line) in (1..).zip(text.lines().chain([""])) {
        let (code, comment) = match line.split_once('#') {
            Some((code, comment)) if code.trim().is_empty() || code.ends_with(' ') => {
                (code, comment)
            }
            _ => (line, ""),
        };
        if line.trim().is_empty() {
            let lost =
                pending.drain(..).map(|(line, value)| format!("{line}: {value} is of no key"));
            unknown.extend(lost);
            none = false;
            continue;
        }
        // A key that is commented out stands where it would stand without `# `.
        let commented = code
            .trim()
            .is_empty()
            .then(|| format!("{code}{}", comment.strip_prefix(' ').unwrap_or(comment)));
        let commented = commented.as_deref().filter(|text| !text.trim_start().starts_with('-'));
        let (set, note) = match commented.and_then(key_line) {
            Some(found) => {
                (Some((found, true)), comment.split_once(" #").map_or("", |(_, note)| note))
            }
            None => (key_line(code).map(|found| (found, false)), comment),
        };
        let lower = note.to_lowercase();
        let mut said = lower.matches("default").count();
        none |= lower.contains("no default");
        said -= lower.matches("no default").count() + lower.matches("shows its default").count();
        for (at, prefix) in lower.match_indices("default: ") {
            said -= 1;
            let rest = &note[at + prefix.len()..];
            if rest.starts_with("4 for each core") {
                continue;
            }
            let value = rest.split([')', ' ', ';']).next().unwrap_or_default();
            let value = value.trim_end_matches('.').to_owned();
            match key_before(&note[..at]) {
                Some(key) => {
                    let mut path: Vec<String> = Vec::new();
                    if note.trim_start().starts_with("- ") {
                        path.extend(parents.iter().map(|(_, key)| key.clone()));
                    }
                    path.push(key.to_owned());
                    claims.push(Claim { line: number, path, value, is_default: true });
                }
                None => pending.push((number, value)),
            }
        }
        if said > 0 {
            unknown.push(format!("{number}: {}", line.trim()));
        }
        let Some(((column, key, value), is_comment)) = set else { continue };
        let path: Vec<String> = inside(&mut parents, column, key);
        if value.is_empty() {
            continue;
        }
        for (line, value) in pending.drain(..) {
            claims.push(Claim { line, path: path.clone(), value, is_default: true });
        }
        if is_comment {
            let value = value.to_owned();
            claims.push(Claim { line: number, path, value, is_default: !none });
        }
        none = false;
    }
    (claims, unknown)
}

/// The configuration of a file in which a key is set, or none, as text that can be compared.
fn loaded(kind: Kind, path: &[String], value: Option<&str>) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("f.yml");
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    let set = |key: &str| value.map_or_else(String::new, |value| format!("{key}: {value}"));
    let text = match (kind, keys.as_slice()) {
        (Kind::Master, ["redis", key]) => format!("redis: {{ {} }}\n", set(key)),
        (Kind::Master, [block, key]) if value.is_some() => format!("{block}:\n  {}\n", set(key)),
        (Kind::Master, _) if value.is_none() => "{}\n".to_owned(),
        (Kind::Master, [key]) => format!("{}\n", set(key)),
        (Kind::Agent, [.., "data_plane_endpoints", key]) => agents("", "", &set(key)),
        (Kind::Agent, ["workers", key]) => agents("", &set(key), ""),
        (Kind::Agent, [block, key]) if value.is_some() => {
            agents(&format!("{block}:\n  {}", set(key)), "", "")
        }
        (Kind::Agent, [_, _]) => agents("", "", ""),
        (Kind::Agent, [key]) => agents(&set(key), "", ""),
        _ => return Err(format!("no sample has keys at {path:?}")),
    };
    std::fs::write(&file, text).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("a file of our own");
    match kind {
        Kind::Master => load_master(Some(&file), &Env::empty())
            .map(|loaded| format!("{:?}", loaded.config))
            .map_err(|e| e.to_string()),
        Kind::Agent => load_agent(&file, Some("w"), &Env::empty())
            .map(|loaded| format!("{:?}", loaded.config))
            .map_err(|e| e.to_string()),
    }
}

/// An agents file with one worker and one endpoint.
fn agents(top: &str, worker: &str, endpoint: &str) -> String {
    let endpoint = if endpoint.is_empty() { String::new() } else { format!(", {endpoint}") };
    format!(
        "master_url: http://127.0.0.1:8888\n{top}\nworkers:\n  - worker_id: w\n    storage_paths: [/data]\n    \
         {worker}\n    network:\n      data_plane_endpoints: [{{ address: 10.0.0.1{endpoint} }}]\n"
    )
}

/// What is wrong with a claim, or nothing.
fn judge(kind: Kind, claim: &Claim) -> Option<String> {
    let without = loaded(kind, &claim.path, None).unwrap_or_else(|e| panic!("{claim:?}: {e}"));
    let with = loaded(kind, &claim.path, Some(&claim.value));
    let key = claim.path.join(".");
    match (with, claim.is_default) {
        (Err(e), _) if e.contains("unknown key") => Some(format!("{key} is not a key: {e}")),
        (Err(e), true) => Some(format!("{key}: {} is refused: {e}", claim.value)),
        (Ok(with), true) if with != without => {
            Some(format!("{} is not the default of {key}", claim.value))
        }
        (Ok(with), false) if with == without => {
            Some(format!("{} is the default of {key}, not \"no default\"", claim.value))
        }
        _ => None,
    }
}

/// Both examples, and every file in `configs`.
fn samples() -> Vec<(Kind, PathBuf)> {
    let mut files = vec![project("example_master.yml"), project("example_agent.yml")];
    files.extend(files_in("configs", "yml"));
    let kind = |path: &Path| match path.to_string_lossy().contains("master") {
        true => Kind::Master,
        false => Kind::Agent,
    };
    files.into_iter().map(|path| (kind(&path), path)).collect()
}

#[test]
fn each_default_in_a_comment_is_the_one_of_the_program() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (kind, path) in samples() {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let (claims, unknown) = claims(&read(&path));
        wrong.extend(unknown.iter().map(|line| format!("{name}:{line}: not understood")));
        for claim in claims {
            checked += 1;
            // Its default depends on the number of cores: the sentence above it is compared below.
            if claim.path == ["slots"] {
                continue;
            }
            // An agents file names two keys of the master's file with their defaults.
            let kind = match claim.path.as_slice() {
                [key] if ["lease", "worker_heartbeat_timeout"].contains(&key.as_str()) => {
                    Kind::Master
                }
                _ => kind,
            };
            let found = judge(kind, &claim);
            wrong.extend(found.map(|message| format!("{name}:{}: {message}", claim.line)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 40, "only {checked} defaults were found");
}

#[test]
fn the_sentence_on_the_default_of_slots_is_true_on_this_machine() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for name in ["example_agent.yml", "configs/multi-nic-agent.yml"] {
        let text = read(&project(name)).replace("\n# ", " ");
        let at = text.find(" for each core, at least ").unwrap_or_else(|| panic!("{name}"));
        let words =
            text[..at].rsplit(' ').next().into_iter().chain(text[at..].split([' ', ',', '.', ':']));
        let numbers: Vec<usize> = words.filter_map(|word| word.parse().ok()).take(3).collect();
        let [each, least, most] = numbers[..] else { panic!("{name}: {numbers:?}") };
        assert_eq!((each * cores).clamp(least, most), default_slots(), "{name}");
        let commented = text.lines().find_map(|line| line.strip_prefix("slots: "));
        if let Some(value) = commented.filter(|_| name.starts_with("example")) {
            assert_eq!(value, least.to_string(), "{name}");
        }
    }
}

#[test]
fn wrong_defaults_and_unknown_keys_are_found() {
    let sample = "# lease: 30s\n\n# lease: 31s\n\n# leese: 30s\n\n# More (default: 63).\nlimits:\n\
                  #   window_tasks: 256   # outstanding\n# No default:\n# installation: a\n\n# Of the default kind.\n# Default: 7.\n";
    let (claims, unknown) = claims(sample);
    let judged: Vec<bool> =
        claims.iter().map(|claim| judge(Kind::Master, claim).is_some()).collect();
    assert_eq!(judged, [false, true, true, true, false, false], "{claims:?}");
    assert_eq!(unknown, ["13: # Of the default kind.", "14: 7 is of no key"]);
}
