//! The receiving end: manifests, packs and ranges into a destination. Everything here blocks and runs
//! in threads of its own. Whether the ticket allows it was asked before.

use super::frame::{Frame, FrameError, FrameReader, MAX_FILES, Pieces};
use super::protocol::{
    Answer, DigestOf, Fault, NoteOf, OfferReply, PackReply, Place, RangeHead, RangeReply, Taken,
    Unstamped, notes_of,
};
use super::read::Span;
use super::store::{ReadBack, Store, keep};
use crate::fs::{FsError, NewFile, PartFile, ReconcileResult, ReuseSource, Target, Verdict};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::ContentHasher;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir};
use crate::wire::options::EntryWarnings;
use crate::wire::task::range_length;
use crate::wire::ticket::Claims;
use crate::wire::{Digest, RelPath};
use std::collections::BTreeMap;

/// Brings everything of `manifest` that needs no content, and says what is wanted.
pub fn take_offer(target: &Target, manifest: &Manifest, dry_run: bool) -> OfferReply {
    let reply = target.with_root_checked(|| Ok(take_offer_at_root(target, manifest, dry_run)));
    reply.unwrap_or_else(|gone| {
        let failed = |_: &Entry| Answer::Failed(fault(gone.clone()));
        let answers = manifest.entries.iter().map(failed).collect();
        OfferReply { answers, to_sweep: target.has_anchors(), ..OfferReply::default() }
    })
}

fn take_offer_at_root(target: &Target, manifest: &Manifest, dry_run: bool) -> OfferReply {
    let ReconcileResult { verdicts, digests, created_dirs: made } = target.reconcile(manifest);
    let answers: Vec<Answer> = verdicts
        .into_iter()
        .map(|verdict| match verdict {
            Verdict::Done(action) => Answer::Done(action),
            Verdict::ContentNeeded { action, has_basis: base } => Answer::Needed { action, base },
            Verdict::DigestNeeded => Answer::Check,
            Verdict::Failed(error) => Answer::Failed(error.into()),
        })
        .collect();
    // An attempt that died between its last file and its last stamp left directories with a time of
    // their own. Where content follows, the pack stamps them.
    let later = answers.iter().any(|answer| matches!(answer, Answer::Needed { .. }));
    let unstamped = if dry_run || later { Vec::new() } else { stamp(target, &manifest.dirs) };
    let digests = digests.into_iter().enumerate();
    let place = |path: &[u8]| {
        let entry = manifest.entries.iter().position(|e| e.path.as_bytes() == path);
        entry.map(|i| Place::Entry(i as u32)).or_else(|| place_of(&manifest.dirs, path))
    };
    OfferReply {
        answers,
        unstamped,
        digests: digests
            .filter_map(|(i, digest)| Some(DigestOf { entry: i as u32, digest: digest? }))
            .collect(),
        notes: notes_of(target.take_metadata_warnings(), place),
        to_sweep: target.has_anchors(),
        made,
    }
}

fn place_of(dirs: &[ManifestDir], path: &[u8]) -> Option<Place> {
    let place = dirs.iter().position(|d| d.path.as_bytes() == path)?;
    Some(Place::Dir(place as u32))
}

/// Stamps the directories `dirs`; says which ones could not be.
pub fn stamp(target: &Target, dirs: &[ManifestDir]) -> Vec<Unstamped> {
    target
        .apply_dir_metadata(dirs)
        .into_iter()
        .filter_map(|error| match place_of(dirs, &error.path.0)? {
            Place::Dir(dir) => Some(Unstamped { dir, fault: error.into() }),
            Place::Entry(_) => None,
        })
        .collect()
}

fn fault(error: FsError) -> Fault {
    error.to_file_error().into()
}

/// One pack being read.
struct Pack<'a> {
    target: &'a Target,
    claims: &'a Claims,
    dirs: Vec<ManifestDir>,
    files: Vec<Taken>,
    /// What the destination could not hold so far, by cause.
    notes: BTreeMap<String, NoteOf>,
    buffer: &'a mut [u8],
}

/// Reads a pack to its end; content is gathered in `buffer`, and as much of it as goes in there is written at
/// once.
///
/// # Errors
/// A body that is none, or that broke off. Files before that point are at their places, all others
/// left nothing behind, and the directories are stamped.
pub fn take_pack<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    claims: &Claims,
    buffer: &mut [u8],
) -> Result<PackReply, FrameError> {
    let Frame::Dirs(dirs) = frames.next_frame()? else {
        return Err(FrameError::Order("a pack begins with its directories".to_owned()));
    };
    let (files, notes) = (Vec::new(), BTreeMap::new());
    let mut pack = Pack { target, claims, dirs, files, notes, buffer };
    let end = pack.take_files(frames);
    let unstamped = stamp(target, &pack.dirs);
    pack.note(target.take_metadata_warnings(), None);
    end?;
    frames.finish()?;
    if let Err(gone) = target.check_root() {
        for taken in pack.files.iter_mut().filter(|taken| **taken == Taken::Written) {
            *taken = Taken::Failed(fault(gone.clone()));
        }
    }
    let notes = pack.notes.into_values().collect();
    Ok(PackReply { files: pack.files, unstamped, notes, to_sweep: target.has_anchors() })
}

impl Pack<'_> {
    fn take_files<P: Pieces>(&mut self, frames: &mut FrameReader<P>) -> Result<(), FrameError> {
        loop {
            match frames.next_frame()? {
                Frame::File(_) if self.files.len() == MAX_FILES => {
                    return Err(FrameError::Order(format!(
                        "a pack of more than {MAX_FILES} files"
                    )));
                }
                Frame::File(entry) => {
                    let taken = self.take_file(frames, &entry)?;
                    self.note(
                        self.target.take_metadata_warnings(),
                        Some((self.files.len() as u32, &entry.path)),
                    );
                    self.files.push(taken);
                }
                Frame::End(n) if n as usize == self.files.len() => return Ok(()),
                Frame::End(n) => {
                    let why = format!("the pack ends with {n} files, {} came", self.files.len());
                    return Err(FrameError::Order(why));
                }
                _ => return Err(FrameError::Order("a file or the end was expected".to_owned())),
            }
        }
    }

    /// One file. What can't be kept is read all the same: the files behind it can.
    fn take_file<P: Pieces>(
        &mut self,
        frames: &mut FrameReader<P>,
        entry: &Entry,
    ) -> Result<Taken, FrameError> {
        let EntryKind::File { size } = entry.kind else {
            return Err(FrameError::Order("only regular files have content".to_owned()));
        };
        go_on(frames)?;
        let mut taking = Taking {
            store: self.target.create(entry, self.claims.attempt),
            span: Span { offset: 0, length: size },
            keeps: false,
            hasher: self.claims.rules.receiver_hash_mode().map(ContentHasher::new),
            path: &entry.path,
            buffer: self.buffer,
            gathered: 0,
            gathered_at: 0,
        };
        let end = taking.take_all(frames)?;
        let Taking { store, hasher, .. } = taking;
        let right = match (end, hasher) {
            (End::Abort, _) => return Ok(Taken::Aborted),
            (End::Whole(complete, Some(digest)), Some(hasher)) => {
                complete && hasher.digest() == digest
            }
            (End::Whole(complete, _), _) => complete,
        };
        Ok(match store {
            Err(error) => Taken::Failed(fault(error)),
            Ok(_) if !right => Taken::Mismatch,
            Ok(file) => match NewFile::publish(file, entry) {
                Ok(()) => Taken::Written,
                Err(error) => Taken::Failed(fault(error)),
            },
        })
    }

    /// Adds notes, by their places; `file` is the one that was written last.
    fn note(&mut self, notes: EntryWarnings, file: Option<(u32, &RelPath)>) {
        let place = |path: &[u8]| match file {
            Some((i, own)) if own.as_bytes() == path => Some(Place::Entry(i)),
            _ => place_of(&self.dirs, path),
        };
        for new in notes_of(notes, place) {
            match self.notes.get_mut(&new.cause) {
                None => drop(self.notes.insert(new.cause.clone(), new)),
                Some(old) => old.merge(new),
            }
        }
    }
}

/// Content being taken; the file it goes to has failed where `store` is an error.
struct Taking<'a, S> {
    store: Result<S, FsError>,
    span: Span,
    /// Whether the peer may say what is kept.
    keeps: bool,
    /// Where content must come with its digest.
    hasher: Option<ContentHasher>,
    path: &'a RelPath,
    /// To gather content, and to read back what is kept.
    buffer: &'a mut [u8],
    /// So much of the buffer is content that is neither hashed nor written …
    gathered: usize,
    /// … and belongs here.
    gathered_at: u64,
}

/// How content ended.
enum End {
    /// With all of it, or not; with the sender's digest, if it sent one.
    Whole(bool, Option<Digest>),
    Abort,
}

impl<S: Store> Taking<'_, S> {
    /// Takes content up to its end. Lengths are checked against what is left before anything is done.
    fn take_all<P: Pieces>(&mut self, frames: &mut FrameReader<P>) -> Result<End, FrameError> {
        let end = self.take_frames(frames);
        // Also where the connection broke: another try at the range finds it.
        self.settle();
        end
    }

    fn take_frames<P: Pieces>(&mut self, frames: &mut FrameReader<P>) -> Result<End, FrameError> {
        let mut left = self.span;
        loop {
            let frame = frames.next_frame()?;
            let length = match &frame {
                Frame::Content(bytes) => bytes.len() as u64,
                Frame::Bulk(length) => *length as u64,
                Frame::Hole(length) | Frame::Keep(_, length) => *length,
                _ => 0,
            };
            if length > left.length {
                let announced = self.span.length;
                let why = format!("more content than the {announced} bytes that were announced");
                return Err(FrameError::Order(why));
            }
            let here = Span { offset: left.offset, length };
            left = Span { offset: left.offset + length, length: left.length - length };
            if !matches!(frame, Frame::Bulk(_)) {
                self.settle();
            }
            match frame {
                Frame::Bulk(_) => self.gather(here, frames)?,
                Frame::Content(bytes) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&bytes);
                    }
                    self.store(|store| store.write(&bytes, here.offset));
                }
                Frame::Hole(_) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update_zeros(length, || go_on_with_zeros(frames))?;
                    }
                    self.store(|store| store.hole(here));
                }
                Frame::Keep(from, _) if self.keeps => self.keep(from, here, frames)?,
                Frame::Keep(..) => {
                    return Err(FrameError::Order("only ranges can be kept".to_owned()));
                }
                Frame::Digest(digest) => return Ok(End::Whole(left.length == 0, Some(digest))),
                Frame::Done if self.hasher.is_some() => return Err(FrameError::Unhashed),
                Frame::Done => return Ok(End::Whole(left.length == 0, None)),
                Frame::Abort => return Ok(End::Abort),
                _ => {
                    return Err(FrameError::Order("content or its digest was expected".to_owned()));
                }
            }
        }
    }

    /// Reads the content of `span`, and hashes and writes it in large pieces: that is cheaper than in
    /// those in which it comes.
    fn gather<P: Pieces>(
        &mut self,
        span: Span,
        frames: &mut FrameReader<P>,
    ) -> Result<(), FrameError> {
        let mut at = span.offset;
        while at < span.end() {
            if self.gathered == 0 {
                self.gathered_at = at;
            }
            let room = &mut self.buffer[self.gathered..];
            let n = usize::try_from(span.end() - at).map_or(room.len(), |n| n.min(room.len()));
            frames.fetch(&mut room[..n])?;
            self.gathered += n;
            at += n as u64;
            if self.gathered == self.buffer.len() {
                self.settle();
            }
        }
        Ok(())
    }

    /// Hashes and writes what was gathered.
    fn settle(&mut self) {
        let (at, n) = (self.gathered_at, std::mem::take(&mut self.gathered));
        if n == 0 {
            return;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer[..n]);
        }
        if let Ok(store) = &mut self.store
            && let Err(error) = store.write(&self.buffer[..n], at)
        {
            self.store = Err(error);
        }
    }

    /// Does `step`, unless one before it has failed.
    fn store(&mut self, step: impl FnOnce(&mut S) -> Result<(), FsError>) {
        if let Ok(store) = &mut self.store
            && let Err(error) = step(store)
        {
            self.store = Err(error);
        }
    }

    fn keep<P: Pieces>(
        &mut self,
        from: ReuseSource,
        span: Span,
        frames: &FrameReader<P>,
    ) -> Result<(), FrameError> {
        let Some(part) = self.store.as_ref().ok().and_then(Store::part) else { return Ok(()) };
        let back = self.hasher.as_mut().map(|hasher| ReadBack {
            path: self.path,
            hasher,
            buffer: &mut *self.buffer,
        });
        if let Err(error) = keep(part, from, span, back, || go_on(frames))? {
            self.store = Err(error);
        }
        Ok(())
    }
}

/// Stops work that nobody waits for.
fn go_on<P: Pieces>(frames: &FrameReader<P>) -> Result<(), FrameError> {
    if frames.abandoned() {
        return Err(FrameError::Connection("the requester is gone".to_owned()));
    }
    Ok(())
}

/// The same for the zeros of a hole, of which a few bytes make any amount of work: it ends with the ticket.
fn go_on_with_zeros<P: Pieces>(frames: &FrameReader<P>) -> Result<(), FrameError> {
    go_on(frames)?;
    if frames.has_ended() {
        return Err(FrameError::Order("the ticket ended while a hole was hashed".to_owned()));
    }
    Ok(())
}

/// Reads a range to its end and writes it into the file's part file; its content must come with its
/// value where it is to be hashed. The part file stays, whatever becomes of the range: other ranges
/// are in it, and only a commit makes a file of it. Content is gathered in `buffer`.
///
/// # Errors
/// A body that is none, or that broke off.
pub fn take_range<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    buffer: &mut [u8],
) -> Result<RangeReply, FrameError> {
    let Frame::Range(head) = frames.next_frame()? else {
        return Err(FrameError::Order("a range begins with its head".to_owned()));
    };
    let entry = head.checked().map_err(FrameError::Order)?;
    let most = range_length(entry.size(), target.rules().chunk_bytes);
    if head.dense == Some(true) && head.length > most {
        let why = format!("a range of {} bytes, where the ticket allows {most}", head.length);
        return Err(FrameError::Order(why));
    }
    let range = take_range_content(frames, target, (&head, entry), buffer)?;
    frames.finish()?;
    Ok(RangeReply { range })
}

/// Opens the part file of `entry`, for a peer that is still there. One that is gone may be gone for long,
/// where we stood still, or for as long as its request waited here: what it sent lay in our socket, and
/// who removes the part file may have been here already. What it still has to bring is brought again.
fn open_part<P: Pieces>(
    frames: &FrameReader<P>,
    target: &Target,
    entry: &Entry,
) -> Result<Result<PartFile, FsError>, FrameError> {
    go_on(frames)?;
    let part = target.open_part_file(entry);
    if part.as_ref().is_ok_and(|part| part.created)
        && let Err(gone) = go_on(frames)
    {
        if let Err(error) = target.remove_part_file(entry) {
            warn_ratelimited!(error.without_path(), "{error}");
        }
        return Err(gone);
    }
    Ok(part)
}

fn take_range_content<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    (head, entry): (&RangeHead, &Entry),
    buffer: &mut [u8],
) -> Result<Taken, FrameError> {
    let mut store = open_part(frames, target, entry)?;
    if let (Ok(part), Some(true)) = (&store, head.dense)
        && let Err(error) =
            part.reserve_blocks(head.offset, head.length.min(target.rules().chunk_bytes))
    {
        store = Err(error);
    }
    let hashing = target.rules().receiver_hash_mode();
    let mut taking = Taking {
        store,
        span: Span { offset: head.offset, length: head.length },
        keeps: true,
        hasher: hashing.map(|hashing| ContentHasher::at_offset(hashing, head.offset)),
        path: &entry.path,
        buffer,
        gathered: 0,
        gathered_at: 0,
    };
    let end = taking.take_all(frames)?;
    let Taking { store, hasher, .. } = taking;
    let right = match (end, hasher) {
        (End::Abort, _) => return Ok(Taken::Aborted),
        (End::Whole(complete, Some(value)), Some(hasher)) => {
            complete && hasher.chaining_value() == Some(value)
        }
        (End::Whole(complete, _), _) => complete,
    };
    Ok(match store {
        Err(error) => Taken::Failed(fault(error)),
        Ok(_) if !right => Taken::Mismatch,
        Ok(part) => part.close().map_or_else(|e| Taken::Failed(fault(e)), |()| Taken::Written),
    })
}
