//! Logs the changes by operators: the action, its object, and the principal and address of the client.

use super::principal::Principal;
use super::route_table::{Action, find_route};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, Method};
use std::net::SocketAddr;

/// A request that is recorded: one of an operator that changes something, or reads everything.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OperatorAction<'a> {
    action: Action,
    /// `None` if the response names the sync, or the action concerns none.
    pub(super) sync: Option<&'a str>,
    pub(super) worker: Option<&'a str>,
    pub(super) token: Option<&'a str>,
}

impl<'a> OperatorAction<'a> {
    /// `route` is the route of the request, `path` its path. `None` for requests that have no action in the table of
    /// routes.
    pub(super) fn classify(method: &Method, route: &str, path: &'a str) -> Option<Self> {
        let route = route.strip_prefix("/v1").unwrap_or(route);
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let (_, action) = find_route(method, route)?;
        let mut segments = route.split('/').zip(path.split('/'));
        let id = segments.find(|(name, _)| *name == "{id}").map(|(_, id)| id);
        let id_below = |collection| id.filter(|_| route.starts_with(collection));
        Some(OperatorAction {
            action: action?,
            sync: id_below("/sync/"),
            worker: id_below("/workers/"),
            token: id_below("/admin/tokens/").or(id_below("/admin/join-tokens/")),
        })
    }

    /// The action in the audit log, e.g. `sync.cancel`.
    pub(super) fn name(&self) -> &'static str {
        self.action.name
    }

    /// Logs the action after its success. `client` is the address of a proxy, if there is one; that may name the client
    /// in a header.
    pub(super) fn log(
        &self,
        principal: Option<&Principal>,
        client: Option<SocketAddr>,
        request: &HeaderMap,
        response: &HeaderMap,
    ) {
        let client = client.map(|address| tracing::field::display(address.ip().to_canonical()));
        let principal = principal.map(tracing::field::display);
        let forwarded_for = request.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let user_agent = request.get("user-agent").and_then(|value| value.to_str().ok());
        let new_sync = response.get(LOCATION).and_then(|value| value.to_str().ok());
        let new_sync = new_sync.and_then(|url| url.rsplit('/').next());
        let (sync, new_sync) = match self.sync {
            None => (new_sync, None),
            sync => (sync, new_sync),
        };
        let OperatorAction { action: Action { description, .. }, worker, token, .. } = self;
        tracing::info!(
            sync,
            new_sync,
            worker,
            token,
            principal,
            client,
            forwarded_for,
            user_agent,
            "{description}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::route_table::{Access, ROUTES};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_object_of_an_action_is_the_id_in_the_path() {
        let classify = |method: &str, route, path| {
            let action = OperatorAction::classify(&method.parse().unwrap(), route, path)?;
            Some((action.name(), action.sync, action.worker, action.token))
        };
        let cases = [
            ("POST", "/sync", "/sync", ("sync.submit", None, None, None)),
            ("POST", "/v1/sync", "/v1/sync", ("sync.submit", None, None, None)),
            ("DELETE", "/v1/sync/{id}", "/v1/sync/a", ("sync.delete", Some("a"), None, None)),
            ("POST", "/sync/{id}/retry", "/sync/v1/retry", ("sync.retry", Some("v1"), None, None)),
            ("DELETE", "/workers/{id}", "/workers/w", ("worker.forget", None, Some("w"), None)),
            (
                "DELETE",
                "/admin/tokens/{id}",
                "/admin/tokens/t",
                ("token.revoke", None, None, Some("t")),
            ),
            ("HEAD", "/admin/backup", "/admin/backup", ("admin.backup", None, None, None)),
        ];
        for (method, route, path, expected) in cases {
            assert_eq!(classify(method, route, path), Some(expected), "{method} {path}");
        }
        for (method, route) in [
            ("GET", "/sync"),
            ("POST", "/workers/heartbeat"),
            ("POST", "/workers/{id}/assignment"),
            ("POST", "/unknown"),
            ("POST", ""),
        ] {
            assert_eq!(classify(method, route, route), None, "{method} {route}");
        }
    }

    #[test]
    fn every_change_by_an_operator_has_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for (method, path, access, action) in ROUTES {
            let is_change = *method != "GET" && matches!(access, Access::Operators(_));
            assert!(action.is_some() || !is_change, "{method} {path} changes and is not recorded");
            if let Some(action) = action {
                assert!(names.insert(action.name), "{} is the name of two routes", action.name);
            }
        }
    }
}
