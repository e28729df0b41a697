//! How busy each shard is: requests per second, over the last window of a few seconds.

use flotilla_router::ShardId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long requests are counted before they become a rate.
const WINDOW: Duration = Duration::from_secs(2);

/// Requests per second of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Reads per second.
    pub reads: f64,
    /// Writes per second.
    pub writes: f64,
}

/// Reads and writes per shard: what is being counted, and what the last full window came to.
pub struct Rates {
    counts: HashMap<ShardId, (u64, u64)>,
    since: Instant,
    last: HashMap<ShardId, Rate>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { counts: HashMap::new(), since: Instant::now(), last: HashMap::new() }
    }
}

impl Rates {
    /// Counts requests of a shard.
    pub fn count(&mut self, shard: ShardId, reads: u64, writes: u64) {
        let counts = self.counts.entry(shard).or_default();
        *counts = (counts.0 + reads, counts.1 + writes);
    }

    /// The rates of the last full window; shards without requests are left out.
    pub fn last(&mut self) -> &HashMap<ShardId, Rate> {
        let seconds = self.since.elapsed().as_secs_f64();
        if seconds >= WINDOW.as_secs_f64() {
            let rate = |(reads, writes)| Rate {
                reads: reads as f64 / seconds,
                writes: writes as f64 / seconds,
            };
            self.last = self.counts.drain().map(|(shard, counts)| (shard, rate(counts))).collect();
            self.since = Instant::now();
        }
        &self.last
    }

    /// The busiest shards, the busiest first.
    pub fn busiest(&mut self, most: usize) -> Vec<(ShardId, Rate)> {
        let mut busy: Vec<_> = self.last().iter().map(|(shard, rate)| (*shard, *rate)).collect();
        busy.sort_by(|(a, x), (b, y)| {
            (y.reads + y.writes).total_cmp(&(x.reads + x.writes)).then(a.cmp(b))
        });
        busy.truncate(most);
        busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_becomes_a_rate_and_the_next_begins_empty() {
        let mut rates = Rates::default();
        rates.count(ShardId(2), 10, 30);
        rates.count(ShardId(3), 100, 0);
        assert!(rates.last().is_empty(), "the window is not over");
        let begun = Instant::now().checked_sub(WINDOW).unwrap();
        rates.since = begun;
        let busiest = rates.busiest(1);
        assert_eq!(busiest[0].0, ShardId(3));
        assert!((30.0..=50.0).contains(&busiest[0].1.reads), "{busiest:?}");
        rates.since = begun;
        assert!(rates.last().is_empty(), "nothing was asked since");
    }
}
