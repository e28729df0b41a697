//! What can be done with a shard: one file and one state struct per operation, which a
//! [`Replica`](super::replica) holds as one field each.
//!
//! An operation works on its own state, the [`Group`] and the [`Context`]; it names no other
//! operation, and neither replica nor node. What concerns two of them is told by the composer, in
//! the order in which they must hear of it.

pub(crate) mod election;
pub(crate) mod fetch;
pub(crate) mod flow;
pub(crate) mod freshness;
pub(crate) mod lease;
pub(crate) mod membership;
pub(crate) mod read;
pub(crate) mod snapshot_in;
pub(crate) mod snapshot_out;
pub(crate) mod transfer;
pub(crate) mod truncation;
pub(crate) mod write;

use super::context::Context;
use super::group::Group;
use flotilla_router::{NodeId, Unfit};
use flotilla_storage::WriteResult;

/// What every operation owes. There are no defaults: whoever adds an operation says of each what it
/// means to it.
pub(crate) trait Operation {
    /// Entries were applied; the group says up to where.
    fn on_applied(&mut self, group: &mut Group, ctx: &mut Context<'_>, changes: &mut Changes);

    /// Leadership came or went, or another replica leads. Whoever waits for a leader that is none
    /// any more is answered.
    fn on_role(&mut self, group: &mut Group, ctx: &mut Context<'_>, change: RoleChange);

    /// Time passes. Only asked of an operation that is not idle.
    fn on_tick(&mut self, group: &mut Group, ctx: &mut Context<'_>);

    /// The replica takes no further part in anything: whoever waits is answered, exactly once.
    fn end(&mut self, group: &mut Group, ctx: &mut Context<'_>);

    /// Whether neither a tick nor anything that is under way would change anything.
    fn is_idle(&self) -> bool;
}

/// What apply came to.
pub(crate) struct Changes {
    /// For each entry whose results are waited for: its index, and one result per command. Whoever
    /// gave them out takes them.
    pub(crate) results: Vec<(u64, Vec<WriteResult>)>,
    /// For each change of members: its index, and whether it was taken; if not, why.
    pub(crate) conf_changes: Vec<(u64, Result<(), Unfit>)>,
}

/// How a replica's part in its group changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoleChange {
    /// It has begun to lead.
    pub(crate) begins: bool,
    /// It has ceased to lead.
    pub(crate) ends: bool,
    /// The node of the leader, as far as this replica knows.
    pub(crate) leader: Option<NodeId>,
}
