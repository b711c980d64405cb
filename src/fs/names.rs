//! The names of files that are not finished. They are built from numbers only, so they fit beside
//! any name, and recognised only by their exact full pattern, so that a user's file which merely
//! looks alike is copied like any other.
//!
//! ```text
//! .ctl-<sync, 16 hex>-<hash of the path, 16 hex>-<attempt, 8 hex><slot, 8 hex>.tmp.part   small file, link
//! .ctl-<0, 16 hex>-<hash of the path, 16 hex>-<generation, 16 hex>.part                   large file
//! .ctl-<hash of the sync, 16 hex>.links.part                                              directory of anchors
//! .ctl-trash                                                                              in the trash of a mirror
//! ```
//!
//! The hashes are BLAKE3 keyed with the [`PartNameKey`] of the installation. All agents of an installation
//! compute the same name, at every attempt and in every later sync; a local user without the key cannot
//! compute a name and occupy it in advance.

use crate::wire::options::PartNameKey;
use crate::wire::{RelPath, SyncNo};

const PREFIX: &[u8] = b".ctl-";
const SUFFIX: &[u8] = b".part";
const TEMP_SUFFIX: &[u8] = b".tmp.part";
const ANCHORS_SUFFIX: &[u8] = b".links.part";
const HEX: usize = 16;

/// The regular file that marks a directory as the trash of a mirror. Mirrors leave a directory that holds it as
/// it is, whatever their own trash is. It is copied with the directory, so that a copy of a trash is one as well.
pub const TRASH_MARK: &[u8] = b".ctl-trash";

/// The first 64 bits of the keyed hash of `domain` and `bytes`.
fn keyed_hash(key: &PartNameKey, domain: u8, bytes: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(&[domain]).update(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

fn stem(key: &PartNameKey, sync: SyncNo, path: &RelPath) -> String {
    format!(".ctl-{:016x}-{:016x}-", sync.0, keyed_hash(key, b'p', path.as_bytes()))
}

/// The part file of one version of a large file: the same for every agent that writes a range of it,
/// and for every sync, so that what an interrupted one left is used up by the next.
pub(super) fn part(key: &PartNameKey, path: &RelPath, generation: u64) -> Vec<u8> {
    format!("{}{generation:016x}.part", stem(key, SyncNo(0), path)).into_bytes()
}

/// The directory, at the destination root, in which a sync keeps a name of each file that has several.
pub(super) fn anchors(key: &PartNameKey, sync: SyncNo) -> Vec<u8> {
    let hash = keyed_hash(key, b'a', &sync.0.to_be_bytes());
    format!(".ctl-{hash:016x}.links.part").into_bytes()
}

/// The name of one of them in it, below a directory of its own for each first byte.
pub(super) fn anchor(family: u64) -> (String, String) {
    (format!("{:02x}", family >> 56), format!("{family:016x}"))
}

/// The temporary file of one attempt at an entry. `slot` is 0 unless another attempt of the same
/// number is (or was) at work.
pub(super) fn temp(
    key: &PartNameKey,
    sync: SyncNo,
    path: &RelPath,
    attempt: u32,
    slot: u32,
) -> Vec<u8> {
    format!("{}{attempt:08x}{slot:08x}.tmp.part", stem(key, sync, path)).into_bytes()
}

/// Whether `name` is [`TRASH_MARK`] or one that [`bytes_in`], [`temp`] or [`anchors`] gives.
pub fn is_ours(name: &[u8]) -> bool {
    if name == TRASH_MARK {
        return true;
    }
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    if let Some(sync) = rest.strip_suffix(ANCHORS_SUFFIX) {
        return sync.len() == HEX && sync.iter().all(is_hex);
    }
    let Some(rest) = rest.strip_suffix(TEMP_SUFFIX).or_else(|| rest.strip_suffix(SUFFIX)) else {
        return false;
    };
    rest.len() == 3 * HEX + 2
        && rest.iter().enumerate().all(|(i, b)| match i {
            HEX | 33 => *b == b'-',
            _ => is_hex(b),
        })
}

/// Whether `name` is one that [`anchors`] gives.
pub(super) fn is_anchors(name: &[u8]) -> bool {
    name.ends_with(ANCHORS_SUFFIX) && is_ours(name)
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
        let names =
            |key| [part(key, &path, 1), temp(key, SyncNo(1), &path, 1, 0), anchors(key, SyncNo(1))];
        assert_eq!(names(&KEY), names(&KEY));
        for (one, two) in names(&KEY).iter().zip(&names(&other)) {
            assert!(one != two && is_ours(one) && is_ours(two));
        }
        let unkeyed = blake3::hash(path.as_bytes()).to_hex();
        assert!(!String::from_utf8(part(&KEY, &path, 1)).unwrap().contains(&unkeyed[..16]));
    }

    #[test]
    fn only_the_exact_pattern_is_ours() {
        let path = RelPath::new("a/b").unwrap();
        let part = part(&KEY, &path, u64::MAX >> 4);
        let temp = temp(&KEY, SyncNo(u64::MAX), &path, 1, 2);
        let anchors = anchors(&KEY, SyncNo(7));
        assert!(is_ours(&part) && is_ours(&temp) && is_ours(&anchors));
        assert!(is_anchors(&anchors) && !is_anchors(&part));
        assert!(is_ours(TRASH_MARK) && !is_anchors(TRASH_MARK));
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
            assert!(!is_ours(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn names_differ_by_sync_path_generation_and_attempt() {
        let (a, b) = (RelPath::new("a").unwrap(), RelPath::new("b").unwrap());
        let all = [
            part(&KEY, &a, 1),
            part(&KEY, &b, 1),
            part(&KEY, &a, 2),
            temp(&KEY, SyncNo(2), &a, 1, 0),
            temp(&KEY, SyncNo(1), &a, 0, 1),
            temp(&KEY, SyncNo(1), &a, 1, 0),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|n| n.len() <= 64));
    }
}
