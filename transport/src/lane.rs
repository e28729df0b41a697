//! Lanes: frames of one lane stay in order, frames of two lanes don't wait for each other.
//!
//! The control lane carries what is small and urgent (heartbeats, votes); its stream goes before
//! the others. Append lanes carry the log and the answers to it; a shard always takes the same one,
//! so that its messages stay in order.

use flotilla_router::ShardId;

/// One ordered stream of frames from a node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats (which carry the contexts of reads), votes, liveness of the node: small, urgent,
    /// never behind a large append.
    Control,
    /// The log and the answers to it. The number is below the `append_lanes` of the sender's
    /// configuration.
    Append(u8),
}

/// The most append lanes that a connection may have.
pub(crate) const APPEND_LANES_MAX: u8 = 16;

impl Lane {
    /// The append lane of a shard, where there are `lanes` of them.
    pub fn append_for(shard: ShardId, lanes: u8) -> Self {
        // Fibonacci hashing: ids are handed out one after the other, and this spreads them evenly.
        let hash = shard.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Self::Append(
            u8::try_from(hash % u64::from(lanes.max(1))).expect("a rest below a u8 is a u8"),
        )
    }

    /// The byte that opens the lane's stream.
    pub(crate) fn tag(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Append(n) => n + 1,
        }
    }

    /// The lane that a stream's first byte names.
    pub(crate) fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Self::Control),
            n if n <= APPEND_LANES_MAX => Some(Self::Append(n - 1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_what_its_tag_says() {
        for lane in std::iter::once(Lane::Control).chain((0..APPEND_LANES_MAX).map(Lane::Append)) {
            assert_eq!(Lane::from_tag(lane.tag()), Some(lane));
        }
        assert_eq!(Lane::from_tag(APPEND_LANES_MAX + 1), None);
        assert_eq!(Lane::from_tag(255), None);
    }

    #[test]
    fn shards_spread_over_the_lanes_and_keep_theirs() {
        for lanes in 1..=4u8 {
            let mut counts = vec![0u32; lanes.into()];
            for shard in 1..=1000 {
                let lane = Lane::append_for(ShardId(shard), lanes);
                assert_eq!(lane, Lane::append_for(ShardId(shard), lanes));
                let Lane::Append(n) = lane else { panic!("{lane:?} is no append lane") };
                counts[usize::from(n)] += 1;
            }
            let fair = 1000 / u32::from(lanes);
            assert!(counts.iter().all(|count| count.abs_diff(fair) < fair / 4 + 1), "{counts:?}");
        }
        assert_eq!(Lane::append_for(ShardId(7), 0), Lane::Append(0));
    }
}
