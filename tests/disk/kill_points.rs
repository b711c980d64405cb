//! An agent that is killed, or stands still, at an exact place: where a file gets its name.

use crate::faulty_fs::{FaultyFs, FsCall, InjectedFault};
use crate::support::await_true;
use crate::support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use crate::support::tree::{
    assert_same, census, exact_comparison, make_dir, part_files, random_bytes, write_file,
};
use crate::{MIB, mount_faulty_fs};
use longhaul::wire::sync::SyncProgress;
use rustix::process::Signal;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is copied: a batch of small files, or a large one.
#[derive(Debug, Clone, Copy)]
enum FileCase {
    SmallFiles,
    LargeFile,
}

impl FileCase {
    /// Fills the source; the file at which it happens.
    fn fill_source(self, src: &Path, seed: u64) -> PathBuf {
        match self {
            FileCase::SmallFiles => {
                for i in 0..40 {
                    write_file(
                        src.join(format!("small{i}")),
                        random_bytes(3_000 + i, seed + i as u64),
                    );
                }
                "small20".into()
            }
            FileCase::LargeFile => {
                write_file(src.join("large"), random_bytes(5 * MIB, seed));
                "large".into()
            }
        }
    }
}

/// An installation with an agent `b` that is blocked, during a sync, by the file system of the destination.
struct BlockedSync {
    /// Before the cluster: its directory can only be removed when nothing is mounted in it.
    fs: FaultyFs,
    cluster: Cluster,
    src: PathBuf,
    dst: PathBuf,
    behind: PathBuf,
    /// The file that it is about.
    blocked_file: PathBuf,
    id: String,
}

impl BlockedSync {
    /// With an agent `a` for the source; or `alone`, with one that holds both.
    fn start(
        what: FileCase,
        alone: bool,
        (call, name, skip): (FsCall, &'static str, u64),
    ) -> BlockedSync {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        let src = make_dir(cluster.data_path("src"));
        let (fs, dst, behind) = mount_faulty_fs(&cluster, "dst");
        if alone {
            cluster.add_agent("b", &[&src, &dst]);
        } else {
            cluster.add_agent("a", &[&src]);
            cluster.add_agent("b", &[&dst]);
        }
        let at = what.fill_source(&src, 1);
        let held = fs.inject_limited(call, name, InjectedFault::Hang, skip, 1);
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        await_true("the agent is at that place", || fs.hits(held) == 1);
        let sync = cluster.progress(&id);
        assert_eq!((sync.files_done, sync.files_skipped), (0, 0), "no result yet: {sync:#?}");
        BlockedSync { cluster, fs, src, dst, behind, blocked_file: at, id }
    }

    /// How many files have their names at the destination.
    fn count_published(&self) -> u64 {
        census(&self.behind).files - part_files(&self.behind).len() as u64
    }

    /// Holds the sync to be done, with all of it counted once.
    #[track_caller]
    fn assert_done(&self) -> SyncProgress {
        let sync = self.cluster.await_end(&self.id);
        assert_complete(&sync, census(&self.src));
        self.assert_same();
        sync
    }

    #[track_caller]
    fn assert_same(&self) {
        assert_same(&self.src, &self.behind, exact_comparison());
        assert!(part_files(&self.behind).is_empty());
    }

    /// … and the next one to find nothing to do.
    #[track_caller]
    fn assert_next_sync_does_nothing(&self) {
        assert_nothing_to_do(&self.cluster.run_sync(&self.src, &self.dst), census(&self.src));
        self.assert_same();
        self.cluster.assert_no_panic();
    }
}

/// `b` has renamed a file and is killed before it hears of it; it is started again, or another one takes over.
fn kill_after_rename(what: FileCase, another: bool) {
    let name = match what {
        FileCase::SmallFiles => "small20",
        FileCase::LargeFile => "large",
    };
    let mut caught = BlockedSync::start(what, false, (FsCall::RenameReply, name, 0));
    assert!(caught.behind.join(&caught.blocked_file).exists(), "it has its name");
    let victim = &mut caught.cluster.agents.get_mut("b").unwrap().process;
    // It can't end before its call is answered, and hears nothing of the answer.
    victim.signal(Signal::KILL);
    caught.fs.clear_faults();
    victim.kill_9();
    let published = caught.count_published();
    let read = |caught: &BlockedSync| caught.cluster.agents["a"].process.file_bytes().0;
    let before = read(&caught);
    if another {
        let dst = caught.dst.clone();
        caught.cluster.add_agent("b2", &[&dst]);
    } else {
        caught.cluster.agents.get_mut("b").unwrap().restart();
    }
    let sync = caught.assert_done();
    assert!(sync.retries > 0, "{sync:#?}");
    match what {
        FileCase::SmallFiles => assert_eq!(sync.files_skipped, published, "found equal: {sync:#?}"),
        FileCase::LargeFile => {
            assert_eq!(sync.retries, 1, "the next try finds it: {sync:#?}");
            let more = read(&caught) - before;
            assert!(more < MIB as u64, "nothing is sent again, and {more} bytes were read");
        }
    }
    caught.assert_next_sync_does_nothing();
}

#[test]
fn a_small_file_counts_once_when_its_agent_is_killed_between_rename_and_result() {
    for another in [false, true] {
        kill_after_rename(FileCase::SmallFiles, another);
    }
}

#[test]
fn a_large_file_counts_once_when_its_agent_is_killed_between_rename_and_result() {
    for another in [false, true] {
        kill_after_rename(FileCase::LargeFile, another);
    }
}

/// `b` stands still when a file has all but its name, for so long that another one is given the task, and
/// publishes it; then a later version of it. Then `b` goes on.
fn stop_before_rename(what: FileCase) {
    let (name, skip) = match what {
        FileCase::SmallFiles => (".tmp.part", 20),
        FileCase::LargeFile => (".part", 0),
    };
    let mut caught = BlockedSync::start(what, true, (FsCall::SetMtime, name, skip));
    caught.cluster.agents.get_mut("b").unwrap().process.freeze();
    // The call is answered, and the agent does nothing with it.
    caught.fs.clear_faults();
    assert_eq!(part_files(&caught.behind).len(), 1, "it is not renamed yet");
    let (src, dst) = (caught.src.clone(), caught.dst.clone());
    caught.cluster.add_agent("b2", &[&src, &dst]);
    caught.assert_done();
    what.fill_source(&caught.src, 1_000);
    assert_complete(&caught.cluster.run_sync(&caught.src, &caught.dst), census(&caught.src));
    let later = std::fs::read(caught.behind.join(&caught.blocked_file)).unwrap();
    caught.cluster.agents["b"].process.thaw();
    await_true("the agent is back", || {
        caught.cluster.master.active_workers().contains(&"b".to_owned())
    });
    // From now on all is done by it.
    caught.cluster.agents.get_mut("b2").unwrap().terminate();
    write_file(caught.src.join("more"), random_bytes(1_000, 1));
    assert_complete(&caught.cluster.run_sync(&caught.src, &caught.dst), census(&caught.src));
    caught.assert_next_sync_does_nothing();
    // What it was in the middle of has ended with it.
    assert_eq!(caught.cluster.agents.get_mut("b").unwrap().terminate().code(), Some(0));
    caught.assert_same();
    assert_eq!(std::fs::read(caught.behind.join(&caught.blocked_file)).unwrap(), later);
}

#[test]
fn a_small_file_is_of_the_later_writer_when_its_agent_stops_before_the_rename() {
    stop_before_rename(FileCase::SmallFiles);
}

#[test]
fn a_large_file_is_of_the_later_writer_when_its_agent_stops_before_the_rename() {
    stop_before_rename(FileCase::LargeFile);
}
