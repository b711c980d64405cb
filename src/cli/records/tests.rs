//! Against a master played over TCP that gives one reply to each connection.

use super::*;
use crate::client::{ClientOptions, MasterClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Gives `body` to everybody who asks, in small pieces; the second is what was asked.
async fn fake_master(
    status: u16,
    body: &'static [u8],
) -> (MasterClient, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut raw = Vec::new();
        while !raw.windows(4).any(|w| w == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut raw).await.unwrap() > 0);
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for piece in body.chunks(7) {
            let size = format!("{:x}\r\n", piece.len());
            stream.write_all(&[size.as_bytes(), piece, b"\r\n"].concat()).await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&raw).lines().next().unwrap_or_default().to_owned()
    });
    (MasterClient::new(vec![url], ClientOptions::default()).unwrap(), asked)
}

fn sync_id() -> RequestId {
    "run42".parse().unwrap()
}

fn file_record(path: &[u8], state: FileState, action: Option<EntryAction>) -> FileRecord {
    let path = crate::wire::BytePath(path.to_vec());
    FileRecord { path, state, action, bytes: 1234, digest: None, message: None }
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
    let (client, asked) = fake_master(200, line).await;
    let mut body =
        client.download_files(&sync_id(), &[FileState::Failed, FileState::Deleted]).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = body.next_chunk().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    assert_eq!(all, line);
    assert_eq!(asked.await.unwrap(), "GET /sync/run42/files?state=failed,deleted HTTP/1.1");
    let (client, _) = fake_master(200, line).await;
    let mut body = client.download_files(&sync_id(), &[]).await.unwrap();
    let e = print_records(&mut body, write_name).await.unwrap_err();
    assert!(e.render().contains("in the middle of a line"), "{}", e.render());
}

#[tokio::test]
async fn a_refusal_reports_the_problem_of_the_master() {
    let problem =
        br#"{"title": "x", "status": 409, "detail": "not recorded", "code": "no_records"}"#;
    let (client, asked) = fake_master(409, problem).await;
    let e = to_cli_error(client.download_manifest(&sync_id(), false).await.unwrap_err());
    assert!(e.exit == Exit::Error && e.render().contains("not recorded"), "{}", e.render());
    assert_eq!(asked.await.unwrap(), "GET /sync/run42/manifest HTTP/1.1");
}

#[tokio::test]
async fn a_manifest_is_renamed_into_place_when_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    std::fs::write(&path, "old").unwrap();
    let (client, _) = fake_master(200, b"digest  a\ndigest  b\n").await;
    let mut body = client.download_manifest(&sync_id(), false).await.unwrap();
    assert_eq!(write_manifest(&path, &mut body).await.unwrap(), 2);
    assert_eq!(std::fs::read(&path).unwrap(), b"digest  a\ndigest  b\n");
    // A reply that breaks off leaves what was there, and nothing else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let broken = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read_buf(&mut Vec::with_capacity(4096)).await;
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 50\r\n\r\ndigest  c\n").await;
    });
    let client = MasterClient::new(vec![url], ClientOptions::default()).unwrap();
    let mut body = client.download_manifest(&sync_id(), false).await.unwrap();
    assert!(write_manifest(&path, &mut body).await.is_err());
    broken.await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"digest  a\ndigest  b\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_manifest_that_cannot_be_written_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    check_manifest_writable(&dir.path().join("new")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    std::os::unix::fs::symlink("socket", dir.path().join("link")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    check_manifest_writable(&dir.path().join("file")).unwrap();
    std::fs::write(dir.path().join("taken.others"), "of somebody else").unwrap();
    std::fs::write(dir.path().join("new.others"), "# b3sum cannot check this file: …\n").unwrap();
    check_manifest_writable(&dir.path().join("new")).unwrap();
    for bad in ["socket", "link", "none/x", "file/x", ".", "taken"] {
        let e = check_manifest_writable(&dir.path().join(bad)).unwrap_err();
        assert_eq!(e.exit.code(), 2, "{bad}: {}", e.render());
    }
}

#[tokio::test]
async fn files_that_b3sum_refuses_are_listed_in_a_second_file_if_there_are_any() {
    let dir = tempfile::tempdir().unwrap();
    let others = others_path(&dir.path().join("list"));
    assert_eq!(others, dir.path().join("list.others"));
    for (body, files) in [(&b"# b3sum cannot\n\\digest  \\xff\n"[..], 1), (b"", 0)] {
        let (client, asked) = fake_master(200, body).await;
        let mut body = client.download_manifest(&sync_id(), true).await.unwrap();
        assert_eq!(write_others(&others, &mut body).await.unwrap(), files);
        assert_eq!(others.exists(), files > 0);
        assert_eq!(asked.await.unwrap(), "GET /sync/run42/manifest?lines=others HTTP/1.1");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
