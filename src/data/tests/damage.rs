//! Bodies that are broken in every way: what is whole is kept, nothing else is left.

use super::*;
use crate::data::frame::FrameReader;
use crate::data::protocol::{PackReply, RangeHead, WriteOutcome};
use crate::data::receive::{receive_pack, receive_range};
use crate::fs::is_internal_name;
use crate::wire::manifest::MAX_MANIFEST_BYTES;
use crate::wire::path::MAX_NAME_BYTES;
use std::collections::VecDeque;

/// Pieces from a list; then the end, or a failed connection.
pub(super) struct ScriptedChunks(VecDeque<Bytes>, Option<&'static str>);

impl ScriptedChunks {
    /// All of `body` at once, then the end.
    pub(super) fn whole(body: Vec<u8>) -> Self {
        ScriptedChunks([Bytes::from(body)].into(), None)
    }
}

impl frame::ChunkSource for ScriptedChunks {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        match (self.0.pop_front(), self.1) {
            (Some(piece), _) => Ok(Some(piece)),
            (None, Some(reason)) => Err(reason.to_owned()),
            (None, None) => Ok(None),
        }
    }
}

#[tokio::test]
async fn a_wrong_digest_or_a_short_file_is_not_published_and_the_rest_is() {
    let world = TestBed::new().await;
    let good: Digest = blake3::hash(b"abc").into();
    let mut body = frame::dirs(vec![]);
    body.extend(file_frames(&file_entry("flipped", 3), b"abd", &good));
    body.extend(file_frames(&file_entry("short", 4), b"abc", &good));
    body.extend(frame::file(&file_entry("taken back", 3)));
    body.extend(frame::content_header(2));
    body.extend(b"ab");
    body.extend(frame::abort());
    body.extend(file_frames(&file_entry("good", 3), b"abc", &good));
    body.extend(frame::end(4));
    let reply = world.post("/v1/pack", &world.ticket(), &body).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert_eq!(world.names(), ["good"]);
    // The reply itself, decoded, by way of the blocking half.
    let mut frames = FrameReader::new(ScriptedChunks([Bytes::from(body)].into(), None));
    let PackReply { files, .. } = receive_pack(
        &mut frames,
        &world.target(),
        &world.claims(&world.dst()),
        &mut gather_buffer(),
    )
    .unwrap();
    assert_eq!(
        files,
        [
            WriteOutcome::Mismatch,
            WriteOutcome::Mismatch,
            WriteOutcome::Aborted,
            WriteOutcome::Written
        ]
    );
    world.shut_down().await;
}

#[tokio::test]
async fn a_truncated_or_oversized_body_leaves_only_complete_files() {
    let world = TestBed::new().await;
    let good: Digest = blake3::hash(b"abc").into();
    let whole = file_frames(&file_entry("whole", 3), b"abc", &good);
    let cut = file_frames(&file_entry("cut", 3), b"abc", &good);
    let head = [frame::dirs(vec![]), whole].concat();
    let mut bodies: Vec<Vec<u8>> =
        (1..cut.len()).map(|n| [head.as_slice(), &cut[..n]].concat()).collect();
    bodies.push([head.as_slice(), &file_frames(&file_entry("cut", 2), b"abc", &good)].concat());
    bodies.push([head.as_slice(), &frame::end(2)].concat());
    bodies.push([head.as_slice(), &frame::end(1), b"x"].concat());
    bodies.push([head.as_slice(), &frame::dirs(vec![])].concat());
    for (i, body) in bodies.into_iter().enumerate() {
        for reason in [None, Some("reset")] {
            let mut frames =
                FrameReader::new(ScriptedChunks([Bytes::from(body.clone())].into(), reason));
            assert!(
                receive_pack(
                    &mut frames,
                    &world.target(),
                    &world.claims(&world.dst()),
                    &mut gather_buffer()
                )
                .is_err(),
                "{i}"
            );
            assert_eq!(world.names(), ["whole"], "{i}");
        }
    }
    world.shut_down().await;
}

#[tokio::test]
async fn a_range_with_a_wrong_digest_is_refused_and_never_published() {
    let world = TestBed::new().await;
    let entry = file_entry("big", 4096);
    let manifest = Manifest { dirs: vec![], entries: vec![entry.clone()] };
    let head =
        |offset, length| RangeHead { manifest: manifest.clone(), offset, length, is_dense: false };
    let body = |head: &RangeHead, content: &[u8]| {
        let mut out = frame::range(head);
        out.extend(frame::content_header(content.len()));
        out.extend(content);
        out.extend(frame::digest(&Digest([9; 32])));
        out
    };
    let take = |bytes: Vec<u8>| {
        let mut frames = FrameReader::new(ScriptedChunks([Bytes::from(bytes)].into(), None));
        receive_range(&mut frames, &world.target(), &mut gather_buffer())
    };
    let wrong = take(body(&head(1024, 1024), &[1; 1024])).unwrap();
    assert_eq!(wrong.outcome, WriteOutcome::Mismatch);
    let short = take(body(&head(1024, 1024), &[1; 10])).unwrap();
    assert_eq!(short.outcome, WriteOutcome::Mismatch);
    // Beyond the file, off the grid, more than was announced, of two files.
    assert!(take(body(&head(4096, 1024), &[1; 1024])).is_err());
    assert!(take(body(&head(1000, 24), &[1; 24])).is_err());
    assert!(take(body(&head(1024, 1024), &[1; 1025])).is_err());
    let mut two = head(0, 1024);
    two.manifest.entries.push(entry.clone());
    assert!(take(body(&two, &[1; 1024])).is_err());
    let names = world.names();
    assert!(names.len() == 1 && is_internal_name(names[0].as_bytes()), "{names:?}");
    world.target().remove_part_file(&entry).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

/// Waits until `done`; panics after ten seconds.
pub(super) async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !done() {
        assert!(started.elapsed().as_secs() < 60, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_connection_that_fails_leaves_no_temporary_file() {
    let world = TestBed::new().await;
    let mut stream = world.stream().await;
    let mut body = frame::ask(&ContentRequest { verb: PACK.to_owned(), ticket: world.ticket() });
    body.extend(frame::dirs(vec![]));
    // Long enough to be written under a temporary name.
    body.extend(frame::file(&file_entry("half", 100_000)));
    body.extend(frame::content_header(500));
    body.extend([1; 500]);
    stream.write_all(&body).await.unwrap();
    wait_until("a temporary file is there", || world.names().len() == 1).await;
    drop(stream);
    wait_until("it is gone", || world.names().is_empty()).await;
    world.shut_down().await;
}

#[tokio::test]
async fn a_name_that_is_damaged_in_transit_is_refused_and_nothing_is_created() {
    let world = TestBed::new().await;
    for bit in [0, 3, 5] {
        let mut frame = frame::file(&file_entry("name", 3));
        let at = frame.windows(4).position(|w| w == b"name").unwrap();
        frame[at] ^= 1 << bit;
        let content = [&frame::content_header(3)[..], b"abc", &frame::done()].concat();
        let request = frame::ask(&ContentRequest { verb: PACK.to_owned(), ticket: world.ticket() });
        let body = [request, frame::dirs(vec![]), frame, content, frame::end(1).to_vec()].concat();
        let mut stream = world.stream().await;
        stream.write_all(&body).await.unwrap();
        let (kind, document) = super::streams::read_reply(&mut stream).await;
        assert_eq!(kind, frame::REFUSAL);
        let text = String::from_utf8_lossy(&document).into_owned();
        assert!(text.contains("corrupted in transit"), "{text}");
        assert_eq!(world.names(), Vec::<String>::new());
    }
    world.shut_down().await;
}

#[tokio::test]
async fn the_digest_of_another_range_is_a_mismatch() {
    let world = TestBed::new().await;
    let content = content(2048, 1);
    let entry = file_entry("big", 2048);
    let manifest = Manifest { dirs: vec![], entries: vec![entry.clone()] };
    let value = |offset: u64, part: &[u8]| {
        use blake3::hazmat::HasherExt as _;
        let mut hasher = crate::wire::content::hasher_at(offset);
        hasher.update(part);
        Digest(hasher.finalize_non_root())
    };
    let send = |offset: u64, part: &[u8], value: Digest| {
        let head = RangeHead { manifest: manifest.clone(), offset, length: 1024, is_dense: false };
        let mut body = frame::range(&head);
        body.extend(frame::content_header(part.len()));
        body.extend(part);
        body.extend(frame::digest(&value));
        let mut frames = FrameReader::new(ScriptedChunks::whole(body));
        receive_range(&mut frames, &world.target(), &mut gather_buffer()).unwrap().outcome
    };
    let (first, second) = content.split_at(1024);
    // The right content with the value of the other, the other's content with its own value, the right content
    // hashed as if it stood at the other place.
    assert_eq!(send(1024, second, value(0, first)), WriteOutcome::Mismatch);
    assert_eq!(send(1024, first, value(0, first)), WriteOutcome::Mismatch);
    assert_eq!(send(1024, second, value(0, second)), WriteOutcome::Mismatch);
    assert_eq!(send(1024, second, value(1024, second)), WriteOutcome::Written);
    world.target().remove_part_file(&entry).unwrap();
    world.shut_down().await;
}

#[tokio::test]
async fn a_pack_of_more_files_than_a_batch_has_is_refused() {
    let world = TestBed::new().await;
    let (head, file) = (frame::dirs(vec![]), frame::file(&file_entry("f", 3)));
    // Each is begun and taken back: nothing but their number bounds them.
    let endless =
        [&file[..], &frame::abort()].concat().repeat(crate::data::frame::MAX_PACK_FILES + 1);
    let mut frames = FrameReader::new(ScriptedChunks::whole([head, endless].concat()));
    let outcome = receive_pack(
        &mut frames,
        &world.target(),
        &world.claims(&world.dst()),
        &mut gather_buffer(),
    );
    assert!(outcome.is_err());
    assert_eq!(world.names(), Vec::<String>::new());
    world.shut_down().await;
}

#[tokio::test]
async fn a_pack_with_longer_paths_than_a_manifest_is_refused() {
    let world = TestBed::new().await;
    let path = vec!["a".repeat(MAX_NAME_BYTES); 17].join("/");
    let file = frame::file(&file_entry(&path, 3));
    let files = MAX_MANIFEST_BYTES / path.len();
    let read = |count: usize| {
        let content = [&file[..], &frame::abort()].concat().repeat(count);
        let pack = [frame::dirs(vec![]), content, frame::end(count as u32).to_vec()].concat();
        let mut frames = FrameReader::new(ScriptedChunks::whole(pack));
        let claims = world.claims(&world.dst());
        receive_pack(&mut frames, &world.target(), &claims, &mut gather_buffer())
    };
    assert_eq!(read(files).unwrap().files.len(), files);
    let error = read(files + 1).unwrap_err().to_string();
    assert!(error.contains("paths are longer than a manifest"), "{error}");
    world.shut_down().await;
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_pack_publishes_only_complete_files(
        edits in crate::wire::fuzz::any_edits(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let world = runtime.block_on(TestBed::new());
        let mut body = frame::dirs(vec![]);
        for name in ["one", "two"] {
            let digest = blake3::hash(name.as_bytes()).into();
            body.extend(file_frames(&file_entry(name, 3), name.as_bytes(), &digest));
        }
        body.extend(frame::end(2));
        let mut frames = FrameReader::new(ScriptedChunks::whole(crate::wire::fuzz::apply_edits(&body, &edits)));
        let _ = receive_pack(&mut frames, &world.target(), &world.claims(&world.dst()), &mut gather_buffer());
        for name in world.names() {
            proptest::prop_assert_eq!(fs::read_to_string(world.dst().join(&name)).unwrap(), name);
        }
        runtime.block_on(world.shut_down());
    }
}
