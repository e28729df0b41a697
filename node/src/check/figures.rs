//! What a load counts: outcomes, latencies, and the longest time without a success.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Digits of a latency that are kept: a quantile is at most a hundredth too high.
const DIGITS: u8 = 2;
/// What is slower counts as this slow: more than an hour.
const LATENCY_MAX_MICROS: u64 = 1 << 32;

/// The figures of a load, as they grow.
#[derive(Clone, Debug)]
pub struct Figures {
    /// How many operations came to each [`Outcome`].
    outcomes: [u64; 4],
    /// Latencies of answered requests, in microseconds.
    latencies: Histogram<u64>,
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
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, DIGITS)
                .expect("sound bounds"),
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
        self.slowest = self.slowest.max(took);
        self.latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
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
            latency_p50_seconds: self.quantile(0.50),
            latency_p99_seconds: self.quantile(0.99),
            latency_max_seconds: self.slowest.as_secs_f64(),
            longest_silence_seconds: self
                .longest_silence
                .max(end.saturating_sub(self.last_success))
                .as_secs_f64(),
        }
    }

    /// The latency within which such a part of the answers came; a bucket's end may lie above the
    /// slowest of them.
    fn quantile(&self, part: f64) -> f64 {
        (self.latencies.value_at_quantile(part) as f64 * 1e-6).min(self.slowest.as_secs_f64())
    }
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
}
