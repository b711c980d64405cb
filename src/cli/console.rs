//! The only place that writes to standard output and standard error. Data goes to standard output,
//! everything else to standard error.

use super::error::CliError;
use std::io::{self, Write};

/// Writes data. A reader that went away (`… | head -1`) ends it quietly: what it wanted it has.
///
/// # Errors
/// Standard output can't be written, e.g. the disk that it goes to is full.
pub(super) fn write_data(text: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text).and_then(|()| match text.last() {
        Some(b'\n') | None => Ok(()),
        Some(_) => out.write_all(b"\n"),
    });
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::new(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes a piece of data that goes on. False when the reader went away: there is no need for more.
///
/// # Errors
/// As [`write_data`].
pub(super) fn write_chunk(piece: &[u8]) -> Result<bool, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(piece).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CliError::new(format!("cannot write to standard output: {e}"))),
    }
}

/// Writes a whole line (or several) for people. There is nobody left to tell when that fails.
pub(super) fn print_note(text: &str) {
    let mut line = String::with_capacity(text.len() + 1);
    line.push_str(text);
    line.push('\n');
    // One write, so that lines of several processes in one log do not mix.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// `text` from a document, fit for a terminal: control bytes and the like become `\#ooo`. Names are
/// shown so on the wire already, and stay as they are.
pub(super) fn sanitize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive('\\') {
        // `show` would escape the backslashes of what is escaped already.
        let (body, backslash) = match part.strip_suffix('\\') {
            Some(body) => (body, "\\"),
            None => (part, ""),
        };
        out.push_str(&crate::wire::path::escape_bytes(body.as_bytes()));
        out.push_str(backslash);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitized_text_keeps_escaped_names_and_no_control_bytes() {
        assert_eq!(sanitize("open a\\#012b: no"), "open a\\#012b: no");
        assert_eq!(
            sanitize("\x1b[31m\r\n\u{202e}\\"),
            "\\#033[31m\\#015\\#012\\#342\\#200\\#256\\"
        );
    }
}
