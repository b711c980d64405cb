use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_command_tree_is_valid() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_commands_are_parsed() {
    for line in [
        "ctl master --config m.yml --listen 127.0.0.1:0 --data-dir d --check",
        "ctl master --config m.yml --host 0.0.0.0 --port 9000",
        "ctl agent --worker-id worker-a --config a.yml --master-url http://m:1 --heartbeat-interval 1s --drain-timeout 0",
        "ctl copy a b --chunk-size-mb 8 -q -o json --files-from - -0",
        "ctl sync submit /a /b --id run42 -w --timeout 2h --timeout-exit-code 9 --cancel-on-interrupt",
        "ctl sync status x y --state failed,CANCELLED",
        "ctl copy a b --error-on-no-transfer --delete --allow-new-source-fs",
        "ctl sync list",
        "ctl sync list --limit 20 --state failed",
        "ctl sync ls -o json",
        "ctl sync wait x --timeout 5m",
        "ctl sync cancel x y",
        "ctl sync set x y --bwlimit 100MiB/s",
        "ctl sync set x --bwlimit none",
        "ctl sync set x --add-destination gpu-9,@rack=3 --add-destination gpu-1* --bwlimit 1G",
        "ctl storage list -o wide",
        "ctl storages ls -q",
        "ctl storage show s-1a2b3c4d",
        "ctl copy a b --bwlimit 1.5G",
        "ctl sync delete x --ignore-not-found",
        "ctl sync files x --state failed,done,skipped,deleted -0",
        "ctl sync manifest x",
        "ctl sync verify x /mnt/x --ignore-extra",
        "ctl sync verify --manifest f /mnt/x -o json",
        "ctl copy a b -c -n -i --delete --exclude *.o --include x",
        "ctl sync submit -f r.yml -n -i -w",
        "ctl workers list --master-url a:1,b:2 --request-timeout 5",
        "ctl config check f.yml --worker-id w --strict",
        "ctl completion zsh",
        "ctl admin backup /var/backups/longhaul.db",
        "ctl version -o json",
        "ctl copy a b --delete --delete -n -n --bwlimit 1G --bwlimit 2G -q -q -o json -o table",
    ] {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn wrong_usage_is_exit_2() {
    for line in [
        "ctl sync submit /a",
        "ctl sync submit /a /b --chunk-size-mb 0",
        "ctl sync submit /a /b --chunk-size-mb 1025",
        "ctl sync submit /a /b -0",
        "ctl sync submit /a /b --bwlimit 10Gbit/s",
        "ctl sync set x",
        "ctl sync set x --add-destination @rack",
        "ctl sync set x --add-destination gpu-1,,gpu-2",
        "ctl storage show",
        "ctl sync set --bwlimit 1G",
        "ctl sync submit /a /b --id a/b",
        "ctl sync status --state DONE",
        "ctl sync status x --limit 1",
        "ctl sync list --limit 0",
        "ctl sync can x",
        "ctl workers list --request-timeout 0",
        "ctl sync files x --state lost",
        "ctl sync verify",
        "ctl sync verify a b c",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}
