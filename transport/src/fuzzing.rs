//! The readers of what peers send, one function each, open to fuzzing alone: they are private,
//! since nobody else should come to depend on them, and a fuzz target is a package of its own.
//!
//! Each reads, and writes what it read again; whoever calls compares the two.

use crate::batch::{self, Answer};
use crate::certs::NodeName;
use crate::frame::{FrameDecoder, Gather};
use crate::handshake::{Hello, Identity};
use crate::lane::Lane;
use crate::requests;
use crate::snapshot;
use crate::writer::Source;
use bytes::Bytes;
use flotilla_router::DecodeError;
use std::sync::Arc;

/// A handshake as it comes, as the node of this identity judges it; and as it would be sent.
pub fn hello(bytes: Bytes, ours: Identity) -> Result<(Identity, Bytes), String> {
    let hello = Hello::decode(bytes).map_err(|refusal| refusal.to_string())?;
    let named = NodeName { node: hello.identity.node, cluster: ours.cluster };
    // What is refused is refused in words, which must not trip over what was said either.
    let _ = hello.check(ours, named, None).map_err(|refusal| refusal.to_string());
    Ok((hello.identity, hello.encode()))
}

/// The frames of a stream that comes in these pieces, up to where it breaks the rules. Whether it
/// ends within a frame.
pub fn frames(
    pieces: impl IntoIterator<Item = Bytes>,
    frame_bytes_max: usize,
) -> (Vec<Bytes>, bool) {
    let (mut decoder, mut frames) = (FrameDecoder::new(frame_bytes_max), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            match decoder.decode(&mut piece) {
                Ok(frame) => frames.extend(frame),
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, decoder.is_within_frame())
}

/// Frames as they leave.
pub fn gather(frames: &[Bytes]) -> Bytes {
    let mut gather = Gather::default();
    for frame in frames {
        gather.frame(frame.len());
        gather.payload(frame);
    }
    gather.pieces().concat().into()
}

/// The lane that a stream's first byte names, and its byte.
pub fn lane(tag: u8) -> Option<(Lane, u8)> {
    Lane::from_tag(tag).map(|lane| (lane, lane.tag()))
}

/// The requests of a frame, with their ids, and the stream that they would leave in.
pub fn requests(frame: Bytes) -> Result<(Vec<(u64, Bytes)>, Bytes), DecodeError> {
    let (mut reader, mut requests) = (batch::Requests::new(frame), Vec::new());
    while let Some(request) = reader.next()? {
        requests.push(request);
    }
    let mut gather = Gather::default();
    batch::put_requests(&mut gather, &requests);
    Ok((requests, gather.pieces().concat().into()))
}

/// Answers with the ids of their requests; `None` for one that was given up.
pub type Answers = Vec<(u64, Option<Bytes>)>;

/// The answers of a frame, and the stream that they would leave in.
pub fn answers(frame: Bytes) -> Result<(Answers, Bytes), DecodeError> {
    let (mut reader, mut answers) = (batch::Answers::new(frame), Vec::new());
    while let Some(answer) = reader.next()? {
        answers.push(answer);
    }
    let mut gather = Gather::default();
    batch::put_answers(&mut gather, &answers);
    let given = answers.into_iter().map(|(id, answer)| match answer {
        Answer::Given(bytes) => (id, Some(bytes)),
        Answer::Dropped => (id, None),
    });
    Ok((given.collect(), gather.pieces().concat().into()))
}

/// Asks `sent` requests of a peer and `unsent` more that wait, and takes these frames for its
/// answers; then the connection ends.
pub fn answered(sent: usize, unsent: usize, frames: &[Bytes]) {
    let requests = Arc::new(requests::Requests::new(Arc::default(), 1 << 20, 1 << 20));
    requests.open();
    let mut tickets: Vec<_> =
        (0..sent).filter_map(|_| requests.submit(Bytes::from_static(b"?")).ok()).collect();
    requests.gather(&mut Gather::default());
    tickets.extend((0..unsent).filter_map(|_| requests.submit(Bytes::from_static(b"?")).ok()));
    for frame in frames {
        if requests.answered(frame.clone()).is_err() {
            break;
        }
    }
    requests.close();
}

/// A verdict on a snapshot as it comes, and as it would be sent, without the length in front.
pub fn verdict(frame: Bytes) -> Result<Bytes, DecodeError> {
    snapshot::Verdict::decode(frame).map(|verdict| verdict.encode().slice(4..))
}

/// Whether a file of a snapshot may be called so.
pub fn is_file_name(name: &str) -> bool {
    snapshot::is_allowed_name(name)
}
