//! The sending end: files of a source into frames. Everything here blocks and runs in a thread of its
//! own: it reads, hashes, and sends full buffers.

use super::buffer_pool::Buffer;
use super::content_client::{Disconnected, FrameSink};

use super::frame;
use super::outcome::{SentFile, WrittenFile, WrittenRange};
use super::protocol::{FRAME_HEADER_BYTES, RangeHead};
use super::source_reader::{MAX_KEEP_RUN_BYTES, Sink, Span, open_version, read_delta, read_whole};
use crate::fs::{BlockHashes, FsError, ReuseSource, SourceFile, Tree};
use crate::util::rate::Limiters;
use crate::wire::Digest;
use crate::wire::content::{ContentHasher, HashMode, merge_blocks};
use crate::wire::manifest::{Entry, ManifestDir};
use crate::wire::outcome::EntryError;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How content is hashed while it is sent.
#[derive(Debug, Clone, Copy)]
pub struct SendHashing {
    /// `None`: it is not.
    pub mode: Option<HashMode>,
    /// The digests are returned for relays.
    pub for_relays: bool,
}

/// A buffer with this much in it is sent on after a file, so that the receiver has something to do.
const FLUSH_BYTES: usize = 256 << 10;

/// Frames on their way to a peer, gathered in a buffer.
pub struct FrameWriter<'a> {
    sink: &'a mut dyn FrameSink,
    buffer: Buffer,
    /// Room for a block that is compared.
    scratch: Option<Buffer>,
    /// Counts the progress here, beside what the peer accepts.
    progress: Arc<AtomicU64>,
    limiters: Limiters,
    /// The content ends with a digest. Only such content may be clear.
    is_hashed: bool,
    /// Where clear content is in the buffer.
    clear: Vec<Range<usize>>,
    /// Content that was sent, in bytes.
    pub sent: u64,
    kept: u64,
}

impl<'a> FrameWriter<'a> {
    /// A writer that sends from the first of these buffers, and compares in the second
    /// ([`BufferPool::acquire_for_send`](super::buffer_pool::BufferPool::acquire_for_send)). Content that is read and not sent counts in `progress`.
    pub fn new(
        sink: &'a mut dyn FrameSink,
        (buffer, scratch): (Buffer, Option<Buffer>),
        progress: Arc<AtomicU64>,
        limiters: Limiters,
    ) -> Self {
        FrameWriter {
            sink,
            buffer,
            scratch,
            progress,
            limiters,
            is_hashed: false,
            clear: Vec::new(),
            sent: 0,
            kept: 0,
        }
    }

    /// Sends the collected files, within the limits.
    fn flush(&mut self) -> Result<(), Disconnected> {
        let bytes = self.buffer.as_ref();
        let mut at = 0;
        for clear in &self.clear {
            send_within_limits(self.sink, &self.limiters, &bytes[at..clear.start], false)?;
            send_within_limits(self.sink, &self.limiters, &bytes[clear.clone()], true)?;
            at = clear.end;
        }
        send_within_limits(self.sink, &self.limiters, &bytes[at..], false)?;
        self.clear.clear();
        self.buffer.clear();
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Disconnected> {
        while !self.buffer.try_append(bytes) {
            self.flush()?;
            // A frame may be longer than the buffer.
            let (now, later) = bytes.split_at(self.buffer.remaining_bytes().min(bytes.len()));
            self.buffer.try_append(now);
            bytes = later;
        }
        Ok(())
    }

    /// Ends content with its digest, or without.
    fn end_content(&mut self, digest: Option<Digest>) -> Result<(), Disconnected> {
        match digest {
            Some(digest) => self.append(&frame::digest(&digest)),
            None => self.append(&frame::done()),
        }
    }
}

fn send_within_limits(
    sink: &mut dyn FrameSink,
    limiters: &Limiters,
    mut rest: &[u8],
    is_clear: bool,
) -> Result<(), Disconnected> {
    while !rest.is_empty() {
        let most = limiters.max_chunk_bytes().and_then(|most| usize::try_from(most).ok());
        let (piece, later) = rest.split_at(most.unwrap_or(usize::MAX).min(rest.len()));
        limiters.acquire(piece.len() as u64, || sink.check_active())?;
        match is_clear {
            true => sink.send_clear(piece)?,
            false => sink.send(piece)?,
        }
        rest = later;
    }
    Ok(())
}

impl Sink for FrameWriter<'_> {
    type Stop = Disconnected;

    /// Content is read straight into the buffer that is sent.
    fn room(&mut self, want: usize, aligned: bool) -> Result<&mut [u8], Disconnected> {
        if self.buffer.remaining_bytes() < FRAME_HEADER_BYTES + want
            || (aligned && !self.buffer.is_empty())
        {
            self.flush()?;
        }
        Ok(&mut self.buffer.spare_mut()[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + want])
    }

    fn content(&mut self, n: usize) -> Result<(), Disconnected> {
        let is_clear = self.is_hashed && n >= frame::MIN_BULK_BYTES && self.sink.allows_clear();
        let header = match is_clear {
            true => frame::clear_content_header(n),
            false => frame::content_header(n),
        };
        self.buffer.spare_mut()[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        self.buffer.advance(FRAME_HEADER_BYTES + n);
        let end = self.buffer.len();
        self.clear.extend(is_clear.then_some(end - n..end));
        self.sent += n as u64;
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<(), Disconnected> {
        self.progress.fetch_add(length, Ordering::Relaxed);
        self.append(&frame::hole(length))
    }

    fn keep(&mut self, from: ReuseSource, length: u64, _: &[Digest]) -> Result<(), Disconnected> {
        self.progress.fetch_add(length, Ordering::Relaxed);
        self.kept += length;
        self.append(&frame::keep(from, length))?;
        // So that the receiver has something to do, and does not count this sender as stalled.
        if length >= MAX_KEEP_RUN_BYTES { self.flush() } else { Ok(()) }
    }

    fn check_active(&self) -> Result<(), Disconnected> {
        self.sink.check_active()
    }
}

/// Sends `files` of `source` as what each of them is now, below the directories `dirs`; their content
/// is followed by its digest where it is to be hashed.
///
/// # Errors
/// [`Disconnected`]; what was sent counts for nothing then.
pub fn send_pack(
    source: &Tree,
    dirs: &[ManifestDir],
    files: &[Entry],
    hashing: SendHashing,
    writer: &mut FrameWriter<'_>,
) -> Result<Vec<SentFile>, Disconnected> {
    writer.append(&frame::dirs(dirs.to_vec()))?;
    let mut sent_files = Vec::with_capacity(files.len());
    for entry in files {
        sent_files.push(send_file(source, entry, hashing, writer)?);
        if writer.buffer.len() >= FLUSH_BYTES {
            writer.flush()?;
        }
    }
    let sent = sent_files.iter().filter(|f| !matches!(f, SentFile::Unreadable(_))).count();
    writer.append(&frame::end(sent as u32))?;
    writer.flush()?;
    Ok(sent_files)
}

fn send_file(
    source: &Tree,
    entry: &Entry,
    hashing: SendHashing,
    writer: &mut FrameWriter<'_>,
) -> Result<SentFile, Disconnected> {
    let file = match source.open_source(entry) {
        Ok(file) => file,
        Err(error) => return Ok(SentFile::Unreadable(error.to_entry_error())),
    };
    let now = file.entry();
    let bytes = now.size();
    writer.append(&frame::file(now))?;
    writer.is_hashed = hashing.mode.is_some();
    let mut hasher = hashing.mode.map(ContentHasher::new);
    let read = read_whole(&file, Span { offset: 0, length: bytes }, &mut hasher, writer)?;
    let found = hasher.map(ContentHasher::digest);
    if let Err(error) = read.and_then(|()| file.verify_digest(found)) {
        writer.append(&frame::abort())?;
        return Ok(SentFile::Aborted(error.to_entry_error()));
    }
    writer.end_content(found)?;
    let digest = found.filter(|_| hashing.mode == Some(HashMode::Full));
    let relay_digest = found.filter(|_| hashing.for_relays && file.is_version(entry));
    Ok(SentFile::Complete(WrittenFile { bytes, digest, relay_digest }))
}

/// Sends the range of `head` from the file of `entry`; with `existing` only the blocks that differ from
/// those (the writer must have a buffer to compare). The caller has checked that the range fits.
///
/// # Errors
/// [`Disconnected`].
pub fn send_range(
    source: &Tree,
    head: &RangeHead,
    entry: &Entry,
    existing: Option<&[BlockHashes]>,
    hashing: Option<HashMode>,
    writer: &mut FrameWriter<'_>,
) -> Result<Result<WrittenRange, EntryError>, Disconnected> {
    let span = Span { offset: head.offset, length: head.length };
    writer.is_hashed = hashing.is_some();
    let opened = open_version(source, entry);
    let is_dense = existing.is_none() && opened.as_ref().is_ok_and(SourceFile::is_dense);
    writer.append(&frame::range(&RangeHead { is_dense, ..head.clone() }))?;
    let sent = match opened {
        Err(error) => Err(error),
        Ok(file) => {
            let mut scratch = writer.scratch.take();
            let compare = existing.zip(scratch.as_mut().map(Buffer::content_mut));
            let value = read_range(&file, span, compare, hashing, writer)?;
            value.map(|value| WrittenRange { value, sent: writer.sent, kept: writer.kept })
        }
    };
    match &sent {
        Ok(written) => writer.end_content(written.value)?,
        Err(_) => writer.append(&frame::abort())?,
    }
    writer.flush()?;
    Ok(sent.map_err(EntryError::from))
}

/// Reads `span` of `file` into `sink`, where there is something to `compare` with (and a block's room)
/// only what differs; with its value where it is to be hashed. What is compared is compared by values
/// without zeros where it is not.
///
/// # Errors
/// As [`read_whole`].
pub fn read_range<S: Sink>(
    file: &SourceFile,
    span: Span,
    compare: Option<(&[BlockHashes], &mut [u8])>,
    hashing: Option<HashMode>,
    sink: &mut S,
) -> Result<Result<Option<Digest>, FsError>, S::Stop> {
    if let Some((existing, scratch)) = compare {
        let existing = (existing, hashing.unwrap_or(HashMode::SkipZeros));
        let values = read_delta(file, span, existing, scratch, sink)?;
        return Ok(values.map(|values| merge_blocks(&values).filter(|_| hashing.is_some())));
    }
    let mut hasher = hashing.map(|hashing| ContentHasher::at_offset(hashing, span.offset));
    let read = read_whole(file, span, &mut hasher, sink)?;
    Ok(read.map(|()| hasher.and_then(ContentHasher::chaining_value)))
}
