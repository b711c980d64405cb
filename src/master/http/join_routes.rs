//! The routes by which agents get certificates, and those by which operators allow and revoke that.

use super::access::App;
use super::api_state::{ApiState, MAX_BODY_BYTES};
use super::bearer::NewToken;
use super::object_reader::{
    ObjectReader, array, boolean, deserialize, integer, object_reader, optional, or_default,
    required, string,
};
use super::params::PathId;
use super::principal::ConnectionAddresses;
use super::principal::{Principal, TlsClient};
use super::response::{RouteResult, json_response, ok_json};
use crate::identity::{PublicKey, SealedAuthority, Sealer, SharedAuthorities};
use crate::master::requests::{
    CreateJoinToken, FinishRotation, GetAuthority, JoinAgent, RevokeJoinToken, RevokeWorker,
    RotateAuthority,
};
use crate::master::validation_errors::ValidationErrors;
use crate::scheduler::{AgentKey, AgentRecord, Join, JoinTokenRecord};
use crate::wire::Digest;
use crate::wire::WorkerId;
use crate::wire::admin::FinishRotationRequest;
use crate::wire::join::{
    CreatedJoinToken, IssuedCertificate, JoinRequest, JoinToken, JoinTokenRequest, JoinTokenView,
    MAX_JOIN_PATHS,
};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::TokenId;
use axum::Extension;
use axum::extract::Request;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::UnixTime;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// The life of a join token without another one, in seconds.
const DEFAULT_TTL_SECONDS: u32 = 15 * 60;
/// The longest life of a join token, in seconds: it is used at once, or it is forgotten somewhere.
const MAX_TTL_SECONDS: u32 = 30 * 86_400;
/// The maximum length of a certificate signing request.
const MAX_SIGNING_REQUEST_BYTES: usize = 16 << 10;

/// The limit for a request to join, which needs no credentials but the token in it.
const MAX_JOIN_BYTES: usize = 64 << 10;

/// What the API needs for certificates of agents.
#[derive(Clone)]
pub(in crate::master) struct ApiAuthority {
    /// They issue the certificates.
    pub(in crate::master) authorities: Arc<SharedAuthorities>,
    /// BLAKE3 of the certificate of the authority of the API's TLS, if that has a certificate from an operator.
    pub(in crate::master) operator: Option<Digest>,
    /// For the key of another authority that replaces this one.
    pub(in crate::master) sealer: Sealer,
}

impl ApiAuthority {
    /// BLAKE3 of the authority's certificate that the TLS of the API presents.
    fn presented(&self) -> Digest {
        self.operator.unwrap_or_else(|| self.authorities.current().issuer().hash().into())
    }
}

impl fmt::Debug for ApiAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiAuthority({})", self.presented())
    }
}

object_reader! {
    fn read_fields -> JoinTokenRequest {
        worker_id: required(deserialize),
        storage_paths: required(array(MAX_JOIN_PATHS, deserialize)),
        ttl_seconds: optional(integer(1..=MAX_TTL_SECONDS)),
    }
}

fn read_join_token_request(value: Value) -> Result<JoinTokenRequest, ValidationErrors> {
    let request = read_fields(value)?;
    let mut errors = ValidationErrors::default();
    if request.storage_paths.is_empty() {
        errors.push("/storage_paths", "needs at least one directory of the worker".to_owned());
    }
    errors.into_result(request)
}

object_reader! {
    fn read_join_request -> JoinRequest {
        token: required(deserialize),
        worker_id: required(deserialize),
        signing_request: required(string(MAX_SIGNING_REQUEST_BYTES)),
    }
}

object_reader! {
    fn read_finish_rotation_request -> FinishRotationRequest {
        force: or_default(boolean),
    }
}

/// # Errors
/// 409: this master serves no TLS.
fn find_authority(app: &ApiState) -> Result<&ApiAuthority, Problem> {
    app.limits.authority.as_ref().ok_or_else(|| {
        let detail = "this master serves no address with TLS, and agents get no certificates without it";
        Problem::new(ProblemCode::NoAuthority, detail).with_hint(
            "agents on the master's host need none (docs/security.md); for other hosts start the master with `listen: \
             ['127.0.0.1:8888', 'ADDRESS:8888']`",
        )
    })
}

/// `POST /admin/join-tokens`. A repeat creates another token: the secret of the first one is lost with its reply.
pub(super) async fn create_join_token(App(app): App, request: Request) -> RouteResult {
    let authority = find_authority(&app)?.presented();
    let request = app.read_document(request, MAX_BODY_BYTES, read_join_token_request).await?;
    let JoinTokenRequest { worker_id, storage_paths, ttl_seconds } = request;
    let new = NewToken::generate()?;
    let created_at = Timestamp::now();
    let life = SignedDuration::from_secs(ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS).into());
    let view = JoinTokenView {
        id: new.id.clone(),
        worker_id,
        storage_paths,
        created_at,
        expires_at: created_at.checked_add(life).unwrap_or(Timestamp::MAX),
        used_at: None,
        revoked_at: None,
    };
    let secret = JoinToken { authority, id: new.id, secret: new.secret };
    let record = JoinTokenRecord { view, secret_digest: secret.secret_digest(), used_by: None };
    let token = app.handle.send(CreateJoinToken { record }).await?;
    Ok(json_response(StatusCode::CREATED, &CreatedJoinToken { secret, token }))
}

pub(super) async fn revoke_join_token(App(app): App, PathId(id): PathId<TokenId>) -> RouteResult {
    Ok(ok_json(&app.handle.send(RevokeJoinToken { id }).await?))
}

pub(super) async fn revoke_worker(App(app): App, PathId(worker): PathId<WorkerId>) -> RouteResult {
    Ok(ok_json(&app.handle.send(RevokeWorker { worker }).await?))
}

/// `POST /join`. The token in the body stands for other credentials.
pub(super) async fn join(
    App(app): App,
    Extension(addresses): Extension<ConnectionAddresses>,
    request: Request,
) -> RouteResult {
    let authority = find_authority(&app)?.clone();
    let request = app.read_document(request, MAX_JOIN_BYTES, read_join_request).await?;
    let JoinRequest { token, worker_id, signing_request } = request;
    let key = PublicKey::of_signing_request(&signing_request).map_err(|e| {
        let mut errors = ValidationErrors::default();
        errors.push("/signing_request", e.to_string());
        errors.into_problem()
    })?;
    let agent = AgentKey { worker: worker_id, key: key.digest(), authority: None };
    let secret_digest = token.secret_digest();
    let join = Join { token: token.id, secret_digest, agent };
    let joined = app.handle.send(JoinAgent { join }).await;
    let agent = joined.map_err(|problem| match problem.status {
        401 | 403 => app.count_failure(addresses, problem),
        _ => problem,
    })?;
    Ok(ok_json(&issue(&app, &authority, &agent, &key)?))
}

/// `POST /renew`: the next certificate for the key of the one of this connection.
pub(super) async fn renew(
    App(app): App,
    Extension(principal): Extension<Principal>,
    client: Option<Extension<TlsClient>>,
) -> RouteResult {
    let certificate = client.and_then(|Extension(client)| client.certificate);
    let (Principal::Agent(agent), Some(certificate)) = (principal, certificate) else {
        let detail = "this connection presents no certificate that could be renewed";
        return Err(Problem::new(ProblemCode::NotJoined, detail).into());
    };
    let authority = find_authority(&app)?.clone();
    Ok(ok_json(&issue(&app, &authority, &agent, &certificate.public_key)?))
}

pub(super) async fn get_authority(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(GetAuthority {}).await?))
}

/// `POST /admin/rotate-ca`. During a rotation it changes nothing.
pub(super) async fn rotate_authority(App(app): App) -> RouteResult {
    let authority = find_authority(&app)?.clone();
    let lifetime = app.limits.config.borrow().agent_certificate_lifetime;
    let current = authority.authorities.current();
    let next = SealedAuthority::replacing(current.issuer(), &authority.sealer, lifetime).map_err(
        |error| {
            tracing::error!(%error, "the certificate authority is not replaced");
            Problem::new(ProblemCode::Internal, "no authority can be made; see the master's log")
        },
    )?;
    Ok(ok_json(&app.handle.send(RotateAuthority { next: Box::new(next) }).await?))
}

/// `POST /admin/rotate-ca/finish`. After the end of a rotation it changes nothing.
pub(super) async fn finish_rotation(App(app): App, request: Request) -> RouteResult {
    let read = read_finish_rotation_request;
    let FinishRotationRequest { force } = app.read_document(request, MAX_BODY_BYTES, read).await?;
    Ok(ok_json(&app.handle.send(FinishRotation { force }).await?))
}

fn issue(
    app: &ApiState,
    authority: &ApiAuthority,
    agent: &AgentRecord,
    key: &PublicKey,
) -> Result<IssuedCertificate, Problem> {
    let lifetime = app.limits.config.borrow().agent_certificate_lifetime;
    let (authorities, now) = (authority.authorities.current(), UnixTime::now());
    let issuer = authorities.issuer();
    let certificate = issuer.issue_agent(&agent.worker, key, lifetime, now).map_err(|error| {
        tracing::error!(%error, worker = %agent.worker, "no certificate is issued");
        Problem::new(
            ProblemCode::Internal,
            "the certificate cannot be issued; see the master's log",
        )
    })?;
    let end = now.as_secs().saturating_add(lifetime.as_secs());
    let expires_at = i64::try_from(end).ok().and_then(|end| Timestamp::from_second(end).ok());
    Ok(IssuedCertificate {
        certificate: certificate + &authorities.agent_chain(),
        authority: issuer.pem(),
        previous_authority: authorities.accepted_previous(),
        expires_at: expires_at.unwrap_or(Timestamp::MAX),
        storage_paths: agent.storage_paths.clone(),
    })
}
