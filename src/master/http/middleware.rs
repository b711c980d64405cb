//! Middleware for every request: a request id, the log, no caching, and the refusal of requests from other web sites.

use super::audit_log::OperatorAction;
use super::principal::{ConnectionAddresses, Principal};
use super::response::ProblemResponse;
use crate::master::audit::describe_request;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::problem::{Problem, ProblemCode};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use tracing::Instrument;
use url::Url;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The host and port of a master's `advertise_url`. A proxy in front of the master may send it as `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdvertisedHost {
    host: String,
    port: u16,
}

impl AdvertisedHost {
    /// `None` for a URL without a host.
    pub(super) fn from_url(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        Some(AdvertisedHost {
            host: url.host_str()?.to_owned(),
            port: url.port_or_known_default()?,
        })
    }

    /// Whether a `Host` has this name, with any port: a proxy may listen on another port.
    fn is_host(&self, host: &str) -> bool {
        strip_port(host).eq_ignore_ascii_case(&self.host)
    }

    /// Whether an `Origin` is exactly this one: another port is another site.
    fn is_origin(&self, origin: &str) -> bool {
        Self::from_url(origin).as_ref() == Some(self)
    }
}

/// See the [module](self).
pub(super) async fn guard_request(
    State(advertised): State<Option<AdvertisedHost>>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let (id, id_header) = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let addresses = request.extensions().get::<ConnectionAddresses>().copied();
    let local = addresses.and_then(|addresses| addresses.local);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let action = route
        .as_ref()
        .and_then(|route| OperatorAction::classify(&method, route.as_str(), &path))
        .map(|action| (action, request.headers().clone()));
    describe_request(|entry| entry.request = Some(id.clone()));
    let span = tracing::info_span!("http", id);

    let mut response = match check_host_and_origin(request.headers(), local, advertised.as_ref()) {
        Ok(()) => next.run(request).instrument(span.clone()).await,
        Err(problem) => ProblemResponse(problem).into_response(),
    };
    response.headers_mut().insert(X_REQUEST_ID.clone(), id_header);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));

    let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis());
    span.in_scope(|| {
        // 503 is the state of the store, which is logged when it changes and not for every request.
        if status >= 500 && status != 503 {
            let cause = format_args!("{method} requests failed with status {status}");
            warn_ratelimited!(cause, %method, path, status, ms, "request failed");
        } else {
            tracing::debug!(%method, path, status, ms, "request");
        }
        if let Some((action, headers)) = action.filter(|_| response.status().is_success()) {
            let client = addresses.and_then(|addresses| addresses.client);
            let principal = response.extensions().get::<Principal>();
            action.log(principal, client, &headers, response.headers());
        }
    });
    response
}

/// The request id of the client if it is a token, else a new one.
fn request_id(headers: &HeaderMap) -> (String, HeaderValue) {
    let client_id =
        headers.get(&X_REQUEST_ID).and_then(|value| Some((value.to_str().ok()?, value)));
    if let Some((text, value)) = client_id
        && is_token(text)
    {
        return (text.to_owned(), value.clone());
    }
    let id = crate::util::unique_id::generate_id().to_string();
    let value = HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"));
    (id, value)
}

/// Whether `text` is 1 to 128 visible ASCII characters.
pub(super) fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Refuses cross-site requests and DNS rebinding. A browser sends the requests of a web page to any address that it can
/// reach, so a page on the internet could submit syncs to a master that listens on loopback only. Browsers send the
/// site of the page as `Origin`; if the host name of a page resolves to loopback, that name is in `Host`. The
/// advertised host name is accepted in both.
fn check_host_and_origin(
    headers: &HeaderMap,
    local: Option<SocketAddr>,
    advertised: Option<&AdvertisedHost>,
) -> Result<(), Problem> {
    let host = headers.get(HOST).map(|v| v.to_str().unwrap_or_default());
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let is_own = authority.is_some() && authority == host;
        if !is_own && !advertised.is_some_and(|advertised| advertised.is_origin(origin)) {
            return Err(Problem::new(
                ProblemCode::ForeignOrigin,
                "requests of other sites' web pages are not accepted",
            ));
        }
    }
    match (host, local) {
        (Some(host), Some(local))
            if local.ip().to_canonical().is_loopback()
                && !is_local_host(host)
                && !advertised.is_some_and(|advertised| advertised.is_host(host)) =>
        {
            Err(Problem::new(ProblemCode::ForeignHost,
                "this master listens on loopback and does not accept the name of another host",
            )
            .with_hint(
                "use http://127.0.0.1 or http://localhost; behind a proxy, set `advertise_url` in the \
                 master's file to the URL that clients use",
            ))
        }
        _ => Ok(()),
    }
}

/// Whether a `Host` is an IP address or `localhost`, with or without a port.
fn is_local_host(host: &str) -> bool {
    let name = strip_port(host).to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_on_loopback_accepts_only_local_host_names() {
        for host in [
            "127.0.0.1:8888",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8888",
            "[::1]",
            "10.0.0.1",
            "a.localhost:80",
        ] {
            assert!(is_local_host(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8888",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "",
            ":80",
        ] {
            assert!(!is_local_host(host), "{host}");
        }
    }

    #[test]
    fn requests_from_other_origins_are_refused_on_every_address() {
        let headers = |host: &str, origin: Option<&str>| {
            let mut map = HeaderMap::new();
            map.insert(HOST, host.parse().unwrap());
            origin.map(|o| map.insert(ORIGIN, o.parse().unwrap()));
            map
        };
        let loopback = Some("127.0.0.1:8888".parse().unwrap());
        let public = Some("10.0.0.1:8888".parse().unwrap());
        let status = |h: HeaderMap, l| check_host_and_origin(&h, l, None).err().map(|p| p.status);
        assert_eq!(status(headers("master.lan:8888", None), public), None);
        assert_eq!(status(headers("evil.example", None), loopback), Some(421));
        assert_eq!(
            status(headers("127.0.0.1:8888", Some("http://127.0.0.1:8888")), loopback),
            None
        );
        assert_eq!(
            status(headers("127.0.0.1:8888", Some("http://evil.example")), loopback),
            Some(403)
        );
        assert_eq!(status(headers("10.0.0.1:8888", Some("null")), public), Some(403));
        // A listener on all addresses accepts IPv4 connections over loopback as IPv4 in IPv6.
        for local in ["[::1]:8888", "127.7.7.7:8888", "[::ffff:127.0.0.1]:8888"] {
            let local = Some(local.parse().unwrap());
            assert_eq!(status(headers("evil.example", None), local), Some(421), "{local:?}");
            assert_eq!(status(headers("localhost", None), local), None, "{local:?}");
        }
        assert_eq!(status(HeaderMap::new(), loopback), None);
    }

    #[test]
    fn a_proxy_may_send_the_advertised_host_name() {
        let advertised = AdvertisedHost::from_url("http://Data.Example:8080/longhaul").unwrap();
        let loopback = Some("127.0.0.1:8888".parse().unwrap());
        let status = |host: &str, origin: Option<&str>| {
            let mut map = HeaderMap::new();
            map.insert(HOST, host.parse().unwrap());
            origin.map(|o| map.insert(ORIGIN, o.parse().unwrap()));
            check_host_and_origin(&map, loopback, Some(&advertised)).err().map(|p| p.status)
        };
        for host in ["data.example", "data.example:8080", "DATA.example:443", "127.0.0.1:8888"] {
            assert_eq!(status(host, None), None, "{host}");
        }
        for host in ["evil.example", "data.example.evil", "x.data.example", "data.example:x", ""] {
            assert_eq!(status(host, None), Some(421), "{host}");
        }
        // The proxy may send its own host name, or that of the master.
        for host in ["data.example:8080", "127.0.0.1:8888"] {
            for (origin, expected) in [
                ("http://data.example:8080", None),
                ("http://data.example", Some(403)),
                ("http://data.example:9090", Some(403)),
                ("http://evil.example", Some(403)),
                ("null", Some(403)),
            ] {
                assert_eq!(status(host, Some(origin)), expected, "{host} {origin}");
            }
        }
        assert_eq!(AdvertisedHost::from_url("http://m").unwrap().port, 80);
    }
}
