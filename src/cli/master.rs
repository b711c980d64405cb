//! `ctl master` and `ctl master status`.

use super::args::{MasterArgs, MasterCommand};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::table_layout::terminal_width;
use super::{Context, config, service, tables};
use crate::client::MasterStatus;
use crate::config::{Env, Loaded, MasterConfig, StoreConfig, load_master};
use crate::wire::leader::{MasterRole, ReadinessStatus};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Runs the master until a signal.
///
/// # Errors
/// The configuration can't be used, or the master ended with an error.
pub(super) async fn run(ctx: &Context, args: MasterArgs) -> Result<Exit> {
    if let Some(MasterCommand::Status) = args.command {
        return show_status(ctx).await;
    }
    let hangups = service::catch_sighup()?;
    let env = Env::from_process();
    if let Some(file) = args.config.as_ref().filter(|_| args.check) {
        return config::print_report(ctx, &crate::config::check_file(file, None, &env, None));
    }
    let load = || {
        let Loaded { config, warnings } = load_master(args.config.as_deref(), &env)?;
        Ok(Loaded { config: apply_overrides(config, &args), warnings })
    };
    let loaded = load()?;
    if args.check {
        return Ok(Exit::Ok);
    }
    let reload = || match args.config {
        Some(_) => load(),
        None => Err(CliError::new("this master was started without --config FILE")),
    };
    service::run(ctx, &args.log, hangups, loaded, reload, crate::master::run).await
}

async fn show_status(ctx: &Context) -> Result<Exit> {
    let masters = ctx.new_client()?.fetch_each_readiness().await;
    let documents = Value::from_iter(masters.iter().map(status_document));
    let leaders = masters.iter().filter(|master| is_ready_leader(master));
    let leaders: String = leaders.map(|master| format!("{}\n", master.url)).collect();
    let table = tables::master_table(&masters, terminal_width(), Timestamp::now());
    ctx.print(documents.to_string().as_bytes(), &leaders, &table)?;
    if !leaders.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(CliError::new("none of these masters leads")
        .with_hint("name all of them: --master-url A,B,C; their logs have the reason")
        .with_exit(Exit::Unreachable))
}

fn is_ready_leader(master: &MasterStatus) -> bool {
    master.readiness.as_ref().is_ok_and(|readiness| {
        readiness.role == MasterRole::Leader && readiness.status == ReadinessStatus::Ready
    })
}

/// The document of one master, with its URL.
fn status_document(master: &MasterStatus) -> Value {
    let url = &master.url;
    let readiness = match &master.readiness {
        Ok(readiness) => readiness,
        Err(e) => return json!({"url": url, "reachable": false, "error": e.to_string()}),
    };
    let mut document = json!({"url": url, "reachable": true});
    if let (Some(document), Ok(Value::Object(fields))) =
        (document.as_object_mut(), serde_json::from_slice(&readiness.body))
    {
        document.extend(fields);
    }
    document
}

/// The command line overrides the file.
fn apply_overrides(mut config: MasterConfig, args: &MasterArgs) -> MasterConfig {
    if !args.listen.is_empty() {
        config.listen.clone_from(&args.listen);
    }
    if args.host.is_some() || args.port.is_some() {
        config.listen.truncate(1);
    }
    for address in &mut config.listen {
        address.set_ip(args.host.unwrap_or(address.ip()));
        address.set_port(args.port.unwrap_or(address.port()));
    }
    config.insecure |= args.insecure;
    config.replace_authority |= args.replace_authority;
    if let Some(dir) = &args.data_dir {
        config.data_dir.clone_from(dir);
        if let StoreConfig::Embedded { dir: store } = &mut config.store {
            store.clone_from(dir);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;

    #[test]
    fn the_command_line_overrides_the_file() {
        let of = |line: &str| {
            let Command::Master(args) = Cli::try_parse_from(line.split(' ')).unwrap().command
            else {
                panic!("{line}");
            };
            apply_overrides(load_master(None, &Env::empty()).unwrap().config, &args)
        };
        let listen = |line: &str| {
            let addresses = of(line).listen;
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(listen("ctl master"), "127.0.0.1:8888");
        assert_eq!(listen("ctl master --listen [::1]:5"), "[::1]:5");
        assert_eq!(listen("ctl master --listen [::1]:5 --listen 10.0.0.1:6"), "[::1]:5 10.0.0.1:6");
        assert_eq!(listen("ctl master --port 0"), "127.0.0.1:0");
        assert_eq!(listen("ctl master --host 0.0.0.0"), "0.0.0.0:8888");
        assert!(of("ctl master --insecure").insecure && !of("ctl master").insecure);
        assert!(of("ctl master --replace-authority").replace_authority);
        let moved = of("ctl master --data-dir /d");
        assert_eq!(moved.store, StoreConfig::Embedded { dir: "/d".into() });
        assert_eq!(moved.data_dir, std::path::PathBuf::from("/d"));
    }
}
