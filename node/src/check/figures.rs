//! What a load counts: outcomes, latencies, and the longest time without a success.

use serde::Serialize;
use std::time::Duration;

/// Buckets per doubling of a latency, as a power of two: a quantile is at most an eighth too high.
const FINE_BITS: u32 = 3;

/// The figures of a load, as they grow.
#[derive(Clone, Debug)]
pub struct Figures {
    /// How many operations came to each [`Outcome`].
    outcomes: [u64; 4],
    /// Latencies of answered requests, in buckets by microseconds.
    buckets: Vec<u64>,
    slowest: Duration,
    last_success: Duration,
    longest_silence: Duration,
}

/// What an operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It did what was asked.
    Ok,
    /// A write whose condition did not hold.
    ConditionFailed,
    /// It certainly had no effect; or a read that was not answered.
    Refused,
    /// A write of which nobody knows.
    Unknown,
}

/// The figures as they are told at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Operations that did what was asked.
    pub ok: u64,
    /// Writes whose condition did not hold.
    pub condition_failed: u64,
    /// Operations that certainly had no effect, and reads that were not answered.
    pub failed: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// How long the load went on.
    pub seconds: f64,
    /// Operations that did what was asked, per second.
    pub ok_per_second: f64,
    /// Half of the answers came within this time.
    pub latency_p50_seconds: f64,
    /// 99 of 100 answers came within this time.
    pub latency_p99_seconds: f64,
    /// The slowest answer.
    pub latency_max_seconds: f64,
    /// The longest time in which nothing succeeded.
    pub longest_silence_seconds: f64,
}

impl Told {
    /// Whether nothing was answered at all.
    pub fn is_empty(&self) -> bool {
        self.ok + self.condition_failed == 0
    }
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            outcomes: [0; 4],
            buckets: vec![0; 64 << FINE_BITS],
            slowest: Duration::ZERO,
            last_success: Duration::ZERO,
            longest_silence: Duration::ZERO,
        }
    }
}

impl Figures {
    /// Counts an operation with the times of its call and its return, since the load began.
    pub(super) fn count(&mut self, outcome: Outcome, called: Duration, returned: Duration) {
        self.outcomes[outcome as usize] += 1;
        if !matches!(outcome, Outcome::Ok | Outcome::ConditionFailed) {
            return;
        }
        let took = returned.saturating_sub(called);
        self.buckets[bucket(took)] += 1;
        self.slowest = self.slowest.max(took);
        self.longest_silence = self.longest_silence.max(returned.saturating_sub(self.last_success));
        self.last_success = self.last_success.max(returned);
    }

    /// The figures after a load that went on until `end`.
    pub fn told(&self, end: Duration) -> Told {
        let seconds = end.as_secs_f64();
        let [ok, condition_failed, failed, unknown] = self.outcomes;
        Told {
            ok,
            condition_failed,
            failed,
            unknown,
            seconds,
            ok_per_second: if seconds > 0.0 { ok as f64 / seconds } else { 0.0 },
            latency_p50_seconds: self.quantile(50),
            latency_p99_seconds: self.quantile(99),
            latency_max_seconds: self.slowest.as_secs_f64(),
            longest_silence_seconds: self.longest_silence.max(end.saturating_sub(self.last_success)).as_secs_f64(),
        }
    }

    /// The latency within which so many percent of the answers came.
    fn quantile(&self, percent: u64) -> f64 {
        let all: u64 = self.buckets.iter().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return (upper_micros(bucket) * 1e-6).min(self.slowest.as_secs_f64());
            }
        }
        0.0
    }
}

/// The bucket of a latency: its highest bit, and the bits behind it.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1 << FINE_BITS);
    let exponent = micros.ilog2();
    ((exponent as usize) << FINE_BITS) | (micros >> (exponent - FINE_BITS)) as usize & ((1 << FINE_BITS) - 1)
}

/// Where a bucket ends.
fn upper_micros(bucket: usize) -> f64 {
    let fine = 1 << FINE_BITS;
    let (exponent, rest) = (bucket >> FINE_BITS, bucket & (fine - 1));
    (1.0 + (rest + 1) as f64 / fine as f64) * 2f64.powi(exponent as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_silences_are_what_was_counted() {
        let mut figures = Figures::default();
        for n in 1..=100u64 {
            figures.count(Outcome::Ok, Duration::from_millis(9 * n), Duration::from_millis(10 * n));
        }
        figures.count(Outcome::Unknown, Duration::ZERO, Duration::from_secs(2));
        let told = figures.told(Duration::from_secs(2));
        assert!((0.050..0.057).contains(&told.latency_p50_seconds), "{told:?}");
        assert!((0.099..=0.100).contains(&told.latency_p99_seconds), "{told:?}");
        assert_eq!((told.latency_max_seconds, told.ok_per_second, told.unknown), (0.1, 50.0, 1));
        assert_eq!(told.longest_silence_seconds, 1.0, "the end counts as well");
        assert_eq!(Figures::default().told(Duration::ZERO).latency_p99_seconds, 0.0);
    }

    #[test]
    fn a_latency_lies_in_its_bucket() {
        for micros in [0, 1, 8, 9, 15, 16, 1_000, 1_023, 1_024, 123_456, u64::MAX] {
            let upper = upper_micros(bucket(Duration::from_micros(micros)));
            let near = micros.max(8) as f64;
            assert!(upper >= near && upper <= near * 1.13 + 1.0, "{micros}: {upper}");
        }
    }
}
