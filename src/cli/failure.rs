//! What ends a command before its time: what, why, what to do next, and the exit code.

use super::exit::Exit;
use super::out;
use crate::client::ClientError;
use crate::config::ConfigErrors;
use crate::wire::problem::NO_WORKER_CODE;

/// Printed as `error: what`, then notes, then the hint with the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    /// How the program ends.
    pub(super) exit: Exit,
    /// What happened, where and why.
    pub(super) message: String,
    /// Particulars, one a line.
    pub(super) notes: Vec<String>,
    /// What to do next.
    pub(super) hint: Option<String>,
}

impl Failure {
    /// An error of no special kind.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Error, message: message.into(), notes: Vec::new(), hint: None }
    }

    /// Wrong usage.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Failure::new(message).exits(Exit::Usage)
    }

    /// Ends with another code.
    pub(super) fn exits(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Says what to do next.
    pub(super) fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a particular.
    pub(super) fn noted(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Names what it is about, where that is one of several things and the message does not name it.
    pub(super) fn about(mut self, id: impl std::fmt::Display, single: bool) -> Self {
        let id = id.to_string();
        if !single && !self.message.contains(&id) {
            self.message = format!("{id}: {}", self.message);
        }
        self
    }

    /// The text, the exit code in its last line.
    pub(super) fn render(&self) -> String {
        let mut text = format!("error: {}", out::clean(&self.message));
        for note in &self.notes {
            text.push_str(&format!("\n  {}", out::clean(note)));
        }
        match &self.hint {
            Some(hint) => {
                text.push_str(&format!("\n  {}   (exit {})", out::clean(hint), self.exit.code()));
            }
            None => text.push_str(&format!("   (exit {})", self.exit.code())),
        }
        text
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        if let ClientError::Unconfirmed(cause) = e {
            let cause = Failure::from(*cause);
            let message = format!(
                "the request may have been carried out, its reply is lost: {}",
                cause.message
            );
            return Failure { message, hint: None, ..cause }.exits(Exit::Unreachable);
        }
        let exit = match (&e, e.status()) {
            (ClientError::BadUrl { .. } | ClientError::Ambiguous { .. }, _) => Exit::Usage,
            (ClientError::Unreachable { .. }, _) => Exit::Unreachable,
            (ClientError::Problem { .. }, Some(401 | 403)) => Exit::Denied,
            (ClientError::Problem { .. }, Some(404)) => Exit::NotFound,
            (ClientError::Problem { problem, .. }, _) if problem.code == NO_WORKER_CODE => {
                Exit::Failed
            }
            (ClientError::Problem { .. }, Some(409)) => Exit::Conflict,
            (ClientError::Problem { .. }, Some(400 | 413 | 422)) => Exit::Usage,
            _ if e.is_temporary() => Exit::Unreachable,
            _ => Exit::Error,
        };
        let mut failure = Failure::new(e.to_string()).exits(exit);
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
            ClientError::Broken { .. } => {
                failure.hint = Some("is that the master's address? see --master-url".to_owned());
            }
            ClientError::Ambiguous { .. } => {
                failure.hint = Some("give more characters of the id that is meant".to_owned());
            }
            ClientError::BadUrl { .. } | ClientError::Unconfirmed(_) => {}
        }
        failure
    }
}

impl From<ConfigErrors> for Failure {
    fn from(e: ConfigErrors) -> Self {
        let mut failure = Failure::new("the configuration can't be used").exits(Exit::Config);
        failure.notes = e.to_string().lines().map(str::to_owned).collect();
        failure.hinted("check it with: ctl config check FILE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::problem::{FieldError, Problem};

    fn problem(status: u16) -> ClientError {
        let mut problem = Problem::new(status, "x", "x", "no\x1b such thing");
        problem.errors =
            vec![FieldError { pointer: "/a".to_owned(), detail: "is wrong".to_owned() }];
        ClientError::Problem { problem: Box::new(problem), retry_after: None }
    }

    #[test]
    fn what_the_master_says_decides_the_code() {
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
            assert_eq!(Failure::from(problem(status)).exit.code(), code, "{status}");
        }
        let away =
            || ClientError::Unreachable { tried: vec![("http://m".into(), "refused".into())] };
        assert_eq!(Failure::from(away()).exit, Exit::Unreachable);
        for cause in [away(), problem(503), problem(502)] {
            let lost = Failure::from(ClientError::Unconfirmed(Box::new(cause)));
            assert_eq!(lost.exit, Exit::Unreachable);
            assert!(lost.message.starts_with("the request may have been carried out"), "{lost:?}");
            assert_eq!(lost.hint, None, "the command adds how to find out");
        }
    }

    #[test]
    fn the_text_says_what_where_and_what_next() {
        let text = Failure::from(problem(422)).hinted("do that").render();
        assert_eq!(text, "error: no\\#033 such thing\n  /a: is wrong\n  do that   (exit 2)");
    }
}
