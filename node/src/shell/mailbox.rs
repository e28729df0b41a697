//! The loop's input: events of the core, and questions whose askers wait on a channel.
//!
//! What the loop's own hands report (persisted, applied, …) is always taken, because it is bounded by the work that was handed
//! out. What comes from outside is turned away when too much waits: a frame is dropped, as the network may do, and a question
//! is refused.

use super::View;
use super::clock;
use super::queue::Queue;
use crate::core::inspect::ShardReport;
use crate::core::{Event, Time};
use flotilla_router::call::Staleness;
use flotilla_router::{Command, Consistency, Descriptor, NodeId, Refusal, ShardId};
use flotilla_storage::WriteResult;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Above this many waiting inputs, those from outside are turned away.
const WAITING_MAX: usize = 100_000;

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

/// Who waits for an answer.
pub enum ReplyTo<T> {
    /// A task of this node.
    Task(oneshot::Sender<T>),
    /// A request of another node: what to do with the answer. Saves a task, and its waking, for each of them.
    Peer(Box<dyn FnOnce(T) + Send>),
}

impl<T> ReplyTo<T> {
    /// Gives the answer; nobody may wait for it any more.
    pub fn send(self, answer: T) {
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
    Events(Vec<Event>),
    /// A write.
    Command {
        /// The shard.
        shard: ShardId,
        /// What to write.
        command: Command,
        /// When its sender stops waiting.
        deadline: Time,
        /// Who waits.
        reply: ReplyTo<Result<WriteResult, Refusal>>,
    },
    /// A read.
    Read {
        /// The shard.
        shard: ShardId,
        /// How fresh.
        consistency: Consistency,
        /// When its sender stops waiting.
        deadline: Time,
        /// Who waits.
        reply: ReplyTo<Result<Grant, Refusal>>,
    },
    /// An order to hand leadership over.
    Transfer {
        /// The shard.
        shard: ShardId,
        /// Who shall lead.
        to: NodeId,
        /// Who waits.
        reply: oneshot::Sender<Result<Arc<Descriptor>, Refusal>>,
    },
    /// A question about shards.
    Inspect {
        /// Those above this id.
        after: ShardId,
        /// At most so many.
        limit: usize,
        /// Who waits.
        reply: oneshot::Sender<Vec<ShardReport>>,
    },
    /// Hand over what is led here; answered when that is done.
    Drain {
        /// Who waits.
        reply: oneshot::Sender<()>,
    },
    /// End the loop.
    Stop,
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

    /// Reports what the loop waits for. Always taken; when the loop has ended nobody listens any more.
    pub fn report(&self, event: Event) {
        self.queue.send(Mail::Event(event));
    }

    /// Hands in what came from outside; `false` when too much waits, or the loop has ended.
    pub fn offer(&self, mail: Mail) -> bool {
        self.queue.len() < WAITING_MAX && self.queue.send(mail)
    }

    /// Whether [`Mailbox::offer`] would turn something away.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= WAITING_MAX
    }

    /// How much waits.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

/// The refusal of what [`Mailbox::offer`] turned away.
pub fn overloaded() -> Refusal {
    Refusal::Overloaded { what: "requests waiting for the node's loop".into(), limit: WAITING_MAX as u64 }
}
