//! Frames cut into pieces of any length, and frames that are none.

use super::*;
use crate::wire::RelPath;
use crate::wire::manifest::{EntryKind, FileVersion, Manifest, Meta};
use proptest::prelude::*;
use std::collections::VecDeque;

/// Bytes cut into pieces of `size`.
struct Chunks(VecDeque<Bytes>);

impl Chunks {
    fn new(bytes: &[u8], size: usize) -> Self {
        Chunks(bytes.chunks(size.max(1)).map(Bytes::copy_from_slice).collect())
    }
}

impl ChunkSource for Chunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        Ok(self.0.pop_front())
    }
}

fn meta() -> Meta {
    Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 1, mtime_nsec: 2 }
}

fn entry(name: &[u8], size: u64) -> Entry {
    Entry::new(
        RelPath::new(name).unwrap(),
        EntryKind::File { size },
        meta(),
        FileVersion::default(),
    )
}

/// All frames of `bytes`, content pieces of one frame joined.
fn read_all(bytes: &[u8], size: usize) -> Result<Vec<Frame>, FrameError> {
    let mut reader = FrameReader::new(Chunks::new(bytes, size));
    let mut frames: Vec<Frame> = Vec::new();
    while reader.has_more()? {
        let joins = reader.content_left > 0;
        let frame = reader.next_frame()?;
        match (&frame, frames.last_mut()) {
            (Frame::Content(piece), Some(Frame::Content(started))) if joins => {
                *started = [started.as_ref(), piece.as_ref()].concat().into();
            }
            _ => frames.push(frame),
        }
    }
    reader.check_no_trailing_bytes()?;
    Ok(frames)
}

#[test]
fn the_first_bytes_of_each_frame_are_frozen() {
    assert_eq!(content_header(0x01_0203), [b'C', 3, 2, 1, 0]);
    assert_eq!(abort(), [b'A', 0, 0, 0, 0]);
    assert_eq!(end(258), [b'E', 4, 0, 0, 0, 2, 1, 0, 0]);
    assert_eq!(digest(&Digest([7; 32]))[..6], [b'H', 32, 0, 0, 0, 7]);
    assert_eq!(dirs(vec![])[..7], [b'D', 10, 0, 0, 0, 0x81, 0x80]);
    assert_eq!(hole(258), [b'Z', 8, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(keep(ReuseSource::PartFile, 3), [b'K', 9, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(keep(ReuseSource::Basis, 3)[FRAME_HEADER_BYTES], 1);
    assert_eq!(done(), [b'N', 0, 0, 0, 0]);
}

/// One document with its frame header.
fn read_document(bytes: &[u8], expected: u8) -> Vec<u8> {
    let (head, payload) = bytes.split_first_chunk().unwrap();
    assert_eq!(parse_header(*head), (expected, payload.len()));
    payload.to_vec()
}

#[test]
fn frames_are_read_and_written_as_recorded() {
    let mut frames = crate::wire::samples::Samples::open("frames");
    let manifest = crate::wire::formats::manifest();
    let (entry, dirs_above) = (manifest.entries[0].clone(), manifest.dirs.clone());
    let hash = Digest([7; 32]);
    let pack = vec![
        Frame::Dirs(dirs_above.clone()),
        Frame::File(entry.clone()),
        Frame::Content(Bytes::from_static(b"content")),
        Frame::Hole(258),
        Frame::Digest(hash),
        Frame::File(entry.clone()),
        Frame::Done,
        Frame::File(entry.clone()),
        Frame::Abort,
        Frame::End(3),
    ];
    let encode_pack = |_: &Vec<Frame>| {
        [
            dirs(dirs_above.clone()),
            file(&entry),
            content_header(7).to_vec(),
            b"content".to_vec(),
            hole(258).to_vec(),
            digest(&hash).to_vec(),
            file(&entry),
            done().to_vec(),
            file(&entry),
            abort().to_vec(),
            end(3).to_vec(),
        ]
        .concat()
    };
    let decode = |bytes: &[u8]| read_all(bytes, 64).unwrap();
    frames.check_bytes("pack", &pack, encode_pack, decode);
    let head = RangeHead { manifest: manifest.clone(), offset: 1024, length: 9, is_dense: false };
    let parts = vec![
        Frame::Range(head.clone()),
        Frame::Keep(ReuseSource::PartFile, 3),
        Frame::Keep(ReuseSource::Basis, 4),
        Frame::Hole(2),
        Frame::Digest(hash),
    ];
    let encode_range = |_: &Vec<Frame>| {
        let keeps = [keep(ReuseSource::PartFile, 3), keep(ReuseSource::Basis, 4)].concat();
        [range(&head), keeps, hole(2).to_vec(), digest(&hash).to_vec()].concat()
    };
    frames.check_bytes("range", &parts, encode_range, decode);
    let request = ContentRequest { verb: "/v1/pack".to_owned(), ticket: "AAEC.AAEC".to_owned() };
    frames.check_bytes("ask", &request, ask, |bytes| {
        let payload = read_document(bytes, REQUEST);
        minicbor::decode(checksum::verify_and_strip(&payload).unwrap()).unwrap()
    });
    frames.check_bytes(
        "reply",
        &b"document".to_vec(),
        |document| reply(document),
        |bytes| checksum::verify_and_strip(&read_document(bytes, REPLY)).unwrap().to_vec(),
    );
    let encode_refusal = |problem: &Vec<u8>| refusal(problem);
    frames.check_bytes("refusal", &b"{}".to_vec(), encode_refusal, |bytes| {
        read_document(bytes, REFUSAL)
    });
    frames.finish();
}

#[test]
fn malformed_frames_are_refused_with_their_fault() {
    let length = |bytes: &[u8]| match read_all(bytes, 64) {
        Err(FrameError::Length { length, .. }) => length,
        other => panic!("{other:?}"),
    };
    assert_eq!(length(&head(CONTENT, 0)), 0);
    assert_eq!(length(&head(CONTENT, MAX_CONTENT_FRAME_BYTES + 1)), MAX_CONTENT_FRAME_BYTES + 1);
    assert_eq!(length(&[b'F', 255, 255, 255, 255]), u32::MAX as usize);
    assert_eq!(length(&head(DIGEST, 31)), 31);
    assert_eq!(length(&head(HOLE, 7)), 7);
    assert_eq!(length(&head(KEEP, 8)), 8);
    assert_eq!(length(&head(DONE, 1)), 1);
    let mut from_nowhere = keep(ReuseSource::Basis, 1);
    from_nowhere[FRAME_HEADER_BYTES] = 2;
    for broken in [&hole(0)[..], &keep(ReuseSource::PartFile, 0), &from_nowhere] {
        assert!(matches!(read_all(broken, 64), Err(FrameError::Malformed { .. })), "{broken:?}");
    }
    assert_eq!(read_all(&hole(5)[..9], 3), Err(FrameError::Truncated));
    assert_eq!(read_all(b"GET / HTTP/1.1", 64), Err(FrameError::Unknown(b'G')));
    assert_eq!(read_all(b"C\x05\0\0\0abc", 2), Err(FrameError::Truncated));
    assert_eq!(read_all(b"C\x05\0", 1), Err(FrameError::Truncated));
    let mut trailing = file(&entry(b"a", 1));
    trailing.push(0);
    let l = (trailing.len() - FRAME_HEADER_BYTES) as u32;
    trailing[1..FRAME_HEADER_BYTES].copy_from_slice(&l.to_le_bytes());
    assert_eq!(read_all(&trailing, 64), Err(FrameError::Damaged(FILE)));
}

#[test]
fn an_announced_length_without_bytes_allocates_nothing() {
    // 16 MiB are announced, 3 bytes come.
    let mut bytes = head(FILE, MAX_MANIFEST_BYTES).to_vec();
    bytes.extend_from_slice(b"abc");
    assert_eq!(read_all(&bytes, 64), Err(FrameError::Truncated));
}

#[test]
fn what_follows_the_last_frame_is_refused() {
    let mut reader = FrameReader::new(Chunks::new(b"A\0\0\0\0x", 3));
    assert_eq!(reader.next_frame(), Ok(Frame::Abort));
    assert!(matches!(reader.check_no_trailing_bytes(), Err(FrameError::Unexpected(_))));
}

proptest! {
    #[test]
    fn frames_round_trip_in_chunks_of_any_size(
        contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..5),
        size in 1usize..400,
    ) {
        let table = vec![ManifestDir { path: RelPath::root(), meta: meta() }];
        let mut expected = vec![Frame::Dirs(table.clone())];
        let mut bytes = dirs(table);
        for (i, content) in contents.iter().enumerate() {
            let e = entry(&[b'a' + i as u8, 0xff], content.len() as u64);
            bytes.extend(file(&e));
            bytes.extend(content_header(content.len()));
            bytes.extend(content);
            let (gap, from) = (1 << (i * 9), if i % 2 == 0 { ReuseSource::PartFile } else { ReuseSource::Basis });
            bytes.extend(hole(gap));
            bytes.extend(keep(from, gap + 1));
            expected.extend([
                Frame::File(e), Frame::Content(content.clone().into()),
                Frame::Hole(gap), Frame::Keep(from, gap + 1),
            ]);
            if i % 3 == 0 {
                bytes.extend(done());
                expected.push(Frame::Done);
            } else {
                let d = Digest::from(blake3::hash(content));
                bytes.extend(digest(&d));
                expected.push(Frame::Digest(d));
            }
        }
        bytes.extend(end(contents.len() as u32));
        expected.push(Frame::End(contents.len() as u32));
        let head = RangeHead {
            manifest: Manifest { dirs: vec![], entries: vec![entry(b"x", 9)] },
            offset: 1024,
            length: 7,
            is_dense: false,
        };
        bytes.extend(range(&head));
        expected.push(Frame::Range(head));
        prop_assert_eq!(read_all(&bytes, size).unwrap(), expected);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, size in 1usize..40) {
        let _ = read_all(&bytes, size);
    }

    #[test]
    fn mutated_frames_are_read_without_a_panic(edits in crate::wire::fuzz::any_edits(), size in 1usize..90) {
        let mut bytes = dirs(vec![ManifestDir { path: RelPath::root(), meta: meta() }]);
        bytes.extend(file(&entry(b"abc", 3)));
        bytes.extend(content_header(3));
        bytes.extend(b"xyz");
        bytes.extend(hole(7));
        bytes.extend(keep(ReuseSource::Basis, 9));
        bytes.extend(done());
        bytes.extend(end(1));
        bytes.extend(range(&RangeHead {
            manifest: Manifest { dirs: vec![], entries: vec![entry(b"x", 9)] },
            offset: 1024,
            length: 7,
            is_dense: true,
        }));
        let _ = read_all(&crate::wire::fuzz::apply_edits(&bytes, &edits), size);
    }
}

/// Bytes that have no end, and how much of them was taken.
struct EndlessChunks<'a>(&'a [u8], usize);

impl ChunkSource for EndlessChunks<'_> {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.1 += 1;
        Ok(Some(Bytes::copy_from_slice(self.0)))
    }
}

#[test]
fn empty_frames_are_refused_at_the_first() {
    let empty =
        [content_header(0).to_vec(), hole(0).to_vec(), keep(ReuseSource::PartFile, 0).to_vec()];
    for frame in empty.map(|frame| frame.repeat(1000)) {
        let mut reader = FrameReader::new(EndlessChunks(&frame, 0));
        let error = reader.next_frame().unwrap_err();
        assert!(
            matches!(error, FrameError::Length { .. } | FrameError::Malformed { .. }),
            "{error}"
        );
        assert_eq!(reader.source.1, 1, "nothing more was read");
    }
}

#[test]
fn long_content_that_has_not_arrived_is_pending_and_other_content_is_returned() {
    let content: Vec<u8> = (0..MIN_BULK_BYTES).map(|i| (i % 251) as u8).collect();
    let bytes = [&content_header(MIN_BULK_BYTES)[..], &content].concat();
    for first in [FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + 1, bytes.len() - 1] {
        let mut reader = FrameReader::new(Chunks::new(&bytes, first));
        assert_eq!(reader.next_frame(), Ok(Frame::PendingContent(MIN_BULK_BYTES)), "{first}");
        let mut fetched = vec![0; MIN_BULK_BYTES];
        reader.read_content(&mut fetched).unwrap();
        assert!(fetched == content, "{first}");
        assert_eq!(reader.check_no_trailing_bytes(), Ok(()));
    }
    let mut whole = FrameReader::new(Chunks::new(&bytes, bytes.len()));
    assert_eq!(whole.next_frame(), Ok(Frame::Content(content.into())));
    let short = [&content_header(MIN_BULK_BYTES - 1)[..], b"abc"].concat();
    let mut short = FrameReader::new(Chunks::new(&short, short.len()));
    assert_eq!(short.next_frame(), Ok(Frame::Content(Bytes::from_static(b"abc"))));
}
