//! Answers that come before the whole request did: they arrive, whatever the client still sends.

use crate::{Client, Rig};
use flotilla_ops::Limits;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Sends a head, then a body as a simple client does: all of it, and only then looks for an answer.
async fn send_all(client: &mut Client, head: &str, body: &[u8]) {
    client.raw(head).await;
    let (first, rest) = body.split_at(100_000);
    client.raw(first).await;
    // A library that reads while it writes would take an answer for the end, and close.
    let early = tokio::time::timeout(Duration::from_millis(30), client.stream.readable()).await;
    assert!(early.is_err(), "an answer while the body is still sent");
    for piece in rest.chunks(100_000) {
        client
            .stream
            .write_all(piece)
            .await
            .expect("the connection broke before the body was sent");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_refusal_arrives_after_a_large_body() {
    let limits =
        Limits { in_flight_bytes_max: 1 << 20, batch_bytes_max: 1 << 20, ..Limits::default() };
    let rig = Rig::with(limits).await;
    let body = vec![b'x'; 24 << 20];
    let chunked = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    for (head, status) in [
        ("PUT /v1/kv/a", 413),
        ("PUT /v1/kv/a#b", 400),
        ("POST /v1/kv/a", 405),
        ("PUT /v1/nothing", 404),
        ("POST /v1/batch", 415),
        ("POST /v1/batch HTTP/1.1\r\ncontent-type: application/json", 413),
        ("PUT /v1/kv/a HTTP/1.1\r\norigin: http://evil.example", 403),
        ("GET /livez", 200),
    ] {
        let head =
            if head.contains("HTTP/1.1") { head.to_owned() } else { format!("{head} HTTP/1.1") };
        let of_length = format!("{head}\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        let of_chunks = format!("{head}\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        for (head, body) in [(&of_length, &body), (&of_chunks, &chunked)] {
            let mut client = rig.client().await;
            send_all(&mut client, head, body).await;
            let answer =
                client.answer(false).await.unwrap_or_else(|| panic!("no answer to {head}"));
            assert_eq!(answer.status, status, "{head}");
            assert_eq!(answer.header("connection"), Some("close"), "{head}");
            assert!(client.is_closed().await);
        }
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn nobody_is_waited_for_who_sends_nothing() {
    let rig = Rig::start().await;
    // Waits to be told to go on, and is told no.
    let begun = Instant::now();
    let mut client = rig.client().await;
    client
        .raw(
            "PUT /v1/kv/e HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\
             expect: 100-continue\r\n\r\n",
        )
        .await;
    client.answer(false).await.unwrap().problem(413, "value_too_large");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    // Has fallen silent in the midst of it.
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/e HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\nabc").await;
    client.answer(false).await.unwrap().problem(413, "value_too_large");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // Sends no more at all.
    let mut client = rig.client().await;
    let begun = Instant::now();
    client.raw("PUT /v1/kv/e HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\nabc").await;
    client.stream.shutdown().await.unwrap();
    client.answer(false).await.unwrap().problem(413, "value_too_large");
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_small_body_that_nobody_wants_costs_no_connection() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for _ in 0..3 {
        client.send("GET", "/livez", &[], b"hello").await;
        assert_eq!(client.answer(false).await.unwrap().status, 200);
        client.send("DELETE", "/v1/kv/a", &[], b"hello").await;
        let answer = client.answer(false).await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (204, None));
        client.send("PUT", "/v1/kv/a", &[("if-match", "\"77\"")], &[b'x'; 70_000]).await;
        let answer = client.answer(false).await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (412, None), "that body was read");
    }
}

/// A client may send its next request, with a body, before it reads the answer to the one before:
/// that is no early answer to it.
#[tokio::test]
async fn the_body_of_a_request_that_waits_for_its_turn_is_kept() {
    let rig = Rig::start().await;
    for i in 0..8 {
        rig.put(&format!("big{i}"), &vec![b'v'; 1 << 20]).await;
    }
    for framed in [
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = rig.client().await;
        let page = "GET /v1/kv?prefix=big&max_bytes=8388608 HTTP/1.1\r\nhost: x\r\n\r\n";
        client.raw(format!("{page}PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\n{framed}")).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(rig.get("/v1/kv/a").await.status, 404, "the page was taken already");
        let page = client.answer(false).await.unwrap();
        assert!(
            page.status == 200 && page.body.len() > 7_000_000,
            "{} {}",
            page.status,
            page.body.len()
        );
        let put = client.answer(false).await.expect("an answer behind the page");
        assert_eq!((put.status, put.header("connection")), (204, None), "{}", put.text());
        assert_eq!(rig.get("/v1/kv/a").await.text(), "hello");
        client.send("DELETE", "/v1/kv/a", &[], b"").await;
        assert_eq!(client.answer(false).await.unwrap().status, 204);
    }
}

/// Bytes of a body that are thrown away must not be made up for by the head behind it: hyper would
/// find another head in the midst of it.
#[tokio::test]
async fn nothing_behind_a_body_is_taken_for_a_part_of_it() {
    let rig = Rig::start().await;
    rig.fill(&["victim"]).await;
    for kib in 1..=16 {
        let body = "A".repeat(kib << 10);
        // hyper reads 8 KiB at first: the rest of the body ends where the hidden head begins.
        let hidden_at = body.len().saturating_sub(8 << 10).max(64);
        let mut harmless = "GET /v1/kv/harmless HTTP/1.1\r\nx: ".to_owned();
        harmless.push_str(&"z".repeat(hidden_at - harmless.len()));
        harmless.push_str("DELETE /v1/kv/victim HTTP/1.1\r\nhost: x\r\n\r\n");
        let of_length = format!("content-length: {}\r\n\r\n{body}", body.len());
        let small = format!("400\r\n{}\r\n", "A".repeat(1 << 10)).repeat(kib);
        let (one, many) =
            (format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()), format!("{small}0\r\n\r\n"));
        let of_chunks =
            [one, many].map(|chunks| format!("transfer-encoding: chunked\r\n\r\n{chunks}"));
        for framed in [&of_length, &of_chunks[0], &of_chunks[1]] {
            for head in [
                "PUT /v1/kv/x HTTP/1.1\r\nif-match: bad",
                "GET /v1/kv/x HTTP/1.1",
                "DELETE /v1/kv/x HTTP/1.1",
            ] {
                let what = format!("{head:?} with {kib} KiB, {:?}", &framed[..20]);
                let mut client = rig.client().await;
                client
                    .raw(format!(
                        "GET /v1/kv/victim HTTP/1.1\r\nhost: x\r\n\r\n{head}\r\n\
                         host: x\r\n{framed}{harmless}"
                    ))
                    .await;
                let mut answers = Vec::new();
                while answers.len() < 3 {
                    let answer =
                        tokio::time::timeout(Duration::from_secs(3), client.answer(false)).await;
                    let answer =
                        answer.unwrap_or_else(|_| panic!("{what}: neither an answer nor the end"));
                    let Some(answer) = answer else { break };
                    answers.push((answer.status, answer.header("connection") == Some("close")));
                }
                let second = if head.starts_with("PUT") {
                    400
                } else if head.starts_with("GET") {
                    404
                } else {
                    204
                };
                match answers[..] {
                    [(200, false), (status, false), (404, false)]
                    | [(200, false), (status, true)]
                        if status == second => {}
                    _ => panic!("{what}: {answers:?}"),
                }
                if kib < 8 && framed == &of_length {
                    assert_eq!(answers.len(), 3, "{what}: a small body costs no connection");
                }
            }
        }
    }
    assert_eq!(
        rig.get("/v1/kv/victim").await.status,
        200,
        "a head that was never sent was carried out"
    );
}
