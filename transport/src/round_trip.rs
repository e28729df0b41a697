//! How far away a peer is, for whoever asks often.
//!
//! Asking a connection waits for whoever sends or receives on it. So one of those who ask does that
//! now and then; while it waits, the others are told what was seen last.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// For so long what was seen is as good as new.
const AGE_MAX: Duration = Duration::from_millis(100);

/// A round trip, as it was last seen.
pub(crate) struct RoundTrip {
    measure: Box<dyn Fn() -> Duration + Send + Sync>,
    /// When somebody last went to measure. Locked for as long as that takes.
    looked_at: Mutex<Instant>,
    /// What was seen, in nanoseconds.
    seen: AtomicU64,
}

impl RoundTrip {
    /// The round trip that `measure` tells.
    pub(crate) fn new(measure: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let seen = nanos(measure()).into();
        Self { measure: Box::new(measure), looked_at: Mutex::new(Instant::now()), seen }
    }

    /// What it was when somebody last looked.
    pub(crate) fn get(&self) -> Duration {
        self.get_at(Instant::now())
    }

    fn get_at(&self, now: Instant) -> Duration {
        if let Ok(mut looked_at) = self.looked_at.try_lock()
            && now.saturating_duration_since(*looked_at) > AGE_MAX
        {
            *looked_at = now;
            self.seen.store(nanos((self.measure)()), Relaxed);
        }
        Duration::from_nanos(self.seen.load(Relaxed))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    const MS: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn it_is_measured_now_and_then() {
        let real = Arc::new(AtomicU64::new(5));
        let seen = real.clone();
        let round_trip = RoundTrip::new(move || MS * u32::try_from(seen.load(Relaxed)).unwrap());
        let begun = *round_trip.looked_at.lock().unwrap();
        let at = |ms| round_trip.get_at(begun + MS * ms);
        assert_eq!(at(0), 5 * MS);
        real.store(300, Relaxed);
        assert_eq!((at(99), at(101), at(150)), (5 * MS, 300 * MS, 300 * MS));
        real.store(7, Relaxed);
        assert_eq!((at(200), at(202), at(10_000)), (300 * MS, 7 * MS, 7 * MS));
    }

    #[test]
    fn nobody_waits_for_whoever_measures() {
        let ((begun, is_begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let ended = Mutex::new(ended);
        end.send(()).unwrap();
        let round_trip = Arc::new(RoundTrip::new(move || {
            begun.send(()).unwrap();
            ended
                .lock()
                .unwrap()
                .recv_timeout(PATIENCE)
                .expect("somebody waits for whoever measures");
            MS
        }));
        is_begun.recv_timeout(PATIENCE).unwrap();
        let late = *round_trip.looked_at.lock().unwrap() + AGE_MAX * 2;
        let slow = round_trip.clone();
        let slow = std::thread::spawn(move || slow.get_at(late));
        is_begun.recv_timeout(PATIENCE).unwrap();
        for times in 0..3 {
            assert_eq!(round_trip.get_at(late + AGE_MAX * 2 * times), MS, "of the last time");
        }
        end.send(()).unwrap();
        assert_eq!(slow.join().unwrap(), MS);
    }
}
