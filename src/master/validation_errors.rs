//! All that is wrong with a document, collected so that its sender can mend it in one go.

use crate::util::units;
use crate::wire::problem::{FieldError, Problem, ProblemCode};

/// A problem document lists at most this many fields; a list of a million bad names must not make
/// an answer of a million lines.
pub(super) const MAX_LISTED_ERRORS: usize = 100;

/// The fields at fault, each with its JSON pointer below the place that is being read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ValidationErrors {
    listed: Vec<FieldError>,
    unlisted: usize,
}

impl ValidationErrors {
    /// One fault, of the place itself.
    pub(super) fn single(detail: impl Into<String>) -> Self {
        let mut faults = ValidationErrors::default();
        faults.push("", detail.into());
        faults
    }

    /// Notes that the field at `pointer` is wrong.
    pub(super) fn push(&mut self, pointer: &str, detail: String) {
        if self.listed.len() < MAX_LISTED_ERRORS {
            self.listed.push(FieldError { pointer: pointer.to_owned(), detail });
        } else {
            self.unlisted += 1;
        }
    }

    /// Takes over what is wrong at `pointer` and below it.
    pub(super) fn merge_at(&mut self, pointer: &str, faults: ValidationErrors) {
        for fault in faults.listed {
            self.push(&format!("{pointer}{}", fault.pointer), fault.detail);
        }
        self.unlisted += faults.unlisted;
    }

    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// The faults.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ValidationErrors> {
        if self.listed.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The 422 that lists them.
    pub(super) fn into_problem(self) -> Problem {
        let named = |f: &FieldError| match f.pointer.as_str() {
            "" => f.detail.clone(),
            pointer => format!("{pointer}: {}", f.detail),
        };
        let count = self.listed.len() + self.unlisted;
        let detail = match self.listed.first() {
            Some(first) if count > 1 => {
                format!("{count} fields are wrong; the first is {}", named(first))
            }
            Some(only) => named(only),
            None => "the document is wrong".to_owned(),
        };
        let mut problem = Problem::new(ProblemCode::InvalidFields, detail);
        problem.errors = self.listed;
        if self.unlisted > 0 {
            problem = problem.with_hint(format!(
                "{} wrong that are not listed",
                units::pluralize(self.unlisted as u64, "more field is", "more fields are")
            ));
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_listed_errors_is_bounded() {
        let mut inner = ValidationErrors::default();
        for i in 0..5_000 {
            inner.push(&format!("/{i}"), "must not be empty".into());
        }
        let mut outer = ValidationErrors::single("first");
        outer.merge_at("/file_list", inner);
        let problem = outer.into_problem();
        assert_eq!(problem.errors.len(), MAX_LISTED_ERRORS);
        assert_eq!(problem.errors[1].pointer, "/file_list/0");
        assert_eq!(problem.hint.unwrap(), "4,901 more fields are wrong that are not listed");
        assert!(problem.detail.starts_with("5001 fields"), "{}", problem.detail);
    }

    #[test]
    fn a_single_error_becomes_the_detail() {
        let mut faults = ValidationErrors::default();
        assert_eq!(ValidationErrors::default().into_result(7), Ok(7));
        faults.push("/chunk_size_mb", "must be from 1 to 1024".into());
        assert_eq!(faults.into_problem().detail, "/chunk_size_mb: must be from 1 to 1024");
    }
}
