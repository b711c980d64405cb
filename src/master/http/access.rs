//! What a principal may do: the layer of the router that obeys the [table of all routes](super::route_table). A route
//! without a row cannot be reached. Which syncs and options an operator may use is checked by the scheduler.

use super::api_state::ApiState;
use super::bearer::{read_token, verify_token};
use super::principal::ConnectionAddresses;
use super::principal::{LoopbackOwner, Principal, TlsClient, identify};
use super::response::{ProblemResponse, method_not_allowed};
use super::route_table::Access::{self, Agents, Certificates, Everyone, Identified};
use super::route_table::{ROUTES, find_route};
use crate::master::audit::describe_request;
use crate::scheduler::AgentRecord;
use crate::util::admission::AdmittedConnection;
use crate::wire::problem::{Problem, ProblemCode};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{ALLOW, CONNECTION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use std::convert::Infallible;
use std::sync::Arc;

/// The state for the handler of a request. Its [`MasterHandle`](crate::master::handle::MasterHandle) has the rights of
/// the principal.
pub(super) struct App(pub(super) ApiState);

impl FromRequestParts<ApiState> for App {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Infallible> {
        let mut app = state.clone();
        match parts.extensions.get::<Principal>() {
            Some(Principal::Token { grant: Some(grant), .. }) => {
                app.handle = app.handle.restricted_to(Arc::clone(grant));
            }
            Some(Principal::Agent(agent)) => app.handle = app.handle.of_agent(Some(agent)),
            Some(Principal::LocalUser { uid }) if !LocalRules::of(&app).is_admin(*uid) => {
                app.handle = app.handle.of_agent(None);
            }
            _ => {}
        }
        Ok(App(app))
    }
}

/// The rules of this master for connections over loopback.
#[derive(Debug, Clone)]
pub(super) struct LocalRules {
    /// The user of this process.
    own_uid: u32,
    /// The users of this host that run agents.
    agent_uids: Vec<u32>,
}

impl LocalRules {
    pub(super) fn of(app: &ApiState) -> Self {
        LocalRules {
            own_uid: rustix::process::geteuid().as_raw(),
            agent_uids: app.limits.config.borrow().local_agent_uids.clone(),
        }
    }

    pub(super) fn is_admin(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }
}

/// Refuses what the principal may not do. The routes of a private master are behind the secret in its path already.
pub(super) async fn authorize(
    State(app): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    if app.limits.path_secret.is_some() {
        request.extensions_mut().insert(Principal::Nobody);
        mark_verified(&request);
        return next.run(request).await;
    }
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let path = path.map(|path| path.strip_prefix("/v1").unwrap_or(path)).unwrap_or_default();
    let path = path.to_owned();
    let Some((access, _)) = find_route(request.method(), &path) else {
        return refuse_method(request.method().clone(), &path).await;
    };
    if access == Everyone {
        return next.run(request).await;
    }
    let unknown = ConnectionAddresses { local: None, client: None };
    let addresses = request.extensions().get::<ConnectionAddresses>().copied().unwrap_or(unknown);
    let owner = request.extensions().get::<LoopbackOwner>().cloned().unwrap_or_default();
    let tls = request.extensions().get::<TlsClient>().cloned();
    let headers = request.headers().clone();
    let authenticated = authenticate(&app, addresses, &owner, tls.as_ref(), &headers).await;
    let mut response = match authenticated {
        Ok(principal) => {
            describe_request(|entry| entry.principal = Some(principal.to_string()));
            let mut response = match check_access(&principal, access, &LocalRules::of(&app)) {
                Ok(()) => {
                    request.extensions_mut().insert(principal.clone());
                    mark_verified(&request);
                    next.run(request).await
                }
                Err(problem) => ProblemResponse(problem).into_response(),
            };
            response.extensions_mut().insert(principal);
            response
        }
        Err(problem) => ProblemResponse(problem).into_response(),
    };
    let authorities = app.authorities();
    if tls.is_some_and(|client| client.is_due_for_renewal(authorities.as_deref())) {
        // The agent has the next certificate, or soon has, which only another connection presents.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// From now on the connection is not closed for one that has sent no valid request.
fn mark_verified(request: &Request) {
    if let Some(place) = request.extensions().get::<Arc<AdmittedConnection>>() {
        place.mark_verified();
    }
}

/// A token overrides what the connection stands for, and a certificate the user of the connection.
///
/// # Errors
/// 401 for a token that is not valid, 429 after several; 401 and 403 for a certificate that is not valid; 401 as
/// [`identify`]; 503 while this master does not lead.
async fn authenticate(
    app: &ApiState,
    addresses: ConnectionAddresses,
    owner: &LoopbackOwner,
    tls: Option<&TlsClient>,
    headers: &HeaderMap,
) -> Result<Principal, Problem> {
    let read = match read_token(headers) {
        Ok(None) => {
            let Some(certificate) = tls.and_then(|client| client.certificate.as_ref()) else {
                return identify(addresses, owner, tls.is_some(), headers).await;
            };
            certificate.check_validity()?;
            let agents = app.handle.leader_channel()?.agents.borrow().clone();
            let agent = agents.verify(&certificate.agent)?;
            certificate.check_authority(app.authorities().as_deref())?;
            let authority = certificate.agent.authority;
            return Ok(Principal::Agent(Arc::new(AgentRecord { authority, ..agent.clone() })));
        }
        Ok(Some(token)) => {
            let tokens = app.handle.leader_channel()?.tokens.borrow().clone();
            let now_ms = Timestamp::now().as_millisecond();
            verify_token(&tokens, &token, now_ms).cloned()
        }
        Err(problem) => Err(problem),
    };
    read.map(Principal::token).map_err(|problem| app.count_failure(addresses, problem))
}

/// # Errors
/// 401 `local_user`, 403 `role_missing`.
fn check_access(principal: &Principal, access: Access, rules: &LocalRules) -> Result<(), Problem> {
    match principal {
        Principal::Nobody => Ok(()),
        Principal::LocalUser { uid } => check_local_user(*uid, access, rules),
        Principal::Agent(agent) => match access {
            Everyone | Identified | Agents | Certificates => Ok(()),
            Access::Operators(_) => {
                let worker = &agent.worker;
                let detail =
                    format!("the agent of worker `{worker}` may use the routes of agents only");
                Err(Problem::new(ProblemCode::RoleMissing, detail)
                    .with_hint("use a token of an operator: ctl auth login --token-file FILE"))
            }
        },
        Principal::Token { view, .. } => {
            let needed = match access {
                Everyone | Identified => return Ok(()),
                Access::Operators(role) if role <= view.role => return Ok(()),
                Access::Operators(role) => format!("the role `{}`", role.as_str()),
                Agents | Certificates => "an agent".to_owned(),
            };
            let (id, role) = (&view.id, view.role.as_str());
            let detail =
                format!("the token {id} has the role `{role}`; this request needs {needed}");
            Err(Problem::new(ProblemCode::RoleMissing, detail).with_hint(
                "use another token (ctl auth login), or have an administrator create one: ctl token create --role ROLE",
            ))
        }
    }
}

fn check_local_user(uid: u32, access: Access, rules: &LocalRules) -> Result<(), Problem> {
    if rules.is_admin(uid) {
        return Ok(());
    }
    let own = rules.own_uid;
    if rules.agent_uids.contains(&uid) {
        if matches!(access, Agents | Certificates | Identified) {
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
        Agents | Certificates => format!(
            "run the agent as that user, or add `local_agent_uids: [{uid}]` to the master's file and reload it (kill -HUP)"
        ),
        Everyone | Identified | Access::Operators(_) => user_hint(own),
    };
    Err(Problem::new(ProblemCode::LocalUser, detail).with_hint(hint))
}

/// How a command is run as a user that may run it.
fn user_hint(own: u32) -> String {
    let run = match own {
        0 => "run the command as root (sudo ctl …)".to_owned(),
        own => format!("run the command as that user (sudo -u '#{own}' ctl …)"),
    };
    format!("{run}, or use a token: ctl auth login --token-file FILE")
}

/// The 405 of a method that has no row.
async fn refuse_method(method: Method, path: &str) -> Response {
    let rows = ROUTES.iter().filter(|(_, route, ..)| *route == path);
    let allowed: Vec<&str> = rows
        .flat_map(|(method, ..)| if *method == "GET" { vec!["GET", "HEAD"] } else { vec![*method] })
        .collect();
    let mut response = method_not_allowed(method).await.into_response();
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(",")) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}
