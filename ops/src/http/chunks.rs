//! Where a chunked body ends. hyper takes the chunks apart; this only follows it, so that the head
//! behind them is found.
//!
//! Stricter than hyper wherever the two could part: what is not
//! `size CRLF data CRLF … 0 CRLF trailers CRLF`, to the byte, is no body. Two programs that find
//! different ends let one request hide within another.

/// The most bytes of one line: a chunk's extensions, or a trailer. hyper has limits of its own over
/// all of them.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Where in a chunked body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a size, of which so many digits were seen.
    Size { value: u64, digits: u8 },
    /// Behind a size, at what an extension may be.
    Extension { value: u64, seen: usize },
    /// Behind the CR of a size.
    SizeLf(u64),
    /// In the data; so much is left.
    Data(u64),
    /// Behind the data.
    DataCr,
    /// Behind the CR behind the data.
    DataLf,
    /// In a trailer, or at the empty line that ends them all.
    Trailer { seen: usize },
    /// Behind the CR of a trailer; whether it was empty.
    TrailerLf { last: bool },
    /// Behind the last byte.
    End,
}

/// Follows a chunked body.
#[derive(Debug)]
pub(super) struct Chunks(Place);

/// This is no chunked body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoChunk;

impl Chunks {
    pub(super) fn new() -> Self {
        Self(Place::Size { value: 0, digits: 0 })
    }

    /// Whether the body is over.
    pub(super) fn is_over(&self) -> bool {
        self.0 == Place::End
    }

    /// How many of these bytes belong to the body. Those in front of a fault are told first, the
    /// fault at the next call.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, NoChunk> {
        let mut at = 0;
        while at < bytes.len() && self.0 != Place::End {
            if let Place::Data(left) = self.0 {
                let here = left.min((bytes.len() - at) as u64);
                at += here as usize;
                self.0 = if here == left { Place::DataCr } else { Place::Data(left - here) };
                continue;
            }
            match step(self.0, bytes[at]) {
                Some(next) => (self.0, at) = (next, at + 1),
                None if at > 0 => return Ok(at),
                None => return Err(NoChunk),
            }
        }
        Ok(at)
    }
}

/// Where one byte leads; nowhere if it must not stand there.
fn step(place: Place, byte: u8) -> Option<Place> {
    match (place, byte) {
        (Place::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
            let digit = char::from(byte).to_digit(16)?;
            (digits < 16).then_some(Place::Size {
                value: (value << 4) | u64::from(digit),
                digits: digits + 1,
            })
        }
        (Place::Size { digits: 0, .. }, _) => None,
        (Place::Size { value, .. } | Place::Extension { value, .. }, b'\r') => {
            Some(Place::SizeLf(value))
        }
        (Place::Size { value, .. }, b';' | b' ' | b'\t') => {
            Some(Place::Extension { value, seen: 0 })
        }
        (Place::Extension { value, seen }, _) if byte != b'\n' && seen < LINE_BYTES_MAX => {
            Some(Place::Extension { value, seen: seen + 1 })
        }
        (Place::SizeLf(0), b'\n') => Some(Place::Trailer { seen: 0 }),
        (Place::SizeLf(value), b'\n') => Some(Place::Data(value)),
        (Place::DataCr, b'\r') => Some(Place::DataLf),
        (Place::DataLf, b'\n') => Some(Place::Size { value: 0, digits: 0 }),
        (Place::Trailer { seen }, b'\r') => Some(Place::TrailerLf { last: seen == 0 }),
        (Place::Trailer { seen }, _) if byte != b'\n' && seen < LINE_BYTES_MAX => {
            Some(Place::Trailer { seen: seen + 1 })
        }
        (Place::TrailerLf { last }, b'\n') => {
            Some(if last { Place::End } else { Place::Trailer { seen: 0 } })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `follow` makes of bytes in pieces of `piece`: how many belong to the body, and whether
    /// it is over.
    fn followed(bytes: &[u8], piece: usize) -> Result<(usize, bool), NoChunk> {
        let (mut chunks, mut at) = (Chunks::new(), 0);
        while at < bytes.len() && !chunks.is_over() {
            at += chunks.follow(&bytes[at..(at + piece).min(bytes.len())])?;
        }
        Ok((at, chunks.is_over()))
    }

    #[test]
    fn the_end_is_found_in_pieces_of_any_size() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;name=value\r\n0\r\n\r\n\r\n00a \t;x\r\n0123456789\r\n0\r\n\r\n",
            "1\r\nx\r\n0;last\r\ntrailer: a\r\nother:\r\n\r\n",
        ] {
            let with_next = format!("{body}GET / HTTP/1.1\r\n\r\n");
            for piece in 1..=with_next.len() {
                assert_eq!(
                    followed(with_next.as_bytes(), piece),
                    Ok((body.len(), true)),
                    "{body:?} in pieces of {piece}"
                );
            }
            assert_eq!(
                followed(&body.as_bytes()[..body.len() - 1], 3),
                Ok((body.len() - 1, false))
            );
        }
    }

    #[test]
    fn what_another_program_could_read_otherwise_is_no_body() {
        for body in [
            "\r\n",
            "x\r\n",
            ";\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\rhello",
            "5;a\nb\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "3\r\nhello\r\n",
            "00000000000000005\r\nhello\r\n",
            "0\r\na: b\n\r\n",
            "0\r\n\rx",
        ] {
            for piece in [1, 2, 64] {
                assert_eq!(
                    followed(body.as_bytes(), piece),
                    Err(NoChunk),
                    "{body:?} in pieces of {piece}"
                );
            }
        }
        assert_eq!(
            followed(format!("1;{}", "a".repeat(LINE_BYTES_MAX + 2)).as_bytes(), 512),
            Err(NoChunk)
        );
    }
}
