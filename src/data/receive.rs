//! The receiving end: manifests, packs and ranges into a destination. Everything here blocks and runs
//! in threads of its own. The ticket is checked before.

use super::content_writer::{ContentWriter, ReadBack, keep_span};
use super::frame::{ChunkSource, Frame, FrameError, FrameReader, MAX_PACK_FILES};
use super::protocol::{
    EntryDigest, IndexedDirError, OfferReply, PackReply, RangeReply, WriteOutcome, dir_index,
    index_warnings,
};
use super::source_reader::Span;
use crate::fs::{FsError, NewFile, OfferDecision, PartFile, ReconcileResult, ReuseSource, Target};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::ContentHasher;
use crate::wire::manifest::{Entry, EntryKind, MAX_MANIFEST_BYTES, Manifest, ManifestDir};
use crate::wire::outcome::EntryError;
use crate::wire::task::range_length;
use crate::wire::ticket::Claims;
use crate::wire::{Digest, RelPath};

/// Creates and updates the entries of `manifest` that need no content, and decides what the others need.
pub fn handle_offer(target: &Target, manifest: &Manifest, dry_run: bool) -> OfferReply {
    let reply = target.with_root_checked(|| Ok(reconcile_offer(target, manifest, dry_run)));
    reply.unwrap_or_else(|gone| {
        let failed = |_: &Entry| Err(gone.to_entry_error());
        let results = manifest.entries.iter().map(failed).collect();
        OfferReply { results, needs_clean_up: target.has_anchors(), ..OfferReply::default() }
    })
}

fn reconcile_offer(target: &Target, manifest: &Manifest, dry_run: bool) -> OfferReply {
    let ReconcileResult { decisions: results, digests, created_dirs } = target.reconcile(manifest);
    // An attempt that died between its last file and its last stamp left directories with a time of
    // their own. Where content follows, the pack stamps them.
    let later =
        results.iter().any(|answer| matches!(answer, Ok(OfferDecision::NeedsContent { .. })));
    let dir_errors =
        if dry_run || later { Vec::new() } else { apply_dir_metadata(target, &manifest.dirs) };
    let digests = digests.into_iter().enumerate();
    let paths = manifest.entries.iter().map(|entry| &entry.path);
    OfferReply {
        results,
        dir_errors,
        digests: digests
            .filter_map(|(i, digest)| Some(EntryDigest { entry: i as u32, digest: digest? }))
            .collect(),
        warnings: index_warnings(target.take_metadata_warnings(), paths, &manifest.dirs),
        needs_clean_up: target.has_anchors(),
        created_dirs,
    }
}

/// Sets the metadata of `dirs`; returns those that failed.
fn apply_dir_metadata(target: &Target, dirs: &[ManifestDir]) -> Vec<IndexedDirError> {
    let failed = target.apply_dir_metadata(dirs).into_iter();
    let indexed =
        |error: EntryError| Some(IndexedDirError { dir: dir_index(dirs, &error.path)?, error });
    failed.filter_map(indexed).collect()
}

/// One pack being read.
struct PackReceiver<'a, P> {
    frames: &'a mut FrameReader<P>,
    target: &'a Target,
    claims: &'a Claims,
    files: Vec<WriteOutcome>,
    /// The paths of `files`.
    paths: Vec<RelPath>,
    buffer: &'a mut [u8],
}

/// Reads a pack to its end; content is gathered in `buffer`, and as much of it as goes in there is written at
/// once.
///
/// # Errors
/// A body that is none, or that broke off. Files before that point are at their places, all others
/// left nothing behind, and the directories are stamped.
pub fn receive_pack<P: ChunkSource>(
    frames: &mut FrameReader<P>,
    target: &Target,
    claims: &Claims,
    buffer: &mut [u8],
) -> Result<PackReply, FrameError> {
    let Frame::Dirs(dirs) = frames.next_frame()? else {
        return Err(FrameError::unexpected("a pack begins with its directories"));
    };
    let (files, paths) = (Vec::new(), Vec::new());
    let mut pack = PackReceiver { frames, target, claims, files, paths, buffer };
    let end = pack.receive_files();
    let dir_errors = apply_dir_metadata(target, &dirs);
    end?;
    pack.frames.check_no_trailing_bytes()?;
    if let Err(gone) = target.check_root() {
        for outcome in pack.files.iter_mut().filter(|outcome| **outcome == WriteOutcome::Written) {
            *outcome = WriteOutcome::Failed(gone.to_entry_error());
        }
    }
    let warnings = index_warnings(target.take_metadata_warnings(), pack.paths.iter(), &dirs);
    Ok(PackReply { files: pack.files, dir_errors, warnings, needs_clean_up: target.has_anchors() })
}

impl<P: ChunkSource> PackReceiver<'_, P> {
    fn receive_files(&mut self) -> Result<(), FrameError> {
        // The paths are kept until the end of the pack.
        let mut path_bytes = 0;
        loop {
            match self.frames.next_frame()? {
                Frame::File(_) if self.files.len() == MAX_PACK_FILES => {
                    return Err(FrameError::Unexpected(format!(
                        "a pack of more than {MAX_PACK_FILES} files"
                    )));
                }
                Frame::File(entry) => {
                    path_bytes += entry.path.as_bytes().len();
                    if path_bytes > MAX_MANIFEST_BYTES {
                        return Err(FrameError::unexpected("paths are longer than a manifest"));
                    }
                    let outcome = self.receive_file(&entry)?;
                    self.files.push(outcome);
                    self.paths.push(entry.path);
                }
                Frame::End(n) if n as usize == self.files.len() => return Ok(()),
                Frame::End(n) => {
                    let reason = format!("the pack ends with {n} files, {} came", self.files.len());
                    return Err(FrameError::Unexpected(reason));
                }
                _ => return Err(FrameError::unexpected("a file or the end was expected")),
            }
        }
    }

    /// One file. What can't be kept is read all the same: the files behind it can.
    fn receive_file(&mut self, entry: &Entry) -> Result<WriteOutcome, FrameError> {
        let EntryKind::File { size } = entry.kind else {
            return Err(FrameError::unexpected("only regular files have content"));
        };
        self.frames.check_active()?;
        let mut receiver = ContentReceiver {
            frames: &mut *self.frames,
            store: self.target.create(entry, self.claims.attempt),
            span: Span { offset: 0, length: size },
            allows_keep: false,
            hasher: self.claims.rules.receiver_hash_mode().map(ContentHasher::new),
            path: &entry.path,
            buffer: self.buffer,
            gathered_bytes: 0,
            gathered_offset: 0,
        };
        let end = receiver.receive_all()?;
        Ok(receiver.finish(
            end,
            |hasher| Some(hasher.digest()),
            |file| NewFile::publish(file, entry),
        ))
    }
}

/// Content being received; the file it goes to has failed where `store` is an error.
struct ContentReceiver<'a, S, P> {
    frames: &'a mut FrameReader<P>,
    store: Result<S, FsError>,
    span: Span,
    /// Whether the peer may send what is kept.
    allows_keep: bool,
    /// Where content must come with its digest.
    hasher: Option<ContentHasher>,
    path: &'a RelPath,
    /// To collect content, and to read back what is kept.
    buffer: &'a mut [u8],
    /// So much of the buffer is content that is neither hashed nor written …
    gathered_bytes: usize,
    /// … and belongs here.
    gathered_offset: u64,
}

/// Does `step`, unless one before it has failed.
fn write_unless_failed<S>(
    store: &mut Result<S, FsError>,
    step: impl FnOnce(&mut S) -> Result<(), FsError>,
) {
    if let Ok(open) = store
        && let Err(error) = step(open)
    {
        *store = Err(error);
    }
}

/// How content ended.
enum ContentEnd {
    /// With all of it, or not; with the sender's digest, if it sent one.
    Ended(bool, Option<Digest>),
    Aborted,
}

impl<S: ContentWriter, P: ChunkSource> ContentReceiver<'_, S, P> {
    /// The outcome of content that ended. `digest_of` is the digest to compare with that of the sender; `complete`
    /// ends writing where they match.
    fn finish(
        self,
        end: ContentEnd,
        digest_of: impl FnOnce(ContentHasher) -> Option<Digest>,
        complete: impl FnOnce(S) -> Result<(), FsError>,
    ) -> WriteOutcome {
        let matches = match (end, self.hasher) {
            (ContentEnd::Aborted, _) => return WriteOutcome::Aborted,
            (ContentEnd::Ended(is_whole, Some(digest)), Some(hasher)) => {
                is_whole && digest_of(hasher) == Some(digest)
            }
            (ContentEnd::Ended(is_whole, _), _) => is_whole,
        };
        match self.store {
            Ok(_) if !matches => WriteOutcome::Mismatch,
            store => store.and_then(complete).map_or_else(
                |error| WriteOutcome::Failed(error.into()),
                |()| WriteOutcome::Written,
            ),
        }
    }

    /// Receives content up to its end. Lengths are checked against what is left before anything is done.
    fn receive_all(&mut self) -> Result<ContentEnd, FrameError> {
        let end = self.receive_frames();
        // Also where the connection broke: another try at the range finds it.
        self.flush_gathered();
        end
    }

    fn receive_frames(&mut self) -> Result<ContentEnd, FrameError> {
        let mut left = self.span;
        loop {
            let frame = self.frames.next_frame()?;
            let length = match &frame {
                Frame::Content(bytes) => bytes.len() as u64,
                Frame::PendingContent(length) => *length as u64,
                Frame::Hole(length) | Frame::Keep(_, length) => *length,
                _ => 0,
            };
            if length > left.length {
                let announced = self.span.length;
                let reason = format!("more content than the {announced} bytes that were announced");
                return Err(FrameError::Unexpected(reason));
            }
            let here = Span { offset: left.offset, length };
            left = Span { offset: left.offset + length, length: left.length - length };
            if !matches!(frame, Frame::PendingContent(_)) {
                self.flush_gathered();
            }
            match frame {
                Frame::PendingContent(_) if self.frames.is_clear() && self.hasher.is_none() => {
                    return Err(FrameError::MissingDigest);
                }
                Frame::PendingContent(_) => self.gather(here)?,
                Frame::Content(bytes) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&bytes);
                    }
                    write_unless_failed(&mut self.store, |store| store.write(&bytes, here.offset));
                }
                Frame::Hole(_) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update_zeros(length, || self.frames.check_active_and_ticket())?;
                    }
                    write_unless_failed(&mut self.store, |store| store.hole(here));
                }
                Frame::Keep(from, _) if self.allows_keep => self.keep_run(from, here)?,
                Frame::Keep(..) => return Err(FrameError::unexpected("only ranges can be kept")),
                Frame::Digest(digest) => {
                    return Ok(ContentEnd::Ended(left.length == 0, Some(digest)));
                }
                Frame::Done if self.hasher.is_some() => return Err(FrameError::MissingDigest),
                Frame::Done => return Ok(ContentEnd::Ended(left.length == 0, None)),
                Frame::Abort => return Ok(ContentEnd::Aborted),
                _ => return Err(FrameError::unexpected("content or its digest was expected")),
            }
        }
    }

    /// Reads the content of `span`, and hashes and writes it in large pieces: that is cheaper than in
    /// those in which it comes.
    fn gather(&mut self, span: Span) -> Result<(), FrameError> {
        let mut at = span.offset;
        while at < span.end() {
            if self.gathered_bytes == 0 {
                self.gathered_offset = at;
            }
            let room = &mut self.buffer[self.gathered_bytes..];
            let n = usize::try_from(span.end() - at).map_or(room.len(), |n| n.min(room.len()));
            self.frames.read_content(&mut room[..n])?;
            self.gathered_bytes += n;
            at += n as u64;
            if self.gathered_bytes == self.buffer.len() {
                self.flush_gathered();
            }
        }
        Ok(())
    }

    /// Hashes and writes what was gathered.
    fn flush_gathered(&mut self) {
        let (at, n) = (self.gathered_offset, std::mem::take(&mut self.gathered_bytes));
        if n == 0 {
            return;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer[..n]);
        }
        let gathered = &self.buffer[..n];
        write_unless_failed(&mut self.store, |store| store.write(gathered, at));
    }

    fn keep_run(&mut self, from: ReuseSource, span: Span) -> Result<(), FrameError> {
        let Some(part) = self.store.as_ref().ok().and_then(ContentWriter::part_file) else {
            return Ok(());
        };
        let back = self.hasher.as_mut().map(|hasher| ReadBack {
            path: self.path,
            hasher,
            buffer: &mut *self.buffer,
        });
        if let Err(error) = keep_span(part, from, span, back, || self.frames.check_active())? {
            self.store = Err(error);
        }
        Ok(())
    }
}

/// Reads a range to its end and writes it into the file's part file; its content must come with its
/// value where it is to be hashed. The part file stays, whatever becomes of the range: other ranges
/// are in it, and only a commit makes a file of it. Content is gathered in `buffer`.
///
/// # Errors
/// A body that is none, or that broke off.
pub fn receive_range<P: ChunkSource>(
    frames: &mut FrameReader<P>,
    target: &Target,
    buffer: &mut [u8],
) -> Result<RangeReply, FrameError> {
    let Frame::Range(head) = frames.next_frame()? else {
        return Err(FrameError::unexpected("a range begins with its head"));
    };
    let entry = head.validate().map_err(FrameError::Unexpected)?;
    let most = range_length(entry.size(), target.rules().chunk_bytes);
    if head.is_dense && head.length > most {
        let reason = format!("a range of {} bytes, where the ticket allows {most}", head.length);
        return Err(FrameError::Unexpected(reason));
    }
    let mut store = open_part_file(frames, target, entry)?;
    if head.is_dense {
        let length = head.length.min(target.rules().chunk_bytes);
        write_unless_failed(&mut store, |part| part.reserve_blocks(head.offset, length));
    }
    let hashing = target.rules().receiver_hash_mode();
    let mut receiver = ContentReceiver {
        store,
        span: Span { offset: head.offset, length: head.length },
        allows_keep: true,
        hasher: hashing.map(|hashing| ContentHasher::at_offset(hashing, head.offset)),
        path: &entry.path,
        buffer,
        gathered_bytes: 0,
        gathered_offset: 0,
        frames: &mut *frames,
    };
    let end = receiver.receive_all()?;
    let outcome = receiver.finish(end, ContentHasher::chaining_value, |part| part.close());
    frames.check_no_trailing_bytes()?;
    Ok(RangeReply { outcome })
}

/// Opens the part file of `entry`, for a peer that is still there. One that is gone may be gone for long,
/// where this process was suspended, or for as long as its request waited here: what it sent lay in the socket, and
/// the part file may have been removed since. Its content is then sent again.
fn open_part_file<P: ChunkSource>(
    frames: &FrameReader<P>,
    target: &Target,
    entry: &Entry,
) -> Result<Result<PartFile, FsError>, FrameError> {
    frames.check_active()?;
    let part = target.open_part_file(entry);
    if part.as_ref().is_ok_and(|part| part.created)
        && let Err(gone) = frames.check_active()
    {
        if let Err(error) = target.remove_part_file(entry) {
            warn_ratelimited!(error.describe_cause(), "{error}");
        }
        return Err(gone);
    }
    Ok(part)
}
