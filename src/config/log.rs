//! The settings of the log.

use super::reader::{Diagnostics, Fields};
use crate::util::logging::parse_level;
use std::path::PathBuf;

/// The settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,longhaul::store=debug`.
    pub level: String,
    /// The format of a line.
    pub format: LogFormat,
    /// The log file; `None`: standard error.
    pub file: Option<PathBuf>,
}

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
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
    /// Reads a `log:` block; missing keys keep their values.
    pub(super) fn read(&mut self, fields: &Fields<'_>) {
        fields.set("level", &mut self.level, |i| i.parse("a log level", parse_level));
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        fields.set("format", &mut self.format, |i| i.word(&formats));
        fields.set("file", &mut self.file, |i| i.absolute_path().map(Some));
    }

    /// The environment overrides the file.
    pub(super) fn apply_env(
        &mut self,
        variable: &str,
        value: Option<&str>,
        diagnostics: &Diagnostics,
    ) {
        match value.map(parse_level) {
            None => {}
            Some(Ok(level)) => self.level = level,
            Some(Err(message)) => diagnostics.env_error(variable, message),
        }
    }
}
