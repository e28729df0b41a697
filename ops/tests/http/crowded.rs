//! Many at once, and those who take without giving: what they hold is bounded, they are let go, and
//! others are served meanwhile.

use crate::Rig;
use crate::client::Client;
use crate::h2::H2;
use flotilla_ops::{Limits, Metrics, Pages, Server, Serves};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_millis(100);

/// Waits until `holds`, for a few seconds at most.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The value of a metric.
async fn metric(rig: &Rig, name: &str) -> i64 {
    let text = rig.get("/metrics").await.text().to_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")))
        .unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_and_small_ones_go_on() {
    let limits = Limits { answer_bytes_max: 16 << 20, ..Limits::default() };
    let rig = Rig::with(limits).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    rig.put("small", b"v").await;
    // The sockets take some megabytes of what nobody reads; what they take is not held by the
    // server.
    let (mut readers, mut refused) = (Vec::new(), 0);
    for i in 0..60 {
        let mut client = rig.client().await;
        let target = if i % 2 == 0 { "/v1/kv/large" } else { "/v1/kv?prefix=large" };
        client.send("GET", target, &[], b"").await;
        readers.push(client);
    }
    for client in &readers {
        client.stream.readable().await.unwrap();
        let mut head = [0; 12];
        let n = client.stream.peek(&mut head).await.unwrap();
        refused += usize::from(head[..n].starts_with(b"HTTP/1.1 429"));
    }
    let held = metric(&rig, "flotilla_http_answer_bytes").await;
    assert!(held <= 16 << 20, "{held} bytes of answers");
    assert_eq!(
        rig.get("/v1/kv/small").await.status,
        200,
        "with {held} bytes held and {refused} refused"
    );
    assert_eq!(rig.get("/v1/kv?prefix=small").await.status, 200);
    drop(readers);
    until("answers are held for nobody", || rig.metrics.http.answer_bytes.get() == 0).await;
}

#[tokio::test]
async fn a_window_of_nothing_holds_little_and_not_for_ever() {
    let limits = Limits {
        answer_bytes_max: 16 << 20,
        write_timeout: Duration::from_millis(600),
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    let mut client = H2::connect(rig.addr, 0).await;
    for _ in 0..100 {
        client.get("/v1/kv/large").await;
    }
    let (answers, open) = client.read_heads(SOON).await;
    assert!(open && answers == 100, "{answers} answers began");
    let held = metric(&rig, "flotilla_http_answer_bytes").await;
    assert!((1 << 20..=16 << 20).contains(&held), "{held} bytes of answers");
    assert!(
        metric(&rig, "flotilla_http_requests_in_flight").await >= 100,
        "who has not taken its answers has no places"
    );
    // Signs of life are no progress.
    let begun = Instant::now();
    while client.ping().await && client.read_heads(Duration::from_millis(20)).await.1 {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "a client that takes nothing keeps its connection"
        );
    }
    until("what it had is held still", || {
        rig.metrics.http.answer_bytes.get() == 0 && rig.metrics.http.in_flight.get() == 0
    })
    .await;
}

/// A least rate of 1 MiB/s, and little patience.
fn hurried() -> Limits {
    Limits {
        write_timeout: Duration::from_millis(600),
        body_read_timeout: Duration::from_millis(300),
        client_bytes_per_second_min: 1 << 20,
        ..Limits::default()
    }
}

/// The least rate is one of the connection: its streams share what it can carry.
#[tokio::test]
async fn a_slow_connection_with_many_streams_is_no_slow_client() {
    let rig = Rig::with(hurried()).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    let mut client = H2::connect(rig.addr, 1 << 20).await;
    for _ in 0..16 {
        client.get("/v1/kv/large").await;
    }
    assert_eq!(
        client.take(16, 4e6).await,
        16,
        "a client that takes four times the least rate was closed"
    );
    // The same the other way: sixteen bodies in turns.
    let mut client = H2::connect(rig.addr, 1 << 20).await;
    let mut streams = Vec::new();
    for i in 0..16 {
        streams.push(client.begin_put(&format!("/v1/kv/k{i}"), b"x").await);
    }
    let before = rig.fake.writes.load(Ordering::SeqCst);
    for turn in 0..20 {
        for stream in &streams {
            client.go_on(*stream, &[b'x'; 16 << 10], turn == 19).await;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
    until("sixteen writes", || rig.fake.writes.load(Ordering::SeqCst) == before + 16).await;
}

/// Answers that fit into one piece wait for their turn as well, and the client's windows say whose
/// it is.
#[tokio::test]
async fn who_is_faster_than_the_least_rate_may_take_answers_in_any_order() {
    let rig = Rig::with(hurried()).await;
    rig.put("small", &vec![b'v'; 60 << 10]).await;
    let mut client = H2::connect(rig.addr, 1 << 20).await;
    for _ in 0..64 {
        client.get("/v1/kv/small").await;
    }
    let at_once = client.take(64, 4e6).await;
    // Now the last one is taken first.
    let mut client = H2::connect(rig.addr, 0).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(client.get("/v1/kv/small").await);
    }
    assert_eq!(client.read_heads(SOON).await, (64, true));
    let mut backwards = 0;
    while let Some(stream) = streams.pop() {
        client.allow(stream, 60 << 10).await;
        backwards += client.take(1, 4e6).await;
    }
    assert_eq!((at_once, backwards), (64, 64), "closed at four times the least rate");
}

#[tokio::test]
async fn who_is_faster_than_the_least_rate_may_send_bodies_in_any_order() {
    let rig = Rig::with(hurried()).await;
    let mut client = H2::connect(rig.addr, 1 << 20).await;
    let mut streams = Vec::new();
    for i in 0..40 {
        streams.push(client.begin_put(&format!("/v1/kv/k{i}"), b"x").await);
    }
    for stream in streams {
        for piece in 0..15 {
            client.go_on(stream, &[b'x'; 16 << 10], piece == 14).await;
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
    until("forty writes", || rig.fake.writes.load(Ordering::SeqCst) == 40).await;
}

/// What a client asks for, and what it takes of other answers, does not keep for ever what it does
/// not take.
#[tokio::test]
async fn a_window_of_nothing_is_noticed_whatever_else_goes_on() {
    let rig = Rig::with(hurried()).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    rig.put("small", b"v").await;
    rig.put("medium", &vec![b'v'; 64 << 10]).await;
    let mut wrong = Vec::new();
    // Meanwhile a small one is asked for, or taken, now and then, or others are at a good rate.
    for (large, other, allowed, pause_ms) in
        [(12, "small", 0, 50), (12, "small", 1, 50), (1, "medium", 64 << 10, 20)]
    {
        let mut client = H2::connect(rig.addr, 0).await;
        for _ in 0..large {
            client.get("/v1/kv/large").await;
        }
        let (heads, open) = client.read_heads(SOON).await;
        assert!(open && heads == large, "{heads} answers began");
        let begun = Instant::now();
        let mut open = true;
        while open && begun.elapsed() < Duration::from_secs(3) {
            let stream = client.get(&format!("/v1/kv/{other}")).await;
            if allowed > 0 {
                client.allow(stream, allowed).await;
                client.allow(0, allowed).await;
            }
            open = client.read_heads(Duration::from_millis(pause_ms)).await.1;
        }
        if open || begun.elapsed() < Duration::from_millis(400) {
            wrong.push(format!(
                "{large} and {allowed} bytes of {other}: open {open} after {:?}",
                begun.elapsed()
            ));
        }
        drop(client);
        until("what it had is held still", || rig.metrics.http.answer_bytes.get() == 0).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_batch_of_gets_has_an_answer_of_bounded_size() {
    let rig = Rig::with(Limits { batch_answer_bytes_max: 3 << 20, ..Limits::default() }).await;
    rig.put("large", &vec![b'v'; 1 << 20]).await;
    rig.put("nul", &vec![0; 1 << 20]).await;
    let gets: Vec<_> = (0..50)
        .map(|i| format!(r#"{{"get":{{"key":"{}"}}}}"#, if i == 0 { "nul" } else { "large" }))
        .collect();
    let body = format!(r#"{{"ops":[{},{{"put":{{"key":"p","value":"1"}}}}]}}"#, gets.join(","));
    let answer = rig
        .ask("POST", "/v1/batch", &[("content-type", "application/json")], body.as_bytes())
        .await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() < 4 << 20, "{} bytes", answer.body.len());
    let results = answer.json()["results"].as_array().unwrap().clone();
    let count = |status: u64| results.iter().filter(|r| r["status"] == status).count();
    assert_eq!((results.len(), count(200) + count(413), count(204)), (51, 50, 1));
    assert!(count(200) <= 3);
    let refused = results.iter().find(|r| r["status"] == 413).unwrap();
    assert_eq!(
        (refused["code"].as_str(), refused["retryable"].as_bool()),
        (Some("answer_too_large"), Some(true))
    );
    assert_eq!(rig.get("/v1/kv/p").await.status, 200, "a write fell with the reads");
}

#[tokio::test]
async fn bodies_that_were_announced_take_nothing_until_they_come() {
    let rig = Rig::with(Limits { in_flight_bytes_max: 64 << 20, ..Limits::default() }).await;
    let mut announced = Vec::new();
    for _ in 0..40 {
        let mut client = rig.client().await;
        let head = "POST /v1/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                    content-length: 16000000\r\n\r\n{";
        client.raw(head).await;
        announced.push(client);
    }
    until("bodies are waited for", || rig.metrics.http.in_flight.get() == 40).await;
    assert_eq!(rig.put("a", &vec![b'v'; 1 << 20]).await.status, 204);
    assert!(rig.metrics.http.in_flight_bytes.get() < 1 << 20);
}

#[tokio::test]
async fn a_body_must_come_at_a_least_rate() {
    let limits = Limits {
        body_read_timeout: Duration::from_millis(300),
        client_bytes_per_second_min: 1 << 20,
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;
    let mut client = rig.client().await;
    client.raw("PUT /v1/kv/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n").await;
    let begun = Instant::now();
    while tokio::io::AsyncWriteExt::write_all(&mut client.stream, b"x").await.is_ok() {
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "a byte now and then keeps a request alive"
        );
        tokio::select! {
            answer = client.answer(false) => {
                drop(answer.unwrap().problem(408, "body_timeout"));
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(60)) => {}
        }
    }
    assert!(
        begun.elapsed() > Duration::from_millis(500),
        "it may take twice its silence to begin with"
    );
}

#[tokio::test]
async fn for_a_new_connection_the_longest_idle_is_closed() {
    let rig = Rig::with(Limits { connections_max: 3, ..Limits::default() }).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(1500);
    let (mut busy, mut oldest) = (rig.client().await, rig.client().await);
    busy.send("PUT", "/v1/kv/a", &[], b"1").await;
    until("two connections", || rig.server.connections() == 2).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut used = rig.client().await;
    used.send("GET", "/livez", &[], b"").await;
    assert_eq!(used.answer(false).await.unwrap().status, 200);
    for _ in 0..2 {
        assert_eq!(rig.get("/livez").await.status, 200);
    }
    assert!(oldest.is_closed().await);
    used.send("GET", "/livez", &[], b"").await;
    assert_eq!(
        used.answer(false).await.unwrap().status,
        200,
        "the one that was used went before the idle one"
    );
    assert_eq!(busy.answer(false).await.unwrap().status, 204);
}

#[tokio::test]
async fn who_is_at_work_is_not_closed_for_another() {
    // Bodies that came on just now, on a connection that was idle before.
    let rig = Rig::with(Limits { connections_max: 2, ..Limits::default() }).await;
    let mut clients = [rig.client().await, rig.client().await];
    for client in &mut clients {
        client.send("GET", "/livez", &[], b"").await;
        assert_eq!(client.answer(false).await.unwrap().status, 200);
    }
    tokio::time::sleep(Duration::from_millis(2200)).await;
    for client in &mut clients {
        client.raw("PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n1").await;
    }
    tokio::time::sleep(SOON).await;
    assert_eq!(rig.get("/livez").await.status, 200);
    for client in &mut clients {
        client.raw("2").await;
        assert_eq!(client.answer(false).await.expect("closed in the midst of a body").status, 204);
    }
    // A stream whose next part is made, long after its head.
    let rig = Rig::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let mut streamed = rig.client().await;
    for i in 0..30 {
        streamed.send("PUT", &format!("/v1/kv/k{i:02}"), &[], &vec![b'v'; 200_000]).await;
        assert_eq!(streamed.answer(false).await.unwrap().status, 204);
    }
    *rig.fake.delay.lock().unwrap() = Duration::from_millis(120);
    streamed.send("GET", "/v1/kv?prefix=k", &[("accept", "application/x-ndjson")], b"").await;
    let others = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        for _ in 0..5 {
            assert_eq!(rig.get("/livez").await.status, 200);
        }
    };
    let (answer, ()) = tokio::join!(streamed.answer(false), others);
    assert_eq!(answer.expect("closed in the midst of a stream").lines().len(), 31);
}

#[tokio::test]
async fn probes_are_answered_when_all_places_are_taken() {
    let rig = Rig::with(Limits { connections_max: 2, ..Limits::default() }).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_secs(4);
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = rig.client().await;
        client.send("PUT", "/v1/kv/a", &[], b"1").await;
        busy.push(client);
    }
    until("two requests", || rig.metrics.http.in_flight.get() == 2).await;
    // Who says nothing does not keep others from asking.
    let mut silent = Vec::new();
    for _ in 0..Server::KEPT_PLACES + 1 {
        silent.push(rig.client().await);
    }
    for path in ["/livez", "/readyz", "/metrics", "/livez"] {
        assert_eq!(rig.get(path).await.status, 200, "{path}");
    }
    rig.get("/v1/limits").await.problem(503, "too_many_connections");
    let begun = Instant::now();
    silent.last_mut().unwrap().answer(false).await.unwrap().problem(503, "too_many_connections");
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(busy);
}

#[tokio::test]
async fn probes_are_answered_when_all_requests_are_taken() {
    let rig = Rig::with(Limits { requests_in_flight_max: 1, ..Limits::default() }).await;
    *rig.fake.delay.lock().unwrap() = Duration::from_secs(2);
    let mut busy = rig.client().await;
    busy.send("PUT", "/v1/kv/a", &[], b"1").await;
    until("a request", || rig.metrics.http.in_flight.get() == 1).await;
    rig.get("/v1/kv/b").await.problem(429, "overloaded");
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(rig.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn an_address_for_probes_serves_nothing_else() {
    let rig = Rig::start().await;
    let (fake, metrics) = (rig.fake.clone(), Arc::new(Metrics::default()));
    let addr = "127.0.0.1:0".parse().unwrap();
    let pages =
        Pages::new(&["db.example.com".into()], &["https://console.example.com".into()]).unwrap();
    let serves = Serves::Probes(pages);
    let probes =
        Server::bind(addr, Limits::of_probes(), serves, fake.clone(), fake.clone(), fake, metrics)
            .await
            .unwrap();
    for (path, status) in [
        ("/livez", 200),
        ("/readyz?verbose", 200),
        ("/metrics", 200),
        ("/v1/kv/a", 404),
        ("/v1/limits", 404),
    ] {
        let mut client = Client::connect(probes.local_addr()).await;
        client.send("GET", path, &[], b"").await;
        assert_eq!(client.answer(false).await.unwrap().status, status, "{path}");
    }
    // What is configured about hosts and web pages holds here, too.
    for (host, origin, status) in [
        ("db.example.com", "https://console.example.com", 200),
        ("db.example.com", "https://evil.example", 403),
        ("evil.example", "https://console.example.com", 403),
    ] {
        let mut client = Client::connect(probes.local_addr()).await;
        client
            .raw(format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\n\r\n"))
            .await;
        assert_eq!(client.answer(false).await.unwrap().status, status, "{host} {origin}");
    }
}

#[tokio::test]
async fn streams_of_slow_bodies_leave_places_to_others() {
    let rig = Rig::with(Limits { requests_in_flight_max: 200, ..Limits::default() }).await;
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut client = H2::connect(rig.addr, 1 << 20).await;
        for i in 0..100 {
            client.begin_put(&format!("/v1/kv/k{i}"), b"x").await;
        }
        greedy.push(client);
    }
    until("the greedy have taken what they can", || rig.metrics.http.in_flight.get() >= 140).await;
    for client in &mut greedy {
        client.read_heads(SOON).await;
    }
    assert!(rig.metrics.http.in_flight.get() <= 150, "more than three quarters for one address");
    // They have what their address may have, and wait: one of them goes for who has nothing.
    let begun = Instant::now();
    while rig.put("mine", b"v").await.status != 204 {
        assert!(begun.elapsed() < Duration::from_secs(6), "four connections keep others out");
        tokio::time::sleep(SOON).await;
    }
    for i in 0..20 {
        assert_eq!(rig.put(&format!("mine{i}"), b"v").await.status, 204);
    }
    assert!(rig.fake.writes.load(Ordering::SeqCst) >= 20);
}
