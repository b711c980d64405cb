use super::*;
use crate::cli::fixtures::fake_master;

fn sync_id() -> RequestId {
    "run42".parse().unwrap()
}

fn file_record(path: &[u8], state: FileState, action: Option<EntryAction>) -> FileRecord {
    let path = crate::wire::BytePath(path.to_vec());
    FileRecord { path, state, action, bytes: 1234, digest: None, error: None }
}

fn format_record(form: fn(&FileRecord, &mut Vec<u8>), record: &FileRecord) -> Vec<u8> {
    let mut text = Vec::new();
    form(record, &mut text);
    text
}

#[test]
fn a_record_is_one_line_for_any_file_name() {
    let odd = file_record(b"a\n\xff\x1b b", FileState::Done, Some(EntryAction::Create));
    assert_eq!(
        format_record(write_row, &odd),
        b"done     create              1234  a\\#012\\#377\\#033 b\n"
    );
    assert_eq!(format_record(write_item, &odd), b"create    a\\#012\\#377\\#033 b\n");
    assert_eq!(format_record(write_name, &odd), b"a\n\xff\x1b b\0");
    let root = file_record(b"", FileState::Failed, None);
    assert_eq!(format_record(write_row, &root), b"failed   -                   1234  .\n");
    assert_eq!(format_record(write_item, &root), b"failed    .\n");
    assert_eq!(format_record(write_name, &root), b".\0");
    let gone = file_record(b"x", FileState::Deleted, Some(EntryAction::Delete));
    assert_eq!(format_record(write_item, &gone), b"delete    x\n");
    let same = file_record(b"x", FileState::Skipped, Some(EntryAction::Skip));
    assert_eq!(format_record(write_item, &same), b"", "no news");
    let repaired = file_record(b"x", FileState::Skipped, Some(EntryAction::Metadata));
    assert_eq!(format_record(write_item, &repaired), b"metadata  x\n");
}

#[tokio::test]
async fn the_requested_states_are_sent_to_the_master() {
    let line = br#"{"path": "a", "state": "failed", "bytes": 5}"#;
    let (client, request) = fake_master(200, line).await;
    let mut body =
        client.download_files(&sync_id(), &[FileState::Failed, FileState::Deleted]).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = body.next_chunk().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    assert_eq!(all, line);
    assert_eq!(request.await.unwrap(), "GET /sync/run42/files?state=failed,deleted HTTP/1.1");
    let (client, _) = fake_master(200, line).await;
    let mut body = client.download_files(&sync_id(), &[]).await.unwrap();
    let e = print_records(&mut body, write_name).await.unwrap_err();
    assert!(e.render().contains("in the middle of a line"), "{}", e.render());
}
