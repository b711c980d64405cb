//! `ctl agent`.

use super::args::{AgentArgs, GlobalArgs};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::{Context, config, service};
use crate::client::parse_urls;
use crate::config::{AgentConfig, Env, Loaded, Severity, check_file, load_agent};

/// Runs the agent until a signal.
///
/// # Errors
/// The configuration can't be used, or the agent ended with an error.
pub(super) async fn run(ctx: &Context, args: AgentArgs) -> Result<Exit> {
    let hangups = service::catch_sighup()?;
    let env = Env::from_process();
    let worker_id = args.worker_id.as_ref().map(|id| id.as_str());
    let Some(file) = &args.config else {
        return Err(CliError::usage("the agent's configuration is not given").with_hint(
            "name it with --config FILE or CTL_CONFIG, e.g. --config example_agent.yml",
        ));
    };
    if args.check {
        let report = check_file(file, worker_id, &env, Some(Severity::Error));
        return config::print_report(ctx, &report);
    }
    let load = || {
        let Loaded { config, warnings } = load_agent(file, worker_id, &env)?;
        Ok(Loaded { config: apply_overrides(config, &args, &ctx.global)?, warnings })
    };
    service::run(ctx, &args.log, hangups, load()?, load, crate::agent::run).await
}

/// The command line overrides the file.
fn apply_overrides(
    mut config: AgentConfig,
    args: &AgentArgs,
    global: &GlobalArgs,
) -> Result<AgentConfig> {
    config.ca_file = global.ca_file.clone().or(config.ca_file);
    if !global.master_url.is_empty() {
        config.master_urls = parse_urls(&global.master_url)?;
    }
    config.join_token_file = args.join_token_file.clone().or(config.join_token_file);
    if let Some(interval) = args.heartbeat_interval {
        config.heartbeat_interval = interval;
    }
    if let Some(timeout) = args.drain_timeout {
        config.drain_timeout = timeout;
    }
    Ok(config)
}
