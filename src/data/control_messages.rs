//! Requests of one document with a reply of one document, and how each is executed: offers, block values of a range,
//! prunes, the clean-up, the check of the root.

use super::outcome::OfferOutcome;
use super::protocol::{
    BLOCK_DIGESTS, CLEAN_UP, OFFER, OfferReply, PRUNE, ROOT_CHECK, entry_of_range,
};
use super::prune_messages::{PruneReply, PruneRequest};
use super::receive::handle_offer;
use super::source_reader::WINDOW_BYTES;
use super::ticket_verifier::{Refusal, check_permission, check_prune_permission};
use crate::fs::{BlockHashes, Filter, PruneOutcome, RootKind, Target};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::outcome::EntryError;
use crate::wire::ticket::Claims;
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// At most so many block values are given at a time.
const MAX_BLOCKS: u64 = 4096;

/// A request of one document that is answered with one document, by a peer or on this host.
pub trait ControlRequest: Encode<()> + for<'b> Decode<'b, ()> + Send + 'static {
    /// Its path over HTTP.
    const PATH: &'static str;
    /// Whether handling it needs a buffer of one block.
    const NEEDS_BUFFER: bool = false;
    /// What is sent back.
    type Reply: Encode<()> + for<'b> Decode<'b, ()> + Send + 'static;
    /// What the requester makes of the reply.
    type Outcome: Send + 'static;

    /// The request as a document.
    fn to_document(&self) -> Bytes {
        // Encoding into a Vec can't fail: its error type is `Infallible`.
        minicbor::to_vec(self).unwrap_or_default().into()
    }

    /// Reads a request.
    ///
    /// # Errors
    /// A message: the document holds no such request.
    fn from_document(document: &[u8]) -> Result<Self, String> {
        minicbor::decode(document).map_err(|e| e.to_string())
    }

    /// How many bytes of content are read for the reply; `None` where the work has no such bound.
    fn bytes_to_read(&self) -> Option<u64> {
        None
    }

    /// Checks that `claims` allow the request.
    ///
    /// # Errors
    /// See [`check_permission`].
    fn check_permission(&self, claims: &Claims) -> Result<(), Refusal> {
        check_permission(claims, Self::PATH)
    }

    /// Executes the request; blocks meanwhile. `buffer` has room for a block where that is needed.
    ///
    /// # Errors
    /// A message: the request is invalid.
    fn handle(
        &self,
        target: &Target,
        claims: &Claims,
        buffer: &mut [u8],
    ) -> Result<Self::Reply, String>;

    /// Checks and reads the reply.
    ///
    /// # Errors
    /// A message: the reply does not match the request.
    fn read_reply(&self, reply: Self::Reply) -> Result<Self::Outcome, String>;

    /// [`handle`](ControlRequest::handle) where no reply has to be sent.
    ///
    /// # Errors
    /// A message: the request is invalid.
    fn handle_locally(
        &self,
        target: &Target,
        claims: &Claims,
        buffer: &mut [u8],
    ) -> Result<Self::Outcome, String> {
        self.read_reply(self.handle(target, claims, buffer)?)
    }
}

/// The request for block values.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BlockDigestsRequest {
    /// The file, its only entry.
    #[n(0)]
    pub manifest: Manifest,
    /// Where the blocks start, a multiple of their length.
    #[n(1)]
    pub offset: u64,
    /// The length of all of them; the last one may be shorter.
    #[n(2)]
    pub length: u64,
    /// The length of one, a power of two. For one longer than [`BLOCK_BYTES`](crate::wire::content::BLOCK_BYTES) the answer is only whether it is all zeros
    /// ([`Target::hash_blocks`](crate::fs::Target::hash_blocks)).
    #[n(3)]
    pub block_bytes: u64,
}

impl BlockDigestsRequest {
    /// The file.
    ///
    /// # Errors
    /// A message: the blocks can't be hashed.
    pub fn validate(&self) -> Result<&Entry, String> {
        let BlockDigestsRequest { offset, length, block_bytes, .. } = *self;
        let entry = entry_of_range(&self.manifest, offset, length)?;
        let fits = block_bytes.is_power_of_two()
            && block_bytes >= blake3::CHUNK_LEN as u64
            && offset.is_multiple_of(block_bytes)
            && length.div_ceil(block_bytes) <= MAX_BLOCKS;
        if fits { Ok(entry) } else { Err(format!("{length} bytes at {offset} by {block_bytes}")) }
    }
}

/// The request to remove auxiliary files for hard links; the outcome is the error of what is left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct CleanUpRequest {
    /// The root of the sync, which gets its metadata back.
    #[n(0)]
    pub root: Option<ManifestDir>,
}

/// The question whether the root of the destination can be written; the outcome is the error if not.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RootCheckRequest {
    /// What the root of the source is.
    #[n(0)]
    pub source_kind: RootKind,
}

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
    type Reply = Result<Vec<BlockHashes>, EntryError>;
    type Outcome = Result<Vec<BlockHashes>, EntryError>;

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
        Ok(target.with_root_checked(hash).map_err(EntryError::from))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::protocol::ContentRequest;
    use crate::data::prune_messages::tests::prune_request;
    use crate::wire::Digest;
    use crate::wire::content::BLOCK_BYTES;
    use crate::wire::manifest::{EntryKind, FileVersion, Meta};
    use proptest::prelude::*;

    fn rel(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    const META: Meta = Meta { mode: 0, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };

    #[test]
    fn only_block_ranges_that_can_be_hashed_are_valid() {
        let entry = Entry::new(
            rel("f"),
            EntryKind::File { size: 9 * WINDOW_BYTES },
            META,
            FileVersion::default(),
        );
        let manifest = Manifest { dirs: vec![], entries: vec![entry] };
        let request = |offset, length, block_bytes| BlockDigestsRequest {
            manifest: manifest.clone(),
            offset,
            length,
            block_bytes,
        };
        assert!(request(0, WINDOW_BYTES, BLOCK_BYTES).validate().is_ok());
        assert!(request(8 * WINDOW_BYTES, BLOCK_BYTES + 1, BLOCK_BYTES).validate().is_ok());
        for (offset, length, block_bytes) in [
            (0, 0, BLOCK_BYTES),
            (0, WINDOW_BYTES, 0),
            (0, WINDOW_BYTES, 3 << 10),
            (0, 4096, 512),
            (1024, BLOCK_BYTES, BLOCK_BYTES),
            (0, WINDOW_BYTES, 1024),
            (9 * WINDOW_BYTES, 1, BLOCK_BYTES),
        ] {
            assert!(
                request(offset, length, block_bytes).validate().is_err(),
                "{offset} {length} {block_bytes}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            let _ = minicbor::decode::<BlockDigestsRequest>(&bytes).map(|request| request.validate().is_ok());
            let _ = minicbor::decode::<Result<Vec<BlockHashes>, EntryError>>(&bytes);
            let _ = minicbor::decode::<PruneRequest>(&bytes).map(|request| request.validate());
            let _ = minicbor::decode::<PruneReply>(&bytes).map(|reply| reply.into_outcome(&prune_request(&[])));
            let _ = minicbor::decode::<CleanUpRequest>(&bytes);
            let _ = minicbor::decode::<Result<(), EntryError>>(&bytes);
            let _ = minicbor::decode::<RootCheckRequest>(&bytes);
        }

        #[test]
        fn mutated_requests_and_replies_decode_without_a_panic(
            edits in crate::wire::fuzz::any_edits(),
        ) {
            let other = |right: Vec<u8>| crate::wire::fuzz::apply_edits(&right, &edits);
            let request = prune_request(&["c", "d"]);
            let bytes = other(minicbor::to_vec(&request).unwrap());
            let _ = minicbor::decode::<PruneRequest>(&bytes).map(|request| request.validate());
            let existing = BlockHashes { part: Some(Digest([1; 32])), basis: Some(Digest([2; 32])) };
            let bytes = other(minicbor::to_vec(Ok::<_, EntryError>(vec![existing; 3])).unwrap());
            let _ = minicbor::decode::<Result<Vec<BlockHashes>, EntryError>>(&bytes);
            let bytes = other(minicbor::to_vec(PruneReply::default()).unwrap());
            let _ = minicbor::decode::<PruneReply>(&bytes).map(|reply| reply.into_outcome(&request));
            let request = ContentRequest { verb: "/v1/pack".into(), ticket: "t".repeat(50) };
            let _ = minicbor::decode::<ContentRequest>(&other(minicbor::to_vec(&request).unwrap()));
        }
    }
}
