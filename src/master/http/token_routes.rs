//! The routes for tokens, and the one that shows as what a client is served.

use super::access::{App, LocalRules};
use super::api_state::MAX_BODY_BYTES;
use super::bearer::NewToken;
use super::object_reader::{
    ObjectReader, array, deserialize, integer, object_reader, optional, or_default, required,
    string,
};
use super::params::PathId;
use super::principal::Principal;
use super::response::{RouteResult, json_response, ok_json};
use crate::master::requests::{CreateToken, ListTokens, RevokeToken};
use crate::master::validation_errors::ValidationErrors;
use crate::scheduler::TokenRecord;
use crate::wire::problem::Problem;
use crate::wire::run_as::RunAs;
use crate::wire::token::{
    AuthStatus, CreatedToken, MAX_LABEL_BYTES, MAX_SCOPES, Role, TokenId, TokenRequest, TokenView,
};
use axum::Extension;
use axum::extract::Request;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// The longest life of a token that expires, in seconds: ten years.
const MAX_TTL_SECONDS: u32 = 10 * 366 * 86_400;

object_reader! {
    fn read_fields -> TokenRequest {
        role: required(deserialize),
        scopes: or_default(array(MAX_SCOPES, deserialize)),
        may: or_default(array(16, deserialize)),
        run_as: optional(run_as),
        ttl_seconds: optional(integer(1..=MAX_TTL_SECONDS)),
        label: optional(string(MAX_LABEL_BYTES)),
    }
}

fn run_as(value: Value) -> Result<RunAs, ValidationErrors> {
    let run_as: RunAs = deserialize(value)?;
    run_as.check().map_err(ValidationErrors::single)?;
    Ok(run_as)
}

fn read_token_request(value: Value) -> Result<TokenRequest, ValidationErrors> {
    let mut request = read_fields(value)?;
    let mut errors = ValidationErrors::default();
    let is_admin = request.role == Role::Admin;
    if is_admin && !request.scopes.is_empty() {
        errors.push("/scopes", "the role admin has no scopes: it may use all paths".to_owned());
    }
    if !is_admin && request.scopes.is_empty() {
        let role = request.role.as_str();
        errors.push("/scopes", format!("the role {role} needs at least one: {{\"from\": \"/\", \"to\": \"/\"}} for all paths"));
    }
    if request.role != Role::Operator && !request.may.is_empty() {
        errors.push(
            "/may",
            "is for the role operator: a viewer submits nothing, an admin may use all options"
                .to_owned(),
        );
    }
    if request.role != Role::Operator && request.run_as.is_some() {
        errors.push(
            "/run_as",
            "is for the role operator: a viewer submits nothing, and an admin could create a token without it"
                .to_owned(),
        );
    }
    request.may.dedup();
    errors.into_result(request)
}

/// The record of a new token, and its text.
///
/// # Errors
/// The system has no random numbers.
pub(in crate::master) fn new_token(
    request: TokenRequest,
    now: Timestamp,
) -> Result<(TokenRecord, String), Problem> {
    let new = NewToken::generate()?;
    let TokenRequest { role, scopes, may, run_as, ttl_seconds, label } = request;
    let end = |seconds: u32| {
        let life = SignedDuration::from_secs(seconds.into());
        now.checked_add(life).unwrap_or(Timestamp::MAX)
    };
    let view = TokenView {
        id: new.id,
        role,
        scopes,
        may,
        run_as,
        label,
        created_at: now,
        expires_at: ttl_seconds.map(end),
        revoked_at: None,
    };
    Ok((TokenRecord { view, secret_digest: new.secret_digest.into() }, new.text))
}

/// `POST /admin/tokens`. A repeat creates another token: the secret of the first one is lost with its reply.
pub(super) async fn create_token(App(app): App, request: Request) -> RouteResult {
    let request = app.read_document(request, MAX_BODY_BYTES, read_token_request).await?;
    let (record, secret) = new_token(request, Timestamp::now())?;
    let token = app.handle.send(CreateToken { record }).await?;
    Ok(json_response(StatusCode::CREATED, &CreatedToken { secret, token }))
}

pub(super) async fn list_tokens(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(ListTokens {}).await?))
}

pub(super) async fn revoke_token(App(app): App, PathId(id): PathId<TokenId>) -> RouteResult {
    Ok(ok_json(&app.handle.send(RevokeToken { id }).await?))
}

pub(super) async fn auth_status(
    App(app): App,
    Extension(principal): Extension<Principal>,
) -> RouteResult {
    let (principal, role, token) = match principal {
        Principal::Nobody => ("a client without credentials".to_owned(), Some(Role::Admin), None),
        Principal::LocalUser { uid } => {
            let role = LocalRules::of(&app).is_admin(uid).then_some(Role::Admin);
            (format!("uid {uid} of this host"), role, None)
        }
        Principal::Agent(agent) => (format!("the agent of worker {}", agent.worker), None, None),
        Principal::Token { view, .. } => {
            (format!("token {}", view.id), Some(view.role), Some((*view).clone()))
        }
    };
    Ok(ok_json(&AuthStatus { principal, role, token }))
}
