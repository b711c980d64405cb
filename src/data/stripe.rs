//! Ranges in pieces over several NICs: one connection is one NIC, and a range in one piece would leave
//! the others to other ranges.

use super::asks::{BLOCK_BYTES, BlockValue};
use super::delta::Ranged;
use super::destination::Destination;
use super::outcome::{RangeSent, SendError};
use crate::wire::manifest::merge_blocks;
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::BTreeMap;

/// The size of a piece, a power of two: long enough to hide a round trip, short enough that the end of
/// the last one is not waited for long, 0.07 s at 1 Gb/s.
const PIECE: u64 = 8 << 20;
/// Blocks of a piece.
const BLOCKS: usize = (PIECE / BLOCK_BYTES) as usize;

impl Destination {
    /// Sends a range, in pieces where there are several pairs of NICs; with `there` only what differs from
    /// those blocks.
    pub(super) async fn striped(
        &self,
        ranged: Ranged<'_>,
        there: Option<Vec<BlockValue>>,
    ) -> Result<RangeSent, SendError> {
        let Destination::Remote(peer) = self else { return self.send_range(ranged, there).await };
        let span = ranged.span;
        // Pieces are subtrees of the file's hash where the range begins with one.
        let cut = span.length > PIECE && span.offset.is_multiple_of(PIECE);
        if !cut || !peer.is_wide() {
            return peer.range(ranged, there).await;
        }
        let there = there.as_deref();
        let each = span.pieces(PIECE).enumerate().map(|(place, span)| async move {
            let blocks = there.and_then(|there| there.chunks(BLOCKS).nth(place));
            let sent = peer.range(Ranged { span, ..ranged }, blocks.map(<[_]>::to_vec)).await?;
            Ok::<_, SendError>((place, sent))
        });
        // Not in order: a slow NIC must not hold up the others.
        let mut done = futures_util::stream::iter(each).buffer_unordered(peer.width());
        let (mut values, mut all_sent, mut all_kept) = (BTreeMap::new(), 0, 0);
        while let Some((place, piece)) = done.try_next().await? {
            match piece {
                RangeSent::Written { value, sent, kept } => {
                    values.extend(value.map(|value| (place, value)));
                    all_sent += sent;
                    all_kept += kept;
                }
                other => return Ok(other),
            }
        }
        let values: Vec<_> = values.into_values().collect();
        Ok(RangeSent::Written { value: merge_blocks(&values), sent: all_sent, kept: all_kept })
    }
}
