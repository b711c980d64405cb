//! What the tests of this layer share.

use crate::fs::{Root, Tree};
use crate::wire::task::{Assignment, TaskSpec};
use crate::wire::{AbsPath, AssignmentId, Digest, RelPath, TaskId};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub(crate) fn abs(path: &Path) -> AbsPath {
    AbsPath::new(path.as_os_str().as_bytes()).unwrap()
}

pub(crate) fn tree(path: &Path) -> Tree {
    Tree::new(Root::open(&abs(path)).unwrap(), RelPath::root())
}

/// An assignment of worker `a` with that task, from `/src` to `/dst`.
pub(crate) fn assignment(task: TaskSpec) -> Assignment {
    Assignment {
        assignment_id: AssignmentId([1; 16]),
        request_id: "demo-1".parse().unwrap(),
        worker_id: "a".parse().unwrap(),
        task_id: TaskId(1),
        task_digest: Digest([2; 32]),
        attempt: 1,
        lease_seconds: 30,
        source_path: AbsPath::new("/src").unwrap(),
        destination_path: AbsPath::new("/dst").unwrap(),
        options: Default::default(),
        chunk_size_mb: 1,
        task,
        source_workers: vec![],
        destination_workers: vec![],
        ticket: String::new(),
    }
}
