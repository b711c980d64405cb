//! Reads, writes and the data map of open files.

use super::errno::SysResult;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::ops::Range;

/// Zeros from this length on become a hole, where they shall.
const MIN_HOLE_BYTES: usize = 64 << 10;

/// `pread` until the buffer is full or the file ends.
pub(super) fn read_full_at(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> SysResult<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// The next run of data of a file, from `from` on and up to `end` at most. A file system that knows no
/// holes has only data.
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
        // Cut off meanwhile: whoever reads it will see.
        Err(Errno::NXIO) => Ok(Some((start, end))),
        Err(errno) => Err(errno),
    }
}

pub(super) fn write_all_at(fd: &OwnedFd, mut content: &[u8], mut offset: u64) -> SysResult<()> {
    while !content.is_empty() {
        match rustix::io::pwrite(fd.as_fd(), content, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                content = &content[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The runs of `content` that are all zeros, of at least [`HOLE`] bytes each, and what is between them;
/// all of it as one run that is not, unless they are to be `found`.
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
