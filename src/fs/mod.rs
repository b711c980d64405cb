//! Everything that touches the data of operators: reading a source, writing a destination. All calls
//! block; none is made by an absolute path.
//!
//! ```text
//! Root (storage root, a descriptor) ─▶ Tree (root of a sync)
//!        source:      Tree::walk_with ▸ Entry …   Tree::open_source ▸ SourceFile   list_names
//!        destination: Target::reconcile ▸ Verdict …  create ▸ NewFile   part ▸ PartFile   blocks
//!                     repair_in_place   prune   stamp   sweep   flush
//! ```
//!
//! Why it is safe:
//!
//! - **Nothing outside the root can be named.** Paths are [`RelPath`](crate::wire::RelPath)s, without
//!   `..`. Directories are opened below the root's descriptor with `openat2` (`RESOLVE_BENEATH`,
//!   `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_MAGICLINKS`), or one component at a time with `O_NOFOLLOW`
//!   where a kernel has no `openat2`; everything else is done on one name in such a directory and never
//!   follows it. A link planted or swapped in leads nowhere: the call fails, or the link is replaced.
//! - **Metadata are set on descriptors** of objects that this process made or has looked at, not on
//!   names: owner, attributes and access control lists, mode, time, in this order, as each changes the
//!   ones behind it. Set-uid and set-gid are given only together with the owner. What the destination
//!   can't hold is counted by cause ([`Target::notes`]).
//! - **What other users of the host put there is not used.** A part file is one of ours that nobody else
//!   could open; an object of a foreign owner is neither taken for equal nor given owner or mode, but
//!   replaced (`trust.rs`). Names of unfinished files can't be computed without the installation's key.
//! - **Names of one file stay names of one file** whoever brings them: the first that is complete is
//!   the anchor of the others (`links.rs`).
//! - **A name at the destination always holds the old or the complete new content.** Content goes to
//!   a file without a name, or with a temporary one in the same directory, gets its metadata there and
//!   is linked or renamed. Existing content is never written to.
//! - **What is spelled otherwise is another's.** Where the destination takes names for one that differ,
//!   the second of them fails and touches nothing (`spelling.rs`).
//! - **Versions can't mix.** The part file of a large file has the generation of its source version
//!   in its name, whatever sync it is of; a source file's identity is compared before and after it is read.
//! - **Lengths and depths are not limited by `PATH_MAX`** (paths are resolved in pieces), and memory and
//!   descriptors not by the size of a directory or the depth of a tree.

mod basis;
mod beneath;
mod case_folding;
mod deletion_budget;
mod dir_list;
mod direct_io;
mod dirty_journal;
mod entry;
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
mod prune;
mod reconcile;
mod reflink;
mod root;
mod root_check;
mod root_identity;
mod root_mismatch;
mod source;
mod special_files;
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
pub use errno::errno_name;
pub use error::{Cause, FsError, Result, Side};
pub use filter::Filter;
pub use metadata_warnings::MetadataWarning;
pub use name_page::NamePage;
pub use new_file::NewFile;
pub use page_cache::DropBehindReader;
pub use part_file::{PartFile, ReuseSource};
pub use part_verify::SentRanges;
pub use pattern::{FilterError, find_absolute_patterns, trim_pattern};
pub use prune::{PruneCursor, PrunePage, PruneResult};
pub use reconcile::{ReconcileResult, Verdict};
pub use root::{RootDir, Tree};
pub use root_identity::RootUnavailable;
pub use root_mismatch::{RootKind, RootMismatch};
pub use source::SourceFile;
pub use target::{Target, TargetOptions};
pub use temp_names::{TRASH_MARKER, is_internal_name};
pub use thread_cwd::ThreadCwd;
pub use trash::EARLIER_TRASH_KEPT;
pub use walk::{LINKS_SKIPPED, UNFINISHED_SKIPPED, Walk, WalkOptions};
