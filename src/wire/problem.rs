//! Errors over HTTP: problem documents (RFC 9457). `detail` is always a string, as the
//! predecessor's clients expect; the fields at fault are listed in `errors`.

use super::leader::Leader;
use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// The [code](Problem::code) of an answer that came before the decision was durable: it may still take
/// effect.
pub const LATE_CODE: &str = "late";

/// The code of a submit that was refused because no active worker serves one of its paths.
pub const NO_WORKER_CODE: &str = "no_worker";

/// One field at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to the field, e.g. `/chunk_size_mb`.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`: the status and `code` say it all.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The reason phrase of the status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in a sentence.
    pub detail: String,
    /// A stable word for programs, e.g. `sync_exists`.
    pub code: String,
    /// Every field at fault, for status 422.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For `sync_exists`: the state of the sync that has the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<String>,
    /// For `not_leader`: the master that leads.
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

    /// Adds what to do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
