//! Environment variables that set options. An option of the command line overrides its variable, and an empty variable
//! is ignored. The `env` feature of clap is not used: it lists options that were not typed in usage messages, and takes an
//! empty variable as a value.

use super::args::{AgentArgs, Cli, Command};
use super::error::{CliError, Result};
use crate::wire::path::escape_bytes;
use clap::parser::ValueSource;
use clap::{ArgMatches, ValueEnum};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Sets the options that have a variable and are not on the command line (`matches`).
///
/// # Errors
/// The value of a variable is not valid for its option.
pub(super) fn apply_env_vars(
    cli: &mut Cli,
    matches: &ArgMatches,
    var: impl Fn(&str) -> Option<OsString>,
) -> Result<()> {
    let var = |name: &str| var(name).filter(|value| !value.is_empty());
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if !typed("master_url")
        && let Some(urls) = read_text("CTL_MASTER_URL", &var)?
    {
        cli.global.master_url = urls.split(',').map(str::to_owned).collect();
    }
    cli.global.ca_file =
        cli.global.ca_file.take().or_else(|| var("CTL_CA_FILE").map(PathBuf::from));
    if !typed("output") {
        cli.global.output = read_choice("CTL_OUTPUT", &var)?.unwrap_or(cli.global.output);
    }
    if !typed("progress") {
        cli.global.progress = read_choice("CTL_PROGRESS", &var)?.unwrap_or(cli.global.progress);
    }
    let config = var("CTL_CONFIG").map(PathBuf::from);
    let log = match &mut cli.command {
        Command::Master(args) => {
            args.config = args.config.take().or(config);
            &mut args.log
        }
        Command::Agent(AgentArgs { config: file, worker_id, log, .. }) => {
            *file = file.take().or(config);
            if worker_id.is_none()
                && let Some(id) = read_text("CTL_WORKER_ID", &var)?
            {
                let id =
                    id.parse().map_err(|rule| invalid_value_error("CTL_WORKER_ID", &id, &rule))?;
                *worker_id = Some(id);
            }
            log
        }
        Command::Audit(command) => {
            let log = command.log_args_mut();
            if log.data_dir.is_none() {
                log.config = log.config.take().or(config);
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    log.log_format = log.log_format.or(read_choice("CTL_LOG_FORMAT", &var)?);
    Ok(())
}

fn invalid_value_error(name: &str, value: &str, rule: &dyn std::fmt::Display) -> CliError {
    CliError::usage(format!("{name} `{}` {rule}", escape_bytes(value.as_bytes())))
        .with_hint(format!("set another value, or none: unset {name}"))
}

fn read_text(name: &str, var: &impl Fn(&str) -> Option<OsString>) -> Result<Option<String>> {
    let Some(value) = var(name) else { return Ok(None) };
    value.into_string().map(Some).map_err(|value| {
        CliError::usage(format!("{name} `{}` is not UTF-8", escape_bytes(value.as_bytes())))
    })
}

fn read_choice<T: ValueEnum>(
    name: &str,
    var: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<T>> {
    let Some(value) = read_text(name, var)? else { return Ok(None) };
    T::from_str(&value, false).map(Some).map_err(|_| {
        let all = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let all: Vec<String> = all.map(|value| value.get_name().to_owned()).collect();
        invalid_value_error(name, &value, &format!("must be one of {}", all.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::args::{OutputFormat, ProgressMode};
    use super::*;
    use crate::config::LogFormat;
    use clap::{CommandFactory, FromArgMatches};

    fn of(line: &str, variables: &[(&str, &str)]) -> Result<Cli> {
        let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let mut cli = Cli::from_arg_matches(&matches).unwrap();
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        apply_env_vars(&mut cli, &matches, |name| find(name).map(|(_, value)| value.into()))?;
        Ok(cli)
    }

    const ALL: [&str; 6] = [
        "CTL_MASTER_URL",
        "CTL_OUTPUT",
        "CTL_PROGRESS",
        "CTL_CONFIG",
        "CTL_WORKER_ID",
        "CTL_LOG_FORMAT",
    ];

    #[test]
    fn a_variable_sets_its_option_unless_the_option_is_given_or_the_variable_is_empty() {
        let set = [
            ("CTL_MASTER_URL", "a,b"),
            ("CTL_OUTPUT", "json"),
            ("CTL_PROGRESS", "none"),
            ("CTL_CONFIG", "c.yml"),
            ("CTL_WORKER_ID", "w"),
            ("CTL_LOG_FORMAT", "json"),
        ];
        let agent = |cli: Cli| match cli.command {
            Command::Agent(args) => (args.config, args.worker_id, args.log.log_format),
            other => panic!("{other:?}"),
        };
        let cli = of("ctl agent", &set).unwrap();
        assert_eq!(cli.global.master_url, ["a", "b"]);
        assert_eq!(
            (cli.global.output, cli.global.progress),
            (OutputFormat::Json, ProgressMode::None)
        );
        let worker = |id: &str| Some(id.parse().unwrap());
        assert_eq!(agent(cli), (Some("c.yml".into()), worker("w"), Some(LogFormat::Json)));
        let typed = "ctl agent -o table --progress auto --master-url x --config d.yml --worker-id v \
                     --log-format text";
        let cli = of(typed, &set).unwrap();
        assert_eq!(cli.global.master_url, ["x"]);
        assert_eq!(
            (cli.global.output, cli.global.progress),
            (OutputFormat::Table, ProgressMode::Auto)
        );
        assert_eq!(agent(cli), (Some("d.yml".into()), worker("v"), Some(LogFormat::Text)));
        let cli = of("ctl agent", &ALL.map(|name| (name, ""))).unwrap();
        assert!(cli.global.master_url.is_empty());
        assert_eq!(
            (cli.global.output, cli.global.progress),
            (OutputFormat::Table, ProgressMode::Auto)
        );
        assert_eq!(agent(cli), (None, None, None));
    }

    #[test]
    fn an_invalid_variable_is_reported_with_the_valid_values() {
        for (name, part) in [
            ("CTL_OUTPUT", "must be one of table, wide, json"),
            ("CTL_PROGRESS", "must be one of auto, tty, plain, none"),
            ("CTL_WORKER_ID", "must be 1 to 128 characters"),
            ("CTL_LOG_FORMAT", "must be one of text, json"),
        ] {
            let failure = of("ctl agent", &[(name, "x y")]).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(failure.message.contains(&format!("{name} `x y` {part}")), "{failure:?}");
        }
    }
}
