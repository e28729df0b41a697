//! One HTTP/1.1 connection's bytes on their way to hyper: where each head and each body ends.
//!
//! 1. [`Stage::Head`]: bytes are kept until a head is whole. Its target is judged ([`target`]), and
//!    so is how often it says how long its body is; where either is wrong, the head is handed over
//!    with a refusal for a target. hyper never sees more than one head.
//! 2. [`Stage::Passed`]: hyper has the head. It parses it and calls the service, which tells us
//!    what hyper found behind it ([`Framing`]), so there is no second opinion about that.
//! 3. [`Stage::Body`] or [`Stage::Chunked`], to the body's last byte; then 1 again.
//!
//! What is no HTTP at all is handed over as it is: hyper says so.

use super::chunks::Chunks;
use super::target::{self, Flaw};
use bytes::{Buf, Bytes, BytesMut};

/// What stands behind a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes; often none.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Where in the connection we are.
#[derive(Debug)]
enum Stage {
    /// In a head, or before one.
    Head,
    /// hyper has a head, and has not said what follows.
    Passed,
    /// In a body; so much is left.
    Body(u64),
    /// In a body of chunks.
    Chunked(Chunks),
}

/// What hyper may have next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// So many bytes as they come.
    Raw(u64),
    /// What [`Heads::take`] gives.
    Judged,
    /// Nothing: it has a head of which it has made nothing.
    Nothing,
}

/// The connection's heads.
#[derive(Debug)]
pub(super) struct Heads {
    stage: Stage,
    /// Where the line begins that is not yet whole, in what was looked at of a head.
    line_at: usize,
    /// Where the request line ends, once it is whole.
    first_end: Option<usize>,
    /// Fields that are whole.
    fields: usize,
    /// `Content-Length` fields among them.
    lengths: usize,
    /// Whether a `Transfer-Encoding` is among them.
    is_coded: bool,
    /// What a field says of the body that hyper would refuse in words of its own.
    flaw: Option<Flaw>,
    /// Whether the client waits for `100 Continue`, or for an answer, before it sends a body.
    waits: bool,
    /// The most bytes of a head, and fields in it.
    bytes_max: usize,
    fields_max: usize,
}

impl Heads {
    pub(super) fn new(bytes_max: usize, fields_max: usize) -> Self {
        Self {
            stage: Stage::Head,
            line_at: 0,
            first_end: None,
            fields: 0,
            lengths: 0,
            is_coded: false,
            flaw: None,
            waits: false,
            bytes_max,
            fields_max,
        }
    }

    /// hyper has said what stands behind the head that it got.
    pub(super) fn told(&mut self, framing: Framing) {
        self.stage = match framing {
            Framing::Length(0) => Stage::Head,
            Framing::Length(bytes) => Stage::Body(bytes),
            Framing::Chunked => Stage::Chunked(Chunks::new()),
        };
    }

    /// Whether a whole request was handed over, and nothing of the next one.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.stage, Stage::Head)
    }

    /// Whether a body has begun, and more of it will come without being asked for.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(self.stage, Stage::Body(_) | Stage::Chunked(_)) && !self.waits
    }

    /// The client was told to go on.
    pub(super) fn continued(&mut self) {
        self.waits = false;
    }

    /// These bytes come, of which what belongs to the body is thrown away. How many were.
    pub(super) fn discard(&mut self, bytes: &[u8]) -> Result<usize, super::chunks::NoChunk> {
        match &mut self.stage {
            Stage::Body(left) => {
                let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                self.passed(here);
                Ok(here)
            }
            Stage::Chunked(chunks) => {
                let here = chunks.follow(bytes)?;
                if chunks.is_over() {
                    self.stage = Stage::Head;
                }
                Ok(here)
            }
            Stage::Head | Stage::Passed => Ok(0),
        }
    }

    pub(super) fn next(&self) -> Next {
        match self.stage {
            Stage::Head | Stage::Chunked(_) => Next::Judged,
            Stage::Passed => Next::Nothing,
            Stage::Body(left) => Next::Raw(left),
        }
    }

    /// So many bytes of a body were handed over as they came.
    pub(super) fn passed(&mut self, bytes: usize) {
        if let Stage::Body(left) = &mut self.stage {
            *left -= bytes as u64;
            if *left == 0 {
                self.stage = Stage::Head;
            }
        }
    }

    /// Whether hyper gets the first bytes of these, so many, as they are; `None` where
    /// [`Self::take`] must look. Only to be asked where nothing is kept.
    pub(super) fn whole(&mut self, bytes: &[u8]) -> Option<usize> {
        if !matches!(self.stage, Stage::Head) || matches!(bytes.first(), Some(b'\r' | b'\n')) {
            return None;
        }
        self.waits = false;
        match self.look(bytes) {
            Some((end, None)) => {
                self.begin(Stage::Passed);
                Some(end)
            }
            _ => {
                self.begin(Stage::Head);
                None
            }
        }
    }

    /// What hyper gets of the bytes that are kept; `None` where more must come first, an error
    /// where they are no chunks.
    pub(super) fn take(
        &mut self,
        kept: &mut BytesMut,
    ) -> Result<Option<Bytes>, super::chunks::NoChunk> {
        if let Stage::Chunked(chunks) = &mut self.stage {
            let bytes = chunks.follow(kept)?;
            if chunks.is_over() {
                self.stage = Stage::Head;
            }
            return Ok((bytes > 0).then(|| kept.split_to(bytes).freeze()));
        }
        if self.line_at == 0 {
            self.waits = false;
            // Empty lines in front of a head are skipped (RFC 9112, section 2.2).
            let empty = kept.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            kept.advance(empty);
        }
        let Some((end, flaw)) = self.look(kept) else { return Ok(None) };
        let first = self.first_end.unwrap_or(end);
        self.begin(Stage::Passed);
        let head = kept.split_to(end);
        Ok(Some(match flaw {
            None => head.freeze(),
            Some(flaw) => instead(&head, first, flaw),
        }))
    }

    fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        (self.line_at, self.first_end, self.fields, self.lengths, self.is_coded) =
            (0, None, 0, 0, false);
        self.flaw = None;
    }

    /// Goes on looking for the end of the head with which these bytes begin. If it is there, or
    /// will not be: where, and what is wrong.
    fn look(&mut self, bytes: &[u8]) -> Option<(usize, Option<Flaw>)> {
        while let Some(length) = memchr::memchr(b'\n', &bytes[self.line_at..]) {
            let (line, next) =
                (&bytes[self.line_at..self.line_at + length], self.line_at + length + 1);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if next > self.bytes_max {
                break;
            }
            if self.first_end.is_none() {
                self.first_end = Some(self.line_at + line.len());
            } else if line.is_empty() {
                let flaw = match request_line(&bytes[..self.first_end.unwrap_or_default()]) {
                    Some((method, target, _)) => target::check(method, target).err(),
                    None => None,
                };
                let flaw = flaw
                    .or((self.lengths + usize::from(self.is_coded && self.lengths > 0) > 1)
                        .then_some(Flaw::Framing));
                let flaw = flaw.or(self.flaw);
                return Some((
                    next,
                    flaw.or((self.fields > self.fields_max).then_some(Flaw::ManyFields)),
                ));
            } else {
                self.fields += 1;
                // Nearly all fields are told by their first letter.
                match line.first() {
                    Some(b'c' | b'C') if is_named(line, b"content-length") => {
                        self.lengths += 1;
                        self.flaw =
                            self.flaw.or(is_endless(value_of(line)).then_some(Flaw::Endless));
                    }
                    Some(b't' | b'T') if is_named(line, b"transfer-encoding") => {
                        self.is_coded = true;
                        self.flaw =
                            self.flaw.or(is_foreign(value_of(line)).then_some(Flaw::Coding));
                    }
                    Some(b'e' | b'E') => self.waits |= is_named(line, b"expect"),
                    _ => {}
                }
            }
            self.line_at = next;
        }
        if bytes.len() <= self.bytes_max {
            return None;
        }
        Some((
            bytes.len(),
            Some(if self.first_end.is_none() { Flaw::LongLine } else { Flaw::LongHead }),
        ))
    }
}

/// Whether a field has this name, which is in lower case.
fn is_named(field: &[u8], name: &[u8]) -> bool {
    field.split(|&byte| byte == b':').next().is_some_and(|given| given.eq_ignore_ascii_case(name))
}

/// A field's value.
fn value_of(field: &[u8]) -> &[u8] {
    memchr::memchr(b':', field).map_or(&[][..], |at| field[at + 1..].trim_ascii())
}

/// Whether a length is a number, and one that no body has.
fn is_endless(value: &[u8]) -> bool {
    let number = std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    number.is_some_and(|text| text.parse::<u64>().map_or(true, |bytes| bytes > i64::MAX as u64))
}

/// Whether a list of transfer codings has another one than `chunked`.
fn is_foreign(value: &[u8]) -> bool {
    let codings = value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|coding| !coding.is_empty());
    codings.into_iter().any(|coding| !coding.eq_ignore_ascii_case(b"chunked"))
}

/// Method, target and version of a request line; the target is all that stands between the other
/// two. `None` for what is none.
fn request_line(line: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (first, last) = (memchr::memchr(b' ', line)?, memchr::memrchr(b' ', line)?);
    let version = &line[last + 1..];
    let is_one = first > 0 && first < last && version.starts_with(b"HTTP/");
    is_one.then(|| (&line[..first], &line[first + 1..last], version))
}

/// The head that hyper gets in the place of one with a flaw. `first` is where its request line
/// ends.
fn instead(head: &[u8], first: usize, flaw: Flaw) -> Bytes {
    let line = &head[..first.min(head.len())];
    let method = line.split(|&byte| byte == b' ').next().unwrap_or_default();
    // Of a line without an end, the version did not come.
    let version = request_line(line)
        .filter(|_| flaw.keeps_framing())
        .map_or(&b"HTTP/1.1"[..], |(_, _, version)| version);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let method = if !method.is_empty() && method.len() <= 32 && method.iter().all(is_token) {
        method
    } else {
        b"GET"
    };
    let target = flaw.target();
    let mut out = Vec::with_capacity(head.len() + 32);
    for part in [method, b" ", target.as_bytes(), b" ", version] {
        out.extend_from_slice(part);
    }
    match flaw.keeps_framing() {
        true => out.extend_from_slice(&head[first..]),
        false => out.extend_from_slice(b"\r\nhost: refused\r\nconnection: close\r\n\r\n"),
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hyper gets of `bytes`, which come in pieces of `piece`, where the service says of each
    /// head what `framing` says.
    fn handed(bytes: &[u8], piece: usize, framing: impl Fn(&[u8]) -> Framing) -> Vec<String> {
        let (mut heads, mut kept, mut out) = (Heads::new(128, 4), BytesMut::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            kept.extend_from_slice(bytes);
            loop {
                let handed = match heads.next() {
                    Next::Nothing => {
                        heads.told(framing(
                            out.last().map(|last: &String| last.as_bytes()).unwrap_or_default(),
                        ));
                        continue;
                    }
                    Next::Raw(left) if !kept.is_empty() => {
                        let bytes = kept.split_to(kept.len().min(left as usize)).freeze();
                        heads.passed(bytes.len());
                        bytes
                    }
                    Next::Raw(_) => break,
                    Next::Judged => match heads.take(&mut kept).unwrap() {
                        Some(bytes) => bytes,
                        None => break,
                    },
                };
                out.push(String::from_utf8_lossy(&handed).into_owned());
            }
        }
        out
    }

    fn framing(head: &[u8]) -> Framing {
        let head = String::from_utf8_lossy(head);
        match head.split("content-length: ").nth(1) {
            Some(rest) => Framing::Length(rest.split('\r').next().unwrap().parse().unwrap()),
            None if head.contains("chunked") => Framing::Chunked,
            None => Framing::Length(0),
        }
    }

    #[test]
    fn every_head_is_found_behind_every_body_and_in_any_pieces() {
        let requests = "\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\nPUT /b HTTP/1.1\n\
                        content-length: 30\r\n\nGET /not#this HTTP/1.1\r\n\r\n\
                        ....PUT /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n11\r\n\
                        GET /nor#this\r\n\r\n\r\n0\r\n\r\n\r\n\r\nDELETE /d#e HTTP/1.1\r\n\
                        x: y\r\n\r\n\
                        GET /f HTTP/1.1\r\n\r\n";
        for piece in 1..requests.len() {
            let handed = handed(requests.as_bytes(), piece, framing);
            let heads = handed.iter().filter(|part| {
                part.contains(" HTTP/1.1")
                    && part.ends_with('\n')
                    && part.contains("T /") | part.starts_with('D')
            });
            let starts: Vec<_> = heads
                .map(|head| head.split(' ').nth(1).unwrap())
                .filter(|target| *target != "/not#this")
                .collect();
            assert_eq!(
                starts,
                ["/a", "/b", "/c", "/-/refused/byte/23/2", "/f"],
                "in pieces of {piece}"
            );
            assert!(handed.concat().ends_with(
                "DELETE /-/refused/byte/23/2 HTTP/1.1\r\nx: y\r\n\r\nGET /f HTTP/1.1\r\n\r\n"
            ));
        }
    }

    #[test]
    fn what_has_a_flaw_is_handed_over_as_a_refusal() {
        let long = "y".repeat(200);
        for (head, expected) in [
            (
                "GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
                "GET /-/refused/byte/20/2 HTTP/1.1\r\nhost: x\r\n\r\n",
            ),
            ("GET /a\t HTTP/1.0\r\n\r\n", "GET /-/refused/byte/09/2 HTTP/1.0\r\n\r\n"),
            ("HEAD /ä HTTP/1.1\r\n\r\n", "HEAD /-/refused/byte/c3/1 HTTP/1.1\r\n\r\n"),
            ("GET * HTTP/1.1\r\n\r\n", "GET /-/refused/form HTTP/1.1\r\n\r\n"),
            (
                "PUT /a HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n",
                "PUT /-/refused/framing HTTP/1.1\r\nhost: refused",
            ),
            (
                "PUT /a HTTP/1.1\r\ncontent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "PUT /-/refused/framing HTTP/1.1\r\nhost",
            ),
            (
                "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked , GZIP\r\n\r\n",
                "PUT /-/refused/coding HTTP/1.1\r\nhost: refused",
            ),
            (
                "PUT /a HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n",
                "PUT /-/refused/coding HTTP/1.1\r\nhost: refused",
            ),
            (
                "PUT /a HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
                "PUT /-/refused/endless HTTP/1.1\r\nhost",
            ),
            (
                "PUT /a HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\n\r\n",
                "PUT /-/refused/fields HTTP/1.1\r\nhost: refused",
            ),
            (
                &format!("HEAD /{long} HTTP/1.1\r\n\r\n"),
                "HEAD /-/refused/line HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n",
            ),
            (
                &format!("PUT / HTTP/1.1\r\nx: {long}\r\n\r\n"),
                "PUT /-/refused/head HTTP/1.1\r\nhost: refused",
            ),
            (&format!("{long}{long}"), "GET /-/refused/line HTTP/1.1\r\n"),
            ("PUT /a HTTP/1.1\r\ntransfer-encoding: CHUNKED\r\n\r\n", "PUT /a HTTP/1.1"),
            ("PUT /a HTTP/1.1\r\ncontent-length: 9000000000000000000\r\n\r\n", "PUT /a HTTP/1.1"),
            // For hyper to refuse.
            ("nonsense\r\n\r\n", "nonsense\r\n\r\n"),
            ("GET /a#b\r\n\r\n", "GET /a#b\r\n\r\n"),
        ] {
            for piece in [1, 7, 1024] {
                let handed = handed(head.as_bytes(), piece, |_| Framing::Length(0));
                assert!(
                    handed[0].starts_with(expected),
                    "{head:?} in pieces of {piece}: {handed:?}"
                );
            }
            let as_it_is = Heads::new(128, 4).whole(head.as_bytes());
            assert_eq!(
                as_it_is,
                expected.starts_with(&head[..8]).then_some(head.len()),
                "{head:?}"
            );
        }
    }
}
