//! Lines of writes that were full a moment ago.
//!
//! A shard's leader says when its line is full, and what was sent to it was sent for nothing: read
//! from the client, encrypted, carried to another node, and dropped there. Past saturation that is
//! most of what a node does. So for a moment, which is short beside the time for which anybody
//! would wait in that line, whoever asks for no more time is told the same here, before the value
//! is read.

use flotilla_router::{Refusal, ShardId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a leader's word counts.
const MOMENT: Duration = Duration::from_millis(100);
/// From how many shards on those whose moment has passed are forgotten.
const SHARDS_MAX: usize = 1024;

/// The lines that were full a moment ago, by shard.
#[derive(Default)]
pub struct Lines(Mutex<HashMap<ShardId, Full>>);

/// What a leader said.
struct Full {
    at: Instant,
    /// For how long the write that was refused could have waited.
    time_left: Duration,
    refusal: Refusal,
}

impl Lines {
    /// A shard's leader has refused a write that had so much time.
    pub fn note(&self, shard: ShardId, refusal: &Refusal, now: Instant, time_left: Duration) {
        if !refusal.is_full_line() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= SHARDS_MAX {
            lines.retain(|_, full| now.saturating_duration_since(full.at) < MOMENT);
        }
        lines.insert(shard, Full { at: now, time_left, refusal: refusal.clone() });
    }

    /// What the leader would say to a write that has so much time, if it has just said so to one
    /// that had as much.
    pub fn refusal(&self, shard: ShardId, now: Instant, time_left: Duration) -> Option<Refusal> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = lines.get(&shard)?;
        let counts =
            now.saturating_duration_since(full.at) < MOMENT && time_left <= full.time_left + MOMENT;
        counts.then(|| full.refusal.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_router::refusal::FULL_LINE;

    #[test]
    fn a_leaders_word_counts_for_a_moment_and_for_whoever_would_wait_no_longer() {
        let (lines, now, second) = (Lines::default(), Instant::now(), Duration::from_secs(1));
        let (shard, other) = (ShardId(2), ShardId(3));
        let full = Refusal::Overloaded { what: FULL_LINE.into(), limit: 7 };
        lines.note(shard, &Refusal::Overloaded { what: "views".into(), limit: 7 }, now, second);
        assert_eq!(lines.refusal(shard, now, second), None, "that was no line");
        lines.note(shard, &full, now, second);
        assert_eq!(lines.refusal(shard, now, second), Some(full.clone()));
        assert_eq!(lines.refusal(shard, now, second / 2), Some(full));
        assert_eq!(lines.refusal(shard, now, second * 2), None, "it could wait longer");
        assert_eq!(lines.refusal(other, now, second), None);
        assert_eq!(lines.refusal(shard, now + MOMENT, second), None, "that was long ago");
    }
}
