//! The parameters in a URL: identifiers in the path, and the query.

use super::json::display_key;
use super::middleware::is_token;
use super::response::ProblemResponse;
use crate::util::suggest::closest_match;
use crate::util::units;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::TokenId;
use crate::wire::{AssignmentId, RequestId, StorageId, WorkerId};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

/// The identifiers in the path of a URL. An invalid identifier is a 404, and its text is not used any further.
pub(super) struct PathId<T>(pub(super) T);

/// An identifier, or several, in a path.
pub(super) trait InPath: DeserializeOwned + Send {
    /// Completes the message "there is no …".
    const DESCRIPTION: &'static str;
}

impl InPath for RequestId {
    const DESCRIPTION: &'static str = "sync with this id";
}

impl InPath for WorkerId {
    const DESCRIPTION: &'static str = "worker with this id";
}

impl InPath for StorageId {
    const DESCRIPTION: &'static str = "storage with this id";
}

impl InPath for TokenId {
    const DESCRIPTION: &'static str = "token with this id";
}

impl InPath for (WorkerId, AssignmentId) {
    const DESCRIPTION: &'static str = "assignment with this id";
}

impl<T: InPath, S: Send + Sync> FromRequestParts<S> for PathId<T> {
    type Rejection = ProblemResponse;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ProblemResponse> {
        Path::from_request_parts(parts, state).await.map(|Path(id)| PathId(id)).map_err(|_| {
            let detail = format!("there is no {}", T::DESCRIPTION);
            ProblemResponse(Problem::new(ProblemCode::NotFound, detail))
        })
    }
}

/// The 400 for an invalid parameter or header.
pub(super) fn invalid_parameter(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::InvalidParameter, detail)
}

/// The parameters of a query.
pub(super) struct QueryParams(BTreeMap<&'static str, String>);

impl QueryParams {
    /// Parses the query of `uri`, which may contain each of `known` once.
    ///
    /// # Errors
    /// 400 for an unknown or a repeated parameter.
    pub(super) fn parse(uri: &Uri, known: &[&'static str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| invalid_parameter(format!("the query can't be read: {e}")))?;
        let mut params = BTreeMap::new();
        for (key, value) in pairs {
            let Some(key) = known.iter().copied().find(|k| *k == key) else {
                let advice = match closest_match(&key, known.iter().copied()) {
                    Some(similar) => format!("did you mean `{similar}`?"),
                    None => format!("the parameters are {}", known.join(", ")),
                };
                let key = display_key(&key);
                return Err(invalid_parameter(format!("unknown parameter `{key}`; {advice}")));
            };
            if params.insert(key, value).is_some() {
                return Err(invalid_parameter(format!("{key} is given twice")));
            }
        }
        Ok(QueryParams(params))
    }

    pub(super) fn get(&self, key: &'static str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A parameter of 1 to 128 visible ASCII characters.
    ///
    /// # Errors
    /// 400 for other text.
    pub(super) fn token(&self, key: &'static str) -> Result<Option<String>, Problem> {
        match self.get(key) {
            Some(text) if !is_token(text) => {
                Err(invalid_parameter(format!("{key} must be 1 to 128 visible ASCII characters")))
            }
            other => Ok(other.map(str::to_owned)),
        }
    }

    /// A duration, e.g. `20s`.
    ///
    /// # Errors
    /// 400 for other text.
    pub(super) fn duration(&self, key: &'static str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        // The message may quote the text.
        units::parse_duration(text)
            .map(Some)
            .map_err(|reason| invalid_parameter(format!("{key}: {}", display_key(&reason))))
    }

    /// A number from 1. A number over the range is as no limit: `None`.
    ///
    /// # Errors
    /// 400 for other text.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<usize>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match (is_number, text.parse::<usize>()) {
            (true, Ok(1..)) => Ok(text.parse().ok()),
            (true, Err(_)) => Ok(None),
            _ => Err(invalid_parameter(format!("{key} must be a whole number from 1"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_query(query: &str) -> Result<QueryParams, Problem> {
        QueryParams::parse(&format!("/x?{query}").parse().unwrap(), &["wait", "limit", "poll_id"])
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert!(parse_query("").is_ok() && parse_query("wait=20s&limit=5").is_ok());
        assert!(parse_query("wiat=1").err().unwrap().detail.contains("did you mean `wait`"));
        assert!(parse_query("wait=1&wait=2").err().unwrap().detail.contains("twice"));
        assert!(parse_query(&format!("{}=1", "x".repeat(9_000))).err().unwrap().detail.len() < 300);
    }

    #[test]
    fn numbers_and_durations_are_bounded() {
        assert_eq!(parse_query("limit=5").unwrap().number("limit"), Ok(Some(5)));
        assert_eq!(parse_query("limit=99999999999999999999999").unwrap().number("limit"), Ok(None));
        for bad in ["limit=0", "limit=-1", "limit=+1", "limit=x", "limit="] {
            assert!(parse_query(bad).unwrap().number("limit").is_err(), "{bad}");
        }
        assert_eq!(
            parse_query("wait=20s").unwrap().duration("wait"),
            Ok(Some(Duration::from_secs(20)))
        );
        assert_eq!(
            parse_query("wait=2").unwrap().duration("wait"),
            Ok(Some(Duration::from_secs(2)))
        );
        assert!(parse_query("wait=soon").unwrap().duration("wait").is_err());
        assert!(parse_query("poll_id=a%0ab").unwrap().token("poll_id").is_err());
    }
}
