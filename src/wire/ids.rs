//! Identifiers, each a type of its own so that one cannot stand where another is meant.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Why an identifier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(&'static str);

const ID_RULE: IdError = IdError(
    "must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ - and not start with `-` or `.`",
);

fn check_id(s: &str) -> Result<(), IdError> {
    let fits = !s.is_empty()
        && s.len() <= 128
        && !s.starts_with(['-', '.'])
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@-".contains(&b));
    if fits { Ok(()) } else { Err(ID_RULE) }
}

/// A sync whose id the master made is named by the beginning of it where that is at least so long and no other such id
/// begins so.
pub const MIN_ID_PREFIX_CHARS: usize = 8;

impl RequestId {
    /// Whether it looks like one that the master made: a UUID. Others are names that somebody gave.
    pub fn is_generated(&self) -> bool {
        self.as_str().len() == 36 && uuid::Uuid::try_parse(self.as_str()).is_ok()
    }
}

/// The words behind `/workers/` that are routes of their own. A worker with one of these names could not
/// be shown, drained or forgotten.
pub mod worker_routes {
    /// `POST /workers/heartbeat`.
    pub const HEARTBEAT: &str = "heartbeat";
    /// `POST /workers/result`.
    pub const RESULT: &str = "result";
    /// All of them.
    pub const RESERVED_IDS: [&str; 2] = [HEARTBEAT, RESULT];
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
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $t(String);

        impl $t {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $t {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                $check(s).map(|()| $t(s.to_owned()))
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

string_id!(
    /// The operator's name of a sync (`request_id` on the wire).
    RequestId,
    check_id
);
string_id!(
    /// The operator's name of an agent.
    WorkerId,
    check_worker_id
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
    /// The master's own number of a sync: never used twice, also when an operator gives a deleted
    /// `request_id` again.
    SyncNo
);
number_id!(
    /// The number of a task; never used twice.
    TaskId
);

macro_rules! hex_id {
    ($(#[$doc:meta])* $t:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(pub [u8; $len]);

        impl FromStr for $t {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                const RULE: IdError = IdError("must be lower-case hexadecimal digits of the full length");
                let raw = s.as_bytes();
                if raw.len() != 2 * $len {
                    return Err(RULE);
                }
                let digit = |b: u8| match b {
                    b'0'..=b'9' => Ok(b - b'0'),
                    b'a'..=b'f' => Ok(b - b'a' + 10),
                    _ => Err(RULE),
                };
                let mut out = [0; $len];
                for (byte, pair) in out.iter_mut().zip(raw.chunks_exact(2)) {
                    *byte = digit(pair[0])? << 4 | digit(pair[1])?;
                }
                Ok($t(out))
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
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

impl<C> minicbor::Encode<C> for Digest {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Digest {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?.try_into();
        bytes
            .map(Digest)
            .map_err(|_| minicbor::decode::Error::message("a digest has 32 bytes").at(at))
    }
}

hex_id!(
    /// A random number that names one lease of one task; a result must carry it.
    AssignmentId,
    16
);
hex_id!(
    /// A BLAKE3 digest.
    Digest,
    32
);

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Digest(*hash.as_bytes())
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
            let refused = word.parse::<WorkerId>().unwrap_err();
            assert!(refused.to_string().contains(&format!("/workers/{word}")), "{refused}");
            assert!(word.parse::<RequestId>().is_ok(), "there is no such route below /sync");
            for near in [word.to_uppercase(), format!("{word}-1")] {
                assert!(near.parse::<WorkerId>().is_ok(), "{near}");
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
