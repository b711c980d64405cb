//! The requests of the guide, word for word: what the routes are tested with, and a running master.

pub(crate) const SUBMIT: &str = r#"curl -X POST http://127.0.0.1:8888/sync \
  -H 'Content-Type: application/json' \
-d '{
        "request_id": "demo-1",
        "source_path": "/data/source",
        "destination_path": "/data/dest",
        "chunk_size_mb": 64,
      }'"#;
pub(crate) const PROGRESS: &str = "curl http://127.0.0.1:8888/sync/demo-1 | jq";
pub(crate) const LIST: &str = "curl http://127.0.0.1:8888/sync | jq";
pub(crate) const DELETE: &str = "curl -X DELETE http://127.0.0.1:8888/sync/demo-1";
pub(crate) const HEARTBEAT: &str = r#"curl -X POST http://127.0.0.1:8888/workers/heartbeat \
  -H 'Content-Type: application/json' \
  -d '{
        "worker_id": "worker-a",
        "status": "READY",
        "storage_paths": ["/data/source", "/scratch"],
        "data_plane_endpoints": [
          {"iface": "ib0", "address": "192.168.100.10"}
        ]
      }'"#;
pub(crate) const POLL: &str = "curl -X POST http://127.0.0.1:8888/workers/worker-a/assignment | jq";
pub(crate) const RESULT: &str = r#"curl -X POST http://127.0.0.1:8888/workers/result \
  -H 'Content-Type: application/json' \
  -d '{
        "request_id": "demo-1",
        "worker_id": "worker-a",
        "success": true,
        "message": "chunk complete"
      }'"#;

/// The words of a command up to a pipe, as a shell splits them.
pub(crate) fn shell_words(command: &str) -> Vec<String> {
    let (mut out, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in command.replace("\\\n", " ").chars() {
        match c {
            '\'' => quoted = !quoted,
            '|' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                out.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            c => word.push(c),
        }
    }
    out.extend((!word.is_empty()).then_some(word));
    out
}
