//! What became of entries that were offered or sent: the same words for a peer and for this host.

use super::protocol::{Answer, Fault, OfferReply, PackReply, RangeReply, Taken, Unstamped};
use super::send::{Fed, FedRange};
use crate::wire::manifest::{DirRef, Entry, Kind, Manifest};
use crate::wire::sync::FileError;
use crate::wire::{Digest, RelPath, WorkerId};

/// Why a request to a destination brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection; nothing was written.
    #[error("worker {worker} cannot be reached: {}", list(.tried))]
    Unreachable {
        /// Whom we tried.
        worker: WorkerId,
        /// Every endpoint with what went wrong there.
        tried: Vec<(String, String)>,
    },
    /// It does not let us; nothing was written.
    #[error("worker {worker} refused ({status} {code}): {detail}")]
    Refused {
        /// Who.
        worker: WorkerId,
        /// The HTTP status.
        status: u16,
        /// A word for programs.
        code: String,
        /// A sentence.
        detail: String,
    },
    /// The connection failed on the way, or what came back made no sense.
    #[error("the connection to worker {worker} failed: {message}")]
    Broken {
        /// To whom.
        worker: WorkerId,
        /// How.
        message: String,
    },
    /// We failed ourselves.
    #[error("{0}")]
    Internal(String),
}

fn list(tried: &[(String, String)]) -> String {
    if tried.is_empty() {
        return "it names no data-plane endpoint".to_owned();
    }
    let each: Vec<String> = tried.iter().map(|(to, why)| format!("{to}: {why}")).collect();
    each.join("; ")
}

/// A directory that did not get its metadata back.
pub type UnstampedDir = (RelPath, FileError);

/// What a destination made of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// One per entry.
    pub answers: Vec<Result<Found, FileError>>,
    /// Directories without their metadata.
    pub unstamped: Vec<UnstampedDir>,
}

/// What a destination made of one entry that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was there, with its metadata.
    Unchanged,
    /// It needed no content and is there now.
    Made,
    /// Its content is wanted.
    Needed,
}

/// What became of the files of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// One per file: the bytes of content that are at their place now.
    pub files: Vec<Result<u64, FileError>>,
    /// Directories without their metadata.
    pub unstamped: Vec<UnstampedDir>,
}

/// What became of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeSent {
    /// It is in the part file; its chaining value.
    Written(Digest),
    /// The source is another version than the manifest says.
    Changed,
    /// It cannot be read, or not be written.
    Failed(FileError),
}

fn unstamped(dirs: &[DirRef], all: Vec<Unstamped>) -> Result<Vec<UnstampedDir>, String> {
    all.into_iter()
        .map(|one| {
            let dir = dirs.get(one.dir as usize).ok_or("it names a directory that was not sent")?;
            Ok((dir.path.clone(), one.fault.into_error(&dir.path)))
        })
        .collect()
}

impl Offered {
    /// Reads a reply to the offer of `manifest`.
    ///
    /// # Errors
    /// A reply that does not fit.
    pub fn of_reply(manifest: &Manifest, reply: OfferReply) -> Result<Self, String> {
        let (expected, found) = (manifest.entries.len(), reply.answers.len());
        if expected != found {
            return Err(format!("{found} answers to {expected} entries"));
        }
        let answers = manifest
            .entries
            .iter()
            .zip(reply.answers)
            .map(|(entry, answer)| match answer {
                Answer::Unchanged => Ok(Ok(Found::Unchanged)),
                Answer::Made => Ok(Ok(Found::Made)),
                Answer::Needed if !matches!(entry.kind, Kind::File { .. }) => {
                    Err("content is asked of what has none")
                }
                Answer::Needed => Ok(Ok(Found::Needed)),
                Answer::Failed(fault) => Ok(Err(fault.into_error(&entry.path))),
            })
            .collect::<Result<_, _>>()?;
        Ok(Offered { answers, unstamped: unstamped(&manifest.dirs, reply.unstamped)? })
    }
}

/// The error of a file or range that arrived as something else.
fn mismatch() -> Fault {
    Fault::transient(
        "check destination",
        "the bytes that arrived are not those that were read (digest mismatch); it is tried again",
    )
}

impl Packed {
    /// Joins what both ends know of a pack of `entries` in `dirs`; `fed` is one for each entry.
    ///
    /// # Errors
    /// A reply that does not fit.
    pub fn of_reply(
        dirs: &[DirRef],
        entries: &[Entry],
        reply: PackReply,
        fed: Vec<Fed>,
    ) -> Result<Self, String> {
        let mut taken = reply.files.into_iter();
        let mut files = Vec::with_capacity(fed.len());
        for (Entry { path, .. }, fed) in entries.iter().zip(fed) {
            let bytes = match fed {
                Fed::Unread(error) => {
                    files.push(Err(error));
                    continue;
                }
                Fed::TakenBack(error) => Err(error),
                Fed::Sent(bytes) => Ok(bytes),
            };
            let taken = taken.next().ok_or("it speaks of fewer files than were sent")?;
            files.push(match (bytes, taken) {
                (Err(error), _) => Err(error),
                (Ok(bytes), Taken::Written) => Ok(bytes),
                (Ok(_), Taken::Mismatch) => Err(mismatch().into_error(path)),
                (Ok(_), Taken::Aborted) => return Err("it gave up a file that was whole".into()),
                (Ok(_), Taken::Failed(fault)) => Err(fault.into_error(path)),
            });
        }
        if taken.next().is_some() {
            return Err("it speaks of more files than were sent".to_owned());
        }
        Ok(Packed { files, unstamped: unstamped(dirs, reply.unstamped)? })
    }
}

impl RangeSent {
    /// Joins what both ends know of a range of `entry`.
    pub fn of_reply(entry: &Entry, reply: RangeReply, fed: FedRange) -> Self {
        match (fed, reply.range) {
            (FedRange::Changed, _) => RangeSent::Changed,
            (FedRange::Failed(error), _) => RangeSent::Failed(error),
            (FedRange::Sent(digest), Taken::Written) => RangeSent::Written(digest),
            (FedRange::Sent(_), Taken::Failed(fault)) => {
                RangeSent::Failed(fault.into_error(&entry.path))
            }
            (FedRange::Sent(_), Taken::Mismatch | Taken::Aborted) => {
                RangeSent::Failed(mismatch().into_error(&entry.path))
            }
        }
    }
}
