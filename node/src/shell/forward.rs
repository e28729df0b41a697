//! Questions on their way to the node that can answer them.
//!
//! What was sent and not answered is *unknown* for a write. So a write is sent only when there is
//! room for it: where too much is under way to a node already, it waits here for a while, where it
//! can still be refused with a word that is certain. And the other node is given a little less time
//! than there is, so that it gives up first, and says what it knows.

use bytes::Bytes;
use flotilla_ops::Metrics;
use flotilla_router::call::{self, Forwarded};
use flotilla_router::sizes::KEY_BYTES_MAX;
use flotilla_router::{Answer, NodeId, Outcome, Refusal, Reply, Request, Routes, ShardId};
use flotilla_transport::{DATA_BYTES_MAX, RequestError, Responder, Transport};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first pause before a request is tried again; each further one is longer.
pub(super) const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest such pause.
pub(super) const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// The most of a request's time that is kept for the way back of its answer.
const WAY_BACK_MAX: Duration = Duration::from_millis(500);
/// What a question has beside its command, generously.
const AROUND_BYTES: usize = 64;

/// The way to the other nodes: what a service, and whoever answers operators, ask of them.
pub struct Forwarder {
    /// This node.
    pub node: NodeId,
    /// The map from keys to shards, and who leads them.
    pub routes: Arc<Routes>,
    /// The other nodes.
    pub transport: Arc<Transport>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How often the loops of the nodes look whose time is up.
    pub tick: Duration,
}

impl Forwarder {
    /// Hands a request to another node.
    pub(super) async fn forward(
        &self,
        to: NodeId,
        shard: ShardId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        self.forward_hop(to, shard, request, 1, deadline).await
    }

    /// The same with a request that was handed on `hops` times then.
    pub(super) async fn forward_hop(
        &self,
        to: NodeId,
        shard: ShardId,
        request: &Request,
        hops: u8,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        self.metrics.forwarded_sent.inc();
        let answered = self.send_when_there_is_room(to, request, hops, deadline).await;
        if answered.is_err() {
            self.metrics.forward_failures.inc();
        }
        match answered {
            Ok(response) => call::decode::<Result<Reply, Refusal>>("forwarded response", &response)
                .unwrap_or_else(|error| {
                    let outcome =
                        if request.is_write() { Outcome::Unknown } else { Outcome::NotApplied };
                    Err(Refusal::Internal {
                        why: format!("node {to} answered with a {error}"),
                        outcome,
                    })
                }),
            Err(error) => Err(not_answered(error, to, shard, request.is_write())),
        }
    }

    /// Waits for room for half of the time: the rest will be needed.
    async fn send_when_there_is_room(
        &self,
        to: NodeId,
        request: &Request,
        hops: u8,
        deadline: Instant,
    ) -> Result<Bytes, RequestError> {
        let begun = Instant::now();
        let patience = begun + deadline.saturating_duration_since(begun) / 2;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let sent = match self.transport.has_room(to, about_bytes(request)) {
                Ok(()) => {
                    let time_left = deadline.saturating_duration_since(Instant::now());
                    let round_trip = self.transport.round_trip(to).unwrap_or_default();
                    let time_left = left_for_another(time_left, round_trip, self.tick);
                    let request =
                        call::encode(&Forwarded { request: request.clone(), hops, time_left });
                    self.transport.request(to, request, deadline).await
                }
                Err(limit) => Err(RequestError::Full { limit }),
            };
            if !matches!(sent, Err(RequestError::Full { .. })) || Instant::now() + pause >= patience
            {
                return sent;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }
}

/// Answers another node: with what was found, or, where too much of that waits to be sent already,
/// with a refusal. What was done is never said to be refused: such an answer is small, and always
/// finds room.
pub(super) fn respond(responder: Responder, response: &Result<Reply, Refusal>) {
    responder.respond_or(call::encode(response), || {
        let found = matches!(
            response,
            Ok(Reply { answer: Answer::Value { .. } | Answer::Page(_) | Answer::Part { .. }, .. })
        );
        found.then(|| call::encode(&Err::<Reply, _>(no_room())))
    });
}

fn no_room() -> Refusal {
    Refusal::Overloaded {
        what: "bytes of answers between nodes".into(),
        limit: DATA_BYTES_MAX as u64,
    }
}

/// About how many bytes a question takes; only those of a write are many.
fn about_bytes(request: &Request) -> usize {
    match request {
        Request::Write(command) => command.encoded_bytes() + AROUND_BYTES,
        Request::Get { .. } | Request::Scan { .. } | Request::Part { .. } => 2 * KEY_BYTES_MAX,
        Request::Admin(question) => question.len() + AROUND_BYTES,
    }
}

/// What is said of a request that has no answer.
fn not_answered(error: RequestError, to: NodeId, shard: ShardId, is_write: bool) -> Refusal {
    match error {
        RequestError::Full { limit } => Refusal::Overloaded {
            what: format!("bytes of requests under way to node {to}"),
            limit: limit as u64,
        },
        RequestError::NotSent(_) => Refusal::NoLeader { shard },
        RequestError::TooLate => Refusal::Expired { shard },
        RequestError::Lost | RequestError::Expired | RequestError::NoRoom if is_write => {
            Refusal::OutcomeUnknown { shard }
        }
        RequestError::NoRoom => no_room(),
        RequestError::Lost => Refusal::NoLeader { shard },
        RequestError::Expired => Refusal::Expired { shard },
    }
}

/// What another node is given of the time that is left: it travels there and back meanwhile, and
/// that node looks whose time is up once in a tick.
fn left_for_another(time_left: Duration, round_trip: Duration, tick: Duration) -> Duration {
    // However little there is, the other node gets half of what the way leaves.
    let there = time_left.saturating_sub(round_trip);
    there - ((time_left / 8).min(WAY_BACK_MAX) + tick).min(there / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_node_gives_up_before_whoever_asked_it_does() {
        let ms = Duration::from_millis;
        let table = [
            (0, 0, 0, 0),
            (1000, 0, 0, 875),
            (10_000, 0, 0, 9500),
            // A slow way, and a tick in which nobody looks.
            (10_000, 80, 50, 9370),
            (1000, 200, 50, 625),
            (400, 200, 50, 100),
            (100, 1, 50, 50),
            (100, 200, 50, 0),
        ];
        for (left, round_trip, tick, given) in table {
            let gets = left_for_another(ms(left), ms(round_trip), ms(tick));
            assert!(
                gets.abs_diff(ms(given)) <= ms(1),
                "{left} ms, {round_trip} ms there and back, a tick of {tick} ms: {gets:?}"
            );
        }
    }

    #[test]
    fn a_request_whose_own_time_ran_out_says_nothing_of_who_leads() {
        let (to, shard) = (NodeId(2), ShardId(7));
        for is_write in [false, true] {
            let said = |error| not_answered(error, to, shard, is_write);
            let refusal = said(RequestError::TooLate);
            assert_eq!(
                (&refusal, refusal.outcome()),
                (&Refusal::Expired { shard }, Outcome::NotApplied)
            );
            assert_eq!(said(RequestError::NotSent("no connection")), Refusal::NoLeader { shard });
            assert_eq!(
                said(RequestError::Lost).outcome(),
                if is_write { Outcome::Unknown } else { Outcome::NotApplied }
            );
        }
    }
}
