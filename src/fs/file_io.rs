//! Reads, writes and the data map of open files.

use super::errno::SysResult;
use crate::wire::content::{ContentHasher, HashMode};
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use std::convert::Infallible;
use std::ops::Range;

/// Bytes that are read at once.
pub(super) const READ_BUFFER_BYTES: usize = 1 << 20;

/// The shortest run of zeros that becomes a hole, in bytes.
const MIN_HOLE_BYTES: usize = 64 << 10;

/// To open a file that is only read: no link is followed, and a FIFO does not block.
pub(super) const READ_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Calls `read` with the rest of `buffer` and the count of bytes before it, until the buffer is full or the file ends.
pub(super) fn fill(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> SysResult<usize>,
) -> SysResult<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match retry_on_intr(|| read(&mut buffer[done..], done as u64))? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// `pread` until the buffer is full or the file ends.
pub(super) fn read_full_at(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> SysResult<usize> {
    fill(buffer, |rest, done| rustix::io::pread(fd, rest, offset + done))
}

/// A part of a file.
pub(super) enum Chunk<'a> {
    /// A hole of this length.
    Hole(u64),
    Data(&'a [u8]),
}

/// Passes `range` of a file to `step`, in order and in pieces that fit in `buffer`, until `step` returns `false` or the
/// file ends. Returns the offset up to which `step` accepted it.
pub(super) fn read_chunks(
    fd: &OwnedFd,
    range: Range<u64>,
    buffer: &mut [u8],
    mut step: impl FnMut(Chunk<'_>) -> bool,
) -> SysResult<u64> {
    let mut at = range.start;
    while let Some((start, end)) = next_data_run(fd, at, range.end)? {
        if start > at && !step(Chunk::Hole(start - at)) {
            return Ok(at);
        }
        at = start;
        while at < end {
            let wanted = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            let n = read_full_at(fd, &mut buffer[..wanted], at)?;
            if n == 0 || !step(Chunk::Data(&buffer[..n])) {
                return Ok(at);
            }
            at += n as u64;
        }
    }
    let is_accepted = at >= range.end || step(Chunk::Hole(range.end - at));
    Ok(if is_accepted { range.end.max(at) } else { at })
}

/// The state of a hasher after `range` of a file; `None` where the file ends before. Holes are not read.
pub(super) fn hash_range(
    fd: &OwnedFd,
    range: Range<u64>,
    mode: HashMode,
) -> SysResult<Option<ContentHasher>> {
    let mut hasher = ContentHasher::at_offset(mode, range.start);
    let length = usize::try_from(range.end.saturating_sub(range.start));
    let mut buffer = vec![0; length.map_or(READ_BUFFER_BYTES, |n| n.clamp(1, READ_BUFFER_BYTES))];
    let end = range.end;
    let reached = read_chunks(fd, range, &mut buffer, |chunk| match chunk {
        Chunk::Hole(length) => hasher.update_zeros(length, || Ok::<_, Infallible>(())).is_ok(),
        Chunk::Data(data) => {
            hasher.update(data);
            true
        }
    })?;
    Ok((reached == end).then_some(hasher))
}

/// The next run of data of a file from `from` on, up to `end`. A file system without holes has only data.
pub(super) fn next_data_run(fd: &OwnedFd, from: u64, end: u64) -> SysResult<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(fd, SeekFrom::Data(from)) {
        Ok(start) if start < end => start,
        // Behind the last data.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, end))),
        Err(errno) => return Err(errno),
    };
    match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
        Ok(stop) => Ok(Some((start, stop.min(end)))),
        // Truncated since: the reader detects it.
        Err(Errno::NXIO) => Ok(Some((start, end))),
        Err(errno) => Err(errno),
    }
}

pub(super) fn write_all_at(fd: &OwnedFd, mut content: &[u8], mut offset: u64) -> SysResult<()> {
    while !content.is_empty() {
        match retry_on_intr(|| rustix::io::pwrite(fd, content, offset))? {
            0 => return Err(Errno::IO),
            n => {
                content = &content[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// The runs of zeros in `content`, of at least [`MIN_HOLE_BYTES`] each, and the runs between them. Without `found` all of
/// `content` is one run of data.
pub(super) fn split_zero_runs(
    content: &[u8],
    found: bool,
) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
    let is_hole = move |at: usize| {
        found && content.get(at..at + MIN_HOLE_BYTES).is_some_and(|b| b.iter().all(|b| *b == 0))
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        if start == content.len() {
            return None;
        }
        let zeros = is_hole(start);
        while at < content.len() && (at == start || (found && is_hole(at) == zeros)) {
            at = if found { content.len().min(at + MIN_HOLE_BYTES) } else { content.len() };
        }
        Some((start..at, zeros))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_zeros_are_found_at_any_offset() {
        let mut content = vec![1; MIN_HOLE_BYTES];
        content.extend(vec![0; 2 * MIN_HOLE_BYTES]);
        content.extend(vec![1; 10]);
        let runs: Vec<_> = split_zero_runs(&content, true).collect();
        let end = 3 * MIN_HOLE_BYTES + 10;
        assert_eq!(
            runs,
            [
                (0..MIN_HOLE_BYTES, false),
                (MIN_HOLE_BYTES..3 * MIN_HOLE_BYTES, true),
                (3 * MIN_HOLE_BYTES..end, false)
            ]
        );
        assert_eq!(split_zero_runs(&content, false).collect::<Vec<_>>(), [(0..end, false)]);
        assert_eq!(split_zero_runs(&[0; 100], true).collect::<Vec<_>>(), [(0..100, false)]);
        assert_eq!(split_zero_runs(&[], true).count(), 0);
    }
}
