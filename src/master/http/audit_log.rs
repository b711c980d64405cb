//! Orders of operators in the log: what was changed, of what, and from which address.

use axum::http::header::LOCATION;
use axum::http::{HeaderMap, Method};
use std::net::SocketAddr;

/// A request by which an operator changes something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OperatorAction<'a> {
    /// What was done, e.g. `sync cancelled`.
    description: &'static str,
    /// Of which sync or worker; `None` where the answer names it, or where it is about all of them.
    sync: Option<&'a str>,
    worker: Option<&'a str>,
}

impl<'a> OperatorAction<'a> {
    /// The order that `method` gives at `path`; `None` for what only reads, and for what agents send.
    pub(super) fn classify(method: &Method, path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let mut parts = path.trim_start_matches('/').split('/');
        let (room, id, verb) = (parts.next()?, parts.next(), parts.next());
        let sync = |done| Some(OperatorAction { description: done, sync: id, worker: None });
        let worker = |done| Some(OperatorAction { description: done, sync: None, worker: id });
        let all = |done| Some(OperatorAction { description: done, sync: None, worker: None });
        match (method.as_str(), room, id, verb, parts.next()) {
            ("POST", "sync", None, None, None) => sync("sync submitted"),
            ("PATCH", "sync", Some(_), None, None) => sync("sync changed"),
            ("DELETE", "sync", Some(_), None, None) => sync("sync deleted"),
            ("POST", "sync", Some(_), Some(verb), None) => match verb {
                "cancel" => sync("sync cancelled"),
                "retry" => sync("sync retried"),
                "pause" => sync("sync paused"),
                "resume" => sync("sync resumed"),
                "reassign" => sync("tasks reassigned"),
                _ => None,
            },
            ("DELETE", "workers", Some(_), None, None) => worker("worker forgotten"),
            ("POST", "workers", Some(_), Some("drain"), None) => worker("worker drained"),
            ("POST", "workers", Some(_), Some("undrain"), None) => worker("worker undrained"),
            ("POST", "admin", Some("reconcile"), None, None) => all("records reconciled"),
            ("POST", "admin", Some("confirm-clock"), None, None) => all("wall clock confirmed"),
            ("GET", "admin", Some("backup"), None, None) => all("backup read"),
            _ => None,
        }
    }

    /// Logs that it was carried out for `client`; `answer` are the headers of the response, `asked` those of the
    /// request. The address is that of a proxy where there is one, which may name the client.
    pub(super) fn log(&self, client: Option<SocketAddr>, asked: &HeaderMap, answer: &HeaderMap) {
        let client = client.map(|address| tracing::field::display(address.ip().to_canonical()));
        let forwarded_for = asked.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let user_agent = asked.get("user-agent").and_then(|value| value.to_str().ok());
        let made = answer.get(LOCATION).and_then(|value| value.to_str().ok());
        let made = made.and_then(|url| url.rsplit('/').next());
        let (sync, new_sync) = match self.sync {
            None if self.worker.is_none() => (made, None),
            sync => (sync, made),
        };
        let OperatorAction { description: done, worker, .. } = self;
        tracing::info!(sync, new_sync, worker, client, forwarded_for, user_agent, "{done}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_change_something_are_logged_as_operator_actions() {
        let of = |method: &str, path| {
            OperatorAction::classify(&method.parse().unwrap(), path)
                .map(|o| (o.description, o.sync.or(o.worker)))
        };
        let orders = [
            ("POST", "/sync", "sync submitted", None),
            ("POST", "/v1/sync", "sync submitted", None),
            ("PATCH", "/sync/a", "sync changed", Some("a")),
            ("DELETE", "/v1/sync/a", "sync deleted", Some("a")),
            ("POST", "/sync/a/cancel", "sync cancelled", Some("a")),
            ("POST", "/sync/a/retry", "sync retried", Some("a")),
            ("POST", "/sync/a/pause", "sync paused", Some("a")),
            ("POST", "/sync/a/resume", "sync resumed", Some("a")),
            ("POST", "/sync/a/reassign", "tasks reassigned", Some("a")),
            ("DELETE", "/workers/w", "worker forgotten", Some("w")),
            ("POST", "/workers/w/drain", "worker drained", Some("w")),
            ("POST", "/workers/w/undrain", "worker undrained", Some("w")),
            ("POST", "/admin/reconcile", "records reconciled", None),
            ("POST", "/admin/confirm-clock", "wall clock confirmed", None),
            ("GET", "/admin/backup", "backup read", None),
        ];
        for (method, path, done, about) in orders {
            assert_eq!(of(method, path), Some((done, about)), "{method} {path}");
        }
        for (method, path) in [
            ("GET", "/sync"),
            ("GET", "/sync/a"),
            ("GET", "/workers/w"),
            ("POST", "/workers/heartbeat"),
            ("POST", "/workers/result"),
            ("POST", "/workers/w/assignment"),
            ("POST", "/workers/w/assignments/1/page"),
            ("POST", "/sync/a/other"),
            ("GET", "/readyz"),
            ("POST", "/"),
        ] {
            assert_eq!(of(method, path), None, "{method} {path}");
        }
    }
}
