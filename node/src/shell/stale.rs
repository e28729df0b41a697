//! What is special about stale reads: the answer says how old it is.

use super::mailbox::Grant;
use super::reading::or_stop;
use super::service::Service;
use flotilla_router::call::Staleness;
use flotilla_router::{Answer, Consistency, Refusal, Reply};
use flotilla_storage::read;

impl Service {
    /// An answer from a view. A stale one says what that view shows, which may be more than the
    /// loop had heard of when it took it, and is as old as it is now, not then.
    pub(super) fn reply(
        &self,
        grant: &Grant,
        answer: Answer,
        consistency: Consistency,
    ) -> Result<Reply, Refusal> {
        let staleness = self.staleness(grant, consistency)?;
        Ok(Reply { shard: grant.descriptor.id, node: self.forwarder.node, answer, staleness })
    }

    /// How old a stale answer is by now, if it is not too old.
    pub(super) fn staleness(
        &self,
        grant: &Grant,
        consistency: Consistency,
    ) -> Result<Option<Staleness>, Refusal> {
        let shard = grant.descriptor.id;
        let staleness = grant.staleness.map(|then| Staleness {
            applied: or_stop(shard, read::applied(&*grant.view, shard)).index,
            age: then.age.map(|age| age + self.mailbox.now().saturating_sub(grant.at)),
        });
        if let (Consistency::Stale { age_max: Some(max) }, Some(Staleness { age, .. })) =
            (consistency, staleness)
            && age.is_none_or(|age| age > max)
        {
            return Err(Refusal::TooStale { shard });
        }
        Ok(staleness)
    }
}
