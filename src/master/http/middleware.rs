//! Middleware for every request: a request id, the log, no caching, and the refusal of requests from other web sites.

use super::HttpLimits;
use super::audit_log::OperatorAction;
use super::principal::{ConnectionAddresses, Principal};
use super::response::ProblemResponse;
use crate::config::MasterConfig;
use crate::master::audit::describe_request;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::problem::{Problem, ProblemCode};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::time::Instant;
use tokio::sync::watch;
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

/// The names of this master that clients may send as `Host`.
#[derive(Clone)]
pub(super) struct HostNames {
    advertised: Option<AdvertisedHost>,
    /// The name of this host, which is also in the master's own certificate.
    own: String,
    config: watch::Receiver<MasterConfig>,
}

impl HostNames {
    pub(super) fn of(limits: &HttpLimits) -> Self {
        HostNames {
            advertised: limits.advertise_url.as_deref().and_then(AdvertisedHost::from_url),
            own: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            config: limits.config.clone(),
        }
    }

    fn contain(&self, host: &str) -> bool {
        let name = strip_port(host);
        is_local_host(host)
            || !self.own.is_empty() && name.eq_ignore_ascii_case(&self.own)
            || self.advertised.as_ref().is_some_and(|advertised| advertised.is_host(host))
            || self.config.borrow().allowed_hosts.iter().any(|it| it.eq_ignore_ascii_case(name))
    }
}

/// See the [module](self).
pub(super) async fn guard_request(
    State(names): State<HostNames>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let (id, id_header) = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let addresses = request.extensions().get::<ConnectionAddresses>().copied();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let action = route
        .as_ref()
        .and_then(|route| OperatorAction::classify(&method, route.as_str(), &path))
        .map(|action| (action, request.headers().clone()));
    describe_request(|entry| entry.request = Some(id.clone()));
    let span = tracing::info_span!("http", id);

    let mut response = match check_host_and_origin(request.headers(), &names) {
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
/// reach, so a page on the internet could submit syncs to a master in a private network. Browsers send the site of the
/// page as `Origin`; if the host name of a page resolves to the address of the master, that name is in `Host`.
fn check_host_and_origin(headers: &HeaderMap, names: &HostNames) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        let detail = "the request has several headers `Host`";
        return Err(Problem::new(ProblemCode::InvalidParameter, detail).with_hint("send one"));
    }
    let host = host.map(|v| v.to_str().unwrap_or_default());
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let is_own = authority.is_some() && authority == host;
        let is_advertised = |advertised: &AdvertisedHost| advertised.is_origin(origin);
        if !is_own && !names.advertised.as_ref().is_some_and(is_advertised) {
            return Err(Problem::new(
                ProblemCode::ForeignOrigin,
                "requests of other sites' web pages are not accepted",
            ));
        }
    }
    if host.is_none_or(|host| names.contain(host)) {
        return Ok(());
    }
    let detail = "the name in the header `Host` is not one of this master";
    Err(Problem::new(ProblemCode::ForeignHost, detail).with_hint(
        "use an IP address or localhost, or add the name to `allowed_hosts` in the master's file and reload it \
         (kill -HUP); behind a proxy, set `advertise_url` to the URL that clients use",
    ))
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
    use crate::config::{Env, load_master};

    #[test]
    fn only_addresses_and_localhost_are_local_host_names() {
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

    fn names(allowed: &[&str], advertised: Option<&str>) -> HostNames {
        let mut config = load_master(None, &Env::empty()).unwrap().config;
        config.allowed_hosts = allowed.iter().map(|&name| name.to_owned()).collect();
        HostNames {
            advertised: advertised.and_then(AdvertisedHost::from_url),
            own: "head-a".to_owned(),
            config: watch::channel(config).1,
        }
    }

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(HOST, host.parse().unwrap());
        origin.map(|o| map.insert(ORIGIN, o.parse().unwrap()));
        map
    }

    #[test]
    fn other_names_and_origins_are_refused() {
        let names = names(&["ctl.example"], None);
        let status = |h: HeaderMap| check_host_and_origin(&h, &names).err().map(|p| p.status);
        for host in ["10.0.0.1:8888", "[fd00::1]:8888", "localhost", "head-a:8888", "HEAD-A"] {
            assert_eq!(status(headers(host, None)), None, "{host}");
        }
        for host in ["ctl.example", "CTL.example:8888"] {
            assert_eq!(status(headers(host, None)), None, "{host}");
        }
        for host in ["evil.example", "head-b", "x.ctl.example", "ctl.example.evil", ""] {
            assert_eq!(status(headers(host, None)), Some(421), "{host}");
        }
        assert_eq!(status(headers("127.0.0.1:8888", Some("http://127.0.0.1:8888"))), None);
        for origin in ["http://evil.example", "null"] {
            assert_eq!(status(headers("10.0.0.1:8888", Some(origin))), Some(403), "{origin}");
        }
        // What the page of a name that leads to the master sends.
        let rebound = headers("evil.example:8888", Some("http://evil.example:8888"));
        assert_eq!(status(rebound), Some(421));
        assert_eq!(status(HeaderMap::new()), None);
        let mut two = headers("localhost", None);
        two.append(HOST, "localhost".parse().unwrap());
        assert_eq!(status(two), Some(400));
    }

    #[test]
    fn a_proxy_may_send_the_advertised_host_name() {
        let names = names(&[], Some("http://Data.Example:8080/longhaul"));
        let status = |host: &str, origin: Option<&str>| {
            check_host_and_origin(&headers(host, origin), &names).err().map(|p| p.status)
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
