//! Clients that close their sending side and still want an answer, and clients that are gone.

use crate::Rig;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_client_that_sends_no_more_gets_its_answer() {
    let rig = Rig::start().await;
    let slow = Duration::from_millis(100);
    for delay in [Duration::ZERO, slow] {
        *rig.fake.delay.lock().unwrap() = delay;
        for (request, status) in [
            ("PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi", 204),
            (
                "PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n\
                 hi\r\n0\r\n\r\n",
                204,
            ),
            ("GET /v1/kv/half HTTP/1.1\r\nhost: x\r\n\r\n", 200),
            ("GET /v1/kv/half HTTP/1.0\r\n\r\n", 200),
            (
                "GET /v1/kv?prefix=h HTTP/1.1\r\nhost: x\r\naccept: application/x-ndjson\r\n\
                 connection: close\r\n\r\n",
                200,
            ),
        ] {
            for wait in [false, true] {
                let mut client = rig.client().await;
                client.raw(request).await;
                if wait {
                    // The end comes alone, while the request waits.
                    tokio::time::sleep(slow / 4).await;
                }
                client.stream.shutdown().await.unwrap();
                let answer = client
                    .answer(false)
                    .await
                    .unwrap_or_else(|| panic!("no answer to {request:?}"));
                assert_eq!(answer.status, status, "{request:?}");
                assert!(client.is_closed().await, "{request:?}");
            }
        }
        // Several at once: each is answered.
        let mut client = rig.client().await;
        client.raw("GET /v1/kv/half HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3)).await;
        client.stream.shutdown().await.unwrap();
        for _ in 0..3 {
            assert_eq!(client.answer(false).await.unwrap().status, 200);
        }
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_its_request_waits() {
    for half_closed in [false, true] {
        let rig = Rig::start().await;
        *rig.fake.delay.lock().unwrap() = Duration::from_secs(60);
        let mut client = rig.client().await;
        client.send("GET", "/v1/kv/a", &[], b"").await;
        let begun = std::time::Instant::now();
        while rig.fake.under_way_max.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "the request did not arrive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if half_closed {
            client.stream.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(rig.server.connections(), 1, "half a client is a client");
        }
        // Closed with a reset, as a killed process closes what it did not read.
        client.stream.set_zero_linger().unwrap();
        drop(client);
        let begun = std::time::Instant::now();
        while rig.server.connections() > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "a request goes on for a client that is gone"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
