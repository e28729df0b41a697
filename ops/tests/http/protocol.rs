//! HTTP itself: both versions, keep-alive, pipelining, heads that make no sense, too many of
//! everything.

use crate::{Client, Rig};
use bytes::Bytes;
use flotilla_ops::{BindError, Limits, Metrics, Pages, Server, Serves};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test]
async fn http2_in_clear_text_is_the_same() {
    let rig = Rig::start().await;
    let client =
        HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let ask = |method: &'static str, path: &'static str, body: Bytes| {
        let (client, addr) = (client.clone(), rig.addr);
        async move {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://{addr}{path}"))
                .body(Full::new(body))
                .unwrap();
            let (parts, body) = client.request(request).await.unwrap().into_parts();
            assert_eq!(parts.version, http::Version::HTTP_2);
            (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
        }
    };
    let value = Bytes::from(vec![3; 1 << 20]);
    let (status, headers, _) = ask("PUT", "/v1/kv/a%2F..//b", value.clone()).await;
    assert_eq!((status, headers["etag"].to_str().unwrap()), (204, "\"1\""));
    let (status, headers, body) = ask("GET", "/v1/kv/a/..//b", Bytes::new()).await;
    assert_eq!((status, headers["flotilla-shard"].to_str().unwrap()), (200, "2"));
    assert!(body == value);
    let (status, headers, body) = ask("HEAD", "/v1/kv/a/..//b", Bytes::new()).await;
    assert_eq!(
        (status, headers["content-length"].to_str().unwrap(), body.len()),
        (200, "1048576", 0)
    );
    let (status, headers, body) = ask("PUT", "/v1/kv/big", vec![0; (1 << 20) + 1].into()).await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (413, "application/problem+json")
    );
    assert!(std::str::from_utf8(&body).unwrap().contains("\"actual\":1048577"));
    // Many at a time on one connection.
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(50);
    let gets = (0..20).map(|_| ask("GET", "/v1/kv/none", Bytes::new()));
    for (status, ..) in futures_util::future::join_all(gets).await {
        assert_eq!(status, 404);
    }
    assert!(rig.fake.under_way_max.load(Ordering::SeqCst) >= 15, "streams wait for each other");
}

#[tokio::test]
async fn a_connection_serves_many_requests_also_when_they_come_at_once() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let mut requests = String::new();
    for i in 0..50 {
        requests.push_str(&format!(
            "PUT /v1/kv/p{i} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{i:02}"
        ));
        requests.push_str(&format!("GET /v1/kv/p{i} HTTP/1.1\r\nhost: x\r\n\r\n"));
    }
    client.raw(requests).await;
    for i in 0..50 {
        assert_eq!(client.answer(false).await.unwrap().status, 204);
        assert_eq!(client.answer(false).await.unwrap().text(), format!("{i:02}"));
    }
}

#[tokio::test]
async fn heads_that_are_no_http_get_a_problem_too() {
    let rig = Rig::start().await;
    let many = (0..150).map(|i| format!("x{i}: y\r\n")).collect::<String>();
    for (head, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "malformed_http"),
        ("GET /v1/kv/a HTTP/9.9\r\n\r\n".to_owned(), 400, "malformed_http"),
        ("GET /v1/kv/a HTTP/1.1\r\nbad header: x\r\n\r\n".to_owned(), 400, "malformed_http"),
        (
            "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n".to_owned(),
            400,
            "malformed_http",
        ),
        (format!("GET /livez HTTP/1.1\r\n{many}\r\n"), 431, "header_too_large"),
        (
            format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000)),
            431,
            "header_too_large",
        ),
        (
            format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(900_000)),
            431,
            "header_too_large",
        ),
        (
            format!("GET /v1/kv/{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(20_000)),
            414,
            "key_too_long",
        ),
    ] {
        let mut client = rig.client().await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, head.as_bytes()).await;
        let shown = &head[..head.len().min(60)];
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer to {shown}"));
        answer.problem(status, code);
        if code != "key_too_long" {
            assert_eq!(answer.header("connection"), Some("close"), "{shown}");
            assert!(client.is_closed().await, "{shown}");
        }
    }
    // HEAD gets no body, of whatever is wrong.
    for (head, status) in [
        ("HEAD /livez HTTP/1.1\r\nbad header: x\r\n\r\n".to_owned(), 400),
        (format!("HEAD /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000)), 431),
        (format!("HEAD /{} HTTP/1.1\r\n\r\n", "y".repeat(40_000)), 414),
    ] {
        let mut client = rig.client().await;
        client.raw(head).await;
        let answer = client.answer(true).await.unwrap();
        assert_eq!(
            (answer.status, answer.header("x-content-type-options")),
            (status, Some("nosniff"))
        );
        assert!(client.is_closed().await, "a body");
    }
    // On a connection that served something before, and behind a request in the same packet, too.
    let mut client = rig.client().await;
    client.raw("GET /livez HTTP/1.1\r\nhost: x\r\n\r\nrubbish\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200);
    client.answer(false).await.unwrap().problem(400, "malformed_http");
    let mut client = rig.client().await;
    client.send("GET", "/livez", &[], b"").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200);
    client.raw("rubbish\r\n\r\n").await;
    client.answer(false).await.unwrap().problem(400, "malformed_http");
}

#[tokio::test]
async fn a_value_that_looks_like_an_error_is_left_alone() {
    let rig = Rig::start().await;
    let value = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    rig.put("trap", value).await;
    assert_eq!(rig.get("/v1/kv/trap").await.body, value);
}

#[tokio::test]
async fn a_body_that_breaks_off_writes_nothing() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    if let Some(answer) = client.answer(false).await {
        answer.problem(400, "body_incomplete");
    }
    let mut client = rig.client().await;
    client
        .raw(
            "PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\n\
             half\r\nzz\r\n",
        )
        .await;
    client.answer(false).await.unwrap().problem(400, "body_incomplete");
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.get("/v1/kv/half").await.status, 404);
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client
        .raw(
            "PUT /v1/kv/e HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n",
        )
        .await;
    assert_eq!(client.answer(false).await.unwrap().status, 100);
    client.raw("abc").await;
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    // A value that is too large is refused before it is sent.
    client
        .raw(
            "PUT /v1/kv/e HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\
             expect: 100-continue\r\n\r\n",
        )
        .await;
    client.answer(false).await.unwrap().problem(413, "value_too_large");
}

#[tokio::test]
async fn too_many_connections_requests_or_bytes_are_refused() {
    let rig = Rig::with(Limits { connections_max: 2, ..Limits::default() }).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(800);
    let (mut first, mut second) = (rig.client().await, rig.client().await);
    first.send("GET", "/v1/kv/a", &[], b"").await;
    second.send("GET", "/v1/kv/a", &[], b"").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = rig.get("/v1/kv/a").await;
    assert_eq!(refused.problem(503, "too_many_connections")["limit"], 2);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(first.answer(false).await.unwrap().status, 404);
    assert_eq!(second.answer(false).await.unwrap().status, 404);
    drop(second);
    assert_eq!(
        rig.get("/v1/kv/a").await.status,
        404,
        "a connection that closed, or is idle, keeps others out"
    );

    let rig = Rig::with(Limits { requests_in_flight_max: 1, ..Limits::default() }).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(800);
    let mut slow = rig.client().await;
    slow.send("GET", "/v1/kv/a", &[], b"").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = rig.get("/v1/kv/b").await;
    assert_eq!(refused.problem(429, "overloaded")["retryable"], true);
    assert_eq!(slow.answer(false).await.unwrap().status, 404);
    assert_eq!(rig.get("/v1/kv/b").await.status, 404);

    let rig = Rig::with(Limits {
        in_flight_bytes_max: 1 << 20,
        batch_bytes_max: 1 << 20,
        ..Limits::default()
    })
    .await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(800);
    let mut slow = rig.client().await;
    slow.send("PUT", "/v1/kv/a", &[], &vec![0; 700_000]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let problem = rig.put("b", &vec![0; 700_000]).await.problem(429, "overloaded");
    assert_eq!(problem["limit"], 1 << 20);
    assert_eq!(slow.answer(false).await.unwrap().status, 204);
    assert_eq!(rig.put("b", &vec![0; 700_000]).await.status, 204, "the bytes were not given back");
}

#[tokio::test]
async fn shutting_down_answers_what_is_in_flight() {
    let rig = Rig::start().await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(800);
    let mut idle = rig.client().await;
    let mut used = rig.client().await;
    used.send("GET", "/livez", &[], b"").await;
    assert_eq!(used.answer(false).await.unwrap().status, 200);
    let mut busy = rig.client().await;
    busy.send("PUT", "/v1/kv/a", &[], b"1").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let addr = rig.addr;
    let shutdown = tokio::spawn(rig.server.shutdown(Duration::from_secs(5)));
    assert!(idle.is_closed().await && used.is_closed().await, "idle connections stay");
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "it still accepts");
    let answer = busy.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (204, Some("close")));
    assert!(busy.is_closed().await);
    assert_eq!(shutdown.await.unwrap(), 0);

    let rig = Rig::start().await;
    *rig.fake.delay.lock().unwrap() = Duration::from_secs(60);
    let mut stuck = rig.client().await;
    stuck.send("GET", "/v1/kv/a", &[], b"").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.server.shutdown(Duration::from_millis(100)).await, 1);
    assert!(stuck.answer(false).await.is_none());
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let rig = Rig::start().await;
    let metrics = Arc::new(Metrics::default());
    let error = Server::bind(
        rig.addr,
        Limits::default(),
        Serves::Everything(Pages::default()),
        rig.fake.clone(),
        rig.fake.clone(),
        rig.fake.clone(),
        metrics,
    )
    .await;
    let error = error.err().expect("two servers on one port");
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    assert!(
        error.to_string().contains(&format!("{} is in use already", rig.addr))
            && !error.to_string().contains('\n')
    );
    let mut client = Client::connect(rig.addr).await;
    client.send("GET", "/livez", &[], b"").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_next_request() {
    let rig = Rig::start().await;
    for next in ["GET /v1/kv/b HT", "rubbish\r\n\r\n"] {
        let mut client = rig.client().await;
        client
            .raw(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1{next}"))
            .await;
        let answer = tokio::time::timeout(Duration::from_secs(2), client.answer(false))
            .await
            .expect("held back");
        assert_eq!(answer.expect("forgotten").status, 204, "{next:?}");
    }
}
