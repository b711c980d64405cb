//! What the program logs, on standard error or to a file: one line an event, times in UTC. Level and file can be
//! changed while it runs.

mod json;

use anyhow::Context as _;
use json::JsonLines;
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
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static FILTER: OnceLock<SetFilter> = OnceLock::new();
/// The file that lines go to; `None`: standard error.
static FILE: RwLock<Option<File>> = RwLock::new(None);

/// Starts logging to `file`, or to standard error. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`
/// (the last two for Longhaul itself; libraries stay at `info`), or a list of directives such as
/// `info,longhaul::store=trace`; without it the variable `RUST_LOG` counts, else `info`. `json`
/// writes one JSON object a line, with the keys `time`, `level`, `msg` and `target` first. Colours only on a terminal and without `NO_COLOR`.
///
/// # Errors
/// A level that does not exist, a file that cannot be opened, or logging that was started before.
pub fn init(level: Option<&str>, json: bool, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => filter(level)?,
        (None, Ok(variable)) if !variable.is_empty() => filter(&variable)?,
        _ => filter("info")?,
    };
    log_to(file)?;
    let colours = !json
        && file.is_none()
        && io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .log_internal_errors(false)
        .with_writer(Lines);
    let (started, set): (_, SetFilter) = if json {
        let builder = builder.json().event_format(JsonLines).with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
    };
    started.map_err(|e| anyhow::anyhow!("logging could not be started: {e}"))?;
    // Only set once, as logging is only started once.
    let _ = FILTER.set(set);
    Ok(())
}

/// Changes the level of logging that was started.
///
/// # Errors
/// A level that does not exist, or logging that was not started.
pub fn set_level(level: &str) -> anyhow::Result<()> {
    let set = FILTER.get().context("logging was not started")?;
    set(filter(level)?).context("change the log level")
}

/// Logs to `file` (`None`: standard error) from now on. A file that was moved away is created again.
///
/// # Errors
/// The file cannot be opened; lines go where they went before.
pub fn log_to(file: Option<&Path>) -> anyhow::Result<()> {
    let opened = match file {
        None => None,
        Some(path) => {
            let mut options = OpenOptions::new();
            let opened = options.create(true).append(true).mode(0o600).open(path);
            Some(opened.with_context(|| format!("cannot open the log file {}", path.display()))?)
        }
    };
    *FILE.write() = opened;
    Ok(())
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
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
        let line = clean(&String::from_utf8_lossy(event));
        match &*FILE.read() {
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
fn clean(event: &str) -> String {
    let (line, end) = match event.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (event, ""),
    };
    let mut out = String::with_capacity(event.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let taken = colour(rest).unwrap_or(c.len_utf8());
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
fn colour(text: &str) -> Option<usize> {
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
            assert!(filter(good).is_ok(), "{good}");
        }
        let error = filter("loud").unwrap_err().to_string();
        assert!(error.contains("`loud`") && error.contains("warn"), "{error}");
        assert!(filter("longhaul=loud").is_err());
    }

    #[test]
    fn a_hostile_name_stays_on_its_line() {
        assert_eq!(
            clean("a\nINFO b\r\x07\u{9b}\u{202e}x\n"),
            "a\\nINFO b\\r\\u{7}\\u{9b}\\u{202e}x\n"
        );
        assert_eq!(clean("\x1b]0;title\x07 é\n"), "\\u{1b}]0;title\\u{7} é\n");
        assert_eq!(clean("\x1b[2m12:00\x1b[0m \x1b[2J\n"), "\x1b[2m12:00\x1b[0m \\u{1b}[2J\n");
        assert_eq!(clean("\x1b["), "\\u{1b}[");
    }
}
