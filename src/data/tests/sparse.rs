//! Holes travel as holes. They are hashed as the zeros that they are read as where a digest is wanted, and cost
//! nothing otherwise.

use super::*;
use crate::data::frame::FrameReader;
use crate::data::hash_source;
use crate::data::receive::{receive_pack, receive_range};
use crate::data::tests::damage::ScriptedChunks;
use crate::data::ticket_verifier::boottime;
use crate::wire::content::{BLOCK_BYTES, HashMode, ZERO_DIGEST};
use crate::wire::preserve::Preserve;
use crate::wire::ticket::{CLOCK_LEEWAY_SECONDS, MAX_TICKET_SECONDS};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A file of `size` bytes with data at some places only; its content.
fn sparse(path: &Path, size: u64, data: &[(u64, &[u8])]) -> Vec<u8> {
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut content = vec![0; size as usize];
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
        content[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    content
}

/// What a file takes on its disk, in bytes.
fn stored(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn tree_with_holes(path: &Path) -> Tree {
    tree(path).preserving(Preserve::all())
}

#[tokio::test]
async fn a_sparse_file_arrives_with_its_holes_and_only_its_data_is_sent() {
    let world = TestBed::new().await;
    let data = content(64 << 10, 1);
    // A hole first, between and last.
    let expected = sparse(&world.src().join("f"), 32 * MIB, &[(3 * MIB, &data), (20 * MIB, &data)]);
    let all_hole = sparse(&world.src().join("nothing"), 5 * MIB + 7, &[]);
    let source = tree_with_holes(&world.src());
    let manifest = world.manifest();
    let files: Vec<Entry> = manifest.entries.iter().filter(|e| !e.is_dir()).cloned().collect();
    let rules = WriteRules { returns_digests: true, ..WriteRules::default() };
    for to in world.both_destinations(&rules) {
        let packed = to.transfer_pack(&source, manifest.dirs.clone(), files.clone()).await.unwrap();
        assert_eq!(packed.files, [Ok(written(&expected, true)), Ok(written(&all_hole, true))]);
        assert_eq!(packed.sent, 2 * data.len() as u64);
        assert_eq!(fs::read(world.dst().join("f")).unwrap(), expected);
        assert_eq!(fs::read(world.dst().join("nothing")).unwrap(), all_hole);
        assert!(stored(&world.dst().join("f")) <= stored(&world.src().join("f")));
        assert_eq!(stored(&world.dst().join("nothing")), 0);
        for name in ["f", "nothing"] {
            fs::remove_file(world.dst().join(name)).unwrap();
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_hole_of_a_range_replaces_content_of_the_part_file() {
    let world = TestBed::new().await;
    let data = content(4096, 2);
    let expected = sparse(&world.src().join("f"), 4 * MIB, &[(2 * MIB + 4096, &data)]);
    let source = tree_with_holes(&world.src());
    let (manifest, entry) = world.only_file();
    let rules = WriteRules { returns_digests: true, ..WriteRules::default() };
    for to in world.both_destinations(&rules) {
        for mode in [RangeMode::Whole, RangeMode::Delta] {
            // Another try at these ranges has left other bytes.
            let part = world.target().open_part_file(&entry).unwrap();
            part.write_at(&vec![9; 4 << 20], 0).unwrap();
            part.close().unwrap();
            let mut values = Vec::new();
            for offset in [0, 2 * MIB] {
                let range = (offset, 2 * MIB);
                let written = to.transfer_range(&source, &manifest, &entry, range, mode).await;
                let WrittenRange { value, sent, kept } = written.unwrap();
                let data = if offset == 0 { 0 } else { data.len() as u64 };
                assert_eq!((sent, kept), (data, 0), "{mode:?}");
                values.push(value.unwrap());
            }
            assert_eq!(merge_ranges(&values), Some(blake3::hash(&expected).into()));
            world.target().publish_part_file(&entry, None).unwrap();
            assert_eq!(fs::read(world.dst().join("f")).unwrap(), expected);
            assert!(stored(&world.dst().join("f")) <= 64 << 10, "{mode:?}");
            fs::remove_file(world.dst().join("f")).unwrap();
        }
    }
    world.shut_down().await;
}

#[test]
fn the_digest_of_a_source_is_that_of_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let expected = sparse(&path, 7 * MIB + 13, &[(MIB + 1, b"abc"), (6 * MIB, &[7; 5000])]);
    fs::write(dir.path().join("empty"), b"").unwrap();
    let source = tree_with_holes(dir.path());
    let entry = source.entry(&rel("f")).unwrap();
    assert_eq!(
        hash_source(&source, &entry, HashMode::Full, &mut test_buffer(&test_pool())).unwrap(),
        blake3::hash(&expected).into()
    );
    let empty = source.entry(&rel("empty")).unwrap();
    assert_eq!(
        hash_source(&source, &empty, HashMode::Full, &mut test_buffer(&test_pool())).unwrap(),
        blake3::hash(b"").into()
    );
    fs::write(&path, b"other").unwrap();
    let error =
        hash_source(&source, &entry, HashMode::Full, &mut test_buffer(&test_pool())).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Changed);
}

#[tokio::test]
async fn a_hole_of_a_wrong_length_is_refused_before_anything_is_written() {
    let world = TestBed::new().await;
    let entry = file_entry("f", 4096);
    let pack = |frames: &[&[u8]]| {
        let body = [&frame::dirs(vec![])[..], &frame::file(&entry), &frames.concat()].concat();
        let mut frames = FrameReader::new(ScriptedChunks::whole(body));
        receive_pack(
            &mut frames,
            &world.target(),
            &world.claims(&world.dst()),
            &mut gather_buffer(),
        )
    };
    let zeros = ZERO_DIGEST;
    for bad in [u64::MAX, 4097] {
        assert!(pack(&[&frame::hole(bad), &frame::digest(&zeros), &frame::end(1)]).is_err());
    }
    let twice = [&frame::hole(4000)[..], &frame::hole(97)];
    assert!(pack(&[twice[0], twice[1], &frame::digest(&zeros), &frame::end(1)]).is_err());
    let keep = frame::keep(crate::fs::ReuseSource::Basis, 4096);
    assert!(pack(&[&keep, &frame::digest(&zeros), &frame::end(1)]).is_err());
    assert_eq!(world.names(), Vec::<String>::new());
    let short = pack(&[&frame::hole(4095), &frame::digest(&zeros), &frame::end(1)]).unwrap();
    assert_eq!(short.files, [crate::data::protocol::WriteOutcome::Mismatch]);
    let good = pack(&[&frame::hole(4096), &frame::digest(&zeros), &frame::end(1)]).unwrap();
    assert_eq!(good.files, [crate::data::protocol::WriteOutcome::Written]);
    assert_eq!(fs::read(world.dst().join("f")).unwrap(), [0; 4096]);
    world.shut_down().await;
}

/// A body of a disconnected requester.
struct AbandonedChunks(ScriptedChunks);

impl frame::ChunkSource for AbandonedChunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.0.next_chunk()
    }

    fn is_abandoned(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn hashing_of_a_long_hole_ends_with_the_ticket() {
    let world = TestBed::new().await;
    let (entry, hole) = (file_entry("f", 1 << 62), frame::hole(1 << 62));
    let pack = [&frame::dirs(vec![])[..], &frame::file(&entry), &hole].concat();
    let head = crate::data::protocol::RangeHead {
        manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
        offset: 0,
        length: 1 << 46,
        is_dense: false,
    };
    let range = [&frame::range(&head)[..], &frame::hole(1 << 46)].concat();
    let rules = WriteRules { returns_digests: true, ..WriteRules::default() };
    let (claims, target) = (world.claims_with(&rules), world.target_with(&rules));
    let gate = TicketVerifier::new();
    for left in [Duration::ZERO, Duration::from_millis(20)] {
        let ended = |body: &Vec<u8>| {
            let mut frames = FrameReader::new(ScriptedChunks::whole(body.clone()));
            let until = boottime() + left;
            frames.permit = Some(gate.stream_permit(&claims).ending_at(until));
            frames
        };
        let outcome = receive_pack(&mut ended(&pack), &target, &claims, &mut gather_buffer());
        assert!(
            matches!(&outcome, Err(frame::FrameError::Unexpected(reason)) if reason.contains("ticket")),
            "{outcome:?}"
        );
        let outcome = receive_range(&mut ended(&range), &target, &mut gather_buffer());
        assert!(
            matches!(&outcome, Err(frame::FrameError::Unexpected(reason)) if reason.contains("ticket")),
            "{outcome:?}"
        );
    }
    world.target().remove_part_file(&entry).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    let now = boottime();
    let left = gate.stream_permit(&claims).until.saturating_sub(now).as_secs();
    let most = (MAX_TICKET_SECONDS + CLOCK_LEEWAY_SECONDS) as u64;
    assert!((most..most + 60).contains(&left), "{left}");
    world.shut_down().await;
}

#[tokio::test]
async fn a_request_reserves_no_more_than_one_range_of_its_sync() {
    const CHUNK: u64 = 4 << 20;
    let world = TestBed::new().await;
    let rules = WriteRules { chunk_bytes: CHUNK, ..WriteRules::default() };
    let target = world.target_with(&rules);
    let entry = file_entry("f", 1 << 30);
    let take = |length: u64| {
        let head = crate::data::protocol::RangeHead {
            manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
            offset: 0,
            length,
            is_dense: true,
        };
        let mut frames = FrameReader::new(ScriptedChunks::whole(frame::range(&head)));
        receive_range(&mut frames, &target, &mut gather_buffer())
    };
    for length in [1 << 30, CHUNK + 1024] {
        let outcome = take(length);
        assert!(
            matches!(&outcome, Err(frame::FrameError::Unexpected(reason)) if reason.contains("allows")),
            "{outcome:?}"
        );
        assert_eq!(world.names(), Vec::<String>::new(), "nothing was made");
    }
    // The connection breaks before any content.
    assert!(take(CHUNK).is_err());
    let blocks =
        fs::read_dir(world.dst()).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks());
    let stored = blocks.sum::<u64>() * 512;
    assert!(stored <= CHUNK, "{stored}");
    target.remove_part_file(&entry).unwrap();
    // Of a file with so long ranges that they are longer than a chunk, a chunk is reserved.
    let entry = file_entry("f", 1 << 40);
    let head = crate::data::protocol::RangeHead {
        manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
        offset: 0,
        length: 16 << 20,
        is_dense: true,
    };
    let mut frames = FrameReader::new(ScriptedChunks::whole(frame::range(&head)));
    assert!(matches!(
        receive_range(&mut frames, &target, &mut gather_buffer()),
        Err(frame::FrameError::Truncated)
    ));
    let blocks =
        fs::read_dir(world.dst()).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks());
    assert!(blocks.sum::<u64>() * 512 <= CHUNK);
    target.remove_part_file(&entry).unwrap();
    world.shut_down().await;
}

#[tokio::test]
async fn hashing_of_a_long_hole_ends_with_the_connection() {
    let world = TestBed::new().await;
    let entry = file_entry("f", 1 << 40);
    let mut body = frame::dirs(vec![]);
    body.extend(frame::file(&entry));
    body.extend(frame::hole(1 << 40));
    let mut frames = FrameReader::new(AbandonedChunks(ScriptedChunks::whole(body)));
    let rules = WriteRules { returns_digests: true, chunk_bytes: 1 << 40, ..WriteRules::default() };
    let (claims, target) = (world.claims_with(&rules), world.target_with(&rules));
    let outcome = receive_pack(&mut frames, &target, &claims, &mut gather_buffer());
    assert!(matches!(outcome, Err(frame::FrameError::Connection(_))), "{outcome:?}");
    let head = crate::data::protocol::RangeHead {
        manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
        offset: 0,
        length: 1 << 40,
        is_dense: false,
    };
    let keep = frame::keep(crate::fs::ReuseSource::PartFile, 1 << 40);
    let body = [&frame::range(&head)[..], &keep].concat();
    let mut frames = FrameReader::new(AbandonedChunks(ScriptedChunks::whole(body)));
    let outcome = receive_range(&mut frames, &target, &mut gather_buffer());
    assert!(matches!(outcome, Err(frame::FrameError::Connection(_))), "{outcome:?}");
    world.target().remove_part_file(&entry).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

#[tokio::test]
async fn terabytes_of_holes_are_sent_and_compared_in_a_few_steps_without_digests() {
    const SIZE: u64 = 4 << 40;
    let world = TestBed::new().await;
    let data = content(100_000, 3);
    let places = [0, SIZE / 2 + 5 * MIB, SIZE - 100_000];
    let file = fs::File::create(world.src().join("f")).unwrap();
    file.set_len(SIZE).unwrap();
    places.iter().for_each(|at| file.write_all_at(&data, *at).unwrap());
    let source = tree_with_holes(&world.src());
    let (manifest, entry) = world.only_file();
    let ranges = [(0, SIZE / 2), (SIZE / 2, SIZE / 2)];
    for to in world.both_destinations(&WriteRules::default()) {
        for mode in [RangeMode::Whole, RangeMode::Delta] {
            let (mut values, mut all) = (Vec::new(), 0);
            for range in ranges {
                let written = to.transfer_range(&source, &manifest, &entry, range, mode).await;
                let WrittenRange { value, sent, kept } = written.unwrap();
                assert_eq!(kept, 0, "{mode:?}");
                values.push(value.unwrap());
                all += sent;
            }
            assert!(all <= 3 * BLOCK_BYTES, "{all}");
            let hashing = HashMode::SkipZeros;
            let length = SIZE / 2;
            let sent = crate::fs::SentRanges { range_bytes: length, digests: &values, hashing };
            world.target().publish_part_file(&entry, Some(sent)).unwrap();
            let path = world.dst().join("f");
            let existing = fs::File::options().read(true).write(true).open(&path).unwrap();
            for at in places {
                let mut read = vec![0; data.len()];
                existing.read_exact_at(&mut read, at).unwrap();
                assert!(read == data, "at {at}");
            }
            assert!(stored(&path) <= MIB);
            let compare =
                async |range| to.compare(&source, &manifest, &entry, range).await.unwrap();
            for (range, value) in ranges.into_iter().zip(&values) {
                assert_eq!(compare(range).await, Some(*value));
            }
            // What is stored as zeros is equal to a hole, one other byte is not.
            existing.write_all_at(&[0; 5000], SIZE / 4).unwrap();
            assert_eq!(compare(ranges[0]).await, Some(values[0]));
            existing.write_all_at(b"x", SIZE / 4).unwrap();
            assert_eq!(compare(ranges[0]).await, None);
            assert_eq!(compare(ranges[1]).await, Some(values[1]));
            fs::remove_file(&path).unwrap();
        }
    }
    let hash =
        hash_source(&source, &entry, HashMode::SkipZeros, &mut test_buffer(&test_pool())).unwrap();
    let offered = Manifest {
        entries: vec![Entry { digest: Some(hash), ..entry.clone() }],
        ..manifest.clone()
    };
    let rules =
        WriteRules { compare: crate::wire::options::Compare::Checksum, ..WriteRules::default() };
    for to in world.both_destinations(&rules) {
        let files = vec![entry.clone()];
        let packed = to.transfer_pack(&source, manifest.dirs.clone(), files).await.unwrap();
        assert_eq!(packed.files, [Ok(WrittenFile { bytes: SIZE, ..WrittenFile::default() })]);
        let results = to.offer(&offered).await.unwrap().results;
        assert_eq!(results, [Ok(OfferDecision::Done(EntryAction::Skip))]);
        fs::remove_file(world.dst().join("f")).unwrap();
    }
    world.shut_down().await;
}
