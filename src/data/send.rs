//! The sending end: files of a source into frames. Everything here blocks and runs in a thread of its
//! own: it reads, hashes, and sends full buffers.

use super::asking::{Gone, Outlet};
use super::asks::BlockValue;
use super::frame::{self, HEAD};
use super::outcome::Written;
use super::pool::Buffer;
use super::protocol::RangeHead;
use super::read::{KEEP_AT, Read, Sink, Span, changed, open_same, read_delta, read_whole};
use crate::fs::{FsError, ReuseSource, SourceFile, Tree};
use crate::util::rate::Limiters;
use crate::wire::Digest;
use crate::wire::content::{ContentHasher, HashMode};
use crate::wire::manifest::{Entry, ManifestDir, merge_blocks};
use crate::wire::sync::{ErrorClass, FileError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A buffer with this much in it is sent on after a file, so that the receiver has something to do.
const SEND_AT: usize = 256 << 10;

/// What the sending side knows of one file of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fed {
    /// Sent whole.
    Sent(Written),
    /// Begun and taken back.
    TakenBack(FileError),
    /// Not begun.
    Unread(FileError),
}

/// What the sending side knows of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FedRange {
    /// Sent.
    Sent {
        /// Its chaining value, where content is hashed.
        value: Option<Digest>,
        /// Content that was sent, in bytes.
        sent: u64,
        /// Content that the receiver was told to keep, in bytes.
        kept: u64,
    },
    /// The source is another version than the manifest says.
    Changed,
    /// It cannot be read.
    Failed(FileError),
}

/// Frames on their way to a peer, gathered in a buffer.
pub struct Feed<'a> {
    to: &'a mut dyn Outlet,
    buffer: Buffer,
    /// Room for a block that is compared.
    scratch: Option<Buffer>,
    /// Counts our progress, beside what the peer takes.
    moved: Arc<AtomicU64>,
    pace: Limiters,
    sent: u64,
    kept: u64,
}

impl<'a> Feed<'a> {
    /// A feed that sends from the first of these buffers, and compares in the second
    /// ([`Pool::to_send`](super::pool::Pool::to_send)). Reading what few bytes stand for counts as `moved`.
    pub fn new(
        to: &'a mut dyn Outlet,
        (buffer, scratch): (Buffer, Option<Buffer>),
        moved: Arc<AtomicU64>,
    ) -> Self {
        Feed { to, buffer, scratch, moved, pace: Limiters::default(), sent: 0, kept: 0 }
    }

    /// The same, no faster than `pace` lets it.
    pub fn at(self, pace: Limiters) -> Self {
        Feed { pace, ..self }
    }

    /// Content that was sent, in bytes.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends what has gathered, as fast as the limits let it.
    fn flush(&mut self) -> Result<(), Gone> {
        let mut rest = self.buffer.as_ref();
        while !rest.is_empty() {
            let most = self.pace.max_chunk_bytes().and_then(|most| usize::try_from(most).ok());
            let (piece, later) = rest.split_at(most.unwrap_or(usize::MAX).min(rest.len()));
            self.pace.acquire(piece.len() as u64, || self.to.go_on())?;
            self.to.send(piece)?;
            rest = later;
        }
        self.buffer.clear();
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !self.buffer.put(bytes) {
            self.flush()?;
            // A frame may be longer than the buffer.
            let (now, later) = bytes.split_at(self.buffer.room().min(bytes.len()));
            self.buffer.put(now);
            bytes = later;
        }
        Ok(())
    }

    /// Ends content with its digest, or without.
    fn end_content(&mut self, digest: Option<Digest>) -> Result<(), Gone> {
        match digest {
            Some(digest) => self.put(&frame::digest(&digest)),
            None => self.put(&frame::done()),
        }
    }
}

impl Sink for Feed<'_> {
    type Stop = Gone;

    /// Content is read straight into the buffer that is sent.
    fn room(&mut self, want: usize, aligned: bool) -> Result<&mut [u8], Gone> {
        if self.buffer.room() < HEAD + want || (aligned && !self.buffer.is_empty()) {
            self.flush()?;
        }
        Ok(&mut self.buffer.spare()[HEAD..HEAD + want])
    }

    fn content(&mut self, n: usize) -> Result<(), Gone> {
        self.buffer.spare()[..HEAD].copy_from_slice(&frame::content_head(n));
        self.buffer.advance(HEAD + n);
        self.sent += n as u64;
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<(), Gone> {
        self.moved.fetch_add(length, Ordering::Relaxed);
        self.put(&frame::hole(length))
    }

    fn keep(&mut self, from: ReuseSource, length: u64, _: &[Digest]) -> Result<(), Gone> {
        self.moved.fetch_add(length, Ordering::Relaxed);
        self.kept += length;
        self.put(&frame::keep(from, length))?;
        // So that the receiver has something to do, and hears of us.
        if length >= KEEP_AT { self.flush() } else { Ok(()) }
    }

    fn go_on(&self) -> Result<(), Gone> {
        self.to.go_on()
    }
}

/// Sends `files` of `source` as what each of them is now, below the directories `dirs`; their content
/// is followed by its digest where it is to be hashed.
///
/// # Errors
/// [`Gone`]; what was sent counts for nothing then.
pub fn feed_pack(
    source: &Tree,
    dirs: &[ManifestDir],
    files: &[Entry],
    hashing: Option<HashMode>,
    feed: &mut Feed<'_>,
) -> Result<Vec<Fed>, Gone> {
    feed.put(&frame::dirs(dirs.to_vec()))?;
    let mut fed = Vec::with_capacity(files.len());
    for entry in files {
        fed.push(feed_file(source, entry, hashing, feed)?);
        if feed.buffer.len() >= SEND_AT {
            feed.flush()?;
        }
    }
    let sent = fed.iter().filter(|f| !matches!(f, Fed::Unread(_))).count();
    feed.put(&frame::end(sent as u32))?;
    feed.flush()?;
    Ok(fed)
}

fn feed_file(
    source: &Tree,
    entry: &Entry,
    hashing: Option<HashMode>,
    feed: &mut Feed<'_>,
) -> Result<Fed, Gone> {
    let file = match source.open_source(entry) {
        Ok(file) => file,
        Err(error) => return Ok(Fed::Unread(error.to_file_error())),
    };
    let now = file.entry();
    let bytes = now.size();
    feed.put(&frame::file(now))?;
    let mut hasher = hashing.map(ContentHasher::new);
    let read = read_whole(&file, Span { offset: 0, length: bytes }, &mut hasher, feed)?;
    let error = match read {
        Read::Failed(error) => error,
        // Shorter than it was a moment ago is one way to change.
        Read::Short => changed(entry),
        Read::All => match file.verify_unchanged() {
            Ok(()) => {
                let digest = hasher.map(ContentHasher::digest);
                feed.end_content(digest)?;
                let digest = digest.filter(|_| hashing == Some(HashMode::Full));
                return Ok(Fed::Sent(Written { bytes, digest }));
            }
            Err(error) => error,
        },
    };
    feed.put(&frame::abort())?;
    Ok(Fed::TakenBack(error.to_file_error()))
}

/// Sends the range of `head`, whose file is `entry`; with `there` only the blocks that differ from
/// those (the feed must have room to compare). The caller has checked that the range fits.
///
/// # Errors
/// [`Gone`].
pub fn feed_range(
    source: &Tree,
    head: &RangeHead,
    entry: &Entry,
    there: Option<&[BlockValue]>,
    hashing: Option<HashMode>,
    feed: &mut Feed<'_>,
) -> Result<FedRange, Gone> {
    let span = Span { offset: head.offset, length: head.length };
    let opened = open_same(source, entry);
    let dense = there.is_none() && opened.as_ref().is_ok_and(SourceFile::is_dense);
    feed.put(&frame::range(&RangeHead { dense: dense.then_some(true), ..head.clone() }))?;
    let (fed, end) = match opened {
        Err(error) => (error.into(), None),
        Ok(file) => {
            let mut scratch = feed.scratch.take();
            let compare = there.zip(scratch.as_mut().map(Buffer::pages));
            match read_range(&file, span, compare, hashing, feed)? {
                (Read::Failed(error), _) => (error.into(), None),
                (Read::All, value) if file.verify_unchanged().is_ok() => {
                    let (sent, kept) = (feed.sent, feed.kept);
                    (FedRange::Sent { value, sent, kept }, Some(value))
                }
                (Read::All | Read::Short, _) => (FedRange::Changed, None),
            }
        }
    };
    match end {
        Some(value) => feed.end_content(value)?,
        None => feed.put(&frame::abort())?,
    }
    feed.flush()?;
    Ok(fed)
}

/// Reads `span` of `file` into `sink`, where there is something to `compare` with (and a block's room)
/// only what differs; with its value where it is to be hashed. What is compared is compared by values
/// without zeros where it is not.
///
/// # Errors
/// What the sink says.
pub fn read_range<S: Sink>(
    file: &SourceFile,
    span: Span,
    compare: Option<(&[BlockValue], &mut [u8])>,
    hashing: Option<HashMode>,
    sink: &mut S,
) -> Result<(Read, Option<Digest>), S::Stop> {
    if let Some((there, scratch)) = compare {
        let there = (there, hashing.unwrap_or(HashMode::SkipZeros));
        let (read, values) = read_delta(file, span, there, scratch, sink)?;
        return Ok((read, merge_blocks(&values).filter(|_| hashing.is_some())));
    }
    let mut hasher = hashing.map(|hashing| ContentHasher::at_offset(hashing, span.offset));
    let read = read_whole(file, span, &mut hasher, sink)?;
    // What ended early may be nothing at all, and that has no value.
    let value =
        hasher.filter(|_| matches!(read, Read::All)).and_then(ContentHasher::chaining_value);
    Ok((read, value))
}

impl From<FsError> for FedRange {
    fn from(error: FsError) -> Self {
        match error.class() {
            ErrorClass::Changed => FedRange::Changed,
            _ => FedRange::Failed(error.to_file_error()),
        }
    }
}
