//! What ops needs from a node. `node` implements these; ops never imports it.
//!
//! All three are used from many threads at once, are generic parameters of the server (no boxed
//! futures on the way of a request) and must never block the thread.

use crate::admin::{ClusterView, Explanation, NodeView, ShardView, Transfer};
use flotilla_router::Reply;
use flotilla_router::{Consistency, Epoch, HeldView, NodeId, Refusal, Request, ShardId};
use std::future::Future;
use std::time::Instant;

/// Answers questions about keys.
pub trait Kv: Send + Sync + 'static {
    /// What a read gets that does not say how fresh it must be.
    fn default_consistency(&self) -> Consistency {
        Consistency::Linearizable
    }

    /// Answers `ask`, here or on the node that can, before `deadline`.
    ///
    /// A question about a range (scan, delete range) is answered by one shard for the part that it
    /// owns: the one with the range's first key, or for a scan in reverse the one with its last.
    /// The answer says where to go on, and ops walks on by itself.
    ///
    /// Dropping the future means that the asker is gone; a write that was proposed goes on.
    fn call(
        &self,
        request: Request,
        deadline: Instant,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// Why a write of this key would be refused at present, where that is known without asking
    /// anybody: then its value need not be read.
    fn refusal_of_write(&self, _key: &[u8], _deadline: Instant) -> Option<Refusal> {
        None
    }

    /// A stream is over that had come to this view and not to its end. Must not wait; where the
    /// view is out of reach, it is given up in time by who keeps it.
    fn let_go(&self, _view: HeldView) {}
}

/// What an order that was bound to an epoch came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Ordered<T> {
    /// It was carried out (or, in a dry run, would have been).
    Done(T),
    /// Nothing was done: the shard is not at the epoch that `If-Match` named. Answered with 412.
    EpochMoved {
        /// The epoch that the shard is at.
        current: Epoch,
    },
}

/// Answers questions about the cluster, and takes orders.
pub trait Admin: Send + Sync + 'static {
    /// The cluster as a whole.
    fn cluster(&self) -> impl Future<Output = Result<ClusterView, Refusal>> + Send;

    /// Every node, in the order of ids.
    fn nodes(&self) -> impl Future<Output = Result<Vec<NodeView>, Refusal>> + Send;

    /// One node; `Refusal::NotFound` where there is none.
    fn node(&self, id: NodeId) -> impl Future<Output = Result<NodeView, Refusal>> + Send;

    /// At most `limit` shards in the order of ids, those above `after`.
    fn shards(
        &self,
        after: Option<ShardId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<ShardView>, Refusal>> + Send;

    /// One shard; `Refusal::NotFound` where there is none. With `hash` the local replica's state
    /// hash is worked out, which reads all of its data.
    fn shard(
        &self,
        id: ShardId,
        hash: bool,
    ) -> impl Future<Output = Result<ShardView, Refusal>> + Send;

    /// Where a key lives, and why there.
    fn explain(&self, key: &[u8]) -> impl Future<Output = Result<Explanation, Refusal>> + Send;

    /// Hands the leadership of `shard` to the replica on `to`; bound to an epoch where `if_match`
    /// is given; only shown where `dry_run` is set. Answers when the new leader leads.
    fn transfer(
        &self,
        shard: ShardId,
        to: NodeId,
        if_match: Option<Epoch>,
        dry_run: bool,
    ) -> impl Future<Output = Result<Ordered<Transfer>, Refusal>> + Send;
}

/// One thing that a node must have before it takes requests.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// Its stable name in one word: `joined`, `leaders`, `disk`.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was seen, for people; empty where there is nothing to say.
    pub detail: String,
}

/// Whether a node should be sent requests.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Readiness {
    /// Whether it should.
    pub ready: bool,
    /// What that rests on.
    pub checks: Vec<Check>,
}

/// Answers questions about the process itself. Cheap, and never waits for the node's loop.
pub trait Inspect: Send + Sync + 'static {
    /// The node that this is: `Flotilla-Node` where no other node answered.
    fn node(&self) -> NodeId;

    /// Whether the loop turns; if not, what is stuck. A process that is not live should be
    /// restarted.
    fn live(&self) -> Result<(), String>;

    /// Whether requests should be sent here: joined, shards have leaders, disk is writable, not
    /// shutting down.
    fn ready(&self) -> Readiness;

    /// Called before `/metrics` is rendered: the moment to set gauges that nobody keeps up to date.
    fn collect(&self);
}
