//! Master URLs read and checked, and what is said of failures.

use super::ClientError;
use reqwest::Url;
use std::time::Duration;

/// How much of a reply that makes no sense is shown.
const MAX_EXCERPT_BYTES: usize = 200;

/// The port of a master, where a host is named and no more.
const DEFAULT_MASTER_PORT: u16 = 8888;

/// A master URL; `http://` may be left out, and then the port too.
pub(super) fn parse_master_url(text: &str) -> Result<Url, ClientError> {
    let bad = |message: String| ClientError::InvalidUrl { url: sanitize(text), message };
    let whole = text.contains("://");
    let full = if whole { text.to_owned() } else { format!("http://{text}") };
    let mut url =
        Url::parse(&full).map_err(|e| bad(format!("{e}; expected e.g. http://host:8888")))?;
    if url.scheme() != "http" {
        return Err(bad(format!("scheme `{}` is not served, use http", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let message = "must not hold a user name or password".to_owned();
        return Err(ClientError::InvalidUrl {
            url: url.host_str().unwrap_or("?").to_owned(),
            message,
        });
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("names no host".to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must end with the path, without `?` or `#`".to_owned()));
    }
    if !whole && !has_port(text) && url.set_port(Some(DEFAULT_MASTER_PORT)).is_err() {
        return Err(bad("takes no port".to_owned()));
    }
    Ok(url)
}

/// Whether a port is written in a URL without its scheme.
fn has_port(text: &str) -> bool {
    let authority = text.split('/').next().unwrap_or(text);
    // The colons of an IPv6 address stand in brackets.
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

/// A URL with its port, also where that is the one of `http`.
pub(super) fn with_port(url: &str) -> String {
    match url.strip_prefix("http://") {
        Some(rest) if !has_port(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("http://{authority}:80{path}")
        }
        _ => url.to_owned(),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What went wrong, down to the system's words, without repeating the URL.
pub(super) fn describe_transport_error(e: &reqwest::Error, timeout: Duration) -> String {
    if e.is_timeout() && !e.is_connect() {
        return format!("no complete reply within {} s", timeout.as_secs_f32());
    }
    let mut last: &dyn std::error::Error = e;
    while let Some(next) = last.source() {
        last = next;
    }
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

pub(super) fn error_chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Text from outside for a message: nothing in it can drive a terminal.
pub(super) fn sanitize(text: &str) -> String {
    crate::wire::path::escape_bytes(text.as_bytes())
}

pub(super) fn excerpt(body: &[u8]) -> String {
    let end = body.len().min(MAX_EXCERPT_BYTES);
    let dots = if body.len() > end { "…" } else { "" };
    format!("{}{dots}", crate::wire::path::escape_bytes(&body[..end]))
}

/// Percent-encodes a query value.
pub(super) fn percent_encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for b in value.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}
