//! Clients that are too slow: with their head, their body, their reading, or with saying anything
//! at all.

use crate::Rig;
use crate::h2::H2;
use flotilla_ops::Limits;
use std::time::{Duration, Instant};

fn impatient() -> Limits {
    let short = Duration::from_millis(400);
    Limits {
        header_read_timeout: short,
        body_read_timeout: short,
        write_timeout: short,
        idle_timeout: Duration::from_secs(3),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_answered_with_408() {
    let rig = Rig::with(impatient()).await;
    for start in ["G", "PRI * HT", "GET /livez HTTP/1.1\r\nx: y\r\n"] {
        let begun = Instant::now();
        let mut client = rig.client().await;
        client.raw(start).await;
        match client.answer(false).await {
            Some(answer) => drop(answer.problem(408, "header_timeout")),
            None => assert!(start.starts_with("PRI"), "{start:?} got no answer"),
        }
        assert!(
            begun.elapsed() < Duration::from_millis(2500),
            "{start:?} took {:?}",
            begun.elapsed()
        );
        assert!(client.is_closed().await);
    }
    // Dripping does not help: the whole head is timed.
    let mut client = rig.client().await;
    client.send("GET", "/livez", &[], b"").await;
    assert_eq!(client.answer(false).await.unwrap().status, 200);
    let begun = Instant::now();
    for byte in "GET /livez HTTP/1.1".bytes() {
        if tokio::io::AsyncWriteExt::write_all(&mut client.stream, &[byte]).await.is_err()
            || begun.elapsed() > Duration::from_millis(900)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    client.answer(false).await.unwrap().problem(408, "header_timeout");
}

/// Some clients end a body with an empty line that belongs to nothing (RFC 9112, section 2.2).
#[tokio::test]
async fn an_empty_line_begins_no_head() {
    let rig = Rig::with(impatient()).await;
    for line in ["\r\n", "\n", "\r\n\r\n"] {
        let mut client = rig.client().await;
        client
            .raw(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1{line}"))
            .await;
        assert_eq!(client.answer(false).await.unwrap().status, 204);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            client.raw(format!("GET /v1/kv/a HTTP/1.1\r\nhost: x\r\n\r\n{line}")).await;
            assert_eq!(client.answer(false).await.unwrap().status, 200, "{line:?}");
        }
        // It keeps no connection open.
        let begun = Instant::now();
        while tokio::io::AsyncWriteExt::write_all(&mut client.stream, line.as_bytes()).await.is_ok()
        {
            assert!(begun.elapsed() < Duration::from_secs(5), "empty lines are taken for requests");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Frames that ask for nothing keep no connection open; an answer that takes long does.
#[tokio::test]
async fn an_idle_http2_connection_is_closed_whatever_signs_of_life_it_gives() {
    let rig = Rig::with(Limits { idle_timeout: Duration::from_secs(1), ..Limits::default() }).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    let mut client = H2::connect(rig.addr, 1 << 20).await;
    client.get("/v1/kv/large").await;
    assert_eq!(client.take(1, 4e5).await, 1, "closed while its answer was on its way");
    let begun = Instant::now();
    while client.ping().await && client.read_heads(Duration::from_millis(100)).await.1 {
        assert!(begun.elapsed() < Duration::from_secs(3), "pings keep an idle connection");
    }
    assert!(begun.elapsed() > Duration::from_millis(800), "closed after {:?}", begun.elapsed());
}

#[tokio::test]
async fn http2_has_as_long_for_a_head_and_no_longer() {
    let rig = Rig::with(impatient()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let block = [0, 0, 60, 1, 5, 0, 0, 0, 1, 0x82, 0x86];
    // The preface, the first frame, a block, a frame of it that is whole but not the last.
    let started = [0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82];
    for (whole, dribbled) in [
        (&preface[..2], &preface[2..]),
        (&preface[..], &settings[..3]),
        (&[&preface[..], &settings].concat(), &block[..]),
        (&[&preface[..], &settings].concat(), &started[..]),
    ] {
        let begun = Instant::now();
        let mut client = rig.client().await;
        client.raw(whole).await;
        for byte in dribbled.iter().chain([0; 20].iter().take(if whole.len() > 24 { 9 } else { 0 }))
        {
            if tokio::io::AsyncWriteExt::write_all(&mut client.stream, &[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        while rig.server.connections() > 0 {
            assert!(
                begun.elapsed() < Duration::from_millis(2000),
                "{} whole bytes: {:?}",
                whole.len(),
                begun.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            begun.elapsed() > Duration::from_millis(350),
            "{} whole bytes: {:?}",
            whole.len(),
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered_with_408_and_writes_nothing() {
    let rig = Rig::with(impatient()).await;
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf").await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!(answer.problem(408, "body_timeout")["outcome"], "not_applied");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(rig.get("/v1/kv/slow").await.status, 404);
    // A body that keeps coming may take longer than one silence may.
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/steady HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n").await;
    for byte in b"abcdefgh" {
        tokio::time::sleep(Duration::from_millis(60)).await;
        client.raw([*byte]).await;
    }
    assert_eq!(client.answer(false).await.unwrap().status, 204);
}

#[tokio::test]
async fn idle_connections_are_closed_later_and_busy_ones_are_not() {
    let rig = Rig::with(impatient()).await;
    let mut silent = rig.client().await;
    let mut used = rig.client().await;
    used.send("GET", "/livez", &[], b"").await;
    assert_eq!(used.answer(false).await.unwrap().status, 200);
    let begun = Instant::now();
    // Longer than the head's timeout, and the connection still serves.
    tokio::time::sleep(Duration::from_millis(800)).await;
    used.send("GET", "/livez", &[], b"").await;
    assert_eq!(used.answer(false).await.unwrap().status, 200);
    assert!(silent.is_closed().await);
    assert!(begun.elapsed() > Duration::from_millis(2000), "closed after {:?}", begun.elapsed());
    assert!(used.is_closed().await);
    // An answer that takes longer than every timeout is waited for.
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(3500);
    assert_eq!(rig.get("/v1/kv/a").await.status, 404);
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_little_and_is_closed() {
    let rig = Rig::with(impatient()).await;
    let value = vec![b'v'; 1 << 20];
    for i in 0..64 {
        rig.put(&format!("k{i:02}"), &value).await;
    }
    let mut client = rig.client().await;
    client.send("GET", "/v1/kv", &[("accept", "application/x-ndjson")], b"").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let early = rig.fake.scans.load(std::sync::atomic::Ordering::SeqCst);
    assert!(early < 40, "{early} parts of a stream were made for a client that reads none");
    let begun = Instant::now();
    while rig.server.connections() > 0 {
        assert!(
            begun.elapsed() < Duration::from_millis(2500),
            "a client that does not read holds its connection"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(client.answer(false).await.is_none(), "a stream that was cut off looks whole");
}

/// However many questions a request comes to, all of them share its time.
#[tokio::test]
async fn a_request_of_many_questions_ends_in_time() {
    let rig =
        Rig::with(Limits { request_timeout: Duration::from_millis(500), ..Limits::default() })
            .await;
    rig.fill(&["a", "h", "q"]).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(200);
    // Those on one key go one after the other.
    let ops = vec![serde_json::json!({"get": {"key": "a"}}); 10];
    let body = serde_json::json!({ "ops": ops }).to_string();
    let answer = rig
        .ask("POST", "/v1/batch", &[("content-type", "application/json")], body.as_bytes())
        .await
        .json();
    assert_eq!(
        (&answer["results"][0]["status"], &answer["results"][9]["status"]),
        (&200.into(), &503.into()),
        "{answer}"
    );
    assert_eq!(
        (&answer["results"][9]["code"], &answer["results"][9]["outcome"]),
        (&"expired".into(), &"not_applied".into())
    );
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(300);
    let stopped =
        rig.ask("DELETE", "/v1/kv?prefix=", &[], b"").await.problem(504, "partially_applied");
    assert_eq!(stopped["outcome"], "unknown");
    // What the admin API asks for may take long as well.
    *rig.fake.delay.lock().unwrap() = Duration::from_secs(30);
    rig.get("/v1/admin/shards/2?hash").await.problem(503, "expired");
}
