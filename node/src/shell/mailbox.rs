//! The loop's input: events of the core, and questions whose askers wait on a channel.
//!
//! What the loop's own hands report (persisted, applied, …) is always taken, because it is bounded
//! by the work that was handed out; so are the two orders with which a shutdown begins and ends.
//! What comes from outside is turned away when too much waits, in number or in bytes: a frame is
//! dropped, as the network may do, and a question is refused.

use super::View;
use super::clock;
use super::queue::Queue;
use crate::core::{Ask, Done, Event, Time};
use flotilla_router::call::Staleness;
use flotilla_router::{Descriptor, Outcome, Refusal};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Above this many waiting inputs, those from outside are turned away.
const WAITING_MAX: usize = 100_000;
/// The same in bytes: of entries that peers send, and of values that clients do. Far above what a
/// pass leaves behind, far below what would hurt.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// What a read may look at.
#[derive(Clone)]
pub struct Grant {
    /// The state at a moment that its consistency allows. Shared by all reads of the pass.
    pub view: Arc<View>,
    /// What the shard was at that moment.
    pub descriptor: Arc<Descriptor>,
    /// For stale reads, how old that state may be, as of `at`.
    pub staleness: Option<Staleness>,
    /// When the core granted it, on its clock.
    pub at: Time,
}

/// What the loop says to something that was asked and not refused.
pub enum Answered {
    /// A read may look.
    Granted(Grant),
    /// It was done.
    Done(Done),
}

impl Answered {
    /// What a read may look at.
    pub fn granted(self) -> Result<Grant, Refusal> {
        match self {
            Self::Granted(grant) => Ok(grant),
            Self::Done(_) => Err(another_answer()),
        }
    }
}

/// The refusal where the loop answered something else than was asked: a mistake of ours.
pub fn another_answer() -> Refusal {
    Refusal::Internal {
        why: "the loop answered another question".into(),
        outcome: Outcome::Unknown,
    }
}

/// Who waits for an answer.
pub enum ReplyTo {
    /// A task of this node.
    Task(oneshot::Sender<Result<Answered, Refusal>>),
    /// A request of another node: what to do with the answer. Saves a task, and its waking, for
    /// each of them.
    Peer(Box<dyn FnOnce(Result<Answered, Refusal>) + Send>),
}

impl ReplyTo {
    /// Gives the answer; nobody may wait for it any more.
    pub fn send(self, answer: Result<Answered, Refusal>) {
        match self {
            Self::Task(sender) => drop(sender.send(answer)),
            Self::Peer(answered) => answered(answer),
        }
    }
}

/// One input.
#[allow(clippy::large_enum_variant, reason = "a box per event would cost more than the copy")]
pub enum Mail {
    /// An event as the core knows it.
    Event(Event),
    /// Events that came in one frame.
    Events {
        /// In their order.
        events: Vec<Event>,
        /// The length of the frame, which they keep in memory.
        bytes: usize,
    },
    /// Somebody asks something of the core.
    Ask {
        /// What.
        ask: Ask,
        /// When whoever asks stops waiting.
        deadline: Time,
        /// Who waits.
        reply: ReplyTo,
    },
    /// Hand over what is led here; answered when that is done.
    Drain {
        /// Who waits.
        reply: oneshot::Sender<()>,
    },
    /// End the loop.
    Stop,
}

impl Mail {
    /// What it holds in memory, as far as somebody outside decides that.
    fn bytes(&self) -> usize {
        match self {
            Self::Events { bytes, .. } => *bytes,
            Self::Ask { ask: Ask::Write { command, .. }, .. } => command.encoded_bytes(),
            _ => 0,
        }
    }
}

/// Whether there is room for more from outside.
fn is_welcome(items: usize, bytes: usize) -> bool {
    items < WAITING_MAX && bytes < WAITING_BYTES_MAX
}

/// The mailbox; cheap to clone.
#[derive(Clone)]
pub struct Mailbox {
    queue: Arc<Queue<Mail>>,
    started: Instant,
    /// The same moment on the core's clock.
    begun: Time,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self { queue: Arc::default(), started: Instant::now(), begun: clock::now() }
    }
}

impl Mailbox {
    /// Waits for mail until `deadline`, and takes all there is.
    pub fn take(&self, into: &mut Vec<Mail>, deadline: Instant) {
        self.queue.take(into, Some(deadline));
    }

    /// The core's time: [`clock`]'s, from when the mailbox was made.
    pub fn now(&self) -> Time {
        clock::now().saturating_sub(self.begun)
    }

    /// The core's time at a moment that is to come.
    pub fn deadline(&self, instant: Instant) -> Time {
        self.now() + instant.saturating_duration_since(Instant::now())
    }

    /// The time for which the process has been awake, up to `instant`.
    pub fn time(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.started)
    }

    /// Reports what the loop waits for. Always taken; when the loop has ended nobody listens any
    /// more.
    pub fn report(&self, event: Event) {
        self.queue.send(Mail::Event(event));
    }

    /// Hands in what came from outside; `false` when too much waits, or the loop has ended.
    pub fn offer(&self, mail: Mail) -> bool {
        let bytes = mail.bytes();
        self.queue.send_if(mail, bytes, is_welcome)
    }

    /// Asks something of the core, and waits for what it says. `gone` is what is said when the loop
    /// has ended before it did.
    pub async fn ask(
        &self,
        ask: Ask,
        deadline: Instant,
        gone: Refusal,
    ) -> Result<Answered, Refusal> {
        let (reply, answered) = oneshot::channel();
        let deadline = self.deadline(deadline);
        if !self.offer(Mail::Ask { ask, deadline, reply: ReplyTo::Task(reply) }) {
            return Err(overloaded());
        }
        answered.await.unwrap_or(Err(gone))
    }

    /// Whether [`Mailbox::offer`] would turn something away.
    pub fn is_full(&self) -> bool {
        let (items, bytes) = self.queue.load();
        !is_welcome(items, bytes)
    }

    /// Hands the order in to give up leadership. Taken however much waits; the answer comes when it
    /// is done.
    pub fn drain(&self) -> oneshot::Receiver<()> {
        let (reply, drained) = oneshot::channel();
        self.queue.send(Mail::Drain { reply });
        drained
    }

    /// Hands the order in to end. Taken however much waits, for whoever gave it will wait for the
    /// end.
    pub fn stop(&self) {
        self.queue.send(Mail::Stop);
    }

    /// The loop has ended: takes nothing more, and drops what waits.
    pub fn close(&self) {
        self.queue.close();
        self.queue.take(&mut Vec::new(), None);
    }

    /// How much waits.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

/// The refusal of what [`Mailbox::offer`] turned away.
fn overloaded() -> Refusal {
    Refusal::Overloaded {
        what: "requests waiting for the node's loop".into(),
        limit: WAITING_MAX as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(bytes: usize) -> Mail {
        Mail::Events { events: Vec::new(), bytes }
    }

    /// Whoever gives one waits for the end of the loop, and would wait for ever if it were turned
    /// away.
    #[test]
    fn a_full_mailbox_takes_the_orders_of_a_shutdown() {
        let mailbox = Mailbox::default();
        (0..WAITING_MAX).for_each(|_| assert!(mailbox.offer(frame(0))));
        assert!(mailbox.is_full() && !mailbox.offer(frame(0)));
        let _drained = mailbox.drain();
        mailbox.stop();
        let mut taken = Vec::new();
        mailbox.take(&mut taken, Instant::now() + Duration::from_secs(10));
        assert!(
            matches!(taken[WAITING_MAX..], [Mail::Drain { .. }, Mail::Stop]),
            "{} were taken",
            taken.len()
        );
        assert!(!mailbox.is_full());
    }

    #[test]
    fn few_large_frames_fill_it_too_and_what_the_loop_waits_for_is_always_taken() {
        let mailbox = Mailbox::default();
        let large = 16 << 20;
        let taken = (0..1000).take_while(|_| mailbox.offer(frame(large))).count();
        assert_eq!(taken, WAITING_BYTES_MAX / large);
        assert!(mailbox.is_full());
        mailbox.report(Event::Persisted { write: 1 });
        assert_eq!(mailbox.waiting(), taken + 1);
    }
}
