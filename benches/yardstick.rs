//! The yardstick: as little as a program can do that moves files from one process to another one and
//! checks every byte. What Longhaul costs beyond this is what its promises cost.
//!
//! ```text
//! yardstick receive ADDRESS DIRECTORY [--buffer BYTES]              ends after one transfer
//! yardstick send ADDRESS DIRECTORY [--streams N] [--buffer BYTES]
//! ```
//!
//! Each stream is one TCP connection with one thread at each end, which takes the next piece of work,
//! reads, hashes and sends it; the other end receives, hashes and writes it, compares the digests, sets
//! owner, mode and time by descriptor and renames. Files above 64 MiB are cut into ranges of that
//! length. Directories get no metadata, nothing is compared, retried, resumed, flushed or made safe: it
//! is no tool.

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files above this are cut into ranges of this length, in bytes.
const RANGE_BYTES: u64 = 64 << 20;
/// Small files are gathered up to this many bytes before they are sent.
const PACK_BYTES: usize = 256 << 10;
/// What is read at once where a head is expected, in bytes.
const HEADER_BUFFER_BYTES: usize = 64 << 10;
/// The numbers at the head of a piece, 8 bytes each.
const HEADER_NUMBERS: usize = 9;
const USAGE: &str = "usage: yardstick receive ADDRESS DIRECTORY [--buffer BYTES]\n       \
                     yardstick send ADDRESS DIRECTORY [--streams N] [--buffer BYTES]";

/// A file, or a range of one.
struct Piece {
    path: PathBuf,
    /// Mode, owner, group, seconds and nanoseconds of the last change, size.
    meta: [u64; 6],
    offset: u64,
    length: u64,
}

fn main() -> Result<()> {
    let mut words = Vec::new();
    let (mut streams, mut buffer) = (2, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        let mut number =
            || -> Result<usize> { arguments.next().context(USAGE)?.parse().context(USAGE) };
        match word.as_str() {
            "--streams" => streams = number()?.max(1),
            "--buffer" => buffer = Some(number()?.max(4096)),
            // `cargo bench` adds it.
            "--bench" => {}
            _ => words.push(word),
        }
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["send", address, dir] => {
            send(address, Path::new(dir), streams, buffer.unwrap_or(256 << 10))
        }
        ["receive", address, dir] => receive(address, Path::new(dir), buffer.unwrap_or(1 << 20)),
        _ => bail!(USAGE),
    }
}

/// Every regular file below `dir`, the first of a directory before those deeper down.
fn list_pieces(dir: &Path) -> Result<Vec<Piece>> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.is_file() {
                let path = entry.path().strip_prefix(dir)?.to_owned();
                let numbers = [
                    u64::from(meta.mode() & 0o7777),
                    meta.uid().into(),
                    meta.gid().into(),
                    meta.mtime() as u64,
                    meta.mtime_nsec() as u64,
                    meta.len(),
                ];
                let mut offset = 0;
                loop {
                    let length = RANGE_BYTES.min(meta.len() - offset);
                    all.push(Piece { path: path.clone(), meta: numbers, offset, length });
                    offset += length;
                    if offset >= meta.len() {
                        break;
                    }
                }
            }
        }
    }
    Ok(all)
}

fn send(address: &str, dir: &Path, streams: usize, buffer: usize) -> Result<()> {
    let pieces = list_pieces(dir)?;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..streams)
            .map(|_| scope.spawn(|| send_stream(address, dir, (&pieces, &next), streams, buffer)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
    })
}

fn send_stream(
    address: &str,
    dir: &Path,
    (pieces, next): (&[Piece], &AtomicUsize),
    streams: usize,
    buffer: usize,
) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&(streams as u64).to_le_bytes())?;
    let dir = File::open(dir)?;
    let mut out: Vec<u8> = Vec::with_capacity(PACK_BYTES + buffer + 8192);
    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let name = piece.path.as_os_str().as_bytes();
        let numbers = piece.meta.iter().chain([&piece.offset, &piece.length]);
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        numbers.for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(name);
        let file: File =
            rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into();
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < piece.length {
            let want = (piece.length - at).min(buffer as u64) as usize;
            let start = out.len();
            out.resize(start + want, 0);
            file.read_exact_at(&mut out[start..], piece.offset + at)?;
            hasher.update(&out[start..]);
            at += want as u64;
            if out.len() >= PACK_BYTES {
                stream.write_all(&out)?;
                out.clear();
            }
        }
        out.extend_from_slice(hasher.finalize().as_bytes());
    }
    // A name without a length ends the stream; the receiver confirms it.
    out.extend_from_slice(&0u64.to_le_bytes());
    stream.write_all(&out)?;
    let mut done = [0];
    stream.read_exact(&mut done).context("the receiver did not take it")?;
    Ok(())
}

/// Large files of which ranges are missing, by path: how many bytes are there.
type Parts = Mutex<HashMap<Vec<u8>, u64>>;

fn receive(address: &str, dir: &Path, buffer: usize) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let dir = File::open(dir)?;
    let listener = TcpListener::bind(address)?;
    let parts = Parts::default();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        loop {
            let mut stream = listener.accept()?.0;
            let mut streams = [0; 8];
            stream.read_exact(&mut streams)?;
            let (dir, parts) = (&dir, &parts);
            threads.push(scope.spawn(move || receive_stream(stream, dir, parts, buffer)));
            if threads.len() as u64 >= u64::from_le_bytes(streams) {
                break;
            }
        }
        threads
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
    })
}

/// What arrives, in the one buffer of a connection.
struct StreamReader {
    stream: TcpStream,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl StreamReader {
    /// Up to `want` bytes that have arrived, at least one.
    fn read_some(&mut self, want: usize) -> Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, self.stream.read(&mut self.bytes)?);
            ensure!(self.end > 0, "the sender is gone");
        }
        let n = want.min(self.end - self.start);
        self.start += n;
        Ok(&self.bytes[self.start - n..self.start])
    }

    fn read_exact(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            if self.start == self.end && out.len() > self.bytes.len() {
                return Ok(self.stream.read_exact(out)?);
            }
            let some = self.read_some(out.len())?;
            let (now, later) = out.split_at_mut(some.len());
            now.copy_from_slice(some);
            out = later;
        }
        Ok(())
    }

    fn read_u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn receive_stream(stream: TcpStream, dir: &File, parts: &Parts, buffer: usize) -> Result<()> {
    let mut from = StreamReader { stream, bytes: vec![0; HEADER_BUFFER_BYTES], start: 0, end: 0 };
    let mut block = vec![0; buffer];
    let mut numbers = [0; HEADER_NUMBERS];
    loop {
        numbers[0] = from.read_u64()?;
        if numbers[0] == 0 {
            from.stream.write_all(&[1])?;
            return Ok(());
        }
        for number in &mut numbers[1..] {
            *number = from.read_u64()?;
        }
        let mut name = vec![0; numbers[0] as usize];
        from.read_exact(&mut name)?;
        receive_piece((&mut from, &mut block), dir, parts, &name, &numbers)?;
    }
}

fn receive_piece(
    (from, block): (&mut StreamReader, &mut [u8]),
    dir: &File,
    parts: &Parts,
    name: &[u8],
    numbers: &[u64; HEADER_NUMBERS],
) -> Result<()> {
    let [_, mode, uid, gid, seconds, nanoseconds, size, offset, length] = *numbers;
    let mut temporary = name.to_vec();
    temporary.extend_from_slice(b".part");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, &temporary, flags, Mode::RUSR | Mode::WUSR);
    let fd = match open() {
        Err(rustix::io::Errno::NOENT) => {
            make_parents(dir, name)?;
            open()?
        }
        fd => fd?,
    };
    let file = File::from(fd);
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < length {
        let want = ((length - at) as usize).min(block.len());
        from.read_exact(&mut block[..want])?;
        hasher.update(&block[..want]);
        file.write_all_at(&block[..want], offset + at)?;
        at += want as u64;
    }
    let mut digest = [0; 32];
    from.read_exact(&mut digest)?;
    ensure!(hasher.finalize() == blake3::Hash::from(digest), "{name:?} arrived damaged");
    if length < size {
        let mut parts = parts.lock();
        let there = parts.entry(name.to_vec()).or_default();
        *there += length;
        if *there < size {
            return Ok(());
        }
    }
    rustix::fs::fchown(
        &file,
        Some(rustix::fs::Uid::from_raw(uid as u32)),
        Some(rustix::fs::Gid::from_raw(gid as u32)),
    )?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode as u32))?;
    let time = Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds as i64 };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
    rustix::fs::renameat(dir, &temporary, dir, name)?;
    Ok(())
}

fn make_parents(dir: &File, name: &[u8]) -> Result<()> {
    for (i, _) in name.iter().enumerate().filter(|(_, b)| **b == b'/') {
        match rustix::fs::mkdirat(dir, &name[..i], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
