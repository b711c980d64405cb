//! Every route with tokens of each role, for syncs within and outside of their scopes, at a real master.

use super::*;
use crate::master::Master;
use crate::master::http::route_table::{Access, ROUTES};
use crate::wire::token::Role;
use serde_json::json;
use std::path::Path;

struct RealMaster {
    addr: SocketAddr,
    admin: String,
    shutdown: CancellationToken,
    master: Master,
}

impl RealMaster {
    async fn start(dir: &Path) -> Self {
        let env = Env { state_dir: dir.to_owned(), ..Env::empty() };
        let mut config = load_master(None, &env).unwrap().config;
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        let shutdown = CancellationToken::new();
        let master = Master::start(watch::channel(config).1, shutdown.clone()).await.unwrap();
        master.handle.wait_until_leader().await;
        let addr = master.url().strip_prefix("http://").unwrap().parse().unwrap();
        let admin = std::fs::read_to_string(dir.join("admin.token")).unwrap().trim().to_owned();
        let started = RealMaster { addr, admin, shutdown, master };
        // The user of the master needs no token. The reply comes after the first token is stored.
        let list = started.send_raw("", "GET", "/admin/tokens", "").await.json();
        assert!(!list["tokens"].as_array().unwrap().is_empty());
        started
    }

    async fn send(&self, token: &str, method: &str, target: &str, body: &Value) -> TestResponse {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send_raw(&format!("Authorization: Bearer {token}\r\n"), method, target, &body).await
    }

    async fn send_raw(&self, header: &str, method: &str, target: &str, body: &str) -> TestResponse {
        let raw = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{header}\
             Content-Length: {}\r\n\r\n{body}",
            self.addr,
            body.len()
        );
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        TestResponse::parse(&response)
    }

    /// The problem code, or `ok`.
    async fn code(&self, token: &str, method: &str, target: &str, body: Value) -> String {
        let response = self.send(token, method, target, &body).await;
        if response.status < 400 { "ok".to_owned() } else { response.problem_code() }
    }

    async fn create(&self, request: Value) -> (String, String) {
        let response = self.send(&self.admin, "POST", "/admin/tokens", &request).await;
        assert_eq!(response.status, 201, "{response:?}");
        let created = response.json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&created["secret"]), text(&created["token"]["id"]))
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.master.wait_until_stopped().await.unwrap();
    }
}

fn scoped(role: &str) -> Value {
    json!({"role": role, "scopes": [{"from": "/a", "to": "/b"}]})
}

fn submission(id: &str, source: &str, destination: &str) -> Value {
    json!({"request_id": id, "source_path": source, "destination_path": destination})
}

#[tokio::test]
async fn each_role_reaches_its_routes_and_the_syncs_of_its_scopes() {
    let dir = tempfile::tempdir().unwrap();
    let master = RealMaster::start(dir.path()).await;
    let (viewer, _) = master.create(scoped("viewer")).await;
    let (operator, _) = master.create(scoped("operator")).await;
    let (admin, _) = master.create(json!({"role": "admin", "label": "second"})).await;
    let bodies = |target: &str| match target.rsplit('/').next().unwrap() {
        "reassign" => json!({"worker_id": "w"}),
        "retry" => json!({}),
        _ => Value::Null,
    };
    let mut number = 0;
    for (method, path, access, _) in ROUTES {
        for (role, token) in
            [(Role::Viewer, &viewer), (Role::Operator, &operator), (Role::Admin, &admin)]
        {
            for (is_own, source, destination) in
                [(true, "/a/x", "/b/x"), (false, "/a/x", "/c"), (false, "/d", "/b/x")]
            {
                number += 1;
                let id = format!("sync-{number}");
                let target = path.replace("{assignment}", &"0".repeat(32));
                let is_sync = target.starts_with("/sync/");
                if is_sync {
                    let body = submission(&id, source, destination);
                    assert_eq!(master.code(&admin, "POST", "/sync", body).await, "ok");
                }
                let target = if path.starts_with("/admin/") {
                    target.replace("{id}", "000000000000")
                } else {
                    target.replace("{id}", &id)
                };
                let body = if (*method, *path) == ("POST", "/sync") {
                    submission(&id, source, destination)
                } else if *method == "PATCH" {
                    json!({"bwlimit": 1_000_000})
                } else {
                    bodies(&target)
                };
                let code = master.code(token, method, &target, body).await;
                let what = format!("{method} {path} as {role:?}, own: {is_own}: {code}");
                let is_allowed = match access {
                    Access::Everyone | Access::Identified => true,
                    Access::Agents | Access::Certificates => false,
                    Access::Operators(needed) => *needed <= role,
                };
                if !is_allowed {
                    assert_eq!(code, "role_missing", "{what}");
                } else if role != Role::Admin && !is_own && is_sync {
                    assert_eq!(code, "sync_not_found", "{what}");
                } else if role != Role::Admin && !is_own && (*method, *path) == ("POST", "/sync") {
                    assert_eq!(code, "path_not_allowed", "{what}");
                } else {
                    let refusals = [
                        "role_missing",
                        "path_not_allowed",
                        "sync_not_found",
                        "method_not_allowed",
                        "bad_credentials",
                    ];
                    assert!(!refusals.contains(&code.as_str()), "{what}");
                }
            }
        }
    }
    master.stop().await;
}

#[tokio::test]
async fn tokens_survive_a_restart_and_end_with_their_revocation_or_expiry() {
    let dir = tempfile::tempdir().unwrap();
    let master = RealMaster::start(dir.path()).await;
    let (kept, kept_id) = master.create(scoped("viewer")).await;
    let (revoked, revoked_id) = master.create(scoped("viewer")).await;
    let status = "/auth/status";
    assert_eq!(master.code(&revoked, "GET", status, Value::Null).await, "ok");
    let target = format!("/admin/tokens/{revoked_id}");
    assert_eq!(master.code(&master.admin, "DELETE", &target, Value::Null).await, "ok");
    assert_eq!(
        master.code(&revoked, "GET", status, Value::Null).await,
        "revoked",
        "at the next request"
    );
    let mut expiring = scoped("viewer");
    expiring["ttl_seconds"] = 1.into();
    let (expiring, _) = master.create(expiring).await;
    let expired = async {
        while master.code(&expiring, "GET", status, Value::Null).await == "ok" {}
        // Each of its refusals counts.
    };
    with_deadline(expired).await;
    let admin = master.admin.clone();
    master.stop().await;

    let master = RealMaster::start(dir.path()).await;
    assert_eq!(master.admin, admin, "it is made once");
    let got = master.send(&kept, "GET", status, &Value::Null).await.json();
    assert_eq!(
        (&got["principal"], &got["role"]),
        (&json!(format!("token {kept_id}")), &json!("viewer"))
    );
    assert_eq!(got["token"]["scopes"], json!([{"from": "/a", "to": "/b"}]));
    assert_eq!(master.code(&revoked, "GET", status, Value::Null).await, "revoked");
    assert_eq!(master.code(&expiring, "GET", status, Value::Null).await, "expired");
    let list = master.send(&admin, "GET", "/admin/tokens", &Value::Null).await;
    let text = String::from_utf8(list.body.clone()).unwrap();
    assert_eq!(list.json()["tokens"].as_array().unwrap().len(), 4);
    for secret in [&kept, &revoked, &expiring, &admin] {
        assert!(!text.contains(&secret[17..]), "no reply repeats a secret");
        for file in walkdir::WalkDir::new(dir.path()) {
            let file = file.unwrap();
            if file.file_type().is_file() && file.file_name() != "admin.token" {
                let content = std::fs::read(file.path()).unwrap();
                let found = content.windows(64).any(|part| part == &secret.as_bytes()[17..]);
                assert!(!found, "a secret is in {}", file.path().display());
            }
        }
    }
    // Guesses: the secret of another token, then no token at all.
    let guess = format!("lh1_{kept_id}_{}", &revoked[17..]);
    let mut codes = Vec::new();
    for token in [guess.as_str(), "x", "lh1_0_0", &guess, &guess] {
        codes.push(master.code(token, "GET", "/sync", Value::Null).await);
    }
    assert_eq!(
        codes.last().unwrap(),
        "too_many_failures",
        "with the two above there are more than five: {codes:?}"
    );
    assert_eq!(codes[..3], ["bad_credentials"; 3]);
    assert_eq!(
        master.code(&kept, "GET", "/sync", Value::Null).await,
        "ok",
        "a valid token is not shut out"
    );
    master.stop().await;
}

#[tokio::test]
async fn a_token_request_that_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = RealMaster::start(dir.path()).await;
    let scopes = json!([{"from": "/a", "to": "/b"}]);
    for (request, pointer) in [
        (json!({"role": "root"}), "/role"),
        (json!({"role": "viewer"}), "/scopes"),
        (json!({"role": "operator", "scopes": []}), "/scopes"),
        (json!({"role": "admin", "scopes": scopes}), "/scopes"),
        (json!({"role": "viewer", "scopes": scopes, "may": ["delete"]}), "/may"),
        (json!({"role": "operator", "scopes": scopes, "may": ["all"]}), "/may/0"),
        (json!({"role": "operator", "scopes": [{"from": "a", "to": "/b"}]}), "/scopes/0/from"),
        (json!({"role": "operator", "scopes": scopes, "run_as": {"uid": 1000}}), "/run_as"),
        (json!({"role": "operator", "scopes": scopes, "run_as": {"uid": 0, "gid": 0}}), "/run_as"),
        (json!({"role": "viewer", "scopes": scopes, "run_as": {"uid": 9, "gid": 9}}), "/run_as"),
        (json!({"role": "admin", "run_as": {"uid": 9, "gid": 9}}), "/run_as"),
        (json!({"role": "operator", "scopes": scopes, "ttl_seconds": 0}), "/ttl_seconds"),
    ] {
        let response = master.send(&master.admin, "POST", "/admin/tokens", &request).await;
        assert_eq!(response.status, 422, "{request}");
        assert_eq!(response.json()["errors"][0]["pointer"], pointer, "{request}");
    }
    master.stop().await;
}
