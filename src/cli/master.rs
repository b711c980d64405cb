//! `ctl master`.

use super::args::MasterArgs;
use super::exit::Exit;
use super::failure::Failure;
use super::{Context, config, service};
use crate::config::{Env, MasterConfig, StoreConfig, load_master};
use crate::master;

/// Serves until a signal.
///
/// # Errors
/// A configuration that can't be used (78), or what ended the master.
pub(super) async fn run(ctx: &Context, args: MasterArgs) -> Result<Exit, Failure> {
    let env = Env::from_process();
    if args.check
        && let Some(file) = &args.config
    {
        return config::report(ctx, &crate::config::check(file, None, &env));
    }
    let loaded = load_master(args.config.as_deref(), &env)?;
    if args.check {
        return Ok(Exit::Ok);
    }
    let config = overlay(loaded.config, &args);
    service::prepare(&config.log, &args.log, ctx.global.verbose, &loaded.warnings)?;
    let shutdown = service::stop_on_signals();
    master::run(config, shutdown).await.map_err(|e| service::failed(&e))?;
    Ok(Exit::Ok)
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
            overlay(load_master(None, &Env::none()).unwrap().config, &args)
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
