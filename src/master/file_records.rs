//! The recorded outcome of each file of a sync, read from the spool and sent in chunks: never more than a line and a
//! chunk of it is in memory.
//!
//! There is a record for each file, link and special file, for directories if an agent reports something about them,
//! and for deletions (in a dry run: the planned ones). A file that was copied again after the read-back is listed once,
//! with the second outcome. If one agent created a directory, on the way to an entry in it, and another agent completed
//! its metadata, it is listed once, as created. A batch that failed as a whole is one failed entry.

use crate::scheduler::{MAX_LINE_BYTES, RecordLogInfo};
use crate::store::Spool;
use crate::wire::AbsPath;
use crate::wire::entry_report::{EntryAction, FileRecord, FileState};
use crate::wire::problem::{Problem, ProblemCode};
use bytes::Bytes;
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use tokio::sync::mpsc;

/// The size of a chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait for a slow reader.
pub(super) const MAX_QUEUED_CHUNKS: usize = 4;
/// The maximum number of names of which a second record is recognized; of further names both records are listed.
pub(super) const MAX_REPEATED_NAMES: usize = 1 << 20;
/// Part of the line of an entry with repaired metadata. A name cannot contain it: its quotes are escaped.
const METADATA_ACTION_JSON: &[u8] = br#""action":"metadata""#;

/// The content of a reply.
pub(super) enum FileRecordQuery {
    /// The records as JSON, of these states (empty: all).
    Records(Vec<FileState>),
    /// A line for each file with a digest at the destination.
    Digests(DigestLines),
}

/// The lines of a list of digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DigestLines {
    /// Those that `b3sum --check` accepts.
    Checkable,
    /// The others, each after a comment with the reason.
    Uncheckable,
}

/// Chunks of a reply; an error ends it.
pub(super) type ChunkReceiver = mpsc::Receiver<io::Result<Bytes>>;

/// Starts to read the records of a sync.
///
/// # Errors
/// 409 if there are none, or they are incomplete.
pub(super) async fn stream_records(
    spool: Spool,
    listing: RecordLogInfo,
    query: FileRecordQuery,
) -> Result<ChunkReceiver, Problem> {
    check_available(&listing, &query)?;
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_CHUNKS);
    if listing.length == 0 {
        return Ok(receiver);
    }
    let (number, length) = (listing.sync.0, listing.length);
    let opened = tokio::task::spawn_blocking(move || spool.open(number, length)).await;
    let opened = opened.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    let file = opened.map_err(|e| records_lost(&e.to_string()))?;
    tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter { sender, buffer: Vec::new() };
        match write_records(file, &listing, &query, &mut out) {
            Ok(()) => drop(out.flush()),
            Err(e) => drop(out.sender.blocking_send(Err(e))),
        }
    });
    Ok(receiver)
}

fn check_available(listing: &RecordLogInfo, query: &FileRecordQuery) -> Result<(), Problem> {
    let id = &listing.id;
    if let Some(reason) = &listing.error {
        return Err(records_lost(reason));
    }
    match query {
        FileRecordQuery::Records(_) if !listing.is_recorded => {
            Err(Problem::new(ProblemCode::NotRecorded, "this sync did not record the outcome of each file")
                .with_hint(format!(
                    "every sync lists its failures: ctl sync files {id} --state failed; for all paths submit it \
                     with --record (options.record)"
                )))
        }
        FileRecordQuery::Digests(_) if !listing.has_digests => {
            Err(Problem::new(ProblemCode::NotRecorded, "this sync did not record the digests of its files")
                .with_hint("submit it with options.manifest (ctl: --manifest)"))
        }
        FileRecordQuery::Digests(_) if !listing.has_ended => {
            Err(Problem::new(ProblemCode::NotEnded, "the sync has not ended: its manifest is not complete yet")
                .with_hint(format!("wait for its end: ctl sync wait {id}")))
        }
        _ => Ok(()),
    }
}

fn records_lost(reason: &str) -> Problem {
    let detail = format!("the records of this sync are not complete: {reason}");
    Problem::new(ProblemCode::RecordsLost, detail).with_hint(
        "records are in the data_dir of the master that led; submit the sync again to record them",
    )
}

/// Collects lines into chunks.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    /// `false`: the reader has disconnected.
    fn flush(&mut self) -> bool {
        let chunk = std::mem::take(&mut self.buffer);
        chunk.is_empty() || self.sender.blocking_send(Ok(chunk.into())).is_ok()
    }

    fn flush_if_full(&mut self) -> bool {
        self.buffer.len() < CHUNK_BYTES || self.flush()
    }
}

fn write_records(
    file: impl Read + Seek,
    listing: &RecordLogInfo,
    query: &FileRecordQuery,
    out: &mut ChunkWriter,
) -> io::Result<()> {
    let mut file = BufReader::with_capacity(CHUNK_BYTES, file);
    let readback_from = listing.readback_from.unwrap_or(listing.length).min(listing.length);
    let readback_length = listing.length - readback_from;
    let mut replaced = HashSet::new();
    file.seek(SeekFrom::Start(readback_from))?;
    for_each_line(&mut file, readback_length, |line| {
        let record = parse_record(line)?;
        if record.state != FileState::Deleted && replaced.len() < MAX_REPEATED_NAMES {
            replaced.insert(path_hash(&record));
        }
        Ok(true)
    })?;
    let created = match query {
        FileRecordQuery::Records(_) => created_and_repaired(&mut file, listing.length)?,
        FileRecordQuery::Digests(_) => HashSet::new(),
    };
    file.seek(SeekFrom::Start(0))?;
    for (length, is_first_pass) in [(readback_from, true), (readback_length, false)] {
        let is_complete = for_each_line(&mut file, length, |line| {
            let record = parse_record(line)?;
            let is_repeated =
                is_first_pass && !replaced.is_empty() && replaced.contains(&path_hash(&record))
                    || record.action == Some(EntryAction::Metadata)
                        && created.contains(&path_hash(&record));
            if is_repeated {
                return Ok(true);
            }
            match query {
                FileRecordQuery::Records(states) => {
                    if states.is_empty() || states.contains(&record.state) {
                        out.buffer.extend_from_slice(line);
                        out.buffer.push(b'\n');
                    }
                }
                FileRecordQuery::Digests(lines) => {
                    write_digest_line(&record, &listing.destination, *lines, &mut out.buffer);
                }
            }
            Ok(out.flush_if_full())
        })?;
        if !is_complete {
            break;
        }
    }
    Ok(())
}

/// A digest of the path, which needs less memory than most paths.
pub(super) fn path_hash(record: &FileRecord) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(&record.path.0).as_bytes()[..16]);
    short
}

/// The names in the first `length` bytes that are recorded as created and as repaired, in any order: an agent that
/// finds a directory does not know whether another agent has just created it.
fn created_and_repaired(
    file: &mut (impl BufRead + Seek),
    length: u64,
) -> io::Result<HashSet<[u8; 16]>> {
    let is_repair = |line: &[u8]| {
        line.windows(METADATA_ACTION_JSON.len()).any(|part| part == METADATA_ACTION_JSON)
    };
    let (mut repaired, mut both) = (HashSet::new(), HashSet::new());
    file.seek(SeekFrom::Start(0))?;
    for_each_line(file, length, |line| {
        if is_repair(line) && repaired.len() < MAX_REPEATED_NAMES {
            repaired.insert(path_hash(&parse_record(line)?));
        }
        Ok(true)
    })?;
    if repaired.is_empty() {
        return Ok(both);
    }
    file.seek(SeekFrom::Start(0))?;
    for_each_line(file, length, |line| {
        if !is_repair(line) {
            let record = parse_record(line)?;
            let is_created =
                matches!(record.action, Some(EntryAction::Create | EntryAction::Update));
            both.extend(
                Some(path_hash(&record)).filter(|name| is_created && repaired.contains(name)),
            );
        }
        Ok(true)
    })?;
    Ok(both)
}

fn invalid_data(detail: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_string())
}

fn parse_record(line: &[u8]) -> io::Result<FileRecord> {
    serde_json::from_slice(line).map_err(invalid_data)
}

/// Calls `process` with each line of the next `length` bytes, without the line end, until it returns `false`. Returns
/// whether all lines were processed.
fn for_each_line(
    file: &mut impl BufRead,
    mut length: u64,
    mut process: impl FnMut(&[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    let mut line = Vec::new();
    while length > 0 {
        line.clear();
        let limit = length.min(MAX_LINE_BYTES as u64);
        let read = file.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(invalid_data("a record has no line end"));
        }
        length -= read as u64;
        if !process(&line)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Why `b3sum --check` (1.8) refuses a name; `None` if it accepts it.
fn uncheckable_reason(name: &[u8]) -> Option<&'static str> {
    match std::str::from_utf8(name) {
        Err(_) => Some("its name is not UTF-8"),
        Ok(text) if text.contains(char::REPLACEMENT_CHARACTER) => {
            Some("its name contains U+FFFD, which b3sum writes for bytes that are not UTF-8")
        }
        Ok(_) => None,
    }
}

/// Writes the line of a file, if it is one of `lines`. Names with a backslash or a line end are escaped as by `b3sum`:
/// the line begins with a backslash. `\xHH` is an extension for names that `b3sum` refuses.
fn write_digest_line(
    record: &FileRecord,
    destination: &AbsPath,
    lines: DigestLines,
    out: &mut Vec<u8>,
) {
    let is_present = matches!(record.state, FileState::Done | FileState::Skipped);
    let (Some(digest), true) = (record.digest, is_present) else { return };
    let mut name = record.path.0.as_slice();
    if name.is_empty() {
        // The root is a file: its name in its directory.
        name = destination.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    }
    let reason = uncheckable_reason(name);
    if reason.is_some() != (lines == DigestLines::Uncheckable) {
        return;
    }
    if let Some(reason) = reason {
        out.extend_from_slice(format!("# b3sum cannot check this file: {reason}\n").as_bytes());
    }
    if reason.is_some() || name.iter().any(|b| matches!(b, b'\\' | b'\n' | b'\r')) {
        out.push(b'\\');
    }
    out.extend_from_slice(digest.to_string().as_bytes());
    out.extend_from_slice(b"  ");
    if name == b"-" {
        // `-` is standard input.
        out.extend_from_slice(b"./");
    }
    for byte in name {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte if reason.is_some() && !byte.is_ascii() => {
                out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
            }
            byte => out.push(*byte),
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BytePath, Digest, SyncNo};

    fn record(path: &[u8], state: FileState) -> FileRecord {
        FileRecord {
            path: BytePath(path.to_vec()),
            state,
            action: None,
            bytes: 5,
            digest: Some(Digest([path.len() as u8; 32])),
            error: None,
        }
    }

    fn json_lines(records: &[FileRecord]) -> Vec<u8> {
        let each = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n");
        each.collect::<String>().into_bytes()
    }

    fn listing(length: usize, readback_from: Option<usize>) -> RecordLogInfo {
        RecordLogInfo {
            sync: SyncNo(3),
            id: "demo".parse().unwrap(),
            length: length as u64,
            readback_from: readback_from.map(|n| n as u64),
            error: None,
            is_recorded: true,
            has_digests: true,
            has_ended: true,
            destination: AbsPath::new("/data/to").unwrap(),
            failures: Default::default(),
        }
    }

    async fn read_all(
        spool: &Spool,
        listing: RecordLogInfo,
        query: FileRecordQuery,
    ) -> io::Result<Vec<u8>> {
        let mut chunks = stream_records(spool.clone(), listing, query).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    fn paths_and_states(text: &[u8]) -> Vec<String> {
        let each = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        each.map(|line| serde_json::from_slice::<FileRecord>(line).unwrap())
            .map(|r| format!("{} {:?}", r.path, r.state))
            .collect()
    }

    #[tokio::test]
    async fn records_are_filtered_by_state_and_the_second_pass_replaces_the_first() {
        use FileState::*;
        let spool = Spool::temporary();
        let first = json_lines(&[record(b"a", Done), record(b"b", Skipped), record(b"c", Done)]);
        let second = json_lines(&[record(b"b", Done), record(b"x", Deleted), record(b"c", Failed)]);
        let length = first.len() + second.len();
        spool.write(3, 0, &[&first[..], &second, b"{\"never\": \"decided"].concat()).unwrap();
        let listing = |readback_from| listing(length, readback_from);
        let all = read_all(&spool, listing(Some(first.len())), FileRecordQuery::Records(vec![]))
            .await
            .unwrap();
        assert_eq!(paths_and_states(&all), ["a Done", "b Done", "x Deleted", "c Failed"]);
        let some = FileRecordQuery::Records(vec![Failed, Deleted]);
        let some = read_all(&spool, listing(Some(first.len())), some).await.unwrap();
        assert_eq!(paths_and_states(&some), ["x Deleted", "c Failed"]);
        let one_pass =
            read_all(&spool, listing(None), FileRecordQuery::Records(vec![])).await.unwrap();
        assert_eq!(paths_and_states(&one_pass).len(), 6);
    }

    #[tokio::test]
    async fn a_directory_created_by_one_agent_and_repaired_by_another_is_listed_once_as_created() {
        let with_action =
            |path: &[u8], state, action| FileRecord { action: Some(action), ..record(path, state) };
        let created = |path| with_action(path, FileState::Done, EntryAction::Create);
        let repaired = |path| with_action(path, FileState::Skipped, EntryAction::Metadata);
        let all = [
            repaired(b"first"),
            created(b"second"),
            created(b"first"),
            repaired(b"second"),
            repaired(b"old"),
            with_action(b"old", FileState::Deleted, EntryAction::Delete),
            created(br#""action":"metadata""#),
        ];
        let all = json_lines(&all);
        let spool = Spool::temporary();
        spool.write(3, 0, &all).unwrap();
        let text = read_all(&spool, listing(all.len(), None), FileRecordQuery::Records(vec![]))
            .await
            .unwrap();
        assert_eq!(
            paths_and_states(&text),
            [
                "second Done",
                "first Done",
                "old Skipped",
                "old Deleted",
                r#""action":"metadata" Done"#
            ]
        );
    }

    #[tokio::test]
    async fn a_manifest_lists_what_b3sum_can_check_and_separately_the_rest_with_reasons() {
        let spool = Spool::temporary();
        let mut link = record(b"link", FileState::Done);
        link.digest = None;
        let all = json_lines(&[
            record(b"d/plain", FileState::Skipped),
            link,
            record(b"new\nline\\\r", FileState::Done),
            record(b"\xff", FileState::Done),
            record("d/\u{fffd}".as_bytes(), FileState::Skipped),
            record(b"-", FileState::Done),
            record(b"gone", FileState::Failed),
            record(b"", FileState::Done),
        ]);
        spool.write(3, 0, &all).unwrap();
        let manifest = async |lines| {
            let query = FileRecordQuery::Digests(lines);
            String::from_utf8(read_all(&spool, listing(all.len(), None), query).await.unwrap())
                .unwrap()
        };
        let hex = |n: u8| Digest([n; 32]).to_string();
        let readable = format!(
            "{}  d/plain\n\\{}  new\\nline\\\\\\r\n{}  ./-\n{}  to\n",
            hex(7),
            hex(10),
            hex(1),
            hex(0)
        );
        assert_eq!(manifest(DigestLines::Checkable).await, readable);
        let others = manifest(DigestLines::Uncheckable).await;
        let lines: Vec<&str> = others.lines().collect();
        assert!(lines[0].starts_with("# ") && lines[0].ends_with("not UTF-8"), "{others}");
        assert_eq!(lines[1], format!("\\{}  \\xff", hex(1)));
        assert!(lines[2].starts_with("# ") && lines[2].contains("U+FFFD"), "{others}");
        assert_eq!(lines[3], format!("\\{}  d/\\xef\\xbf\\xbd", hex(5)));
        assert_eq!(lines.len(), 4);
    }

    #[tokio::test]
    async fn a_long_list_is_sent_in_chunks_and_stops_when_the_reader_disconnects() {
        let spool = Spool::temporary();
        let many: Vec<FileRecord> =
            (0..20_000).map(|i| record(format!("f{i}").as_bytes(), FileState::Done)).collect();
        let all = json_lines(&many);
        spool.write(3, 0, &all).unwrap();
        let query = || FileRecordQuery::Records(vec![FileState::Done]);
        let mut chunks =
            stream_records(spool.clone(), listing(all.len(), None), query()).await.unwrap();
        let first = chunks.recv().await.unwrap().unwrap();
        assert!(first.len() < 2 * CHUNK_BYTES, "{}", first.len());
        drop(chunks);
        assert_eq!(read_all(&spool, listing(all.len(), None), query()).await.unwrap(), all);
    }

    #[tokio::test]
    async fn an_incomplete_or_missing_list_is_refused_with_its_reason() {
        let spool = Spool::temporary();
        let all = json_lines(&[record(b"a", FileState::Done)]);
        spool.write(3, 0, &all).unwrap();
        let code = async |listing: RecordLogInfo, query| {
            stream_records(spool.clone(), listing, query).await.unwrap_err().code
        };
        let records = || FileRecordQuery::Records(vec![]);
        assert_eq!(code(listing(all.len() + 1, None), records()).await, "records_lost");
        let lost = Some("the disk is full".to_owned());
        assert_eq!(
            code(RecordLogInfo { error: lost, ..listing(1, None) }, records()).await,
            "records_lost"
        );
        let none = || RecordLogInfo { is_recorded: false, has_digests: false, ..listing(0, None) };
        assert_eq!(code(none(), records()).await, "not_recorded");
        assert_eq!(
            code(none(), FileRecordQuery::Digests(DigestLines::Checkable)).await,
            "not_recorded"
        );
        let running = RecordLogInfo { has_ended: false, ..listing(all.len(), None) };
        assert_eq!(
            code(running, FileRecordQuery::Digests(DigestLines::Uncheckable)).await,
            "not_ended"
        );
        let cut = listing(all.len() - 3, None);
        assert!(read_all(&spool, cut, records()).await.is_err());
        assert_eq!(read_all(&spool, listing(0, None), records()).await.unwrap(), b"");
    }
}
