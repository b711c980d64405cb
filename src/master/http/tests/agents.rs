//! Every route for clients of TLS: without credentials, and with certificates of agents, on objects of their own worker and
//! of another one.

use super::*;
use crate::identity::{
    AgentIdentity, AuthoritySet, CertificateAuthority, PublicKey, SealedAuthority, Sealer,
    SharedAuthorities,
};
use crate::master::Master;
use crate::master::http::api_state::ApiState;
use crate::master::http::bearer::FailureCounter;
use crate::master::http::body_budget::BodyBudget;
use crate::master::http::join_routes::ApiAuthority;
use crate::master::http::principal::ConnectionAddresses;
use crate::master::http::principal::{LoopbackOwner, TlsClient};
use crate::master::http::route_table::{Access, ROUTES};
use crate::master::http::routes::router;
use crate::master::requests::ListTokens;
use crate::wire::join::JoinToken;
use axum::Router;
use axum::body::{Body, to_bytes};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::json;
use std::path::Path;
use tower::ServiceExt;

/// A master, and the API as it is served over TLS on an address that is not loopback.
struct TlsApi {
    router: Router,
    issuer: Arc<CertificateAuthority>,
    authorities: Arc<SharedAuthorities>,
    admin: String,
    shutdown: CancellationToken,
    master: Master,
}

#[derive(Debug)]
struct ApiReply {
    /// The problem code, or `ok`.
    code: String,
    closes: bool,
    body: Value,
}

impl TlsApi {
    async fn start(dir: &Path) -> Self {
        let env = Env { state_dir: dir.to_owned(), ..Env::empty() };
        let mut config = load_master(None, &env).unwrap().config;
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        let (_, config) = watch::channel(config);
        let shutdown = CancellationToken::new();
        let master = Master::start(config.clone(), shutdown.clone()).await.unwrap();
        master.handle.wait_until_leader().await;
        let issuer = Arc::new(CertificateAuthority::load_or_create(dir, Some("site")).unwrap());
        let authorities = SharedAuthorities::new(AuthoritySet::of_issuer(issuer.clone()));
        let sealer = Sealer::for_tests();
        let authority =
            Some(ApiAuthority { authorities: authorities.clone(), operator: None, sealer });
        let limits = Arc::new(HttpLimits { config, authority, ..HttpLimits::default() });
        let router = router(ApiState {
            handle: master.handle.clone(),
            budget: BodyBudget::new(limits.max_total_body_bytes),
            limits,
            stopping: shutdown.clone(),
            failures: Arc::new(FailureCounter::default()),
        });
        let admin = std::fs::read_to_string(dir.join("admin.token")).unwrap().trim().to_owned();
        let api = TlsApi { router, issuer, authorities, admin, shutdown, master };
        // The reply comes after the first token is stored.
        assert!(!api.master.handle.send(ListTokens {}).await.unwrap().tokens.is_empty());
        api
    }

    async fn send(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        token: Option<&str>,
        (method, target): (&str, &str),
        body: &Value,
    ) -> ApiReply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = axum::http::Request::builder().method(method).uri(target);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(Body::from(body)).unwrap();
        let address = |text: &str| Some(text.parse().unwrap());
        request.extensions_mut().insert(ConnectionAddresses {
            local: address("10.0.0.1:8888"),
            client: address("10.0.0.2:40000"),
        });
        request.extensions_mut().insert(LoopbackOwner::default());
        let chain: Vec<_> = certificate.into_iter().cloned().collect();
        let presented = (!chain.is_empty()).then_some(chain.as_slice());
        request
            .extensions_mut()
            .insert(TlsClient::new(presented, Some(&self.authorities.current())));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let code = match status {
            400.. => body["code"].as_str().unwrap().to_owned(),
            _ => "ok".to_owned(),
        };
        ApiReply { code, closes, body }
    }

    async fn as_admin(&self, method: &str, target: &str, body: Value) -> ApiReply {
        self.send(None, Some(&self.admin), (method, target), &body).await
    }

    async fn create_token(&self, worker: &str) -> JoinToken {
        let request = json!({"worker_id": worker, "storage_paths": ["/data"]});
        let created = self.as_admin("POST", "/admin/join-tokens", request).await;
        created.body["secret"].as_str().unwrap().parse().unwrap()
    }

    /// The first certificate of an agent, which has its state in `dir`.
    async fn join(&self, dir: &Path, worker: &str, token: &JoinToken) -> ApiReply {
        let identity = AgentIdentity::for_join(dir, &worker.parse().unwrap(), token).unwrap();
        let signing_request = identity.signing_request().unwrap();
        let request =
            json!({"token": token, "worker_id": worker, "signing_request": signing_request});
        self.send(None, None, ("POST", "/join"), &request).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.master.wait_until_stopped().await.unwrap();
    }
}

fn certificate(reply: &ApiReply) -> CertificateDer<'static> {
    let pem = reply.body["certificate"].as_str().unwrap_or_else(|| panic!("{reply:?}"));
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A body with which the route gets as far as the scheduler, for an object of `worker`.
fn body_of(path: &str, worker: &str) -> Value {
    let sample = |name: &str| -> Value {
        let file = format!("{}/tests/formats/http/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    match path {
        "/workers/heartbeat" => json!({"worker_id": worker, "status": "IDLE"}),
        "/workers/result" => {
            let mut result = sample("task_result");
            result["worker_id"] = worker.into();
            result
        }
        "/workers/{id}/assignments/{assignment}/page" => sample("scan_page"),
        _ => Value::Null,
    }
}

#[tokio::test]
async fn over_tls_each_client_reaches_its_routes_and_objects_only() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = TlsApi::start(dir.path()).await;
    let mut certificates = Vec::new();
    for worker in ["own", "revoked", "former"] {
        let token = api.create_token(worker).await;
        certificates.push(certificate(&api.join(state.path(), worker, &token).await));
    }
    let [own, revoked, former] = &certificates[..] else { panic!() };
    assert_eq!(api.as_admin("POST", "/workers/revoked/revoke", Value::Null).await.code, "ok");
    let again = api.create_token("former").await;
    assert_eq!(api.join(&state.path().join("new"), "former", &again).await.code, "ok");
    let key = PublicKey::of_certificate(own).unwrap();
    let issue = |from_now: i64| {
        let at = UnixTime::now().as_secs().saturating_add_signed(from_now);
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        let worker = "own".parse().unwrap();
        let pem = api.issuer.issue_agent(&worker, &key, Duration::from_secs(60), at).unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    };
    let (expired, due) = (issue(-61), issue(-50));
    for (method, path, access, _) in ROUTES {
        for id in ["own", "other"] {
            let target = path.replace("{assignment}", &"0".repeat(32));
            let target = match path.starts_with("/admin/") {
                true => target.replace("{id}", "000000000000"),
                false => target.replace("{id}", id),
            };
            let body = body_of(path, id);
            let is_foreign = id == "other" && *access == Access::Agents;
            let by_agent = match access {
                Access::Agents if is_foreign => "worker_mismatch",
                Access::Operators(_) => "role_missing",
                Access::Everyone | Access::Identified | Access::Agents | Access::Certificates => {
                    "served"
                }
            };
            for (client, presented, expected) in [
                ("nobody", None, "no_credentials"),
                ("agent", Some(own), by_agent),
                ("agent, due", Some(&due), by_agent),
                ("revoked", Some(revoked), "worker_revoked"),
                ("former", Some(former), "certificate_unknown"),
                ("expired", Some(&expired), "expired"),
            ] {
                let expected = if *access == Access::Everyone { "served" } else { expected };
                let reply = api.send(presented, None, (method, &target), &body).await;
                let refusals = [
                    "no_credentials",
                    "role_missing",
                    "worker_mismatch",
                    "worker_revoked",
                    "certificate_unknown",
                    "expired",
                    "method_not_allowed",
                    "invalid_fields",
                ];
                // The body of a join is checked first.
                let is_join = *path == "/join";
                let is_refused = refusals.contains(&reply.code.as_str()) && !is_join;
                let found = if is_refused { reply.code.as_str() } else { "served" };
                assert_eq!(found, expected, "{method} {target} by {client}: {reply:?}");
                if client == "agent, due" && *access != Access::Everyone {
                    assert!(reply.closes, "another connection presents the next certificate");
                } else if client == "agent" {
                    assert!(!reply.closes);
                }
            }
        }
    }
    api.stop().await;
}

#[tokio::test]
async fn a_certificate_is_issued_for_a_token_and_renewed_for_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = TlsApi::start(dir.path()).await;
    let token = api.create_token("a").await;
    assert_eq!(token.authority, api.issuer.hash().into());
    let bad = json!({"worker_id": "a", "storage_paths": []});
    let bad = api.as_admin("POST", "/admin/join-tokens", bad).await;
    assert_eq!(bad.code, "invalid_fields");
    let request = json!({"token": token, "worker_id": "a", "signing_request": "text"});
    let invalid = api.send(None, None, ("POST", "/join"), &request).await;
    assert_eq!(invalid.body["errors"][0]["pointer"], "/signing_request");

    assert_eq!(api.join(state.path(), "a", &token).await.code, "ok");
    // Killed before the reply was stored: the next start has the same key.
    let first = api.join(state.path(), "a", &token).await;
    let identity = AgentIdentity::for_join(state.path(), &"a".parse().unwrap(), &token).unwrap();
    let issued = serde_json::from_value(first.body.clone()).unwrap();
    let times = identity.install(&issued, None).unwrap();
    assert_eq!(issued.expires_at.as_second(), times.expiry.as_secs().cast_signed());
    let lifetime = times.expiry.as_secs() - UnixTime::now().as_secs();
    assert!(lifetime.abs_diff(86_400) < 600, "{lifetime}");
    assert_eq!((times.expiry.as_secs() - times.renewal.as_secs()), 28_800);
    // After that another join makes another key; then an agent that has only the token.
    assert_eq!(api.join(state.path(), "a", &token).await.code, "join_token_used");
    let stolen = api.join(&state.path().join("b"), "a", &token).await;
    assert_eq!(stolen.code, "join_token_used");
    let own = certificate(&first);
    let renewed = api.send(Some(&own), None, ("POST", "/renew"), &Value::Null).await;
    assert_ne!(renewed.body["certificate"], first.body["certificate"]);
    identity.install(&serde_json::from_value(renewed.body).unwrap(), None).unwrap();
    // The certificate of another agent is refused.
    let token = api.create_token("b").await;
    let other = api.join(&state.path().join("c"), "b", &token).await;
    let error = identity.install(&serde_json::from_value(other.body).unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("not one of worker `a`"), "{error}");
    let token = api.create_token("a").await;
    let other = api.join(&state.path().join("d"), "a", &token).await;
    let error = identity.install(&serde_json::from_value(other.body).unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
    // An operator has nothing to renew.
    let renewal = api.send(None, Some(&api.admin), ("POST", "/renew"), &Value::Null).await;
    assert_eq!(renewal.code, "role_missing");
    api.stop().await;
}

#[tokio::test]
async fn refused_join_tokens_are_counted_as_other_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = TlsApi::start(dir.path()).await;
    let mut token = api.create_token("a").await;
    token.secret = "0".repeat(64);
    for attempt in 1..=6 {
        let expected = if attempt <= 5 { "bad_credentials" } else { "too_many_failures" };
        assert_eq!(api.join(state.path(), "a", &token).await.code, expected);
    }
    api.stop().await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_authority_of_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let api = TlsApi::start(dir.path()).await;
    let token = api.create_token("a").await;
    let first = api.join(state.path(), "a", &token).await;
    let own = certificate(&first);
    let sealer = Sealer::for_tests();
    let current = api.authorities.current();
    let next =
        SealedAuthority::replacing(current.issuer(), &sealer, Duration::from_secs(86_400)).unwrap();
    let adopt = |stored: &SealedAuthority| {
        let issuer = Arc::new(stored.open(&sealer).unwrap());
        api.authorities.replace(AuthoritySet::new(issuer, stored).unwrap());
    };
    adopt(&next);
    let renew = ("POST", "/renew");
    let renewed = api.send(Some(&own), None, renew, &Value::Null).await;
    assert!(renewed.closes, "another connection presents the next certificate: {renewed:?}");
    assert_eq!(renewed.body["previous_authority"], first.body["authority"]);
    let fresh = certificate(&renewed);
    let kept = TlsClient::new(Some(&[own]), Some(&api.authorities.current()));
    adopt(&next.finished(jiff::Timestamp::now()));
    let current = api.authorities.current();
    let refused = kept.certificate.as_ref().unwrap().check_authority(Some(&current)).unwrap_err();
    // An agent with the next certificate repeats the request with it.
    assert_eq!((refused.code.as_str(), refused.status), ("authority_replaced", 503));
    assert!(kept.is_due_for_renewal(Some(&current)));
    let again = api.send(Some(&fresh), None, renew, &Value::Null).await;
    assert_eq!((again.code.as_str(), again.closes), ("ok", false));
    assert_eq!(again.body.get("previous_authority"), None);
    // A join token names the authority that is presented then.
    assert_eq!(api.create_token("b").await.authority, next.hash);
    api.stop().await;
}
