//! Ranges of which the destination has something: what is equal stays, what differs is sent, and
//! nothing is believed that was not read back.

use super::*;
use crate::data::asks::{BLOCK_BYTES, BlockValue, WINDOW};
use crate::data::delta::Ranged;
use crate::data::outcome::Compared;
use crate::data::read::{Span, hash_blocks};
use crate::wire::content::HashMode;
use std::os::unix::fs::FileExt as _;

const BLOCKS: u64 = 12;
/// Not a whole number of blocks.
const SIZE: u64 = BLOCKS * BLOCK_BYTES - 1000;

/// What becomes of the only file's range of `mode`.
async fn bring(
    world: &World,
    to: &Destination,
    range: (u64, u64),
    mode: RangeMode,
) -> (Option<Digest>, u64, u64) {
    let (manifest, entry) = world.only_file();
    match to.range(&tree(&world.src()), &manifest, &entry, range, mode).await.unwrap() {
        RangeSent::Written { value, sent, kept } => (value, sent, kept),
        other => panic!("{other:?}"),
    }
}

fn value(offset: u64, content: &[u8]) -> Digest {
    use blake3::hazmat::HasherExt as _;
    let mut hasher = crate::wire::content::hasher_at(offset);
    hasher.update(content);
    Digest(hasher.finalize_non_root())
}

/// Changes one byte of `block` in the file at `path`.
fn touch(path: &Path, block: u64) {
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
    let world = World::new().await;
    let new = content(SIZE, 1);
    world.write("f", &new);
    for to in world.both(&WriteRules::default()) {
        let there = world.dst().join("f");
        write_old(&there, &new);
        for block in [0, 5, 6, BLOCKS - 1] {
            touch(&there, block);
        }
        let (got, sent, kept) = bring(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!((sent, kept), (4 * BLOCK_BYTES - 1000, 8 * BLOCK_BYTES));
        assert_eq!(got, Some(value(0, &new)));
        let (_, entry) = world.only_file();
        world.target().publish_part_file(&entry, None).unwrap();
        assert_eq!(fs::read(&there).unwrap(), new);
    }
    world.end().await;
}

#[tokio::test]
async fn a_shorter_older_version_or_none_is_no_obstacle() {
    let world = World::new().await;
    let new = content(SIZE, 2);
    world.write("f", &new);
    let there = world.dst().join("f");
    for to in world.both(&WriteRules::default()) {
        for (had, expected) in [(None, SIZE), (Some(3 * BLOCK_BYTES + 5), SIZE - 3 * BLOCK_BYTES)] {
            if let Some(had) = had {
                write_old(&there, &new[..had as usize]);
            }
            let (got, sent, kept) = bring(&world, &to, (0, SIZE), RangeMode::Delta).await;
            assert_eq!((got, sent, kept), (Some(value(0, &new)), expected, SIZE - expected));
            world.target().remove_part_file(&world.only_file().1).unwrap();
        }
        fs::remove_file(&there).unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn what_a_broken_range_left_in_the_part_file_is_kept() {
    let world = World::new().await;
    let new = content(SIZE, 3);
    world.write("f", &new);
    let (manifest, entry) = world.only_file();
    // Half of the range, then the connection is cut.
    let head = crate::data::protocol::RangeHead {
        manifest: manifest.clone(),
        offset: 0,
        length: SIZE,
        dense: None,
    };
    let mut body = frame::range(&head);
    for block in new.chunks(BLOCK_BYTES as usize).take(6) {
        body.extend(frame::content_head(block.len()));
        body.extend(block);
    }
    for to in world.both(&WriteRules::default()) {
        let mut stream = world.stream().await;
        let ask = frame::ask(&Ask { verb: RANGE.to_owned(), ticket: world.ticket() });
        stream.write_all(&[&ask[..], &body[..]].concat()).await.unwrap();
        damage::until("it has begun", || !world.names().is_empty()).await;
        stream.shutdown().await.unwrap();
        assert_eq!(streams::answer(&mut stream).await.0, frame::REFUSAL);
        let (got, sent, kept) = bring(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!((sent, kept), (SIZE - 6 * BLOCK_BYTES, 6 * BLOCK_BYTES));
        assert_eq!(got, Some(value(0, &new)));
        let again = bring(&world, &to, (0, SIZE), RangeMode::Delta).await;
        assert_eq!(again, (got, 0, SIZE));
        world.target().publish_part_file(&entry, None).unwrap();
        assert_eq!(fs::read(world.dst().join("f")).unwrap(), new);
        fs::remove_file(world.dst().join("f")).unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn a_range_of_several_windows_has_the_value_of_all_of_them() {
    let world = World::new().await;
    let size = 2 * WINDOW + 3 * BLOCK_BYTES + 1;
    let new = content(size, 4);
    world.write("f", &new);
    for to in world.both(&WriteRules::default()) {
        fs::copy(world.src().join("f"), world.dst().join("f")).unwrap();
        let last = size / BLOCK_BYTES;
        for block in [3, WINDOW / BLOCK_BYTES, last - 1] {
            touch(&world.dst().join("f"), block);
        }
        let (got, sent, kept) = bring(&world, &to, (0, size), RangeMode::Delta).await;
        assert_eq!((sent, kept), (3 * BLOCK_BYTES, size - 3 * BLOCK_BYTES));
        assert_eq!(got, Some(value(0, &new)));
        world.target().remove_part_file(&world.only_file().1).unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn what_is_kept_is_read_back_and_sent_whole_where_it_is_another_one() {
    let world = World::new().await;
    let new = content(SIZE, 5);
    world.write("f", &new);
    write_old(&world.dst().join("f"), &new);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let span = Span { offset: 0, length: SIZE };
    let ours =
        hash_blocks(&source, &entry, span, HashMode::SkipZeros, &mut one(&plenty())).unwrap();
    // All equal when they were asked for; then one changes.
    let there: Vec<BlockValue> =
        ours.iter().map(|v| BlockValue { part: None, base: Some(*v) }).collect();
    touch(&world.dst().join("f"), 4);
    let ranged = Ranged { source: &source, manifest: &manifest, entry: &entry, span };
    for to in world.both(&WriteRules::default()) {
        match to.send_range(ranged, Some(there.clone())).await.unwrap() {
            RangeSent::Failed(error) => assert_eq!(error.class, ErrorClass::Transient),
            other => panic!("{other:?}"),
        }
        match to.window(ranged, there.clone()).await.unwrap() {
            RangeSent::Written { value: got, sent, kept } => {
                assert_eq!((got, sent, kept), (Some(value(0, &new)), SIZE, 0));
            }
            other => panic!("{other:?}"),
        }
        world.target().remove_part_file(&entry).unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn a_range_is_compared_without_being_sent() {
    let world = World::new().await;
    let new = content(SIZE, 6);
    world.write("f", &new);
    let (manifest, entry) = world.only_file();
    let source = tree(&world.src());
    let rules = WriteRules { dry_run: true, ..WriteRules::default() };
    let there = world.dst().join("f");
    for to in world.both(&rules) {
        let compare = |range| to.compare(&source, &manifest, &entry, range);
        assert_eq!(compare((0, SIZE)).await.unwrap(), Compared::Differs);
        write_old(&there, &new);
        assert_eq!(compare((0, SIZE)).await.unwrap(), Compared::Equal(value(0, &new)));
        let (from, to) = (8 * BLOCK_BYTES, SIZE);
        let tail = value(from, &new[from as usize..to as usize]);
        assert_eq!(compare((from, to - from)).await.unwrap(), Compared::Equal(tail));
        touch(&there, 2);
        assert_eq!(compare((0, SIZE)).await.unwrap(), Compared::Differs);
        assert_eq!(compare((from, to - from)).await.unwrap(), Compared::Equal(tail));
        write_old(&there, &new[..SIZE as usize - 1]);
        assert_eq!(compare((from, to - from)).await.unwrap(), Compared::Differs);
        assert_eq!(world.names(), ["f"]);
        fs::remove_file(&there).unwrap();
    }
    world.write("f", b"another version");
    for to in world.both(&rules) {
        let compared = to.compare(&source, &manifest, &entry, (0, SIZE)).await.unwrap();
        assert_eq!(compared, Compared::Changed);
    }
    world.end().await;
}

#[tokio::test]
async fn kept_content_that_lies_about_its_length_or_value_is_refused() {
    let world = World::new().await;
    let had = content(2 * BLOCK_BYTES, 7);
    write_old(&world.dst().join("f"), &had);
    let entry = file_entry("f", 2 * BLOCK_BYTES);
    let head = crate::data::protocol::RangeHead {
        manifest: Manifest { dirs: vec![], entries: vec![entry.clone()] },
        offset: 0,
        length: BLOCK_BYTES,
        dense: None,
    };
    let take = |frames: &[&[u8]]| {
        let body = [&frame::range(&head)[..], &frames.concat()].concat();
        let mut frames = frame::FrameReader::new(damage::Script::whole(body));
        crate::data::receive::take_range(&mut frames, &world.target(), &mut room())
    };
    use crate::data::protocol::Taken;
    use crate::fs::ReuseSource;
    let good = frame::digest(&value(0, &had[..BLOCK_BYTES as usize]));
    for length in [BLOCK_BYTES + 1, u64::MAX] {
        assert!(take(&[&frame::keep(ReuseSource::Basis, length), &good]).is_err());
        assert!(take(&[&frame::keep(ReuseSource::PartFile, length), &good]).is_err());
    }
    let half = frame::keep(ReuseSource::Basis, BLOCK_BYTES / 2);
    assert!(take(&[&half, &half, &frame::hole(1), &good]).is_err());
    assert_eq!(take(&[&half, &good]).unwrap().range, Taken::Mismatch);
    world.target().remove_part_file(&entry).unwrap();
    // Nothing was written there.
    let empty = take(&[&frame::keep(ReuseSource::PartFile, BLOCK_BYTES), &good]).unwrap();
    assert_eq!(empty.range, Taken::Mismatch);
    assert_eq!(take(&[&half, &half, &good]).unwrap().range, Taken::Written);
    assert_eq!(
        take(&[&frame::keep(ReuseSource::PartFile, BLOCK_BYTES), &good]).unwrap().range,
        Taken::Written
    );
    // Flipped while it travelled: every bit of the head of a frame.
    let body = [&frame::keep(ReuseSource::Basis, BLOCK_BYTES)[..], &good].concat();
    for bit in 0..8 * frame::keep(ReuseSource::Basis, BLOCK_BYTES).len() {
        let mut body = body.clone();
        body[bit / 8] ^= 1 << (bit % 8);
        // A flip may have made content of it.
        assert_eq!(take(&[&half, &half, &good]).unwrap().range, Taken::Written);
        let from_part = bit == 8 * frame::HEAD;
        match take(&[&body]) {
            Ok(reply) if from_part => assert_eq!(reply.range, Taken::Written),
            Ok(reply) => assert_ne!(reply.range, Taken::Written, "bit {bit}"),
            Err(_) => {}
        }
    }
    world.target().remove_part_file(&entry).unwrap();
    assert_eq!(world.names(), ["f"]);
    world.end().await;
}
