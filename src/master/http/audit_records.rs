//! Records denials and backups in the audit log, and prepares the entry of a change, which the state actor records
//! with the decision.

use super::audit_log::OperatorAction;
use super::principal::ConnectionAddresses;
use super::response::{ProblemResponse, ResponseCode};
use crate::audit::AuditEntry;
use crate::master::audit::{AuditHandle, audit_unavailable, record_while};
use crate::wire::path::escape_bytes;
use crate::wire::problem::ProblemCode;
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Longer texts of clients are cut.
const MAX_TEXT_BYTES: usize = 256;
/// The statuses of denials: no or wrong credentials, not allowed, another host, too many.
const DENIAL_STATUSES: [u16; 4] = [401, 403, 421, 429];

/// See the [module](self).
pub(super) async fn record_request(
    State(audit): State<AuditHandle>,
    request: Request,
    next: Next,
) -> Response {
    if !audit.is_enabled() {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let action = route
        .and_then(|route| OperatorAction::classify(request.method(), route, request.uri().path()));
    let is_change = action.is_some();
    let entry = entry_of(&request, route, action);
    let (response, mut entry) = record_while(entry, is_change, next.run(request)).await;
    let status = response.status();
    entry.status = Some(status.as_u16());
    if status.is_success() {
        // The only reading that is recorded. Changes are recorded by the state actor.
        if entry.action != BACKUP_ACTION {
            return response;
        }
        return match audit.append(vec![entry]).await {
            Ok(()) => response,
            Err(reason) => ProblemResponse(audit_unavailable(&reason)).into_response(),
        };
    }
    entry.code = response.extensions().get::<ResponseCode>().map(|code| code.0.clone());
    let is_unrecorded = entry.code.as_deref() == Some(ProblemCode::AuditUnavailable.as_str());
    let is_refused_change = is_change && (status.is_client_error() || is_unrecorded);
    if is_refused_change || DENIAL_STATUSES.contains(&status.as_u16()) {
        audit.record_refusal(entry);
    }
    response
}

/// [`OperatorAction::name`] of a backup.
const BACKUP_ACTION: &str = "admin.backup";

/// The principal follows when the request is authenticated.
fn entry_of(
    request: &Request,
    route: Option<&str>,
    action: Option<OperatorAction<'_>>,
) -> AuditEntry {
    let addresses = request.extensions().get::<ConnectionAddresses>();
    let client = addresses.and_then(|addresses| addresses.client);
    let client = client.map(|address| address.ip().to_canonical());
    let object =
        |object: fn(&OperatorAction<'_>) -> Option<String>| action.as_ref().and_then(object);
    AuditEntry {
        action: action.as_ref().map_or("request", OperatorAction::name).to_owned(),
        address: client.map(|address| address.to_string()),
        forwarded_for: header_text(request.headers(), "x-forwarded-for"),
        method: Some(cut(request.method().as_str())),
        route: route.map(str::to_owned),
        sync: object(|action| action.sync.map(cut)),
        worker: object(|action| action.worker.map(cut)),
        token: object(|action| action.token.map(cut)),
        ..AuditEntry::default()
    }
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    // Without the control characters above ASCII, which JSON does not escape.
    headers.get(name).map(|value| cut(&escape_bytes(value.as_bytes())))
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned()
}
