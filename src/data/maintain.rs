//! The receiving end of questions without content: block values, prunes, sweeps, the root.

use super::asks::{
    BlockValue, BlocksAsk, BlocksReply, PruneAsk, PrunedPage, Resume, RootAsk, RootReply, SweepAsk,
    SweepReply,
};
use crate::fs::{BlockHashes, Filter, PruneCursor, PrunePage, PruneResult, Target};
use crate::wire::manifest::Entry;
use crate::wire::ticket::Claims;

/// What is there of the blocks that are asked for, which are `entry`'s; they are read to `scratch`, which
/// has room for one.
pub fn take_blocks(
    target: &Target,
    entry: &Entry,
    ask: &BlocksAsk,
    scratch: &mut [u8],
) -> BlocksReply {
    let blocks = || target.hash_blocks(entry, (ask.offset, ask.length), ask.block, scratch);
    match target.with_root_checked(blocks) {
        Ok(values) => {
            let value = |v: BlockHashes| BlockValue { part: v.part, base: v.basis };
            BlocksReply::Values(values.into_iter().map(value).collect())
        }
        Err(error) => BlocksReply::Failed(error.to_file_error().into()),
    }
}

/// Finds (and removes) what is extra. Whose trash it goes to is said by the ticket.
///
/// # Errors
/// A sentence, where it can't be asked like this.
pub fn take_prune(target: &Target, claims: &Claims, ask: &PruneAsk) -> Result<PrunedPage, String> {
    ask.checked()?;
    let name = |name: &minicbor::bytes::ByteVec| name.to_vec().into_boxed_slice();
    let page = PrunePage {
        dir: ask.dir.clone(),
        after: ask.after.as_ref().map(name),
        through: ask.upto.as_ref().map(name),
        names: ask.names.iter().map(name).collect(),
        filter: Filter::cached(&ask.filter).map_err(|e| e.to_string())?,
        non_directories: ask.replacing.clone(),
        delete_excluded: ask.delete_excluded,
        apply: ask.apply,
        request_id: claims.request_id.parse().map_err(|e| format!("its request id {e}"))?,
        dirs: ask.dirs.clone(),
        resume: ask
            .resume
            .as_ref()
            .map(|at| PruneCursor { after: at.after.clone(), kept_levels: at.kept }),
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
            let next = next.map(|at| Resume { after: at.after, kept: at.kept_levels });
            Ok(PrunedPage { pruned, removed, errors, old_trash, next, used_up })
        }
        Err(error) => {
            Ok(PrunedPage { errors: vec![error.to_file_error()], ..PrunedPage::default() })
        }
    }
}

/// Removes what was kept to find the names of one file.
pub fn take_sweep(target: &Target, ask: &SweepAsk) -> SweepReply {
    let swept = target.with_root_checked(|| target.clean_up_anchors(ask.root.as_ref()));
    SweepReply { fault: swept.err().map(|error| error.to_file_error().into()) }
}

/// Looks whether the root can be written.
pub fn take_root(target: &Target, ask: &RootAsk) -> RootReply {
    let checked = target.check_writable(ask.source);
    RootReply { fault: checked.err().map(|error| error.to_file_error().into()) }
}
