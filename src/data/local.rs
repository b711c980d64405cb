//! A destination on this host: the same outcomes as with a peer, without the network.

use super::buffer_pool::{Buffer, BufferPool, SEND_BUFFER_BYTES};
use super::content_writer::{ContentWriter, keep_blocks};
use super::control_messages::{BLOCK_BYTES, BlockDigests, ControlRequest};
use super::deadline::Deadline;
use super::outcome::{
    DirMetadataError, OfferOutcome, PackOutcome, RangeError, SendError, WrittenFile, WrittenRange,
};
use super::protocol::{PACK, RANGE};
use super::receive;
use super::send::read_range;
use super::source_reader::{
    HashOnlySink, RangeTransfer, ReadOutcome, Sink, Span, changed_error, open_version, read_whole,
};
use super::ticket_verifier::{self, Refusal};
use crate::fs::{FsError, NewFile, OfferDecision, ReuseSource, SourceFile, Target, Tree};
use crate::util::rate::Limiters;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::shutdown::Shutdown;
use crate::wire::content::{ContentHasher, HashMode};
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::options::WriteRules;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::ticket::Claims;
use crate::wire::{BytePath, Digest, RelPath};
use parking_lot::Mutex;
use std::sync::Arc;

/// A destination below a storage root of this host.
pub struct Local {
    target: Arc<Target>,
    claims: Arc<Claims>,
    pool: BufferPool,
    limiters: Limiters,
    deadline: Deadline,
    can_clone: bool,
}

/// The outcome of cloning a large file.
pub enum CloneOutcome {
    /// It is at its place.
    Cloned(PackOutcome),
    /// The file is up to date or failed: the outcome of its offer now.
    NotNeeded(OfferOutcome),
    /// It is to be copied.
    Unavailable,
}

/// One large file of this process is cloned at a time: what waits finds it cloned.
static CLONE_LOCK: Mutex<()> = Mutex::new(());

/// Why copying one file stopped.
enum CopyError {
    Error(FsError),
    Cancelled,
}

impl From<CopyError> for RangeError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Error(error) => error.into(),
            CopyError::Cancelled => cancelled_error().into(),
        }
    }
}

impl From<Refusal> for SendError {
    fn from(refused: Refusal) -> Self {
        SendError::Internal(refused.to_string())
    }
}

impl Local {
    /// What it reads to.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Writes to `target` as the ticket with these `claims` allows, through buffers of `pool`.
    pub fn new(target: Target, claims: Claims, pool: BufferPool) -> Self {
        let (limiters, deadline) = (Limiters::default(), Deadline::default());
        let (target, claims) = (Arc::new(target), Arc::new(claims));
        Local { target, claims, pool, limiters, deadline, can_clone: false }
    }

    /// The same, within the limits of `pace`.
    pub fn with_limiters(self, limiters: Limiters) -> Self {
        Local { limiters, ..self }
    }

    /// The same; content that source and destination can share is cloned, where that is enabled.
    pub fn with_cloning(self, can_clone: bool) -> Self {
        Local { can_clone, ..self }
    }

    /// The same; no content is written any more once that is over.
    pub fn with_deadline(self, deadline: &Deadline) -> Self {
        Local { deadline: deadline.clone(), ..self }
    }

    /// How content is compared.
    pub(super) fn hashing(&self) -> HashMode {
        self.rules().hash_mode()
    }

    fn rules(&self) -> &WriteRules {
        &self.claims.rules
    }

    /// Executes a request.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub(super) async fn request<R: ControlRequest>(
        &self,
        request: R,
    ) -> Result<R::Outcome, SendError> {
        request.check_permission(&self.claims)?;
        let (target, claims) = (self.target.clone(), self.claims.clone());
        let mut buffer = self.pool.acquire_block(R::NEEDS_BUFFER).await;
        run_blocking(move |_| {
            let buffer = buffer.as_mut().map_or(&mut [][..], Buffer::content_mut);
            request.handle_locally(&target, &claims, buffer).map_err(SendError::Internal)
        })
        .await
    }

    /// Copies `files` of `source`, which lie in `dirs`, as what each of them is now. Dropping the
    /// future stops the work at the next buffer.
    ///
    /// # Errors
    /// [`SendError::Internal`].
    pub async fn transfer_pack(
        &self,
        source: &Tree,
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<PackOutcome, SendError> {
        ticket_verifier::check_permission(&self.claims, PACK)?;
        let (target, source) = (self.target.clone(), source.clone());
        let (claims, limiters) = (self.claims.clone(), self.limiters.clone());
        let (deadline, can_clone) = (self.deadline.clone(), self.can_clone);
        let [mut buffer] = self.pool.acquire([SEND_BUFFER_BYTES]).await;
        run_blocking(move |cancelled| {
            let control =
                CopyControl { cancelled: &cancelled, deadline: &deadline, limiters: &limiters };
            let mut done = Vec::with_capacity(files.len());
            let mut copied = CopiedBytes::default();
            for entry in &files {
                let file = FileCopy { target: &target, source: &source, entry, claims: &claims };
                match file.copy(can_clone, &mut copied, (&mut buffer, control)) {
                    Ok(written) => done.push(Ok(written)),
                    Err(CopyError::Error(error)) => done.push(Err(entry_error(entry, &error))),
                    Err(CopyError::Cancelled) => break,
                }
            }
            let packed = finish_pack(&target, &dirs, &files, (done, copied));
            if packed.files.len() < files.len() {
                return Err(cancelled_error());
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
    ) -> Result<CloneOutcome, SendError> {
        ticket_verifier::check_permission(&self.claims, PACK)?;
        if !self.can_clone {
            return Ok(CloneOutcome::Unavailable);
        }
        let (target, source) = (self.target.clone(), source.clone());
        let (claims, limiters) = (self.claims.clone(), self.limiters.clone());
        let (deadline, manifest) = (self.deadline.clone(), manifest.clone());
        let [mut buffer] = self.pool.acquire([SEND_BUFFER_BYTES]).await;
        run_blocking(move |cancelled| {
            let control =
                CopyControl { cancelled: &cancelled, deadline: &deadline, limiters: &limiters };
            let [entry] = manifest.entries.as_slice() else { return Ok(CloneOutcome::Unavailable) };
            // What goes wrong here is found again when it is copied.
            match open_version(&source, entry) {
                Ok(file) if target.can_reflink(entry, &file) => {}
                _ => return Ok(CloneOutcome::Unavailable),
            }
            let _alone = CLONE_LOCK.lock();
            let reply = receive::handle_offer(&target, &manifest, false);
            let existing =
                OfferOutcome::from_reply(&manifest, reply).map_err(SendError::Internal)?;
            if !matches!(
                existing.results.as_slice(),
                [Ok(OfferDecision::NeedsContent { .. } | OfferDecision::NeedsDigest)]
            ) {
                return Ok(CloneOutcome::NotNeeded(existing));
            }
            let (mut copied, mut read) = (CopiedBytes::default(), (&mut buffer, control));
            let file = FileCopy { target: &target, source: &source, entry, claims: &claims };
            let done = match file.clone_to_temporary(&mut copied, &mut read) {
                Ok(Some((new, now, digest))) => {
                    let published = NewFile::publish(new, &now);
                    published.map(|()| WrittenFile { bytes: now.size(), digest })
                }
                Ok(None) => return Ok(CloneOutcome::Unavailable),
                Err(CopyError::Error(error)) => Err(error),
                Err(CopyError::Cancelled) => return Err(cancelled_error()),
            };
            if let Err(error) = target.remove_part_file(entry) {
                warn_ratelimited!(error.describe_cause(), "{error}");
            }
            let done = done.map_err(|error| entry_error(entry, &error));
            let files = [entry.clone()];
            Ok(CloneOutcome::Cloned(finish_pack(
                &target,
                &manifest.dirs,
                &files,
                (vec![done], copied),
            )))
        })
        .await
    }

    /// Copies a range into its part file; with `there` only what differs from those blocks. The caller
    /// has checked that the range fits.
    ///
    /// # Errors
    /// The file failed at one of the two ends, or [`SendError::Internal`].
    pub(super) async fn transfer_range(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockDigests>>,
    ) -> Result<WrittenRange, RangeError> {
        ticket_verifier::check_permission(&self.claims, RANGE).map_err(SendError::from)?;
        let (target, limiters) = (self.target.clone(), self.limiters.clone());
        let deadline = self.deadline.clone();
        let (source, entry, span) =
            (transfer.source.clone(), transfer.entry.clone(), transfer.span);
        let (checked, hashing) =
            (self.rules().receiver_hash_mode(), self.rules().sender_hash_mode());
        let (mut buffer, mut scratch) = self.pool.acquire_for_send(existing.is_some()).await;
        run_blocking(move |cancelled| {
            let file = open_version(&source, &entry)?;
            let control =
                CopyControl { cancelled: &cancelled, deadline: &deadline, limiters: &limiters };
            control.check_active()?;
            let mut part = target.open_part_file(&entry)?;
            if existing.is_none() && file.is_dense() {
                part.reserve_blocks(span.offset, span.length)?;
            }
            let compare = existing.as_deref().zip(scratch.as_mut().map(Buffer::content_mut));
            let mut copier = CopySink {
                offset: span.offset,
                verify_hashing: checked,
                ..CopySink::new(&mut part, &entry.path, &mut buffer, control)
            };
            let value = match read_range(&file, span, compare, hashing, &mut copier)? {
                (ReadOutcome::Complete, value) if file.verify_unchanged().is_ok() => value,
                (ReadOutcome::Complete | ReadOutcome::Truncated, _) => {
                    return Err(changed_error(&entry).into());
                }
                (ReadOutcome::Failed(error), _) => return Err(error.into()),
            };
            let (sent, kept) = (copier.sent, copier.kept);
            part.close()?;
            Ok(WrittenRange { value, sent, kept })
        })
        .await
    }
}

/// The report of an error that made `entry` fail. One of the storage root has no path of its own.
fn entry_error(entry: &Entry, error: &FsError) -> EntryError {
    let mut report = error.to_entry_error();
    if report.class == ErrorClass::StorageGone {
        report.path = BytePath(entry.path.as_bytes().to_vec());
    }
    report
}

fn cancelled_error() -> SendError {
    SendError::Internal("the copy was stopped".to_owned())
}

fn apply_dir_metadata(target: &Target, dirs: &[ManifestDir]) -> Vec<DirMetadataError> {
    receive::apply_dir_metadata(target, dirs)
        .into_iter()
        .filter_map(|one| {
            let path = &dirs.get(one.dir as usize)?.path;
            Some((path.clone(), one.error.received(path)))
        })
        .collect()
}

/// What of content was moved, in bytes.
#[derive(Default)]
struct CopiedBytes {
    sent: u64,
    cloned: u64,
}

/// Ends a pack of `files` in `dirs`, of which the first are `done`.
fn finish_pack(
    target: &Target,
    dirs: &[ManifestDir],
    files: &[Entry],
    (mut done, copied): (Vec<Result<WrittenFile, EntryError>>, CopiedBytes),
) -> PackOutcome {
    let unstamped = apply_dir_metadata(target, dirs);
    if let Err(error) = target.check_root() {
        for (written, entry) in done.iter_mut().zip(files).filter(|(done, _)| done.is_ok()) {
            *written = Err(entry_error(entry, &error));
        }
    }
    let CopiedBytes { sent, cloned } = copied;
    let (warnings, needs_clean_up) = (target.take_metadata_warnings(), target.has_anchors());
    PackOutcome { files: done, sent, cloned, warnings, dir_errors: unstamped, needs_clean_up }
}

/// A file that is to be copied as a whole.
struct FileCopy<'a> {
    target: &'a Target,
    source: &'a Tree,
    entry: &'a Entry,
    claims: &'a Claims,
}

impl FileCopy<'_> {
    /// No network is between the two ends, so a digest is computed only where one is requested.
    fn hasher(&self) -> Option<ContentHasher> {
        self.claims.rules.returns_digests.then(|| ContentHasher::new(HashMode::Full))
    }

    fn open_both(&self) -> Result<(SourceFile, NewFile), FsError> {
        let file = self.source.open_source(self.entry)?;
        let new = self.target.create(file.entry(), self.claims.attempt)?;
        Ok((file, new))
    }

    /// Copies it as what it is now.
    fn copy(
        &self,
        can_clone: bool,
        copied: &mut CopiedBytes,
        (buffer, control): (&mut Buffer, CopyControl<'_>),
    ) -> Result<WrittenFile, CopyError> {
        control.check_active()?;
        let (file, mut new) = self.open_both().map_err(CopyError::Error)?;
        let now = file.entry();
        let digest = if can_clone && self.try_clone(&file, &mut new, copied, control)? {
            self.digest_cloned(&file, (buffer, control))?
        } else {
            let span = Span { offset: 0, length: now.size() };
            let mut hasher = self.hasher();
            let mut copier = CopySink::new(&mut new, &now.path, buffer, control);
            let read = read_whole(&file, span, &mut hasher, &mut copier);
            copied.sent += copier.sent;
            self.check_complete(&file, read?)?;
            hasher.map(ContentHasher::digest)
        };
        let bytes = now.size();
        NewFile::publish(new, now).map_err(CopyError::Error)?;
        Ok(WrittenFile { bytes, digest })
    }

    /// Clones it as what it is now, up to its metadata and name: with its entry, and its digest where that is
    /// wanted; `None` where that cannot be.
    fn clone_to_temporary(
        &self,
        copied: &mut CopiedBytes,
        (buffer, control): &mut (&mut Buffer, CopyControl<'_>),
    ) -> Result<Option<(NewFile, Entry, Option<Digest>)>, CopyError> {
        control.check_active()?;
        let (file, mut new) = self.open_both().map_err(CopyError::Error)?;
        if !file.is_version(self.entry) || !self.try_clone(&file, &mut new, copied, *control)? {
            return Ok(None);
        }
        let digest = self.digest_cloned(&file, (buffer, *control))?;
        Ok(Some((new, file.entry().clone(), digest)))
    }

    fn try_clone(
        &self,
        file: &SourceFile,
        new: &mut NewFile,
        copied: &mut CopiedBytes,
        control: CopyControl<'_>,
    ) -> Result<bool, CopyError> {
        let mut go_on = |bytes| control.limiters.acquire(bytes, || control.check_active()).is_ok();
        let cloned = new.reflink_from(file, &mut go_on).map_err(CopyError::Error)?;
        if cloned {
            copied.cloned += file.stored_bytes();
        }
        Ok(cloned)
    }

    /// Checks that the source is what was cloned, and reads it where its digest is requested.
    fn digest_cloned(
        &self,
        file: &SourceFile,
        (buffer, control): (&mut Buffer, CopyControl<'_>),
    ) -> Result<Option<Digest>, CopyError> {
        let mut hasher = self.hasher();
        let read = match hasher.is_some() {
            true => {
                let span = Span { offset: 0, length: file.entry().size() };
                let mut sink = HashOnlySink { buffer, check_active: || control.check_active() };
                read_whole(file, span, &mut hasher, &mut sink)?
            }
            false => ReadOutcome::Complete,
        };
        self.check_complete(file, read)?;
        Ok(hasher.map(ContentHasher::digest))
    }

    fn check_complete(&self, file: &SourceFile, read: ReadOutcome) -> Result<(), CopyError> {
        match read {
            ReadOutcome::Complete => file.verify_unchanged().map_err(CopyError::Error),
            ReadOutcome::Truncated => Err(CopyError::Error(changed_error(self.entry))),
            ReadOutcome::Failed(error) => Err(CopyError::Error(error)),
        }
    }
}

/// What ends or slows a copy.
#[derive(Clone, Copy)]
struct CopyControl<'a> {
    cancelled: &'a Shutdown,
    deadline: &'a Deadline,
    limiters: &'a Limiters,
}

impl CopyControl<'_> {
    fn check_active(self) -> Result<(), CopyError> {
        let over = self.cancelled.is_cancelled() || self.deadline.is_over();
        if over { Err(CopyError::Cancelled) } else { Ok(()) }
    }
}

/// Copies content from one file of this host to another one.
struct CopySink<'a, S> {
    store: &'a mut S,
    path: &'a RelPath,
    buffer: &'a mut Buffer,
    control: CopyControl<'a>,
    /// Where the next content belongs.
    offset: u64,
    /// What is kept is read back and hashed like this.
    verify_hashing: Option<HashMode>,
    sent: u64,
    kept: u64,
}

impl<'a, S> CopySink<'a, S> {
    fn new(
        store: &'a mut S,
        path: &'a RelPath,
        buffer: &'a mut Buffer,
        control: CopyControl<'a>,
    ) -> Self {
        CopySink { store, path, buffer, control, offset: 0, verify_hashing: None, sent: 0, kept: 0 }
    }
}

impl<S: ContentWriter> Sink for CopySink<'_, S> {
    type Stop = CopyError;

    fn room(&mut self, want: usize, _: bool) -> Result<&mut [u8], CopyError> {
        Ok(&mut self.buffer.content_mut()[..want])
    }

    fn content(&mut self, n: usize) -> Result<(), CopyError> {
        self.control.limiters.acquire(n as u64, || self.control.check_active())?;
        self.store.write(&self.buffer.content()[..n], self.offset).map_err(CopyError::Error)?;
        self.sent += n as u64;
        self.offset += n as u64;
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<(), CopyError> {
        self.store.hole(Span { offset: self.offset, length }).map_err(CopyError::Error)?;
        self.offset += length;
        Ok(())
    }

    fn keep(&mut self, from: ReuseSource, length: u64, values: &[Digest]) -> Result<(), CopyError> {
        let span = Span { offset: self.offset, length };
        let (control, path) = (self.control, self.path);
        let back = self.verify_hashing.map(|hashing| (path, hashing, self.buffer.content_mut()));
        let blocks = span.split(BLOCK_BYTES).zip(values.iter().copied());
        // Only part files are compared with.
        if let Some(part) = self.store.part_file() {
            keep_blocks(part, from, blocks, back, || control.check_active())?
                .map_err(CopyError::Error)?;
        }
        self.kept += length;
        self.offset += length;
        Ok(())
    }

    fn check_active(&self) -> Result<(), CopyError> {
        self.control.check_active()
    }
}

/// Runs blocking work; its argument is cancelled when the returned future is dropped.
async fn run_blocking<T: Send + 'static, E: From<SendError> + Send + 'static>(
    work: impl FnOnce(Shutdown) -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let cancelled = Shutdown::new();
    let _guard = cancelled.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(cancelled)).await {
        Ok(done) => done,
        Err(e) => Err(SendError::Internal(format!("copying panicked: {e}")).into()),
    }
}
