//! `ctl agent`.

use super::args::{AgentArgs, GlobalArgs};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::{Context, config, service};
use crate::client::parse_urls;
use crate::config::agent::SandboxMode;
use crate::config::{AgentConfig, Env, Loaded, Severity, check_file, load_agent};
use crate::fs::sandbox::{self, Confinement, SandboxPaths};
use crate::util::private_files;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

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

/// Confines this process as the agent's file says. Called before there are other threads.
///
/// # Errors
/// The kernel cannot do it, and the file requires it; or it refuses a rule.
pub(super) fn confine(ctx: &Context, args: &AgentArgs) -> Result<()> {
    let Some(file) = args.config.as_ref().filter(|_| !args.check) else { return Ok(()) };
    let worker_id = args.worker_id.as_ref().map(|id| id.as_str());
    // Whatever is wrong with the file is reported when it is loaded again.
    let Ok(loaded) = load_agent(file, worker_id, &Env::from_process()) else { return Ok(()) };
    let mode = loaded.config.sandbox;
    if mode == SandboxMode::Off {
        return Ok(());
    }
    let config = apply_overrides(loaded.config, args, &ctx.global)?;
    let failed = |e: String| {
        CliError::new(format!("cannot confine the agent: {e}"))
            .with_exit(Exit::Config)
            .with_hint("correct that, or set `sandbox: off` in its file")
    };
    sandbox::confine(&sandbox_paths(&config, file)).map_err(|e| failed(e.to_string()))?;
    match (mode, sandbox::confinement()) {
        (SandboxMode::Required, Some(Confinement::Unsupported { reason })) => Err(failed(format!(
            "its file has `sandbox: required`, and this kernel cannot do it: {reason}"
        ))),
        _ => Ok(()),
    }
}

/// What the agent uses of this host.
fn sandbox_paths(config: &AgentConfig, file: &Path) -> SandboxPaths {
    let parent = |file: &Path| file.parent().map(Path::to_owned);
    let storage = config
        .storage_paths
        .iter()
        .map(|path| PathBuf::from(OsStr::from_bytes(path.local_path.as_bytes())));
    if let Some(dir) = &config.data_dir {
        // The agent reports why it has none, if that fails.
        let _ = private_files::create_dir(dir);
    }
    // Files are replaced by others of the same name: the rule is on the directory.
    let named = [Some(file), config.ca_file.as_deref(), config.join_token_file.as_deref()];
    let named = named
        .into_iter()
        .flatten()
        .map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    SandboxPaths {
        full: storage.chain(config.data_dir.clone()).collect(),
        create: config.log.file.as_deref().and_then(parent).into_iter().collect(),
        read: named
            .filter_map(|file| parent(&file))
            .chain(SYSTEM_PATHS.iter().map(PathBuf::from))
            .collect(),
    }
}

/// What names of hosts are resolved by, and what the kernel reports.
const SYSTEM_PATHS: [&str; 12] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/nscd",
    "/dev/urandom",
    "/dev/null",
];

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
