//! What is wrong with a configuration: every problem at once, each with its place.

use std::fmt;

/// A place in a file; both numbers count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pos {
    /// The line.
    pub line: usize,
    /// The column.
    pub col: usize,
}

/// Whether a problem stops the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, and something in it is probably not what was meant.
    Warning,
}

/// One problem. Shown as `file:line:col: error: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The file as it was named, or the environment variable.
    pub origin: String,
    /// Where in it; `None` when the whole of it is meant.
    pub at: Option<Pos>,
    /// Error or warning.
    pub severity: Severity,
    /// What, and what to do next.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let Some(Pos { line, col }) = self.at {
            write!(f, ":{line}:{col}")?;
        }
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {word}: {}", self.message)
    }
}

/// A configuration that cannot be used. Displayed one problem a line, warnings included, without a
/// final newline. The program ends with exit code 78.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one error, and the warnings found beside it, in the order of the file.
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.problems)
    }
}

impl std::error::Error for ConfigErrors {}

/// Which of the two configuration files one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// For `ctl master`.
    Master,
    /// For `ctl agent`: shared by all the workers in it.
    Agents,
}

/// What `ctl config check` has to say. Displayed as the problems, one a line, and a closing line
/// with their number, e.g. `2 errors, 1 warning.   worker ids in this file: worker-a worker-b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The file as it was named.
    pub file: String,
    /// What it was recognised as; `None` when it could not be read at all.
    pub kind: Option<FileKind>,
    /// Everything found, in the order of the file.
    pub problems: Vec<ConfigProblem>,
    /// The workers that an agents file names, in its order.
    pub worker_ids: Vec<String>,
}

impl CheckReport {
    /// How many problems are errors.
    pub fn error_count(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }

    /// How many problems are warnings.
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
        let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        match (self.error_count(), self.warning_count()) {
            (0, 0) => {
                let kind = match self.kind {
                    Some(FileKind::Master) => "master configuration",
                    Some(FileKind::Agents) => "agents file",
                    None => "file",
                };
                write!(f, "{}: {kind} ok.", self.file)?;
            }
            (errors, 0) => write!(f, "{}.", plural(errors, "error"))?,
            (0, warnings) => write!(f, "{}.", plural(warnings, "warning"))?,
            (errors, warnings) => {
                write!(f, "{}, {}.", plural(errors, "error"), plural(warnings, "warning"))?;
            }
        }
        if !self.worker_ids.is_empty() {
            write!(f, "   worker ids in this file: {}", self.worker_ids.join(" "))?;
        }
        Ok(())
    }
}

fn write_lines(f: &mut fmt::Formatter<'_>, problems: &[ConfigProblem]) -> fmt::Result {
    for (i, problem) in problems.iter().enumerate() {
        if i > 0 {
            writeln!(f)?;
        }
        write!(f, "{problem}")?;
    }
    Ok(())
}
