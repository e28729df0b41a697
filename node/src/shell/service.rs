//! Requests about keys: resolved, answered here, or handed to the node that can.
//!
//! A request is tried until its deadline. It is tried **again** only where it is certain that it
//! was not applied: a node said so ([`Refusal::outcome`]), or not a byte of it left this node. What
//! was sent and not answered is *unknown* for a write, and tried elsewhere for a read.

use super::choice::Choice;
use super::forward::{self, Forwarder, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};
use super::lines::Lines;
use super::mailbox::{Answered, Grant, Mail, Mailbox, ReplyTo, another_answer};
use super::pages::cut_to_shard;
use super::reading::{Readers, or_stop};
use super::views::Views;
use crate::core::{self, Done};
use flotilla_router::call::{self, Forwarded};
use flotilla_router::{
    Answer, Command, Consistency, Descriptor, HeldView, KeyRange, NodeId, Op, Refusal, Reply,
    Request, ShardId,
};
use flotilla_storage::{NUMBER_MAX, WriteResult, read};
use flotilla_transport::Responder;
use std::sync::Arc;
use std::time::Instant;

/// How often a request may be handed on.
const HOPS_MAX: u8 = 2;

/// Answers requests.
pub struct Service {
    /// Routes, and the way to the other nodes.
    pub forwarder: Arc<Forwarder>,
    /// The loop.
    pub mailbox: Mailbox,
    /// What a read gets that does not say how fresh it must be.
    pub default_consistency: Consistency,
    /// Where pages and hashes are read.
    pub readers: Arc<Readers>,
    /// Lines of writes that were full a moment ago.
    pub lines: Lines,
    /// The views that streams go on in.
    pub views: Arc<Views>,
}

impl flotilla_ops::Kv for Service {
    fn default_consistency(&self) -> Consistency {
        self.default_consistency
    }

    async fn call(&self, request: Request, deadline: Instant) -> Result<Reply, Refusal> {
        // A stream goes on where its view is, whoever leads there.
        if let Request::Part { scan, view: Some(view), .. } = &request {
            return match view.node == self.forwarder.node {
                true => Box::pin(self.answer_held(scan, *view, deadline)).await,
                false => self.forwarder.forward(view.node, view.shard, &request, deadline).await,
            };
        }
        let mut pause = RETRY_PAUSE_MIN;
        let mut choice = Choice::default();
        let mut followed = false;
        loop {
            let Some(shard) = self.resolve(&request) else {
                return Err(Refusal::NotFound {
                    what: "shard for that key on this node's map".into(),
                });
            };
            let (now, is_write) = (Instant::now(), matches!(request, Request::Write(_)));
            let time_left = deadline.saturating_duration_since(now);
            if is_write && let Some(refusal) = self.lines.refusal(shard.id, now, time_left) {
                return Err(refusal);
            }
            let hint = self.forwarder.routes.leader(shard.id);
            let next = choice.next(&shard, self.forwarder.node, is_stale(&request), hint, |node| {
                self.forwarder.transport.reachable(node)
            });
            let refusal = match next {
                Some(node) => match self.ask(node, &shard, &request, deadline).await {
                    Ok(reply) => return Ok(reply),
                    Err(no) if is_worth_another_try(&no) => {
                        self.learn_from(node, &no);
                        choice.note(node, &no);
                        no
                    }
                    Err(no) => {
                        self.lines.note(shard.id, &no, Instant::now(), time_left);
                        return Err(no);
                    }
                },
                None => Refusal::NoLeader { shard: shard.id },
            };
            let hinted = matches!(
                refusal,
                Refusal::NotLeader { leader: Some(_), .. }
                    | Refusal::WrongShard { .. }
                    | Refusal::NotHosted { .. }
            );
            // A hint is followed at once, but hints that lead in a circle are not.
            followed = hinted && !followed;
            if followed {
                continue;
            }
            if Instant::now() + pause >= deadline {
                return Err(match refusal {
                    Refusal::Expired { shard } => Refusal::Expired { shard },
                    _ => Refusal::NoLeader { shard: shard.id },
                });
            }
            self.forwarder.metrics.forward_retries.inc();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn refusal_of_write(&self, key: &[u8], deadline: Instant) -> Option<Refusal> {
        let now = Instant::now();
        self.lines.refusal(
            self.forwarder.routes.owner(key)?.id,
            now,
            deadline.saturating_duration_since(now),
        )
    }

    fn let_go(&self, view: HeldView) {
        self.release(view);
    }
}

/// Whether any replica can answer.
fn is_stale(request: &Request) -> bool {
    matches!(
        request,
        Request::Get { consistency: Consistency::Stale { .. }, .. }
            | Request::Scan { consistency: Consistency::Stale { .. }, .. }
            | Request::Part { consistency: Consistency::Stale { .. }, .. }
    )
}

/// Whether another node, or the same a little later, may say yes, and nothing was applied.
fn is_worth_another_try(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NotLeader { .. }
            | Refusal::NotHosted { .. }
            | Refusal::WrongShard { .. }
            | Refusal::NoLeader { .. }
            | Refusal::ShuttingDown
    )
}

impl Service {
    fn resolve(&self, request: &Request) -> Option<Arc<Descriptor>> {
        match request {
            Request::Scan { scan, .. } | Request::Part { scan, .. } if scan.reverse => {
                let table = self.forwarder.routes.table();
                table.owner_before(scan.range.end.as_ref()).cloned()
            }
            _ => self.forwarder.routes.owner(request.routing_key()?),
        }
    }

    /// Notes what a node's no tells of who leads.
    fn learn_from(&self, asked: NodeId, refusal: &Refusal) {
        match refusal {
            Refusal::NotLeader { shard, leader: Some(leader) } if *leader != asked => {
                self.forwarder.routes.set_leader(*shard, Some(*leader));
            }
            Refusal::NotLeader { shard, .. } | Refusal::NotHosted { shard } => {
                self.forwarder.routes.not_leader(*shard, asked)
            }
            Refusal::WrongShard { descriptors, .. } => {
                // A peer's word: what can't be a shard is no news.
                let sound = |d: &Descriptor| {
                    d.id.0 > 0
                        && d.is_sound()
                        && d.epoch.range.max(d.epoch.membership) <= NUMBER_MAX
                };
                let decoded =
                    descriptors.iter().filter_map(|d| Descriptor::decode(d.0.clone()).ok());
                self.forwarder.routes.learn(decoded.filter(sound));
            }
            _ => {}
        }
    }

    /// One try, on one node.
    async fn ask(
        &self,
        node: NodeId,
        shard: &Descriptor,
        request: &Request,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        if node == self.forwarder.node {
            return self.answer(shard, request, deadline).await;
        }
        self.forwarder.forward(node, shard.id, request, deadline).await
    }

    /// Hands a forwarded request about one key to the loop, which answers the other node without a
    /// task in between. Everything else is given back.
    pub(super) fn answer_at_once(
        self: &Arc<Self>,
        forwarded: Forwarded,
        responder: Responder,
    ) -> Option<(Forwarded, Responder)> {
        let of_one_key = match &forwarded.request {
            Request::Get { .. } => true,
            Request::Write(command) => !matches!(command.op(), Op::DeleteRange { .. }),
            Request::Scan { .. } | Request::Part { .. } | Request::Admin(_) => false,
        };
        let shard = self
            .resolve(&forwarded.request)
            .filter(|shard| of_one_key && shard.on_node(self.forwarder.node).is_some());
        let Some(shard) = shard.filter(|_| !self.mailbox.is_full()) else {
            return Some((forwarded, responder));
        };
        let (this, shard) = (self.clone(), shard.id);
        let deadline = self.mailbox.now() + forwarded.patience();
        let (ask, reply): (_, ReplyTo) = match forwarded.request {
            Request::Get { key, consistency } => {
                let answered = move |answered: Result<Answered, Refusal>| {
                    let response = answered.and_then(Answered::granted).and_then(|grant| {
                        this.forwarder.metrics.reads(consistency).inc();
                        this.get(&grant, &key, consistency)
                    });
                    forward::respond(responder, &response);
                };
                (core::Ask::Read { shard, consistency }, ReplyTo::Peer(Box::new(answered)))
            }
            Request::Write(command) => {
                let answered = move |answered: Result<Answered, Refusal>| {
                    responder.respond(call::encode(&this.written(shard, answered, None)));
                };
                (core::Ask::Write { shard, command }, ReplyTo::Peer(Box::new(answered)))
            }
            request @ (Request::Scan { .. } | Request::Part { .. } | Request::Admin(_)) => {
                return Some((Forwarded { request, ..forwarded }, responder));
            }
        };
        // Should it be turned away after all, the responder is dropped, and the other node knows
        // that it knows nothing.
        self.mailbox.offer(Mail::Ask { ask, deadline, reply });
        None
    }

    /// Answers a request that another node handed on.
    pub(super) async fn answer_forwarded(
        &self,
        forwarded: Forwarded,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let Forwarded { request, hops, time_left: _ } = forwarded;
        if let Request::Part { scan, view: Some(view), .. } = &request {
            return self.answer_held(scan, *view, deadline).await;
        }
        let Some(shard) = self.resolve(&request) else {
            return Err(Refusal::NotFound { what: "shard for that key".into() });
        };
        if shard.on_node(self.forwarder.node).is_none() {
            return match self.forwarder.routes.leader(shard.id) {
                Some(leader)
                    if leader != self.forwarder.node
                        && hops < HOPS_MAX
                        && self.forwarder.transport.reachable(leader) =>
                {
                    self.forwarder.forward_hop(leader, shard.id, &request, hops + 1, deadline).await
                }
                _ => Err(Refusal::NotHosted { shard: shard.id }),
            };
        }
        self.answer(&shard, &request, deadline).await
    }

    /// Answers from this node's replica.
    async fn answer(
        &self,
        shard: &Descriptor,
        request: &Request,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        // What reads many keys is boxed: its state would else be copied with that of every question
        // about one.
        match request {
            Request::Get { key, consistency } => {
                let grant = self.grant(shard.id, *consistency, deadline).await?;
                self.get(&grant, key, *consistency)
            }
            Request::Scan { scan, consistency } => {
                let grant = self.grant(shard.id, *consistency, deadline).await?;
                let page = Box::pin(self.page(&grant, scan, true, deadline)).await?;
                self.reply(&grant, Answer::Page(page), *consistency)
            }
            Request::Part { scan, consistency, view: _ } => {
                let grant = self.grant(shard.id, *consistency, deadline).await?;
                Box::pin(self.part(&grant, scan, *consistency, None, deadline)).await
            }
            Request::Write(command) => self.write(shard, command, deadline).await,
            Request::Admin(_) => {
                Err(Refusal::Invalid { why: "an admin question has no key".into() })
            }
        }
    }

    /// Looks a key up.
    fn get(&self, grant: &Grant, key: &[u8], consistency: Consistency) -> Result<Reply, Refusal> {
        if !grant.descriptor.range.contains(key) {
            return Err(wrong_shard(grant));
        }
        let found = or_stop(
            grant.descriptor.id,
            read::get(&*grant.view, grant.descriptor.id.key_space(), key),
        );
        let answer =
            found.map_or(Answer::Missing, |(revision, value)| Answer::Value { value, revision });
        self.reply(grant, answer, consistency)
    }

    /// Asks the loop for a view that is fresh enough.
    pub(super) async fn grant(
        &self,
        shard: ShardId,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Grant, Refusal> {
        let ask = core::Ask::Read { shard, consistency };
        let grant = self.mailbox.ask(ask, deadline, Refusal::ShuttingDown).await?.granted()?;
        self.forwarder.metrics.reads(consistency).inc();
        Ok(grant)
    }

    async fn write(
        &self,
        shard: &Descriptor,
        command: &Command,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let (command, rest) = cut_to_shard(command, &shard.range);
        // The loop answers every ticket; it is gone only when the process ends, and then nobody
        // knows.
        let gone = Refusal::OutcomeUnknown { shard: shard.id };
        let answered =
            self.mailbox.ask(core::Ask::Write { shard: shard.id, command }, deadline, gone).await;
        self.written(shard.id, answered, rest)
    }

    /// What a write came to, as an answer; `rest` is the part of a range that other shards own.
    fn written(
        &self,
        shard: ShardId,
        answered: Result<Answered, Refusal>,
        rest: Option<KeyRange>,
    ) -> Result<Reply, Refusal> {
        let Answered::Done(Done::Written(result)) = answered? else { return Err(another_answer()) };
        let answer = match result {
            WriteResult::Written { revision } => Answer::Written { revision },
            WriteResult::Deleted => Answer::Deleted,
            WriteResult::DeletedRange { count } => Answer::DeletedRange { count, rest },
            WriteResult::ConditionFailed { current } => Answer::ConditionFailed { current },
            WriteResult::WrongShard => {
                return Err(Refusal::WrongShard { shard, descriptors: Vec::new() });
            }
        };
        Ok(Reply { shard, node: self.forwarder.node, answer, staleness: None })
    }
}

pub(super) fn wrong_shard(grant: &Grant) -> Refusal {
    Refusal::WrongShard {
        shard: grant.descriptor.id,
        descriptors: vec![(&*grant.descriptor).into()],
    }
}
