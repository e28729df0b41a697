//! `POST /v1/batch`.

use crate::Rig;
use crate::client::Answer;
use flotilla_router::{Refusal, ShardId};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

async fn batch(rig: &Rig, ops: Value) -> Answer {
    let body = json!({ "ops": ops }).to_string();
    rig.ask(
        "POST",
        "/v1/batch",
        &[("content-type", "application/json; charset=utf-8")],
        body.as_bytes(),
    )
    .await
}

async fn results(rig: &Rig, ops: Value) -> Vec<Value> {
    let answer = batch(rig, ops).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["results"].as_array().unwrap().clone()
}

#[tokio::test]
async fn every_operation_has_its_outcome_in_order() {
    let rig = Rig::start().await;
    rig.put("x", b"old").await;
    let results = results(
        &rig,
        json!([
            {"put": {"key": "a", "value": "1"}},
            {"get": {"key": "x"}},
            {"get": {"key": "nothing"}},
            {"delete": {"key": "z"}},
            {"put": {"key_b64": "/w==", "value_b64": "/g=="}},
            {"put": {"key": "x", "value": "new", "if_none_match": "*"}},
            {"delete": {"key": "h", "if_match": 7}},
        ]),
    )
    .await;
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [204, 200, 404, 204, 204, 412, 412]);
    assert!(results[0]["revision"].as_u64().unwrap() > 1);
    assert_eq!(results[1], json!({"status": 200, "value": "old", "revision": 1, "shard": 4}));
    assert_eq!(
        (&results[2]["code"], &results[2]["outcome"]),
        (&"no_such_key".into(), &"not_applied".into())
    );
    assert_eq!(results[3], json!({"status": 204, "shard": 4}));
    assert_eq!(
        (&results[5]["code"], &results[5]["revision"]),
        (&"precondition_failed".into(), &1.into())
    );
    assert_eq!(
        (&results[6]["code"], &results[6]["revision"]),
        (&"precondition_failed".into(), &Value::Null)
    );
    assert_eq!(rig.get("/v1/kv/%FF").await.body, b"\xfe");
    assert_eq!(results_of_nothing(&rig).await, 0);
}

async fn results_of_nothing(rig: &Rig) -> usize {
    results(rig, json!([])).await.len()
}

#[tokio::test]
async fn one_key_keeps_its_order_and_all_others_go_at_once() {
    let rig = Rig::start().await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(20);
    let mut ops = Vec::new();
    for i in 0..10 {
        ops.push(json!({"put": {"key": "same", "value": i.to_string()}}));
        ops.push(json!({"get": {"key": "same"}}));
        ops.push(json!({"put": {"key": format!("other{i}"), "value": "x"}}));
    }
    let results = results(&rig, Value::Array(ops)).await;
    for i in 0..10 {
        assert_eq!(
            results[3 * i + 1]["value"],
            i.to_string(),
            "a read overtook a write, or was overtaken"
        );
    }
    assert_eq!(
        rig.fake.under_way_max.load(Ordering::SeqCst),
        11,
        "ten keys and one chain go at once"
    );
}

#[tokio::test]
async fn what_is_behind_an_unknown_outcome_is_not_tried() {
    let rig = Rig::start().await;
    rig.fake.break_shard(3, Refusal::OutcomeUnknown { shard: ShardId(3) });
    let put = |key: &str| json!({"put": {"key": key, "value": "v"}});
    let results = results(&rig, json!([put("h"), put("h"), put("i"), put("a")])).await;
    let statuses: Vec<_> =
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [504, 424, 504, 204]);
    assert_eq!(
        (&results[0]["outcome"], &results[1]["outcome"]),
        (&"unknown".into(), &"not_applied".into())
    );
    assert!(results[1]["detail"].as_str().unwrap().contains("ops[0]"));
}

#[tokio::test]
async fn a_malformed_batch_does_nothing() {
    let rig = Rig::start().await;
    batch(&rig, json!([{"put": {"key": "a", "value": "1"}}, {"put": {"key": "", "value": "1"}}]))
        .await
        .problem(400, "key_empty");
    batch(&rig, json!([{"put": {"key": "a", "value": "1"}}, {"put": {"key": "a"}}]))
        .await
        .problem(400, "bad_operation");
    batch(&rig, json!([{"put": {"key": "a", "value": "1", "extra": 1}}]))
        .await
        .problem(400, "malformed_json");
    let large = "v".repeat((1 << 20) + 1);
    batch(
        &rig,
        json!([{"put": {"key": "a", "value": "1"}}, {"put": {"key": "b", "value": large}}]),
    )
    .await
    .problem(413, "value_too_large");
    let long = vec![json!({"put": {"key": "a", "value": "1"}}); 1001];
    assert_eq!(batch(&rig, Value::Array(long)).await.problem(413, "batch_too_long")["limit"], 1000);
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);

    let json = [("content-type", "application/json")];
    rig.ask("POST", "/v1/batch", &json, b"{\"ops\":[").await.problem(400, "malformed_json");
    rig.ask("POST", "/v1/batch", &[("content-type", "text/plain")], b"{\"ops\":[]}")
        .await
        .problem(415, "unsupported_media_type");
    // What `curl -d` says of itself, and nothing at all, are what a web page may send as well.
    for headers in [&[("content-type", "application/x-www-form-urlencoded")][..], &[]] {
        let refused = rig
            .ask(
                "POST",
                "/v1/batch",
                headers,
                b"{\"ops\":[{\"put\":{\"key\":\"a\",\"value\":\"1\"}}]}",
            )
            .await;
        let problem = refused.problem(415, "unsupported_media_type");
        assert!(
            problem["detail"].as_str().unwrap().contains("-H 'Content-Type: application/json'"),
            "{problem}"
        );
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
    let refused = rig.ask("GET", "/v1/batch", &[], b"").await;
    refused.problem(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), Some("POST"));
}
