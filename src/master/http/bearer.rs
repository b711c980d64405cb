//! Tokens in `Authorization: Bearer`: reading, verification, new ones, and the count of failures.

use crate::scheduler::{TokenRefusal, TokenTable};
use crate::util::client_network::network_of;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::{TokenId, TokenView};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The first part of a token: its format.
const PREFIX: &str = "lh1";
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 6;
/// The failures of an address within [`FAILURE_WINDOW`] that are answered by their cause; further ones by 429.
const MAX_FAILURES: u32 = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// The addresses of which failures are counted.
const MAX_COUNTED_ADDRESSES: usize = 8_192;

/// A new token: its public name, its text, and the digest of its secret.
pub(in crate::master) struct NewToken {
    pub(in crate::master) id: TokenId,
    /// Its hexadecimal digits.
    pub(in crate::master) secret: String,
    pub(in crate::master) text: String,
    pub(in crate::master) secret_digest: blake3::Hash,
}

impl NewToken {
    /// # Errors
    /// The system has no random numbers.
    pub(in crate::master) fn generate() -> Result<Self, Problem> {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        let unavailable = |_| {
            Problem::new(ProblemCode::Internal, "the system provides no random numbers for a token")
        };
        aws_lc_rs::rand::fill(&mut random).map_err(unavailable)?;
        let (id, secret) = random.split_at(ID_BYTES);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret_digest = blake3::hash(secret.as_bytes());
        let text = format!("{PREFIX}_{id}_{secret}");
        let id =
            id.try_into().map_err(|_| Problem::new(ProblemCode::Internal, "a token has no id"))?;
        Ok(NewToken { id, secret, text, secret_digest })
    }
}

/// The token in the headers, if there is one.
///
/// # Errors
/// 401: the header stands twice, or holds no token.
pub(super) fn read_token(headers: &HeaderMap) -> Result<Option<(TokenId, blake3::Hash)>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok(),
        (Some(_), Some(_)) => None,
    };
    let parse = |value: &str| {
        let (scheme, token) = value.split_once(' ')?;
        let mut parts = token.trim().splitn(3, '_');
        let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let is_token = scheme.eq_ignore_ascii_case("bearer")
            && prefix == PREFIX
            && secret.len() == 2 * SECRET_BYTES;
        is_token.then_some(())?;
        Some((id.parse().ok()?, blake3::hash(secret.as_bytes())))
    };
    value.and_then(parse).map(Some).ok_or_else(|| {
        refused(
            ProblemCode::BadCredentials,
            "the header Authorization holds no token of a master (`Bearer lh1_…`)",
        )
    })
}

/// # Errors
/// 401: the token is unknown, revoked or expired.
pub(super) fn verify_token<'a>(
    table: &'a TokenTable,
    (id, digest): &(TokenId, blake3::Hash),
    now_ms: i64,
) -> Result<&'a TokenView, Problem> {
    table.verify(id, *digest, now_ms).map_err(|refusal| match refusal {
        TokenRefusal::Unknown => {
            refused(ProblemCode::BadCredentials, "the token is not one of this master")
        }
        TokenRefusal::Revoked => {
            refused(ProblemCode::Revoked, format!("the token {id} is revoked"))
        }
        TokenRefusal::Expired => {
            refused(ProblemCode::Expired, format!("the token {id} has expired"))
        }
    })
}

fn refused(code: ProblemCode, detail: impl Into<String>) -> Problem {
    Problem::new(code, detail).with_hint(
        "have an administrator create another one (ctl token create), then: ctl auth login --token-file FILE",
    )
}

/// Counts the refused tokens of each address. A valid token is accepted all the same: its secret cannot be guessed, and
/// one client must not shut out others behind the same address.
#[derive(Debug, Default)]
pub(super) struct FailureCounter(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl FailureCounter {
    /// Counts a failure; beyond [`MAX_FAILURES`] the problem is 429 instead of `problem`.
    pub(super) fn count(&self, client: Option<IpAddr>, now: Instant, problem: Problem) -> Problem {
        let Some(client) = client.map(network_of) else { return problem };
        let mut counts = self.0.lock();
        if counts.len() >= MAX_COUNTED_ADDRESSES && !counts.contains_key(&client) {
            counts.retain(|_, (since, _)| now.duration_since(*since) < FAILURE_WINDOW);
            if counts.len() >= MAX_COUNTED_ADDRESSES {
                return too_many_failures();
            }
        }
        let (since, count) = counts.entry(client).or_insert((now, 0));
        if now.duration_since(*since) >= FAILURE_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        if *count > MAX_FAILURES { too_many_failures() } else { problem }
    }
}

fn too_many_failures() -> Problem {
    let detail =
        format!("more than {MAX_FAILURES} tokens from this address were refused within a minute");
    Problem::new(ProblemCode::TooManyFailures, detail)
        .with_hint("correct the token (ctl auth status), and try again after a minute")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn only_a_whole_token_is_read() {
        let new = NewToken::generate().unwrap();
        assert_eq!(new.text.len(), "lh1_".len() + 12 + 1 + 64);
        assert_ne!(new.text, NewToken::generate().unwrap().text);
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let found = read_token(&headers(&[&format!("{scheme} {}", new.text)])).unwrap();
            assert_eq!(found, Some((new.id.clone(), new.secret_digest)));
        }
        assert_eq!(read_token(&HeaderMap::new()).unwrap(), None);
        let good = format!("Bearer {}", new.text);
        for bad in [
            vec!["Bearer"],
            vec!["Basic dTpw"],
            vec!["Bearer lh1__"],
            vec![&good[..good.len() - 1]],
            vec![&good.replace("lh1_", "lh2_")],
            vec![&good.replace("Bearer ", "")],
            vec![&good, &good],
        ] {
            let problem = read_token(&headers(&bad)).unwrap_err();
            assert!(problem.is(ProblemCode::BadCredentials), "{bad:?}");
            assert!(!format!("{problem:?}").contains(&new.text[17..]), "no secret in errors");
        }
    }

    #[test]
    fn the_sixth_failure_of_an_address_within_a_minute_is_429() {
        let counter = FailureCounter::default();
        let start = Instant::now();
        let count = |address: &str, seconds: u64| {
            let at = start + Duration::from_secs(seconds);
            let problem = refused(ProblemCode::BadCredentials, "x");
            counter.count(Some(address.parse().unwrap()), at, problem).status
        };
        assert_eq!(
            (0..7).map(|_| count("10.0.0.1", 0)).collect::<Vec<_>>(),
            [401, 401, 401, 401, 401, 429, 429]
        );
        assert_eq!(count("10.0.0.2", 0), 401);
        assert_eq!(count("::ffff:10.0.0.1", 59), 429, "IPv4 in IPv6");
        assert_eq!(count("10.0.0.1", 60), 401);
        let network: Vec<u16> = (1..7).map(|n| count(&format!("fd00::{n}"), 0)).collect();
        assert_eq!(network, [401, 401, 401, 401, 401, 429], "one network");
        assert_eq!(count("fd00:0:0:1::1", 0), 401);
    }
}
