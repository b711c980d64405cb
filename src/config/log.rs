//! What is logged, and how.

use super::master::read_dir;
use super::reader::{Diagnostics, Item, did_you_mean, quoted};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,longhaul::store=debug`.
    pub level: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
    /// The file that lines are added to; `None`: standard error.
    pub file: Option<PathBuf>,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), format: LogFormat::Text, file: None }
    }
}

impl LogConfig {
    /// Reads a `log:` block over what is already set.
    pub(super) fn read(&mut self, item: Option<Item<'_>>) {
        let Some(fields) = item.and_then(|item| item.fields()) else { return };
        if let Some(level) = fields.get("level").and_then(|i| i.parse("a log level", parse_level)) {
            self.level = level;
        }
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        if let Some(format) = fields.get("format").and_then(|i| i.word(&formats)) {
            self.format = format;
        }
        if let Some(file) = fields.get("file").and_then(|i| read_dir(&i)) {
            self.file = Some(file);
        }
        fields.finish();
    }

    /// What the environment says goes before the file.
    pub(super) fn apply_env(
        &mut self,
        variable: &str,
        value: Option<&str>,
        findings: &Diagnostics,
    ) {
        match value.map(parse_level) {
            None => {}
            Some(Ok(level)) => self.level = level,
            Some(Err(message)) => findings.env_error(variable, message),
        }
    }
}

/// One of the levels in any case, the names that other programs have for them, or filters.
fn parse_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let word = text.trim().to_ascii_lowercase();
    let known = match word.as_str() {
        "warning" => "warn",
        "critical" | "fatal" => "error",
        other => other,
    };
    if LEVELS.contains(&known) {
        return Ok(known.to_owned());
    }
    // A lone word that is no level would be taken for the name of a module, and silence the rest.
    if text.contains(['=', ',']) && EnvFilter::builder().parse(text).is_ok() {
        return Ok(text.trim().to_owned());
    }
    let hint = did_you_mean(&word, &LEVELS);
    Err(format!("{} is not a log level: use one of {}{hint}", quoted(text), LEVELS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_spelling() {
        for (text, level) in [
            ("DEBUG", "debug"),
            ("Warning", "warn"),
            ("CRITICAL", "error"),
            ("info,longhaul::store=debug", "info,longhaul::store=debug"),
        ] {
            assert_eq!(parse_level(text).as_deref(), Ok(level));
        }
        assert_eq!(
            parse_level("inof").unwrap_err(),
            "`inof` is not a log level: use one of off, error, warn, info, debug, trace — did you mean `info`?"
        );
        assert!(parse_level("longhaul=loud").is_err());
        assert!(parse_level("").is_err());
    }
}
