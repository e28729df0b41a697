//! What nodes ask each other about themselves: in JSON, inside of the requests that nodes forward.

use super::Admin;
use bytes::Bytes;
use flotilla_router::{Answer, NodeId, Outcome, Refusal, Reply, Request, ShardId};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What one node asks another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum AdminRequest {
    /// What do you know of yourself?
    Node,
    /// What do you know of these shards?
    Shards { ids: Vec<ShardId> },
    /// Hand this shard over.
    Transfer { shard: ShardId, to: NodeId },
}

impl Admin {
    /// Asks another node, and reads its answer.
    pub(super) async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        node: NodeId,
        question: &AdminRequest,
        deadline: Instant,
    ) -> Result<T, Refusal> {
        let request = Request::Admin(json(question));
        let reply = self.forwarder.forward(node, ShardId::META, &request, deadline).await?;
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
    pub(in crate::shell) async fn answer_peer(&self, question: &[u8]) -> Result<Reply, Refusal> {
        let question: AdminRequest = serde_json::from_slice(question).map_err(|e| {
            Refusal::Invalid { why: format!("an admin question that this version can't read: {e}") }
        })?;
        let answer = match question {
            AdminRequest::Node => json(&self.own_view()),
            AdminRequest::Shards { ids } => {
                let table = self.forwarder.routes.table();
                let shards: Vec<_> =
                    ids.iter().filter_map(|id| table.shard(*id).cloned()).collect();
                json(&self.local_views(&shards).await?)
            }
            AdminRequest::Transfer { shard, to } => {
                self.hand_over_here(shard, to).await?;
                json(&())
            }
        };
        Ok(Reply {
            shard: ShardId::META,
            node: self.forwarder.node,
            answer: Answer::Admin(answer),
            staleness: None,
        })
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("these types have a form in JSON").into()
}
