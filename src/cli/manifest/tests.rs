use super::*;
use crate::cli::fixtures::fake_master;
use crate::client::ClientOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn sync_id() -> RequestId {
    "run42".parse().unwrap()
}

#[tokio::test]
async fn a_refusal_reports_the_problem_of_the_master() {
    let problem =
        br#"{"title": "x", "status": 409, "detail": "not recorded", "code": "no_records"}"#;
    let (client, request) = fake_master(409, problem).await;
    let e = download(&client, &sync_id(), false).await.err().unwrap();
    assert!(e.exit == Exit::Error && e.render().contains("not recorded"), "{}", e.render());
    assert_eq!(request.await.unwrap(), "GET /sync/run42/manifest HTTP/1.1");
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
    std::fs::write(dir.path().join("taken.others"), "of another program").unwrap();
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
        let (client, request) = fake_master(200, body).await;
        let mut body = client.download_manifest(&sync_id(), true).await.unwrap();
        assert_eq!(write_others(&others, &mut body).await.unwrap(), files);
        assert_eq!(others.exists(), files > 0);
        assert_eq!(request.await.unwrap(), "GET /sync/run42/manifest?lines=others HTTP/1.1");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
