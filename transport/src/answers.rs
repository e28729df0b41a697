//! Requests of one connection, from the side that answers.
//!
//! Every request comes with a [`Responder`]; what it is given leaves with the other answers that
//! are ready by then, in one frame. Requests not yet answered and answers not yet written are
//! bounded in bytes: beyond that nothing more is read from the connection, and QUIC's flow control
//! holds the asker back.
//!
//! A request says nothing of how large its answer will be: many small ones that were taken in may
//! each be answered with much. So answers that carry data have a bound of their own
//! ([`DATA_BYTES_MAX`]); one that would pass it is replaced by what its giver says.

use crate::batch::{self, ANSWER_HEAD_BYTES, Answer};
use crate::frame::{GATHER_BYTES, Gather};
use crate::stats::Stats;
use crate::writer::Source;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// What a request costs beside its bytes: its responder, and what waits for it above.
const REQUEST_COST_BYTES: usize = 256;

/// Answers up to so many bytes are always taken: they say what became of a request.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// Bytes of larger answers of one connection that may wait: to be written where they are given, and
/// to be taken where they come in.
pub const DATA_BYTES_MAX: usize = 64 << 20;

/// The answers to one connection's requests.
pub(crate) struct Answers {
    state: Mutex<State>,
    ready: Notify,
    /// Is notified when there is room again.
    room: Notify,
    stats: Arc<Stats>,
    bytes_max: usize,
    frame_bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// Set when the connection is gone: nobody waits for an answer any more.
    closed: bool,
    queue: VecDeque<(u64, Answer)>,
    /// Of requests without an answer, answers in the queue, and answers being written.
    bytes: usize,
    /// Of the answers among them.
    answer_bytes: usize,
    /// Of answers being written.
    writing_bytes: usize,
}

impl Answers {
    /// For a new connection.
    pub(crate) fn new(stats: Arc<Stats>, bytes_max: usize, frame_bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            ready: Notify::new(),
            room: Notify::new(),
            stats,
            bytes_max,
            frame_bytes_max,
        }
    }

    /// Makes room for a request, waiting where there is none, and gives the responder for it.
    pub(crate) async fn admit(self: &Arc<Self>, id: u64, request_bytes: usize) -> Responder {
        let cost = request_bytes + REQUEST_COST_BYTES;
        loop {
            {
                let mut state = self.lock();
                if state.bytes == 0 || state.bytes + cost <= self.bytes_max || state.closed {
                    state.bytes += cost;
                    break;
                }
            }
            self.room.notified().await;
        }
        self.stats.requests_received.count();
        Responder { answers: Some(self.clone()), id, cost }
    }

    /// The connection is gone.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue = VecDeque::new();
        drop(state);
        self.room.notify_one();
    }

    fn push(
        &self,
        id: u64,
        cost: usize,
        mut answer: Answer,
        instead: impl FnOnce() -> Option<Bytes>,
    ) {
        if let Answer::Given(bytes) = &answer
            && bytes.len() + ANSWER_HEAD_BYTES > self.frame_bytes_max
        {
            tracing::error!(
                bytes = bytes.len(),
                self.frame_bytes_max,
                "an answer does not fit into a frame; it is dropped"
            );
            answer = Answer::Dropped;
        }
        if answer == Answer::Dropped {
            self.stats.requests_abandoned.count();
        }
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.bytes -= cost;
        let bytes = answer.frame_bytes();
        if bytes > SMALL_BYTES && state.answer_bytes + bytes > DATA_BYTES_MAX {
            self.stats.answers_refused.count();
            answer = instead().map_or(Answer::Dropped, Answer::Given);
        }
        state.bytes += answer.frame_bytes();
        state.answer_bytes += answer.frame_bytes();
        let was_empty = state.queue.is_empty();
        state.queue.push_back((id, answer));
        drop(state);
        if was_empty {
            self.ready.notify_one();
        }
        self.room.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the answers")
    }
}

impl Source for Answers {
    fn gather(&self, into: &mut Gather) -> usize {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let freed = {
            let mut state = self.lock();
            let freed = state.writing_bytes;
            state.bytes -= freed;
            state.answer_bytes -= freed;
            while bytes < GATHER_BYTES {
                let Some((_, answer)) = state.queue.front() else { break };
                if !batch.is_empty() && bytes + answer.frame_bytes() > self.frame_bytes_max {
                    break;
                }
                bytes += answer.frame_bytes();
                batch.extend(state.queue.pop_front());
            }
            state.writing_bytes = bytes;
            freed
        };
        if freed > 0 {
            self.room.notify_one();
        }
        if batch.is_empty() {
            return 0;
        }
        batch::put_answers(into, &batch);
        1
    }

    fn ready(&self) -> &Notify {
        &self.ready
    }
}

/// Answers one request, from any thread. Dropped without an answer, it tells the asker at once that
/// the request is lost.
#[derive(Debug)]
#[must_use = "a responder that is dropped tells the asker that its request is lost"]
pub struct Responder {
    answers: Option<Arc<Answers>>,
    id: u64,
    cost: usize,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Responder {
    /// Queues the answer. Where the asker is gone by now, nothing happens.
    pub fn respond(self, answer: Bytes) {
        self.respond_or(answer, || None);
    }

    /// Queues the answer, or what is said instead where it is large and too much waits to be
    /// written already; with nothing said, the request is lost.
    pub fn respond_or(mut self, answer: Bytes, instead: impl FnOnce() -> Option<Bytes>) {
        if let Some(answers) = self.answers.take() {
            answers.push(self.id, self.cost, Answer::Given(answer), instead);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            answers.push(self.id, self.cost, Answer::Dropped, || None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const MOMENT: Duration = Duration::from_millis(20);

    fn answers(bytes_max: usize) -> Arc<Answers> {
        Arc::new(Answers::new(Arc::default(), bytes_max, 1000))
    }

    #[tokio::test]
    async fn beyond_the_bound_nothing_more_is_taken_until_an_answer_is_written() {
        let answers = answers(500);
        let first = answers.admit(1, 100).await;
        assert!(timeout(MOMENT, answers.admit(2, 100)).await.is_err());
        first.respond(vec![0; 400].into());
        assert!(timeout(MOMENT, answers.admit(2, 100)).await.is_err(), "the answer still waits");
        let mut gather = Gather::default();
        assert_eq!(answers.gather(&mut gather), 1);
        assert!(
            timeout(MOMENT, answers.admit(2, 100)).await.is_err(),
            "the answer is still being written"
        );
        gather.clear();
        assert_eq!(answers.gather(&mut gather), 0);
        drop(timeout(MOMENT, answers.admit(2, 100)).await.unwrap());
    }

    #[tokio::test]
    async fn a_dropped_responder_says_so_and_one_too_large_as_well() {
        let answers = answers(10_000);
        drop(answers.admit(1, 1).await);
        answers.admit(2, 1).await.respond(vec![0; 1000].into());
        answers.admit(3, 1).await.respond("yes".into());
        let queue: Vec<_> = answers.lock().queue.drain(..).collect();
        assert_eq!(
            queue,
            [(1, Answer::Dropped), (2, Answer::Dropped), (3, Answer::Given("yes".into()))]
        );
        assert_eq!(answers.stats.requests_abandoned.get(), 2);
    }

    #[tokio::test]
    async fn answers_with_data_are_bounded_and_others_always_taken() {
        let answers = Arc::new(Answers::new(Arc::default(), 1 << 30, 2 << 20));
        let data = Bytes::from(vec![0; 1 << 20]);
        for id in 0..80 {
            answers.admit(id, 1).await.respond_or(data.clone(), || Some("no room".into()));
        }
        for id in 80..90 {
            answers.admit(id, 1).await.respond("small".into());
        }
        let queue: Vec<_> = answers.lock().queue.iter().map(|(_, answer)| answer.clone()).collect();
        let count = |wanted: &[u8]| {
            queue.iter().filter(|a| matches!(a, Answer::Given(bytes) if bytes == wanted)).count()
        };
        assert_eq!((count(&data), count(b"no room"), count(b"small")), (63, 17, 10));
        assert_eq!(answers.stats.answers_refused.get(), 17);
    }

    #[tokio::test]
    async fn after_the_connection_is_gone_answers_go_nowhere() {
        let answers = answers(500);
        let responder = answers.admit(1, 100).await;
        answers.close();
        responder.respond("late".into());
        assert!(answers.lock().queue.is_empty());
        drop(timeout(MOMENT, answers.admit(2, 400)).await.unwrap());
    }
}
