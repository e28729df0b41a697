//! What is shown of shards: who leads one knows most about it, so each node that leads some is
//! asked once, and where it does not answer in time, what is known here stands in for it.

use super::Admin;
use super::PEER_PATIENCE;
use super::asking::AdminRequest;
use crate::core::report::{Part, Progress, ShardReport};
use crate::core::{self, Done};
use crate::shell::mailbox::{Answered, another_answer};
use flotilla_ops::admin::{
    LocalView, ProgressState, RangeView, ReplicaState, ReplicaView, ShardView,
};
use flotilla_router::{Descriptor, NodeId, Refusal, ShardId};
use flotilla_storage::{Engine as _, keys};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

impl Admin {
    async fn inspect(&self, after: ShardId, limit: usize) -> Result<Vec<ShardReport>, Refusal> {
        let ask = core::Ask::Inspect { after, limit };
        match self.mailbox.ask(ask, Instant::now() + PEER_PATIENCE, Refusal::ShuttingDown).await? {
            Answered::Done(Done::Report(reports)) => Ok(reports),
            _ => Err(another_answer()),
        }
    }

    /// What this node knows of some shards, in their order.
    pub(super) async fn local_views(
        &self,
        shards: &[Arc<Descriptor>],
    ) -> Result<Vec<ShardView>, Refusal> {
        let (Some(first), Some(last)) =
            (shards.iter().map(|s| s.id).min(), shards.iter().map(|s| s.id).max())
        else {
            return Ok(Vec::new());
        };
        let span = (last.0 - first.0 + 1) as usize;
        let reports = self.inspect(ShardId(first.0 - 1), span).await?;
        let mut reports: BTreeMap<_, _> =
            reports.into_iter().map(|r| (r.descriptor.id, r)).collect();
        Ok(shards.iter().map(|s| self.view(s, reports.remove(&s.id))).collect())
    }

    /// What the cluster knows of some shards, in their order.
    pub(super) async fn views(
        &self,
        shards: &[Arc<Descriptor>],
    ) -> Result<Vec<ShardView>, Refusal> {
        let mut views = self.local_views(shards).await?;
        let mut elsewhere: BTreeMap<NodeId, BTreeSet<ShardId>> = BTreeMap::new();
        for view in &views {
            if let Some(leader) = view.leader.filter(|leader| *leader != self.forwarder.node) {
                elsewhere.entry(leader).or_default().insert(view.id);
            }
        }
        let deadline = Instant::now() + PEER_PATIENCE;
        let asked = elsewhere.into_iter().map(|(node, ids)| async move {
            let question = AdminRequest::Shards { ids: ids.into_iter().collect() };
            self.ask::<Vec<ShardView>>(node, &question, deadline).await.unwrap_or_default()
        });
        let answers: Vec<_> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let mut by_leader: BTreeMap<_, _> = answers.into_iter().map(|v| (v.id, v)).collect();
        for view in &mut views {
            // Only one who leads knows more than a follower.
            if let Some(told) = by_leader
                .remove(&view.id)
                .filter(|v| v.replicas.iter().any(|r| r.matched.is_some()))
            {
                let local = view.local.take();
                *view = ShardView { local, ..told };
            }
        }
        Ok(views)
    }

    fn view(&self, descriptor: &Descriptor, report: Option<ShardReport>) -> ShardView {
        let leader = self.forwarder.routes.leader(descriptor.id);
        let me = self.forwarder.node;
        let state_of = |part: Part| match part {
            Part::Leader => ReplicaState::Leader,
            Part::Follower | Part::Learner => ReplicaState::Follower,
            Part::Candidate => ReplicaState::Candidate,
            Part::PreCandidate => ReplicaState::PreCandidate,
        };
        let replicas = descriptor.replicas.iter().map(|replica| {
            let progress =
                report.as_ref().and_then(|r| r.followers.iter().find(|f| f.replica == replica.id));
            let last = report.as_ref().map(|r| r.log.1);
            let state = match &report {
                Some(report) if replica.node == me => state_of(report.part),
                _ if leader == Some(replica.node) => ReplicaState::Leader,
                Some(report) if report.part == Part::Leader => ReplicaState::Follower,
                _ => ReplicaState::Unknown,
            };
            ReplicaView {
                node: replica.node,
                replica: replica.id,
                role: replica.role,
                state,
                matched: progress.map(|p| p.matched),
                next: progress.map(|p| p.next),
                lag: progress.and_then(|p| Some(last?.saturating_sub(p.matched))),
                recent_active: progress.map(|p| p.recent_active),
                progress: progress.map(|p| match p.progress {
                    Progress::Replicate => ProgressState::Replicate,
                    Progress::Snapshot => ProgressState::Snapshot,
                    Progress::Probe => ProgressState::Probe,
                }),
            }
        });
        let local = report.as_ref().and_then(|report| {
            let replica = descriptor.on_node(me)?;
            Some(LocalView {
                node: me,
                replica: replica.id,
                role: replica.role,
                state: state_of(report.part),
                applied: report.applied,
                hash: None,
                keys: None,
            })
        });
        let (start, end) = keys::data_range(descriptor.id.key_space(), &descriptor.range);
        let led_here = leader == Some(me);
        let rates = &self.state.rates;
        let rate = rates
            .lock()
            .expect("nothing panics while it holds the rates")
            .last()
            .get(&descriptor.id)
            .copied();
        let rate = rate.unwrap_or_default();
        ShardView {
            id: descriptor.id,
            range: RangeView::from(&descriptor.range),
            epoch: descriptor.epoch,
            leader,
            term: report.as_ref().map(|r| r.term),
            committed: report.as_ref().map(|r| r.committed),
            applied: report.as_ref().map(|r| r.applied),
            last: report.as_ref().map(|r| r.log.1),
            log_first: report.as_ref().map(|r| r.log.0),
            log_bytes: report.as_ref().map(|r| r.log_bytes),
            size_bytes: local.is_some().then(|| self.engine.data_file_bytes(&start, &end)),
            writes_per_second: led_here.then_some(rate.writes),
            reads_per_second: led_here.then_some(rate.reads),
            replicas: replicas.collect(),
            awake: true,
            local,
        }
    }
}
