//! Destinations send on what they hold: content leaves the source once, and a copy that was damaged is found.

use super::groups::{LARGE_MIB, Nodes, is_complete, of_worker};
use super::*;
use longhaul::wire::sync::SyncOutcome;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// The length of a range of the large file, in bytes.
const RANGE_BYTES: usize = 1 << 20;

/// The syncs of the batches and ranges that an agent began to send, as its log has them.
fn begun_transfers(cluster: &Cluster, agent: &str) -> Vec<String> {
    let log = cluster.agents[agent].process.log();
    let field = |line: &str, name: &str| {
        let value = line.split(&format!(" {name}=")).nth(1)?.split(' ').next()?;
        Some(value.trim_matches('"').to_owned())
    };
    let begun = log.lines().filter(|line| line.contains(": begun "));
    let sends = |line: &&str| {
        let kind = field(line, "kind").expect("the kind of the task");
        kind == "copy" || kind == "range"
    };
    begun.filter(sends).map(|line| field(line, "sync").expect("the sync")).collect()
}

#[test]
fn content_leaves_the_source_once_and_destinations_send_it_on_to_each_other() {
    let nodes = Nodes::start(3);
    let cluster = &nodes.cluster;
    write_file(nodes.src.join("large"), support::tree::random_bytes(LARGE_MIB << 20, 7));
    let whole = census(&nodes.src);
    let read_bytes = || cluster.agents["a"].process.file_bytes().0;
    let before = read_bytes();
    let more = json!({"destination_workers": ["g*"], "chunk_size_mb": 1});
    let id = cluster.submit_with(&nodes.src, &nodes.dst, more);
    let end = cluster.await_end(&id);
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    for at in 1..=3 {
        let one = of_worker(&end, &format!("g{at}"));
        assert!(is_complete(one) && one.files_done == whole.files, "{one:#?}");
        nodes.assert_copied(at);
    }
    let read = read_bytes() - before;
    assert!(read >= whole.bytes, "{read} of {}: what is read is counted", whole.bytes);
    assert!(read < whole.bytes * 3 / 2, "{read} bytes read for {} of content", whole.bytes);
    // Each batch and each range is sent three times, once of these from the source. What failed is repeated from there.
    let from_source = begun_transfers(cluster, "a").len() as u64;
    let mut relayed = 0;
    for name in ["g1", "g2", "g3"] {
        let sent = begun_transfers(cluster, name);
        assert!(!sent.contains(&format!("{id}@{name}")), "{name} sends to itself: {sent:?}");
        relayed += sent.len() as u64;
    }
    assert!(from_source > LARGE_MIB as u64, "{from_source} ranges and batches");
    assert!(
        3 * from_source <= from_source + relayed + 3 * end.retries,
        "{from_source} from the source, {relayed} from destinations, {} repeated",
        end.retries
    );
    cluster.assert_no_panic();
}

/// What is damaged at the first destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damaged {
    SmallFile,
    PartFile,
}

impl Damaged {
    /// The path of the entry in the tree.
    fn entry(self) -> &'static str {
        match self {
            Damaged::SmallFile => "001/00150",
            Damaged::PartFile => "large",
        }
    }

    /// Waits until the first destination has the content that is going to be damaged; returns the file.
    fn await_content(self, source: &Path, copy: &Path) -> PathBuf {
        let source = fs::read(source.join(self.entry())).unwrap();
        let compared = source.len().min(RANGE_BYTES);
        await_some(&format!("{self:?} is there"), || {
            let path = match self {
                Damaged::SmallFile => copy.join(self.entry()),
                Damaged::PartFile => part_files(copy).into_iter().next()?,
            };
            let mut content = vec![0; compared];
            fs::File::open(&path).and_then(|file| file.read_exact_at(&mut content, 0)).ok()?;
            (content == source[..compared]).then_some(path)
        })
    }
}

/// Changes one byte, and no time.
fn flip_byte(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.set_modified(modified).unwrap();
}

/// Copies to two destinations; what the first one holds is damaged before it is sent on to the second one.
fn damage_before_it_is_sent_on(nodes: &mut Nodes, damaged: Damaged, verify: &str) {
    let name = format!("{damaged:?}-{verify}");
    let dst = nodes.dst.join(&name);
    let copies = [nodes.tree(1).join(&name), nodes.tree(2).join(&name)];
    let cluster = &mut nodes.cluster;
    let ctl = |cluster: &Cluster, args: &[&str]| drop(cluster.ctl(args).run().assert_exit_code(0));
    // The second one is paused before anything can be sent.
    cluster.agents.get_mut("a").unwrap().process.freeze();
    let more = json!({
        "request_id": name, "destination_workers": ["g1", "g2"], "chunk_size_mb": 1, "bwlimit": 2 << 20,
        "options": {"verify": verify},
    });
    let id = cluster.submit_with(&nodes.src, &dst, more);
    let (first, second) = (format!("{id}@g1"), format!("{id}@g2"));
    ctl(cluster, &["sync", "pause", &second]);
    cluster.agents["a"].process.thaw();
    let path = damaged.await_content(&nodes.src, &copies[0]);
    // It does not end before the damage is found; what it holds is sent on all the same.
    ctl(cluster, &["sync", "pause", &first]);
    flip_byte(&path, 1_000);
    ctl(cluster, &["sync", "resume", &second]);
    ctl(cluster, &["sync", "set", &id, "--bwlimit", "none"]);
    let end = cluster.await_end(&second);
    assert_eq!(
        (end.state, end.outcome),
        (SyncState::Completed, Some(SyncOutcome::Full)),
        "{end:#?}"
    );
    assert_copied_on(&nodes.hosts[1], &nodes.src, &dst);

    let seen = cluster.progress(&first);
    let mut warnings = seen.warnings.iter().filter(|(why, _)| why.contains("was damaged"));
    let (why, warning) = warnings.next().unwrap_or_else(|| panic!("{seen:#?}"));
    assert!(why.contains("worker g1") && warnings.next().is_none(), "{seen:#?}");
    assert_eq!((warning.count, warning.paths[0].to_string()), (1, damaged.entry().to_owned()));
    ctl(cluster, &["sync", "resume", &first]);
    let end = cluster.await_end(&first);
    assert_eq!(
        (end.state, end.outcome),
        (SyncState::Completed, Some(SyncOutcome::Full)),
        "{end:#?}"
    );
    assert_eq!((end.repaired_files, end.files_total), (1, FILES as u64 + 1), "{end:#?}");
    assert_copied_on(&nodes.hosts[0], &nodes.src, &dst);
    let shown = cluster.ctl(["sync", "status", &first]).run().assert_exit_code(0).stdout_text();
    let line = shown.lines().find(|line| line.contains("was damaged")).unwrap_or_default();
    assert!(line.contains(damaged.entry()), "{shown}");
    assert_eq!(cluster.await_end(&id).state, SyncState::Completed);
}

#[test]
fn a_copy_that_is_damaged_before_it_is_sent_on_is_found_named_and_repaired() {
    let mut nodes = Nodes::start(2);
    write_file(nodes.src.join("large"), support::tree::random_bytes(LARGE_MIB << 20, 7));
    for damaged in [Damaged::SmallFile, Damaged::PartFile] {
        for verify in ["readback", "transfer"] {
            damage_before_it_is_sent_on(&mut nodes, damaged, verify);
        }
    }
    nodes.cluster.assert_no_panic();
}
