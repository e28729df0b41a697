//! The queue between the shell's threads: many senders, one receiver, which takes everything at
//! once.
//!
//! A library's channel hands out one item at a time. This one swaps a vector under a lock: one pass
//! of the loop takes all there is. Before it sleeps, and once more after it was woken, the receiver
//! gives its processor away: where cores are busy, whoever is about to send gets to do so first,
//! and passes are fewer and larger; where they are not, it costs next to nothing
//! (`docs/performance.md`).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How often the receiver gives its processor away before it sleeps.
const YIELDS: usize = 4;

/// A queue without a bound of its own: whoever sends says what is too much ([`Queue::send_if`]), or
/// sends only what was asked for.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

struct State<T> {
    items: Vec<T>,
    /// The weights of the items together.
    weight: usize,
    /// Whether the receiver sleeps; only then is it worth a system call to wake it.
    sleeping: bool,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                items: Vec::new(),
                weight: 0,
                sleeping: false,
                closed: false,
            }),
            filled: Condvar::new(),
        }
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing in this file panics with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item; `false` when the queue is closed, and the item dropped.
    pub fn send(&self, item: T) -> bool {
        self.send_if(item, 0, |_, _| true)
    }

    /// Adds an item of some weight if what waits already, its number and its weight, is `welcome`;
    /// `false` when it is not, or when the queue is closed, and the item dropped.
    pub fn send_if(
        &self,
        item: T,
        weight: usize,
        welcome: impl FnOnce(usize, usize) -> bool,
    ) -> bool {
        let mut state = self.lock();
        if state.closed || !welcome(state.items.len(), state.weight) {
            return false;
        }
        state.items.push(item);
        state.weight += weight;
        let wake = std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.filled.notify_one();
        }
        true
    }

    /// Waits until there is something, or until `deadline`, and moves all of it into `into`, which
    /// is empty. `false` when the queue is closed and everything was taken.
    pub fn take(&self, into: &mut Vec<T>, deadline: Option<Instant>) -> bool {
        assert!(into.is_empty(), "what was taken before was not used up");
        let mut state = self.lock();
        for _ in 0..YIELDS {
            if !state.items.is_empty() || state.closed {
                break;
            }
            drop(state);
            std::thread::yield_now();
            state = self.lock();
        }
        let mut slept = false;
        while state.items.is_empty() && !state.closed {
            state.sleeping = true;
            slept = true;
            state = match deadline {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.sleeping = false;
        if slept && !state.items.is_empty() {
            drop(state);
            std::thread::yield_now();
            state = self.lock();
        }
        std::mem::swap(&mut state.items, into);
        state.weight = 0;
        !(state.closed && into.is_empty())
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// How many items wait, and what they weigh.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.items.len(), state.weight)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more. What is in the queue can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn everything_arrives_in_order_from_many_threads() {
        let queue = Arc::new(Queue::default());
        let senders: Vec<_> = (0..4u64)
            .map(|sender| {
                let queue = queue.clone();
                std::thread::spawn(move || {
                    (0..1_000u64).for_each(|n| assert!(queue.send((sender, n))))
                })
            })
            .collect();
        let mut last = [None; 4];
        let (mut taken, mut total) = (Vec::new(), 0);
        while total < 4_000 {
            assert!(queue.take(&mut taken, Some(Instant::now() + Duration::from_secs(10))));
            assert!(!taken.is_empty(), "nothing came for ten seconds");
            total += taken.len();
            for (sender, n) in taken.drain(..) {
                assert!(
                    last[sender as usize].is_none_or(|before| before + 1 == n),
                    "sender {sender} out of order at {n}"
                );
                last[sender as usize] = Some(n);
            }
        }
        senders.into_iter().for_each(|s| s.join().unwrap());
    }

    #[test]
    fn what_is_too_much_is_turned_away_until_all_was_taken() {
        let (queue, mut taken) = (Queue::default(), Vec::new());
        let offer =
            |item, weight| queue.send_if(item, weight, |items, waiting| items < 3 && waiting < 100);
        assert_eq!([offer(1, 99), offer(2, 1), offer(3, 0)], [true, true, false]);
        assert_eq!(queue.load(), (2, 100));
        assert!(queue.send(4), "what the receiver waits for is always taken");
        assert!(queue.take(&mut taken, None));
        assert_eq!((taken, queue.load()), (vec![1, 2, 4], (0, 0)));
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_then_ends() {
        let (queue, mut taken) = (Queue::default(), Vec::new());
        assert!(queue.send(1));
        queue.close();
        assert!(!queue.send(2));
        assert!(queue.take(&mut taken, None));
        assert_eq!(taken, [1]);
        taken.clear();
        assert!(!queue.take(&mut taken, None));
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut taken = Vec::<u8>::new();
        assert!(Queue::default().take(&mut taken, Some(Instant::now() + Duration::from_millis(5))));
        assert!(taken.is_empty());
    }
}
