//! What is special about stale reads: another replica will do where this node's can't answer, and the answer says how old it is.

use super::mailbox::Grant;
use super::reading::or_stop;
use super::service::Service;
use flotilla_router::call::{Response, Staleness};
use flotilla_router::{Answer, Ask, Consistency, Descriptor, Refusal, Reply};
use flotilla_storage::read;
use std::time::Instant;

impl Service {
    /// One try on a node that is not this one: the leader's, or any that holds a replica.
    pub(super) async fn elsewhere(&self, shard: &Descriptor, ask: &Ask, deadline: Instant) -> Response {
        let leader = self.routes.leader(shard.id).filter(|leader| *leader != self.node);
        let mut others = shard.replicas.iter().map(|r| r.node).filter(|node| *node != self.node);
        match leader.or_else(|| others.find(|node| self.transport.reachable(*node))) {
            Some(other) => self.forward(other, shard.id, ask, deadline).await,
            None => Err(Refusal::NoLeader { shard: shard.id }),
        }
    }

    /// An answer from a view. A stale one says what that view shows, which may be more than the loop had heard of when it took it, and
    /// is as old as it is now, not then.
    pub(super) fn reply(&self, grant: &Grant, answer: Answer, consistency: Consistency) -> Response {
        let shard = grant.descriptor.id;
        let staleness = grant.staleness.map(|then| Staleness {
            applied: or_stop(shard, read::applied(&*grant.view, shard)).index,
            age: then.age.map(|age| age + self.mailbox.now().saturating_sub(grant.at)),
        });
        if let (Consistency::Stale { age_max: Some(max) }, Some(Staleness { age, .. })) = (consistency, staleness)
            && age.is_none_or(|age| age > max)
        {
            return Err(Refusal::TooStale { shard });
        }
        Ok(Reply { shard, node: self.node, answer, staleness })
    }
}
