//! The protocol between the kernel and a file system in user space: `linux/fuse.h`, version 7.31, as far as it is
//! needed. Numbers are in native byte order.

use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

pub(super) const LOOKUP: u32 = 1;
pub(super) const FORGET: u32 = 2;
pub(super) const GETATTR: u32 = 3;
pub(super) const SETATTR: u32 = 4;
pub(super) const READLINK: u32 = 5;
pub(super) const SYMLINK: u32 = 6;
pub(super) const MKNOD: u32 = 8;
pub(super) const MKDIR: u32 = 9;
pub(super) const UNLINK: u32 = 10;
pub(super) const RMDIR: u32 = 11;
pub(super) const RENAME: u32 = 12;
pub(super) const LINK: u32 = 13;
pub(super) const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const WRITE: u32 = 16;
pub(super) const STATFS: u32 = 17;
pub(super) const RELEASE: u32 = 18;
pub(super) const FSYNC: u32 = 20;
pub(super) const FLUSH: u32 = 25;
pub(super) const INIT: u32 = 26;
pub(super) const OPENDIR: u32 = 27;
pub(super) const READDIR: u32 = 28;
pub(super) const RELEASEDIR: u32 = 29;
pub(super) const FSYNCDIR: u32 = 30;
pub(super) const CREATE: u32 = 35;
pub(super) const INTERRUPT: u32 = 36;
pub(super) const DESTROY: u32 = 38;
pub(super) const BATCH_FORGET: u32 = 42;
pub(super) const RENAME2: u32 = 45;
pub(super) const LSEEK: u32 = 46;

/// No write is longer, in bytes; what is read from the kernel at once is this and a head.
pub(super) const MAX_WRITE_BYTES: u32 = 128 << 10;
/// A handle with reads and writes that arrive here as they were requested.
pub(super) const DIRECT_IO: u32 = 1;

const HEADER_BYTES: usize = 40;

/// What was asked, read from its beginning.
pub(super) struct FuseRequest<'a> {
    pub(super) call: u32,
    unique: u64,
    /// What it is about.
    pub(super) node: u64,
    remaining: &'a [u8],
}

impl<'a> FuseRequest<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let mut ask = FuseRequest { call: 0, unique: 0, node: 0, remaining: bytes };
        let _length = ask.take_u32();
        (ask.call, ask.unique, ask.node) = (ask.take_u32(), ask.take_u64(), ask.take_u64());
        ask.remaining = &bytes[HEADER_BYTES..];
        ask
    }

    pub(super) fn take_u32(&mut self) -> u32 {
        let (number, rest) = self.remaining.split_first_chunk().expect("a whole request");
        self.remaining = rest;
        u32::from_ne_bytes(*number)
    }

    pub(super) fn take_u64(&mut self) -> u64 {
        let (number, rest) = self.remaining.split_first_chunk().expect("a whole request");
        self.remaining = rest;
        u64::from_ne_bytes(*number)
    }

    /// A text with a zero behind it.
    pub(super) fn take_text(&mut self) -> OsString {
        let end = self.remaining.iter().position(|b| *b == 0).expect("a whole request");
        let text = OsString::from_vec(self.remaining[..end].to_vec());
        self.remaining = &self.remaining[end + 1..];
        text
    }

    /// All that is left.
    pub(super) fn remaining(&self) -> &'a [u8] {
        self.remaining
    }

    /// The whole answer to it.
    pub(super) fn encode_reply(&self, done: Result<Vec<u8>, Errno>) -> Vec<u8> {
        let (error, body) = match done {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let mut out = FuseReply::default();
        out.put_u32(16 + body.len() as u32).put_u32(error as u32).put_u64(self.unique);
        out.0.extend(body);
        out.0
    }
}

/// The body of an answer.
#[derive(Default)]
pub(super) struct FuseReply(pub(super) Vec<u8>);

impl FuseReply {
    pub(super) fn put_u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(super) fn put_u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    /// The kernel remembers nothing: what is done to the directory behind it shows at once.
    fn put_attr(&mut self, ino: u64, meta: &Metadata) -> &mut Self {
        self.put_u64(ino).put_u64(meta.len()).put_u64(meta.blocks());
        self.put_u64(meta.atime() as u64).put_u64(meta.mtime() as u64).put_u64(meta.ctime() as u64);
        self.put_u32(meta.atime_nsec() as u32).put_u32(meta.mtime_nsec() as u32);
        self.put_u32(meta.ctime_nsec() as u32).put_u32(meta.mode()).put_u32(meta.nlink() as u32);
        self.put_u32(meta.uid())
            .put_u32(meta.gid())
            .put_u32(meta.rdev() as u32)
            .put_u32(4096)
            .put_u32(0)
    }

    /// What GETATTR and SETATTR are answered.
    pub(super) fn attributes(ino: u64, meta: &Metadata) -> Vec<u8> {
        let mut out = FuseReply::default();
        out.put_u64(0).put_u64(0).put_attr(ino, meta);
        out.0
    }

    /// What everything is answered that finds or makes a name.
    pub(super) fn entry(ino: u64, meta: &Metadata) -> Vec<u8> {
        let mut out = FuseReply::default();
        out.put_u64(ino).put_u64(0).put_u64(0).put_u64(0).put_u64(0).put_attr(ino, meta);
        out.0
    }

    pub(super) fn opened(handle: u64, how: u32) -> Vec<u8> {
        let mut out = FuseReply::default();
        out.put_u64(handle).put_u32(how).put_u32(0);
        out.0
    }

    /// Adds a name to those of a directory; false where it would be more than `most` bytes.
    pub(super) fn put_dir_entry(&mut self, ino: u64, next: u64, name: &OsStr, most: usize) -> bool {
        let bytes = name.as_bytes();
        let padded = bytes.len().next_multiple_of(8);
        if self.0.len() + 24 + padded > most {
            return false;
        }
        // Of what kind it is, is left to be asked for.
        self.put_u64(ino).put_u64(next).put_u32(bytes.len() as u32).put_u32(0);
        self.0.extend(bytes);
        self.0.resize(self.0.len() + padded - bytes.len(), 0);
        true
    }
}

/// Answers the kernel's first request.
pub(super) fn handle_init(ask: &mut FuseRequest<'_>) -> Result<Vec<u8>, Errno> {
    const BIG_WRITES: u32 = 1 << 5;
    const PARALLEL: u32 = 1 << 18;
    let (_major, _minor, ahead, offered) =
        (ask.take_u32(), ask.take_u32(), ask.take_u32(), ask.take_u32());
    let wanted = BIG_WRITES | PARALLEL;
    if offered & wanted != wanted {
        return Err(Errno::PROTO);
    }
    let mut out = FuseReply::default();
    // Many may be under way at once: some of them hang.
    out.put_u32(7)
        .put_u32(31)
        .put_u32(ahead)
        .put_u32(wanted)
        .put_u32(64 | 48 << 16)
        .put_u32(MAX_WRITE_BYTES)
        .put_u32(1);
    out.0.resize(64, 0);
    Ok(out.0)
}

/// The errno of an error of the standard library.
pub(super) fn to_errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
