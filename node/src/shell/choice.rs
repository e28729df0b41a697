//! Whom to ask next about a shard, for as long as one request lasts.
//!
//! 1. Its own replica, where what it has is good enough (a stale read).
//! 2. Whoever is said to lead, if it can be reached.
//! 3. Its own replica: if anybody leads, it knows who. It is asked through the loop, as any request
//!    is.
//! 4. Where it has none that can tell, every other replica in turn, as long as it can be reached:
//!    whoever has one knows more.
//!
//! A node that said that it holds no replica is passed over from then on, its own included: a
//! replica that was quarantined stands in the descriptor as before, may stand in the hints of
//! others, and answers nothing. When all have said so, all are asked anew.

use flotilla_router::{Descriptor, NodeId, Refusal};
use std::collections::BTreeSet;

/// What one request has found out so far.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Who holds no replica, whatever descriptor and hint say.
    without: BTreeSet<NodeId>,
    /// How often one of several was asked.
    turns: usize,
}

impl Choice {
    /// Whom to ask, if there is anybody.
    pub(super) fn next(
        &mut self,
        shard: &Descriptor,
        me: NodeId,
        any_replica_will_do: bool,
        hint: Option<NodeId>,
        reachable: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        if shard.replicas.iter().all(|replica| self.without.contains(&replica.node)) {
            self.without.clear();
        }
        let here = shard.on_node(me).is_some() && !self.without.contains(&me);
        if here && any_replica_will_do {
            return Some(me);
        }
        // Who leads, and who can be reached, are two things: a hint stays, and is of no use
        // meanwhile.
        let may_answer =
            |node: &NodeId| !self.without.contains(node) && (*node == me || reachable(*node));
        if let Some(leader) = hint.filter(may_answer) {
            return Some(leader);
        }
        if here {
            return Some(me);
        }
        let others: Vec<NodeId> = shard
            .replicas
            .iter()
            .map(|r| r.node)
            .filter(|n| *n != me && !self.without.contains(n) && reachable(*n))
            .collect();
        self.turns += 1;
        others.get((self.turns - 1) % others.len().max(1)).copied()
    }

    /// Notes what a node said.
    pub(super) fn note(&mut self, asked: NodeId, refusal: &Refusal) {
        if matches!(refusal, Refusal::NotHosted { .. }) {
            self.without.insert(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_router::{Epoch, KeyRange, Replica, ReplicaId, Role, ShardId};

    fn on(nodes: &[u64]) -> Descriptor {
        let replica =
            |&node: &u64| Replica { id: ReplicaId(node), node: NodeId(node), role: Role::Voter };
        let epoch = Epoch { membership: 1, range: 1 };
        Descriptor {
            id: ShardId(2),
            range: KeyRange::all(),
            epoch,
            replicas: nodes.iter().map(replica).collect(),
        }
    }

    const NOT_HOSTED: Refusal = Refusal::NotHosted { shard: ShardId(2) };

    #[test]
    fn who_is_asked_first() {
        /// Replicas, whether any of them will do, who is said to lead, who can be reached; and who
        /// is asked.
        type Row = (&'static [u64], bool, Option<u64>, &'static [u64], Option<u64>);
        // This is node 1.
        let table: &[Row] = &[
            (&[1, 2, 3], true, Some(2), &[2, 3], Some(1)),
            (&[1, 2, 3], false, Some(2), &[2, 3], Some(2)),
            (&[1, 2, 3], false, Some(1), &[2, 3], Some(1)),
            (&[1, 2, 3], false, None, &[2, 3], Some(1)),
            // Whoever leads can't be reached from here: the own replica hears of another leader
            // first.
            (&[1, 2, 3], false, Some(2), &[3], Some(1)),
            (&[2, 3, 4], false, Some(3), &[2, 4], Some(2)),
            (&[2, 3, 4], true, Some(3), &[2, 3, 4], Some(3)),
            (&[2, 3, 4], true, None, &[3, 4], Some(3)),
            (&[2, 3, 4], false, None, &[], None),
        ];
        for (nodes, any, hint, reachable, expected) in table {
            let asked =
                Choice::default().next(&on(nodes), NodeId(1), *any, hint.map(NodeId), |n| {
                    reachable.contains(&n.0)
                });
            assert_eq!(asked, expected.map(NodeId), "{nodes:?} {any} {hint:?} {reachable:?}");
        }
    }

    #[test]
    fn a_replica_that_was_quarantined_is_passed_over() {
        for any_replica_will_do in [false, true] {
            let (shard, me, mut choice) = (on(&[1, 2, 3]), NodeId(1), Choice::default());
            let next = |choice: &mut Choice, hint| {
                choice.next(&shard, me, any_replica_will_do, hint, |_| true)
            };
            assert_eq!(next(&mut choice, None), Some(me));
            choice.note(me, &NOT_HOSTED);
            // Even where others still take it for the leader.
            assert_eq!(next(&mut choice, Some(me)), Some(NodeId(2)));
            assert_eq!(next(&mut choice, None), Some(NodeId(3)), "they are asked in turn");
            assert_eq!(next(&mut choice, Some(NodeId(3))), Some(NodeId(3)), "a hint is followed");
            choice.note(NodeId(3), &NOT_HOSTED);
            choice.note(NodeId(2), &NOT_HOSTED);
            assert_eq!(next(&mut choice, None), Some(me), "all of them: from the beginning");
        }
    }

    #[test]
    fn other_refusals_exclude_nobody() {
        let (shard, mut choice) = (on(&[1, 2, 3]), Choice::default());
        choice.note(NodeId(1), &Refusal::NotLeader { shard: ShardId(2), leader: None });
        choice.note(NodeId(1), &Refusal::NoLeader { shard: ShardId(2) });
        assert_eq!(choice.next(&shard, NodeId(1), false, None, |_| true), Some(NodeId(1)));
    }
}
