//! Ranges in pieces over several NICs: one connection is one NIC, and a range in one piece would leave
//! the others to other ranges.

use super::delta::Ranged;
use super::destination::Destination;
use super::outcome::{RangeSent, SendError};
use crate::wire::manifest::merge_blocks;
use futures_util::{StreamExt as _, TryStreamExt as _};

/// The size of a piece, a power of two: long enough to hide a round trip, short enough that the end of
/// the last one is not waited for long, 0.13 s at 1 Gb/s.
const PIECE: u64 = 16 << 20;

impl Destination {
    /// Sends the whole of `ranged`, in pieces where there are several pairs of NICs.
    pub(super) async fn whole(&self, ranged: Ranged<'_>) -> Result<RangeSent, SendError> {
        let Destination::Remote(peer) = self else { return self.send_range(ranged, None).await };
        let span = ranged.span;
        // Pieces are subtrees of the file's hash where the range begins with one.
        let cut = span.length > PIECE && span.offset.is_multiple_of(PIECE);
        if !cut || !peer.is_wide() {
            return peer.range(ranged, None).await;
        }
        let pieces = span.pieces(PIECE).map(|span| peer.range(Ranged { span, ..ranged }, None));
        let mut pieces = futures_util::stream::iter(pieces).buffered(peer.width());
        let (mut values, mut all_sent, mut all_kept) = (Vec::new(), 0, 0);
        while let Some(piece) = pieces.try_next().await? {
            match piece {
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
}
