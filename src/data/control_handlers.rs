//! How each request of one document is executed: offers, block digests, prunes, the clean-up, the check of the root.

use super::control_messages::{
    BlockDigests, BlockDigestsRequest, CleanUpRequest, ControlRequest, RootCheckRequest,
    WINDOW_BYTES,
};
use super::outcome::OfferOutcome;
use super::protocol::{BLOCK_DIGESTS, CLEAN_UP, OFFER, OfferReply, PRUNE, ROOT_CHECK};
use super::prune_messages::{PruneReply, PruneRequest};
use super::receive::handle_offer;
use super::ticket_verifier::{Refusal, check_prune_permission};
use crate::fs::{BlockHashes, Filter, PruneOutcome, Target};
use crate::wire::RelPath;
use crate::wire::manifest::Manifest;
use crate::wire::outcome::EntryError;
use crate::wire::ticket::Claims;
use bytes::Bytes;

impl ControlRequest for Manifest {
    const PATH: &'static str = OFFER;
    type Reply = OfferReply;
    type Outcome = OfferOutcome;

    fn to_document(&self) -> Bytes {
        self.encode().into()
    }

    fn from_document(document: &[u8]) -> Result<Self, String> {
        Manifest::decode(document).map_err(|e| e.to_string())
    }

    fn bytes_to_read(&self) -> Option<u64> {
        Some(self.content_bytes())
    }

    fn handle(&self, target: &Target, claims: &Claims, _: &mut [u8]) -> Result<OfferReply, String> {
        Ok(handle_offer(target, self, claims.rules.dry_run))
    }

    fn read_reply(&self, reply: OfferReply) -> Result<OfferOutcome, String> {
        OfferOutcome::from_reply(self, reply)
    }
}

impl ControlRequest for BlockDigestsRequest {
    const PATH: &'static str = BLOCK_DIGESTS;
    const NEEDS_BUFFER: bool = true;
    type Reply = Result<Vec<BlockDigests>, EntryError>;
    type Outcome = Result<Vec<BlockDigests>, EntryError>;

    /// The part file and the basis file, up to a window of each.
    fn bytes_to_read(&self) -> Option<u64> {
        Some(2 * self.length.min(2 * WINDOW_BYTES))
    }

    fn handle(
        &self,
        target: &Target,
        _: &Claims,
        buffer: &mut [u8],
    ) -> Result<Self::Reply, String> {
        let (entry, range) = (self.validate()?, (self.offset, self.length));
        let hash = || target.hash_blocks(entry, range, self.block_bytes, buffer);
        let digests = |block: BlockHashes| BlockDigests { part: block.part, basis: block.basis };
        let blocks = target.with_root_checked(hash).map_err(EntryError::from);
        Ok(blocks.map(|blocks| blocks.into_iter().map(digests).collect()))
    }

    fn read_reply(&self, reply: Self::Reply) -> Result<Self::Outcome, String> {
        let entry = self.validate()?;
        match reply {
            Ok(blocks) if blocks.len() as u64 != self.length.div_ceil(self.block_bytes) => {
                Err(format!("{} values of {} bytes", blocks.len(), self.length))
            }
            reply => Ok(reply.map_err(|error| error.received(&entry.path))),
        }
    }
}

impl ControlRequest for PruneRequest {
    const PATH: &'static str = PRUNE;
    type Reply = PruneReply;
    type Outcome = PruneOutcome;

    fn bytes_to_read(&self) -> Option<u64> {
        None
    }

    fn check_permission(&self, claims: &Claims) -> Result<(), Refusal> {
        check_prune_permission(claims, self.apply)
    }

    fn handle(
        &self,
        target: &Target,
        claims: &Claims,
        buffer: &mut [u8],
    ) -> Result<PruneReply, String> {
        let outcome = self.handle_locally(target, claims, buffer)?;
        Ok(PruneReply::from_outcome(&self.dir, outcome))
    }

    fn read_reply(&self, reply: PruneReply) -> Result<PruneOutcome, String> {
        reply.into_outcome(self)
    }

    /// The ticket names the request, and with it the trash that removed entries go to.
    fn handle_locally(
        &self,
        target: &Target,
        claims: &Claims,
        _: &mut [u8],
    ) -> Result<PruneOutcome, String> {
        self.validate()?;
        let filter = Filter::cached(&self.filter).map_err(|e| e.to_string())?;
        let request_id = claims.request_id.parse().map_err(|e| format!("its request id {e}"))?;
        let outcome = target.with_root_checked(|| target.prune(self, &filter, &request_id));
        Ok(outcome.unwrap_or_else(|error| PruneOutcome {
            errors: vec![error.into()],
            ..PruneOutcome::default()
        }))
    }
}

impl ControlRequest for CleanUpRequest {
    const PATH: &'static str = CLEAN_UP;
    type Reply = Result<(), EntryError>;
    type Outcome = Result<(), EntryError>;

    fn bytes_to_read(&self) -> Option<u64> {
        None
    }

    fn handle(&self, target: &Target, _: &Claims, _: &mut [u8]) -> Result<Self::Reply, String> {
        let clean_up = || target.clean_up_anchors(self.root.as_ref());
        Ok(target.with_root_checked(clean_up).map_err(EntryError::from))
    }

    fn read_reply(&self, reply: Self::Reply) -> Result<Self::Outcome, String> {
        Ok(reply.map_err(|error| error.received(&RelPath::root())))
    }
}

impl ControlRequest for RootCheckRequest {
    const PATH: &'static str = ROOT_CHECK;
    type Reply = Result<(), EntryError>;
    type Outcome = Result<(), EntryError>;

    fn bytes_to_read(&self) -> Option<u64> {
        Some(0)
    }

    fn handle(&self, target: &Target, _: &Claims, _: &mut [u8]) -> Result<Self::Reply, String> {
        Ok(target.check_writable(self.source_kind).map_err(EntryError::from))
    }

    fn read_reply(&self, reply: Self::Reply) -> Result<Self::Outcome, String> {
        Ok(reply.map_err(|error| error.received(&RelPath::root())))
    }
}
