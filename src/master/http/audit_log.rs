//! Logs the changes by operators: the action, its sync or worker, and the address of the client.

use axum::http::header::LOCATION;
use axum::http::{HeaderMap, Method};
use std::net::SocketAddr;

/// A request of an operator that changes something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OperatorAction<'a> {
    /// The log message, e.g. `sync cancelled`.
    description: &'static str,
    /// `None` if the response names the sync, or the action concerns none.
    sync: Option<&'a str>,
    worker: Option<&'a str>,
}

impl<'a> OperatorAction<'a> {
    /// `None` for requests that only read, and for requests of agents.
    pub(super) fn classify(method: &Method, path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let mut parts = path.trim_start_matches('/').split('/');
        let (collection, id, verb) = (parts.next()?, parts.next(), parts.next());
        let sync = |description| Some(OperatorAction { description, sync: id, worker: None });
        let worker = |description| Some(OperatorAction { description, sync: None, worker: id });
        let all = |description| Some(OperatorAction { description, sync: None, worker: None });
        match (method.as_str(), collection, id, verb, parts.next()) {
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
            ("POST", "workers", Some(_), Some("revoke"), None) => worker("worker revoked"),
            ("POST", "admin", Some("reconcile"), None, None) => all("records reconciled"),
            ("POST", "admin", Some("confirm-clock"), None, None) => all("wall clock confirmed"),
            ("POST", "admin", Some("rotate-ticket-key"), None, None) => all("ticket key rotated"),
            ("GET", "admin", Some("backup"), None, None) => all("backup read"),
            _ => None,
        }
    }

    /// Logs the action after its success. `client` is the address of a proxy, if there is one; that may name the client
    /// in a header.
    pub(super) fn log(
        &self,
        client: Option<SocketAddr>,
        request: &HeaderMap,
        response: &HeaderMap,
    ) {
        let client = client.map(|address| tracing::field::display(address.ip().to_canonical()));
        let forwarded_for = request.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let user_agent = request.get("user-agent").and_then(|value| value.to_str().ok());
        let new_sync = response.get(LOCATION).and_then(|value| value.to_str().ok());
        let new_sync = new_sync.and_then(|url| url.rsplit('/').next());
        let (sync, new_sync) = match self.sync {
            None if self.worker.is_none() => (new_sync, None),
            sync => (sync, new_sync),
        };
        let OperatorAction { description, worker, .. } = self;
        tracing::info!(sync, new_sync, worker, client, forwarded_for, user_agent, "{description}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_change_something_are_logged_as_operator_actions() {
        let classify = |method: &str, path| {
            OperatorAction::classify(&method.parse().unwrap(), path)
                .map(|action| (action.description, action.sync.or(action.worker)))
        };
        let actions = [
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
            ("POST", "/workers/w/revoke", "worker revoked", Some("w")),
            ("POST", "/admin/reconcile", "records reconciled", None),
            ("POST", "/admin/confirm-clock", "wall clock confirmed", None),
            ("POST", "/admin/rotate-ticket-key", "ticket key rotated", None),
            ("GET", "/admin/backup", "backup read", None),
        ];
        for (method, path, description, id) in actions {
            assert_eq!(classify(method, path), Some((description, id)), "{method} {path}");
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
            assert_eq!(classify(method, path), None, "{method} {path}");
        }
    }
}
