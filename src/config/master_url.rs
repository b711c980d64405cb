//! The URL of a master.

use crate::wire::path::quote;
use url::Url;

/// Checks the URL of a master and removes its trailing slashes.
pub(super) fn check_master_url(text: &str) -> Result<String, String> {
    let example = "write for example `http://127.0.0.1:8888`";
    if !text.contains("://") {
        return Err(format!("{} has no `http://` or `https://` in front — {example}", quote(text)));
    }
    let url =
        Url::parse(text).map_err(|cause| format!("{} is not a URL ({cause})", quote(text)))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{} is not an `http://` or `https://` URL — {example}", quote(text)));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("must not carry a user name or password — {example}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{} has a query or fragment — {example}", quote(text)));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
