//! Every route with every kind of client.

use super::*;
use crate::master::http::principal::ConnectionAddresses;
use crate::master::http::principal::{LoopbackOwner, Principal, identify};
use crate::master::http::route_table::{Access, ROUTES};
use crate::master::http::routes::routes;
use axum::http::HeaderMap;
use rustix::process::{Uid, geteuid};
use std::collections::BTreeSet;
use std::thread;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// The user of agents and another one, none of them the user of the tests.
const AGENT_UID: u32 = 65_533;
const OTHER_UID: u32 = 65_534;

fn limits() -> HttpLimits {
    let mut config = load_master(None, &Env::empty()).unwrap().config;
    config.local_agent_uids = vec![AGENT_UID];
    HttpLimits { config: watch::channel(config).1, ..HttpLimits::default() }
}

/// A URL of a route.
fn target(path: &str) -> String {
    path.replace("{id}", "demo").replace("{assignment}", &"0".repeat(32))
}

fn request(addr: SocketAddr, method: &str, target: &str, headers: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
    )
}

impl TestServer {
    /// Sends `raw` from a socket of the user `uid`: the thread that makes it has that user.
    async fn send_as(&self, uid: u32, raw: &str) -> TestResponse {
        let addr = self.addr;
        let connect = move || {
            rustix::thread::set_thread_uid(Uid::from_raw(uid)).unwrap();
            std::net::TcpStream::connect(addr).unwrap()
        };
        let stream = thread::spawn(connect).join().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(stream).unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        TestResponse::parse(&response)
    }
}

#[tokio::test]
async fn every_route_of_the_router_has_a_row_and_every_row_a_route() {
    let secret = Some("secret".to_owned());
    // A private master does not ask the table.
    let served = start_server_with(HttpLimits { path_secret: secret, ..limits() }).await;
    let rows: BTreeSet<(&str, &str)> =
        ROUTES.iter().map(|(method, path, ..)| (*method, *path)).collect();
    assert_eq!(rows.len(), ROUTES.len(), "a row stands twice");
    let mut found = BTreeSet::new();
    let paths: BTreeSet<String> = routes().into_iter().map(|(path, _)| path).collect();
    for path in &paths {
        for method in METHODS {
            let raw = request(served.addr, method, &format!("/secret{}", target(path)), "");
            let response = TestResponse::parse(&served.send_raw(raw.as_bytes()).await);
            assert_ne!(response.status, 401, "{method} {path}");
            if response.status != 405 {
                found.insert((method, path.as_str()));
            }
        }
    }
    assert_eq!(found, rows, "the routes of the router and the rows of the table differ");
}

#[tokio::test]
async fn each_kind_of_client_reaches_its_routes_only() {
    let served = start_server_with(limits()).await;
    let status = |response: TestResponse| match response.status {
        401 | 403 => response.problem_code(),
        405 => panic!("a row without a handler"),
        _ => "served".to_owned(),
    };
    for prefix in ["", "/v1"] {
        for (method, path, access, _) in ROUTES {
            let target = format!("{prefix}{}", target(path));
            let what = format!("{method} {target}");
            let plain = request(served.addr, method, &target, "");
            let own = TestResponse::parse(&served.send_raw(plain.as_bytes()).await);
            assert_eq!(status(own), "served", "{what}");
            let is_open = *access == Access::Everyone;
            for header in [
                "X-Forwarded-For: 10.0.0.1",
                "x-forwarded-proto: https",
                "Forwarded: for=_x",
                "Via: 1.1 p",
            ] {
                let raw = request(served.addr, method, &target, &format!("{header}\r\n"));
                let forwarded = TestResponse::parse(&served.send_raw(raw.as_bytes()).await);
                let expected = if is_open { "served" } else { "no_credentials" };
                assert_eq!(status(forwarded), expected, "{what} {header}");
            }
            // Only root can connect as another user.
            if geteuid().is_root() {
                let expected = if is_open { "served" } else { "local_user" };
                let other = served.send_as(OTHER_UID, &plain).await;
                if !is_open {
                    assert_eq!(other.header("www-authenticate"), Some("Bearer"), "{what}");
                }
                assert_eq!(status(other), expected, "{what}");
                let expected =
                    if matches!(access, Access::Operators(_)) { "role_missing" } else { "served" };
                assert_eq!(status(served.send_as(AGENT_UID, &plain).await), expected, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_refused_request_does_not_reach_the_actor() {
    let mut served = start_server_with(limits()).await;
    let raw = request(served.addr, "POST", "/sync/demo/cancel", "Via: 1.1 proxy\r\n");
    let response = TestResponse::parse(&served.send_raw(raw.as_bytes()).await);
    assert_eq!((response.status, response.problem_code().as_str()), (401, "no_credentials"));
    assert!(served.has_no_event());
    if geteuid().is_root() {
        let raw = request(served.addr, "POST", "/sync/demo/cancel", "");
        let response = served.send_as(OTHER_UID, &raw).await;
        let problem: Problem = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(problem.code, "local_user");
        assert!(problem.detail.contains("uid 65534"), "{problem:?}");
        assert!(problem.hint.unwrap().contains("sudo ctl"));
        assert!(served.has_no_event());
    }
}

#[tokio::test]
async fn the_owner_of_a_connection_is_found_once_and_none_of_a_closed_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let addresses = ConnectionAddresses {
        local: Some(server.local_addr().unwrap()),
        client: Some(server.peer_addr().unwrap()),
    };
    let (owner, late) = (LoopbackOwner::default(), LoopbackOwner::default());
    let headers = HeaderMap::new();
    let me = Principal::LocalUser { uid: geteuid().as_raw() };
    assert_eq!(identify(addresses, &owner, false, &headers).await.unwrap(), me);
    drop(client);
    // The same connection: not asked again.
    assert_eq!(identify(addresses, &owner, false, &headers).await.unwrap(), me);
    let problem = identify(addresses, &late, false, &headers).await.unwrap_err();
    assert!(problem.is(ProblemCode::LocalUser), "{problem:?}");
    // Other addresses have listeners with rules of their own.
    let remote = ConnectionAddresses { local: Some("10.0.0.1:8888".parse().unwrap()), ..addresses };
    assert_eq!(identify(remote, &late, false, &headers).await.unwrap(), Principal::Nobody);
    let problem = identify(remote, &late, true, &headers).await.unwrap_err();
    assert!(problem.is(ProblemCode::NoCredentials), "{problem:?}");
    let mapped =
        ConnectionAddresses { local: Some("[::ffff:127.0.0.1]:1".parse().unwrap()), ..addresses };
    assert!(
        identify(mapped, &late, false, &headers).await.is_err(),
        "IPv4 in IPv6 is loopback too"
    );
}
