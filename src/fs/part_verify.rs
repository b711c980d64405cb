//! Whether a part file still holds what was written to it. One that was removed and made again by a
//! later range has holes where the earlier ranges were; published, it would be a file of zeros that
//! nobody notices.

use super::errno::SysResult;
use super::file_io::{next_data_run, read_full_at};
use crate::wire::Digest;
use crate::wire::content::{ContentHasher, HashMode};
use rustix::fd::OwnedFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// What the ranges of a file were when they were sent.
#[derive(Debug, Clone, Copy)]
pub struct SentRanges<'a> {
    /// The length of all but the last, in bytes.
    pub range_bytes: u64,
    /// The value of each, in order …
    pub digests: &'a [Digest],
    /// … when it is hashed like this.
    pub hashing: HashMode,
}

/// Bytes that are read at once.
const READ_BUFFER_BYTES: usize = 1 << 20;

/// Whether the first `size` bytes of `fd` are what was sent. Only ranges with a hole in them are looked
/// at: a hole may be one of the source's. Where the file system knows no holes, nothing is lost as far
/// as it tells.
pub(super) fn verify_ranges_with_holes(
    fd: &OwnedFd,
    size: u64,
    ranges: SentRanges<'_>,
) -> SysResult<bool> {
    let mut at = 0;
    while at < size {
        let hole = match rustix::fs::seek(fd, SeekFrom::Hole(at)) {
            Ok(hole) if hole < size => hole,
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(true),
            Err(errno) => return Err(errno),
        };
        match verify_range_at(fd, size, ranges, hole)? {
            Some(end) => at = end,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// The same, of every range.
pub(super) fn verify_all_ranges(
    fd: &OwnedFd,
    size: u64,
    ranges: SentRanges<'_>,
) -> SysResult<bool> {
    let mut at = 0;
    while at < size {
        match verify_range_at(fd, size, ranges, at)? {
            Some(end) => at = end,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Where the range that holds `at` ends, if its content is right.
fn verify_range_at(
    fd: &OwnedFd,
    size: u64,
    ranges: SentRanges<'_>,
    at: u64,
) -> SysResult<Option<u64>> {
    let length = ranges.range_bytes.max(1);
    let index = at / length;
    let start = index * length;
    let end = start.saturating_add(length).min(size);
    let value = usize::try_from(index).ok().and_then(|index| ranges.digests.get(index));
    Ok((value == hash_range(fd, start, end, ranges.hashing)?.as_ref()).then_some(end))
}

/// The value of the bytes from `start` to `end`, which is behind it. Holes are not read.
fn hash_range(fd: &OwnedFd, start: u64, end: u64, hashing: HashMode) -> SysResult<Option<Digest>> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut hasher = ContentHasher::at_offset(hashing, start);
    let mut at = start;
    while at < end {
        let (data, stop) = next_data_run(fd, at, end)?.unwrap_or((end, end));
        hasher.update_zeros(data - at, || Ok::<_, Errno>(()))?;
        at = data;
        while at < stop {
            let wanted = buffer_len(stop - at);
            let n = read_full_at(fd, &mut buffer[..wanted], at)?;
            if n == 0 {
                return Err(Errno::IO);
            }
            hasher.update(&buffer[..n]);
            at += n as u64;
        }
    }
    Ok(hasher.chaining_value())
}

fn buffer_len(left: u64) -> usize {
    usize::try_from(left).map_or(READ_BUFFER_BYTES, |n| n.min(READ_BUFFER_BYTES))
}
