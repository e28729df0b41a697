//! What operators and their machines ask: admin, health, metrics, limits, and what is not built
//! yet.

use crate::Rig;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

#[tokio::test]
async fn the_cluster_its_nodes_and_shards_are_shown() {
    let rig = Rig::start().await;
    let cluster = rig.get("/v1/admin/cluster").await.json();
    assert_eq!((&cluster["id"], &cluster["shards"]), (&"0000000000000007".into(), &3.into()));
    assert_eq!(cluster["leaders_per_node"], json!([{"node": 9, "leaders": 3}]));
    assert_eq!(rig.get("/v1/admin/nodes").await.json()["nodes"][1]["id"], 9);
    assert_eq!(rig.get("/v1/admin/nodes/9").await.json()["state"], "up");
    rig.get("/v1/admin/nodes/77").await.problem(404, "not_found");
    for bad in ["0", "x", "-1", "007"] {
        rig.get(&format!("/v1/admin/nodes/{bad}")).await.problem(400, "bad_id");
    }
    let shard = rig.get("/v1/admin/shards/3").await;
    assert_eq!(shard.header("etag"), Some("\"3.1\""));
    let view = shard.json();
    assert_eq!(
        (&view["start"], &view["end"], &view["epoch"]),
        (&"g".into(), &"p".into(), &json!({"membership": 3, "range": 1}))
    );
    assert_eq!(view["local"], Value::Null);
    assert_eq!(
        rig.get("/v1/admin/shards/4?hash=1").await.json()["local"]["hash"],
        "00000000000000ff"
    );
    assert_eq!(rig.get("/v1/admin/shards/4").await.json()["end"], Value::Null);
    assert_eq!(
        rig.ask("GET", "/v1/admin/shards/3", &[("if-none-match", "\"3.1\"")], b"").await.status,
        304
    );
    let moved = rig.ask("GET", "/v1/admin/shards/3", &[("if-match", "\"2.1\"")], b"").await;
    assert_eq!(moved.problem(412, "precondition_failed")["epoch"], "3.1");
}

#[tokio::test]
async fn shards_are_listed_in_pages() {
    let rig = Rig::start().await;
    let first = rig.get("/v1/admin/shards?limit=2").await.json();
    assert_eq!((first["shards"].as_array().unwrap().len(), &first["cursor"]), (2, &"3".into()));
    let second = rig.get("/v1/admin/shards?limit=2&cursor=3").await.json();
    assert_eq!((&second["shards"][0]["id"], &second["cursor"]), (&4.into(), &Value::Null));
    assert_eq!(rig.get("/v1/admin/shards").await.json()["cursor"], Value::Null);
    rig.get("/v1/admin/shards?cursor=x").await.problem(400, "bad_cursor");
    rig.get("/v1/admin/shards?limit=0").await.problem(400, "bad_parameter");
}

#[tokio::test]
async fn a_key_is_explained() {
    let rig = Rig::start().await;
    let explained = rig.get("/v1/admin/explain/h//%2F").await;
    assert_eq!(
        (explained.header("etag"), explained.header("flotilla-shard")),
        (Some("\"3.1\""), Some("3"))
    );
    let json = explained.json();
    assert_eq!((&json["key"], &json["shard"]["id"]), (&"h///".into(), &3.into()));
    assert_eq!(rig.get("/v1/admin/explain/%FF").await.json()["key_b64"], "/w==");
    rig.get("/v1/admin/explain/").await.problem(400, "key_empty");
}

#[tokio::test]
async fn leadership_is_handed_over() {
    let rig = Rig::start().await;
    let order = |target: &'static str,
                 headers: &'static [(&'static str, &'static str)],
                 body: &'static str| {
        let rig = &rig;
        async move {
            let headers: Vec<_> =
                headers.iter().copied().chain([("content-type", "application/json")]).collect();
            rig.ask("POST", target, &headers, body.as_bytes()).await
        }
    };
    let done = order("/v1/admin/shards/3/leader", &[], r#"{"node":2}"#).await;
    assert_eq!((done.status, done.header("etag")), (200, Some("\"3.1\"")));
    assert_eq!((&done.json()["leader_after"], &done.json()["dry_run"]), (&2.into(), &false.into()));
    assert_eq!(
        (&done.json()["id"], &done.json()["epoch"]["membership"]),
        (&3.into(), &3.into()),
        "the new descriptor"
    );
    let shown =
        order("/v1/admin/shards/3/leader?dry_run=1", &[("if-match", "\"3.1\"")], r#"{"node":2}"#)
            .await;
    assert_eq!(
        (&shown.json()["dry_run"], &shown.json()["quorum_after"]["needed"]),
        (&true.into(), &2.into())
    );
    let moved =
        order("/v1/admin/shards/3/leader", &[("if-match", "\"3.0\"")], r#"{"node":2}"#).await;
    moved.problem(412, "precondition_failed");
    assert_eq!(moved.header("etag"), Some("\"3.1\""));
    order("/v1/admin/shards/3/leader", &[("if-match", "3.1")], r#"{"node":2}"#)
        .await
        .problem(400, "bad_etag");
    order("/v1/admin/shards/3/leader", &[], r#"{"node":8}"#).await.problem(409, "conflict");
    order("/v1/admin/shards/9/leader", &[], r#"{"node":2}"#).await.problem(404, "not_found");
    order("/v1/admin/shards/3/leader", &[], r#"{"nod":2}"#).await.problem(400, "malformed_json");
    let get = rig.get("/v1/admin/shards/3/leader").await;
    get.problem(405, "method_not_allowed");
    assert_eq!(get.header("allow"), Some("POST"));
}

#[tokio::test]
async fn what_is_not_built_yet_keeps_its_place() {
    let rig = Rig::start().await;
    for (method, target) in [
        ("POST", "/v1/txn"),
        ("GET", "/v1/watch?prefix=a"),
        ("POST", "/v1/admin/nodes/1/drain"),
        ("DELETE", "/v1/admin/nodes/1"),
        ("POST", "/v1/admin/shards/3/split"),
        ("POST", "/v1/admin/shards/3/merge"),
        ("POST", "/v1/admin/shards/3/replicas"),
        ("PUT", "/v1/admin/shards/3/replicas"),
        ("DELETE", "/v1/admin/shards/3/replicas/1"),
        ("GET", "/v1/admin/operations"),
        ("GET", "/v1/admin/operations/5"),
        ("DELETE", "/v1/admin/operations/5"),
        ("GET", "/v1/admin/settings/replicas"),
        ("PUT", "/v1/admin/settings/replicas"),
        ("POST", "/v1/admin/balance"),
    ] {
        rig.ask(method, target, &[], b"").await.problem(501, "not_implemented");
    }
    for (method, target, allow) in [
        ("GET", "/v1/txn", "POST"),
        ("POST", "/v1/watch", "GET"),
        ("GET", "/v1/admin/shards/3/replicas", "POST, PUT"),
        ("POST", "/v1/admin/cluster", "GET, HEAD"),
        ("PUT", "/v1/admin/nodes/1", "GET, HEAD, DELETE"),
        ("POST", "/v1/admin/operations/5", "GET, HEAD, DELETE"),
        ("GET", "/v1/admin/balance", "POST"),
        ("POST", "/metrics", "GET, HEAD"),
        ("DELETE", "/v1/limits", "GET, HEAD"),
    ] {
        let refused = rig.ask(method, target, &[], b"").await;
        refused.problem(405, "method_not_allowed");
        assert_eq!(refused.header("allow"), Some(allow), "{method} {target}");
    }
    for target in [
        "/",
        "/v1",
        "/v1/",
        "/v2/kv/a",
        "/v1/kvs",
        "/v1/admin/",
        "/v1/admin/shards/3/other",
        "/livez/",
    ] {
        rig.get(target).await.problem(404, "no_such_path");
    }
}

#[tokio::test]
async fn health_metrics_and_limits() {
    let rig = Rig::start().await;
    for target in ["/livez", "/readyz"] {
        let answer = rig.get(target).await;
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{target}");
    }
    let verbose = rig.get("/readyz?verbose").await;
    assert_eq!(
        verbose.text(),
        "[+]joined ok\n[+]leaders ok: 7 of 8 shards have a leader\nreadyz check passed\n"
    );
    rig.fake.unwell.store(true, Ordering::SeqCst);
    rig.get("/livez").await.problem(503, "not_live");
    let problem = rig.get("/readyz").await.problem(503, "not_ready");
    assert!(problem["detail"].as_str().unwrap().contains("leaders: 7 of 8"), "{problem}");
    let verbose = rig.get("/readyz?verbose=1").await;
    assert_eq!(verbose.status, 503);
    assert!(
        verbose.text().contains("[-]leaders failed: 7 of 8 shards have a leader\n"),
        "{}",
        verbose.text()
    );

    let limits = rig.get("/v1/limits").await.json();
    assert_eq!(
        (&limits["key_bytes_max"], &limits["value_bytes_max"], &limits["request_timeout"]),
        (&4096.into(), &1048576.into(), &"5s".into())
    );
    rig.put("a", b"1").await;
    let metrics = rig.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    let line = r#"flotilla_http_requests_total{method="PUT",route="key",status="204"} 1"#;
    assert!(metrics.text().contains(line), "{}", metrics.text());
    assert!(
        metrics
            .text()
            .contains(r#"flotilla_http_request_seconds_count{method="PUT",route="key"} 1"#)
    );
}
