//! All writing to standard output and standard error: results go to standard output, messages to standard error.

use super::error::{CliError, Result};
use super::sanitize::sanitize;
use std::io::{self, Write};

/// Writes a result and ends it with a newline. A reader that has closed the pipe (`… | head -1`) is no error.
///
/// # Errors
/// Standard output can't be written, e.g. to a full disk.
pub(super) fn write_data(text: &[u8]) -> Result<()> {
    let newline: &[u8] = if matches!(text.last(), Some(b'\n') | None) { b"" } else { b"\n" };
    write_chunk(text)?;
    write_chunk(newline).map(drop)
}

/// Writes a part of a result. Returns whether standard output is still read: false after the reader has closed the
/// pipe.
///
/// # Errors
/// As [`write_data`].
pub(super) fn write_chunk(chunk: &[u8]) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(chunk).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CliError::new(format!("cannot write to standard output: {e}"))),
    }
}

/// Writes one or more complete lines to standard error. A failure to write them is ignored: there is no other place
/// to report it.
pub(super) fn print_note(text: &str) {
    // One write, so that lines of several processes in one log do not mix.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Prints the warnings in a reply of the master.
pub(super) fn print_warnings(warnings: &[String]) {
    warnings.iter().for_each(|warning| print_note(&format!("warning: {}", sanitize(warning))));
}
