//! The receiving end: manifests, packs and ranges into a destination. Everything here blocks and runs
//! in threads of its own.

use super::frame::{Frame, FrameError, FrameReader, MAX_FILES, Pieces};
use super::protocol::{
    Answer, Fault, OfferReply, PackReply, RangeHead, RangeReply, Taken, Unstamped,
};
use crate::fs::{FsError, NewFile, PartFile, Target, Verdict};
use crate::wire::Digest;
use crate::wire::manifest::{DirRef, Entry, Kind, Manifest};
use crate::wire::options::Action;
use blake3::hazmat::HasherExt as _;

/// Brings everything of `manifest` that needs no content, and says what is wanted.
pub fn take_offer(target: &Target, manifest: &Manifest) -> OfferReply {
    let answers: Vec<Answer> = target
        .reconcile(manifest)
        .verdicts
        .into_iter()
        .map(|verdict| match verdict {
            Verdict::Done(Action::Skip | Action::Metadata) => Answer::Unchanged,
            Verdict::Done(_) => Answer::Made,
            Verdict::Needed { .. } | Verdict::Check => Answer::Needed,
            Verdict::Failed(error) => Answer::Failed(error.into()),
        })
        .collect();
    // An attempt that died between its last file and its last stamp left directories with a time of
    // their own. Where content follows, the pack stamps them.
    let unstamped =
        if answers.contains(&Answer::Needed) { Vec::new() } else { stamp(target, &manifest.dirs) };
    OfferReply { answers, unstamped }
}

/// Stamps the directories `dirs`; says which ones could not be.
pub fn stamp(target: &Target, dirs: &[DirRef]) -> Vec<Unstamped> {
    let place = |path: &[u8]| dirs.iter().position(|d| d.path.as_bytes() == path);
    target
        .stamp(dirs)
        .into_iter()
        .filter_map(|error| {
            let dir = place(&error.path.0)? as u32;
            Some(Unstamped { dir, fault: error.into() })
        })
        .collect()
}

fn fault(error: FsError) -> Fault {
    error.to_file_error().into()
}

/// Reads a pack to its end.
///
/// # Errors
/// A body that is none, or that broke off. Files before that point are at their places, all others
/// left nothing behind, and the directories are stamped.
pub fn take_pack<P: Pieces>(
    mut frames: FrameReader<P>,
    target: &Target,
    attempt: u32,
) -> Result<PackReply, FrameError> {
    let Frame::Dirs(dirs) = frames.next_frame()? else {
        return Err(FrameError::Order("a pack begins with its directories".to_owned()));
    };
    let mut files = Vec::new();
    let end = take_files(&mut frames, target, attempt, &mut files);
    let unstamped = stamp(target, &dirs);
    end?;
    frames.finish()?;
    Ok(PackReply { files, unstamped })
}

fn take_files<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    attempt: u32,
    files: &mut Vec<Taken>,
) -> Result<(), FrameError> {
    loop {
        match frames.next_frame()? {
            Frame::File(_) if files.len() == MAX_FILES => {
                return Err(FrameError::Order(format!("a pack of more than {MAX_FILES} files")));
            }
            Frame::File(entry) => files.push(take_file(frames, target, &entry, attempt)?),
            Frame::End(n) if n as usize == files.len() => return Ok(()),
            Frame::End(n) => {
                let why = format!("the pack ends with {n} files, {} came", files.len());
                return Err(FrameError::Order(why));
            }
            _ => return Err(FrameError::Order("a file or the end was expected".to_owned())),
        }
    }
}

/// One file. What can't be kept is read all the same: the files behind it can.
fn take_file<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    entry: &Entry,
    attempt: u32,
) -> Result<Taken, FrameError> {
    let Kind::File { size } = entry.kind else {
        return Err(FrameError::Order("only regular files have content".to_owned()));
    };
    let mut file = target.create(entry, attempt);
    let mut hasher = blake3::Hasher::new();
    let end = take_content(frames, size, &mut hasher, |bytes, _| {
        if let Ok(open) = &mut file
            && let Err(error) = open.write(bytes)
        {
            file = Err(error);
        }
    })?;
    let End::Digest { digest, complete } = end else { return Ok(Taken::Aborted) };
    let right = complete && Digest::from(hasher.finalize()) == digest;
    Ok(match file {
        Err(error) => Taken::Failed(fault(error)),
        Ok(_) if !right => Taken::Mismatch,
        Ok(file) => match NewFile::publish(file, entry) {
            Ok(()) => Taken::Written,
            Err(error) => Taken::Failed(fault(error)),
        },
    })
}

/// How the content of a file (or range) ended.
enum End {
    Digest { digest: Digest, complete: bool },
    Abort,
}

/// Hashes up to `length` bytes of content and hands them to `write` with their offset.
fn take_content<P: Pieces>(
    frames: &mut FrameReader<P>,
    length: u64,
    hasher: &mut blake3::Hasher,
    mut write: impl FnMut(&[u8], u64),
) -> Result<End, FrameError> {
    let mut got = 0u64;
    loop {
        match frames.next_frame()? {
            Frame::Content(bytes) => {
                let n = bytes.len() as u64;
                if n > length - got {
                    let why = format!("more content than the {length} bytes that were announced");
                    return Err(FrameError::Order(why));
                }
                hasher.update(&bytes);
                write(&bytes, got);
                got += n;
            }
            Frame::Digest(digest) => {
                return Ok(End::Digest { digest, complete: got == length });
            }
            Frame::Abort => return Ok(End::Abort),
            _ => return Err(FrameError::Order("content or its digest was expected".to_owned())),
        }
    }
}

/// Reads a range to its end and writes it into the file's part file. The part file stays, whatever
/// becomes of the range: other ranges are in it, and only a commit makes a file of it.
///
/// # Errors
/// A body that is none, or that broke off.
pub fn take_range<P: Pieces>(
    mut frames: FrameReader<P>,
    target: &Target,
) -> Result<RangeReply, FrameError> {
    let Frame::Range(head) = frames.next_frame()? else {
        return Err(FrameError::Order("a range begins with its head".to_owned()));
    };
    let entry = head.checked().map_err(FrameError::Order)?;
    let range = take_range_content(&mut frames, target, &head, entry)?;
    frames.finish()?;
    Ok(RangeReply { range })
}

fn take_range_content<P: Pieces>(
    frames: &mut FrameReader<P>,
    target: &Target,
    head: &RangeHead,
    entry: &Entry,
) -> Result<Taken, FrameError> {
    let mut part = target.part(entry);
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(head.offset);
    let end = take_content(frames, head.length, &mut hasher, |bytes, at| {
        if let Ok(open) = &mut part
            && let Err(error) = PartFile::write_at(open, bytes, head.offset + at)
        {
            part = Err(error);
        }
    })?;
    let End::Digest { digest, complete } = end else { return Ok(Taken::Aborted) };
    Ok(match part {
        Err(error) => Taken::Failed(fault(error)),
        // `complete` first: an empty hasher has no chaining value.
        Ok(_) if !complete || hasher.finalize_non_root() != digest.0 => Taken::Mismatch,
        Ok(part) => part.finish().map_or_else(|e| Taken::Failed(fault(e)), |()| Taken::Written),
    })
}
