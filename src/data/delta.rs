//! Ranges that are compared before they are sent, in windows: block values of a window are asked for
//! while the one before it is on its way.

use super::asks::{BLOCK, BlockValue, BlocksAsk, WINDOW};
use super::destination::Destination;
use super::outcome::{Compared, RangeSent, SendError};
use super::pool::SCRATCH;
use super::read::{Span, hash_blocks};
use crate::fs::Tree;
use crate::wire::Digest;
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
    /// Sends what differs from `ranged`, and has the rest kept.
    pub(super) async fn delta(&self, ranged: Ranged<'_>) -> Result<RangeSent, SendError> {
        let mut windows = ranged.span.pieces(WINDOW);
        let mut next = windows.next();
        let mut there = match next {
            Some(window) => self.blocks_of(ranged, window).await?,
            None => Ok(Vec::new()),
        };
        let (mut values, mut all_sent, mut all_kept) = (Vec::new(), 0, 0);
        while let Some(window) = next {
            next = windows.next();
            let found = match there {
                Ok(found) => found,
                Err(error) => return Ok(RangeSent::Failed(error)),
            };
            let ask = async {
                match next {
                    Some(window) => self.blocks_of(ranged, window).await,
                    None => Ok(Ok(Vec::new())),
                }
            };
            let send = self.window(Ranged { span: window, ..ranged }, found);
            let (sent, asked) = tokio::try_join!(send, ask)?;
            there = asked;
            match sent {
                RangeSent::Written { value, sent, kept } => {
                    values.extend(value);
                    all_sent += sent;
                    all_kept += kept;
                }
                other => return Ok(other),
            }
        }
        Ok(RangeSent::Written { value: merge_blocks(&values), sent: all_sent, kept: all_kept })
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

    async fn blocks_of(&self, ranged: Ranged<'_>, window: Span) -> Result<There, SendError> {
        let ask = BlocksAsk {
            manifest: ranged.manifest.clone(),
            offset: window.offset,
            length: window.length,
            block: BLOCK,
        };
        self.blocks(ask).await
    }

    /// Compares `ranged` with the file that the destination has; nothing is sent.
    pub(super) async fn compared(&self, ranged: Ranged<'_>) -> Result<Compared, SendError> {
        let mut values = Vec::new();
        for window in ranged.span.pieces(WINDOW) {
            let (source, entry) = (ranged.source.clone(), ranged.entry.clone());
            let ours = async {
                let [mut scratch] = self.pool().take([SCRATCH]).await;
                let hash = move || hash_blocks(&source, &entry, window, &mut scratch);
                tokio::task::spawn_blocking(hash)
                    .await
                    .map_err(|e| SendError::Internal(format!("reading the source panicked: {e}")))
            };
            let (ours, theirs) = tokio::try_join!(ours, self.blocks_of(ranged, window))?;
            let ours: Vec<Digest> = match ours {
                Ok(ours) => ours,
                Err(e) if e.class() == ErrorClass::Changed => return Ok(Compared::Changed),
                Err(e) => return Ok(Compared::Failed(e.to_file_error())),
            };
            let theirs = match theirs {
                Ok(theirs) => theirs,
                Err(error) => return Ok(Compared::Failed(error)),
            };
            if !ours.iter().copied().map(Some).eq(theirs.iter().map(|block| block.base)) {
                return Ok(Compared::Differs);
            }
            values.extend(merge_blocks(&ours));
        }
        Ok(merge_blocks(&values).map_or(Compared::Differs, Compared::Equal))
    }
}
