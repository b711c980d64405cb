//! All that is wrong with a document, collected so that its sender can mend it in one go.

use crate::util::units;
use crate::wire::problem::{FieldError, Problem};

/// A problem document lists at most this many fields; a list of a million bad names must not make
/// an answer of a million lines.
pub(super) const MAX_FAULTS: usize = 100;

/// The fields at fault, each with its JSON pointer below the place that is being read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    listed: Vec<FieldError>,
    more: usize,
}

impl Faults {
    /// One fault, of the place itself.
    pub(super) fn one(detail: impl Into<String>) -> Self {
        let mut faults = Faults::default();
        faults.push("", detail.into());
        faults
    }

    /// Notes that the field at `pointer` is wrong.
    pub(super) fn push(&mut self, pointer: &str, detail: String) {
        if self.listed.len() < MAX_FAULTS {
            self.listed.push(FieldError { pointer: pointer.to_owned(), detail });
        } else {
            self.more += 1;
        }
    }

    /// Takes over what is wrong at `pointer` and below it.
    pub(super) fn absorb(&mut self, pointer: &str, faults: Faults) {
        for fault in faults.listed {
            self.push(&format!("{pointer}{}", fault.pointer), fault.detail);
        }
        self.more += faults.more;
    }

    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// The faults.
    pub(super) fn or<T>(self, value: T) -> Result<T, Faults> {
        if self.listed.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The 422 that lists them.
    pub(super) fn into_problem(self) -> Problem {
        let named = |f: &FieldError| match f.pointer.as_str() {
            "" => f.detail.clone(),
            pointer => format!("{pointer}: {}", f.detail),
        };
        let count = self.listed.len() + self.more;
        let detail = match self.listed.first() {
            Some(first) if count > 1 => {
                format!("{count} fields are wrong; the first is {}", named(first))
            }
            Some(only) => named(only),
            None => "the document is wrong".to_owned(),
        };
        let mut problem = Problem::new(422, "Unprocessable Content", "invalid_fields", detail);
        problem.errors = self.listed;
        if self.more > 0 {
            problem = problem.with_hint(format!(
                "{} wrong that are not listed",
                units::pluralize(self.more as u64, "more field is", "more fields are")
            ));
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_does_not_grow_with_the_document() {
        let mut inner = Faults::default();
        for i in 0..5_000 {
            inner.push(&format!("/{i}"), "must not be empty".into());
        }
        let mut outer = Faults::one("first");
        outer.absorb("/file_list", inner);
        let problem = outer.into_problem();
        assert_eq!(problem.errors.len(), MAX_FAULTS);
        assert_eq!(problem.errors[1].pointer, "/file_list/0");
        assert_eq!(problem.hint.unwrap(), "4,901 more fields are wrong that are not listed");
        assert!(problem.detail.starts_with("5001 fields"), "{}", problem.detail);
    }

    #[test]
    fn one_fault_is_the_detail() {
        let mut faults = Faults::default();
        assert_eq!(Faults::default().or(7), Ok(7));
        faults.push("/chunk_size_mb", "must be from 1 to 1024".into());
        assert_eq!(faults.into_problem().detail, "/chunk_size_mb: must be from 1 to 1024");
    }
}
