//! Everything that touches the data of operators: reading a source, writing a destination. All calls
//! block; none is made by an absolute path.
//!
//! ```text
//! Root (storage root, a descriptor) ─▶ Tree (root of a sync)
//!        source:      Tree::walk ▸ Entry …        Tree::open_source ▸ SourceFile
//!        destination: Target::reconcile ▸ Verdict …  create ▸ NewFile   part ▸ PartFile   stamp  flush
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
//!   names. Set-uid and set-gid are given only together with the owner.
//! - **A name at the destination always holds the old or the complete new content.** Content goes to
//!   a temporary name in the same directory, gets its metadata there and is renamed. Existing content
//!   is never written to.
//! - **Versions can't mix.** The part file of a large file has the generation of its source version
//!   in its name; a source file's identity is compared before and after it is read.
//! - **Lengths and depths are not limited by `PATH_MAX`** (paths are resolved in pieces), and memory and
//!   descriptors not by the size of a directory or the depth of a tree.

mod error;
mod files;
mod filter;
mod follow;
mod list;
mod lost;
mod made_up;
mod meta;
mod names;
mod reconcile;
mod root;
mod source;
mod target;
#[cfg(test)]
mod testing;
mod walk;

pub use error::{Cause, FsError, Result, Side, errno_name};
pub use files::{NewFile, PartFile};
pub use filter::{Filter, FilterError};
pub use list::NamePage;
pub use lost::Ranges;
pub use names::is_ours;
pub use reconcile::Verdict;
pub use root::{Root, Tree};
pub use source::SourceFile;
pub use target::{Target, TargetOptions};
pub use walk::{Walk, WalkOptions};
