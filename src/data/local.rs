//! A destination on this host: the same outcomes as with a peer, without the network.

use super::asks::{
    BLOCK_BYTES, BlockValue, BlocksAsk, BlocksReply, PruneAsk, PrunedPage, RootAsk, SweepAsk,
};
use super::delta::Ranged;
use super::gate::{self, Refused};
use super::maintain;
use super::outcome::{Found, Offered, Packed, RangeSent, SendError, UnstampedDir, Written};
use super::pool::{BUFFER, Buffer, Pool, SCRATCH};
use super::protocol::{PACK, RANGE, SWEEP};
use super::read::{Nowhere, Read, Sink, Span, changed, open_same, read_whole};
use super::receive;
use super::send::read_range;
use super::store::{Store, keep_blocks};
use super::until::Until;
use crate::fs::{FsError, NewFile, ReuseSource, RootKind, SourceFile, Target, Tree};
use crate::util::rate::Limiters;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::shutdown::Shutdown;
use crate::wire::content::{ContentHasher, HashMode};
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::options::WriteRules;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::ticket::Claims;
use crate::wire::{BytePath, Digest, RelPath};
use parking_lot::Mutex;
use std::sync::Arc;

/// A destination below one of our own storage roots.
pub struct Local {
    target: Arc<Target>,
    claims: Arc<Claims>,
    pool: Pool,
    pace: Limiters,
    until: Until,
    clones: bool,
}

/// What became of a large file that was to be cloned.
pub enum Cloned {
    /// It is at its place.
    Brought(Packed),
    /// The destination has it, or could not take it: what it says to an offer now.
    There(Offered),
    /// It is to be copied.
    No,
}

/// One large file of this process is cloned at a time: what waits finds it cloned.
static CLONING: Mutex<()> = Mutex::new(());

/// Why copying the content of one file stopped.
enum Stop {
    Error(FsError),
    Cancelled,
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        SendError::Internal(refused.to_string())
    }
}

impl Local {
    /// What it reads to.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Writes to `target` as the ticket with these `claims` says, through buffers of `pool`.
    pub fn new(target: Target, claims: Claims, pool: Pool) -> Self {
        let (pace, until) = (Limiters::default(), Until::default());
        let (target, claims) = (Arc::new(target), Arc::new(claims));
        Local { target, claims, pool, pace, until, clones: false }
    }

    /// The same, no faster than `pace` lets it.
    pub fn at(self, pace: Limiters) -> Self {
        Local { pace, ..self }
    }

    /// The same; content that source and destination can share is cloned, where that is wanted.
    pub fn cloning(self, clones: bool) -> Self {
        Local { clones, ..self }
    }

    /// The same; no content is written any more once that is over.
    pub fn until(self, until: &Until) -> Self {
        Local { until: until.clone(), ..self }
    }

    /// How content is compared.
    pub(super) fn hashing(&self) -> HashMode {
        self.rules().hash_mode()
    }

    fn rules(&self) -> &WriteRules {
        &self.claims.rules
    }

    /// Offers `manifest`.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn offer(&self, manifest: &Manifest) -> Result<Offered, SendError> {
        let (target, manifest) = (self.target.clone(), manifest.clone());
        let dry_run = self.rules().dry_run;
        run(move |_| {
            let reply = receive::take_offer(&target, &manifest, dry_run);
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
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        gate::allows(&self.claims, PACK)?;
        let (target, source) = (self.target.clone(), source.clone());
        let (claims, pace) = (self.claims.clone(), self.pace.clone());
        let (until, clones) = (self.until.clone(), self.clones);
        let [mut buffer] = self.pool.take([BUFFER]).await;
        run(move |cancelled| {
            let going = Going { cancelled: &cancelled, until: &until, pace: &pace };
            let mut done = Vec::with_capacity(files.len());
            let mut moved = Moved::default();
            for entry in &files {
                let file = Copied { target: &target, source: &source, entry, claims: &claims };
                match file.copy(clones, &mut moved, (&mut buffer, going)) {
                    Ok(written) => done.push(Ok(written)),
                    Err(Stop::Error(error)) => done.push(Err(error_of(entry, &error))),
                    Err(Stop::Cancelled) => break,
                }
            }
            let packed = packed(&target, &dirs, &files, (done, moved));
            if packed.files.len() < files.len() {
                return Err(stopped());
            }
            Ok(packed)
        })
        .await
    }

    /// Clones the file of `manifest`, its only entry, as a whole, where that can be.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn clone_file(
        &self,
        source: &Tree,
        manifest: &Manifest,
    ) -> Result<Cloned, SendError> {
        gate::allows(&self.claims, PACK)?;
        if !self.clones {
            return Ok(Cloned::No);
        }
        let (target, source) = (self.target.clone(), source.clone());
        let (claims, pace) = (self.claims.clone(), self.pace.clone());
        let (until, manifest) = (self.until.clone(), manifest.clone());
        let [mut buffer] = self.pool.take([BUFFER]).await;
        run(move |cancelled| {
            let going = Going { cancelled: &cancelled, until: &until, pace: &pace };
            let [entry] = manifest.entries.as_slice() else { return Ok(Cloned::No) };
            // What goes wrong here is found again when it is copied.
            match open_same(&source, entry) {
                Ok(file) if target.can_reflink(entry, &file) => {}
                _ => return Ok(Cloned::No),
            }
            let _alone = CLONING.lock();
            let reply = receive::take_offer(&target, &manifest, false);
            let there = Offered::of_reply(&manifest, reply).map_err(SendError::Internal)?;
            if !matches!(there.answers.as_slice(), [Ok(Found::Needed { .. } | Found::Check)]) {
                return Ok(Cloned::There(there));
            }
            let (mut moved, mut read) = (Moved::default(), (&mut buffer, going));
            let file = Copied { target: &target, source: &source, entry, claims: &claims };
            let done = match file.clone(&mut moved, &mut read) {
                Ok(Some((new, now, digest))) => {
                    let published = NewFile::publish(new, &now);
                    published.map(|()| Written { bytes: now.size(), digest })
                }
                Ok(None) => return Ok(Cloned::No),
                Err(Stop::Error(error)) => Err(error),
                Err(Stop::Cancelled) => return Err(stopped()),
            };
            if let Err(error) = target.remove_part_file(entry) {
                warn_ratelimited!(error.without_path(), "{error}");
            }
            let done = done.map_err(|error| error_of(entry, &error));
            let files = [entry.clone()];
            Ok(Cloned::Brought(packed(&target, &manifest.dirs, &files, (vec![done], moved))))
        })
        .await
    }

    /// Copies a range into its part file; with `there` only what differs from those blocks. The caller
    /// has checked that the range fits.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub(super) async fn range(
        &self,
        ranged: Ranged<'_>,
        there: Option<Vec<BlockValue>>,
    ) -> Result<RangeSent, SendError> {
        gate::allows(&self.claims, RANGE)?;
        let (target, pace) = (self.target.clone(), self.pace.clone());
        let until = self.until.clone();
        let (source, entry, span) = (ranged.source.clone(), ranged.entry.clone(), ranged.span);
        let (checked, hashing) =
            (self.rules().receiver_hash_mode(), self.rules().sender_hash_mode());
        let (mut buffer, mut scratch) = self.pool.to_send(there.is_some()).await;
        run(move |cancelled| {
            let file = match open_same(&source, &entry) {
                Ok(file) => file,
                Err(error) => return Ok(RangeSent::from(error)),
            };
            let going = Going { cancelled: &cancelled, until: &until, pace: &pace };
            if going.on().is_err() {
                return Err(stopped());
            }
            let mut part = match target.open_part_file(&entry) {
                Ok(part) => part,
                Err(error) => return Ok(RangeSent::from(error)),
            };
            if there.is_none()
                && file.is_dense()
                && let Err(error) = part.reserve_blocks(span.offset, span.length)
            {
                return Ok(RangeSent::from(error));
            }
            let compare = there.as_deref().zip(scratch.as_mut().map(Buffer::pages));
            let mut copier = Copier {
                at: span.offset,
                checked,
                ..Copier::new(&mut part, &entry.path, &mut buffer, going)
            };
            let value = match read_range(&file, span, compare, hashing, &mut copier) {
                Ok((Read::All, value)) if file.verify_unchanged().is_ok() => value,
                Ok((Read::All | Read::Short, _)) => return Ok(RangeSent::Changed),
                Ok((Read::Failed(error), _)) | Err(Stop::Error(error)) => {
                    return Ok(RangeSent::from(error));
                }
                Err(Stop::Cancelled) => return Err(stopped()),
            };
            let (sent, kept) = (copier.sent, copier.kept);
            Ok(match part.close() {
                Ok(()) => RangeSent::Written { value, sent, kept },
                Err(error) => RangeSent::from(error),
            })
        })
        .await
    }

    /// What is there of some blocks.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub(super) async fn blocks(
        &self,
        ask: BlocksAsk,
    ) -> Result<Result<Vec<BlockValue>, FileError>, SendError> {
        let target = self.target.clone();
        let [mut scratch] = self.pool.take([SCRATCH]).await;
        run(move |_| {
            let entry = ask.checked().map_err(SendError::Internal)?;
            Ok(match maintain::take_blocks(&target, entry, &ask, scratch.pages()) {
                BlocksReply::Values(values) => Ok(values),
                BlocksReply::Failed(fault) => Err(fault.into_error(&entry.path)),
            })
        })
        .await
    }

    /// Finds (and removes) what is extra.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn prune(&self, ask: PruneAsk) -> Result<PrunedPage, SendError> {
        gate::allows_prune(&self.claims, ask.apply)?;
        let (target, claims) = (self.target.clone(), self.claims.clone());
        run(move |_| maintain::take_prune(&target, &claims, &ask).map_err(SendError::Internal))
            .await
    }

    /// Removes what was kept to find the names of one file.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn sweep(
        &self,
        root: Option<ManifestDir>,
    ) -> Result<Result<(), FileError>, SendError> {
        gate::allows(&self.claims, SWEEP)?;
        let target = self.target.clone();
        run(move |_| {
            let reply = maintain::take_sweep(&target, &SweepAsk { root });
            Ok(reply.fault.map_or(Ok(()), |fault| Err(fault.into_error(&RelPath::root()))))
        })
        .await
    }

    /// Whether the root can be written.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn check_root(&self, source: RootKind) -> Result<Result<(), FileError>, SendError> {
        let target = self.target.clone();
        run(move |_| {
            let reply = maintain::take_root(&target, &RootAsk { source });
            Ok(reply.fault.map_or(Ok(()), |fault| Err(fault.into_error(&RelPath::root()))))
        })
        .await
    }
}

/// The report of an error that made `entry` fail. One of the storage root has no path of its own.
fn error_of(entry: &Entry, error: &FsError) -> FileError {
    let mut report = error.to_file_error();
    if report.class == ErrorClass::StorageGone {
        report.path = BytePath(entry.path.as_bytes().to_vec());
    }
    report
}

fn stopped() -> SendError {
    SendError::Internal("the copy was stopped".to_owned())
}

fn stamp(target: &Target, dirs: &[ManifestDir]) -> Vec<UnstampedDir> {
    receive::stamp(target, dirs)
        .into_iter()
        .filter_map(|one| {
            let path = &dirs.get(one.dir as usize)?.path;
            Some((path.clone(), one.fault.into_error(path)))
        })
        .collect()
}

/// What of content was moved, in bytes.
#[derive(Default)]
struct Moved {
    sent: u64,
    cloned: u64,
}

/// Ends a pack of `files` in `dirs`, of which the first are `done`.
fn packed(
    target: &Target,
    dirs: &[ManifestDir],
    files: &[Entry],
    (mut done, moved): (Vec<Result<Written, FileError>>, Moved),
) -> Packed {
    let unstamped = stamp(target, dirs);
    if let Err(gone) = target.check_root() {
        for (written, entry) in done.iter_mut().zip(files).filter(|(done, _)| done.is_ok()) {
            *written = Err(error_of(entry, &gone));
        }
    }
    let Moved { sent, cloned } = moved;
    let (notes, to_sweep) = (target.take_metadata_warnings(), target.has_anchors());
    Packed { files: done, sent, cloned, notes, unstamped, to_sweep }
}

/// A file that is to be copied as a whole.
struct Copied<'a> {
    target: &'a Target,
    source: &'a Tree,
    entry: &'a Entry,
    claims: &'a Claims,
}

impl Copied<'_> {
    /// Nothing lies between the two ends that a digest could guard: it is computed only where one is wanted.
    fn hasher(&self) -> Option<ContentHasher> {
        self.claims.rules.returns_digests.then(|| ContentHasher::new(HashMode::Full))
    }

    fn open(&self) -> Result<(SourceFile, NewFile), FsError> {
        let file = self.source.open_source(self.entry)?;
        let new = self.target.create(file.entry(), self.claims.attempt)?;
        Ok((file, new))
    }

    /// Copies it as what it is now.
    fn copy(
        &self,
        clones: bool,
        moved: &mut Moved,
        (buffer, going): (&mut Buffer, Going<'_>),
    ) -> Result<Written, Stop> {
        going.on()?;
        let (file, mut new) = self.open().map_err(Stop::Error)?;
        let now = file.entry();
        let digest = if clones && self.try_clone(&file, &mut new, moved, going)? {
            self.read_cloned(&file, (buffer, going))?
        } else {
            let span = Span { offset: 0, length: now.size() };
            let mut hasher = self.hasher();
            let mut copier = Copier::new(&mut new, &now.path, buffer, going);
            let read = read_whole(&file, span, &mut hasher, &mut copier);
            moved.sent += copier.sent;
            self.is_all(&file, read?)?;
            hasher.map(ContentHasher::digest)
        };
        let bytes = now.size();
        NewFile::publish(new, now).map_err(Stop::Error)?;
        Ok(Written { bytes, digest })
    }

    /// Clones it as what it is now, up to its metadata and name: with its entry, and its digest where that is
    /// wanted; `None` where that cannot be.
    fn clone(
        &self,
        moved: &mut Moved,
        (buffer, going): &mut (&mut Buffer, Going<'_>),
    ) -> Result<Option<(NewFile, Entry, Option<Digest>)>, Stop> {
        going.on()?;
        let (file, mut new) = self.open().map_err(Stop::Error)?;
        if !file.is_version(self.entry) || !self.try_clone(&file, &mut new, moved, *going)? {
            return Ok(None);
        }
        let digest = self.read_cloned(&file, (buffer, *going))?;
        Ok(Some((new, file.entry().clone(), digest)))
    }

    fn try_clone(
        &self,
        file: &SourceFile,
        new: &mut NewFile,
        moved: &mut Moved,
        going: Going<'_>,
    ) -> Result<bool, Stop> {
        let mut go_on = |bytes| going.pace.acquire(bytes, || going.on()).is_ok();
        let cloned = new.reflink_from(file, &mut go_on).map_err(Stop::Error)?;
        if cloned {
            moved.cloned += file.stored_bytes();
        }
        Ok(cloned)
    }

    /// Checks that the source is what was cloned, and reads it where its digest is wanted.
    fn read_cloned(
        &self,
        file: &SourceFile,
        (buffer, going): (&mut Buffer, Going<'_>),
    ) -> Result<Option<Digest>, Stop> {
        let mut hasher = self.hasher();
        let read = match hasher.is_some() {
            true => {
                let span = Span { offset: 0, length: file.entry().size() };
                let mut sink = Nowhere { buffer, go_on: || going.on() };
                read_whole(file, span, &mut hasher, &mut sink)?
            }
            false => Read::All,
        };
        self.is_all(file, read)?;
        Ok(hasher.map(ContentHasher::digest))
    }

    fn is_all(&self, file: &SourceFile, read: Read) -> Result<(), Stop> {
        match read {
            Read::All => file.verify_unchanged().map_err(Stop::Error),
            Read::Short => Err(Stop::Error(changed(self.entry))),
            Read::Failed(error) => Err(Stop::Error(error)),
        }
    }
}

/// Whether, and how fast, a copy goes on.
#[derive(Clone, Copy)]
struct Going<'a> {
    cancelled: &'a Shutdown,
    until: &'a Until,
    pace: &'a Limiters,
}

impl Going<'_> {
    fn on(self) -> Result<(), Stop> {
        let over = self.cancelled.is_cancelled() || self.until.is_over();
        if over { Err(Stop::Cancelled) } else { Ok(()) }
    }
}

/// Takes content from one file of this host to another one.
struct Copier<'a, S> {
    store: &'a mut S,
    path: &'a RelPath,
    buffer: &'a mut Buffer,
    going: Going<'a>,
    /// Where the next content belongs.
    at: u64,
    /// What is kept is read back and hashed like this.
    checked: Option<HashMode>,
    sent: u64,
    kept: u64,
}

impl<'a, S> Copier<'a, S> {
    fn new(store: &'a mut S, path: &'a RelPath, buffer: &'a mut Buffer, going: Going<'a>) -> Self {
        Copier { store, path, buffer, going, at: 0, checked: None, sent: 0, kept: 0 }
    }
}

impl<S: Store> Sink for Copier<'_, S> {
    type Stop = Stop;

    fn room(&mut self, want: usize, _: bool) -> Result<&mut [u8], Stop> {
        Ok(&mut self.buffer.pages()[..want])
    }

    fn content(&mut self, n: usize) -> Result<(), Stop> {
        self.going.pace.acquire(n as u64, || self.going.on())?;
        self.store.write(&self.buffer.page()[..n], self.at).map_err(Stop::Error)?;
        self.sent += n as u64;
        self.at += n as u64;
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<(), Stop> {
        self.store.hole(Span { offset: self.at, length }).map_err(Stop::Error)?;
        self.at += length;
        Ok(())
    }

    fn keep(&mut self, from: ReuseSource, length: u64, values: &[Digest]) -> Result<(), Stop> {
        let span = Span { offset: self.at, length };
        let (going, path) = (self.going, self.path);
        let back = self.checked.map(|hashing| (path, hashing, self.buffer.pages()));
        let blocks = span.pieces(BLOCK_BYTES).zip(values.iter().copied());
        // Only part files are compared with.
        if let Some(part) = self.store.part() {
            keep_blocks(part, from, blocks, back, || going.on())?.map_err(Stop::Error)?;
        }
        self.kept += length;
        self.at += length;
        Ok(())
    }

    fn go_on(&self) -> Result<(), Stop> {
        self.going.on()
    }
}

/// Runs blocking work; it learns when nobody waits for it any more.
async fn run<T: Send + 'static>(
    work: impl FnOnce(Shutdown) -> Result<T, SendError> + Send + 'static,
) -> Result<T, SendError> {
    let cancelled = Shutdown::new();
    let _guard = cancelled.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(cancelled)).await {
        Ok(done) => done,
        Err(e) => Err(SendError::Internal(format!("copying panicked: {e}"))),
    }
}
