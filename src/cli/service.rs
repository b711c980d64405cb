//! The common part of `ctl master`, `ctl agent` and `ctl copy`: logging, signals, reload of the configuration, and the
//! exit code of a service.

use super::Context;
use super::args::LogArgs;
use super::error::{CliError, Result};
use super::exit::Exit;
use super::sanitize::sanitize;
use crate::config::{ConfigProblem, Loaded, LogConfig, LogFormat, Reload, ReloadReport};
use crate::identity::{IdentityError, SealingError};
use crate::scheduler::{KeyError, LoadError};
use crate::store::StoreError;
use crate::util::{core_dumps, logging, repeated_warnings, rlimits, shutdown};
use std::convert::Infallible;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// With fewer descriptors no transfer can succeed, so all of them would be retried without end.
const MIN_OPEN_FILES: u64 = 64;

/// Runs a service until SIGINT, SIGTERM or an error. `load` reads its configuration again at each of the `hangups`.
///
/// # Errors
/// Those of [`init_process`], or of the service.
pub(super) async fn run<C: Reload, F: Future<Output = anyhow::Result<()>>>(
    ctx: &Context,
    log_args: &LogArgs,
    hangups: Signal,
    loaded: Loaded<C>,
    load: impl Fn() -> Result<Loaded<C>>,
    service: impl FnOnce(watch::Receiver<C>, CancellationToken) -> F,
) -> Result<Exit> {
    let verbose = ctx.global.verbose;
    init_process(loaded.config.log(), log_args, verbose, &loaded.warnings)?;
    if let Err(error) = core_dumps::disable() {
        tracing::warn!(%error, "core dumps of this process cannot be disabled: they would contain keys");
    }
    let shutdown = cancel_on_signals();
    let (sender, config) = watch::channel(loaded.config);
    let level = |config: &LogConfig| effective_log_level(config, log_args, verbose).to_owned();
    tokio::select! {
        ended = service(config, shutdown) => ended.map_err(|e| service_error(&e))?,
        never = reload_on_sighup(hangups, level, load, sender) => match never {},
    }
    repeated_warnings::log_all_counts();
    Ok(Exit::Ok)
}

/// Sets up logging as `config` and the command line say, logs the warnings about the configuration, and raises the limit
/// of open files.
///
/// # Errors
/// The log level is not valid, the log file can't be opened, or too few files can be open.
pub(super) fn init_process(
    config: &LogConfig,
    args: &LogArgs,
    verbose: u8,
    warnings: &[ConfigProblem],
) -> Result<()> {
    let json = args.log_format.unwrap_or(config.format) == LogFormat::Json;
    let exit = if config.file.is_some() { Exit::Config } else { Exit::Usage };
    let level = effective_log_level(config, args, verbose);
    logging::init_logging(Some(level), json, config.file.as_deref())
        .map_err(|e| CliError::new(format!("{e:#}")).with_exit(exit))?;
    raise_open_file_limit()?;
    log_config_warnings(warnings);
    Ok(())
}

fn log_config_warnings(warnings: &[ConfigProblem]) {
    for warning in warnings {
        tracing::warn!("{}", sanitize(&warning.to_string()));
    }
}

/// Raises the limit of open files to its hard limit.
///
/// # Errors
/// The limit is too low.
pub(super) fn raise_open_file_limit() -> Result<()> {
    let files = rlimits::raise_open_files_limit();
    tracing::debug!(?files, "limit of open files");
    match files {
        Some(files) if files < MIN_OPEN_FILES => Err(CliError::new(format!(
            "this process may have {files} open files at a time, and needs at least {MIN_OPEN_FILES}"
        ))
        .with_exit(Exit::Config)
        .with_hint("raise its hard limit: `ulimit -Hn`, or LimitNOFILE= of its unit")),
        _ => Ok(()),
    }
}

/// The command line overrides the configuration.
fn effective_log_level<'a>(config: &'a LogConfig, args: &'a LogArgs, verbose: u8) -> &'a str {
    match (&args.log_level, verbose) {
        (Some(level), _) => level.as_str(),
        (None, 0) => config.level.as_str(),
        (None, 1) => "debug",
        (None, _) => "trace",
    }
}

/// From now on SIGHUP does not end the process.
///
/// # Errors
/// The signal handler can't be installed.
pub(super) fn catch_sighup() -> Result<Signal> {
    signal(SignalKind::hangup())
        .map_err(|e| CliError::new(format!("cannot catch signals (SIGHUP): {e}")))
}

/// Reads the configuration again at each SIGHUP and sends the settings that can be changed. If it is not valid, nothing is
/// changed. The log file is opened again in any case, so that it can be rotated.
async fn reload_on_sighup<C: Reload>(
    mut hangups: Signal,
    level: impl Fn(&LogConfig) -> String,
    load: impl Fn() -> Result<Loaded<C>>,
    sender: watch::Sender<C>,
) -> Infallible {
    loop {
        if hangups.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let mut loaded = load();
        let current = sender.borrow().log().clone();
        let file = loaded.as_ref().map_or(&current.file, |loaded| &loaded.config.log().file);
        let reopened = logging::set_log_file(file.as_deref());
        let mut report = ReloadReport::default();
        if let Ok(loaded) = &mut loaded {
            if reopened.is_err() {
                // The old file stays in use, so it is not reported as changed.
                loaded.config.log_mut().file = current.file;
            }
            sender.send_modify(|config| report = config.reload(loaded.config.clone()));
        }
        let level_set = logging::set_log_level(&level(sender.borrow().log()));
        match &loaded {
            Ok(loaded) => {
                log_config_warnings(&loaded.warnings);
                let applied = match report.applied.as_slice() {
                    [] => "nothing".to_owned(),
                    keys => keys.join(", "),
                };
                tracing::info!("SIGHUP: the configuration was read again; changed: {applied}");
            }
            Err(error) => {
                for note in &error.notes {
                    tracing::error!("{}", sanitize(note));
                }
                let reason = sanitize(&error.message);
                tracing::error!("SIGHUP: {reason}: nothing is changed, the old values stay");
            }
        }
        if !report.needs_restart.is_empty() {
            let keys = report.needs_restart.join(", ");
            tracing::warn!("SIGHUP: these settings need a restart, their old values stay: {keys}");
        }
        for e in [reopened, level_set].into_iter().filter_map(Result::err) {
            tracing::error!("SIGHUP: {e:#}: logging continues as before");
        }
    }
}

/// A token that the first SIGINT or SIGTERM cancels; the second ends the process.
fn cancel_on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let canceller = token.clone();
    tokio::spawn(async move {
        if let Err(error) = shutdown::cancel_on_signals(canceller).await {
            tracing::error!(%error, "signals can't be caught: they end the process at once");
        }
    });
    token
}

/// Why a service ended. A store, or an identity, that only an operator can repair ends with the code of an invalid configuration, so that
/// a service manager does not restart the service without end.
pub(super) fn service_error(e: &anyhow::Error) -> CliError {
    let is_unusable = e.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(StoreError::Unusable(_)))
            || cause.is::<IdentityError>()
            || cause.is::<SealingError>()
            || matches!(cause.downcast_ref(), Some(LoadError::Keys(KeyError::Sealing(_))))
    });
    let exit = if is_unusable { Exit::Config } else { Exit::Error };
    CliError::new(format!("{e:#}")).with_exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn an_unusable_store_ends_with_the_configuration_exit_code() {
        let of = |e: StoreError| {
            service_error(&Err::<(), _>(e).context("open the store").unwrap_err()).exit.code()
        };
        assert_eq!(of(StoreError::Unusable("maxmemory-policy".into())), 78);
        assert_eq!(of(StoreError::Unavailable("refused".into())), 1);
        let sealed = service_error(&anyhow::Error::new(LoadError::from(KeyError::from(
            SealingError::Damaged,
        ))));
        assert_eq!(sealed.exit.code(), 78);
        assert_eq!(service_error(&SealingError::Damaged.into()).exit.code(), 78);
    }
}
