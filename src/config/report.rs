//! The problems of a configuration with their positions.

use crate::util::units;
use std::fmt;

/// A position in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pos {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub col: usize,
}

/// Determines whether a problem ends the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably contains a mistake.
    Warning,
}

impl Severity {
    /// The word in messages and in the report as JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One problem. Displayed as `file:line:col: error: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The path of the file, or the name of the environment variable.
    pub origin: String,
    /// The position in the file; `None`: the whole file.
    pub at: Option<Pos>,
    /// See [`Severity`].
    pub severity: Severity,
    /// The error message, with the next step.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let Some(Pos { line, col }) = self.at {
            write!(f, ":{line}:{col}")?;
        }
        write!(f, ": {}: {}", self.severity.as_str(), self.message)
    }
}

/// A configuration that cannot be used. Displayed with one problem per line, including warnings, without a
/// final newline. The program ends with exit code 78.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one error, and all warnings, in the order of the file.
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.problems)
    }
}

impl std::error::Error for ConfigErrors {}

/// The kind of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// For `ctl master`.
    Master,
    /// For `ctl agent`: contains all workers.
    Agents,
}

/// The result of `ctl config check`. Displayed as the problems, one per line, and a last line
/// with their number, e.g. `2 errors, 1 warning.   worker ids in this file: worker-a worker-b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The path of the file.
    pub file: String,
    /// The detected kind; `None` for an unreadable file.
    pub kind: Option<FileKind>,
    /// All problems, in the order of the file.
    pub problems: Vec<ConfigProblem>,
    /// The workers of an agents file, in its order.
    pub worker_ids: Vec<String>,
}

impl CheckReport {
    /// The number of errors.
    pub fn error_count(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }

    /// The number of warnings.
    pub fn warning_count(&self) -> usize {
        self.problems.len() - self.error_count()
    }

    /// Whether the file can be used (warnings allowed).
    pub fn is_usable(&self) -> bool {
        self.error_count() == 0
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.problems.is_empty() {
            write_lines(f, &self.problems)?;
            writeln!(f)?;
        }
        let count = |n: usize, word: &str| units::pluralize(n as u64, word, &format!("{word}s"));
        let counts = [(self.error_count(), "error"), (self.warning_count(), "warning")];
        let counts = counts.into_iter().filter(|(n, _)| *n > 0).map(|(n, word)| count(n, word));
        match counts.collect::<Vec<_>>().join(", ").as_str() {
            "" => {
                let kind = match self.kind {
                    Some(FileKind::Master) => "master configuration",
                    Some(FileKind::Agents) => "agents file",
                    None => "file",
                };
                write!(f, "{}: {kind} ok.", self.file)?;
            }
            counts => write!(f, "{counts}.")?,
        }
        if !self.worker_ids.is_empty() {
            write!(f, "   worker ids in this file: {}", self.worker_ids.join(" "))?;
        }
        Ok(())
    }
}

fn write_lines(f: &mut fmt::Formatter<'_>, problems: &[ConfigProblem]) -> fmt::Result {
    f.write_str(&problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
