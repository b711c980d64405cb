//! What `ctl master`, `ctl agent` and `ctl copy` share: logging, signals, reading the configuration again, and how a service's end
//! becomes an exit code.

use super::args::{LogArgs, LogLineFormat};
use super::console;
use super::error::CliError;
use super::exit::Exit;
use crate::config::{ConfigProblem, Loaded, LogConfig, LogFormat, Reload, ReloadReport};
use crate::store::StoreError;
use crate::util::{logging, rlimits, shutdown};
use std::convert::Infallible;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Fewer files than these that may be open, and nothing that moves data gets anywhere: it would try again
/// and again.
const MIN_OPEN_FILES: u64 = 64;

/// Prepares the process of a service: logging as `config` says, after what the command line says of
/// it, with what the configuration's reader found odd; and as many descriptors as it may have.
///
/// # Errors
/// A level that does not exist, a log file that cannot be opened, or too few descriptors.
pub(super) fn init_process(
    config: &LogConfig,
    args: &LogArgs,
    verbose: u8,
    warnings: &[ConfigProblem],
) -> Result<(), CliError> {
    let json = match args.log_format {
        Some(format) => format == LogLineFormat::Json,
        None => config.format == LogFormat::Json,
    };
    let exit = if config.file.is_some() { Exit::Config } else { Exit::Usage };
    logging::init_logging(
        Some(effective_log_level(config, args, verbose)),
        json,
        config.file.as_deref(),
    )
    .map_err(|e| CliError::new(format!("{e:#}")).with_exit(exit))?;
    raise_open_file_limit()?;
    for warning in warnings {
        tracing::warn!("{}", console::sanitize(&warning.to_string()));
    }
    Ok(())
}

/// Lets this process have as many files open as it may.
///
/// # Errors
/// They are too few.
pub(super) fn raise_open_file_limit() -> Result<(), CliError> {
    let files = rlimits::raise_open_files_limit();
    tracing::debug!(?files, "descriptors that may be open");
    let Some(files) = files.filter(|files| *files < MIN_OPEN_FILES) else { return Ok(()) };
    let message = format!(
        "this process may have {files} open files at a time, and needs {MIN_OPEN_FILES} at the very least"
    );
    let hint = "raise its hard limit: `ulimit -Hn`, or LimitNOFILE= of its unit";
    Err(CliError::new(message).with_exit(Exit::Config).with_hint(hint))
}

/// The level that counts: what the command line says goes before the configuration.
fn effective_log_level<'a>(config: &'a LogConfig, args: &'a LogArgs, verbose: u8) -> &'a str {
    match (&args.log_level, verbose) {
        (Some(level), _) => level.as_str(),
        (None, 0) => config.level.as_str(),
        (None, 1) => "debug",
        (None, _) => "trace",
    }
}

/// Catches SIGHUP from now on, which would end the process.
///
/// # Errors
/// The system takes no more handlers.
pub(super) fn catch_sighup() -> Result<Signal, CliError> {
    signal(SignalKind::hangup())
        .map_err(|e| CliError::new(format!("cannot catch signals (SIGHUP): {e}")))
}

/// Reads the configuration again at each SIGHUP, and gives what can be applied to `tell`. Where it is bad the old values
/// stay. The log file is opened again in any case, so that it can be moved away.
pub(super) async fn reload_on_sighup<C: Reload>(
    mut hangups: Signal,
    (args, verbose): (&LogArgs, u8),
    load: impl Fn() -> Result<Loaded<C>, CliError>,
    tell: watch::Sender<C>,
) -> Infallible {
    loop {
        if hangups.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let mut loaded = load();
        let known = tell.borrow().log().clone();
        let file = loaded.as_ref().map_or(&known.file, |loaded| &loaded.config.log().file);
        let opened = logging::set_log_file(file.as_deref());
        let mut reloaded = ReloadReport::default();
        if let Ok(loaded) = &mut loaded {
            if opened.is_err() {
                // It stays as it was, so it is none of what changed.
                loaded.config.log_mut().file = known.file;
            }
            tell.send_modify(|config| reloaded = config.reload(loaded.config.clone()));
        }
        let log = tell.borrow().log().clone();
        let logging = [opened, logging::set_log_level(effective_log_level(&log, args, verbose))];
        match &loaded {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    tracing::warn!("{}", console::sanitize(&warning.to_string()));
                }
                let applied = match reloaded.applied.as_slice() {
                    [] => "nothing".to_owned(),
                    keys => keys.join(", "),
                };
                tracing::info!("SIGHUP: the configuration was read again; changed: {applied}");
            }
            Err(failure) => {
                for note in &failure.notes {
                    tracing::error!("{}", console::sanitize(note));
                }
                let why = console::sanitize(&failure.message);
                tracing::error!("SIGHUP: {why}: nothing is changed, the old values stay");
            }
        }
        if !reloaded.needs_restart.is_empty() {
            let keys = reloaded.needs_restart.join(", ");
            tracing::warn!("SIGHUP: these settings need a restart, their old values stay: {keys}");
        }
        for e in logging.into_iter().filter_map(Result::err) {
            tracing::error!("SIGHUP: {e:#}: logging continues as before");
        }
    }
}

/// A token that the first SIGINT or SIGTERM cancels; the second ends the process.
pub(super) fn cancel_on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let listening = token.clone();
    tokio::spawn(async move {
        if let Err(error) = shutdown::cancel_on_signals(listening).await {
            tracing::error!(%error, "signals can't be caught: they end the process at once");
        }
    });
    token
}

/// Why a service ended. What only an operator can change ends with the code of a bad configuration,
/// so that a service manager does not start it again and again.
pub(super) fn service_error(e: &anyhow::Error) -> CliError {
    let unusable = e
        .chain()
        .filter_map(|cause| cause.downcast_ref::<StoreError>())
        .any(|cause| matches!(cause, StoreError::Unusable(_)));
    let failure = CliError::new(format!("{e:#}"));
    if unusable { failure.with_exit(Exit::Config) } else { failure }
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
    }
}
