//! Errors of requests to a master.

use super::url_text::with_port;
use crate::wire::RequestId;
use crate::wire::problem::Problem;
use std::fmt;
use std::time::Duration;

/// The result of a request.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

const MAX_IDS_SHOWN: usize = 10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The master refused the request.
    #[error("{}", problem.detail)]
    Problem {
        /// Its problem document.
        problem: Box<Problem>,
        /// When the request can be repeated.
        retry_after: Option<Duration>,
    },
    /// No connection, or none that lasted until the reply was complete.
    #[error("no master can be reached: {}", join(.attempts, "; "))]
    Unreachable {
        /// One for each URL that was tried.
        attempts: Vec<FailedAttempt>,
    },
    /// The reply is not one of a master.
    #[error("{} does not answer like a master: {message}", with_port(.url))]
    InvalidReply {
        /// The URL of the server.
        url: String,
        /// The HTTP status, if there is one.
        status: Option<u16>,
        /// What is wrong with the reply.
        message: String,
    },
    /// A command was sent, and no reply shows whether it was carried out.
    #[error("{0}; the request may have been carried out")]
    Unconfirmed(Box<ClientError>),
    /// Several syncs have ids with this prefix.
    #[error("several sync ids begin with `{prefix}`: {}", join_ids(.ids))]
    AmbiguousId {
        /// The beginning of an id.
        prefix: RequestId,
        /// All ids that begin so.
        ids: Vec<RequestId>,
    },
    /// A master URL that can't be used.
    #[error("master URL `{url}`: {message}")]
    InvalidUrl {
        /// As given, without control characters.
        url: String,
        /// What is wrong with it.
        message: String,
    },
}

/// An attempt to reach one master.
#[derive(Debug)]
pub struct FailedAttempt {
    /// The base URL of the master.
    pub url: String,
    /// The cause.
    pub error: String,
}

impl fmt::Display for FailedAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", with_port(&self.url), self.error)
    }
}

fn join(items: &[impl ToString], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

fn join_ids(ids: &[RequestId]) -> String {
    let more = if ids.len() > MAX_IDS_SHOWN { ", …" } else { "" };
    join(&ids[..ids.len().min(MAX_IDS_SHOWN)], ", ") + more
}

impl ClientError {
    /// Of an unconfirmed command the error of its last attempt.
    fn last_error(&self) -> &ClientError {
        match self {
            ClientError::Unconfirmed(cause) => cause.last_error(),
            other => other,
        }
    }

    /// The HTTP status of the reply, if there is one.
    pub fn status(&self) -> Option<u16> {
        match self.last_error() {
            ClientError::Problem { problem, .. } => Some(problem.status),
            ClientError::InvalidReply { status, .. } => *status,
            _ => None,
        }
    }

    /// The code of the problem document, e.g. `sync_exists`.
    pub fn code(&self) -> Option<&str> {
        match self.last_error() {
            ClientError::Problem { problem, .. } => Some(&problem.code),
            _ => None,
        }
    }

    /// When the request can be repeated, if the master named a time.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.last_error() {
            ClientError::Problem { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        // A proxy before the master replies with 502, 503 or 504 and a document of its own.
        self.is_unreachable() || matches!(self.status(), Some(408 | 429 | 502 | 503 | 504))
    }

    /// Whether the master has no resource of this name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Problem { problem, .. } if problem.status == 404)
    }

    /// Whether no master replied.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.last_error(), ClientError::Unreachable { .. })
    }

    /// Whether the master may have carried out the command although this is an error.
    pub fn is_unconfirmed(&self) -> bool {
        matches!(self, ClientError::Unconfirmed(_))
    }
}
