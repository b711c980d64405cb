//! Errors over HTTP: problem documents (RFC 9457). `detail` is always a string, because clients of the
//! predecessor expect one; invalid fields are listed in `errors`.

use super::leader::Leader;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// The [code](Problem::code) of a reply that was sent before the commit finished: the request may still take effect.
pub const LATE_CODE: &str = "commit_timeout";

/// The code of a rejected submit: no active worker serves one of its paths.
pub const NO_WORKER_CODE: &str = "no_worker";

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
    /// A stable identifier for programs, e.g. `sync_exists`.
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
    pub fn new(status: u16, title: &str, code: &str, detail: impl Into<String>) -> Self {
        Problem {
            kind: about_blank(),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            code: code.to_owned(),
            errors: Vec::new(),
            hint: None,
            existing: None,
            leader: None,
        }
    }

    /// Adds the next step for the operator.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
