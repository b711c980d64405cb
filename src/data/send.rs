//! The sending end: files of a source into frames. Everything here blocks and runs in a thread of its
//! own: it reads, hashes, and hands full buffers to the connection.

use super::body::Withdrawn;
use super::frame::{self, HEAD};
use super::pool::{Buffer, Pool};
use super::protocol::{MAX_CONTENT, RangeHead};
use crate::fs::{Cause, FsError, Side, SourceFile, Tree};
use crate::wire::Digest;
use crate::wire::manifest::{DirRef, Entry, Manifest};
use crate::wire::sync::{ErrorClass, FileError};
use blake3::hazmat::HasherExt as _;
use bytes::Bytes;
use tokio::sync::mpsc;

/// A buffer with this much in it is sent on after a file, so that the receiver has something to do.
const SEND_AT: usize = 256 << 10;

/// The connection is gone (or the work was cancelled): there is nobody to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// What the sending side knows of one file of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fed {
    /// Sent with its digest: so many bytes of content.
    Sent(u64),
    /// Begun and taken back.
    TakenBack(FileError),
    /// Not begun.
    Unread(FileError),
}

/// What the sending side knows of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FedRange {
    /// Sent with this chaining value.
    Sent(Digest),
    /// The source is another version than the manifest says.
    Changed,
    /// It cannot be read.
    Failed(FileError),
}

/// Full buffers on their way to a connection.
pub struct Feed {
    to: mpsc::Sender<Result<Bytes, Withdrawn>>,
    pool: Pool,
    buffer: Buffer,
}

/// How reading content ended.
enum Read {
    All,
    /// The file ended early.
    Short,
    Failed(FsError),
}

impl Feed {
    /// A feed with buffers of `pool`.
    pub fn new(to: mpsc::Sender<Result<Bytes, Withdrawn>>, pool: Pool) -> Self {
        let buffer = pool.take();
        Feed { to, pool, buffer }
    }

    /// Sends what has gathered.
    fn flush(&mut self) -> Result<(), Gone> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, self.pool.take());
        self.to.blocking_send(Ok(full.freeze())).map_err(|_| Gone)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        if self.buffer.put(bytes) {
            return Ok(());
        }
        self.flush()?;
        if self.buffer.put(bytes) {
            return Ok(());
        }
        self.to.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(|_| Gone)
    }

    /// Reads `[offset, offset + length)` of `file` straight into buffers, hashing on the way.
    fn content(
        &mut self,
        file: &SourceFile,
        offset: u64,
        length: u64,
        hasher: &mut blake3::Hasher,
    ) -> Result<Read, Gone> {
        let mut done = 0;
        while done < length {
            let want = (length - done).min(MAX_CONTENT as u64) as usize;
            if self.buffer.room() < HEAD + want {
                self.flush()?;
            }
            let spare = self.buffer.spare();
            let n = match file.read_at(&mut spare[HEAD..HEAD + want], offset + done) {
                Ok(0) => return Ok(Read::Short),
                Ok(n) => n,
                Err(error) => return Ok(Read::Failed(error)),
            };
            hasher.update(&spare[HEAD..HEAD + n]);
            spare[..HEAD].copy_from_slice(&frame::content_head(n));
            self.buffer.advance(HEAD + n);
            done += n as u64;
        }
        Ok(Read::All)
    }

    /// Breaks the connection off, so that the receiver does not wait for the rest.
    pub fn withdraw(self) {
        let _ = self.to.blocking_send(Err(Withdrawn));
    }
}

/// Sends `files` of `source` as what each of them is now, below the directories `dirs`.
///
/// # Errors
/// [`Gone`]; what was sent counts for nothing then.
pub fn feed_pack(
    source: &Tree,
    dirs: &[DirRef],
    files: &[Entry],
    feed: &mut Feed,
) -> Result<Vec<Fed>, Gone> {
    feed.put(&frame::dirs(dirs.to_vec()))?;
    let mut fed = Vec::with_capacity(files.len());
    for entry in files {
        fed.push(feed_file(source, entry, feed)?);
        if feed.buffer.len() >= SEND_AT {
            feed.flush()?;
        }
    }
    let sent = fed.iter().filter(|f| !matches!(f, Fed::Unread(_))).count();
    feed.put(&frame::end(sent as u32))?;
    feed.flush()?;
    Ok(fed)
}

fn feed_file(source: &Tree, entry: &Entry, feed: &mut Feed) -> Result<Fed, Gone> {
    let file = match source.open_source(entry) {
        Ok(file) => file,
        Err(error) => return Ok(Fed::Unread(error.to_file_error())),
    };
    let now = file.entry();
    let size = now.size();
    feed.put(&frame::file(now))?;
    let mut hasher = blake3::Hasher::new();
    let read = feed.content(&file, 0, size, &mut hasher)?;
    let error = match read {
        Read::Failed(error) => error,
        // Shorter than it was a moment ago is one way to change.
        Read::All | Read::Short => match file.unchanged_since_open() {
            Ok(()) if matches!(read, Read::All) => {
                feed.put(&frame::digest(&hasher.finalize().into()))?;
                return Ok(Fed::Sent(size));
            }
            Ok(()) => changed(entry),
            Err(error) => error,
        },
    };
    feed.put(&frame::abort())?;
    Ok(Fed::TakenBack(error.to_file_error()))
}

/// Sends one range of the only file of `manifest`. The caller has checked that the range fits.
///
/// # Errors
/// [`Gone`].
pub fn feed_range(
    source: &Tree,
    manifest: &Manifest,
    entry: &Entry,
    (offset, length): (u64, u64),
    feed: &mut Feed,
) -> Result<FedRange, Gone> {
    let head = RangeHead { manifest: manifest.clone(), offset, length };
    feed.put(&frame::range(&head))?;
    let (fed, end) = match open_same(source, entry) {
        Err(error) => (error.into(), None),
        Ok(file) => {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset);
            let read = feed.content(&file, offset, length, &mut hasher)?;
            match read {
                Read::Failed(error) => (error.into(), None),
                Read::All if file.unchanged_since_open().is_ok() => {
                    let digest = Digest(hasher.finalize_non_root());
                    (FedRange::Sent(digest), Some(digest))
                }
                Read::All | Read::Short => (FedRange::Changed, None),
            }
        }
    };
    match end {
        Some(digest) => feed.put(&frame::digest(&digest))?,
        None => feed.put(&frame::abort())?,
    }
    feed.flush()?;
    Ok(fed)
}

/// Opens the file, provided that it is the version that `entry` says.
///
/// # Errors
/// It can't be opened, or is another version ([`Cause::Changed`]).
pub fn open_same(source: &Tree, entry: &Entry) -> Result<SourceFile, FsError> {
    let file = source.open_source(entry)?;
    if file.is_version(entry) { Ok(file) } else { Err(changed(entry)) }
}

/// The error of a file that ended early or is another one now.
pub fn changed(entry: &Entry) -> FsError {
    FsError::new(Side::Source, "read", entry.path.as_bytes(), Cause::Changed)
}

impl From<FsError> for FedRange {
    fn from(error: FsError) -> Self {
        match error.class() {
            ErrorClass::Changed => FedRange::Changed,
            _ => FedRange::Failed(error.to_file_error()),
        }
    }
}
