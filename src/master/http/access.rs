//! What a principal may do: the table of all routes, and the layer of the router that obeys it. A route without a row
//! cannot be reached.

use super::api_state::ApiState;
use super::middleware::ConnectionAddresses;
use super::principal::{LoopbackOwner, Principal, identify};
use super::response::{ProblemResponse, method_not_allowed};
use crate::wire::problem::{Problem, ProblemCode};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::ALLOW;
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// A group of principals that may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Every client: probes of load balancers have no credentials.
    Everyone,
    /// Agents.
    Agents,
    /// Operators.
    Operators,
}

use Access::{Agents, Everyone, Operators};

/// Every route: method, path, and the principals that may use it. `GET` includes `HEAD`.
pub(super) const ROUTES: &[(&str, &str, Access)] = &[
    ("GET", "/sync", Operators),
    ("POST", "/sync", Operators),
    ("GET", "/sync/{id}", Operators),
    ("PATCH", "/sync/{id}", Operators),
    ("DELETE", "/sync/{id}", Operators),
    ("POST", "/sync/{id}/cancel", Operators),
    ("POST", "/sync/{id}/retry", Operators),
    ("POST", "/sync/{id}/pause", Operators),
    ("POST", "/sync/{id}/resume", Operators),
    ("POST", "/sync/{id}/reassign", Operators),
    ("GET", "/sync/{id}/files", Operators),
    ("GET", "/sync/{id}/manifest", Operators),
    ("GET", "/workers", Operators),
    ("POST", "/workers/heartbeat", Agents),
    ("POST", "/workers/result", Agents),
    ("GET", "/workers/{id}", Operators),
    ("DELETE", "/workers/{id}", Operators),
    ("GET", "/workers/{id}/requests", Operators),
    ("POST", "/workers/{id}/drain", Operators),
    ("POST", "/workers/{id}/undrain", Operators),
    ("POST", "/workers/{id}/assignment", Agents),
    ("GET", "/workers/{id}/assignments/{assignment}/manifest", Agents),
    ("POST", "/workers/{id}/assignments/{assignment}/page", Agents),
    ("GET", "/storages", Operators),
    ("GET", "/storages/{id}", Operators),
    ("POST", "/admin/reconcile", Operators),
    ("POST", "/admin/confirm-clock", Operators),
    ("GET", "/admin/backup", Operators),
    ("GET", "/healthz", Everyone),
    ("GET", "/livez", Everyone),
    ("GET", "/readyz", Everyone),
    ("GET", "/version", Everyone),
];

/// The rules of this master for [`authorize`].
#[derive(Debug, Clone)]
struct Rules {
    /// The user of this process.
    own_uid: u32,
    /// The users of this host that run agents.
    agent_uids: Vec<u32>,
}

/// Refuses what the principal may not do. The routes of a private master are behind the secret in its path already.
pub(super) async fn authorize(
    State(app): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    if app.limits.path_secret.is_some() {
        return next.run(request).await;
    }
    let path =
        request.extensions().get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let path = path.strip_prefix("/v1").unwrap_or(path).to_owned();
    let Some(access) = find_access(request.method(), &path) else {
        return refuse_method(request.method().clone(), &path).await;
    };
    if access == Everyone {
        return next.run(request).await;
    }
    let rules = Rules {
        own_uid: rustix::process::geteuid().as_raw(),
        agent_uids: app.limits.config.borrow().local_agent_uids.clone(),
    };
    let unknown = ConnectionAddresses { local: None, client: None };
    let addresses = request.extensions().get::<ConnectionAddresses>().copied().unwrap_or(unknown);
    let owner = request.extensions().get::<LoopbackOwner>().cloned().unwrap_or_default();
    let headers = request.headers().clone();
    let principal = match identify(addresses, &owner, &headers).await {
        Ok(principal) => principal,
        Err(problem) => return ProblemResponse(problem).into_response(),
    };
    let mut response = match check_access(&principal, access, &rules) {
        Ok(()) => {
            request.extensions_mut().insert(principal.clone());
            next.run(request).await
        }
        Err(problem) => ProblemResponse(problem).into_response(),
    };
    response.extensions_mut().insert(principal);
    response
}

fn find_access(method: &Method, path: &str) -> Option<Access> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let row = ROUTES.iter().find(|(known, route, _)| *known == method && *route == path);
    row.map(|(_, _, access)| *access)
}

/// # Errors
/// 401 `local_user`, 403 `role_missing`.
fn check_access(principal: &Principal, access: Access, rules: &Rules) -> Result<(), Problem> {
    let uid = match principal {
        Principal::Nobody => return Ok(()),
        Principal::LocalUser { uid } => *uid,
    };
    let own = rules.own_uid;
    if uid == 0 || uid == own {
        return Ok(());
    }
    if rules.agent_uids.contains(&uid) {
        if access == Agents {
            return Ok(());
        }
        let detail =
            format!("uid {uid} is in `local_agent_uids`, which allows the routes of agents only");
        return Err(Problem::new(ProblemCode::RoleMissing, detail).with_hint(user_hint(own)));
    }
    let users =
        if own == 0 { "root".to_owned() } else { format!("root and its own user (uid {own})") };
    let detail =
        format!("this request is from uid {uid}; over loopback the master serves {users} only");
    let hint = match access {
        Agents => format!(
            "run the agent as that user, or add `local_agent_uids: [{uid}]` to the master's file and reload it (kill -HUP)"
        ),
        Everyone | Operators => user_hint(own),
    };
    Err(Problem::new(ProblemCode::LocalUser, detail).with_hint(hint))
}

/// How a command is run as a user that may run it.
fn user_hint(own: u32) -> String {
    match own {
        0 => "run the command as root: sudo ctl …".to_owned(),
        own => format!("run the command as that user: sudo -u '#{own}' ctl …"),
    }
}

/// The 405 of a method that has no row.
async fn refuse_method(method: Method, path: &str) -> Response {
    let rows = ROUTES.iter().filter(|(_, route, _)| *route == path);
    let allowed: Vec<&str> = rows
        .flat_map(
            |(method, _, _)| if *method == "GET" { vec!["GET", "HEAD"] } else { vec![*method] },
        )
        .collect();
    let mut response = method_not_allowed(method).await.into_response();
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(",")) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}
