//! What the program logs, on standard error or to a file: one line an event, times in UTC. Level and file can be
//! changed while it runs.

mod json_format;

use anyhow::Context as _;
use json_format::JsonFormat;
use parking_lot::RwLock;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::reload;

/// Replaces the filter.
type FilterSetter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static FILTER_SETTER: OnceLock<FilterSetter> = OnceLock::new();
/// The file that lines go to; `None`: standard error.
static LOG_FILE: RwLock<Option<File>> = RwLock::new(None);

/// Starts logging to `file`, or to standard error. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`
/// (the last two for Longhaul itself; libraries stay at `info`), or a list of directives such as
/// `info,longhaul::store=trace`; without it the variable `RUST_LOG` counts, else `info`. `json`
/// writes one JSON object a line, with the keys `time`, `level`, `msg` and `target` first. Colours only on a terminal and without `NO_COLOR`.
///
/// # Errors
/// A level that does not exist, a file that cannot be opened, or logging that was started before.
pub fn init_logging(level: Option<&str>, json: bool, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => parse_filter(level)?,
        (None, Ok(variable)) if !variable.is_empty() => parse_filter(&variable)?,
        _ => parse_filter("info")?,
    };
    set_log_file(file)?;
    let colours = !json
        && file.is_none()
        && io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .log_internal_errors(false)
        .with_writer(Lines);
    let (started, set): (_, FilterSetter) = if json {
        let builder = builder.json().event_format(JsonFormat).with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
    };
    started.map_err(|e| anyhow::anyhow!("logging could not be started: {e}"))?;
    // Only set once, as logging is only started once.
    let _ = FILTER_SETTER.set(set);
    Ok(())
}

/// Changes the level of logging that was started.
///
/// # Errors
/// A level that does not exist, or logging that was not started.
pub fn set_log_level(level: &str) -> anyhow::Result<()> {
    let set = FILTER_SETTER.get().context("logging was not started")?;
    set(parse_filter(level)?).context("change the log level")
}

/// Logs to `file` (`None`: standard error) from now on. A file that was moved away is created again.
///
/// # Errors
/// The file cannot be opened; lines go where they went before.
pub fn set_log_file(file: Option<&Path>) -> anyhow::Result<()> {
    let opened = match file {
        None => None,
        Some(path) => {
            let mut options = OpenOptions::new();
            let opened = options.create(true).append(true).mode(0o600).open(path);
            Some(opened.with_context(|| format!("cannot open the log file {}", path.display()))?)
        }
    };
    *LOG_FILE.write() = opened;
    Ok(())
}

fn parse_filter(level: &str) -> anyhow::Result<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = level.trim().to_ascii_lowercase();
    let directives = match level.as_str() {
        own @ ("debug" | "trace") => format!("info,longhaul={own},ctl={own}"),
        list if list.contains([',', '=']) => list.to_owned(),
        word if LEVELS.contains(&word) => word.to_owned(),
        word => anyhow::bail!(
            "log level `{}`: expected one of {}",
            word.escape_debug(),
            LEVELS.join(", ")
        ),
    };
    EnvFilter::try_new(&directives)
        .map_err(|e| anyhow::anyhow!("log level `{}`: {e}", directives.escape_debug()))
}

/// The file or standard error, with every control character inside a line escaped: a file name can neither
/// forge a line nor talk to the terminal.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

struct Line;

impl Write for Line {
    /// The formatter hands over each event whole, in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = sanitize_line(&String::from_utf8_lossy(event));
        match &*LOG_FILE.read() {
            // In one call: lines of several threads do not mix.
            Some(file) => (&*file).write_all(line.as_bytes())?,
            None => io::stderr().write_all(line.as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Escapes control and direction-changing characters, except the end of the line and colours.
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

/// The length of the colour sequence at the start of `text`, if there is one.
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
        for good in ["info", "DEBUG", "off", "info,longhaul::store=trace"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
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
