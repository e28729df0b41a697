//! What is refused before any route is asked: web pages from elsewhere, foreign hosts, heads that
//! can be read in two ways. And what every answer has, whatever it is.

use crate::Rig;
use flotilla_ops::{Limits, Pages};
use std::sync::atomic::Ordering;

const BATCH: &[u8] = br#"{"ops":[{"put":{"key":"csrf","value":"written"}}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_page_from_elsewhere_can_neither_write_nor_read() {
    let rig = Rig::start().await;
    let (evil, cross) = (("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"));
    for headers in [
        &[evil][..],
        &[cross],
        &[evil, cross, JSON],
        &[("origin", "null"), JSON],
        &[("origin", "http://127.0.0.1:1")],
    ] {
        rig.ask("POST", "/v1/batch", headers, BATCH).await.problem(403, "foreign_origin");
        for method in ["PUT", "DELETE", "GET", "OPTIONS"] {
            let refused = rig.ask(method, "/v1/kv/csrf", headers, b"").await;
            refused.problem(403, "foreign_origin");
            assert_eq!(refused.header("access-control-allow-origin"), None);
        }
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
    // A page of our own, and whoever is no browser.
    let own = [("origin", "http://test"), ("sec-fetch-site", "same-origin"), JSON];
    assert_eq!(rig.ask("POST", "/v1/batch", &own, BATCH).await.status, 200);
    assert_eq!(rig.ask("POST", "/v1/batch", &[JSON], BATCH).await.status, 200);
}

#[tokio::test]
async fn on_loopback_a_name_that_somebody_else_may_own_is_not_served() {
    let rig = Rig::start().await;
    let put = |host: &str| {
        format!("PUT /v1/kv/rebound HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1\r\n\r\nx")
    };
    for (host, status) in [
        ("rebind.evil.example:7001", 403),
        ("192.168.0.9:7001", 403),
        ("localhost:7001", 204),
        ("127.0.0.1", 204),
        ("[::1]:80", 204),
        ("db-1:7001", 204),
    ] {
        let mut client = rig.client().await;
        client.raw(put(host)).await;
        let answer = client.answer(false).await.unwrap();
        assert_eq!(answer.status, status, "{host}");
        if status == 403 {
            let problem = answer.problem(403, "foreign_host");
            assert!(problem["detail"].as_str().unwrap().contains("http_hosts"), "{problem}");
        }
    }
    // The target's own host counts, wherever it stands.
    let mut client = rig.client().await;
    client.raw("GET http://evil.example/v1/kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.answer(false).await.unwrap().problem(403, "foreign_host");
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_is_configured_is_served_and_may_see_the_answers() {
    let pages =
        Pages::new(&["db.example.com".into()], &["https://console.example.com".into()]).unwrap();
    let rig = Rig::with_pages(Limits::default(), pages).await;
    let mut client = rig.client().await;
    client.raw("GET /livez HTTP/1.1\r\nhost: db.example.com\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200);
    let origin = ("origin", "https://console.example.com");
    let asked = rig
        .ask("OPTIONS", "/v1/kv/a", &[origin, ("access-control-request-method", "PUT")], b"")
        .await;
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (204, Some(origin.1)));
    assert!(asked.header("access-control-allow-methods").unwrap().contains("PUT"));
    for (method, status) in [("PUT", 204), ("GET", 200), ("POST", 405)] {
        let answer =
            rig.ask(method, "/v1/kv/a", &[origin, ("sec-fetch-site", "cross-site")], b"").await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (status, Some(origin.1)),
            "{method}"
        );
        assert_eq!(answer.header("vary"), Some("Origin"));
    }
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused() {
    let rig = Rig::start().await;
    let chunked = "2\r\nhi\r\n0\r\n\r\n";
    for (fields, body, status, code) in [
        ("", "", 400, "bad_host"),
        ("host: a\r\nhost: a\r\n", "", 400, "bad_host"),
        (
            "host: a\r\ntransfer-encoding: gzip, chunked\r\n",
            chunked,
            501,
            "unsupported_transfer_encoding",
        ),
        (
            "host: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            chunked,
            501,
            "unsupported_transfer_encoding",
        ),
        ("host: a\r\ntransfer-encoding: gzip\r\n", "", 501, "unsupported_transfer_encoding"),
        ("host: a\r\ntransfer-encoding: identity\r\n", "", 501, "unsupported_transfer_encoding"),
        (
            "host: a\r\ntransfer-encoding: xchunked\r\n",
            chunked,
            501,
            "unsupported_transfer_encoding",
        ),
        (
            "host: a\r\ntransfer-encoding: chunked, gzip\r\n",
            chunked,
            501,
            "unsupported_transfer_encoding",
        ),
        ("host: a\r\ncontent-length: 18446744073709551615\r\n", "hi", 413, "body_too_large"),
        ("host: a\r\ncontent-length: 9223372036854775807\r\n", "hi", 413, "value_too_large"),
        ("host: a\r\ncontent-length: 99999999999999999999999\r\n", "hi", 413, "body_too_large"),
        (
            "host: a\r\ncontent-length: 2\r\ncontent-encoding: identity\r\n\
             content-encoding: gzip\r\n",
            "hi",
            415,
            "unsupported_content_encoding",
        ),
        ("host: a\r\ncontent-length: 2\r\nexpect: money\r\n", "hi", 417, "expectation_failed"),
    ] {
        let mut client = rig.client().await;
        client.raw(format!("PUT /v1/kv/two HTTP/1.1\r\n{fields}\r\n{body}")).await;
        let answer = client.answer(false).await.unwrap();
        answer.problem(status, code);
        assert_eq!(answer.header("connection"), Some("close"), "{fields}");
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
    let mut client = rig.client().await;
    client.raw("GET /livez HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200, "HTTP/1.0 names no host");
}

#[tokio::test]
async fn nobody_keeps_an_answer_and_every_answer_has_a_date() {
    let rig = Rig::start().await;
    rig.fill(&["a"]).await;
    let json = [JSON];
    for (method, target, headers, status) in [
        ("GET", "/v1/kv/a", &[][..], 200),
        ("HEAD", "/v1/kv/a", &[], 200),
        ("GET", "/v1/kv/a", &[("if-none-match", "*")], 304),
        ("GET", "/v1/kv/none", &[], 404),
        ("PUT", "/v1/kv/a", &[], 204),
        ("DELETE", "/v1/kv/a", &[], 204),
        ("GET", "/v1/kv?prefix=a", &[], 200),
        ("GET", "/v1/kv?prefix=a", &[("accept", "application/x-ndjson")], 200),
        ("POST", "/v1/batch", &json, 400),
        ("GET", "/v1/admin/cluster", &[], 200),
        ("GET", "/v1/limits", &[], 200),
        ("GET", "/metrics", &[], 200),
        ("GET", "/nothing", &[], 404),
    ] {
        let answer = rig.ask(method, target, headers, b"").await;
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (status, Some("no-store")),
            "{method} {target}"
        );
        let date = answer.header("date").unwrap();
        assert!(date.ends_with(" GMT") && !date.contains("1970"), "{date}");
        assert_eq!(answer.headers.iter().filter(|(name, _)| name == "date").count(), 1);
    }
    // Also what is said before there is a request.
    let mut client = rig.client().await;
    client.raw("rubbish\r\n\r\n").await;
    let answer = client.answer(false).await.unwrap();
    answer.problem(400, "malformed_http");
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        assert_eq!(answer.header(name), Some(value));
    }
    assert!(answer.header("date").is_some());
}

#[tokio::test]
async fn an_error_does_not_send_a_whole_body_back() {
    let rig = Rig::start().await;
    let body = format!("{{\"{}\":1}}", "x".repeat(4 << 20));
    let answer = rig.ask("POST", "/v1/batch", &[JSON], body.as_bytes()).await;
    answer.problem(400, "malformed_json");
    assert!(answer.body.len() < 4096, "{} bytes", answer.body.len());
}
