//! Whether a part file still has the ranges that were written to it. One that was removed and created again has holes
//! in place of earlier ranges; published, it would be a file of zeros without any error.

use super::errno::SysResult;
use super::file_io::hash_range;
use crate::wire::Digest;
use crate::wire::content::HashMode;
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

impl SentRanges<'_> {
    /// Whether the first `size` bytes of `fd` are what was sent. Without `all`, only ranges with a hole in them are
    /// read: the source may have the hole too. Where the file system reports no holes, no range counts as lost.
    pub(super) fn are_in(&self, fd: &OwnedFd, size: u64, all: bool) -> SysResult<bool> {
        let mut at = 0;
        while at < size {
            if !all {
                at = match rustix::fs::seek(fd, SeekFrom::Hole(at)) {
                    Ok(hole) if hole < size => hole,
                    Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(true),
                    Err(errno) => return Err(errno),
                };
            }
            let length = self.range_bytes.max(1);
            let start = at / length * length;
            let end = start.saturating_add(length).min(size);
            let sent = usize::try_from(at / length).ok().and_then(|index| self.digests.get(index));
            let hasher = hash_range(fd, start..end, self.hashing)?.ok_or(Errno::IO)?;
            if sent != hasher.chaining_value().as_ref() {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }
}
