//! Frames: how content travels in the body of a pack or a range.
//!
//! ```text
//! frame   = kind (1 byte) length (4 bytes, little endian) payload
//! ask     = ASK                                        answer  = REPLY | REFUSAL
//! pack    = DIRS { FILE { CONTENT | CLEAR | HOLE } ( DIGEST | ABORT | DONE ) } END
//! range   = RANGE { CONTENT | CLEAR | HOLE | KEEP } ( DIGEST | ABORT | DONE )
//! ```
//!
//! CLEAR is content on a connection in TLS that is not encrypted: the payload follows the TLS record with the header. What
//! proves it is DIGEST, which is encrypted.
//!
//! The documents in ASK, REPLY, DIRS, FILE and RANGE end with a check of their own ([`checksum`]). Header and
//! bulk are apart: a header is read whole (its length is checked before anything is
//! allocated, and memory grows only as bytes arrive), content is passed on in the pieces in which it
//! came, or read to its final buffer, without a copy. Every frame advances by at least one byte of content or one entry, so there
//! is no way to keep a receiver busy with nothing; what is left of a file or range bounds holes and
//! kept content like it bounds content.

use super::protocol::{
    ContentRequest, DirTable, FRAME_HEADER_BYTES, MAX_CONTENT_FRAME_BYTES, RangeHead,
};
use super::ticket_verifier::{StreamPermit, boottime};
use crate::fs::ReuseSource;
use crate::util::checksum::{self, CHECKSUM_MISMATCH};
use crate::wire::Digest;
use crate::wire::manifest::{Entry, MAX_MANIFEST_BYTES, MAX_MANIFEST_ENTRIES, ManifestDir};
use bytes::{Buf, Bytes};

/// A request on a stream ([`ContentRequest`]).
pub const REQUEST: u8 = b'Q';
/// A reply's document.
pub const REPLY: u8 = b'Y';
/// A [`Problem`](crate::wire::problem::Problem) in JSON.
pub const REFUSAL: u8 = b'X';
/// Content of this length is fetched, where it has not come with the frame's head, instead of being
/// passed on in the pieces in which it comes. Shorter content is always encrypted.
pub const MIN_BULK_BYTES: usize = 64 << 10;
const DIRS: u8 = b'D';
const FILE: u8 = b'F';
const RANGE: u8 = b'R';
const CONTENT: u8 = b'C';
const CLEAR: u8 = b'L';
const HOLE: u8 = b'Z';
const KEEP: u8 = b'K';
const DIGEST: u8 = b'H';
const DONE: u8 = b'N';
const ABORT: u8 = b'A';
const END: u8 = b'E';

/// One frame, or a piece of a content frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The directories above the files of a pack, parents first.
    Dirs(Vec<ManifestDir>),
    /// A file; its content follows.
    File(Entry),
    /// What range of which file; its content follows.
    Range(RangeHead),
    /// Content, never empty.
    Content(Bytes),
    /// So many bytes of content, never 0, that have not all come yet: to be [read](FrameReader::read_content)
    /// to their final buffer before the next frame is read.
    PendingContent(usize),
    /// So many bytes of a hole, never 0: they are read as zeros.
    Hole(u64),
    /// So many bytes, never 0, that the destination has at this place.
    Keep(ReuseSource, u64),
    /// All content was sent; this is its digest (a file) or chaining value (a range).
    Digest(Digest),
    /// All content was sent; it was not hashed.
    Done,
    /// The sender cancels the file (or range).
    Abort,
    /// The end of a pack, with the number of its files.
    End(u32),
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The body ended in the middle.
    #[error("the body ended before its last frame")]
    Truncated,
    /// A length over the limit of its kind, or under it.
    #[error("a frame of kind {kind:#04x} announces {length} bytes")]
    Length {
        /// The first byte of the frame.
        kind: u8,
        /// The announced length.
        length: usize,
    },
    /// An unknown kind.
    #[error("a frame of the unknown kind {0:#04x}")]
    Unknown(u8),
    /// A payload of another shape.
    #[error("a frame of kind {kind:#04x} cannot be read: {reason}")]
    Malformed {
        /// The first byte of the frame.
        kind: u8,
        /// What is wrong.
        reason: String,
    },
    /// A document that is not what was sent.
    #[error("a frame of kind {0:#04x}: {CHECKSUM_MISMATCH}")]
    Damaged(u8),
    /// A frame in the wrong position.
    #[error("{0}")]
    Unexpected(String),
    /// Content without a digest, where the ticket requires one.
    #[error("content came without the digest that the ticket requires")]
    MissingDigest,
    /// The connection failed or stalled.
    #[error("the connection failed: {0}")]
    Connection(String),
}

impl FrameError {
    /// A frame in the wrong position.
    pub fn unexpected(reason: &str) -> Self {
        FrameError::Unexpected(reason.to_owned())
    }
}

/// Where bytes come from, in pieces of any length.
pub trait ChunkSource {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// A message: the connection failed.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String>;

    /// Fills `out` without a detour through a piece, in TLS with what is encrypted or with what is clear; `None` where that
    /// can't be done.
    ///
    /// # Errors
    /// A message: the connection failed or ended before, or has no clear content.
    fn fill(&mut self, _out: &mut [u8], _is_clear: bool) -> Option<Result<(), String>> {
        None
    }

    /// A frame of a few bytes stands for so many bytes of content: they count as progress.
    fn record_progress(&mut self, _bytes: u64) {}

    /// Whether the requester disconnected.
    fn is_abandoned(&self) -> bool {
        false
    }
}

/// Reads frames out of pieces; blocks while there are none.
pub struct FrameReader<P> {
    source: P,
    /// What of the last piece is not used yet.
    unread: Bytes,
    /// What is still to come of the content frame begun last.
    content_left: usize,
    /// That content is not encrypted.
    is_clear: bool,
    /// What the ticket of the request allows; `None` before a request.
    pub permit: Option<StreamPermit>,
}

impl<P: ChunkSource> FrameReader<P> {
    /// Reads from `source`.
    pub fn new(source: P) -> Self {
        FrameReader { source, unread: Bytes::new(), content_left: 0, is_clear: false, permit: None }
    }

    /// The next frame.
    ///
    /// # Errors
    /// Anything but a well-formed frame within the limits; the reader is of no use afterwards.
    pub fn next_frame(&mut self) -> Result<Frame, FrameError> {
        if self.content_left > 0 {
            return self.next_content();
        }
        let permit = self.permit.as_ref().map_or(Ok(()), StreamPermit::check);
        permit.map_err(FrameError::unexpected)?;
        let (kind, length) = parse_header(self.read_array()?);
        let allowed = match kind {
            DIRS | FILE | RANGE => 1..=MAX_MANIFEST_BYTES,
            CONTENT | CLEAR => 1..=MAX_CONTENT_FRAME_BYTES,
            HOLE => 8..=8,
            KEEP => 9..=9,
            DIGEST => 32..=32,
            ABORT | DONE => 0..=0,
            END => 4..=4,
            other => return Err(FrameError::Unknown(other)),
        };
        if !allowed.contains(&length) {
            return Err(FrameError::Length { kind, length });
        }
        self.is_clear = kind == CLEAR;
        match kind {
            CLEAR if !self.unread.is_empty() => {
                let reason = "encrypted bytes follow its header".to_owned();
                Err(FrameError::Malformed { kind, reason })
            }
            CLEAR => {
                self.content_left = length;
                Ok(Frame::PendingContent(length))
            }
            CONTENT => {
                self.content_left = length;
                if length >= MIN_BULK_BYTES && length > self.unread.len() {
                    return Ok(Frame::PendingContent(length));
                }
                self.next_content()
            }
            DIGEST => Ok(Frame::Digest(Digest(self.read_array()?))),
            HOLE => self.read_length(kind).map(Frame::Hole),
            KEEP => {
                let from = match self.read_array()? {
                    [0] => ReuseSource::PartFile,
                    [1] => ReuseSource::Basis,
                    [other] => {
                        let reason = format!("no bytes are kept from {other}");
                        return Err(FrameError::Malformed { kind, reason });
                    }
                };
                Ok(Frame::Keep(from, self.read_length(kind)?))
            }
            ABORT => Ok(Frame::Abort),
            DONE => Ok(Frame::Done),
            END => Ok(Frame::End(u32::from_le_bytes(self.read_array()?))),
            _ => self.read_document(kind, length),
        }
    }

    /// Fetches content of a [`Frame::PendingContent`] until `out` is full; no more than is left of it.
    ///
    /// # Errors
    /// The connection failed, or there is less.
    pub fn read_content(&mut self, out: &mut [u8]) -> Result<(), FrameError> {
        if out.len() > self.content_left {
            return Err(FrameError::Truncated);
        }
        self.content_left -= out.len();
        let (now, later) = out.split_at_mut(self.unread.len().min(out.len()));
        self.unread.copy_to_slice(now);
        if later.is_empty() {
            return Ok(());
        }
        // The piece goes back to its pool.
        self.unread = Bytes::new();
        match self.source.fill(later, self.is_clear) {
            Some(filled) => filled.map_err(FrameError::Connection),
            None if self.is_clear => Err(FrameError::Unknown(CLEAR)),
            None => self.fill(later),
        }
    }

    /// Whether the content of the last [`Frame::PendingContent`] is not encrypted where all else is.
    pub fn is_clear(&self) -> bool {
        self.is_clear
    }

    /// Makes sure that nothing has come behind the last frame: nothing is sent before it is answered.
    ///
    /// # Errors
    /// A frame that is not whole, or bytes behind the last frame.
    pub fn check_no_trailing_bytes(&self) -> Result<(), FrameError> {
        if self.content_left > 0 {
            return Err(FrameError::Truncated);
        }
        if !self.unread.is_empty() {
            return Err(FrameError::unexpected("bytes follow the last frame"));
        }
        Ok(())
    }

    /// Where the bytes came from.
    pub fn into_source(self) -> P {
        self.source
    }

    /// Whether there is anything more to read; fetches a piece where none is left.
    fn has_more(&mut self) -> Result<bool, FrameError> {
        while self.unread.is_empty() {
            // The piece goes back to its pool before another one is taken from it.
            self.unread = Bytes::new();
            match self.source.next_chunk().map_err(FrameError::Connection)? {
                Some(piece) => self.unread = piece,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn next_content(&mut self) -> Result<Frame, FrameError> {
        if !self.has_more()? {
            return Err(FrameError::Truncated);
        }
        let piece = self.unread.split_to(self.content_left.min(self.unread.len()));
        self.content_left -= piece.len();
        Ok(Frame::Content(piece))
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), FrameError> {
        let mut at = 0;
        while at < out.len() {
            if !self.has_more()? {
                return Err(FrameError::Truncated);
            }
            let n = self.unread.len().min(out.len() - at);
            self.unread.copy_to_slice(&mut out[at..at + n]);
            at += n;
        }
        Ok(())
    }

    /// The length of a hole or of what is kept.
    fn read_length(&mut self, kind: u8) -> Result<u64, FrameError> {
        match u64::from_le_bytes(self.read_array()?) {
            0 => Err(FrameError::Malformed { kind, reason: "its length is zero".to_owned() }),
            length => {
                self.source.record_progress(length);
                Ok(length)
            }
        }
    }

    /// Ends work for a disconnected requester.
    ///
    /// # Errors
    /// It disconnected.
    pub fn check_active(&self) -> Result<(), FrameError> {
        if self.source.is_abandoned() {
            return Err(FrameError::Connection("the requester disconnected".to_owned()));
        }
        Ok(())
    }

    /// The same for the zeros of a hole, of which a few bytes make any amount of work: it ends with the ticket.
    ///
    /// # Errors
    /// It disconnected, or its ticket ended.
    pub fn check_active_and_ticket(&self) -> Result<(), FrameError> {
        self.check_active()?;
        if self.permit.as_ref().is_some_and(|permit| boottime() >= permit.until) {
            return Err(FrameError::unexpected("the ticket ended while a hole was hashed"));
        }
        Ok(())
    }

    fn read_document(&mut self, kind: u8, length: usize) -> Result<Frame, FrameError> {
        let mut payload = Vec::new();
        while payload.len() < length {
            if !self.has_more()? {
                return Err(FrameError::Truncated);
            }
            let piece = self.unread.split_to((length - payload.len()).min(self.unread.len()));
            payload.extend_from_slice(&piece);
        }
        let broken =
            |e: minicbor::decode::Error| FrameError::Malformed { kind, reason: e.to_string() };
        let document = checksum::verify_and_strip(&payload).ok_or(FrameError::Damaged(kind))?;
        let mut decoder = minicbor::Decoder::new(document);
        let frame = match kind {
            DIRS => Frame::Dirs(decoder.decode::<DirTable>().map_err(broken)?.dirs),
            FILE => Frame::File(decoder.decode().map_err(broken)?),
            _ => Frame::Range(decoder.decode().map_err(broken)?),
        };
        if decoder.position() != document.len() {
            let reason = "bytes follow its document".to_owned();
            return Err(FrameError::Malformed { kind, reason });
        }
        Ok(frame)
    }
}

/// At most this many files travel in one pack.
pub const MAX_PACK_FILES: usize = MAX_MANIFEST_ENTRIES;

/// The kind and the length that a frame begins with.
pub fn parse_header(head: [u8; FRAME_HEADER_BYTES]) -> (u8, usize) {
    (head[0], u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize)
}

fn head(kind: u8, length: usize) -> [u8; FRAME_HEADER_BYTES] {
    let l = (length as u32).to_le_bytes();
    [kind, l[0], l[1], l[2], l[3]]
}

fn document<T: minicbor::Encode<()>>(kind: u8, value: &T) -> Vec<u8> {
    let mut out = vec![0; FRAME_HEADER_BYTES];
    // Encoding into a Vec can't fail.
    let _ = minicbor::encode(value, &mut out);
    let check = checksum::compute_checksum(&out[FRAME_HEADER_BYTES..]);
    out.extend_from_slice(&check);
    let length = out.len() - FRAME_HEADER_BYTES;
    out[..FRAME_HEADER_BYTES].copy_from_slice(&head(kind, length));
    out
}

/// An ASK frame.
pub fn ask(request: &ContentRequest) -> Vec<u8> {
    document(REQUEST, request)
}

/// A REPLY frame.
pub fn reply(document: &[u8]) -> Vec<u8> {
    let check = checksum::compute_checksum(document);
    [&head(REPLY, document.len() + check.len()), document, &check].concat()
}

/// A REFUSAL frame.
pub fn refusal(problem: &[u8]) -> Vec<u8> {
    [&head(REFUSAL, problem.len()), problem].concat()
}

/// A DIRS frame.
pub fn dirs(dirs: Vec<ManifestDir>) -> Vec<u8> {
    document(DIRS, &DirTable { dirs })
}

/// A FILE frame.
pub fn file(entry: &Entry) -> Vec<u8> {
    document(FILE, entry)
}

/// A RANGE frame.
pub fn range(range: &RangeHead) -> Vec<u8> {
    document(RANGE, range)
}

/// What stands before `length` bytes of content (1 to [`MAX_CONTENT_FRAME_BYTES`]).
pub fn content_header(length: usize) -> [u8; FRAME_HEADER_BYTES] {
    head(CONTENT, length)
}

/// The same for content that is not encrypted where all else is.
pub fn clear_content_header(length: usize) -> [u8; FRAME_HEADER_BYTES] {
    head(CLEAR, length)
}

/// A frame of a few bytes; `N` is its length with its header.
fn short_frame<const N: usize>(kind: u8, payload: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out[..FRAME_HEADER_BYTES].copy_from_slice(&head(kind, payload.len()));
    out[FRAME_HEADER_BYTES..].copy_from_slice(payload);
    out
}

/// A HOLE frame of `length` bytes (at least 1).
pub fn hole(length: u64) -> [u8; FRAME_HEADER_BYTES + 8] {
    short_frame(HOLE, &length.to_le_bytes())
}

/// A KEEP frame of `length` bytes (at least 1).
pub fn keep(from: ReuseSource, length: u64) -> [u8; FRAME_HEADER_BYTES + 9] {
    let mut payload = [0; 9];
    payload[0] = match from {
        ReuseSource::PartFile => 0,
        ReuseSource::Basis => 1,
    };
    payload[1..].copy_from_slice(&length.to_le_bytes());
    short_frame(KEEP, &payload)
}

/// A DONE frame.
pub fn done() -> [u8; FRAME_HEADER_BYTES] {
    head(DONE, 0)
}

/// A DIGEST frame.
pub fn digest(digest: &Digest) -> [u8; FRAME_HEADER_BYTES + 32] {
    short_frame(DIGEST, &digest.0)
}

/// An ABORT frame.
pub fn abort() -> [u8; FRAME_HEADER_BYTES] {
    head(ABORT, 0)
}

/// An END frame.
pub fn end(files: u32) -> [u8; FRAME_HEADER_BYTES + 4] {
    short_frame(END, &files.to_le_bytes())
}

#[cfg(test)]
mod tests;
