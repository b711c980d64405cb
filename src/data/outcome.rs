//! The outcomes of entries that were offered or sent: the same types for a peer and for this host.

use super::protocol::{
    EntryDigest, IndexedDirError, OfferReply, PackReply, RangeReply, WriteOutcome, resolve_warnings,
};
use crate::fs::{FsError, OfferDecision};
use crate::wire::entry_report::EntryWarnings;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::outcome::{EntryError, Side};
use crate::wire::problem::ProblemCode;
use crate::wire::worker::Endpoint;
use crate::wire::{Digest, RelPath, WorkerId};

/// Why a request to a destination brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection; nothing was written.
    #[error("worker {worker} cannot be reached: {}", format_attempts(.attempts))]
    Unreachable {
        /// The worker that was tried.
        worker: WorkerId,
        /// Every endpoint with what went wrong there.
        attempts: Vec<(String, String)>,
    },
    /// The worker refused it; nothing was written.
    #[error("worker {worker} refused ({status} {code}): {detail}")]
    Refused {
        /// The worker that refused.
        worker: WorkerId,
        /// The HTTP status.
        status: u16,
        /// A word for programs.
        code: String,
        /// A message.
        detail: String,
    },
    /// The connection failed on the way, or what came back made no sense.
    #[error("the connection to worker {worker} failed: {message}")]
    ConnectionFailed {
        /// The worker at the other end.
        worker: WorkerId,
        /// How.
        message: String,
    },
    /// This host failed.
    #[error("{0}")]
    Internal(String),
}

impl SendError {
    /// Whether no process of the worker takes requests: none runs, or one that has just started.
    pub fn is_worker_down(&self) -> bool {
        match self {
            SendError::Unreachable { .. } => true,
            SendError::Refused { code, .. } => code == ProblemCode::NotReady.as_str(),
            SendError::ConnectionFailed { .. } | SendError::Internal(_) => false,
        }
    }

    /// Whether the configuration of the worker forbids to act as the user of the sync: it would refuse each request.
    pub fn is_run_as_refusal(&self) -> bool {
        matches!(self, SendError::Refused { code, .. } if code == ProblemCode::RunAsRefused.as_str())
    }

    /// The text for the result of a task, which submitters of syncs can read: one for everything that can happen at
    /// `endpoints` unless an agent refuses the request there. A worker names its endpoints itself, so other texts
    /// would tell open ports from closed ones, and could have bytes of any program that listens there. The log of the
    /// agent `sender` has the cause.
    pub fn describe_to_submitter(&self, sender: &WorkerId, endpoints: &[Endpoint]) -> String {
        let worker = match self {
            SendError::Internal(_) => return self.to_string(),
            SendError::Refused { code, .. } if is_refusal_of_agent(code) => {
                return self.to_string();
            }
            SendError::Unreachable { worker, .. } if endpoints.is_empty() => {
                return format!("worker {worker} cannot be reached: {NO_ENDPOINT}");
            }
            SendError::Unreachable { worker, .. }
            | SendError::Refused { worker, .. }
            | SendError::ConnectionFailed { worker, .. } => worker,
        };
        let addresses: Vec<String> = endpoints.iter().map(Endpoint::authority).collect();
        let addresses = addresses.join(", ");
        format!(
            "cannot exchange data with worker {worker} at {addresses}; see the log of agent {sender}"
        )
    }
}

/// Whether only the data port of an agent refuses requests with this code.
fn is_refusal_of_agent(code: &str) -> bool {
    use ProblemCode::{
        DeletionNotAllowed, DigestRequired, DryRun, InvalidFrame, NoTicket, NotReady, RunAsRefused,
        TicketRefused, WorkerMismatch,
    };
    [
        DeletionNotAllowed,
        DigestRequired,
        DryRun,
        InvalidFrame,
        NoTicket,
        NotReady,
        RunAsRefused,
        TicketRefused,
        WorkerMismatch,
    ]
    .iter()
    .any(|known| known.as_str() == code)
}

const NO_ENDPOINT: &str = "it names no data-plane endpoint";

fn format_attempts(attempted: &[(String, String)]) -> String {
    if attempted.is_empty() {
        return NO_ENDPOINT.to_owned();
    }
    let each: Vec<String> =
        attempted.iter().map(|(to, reason)| format!("{to}: {reason}")).collect();
    each.join("; ")
}

/// What a destination made of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferOutcome {
    /// One per entry.
    pub results: Vec<Result<OfferDecision, EntryError>>,
    /// One per entry: of existing regular files, where the ticket requires it.
    pub digests: Vec<Option<Digest>>,
    /// What the destination could not hold.
    pub warnings: EntryWarnings,
    /// Directories without their metadata.
    pub dir_errors: Vec<EntryError>,
    /// The destination keeps auxiliary files for hard links: a clean-up is needed in the end.
    pub needs_clean_up: bool,
    /// Directories on the way to the entries that are new at the destination, and no entries themselves.
    pub created_dirs: Vec<RelPath>,
}

/// The outcome of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackOutcome {
    /// One per file.
    pub files: Vec<Result<WrittenFile, EntryError>>,
    /// Content that went to the destination, also of what failed, in bytes.
    pub sent: u64,
    /// Content that the destination shares with the source, in bytes.
    pub cloned: u64,
    /// What the destination could not hold.
    pub warnings: EntryWarnings,
    /// Directories without their metadata.
    pub dir_errors: Vec<EntryError>,
    /// The destination keeps auxiliary files for hard links: a clean-up is needed in the end.
    pub needs_clean_up: bool,
}

/// A file that is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WrittenFile {
    /// The length of its content (with its holes).
    pub bytes: u64,
    /// Of all bytes of its content, where that is hashed.
    pub digest: Option<Digest>,
    /// The digest by which relays verify it ([`WriteRules::hash_mode`](crate::wire::options::WriteRules::hash_mode)),
    /// where that is requested. `None` for a file that changed since its entry was read: relays send entries as they are.
    pub relay_digest: Option<Digest>,
}

/// The sender's outcome of one file of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SentFile {
    /// Sent whole.
    Complete(WrittenFile),
    /// Begun and cancelled.
    Aborted(EntryError),
    /// Not begun.
    Unreadable(EntryError),
}

/// How a range is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeMode {
    /// All of it.
    Whole,
    /// What the destination does not have yet.
    Delta,
}

/// A range that is in the part file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenRange {
    /// Its chaining value, where content is hashed.
    pub value: Option<Digest>,
    /// Content that was sent, in bytes. What is neither sent nor kept is a hole.
    pub sent: u64,
    /// Content that the destination had, in bytes.
    pub kept: u64,
}

/// Why a range was not written or compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeError {
    /// The file failed at one of the two ends.
    Entry(Box<EntryError>),
    /// The request failed.
    Send(SendError),
}

impl From<EntryError> for RangeError {
    fn from(error: EntryError) -> Self {
        RangeError::Entry(Box::new(error))
    }
}

impl From<FsError> for RangeError {
    fn from(error: FsError) -> Self {
        EntryError::from(error).into()
    }
}

impl From<SendError> for RangeError {
    fn from(error: SendError) -> Self {
        RangeError::Send(error)
    }
}

fn dir_errors(dirs: &[ManifestDir], all: Vec<IndexedDirError>) -> Result<Vec<EntryError>, String> {
    all.into_iter()
        .map(|one| {
            let dir = dirs.get(one.dir as usize).ok_or("it names a directory that was not sent")?;
            Ok(one.error.received(&dir.path))
        })
        .collect()
}

impl OfferOutcome {
    /// Reads a reply to the offer of `manifest`.
    ///
    /// # Errors
    /// A reply that does not fit.
    pub fn from_reply(manifest: &Manifest, reply: OfferReply) -> Result<Self, String> {
        let (expected, found) = (manifest.entries.len(), reply.results.len());
        if expected != found {
            return Err(format!("{found} results for {expected} entries"));
        }
        let results =
            manifest.entries.iter().zip(reply.results).map(|(entry, result)| match result {
                Ok(OfferDecision::NeedsContent { .. } | OfferDecision::NeedsDigest)
                    if !is_file(entry) =>
                {
                    Err("it requests content of an entry without content")
                }
                Ok(OfferDecision::NeedsDigest) if entry.digest.is_some() => {
                    Err("it requests a digest twice")
                }
                result => Ok(result.map_err(|error| error.received(&entry.path))),
            });
        let results = results.collect::<Result<_, _>>()?;
        let entries: Vec<&Entry> = manifest.entries.iter().collect();
        Ok(OfferOutcome {
            results,
            digests: digests_by_entry(&manifest.entries, reply.digests)?,
            warnings: resolve_warnings(reply.warnings, &entries, &manifest.dirs)?,
            dir_errors: dir_errors(&manifest.dirs, reply.dir_errors)?,
            needs_clean_up: reply.needs_clean_up,
            created_dirs: created_dirs(&manifest.dirs, reply.created_dirs)?,
        })
    }
}

/// The directories at these places, each once.
fn created_dirs(dirs: &[ManifestDir], places: Vec<u32>) -> Result<Vec<RelPath>, &'static str> {
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
fn digests_by_entry(
    entries: &[Entry],
    all: Vec<EntryDigest>,
) -> Result<Vec<Option<Digest>>, &'static str> {
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
fn mismatch_error(path: &RelPath) -> EntryError {
    let message =
        "the bytes that arrived are not those that were read (digest mismatch); it is tried again";
    EntryError::new(path.as_bytes(), Side::Destination, "check", message)
}

impl PackOutcome {
    /// Merges what both ends report of a pack of `entries` in `dirs`; `fed` is one for each entry, and
    /// `sent` the bytes of content that went over the wire. `record_mismatch` is called for each file that arrived
    /// as another one.
    ///
    /// # Errors
    /// A reply that does not fit.
    pub fn from_reply(
        dirs: &[ManifestDir],
        entries: &[Entry],
        reply: PackReply,
        (fed, sent): (Vec<SentFile>, u64),
        record_mismatch: impl Fn(&Entry),
    ) -> Result<Self, String> {
        let mut outcome = reply.files.into_iter();
        let mut files = Vec::with_capacity(fed.len());
        let mut started = Vec::with_capacity(fed.len());
        for (entry, fed) in entries.iter().zip(fed) {
            let written = match fed {
                SentFile::Unreadable(error) => {
                    files.push(Err(error));
                    continue;
                }
                SentFile::Aborted(error) => Err(error),
                SentFile::Complete(written) => Ok(written),
            };
            started.push(entry);
            let path = &entry.path;
            let outcome = outcome.next().ok_or("it reports fewer files than were sent")?;
            files.push(match (written, outcome) {
                (Err(error), _) => Err(error),
                (Ok(written), WriteOutcome::Written) => Ok(written),
                (Ok(_), WriteOutcome::Mismatch) => {
                    record_mismatch(entry);
                    Err(mismatch_error(path))
                }
                (Ok(_), WriteOutcome::Aborted) => {
                    return Err("it dropped a file that was complete".into());
                }
                (Ok(_), WriteOutcome::Failed(error)) => Err(error.received(path)),
            });
        }
        if outcome.next().is_some() {
            return Err("it reports more files than were sent".to_owned());
        }
        Ok(PackOutcome {
            files,
            sent,
            cloned: 0,
            warnings: resolve_warnings(reply.warnings, &started, dirs)?,
            dir_errors: dir_errors(dirs, reply.dir_errors)?,
            needs_clean_up: reply.needs_clean_up,
        })
    }
}

impl WrittenRange {
    /// Joins the outcomes of both ends for a range of `entry`; `sent` is that of the sender.
    ///
    /// # Errors
    /// The file failed at one of the two ends.
    pub fn from_reply(
        entry: &Entry,
        reply: RangeReply,
        sent: Result<WrittenRange, EntryError>,
    ) -> Result<Self, EntryError> {
        let written = sent?;
        match reply.outcome {
            WriteOutcome::Written => Ok(written),
            WriteOutcome::Failed(error) => Err(error.received(&entry.path)),
            WriteOutcome::Mismatch | WriteOutcome::Aborted => Err(mismatch_error(&entry.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::entry_report::EntryAction;
    use crate::wire::manifest::Meta;

    #[test]
    fn a_reply_that_does_not_match_its_entries_is_refused() {
        let meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
        let entry = |name: &str, kind| {
            Entry::new(RelPath::new(name).unwrap(), kind, meta, Default::default())
        };
        let digest = Digest([1; 32]);
        let read = Entry { digest: Some(digest), ..entry("read", EntryKind::File { size: 1 }) };
        let entries =
            vec![entry("dir", EntryKind::Dir), entry("file", EntryKind::File { size: 1 }), read];
        let manifest = Manifest { dirs: vec![], entries };
        let skip = Ok(OfferDecision::Done(EntryAction::Skip));
        let check = Ok(OfferDecision::NeedsDigest);
        let reply = |results: [&Result<OfferDecision, EntryError>; 3], digests: &[u32]| {
            let digests = digests.iter().map(|entry| EntryDigest { entry: *entry, digest });
            let results = results.map(Clone::clone).into();
            let digests = digests.collect();
            OfferOutcome::from_reply(
                &manifest,
                OfferReply { results, digests, ..OfferReply::default() },
            )
        };
        let needed =
            Ok(OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: false });
        let good = reply([&skip, &check, &needed], &[1]).unwrap();
        assert_eq!(good.digests, [None, Some(digest), None]);
        assert!(reply([&check, &skip, &skip], &[]).is_err());
        assert!(reply([&needed, &skip, &skip], &[]).is_err());
        // It was sent with the offer.
        assert!(reply([&skip, &skip, &check], &[]).is_err());
        assert!(reply([&skip, &skip, &skip], &[0]).is_err());
        assert!(reply([&skip, &skip, &skip], &[3]).is_err());
        let made = |made: &[u32]| {
            let dirs = ["", "a"]
                .map(|path| ManifestDir { path: RelPath::new(path).unwrap_or_default(), meta });
            let manifest = Manifest { dirs: dirs.to_vec(), entries: vec![] };
            OfferOutcome::from_reply(
                &manifest,
                OfferReply { created_dirs: made.to_vec(), ..OfferReply::default() },
            )
        };
        assert_eq!(made(&[1]).unwrap().created_dirs, [RelPath::new("a").unwrap()]);
        assert!([&[2][..], &[1, 1], &[1, 0]].iter().all(|bad| made(bad).is_err()));
        let few = OfferReply { results: vec![skip], ..OfferReply::default() };
        assert!(OfferOutcome::from_reply(&manifest, few).is_err());
    }
}
