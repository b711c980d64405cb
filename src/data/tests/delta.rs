//! Ranges of which the destination has something: what is equal stays, what differs is sent, and
//! nothing is believed that was not read back.

use super::*;
use crate::data::source_reader::WINDOW_BYTES;
use crate::data::source_reader::{RangeTransfer, Span, hash_blocks};
use crate::fs::BlockHashes;
use crate::wire::content::BLOCK_BYTES;
use crate::wire::content::HashMode;
use std::os::unix::fs::FileExt as _;

const BLOCKS: u64 = 12;
/// Not a whole number of blocks.
const SIZE: u64 = BLOCKS * BLOCK_BYTES - 1000;

/// What becomes of the only file's range of `mode`.
async fn transfer(
    world: &TestBed,
    to: &Destination,
    range: (u64, u64),
    mode: RangeMode,
) -> (Option<Digest>, u64, u64) {
    let (manifest, entry) = world.only_file();
    let sent = to.transfer_range(&tree(&world.src()), &manifest, &entry, range, mode).await;
    let WrittenRange { value, sent, kept } = sent.unwrap();
    (value, sent, kept)
}

fn chaining_value(offset: u64, content: &[u8]) -> Digest {
    use blake3::hazmat::HasherExt as _;
    let mut hasher = crate::wire::content::hasher_at(offset);
    hasher.update(content);
    Digest(hasher.finalize_non_root())
}

/// Changes one byte of `block` in the file at `path`.
fn change_one_byte(path: &Path, block: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = block * BLOCK_BYTES + 77;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}

/// Makes a file that is older than any source.
fn write_old(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}

#[tokio::test]
async fn only_blocks_that_differ_from_the_older_version_are_sent() {
    let world = TestBed::new().await;
    let new = content(SIZE, 1);
    world.write("f", &new);
    for to in world.both_destinations(&WriteRules::default()) {
        let existing = world.dst().join("f");
        write_old(&existing, &new);
        for block in [0, 5, 6, BLOCKS - 1] {
            change_one_byte(&existing, block);
        }
        let (got, sent, kept) = transfer(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!((sent, kept), (4 * BLOCK_BYTES - 1000, 8 * BLOCK_BYTES));
        assert_eq!(got, Some(chaining_value(0, &new)));
        let (_, entry) = world.only_file();
        world.target().publish_part_file(&entry, None).unwrap();
        assert_eq!(fs::read(&existing).unwrap(), new);
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_delta_transfer_works_with_a_shorter_basis_file_or_none() {
    let world = TestBed::new().await;
    let new = content(SIZE, 2);
    world.write("f", &new);
    let existing = world.dst().join("f");
    for to in world.both_destinations(&WriteRules::default()) {
        for (had, expected) in [(None, SIZE), (Some(3 * BLOCK_BYTES + 5), SIZE - 3 * BLOCK_BYTES)] {
            if let Some(had) = had {
                write_old(&existing, &new[..had as usize]);
            }
            let (got, sent, kept) = transfer(&world, &to, (0, SIZE), RangeMode::Delta).await;
            assert_eq!(
                (got, sent, kept),
                (Some(chaining_value(0, &new)), expected, SIZE - expected)
            );
            world.target().remove_part_file(&world.only_file().1).unwrap();
        }
        fs::remove_file(&existing).unwrap();
    }
    world.shut_down().await;
}

#[tokio::test]
async fn content_of_an_interrupted_range_in_the_part_file_is_kept() {
    let world = TestBed::new().await;
    let new = content(SIZE, 3);
    world.write("f", &new);
    let (manifest, entry) = world.only_file();
    // Half of the range, then the connection is cut.
    let head = crate::data::protocol::RangeHead {
        manifest: manifest.clone(),
        offset: 0,
        length: SIZE,
        is_dense: false,
    };
    let mut body = frame::range(&head);
    for block in new.chunks(BLOCK_BYTES as usize).take(6) {
        body.extend(frame::content_header(block.len()));
        body.extend(block);
    }
    for to in world.both_destinations(&WriteRules::default()) {
        let mut stream = world.stream().await;
        let request =
            frame::ask(&ContentRequest { verb: RANGE.to_owned(), ticket: world.ticket() });
        stream.write_all(&[&request[..], &body[..]].concat()).await.unwrap();
        damage::wait_until("it has begun", || !world.names().is_empty()).await;
        stream.shutdown().await.unwrap();
        assert_eq!(streams::read_reply(&mut stream).await.0, frame::REFUSAL);
        let (got, sent, kept) = transfer(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!((sent, kept), (SIZE - 6 * BLOCK_BYTES, 6 * BLOCK_BYTES));
        assert_eq!(got, Some(chaining_value(0, &new)));
        let again = transfer(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!(again, (got, 0, SIZE));
        world.target().publish_part_file(&entry, None).unwrap();
        assert_eq!(fs::read(world.dst().join("f")).unwrap(), new);
        fs::remove_file(world.dst().join("f")).unwrap();
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_range_of_several_windows_has_the_value_of_all_of_them() {
    let world = TestBed::new().await;
    let size = 2 * WINDOW_BYTES + 3 * BLOCK_BYTES + 1;
    let new = content(size, 4);
    world.write("f", &new);
    for to in world.both_destinations(&WriteRules::default()) {
        fs::copy(world.src().join("f"), world.dst().join("f")).unwrap();
        let last = size / BLOCK_BYTES;
        for block in [3, WINDOW_BYTES / BLOCK_BYTES, last - 1] {
            change_one_byte(&world.dst().join("f"), block);
        }
        let (got, sent, kept) = transfer(&world, &to, (0, size), RangeMode::Delta).await;
        assert_eq!((sent, kept), (3 * BLOCK_BYTES, size - 3 * BLOCK_BYTES));
        assert_eq!(got, Some(chaining_value(0, &new)));
        world.target().remove_part_file(&world.only_file().1).unwrap();
    }
    world.shut_down().await;
}

#[tokio::test]
async fn kept_content_is_read_back_and_sent_whole_where_it_changed() {
    let world = TestBed::new().await;
    let new = content(SIZE, 5);
    world.write("f", &new);
    write_old(&world.dst().join("f"), &new);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let span = Span { offset: 0, length: SIZE };
    let ours =
        hash_blocks(&source, &entry, span, HashMode::SkipZeros, &mut test_buffer(&test_pool()))
            .unwrap();
    // All equal when they were asked for; then one changes.
    let existing: Vec<BlockHashes> =
        ours.iter().map(|v| BlockHashes { part: None, basis: Some(*v) }).collect();
    change_one_byte(&world.dst().join("f"), 4);
    let transfer = RangeTransfer { source: &source, manifest: &manifest, entry: &entry, span };
    for to in world.both_destinations(&WriteRules::default()) {
        let error = range_error(to.send_range(transfer, Some(existing.clone())).await);
        assert_eq!(error.class, ErrorClass::Transient);
        let WrittenRange { value, sent, kept } =
            to.send_window(transfer, existing.clone()).await.unwrap();
        assert_eq!((value, sent, kept), (Some(chaining_value(0, &new)), SIZE, 0));
        world.target().remove_part_file(&entry).unwrap();
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_range_is_compared_without_being_sent() {
    let world = TestBed::new().await;
    let new = content(SIZE, 6);
    world.write("f", &new);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let rules = WriteRules { dry_run: true, ..WriteRules::default() };
    let existing = world.dst().join("f");
    for to in world.both_destinations(&rules) {
        let compare = |range| to.compare(&source, &manifest, &entry, range);
        assert_eq!(compare((0, SIZE)).await.unwrap(), None);
        write_old(&existing, &new);
        assert_eq!(compare((0, SIZE)).await.unwrap(), Some(chaining_value(0, &new)));
        let (from, to) = (8 * BLOCK_BYTES, SIZE);
        let tail = chaining_value(from, &new[from as usize..to as usize]);
        assert_eq!(compare((from, to - from)).await.unwrap(), Some(tail));
        change_one_byte(&existing, 2);
        assert_eq!(compare((0, SIZE)).await.unwrap(), None);
        assert_eq!(compare((from, to - from)).await.unwrap(), Some(tail));
        write_old(&existing, &new[..SIZE as usize - 1]);
        assert_eq!(compare((from, to - from)).await.unwrap(), None);
        assert_eq!(world.names(), ["f"]);
        fs::remove_file(&existing).unwrap();
    }
    world.write("f", b"another version");
    for to in world.both_destinations(&rules) {
        let error = range_error(to.compare(&source, &manifest, &entry, (0, SIZE)).await);
        assert!(is_source_change(&error), "{error:?}");
    }
    world.shut_down().await;
}

#[tokio::test]
async fn kept_content_of_a_wrong_length_or_digest_is_refused() {
    let world = TestBed::new().await;
    let had = content(2 * BLOCK_BYTES, 7);
    write_old(&world.dst().join("f"), &had);
    let entry = file_entry("f", 2 * BLOCK_BYTES);
    let head = crate::data::protocol::RangeHead {
        manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
        offset: 0,
        length: BLOCK_BYTES,
        is_dense: false,
    };
    let take = |frames: &[&[u8]]| {
        let body = [&frame::range(&head)[..], &frames.concat()].concat();
        let mut frames = frame::FrameReader::new(damage::ScriptedChunks::whole(body));
        crate::data::receive::receive_range(&mut frames, &world.target(), &mut gather_buffer())
    };
    use crate::data::protocol::WriteOutcome;
    use crate::fs::ReuseSource;
    let good = frame::digest(&chaining_value(0, &had[..BLOCK_BYTES as usize]));
    for length in [BLOCK_BYTES + 1, u64::MAX] {
        assert!(take(&[&frame::keep(ReuseSource::Basis, length), &good]).is_err());
        assert!(take(&[&frame::keep(ReuseSource::PartFile, length), &good]).is_err());
    }
    let half = frame::keep(ReuseSource::Basis, BLOCK_BYTES / 2);
    assert!(take(&[&half, &half, &frame::hole(1), &good]).is_err());
    assert_eq!(take(&[&half, &good]).unwrap().outcome, WriteOutcome::Mismatch);
    world.target().remove_part_file(&entry).unwrap();
    // Nothing was written there.
    let empty = take(&[&frame::keep(ReuseSource::PartFile, BLOCK_BYTES), &good]).unwrap();
    assert_eq!(empty.outcome, WriteOutcome::Mismatch);
    assert_eq!(take(&[&half, &half, &good]).unwrap().outcome, WriteOutcome::Written);
    assert_eq!(
        take(&[&frame::keep(ReuseSource::PartFile, BLOCK_BYTES), &good]).unwrap().outcome,
        WriteOutcome::Written
    );
    // Flipped while it travelled: every bit of the head of a frame.
    let body = [&frame::keep(ReuseSource::Basis, BLOCK_BYTES)[..], &good].concat();
    for bit in 0..8 * frame::keep(ReuseSource::Basis, BLOCK_BYTES).len() {
        let mut body = body.clone();
        body[bit / 8] ^= 1 << (bit % 8);
        // A flip may have made content of it.
        assert_eq!(take(&[&half, &half, &good]).unwrap().outcome, WriteOutcome::Written);
        let from_part = bit == 8 * crate::data::protocol::FRAME_HEADER_BYTES;
        match take(&[&body]) {
            Ok(reply) if from_part => assert_eq!(reply.outcome, WriteOutcome::Written),
            Ok(reply) => assert_ne!(reply.outcome, WriteOutcome::Written, "bit {bit}"),
            Err(_) => {}
        }
    }
    world.target().remove_part_file(&entry).unwrap();
    assert_eq!(world.names(), ["f"]);
    world.shut_down().await;
}
