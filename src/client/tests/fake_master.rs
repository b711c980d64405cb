//! Masters over plain TCP with scripted replies, so that no server library changes what is sent.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How a fake master handles one request.
pub(super) enum ScriptedReply {
    Reply(u16, &'static str, String),
    /// Status, a header line, body.
    WithChecksum(u16, String, String),
    Redirect(String),
    CloseConnection,
}

/// A master that replies to the n-th request (over all connections) with `script(n, request)`.
pub(super) struct FakeMaster {
    pub(super) url: String,
    received: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeMaster {
    pub(super) async fn start(
        script: impl Fn(usize, &str) -> ScriptedReply + Send + Sync + 'static,
    ) -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let script = Arc::new(script);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&log), Arc::clone(&script)));
            }
        });
        FakeMaster { url, received, task }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.received.lock().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: Arc<Mutex<Vec<String>>>,
    script: Arc<impl Fn(usize, &str) -> ScriptedReply>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let n = {
            let mut log = log.lock();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = match script(n, &request) {
            ScriptedReply::CloseConnection => return,
            ScriptedReply::Redirect(to) => {
                format!(
                    "HTTP/1.1 307 Temporary Redirect\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
                )
            }
            ScriptedReply::Reply(status, extra, body) => http_reply(status, extra, &body),
            ScriptedReply::WithChecksum(status, extra, body) => http_reply(status, &extra, &body),
        };
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn http_reply(status: u16, extra: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{extra}content-length: {}\r\n\r\n{body}", body.len())
}

/// Head and body as text; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut raw = Vec::new();
    loop {
        if stream.read_buf(&mut raw).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&raw).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_ascii_lowercase()
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ").map(|v| v.parse::<usize>().unwrap()))
            .unwrap_or(0);
        if body.len() >= length {
            return Some(text);
        }
    }
}

pub(super) fn client(urls: &[&str]) -> MasterClient {
    let urls = urls.iter().map(|u| (*u).to_owned()).collect();
    MasterClient::new(
        urls,
        ClientOptions { request_timeout: Duration::from_secs(10), ..ClientOptions::default() },
    )
    .unwrap()
}

/// A URL where nothing listens.
pub(super) async fn unused_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A listener that accepts no connections: only the kernel does, as for a stopped process.
pub(super) async fn stopped_master() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

pub(super) fn reply_empty_worker_list(_: usize, _: &str) -> ScriptedReply {
    ScriptedReply::Reply(200, "", r#"{ "active":[], "inactive":[]}"#.to_owned())
}

pub(super) fn reply_no_assignment(_: usize, _: &str) -> ScriptedReply {
    ScriptedReply::Reply(200, "", "null".into())
}

/// The header line with the checksum of a body.
pub(super) fn checksum_header(body: &str) -> String {
    format!("longhaul-checksum: {}\r\n", crate::util::checksum::header_value(body.as_bytes()))
}

pub(super) fn sync_id(text: &str) -> RequestId {
    text.parse().unwrap()
}

pub(super) fn sync_document(id: &str) -> String {
    let mut fields = vec![
        format!(r#""request_id":"{id}","state":"FAILED","phase":"DONE","detail":{{}}"#),
        r#""source_path":"/a","destination_path":"/b""#.to_owned(),
    ];
    for stamp in ["submitted_at", "updated_at"] {
        fields.push(format!(r#""{stamp}":"2026-01-01T00:00:00Z""#));
    }
    for number in [
        "transferred_bytes",
        "total_bytes",
        "files_total",
        "files_done",
        "files_skipped",
        "files_failed",
        "dirs_total",
        "dirs_done",
        "dirs_failed",
        "bytes_skipped",
        "sent_bytes",
        "kept_bytes",
        "cloned_bytes",
        "unverified",
        "retries",
        "verified_files",
        "repaired_files",
    ] {
        fields.push(format!(r#""{number}":0"#));
    }
    fields.push(
        r#""started_at":null,"ended_at":null,"scan_done":true,"errors":[],"error_counts":{}"#
            .to_owned(),
    );
    format!("{{{}}}", fields.join(","))
}
