use super::*;
use crate::cli::args::{Cli, Command, SyncCommand};
use crate::wire::options::MAX_FILTER_BYTES;
use clap::Parser;

fn parse(words: &[&str]) -> Result<SyncOptionArgs, clap::Error> {
    let head = ["ctl", "sync", "submit", "/src", "/dst"];
    let cli = Cli::try_parse_from(head.iter().chain(words))?;
    match cli.command {
        Command::Sync(SyncCommand::Submit(args)) => Ok(args.options),
        _ => panic!("not a submit"),
    }
}

fn now() -> Timestamp {
    "2026-02-03T14:10:00Z".parse().unwrap()
}

fn read_options(words: &[&str]) -> Result<SyncOptions> {
    let args = parse(words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    args.to_sync_options(&[AbsPath::new("/dst").unwrap()], false, now())
}

fn options(line: &str) -> SyncOptions {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    read_options(&words).unwrap_or_else(|e| panic!("{line}: {}", e.render()))
}

#[test]
fn without_options_the_defaults_apply() {
    assert!(options("").is_default());
    assert!(options("--links keep --verify transfer --preserve all").is_default());
}

#[test]
fn every_option_sets_its_field_of_the_request() {
    let of = |line: &str| serde_json::to_value(options(line)).unwrap();
    for (line, json) in [
        ("--preserve mode,times", r#"{"preserve": ["mode", "times"]}"#),
        ("--chown 7:8", r#"{"chown": {"uid": 7, "gid": 8}}"#),
        ("--chown :8", r#"{"chown": {"gid": 8}}"#),
        ("--chown 7", r#"{"chown": {"uid": 7}}"#),
        ("--links copy", r#"{"links": "copy"}"#),
        ("--links skip --punch-zeros", r#"{"links": "skip", "punch_zeros": true}"#),
        ("--strict-metadata", r#"{"strict_metadata": true}"#),
        ("--size-only", r#"{"compare": "size"}"#),
        ("-c", r#"{"compare": "checksum"}"#),
        ("-u --modify-window 2s", r#"{"update": true, "mtime_tolerance_ns": 2000000000}"#),
        ("--modify-window 500ms", r#"{"mtime_tolerance_ns": 500000000}"#),
        ("--ignore-existing -W", r#"{"ignore_existing": true, "whole_file": true}"#),
        ("--existing", r#"{"existing": true}"#),
        ("--no-clone", r#"{"clone": false}"#),
        ("--min-size 1K --max-size 1.5K", r#"{"filter": {"min_size": 1024, "max_size": 1536}}"#),
        ("--newer-than 2d", r#"{"filter": {"newer_than": 1769955000}}"#),
        ("--older-than 1970-01-02T00:00:00Z", r#"{"filter": {"older_than": 86400}}"#),
        ("--files-from x --recursive", r#"{"recursive": true}"#),
        ("-n", r#"{"dry_run": true}"#),
        ("-i", r#"{"record": true}"#),
        ("--record", r#"{"record": true}"#),
        ("--delete", r#"{"delete": {"max_percent": 50}}"#),
        (
            "--delete --max-delete 3 --max-delete-percent 9 --trash /dst/a/b",
            r#"{"delete": {"max": 3, "max_percent": 9, "trash": "a/b"}}"#,
        ),
        (
            "--delete --delete-excluded --allow-empty-source --trash old",
            r#"{"delete": {"max_percent": 50, "trash": "old", "delete_excluded": true, "allow_empty_source": true}}"#,
        ),
        (
            "--delete --allow-new-source-fs",
            r#"{"delete": {"max_percent": 50, "allow_new_source_fs": true}}"#,
        ),
        ("--verify readback", r#"{"verify": "readback"}"#),
        ("--verify none", r#"{"verify": "none"}"#),
        ("--manifest m", r#"{"manifest": true}"#),
        ("--digests", r#"{"manifest": true}"#),
    ] {
        let expected: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(of(line), expected, "{line}");
    }
    assert_eq!(options("--no-owner"), options("--preserve no-owner,no-group"));
}

#[test]
fn rules_keep_the_order_of_the_command_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from\n").unwrap();
    let path = file.path().to_str().unwrap();
    let read = read_options(&[
        "--exclude",
        "a",
        "--include",
        "b",
        "--exclude-from",
        path,
        "--exclude=-c",
        "--include-from",
        path,
        "--include=d",
    ]);
    assert_eq!(read.unwrap().filter.rules, ["a", "!b", "from", "-c", "!from", "!d"]);
}

/// The examples of docs/filters.md and of the help.
#[test]
fn the_documented_filter_examples_exclude_what_they_state() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("--exclude *.o --include keep.o", &["a.o", "d/a.o"], &["keep.o", "d/keep.o", "a.c"]),
        ("--exclude /tmp/", &["tmp/"], &["tmp", "d/tmp/"]),
        ("--exclude tmp/", &["tmp/", "d/tmp/"], &["tmp"]),
        ("--exclude d/tmp", &["d/tmp", "d/tmp/"], &["x/d/tmp"]),
        ("--exclude **/d/tmp", &["d/tmp", "x/d/tmp"], &["tmp"]),
        ("--exclude /* --include /data/", &["x", "x/"], &["data/", "data/x", "data/x/"]),
        ("--exclude * --include */ --include *.c", &["a.o", "d/a.o"], &["a.c", "d/", "d/a.c"]),
        ("--exclude core.[0-9]*", &["core.1", "d/core.22"], &["core", "core.x"]),
        ("--exclude d/**", &["d/x", "d/x/y"], &["d/", "x/d/y"]),
        ("--exclude *.{o,a}", &["x.o", "x.a"], &["x.c"]),
        ("--exclude #a# --exclude \\!b", &["#a#", "!b"], &["a", "b"]),
    ];
    for (line, out, kept) in cases {
        let filter = Filter::new(&options(line).filter).unwrap();
        let leaves_out = |path: &str| {
            let is_dir = path.ends_with('/');
            filter.excludes(&RelPath::new(path).unwrap(), is_dir)
        };
        for path in *out {
            assert!(leaves_out(path), "{line}: {path} should be left out");
        }
        for path in *kept {
            assert!(!leaves_out(path), "{line}: {path} should be kept");
        }
    }
}

#[test]
fn a_day_begins_at_local_midnight() {
    let day = jiff::civil::date(2026, 1, 31).to_zoned(jiff::tz::TimeZone::system()).unwrap();
    let read = options("--older-than 2026-01-31").filter.older_than;
    assert_eq!(read, Some(day.timestamp().as_second()));
}

#[test]
fn contradicting_options_are_refused_with_a_message() {
    for (line, expected) in [
        ("--no-owner --chown 7", "sets the owner"),
        ("--preserve no-group --chown :7", "sets the group"),
        ("--preserve mode,tims", "unknown --preserve item `tims`"),
        ("--min-size 2K --max-size 1K", "--min-size is above --max-size"),
        ("--newer-than 1d --older-than 2d", "every file would be excluded"),
        ("--manifest m --verify none", "computes no digests"),
        ("--delete --trash /dst", "is DST itself"),
        ("--delete --trash /other/x", "does not lie below DST"),
        ("--delete --trash ../x", "must not contain `..`"),
        ("--exclude !x", "both includes and excludes"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let e = read_options(&words).unwrap_err();
        assert_eq!(e.exit.code(), 2, "{line}");
        assert!(e.render().contains(expected), "{line}: {}", e.render());
    }
    let long = "x".repeat(MAX_FILTER_BYTES + 1);
    let e = read_options(&["--exclude", &long]).unwrap_err();
    assert!(e.exit.code() == 2 && e.render().contains("at most"), "{}", e.render().len());
    let e = read_options(&["--exclude", "a", "--exclude", "a{b"]).unwrap_err();
    assert!(e.render().contains("filter rule 2 (`a{b`)"), "{}", e.render());
}

#[test]
fn options_that_need_or_forbid_each_other_are_wrong_usage() {
    for line in [
        "--size-only -c",
        "--existing --ignore-existing",
        "--max-delete 3",
        "--max-delete-percent 3",
        "--trash x",
        "--delete-excluded",
        "--allow-empty-source",
        "--allow-new-source-fs",
        "--delete --max-delete-percent 101",
        "--delete --files-from x",
        "--recursive",
        "-n --manifest x",
        "-n --digests",
        "--links follow",
        "--verify twice",
        "--chown root",
        "--chown 1:",
        "--chown 4294967295",
        "--modify-window soon",
        "--newer-than yesterday",
        "--min-size big",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let e = parse(&words).err().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(e.exit_code(), 2, "{line}");
    }
}

#[test]
fn only_dry_run_and_record_options_can_be_added_to_a_request_file() {
    let request = SyncOptions { update: true, ..SyncOptions::default() };
    let onto = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        parse(&words).unwrap().merge_into_request(request.clone())
    };
    let both = onto("-n -i").unwrap();
    assert_eq!(both, SyncOptions { dry_run: true, record: true, ..request.clone() });
    let e = onto("--delete").unwrap_err();
    assert!(e.exit.code() == 2 && e.render().contains("under `options`"), "{}", e.render());
}

#[test]
fn options_survive_the_round_trip_through_the_command_line() {
    for line in [
        "",
        "--preserve none --links copy --punch-zeros --strict-metadata",
        "--preserve mode,owner --chown 7",
        "--chown :8 -c -u --modify-window 1500ms",
        "--size-only --ignore-existing -W",
        "--existing --min-size 5 --max-size 6 --newer-than 1969-01-01T00:00:00Z --older-than 9d",
        "-n --record --verify readback",
        "--links skip --verify none",
        "--digests",
        "--delete --max-delete 3 --max-delete-percent 0 --trash t --delete-excluded --allow-empty-source --allow-new-source-fs",
        "--exclude #a --include *.c --exclude it's",
    ] {
        let before = options(line);
        let spelled = to_cli_args(&before, None);
        let output = std::process::Command::new("bash")
            .args(["-c", &format!("printf '%s\\0'{spelled}")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
        assert_eq!(read_options(&words).unwrap(), before, "{spelled}");
    }
}

#[test]
fn rules_of_a_file_are_repeated_by_the_name_of_the_file() {
    let file = tempfile::NamedTempFile::with_prefix("a b").unwrap();
    std::fs::write(file.path(), "x\ny\n").unwrap();
    let path = file.path().to_str().unwrap();
    let args = parse(&["--exclude-from", path, "--include", "z", "-i", "--manifest", "m"]).unwrap();
    let read = args.to_sync_options(&[], false, now()).unwrap();
    assert_eq!(
        to_cli_args(&read, Some(&args)),
        format!(" --exclude-from '{path}' --include z --itemize --manifest m")
    );
}
