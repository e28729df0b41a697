//! An HTTP/2 client made by hand, as rude as a test wants it: frames as bytes, heads without
//! compression.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: u16 = 4;

pub(crate) struct H2 {
    stream: TcpStream,
    next: u32,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field as a literal without indexing.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    for text in [name, value] {
        if std::ptr::eq(text, name) {
            out.push(0);
        }
        assert!(text.len() < 127, "longer text needs more than one byte of length");
        out.push(text.len() as u8);
        out.extend(text.as_bytes());
    }
}

impl H2 {
    /// A connection on which the server may send `window` bytes of each answer.
    pub(crate) async fn connect(addr: SocketAddr, window: u32) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = WINDOW.to_be_bytes().to_vec();
        settings.extend(window.to_be_bytes());
        hello.extend(frame(SETTINGS, 0, 0, &settings));
        hello.extend(frame(SETTINGS, ACK, 0, &[]));
        stream.write_all(&hello).await.unwrap();
        Self { stream, next: 1 }
    }

    async fn head(&mut self, method: &str, path: &str, flags: u8) -> u32 {
        let mut head = Vec::new();
        for (name, value) in
            [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)]
        {
            field(&mut head, name, value);
        }
        let stream = self.next;
        self.next += 2;
        let _ = self.stream.write_all(&frame(HEADERS, flags | END_HEADERS, stream, &head)).await;
        stream
    }

    /// A request without a body.
    pub(crate) async fn get(&mut self, path: &str) -> u32 {
        self.head("GET", path, END_STREAM).await
    }

    /// A request whose body begins, and does not end.
    pub(crate) async fn begin_put(&mut self, path: &str, body: &[u8]) -> u32 {
        let stream = self.head("PUT", path, 0).await;
        let _ = self.stream.write_all(&frame(DATA, 0, stream, body)).await;
        stream
    }

    /// More of a body.
    pub(crate) async fn go_on(&mut self, stream: u32, body: &[u8], is_last: bool) {
        let _ = self
            .stream
            .write_all(&frame(DATA, if is_last { END_STREAM } else { 0 }, stream, body))
            .await;
    }

    /// Lets the server send so many bytes more of an answer.
    pub(crate) async fn allow(&mut self, stream: u32, bytes: u32) {
        let _ = self.stream.write_all(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())).await;
    }

    /// Takes answers at so many bytes a second, until so many of them are whole or the connection
    /// is closed. How many are.
    pub(crate) async fn take(&mut self, answers: usize, bytes_per_second: f64) -> usize {
        let (begun, mut taken, mut whole, mut unread) =
            (std::time::Instant::now(), 0, 0, Vec::new());
        let mut buffer = [0; 16 << 10];
        while whole < answers {
            let at = Duration::from_secs_f64(taken as f64 / bytes_per_second);
            tokio::time::sleep(at.saturating_sub(begun.elapsed())).await;
            match self.stream.read(&mut buffer).await {
                Ok(n) if n > 0 => unread.extend_from_slice(&buffer[..n]),
                _ => break,
            }
            while unread.len() >= 9 {
                let length = u32::from_be_bytes([0, unread[0], unread[1], unread[2]]) as usize;
                if unread.len() < 9 + length {
                    break;
                }
                if unread[3] == DATA && length > 0 {
                    taken += length;
                    let _ = self
                        .stream
                        .write_all(&frame(WINDOW_UPDATE, 0, 0, &(length as u32).to_be_bytes()))
                        .await;
                }
                whole += usize::from(unread[3] == DATA && unread[4] & END_STREAM != 0);
                unread.drain(..9 + length);
            }
        }
        whole
    }

    /// Shows that it is alive.
    pub(crate) async fn ping(&mut self) -> bool {
        self.stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok()
    }

    /// Reads until nothing comes for `quiet`, and says how many answers began, and whether the
    /// connection is still open.
    pub(crate) async fn read_heads(&mut self, quiet: Duration) -> (usize, bool) {
        let (mut unread, mut heads) = (Vec::new(), 0);
        loop {
            let mut buffer = [0; 16 << 10];
            match tokio::time::timeout(quiet, self.stream.read(&mut buffer)).await {
                Err(_) => return (heads, true),
                Ok(Ok(0)) | Ok(Err(_)) => return (heads, false),
                Ok(Ok(n)) => unread.extend_from_slice(&buffer[..n]),
            }
            while unread.len() >= 9 {
                let length = u32::from_be_bytes([0, unread[0], unread[1], unread[2]]) as usize;
                if unread.len() < 9 + length {
                    break;
                }
                heads += usize::from(unread[3] == HEADERS);
                unread.drain(..9 + length);
            }
        }
    }
}
