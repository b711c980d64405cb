//! A destination on this host: the same outcomes as with a peer, without the network.

use super::buffer_pool::{Buffer, BufferPool, SEND_BUFFER_BYTES};
use super::content_writer::{ContentWriter, keep_blocks};
use super::control_messages::ControlRequest;
use super::deadline::TransferControl;
use super::outcome::{OfferOutcome, PackOutcome, RangeError, SendError, WrittenFile, WrittenRange};
use super::protocol::{PACK, RANGE};
use super::receive;
use super::send::read_range;
use super::source_reader::{RangeTransfer, Sink, Span, hash_file, open_version, read_whole};
use super::ticket_verifier::{self, Refusal};
use crate::fs::{
    ActingUser, BlockHashes, FsError, NewFile, OfferDecision, ReuseSource, SourceFile, Target,
    Tree, spawn_blocking,
};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::{BLOCK_BYTES, ContentHasher, HashMode};
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
    /// What it reads to.
    pub(super) pool: BufferPool,
    control: TransferControl,
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

impl From<FsError> for CopyError {
    fn from(error: FsError) -> Self {
        CopyError::Error(error)
    }
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
    /// Writes to `target` as the ticket with these `claims` allows, through buffers of `pool`.
    pub fn new(target: Target, claims: Claims, pool: BufferPool) -> Self {
        let (target, claims) = (Arc::new(target), Arc::new(claims));
        Local { target, claims, pool, control: TransferControl::default() }
    }

    /// The same, ended and slowed by `control`.
    pub fn with_control(self, control: TransferControl) -> Self {
        Local { control, ..self }
    }

    pub(super) fn rules(&self) -> &WriteRules {
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
        run_blocking((&self.control, self.target.identity()), move |_| {
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
        self.copy_files(source, move |mut copier| {
            let mut done = Vec::with_capacity(files.len());
            for entry in &files {
                match copier.copy(entry) {
                    Ok(written) => done.push(Ok(written)),
                    Err(CopyError::Error(error)) => done.push(Err(entry_error(entry, &error))),
                    Err(CopyError::Cancelled) => break,
                }
            }
            let packed = copier.finish_pack(&dirs, &files, done);
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
        ticket_verifier::check_permission(&self.claims, RANGE)?;
        if !self.control.can_clone {
            return Ok(CloneOutcome::Unavailable);
        }
        let manifest = manifest.clone();
        self.copy_files(source, move |mut copier| {
            let target = copier.target;
            let [entry] = manifest.entries.as_slice() else { return Ok(CloneOutcome::Unavailable) };
            // What goes wrong here is found again when it is copied.
            match open_version(copier.source, entry) {
                Ok(file) if target.can_reflink(entry, &file) => {}
                _ => return Ok(CloneOutcome::Unavailable),
            }
            let _alone = CLONE_LOCK.lock();
            let reply = receive::handle_offer(target, &manifest, false);
            let existing =
                OfferOutcome::from_reply(&manifest, reply).map_err(SendError::Internal)?;
            if !matches!(
                existing.results.as_slice(),
                [Ok(OfferDecision::NeedsContent { .. } | OfferDecision::NeedsDigest)]
            ) {
                return Ok(CloneOutcome::NotNeeded(existing));
            }
            let done = match copier.clone_version(entry) {
                Ok(Some(written)) => Ok(written),
                Ok(None) => return Ok(CloneOutcome::Unavailable),
                Err(CopyError::Error(error)) => Err(error),
                Err(CopyError::Cancelled) => return Err(cancelled_error()),
            };
            if let Err(error) = target.remove_part_file(entry) {
                warn_ratelimited!(error.describe_cause(), "{error}");
            }
            let done = done.map_err(|error| entry_error(entry, &error));
            let packed = copier.finish_pack(&manifest.dirs, &manifest.entries, vec![done]);
            Ok(CloneOutcome::Cloned(packed))
        })
        .await
    }

    /// Runs blocking work that copies whole files of `source`.
    async fn copy_files<T: Send + 'static>(
        &self,
        source: &Tree,
        work: impl FnOnce(FileCopier<'_>) -> Result<T, SendError> + Send + 'static,
    ) -> Result<T, SendError> {
        let (target, claims, source) = (self.target.clone(), self.claims.clone(), source.clone());
        let [mut buffer] = self.pool.acquire([SEND_BUFFER_BYTES]).await;
        run_blocking((&self.control, self.target.identity()), move |control| {
            work(FileCopier {
                target: &target,
                source: &source,
                claims: &claims,
                buffer: &mut buffer,
                control,
                sent: 0,
                cloned: 0,
            })
        })
        .await
    }

    /// Copies a range into its part file; with `existing` only what differs from those blocks. The caller
    /// has checked that the range fits.
    ///
    /// # Errors
    /// The file failed at one of the two ends, or [`SendError::Internal`].
    pub(super) async fn transfer_range(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockHashes>>,
    ) -> Result<WrittenRange, RangeError> {
        ticket_verifier::check_permission(&self.claims, RANGE).map_err(SendError::from)?;
        let target = self.target.clone();
        let (source, entry, span) =
            (transfer.source.clone(), transfer.entry.clone(), transfer.span);
        let (checked, hashing) =
            (self.rules().receiver_hash_mode(), self.rules().sender_hash_mode());
        let for_relays = self.control.hashes_for_relays.then(|| self.rules().hash_mode());
        let hashing = hashing.or(for_relays);
        let (mut buffer, mut scratch) = self.pool.acquire_for_send(existing.is_some()).await;
        run_blocking((&self.control, self.target.identity()), move |control| {
            let file = open_version(&source, &entry)?;
            check_active(control)?;
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
            let value = read_range(&file, span, compare, hashing, &mut copier)??;
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

/// Copies files as a whole.
struct FileCopier<'a> {
    target: &'a Target,
    source: &'a Tree,
    claims: &'a Claims,
    buffer: &'a mut Buffer,
    control: &'a TransferControl,
    /// Content that was copied, in bytes.
    sent: u64,
    /// Content that was cloned, in bytes.
    cloned: u64,
}

impl FileCopier<'_> {
    fn open_both(&self, entry: &Entry) -> Result<(SourceFile, NewFile), CopyError> {
        check_active(self.control)?;
        let file = self.source.open_source(entry)?;
        let new = self.target.create(file.entry(), self.claims.attempt)?;
        Ok((file, new))
    }

    /// Copies `entry` as what it is now.
    fn copy(&mut self, entry: &Entry) -> Result<WrittenFile, CopyError> {
        let (file, mut new) = self.open_both(entry)?;
        let now = file.entry();
        let bytes = now.size();
        let digest = if self.control.can_clone && self.try_clone(&file, &mut new)? {
            self.digest_cloned(&file)?
        } else {
            let mut hasher = self.hashing().map(ContentHasher::new);
            let mut copier = CopySink::new(&mut new, &now.path, self.buffer, self.control);
            let span = Span { offset: 0, length: bytes };
            let read = read_whole(&file, span, &mut hasher, &mut copier);
            self.sent += copier.sent;
            read??;
            let found = hasher.map(ContentHasher::digest);
            file.verify_digest(found)?;
            found
        };
        NewFile::publish(new, now)?;
        Ok(self.written_file(&file, entry, digest))
    }

    /// No network is between the two ends, so a digest is computed only where one is requested.
    fn hashing(&self) -> Option<HashMode> {
        let rules = &self.claims.rules;
        (rules.returns_digests || self.control.hashes_for_relays).then(|| rules.hash_mode())
    }

    /// `file` is at its place, with this [digest](Self::hashing); it was to be copied as `entry`.
    fn written_file(&self, file: &SourceFile, entry: &Entry, found: Option<Digest>) -> WrittenFile {
        let for_relays = self.control.hashes_for_relays;
        WrittenFile {
            bytes: file.size(),
            digest: found.filter(|_| self.claims.rules.returns_digests),
            relay_digest: found.filter(|_| for_relays && file.is_version(entry)),
        }
    }

    /// Clones this version of `entry`; `None` where that cannot be.
    fn clone_version(&mut self, entry: &Entry) -> Result<Option<WrittenFile>, CopyError> {
        let (file, mut new) = self.open_both(entry)?;
        if !file.is_version(entry) || !self.try_clone(&file, &mut new)? {
            return Ok(None);
        }
        let digest = self.digest_cloned(&file)?;
        NewFile::publish(new, file.entry())?;
        Ok(Some(self.written_file(&file, entry, digest)))
    }

    fn try_clone(&mut self, file: &SourceFile, new: &mut NewFile) -> Result<bool, CopyError> {
        let control = self.control;
        let mut go_on = |bytes| control.limiters.acquire(bytes, || check_active(control)).is_ok();
        let cloned = new.reflink_from(file, &mut go_on)?;
        if cloned {
            self.cloned += file.stored_bytes();
        }
        Ok(cloned)
    }

    /// Checks that the source is what was cloned, and reads it where its digest is requested.
    fn digest_cloned(&mut self, file: &SourceFile) -> Result<Option<Digest>, CopyError> {
        let Some(hashing) = self.hashing() else {
            file.verify_unchanged()?;
            return Ok(None);
        };
        let control = self.control;
        let digest = hash_file(file, hashing, self.buffer, || check_active(control))?;
        Ok(Some(digest?))
    }

    /// Ends a pack of `files` in `dirs`, of which the first are `done`.
    fn finish_pack(
        self,
        dirs: &[ManifestDir],
        files: &[Entry],
        mut done: Vec<Result<WrittenFile, EntryError>>,
    ) -> PackOutcome {
        let FileCopier { target, sent, cloned, .. } = self;
        let dir_errors = target.apply_dir_metadata(dirs);
        if let Err(error) = target.check_root() {
            for (written, entry) in done.iter_mut().zip(files).filter(|(done, _)| done.is_ok()) {
                *written = Err(entry_error(entry, &error));
            }
        }
        let (warnings, needs_clean_up) = (target.take_metadata_warnings(), target.has_anchors());
        PackOutcome { files: done, sent, cloned, warnings, dir_errors, needs_clean_up }
    }
}

fn check_active(control: &TransferControl) -> Result<(), CopyError> {
    if control.is_over() { Err(CopyError::Cancelled) } else { Ok(()) }
}

/// Copies content from one file of this host to another one.
struct CopySink<'a, S> {
    store: &'a mut S,
    path: &'a RelPath,
    buffer: &'a mut Buffer,
    control: &'a TransferControl,
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
        control: &'a TransferControl,
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
        self.control.limiters.acquire(n as u64, || self.check_active())?;
        self.store.write(&self.buffer.content()[..n], self.offset)?;
        self.sent += n as u64;
        self.offset += n as u64;
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<(), CopyError> {
        self.store.hole(Span { offset: self.offset, length })?;
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
            keep_blocks(part, from, blocks, back, || check_active(control))??;
        }
        self.kept += length;
        self.offset += length;
        Ok(())
    }

    fn check_active(&self) -> Result<(), CopyError> {
        check_active(self.control)
    }
}

/// Runs blocking work as `identity` and as `control` allows; it is cancelled when the returned future is dropped.
async fn run_blocking<T: Send + 'static, E: From<SendError> + Send + 'static>(
    (control, identity): (&TransferControl, &ActingUser),
    work: impl FnOnce(&TransferControl) -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let (control, _guard) = control.start_attempt();
    match spawn_blocking(identity, move || work(&control)).await {
        Ok(done) => done,
        Err(e) => Err(SendError::Internal(format!("copying panicked: {e}")).into()),
    }
}
