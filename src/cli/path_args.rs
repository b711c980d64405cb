//! Checks SRC and DST for URLs and remote paths, which are not supported. `./` before an argument makes it a path.

use super::error::{CliError, Result};
use crate::util::shell_quote::quote_for_shell;
use crate::wire::path::escape_bytes;

/// An argument that is not a plain path.
#[derive(Debug, PartialEq, Eq)]
enum NonPath<'a> {
    /// `scheme://…`, with the path of a `file://` URL.
    Url(Option<&'a [u8]>),
    /// `host:path` as in rsync and scp: a colon before the first slash. Holds the path.
    RemotePath(&'a [u8]),
    /// `~/…` or `~user`, which the shell replaces if it is not quoted.
    HomeDir,
}

fn classify_non_path(given: &[u8]) -> Option<NonPath<'_>> {
    let first = given.split(|b| *b == b'/').next().unwrap_or(given);
    if first.starts_with(b"~") {
        return Some(NonPath::HomeDir);
    }
    let colon = first.iter().position(|b| *b == b':').filter(|at| *at > 0)?;
    let scheme = &given[..colon];
    let rest = &given[colon + 1..];
    let is_scheme = scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b));
    if rest.starts_with(b"//") && is_scheme {
        let path =
            rest.strip_prefix(b"//").filter(|path| scheme == b"file" && path.starts_with(b"/"));
        return Some(NonPath::Url(path));
    }
    Some(NonPath::RemotePath(rest))
}

/// Checks that SRC or DST (`what`) of `ctl copy` is a path on this machine.
///
/// # Errors
/// It is not; the hint says what to write instead.
pub(super) fn check_local_path(what: &str, given: &[u8]) -> Result<()> {
    let Some(other) = classify_non_path(given) else { return Ok(()) };
    let local = format!("a path of that name: {}", quote_for_shell(&[b"./", given].concat()));
    let shown = escape_bytes(given);
    let (is, instead) = match other {
        NonPath::Url(Some(path)) => ("a URL", format!("write the path: {}", quote_for_shell(path))),
        NonPath::Url(None) => ("a URL", format!("write a path; {local}")),
        NonPath::RemotePath(_) => (
            "a path on another host",
            format!("to copy between storage hosts: ctl sync submit SRC DST; {local}"),
        ),
        NonPath::HomeDir => (
            "a home directory, which only the shell can replace",
            format!("write it without quotes; {local}"),
        ),
    };
    let message = format!("{what} `{shown}` reads as {is}; ctl copy copies on this machine");
    Err(CliError::usage(message).with_hint(instead))
}

/// The absolute path in `host:path` or `file://path`, for a hint of `ctl sync submit`.
pub(super) fn extract_path(given: &[u8]) -> Option<&[u8]> {
    match classify_non_path(given)? {
        NonPath::Url(path) => path,
        NonPath::RemotePath(path) => Some(path).filter(|path| path.starts_with(b"/")),
        NonPath::HomeDir => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_or_remote_path_is_refused_with_what_to_write_instead() {
        for (given, is, instead) in [
            ("host:/b", "another host", "path of that name: ./host:/b"),
            ("user@host:b", "another host", "ctl sync submit SRC DST"),
            ("host::module/b", "another host", "./host::module/b"),
            ("[fe80::1]:/b", "another host", "ctl sync submit"),
            ("file:///x", "a URL", "write the path: /x"),
            ("file://host/x", "a URL", "./file://host/x"),
            ("s3://bucket/x", "a URL", "./s3://bucket/x"),
            ("rsync://h/m", "a URL", "./rsync://h/m"),
            ("~/x y", "home directory", "without quotes; a path of that name: './~/x y'"),
            ("~", "home directory", "./~"),
            ("~ann/x", "home directory", "./~ann/x"),
        ] {
            let failure = check_local_path("DST", given.as_bytes()).unwrap_err();
            assert_eq!(failure.exit.code(), 2, "{given}");
            let text = failure.render();
            for part in [is, instead, &format!("DST `{given}`")] {
                assert!(text.contains(part), "{given}: {part} in {text}");
            }
        }
        for given in ["./host:/b", "/a:b", "a/b:c", ":x", "x~", "./~/x", "/~", "a", "..", "-x:/"] {
            let refused = check_local_path("SRC", given.as_bytes());
            assert_eq!(refused.is_err(), given == "-x:/", "{given}");
        }
        assert_eq!(extract_path(b"host:/b"), Some(&b"/b"[..]));
        assert_eq!(extract_path(b"host:b"), None);
    }
}
