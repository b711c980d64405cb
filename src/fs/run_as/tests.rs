use super::super::testing::*;
use super::*;
use crate::wire::RelPath;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

const USER: u32 = 65_534;

fn nobody() -> ActingUser {
    ActingUser::new(Some(RunAs { uid: USER, gid: USER, groups: vec![7, 8] }))
}

/// What the kernel reports of this thread: real, effective, saved and file-system ids, groups, effective capabilities.
fn thread_status() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    ["Uid:", "Gid:", "Groups:", "CapEff:"].map(of).to_vec()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_thread_has_the_identity_for_the_work_and_afterwards_that_of_the_agent() {
    if !is_root() {
        assert!(find_obstacle(&RunAs { uid: USER, gid: USER, groups: vec![] }).is_some());
        return;
    }
    assert_eq!(find_obstacle(&RunAs { uid: USER, gid: USER, groups: vec![] }), None);
    let before = thread_status();
    let within = nobody().run(|| (thread_status(), as_agent(thread_status), thread_status()));
    let expected =
        ["0 65534 0 65534", "0 65534 0 65534", "7 8", "0000000000000000"].map(str::to_owned);
    assert_eq!(within.0, expected);
    assert_eq!(within.1, before, "the agent's own work in between");
    assert_eq!(within.2, expected);
    assert_eq!(thread_status(), before);
    // A thread that exists keeps its own meanwhile; one that is started has that of the work until it begins.
    let (request, requests) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        requests.recv().unwrap();
        thread_status()
    });
    let (other, started) = nobody().run(|| {
        request.send(()).unwrap();
        let begin = || {
            let inherited = thread_status();
            begin_thread();
            (inherited, thread_status())
        };
        (other.join().unwrap(), std::thread::spawn(begin).join().unwrap())
    });
    assert_eq!(other, before);
    assert_eq!(started, (expected.to_vec(), before.clone()));
    // After a panic too.
    let panicked = std::panic::catch_unwind(|| nobody().run(|| panic!("in the work")));
    assert!(panicked.is_err());
    assert_eq!(thread_status(), before);
}

#[test]
fn only_an_agent_with_the_rights_of_the_user_acts_as_it_without_a_change() {
    let own = |groups: &[u32], has_capabilities| AgentIdentity {
        uid: Uid::from_raw(1000),
        gid: Gid::from_raw(1000),
        groups: groups.iter().copied().map(Gid::from_raw).collect(),
        has_capabilities,
    };
    let user: RunAs = "1000:1000,1001".parse().unwrap();
    assert!(own(&[], false).is_user(&user) && own(&[1000, 1001], false).is_user(&user));
    assert!(!own(&[1000, 6], false).is_user(&user), "a group that the user does not have");
    assert!(!own(&[], true).is_user(&user), "capabilities");
    assert!(!own(&[], false).is_user(&"1000:1001".parse().unwrap()), "another group");
}

#[test]
fn a_thread_returns_to_a_working_directory_that_the_user_may_not_enter() {
    assert!(is_root(), "this test needs root, to act as another user: run it as root");
    let site = TestSite::new();
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let private = site.write_file("private/f", "").parent().unwrap().to_owned();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
    let open = std::fs::File::open(site.write_file("open/f", "").parent().unwrap()).unwrap();
    let work = move || {
        // The working directory of other threads stays.
        #[allow(deprecated)]
        rustix::thread::unshare(rustix::thread::UnshareFlags::FS).unwrap();
        std::env::set_current_dir(&private).unwrap();
        let entered = nobody().run(|| {
            let _near = super::super::ThreadCwd::unshare();
            super::super::thread_cwd::enter_dir(std::os::fd::AsFd::as_fd(&open))
        });
        (entered, std::env::current_dir().unwrap() == private)
    };
    assert_eq!(std::thread::spawn(work).join().unwrap(), (true, true));
}

#[test]
fn work_on_a_tree_without_its_identity_fails_and_changes_nothing() {
    assert!(is_root(), "this test needs root, to act as another user: run it as root");
    let site = TestSite::new();
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    site.write_file("src/f", "content");
    let tree = site.tree("src").acting_as(nobody());
    let root = RelPath::root();
    for errno in [
        tree.open_dir(b"").map(drop),
        tree.open_listable_dir(b"").map(drop),
        tree.cached_dir(b"").map(drop),
        tree.locate(&rel("f")).map(drop),
        tree.locate_below_root(&rel("src/f")).map(drop),
        tree.open_resolved(b"", Some(&rel("src")), true).map(drop),
    ] {
        assert_eq!(errno, Err(Errno::PERM));
    }
    assert!(tree.entry(&root).is_err() && tree.root_state().is_err());
    assert!(tree.check_readable().is_err() && tree.storage_tree().entry(&root).is_err());
    // With it they work; the trees of the agent do not work there.
    nobody().run(|| {
        assert!(tree.entry(&rel("f")).is_ok() && tree.storage_tree().entry(&root).is_ok());
        assert_eq!(site.tree("src").open_dir(b"").map(drop), Err(Errno::PERM));
    });
    // A cached descriptor is no way around it.
    assert_eq!(tree.cached_dir(b"").map(drop), Err(Errno::PERM));
    let target = super::super::Target::new(
        site.tree("dst").acting_as(nobody()),
        crate::wire::SyncNo(1),
        super::super::TargetOptions::for_this_process(Default::default()),
    );
    assert!(target.ensure_dir(b"").is_err() && !site.path("dst").exists());
    assert_eq!(std::fs::metadata(site.path("src/f")).unwrap().uid(), 0);
}

#[test]
fn each_blocking_thread_of_a_task_is_started_with_an_identity() {
    // What works for the agent itself, not for a task.
    const OF_THE_AGENT: [&str; 4] =
        ["agent/mod.rs", "agent/join.rs", "agent/storage.rs", "agent/storage_checks.rs"];
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for entry in ["agent", "data"].iter().flat_map(|dir| walkdir::WalkDir::new(src.join(dir))) {
        let path = entry.unwrap().into_path();
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let is_test = name.contains("tests") || OF_THE_AGENT.contains(&name.as_str());
        if is_test || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let own_threads = ["thread::spawn(", "thread::Builder", "rayon", "block_in_place"];
        for word in own_threads {
            assert!(!text.contains(word), "{name} has {word}");
        }
        let plain = text.matches("tokio::task::spawn_blocking(").count();
        // The sender's thread belongs to a connection; its reads take the identity within.
        let allowed = usize::from(name == "data/peer.rs");
        assert_eq!(plain, allowed, "{name}: fs::spawn_blocking takes the identity");
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}
