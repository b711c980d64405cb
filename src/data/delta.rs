//! Ranges that are sent or compared in windows: block values of a window are requested while the one before
//! it is on its way. A hole is one window, however long it is, unless its zeros are hashed.
//!
//! With several NICs, what is sent goes in stripes: one connection is one NIC, and a range in one piece would leave
//! the others to other ranges.

use super::buffer_pool::BLOCK_BUFFER_BYTES;
use super::control_messages::BlockDigestsRequest;
use super::destination::Destination;
use super::outcome::{RangeError, RangeMode, SendError, WrittenRange};
use super::source_reader::{self, RangeTransfer, Span, WINDOW_BYTES, Window, hash_blocks};
use crate::fs::{ActingUser, BlockHashes, FsError, Tree, spawn_blocking};
use crate::wire::Digest;
use crate::wire::content::{BLOCK_BYTES, HashMode, SubtreeStack, ZERO_DIGEST, merge_blocks};
use crate::wire::manifest::{Entry, Manifest};
use crate::wire::outcome::{EntryError, ErrorClass};
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::BTreeMap;

/// The size of a piece, a power of two: long enough to hide a round trip, short enough that the end of
/// the last one is not waited for long, 0.07 s at 1 Gb/s.
const STRIPE_BYTES: u64 = 8 << 20;
/// Blocks of a piece.
const BLOCKS_PER_STRIPE: usize = (STRIPE_BYTES / BLOCK_BYTES) as usize;

/// What a destination has of the blocks of a window.
type DestinationBlocks = Result<Vec<BlockHashes>, EntryError>;

impl Destination {
    /// Brings `(offset, length)` of `entry`, the only file of `manifest`, into its part file. The
    /// range must fit ([`validate_range`](super::protocol::validate_range)).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn transfer_range(
        &self,
        source: &Tree,
        manifest: &Manifest,
        entry: &Entry,
        (offset, length): (u64, u64),
        mode: RangeMode,
    ) -> Result<WrittenRange, RangeError> {
        let transfer = RangeTransfer { source, manifest, entry, span: Span { offset, length } };
        match mode {
            RangeMode::Delta if offset.is_multiple_of(BLOCK_BYTES) => {
                self.send_windows(transfer, mode).await
            }
            // A long hole is one request, not one for each of its pieces.
            _ if self.is_multi_rail() && length > WINDOW_BYTES => {
                self.send_windows(transfer, mode).await
            }
            _ => self.send_striped(transfer, None).await,
        }
    }

    /// Compares `(offset, length)` of `entry`, the only file of `manifest`, with the file that the
    /// destination has; nothing is written. The range must fit, its offset must be a multiple of
    /// [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn compare(
        &self,
        source: &Tree,
        manifest: &Manifest,
        entry: &Entry,
        (offset, length): (u64, u64),
    ) -> Result<Option<Digest>, RangeError> {
        let transfer = RangeTransfer { source, manifest, entry, span: Span { offset, length } };
        let windows = self.split_into_windows(transfer).await?;
        let mut values = SubtreeStack::default();
        for Window { span, is_hole: hole } in windows {
            if hole && span.length > BLOCK_BYTES {
                let block = span.length.next_power_of_two();
                let existing = self.request_blocks(transfer, span, block).await??;
                // What is not a hole there may be zeros all the same.
                if existing.iter().all(|existing| existing.basis == Some(ZERO_DIGEST)) {
                    values.push_subtree(span.length, ZERO_DIGEST);
                    continue;
                }
            }
            for window in span.split(WINDOW_BYTES) {
                match self.compare_window(transfer, window).await? {
                    Some(value) => values.push_subtree(window.length, value),
                    None => return Ok(None),
                }
            }
        }
        Ok(values.merged_value())
    }

    /// Sends a range window by window; in a delta what differs, and has the rest kept.
    pub(super) async fn send_windows(
        &self,
        transfer: RangeTransfer<'_>,
        mode: RangeMode,
    ) -> Result<WrittenRange, RangeError> {
        let windows = self.split_into_windows(transfer).await?;
        if mode == RangeMode::Whole && windows.iter().all(|window| !window.is_hole) {
            return self.send_striped(transfer, None).await;
        }
        // Of a hole there is nothing to compare.
        let there_of = async |window: Option<&Window>| match window {
            Some(window) if mode == RangeMode::Delta && !window.is_hole => {
                self.request_blocks(transfer, window.span, BLOCK_BYTES).await
            }
            _ => Ok::<_, SendError>(Ok(Vec::new())),
        };
        let mut windows = windows.iter();
        let mut next = windows.next();
        let mut there = there_of(next).await?;
        let (mut values, mut all_sent, mut all_kept) = (SubtreeStack::default(), 0, 0);
        while let Some(window) = next {
            next = windows.next();
            let found = there?;
            let here = RangeTransfer { span: window.span, ..transfer };
            let send = async {
                match window.is_hole {
                    true => self.send_range(here, None).await,
                    false => self.send_window(here, found).await,
                }
            };
            let requested = async { Ok(there_of(next).await?) };
            let (WrittenRange { value, sent, kept }, request) = tokio::try_join!(send, requested)?;
            there = request;
            if let Some(value) = value {
                values.push_subtree(window.span.length, value);
            }
            all_sent += sent;
            all_kept += kept;
        }
        Ok(WrittenRange { value: values.merged_value(), sent: all_sent, kept: all_kept })
    }

    /// The windows of a range, with its holes where those need not be hashed.
    async fn split_into_windows(
        &self,
        transfer: RangeTransfer<'_>,
    ) -> Result<Vec<Window>, RangeError> {
        let RangeTransfer { source, entry, span, .. } = transfer;
        if self.hashing() == HashMode::Full {
            let whole = |span| Window { span, is_hole: false };
            return Ok(span.split(WINDOW_BYTES).map(whole).collect());
        }
        let (source, entry) = (source.clone(), entry.clone());
        let identity = source.identity().clone();
        let split = move || source_reader::split_into_windows(&source, &entry, span);
        Ok(read_blocking(&identity, split).await??)
    }

    /// Sends one window. What is kept may have become another one since it was compared: then the
    /// window is sent whole.
    pub(super) async fn send_window(
        &self,
        transfer: RangeTransfer<'_>,
        there: Vec<BlockHashes>,
    ) -> Result<WrittenRange, RangeError> {
        // Other ranges of a new file have begun, this one has not: there is nothing to compare with,
        // and content need not be gathered in blocks.
        if there.iter().all(|block| *block == BlockHashes::default()) {
            return self.send_striped(transfer, None).await;
        }
        match self.send_striped(transfer, Some(there)).await {
            Err(RangeError::Entry(error)) if error.class == ErrorClass::Transient => {
                tracing::debug!("a range is sent whole: {error}");
                self.send_striped(transfer, None).await
            }
            done => done,
        }
    }

    /// Sends a range, in pieces where there are several pairs of NICs; with `there` only what differs from
    /// those blocks.
    async fn send_striped(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockHashes>>,
    ) -> Result<WrittenRange, RangeError> {
        let Destination::Remote(peer) = self else {
            return self.send_range(transfer, existing).await;
        };
        let span = transfer.span;
        // Pieces are subtrees of the file's hash where the range begins with one.
        let cut = span.length > STRIPE_BYTES && span.offset.is_multiple_of(STRIPE_BYTES);
        if !cut || !peer.is_multi_rail() {
            return peer.transfer_range(transfer, existing).await;
        }
        let existing = existing.as_deref();
        let each = span.split(STRIPE_BYTES).enumerate().map(|(place, span)| async move {
            let blocks =
                existing.and_then(|existing| existing.chunks(BLOCKS_PER_STRIPE).nth(place));
            let sent = peer
                .transfer_range(RangeTransfer { span, ..transfer }, blocks.map(<[_]>::to_vec))
                .await?;
            Ok::<_, RangeError>((place, sent))
        });
        // Not in order: a slow NIC must not hold up the others.
        let mut done = futures_util::stream::iter(each).buffer_unordered(peer.parallel_stripes());
        let (mut values, mut all_sent, mut all_kept) = (BTreeMap::new(), 0, 0);
        while let Some((place, WrittenRange { value, sent, kept })) = done.try_next().await? {
            values.extend(value.map(|value| (place, value)));
            all_sent += sent;
            all_kept += kept;
        }
        let values: Vec<_> = values.into_values().collect();
        Ok(WrittenRange { value: merge_blocks(&values), sent: all_sent, kept: all_kept })
    }

    async fn request_blocks(
        &self,
        transfer: RangeTransfer<'_>,
        window: Span,
        block: u64,
    ) -> Result<DestinationBlocks, SendError> {
        let request = BlockDigestsRequest {
            manifest: transfer.manifest.clone(),
            offset: window.offset,
            length: window.length,
            block_bytes: block,
        };
        self.request(request).await
    }

    async fn compare_window(
        &self,
        transfer: RangeTransfer<'_>,
        window: Span,
    ) -> Result<Option<Digest>, RangeError> {
        let (source, entry, hashing) =
            (transfer.source.clone(), transfer.entry.clone(), self.hashing());
        let ours = async {
            let [mut scratch] = self.pool().acquire([BLOCK_BUFFER_BYTES]).await;
            let identity = source.identity().clone();
            let hash = move || hash_blocks(&source, &entry, window, hashing, &mut scratch);
            read_blocking(&identity, hash).await
        };
        let (ours, theirs) =
            tokio::try_join!(ours, self.request_blocks(transfer, window, BLOCK_BYTES))?;
        let (ours, theirs): (Vec<Digest>, _) = (ours?, theirs?);
        let is_equal = ours.iter().copied().map(Some).eq(theirs.iter().map(|block| block.basis));
        Ok(merge_blocks(&ours).filter(|_| is_equal))
    }
}

/// Runs `read`, which reads the source, in a thread of its own and as `identity`.
async fn read_blocking<T: Send + 'static>(
    identity: &ActingUser,
    read: impl FnOnce() -> Result<T, FsError> + Send + 'static,
) -> Result<Result<T, FsError>, SendError> {
    let read = spawn_blocking(identity, read).await;
    read.map_err(|e| SendError::Internal(format!("reading the source panicked: {e}")))
}
