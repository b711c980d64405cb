//! Trees to copy, and an independent comparison of what arrived (no code of the product in it).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// How much was written to the file at `path`: all but its holes. Blocks that are only reserved for it
/// count as one.
pub(crate) fn written_bytes(path: &Path) -> u64 {
    use rustix::fs::{SeekFrom, seek};
    let Ok(file) = File::open(path) else { return 0 };
    let (mut at, mut sum) = (0, 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        sum += at - start;
    }
    sum
}

/// Incompressible bytes; the same for the same seed.
pub(crate) fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // Optimised also where tests are not.
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A name out of bytes.
pub(crate) fn os_name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Names that are easily confused: in other letter case, one character apart, in two Unicode forms.
const SAMPLE_NAMES: [&[u8]; 12] = [
    b"a",
    b"b",
    b"-c",
    b"d d",
    b"e\ne",
    b"f\xff",
    b"a/deeper/still",
    b"b/x",
    b"A",
    b"ab",
    "\u{e9}".as_bytes(),
    "e\u{301}".as_bytes(),
];

/// Paths that edits are about; some lie below others.
pub(crate) fn sample_path(at: usize) -> PathBuf {
    let first = os_name(SAMPLE_NAMES[at % SAMPLE_NAMES.len()]);
    match at / SAMPLE_NAMES.len() % 3 {
        0 => PathBuf::from(first),
        1 => Path::new("dir").join(first),
        _ => Path::new("a").join("dir").join(first),
    }
}

/// How many paths [`place`] gives.
pub(crate) const SAMPLE_PATHS: usize = 3 * SAMPLE_NAMES.len();

/// Writes a file, with the directories above it.
pub(crate) fn write_file(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("a parent")).expect("make directories");
    fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    path.to_owned()
}

/// A directory, with those above it.
pub(crate) fn make_dir(path: impl AsRef<Path>) -> PathBuf {
    fs::create_dir_all(path.as_ref()).expect("make directories");
    path.as_ref().to_owned()
}

/// A symbolic link, with the directories above it.
pub(crate) fn make_symlink(path: impl AsRef<Path>, target: impl AsRef<OsStr>) -> PathBuf {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("a parent")).expect("make directories");
    symlink(target.as_ref(), path).expect("make a link");
    path.to_owned()
}

pub(crate) fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// Sets the time of last modification of a file, directory or link.
pub(crate) fn set_mtime(path: impl AsRef<Path>, seconds: i64, nanoseconds: u32) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path.as_ref(), &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
}

/// `count` files of `length` bytes each, in directories of 100.
pub(crate) fn write_many_files(root: &Path, count: usize, length: usize) {
    for i in 0..count {
        write_file(root.join(format!("{:03}/{i:05}", i / 100)), random_bytes(length, i as u64 + 1));
    }
}

/// One of everything that a tree can hold and that is easily lost: odd names, empty things, links of
/// all kinds, modes, times.
pub(crate) fn write_unusual_tree(root: &Path) {
    make_dir(root);
    write_file(root.join("plain"), "plain\n");
    write_file(root.join("empty"), "");
    write_file(root.join("one byte"), "x");
    for bad in [
        &b" leading and trailing "[..],
        b"new\nline",
        b"carriage\rreturn",
        b"tab\tname",
        b"esc\x1b[31mred",
        b"not utf-8 \xff\xfe\x80",
        b"-rf",
        b"--",
        b"#comment",
        b"*",
        b"?[a-z]{x,y}",
        b"quote\"and'and\\",
        b"...",
        b".hidden",
        b"trailing.",
        "e\u{301} and \u{e9}".as_bytes(),
        "\u{202e}rtl".as_bytes(),
        b"%2e%2e%2f",
        b".ctl-looks-like-ours",
    ] {
        write_file(root.join(os_name(bad)), random_bytes(100 + bad.len(), bad.len() as u64));
        write_file(root.join("below").join(os_name(bad)).join(os_name(bad)), bad);
    }
    write_file(root.join(os_name(&[b'n'; 255])), "a name as long as names get");
    make_dir(root.join("empty dir/inside/another"));
    let mut deep = root.join("deep");
    for level in 0..40 {
        deep.push(format!("level {level}"));
    }
    write_file(deep.join("at the bottom"), "found");

    make_symlink(root.join("to a file"), "plain");
    make_symlink(root.join("to a directory"), "below");
    make_symlink(root.join("dangling"), "nowhere/at all");
    make_symlink(root.join("absolute"), "/etc/hostname");
    make_symlink(root.join("loop"), "loop");
    make_symlink(root.join("to above"), "..");
    make_symlink(root.join("odd target"), os_name(b"new\nline \xff"));

    for (mode, what) in
        [(0o400, "r"), (0o600, "rw"), (0o755, "x"), (0o777, "all"), (0o644, "usual")]
    {
        chmod(write_file(root.join("modes").join(what), what), mode);
    }
    chmod(write_file(root.join("modes/suid"), "s"), 0o4755);
    chmod(make_dir(root.join("modes/sticky")), 0o1777);
    chmod(make_dir(root.join("modes/private")), 0o700);
    write_file(root.join("modes/private/inside"), "in");

    for (what, seconds, ns) in [
        ("epoch", 0, 0),
        ("one ns", 1_000_000_000, 1),
        ("last ns", 1_500_000_000, 999_999_999),
        ("before 1970", -1_000_000, 500),
        ("future", 4_000_000_000, 7),
    ] {
        set_mtime(write_file(root.join("times").join(what), what), seconds, ns);
    }
    set_mtime(make_symlink(root.join("times/link"), "epoch"), 1_234_567_890, 123_456_789);
    set_mtime(make_dir(root.join("times/dir")), 987_654_321, 42);
    set_mtime(root.join("times"), 1_111_111_111, 11);
    set_mtime(root, 1_222_222_222, 22);
}

/// What a tree holds, counted as the product counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Census {
    /// Everything that is no directory.
    pub(crate) files: u64,
    /// Directories, the root included.
    pub(crate) dirs: u64,
    /// Content bytes.
    pub(crate) bytes: u64,
}

pub(crate) fn census(root: &Path) -> Census {
    let mut sum = Census::default();
    for entry in WalkDir::new(root).follow_root_links(false) {
        let entry = entry.expect("a readable tree");
        let meta = entry.metadata().expect("its metadata");
        if meta.is_dir() {
            sum.dirs += 1;
        } else {
            sum.files += 1;
            sum.bytes += if meta.is_file() { meta.len() } else { 0 };
        }
    }
    sum
}

/// The part files that are left anywhere below.
pub(crate) fn part_files(root: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(root).into_iter().filter_map(Result::ok);
    let is_part = |e: &walkdir::DirEntry| {
        let name = e.file_name().as_bytes();
        name.starts_with(b".ctl-") && name.ends_with(b".part")
    };
    entries.filter(is_part).map(walkdir::DirEntry::into_path).collect()
}

/// How strictly two trees are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComparisonRules {
    /// Owner and group must be equal.
    pub(crate) owners: bool,
    /// The destination may hold more than the source.
    pub(crate) extra: bool,
}

/// Everything must be equal (owners, where the agents run as root).
pub(crate) fn exact_comparison() -> ComparisonRules {
    ComparisonRules { owners: super::process::is_root(), extra: false }
}

/// Every difference between two trees (or two files), in words.
pub(crate) fn differences(source: &Path, destination: &Path, how: ComparisonRules) -> Vec<String> {
    let mut found = Vec::new();
    let (left, right) = (list_tree(source, &mut found), list_tree(destination, &mut found));
    let names: BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    for below in names {
        let shown = String::from_utf8_lossy(below.as_os_str().as_bytes()).into_owned();
        let part = shown.contains(".ctl-") && shown.ends_with(".part");
        match (left.get(below), right.get(below)) {
            (Some(a), Some(b)) => {
                let paths = (join_below(source, below), join_below(destination, below));
                for difference in entry_differences((&paths.0, a), (&paths.1, b), how.owners) {
                    found.push(format!("`{shown}`: {difference}"));
                }
            }
            (Some(_), None) => found.push(format!("`{shown}`: missing at the destination")),
            (None, _) if part => found.push(format!("`{shown}`: a part file is left")),
            (None, _) if how.extra => {}
            (None, _) => found.push(format!("`{shown}`: only at the destination")),
        }
    }
    found
}

/// Checks that two trees are the same.
#[track_caller]
pub(crate) fn assert_same(source: &Path, destination: &Path, how: ComparisonRules) {
    let found = differences(source, destination, how);
    let shown: Vec<&String> = found.iter().take(40).collect();
    assert!(found.is_empty(), "{} differences: {shown:#?}", found.len());
}

fn join_below(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) }
}

fn list_tree(root: &Path, found: &mut Vec<String>) -> BTreeMap<PathBuf, Metadata> {
    let mut all = BTreeMap::new();
    for entry in WalkDir::new(root).follow_root_links(false) {
        match entry.and_then(|e| e.metadata().map(|m| (e, m))) {
            Ok((entry, meta)) => {
                let below = entry.path().strip_prefix(root).expect("below the root");
                all.insert(below.to_owned(), meta);
            }
            Err(e) => found.push(format!("cannot be listed: {e}")),
        }
    }
    all
}

fn entry_differences(
    (a_path, a): (&Path, &Metadata),
    (b_path, b): (&Path, &Metadata),
    owners: bool,
) -> Vec<String> {
    const TYPE: u32 = 0o170_000;
    let mut found = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what} {a} became {b}"));
        }
    };
    if a.mode() & TYPE != b.mode() & TYPE {
        differ("type", format!("{:o}", a.mode() & TYPE), format!("{:o}", b.mode() & TYPE));
        return found;
    }
    differ(
        "mtime",
        format!("{}.{:09}", a.mtime(), a.mtime_nsec()),
        format!("{}.{:09}", b.mtime(), b.mtime_nsec()),
    );
    if owners {
        differ("owner", format!("{}:{}", a.uid(), a.gid()), format!("{}:{}", b.uid(), b.gid()));
    }
    if a.is_symlink() {
        let target = |path: &Path| format!("{:?}", fs::read_link(path).expect("a link"));
        differ("target", target(a_path), target(b_path));
        return found;
    }
    differ("mode", format!("{:o}", a.mode() & 0o7777), format!("{:o}", b.mode() & 0o7777));
    if a.is_file() {
        differ("length", a.len().to_string(), b.len().to_string());
        if a.len() == b.len()
            && let Some(at) = first_difference(a_path, b_path)
        {
            found.push(format!("content differs from byte {at} on"));
        }
    }
    found
}

fn first_difference(a: &Path, b: &Path) -> Option<u64> {
    use std::io::Read;
    let open =
        |path: &Path| File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let (mut a, mut b) = (open(a), open(b));
    let (mut left, mut right) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    let mut at = 0;
    loop {
        let n = a.read(&mut left).expect("read");
        if n == 0 {
            return None;
        }
        b.read_exact(&mut right[..n]).expect("as long as the other");
        if left[..n] != right[..n] {
            let first = left[..n].iter().zip(&right[..n]).position(|(x, y)| x != y);
            return Some(at + first.unwrap_or(0) as u64);
        }
        at += n as u64;
    }
}
