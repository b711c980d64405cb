//! Reflinks: where source and destination are in one file system that can share blocks (XFS, Btrfs and others),
//! content is neither read nor written. The new file has the source's content of one moment, holes included. File
//! systems on a server (NFS 4.2, CephFS) may copy there instead.

use super::errno::SysResult;
use super::fs_type::can_copy_on_server;
use parking_lot::Mutex;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use std::collections::BTreeSet;

/// Bytes of one request; between two requests the copy can be stopped.
const COPY_CHUNK_BYTES: u64 = 8 << 20;

/// Device numbers of sources and destinations that can't share blocks; they are not tried again.
static UNSUPPORTED_DEVICE_PAIRS: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// Whether two devices may share blocks, as far as is known.
pub(super) fn can_reflink(from: u64, to: u64) -> bool {
    !UNSUPPORTED_DEVICE_PAIRS.lock().contains(&(from, to))
}

/// Makes the new file `to` a reflink of `from`, which is on the device `dev`; `false` where that is impossible, and
/// `to` is empty. For a copy on a server, `dense` is the length of a source without holes, and `should_continue` is
/// called before each piece with its length.
pub(super) fn reflink_or_copy(
    (from, dev): (&OwnedFd, u64),
    to: &OwnedFd,
    dense: Option<u64>,
    should_continue: &mut dyn FnMut(u64) -> bool,
) -> SysResult<bool> {
    let own = rustix::fs::fstat(to)?.st_dev;
    if !can_reflink(dev, own) {
        return Ok(false);
    }
    match rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => return Ok(true),
        // Two file systems, or one without shared blocks.
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            if dev == own && can_copy_on_server(to) {
                return dense
                    .map_or(Ok(false), |length| copy_in_kernel(from, to, length, should_continue));
            }
            UNSUPPORTED_DEVICE_PAIRS.lock().insert((dev, own));
        }
        // It may concern this file only. The writes that follow report it.
        Err(_) => {}
    }
    rustix::fs::ftruncate(to, 0)?;
    Ok(false)
}

/// Has `length` bytes of `from` copied to the empty file `to` without reading them here: by the server or by the
/// kernel. `false` where that is impossible, `from` is shorter or `should_continue` returns false: then `to` is empty.
fn copy_in_kernel(
    from: &OwnedFd,
    to: &OwnedFd,
    length: u64,
    should_continue: &mut dyn FnMut(u64) -> bool,
) -> SysResult<bool> {
    let (mut read, mut written) = (0, 0);
    while written < length {
        let piece = COPY_CHUNK_BYTES.min(length - written);
        let size = usize::try_from(piece).unwrap_or(usize::MAX);
        let copied = should_continue(piece).then(|| {
            retry_on_intr(|| {
                rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), size)
            })
        });
        // What is wrong is found again when it is read and written.
        if !matches!(copied, Some(Ok(1..))) {
            rustix::fs::ftruncate(to, 0)?;
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};

    /// The copied prefix of this length of a source, if it is copied.
    fn copy_prefix(
        length: u64,
        should_continue: &mut dyn FnMut(u64) -> bool,
    ) -> (bool, Vec<u8>, Vec<u8>) {
        let (mut from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let content: Vec<u8> = (0..(20u32 << 20)).map(|n| (n / 7) as u8).collect();
        from.write_all(&content).unwrap();
        let (source, target) = (from.into(), to.try_clone().unwrap().into());
        let done = copy_in_kernel(&source, &target, length, should_continue).unwrap();
        let mut found = Vec::new();
        to.rewind().unwrap();
        to.read_to_end(&mut found).unwrap();
        (done, content, found)
    }

    #[test]
    fn the_kernel_copies_the_whole_file_in_chunks() {
        let mut pieces = Vec::new();
        let (done, content, found) = copy_prefix(20 << 20, &mut |piece| {
            pieces.push(piece);
            true
        });
        assert!(done && content == found, "{} of {}", found.len(), content.len());
        assert!(
            pieces.len() >= 3 && pieces.iter().all(|piece| *piece <= COPY_CHUNK_BYTES),
            "{pieces:?}"
        );
    }

    #[test]
    fn a_short_source_or_a_stopped_copy_leaves_an_empty_file() {
        let (done, _, found) = copy_prefix((20 << 20) + 1, &mut |_| true);
        assert!(!done && found.is_empty(), "{}", found.len());
        let mut asked = 0;
        let (done, _, found) = copy_prefix(20 << 20, &mut |_| {
            asked += 1;
            asked < 2
        });
        assert!(!done && found.is_empty() && asked == 2, "{} after {asked}", found.len());
    }

    #[test]
    fn a_local_file_system_is_no_server_copy_file_system() {
        assert!(!can_copy_on_server(tempfile::tempfile().unwrap()));
    }
}
