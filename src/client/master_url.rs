//! Parsing of master URLs.

use super::url_text::{has_port, sanitize};
use super::{ClientError, Result};
use reqwest::Url;

/// The port of a master if only a host is given.
const DEFAULT_MASTER_PORT: u16 = 8888;

/// Parses a master URL, which has the scheme `http` or `https`; `http://` may be left out, and then the port too.
pub(super) fn parse_master_url(text: &str) -> Result<Url> {
    let bad = |message: String| ClientError::InvalidUrl { url: sanitize(text), message };
    let whole = text.contains("://");
    let full = if whole { text.to_owned() } else { format!("http://{text}") };
    let mut url =
        Url::parse(&full).map_err(|e| bad(format!("{e}; expected e.g. http://host:8888")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(format!("scheme `{}` is not served, use http or https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Without the password.
        let url = url.host_str().unwrap_or("?").to_owned();
        let message = "must not hold a user name or password".to_owned();
        return Err(ClientError::InvalidUrl { url, message });
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

/// The parts of texts that hold several URLs, separated by commas.
pub(super) fn split_urls(urls: &[String]) -> impl Iterator<Item = &str> {
    urls.iter().flat_map(|u| u.split(',')).map(str::trim).filter(|u| !u.is_empty())
}

/// The base URLs in `urls`, in their order; see [`MasterClient::new`](super::MasterClient::new).
///
/// # Errors
/// [`ClientError::InvalidUrl`].
pub fn parse_urls(urls: &[String]) -> Result<Vec<String>> {
    let mut parsed = Vec::new();
    for part in split_urls(urls) {
        let base = parse_master_url(part)?.as_str().trim_end_matches('/').to_owned();
        if !parsed.contains(&base) {
            parsed.push(base);
        }
    }
    Ok(parsed)
}
