//! The names of unfinished files. They are built from numbers only, so they fit beside any name, and are recognised
//! only by their exact full pattern, so that a similar user file is copied like any other.
//!
//! ```text
//! .ctl-<sync, 16 hex>-<hash of the path, 16 hex>-<attempt, 8 hex><slot, 8 hex>.tmp.part   small file, link
//! .ctl-<0, 16 hex>-<hash of the path, 16 hex>-<generation, 16 hex>.part                   large file
//! .ctl-<hash of the sync, 16 hex>.links.part                                              directory of anchors
//! .ctl-<random, 32 hex>.probe.part                                                        at a storage root
//! .ctl-trash                                                                              in the trash of a mirror
//! ```
//!
//! The hashes are BLAKE3 keyed with the [`PartNameKey`] of the installation. All agents of an installation
//! compute the same name, at every attempt and in every later sync; a local user without the key cannot
//! compute a name and occupy it in advance.

use crate::wire::options::PartNameKey;
use crate::wire::storage::ProbeName;
use crate::wire::{RelPath, SyncNo};

const NAME_PREFIX: &[u8] = b".ctl-";
const PART_SUFFIX: &[u8] = b".part";
const TEMP_SUFFIX: &[u8] = b".tmp.part";
const ANCHOR_DIR_SUFFIX: &[u8] = b".links.part";
const HASH_HEX_DIGITS: usize = 16;

/// The regular file that marks a directory as the trash of a mirror. Mirrors leave a directory that holds it as
/// it is, whatever their own trash is. It is copied with the directory, so that a copy of a trash is one as well.
pub const TRASH_MARKER: &[u8] = b".ctl-trash";

/// The first 64 bits of the keyed hash of `domain` and `bytes`.
fn keyed_hash(key: &PartNameKey, domain: u8, bytes: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(&[domain]).update(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

fn name_stem(key: &PartNameKey, sync: SyncNo, path: &RelPath) -> String {
    format!(".ctl-{:016x}-{:016x}-", sync.0, keyed_hash(key, b'p', path.as_bytes()))
}

/// The part file of one version of a large file: the same for every agent that writes a range of it,
/// and for every sync, so that what an interrupted one left is used up by the next.
pub(super) fn part_file_name(key: &PartNameKey, path: &RelPath, generation: u64) -> Vec<u8> {
    format!("{}{generation:016x}.part", name_stem(key, SyncNo(0), path)).into_bytes()
}

/// The directory, at the destination root, in which a sync keeps a name of each file that has several.
pub(super) fn anchor_dir_name(key: &PartNameKey, sync: SyncNo) -> Vec<u8> {
    let hash = keyed_hash(key, b'a', &sync.0.to_be_bytes());
    format!(".ctl-{hash:016x}.links.part").into_bytes()
}

/// The name of one of them in it, below a directory of its own for each first byte.
pub(super) fn anchor_path(family: u64) -> (String, String) {
    (format!("{:02x}", family >> 56), format!("{family:016x}"))
}

/// The temporary file of one attempt at an entry. `slot` is 0 unless another attempt of the same
/// number is (or was) at work.
pub(super) fn temp_file_name(
    key: &PartNameKey,
    sync: SyncNo,
    path: &RelPath,
    attempt: u32,
    slot: u32,
) -> Vec<u8> {
    format!("{}{attempt:08x}{slot:08x}.tmp.part", name_stem(key, sync, path)).into_bytes()
}

/// Whether `name` is [`TRASH_MARKER`], one of [`part_file_name`], [`temp_file_name`] or [`anchor_dir_name`], or that of a
/// probe file.
pub fn is_internal_name(name: &[u8]) -> bool {
    if name == TRASH_MARKER || ProbeName::is_valid(name) {
        return true;
    }
    let Some(rest) = name.strip_prefix(NAME_PREFIX) else { return false };
    if let Some(sync) = rest.strip_suffix(ANCHOR_DIR_SUFFIX) {
        return sync.len() == HASH_HEX_DIGITS && sync.iter().all(is_hex);
    }
    let Some(rest) = rest.strip_suffix(TEMP_SUFFIX).or_else(|| rest.strip_suffix(PART_SUFFIX))
    else {
        return false;
    };
    rest.len() == 3 * HASH_HEX_DIGITS + 2
        && rest.iter().enumerate().all(|(i, b)| match i {
            HASH_HEX_DIGITS | 33 => *b == b'-',
            _ => is_hex(b),
        })
}

/// Whether `name` is one of [`anchor_dir_name`].
pub(super) fn is_anchor_dir_name(name: &[u8]) -> bool {
    name.ends_with(ANCHOR_DIR_SUFFIX) && is_internal_name(name)
}

fn is_hex(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PartNameKey = PartNameKey([5; 32]);

    #[test]
    fn a_name_cannot_be_computed_without_the_key() {
        let (path, other) = (RelPath::new("a/b").unwrap(), PartNameKey([6; 32]));
        let names = |key| {
            [
                part_file_name(key, &path, 1),
                temp_file_name(key, SyncNo(1), &path, 1, 0),
                anchor_dir_name(key, SyncNo(1)),
            ]
        };
        assert_eq!(names(&KEY), names(&KEY));
        for (one, two) in names(&KEY).iter().zip(&names(&other)) {
            assert!(one != two && is_internal_name(one) && is_internal_name(two));
        }
        let unkeyed = blake3::hash(path.as_bytes()).to_hex();
        assert!(
            !String::from_utf8(part_file_name(&KEY, &path, 1)).unwrap().contains(&unkeyed[..16])
        );
    }

    #[test]
    fn only_the_exact_pattern_is_an_internal_name() {
        let path = RelPath::new("a/b").unwrap();
        let part = part_file_name(&KEY, &path, u64::MAX >> 4);
        let temp = temp_file_name(&KEY, SyncNo(u64::MAX), &path, 1, 2);
        let anchors = anchor_dir_name(&KEY, SyncNo(7));
        assert!(is_internal_name(&part) && is_internal_name(&temp) && is_internal_name(&anchors));
        assert!(is_anchor_dir_name(&anchors) && !is_anchor_dir_name(&part));
        assert!(is_internal_name(TRASH_MARKER) && !is_anchor_dir_name(TRASH_MARKER));
        let probe = ProbeName::new([0xf0; 16]).as_str().to_owned();
        assert!(is_internal_name(probe.as_bytes()) && !is_anchor_dir_name(probe.as_bytes()));
        for other in [probe.replace("f0", "F0"), probe.replace(".part", ""), format!("{probe}x")] {
            assert!(!is_internal_name(other.as_bytes()), "{other}");
        }
        let text = String::from_utf8(part).unwrap();
        for other in [
            ".ctl-notes".to_owned(),
            ".ctl-trash.".to_owned(),
            ".ctl-Trash".to_owned(),
            ".ctl-.part".to_owned(),
            ".ctl-.links.part".to_owned(),
            ".ctl-000000000000000G.links.part".to_owned(),
            text.to_uppercase(),
            text.replace('f', "g"),
            format!("{text}x"),
            format!("x{text}"),
            text.replacen('-', "_", 2),
            text.replace(".part", ".par"),
            text.replace("-0000", "-000"),
        ] {
            assert!(!is_internal_name(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn names_differ_by_sync_path_generation_and_attempt() {
        let (a, b) = (RelPath::new("a").unwrap(), RelPath::new("b").unwrap());
        let all = [
            part_file_name(&KEY, &a, 1),
            part_file_name(&KEY, &b, 1),
            part_file_name(&KEY, &a, 2),
            temp_file_name(&KEY, SyncNo(2), &a, 1, 0),
            temp_file_name(&KEY, SyncNo(1), &a, 0, 1),
            temp_file_name(&KEY, SyncNo(1), &a, 1, 0),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|n| n.len() <= 64));
    }
}
