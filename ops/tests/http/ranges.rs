//! Ranges: scans as pages and as streams, and range deletes, over shards in both directions.

use crate::Rig;
use flotilla_ops::Limits;
use flotilla_router::{Refusal, ShardId};
use serde_json::Value;
use std::sync::atomic::Ordering;

const KEYS: [&str; 8] = ["a", "b", "f", "g", "k", "p", "q", "z"];

fn keys(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["key"].as_str().unwrap()).collect()
}

/// Follows cursors to the end; `more` is added to every request, `first` to the first alone.
async fn pages(rig: &Rig, first: &str, more: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut target = format!("/v1/kv?{more}{first}");
    loop {
        let answer = rig.get(&target).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        pages
            .push(keys(page["items"].as_array().unwrap()).into_iter().map(str::to_owned).collect());
        match &page["cursor"] {
            Value::Null => return pages,
            cursor => target = format!("/v1/kv?{more}&cursor={}", cursor.as_str().unwrap()),
        }
        assert!(pages.len() < 50, "{pages:?}");
    }
}

#[tokio::test]
async fn a_page_goes_over_all_shards() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    let answer = rig.get("/v1/kv").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("flotilla-consistency"), Some("per_shard"));
    let page = answer.json();
    assert_eq!(keys(page["items"].as_array().unwrap()), KEYS);
    assert_eq!(page["items"][3], serde_json::json!({"key": "g", "value": "g", "revision": 4}));
    assert_eq!((&page["cursor"], &page["consistent"]), (&Value::Null, &"per_shard".into()));
    for (query, expected) in [
        ("prefix=", &KEYS[..]),
        ("prefix=a", &["a"]),
        ("prefix=%6b", &["k"]),
        ("start=b&end=p", &["b", "f", "g", "k"]),
        ("start=g", &["g", "k", "p", "q", "z"]),
        ("end=g", &["a", "b", "f"]),
        ("end=g&reverse=1", &["f", "b", "a"]),
        ("start=b&end=q&reverse=true", &["p", "k", "g", "f", "b"]),
        ("prefix=nothing", &[]),
    ] {
        let page = rig.get(&format!("/v1/kv?{query}")).await.json();
        assert_eq!(keys(page["items"].as_array().unwrap()), expected, "{query}");
        assert_eq!(page["cursor"], Value::Null, "{query}");
    }
    let head = rig.ask("HEAD", "/v1/kv", &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some(answer.body.len().to_string().as_str()))
    );
}

#[tokio::test]
async fn cursors_go_on_where_the_page_ended_in_both_directions() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    let reversed: Vec<&str> = KEYS.into_iter().rev().collect();
    for limit in 1..=9 {
        let forward = pages(&rig, "", &format!("limit={limit}")).await;
        assert_eq!(forward.concat(), KEYS, "limit {limit}");
        assert!(forward.iter().all(|page| page.len() <= limit));
        let backward = pages(&rig, "&reverse=true&start=a", &format!("limit={limit}")).await;
        assert_eq!(backward.concat(), reversed, "limit {limit}, reversed");
        let part = pages(&rig, "&start=b&end=q", &format!("limit={limit}&reverse=0")).await;
        assert_eq!(part.concat(), &KEYS[1..6], "limit {limit}, a part");
    }
    // Each key and value has two bytes in all.
    for max_bytes in [1, 2, 3, 5] {
        let bounded = pages(&rig, "", &format!("max_bytes={max_bytes}")).await;
        assert_eq!(bounded.concat(), KEYS, "max_bytes {max_bytes}");
        assert!(
            bounded.iter().all(|page| page.len() <= (max_bytes / 2).max(1)),
            "max_bytes {max_bytes}: {bounded:?}"
        );
    }
    // The cursor keeps what the first request said.
    let first = rig.get("/v1/kv?limit=2&keys_only=1&reverse=1").await.json();
    assert_eq!(first["items"][0], serde_json::json!({"key": "z", "revision": 8}));
    let second = rig
        .get(&format!("/v1/kv?limit=2&cursor={}", first["cursor"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(second["items"][0], serde_json::json!({"key": "p", "revision": 6}));
}

/// However little room there is for answers: a node that has nothing else to do shows what it has.
#[tokio::test]
async fn every_item_is_read_at_the_least_limits() {
    let limits = Limits {
        answer_bytes_max: 2 << 20,
        batch_answer_bytes_max: 1 << 10,
        requests_in_flight_max: 1,
        connections_max: 1,
        in_flight_bytes_max: 1 << 20,
        batch_bytes_max: 1 << 10,
        http2_streams_max: 1,
        scan_items_default: 1,
        scan_bytes_default: 1 << 10,
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;
    let mut client = rig.client().await;
    for key in KEYS {
        client.send("PUT", &format!("/v1/kv/{key}"), &[], &vec![0; 1 << 20]).await;
        assert_eq!(client.answer(false).await.unwrap().status, 204);
    }
    for query in [
        "limit=1",
        "limit=100",
        "max_bytes=8388608",
        "limit=100&max_bytes=8388608",
        "limit=100&max_bytes=8388608&reverse=1",
    ] {
        let (mut seen, mut target) = (Vec::new(), format!("/v1/kv?prefix=&{query}"));
        loop {
            client.send("GET", &target, &[], b"").await;
            let answer = client.answer(false).await.unwrap();
            assert_eq!(answer.status, 200, "{query}: {}", answer.text());
            let page = answer.json();
            seen.extend(keys(page["items"].as_array().unwrap()).into_iter().map(str::to_owned));
            let Some(cursor) = page["cursor"].as_str() else { break };
            target = format!("/v1/kv?cursor={cursor}&{query}");
        }
        if query.ends_with("reverse=1") {
            seen.reverse();
        }
        assert_eq!(seen, KEYS, "{query}");
    }
}

#[tokio::test]
async fn pages_go_on_behind_the_longest_key() {
    let rig = Rig::start().await;
    let longest = "k".repeat(4096);
    rig.fill(&["a", &longest, "z"]).await;
    for query in ["limit=1", "limit=1&reverse=1", "limit=1&prefix=&keys_only"] {
        assert_eq!(pages(&rig, "", query).await.concat().len(), 3, "{query}");
    }
    // Who keeps no cursor goes on at the last key and a NUL, and reads one key alone up to there.
    let behind = rig.get(&format!("/v1/kv?start={longest}%00")).await.json();
    assert_eq!(keys(behind["items"].as_array().unwrap()), ["z"]);
    let alone = rig.get(&format!("/v1/kv?start={longest}&end={longest}%00")).await.json();
    assert_eq!(keys(alone["items"].as_array().unwrap()), [&longest]);
    let gone =
        rig.ask("DELETE", &format!("/v1/kv?start={longest}&end={longest}%00"), &[], b"").await;
    assert_eq!(gone.json()["count"], 1);
}

/// A shard that ran out of time is not asked again for the same page: its second answer would be of
/// another moment.
#[tokio::test]
async fn a_page_shows_one_view_of_a_shard() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    rig.fake.scan_items_max.store(2, Ordering::SeqCst);
    for more in ["limit=9", "limit=9&reverse"] {
        let pages = pages(&rig, "", more).await;
        let mut all = pages.concat();
        all.sort();
        assert_eq!(all, KEYS, "{more}");
        let shard = |key: &String| (key >= &"g".to_owned()) as u8 + (key >= &"p".to_owned()) as u8;
        for page in pages {
            for n in 0..3 {
                assert!(
                    page.iter().filter(|key| shard(key) == n).count() <= 2,
                    "{more}: {page:?} shows a shard twice"
                );
            }
        }
    }
}

#[tokio::test]
async fn cursors_are_checked() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    let page = rig.get("/v1/kv?prefix=&limit=2").await.json();
    let cursor = page["cursor"].as_str().unwrap();
    assert_eq!(rig.get(&format!("/v1/kv?prefix=&reverse=0&cursor={cursor}")).await.status, 200);
    rig.get(&format!("/v1/kv?reverse=1&cursor={cursor}")).await.problem(400, "contradiction");
    rig.get(&format!("/v1/kv?prefix=a&cursor={cursor}")).await.problem(400, "contradiction");
    rig.get("/v1/kv?cursor=forged").await.problem(400, "bad_cursor");
    rig.get(&format!("/v1/kv?cursor={}x", &cursor[..cursor.len() - 1]))
        .await
        .problem(400, "bad_cursor");
}

#[tokio::test]
async fn keys_and_values_that_are_no_text_are_base64() {
    let rig = Rig::start().await;
    rig.put("%FF", b"\xfe").await;
    rig.put("%01%22", "ä\n".as_bytes()).await;
    let page = rig.get("/v1/kv").await.json();
    assert_eq!(
        page["items"][0],
        serde_json::json!({"key": "\u{1}\"", "value": "ä\n", "revision": 2})
    );
    assert_eq!(
        page["items"][1],
        serde_json::json!({"key_b64": "/w==", "value_b64": "/g==", "revision": 1})
    );
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_named() {
    let rig = Rig::start().await;
    for (query, code) in [
        ("prefix=a&start=b", "contradiction"),
        ("start=b&end=a", "contradiction"),
        ("start=b&end=b", "contradiction"),
        ("limit=0", "bad_parameter"),
        ("limit=10001", "bad_parameter"),
        ("max_bytes=0", "bad_parameter"),
        ("reverse=maybe", "bad_parameter"),
        ("start=%zz", "bad_percent_encoding"),
        ("foo=1", "unknown_parameter"),
        ("limit=1&limit=1", "repeated_parameter"),
        ("max_staleness=1s", "contradiction"),
    ] {
        rig.get(&format!("/v1/kv?{query}")).await.problem(400, code);
    }
    assert_eq!(rig.get("/v1/kv?limit=10001").await.json()["limit"], 10_000);
    let long =
        rig.get(&format!("/v1/kv?prefix={}", "a".repeat(4097))).await.problem(414, "key_too_long");
    assert_eq!(long["actual"], 4097);
    rig.ask("GET", "/v1/kv", &[("accept", "text/html")], b"").await.problem(406, "not_acceptable");
    let refused = rig.ask("PUT", "/v1/kv", &[], b"x").await;
    refused.problem(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), Some("GET, HEAD, DELETE"));
}

#[tokio::test]
async fn a_stream_has_a_line_per_key_and_says_that_it_is_whole() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    let stream = |query: &'static str| {
        let rig = &rig;
        async move { rig.ask("GET", query, &[("accept", "application/x-ndjson")], b"").await }
    };
    let all = stream("/v1/kv").await;
    assert_eq!(all.header("content-type"), Some("application/x-ndjson"));
    let lines = all.lines();
    assert_eq!(keys(&lines[..8]), KEYS);
    assert_eq!(lines[8], serde_json::json!({"complete": true, "count": 8}));
    let none = stream("/v1/kv?prefix=none").await.lines();
    assert_eq!(none, [serde_json::json!({"complete": true, "count": 0})]);
    let some = stream("/v1/kv?limit=5&reverse=1").await.lines();
    assert_eq!(keys(&some[..5]), ["z", "q", "p", "k", "g"]);
    assert_eq!((some.len(), &some[5]["count"], &some[5]["complete"]), (6, &5.into(), &Value::Null));
    let cursor = some[5]["cursor"].as_str().unwrap();
    let rest = rig.get(&format!("/v1/kv?cursor={cursor}")).await.json();
    assert_eq!(keys(rest["items"].as_array().unwrap()), ["f", "b", "a"]);
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_why_and_where_to_go_on() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    rig.fake.break_shard(4, Refusal::NoLeader { shard: ShardId(4) });
    let ndjson = [("accept", "application/x-ndjson")];
    let lines = rig.ask("GET", "/v1/kv", &ndjson, b"").await.lines();
    assert_eq!(keys(&lines[..5]), &KEYS[..5]);
    assert_eq!(
        (&lines[5]["problem"]["code"], &lines[5]["complete"]),
        (&"no_leader".into(), &Value::Null)
    );
    // The same over pages: what was found, then the problem.
    let page = rig.get("/v1/kv").await.json();
    assert_eq!(keys(page["items"].as_array().unwrap()), &KEYS[..5]);
    let next = format!("/v1/kv?cursor={}", page["cursor"].as_str().unwrap());
    rig.get(&next).await.problem(503, "no_leader");
    rig.fake.faults.lock().unwrap().clear();
    for cursor in [page["cursor"].as_str().unwrap(), lines[5]["cursor"].as_str().unwrap()] {
        let rest = rig.get(&format!("/v1/kv?cursor={cursor}")).await.json();
        assert_eq!(keys(rest["items"].as_array().unwrap()), &KEYS[5..]);
    }
    // What fails at once fails with a status.
    rig.fake.break_shard(2, Refusal::NoLeader { shard: ShardId(2) });
    rig.ask("GET", "/v1/kv", &ndjson, b"").await.problem(503, "no_leader");
}

/// Everything is written anew after every part. What a stream shows of one shard is nevertheless of
/// one moment, and of another one for another shard; and no view outlives its stream.
#[tokio::test]
async fn a_stream_shows_one_moment_of_each_shard() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    rig.fake.restless.store(true, Ordering::SeqCst);
    rig.fake.scan_items_max.store(1, Ordering::SeqCst);
    let ndjson = [("accept", "application/x-ndjson")];
    for (query, turned) in [("/v1/kv", false), ("/v1/kv?reverse", true)] {
        let answer = rig.ask("GET", query, &ndjson, b"").await;
        assert_eq!(answer.header("flotilla-consistency"), Some("per_shard"));
        let mut lines = answer.lines();
        assert_eq!(lines.pop().unwrap()["complete"], true);
        if turned {
            lines.reverse();
        }
        assert_eq!(keys(&lines), KEYS, "{query}");
        let shards = [&lines[..3], &lines[3..5], &lines[5..]];
        let moments =
            shards.map(|items| {
                assert!(
                    items.iter().all(|item| item["revision"] == items[0]["revision"]
                        || item["value"] == item["key"]),
                    "{items:?}"
                );
                items[0]["value"].clone()
            });
        assert!(moments[0] != moments[1] && moments[1] != moments[2], "{moments:?}");
        assert_eq!(rig.fake.views(), 0);
    }
    // A stream that ends before its shard does lets the view go.
    let some = rig.ask("GET", "/v1/kv?limit=1", &ndjson, b"").await.lines();
    assert!(some[1]["cursor"].is_string(), "{some:?}");
    for _ in 0..500 {
        if rig.fake.views() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the view of a stream that is over is still kept");
}

#[tokio::test]
async fn a_stream_whose_view_was_given_up_says_so() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    rig.fake.forgetful.store(true, Ordering::SeqCst);
    rig.fake.scan_items_max.store(2, Ordering::SeqCst);
    let lines = rig.ask("GET", "/v1/kv", &[("accept", "application/x-ndjson")], b"").await.lines();
    assert_eq!(keys(&lines[..2]), &KEYS[..2]);
    let last = &lines[2];
    assert_eq!(
        (lines.len(), &last["problem"]["code"], &last["problem"]["retryable"]),
        (3, &"view_given_up".into(), &true.into())
    );
    let rest = rig
        .get(&format!("/v1/kv?limit=1&cursor={}", last["cursor"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(keys(rest["items"].as_array().unwrap()), &KEYS[2..3]);
}

#[tokio::test]
async fn a_range_is_deleted_over_shards_and_counted() {
    let rig = Rig::start().await;
    rig.fill(&KEYS).await;
    let delete = |query: &'static str| {
        let rig = &rig;
        async move { rig.ask("DELETE", query, &[], b"").await }
    };
    for query in ["/v1/kv", "/v1/kv?start=&end="] {
        delete(query).await.problem(400, "range_missing");
    }
    delete("/v1/kv?prefix=a&limit=3").await.problem(400, "unknown_parameter");
    rig.ask("DELETE", "/v1/kv?prefix=a", &[("if-match", "*")], b"")
        .await
        .problem(400, "contradiction");
    assert_eq!(delete("/v1/kv?start=b&end=q").await.json(), serde_json::json!({"count": 5}));
    assert_eq!(keys(rig.get("/v1/kv").await.json()["items"].as_array().unwrap()), ["a", "q", "z"]);
    rig.fake.break_shard(4, Refusal::NoLeader { shard: ShardId(4) });
    let midway = delete("/v1/kv?prefix=").await.problem(504, "partially_applied");
    assert_eq!(
        (&midway["count"], &midway["outcome"], &midway["shard"]),
        (&1.into(), &"unknown".into(), &4.into())
    );
    assert_eq!(delete("/v1/kv?prefix=z").await.problem(503, "no_leader")["outcome"], "not_applied");
    rig.fake.faults.lock().unwrap().clear();
    assert_eq!(delete("/v1/kv?prefix=").await.json()["count"], 2);
    assert_eq!(delete("/v1/kv?prefix=").await.json()["count"], 0);
}
