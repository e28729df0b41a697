//! Targets as they are on the wire: what must not stand in one is refused, and never taken for
//! another key or range.

use crate::Rig;
use bytes::{BufMut, Bytes};
use futures_util::StreamExt;
use h2::Codec;
use h2::frame::Frame;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn what_stands_behind_a_hash_is_not_cut_off() {
    let rig = Rig::start().await;
    rig.fill(&["room", "team", "team%231/a"]).await;
    for request in [
        "PUT /v1/kv/room#42 HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nother",
        "DELETE /v1/kv?prefix=team#1/ HTTP/1.1\r\nhost: x\r\n\r\n",
        "DELETE /v1/kv?prefix=#x HTTP/1.1\r\nhost: x\r\n\r\n",
        "DELETE http://x/v1/kv?prefix=team#1/ HTTP/1.1\r\nhost: x\r\n\r\n",
        "DELETE /v1/kv/team#1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    ] {
        for piece in [1, 17, 1024] {
            // Behind a request that is fine, and before one, on one connection.
            let all = format!(
                "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n{request}GET /v1/kv/room HTTP/1.1\r\n\
                 host: x\r\n\r\n"
            );
            let mut client = rig.client().await;
            client.stream.set_nodelay(true).unwrap();
            for bytes in all.as_bytes().chunks(piece) {
                client.raw(bytes).await;
            }
            assert_eq!(client.answer(false).await.unwrap().status, 200);
            let problem = client.answer(false).await.unwrap().problem(400, "bad_target");
            assert!(problem["detail"].as_str().unwrap().contains("write %23"), "{problem}");
            assert_eq!(
                client.answer(false).await.unwrap().text(),
                "room",
                "{request:?} in pieces of {piece}"
            );
        }
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 3);
    assert_eq!(rig.get("/v1/kv/team%231%2Fa").await.status, 200);
}

#[tokio::test]
async fn every_byte_that_must_be_encoded_is_refused_where_it_is_not() {
    let rig = Rig::start().await;
    for byte in (0..=255u8).filter(|byte| !b"\n?".contains(byte)) {
        let mut request = b"GET /v1/kv/a".to_vec();
        request.push(byte);
        request.extend_from_slice(b"b HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut client = rig.client().await;
        client.raw(request).await;
        let answer = client.answer(false).await.unwrap();
        match byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            true => assert_eq!(answer.status, 404, "{byte:#x}"),
            false if byte == b'%' => drop(answer.problem(400, "bad_percent_encoding")),
            false => drop(answer.problem(400, "bad_target")),
        }
    }
    for (request, status) in [
        ("OPTIONS * HTTP/1.1", 404),
        ("GET * HTTP/1.1", 400),
        ("GET x:80 HTTP/1.1", 400),
        ("GET livez HTTP/1.1", 400),
        ("GET http://x/livez HTTP/1.1", 200),
        ("CONNECT x:80 HTTP/1.1", 405),
        ("CONNECT /livez HTTP/1.1", 405),
        ("GET /-/refused/byte/23/3 HTTP/1.1", 400),
        ("GET /-/refused HTTP/1.1", 404),
    ] {
        let mut client = rig.client().await;
        client.raw(format!("{request}\r\nhost: x\r\n\r\n")).await;
        assert_eq!(client.answer(false).await.unwrap().status, status, "{request}");
    }
    let mut client = rig.client().await;
    client
        .raw(
            "HEAD /a#b HTTP/1.1\r\nhost: x\r\n\r\nHEAD / b / HTTP/1.1\r\nhost: x\r\n\r\n\
             HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        )
        .await;
    for status in [400, 400, 200] {
        assert_eq!(client.answer(true).await.unwrap().status, status);
    }
}

#[tokio::test]
async fn a_body_is_told_once_how_long_it_is() {
    let rig = Rig::start().await;
    // The body of the first, where both lengths are believed, or the second request.
    let hidden = "GET /v1/kv/hidden HTTP/1.1\r\nhost: x\r\n\r\n";
    for fields in [
        format!(
            "content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            5 + hidden.len()
        ),
        "content-length: 0\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "Transfer-Encoding: gzip\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ] {
        let mut client = rig.client().await;
        client.raw(format!("PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\n{fields}{hidden}")).await;
        let answer = client.answer(false).await.unwrap();
        answer.problem(400, "ambiguous_length");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.is_closed().await, "what is behind it is not looked at");
    }
    for chunk in [
        "1\nx\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1;\nGET\r\nx\r\n0\r\n\r\n",
        "0\r\n\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = rig.client().await;
        client
            .raw(format!(
                "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                 {chunk}{hidden}"
            ))
            .await;
        client.answer(false).await.unwrap().problem(400, "body_incomplete");
        assert!(client.is_closed().await, "{chunk:?}");
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 0);
}

/// HTTP/2 by hand: it sends blocks as they are, and reads answers with h2's own decoder.
struct Blocks {
    codec: Codec<TcpStream, Bytes>,
    stream: u32,
}

impl Blocks {
    async fn connect(rig: &Rig) -> Self {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut this = Self { codec: Codec::new(stream), stream: 1 };
        this.frame(4, 0, 0, &[]).await;
        this
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut out = Vec::new();
        out.put_uint(payload.len() as u64, 3);
        out.put_slice(&[kind, flags]);
        out.put_u32(stream);
        out.put_slice(payload);
        self.codec.get_mut().write_all(&out).await.unwrap();
    }

    /// Sends a request without a body in frames of `piece` bytes, and tells its status, or that its
    /// stream was reset.
    async fn ask(&mut self, fields: &[(u8, &str, &str)], piece: usize) -> Result<u16, ()> {
        let mut block = Vec::new();
        for (kind, name, value) in fields {
            block.push(*kind);
            for text in [name, value] {
                assert!(text.len() < 127);
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.send(&block, piece).await
    }

    async fn send(&mut self, block: &[u8], piece: usize) -> Result<u16, ()> {
        let (stream, pieces) = (self.stream, block.chunks(piece).count());
        self.stream += 2;
        for (at, bytes) in block.chunks(piece).enumerate() {
            let last = if at + 1 == pieces { 4 } else { 0 };
            let (kind, flags) = if at == 0 { (1, 1 | last) } else { (9, last) };
            self.frame(kind, flags, stream, bytes).await;
        }
        loop {
            match self.codec.next().await.expect("the connection ended").expect("frames") {
                Frame::Headers(headers) if headers.stream_id() == stream => {
                    return Ok(headers.into_parts().0.status.unwrap().as_u16());
                }
                Frame::Reset(reset) if reset.stream_id() == stream => return Err(()),
                Frame::GoAway(error) => panic!("{error:?}"),
                _ => {}
            }
        }
    }
}

/// A literal that enters the table, and one that does not (RFC 7541, section 6.2).
const INDEXED: u8 = 0x40;
const PLAIN: u8 = 0;

#[tokio::test]
async fn http2_refuses_the_same_and_goes_on() {
    let rig = Rig::start().await;
    rig.fill(&["room", "team"]).await;
    for kind in [INDEXED, PLAIN] {
        for piece in [1024, 40] {
            let mut client = Blocks::connect(&rig).await;
            let request = |method: &'static str, path: &'static str| {
                [
                    (PLAIN, ":method", method),
                    (PLAIN, ":scheme", "http"),
                    (kind, ":authority", "x"),
                    (kind, ":path", path),
                    (kind, "x-one", "1"),
                ]
            };
            assert_eq!(client.ask(&request("GET", "/v1/kv/room"), piece).await, Ok(200));
            assert_eq!(
                client.ask(&request("DELETE", "/v1/kv?prefix=team#1/"), piece).await,
                Ok(400)
            );
            assert_eq!(client.ask(&request("DELETE", "/v1/kv/room#42"), piece).await, Ok(400));
            for bad in [
                "/v1/kv/a b",
                "/v1/kv/\"",
                "/v1/kv/ä",
                "/v1/kv/\u{7f}",
                "/v1/kv/\u{1}",
                "*",
                "v1/kv/room",
                "",
            ] {
                assert_eq!(client.ask(&request("DELETE", bad), piece).await, Ok(400), "{bad:?}");
            }
            // Fields that the client takes from its table mean what they meant.
            assert_eq!(client.ask(&request("GET", "/v1/kv/team"), piece).await, Ok(200));
            if kind == INDEXED {
                // The newest three of the table: x-one, the path /v1/kv/team, the authority; then
                // the path with the hash.
                let indexed = [0x82, 0x86, 0x80 | 64, 0x80 | 63, 0x80 | 62];
                assert_eq!(client.send(&indexed, piece).await, Ok(200));
            }
            // No request at all: its stream is reset, and the connection goes on.
            assert_eq!(client.ask(&request("GET", "/v1/kv/room")[1..], piece).await, Err(()));
            assert_eq!(client.ask(&request("GET", "/v1/kv/room"), piece).await, Ok(200));
            let long: Vec<_> = std::iter::repeat_n(
                (PLAIN, "x-long", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"),
                400,
            )
            .collect();
            assert_eq!(
                client.ask(&[&request("GET", "/v1/kv/room")[..], &long].concat(), 16_000).await,
                Ok(431)
            );
            assert_eq!(client.ask(&request("GET", "/v1/kv/room"), piece).await, Ok(200));
        }
    }
    assert_eq!(rig.fake.writes.load(Ordering::SeqCst), 2);
}
