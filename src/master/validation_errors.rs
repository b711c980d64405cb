//! The errors of a document, collected so that its author can correct all of them at once.

use crate::util::units;
use crate::wire::problem::{FieldError, Problem, ProblemCode};

/// A file list of a million invalid names must not cause a response of a million lines.
const MAX_LISTED_ERRORS: usize = 100;

/// Invalid fields, each with its JSON pointer relative to the value that is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ValidationErrors {
    listed: Vec<FieldError>,
    unlisted: usize,
}

impl ValidationErrors {
    /// One error of the value itself.
    pub(super) fn single(detail: impl Into<String>) -> Self {
        let mut errors = ValidationErrors::default();
        errors.push("", detail.into());
        errors
    }

    pub(super) fn push(&mut self, pointer: &str, detail: String) {
        if self.listed.len() < MAX_LISTED_ERRORS {
            self.listed.push(FieldError { pointer: pointer.to_owned(), detail });
        } else {
            self.unlisted += 1;
        }
    }

    /// Adds the errors of the value at `pointer`.
    pub(super) fn merge_at(&mut self, pointer: &str, errors: ValidationErrors) {
        for error in errors.listed {
            self.push(&format!("{pointer}{}", error.pointer), error.detail);
        }
        self.unlisted += errors.unlisted;
    }

    /// `value` if there is no error.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, ValidationErrors> {
        if self.listed.is_empty() { Ok(value) } else { Err(self) }
    }

    pub(super) fn into_problem(self) -> Problem {
        let describe = |error: &FieldError| match error.pointer.as_str() {
            "" => error.detail.clone(),
            pointer => format!("{pointer}: {}", error.detail),
        };
        let count = self.listed.len() + self.unlisted;
        let detail = match self.listed.first() {
            Some(first) if count > 1 => {
                format!("{count} fields are not valid; the first is {}", describe(first))
            }
            Some(only) => describe(only),
            None => "the document is not valid".to_owned(),
        };
        let mut problem = Problem::new(ProblemCode::InvalidFields, detail);
        problem.errors = self.listed;
        if self.unlisted > 0 {
            problem = problem.with_hint(format!(
                "{} not valid and not listed",
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
        assert_eq!(problem.hint.unwrap(), "4,901 more fields are not valid and not listed");
        assert!(problem.detail.starts_with("5001 fields"), "{}", problem.detail);
    }

    #[test]
    fn a_single_error_becomes_the_detail() {
        let mut errors = ValidationErrors::default();
        assert_eq!(ValidationErrors::default().into_result(7), Ok(7));
        errors.push("/chunk_size_mb", "must be from 1 to 1024".into());
        assert_eq!(errors.into_problem().detail, "/chunk_size_mb: must be from 1 to 1024");
    }
}
