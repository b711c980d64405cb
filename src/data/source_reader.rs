//! Reading the content of a source file in order, once, for a [`Sink`]: a connection, or a
//! destination on this host. Holes are not read.

use super::buffer_pool::{Buffer, READ_BYTES};
use crate::fs::{BlockHashes, DIRECT_ALIGN_BYTES, FsError, ReuseSource, SourceFile, Tree};
use crate::wire::Digest;
use crate::wire::content::{BLOCK_BYTES, ContentHasher, HashMode, ZERO_DIGEST};
use crate::wire::manifest::{Entry, Manifest};
use std::convert::Infallible;

/// Neighbouring blocks that are kept are sent as one run, up to this length, so that both ends see progress
/// while they work on a long run of them.
pub const MAX_KEEP_RUN_BYTES: u64 = 8 << 20;

/// Blocks are requested, and sent, for so much of a range at a time: neither end works for long
/// without a word to the other.
pub const WINDOW_BYTES: u64 = 64 << 20;

/// Spans from this length on are kept out of the page cache, in bytes.
const CACHE_BYPASS_MIN_BYTES: u64 = 16 << 20;

/// Accepts content in order.
pub trait Sink {
    /// Why the sink accepts no more.
    type Stop;
    /// Where content of up to `want` bytes (at most [`READ_BYTES`]) is read to; on a page
    /// ([`DIRECT_ALIGN_BYTES`]) where it shall be `aligned`.
    ///
    /// # Errors
    /// The sink accepts no more.
    fn room(&mut self, want: usize, aligned: bool) -> Result<&mut [u8], Self::Stop>;
    /// The first `n` bytes of the [room](Sink::room) are content.
    ///
    /// # Errors
    /// The sink accepts no more.
    fn content(&mut self, n: usize) -> Result<(), Self::Stop>;
    /// A hole of `length` bytes.
    ///
    /// # Errors
    /// The sink accepts no more.
    fn hole(&mut self, length: u64) -> Result<(), Self::Stop>;
    /// `length` bytes that the destination has; the chaining values of their blocks.
    ///
    /// # Errors
    /// The sink accepts no more.
    fn keep(&mut self, from: ReuseSource, length: u64, values: &[Digest])
    -> Result<(), Self::Stop>;
    /// Called between pieces of work.
    ///
    /// # Errors
    /// The sink accepts no more.
    fn check_active(&self) -> Result<(), Self::Stop>;
}

/// A range of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl Span {
    /// Where it ends.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// Cut into pieces of `length`; the last one may be shorter.
    pub fn split(self, length: u64) -> impl Iterator<Item = Span> {
        let starts =
            (self.offset..self.end()).step_by(usize::try_from(length).unwrap_or(usize::MAX));
        starts.map(move |offset| Span { offset, length: length.min(self.end() - offset) })
    }
}

/// A range of the only file of a manifest.
#[derive(Clone, Copy)]
pub struct RangeTransfer<'a> {
    /// Where it is read.
    pub source: &'a Tree,
    /// With the directories above the file.
    pub manifest: &'a Manifest,
    /// The file.
    pub entry: &'a Entry,
    /// What of it.
    pub span: Span,
}

/// A part of a range that is sent or compared at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What it is.
    pub span: Span,
    /// The source has nothing there.
    pub is_hole: bool,
}

/// Cuts `span` of `entry`'s version of its file into subtrees of its hash of [`WINDOW_BYTES`] bytes, and holes of any
/// length.
///
/// # Errors
/// It can't be opened, or is another version ([`Cause::Changed`](crate::fs::Cause::Changed)).
pub fn split_into_windows(
    source: &Tree,
    entry: &Entry,
    span: Span,
) -> Result<Vec<Window>, FsError> {
    let file = open_version(source, entry)?;
    let mut windows = Vec::new();
    let mut at = span.offset;
    while at < span.end() {
        let (data, _) = next_data_run(&file, at, span)?;
        let mut length = WINDOW_BYTES.min(span.end() - at);
        let is_hole = data - at >= length;
        while is_hole && (at - span.offset).is_multiple_of(2 * length) && data - at >= 2 * length {
            length *= 2;
        }
        windows.push(Window { span: Span { offset: at, length }, is_hole });
        at += length;
    }
    file.verify_unchanged()?;
    Ok(windows)
}

/// The next run of data in `span` from `at` on, as start and end; both are its end where only a hole
/// is left.
fn next_data_run(file: &SourceFile, at: u64, span: Span) -> Result<(u64, u64), FsError> {
    Ok(file.next_data_run(at, span.end())?.unwrap_or((span.end(), span.end())))
}

/// Reads all of `span`, hashing on the way where there is a hasher, and checks that the file is unchanged in the end.
///
/// # Errors
/// The error of the sink; inside: the file cannot be read, ended early, or has changed.
pub fn read_whole<S: Sink>(
    file: &SourceFile,
    span: Span,
    hasher: &mut Option<ContentHasher>,
    sink: &mut S,
) -> Result<Result<(), FsError>, S::Stop> {
    let mut at = span.offset;
    let mut behind = None;
    while at < span.end() {
        let (start, end) = match next_data_run(file, at, span) {
            Ok(run) => run,
            Err(error) => return Ok(Err(error)),
        };
        if start > at {
            if let Some(hasher) = hasher {
                hasher.update_zeros(start - at, || sink.check_active())?;
            }
            sink.hole(start - at)?;
            at = start;
        }
        while at < end {
            sink.check_active()?;
            // A read that starts within a page ends at a page.
            let most = READ_BYTES as u64 - at % DIRECT_ALIGN_BYTES as u64;
            let room = sink.room((end - at).min(most) as usize, file.is_direct())?;
            if behind.is_none() && span.length >= CACHE_BYPASS_MIN_BYTES && !file.is_direct() {
                behind = Some(file.drop_behind(at, span.end()));
            }
            let read = match &mut behind {
                Some(behind) => file.read_dropping_cache(behind, room, at),
                None => file.read_at(room, at),
            };
            let n = match read {
                // Shorter than it was a moment ago is one way to change.
                Ok(0) => return Ok(Err(file.changed_error())),
                Ok(n) => n,
                Err(error) => return Ok(Err(error)),
            };
            if let Some(hasher) = hasher {
                hasher.update(&room[..n]);
            }
            sink.content(n)?;
            at += n as u64;
        }
    }
    Ok(file.verify_unchanged())
}

/// The kind of a run of blocks that is held back, as the next block may extend it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunKind {
    Hole,
    Kept(ReuseSource),
}

/// One delta being read.
struct DeltaReader<'a, S> {
    file: &'a SourceFile,
    sink: &'a mut S,
    /// The values of all blocks so far.
    values: Vec<Digest>,
    /// The run at the end that the sink has not got yet: its kind, bytes and blocks.
    pending_run: Option<(RunKind, u64, usize)>,
}

/// Reads `span`, block by block, and compares it with `existing`, what the destination has of each block.
/// Returns the values of the blocks. `scratch` has room for a block.
///
/// # Errors
/// As [`read_whole`].
pub fn read_delta<S: Sink>(
    file: &SourceFile,
    span: Span,
    (existing, hashing): (&[BlockHashes], HashMode),
    scratch: &mut [u8],
    sink: &mut S,
) -> Result<Result<Vec<Digest>, FsError>, S::Stop> {
    let mut delta =
        DeltaReader { file, sink, values: Vec::with_capacity(existing.len()), pending_run: None };
    for (i, block) in span.split(BLOCK_BYTES).enumerate() {
        delta.sink.check_active()?;
        // Of what nothing is known, all is sent.
        let existing = existing.get(i).copied().unwrap_or_default();
        match read_block(file, block, hashing, scratch) {
            Ok(read) => delta.add_block(block, read, existing, scratch)?,
            Err(error) => return Ok(Err(error)),
        }
    }
    delta.flush_run()?;
    Ok(file.verify_unchanged().map(|()| delta.values))
}

/// What of a block is a hole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holes {
    None,
    Some,
    All,
}

/// The value of `block`, read into `scratch` where it is not one hole. A file that ends before it has changed.
fn read_block(
    file: &SourceFile,
    block: Span,
    hashing: HashMode,
    scratch: &mut [u8],
) -> Result<(Digest, Holes), FsError> {
    let content = &mut scratch[..block.length as usize];
    let run = next_data_run(file, block.offset, block)?;
    let holes = if run == (block.offset, block.end()) {
        Holes::None
    } else if run.0 == block.end() {
        Holes::All
    } else {
        Holes::Some
    };
    match holes {
        Holes::All if hashing == HashMode::SkipZeros => return Ok((ZERO_DIGEST, holes)),
        Holes::All => content.fill(0),
        Holes::None | Holes::Some if file.read_at(content, block.offset)? < content.len() => {
            return Err(file.changed_error());
        }
        Holes::None | Holes::Some => {}
    }
    Ok((hashing.hash_block(block.offset, content), holes))
}

impl<S: Sink> DeltaReader<'_, S> {
    /// Adds one block; its content is in `scratch`.
    fn add_block(
        &mut self,
        block: Span,
        (value, holes): (Digest, Holes),
        existing: BlockHashes,
        scratch: &[u8],
    ) -> Result<(), S::Stop> {
        let alike = if holes == Holes::All {
            Some(RunKind::Hole)
        } else if existing.part == Some(value) {
            Some(RunKind::Kept(ReuseSource::PartFile))
        } else if existing.basis == Some(value) {
            Some(RunKind::Kept(ReuseSource::Basis))
        } else {
            None
        };
        match (alike, &mut self.pending_run) {
            (Some(alike), Some((held, bytes, blocks)))
                if alike == *held && *bytes < MAX_KEEP_RUN_BYTES =>
            {
                *bytes += block.length;
                *blocks += 1;
            }
            (Some(alike), _) => {
                self.flush_run()?;
                self.pending_run = Some((alike, block.length, 1));
            }
            (None, _) => {
                self.flush_run()?;
                self.send_block(block, holes, scratch)?;
            }
        }
        self.values.push(value);
        Ok(())
    }

    /// Sends the run that was held back to the sink.
    fn flush_run(&mut self) -> Result<(), S::Stop> {
        match self.pending_run.take() {
            None => Ok(()),
            Some((RunKind::Hole, bytes, _)) => self.sink.hole(bytes),
            Some((RunKind::Kept(from), bytes, blocks)) => {
                let first = self.values.len().saturating_sub(blocks);
                self.sink.keep(from, bytes, &self.values[first..])
            }
        }
    }

    /// Sends the content of `block`, without its holes.
    fn send_block(&mut self, block: Span, holes: Holes, scratch: &[u8]) -> Result<(), S::Stop> {
        let mut at = block.offset;
        while at < block.end() {
            // Where holes can't be found any more, all of it is content.
            let run =
                if holes == Holes::Some { next_data_run(self.file, at, block).ok() } else { None };
            let (start, end) = run.unwrap_or((at, block.end()));
            if start > at {
                self.sink.hole(start - at)?;
            }
            if end > start {
                let from = (start - block.offset) as usize..(end - block.offset) as usize;
                let content = &scratch[from];
                self.sink.room(content.len(), false)?[..content.len()].copy_from_slice(content);
                self.sink.content(content.len())?;
            }
            at = end;
        }
        Ok(())
    }
}

/// Opens the file for a range of it, provided that it is the version of `entry`.
///
/// # Errors
/// It can't be opened, or is another version ([`Cause::Changed`](crate::fs::Cause::Changed)).
pub fn open_version(source: &Tree, entry: &Entry) -> Result<SourceFile, FsError> {
    require_version(source.open_for_range(entry)?, entry)
}

fn require_version(file: SourceFile, entry: &Entry) -> Result<SourceFile, FsError> {
    if file.is_version(entry) { Ok(file) } else { Err(file.changed_error()) }
}

/// The values of the blocks of `span` of `entry`'s version of its file; `scratch` has room for
/// [one](super::buffer_pool::BLOCK_BUFFER_BYTES).
///
/// # Errors
/// It can't be read, or is another version ([`Cause::Changed`](crate::fs::Cause::Changed)).
pub fn hash_blocks(
    source: &Tree,
    entry: &Entry,
    span: Span,
    hashing: HashMode,
    scratch: &mut Buffer,
) -> Result<Vec<Digest>, FsError> {
    let file = open_version(source, entry)?;
    let values = span
        .split(BLOCK_BYTES)
        .map(|block| Ok(read_block(&file, block, hashing, scratch.content_mut())?.0));
    let values = values.collect::<Result<_, FsError>>()?;
    file.verify_unchanged()?;
    Ok(values)
}

/// The digest of the content of `entry`'s version of its file, read to `buffer`, which has room for
/// [`READ_BYTES`]. It blocks as long as reading takes.
///
/// # Errors
/// It can't be read, or is another version ([`Cause::Changed`](crate::fs::Cause::Changed)).
pub fn hash_source(
    source: &Tree,
    entry: &Entry,
    hashing: HashMode,
    buffer: &mut Buffer,
) -> Result<Digest, FsError> {
    let file = require_version(source.open_source(entry)?, entry)?;
    let Ok(digest) = hash_file(&file, hashing, buffer, || Ok::<_, Infallible>(()));
    digest
}

/// The digest of the content of an open file, read to `buffer`. `check_active` is called repeatedly.
///
/// # Errors
/// The error of `check_active`; inside: as in [`read_whole`].
pub fn hash_file<E>(
    file: &SourceFile,
    hashing: HashMode,
    buffer: &mut Buffer,
    check_active: impl Fn() -> Result<(), E>,
) -> Result<Result<Digest, FsError>, E> {
    let span = Span { offset: 0, length: file.entry().size() };
    let mut hasher = Some(ContentHasher::new(hashing));
    let read = read_whole(file, span, &mut hasher, &mut HashOnlySink { buffer, check_active })?;
    Ok(read.map(|()| hasher.map_or(ZERO_DIGEST, ContentHasher::digest)))
}

/// Discards content: it is only hashed.
struct HashOnlySink<'a, G> {
    buffer: &'a mut Buffer,
    check_active: G,
}

impl<E, G: Fn() -> Result<(), E>> Sink for HashOnlySink<'_, G> {
    type Stop = E;

    fn room(&mut self, want: usize, _: bool) -> Result<&mut [u8], Self::Stop> {
        Ok(&mut self.buffer.content_mut()[..want])
    }

    fn content(&mut self, _: usize) -> Result<(), Self::Stop> {
        Ok(())
    }

    fn hole(&mut self, _: u64) -> Result<(), Self::Stop> {
        Ok(())
    }

    fn keep(&mut self, _: ReuseSource, _: u64, _: &[Digest]) -> Result<(), Self::Stop> {
        Ok(())
    }

    fn check_active(&self) -> Result<(), Self::Stop> {
        (self.check_active)()
    }
}
