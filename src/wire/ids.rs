//! Identifiers, each a separate type so that one cannot be used in place of another.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The reason why an identifier is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(&'static str);

const ID_RULE: IdError = IdError(
    "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
);

fn check_id(s: &str) -> Result<(), IdError> {
    let is_valid = !s.is_empty()
        && s.len() <= 128
        && !s.starts_with(['-', '.'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b));
    if is_valid { Ok(()) } else { Err(ID_RULE) }
}

/// The minimum length of a prefix that identifies a sync with a [generated](RequestId::is_generated) id. The prefix must
/// also be unique.
pub const MIN_ID_PREFIX_CHARS: usize = 8;

impl RequestId {
    /// Whether the id has the form of one that the master generates (a UUID). Other ids were chosen by an operator.
    pub fn is_generated(&self) -> bool {
        self.as_str().len() == 36 && uuid::Uuid::try_parse(self.as_str()).is_ok()
    }
}

/// Path segments below `/workers/` that are routes. A worker with one of these ids could not be shown, drained or
/// forgotten.
pub mod worker_routes {
    /// `POST /workers/heartbeat`.
    pub const HEARTBEAT: &str = "heartbeat";
    /// `POST /workers/result`.
    pub const RESULT: &str = "result";

    pub(crate) const RESERVED_IDS: [&str; 2] = [HEARTBEAT, RESULT];
}

const RESERVED_ID_RULE: IdError = IdError(
    "is a path of the master's API (/workers/heartbeat, /workers/result): choose another worker id",
);

fn check_worker_id(s: &str) -> Result<(), IdError> {
    check_id(s)?;
    if worker_routes::RESERVED_IDS.contains(&s) { Err(RESERVED_ID_RULE) } else { Ok(()) }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $t:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $t(String);

        impl $t {
            /// The text of the id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $t {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                $check(&s).map(|()| $t(s))
            }
        }
        impl FromStr for $t {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                s.to_owned().try_into()
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id!(
    /// The id of a sync, given by the operator or generated (`request_id` on the wire).
    RequestId,
    check_id
);
string_id!(
    /// The id of an agent, given by the operator.
    WorkerId,
    check_worker_id
);

string_id!(
    /// The id of a storage: declared in a configuration, or made by the master.
    StorageId,
    check_id
);

impl From<uuid::Uuid> for RequestId {
    fn from(id: uuid::Uuid) -> Self {
        RequestId(id.hyphenated().to_string())
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $t:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $t(pub u64);

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// The internal number of a sync. It is never reused, also if an operator gives the `request_id` of a deleted sync
    /// again.
    SyncNo
);
number_id!(
    /// The number of a task. It is never reused.
    TaskId
);

macro_rules! hex_id {
    ($(#[$doc:meta])* $t:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Encode, Decode)]
        #[serde(try_from = "String")]
        #[cbor(transparent)]
        pub struct $t(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; $len]);

        impl TryFrom<String> for $t {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }
        impl FromStr for $t {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                decode_hex(s.as_bytes(), &mut bytes)?;
                Ok($t(bytes))
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    };
}

/// Fills `out` from twice as many lower-case hexadecimal digits.
fn decode_hex(digits: &[u8], out: &mut [u8]) -> Result<(), IdError> {
    const RULE: IdError = IdError("must be lower-case hexadecimal digits of the full length");
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(RULE),
    };
    if digits.len() != 2 * out.len() {
        return Err(RULE);
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(())
}

hex_id!(
    /// A random id of one lease of one task; a result must carry it.
    AssignmentId,
    16
);
hex_id!(
    /// A BLAKE3 digest.
    #[derive(Default)]
    Digest,
    32
);

impl Digest {
    /// The first 8 bytes.
    pub(crate) fn prefix(&self) -> [u8; 8] {
        self.0.first_chunk().copied().unwrap_or_default()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Digest(*hash.as_bytes())
    }
}

/// The public name of a token: 12 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TokenId(String);

impl TryFrom<String> for TokenId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_id = text.len() == 12 && text.bytes().all(is_digit);
        if is_id { Ok(TokenId(text)) } else { Err("must be 12 digits out of 0-9 a-f") }
    }
}

impl std::str::FromStr for TokenId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_only_plain_characters() {
        for good in ["demo-1", "01JX8K", "a", "gpu_01.rack:3", "x@y"] {
            assert!(good.parse::<RequestId>().is_ok(), "{good}");
        }
        for bad in ["", "-x", ".", "..", "a b", "a/b", "{x}", "a\n", "\u{e9}", &"x".repeat(129)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_worker_id_must_not_equal_a_route_name() {
        for word in worker_routes::RESERVED_IDS {
            let error = word.parse::<WorkerId>().unwrap_err();
            assert!(error.to_string().contains(&format!("/workers/{word}")), "{error}");
            assert!(word.parse::<RequestId>().is_ok(), "no such route exists below /sync");
            for similar in [word.to_uppercase(), format!("{word}-1")] {
                assert!(similar.parse::<WorkerId>().is_ok(), "{similar}");
            }
        }
    }

    #[test]
    fn hex_ids_round_trip_and_other_text_is_rejected() {
        let id = AssignmentId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<AssignmentId>().unwrap(), id);
        for bad in ["", "00", &"G".repeat(32), &"A".repeat(32)] {
            assert!(bad.parse::<AssignmentId>().is_err());
        }
    }
}
