//! The model: what a destination is to hold after a sync, out of what source and destination held
//! before it and of the options. Where the options leave something open, nothing is wanted of it.

use crate::sync_options::{Compare, SyncChoice, TRASH, UpdateRule};
use crate::tree::{Kind, Node, Tree, Xattrs};
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted of one name; what is `None` may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ExpectedNode {
    /// Of files: the content.
    pub(crate) kind: Option<Kind>,
    pub(crate) node_type: Option<std::mem::Discriminant<Kind>>,
    /// The mode, and which bits of it count.
    pub(crate) mode: Option<(u32, u32)>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<(i64, i64)>,
    pub(crate) xattrs: Option<Xattrs>,
}

/// How a sync is to end.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// These names and no others.
    pub(crate) tree: BTreeMap<Vec<u8>, ExpectedNode>,
    /// Names that are to be one file.
    pub(crate) hardlink_groups: Vec<Vec<Vec<u8>>>,
    /// Names that may become names of one file, also where some of them are left alone.
    pub(crate) maybe_hardlinked: BTreeSet<Vec<u8>>,
    /// What is deleted.
    pub(crate) deleted: BTreeSet<Vec<u8>>,
    /// A limit stops the deletion.
    pub(crate) is_deletion_stopped: bool,
    /// Whether content has to be sent.
    pub(crate) sends: bool,
    /// Regular files of the source that are not left out.
    pub(crate) files: BTreeSet<Vec<u8>>,
}

/// What `source` and `destination` become under the options.
pub(crate) fn expected_after_sync(
    source: &Tree,
    destination: &Tree,
    choice: &SyncChoice,
) -> Expected {
    let mut out = Expected::default();
    for (path, node) in destination {
        out.tree.insert(path.clone(), untouched(node, choice));
    }
    let chosen: Vec<(&Vec<u8>, &Node)> = source
        .iter()
        .filter(|(path, node)| !choice.excludes(path, node.is_dir()))
        .filter(|(_, node)| !choice.is_outside_limits(node))
        .filter(|(_, node)| !(choice.skip_links && matches!(node.kind, Kind::Link(_))))
        .filter(|(_, node)| choice.preserves("specials") || node.kind != Kind::Fifo)
        .collect();
    for (path, node) in &chosen {
        let old = destination.get(*path);
        if node.is_file() {
            out.files.insert((*path).clone());
        }
        // What is not created holds nothing either.
        let above = parent_of(path).is_none_or(|above| out.tree.contains_key(above));
        if !above || (choice.update_rule == UpdateRule::Existing && old.is_none()) {
            continue;
        }
        let (want, sent) = transferred(node, old, choice);
        out.sends |= sent;
        if node.is_dir() && old.is_some_and(|old| !old.is_dir()) {
            debug_assert!(out.tree.contains_key(*path));
        }
        out.tree.insert((*path).clone(), want);
    }
    if choice.preserves("hardlinks") {
        let several = chosen.iter().filter(|(_, node)| !node.is_dir() && node.link_count > 1);
        out.maybe_hardlinked = several.map(|(path, _)| (*path).clone()).collect();
    }
    if choice.preserves("hardlinks") && choice.update_rule == UpdateRule::All {
        let mut groups: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, node) in &chosen {
            if !node.is_dir() && node.link_count > 1 {
                groups.entry(node.inode).or_default().push((*path).clone());
            }
        }
        out.hardlink_groups = groups.into_values().filter(|group| group.len() > 1).collect();
        for path in out.hardlink_groups.iter().flatten() {
            // By size alone any of the old contents may become that of all names.
            if let (Compare::Size, Some(want)) = (choice.compare, out.tree.get_mut(path)) {
                want.kind = None;
            }
        }
    }
    expect_deletions(source, destination, choice, &mut out);
    out
}

fn parent_of(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at]))
}

/// What a name stays that the sync is not about.
fn untouched(node: &Node, choice: &SyncChoice) -> ExpectedNode {
    let mut want = ExpectedNode {
        kind: Some(node.kind.clone()),
        node_type: Some(std::mem::discriminant(&node.kind)),
        mode: Some((node.mode, 0o7777)),
        uid: Some(node.uid),
        gid: Some(node.gid),
        mtime: Some(node.mtime),
        xattrs: Some(node.xattrs.clone()),
    };
    // What is deleted in a directory changes its time.
    if node.is_dir() && choice.delete.is_some() {
        want.mtime = None;
    }
    // Another name of it may be what the sync is about.
    if !node.is_dir() && node.link_count > 1 {
        want =
            ExpectedNode { kind: want.kind, node_type: want.node_type, ..ExpectedNode::default() };
    }
    want
}

/// What an entry becomes, and whether its content has to be sent.
fn transferred(node: &Node, old: Option<&Node>, choice: &SyncChoice) -> (ExpectedNode, bool) {
    let mut want = with_preserved_metadata(node, choice);
    let Some(old) = old.filter(|old| old.same_type(node)) else {
        return (want, node.size().is_some_and(|size| size > 0));
    };
    let near = choice.same_time(node.mtime, old.mtime);
    let not_replaced = match choice.update_rule {
        UpdateRule::IgnoreExisting => true,
        UpdateRule::Update => old.is_file() && node.is_file() && old.mtime > node.mtime && !near,
        UpdateRule::All | UpdateRule::Existing => false,
    };
    if near && node.mtime != old.mtime {
        want.mtime = None;
    }
    if node.is_dir() {
        // Whether a directory counts as something that exists is not said.
        if matches!(choice.update_rule, UpdateRule::IgnoreExisting | UpdateRule::Update) {
            want = ExpectedNode {
                kind: want.kind,
                node_type: want.node_type,
                ..ExpectedNode::default()
            };
        }
        return (want, false);
    }
    if not_replaced {
        return (untouched(old, choice), false);
    }
    // Content that belongs to another user does not pass for equal.
    let trusted = [Some(rustix::process::geteuid().as_raw()), wanted_uid(node, choice)];
    if node.is_file() && !trusted.contains(&Some(old.uid)) {
        return (want, node.size().is_some_and(|size| size > 0));
    }
    let equal = match (&node.kind, &old.kind) {
        (Kind::File { size, digest }, Kind::File { size: other_size, digest: other }) => {
            size == other_size
                && match choice.compare {
                    Compare::SizeTime => choice.same_time(node.mtime, old.mtime),
                    Compare::Size => true,
                    Compare::Checksum => digest == other,
                }
        }
        _ => return (want, false),
    };
    if !equal {
        return (want, node.size().is_some_and(|size| size > 0));
    }
    // Its metadata are repaired, its content stays unless it is read back.
    if choice.verify != "readback" {
        want.kind = Some(old.kind.clone());
    } else if choice.compare == Compare::Size {
        want.kind = None;
    }
    if choice.compare == Compare::Size {
        want.mtime = None;
    }
    // What would be repaired may be another file's too: then it may be replaced instead.
    let shared = old.link_count > 1;
    if shared && node.kind != old.kind {
        want.kind = None;
    }
    (want, shared || (choice.verify == "readback" && node.kind != old.kind))
}

/// The owner that is asked for.
fn wanted_uid(node: &Node, choice: &SyncChoice) -> Option<u32> {
    choice.chown.map(|(uid, _)| uid).or(choice.preserves("owner").then_some(node.uid))
}

/// What an entry is when all of it was brought that is to be preserved.
fn with_preserved_metadata(node: &Node, choice: &SyncChoice) -> ExpectedNode {
    let root = rustix::process::geteuid().is_root();
    let link = matches!(node.kind, Kind::Link(_));
    let owner = choice.preserves("owner").then_some(node.uid);
    let group = choice.preserves("group").then_some(node.gid);
    // No request sets set-uid for another owner.
    let same_owner =
        choice.preserves("owner") && choice.preserves("group") && choice.chown.is_none();
    let bits = if same_owner && root { 0o7777 } else { 0o1777 };
    ExpectedNode {
        kind: Some(node.kind.clone()),
        node_type: Some(std::mem::discriminant(&node.kind)),
        mode: (choice.preserves("mode") && !link).then_some((node.mode & bits, bits)),
        uid: choice.chown.map(|(uid, _)| uid).or(owner).filter(|_| root),
        gid: choice.chown.map(|(_, gid)| gid).or(group).filter(|_| root),
        mtime: choice.preserves("times").then_some(node.mtime),
        xattrs: (choice.preserves("xattrs") && !link).then(|| node.xattrs.clone()),
    }
}

fn expect_deletions(source: &Tree, destination: &Tree, choice: &SyncChoice, out: &mut Expected) {
    let Some(options) = choice.delete else { return };
    // What an earlier mirror deleted stays, whatever this one is asked for.
    let mark = [TRASH, b"/.ctl-trash"].concat();
    let trash = options.trash || destination.contains_key(&mark);
    let protected = |path: &[u8], node: &Node| {
        let excluded = choice.excludes(path, node.is_dir());
        let in_trash = trash && is_in(path, TRASH);
        let taken = |node: &Node| !options.excluded || !choice.excludes(path, node.is_dir());
        let here = source.get(path).is_some_and(taken);
        match (excluded, options.excluded) {
            _ if in_trash => true,
            (true, false) => true,
            (true, true) => false,
            (false, _) => here,
        }
    };
    // From below: a directory that holds something that stays, stays.
    let mut staying: BTreeSet<Vec<u8>> = BTreeSet::new();
    for (path, node) in destination.iter().rev() {
        if path.is_empty() || protected(path, node) || staying.contains(path) {
            if let Some(above) = parent_of(path) {
                staying.insert(above.to_vec());
            }
            continue;
        }
        // What a new file, link or directory took the place of was not deleted.
        out.deleted.insert(path.clone());
    }
    if options.max.is_some_and(|max| out.deleted.len() > max) {
        out.is_deletion_stopped = true;
        out.deleted.clear();
    }
    for path in &out.deleted {
        out.tree.remove(path);
    }
}

/// Whether a path is `dir` or below it.
pub(crate) fn is_in(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Every way in which a tree is not as wanted.
pub(crate) fn differences(expected: &Expected, got: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let paths: BTreeSet<&Vec<u8>> = expected.tree.keys().chain(got.keys()).collect();
    for path in paths {
        let shown = String::from_utf8_lossy(path);
        match (expected.tree.get(path), got.get(path)) {
            (Some(_), None) => found.push(format!("`{shown}` is missing")),
            (None, Some(_)) => found.push(format!("`{shown}` is there")),
            (Some(want), Some(node)) => {
                let wrong = |what: String| format!("`{shown}`: {what}");
                found.extend(node_differences(want, node).into_iter().map(wrong));
            }
            (None, None) => {}
        }
    }
    for group in &expected.hardlink_groups {
        let inodes: BTreeSet<u64> =
            group.iter().filter_map(|path| got.get(path)).map(|node| node.inode).collect();
        if inodes.len() > 1 {
            let names: Vec<_> = group.iter().map(|path| String::from_utf8_lossy(path)).collect();
            found.push(format!("{names:?} are {} files, not one", inodes.len()));
        }
    }
    found
}

fn node_differences(want: &ExpectedNode, node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    if want.node_type.is_some_and(|is| is != std::mem::discriminant(&node.kind)) {
        return vec![format!("is {:?}, not {:?}", node.kind, want.kind)];
    }
    let mut wrong = |what: &str, is: String, wanted: Option<String>| {
        if wanted.as_ref().is_some_and(|wanted| *wanted != is) {
            found.push(format!("{what} is {is}, not {}", wanted.unwrap_or_default()));
        }
    };
    wrong("content", format!("{:?}", node.kind), want.kind.as_ref().map(|k| format!("{k:?}")));
    let bits = want.mode.map_or(0, |(_, bits)| bits);
    wrong(
        "mode",
        format!("{:o}", node.mode & bits),
        want.mode.map(|(m, b)| format!("{:o}", m & b)),
    );
    wrong("uid", node.uid.to_string(), want.uid.map(|id| id.to_string()));
    wrong("gid", node.gid.to_string(), want.gid.map(|id| id.to_string()));
    wrong("mtime", format!("{:?}", node.mtime), want.mtime.map(|time| format!("{time:?}")));
    let xattrs = want.xattrs.as_ref().map(|xattrs| format!("{xattrs:?}"));
    wrong("xattrs", format!("{:?}", node.xattrs), xattrs);
    found
}
