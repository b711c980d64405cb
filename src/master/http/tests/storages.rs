//! Requests about storages, and requests that select workers.

use super::*;
use crate::wire::sync::SyncPatch;

#[tokio::test]
async fn paths_of_selected_workers_may_be_equal_or_nested() {
    let mut served = start_server().await;
    for (source, destination, selectors, status) in [
        ("/a", "/a", "", 422),
        ("/a", "/a/b", r#", "source_workers": [], "destination_workers": []"#, 422),
        ("/a", "/a", r#", "source_workers": ["w1"]"#, 202),
        ("/a/b", "/a", r#", "destination_workers": ["gpu-*", "@rack=3"]"#, 202),
        ("/a", "/b", r#", "destination_workers": ["@rack"]"#, 422),
        ("/a", "/b", r#", "destination_workers": "gpu-1""#, 422),
    ] {
        let body = format!(
            r#"{{"source_path": "{source}", "destination_path": "{destination}"{selectors}}}"#
        );
        assert_eq!(served.post("/sync", &body).await.status, status, "{body}");
        if status == 202 {
            assert!(matches!(served.events.recv().await, Some(Event::Submit { .. })));
        }
    }
    assert!(served.has_no_event());
}

#[tokio::test]
async fn destinations_are_added_with_a_limit_or_without_one() {
    let mut served = start_server().await;
    for (body, bwlimit) in [
        (r#"{"add_destinations": ["gpu-9", "@rack=3"]}"#, None),
        (r#"{"add_destinations": ["gpu-9", "@rack=3"], "bwlimit": null}"#, Some(None)),
    ] {
        assert_eq!(served.send("PATCH", "/sync/x", &[], body.as_bytes()).await.status, 200);
        let add_destinations = vec!["gpu-9".parse().unwrap(), "@rack=3".parse().unwrap()];
        let change = SyncPatch { bwlimit, add_destinations };
        let id = "x".parse().unwrap();
        assert_eq!(served.events.recv().await, Some(Event::ChangeSync { id, change }));
    }
    let bad = r#"{"add_destinations": ["gpu-9", "@rack"]}"#;
    let got = served.send("PATCH", "/sync/x", &[], bad.as_bytes()).await;
    let error = got.json()["errors"][0].clone();
    assert_eq!((got.status, error["pointer"].as_str()), (422, Some("/add_destinations/1")));
    assert!(error["detail"].as_str().unwrap().contains("has no value"), "{error}");
}

#[tokio::test]
async fn storages_are_listed_and_shown() {
    let mut served = start_server().await;
    let got = served.get("/storages").await.json();
    assert_eq!(got["storages"][0]["storage_id"], "s-1");
    assert_eq!(served.events.recv().await, Some(Event::ListStorages));
    assert_eq!(served.get("/v1/storages/s-1").await.json(), got["storages"][0]);
    assert_eq!(served.events.recv().await, Some(Event::GetStorage("s-1".parse().unwrap())));
    let got = served.get("/storages/gone").await;
    assert_eq!((got.status, got.problem_code().as_str()), (404, "storage_not_found"));
    assert_eq!(served.get("/storages/a%20b").await.problem_code(), "not_found");
}
