//! What stands in a directory, read without a line of the product.

use rustix::fs::{lgetxattr, llistxattr};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Paths below a root, as bytes; the root itself is the empty one.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// `user.*` ones.
    pub(crate) xattrs: Xattrs,
    pub(crate) inode: u64,
    /// How many names the inode has.
    pub(crate) link_count: u64,
    /// The last change of anything of it.
    pub(crate) ctime: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File { size: u64, digest: String },
    Dir,
    Link(Vec<u8>),
    Fifo,
}

impl Node {
    pub(crate) fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    pub(crate) fn size(&self) -> Option<u64> {
        match self.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        }
    }

    /// Whether both are of one type.
    pub(crate) fn same_type(&self, other: &Node) -> bool {
        std::mem::discriminant(&self.kind) == std::mem::discriminant(&other.kind)
    }
}

/// Reads a tree; nothing where there is none.
pub(crate) fn read_tree(root: &Path) -> Tree {
    if fs::symlink_metadata(root).is_err() {
        return Tree::new();
    }
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    entries
        .map(|entry| {
            let below = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            (below, read_node(entry.path()))
        })
        .collect()
}

fn read_node(path: &Path) -> Node {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = match meta.file_type() {
        t if t.is_dir() => Kind::Dir,
        t if t.is_symlink() => {
            Kind::Link(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
        }
        t if t.is_fifo() => Kind::Fifo,
        t => {
            assert!(t.is_file(), "{} is nothing that was made here", path.display());
            let digest = blake3::hash(&fs::read(path).unwrap()).to_hex().to_string();
            Kind::File { size: meta.len(), digest }
        }
    };
    Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs: read_xattrs(path),
        inode: meta.ino(),
        link_count: meta.nlink(),
        ctime: (meta.ctime(), meta.ctime_nsec()),
    }
}

fn read_xattrs(path: &Path) -> Xattrs {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let names = names[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = vec![0; 8192];
            let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// A tree for people: a line each.
pub(crate) fn describe(tree: &Tree) -> String {
    let line = |(path, node): (&Vec<u8>, &Node)| {
        let kind = match &node.kind {
            Kind::File { size, digest } => format!("file of {size}, {}", &digest[..8]),
            Kind::Link(to) => format!("link to {:?}", String::from_utf8_lossy(to)),
            other => format!("{other:?}"),
        };
        let xattrs = node.xattrs.values().map(Vec::len).sum::<usize>();
        format!(
            "  {:?}: {kind}; {:o} {}:{} at {:?}, {xattrs} bytes of attributes, inode {} of {}\n",
            String::from_utf8_lossy(path),
            node.mode,
            node.uid,
            node.gid,
            node.mtime,
            node.inode,
            node.link_count
        )
    };
    tree.iter().map(line).collect()
}
