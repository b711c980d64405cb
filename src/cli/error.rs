//! Errors that end a command: cause, details, next step and exit code.

use super::exit::Exit;
use super::sanitize::sanitize;
use crate::client::ClientError;
use crate::config::ConfigErrors;
use crate::wire::problem::ProblemCode;

/// The result of a step of a command.
pub(super) type Result<T, E = CliError> = std::result::Result<T, E>;

/// Printed as `error: message`, then the notes, then the hint with the exit code.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    pub(super) message: String,
    /// Details, one per line.
    pub(super) notes: Vec<String>,
    /// The next step.
    pub(super) hint: Option<String>,
}

impl CliError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        CliError { exit: Exit::Error, message: message.into(), notes: Vec::new(), hint: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        CliError::new(message).with_exit(Exit::Usage)
    }

    pub(super) fn with_exit(self, exit: Exit) -> Self {
        CliError { exit, ..self }
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        CliError { hint: Some(hint.into()), ..self }
    }

    pub(super) fn with_note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Notes for the first of `count` errors; the others are counted.
    pub(super) fn with_listed(mut self, first: Vec<String>, count: usize) -> Self {
        let more = count.saturating_sub(first.len());
        self.notes.extend(first);
        self.notes.extend((more > 0).then(|| format!("and {more} more")));
        self
    }

    /// Adds the id of one of several resources to the message, unless the message contains it.
    pub(super) fn with_subject(mut self, id: impl std::fmt::Display, single: bool) -> Self {
        let id = id.to_string();
        if !single && !self.message.contains(&id) {
            self.message = format!("{id}: {}", self.message);
        }
        self
    }

    /// The text to print, with the exit code in its last line. Further lines of a message are indented, so that no text
    /// of a document looks like another error.
    pub(super) fn render(&self) -> String {
        let texts = [&self.message].into_iter().chain(&self.notes).chain(&self.hint);
        let lines: Vec<String> = texts.flat_map(|text| text.lines()).map(sanitize).collect();
        format!("error: {}   (exit {})", lines.join("\n  "), self.exit.code())
    }

    /// The last line on standard error with `-o json`.
    pub(super) fn document(&self) -> String {
        serde_json::json!({
            "message_type": "exit_error",
            "code": self.exit.code(),
            "message": self.message,
        })
        .to_string()
    }
}

impl From<ClientError> for CliError {
    fn from(e: ClientError) -> Self {
        let (message, status, is_retryable) = (e.to_string(), e.status(), e.is_retryable());
        let by_status = match status {
            Some(401 | 403) => Exit::Denied,
            Some(404) => Exit::NotFound,
            Some(409) => Exit::Conflict,
            Some(400 | 413 | 422) => Exit::Usage,
            _ if is_retryable => Exit::Unreachable,
            _ => Exit::Error,
        };
        match e {
            ClientError::Unconfirmed(cause) => {
                let cause = CliError::from(*cause);
                let message = format!(
                    "the request may have been carried out, its reply is lost: {}",
                    cause.message
                );
                CliError { exit: Exit::Unreachable, message, hint: None, ..cause }
            }
            ClientError::Problem { problem, .. } => {
                // A single field error is the whole message already.
                let fields = problem.errors.iter().map(|f| format!("{}: {}", f.pointer, f.detail));
                CliError {
                    exit: if problem.is(ProblemCode::NoWorker) { Exit::Failed } else { by_status },
                    message,
                    notes: fields.filter(|field| *field != problem.detail).collect(),
                    hint: problem.hint,
                }
            }
            ClientError::Unreachable { .. } => CliError::new(message)
                .with_exit(Exit::Unreachable)
                .with_hint("is the master running (`ctl master --config FILE`)? another one: --master-url URL or CTL_MASTER_URL"),
            ClientError::InvalidReply { .. } => CliError::new(message)
                .with_exit(if is_retryable { Exit::Unreachable } else { Exit::Error })
                .with_hint("is that the master's address? see --master-url"),
            ClientError::AmbiguousId { .. } => {
                CliError::usage(message).with_hint("give more characters of the id")
            }
            ClientError::InvalidUrl { .. } => CliError::usage(message),
        }
    }
}

impl From<ConfigErrors> for CliError {
    fn from(e: ConfigErrors) -> Self {
        let mut error = CliError::new("the configuration can't be used").with_exit(Exit::Config);
        error.notes = e.to_string().lines().map(str::to_owned).collect();
        error.with_hint("check it with: ctl config check FILE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::FailedAttempt;
    use crate::wire::problem::{FieldError, Problem};

    fn problem(status: u16) -> ClientError {
        let mut problem = Problem {
            status,
            code: "x".to_owned(),
            ..Problem::new(ProblemCode::Internal, "no\x1b such thing")
        };
        problem.errors =
            vec![FieldError { pointer: "/a".to_owned(), detail: "is wrong".to_owned() }];
        ClientError::Problem { problem: Box::new(problem), retry_after: None }
    }

    #[test]
    fn the_http_status_decides_the_exit_code() {
        for (status, code) in [
            (401, 4),
            (403, 4),
            (404, 3),
            (409, 6),
            (400, 2),
            (413, 2),
            (422, 2),
            (429, 5),
            (503, 5),
            (500, 1),
        ] {
            assert_eq!(CliError::from(problem(status)).exit.code(), code, "{status}");
        }
        let unreachable = || ClientError::Unreachable {
            attempts: vec![FailedAttempt { url: "http://m".into(), error: "refused".into() }],
        };
        assert_eq!(CliError::from(unreachable()).exit, Exit::Unreachable);
        for cause in [unreachable(), problem(503), problem(502)] {
            let lost = CliError::from(ClientError::Unconfirmed(Box::new(cause)));
            assert_eq!(lost.exit, Exit::Unreachable);
            assert!(lost.message.starts_with("the request may have been carried out"), "{lost:?}");
            assert_eq!(lost.hint, None, "the command adds how to find out");
        }
    }

    #[test]
    fn an_ambiguous_path_is_a_conflict_with_a_line_for_each_storage() {
        let detail = "DST /scratch is several storages:\ns-1: gpu-1\ns-2: gpu-2\x1b";
        let problem = Problem::new(ProblemCode::AmbiguousStorage, detail)
            .with_hint("one of them: gpu-1:/scratch\neach of them: 'gpu-*:/scratch'");
        let e = ClientError::Problem { problem: Box::new(problem), retry_after: None };
        assert_eq!(
            CliError::from(e).render(),
            "error: DST /scratch is several storages:\n  s-1: gpu-1\n  s-2: gpu-2\\#033\n  \
             one of them: gpu-1:/scratch\n  each of them: 'gpu-*:/scratch'   (exit 6)"
        );
        for (code, exit) in [
            (ProblemCode::SameStorage, 6),
            (ProblemCode::SeveralSources, 6),
            (ProblemCode::NotSeveralDestinations, 6),
            (ProblemCode::NoMatchingWorker, 2),
            (ProblemCode::StorageNotFound, 3),
        ] {
            let problem = Box::new(Problem::new(code, "x"));
            let e = ClientError::Problem { problem, retry_after: None };
            assert_eq!(CliError::from(e).exit.code(), exit, "{code:?}");
        }
    }

    #[test]
    fn the_text_has_the_error_the_notes_the_hint_and_the_exit_code() {
        let text = CliError::from(problem(422)).with_hint("do that").render();
        assert_eq!(text, "error: no\\#033 such thing\n  /a: is wrong\n  do that   (exit 2)");
    }
}
