//! Where content goes at a destination: the file of a pack, or the part file of a range. Both ends of
//! a copy on one host, and the receiving end of a connection, write through this.

use super::source_reader::{MAX_KEEP_RUN_BYTES, Span};
use crate::fs::{Cause, FsError, NewFile, PartFile, Result, ReuseSource, Side};
use crate::wire::content::{ContentHasher, HashMode};
use crate::wire::{Digest, RelPath};

/// A file that is being written, in order.
pub trait ContentWriter {
    /// Writes `content`, which begins at `at`.
    ///
    /// # Errors
    /// It could not be written.
    fn write(&mut self, content: &[u8], at: u64) -> Result<()>;
    /// Makes a hole of `span`.
    ///
    /// # Errors
    /// It could not be made.
    fn hole(&mut self, span: Span) -> Result<()>;
    /// What content can be kept in.
    fn part_file(&self) -> Option<&PartFile>;
}

impl ContentWriter for NewFile {
    fn write(&mut self, content: &[u8], _: u64) -> Result<()> {
        NewFile::write(self, content)
    }

    fn hole(&mut self, span: Span) -> Result<()> {
        self.append_hole(span.length);
        Ok(())
    }

    fn part_file(&self) -> Option<&PartFile> {
        None
    }
}

impl ContentWriter for PartFile {
    fn write(&mut self, content: &[u8], at: u64) -> Result<()> {
        self.write_at(content, at)
    }

    fn hole(&mut self, span: Span) -> Result<()> {
        self.write_hole(span.offset, span.length)
    }

    fn part_file(&self) -> Option<&PartFile> {
        Some(self)
    }
}

/// What reading back needs.
pub struct ReadBack<'a> {
    /// Of the file, for errors.
    pub path: &'a RelPath,
    /// What is read is hashed.
    pub hasher: &'a mut ContentHasher,
    /// Room to read to.
    pub buffer: &'a mut [u8],
}

/// Keeps `span` of `part` as the destination has it, and reads it back where it is to be hashed: what
/// is kept was compared a while ago. `check_active` is called repeatedly.
///
/// # Errors
/// The error of `check_active`; inside: the error of keeping or reading.
pub fn keep_span<E>(
    part: &PartFile,
    from: ReuseSource,
    span: Span,
    mut back: Option<ReadBack<'_>>,
    check_active: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<Result<()>, E> {
    for piece in span.split(MAX_KEEP_RUN_BYTES) {
        check_active()?;
        if let Err(error) = part.reuse_range(piece.offset, piece.length, from) {
            return Ok(Err(error));
        }
        let Some(back) = &mut back else { continue };
        for piece in piece.split(back.buffer.len() as u64) {
            check_active()?;
            let room = &mut back.buffer[..piece.length as usize];
            match part.read_at(room, piece.offset) {
                Ok(n) if n == room.len() => back.hasher.update(room),
                Ok(_) => return Ok(Err(lost_error(back.path))),
                Err(error) => return Ok(Err(error)),
            };
        }
    }
    Ok(Ok(()))
}

/// [`keep_span`] for blocks of these values, which are read back and checked one by one where that is requested.
///
/// # Errors
/// Like [`keep_span`].
pub fn keep_blocks<E>(
    part: &PartFile,
    from: ReuseSource,
    blocks: impl Iterator<Item = (Span, Digest)>,
    back: Option<(&RelPath, HashMode, &mut [u8])>,
    check_active: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<Result<()>, E> {
    let Some((path, hashing, buffer)) = back else {
        for (block, _) in blocks {
            if let Err(error) = keep_span(part, from, block, None, &check_active)? {
                return Ok(Err(error));
            }
        }
        return Ok(Ok(()));
    };
    for (block, value) in blocks {
        let mut hasher = ContentHasher::at_offset(hashing, block.offset);
        let back = ReadBack { path, hasher: &mut hasher, buffer: &mut *buffer };
        if let Err(error) = keep_span(part, from, block, Some(back), &check_active)? {
            return Ok(Err(error));
        }
        if hasher.chaining_value() != Some(value) {
            return Ok(Err(lost_error(path)));
        }
    }
    Ok(Ok(()))
}

/// The error of kept content that is another one by now.
fn lost_error(path: &RelPath) -> FsError {
    FsError::new(Side::Destination, "keep", path.as_bytes(), Cause::PartDataLost)
}
