//! The names of files that are not finished. They are built from numbers only, so they fit beside
//! any name, and recognised only by their exact full pattern, so that a user's file which merely
//! looks alike is copied like any other.
//!
//! ```text
//! .ctl-<sync, 16 hex>-<BLAKE3 of the path, 16 hex>-<attempt, 8 hex><slot, 8 hex>.tmp.part   small file, link
//! .ctl-<0, 16 hex>-<BLAKE3 of the path, 16 hex>-<generation, 16 hex>.part                   large file
//! .ctl-<sync, 16 hex>.links.part                                                    directory of anchors
//! ```

use crate::wire::{RelPath, SyncNo};

const PREFIX: &[u8] = b".ctl-";
const SUFFIX: &[u8] = b".part";
const TEMP_SUFFIX: &[u8] = b".tmp.part";
const ANCHORS_SUFFIX: &[u8] = b".links.part";
const HEX: usize = 16;

fn stem(sync: SyncNo, path: &RelPath) -> String {
    let digest = blake3::hash(path.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    format!(".ctl-{:016x}-{:016x}-", sync.0, u64::from_be_bytes(first))
}

/// The part file of one version of a large file: the same for every agent that writes a range of it,
/// and for every sync, so that what an interrupted one left is used up by the next.
pub(super) fn part(path: &RelPath, generation: u64) -> Vec<u8> {
    format!("{}{generation:016x}.part", stem(SyncNo(0), path)).into_bytes()
}

/// The directory, at the destination root, in which a sync keeps a name of each file that has several.
pub(super) fn anchors(sync: SyncNo) -> Vec<u8> {
    format!(".ctl-{:016x}.links.part", sync.0).into_bytes()
}

/// The name of one of them in it, below a directory of its own for each first byte.
pub(super) fn anchor(family: u64) -> (String, String) {
    (format!("{:02x}", family >> 56), format!("{family:016x}"))
}

/// The temporary file of one attempt at an entry. `slot` is 0 unless another attempt of the same
/// number is (or was) at work.
pub(super) fn temp(sync: SyncNo, path: &RelPath, attempt: u32, slot: u32) -> Vec<u8> {
    format!("{}{attempt:08x}{slot:08x}.tmp.part", stem(sync, path)).into_bytes()
}

/// Whether `name` is one that [`part`], [`temp`] or [`anchors`] gives.
pub fn is_ours(name: &[u8]) -> bool {
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

    #[test]
    fn only_the_exact_pattern_is_ours() {
        let path = RelPath::new("a/b").unwrap();
        let part = part(&path, u64::MAX >> 4);
        let temp = temp(SyncNo(u64::MAX), &path, 1, 2);
        let anchors = anchors(SyncNo(7));
        assert!(is_ours(&part) && is_ours(&temp) && is_ours(&anchors));
        assert!(is_anchors(&anchors) && !is_anchors(&part));
        let text = String::from_utf8(part).unwrap();
        for other in [
            ".ctl-notes".to_owned(),
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
            part(&a, 1),
            part(&b, 1),
            part(&a, 2),
            temp(SyncNo(2), &a, 1, 0),
            temp(SyncNo(1), &a, 0, 1),
            temp(SyncNo(1), &a, 1, 0),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|n| n.len() <= 64));
    }
}
