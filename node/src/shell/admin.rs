//! The admin API's answers: what this node knows, and what it asks the others for.
//!
//! Who leads a shard knows most about it. A list of shards is therefore put together from what each leading node says, asked
//! once each; where a node does not answer in time, what is known here stands in for it.

use super::driver::LoopState;
use super::mailbox::{Mail, Mailbox, overloaded};
use super::service::Service;
use crate::core::inspect::ShardReport;
use bytes::Bytes;
use flotilla_ops::Ordered;
use flotilla_ops::admin::{
    ClusterView, DiskView, Explanation, LeaderCount, LocalView, NodeState, NodeView, ProgressState, Quorum, RangeView,
    ReplicaState, ReplicaView, ShardView, Transfer, text_or_base64,
};
use flotilla_router::call::Response;
use flotilla_router::{
    Answer, Ask, ClusterId, Consistency, Descriptor, Epoch, Incarnation, NodeId, Outcome, Refusal, Reply, ShardId,
};
use flotilla_storage::read::HashLook;
use flotilla_storage::{Engine as _, disk, keys};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long another node may take to say what it knows.
const PEER_PATIENCE: Duration = Duration::from_millis(1000);
/// How long a hand-over of leadership may take.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

/// What one node asks another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Question {
    /// What do you know of yourself?
    Node,
    /// What do you know of these shards?
    Shards { ids: Vec<ShardId> },
    /// Hand this shard over.
    Transfer { shard: ShardId, to: NodeId },
}

/// Answers admin questions.
pub struct Admin {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's present life.
    pub incarnation: Incarnation,
    /// Every node: id, QUIC and HTTP address.
    pub nodes: BTreeMap<NodeId, (String, Option<String>)>,
    /// Keys, routes, and the way to other nodes.
    pub service: Arc<Service>,
    /// The loop.
    pub mailbox: Mailbox,
    /// What the loop shows.
    pub state: Arc<LoopState>,
    /// The disk.
    pub engine: Arc<super::Engine>,
    /// The folder of the data.
    pub data: PathBuf,
    /// When the process started.
    pub started: Instant,
}

impl flotilla_ops::Admin for Admin {
    async fn cluster(&self) -> Result<ClusterView, Refusal> {
        let table = self.service.routes.table();
        let shards: Vec<_> = table.shards().filter(|s| !s.id.is_meta()).collect();
        let leaders: Vec<_> = shards.iter().filter_map(|s| self.service.routes.leader(s.id)).collect();
        let leaders_per_node = self
            .nodes
            .keys()
            .map(|node| LeaderCount { node: *node, leaders: leaders.iter().filter(|l| *l == node).count() })
            .collect();
        Ok(ClusterView {
            id: self.cluster,
            version: env!("CARGO_PKG_VERSION").into(),
            answered_by: self.service.node,
            nodes: self.nodes.len(),
            nodes_up: self.nodes.keys().filter(|n| self.state_of(**n) == NodeState::Up).count(),
            shards: shards.len(),
            shards_without_leader: shards.len() - leaders.len(),
            leaders_per_node,
            operations: Vec::new(),
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeView>, Refusal> {
        let views = self.nodes.keys().map(|node| self.node_view(*node));
        Ok(futures_util::future::join_all(views).await)
    }

    async fn node(&self, id: NodeId) -> Result<NodeView, Refusal> {
        if !self.nodes.contains_key(&id) {
            return Err(Refusal::NotFound { what: format!("node {id}; GET /v1/admin/nodes lists them") });
        }
        Ok(self.node_view(id).await)
    }

    async fn shards(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardView>, Refusal> {
        let table = self.service.routes.table();
        let page: Vec<Arc<Descriptor>> =
            table.shards().filter(|s| after.is_none_or(|after| s.id > after)).take(limit).cloned().collect();
        self.views(&page).await
    }

    async fn shard(&self, id: ShardId, hash: bool) -> Result<ShardView, Refusal> {
        let descriptor = self.descriptor(id)?;
        let mut view = self.views(&[descriptor]).await?.remove(0);
        if hash && view.local.is_some() {
            self.add_hash(&mut view).await?;
        }
        Ok(view)
    }

    async fn explain(&self, key: &[u8]) -> Result<Explanation, Refusal> {
        let Some(descriptor) = self.service.routes.owner(key) else {
            return Err(Refusal::NotFound { what: "shard for that key on this node's map".into() });
        };
        let shard = self.views(std::slice::from_ref(&descriptor)).await?.remove(0);
        let nodes: Vec<_> = descriptor.replicas.iter().map(|r| r.node.to_string()).collect();
        let mut why = vec![
            format!("The key lies in {:?}, which shard {} owns.", descriptor.range, descriptor.id),
            format!("The shard is kept on nodes {}, as it was placed when it was made.", nodes.join(", ")),
        ];
        why.push(match shard.leader {
            Some(leader) => format!("Node {leader} leads it: writes and linearizable reads go there."),
            None => "No node is known to lead it: an election is under way, or a majority of its nodes is away.".into(),
        });
        let behind = shard.replicas.iter().filter(|r| r.lag.is_some_and(|lag| lag > 0));
        why.extend(behind.map(|r| format!("Node {} is {} entries behind.", r.node, r.lag.unwrap_or_default())));
        let (key, key_b64) = text_or_base64(key);
        Ok(Explanation { key, key_b64, shard, answered_by: self.service.node, why })
    }

    async fn transfer(
        &self,
        shard: ShardId,
        to: NodeId,
        if_match: Option<Epoch>,
        dry_run: bool,
    ) -> Result<Ordered<Transfer>, Refusal> {
        let descriptor = self.descriptor(shard)?;
        if let Some(epoch) = if_match
            && epoch != descriptor.epoch
        {
            return Ok(Ordered::EpochMoved { current: descriptor.epoch });
        }
        if !self.nodes.contains_key(&to) {
            return Err(Refusal::NotFound { what: format!("node {to}; GET /v1/admin/nodes lists them") });
        }
        if !descriptor.voters_now().any(|v| v.node == to) {
            let voters: Vec<_> = descriptor.voters_now().map(|v| v.node.to_string()).collect();
            let why = format!("node {to} holds no voter of shard {shard}; nodes {} do", voters.join(", "));
            return Err(Refusal::Conflict { why });
        }
        let leader_before = self.service.routes.leader(shard);
        let quorum = self.quorum(&descriptor);
        if !dry_run {
            self.hand_over(&descriptor, to).await?;
        }
        let view = self.views(std::slice::from_ref(&descriptor)).await?.remove(0);
        Ok(Ordered::Done(Transfer {
            dry_run,
            leader_before,
            leader_after: to,
            quorum_before: quorum.clone(),
            quorum_after: quorum,
            shard: view,
        }))
    }
}

impl Admin {
    fn descriptor(&self, id: ShardId) -> Result<Arc<Descriptor>, Refusal> {
        let table = self.service.routes.table();
        table.shard(id).cloned().ok_or_else(|| Refusal::NotFound { what: format!("shard {id}; GET /v1/admin/shards lists them") })
    }

    fn state_of(&self, node: NodeId) -> NodeState {
        let up = node == self.service.node || self.service.transport.reachable(node);
        if up { NodeState::Up } else { NodeState::Down }
    }

    fn quorum(&self, descriptor: &Descriptor) -> Quorum {
        let (voters, up) = descriptor.weakest_set(|v| self.state_of(v.node) == NodeState::Up);
        Quorum { voters, needed: voters / 2 + 1, up }
    }

    async fn hand_over(&self, descriptor: &Descriptor, to: NodeId) -> Result<(), Refusal> {
        let deadline = Instant::now() + TRANSFER_PATIENCE;
        let shard = descriptor.id;
        let mut refusal = Refusal::NoLeader { shard };
        while Instant::now() < deadline {
            let done = match self.service.routes.leader(shard) {
                Some(leader) if leader == self.service.node => self.hand_over_here(shard, to).await,
                Some(leader) => self.ask(leader, &Question::Transfer { shard, to }, deadline).await,
                None => Err(Refusal::NoLeader { shard }),
            };
            match done {
                Ok(()) => {
                    // The new leader says so itself in a moment; who asks next is sent there already.
                    self.service.routes.set_leader(shard, Some(to));
                    return Ok(());
                }
                Err(no @ (Refusal::NotLeader { .. } | Refusal::NoLeader { .. } | Refusal::NotHosted { .. })) => refusal = no,
                Err(no) => return Err(no),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(refusal)
    }

    async fn hand_over_here(&self, shard: ShardId, to: NodeId) -> Result<(), Refusal> {
        let (reply, done) = oneshot::channel();
        if !self.mailbox.offer(Mail::Transfer { shard, to, reply }) {
            return Err(overloaded());
        }
        done.await.unwrap_or(Err(Refusal::ShuttingDown)).map(|_| ())
    }

    /// Asks another node, and reads its answer.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        node: NodeId,
        question: &Question,
        deadline: Instant,
    ) -> Result<T, Refusal> {
        let ask = Ask::Admin(json(question));
        let reply = self.service.forward(node, ShardId::META, &ask, deadline).await?;
        let Answer::Admin(answer) = reply.answer else {
            let why = format!("node {node} answered another question");
            return Err(Refusal::Internal { why, outcome: Outcome::Unknown });
        };
        serde_json::from_slice(&answer).map_err(|e| Refusal::Internal {
            why: format!("node {node} answered what this version can't read: {e}"),
            outcome: Outcome::Unknown,
        })
    }

    /// Answers another node.
    pub(super) async fn answer_peer(&self, question: &[u8], _deadline: Instant) -> Response {
        let question: Question = serde_json::from_slice(question)
            .map_err(|e| Refusal::Invalid { why: format!("an admin question that this version can't read: {e}") })?;
        let answer = match question {
            Question::Node => json(&self.own_view()),
            Question::Shards { ids } => {
                let table = self.service.routes.table();
                let shards: Vec<_> = ids.iter().filter_map(|id| table.shard(*id).cloned()).collect();
                json(&self.local_views(&shards).await?)
            }
            Question::Transfer { shard, to } => {
                self.hand_over_here(shard, to).await?;
                json(&())
            }
        };
        Ok(Reply { shard: ShardId::META, node: self.service.node, answer: Answer::Admin(answer), staleness: None })
    }

    async fn node_view(&self, node: NodeId) -> NodeView {
        if node == self.service.node {
            return self.own_view();
        }
        let deadline = Instant::now() + PEER_PATIENCE;
        let mut view = match self.ask::<NodeView>(node, &Question::Node, deadline).await {
            Ok(view) => NodeView { state: NodeState::Up, ..view },
            Err(_) => self.view_from_afar(node, NodeState::Down),
        };
        view.rtt_seconds = self.service.transport.round_trip(node).map(|rtt| rtt.as_secs_f64());
        view
    }

    fn view_from_afar(&self, node: NodeId, state: NodeState) -> NodeView {
        let (address, http) = self.nodes.get(&node).cloned().unwrap_or_default();
        let table = self.service.routes.table();
        NodeView {
            id: node,
            address,
            http,
            state,
            incarnation: None,
            version: None,
            replicas: table.shards().filter(|s| s.on_node(node).is_some()).count(),
            leaders: table.shards().filter(|s| self.service.routes.leader(s.id) == Some(node)).count(),
            disk: None,
            apply_lag: None,
            rtt_seconds: None,
            uptime_seconds: None,
        }
    }

    fn own_view(&self) -> NodeView {
        let statistics = self.engine.statistics();
        let disk = disk(&self.data).ok().map(|disk| DiskView {
            used_bytes: statistics.sst_bytes + statistics.wal_bytes,
            free_bytes: disk.free_bytes,
            capacity_bytes: disk.capacity_bytes,
        });
        NodeView {
            incarnation: Some(self.incarnation),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            disk,
            // As of the loop's last tick: a look at every shard would hold all of them up.
            apply_lag: Some(self.state.apply_lag.load(Ordering::Relaxed)),
            leaders: self.state.leaders.load(Ordering::Relaxed) as usize,
            uptime_seconds: Some(self.started.elapsed().as_secs_f64()),
            ..self.view_from_afar(self.service.node, NodeState::Up)
        }
    }

    async fn inspect(&self, after: ShardId, limit: usize) -> Result<Vec<ShardReport>, Refusal> {
        let (reply, reports) = oneshot::channel();
        if !self.mailbox.offer(Mail::Inspect { after, limit, reply }) {
            return Err(overloaded());
        }
        reports.await.map_err(|_| Refusal::ShuttingDown)
    }

    /// What this node knows of some shards, in their order.
    async fn local_views(&self, shards: &[Arc<Descriptor>]) -> Result<Vec<ShardView>, Refusal> {
        let (Some(first), Some(last)) = (shards.iter().map(|s| s.id).min(), shards.iter().map(|s| s.id).max()) else {
            return Ok(Vec::new());
        };
        let span = (last.0 - first.0 + 1) as usize;
        let reports = self.inspect(ShardId(first.0 - 1), span).await?;
        let mut reports: BTreeMap<_, _> = reports.into_iter().map(|r| (r.descriptor.id, r)).collect();
        Ok(shards.iter().map(|s| self.view(s, reports.remove(&s.id))).collect())
    }

    /// What the cluster knows of some shards, in their order.
    async fn views(&self, shards: &[Arc<Descriptor>]) -> Result<Vec<ShardView>, Refusal> {
        let mut views = self.local_views(shards).await?;
        let mut elsewhere: BTreeMap<NodeId, BTreeSet<ShardId>> = BTreeMap::new();
        for view in &views {
            if let Some(leader) = view.leader.filter(|leader| *leader != self.service.node) {
                elsewhere.entry(leader).or_default().insert(view.id);
            }
        }
        let deadline = Instant::now() + PEER_PATIENCE;
        let asked = elsewhere.into_iter().map(|(node, ids)| async move {
            let question = Question::Shards { ids: ids.into_iter().collect() };
            self.ask::<Vec<ShardView>>(node, &question, deadline).await.unwrap_or_default()
        });
        let answers: Vec<_> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let mut by_leader: BTreeMap<_, _> = answers.into_iter().map(|v| (v.id, v)).collect();
        for view in &mut views {
            // Only one who leads knows more than a follower.
            if let Some(told) = by_leader.remove(&view.id).filter(|v| v.replicas.iter().any(|r| r.matched.is_some())) {
                let local = view.local.take();
                *view = ShardView { local, ..told };
            }
        }
        Ok(views)
    }

    fn view(&self, descriptor: &Descriptor, report: Option<ShardReport>) -> ShardView {
        let leader = self.service.routes.leader(descriptor.id);
        let me = self.service.node;
        let state_of = |role: &str| match role {
            "leader" => ReplicaState::Leader,
            "follower" | "learner" => ReplicaState::Follower,
            "candidate" => ReplicaState::Candidate,
            "pre_candidate" => ReplicaState::PreCandidate,
            _ => ReplicaState::Unknown,
        };
        let replicas = descriptor.replicas.iter().map(|replica| {
            let progress = report.as_ref().and_then(|r| r.followers.iter().find(|f| f.replica == replica.id));
            let last = report.as_ref().map(|r| r.log.1);
            let state = match &report {
                Some(report) if replica.node == me => state_of(report.role),
                _ if leader == Some(replica.node) => ReplicaState::Leader,
                Some(report) if report.role == "leader" => ReplicaState::Follower,
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
                    "replicate" => ProgressState::Replicate,
                    "snapshot" => ProgressState::Snapshot,
                    _ => ProgressState::Probe,
                }),
            }
        });
        let local = report.as_ref().and_then(|report| {
            let replica = descriptor.on_node(me)?;
            Some(LocalView {
                node: me,
                replica: replica.id,
                role: replica.role,
                state: state_of(report.role),
                applied: report.applied,
                hash: None,
                keys: None,
            })
        });
        let (start, end) = keys::data_range(descriptor.id.is_meta(), &descriptor.range);
        let led_here = leader == Some(me);
        let rates = &self.state.rates;
        let rate = rates.lock().expect("nothing panics while it holds the rates").last().get(&descriptor.id).copied();
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

    /// Works out the local replica's hash, which reads all of the shard.
    async fn add_hash(&self, view: &mut ShardView) -> Result<(), Refusal> {
        let deadline = Instant::now() + PEER_PATIENCE;
        let grant = self.service.grant(view.id, Consistency::Stale { age_max: None }, deadline).await?;
        let hash = self.service.readers.hash(HashLook::new(&grant.descriptor), view.id, &grant.view).await?;
        if let Some(local) = &mut view.local {
            local.applied = hash.applied.index;
            local.hash = Some(format!("{:016x}", hash.hash));
            local.keys = Some(hash.keys);
        }
        Ok(())
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("these types have a form in JSON").into()
}
