//! Paths of the command line: those of this machine, for which URLs and remote paths are refused (`./` before an argument
//! makes it a path), and addresses of a sync.

use super::error::{CliError, Result};
use crate::util::shell_quote::quote_for_shell;
use crate::wire::address::{Address, AddressError};
use crate::wire::path::{PathError, escape_bytes};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

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

/// A command that reads or writes paths of this machine only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LocalCommand {
    Copy,
    Verify,
}

/// Checks that an argument (`what`, e.g. `DST`) is a path on this machine.
///
/// # Errors
/// It is not; the hint says what to write instead.
pub(super) fn check_local_path(command: LocalCommand, what: &str, given: &[u8]) -> Result<()> {
    let Some(other) = classify_non_path(given) else { return Ok(()) };
    let local = format!("a path of that name: {}", quote_for_shell(&[b"./", given].concat()));
    let shown = escape_bytes(given);
    let (is, instead) = match (other, command) {
        (NonPath::Url(Some(path)), _) => {
            ("a URL", format!("write the path: {}", quote_for_shell(path)))
        }
        (NonPath::Url(None), _) => ("a URL", format!("write a path; {local}")),
        (NonPath::RemotePath(_), LocalCommand::Copy) => (
            "a path on another host",
            format!("to copy between storage hosts: ctl sync submit SRC DST; {local}"),
        ),
        (NonPath::RemotePath(path), LocalCommand::Verify) => (
            "a path on another host",
            format!("run it on that host with the path alone, {}; {local}", quote_for_shell(path)),
        ),
        (NonPath::HomeDir, _) => (
            "a home directory, which only the shell can replace",
            format!("write it without quotes; {local}"),
        ),
    };
    let does = match command {
        LocalCommand::Copy => "ctl copy copies on this machine",
        LocalCommand::Verify => "ctl sync verify reads a tree that is mounted on this machine",
    };
    let message = format!("{what} `{shown}` reads as {is}; {does}");
    Err(CliError::usage(message).with_hint(instead))
}

/// SRC or DST (`what`) of a sync: `[WORKERS:]/path` on the storage hosts, where the working directory of this process
/// has no meaning.
///
/// # Errors
/// It is no such address; the hint says what to write instead.
pub(super) fn parse_address(what: &str, given: &OsStr) -> Result<Address> {
    let given = given.as_bytes();
    Address::parse(given).map_err(|e| {
        let hint = match &e {
            AddressError::Path(PathError::NotAbsolute) => {
                Some("to copy on this machine: ctl copy SRC DST".to_owned())
            }
            AddressError::Url(Some(path)) => {
                Some(format!("write the path alone, {}", quote_for_shell(path)))
            }
            AddressError::Selector(_) | AddressError::NoWorkers | AddressError::Url(None) => {
                Some("write for example gpu-1:/data, 'gpu-*:/data' or @rack=3:/data".to_owned())
            }
            AddressError::RelativePath | AddressError::Path(_) => None,
        };
        // The message of a selector quotes it; the whole list may be long.
        let error = match e {
            AddressError::Selector(reason) => CliError::usage(format!("{what}: {reason}")),
            e => CliError::usage(format!("{what} `{}` {e}", escape_bytes(given))),
        };
        let error =
            error.with_note("SRC and DST are paths on the storage hosts, as [WORKERS:]/path");
        hint.into_iter().fold(error, CliError::with_hint)
    })
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
            let failure =
                check_local_path(LocalCommand::Copy, "DST", given.as_bytes()).unwrap_err();
            assert_eq!(failure.exit.code(), 2, "{given}");
            let text = failure.render();
            for part in [is, instead, &format!("DST `{given}`")] {
                assert!(text.contains(part), "{given}: {part} in {text}");
            }
        }
        for given in ["./host:/b", "/a:b", "a/b:c", ":x", "x~", "./~/x", "/~", "a", "..", "-x:/"] {
            let refused = check_local_path(LocalCommand::Copy, "SRC", given.as_bytes());
            assert_eq!(refused.is_err(), given == "-x:/", "{given}");
        }
        let verify = check_local_path(LocalCommand::Verify, "PATH", b"gpu-1:/b c").unwrap_err();
        let text = verify.render();
        assert!(text.contains("mounted on this machine"), "{text}");
        assert!(text.contains("run it on that host with the path alone, '/b c'"), "{text}");
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write_instead() {
        for (given, parts) in [
            (
                "data/x",
                &["SRC `data/x` must be absolute", "paths on the storage hosts", "ctl copy"][..],
            ),
            ("file:///b", &["SRC `file:///b` is a URL", "write the path alone, /b"]),
            ("s3://x/y", &["is a URL", "gpu-1:/data"]),
            ("gpu-1:data", &["must have an absolute path after the colon"]),
            (":/data", &["names no worker before the colon", "gpu-1:/data"]),
            ("@rack:/data", &["SRC: `@rack` has no value: write @rack=VALUE"]),
            ("/a/../b", &["must not contain `..`"]),
        ] {
            let e = parse_address("SRC", OsStr::new(given)).unwrap_err();
            assert_eq!(e.exit.code(), 2, "{given}");
            let text = e.render();
            for part in parts {
                assert!(text.contains(part), "{given}: {part} in {text}");
            }
        }
        let address = parse_address("DST", OsStr::new("gpu-1,gpu-2:/a//b/")).unwrap();
        assert_eq!((address.workers.len(), address.path.as_bytes()), (2, &b"/a/b"[..]));
    }
}
