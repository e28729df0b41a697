//! Whether a write is taken in: by the replica that leads, for keys that it owns, with room on the
//! disks, and only if it has a chance to be proposed in time. What is refused here was certainly
//! not applied, and costs little; what is taken in and then waits for longer than its client does
//! has cost all that, for nothing. So past what a node can carry it goes on carrying that much.
//!
//! A shard that stands still (without a quorum, say) keeps a short line of its own, and none of the
//! others'.

use super::Write;
use crate::core::budgets::WAITING_BYTES_MIN;
use crate::core::context::Context;
use crate::core::group::Group;
use crate::core::time::Time;
use flotilla_router::refusal::FULL_LINE;
use flotilla_router::{Command, Op, Refusal};

/// Bytes below which no single key is deleted any more; and with a quarter of it left no range of
/// them.
const LAST_BYTES: u64 = 1 << 20;

impl Write {
    /// Whether a command may wait to be proposed.
    pub(super) fn admit(
        &self,
        command: &Command,
        deadline: Time,
        group: &Group,
        ctx: &Context<'_>,
    ) -> Result<(), Refusal> {
        command.check_sizes().map_err(|why| Refusal::Invalid { why })?;
        let shard = group.shard;
        if group.quarantined.is_some() {
            return Err(Refusal::NotHosted { shard });
        }
        if !group.leads() {
            return Err(Refusal::NotLeader { shard, leader: group.leader_node() });
        }
        if !command.is_within(&group.descriptor().range) {
            return Err(Refusal::WrongShard {
                shard,
                descriptors: vec![(&**group.descriptor()).into()],
            });
        }
        let (budgets, most) = (&*ctx.budgets, ctx.config.raft.waiting_bytes_max);
        let own = self.waiting_bytes();
        if most.checked_sub(budgets.waiting_bytes).is_none_or(|left| left == 0 || own > left) {
            return Err(Refusal::Overloaded { what: FULL_LINE.into(), limit: most });
        }
        let (before, limit) =
            match self.stands_still(group, ctx.now, ctx.config.stand_still_patience()) {
                // All of those together have no more than half.
                true if budgets.pace.standing >= most / 2 => (own, 0),
                true => (own, WAITING_BYTES_MIN.min(most)),
                false => {
                    let before = budgets.waiting_bytes.saturating_sub(budgets.pace.standing);
                    (before, budgets.pace.waiting_bytes_max(deadline.saturating_sub(ctx.now), most))
                }
            };
        if before >= limit {
            return Err(Refusal::Overloaded { what: FULL_LINE.into(), limit });
        }
        // Deletions make room, but each takes a little before: the last of it is for those that
        // make most.
        let room = match command.op() {
            Op::Put { .. } if ctx.liveness.lacks_room_for(group.descriptor()) => Err((0, 0)),
            Op::Put { .. } => {
                let in_line =
                    budgets.waiting_bytes + budgets.uncommitted_bytes + budgets.unapplied_bytes;
                budgets.room.check(command.encoded_bytes() as u64, in_line)
            }
            Op::Delete { .. } => budgets.room.check_last(LAST_BYTES),
            Op::DeleteRange { .. } => budgets.room.check_last(LAST_BYTES / 4),
        };
        room.map_err(|(free_bytes, reserve_bytes)| Refusal::DiskFull { free_bytes, reserve_bytes })
    }
}
