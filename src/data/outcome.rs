//! What became of entries that were offered or sent: the same words for a peer and for this host.

use super::protocol::{
    Answer, DigestOf, Fault, OfferReply, PackReply, RangeReply, Taken, Unstamped, read_notes,
};
use super::send::{Fed, FedRange};
use crate::fs::FsError;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::options::{EntryAction, EntryWarnings};
use crate::wire::sync::{ErrorClass, FileError};
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
    /// One per entry: of regular files that are there already, where the ticket asks for it.
    pub digests: Vec<Option<Digest>>,
    /// What the destination could not hold.
    pub notes: EntryWarnings,
    /// Directories without their metadata.
    pub unstamped: Vec<UnstampedDir>,
    /// The destination keeps something for the names of one file: a sweep is wanted in the end.
    pub to_sweep: bool,
    /// Directories on the way to the entries that are new at the destination, and no entries themselves.
    pub made: Vec<RelPath>,
}

/// What a destination made of one entry that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is there as it should be, or left alone. (In a dry run: it needs no content to be so.)
    Done(EntryAction),
    /// Its content is wanted.
    Needed {
        /// What it will be.
        action: EntryAction,
        /// There is something at the destination to compare blocks with.
        base: bool,
    },
    /// It is to be offered again with the digest of the source's content.
    Check,
}

/// What became of the files of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// One per file.
    pub files: Vec<Result<Written, FileError>>,
    /// Content that went to the destination, also of what failed, in bytes.
    pub sent: u64,
    /// Content that the destination shares with the source, in bytes.
    pub cloned: u64,
    /// What the destination could not hold.
    pub notes: EntryWarnings,
    /// Directories without their metadata.
    pub unstamped: Vec<UnstampedDir>,
    /// The destination keeps something for the names of one file: a sweep is wanted in the end.
    pub to_sweep: bool,
}

/// A file that is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The length of its content (with its holes).
    pub bytes: u64,
    /// Of its content, where that is hashed.
    pub digest: Option<Digest>,
}

/// How a range is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeMode {
    /// All of it.
    Whole,
    /// What the destination does not have yet.
    Delta,
}

/// What became of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeSent {
    /// It is in the part file.
    Written {
        /// Its value, where content is hashed.
        value: Option<Digest>,
        /// Content that went to the destination, in bytes. What is neither sent nor kept is a hole.
        sent: u64,
        /// Content that the destination had, in bytes.
        kept: u64,
    },
    /// The source is another version than the manifest says.
    Changed,
    /// It cannot be read, or not be written.
    Failed(FileError),
}

/// How a range of the source compares with the file at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Equal; its value.
    Equal(Digest),
    /// Not equal, or not there.
    Differs,
    /// The source is another version than the manifest says.
    Changed,
    /// One of the two cannot be read.
    Failed(FileError),
}

fn unstamped(dirs: &[ManifestDir], all: Vec<Unstamped>) -> Result<Vec<UnstampedDir>, String> {
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
            return Err(format!("{found} results for {expected} entries"));
        }
        let answers = manifest
            .entries
            .iter()
            .zip(reply.answers)
            .map(|(entry, answer)| match answer {
                Answer::Needed { .. } | Answer::Check if !is_file(entry) => {
                    Err("it requests content of an entry without content")
                }
                Answer::Check if entry.digest.is_some() => Err("it requests a digest twice"),
                Answer::Done(action) => Ok(Ok(Found::Done(action))),
                Answer::Needed { action, base } => Ok(Ok(Found::Needed { action, base })),
                Answer::Check => Ok(Ok(Found::Check)),
                Answer::Failed(fault) => Ok(Err(fault.into_error(&entry.path))),
            })
            .collect::<Result<_, _>>()?;
        let entries: Vec<&Entry> = manifest.entries.iter().collect();
        Ok(Offered {
            answers,
            digests: digests(&manifest.entries, reply.digests)?,
            notes: read_notes(reply.notes, &entries, &manifest.dirs)?,
            unstamped: unstamped(&manifest.dirs, reply.unstamped)?,
            to_sweep: reply.to_sweep,
            made: made(&manifest.dirs, reply.made)?,
        })
    }
}

/// The directories at these places, each once.
fn made(dirs: &[ManifestDir], places: Vec<u32>) -> Result<Vec<RelPath>, &'static str> {
    if !places.is_sorted_by(|a, b| a < b) {
        return Err("it names a directory that it made twice");
    }
    let path = |place: u32| dirs.get(place as usize).map(|dir| dir.path.clone());
    let paths = places.into_iter().map(|place| path(place).ok_or("it made what was not sent"));
    paths.collect()
}

fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::File { .. })
}

/// One per entry.
fn digests(entries: &[Entry], all: Vec<DigestOf>) -> Result<Vec<Option<Digest>>, &'static str> {
    let mut found = vec![None; entries.len()];
    for one in all {
        let entry = entries.get(one.entry as usize).ok_or("a digest belongs to no entry")?;
        if !is_file(entry) {
            return Err("a digest belongs to an entry without content");
        }
        found[one.entry as usize] = Some(one.digest);
    }
    Ok(found)
}

/// The error of a file or range that arrived as something else.
fn mismatch() -> Fault {
    Fault::transient(
        "check destination",
        "the bytes that arrived are not those that were read (digest mismatch); it is tried again",
    )
}

impl Packed {
    /// Joins what both ends know of a pack of `entries` in `dirs`; `fed` is one for each entry, and
    /// `sent` the bytes of content that went over the wire.
    ///
    /// # Errors
    /// A reply that does not fit.
    pub fn of_reply(
        dirs: &[ManifestDir],
        entries: &[Entry],
        reply: PackReply,
        (fed, sent): (Vec<Fed>, u64),
    ) -> Result<Self, String> {
        let mut taken = reply.files.into_iter();
        let mut files = Vec::with_capacity(fed.len());
        let mut begun = Vec::with_capacity(fed.len());
        for (entry, fed) in entries.iter().zip(fed) {
            let written = match fed {
                Fed::Unread(error) => {
                    files.push(Err(error));
                    continue;
                }
                Fed::TakenBack(error) => Err(error),
                Fed::Sent(written) => Ok(written),
            };
            begun.push(entry);
            let path = &entry.path;
            let taken = taken.next().ok_or("it reports fewer files than were sent")?;
            files.push(match (written, taken) {
                (Err(error), _) => Err(error),
                (Ok(written), Taken::Written) => Ok(written),
                (Ok(_), Taken::Mismatch) => Err(mismatch().into_error(path)),
                (Ok(_), Taken::Aborted) => return Err("it dropped a file that was complete".into()),
                (Ok(_), Taken::Failed(fault)) => Err(fault.into_error(path)),
            });
        }
        if taken.next().is_some() {
            return Err("it reports more files than were sent".to_owned());
        }
        Ok(Packed {
            files,
            sent,
            cloned: 0,
            notes: read_notes(reply.notes, &begun, dirs)?,
            unstamped: unstamped(dirs, reply.unstamped)?,
            to_sweep: reply.to_sweep,
        })
    }
}

impl From<FsError> for RangeSent {
    /// What a range becomes that could not be read or written.
    fn from(error: FsError) -> Self {
        match error.class() {
            ErrorClass::Changed => RangeSent::Changed,
            _ => RangeSent::Failed(error.to_file_error()),
        }
    }
}

impl From<FsError> for Compared {
    fn from(error: FsError) -> Self {
        match error.class() {
            ErrorClass::Changed => Compared::Changed,
            _ => Compared::Failed(error.to_file_error()),
        }
    }
}

impl RangeSent {
    /// Joins what both ends know of a range of `entry`.
    pub fn of_reply(entry: &Entry, reply: RangeReply, fed: FedRange) -> Self {
        match (fed, reply.range) {
            (FedRange::Changed, _) => RangeSent::Changed,
            (FedRange::Failed(error), _) => RangeSent::Failed(error),
            (FedRange::Sent { value, sent, kept }, Taken::Written) => {
                RangeSent::Written { value, sent, kept }
            }
            (FedRange::Sent { .. }, Taken::Failed(fault)) => {
                RangeSent::Failed(fault.into_error(&entry.path))
            }
            (FedRange::Sent { .. }, Taken::Mismatch | Taken::Aborted) => {
                RangeSent::Failed(mismatch().into_error(&entry.path))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::manifest::Meta;

    #[test]
    fn an_answer_that_does_not_fit_its_entry_is_no_answer() {
        let meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        let entry = |name: &str, kind| {
            Entry::new(RelPath::new(name).unwrap(), kind, meta, Default::default())
        };
        let digest = Digest([1; 32]);
        let read = Entry { digest: Some(digest), ..entry("read", EntryKind::File { size: 1 }) };
        let entries =
            vec![entry("dir", EntryKind::Dir), entry("file", EntryKind::File { size: 1 }), read];
        let manifest = Manifest { dirs: vec![], entries };
        let skip = Answer::Done(EntryAction::Skip);
        let reply = |answers: [&Answer; 3], digests: &[u32]| {
            let digests = digests.iter().map(|entry| DigestOf { entry: *entry, digest });
            let answers = answers.map(Answer::clone).into();
            let digests = digests.collect();
            Offered::of_reply(&manifest, OfferReply { answers, digests, ..OfferReply::default() })
        };
        let needed = Answer::Needed { action: EntryAction::Update, base: false };
        let good = reply([&skip, &Answer::Check, &needed], &[1]).unwrap();
        assert_eq!(good.digests, [None, Some(digest), None]);
        assert!(reply([&Answer::Check, &skip, &skip], &[]).is_err());
        assert!(reply([&needed, &skip, &skip], &[]).is_err());
        // It was sent with the offer.
        assert!(reply([&skip, &skip, &Answer::Check], &[]).is_err());
        assert!(reply([&skip, &skip, &skip], &[0]).is_err());
        assert!(reply([&skip, &skip, &skip], &[3]).is_err());
        let made = |made: &[u32]| {
            let dirs = ["", "a"]
                .map(|path| ManifestDir { path: RelPath::new(path).unwrap_or_default(), meta });
            let manifest = Manifest { dirs: dirs.to_vec(), entries: vec![] };
            Offered::of_reply(
                &manifest,
                OfferReply { made: made.to_vec(), ..OfferReply::default() },
            )
        };
        assert_eq!(made(&[1]).unwrap().made, [RelPath::new("a").unwrap()]);
        assert!([&[2][..], &[1, 1], &[1, 0]].iter().all(|bad| made(bad).is_err()));
        let few = OfferReply { answers: vec![skip], ..OfferReply::default() };
        assert!(Offered::of_reply(&manifest, few).is_err());
    }
}
