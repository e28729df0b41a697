//! How fast what waits is proposed, and how much may wait at that pace: a write that would spend
//! more than a part of its time in line had better be refused at once.

use crate::core::config::CoreConfig;
use crate::core::time::Time;
use std::time::Duration;

/// Bytes of commands that may always wait, however slowly they were proposed before; also for a
/// shard that stands still.
pub(crate) const WAITING_BYTES_MIN: u64 = 1 << 20;
/// How long the pace takes to follow what it is made of.
const PACE_TIME: Time = Duration::from_secs(1);

/// How fast what waits is proposed, which is how fast what was proposed is applied.
pub(crate) struct Pace {
    /// In bytes per second.
    rate: u64,
    /// Bytes proposed since.
    bytes: u64,
    /// When it was last looked at.
    looked_at: Time,
    /// Bytes proposed and not yet applied when something was last proposed, but for shards that
    /// stand still: they go before what waits.
    under_way: u64,
    /// Of the bytes that wait, those of shards that stood still at the last tick.
    pub(crate) standing: u64,
    /// Whether so much waited that the pace counts.
    waited: bool,
}

impl Pace {
    /// Slow, until it is known better: a full queue would take eight seconds.
    pub(crate) fn new(config: &CoreConfig) -> Self {
        let rate = config.raft.waiting_bytes_max / 8;
        Self { rate, bytes: 0, looked_at: Time::ZERO, under_way: 0, standing: 0, waited: false }
    }

    /// So many bytes were proposed.
    pub(crate) fn proposed(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// So many bytes are under way now.
    pub(crate) fn under_way(&mut self, bytes: u64) {
        self.under_way = bytes;
    }

    /// Looks at what was proposed since the last time. While nothing waits, that says only how much
    /// is possible at least, and it is looked at a second's worth: what came all at once is no
    /// speed.
    pub(crate) fn look(&mut self, now: Time, something_waits: bool) {
        let waited = std::mem::replace(&mut self.waited, something_waits);
        if something_waits && !waited {
            // What was idle until now says nothing.
            (self.looked_at, self.bytes) = (now, 0);
        }
        let span = now.saturating_sub(self.looked_at);
        if span.is_zero() || !something_waits && span < PACE_TIME {
            return;
        }
        let span = span.as_micros();
        self.looked_at = now;
        let (bytes, second, time) =
            (u128::from(std::mem::take(&mut self.bytes)), 1_000_000, PACE_TIME.as_micros());
        let (seen, rate) = (bytes * second / span, u128::from(self.rate));
        if something_waits || seen > rate {
            let span = span.min(time);
            self.rate =
                u64::try_from((rate * (time - span) + seen * span) / time).unwrap_or(u64::MAX);
        }
    }

    /// How many bytes may wait in front of a command that has so much time: whoever would spend
    /// more than a third of it in line, and behind what is under way, had better be told at once: a
    /// disk is slower at times.
    pub(crate) fn waiting_bytes_max(&self, time_left: Time, most: u64) -> u64 {
        let in_time = u128::from(self.rate) * (time_left / 3).as_millis() / 1000;
        let in_time = u64::try_from(in_time).unwrap_or(u64::MAX);
        in_time.saturating_sub(self.under_way).max(WAITING_BYTES_MIN).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TICK: Time = Time::from_millis(50);

    fn pace(rate: u64) -> Pace {
        Pace { rate, bytes: 0, looked_at: Time::ZERO, under_way: 0, standing: 0, waited: true }
    }

    /// In MiB.
    fn limit(pace: &Pace, seconds: u64) -> u64 {
        pace.waiting_bytes_max(Time::from_secs(seconds), 256 * MIB) / MIB
    }

    #[test]
    fn what_may_wait_follows_the_pace_and_the_time_that_is_left() {
        let mut pace = pace(64 * MIB);
        assert_eq!([0, 1, 6, 100].map(|seconds| limit(&pace, seconds)), [1, 21, 128, 256]);
        pace.under_way(30 * MIB);
        assert_eq!([0, 1, 6].map(|seconds| limit(&pace, seconds)), [1, 1, 98]);
        pace.under_way(0);
        // A quarter of that for some seconds, while more waits.
        let mut now = Time::ZERO;
        for _ in 0..200 {
            now += TICK;
            pace.proposed(16 * MIB / 20);
            pace.look(now, true);
        }
        assert_eq!(limit(&pace, 6), 32);
        // Nothing at all for long: a little may wait all the same, or nobody would ever learn that
        // it goes on.
        pace.look(now + Time::from_secs(60), true);
        assert_eq!(limit(&pace, 6), 1);
    }

    #[test]
    fn a_tick_that_comes_late_is_no_speed() {
        let mut pace = pace(16 * MIB);
        // The loop stood for a second, in which 16 MiB were proposed.
        pace.proposed(16 * MIB);
        pace.look(Time::from_secs(1), true);
        assert_eq!(limit(&pace, 6), 32);
        pace.look(Time::from_secs(1), true);
        assert_eq!(limit(&pace, 6), 32, "no time has passed");
    }

    #[test]
    fn bursts_are_no_speed() {
        let mut pace = pace(8 * MIB);
        let mut now = Time::ZERO;
        for _ in 0..40 {
            pace.proposed(16 * MIB);
            for _ in 0..200 {
                now += TICK;
                pace.look(now, false);
            }
        }
        assert!(
            (8..=16).contains(&(pace.rate / MIB)),
            "{} MiB/s after 16 MiB every ten seconds",
            pace.rate / MIB
        );
        // Idle seconds say nothing, not even to whoever comes then and waits.
        let before = pace.rate;
        pace.look(now + TICK * 100, false);
        pace.proposed(MIB);
        pace.look(now + TICK * 119, true);
        assert_eq!(pace.rate, before);
    }
}
