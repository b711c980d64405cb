//! The log of the program, on standard error or in a file: one line per event, times in UTC. Level and file can be
//! changed while it runs.

mod json_format;

use crate::util::suggest::closest_match;
use crate::wire::path::quote;
use anyhow::Context as _;
use json_format::JsonFormat;
use parking_lot::RwLock;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
/// The log file; `None`: standard error.
static LOG_FILE: RwLock<Option<File>> = RwLock::new(None);

/// Starts logging to `file`, or to standard error. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`
/// (the last two only for Longhaul; libraries remain at `info`), or a list of directives such as
/// `info,longhaul::store=trace`; the default is the variable `RUST_LOG`, or `info`. `json`
/// writes one JSON object per line, with the keys `time`, `level`, `msg` and `target` first. Colors only on a terminal
/// and without `NO_COLOR`.
///
/// # Errors
/// An invalid level, a file that cannot be opened, or a second call.
pub fn init_logging(level: Option<&str>, json: bool, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => parse_filter(level)?,
        (None, Ok(variable)) if !variable.is_empty() => parse_filter(&variable)?,
        _ => parse_filter("info")?,
    };
    set_log_file(file)?;
    let has_colors = !json
        && file.is_none()
        && io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(has_colors)
        .log_internal_errors(false)
        .with_writer(|| SanitizedWriter);
    let lines = if json { lines.json().event_format(JsonFormat).boxed() } else { lines.boxed() };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    started.context("logging could not be started")?;
    // The first call: `try_init` fails in a second one.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Changes the log level.
///
/// # Errors
/// An invalid level, or no call of [`init_logging`] before.
pub fn set_log_level(level: &str) -> anyhow::Result<()> {
    let filter = FILTER.get().context("logging was not started")?;
    filter.reload(parse_filter(level)?).context("change the log level")
}

/// Changes the log file (`None`: standard error). A file that was moved is created again.
///
/// # Errors
/// The file cannot be opened; the old one remains in use.
pub fn set_log_file(file: Option<&Path>) -> anyhow::Result<()> {
    let open = |path: &Path| {
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        opened.with_context(|| format!("cannot open the log file {}", path.display()))
    };
    *LOG_FILE.write() = file.map(open).transpose()?;
    Ok(())
}

/// Checks a log level: a name (in any case, or a synonym of other programs), or a list of directives. Returns
/// its normal form.
///
/// # Errors
/// An error message that lists the levels.
pub fn parse_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = text.trim();
    let word = text.to_ascii_lowercase();
    let level = match word.as_str() {
        "warning" => "warn",
        "critical" | "fatal" => "error",
        other => other,
    };
    if LEVELS.contains(&level) {
        return Ok(level.to_owned());
    }
    // A single unknown word would be the name of a module, and disable all other output.
    if text.contains(['=', ',']) && EnvFilter::builder().parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    let hint = closest_match(level, LEVELS).map(|near| format!(" — did you mean `{near}`?"));
    let (text, hint) = (quote(text), hint.unwrap_or_default());
    Err(format!("{text} is not a log level: use one of {}{hint}", LEVELS.join(", ")))
}

fn parse_filter(level: &str) -> anyhow::Result<EnvFilter> {
    let level = parse_level(level).map_err(anyhow::Error::msg)?;
    let directives = match level.as_str() {
        "debug" | "trace" => format!("info,longhaul={level},ctl={level}"),
        _ => level,
    };
    Ok(EnvFilter::try_new(directives)?)
}

/// Writes to the log file or standard error, with escaped control characters: a file name can neither
/// forge a line nor control the terminal.
struct SanitizedWriter;

impl Write for SanitizedWriter {
    /// The formatter passes each event in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = sanitize_line(&String::from_utf8_lossy(event));
        match &*LOG_FILE.read() {
            // In one call, so that lines of several threads do not mix.
            Some(file) => (&*file).write_all(line.as_bytes())?,
            None => io::stderr().write_all(line.as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Escapes control and bidirectional characters, except the end of the line and colors.
fn sanitize_line(event: &str) -> String {
    let (line, end) = match event.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (event, ""),
    };
    let mut out = String::with_capacity(event.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let taken = color_sequence_len(rest).unwrap_or(c.len_utf8());
        if taken > c.len_utf8() {
            out.push_str(&rest[..taken]);
        } else if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        rest = &rest[taken..];
    }
    out + end
}

/// The length of the color sequence at the start of `text`.
fn color_sequence_len(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked_by_name() {
        for (text, level) in [
            ("info", "info"),
            ("DEBUG", "debug"),
            ("off", "off"),
            ("Warning", "warn"),
            ("CRITICAL", "error"),
            ("info,longhaul::store=trace", "info,longhaul::store=trace"),
        ] {
            assert_eq!(parse_level(text).as_deref(), Ok(level));
            assert!(parse_filter(text).is_ok(), "{text}");
        }
        assert_eq!(
            parse_level("inof").unwrap_err(),
            "`inof` is not a log level: use one of off, error, warn, info, debug, trace — did you mean `info`?"
        );
        assert!(parse_level("").is_err());
        let error = parse_filter("loud").unwrap_err().to_string();
        assert!(error.contains("`loud`") && error.contains("warn"), "{error}");
        assert!(parse_filter("longhaul=loud").is_err());
    }

    #[test]
    fn control_characters_in_a_name_are_escaped() {
        assert_eq!(
            sanitize_line("a\nINFO b\r\x07\u{9b}\u{202e}x\n"),
            "a\\nINFO b\\r\\u{7}\\u{9b}\\u{202e}x\n"
        );
        assert_eq!(sanitize_line("\x1b]0;title\x07 é\n"), "\\u{1b}]0;title\\u{7} é\n");
        assert_eq!(
            sanitize_line("\x1b[2m12:00\x1b[0m \x1b[2J\n"),
            "\x1b[2m12:00\x1b[0m \\u{1b}[2J\n"
        );
        assert_eq!(sanitize_line("\x1b["), "\\u{1b}[");
    }
}
