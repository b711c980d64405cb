//! What ends a command before its time: what, why, what to do next, and the exit code.

use super::console;
use super::exit::Exit;
use crate::client::ClientError;
use crate::config::ConfigErrors;
use crate::wire::problem::ProblemCode;

/// Printed as `error: what`, then notes, then the hint with the exit code.
#[derive(Debug)]
pub(super) struct CliError {
    /// How the program ends.
    pub(super) exit: Exit,
    /// What happened, where and why.
    pub(super) message: String,
    /// Particulars, one a line.
    pub(super) notes: Vec<String>,
    /// What to do next.
    pub(super) hint: Option<String>,
}

impl CliError {
    /// An error of no special kind.
    pub(super) fn new(message: impl Into<String>) -> Self {
        CliError { exit: Exit::Error, message: message.into(), notes: Vec::new(), hint: None }
    }

    /// Wrong usage.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        CliError::new(message).with_exit(Exit::Usage)
    }

    /// Ends with another code.
    pub(super) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Says what to do next.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a particular.
    pub(super) fn with_note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Names what it is about, where that is one of several things and the message does not name it.
    pub(super) fn with_subject(mut self, id: impl std::fmt::Display, single: bool) -> Self {
        let id = id.to_string();
        if !single && !self.message.contains(&id) {
            self.message = format!("{id}: {}", self.message);
        }
        self
    }

    /// The text, the exit code in its last line.
    pub(super) fn render(&self) -> String {
        let mut text = format!("error: {}", console::sanitize(&self.message));
        for note in &self.notes {
            text.push_str(&format!("\n  {}", console::sanitize(note)));
        }
        match &self.hint {
            Some(hint) => {
                text.push_str(&format!(
                    "\n  {}   (exit {})",
                    console::sanitize(hint),
                    self.exit.code()
                ));
            }
            None => text.push_str(&format!("   (exit {})", self.exit.code())),
        }
        text
    }
}

impl From<ClientError> for CliError {
    fn from(e: ClientError) -> Self {
        if let ClientError::Unconfirmed(cause) = e {
            let cause = CliError::from(*cause);
            let message = format!(
                "the request may have been carried out, its reply is lost: {}",
                cause.message
            );
            return CliError { message, hint: None, ..cause }.with_exit(Exit::Unreachable);
        }
        let exit = match (&e, e.status()) {
            (ClientError::InvalidUrl { .. } | ClientError::AmbiguousId { .. }, _) => Exit::Usage,
            (ClientError::Unreachable { .. }, _) => Exit::Unreachable,
            (ClientError::Problem { .. }, Some(401 | 403)) => Exit::Denied,
            (ClientError::Problem { .. }, Some(404)) => Exit::NotFound,
            (ClientError::Problem { problem, .. }, _) if problem.is(ProblemCode::NoWorker) => {
                Exit::Failed
            }
            (ClientError::Problem { .. }, Some(409)) => Exit::Conflict,
            (ClientError::Problem { .. }, Some(400 | 413 | 422)) => Exit::Usage,
            _ if e.is_retryable() => Exit::Unreachable,
            _ => Exit::Error,
        };
        let mut failure = CliError::new(e.to_string()).with_exit(exit);
        match e {
            ClientError::Problem { problem, .. } => {
                // A single fault is the whole message already.
                let faults = problem.errors.iter().map(|f| format!("{}: {}", f.pointer, f.detail));
                failure.notes = faults.filter(|f| *f != problem.detail).collect();
                failure.hint = problem.hint;
            }
            ClientError::Unreachable { .. } => {
                failure.hint = Some(
                    "is the master running (`ctl master --config FILE`)? another one: --master-url URL or CTL_MASTER_URL"
                        .to_owned(),
                );
            }
            ClientError::InvalidReply { .. } => {
                failure.hint = Some("is that the master's address? see --master-url".to_owned());
            }
            ClientError::AmbiguousId { .. } => {
                failure.hint = Some("give more characters of the id that is meant".to_owned());
            }
            ClientError::InvalidUrl { .. } | ClientError::Unconfirmed(_) => {}
        }
        failure
    }
}

impl From<ConfigErrors> for CliError {
    fn from(e: ConfigErrors) -> Self {
        let mut failure = CliError::new("the configuration can't be used").with_exit(Exit::Config);
        failure.notes = e.to_string().lines().map(str::to_owned).collect();
        failure.with_hint("check it with: ctl config check FILE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let away =
            || ClientError::Unreachable { attempts: vec![("http://m".into(), "refused".into())] };
        assert_eq!(CliError::from(away()).exit, Exit::Unreachable);
        for cause in [away(), problem(503), problem(502)] {
            let lost = CliError::from(ClientError::Unconfirmed(Box::new(cause)));
            assert_eq!(lost.exit, Exit::Unreachable);
            assert!(lost.message.starts_with("the request may have been carried out"), "{lost:?}");
            assert_eq!(lost.hint, None, "the command adds how to find out");
        }
    }

    #[test]
    fn the_text_has_the_error_the_notes_the_hint_and_the_exit_code() {
        let text = CliError::from(problem(422)).with_hint("do that").render();
        assert_eq!(text, "error: no\\#033 such thing\n  /a: is wrong\n  do that   (exit 2)");
    }
}
