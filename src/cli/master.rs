//! `ctl master` and `ctl master status`.

use super::args::{MasterArgs, MasterCommand, Output};
use super::exit::Exit;
use super::failure::Failure;
use super::layout::width;
use super::{Context, config, out, service, table};
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
pub(super) async fn run(ctx: &Context, args: MasterArgs) -> Result<Exit, Failure> {
    if let Some(MasterCommand::Status) = args.command {
        return status(ctx).await;
    }
    let hangups = service::catch_hangups()?;
    let env = Env::from_process();
    if args.check
        && let Some(file) = &args.config
    {
        return config::report(ctx, &crate::config::check_file(file, None, &env));
    }
    let loaded = load_master(args.config.as_deref(), &env)?;
    if args.check {
        return Ok(Exit::Ok);
    }
    let config = overlay(loaded.config, &args);
    let verbose = ctx.global.verbose;
    service::prepare(&config.log, &args.log, verbose, &loaded.warnings)?;
    let shutdown = service::stop_on_signals();
    let (tell, config) = watch::channel(config);
    let load = || {
        let Some(file) = &args.config else {
            return Err(Failure::new("this master was started without --config FILE"));
        };
        let Loaded { config, warnings } = load_master(Some(file), &env)?;
        Ok(Loaded { config: overlay(config, &args), warnings })
    };
    tokio::select! {
        ended = master::run(config, shutdown) => ended.map_err(|e| service::failed(&e))?,
        never = service::reload_on_hangup(hangups, (&args.log, verbose), load, tell) => match never {},
    }
    repeated_warnings::log_all_counts();
    Ok(Exit::Ok)
}

/// What one master says of itself.
pub(super) type Told = (String, Result<Reply<Readiness>, ClientError>);

/// Shows all masters.
async fn status(ctx: &Context) -> Result<Exit, Failure> {
    let masters = ctx.client()?.each_readiness().await;
    match ctx.global.output {
        Output::Json => {
            let list: Vec<Value> = masters.iter().map(document).collect();
            out::data(Value::from(list).to_string().as_bytes())?;
        }
        Output::Table if ctx.global.quiet => {
            let names = masters.iter().filter(|m| leads(m)).map(|(url, _)| format!("{url}\n"));
            out::data(names.collect::<String>().as_bytes())?;
        }
        Output::Table => out::data(table::masters(&masters, width(), Timestamp::now()).as_bytes())?,
    }
    if masters.iter().any(leads) {
        return Ok(Exit::Ok);
    }
    Err(Failure::new("none of these masters leads")
        .hinted("name all of them: --master-url A,B,C; their logs have the reason")
        .exits(Exit::Unreachable))
}

/// Whether a master leads and can decide.
fn leads((_, told): &Told) -> bool {
    told.as_ref().is_ok_and(|t| t.role == MasterRole::Leader && t.status == ReadinessStatus::Ready)
}

/// What a master says, with where it was asked.
fn document((url, told): &Told) -> Value {
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
fn overlay(mut config: MasterConfig, args: &MasterArgs) -> MasterConfig {
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
    fn the_command_line_goes_before_the_file() {
        let of = |line: &str| {
            let Command::Master(args) = Cli::try_parse_from(line.split(' ')).unwrap().command
            else {
                panic!("{line}");
            };
            overlay(load_master(None, &Env::empty()).unwrap().config, &args)
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
