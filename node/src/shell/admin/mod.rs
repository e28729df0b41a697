//! The admin API's answers: what this node knows, and what it asks the others for.
//!
//! Who leads a shard knows most about it. A list of shards is therefore put together from what each
//! leading node says, asked once each; where a node does not answer in time, what is known here
//! stands in for it.

mod asking;
mod nodes;
mod shards;

use crate::core;
use crate::shell::driver::LoopState;
use crate::shell::forward::Forwarder;
use crate::shell::mailbox::Mailbox;
use crate::shell::reading::Readers;
use asking::AdminRequest;
use flotilla_ops::Ordered;
use flotilla_ops::admin::{
    ClusterView, Explanation, LeaderCount, NodeState, NodeView, Quorum, ShardView, Transfer,
    text_or_base64,
};
use flotilla_router::{
    ClusterId, Consistency, Descriptor, Epoch, Incarnation, NodeId, Refusal, ShardId,
};
use flotilla_storage::read::HashLook;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long another node may take to say what it knows.
const PEER_PATIENCE: Duration = Duration::from_millis(1000);
/// How long a hand-over of leadership may take.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

/// Answers admin questions.
pub struct Admin {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's present life.
    pub incarnation: Incarnation,
    /// Every node: id, QUIC and HTTP address.
    pub nodes: BTreeMap<NodeId, (String, Option<String>)>,
    /// Routes, and the way to other nodes.
    pub forwarder: Arc<Forwarder>,
    /// Where hashes are read.
    pub readers: Arc<Readers>,
    /// The loop.
    pub mailbox: Mailbox,
    /// What the loop shows.
    pub state: Arc<LoopState>,
    /// The disk.
    pub engine: Arc<crate::shell::Engine>,
    /// The folder of the data.
    pub data: PathBuf,
    /// When the process started.
    pub started: Instant,
}

impl flotilla_ops::Admin for Admin {
    async fn cluster(&self) -> Result<ClusterView, Refusal> {
        let table = self.forwarder.routes.table();
        let shards: Vec<_> = table.shards().filter(|s| !s.id.is_meta()).collect();
        // What was last heard of a node that is away leads nobody.
        let leads = |node: &NodeId| self.state_of(*node) == NodeState::Up;
        let leaders: Vec<_> = shards
            .iter()
            .filter_map(|shard| self.forwarder.routes.leader(shard.id).filter(leads))
            .collect();
        let leaders_per_node = self
            .nodes
            .keys()
            .map(|node| LeaderCount {
                node: *node,
                leaders: leaders.iter().filter(|l| *l == node).count(),
            })
            .collect();
        Ok(ClusterView {
            id: self.cluster,
            version: env!("CARGO_PKG_VERSION").into(),
            answered_by: self.forwarder.node,
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
            return Err(Refusal::NotFound {
                what: format!("node {id}; GET /v1/admin/nodes lists them"),
            });
        }
        Ok(self.node_view(id).await)
    }

    async fn shards(
        &self,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<ShardView>, Refusal> {
        let table = self.forwarder.routes.table();
        let page: Vec<Arc<Descriptor>> = table
            .shards()
            .filter(|s| after.is_none_or(|after| s.id > after))
            .take(limit)
            .cloned()
            .collect();
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
        let Some(descriptor) = self.forwarder.routes.owner(key) else {
            return Err(Refusal::NotFound { what: "shard for that key on this node's map".into() });
        };
        let shard = self.views(std::slice::from_ref(&descriptor)).await?.remove(0);
        let nodes: Vec<_> = descriptor.replicas.iter().map(|r| r.node.to_string()).collect();
        let mut why = vec![
            format!("The key lies in {:?}, which shard {} owns.", descriptor.range, descriptor.id),
            format!(
                "The shard is kept on nodes {}, as it was placed when it was made.",
                nodes.join(", ")
            ),
        ];
        why.push(match shard.leader {
            Some(leader) => {
                format!("Node {leader} leads it: writes and linearizable reads go there.")
            }
            None => "No node is known to lead it: an election is under way, or a majority of its \
                     nodes is away."
                .into(),
        });
        let behind = shard.replicas.iter().filter(|r| r.lag.is_some_and(|lag| lag > 0));
        why.extend(
            behind.map(|r| {
                format!("Node {} is {} entries behind.", r.node, r.lag.unwrap_or_default())
            }),
        );
        let (key, key_b64) = text_or_base64(key);
        Ok(Explanation { key, key_b64, shard, answered_by: self.forwarder.node, why })
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
            return Err(Refusal::NotFound {
                what: format!("node {to}; GET /v1/admin/nodes lists them"),
            });
        }
        if !descriptor.voters_now().any(|v| v.node == to) {
            let voters: Vec<_> = descriptor.voters_now().map(|v| v.node.to_string()).collect();
            let why = format!(
                "node {to} holds no voter of shard {shard}; nodes {} do",
                voters.join(", ")
            );
            return Err(Refusal::Conflict { why });
        }
        let leader_before = self.forwarder.routes.leader(shard);
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
        let table = self.forwarder.routes.table();
        table.shard(id).cloned().ok_or_else(|| Refusal::NotFound {
            what: format!("shard {id}; GET /v1/admin/shards lists them"),
        })
    }

    fn state_of(&self, node: NodeId) -> NodeState {
        let up = node == self.forwarder.node || self.forwarder.transport.reachable(node);
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
            let done = match self.forwarder.routes.leader(shard) {
                Some(leader) if leader == self.forwarder.node => {
                    self.hand_over_here(shard, to).await
                }
                Some(leader) => {
                    self.ask(leader, &AdminRequest::Transfer { shard, to }, deadline).await
                }
                None => Err(Refusal::NoLeader { shard }),
            };
            match done {
                Ok(()) => {
                    // The new leader says so itself in a moment; who asks next is sent there
                    // already.
                    self.forwarder.routes.set_leader(shard, Some(to));
                    return Ok(());
                }
                Err(
                    no @ (Refusal::NotLeader { .. }
                    | Refusal::NoLeader { .. }
                    | Refusal::NotHosted { .. }),
                ) => refusal = no,
                Err(no) => return Err(no),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(refusal)
    }

    async fn hand_over_here(&self, shard: ShardId, to: NodeId) -> Result<(), Refusal> {
        let deadline = Instant::now() + TRANSFER_PATIENCE;
        let ask = core::Ask::Transfer { shard, to };
        self.mailbox.ask(ask, deadline, Refusal::ShuttingDown).await?;
        Ok(())
    }

    /// Works out the local replica's hash, which reads all of the shard.
    async fn add_hash(&self, view: &mut ShardView) -> Result<(), Refusal> {
        let deadline = Instant::now() + PEER_PATIENCE;
        let ask =
            core::Ask::Read { shard: view.id, consistency: Consistency::Stale { age_max: None } };
        let grant = self.mailbox.ask(ask, deadline, Refusal::ShuttingDown).await?.granted()?;
        let hash =
            self.readers.hash(HashLook::new(&grant.descriptor), view.id, &grant.view).await?;
        if let Some(local) = &mut view.local {
            local.applied = hash.applied.index;
            local.hash = Some(format!("{:016x}", hash.hash));
            local.keys = Some(hash.keys);
        }
        Ok(())
    }
}
