//! Errors over HTTP: problem documents (RFC 9457). `detail` is always a string, because clients of the
//! predecessor expect one; invalid fields are listed in `errors`.

use super::leader::Leader;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// Defines [`ProblemCode`]. A line: variant, code on the wire, HTTP status, meaning.
macro_rules! problem_codes {
    ($($variant:ident $code:literal $status:literal $meaning:literal)+) => {
        /// Every problem that the API of the master and the data port of the agents report.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemCode {
            $(#[doc = $meaning] $variant,)+
        }

        impl ProblemCode {
            /// All codes, in the order of their definition.
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$variant),+];

            /// The value of [`Problem::code`].
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(ProblemCode::$variant => $code,)+
                }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self {
                    $(ProblemCode::$variant => $status,)+
                }
            }

            /// The cause, as `docs/errors.md` explains it.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(ProblemCode::$variant => $meaning,)+
                }
            }
        }
    };
}

problem_codes! {
    NotLeader "not_leader" 307 "another master leads; its URL is in the header Location and in `leader`"
    ChecksumMismatch "checksum_mismatch" 400 "the body does not match its checksum header; nothing was changed"
    BodyReadFailed "body_read_failed" 400 "the body could not be read to its end"
    InvalidJson "invalid_json" 400 "the body is not valid JSON, is not UTF-8, or has a key twice"
    InvalidParameter "invalid_parameter" 400 "a query parameter or a header is unknown, repeated or has an invalid value"
    TlsRequired "tls_required" 400 "the address serves TLS, and the request is plain HTTP; use an https:// URL; data port: the agent has a certificate, the sender has none"
    InvalidFrame "invalid_frame" 400 "data port: the body is not a valid sequence of frames"
    LocalUser "local_user" 401 "a request over loopback by a user of this host that may not use the master"
    NoCredentials "no_credentials" 401 "the request needs credentials, e.g. because it came through a proxy"
    BadCredentials "bad_credentials" 401 "the header Authorization, or the body, holds no valid token"
    Expired "expired" 401 "the token or the certificate has expired"
    Revoked "revoked" 401 "the token is revoked"
    NoTicket "no_ticket" 401 "data port: the request has no ticket"
    CertificateUnknown "certificate_unknown" 403 "the certificate of the agent is not the one of its last join; join again"
    ForeignOrigin "foreign_origin" 403 "the request comes from a web page of another site"
    JoinTokenUsed "join_token_used" 403 "the join token was used by another agent; it is good once"
    RunAsDiffers "run_as_differs" 403 "the sync acts as another user than the token"
    OptionNotAllowed "option_not_allowed" 403 "the token has not the right that an option of the sync needs"
    PathNotAllowed "path_not_allowed" 403 "the source or the destination is outside of the scopes of the token"
    RoleMissing "role_missing" 403 "the user or the token may not use this route"
    WorkerMismatch "worker_mismatch" 403 "the certificate or the join token is of another worker than the request; data port: than the ticket"
    WorkerRevoked "worker_revoked" 403 "the worker was revoked; it needs a new join token"
    TicketRefused "ticket_refused" 403 "data port: the ticket is invalid, expired, of an ended sync, or for another request, worker or path"
    RunAsRefused "run_as_refused" 403 "data port: the configuration of the agent does not allow to act as the user of the sync"
    DigestRequired "digest_required" 403 "data port: content came without a digest, which the ticket requires"
    DryRun "dry_run" 403 "data port: the ticket is of a dry run and allows no write"
    DeletionNotAllowed "deletion_not_allowed" 403 "data port: the ticket allows no deletion, or names another agent"
    NotFound "not_found" 404 "the path contains something that cannot be an id"
    RouteNotFound "route_not_found" 404 "the API or the data port has no such path"
    StorageNotFound "storage_not_found" 404 "there is no storage with this id"
    SyncNotFound "sync_not_found" 404 "there is no sync with this id"
    TokenNotFound "token_not_found" 404 "there is no token with this id"
    WorkerNotFound "worker_not_found" 404 "no worker with this id has registered"
    AssignmentNotHeld "assignment_not_held" 404 "the worker does not hold this assignment, or its task has ended"
    MethodNotAllowed "method_not_allowed" 405 "the path exists but does not accept the method; see the header Allow"
    BodyTimeout "body_timeout" 408 "the body did not arrive in time"
    AmbiguousStorage "ambiguous_storage" 409 "workers see different storages at one path; name those that are meant"
    AuthorityInUse "authority_in_use" 409 "agents have certificates of the former authority and would have to join again"
    AssignmentAmbiguous "assignment_ambiguous" 409 "a result without assignment_id, and the worker holds several tasks of the sync"
    FailuresIncomplete "failures_incomplete" 409 "the stored names of the failed entries are not complete"
    FailuresUnknown "failures_unknown" 409 "the failed entries cannot be retried alone; retry the whole sync"
    IdempotencyKeyReused "idempotency_key_reused" 409 "the Idempotency-Key was used before with another body"
    FileListGone "file_list_gone" 409 "the file list of the sync belongs to the sync that retried it"
    NoWorker "no_worker" 409 "the sync must not wait, and no active worker serves one of its paths"
    NoAuthority "no_authority" 409 "the master serves no address with TLS, so agents join without tokens"
    NotEnded "not_ended" 409 "the sync has not ended, so its manifest is not complete yet"
    NotJoined "not_joined" 409 "the worker has no certificate that could be revoked"
    NotRecorded "not_recorded" 409 "the sync was submitted without the option that records it"
    NotSeveralDestinations "not_several_destinations" 409 "the sync has a single destination, so none can be added"
    PartOfSync "part_of_sync" 409 "the sync copies to one of the destinations of another sync; name that one"
    RecordsLost "records_lost" 409 "the records of the sync are not complete on this master"
    SameStorage "same_storage" 409 "the destination is the storage of the source, at the same path"
    SeveralSources "several_sources" 409 "the workers that are named for the source see several storages"
    SyncActive "sync_active" 409 "the sync has not ended and cannot be retried"
    SyncCompleted "sync_completed" 409 "the sync is completed, so there is nothing to retry"
    SyncEnded "sync_ended" 409 "the sync has ended and cannot be changed"
    SyncExists "sync_exists" 409 "there is a sync with this id; `existing` is its state"
    TooManyTokens "too_many_tokens" 409 "the limit of tokens is reached"
    WorkerActive "worker_active" 409 "the worker sends heartbeats and cannot be forgotten"
    WorkerIdTaken "worker_id_taken" 409 "another agent is active under the same worker id"
    BodyTooLarge "body_too_large" 413 "the body is over its limit"
    UnsupportedMediaType "unsupported_media_type" 415 "the body is multipart or has a Content-Encoding"
    ForeignHost "foreign_host" 421 "the header Host has a name that is not one of the master; see `allowed_hosts`"
    InvalidFields "invalid_fields" 422 "fields of the document are invalid; `errors` lists them"
    NoMatchingWorker "no_matching_worker" 422 "a selector names no registered worker; the detail lists those that are"
    InvalidPage "invalid_page" 422 "a scan page does not fit its task"
    TooManyDestinations "too_many_destinations" 422 "the workers of the destination see more storages than a sync can have"
    TooManyFailures "too_many_failures" 429 "too many tokens from this address were refused; try again after a minute"
    TooManyWorkers "too_many_workers" 429 "the limit of registered workers is reached"
    Internal "internal" 500 "a defect of the program; see its log"
    Unknown "unknown" 500 "the response contains no reason"
    BackupUnsupported "backup_unsupported" 501 "the state is in Redis, which has its own backups"
    AuthorityReplaced "authority_replaced" 503 "an authority that was replaced issued the certificate of the connection; send the request on another one"
    AuditUnavailable "audit_unavailable" 503 "the audit log cannot be written, so the change was not made"
    BackupFailed "backup_failed" 503 "the store cannot be copied now"
    CommitTimeout "commit_timeout" 503 "the decision was not durable in time and may still take effect; repeat with the same id or key"
    LeaderUrlUnknown "leader_url_unknown" 503 "another master leads, and its URL is not known; set `advertise_url`"
    NoLeader "no_leader" 503 "no master leads at the moment"
    Overloaded "overloaded" 503 "too many requests or too large bodies at once; nothing was changed"
    ShuttingDown "shutting_down" 503 "the master is stopping or no longer leads"
    StoreUnavailable "store_unavailable" 503 "the store is unavailable, so nothing can be decided; transfers continue"
    StoreUnsafe "store_unsafe" 503 "the store may lose acknowledged writes, so new syncs are not accepted"
    NotReady "not_ready" 503 "data port: the agent has not received the key that verifies tickets"
    QueueFull "queue_full" 507 "as many syncs wait as the master's `limits.max_queued_syncs` allows"
    StoreFull "store_full" 507 "the store is full, so new syncs are not accepted"
}

/// The reason phrase of a status (RFC 9110).
fn reason_phrase(status: u16) -> &'static str {
    match status {
        // The crate has the phrases of RFC 7231 for these two.
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        _ => {
            let known = StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
            known.unwrap_or("Error")
        }
    }
}

/// One invalid field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to the field, e.g. `/chunk_size_mb`.
    pub pointer: String,
    /// The error message.
    pub detail: String,
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: `code` identifies the problem.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The reason phrase of the status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The error message.
    pub detail: String,
    /// A [`ProblemCode`]; a newer program may send others.
    pub code: String,
    /// All invalid fields, for status 422.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The next step for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For `sync_exists`: the state of the existing sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<String>,
    /// For `not_leader`: the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Box<Leader>>,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// A problem with no field list and no hint.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Problem {
            kind: about_blank(),
            title: reason_phrase(code.status()).to_owned(),
            status: code.status(),
            detail: detail.into(),
            code: code.as_str().to_owned(),
            errors: Vec::new(),
            hint: None,
            existing: None,
            leader: None,
        }
    }

    /// Whether the code is this one.
    pub fn is(&self, code: ProblemCode) -> bool {
        self.code == code.as_str()
    }

    /// Adds what to do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    fn errors_document() -> String {
        let mut text = "\
# Errors

Every error of the API of the master, and of the data port of the agents, is a problem document (RFC 9457) with `type`,
`title`, `status`, `detail`, `code` and often `hint`. `code` is stable. Codes that begin with \"data port\" in the
table are reported by agents to agents.

This page is generated from `src/wire/problem.rs`: `UPDATE_DOCS=1 cargo test problem_codes`.

| code | status | title | meaning |
|---|---|---|---|
"
        .to_owned();
        for code in ProblemCode::ALL {
            let (status, title) = (code.status(), reason_phrase(code.status()));
            writeln!(text, "| `{}` | {status} | {title} | {} |", code.as_str(), code.meaning())
                .unwrap();
        }
        text
    }

    #[test]
    fn the_problem_codes_are_unique_and_listed_in_the_document() {
        let codes: BTreeSet<&str> = ProblemCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), ProblemCode::ALL.len());
        assert!(ProblemCode::ALL.iter().all(|code| reason_phrase(code.status()) != "Error"));
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
        let expected = errors_document();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == expected,
            "docs/errors.md is out of date: UPDATE_DOCS=1 cargo test problem_codes"
        );
    }
}
