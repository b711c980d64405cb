//! Ranges in pieces over several NICs: one connection is one NIC, and a range in one piece would leave
//! the others to other ranges.

use super::control_messages::{BLOCK_BYTES, BlockDigests};
use super::destination::Destination;
use super::outcome::{RangeError, WrittenRange};
use super::source_reader::RangeTransfer;
use crate::wire::content::merge_blocks;
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::BTreeMap;

/// The size of a piece, a power of two: long enough to hide a round trip, short enough that the end of
/// the last one is not waited for long, 0.07 s at 1 Gb/s.
const STRIPE_BYTES: u64 = 8 << 20;
/// Blocks of a piece.
const BLOCKS_PER_STRIPE: usize = (STRIPE_BYTES / BLOCK_BYTES) as usize;

impl Destination {
    /// Sends a range, in pieces where there are several pairs of NICs; with `there` only what differs from
    /// those blocks.
    pub(super) async fn send_striped(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockDigests>>,
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
}
