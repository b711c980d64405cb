//! Every access to the data of operators: reading a source, writing a destination. All calls block; none uses an
//! absolute path.
//!
//! ```text
//! RootDir (storage root, a descriptor) ─▶ Tree (root of a sync)
//!        source:      Tree::walk_with ▸ Entry …   Tree::open_source ▸ SourceFile   list_names
//!        relay:       Tree::for_relay             Tree::open_source ▸ SourceFile
//!        destination: Target::reconcile ▸ OfferDecision …  create ▸ NewFile   open_part_file ▸ PartFile   hash_blocks
//!                     repair_metadata_in_place   prune   apply_dir_metadata   clean_up_anchors   flush
//! ```
//!
//! Safety:
//!
//! - **No path leads out of the root.** Paths are [`RelPath`](crate::wire::RelPath)s, without `..`. Directories are
//!   opened below the root's descriptor with `openat2` (`RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`,
//!   `RESOLVE_NO_MAGICLINKS`), or one component at a time with `O_NOFOLLOW` on kernels without `openat2`; every other
//!   call uses one name in such a directory and never follows it. A planted or swapped link has no effect: the call
//!   fails, or the link is replaced.
//! - **Metadata is set on descriptors** of objects that this process created or checked, not on names: owner,
//!   attributes and access control lists, mode, mtime, in this order, because each changes the following ones. Set-uid
//!   and set-gid are set only together with the owner. What the destination can't store is counted by cause
//!   ([`Target::take_metadata_warnings`]).
//! - **Objects of other users of the host are not trusted.** A part file is one of this user that no other user could
//!   open; an object of a foreign owner neither counts as equal nor gets owner or mode, but is replaced
//!   (`ownership.rs`). Names of unfinished files can't be computed without the installation's key.
//! - **Names of one file stay names of one file**, whichever agents copy them: the first complete one is the anchor of
//!   the others (`hardlinks.rs`).
//! - **A name at the destination always has the old or the complete new content.** Content is written to a file
//!   without a name, or with a temporary one in the same directory, gets its metadata there and is linked or renamed.
//!   Existing content is never written to.
//! - **A name in another spelling is another object.** If the destination does not distinguish two names, the second
//!   one fails without any change (`case_folding.rs`).
//! - **Versions can't mix.** The part file of a large file has the generation of its source version in its name, in
//!   every sync; a source file's identity is compared before and after the read.
//! - **Lengths and depths are not limited by `PATH_MAX`** (paths are resolved in segments), and memory and descriptors
//!   are not limited by the size of a directory or the depth of a tree.

mod basis;
mod beneath;
mod case_folding;
mod deletion_budget;
mod dir_list;
mod direct_io;
mod dirty_journal;
mod entry_sample;
mod errno;
mod error;
mod file_io;
mod filter;
mod flush;
mod fs_type;
mod hardlinks;
mod inode;
mod metadata;
mod metadata_warnings;
mod mountinfo;
mod name_page;
mod new_file;
mod ownership;
mod page_cache;
mod part_file;
mod part_verify;
mod pattern;
mod preflight;
mod probe;
mod probe_journal;
mod prune;
mod reconcile;
mod reflink;
mod relay;
mod root;
mod root_check;
mod root_identity;
mod root_mismatch;
mod run_as;
pub mod sandbox;
mod source;
mod special_files;
mod storage_fingerprint;
mod symlinks;
mod target;
mod temp_names;
#[cfg(test)]
mod testing;
mod thread_cwd;
mod trash;
mod walk;
mod xattr;

pub use basis::BlockHashes;
pub use deletion_budget::DeletionBudget;
pub use direct_io::DIRECT_ALIGN_BYTES;
pub use dirty_journal::DirtyJournal;
pub use error::{Cause, FsError, Result, Side};
pub use filter::Filter;
pub use name_page::NamePage;
pub use new_file::NewFile;
pub use part_file::{PartFile, ReuseSource};
pub use part_verify::SentRanges;
pub use pattern::{FilterError, find_absolute_patterns, trim_pattern};
pub use probe::ProbeState;
pub use probe_journal::{ProbeJournal, ProbeRecord};
pub use prune::{PruneOutcome, PruneRequest, PruneResume};
pub use reconcile::{OfferDecision, ReconcileResult};
pub use root::{RootDir, Tree};
pub use root_identity::RootUnavailable;
pub use root_mismatch::{RootKind, RootMismatch};
pub use run_as::{ActingUser, begin_thread, find_obstacle, spawn_blocking};
pub use source::SourceFile;
pub use target::{Target, TargetOptions};
pub use temp_names::TRASH_MARKER;
#[cfg(test)]
pub(crate) use temp_names::is_internal_name;
pub use thread_cwd::ThreadCwd;
pub use trash::EARLIER_TRASH_KEPT;
pub use walk::{LINKS_SKIPPED, MAX_NAMES_HELD, MAX_PARENT_PATH_BYTES, Walk, WalkOptions};
