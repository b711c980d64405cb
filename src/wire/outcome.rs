//! The error of an entry ([`EntryError`]): one type from the file system over agents and master to the command line.

pub use super::errno::{ErrorClass, Side};

use super::errno::{self, errno_by_name, errno_name};
use super::path::escape_bytes;
use super::{BytePath, RelPath, WorkerId};
use minicbor::{Decode, Decoder, Encode, Encoder};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// The maximum length of a text of an error in replies of agents and in records, in characters. A longer one is cut.
const MAX_TEXT_CHARS: usize = 1_000;

/// One failed entry (or batch). In a reply between agents the path, the worker and the attempt are left out: the
/// requester fills them in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct EntryError {
    /// Below the source (and destination) root; empty for the root itself.
    #[serde(default)]
    #[cbor(skip)]
    pub path: BytePath,
    /// The end at which the operation failed; absent where a task failed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(0)]
    pub side: Option<Side>,
    /// The verb, e.g. `open`.
    #[cbor(n(1), decode_with = "decode_text")]
    pub operation: String,
    /// The name of the errno of a failed system call, e.g. `EACCES`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(2)]
    pub errno: Option<String>,
    /// The error message, with path and cause.
    #[cbor(n(3), encode_with = "encode_text", decode_with = "decode_text")]
    pub message: String,
    /// The next step for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[n(4)]
    pub hint: Option<String>,
    /// The worker that reported the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cbor(skip)]
    pub worker_id: Option<WorkerId>,
    /// The number of the attempt, from 1.
    #[serde(default)]
    #[cbor(skip)]
    pub attempt: u32,
    /// See [`ErrorClass`].
    #[serde(default)]
    #[n(5)]
    pub class: ErrorClass,
}

impl EntryError {
    /// A transient error that no system call reported.
    pub fn new(
        path: &[u8],
        side: impl Into<Option<Side>>,
        operation: &str,
        message: impl Into<String>,
    ) -> Self {
        EntryError {
            path: BytePath(path.to_vec()),
            side: side.into(),
            operation: operation.to_owned(),
            errno: None,
            message: message.into(),
            hint: None,
            worker_id: None,
            attempt: 0,
            class: ErrorClass::Transient,
        }
    }

    /// The error with the name of `errno`.
    pub fn with_errno(self, errno: Errno) -> Self {
        EntryError { errno: errno_name(errno).map(str::to_owned), ..self }
    }

    /// The error without its path, for a document that names the path itself.
    pub fn without_path(&self) -> Self {
        let message = cut_text(&self.message).to_owned();
        EntryError { path: BytePath::default(), message, ..self.clone() }
    }

    /// The error of the entry at `path`, from a reply. Its texts came from a peer.
    pub fn received(self, path: &RelPath) -> Self {
        EntryError {
            path: BytePath(path.as_bytes().to_vec()),
            errno: self.errno.as_deref().map(sanitize_text),
            hint: self.hint.as_deref().map(sanitize_text),
            ..self
        }
    }

    /// Completes the error with the worker and the number of the attempt, as far as it names none.
    pub fn attribute(&mut self, worker: &WorkerId, attempt: u32) {
        self.worker_id.get_or_insert_with(|| worker.clone());
        self.attempt = self.attempt.max(attempt);
    }

    /// Verb and side, e.g. `open source`.
    pub fn action(&self) -> String {
        match self.side {
            Some(side) => format!("{} {}", self.operation, side.as_str()),
            None => self.operation.clone(),
        }
    }

    /// The errno, if it is one that file systems return.
    pub fn os_error(&self) -> Option<Errno> {
        errno_by_name(self.errno.as_deref()?)
    }

    /// The key of the error in counts of failures by cause.
    pub fn cause_key(&self) -> String {
        match &self.errno {
            Some(errno) => format!("{errno} ({})", self.action()),
            None => self.message.clone(),
        }
    }

    /// The failure without its path: equal for all entries with the same failure.
    pub fn describe_cause(&self) -> String {
        format!("cannot {}: {}", self.action(), self.errno.as_deref().unwrap_or("no errno"))
    }

    /// Whether the source could not be read.
    pub fn is_source_error(&self) -> bool {
        self.side == Some(Side::Source)
    }

    /// Whether it occurred where content is read, which only the worker of the task does: at the source, or at a relay.
    pub fn is_reader_error(&self) -> bool {
        matches!(self.side, Some(Side::Source | Side::Relay))
    }

    /// Whether the host had no file descriptor or no memory left. Such a failure is not caused by the entry.
    pub fn is_resource_exhaustion(&self) -> bool {
        self.os_error().is_some_and(errno::is_resource_exhaustion)
    }

    /// Whether the file system is full, or the quota exhausted.
    pub fn is_no_space(&self) -> bool {
        self.os_error().is_some_and(errno::is_no_space)
    }

    /// Whether a directory that is not empty has the name of the entry at the destination.
    pub fn is_blocked_by_directory(&self) -> bool {
        self.os_error() == Some(Errno::ISDIR) && self.side == Some(Side::Destination)
    }
}

/// Message and hint.
impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// Cuts `text` and escapes control characters.
pub fn sanitize_text(text: &str) -> String {
    let cut = cut_text(text);
    if cut.chars().any(char::is_control) { escape_bytes(cut.as_bytes()) } else { cut.to_owned() }
}

fn cut_text(text: &str) -> &str {
    text.char_indices().nth(MAX_TEXT_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// Serializes an error of a document that names the path itself.
pub(super) fn serialize_without_path<S: Serializer>(
    error: &Option<EntryError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut document = serde_json::to_value(error).map_err(serde::ser::Error::custom)?;
    if let Some(fields) = document.as_object_mut() {
        fields.remove("path");
    }
    document.serialize(serializer)
}

fn encode_text<C, W: minicbor::encode::Write>(
    text: &str,
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    e.str(cut_text(text)).map(|_| ())
}

fn decode_text<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
    d.str().map(sanitize_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_the_network_without_what_the_requester_fills_in() {
        let error = EntryError {
            errno: Some("EROFS".to_owned()),
            hint: Some("mount it writable".to_owned()),
            class: ErrorClass::Permanent,
            ..EntryError::new(b"a", Side::Destination, "create", "cannot create `a`")
        };
        let observed =
            EntryError { worker_id: Some("b".parse().unwrap()), attempt: 3, ..error.clone() };
        let bytes = minicbor::to_vec(&observed).unwrap();
        let received = minicbor::decode::<EntryError>(&bytes).unwrap();
        assert_eq!(received.received(&RelPath::new("a").unwrap()), error);
    }

    #[test]
    fn texts_of_a_peer_are_cut_and_escaped() {
        let error = EntryError {
            errno: Some("E\n".to_owned()),
            hint: Some("\x1b[2J".to_owned()),
            ..EntryError::new(b"", Side::Source, "a\x1b[2J", "x".repeat(5_000))
        };
        let bytes = minicbor::to_vec(&error).unwrap();
        let error = minicbor::decode::<EntryError>(&bytes).unwrap();
        let error = error.received(&RelPath::new("f").unwrap());
        assert_eq!((error.operation.as_str(), error.path.0.as_slice()), ("a\\#033[2J", &b"f"[..]));
        assert_eq!(
            (error.errno.as_deref(), error.hint.as_deref()),
            (Some("E\\#012"), Some("\\#033[2J"))
        );
        assert_eq!(error.message.len(), MAX_TEXT_CHARS);
    }

    #[test]
    fn an_error_of_a_task_has_no_side() {
        let mut error = EntryError::new(b"", None, "copy", "it panicked");
        assert_eq!((error.action(), error.cause_key()), ("copy".into(), "it panicked".into()));
        assert_eq!(error.describe_cause(), "cannot copy: no errno");
        (error.side, error.errno) = (Some(Side::Source), Some("EIO".to_owned()));
        assert_eq!(error.cause_key(), "EIO (copy source)");
        assert!(error.is_source_error() && error.is_reader_error());
        error.side = Some(Side::Relay);
        assert!(!error.is_source_error() && error.is_reader_error());
    }
}
