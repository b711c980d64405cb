//! The side of a failure ([`Side`]), and whether a retry can succeed ([`ErrorClass`]).

use super::text_enum::text_enum;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The end of a sync at which an operation failed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum Side {
    /// Where entries are read.
    #[n(0)]
    Source,
    /// Where entries are written.
    #[n(1)]
    Destination,
}

text_enum!(Side { Source = "source", Destination = "destination" });

/// Determines whether a failed entry is retried.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    Encode,
    Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum ErrorClass {
    /// A retry may succeed (EIO, ENOSPC, a lost connection).
    #[default]
    #[n(0)]
    Transient,
    /// Only another worker or a change by an operator can help (EACCES, EROFS).
    #[n(1)]
    Permanent,
    /// The source changed during every attempt.
    #[n(2)]
    Changed,
    /// The source entry no longer exists.
    #[n(3)]
    Vanished,
    /// The storage path of a worker no longer leads to the directory that the worker opened: the
    /// sync waits until it does.
    #[n(4)]
    StorageGone,
    /// The request does not fit the file types of its paths: no retry can succeed.
    #[n(5)]
    InvalidRequest,
}
