//! Requests to one peer, from the asker's side: queued, sent, answered, and never left without an
//! end.
//!
//! ```text
//!            ┌─ no connection ──────────────────────────────────────────────► NotSent
//!            ├─ full ───────────────────────────────────────────────────────► Full
//!  submit ───┴► queued ──┬─ connection lost ────────────────────────────────► NotSent
//!                        ├─ deadline, asker gone ───────────────────────────► TooLate
//!                        └► sent ──┬─ answer ───────────────────────────────► the answer
//!                                  ├─ connection lost, peer gave up ────────► Lost
//!                                  └─ deadline ─────────────────────────────► Expired
//! ```
//!
//! Answers that were not taken are bounded, too: beyond [`DATA_BYTES_MAX`] of them, one that
//! carries data is let go, and its asker told ([`RequestError::NoRoom`]). An answer that is small
//! beside its frame is copied out of it, so that it keeps nothing else alive.
//!
//! A request counts as sent from the moment the writer takes it, before QUIC sees a byte of it:
//! `NotSent`, `TooLate` and `Full` are certain, the others are not. The bytes of a queued request
//! lie with its entry, not in the queue, so that one whose asker went away is freed at once however
//! long the queue stands still.

use crate::answers::{DATA_BYTES_MAX, SMALL_BYTES};
use crate::batch::{self, Answer, REQUEST_HEAD_BYTES};
use crate::error::RequestError;
use crate::frame::{GATHER_BYTES, Gather};
use crate::stats::Stats;
use crate::writer::Source;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// The most ids in the queue, those of requests already given up included.
const QUEUE_MAX: usize = 1 << 20;

/// The requests to one peer.
pub(crate) struct Requests {
    state: Mutex<State>,
    /// Of answers that their askers have not taken.
    untaken_bytes: AtomicUsize,
    ready: Notify,
    stats: Arc<Stats>,
    in_flight_bytes_max: usize,
    frame_bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// Whether there is a connection whose writer empties the queue.
    open: bool,
    /// Never reused, so that a late answer finds nobody rather than somebody else.
    next_id: u64,
    /// Ids in the order of their coming; one that is not pending any more is passed over.
    queue: VecDeque<u64>,
    pending: HashMap<u64, Pending>,
    /// Of all that is pending.
    bytes: usize,
}

struct Pending {
    /// Still to be sent, where it is there.
    unsent: Option<Bytes>,
    bytes: usize,
    reply: oneshot::Sender<Result<Untaken, RequestError>>,
}

/// An answer that its asker has not taken.
struct Untaken {
    requests: Arc<Requests>,
    bytes: Bytes,
    counted: usize,
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.requests.untaken_bytes.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Requests {
    /// Without a connection.
    pub(crate) fn new(
        stats: Arc<Stats>,
        in_flight_bytes_max: usize,
        frame_bytes_max: usize,
    ) -> Self {
        let untaken_bytes = AtomicUsize::new(0);
        Self {
            state: Mutex::default(),
            untaken_bytes,
            ready: Notify::new(),
            stats,
            in_flight_bytes_max,
            frame_bytes_max,
        }
    }

    /// Queues a request.
    pub(crate) fn submit(self: &Arc<Self>, request: Bytes) -> Result<Ticket, RequestError> {
        let not_sent = |why| {
            self.stats.requests_not_sent.count();
            Err(RequestError::NotSent(why))
        };
        let bytes = request.len() + REQUEST_HEAD_BYTES;
        if bytes > self.frame_bytes_max {
            return not_sent("it is larger than a frame");
        }
        let mut state = self.lock();
        if !state.open {
            return not_sent("there is no connection to that node");
        }
        if !self.fits(&state, bytes) {
            self.stats.requests_not_sent.count();
            return Err(RequestError::Full { limit: self.in_flight_bytes_max });
        }
        let id = state.next_id;
        state.next_id += 1;
        state.bytes += bytes;
        let (reply, answer) = oneshot::channel();
        state.pending.insert(id, Pending { unsent: Some(request), bytes, reply });
        let was_empty = state.queue.is_empty();
        state.queue.push_back(id);
        drop(state);
        if was_empty {
            self.ready.notify_one();
        }
        Ok(Ticket { requests: self.clone(), id, answer, ended: false })
    }

    fn fits(&self, state: &State, bytes: usize) -> bool {
        (state.bytes == 0 || state.bytes + bytes <= self.in_flight_bytes_max)
            && state.queue.len() < QUEUE_MAX
    }

    /// Whether a request of so many bytes would not be too much; the limit, where it would.
    pub(crate) fn has_room(&self, request_bytes: usize) -> Result<(), usize> {
        let fits = self.fits(&self.lock(), request_bytes + REQUEST_HEAD_BYTES);
        if fits { Ok(()) } else { Err(self.in_flight_bytes_max) }
    }

    /// A writer is there from now on.
    pub(crate) fn open(&self) {
        self.lock().open = true;
    }

    /// The connection is gone, and with it all that is pending.
    pub(crate) fn close(&self) {
        let pending = {
            let mut state = self.lock();
            state.open = false;
            state.bytes = 0;
            state.queue.clear();
            std::mem::take(&mut state.pending)
        };
        for pending in pending.into_values() {
            let error = if pending.unsent.is_some() {
                self.stats.requests_not_sent.count();
                RequestError::NotSent("the connection to that node was lost before it left")
            } else {
                self.stats.requests_lost.count();
                RequestError::Lost
            };
            // An asker that went away needs no answer.
            let _ = pending.reply.send(Err(error));
        }
    }

    /// Takes a frame of answers in.
    pub(crate) fn answered(
        self: &Arc<Self>,
        frame: Bytes,
    ) -> Result<(), flotilla_router::DecodeError> {
        let frame_bytes = frame.len();
        let mut answers = batch::Answers::new(frame);
        while let Some((id, answer)) = answers.next()? {
            let pending = {
                let mut state = self.lock();
                match state.pending.get(&id) {
                    // An answer to what was never asked, or not yet sent, is ignored; so is one
                    // that comes too late.
                    Some(pending) if pending.unsent.is_none() => state.remove(id),
                    _ => None,
                }
            };
            let Some(pending) = pending else { continue };
            let result = match answer {
                Answer::Given(bytes) => {
                    self.stats.requests_answered.count();
                    self.untaken(if bytes.len() < frame_bytes / 2 {
                        Bytes::copy_from_slice(&bytes)
                    } else {
                        bytes
                    })
                }
                Answer::Dropped => {
                    self.stats.requests_lost.count();
                    Err(RequestError::Lost)
                }
            };
            let _ = pending.reply.send(result);
        }
        Ok(())
    }

    /// An answer on its way to its asker, where there is room.
    fn untaken(self: &Arc<Self>, bytes: Bytes) -> Result<Untaken, RequestError> {
        let counted = bytes.len();
        let before = self.untaken_bytes.fetch_add(counted, Ordering::Relaxed);
        let answer = Untaken { requests: self.clone(), bytes, counted };
        if counted > SMALL_BYTES && before + counted > DATA_BYTES_MAX {
            return Err(RequestError::NoRoom);
        }
        Ok(answer)
    }

    /// Gives a request up; `None` where it has come to its end already.
    fn give_up(&self, id: u64) -> Option<RequestError> {
        let pending = self.lock().remove(id)?;
        if pending.unsent.is_some() {
            self.stats.requests_not_sent.count();
            Some(RequestError::TooLate)
        } else {
            self.stats.requests_expired.count();
            Some(RequestError::Expired)
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the requests")
    }
}

impl State {
    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.bytes -= pending.bytes;
        Some(pending)
    }
}

impl Source for Requests {
    fn gather(&self, into: &mut Gather) -> usize {
        let mut batch = Vec::new();
        let mut bytes = 0;
        {
            let mut state = self.lock();
            while bytes < GATHER_BYTES {
                let Some(id) = state.queue.pop_front() else { break };
                let Some(pending) = state.pending.get_mut(&id) else { continue };
                if !batch.is_empty() && bytes + pending.bytes > self.frame_bytes_max {
                    state.queue.push_front(id);
                    break;
                }
                // From here on it counts as sent.
                let Some(request) = pending.unsent.take() else { continue };
                bytes += pending.bytes;
                batch.push((id, request));
            }
        }
        if batch.is_empty() {
            return 0;
        }
        self.stats.requests_sent.add(batch.len() as u64);
        batch::put_requests(into, &batch);
        1
    }

    fn ready(&self) -> &Notify {
        &self.ready
    }
}

/// A request under way. Dropping it gives the request up.
pub(crate) struct Ticket {
    requests: Arc<Requests>,
    id: u64,
    answer: oneshot::Receiver<Result<Untaken, RequestError>>,
    ended: bool,
}

impl Ticket {
    /// Waits for the end, until `deadline` at the latest.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Result<Bytes, RequestError> {
        let result = match tokio::time::timeout_at(deadline.into(), &mut self.answer).await {
            Ok(result) => result,
            Err(_) => match self.requests.give_up(self.id) {
                Some(error) => Ok(Err(error)),
                // It ended in this very moment: the end is there.
                None => (&mut self.answer).await,
            },
        };
        self.ended = true;
        // Who takes a request out of the table always says how it ended.
        result
            .unwrap_or(Err(RequestError::Lost))
            .map(|mut untaken| std::mem::take(&mut untaken.bytes))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            self.requests.give_up(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn requests(in_flight_bytes_max: usize) -> Arc<Requests> {
        let requests = Arc::new(Requests::new(Arc::default(), in_flight_bytes_max, 1 << 20));
        requests.open();
        requests
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn answer_frame(answers: &[(u64, Answer)]) -> Bytes {
        let mut gather = Gather::default();
        batch::put_answers(&mut gather, answers);
        Bytes::from(gather.pieces().concat()).slice(4..)
    }

    #[tokio::test]
    async fn what_has_not_left_is_not_sent_and_what_has_left_is_lost() {
        let requests = requests(1000);
        let sent = requests.submit("a".into()).unwrap();
        assert_eq!(requests.gather(&mut Gather::default()), 1);
        let queued = requests.submit("b".into()).unwrap();
        requests.close();
        assert_eq!(sent.wait(soon()).await, Err(RequestError::Lost));
        assert!(matches!(queued.wait(soon()).await, Err(RequestError::NotSent(_))));
        assert!(matches!(requests.submit("c".into()), Err(RequestError::NotSent(_))));
    }

    #[tokio::test]
    async fn a_deadline_tells_whether_it_had_left() {
        let requests = requests(1000);
        let sent = requests.submit("a".into()).unwrap();
        requests.gather(&mut Gather::default());
        let queued = requests.submit("b".into()).unwrap();
        assert_eq!(sent.wait(soon()).await, Err(RequestError::Expired));
        assert_eq!(queued.wait(soon()).await, Err(RequestError::TooLate));
        assert_eq!(
            requests.gather(&mut Gather::default()),
            0,
            "a request that was given up left after all"
        );
        requests.answered(answer_frame(&[(0, Answer::Given("late".into()))])).unwrap();
    }

    #[tokio::test]
    async fn the_bytes_under_way_are_bounded_and_come_free() {
        let requests = requests(100);
        let first = requests.submit(vec![0; 60].into()).unwrap();
        assert!(matches!(
            requests.submit(vec![0; 60].into()),
            Err(RequestError::Full { limit: 100 })
        ));
        assert_eq!((requests.has_room(60), requests.has_room(10)), (Err(100), Ok(())));
        drop(first);
        let second = requests.submit(vec![0; 60].into()).unwrap();
        requests.gather(&mut Gather::default());
        requests.answered(answer_frame(&[(1, Answer::Given("yes".into()))])).unwrap();
        assert_eq!(second.wait(soon()).await, Ok("yes".into()));
        assert_eq!(requests.lock().bytes, 0);
        assert!(matches!(requests.submit(vec![0; 1 << 20].into()), Err(RequestError::NotSent(_))));
    }

    #[tokio::test]
    async fn answers_that_nobody_takes_are_bounded() {
        let requests = requests(1 << 20);
        let asked: Vec<_> = (0..80).map(|_| requests.submit("get".into()).unwrap()).collect();
        requests.gather(&mut Gather::default());
        let data = Bytes::from(vec![7; 1 << 20]);
        for id in 0..80 {
            requests.answered(answer_frame(&[(id, Answer::Given(data.clone()))])).unwrap();
        }
        let small = requests.submit("put".into()).unwrap();
        requests.gather(&mut Gather::default());
        requests.answered(answer_frame(&[(80, Answer::Given("written".into()))])).unwrap();
        assert_eq!(small.wait(soon()).await, Ok("written".into()), "what was done must be told");
        let (mut taken, mut refused) = (0, 0);
        for ticket in asked {
            match ticket.wait(soon()).await {
                Ok(bytes) => taken += bytes.len(),
                Err(error) => refused += usize::from(error == RequestError::NoRoom),
            }
        }
        assert_eq!((taken, refused), (DATA_BYTES_MAX, 16));
        assert_eq!(requests.untaken_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_forged_answer_to_what_is_still_queued_is_ignored() {
        let requests = requests(1000);
        let queued = requests.submit("a".into()).unwrap();
        requests
            .answered(answer_frame(&[(0, Answer::Given("forged".into())), (99, Answer::Dropped)]))
            .unwrap();
        assert_eq!(queued.wait(soon()).await, Err(RequestError::TooLate));
    }
}
