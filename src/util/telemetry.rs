//! What the program says on standard error: one line an event, times in UTC.

use std::io::{self, IsTerminal, Write};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging to standard error. `level` is `off`, `error`, `warn`, `info`, `debug` or `trace`
/// (the last two for Longhaul itself; libraries stay at `info`), or a list of directives such as
/// `info,longhaul::store=trace`; without it the variable `RUST_LOG` counts, else `info`. `json`
/// writes one JSON object a line. Colours only on a terminal and without `NO_COLOR`.
///
/// # Errors
/// A level that does not exist, or logging that was started before.
pub fn init(level: Option<&str>, json: bool) -> anyhow::Result<()> {
    let filter = match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => filter(level)?,
        (None, Ok(variable)) if !variable.is_empty() => filter(&variable)?,
        _ => filter("info")?,
    };
    let colours = !json
        && io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .log_internal_errors(false)
        .with_writer(Lines);
    let started =
        if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    started.map_err(|e| anyhow::anyhow!("logging could not be started: {e}"))
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

/// Standard error, with every control character inside a line escaped: a file name can neither
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
        io::stderr().write_all(clean(&String::from_utf8_lossy(event)).as_bytes())?;
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
