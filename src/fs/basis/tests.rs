use super::super::testing::*;
use super::*;
use crate::wire::content::merge_ranges;
use crate::wire::manifest::EntryKind;
use crate::wire::options::WriteRules;
use blake3::hazmat::HasherExt as _;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;

const KIB: usize = 1024;
/// No block here is longer.
const BLOCK: usize = 64 * KIB;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof();
    let mut out = vec![0; len];
    hasher.fill(&mut out);
    out
}

fn value(content: &[u8], at: usize) -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(at as u64);
    hasher.update(content);
    Some(Digest(hasher.finalize_non_root()))
}

#[test]
fn blocks_of_the_basis_and_of_the_part_file_are_hashed_as_far_as_they_reach() {
    let site = TestSite::new();
    let new = bytes(20 * KIB + 100, 1);
    site.write_file("src/f", &new);
    let old = bytes(9 * KIB, 2);
    site.write_file("dst/f", &old);
    let entry = site.source().entry(&rel("f")).unwrap();
    let target = site.target();
    let part = target.open_part_file(&entry).unwrap();
    part.write_at(&new[8 * KIB..12 * KIB], 8 * KIB as u64).unwrap();
    let block = 4 * KIB;
    let blocks =
        target.hash_blocks(&entry, (0, new.len() as u64), block as u64, &mut [0; BLOCK]).unwrap();
    assert_eq!(blocks.len(), 6);
    let base: Vec<_> = blocks.iter().map(|b| b.basis).collect();
    assert_eq!(base[..2], [value(&old[..block], 0), value(&old[block..2 * block], block)]);
    assert_eq!(base[2..], [None; 4], "the third is not whole");
    let parts: Vec<_> = blocks.iter().map(|b| b.part).collect();
    let sparse = fs::metadata(site.path("dst/f")).is_ok();
    assert!(sparse && parts[2] == value(&new[8 * KIB..12 * KIB], 8 * KIB), "{parts:?}");
    assert_eq!([parts[0], parts[1], parts[3], parts[4], parts[5]], [None; 5]);
    // The short block at the end of the file, of a base that is longer.
    site.write_file("dst/f", bytes(40 * KIB, 3));
    let tail =
        target.hash_blocks(&entry, (20 * KIB as u64, 100), block as u64, &mut [0; BLOCK]).unwrap();
    assert_eq!(tail[0].basis, value(&bytes(40 * KIB, 3)[20 * KIB..20 * KIB + 100], 20 * KIB));
}

#[test]
fn a_missing_file_has_no_block_hashes() {
    let site = TestSite::new();
    site.write_file("src/d/f", bytes(4 * KIB, 1));
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let none = [BlockHashes::default(); 4];
    let blocks = || {
        site.target().hash_blocks(&entry, (0, 4 * KIB as u64), KIB as u64, &mut [0; BLOCK]).unwrap()
    };
    assert_eq!(blocks(), none);
    assert!(!site.path("dst").exists(), "a question makes nothing");
    fs::create_dir_all(site.path("dst/d/f")).unwrap();
    assert_eq!(blocks(), none);
    fs::remove_dir(site.path("dst/d/f")).unwrap();
    symlink("../../src/d/f", site.path("dst/d/f")).unwrap();
    assert_eq!(blocks(), none, "a link is not followed");
}

#[test]
fn a_file_is_opened_without_blocking_and_close_on_exec() {
    let site = TestSite::new();
    site.write_file("dst/f", "content");
    let target = site.target();
    let path = rel("f");
    let place = target.tree.locate(&path).unwrap();
    let held = target.open_regular_file(&place.dir, place.name).unwrap().unwrap();
    assert!(rustix::fs::fcntl_getfl(&held.fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    let passed_on = rustix::io::fcntl_getfd(&held.fd).unwrap();
    assert!(passed_on.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn invalid_ranges_are_rejected() {
    let site = TestSite::new();
    site.write_file("src/f", bytes(4 * KIB, 1));
    let entry = site.source().entry(&rel("f")).unwrap();
    let huge = Entry { kind: EntryKind::File { size: u64::MAX }, ..entry.clone() };
    let (target, kib) = (site.target(), KIB as u64);
    for (entry, offset, length, block) in [
        (&entry, 0, 4 * kib, 0),
        (&entry, 0, 4 * kib, 512),
        (&entry, 0, 4 * kib, 3 * kib),
        (&entry, kib, kib, 2 * kib),
        (&entry, 0, 5 * kib, kib),
        (&entry, u64::MAX - kib + 1, kib, kib),
        (&huge, 0, u64::MAX, kib),
    ] {
        assert!(
            target.hash_blocks(entry, (offset, length), block, &mut [0; BLOCK]).is_err(),
            "{offset} {length} {block}"
        );
    }
    // What is hashed with its zeros has no long blocks.
    let whole =
        site.target_with_rules(WriteRules { returns_digests: true, ..WriteRules::default() });
    assert!(whole.hash_blocks(&huge, (0, 1 << 63), 1 << 63, &mut [0; BLOCK]).is_err());
    let values = target.hash_blocks(&huge, (0, 1 << 63), 1 << 63, &mut [0; BLOCK]).unwrap();
    assert_eq!(values, [BlockHashes::default()]);
    assert_eq!(target.hash_blocks(&entry, (0, 0), kib, &mut [0; BLOCK]).unwrap(), []);
}

#[test]
fn metadata_of_an_equal_file_is_repaired_in_place() {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    set_file_mtime(&site.path("src/f"), 1234, 5);
    site.write_file("dst/f", "CONTENT");
    set_file_mtime(&site.path("dst/f"), 99, 0);
    let entry = site.source().entry(&rel("f")).unwrap();
    let dry = site.target_with_rules(WriteRules { dry_run: true, ..WriteRules::default() });
    let before = snapshot(&site.path("dst"));
    assert_eq!(dry.repair_metadata_in_place(&entry).unwrap(), EntryAction::Metadata);
    assert_eq!(snapshot(&site.path("dst")), before);
    assert_eq!(site.target().repair_metadata_in_place(&entry).unwrap(), EntryAction::Metadata);
    assert_eq!(site.target().repair_metadata_in_place(&entry).unwrap(), EntryAction::Skip);
    let there = site.tree("dst").entry(&rel("f")).unwrap();
    assert_eq!((there.meta, there.kind), (entry.meta, entry.kind.clone()));
    // Another name of it keeps what it has.
    set_file_mtime(&site.path("dst/f"), 99, 0);
    fs::hard_link(site.path("dst/f"), site.path("dst/other")).unwrap();
    assert_eq!(site.target().repair_metadata_in_place(&entry).unwrap(), EntryAction::Metadata);
    let other = site.tree("dst").entry(&rel("other")).unwrap();
    assert_eq!(
        (other.meta.mtime_sec, fs::read(site.path("dst/f")).unwrap()),
        (99, b"CONTENT".to_vec())
    );
    assert_eq!(site.tree("dst").entry(&rel("f")).unwrap().meta, entry.meta);
    assert_eq!(sorted_names(&site.path("dst")), [&b"f"[..], b"other"]);
    // What is of another length was not compared.
    site.write_file("dst/f", "short");
    let error = site.target().repair_metadata_in_place(&entry).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: 7, found: 5 });
    fs::remove_file(site.path("dst/f")).unwrap();
    assert_eq!(
        site.target().repair_metadata_in_place(&entry).unwrap_err().errno(),
        Some(Errno::NOENT)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn block_hashes_of_ranges_merge_to_the_file_digest(
        len in 2 * KIB + 1..60 * KIB,
        power in 0u32..3,
        blocks_in_range in 0u32..3,
        readback: bool,
    ) {
        let block = (KIB << power) as u64;
        let range = block << blocks_in_range;
        prop_assume!(len as u64 > block);
        let site = TestSite::new();
        let content = bytes(len, 7);
        site.write_file("src/f", &content);
        site.write_file("dst/f", &content);
        let entry = site.source().entry(&rel("f")).unwrap();
        let target = site.target_with_rules(WriteRules { readback, ..WriteRules::default() });
        let mut values = Vec::new();
        let mut offset = 0;
        while offset < len as u64 {
            let length = range.min(len as u64 - offset);
            let got = target.hash_blocks(&entry, (offset, length), block, &mut [0; BLOCK]).unwrap();
            values.extend(got.iter().map(|b| b.basis.unwrap()));
            offset += length;
        }
        prop_assert_eq!(merge_ranges(&values), Some(blake3::hash(&content).into()));
    }
}
