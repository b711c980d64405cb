//! The table of all routes: the principals that may use each, and what is recorded of it.

use crate::wire::token::Role;
use axum::http::Method;

/// The principals that may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Every client: probes of load balancers have no credentials.
    Everyone,
    /// Agents.
    Agents,
    /// Agents with certificates.
    Certificates,
    /// Every client with valid credentials.
    Identified,
    /// Operators with this role or one that includes it.
    Operators(Role),
}

use Access::{Agents, Certificates, Everyone, Identified};
const VIEWERS: Access = Access::Operators(Role::Viewer);
const OPERATORS: Access = Access::Operators(Role::Operator);
const ADMINS: Access = Access::Operators(Role::Admin);

/// What the logs say of a request that succeeded, see [`audit_log`](super::audit_log).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Action {
    /// The action in the audit log, e.g. `sync.cancel`.
    pub(super) name: &'static str,
    /// The message in the log of the master, e.g. `sync cancelled`.
    pub(super) description: &'static str,
}

const fn action(name: &'static str, description: &'static str) -> Option<Action> {
    Some(Action { name, description })
}

/// Requests that only read, and those of agents, have a line in the audit log only if they are denied.
const UNRECORDED: Option<Action> = None;

/// Every route: method, path, the principals that may use it, and what is recorded of it. `GET` includes `HEAD`.
pub(super) const ROUTES: &[(&str, &str, Access, Option<Action>)] = &[
    ("GET", "/sync", VIEWERS, UNRECORDED),
    ("POST", "/sync", OPERATORS, action("sync.submit", "sync submitted")),
    ("GET", "/sync/{id}", VIEWERS, UNRECORDED),
    ("PATCH", "/sync/{id}", OPERATORS, action("sync.change", "sync changed")),
    ("DELETE", "/sync/{id}", OPERATORS, action("sync.delete", "sync deleted")),
    ("POST", "/sync/{id}/cancel", OPERATORS, action("sync.cancel", "sync cancelled")),
    ("POST", "/sync/{id}/retry", OPERATORS, action("sync.retry", "sync retried")),
    ("POST", "/sync/{id}/pause", OPERATORS, action("sync.pause", "sync paused")),
    ("POST", "/sync/{id}/resume", OPERATORS, action("sync.resume", "sync resumed")),
    ("POST", "/sync/{id}/reassign", OPERATORS, action("sync.reassign", "tasks reassigned")),
    ("GET", "/sync/{id}/files", VIEWERS, UNRECORDED),
    ("GET", "/sync/{id}/manifest", VIEWERS, UNRECORDED),
    ("GET", "/workers", VIEWERS, UNRECORDED),
    ("POST", "/workers/heartbeat", Agents, UNRECORDED),
    ("POST", "/workers/result", Agents, UNRECORDED),
    ("GET", "/workers/{id}", VIEWERS, UNRECORDED),
    ("DELETE", "/workers/{id}", ADMINS, action("worker.forget", "worker forgotten")),
    ("GET", "/workers/{id}/requests", VIEWERS, UNRECORDED),
    ("POST", "/workers/{id}/drain", ADMINS, action("worker.drain", "worker drained")),
    ("POST", "/workers/{id}/undrain", ADMINS, action("worker.undrain", "worker undrained")),
    ("POST", "/workers/{id}/revoke", ADMINS, action("worker.revoke", "worker revoked")),
    ("POST", "/workers/{id}/assignment", Agents, UNRECORDED),
    ("GET", "/workers/{id}/assignments/{assignment}/manifest", Agents, UNRECORDED),
    ("POST", "/workers/{id}/assignments/{assignment}/page", Agents, UNRECORDED),
    ("GET", "/storages", VIEWERS, UNRECORDED),
    ("GET", "/storages/{id}", VIEWERS, UNRECORDED),
    ("POST", "/admin/reconcile", ADMINS, action("admin.reconcile", "records reconciled")),
    ("POST", "/admin/confirm-clock", ADMINS, action("admin.confirm_clock", "wall clock confirmed")),
    (
        "POST",
        "/admin/rotate-ticket-key",
        ADMINS,
        action("admin.rotate_ticket_key", "ticket key rotated"),
    ),
    ("GET", "/admin/ca", ADMINS, UNRECORDED),
    (
        "POST",
        "/admin/rotate-ca",
        ADMINS,
        action("admin.rotate_ca", "rotation of the certificate authority"),
    ),
    (
        "POST",
        "/admin/rotate-ca/finish",
        ADMINS,
        action("admin.finish_ca_rotation", "end of the rotation of the certificate authority"),
    ),
    ("GET", "/admin/backup", ADMINS, action("admin.backup", "backup read")),
    ("GET", "/admin/tokens", ADMINS, UNRECORDED),
    ("POST", "/admin/tokens", ADMINS, action("token.create", "token created")),
    ("DELETE", "/admin/tokens/{id}", ADMINS, action("token.revoke", "token revoked")),
    ("POST", "/admin/join-tokens", ADMINS, action("join_token.create", "join token created")),
    (
        "DELETE",
        "/admin/join-tokens/{id}",
        ADMINS,
        action("join_token.revoke", "join token revoked"),
    ),
    // The join token in the body is checked by the handler.
    ("POST", "/join", Everyone, action("worker.join", "agent joined")),
    ("POST", "/renew", Certificates, UNRECORDED),
    ("GET", "/auth/status", Identified, UNRECORDED),
    ("GET", "/healthz", Everyone, UNRECORDED),
    ("GET", "/livez", Everyone, UNRECORDED),
    ("GET", "/readyz", Everyone, UNRECORDED),
    ("GET", "/version", Everyone, UNRECORDED),
];

/// The row of a route.
pub(super) fn find_route(method: &Method, path: &str) -> Option<(Access, Option<Action>)> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let row = ROUTES.iter().find(|(known, route, ..)| *known == method && *route == path);
    row.map(|(_, _, access, action)| (*access, *action))
}
