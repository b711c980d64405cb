//! `ctl master` and `ctl master status`.

use super::args::{MasterArgs, MasterCommand, OutputFormat};
use super::error::CliError;
use super::exit::Exit;
use super::table_layout::terminal_width;
use super::{Context, config, console, service, tables};
use crate::client::{ClientError, Reply};
use crate::config::{Env, Loaded, MasterConfig, StoreConfig, load_master};
use crate::master;
use crate::util::repeated_warnings;
use crate::wire::leader::{MasterRole, Readiness, ReadinessStatus};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Serves until a signal.
///
/// # Errors
/// A configuration that can't be used (78), or what ended the master.
pub(super) async fn run(ctx: &Context, args: MasterArgs) -> Result<Exit, CliError> {
    if let Some(MasterCommand::Status) = args.command {
        return show_status(ctx).await;
    }
    let hangups = service::catch_sighup()?;
    let env = Env::from_process();
    if args.check
        && let Some(file) = &args.config
    {
        return config::print_report(ctx, &crate::config::check_file(file, None, &env));
    }
    let loaded = load_master(args.config.as_deref(), &env)?;
    if args.check {
        return Ok(Exit::Ok);
    }
    let config = apply_overrides(loaded.config, &args);
    let verbose = ctx.global.verbose;
    service::init_process(&config.log, &args.log, verbose, &loaded.warnings)?;
    let shutdown = service::cancel_on_signals();
    let (tell, config) = watch::channel(config);
    let load = || {
        let Some(file) = &args.config else {
            return Err(CliError::new("this master was started without --config FILE"));
        };
        let Loaded { config, warnings } = load_master(Some(file), &env)?;
        Ok(Loaded { config: apply_overrides(config, &args), warnings })
    };
    tokio::select! {
        ended = master::run(config, shutdown) => ended.map_err(|e| service::service_error(&e))?,
        never = service::reload_on_sighup(hangups, (&args.log, verbose), load, tell) => match never {},
    }
    repeated_warnings::log_all_counts();
    Ok(Exit::Ok)
}

/// What one master says of itself.
pub(super) type MasterStatus = (String, Result<Reply<Readiness>, ClientError>);

/// Shows all masters.
async fn show_status(ctx: &Context) -> Result<Exit, CliError> {
    let masters = ctx.new_client()?.fetch_each_readiness().await;
    match ctx.global.output {
        OutputFormat::Json => {
            let list: Vec<Value> = masters.iter().map(status_document).collect();
            console::write_data(Value::from(list).to_string().as_bytes())?;
        }
        OutputFormat::Table if ctx.global.quiet => {
            let names =
                masters.iter().filter(|m| is_ready_leader(m)).map(|(url, _)| format!("{url}\n"));
            console::write_data(names.collect::<String>().as_bytes())?;
        }
        OutputFormat::Table => console::write_data(
            tables::master_table(&masters, terminal_width(), Timestamp::now()).as_bytes(),
        )?,
    }
    if masters.iter().any(is_ready_leader) {
        return Ok(Exit::Ok);
    }
    Err(CliError::new("none of these masters leads")
        .with_hint("name all of them: --master-url A,B,C; their logs have the reason")
        .with_exit(Exit::Unreachable))
}

/// Whether a master leads and can decide.
fn is_ready_leader((_, told): &MasterStatus) -> bool {
    told.as_ref().is_ok_and(|t| t.role == MasterRole::Leader && t.status == ReadinessStatus::Ready)
}

/// What a master says, with where it was asked.
fn status_document((url, told): &MasterStatus) -> Value {
    match told {
        Ok(told) => {
            let mut all = json!({"url": url, "reachable": true});
            let said: Value = serde_json::from_slice(&told.body).unwrap_or_default();
            if let (Some(all), Value::Object(said)) = (all.as_object_mut(), said) {
                all.extend(said);
            }
            all
        }
        Err(e) => json!({"url": url, "reachable": false, "error": e.to_string()}),
    }
}

/// What the command line says goes before the file.
fn apply_overrides(mut config: MasterConfig, args: &MasterArgs) -> MasterConfig {
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(host) = args.host {
        config.listen.set_ip(host);
    }
    if let Some(port) = args.port {
        config.listen.set_port(port);
    }
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
        assert_eq!(of("ctl master").listen.to_string(), "127.0.0.1:8888");
        assert_eq!(of("ctl master --listen [::1]:5").listen.to_string(), "[::1]:5");
        assert_eq!(of("ctl master --port 0").listen.to_string(), "127.0.0.1:0");
        assert_eq!(of("ctl master --host 0.0.0.0").listen.to_string(), "0.0.0.0:8888");
        let moved = of("ctl master --data-dir /d");
        assert_eq!(moved.store, StoreConfig::Embedded { dir: "/d".into() });
        assert_eq!(moved.data_dir, std::path::PathBuf::from("/d"));
    }
}
