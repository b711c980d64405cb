//! The receiving end of questions without content: block values, prunes, sweeps, the root.

use super::control_messages::{
    BlockDigests, BlockDigestsReply, BlockDigestsRequest, CleanUpReply, CleanUpRequest,
    PruneOutcome, PruneRequest, PruneResume, RootCheckReply, RootCheckRequest,
};
use crate::fs::{BlockHashes, Filter, PruneCursor, PrunePage, PruneResult, Target};
use crate::wire::manifest::Entry;
use crate::wire::ticket::Claims;

/// What is there of the blocks that are asked for, which are `entry`'s; they are read to `scratch`, which
/// has room for one.
pub fn handle_block_digests(
    target: &Target,
    entry: &Entry,
    ask: &BlockDigestsRequest,
    scratch: &mut [u8],
) -> BlockDigestsReply {
    let blocks = || target.hash_blocks(entry, (ask.offset, ask.length), ask.block_bytes, scratch);
    match target.with_root_checked(blocks) {
        Ok(values) => {
            let value = |v: BlockHashes| BlockDigests { part: v.part, basis: v.basis };
            BlockDigestsReply::Digests(values.into_iter().map(value).collect())
        }
        Err(error) => BlockDigestsReply::Failed(error.to_file_error().into()),
    }
}

/// Finds (and removes) what is extra. Whose trash it goes to is said by the ticket.
///
/// # Errors
/// A sentence, where it can't be asked like this.
pub fn handle_prune(
    target: &Target,
    claims: &Claims,
    ask: &PruneRequest,
) -> Result<PruneOutcome, String> {
    ask.validate()?;
    let name = |name: &minicbor::bytes::ByteVec| name.to_vec().into_boxed_slice();
    let page = PrunePage {
        dir: ask.dir.clone(),
        after: ask.after.as_ref().map(name),
        through: ask.through.as_ref().map(name),
        names: ask.names.iter().map(name).collect(),
        filter: Filter::cached(&ask.filter).map_err(|e| e.to_string())?,
        non_directories: ask.replacing_dirs.clone(),
        delete_excluded: ask.delete_excluded,
        apply: ask.apply,
        request_id: claims.request_id.parse().map_err(|e| format!("its request id {e}"))?,
        dirs: ask.dirs.clone(),
        resume: ask
            .resume
            .as_ref()
            .map(|at| PruneCursor { after: at.after.clone(), kept_levels: at.kept_dirs }),
    };
    match target.with_root_checked(|| target.prune(&page)) {
        Ok(PruneResult {
            pruned,
            removed,
            errors,
            earlier_trash: old_trash,
            next,
            budget_exhausted: used_up,
        }) => {
            let next = next.map(|at| PruneResume { after: at.after, kept_dirs: at.kept_levels });
            Ok(PruneOutcome {
                pruned,
                removed,
                errors,
                old_trash,
                resume: next,
                allowance_exhausted: used_up,
            })
        }
        Err(error) => {
            Ok(PruneOutcome { errors: vec![error.to_file_error()], ..PruneOutcome::default() })
        }
    }
}

/// Removes what was kept to find the names of one file.
pub fn handle_clean_up(target: &Target, ask: &CleanUpRequest) -> CleanUpReply {
    let swept = target.with_root_checked(|| target.clean_up_anchors(ask.root.as_ref()));
    CleanUpReply { fault: swept.err().map(|error| error.to_file_error().into()) }
}

/// Looks whether the root can be written.
pub fn handle_root_check(target: &Target, ask: &RootCheckRequest) -> RootCheckReply {
    let checked = target.check_writable(ask.source_kind);
    RootCheckReply { fault: checked.err().map(|error| error.to_file_error().into()) }
}
