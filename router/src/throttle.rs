//! How often a line of one kind may be written to the log, when strangers decide how often there is
//! reason to.
//!
//! One throttle stands for one **kind** of line, never for a text: texts hold what strangers send,
//! and a stranger who varies them would have each one written. What was held back is counted, and
//! told with the next line that is let through. The time is handed in.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one line through in a while, and counts the others.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When a line was last let through.
    last: Option<Instant>,
    /// How many were held back since.
    unsaid: u64,
}

impl Throttle {
    /// One line in `every` at most.
    pub const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(State { last: None, unsaid: 0 }) }
    }

    /// Whether a line may be written at `now`; if so, how many were held back since the last.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_and_the_others_are_counted() {
        let throttle = Throttle::new(Duration::from_secs(30));
        let start = Instant::now();
        let at = |seconds| throttle.pass(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(1), at(10), at(29)], [None; 3]);
        assert_eq!(at(30), Some(3));
        assert_eq!(at(31), None);
        assert_eq!(at(100), Some(1));
    }
}
