//! The addresses of the API: a master behind a proxy, redirects, and names in paths.

use super::*;
use crate::master::leadership::{LeadershipStatus, MasterIdentity};
use crate::wire::ids::worker_routes;
use crate::wire::leader::Leader;
use serde_json::json;
use url::Url;

const GOOD: &str = r#"{"source_path": "/a", "destination_path": "/b"}"#;

#[tokio::test]
async fn the_url_of_a_new_sync_keeps_the_base_path_of_the_api() {
    let secret = HttpLimits { path_secret: Some("s3cret".into()), ..HttpLimits::default() };
    let (plain, private) = (start_server().await, start_server_with(secret).await);
    for (served, root) in [(&plain, ""), (&plain, "/v1"), (&private, "/s3cret")] {
        for (path, body, id) in [
            ("/sync", GOOD, "made"),
            ("/sync/old/retry", "", "again"),
            ("/sync/a:b/retry", "", "again"),
        ] {
            let got = served.post(&format!("{root}{path}"), body).await;
            assert_eq!(got.status, 202, "{root}{path}");
            let location = got.header("location").unwrap();
            assert_eq!(got.json()["status_url"], location);
            // The URL for the client, also if a proxy removes a prefix.
            for base in ["http://m:8888", "http://proxy/longhaul", "https://proxy/a/b"] {
                let request_url = Url::parse(&format!("{base}{root}{path}")).unwrap();
                let found = request_url.join(location).unwrap();
                assert_eq!(found.as_str(), format!("{base}{root}/sync/{id}"), "{location}");
            }
            assert_eq!(served.get(&format!("{root}/sync/{id}")).await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_master_accepts_its_advertised_host_name() {
    let advertise_url = Some("http://ctl.example/longhaul".to_owned());
    let proxied = start_server_with(HttpLimits { advertise_url, ..HttpLimits::default() }).await;
    let plain = start_server().await;
    let raw =
        |host: &str| format!("GET /sync HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (served, host, status) in [
        (&proxied, "ctl.example", 200),
        (&proxied, "ctl.example:80", 200),
        (&proxied, "127.0.0.1:8888", 200),
        (&proxied, "evil.example", 421),
        (&plain, "ctl.example", 421),
    ] {
        let got = TestResponse::parse(&served.send_raw(raw(host).as_bytes()).await);
        assert_eq!(got.status, status, "{host}");
        if status == 421 {
            assert!(got.json()["hint"].as_str().unwrap().contains("allowed_hosts"));
        }
    }
}

#[tokio::test]
async fn a_worker_and_the_syncs_of_its_tasks_can_be_read() {
    let mut served = start_server().await;
    for root in ["", "/v1"] {
        let got = served.get(&format!("{root}/workers/up")).await;
        assert_eq!((got.status, &got.json()["worker_id"]), (200, &json!("up")));
        assert_eq!(served.events.recv().await, Some(Event::GetWorker("up".parse().unwrap())));
        let got = served.get(&format!("{root}/workers/up/requests")).await;
        assert_eq!((got.status, got.json()), (200, json!(["demo-1", "demo-2"])));
        assert_eq!(
            served.events.recv().await,
            Some(Event::ListWorkerRequests("up".parse().unwrap()))
        );
    }
    for target in ["/workers/gone", "/workers/gone/requests"] {
        let got = served.get(target).await;
        assert_eq!(
            (got.status, got.problem_code().as_str()),
            (404, "worker_not_found"),
            "{target}"
        );
    }
}

#[tokio::test]
async fn a_worker_id_that_equals_a_route_is_refused() {
    let mut served = start_server().await;
    for word in worker_routes::RESERVED_IDS {
        // The path is a route, so a worker with that id could not be read.
        assert_eq!(
            served.get(&format!("/workers/{word}")).await.problem_code(),
            "method_not_allowed"
        );
        let heartbeat = json!({"worker_id": word, "status": "READY"}).to_string();
        let got = served.post("/workers/heartbeat", heartbeat).await;
        assert_eq!((got.status, &got.json()["errors"][0]["pointer"]), (422, &json!("/worker_id")));
        assert!(got.json()["detail"].as_str().unwrap().contains(&format!("/workers/{word}")));
    }
    assert!(served.has_no_event());
    // All other paths below /workers start with an id.
    let routes = include_str!("../routes.rs");
    let fixed: Vec<&str> = routes.split("\"/workers/").skip(1).collect();
    assert!(fixed.len() > 5);
    for rest in fixed {
        let word = rest.split(['"', '/']).next().unwrap();
        assert!(["{id}", "{HEARTBEAT}", "{RESULT}"].contains(&word), "add {word} to worker_routes");
    }
}

#[tokio::test]
async fn every_master_answers_the_health_routes_itself() {
    let served = start_server().await;
    served.health.send(Err("the store is unavailable".into())).unwrap();
    for target in ["/livez", "/v1/livez", "/healthz"] {
        let got = served.get(target).await;
        assert_eq!((got.status, got.json()), (200, json!({"status": "ok"})), "{target}");
    }
}

#[tokio::test]
async fn a_private_master_returns_404_without_its_secret() {
    let limits = HttpLimits { path_secret: Some("s3cret".into()), ..HttpLimits::default() };
    let mut served = start_server_with(limits).await;
    for root in ["", "/v1", "/s3cre", "/s3crets", "/S3CRET", "/s3cret/s3cret"] {
        for path in ["/sync", "/workers", "/healthz", "/livez", "/readyz", "/version"] {
            let got = served.get(&format!("{root}{path}")).await;
            assert_eq!(
                (got.status, got.problem_code().as_str()),
                (404, "route_not_found"),
                "{root}{path}"
            );
        }
        assert_eq!(served.post(&format!("{root}/sync"), GOOD).await.status, 404, "{root}");
    }
    assert!(served.has_no_event());
    assert_eq!(served.get("/s3cret/v1/sync").await.status, 200);
}

/// A server of a master that follows a leader with this URL, and its address.
async fn start_follower(url: Option<&str>) -> (SocketAddr, CancellationToken) {
    let leader = Leader { name: "lead".into(), url: url.map(str::to_owned), epoch: 7, since: None };
    let status = watch::Sender::new(LeadershipStatus::Follower(leader)).subscribe();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let handle = MasterHandle::new(status, MasterIdentity::default(), Spool::temporary());
    let listeners = vec![ApiListener { listener, tls: None }];
    tokio::spawn(serve(listeners, handle, HttpLimits::default(), shutdown.clone()));
    (addr, shutdown)
}

async fn send_to(addr: SocketAddr, method: &str, target: &str) -> TestResponse {
    let raw = format!(
        "{method} {target} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(raw.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    TestResponse::parse(&response)
}

#[tokio::test]
async fn a_follower_redirects_everything_but_the_health_routes() {
    let (addr, _stop) = start_follower(Some("http://lead:1/below")).await;
    for (method, target) in [
        ("GET", "/sync?state=FAILED&limit=2"),
        ("POST", "/sync"),
        ("POST", "/workers/w/assignment?wait=2s&poll_id=a%20b"),
        ("GET", "/workers/w/requests"),
        ("DELETE", "/v1/workers/w"),
        ("POST", "/admin/reconcile"),
        ("GET", "/versions"),
    ] {
        let got = with_deadline(send_to(addr, method, target)).await;
        assert_eq!((got.status, got.problem_code().as_str()), (307, "not_leader"), "{target}");
        let location = format!("http://lead:1/below{target}");
        assert_eq!(got.header("location"), Some(location.as_str()));
    }
    let (unnamed, _stop) = start_follower(None).await;
    for root in ["", "/v1"] {
        for path in ["/healthz", "/livez", "/version"] {
            for addr in [addr, unnamed] {
                assert_eq!(
                    with_deadline(send_to(addr, "GET", &format!("{root}{path}"))).await.status,
                    200
                );
            }
        }
        assert_eq!(
            with_deadline(send_to(addr, "GET", &format!("{root}/readyz"))).await.status,
            200
        );
        assert_eq!(
            with_deadline(send_to(unnamed, "GET", &format!("{root}/readyz"))).await.status,
            503
        );
    }
    let got = with_deadline(send_to(unnamed, "GET", "/sync")).await;
    assert_eq!((got.status, got.header("location")), (503, None));
    assert!(got.header("retry-after").is_some());
}

#[tokio::test]
async fn endpoints_outside_the_allowed_networks_are_refused() {
    let mut config = load_master(None, &Env::empty()).unwrap().config;
    config.allowed_networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let config = watch::channel(config).1;
    let served = start_server_with(HttpLimits { config, ..HttpLimits::default() }).await;
    for (endpoints, status) in [
        (json!(["10.1.2.3", "[fd00::1]:9000", "::ffff:10.0.0.1"]), 200),
        (json!([]), 200),
        (json!(["10.1.2.3", "192.0.2.1"]), 422),
        (json!(["127.0.0.1:6379"]), 422),
    ] {
        let beat = json!({"worker_id": "w", "status": "READY", "data_plane_endpoints": endpoints});
        let got = served.post("/workers/heartbeat", beat.to_string()).await;
        assert_eq!(got.status, status, "{beat}");
        if status == 422 {
            let errors = got.json()["errors"].to_string();
            assert!(errors.contains("allowed_networks"), "{errors}");
        }
    }
}
