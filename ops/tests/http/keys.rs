//! One key: `GET`, `HEAD`, `PUT`, `DELETE /v1/kv/{key}`.

use crate::Rig;
use flotilla_router::{Outcome, Refusal, ShardId};

#[tokio::test]
async fn a_value_is_set_read_and_removed() {
    let rig = Rig::start().await;
    let put = rig.put("hello", b"world").await;
    assert_eq!((put.status, put.header("etag"), put.body.len()), (204, Some("\"1\""), 0));
    assert_eq!((put.header("flotilla-shard"), put.header("flotilla-node")), (Some("3"), Some("9")));

    let get = rig.get("/v1/kv/hello").await;
    assert_eq!((get.status, &get.body[..]), (200, &b"world"[..]));
    for (name, value) in [
        ("etag", "\"1\""),
        ("content-type", "application/octet-stream"),
        ("x-content-type-options", "nosniff"),
        ("content-length", "5"),
        ("flotilla-shard", "3"),
        ("flotilla-node", "9"),
    ] {
        assert_eq!(get.header(name), Some(value), "{name}");
    }
    let head = rig.ask("HEAD", "/v1/kv/hello", &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.header("etag")),
        (200, Some("5"), Some("\"1\""))
    );

    for _ in 0..2 {
        let delete = rig.ask("DELETE", "/v1/kv/hello", &[], b"").await;
        assert_eq!((delete.status, delete.header("flotilla-shard")), (204, Some("3")));
    }
    let missing = rig.get("/v1/kv/hello").await;
    assert_eq!(missing.problem(404, "no_such_key")["shard"], 3);
    assert_eq!(
        (missing.header("flotilla-shard"), missing.header("flotilla-node")),
        (Some("3"), Some("9"))
    );
    let head = rig.ask("HEAD", "/v1/kv/hello", &[], b"").await;
    assert_eq!((head.status, head.header("content-type")), (404, Some("application/problem+json")));
}

#[tokio::test]
async fn odd_keys_are_what_they_are() {
    let rig = Rig::start().await;
    let keys = [
        "a//b", ".", "..", "a/../b", "./a", "%2F", "%2F%2f", "%00", "%FF%FE", "a%3Fx", "a%23x",
        "%20", "a+b", "%25", "a%2Fb", "a/b/", "/a", "kv", "%C3%A4",
    ];
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(rig.put(key, format!("{i}").as_bytes()).await.status, 204, "{key}");
        assert_eq!(rig.get(&format!("/v1/kv/{key}")).await.text(), i.to_string(), "{key}");
    }
    assert_eq!(rig.get("/v1/kv/a/../b").await.text(), "3", "another key was taken for a/../b");
    assert_eq!(rig.get("/v1/kv/a%2F%2Fb").await.text(), "0", "a//b and a%2F%2Fb are one key");
    assert_eq!(rig.get("/v1/kv/b").await.status, 404);
    let page = rig.get("/v1/kv?start=%FF").await.json();
    assert_eq!(page["items"][0]["key_b64"], "//4=");
}

#[tokio::test]
async fn values_are_raw_from_nothing_to_a_mebibyte() {
    let rig = Rig::start().await;
    for size in [0, 1, 100_000, 1 << 20] {
        let value: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
        assert_eq!(rig.put("v", &value).await.status, 204, "{size} bytes");
        let get = rig.get("/v1/kv/v").await;
        assert_eq!(get.status, 200);
        assert!(get.body == value, "{size} bytes came back changed");
    }
    let mut client = rig.client().await;
    client
        .raw(
            "PUT /v1/kv/chunked HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\n\
             abc\r\n4\r\ndefg\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    assert_eq!(rig.get("/v1/kv/chunked").await.text(), "abcdefg");
}

#[tokio::test]
async fn conditions_hold_or_answer_412_with_what_is_there() {
    let rig = Rig::start().await;
    let put = |headers: &'static [(&'static str, &'static str)], value: &'static [u8]| {
        rig.ask("PUT", "/v1/kv/c", headers, value)
    };
    put(&[("if-match", "*")], b"0").await.problem(412, "precondition_failed");
    let absent = put(&[("if-match", "\"4\"")], b"0").await;
    absent.problem(412, "precondition_failed");
    assert_eq!(absent.header("etag"), None, "there is no such key");
    assert_eq!(put(&[("if-none-match", "*")], b"1").await.header("etag"), Some("\"1\""));
    let exists = put(&[("if-none-match", "*")], b"2").await;
    exists.problem(412, "precondition_failed");
    assert_eq!(
        (exists.header("etag"), exists.header("flotilla-shard")),
        (Some("\"1\""), Some("2"))
    );
    assert_eq!(put(&[("if-match", "\"1\"")], b"3").await.header("etag"), Some("\"2\""));
    assert_eq!(put(&[("if-match", "\"1\"")], b"4").await.header("etag"), Some("\"2\""));
    assert_eq!(put(&[("if-match", "*")], b"5").await.status, 204);
    let delete = rig.ask("DELETE", "/v1/kv/c", &[("if-match", "\"2\"")], b"").await;
    assert_eq!((delete.status, delete.header("etag")), (412, Some("\"3\"")));
    assert_eq!(
        rig.get("/v1/kv/c").await.text(),
        "5",
        "a write took effect whose condition did not hold"
    );
    assert_eq!(rig.ask("DELETE", "/v1/kv/c", &[("if-match", "\"3\"")], b"").await.status, 204);

    let writes = rig.fake.writes.load(std::sync::atomic::Ordering::SeqCst);
    for (headers, code) in [
        (&[("if-match", "3")][..], "bad_etag"),
        (&[("if-match", "\"1\", \"2\"")], "bad_condition"),
        (&[("if-none-match", "\"1\"")], "bad_condition"),
        (&[("if-match", "*"), ("if-none-match", "*")], "contradiction"),
    ] {
        rig.ask("PUT", "/v1/kv/c", headers, b"x").await.problem(400, code);
    }
    assert_eq!(rig.fake.writes.load(std::sync::atomic::Ordering::SeqCst), writes);
}

#[tokio::test]
async fn reads_are_conditional_too() {
    let rig = Rig::start().await;
    rig.put("r", b"1").await;
    let get =
        |headers: &'static [(&'static str, &'static str)]| rig.ask("GET", "/v1/kv/r", headers, b"");
    let same = get(&[("if-none-match", "W/\"1\", \"9\"")]).await;
    assert_eq!(
        (same.status, same.header("etag"), same.header("flotilla-shard")),
        (304, Some("\"1\""), Some("4"))
    );
    assert_eq!(get(&[("if-none-match", "*")]).await.status, 304);
    assert_eq!(get(&[("if-none-match", "\"2\"")]).await.status, 200);
    assert_eq!(get(&[("if-match", "\"1\"")]).await.status, 200);
    let moved = get(&[("if-match", "\"2\"")]).await;
    moved.problem(412, "precondition_failed");
    assert_eq!(moved.header("etag"), Some("\"1\""));
    get(&[("if-none-match", "1")]).await.problem(400, "bad_etag");
    rig.ask("GET", "/v1/kv/none", &[("if-none-match", "*")], b"").await.problem(404, "no_such_key");
    rig.ask("GET", "/v1/kv/none", &[("if-none-match", "bad")], b"").await.problem(400, "bad_etag");
}

#[tokio::test]
async fn stale_reads_say_how_old_they_are() {
    let rig = Rig::start().await;
    rig.put("s", b"1").await;
    let stale = rig.get("/v1/kv/s?consistency=stale&max_staleness=2s").await;
    assert_eq!(
        (stale.status, stale.header("flotilla-applied"), stale.header("flotilla-age")),
        (200, Some("77"), Some("1.250"))
    );
    for consistency in ["linearizable", "lease"] {
        let read = rig.get(&format!("/v1/kv/s?consistency={consistency}")).await;
        assert_eq!((read.status, read.header("flotilla-age")), (200, None));
    }
    rig.get("/v1/kv/s?max_staleness=2s").await.problem(400, "contradiction");
    rig.get("/v1/kv/s?consistency=eventual").await.problem(400, "bad_parameter");
}

#[tokio::test]
async fn malformed_requests_say_what_is_allowed() {
    let rig = Rig::start().await;
    assert!(
        rig.get("/v1/kv/").await.problem(400, "key_empty")["detail"]
            .as_str()
            .unwrap()
            .contains("1 to 4096 bytes")
    );
    for broken in ["%", "%2", "%zz", "a%"] {
        rig.get(&format!("/v1/kv/{broken}")).await.problem(400, "bad_percent_encoding");
    }
    let long = rig.put(&"k".repeat(4097), b"v").await.problem(414, "key_too_long");
    assert_eq!((&long["limit"], &long["actual"]), (&4096.into(), &4097.into()));
    assert_eq!(rig.put(&"%6b".repeat(4096), b"v").await.status, 204);
    rig.get("/v1/kv/a?color=red").await.problem(400, "unknown_parameter");
    rig.ask("DELETE", "/v1/kv/a?x=1", &[], b"").await.problem(400, "unknown_parameter");
    rig.ask("PUT", "/v1/kv/a?ttl=30s", &[], b"v").await.problem(501, "not_implemented");
    rig.ask("PUT", "/v1/kv/a", &[("content-encoding", "gzip")], b"v")
        .await
        .problem(415, "unsupported_content_encoding");
    assert_eq!(
        rig.ask(
            "PUT",
            "/v1/kv/a",
            &[("content-encoding", "identity"), ("content-type", "text/html")],
            b"v"
        )
        .await
        .status,
        204
    );
    for method in ["POST", "PATCH", "OPTIONS", "BREW"] {
        let refused = rig.ask(method, "/v1/kv/a", &[], b"").await;
        refused.problem(405, "method_not_allowed");
        assert_eq!(refused.header("allow"), Some("GET, HEAD, PUT, DELETE"), "{method}");
    }
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_with_limit_and_size() {
    let rig = Rig::start().await;
    let value = vec![7; (1 << 20) + 1];
    let refused = rig.put("big", &value).await;
    let problem = refused.problem(413, "value_too_large");
    assert_eq!(
        (&problem["limit"], &problem["actual"]),
        (&(1 << 20).into(), &((1 << 20) + 1).into())
    );
    assert_eq!(refused.header("connection"), Some("close"));
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/big HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..17 {
        client.raw(format!("10000\r\n{}\r\n", "x".repeat(65536))).await;
    }
    client.answer(false).await.unwrap().problem(413, "value_too_large");
    assert_eq!(rig.get("/v1/kv/big").await.status, 404);
}

#[tokio::test]
async fn refusals_keep_their_outcome() {
    let rig = Rig::start().await;
    let shard = ShardId(3);
    for (refusal, status, outcome, retry_after) in [
        (Refusal::NoLeader { shard }, 503, "not_applied", Some("1")),
        (Refusal::ShuttingDown, 503, "not_applied", Some("1")),
        (Refusal::Expired { shard }, 503, "not_applied", Some("1")),
        (Refusal::Overloaded { what: "proposals".into(), limit: 3 }, 429, "not_applied", Some("1")),
        (Refusal::OutcomeUnknown { shard }, 504, "unknown", None),
        (Refusal::DiskFull { free_bytes: 1, reserve_bytes: 2 }, 507, "not_applied", None),
        (Refusal::Internal { why: "x".into(), outcome: Outcome::Unknown }, 500, "unknown", None),
    ] {
        let code = refusal.code();
        rig.fake.break_shard(3, refusal);
        let answer = rig.put("h", b"v").await;
        assert_eq!(answer.problem(status, code)["outcome"], outcome);
        assert_eq!(answer.header("retry-after"), retry_after, "{code}");
        assert!(answer.header("flotilla-node").is_some());
    }
    rig.fake.break_shard(3, Refusal::NoLeader { shard });
    assert_eq!(rig.get("/v1/kv/h").await.header("flotilla-shard"), Some("3"));
}
