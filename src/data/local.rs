//! A destination on this host: the same outcomes as with a peer, without the network.

use super::outcome::{Offered, Packed, RangeSent, SendError, UnstampedDir};
use super::pool::Pool;
use super::protocol::MAX_CONTENT;
use super::receive;
use super::send::{FedRange, changed, open_same};
use crate::fs::{FsError, SourceFile, Target, Tree};
use crate::util::shutdown::Shutdown;
use crate::wire::Digest;
use crate::wire::manifest::{DirRef, Entry, Manifest};
use blake3::hazmat::HasherExt as _;
use std::sync::Arc;

/// A destination below one of our own storage roots.
pub struct Local {
    target: Arc<Target>,
    attempt: u32,
    pool: Pool,
}

/// Why copying the content of one file stopped.
enum Stop {
    Error(FsError),
    Cancelled,
}

impl Local {
    /// Writes to `target`, under the ticket's `attempt`, through buffers of `pool`.
    pub fn new(target: Target, attempt: u32, pool: Pool) -> Self {
        Local { target: Arc::new(target), attempt, pool }
    }

    /// Offers `manifest`.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn offer(&self, manifest: &Manifest) -> Result<Offered, SendError> {
        let (target, manifest) = (self.target.clone(), manifest.clone());
        run(move |_| {
            let reply = receive::take_offer(&target, &manifest);
            Offered::of_reply(&manifest, reply).map_err(SendError::Internal)
        })
        .await
    }

    /// Copies `files` of `source`, which lie in `dirs`, as what each of them is now. Dropping the
    /// future stops the work at the next buffer.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn pack(
        &self,
        source: &Tree,
        dirs: Vec<DirRef>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        let (target, source) = (self.target.clone(), source.clone());
        let (attempt, pool) = (self.attempt, self.pool.clone());
        run(move |cancelled| {
            let mut done = Vec::with_capacity(files.len());
            for entry in &files {
                match copy(&target, &source, entry, attempt, &pool, &cancelled) {
                    Ok(bytes) => done.push(Ok(bytes)),
                    Err(Stop::Error(error)) => done.push(Err(error.to_file_error())),
                    Err(Stop::Cancelled) => break,
                }
            }
            let unstamped = stamp(&target, &dirs);
            if done.len() < files.len() {
                return Err(stopped());
            }
            Ok(Packed { files: done, unstamped })
        })
        .await
    }

    /// Copies `length` bytes at `offset` of `entry` into its part file. The caller has checked that
    /// the range fits.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn range(
        &self,
        source: &Tree,
        entry: &Entry,
        (offset, length): (u64, u64),
    ) -> Result<RangeSent, SendError> {
        let (target, source, entry) = (self.target.clone(), source.clone(), entry.clone());
        let pool = self.pool.clone();
        run(move |cancelled| {
            let file = match open_same(&source, &entry) {
                Ok(file) => file,
                Err(error) => return Ok(failed(error)),
            };
            let part = match target.part(&entry) {
                Ok(part) => part,
                Err(error) => return Ok(failed(error)),
            };
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset);
            let span = Span { offset, length };
            let copied = each_piece(&file, &entry, span, &pool, &cancelled, |bytes, at| {
                hasher.update(bytes);
                part.write_at(bytes, at)
            });
            match copied {
                Ok(()) if file.unchanged_since_open().is_err() => Ok(RangeSent::Changed),
                Ok(()) => Ok(match part.finish() {
                    Ok(()) => RangeSent::Written(Digest(hasher.finalize_non_root())),
                    Err(error) => failed(error),
                }),
                Err(Stop::Error(error)) => Ok(failed(error)),
                Err(Stop::Cancelled) => Err(stopped()),
            }
        })
        .await
    }
}

/// What a source or a destination made of a range that failed.
fn failed(error: FsError) -> RangeSent {
    match FedRange::from(error) {
        FedRange::Failed(error) => RangeSent::Failed(error),
        FedRange::Changed | FedRange::Sent(_) => RangeSent::Changed,
    }
}

fn stopped() -> SendError {
    SendError::Internal("the copy was stopped".to_owned())
}

fn stamp(target: &Target, dirs: &[DirRef]) -> Vec<UnstampedDir> {
    receive::stamp(target, dirs)
        .into_iter()
        .filter_map(|one| {
            let path = &dirs.get(one.dir as usize)?.path;
            Some((path.clone(), one.fault.into_error(path)))
        })
        .collect()
}

/// Copies one file as what it is now; its length.
fn copy(
    target: &Target,
    source: &Tree,
    entry: &Entry,
    attempt: u32,
    pool: &Pool,
    cancelled: &Shutdown,
) -> Result<u64, Stop> {
    let file = source.open_source(entry).map_err(Stop::Error)?;
    let now = file.entry().clone();
    let mut new = target.create(&now, attempt).map_err(Stop::Error)?;
    let span = Span { offset: 0, length: now.size() };
    each_piece(&file, &now, span, pool, cancelled, |bytes, _| new.write(bytes))?;
    file.unchanged_since_open().map_err(Stop::Error)?;
    new.publish(&now).map_err(Stop::Error)?;
    Ok(now.size())
}

#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    length: u64,
}

/// Hands the bytes of `span` to `take`, a buffer at a time, each with its offset in the file.
fn each_piece(
    file: &SourceFile,
    entry: &Entry,
    span: Span,
    pool: &Pool,
    cancelled: &Shutdown,
    mut take: impl FnMut(&[u8], u64) -> Result<(), FsError>,
) -> Result<(), Stop> {
    let mut buffer = pool.take();
    let mut done = 0;
    while done < span.length {
        if cancelled.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        let want = (span.length - done).min(MAX_CONTENT as u64) as usize;
        let piece = &mut buffer.spare()[..want];
        let n = file.read_at(piece, span.offset + done).map_err(Stop::Error)?;
        if n == 0 {
            return Err(Stop::Error(changed(entry)));
        }
        take(&piece[..n], span.offset + done).map_err(Stop::Error)?;
        done += n as u64;
    }
    Ok(())
}

/// Runs blocking work; it learns when nobody waits for it any more.
async fn run<T: Send + 'static>(
    work: impl FnOnce(Shutdown) -> Result<T, SendError> + Send + 'static,
) -> Result<T, SendError> {
    let cancelled = Shutdown::new();
    let _guard = cancelled.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(cancelled)).await {
        Ok(done) => done,
        Err(e) => Err(SendError::Internal(format!("copying failed inside: {e}"))),
    }
}
