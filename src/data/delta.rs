//! Ranges that are sent or compared in windows: block values of a window are asked for while the one before
//! it is on its way. A hole is one window, however long it is, unless its zeros are hashed.

use super::asks::{BLOCK_BYTES, BlockValue, BlocksAsk, WINDOW};
use super::destination::Destination;
use super::outcome::{Compared, RangeMode, RangeSent, SendError};
use super::pool::SCRATCH;
use super::read::{self, Span, Window, hash_blocks};
use crate::fs::{FsError, Tree};
use crate::wire::Digest;
use crate::wire::content::{HashMode, SubtreeStack, ZERO_DIGEST};
use crate::wire::manifest::{Entry, Manifest, merge_blocks};
use crate::wire::sync::{ErrorClass, FileError};

/// What a destination has of the blocks of a window.
type There = Result<Vec<BlockValue>, FileError>;

/// A range of the only file of a manifest.
#[derive(Clone, Copy)]
pub struct Ranged<'a> {
    /// Where it is read.
    pub source: &'a Tree,
    /// With the directories above the file.
    pub manifest: &'a Manifest,
    /// The file.
    pub entry: &'a Entry,
    /// What of it.
    pub span: Span,
}

impl Destination {
    /// Sends a range window by window; in a delta what differs, and has the rest kept.
    pub(super) async fn windowed(
        &self,
        ranged: Ranged<'_>,
        mode: RangeMode,
    ) -> Result<RangeSent, SendError> {
        let windows = match self.windows(ranged).await? {
            Ok(windows) => windows,
            Err(error) => return Ok(RangeSent::from(error)),
        };
        if mode == RangeMode::Whole && windows.iter().all(|window| !window.hole) {
            return self.striped(ranged, None).await;
        }
        // Of a hole there is nothing to compare.
        let there_of = async |window: Option<&Window>| match window {
            Some(window) if mode == RangeMode::Delta && !window.hole => {
                self.blocks_of(ranged, window.span, BLOCK_BYTES).await
            }
            _ => Ok(Ok(Vec::new())),
        };
        let mut windows = windows.iter();
        let mut next = windows.next();
        let mut there = there_of(next).await?;
        let (mut values, mut all_sent, mut all_kept) = (SubtreeStack::default(), 0, 0);
        while let Some(window) = next {
            next = windows.next();
            let found = match there {
                Ok(found) => found,
                Err(error) => return Ok(RangeSent::Failed(error)),
            };
            let here = Ranged { span: window.span, ..ranged };
            let send = async {
                match window.hole {
                    true => self.send_range(here, None).await,
                    false => self.window(here, found).await,
                }
            };
            let (sent, asked) = tokio::try_join!(send, there_of(next))?;
            there = asked;
            match sent {
                RangeSent::Written { value, sent, kept } => {
                    if let Some(value) = value {
                        values.push_subtree(window.span.length, value);
                    }
                    all_sent += sent;
                    all_kept += kept;
                }
                other => return Ok(other),
            }
        }
        Ok(RangeSent::Written { value: values.merged_value(), sent: all_sent, kept: all_kept })
    }

    /// The windows of a range, with its holes where those need not be hashed.
    async fn windows(&self, ranged: Ranged<'_>) -> Result<Result<Vec<Window>, FsError>, SendError> {
        let Ranged { source, entry, span, .. } = ranged;
        if self.hashing() == HashMode::Full {
            let whole = |span| Window { span, hole: false };
            return Ok(Ok(span.pieces(WINDOW).map(whole).collect()));
        }
        let (source, entry) = (source.clone(), entry.clone());
        reading(move || read::windows(&source, &entry, span)).await
    }

    /// Sends one window. What is kept may have become another one since it was compared: then the
    /// window is sent whole.
    pub(super) async fn window(
        &self,
        ranged: Ranged<'_>,
        there: Vec<BlockValue>,
    ) -> Result<RangeSent, SendError> {
        // Other ranges of a new file have begun, this one has not: there is nothing to compare with,
        // and content need not be gathered in blocks.
        if there.iter().all(|block| *block == BlockValue::default()) {
            return self.striped(ranged, None).await;
        }
        match self.striped(ranged, Some(there)).await? {
            RangeSent::Failed(error) if error.class == ErrorClass::Transient => {
                tracing::debug!("a range is sent whole: {error}");
                self.striped(ranged, None).await
            }
            done => Ok(done),
        }
    }

    async fn blocks_of(
        &self,
        ranged: Ranged<'_>,
        window: Span,
        block: u64,
    ) -> Result<There, SendError> {
        let ask = BlocksAsk {
            manifest: ranged.manifest.clone(),
            offset: window.offset,
            length: window.length,
            block,
        };
        self.blocks(ask).await
    }

    /// Compares `ranged` with the file that the destination has; nothing is sent.
    pub(super) async fn compared(&self, ranged: Ranged<'_>) -> Result<Compared, SendError> {
        let windows = match self.windows(ranged).await? {
            Ok(windows) => windows,
            Err(error) => return Ok(Compared::from(error)),
        };
        let mut values = SubtreeStack::default();
        for Window { span, hole } in windows {
            if hole && span.length > BLOCK_BYTES {
                match self.blocks_of(ranged, span, span.length.next_power_of_two()).await? {
                    Ok(there) if there.iter().all(|there| there.base == Some(ZERO_DIGEST)) => {
                        values.push_subtree(span.length, ZERO_DIGEST);
                        continue;
                    }
                    // It is not a hole there, and may be zeros all the same.
                    Ok(_) => {}
                    Err(error) => return Ok(Compared::Failed(error)),
                }
            }
            for window in span.pieces(WINDOW) {
                match self.compared_window(ranged, window).await? {
                    Compared::Equal(value) => values.push_subtree(window.length, value),
                    other => return Ok(other),
                }
            }
        }
        Ok(values.merged_value().map_or(Compared::Differs, Compared::Equal))
    }

    async fn compared_window(
        &self,
        ranged: Ranged<'_>,
        window: Span,
    ) -> Result<Compared, SendError> {
        let (source, entry, hashing) =
            (ranged.source.clone(), ranged.entry.clone(), self.hashing());
        let ours = async {
            let [mut scratch] = self.pool().take([SCRATCH]).await;
            reading(move || hash_blocks(&source, &entry, window, hashing, &mut scratch)).await
        };
        let (ours, theirs) = tokio::try_join!(ours, self.blocks_of(ranged, window, BLOCK_BYTES))?;
        let ours: Vec<Digest> = match ours {
            Ok(ours) => ours,
            Err(error) => return Ok(Compared::from(error)),
        };
        let theirs = match theirs {
            Ok(theirs) => theirs,
            Err(error) => return Ok(Compared::Failed(error)),
        };
        if !ours.iter().copied().map(Some).eq(theirs.iter().map(|block| block.base)) {
            return Ok(Compared::Differs);
        }
        Ok(merge_blocks(&ours).map_or(Compared::Differs, Compared::Equal))
    }
}

/// Runs `read`, which reads the source, in a thread of its own.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, FsError> + Send + 'static,
) -> Result<Result<T, FsError>, SendError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|e| SendError::Internal(format!("reading the source panicked: {e}")))
}
