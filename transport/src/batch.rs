//! Many requests, or many answers, in one frame.
//!
//! A frame of requests is a row of: id (8) ‖ length (4) ‖ request. A frame of answers: id (8) ‖
//! kind (1) ‖ length (4) ‖ answer. Ids are the asker's, fresh for every request, and come back with
//! the answer.

use crate::frame::Gather;
use bytes::Bytes;
use flotilla_router::DecodeError;
use flotilla_router::codec::Reader;

/// What a request needs beside its bytes.
pub(crate) const REQUEST_HEAD_BYTES: usize = 12;
/// What an answer needs beside its bytes.
pub(crate) const ANSWER_HEAD_BYTES: usize = 13;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was answered.
    Given(Bytes),
    /// It was given up without an answer; what was done of it is unknown.
    Dropped,
}

impl Answer {
    /// Its size in a frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        ANSWER_HEAD_BYTES
            + match self {
                Self::Given(bytes) => bytes.len(),
                Self::Dropped => 0,
            }
    }
}

/// Lays a frame of requests into `into`.
pub(crate) fn put_requests(into: &mut Gather, requests: &[(u64, Bytes)]) {
    into.frame(requests.iter().map(|(_, request)| REQUEST_HEAD_BYTES + request.len()).sum());
    for (id, request) in requests {
        into.u64(*id);
        into.u32(u32::try_from(request.len()).expect("requests fit into a frame"));
        into.payload(request);
    }
}

/// Lays a frame of answers into `into`.
pub(crate) fn put_answers(into: &mut Gather, answers: &[(u64, Answer)]) {
    into.frame(answers.iter().map(|(_, answer)| answer.frame_bytes()).sum());
    for (id, answer) in answers {
        into.u64(*id);
        match answer {
            Answer::Given(bytes) => {
                into.u8(0);
                into.u32(u32::try_from(bytes.len()).expect("answers fit into a frame"));
                into.payload(bytes);
            }
            Answer::Dropped => {
                into.u8(1);
                into.u32(0);
            }
        }
    }
}

/// The requests of a frame, one after the other.
pub(crate) struct Requests(Reader);

impl Requests {
    /// Reads a frame.
    pub(crate) fn new(frame: Bytes) -> Self {
        Self(Reader::new("request frame", frame))
    }

    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Bytes)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        Ok(Some((self.0.u64()?, self.0.bytes()?)))
    }
}

/// The answers of a frame, one after the other.
pub(crate) struct Answers(Reader);

impl Answers {
    /// Reads a frame.
    pub(crate) fn new(frame: Bytes) -> Self {
        Self(Reader::new("answer frame", frame))
    }

    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Answer)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let id = self.0.u64()?;
        let kind = self.0.u8()?;
        let bytes = self.0.bytes()?;
        match kind {
            0 => Ok(Some((id, Answer::Given(bytes)))),
            1 if bytes.is_empty() => Ok(Some((id, Answer::Dropped))),
            _ => Err(self.0.error(format!("unknown kind {kind}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameDecoder;
    use proptest::prelude::*;

    fn frame_of(put: impl FnOnce(&mut Gather)) -> Bytes {
        let mut gather = Gather::default();
        put(&mut gather);
        let mut wire = Bytes::from(gather.pieces().concat());
        let frame = FrameDecoder::new(1 << 20).decode(&mut wire).unwrap().unwrap();
        assert!(wire.is_empty(), "the frame's length is not what was put into it");
        frame
    }

    fn requests_of(frame: Bytes) -> Result<Vec<(u64, Bytes)>, DecodeError> {
        let mut requests = Requests::new(frame);
        std::iter::from_fn(|| requests.next().transpose()).collect()
    }

    fn answers_of(frame: Bytes) -> Result<Vec<(u64, Answer)>, DecodeError> {
        let mut answers = Answers::new(frame);
        std::iter::from_fn(|| answers.next().transpose()).take(1000).collect()
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from),
            (20_000usize..30_000).prop_map(|n| Bytes::from(vec![5; n])),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            requests in proptest::collection::vec((any::<u64>(), bytes()), 0..10),
        ) {
            let frame = frame_of(|gather| put_requests(gather, &requests));
            prop_assert_eq!(requests_of(frame).unwrap(), requests);
        }

        #[test]
        fn answers_survive_the_wire(
            answers in proptest::collection::vec(
                (any::<u64>(), proptest::option::of(bytes())), 0..10),
        ) {
            let answers: Vec<_> =
                answers
                    .into_iter()
                    .map(|(id, bytes)| (id, bytes.map_or(Answer::Dropped, Answer::Given)))
                    .collect();
            let frame = frame_of(|gather| put_answers(gather, &answers));
            prop_assert_eq!(answers_of(frame).unwrap(), answers);
        }

        #[test]
        fn arbitrary_frames_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..100)) {
            let frame = Bytes::from(frame);
            let _ = requests_of(frame.clone());
            let _ = answers_of(frame);
        }

        #[test]
        fn a_cut_frame_is_refused(request in bytes(), cut in 1usize..12) {
            let frame = frame_of(|gather| put_requests(gather, &[(1, request)]));
            let short = frame.slice(..frame.len() - cut.min(frame.len() - 1));
            prop_assert!(requests_of(short).is_err());
        }
    }
}
