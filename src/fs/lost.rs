//! Whether a part file still holds what was written to it. One that was removed and made again by a
//! later range has holes where the earlier ranges were; published, it would be a file of zeros that
//! nobody notices.

use super::source::read_full;
use crate::wire::Digest;
use blake3::hazmat::HasherExt as _;
use rustix::fd::OwnedFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// What the ranges of a file were when they were sent.
#[derive(Debug, Clone, Copy)]
pub struct Ranges<'a> {
    /// The length of all but the last, in bytes.
    pub length: u64,
    /// The BLAKE3 chaining value of each, in order.
    pub values: &'a [Digest],
}

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Whether the first `size` bytes of `fd` are what was sent. Only ranges with a hole in them are read:
/// runs of zeros are left to be holes as well. Where the file system knows no holes, nothing is lost
/// as far as it tells.
pub(super) fn holds(fd: &OwnedFd, size: u64, ranges: Ranges<'_>) -> Result<bool, Errno> {
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let hole = match rustix::fs::seek(fd, SeekFrom::Hole(at)) {
            Ok(hole) if hole < size => hole,
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(true),
            Err(errno) => return Err(errno),
        };
        let index = hole / ranges.length.max(1);
        let start = index * ranges.length;
        let end = start.saturating_add(ranges.length).min(size);
        let value = usize::try_from(index).ok().and_then(|index| ranges.values.get(index));
        buffer.resize(PIECE, 0);
        if value != Some(&value_of(fd, start, end, &mut buffer)?) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

/// The chaining value of the bytes from `start` to `end`, which is behind it.
fn value_of(fd: &OwnedFd, start: u64, end: u64, buffer: &mut [u8]) -> Result<Digest, Errno> {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start);
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
        let n = read_full(fd, &mut buffer[..wanted], at)?;
        if n == 0 {
            return Err(Errno::IO);
        }
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(Digest(hasher.finalize_non_root()))
}
