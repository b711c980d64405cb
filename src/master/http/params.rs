//! What a request says in its URL: identifiers in the path, parameters in the query.

use super::answer::Fault;
use super::guard::is_token;
use super::json::name;
use crate::util::suggest::closest_match;
use crate::util::units;
use crate::wire::problem::Problem;
use crate::wire::{AssignmentId, RequestId, WorkerId};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use std::collections::BTreeMap;
use std::time::Duration;

/// The identifiers in the path of a URL. What can't be one names nothing: the request is answered
/// with 404 and the text goes nowhere else.
pub(super) struct Named<T>(pub(super) T);

/// Identifiers that a path can hold.
pub(super) trait InPath: Sized {
    /// What there is none of, in words.
    const WHAT: &'static str;
    /// Reads the segments that are parameters.
    fn read(segments: &[String]) -> Option<Self>;
}

impl InPath for RequestId {
    const WHAT: &'static str = "sync with this id";
    fn read(segments: &[String]) -> Option<Self> {
        segments.first()?.parse().ok()
    }
}

impl InPath for WorkerId {
    const WHAT: &'static str = "worker with this id";
    fn read(segments: &[String]) -> Option<Self> {
        segments.first()?.parse().ok()
    }
}

impl InPath for (WorkerId, AssignmentId) {
    const WHAT: &'static str = "assignment with this id";
    fn read(segments: &[String]) -> Option<Self> {
        Some((segments.first()?.parse().ok()?, segments.get(1)?.parse().ok()?))
    }
}

impl<T: InPath, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        // Fails for percent-encoded bytes that are not UTF-8, which are in no identifier.
        let segments = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await.ok();
        let segments: Vec<String> =
            segments.into_iter().flat_map(|Path(all)| all).map(|(_, value)| value).collect();
        T::read(&segments).map(Named).ok_or_else(|| {
            Fault(Problem::new(404, "Not Found", "not_found", format!("there is no {}", T::WHAT)))
        })
    }
}

/// The 400 for a parameter or header.
pub(super) fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(400, "Bad Request", "bad_parameter", detail)
}

/// The parameters in the query of a URL.
pub(super) struct Params(BTreeMap<&'static str, String>);

impl Params {
    /// Reads the query of `uri`, which may hold each of `known` once.
    ///
    /// # Errors
    /// 400 for another one, or one that is there twice.
    pub(super) fn of(uri: &Uri, known: &[&'static str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| bad(format!("the query can't be read: {e}")))?;
        let mut params = BTreeMap::new();
        for (key, value) in pairs {
            let Some(key) = known.iter().copied().find(|k| *k == key) else {
                let detail = match closest_match(&key, known.iter().copied()) {
                    Some(meant) => {
                        format!("unknown parameter `{}`; did you mean `{meant}`?", name(&key))
                    }
                    None => {
                        format!(
                            "unknown parameter `{}`; the parameters are {}",
                            name(&key),
                            known.join(", ")
                        )
                    }
                };
                return Err(bad(detail));
            };
            if params.insert(key, value).is_some() {
                return Err(bad(format!("{key} is given twice")));
            }
        }
        Ok(Params(params))
    }

    /// The text of a parameter.
    pub(super) fn get(&self, key: &'static str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A parameter of visible ASCII characters, at most 128.
    ///
    /// # Errors
    /// 400 for another text.
    pub(super) fn token(&self, key: &'static str) -> Result<Option<String>, Problem> {
        match self.get(key) {
            Some(text) if !is_token(text) => {
                Err(bad(format!("{key} must be 1 to 128 visible ASCII characters")))
            }
            other => Ok(other.map(str::to_owned)),
        }
    }

    /// A parameter that is a length of time, as `20s`.
    ///
    /// # Errors
    /// 400 for another text.
    pub(super) fn duration(&self, key: &'static str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        // The rule of the units module may quote the text.
        units::parse_duration(text).map(Some).map_err(|rule| bad(format!("{key}: {}", name(&rule))))
    }

    /// A parameter that is a number from 1; one that is too large to count with is as good as none.
    ///
    /// # Errors
    /// 400 for another text.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<usize>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match (digits, text.parse::<usize>()) {
            (true, Ok(1..)) => Ok(text.parse().ok()),
            (true, Err(_)) => Ok(None),
            _ => Err(bad(format!("{key} must be a whole number from 1"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<Params, Problem> {
        Params::of(&format!("/x?{query}").parse().unwrap(), &["wait", "limit", "poll_id"])
    }

    #[test]
    fn parameters_are_known_and_given_once() {
        assert!(of("").is_ok() && of("wait=20s&limit=5").is_ok());
        assert!(of("wiat=1").err().unwrap().detail.contains("did you mean `wait`"));
        assert!(of("wait=1&wait=2").err().unwrap().detail.contains("twice"));
        assert!(of(&format!("{}=1", "x".repeat(9_000))).err().unwrap().detail.len() < 300);
    }

    #[test]
    fn numbers_and_times_are_bounded() {
        assert_eq!(of("limit=5").unwrap().number("limit"), Ok(Some(5)));
        assert_eq!(of("limit=99999999999999999999999").unwrap().number("limit"), Ok(None));
        for bad in ["limit=0", "limit=-1", "limit=+1", "limit=x", "limit="] {
            assert!(of(bad).unwrap().number("limit").is_err(), "{bad}");
        }
        assert_eq!(of("wait=20s").unwrap().duration("wait"), Ok(Some(Duration::from_secs(20))));
        assert_eq!(of("wait=2").unwrap().duration("wait"), Ok(Some(Duration::from_secs(2))));
        assert!(of("wait=soon").unwrap().duration("wait").is_err());
        assert!(of("poll_id=a%0ab").unwrap().token("poll_id").is_err());
    }
}
