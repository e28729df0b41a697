//! A limit on bytes per second, shared by all who do the same thing.
//!
//! A bucket told by one instant: when all that was taken so far will have been paid for. Whoever
//! takes moves it on and sleeps until it is no more than a short burst ahead; so takers share the
//! rate, and a quiet time does not save up for later.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How far ahead of the rate one may run.
const BURST: Duration = Duration::from_millis(20);

/// Holds its users, together, to a rate.
pub(crate) struct Pace {
    bytes_per_second: u64,
    paid_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// So fast and no faster.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_until: Mutex::new(None) }
    }

    /// Takes `bytes`, and waits as long as the rate asks for.
    pub(crate) async fn take(&self, bytes: usize) {
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.bytes_per_second);
        // No chunk is so large, and no rate so low, that a day would not do; and instants can't
        // overflow by days.
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            .min(Duration::from_secs(86_400));
        let now = Instant::now();
        let until = {
            let mut paid_until =
                self.paid_until.lock().expect("nothing panics while it holds a pace");
            let until = paid_until.map_or(now, |until| until.max(now)) + cost;
            *paid_until = Some(until);
            until
        };
        let wait = until.saturating_duration_since(now);
        if wait > BURST {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_takers_share_one_rate() {
        let pace = Pace::new(1_000_000);
        let started = Instant::now();
        let take = || async {
            for _ in 0..10 {
                pace.take(10_000).await;
            }
        };
        futures_util::future::join(take(), take()).await;
        let elapsed = started.elapsed();
        assert!(elapsed >= Duration::from_millis(170), "200 kB at 1 MB/s took {elapsed:?} only");
    }
}
