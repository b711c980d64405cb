//! What the tests of this layer share.

use super::pages::PageSink;
use crate::config::agent::DEFAULT_BUFFER_MEMORY_BYTES;
use crate::config::{AgentConfig, LogConfig};
use crate::fs::{RootDir, Tree};
use crate::wire::manifest::Manifest;
use crate::wire::task::{
    Assignment, PageAction, PageReply, PoolMember, ScanPage, TaskSpec, WorkItem,
};
use crate::wire::worker::{Endpoint, WorkerStatus};
use crate::wire::{AbsPath, AssignmentId, Digest, RelPath, TaskId};
use parking_lot::Mutex;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

pub(crate) fn abs(path: &Path) -> AbsPath {
    AbsPath::new(path.as_os_str().as_bytes()).unwrap()
}

/// The configuration of an agent `a` with one slot that serves these.
pub(crate) fn agent_config(storage_paths: Vec<AbsPath>, endpoints: Vec<Endpoint>) -> AgentConfig {
    AgentConfig {
        worker_id: "a".parse().unwrap(),
        master_urls: vec![],
        ca_file: None,
        join_token_file: None,
        storage_paths: storage_paths.into_iter().map(Into::into).collect(),
        labels: Default::default(),
        control_plane_address: None,
        data_plane_endpoints: endpoints.into_iter().map(Into::into).collect(),
        heartbeat_interval: Duration::from_secs(1),
        drain_timeout: Duration::from_secs(1),
        slots: 1,
        bwlimit: None,
        buffer_memory: DEFAULT_BUFFER_MEMORY_BYTES,
        direct_io: false,
        encrypt_content: true,
        run_as: Default::default(),
        sandbox: Default::default(),
        data_dir: None,
        log: LogConfig::default(),
    }
}

pub(crate) fn tree(path: &Path) -> Tree {
    Tree::new(RootDir::open(&abs(path)).unwrap(), RelPath::root())
}

/// Worker `a` as one of the workers of a destination.
pub(crate) fn itself() -> PoolMember {
    PoolMember {
        worker_id: "a".parse().unwrap(),
        status: WorkerStatus::Idle,
        storage_paths: vec![],
        data_plane_endpoints: vec![],
    }
}

/// An assignment of worker `a` with that task, from `/src` to `/dst`, which it may write to itself.
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
        chunk_offset: 0,
        chunk_size: 0,
        task,
        source_workers: vec![],
        destination_workers: vec![itself()],
        source_worker_pool: vec![],
        destination_worker_pool: vec![],
        ticket: Default::default(),
        source_root: None,
        relay: None,
        report_held: false,
        bwlimit: None,
    }
}

/// Keeps the pages, and answers by a script (then: go on, done after the last page).
#[derive(Default)]
pub(crate) struct RecordingPageSink {
    pub(crate) pages: Mutex<Vec<ScanPage>>,
    replies: Mutex<Vec<PageReply>>,
}

impl RecordingPageSink {
    pub(crate) fn with_replies(script: Vec<PageReply>) -> Self {
        RecordingPageSink { pages: Mutex::default(), replies: Mutex::new(script) }
    }

    pub(crate) fn entry_paths(&self) -> Vec<String> {
        let pages = self.pages.lock();
        let items = pages.iter().flat_map(|p| &p.work);
        items
            .flat_map(|item| match item {
                WorkItem::Copy { manifest, .. } | WorkItem::Large { manifest, .. } => {
                    Manifest::decode(&manifest.0).unwrap().entries
                }
            })
            .map(|e| e.path.to_string())
            .collect()
    }

    pub(crate) fn first_page(&self) -> ScanPage {
        self.pages.lock().first().unwrap().clone()
    }

    pub(crate) fn last_page(&self) -> ScanPage {
        self.pages.lock().last().unwrap().clone()
    }
}

impl PageSink for RecordingPageSink {
    async fn post_page(&self, page: &ScanPage) -> Result<PageReply, String> {
        let mut pages = self.pages.lock();
        assert_eq!(page.page, pages.len() as u64);
        pages.push(page.clone());
        let mut script = self.replies.lock();
        if !script.is_empty() {
            return Ok(script.remove(0));
        }
        let end = page.next.is_none();
        let action = if end { PageAction::Done } else { PageAction::Continue };
        Ok(PageReply { action, max_subtrees: 0 })
    }
}

pub(crate) fn page_reply(action: PageAction, spawn: u32) -> PageReply {
    PageReply { action, max_subtrees: spawn }
}
