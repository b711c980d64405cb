//! URLs and errors as text.

use crate::identity::describe_tls_error;
use reqwest::Url;
use std::error::Error;
use std::time::Duration;

/// The most bytes of an invalid reply in a message.
const MAX_EXCERPT_BYTES: usize = 200;

/// Whether a URL, given without its scheme, has a port.
pub(super) fn has_port(text: &str) -> bool {
    let authority = text.split('/').next().unwrap_or(text);
    // The colons of an IPv6 address are in brackets.
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

/// A URL with its port, also if that is the default one of its scheme.
pub(super) fn with_port(url: &str) -> String {
    let schemes = [("http://", 80), ("https://", 443)];
    let known = schemes.into_iter().find_map(|(scheme, port)| {
        Some((scheme, port, url.strip_prefix(scheme).filter(|rest| !has_port(rest))?))
    });
    match known {
        Some((scheme, port, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}{authority}:{port}{path}")
        }
        None => url.to_owned(),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The innermost cause of an error, without the URL.
pub(super) fn describe_transport_error(e: &reqwest::Error, timeout: Duration) -> String {
    if e.is_timeout() && !e.is_connect() {
        return format!("no complete reply within {} s", timeout.as_secs_f32());
    }
    if let Some(error) = causes(e).find_map(tls_error) {
        return format!("no TLS connection: {}", describe_tls_error(error));
    }
    let last = causes(e).last().unwrap_or(e);
    let what = if e.is_connect() { "cannot connect" } else { "the connection broke" };
    let errno = last.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    if errno == Some(rustix::io::Errno::NETUNREACH.raw_os_error())
        && e.url().is_some_and(is_loopback)
    {
        return format!(
            "{what}: {last}: the loopback interface is down; bring it up: ip link set lo up"
        );
    }
    format!("{what}: {last}")
}

type DynError = dyn Error + 'static;

fn causes(e: &DynError) -> impl Iterator<Item = &DynError> {
    std::iter::successors(Some(e), |&e| e.source())
}

/// The error of TLS, which may be inside of several I/O errors.
fn tls_error(cause: &DynError) -> Option<&rustls::Error> {
    match cause.downcast_ref::<std::io::Error>() {
        Some(outer) => tls_error(outer.get_ref()?),
        None => cause.downcast_ref(),
    }
}

pub(super) fn error_chain(e: &DynError) -> String {
    causes(e).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Text of other hosts for a message, without control characters.
pub(super) fn sanitize(text: &str) -> String {
    crate::wire::path::escape_bytes(text.as_bytes())
}

pub(super) fn excerpt(body: &[u8]) -> String {
    let end = body.len().min(MAX_EXCERPT_BYTES);
    let dots = if body.len() > end { "…" } else { "" };
    format!("{}{dots}", crate::wire::path::escape_bytes(&body[..end]))
}

/// `path` with a query of the values that are present.
pub(super) fn with_query(path: &str, values: &[(&str, Option<&str>)]) -> String {
    let mut target = path.to_owned();
    for (key, value) in values.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
        target.push_str(if target.contains('?') { "&" } else { "?" });
        target.push_str(&format!("{key}="));
        for b in value.bytes() {
            if b.is_ascii_alphanumeric() || b"-._~,".contains(&b) {
                target.push(char::from(b));
            } else {
                target.push_str(&format!("%{b:02X}"));
            }
        }
    }
    target
}
